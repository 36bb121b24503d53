"""The schedule of a running daemon on a real BTRFS: what its jobs do, and what commands change."""

import csv
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from http.client import HTTPException
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.btrfs.conftest import StartDaemon
from tests.btrfs.harness import (
    DATE_FORMAT,
    Daemon,
    NoAnswer,
    Place,
    btrfs,
    is_readonly,
    put,
    subvolume,
)
from tests.support import history
from tests.support.wait import wait_until

NUMBERS = count(1)
KILLS = 3


class Machine:
    """One schedule and one place, and the daemons that serve them one after the other."""

    def __init__(self, place: Place, start_daemon: StartDaemon) -> None:
        self.place = place
        self.file = place.directory / "etc/schedule.csv"
        self.disabled = self.file.with_name("schedule.csv.disabled")
        self.state = self.file.with_name("schedule.csv.state.json")
        self.history = self.file.with_name("history.sqlite")
        self.file.parent.mkdir()
        self._start_daemon = start_daemon
        self.daemon: Daemon

    def start(self) -> Daemon:
        """Start a daemon whose rounds come every second."""
        schedule = str(self.file)
        self.daemon = self._start_daemon(BUTTERVOLUME_TIMER="1", BUTTERVOLUME_SCHEDULE=schedule)
        return self.daemon

    def write(self, *rows: str) -> None:
        """Make these rows the schedule, as somebody with an editor would."""
        self.file.write_text("".join(f"{row}\n" for row in rows))

    def volume(self, name: str = "db") -> Path:
        return subvolume(self.place.volumes / name, {"file": "old"})

    def taken(self, volume: str = "db") -> list[str]:
        """The snapshots of a volume on the disk."""
        return [n for n in self.place.snapshot_names() if n.startswith(f"{volume}@")]

    def wait_for_snapshots(self, number: int, volume: str = "db") -> list[str]:
        wait_until(lambda: len(self.taken(volume)) >= number, 30, f"{number} snapshots of {volume}")
        assert len(self.taken(volume)) == number
        return self.taken(volume)

    def let_a_round_pass(self) -> None:
        """Return when what was due has been begun: a job that is new, and so due at once, and the
        last one in the file, has been done."""
        name = f"witness{next(NUMBERS)}"
        self.volume(name)
        self.daemon.call("Schedule", Name=name, Action="snapshot", Timer="600")
        self.wait_for_snapshots(1, name)

    def let_paused_rounds_pass(self) -> None:
        """Return when two rounds have read the file: each has complained of a new row in it."""
        for _ in range(2):
            row = f"no row {next(NUMBERS)}"
            with self.disabled.open("a") as file:
                file.write(f"{row}\n")
            wait_until(lambda row=row: row in self.daemon.stderr(), 60, "a round")  # type: ignore[misc]

    def memory(self, key: str = "snapshot db") -> dict[str, Any]:
        """What is remembered of a job; empty if it never ran."""
        return history.memory(self.history, key)

    def wait_for_memory(self, key: str = "snapshot db") -> dict[str, Any]:
        return wait_until(lambda: self.memory(key), 30, f"the memory of {key}")

    def make_older(self, key: str, age: timedelta) -> None:
        """Let the last run of a job have begun so long ago; no daemon must run."""
        history.make_older(self.history, key, age)


@pytest.fixture
def machine(place: Place, start_daemon: StartDaemon) -> Iterator[Machine]:
    """A machine on which no daemon runs yet; the last one must end well and log no fault."""
    machine = Machine(place, start_daemon)
    yield machine
    machine.daemon.stop()
    assert "Traceback" not in machine.daemon.stderr()


# What jobs do


def test_a_scheduled_snapshot_is_really_taken(machine: Machine) -> None:
    machine.volume()
    machine.write("db,snapshot,60")
    before = datetime.now()

    daemon = machine.start()
    [name] = machine.wait_for_snapshots(1)

    assert is_readonly(machine.place.snapshots / name)
    assert (machine.place.snapshots / name / "file").read_text() == "old"
    moment = datetime.strptime(name.partition("@")[2], DATE_FORMAT)
    assert before <= moment <= datetime.now()
    memory = machine.wait_for_memory()
    assert memory["outcome"] == name
    assert abs(datetime.fromisoformat(memory["last_success"]) - moment.astimezone()) < timedelta(
        seconds=5
    )
    assert (memory["failures"], memory["last_failure"], memory["message"]) == (0, None, "")
    wait_until(lambda: f"snapshot db: {name}" in daemon.stdout())
    machine.let_a_round_pass()
    assert machine.taken() == [name], "the hour has not passed"


