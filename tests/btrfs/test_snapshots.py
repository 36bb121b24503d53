"""Snapshots on a real BTRFS: taken, listed, restored in one step, cloned, removed."""

import errno
import os
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from buttervolume.errors import (
    BadName,
    ButtervolumeError,
    CommandFailed,
    IncompleteSnapshot,
    NestedSubvolumes,
    NoSnapshots,
    NoSuchSnapshot,
    NoSuchVolume,
    NotAVolume,
    OperationFailed,
    SnapshotBusy,
    VolumeBusy,
    VolumeExists,
    VolumeMounted,
)
from buttervolume.names import receiving_note
from buttervolume.store.options import Options
from buttervolume.system import btrfs as kernel
from buttervolume.system import files, nested
from tests.btrfs.harness import (
    DATE_FORMAT,
    Store,
    btrfs,
    is_copied_on_write,
    is_readonly,
    put,
    subvolume,
)
from tests.support.wait import wait_until

NOON = datetime(2026, 5, 6, 12, 0, 0)


def volume(store: Store, name: str, content: str) -> Path:
    """A volume with a file in it."""
    store.volumes.create(name, Options())
    path = store.volumes.mountpoint(name)
    (path / "file").write_text(content)
    return path


def content(store: Store, name: str) -> str:
    return (store.volumes.mountpoint(name) / "file").read_text()


def snapshot_by_hand(store: Store, name: str, text: str, *, readonly: bool = True) -> Path:
    """A snapshot of that name as another version, or `btrfs receive`, has left it."""
    path = subvolume(store.place.snapshots / name, {"file": text})
    if readonly:
        btrfs("property", "set", "-ts", path, "ro", "true")
    return path


def with_clock(store: Store, now: Callable[[], datetime], date_format: str) -> Store:
    return Store.make(store.place, date_format, now)


def listed(store: Store, name: str | None = None) -> list[str]:
    return [str(snapshot.name) for snapshot in store.catalog.list(name).snapshots]


# Taking


def test_a_snapshot_is_read_only_and_named_by_its_moment(store: Store) -> None:
    path = volume(store, "db", "old")
    before = datetime.now()

    taken = store.snapshots.take("db")

    (path / "file").write_text("new")
    name, date = taken.name.split("@")
    assert name == "db"
    assert before <= datetime.strptime(date, DATE_FORMAT) <= datetime.now()
    assert taken.left_out == ()
    assert is_readonly(store.place.snapshots / taken.name)
    assert (store.place.snapshots / taken.name / "file").read_text() == "old"


def test_two_in_one_tick_get_two_names_the_later_one_the_next_tick(store: Store) -> None:
    volume(store, "db", "")
    snapshots = with_clock(store, lambda: NOON, "%Y-%m-%dT%H:%M:%S").snapshots

    names = [snapshots.take("db").name for _ in range(3)]

    assert names == [f"db@2026-05-06T12:00:0{second}" for second in range(3)]
    assert store.place.snapshot_names() == names


def test_the_name_of_a_copy_that_is_about_to_come_is_not_taken(store: Store) -> None:
    """Who brings it would remove what it takes for the beginning of its copy, if it fails."""
    volume(store, "db", "")
    coming = "db@2026-05-06T12:00:00"
    (store.place.snapshots / receiving_note(coming)).write_text(f"gamma\n{coming}\n")
    snapshots = with_clock(store, lambda: NOON, "%Y-%m-%dT%H:%M:%S").snapshots

    assert snapshots.take("db").name == "db@2026-05-06T12:00:01"


def test_two_in_one_microsecond_get_two_names(store: Store) -> None:
    volume(store, "db", "")
    snapshots = with_clock(store, lambda: NOON, DATE_FORMAT).snapshots

    names = [snapshots.take("db").name for _ in range(2)]

    assert names == ["db@2026-05-06T12:00:00.000000", "db@2026-05-06T12:00:00.000001"]


