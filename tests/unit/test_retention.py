"""Retention: what a pattern keeps and why, and that the time of a purge does not matter."""

import random
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from buttervolume.errors import BadPattern
from buttervolume.names import Snapshot, SnapshotName, parse_snapshot
from buttervolume.store.retention import Pattern, Verdict, judge, parse_pattern

NOW = datetime(2026, 11, 23, 20, 0)
EPOCH = datetime(1970, 1, 1)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
FORMAT = "%Y-%m-%dT%H:%M"


def at(moment: datetime, host: str | None = None) -> Snapshot:
    """The snapshot of a moment, or a marker of it."""
    return Snapshot(SnapshotName("db", moment.strftime("%Y-%m-%dT%H:%M:%S.%f"), host), moment)


def dated(text: str) -> Snapshot:
    """The snapshot `db@<date>[@<host>]`."""
    name = parse_snapshot(f"db@{text}")
    return Snapshot(name, datetime.strptime(name.date, FORMAT))


def judged(
    snapshots: Iterable[Snapshot], pattern: str, now: datetime = NOW, sent: Iterable[str] = ()
) -> dict[str, Verdict]:
    """The verdict on each name, without the volume."""
    verdicts = judge(snapshots, parse_pattern(pattern), now, [f"db@{name}" for name in sent])
    return {str(verdict.name).removeprefix("db@"): verdict for verdict in verdicts}


def kept(pattern: str, *dates: str, now: datetime = NOW, sent: Iterable[str] = ()) -> list[str]:
    """Which dates a purge leaves."""
    verdicts = judged(map(dated, dates), pattern, now, sent)
    return [name for name, verdict in verdicts.items() if verdict.keep]


def reason(of: str, pattern: str, *others: str, sent: Iterable[str] = ()) -> str:
    """Keep or delete, and why, for one date among others."""
    verdict = judged([dated(of), *map(dated, others)], pattern, sent=sent)[of]
    return f"{'keep' if verdict.keep else 'delete'}: {verdict.reason}"


# The pattern


def lengths(pattern: Pattern) -> list[timedelta]:
    """The ages at which something changes."""
    return [*(band.start for band in pattern.bands), pattern.bands[-1].end]


def test_a_pattern_holds_its_ages_from_the_shortest_to_the_longest() -> None:
    assert lengths(parse_pattern("2y:90m:1d:4h:2w")) == [
        90 * MINUTE,
        4 * HOUR,
        DAY,
        14 * DAY,
        730 * DAY,
    ]


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", "4h:", ":4h", "4h::1d", "4h:1d:", "4h/", "/4", "4h/x", "4h/1/2", "4h/-1"),
        *("4h/1.5", "4h/ 2", "4/4h", "1h/٣", "4h:/2", "1h/24,1d/7"),
        *("0h:1d", "4h:00d", "-4h:1d", "+4h:1d", "4.5h:1d", "1_0h:1d", "h:1d", "4:1d"),
        *("4H:1d", "4h:1M", "4s:1d", "4hh:1d", "4 h:1d", " 4h:1d", "4h:1d\n", "4h,1d"),
        *("٣h:1d", "²h:1d", "４h:1d", "4h:1d\0"),
        *("9999999999y:1d", f"{'9' * 400}m:1d", f"4h:{'9' * 5000}y", f"1h/{'9' * 400}"),
    ],
)
def test_anything_else_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(BadPattern, match=r"m, h, d, w or y.*4h:1d:2w:2y") as refusal:
        parse_pattern(text)

    assert str(refusal.value).isprintable(), "one line, whatever was asked for"


@given(text=st.text("0123456789mhdwy:/", max_size=12) | st.text(max_size=8))
def test_any_text_is_a_pattern_of_ages_or_is_refused(text: str) -> None:
    try:
        pattern = parse_pattern(text)
    except BadPattern:
        return

    assert pattern.text == text
    ages = lengths(pattern)
    assert ages == sorted(ages)
    assert ages[0] > timedelta()
    for one, other in pairwise(pattern.bands):
        assert one.end == other.start, "no age is in none of them"


def test_one_age_alone_is_where_everything_goes() -> None:
    assert parse_pattern("2h").bands == parse_pattern("2h:2h").bands
    dates = ["2026-11-23T17:59", "2026-11-23T18:01", "2026-11-23T20:00"]
    assert kept("2h", *dates) == dates[1:]


# Ages in another order than they seem to be


@pytest.mark.parametrize("text", ["2h", "2h:2h", "4h:1d:2w:2y", "60m:1h:24h:1d", "1h/24:1d/7"])
def test_a_pattern_whose_ages_ascend_is_nothing_to_warn_of(text: str) -> None:
    assert parse_pattern(text).warning == ""