def test_a_scheduled_purge_really_purges(machine: Machine) -> None:
    source, names = machine.volume(), []
    for age in (timedelta(minutes=30), timedelta(hours=5), timedelta(days=3)):
        names.append(f"db@{(datetime.now() - age).strftime(DATE_FORMAT)}")
        btrfs("subvolume", "snapshot", "-r", source, machine.place.snapshots / names[-1])
    machine.write('db,"purge:2h:2h",60')

    machine.start()

    assert machine.wait_for_memory("purge:2h:2h db")["outcome"] == "2 purged"
    assert machine.taken() == names[:1]


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_the_schedule_of_an_original_installation_works_unchanged(
    machine: Machine, line_end: str
) -> None:
    for name in ("db", "web", "my old volume"):
        machine.volume(name)
    rows = [
        "db,snapshot,60",  # as version 2 wrote it, and version 3
        "web,snapshot,60,True",
        "my old volume,snapshot,1440,True",
        "db,purge:4h:1d:2w:2y,1440,True",
        "web,purge:2h:2h,60",
        "web,purge:2h,60,True",
        "web,purge:1h/24:1d/7,60",
        "paused,snapshot,60,False",
        "web,replicate:host2.example.org,60,False",
        'web,"synchronize:host2,host3",5,False',
        "web,replicate:host4,30,False",
    ]
    content = "".join(f"{row}{line_end}" for row in rows).encode()
    machine.file.write_bytes(content)

    daemon = machine.start()

    for name in ("db", "web", "my old volume"):
        machine.wait_for_snapshots(1, name)
    machine.wait_for_memory("purge:4h:1d:2w:2y db")
    machine.wait_for_memory("purge:2h:2h web")
    answer = daemon.call("Schedule.List")
    parsed = [[*row, "True"][:4] for row in csv.reader(rows)]
    assert answer["Schedule"] == [
        {"Name": name, "Action": action, "Timer": timer, "Active": active}
        for name, action, timer, active in parsed
    ]
    assert answer["Paused"] is False
    assert daemon.stderr() == ""
    assert machine.file.read_bytes() == content

    daemon.call("Schedule", Name="db", Action="snapshot", Timer="30")
    changed = machine.file.read_bytes().splitlines()
    assert changed == [b"db,snapshot,30", *content.splitlines()[1:]]


def test_a_job_of_a_volume_that_is_not_there_waits_and_runs_as_soon_as_it_is(
    machine: Machine,
) -> None:
    daemon = machine.start()
    daemon.call("Create", Name="db")
    daemon.call("Remove", Name="db")

    daemon.call("Schedule", Name="db", Action="snapshot", Timer="60")
    daemon.call("Schedule", Name="db", Action="purge:1h:1d", Timer="60")
    for _ in range(2):
        machine.let_a_round_pass()

    assert machine.memory() == machine.memory("purge:1h:1d db") == {}
    assert "schedule" not in {run["by"] for run in history.runs(machine.history, "db")}
    assert daemon.stderr() == "", "it is no failure"
    assert machine.taken() == []
    assert "db" not in daemon.names()
    assert machine.place.own_names() == []

    daemon.call("Create", Name="db")
    machine.wait_for_snapshots(1)
    assert machine.wait_for_memory()["failures"] == 0


def test_a_replication_to_a_host_that_does_not_exist_has_failed_and_leaves_no_snapshot(
    machine: Machine,
) -> None:
    machine.volume()
    machine.volume("other")
    machine.write("db,replicate:no-such-host.invalid,60", "other,snapshot,60")

    daemon = machine.start()

    key = "replicate:no-such-host.invalid db"
    memory = wait_until(lambda: machine.memory(key), 60, "the replication to fail")
    assert (memory["failures"], memory["last_success"], memory["outcome"]) == (1, None, "")
    assert "no-such-host.invalid" in memory["message"]
    assert f"{key} failed (1 in a row): {memory['message']}" in daemon.stderr()
    assert key not in daemon.stdout()
    assert machine.taken() == []
    machine.wait_for_snapshots(1, "other")


# Restarts


def test_a_daemon_that_is_restarted_often_takes_no_snapshot_more(machine: Machine) -> None:
    machine.volume()
    machine.write("db,snapshot,60")
    machine.start()
    first = machine.wait_for_snapshots(1)
    machine.wait_for_memory()

    machine.daemon.kill()
    machine.start()
    machine.let_a_round_pass()
    assert machine.taken() == first

    machine.daemon.stop()
    machine.make_older("snapshot db", timedelta(minutes=59))
    machine.start()
    machine.let_a_round_pass()
    assert machine.taken() == first

    machine.daemon.stop()
    machine.make_older("snapshot db", timedelta(minutes=60))
    (machine.place.volumes / "db/file").write_text("new")
    machine.start()
    machine.wait_for_snapshots(2)


