"""BTRFS subvolumes. The `btrfs` command makes changes; questions go to the kernel, in a few µs.

The ioctls and their structures are those of linux/btrfs.h, the file flags those of linux/fs.h.
"""

import errno
import fcntl
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from uuid import UUID

from buttervolume.errors import CommandFailed
from buttervolume.system import command

_SUBVOLUME_ROOT_INODE = 256  # BTRFS_FIRST_FREE_OBJECTID
_SYNC = 0x9408  # BTRFS_IOC_SYNC
_FS_INFO = 0x8400941F  # BTRFS_IOC_FS_INFO
_GET_SUBVOL_INFO = 0x81F8943C  # BTRFS_IOC_GET_SUBVOL_INFO
_GET_SUBVOL_ROOTREF = 0xD000943D  # BTRFS_IOC_GET_SUBVOL_ROOTREF
_INO_LOOKUP_USER = 0xD000943E  # BTRFS_IOC_INO_LOOKUP_USER
_SUBVOL_SETFLAGS = 0x4008941A  # BTRFS_IOC_SUBVOL_SETFLAGS
_SET_RECEIVED_SUBVOL = 0xC0C89425  # BTRFS_IOC_SET_RECEIVED_SUBVOL
_GETFLAGS = 0x80086601  # FS_IOC_GETFLAGS
_SETFLAGS = 0x40086602  # FS_IOC_SETFLAGS
_NOCOW = 0x00800000  # FS_NOCOW_FL
_READONLY = 1 << 0  # BTRFS_ROOT_SUBVOL_RDONLY, in the flags of the root item (btrfs_tree.h)
_SUBVOL_RDONLY = 1 << 1  # BTRFS_SUBVOL_RDONLY, in those of the ioctls
_SETTLED = 0x62747266
"""Nanoseconds of the time of sending, more than a second has: says that a copy was on the disk when
it got its Received UUID. The kernel keeps these numbers as they are given and does not use them."""

_RECEIVED = struct.Struct("=16sQQQI4xQI4x136x")
_SUBVOL_INFO = struct.Struct("=Q256s4Q16s16s16s4Q" + "QI4x" * 4 + "8Q")
_ROOTREFS_PER_CALL = 255
_ROOTREFS = struct.Struct(f"=Q{16 * _ROOTREFS_PER_CALL}sB7x")
_INO_LOOKUP_USER_ARGS = struct.Struct("=QQ256s3824s")
_DELETE_BATCH = 1000
"""Paths for one `btrfs subvolume delete`: of at most 4,096 bytes each, seldom over 200, they stay
well below the 2 MiB that execve(2) takes."""


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


@dataclass(frozen=True)
class Nested:
    """A subvolume inside another one; `path` is relative to that one."""

    tree: int
    path: str


def create(path: Path) -> None:
    """Make an empty subvolume."""
    command.run(["btrfs", "subvolume", "create", str(path)])


def snapshot(source: Path, target: Path, *, readonly: bool) -> None:
    """Make a snapshot of a subvolume, which never has a Received UUID. The target must not exist.

    (The command would put the snapshot *into* a directory of that name.) A read-only snapshot
    inherits the Received UUID of its source, which whoever owns that may set at any moment.
    """
    inherits = readonly and info(source).received_uuid is not None
    flags = ["-r"] if readonly and not inherits else []
    command.run(["btrfs", "subvolume", "snapshot", *flags, str(source), str(target)])
    if inherits:
        with _Directory(target) as descriptor:
            _set_readonly(descriptor, readonly=True)
    elif readonly and info(target).received_uuid is not None:
        set_received(target, None, 0)


def send_command(path: Path, *, parent: Path | None, compressed: bool) -> list[str]:
    """The command that writes a snapshot as a stream to its output, as changes of a parent if one
    is given. A stream of version 2 carries compressed extents as they are."""
    version = ["--proto", "2", "--compressed-data"] if compressed else []
    change = ["-p", str(parent)] if parent else []
    return ["btrfs", "send", "-q", *version, *change, str(path)]


def delete(paths: Sequence[Path]) -> dict[Path, str]:
    """Delete subvolumes that have none nested in them, in as few commands as there can be.

    Returns those that could not be deleted, each with the reason. The command goes on after one
    that it cannot delete (cmds/subvolume.c).
    """
    failed: dict[Path, str] = {}
    for start in range(0, len(paths), _DELETE_BATCH):
        batch = paths[start : start + _DELETE_BATCH]
        try:
            command.run(["btrfs", "subvolume", "delete", *map(str, batch)])
        except CommandFailed as error:
            reason = "; ".join(dict.fromkeys(error.stderr.splitlines())) or str(error)
            failed |= {path: reason for path in batch if os.path.lexists(path)}
    return failed


def delete_tree(path: Path) -> None:
    """Delete a subvolume and all that are nested in it, deepest first, or raise CommandFailed.

    Nested ones are named by their number, so that no link can lead the command elsewhere.
    """
    for inner in reversed(nested(path)):
        command.run(["btrfs", "subvolume", "delete", "--subvolid", str(inner.tree), str(path)])
    command.run(["btrfs", "subvolume", "delete", str(path)])


