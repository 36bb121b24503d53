"""What happens in a soak on purpose, so that what goes wrong can be asked for its cause."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from math import inf

from tests.soak.clock import TICK, Clock
from tests.soak.rules import Interval

AWAY = "away"
RESTART = "restart"


@dataclass
class Event:
    """Something that explains errors, from its beginning until nothing of it goes on."""

    kind: str
    """AWAY: the peer cannot be reached. RESTART: the daemon is ended, and starts again."""
    what: str
    begun: float
    """Of the real clock."""
    tick: datetime
    """Of the simulated one."""
    ended: float = inf
    settled: float = inf
    """When all that has begun before the end was over."""
    settled_tick: datetime | None = None

    def covers(self, begun: float, ended: float) -> bool:
        """Whether it went on in some of that time."""
        return begun <= self.settled and ended >= self.begun

    def interval(self, until: datetime) -> Interval:
        """When it went on by the simulated clock."""
        return Interval(self.tick, until if self.settled_tick is None else self.settled_tick)


@dataclass(frozen=True)
class Complaint:
    """Something that a client did not get."""

    who: str
    what: str
    begun: float
    ended: float
    causes: tuple[str, ...]
    """The kinds of events that would explain it."""


class Diary:
    """The events and complaints of a soak, written by several threads."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._guard = threading.Lock()  # protects what follows
        self.events: list[Event] = []
        self.complaints: list[Complaint] = []

    @contextmanager
    def event(self, kind: str, what: str) -> Iterator[Event]:
        """Something happens until the block ends; who settles it comes later."""
        event = Event(kind, what, time.time(), self._clock.tick())
        with self._guard:
            self.events.append(event)
        try:
            yield event
        finally:
            event.ended = time.time()

    def settle(self, before: float) -> None:
        """All is over now that began before this moment of the real clock."""
        for event in self.events:
            if event.ended <= before and event.settled == inf:
                event.settled = time.time()
                event.settled_tick = self._clock.tick() + TICK

    def complain(self, who: str, what: str, begun: float, causes: tuple[str, ...]) -> None:
        """Note that a client did not get something."""
        with self._guard:
            self.complaints.append(Complaint(who, what, begun, time.time(), causes))

    def outages(self, until: datetime) -> list[Interval]:
        """When the daemon was ended, or had just come back."""
        return [event.interval(until) for event in self.events if event.kind == RESTART]

    def explains(self, kinds: tuple[str, ...], begun: float, ended: float) -> bool:
        """Whether an event of one of these kinds went on then."""
        return any(event.kind in kinds and event.covers(begun, ended) for event in self.events)

    def explains_run(self, kinds: tuple[str, ...], started: datetime, until: datetime) -> bool:
        """The same for a run of a job, by the simulated clock."""
        return any(
            event.kind in kinds and event.tick <= started <= event.interval(until).ended
            for event in self.events
        )