def test_a_broken_state_file_of_an_older_version_is_a_warning_and_costs_one_early_run(
    machine: Machine,
) -> None:
    machine.volume()
    machine.write("db,snapshot,60")
    machine.state.write_text('{"jobs": {"snapshot db": {"last_succ')

    daemon = machine.start()

    [name] = machine.wait_for_snapshots(1)
    assert daemon.stderr().count(str(machine.state)) == 1
    assert "WARNING" in daemon.stderr()
    assert machine.wait_for_memory()["outcome"] == name


def test_what_an_older_version_remembered_is_taken_over(machine: Machine) -> None:
    machine.volume()
    machine.volume("web")
    machine.write("db,snapshot,60", "web,snapshot,60")
    moment = (datetime.now(UTC) - timedelta(minutes=30)).isoformat()
    entry = {"last_success": moment, "outcome": "db@x", "failures": 0, "first_failure": None}
    entry |= {"last_failure": None, "message": ""}
    machine.state.write_text(json.dumps({"jobs": {"snapshot db": entry}}))

    daemon = machine.start()

    machine.wait_for_snapshots(1, "web")
    assert machine.taken("db") == [], "its time has not come"
    assert machine.wait_for_memory()["outcome"] == "db@x"
    assert not machine.state.exists()
    assert daemon.stderr() == ""


BROKEN = {"no database": b"nonsense " * 999, "zeros": bytes(8192), "cut off": None}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_broken_history_is_put_aside_and_no_job_is_stopped(
    machine: Machine, content: bytes | None
) -> None:
    machine.volume()
    machine.write("db,snapshot,60")
    if content is None:
        machine.start()
        machine.wait_for_memory()
        machine.daemon.stop()
        (machine.place.volumes / "db/file").write_text("new")
        content = machine.history.read_bytes()[:6000]
    machine.history.write_bytes(content)
    before = len(machine.taken())

    daemon = machine.start()

    name = machine.wait_for_snapshots(before + 1)[-1]
    assert machine.wait_for_memory()["outcome"] == name
    assert daemon.stderr().count(str(machine.history)) >= 1
    assert machine.history.with_name("history.sqlite.broken").read_bytes()[:6000] == content[:6000]


def test_a_run_is_found_in_the_history_with_its_snapshot(machine: Machine) -> None:
    machine.volume()
    machine.write("db,snapshot,60", "db,replicate:no-such-host.invalid,60")
    machine.start()
    wait_until(lambda: len(history.runs(machine.history)) == 2, 60, "both runs")

    [done] = [run for run in history.runs(machine.history, "db") if not run["error"]]
    [failed] = [run for run in history.runs(machine.history, "db") if run["error"]]

    assert (done["operation"], done["snapshot"]) == ("snapshot", machine.taken()[0])
    assert (done["by"], done["bytes"]) == ("schedule", None)
    assert (failed["operation"], failed["host"]) == (
        "replicate:no-such-host.invalid",
        "no-such-host.invalid",
    )
    assert "no-such-host.invalid" in failed["error"]


# What has not changed, what is not there, patterns, and now


def test_a_snapshot_is_taken_only_of_a_volume_that_has_changed(machine: Machine) -> None:
    volume = machine.volume()
    machine.write("db,snapshot,60")
    machine.start()
    [first] = machine.wait_for_snapshots(1)
    now = partial(machine.daemon.call, "Schedule", Name="db", Action="snapshot", Timer="now")

    assert now()["Result"] == "unchanged"
    assert machine.taken() == [first]
    (volume / "file").write_text("new")
    second = now()["Result"]
    assert machine.taken() == [first, second]
    assert now()["Result"] == "unchanged"

    # a command always takes one
    third = machine.daemon.call("Snapshot", Name="db")["Snapshot"]
    assert now()["Result"] == "unchanged"
    machine.daemon.call("Snapshot.Restore", Name=first)
    fifth = now()["Result"]
    assert fifth.startswith("db@")
    assert (machine.place.snapshots / fifth / "file").read_text() == "old"
    assert now()["Result"] == "unchanged"
    for name in set(machine.taken()) - {third}:
        machine.daemon.call("Snapshot.Remove", Name=name)
    assert now()["Result"].startswith("db@"), "the third is of what the volume was before"


def test_what_was_named_by_a_clock_that_was_ahead_is_not_the_newest_for_ever(
    machine: Machine,
) -> None:
    volume = machine.volume()
    ahead = f"db@{(datetime.now() + timedelta(days=400)).strftime(DATE_FORMAT)}"
    btrfs("subvolume", "snapshot", "-r", volume, machine.place.snapshots / ahead)
    daemon = machine.start()
    now = partial(daemon.call, "Schedule", Name="db", Action="snapshot", Timer="now")
    assert now() == {"Err": "", "Result": "unchanged"}

    (volume / "file").write_text("new")
    taken = now()

    assert taken["Result"] == machine.taken()[0]
    assert f"{ahead} has a date in the future" in taken["Warning"]
    wait_until(lambda: f"snapshot db: {taken['Warning']}" in daemon.stderr())
    assert now() == {"Err": "", "Result": "unchanged"}
    assert machine.taken() == [taken["Result"], ahead]