def test_a_pattern_whose_ages_do_not_ascend_is_spelled_out() -> None:
    assert parse_pattern("48h:20d:6m").warning == (
        "the ages of 48h:20d:6m do not ascend; it means 6m:48h:20d: everything younger than "
        "6 minutes stays, then one per 6 minutes up to an age of 2 days, then one per 2 days up "
        "to an age of 20 days; what is older goes"
    )
    assert "1 day 1 hour" in parse_pattern("1y:25h").warning
    assert parse_pattern("1d:1h").warning
    assert parse_pattern("1h:1w:1d").warning


# Counts


def ages_of(text: str) -> list[tuple[str, str, str]]:
    """Each band of a pattern: from, to, and one for each."""
    return [(short(band.start), short(band.end), band.text) for band in parse_pattern(text).bands]


def short(length: timedelta) -> str:
    return f"{length / HOUR:g}h"


@pytest.mark.parametrize(
    ("text", "bands"),
    [
        ("1h/24", [("1h", "25h", "1h")]),
        ("1h/12:1d/5", [("1h", "13h", "1h"), ("13h", "133h", "1d")]),
        ("1h/24:1d/7:1w/4", [("1h", "25h", "1h"), ("25h", "193h", "1d"), ("193h", "865h", "1w")]),
        ("1h:1d/7", [("1h", "24h", "1h"), ("24h", "192h", "1d")]),
        ("1h/24:1d:1w/4", [("1h", "25h", "1h"), ("25h", "168h", "1d"), ("168h", "840h", "1w")]),
        ("1h/24:1d:1w", [("1h", "25h", "1h"), ("25h", "168h", "1d")]),
        ("1h/2:4h:1d:2w", [("1h", "3h", "1h"), ("3h", "24h", "4h"), ("24h", "336h", "1d")]),
        ("1h/23:1d:2d/2", [("1h", "24h", "1h"), ("24h", "48h", "1d"), ("48h", "144h", "2d")]),
        ("1h/47:1d:2d/1", [("1h", "48h", "1h"), ("48h", "48h", "1d"), ("48h", "96h", "2d")]),
    ],
)
def test_each_counted_part_begins_where_the_one_before_ended(
    text: str, bands: list[tuple[str, str, str]]
) -> None:
    assert ages_of(text) == bands


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("1h/12:1d", "1h/12 ends at an age of 13 hours, so 1d .*write 1d/1"),
        ("1h:1d/7:1w", "1d/7 ends at an age of 8 days, so 1w .*write 1w/1"),
        ("1h/0", "in 1h/0 the count must be 1 or more"),
        ("1h/000:1d", "the count must be 1 or more"),
        ("1h/2:1h", "ages must ascend"),
        ("1h:1h:1d/7", "ages must ascend"),
        ("60m/2:1h/2", "1h is not above 60m"),
        ("1d/7:1h/24", "1h is not above 1d"),
        ("1h/200:1d:1w/4", "1d would begin at an age of 8 days 9 hours and end before that"),
        ("1h/200:1d:1w", "1d would begin .* and end before that"),
    ],
)
def test_a_count_that_does_not_make_sense_is_refused_with_the_reason(
    text: str, problem: str
) -> None:
    with pytest.raises(BadPattern, match=problem) as refusal:
        parse_pattern(text)

    assert str(refusal.value).isprintable()


def test_counts_keep_so_many_hours_then_days_then_nothing() -> None:
    hourly = [NOW - HOUR * hours for hours in range(20 * 24)][::-1]

    verdicts = judge(map(at, hourly), parse_pattern("1h/24:1d/7"), NOW)

    left = [m for m, verdict in zip(hourly, verdicts, strict=True) if verdict.keep]
    assert [m for m in left if NOW - m < 25 * HOUR] == hourly[-25:]
    days = [m for m in left if NOW - m >= 25 * HOUR]
    assert [m.hour for m in days] == [19, *[0] * 7], "the first day is cut by the age of 8 d 1 h"
    reasons = [verdict.reason for verdict in verdicts]
    assert reasons[0] == "older than 8d1h"
    assert reasons[-1] == "younger than 1h"


