"""The checker of send streams, with streams made by hand; real ones are in tests/btrfs."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import pytest

from buttervolume.errors import Cancelled, PeerGone, PeerSilent, StreamRefused
from buttervolume.hosts.stream import Announced, Checker, Command
from buttervolume.hosts.wire import Inlet, say
from buttervolume.system.command import Flow
from tests.support.streams import attribute, command, header, packed

OURS, PARENT, OTHER = (UUID(int=number) for number in (1, 2, 3))
NAME = "db@2026-11-26T10:00:00.000000"
FULL = Announced(NAME, OURS, 7)
CHANGES = Announced(NAME, OURS, 7, PARENT)
C = Command
BEGIN = command(C.SUBVOL, path=NAME.encode(), uuid=OURS, ctransid=7)
SNAPSHOT = command(
    C.SNAPSHOT,
    path=NAME.encode(),
    uuid=OURS,
    ctransid=7,
    clone_uuid=PARENT,
    clone_ctransid=5,
)
MKFILE = command(C.MKFILE, path=b"f", ino=257)
END = command(C.END)
TIMES: dict[str, bytes | int | UUID] = {"atime": bytes(12), "mtime": bytes(12), "ctime": bytes(12)}


def check(stream: bytes, announced: Announced = FULL, version: int = 2) -> Checker:
    """Check a stream that is there as a whole."""
    checker = Checker(announced, version)
    checker.check(memoryview(stream))
    return checker


def full(*commands: bytes, version: int = 1) -> bytes:
    return b"".join((header(version), BEGIN, *commands, END))


def refusal(stream: bytes, announced: Announced = FULL, version: int = 2) -> str:
    with pytest.raises(StreamRefused) as caught:
        check(stream, announced, version)
    return caught.value.reason


def clone(**changed: bytes | int | UUID) -> bytes:
    attributes: dict[str, bytes | int | UUID] = {
        "file_offset": 0,
        "clone_len": 4096,
        "path": b"f",
        "clone_uuid": OURS,
        "clone_ctransid": 7,
        "clone_path": b"f",
        "clone_offset": 0,
    }
    return command(C.CLONE, **(attributes | changed))


GOOD = {
    "nothing": b"",
    "root": command(C.CHOWN, path=b"", uid=0, gid=0) + command(C.CHMOD, path=b"", mode=0o755),
    "times": command(C.UTIMES, path=b"", **TIMES),
    "link": command(C.SYMLINK, path=b"l", ino=257, path_link=b"/etc/../../passwd"),
    "own clone": MKFILE + clone(),
    "dots in names": command(C.MKDIR, path=b"..a/.b/c..", ino=257),
    "line end in a name": command(C.MKFILE, path=b"..\n/a\n", ino=257),
    "not UTF-8": command(C.MKFILE, path=b"\xff\xfe", ino=257),
    "longest name": command(C.MKFILE, path=b"a" * 255 + b"/" + b"b" * 255, ino=257),
    "hard link": MKFILE + command(C.LINK, path=b"g", path_link=b"f"),
    "rename": MKFILE + command(C.RENAME, path=b"f", path_to=b"d/g"),
    "xattr": command(C.SET_XATTR, path=b"", xattr_name=b"user.a", xattr_data=b"\0/.."),
    "write": MKFILE + packed(C.WRITE, attribute(15, b"f") + attribute(18, 0) + attribute(19, b"x")),
}


@pytest.mark.parametrize("commands", GOOD.values(), ids=GOOD)
@pytest.mark.parametrize("version", [1, 2])
def test_what_btrfs_send_makes_passes(commands: bytes, version: int) -> None:
    if version == 2 and commands == GOOD["write"]:
        commands = MKFILE + command(C.WRITE, path=b"f", file_offset=0, data=b"x" * 200_000)

    stream = full(commands, version=version)
    checker = check(stream)

    assert checker.finished
    assert checker.position + len(header()) == len(stream)


PATHS = (
    b"/etc/passwd", b"..", b".", b"a/..", b"../a", b"a/../b", b"a//b", b"a/", b"/", b"./a", b"a\0",
    b"a\0/../b", b"a" * 256, b"a/" * 2100 + b"a",
)  # fmt: skip
ADDRESSED: dict[str, Callable[[bytes], bytes]] = {
    "mkfile": lambda path: command(C.MKFILE, path=path, ino=1),
    "mkdir": lambda path: command(C.MKDIR, path=path, ino=1),
    "mknod": lambda path: command(C.MKNOD, path=path, ino=1, rdev=1, mode=0o60644),
    "mkfifo": lambda path: command(C.MKFIFO, path=path, ino=1, rdev=0, mode=0o10644),
    "mksock": lambda path: command(C.MKSOCK, path=path, ino=1, rdev=0, mode=0o140644),
    "symlink": lambda path: command(C.SYMLINK, path=path, ino=1, path_link=b"x"),
    "rename": lambda path: command(C.RENAME, path=path, path_to=b"x"),
    "rename to": lambda path: command(C.RENAME, path=b"x", path_to=path),
    "link": lambda path: command(C.LINK, path=path, path_link=b"x"),
    "link of": lambda path: command(C.LINK, path=b"x", path_link=path),
    "unlink": lambda path: command(C.UNLINK, path=path),
    "rmdir": lambda path: command(C.RMDIR, path=path),
    "set xattr": lambda path: command(C.SET_XATTR, path=path, xattr_name=b"user.a", xattr_data=b""),
    "remove xattr": lambda path: command(C.REMOVE_XATTR, path=path, xattr_name=b"user.a"),
    "write": lambda path: command(C.WRITE, path=path, file_offset=0, data=b"x"),
    "clone": lambda path: clone(path=path),
    "clone from": lambda path: clone(clone_path=path),
    "truncate": lambda path: command(C.TRUNCATE, path=path, size=0),
    "chmod": lambda path: command(C.CHMOD, path=path, mode=0o777),
    "chown": lambda path: command(C.CHOWN, path=path, uid=0, gid=0),
    "utimes": lambda path: command(C.UTIMES, path=path, **TIMES),
    "fallocate": lambda path: command(
        C.FALLOCATE, path=path, fallocate_mode=bytes(4), file_offset=0, size=1
    ),
    "fileattr": lambda path: command(C.FILEATTR, path=path, fileattr=0),
    "encoded write": lambda path: command(
        C.ENCODED_WRITE,
        path=path,
        file_offset=0,
        unencoded_file_len=1,
        unencoded_len=1,
        unencoded_offset=0,
        compression=bytes(4),
        data=b"x",
    ),
}


@pytest.mark.parametrize("addressed", ADDRESSED.values(), ids=ADDRESSED)
def test_no_path_leads_out_of_the_subvolume(addressed: Callable[[bytes], bytes]) -> None:
    assert check(full(addressed(b"a/b"), version=2)).finished
    for path in PATHS:
        assert "no path within" in refusal(full(addressed(path), version=2)), path


def test_every_command_but_one_without_data_has_been_addressed_above() -> None:
    addressed = {build(b"a")[4] for build in ADDRESSED.values()}

    assert addressed == set(Command) - {C.SUBVOL, C.SNAPSHOT, C.END, C.UPDATE_EXTENT}


BAD = {
    "no magic": (b"btrfs-Stream\0\1\0\0\0" + BEGIN, "no stream"),
    "version 0": (header(0) + BEGIN, "version 0"),
    "version 3": (header(3) + BEGIN, "version 3"),
    "nothing made": (header() + END, "begins with"),
    "a file first": (header() + MKFILE, "begins with"),
    "two subvolumes": (full(BEGIN), "second subvolume"),
    "a snapshot behind": (full(SNAPSHOT), "second subvolume"),
    "unknown command": (full(packed(26)), "unknown"),
    "command 0": (full(packed(0)), "unknown"),
    "of version 2 in 1": (full(command(C.FILEATTR, path=b"f", fileattr=0)), "unknown"),
    "no data": (full(command(C.UPDATE_EXTENT, path=b"f", file_offset=0, size=9)), "not allowed"),
    "unknown attribute": (full(packed(C.MKFILE, attribute(36, b""))), "does not belong"),
    "attribute of another": (full(command(C.UNLINK, path=b"f", mode=0)), "does not belong"),
    "attribute twice": (full(packed(C.UNLINK, attribute(15, b"f") * 2)), "does not belong"),
    "attribute lacking": (full(command(C.MKFILE, path=b"f")), "lacks"),
    "attribute cut": (full(packed(C.UNLINK, attribute(15, b"file")[:-1])), "cut off"),
    "attribute's length cut": (full(packed(C.UNLINK, b"\x0f\0\1")), "cut off"),
    "attribute's type cut": (full(packed(C.UNLINK, b"\x0f")), "cut off"),
    "number too short": (full(command(C.TRUNCATE, path=b"f", size=bytes(7))), "7 bytes"),
    "number too long": (full(command(C.TRUNCATE, path=b"f", size=bytes(9))), "9 bytes"),
    "link's target with NUL": (
        full(command(C.SYMLINK, path=b"l", ino=1, path_link=b"a\0b")),
        "NUL",
    ),
    "attribute's name too long": (
        full(command(C.REMOVE_XATTR, path=b"", xattr_name=b"a" * 256)),
        "too long",
    ),
    "clone of a stranger": (full(clone(clone_uuid=OTHER)), "not announced"),
    "clone of a parent that is none": (full(clone(clone_uuid=PARENT)), "not announced"),
    "endless command": (header() + BEGIN + b"\xff\xff\xff\x7f" + MKFILE[4:], "command of"),
    "CRC": (header() + BEGIN[:6] + b"\0\0\0\0" + BEGIN[10:], "CRC"),
}  # fmt: skip


@pytest.mark.parametrize(("stream", "reason"), BAD.values(), ids=BAD)
def test_what_is_not_well_formed_is_refused(stream: bytes, reason: str) -> None:
    assert reason in refusal(stream)


def test_only_what_was_announced_is_made() -> None:
    for announced in (
        Announced("db@2026-11-26T10:00:00.000001", OURS, 7),
        Announced(NAME, OTHER, 7),
        Announced(NAME, OURS, 8),
        CHANGES,
    ):
        refusal(full(), announced)


def test_changes_are_those_of_the_announced_parent_and_take_data_from_it_alone() -> None:
    stream = header() + SNAPSHOT + clone(clone_uuid=PARENT) + clone() + END

    assert check(stream, CHANGES).finished
    assert "begins with" in refusal(stream, FULL)
    assert "another snapshot" in refusal(stream, Announced(NAME, OURS, 7, OTHER))
    assert "not announced" in refusal(header() + SNAPSHOT + clone(clone_uuid=OTHER), CHANGES)


def test_a_receiver_of_version_1_is_not_given_version_2() -> None:
    assert check(full(), version=1).finished
    assert "version 2" in refusal(full(version=2), version=1)


def test_each_bit_that_flips_is_noticed() -> None:
    stream = full(MKFILE, command(C.WRITE, path=b"f", file_offset=0, data=b"data"), version=2)
    for place in range(len(stream)):
        for bit in range(8):
            flipped = bytearray(stream)
            flipped[place] ^= 1 << bit
            try:
                finished = check(bytes(flipped)).finished
            except StreamRefused:
                continue
            assert not finished, f"bit {bit} of byte {place}"


def test_the_cost_counts_files_without_data_and_what_is_only_reserved() -> None:
    files = MKFILE * 1000
    reserve = command(C.FALLOCATE, path=b"f", fallocate_mode=bytes(4), file_offset=0, size=1 << 40)

    assert check(full(files)).cost > 4_000_000
    assert check(full(reserve, version=2)).cost > 1 << 40


# On the way


class Pipes:
    """An inlet with a writer before it, and a reader behind what it passes on."""

    def __init__(self, directory: Path) -> None:
        self._out, self.into = os.pipe()
        self.inlet = Inlet(self._out)
        self.passed = directory / "passed"
        self.sink = os.open(self.passed, os.O_WRONLY | os.O_CREAT)

    def feed(self, *pieces: bytes, close: bool = True) -> None:
        def write() -> None:
            with suppress(BrokenPipeError):
                for piece in pieces:
                    os.write(self.into, piece)
            if close:
                os.close(self.into)

        self._writer = threading.Thread(target=write, daemon=True)
        self._writer.start()

    def close(self) -> None:
        """Let go of everything, so that a writer that nobody reads ends."""
        os.close(self._out)
        self._writer.join(10)
        os.close(self.sink)

    def pass_on(self, **changed: float) -> bytes:
        stall = changed.get("stall", 10)
        self.inlet.pass_stream(Checker(FULL), self.sink, stall=stall, flow=Flow())
        return self.passed.read_bytes()


@pytest.fixture
def pipes(tmp_path: Path) -> Iterator[Pipes]:
    pipes = Pipes(tmp_path)
    pipes.feed(close=False)
    yield pipes
    pipes.close()


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_however_it_comes_it_is_passed_on_as_it_was_and_lines_follow(
    pipes: Pipes, size: int
) -> None:
    big = command(C.WRITE, path=b"f", file_offset=0, data=bytes(range(256)) * 20)
    stream = full(MKFILE, big, version=2)
    said = b'{"do":"receive"}\n' + stream + b'{"do":"look"}\n'
    pipes.feed(*(said[at : at + size] for at in range(0, len(said), size)))

    assert pipes.inlet.message(10) == {"do": "receive"}
    assert pipes.pass_on() == stream
    assert pipes.inlet.message(10) == {"do": "look"}
    assert pipes.inlet.message(10) is None


def test_megabytes_pass(pipes: Pipes) -> None:
    write = command(C.WRITE, path=b"f", file_offset=0, data=os.urandom(500_000))
    stream = full(MKFILE, *[write] * 40, version=2)
    pipes.feed(stream)

    assert pipes.pass_on() == stream


def test_nothing_of_a_command_that_is_refused_has_been_passed_on(pipes: Pipes) -> None:
    good = header() + BEGIN + MKFILE
    pipes.feed(good + command(C.UNLINK, path=b"../x") + END)

    with pytest.raises(StreamRefused):
        pipes.pass_on()
    assert good.startswith(pipes.passed.read_bytes())


def test_a_stream_that_is_cut_off_has_no_end(pipes: Pipes) -> None:
    pipes.feed(full()[:-1])

    with pytest.raises(PeerGone, match="cut off"):
        pipes.pass_on()
    assert pipes.passed.read_bytes() == header() + BEGIN


def test_who_says_nothing_is_not_waited_for(pipes: Pipes) -> None:
    pipes.feed(full()[:-1], close=False)

    with pytest.raises(PeerSilent):
        pipes.pass_on(stall=0.3)
    with pytest.raises(PeerSilent):
        pipes.inlet.message(0.3)


@pytest.mark.parametrize("what", ["line", "stream"])
def test_who_says_one_letter_at_a_time_has_no_more_time(pipes: Pipes, what: str) -> None:
    over = threading.Event()

    def trickle() -> None:
        for letter in full(MKFILE * 100):
            if over.wait(0.05):
                return
            os.write(pipes.into, bytes([letter]))

    thread = threading.Thread(target=trickle)
    thread.start()
    wait: Callable[[], object] = {
        "line": lambda: pipes.inlet.message(0.5),
        "stream": lambda: pipes.pass_on(stall=0.5),
    }[what]
    with pytest.raises(PeerSilent):
        wait()
    over.set()
    thread.join()


@pytest.mark.parametrize("said", [b"a\n", b"[]\n", b"[" * 100_000 + b"\n", b"\xff\n", b'{"a":1}'])
def test_what_is_no_object_ends_the_session(pipes: Pipes, said: bytes) -> None:
    pipes.feed(said)

    with pytest.raises(PeerGone):
        pipes.inlet.message(10)


def test_a_line_without_end_is_not_kept(pipes: Pipes) -> None:
    pipes.feed(*[b"x" * 60_000] * 50)

    with pytest.raises(PeerGone, match="without end"):
        pipes.inlet.message(10, longest=1_000_000)


def test_a_transfer_that_is_cancelled_ends_while_it_waits(pipes: Pipes) -> None:
    flow = Flow()
    flow.cancel()

    with pytest.raises(Cancelled):
        pipes.inlet.pass_stream(Checker(FULL), pipes.sink, stall=10, flow=flow)


def test_who_does_not_read_is_not_waited_for() -> None:
    _, into = os.pipe()

    with pytest.raises(PeerSilent):
        say(into, {"text": "x" * 1_000_000}, 0.3)