def overwrite(volume: Path) -> None:
    with (volume / "file").open("r+b") as file:
        file.write(b"X")


CHANGES: dict[str, Callable[[Path], object]] = {
    "a file": lambda volume: (volume / "new").write_text("x"),
    "a byte": overwrite,
    "a mode": lambda volume: (volume / "file").chmod(0o600),
    "an attribute": lambda volume: os.setxattr(volume / "file", "user.x", b"y"),
    "a name": lambda volume: (volume / "file").rename(volume / "other"),
    "a removal": lambda volume: (volume / "other").unlink(),
    "the root's mode": lambda volume: volume.chmod(0o700),
}


def test_every_kind_of_change_counts(machine: Machine) -> None:
    volume = machine.volume()
    daemon = machine.start()
    now = partial(daemon.call, "Schedule", Name="db", Action="snapshot", Timer="now")
    now()

    for what, change in CHANGES.items():
        assert now()["Result"] == "unchanged", what
        change(volume)
        assert now()["Result"].startswith("db@"), what


def test_a_snapshot_that_goes_again_if_its_replication_fails_is_none_to_rely_on(
    machine: Machine,
) -> None:
    machine.volume()
    daemon = machine.start()
    action = "replicate:no-such-host.invalid"

    with ThreadPoolExecutor() as pool:
        sending = pool.submit(daemon.post, "Schedule", Name="db", Action=action, Timer="now")
        wait_until(lambda: machine.taken() or sending.done())
        name = daemon.call("Schedule", Name="db", Action="snapshot", Timer="now")["Result"]
        assert sending.result(30).error

    assert machine.taken() == [name], "whichever was first"


def test_a_pattern_covers_the_volumes_that_come_later(machine: Machine) -> None:
    for name in ("web-1", "db", "web-off"):
        machine.volume(name)
    machine.write("web-*,snapshot,60", "web-off,snapshot,60,False")
    daemon = machine.start()
    machine.wait_for_snapshots(1, "web-1")

    daemon.call("Create", Name="web-2")

    machine.wait_for_snapshots(1, "web-2")
    machine.let_a_round_pass()
    assert machine.taken("db") == machine.taken("web-off") == []
    assert machine.wait_for_memory("snapshot web-2")["outcome"] == machine.taken("web-2")[0]
    assert {"Name": "web-*", "Action": "snapshot", "Timer": "60", "Active": "True"} in (
        daemon.call("Schedule.List")["Schedule"]
    )


def test_now_runs_a_job_that_is_paused_or_in_no_schedule_and_prints_what_it_did(
    machine: Machine,
) -> None:
    machine.volume()
    machine.volume("db2")
    machine.write("db,snapshot,60,False")
    daemon = machine.start()

    done = daemon.cli("schedule", "snapshot", "now", "db")
    assert (done.returncode, done.stdout) == (0, f"{machine.taken()[0]}\n")
    assert machine.wait_for_memory()["outcome"] == machine.taken()[0], "it counts"
    done = daemon.cli("schedule", "purge:1h:1h", "now", "db")
    assert (done.returncode, done.stdout) == (0, "0 purged\n")
    assert machine.file.read_text() == "db,snapshot,60,False\n"

    done = daemon.cli("schedule", "snapshot", "now", "db*")
    assert done.stdout == f"db: unchanged\ndb2: {machine.taken('db2')[0]}\n"

    for volume, action, word in (
        ("nosuch", "snapshot", "no such volume"),
        ("x*", "snapshot", "no such volume"),
        ("db", "replicate:no-such-host.invalid", "no-such-host.invalid"),
        ("db", "defragment", "is no action"),
    ):
        done = daemon.cli("schedule", action, "now", volume)
        assert (done.returncode, done.stdout) == (1, "")
        assert word in done.stderr
    assert [run["operation"] for run in history.runs(machine.history)].count("snapshot") == 3


def test_rows_that_nobody_can_read_are_listed_and_removed_by_command(machine: Machine) -> None:
    machine.write("nave,replicat:beta,60", "porch,snapshot,soon", "db,snapshot,60,False")
    daemon = machine.start()

    answer = daemon.call("Schedule.List")
    assert [each["Name"] for each in answer["Schedule"]] == ["db"]
    assert [each["Line"] for each in answer["Unreadable"]] == [
        "nave,replicat:beta,60",
        "porch,snapshot,soon",
    ]
    assert "'replicat:beta' is no action" in answer["Unreadable"][0]["Error"]
    assert "whole number" in answer["Unreadable"][1]["Error"]
    with machine.file.open("a") as file:
        file.write(f"long,snapshot,{'9' * 100_000}\n")
    *_, long = daemon.call("Schedule.List")["Unreadable"]
    assert len(long["Error"]) < 3000
    daemon.call("Schedule", Name="long", Action="snapshot", Timer="delete")
    done = daemon.cli("scheduled")
    assert done.stdout == "snapshot 60 db (paused)\n"
    assert "porch,snapshot,soon" in done.stderr

    assert daemon.cli("schedule", "replicat:beta", "0", "nave").returncode == 0
    assert daemon.cli("schedule", "snapshot", "pause", "porch").returncode == 0
    assert machine.file.read_text() == "porch,snapshot,soon,False\ndb,snapshot,60,False\n"


