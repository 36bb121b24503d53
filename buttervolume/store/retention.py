"""Retention: which snapshots a pattern keeps, and why. Nothing here touches a disk or a clock."""

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

from buttervolume.errors import BadPattern
from buttervolume.names import Snapshot, SnapshotName

_UNITS = {
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
    "w": timedelta(weeks=1),
    "y": timedelta(days=365),
}
_EPOCH = datetime(1970, 1, 1)
_UNITS_IN_WORDS = {"1m": "minute", "1h": "hour", "1d": "day", "1w": "week", "1y": "year"}


@dataclass(frozen=True, order=True)
class Age:
    """An age of a pattern; the length of the timeframes of what is older."""

    length: timedelta
    text: str


@dataclass(frozen=True)
class Pattern:
    """A retention pattern: two or more ages, the shortest first."""

    ages: tuple[Age, ...]


@dataclass(frozen=True)
class Verdict:
    """What becomes of one snapshot or marker, and why."""

    name: SnapshotName
    keep: bool
    reason: str


def parse_pattern(text: str) -> Pattern:
    """Understand a pattern such as `4h:1d:2w:2y`; raise BadPattern."""
    ages = []
    for part in text.split(":"):
        match = re.fullmatch(r"([0-9]+)([mhdwy])", part)
        try:
            ages.append(
                Age(int(match[1]) * _UNITS[match[2]], part) if match else Age(timedelta(), "")
            )
        except (OverflowError, ValueError) as error:  # longer than time itself
            raise BadPattern(text) from error
    if len(ages) < 2 or not all(age.length for age in ages):
        raise BadPattern(text)
    return Pattern(tuple(sorted(ages)))


def judge(
    snapshots: Iterable[Snapshot],
    pattern: Pattern,
    now: datetime,
    in_transfer: Collection[str] = (),
) -> list[Verdict]:
    """Decide about the snapshots and the sent markers of one volume, in their order.

    What is younger than the shortest age is kept, what is older than the longest goes. Between two
    neighbouring ages one snapshot is kept for each timeframe of the shorter one's length: the
    oldest, since it is the first to get there. Timeframes are multiples of their length since
    1970-01-01T00:00 in the snapshots' own clock: what is the oldest of its timeframe stays so until
    it reaches the next age, whenever a purge is made. Where each age is a multiple of the one
    before (the longest need not be), any purges at any times therefore leave the same snapshot in
    each timeframe that is wholly between two ages; one that an age cuts in two may hold another for
    a while, on a host that purges seldom.

    Never purged: what has no date or one in the future, the newest snapshot, the newest marker of
    each host and the snapshot that it marks, and what is in transfer. Such ones count when the
    oldest of a timeframe is looked for. Markers are judged apart from snapshots, host by host.
    """
    snapshots = list(snapshots)
    by_host: dict[str | None, list[Snapshot]] = {}
    for snapshot in snapshots:
        by_host.setdefault(snapshot.name.host, []).append(snapshot)
    protected: dict[str, str] = {}
    for host, group in by_host.items():
        protected |= dict(_protected(host, group, now))
    protected |= dict.fromkeys(in_transfer, "in transfer")
    verdicts = {}
    for group in by_host.values():
        for verdict in _judge_group(group, pattern, now):
            reason = protected.get(str(verdict.name))
            if reason is not None and not verdict.keep:
                verdict = Verdict(verdict.name, True, reason)
            verdicts[verdict.name] = verdict
    return [verdicts[snapshot.name] for snapshot in snapshots]


def _protected(
    host: str | None, group: Iterable[Snapshot], now: datetime
) -> Iterator[tuple[str, str]]:
    """The names that no pattern deletes for the sake of one host, or of none."""
    past = [(s.taken, s.name) for s in group if s.taken is not None and s.taken <= now]
    if not past:
        return
    newest = max(past, key=lambda item: (item[0], str(item[1])))[1]
    if host is None:
        yield str(newest), "the newest snapshot"
    else:
        yield str(newest), f"the newest marker of {host}"
        yield str(newest.snapshot), f"parent of the next send to {host}"


def _judge_group(group: Iterable[Snapshot], pattern: Pattern, now: datetime) -> Iterator[Verdict]:
    """Judge snapshots, or the markers of one host, by the pattern alone."""
    oldest: dict[tuple[int, int], SnapshotName] = {}
    dated = sorted(
        ((s.taken, str(s.name), s.name) for s in group if s.taken is not None),
    )
    for taken, _, name in dated:
        age = now - taken
        if age < timedelta():
            yield Verdict(name, True, "its date is in the future")
        elif age < pattern.ages[0].length:
            yield Verdict(name, True, f"younger than {pattern.ages[0].text}")
        elif age > pattern.ages[-1].length:
            yield Verdict(name, False, f"older than {pattern.ages[-1].text}")
        else:
            band, shorter = _band(pattern, age)
            number = (taken - _EPOCH) // shorter.length
            first = oldest.setdefault((band, number), name)
            frame = _frame(shorter, number)
            if first == name:
                yield Verdict(name, True, f"the oldest of the {frame}")
            else:
                yield Verdict(name, False, f"not the oldest of the {frame}")
    for snapshot in group:
        if snapshot.taken is None:
            yield Verdict(snapshot.name, True, "its date cannot be read")


def _band(pattern: Pattern, age: timedelta) -> tuple[int, Age]:
    """Between which two ages of the pattern an age is: their place, and the shorter one."""
    place = 0
    for number, (shorter, _) in enumerate(pairwise(pattern.ages)):
        if age >= shorter.length:
            place = number
    return place, pattern.ages[place]


def _frame(age: Age, number: int) -> str:
    """A timeframe in words."""
    start = _EPOCH + max(number * age.length, datetime.min - _EPOCH)
    whole_days = age.length % timedelta(days=1) == timedelta()
    shown = str(start.date()) if whole_days else start.isoformat(" ", "minutes")
    unit = _UNITS_IN_WORDS.get(age.text)
    if unit == "day":
        return f"day {shown}"
    return f"{unit or age.text} from {shown}"
