"""waitress on a unix socket: lanes of threads, limits, and an end in order.

What it does beside waitress (2.1 to 3.0): requests go to the threads of their lane; a request that
waitress itself refuses is answered in JSON, too, and the connection is closed only when the client
has had time to read that; no answer at all is possible; and what it costs to wait for the next
request does not grow with the connections (see `loop`).
"""

import json
import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

from waitress.channel import ClientDisconnected, HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.server import create_server
from waitress.task import ErrorTask, ThreadedTaskDispatcher, WSGITask
from waitress.wasyncore import readwrite

from buttervolume.api.http import LARGEST_BODY, MIMETYPE, TRANSFERS, Lane, NoAnswer
from buttervolume.api.loop import Loop
from buttervolume.errors import OperationFailed
from buttervolume.follow.following import WAITING
from buttervolume.words import shortened

CONNECTIONS = 4096
"""A dockerd that starts asks about all of its volumes at once, each on a connection of its own."""
_OTHER_FILES = 1024
"""What the daemon may have open beside connections, where files are not scarce."""
THREADS: Mapping[Lane, int] = {
    Lane.DOCKER_QUESTION: 8,
    Lane.DOCKER: 64,
    Lane.DOCKER_MOUNT: WAITING + 32,
    Lane.QUESTION: 8,
    Lane.MANAGEMENT: 64,
    Lane.TRANSFER: TRANSFERS + 4,  # those beyond the limit are refused at once
}
"""The most threads of each lane; they begin when they are needed."""
_LINGER = 5.0
"""Seconds for a client whose request was refused half-way to stop sending and read the answer."""


def allow_connections() -> int:
    """How many connections there may be: as many as the limit on open files allows, whose soft
    value, 1024 in most places, is raised first. More would be accepted without end and failure."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return CONNECTIONS
    return min(CONNECTIONS, max(soft - _OTHER_FILES, soft // 2))


@contextmanager
def listen(path: Path) -> Iterator[socket.socket]:
    """Listen on a unix socket that owner and group may use; a stale one is replaced.

    The lock beside the socket must be held.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            if path.is_socket():
                path.unlink()
            elif os.path.lexists(path):
                raise OperationFailed(f"listen on {path}", "it exists and is no socket")
            mask = os.umask(0o177)
            try:
                listener.bind(str(path))
            finally:
                os.umask(mask)
            path.chmod(0o660)
        except OSError as error:
            raise OperationFailed(f"listen on {path}", error) from error
        listener.listen(CONNECTIONS)
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


class _Threads(ThreadedTaskDispatcher):
    """The threads of a lane, begun when they are needed."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def add_task(self, task: Any) -> None:
        """Let a request be worked on."""
        with self.lock:
            wanted = min(self.active_count + len(self.queue) + 1, self._most)
        if wanted > len(self.threads):
            self.set_thread_count(wanted)
        super().add_task(task)


class _Lanes(ThreadedTaskDispatcher):
    """Sends each request to the threads of its lane."""

    def __init__(self, lane_of: Callable[[str], Lane], threads: Mapping[Lane, int]) -> None:
        super().__init__()
        self._lane_of = lane_of
        self._lanes = {lane: _Threads(count) for lane, count in threads.items()}

    def add_task(self, task: Any) -> None:
        """Let the next request of a connection, which is waitress's task, be worked on."""
        path = getattr(task.requests[0], "path", "")  # what is no HTTP has none
        self._lanes[self._lane_of(path)].add_task(task)


class _Parser(HTTPRequestParser):
    """Takes nothing that follows a refused request for another request."""

    def received(self, data: bytes) -> int:
        """Take what has come; return how much of it belongs to this request."""
        consumed: int = super().received(data)
        return len(data) if self.error else consumed


class _Answer(WSGITask):
    """The answer of the application. Its head goes out together with what follows: by itself it
    would cost a call, and wake the client up for nothing."""

    def write(self, data: bytes) -> None:
        """Write a part of the content."""
        if self.wrote_header or not data or not self.has_body or self.content_length is None:
            super().write(data)
            return
        head = self.build_response_header()
        self.wrote_header = True
        channel: Any = self.channel
        channel.write_soon(head + data)
        self.content_bytes_written += len(data)