def test_jobs_come_with_a_volume(machine: Machine) -> None:
    daemon = machine.start()
    options = {"snapshot": "60", "purge:4h:1d": "0 3 * * *", "copyonwrite": "true"}

    daemon.call("Create", Name="db", Opts=options)
    machine.wait_for_snapshots(1)
    assert machine.file.read_text() == "db,snapshot,60\ndb,purge:4h:1d,0 3 * * *\n"

    daemon.call("Schedule", Name="db", Action="snapshot", Timer="pause")
    daemon.call("Create", Name="db", Opts={"snapshot": "5", "replicate:h": "60"})
    content = "db,snapshot,60,False\ndb,purge:4h:1d,0 3 * * *\ndb,replicate:h,60\n"
    assert machine.file.read_text() == content

    for name, bad in (
        ("web", {"snapshot": "delete"}),
        ("web", {"snapshot": "60", "compression": "best"}),
        ("web", {"snapshot": "60", "nosuch": "1"}),
        ("w b", {"snapshot": "60"}),
        ("../web", {"snapshot": "60"}),
    ):
        daemon.refused("Create", Name=name, Opts=bad)
        assert name not in daemon.names()
        assert machine.file.read_text() == content
    assert "replicate:<host>" in daemon.refused("Create", Name="web", Opts={"nosuch": "1"})


# Pausing


def job(name: str, active: str = "True") -> dict[str, str]:
    return {"Name": name, "Action": "snapshot", "Timer": "60", "Active": active}


def test_a_paused_job_does_not_run_until_it_is_resumed(machine: Machine) -> None:
    machine.volume()
    machine.volume("web")
    machine.write("db,snapshot,60,False", "web,snapshot,60,False")
    daemon = machine.start()

    machine.let_a_round_pass()
    assert machine.taken("db") == machine.taken("web") == []
    daemon.call("Schedule", Name="db", Action="snapshot", Timer="resume")
    machine.wait_for_snapshots(1, "db")
    assert machine.taken("web") == []

    assert machine.file.read_text().splitlines()[:2] == ["db,snapshot,60", "web,snapshot,60,False"]


def listed(*jobs: dict[str, str]) -> dict[str, object]:
    """What the list says of these jobs and of nothing else."""
    return {"Schedule": list(jobs), "Unreadable": []}


Switch = Callable[[Machine], object]
PAUSES: dict[str, tuple[Switch, Switch]] = {
    "by command": (
        lambda machine: machine.daemon.cli("scheduled", "pause"),
        lambda machine: machine.daemon.cli("scheduled", "resume"),
    ),
    "by hand": (
        lambda machine: machine.file.rename(machine.disabled),
        lambda machine: machine.disabled.rename(machine.file),
    ),
    "by hand and across a restart": (
        lambda machine: (machine.file.rename(machine.disabled), restart(machine)),
        lambda machine: machine.daemon.call("Schedule.Resume"),
    ),
}


def restart(machine: Machine) -> Daemon:
    machine.daemon.stop()
    return machine.start()


@pytest.mark.parametrize(("pause", "resume"), PAUSES.values(), ids=PAUSES)
def test_all_is_paused_and_resumed(machine: Machine, pause: Switch, resume: Switch) -> None:
    machine.volume()
    machine.write("old,snapshot,60,False")
    machine.start()

    pause(machine)
    machine.daemon.call("Schedule", Name="db", Action="snapshot", Timer="60")

    assert not machine.file.exists()
    content = "old,snapshot,60,False\ndb,snapshot,60\n"
    assert machine.disabled.read_text() == content
    answer = machine.daemon.call("Schedule.List")
    assert answer == {
        "Err": "",
        "Paused": True,
        "Schedule": [job("old", "False"), job("db")],
        "Unreadable": [],
    }
    machine.let_paused_rounds_pass()
    assert machine.taken() == []

    resume(machine)
    assert machine.daemon.call("Schedule.List")["Paused"] is False
    machine.wait_for_snapshots(1)
    assert not machine.disabled.exists()
    assert machine.file.read_text().startswith(content)


