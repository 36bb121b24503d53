"""What is wrong with what a soak has recorded: pure, so that the rules can be tested themselves."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from statistics import median

from tests.soak.clock import TICK

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
RETRY = timedelta(minutes=30)
"""The longest wait after a failure."""


# Flat


@dataclass(frozen=True)
class Sample:
    """What a daemon holds at one moment."""

    moment: datetime
    """Of the simulated clock."""
    life: int
    """Which start of the daemon this is."""
    memory: int
    """Kilobytes in RAM."""
    descriptors: int
    threads: int
    children: int
    """Processes that it, or one of these, has started."""
    files: int
    """Temporary ones: its own names among volumes and snapshots, sockets and directories of ssh."""
    snapshots: int = 0
    """For information: they come and go."""


ALLOWED = {"memory": (0.08, 4000), "descriptors": (0.1, 2), "threads": (0.1, 2)}
ALLOWED |= {"children": (0.0, 2), "files": (0.1, 2)}
"""By how much the last quarter may have more than the first: a share, and a number."""
FEWEST = 12
"""Samples in which nothing can be seen yet."""


def growing(samples: Sequence[Sample]) -> Iterator[str]:
    """What has grown between the first and the last quarter: by the medians, which what happens
    now and then does not move."""
    quarter = len(samples) // 4
    if len(samples) < FEWEST:
        return
    for what, (share, number) in ALLOWED.items():
        first, last = (
            median(getattr(sample, what) for sample in part)
            for part in (samples[:quarter], samples[-quarter:])
        )
        if last > first * (1 + share) + number:
            span = f"{samples[0].moment:%d %H:%M} to {samples[-1].moment:%d %H:%M}"
            yield f"{what} grew from {first:g} to {last:g} in {span}"


def lives(samples: Iterable[Sample], settled: timedelta) -> list[list[Sample]]:
    """The samples of each start of a daemon, without the time that it takes to settle."""
    by_life: dict[int, list[Sample]] = {}
    for sample in samples:
        by_life.setdefault(sample.life, []).append(sample)
    return [
        [sample for sample in each if sample.moment >= each[0].moment + settled]
        for each in by_life.values()
    ]


# On time


@dataclass(frozen=True)
class Interval:
    """From a moment of the simulated clock to another one."""

    begun: datetime
    ended: datetime

    def shared(self, begun: datetime, ended: datetime) -> timedelta:
        """How much of another interval it covers."""
        return max(timedelta(), min(self.ended, ended) - max(self.begun, begun))


@dataclass(frozen=True)
class When:
    """Every so many minutes, or at some minutes of each hour."""

    period: int = 0
    minutes: frozenset[int] = frozenset()

    def after(self, moment: datetime) -> datetime:
        """When a job is due whose last success began at a moment."""
        if not self.minutes:
            return moment + timedelta(minutes=self.period)
        due = moment.replace(second=0, microsecond=0)
        while True:
            due += timedelta(minutes=1)
            if due.minute in self.minutes:
                return due

    def __str__(self) -> str:
        """As it stands in the schedule."""
        return (
            f"{','.join(map(str, sorted(self.minutes)))} * * * *"
            if self.minutes
            else str(self.period)
        )


@dataclass(frozen=True)
class Job:
    """A job that is there from one moment to another."""

    volume: str
    action: str
    when: When
    since: datetime
    until: datetime
    is_new: bool = True
    """Whether it had no success before that counts, and is due at once. Of a volume that comes back
    nobody knows whether a round has seen that it was away."""


@dataclass(frozen=True)
class Run:
    """A run of a job, as the history tells of it."""

    started: datetime
    ended: datetime
    error: str = ""


def untimely(job: Job, runs: Iterable[Run], outages: Sequence[Interval]) -> Iterator[str]:
    """The runs of a job that came too late, or too early, or not at all. A run may come one
    tick later, and later by as long as the daemon was away meanwhile; after a failed one, the
    next try is due sooner."""
    name = f"{job.action} {job.volume}"

    def excused(begun: datetime, ended: datetime) -> timedelta:
        return sum((outage.shared(begun, ended) for outage in outages), timedelta())

    due = job.since if job.is_new and not job.when.minutes else job.when.after(job.since)
    failures, last = 0, job.since
    for run in runs:
        if _tick(run.started) - _tick(due) - excused(due, run.started) > TICK:
            yield f"{name}: due at {due:%d %H:%M:%S}, run at {run.started:%d %H:%M:%S}"
        is_early = due - run.started > timedelta(seconds=1) and job.is_new
        if is_early and not excused(last, run.started):
            yield f"{name}: run at {run.started:%d %H:%M:%S}, due only at {due:%d %H:%M:%S}"
        failures = failures + 1 if run.error else 0
        due = job.when.after(run.ended if run.error else run.started)
        if run.error:
            due = min(due, run.ended + min(timedelta(minutes=2 ** (failures - 1)), RETRY))
        last = run.started
    if _tick(job.until) - _tick(due) - excused(due, job.until) > TICK:
        yield f"{name}: due at {due:%d %H:%M:%S}, not run until {job.until:%d %H:%M:%S}"


def _tick(moment: datetime) -> datetime:
    return moment - (moment - _EPOCH) % TICK


def moment(microseconds: int) -> datetime:
    """A moment as the database of the history has it."""
    return _EPOCH + timedelta(microseconds=microseconds)
