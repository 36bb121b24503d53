"""What was done and what came of it, in an SQLite database, with the scheduler's memory in it.

Losing it costs nothing but one early run of each job. So nothing that goes wrong with it stops a
job or a call: what is recorded is queued, one thread writes, and a file that is broken
is put aside.
"""

import errno
import json
import logging
import os
import sqlite3
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from buttervolume import ages
from buttervolume.errors import BadMoment, OperationFailed
from buttervolume.jobs.memory import Memory
from buttervolume.system import files

KEPT_FOR = timedelta(days=90)
KEPT_ROWS = 1_000_000
_PRUNE_EVERY = 86400.0
"""Seconds."""
_BUSY = 2.0
"""Seconds to wait while another process has locked the file, before it counts as busy."""
_WAITING = 10_000
"""How much may wait for a file that cannot be written now; what is older than that is lost."""
_PATIENCE = 10.0
"""Seconds between two tries to write such a file."""
_GATHERING = 0.05
"""Seconds in which more calls may come before they are written, if nobody waits for it: each write
takes time from the call that comes next."""
_NOT_OURS = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)
"""The file is broken, or was never a database (sqlite.org/rescode.html)."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
    id INTEGER PRIMARY KEY,
    started INTEGER NOT NULL, -- microseconds since 1970 in UTC
    seconds REAL NOT NULL,
    operation TEXT NOT NULL,
    volume TEXT NOT NULL,
    host TEXT NOT NULL,
    snapshot TEXT NOT NULL,
    bytes INTEGER,
    outcome TEXT NOT NULL,
    error TEXT NOT NULL,
    "by" TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS runs_by_volume ON runs (volume, id);
CREATE INDEX IF NOT EXISTS runs_by_start ON runs (started);
CREATE INDEX IF NOT EXISTS failed_runs ON runs (id) WHERE error != '';
CREATE TABLE IF NOT EXISTS memories (
    job TEXT PRIMARY KEY,
    last_success INTEGER,
    outcome TEXT NOT NULL,
    failures INTEGER NOT NULL,
    first_failure INTEGER,
    last_failure INTEGER,
    message TEXT NOT NULL,
    "when" TEXT NOT NULL,
    since INTEGER
) STRICT, WITHOUT ROWID;
"""
_VERSION = 1
"""Of the schema. A newer program's file is put aside like a broken one."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TICK = timedelta(microseconds=1)
_LARGEST = (1 << 63) - 1
_MIN = -_LARGEST


@dataclass(frozen=True)
class Run:
    """Something that was done, or tried."""

    started: datetime
    """In UTC."""
    seconds: float
    operation: str
    """A job's action, or the name of a call."""
    volume: str = ""
    host: str = ""
    """The other host; several are separated by commas."""
    snapshot: str = ""
    bytes: int | None = None
    """What was transferred; None if nothing was to be."""
    outcome: str = ""
    """What was done, in words."""
    error: str = ""
    """Why it failed or was refused; empty if it was not."""
    by: str = "schedule"
    """`schedule`, `docker` or `command`."""


Task = Callable[[sqlite3.Connection], object]


