"""The timeline of a volume's snapshots as numbers to draw: an axis of age, logarithmic. Pure."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from buttervolume.human import duration
from buttervolume.names import Snapshot
from buttervolume.report.forecast import Band, Forecast
from buttervolume.words import printable

WIDTH = 960.0
"""Of the drawing, in its own units; now is at the right."""
_LEFT, _RIGHT = 150.0, 28.0
"""What the names of hosts and the mark of now take."""
_TOP, _LANE = 34.0, 32.0
_LONGEST_NAME = 20
"""Characters of a host's name that have room."""
_ROOM_FOR_TICK = 58.0
_SHORTEST = timedelta(minutes=1)
"""Younger than this all looks the same."""
_TICKS = tuple(
    (timedelta(minutes=minutes), text)
    for minutes, text in (
        (1, "1 min"),
        (10, "10 min"),
        (60, "1 h"),
        (6 * 60, "6 h"),
        (24 * 60, "1 day"),
        (7 * 24 * 60, "1 week"),
        (30 * 24 * 60, "1 month"),
        (182 * 24 * 60, "6 months"),
        (365 * 24 * 60, "1 year"),
        (5 * 365 * 24 * 60, "5 years"),
        (30 * 365 * 24 * 60, "30 years"),
    )
)


@dataclass(frozen=True)
class Tick:
    """A mark on the axis."""

    x: float
    text: str


@dataclass(frozen=True)
class Strip:
    """A band of the retention pattern."""

    x: float
    width: float
    text: str
    kind: str
    """`all`, `some` or `none`: how many are kept."""


@dataclass(frozen=True)
class Dot:
    """A snapshot, or a copy of one on another host."""

    x: float
    y: float
    text: str
    doomed: bool


@dataclass(frozen=True)
class Lane:
    """A host."""

    y: float
    name: str


@dataclass(frozen=True)
class Timeline:
    """All that is drawn."""

    width: float
    height: float
    bottom: float
    left: float
    right: float
    ticks: tuple[Tick, ...]
    strips: tuple[Strip, ...]
    lanes: tuple[Lane, ...]
    dots: tuple[Dot, ...]


def draw(snapshots: Sequence[Snapshot], now: datetime, forecast: Forecast | None) -> Timeline:
    """Lay out the snapshots of one volume, with the markers in a lane for each host; `now` is
    local time, as in the names."""
    dated = [(now - s.taken, s) for s in snapshots if s.taken is not None]
    bands = () if forecast is None else forecast.bands
    ages = [age for age, _ in dated] + [band.begin for band in bands]
    longest = min(max([*ages, timedelta(days=1)]), datetime.max - datetime.min)
    scale = _Scale(longest * 1.6)
    doomed = {} if forecast is None else {v.name: v.reason for v in forecast.doomed}
    hosts = sorted({s.name.host for _, s in dated if s.name.host is not None})
    lanes = [None, *hosts]
    bottom = _TOP + _LANE * len(lanes)
    rows = {host: _TOP + _LANE * (number + 0.5) for number, host in enumerate(lanes)}
    return Timeline(
        width=WIDTH,
        height=bottom + 26,
        bottom=bottom,
        left=_LEFT,
        right=WIDTH - _RIGHT,
        ticks=tuple(_ticks(scale)),
        strips=tuple(_strip(band, scale) for band in bands if band.begin < scale.longest),
        lanes=tuple(Lane(rows[host], "here" if host is None else _cut(host)) for host in lanes),
        dots=tuple(
            Dot(
                scale.x(age),
                rows[snapshot.name.host],
                _describe(snapshot, age, doomed.get(snapshot.name)),
                snapshot.name in doomed,
            )
            for age, snapshot in dated
        ),
    )


class _Scale:
    """From ages to places, a decade as wide as the next."""

    def __init__(self, longest: timedelta) -> None:
        self.longest = longest
        self._unit = (WIDTH - _LEFT - _RIGHT) / math.log(longest / _SHORTEST)

    def x(self, age: timedelta) -> float:
        """Where an age is; what is older than all is at the left end."""
        bounded = min(max(age, _SHORTEST), self.longest)
        return round(WIDTH - _RIGHT - self._unit * math.log(bounded / _SHORTEST), 1)


def _ticks(scale: _Scale) -> Iterator[Tick]:
    """Marks that leave each other room."""
    last = math.inf
    for age, text in _TICKS:
        place = scale.x(age)
        if age < scale.longest and last - place >= _ROOM_FOR_TICK:
            last = place
            yield Tick(place, text)


def _cut(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def _strip(band: Band, scale: _Scale) -> Strip:
    right = scale.x(band.begin)
    left = _LEFT if band.end is None else scale.x(band.end)
    if band.keeps_all:
        return Strip(left, round(right - left, 1), "all", "all")
    if band.each is None:
        return Strip(left, round(right - left, 1), "none", "none")
    return Strip(left, round(right - left, 1), f"1 per {per(band.each)}", "some")


def per(length: timedelta) -> str:
    """A length of time behind `1 per`: `day`, `4 hours`."""
    return span(length).removeprefix("an ").removeprefix("a ")


def span(length: timedelta) -> str:
    """A length of time as a pattern means it: `a day`, `2 weeks`, `18 months` never."""
    for days, name in ((365, "year"), (7, "week"), (1, "day")):
        number, rest = divmod(length, timedelta(days=days))
        if number and not rest:
            return f"a {name}" if number == 1 else f"{number} {name}s"
    hours, rest = divmod(length, timedelta(hours=1))
    if hours > 1 and not rest:
        return f"{hours} hours"
    return duration(length)


def _describe(snapshot: Snapshot, age: timedelta, doomed: str | None) -> str:
    where = "" if snapshot.name.host is None else f" on {snapshot.name.host}"
    text = f"{snapshot.name.snapshot}{where}, {duration(age)} old"
    return printable(text if doomed is None else f"{text}; the next purge deletes it: {doomed}")
