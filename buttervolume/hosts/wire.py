"""What two hosts say to each other over one connection: JSON objects, a line each, and streams of
btrfs send between them, which say themselves where they end."""

import json
import os
import select
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from buttervolume.errors import PeerGone, PeerSilent
from buttervolume.hosts.stream import LONGEST_COMMAND, Checker
from buttervolume.system.command import Flow

LONGEST_LINE = 16 << 20
"""Bytes: the answer to a look at 50,000 snapshots fits."""
_MOST_VALUES = 800_000
"""Values in a line, as many as that answer has: of a few bytes each, 16 MiB would become 400."""
_BUFFER = 2 * LONGEST_COMMAND
_READ = 128 << 10
"""Bytes that are read at a time: of more, a part would have left the processor's cache before it
is checked and written."""
_NOTABLE = 1 << 16
"""Bytes that a stream must bring before it stalls."""
_TICK_MS = 200


class Inlet:
    """The bytes that come from the other side. What was read beyond a line belongs to the stream
    that follows it, and the other way round."""

    def __init__(self, descriptor: int, size: int = _BUFFER) -> None:
        """`size` bytes at most are read ahead of what is asked for."""
        self._descriptor = descriptor
        os.set_blocking(descriptor, False)
        self._buffer = bytearray(size)
        self._start = self._end = 0

    def message(
        self, limit: float, flow: Flow | None = None, longest: int = LONGEST_LINE
    ) -> dict[str, Any] | None:
        """The next line, as an object; None if the other side has ended instead of saying more.

        Raises PeerSilent after `limit` seconds, PeerGone if it is no JSON object, Cancelled.
        """
        line = self.line(limit, flow, longest)
        if not line:
            return None
        if sum(map(line.count, (b",", b"[", b"{"))) > _MOST_VALUES:
            raise PeerGone("the other side said too many things in a line")
        try:
            said = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise PeerGone("the other side said something that is no JSON") from error
        if not isinstance(said, dict):
            raise PeerGone("the other side said something that is no JSON object")
        return said

    def line(self, limit: float, flow: Flow | None = None, longest: int = LONGEST_LINE) -> bytes:
        """The next line, without its end; nothing if the other side has ended.

        Raises PeerSilent after `limit` seconds without a whole line, PeerGone, Cancelled.
        """
        deadline = time.monotonic() + limit
        parts: list[bytes] = []
        length = 0
        while True:
            found = self._buffer.find(b"\n", self._start, self._end)
            stop = self._end if found < 0 else found
            parts.append(bytes(memoryview(self._buffer)[self._start : stop]))
            length += stop - self._start
            if length > longest:
                raise PeerGone("the other side said a line without end")
            if found >= 0:
                self._start = found + 1
                return b"".join(parts)
            self._start = self._end = 0
            if time.monotonic() > deadline:  # a line may come byte by byte
                raise PeerSilent(limit)
            if not self._fill(deadline - time.monotonic(), flow):
                if length:
                    raise PeerGone("the other side ended in the middle of a line")
                return b""

    def some(self, limit: float) -> bytes:
        """What comes next, at least a byte. Raises PeerSilent, PeerGone if nothing comes."""
        if self._start == self._end:
            self._start = self._end = 0
            if not self._fill(limit, None):
                raise PeerGone("the other side has ended")
        start, self._start = self._start, self._end
        return bytes(memoryview(self._buffer)[start : self._end])

    def pass_stream(
        self,
        checker: Checker,
        sink: int,
        *,
        stall: float,
        flow: Flow,
        before: Callable[[int], None] = lambda cost: None,
    ) -> None:
        """Pass a stream on to a descriptor while checking it, up to its END, and not a byte that
        has not been checked. `before` is told what the stream has cost the disk with what comes
        next, and may raise.

        Raises StreamRefused, PeerGone if the stream is cut off, PeerSilent if nothing worth
        mentioning moves for `stall` seconds, BrokenPipeError if nobody reads the sink, Cancelled.
        """
        os.set_blocking(sink, False)
        last_move, moved = time.monotonic(), 0
        with memoryview(self._buffer) as view:
            while True:
                flow.check()
                good = checker.check(view[self._start : self._end])
                if good:
                    before(checker.cost)
                    _write(sink, view[self._start : self._start + good], stall, flow)
                    self._start += good
                    flow.moved += good
                if checker.finished:
                    return
                rest = self._end - self._start
                view[:rest] = view[self._start : self._end]
                self._start, self._end = 0, rest
                read = self._fill(stall, flow)
                if not read:
                    raise PeerGone("the stream was cut off")
                moved += read
                if moved >= _NOTABLE:
                    last_move, moved = time.monotonic(), 0
                elif time.monotonic() - last_move > stall:  # it comes byte by byte
                    raise PeerSilent(stall)

    def _fill(self, limit: float, flow: Flow | None) -> int:
        """Read once, behind what is in the buffer; how many bytes, 0 at the end."""
        deadline = time.monotonic() + limit
        with memoryview(self._buffer) as view, view[self._end : self._end + _READ] as room:
            while True:
                with suppress(BlockingIOError):
                    count = os.readv(self._descriptor, [room])
                    self._end += count
                    return count
                _wait(self._descriptor, select.POLLIN, deadline, limit, flow)


def _write(descriptor: int, data: memoryview, limit: float, flow: Flow | None) -> None:
    """Write all of it to a descriptor that does not block."""
    while data:
        deadline = time.monotonic() + limit
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:
            _wait(descriptor, select.POLLOUT, deadline, limit, flow)


def _wait(descriptor: int, event: int, deadline: float, limit: float, flow: Flow | None) -> None:
    """Wait until something can be read, or written."""
    poll = select.poll()
    poll.register(descriptor, event)
    while not poll.poll(_TICK_MS):
        if flow:
            flow.check()
        if time.monotonic() > deadline:
            raise PeerSilent(limit)


def say(descriptor: int, message: Mapping[str, object], limit: float) -> None:
    """Say an object, as a line. Raises PeerSilent if nobody reads for `limit` seconds, OSError."""
    os.set_blocking(descriptor, False)
    line = json.dumps(message, separators=(",", ":")) + "\n"
    _write(descriptor, memoryview(line.encode()), limit, None)
