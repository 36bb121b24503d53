"""Purge on a real BTRFS: what goes, what stays, what cannot go, and how few commands it takes."""

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path

import pytest

from buttervolume.errors import BadName, NoSuchVolume
from buttervolume.names import SnapshotName, parse_snapshot
from buttervolume.store.retention import parse_pattern
from buttervolume.store.snapshots import Purged, Snapshots
from buttervolume.system import btrfs as kernel
from tests.btrfs.harness import DATE_FORMAT, Daemon, Place, Shim, Store, btrfs, subvolume
from tests.support.wait import wait_until

NOON = datetime(2026, 5, 6, 12)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
NUMBERS = count(1)
SNAP_CREATE_V2 = 0x50009417
SUBVOL_RDONLY = 1 << 1
"""Both from linux/btrfs.h: a snapshot in a third of the time that the `btrfs` command takes."""


def at(moment: datetime) -> str:
    return moment.strftime(DATE_FORMAT)


def make(place: Place, names: list[str]) -> list[str]:
    """Make read-only snapshots of these names, as if they had been taken when their names say."""
    source = place.directory / "source"
    if not source.exists():
        subvolume(source, {"file": "old"})
    inside, target = (os.open(path, os.O_RDONLY) for path in (source, place.snapshots))
    try:
        for name in names:
            arguments = (inside, 0, SUBVOL_RDONLY, b"", os.fsencode(name))
            fcntl.ioctl(target, SNAP_CREATE_V2, bytearray(struct.pack("=qQQ32s4040s", *arguments)))
    finally:
        os.close(inside)
        os.close(target)
    return names


def purge(store: Store, pattern: str, volume: str = "db") -> Purged:
    """Purge at noon."""
    snapshots = Snapshots(store.catalog, store.volumes, lambda: NOON)
    snapshots.in_transfer = store.snapshots.in_transfer
    return snapshots.purge(volume, parse_pattern(pattern))


def left_over(store: Store) -> set[str]:
    return set(store.place.snapshot_names())


@pytest.fixture
def volume(plugin: Daemon) -> str:
    """A volume of its own for each test of the running daemon."""
    name = f"purge{next(NUMBERS)}"
    plugin.call("Create", Name=name)
    return name


def hourly(volume: str, hours: int) -> list[str]:
    """Names of snapshots taken every hour until half an hour ago, the oldest first."""
    now = datetime.now()
    return [f"{volume}@{at(now - HOUR / 2 - n * HOUR)}" for n in reversed(range(hours))]


# What goes and what stays


@pytest.mark.parametrize("pattern", ["4h:1d:2w", "2w:4h:1d", "1d:336h:240m"])
def test_a_pattern_keeps_the_oldest_of_each_timeframe(store: Store, pattern: str) -> None:
    kept = {
        "2026-05-06T11:59:59.999999": "younger than 4h",
        "2026-05-06T11:00:00.000000": "younger than 4h",
        "2026-05-06T08:00:01.000000": "younger than 4h",
        "2026-05-06T04:00:00.000000": "the oldest of the 4h from 04:00",
        "2026-05-06T03:59:59.000000": "the oldest of the 4h from 00:00",
        "2026-05-05T13:00:00.000000": "the oldest of the 4h from 12:00",
        "2026-05-05T00:00:00.000000": "the oldest of its day",
        "2026-05-04T23:59:59.000000": "the oldest of its day",
        "2026-04-22T13:00:00.000000": "the oldest of its day",
    }
    gone = {
        "2026-05-06T07:50:00.000000": "04:00 is older",
        "2026-05-06T04:00:00.000001": "04:00 is older",
        "2026-05-05T14:00:00.000000": "13:00 is older",
        "2026-05-05T11:00:00.000000": "00:00 is older",
        "2026-04-22T11:59:59.000000": "older than 2w",
        "2019-01-01T00:00:00.000000": "older than 2w",
    }
    make(store.place, [f"db@{date}" for date in kept | gone])

    purged = purge(store, pattern)

    assert set(purged.deleted) == {f"db@{date}" for date in gone}
    assert purged.failed == {}
    assert left_over(store) == {f"db@{date}" for date in kept}
    assert purge(store, pattern) == Purged((), {}), "the second time there is nothing to do"


