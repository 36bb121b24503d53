"""Jobs at their times: one thread that looks, workers that act, a memory that survives restarts."""

import heapq
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial

from buttervolume.errors import (
    ButtervolumeError,
    Cancelled,
    NoSuchVolume,
    NotOwner,
    TooManyTransfers,
)
from buttervolume.jobs.actions import Done, Tools, parse_action
from buttervolume.jobs.history import History, Run
from buttervolume.jobs.memory import (
    LONGEST_WAIT,
    Memory,
    failed,
    known,
    may_start,
    settle,
    succeeded,
)
from buttervolume.jobs.schedule import Contents, Job, Schedule, resolve
from buttervolume.jobs.when import Every
from buttervolume.words import shortened

POOL = 4
"""How many snapshots and purges run side by side."""
TRANSFERS_NOW = 4
"""How many jobs that transfer run at once for callers who wait for them."""


@dataclass(frozen=True)
class Activity:
    """What the scheduler knows of its jobs at one moment; jobs go by their keys."""

    jobs: Mapping[str, Job]
    """Those of the last round, paused ones included; a pattern stands there as a job of each
    volume that it matches."""
    memories: Mapping[str, Memory]
    running: Mapping[str, datetime]
    """Since when, in UTC, a job is with its worker."""
    waiting: frozenset[str]
    """Those that have nothing to do until there is a volume of that name, and this host's."""
    since_round: float
    """Seconds since its thread last came by, with or without success; it comes every TIMER."""
    elsewhere: frozenset[str] = frozenset()
    """Of those that wait, the ones whose volume another host owns, as their last try found."""


class Workers:
    """Threads that take tasks from one queue. They begin when there is something to do and end
    when there is nothing more, or with the process: nobody waits for them."""

    def __init__(self, name: str, count: int) -> None:
        self._name = name
        self._count = count
        # protects what follows
        self._guard = threading.Lock()
        self._tasks: deque[Callable[[], None]] = deque()
        self._threads = 0

    def add(self, task: Callable[[], None]) -> None:
        """Let a task be done when its turn comes. Raises RuntimeError if no thread can begin."""
        with self._guard:
            if self._threads < self._count:
                name = f"{self._name}-{self._threads}"
                threading.Thread(target=self._work, name=name, daemon=True).start()
                self._threads += 1
            self._tasks.append(task)

    @property
    def busy(self) -> bool:
        """Whether there is something to do, or being done."""
        with self._guard:
            return self._threads > 0

    def _work(self) -> None:
        while True:
            with self._guard:
                if not self._tasks:
                    self._threads -= 1
                    return
                task = self._tasks.popleft()
            task()


