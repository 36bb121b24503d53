"""When a job runs: minutes, and cron in local time over both changes of summer time."""

import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buttervolume.errors import BadJob
from buttervolume.jobs.when import Cron, Every, parse_when

MINUTE = timedelta(minutes=1)


def cron(text: str, zone: str = "Europe/Berlin") -> Cron:
    parsed = parse_when(text)
    assert isinstance(parsed, Cron)
    return replace(parsed, zone=ZoneInfo(zone))


def moments(when: Cron, start: datetime, number: int) -> list[str]:
    """The next moments after a start, as a clock there shows them, with its offset."""
    found = []
    for _ in range(number):
        start = when.after(start)
        found.append(f"{start.astimezone(when.zone):%m-%d %H:%M %z}")
    return found


# What is written


@pytest.mark.parametrize("text", ["1", "060", "5270400"])
def test_minutes_are_minutes(text: str) -> None:
    assert parse_when(text) == Every(int(text))


@pytest.mark.parametrize(
    "text",
    ["0 3 * * *", "*/5 * * * *", "0,30 8-18 * * mon-fri", "0 0 1 JAN *", "5 4 * * 7", "0 0 l * *"],
)
def test_five_fields_are_cron(text: str) -> None:
    assert str(parse_when(text)) == text
    assert str(parse_when(f"  {text.replace(' ', '   ')} ")) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "0", "-1", "1.5", "٣", "5270401", "9" * 5000, "@daily", "* * * *", "* * * * * *"),
        *("60 * * * *", "* 24 * * *", "0 0 0 * *", "0 0 * 13 *", "0 0 * * 8", "0 0 * * funday"),
        *("*/0 * * * *", "5-1 * * * *", "1-99999999999 * * * *", "a b c d e", "R R * * *"),
        *("0 0 30 2 *", "0 0 31 4,6 *", "h h * * *", "? ? ?,? ? ?", "é * * * *", "*/ * * * *"),
        "0 0 * * \0",
    ],
)
def test_anything_else_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(BadJob, match=r"whole number|no cron expression") as refusal:
        parse_when(text)

    assert str(refusal.value).isprintable()


@given(text=st.text("0123456789*/,-#?lLhHrRmon ", max_size=20) | st.text(max_size=10))
def test_any_text_is_a_time_or_is_refused(text: str) -> None:
    try:
        when = parse_when(text)
    except BadJob:
        return

    assert when.after(datetime(2026, 5, 6, tzinfo=UTC)) > datetime(2026, 5, 6, tzinfo=UTC)
    assert parse_when(str(when)) == when


# Summer time


def test_a_night_in_march_and_a_night_in_october_have_one_run_each() -> None:
    nightly = cron("30 2 * * *")

    assert moments(nightly, datetime(2026, 3, 27, 12, tzinfo=UTC), 3) == [
        "03-28 02:30 +0100",
        "03-29 03:30 +0200",  # 02:30 does not come
        "03-30 02:30 +0200",
    ]
    assert moments(nightly, datetime(2026, 10, 23, 12, tzinfo=UTC), 3) == [
        "10-24 02:30 +0200",
        "10-25 02:30 +0200",  # the first of two
        "10-26 02:30 +0100",
    ]


def test_what_is_to_happen_all_the_time_happens_in_the_repeated_hour_as_well() -> None:
    assert moments(cron("0 * * * *"), datetime(2026, 10, 24, 23, 30, tzinfo=UTC), 4) == [
        "10-25 02:00 +0200",
        "10-25 02:00 +0100",
        "10-25 03:00 +0100",
        "10-25 04:00 +0100",
    ]
    assert moments(cron("*/30 * * * *"), datetime(2026, 3, 29, 0, 10, tzinfo=UTC), 3) == [
        "03-29 01:30 +0100",
        "03-29 03:00 +0200",
        "03-29 03:30 +0200",
    ]


def test_without_a_zone_the_machines_own_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        nightly = parse_when("45 2 * * *")
        assert nightly.after(datetime(2026, 3, 28, 12, tzinfo=UTC)) == datetime(
            2026, 3, 29, 1, 45, tzinfo=UTC
        ), "03:45, since 02:45 does not come"
        assert nightly.after(datetime(2026, 10, 24, 12, tzinfo=UTC)) == datetime(
            2026, 10, 25, 0, 45, tzinfo=UTC
        ), "the first 02:45"
        assert nightly.after(datetime(2026, 10, 25, 0, 45, tzinfo=UTC)) == datetime(
            2026, 10, 26, 1, 45, tzinfo=UTC
        )
    finally:
        monkeypatch.undo()
        time.tzset()


ZONES = ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "UTC", "Asia/Kathmandu"]
FIELDS = st.tuples(
    st.sampled_from(["0", "30", "*/20", "59", "5,35"]),
    st.sampled_from(["*", "2", "1,2,3", "*/6", "0", "23", "2-4"]),
)


@given(
    fields=FIELDS,
    zone=st.sampled_from(ZONES),
    month=st.sampled_from([3, 4, 10, 11]),
    minutes=st.integers(0, 40 * 24 * 60),
)
def test_the_next_moment_is_the_one_that_a_look_at_each_minute_finds(
    fields: tuple[str, str], zone: str, month: int, minutes: int
) -> None:
    text = " ".join((*fields, "* * *"))
    when = cron(text, zone)
    start = datetime(2026, month, 1, tzinfo=UTC) + minutes * MINUTE

    assert when.after(start) == slow(text, ZoneInfo(zone), start)


def matches(field: str, value: int, most: int) -> bool:
    allowed = set[int]()
    for part in field.split(","):
        numbers, _, step = part.partition("/")
        first, _, last = numbers.partition("-")
        low, high = (0, most) if first == "*" else (int(first), int(last or first))
        allowed |= set(range(low, high + 1, int(step or 1)))
    return value in allowed


def slow(text: str, zone: ZoneInfo, start: datetime) -> datetime:
    """Go on minute by minute until the clock shows the moment, or has just skipped it."""
    minute, hour, *_ = text.split()
    always = minute.startswith("*") or hour.startswith("*")

    def hits(wall: datetime) -> bool:
        return matches(minute, wall.minute, 59) and matches(hour, wall.hour, 23)

    def is_gap(wall: datetime) -> bool:
        back = wall.replace(tzinfo=zone).astimezone(UTC).astimezone(zone)
        return back.replace(tzinfo=None) != wall

    now = start.replace(second=0, microsecond=0)
    while True:
        now += MINUTE
        local = now.astimezone(zone)
        wall = local.replace(tzinfo=None)
        if hits(wall) and (local.fold == 0 or always):
            return now
        for skipped in (30, 60):
            missed = wall - skipped * MINUTE
            instant = missed.replace(tzinfo=zone).astimezone(UTC)
            if is_gap(missed) and hits(missed) and instant == now:
                return now