def test_many_at_once_of_one_volume_all_get_names(store: Store) -> None:
    volume(store, "db", "")
    snapshots = with_clock(store, lambda: NOON, "%Y%m%d%H%M%S").snapshots

    with ThreadPoolExecutor(20) as pool:
        names = {f.result().name for f in [pool.submit(snapshots.take, "db") for _ in range(20)]}

    assert len(names) == 20
    assert set(store.place.snapshot_names()) == names
    for name in names:
        assert list((store.place.snapshots / name).iterdir()) == [
            store.place.snapshots / name / "file"
        ], "no snapshot went into another one"


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_a_name_that_anything_has_is_not_taken(store: Store, kind: str) -> None:
    volume(store, "db", "")
    put(store.place.snapshots / "db@2026-05-06T12:00:00", kind)

    taken = with_clock(store, lambda: NOON, "%Y-%m-%dT%H:%M:%S").snapshots.take("db")

    assert taken.name == "db@2026-05-06T12:00:01"


def test_nested_subvolumes_are_named_as_left_out(store: Store) -> None:
    path = volume(store, "db", "")
    subvolume(path / "nested", {"file": "x"})
    (path / "directory").mkdir()
    subvolume(path / "directory/deep")
    subvolume(path / "directory/deep/deeper")

    taken = store.snapshots.take("db")

    wanted = ["directory/deep", "directory/deep/deeper", "nested"]
    assert sorted(taken.left_out) == wanted
    assert list((store.place.snapshots / taken.name / "nested").iterdir()) == []


@pytest.mark.parametrize("name", ["unknown", "../snapshots", ".hidden", "a@b", "", "x\0", "v/.."])
def test_what_is_no_volume_cannot_be_snapshotted(store: Store, name: str) -> None:
    before = store.place.tree()

    with pytest.raises((NoSuchVolume, BadName)):
        store.snapshots.take(name)

    assert store.place.tree() == before


def test_a_name_too_long_for_a_file_is_refused_in_words(store: Store) -> None:
    subvolume(store.place.volumes / ("n" * 240))

    with pytest.raises(BadName, match="longer than 255 bytes"):
        store.snapshots.take("n" * 240)

    assert store.place.snapshot_names() == []


def test_a_snapshot_that_fails_says_what_failed(store: Store) -> None:
    volume(store, "db", "")
    store.place.snapshots.rmdir()

    with pytest.raises(OperationFailed, match="cannot snapshot volume db: "):
        store.snapshots.take("db")


# Listing


def test_the_list_is_sorted_by_volume_then_date_not_by_text(store: Store) -> None:
    date_format = "%d.%m.%Y %H-%M-%S"
    dates = ["01.12.2025 00-00-00", "02.02.2026 00-00-00", "01.03.2026 00-00-00"]
    for date in dates:
        snapshot_by_hand(store, f"db@{date}", "")
        snapshot_by_hand(store, f"a@{date}", "")
    snapshot_by_hand(store, f"db@{dates[1]}@nas", "")
    catalog = with_clock(store, datetime.now, date_format).catalog

    names = [str(snapshot.name) for snapshot in catalog.list().snapshots]

    assert names == [
        *(f"a@{date}" for date in dates),
        f"db@{dates[0]}",
        f"db@{dates[1]}",
        f"db@{dates[1]}@nas",
        f"db@{dates[2]}",
    ]


def test_only_read_only_subvolumes_with_good_names_are_listed(store: Store) -> None:
    good = snapshot_by_hand(store, "db@2026-01-01T00:00:00.000000", "")
    foreign = snapshot_by_hand(store, "db@yesterday", "")
    snapshot_by_hand(store, "db@2026-01-02T00:00:00.000000", "", readonly=False)
    snapshot_by_hand(store, ".db@2026-01-03T00:00:00.000000", "")
    snapshot_by_hand(store, "no-date", "")
    snapshot_by_hand(store, "a@b@c@d", "")
    snapshot_by_hand(store, "two\nlines@2026", "")
    (store.place.snapshots / "db@2026-01-04T00:00:00.000000").mkdir()
    (store.place.snapshots / "db@2026-01-05T00:00:00.000000").write_text("")
    (store.place.snapshots / "db@2026-01-06T00:00:00.000000").symlink_to(good)
    (store.place.snapshots / "db@2026-01-07T00:00:00.000000").symlink_to("nowhere")

    listing = store.catalog.list()

    assert [str(snapshot.name) for snapshot in listing.snapshots] == [foreign.name, good.name]
    assert [str(name) for name in listing.incomplete] == ["db@2026-01-02T00:00:00.000000"]
    assert store.catalog.summary("db").count == 2


