"""A stream becomes a snapshot of this host: whole, verified and on the disk, or not there at all.

While it comes in, and until all of it is on the disk, a note beside the copy says so: to others it
is partial until the note has gone. The note names the sender, and is locked during the transfer: if
it is not locked, the transfer is over.
"""

import fcntl
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from buttervolume import names
from buttervolume.errors import (
    BadName,
    CommandFailed,
    CopyInTheWay,
    NoSuchParent,
    OperationFailed,
    PartialCopyBusy,
    TooLittleSpace,
)
from buttervolume.hosts.stream import Announced, Checker
from buttervolume.hosts.wire import Inlet
from buttervolume.names import SnapshotName
from buttervolume.system import btrfs, files, mounts, namespace, nested, uuids
from buttervolume.system.btrfs import Subvolume
from buttervolume.system.command import PIPE, Flow, Process, enlarge
from buttervolume.system.locks import is_locked

STALL = 300.0
"""Seconds in which something worth mentioning must move."""
_LONGEST_NOTE = 1024
_SPACE_STEP = 64 << 20
"""Bytes that a stream may cost before the free space is looked at again."""
_LEAST_TO_SPARE = 2 * _SPACE_STEP
"""Bytes: with less than that beyond what is to be kept, a stream is refused."""


@dataclass(frozen=True)
class Note:
    """A note beside a copy that is being received, or was left half received."""

    path: Path
    sender: str
    copy: str
    """The name of the copy; that of the note may be a hash."""


class Intake:
    """Where streams become snapshots."""

    def __init__(self, directory: Path, stall: float = STALL) -> None:
        self.directory = directory
        self._stall = stall

    def receive(
        self,
        name: SnapshotName,
        announced: Announced,
        sender: str,
        inlet: Inlet,
        flow: Flow,
        *,
        version: int,
        before: Callable[[int], None] = lambda cost: None,
    ) -> Subvolume:
        """Let a stream in, and return the copy that it has become. `before` is told what it has
        cost the disk so far, and may raise.

        What an earlier transfer of the same sender has left of that name is removed before, and
        what this one leaves, if it fails. Raises CopyInTheWay, PartialCopyBusy, NoSuchParent,
        StreamRefused, PeerGone, PeerSilent, OperationFailed, Cancelled.
        """
        path = self.directory / str(name)
        try:
            with _hold_note(self.directory, name, sender) as held:
                parents = self._parents(name, announced.parent)
                self._carry_out(announced, inlet, flow, version, before)
                self._seal(path, announced, parents)
                if not held.is_ours:
                    raise OperationFailed(f"receive {name}", "somebody has removed it meanwhile")
                held.note.unlink()
                btrfs.sync(self.directory)
                return btrfs.info(path)
        except (CommandFailed, OSError) as error:
            reason = f"{error}{advice(error.stderr)}" if isinstance(error, CommandFailed) else error
            raise OperationFailed(f"receive {name}", reason) from error

    def _parents(self, name: SnapshotName, identity: UUID | None) -> frozenset[UUID | None]:
        """The UUIDs that the parent of the copy may have. All that `btrfs receive` may take for the
        parent must be whole snapshots of that volume."""
        if identity is None:
            return frozenset([None])
        numbers = set(uuids.found_by_receive(self.directory, identity))
        known: set[UUID | None] = set()
        for other in snapshots_of(self.directory, name.volume):
            if not numbers:
                break
            try:
                info = btrfs.info(self.directory / str(other))
            except OSError:
                continue  # removed meanwhile, or it cannot be read: then it is no parent
            if info.tree in numbers and info.readonly and not has_note(self.directory, other):
                numbers.discard(info.tree)
                known.add(info.uuid)
        if numbers or not known:
            raise NoSuchParent(str(name))
        return frozenset(known)

    def _carry_out(
        self,
        announced: Announced,
        inlet: Inlet,
        flow: Flow,
        version: int,
        before: Callable[[int], None],
    ) -> None:
        """Let `btrfs receive` carry the stream out, in a thread and a namespace of its own."""

        def work() -> None:
            confined = namespace.without_links(self.directory)
            argv = ["btrfs", "receive", "-q", "-e", "-C", str(confined)]
            with Process(argv, stdin=PIPE) as process:
                assert process.popen.stdin is not None
                sink = process.popen.stdin.fileno()
                enlarge(sink)
                with suppress(BrokenPipeError):  # why it has ended is what it says
                    checker = Checker(announced, version)
                    inlet.pass_stream(checker, sink, stall=self._stall, flow=flow, before=before)
                process.popen.stdin.close()
                process.wait(flow, self._stall, process.written)
                failure = process.failure()
                if failure:
                    raise failure

        with ThreadPoolExecutor(max_workers=1) as executor:
            executor.submit(work).result()

    def _seal(self, path: Path, announced: Announced, parents: frozenset[UUID | None]) -> None:
        """Bring a copy to the disk, check that it is what was announced, and seal it, so that any
        change of it later shows."""
        btrfs.sync(self.directory)
        if not btrfs.is_subvolume(path):
            raise OperationFailed(f"receive {path.name}", "there is no copy")
        copy = btrfs.info(path)
        if (
            not copy.readonly
            or copy.received_uuid != announced.uuid
            or copy.send_transid != announced.ctransid
            or copy.parent_uuid not in parents
        ):
            raise OperationFailed(f"receive {path.name}", "the copy is not what was announced")
        btrfs.seal(path, announced.uuid, announced.ctransid)


