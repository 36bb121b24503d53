"""A kept-alive connection to a daemon's socket, as Docker has one, with as little in it as can be.

An HTTP library would take as long as the daemon does for its answer.
"""

import json
import re
import select
import socket
import time
from pathlib import Path
from typing import Any

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNK = 1 << 20


class Refused(RuntimeError):
    """The daemon's `Err`, or an answer that is none."""


class Connection:
    """One connection, made when it is needed and made anew when the daemon has closed it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket: socket.socket | None = None

    def call(self, endpoint: str, **body: object) -> dict[str, Any]:
        """Make a call, and return the answer. Raises Refused."""
        return self.timed_call(endpoint, **body)[1]

    def timed(self, endpoint: str, **body: object) -> float:
        """Make a call, and return how many seconds it took until the whole answer was there."""
        return self.timed_call(endpoint, **body)[0]

    def timed_call(self, endpoint: str, **body: object) -> tuple[float, dict[str, Any]]:
        """Make a call, and return both."""
        # The original answers this one to GET only, ours to both.
        method = "GET" if endpoint.startswith("VolumeDriver.Snapshot.List") else "POST"
        data = json.dumps(body).encode()
        head = f"{method} /{endpoint} HTTP/1.1\r\nHost:\r\nContent-Length: {len(data)}\r\n\r\n"
        request = head.encode() + data
        connection = self._connected()
        started = time.perf_counter()
        connection.sendall(request)
        head_and_rest = connection.recv(_CHUNK)
        while b"\r\n\r\n" not in head_and_rest:
            head_and_rest += self._more(connection, endpoint)
        start_line, _, content = head_and_rest.partition(b"\r\n\r\n")
        length = _LENGTH.search(start_line)
        if length is None:
            raise Refused(f"{endpoint}: {start_line!r}")
        parts, missing = [content], int(length[1]) - len(content)
        while missing > 0:
            parts.append(self._more(connection, endpoint))
            missing -= len(parts[-1])
        seconds = time.perf_counter() - started
        return seconds, _answer(endpoint, start_line, b"".join(parts))

    def close(self) -> None:
        """Close it; the next call connects again."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connected(self) -> socket.socket:
        if self._socket is not None and select.select([self._socket], [], [], 0)[0]:
            self.close()  # nothing but its end can have come: the daemon closes after two minutes
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.connect(str(self._path))
        return self._socket

    @staticmethod
    def _more(connection: socket.socket, endpoint: str) -> bytes:
        data = connection.recv(_CHUNK)
        if not data:
            raise Refused(f"{endpoint}: the connection was closed without an answer")
        return data


def _answer(endpoint: str, head: bytes, content: bytes) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = json.loads(content)
    except ValueError:
        raise Refused(f"{endpoint}: {head!r} {content[:200]!r}") from None
    if answer.get("Err"):
        raise Refused(f"{endpoint}: {answer['Err']}")
    return answer