def test_the_list_of_one_volume_holds_no_other(store: Store) -> None:
    for name in ("db@1", "db2@1", "my db@1", "d@1"):
        snapshot_by_hand(store, name, "")

    assert listed(store, "db") == ["db@1"]
    assert listed(store, "my db") == ["my db@1"]
    assert listed(store, "unknown") == []
    with pytest.raises(BadName):
        store.catalog.list("../volumes")


def test_what_others_do_in_the_directory_shows_at_once(store: Store) -> None:
    volume(store, "db", "")
    for _ in range(30):
        name = store.snapshots.take("db").name
        assert listed(store) == [name]
        assert store.catalog.summary("db").latest == name
        btrfs("subvolume", "delete", store.place.snapshots / name)
        assert listed(store) == []
        assert store.catalog.summary("db").count == 0


def test_a_copy_shows_when_it_is_complete(store: Store) -> None:
    path = snapshot_by_hand(store, "db@2026-01-02T00:00:00.000000", "", readonly=False)
    assert listed(store) == []
    os.utime(store.place.snapshots, (0, 0))
    assert listed(store) == []

    btrfs("property", "set", "-ts", path, "ro", "true")

    assert listed(store) == [path.name]


def test_the_summary_counts_no_markers_and_knows_the_latest_by_date(store: Store) -> None:
    snapshot_by_hand(store, "db@2026-01-02T00:00:00.000000", "")
    snapshot_by_hand(store, "db@2026-01-10T00:00:00.000000", "")
    snapshot_by_hand(store, "db@zzz", "")
    snapshot_by_hand(store, "db@2026-01-02T00:00:00.000000@nas", "")
    snapshot_by_hand(store, "db@2027-01-02T00:00:00.000000@nas", "")
    snapshot_by_hand(store, "other@2026-01-11T00:00:00.000000", "")

    summary = store.catalog.summary("db")

    assert (summary.count, summary.latest) == (3, "db@2026-01-10T00:00:00.000000")
    assert store.catalog.summary("unknown").latest is None
    assert store.catalog.summary("unknown").count == 0


# Restoring


def test_a_restored_volume_holds_what_the_snapshot_held_and_a_backup_the_rest(
    store: Store,
) -> None:
    path = volume(store, "db", "old")
    snapshot = store.snapshots.take("db").name
    (path / "file").write_text("new")

    backup = store.contents.restore(snapshot).backup

    assert backup is not None
    assert content(store, "db") == "old"
    assert (store.place.snapshots / backup / "file").read_text() == "new"
    assert listed(store) == [snapshot, backup]
    assert not is_readonly(path)
    (path / "file").write_text("written after")
    assert (store.place.snapshots / snapshot / "file").read_text() == "old"
    assert store.place.own_names() == []


def test_restoring_the_backup_undoes_a_restore(store: Store) -> None:
    path = volume(store, "db", "old")
    snapshot = store.snapshots.take("db").name
    (path / "file").write_text("new")

    backup = store.contents.restore(snapshot).backup
    assert backup is not None
    store.contents.restore(backup)

    assert content(store, "db") == "new"


def test_a_restored_volume_keeps_its_options(store: Store) -> None:
    path = volume(store, "db", "old")
    store.snapshots.take("db")

    store.contents.restore("db")

    assert not is_copied_on_write(path)


def test_at_no_moment_of_a_restore_is_the_volume_missing_or_mixed(store: Store) -> None:
    path = volume(store, "db", "old")
    (path / "second").write_text("old")
    snapshot = store.snapshots.take("db").name
    seen, done = set[tuple[str, ...]](), threading.Event()

    def watch() -> None:
        while not done.is_set():
            directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                texts = []
                for name in ("file", "second"):
                    file = os.open(name, os.O_RDONLY, dir_fd=directory)
                    texts.append(os.read(file, 10).decode())
                    os.close(file)
                seen.add(tuple(texts))
            except FileNotFoundError:  # the opened one was deleted: the name holds the other
                pass
            finally:
                os.close(directory)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for _ in range(20):
            store.contents.restore(snapshot)
            assert path.is_dir()
    finally:
        done.set()
        watcher.join(60)

    assert seen == {("old", "old")}


