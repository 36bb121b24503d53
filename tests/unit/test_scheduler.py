"""The scheduler: which jobs are due, who runs beside whom, what is remembered of it.

No test here waits for a clock: the scheduler gets one that the test moves, and instead of volumes
and hosts something that obeys the test.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import cast

import pytest

from buttervolume.errors import ButtervolumeError, NoSuchVolume, NotOwner, TooManyTransfers
from buttervolume.hosts.replication import Replication
from buttervolume.hosts.transfers import Transfers
from buttervolume.jobs import scheduler as module
from buttervolume.jobs.actions import Tools
from buttervolume.jobs.history import History
from buttervolume.jobs.memory import Memory
from buttervolume.jobs.schedule import Contents, Schedule
from buttervolume.jobs.scheduler import POOL, TRANSFERS_NOW, Scheduler
from buttervolume.store.retention import Pattern
from buttervolume.store.snapshots import Purged, Snapshots, Taken
from tests.support.wait import wait_until

NOON = datetime(2026, 5, 6, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
SLACK = timedelta(seconds=30)


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
        self.unchanged: dict[str, str] = {}
        """The volumes that have not changed since a snapshot."""
        self.purged = Purged(("one", "two", "three"), {})
        self.name: str | None = "db@now"
        self.most_at_once = 0
        """How many of all kinds were under way at once."""
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
            self.most_at_once = max(self.most_at_once, self._under_way.total())
            self.begun.append(key)
        if gate is not None:
            assert gate.wait(60)
        with self._guard:
            self._under_way[key] -= 1
            self.ended.append(key)
        if key in self.failing:
            raise self.failing[key]

    def unchanged_since(self, volume: str) -> str | None:
        return self.unchanged.get(volume)

    def take(self, volume: str) -> Taken:
        self._do(f"snapshot {volume}")
        return Taken(f"{volume}@now", self.left_out)

    def purge(self, volume: str, pattern: Pattern) -> Purged:
        self._do(f"purge:{pattern.text} {volume}")
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
        self.database = directory / "history.sqlite"
        self.schedule = Schedule(self.file)
        self.volumes: tuple[str, ...] | None = None
        """The volumes that there are; None for all that the schedule names."""
        self._named: tuple[str, ...] = ()
        self.timer = timer
        self.write(*rows)
        self.scheduler = self.new_scheduler()

    def write(self, *rows: str) -> None:
        """Make these rows the schedule, as somebody with an editor would."""
        self.file.write_text("".join(f"{row}\n" for row in rows))

    def new_scheduler(self) -> Scheduler:
        self.history = History(self.database, self.clock)
        transfers = Transfers()
        tools = Tools(cast(Snapshots, self.doings), cast(Replication, self.doings), transfers)
        self.scheduler = Scheduler(
            self.schedule, tools, self.history, self.names, self.timer, self.clock
        )
        return self.scheduler

    def names(self) -> tuple[str, ...]:
        """The volumes that there are, the same object as before while they are the same."""
        if self.volumes is not None:
            return self.volumes
        jobs = self.schedule.read().jobs
        named = tuple(sorted({job.volume for job in jobs if "*" not in job.volume}))
        if named != self._named:
            self._named = named
        return self._named

    def start(self) -> None:
        """Start a new scheduler as the daemon does."""
        self.new_scheduler().start(self.history.start(self.state))

    def remembered(self) -> dict[str, Memory]:
        """What a daemon that starts now would remember."""
        self.history.flush()
        history = History(self.database)
        memories = history.start()
        history.stop(time.monotonic() + 30)
        return {
            key: replace(memory, when="", since=None)
            for key, memory in memories.items()
            if memory != Memory(when=memory.when, since=memory.since)
        }

    def wait_until_idle(self, timeout: float = 60) -> None:
        """Wait until all that was handed out has ended and is remembered."""
        with self.scheduler._changed:
            assert self.scheduler._changed.wait_for(lambda: not self.scheduler._running, timeout)

    def round(self) -> list[str]:
        """Let one round pass with all that it sets off: what that was."""
        before = len(self.doings.begun)
        self.scheduler.round()
        self.wait_until_idle()
        return self.doings.begun[before:]

    def memory(self, key: str = "snapshot db") -> Memory:
        memory = self.scheduler.activity().memories.get(key, Memory())
        return replace(memory, when="", since=None)

    def live_through_one_round(self) -> None:
        """Start a daemon's scheduler, let it do what it finds due, and stop it."""
        self.start()
        self.round()
        self.stop()

    def stop(self, patience: float = 30) -> None:
        """Stop the scheduler as the daemon does."""
        deadline = time.monotonic() + patience
        self.scheduler.stop(deadline)
        self.history.stop(deadline)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    stage.history.start()
    yield stage
    stage.doings.close()
    stage.history.stop(time.monotonic() + 30)


