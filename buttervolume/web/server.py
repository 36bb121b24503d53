"""waitress for the page: threads of its own, few of them, on an address or a unix socket."""

import ipaddress
import socket
import threading
from collections.abc import Callable, Iterable
from typing import Any

from waitress.server import create_server

from buttervolume.errors import OperationFailed

THREADS = 2
"""Pages are made one after the other; one that is made already goes out at once."""
CONNECTIONS = 200


def listen(address: str, port: int) -> socket.socket:
    """A listening socket at an IP address. Raises OperationFailed."""
    version = ipaddress.ip_address(address).version
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if version == 6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((address, port))
        listener.listen(CONNECTIONS)
    except OSError as error:
        listener.close()
        raise OperationFailed(f"serve the page on {address} port {port}", error) from error
    return listener


def serve(app: Callable[..., Iterable[bytes]], listener: socket.socket) -> None:
    """Serve what comes in, until the process ends; nobody waits for a page then."""
    server: Any = create_server(
        app,
        sockets=[listener],
        threads=THREADS,
        connection_limit=CONNECTIONS,
        channel_timeout=30,
        max_request_body_size=1024,
        asyncore_use_poll=True,
        ident="buttervolume",
    )
    threading.Thread(target=server.run, name="web", daemon=True).start()
