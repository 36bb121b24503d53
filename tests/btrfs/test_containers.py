"""What a container does in its volume while the daemon works on it: it reaches nobody else, and
stops nothing."""

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from buttervolume.errors import OperationFailed, VolumeMounted
from buttervolume.store.options import Options, parse_options
from buttervolume.store.removed import Removed
from buttervolume.store.retention import parse_pattern
from buttervolume.system import btrfs as kernel
from buttervolume.system import nested
from tests.btrfs.conftest import StartDaemon
from tests.btrfs.harness import (
    DATE_FORMAT,
    Daemon,
    Place,
    Shim,
    Store,
    btrfs,
    entries,
    nested_in,
    subvolume,
)
from tests.support.container import run_in_container, running_in_container
from tests.support.wait import wait_until

FORGED = UUID("deadbeef-dead-beef-dead-beefdeadbeef")


@pytest.fixture
def volume(store: Store) -> Path:
    """A volume with a file."""
    store.volumes.create("evil", Options())
    path = store.volumes.mountpoint("evil")
    (path / "file").write_text("x")
    return path


def received_uuid(path: Path) -> UUID | None:
    return kernel.info(path).received_uuid


# Paths that are swapped for others


@pytest.mark.parametrize("operation", ["remove", "restore", "sweep"])
def test_nobody_else_loses_what_directories_are_swapped_for(
    store: Store, volume: Path, operation: str
) -> None:
    """Code that looks up paths twice finds what is nested behind the link instead, and deletes that
    by number: in one of four rounds or so."""
    victim = store.place.directory / "victim"
    victim.mkdir()
    subvolume(victim / "name")
    subvolume(victim / "name/nested", {"file": "precious"})
    snapshot = store.snapshots.take("evil").name
    for _ in range(8):
        with running_in_container("swap_forever", volume, victim, "name", 200):
            if operation == "remove":
                store.volumes.remove("evil")
            elif operation == "restore":
                store.contents.restore(snapshot, force=True)
            else:
                volume.rename(store.place.volumes / ".buttervolume-restore-1")
                store.volumes.sweep(store.volumes.leftovers())
        assert (victim / "name/nested/file").read_text() == "precious"
        assert store.place.own_names() == []
        if operation != "restore":
            store.volumes.create("evil", Options())


def test_a_link_in_the_place_of_a_read_only_parent_leads_nowhere(
    store: Store, volume: Path
) -> None:
    """What has to be made writable first is opened step by step, and each step compared."""
    victim = store.place.directory / "victim"
    subvolume(victim, {"file": "precious"})
    subvolume(victim / "name")
    for readonly in (victim / "name", victim):
        btrfs("property", "set", "-ts", readonly, "ro", "true")
    for _ in range(5):
        with running_in_container("swap_forever", volume, store.place.directory, "victim", 20):
            for number in range(20):
                for place in ("real", "links"):
                    inner = volume / place / str(number)
                    if not inner.is_symlink() and (inner / "victim").is_dir():
                        break
            store.volumes.remove("evil")
        assert kernel.info(victim).readonly
        assert (victim / "name").is_dir()
        store.volumes.create("evil", Options())


# How deep, how many, how odd


DEEDS: dict[str, list[tuple[object, ...]]] = {
    "a path that is too long": [("nest_deep", "", 30, 255, "directories")],
    "seventeen of the longest names": [("nest_deep", "", 17, 255, "subvolumes")],
    "a hundred of the longest names": [("nest_deep", "", 100, 255, "subvolumes")],
    "names that no ioctl takes": [("nest", "", name) for name in ("..x", "...", "..\n", " ")],
    "read-only ones in read-only ones": [
        ("nest", "", "a"),
        ("nest", "a", "..b"),
        ("nest", "a/..b", "c"),
        ("make_readonly", "a/..b"),
        ("make_readonly", "a"),
    ],
    "a read-only one that lies too deep": [
        ("nest", "", "a"),
        ("nest_deep", "a", 30, 255, "directories"),
        ("make_readonly", "a"),
    ],
}


