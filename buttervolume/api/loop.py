"""Waits for what waitress is to read and to write, however many connections there are.

waitress's own loop asks every connection, before each wait, whether it has something to read or to
write. When a dockerd starts, thousands are open at once, and this would take longer than all that
they ask. Here only those are asked with which something has happened: something came, a thread has
worked on them, or waitress has looked for idle ones.
"""

import select
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

_READ = select.EPOLLIN | select.EPOLLPRI
_LONGEST_WAIT = 1.0
"""Seconds until waitress may look for idle connections, and how many there are, again."""


class Loop:
    """The loop of one waitress server, whose `pull_trigger` is `wake`, and whose connections tell
    it when they come, go and are worked on."""

    def __init__(self, server: Any, dispatch: Callable[[Any, int], None]) -> None:
        """`dispatch` lets one of waitress's dispatchers act on events of poll(2)."""
        self._server = server
        self._dispatch = dispatch
        self._dispatchers: dict[int, Any] = server._map
        self._poll = select.epoll()
        self._watched: dict[int, int] = {}
        """The descriptors that are waited for, and for what."""
        self._touched: deque[int] = deque(self._dispatchers)
        """Those with which something has happened. Any thread adds to it."""
        self._woken = False
        self._here = threading.local()

    def run(self) -> None:
        """Serve, until the process ends."""
        while True:
            self.turn(_LONGEST_WAIT)

    def turn(self, longest: float) -> None:
        """Wait for something to happen, at most so many seconds, and act on it."""
        cleaned = self._server.next_channel_cleanup
        self._watch(self._server._fileno)  # which depends on the number of connections, too
        if self._server.next_channel_cleanup != cleaned:  # those that were idle are to be closed
            self._touched.extend(self._dispatchers)
        self._woken = False  # from here on, a thread that touches one must wake this one
        while self._touched:
            self._watch(self._touched.popleft())
        for descriptor, events in self._poll.poll(longest):
            dispatcher = self._dispatchers.get(descriptor)
            if dispatcher is not None:
                self._dispatch(dispatcher, events)
                self._touched.append(descriptor)

    def touch(self, descriptor: int) -> None:
        """Ask this one again before the next wait. Only in the thread of the loop."""
        self._touched.append(descriptor)

    def forget(self, descriptor: int) -> None:
        """Wait for this one no more, which is about to be closed."""
        if self._watched.pop(descriptor, 0):
            with suppress(OSError):
                self._poll.unregister(descriptor)

    @contextmanager
    def working_on(self, descriptor: int) -> Iterator[None]:
        """Within the block, `wake` is for this one. In a thread of a lane."""
        self._here.descriptor = descriptor
        try:
            yield
        finally:
            del self._here.descriptor

    def wake(self) -> None:
        """Let the loop ask again the one that this thread works on."""
        descriptor = getattr(self._here, "descriptor", None)
        if descriptor is not None:
            self._touched.append(descriptor)
        if not self._woken:
            self._woken = True
            self._server.trigger.pull_trigger()

    def _watch(self, descriptor: int) -> None:
        """Wait from now on for what a dispatcher wants to read or write."""
        wanted = 0
        dispatcher = self._dispatchers.get(descriptor)
        if dispatcher is not None:
            if dispatcher.readable():
                wanted |= _READ
            if dispatcher.writable() and not dispatcher.accepting:
                wanted |= select.EPOLLOUT
        before = self._watched.get(descriptor, 0)
        if wanted == before:
            return
        if not wanted:
            self.forget(descriptor)
            return
        if before:
            self._poll.modify(descriptor, wanted)
        else:
            self._poll.register(descriptor, wanted)
        self._watched[descriptor] = wanted
