"""BTRFS subvolumes. The `btrfs` command makes changes; questions go to the kernel, in a few µs.

The ioctls and their structures are those of linux/btrfs.h, the file flags those of linux/fs.h.
"""

import errno
import fcntl
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from uuid import UUID

from buttervolume.errors import CommandFailed
from buttervolume.system import command, files
from buttervolume.words import lines

ROOT_INODE = 256
"""The inode of every subvolume's root (BTRFS_FIRST_FREE_OBJECTID)."""
_SYNC = 0x9408  # BTRFS_IOC_SYNC
_FS_INFO = 0x8400941F  # BTRFS_IOC_FS_INFO
_GET_SUBVOL_INFO = 0x81F8943C  # BTRFS_IOC_GET_SUBVOL_INFO
_SUBVOL_GETFLAGS = 0x80089419  # BTRFS_IOC_SUBVOL_GETFLAGS
_SUBVOL_SETFLAGS = 0x4008941A  # BTRFS_IOC_SUBVOL_SETFLAGS
_SUBVOL_RDONLY = 1 << 1  # BTRFS_SUBVOL_RDONLY, in those of the ioctls
_SET_RECEIVED_SUBVOL = 0xC0C89425  # BTRFS_IOC_SET_RECEIVED_SUBVOL
_GETFLAGS = 0x80086601  # FS_IOC_GETFLAGS
_SETFLAGS = 0x40086602  # FS_IOC_SETFLAGS
_NOCOW = 0x00800000  # FS_NOCOW_FL
_COMPRESSED = 0x00000004  # FS_COMPR_FL
_COMPRESSION = "btrfs.compression"
_PROTECTED = 0x00000030  # FS_IMMUTABLE_FL | FS_APPEND_FL
_READONLY = 1 << 0  # BTRFS_ROOT_SUBVOL_RDONLY, in the flags of the root item (btrfs_tree.h)

_SETTLED = 0x62747266
"""Nanoseconds of the time of sending, more than a second has: says that a copy was on the disk when
it got its Received UUID. The kernel keeps these numbers as they are given and does not use them."""

_SEALINGS = 20
"""How often a copy is sealed before it is given up: each costs a few writes of the disk."""

_RECEIVED = struct.Struct("=16sQQQI4xQI4x136x")
_SUBVOL_INFO = struct.Struct("=Q256s4Q16s16s16s4Q" + "QI4x" * 4 + "8Q")
_DELETE_BATCH = 4000
"""Paths for one `btrfs subvolume delete`, where execve(2) takes that much; see `_batches`."""
_PER_ARGUMENT = 9
"""Bytes that an argument takes beside its own: its end and a pointer to it (execve(2))."""


@dataclass(frozen=True)
class Subvolume:
    """What the kernel tells of a subvolume. A UUID that is not set is None."""

    tree: int
    uuid: UUID
    parent_uuid: UUID | None
    received_uuid: UUID | None
    changed: int
    """The last transaction that changed something in it, once it is on the disk (see `sync`)."""
    created_in: int
    """The transaction that created it; of a snapshot, the one that it shows the state after."""
    send_transid: int
    """What `changed` was of the origin where it was sent from; 0 if it was never received."""
    receive_transid: int
    """The transaction in which it got its Received UUID, or lost it; 0 if neither."""
    settled: bool
    """Whether it was wholly on the disk when it got its Received UUID (see `set_received`)."""
    created: datetime | None
    """Time of creation, local with its offset from UTC; files that change don't move it."""
    readonly: bool

    @property
    def is_complete(self) -> bool:
        """Whether it can serve as a snapshot: what `btrfs receive` has not finished is writable."""
        return self.readonly