def test_a_volume_name_restores_its_latest_snapshot_by_date_not_by_name(store: Store) -> None:
    volume(store, "db", "now")
    date_format = "%d.%m.%Y %H-%M-%S"
    snapshot_by_hand(store, "db@31.12.2025 00-00-00", "older")
    snapshot_by_hand(store, "db@01.02.2026 00-00-00", "latest")
    snapshot_by_hand(store, "db@02.01.2026 00-00-00", "older")

    with_clock(store, datetime.now, date_format).contents.restore("db")

    assert content(store, "db") == "latest"


def test_the_latest_is_neither_of_a_foreign_format_nor_incomplete_nor_of_another(
    store: Store,
) -> None:
    volume(store, "db", "now")
    snapshot_by_hand(store, "db@2026-01-01T00:00:00.000000", "right")
    snapshot_by_hand(store, "db@zzzz", "foreign")
    snapshot_by_hand(store, "db@2026-01-02", "foreign")
    snapshot_by_hand(store, "db@20990101T000000", "foreign")
    snapshot_by_hand(store, "db@2026-01-03T00:00:00.000000", "half", readonly=False)
    snapshot_by_hand(store, "db2@2026-01-04T00:00:00.000000", "other")
    (store.place.snapshots / "db@2026-01-05T00:00:00.000000").mkdir()
    (store.place.snapshots / "db@2026-01-06T00:00:00.000000").symlink_to("db@zzzz")

    store.contents.restore("db")

    assert content(store, "db") == "right"


def test_a_marker_stands_in_for_its_snapshot_only_when_that_is_gone(store: Store) -> None:
    volume(store, "db", "now")
    snapshot_by_hand(store, "db@2026-01-01T00:00:00.000000", "old")
    date = "db@2026-01-02T00:00:00.000000"
    snapshot_by_hand(store, f"{date}@nas", "marker")
    original = snapshot_by_hand(store, date, "original")

    store.contents.restore("db", "first")
    btrfs("subvolume", "delete", original)
    store.contents.restore("db", "second")

    assert (content(store, "first"), content(store, "second")) == ("original", "marker")


def test_a_snapshot_of_the_future_is_the_latest_and_backups_still_work(store: Store) -> None:
    volume(store, "db", "now")
    future = (datetime.now() + timedelta(days=400)).strftime(DATE_FORMAT)
    snapshot_by_hand(store, f"db@{future}", "future")

    backup = store.contents.restore("db").backup

    assert content(store, "db") == "future"
    assert backup is not None
    assert (store.place.snapshots / backup / "file").read_text() == "now"


def test_one_of_a_foreign_format_is_restored_by_its_name(store: Store) -> None:
    volume(store, "db", "now")
    snapshot_by_hand(store, "db@last summer", "old")

    store.contents.restore("db@last summer")

    assert content(store, "db") == "old"


def test_a_volume_without_a_usable_snapshot_is_not_restored(store: Store) -> None:
    volume(store, "db", "now")
    snapshot_by_hand(store, "db@zzzz", "foreign")
    snapshot_by_hand(store, "other@2026-01-01T00:00:00.000000", "")
    before = store.place.tree()

    with pytest.raises(NoSnapshots, match=r"could mean, .*; name the one that you mean: db@zzzz$"):
        store.contents.restore("db")
    with pytest.raises(NoSuchSnapshot, match=r"^db@2026: no such snapshot$"):
        store.contents.restore("db@2026")

    assert store.place.tree() == before


def test_an_incomplete_copy_is_not_restored(store: Store) -> None:
    volume(store, "db", "now")
    snapshot_by_hand(store, "db@2026-01-01T00:00:00.000000", "half", readonly=False)

    with pytest.raises(IncompleteSnapshot, match="incomplete"):
        store.contents.restore("db@2026-01-01T00:00:00.000000", force=True)
    with pytest.raises(NoSnapshots):
        store.contents.restore("db", force=True)

    assert content(store, "db") == "now"


def test_a_volume_that_is_gone_comes_back_from_its_snapshot(store: Store) -> None:
    volume(store, "db", "old")
    store.snapshots.take("db")
    store.volumes.remove("db")

    assert store.contents.restore("db").backup is None

    assert content(store, "db") == "old"
    assert not is_readonly(store.volumes.mountpoint("db"))


