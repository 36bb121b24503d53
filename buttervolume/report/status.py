"""The report: what is wrong, and how everything stands. Pure: nothing here looks anywhere."""

from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cached_property, lru_cache
from typing import NamedTuple, Self

from buttervolume.follow.view import View
from buttervolume.hosts.transfers import Transfer
from buttervolume.jobs.actions import ACTIONS
from buttervolume.jobs.memory import Memory, next_run, second_run
from buttervolume.jobs.schedule import Job
from buttervolume.jobs.scheduler import Activity
from buttervolume.names import FUTURE, Snapshot, SnapshotName
from buttervolume.system.space import Space

NEARLY_FULL = 0.9
"""The share of metadata in use that is a problem: deleting takes metadata, too."""
MOST_PARTIAL_COPIES = 3


class State(StrEnum):
    """How a job stands."""

    OK = "ok"
    RUNNING = "running"
    LATE = "late"
    """Its last success is older than twice its period and a round of the scheduler."""
    FAILING = "failing"
    PAUSED = "paused"
    WAITING = "waiting"
    """There is no such volume, or it follows its service and is another host's now."""
    NEW = "new"


class Kind(StrEnum):
    """What a problem is about, and what to do. The names are part of the API: they never change."""

    advice: str

    def __new__(cls, name: str, advice: str) -> Self:
        """A kind by its name in answers."""
        kind = str.__new__(cls, name)
        kind._value_ = name
        kind.advice = advice
        return kind

    UNAVAILABLE = "unavailable", "mount the filesystem; buttervolume init makes the directories"
    READ_ONLY = "read-only", "see dmesg; unmount, check the disk, mount it again"
    SPACE = "space", "see 'The disk is full' in the manual: fewer snapshots, or a larger disk"
    METADATA = "metadata", "make room, then: btrfs balance start -dusage=50 on the filesystem"
    DEVICE = "device", "check the disk and its cable, then: btrfs scrub start on the filesystem"
    SCHEDULER = "scheduler", "restart the daemon; its log says more"
    FAILING = "failing", "the message says why; buttervolume log shows the runs"
    LATE = "late", "the job takes too long, or waits for others: buttervolume log"
    UNPROTECTED = "unprotected", "add a snapshot or a replicate job"
    CLOCK = "clock", "set the clock (timedatectl), or remove the snapshot"
    PARTIAL = "partial", "send them again, or remove them: buttervolume rm"
    UNREADABLE = "unreadable", "mend or delete the rows: buttervolume scheduled"
    FORK = "fork", "buttervolume follow shows more; then: buttervolume follow resolve"
    LAG = "lag", "see to that host; buttervolume follow asks again"


@dataclass(frozen=True)
class Problem:
    """Something that somebody has to look at."""

    kind: Kind
    message: str
    volume: str | None = None
    """None for what concerns the whole host."""
    action: str | None = None
    """The job's, if it is about one."""
    since: datetime | None = None
    about: str = ""
    """What tells it from others of its kind and volume, if no job does; part of its message."""

    @property
    def key(self) -> tuple[str, str, str]:
        """What makes two reports' problems the same one, however its message has changed."""
        return self.kind, self.volume or "", self.action or self.about

    @property
    def text(self) -> str:
        """The message, behind the volume and the job that it is about."""
        where = " ".join(filter(None, (self.volume, self.action))) if self.volume else ""
        return f"{where}: {self.message}" if where else self.message


class Copy(NamedTuple):
    """What another host has of a volume, by its newest marker here."""

    host: str
    snapshot: str
    taken: datetime | None
    """Local time, as in the name."""
    lag: timedelta | None
    """How much younger the newest snapshot here is; None if a date cannot be read."""


@dataclass(frozen=True)
class Holdings:
    """The snapshots of one volume, and what is to be said of them in short."""

    snapshots: tuple[Snapshot, ...] = ()
    """All, by moment; with the markers."""

    @cached_property
    def count(self) -> int:
        """How many there are, without markers."""
        return sum(snapshot.name.host is None for snapshot in self.snapshots)

    @cached_property
    def _newest(self) -> Snapshot | None:
        own = (snapshot for snapshot in reversed(self.snapshots) if snapshot.name.host is None)
        return next(own, None)

    @property
    def newest(self) -> SnapshotName | None:
        """The newest by its date."""
        return None if self._newest is None else self._newest.name

    @cached_property
    def taken(self) -> datetime | None:
        """When the newest was, local time."""
        return None if self._newest is None else self._newest.taken

    @cached_property
    def copies(self) -> tuple[Copy, ...]:
        """The newest copy on each host, by host."""
        markers = {s.name.host: s for s in self.snapshots if s.name.host is not None}
        return tuple(self._copy(host, marker) for host, marker in sorted(markers.items()))

    def _copy(self, host: str, marker: Snapshot) -> Copy:
        lag = None
        if marker.taken is not None and self.taken is not None:
            lag = max(self.taken - marker.taken, timedelta())
        return Copy(host, f"{marker.name.volume}@{marker.name.date}", marker.taken, lag)

    @cached_property
    def data(self) -> dict[str, object]:
        """What an answer says of it; made once, since most have not changed since the last one."""
        return {
            "Snapshots": self.count,
            "LastSnapshot": None if self.newest is None else str(self.newest),
            "LastTaken": with_offset(self.taken),
            "Hosts": [
                {
                    "Host": copy.host,
                    "Snapshot": copy.snapshot,
                    "Taken": with_offset(copy.taken),
                    "Lag": None if copy.lag is None else round(copy.lag.total_seconds()),
                }
                for copy in self.copies
            ],
        }


