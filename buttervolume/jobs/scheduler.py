"""Jobs at their times: one thread that looks, workers that act, a memory that survives restarts."""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from queue import SimpleQueue

from buttervolume.errors import ButtervolumeError, OperationFailed
from buttervolume.hosts.replication import Replication
from buttervolume.jobs.schedule import Contents, Job, Purge, Replicate, Schedule, Synchronize
from buttervolume.store.snapshots import Snapshots, Taken
from buttervolume.system import files

POOL = 4
"""How many snapshots and purges run side by side."""


@dataclass(frozen=True)
class Memory:
    """What is remembered of a job; times are in UTC."""

    last_success: datetime | None = None
    """When its last successful run began."""
    outcome: str = ""
    """What that run did."""
    failures: int = 0
    """How many runs have failed since."""
    first_failure: datetime | None = None
    last_failure: datetime | None = None
    message: str = ""
    """Why the last of them failed."""


@dataclass(frozen=True)
class Activity:
    """What the scheduler knows of its jobs at one moment; jobs go by their keys."""

    memories: Mapping[str, Memory]
    running: Mapping[str, datetime]
    """Since when, in UTC, a job is with its worker."""
    since_round: float
    """Seconds since its thread last came by, with or without success; it comes every TIMER."""


# Decisions: pure, with the clock as a parameter


def is_due(job: Job, memory: Memory, now: datetime, slack: timedelta) -> bool:
    """Whether a job is to run: when its period has passed since the start of its last success, or
    after a failure when 1, 2, 4 … minutes have passed, never more than its period.

    It may run `slack` too early: half the time between two looks, so that a period that is a
    multiple of that time does not drift.
    """
    if memory.last_failure is not None:
        wait = timedelta(minutes=2 ** min(memory.failures - 1, 40))
        return now + slack >= memory.last_failure + min(wait, job.period)
    return memory.last_success is None or now + slack >= memory.last_success + job.period


def due_jobs(
    jobs: Iterable[Job], memories: Mapping[str, Memory], now: datetime, slack: timedelta
) -> list[Job]:
    """The active jobs that are to run now."""
    nothing = Memory()
    return [
        job
        for job in jobs
        if job.active and is_due(job, memories.get(job.key, nothing), now, slack)
    ]


def settle(memory: Memory, now: datetime) -> Memory:
    """Take a time in the future, left by a clock that was set back, for now: the job then waits
    for one period, instead of for as long as the clock was wrong."""
    success, failure = memory.last_success, memory.last_failure
    if success is not None and success > now:
        memory = replace(memory, last_success=now)
    if failure is not None and failure > now:
        first = min(memory.first_failure or now, now)
        memory = replace(memory, first_failure=first, last_failure=now)
    return memory


def succeeded(started: datetime, outcome: str) -> Memory:
    """The memory of a job after a successful run."""
    return Memory(last_success=started, outcome=outcome)


def failed(memory: Memory, now: datetime, message: str) -> Memory:
    """The memory of a job after a failed run."""
    return replace(
        memory,
        failures=memory.failures + 1,
        first_failure=memory.first_failure or now,
        last_failure=now,
        message=message,
    )


# The memory on the disk


def load(path: Path) -> dict[str, Memory]:
    """Read the memories; raises OSError or ValueError if there are none that can be read."""
    text = path.read_text(encoding="utf-8")
    try:
        return {key: _from_json(values) for key, values in json.loads(text)["jobs"].items()}
    except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"not written by this program: {error!r}") from error


def _from_json(values: Mapping[str, str | int | None]) -> Memory:
    moments = {
        key: datetime.fromisoformat(str(values[key])).astimezone(UTC) if values[key] else None
        for key in ("last_success", "first_failure", "last_failure")
    }
    return Memory(
        **moments,
        outcome=str(values["outcome"]),
        failures=int(values["failures"] or 0),
        message=str(values["message"]),
    )


def save(path: Path, memories: Mapping[str, Memory]) -> None:
    """Write the memories."""
    jobs = {key: vars(memory) for key, memory in sorted(memories.items())}
    text = json.dumps({"jobs": jobs}, indent=1, default=datetime.isoformat, ensure_ascii=False)
    files.replace(path, f"{text}\n")


class Workers:
    """Threads that take tasks from one queue. They end with the process: nobody waits for them."""

    def __init__(self, name: str, count: int) -> None:
        self._tasks: SimpleQueue[Callable[[], None]] = SimpleQueue()
        for number in range(count):
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True).start()

    def _work(self) -> None:
        while True:
            self._tasks.get()()

    def add(self, task: Callable[[], None]) -> None:
        """Let a task be done when its turn comes."""
        self._tasks.put(task)