def slow(text: str, ages: Sequence[int]) -> list[int]:
    """Which of some ages, in minutes and distinct, a pattern keeps: word for word after the
    manual, with none of the code that is tested. The newest is kept whatever its age."""
    unit = {"m": 1, "h": 60, "d": 1440, "w": 10080, "y": 525600}
    parts = []
    for part in text.split(":"):
        written, _, count = part.partition("/")
        parts.append((int(written[:-1]) * unit[written[-1]], int(count) if count else None))
    steps = []  # from, to, length
    if all(times is None for _, times in parts):
        lengths = sorted(length for length, _ in parts)
        if len(lengths) == 1:
            lengths *= 2
        steps = [(a, b, a) for a, b in pairwise(lengths)]
    else:
        begin = parts[0][0]
        for number, (length, times) in enumerate(parts):
            if times is None and number == len(parts) - 1:
                break
            end = parts[number + 1][0] if times is None else begin + times * length
            steps.append((begin, end, length))
            begin = end

    def step_of(age: int) -> int | None:
        inside = [n for n, (begin, end, _) in enumerate(steps) if begin <= age <= end]
        return max(inside, default=None)

    minute_now = (NOW - EPOCH) // MINUTE
    left = []
    for age in ages:
        step = step_of(age)
        if age < steps[0][0]:
            keep = True
        elif step is None:
            keep = False
        else:
            length = steps[step][2]
            frame = (minute_now - age) // length
            keep = not any(
                other > age and step_of(other) == step and (minute_now - other) // length == frame
                for other in ages
            )
        if keep or age == min(ages):
            left.append(age)
    return left


AGES = st.lists(st.integers(0, 400 * 1440) | st.integers(0, 3 * 1440), min_size=1, max_size=25)
PARTS = st.lists(
    st.tuples(
        st.integers(1, 30),
        st.sampled_from("mhdw"),
        st.none() | st.none() | st.integers(1, 12),
    ),
    min_size=1,
    max_size=5,
)