def test_pausing_where_there_is_no_file_makes_an_empty_one(machine: Machine) -> None:
    daemon = machine.start()
    assert daemon.call("Schedule.List") == {
        "Err": "",
        "Schedule": [],
        "Paused": False,
        "Unreadable": [],
    }

    daemon.call("Schedule.Pause")
    daemon.call("Schedule.Pause")

    assert machine.disabled.read_bytes() == b""
    assert not machine.file.exists()
    assert daemon.call("Schedule.List") == {
        "Err": "",
        "Schedule": [],
        "Paused": True,
        "Unreadable": [],
    }
    daemon.call("Schedule.Resume")
    daemon.call("Schedule.Resume")
    assert machine.file.read_bytes() == b""
    assert not machine.disabled.exists()


def test_with_both_files_all_stays_paused_and_none_is_lost(machine: Machine) -> None:
    machine.volume()
    machine.write("db,snapshot,60")
    machine.disabled.write_text("web,snapshot,60\n")

    daemon = machine.start()

    assert daemon.call("Schedule.List") == {"Err": "", "Paused": True, **listed(job("web"))}
    error = daemon.refused("Schedule.Resume")
    assert str(machine.file) in error
    daemon.call("Schedule.Pause")
    assert machine.file.read_text() == "db,snapshot,60\n"
    assert machine.disabled.read_text() == "web,snapshot,60\n"
    assert daemon.stderr().count("exist; the jobs are paused") == 1
    assert machine.taken() == []


# Rows that cannot be read


def test_a_row_that_cannot_be_read_is_kept_as_it_is_and_logged_once(machine: Machine) -> None:
    machine.volume()
    odd = [
        b"# my jobs",
        b"",
        b"db;snapshot;60",
        b"db,snapshot",
        b"db,snapshot,soon",
        b"db,defragment,60",
        b'db,"snapshot,60',
        b"../db,snapshot,60",
        b"gr\xf6\xdfe,snapshot,60",
        b" , ,",
        b"db,snapshot,60,True,5",
        b"db,snapshot,60,yes",
    ]
    machine.file.write_bytes(b"\n".join([*odd, b"db,snapshot,60"]))

    daemon = machine.start()
    machine.wait_for_snapshots(1)
    machine.let_a_round_pass()
    daemon.call("Schedule", Name="web", Action="snapshot", Timer=60.0)
    daemon.call("Schedule", Name="db", Action="snapshot", Timer="pause")

    lines = machine.file.read_bytes().splitlines()
    assert lines[: len(odd)] == odd
    assert lines[len(odd)] == b"db,snapshot,60,False"
    assert lines[-1] == b"web,snapshot,60"
    assert {"db", "web"} < {each["Name"] for each in daemon.call("Schedule.List")["Schedule"]}
    warnings = [line for line in daemon.stderr().splitlines() if "skipped" in line]
    assert len(warnings) == len(odd) - 1, "an empty line is no row"
    assert all(str(machine.file) in line and "WARNING" in line for line in warnings)


# What is asked for over the API


@pytest.fixture(scope="module")
def schedule(plugin: Daemon) -> Path:
    """The file of the daemon that the following tests share."""
    path = Path(plugin.environ["BUTTERVOLUME_SCHEDULE"])
    for action, timer in (("snapshot", "60"), ("purge:1h:1d", "1440"), ("replicate:h", "5")):
        plugin.call("Schedule", Name="there", Action=action, Timer=timer)
    plugin.call("Schedule", Name="there", Action="replicate:h", Timer="pause")
    return path


def fingerprint(path: Path) -> tuple[bytes, int, int]:
    status = path.stat()
    return path.read_bytes(), status.st_ino, status.st_mtime_ns


REFUSED: dict[str, tuple[str, str, str]] = {
    "a bad action": ("db", "defragment", "60"),
    "no action": ("db", "", "60"),
    "an action in capitals": ("db", "Snapshot", "60"),
    "a snapshot of something": ("db", "snapshot:x", "60"),
    "a purge without a pattern": ("db", "purge", "60"),
    "a bad pattern": ("db", "purge:1h/0", "60"),
    "a pattern of nothing": ("db", "purge:0h:1d", "60"),
    "a replication to nowhere": ("db", "replicate:", "60"),
    "a host that is an option": ("db", "replicate:-oProxyCommand=x", "60"),
    "a host with a user": ("db", "replicate:root@host", "60"),
    "two hosts": ("db", "replicate:a,b", "60"),
    "a synchronization from nowhere": ("db", "synchronize", "60"),
    "an empty host": ("db", "synchronize:a,,b", "60"),
    "a host twice": ("db", "synchronize:a,a", "60"),
    "no minutes": ("db", "snapshot", ""),
    "minutes in words": ("db", "snapshot", "hourly"),
    "half a minute": ("db", "snapshot", "0.5"),
    "minutes ago": ("db", "snapshot", "-5"),
    "minutes with a sign": ("db", "snapshot", "+5"),
    "minutes with a blank": ("db", "snapshot", " 5"),
    "minutes of another script": ("db", "snapshot", "٥"),
    "minutes without end": ("db", "snapshot", "9" * 400),
    "a thousand years": ("db", "snapshot", "525960000"),
    "Pause in capitals": ("there", "snapshot", "Pause"),
    "no volume": ("", "snapshot", "60"),
    "a path": ("../there", "snapshot", "60"),
    "a snapshot": ("there@2026", "snapshot", "60"),
    "a second row in the name": ("there\nother", "snapshot", "60"),
    "pausing what is not there": ("db", "snapshot", "pause"),
    "resuming what is not there": ("there", "synchronize:h", "resume"),
    "removing by a bad action": ("there", "replicate", "0"),
}


