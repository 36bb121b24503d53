"""What has changed in a subvolume since a transaction, as its tree says (btrfs_tree.h)."""

import fcntl
import os
import struct

from buttervolume.system.btrfs import ROOT_INODE, Directory
from buttervolume.system.trees import EVERYTHING, Search

_TREE_SEARCH_V2 = 0xC0709411  # BTRFS_IOC_TREE_SEARCH_V2
_SEARCH_KEY = struct.Struct("=7Q4I4QQ")
_ITEM_HEADER = struct.Struct("=QQQII")
_BUFFER = 1 << 18
_MANY = (1 << 32) - 1
_INODE_ITEM = 1
_INODE_SIZE = 160
"""Of a btrfs_inode_item, whose parts that an access changes are left out: transaction, sequence,
time of access; the time of change of a root, too, since attributes of ours change that."""
_OWN = "trusted.buttervolume."


def is_changed(root: Directory, since: int, before: Directory) -> bool:
    """Whether there is more in a subvolume than in the snapshot `before`, which shows it as it was
    in a transaction: files read since then are no change. Only what is on the disk counts.

    Whatever changes in a directory tree changes an inode: its times, if nothing else. OSError.
    """
    own, other = root.info().tree, before.info().tree
    reference = Search(before)
    for number, item in _inodes_since(root, own, since + 1):
        old = next((data for _, data in reference.items(other, number, _INODE_ITEM, 0, 0)), None)
        if old is None or _lasting(number, old) != _lasting(number, item):
            return True
    return _attributes(root) != _attributes(before)


def _inodes_since(root: Directory, tree: int, transaction: int) -> list[tuple[int, bytes]]:
    """The inodes in all leaves of a tree that were written in a transaction or later."""
    found: list[tuple[int, bytes]] = []
    request = bytearray(_SEARCH_KEY.size + _BUFFER)
    start = (ROOT_INODE, 0, 0)
    while True:
        _SEARCH_KEY.pack_into(
            request, 0, tree, start[0], EVERYTHING, start[2], EVERYTHING, transaction, EVERYTHING,
            start[1], 255, _MANY, 0, 0, 0, 0, 0, _BUFFER,
        )  # fmt: skip
        fcntl.ioctl(root.descriptor, _TREE_SEARCH_V2, request)
        count = _SEARCH_KEY.unpack_from(request)[9]
        if not count:
            return found
        at = _SEARCH_KEY.size
        for _ in range(count):
            _, number, offset, kind, length = _ITEM_HEADER.unpack_from(request, at)
            at += _ITEM_HEADER.size + length
            start = (number, kind, offset)
            if kind == _INODE_ITEM and length >= _INODE_SIZE:
                found.append((number, bytes(request[at - length : at])))
        number, kind, offset = start
        start = (number, kind, offset + 1) if offset < EVERYTHING else (number, kind + 1, 0)


def _lasting(number: int, item: bytes) -> bytes:
    changed = 136 if number == ROOT_INODE else 124
    return item[:8] + item[16:72] + item[80:112] + item[changed:_INODE_SIZE]


def _attributes(root: Directory) -> dict[str, bytes]:
    """The attributes of a root that are not ours."""
    names = [name for name in os.listxattr(root.descriptor) if not name.startswith(_OWN)]
    return {name: os.getxattr(root.descriptor, name) for name in names}