def advice(said: str) -> str:
    """What to do about a failure of `btrfs receive`, by what it said; empty if that says enough."""
    if re.search(r"btrfs\.compression=\S* failed: Invalid argument", said):
        return (
            "; the receiving host writes files without copy-on-write, and such ones cannot be "
            "compressed: mount the filesystem there without nodatacow and nodatasum, or take +C "
            "off the directory of the snapshots (chattr -C)"
        )
    return ""


def takes_changes(directory: Path) -> bool:
    """Whether `btrfs receive` finds a parent in a directory: only if what is mounted there is a
    subvolume, and no plain directory of one."""
    return os.stat(mounts.point_of(Path(os.path.realpath(directory)))).st_ino == 256


def bind_warning(host: str, directory: Path) -> str:
    """What is said where a directory takes no changes."""
    return (
        f"{host}: {directory} is in a bind mount of a plain directory, where btrfs receives no "
        "changes, so the snapshot was sent in full; mount a subvolume there, or the whole "
        "filesystem anywhere else"
    )


class Space:
    """Watches over the free space while a stream comes in."""

    def __init__(self, directory: Path, share: float) -> None:
        """`share` of the filesystem is to be kept free; 0 lets everything in."""
        self._directory = directory
        self._share = share
        # costs: what has been let through, what of it was on the disk, when to look again
        self._passed = self._synced = self._next = 0

    def check(self, cost: int) -> None:
        """Raise TooLittleSpace if the stream would take from what is to be kept. `cost` is what it
        may take with what comes next; how much it really is shows after a sync."""
        if self._share and cost >= self._next:
            free, kept = self._free(cost)
            if free - kept < _LEAST_TO_SPARE and self._passed > self._synced:
                btrfs.sync(self._directory)
                self._synced = self._passed
                free, kept = self._free(cost)
            if free - kept < _LEAST_TO_SPARE:
                raise TooLittleSpace(free, kept)
            self._next = cost + _SPACE_STEP
        self._passed = cost

    def _free(self, cost: int) -> tuple[int, int]:
        """What is free for sure, and how much of it is to be kept."""
        status = os.statvfs(self._directory)
        free = status.f_bavail * status.f_frsize - (cost - self._synced)
        return max(0, free), round(status.f_blocks * status.f_frsize * self._share)


def discard(directory: Path, name: SnapshotName, sender: str, *, without_note: bool) -> None:
    """Remove what a sender has left of a copy: with its note, or `without_note` what no version
    before left otherwise than partial. Nothing that was ever whole is removed.

    Raises PartialCopyBusy, OperationFailed.
    """
    path = directory / str(name)
    try:
        if read_note(directory / names.receiving_note(str(name))):
            with _hold_note(directory, name, sender):
                pass  # this removes it, and what is left
        elif without_note and btrfs.is_subvolume(path):
            info = btrfs.info(path)
            if not (info.readonly or info.received_uuid or info.receive_transid):
                _remove_copy(path)
    except (CommandFailed, OSError) as error:
        raise OperationFailed(f"remove what is left of {name}", error) from error