def hosts_of(snapshots: Iterable[Snapshot]) -> dict[SnapshotName, list[str]]:
    """The other hosts that have each snapshot, sorted, by the markers among them."""
    hosts: dict[SnapshotName, list[str]] = {}
    for snapshot in snapshots:
        if snapshot.name.host is not None:
            hosts.setdefault(snapshot.name.snapshot, []).append(snapshot.name.host)
    return {name: sorted(found) for name, found in hosts.items()}


class VolumeStatus(NamedTuple):
    """How one volume stands."""

    name: str
    exists: bool
    """Copies of other hosts' volumes have no volume here."""
    holdings: Holdings
    jobs: int = 0
    problems: int = 0


@dataclass(frozen=True)
class JobStatus:
    """How one job stands; times are in UTC."""

    job: Job
    state: State
    memory: Memory
    running_since: datetime | None
    next_run: datetime | None
    """None for one that is due at once, is paused, or waits for its volume."""


@dataclass(frozen=True)
class Facts:
    """All that a report is made of, as it was found at one moment."""

    now: datetime
    """With an offset."""
    timer: timedelta
    """Between two rounds of the scheduler."""
    min_free: float
    """The share of free space below which it is a problem."""
    volumes: Collection[str]
    holdings: Mapping[str, Holdings]
    partial: Sequence[SnapshotName]
    """Copies that are not whole."""
    jobs: Sequence[Job]
    """One for each volume that a row of the schedule is for."""
    paused: bool
    """Whether all of them are."""
    unreadable: Sequence[str]
    """Rows of the schedule that nobody understands."""
    activity: Activity
    transfers: Sequence[Transfer]
    space: Space | None
    """None if the filesystem is gone."""
    failures: Sequence[Problem] = ()
    """What could not be found out, and why."""
    followed: Sequence[View] = ()
    """The volumes that follow their services, as their members were heard last."""
    unseen: Mapping[str, str] = field(default_factory=dict)
    """Followed volumes about which nothing is known, and why."""

    @property
    def are_volumes_known(self) -> bool:
        """Whether the filesystem is there, and tells which volumes there are."""
        return self.space is not None and all(
            failure.kind is not Kind.UNAVAILABLE for failure in self.failures
        )


@dataclass(frozen=True)
class Report:
    """How everything stands at one moment."""

    now: datetime
    problems: tuple[Problem, ...]
    """Those of the whole host first."""
    volumes: tuple[VolumeStatus, ...]
    """By name; those that are only copies, too."""
    jobs: tuple[JobStatus, ...]
    """In the order of the schedule."""
    transfers: tuple[Transfer, ...]
    partial: tuple[SnapshotName, ...]
    space: Space | None
    min_free: float
    paused: bool
    """Whether all jobs are."""
    is_alive: bool
    """Whether the volumes are there and the scheduler goes its rounds."""
    followed: tuple[View, ...] = ()
    """The volumes that follow their services."""
    by_volume: Mapping[str, VolumeStatus] = field(repr=False, compare=False, default_factory=dict)

    @property
    def local(self) -> datetime:
        """The moment in the clock of the snapshots' names."""
        return local(self.now)

    def of_volume(self, volume: str) -> "Report":
        """What concerns one volume, with what concerns the whole host."""
        return replace(
            self,
            problems=tuple(p for p in self.problems if p.volume in (None, volume)),
            volumes=tuple(v for v in self.volumes if v.name == volume),
            jobs=tuple(j for j in self.jobs if j.job.volume == volume),
            transfers=tuple(t for t in self.transfers if t.volume == volume),
            partial=tuple(name for name in self.partial if name.volume == volume),
            followed=tuple(view for view in self.followed if view.volume == volume),
        )