@pytest.mark.parametrize(("name", "action", "timer"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_changes_nothing(
    plugin: Daemon, schedule: Path, name: str, action: str, timer: str
) -> None:
    before = fingerprint(schedule)

    error = plugin.refused("Schedule", Name=name, Action=action, Timer=timer)

    assert "\n" not in error
    assert fingerprint(schedule) == before


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"Name": "db", "Action": "snapshot"},
        {"Name": "db", "Timer": "60"},
        {"Action": "snapshot", "Timer": "60"},
        {"Name": "db", "Action": "snapshot", "Timer": None},
        {"Name": "db", "Action": "snapshot", "Timer": 60.5},
        {"Name": "there", "Action": "snapshot", "Timer": False},
        {"Name": "there", "Action": ["snapshot"], "Timer": "0"},
    ],
)
def test_a_malformed_request_is_told_so_and_changes_nothing(
    plugin: Daemon, schedule: Path, body: dict[str, object]
) -> None:
    before = fingerprint(schedule)

    answer = plugin.post("Schedule", **body)

    assert answer.status == 400
    assert answer.error
    assert fingerprint(schedule) == before


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_the_list_answers_strings_as_in_the_file(
    plugin: Daemon, schedule: Path, method: str
) -> None:
    answer = plugin.request("VolumeDriver.Schedule.List", method=method).json

    there = [each for each in answer["Schedule"] if each["Name"] == "there"]
    assert there == [
        {"Name": "there", "Action": "snapshot", "Timer": "60", "Active": "True"},
        {"Name": "there", "Action": "purge:1h:1d", "Timer": "1440", "Active": "True"},
        {"Name": "there", "Action": "replicate:h", "Timer": "5", "Active": "False"},
    ]
    assert answer["Paused"] is False
    assert set(answer) == {"Err", "Schedule", "Paused", "Unreadable"}


def rows_of(schedule: Path, volume: str) -> list[str]:
    return [row for row in schedule.read_text().splitlines() if row.startswith(f"{volume},")]


@pytest.mark.parametrize("remove", ["0", "delete"])
def test_the_life_of_a_job(plugin: Daemon, schedule: Path, remove: str) -> None:
    name = f"life-{remove}"

    def set_to(timer: str) -> list[str]:
        plugin.call("Schedule", Name=name, Action="synchronize:a,b", Timer=timer)
        return rows_of(schedule, name)

    assert set_to("60") == [f'{name},"synchronize:a,b",60']
    assert set_to("pause") == [f'{name},"synchronize:a,b",60,False']
    assert set_to("pause") == [f'{name},"synchronize:a,b",60,False']
    assert set_to("resume") == [f'{name},"synchronize:a,b",60']
    assert set_to("resume") == [f'{name},"synchronize:a,b",60']
    assert set_to("pause") == [f'{name},"synchronize:a,b",60,False']
    assert set_to("1440") == [f'{name},"synchronize:a,b",1440'], "a new period makes it active"
    assert set_to(remove) == []
    answer = plugin.call("Schedule", Name=name, Action="synchronize:a,b", Timer=remove)
    assert "no such job" in answer["Warning"]


def test_minutes_may_be_a_number(plugin: Daemon, schedule: Path) -> None:
    plugin.call("Schedule", Name="numbered", Action="purge:1h:1d", Timer=90)
    assert rows_of(schedule, "numbered") == ["numbered,purge:1h:1d,90"]

    plugin.call("Schedule", Name="numbered", Action="purge:1h:1d", Timer=0)
    assert rows_of(schedule, "numbered") == []


def test_a_job_for_a_volume_that_is_still_to_come_is_accepted_with_a_warning(
    plugin: Daemon, schedule: Path
) -> None:
    answer = plugin.call("Schedule", Name="to come", Action="snapshot", Timer="60")

    assert rows_of(schedule, "to come") == ["to come,snapshot,60"]
    assert answer["Warning"] == "there is no volume to come yet"
    for action, timer in (("snapshot", "pause"), ("snapshot", "delete"), ("purge:1h:1d", "60")):
        assert "Warning" not in plugin.call(
            "Schedule", Name="to come", Action=action, Timer=timer
        ), "what is switched or removed needs no volume, nor does the purge of received snapshots"