def lines(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]


# Clocks that jump


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
        stage.start()
        for hour in range(8):
            stage.clock.now = NOON + timedelta(days=day, hours=hour)
            stage.round()
        stage.stop()
        days += [day] * (len(stage.doings.begun) - len(days))

    assert days == [0, 7, 14, 21, 28]


def test_failures_survive_a_restart_and_the_retries_go_on_where_they_were(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "db,snapshot,60")
    stage.doings.failing["snapshot db"] = ButtervolumeError("no disk")
    stage.live_through_one_round()
    stage.clock.now = NOON + timedelta(minutes=40)
    stage.live_through_one_round()

    stage.live_through_one_round()

    assert len(stage.doings.begun) == 2, "after 2 failures it waits 2 minutes"
    assert stage.remembered()["snapshot db"] == Memory(
        failures=2,
        first_failure=NOON,
        last_failure=NOON + 40 * MINUTE,
        message="no disk",
    )


def test_the_memory_of_a_removed_job_goes_and_that_of_a_paused_one_stays(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "gone,snapshot,60", "paused,snapshot,60")
    stage.live_through_one_round()

    stage.write("paused,snapshot,60,False", "new,snapshot,60")
    stage.live_through_one_round()

    assert set(stage.remembered()) == {"snapshot paused", "snapshot new"}
    stage.write("paused,snapshot,60", "gone,snapshot,60", "new,snapshot,60")
    stage.doings.begun.clear()
    stage.live_through_one_round()
    assert stage.doings.begun == ["snapshot gone"]


def test_a_file_that_is_gone_for_a_moment_makes_nothing_forgotten(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "db,snapshot,60")
    stage.live_through_one_round()
    before = stage.remembered()

    stage.file.rename(tmp_path / "schedule.csv~")  # as an editor does
    stage.live_through_one_round()
    stage.write()
    stage.live_through_one_round()
    (tmp_path / "schedule.csv~").replace(stage.file)
    stage.live_through_one_round()

    assert stage.doings.begun == ["snapshot db"]
    assert stage.remembered() == before


def test_all_paused_nothing_runs_and_nothing_is_forgotten(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "db,snapshot,60", "new,snapshot,60,False")
    stage.live_through_one_round()
    before = stage.remembered()

    stage.schedule.pause_all()
    stage.clock.now += 5 * HOUR
    stage.live_through_one_round()

    assert stage.remembered() == before
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
        "synchronize:alive w0",
        "synchronize:alive,well w1",
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


def test_what_waits_in_the_queue_is_run_though_the_file_has_changed(stage: Stage) -> None:
    stage.write(*(f"v{number},snapshot,60" for number in range(300)))
    stage.doings.hold(*(f"snapshot v{number}" for number in range(POOL)))
    stage.scheduler.round()
    wait_until(lambda: len(stage.doings.begun) == POOL)

    stage.schedule.apply("v299", "snapshot", "pause")
    stage.doings.let_go(*(f"snapshot v{number}" for number in range(POOL)))
    stage.wait_until_idle(60)

    assert len(stage.doings.begun) == 299


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