def is_subvolume(path: Path) -> bool:
    """Whether a path is the root of a subvolume and no link to one."""
    try:
        return is_subvolume_root(os.lstat(path), os.lstat(path.parent).st_dev)
    except (FileNotFoundError, NotADirectoryError):
        return False


def is_subvolume_root(status: os.stat_result, parent_device: int) -> bool:
    """Whether `lstat` has seen a subvolume's root: inode 256 and a device number of its own."""
    return status.st_ino == _SUBVOLUME_ROOT_INODE and status.st_dev != parent_device


def filesystem(path: Path) -> UUID:
    """The UUID of the BTRFS filesystem that a directory is on; OSError if it is on another kind."""
    with _Directory(path.resolve()) as descriptor:
        answer = fcntl.ioctl(descriptor, _FS_INFO, bytes(1024))
    return UUID(bytes=answer[16:32])


def info(path: Path) -> Subvolume:
    """What the kernel knows of the subvolume that a directory is in. OSError if it is in none."""
    with _Directory(path) as descriptor:
        answer = fcntl.ioctl(descriptor, _GET_SUBVOL_INFO, bytes(_SUBVOL_INFO.size))
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


def set_received(path: Path, uuid: UUID | None, send_transid: int) -> None:
    """Give a read-only subvolume an identity and a version, or take them; it stays read-only.

    Only for what is known to be on the disk, after a `sync`: later, a `changed` after its
    `receive_transid` betrays a change. For a moment it is writable.
    """
    with _Directory(path) as descriptor:
        _set_readonly(descriptor, readonly=False)
        try:
            number = uuid.bytes if uuid else bytes(16)
            mark = _SETTLED if uuid else 0
            request = bytearray(_RECEIVED.pack(number, send_transid, 0, 0, mark, 0, 0))
            fcntl.ioctl(descriptor, _SET_RECEIVED_SUBVOL, request)
        finally:
            _set_readonly(descriptor, readonly=True)


def _set_readonly(descriptor: int, *, readonly: bool) -> None:
    flags = _SUBVOL_RDONLY if readonly else 0
    fcntl.ioctl(descriptor, _SUBVOL_SETFLAGS, struct.pack("=Q", flags))


def sync(path: Path) -> None:
    """Bring to the disk what has been written on the filesystem of a directory."""
    with _Directory(path) as descriptor:
        fcntl.ioctl(descriptor, _SYNC)


def nested(path: Path) -> list[Nested]:
    """The subvolumes nested in a subvolume, at any depth, each after the one that holds it."""
    found = list(_nested_directly(path, ""))
    for (
        inner
    ) in found:  # which grows meanwhile; whoever may write there makes it as deep as he likes
        with suppress(OSError):  # something else is mounted there, or it moved meanwhile
            if info(path / inner.path).tree == inner.tree:
                found += _nested_directly(path / inner.path, f"{inner.path}/")
    return found


def _nested_directly(path: Path, prefix: str) -> Iterator[Nested]:
    """The subvolumes right below one, with a prefix to their paths."""
    with _Directory(path) as descriptor:
        for tree, directory in _children(descriptor):
            request = bytearray(_INO_LOOKUP_USER_ARGS.pack(directory, tree, b"", b""))
            try:
                fcntl.ioctl(descriptor, _INO_LOOKUP_USER, request)
            except FileNotFoundError:  # deleted meanwhile
                continue
            _, _, name, place = _INO_LOOKUP_USER_ARGS.unpack(request)
            child = os.fsdecode(place.partition(b"\0")[0] + name.partition(b"\0")[0])
            yield Nested(tree, f"{prefix}{child}")


def _children(descriptor: int) -> Iterator[tuple[int, int]]:
    """The subvolumes right below one: tree number, and inode of the directory that holds it."""
    lowest = 0
    while True:
        request = bytearray(_ROOTREFS.pack(lowest, bytes(16 * _ROOTREFS_PER_CALL), 0))
        try:
            fcntl.ioctl(descriptor, _GET_SUBVOL_ROOTREF, request)
            more = False
        except OSError as error:
            if error.errno != errno.EOVERFLOW:  # there are more than fit
                raise
            more = True
        lowest, pairs, count = _ROOTREFS.unpack(request)
        for number in range(count):
            yield struct.unpack_from("=QQ", pairs, 16 * number)
        if not more:
            return


def copy_on_write(path: Path) -> bool:
    """Whether new files in a directory are written by copy-on-write."""
    with _Directory(path) as descriptor:
        return not _flags(descriptor) & _NOCOW


def disable_copy_on_write(path: Path) -> None:
    """Let new files in a directory be written in place, which spares databases fragmentation."""
    with _Directory(path) as descriptor:
        fcntl.ioctl(descriptor, _SETFLAGS, struct.pack("=q", _flags(descriptor) | _NOCOW))


def set_compression(path: Path, algorithm: str) -> None:
    """Let new files in a directory be compressed: zlib, lzo or zstd (btrfs-property(8))."""
    os.setxattr(path, "btrfs.compression", algorithm.encode())


class _Directory:
    """An open directory, never reached over a link in its last step."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> int:
        self._descriptor = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        return self._descriptor

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


def _flags(descriptor: int) -> int:
    value: int = struct.unpack("=q", fcntl.ioctl(descriptor, _GETFLAGS, bytes(8)))[0]
    return value
