"""BTRFS send streams: checked command by command while they pass, before `btrfs receive` acts.

A stream is a program that `btrfs receive` carries out as root. What is let through makes exactly
one subvolume, the announced one, out of commands that are known, whole and addressed within it.
The format is that of fs/btrfs/send.h and send.c of Linux, and of common/send-stream.c of
btrfs-progs, which reads it. Versions 1 and 2 are known; version 3 only exists behind a debug option
of the kernel so far.

Only headers and attributes are looked at in Python. Data goes from one buffer to the CRC, which a
library in C computes at several times the speed of a disk, and out again.

One thing a stream cannot be asked: whether a path leads over a symbolic link that it has made
itself, or to a device. That nothing is followed or opened is up to the mount that it is received on
(see `namespace`).
"""

import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from uuid import UUID

from buttervolume.errors import StreamRefused

MAGIC = b"btrfs-stream\0"
NEWEST_VERSION = 2
LONGEST_COMMAND = 1 << 20
"""Bytes. Linux makes commands of at most 64 KiB (version 1) or 144 KiB (version 2, with 4 KiB
pages); there is no limit in the format."""
LONGEST_PATH = 4095
LONGEST_NAME = 255
COST_OF_A_COMMAND = 4096
"""Bytes of metadata that a command may take on the disk, at a guess that is seldom too small."""

_STREAM_HEADER = struct.Struct("<13sI")
_HEADER = struct.Struct("<IHI")  # length of what follows, command, CRC of all with this field zero
_TLV = struct.Struct("<HH")
_U16 = struct.Struct("<H")
_U64 = struct.Struct("<Q")
_ALL_BITS = 0xFFFFFFFF
_WRITE, _OFFSET, _DATA = 15, 18, 19
"""A command and attributes, where looking them up at each command would be felt."""
_REST_OF_WRITE = {1: struct.Struct("<HHQHH"), 2: struct.Struct("<HHQH")}
"""What Linux writes between the path of a WRITE and its data, by version: the offset, and the head
of the data, which has no length in version 2 (put_file_data in send.c)."""
_STEP = rb"(?!\.{1,2}(?:/|\Z))[^/\0]{1,255}"
_PATH = re.compile(_STEP + rb"(?:/" + _STEP + rb")*")


class Command(IntEnum):
    """What a command does (enum btrfs_send_cmd)."""

    SUBVOL = 1
    SNAPSHOT = 2
    MKFILE = 3
    MKDIR = 4
    MKNOD = 5
    MKFIFO = 6
    MKSOCK = 7
    SYMLINK = 8
    RENAME = 9
    LINK = 10
    UNLINK = 11
    RMDIR = 12
    SET_XATTR = 13
    REMOVE_XATTR = 14
    WRITE = 15
    CLONE = 16
    TRUNCATE = 17
    CHMOD = 18
    CHOWN = 19
    UTIMES = 20
    END = 21
    UPDATE_EXTENT = 22
    FALLOCATE = 23
    FILEATTR = 24
    ENCODED_WRITE = 25


class Attribute(IntEnum):
    """What a command is about (enum of BTRFS_SEND_A_*)."""

    UUID = 1
    CTRANSID = 2
    INO = 3
    SIZE = 4
    MODE = 5
    UID = 6
    GID = 7
    RDEV = 8
    CTIME = 9
    MTIME = 10
    ATIME = 11
    OTIME = 12
    XATTR_NAME = 13
    XATTR_DATA = 14
    PATH = 15
    PATH_TO = 16
    PATH_LINK = 17
    FILE_OFFSET = 18
    DATA = 19
    CLONE_UUID = 20
    CLONE_CTRANSID = 21
    CLONE_PATH = 22
    CLONE_OFFSET = 23
    CLONE_LEN = 24
    FALLOCATE_MODE = 25
    FILEATTR = 26
    UNENCODED_FILE_LEN = 27
    UNENCODED_LEN = 28
    UNENCODED_OFFSET = 29
    COMPRESSION = 30
    ENCRYPTION = 31