class History:
    """The database: written by a thread of its own, read by any thread."""

    def __init__(
        self,
        path: Path,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        kept_rows: int = KEPT_ROWS,
    ) -> None:
        self.path = path
        self._now = now
        self._kept_rows = kept_rows
        self._log = logging.getLogger(__name__)
        # protects all below; notified when there is something to write, or all is written
        self._changed = threading.Condition()
        self._tasks: deque[Task] = deque(maxlen=_WAITING)
        self._hurry = threading.Event()
        """Set when what is in the queue is to be written at once."""
        self._writing = False
        self._stopping = False
        self._memories: dict[str, Memory] = {}
        """What is to be in the database, for a new one in the place of one that broke."""
        self._complained = False
        """Whether it was said that the file cannot be written now."""
        self._connection: sqlite3.Connection | None = None
        """Handed from `start` to the thread."""
        self._opened: os.stat_result | None = None
        """What file is open; it may lose its name."""
        self._thread = threading.Thread(target=self._work, name="history", daemon=True)

    def start(self, old_state: Path | None = None) -> dict[str, Memory]:
        """Open or make the database and return what is remembered of the jobs.

        `old_state` is the JSON file of earlier versions, which is taken over once.
        """
        memories: dict[str, Memory] = {}
        try:
            self._connection = self._open(even_if_busy=True)
            memories = _read_memories(self._connection)
        except (sqlite3.Error, OSError, OverflowError, ValueError) as error:
            self._warn(error)
        if old_state is not None and (found := self._take_over(old_state)):
            memories = found | memories
            self.remember(memories)
        with self._changed:
            self._memories = dict(memories)
        self._thread.start()
        return memories

    def _take_over(self, path: Path) -> dict[str, Memory]:
        """The memories in a state file; afterwards it has another name."""
        found: dict[str, Memory] = {}
        try:
            found = load_state(path)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            self._log.warning("%s: %s; every job runs once now", path, error)
        with suppress(OSError):
            path.rename(path.with_name(f"{path.name}.old"))
        return found

    def stop(self, deadline: float) -> None:
        """Write what waits, until a moment of the monotonic clock."""
        with self._changed:
            self._stopping = True
            self._hurry.set()
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(max(0.0, deadline - time.monotonic()))

    # Recording

    def record(self, run: Run, job: str = "", memory: Memory | None = None) -> None:
        """Note what was done, together with what is to be remembered of a job."""
        row = _row(run)

        def write(connection: sqlite3.Connection) -> None:
            connection.execute(_INSERT_RUN, row)
            if memory is not None:
                _write_memories(connection, {job: memory})

        if memory is not None:
            with self._changed:
                self._memories[job] = memory
            self._hurry.set()
        self._add(write)

    def remember(self, memories: Mapping[str, Memory]) -> None:
        """Note what is to be remembered of some jobs, in one step."""
        with self._changed:
            self._memories |= memories
        self._hurry.set()
        self._add(lambda connection: _write_memories(connection, memories))

    def forget(self, jobs: Sequence[str]) -> None:
        """Remember nothing more of some jobs."""
        with self._changed:
            for job in jobs:
                self._memories.pop(job, None)
        rows = [(job,) for job in jobs]
        self._add(lambda c: c.executemany("DELETE FROM memories WHERE job = ?", rows))

    def _add(self, task: Task) -> None:
        with self._changed:
            if not self._tasks:
                self._changed.notify_all()
            self._tasks.append(task)

    def flush(self, timeout: float = 10.0) -> None:
        """Wait until what was recorded so far is in the database, for so many seconds at most."""
        self._hurry.set()
        with self._changed:
            self._changed.wait_for(lambda: not self._tasks and not self._writing, timeout)

    # Writing

    def _work(self) -> None:
        connection, self._connection = self._connection, None
        next_prune = time.monotonic()
        while self._wait(next_prune):
            try:
                if connection is not None and not self._is_there():
                    connection.close()
                    connection = None
                    self._log.warning("%s is gone; a new one begins", self.path)
                    self._forget_log()
                    self._begin_anew()
                if connection is None:
                    connection = self._open()
                if time.monotonic() >= next_prune:
                    next_prune = time.monotonic() + _PRUNE_EVERY
                    self._prune(connection)
                self._write(connection)
                self._complained = False
            except (sqlite3.Error, OSError) as error:
                if connection is not None and not _is_busy(error):
                    with suppress(sqlite3.Error):
                        connection.close()
                    connection = None
                self._fail(error)
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()

    def _wait(self, until: float) -> bool:
        """Wait for something to do; whether there is."""
        with self._changed:
            self._writing = False
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: self._tasks or self._stopping, max(0.0, until - time.monotonic())
            )
            self._writing = bool(self._tasks)
            return bool(self._tasks) or not self._stopping

    def _write(self, connection: sqlite3.Connection) -> None:
        """Write what waits in one transaction; it leaves the queue when it is written."""
        self._hurry.wait(_GATHERING)
        self._hurry.clear()
        with self._changed:
            tasks = list(self._tasks)
        with _transaction(connection):
            for task in tasks:
                task(connection)
        with self._changed:
            for task in tasks:
                if self._tasks and self._tasks[0] is task:  # the oldest may have been dropped
                    self._tasks.popleft()

    def _prune(self, connection: sqlite3.Connection) -> None:
        """Delete what is too old, and what is too much, of a file that is whole."""
        [damage] = connection.execute("PRAGMA quick_check(1)").fetchone()
        if damage != "ok":
            raise _Useless(f"it is damaged ({damage})")
        oldest = _to_database(self._now() - KEPT_FOR)
        with _transaction(connection):
            connection.execute("DELETE FROM runs WHERE started < ?", (oldest,))
            connection.execute(_DELETE_ROWS_BEYOND, (self._kept_rows,))

    def _fail(self, error: Exception) -> None:
        """Go on after an error: with a new file if this one is broken, else later."""
        if _is_broken(error):
            try:
                self._put_aside(error)
            except OSError as another:
                error = another
            else:
                self._begin_anew()
                return
        self._warn(error)
        with self._changed:
            self._changed.wait_for(lambda: self._stopping, _PATIENCE)
            if self._stopping:
                self._tasks.clear()

    def _is_there(self) -> bool:
        """Whether the file that is open still has its name: somebody may have removed it, or put
        another in its place."""
        try:
            return self._opened is not None and os.path.samestat(self._opened, os.stat(self.path))
        except FileNotFoundError:
            return False
        except OSError:  # nobody can tell now
            return True

    def _forget_log(self) -> None:
        """Remove what sqlite has beside a file that is not there any more."""
        for suffix in ("-wal", "-shm"):  # another file must not find its log
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)

    def _begin_anew(self) -> None:
        """Let a new file get the memories that the old one had."""
        with self._changed:
            memories = dict(self._memories)
            self._tasks.appendleft(lambda connection: _write_memories(connection, memories))

    def _warn(self, error: Exception) -> None:
        """Say once that the file cannot be used now."""
        if not self._complained:
            self._complained = True
            self._log.warning("%s cannot be used: %s; jobs go on without it", self.path, error)

    def _open(self, *, even_if_busy: bool = False) -> sqlite3.Connection:
        """A connection for writing, to a file that is whole; a broken one is put aside, and one
        that somebody else keeps locked, too, if there must be one now."""
        try:
            return self._open_once()
        except sqlite3.DatabaseError as error:
            if not (_is_broken(error) or (even_if_busy and _is_busy(error))):
                raise
            self._put_aside(error)
            return self._open_once()

    def _open_once(self) -> sqlite3.Connection:
        self.path.parent.mkdir(0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(self.path, flags, 0o600)  # what sqlite makes beside it is like it
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, "it is no regular file")
            os.fchmod(descriptor, 0o600)
            self._opened = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        connection = sqlite3.connect(
            self.path, timeout=_BUSY, isolation_level=None, check_same_thread=False
        )
        connection.text_factory = _text
        try:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version > _VERSION:
                raise _Useless(f"it was written by a newer version ({version})")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")
            connection.execute(_SEARCH, (0, True, 0))
            _read_memories(connection)
        except (sqlite3.OperationalError, TypeError, ValueError, OverflowError) as error:
            connection.close()
            if isinstance(error, sqlite3.OperationalError) and _code(error) != sqlite3.SQLITE_ERROR:
                raise
            raise _Useless(f"it was not written by this program ({error})") from error
        except BaseException:
            connection.close()
            raise
        return connection

    def _put_aside(self, error: Exception) -> None:
        """Give the file, and what sqlite has beside it, another name."""
        aside = self.path.with_name(f"{self.path.name}.broken")
        self._log.warning("%s: %s; it is now %s, and a new one begins", self.path, error, aside)
        for suffix in ("-wal", "-shm", ""):  # a new file must not find the old one's log
            with suppress(FileNotFoundError):
                os.replace(f"{self.path}{suffix}", f"{aside}{suffix}")
        files.sync_directory(self.path.parent)

    # Reading

    def search(
        self,
        volume: str | None = None,
        *,
        since: datetime | None = None,
        failed: bool = False,
        limit: int = 1000,
    ) -> list[Run]:
        """The last runs, of one volume or all, the newest last. Raises OperationFailed."""
        earliest = _MIN if since is None else _to_database(since)
        query = _SEARCH
        values: tuple[object, ...] = (earliest, not failed, limit)
        if volume is not None:
            query, values = _SEARCH_VOLUME, (volume, *values)
        if not self._is_there():
            with self._changed:
                if not self._tasks:
                    self._add(lambda _: None)  # this makes a new one
        self.flush(_BUSY)
        try:
            uri = f"{self.path.absolute().as_uri()}?mode=ro"
            with closing(sqlite3.connect(uri, uri=True, timeout=_BUSY)) as connection:
                connection.text_factory = _text
                rows = connection.execute(query, values).fetchall()
        except (sqlite3.Error, OSError, ValueError, OverflowError) as error:
            raise OperationFailed("read the history", error) from error
        found = []
        for row in reversed(rows):
            with suppress(OverflowError):  # damaged: its moment is in no calendar
                found.append(_run(row))
        return found