def test_2h_2h_keeps_the_last_two_hours(store: Store) -> None:
    names = make(store.place, [f"db@{at(NOON - n * HOUR / 4)}" for n in range(20)])

    purge(store, "2h:2h")

    assert left_over(store) == set(names[:9])


def test_only_the_snapshots_of_that_volume_are_purged(store: Store) -> None:
    old = at(NOON - 900 * DAY)
    others = make(store.place, [f"{name}@{old}" for name in ("db2", "d", "my db", "db.old")])
    make(store.place, [f"db@{old}", f"db@{at(NOON)}"])

    assert purge(store, "1h:1d").deleted == (f"db@{old}",)
    assert left_over(store) == {*others, f"db@{at(NOON)}"}


def test_what_a_restore_takes_stays_however_new_the_backup_of_the_last_one_is(store: Store) -> None:
    # given a volume that was restored: its newest snapshot is the backup that this has made
    subvolume(store.place.volumes / "db", {"file": "new"})
    old, latest = make(store.place, [f"db@{at(NOON - days * DAY)}" for days in (9, 8)])
    before = Store.make(store.place, now=lambda: NOON - 2 * DAY)
    backup = before.contents.restore("db").backup

    assert purge(store, "1h:1d").deleted == (old,)
    assert left_over(store) == {latest, backup}

    # when there are snapshots again, the backup goes with its age, as the others do
    (new,) = make(store.place, [f"db@{at(NOON)}"])
    assert set(purge(store, "1h:1d").deleted) == {latest, backup}
    assert left_over(store) == {new}


def test_the_snapshots_of_a_volume_that_was_removed_can_still_be_purged(store: Store) -> None:
    old, new = make(store.place, [f"db@{at(NOON - 9 * DAY)}", f"db@{at(NOON - 8 * DAY)}"])

    assert purge(store, "1h:1d").deleted == (old,)
    assert left_over(store) == {new}, "the newest stays whatever its age"


def test_what_no_pattern_may_delete_stays(store: Store) -> None:
    def db(days: int, host: str = "") -> str:
        return f"db@{at(NOON - days * DAY)}{host}"

    protected = {
        db(300): "the newest snapshot",
        db(310): "the parent of the next send to host1",
        db(310, "@host1"): "the newest marker of host1",
        db(320): "the parent of the next send to host2",
        db(320, "@host2"): "the newest marker of host2",
        db(330, "@host3"): "the newest marker of host3, though what it marks is gone",
        db(-1): "in the future",
        db(-400, "@host1"): "a marker in the future",
        "db@yesterday": "a foreign date",
        "db@2020-01-01": "a foreign date",
        "db@2020-01-01@host1": "a foreign date",
    }
    doomed = [db(311), db(319), db(400), db(320, "@host1"), db(330, "@host2"), db(400, "@host3")]
    make(store.place, [*protected, *doomed])

    purged = purge(store, "1h:1d")

    assert set(purged.deleted) == set(doomed)
    assert left_over(store) == set(protected)


@pytest.mark.parametrize("ahead", [2 * HOUR, 400 * DAY])
def test_while_the_clock_is_far_behind_a_snapshot_that_was_taken_here_nothing_is_purged(
    store: Store, ahead: timedelta
) -> None:
    volume = subvolume(store.place.volumes / "db")
    dates = [NOON - 9 * DAY, NOON - 8 * DAY, NOON + ahead]
    names = [f"db@{at(date)}" for date in dates]
    for name in names:
        btrfs("subvolume", "snapshot", "-r", volume, store.place.snapshots / name)

    purged = purge(store, "1h:1d")

    assert purged.deleted == ()
    assert names[-1] in purged.warning
    assert "clock" in purged.warning
    plan = Snapshots(store.catalog, store.volumes, lambda: NOON).plan_purge(
        "db", parse_pattern("1h:1d")
    )
    assert plan.warning == purged.warning
    assert all(verdict.keep for verdict in plan.verdicts)

    store.snapshots.remove(names[-1])
    assert purge(store, "1h:1d") == Purged((names[0],), {})


