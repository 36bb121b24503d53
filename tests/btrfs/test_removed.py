"""Removed volumes: kept whole, brought back, and deleted when their time has come."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta
from http.client import HTTPException
from pathlib import Path

import pytest

from buttervolume.errors import (
    AmbiguousName,
    BadName,
    NoSuchRemoved,
    NoSuchVolume,
    OperationFailed,
    VolumeBusy,
    VolumeExists,
)
from buttervolume.store.options import parse_options
from buttervolume.store.removed import Removed
from buttervolume.system import btrfs as kernel
from buttervolume.system import nested
from tests.btrfs.conftest import StartDaemon
from tests.btrfs.harness import (
    DATE_FORMAT,
    Daemon,
    NoAnswer,
    Place,
    Shim,
    Store,
    entries,
    put,
    subvolume,
)
from tests.support.container import run_in_container
from tests.support.wait import wait_until

DAY = timedelta(days=1)


class Clock:
    def __init__(self) -> None:
        self.time = datetime.now()

    def __call__(self) -> datetime:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def removed(store: Store, clock: Clock) -> Removed:
    return Removed(store.volumes, DATE_FORMAT, DAY, now=clock)


def make(store: Store, name: str = "db", text: str = "mine", **options: str) -> Path:
    store.volumes.create(name, parse_options(options))
    path = store.volumes.mountpoint(name)
    (path / "file").write_text(text)
    return path


def listed(store: Store) -> list[str]:
    return [name for name, _ in store.volumes.list()]


def names(removed: Removed) -> list[str]:
    return [each.name for each in removed.list()]


def test_a_removed_volume_comes_back_whole(store: Store, removed: Removed) -> None:
    path = make(store, compression="zstd")
    subvolume(path / "nested", {"file": "nested"})
    before = kernel.info(path)

    removed.remove("db")
    assert listed(store) == []
    with pytest.raises(NoSuchVolume):
        store.volumes.get("db")
    assert removed.bring_back("db") == "db"

    assert listed(store) == ["db"]
    assert (path / "file").read_text() == "mine"
    assert (path / "nested/file").read_text() == "nested"
    after = kernel.info(path)
    assert (after.uuid, after.created, after.readonly) == (before.uuid, before.created, False)
    assert entries(store.place.volumes) == ["db"]


@pytest.mark.parametrize("name", ["my old volume", "größe", "-rf", "n" * 200])
def test_odd_names_come_back_as_well(store: Store, removed: Removed, name: str) -> None:
    subvolume(store.place.volumes / name, {"file": "mine"})

    removed.remove(name)
    assert names(removed) == [name]
    assert removed.bring_back(name) == name

    assert (store.place.volumes / name / "file").read_text() == "mine"


def test_a_name_that_leaves_no_room_for_a_date_is_deleted(store: Store, removed: Removed) -> None:
    subvolume(store.place.volumes / ("n" * 250))

    removed.remove("n" * 250)

    assert (listed(store), names(removed)) == ([], [])
    assert entries(store.place.volumes) == []


def test_a_read_only_volume_comes_back_read_only(store: Store, removed: Removed) -> None:
    path = make(store)
    run_in_container("make_readonly", path)

    removed.remove("db")
    removed.bring_back("db")

    assert kernel.info(path).readonly
    removed.remove("db")
    assert removed.purge() != []
    assert entries(store.place.volumes) == []


def test_with_a_bare_name_the_one_removed_last_comes_back(
    store: Store, removed: Removed, clock: Clock
) -> None:
    for number in range(3):
        make(store, text=str(number))
        removed.remove("db")
        clock.time += timedelta(hours=1)
    dates = [each.date for each in removed.list()]

    removed.bring_back("db")
    assert (store.place.volumes / "db/file").read_text() == "2"
    removed.bring_back(f"db@{dates[0]}", "first")
    assert (store.place.volumes / "first/file").read_text() == "0"
    removed.bring_back(f"db@{dates[1][:-3]}", "second")
    assert (store.place.volumes / "second/file").read_text() == "1"
    assert names(removed) == []


@pytest.mark.parametrize("ahead", [timedelta(minutes=30), timedelta(days=3)])
def test_which_was_removed_last_shows_whatever_the_clock_does(
    store: Store, removed: Removed, clock: Clock, ahead: timedelta
) -> None:
    """Given a volume that was removed in the first of two hours of one name, or while the clock was
    wrong, when another of its name is removed afterwards, then that one is the last."""
    right = clock.time
    clock.time += ahead
    make(store, text="first")
    removed.remove("db")
    clock.time = right
    for text in ("second", "third"):
        make(store, text=text)
        removed.remove("db")

    for text in ("third", "second", "first"):
        removed.bring_back("db", text)
        assert (store.place.volumes / text / "file").read_text() == text


def test_what_cannot_be_meant_is_refused(store: Store, removed: Removed, clock: Clock) -> None:
    for _ in range(2):
        make(store)
        removed.remove("db")
        clock.time += timedelta(seconds=1)
    make(store)

    calls: list[tuple[type[Exception], Callable[[], object]]] = [
        (VolumeExists, lambda: removed.bring_back("db")),
        (AmbiguousName, lambda: removed.bring_back("db@2", "other")),
        (NoSuchRemoved, lambda: removed.bring_back("d")),
        (NoSuchRemoved, lambda: removed.bring_back("db@")),
        (NoSuchRemoved, lambda: removed.bring_back("../db")),
        (NoSuchRemoved, lambda: removed.purge("other")),
        (BadName, lambda: removed.bring_back("db", "../x")),
        (BadName, lambda: removed.bring_back("db", ".hidden")),
        (NoSuchVolume, lambda: removed.remove("other")),
    ]
    for error, call in calls:
        with pytest.raises(error):
            call()
    with store.volumes.synchronized.hold("db"), pytest.raises(VolumeBusy):
        removed.remove("db")
    assert listed(store) == ["db"]
    assert len(names(removed)) == 2


def test_two_removed_in_one_tick_are_both_kept(store: Store, removed: Removed) -> None:
    for text in "12":
        make(store, text=text)
        removed.remove("db")

    assert names(removed) == ["db", "db"]
    removed.bring_back("db")
    assert (store.place.volumes / "db/file").read_text() == "2"


def test_removing_runs_no_command(
    store: Store, removed: Removed, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(store)

    def fail(argv: list[str]) -> str:
        raise AssertionError(argv)

    with monkeypatch.context() as patch:
        patch.setattr("buttervolume.system.command.run", fail)
        removed.remove("db")
        removed.bring_back("db")
    assert listed(store) == ["db"]


def test_what_has_been_kept_for_its_time_goes(store: Store, removed: Removed, clock: Clock) -> None:
    make(store, "short", keep="2h")
    make(store, "usual")
    make(store, "long", keep="2w")
    make(store, "none", keep="0")
    for name in ("short", "usual", "long", "none"):
        removed.remove(name)
    assert names(removed) == ["long", "short", "usual"]
    assert [each.until - clock.time for each in removed.list()] == [
        timedelta(days=14),
        timedelta(hours=2),
        DAY,
    ]

    for length, rest in (
        (timedelta(hours=1), ["long", "short", "usual"]),
        (timedelta(hours=2), ["long", "usual"]),
        (timedelta(days=1), ["long"]),
        (timedelta(days=15), []),
    ):
        clock.time += length
        removed.expire()
        assert names(removed) == rest
    assert entries(store.place.volumes) == []


def remove_in_turn(store: Store, removed: Removed, clock: Clock, *volumes: str) -> None:
    """Make and remove volumes, one a minute."""
    for volume in volumes:
        make(store, volume)
        removed.remove(volume)
        clock.time += timedelta(minutes=1)


def test_where_there_is_too_little_room_the_oldest_goes_before_its_time(
    store: Store, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    removed = Removed(store.volumes, DATE_FORMAT, DAY, min_free=1.1, now=clock)
    remove_in_turn(store, removed, clock, "z", "a", "m")

    removed.expire()
    assert names(removed) == ["a", "m"]
    assert "z@" in caplog.text
    assert "before its time" in caplog.text
    removed.expire()
    removed.expire()
    assert names(removed) == []


@pytest.mark.parametrize("min_free", [0, 1.1], ids=["expired", "no room"])
def test_one_that_cannot_be_deleted_stops_no_other_and_is_told_of_once(
    store: Store, clock: Clock, caplog: pytest.LogCaptureFixture, min_free: float
) -> None:
    removed = Removed(store.volumes, DATE_FORMAT, DAY, min_free=min_free, now=clock)
    remove_in_turn(store, removed, clock, "a", "m", "z")
    (stuck,) = removed.list("a")
    path = removed.path / str(stuck)
    clock.time += timedelta() if min_free else 2 * DAY
    subprocess.run(["chattr", "+i", path], check=True)
    try:
        for _ in range(3):
            removed.expire()
        assert names(removed) == ["a"]
        assert caplog.text.count(f"cannot delete {stuck}") == 1
    finally:
        subprocess.run(["chattr", "-i", path], check=True)
    removed.expire()
    assert names(removed) == []


def test_where_nothing_can_be_deleted_the_others_can_be_had_back(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed = Removed(store.volumes, DATE_FORMAT, DAY, min_free=1.1, now=clock)
    remove_in_turn(store, removed, clock, "a", "m", "z")

    def fail(_: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(nested, "delete_tree", fail)
    removed.expire()

    assert names(removed) == ["m", "z"]


def test_with_room_enough_nothing_goes_early(store: Store, clock: Clock) -> None:
    removed = Removed(store.volumes, DATE_FORMAT, DAY, min_free=0.01, now=clock)
    make(store)
    removed.remove("db")

    removed.expire()

    assert names(removed) == ["db"]


def test_the_sweep_spares_the_removed(store: Store, removed: Removed) -> None:
    make(store)
    removed.remove("db")

    store.volumes.sweep(store.volumes.leftovers())

    assert names(removed) == ["db"]


def test_what_is_no_removed_volume_is_not_listed_and_not_deleted(
    store: Store, removed: Removed, clock: Clock
) -> None:
    make(store)
    removed.remove("db")
    path = store.place.volumes / ".buttervolume-removed"
    (path / "file@2026").write_text("x")
    (path / "directory@2026").mkdir()
    (path / "link@2026").symlink_to("/etc")
    subvolume(path / "without a date")

    clock.time += 10 * DAY
    assert names(removed) == ["db"]
    removed.expire()

    assert entries(path) == ["directory@2026", "file@2026", "link@2026", "without a date"]


def test_a_date_of_an_older_format_is_as_good(store: Store, clock: Clock) -> None:
    old = Removed(store.volumes, "%d.%m.%Y %H-%M-%S", DAY, now=clock)
    make(store)
    old.remove("db")
    new = Removed(store.volumes, DATE_FORMAT, DAY, now=clock)

    (found,) = new.list()
    assert abs(found.removed - clock.time) < timedelta(minutes=5)
    new.bring_back("db")
    assert listed(store) == ["db"]


def test_removing_and_bringing_back_at_once_loses_nothing(store: Store, removed: Removed) -> None:
    make(store)

    def work(number: int) -> None:
        for _ in range(15):
            with suppress(NoSuchVolume, NoSuchRemoved, VolumeExists):
                removed.remove("db") if number % 2 else removed.bring_back("db")

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))

    assert len(listed(store)) + len(names(removed)) == 1
    if not listed(store):
        removed.bring_back("db")
    assert (store.place.volumes / "db/file").read_text() == "mine"


# By the daemon


def test_the_api_and_the_commands_take_a_removal_back(daemon: Daemon) -> None:
    daemon.call("Create", Name="db", Opts={"keep": "2h"})
    path = daemon.place.volumes / "db"
    (path / "file").write_text("mine")
    daemon.call("Remove", Name="db")
    assert daemon.names() == []
    assert "no such volume" in daemon.refused("Remove", Name="db")

    (found,) = daemon.call("Volume.Removed")["Removed"]
    assert found["Name"] == "db"
    removed = datetime.strptime(found["Date"], DATE_FORMAT).astimezone()
    kept = datetime.fromisoformat(found["Until"]) - removed
    assert abs(kept - timedelta(hours=2)) < timedelta(seconds=2)
    done = daemon.cli("removed")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"db@{found['Date']}" in done.stdout
    assert json.loads(daemon.cli("removed", "--json").stdout)["Removed"] == [found]

    done = daemon.cli("undelete", "db")
    assert (done.returncode, done.stdout, done.stderr) == (0, "db\n", "")
    assert daemon.names() == ["db"]
    assert (path / "file").read_text() == "mine"
    assert daemon.cli("undelete", "db").returncode == 1

    daemon.call("Remove", Name="db")
    assert daemon.call("Volume.Undelete", Name="db", Target="copy")["Volume"] == "copy"
    daemon.call("Remove", Name="copy")
    assert daemon.cli("removed", "copy").returncode == 2
    purged = daemon.cli("removed", "--purge", "copy").stdout
    assert purged.startswith("copy@")
    assert daemon.call("Volume.Removed")["Removed"] == []
    assert daemon.cli("removed").stdout == ""
    assert entries(daemon.place.volumes) == [".buttervolume-lock"]


def test_without_keeping_it_deletes_as_ever(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(BUTTERVOLUME_KEEP_REMOVED="0")
    daemon.call("Create", Name="db")
    daemon.call("Remove", Name="db")

    assert daemon.call("Volume.Removed")["Removed"] == []
    assert entries(daemon.place.volumes) == [".buttervolume-lock"]
    daemon.stop()


def test_the_daemon_deletes_what_has_expired(start_daemon: StartDaemon, place: Place) -> None:
    kept = place.volumes / ".buttervolume-removed"
    kept.mkdir()
    old = (datetime.now() - 2 * DAY).strftime(DATE_FORMAT)
    new = (datetime.now() - DAY / 2).strftime(DATE_FORMAT)
    for date in (old, new):
        subvolume(kept / f"db@{date}")

    daemon = start_daemon(BUTTERVOLUME_TIMER="1", BUTTERVOLUME_MIN_FREE="0%")

    wait_until(lambda: entries(kept) == [f"db@{new}"], what="the old one to be deleted")
    daemon.stop()
    assert f"db@{old}" in daemon.stdout()


def test_killed_at_any_moment_a_volume_is_there_or_among_the_removed_whole(
    start_daemon: StartDaemon, place: Place
) -> None:
    for round_ in range(8):
        daemon = start_daemon(BUTTERVOLUME_MIN_FREE="0%")
        if round_ == 0:
            daemon.call("Create", Name="db")
            (place.volumes / "db/file").write_text("mine")
            subvolume(place.volumes / "db/nested", {"file": "mine"})

        def storm(daemon: Daemon = daemon) -> None:
            with suppress(NoAnswer, HTTPException, OSError):
                while True:
                    daemon.post("Remove", Name="db")
                    daemon.post("Volume.Undelete", Name="db")

        with ThreadPoolExecutor(2) as pool:
            for _ in range(2):
                pool.submit(storm)
            time.sleep(0.03 + round_ * 0.011)  # not to wait for something: to hit any moment
            daemon.kill()
        kept = place.volumes / ".buttervolume-removed"
        found = [place.volumes / "db"] if (place.volumes / "db").exists() else [*kept.glob("db@*")]
        (path,) = found
        assert (path / "file").read_text() == (path / "nested/file").read_text() == "mine"


def test_killed_while_it_deletes_no_half_is_among_the_removed(
    shim: Shim, start_daemon: StartDaemon, place: Place
) -> None:
    daemon = start_daemon()
    daemon.call("Create", Name="db")
    subvolume(place.volumes / "db/nested")
    daemon.call("Remove", Name="db")
    shim.stop_at("*delete*purge-*")
    with ThreadPoolExecutor(1) as pool:
        purge = pool.submit(daemon.post, "Volume.Removed.Purge")
        shim.wait_for_arrival()
        assert daemon.call("Volume.Removed")["Removed"] == []
        daemon.kill()
        os.kill(shim.pid(), signal.SIGKILL)
        with suppress(NoAnswer, HTTPException, OSError):
            purge.result()
    shim.go_on()

    again = start_daemon()
    place.wait_until_swept()
    assert again.call("Volume.Removed")["Removed"] == []
    again.stop()


def test_an_immutable_volume_says_how_to_remove_it(daemon: Daemon, place: Place) -> None:
    daemon.call("Create", Name="db")
    subprocess.run(["chattr", "+i", place.volumes / "db"], check=True)
    try:
        assert "chattr -i" in daemon.refused("Remove", Name="db")
        assert daemon.names() == ["db"]
    finally:
        subprocess.run(["chattr", "-i", place.volumes / "db"], check=True)
    daemon.call("Remove", Name="db")


@pytest.mark.parametrize("what", ["file", "fifo", "link"])
def test_what_lies_in_the_place_of_the_removed_is_said_and_waits_for_nothing(
    store: Store, removed: Removed, what: str
) -> None:
    make(store)
    put(removed.path, what)

    with pytest.raises(OperationFailed, match="Not a directory") as failure:
        removed.remove("db")

    assert str(removed.path) in str(failure.value)
    assert listed(store) == ["db"]
    with suppress(OperationFailed):
        assert removed.list() == []
    removed.path.unlink()
    removed.remove("db")
    assert names(removed) == ["db"]
