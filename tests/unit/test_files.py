"""A directory that many want synced at once, and a file that gets a new content."""

import os
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from buttervolume.system.files import SharedSync, replace
from tests.support.wait import wait_until


class Disk:
    """Stands in the place of `os.fsync`: slow when told so, and it may fail."""

    def __init__(self) -> None:
        self.begun = 0
        self.go = threading.Event()
        self.go.set()
        self.failures = 0

    def __call__(self, descriptor: int) -> None:
        os.fstat(descriptor)
        self.begun += 1
        assert self.go.wait(60)
        if self.failures:
            self.failures -= 1
            raise OSError(5, "Input/output error")


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr("os.fsync", disk)
    return disk


def test_who_waits_alone_gets_a_sync_each_time(disk: Disk, tmp_path: Path) -> None:
    names = SharedSync(tmp_path)

    for number in range(1, 4):
        names.sync()
        assert disk.begun == number


def test_those_who_come_during_a_sync_share_the_next_one(disk: Disk, tmp_path: Path) -> None:
    names = SharedSync(tmp_path)
    disk.go.clear()
    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(names.sync)
        wait_until(lambda: disk.begun == 1)
        others = [pool.submit(names.sync) for _ in range(8)]
        wait_until(lambda: pool._work_queue.empty())

        disk.go.set()
        first.result(10)
        for other in others:
            other.result(10)

    assert 2 <= disk.begun <= 3, "a straggler may need a third"


def test_a_sync_that_had_begun_before_is_not_enough(disk: Disk, tmp_path: Path) -> None:
    names = SharedSync(tmp_path)
    disk.go.clear()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(names.sync)
        wait_until(lambda: disk.begun == 1)
        second = pool.submit(names.sync)
        disk.go.set()
        first.result(10)
        second.result(10)

    assert disk.begun == 2


def test_one_failure_is_told_to_one_and_the_others_try_again(disk: Disk, tmp_path: Path) -> None:
    names = SharedSync(tmp_path)
    disk.go.clear()
    disk.failures = 1
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(names.sync)
        wait_until(lambda: disk.begun == 1)
        second = pool.submit(names.sync)
        disk.go.set()
        with pytest.raises(OSError, match="Input/output"):
            first.result(10)
        second.result(10)

    names.sync()
    assert disk.begun == 3


# A new content


def test_a_file_keeps_its_owner_mode_and_attributes(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    os.chown(file, 1234, 4321)
    file.chmod(0o2640)
    os.setxattr(file, "user.comment", b"keep me")
    subprocess.run(["setfacl", "-m", "u:7:r", file], check=True)
    acl = os.getxattr(file, "system.posix_acl_access")
    mode = file.stat().st_mode

    replace(file, "new")

    status = file.stat()
    assert file.read_text() == "new"
    assert (status.st_uid, status.st_gid, status.st_mode) == (1234, 4321, mode)
    assert os.getxattr(file, "user.comment") == b"keep me"
    assert os.getxattr(file, "system.posix_acl_access") == acl
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("umask", [0, 0o077])
def test_a_new_file_is_for_its_owner_alone(tmp_path: Path, umask: int) -> None:
    old = os.umask(umask)
    try:
        replace(tmp_path / "file", "new")
    finally:
        os.umask(old)

    assert (tmp_path / "file").stat().st_mode & 0o7777 == 0o600


def test_a_link_to_a_file_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")

    replace(tmp_path / "link", "new")

    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"