def local(moment: datetime) -> datetime:
    """A moment as the names of snapshots say it: local, without its offset."""
    return moment.astimezone().replace(tzinfo=None)


def with_offset(moment: datetime | None) -> str | None:
    """A moment of a snapshot's name in ISO 8601, with its offset from UTC."""
    return None if moment is None else f"{moment.isoformat(timespec='seconds')}{_offset(moment)}"


def _offset(moment: datetime) -> str:
    return _offset_in_hour(moment.year, moment.month, moment.day, moment.hour)


@lru_cache(maxsize=10_000)
def _offset_in_hour(year: int, month: int, day: int, hour: int) -> str:
    """The offset from UTC in an hour of local time; what tens of thousands of
    snapshots would ask the C library for, one by one. Clocks are shifted at whole hours."""
    year = min(max(year, 2), 9998)  # UTC may be in a year that there is not
    moment = datetime(year, month, day, hour).astimezone()
    return moment.isoformat(timespec="minutes")[16:]


def index(
    snapshots: Sequence[Snapshot], known: Mapping[str, Holdings] | None = None
) -> dict[str, Holdings]:
    """The snapshots of each volume; they come by volume, then moment. What has not changed since
    an index that is `known` is not made again."""
    known = known or {}
    volumes = [snapshot.name.volume for snapshot in snapshots]
    found = {}
    start = 0
    while start < len(volumes):
        volume = volumes[start]
        end = bisect_right(volumes, volume, start)
        group = tuple(snapshots[start:end])
        before = known.get(volume)
        unchanged = before is not None and before.snapshots == group
        found[volume] = before if before is not None and unchanged else Holdings(group)
        start = end
    return found


def report(facts: Facts) -> Report:
    """Make the report."""
    jobs = tuple(_job(job, facts) for job in facts.jobs)
    problems = [
        *_of_the_host(facts),
        *_of_jobs(jobs, facts),
        *_unprotected(facts),
        *_clock(facts),
        *_of_followed(facts),
    ]
    counts: dict[str | None, int] = {}
    for problem in problems:
        counts[problem.volume] = counts.get(problem.volume, 0) + 1
    jobs_of: dict[str, int] = {}
    for each in jobs:
        jobs_of[each.job.volume] = jobs_of.get(each.job.volume, 0) + 1
    nothing = Holdings()
    existing = set(facts.volumes)
    by_volume = {
        name: VolumeStatus(
            name,
            name in existing,
            facts.holdings.get(name, nothing),
            jobs_of.get(name, 0),
            counts.get(name, 0),
        )
        for name in sorted(existing | facts.holdings.keys())
    }
    return Report(
        now=facts.now,
        problems=tuple(problems),
        volumes=tuple(by_volume.values()),
        jobs=jobs,
        transfers=tuple(facts.transfers),
        partial=tuple(facts.partial),
        space=facts.space,
        min_free=facts.min_free,
        paused=facts.paused,
        is_alive=facts.are_volumes_known and not _is_stuck(facts),
        followed=tuple(facts.followed),
        by_volume=by_volume,
    )


# Jobs


def _job(job: Job, facts: Facts) -> JobStatus:
    memory = facts.activity.memories.get(job.key, Memory())
    running_since = facts.activity.running.get(job.key)
    state = _state(job, memory, running_since is not None, facts)
    idle = state in (State.PAUSED, State.WAITING)
    due = None if idle else _next_run(job, memory, facts.now)
    return JobStatus(job, state, memory, running_since, due)


def _state(job: Job, memory: Memory, is_running: bool, facts: Facts) -> State:
    if is_running:
        return State.RUNNING
    if facts.paused or not job.active:
        return State.PAUSED
    if job.key in facts.activity.elsewhere or not _has_its_volume(job, facts):
        return State.WAITING
    if memory.failures:
        return State.FAILING
    if memory.last_success is None:
        return State.NEW
    return State.LATE if _is_late(job, memory, facts) else State.OK


def _has_its_volume(job: Job, facts: Facts) -> bool:
    """Snapshots that were received are purged where there is no volume."""
    if job.volume in facts.volumes or not facts.are_volumes_known:
        return True
    return not job.task.needs_volume and job.volume in facts.holdings


def _is_late(job: Job, memory: Memory, facts: Facts) -> bool:
    due = second_run(job, memory)
    return due is not None and facts.now > due + facts.timer


def interval(jobs: Iterable[Job], now: datetime) -> timedelta | None:
    """The time between two snapshots that these jobs make; None if they make none."""
    gaps = []
    for job in jobs:
        if job.active and job.task.takes_snapshots:
            first = job.when.after(now)
            gaps.append(job.when.after(first) - first)
    return min(gaps, default=None)