def check_against_the_slow_search(text: str, ages: Iterable[int]) -> bool:
    """Whether the pattern can be understood; if so, it must keep what it ought to."""
    try:
        pattern = parse_pattern(text)
    except BadPattern:
        return False
    oldest_first = sorted(set(ages), reverse=True)

    left = survivors([NOW - age * MINUTE for age in oldest_first], pattern, NOW)

    assert [(NOW - moment) // MINUTE for moment in left] == slow(text, oldest_first), text
    return True


def as_text(parts: Iterable[tuple[int, str, int | None]]) -> str:
    return ":".join(f"{n}{u}" + ("" if c is None else f"/{c}") for n, u, c in parts)


@given(parts=PARTS, ages=AGES)
def test_what_is_kept_is_what_a_slow_search_after_the_words_of_the_manual_keeps(
    parts: list[tuple[int, str, int | None]], ages: list[int]
) -> None:
    assume(check_against_the_slow_search(as_text(parts), ages))


def test_the_same_in_thousands_of_cases() -> None:
    dice = random.Random(5)
    minutes = {"m": 1, "h": 60, "d": 1440, "w": 10080}
    good = 0
    while good < 3000:
        parts = [
            (
                dice.randint(1, 30),
                dice.choice("mhdw"),
                dice.choice([None, None, dice.randint(1, 9)]),
            )
            for _ in range(dice.randint(1, 5))
        ]
        if dice.random() < 0.7:
            parts.sort(key=lambda part: part[0] * minutes[part[1]])
        reach = dice.choice([300, 3 * 1440, 400 * 1440])
        ages = [dice.randrange(reach) for _ in range(dice.randint(1, 25))]
        good += check_against_the_slow_search(as_text(parts), ages)


@given(parts=PARTS)
def test_a_pattern_is_refused_for_what_the_manual_says_and_for_nothing_else(
    parts: list[tuple[int, str, int | None]],
) -> None:
    unit = {"m": 1, "h": 60, "d": 1440, "w": 10080}
    text = as_text(parts)
    lengths = [n * unit[u] for n, u, _ in parts]
    counts = [c for _, _, c in parts]
    wrong = False
    if any(counts):
        wrong = any(a >= b for a, b in pairwise(lengths))
        begin = lengths[0]
        for place, (length, times) in enumerate(zip(lengths, counts, strict=True)):
            if times:
                begin += times * length
            elif place + 1 < len(lengths):
                wrong = wrong or lengths[place + 1] < begin
                begin = lengths[place + 1]
            else:
                wrong = wrong or bool(counts[place - 1])

    if wrong:
        with pytest.raises(BadPattern):
            parse_pattern(text)
    else:
        ascends = all(a <= b for a, b in pairwise(lengths))
        assert bool(parse_pattern(text).warning) is not ascends


# One purge, sentence by sentence


def test_everything_younger_than_the_shortest_age_is_kept() -> None:
    young = [f"2026-11-23T{hour}:{minute:02}" for hour in (17, 18, 19) for minute in range(60)]

    assert kept("4h:1d", *young) == young


def test_between_two_ages_the_oldest_of_each_timeframe_is_kept() -> None:
    # given snapshots in the two timeframes 08:00-12:00 and 12:00-16:00, all older than 4 hours
    dates = [f"2026-11-23T{hour:02}:30" for hour in range(8, 16)]

    # when they are purged at 20:00, with a newer one behind them
    left = kept("4h:1d", *dates, "2026-11-23T19:59")

    # then each timeframe has its oldest
    assert left == ["2026-11-23T08:30", "2026-11-23T12:30", "2026-11-23T19:59"]


def test_what_is_older_than_the_longest_age_goes() -> None:
    dates = ["2026-11-21T20:00", "2026-11-22T19:59", "2026-11-22T20:01", "2026-11-23T19:00"]

    assert kept("4h:1d", *dates) == dates[2:]


def test_an_empty_timeframe_has_nothing_and_takes_nothing_from_its_neighbours() -> None:
    dates = ["2026-11-23T00:00", "2026-11-23T03:59", "2026-11-23T08:01", "2026-11-23T19:00"]

    assert kept("4h:1d", *dates) == [dates[0], dates[2], dates[3]]


def test_timeframes_are_those_of_the_calendar_and_not_of_the_time_of_the_purge() -> None:
    midnight_and_around = ["2026-11-19T23:59", "2026-11-20T00:00", "2026-11-20T23:59"]

    for minute in range(0, 24 * 60, 7):
        now = datetime(2026, 11, 24) + minute * MINUTE
        left = kept("1d:1w", *midnight_and_around, "2026-11-23T23:59", now=now)
        assert left == ["2026-11-19T23:59", "2026-11-20T00:00", "2026-11-23T23:59"]


def test_weeks_begin_on_the_weekday_of_1970_01_01_which_was_a_thursday() -> None:
    wednesday, thursday, next_wednesday = "2026-11-11T23:00", "2026-11-12T01:00", "2026-11-18T23:00"

    left = kept("1w:1y", "2026-11-05T00:00", wednesday, thursday, next_wednesday, now=NOW + 7 * DAY)

    assert left == ["2026-11-05T00:00", thursday, next_wednesday], "the last is the newest"


def test_each_band_has_timeframes_of_its_shorter_age() -> None:
    # given a snapshot each hour of the last five weeks
    hourly = [NOW - HOUR * hours for hours in range(5 * 7 * 24)][::-1]

    # when
    verdicts = judge(map(at, hourly), parse_pattern("4h:1d:2w:2y"), NOW)
    left = [m for m, verdict in zip(hourly, verdicts, strict=True) if verdict.keep]

    # then there are all of the last 4 hours, then one of 4 hours, of a day, of 2 weeks
    young = [m for m in left if NOW - m < 4 * HOUR]
    in_hours = [m for m in left if 4 * HOUR <= NOW - m < DAY]
    in_days = [m for m in left if DAY <= NOW - m < 14 * DAY]
    in_fortnights = [m for m in left if NOW - m >= 14 * DAY]
    assert young == hourly[-4:]
    assert [m.hour for m in in_hours] == [21, 0, 4, 8, 12, 16], "20 is a day old"
    # of the day that began more than two weeks ago, and of the fortnight that five weeks ago was
    # under way, only a part lies between the ages
    first, *whole = in_days
    assert first == NOW - 14 * DAY + HOUR
    assert whole == [datetime(2026, 11, 10) + DAY * n for n in range(13)]
    assert in_fortnights == [hourly[0], datetime(2026, 10, 22), datetime(2026, 11, 5)]


def test_only_what_is_between_the_two_ages_counts_for_the_oldest() -> None:
    # given a timeframe, 20:00 to 24:00, whose first snapshot is older than the longest age
    dates = ["2026-11-22T20:10", "2026-11-22T21:00", "2026-11-22T22:00", "2026-11-23T19:00"]

    # when the purge is at 20:30 of the next day, then the second one is the oldest that counts
    assert kept("4h:1d", *dates, now=NOW + 30 * MINUTE) == [dates[1], dates[3]]


def test_twice_the_same_age_keeps_that_long_and_nothing_else() -> None:
    dates = ["2026-11-23T17:59", "2026-11-23T18:01", "2026-11-23T18:02", "2026-11-23T20:00"]

    assert kept("2h:2h", *dates) == dates[1:]


def test_an_age_that_is_just_reached_is_neither_younger_nor_older() -> None:
    exactly = "2026-11-23T18:00"

    assert reason(exactly, "2h:2h", "2026-11-23T19:00").startswith("keep")
    assert reason(exactly, "1h:2h", "2026-11-23T19:30").startswith("keep")
    assert reason(exactly, "2h:1d", "2026-11-23T19:30") == (
        "keep: the oldest of the 2h from 2026-11-23 18:00"
    )


# What is never purged


def test_a_date_that_is_not_understood_is_kept() -> None:
    odd = Snapshot(SnapshotName("db", "before-the-upgrade"), None)

    verdict = judge([odd, dated("2026-11-23T19:00")], parse_pattern("1h:1h"), NOW)[0]

    assert verdict == Verdict(odd.name, True, "its date cannot be read")


def test_a_date_in_the_future_is_kept_and_does_not_stand_in_for_the_newest() -> None:
    # given a clock that was a year ahead once
    dates = ["2025-01-01T00:00", "2025-06-01T00:00", "2027-11-23T00:00"]

    assert kept("2h:2h", *dates) == dates[1:]


def test_the_newest_snapshot_is_kept_however_old_it_is() -> None:
    assert kept("2h:2h", "2001-01-01T00:00", "2002-01-01T00:00") == ["2002-01-01T00:00"]


def test_a_marker_is_no_newest_snapshot() -> None:
    # given a marker of a snapshot that is gone, newer than what is left
    left = kept("2h:2h", "2001-01-01T00:00", "2002-01-01T00:00", "2003-01-01T00:00@a")

    assert left == ["2002-01-01T00:00", "2003-01-01T00:00@a"]


def test_the_newest_marker_of_each_host_and_the_snapshot_it_marks_are_kept() -> None:
    first, second, third, newest = (f"200{n}-01-01T00:00" for n in range(1, 5))

    left = kept(
        "2h:2h",
        *(first, f"{first}@a", f"{first}@b"),
        *(second, f"{second}@b"),
        *(third, f"{third}@a"),
        newest,
    )

    assert left == [second, f"{second}@b", third, f"{third}@a", newest]


def test_a_marker_in_the_future_does_not_give_up_the_one_before() -> None:
    past, future = "2001-01-01T00:00", "2030-01-01T00:00"
    everything = [past, f"{past}@a", "2002-01-01T00:00", future, f"{future}@a"]

    assert kept("2h:2h", *everything) == everything


def test_what_is_in_transfer_is_kept_and_nothing_like_it() -> None:
    first, second = "2001-01-01T00:00", "2001-01-01T00:01"

    left = kept("2h:2h", first, second, "2002-01-01T00:00", sent=[first])

    assert left == [first, "2002-01-01T00:00"]


def test_a_marker_in_transfer_is_kept() -> None:
    old, new = "2001-01-01T00:00@a", "2002-01-01T00:00@a"

    assert kept("2h:2h", old, new, sent=[old]) == [old, new]


def test_what_is_protected_counts_when_the_oldest_is_looked_for() -> None:
    # given a timeframe whose oldest snapshot is in transfer
    dates = ["2026-11-23T08:00", "2026-11-23T09:00", "2026-11-23T19:00"]

    # then it has its one snapshot already
    assert kept("4h:1d", *dates, sent=[dates[0]]) == [dates[0], dates[2]]


def test_what_is_protected_does_not_push_the_oldest_out() -> None:
    dates = ["2026-11-23T08:00", "2026-11-23T09:00", "2026-11-23T10:00", "2026-11-23T19:00"]

    assert kept("4h:1d", *dates, sent=[dates[1]]) == [dates[0], dates[1], dates[3]]


def test_markers_are_judged_apart_host_by_host_by_the_same_pattern() -> None:
    morning = [f"2026-11-23T{hour:02}:00" for hour in (8, 9, 10)]
    of_a = [f"{date}@a" for date in morning]
    of_b = [f"{date}@b" for date in morning[1:]]
    newer = ["2026-11-23T19:00", "2026-11-23T19:00@a", "2026-11-23T19:00@b"]

    left = kept("4h:1d", *morning, *of_a, *of_b, *newer)

    assert left == [morning[0], of_a[0], of_b[0], *newer]


# The reasons


def test_every_verdict_says_why() -> None:
    pattern, newest = "4h:1d:1w:2y", "2026-11-23T19:59"

    assert reason("2026-11-23T17:00", pattern, newest) == "keep: younger than 4h"
    assert reason("2026-11-23T08:10", pattern, newest) == (
        "keep: the oldest of the 4h from 2026-11-23 08:00"
    )
    assert reason("2026-11-20T08:10", pattern, newest) == "keep: the oldest of the day 2026-11-20"
    assert reason("2026-11-13T08:10", pattern, "2026-11-12T08:10", newest) == (
        "delete: not the oldest of the week from 2026-11-12"
    )
    assert reason("2024-01-01T00:00", pattern, newest) == "delete: older than 2y"
    assert reason("2024-01-01T00:00", pattern) == "keep: the newest snapshot"
    assert reason("2024-01-01T00:00@a", pattern, newest) == "keep: the newest marker of a"
    assert reason("2024-01-01T00:00", pattern, "2024-01-01T00:00@a", newest) == (
        "keep: parent of the next send to a"
    )
    assert reason("2024-01-01T00:00", pattern, newest, sent=["2024-01-01T00:00"]) == (
        "keep: in transfer"
    )
    assert reason("2026-11-23T20:01", pattern) == "keep: its date is in the future"


def test_the_reasons_use_the_words_of_the_pattern() -> None:
    assert reason("2026-11-23T19:59", "60m:24h") == "keep: younger than 60m"
    assert reason("2020-01-01T00:00", "60m:24h", "2026-11-23T19:59") == "delete: older than 24h"


def test_the_first_of_all_dates_has_a_reason_as_well() -> None:
    first = at(datetime(1, 1, 1))

    verdicts = judge([first, at(NOW)], parse_pattern("1w:9999y"), NOW)

    assert verdicts[0] == Verdict(first.name, True, "the oldest of the week from 0001-01-01")


def test_the_verdicts_come_in_the_order_of_the_snapshots() -> None:
    names = ["2026-11-20T00:00", "2026-11-20T00:00@a", "2026-11-21T00:00", "2026-11-23T19:00"]

    assert list(judged(map(dated, names), "1d:1w")) == names


def test_of_ten_thousand_snapshots_each_is_judged() -> None:
    snapshots = [at(NOW - 50 * MINUTE * n) for n in range(10_000)][::-1]

    verdicts = judge(snapshots, parse_pattern("4h:1d:2w:2y"), NOW)

    assert [verdict.name for verdict in verdicts] == [snapshot.name for snapshot in snapshots]


# Properties of one purge


LENGTHS = st.tuples(st.integers(1, 40), st.sampled_from("mhdw")).map(lambda t: f"{t[0]}{t[1]}")
PATTERNS = st.lists(LENGTHS, min_size=2, max_size=5)
MOMENTS = st.lists(st.integers(-600, 60 * 24 * 60), min_size=1, max_size=40, unique=True).map(
    lambda ages: [NOW - age * MINUTE for age in sorted(ages, reverse=True)]
)


def survivors(moments: Iterable[datetime], pattern: Pattern, now: datetime) -> list[datetime]:
    """What a purge leaves of snapshots, given by their moments in order."""
    return [s.taken for s in purged(map(at, moments), pattern, now) if s.taken]


def purged(snapshots: Iterable[Snapshot], pattern: Pattern, now: datetime) -> list[Snapshot]:
    """What a purge leaves."""
    snapshots = list(snapshots)
    pairs = zip(snapshots, judge(snapshots, pattern, now), strict=True)
    return [snapshot for snapshot, verdict in pairs if verdict.keep]


def frame_of(moment: datetime, now: datetime, ages: list[timedelta]) -> tuple[int, int] | None:
    """Between which two ages a snapshot is, and in which timeframe of the shorter one's length;
    None if it is younger or older than all."""
    band = bisect_right(ages, now - moment) - 1
    return (band, (moment - EPOCH) // ages[band]) if 0 <= band < len(ages) - 1 else None


@given(moments=MOMENTS, texts=PATTERNS)
def test_nothing_that_is_younger_than_the_shortest_age_ever_goes(
    moments: list[datetime], texts: list[str]
) -> None:
    pattern = parse_pattern(":".join(texts))

    left = survivors(moments, pattern, NOW)

    assert {m for m in moments if NOW - m < lengths(pattern)[0]} <= set(left)


@given(moments=MOMENTS, texts=PATTERNS)
def test_each_timeframe_keeps_the_oldest_and_no_other(
    moments: list[datetime], texts: list[str]
) -> None:
    pattern = parse_pattern(":".join(texts))
    ages = lengths(pattern)
    newest = max((m for m in moments if m <= NOW), default=None)

    left = survivors(moments, pattern, NOW)

    oldest: dict[tuple[int, int], datetime] = {}
    for moment in moments:
        if frame := frame_of(moment, NOW, ages):
            oldest.setdefault(frame, moment)
    between = {m for m in moments if frame_of(m, NOW, ages) and NOW - m != ages[-1]}
    assert set(left) & between == set(oldest.values()) | ({newest} & between)


@given(moments=MOMENTS, texts=PATTERNS)
def test_purging_twice_changes_nothing(moments: list[datetime], texts: list[str]) -> None:
    pattern = parse_pattern(":".join(texts))

    once = survivors(moments, pattern, NOW)

    assert survivors(once, pattern, NOW) == once


@given(moments=MOMENTS, texts=PATTERNS, data=st.data())
def test_the_order_of_a_pattern_and_of_the_snapshots_does_not_matter(
    moments: list[datetime], texts: list[str], data: st.DataObject
) -> None:
    other_texts = data.draw(st.permutations(texts))
    other_moments = data.draw(st.permutations(moments))

    verdicts = judged(map(at, moments), ":".join(texts))

    assert judged(map(at, other_moments), ":".join(other_texts)) == verdicts


@given(moments=MOMENTS, texts=PATTERNS, data=st.data())
def test_what_is_protected_stays_and_takes_nothing_with_it(
    moments: list[datetime], texts: list[str], data: st.DataObject
) -> None:
    pattern = parse_pattern(":".join(texts))
    sent = data.draw(st.lists(st.sampled_from(moments), unique=True))
    marked = data.draw(st.lists(st.sampled_from(moments), unique=True))
    snapshots = [*map(at, moments), *(at(m, "a") for m in marked)]

    verdicts = judge(snapshots, pattern, NOW, [str(at(m).name) for m in sent])

    left = {verdict.name for verdict in verdicts if verdict.keep}
    of_the_past = [m for m in moments if m <= NOW]
    markers_of_the_past = [m for m in marked if m <= NOW]
    for moment in (*sent, *of_the_past[-1:], *(m for m in moments if m > NOW)):
        assert at(moment).name in left
    if markers_of_the_past:
        newest = max(markers_of_the_past)
        assert {at(newest).name, at(newest, "a").name} <= left
    assert {at(m).name for m in survivors(moments, pattern, NOW)} <= left


# Purges again and again


class Host:
    """Something that is purged now and then, and a memory of all that it ever had."""

    def __init__(self, pattern: str) -> None:
        self.pattern = parse_pattern(pattern)
        self.ages = lengths(self.pattern)
        self.taken: list[datetime] = []
        self.snapshots: list[Snapshot] = []

    @property
    def left(self) -> list[datetime]:
        return [s.taken for s in self.snapshots if s.taken]

    def get(self, moments: Iterable[datetime]) -> None:
        new = list(moments)
        self.taken += new
        self.snapshots += map(at, new)

    def purge(self, now: datetime) -> None:
        self.snapshots = purged(self.snapshots, self.pattern, now)


def by_frame(
    moments: Iterable[datetime], now: datetime, ages: list[timedelta], *, whole: bool
) -> dict[tuple[int, int], list[datetime]]:
    """The moments by timeframe: of those that are wholly between two ages, or of those that an
    age cuts in two."""
    frames: dict[tuple[int, int], list[datetime]] = {}
    for moment in moments:
        if frame := frame_of(moment, now, ages):
            frames.setdefault(frame, []).append(moment)

    def is_whole(band: int, number: int) -> bool:
        start = EPOCH + number * ages[band]
        return now - ages[band + 1] < start and start + ages[band] <= now - ages[band]

    return {frame: found for frame, found in frames.items() if is_whole(*frame) == whole}


def check(host: Host, now: datetime) -> None:
    """Just after a purge: all that is young, and one, the first ever taken, per timeframe."""
    taken = host.taken[bisect_right(host.taken, now - host.ages[-1]) :]
    assert [m for m in host.left if now - m < host.ages[0]] == [
        m for m in taken if now - m < host.ages[0]
    ]
    ever = by_frame(taken, now, host.ages, whole=True)
    assert by_frame(host.left, now, host.ages, whole=True) == {
        frame: moments[:1] for frame, moments in ever.items()
    }
    for moments in by_frame(host.left, now, host.ages, whole=False).values():
        assert len(moments) == 1
    assert now - host.left[0] <= host.ages[-1]


def live(
    hosts: Sequence[Host],
    longest_pauses: Sequence[timedelta],
    every: timedelta,
    seed: int,
) -> Iterable[datetime]:
    """Let hosts get the same snapshots for a year, purging at times of their own, `longest_pauses`
    apart at most; every ten days all purge at the same moment, which the caller gets."""
    dice = random.Random(seed)
    start = now = datetime(2026, 1, 1)
    moments = [start + every * n + MINUTE * dice.randrange(30) for n in range(360 * DAY // every)]
    while now < start + 360 * DAY:
        meeting = now + 10 * DAY
        for host, pause in zip(hosts, longest_pauses, strict=True):
            while now < meeting:
                now = min(now + dice.random() * pause, meeting)
                host.get(moments[len(host.taken) : bisect_right(moments, now)])
                host.purge(now)
            now = meeting - 10 * DAY
        now = meeting
        yield now


def test_hourly_purges_over_a_year_keep_exactly_one_snapshot_per_timeframe() -> None:
    host, start = Host("4h:1d:2w:2y"), datetime(2026, 1, 1, 0, 7)

    for hour in range(365 * 24):
        taken = start + hour * HOUR
        host.get([taken])
        host.purge(taken + 20 * MINUTE)
        if hour % 219 == 218:
            check(host, taken + 20 * MINUTE)

    assert len(host.taken) == 8760
    assert len(host.left) == 4 + 5 + 13 + 26, "hours, 4 hours, days, fortnights"


def test_two_hosts_that_purge_often_hold_the_same_snapshots_whenever_they_purge() -> None:
    # given one that purges up to every 9 hours and one that does up to every 16: in 16 hours, no
    # timeframe of 4h gets from "partly younger than 4h" to "partly older than 1d"
    one, other = Host("4h:1d:2w:2y"), Host("4h:1d:2w:2y")

    for now in live([one, other], [9 * HOUR, 16 * HOUR], every=HOUR, seed=1):
        assert one.left == other.left
        check(one, now)


@pytest.mark.parametrize("pattern", ["1h:6h:1d:1w:1y", "30m:4h:8h:5w", "1d:1w"])
def test_a_host_that_purges_seldom_holds_the_same_in_every_whole_timeframe(pattern: str) -> None:
    # given one that purges every day or two, and one that may wait for ten days
    often, seldom = Host(pattern), Host(pattern)

    for now in live([often, seldom], [2 * DAY, 30 * DAY], every=2 * HOUR, seed=2):
        # then they differ by what is in a timeframe that an age cuts in two, one each at most
        check(often, now)
        check(seldom, now)
        assert len(set(often.left) ^ set(seldom.left)) <= len(often.ages) - 1


def test_lengths_that_are_no_multiples_of_one_another_agree_on_hosts_that_purge_often() -> None:
    # given months of 30 days, which cut weeks in two; and purges within the 5 days in which a
    # timeframe of 1d is wholly between 1d and 1w
    one, other = Host("1d:1w:30d:1y"), Host("1d:1w:30d:1y")

    for _ in live([one, other], [DAY, 5 * DAY], every=3 * HOUR, seed=3):
        assert one.left == other.left


def test_a_year_without_any_purge_ends_like_a_year_of_purges() -> None:
    often, never = Host("4h:1d:2w:2y"), Host("4h:1d:2w:2y")
    for now in live([often], [2 * DAY], every=HOUR, seed=4):
        last = now

    never.get(often.taken)
    never.purge(last)

    check(often, last)
    check(never, last)


@given(
    ages=st.lists(st.integers(1, 50 * 24 * 60), min_size=1, max_size=30, unique=True),
    times=st.lists(st.integers(0, 50 * 24 * 60), max_size=6),
    first=st.integers(1, 600),
    factors=st.lists(st.integers(1, 12), min_size=1, max_size=4),
)
def test_whatever_the_times_of_earlier_purges_each_whole_timeframe_has_its_first(
    ages: list[int], times: list[int], first: int, factors: list[int]
) -> None:
    # given a pattern whose ages are multiples of one another
    minutes = [first]
    for factor in factors:
        minutes.append(minutes[-1] * factor)
    host = Host(":".join(f"{n}m" for n in minutes))
    coming = [NOW - age * MINUTE for age in sorted(ages, reverse=True)]

    # when there are purges at any times, the last one now
    for moment in sorted(NOW - age * MINUTE for age in {*times, 0}):
        host.get(m for m in coming if m <= moment)
        coming = [m for m in coming if m > moment]
        host.purge(moment)

    # then those that are wholly between two ages hold the first that was ever in them
    left = by_frame(host.left, NOW, host.ages, whole=True)
    ever = by_frame(host.taken, NOW, host.ages, whole=True)
    assert left.keys() == ever.keys()
    for frame, moments in ever.items():
        assert left[frame][0] == moments[0]
        assert set(left[frame][1:]) <= {host.taken[-1]}, "the newest of all may stay beside it"


def test_the_newest_that_was_received_stays_as_the_parent_of_what_comes_next() -> None:
    snapshots = [dated(f"2020-01-0{day}T00:00") for day in range(1, 5)]
    copies = [str(snapshot.name) for snapshot in snapshots[:3]]
    verdicts = judge(snapshots, parse_pattern("1h:1d"), NOW, received=copies)
    assert [verdict.keep for verdict in verdicts] == [False, False, True, True]
    assert verdicts[2].reason == "the newest that was received"


def test_the_latest_stays_beside_a_newer_one_that_is_a_backup() -> None:
    snapshots = [dated(f"2020-01-0{day}T00:00") for day in range(1, 5)]
    verdicts = judge(snapshots, parse_pattern("1h:1d"), NOW, latest=str(snapshots[1].name))
    assert [verdict.keep for verdict in verdicts] == [False, True, False, True]
    assert verdicts[1].reason == "the latest snapshot"