def parse_since(text: str, now: datetime) -> datetime:
    """Understand how far back to look: an age such as `2d`, or a date, local unless it says
    otherwise. Raises BadMoment."""
    with suppress(ValueError):
        return max(_EPOCH, now - ages.parse(text))
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise BadMoment(text) from error


class _Useless(sqlite3.DatabaseError):
    """A file that this program cannot work with."""


def _is_broken(error: Exception) -> bool:
    return isinstance(error, _Useless) or _code(error) & 0xFF in _NOT_OURS


def _is_busy(error: Exception) -> bool:
    return _code(error) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _code(error: Exception) -> int:
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


_INSERT_RUN = """INSERT INTO runs
    (started, seconds, operation, volume, host, snapshot, bytes, outcome, error, "by")
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""
_SEARCH = """SELECT
    started, seconds, operation, volume, host, snapshot, bytes, outcome, error, "by"
    FROM runs WHERE started >= ? AND (? OR error != '') ORDER BY id DESC LIMIT ?"""
_SEARCH_VOLUME = _SEARCH.replace("WHERE", "WHERE volume = ? AND")
_DELETE_ROWS_BEYOND = """DELETE FROM runs
    WHERE id <= (SELECT id FROM runs ORDER BY id DESC LIMIT 1 OFFSET ?)"""
_INSERT_MEMORY = """INSERT OR REPLACE INTO memories
    (job, last_success, outcome, failures, first_failure, last_failure, message, "when", since)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"""
_READ_MEMORIES = """SELECT
    job, last_success, outcome, failures, first_failure, last_failure, message, "when", since
    FROM memories"""


def _write_memories(connection: sqlite3.Connection, memories: Mapping[str, Memory]) -> None:
    rows = ((_to_database(job), *_row(memory)) for job, memory in memories.items())
    connection.executemany(_INSERT_MEMORY, rows)


def _read_memories(connection: sqlite3.Connection) -> dict[str, Memory]:
    found = {}
    for job, success, outcome, failures, first, last, message, when, since in connection.execute(
        _READ_MEMORIES
    ):
        found[job] = Memory(
            _moment(success),
            outcome,
            failures,
            _moment(first),
            _moment(last),
            message,
            when,
            _moment(since),
        )
    return found


def _row(record: Run | Memory) -> tuple[object, ...]:
    """The fields of a record. (`dataclasses.astuple` would copy each of them deeply.)"""
    return tuple(map(_to_database, vars(record).values()))


def _to_database(value: object) -> object:
    """A value as the database takes it: no moment, and no half of a surrogate pair."""
    if isinstance(value, datetime):
        return (value - _EPOCH) // _TICK
    if isinstance(value, int):
        return min(value, _LARGEST)
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    return value


def _text(data: bytes) -> str:
    """A text of the database. SQLite does not notice a byte of it that has changed on the disk."""
    return data.decode(errors="replace")


def _moment(value: int | None) -> datetime | None:
    return None if value is None else _EPOCH + value * _TICK


def _run(row: Sequence[object]) -> Run:
    started, seconds, *texts = row
    operation, volume, host, snapshot, moved, outcome, error, by = texts
    return Run(
        started=_EPOCH + int(str(started)) * _TICK,
        seconds=float(str(seconds)),
        operation=str(operation),
        volume=str(volume),
        host=str(host),
        snapshot=str(snapshot),
        bytes=None if moved is None else int(str(moved)),
        outcome=str(outcome),
        error=str(error),
        by=str(by),
    )


# The state file of earlier versions


def load_state(path: Path) -> dict[str, Memory]:
    """Read the memories; raises OSError or ValueError if they cannot be read."""
    text = path.read_text(encoding="utf-8")
    try:
        return {key: _from_json(values) for key, values in json.loads(text)["jobs"].items()}
    except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"not written by this program: {error!r}") from error


def _from_json(values: Mapping[str, str | int | None]) -> Memory:
    def moment(key: str) -> datetime | None:
        text = values[key]
        return datetime.fromisoformat(str(text)).astimezone(UTC) if text else None

    return Memory(
        last_success=moment("last_success"),
        outcome=str(values["outcome"]),
        failures=int(values["failures"] or 0),
        first_failure=moment("first_failure"),
        last_failure=moment("last_failure"),
        message=str(values["message"]),
    )
