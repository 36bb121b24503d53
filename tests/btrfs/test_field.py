"""What people do to volumes and their filesystem: it works, or the words say what to do."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from buttervolume.errors import OperationFailed
from buttervolume.store.options import Options
from tests.btrfs.conftest import StartDaemon
from tests.btrfs.harness import Daemon, Place, Store, btrfs, subvolume
from tests.support.filesystem import loop_btrfs


def run(*argv: object) -> str:
    words = [str(word) for word in argv]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


@contextmanager
def swapping_to(path: Path) -> Iterator[None]:
    """A swap file that is in use."""
    path.touch(0o600)
    run("chattr", "+C", path)
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, 8 << 20)
    run("mkswap", path)
    run("swapon", path)
    try:
        yield
    finally:
        run("swapoff", path)


def test_a_swap_file_in_use_is_named_with_the_way_out(tmp_path: Path) -> None:
    with loop_btrfs(tmp_path, size="512M") as mount_point:
        store = Store.make(Place.make(mount_point / "place"))
        store.volumes.create("db", Options())
        path = store.volumes.mountpoint("db")
        snapshot = store.snapshots.take("db").name
        before = store.place.snapshot_names()
        try:
            swap = swapping_to(path / "swap")
            swap.__enter__()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this machine swaps to no file: {error.stderr}")
        try:
            for attempt in (
                lambda: store.snapshots.take("db"),
                lambda: store.contents.clone("db", "copy"),
                lambda: store.contents.restore(snapshot),
                lambda: store.volumes.remove("db"),
            ):
                with pytest.raises(OperationFailed, match=f"swapoff {path}/swap"):
                    attempt()
            assert store.place.snapshot_names() == before
            assert [name for name, _ in store.volumes.list()] == ["db"]
            assert store.place.own_names() == []
        finally:
            swap.__exit__(None, None, None)
        store.volumes.remove("db")


@pytest.fixture
def two_mounts(tmp_path: Path) -> Iterator[Place]:
    """Volumes and snapshots on two `subvol=` mounts of one filesystem, as image-based systems have
    them."""
    with loop_btrfs(tmp_path, size="512M") as mount_point:
        device = run("findmnt", "-no", "SOURCE", mount_point)
        place = Place.make(tmp_path / "srv")
        for name in ("volumes", "snapshots"):
            subvolume(mount_point / f"@{name}")
            run("mount", "-o", f"subvol=@{name}", device, place.directory / name)
        try:
            yield place
        finally:
            for name in ("volumes", "snapshots"):
                run("umount", place.directory / name)


def test_volumes_and_snapshots_may_be_on_two_mounts_of_one_filesystem(
    two_mounts: Place, runtime: Path
) -> None:
    daemon = Daemon(two_mounts, runtime / "run").start()
    try:
        daemon.call("Create", Name="db")
        path = two_mounts.volumes / "db"
        (path / "file").write_text("old")
        name = daemon.call("Snapshot", Name="db")["Snapshot"]
        (path / "file").write_text("new")
        subvolume(path / "nested")
        assert "nested" in daemon.call("Snapshot", Name="db")["Warning"]
        daemon.call("Snapshot.Restore", Name=name, Force=True)
        assert (path / "file").read_text() == "old"
        daemon.call("Clone", Name="db", Target="copy")
        daemon.call("Snapshot.Remove", Name=name)
        daemon.call("Remove", Name="db")
        daemon.call("Volume.Undelete", Name="db")
        assert daemon.names() == ["copy", "db"]
        daemon.call("Remove", Name="db")
        daemon.call("Volume.Removed.Purge")
        assert two_mounts.own_names() == []

        with mounted(two_mounts.volumes / "copy"):
            snapshot = daemon.call("Snapshot", Name="copy")["Snapshot"]
            assert "a container uses" in daemon.refused("Snapshot.Restore", Name=snapshot)[:80]
        daemon.stop()
    finally:
        daemon.close()


@contextmanager
def mounted(path: Path) -> Iterator[None]:
    """A directory that a process has mounted for itself."""
    script = 'mount --bind "$1" /mnt && echo && exec sleep 100'
    argv = ["unshare", "-m", "sh", "-c", script, "sh", str(path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.kill()


@pytest.mark.parametrize("simple", [False, True])
def test_quotas_that_are_on_disturb_nothing(tmp_path: Path, runtime: Path, *, simple: bool) -> None:
    with loop_btrfs(tmp_path, size="512M") as mount_point:
        try:
            btrfs("quota", "enable", *(["--simple"] if simple else []), mount_point)
        except subprocess.CalledProcessError:
            pytest.skip("btrfs-progs know no simple quotas")
        place = Place.make(mount_point / "place")
        daemon = Daemon(place, runtime / "run").start()
        try:
            daemon.call("Create", Name="db", Opts={"size": "50M"})
            (place.volumes / "db/file").write_bytes(os.urandom(1 << 20))
            for _ in range(3):
                daemon.call("Snapshot", Name="db")
            daemon.call("Snapshot.Restore", Name="db@latest")
            # simple quotas charge who wrote first, and a restored volume has written nothing yet
            (place.volumes / "db/other").write_bytes(os.urandom(1 << 20))
            btrfs("filesystem", "sync", mount_point)
            daemon.call("Remove", Name="db")
            (removed,) = daemon.call("Volume.Removed")["Removed"]
            assert removed["Size"] >= 1 << 20
            daemon.call("Volume.Removed.Purge")
            daemon.call("Snapshots.Purge", Name="db", Pattern="1m:1m")
            daemon.stop()
            assert "Traceback" not in daemon.stderr()
        finally:
            daemon.close()


def test_a_full_tmp_fails_a_synchronization_in_words_and_leaves_no_pile(
    start_daemon: StartDaemon, runtime: Path
) -> None:
    tmp = runtime / "tmp"
    tmp.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=64k,nr_inodes=16", "tmp", tmp)
    try:
        daemon = start_daemon(TMPDIR=str(tmp))
        daemon.call("Create", Name="db")
        body = {"Volumes": ["db"], "Hosts": ["a.invalid", "b.invalid"]}
        assert "No space left" not in daemon.refused("Volume.Sync", **body)
        with suppress(OSError):
            for number in range(16):
                (tmp / str(number)).touch()

        said = daemon.refused("Volume.Sync", **body)

        for host in body["Hosts"]:
            assert f"db from {host}: cannot make a directory for the socket of ssh: No sp" in said
        assert daemon.snapshot_names("db") == []
        daemon.stop()
        assert "Traceback" not in daemon.stderr()
    finally:
        run("umount", tmp)