class Scheduler:
    """Runs the jobs of a schedule.

    A round looks at the file and hands out what is due. A job that is handed out is not handed out
    again before it has ended; transfers have workers of their own for each set of hosts, so that a
    dead host delays only what concerns it.
    """

    def __init__(
        self,
        schedule: Schedule,
        snapshots: Snapshots,
        replication: Replication,
        state_path: Path,
        timer: int,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`timer` is in seconds."""
        self._schedule = schedule
        self._snapshots = snapshots
        self._replication = replication
        self._state_path = state_path
        self._timer = timer
        self._now = now
        self._log = logging.getLogger(__name__)
        # protects all below; notified when a job has ended, and when all is to stop
        self._changed = threading.Condition()
        self._memories: dict[str, Memory] = {}
        self._unsaved = False
        """Whether a job has ended since the memory was last written."""
        self._running: dict[str, datetime] = {}
        self._last_round = time.monotonic()
        self._stopping = False
        self._workers: dict[tuple[str, ...], Workers] = {}
        self._saved: Mapping[str, Memory] = {}
        """What is on the disk; only the thread uses it, and `start` before and `stop` after it."""
        self._thread = threading.Thread(target=self._loop, name="scheduler", daemon=True)

    def start(self) -> None:
        """Read the memory and begin."""
        try:
            self._memories = load(self._state_path)
            self._saved = dict(self._memories)
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            self._log.warning("%s: %s; every job runs once now", self._state_path, error)
        self._thread.start()

    def stop(self, deadline: float) -> None:
        """Hand out nothing more, and wait for what runs to be recorded, until a moment of the
        monotonic clock."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._running, deadline - time.monotonic())
        self._thread.join(max(0, deadline - time.monotonic()))
        if not self._thread.is_alive():  # else it may be writing the same file
            self._save()

    def activity(self) -> Activity:
        """What there is to know now."""
        with self._changed:
            since_round = time.monotonic() - self._last_round
            return Activity(dict(self._memories), dict(self._running), since_round)

    def _loop(self) -> None:
        next_round = time.monotonic()
        while not self._stopping:
            try:
                if time.monotonic() >= next_round:
                    self._last_round = time.monotonic()
                    next_round = self._last_round + self._timer
                    self.round()
                self._save()
            except ButtervolumeError as error:
                self._log.error("no jobs in this round: %s", error)
            except Exception:  # noqa: BLE001 - whatever it is, the next round may be better
                self._log.exception("the round of the scheduler failed")
            with self._changed:
                self._changed.wait_for(
                    lambda: self._stopping or self._unsaved, next_round - time.monotonic()
                )

    def _save(self) -> None:
        """Write the memory if it has changed; what ends meanwhile, or cannot be written, is written
        the next time."""
        with self._changed:
            memories, self._unsaved = dict(self._memories), False
        if memories != self._saved:
            try:
                save(self._state_path, memories)
                self._saved = memories
            except OSError as error:
                self._log.warning("cannot write %s: %s", self._state_path, error)

    def round(self) -> None:
        """Hand out what is due."""
        contents = self._schedule.read()
        known = {job.key for job in contents.jobs}
        now = self._now()
        with self._changed:
            kept = {
                key: settle(memory, now)
                for key, memory in self._memories.items()
                if key in known or not contents.lines  # an editor may be replacing the file
            }
            self._memories = kept
            if contents.paused or self._stopping:
                return
            slack = timedelta(seconds=self._timer / 2)
            for job in due_jobs(contents.jobs, kept, now, slack):
                if job.key not in self._running:
                    workers = self._workers_for(job)
                    self._running[job.key] = now
                    workers.add(partial(self._run, job, contents))

    def _workers_for(self, job: Job) -> Workers:
        """The workers of a job: those of the hosts that it transfers from or to, or the pool."""
        match job.task:
            case Replicate(host):
                hosts: tuple[str, ...] = (host,)
            case Synchronize(several):
                hosts = several
            case _:
                hosts = ()
        if hosts not in self._workers:
            self._workers[hosts] = Workers(",".join(hosts) or "pool", 1 if hosts else POOL)
        return self._workers[hosts]

    def _run(self, job: Job, decided_on: Contents) -> None:
        """Run a job and remember how it went; here errors become words."""
        key, started = job.key, self._now()
        outcome = failure = ""
        try:
            if self._is_wanted(job, decided_on):
                outcome = self._act(job)
        except ButtervolumeError as error:
            failure = str(error)
        except Exception as error:  # noqa: BLE001 - a worker lives on, the job is tried again
            self._log.exception("%s: unexpected fault", key)
            failure = f"unexpected fault: {error!r}"
        with self._changed:
            self._running.pop(key, None)
            if failure and not self._stopping:
                memory = failed(self._memories.get(key, Memory()), self._now(), failure)
                self._memories[key] = memory
                self._log.error("%s failed (%d in a row): %s", key, memory.failures, failure)
            elif outcome:
                self._memories[key] = succeeded(started, outcome)
                self._log.info("%s: %s", key, outcome)
            self._unsaved = True
            self._changed.notify_all()

    def _is_wanted(self, job: Job, decided_on: Contents) -> bool:
        """Whether a job is still to run: it may have waited for hours for its turn."""
        if self._stopping:
            return False
        contents = self._schedule.read()
        return contents is decided_on or (not contents.paused and job in contents.jobs)

    def _act(self, job: Job) -> str:
        """Do what a job is for, and say what was done."""
        match job.task:
            case Replicate(host):
                return self._replication.replicate(job.volume, host) or "unchanged"
            case Synchronize(hosts):
                for taken in self._replication.synchronize([job.volume], hosts):
                    self._warn(job, taken)
                return "synchronized"
            case Purge(pattern):
                purged = self._snapshots.purge(job.volume, pattern)
                if purged.failed:
                    raise OperationFailed("purge", purged.explain())
                return f"{len(purged.deleted)} purged"
            case _:
                taken = self._snapshots.take(job.volume)
                self._warn(job, taken)
                return taken.name

    def _warn(self, job: Job, taken: Taken) -> None:
        if taken.left_out:
            self._log.warning("%s: not in the snapshot: %s", job.key, ", ".join(taken.left_out))
