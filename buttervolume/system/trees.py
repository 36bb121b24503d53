"""Items of BTRFS's trees, as BTRFS_IOC_TREE_SEARCH_V2 finds them (linux/btrfs.h, btrfs_tree.h)."""

import fcntl
import struct
from collections.abc import Iterator

from buttervolume.system.btrfs import ROOT_INODE, Directory

TREE_OF_ROOTS = 1
"""BTRFS_ROOT_TREE_OBJECTID."""
_OWN_TREE = 0
"""That of the subvolume in which the kernel is asked."""
_EVERYTHING = (1 << 64) - 1
_TREE_SEARCH_V2 = 0xC0709411  # BTRFS_IOC_TREE_SEARCH_V2
_SEARCH_KEY = struct.Struct("=7Q4I4QQ")  # btrfs_ioctl_search_key, then the size of the buffer
_SEARCH_BUFFER = 1 << 14
_WALK_BUFFER = 1 << 18
_MANY = (1 << 32) - 1
_LARGEST_ITEM = 500
"""Bytes, header included, of what `Search` looks for: names have 255 at most."""
_ITEM_HEADER = struct.Struct("=QQQII")  # btrfs_ioctl_search_header

_Key = tuple[int, int, int]
"""Number, kind and offset, by which the items of a tree are in order."""
_LAST: _Key = (_EVERYTHING, 255, _EVERYTHING)


def walk(root: Directory, since: int = 0) -> Iterator[tuple[int, int, memoryview]]:
    """The items of a subvolume's tree, from its root's inode on: number, kind and content, each to
    be read before the next one. Only those of leaves that were written in a transaction or later.
    """
    request = bytearray(_SEARCH_KEY.size + _WALK_BUFFER)
    view = memoryview(request)
    number, kind, offset = ROOT_INODE, 0, 0
    while count := _search(root, request, _OWN_TREE, (number, kind, offset), _LAST, since):
        at = _SEARCH_KEY.size
        for _ in range(count):
            _, number, offset, kind, length = _ITEM_HEADER.unpack_from(request, at)
            at += _ITEM_HEADER.size + length
            yield number, kind, view[at - length : at]
        offset += 1
        if offset > _EVERYTHING:
            offset, kind = 0, kind + 1


class Search:
    """Items of one kind that belong to one number, in any tree."""

    def __init__(self, root: Directory) -> None:
        """`root` is on the filesystem."""
        self._root = root
        self._request = bytearray(_SEARCH_KEY.size + _SEARCH_BUFFER)

    def items(
        self, tree: int, number: int, kind: int, lowest: int = 0, highest: int = _EVERYTHING
    ) -> Iterator[tuple[int, bytes]]:
        """The items of one kind that belong to a number, each with its offset, in a range of
        those. One search at a time. FileNotFoundError if there is no such tree."""
        request = self._request
        while lowest <= highest:
            first, last = (number, kind, lowest), (number, kind, highest)
            count = _search(self._root, request, tree, first, last)
            at = _SEARCH_KEY.size
            for _ in range(count):
                _, _, offset, _, length = _ITEM_HEADER.unpack_from(request, at)
                at += _ITEM_HEADER.size + length
                lowest = offset + 1
                yield offset, bytes(request[at - length : at])
            if len(request) - at > _LARGEST_ITEM:  # there would have been room for one more
                return


def _search(
    root: Directory, request: bytearray, tree: int, first: _Key, last: _Key, since: int = 0
) -> int:
    """Let the kernel write the items between two keys into the request, behind the search key, as
    many as have room; how many these are."""
    _SEARCH_KEY.pack_into(
        request, 0, tree, first[0], last[0], first[2], last[2], since, _EVERYTHING,
        first[1], last[1], _MANY, 0, 0, 0, 0, 0, len(request) - _SEARCH_KEY.size,
    )  # fmt: skip
    fcntl.ioctl(root.descriptor, _TREE_SEARCH_V2, request)
    count: int = _SEARCH_KEY.unpack_from(request)[9]
    return count