def test_even_an_oddly_named_volume_that_is_gone_comes_back(store: Store) -> None:
    snapshot_by_hand(store, "my old volume@2026-01-01T00:00:00.000000", "old")

    store.contents.restore("my old volume")

    assert content(store, "my old volume") == "old"


def test_another_target_is_made_or_replaced_and_the_volume_itself_stays(store: Store) -> None:
    path = volume(store, "db", "old")
    snapshot = store.snapshots.take("db").name
    (path / "file").write_text("new")
    volume(store, "existing", "precious")

    assert store.contents.restore(snapshot, "copy").backup is None
    backup = store.contents.restore(snapshot, "existing").backup

    assert content(store, "db") == "new"
    assert content(store, "copy") == content(store, "existing") == "old"
    assert backup is not None
    assert backup.startswith("existing@")
    assert (store.place.snapshots / backup / "file").read_text() == "precious"


def test_an_oddly_named_target_must_exist_already(store: Store) -> None:
    volume(store, "db", "old")
    store.snapshots.take("db")
    subvolume(store.place.volumes / "my old volume", {"file": "new"})

    with pytest.raises(BadName, match="new volume"):
        store.contents.restore("db", "another odd one")
    store.contents.restore("db", "my old volume")

    assert content(store, "my old volume") == "old"
    assert [name for name, _ in store.volumes.list()] == ["db", "my old volume"]


@pytest.mark.parametrize(
    "target", ["", ".", "..", ".hidden", "a/b", "../volumes/x", "db@1", "x\0", "x\n", "/", "\ud800"]
)
def test_no_target_leads_out_of_the_volumes(store: Store, target: str) -> None:
    volume(store, "db", "old")
    snapshot = store.snapshots.take("db").name
    before = store.place.tree()

    asks: list[Callable[[], object]] = [
        lambda: store.contents.restore(snapshot, target, force=True),
        lambda: store.contents.restore("db", target, force=True),
        lambda: store.contents.clone("db", target),
    ]
    for ask in asks:
        with pytest.raises(BadName):
            ask()

    assert store.place.tree() == before


@pytest.mark.parametrize("kind", ["directory", "file", "link"])
def test_what_stands_in_the_way_of_a_target_stays(store: Store, kind: str) -> None:
    volume(store, "db", "old")
    snapshot = store.snapshots.take("db").name
    obstacle = store.place.volumes / "target"
    put(obstacle, kind, "db")
    before = store.place.tree()

    asks: list[Callable[[], object]] = [
        lambda: store.contents.restore(snapshot, "target", force=True),
        lambda: store.contents.clone("db", "target"),
    ]
    for ask in asks:
        with pytest.raises(NotAVolume, match=str(obstacle)):
            ask()

    assert store.place.tree() == before


def test_a_mounted_volume_is_replaced_only_by_force(store: Store) -> None:
    path = volume(store, "db", "old")
    store.snapshots.take("db")
    (path / "file").write_text("new")
    store.volumes.remember_mount("db", "container")

    with pytest.raises(VolumeMounted, match="force"):
        store.contents.restore("db")
    assert content(store, "db") == "new"
    assert len(listed(store)) == 1, "and no backup is made"

    store.contents.restore("db", force=True)
    assert content(store, "db") == "old"


def test_a_volume_with_nested_subvolumes_is_replaced_only_by_force(store: Store) -> None:
    path = volume(store, "db", "old")
    store.snapshots.take("db")
    (path / "file").write_text("new")
    subvolume(path / "nested", {"file": "in no snapshot"})

    with pytest.raises(NestedSubvolumes, match="nested"):
        store.contents.restore("db")
    assert (path / "nested/file").read_text() == "in no snapshot"
    assert len(listed(store)) == 1

    store.contents.restore("db", force=True)
    assert content(store, "db") == "old"
    assert store.place.own_names() == []


def test_a_volume_that_is_synchronized_is_replaced_not_even_by_force(store: Store) -> None:
    path = volume(store, "db", "old")
    store.snapshots.take("db")
    (path / "file").write_text("new")

    with store.volumes.synchronized.hold("db"):
        for force in (False, True):
            with pytest.raises(VolumeBusy):
                store.contents.restore("db", force=force)

    assert content(store, "db") == "new"


