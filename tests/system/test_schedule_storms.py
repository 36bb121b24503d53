"""The schedule while several change it at once, and while those who change it are killed."""

import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType

import pytest

from buttervolume.jobs.actions import Snapshot
from buttervolume.jobs.schedule import Job, Schedule
from buttervolume.jobs.when import Every
from tests.unit.test_schedule import rows


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "schedule.csv"


@pytest.fixture
def schedule(file: Path) -> Schedule:
    return Schedule(file)


def together(*tasks: Callable[[], None]) -> None:
    """Run tasks in threads, and fail with the first error of any."""
    errors: list[BaseException] = []
    start = threading.Barrier(len(tasks))

    def run(task: Callable[[], None]) -> None:
        start.wait()
        try:
            task()
        except BaseException as error:  # noqa: BLE001 - the test tells what each thread met
            errors.append(error)

    threads = [threading.Thread(target=run, args=[task], daemon=True) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


def test_changes_from_several_threads_all_arrive(schedule: Schedule) -> None:
    def change(volume: str) -> None:
        for number in range(1, 9):
            schedule.apply(volume, f"replicate:host{number}", str(number))
            schedule.apply(volume, f"replicate:host{number}", "pause")
        for number in range(1, 5):
            schedule.apply(volume, f"replicate:host{number}", "delete")

    volumes = [f"volume{number}" for number in range(6)]

    together(*(lambda volume=volume: change(volume) for volume in volumes))

    assert sorted(rows(Schedule(schedule.path))) == [
        (volume, f"replicate:host{number}", number, False)
        for volume in volumes
        for number in range(5, 9)
    ]


def test_who_reads_while_others_change_and_pause_never_sees_a_part(schedule: Schedule) -> None:
    standing = [Job(f"volume{n}", "snapshot", Every(n + 1), True, Snapshot()) for n in range(50)]
    for job in standing:
        schedule.apply(job.volume, job.action, str(job.when))
    done = threading.Event()

    def change() -> None:
        for number in range(1, 41):
            schedule.apply("db", "snapshot", str(number))
        done.set()

    def pause() -> None:
        while not done.is_set():
            schedule.pause_all()
            schedule.resume_all()

    def look() -> None:
        while not done.is_set():
            jobs = schedule.read().jobs
            assert jobs[:50] == standing
            assert len(jobs) <= 51

    together(change, pause, look, look)

    assert rows(schedule)[50:] == [("db", "snapshot", 40, True)]


def dies(steps: int, work: Callable[[], None]) -> bool:
    """Work in a child process that is killed after so many calls of C functions, unless it has
    ended; whether it was killed."""

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal steps
        steps -= event == "c_call"
        if steps < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        try:
            sys.setprofile(count)
            work()
            sys.setprofile(None)
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0


@pytest.mark.parametrize(
    ("change", "after"),
    [
        (lambda s: s.apply("db", "snapshot", "30"), {"schedule.csv": "odd\ndb,snapshot,30\n"}),
        (lambda s: s.pause_all(), {"schedule.csv.disabled": "odd\ndb,snapshot,60\n"}),
    ],
)
def test_a_daemon_killed_at_any_step_of_a_change_has_made_all_of_it_or_nothing(
    file: Path, change: Callable[[Schedule], None], after: dict[str, str]
) -> None:
    before = {"schedule.csv": "odd\ndb,snapshot,60\n"}
    outcomes = []

    for steps in itertools.count():
        for path in file.parent.iterdir():
            path.unlink()
        file.write_text(before["schedule.csv"], encoding="utf-8")

        schedule = Schedule(file)
        schedule.read()
        killed = dies(steps, partial(change, schedule))

        left = [path for path in file.parent.iterdir() if not path.name.startswith(".")]
        outcomes.append({path.name: path.read_text(encoding="utf-8") for path in left})
        if not killed:
            break

    assert outcomes[0] == before
    assert outcomes[-1] == after
    assert all(outcome in (before, after) for outcome in outcomes)
    assert outcomes.count(before) > 10, "it was killed on the way"


CHANGES = """
import itertools, sys
from pathlib import Path
from buttervolume.jobs.schedule import Schedule

schedule = Schedule(Path(sys.argv[1]))
print("ready", flush=True)
for number in itertools.count(1):
    schedule.apply("restless", "snapshot", str(number % 1000 + 1))
    schedule.apply("restless", "purge:4h:1d", "5")
    schedule.pause_all()
    schedule.apply("restless", "snapshot", "pause")
    schedule.apply("restless", "purge:4h:1d", "delete")
    schedule.resume_all()
"""


def test_a_daemon_killed_at_any_moment_of_a_storm_leaves_a_whole_file(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # given a schedule that takes a while to write
    standing = [(f"volume{number}", "snapshot", number + 1, True) for number in range(1000)]
    content = "".join(f"{volume},snapshot,{minutes}\n" for volume, _, minutes, _ in standing)
    file.write_text(f"odd\n{content}", encoding="utf-8")
    dice, seen = random.Random(3), set[bytes]()

    for _ in range(5):
        # when the one that changes it is killed
        with subprocess.Popen(
            [sys.executable, "-c", CHANGES, str(file)], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(0.01 + dice.random() / 10)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL, "it was at work until then"

        # then there is one file, of one name, and all of it
        found = [path for path in file.parent.iterdir() if not path.name.startswith(".")]
        assert len(found) == 1
        schedule = Schedule(file)
        assert rows(schedule)[:1000] == standing
        assert {job.volume for job in schedule.read().jobs[1000:]} <= {"restless"}
        assert [record.args for record in caplog.records][1:] == [], "of the odd row only"
        caplog.clear()
        assert found[0].read_bytes().endswith(b"\n")
        seen.add(found[0].read_bytes())

    assert len(seen) > 1, "there was a storm"
