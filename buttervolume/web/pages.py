"""What the templates show, as plain values."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from buttervolume import human
from buttervolume.follow.view import MemberView, View
from buttervolume.hosts.transfers import Transfer
from buttervolume.jobs.history import Run
from buttervolume.report.forecast import Band
from buttervolume.report.observer import Outlook
from buttervolume.report.status import (
    Copy,
    Holdings,
    JobStatus,
    Problem,
    Report,
    State,
    VolumeStatus,
    hosts_of,
)
from buttervolume.system.space import Space
from buttervolume.web import bars, timeline
from buttervolume.words import printable, shortened

Context = dict[str, Any]
PER_PAGE = 100
"""Volumes on one page."""
_WORST = (State.FAILING, State.LATE, State.RUNNING, State.NEW, State.WAITING, State.PAUSED)

FILTERS: dict[str, Callable[..., object]] = {
    "printable": printable,
    "shortened": shortened,
    "size": human.size,
    "duration": human.duration,
}


@dataclass(frozen=True)
class Row:
    """A volume in the list."""

    volume: VolumeStatus
    jobs: tuple[JobStatus, ...]
    newest: str
    copies: tuple[tuple[str, str], ...]
    """Host, and how old its newest copy is or how far behind."""
    view: View | None
    """If it follows its service."""

    @property
    def mark(self) -> str:
        """`bad`, `good`, or `none` for a volume that nobody has asked to keep."""
        if self.volume.problems:
            return "bad"
        return "good" if self.jobs or self.view else "none"


@dataclass(frozen=True)
class Meter:
    """A share of something as a bar."""

    label: str
    text: str
    percent: float
    bad: bool


def home(report: Report, asked: Mapping[str, str]) -> Context:
    """The first page: what is wrong, then everything."""
    query = asked.get("q", "")[:255]
    found = [v for v in report.volumes if query.lower() in v.name.lower()]
    found.sort(key=lambda volume: not volume.problems)
    pages = max(1, -(-len(found) // PER_PAGE))
    page = min(max(1, _number(asked.get("page"))), pages)
    shown = found[(page - 1) * PER_PAGE : page * PER_PAGE]
    jobs_of: dict[str, list[JobStatus]] = {volume.name: [] for volume in shown}
    for job in report.jobs:
        if job.job.volume in jobs_of:
            jobs_of[job.job.volume].append(job)
    existing = {volume.name for volume in report.volumes}
    views = {view.volume: view for view in report.followed}
    return {
        **_common(report),
        "problems": [_problem(each, report.now) for each in report.problems],
        "meters": [] if report.space is None else list(_meters(report.space, report.min_free)),
        "devices": [] if report.space is None else report.space.devices,
        "rows": [
            _row(volume, jobs_of[volume.name], views.get(volume.name), report) for volume in shown
        ],
        "without_volume": [
            _job(job, report.now) for job in report.jobs if job.job.volume not in existing
        ],
        "counts": _counts(report.jobs),
        "query": query,
        "page": page,
        "pages": pages,
        "found": len(found),
        "total": len(report.volumes),
    }


def volume(
    report: Report, name: str, outlook: Outlook | None, runs: Sequence[Run] | None
) -> Context:
    """One volume: its timeline, its snapshots and its jobs."""
    status = report.by_volume[name]
    of_volume = report.of_volume(name)
    ahead = None if outlook is None else outlook.forecast
    now = report.local
    view = next(iter(of_volume.followed), None)
    return {
        **_common(report),
        "name": name,
        "status": status,
        "problems": [_problem(each, report.now) for each in of_volume.problems if each.volume],
        "timeline": timeline.draw(status.holdings.snapshots, now, ahead),
        "snapshots": _snapshots(status.holdings, outlook, now),
        "copies": list(_copies(status.holdings, view, now)),
        "view": view,
        "members": [] if view is None else list(_members(view, now)),
        "jobs": [_job(each, report.now) for each in of_volume.jobs],
        "charts": bars.draw(runs or (), report.now),
        "transfers": [_transfer(each) for each in of_volume.transfers],
        "pattern": _pattern(outlook),
        "doomed": 0 if ahead is None else sum(not v.name.is_marker for v in ahead.doomed),
        "purge_in": None if outlook is None else human.until(outlook.purge.next_run, report.now),
        "purge_paused": outlook is not None and outlook.purge.state is State.PAUSED,
        "finally_kept": None if ahead is None else ahead.finally_kept,
        "bands": [] if ahead is None else [_band(b) for b in ahead.bands],
    }


@dataclass(frozen=True)
class Wanted:
    """What of the log somebody wants to see."""

    volume: str | None
    failed: bool
    limit: int

    @classmethod
    def parse(cls, asked: Mapping[str, str]) -> "Wanted":
        """Understand the address, whatever is in it."""
        limit = min(_number(asked.get("n"), 200), 2000)
        return cls(asked.get("volume", "")[:255] or None, bool(asked.get("failed")), limit)


def log(report: Report, wanted: Wanted, runs: Sequence[Run] | None) -> Context:
    """What was done, the newest first."""
    return {
        **_common(report),
        "wanted": wanted,
        "is_readable": runs is not None,
        "runs": [_run(run, report.now) for run in reversed(runs or ())],
    }


def _run(run: Run, now: datetime) -> Context:
    return {
        "started": run.started.astimezone(),
        "age": human.age(run.started, now),
        "operation": run.operation,
        "volume": run.volume,
        "host": run.host,
        "seconds": f"{run.seconds:.1f} s",
        "bytes": "" if run.bytes is None else human.size(run.bytes),
        "failed": bool(run.error),
        "message": run.error or run.outcome or run.snapshot,
        "by": run.by,
    }


def _common(report: Report) -> Context:
    return {
        "healthy": not report.problems,
        "number": len(report.problems),
        "now": report.now.astimezone(),
        "paused": report.paused,
        "transfers": [_transfer(each) for each in report.transfers],
    }


def _number(text: str | None, otherwise: int = 1) -> int:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 7 else otherwise


def _problem(problem: Problem, now: datetime) -> Context:
    return {
        "kind": problem.kind.replace("-", " "),
        "volume": problem.volume,
        "action": problem.action,
        "since": None if problem.since is None else human.age(problem.since, now),
        "message": problem.message,
    }


def _meters(space: Space, min_free: float) -> Iterable[Meter]:
    used = 100 * (1 - space.free / (space.size or 1))
    yield Meter(
        "Space",
        f"{human.size(space.free)} of {human.size(space.size)} free",
        round(used, 1),
        space.free < min_free * space.size,
    )
    metadata = 100 * space.metadata_used / (space.metadata_size or 1)
    yield Meter("Metadata", f"{metadata:.0f}% used", round(metadata, 1), metadata > 90)


def _row(volume: VolumeStatus, jobs: Iterable[JobStatus], view: View | None, report: Report) -> Row:
    holdings, now = volume.holdings, report.local
    newest = "none" if holdings.newest is None else "unknown date"
    if holdings.taken is not None:
        newest = human.age(holdings.taken, now)
    others = () if view is None else (each for each in view.members if each.name != view.me)
    copies = (*((each.name, _stand(each)) for each in others), *_copies(holdings, view, now))
    ordered = sorted(jobs, key=lambda job: _WORST.index(job.state) if job.state in _WORST else 9)
    return Row(volume, tuple(ordered), newest, copies, view)


def _copies(holdings: Holdings, view: View | None, now: datetime) -> Iterable[tuple[str, str]]:
    """What other hosts have, by the markers here; of members more is known than these say."""
    members = set() if view is None else {each.name for each in view.members}
    return ((c.host, _lag(c, now)) for c in holdings.copies if c.host not in members)


def _stand(member: MemberView) -> str:
    """How a member stands: silent, as new as any other, or how far behind."""
    if member.silent:
        return "silent" if member.was_asked else "not asked yet"
    if member.copy is None:
        return "nothing yet"
    return f"{human.duration(member.lag)} behind" if member.lag else "up to date"


def _members(view: View, now: datetime) -> Iterable[Context]:
    behind = {concern.member for concern in view.concerns if not concern.is_fork}
    for each in view.members:
        yield {
            "name": each.name,
            "is_here": each.name == view.me,
            "role": each.role.value,
            "in_use": each.in_use,
            "newest": each.copy,
            "age": human.age(each.taken, now) if each.taken else "-",
            "state": _stand(each),
            "is_bad": each.name in behind,
            "forks": each.forks,
        }


def _lag(copy: Copy, now: datetime) -> str:
    """How a copy stands: as new as what is here, or how far behind."""
    if copy.lag is None:
        return "unknown" if copy.taken is None else human.age(copy.taken, now)
    return "up to date" if not copy.lag else f"{human.duration(copy.lag)} behind"


def _job(job: JobStatus, now: datetime) -> Context:
    memory = job.memory
    upcoming = "-"
    if job.running_since is not None:
        upcoming = f"running for {human.duration(now - job.running_since)}"
    elif job.state not in (State.PAUSED, State.WAITING):
        upcoming = human.until(job.next_run or now, now)
    return {
        "volume": job.job.volume,
        "action": job.job.action,
        "state": job.state.value,
        "success": human.age(memory.last_success, now),
        "next": upcoming,
        "message": memory.message or memory.outcome,
    }


def _counts(jobs: Iterable[JobStatus]) -> list[tuple[str, int]]:
    counts = dict.fromkeys((*_WORST, State.OK), 0)
    for job in jobs:
        counts[job.state] += 1
    return [(state.value, count) for state, count in counts.items() if count]


def _transfer(transfer: Transfer) -> Context:
    seconds = transfer.seconds
    return {
        "operation": transfer.operation,
        "what": transfer.snapshot or transfer.volume,
        "host": transfer.host,
        "phase": transfer.phase,
        "moved": human.size(transfer.flow.moved),
        "speed": f"{human.size(transfer.flow.moved / seconds if seconds else 0)}/s",
        "time": human.duration(timedelta(seconds=seconds)),
    }


def _snapshots(holdings: Holdings, outlook: Outlook | None, now: datetime) -> list[Context]:
    """The snapshots in words, the newest first: what the timeline shows, for everybody."""
    hosts = hosts_of(holdings.snapshots)
    verdicts = {} if outlook is None else {v.name: v for v in outlook.forecast.verdicts}
    ends = {} if outlook is None else outlook.forecast.ends
    rows = []
    for each in reversed(holdings.snapshots):
        if each.name.host is not None:
            continue
        verdict = verdicts.get(each.name)
        end = ends.get(str(each.name))
        rows.append(
            {
                "name": str(each.name),
                "age": "unknown" if each.taken is None else human.age(each.taken, now),
                "hosts": hosts.get(each.name, []),
                "doomed": verdict is not None and not verdict.keep,
                "end": None if end is None else human.until(end, now).removeprefix("in "),
                "why": None if verdict is None else verdict.reason,
            }
        )
    return rows


def _pattern(outlook: Outlook | None) -> str | None:
    return None if outlook is None else outlook.purge.job.action.partition(":")[2]


def _band(band: Band) -> str:
    """A band in a sentence."""
    if band.keeps_all and band.end is not None:
        return f"all of the last {timeline.per(band.end)}"
    if band.each is not None and band.end is not None:
        return f"then one per {timeline.per(band.each)} up to {timeline.span(band.end)}"
    return f"nothing older than {timeline.span(band.begin)}"
