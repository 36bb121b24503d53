"""What is being transferred now: a list to look at, and a way to end one."""

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count

from buttervolume.errors import Cancelled, NoSuchTransfer
from buttervolume.system.command import Flow

_TICKETS = 1000
"""How many that were called off are remembered, for requests that come late."""


@dataclass
class Tally:
    """How many bytes the transfers of a thread have moved."""

    moved: int = 0


@dataclass
class Transfer:
    """A transfer under way."""

    number: int
    operation: str
    """`send`, `receive` or `sync`."""
    volume: str
    snapshot: str
    host: str
    parent: str | None = None
    """The snapshot that both hosts have, where only the changes since then travel."""
    ticket: str | None = None
    """A name for it that its caller chose before it began."""
    phase: str = "connecting"
    flow: Flow = field(default_factory=Flow)
    started: float = field(default_factory=time.monotonic)
    """Seconds of the monotonic clock."""

    @property
    def seconds(self) -> float:
        """How long it has been going on."""
        return time.monotonic() - self.started


class Transfers:
    """All transfers under way."""

    def __init__(self) -> None:
        # protects _running, _called_off and _closed
        self._guard = threading.Lock()
        self._running: dict[int, Transfer] = {}
        self._called_off: deque[str] = deque(maxlen=_TICKETS)
        self._closed = False
        self._numbers = count(1)
        self._of_thread = threading.local()

    @contextmanager
    def start(self, operation: str, volume: str, snapshot: str, host: str) -> Iterator[Transfer]:
        """List a transfer until the block ends. Raises Cancelled if it was called off before, or if
        the daemon is stopping."""
        ticket: str | None = getattr(self._of_thread, "ticket", None)
        with self._guard:
            if self._closed or ticket in self._called_off:
                raise Cancelled
            number = next(self._numbers)
            transfer = Transfer(number, operation, volume, snapshot, host, ticket=ticket)
            self._running[transfer.number] = transfer
        try:
            yield transfer
        finally:
            with self._guard:
                del self._running[transfer.number]
            tally: Tally = getattr(self._of_thread, "tally", Tally())
            tally.moved += transfer.flow.moved

    @contextmanager
    def ticket(self, ticket: str | None) -> Iterator[None]:
        """Let the transfers that this thread makes until the block ends be known by a ticket."""
        self._of_thread.ticket = ticket
        try:
            yield
        finally:
            del self._of_thread.ticket

    @contextmanager
    def tally(self) -> Iterator[Tally]:
        """Count what is moved by the transfers that this thread makes until the block ends."""
        self._of_thread.tally = Tally()
        try:
            yield self._of_thread.tally
        finally:
            del self._of_thread.tally

    def list(self) -> list[Transfer]:
        """The transfers under way, the oldest first."""
        with self._guard:
            return list(self._running.values())

    def cancel(self, number: int) -> None:
        """Let a transfer end. Raises NoSuchTransfer."""
        with self._guard:
            if number not in self._running:
                raise NoSuchTransfer(number)
            self._running[number].flow.cancel()

    def call_off(self, ticket: str) -> None:
        """Let the transfers of a ticket end, and those that have not begun yet not begin."""
        with self._guard:
            self._called_off.append(ticket)
            for transfer in self._running.values():
                if transfer.ticket == ticket:
                    transfer.flow.cancel()

    def close(self) -> None:
        """Let all transfers end, and no other begin."""
        with self._guard:
            self._closed = True
            for transfer in self._running.values():
                transfer.flow.cancel()
