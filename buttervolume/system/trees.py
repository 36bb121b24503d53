"""Items of BTRFS's trees, as BTRFS_IOC_TREE_SEARCH_V2 finds them (linux/btrfs.h, btrfs_tree.h)."""

import fcntl
import struct
from collections.abc import Iterator

from buttervolume.system.btrfs import Directory

TREE_OF_ROOTS = 1
"""BTRFS_ROOT_TREE_OBJECTID."""
EVERYTHING = (1 << 64) - 1
_TREE_SEARCH_V2 = 0xC0709411  # BTRFS_IOC_TREE_SEARCH_V2
_SEARCH_KEY = struct.Struct("=7Q4I4QQ")  # btrfs_ioctl_search_key, then the size of the buffer
_SEARCH_BUFFER = 1 << 14
_MANY = (1 << 32) - 1
_LARGEST_ITEM = 500
"""Bytes, header included, of what is searched for here: names have 255 at most."""
_ITEM_HEADER = struct.Struct("=QQQII")  # btrfs_ioctl_search_header


class Search:
    """Items of BTRFS's trees."""

    def __init__(self, root: Directory) -> None:
        """`root` is on the filesystem."""
        self._root = root
        self._request = bytearray(_SEARCH_KEY.size + _SEARCH_BUFFER)

    def items(
        self, tree: int, number: int, kind: int, lowest: int = 0, highest: int = EVERYTHING
    ) -> Iterator[tuple[int, bytes]]:
        """The items of one kind that belong to a number, each with its offset, in a range of
        those. One search at a time. FileNotFoundError if there is no such tree."""
        request = self._request
        while lowest <= highest:
            _SEARCH_KEY.pack_into(
                request, 0, tree, number, number, lowest, highest, 0, EVERYTHING,
                kind, kind, _MANY, 0, 0, 0, 0, 0, _SEARCH_BUFFER,
            )  # fmt: skip
            fcntl.ioctl(self._root.descriptor, _TREE_SEARCH_V2, request)
            count = _SEARCH_KEY.unpack_from(request)[9]
            at = _SEARCH_KEY.size
            for _ in range(count):
                _, _, offset, _, length = _ITEM_HEADER.unpack_from(request, at)
                at += _ITEM_HEADER.size + length
                lowest = offset + 1
                yield offset, bytes(request[at - length : at])
            if len(request) - at > _LARGEST_ITEM:  # there would have been room for one more
                return
