"""The scheduler: which jobs are due, who runs beside whom, what is remembered of it.

No test here waits for a clock: the scheduler gets one that the test moves, and instead of volumes
and hosts something that obeys the test.
"""

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buttervolume.errors import ButtervolumeError, NoSuchVolume
from buttervolume.hosts.replication import Replication
from buttervolume.jobs import scheduler as module
from buttervolume.jobs.schedule import Contents, Job, Schedule, Take
from buttervolume.jobs.scheduler import (
    POOL,
    Memory,
    Scheduler,
    due_jobs,
    failed,
    is_due,
    load,
    save,
    settle,
    succeeded,
)
from buttervolume.store.retention import Pattern
from buttervolume.store.snapshots import Purged, Snapshots, Taken
from tests.support.wait import wait_until

NOON = datetime(2026, 5, 6, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
SLACK = timedelta(seconds=30)


def job(minutes: int = 60, volume: str = "db", *, active: bool = True) -> Job:
    return Job(volume, "snapshot", minutes, active, Take())


# Due or not


def test_what_never_ran_is_due_at_once() -> None:
    assert is_due(job(minutes=7 * 24 * 60), Memory(), NOON, SLACK)


@pytest.mark.parametrize(
    ("passed", "due"),
    [
        (timedelta(), False),
        (timedelta(minutes=59, seconds=29), False),
        (timedelta(minutes=59, seconds=30), True),
        (timedelta(minutes=60), True),
        (timedelta(days=300), True),
    ],
)
def test_a_job_is_due_a_period_after_the_start_of_its_last_success_or_half_a_timer_sooner(
    passed: timedelta, due: bool
) -> None:
    memory = succeeded(NOON, "db@now")

    assert is_due(job(60), memory, NOON + passed, SLACK) is due


@pytest.mark.parametrize(
    ("failures", "minutes"),
    [(1, 1), (2, 2), (3, 4), (4, 8), (5, 16), (6, 32), (7, 60), (8, 60), (10**9, 60)],
)
def test_a_failed_job_waits_1_2_4_minutes_but_never_longer_than_its_period(
    failures: int, minutes: int
) -> None:
    memory = replace(succeeded(NOON - 9 * HOUR, "x"), failures=failures, last_failure=NOON)
    tick = timedelta(microseconds=1)

    assert not is_due(job(60), memory, NOON + minutes * MINUTE - tick, timedelta())
    assert is_due(job(60), memory, NOON + minutes * MINUTE, timedelta())


def test_a_job_that_has_failed_since_recorded_time_began_still_waits_its_period_only() -> None:
    yearly = job(365 * 24 * 60)
    memory = Memory(failures=10**12, first_failure=NOON, last_failure=NOON)

    assert not is_due(yearly, memory, NOON + timedelta(days=364), SLACK)
    assert is_due(yearly, memory, NOON + timedelta(days=365), SLACK)


@given(
    minutes=st.integers(1, 10 * 366 * 24 * 60),
    failures=st.integers(0, 10**30),
    passed=st.timedeltas(timedelta(), timedelta(days=20 * 366)),
)
def test_no_job_waits_longer_than_its_period_whatever_has_happened(
    minutes: int, failures: int, passed: timedelta
) -> None:
    memory = succeeded(NOON, "x")
    if failures:
        memory = replace(memory, failures=failures, last_failure=NOON)

    due = is_due(job(minutes), memory, NOON + passed, timedelta())

    if passed >= minutes * MINUTE:
        assert due
    if not failures:
        assert due is (passed >= minutes * MINUTE)


def test_paused_jobs_are_not_due_and_each_job_has_a_memory_of_its_own() -> None:
    fresh, old, paused = job(volume="fresh"), job(volume="old"), job(volume="paused", active=False)
    memories = {fresh.key: succeeded(NOON, "x"), old.key: succeeded(NOON - HOUR, "x")}

    assert due_jobs([fresh, old, paused], memories, NOON, SLACK) == [old]


def test_a_success_forgets_the_failures_and_a_failure_keeps_the_success() -> None:
    once = failed(succeeded(NOON, "db@noon"), NOON + HOUR, "no disk")
    twice = failed(once, NOON + 2 * HOUR, "no network")

    assert twice == Memory(
        last_success=NOON,
        outcome="db@noon",
        failures=2,
        first_failure=NOON + HOUR,
        last_failure=NOON + 2 * HOUR,
        message="no network",
    )
    assert succeeded(NOON + 3 * HOUR, "db@three") == Memory(NOON + 3 * HOUR, "db@three")


@pytest.mark.parametrize("late", [0, 0.03, 0.9])
@pytest.mark.parametrize("minutes", [1, 5, 60])
def test_a_period_does_not_drift_though_each_round_comes_a_little_late(
    minutes: int, late: float
) -> None:
    each, memory, starts = job(minutes), Memory(), list[datetime]()
    for number in range(24 * 60):
        now = NOON + number * MINUTE + number % 7 * timedelta(seconds=late / 7)
        if is_due(each, memory, now, SLACK):
            starts.append(now)
            memory = succeeded(now, "x")

    assert len(starts) == 24 * 60 / minutes
    for one, other in pairwise(starts):
        assert abs(other - one - minutes * MINUTE) < timedelta(seconds=1)


# Clocks that jump


def test_a_time_in_the_future_is_taken_for_now_and_one_in_the_past_stays() -> None:
    later = NOON + HOUR
    past = failed(succeeded(NOON - HOUR, "x"), NOON, "y")

    assert settle(past, NOON) is past
    assert settle(succeeded(later, "x"), NOON) == succeeded(NOON, "x")
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
        if due_jobs([each], {each.key: memory}, now, SLACK):
            runs.append(minute)
            memory = failed(memory, now, "y") if failing else succeeded(now, "x")
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


def test_an_hourly_job_lives_through_a_day_with_an_erratic_clock(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "db,snapshot,60")
    jumps = {
        150: timedelta(days=1),
        333: -timedelta(days=2),
        500: timedelta(days=20000),
        505: -timedelta(days=20000),
        800: -timedelta(days=9000),
        801: timedelta(days=9000),
        1100: timedelta(minutes=59),
        1101: -timedelta(minutes=59),
    }
    runs = []
    for minute in range(24 * 60):
        stage.clock.now += jumps.get(minute, timedelta()) + MINUTE
        if stage.round():
            runs.append(minute)

    assert 20 <= len(runs) <= 24 + 4
    assert max(later - sooner for sooner, later in pairwise(runs)) < 120


# The state file

moments = st.none() | st.datetimes(timezones=st.just(UTC))
memories_of_all_kinds = st.builds(
    Memory,
    last_success=moments,
    outcome=st.text(),
    failures=st.integers(0, 10**12),
    first_failure=moments,
    last_failure=moments,
    message=st.text(),
)


@given(memories=st.dictionaries(st.text(), memories_of_all_kinds, max_size=3))
def test_what_is_saved_is_loaded_again(
    tmp_path_factory: pytest.TempPathFactory, memories: dict[str, Memory]
) -> None:
    path = tmp_path_factory.getbasetemp() / "state.json"

    save(path, memories)

    assert load(path) == memories


def test_the_state_file_is_for_people_too(tmp_path: Path) -> None:
    memory = failed(succeeded(NOON, "größe@noon"), NOON + HOUR, "no network")

    save(tmp_path / "state.json", {"snapshot größe": memory})

    text = (tmp_path / "state.json").read_text()
    assert "snapshot größe" in text
    assert json.loads(text)["jobs"]["snapshot größe"] == {
        "last_success": "2026-05-06T12:00:00+00:00",
        "outcome": "größe@noon",
        "failures": 1,
        "first_failure": "2026-05-06T13:00:00+00:00",
        "last_failure": "2026-05-06T13:00:00+00:00",
        "message": "no network",
    }


def entry(**changed: object) -> bytes:
    """A state file with something else in one place of its one job."""
    values: dict[str, object] = {
        "last_success": NOON.isoformat(),
        "outcome": "x",
        "failures": 0,
        "first_failure": None,
        "last_failure": None,
        "message": "",
    }
    return json.dumps({"jobs": {"snapshot db": values | changed}}).encode()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(bytes(4096), id="zeros, as after a power failure"),
        pytest.param(entry()[:-20], id="cut off"),
        pytest.param(b"\xff\xfe", id="no text"),
        pytest.param(b"null", id="null"),
        pytest.param(b"[1, 2]", id="a list"),
        pytest.param(b"{}", id="an empty object"),
        pytest.param(b'{"jobs": []}', id="jobs in a list"),
        pytest.param(b'{"jobs": {"snapshot db": null}}', id="a job of null"),
        pytest.param(b'{"jobs": {"snapshot db": {}}}', id="a job of nothing"),
        pytest.param(b'{"jobs": {"snapshot db": "noon"}}', id="a job of text"),
        pytest.param(entry(last_success="noon"), id="a foreign date"),
        pytest.param(entry(last_success=1234567890), id="a date in seconds"),
        pytest.param(entry(last_success="0001-01-01T00:00:00+14:00"), id="a date before time"),
        pytest.param(entry(failures="many"), id="failures in words"),
        pytest.param(entry(failures=[]) + b" ", id="failures in a list, empty: none"),
        pytest.param(entry(failures=[1]), id="failures in a list"),
        pytest.param(entry(failures=float("inf")), id="failures without end"),
        pytest.param(b"[" * 100_000, id="too deep"),
    ],
)
def test_a_state_file_that_is_broken_costs_one_early_run_and_a_warning(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage(tmp_path, "db,snapshot,60")
    stage.state.write_bytes(content)

    stage.live_through_one_round()

    readable = content.endswith(b" ")
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == (0 if readable else 1)
    assert all(str(stage.state) in warning for warning in warnings)
    assert stage.doings.begun == ([] if readable else ["snapshot db"])
    assert load(stage.state)["snapshot db"].last_success == NOON

    stage.live_through_one_round()
    assert len(stage.doings.begun) <= 1, "it is whole again"


def test_a_state_file_that_cannot_be_read_is_no_obstacle_either(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage(tmp_path, "db,snapshot,60")
    stage.state.mkdir()

    stage.live_through_one_round()

    assert stage.doings.begun == ["snapshot db"]
    assert f"cannot write {stage.state}" in caplog.text


def test_without_a_state_file_nothing_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage(tmp_path, "db,snapshot,60")

    stage.live_through_one_round()

    assert stage.doings.begun == ["snapshot db"]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_time_without_an_offset_is_local_and_stops_no_round(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "db,snapshot,60")
    local = NOON.astimezone().replace(tzinfo=None)
    stage.state.write_bytes(entry(last_success=local.isoformat()))

    stage.live_through_one_round()
    assert stage.doings.begun == []
    stage.clock.now += HOUR
    stage.live_through_one_round()
    assert stage.doings.begun == ["snapshot db"]


def test_a_time_of_another_zone_is_the_same_moment(tmp_path: Path) -> None:
    elsewhere = NOON.astimezone(timezone(timedelta(hours=9)))
    (tmp_path / "state").write_bytes(entry(last_success=elsewhere.isoformat()))

    assert load(tmp_path / "state")["snapshot db"].last_success == NOON


# A scheduler whose clock and doings are the test's


class Clock:
    """Shows what the test wants."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now


class Doings:
    """Stands in for snapshots and replication: notes what it is to do, and obeys the test."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        """What was begun, as the keys of the jobs."""
        self.ended: list[str] = []
        self.failing: dict[str, Exception] = {}
        """What fails."""
        self.most: Counter[str] = Counter()
        """How many of a kind were under way at once."""
        self.left_out: tuple[str, ...] = ()
        self.purged = Purged(("one", "two", "three"), {})
        self.name: str | None = "db@now"
        self._gates: dict[str, threading.Event] = {}
        self._under_way: Counter[str] = Counter()
        # protects the lists and counts
        self._guard = threading.Lock()

    def hold(self, *keys: str) -> None:
        """Let these hang, as with a dead host, until they are let go."""
        for key in keys:
            self._gates[key] = threading.Event()

    def let_go(self, *keys: str) -> None:
        for key in keys:
            self._gates.pop(key).set()

    def close(self) -> None:
        for gate in self._gates.values():
            gate.set()

    def _do(self, key: str) -> None:
        gate = self._gates.get(key)
        with self._guard:
            self._under_way[key] += 1
            self.most[key] = max(self.most[key], self._under_way[key])
            self.begun.append(key)
        if gate is not None:
            assert gate.wait(60)
        with self._guard:
            self._under_way[key] -= 1
            self.ended.append(key)
        if key in self.failing:
            raise self.failing[key]

    def take(self, volume: str) -> Taken:
        self._do(f"snapshot {volume}")
        return Taken(f"{volume}@now", self.left_out)

    def purge(self, volume: str, pattern: Pattern) -> Purged:
        self._do(f"purge:{':'.join(age.text for age in pattern.ages)} {volume}")
        return self.purged

    def replicate(self, volume: str, host: str) -> str | None:
        self._do(f"replicate:{host} {volume}")
        return self.name

    def synchronize(self, volumes: Sequence[str], hosts: Sequence[str]) -> list[Taken]:
        for volume in volumes:
            self._do(f"synchronize:{','.join(hosts)} {volume}")
        return [Taken(f"{volume}@now", self.left_out) for volume in volumes]


class Stage:
    """A schedule, a clock, doings, and the schedulers that live with them one after the other."""

    def __init__(self, directory: Path, *rows: str, timer: int = 60) -> None:
        self.file = directory / "schedule.csv"
        self.state = directory / "schedule.csv.state.json"
        self.clock = Clock()
        self.doings = Doings()
        self.schedule = Schedule(self.file)
        self.timer = timer
        self.write(*rows)
        self.scheduler = self.new_scheduler()

    def write(self, *rows: str) -> None:
        """Make these rows the schedule, as somebody with an editor would."""
        self.file.write_text("".join(f"{row}\n" for row in rows))

    def new_scheduler(self) -> Scheduler:
        self.scheduler = Scheduler(
            self.schedule,
            cast(Snapshots, self.doings),
            cast(Replication, self.doings),
            self.state,
            self.timer,
            self.clock,
        )
        return self.scheduler

    def wait_until_idle(self) -> None:
        """Wait until all that was handed out has ended and is remembered."""
        with self.scheduler._changed:
            assert self.scheduler._changed.wait_for(lambda: not self.scheduler._running, 30)

    def round(self) -> list[str]:
        """Let one round pass with all that it sets off: what that was."""
        before = len(self.doings.begun)
        self.scheduler.round()
        self.wait_until_idle()
        return self.doings.begun[before:]

    def memory(self, key: str = "snapshot db") -> Memory:
        return self.scheduler._memories.get(key, Memory())

    def live_through_one_round(self) -> None:
        """Start a daemon's scheduler, let it do what it finds due, and stop it."""
        self.new_scheduler().start()
        self.round()
        self.stop()

    def stop(self, patience: float = 30) -> None:
        """Stop the scheduler as the daemon does."""
        self.scheduler.stop(time.monotonic() + patience)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    stage.doings.close()


def lines(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]


# Restarts


def test_ten_restarts_within_the_period_make_one_snapshot(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "db,snapshot,60")

    for _ in range(10):
        stage.live_through_one_round()
        stage.clock.now += 5 * MINUTE

    assert stage.doings.begun == ["snapshot db"]
    stage.clock.now += 10 * MINUTE
    stage.live_through_one_round()
    assert stage.doings.begun == ["snapshot db"] * 2


def test_a_weekly_job_runs_on_a_machine_that_reboots_daily(tmp_path: Path) -> None:
    stage = Stage(tmp_path, f"db,snapshot,{7 * 24 * 60}")
    days = list[int]()
    for day in range(30):
        stage.new_scheduler().start()
        for hour in range(8):
            stage.clock.now = NOON + timedelta(days=day, hours=hour)
            stage.round()
        stage.stop()
        days += [day] * (len(stage.doings.begun) - len(days))

    assert days == [0, 7, 14, 21, 28]


def test_failures_survive_a_restart_and_the_retries_go_on_where_they_were(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "db,snapshot,60")
    stage.doings.failing["snapshot db"] = NoSuchVolume("db")
    stage.live_through_one_round()
    stage.clock.now = NOON + timedelta(minutes=40)
    stage.live_through_one_round()

    stage.live_through_one_round()

    assert len(stage.doings.begun) == 2, "after 2 failures it waits 2 minutes"
    assert load(stage.state)["snapshot db"] == Memory(
        failures=2,
        first_failure=NOON,
        last_failure=NOON + 40 * MINUTE,
        message="db: no such volume",
    )


def test_the_state_is_saved_as_soon_as_a_job_has_ended(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "db,snapshot,60", "other,snapshot,60")
    stage.doings.hold("snapshot other")

    stage.scheduler.start()

    wait_until(lambda: stage.state.exists() and "snapshot db" in load(stage.state))
    assert "snapshot other" not in load(stage.state)
    stage.doings.let_go("snapshot other")
    wait_until(lambda: "snapshot other" in load(stage.state))
    written = stage.state.stat().st_ino
    stage.stop()
    assert stage.state.stat().st_ino == written, "there was nothing to add"


def test_a_state_that_could_not_be_saved_is_saved_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage(tmp_path, "db,snapshot,60")
    stage.state = tmp_path / "full/state.json"

    stage.new_scheduler().start()

    wait_until(lambda: "cannot write" in caplog.text)
    stage.state.parent.mkdir()
    stage.stop()

    assert load(stage.state)["snapshot db"].last_success == NOON


def test_the_memory_of_a_removed_job_goes_and_that_of_a_paused_one_stays(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "gone,snapshot,60", "paused,snapshot,60")
    stage.live_through_one_round()

    stage.write("paused,snapshot,60,False", "new,snapshot,60")
    stage.live_through_one_round()

    assert set(load(stage.state)) == {"snapshot paused", "snapshot new"}
    stage.write("paused,snapshot,60", "gone,snapshot,60", "new,snapshot,60")
    stage.doings.begun.clear()
    stage.live_through_one_round()
    assert stage.doings.begun == ["snapshot gone"]


def test_a_file_that_is_gone_for_a_moment_makes_nothing_forgotten(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "db,snapshot,60")
    stage.live_through_one_round()
    before = load(stage.state)

    stage.file.rename(tmp_path / "schedule.csv~")  # as an editor does
    stage.live_through_one_round()
    stage.write()
    stage.live_through_one_round()
    (tmp_path / "schedule.csv~").replace(stage.file)
    stage.live_through_one_round()

    assert stage.doings.begun == ["snapshot db"]
    assert load(stage.state) == before


def test_a_memory_that_has_not_changed_is_not_written_again(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "db,snapshot,60")
    stage.live_through_one_round()
    before = stage.state.stat()

    stage.clock.now += MINUTE
    stage.live_through_one_round()
    stage.live_through_one_round()

    after = stage.state.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_all_paused_nothing_runs_and_nothing_is_forgotten(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "db,snapshot,60", "new,snapshot,60,False")
    stage.live_through_one_round()
    before = load(stage.state)

    stage.schedule.pause_all()
    stage.clock.now += 5 * HOUR
    stage.live_through_one_round()

    assert load(stage.state) == before
    stage.schedule.resume_all()
    stage.live_through_one_round()
    assert stage.doings.begun == ["snapshot db"] * 2


# Who runs beside whom


def test_a_job_that_takes_long_is_never_begun_a_second_time_meanwhile(stage: Stage) -> None:
    stage.write("db,snapshot,1", "other,snapshot,1")
    stage.doings.hold("snapshot db")
    stage.scheduler.round()
    wait_until(lambda: len(stage.doings.begun) == 2)

    for _ in range(30):
        stage.clock.now += MINUTE
        stage.scheduler.round()
    assert stage.doings.begun.count("snapshot db") == 1

    stage.doings.let_go("snapshot db")
    stage.wait_until_idle()
    assert stage.round().count("snapshot db") == 1
    assert stage.doings.most == {"snapshot db": 1, "snapshot other": 1}


def test_what_runs_and_since_when_can_be_seen(stage: Stage) -> None:
    stage.write("db,snapshot,60")
    stage.doings.hold("snapshot db")
    stage.scheduler.round()
    assert stage.scheduler.activity().running == {"snapshot db": NOON}

    stage.doings.let_go("snapshot db")
    stage.wait_until_idle()

    activity = stage.scheduler.activity()
    assert not activity.running
    assert activity.memories["snapshot db"].last_success == NOON
    assert activity.since_round >= 0


@pytest.mark.parametrize("second", ["db,snapshot,1", "db,snapshot,60", "db, snapshot, 1,True"])
def test_a_row_that_is_there_twice_is_one_job(stage: Stage, second: str) -> None:
    stage.write("db,snapshot,1", second)
    stage.doings.hold("snapshot db")

    stage.scheduler.round()
    wait_until(lambda: stage.doings.begun)
    stage.doings.let_go("snapshot db")
    stage.wait_until_idle()

    assert stage.doings.begun == ["snapshot db"]


def test_the_period_counts_from_the_start_of_a_run_however_long_it_took(stage: Stage) -> None:
    stage.write("db,snapshot,60")
    stage.doings.hold("snapshot db")
    stage.scheduler.round()
    wait_until(lambda: stage.doings.begun)
    stage.clock.now += timedelta(minutes=50)
    stage.doings.let_go("snapshot db")
    stage.wait_until_idle()

    assert stage.memory().last_success == NOON
    assert stage.round() == []
    stage.clock.now = NOON + HOUR
    assert stage.round() == ["snapshot db"]


def test_jobs_of_different_volumes_run_side_by_side(stage: Stage) -> None:
    keys = [f"snapshot v{number}" for number in range(POOL)]
    stage.write(*(f"v{number},snapshot,60" for number in range(POOL)))
    stage.doings.hold(*keys)

    stage.scheduler.round()

    wait_until(lambda: sorted(stage.doings.begun) == keys, what="all to be under way at once")
    assert stage.doings.ended == []


def test_a_dead_host_delays_no_other_job(stage: Stage) -> None:
    volumes = [f"v{number}" for number in range(2 * POOL)]
    dead = [f"{action} {v}" for v in volumes for action in ("replicate:dead", "synchronize:dead,x")]
    others = [
        "snapshot v0",
        "purge:1h:1d v0",
        "replicate:alive v0",
        "replicate:alive v1",
        "synchronize:alive v0",
        "synchronize:alive,well v0",
        "snapshot v9",
    ]
    stage.write(*(",".join([*reversed(quoted(key)), "60"]) for key in dead + others))
    stage.doings.hold(*dead)

    for _ in range(5):
        stage.scheduler.round()
        stage.clock.now += MINUTE

    wait_until(lambda: sorted(stage.doings.ended) == sorted(others), what="the others to be done")


def quoted(key: str) -> list[str]:
    """The action and the volume of a key, as the CSV file has them."""
    return [f'"{part}"' for part in key.split(" ")]


def test_to_one_host_goes_one_transfer_at_a_time(stage: Stage) -> None:
    stage.write("a,replicate:host,60", "b,replicate:host,60")
    stage.doings.hold("replicate:host a")

    stage.scheduler.round()
    stage.scheduler.round()
    wait_until(lambda: stage.doings.begun)
    assert stage.doings.begun == ["replicate:host a"]

    stage.doings.let_go("replicate:host a")
    stage.wait_until_idle()
    assert stage.doings.begun == ["replicate:host a", "replicate:host b"]


Change = Callable[[Schedule], object]
CHANGES: dict[str, Change] = {
    "removed": lambda schedule: schedule.apply("b", "replicate:host", "0"),
    "paused": lambda schedule: schedule.apply("b", "replicate:host", "pause"),
    "all paused": lambda schedule: schedule.pause_all(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_job_that_is_switched_off_while_it_waits_for_its_turn_is_not_run(
    stage: Stage, change: Change, caplog: pytest.LogCaptureFixture
) -> None:
    stage.write("a,replicate:host,60", "b,replicate:host,60")
    stage.doings.hold("replicate:host a")
    stage.scheduler.round()
    wait_until(lambda: stage.doings.begun)

    change(stage.schedule)
    stage.doings.let_go("replicate:host a")
    stage.wait_until_idle()

    assert stage.doings.begun == ["replicate:host a"]
    assert stage.memory("replicate:host b") == Memory()
    assert lines(caplog, logging.ERROR) == []


def test_a_job_that_could_not_be_handed_out_is_so_in_the_next_round(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.write("db,snapshot,60")

    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as broken:
        broken.setattr(module, "Workers", refuse)
        with pytest.raises(RuntimeError):
            stage.scheduler.round()

    assert stage.round() == ["snapshot db"]


# 5,000 rows


def test_5000_jobs_run_once_each_and_the_file_is_read_once(stage: Stage) -> None:
    stage.write(*(f"v{number},snapshot,60" for number in range(5000)))
    wait_until(lambda: stage.schedule.read() is stage.schedule.read(), what="the file to settle")

    assert len(set(stage.round())) == 5000
    contents = stage.schedule.read()
    for _ in range(20):
        stage.clock.now += MINUTE
        assert stage.round() == []
    assert stage.schedule.read() is contents
    stage.clock.now = NOON + HOUR
    assert len(stage.round()) == 5000
    assert set(stage.doings.most.values()) == {1}


# What is said and remembered


def test_what_was_done_is_said_and_remembered(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    stage.write("a,snapshot,60", "b,purge:1h:1d,60", "c,replicate:h,60", "d,synchronize:h,60")

    stage.round()

    outcomes = {
        "snapshot a": "a@now",
        "purge:1h:1d b": "3 purged",
        "replicate:h c": "db@now",
        "synchronize:h d": "synchronized",
    }
    assert {key: stage.memory(key) for key in outcomes} == {
        key: Memory(NOON, outcome) for key, outcome in outcomes.items()
    }
    said = {f"{key}: {outcome}" for key, outcome in outcomes.items()}
    assert set(lines(caplog, logging.INFO)) == said


def test_a_replication_that_had_nothing_to_send_is_a_success_and_called_so(stage: Stage) -> None:
    stage.write("db,replicate:host,60")
    stage.doings.name = None

    stage.round()

    assert stage.memory("replicate:host db") == Memory(NOON, "unchanged")


@pytest.mark.parametrize("action", ["snapshot", "synchronize:host"])
def test_subvolumes_that_are_in_no_snapshot_are_warned_of(
    stage: Stage, action: str, caplog: pytest.LogCaptureFixture
) -> None:
    stage.write(f"db,{action},60")
    stage.doings.left_out = ("cache", "tmp/x")

    stage.round()

    [warning] = lines(caplog, logging.WARNING)
    assert f"{action} db" in warning
    assert "cache, tmp/x" in warning


ACTIONS = ["snapshot", "purge:1h:1d", "replicate:host", "synchronize:a,b"]


@pytest.mark.parametrize("action", ACTIONS)
def test_a_failure_is_logged_as_one_with_its_reason_and_remembered(
    stage: Stage, action: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    key = f"{action} db"
    stage.write(f'db,"{action}",600')
    stage.round()
    caplog.clear()

    stage.clock.now += 10 * HOUR
    first = stage.clock.now
    stage.doings.failing[key] = ButtervolumeError("the disk is full")
    assert stage.round() == [key]
    stage.clock.now += MINUTE
    stage.doings.failing[key] = ButtervolumeError("no route to host")
    assert stage.round() == [key]

    assert lines(caplog, logging.INFO) == [], "nothing is called done"
    assert lines(caplog, logging.ERROR) == [
        f"{key} failed (1 in a row): the disk is full",
        f"{key} failed (2 in a row): no route to host",
    ]
    memory = stage.memory(key)
    assert (memory.last_success, memory.failures) == (NOON, 2)
    assert (memory.first_failure, memory.last_failure) == (first, first + MINUTE)
    assert memory.message == "no route to host"

    del stage.doings.failing[key]
    stage.clock.now += 2 * MINUTE
    assert stage.round() == [key]
    memory = stage.memory(key)
    assert (memory.last_success, memory.failures) == (first + 3 * MINUTE, 0)
    assert memory.message == ""


def test_a_job_that_fails_for_hours_is_tried_after_1_2_4_minutes_then_each_period(
    stage: Stage,
) -> None:
    stage.write("db,snapshot,60")
    stage.doings.failing["snapshot db"] = NoSuchVolume("db")
    tried = []
    for minute in range(6 * 60):
        stage.clock.now = NOON + minute * MINUTE
        tried += [minute for _ in stage.round()]

    assert tried == [0, 1, 3, 7, 15, 31, 63, 123, 183, 243, 303]
    assert stage.memory().failures == len(tried)
    assert stage.memory().first_failure == NOON


def test_a_purge_that_could_not_delete_all_has_failed_and_names_the_rest(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.write("db,purge:1h:1d,60")
    stage.doings.purged = Purged(("db@1",), {"db@2": "Directory not empty"})

    stage.round()

    memory = stage.memory("purge:1h:1d db")
    assert memory.last_success is None
    assert "db@2: Directory not empty" in memory.message
    assert [memory.message in line for line in lines(caplog, logging.ERROR)] == [True]


def test_an_unexpected_fault_is_a_failure_and_kills_no_worker(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.write(*(f"v{number},snapshot,60" for number in range(3 * POOL)), "db,replicate:host,60")
    keys = [f"snapshot v{number}" for number in range(3 * POOL)] + ["replicate:host db"]
    stage.doings.failing = {key: ZeroDivisionError("of all things") for key in keys}

    assert sorted(stage.round()) == sorted(keys)

    assert "Traceback" in caplog.text
    assert "ZeroDivisionError" in stage.memory("snapshot v0").message
    assert "of all things" in stage.memory("replicate:host db").message
    stage.doings.failing = {}
    stage.clock.now += MINUTE
    assert sorted(stage.round()) == sorted(keys)
    assert stage.memory("snapshot v0").failures == 0


class BrokenSchedule(Schedule):
    """A schedule whose first readings fail."""

    def __init__(self, path: Path, problems: Collection[Exception]) -> None:
        super().__init__(path)
        self._problems = list(problems)

    def read(self) -> Contents:
        if self._problems:
            raise self._problems.pop(0)
        return super().read()


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (ButtervolumeError("cannot read the schedule"), "cannot read the schedule"),
        (ZeroDivisionError("of all things"), "Traceback"),
    ],
)
def test_a_round_that_fails_is_logged_and_the_next_one_comes(
    tmp_path: Path, problem: Exception, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage(tmp_path, "db,snapshot,60", timer=1)
    stage.schedule = BrokenSchedule(stage.file, [problem])

    stage.new_scheduler().start()

    wait_until(lambda: stage.doings.ended, what="the second round")
    stage.stop()
    assert words in caplog.text
    assert load(stage.state)["snapshot db"].outcome == "db@now"


def test_a_file_that_is_a_directory_stops_nothing_for_good(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage(tmp_path, timer=1)
    stage.file.unlink()
    stage.file.mkdir()
    stage.scheduler.start()
    wait_until(lambda: "read the schedule" in caplog.text)

    stage.file.rmdir()
    stage.write("db,snapshot,60")

    wait_until(lambda: stage.doings.ended, what="a round with the file")
    stage.stop()
    assert "Traceback" not in caplog.text


# The end


def stopping(stage: Stage) -> threading.Thread:
    """Begin to stop; return when nothing new begins any more."""
    thread = threading.Thread(target=stage.stop, daemon=True)
    thread.start()
    wait_until(lambda: stage.scheduler._stopping)
    return thread


def test_stop_waits_for_what_runs_and_remembers_it(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "db,snapshot,60")
    stage.doings.hold("snapshot db")
    stage.scheduler.start()
    wait_until(lambda: stage.doings.begun)

    thread = stopping(stage)
    stage.doings.let_go("snapshot db")
    thread.join(30)

    assert load(stage.state)["snapshot db"] == Memory(NOON, "db@now")


def test_what_fails_because_all_ends_is_no_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage(tmp_path, "db,replicate:host,60")
    stage.doings.hold("replicate:host db")
    stage.doings.failing["replicate:host db"] = ButtervolumeError("the transfer was cancelled")
    stage.scheduler.start()
    wait_until(lambda: stage.doings.begun)

    thread = stopping(stage)
    stage.doings.let_go("replicate:host db")
    thread.join(30)

    assert stage.memory("replicate:host db") == Memory()
    assert lines(caplog, logging.ERROR) == []
    del stage.doings.failing["replicate:host db"]
    stage.live_through_one_round()
    assert stage.doings.begun == ["replicate:host db"] * 2, "it is due at once"


def test_what_waits_for_its_turn_is_not_begun_any_more(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "a,replicate:host,60", "b,replicate:host,60")
    stage.doings.hold("replicate:host a")
    stage.scheduler.start()
    wait_until(lambda: stage.doings.begun)

    thread = stopping(stage)
    stage.doings.let_go("replicate:host a")
    thread.join(30)
    stage.scheduler.round()

    assert stage.doings.ended == ["replicate:host a"]
    assert set(load(stage.state)) == {"replicate:host a"}


def test_stop_comes_back_in_time_while_a_job_hangs_and_saves_the_rest(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "db,snapshot,60", "db,replicate:dead,60")
    stage.doings.hold("replicate:dead db")
    stage.scheduler.start()
    wait_until(lambda: stage.memory().last_success and len(stage.doings.begun) == 2)

    started = time.monotonic()
    stage.stop(patience=0.2)

    assert time.monotonic() - started < 2
    assert set(load(stage.state)) == {"snapshot db"}
    stage.doings.close()


class HangingSchedule(Schedule):
    """A schedule on a disk that does not answer."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.asked, self.answer = threading.Event(), threading.Event()

    def read(self) -> Contents:
        self.asked.set()
        assert self.answer.wait(60)
        return super().read()


def test_stop_comes_back_in_time_while_the_disk_hangs(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "db,snapshot,60")
    stage.schedule = schedule = HangingSchedule(stage.file)
    stage.new_scheduler().start()
    assert schedule.asked.wait(10)

    started = time.monotonic()
    stage.stop(patience=0.2)

    assert time.monotonic() - started < 2
    schedule.answer.set()
    stage.scheduler._thread.join(10)
    assert stage.doings.begun == [], "nothing begins after the end"
