"""The daemon killed again and again, and a disk that is full: nothing is lost, nothing is left."""

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path

import pytest

from tests.btrfs.conftest import StartDaemon
from tests.btrfs.harness import Answer, Daemon, NoAnswer, Place, Shim, is_readonly, subvolume
from tests.support.filesystem import loop_btrfs
from tests.support.wait import wait_until

CONTENTS = ("old", "new")
FILES = 5
KILLS = 12
CUT_OFF = (NoAnswer, HTTPException, OSError)
"""How a request may end whose daemon is killed."""


def write(path: Path, text: str) -> None:
    for number in range(FILES):
        (path / f"file{number}").write_text(text)


def content(path: Path) -> str:
    """What a volume holds, which must be the same in each of its files."""
    texts = {(path / f"file{number}").read_text() for number in range(FILES)}
    assert len(texts) == 1, f"{path} is mixed: {texts}"
    assert len(list(path.iterdir())) == FILES
    return texts.pop()


def volume_with_two_contents(daemon: Daemon, name: str = "db") -> str:
    """A volume that holds "new", and a snapshot of it that holds "old"."""
    path = daemon.place.volumes / name
    if name not in daemon.names():
        daemon.call("Create", Name=name)
    write(path, "old")
    snapshot = str(daemon.call("Snapshot", Name=name)["Snapshot"])
    write(path, "new")
    return snapshot