class _Refusal(ErrorTask):
    """The answer to a request that is no HTTP, or too big."""

    def execute(self) -> None:
        """Write the answer."""
        channel: Any = self.channel
        channel.refused = True
        error: Any = cast(Any, self.request).error
        self.status = f"{error.code} {error.reason}"
        said = {"Err": shortened(f"{error.reason}: {error.body}"), "Code": type(error).__name__}
        content = json.dumps(said).encode()
        self.response_headers = [("Content-Type", MIMETYPE), ("Connection", "close")]
        self.close_on_finish = True
        self.content_length = len(content)
        self.write(content)


class _Channel(HTTPChannel):
    """A connection. After a refusal it reads on for a while, and throws away what comes: else the
    client, still sending, would be told of a broken connection only."""

    task_class = _Answer
    error_task_class = _Refusal
    parser_class = _Parser
    refused = False
    _lingers = False
    _until: float | None = None

    def __init__(self, loop: Loop, *arguments: Any, **options: Any) -> None:
        self._loop = loop
        super().__init__(*arguments, **options)

    def add_channel(self, map: Any = None) -> None:  # noqa: A002
        """Let the loop know of this connection."""
        super().add_channel(map)
        self._loop.touch(cast(Any, self)._fileno)

    def del_channel(self, map: Any = None) -> None:  # noqa: A002
        """Let the loop know that this connection is about to be closed."""
        self._loop.forget(cast(Any, self)._fileno)
        super().del_channel(map)

    def service(self) -> None:
        """Work on a request, in a thread of its lane."""
        with self._loop.working_on(cast(Any, self)._fileno):
            super().service()

    def received(self, data: bytes) -> bool:
        """Take what has come, unless the connection is about to be closed."""
        if self.will_close or self.close_when_flushed or self._lingers:
            return False
        return bool(super().received(data))

    def handle_write(self) -> None:
        """Send what is to be sent; then close, or linger."""
        if self.refused and self.close_when_flushed:
            self.close_when_flushed, self._lingers = False, True
        super().handle_write()
        is_sent = self.connected and not self.will_close and not self.total_outbufs_len
        if self._lingers and self._until is None and is_sent:
            self._until = time.monotonic() + _LINGER
            with suppress(OSError):  # else it has gone, and reading tells
                cast(socket.socket, self.socket).shutdown(socket.SHUT_WR)

    def handle_read(self) -> None:
        """Read what has come."""
        if self._until is None:
            super().handle_read()
        elif not self.recv(self.adj.recv_bytes) or time.monotonic() > self._until:
            self.will_close = True


class Server:
    """waitress in a thread of its own, with an end that lets started answers go out."""

    def __init__(
        self, app: Callable[..., Iterable[bytes]], lane_of: Callable[[str], Lane], connections: int
    ) -> None:
        self._app = app
        self._lane_of = lane_of
        self._connections = connections
        self._stopping = threading.Event()

    def start(self, listener: socket.socket) -> None:
        """Serve what comes in on a listening socket."""
        server: Any = create_server(  # the type stubs know too little of it
            self._serve,
            _dispatcher=_Lanes(self._lane_of, THREADS),
            sockets=[listener],
            connection_limit=self._connections,
            backlog=CONNECTIONS,
            clear_untrusted_proxy_headers=False,
            max_request_body_size=LARGEST_BODY + 1,
            inbuf_overflow=2 * LARGEST_BODY,  # bodies never go to a file
        )
        loop = Loop(server, readwrite)
        server.channel_class = partial(_Channel, loop)
        server.pull_trigger = loop.wake
        self._channels: dict[int, Any] = server.active_channels
        threading.Thread(target=loop.run, name="waitress", daemon=True).start()

    def _serve(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if self._stopping.is_set():
            raise ClientDisconnected  # Docker asks the next daemon
        try:
            return self._app(environ, start_response)
        except NoAnswer:
            raise ClientDisconnected from None  # waitress closes without an answer

    def stop(self, deadline: float) -> None:
        """Take no more requests, and wait for those that are being worked on, until a moment of
        the monotonic clock."""
        self._stopping.set()
        while self._is_answering() and time.monotonic() < deadline:
            time.sleep(0.01)

    def _is_answering(self) -> bool:
        """Whether waitress works on a request, or has part of an answer that is still to be sent:
        it sends from a thread of its own after the application has returned."""
        channels = list(self._channels.values())
        return any(channel.requests or channel.total_outbufs_len for channel in channels)