class Scheduler:
    """Runs the jobs of a schedule.

    A round looks at the file and at the names of the volumes, and hands out what is due. While
    neither has changed, it costs the same however many jobs there are. A job that is handed out is
    not handed out again before it has ended; transfers have workers of their own for each set of
    hosts, so that a dead host delays only what concerns it.
    """

    def __init__(
        self,
        schedule: Schedule,
        tools: Tools,
        history: History,
        volumes: Callable[[], Sequence[str]],
        timer: int,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`timer` is in seconds; `volumes` returns the names of all, sorted, and the same object
        as before if they are the same."""
        self._schedule = schedule
        self._tools = tools
        self._history = history
        self._volumes = volumes
        self._timer = timer
        self._slack = timedelta(seconds=timer / 2)
        self._now = now
        self._log = logging.getLogger(__name__)
        # protects all below; notified when a job has ended, and when all is to stop
        self._changed = threading.Condition()
        self._memories: dict[str, Memory] = {}
        self._running: dict[str, datetime] = {}
        self._last_round = time.monotonic()
        self._stopping = False
        self._workers: dict[tuple[str, ...], Workers] = {}
        self._absent: set[str] = set()
        """The keys of jobs whose last try found no volume."""
        self._alone: dict[tuple[str, str], deque[Job]] = {}
        """By kind of action and volume: the jobs that wait for one that works on the volume."""
        # what the last round has made of the file and the names
        self._contents: Contents | None = None
        self._names: Sequence[str] = ()
        self._planned = datetime.max.replace(tzinfo=UTC)
        self._jobs: dict[str, Job] = {}
        self._waiting: frozenset[str] = frozenset()
        self._elsewhere: set[str] = set()
        """The jobs whose volume another host owns, as the last attempt found."""
        self._due: list[tuple[datetime, int, str]] = []
        """A heap of when to look at which job, by its place in the file and its key; it may be too
        early, never too late."""
        self._places: dict[str, int] = {}
        self._slots = threading.BoundedSemaphore(TRANSFERS_NOW)
        self._thread = threading.Thread(target=self._loop, name="scheduler", daemon=True)

    def start(self, memories: Mapping[str, Memory]) -> None:
        """Begin, with what is remembered from before."""
        self._memories = dict(memories)
        self._thread.start()

    def stop(self, deadline: float) -> None:
        """Hand out nothing more, and wait for what runs to be recorded, until a moment of the
        monotonic clock."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._running, deadline - time.monotonic())
        if self._thread.is_alive():
            self._thread.join(max(0, deadline - time.monotonic()))

    def activity(self) -> Activity:
        """What there is to know now."""
        with self._changed:
            return Activity(
                dict(self._jobs),
                dict(self._memories),
                dict(self._running),
                self._waiting | self._elsewhere,
                time.monotonic() - self._last_round,
                frozenset(self._elsewhere),
            )

    def _loop(self) -> None:
        while not self._stopping:
            self._last_round = time.monotonic()
            try:
                self.round()
            except ButtervolumeError as error:
                self._log.error("no jobs in this round: %s", error)
            except Exception:  # noqa: BLE001 - whatever it is, the next round may be better
                self._log.exception("the round of the scheduler failed")
            with self._changed:
                rest = self._last_round + self._timer - time.monotonic()
                self._changed.wait_for(lambda: self._stopping, rest)

    def round(self) -> None:
        """Hand out what is due."""
        contents, names, now = self._schedule.read(), self._volumes(), self._now()
        with self._changed:
            same = contents is self._contents and names is self._names
            if not same or now < self._planned:
                self._plan(contents, names, now)
            self._planned = now
            while not (contents.paused or self._stopping) and self._due and self._due[0][0] <= now:
                self._consider(heapq.heappop(self._due)[2], now)

    def _plan(self, contents: Contents, names: Sequence[str], now: datetime) -> None:
        """Find out which jobs there are, and when each may start."""
        jobs = {job.key: job for job in resolve(contents.jobs, names)}
        if contents.lines:  # else an editor may be replacing the file
            gone = [key for key in self._memories if key not in jobs]
            for key in gone:
                del self._memories[key]
            if gone:
                self._history.forget(gone)
        memories = {
            key: settle(known(self._memories.get(key), job, now), now) for key, job in jobs.items()
        }
        new = {k: each for k, each in memories.items() if each is not self._memories.get(k)}
        self._memories |= new
        if new:
            self._history.remember(new)
        existing = frozenset(names)
        self._waiting = frozenset(
            key for key, job in jobs.items() if job.task.needs_volume and job.volume not in existing
        )
        self._contents, self._names, self._jobs = contents, names, jobs
        self._places = {key: place for place, key in enumerate(jobs)}
        self._due = [
            (may_start(job, self._memories[key], now, self._slack), self._places[key], key)
            for key, job in jobs.items()
            if job.active and key not in self._waiting
        ]
        heapq.heapify(self._due)
        self._absent &= jobs.keys()
        self._workers = {hosts: each for hosts, each in self._workers.items() if each.busy}

    def _consider(self, key: str, now: datetime) -> None:
        """Hand out a job if it is due; else look at it again when it may be."""
        job = self._jobs.get(key)
        if job is None or key in self._running:  # it is looked at again when it has ended
            return
        start = may_start(job, self._memories[key], now, self._slack)
        if start <= now:
            try:
                self._hand_out(job, now)
                return
            except RuntimeError:  # no thread can begin now
                self._look_at(key, start)
                raise
        self._look_at(key, start)

    def _look_at(self, key: str, moment: datetime) -> None:
        """Look at a job at a moment, if it is still one that runs."""
        job = self._jobs.get(key)
        if job is not None and job.active and key not in self._waiting:
            heapq.heappush(self._due, (moment, self._places[key], key))

    def _hand_out(self, job: Job, now: datetime) -> None:
        """Give a job to its workers, or let it wait until no other of its kind works there."""
        others = self._alone.get(_place(job))
        if job.task.alone and others is not None:
            others.append(job)
        else:
            self._give_to_workers(job)
            if job.task.alone:
                self._alone[_place(job)] = deque()
        self._running[job.key] = now

    def _give_to_workers(self, job: Job) -> None:
        """Those of the hosts that it transfers from or to, or the pool."""
        hosts = job.task.hosts
        if hosts not in self._workers:
            self._workers[hosts] = Workers(",".join(hosts) or "pool", 1 if hosts else POOL)
        self._workers[hosts].add(partial(self._run, job, self._contents))

    # Running

    def _run(self, job: Job, decided_on: Contents | None) -> None:
        """Run a job that was handed out, and say how it went; here errors become words."""
        waits = False
        try:
            if self._is_wanted(job, decided_on):
                done = self._attempt(job)
                self._log.info("%s: %s", job.key, done.outcome)
        except ButtervolumeError as error:
            waits = _waits(job, error)
            if not waits and not self._stopping:
                failures = self._memories.get(job.key, Memory()).failures
                self._log.error("%s failed (%d in a row): %s", job.key, failures, error)
        finally:
            self._end(job, waits=waits)

    def _is_wanted(self, job: Job, decided_on: Contents | None) -> bool:
        """Whether a job is still to run: it may have waited for hours for its turn."""
        if self._stopping:
            return False
        contents = self._schedule.read()
        if contents is decided_on:
            return True
        with self._changed:
            if contents is not self._contents:
                self._plan(contents, self._names, self._now())
            return not contents.paused and self._jobs.get(job.key) == job

    def run_now(self, volume: str, action: str) -> Done:
        """Run a job at once, in this thread, and return what it did.

        It need not be in the schedule; if it is, this run counts. Whether it is paused does not
        matter. If it is running already, this waits for that to end. Raises what the action raises,
        TooManyTransfers, and Cancelled if the daemon is stopping.
        """
        job = Job(volume, action, Every(1), True, parse_action(action))
        self._notice_changes()
        if not job.task.hosts:
            return self._run_when_free(job)
        if not self._slots.acquire(blocking=False):
            raise TooManyTransfers(TRANSFERS_NOW)
        try:
            return self._run_when_free(job)
        finally:
            self._slots.release()

    def _notice_changes(self) -> None:
        """Know what the schedule says by now: a job may be run before a round has seen it."""
        with suppress(ButtervolumeError):
            contents, names = self._schedule.read(), self._volumes()
            with self._changed:
                if contents is not self._contents or names is not self._names:
                    self._plan(contents, names, self._now())

    def _run_when_free(self, job: Job) -> Done:
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._is_free(job))
            if self._stopping:
                raise Cancelled
            self._running[job.key] = self._now()
            if job.task.alone:
                self._alone[_place(job)] = deque()
        try:
            return self._attempt(job, by="command")
        finally:
            self._end(job)

    def _is_free(self, job: Job) -> bool:
        return job.key not in self._running and _place(job) not in self._alone

    def _attempt(self, job: Job, by: str = "schedule") -> Done:
        """Do what a job is for, and remember how it went. Raises ButtervolumeError."""
        started, clock = self._now(), time.monotonic()
        done, failure = Done(""), None
        with self._tools.transfers.tally() as tally:
            try:
                if not job.task.everywhere:
                    self._tools.check_owner(job.volume)
                done = job.task.run(job.volume, self._tools)
            except ButtervolumeError as error:
                failure = error
            except Exception as error:  # noqa: BLE001 - a worker lives on, the job is tried again
                self._log.exception("%s: unexpected fault", job.key)
                failure = ButtervolumeError(f"unexpected fault: {error!r}")
        with self._changed:
            self._elsewhere.discard(job.key)
            if isinstance(failure, NotOwner):
                self._elsewhere.add(job.key)
        for warning in done.warnings:
            self._log.warning("%s: %s", job.key, warning)
        if failure is None or not (_waits(job, failure) or self._stopping):
            run = Run(
                started=started,
                seconds=time.monotonic() - clock,
                operation=job.action,
                volume=job.volume,
                host=",".join(job.task.hosts),
                snapshot=done.snapshot,
                bytes=tally.moved if job.task.hosts else None,
                outcome=done.outcome,
                error=shortened(str(failure or "")),
                by=by,
            )
            self._remember(job, run)
        if failure is not None:
            raise failure
        return done

    def _remember(self, job: Job, run: Run) -> None:
        """Note how a run went, in the job's memory, too, if it is in the schedule."""
        with self._changed:
            memory = self._memories.get(job.key)
            if memory is not None:
                if run.error:
                    memory = failed(memory, self._now(), run.error)
                else:
                    memory = succeeded(memory, run.started, run.outcome)
                self._memories[job.key] = memory
        self._history.record(run, job.key, memory)

    def _end(self, job: Job, *, waits: bool = False) -> None:
        """Let a job be handed out again, and begin what waited for it.

        A job that has found no volume is looked at again in the next round, since the volume may be
        back already, without any round having missed it; then only after a while: the job may be
        about snapshots without a volume.
        """
        with self._changed:
            del self._running[job.key]
            self._changed.notify_all()
            if job.task.alone:
                self._begin_next(_place(job))
            now = self._now()
            scheduled = self._jobs.get(job.key)
            if scheduled is not None:
                if waits and job.key in self._absent:
                    start = min(now + LONGEST_WAIT, scheduled.when.after(now))
                elif waits:
                    start = now
                else:
                    start = may_start(scheduled, self._memories[job.key], now, self._slack)
                self._look_at(job.key, start)
            if waits:
                self._absent.add(job.key)
            else:
                self._absent.discard(job.key)

    def _begin_next(self, place: tuple[str, str]) -> None:
        """Begin what waited for a job that had to be alone."""
        waiting = self._alone[place]
        while waiting:
            job = waiting.popleft()
            try:
                self._give_to_workers(job)
                return
            except RuntimeError:  # no thread can begin now; the next round tries again
                del self._running[job.key]
                self._look_at(job.key, self._now())
        del self._alone[place]


def _waits(job: Job, error: ButtervolumeError) -> bool:
    """Whether a job had nothing to do, since there is no such volume, or it follows its service and
    is elsewhere: no failure."""
    if isinstance(error, NotOwner):
        return error.volume == job.volume
    return isinstance(error, NoSuchVolume) and error.name == job.volume


def _place(job: Job) -> tuple[str, str]:
    """Where only one job may work at a time, if it is such a job."""
    return job.task.kind, job.volume