@pytest.mark.parametrize("what", DEEDS)
def test_however_odd_what_is_nested_everything_works(store: Store, volume: Path, what: str) -> None:
    before = store.snapshots.take("evil").name
    for deed, where, *arguments in DEEDS[what]:
        run_in_container(str(deed), volume / str(where), *arguments)

    taken = store.snapshots.take("evil")
    assert taken.left_out
    assert len(", ".join(taken.left_out)) < 2048
    assert store.contents.clone("evil", "copy").left_out == taken.left_out
    store.contents.restore(before, force=True)
    assert nested_in(volume) == []
    assert store.place.own_names() == [], "the old content is gone with all that was in it"

    for deed, where, *arguments in DEEDS[what]:
        run_in_container(str(deed), volume / str(where), *arguments)
    store.volumes.remove("evil")

    assert [name for name, _ in store.volumes.list()] == ["copy"]
    assert store.place.own_names() == []


def test_however_many_attributes_a_container_adds_everything_works(
    store: Store, volume: Path
) -> None:
    """The kernel lists 64 KiB of names at the most; beyond, there is no list at all."""
    store.volumes.remove("evil")
    store.volumes.create("evil", parse_options({"keep": "3d"}))
    before = store.snapshots.take("evil").name
    run_in_container("add_attributes", volume, 300)
    with pytest.raises(OSError, match="too long"):
        os.listxattr(volume)

    taken = store.snapshots.take("evil").name
    store.contents.clone("evil", "copy")
    store.contents.create("from", parse_options({"from": taken, "keep": "5d"}))
    store.contents.restore(before)
    store.contents.restore(taken)
    removed = Removed(store.volumes, DATE_FORMAT, timedelta(hours=1))
    for name, days in (("evil", 3), ("copy", 3), ("from", 5)):
        removed.remove(name)
        [kept] = removed.list()
        assert kept.until - kept.removed == timedelta(days=days)
        assert removed.bring_back(name) == name
        removed.remove(name)
        removed.purge(name)
    store.snapshots.remove(taken)

    assert store.volumes.list() == []
    assert store.place.own_names() == []


SAME_HASH = b"user.00000000\x93d\xf4\xa1"
"""A name with the same hash as `trusted.buttervolume.kind`, by the CRC32C that BTRFS takes."""