def _next_run(job: Job, memory: Memory, now: datetime) -> datetime | None:
    """When a job is due; None if at once, since it never ran."""
    due = next_run(job, memory, now)
    is_new = memory.last_success is None and memory.last_failure is None
    return None if is_new and due <= now else due


def _of_jobs(jobs: Iterable[JobStatus], facts: Facts) -> Iterable[Problem]:
    """Those that fail, also while they are tried again, and those that are late without failing: a
    problem stays one until it is solved."""
    for each in jobs:
        job, memory = each.job, each.memory
        is_running = each.state is State.RUNNING and job.active and not facts.paused
        if not is_running and each.state not in (State.FAILING, State.LATE):
            continue
        if memory.failures:
            times = "once" if memory.failures == 1 else f"{memory.failures} times in a row"
            message = f"has failed {times}: {memory.message}"
            yield Problem(Kind.FAILING, message, job.volume, job.action, memory.first_failure)
        elif _is_late(job, memory, facts):
            running = ", and is running now" if is_running else ""
            message = f"has not succeeded for more than twice its period{running}"
            yield Problem(Kind.LATE, message, job.volume, job.action, second_run(job, memory))


def _unprotected(facts: Facts) -> Iterable[Problem]:
    """A volume with jobs is meant to be kept; without a snapshot there is nothing to keep. One that
    follows its service gets its copies without a job."""
    followed = {view.volume for view in facts.followed} | facts.unseen.keys()
    protects: dict[str, bool] = {}
    for job in facts.jobs:
        so_far = protects.get(job.volume, job.volume in followed)
        protects[job.volume] = so_far or job.task.protects
    for volume, is_protected in sorted(protects.items()):
        if not is_protected and volume in facts.volumes:
            copying = ", ".join(action.kind for action in ACTIONS if action.protects)
            message = f"has jobs, but none that makes a copy of it ({copying})"
            yield Problem(Kind.UNPROTECTED, message, volume)


def _clock(facts: Facts) -> Iterable[Problem]:
    now = local(facts.now)
    for volume, holdings in facts.holdings.items():
        if holdings.taken is not None and holdings.taken > now + FUTURE:
            message = f"{holdings.newest} is in the future: is the clock right?"
            yield Problem(Kind.CLOCK, message, volume)


def _of_followed(facts: Facts) -> Iterable[Problem]:
    """Forks and members that lack something, of the volumes that follow their services."""
    for view in facts.followed:
        for concern in view.concerns:
            kind = Kind.FORK if concern.is_fork else Kind.LAG
            about = f"{concern.member} {concern.fork}".strip()
            yield Problem(kind, concern.message, view.volume, about=about)
    for volume, reason in facts.unseen.items():
        yield Problem(Kind.LAG, f"how it stands cannot be told: {reason}", volume)


# The host


def _of_the_host(facts: Facts) -> Iterable[Problem]:
    if facts.space is None:
        yield Problem(Kind.UNAVAILABLE, "the directory of the volumes, or its filesystem, is gone")
    else:
        yield from _of_space(facts.space, facts.min_free)
    if _is_stuck(facts):
        seconds = round(facts.activity.since_round)
        yield Problem(Kind.SCHEDULER, f"the scheduler has made no round for {seconds} seconds")
    if len(facts.partial) > MOST_PARTIAL_COPIES:
        message = f"{len(facts.partial)} copies are not whole: transfers failed, or are under way"
        yield Problem(Kind.PARTIAL, message)
    yield from facts.failures
    if facts.unreadable:
        count = len(facts.unreadable)
        rows = "1 row" if count == 1 else f"{count} rows"
        message = f"{rows} of the schedule cannot be understood, the first is {facts.unreadable[0]}"
        yield Problem(Kind.UNREADABLE, message)


def _is_stuck(facts: Facts) -> bool:
    return facts.activity.since_round > 3 * facts.timer.total_seconds() + 60


def _of_space(space: Space, min_free: float) -> Iterable[Problem]:
    if space.read_only:
        yield Problem(Kind.READ_ONLY, "the filesystem is read-only: see the log of the kernel")
    if space.free < min_free * space.size:
        message = f"{space.free / space.size:.1%} of the filesystem is free, less than MIN_FREE"
        yield Problem(Kind.SPACE, message)
    if space.metadata_used > NEARLY_FULL * space.metadata_size:
        share = space.metadata_used / space.metadata_size
        yield Problem(Kind.METADATA, f"{share:.0%} of what can be metadata is used")
    for device in space.devices:
        errors = ", ".join(f"{count} {kind}" for kind, count in device.errors.items() if count)
        if errors:
            message = f"{device.path}: {errors} errors; see 'btrfs device stats'"
            yield Problem(Kind.DEVICE, message, action=device.path)