# What is asked for on the command line


def test_the_command_line(plugin: Daemon, schedule: Path) -> None:
    def say(*arguments: str, status: int = 0) -> tuple[str, str]:
        done = plugin.cli(*arguments)
        assert done.returncode == status, done
        return done.stdout, done.stderr

    def listed(*arguments: str) -> list[str]:
        output, complaint = say("scheduled", *arguments)
        assert complaint == ""
        return [line for line in output.splitlines() if line.endswith((" cli", "cli (paused)"))]

    warning = "buttervolume: warning: there is no volume cli yet\n"
    assert say("schedule", "snapshot", "60", "cli") == ("", warning)
    assert say("schedule", "purge:2h:2h", "1440", "cli") == ("", "")
    assert say("schedule", "snapshot", "pause", "cli") == ("", "")
    assert listed() == ["snapshot 60 cli (paused)", "purge:2h:2h 1440 cli"]
    before = fingerprint(schedule)
    output, complaint = say("schedule", "snapshot", "0", "nobody")
    assert (output, complaint.count("\n")) == ("", 1)
    assert "of nobody: there is no such job in the schedule" in complaint
    assert fingerprint(schedule) == before

    assert say("scheduled", "pause") == ("", "")
    output, complaint = say("scheduled", "list")
    assert "snapshot 60 cli (paused)\npurge:2h:2h 1440 cli\n" in output
    assert complaint == "buttervolume: all jobs are paused\n"
    assert say("scheduled", "resume") == ("", "")
    assert say("schedule", "purge:2h:2h", "delete", "cli") == ("", "")
    assert say("schedule", "snapshot", "resume", "cli") == ("", "")
    assert listed("list") == ["snapshot 60 cli"]


# Killed


def test_killed_in_a_storm_of_changes_the_file_is_always_whole(machine: Machine) -> None:
    chance = random.Random(3)
    padding = [f"padding{number},snapshot,60,False" for number in range(300)]
    machine.write(*padding, "neither a row nor nothing")
    answered = dict.fromkeys(("a", "b", "c"), 0)
    asked = dict(answered)
    for _ in range(KILLS):
        daemon = machine.start()
        killed = threading.Event()

        def change(name: str, daemon: Daemon = daemon, killed: threading.Event = killed) -> None:
            with suppress(NoAnswer, HTTPException, OSError):
                while not killed.is_set():
                    asked[name] += 1
                    timer = str(asked[name])
                    daemon.call("Schedule", Name=name, Action="purge:1h:1d", Timer=timer)
                    answered[name] = asked[name]

        def rename(daemon: Daemon = daemon, killed: threading.Event = killed) -> None:
            with suppress(NoAnswer, HTTPException, OSError):
                while not killed.is_set():
                    daemon.post("Schedule.Pause")
                    daemon.post("Schedule.Resume")

        with ThreadPoolExecutor(4) as pool:
            storm = [pool.submit(change, name) for name in answered] + [pool.submit(rename)]
            time.sleep(chance.uniform(0.1, 0.4))  # not to wait for something: to hit any moment
            daemon.kill()
            killed.set()
        for each in storm:
            each.result()

        [path] = [p for p in (machine.file, machine.disabled) if p.exists()]
        lines = path.read_text().splitlines()
        assert lines[:301] == [*padding, "neither a row nor nothing"]
        rows = [line.split(",") for line in lines[301:]]
        assert all(len(row) == 3 for row in rows), rows
        found = {name: int(timer) for name, _, timer in rows}
        assert len(found) == len(rows)
        for name, number in answered.items():
            assert number <= found.get(name, 0) <= asked[name], "what was answered is there"
        path.rename(machine.file)

    assert all(answered.values()), "the storm was none"
    assert len(machine.start().call("Schedule.List")["Schedule"]) == 303


@pytest.mark.parametrize("what", ["directory", "fifo", "loop"])
def test_what_lies_in_the_place_of_the_schedule_stops_nothing_but_jobs(
    machine: Machine, what: str
) -> None:
    if what == "loop":
        machine.file.symlink_to(machine.file)
    else:
        put(machine.file, what)
    daemon = machine.start()

    daemon.call("Create", Name="db")
    daemon.call("Create", Name="db", Opts={"keep": "2d"})
    said = daemon.refused("Create", Name="other", Opts={"snapshot": "60"})

    assert daemon.names() == ["db"]
    assert "schedule" in said
    assert str(machine.file) in said
    assert "Errno" not in said
    answer = daemon.call("Status")
    assert [(p["Kind"], p["Message"]) for p in answer["Problems"]] == [("unreadable", said)]
    assert [volume["Name"] for volume in answer["Volumes"]] == ["db"]
    for command in ("volumes", "snapshots", "removed"):
        assert daemon.cli(command).returncode == 0
    assert "schedule" in daemon.cli("scheduled").stderr
