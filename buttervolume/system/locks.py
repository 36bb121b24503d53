"""Who may do what at the same time: mutexes for short operations, holds for long ones."""

import fcntl
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path


class Mutexes:
    """One mutex for each name, made when it is needed and forgotten when nobody uses it."""

    def __init__(self, busy: Callable[[str], Exception] = TimeoutError) -> None:
        """`busy` makes the error for a name that does not become free in time."""
        self._busy = busy
        self._patience = threading.local()
        # protects _mutexes and _users, for a moment at a time
        self._guard = threading.Lock()
        self._mutexes: dict[str, threading.Lock] = {}
        self._users: Counter[str] = Counter()

    @contextmanager
    def patience(self, seconds: float) -> Iterator[None]:
        """Let this thread, within the block, wait at most so long for each name that it wants to
        hold; then the error of `busy` is raised. Others wait for as long as it takes."""
        self._patience.seconds = seconds
        try:
            yield
        finally:
            del self._patience.seconds

    @contextmanager
    def hold(self, *names: str) -> Iterator[None]:
        """Hold the mutexes of some names, taken in one order by everybody: no deadlock."""
        with ExitStack() as stack:
            for name in sorted(set(names)):
                stack.enter_context(self._hold_one(name))
            yield

    @contextmanager
    def _hold_one(self, name: str) -> Iterator[None]:
        with self._guard:
            mutex = self._mutexes.setdefault(name, threading.Lock())
            self._users[name] += 1
        try:
            if not mutex.acquire(timeout=getattr(self._patience, "seconds", -1)):
                raise self._busy(name)
            try:
                yield
            finally:
                mutex.release()
        finally:
            with self._guard:
                self._users[name] -= 1
                if not self._users[name]:
                    del self._users[name], self._mutexes[name]


class Holds:
    """Names that something long, such as a transfer, needs left as they are.

    Nobody waits here: to change what is held, or to hold what is being changed, is an error at
    once.
    """

    def __init__(self, busy: Callable[[str], Exception]) -> None:
        """`busy` makes the error for a name that is taken."""
        self._busy = busy
        # protects _held and _claimed, for a moment at a time
        self._guard = threading.Lock()
        self._held: Counter[str] = Counter()
        self._claimed: set[str] = set()

    @contextmanager
    def hold(self, *names: str) -> Iterator[None]:
        """Keep names from being claimed until the block ends. Several may hold one name."""
        with self._guard:
            for name in names:
                if name in self._claimed:
                    raise self._busy(name)
            self._held.update(names)
        try:
            yield
        finally:
            with self._guard:
                self._held.subtract(names)
                self._held = +self._held

    @contextmanager
    def claim(self, names: Iterable[str]) -> Iterator[frozenset[str]]:
        """Claim, for changing them until the block ends, those of the names that are free."""
        with self._guard:
            free = frozenset(names) - self._held.keys() - self._claimed
            self._claimed |= free
        try:
            yield free
        finally:
            with self._guard:
                self._claimed -= free

    def held(self) -> frozenset[str]:
        """The names that are held now."""
        with self._guard:
            return frozenset(self._held)

    def check_free(self, name: str) -> None:
        """Raise the error of `busy` if the name is held."""
        if name in self.held():
            raise self._busy(name)


def share_file(descriptor: int) -> None:
    """Lock an open file together with all who share it, until its last descriptor is closed; waits
    while somebody has it alone (flock(2))."""
    fcntl.flock(descriptor, fcntl.LOCK_SH)


def lock_file(descriptor: int, patience: float, pause: float) -> None:
    """Lock an open file for this process alone, until its last descriptor is closed (flock(2)).

    Tries again after each pause, in seconds, and raises BlockingIOError if another process has the
    lock for longer than the patience.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(pause)


@contextmanager
def reading(directory: Path) -> Iterator[None]:
    """Let other processes see that this one reads a directory until the block ends, however long
    that takes (see `is_locked`). Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        share_file(descriptor)
        yield
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether somebody holds a lock on a file or a directory (flock(2)), alone or together with
    others; nobody does on what cannot be opened."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
