"""`status` and its kin daemonst a real daemon on a real BTRFS."""

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from buttervolume.system import btrfs as kernel
from buttervolume.system import extents, space
from buttervolume.system.command import Flow
from tests.btrfs.conftest import StartDaemon
from tests.btrfs.harness import DATE_FORMAT, REPOSITORY, Daemon, Place, btrfs, subvolume
from tests.support.filesystem import loop_btrfs
from tests.support.wait import wait_until


def seen_on_a_terminal(daemon: Daemon, columns: int, *arguments: str, **environ: str) -> str:
    """What a command prints on a terminal of so many columns."""
    controller, terminal = pty.openpty()
    shown = b""
    with subprocess.Popen(
        [sys.executable, "-m", "buttervolume", *arguments],
        env=daemon.environ | {"COLUMNS": str(columns), "TERM": "xterm"} | environ,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    ):
        os.close(terminal)
        try:
            while piece := os.read(controller, 1 << 16):
                shown += piece
        except OSError:  # the other end is closed
            pass
    os.close(controller)
    return shown.decode()


def states(daemon: Daemon) -> dict[str, str]:
    jobs = daemon.call("Status")["Jobs"]
    return {f"{job['Action']} {job['Name']}": job["State"] for job in jobs}


def problems(daemon: Daemon) -> list[tuple[str, str | None]]:
    return [(p["Kind"], p["Volume"]) for p in daemon.call("Status")["Problems"]]


def old(volume: str, age: timedelta) -> str:
    return f"{volume}@{(datetime.now() - age).strftime(DATE_FORMAT)}"


def test_all_is_well_says_the_first_line_and_the_exit_status(daemon: Daemon) -> None:
    daemon.call("Create", Name="db")

    done = daemon.cli("status")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == "all is well"
    assert "GiB free" in done.stdout