class _Form(IntEnum):
    """What an attribute's value must be, apart from a size that is fixed."""

    PATH = -1
    ROOT_OR_PATH = -2
    """A path, empty for the subvolume's root itself."""
    TEXT = -3
    NAME = -4
    DATA = -5


_A, _C = Attribute, Command
_SIZES = {
    _A.UUID: 16, _A.CLONE_UUID: 16,
    _A.CTIME: 12, _A.MTIME: 12, _A.ATIME: 12, _A.OTIME: 12,
    _A.FALLOCATE_MODE: 4, _A.COMPRESSION: 4, _A.ENCRYPTION: 4,
}  # fmt: skip
_FORMS: dict[Attribute, int] = {attribute: _SIZES.get(attribute, 8) for attribute in Attribute} | {
    _A.PATH: _Form.PATH,
    _A.PATH_TO: _Form.PATH,
    _A.PATH_LINK: _Form.PATH,
    _A.CLONE_PATH: _Form.PATH,
    _A.XATTR_NAME: _Form.NAME,
    _A.XATTR_DATA: _Form.DATA,
    _A.DATA: _Form.DATA,
}
"""The size of each attribute's value in bytes, or its form."""


@dataclass(frozen=True)
class _Layout:
    """The attributes of a command."""

    required: frozenset[int]
    forms: Mapping[int, int]
    version: int = 1


def _layout(
    *required: Attribute, optional: tuple[Attribute, ...] = (), version: int = 1, **other: _Form
) -> _Layout:
    """`other` names attributes that have another form here than elsewhere."""
    forms = {int(attribute): _FORMS[attribute] for attribute in (*required, *optional)}
    forms |= {int(Attribute[name]): form for name, form in other.items()}
    return _Layout(frozenset(map(int, required)), forms, version)


_ROOT = _Form.ROOT_OR_PATH
_NODE = (_A.PATH, _A.INO, _A.RDEV, _A.MODE)
_LAYOUTS: dict[int, _Layout] = {
    _C.SUBVOL: _layout(_A.PATH, _A.UUID, _A.CTRANSID),
    _C.SNAPSHOT: _layout(_A.PATH, _A.UUID, _A.CTRANSID, _A.CLONE_UUID, _A.CLONE_CTRANSID),
    _C.MKFILE: _layout(_A.PATH, _A.INO),
    _C.MKDIR: _layout(_A.PATH, _A.INO),
    _C.MKNOD: _layout(*_NODE),
    _C.MKFIFO: _layout(*_NODE),
    _C.MKSOCK: _layout(*_NODE),
    _C.SYMLINK: _layout(_A.PATH, _A.INO, _A.PATH_LINK, PATH_LINK=_Form.TEXT),
    _C.RENAME: _layout(_A.PATH, _A.PATH_TO),
    _C.LINK: _layout(_A.PATH, _A.PATH_LINK),
    _C.UNLINK: _layout(_A.PATH),
    _C.RMDIR: _layout(_A.PATH),
    _C.SET_XATTR: _layout(_A.PATH, _A.XATTR_NAME, _A.XATTR_DATA, PATH=_ROOT),
    _C.REMOVE_XATTR: _layout(_A.PATH, _A.XATTR_NAME, PATH=_ROOT),
    _C.WRITE: _layout(_A.PATH, _A.FILE_OFFSET, _A.DATA),
    _C.CLONE: _layout(
        _A.PATH, _A.FILE_OFFSET, _A.CLONE_LEN,
        _A.CLONE_UUID, _A.CLONE_CTRANSID, _A.CLONE_PATH, _A.CLONE_OFFSET,
    ),
    _C.TRUNCATE: _layout(_A.PATH, _A.SIZE),
    _C.CHMOD: _layout(_A.PATH, _A.MODE, PATH=_ROOT),
    _C.CHOWN: _layout(_A.PATH, _A.UID, _A.GID, PATH=_ROOT),
    _C.UTIMES: _layout(
        _A.PATH, _A.ATIME, _A.MTIME, _A.CTIME, optional=(_A.OTIME,), PATH=_ROOT
    ),
    _C.END: _layout(),
    _C.FALLOCATE: _layout(
        _A.PATH, _A.FALLOCATE_MODE, _A.FILE_OFFSET, _A.SIZE, version=2
    ),
    _C.FILEATTR: _layout(_A.PATH, _A.FILEATTR, version=2, PATH=_ROOT),
    _C.ENCODED_WRITE: _layout(
        _A.PATH, _A.FILE_OFFSET, _A.UNENCODED_FILE_LEN, _A.UNENCODED_LEN, _A.UNENCODED_OFFSET,
        _A.DATA, optional=(_A.COMPRESSION, _A.ENCRYPTION), version=2,
    ),
}  # fmt: skip
"""Each command that may be in a stream. UPDATE_EXTENT may not: it is of `btrfs send --no-data`, and
the copy would look whole without the data."""