def sweep(directory: Path, sender: str, may_touch: Callable[[str], bool]) -> None:
    """Remove what transfers of a sender that are over have left, of volumes that it may touch."""
    for note in notes_in(directory):
        try:
            name = names.parse_snapshot(note.copy)
            is_own = note.path.name == names.receiving_note(note.copy)
            if note.sender == sender and is_own and may_touch(name.volume):
                discard(directory, name, sender, without_note=False)
        except (BadName, PartialCopyBusy, OperationFailed):
            continue  # nothing of ours, or a transfer is under way, or it goes another time


def notes_in(directory: Path) -> list[Note]:
    """The notes beside copies."""
    with os.scandir(directory) as entries:
        paths = [directory / e.name for e in entries if e.name.startswith(names.RECEIVING)]
    return [note for note in map(read_note, paths) if note]


def arriving(directory: Path, volume: str) -> str | None:
    """The name of a copy of a volume that a transfer is bringing now, if there is one."""
    for note in notes_in(directory):
        if note.copy.partition("@")[0] == volume and is_locked(note.path):
            return note.copy
    return None


def has_note(directory: Path, name: SnapshotName) -> bool:
    """Whether a copy is not whole yet, or not known to be."""
    return os.path.lexists(directory / names.receiving_note(str(name)))


def read_note(path: Path) -> Note | None:
    """A note, if there is one. One that says nothing is nobody's."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        said = os.read(descriptor, _LONGEST_NOTE)
    except OSError:  # it is a directory, or cannot be read
        said = b""
    finally:
        os.close(descriptor)
    lines = said.decode(errors="replace").split("\n")
    copy = path.name.removeprefix(names.RECEIVING)
    return Note(path, lines[0], lines[1] if lines[1:2] not in ([], [""]) else copy)


def snapshots_of(directory: Path, volume: str) -> Iterator[SnapshotName]:
    """The names of all subvolumes that are named as snapshots or markers of a volume, without those
    that cannot be looked at."""
    with os.scandir(directory) as entries:
        found = [e.name for e in entries if e.name.startswith(f"{volume}@")]
    for entry in found:
        with suppress(BadName, OSError):
            name = names.parse_snapshot(entry)
            if btrfs.is_subvolume(directory / entry):
                yield name


@dataclass(frozen=True)
class _Held:
    """The note of a copy that this transfer brings."""

    note: Path
    descriptor: int

    @property
    def is_ours(self) -> bool:
        """Whether the copy is still that one: who removes it (buttervolume rm) takes its note away,
        and what has the name afterwards is brought by somebody else."""
        try:
            return os.path.samestat(os.fstat(self.descriptor), os.lstat(self.note))
        except FileNotFoundError:
            return False


@contextmanager
def _hold_note(directory: Path, name: SnapshotName, sender: str) -> Iterator[_Held]:
    """Hold the note of a copy, with nothing there of the copy; both are gone if the block fails.

    What is there is removed if its note is of the same sender and nobody holds it.
    """
    path, copy = directory / names.receiving_note(str(name)), directory / str(name)
    before = read_note(path)
    if _is_there(copy):
        if not before:
            raise CopyInTheWay(str(name))
        if before.sender != sender:
            raise PartialCopyBusy(str(name), before.sender)
    made = 0 if before else os.O_CREAT
    try:
        descriptor = os.open(path, os.O_WRONLY | made | os.O_NOFOLLOW, 0o600)
    except FileNotFoundError:  # it has gone just now, and what is there may be whole
        raise PartialCopyBusy(str(name), sender) from None
    held = _Held(path, descriptor)
    try:
        _lock(held, name, sender)
        if before:
            _remove_copy(copy)
        elif _is_there(copy):  # it was taken here just now
            path.unlink()
            raise CopyInTheWay(str(name))
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{sender}\n{name}\n".encode())
        os.fsync(descriptor)
        try:
            yield held
        except BaseException:
            if held.is_ours:
                with suppress(CommandFailed, OSError):
                    _remove_copy(copy)
            raise
        finally:
            if held.is_ours and files.is_gone(copy):
                path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _is_there(path: Path) -> bool:
    """Whether something has a name. OSError if that cannot be looked at: it is not to be taken for
    nothing."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    return True


def _lock(held: _Held, name: SnapshotName, sender: str) -> None:
    """Lock an open note. If it has gone meanwhile, it belonged to another transfer."""
    with suppress(BlockingIOError):
        fcntl.flock(held.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if held.is_ours:
            return
    raise PartialCopyBusy(str(name), sender)


def _remove_copy(path: Path) -> None:
    if btrfs.is_subvolume(path):
        nested.delete_tree(path)