def test_two_synchronizations_of_one_volume_wait_for_each_other_and_keep_nobody_else_waiting(
    stage: Stage,
) -> None:
    # given three of one volume, the first of which is slow, and one of another volume
    stage.write(
        "db,synchronize:dead,60", "db,synchronize:a,60", "db,synchronize:b,60", "v,synchronize:a,60"
    )
    stage.doings.hold("synchronize:dead db", "synchronize:a db")

    # when all are due
    stage.scheduler.round()
    stage.scheduler.round()
    wait_until(lambda: stage.doings.ended == ["synchronize:a v"])

    # then one after the other works on the volume
    wait_until(lambda: len(stage.doings.begun) == 2)
    assert set(stage.doings.begun) == {"synchronize:dead db", "synchronize:a v"}
    stage.doings.let_go("synchronize:dead db")
    wait_until(lambda: len(stage.doings.begun) == 3)
    assert stage.doings.begun[2] == "synchronize:a db"
    stage.clock.now += 2 * MINUTE
    stage.scheduler.round()
    assert len(stage.doings.begun) == 3
    stage.doings.let_go("synchronize:a db")
    stage.wait_until_idle()
    assert sorted(stage.doings.begun) == sorted(set(stage.doings.begun)), "each once"
    assert stage.doings.begun[3] == "synchronize:b db"


def test_what_waits_for_another_and_is_switched_off_meanwhile_is_not_run(stage: Stage) -> None:
    stage.write("db,synchronize:a,60", "db,synchronize:b,60", "db,synchronize:c,60")
    stage.doings.hold("synchronize:a db")
    stage.scheduler.round()
    wait_until(lambda: stage.doings.begun)

    stage.schedule.apply("db", "synchronize:b", "pause")
    stage.doings.let_go("synchronize:a db")
    stage.wait_until_idle()

    assert stage.doings.begun == ["synchronize:a db", "synchronize:c db"]


def threads(kind: str) -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(kind)]


def test_workers_end_when_there_is_nothing_to_do(stage: Stage) -> None:
    stage.write(*(f"v{n},replicate:host{n},60" for n in range(20)), "db,snapshot,60")
    stage.round()

    wait_until(lambda: not threads("host") and not threads("pool"))
    stage.write("db,snapshot,60")
    stage.round()
    assert stage.scheduler._workers.keys() <= {()}


def test_no_more_than_a_few_work_at_a_time_though_threads_come_and_go(stage: Stage) -> None:
    stage.write(*(f"v{n},snapshot,1" for n in range(40)))
    for _ in range(5):
        stage.round()
        stage.clock.now += MINUTE

    assert len(stage.doings.begun) == 200
    assert stage.doings.most_at_once <= POOL


# Edits


def test_a_job_that_is_edited_begins_afresh(stage: Stage) -> None:
    stage.write("db,snapshot,600")
    stage.round()
    stage.doings.failing["snapshot db"] = ButtervolumeError("no disk")
    stage.clock.now += timedelta(minutes=600)
    for _ in range(5):
        stage.round()
        stage.clock.now += timedelta(minutes=40)
    assert stage.memory().failures == 5
    del stage.doings.failing["snapshot db"]
    stage.clock.now -= timedelta(minutes=39)
    assert stage.round() == [], "it waits"

    stage.write("db,snapshot,60")

    assert stage.round() == ["snapshot db"]
    assert stage.memory().failures == 0
    stage.clock.now += MINUTE
    stage.write("db,snapshot,30")
    assert stage.round() == ["snapshot db"], "at once, as a new one"
    stage.write("db,snapshot,030,True")
    assert stage.round() == [], "nothing has changed"


def test_that_a_job_was_edited_is_remembered_across_a_restart(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "db,snapshot,60")
    stage.live_through_one_round()
    stage.clock.now += MINUTE
    stage.write("db,snapshot,30")
    stage.live_through_one_round()
    stage.live_through_one_round()

    assert stage.doings.begun == ["snapshot db"] * 2


# Cron


def test_a_cron_job_waits_for_its_next_moment_and_a_missed_night_is_made_up_for_once(
    stage: Stage,
) -> None:
    stage.write("db,snapshot,30 * * * *")
    assert stage.round() == []
    stage.clock.now = NOON + timedelta(minutes=29, seconds=59)
    assert stage.round() == [], "no sooner"
    stage.clock.now = NOON + timedelta(minutes=30)
    assert stage.round() == ["snapshot db"]
    assert stage.round() == []

    stage.clock.now = NOON + timedelta(hours=20, minutes=5)
    assert stage.round() == ["snapshot db"], "for all that was missed"
    assert stage.round() == []
    stage.clock.now = NOON + timedelta(hours=20, minutes=30)
    assert stage.round() == ["snapshot db"]


