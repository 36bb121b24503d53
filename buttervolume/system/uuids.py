"""Which subvolumes a UUID finds, anywhere on a filesystem: the kernel's tree of UUIDs.

Numbers and structures are those of linux/btrfs.h and btrfs_tree.h, the keys those of
fs/btrfs/uuid-tree.c of Linux.
"""

import fcntl
import struct
from pathlib import Path
from uuid import UUID

from buttervolume.system.btrfs import Directory, opened

_TREE_SEARCH = 0xD0009411  # BTRFS_IOC_TREE_SEARCH
_SEARCH_ARGS = struct.Struct("=7Q4I32x3992s")
_ITEM_HEADER = struct.Struct("=3Q2I")
_UUID_TREE = 9  # BTRFS_UUID_TREE_OBJECTID
_SUBVOL, _RECEIVED_SUBVOL = 251, 252  # BTRFS_UUID_KEY_…


def found_by_receive(path: Path, identity: UUID) -> list[int]:
    """The numbers of the subvolumes that `btrfs receive` may take for the parent of that identity:
    it looks by Received UUID first, then by UUID, and takes any (cmds/receive.c in btrfs-progs)."""
    with opened(path) as directory:
        return _trees(directory, identity, _RECEIVED_SUBVOL) or _trees(directory, identity, _SUBVOL)


def _trees(directory: Directory, uuid: UUID, kind: int) -> list[int]:
    low, high = struct.unpack("<QQ", uuid.bytes)
    key = (_UUID_TREE, low, low, high, high, 0, (1 << 64) - 1, kind, kind, 1, 0)
    request = bytearray(_SEARCH_ARGS.pack(*key, b""))
    fcntl.ioctl(directory.descriptor, _TREE_SEARCH, request)
    *_, found, _, answer = _SEARCH_ARGS.unpack(request)
    if not found:
        return []
    size = _ITEM_HEADER.unpack_from(answer)[4]
    start = _ITEM_HEADER.size
    return [number for (number,) in struct.iter_unpack("<Q", answer[start : start + size])]
