"""Retention: which snapshots a pattern keeps, and why. Nothing here touches a disk or a clock."""

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import pairwise

from buttervolume.ages import UNITS
from buttervolume.errors import BadPattern
from buttervolume.names import Snapshot, SnapshotName

_EPOCH = datetime(1970, 1, 1)
_UNITS_IN_WORDS = {"1m": "minute", "1h": "hour", "1d": "day", "1w": "week", "1y": "year"}


@dataclass(frozen=True)
class Band:
    """The snapshots between two ages: for each timeframe, one of them is kept."""

    start: timedelta
    end: timedelta
    each: timedelta
    """The length of the timeframes."""
    text: str
    """That length as it was written."""


@dataclass(frozen=True)
class Pattern:
    """A retention pattern: what is younger than the first band is kept, what is older than the last
    one goes."""

    text: str
    """As it was written."""
    bands: tuple[Band, ...]
    """The youngest first, each beginning where the one before ends."""
    end: str
    """The age at which everything goes, as it was written, or as the counts make it."""
    warning: str = ""
    """What is odd about it without being wrong."""

    def explain(self) -> str:
        """What it keeps, in whole words: `6m` is six minutes."""
        steps = [
            f"one per {_in_words(band.each)} up to an age of {_in_words(band.end)}"
            for band in self.bands
            if band.start < band.end
        ]
        young = f"everything younger than {_in_words(self.bands[0].start)} stays"
        return f"{', then '.join([young, *steps])}; what is older goes"


@dataclass(frozen=True)
class Verdict:
    """What becomes of one snapshot or marker, and why."""

    name: SnapshotName
    keep: bool
    reason: str


@dataclass(frozen=True)
class _Part:
    """An age of a pattern, with the count behind it."""

    text: str
    length: timedelta
    count: int | None


def parse_pattern(text: str) -> Pattern:
    """Understand a pattern such as `4h:1d:2w:2y`, `2h` or `1h/24:1d/7:1w/4`; raise BadPattern.

    Without counts the ages may come in any order, with a warning. With a count, each part begins
    where the one before ended, the first at its own length, and lasts for so many timeframes.
    """
    parts = [_parse_part(text, part) for part in text.split(":")]
    try:
        if all(part.count is None for part in parts):
            return _without_counts(text, parts)
        return _with_counts(text, parts)
    except OverflowError as error:  # longer than time itself
        raise BadPattern(text) from error


def _parse_part(pattern: str, text: str) -> _Part:
    match = re.fullmatch(r"([0-9]+)([mhdwy])(?:/([0-9]+))?", text)
    if not match:
        raise BadPattern(pattern)
    try:
        length = int(match[1]) * UNITS[match[2]]
        count = None if match[3] is None else int(match[3])
    except (OverflowError, ValueError) as error:
        raise BadPattern(pattern) from error
    if not length:
        raise BadPattern(pattern)
    if count == 0:
        raise BadPattern(pattern, f"in {text} the count must be 1 or more")
    return _Part(text if match[3] is None else text.partition("/")[0], length, count)


def _without_counts(text: str, parts: Sequence[_Part]) -> Pattern:
    ascending = sorted(parts, key=lambda part: part.length)
    pairs = list(pairwise(ascending)) or [(ascending[0], ascending[0])]
    bands = tuple(
        Band(shorter.length, longer.length, shorter.length, shorter.text)
        for shorter, longer in pairs
    )
    pattern = Pattern(text, bands, ascending[-1].text)
    if [part.length for part in parts] == [part.length for part in ascending]:
        return pattern
    meant = ":".join(part.text for part in ascending)
    warning = f"the ages of {text} do not ascend; it means {meant}: {pattern.explain()}"
    return replace(pattern, warning=warning)


def _with_counts(text: str, parts: Sequence[_Part]) -> Pattern:
    for one, other in pairwise(parts):
        if one.length >= other.length:
            problem = f"with a count the ages must ascend, and {other.text} is not above {one.text}"
            raise BadPattern(text, problem)
    bands: list[Band] = []
    start = parts[0].length
    for place, part in enumerate(parts):
        following = parts[place + 1] if place + 1 < len(parts) else None
        if part.count is not None:
            end = start + part.count * part.length
        elif following is not None:
            end = following.length
        elif parts[place - 1].count is None:
            break  # it is where the one before ends
        else:
            before = f"{parts[place - 1].text}/{parts[place - 1].count}"
            raise BadPattern(
                text,
                f"{before} ends at an age of {_in_words(start)}, so {part.text} behind it can mean "
                f"two things: write {part.text}/1, or another count, to keep one per "
                f"{_in_words(part.length)} from there on, or leave it out",
            )
        if end < start:
            problem = f"{part.text} would begin at an age of {_in_words(start)} and end before that"
            raise BadPattern(text, problem)
        bands.append(Band(start, end, part.length, part.text))
        start = end
    last = parts[-1]
    return Pattern(text, tuple(bands), _in_short(start) if last.count else last.text)