class Directory:
    """An open directory: what is asked and changed here is the same one, whatever becomes of the
    path that it was opened by."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def inode(self) -> int:
        """Its number, 256 for the root of a subvolume."""
        return os.fstat(self.descriptor).st_ino

    def is_subvolume(self, parent_device: int) -> bool:
        """Whether it is the root of a subvolume; the device is that of the directory above."""
        return is_subvolume_root(os.fstat(self.descriptor), parent_device)

    def info(self) -> Subvolume:
        """What the kernel knows of the subvolume that it is in. OSError if it is in none."""
        answer = fcntl.ioctl(self.descriptor, _GET_SUBVOL_INFO, bytes(_SUBVOL_INFO.size))
        (tree, _name, _parent, _directory, _generation, flags, uuid, parent_uuid, received_uuid,
         changed, created_in, sent, received_in, _ctime, _ctime_ns, otime, otime_ns,
         _stime, stime_ns, *_rest) = _SUBVOL_INFO.unpack(answer)  # fmt: skip
        return Subvolume(
            tree=tree,
            uuid=UUID(bytes=uuid),
            parent_uuid=UUID(bytes=parent_uuid) if any(parent_uuid) else None,
            received_uuid=UUID(bytes=received_uuid) if any(received_uuid) else None,
            changed=changed,
            created_in=created_in,
            send_transid=sent,
            receive_transid=received_in,
            settled=stime_ns == _SETTLED,
            created=datetime.fromtimestamp(otime + otime_ns / 1e9).astimezone() if otime else None,
            readonly=bool(flags & _READONLY),
        )

    def copy_on_write(self) -> bool:
        """Whether new files in it are written by copy-on-write."""
        return not self._flags() & _NOCOW

    def disable_copy_on_write(self) -> None:
        """Let new files be written in place, which spares databases fragmentation; so they are not
        compressed either, as those of the directory above or of a copy's origin may be."""
        self.disable_compression()
        self._set_flags(self._flags() | _NOCOW)

    def enable_copy_on_write(self) -> None:
        """Let new files be written by copy-on-write."""
        self._set_flags(self._flags() & ~_NOCOW)

    def set_compression(self, algorithm: str) -> None:
        """Let new files be compressed: zlib, lzo or zstd (btrfs-property(8))."""
        os.setxattr(self.descriptor, _COMPRESSION, algorithm.encode())

    def disable_compression(self) -> None:
        """Let new files not be compressed."""
        if self._flags() & _COMPRESSED:
            try:
                os.removexattr(self.descriptor, _COMPRESSION)
            except OSError as error:
                if error.errno != errno.ENODATA:  # it is by the flag alone (chattr(1))
                    raise
            self._set_flags(self._flags() & ~_COMPRESSED)

    def is_protected(self) -> bool:
        """Whether it is immutable or append-only (chattr(1)), which snapshots inherit."""
        return bool(self._flags() & _PROTECTED)

    def unprotect(self) -> None:
        """Let it be changed again; the subvolume must be writable."""
        self._set_flags(self._flags() & ~_PROTECTED)

    def set_readonly(self, readonly: bool) -> None:
        """Make the subvolume whose root this is read-only, or writable."""
        (flags,) = struct.unpack("=Q", fcntl.ioctl(self.descriptor, _SUBVOL_GETFLAGS, bytes(8)))
        wanted = flags | _SUBVOL_RDONLY if readonly else flags & ~_SUBVOL_RDONLY
        if wanted != flags:
            fcntl.ioctl(self.descriptor, _SUBVOL_SETFLAGS, struct.pack("=Q", wanted))

    @contextmanager
    def writable(self) -> Iterator[None]:
        """Let the subvolume whose root this is be writable for a while."""
        readonly = self.info().readonly
        if readonly:
            self.set_readonly(False)
        try:
            yield
        finally:
            if readonly:
                self.set_readonly(True)

    def set_received(self, uuid: UUID | None, send_transid: int) -> None:
        """Give the subvolume whose root this is, which must be writable, the identity and version
        of an origin, or take them from it.

        Only for what is known to be on the disk, after a `sync`: later, a `changed` after its
        `receive_transid` shows a change.
        """
        number = uuid.bytes if uuid else bytes(16)
        mark = _SETTLED if uuid else 0
        request = bytearray(_RECEIVED.pack(number, send_transid, 0, 0, mark, 0, 0))
        fcntl.ioctl(self.descriptor, _SET_RECEIVED_SUBVOL, request)

    def _flags(self) -> int:
        value: int = struct.unpack("=q", fcntl.ioctl(self.descriptor, _GETFLAGS, bytes(8)))[0]
        return value

    def _set_flags(self, flags: int) -> None:
        fcntl.ioctl(self.descriptor, _SETFLAGS, struct.pack("=q", flags))


