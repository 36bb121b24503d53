"""What is remembered of a job, and when it is due: no thread, no clock, no file."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buttervolume.jobs.actions import Snapshot
from buttervolume.jobs.memory import (
    Memory,
    failed,
    may_start,
    settle,
    succeeded,
)
from buttervolume.jobs.schedule import Job
from buttervolume.jobs.when import parse_when

NOON = datetime(2026, 5, 6, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
SLACK = timedelta(seconds=30)


def job(when: int | str = 60, volume: str = "db") -> Job:
    return Job(volume, "snapshot", parse_when(str(when)), True, Snapshot())


def due(job: Job, memory: Memory, now: datetime, slack: timedelta) -> bool:
    return may_start(job, memory, now, slack) <= now


# Due or not


def test_what_never_ran_is_due_at_once() -> None:
    assert due(job(7 * 24 * 60), Memory(), NOON, SLACK)


@pytest.mark.parametrize(
    ("passed", "expected"),
    [
        (timedelta(), False),
        (timedelta(minutes=59, seconds=29), False),
        (timedelta(minutes=59, seconds=30), True),
        (timedelta(minutes=60), True),
        (timedelta(days=300), True),
    ],
)
def test_a_job_is_due_a_period_after_the_start_of_its_last_success_or_half_a_timer_sooner(
    passed: timedelta, expected: bool
) -> None:
    memory = succeeded(Memory(), NOON, "db@now")

    assert due(job(60), memory, NOON + passed, SLACK) is expected


@pytest.mark.parametrize(
    ("failures", "minutes"),
    [(1, 1), (2, 2), (3, 4), (4, 8), (5, 16), (6, 30), (7, 30), (10**9, 30)],
)
def test_a_failed_job_waits_1_2_4_minutes_at_most_30(failures: int, minutes: int) -> None:
    memory = replace(
        succeeded(Memory(), NOON - 9 * HOUR, "x"), failures=failures, last_failure=NOON
    )
    tick = timedelta(microseconds=1)

    assert not due(job(60), memory, NOON + minutes * MINUTE - tick, timedelta())
    assert due(job(60), memory, NOON + minutes * MINUTE, timedelta())


def test_a_job_that_has_failed_since_recorded_time_began_is_still_tried_every_30_minutes() -> None:
    memory = Memory(failures=10**12, first_failure=NOON, last_failure=NOON)

    for minutes in (30, 365 * 24 * 60):
        assert not due(job(minutes), memory, NOON + 29 * MINUTE, SLACK)
        assert due(job(minutes), memory, NOON + 30 * MINUTE, SLACK)
    assert due(job(5), memory, NOON + 5 * MINUTE, SLACK), "never later than its period"


@given(
    minutes=st.integers(1, 10 * 366 * 24 * 60),
    failures=st.integers(0, 10**30),
    passed=st.timedeltas(timedelta(), timedelta(days=20 * 366)),
)
def test_no_job_waits_longer_than_its_period_whatever_has_happened(
    minutes: int, failures: int, passed: timedelta
) -> None:
    memory = succeeded(Memory(), NOON, "x")
    if failures:
        memory = replace(memory, failures=failures, last_failure=NOON)

    is_due = due(job(minutes), memory, NOON + passed, timedelta())

    if passed >= minutes * MINUTE:
        assert is_due
    if not failures:
        assert is_due is (passed >= minutes * MINUTE)


def test_a_success_forgets_the_failures_and_a_failure_keeps_the_success() -> None:
    once = failed(succeeded(Memory(), NOON, "db@noon"), NOON + HOUR, "no disk")
    twice = failed(once, NOON + 2 * HOUR, "no network")

    assert twice == Memory(
        last_success=NOON,
        outcome="db@noon",
        failures=2,
        first_failure=NOON + HOUR,
        last_failure=NOON + 2 * HOUR,
        message="no network",
    )
    assert succeeded(Memory(), NOON + 3 * HOUR, "db@three") == Memory(NOON + 3 * HOUR, "db@three")


@pytest.mark.parametrize("late", [0, 0.03, 0.9])
@pytest.mark.parametrize("minutes", [1, 5, 60])
def test_a_period_does_not_drift_though_each_round_comes_a_little_late(
    minutes: int, late: float
) -> None:
    each, memory, starts = job(minutes), Memory(), list[datetime]()
    for number in range(24 * 60):
        now = NOON + number * MINUTE + number % 7 * timedelta(seconds=late / 7)
        if due(each, memory, now, SLACK):
            starts.append(now)
            memory = succeeded(Memory(), now, "x")

    assert len(starts) == 24 * 60 / minutes
    for one, other in pairwise(starts):
        assert abs(other - one - minutes * MINUTE) < timedelta(seconds=1)


# Clocks that jump


def test_a_time_in_the_future_is_taken_for_now_and_one_in_the_past_stays() -> None:
    later = NOON + HOUR
    past = failed(succeeded(Memory(), NOON - HOUR, "x"), NOON, "y")

    assert settle(past, NOON) == past
    assert settle(succeeded(Memory(), later, "x"), NOON) == succeeded(Memory(), NOON, "x")
    assert settle(failed(Memory(), later, "y"), NOON) == failed(Memory(), NOON, "y")
    assert settle(replace(past, last_failure=later), NOON) == past


Jumps = dict[int, timedelta]
"""By how much the clock is wrong from some minute on."""


def live(minutes: int, length: int, jumps: Jumps, *, failing: bool = False) -> list[int]:
    """Let a job live for some real minutes, under a clock that jumps: when it has run."""
    each, memory, runs, wrong = job(minutes), Memory(), list[int](), timedelta()
    for minute in range(length):
        wrong += jumps.get(minute, timedelta())
        now = NOON + minute * MINUTE + wrong
        memory = settle(memory, now)
        if due(each, memory, now, SLACK):
            runs.append(minute)
            memory = failed(memory, now, "y") if failing else succeeded(Memory(), now, "x")
    return runs


years = st.timedeltas(-timedelta(days=3000), timedelta(days=3000))
jumps_of_hours = st.dictionaries(st.integers(1, 600), years | st.timedeltas(-HOUR, HOUR))


@given(minutes=st.integers(1, 200), jumps=jumps_of_hours, failing=st.booleans())
def test_no_clock_stops_a_job_or_sets_off_a_storm(
    minutes: int, jumps: Jumps, failing: bool
) -> None:
    length = 600 + 3 * minutes
    runs = live(minutes, length, jumps, failing=failing)

    quiet = max(jumps, default=0)
    assert [r for r in runs if quiet <= r <= quiet + minutes], "it runs within a period"
    forward = sum(jump > timedelta() for jump in jumps.values())
    usual = len(live(minutes, length, {}, failing=failing))
    assert len(runs) <= usual + forward + failing * 12 * forward
    if not failing:
        assert len(runs) <= length / minutes + 1 + forward
