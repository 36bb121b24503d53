"""What was asked, what was answered, and what must therefore be on a disk that was cut off.

Pure: the moments come from the caller, as seconds of one clock for all that takes part.
"""

import threading
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import shake_128
from typing import NamedTuple, Self


class Thing(NamedTuple):
    """Something that is there or not: a volume or snapshot of a host, a job, the pause of all."""

    host: str
    kind: str
    name: str


@dataclass(frozen=True)
class Content:
    """The files of a volume or snapshot, by names that tell what is in them."""

    synced: frozenset[str] = frozenset()
    """What the user was told is on the disk."""
    written: frozenset[str] = frozenset()
    """What was written whole, these included: each snapshot that is taken now holds it."""
    begun: frozenset[str] = frozenset()
    """What may be there in part, these included."""

    def with_begun(self, file: str) -> Self:
        return replace(self, begun=self.begun | {file})

    def with_written(self, file: str, *, synced: bool) -> Self:
        also = {file} if synced else frozenset()
        return replace(self, written=self.written | {file}, synced=self.synced | also)

    def without(self, file: str) -> Self:
        """A file was removed: nobody was told that this is on the disk, so it may be there."""
        return replace(self, synced=self.synced - {file}, written=self.written - {file})

    def copied(self, later: Self | None = None) -> "Content":
        """A snapshot taken now, or between now and later: on the disk as a whole."""
        later = later or self
        whole = self.written & later.written
        return Content(whole, whole, later.begun)

    def holds(self, found: Mapping[str, bool]) -> bool:
        """Whether these files, each said to be whole or not, can be this content after a cut."""
        return all(found.get(name) for name in self.synced) and found.keys() <= self.begun


State = Content | str | None
"""A content; the settings of a job; None for what is not there."""


@lru_cache(maxsize=8192)
def bytes_of(file: str) -> bytes:
    """What is in a file of that name, `<anything>-<size>`."""
    return shake_128(file.encode()).digest(int(file.rpartition("-")[2]))


@dataclass(frozen=True)
class Change:
    """A thing that got another state at some moment between the two, the second one included."""

    begun: float
    ended: float
    state: State


@dataclass
class Record:
    """All changes. Those of one thing are told in the order in which they were made."""

    _changes: dict[Thing, list[Change]] = field(default_factory=lambda: defaultdict(list))
    _guard: threading.Condition = field(default_factory=threading.Condition)  # protects _changes
    _answers: int = 0

    def add(
        self, begun: float, ended: float, states: Mapping[Thing, State], *, answer: bool = True
    ) -> None:
        """Something was asked and answered at these moments, after which these are the states."""
        with self._guard:
            for thing, state in states.items():
                self._changes[thing].append(Change(begun, ended, state))
            self._answers += answer
            self._guard.notify_all()

    def wait_for_answer(self, timeout: float) -> None:
        """Return right after the next answer."""
        with self._guard:
            before = self._answers
            self._guard.wait_for(lambda: self._answers > before, timeout)

    def things(self) -> list[Thing]:
        with self._guard:
            return list(self._changes)

    def now(self, thing: Thing) -> State:
        """The state after all changes."""
        with self._guard:
            changes = self._changes.get(thing)
            return changes[-1].state if changes else None

    def content(self, thing: Thing) -> Content:
        """The content now of what is there."""
        state = self.now(thing)
        assert isinstance(state, Content), (thing, state)
        return state

    def possible(self, thing: Thing, begun: float, ended: float) -> list[State]:
        """In which states a thing can be on a disk whose copy was taken between these moments.

        What was answered before the copy was begun has happened; what was asked before it ended,
        and not answered before it was begun, may have happened.
        """
        with self._guard:
            changes = list(self._changes.get(thing, ()))
        last = bisect_right(changes, begun, key=lambda change: change.ended)
        states: list[State] = [changes[last - 1].state if last else None]
        return states + [change.state for change in changes[last:] if change.begun <= ended]
