"""What belongs to a volume or a snapshot and is kept in extended attributes of its root.

Their names begin with `trusted.`: only who has CAP_SYS_ADMIN in the machine's own user namespace
can read or write them (xattr(7)), and no container has.
"""

import errno
import os
from contextlib import suppress

from buttervolume.system.btrfs import Directory

PREFIX = "trusted.buttervolume."
KEEP = "keep"
"""How long a removed volume is kept, if it says so itself."""
SIZE = "size"
"""How many bytes a volume may hold."""
NAMES = (KEEP, SIZE)
"""All there are. They are asked for one by one: a container may give the root so many attributes of
its own that no list of them is to be had (64 KiB at the most, listxattr(2))."""
_KIND = PREFIX + "kind"
_BACKUP = "backup of "


def read(root: Directory) -> dict[str, str]:
    """All of ours that a root has, without the prefix."""
    found = {}
    for name in NAMES:
        try:
            value = os.getxattr(root.descriptor, PREFIX + name)
        except OSError as error:
            if error.errno != errno.ENODATA:
                raise
        else:
            found[name] = value.decode(errors="replace")
    return found


def write(root: Directory, values: dict[str, str]) -> None:
    """Give a root these and no others of ours."""
    for name in read(root).keys() - values.keys():
        os.removexattr(root.descriptor, PREFIX + name)
    for name, value in values.items():
        os.setxattr(root.descriptor, PREFIX + name, value.encode())


def call_backup(root: Directory, snapshot: str) -> None:
    """Say that the snapshot of that name, which is yet to be taken of this volume, is a backup made
    by a restore. No other snapshot that inherits this will pass for one."""
    os.setxattr(root.descriptor, _KIND, f"{_BACKUP}{snapshot}".encode())


def forget_kind(root: Directory) -> None:
    """Take back what `call_backup` said, if it did."""
    with suppress(OSError):
        os.getxattr(root.descriptor, _KIND)  # to remove nothing would cost a transaction
        os.removexattr(root.descriptor, _KIND)


def is_backup(root: Directory, snapshot: str) -> bool:
    """Whether a snapshot of that name, or the one that it marks as sent, is a backup."""
    try:
        kind = os.getxattr(root.descriptor, _KIND)
    except OSError:  # there is none
        return False
    return f"{snapshot}@".startswith(kind.decode(errors="replace").removeprefix(_BACKUP) + "@")