def test_last_nights_backup_failed_and_everybody_hears_why(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(BUTTERVOLUME_TIMER="1", SSH_PORT="1")
    daemon.call("Create", Name="db")
    daemon.call("Create", Name="web")
    daemon.call("Schedule", Name="db", Action="replicate:127.0.0.1", Timer="60")
    daemon.call("Schedule", Name="web", Action="snapshot", Timer="60")
    wait_until(lambda: "failing" in states(daemon).values(), what="the job to fail")
    wait_until(lambda: states(daemon)["snapshot web"] == "ok", what="the other to succeed")

    everything, of_db, of_web = (daemon.cli("status", *which) for which in ((), ("db",), ("web",)))

    assert (everything.returncode, of_db.returncode, of_web.returncode) == (1, 1, 0)
    assert everything.stdout.splitlines()[0] == "1 problem"
    assert re.search(r"^failing +db +replicate:127\.0\.0\.1 .*127\.0\.0\.1: ", of_db.stdout, re.M)
    assert "replicate" not in of_web.stdout
    row = next(job for job in daemon.call("Status")["Jobs"] if job["Name"] == "db")
    assert row["Failures"] >= 1
    assert datetime.fromisoformat(row["NextRun"]) > datetime.fromisoformat(row["LastFailure"])


def test_the_json_is_the_endpoints_answer(daemon: Daemon) -> None:
    daemon.call("Create", Name="db")
    name = daemon.call("Snapshot", Name="db")["Snapshot"]

    printed: dict[str, Any] = json.loads(daemon.cli("status", "--json").stdout)

    answered = daemon.call("Status")
    assert set(printed) == set(answered) - {"Err"}
    assert printed["Volumes"] == answered["Volumes"]
    (volume,) = printed["Volumes"]
    assert (volume["Name"], volume["Snapshots"], volume["LastSnapshot"]) == ("db", 1, name)
    assert datetime.fromisoformat(volume["LastTaken"]).tzinfo is not None


def test_a_volume_that_nobody_knows_is_an_error_and_copies_alone_are_none(
    daemon: Daemon, place: Place
) -> None:
    subvolume(place.directory / "one")
    btrfs("subvolume", "snapshot", "-r", place.directory / "one", place.snapshots / "away@1")

    unknown, known = daemon.cli("status", "nobody"), daemon.cli("status", "away")

    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "nobody: no such volume" in unknown.stderr
    assert known.returncode == 0
    assert daemon.refused("Status", Name="a/b")


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_a_table_fits_the_terminal_and_is_whole_in_a_pipe(daemon: Daemon, columns: int) -> None:
    long = "v" * 120
    daemon.call("Create", Name=long)
    daemon.call("Schedule", Name=long, Action="purge:1h:1d", Timer="60")

    shown = seen_on_a_terminal(daemon, columns, "status", NO_COLOR="1")
    piped = daemon.cli("status").stdout

    table = [line for line in shown.splitlines() if " free (" not in line]
    assert any(line.startswith("PROBLEM") for line in table)
    assert max(map(len, table)) <= columns
    assert long in piped


def test_colour_is_for_terminals_alone_and_for_those_who_want_it(daemon: Daemon) -> None:
    assert "\x1b[" in seen_on_a_terminal(daemon, 80, "status")
    assert "\x1b[" not in seen_on_a_terminal(daemon, 80, "status", NO_COLOR="1")
    assert "\x1b[" not in daemon.cli("status").stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["status"],
        ["status", "db"],
        ["volumes"],
        ["usage"],
        ["snapshots", "--long"],
        ["log"],
        ["removed"],
        ["doctor"],
    ],
    ids=" ".join,
)
def test_every_table_has_its_colours_and_no_more(daemon: Daemon, arguments: list[str]) -> None:
    odd = "db\u2028\u202e"
    subvolume(daemon.place.volumes / odd)
    for name in ("db", odd):
        daemon.post("Create", Name=name)
        daemon.call("Snapshot", Name=name)
    daemon.call("Schedule", Name=odd, Action="snapshot", Timer="60")
    daemon.refused("Snapshot", Name="unknown\x1b[2J")
    daemon.post("Remove", Name=odd)

    shown = seen_on_a_terminal(daemon, 400, *arguments)

    assert "\x1b[" in shown
    assert r"\x1b[1m" not in shown, "a colour is shown as text"
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert all(line.isprintable() for line in plain.replace("\r", "").split("\n")), plain


def test_a_hostile_name_stays_on_its_line(daemon: Daemon, place: Place) -> None:
    odd = "a\u2028b\u202ec \x20"
    subvolume(place.volumes / odd)
    name = f"{odd}@x\u2028y"
    btrfs("subvolume", "snapshot", "-r", place.volumes / odd, place.snapshots / name)
    daemon.call("Schedule", Name=odd, Action="purge:1h:1d", Timer="60")

    done = daemon.cli("status")

    assert done.returncode == 1
    assert all(line.isprintable() for line in done.stdout.split("\n"))
    assert "a\\u2028b\\u202ec" in done.stdout


ENDS = ("0001-01-01T00:00:00.000000", "9999-12-31T23:59:59.999999")
"""Where the calendar ends, and UTC may be in a year that there is not."""


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Kiritimati", "Pacific/Pago_Pago"])
def test_dates_at_the_ends_of_the_calendar_spoil_no_list(
    start_daemon: StartDaemon, place: Place, zone: str
) -> None:
    daemon = start_daemon(TZ=zone)
    for volume in ("db", "gone"):
        daemon.call("Create", Name=volume)
    for date in (*ENDS, f"{ENDS[1]}@vault"):
        path = place.snapshots / f"db@{date}"
        btrfs("subvolume", "snapshot", "-r", place.volumes / "db", path)
    daemon.call("Remove", Name="gone")
    for date in ENDS:
        subvolume(place.volumes / f".buttervolume-removed/odd@{date}")
    daemon.call("Schedule", Name="db", Action="purge:1h:900y", Timer="5000000")

    details = daemon.call("Snapshot.List", Name="db", Details=True)["Details"]
    removed = daemon.call("Volume.Removed")["Removed"]

    assert [each["Taken"][:19] for each in details] == [date[:19] for date in ENDS]
    assert [each["Until"][:10] for each in removed][1:] == ["0001-01-02", "9999-12-31"]
    for command in ("status", "volumes", "removed", "scheduled"):
        assert daemon.cli(command).returncode in (0, 1)
    assert "in the future" in daemon.cli("snapshots", "-l").stdout
    assert daemon.cli("undelete", "gone").stdout == "gone\n"
    for at in ("0001-01-01T00:00:00+23:00", "9999-12-31T23:59:59-23:00"):
        assert "is no date" in daemon.refused("Snapshot.Restore", Name="db", At=at)
    daemon.stop()
    assert "Traceback" not in daemon.stderr()


