"""How much room a BTRFS filesystem has, and how its devices are: ioctls, no command.

Their structures are those of linux/btrfs.h, the block group flags those of btrfs_tree.h.
"""

import errno
import fcntl
import os
import struct
from dataclasses import dataclass
from pathlib import Path

_FS_INFO = 0x8400941F  # BTRFS_IOC_FS_INFO
_DEV_INFO = 0xD000941E  # BTRFS_IOC_DEV_INFO
_SPACE_INFO = 0xC0109414  # BTRFS_IOC_SPACE_INFO
_GET_DEV_STATS = 0xC4089434  # BTRFS_IOC_GET_DEV_STATS
_FS_INFO_ARGS = struct.Struct("=QQ16s")
_DEV_INFO_ARGS = struct.Struct("=Q16sQQ")
_SPACE_INFO_ARGS = struct.Struct("=QQ")
_SPACE = struct.Struct("=QQQ")
_DEV_STATS = struct.Struct("=QQQ5Q")
_METADATA = 1 << 2  # BTRFS_BLOCK_GROUP_METADATA
_GLOBAL_RESERVE = 1 << 49  # BTRFS_SPACE_INFO_GLOBAL_RSV
_MIRRORED = (1 << 4) | (1 << 5) | (1 << 6)  # RAID1, DUP, RAID10: two copies of each block
_KINDS_OF_ERROR = ("write", "read", "flush", "corruption", "generation")
"""In the order of btrfs_dev_stat_values."""


@dataclass(frozen=True)
class Device:
    """A device of the filesystem."""

    path: str
    errors: dict[str, int]
    """How many of each kind since they were last reset, as `btrfs device stats` counts them."""


@dataclass(frozen=True)
class Space:
    """A filesystem at one moment; sizes in bytes."""

    size: int
    free: int
    """What can still be written, as far as the kernel can say."""
    metadata_size: int
    """What is set apart for metadata, and what could still be."""
    metadata_used: int
    """Of that, what is used or held in reserve for deleting."""
    read_only: bool
    devices: tuple[Device, ...]


def look(path: Path) -> Space:
    """The filesystem that a directory is on. Raises OSError, also if it is no BTRFS."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        status = os.fstatvfs(descriptor)
        devices, unallocated = _devices(descriptor)
        total, used = _metadata(descriptor, unallocated)
        return Space(
            size=status.f_blocks * status.f_frsize,
            free=status.f_bavail * status.f_frsize,
            metadata_size=total,
            metadata_used=used,
            read_only=bool(status.f_flag & os.ST_RDONLY),
            devices=devices,
        )
    finally:
        os.close(descriptor)


def _devices(descriptor: int) -> tuple[tuple[Device, ...], int]:
    """Every device that is there, and how many of their bytes are not set apart for anything
    yet."""
    highest, count, _ = _FS_INFO_ARGS.unpack_from(fcntl.ioctl(descriptor, _FS_INFO, bytes(1024)))
    devices: list[Device] = []
    unallocated = 0
    for number in range(1, highest + 1):
        if len(devices) == count:
            break
        request = bytearray(4096)
        _DEV_INFO_ARGS.pack_into(request, 0, number, b"", 0, 0)
        try:
            fcntl.ioctl(descriptor, _DEV_INFO, request)
        except OSError as error:
            if error.errno == errno.ENODEV:  # numbers of devices that were removed
                continue
            raise
        _, _, used, total = _DEV_INFO_ARGS.unpack_from(request)
        unallocated += total - used
        name = os.fsdecode(bytes(request[-1024:]).partition(b"\0")[0])
        devices.append(Device(name, _errors(descriptor, number)))
    return tuple(devices), unallocated


def _errors(descriptor: int, device: int) -> dict[str, int]:
    request = bytearray(1032)
    _DEV_STATS.pack_into(request, 0, device, len(_KINDS_OF_ERROR), 0, *[0] * 5)
    try:
        fcntl.ioctl(descriptor, _GET_DEV_STATS, request)
    except OSError as error:
        if error.errno == errno.ENODEV:  # the device is missing, or its statistics are
            return {}
        raise
    return dict(zip(_KINDS_OF_ERROR, _DEV_STATS.unpack_from(request)[3:], strict=True))


def _metadata(descriptor: int, unallocated: int) -> tuple[int, int]:
    """How much metadata there can be, and is."""
    request = bytearray(_SPACE_INFO_ARGS.size)
    fcntl.ioctl(descriptor, _SPACE_INFO, request)
    slots = _SPACE_INFO_ARGS.unpack(request)[1] + 8  # a kind of space may be added meanwhile
    request = bytearray(_SPACE_INFO_ARGS.size + slots * _SPACE.size)
    _SPACE_INFO_ARGS.pack_into(request, 0, slots, 0)
    fcntl.ioctl(descriptor, _SPACE_INFO, request)
    found = _SPACE_INFO_ARGS.unpack_from(request)[1]
    total = used = 0
    for number in range(found):
        offset = _SPACE_INFO_ARGS.size + number * _SPACE.size
        flags, size, taken = _SPACE.unpack_from(request, offset)
        if flags & _GLOBAL_RESERVE:
            used += size  # the kernel takes it from the metadata
        elif flags & _METADATA:
            total += size + unallocated // (2 if flags & _MIRRORED else 1)
            used += taken
    return total, used
