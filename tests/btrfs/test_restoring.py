"""Which snapshot a restore means, what becomes of the rest, and what it says of both."""

import os
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from buttervolume.errors import (
    AmbiguousName,
    BadRestore,
    NoSnapshots,
    NoSuchSnapshot,
    OperationFailed,
    VolumeMounted,
)
from buttervolume.names import parse_snapshot
from buttervolume.store.options import Options
from buttervolume.system import btrfs as kernel
from buttervolume.system.watch import Watch
from tests.btrfs.harness import DATE_FORMAT, Daemon, Place, Shim, Store, btrfs, entries, subvolume
from tests.support.container import run_in_container


class Clock:
    """A clock that goes as the test says."""

    def __init__(self) -> None:
        self.time = datetime.now()

    def __call__(self) -> datetime:
        return self.time

    def go(self, **length: float) -> None:
        self.time += timedelta(**length)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(place: Place, clock: Clock) -> Store:
    store = Store.make(place, now=clock)
    store.volumes.create("db", Options())
    return store


def write(store: Store, text: str) -> None:
    (store.volumes.mountpoint("db") / "file").write_text(text)


def content(store: Store) -> str:
    return (store.volumes.mountpoint("db") / "file").read_text()


def take(store: Store, text: str) -> str:
    """A snapshot of the volume with that content."""
    write(store, text)
    return store.snapshots.take("db").name


def by_hand(store: Store, date: str, text: str) -> str:
    """A snapshot that an administrator has made."""
    write(store, text)
    path = store.place.snapshots / f"db@{date}"
    btrfs("subvolume", "snapshot", "-r", store.volumes.mountpoint("db"), path)
    return path.name


# Backups


def test_restoring_by_the_volumes_name_twice_gives_the_same_twice(store: Store) -> None:
    latest = take(store, "old")
    write(store, "new")

    first = store.contents.restore("db")
    write(store, "newer")
    second = store.contents.restore("db")

    assert (first.snapshot, second.snapshot) == (latest, latest)
    assert content(store) == "old"
    assert store.catalog.summary("db").latest == latest
    assert store.catalog.summary("db").count == 3
    assert store.catalog.resolve("db@latest") == latest


def test_undo_gives_back_what_the_last_restore_replaced_and_undoes_itself(store: Store) -> None:
    take(store, "old")
    write(store, "new")
    backup = store.contents.restore("db").backup

    undone = store.contents.restore("db", undo=True)
    assert (undone.snapshot, content(store)) == (backup, "new")
    assert store.contents.restore("db", undo=True).snapshot == undone.backup
    assert content(store) == "old"


def test_a_snapshot_of_a_restored_volume_is_no_backup(store: Store) -> None:
    take(store, "old")
    backup = str(store.contents.restore("db").backup)
    store.contents.restore(backup)

    again = take(store, "again")

    assert store.catalog.latest("db") == parse_snapshot(again)
    assert not store.catalog.is_backup(parse_snapshot(again))
    assert store.catalog.is_backup(parse_snapshot(backup))


