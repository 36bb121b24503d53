"""A disk that has lost the root of one subvolume: who asks of the others notices nothing."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.btrfs.harness import Daemon, Place, btrfs
from tests.btrfs.test_peer import Talk
from tests.support.filesystem import failing_btrfs, make_image, release_loop_device
from tests.support.wait import wait_until

NODE = 16384
"""Bytes of a metadata block, mkfs.btrfs's default."""


def run(*argv: object) -> str:
    return subprocess.run(
        [str(word) for word in argv], check=True, capture_output=True, text=True
    ).stdout


def number_of(path: Path) -> str:
    return btrfs("inspect-internal", "rootid", path).strip()


def lose_root(image: Path, tree: str) -> None:
    """Overwrite the root node of a subvolume on a disk that is not mounted."""
    roots = btrfs("inspect-internal", "dump-tree", "-t", "root", image)
    chunks = btrfs("inspect-internal", "dump-tree", "-t", "chunk", image)
    found = re.search(rf"key \({tree} ROOT_ITEM .*?bytenr (\d+)", roots, re.DOTALL)
    assert found
    block = int(found[1])
    pattern = r"CHUNK_ITEM (\d+)\).*?length (\d+).*?devid \d+ offset (\d+)"
    for match in re.finditer(pattern, chunks, re.DOTALL):
        start, length, offset = map(int, match.groups())
        if start <= block < start + length:
            with image.open("r+b") as file:
                file.seek(offset + block - start)
                file.write(bytes(NODE))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """An image whose metadata is there once only, and where it is mounted."""
    image, mount_point = make_image(tmp_path / "disk", "btrfs", "256M"), tmp_path / "mnt"
    run("mkfs.btrfs", "-q", "-f", "-m", "single", "-d", "single", image)
    mount_point.mkdir()
    run("mount", "-o", "loop", image, mount_point)
    yield image, mount_point
    run("umount", mount_point)


@contextmanager
def running(place: Place, directory: Path) -> Iterator[Daemon]:
    daemon = Daemon(place, directory).start()
    try:
        yield daemon
        daemon.stop()
        assert "Traceback" not in daemon.stderr()
    finally:
        daemon.close()


def asked_to_send(place: Place, name: str) -> tuple[str, str]:
    """What another host is told that asks for a snapshot: the kind of error, and the error."""
    talk = Talk(place)
    talk.say(do="send", name=name)
    talk.hang_up()
    answer = talk.answers()[1]
    return answer["code"], answer["error"]


def looked_at(place: Place, volume: str) -> list[str]:
    """The snapshots of a volume that another host is told of."""
    talk = Talk(place)
    talk.say(do="look", volume=volume)
    talk.hang_up()
    return [each["name"] for each in talk.answers()[1]["snapshots"]]


