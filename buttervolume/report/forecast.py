"""What retention will do: which snapshot goes when, and how many are kept in the end. Pure."""

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from heapq import heapify, heappop

from buttervolume.names import Snapshot, SnapshotName
from buttervolume.store.retention import Pattern, Verdict, judge

_TICK = timedelta(microseconds=1)
_MOST = 2000
"""Snapshots of a volume whose end is looked for; further ones just stay."""


@dataclass(frozen=True)
class Band:
    """What becomes of the snapshots between two ages."""

    begin: timedelta
    end: timedelta | None
    """None: without end, where nothing is kept."""
    each: timedelta | None
    """One is kept for each timeframe of this length; None for all, or for none at the end."""

    @property
    def keeps_all(self) -> bool:
        """Whether it is the band of the youngest."""
        return self.each is None and self.end is not None


@dataclass(frozen=True)
class Forecast:
    """What a pattern does to the snapshots of one volume."""

    bands: tuple[Band, ...]
    verdicts: tuple[Verdict, ...]
    """Of the next purge, for all snapshots and markers in their order."""
    ends: dict[str, datetime]
    """When a snapshot that the next purge keeps is deleted, local time, unless something holds it:
    it is the newest, or the parent of a send. Not for markers."""
    finally_kept: int | None
    """About how many snapshots there are in the end; None if none are made regularly."""

    @property
    def doomed(self) -> tuple[Verdict, ...]:
        """What the next purge deletes, and why."""
        return tuple(verdict for verdict in self.verdicts if not verdict.keep)


def forecast(
    snapshots: Sequence[Snapshot],
    pattern: Pattern,
    purge_at: datetime,
    period: timedelta | None = None,
    in_transfer: Collection[str] = (),
    received: Collection[str] = (),
    latest: str = "",
) -> Forecast:
    """Look ahead for one volume.

    `snapshots` are all of it, markers included; `purge_at` is when the pattern is applied next,
    local time; `period` is the time between two snapshots, if any are made regularly. What is
    `in_transfer`, was `received` from other hosts or is the `latest` is spared as a purge does
    (`retention.judge`).
    """
    verdicts = judge(snapshots, pattern, purge_at, in_transfer, received, latest=latest)
    kept = {verdict.name for verdict in verdicts if verdict.keep}
    bands = tuple(_bands(pattern))
    return Forecast(
        bands,
        tuple(verdicts),
        _ends([s for s in snapshots if s.name in kept], bands, pattern, purge_at),
        None if period is None else count(bands, period),
    )


def _bands(pattern: Pattern) -> Iterator[Band]:
    yield Band(timedelta(), pattern.bands[0].start, None)
    for band in pattern.bands:
        if band.start < band.end:
            yield Band(band.start, band.end, band.each)
    yield Band(pattern.bands[-1].end, None, None)


def count(bands: Iterable[Band], period: timedelta) -> int:
    """About how many snapshots are kept in the end, if one is made in each period: one for each
    timeframe that lies in a band, or for each period where those are longer."""
    total = 1.0
    for band in bands:
        if band.end is not None:
            total += (band.end - band.begin) / max(band.each or period, period)
    return round(total)


def _ends(
    snapshots: Sequence[Snapshot], bands: Sequence[Band], pattern: Pattern, now: datetime
) -> dict[str, datetime]:
    """When each snapshot goes, if purges are made all the time.

    A snapshot can go only when it passes from one band to the next: it goes if its timeframe there
    has an older one already. So it is judged at these moments alone, each beside its neighbours in
    the timeframe, with all gone that went before; one yet to be made stands for the newest.
    """
    own = [(s.taken, s) for s in snapshots if not s.name.is_marker and s.taken is not None]
    own.sort(key=lambda item: (item[0], str(item[1].name)))
    own = own[-_MOST:]
    entries = []
    for place, (taken, _) in enumerate(own):
        for band in bands[1:]:
            moment = _later(taken, band.begin)
            if moment is not None and moment >= now:
                entries.append((moment, place, band))
    heap = [(moment, place, number) for number, (moment, place, _) in enumerate(entries)]
    heapify(heap)
    times = [taken for taken, _ in own]
    gone: set[int] = set()
    ends: dict[str, datetime] = {}
    while heap:
        moment, place, number = heappop(heap)
        if place in gone:
            continue
        taken, snapshot = own[place]
        reach = entries[number][2].each or timedelta()
        first = bisect_left(times, max(taken, datetime.min + reach) - reach)
        near = [
            own[other][1] for other in range(first, bisect_right(times, taken)) if other not in gone
        ]
        later = moment + _TICK  # what is exactly as old as the longest age is kept
        newest = Snapshot(SnapshotName(snapshot.name.volume, "still to be made"), later)
        verdicts = {v.name: v for v in judge([*near, newest], pattern, later)}
        if not verdicts[snapshot.name].keep:
            gone.add(place)
            ends[str(snapshot.name)] = moment
    return ends


def _later(moment: datetime, length: timedelta) -> datetime | None:
    try:
        return moment + length
    except OverflowError:  # a pattern may name more years than there are
        return None