@pytest.mark.parametrize("step", ["backup", "copy", "exchange", "sync"])
def test_a_restore_that_fails_anywhere_loses_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = volume(store, "db", "old")
    snapshot = store.snapshots.take("db").name
    (path / "file").write_text("new")
    real = kernel.snapshot

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    def snapshot_fails(source: Path, target: Path, *, readonly: bool) -> None:
        if readonly == (step == "backup"):
            raise CommandFailed(["btrfs"], 1, "ERROR: No space left on device")
        real(source, target, readonly=readonly)

    if step in ("backup", "copy"):
        monkeypatch.setattr(kernel, "snapshot", snapshot_fails)
    else:
        monkeypatch.setattr(files, "exchange" if step == "exchange" else "sync_directory", fail)

    with pytest.raises(OperationFailed, match=r"db.*No space left on device"):
        store.contents.restore(snapshot)

    monkeypatch.undo()
    assert content(store, "db") in ("old", "new")
    if content(store, "db") == "old":
        backup = listed(store)[-1]
        assert (store.place.snapshots / backup / "file").read_text() == "new"
    assert store.place.own_names() == []
    assert (store.place.snapshots / snapshot / "file").read_text() == "old"


def test_restores_at_once_each_make_their_backup(store: Store) -> None:
    volume(store, "db", "old")
    snapshot = store.snapshots.take("db").name

    with ThreadPoolExecutor(8) as pool:
        backups = [
            future.result().backup
            for future in [pool.submit(store.contents.restore, snapshot) for _ in range(8)]
        ]

    assert len(set(backups)) == 8
    assert set(listed(store)) == {snapshot, *map(str, backups)}
    assert content(store, "db") == "old"
    assert store.place.own_names() == []


# Cloning


def test_a_clone_has_the_content_and_a_life_of_its_own(store: Store) -> None:
    path = volume(store, "db", "old")

    taken = store.contents.clone("db", "copy")

    (path / "file").write_text("new")
    assert (taken.name, taken.left_out) == ("copy", ())
    assert content(store, "copy") == "old"
    assert not is_readonly(store.volumes.mountpoint("copy"))
    assert not is_copied_on_write(store.volumes.mountpoint("copy"))
    assert listed(store) == []


def test_a_clone_names_the_nested_subvolumes_that_are_empty_in_it(store: Store) -> None:
    path = volume(store, "db", "old")
    subvolume(path / "nested")

    assert store.contents.clone("db", "copy").left_out == ("nested",)


def test_a_clone_never_replaces_a_volume(store: Store) -> None:
    volume(store, "db", "old")
    volume(store, "copy", "precious")

    for target in ("copy", "db"):
        with pytest.raises(VolumeExists, match=f"^{target}: this volume exists already"):
            store.contents.clone("db", target)

    assert content(store, "copy") == "precious"


def test_an_unknown_volume_or_a_snapshot_is_not_cloned(store: Store) -> None:
    volume(store, "db", "old")
    snapshot = store.snapshots.take("db").name

    with pytest.raises(NoSuchVolume, match="unknown: no such volume"):
        store.contents.clone("unknown", "copy")
    with pytest.raises(BadName):
        store.contents.clone(snapshot, "copy")

    assert [name for name, _ in store.volumes.list()] == ["db"]


def test_clones_back_and_forth_at_once_do_not_lock_each_other_out(store: Store) -> None:
    volume(store, "a", "a")
    volume(store, "b", "b")

    def clone(source: str, target: str) -> None:
        with pytest.raises(VolumeExists):
            store.contents.clone(source, target)

    with ThreadPoolExecutor(8) as pool:
        futures = [
            pool.submit(clone, *pair) for _ in range(50) for pair in (("a", "b"), ("b", "a"))
        ]
        for future in futures:
            future.result(30)


# Removing


def test_a_removed_snapshot_is_gone_and_its_volume_stays(store: Store) -> None:
    volume(store, "db", "old")
    first, second = store.snapshots.take("db").name, store.snapshots.take("db").name

    store.snapshots.remove(first)

    assert listed(store) == [second]
    assert content(store, "db") == "old"


