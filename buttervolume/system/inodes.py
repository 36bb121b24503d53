"""What has changed in a subvolume since a transaction, as its tree says (btrfs_tree.h)."""

import os

from buttervolume.system.btrfs import ROOT_INODE, Directory
from buttervolume.system.trees import Search, walk

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
    tree = before.info().tree
    reference = Search(before)
    for number, kind, found in walk(root, since + 1):
        if kind != _INODE_ITEM or len(found) < _INODE_SIZE:
            continue
        old = next((data for _, data in reference.items(tree, number, _INODE_ITEM, 0, 0)), None)
        if old is None or _lasting(number, old) != _lasting(number, bytes(found)):
            return True
    return _attributes(root) != _attributes(before)


def _lasting(number: int, item: bytes) -> bytes:
    changed = 136 if number == ROOT_INODE else 124
    return item[:8] + item[16:72] + item[80:112] + item[changed:_INODE_SIZE]


def _attributes(root: Directory) -> dict[str, bytes]:
    """The attributes of a root that are not ours."""
    names = [name for name in os.listxattr(root.descriptor) if not name.startswith(_OWN)]
    return {name: os.getxattr(root.descriptor, name) for name in names}