def test_what_has_lost_its_root_is_named_and_stops_nobody_else(
    disk: tuple[Path, Path], runtime: Path
) -> None:
    image, mount_point = disk
    place = Place.make(mount_point / "place")
    with running(place, runtime / "run") as daemon:
        for name in ("bad", "half", "good"):
            daemon.call("Create", Name=name)
            (place.volumes / name / "file").write_text(name)
        lost = [daemon.call("Snapshot", Name=name)["Snapshot"] for name in ("bad", "half")]
        sound = [daemon.call("Snapshot", Name=name)["Snapshot"] for name in ("half", "good")]
        lost.append(daemon.call("Snapshot", Name="half")["Snapshot"])
        for name in ("gone", "kept", "twice", "twice"):
            daemon.call("Create", Name=name)
            daemon.call("Remove", Name=name)
        removed = {each["Name"]: each["Date"] for each in daemon.call("Volume.Removed")["Removed"]}
    gone, last = f"gone@{removed['gone']}", f"twice@{removed['twice']}"
    kept = place.volumes / ".buttervolume-removed"
    lost_paths = [place.volumes / "bad", kept / gone, kept / last]
    doomed = [number_of(path) for path in (*lost_paths, *(place.snapshots / n for n in lost))]
    run("umount", mount_point)
    release_loop_device(image)  # a mount anywhere else would know the roots still
    for tree in doomed:
        lose_root(image, tree)
    run("mount", "-o", "loop", image, mount_point)

    with running(place, runtime / "run") as daemon:
        # all others are listed, and the bad ones named
        answer = daemon.call("List")
        assert [volume["Name"] for volume in answer["Volumes"]] == ["good", "half"]
        assert "bad" in answer["Warning"]
        answer = daemon.call("Snapshot.List")
        assert answer["Snapshots"] == sorted(sound)
        assert all(name in answer["Warning"] for name in lost)
        assert "Warning" not in daemon.call("Snapshot.List", Name="good")
        assert "cannot be read: bad" in daemon.call("Volume.List")["Warning"]
        assert "Warning" not in daemon.call("Volume.List", Name="good")

        # what concerns others works
        for name in ("good", "half"):
            assert daemon.call("Get", Name=name)["Volume"]
            answer = daemon.call("Snapshot.Restore", Name=name)
            assert (place.volumes / name / "file").read_text() == name
            assert (lost[-1] in answer.get("Warning", "")) == (name == "half")
            daemon.call("Snapshot", Name=name)
        purged = daemon.call("Snapshots.Purge", Name="half", Pattern="1m:1m")["Purged"]
        assert not set(lost) & set(purged)
        daemon.call("Clone", Name="good", Target="copy")
        answer = daemon.call("Usage")
        assert [each["Name"] for each in answer["Usage"]] == ["copy", "good", "half"]
        assert "bad: it cannot be read" in answer["Warning"]
        command = daemon.cli("usage")
        listed = sorted(line.split()[0] for line in command.stdout.splitlines()[1:])
        assert (command.returncode, listed) == (0, ["copy", "good", "half"])
        assert "bad: it cannot be read" in command.stderr
        answer = daemon.call("Volume.Undelete", Name="twice", Target="again")
        assert (answer["Volume"], answer["Warning"]) == ("again", f"cannot be read: {last}")
        answer = daemon.call("Volume.Removed")
        assert [each["Name"] for each in answer["Removed"]] == ["kept"]
        assert gone in answer["Warning"]
        answer = daemon.call("Volume.Removed.Purge")
        assert answer["Purged"] == [f"kept@{removed['kept']}"]
        assert answer["Warning"] == f"cannot be read: {gone}, {last}"
        look = looked_at(place, "half")
        assert set(look) == set(daemon.snapshot_names("half")), "another host is told of them"

        # and what is asked of the bad ones is answered in words, or not at all
        assert daemon.is_closed("Get", b'{"Name": "bad"}'), "Docker would forget it"
        for endpoint in ("Mount", "Path", "Snapshot", "Create", "Remove"):
            refusal = daemon.refused(endpoint, Name="bad", ID="x")
            assert "Input/output error" in refusal
            assert "no such volume" not in refusal
        for name in lost:
            assert "Input/output error" in daemon.refused("Snapshot.Restore", Name=name)
            code, said = asked_to_send(place, name)
            assert code == "Unreadable"
            assert "Input/output error" in said
        assert "Input/output error" in daemon.refused("Usage", Name="bad")
        for name in ("gone", gone, gone[:-3]):
            assert "Input/output error" in daemon.refused("Volume.Undelete", Name=name)
            assert "Input/output error" in daemon.refused("Volume.Removed.Purge", Name=name)
        for _ in range(3):
            daemon.call("List")
            daemon.call("Snapshot.List")
            daemon.call("Volume.Removed")
    for name in ("bad", gone):
        told = [line for line in daemon.stderr().split("\n") if f"WARNING {name}: it can" in line]
        assert len(told) == 1, "once, however often it is asked"


def test_a_disk_that_takes_nothing_more_is_said_by_whoever_is_asked(
    tmp_path: Path, runtime: Path
) -> None:
    """BTRFS makes itself read-only then, and may not even list a directory any more."""
    with failing_btrfs(tmp_path) as (mount_point, fail):
        place = Place.make(mount_point / "place")
        with running(place, runtime / "run") as daemon:
            for name in ("db", "gone"):
                daemon.call("Create", Name=name)
            snapshot = daemon.call("Snapshot", Name="db")["Snapshot"]
            daemon.call("Remove", Name="gone")
            fail()
            wait_until(lambda: daemon.post("Create", Name="new").error, 60, "the disk to fail")

            for endpoint, more in (
                ("Create", {}),
                ("Clone", {"Target": "copy"}),
                ("Snapshot", {}),
                ("Snapshot.Restore", {"Name": snapshot}),
                ("Remove", {}),
                ("Volume.Undelete", {"Name": "gone"}),
            ):
                said = daemon.refused(
                    endpoint, **{"Name": "db2" if endpoint == "Create" else "db", **more}
                )
                assert "no such volume" not in said
                assert "Errno" not in said
            for endpoint in ("List", "Volume.List", "Volume.Removed", "Snapshot.List"):
                answer = daemon.request(f"VolumeDriver.{endpoint}", b"{}")
                assert answer.status == 200, answer
                assert answer.error or list(answer.json.values())[1], "nothing is not what is there"
            assert daemon.call("Get", Name="db")["Volume"]["Name"] == "db"
            problems = {problem["Kind"] for problem in daemon.call("Status")["Problems"]}
            assert "read-only" in problems
            assert daemon.cli("status").returncode == 1