def _amounts(length: timedelta) -> Iterator[tuple[int, str]]:
    """A length in the largest units that it has, as they can be written."""
    for unit in ("d", "h", "m"):
        amount, length = divmod(length, UNITS[unit])
        if amount:
            yield amount, unit


def _in_short(length: timedelta) -> str:
    return "".join(f"{amount}{unit}" for amount, unit in _amounts(length))


def _in_words(length: timedelta) -> str:
    words = {"d": "day", "h": "hour", "m": "minute"}
    return " ".join(
        f"{amount} {words[unit]}{'s' if amount > 1 else ''}" for amount, unit in _amounts(length)
    )


def judge(
    snapshots: Iterable[Snapshot],
    pattern: Pattern,
    now: datetime,
    in_transfer: Collection[str] = (),
    received: Collection[str] = (),
    forks: Collection[str] = (),
    latest: str = "",
) -> list[Verdict]:
    """Decide about the snapshots and the sent markers of one volume, in their order.

    What is younger than the shortest age is kept, what is older than the longest goes. In each band
    between, one snapshot is kept for each timeframe: the oldest, since it is the first to get
    there. Timeframes are multiples of their length since 1970-01-01T00:00 in the snapshots' own
    clock: what is the oldest of its timeframe stays so until it reaches the next band, whenever a
    purge is made. Where each age is a multiple of the one before (the longest need not be), any
    purges at any times therefore leave the same snapshot in each timeframe that is wholly in a
    band; one that an age cuts in two may hold another for a while, on a host that purges seldom.

    Never purged: what has no date or one in the future, the newest snapshot, the `latest` one,
    which a restore takes (the newest may be the backup of a restore), the newest marker of each
    host and the snapshot that it marks, the newest that was `received` from another host, and what
    is in transfer. Such ones count when the oldest of a timeframe is looked for. Markers are judged
    apart from snapshots, host by host. `forks` are kept, and count for nothing.
    """
    everything = list(snapshots)
    snapshots = everything
    if forks:
        snapshots = [snapshot for snapshot in everything if str(snapshot.name) not in forks]
    by_host: dict[str | None, list[Snapshot]] = {}
    for snapshot in snapshots:
        by_host.setdefault(snapshot.name.host, []).append(snapshot)
    protected: dict[str, str] = {}
    for host, group in by_host.items():
        protected |= dict(_protected(host, group, now))
    copies = [s for s in snapshots if received and str(s.name) in received]
    copies = [s for s in copies if s.taken and s.taken <= now]
    if copies:  # what its origin sends next is sent as changes of it
        last = max(copies, key=lambda snapshot: snapshot.taken or now)
        protected.setdefault(str(last.name), "the newest that was received")
    protected.setdefault(latest, "the latest snapshot")
    protected |= dict.fromkeys(in_transfer, "in transfer")
    verdicts = {}
    for group in by_host.values():
        for verdict in _judge_group(group, pattern, now):
            if not verdict.keep and (reason := protected.get(str(verdict.name))):
                verdict = Verdict(verdict.name, True, reason)
            verdicts[verdict.name] = verdict
    for snapshot in everything:
        verdicts.setdefault(snapshot.name, Verdict(snapshot.name, True, "a fork"))
    return [verdicts[snapshot.name] for snapshot in everything]


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
        elif age < pattern.bands[0].start:
            yield Verdict(name, True, f"younger than {pattern.bands[0].text}")
        elif age > pattern.bands[-1].end:
            yield Verdict(name, False, f"older than {pattern.end}")
        else:
            place, band = _band(pattern, age)
            number = (taken - _EPOCH) // band.each
            first = oldest.setdefault((place, number), name)
            frame = _frame(band, number)
            if first == name:
                yield Verdict(name, True, f"the oldest of the {frame}")
            else:
                yield Verdict(name, False, f"not the oldest of the {frame}")
    for snapshot in group:
        if snapshot.taken is None:
            yield Verdict(snapshot.name, True, "its date cannot be read")


def _band(pattern: Pattern, age: timedelta) -> tuple[int, Band]:
    """Which band of the pattern an age is in: its place, and itself."""
    place = 0
    for number, band in enumerate(pattern.bands):
        if age >= band.start:
            place = number
    return place, pattern.bands[place]


def _frame(band: Band, number: int) -> str:
    """A timeframe in words."""
    start = _EPOCH + max(number * band.each, datetime.min - _EPOCH)
    whole_days = band.each % timedelta(days=1) == timedelta()
    shown = str(start.date()) if whole_days else start.isoformat(" ", "minutes")
    unit = _UNITS_IN_WORDS.get(band.text)
    if unit == "day":
        return f"day {shown}"
    return f"{unit or band.text} from {shown}"
