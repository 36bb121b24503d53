"""What is kept in extended attributes: of a volume or a snapshot on its root, and of the daemon on
its lock.

Their names begin with `trusted.`: reading or writing them takes CAP_SYS_ADMIN in the machine's own
user namespace (xattr(7)), which no container has.
"""

import errno
import json
import os
from contextlib import suppress
from pathlib import Path

from buttervolume.system.btrfs import Directory

PREFIX = "trusted.buttervolume."
KEEP = "keep"
"""How long a removed volume is kept, if it says so itself."""
SIZE = "size"
"""How many bytes a volume may hold."""
FOLLOW = "follow"
"""The members of a followed volume, and which version of it this is (see `follow.charter`). It
never goes to another volume, but to the snapshots and with them."""
NAMES = (KEEP, SIZE, FOLLOW)
"""All there are. They are asked for one by one: a container may give the root so many of its own
that they cannot be listed (64 KiB at the most, listxattr(2))."""
_KIND = PREFIX + "kind"
_RECORDS = PREFIX + "records"
_BACKUP = "backup of "
_FORK = "fork of "


def set_records(lock: Path | int, directory: str) -> None:
    """Say on the lock of the volumes where its daemon remembers followed ones. OSError."""
    value = _place(directory)
    if _value(lock) != value:
        os.setxattr(lock, _RECORDS, value)


def records(lock: Path) -> str | None:
    """Where the daemon, or the last one, remembers followed volumes; None if none has said so."""
    value = _value(lock)
    return None if value is None else os.fsdecode(value.partition(b"\0")[0])


def are_records(lock: Path, directory: str) -> bool:
    """Whether the daemon, or the last one, has said that it remembers them in this directory."""
    return _value(lock) == _place(directory)


def _place(directory: str) -> bytes:
    """A path, and what is there: the managed plugin and its host see two directories at one path.
    The directory itself may not be there yet, but what it is in is."""
    path = os.path.realpath(directory)
    above, found = os.path.dirname(path), ""
    with suppress(OSError):
        found = f"{os.statvfs(above).f_fsid:x} {os.stat(above).st_ino}"
    return os.fsencode(path) + b"\0" + found.encode()


def _value(lock: Path | int) -> bytes | None:
    try:
        return os.getxattr(lock, _RECORDS)
    except OSError:
        return None


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


def call_fork(root: Directory, snapshot: str) -> None:
    """Say that the snapshot of that name, which is yet to be taken of this volume, is a fork: what
    one host of a followed volume held and the others do not go on with."""
    os.setxattr(root.descriptor, _KIND, f"{_FORK}{snapshot}".encode())


def forget_kind(root: Directory) -> None:
    """Take back what `call_backup` or `call_fork` said, if they did."""
    with suppress(OSError):
        os.getxattr(root.descriptor, _KIND)  # to remove nothing would cost a transaction
        os.removexattr(root.descriptor, _KIND)


def is_backup(root: Directory, snapshot: str) -> bool:
    """Whether a snapshot of that name, or the one that it marks as sent, is a backup."""
    return _is(_BACKUP, root, snapshot)


def is_fork(root: Directory, snapshot: str) -> bool:
    """Whether a snapshot of that name, or the one that it marks as sent, is a fork."""
    return _is(_FORK, root, snapshot)


def is_set_aside(root: Directory, snapshot: str) -> bool:
    """Whether it is one of these, which are never meant by the newest of a volume."""
    return is_backup(root, snapshot) or is_fork(root, snapshot)


def _is(kind: str, root: Directory, snapshot: str) -> bool:
    try:
        said = os.getxattr(root.descriptor, _KIND).decode(errors="replace")
    except OSError:  # there is none
        return False
    return said.startswith(kind) and f"{snapshot}@".startswith(f"{said.removeprefix(kind)}@")


def follows(root: Directory) -> bool:
    """Whether a volume follows its service. OSError if that cannot be found out."""
    try:
        os.getxattr(root.descriptor, PREFIX + FOLLOW)
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
        return False
    return True


def leave_behind(root: Directory) -> None:
    """Let what was copied from a volume that follows its service be a volume of its own."""
    if follows(root):
        os.removexattr(root.descriptor, PREFIX + FOLLOW)


def count_snapshot(root: Directory) -> None:
    """Let a followed volume have the next number, before a snapshot of it is taken, so that no two
    pass for the same version. Raises ValueError, OSError."""
    values = json.loads(os.getxattr(root.descriptor, PREFIX + FOLLOW))
    if not isinstance(values, dict) or not isinstance(values.get("seq"), int):
        raise ValueError("it has no number")
    values["seq"] += 1
    data = json.dumps(values, separators=(",", ":"))
    os.setxattr(root.descriptor, PREFIX + FOLLOW, data.encode())