@pytest.mark.parametrize("since", ["restored", "removed"])
def test_it_is_the_clock_whatever_has_become_of_the_volume(store: Store, since: str) -> None:
    subvolume(store.place.volumes / "db", {"file": "x"})
    make(store.place, [f"db@{at(datetime.now() - age * DAY)}" for age in (9, 8)])
    newest = store.snapshots.take("db").name
    if since == "restored":
        newest = store.contents.restore(newest).backup or ""
    else:
        store.volumes.remove("db")
    behind = store.catalog.moment_of(parse_snapshot(newest))
    assert behind is not None

    snapshots = Snapshots(store.catalog, store.volumes, lambda: behind - 2 * HOUR)
    purged = snapshots.purge("db", parse_pattern("1m"))

    assert purged.deleted == ()
    assert newest in purged.warning


def test_a_date_within_the_hour_that_comes_twice_holds_no_purge_up(store: Store) -> None:
    volume = subvolume(store.place.volumes / "db")
    names = [f"db@{at(date)}" for date in (NOON - 9 * DAY, NOON - 8 * DAY, NOON + HOUR)]
    for name in names:
        btrfs("subvolume", "snapshot", "-r", volume, store.place.snapshots / name)

    assert purge(store, "1h:1d") == Purged((names[0],), {})


def test_odd_patterns_carry_a_warning_dry_run_included(plugin: Daemon, volume: str) -> None:
    for dry in (True, False):
        answer = plugin.call("Snapshots.Purge", Name=volume, Pattern="48h:20d:6m", Dryrun=dry)
        assert "6 minutes" in answer["Warning"]
        answer = plugin.call("Snapshots.Purge", Name=volume, Pattern="6m:48h:20d", Dryrun=dry)
        assert "Warning" not in answer
    for name in (volume, f"{volume}*"):
        answer = plugin.call("Schedule", Name=name, Action="purge:48h:20d:6m", Timer="now")
        assert answer["Warning"].count("do not ascend") == 1
    answer = plugin.call("Schedule", Name=volume, Action="purge:48h:20d:6m", Timer="60")
    assert "6 minutes" in answer["Warning"]
    listed = plugin.call("Schedule.List")["Schedule"]
    assert "purge:48h:20d:6m" in [job["Action"] for job in listed], "as it was typed"
    wait_until(lambda: "6 minutes" in plugin.stderr(), what="a line in the log")
    plugin.call("Schedule", Name=volume, Action="purge:48h:20d:6m", Timer="delete")
    done = plugin.cli("purge", "--dryrun", "48h:20d:6m", volume)
    assert (done.returncode, done.stdout) == (0, "")
    assert "warning" in done.stderr
    assert "6 minutes" in done.stderr
    assert "write 1d/1" in plugin.refused("Snapshots.Purge", Name=volume, Pattern="1h/24:1d")


def test_what_is_no_snapshot_is_left_alone(store: Store) -> None:
    old, _ = make(store.place, [f"db@{at(NOON - 9 * DAY)}", f"db@{at(NOON)}"])
    there = store.place.snapshots
    receiving = subvolume(there / f"db@{at(NOON - 8 * DAY)}")
    (there / f"db@{at(NOON - 7 * DAY)}").symlink_to(receiving)
    (there / f"db@{at(NOON - 6 * DAY)}").mkdir()
    (there / f"db@{at(NOON - 5 * DAY)}").touch()
    before = left_over(store)

    assert purge(store, "1h:1d").deleted == (old,)

    assert left_over(store) == before - {old}


