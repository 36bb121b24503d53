"""A directory that many want synced at once."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from buttervolume.system.files import SharedSync
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
        assert self.go.wait(10)
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