def test_a_filesystem_that_is_gone_is_said_so_instead_of_silence(
    daemon: Daemon, place: Place
) -> None:
    daemon.call("Create", Name="db")
    place.volumes.rename(place.directory / "elsewhere")
    try:
        done = daemon.cli("status")
    finally:
        (place.directory / "elsewhere").rename(place.volumes)

    assert done.returncode == 1
    assert "unavailable" in done.stdout


def test_the_clock_is_behind(daemon: Daemon, place: Place) -> None:
    daemon.call("Create", Name="db")
    path = place.snapshots / old("db", timedelta(days=-2))
    btrfs("subvolume", "snapshot", "-r", place.volumes / "db", path)

    assert problems(daemon) == [("clock", "db")]


def test_partial_copies_and_rows_that_nobody_understands(daemon: Daemon, place: Place) -> None:
    for number in range(4):
        subvolume(place.snapshots / f"db@{number}")
    Path(daemon.environ["BUTTERVOLUME_SCHEDULE"]).write_text("db,snapsot,60\n")

    assert problems(daemon) == [("partial", None), ("unreadable", None)]
    assert len(daemon.call("Status")["Partial"]) == 4


def test_a_filesystem_without_room_and_one_that_is_read_only(tmp_path: Path) -> None:
    with loop_btrfs(tmp_path, size="256M") as mount_point:
        before = space.look(mount_point)
        (mount_point / "file").write_bytes(os.urandom(64 << 20))
        btrfs("filesystem", "sync", mount_point)
        after = space.look(mount_point)
        subprocess.run(["mount", "-o", "remount,ro", mount_point], check=True)

        assert before.size == after.size == 256 << 20
        assert before.free - after.free >= 60 << 20
        assert shutil.disk_usage(mount_point).free == after.free
        assert not after.read_only
        assert space.look(mount_point).read_only
        assert 0 < after.metadata_used < after.metadata_size
        (device,) = after.devices
        assert device.path.startswith("/dev/")
        assert set(device.errors.values()) == {0}


# Snapshots


def take_by_hand(place: Place, name: str) -> str:
    btrfs("subvolume", "snapshot", "-r", place.volumes / "db", place.snapshots / name)
    return name


def test_long_snapshots_tell_their_age_their_hosts_and_their_end(
    daemon: Daemon, place: Place
) -> None:
    daemon.call("Create", Name="db")
    doomed = take_by_hand(place, old("db", timedelta(days=9)))
    sent = take_by_hand(place, old("db", timedelta(hours=5)))
    take_by_hand(place, f"{sent}@backup")
    newest = take_by_hand(place, old("db", timedelta(minutes=10)))
    daemon.call("Schedule", Name="db", Action="purge:1h:7d", Timer="60")
    daemon.call("Schedule", Name="db", Action="purge:1h:7d", Timer="pause")

    listed = daemon.cli("snapshots", "-l", "db").stdout.splitlines()
    answer = json.loads(daemon.cli("snapshots", "--json", "db").stdout)

    assert [line.split()[0] for line in listed] == ["SNAPSHOT", doomed, sent, newest]
    assert re.search(r"9 days ago +- +until the next purge +older than 7d", listed[1])
    assert re.search(r"5 hours ago +backup +for 6 days", listed[2])
    assert re.search(r"10 minutes ago +- +for", listed[3])
    assert answer["Snapshots"] == [doomed, sent, f"{sent}@backup", newest]
    assert [each["Hosts"] for each in answer["Details"]] == [[], ["backup"], []]
    assert [each["Purged"] for each in answer["Details"]] == [True, False, False]