def test_a_cron_job_that_never_ran_knows_across_restarts_since_when_it_waits(
    tmp_path: Path,
) -> None:
    stage = Stage(tmp_path, "db,snapshot,0 * * * *")
    for minutes in (10, 20, 30):
        stage.clock.now = NOON + minutes * MINUTE
        stage.live_through_one_round()
    assert stage.doings.begun == []

    stage.clock.now = NOON + 70 * MINUTE  # the machine was off at 13:00
    stage.live_through_one_round()

    assert stage.doings.begun == ["snapshot db"]


def test_a_cron_job_that_fails_is_tried_again_as_all_are(stage: Stage) -> None:
    stage.write("db,snapshot,0 * * * *")
    stage.round()
    stage.doings.failing["snapshot db"] = ButtervolumeError("no disk")
    tried = []
    for minute in range(55, 55 + 75):
        stage.clock.now = NOON + minute * MINUTE
        tried += [minute for _ in stage.round()]

    assert tried == [60, 61, 63, 67, 75, 91, 120], "13:00, then after 1, 2, 4 … minutes, 14:00"


def test_a_cron_job_that_is_edited_waits_for_its_next_moment(stage: Stage) -> None:
    stage.write("db,snapshot,0 * * * *")
    stage.round()
    stage.clock.now = NOON + 70 * MINUTE
    assert stage.round() == ["snapshot db"]

    stage.write("db,snapshot,5 * * * *")
    stage.clock.now += MINUTE
    assert stage.round() == [], "13:05 is past"
    stage.clock.now = NOON + 125 * MINUTE
    assert stage.round() == ["snapshot db"]


# Volumes that come and go


def test_a_job_waits_for_its_volume_and_that_is_neither_failure_nor_success(stage: Stage) -> None:
    stage.write("db,snapshot,60", "db,purge:1h:1d,60", "db,replicate:h,60")
    stage.volumes = ()

    assert stage.round() == ["purge:1h:1d db"], "there may be snapshots without a volume"
    assert stage.scheduler.activity().waiting == {"snapshot db", "replicate:h db"}
    assert stage.memory() == Memory()

    stage.volumes = ("db",)
    assert sorted(stage.round()) == ["replicate:h db", "snapshot db"]
    assert stage.scheduler.activity().waiting == frozenset()


def test_a_job_of_a_volume_that_another_host_owns_is_elsewhere_until_it_is_back(
    stage: Stage,
) -> None:
    stage.write("db,snapshot,60")
    stage.doings.failing["snapshot db"] = NotOwner("db", "web2")
    stage.round()
    assert stage.scheduler.activity().elsewhere == {"snapshot db"}
    assert stage.memory().failures == 0

    del stage.doings.failing["snapshot db"]
    stage.round()
    assert stage.scheduler.activity().elsewhere == frozenset()
    assert stage.memory().last_success == NOON