@pytest.mark.parametrize("readonly", [True, False])
@pytest.mark.parametrize(
    "name", ["db@last summer", "db@2026@nas", "-rf@2026", "größe@2026", "my db@1", "db@--help"]
)
def test_any_snapshot_can_be_removed_complete_or_not(
    store: Store, name: str, *, readonly: bool
) -> None:
    path = snapshot_by_hand(store, name, "", readonly=readonly)
    if not readonly:
        subvolume(path / "nested")

    store.snapshots.remove(name)

    assert store.place.snapshot_names() == []


@pytest.mark.parametrize(
    "name",
    [
        "db",
        "a@b/../../volumes/db",
        "../volumes/db",
        "db@../volumes/db",
        "",
        "@",
        "db@",
        "@2026",
        "db@1@2@3",
        ".x@1",
        "db@1\0",
        "db@1\n",
        "db@\ud800",
        "db@1/nested",
    ],
)
def test_what_is_no_snapshot_is_not_removed(store: Store, name: str) -> None:
    volume(store, "db", "old")
    snapshot_by_hand(store, "db@1", "")
    before = store.place.tree()

    with pytest.raises((BadName, NoSuchSnapshot)):
        store.snapshots.remove(name)
    with pytest.raises(ButtervolumeError):
        store.contents.restore(f"{name}@x" if "@" not in name else name, force=True)

    assert store.place.tree() == before


@pytest.mark.parametrize("kind", ["directory", "file", "link"])
def test_links_and_directories_are_no_snapshots_for_anybody(store: Store, kind: str) -> None:
    path = volume(store, "db", "old")
    fake = store.place.snapshots / "db@2026-01-01T00:00:00.000000"
    put(fake, kind, path)
    before = store.place.tree()

    asks: list[Callable[[str], object]] = [store.snapshots.remove, store.contents.restore]
    for ask in asks:
        with pytest.raises(NoSuchSnapshot):
            ask(fake.name)
    with pytest.raises(NoSnapshots):
        store.contents.restore("db")

    assert store.place.tree() == before


def test_a_snapshot_in_transfer_is_not_removed(store: Store) -> None:
    volume(store, "db", "old")
    name = store.snapshots.take("db").name

    with store.snapshots.in_transfer.hold(name), pytest.raises(SnapshotBusy, match="transfer"):
        store.snapshots.remove(name)

    assert listed(store) == [name]
    store.snapshots.remove(name)
    assert listed(store) == []


def test_a_snapshot_that_cannot_be_removed_says_why_and_stays(store: Store) -> None:
    volume(store, "db", "old")
    name = store.snapshots.take("db").name
    path = store.place.snapshots / name
    btrfs("subvolume", "set-default", path)  # the kernel deletes no default subvolume
    try:
        with pytest.raises(OperationFailed, match=f"cannot remove snapshot {re.escape(name)}: "):
            store.snapshots.remove(name)
        assert listed(store) == [name]
    finally:
        btrfs("subvolume", "set-default", 5, path)


def test_a_snapshot_that_is_being_removed_is_called_so(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume(store, "db", "old")
    name = store.snapshots.take("db").name
    real, inside, go_on = nested.delete_tree, threading.Event(), threading.Event()

    def slow(path: Path) -> None:
        inside.set()
        assert go_on.wait(60)
        real(path)

    monkeypatch.setattr(nested, "delete_tree", slow)
    first = threading.Thread(target=store.snapshots.remove, args=(name,))
    first.start()
    wait_until(inside.is_set, what="the first to begin")
    try:
        with pytest.raises(ButtervolumeError) as refusal:
            store.snapshots.remove(name)
    finally:
        go_on.set()
        first.join(60)

    assert listed(store) == []
    assert "being removed" in str(refusal.value)


# A disk that fails


def test_a_disk_that_cannot_be_read_is_an_error_in_words(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume(store, "db", "old")
    snapshot = store.snapshots.take("db").name

    def broken(_: kernel.Directory) -> list[nested.Nested]:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(nested, "find", broken)

    with pytest.raises(OperationFailed, match="Input/output error"):
        store.contents.restore(snapshot)
    assert listed(store) == [snapshot]
    assert content(store, "db") == "old"
    assert store.contents.clone("db", "db2").left_out == ()
    assert content(store, "db2") == "old", "a warning that cannot be given stops nothing"
    assert store.snapshots.take("db").left_out == ()