@contextmanager
def opened(path: Path | str) -> Iterator[Directory]:
    """Open a directory, never over a link in the last step."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield Directory(descriptor)
    finally:
        os.close(descriptor)


def create(path: Path) -> None:
    """Make an empty subvolume."""
    command.run(["btrfs", "subvolume", "create", str(path)])


def snapshot(source: Path, target: Path, *, readonly: bool) -> None:
    """Make a snapshot of a subvolume, which never has a Received UUID. The target must not exist.

    (The command would put the snapshot *into* a directory of that name.) A read-only snapshot
    inherits the Received UUID of its source, which a container may set at any moment.
    """
    inherits = readonly and info(source).received_uuid is not None
    flags = ["-r"] if readonly and not inherits else []
    command.run(["btrfs", "subvolume", "snapshot", *flags, str(source), str(target)])
    if inherits:
        with opened(target) as copy:
            copy.set_readonly(True)
    elif readonly and info(target).received_uuid is not None:
        set_received(target, None, 0)


def send_command(path: Path, *, parent: Path | None, compressed: bool) -> list[str]:
    """The command that writes a snapshot as a stream to its output, as changes of a parent if one
    is given. A stream of version 2 carries compressed extents as they are."""
    version = ["--proto", "2", "--compressed-data"] if compressed else []
    change = ["-p", str(parent)] if parent else []
    return ["btrfs", "send", "-q", *version, *change, str(path)]


def delete(paths: Sequence[str]) -> dict[str, str]:
    """Delete subvolumes that have none nested in them, in as few commands as there can be.

    Returns those that could not be deleted, each with the reason. The command goes on after one
    that it cannot delete (cmds/subvolume.c).
    """
    failed: dict[str, str] = {}
    for batch in _batches(paths):
        try:
            command.run(["btrfs", "subvolume", "delete", *batch])
        except CommandFailed as error:
            reason = "; ".join(dict.fromkeys(lines(error.stderr))) or str(error)
            failed |= {path: reason for path in batch if not files.is_gone(path)}
    return failed


def _batches(paths: Sequence[str]) -> Iterator[Sequence[str]]:
    """Paths in their order, as many at a time as a command takes beside its environment."""
    room = os.sysconf("SC_ARG_MAX") // 2  # a quarter of the limit on the stack
    start = size = 0
    for number, path in enumerate(paths):
        one = len(os.fsencode(path)) + _PER_ARGUMENT
        if number - start == _DELETE_BATCH or (size and size + one > room):
            yield paths[start:number]
            start, size = number, 0
        size += one
    if paths:
        yield paths[start:]


def is_subvolume(path: Path) -> bool:
    """Whether a path is the root of a subvolume and no link to one."""
    try:
        return is_subvolume_root(os.lstat(path), os.lstat(path.parent).st_dev)
    except (FileNotFoundError, NotADirectoryError):
        return False


def is_subvolume_root(status: os.stat_result, parent_device: int) -> bool:
    """Whether `lstat` has seen a subvolume's root: inode 256 and a device number of its own."""
    return status.st_ino == ROOT_INODE and status.st_dev != parent_device


def filesystem(path: Path) -> UUID:
    """The UUID of the BTRFS filesystem that a directory is on; OSError if it is on another kind."""
    with opened(path.resolve()) as directory:
        answer = fcntl.ioctl(directory.descriptor, _FS_INFO, bytes(1024))
    return UUID(bytes=answer[16:32])


def info(path: Path) -> Subvolume:
    """What the kernel knows of the subvolume that a directory is in. OSError if it is in none."""
    with opened(path) as directory:
        return directory.info()


def holds_what(path: Path, snapshot: Subvolume) -> bool:
    """Whether a subvolume holds what a snapshot of it shows.

    BTRFS counts transactions: what has changed in a subvolume after a snapshot of it has a higher
    number, once it is on the disk. Changes in subvolumes nested in it do not count; they are in no
    snapshot. OSError.
    """
    sync(path)
    now = info(path)
    return snapshot.parent_uuid == now.uuid and now.changed <= snapshot.created_in


def set_received(path: Path, uuid: UUID | None, send_transid: int) -> None:
    """Give a read-only subvolume an identity and a version, or take them; it stays read-only. For
    a moment it is writable."""
    with opened(path) as directory:
        directory.set_readonly(False)
        try:
            directory.set_received(uuid, send_transid)
        finally:
            directory.set_readonly(True)


def seal(path: Path, uuid: UUID, send_transid: int) -> None:
    """Give a read-only subvolume that is on the disk the identity and version of an origin, so that
    every later change of it shows.

    For that it is writable for a moment, and to whoever reads it just then the kernel gives new
    access times, which is a change (relatime, mount(8)): then it is sealed once more. OSError, if
    that does not end.
    """
    for _ in range(_SEALINGS):
        set_received(path, uuid, send_transid)
        sync(path)  # who was let in to change something has done so then
        sealed = info(path)
        if sealed.changed <= sealed.receive_transid:
            return
    said = "somebody changes it, or the access times in it, all the time"
    raise OSError(errno.EBUSY, said, str(path))


def sync(path: Path) -> None:
    """Bring to the disk what has been written on the filesystem of a directory."""
    with opened(path) as directory:
        fcntl.ioctl(directory.descriptor, _SYNC)
