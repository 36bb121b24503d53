"""The forecast against what purges really do, one after the other."""

from collections.abc import Iterable
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buttervolume.names import Snapshot, SnapshotName
from buttervolume.report.forecast import Forecast, forecast
from buttervolume.store.retention import judge, parse_pattern

NOON = datetime(2026, 5, 6, 12)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)


def taken(moments: Iterable[datetime], volume: str = "db") -> list[Snapshot]:
    return [Snapshot(SnapshotName(volume, each.isoformat()), each) for each in sorted(moments)]


def looked_ahead(pattern: str, *ages: timedelta) -> Forecast:
    return forecast(taken(NOON - age for age in ages), parse_pattern(pattern), NOON)


def test_each_band_says_what_it_keeps() -> None:
    bands = looked_ahead("4h:1d:2w").bands

    assert [(band.begin, band.end, band.each, band.keeps_all) for band in bands] == [
        (timedelta(), 4 * HOUR, None, True),
        (4 * HOUR, 24 * HOUR, 4 * HOUR, False),
        (24 * HOUR, 336 * HOUR, 24 * HOUR, False),
        (336 * HOUR, None, None, False),
    ]


def test_the_next_purge_names_what_it_deletes_and_why() -> None:
    ahead = looked_ahead("1h:1d", MINUTE, 25 * HOUR)

    (doomed,) = ahead.doomed
    assert doomed.name.date == (NOON - 25 * HOUR).isoformat()
    assert doomed.reason == "older than 1d"


def test_a_lone_snapshot_ends_with_the_longest_age() -> None:
    ahead = looked_ahead("1h:1d", MINUTE)

    assert list(ahead.ends.values()) == [NOON - MINUTE + 24 * HOUR]


def test_the_younger_of_a_timeframe_ends_when_it_gets_there() -> None:
    ahead = looked_ahead("1h:1d", 10 * MINUTE, 20 * MINUTE)

    older, younger = (NOON - 20 * MINUTE).isoformat(), (NOON - 10 * MINUTE).isoformat()
    assert ahead.ends[f"db@{older}"] == NOON - 20 * MINUTE + 24 * HOUR
    assert ahead.ends[f"db@{younger}"] == NOON + 50 * MINUTE


def test_what_has_no_date_or_is_only_a_marker_has_no_end() -> None:
    odd = Snapshot(SnapshotName("db", "odd"), None)
    marker = Snapshot(SnapshotName("db", "x", "host"), NOON - HOUR)

    assert forecast([odd, marker], parse_pattern("1h:1d"), NOON).ends == {}


def test_ages_beyond_the_calendar_are_no_end() -> None:
    assert looked_ahead("1h:9000y", MINUTE).ends == {}


def purged_every(
    minutes: int, snapshots: list[Snapshot], pattern: str, until: datetime
) -> dict[str, datetime]:
    """What purges do when they are made again and again, and newer snapshots come."""
    gone: dict[str, datetime] = {}
    now = NOON
    while now < until:
        now += minutes * MINUTE
        newest = Snapshot(SnapshotName("db", "newest"), now)
        for verdict in judge([*snapshots, newest], parse_pattern(pattern), now):
            if not verdict.keep:
                gone[str(verdict.name)] = now
        snapshots = [s for s in snapshots if str(s.name) not in gone]
    return gone


@given(
    ages=st.sets(st.integers(0, 3 * 144), max_size=12),
    pattern=st.sampled_from(["1h:1d", "2h:4h:2d", "1h:6h:1d:3d", "30m:5h:2d", "6h:6h"]),
)
def test_every_snapshot_ends_with_the_purge_that_comes_next(ages: set[int], pattern: str) -> None:
    moments = [NOON - age * 10 * MINUTE for age in ages]
    first = {v.name for v in judge(taken(moments), parse_pattern(pattern), NOON) if v.keep}
    snapshots = [s for s in taken(moments) if s.name in first]

    ends = forecast(snapshots, parse_pattern(pattern), NOON).ends

    purged = purged_every(10, snapshots, pattern, NOON + timedelta(days=4))
    newest = max((str(s.name) for s in snapshots), default="")
    for name in ends.keys() | purged.keys():
        if name != newest:
            assert timedelta() <= purged[name] - ends[name] <= 10 * MINUTE, name


@pytest.mark.parametrize(
    ("pattern", "period", "low", "high"),
    [
        ("2h:1d", timedelta(minutes=30), 13, 18),
        ("4h:1d:2w", HOUR, 20, 26),
        ("1h:1d:1w", timedelta(hours=12), 8, 11),
    ],
)
def test_the_number_that_is_kept_in_the_end_is_about_right(
    pattern: str, period: timedelta, low: int, high: int
) -> None:
    expected = forecast([], parse_pattern(pattern), NOON, period).finally_kept
    assert expected is not None

    kept: list[Snapshot] = []
    now = NOON
    for _ in range(int(timedelta(days=20) / period)):
        now += period
        kept = taken([*(s.taken for s in kept if s.taken), now])
        verdicts = judge(kept, parse_pattern(pattern), now)
        kept = [s for s, verdict in zip(kept, verdicts, strict=True) if verdict.keep]

    assert low <= len(kept) <= high
    assert abs(expected - len(kept)) <= 3


def test_without_a_period_nobody_knows_how_many_there_will_be() -> None:
    assert looked_ahead("1h:1d", MINUTE).finally_kept is None


def test_a_forecast_of_2000_snapshots_takes_no_ages() -> None:
    snapshots = taken(NOON - number * 13 * MINUTE for number in range(2000))
    pattern = parse_pattern("1h:6h:1d:2w:1y")
    started = datetime.now()

    ahead = forecast(snapshots, pattern, NOON)

    assert datetime.now() - started < timedelta(seconds=5)
    assert len(ahead.ends) + len(ahead.doomed) == 2000


def test_the_newest_that_was_received_is_not_announced_as_going() -> None:
    received, own = taken([NOON - timedelta(days=9), NOON - timedelta(minutes=1)])

    doomed = {
        copies: [
            verdict.name
            for verdict in forecast(
                [received, own], parse_pattern("1h:1d"), NOON, received=copies
            ).doomed
        ]
        for copies in ((), (str(received.name),))
    }

    assert list(doomed.values()) == [[received.name], []]