@dataclass(frozen=True)
class Announced:
    """The subvolume that a stream is to make, as its sender has announced it."""

    name: str
    uuid: UUID
    """What the copy gets as Received UUID."""
    ctransid: int
    """What the copy gets as Send transid."""
    parent: UUID | None = None
    """The identity of the snapshot that the stream holds the changes of; the only other subvolume
    that it may take data from. None: the stream must be a full one."""


class Checker:
    """Looks at one stream, piece by piece, and raises StreamRefused at the first thing wrong."""

    def __init__(self, announced: Announced, version: int = NEWEST_VERSION) -> None:
        """`version` is the newest one that the receiver knows."""
        from crc32c import crc32c  # takes as long to import as all the rest

        self._crc32c: Callable[[memoryview | bytes, int], int] = crc32c
        self.finished = False
        """Whether the stream has come to its END."""
        self.position = 0
        """How many bytes of the stream have been checked."""
        self.cost = 0
        """How many bytes the disk may need for what has been checked, at a guess."""
        self._announced = announced
        self._newest = version
        self._version = 0
        self._begun = False
        self._path = b"no path"
        self._rest_of_write = _REST_OF_WRITE[1]
        uuids = (announced.uuid, announced.parent)
        self._sources = {uuid.bytes for uuid in uuids if uuid is not None}

    def check(self, data: memoryview) -> int:
        """Check the whole commands at the beginning of the data, which begins where the last check
        ended, and return how many bytes they are: these may be passed on."""
        at = 0
        if not self._version:
            if len(data) < _STREAM_HEADER.size:
                return 0
            magic, self._version = _STREAM_HEADER.unpack_from(data)
            if magic != MAGIC:
                raise self._refused("it is no stream of btrfs send")
            if not 1 <= self._version <= self._newest:
                raise self._refused(f"its version {self._version} is unknown here")
            self._rest_of_write = _REST_OF_WRITE[min(self._version, 2)]
            at = _STREAM_HEADER.size
        available, crc32c = len(data), self._crc32c
        like, begun = (-1, -1), 0
        while not self.finished and available - at >= _HEADER.size:
            length, command, crc = _HEADER.unpack_from(data, at)
            if length > LONGEST_COMMAND:
                raise self._refused(f"a command of {length} bytes")
            body = at + _HEADER.size
            end = body + length
            if end > available:
                break
            if (length, command) != like:  # in a large file, one is as long as the other
                like = length, command
                begun = crc32c(_HEADER.pack(length, command, 0), _ALL_BITS)
            if crc32c(data[body:end], begun) ^ _ALL_BITS != crc:
                raise self._refused("a command's CRC is wrong")
            if command != _WRITE:
                self._check_command(command, data[body:end])
            elif not self._goes_on(data, body, end):
                self._check_command(command, data[body:end])
                self._remember(data, body)
            self.position += end - at
            self.cost += end - at + COST_OF_A_COMMAND
            at = end
        return at

    def _goes_on(self, data: memoryview, body: int, end: int) -> bool:
        """Whether a WRITE is laid out as by Linux, and goes to the file that one before went to:
        then there is nothing else to look at. Large files are almost nothing but such commands."""
        rest = body + len(self._path)
        form = self._rest_of_write
        if data[body:rest] != self._path or end - rest < form.size:
            return False
        attribute, size, _, *data_attribute = form.unpack_from(data, rest)
        length = end - rest - form.size
        return (attribute, size, *data_attribute) in (
            (_OFFSET, 8, _DATA),
            (_OFFSET, 8, _DATA, length),
        )

    def _remember(self, data: memoryview, body: int) -> None:
        """Take note of the path that a WRITE begins with, which is in order."""
        attribute, size = _TLV.unpack_from(data, body)
        if attribute == Attribute.PATH:
            self._path = bytes(data[body : body + _TLV.size + size])

    def _check_command(self, command: int, body: memoryview) -> None:
        layout = _LAYOUTS.get(command)
        if layout is None or layout.version > self._version:
            raise self._refused(f"command {command} is unknown or not allowed")
        found: dict[int, memoryview] = {}
        at, end = 0, len(body)
        while at < end:
            if end - at < 2:
                raise self._refused("an attribute is cut off")
            (attribute,) = _U16.unpack_from(body, at)
            form = layout.forms.get(attribute)
            if form is None or attribute in found:
                raise self._refused(f"attribute {attribute} does not belong in command {command}")
            if attribute == _DATA and self._version >= 2:  # it is all the rest
                found[attribute] = body[at + 2 :]
                break
            if end - at < 4:
                raise self._refused("an attribute is cut off")
            (size,) = _U16.unpack_from(body, at + 2)
            at += 4
            value = body[at : at + size]
            if len(value) != size:
                raise self._refused("an attribute is cut off")
            at += size
            if form < 0:
                self._check_form(form, value)
            elif form != size:
                raise self._refused(f"attribute {attribute} has {size} bytes")
            found[attribute] = value
        if not layout.required <= found.keys():
            raise self._refused(f"command {command} lacks an attribute")
        if not self._begun or command in _SPECIAL:
            self._check_special(command, found)

    def _check_form(self, form: int, value: memoryview) -> None:
        """Check a value whose size is not fixed."""
        if form == _Form.DATA:
            return
        if form == _Form.PATH or (form == _Form.ROOT_OR_PATH and value):
            if len(value) > LONGEST_PATH or not _PATH.fullmatch(value):
                raise self._refused(f"{bytes(value[:200])!r} is no path within the subvolume")
        else:
            longest = LONGEST_NAME if form == _Form.NAME else LONGEST_PATH
            if len(value) > longest or b"\0" in bytes(value):
                raise self._refused("a name or the target of a link has a NUL or is too long")

    def _check_special(self, command: int, found: Mapping[int, memoryview]) -> None:
        """Check what depends on more than the command alone."""
        if not self._begun:
            self._check_beginning(command, found)
            self._begun = True
        elif command in (Command.SUBVOL, Command.SNAPSHOT):
            raise self._refused("it makes a second subvolume")
        elif command == Command.CLONE:
            if bytes(found[Attribute.CLONE_UUID]) not in self._sources:
                raise self._refused("it takes data from a subvolume that was not announced")
        elif command == Command.FALLOCATE:
            (size,) = _U64.unpack(found[Attribute.SIZE])
            self.cost += size
        elif command == Command.END:
            self.finished = True

    def _check_beginning(self, command: int, found: Mapping[int, memoryview]) -> None:
        announced = self._announced
        kind = Command.SUBVOL if announced.parent is None else Command.SNAPSHOT
        if command != kind:
            raise self._refused(f"it begins with command {command} and not {kind.name}")
        if bytes(found[Attribute.PATH]) != announced.name.encode():
            raise self._refused("it makes a subvolume of another name than announced")
        if bytes(found[Attribute.UUID]) != announced.uuid.bytes:
            raise self._refused("its subvolume has another UUID than announced")
        if _U64.unpack(found[Attribute.CTRANSID]) != (announced.ctransid,):
            raise self._refused("its subvolume has another transaction id than announced")
        if announced.parent and bytes(found[Attribute.CLONE_UUID]) != announced.parent.bytes:
            raise self._refused("it holds the changes of another snapshot than announced")

    def _refused(self, reason: str) -> StreamRefused:
        return StreamRefused(self._announced.name, self.position, reason)


_SPECIAL = frozenset(
    (Command.SUBVOL, Command.SNAPSHOT, Command.CLONE, Command.FALLOCATE, Command.END)
)
