"""Real streams: what btrfs makes arrives whole; what was changed is refused, or harmless."""

import errno
import fcntl
import os
import random
import socket
import stat
import struct
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from buttervolume import names
from buttervolume.errors import (
    ButtervolumeError,
    CopyInTheWay,
    NoSuchParent,
    OperationFailed,
    PartialCopyBusy,
    PeerGone,
    StreamRefused,
)
from buttervolume.hosts import intake
from buttervolume.hosts.intake import Intake
from buttervolume.hosts.stream import Announced, Command
from buttervolume.hosts.wire import Inlet
from buttervolume.names import parse_snapshot
from buttervolume.system import btrfs as kernel
from buttervolume.system import nested
from buttervolume.system.command import Flow
from tests.btrfs.harness import btrfs, entries, subvolume
from tests.support.command import run
from tests.support.streams import (
    Cut,
    assembled,
    attribute,
    command,
    commands_of,
    header,
    version_of,
)
from tests.support.wait import wait_until

C = Command
ONE, TWO = "db@2026-11-26T10:00:00.000000", "db@2026-11-26T11:00:00.000000"
FICLONE = 0x40049409
FALLOC_PUNCH_HOLE_KEEP_SIZE = 3


def fill(volume: Path) -> None:
    """Put everything into a volume that a file can be."""
    (volume / "empty").touch()
    (volume / "small").write_text("small")
    (volume / "big").write_bytes(os.urandom(300_000))
    (volume / "zeros").write_bytes(bytes(2_000_000))
    (volume / ("long" * 60)).mkdir()
    (volume / "d/e/f").mkdir(parents=True)
    (volume / "d/e/f/deep").write_text("deep")
    (volume / "d/odd \n\x01name").write_text("odd")
    os.link(volume / "small", volume / "d/hard")
    (volume / "soft").symlink_to("/etc/passwd")
    (volume / "away").symlink_to("../../../..")
    os.mkfifo(volume / "fifo")
    os.mknod(volume / "disk", 0o600 | stat.S_IFBLK, os.makedev(7, 200))
    os.mknod(volume / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as listener:
        where = os.getcwd()
        os.chdir(volume)  # the path of a socket must be short
        try:
            listener.bind("socket")
        finally:
            os.chdir(where)
    os.setxattr(volume / "big", "user.colour", b"blue\0")
    os.setxattr(volume, "trusted.buttervolume.keep", b"2d")
    os.chown(volume / "d", 1000, 1001)
    (volume / "big").chmod(0o4711)
    with (volume / "big").open() as source, (volume / "reflink").open("w") as target:
        fcntl.ioctl(target, FICLONE, source.fileno())
    with (volume / "sparse").open("wb") as sparse:
        sparse.truncate(10_000_000)
        sparse.seek(5_000_000)
        sparse.write(b"island")


def change(volume: Path) -> None:
    """Change a volume in every way."""
    (volume / "empty").unlink()
    (volume / "small").rename(volume / "d/e/renamed")
    (volume / "d/e/f").rename(volume / "moved")
    (volume / ("long" * 60)).rmdir()
    (volume / "soft").unlink()
    (volume / "soft").mkdir()
    with (volume / "big").open("r+b") as big:
        big.seek(100_000)
        big.write(b"changed")
        big.truncate(250_000)
    with (volume / "moved/deep").open("r+") as source, (volume / "copied").open("w") as target:
        fcntl.ioctl(target, FICLONE, source.fileno())
    os.removexattr(volume / "big", "user.colour")


def listing(directory: Path) -> str:
    """Everything there is in a directory, with its content, for comparing."""
    return run(
        "sh", "-c",
        'cd "$1" && find . -printf "%P %y %m %U %G %s %l %T@\\n" | sort && '
        "find . -type f -exec sha256sum {} + | sort && getfattr -Rhd -m - -e hex . | sort",
        "sh", str(directory),
    )  # fmt: skip


@dataclass
class Land:
    """Where streams come from and arrive, with things that nobody may touch."""

    base: Path
    origin: Path = field(init=False)
    snapshots: Path = field(init=False)

    def __post_init__(self) -> None:
        self.origin, self.snapshots = self.base / "origin", self.base / "snapshots"
        self.origin.mkdir(parents=True)
        self.snapshots.mkdir()
        subvolume(self.base / "volume", {"secret": "secret"})
        subvolume(self.snapshots / "other@2026", {"precious": "precious"})  # which can be written
        (self.base / "file").write_text("precious")

    def snapshot(self, volume: Path, name: str) -> Path:
        target = self.origin / name
        btrfs("subvolume", "snapshot", "-r", volume, target)
        kernel.sync(target)
        return target

    def stream(self, name: str, parent: str | None = None, version: int = 1) -> bytes:
        """A real stream."""
        target = self.base / "stream"
        change = ["-p", str(self.origin / parent)] if parent else []
        proto = ["--proto", "2", "--compressed-data"] if version == 2 else []
        run("btrfs", "send", "-q", *proto, *change, "-f", str(target), str(self.origin / name))
        made = target.read_bytes()
        target.unlink()
        return made

    def announced(self, name: str, parent: str | None = None) -> Announced:
        info = kernel.info(self.origin / name)
        identity = kernel.info(self.origin / parent).uuid if parent else None
        return Announced(name, info.uuid, info.changed, identity)

    def receive(self, stream: bytes, announced: Announced, sender: str = "alpha") -> None:
        out, into = os.pipe()

        def write() -> None:
            with suppress(BrokenPipeError), os.fdopen(into, "wb") as pipe:
                pipe.write(stream)

        writer = threading.Thread(target=write)
        writer.start()
        try:
            Intake(self.snapshots, stall=20).receive(
                parse_snapshot(announced.name), announced, sender, Inlet(out), Flow(), version=2
            )
        finally:
            os.close(out)
            writer.join()

    def untouched(self) -> str:
        """All that no stream may touch."""
        known = [*entries(self.base / "volume"), *entries(self.base)]
        known += [(self.base / "file").read_text(), (self.base / "volume/secret").read_text()]
        return "\n".join([*known, listing(self.snapshots / "other@2026")])


@pytest.fixture
def land(filesystem: Path) -> Land:
    return Land(filesystem / f"intake-{uuid4().hex[:8]}")


@pytest.fixture
def volume(land: Land) -> Path:
    volume = subvolume(land.base / "v")
    os.setxattr(volume, "btrfs.compression", b"zstd")
    fill(volume)
    return volume


@pytest.mark.parametrize("version", [1, 2])
def test_everything_that_a_volume_can_hold_arrives(land: Land, volume: Path, version: int) -> None:
    land.snapshot(volume, ONE)
    change(volume)
    land.snapshot(volume, TWO)

    land.receive(land.stream(ONE, version=version), land.announced(ONE))
    land.receive(land.stream(TWO, ONE, version), land.announced(TWO, ONE))

    for name in (ONE, TWO):
        assert listing(land.snapshots / name) == listing(land.origin / name)
        copy = kernel.info(land.snapshots / name)
        assert copy.readonly
        assert copy.settled
        assert copy.received_uuid == kernel.info(land.origin / name).uuid
        assert copy.changed <= copy.receive_transid
    assert kernel.info(land.snapshots / TWO).parent_uuid == kernel.info(land.snapshots / ONE).uuid
    assert entries(land.snapshots) == [ONE, TWO, "other@2026"]


def test_version_2_comes_as_compressed_as_it_was(land: Land, volume: Path) -> None:
    land.snapshot(volume, ONE)

    stream = land.stream(ONE, version=2)

    assert C.ENCODED_WRITE in {cut.command for cut in commands_of(stream)}
    assert len(stream) < 1_000_000 < len(land.stream(ONE))


def test_a_copy_that_is_there_is_not_touched(land: Land, volume: Path) -> None:
    land.snapshot(volume, ONE)
    stream, announced = land.stream(ONE), land.announced(ONE)
    land.receive(stream, announced)
    before = kernel.info(land.snapshots / ONE)

    with pytest.raises(CopyInTheWay):
        land.receive(stream, announced)

    assert kernel.info(land.snapshots / ONE) == before
    assert entries(land.snapshots) == [ONE, "other@2026"]


def while_sealed(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Let somebody act whenever a copy is writable for its seal."""
    real = kernel.Directory.set_received

    def act_as_well(directory: kernel.Directory, uuid: UUID | None, send_transid: int) -> None:
        real(directory, uuid, send_transid)
        act()

    monkeypatch.setattr(kernel.Directory, "set_received", act_as_well)


def test_a_copy_that_is_read_while_it_is_sealed_counts_as_unchanged(
    land: Land, volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    land.snapshot(volume, ONE)
    stream, announced = land.stream(ONE), land.announced(ONE)
    small, times = land.snapshots / ONE / "small", list[int]()

    def read() -> None:
        small.read_text()  # which gives it a new access time once (relatime)
        times.append(small.stat().st_atime_ns)

    while_sealed(monkeypatch, read)
    land.receive(stream, announced)

    written = (land.origin / ONE / "small").stat().st_mtime_ns
    assert times[0] > written, "the kernel keeps no access times here"
    kernel.sync(land.snapshots)
    copy = kernel.info(land.snapshots / ONE)
    assert copy.settled
    assert copy.readonly
    assert copy.changed <= copy.receive_transid
    assert len(times) == 2, "once more is enough"


def test_a_copy_that_changes_all_the_time_while_it_is_sealed_is_refused(
    land: Land, volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    land.snapshot(volume, ONE)
    stream, announced = land.stream(ONE), land.announced(ONE)
    while_sealed(monkeypatch, lambda: os.utime(land.snapshots / ONE / "small"))

    with pytest.raises(OperationFailed, match="access times"):
        land.receive(stream, announced)

    assert entries(land.snapshots) == ["other@2026"]


@pytest.mark.parametrize("kind", ["writable", "file", "directory", "link"])
def test_what_has_the_name_is_not_touched(land: Land, volume: Path, kind: str) -> None:
    land.snapshot(volume, ONE)
    path = land.snapshots / ONE
    match kind:
        case "writable":
            subvolume(path, {"precious": "precious"})
        case "file":
            path.write_text("precious")
        case "directory":
            path.mkdir()
        case _:
            path.symlink_to(land.snapshots / "other@2026")
    before = os.lstat(path)

    with pytest.raises(CopyInTheWay):
        land.receive(land.stream(ONE), land.announced(ONE))

    assert os.path.samestat(os.lstat(path), before)
    assert entries(land.snapshots) == [ONE, "other@2026"]


def test_a_copy_that_cannot_be_looked_at_for_a_moment_is_not_touched(
    land: Land, volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    land.snapshot(volume, ONE)
    stream, announced = land.stream(ONE), land.announced(ONE)
    land.receive(stream, announced)
    before, real, failures = listing(land.snapshots / ONE), os.lstat, [errno.EIO]

    def lstat(path: Path | str) -> os.stat_result:
        if failures and str(path) == str(land.snapshots / ONE):
            number = failures.pop()
            raise OSError(number, os.strerror(number))
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "lstat", lstat)
        with pytest.raises(OperationFailed, match="Input/output error"):
            land.receive(stream, announced)

    assert not failures
    assert listing(land.snapshots / ONE) == before
    assert entries(land.snapshots) == [ONE, "other@2026"]


def test_a_copy_that_cannot_be_looked_at_keeps_its_note(
    land: Land, volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it, what was never brought to the disk would pass for whole later."""
    land.snapshot(volume, ONE)
    stream, announced = land.stream(ONE), land.announced(ONE)
    real = os.lstat

    def lstat(path: Path | str) -> os.stat_result:
        found = real(path)
        if str(path) == str(land.snapshots / ONE):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return found

    with monkeypatch.context() as patch:
        patch.setattr(os, "lstat", lstat)
        with pytest.raises(OperationFailed, match="Input/output error"):
            land.receive(stream, announced)

    assert [note.copy for note in intake.notes_in(land.snapshots)] == [ONE]
    land.receive(stream, announced)
    assert listing(land.snapshots / ONE) == listing(land.origin / ONE)
    assert intake.notes_in(land.snapshots) == []


@pytest.mark.parametrize("look", ["is_subvolume", "info"])
def test_another_snapshot_that_cannot_be_read_stops_nothing(
    land: Land, volume: Path, look: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = subvolume(land.snapshots / "db@0")  # it is looked at first
    land.snapshot(volume, ONE)
    land.snapshot(volume, TWO)
    land.receive(land.stream(ONE), land.announced(ONE))
    (land.snapshots / names.receiving_note("db@1")).mkdir()  # nor does what is no note
    real = getattr(kernel, look)

    def fail(path: Path) -> object:
        if path == bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(kernel, look, fail)
        land.receive(land.stream(TWO, ONE), land.announced(TWO, ONE))

    assert listing(land.snapshots / TWO) == listing(land.origin / TWO)
    assert [note.copy for note in intake.notes_in(land.snapshots)] == ["db@1"]


def test_what_a_sender_left_is_removed_by_its_next_try_and_by_nobody_else(
    land: Land, volume: Path
) -> None:
    land.snapshot(volume, ONE)
    stream, announced = land.stream(ONE), land.announced(ONE)
    note = land.snapshots / names.receiving_note(ONE)
    subvolume(land.snapshots / ONE, {"half": "half"})
    note.write_text(f"alpha\n{ONE}\n")

    with pytest.raises(PartialCopyBusy):
        land.receive(stream, announced, sender="gamma")
    with note.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(PartialCopyBusy):
            land.receive(stream, announced)
        intake.sweep(land.snapshots, "alpha", lambda _: True)
        assert (land.snapshots / ONE / "half").exists()
    intake.sweep(land.snapshots, "gamma", lambda _: True)
    intake.sweep(land.snapshots, "alpha", lambda name: name != "db")
    assert (land.snapshots / ONE / "half").exists()
    land.receive(stream, announced)

    assert listing(land.snapshots / ONE) == listing(land.origin / ONE)
    assert not note.exists()


def test_who_fails_late_removes_no_copy_that_came_after_its_own(land: Land, volume: Path) -> None:
    """Given a transfer whose sender is cut off, what it has brought removed by hand, and the same
    snapshot brought anew, when the first one is given up, then the copy stays."""
    land.snapshot(volume, ONE)
    stream, announced = land.stream(ONE), land.announced(ONE)
    out, into = os.pipe()
    os.write(into, stream[:40_000])
    copy, note = land.snapshots / ONE, land.snapshots / names.receiving_note(ONE)
    place = Intake(land.snapshots, stall=300)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(
            place.receive, parse_snapshot(ONE), announced, "alpha", Inlet(out), Flow(), version=2
        )
        wait_until(lambda: (copy / "small").exists() or first.done(), 60, "a part of it")
        nested.delete_tree(copy)
        note.unlink()
        land.receive(stream, announced)
        os.close(into)
        with pytest.raises(PeerGone):
            first.result(60)
    os.close(out)

    assert listing(copy) == listing(land.origin / ONE)
    assert not note.exists()


def test_what_gets_the_name_while_a_note_is_made_is_not_touched(
    land: Land, volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    land.snapshot(volume, ONE)
    stream, announced = land.stream(ONE), land.announced(ONE)
    real = intake._lock

    def lock_late(*arguments: Any) -> None:
        btrfs("subvolume", "snapshot", "-r", land.base / "volume", land.snapshots / ONE)
        real(*arguments)

    monkeypatch.setattr(intake, "_lock", lock_late)
    with pytest.raises(CopyInTheWay):
        land.receive(stream, announced)

    assert entries(land.snapshots / ONE) == ["secret"]
    assert entries(land.snapshots) == [ONE, "other@2026"]


def test_what_becomes_whole_while_its_note_is_read_is_not_touched(
    land: Land, volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a transfer that ends between the look at its note and what follows from that."""
    land.snapshot(volume, ONE)
    stream, announced = land.stream(ONE), land.announced(ONE)
    land.receive(stream, announced)
    note = land.snapshots / names.receiving_note(ONE)
    note.write_text(f"alpha\n{ONE}\n")
    real = intake.read_note

    def read_late(path: Path) -> intake.Note | None:
        found = real(path)
        path.unlink(missing_ok=True)
        return found

    monkeypatch.setattr(intake, "read_note", read_late)
    with pytest.raises(PartialCopyBusy):
        land.receive(stream, announced)

    assert listing(land.snapshots / ONE) == listing(land.origin / ONE)
    assert not note.exists()


def test_a_sweep_removes_what_is_left_of_the_sender(land: Land) -> None:
    subvolume(land.snapshots / ONE, {"half": "half"})
    (land.snapshots / names.receiving_note(ONE)).write_text(f"alpha\n{ONE}\n")
    (land.snapshots / names.receiving_note(TWO)).write_text(f"alpha\n{TWO}\n")

    intake.sweep(land.snapshots, "alpha", lambda _: True)

    assert entries(land.snapshots) == ["other@2026"]


def test_a_note_that_names_another_copy_than_its_own_removes_nothing(land: Land) -> None:
    (land.snapshots / names.receiving_note(ONE)).write_text("alpha\nother@2026\n")

    intake.sweep(land.snapshots, "alpha", lambda _: True)

    assert (land.snapshots / "other@2026/precious").exists()


def test_discard_removes_what_was_never_whole(land: Land) -> None:
    name = parse_snapshot(ONE)
    subvolume(land.snapshots / ONE)
    intake.discard(land.snapshots, name, "alpha", without_note=False)
    assert (land.snapshots / ONE).exists()
    intake.discard(land.snapshots, name, "alpha", without_note=True)
    assert not (land.snapshots / ONE).exists()


def test_discard_spares_what_was_whole_even_if_it_was_made_writable(
    land: Land, volume: Path
) -> None:
    land.snapshot(volume, ONE)
    land.receive(land.stream(ONE), land.announced(ONE))
    name, copy = parse_snapshot(ONE), land.snapshots / ONE

    intake.discard(land.snapshots, name, "alpha", without_note=True)
    assert copy.exists()
    btrfs("property", "set", "-f", "-t", "subvol", copy, "ro", "false")
    intake.discard(land.snapshots, name, "alpha", without_note=True)
    assert copy.exists()


@pytest.mark.parametrize("place", ["volume", "elsewhere", "other volume's snapshot", "twice"])
def test_nothing_else_passes_for_the_parent(land: Land, volume: Path, place: str) -> None:
    """Whoever owns a subvolume can give it any Received UUID."""
    land.snapshot(volume, ONE)
    change(volume)
    land.snapshot(volume, TWO)
    identity = kernel.info(land.origin / ONE).uuid
    if place == "twice":
        land.receive(land.stream(ONE), land.announced(ONE))
    rival = {
        "volume": land.base / "volume",
        "elsewhere": subvolume(land.base / "elsewhere"),
        "other volume's snapshot": land.snapshots / "other@2026",
        "twice": land.base / "volume",
    }[place]
    with kernel.opened(rival) as directory:
        directory.set_received(identity, 7)
    before = land.untouched()

    with pytest.raises(NoSuchParent):
        land.receive(land.stream(TWO, ONE), land.announced(TWO, ONE))

    assert land.untouched() == before
    assert TWO not in entries(land.snapshots)


def test_a_stream_that_is_cut_anywhere_leaves_nothing(land: Land, volume: Path) -> None:
    land.snapshot(volume, ONE)
    stream, announced = land.stream(ONE), land.announced(ONE)
    chance = random.Random(1)

    for _ in range(8):
        with pytest.raises(PeerGone):
            land.receive(stream[: chance.randrange(len(stream))], announced)
        assert entries(land.snapshots) == ["other@2026"]


# Attacks

OURS = UUID(int=7)
ATTACK = Announced(ONE, OURS, 7)
BEGIN = command(C.SUBVOL, path=ONE.encode(), uuid=OURS, ctransid=7)
END = command(C.END)


def link(path: bytes, target: bytes) -> bytes:
    return command(C.SYMLINK, path=path, ino=300, path_link=target)


def write(path: bytes, data: bytes = b"pwned") -> bytes:
    return command(C.WRITE, path=path, file_offset=0, data=data)


def test_the_attacks_below_work_where_nothing_is_guarded(land: Land) -> None:
    """Else they would show nothing."""
    stream = header(2) + BEGIN + link(b"l", b"../other@2026/precious") + write(b"l") + END
    (land.base / "stream").write_bytes(stream)

    run("btrfs", "receive", "-f", str(land.base / "stream"), str(land.snapshots))

    assert (land.snapshots / "other@2026/precious").read_text().startswith("pwned")


OVER_LINKS = {
    "write to a link": link(b"l", b"../other@2026/precious") + write(b"l"),
    "write over a link": link(b"l", b"../other@2026") + write(b"l/precious"),
    "absolute link": link(b"l", b"/other@2026") + write(b"l/precious"),
    "absolute link outside": link(b"l", b"/etc") + write(b"l/hostname"),
    "make over a link": link(b"l", b"../other@2026") + command(C.MKFILE, path=b"l/new", ino=1),
    "unlink over a link": link(b"l", b"../other@2026") + command(C.UNLINK, path=b"l/precious"),
    "rename over a link": link(b"l", b"../other@2026")
    + command(C.RENAME, path=b"l/precious", path_to=b"mine"),
    "hard link over a link": link(b"l", b"../other@2026")
    + command(C.LINK, path=b"mine", path_link=b"l/precious"),
    "truncate a link": link(b"l", b"../other@2026/precious")
    + command(C.TRUNCATE, path=b"l", size=0),
    "chmod a link": link(b"l", b"../other@2026/precious")
    + command(C.CHMOD, path=b"l", mode=0o4777),
    "xattr over a link": link(b"l", b"../other@2026")
    + command(C.SET_XATTR, path=b"l/precious", xattr_name=b"user.a", xattr_data=b"b"),
    "chain of links": link(b"a", b"..") + link(b"b", b"a/other@2026") + write(b"b/precious"),
    "renamed link": link(b"o257-1-0", b"../other@2026")
    + command(C.RENAME, path=b"o257-1-0", path_to=b"d")
    + write(b"d/precious"),
    "clone over a link": link(b"l", b"../other@2026/precious")
    + command(C.MKFILE, path=b"f", ino=301)
    + command(
        C.CLONE,
        file_offset=0,
        clone_len=4096,
        path=b"f",
        clone_uuid=OURS,
        clone_ctransid=7,
        clone_path=b"l",
        clone_offset=0,
    ),
    "disk": command(
        C.MKNOD, path=b"disk", ino=302, rdev=os.makedev(7, 0), mode=0o600 | stat.S_IFBLK
    )
    + write(b"disk"),
    "memory": command(
        C.MKNOD, path=b"zero", ino=302, rdev=os.makedev(1, 5), mode=0o600 | stat.S_IFCHR
    )
    + write(b"zero"),
}


@pytest.mark.parametrize("attack", OVER_LINKS.values(), ids=OVER_LINKS)
def test_no_link_of_a_stream_is_followed_and_no_device_opened(land: Land, attack: bytes) -> None:
    before = land.untouched()

    with pytest.raises(OperationFailed):
        land.receive(header(2) + BEGIN + attack + END, ATTACK)

    assert land.untouched() == before
    assert entries(land.snapshots) == ["other@2026"]


def test_a_link_in_the_parent_is_not_followed_either(land: Land) -> None:
    volume = subvolume(land.base / "v")
    (volume / "l").symlink_to("../other@2026")
    land.snapshot(volume, ONE)
    land.receive(land.stream(ONE), land.announced(ONE))
    parent = land.announced(ONE).uuid
    announced = Announced(TWO, OURS, 7, parent)
    begin = command(
        C.SNAPSHOT,
        path=TWO.encode(),
        uuid=OURS,
        ctransid=7,
        clone_uuid=parent,
        clone_ctransid=1,
    )
    before = land.untouched()

    with pytest.raises(OperationFailed):
        land.receive(header(2) + begin + write(b"l/precious") + END, announced)

    assert land.untouched() == before
    assert entries(land.snapshots) == [ONE, "other@2026"]


def test_a_stream_that_never_ends_a_fifo_is_given_up(land: Land) -> None:
    """Opening a fifo for reading waits for a writer, who never comes."""
    attack = command(C.MKFIFO, path=b"p", ino=300, rdev=0, mode=0o644 | stat.S_IFIFO)
    attack += command(C.MKFILE, path=b"f", ino=301)
    attack += command(
        C.CLONE, file_offset=0, clone_len=4096, path=b"f", clone_uuid=OURS, clone_ctransid=7,
        clone_path=b"p", clone_offset=0,
    )  # fmt: skip
    out, into = os.pipe()
    os.write(into, header(2) + BEGIN + attack + END)

    with pytest.raises(ButtervolumeError):
        Intake(land.snapshots, stall=1).receive(
            parse_snapshot(ONE), ATTACK, "alpha", Inlet(out), Flow(), version=2
        )

    os.close(into)
    os.close(out)
    assert entries(land.snapshots) == ["other@2026"]


# Chance

MUTATIONS = 60


def mutated(stream: bytes, other: bytes, chance: random.Random) -> bytes:
    """A stream with one or several things changed in it; often with right CRCs, for who lies knows
    how to compute them."""
    cuts, others = list(commands_of(stream)), list(commands_of(other))
    for _ in range(chance.choice([1, 1, 1, 2, 5])):
        place = chance.randrange(len(cuts))
        cut = cuts[place]
        body = bytearray(cut.body)
        match chance.randrange(9):
            case 0:
                del cuts[place]
            case 1:
                cuts.insert(place, cut)
            case 2:
                swap = chance.randrange(len(cuts))
                cuts[place], cuts[swap] = cuts[swap], cut
            case 3:
                cuts[place] = Cut(chance.randrange(28), cut.body)
            case 4 if body:
                body[chance.randrange(len(body))] ^= 1 << chance.randrange(8)
                cuts[place] = Cut(cut.command, bytes(body))
            case 5:
                cuts.insert(place, chance.choice(others))
            case 6:
                cuts[place] = Cut(cut.command, cut.body[: chance.randrange(len(body) + 1)])
            case 7:
                odd = chance.choice(
                    [b"../other@2026/precious", b"/file", b"away/x", b"soft", b"a\0"]
                )
                cuts[place] = Cut(cut.command, attribute(15, odd) + cut.body)
            case _:
                cuts.insert(place, Cut(C.SYMLINK, link(b"d", b"../other@2026")[10:]))
        if not cuts:
            break
    version = version_of(stream) if chance.random() < 0.9 else chance.randrange(4)
    whole = bytearray(assembled(version, cuts))
    if chance.random() < 0.2:
        whole[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
    if chance.random() < 0.2:
        whole += chance.choice([bytes(10), stream, chance.randbytes(50)])
    return bytes(whole)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("parent", [None, ONE])
def test_a_real_stream_that_was_changed_is_refused_or_harmless(
    land: Land, volume: Path, version: int, parent: str | None
) -> None:
    land.snapshot(volume, ONE)
    change(volume)
    land.snapshot(volume, TWO)
    stream, announced = land.stream(TWO, parent, version), land.announced(TWO, parent)
    other = land.stream(ONE, version=version)
    if parent:
        land.receive(other, land.announced(ONE))
    before, there = land.untouched(), entries(land.snapshots)
    chance = random.Random(version * 2 + bool(parent))
    refused = passed = 0

    for number in range(MUTATIONS):
        attempt = mutated(stream, other, chance)
        try:
            land.receive(attempt, announced)
            passed += 1
        except (StreamRefused, PeerGone, OperationFailed):
            refused += 1
            assert entries(land.snapshots) == there, number
        else:
            copy = kernel.info(land.snapshots / TWO)
            assert (copy.readonly, copy.received_uuid) == (True, announced.uuid), number
            assert entries(land.snapshots) == sorted([*there, TWO]), number
            btrfs("subvolume", "delete", land.snapshots / TWO)
        assert land.untouched() == before, number

    assert refused > MUTATIONS / 2
    assert passed


def test_a_stream_that_passes_says_how_much_of_the_disk_it_may_take(
    land: Land, volume: Path
) -> None:
    land.snapshot(volume, ONE)
    told: list[int] = []
    out, into = os.pipe()
    stream = land.stream(ONE)
    writer = threading.Thread(target=lambda: os.write(into, stream))
    writer.start()

    Intake(land.snapshots).receive(
        parse_snapshot(ONE),
        land.announced(ONE),
        "alpha",
        Inlet(out),
        Flow(),
        version=2,
        before=told.append,
    )

    writer.join()
    os.close(into)
    os.close(out)
    assert told == sorted(told)
    assert told[-1] > len(stream) > struct.calcsize("<13sI")