@pytest.mark.parametrize("volume", ["", "db@x", "../snapshots", ".hidden", "d*", "unknown"])
def test_a_volume_that_there_is_not_is_an_error(store: Store, volume: str) -> None:
    make(store.place, ["db@2019-01-01T00:00:00.000000", "db@2019-01-02T00:00:00.000000"])

    with pytest.raises((NoSuchVolume, BadName)):
        purge(store, "1h:1d", volume)

    assert len(left_over(store)) == 2


def test_a_volume_without_snapshots_has_nothing_to_purge(plugin: Daemon, volume: str) -> None:
    answer = plugin.call("Snapshots.Purge", Name=volume, Pattern="1h:1d")

    assert answer["Purged"] == []


# Transfers


def test_what_a_transfer_needs_is_not_purged(store: Store) -> None:
    sent, parent, other, _ = make(
        store.place, [f"db@{at(NOON - days * DAY)}" for days in (5, 6, 7, 0)]
    )

    with store.snapshots.in_transfer.hold(sent, parent):
        assert purge(store, "1h:1d") == Purged((other,), {})
        assert {sent, parent} < left_over(store)

    assert set(purge(store, "1h:1d").deleted) == {sent, parent}


def test_a_transfer_that_begins_between_decision_and_deletion_keeps_its_snapshot(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent, other, _ = make(store.place, [f"db@{at(NOON - days * DAY)}" for days in (5, 6, 0)])
    snapshots = store.snapshots
    plan = snapshots.plan_purge("db", parse_pattern("1h:1d"))
    monkeypatch.setattr(snapshots, "plan_purge", lambda *_: plan)

    with snapshots.in_transfer.hold(sent):
        purged = snapshots.purge("db", parse_pattern("1h:1d"))

    assert purged == Purged((other,), {})
    assert sent in left_over(store)


def test_several_purges_at_once_get_along(store: Store) -> None:
    newest = f"db@{at(NOON)}"
    doomed = {f"db@{at(NOON - n * DAY)}" for n in range(2, 102)}
    make(store.place, [newest, *doomed])

    with ThreadPoolExecutor(4) as pool:
        purges = [pool.submit(purge, store, "1h:1d") for _ in range(4)]
        done = [each.result(60) for each in purges]

    assert left_over(store) == {newest}
    assert {name for purged in done for name in purged.deleted} == doomed
    assert all(purged.failed == {} for purged in done)


# What cannot be deleted


@contextmanager
def undeletable(place: Place, nested: str, default: str) -> Iterator[None]:
    """Make two snapshots so that not even root can delete them."""
    path = place.snapshots / nested
    btrfs("property", "set", "-ts", path, "ro", "false")
    subvolume(path / "nested")
    btrfs("property", "set", "-ts", path, "ro", "true")
    btrfs("subvolume", "set-default", place.snapshots / default)
    try:
        yield
    finally:
        btrfs("subvolume", "set-default", "5", place.snapshots)


def test_a_snapshot_that_cannot_be_deleted_stops_no_other_and_is_named(
    plugin: Daemon, volume: str
) -> None:
    names = make(plugin.place, hourly(volume, 12))
    stuck, default = names[1], names[4]

    with undeletable(plugin.place, stuck, default):
        answer = plugin.post("Snapshots.Purge", Name=volume, Pattern="2h:2h")
        command = plugin.cli("purge", "2h:2h", volume)

        assert answer.status == 200
        assert stuck in answer.error
        assert default in answer.error
        assert "Directory not empty" in answer.error
        assert set(answer.json["Purged"]) == set(names[:-2]) - {stuck, default}
        assert plugin.snapshot_names(volume) == [stuck, default, *names[-2:]]
        assert (command.returncode, command.stdout) == (1, "")
        assert stuck in command.stderr
    assert plugin.call("Snapshots.Purge", Name=volume, Pattern="2h:2h", Dryrun=True)["Purged"] == [
        stuck,
        default,
    ]


def test_many_are_deleted_by_few_commands(
    store: Store, shim: Shim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{shim.directory}:{os.environ['PATH']}")
    names = make(store.place, [f"db@{at(NOON - n * HOUR)}" for n in range(275)])
    stuck, default = names[60], names[270]

    with undeletable(store.place, stuck, default):
        purged = purge(store, "1d:1d")
        assert len(shim.calls()) == 1
        assert len(purged.deleted) == 248
        assert set(purged.failed) == {stuck, default}
        assert "Directory not empty" in purged.explain()

    assert left_over(store) == {*names[:25], stuck, default}


def test_many_from_the_future_are_not_compared_each_with_all(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a host starts without a clock that goes on, and keeps what others have sent."""
    names = make(store.place, [f"db@{at(NOON + n * DAY)}" for n in range(2, 102)])
    real, compared = SnapshotName.__eq__, list[SnapshotName]()

    def equals(self: SnapshotName, other: object) -> bool:
        compared.append(self)
        return bool(real(self, other))

    with monkeypatch.context() as patch:
        patch.setattr(SnapshotName, "__eq__", equals)
        purged = purge(store, "1d:1d")

    assert purged == Purged((), {})
    assert left_over(store) == set(names)
    assert len(compared) < 20 * len(names)


def test_what_can_be_neither_deleted_nor_looked_at_is_not_said_to_be_gone(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = make(store.place, [f"db@{at(NOON - n * HOUR)}" for n in range(30)])
    stuck, default = names[27], names[28]
    real = os.lstat

    def lstat(path: str | Path) -> os.stat_result:
        if os.fspath(path).endswith(stuck):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path)

    with undeletable(store.place, stuck, default), monkeypatch.context() as patch:
        patch.setattr(os, "lstat", lstat)
        purged = purge(store, "1d:1d")

    assert set(purged.failed) == {stuck, default}
    assert set(purged.deleted) == set(names[25:]) - {stuck, default}


@pytest.mark.parametrize("limit", ["paths", "bytes"])
def test_more_than_one_command_can_take_are_deleted_by_several(
    store: Store, shim: Shim, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setenv("PATH", f"{shim.directory}:{os.environ['PATH']}")
    if limit == "paths":
        monkeypatch.setattr(kernel, "_DELETE_BATCH", 10)
    else:  # as with a small limit on the stack
        one = len(f"{store.place.snapshots}/db@{at(NOON)}") + 9
        monkeypatch.setattr(os, "sysconf", lambda _: 2 * 10 * one)
    names = make(store.place, [f"db@{at(NOON - n * HOUR)}" for n in range(50)])
    stuck, default = names[27], names[48]

    with undeletable(store.place, stuck, default):
        purged = purge(store, "1d:1d")

    assert set(purged.deleted) == set(names[25:]) - {stuck, default}
    assert set(purged.failed) == {stuck, default}
    assert left_over(store) == {*names[:25], stuck, default}
    calls = [call.split() for call in shim.calls()]
    assert [call[:2] for call in calls] == [["subvolume", "delete"]] * 3
    assert [len(call[2:]) for call in calls] == [10, 10, 5]


# Asking for it


def test_a_dry_run_answers_what_a_purge_would_and_deletes_nothing(
    plugin: Daemon, volume: str
) -> None:
    names = make(plugin.place, hourly(volume, 6))
    before = plugin.place.tree()

    dry = plugin.call("Snapshots.Purge", Name=volume, Pattern="2h:2h", Dryrun=True)
    assert plugin.place.tree() == before
    wet = plugin.call("Snapshots.Purge", Name=volume, Pattern="2h:2h", Dryrun=None)

    assert dry["Purged"] == wet["Purged"] == names[:-2]
    assert [(v["Name"], v["Keep"], v["Reason"]) for v in dry["Verdicts"]] == [
        *((name, False, "older than 2h") for name in names[:-2]),
        *((name, True, "younger than 2h") for name in names[-2:]),
    ]
    assert plugin.snapshot_names(volume) == names[-2:]


def test_the_command_line_prints_what_goes_and_why(plugin: Daemon, volume: str) -> None:
    names = make(plugin.place, hourly(volume, 4))
    [marker] = make(plugin.place, [f"{names[0]}@host2"])

    plain = plugin.cli("purge", "--dryrun", "2h:2h", volume)
    verbose = plugin.cli("purge", "--dryrun", "-v", "2h:2h", volume)
    assert plugin.snapshot_names(volume) == sorted([*names, marker])
    purge = plugin.cli("purge", "2h:2h", volume)

    assert {done.returncode for done in (plain, verbose, purge)} == {0}
    assert {done.stderr for done in (plain, verbose, purge)} == {""}
    assert verbose.stdout.splitlines() == [
        f"keep {names[0]}: parent of the next send to host2",
        f"keep {marker}: the newest marker of host2",
        f"delete {names[1]}: older than 2h",
        f"keep {names[2]}: younger than 2h",
        f"keep {names[3]}: younger than 2h",
    ]
    assert plain.stdout == purge.stdout == f"{names[1]}\n"
    assert plugin.snapshot_names(volume) == [names[0], marker, *names[2:]]


@pytest.mark.parametrize(
    "pattern",
    ["", "1h/", "1h:", ":1h", "1h:2", "h:1d", "0h:1d", "-1h:1d", "1h:1M", "1h 1d", "1h:1d\n",
     "٣h:1d", "1.5h:1d", "9" * 30 + "y:1d", "all"],
)  # fmt: skip
def test_a_bad_pattern_is_refused_and_deletes_nothing(
    plugin: Daemon, volume: str, pattern: str
) -> None:
    names = make(plugin.place, hourly(volume, 3))

    for dry in (True, False):
        error = plugin.refused("Snapshots.Purge", Name=volume, Pattern=pattern, Dryrun=dry)
        assert "retention pattern" in error

    assert plugin.snapshot_names(volume) == names


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"Pattern": "1h:1d"},
        {"Name": "{volume}"},
        {"Name": "{volume}", "Pattern": None},
        {"Name": "{volume}", "Pattern": ["1h", "1d"]},
        {"Name": "{volume}", "Pattern": "1h:1h", "Dryrun": "yes"},
        {"Name": "{volume}", "Pattern": "1h:1h", "Dryrun": 0},
        {"Name": ["{volume}"], "Pattern": "1h:1h"},
    ],
)
def test_a_malformed_request_is_told_so_and_deletes_nothing(
    plugin: Daemon, volume: str, body: dict[str, object]
) -> None:
    names = make(plugin.place, hourly(volume, 3))
    filled = {key: volume if value == "{volume}" else value for key, value in body.items()}

    answer = plugin.post("Snapshots.Purge", **filled)

    assert answer.status == 400
    assert answer.error
    assert plugin.snapshot_names(volume) == names


@pytest.mark.parametrize("dry", [True, False])
def test_a_volume_that_nobody_knows_is_refused(plugin: Daemon, dry: bool) -> None:
    error = plugin.refused("Snapshots.Purge", Name="unknown", Pattern="1h:1d", Dryrun=dry)

    assert error == "unknown: no such volume"
    command = plugin.cli("purge", *["--dryrun"] * dry, "1h:1d", "unknown")
    assert (command.returncode, command.stdout) == (1, "")
    assert command.stderr == "buttervolume: unknown: no such volume\n"


def test_the_snapshot_directory_is_never_left(plugin: Daemon, volume: str, tmp_path: Path) -> None:
    make(plugin.place, hourly(volume, 3))
    before = plugin.place.tree()

    for name in (f"../volumes/{volume}", f"{volume}/../..", str(tmp_path), f"{volume}@x"):
        assert "not allowed" in plugin.refused("Snapshots.Purge", Name=name, Pattern="1h:1h")

    assert plugin.place.tree() == before