def test_a_volume_that_goes_before_its_job_begins_is_no_failure(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.write("db,snapshot,60")
    stage.doings.failing["snapshot db"] = NoSuchVolume("db")

    for _ in range(10):
        stage.round()
        stage.clock.now += MINUTE
    assert stage.doings.begun == ["snapshot db"] * 2, "it is not tried in every round"
    assert stage.memory() == Memory()
    assert lines(caplog, logging.ERROR) == []
    stage.history.flush()
    assert stage.history.search() == []

    del stage.doings.failing["snapshot db"]
    stage.volumes = ("db", "new")
    assert stage.round() == ["snapshot db"]


def test_a_volume_that_is_back_before_the_next_round_is_not_waited_for(stage: Stage) -> None:
    stage.write("db,snapshot,60")
    stage.doings.failing["snapshot db"] = NoSuchVolume("db")
    assert stage.round() == ["snapshot db"]

    del stage.doings.failing["snapshot db"]  # no round has seen that it was gone
    stage.clock.now += MINUTE

    assert stage.round() == ["snapshot db"]
    assert stage.memory().last_success == NOON + MINUTE


def test_another_volume_that_is_missing_is_a_failure(stage: Stage) -> None:
    stage.write("db,replicate:h,60")
    stage.doings.failing["replicate:h db"] = NoSuchVolume("another")

    stage.round()

    assert stage.memory("replicate:h db").failures == 1


def test_a_pattern_is_a_job_of_each_volume_with_a_memory_of_its_own(stage: Stage) -> None:
    stage.write("web-*,snapshot,60", "web-2,snapshot,5,False")
    stage.volumes = ("db", "web-1", "web-2")
    assert stage.round() == ["snapshot web-1"]

    stage.clock.now += 10 * MINUTE
    stage.volumes = ("db", "web-1", "web-2", "web-3")
    assert stage.round() == ["snapshot web-3"]
    stage.clock.now = NOON + HOUR
    assert stage.round() == ["snapshot web-1"]
    assert stage.memory("snapshot web-3").last_success == NOON + 10 * MINUTE


# At once


def test_a_run_at_once_counts_and_needs_no_schedule(stage: Stage) -> None:
    stage.write("db,snapshot,60,False")
    stage.round()

    assert stage.scheduler.run_now("db", "snapshot").outcome == "db@now"
    assert stage.scheduler.run_now("web", "snapshot").outcome == "web@now"

    assert stage.memory().last_success == NOON
    assert set(stage.scheduler.activity().memories) == {"snapshot db"}
    stage.write("db,snapshot,60")
    stage.clock.now += 59 * MINUTE
    assert stage.round() == []
    stage.history.flush()
    assert [(run.volume, run.by) for run in stage.history.search()] == [
        ("db", "command"),
        ("web", "command"),
    ]


def test_a_run_at_once_counts_before_a_round_has_seen_the_job(stage: Stage) -> None:
    stage.write("web,snapshot,60")
    stage.round()
    stage.write("web,snapshot,60", "db,snapshot,60")

    stage.scheduler.run_now("db", "snapshot")

    assert stage.memory().last_success == NOON
    assert stage.round() == []


def test_a_run_at_once_needs_no_schedule_that_can_be_read(stage: Stage) -> None:
    stage.write("db,snapshot,60")
    stage.file.unlink()
    stage.file.mkdir()

    assert stage.scheduler.run_now("db", "snapshot").outcome == "db@now"


def test_a_run_at_once_waits_for_one_that_is_under_way(stage: Stage) -> None:
    stage.write("db,synchronize:a,60")
    stage.doings.hold("synchronize:a db")
    stage.scheduler.round()
    wait_until(lambda: stage.doings.begun)

    done = list[str]()
    callers = [
        threading.Thread(
            target=lambda action=action: done.append(stage.scheduler.run_now("db", action).outcome),
            daemon=True,
        )
        for action in ("synchronize:a", "synchronize:b")
    ]
    for caller in callers:
        caller.start()
    assert done == []
    stage.doings.let_go("synchronize:a db")
    for caller in callers:
        caller.join(60)

    assert done == ["synchronized"] * 2
    assert stage.doings.most_at_once == 1


def test_a_run_at_once_that_fails_says_why_and_is_remembered(stage: Stage) -> None:
    stage.write("db,snapshot,60")
    stage.round()
    stage.doings.failing["snapshot db"] = ButtervolumeError("no disk")

    with pytest.raises(ButtervolumeError, match="no disk"):
        stage.scheduler.run_now("db", "snapshot")

    assert stage.memory().failures == 1
    stage.clock.now += MINUTE
    del stage.doings.failing["snapshot db"]
    assert stage.round() == ["snapshot db"]


def test_as_many_transfers_run_at_once_as_may_and_one_more_is_refused(stage: Stage) -> None:
    keys = [f"replicate:h{n} db" for n in range(TRANSFERS_NOW)]
    stage.doings.hold(*keys)
    for number in range(TRANSFERS_NOW):
        action = f"replicate:h{number}"
        threading.Thread(target=stage.scheduler.run_now, args=["db", action], daemon=True).start()
    wait_until(lambda: len(stage.doings.begun) == TRANSFERS_NOW)

    with pytest.raises(TooManyTransfers):
        stage.scheduler.run_now("db", "replicate:another")
    assert stage.scheduler.run_now("db", "snapshot").outcome == "db@now"

    stage.doings.let_go(*keys)
    wait_until(lambda: not stage.scheduler.activity().running)
    assert stage.scheduler.run_now("db", "replicate:another").outcome == "db@now"


# Many rows


def test_many_jobs_run_once_each_and_the_file_is_read_once(stage: Stage) -> None:
    stage.write(*(f"v{number},snapshot,60" for number in range(1000)))
    wait_until(lambda: stage.schedule.read() is stage.schedule.read(), what="the file to settle")

    assert len(set(stage.round())) == 1000
    contents = stage.schedule.read()
    for _ in range(20):
        stage.clock.now += MINUTE
        assert stage.round() == []
    assert stage.schedule.read() is contents
    stage.clock.now = NOON + HOUR
    assert len(stage.round()) == 1000
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


def test_a_job_that_fails_for_hours_is_tried_after_1_2_4_minutes_then_every_30(
    stage: Stage,
) -> None:
    stage.write("db,snapshot,60")
    stage.doings.failing["snapshot db"] = ButtervolumeError("no disk")
    tried = []
    for minute in range(6 * 60):
        stage.clock.now = NOON + minute * MINUTE
        tried += [minute for _ in stage.round()]

    assert tried == [0, 1, 3, 7, 15, 31, 61, 91, 121, 151, 181, 211, 241, 271, 301, 331]
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

    stage.start()

    wait_until(lambda: stage.doings.ended, what="the second round")
    stage.stop()
    assert words in caplog.text
    assert stage.remembered()["snapshot db"].outcome == "db@now"


def test_a_file_that_is_a_directory_stops_nothing_for_good(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage(tmp_path, timer=1)
    stage.file.unlink()
    stage.file.mkdir()
    stage.start()
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
    stage.start()
    wait_until(lambda: stage.doings.begun)

    thread = stopping(stage)
    stage.doings.let_go("snapshot db")
    thread.join(60)

    assert stage.remembered()["snapshot db"] == Memory(NOON, "db@now")


def test_what_fails_because_all_ends_is_no_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage(tmp_path, "db,replicate:host,60")
    stage.doings.hold("replicate:host db")
    stage.doings.failing["replicate:host db"] = ButtervolumeError("the transfer was cancelled")
    stage.start()
    wait_until(lambda: stage.doings.begun)

    thread = stopping(stage)
    stage.doings.let_go("replicate:host db")
    thread.join(60)

    assert stage.memory("replicate:host db") == Memory()
    assert lines(caplog, logging.ERROR) == []
    del stage.doings.failing["replicate:host db"]
    stage.live_through_one_round()
    assert stage.doings.begun == ["replicate:host db"] * 2, "it is due at once"


def test_what_waits_for_its_turn_is_not_begun_any_more(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "a,replicate:host,60", "b,replicate:host,60")
    stage.doings.hold("replicate:host a")
    stage.start()
    wait_until(lambda: stage.doings.begun)

    thread = stopping(stage)
    stage.doings.let_go("replicate:host a")
    thread.join(60)
    stage.scheduler.round()

    assert stage.doings.ended == ["replicate:host a"]
    assert set(stage.remembered()) == {"replicate:host a"}


def test_stop_comes_back_while_a_job_hangs_and_saves_the_rest(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "db,snapshot,60", "db,replicate:dead,60")
    stage.doings.hold("replicate:dead db")
    stage.start()
    wait_until(lambda: stage.memory().last_success and len(stage.doings.begun) == 2)

    stage.stop(patience=0.2)

    assert set(stage.remembered()) == {"snapshot db"}
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


def test_stop_comes_back_while_the_disk_hangs(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "db,snapshot,60")
    stage.schedule = schedule = HangingSchedule(stage.file)
    stage.start()
    assert schedule.asked.wait(60)

    stage.stop(patience=0.2)

    schedule.answer.set()
    stage.scheduler._thread.join(60)
    assert stage.doings.begun == [], "nothing begins after the end"