def test_bare_snapshots_and_jobs_print_as_ever_and_as_json_their_answers(daemon: Daemon) -> None:
    daemon.call("Create", Name="db")
    name = daemon.call("Snapshot", Name="db")["Snapshot"]
    daemon.call("Schedule", Name="db", Action="snapshot", Timer="60")

    assert daemon.cli("snapshots").stdout == f"{name}\n"
    assert daemon.cli("scheduled").stdout == "snapshot 60 db\n"
    assert daemon.cli("transfers").stdout == ""
    (job,) = json.loads(daemon.cli("scheduled", "--json").stdout)["Schedule"]
    assert (job["Name"], job["Action"], job["Timer"]) == ("db", "snapshot", "60")
    assert json.loads(daemon.cli("transfers", "--json").stdout) == {"Transfers": []}


# Volumes


def test_volumes_tells_of_each_what_there_is_to_know(daemon: Daemon, place: Place) -> None:
    daemon.call("Create", Name="db")
    daemon.call("Create", Name="web")
    take_by_hand(place, f"{old('db', timedelta(hours=3))}")
    take_by_hand(place, f"{old('db', timedelta(hours=3))}@backup")
    daemon.call("Mount", Name="db", ID="one")
    daemon.call("Mount", Name="db", ID="two")
    daemon.call("Schedule", Name="db", Action="purge:1h:1d", Timer="60")

    listed = daemon.cli("volumes").stdout.splitlines()
    answer = json.loads(daemon.cli("volumes", "--json").stdout)

    assert [line.split()[0] for line in listed] == ["VOLUME", "db", "web"]
    assert re.search(r"^db .* ago +2 +1 +3 hours ago +backup +1$", listed[1])
    assert re.search(r"^web .* ago +- +0 +- +- +-$", listed[2])
    db, web = answer["Volumes"]
    assert (db["Name"], db["InUse"], db["Snapshots"], db["Jobs"]) == ("db", 2, 1, 1)
    assert db["Mountpoint"] == str(place.volumes / "db")
    assert datetime.fromisoformat(web["CreatedAt"]).tzinfo is not None


def test_a_volume_that_the_kernel_shows_mounted_counts_for_each_who_has_it(
    daemon: Daemon, place: Place
) -> None:
    daemon.call("Create", Name="db")
    (place.volumes / "db/inner").mkdir()
    script = f"mount --bind {place.volumes}/db/inner /mnt && echo && exec sleep 60"
    holders = [
        subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", script], stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    try:
        for holder in holders:
            assert holder.stdout is not None
            holder.stdout.readline()
        (volume,) = daemon.call("Volume.List")["Volumes"]
        assert volume["InUse"] == 3
    finally:
        for holder in holders:
            holder.kill()
            holder.communicate()
    (volume,) = daemon.call("Volume.List")["Volumes"]
    assert volume["InUse"] == 0


WHO = """
import sys
from pathlib import Path
from buttervolume.system import mounts
volume = Path(sys.argv[1])
print(len(mounts.users(volume)), mounts.users_below(volume.parent)[volume.name])
"""


def test_users_are_seen_without_the_right_to_trace_them(daemon: Daemon, place: Place) -> None:
    """As the managed plugin sees them: without CAP_SYS_PTRACE the kernel hides from it which mount
    namespace a process is in, unless that process can do no more than itself."""
    daemon.call("Create", Name="db")
    script = f"mount --bind {place.volumes}/db /mnt && echo && sleep 60 & exec sleep 60"
    who = (sys.executable, "-c", WHO, f"{place.volumes}/db")
    with subprocess.Popen(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script],
        stdout=subprocess.PIPE,
    ) as holder:
        try:
            assert holder.stdout is not None
            holder.stdout.readline()
            for drop in ("-sys_ptrace", "+sys_ptrace"):
                can = ("setpriv", f"--bounding-set={drop}", f"--inh-caps={drop}")
                seen = subprocess.check_output([*can, *who], cwd=REPOSITORY, text=True)
                assert seen == "1 1\n"
        finally:
            holder.kill()
    wait_until(lambda: subprocess.check_output(who, cwd=REPOSITORY, text=True) == "0 0\n")


