"""The rules of the soak find what they are for: a leak, a job that is late, a run that is lost."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from tests.soak.rules import Interval, Job, Run, Sample, When, growing, lives, untimely

START = datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
HOURLY = When(60)
MINUTE = timedelta(minutes=1)


def at(minutes: float) -> datetime:
    return START + timedelta(minutes=minutes)


def samples(memory: Sequence[int], files: Sequence[int] | None = None) -> list[Sample]:
    return [
        Sample(at(number), 1, kilobytes, 20, 9, 0, files[number] if files else 3)
        for number, kilobytes in enumerate(memory)
    ]


def job(when: When = HOURLY, until: float = 240, *, is_new: bool = True) -> Job:
    return Job("db", "snapshot", when, START, at(until), is_new=is_new)


def runs(*minutes: float, failed: Sequence[float] = ()) -> list[Run]:
    everything = sorted([*minutes, *failed])
    return [Run(at(m), at(m), "no route" if m in failed else "") for m in everything]


def test_what_goes_up_and_down_is_flat() -> None:
    assert not list(growing(samples([40_000, 44_000, 41_000, 40_500] * 20)))


def test_a_single_peak_does_not_matter() -> None:
    memory = [40_000] * 80
    memory[70] = 90_000
    assert not list(growing(samples(memory)))


def test_a_slow_leak_of_memory_is_found() -> None:
    [found] = growing(samples([40_000 + 200 * number for number in range(80)]))
    assert found.startswith("memory grew from 41900 to 53900")


def test_a_file_left_over_each_ten_minutes_is_found() -> None:
    [found] = growing(samples([40_000] * 80, [3 + number // 10 for number in range(80)]))
    assert found.startswith("files grew")


def test_each_start_of_a_daemon_is_looked_at_by_itself_once_it_has_settled() -> None:
    first = [Sample(at(n), 1, 50_000 + n, 20, 9, 0, 3) for n in range(10)]
    second = [Sample(at(n), 2, 40_000 + n, 20, 9, 0, 3) for n in range(10, 20)]
    assert [len(life) for life in lives([*first, *second], 4 * MINUTE)] == [6, 6]


@pytest.mark.parametrize(
    ("ran", "outages"),
    [
        pytest.param(runs(0, 60, 120, 180, 240), [], id="each when it is due"),
        pytest.param(runs(0.1, 62.2, 124.3, 186.4), [], id="each one look later"),
        pytest.param(
            runs(0.1, 65.2, 125.2, 185.2), [Interval(at(58), at(65))], id="the daemon was away"
        ),
        pytest.param(
            runs(0.1, 63.2, 123.2, 183.2, failed=(60.1, 61.2)),
            [],
            id="failed, and tried again in time",
        ),
    ],
)
def test_runs_in_time_are_in_order(ran: list[Run], outages: list[Interval]) -> None:
    assert not list(untimely(job(until=241), ran, outages))


@pytest.mark.parametrize(
    ("ran", "outages", "message"),
    [
        pytest.param(
            runs(0.1, 70.2, 130.2, 190.2), [], "run at 25 01:40:12", id="two looks too late"
        ),
        pytest.param(runs(0.1, 60.1, 180.1), [], "run at 25 03:30:06", id="one is lost"),
        pytest.param(runs(0.1, 60.1, 120.1), [], "not run until", id="the last is lost"),
        pytest.param(runs(), [], "not run until", id="it never ran"),
        pytest.param(
            runs(0.1, 30.1, 90.1, 150.1, 210.1), [], "due only at", id="it came too early"
        ),
        pytest.param(
            runs(0.1, 75.2, 135.2, 195.2),
            [Interval(at(58), at(65))],
            "run at 25 01:45:12",
            id="it came long after the daemon was back",
        ),
        pytest.param(
            runs(0.1, 120.1, 180.1, failed=(60.1,)), [], "run at 25 02:30:06", id="no second try"
        ),
    ],
)
def test_runs_out_of_time_are_found(ran: list[Run], outages: list[Interval], message: str) -> None:
    [found] = untimely(job(until=241), ran, outages)
    assert message in found


def test_minutes_of_the_hour_are_looked_at_one_by_one() -> None:
    when = When(minutes=frozenset((5, 35)))
    assert not list(untimely(job(when, until=90), runs(5, 35.5, 65), []))
    [found] = untimely(job(when, until=90), runs(5, 65), [])
    assert "due at 25 01:05:00" in found


def test_a_volume_that_has_come_back_may_remember_its_last_run() -> None:
    assert not list(untimely(job(until=115, is_new=False), runs(20.0, 80.0), []))
