"""BTRFS quota groups: limits of subvolumes. The ioctls and items are those of linux/btrfs.h and
btrfs_tree.h; whether groups are of the simple or of the old kind makes no difference here."""

import errno
import fcntl
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from buttervolume.system.btrfs import Directory
from buttervolume.system.trees import TREE_OF_ROOTS, Search

_QGROUP_LIMIT = 0x8030942B  # BTRFS_IOC_QGROUP_LIMIT
_QGROUP_CREATE = 0x4010942A  # BTRFS_IOC_QGROUP_CREATE, which destroys as well
_QUOTA_TREE = 8  # BTRFS_QUOTA_TREE_OBJECTID
_QGROUP_STATUS = 240  # BTRFS_QGROUP_STATUS_KEY
_QGROUP_INFO = 242  # BTRFS_QGROUP_INFO_KEY
_QGROUP_LIMIT_ITEM = 244  # BTRFS_QGROUP_LIMIT_KEY
_ROOT_ITEM = 132  # BTRFS_ROOT_ITEM_KEY
_MAX_REFERENCED = 1 << 0  # BTRFS_QGROUP_LIMIT_MAX_RFER
_MAX_EXCLUSIVE = 1 << 1  # BTRFS_QGROUP_LIMIT_MAX_EXCL
_NONE = (1 << 64) - 1  # takes a limit away (btrfs_limit_qgroup in fs/btrfs/qgroup.c)
_LIMIT = struct.Struct("=6Q")
_LIMITS = struct.Struct("=5Q")  # btrfs_qgroup_limit_item
_INFO = struct.Struct("=5Q")
_LEVEL = 48
"""The bits of a group's number above these are its level; on level 0, the others are a tree's."""


def are_on(directory: Directory) -> bool:
    """Whether the filesystem of a directory has quota groups."""
    try:
        return any(Search(directory).items(_QUOTA_TREE, 0, _QGROUP_STATUS))
    except FileNotFoundError:  # there is no such tree
        return False


def set_limit(root: Directory, size: int | None) -> None:
    """Let a subvolume refer to so many bytes at the most; None for as many as there are. OSError if
    quotas are off."""
    size = _NONE if size is None else size
    request = _LIMIT.pack(root.info().tree, _MAX_REFERENCED, size, 0, 0, 0)
    fcntl.ioctl(root.descriptor, _QGROUP_LIMIT, request)


@contextmanager
def unlimited(root: Directory) -> Iterator[None]:
    """Let a subvolume have no limit of its own for a while. One that is full takes not even an
    attribute, nor does a snapshot of it: that inherits the limit."""
    tree = root.info().tree
    try:
        found = Search(root).items(_QUOTA_TREE, 0, _QGROUP_LIMIT_ITEM, tree, tree)
        items = [item for number, item in found if number == tree]
    except FileNotFoundError:  # quotas are off
        items = []
    limits = [_LIMITS.unpack_from(item) for item in items]
    limits = [each for each in limits if each[0] & (_MAX_REFERENCED | _MAX_EXCLUSIVE)]
    for flags, *_ in limits:
        nothing = _LIMIT.pack(tree, flags, _NONE, _NONE, _NONE, _NONE)
        fcntl.ioctl(root.descriptor, _QGROUP_LIMIT, nothing)
    try:
        yield
    finally:
        for each in limits:
            fcntl.ioctl(root.descriptor, _QGROUP_LIMIT, _LIMIT.pack(tree, *each))


def referenced(root: Directory) -> int | None:
    """How many bytes a subvolume refers to, if its filesystem counts that."""
    counted = count(root)
    return None if counted is None else counted[0]


def count(root: Directory) -> tuple[int, int] | None:
    """How many bytes a subvolume refers to, and how many of them nothing else does, if its
    filesystem counts that."""
    tree = root.info().tree
    try:
        for number, item in Search(root).items(_QUOTA_TREE, 0, _QGROUP_INFO, tree, tree):
            if number == tree:
                _, counted, _, exclusive, _ = _INFO.unpack_from(item)
                return counted, exclusive
    except FileNotFoundError:
        pass
    return None


def clear_stale(directory: Directory) -> int:
    """Destroy the groups of subvolumes that are gone, as kernels before 6.11 leave them, and return
    how many these were. What the kernel is still deleting comes later."""
    search, destroyed = Search(directory), 0
    try:
        groups = [number for number, _ in search.items(_QUOTA_TREE, 0, _QGROUP_INFO)]
    except FileNotFoundError:
        return 0
    for group in groups:
        is_of_subvolume = group >> _LEVEL == 0 and group >= 256
        if is_of_subvolume and not any(search.items(TREE_OF_ROOTS, group, _ROOT_ITEM)):
            try:
                fcntl.ioctl(directory.descriptor, _QGROUP_CREATE, struct.pack("=QQ", 0, group))
                destroyed += 1
            except OSError as error:
                if error.errno not in (errno.EBUSY, errno.ENOENT):
                    raise
    return destroyed