MIB = 1 << 20


def test_usage_by_extents_and_by_groups(tmp_path: Path, runtime: Path) -> None:
    with loop_btrfs(tmp_path, size="1G") as mount_point:
        place = Place.make(mount_point / "place")
        daemon = Daemon(place, runtime / "run").start()
        daemon.call("Create", Name="db", Opts={"copyonwrite": "true"})
        volume = place.volumes / "db"
        (volume / "kept").write_bytes(os.urandom(8 * MIB))
        (volume / "gone").write_bytes(os.urandom(4 * MIB))
        daemon.call("Snapshot", Name="db")
        (volume / "gone").unlink()
        (volume / "new").write_bytes(os.urandom(2 * MIB))

        (by_extents,) = daemon.call("Usage", Name="db")["Usage"]
        assert by_extents == {
            "Name": "db",
            "Bytes": 10 * MIB,
            "Exclusive": 2 * MIB,
            "Snapshots": 4 * MIB,
            "By": "extents",
        }
        btrfs("quota", "enable", mount_point)
        btrfs("quota", "rescan", "-w", mount_point)
        (by_group,) = daemon.call("Usage", Name="db")["Usage"]
        assert by_group["By"] == "group"
        assert abs(by_group["Bytes"] - 10 * MIB) < MIB
        assert abs(by_group["Exclusive"] - 2 * MIB) < MIB
        assert by_group["Snapshots"] == 4 * MIB
        table = daemon.cli("usage").stdout.splitlines()
        assert re.search(r"^db +10\.0 MiB +2\.0 MiB +4\.0 MiB$", table[1])
        assert daemon.refused("Usage", Name="nobody")
        daemon.stop()


def test_more_snapshots_are_measured_than_a_command_takes_arguments(place: Place) -> None:
    volume, snapshot = place.volumes / "db", place.snapshots / "db@2026"
    subvolume(volume)
    (volume / "gone").write_bytes(os.urandom(MIB))
    btrfs("subvolume", "snapshot", "-r", volume, snapshot)
    (volume / "gone").unlink()
    kernel.sync(volume)
    removed = [place.snapshots / f"{'x' * 200}{number}" for number in range(20_000)]

    measured = extents.measure(volume, [*removed, snapshot], Flow())

    assert (measured.exclusive, measured.others) == (0, MIB)


# The doctor


def test_the_doctor_finds_nothing_bad_here_and_tells_of_what_is_odd(
    start_daemon: StartDaemon,
) -> None:
    daemon = start_daemon(BUTTERVOLUME_NONSENSE="1")
    daemon.call("Create", Name="db")

    done = daemon.cli("doctor", "--json")

    found = json.loads(done.stdout)["Findings"]
    assert [finding for finding in found if finding["Level"] == "bad"] == []
    assert done.returncode == 0
    odd = [finding["Message"] for finding in found if finding["Check"] == "configuration"]
    assert any("NONSENSE" in message for message in odd)


def test_the_doctor_says_what_to_do_about_each_problem(daemon: Daemon, place: Place) -> None:
    daemon.call("Create", Name="db")
    path = place.snapshots / old("db", timedelta(days=-2))
    btrfs("subvolume", "snapshot", "-r", place.volumes / "db", path)
    daemon.call("Schedule", Name="db", Action="purge:1h:1d", Timer="60")

    done = daemon.cli("doctor")

    assert done.returncode == 1
    assert re.search(r"^bad +clock .*timedatectl", done.stdout, re.M)
    assert re.search(r"^bad +unprotected +db: .*add a snapshot", done.stdout, re.M)