def test_a_restore_that_fails_or_is_refused_leaves_no_mark(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = take(store, "old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store.volumes, "exchange", fail)
        with pytest.raises(OperationFailed):
            store.contents.restore(snapshot)
    later = take(store, "later")

    assert store.catalog.latest("db") == parse_snapshot(later)
    assert os.listxattr(store.volumes.mountpoint("db")) == []


def test_without_a_restore_there_is_nothing_to_undo(store: Store) -> None:
    take(store, "old")

    with pytest.raises(NoSnapshots, match="no backup"):
        store.contents.restore("db", undo=True)


def test_a_volume_with_backups_alone_has_no_latest(store: Store) -> None:
    snapshot = take(store, "old")
    store.contents.restore("db")
    store.snapshots.remove(snapshot)

    with pytest.raises(NoSnapshots):
        store.contents.restore("db")
    assert store.catalog.summary("db").latest is None


def test_a_read_only_volume_is_backed_up_and_restored(store: Store) -> None:
    take(store, "old")
    write(store, "new")
    run_in_container("make_readonly", store.volumes.mountpoint("db"))

    backup = store.contents.restore("db").backup

    assert content(store) == "old"
    assert store.catalog.is_backup(parse_snapshot(str(backup)))
    write(store, "writable")


def test_the_mark_is_none_that_a_container_could_set(store: Store) -> None:
    path = store.volumes.mountpoint("db")
    done = subprocess.run(
        [
            *("setpriv", "--bounding-set", "-all", "--inh-caps", "-all", "--"),
            *("setfattr", "-n", "trusted.buttervolume.kind", "-v", "x", path),
        ],
        capture_output=True,
        check=False,
    )
    assert done.returncode != 0


# A moment


def test_at_takes_the_newest_that_is_not_later(store: Store, clock: Clock) -> None:
    names = list[str]()
    for number in range(3):
        names.append(take(store, str(number)))
        clock.go(hours=1)
    start = parse_snapshot(names[0]).date

    for at, wanted in (
        (start, "0"),
        ((clock.time - timedelta(hours=1, minutes=30)).isoformat(), "1"),
        ((clock.time - timedelta(minutes=1)).isoformat(timespec="minutes"), "2"),
        ((clock.time - timedelta(minutes=1)).astimezone().isoformat(), "2"),
        ("2099-01-01", "2"),
    ):
        store.contents.restore("db", at=at)
        assert content(store) == wanted, at
    with pytest.raises(NoSnapshots, match="or before"):
        store.contents.restore("db", at="2001-01-01")
    with pytest.raises(BadRestore, match="no date"):
        store.contents.restore("db", at="yesterday")


def test_what_is_named_in_two_ways_is_refused(store: Store) -> None:
    name = take(store, "old")
    store.contents.restore("db")
    calls: list[Callable[[], object]] = [
        lambda: store.contents.restore(name, undo=True),
        lambda: store.contents.restore(name, at="2026-01-01"),
        lambda: store.contents.restore("db", at="2026-01-01", undo=True),
    ]
    for call in calls:
        with pytest.raises(BadRestore):
            call()


# Dates never go back


@pytest.mark.parametrize("back", [{"minutes": 1}, {"minutes": 19}, {"seconds": 0.001}])
def test_in_the_hour_that_repeats_the_later_snapshot_has_the_later_date(
    store: Store, clock: Clock, back: dict[str, float]
) -> None:
    names = [take(store, "0")]
    for number in range(1, 4):
        clock.go(**{unit: -value for unit, value in back.items()})
        names.append(take(store, str(number)))

    assert sorted(names) == names
    assert store.catalog.latest("db") == parse_snapshot(names[-1])
    store.contents.restore("db")
    assert content(store) == "3"


def test_a_coarse_date_never_goes_back_either(place: Place, clock: Clock) -> None:
    store = Store.make(place, "%Y-%m-%dT%H:%M:%S", clock)
    store.volumes.create("db", Options())
    first = take(store, "0")
    store.snapshots.mark_sent(parse_snapshot(first), "beta")
    store.snapshots.remove(first)

    second = take(store, "1")
    clock.go(minutes=-10)
    third = take(store, "2")

    assert first < second < third


def test_a_clock_that_is_far_behind_is_said_and_the_date_is_its(store: Store, clock: Clock) -> None:
    ahead = take(store, "ahead")
    clock.go(days=-2)

    taken = store.snapshots.take("db")

    assert str(taken.ahead) == ahead
    assert taken.name < ahead
    assert parse_snapshot(taken.name).date == clock.time.strftime(DATE_FORMAT)


def test_one_of_a_clock_that_was_wrong_is_not_the_latest_once_there_is_another(
    store: Store, clock: Clock
) -> None:
    """Which of two of our own came later, the transactions know."""
    path = store.place.snapshots
    older = take(store, "first")
    # the clock was an hour and a half ahead when this was taken by an older version
    later = (datetime.now() + timedelta(minutes=50)).strftime(DATE_FORMAT)
    wrong = by_hand(store, later, "second")
    assert store.catalog.latest("db") == parse_snapshot(wrong)
    earlier = (datetime.now() + timedelta(minutes=20)).strftime(DATE_FORMAT)
    newest = by_hand(store, earlier, "third")

    assert store.catalog.latest("db") == parse_snapshot(newest)
    assert entries(path) == sorted([older, wrong, newest])


def test_a_received_one_with_a_date_in_the_future_is_restored_by_its_name_alone(
    store: Store,
) -> None:
    ours = take(store, "ours")
    future = (datetime.now() + timedelta(days=300)).strftime(DATE_FORMAT)
    theirs = by_hand(store, future, "theirs")
    kernel.set_received(store.place.snapshots / theirs, uuid4(), 1)
    fresh = Store.make(store.place)  # what is whole already is not looked at again

    assert fresh.catalog.latest("db") == parse_snapshot(ours)
    fresh.contents.restore(theirs)
    assert content(fresh) == "theirs"


def test_a_newer_one_whose_date_cannot_be_read_is_pointed_at(store: Store) -> None:
    take(store, "readable")
    odd = by_hand(store, "before-the-upgrade", "odd")

    restored = store.contents.restore("db")

    assert content(store) == "readable"
    assert odd in " ".join(restored.warnings)
    take(store, "newer")
    assert store.contents.restore("db").warnings == ()


# Beginnings of names


def test_a_beginning_that_one_snapshot_has_will_do(store: Store) -> None:
    first = by_hand(store, "2026-01-02T03:04:05.000000", "1")
    second = by_hand(store, "2026-01-03T03:04:05.000000", "2")
    third = by_hand(store, "2025-01-03T03:04:05.000000", "3")
    marker = f"{first}@beta"
    store.snapshots.mark_sent(parse_snapshot(first), "beta")
    resolve = store.catalog.resolve

    assert resolve("db@2025") == third
    assert resolve("db@2026-01-02") == first, "the marker is not meant"
    assert resolve(f"{first}@b") == marker
    assert resolve("db@latest") == second
    assert resolve(first) == first
    for ambiguous in ("db@2", "db@2026-01-0"):
        with pytest.raises(AmbiguousName) as refusal:
            resolve(ambiguous)
        assert first in str(refusal.value)
    for unknown in ("db@", "db@1999", "nothing@2", "d@2026-01-02", "db@2025/../x", "", "db"):
        assert resolve(unknown) == unknown
    with pytest.raises(NoSnapshots):
        resolve("nothing@latest")


def test_a_beginning_that_is_a_whole_name_means_that_one(store: Store) -> None:
    short = by_hand(store, "2026", "short")
    by_hand(store, "2026-01-02T03:04:05.000000", "long")

    assert store.catalog.resolve("db@2026") == short


def test_the_api_takes_beginnings_everywhere(daemon: Daemon) -> None:
    daemon.call("Create", Name="db")
    path = daemon.place.volumes / "db"
    (path / "file").write_text("old")
    name = daemon.call("Snapshot", Name="db")["Snapshot"]
    (path / "file").write_text("new")

    answer = daemon.call("Snapshot.Restore", Name="db@2", Target="copy")
    assert answer["Restored"] == name
    assert (daemon.place.volumes / "copy/file").read_text() == "old"
    answer = daemon.call("Snapshot.Restore", Name="db@latest")
    assert (answer["Restored"], (path / "file").read_text()) == (name, "old")
    answer = daemon.call("Snapshot.Restore", Name="db", Undo=True)
    assert (path / "file").read_text() == "new"
    assert daemon.call("Snapshot.Restore", Name="db", At="2099-01-01")["Restored"] == name
    assert "several" in daemon.refused("Snapshot.Remove", Name="db@2")
    daemon.call("Snapshot.Remove", Name=name[:-1])
    assert name not in daemon.snapshot_names("db")
    assert "no such snapshot" in daemon.refused("Snapshot.Remove", Name="db@1")


# What is said


def test_after_a_forced_restore_who_still_has_the_old_content_is_named(store: Store) -> None:
    name = take(store, "old")
    store.volumes.mount("db", "container")

    with pytest.raises(VolumeMounted, match="Docker"):
        store.contents.restore(name)
    (warning,) = store.contents.restore(name, force=True).warnings

    assert warning.startswith("restart ")


def test_removing_what_the_next_send_needs_is_warned_of(daemon: Daemon, place: Place) -> None:
    daemon.call("Create", Name="db")
    names = [daemon.call("Snapshot", Name="db")["Snapshot"] for _ in range(3)]
    for name in names[:2]:
        btrfs(
            "subvolume", "snapshot", "-r", place.snapshots / name, place.snapshots / f"{name}@beta"
        )

    assert "Warning" not in daemon.call("Snapshot.Remove", Name=names[0])
    assert "beta" in daemon.call("Snapshot.Remove", Name=names[1])["Warning"]
    assert "Warning" not in daemon.call("Snapshot.Remove", Name=names[2])


# The index


def test_the_index_sees_whatever_happens_in_the_directory(store: Store) -> None:
    """Made, removed and renamed by hand and by us, in a storm: it is what a fresh look finds."""
    store.catalog.list()
    path = store.place.snapshots
    done = threading.Event()

    def storm() -> None:
        for number in range(25):
            name = f"db@20{number:02}-01-01T00:00:00.000000"
            subvolume(path / name)
            btrfs("property", "set", "-ts", path / name, "ro", "true")
            if number % 3 == 0:
                btrfs("subvolume", "delete", path / name)
            elif number % 3 == 1:
                (path / name).rename(path / name.replace("db@", "other@"))
        done.set()

    thread = threading.Thread(target=storm)
    thread.start()
    while not done.is_set():
        store.catalog.list()
        store.catalog.summary("db")
    thread.join()

    fresh = Store.make(store.place)
    assert store.catalog.list() == fresh.catalog.list()
    for volume in ("db", "other"):
        assert store.catalog.list(volume) == fresh.catalog.list(volume)
        assert store.catalog.summary(volume) == fresh.catalog.summary(volume)
    assert len(store.catalog.list().snapshots) == 16


def test_a_directory_that_is_another_one_now_is_read_anew(store: Store) -> None:
    name = take(store, "old")
    path = store.place.snapshots
    path.rename(path.with_name("away"))
    path.mkdir()
    assert store.catalog.list().snapshots == ()
    path.rmdir()
    path.with_name("away").rename(path)
    assert [str(s.name) for s in store.catalog.list().snapshots] == [name]


def test_without_a_watch_everything_is_seen_as_well(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(self: Watch, path: Path) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(Watch, "__init__", none)
    names = [take(store, str(number)) for number in range(3)]
    assert [str(s.name) for s in store.catalog.list("db").snapshots] == names
    store.snapshots.remove(names[0])
    assert [str(s.name) for s in store.catalog.list("db").snapshots] == names[1:]


def test_a_copy_beside_a_note_is_not_whole_until_the_note_is_gone(store: Store) -> None:
    name = take(store, "old")
    store.catalog.list()
    note = store.place.snapshots / f".buttervolume-receiving-{name}"

    note.write_text("beta")
    listing = store.catalog.list("db")
    assert (listing.snapshots, [str(n) for n in listing.incomplete]) == ((), [name])
    with pytest.raises(NoSnapshots):
        store.contents.restore("db")
    note.unlink()

    assert [str(s.name) for s in store.catalog.list("db").snapshots] == [name]


def test_a_look_at_one_volume_costs_the_same_beside_thousands(store: Store) -> None:
    """While others come and go: what is not asked about is not looked at again."""
    path = store.place.snapshots
    first = subvolume(path / "many@2020-01-01T00:00:00.000000")
    btrfs("property", "set", "-ts", first, "ro", "true")
    for number in range(1, 300):
        target = path / f"many@2020-01-01T00:00:00.{number:06}"
        btrfs("subvolume", "snapshot", "-r", first, target)
    store.catalog.list()
    looked = list[str]()
    real = kernel.Directory.info

    def info(self: kernel.Directory) -> kernel.Subvolume:
        looked.append("")
        return real(self)

    taken = take(store, "x")
    kernel.Directory.info = info  # type: ignore[method-assign]
    try:
        assert store.catalog.summary("db").latest == taken
        assert store.catalog.summary("many").count == 300
    finally:
        kernel.Directory.info = real  # type: ignore[method-assign]
    assert len(looked) <= 1


def test_nobody_restores_what_is_gone(store: Store) -> None:
    name = take(store, "old")
    store.snapshots.remove(name)

    with pytest.raises(NoSuchSnapshot):
        store.contents.restore(name)


@pytest.mark.parametrize(
    ("endpoint", "more"),
    [
        ("Snapshot.Restore", {}),
        ("Snapshot.Restore", {"Target": "new"}),
        ("Create", {"Name": "new", "Opts": {"from": ""}}),
    ],
)
def test_what_is_being_restored_is_neither_removed_nor_purged_meanwhile(
    daemon: Daemon, place: Place, shim: Shim, endpoint: str, more: dict[str, object]
) -> None:
    daemon.call("Create", Name="db")
    name = f"db@{(datetime.now() - timedelta(days=9)).strftime(DATE_FORMAT)}"
    btrfs("subvolume", "snapshot", "-r", place.volumes / "db", place.snapshots / name)
    newer = daemon.call("Snapshot", Name="db")["Snapshot"]
    asked: dict[str, object] = {"Name": name, **more}
    if "Opts" in asked:
        asked["Opts"] = {"from": name}
    shim.stop_at(f"*snapshot */{name} *")
    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(daemon.post, endpoint, **asked)
        shim.wait_for_arrival()

        assert "restore under way" in daemon.refused("Snapshot.Remove", Name=name)
        assert daemon.call("Snapshots.Purge", Name="db", Pattern="2d")["Purged"] == []
        shim.go_on()

        assert made.result(60).error == ""
    daemon.call("Snapshot.Remove", Name=name)
    assert newer in daemon.snapshot_names("db")


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"At": "2026-01-01"}, "its newest snapshot, or one that is named"),
        ({"Undo": True}, "its newest snapshot, or one that is named"),
        ({"Target": "../x"}, "as the name of a volume"),
        ({"Target": "a@b"}, "as the name of a volume"),
        ({"Target": "of no new volume"}, "as the name of a new volume"),
        ({"Target": "file", "Force": True}, "is in the way"),
        ({"Name": "file@latest"}, "is in the way"),
    ],
)
def test_a_restore_from_elsewhere_is_refused_before_anything_is_asked_there(
    daemon: Daemon, more: dict[str, object], why: str
) -> None:
    (daemon.place.volumes / "file").touch()
    before = daemon.place.tree()

    body = {"Name": "db", "From": "nowhere.invalid", **more}
    said = daemon.refused("Snapshot.Restore", **body)

    assert "resolve" not in said
    assert why in said
    assert daemon.place.tree() == before


def test_a_volume_whose_name_means_none_of_its_snapshots_names_those_it_has(store: Store) -> None:
    odd = store.place.snapshots / "db@before-the-upgrade"
    with pytest.raises(NoSnapshots) as refusal:
        store.contents.restore("db")
    assert str(refusal.value) == "db: there is no snapshot of this volume"
    btrfs("subvolume", "snapshot", "-r", store.place.volumes / "db", odd)

    with pytest.raises(NoSnapshots, match="name the one that you mean: db@before-the-upgrade"):
        store.contents.restore("db")

    backup = store.contents.restore(odd.name).backup
    with pytest.raises(NoSnapshots, match=f"{odd.name}, {backup}|{backup}, {odd.name}"):
        store.contents.restore("db")