@contextmanager
def in_background(daemon: Daemon, endpoint: str, **body: object) -> Iterator[Future[Answer]]:
    """Ask the daemon for something that it will not live to answer, or will."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(daemon.post, endpoint, **body)
        yield future
        with suppress(*CUT_OFF):
            future.result(30)


STOPS = [
    ("restore", "*snapshot -r*", "new"),  # before the backup
    ("restore", "*restore-*", "new"),  # before the copy that will take the volume's place
    ("restore", "*delete*", "old"),  # after the exchange, before the old content goes
    ("restore copy", "*restore-*", None),
    ("clone", "*clone-*", None),
    ("create", "*create*", None),
    ("remove", "*delete*", None),
    ("snapshot", "*snapshot -r*", "new"),
]


@pytest.mark.parametrize("when", ["before the command", "after the command"])
@pytest.mark.parametrize(("operation", "pattern", "wanted"), STOPS)
def test_killed_at_each_step_a_volume_holds_one_content_whole(
    shim: Shim,
    start_daemon: StartDaemon,
    place: Place,
    operation: str,
    pattern: str,
    wanted: str | None,
    when: str,
) -> None:
    daemon = start_daemon(BUTTERVOLUME_KEEP_REMOVED="0")
    snapshot = volume_with_two_contents(daemon)
    endpoint, body = {
        "restore": ("Snapshot.Restore", {"Name": snapshot}),
        "restore copy": ("Snapshot.Restore", {"Name": snapshot, "Target": "copy"}),
        "clone": ("Clone", {"Name": "db", "Target": "copy"}),
        "create": ("Create", {"Name": "copy"}),
        "remove": ("Remove", {"Name": "db"}),
        "snapshot": ("Snapshot", {"Name": "db"}),
    }[operation]

    shim.stop_at(pattern)
    with in_background(daemon, endpoint, **body):
        shim.wait_for_arrival()
        daemon.kill()
        if when == "before the command":  # as by a power failure: the command goes with the daemon
            os.kill(shim.pid(), signal.SIGKILL)
    shim.go_on()
    wait_until(lambda: not shim.is_running(), what="the command to end")
    again = start_daemon()

    place.wait_until_swept()
    assert set(again.names()) <= {"db", "copy"}
    if operation != "remove":
        assert content(place.volumes / "db") == (wanted or "new")
    if wanted is None:
        assert "copy" not in again.names()
    for name in again.snapshot_names():
        assert is_readonly(place.snapshots / name)
        assert content(place.snapshots / name) in CONTENTS
    assert snapshot in again.snapshot_names()
    if operation == "restore" and wanted == "old":
        assert "new" in {content(place.snapshots / name) for name in again.snapshot_names()}
    again.call("Create", Name="copy")
    if operation != "remove":
        again.call("Snapshot.Restore", Name=snapshot)
        assert content(place.volumes / "db") == "old"
    again.stop()


def test_killed_again_and_again_while_restoring(start_daemon: StartDaemon, place: Place) -> None:
    chance = random.Random(5)
    seen = set()
    for _ in range(KILLS):
        daemon = start_daemon()
        place.wait_until_swept()
        assert daemon.names() in ([], ["db"])
        snapshot = volume_with_two_contents(daemon)
        with in_background(daemon, "Snapshot.Restore", Name=snapshot):
            time.sleep(chance.uniform(0, 0.03))  # not to wait for something: to hit any moment
            daemon.kill()
        seen.add(content(place.volumes / "db"))
        for name in place.snapshot_names():
            assert content(place.snapshots / name) in CONTENTS

    final = start_daemon()
    place.wait_until_swept()
    assert final.names() == ["db"]
    assert content(place.volumes / "db") in CONTENTS
    assert final.snapshot_names() == place.snapshot_names()
    final.stop()
    assert seen <= set(CONTENTS)


def test_killed_again_and_again_while_creating(start_daemon: StartDaemon, place: Place) -> None:
    chance = random.Random(7)
    answered = set[str]()
    for round_ in range(KILLS):
        daemon = start_daemon()
        place.wait_until_swept()
        listed = set(daemon.names())
        assert answered <= listed, "what was answered is there"
        names = [f"db{round_}-{number}" for number in range(20)]
        stopped = threading.Event()

        def create(name: str, daemon: Daemon = daemon, stopped: threading.Event = stopped) -> None:
            with suppress(*CUT_OFF):
                if not stopped.is_set() and daemon.post("Create", Name=name).error == "":
                    answered.add(name)

        with ThreadPoolExecutor(4) as pool:
            for name in names:
                pool.submit(create, name)
            time.sleep(chance.uniform(0, 0.06))
            daemon.kill()
            stopped.set()

    final = start_daemon()
    place.wait_until_swept()
    names = final.names()
    assert answered <= set(names)
    for name in names:  # whole: what a volume without options is, it is from its first moment
        assert final.call("Get", Name=name)["Volume"]["Status"]["CopyOnWrite"] is False
    final.stop()


def test_leftovers_are_nobodys_volume_even_before_they_are_swept(
    daemon: Daemon, place: Place
) -> None:
    left = subvolume(place.volumes / ".buttervolume-restore-0123", {"file": "x"})
    before = place.tree()

    assert daemon.names() == []
    for endpoint in ("Get", "Path", "Mount", "Remove", "Snapshot", "Create"):
        assert daemon.refused(endpoint, Name=left.name, ID="x")
    assert daemon.refused("Clone", Name=left.name, Target="copy")

    assert place.tree() == before


def test_a_disk_that_is_full_is_told_and_nothing_is_lost(tmp_path: Path, runtime: Path) -> None:
    with loop_btrfs(tmp_path, size="128M") as mount_point:
        place = Place.make(mount_point / "place")
        daemon = Daemon(place, runtime / "run").start()
        try:
            daemon.call("Create", Name="db")
            (place.volumes / "db/file").write_text("old")
            snapshot = daemon.call("Snapshot", Name="db")["Snapshot"]
            (place.volumes / "db/file").write_text("new")
            fill(mount_point)

            answers = {
                "Create": daemon.post("Create", Name="other"),
                "Snapshot": daemon.post("Snapshot", Name="db"),
                "Clone": daemon.post("Clone", Name="db", Target="copy"),
                "Snapshot.Restore": daemon.post("Snapshot.Restore", Name=snapshot),
            }

            for endpoint, answer in answers.items():
                assert answer.status == 200, (endpoint, answer)
                assert not answer.error or "No space left on device" in answer.error, endpoint
            assert answers["Create"].error, "the disk was not full"
            assert (place.volumes / "db/file").read_text() in ("old", "new")
            if answers["Snapshot.Restore"].error:
                assert (place.volumes / "db/file").read_text() == "new"
            assert (place.snapshots / snapshot / "file").read_text() == "old"
            assert daemon.call("Get", Name="db")["Volume"]
            assert "db" in daemon.names()

            for path in mount_point.glob("filler*"):
                path.unlink()
            os.sync()
            daemon.call("Create", Name="other")
            daemon.stop()
            assert place.own_names() == []
            assert "Traceback" not in daemon.stderr()
        finally:
            daemon.close()


def fill(mount_point: Path) -> None:
    """Fill a filesystem to the last byte, its metadata too."""
    with suppress(OSError), (mount_point / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(os.urandom(1 << 20))
    number, made = 0, 1
    while made:  # what a sync gives back is used up again
        os.sync()
        made = 0
        with suppress(OSError):
            while True:
                (mount_point / f"filler{number}").symlink_to("x" * 3500)
                number, made = number + 1, made + 1