def test_an_attribute_in_the_place_of_ours_keeps_no_volume_from_being_restored(
    store: Store, volume: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = store.snapshots.take("evil").name
    (volume / "file").write_text("new")
    for size in range(16384, 0, -1):  # the largest that there is room for
        with suppress(OSError):
            os.setxattr(os.fsencode(volume), SAME_HASH, bytes(size))
            break

    restored = store.contents.restore(before)

    assert (volume / "file").read_text() == "x"
    assert restored.backup
    assert (store.place.snapshots / restored.backup / "file").read_text() == "new"
    assert "cannot be marked as the backup of a restore" in caplog.text


def test_a_warning_names_some_and_counts_the_rest(store: Store, volume: Path) -> None:
    run_in_container("nest_many", volume, 50)
    run_in_container("nest", volume, "n" * 200)

    left_out = store.snapshots.take("evil").left_out

    assert left_out[:2] == ("nnnnnnn0", "nnnnnnn1")
    assert left_out[-1] == "and 31 more"
    assert len(left_out) == 21


@contextmanager
def deletions_held_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let nothing that may have subvolumes in it be deleted before the end of the block."""
    real, go_on = nested.delete_tree, threading.Event()

    def later(path: Path) -> None:
        assert go_on.wait(120)
        real(path)

    monkeypatch.setattr(nested, "delete_tree", later)
    try:
        yield
    finally:
        go_on.set()


def test_two_thousand_are_found_at_once_and_nobody_waits_while_they_go(
    store: Store, volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_in_container("nest_many", volume, 2000)
    store.volumes.create("other", Options())

    with kernel.opened(volume) as root:
        found = nested.find(root)
    assert len(found) == 2000

    with ThreadPoolExecutor(1) as pool:
        with deletions_held_up(monkeypatch):
            removal = pool.submit(store.volumes.remove, "evil")
            wait_until(lambda: not store.volumes.exists("evil"), what="the name to be gone")
            store.snapshots.take("other")
            store.volumes.create("evil", Options())
            assert not removal.done(), "all this came before what was nested had gone"
        removal.result(60)

    assert [name for name, _ in store.volumes.list()] == ["evil", "other"]
    assert store.place.own_names() == []


def test_the_old_content_of_a_restored_volume_goes_while_nobody_waits(
    store: Store, volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = store.snapshots.take("evil").name
    run_in_container("nest_many", volume, 2000)
    with ThreadPoolExecutor(1) as pool:
        with deletions_held_up(monkeypatch):
            restore = pool.submit(store.contents.restore, snapshot, force=True)
            wait_until(lambda: not nested_in(volume), what="the new content to be in place")
            store.snapshots.take("evil")
            assert not restore.done()
        restore.result(60)
    assert store.place.own_names() == []


def test_who_goes_on_making_subvolumes_holds_up_nobody_else(store: Store, volume: Path) -> None:
    store.volumes.create("other", Options())
    snapshot = store.snapshots.take("evil").name
    with (
        running_in_container("nest_forever", volume),
        ThreadPoolExecutor(1) as pool,
    ):
        wait_until(lambda: len(nested_in(volume)) > 20, what="the container to be at work")
        restore = pool.submit(store.contents.restore, snapshot, force=True)
        wait_until(lambda: not nested_in(volume), what="the new content to be in place")
        store.snapshots.take("evil")
        store.snapshots.take("other")
        restore.result(120)

    store.volumes.sweep(store.volumes.leftovers())


def test_a_discard_that_fails_is_said(
    store: Store, volume: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = store.snapshots.take("evil").name

    def fail(_: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(nested, "delete_tree", fail)
    store.contents.restore(snapshot)

    (left,) = store.place.own_names()
    assert f"{left} is left over" in caplog.text
    assert "Input/output error" in caplog.text


# A forged Received UUID


def test_no_snapshot_inherits_a_received_uuid_whenever_it_is_set(
    store: Store, volume: Path
) -> None:
    run_in_container("receive", volume, FORGED)
    names = [store.snapshots.take("evil").name]
    with running_in_container("receive_forever", volume, FORGED):
        names += [store.snapshots.take("evil").name for _ in range(15)]

    assert received_uuid(volume) == FORGED
    for name in names:
        path = store.place.snapshots / name
        assert received_uuid(path) is None
        assert kernel.info(path).readonly
        assert (path / "file").read_text() == "x"
    store.contents.clone("evil", "copy")
    assert received_uuid(store.volumes.mountpoint("copy")) is None
    store.contents.restore(names[0])
    assert received_uuid(volume) is None


@pytest.mark.parametrize("readonly", [False, True])
def test_volumes_that_have_a_received_uuid_lose_it_at_the_start(
    start_daemon: StartDaemon, place: Place, readonly: bool
) -> None:
    for name in ("moved", "plain"):
        subvolume(place.volumes / name, {"file": "x"})
    moved = place.volumes / "moved"
    run_in_container("receive", moved, FORGED)
    if readonly:
        run_in_container("make_readonly", moved)

    daemon = start_daemon()

    wait_until(lambda: received_uuid(moved) is None, what="the volume to lose it")
    wait_until(
        lambda: kernel.info(moved).readonly == readonly and str(FORGED) in daemon.stderr(),
        what="the line in the log",
    )
    daemon.stop()
    (line,) = (line for line in daemon.stderr().splitlines() if str(FORGED) in line)
    assert "moved: " in line
    assert "plain" not in daemon.stderr()


def test_snapshots_that_share_a_received_uuid_are_named_at_the_start(
    start_daemon: StartDaemon, place: Place
) -> None:
    """As earlier versions left them, of a volume that had one."""
    subvolume(place.volumes / "db", {"file": "x"})
    dates = [f"2026-11-26T1{hour}:00:00.000000" for hour in range(4)]
    shared, alone = [f"db@{date}" for date in dates[:2]], [f"db@{date}" for date in dates[2:]]
    for name in (*shared, *alone):
        btrfs("subvolume", "snapshot", "-r", place.volumes / "db", place.snapshots / name)
    for name in shared:
        kernel.set_received(place.snapshots / name, FORGED, 1)
    kernel.set_received(place.snapshots / alone[0], uuid4(), 1)
    # a marker of a version that let it inherit the UUID of its snapshot
    marker = place.snapshots / f"{alone[0]}@beta"
    btrfs("subvolume", "snapshot", "-r", place.snapshots / alone[0], marker)

    daemon = start_daemon()

    wait_until(lambda: str(FORGED) in daemon.stderr(), timeout=60, what="the line in the log")
    daemon.stop()
    (line,) = (line for line in daemon.stderr().split("\n") if "Received UUID" in line)
    assert all(name in line for name in shared)
    assert not any(name in line for name in alone)


# In use


@contextmanager
def mounted_elsewhere(path: Path, point: str | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process with a mount namespace of its own, in which a directory is mounted once more."""
    with tempfile.TemporaryDirectory() as directory:
        target = Path(point or directory)
        script = 'mount --bind "$1" "$2" && echo && exec sleep 100'
        with subprocess.Popen(
            ["unshare", "-m", "sh", "-c", script, "sh", path, target], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            try:
                yield process
            finally:
                process.kill()


@pytest.mark.parametrize("inner", ["", "directory", "directory/deeper", "a blank", "nested/in it"])
def test_whatever_of_a_volume_is_mounted_it_is_in_use(
    store: Store, volume: Path, inner: str
) -> None:
    snapshot = store.snapshots.take("evil").name
    if inner.startswith("nested"):
        subvolume(volume / "nested")
    (volume / inner).mkdir(parents=True, exist_ok=True)

    with mounted_elsewhere(volume / inner) as process:
        with pytest.raises(VolumeMounted) as refusal:
            store.contents.restore(snapshot)
        assert f"process {process.pid} (" in str(refusal.value)
    assert not store.volumes.is_mounted("evil")


def test_a_neighbour_with_a_longer_name_is_not_in_the_way(store: Store, volume: Path) -> None:
    store.volumes.create("evil2", Options())
    (store.volumes.mountpoint("evil2") / "x").mkdir()

    with mounted_elsewhere(store.volumes.mountpoint("evil2") / "x"):
        assert not store.volumes.is_mounted("evil")
        assert store.volumes.is_mounted("evil2")


@pytest.mark.parametrize("odd", ["a\u2028b", "a\x85b", "a\fb", "a\x1cb", "a\\040b", "a\tb\nc", "ä"])
def test_a_volume_that_is_mounted_at_an_odd_place_is_in_use(
    store: Store, volume: Path, tmp_path: Path, odd: str
) -> None:
    (tmp_path / odd).mkdir()
    inner = volume / odd
    inner.mkdir()
    store.volumes.create("other", Options())

    with mounted_elsewhere(inner, str(tmp_path / odd)):
        assert store.volumes.is_mounted("evil")
        assert not store.volumes.is_mounted("other")


def test_a_volume_that_is_mounted_while_it_is_restored_is_refused_and_keeps_its_content(
    store: Store, volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Docker mounts it in the moment between the first look and the exchange."""
    snapshot = store.snapshots.take("evil").name
    (volume / "file").write_text("new")
    before = store.place.snapshot_names()
    real = kernel.snapshot

    def mount_meanwhile(source: Path, target: Path, *, readonly: bool) -> None:
        real(source, target, readonly=readonly)
        if not readonly:
            store.volumes.mount("evil", "container")

    monkeypatch.setattr(kernel, "snapshot", mount_meanwhile)
    with pytest.raises(VolumeMounted):
        store.contents.restore(snapshot)

    assert (volume / "file").read_text() == "new"
    assert store.place.own_names() == []
    assert store.place.snapshot_names() == before, "the backup of nothing is gone"


def test_a_mount_waits_while_a_volume_is_replaced(store: Store, volume: Path) -> None:
    mounted = threading.Event()

    def mount() -> None:
        store.volumes.mount("evil", "container")
        mounted.set()

    with store.volumes.changing_hands.hold("evil"):
        thread = threading.Thread(target=mount)
        thread.start()
        assert not mounted.wait(0.2)
        assert not store.volumes.is_mounted("evil")
    assert mounted.wait(60)
    thread.join()


def test_restores_and_mounts_at_once_never_leave_a_mounted_volume_replaced(
    store: Store, volume: Path
) -> None:
    """A container that mounts by the answer of Mount finds there what it will keep."""
    snapshot = store.snapshots.take("evil").name
    replaced_under = list[str]()
    done = threading.Event()

    def restore() -> None:
        while not done.is_set():
            try:
                store.contents.restore(snapshot)
            except VolumeMounted:
                continue

    thread = threading.Thread(target=restore)
    thread.start()
    try:
        for number in range(60):
            path = store.volumes.mount("evil", "container")
            inode = kernel.info(path).uuid
            time.sleep(0.01)  # not to wait for something: for a restore to go wrong in
            if kernel.info(path).uuid != inode:
                replaced_under.append(str(number))
            store.volumes.remember_unmount("evil", "container")
    finally:
        done.set()
        thread.join(60)

    assert replaced_under == []


# Modes, and what is immutable


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o027])
def test_the_root_of_a_new_volume_has_one_mode_whatever_the_umask(store: Store, umask: int) -> None:
    old = os.umask(umask)
    try:
        store.volumes.create("db", Options())
    finally:
        os.umask(old)

    assert store.volumes.mountpoint("db").stat().st_mode & 0o7777 == 0o755


def test_a_snapshot_of_an_immutable_volume_can_be_removed(store: Store, volume: Path) -> None:
    (volume / "file").write_text("old")
    subprocess.run(["chattr", "+i", volume], check=True)
    try:
        name = store.snapshots.take("evil").name
        with pytest.raises(OperationFailed, match="chattr -i"):
            store.contents.restore(name)
        with pytest.raises(OperationFailed, match="chattr -i"):
            store.volumes.remove("evil")
        assert store.place.own_names() == []
        store.contents.restore(name, "copy")
    finally:
        subprocess.run(["chattr", "-i", volume], check=True)
    backups = store.place.snapshot_names()
    store.snapshots.take("evil")
    purged = store.snapshots.purge("evil", parse_pattern("1m:1m"))
    assert (purged.deleted, purged.failed) == ((), {}), "all are too young"
    for name in backups:
        store.snapshots.remove(name)
    store.volumes.remove("copy")

    assert not {*backups} & {*entries(store.place.snapshots)}


@pytest.mark.parametrize("what", ["d/name", "d", "name", "d/name/inner"])
@pytest.mark.parametrize("operation", ["remove", "restore", "sweep"])
def test_what_is_immutable_in_a_volume_is_no_reason_to_keep_it(
    store: Store, volume: Path, what: str, operation: str
) -> None:
    """Given a subvolume nested in a volume that is immutable, itself or its directory, when the
    volume is removed or replaced, then nothing of it is left."""
    snapshot = store.snapshots.take("evil").name
    (volume / "d").mkdir()
    for name in ("name", "d/name", "d/name/inner"):
        subvolume(volume / name)
    for flag, each in (("+i", volume / what), ("+a", volume / "d")):
        subprocess.run(["chattr", flag, each], check=True)
    btrfs("property", "set", "-ts", volume / "d/name", "ro", "true")
    if operation == "remove":
        store.volumes.remove("evil")
    elif operation == "restore":
        store.contents.restore(snapshot, force=True)
        assert nested_in(volume) == []
    else:
        volume.rename(store.place.volumes / ".buttervolume-restore-1")
        store.volumes.sweep(store.volumes.leftovers())

    assert store.place.own_names() == []
    assert volume.exists() == (operation == "restore")


def test_a_purge_deletes_the_snapshots_of_an_immutable_volume(store: Store, volume: Path) -> None:
    subprocess.run(["chattr", "+i", volume], check=True)
    try:
        old = [f"evil@2020-01-0{day}T00:00:00.000000" for day in (1, 2, 3)]
        for name in old:
            btrfs("subvolume", "snapshot", "-r", volume, store.place.snapshots / name)
        newest = store.snapshots.take("evil").name
    finally:
        subprocess.run(["chattr", "-i", volume], check=True)

    purged = store.snapshots.purge("evil", parse_pattern("1h:1h"))

    assert (purged.deleted, purged.failed) == (tuple(old), {})
    assert entries(store.place.snapshots) == [newest]


# One mutex, many that wait


def test_who_waits_too_long_for_a_volume_is_told_so(daemon: Daemon, shim: Shim) -> None:
    for name in ("db", "other"):
        daemon.call("Create", Name=name)
    shim.stop_at("*snapshot -r*/db *")
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(daemon.post, "Snapshot", Name="db")
        shim.wait_for_arrival()
        second = pool.submit(daemon.post, "Snapshot", Name="db")
        daemon.call("Snapshot", Name="other")
        daemon.call("Mount", Name="db", ID="container")

        refusal = second.result(20).error
        shim.go_on()

    assert "db: another operation of this volume is under way" in refusal
    assert first.result().error == ""
