"""A mount namespace of this thread's own, in which what others control leads nowhere.

Each function takes the calling thread, and what it starts from then on, into a new namespace, for
good: unshare(2) works for one thread alone. The calls and flags are those of mount_setattr(2) and
open_tree(2); NOSYMFOLLOW needs Linux 5.14.
"""

import ctypes
import os
import struct
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from buttervolume.system import mounts

_CLONE_NEWNS = 0x00020000
_MS_BIND, _MS_REC, _MS_SLAVE = 1 << 12, 1 << 14, 1 << 19
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_READONLY, _NOSUID, _NODEV, _NOEXEC, _NOSYMFOLLOW = 1, 2, 4, 8, 0x200000
_OPEN_TREE_CLONE, _MOVE_MOUNT_F_EMPTY_PATH = 1, 4
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
"""The numbers of system calls, the same on every architecture (asm-generic/unistd.h)."""
_ATTRIBUTES = struct.Struct("=QQQQ")  # struct mount_attr: set, clear, propagation, user namespace
_PLACE = "/mnt"
"""A directory that every system has (Filesystem Hierarchy Standard); nothing is written in it."""
_PROGRAMS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_FILES = ("/etc/ld.so.cache", "/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/dev/null")


def without_links(directory: Path) -> Path:
    """Show the filesystem of a directory once more, and return where the directory is there: with
    no symbolic link followed, no device opened and no program run, whatever is made in it
    meanwhile. Nothing else can be written. Raises OSError.

    The whole mount is shown, since `btrfs receive` finds a parent by its path from there.
    """
    real = Path(os.path.realpath(directory))
    point = Path(mounts.point_of(real))
    _leave()
    clone = _clone(point)
    _set_attributes("/", _AT_RECURSIVE, _READONLY)
    _move(clone, Path(_PLACE))
    _set_attributes(_PLACE, 0, _NOSUID | _NODEV | _NOEXEC | _NOSYMFOLLOW)
    return Path(_PLACE, real.relative_to(point))


def with_only(directories: Sequence[Path]) -> None:
    """Change the root to one that holds these directories, at their paths, and the programs of the
    system; all of it read-only, and no link of the directories is followed. Raises OSError."""
    _leave()
    clones = [_clone(directory) for directory in directories]
    _check(_libc().mount(b"tmpfs", _path(_PLACE), b"tmpfs", ctypes.c_ulong(0), b"mode=0755"))
    root = Path(_PLACE)
    for name in _PROGRAMS:
        inside = root / name[1:]
        if os.path.islink(name):
            inside.symlink_to(os.readlink(name))
        elif os.path.isdir(name):
            inside.mkdir()
            _bind(Path(name), inside)
    for name in _FILES:
        if os.path.exists(name):
            inside = root / name[1:]
            inside.parent.mkdir(exist_ok=True)
            inside.touch()
            _bind(Path(name), inside)
    for directory, clone in zip(directories, clones, strict=True):
        inside = root / str(directory)[1:]
        inside.mkdir(parents=True)
        _move(clone, inside)
    _set_attributes(_PLACE, _AT_RECURSIVE, _READONLY | _NOSUID)
    for directory in directories:
        _set_attributes(root / str(directory)[1:], 0, _NODEV | _NOEXEC | _NOSYMFOLLOW)
    os.chroot(root)
    os.chdir("/")


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _leave() -> None:
    """Have mounts of this thread's own from now on; what is unmounted elsewhere is still unmounted
    here, too."""
    _check(_libc().unshare(_CLONE_NEWNS))
    _check(_libc().mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_SLAVE), None))


def _clone(path: Path) -> int:
    """A copy of what is mounted at a path and below it: an open file, until it gets its place."""
    return _call(_OPEN_TREE, _AT_FDCWD, _path(path), _OPEN_TREE_CLONE)


def _move(clone: int, target: Path) -> None:
    try:
        _call(_MOVE_MOUNT, clone, b"", _AT_FDCWD, _path(target), _MOVE_MOUNT_F_EMPTY_PATH)
    finally:
        os.close(clone)


def _bind(source: Path, target: Path) -> None:
    flags = ctypes.c_ulong(_MS_BIND)
    _check(_libc().mount(_path(source), _path(target), None, flags, None))


def _set_attributes(path: Path | str, flags: int, attributes: int) -> None:
    wanted = _ATTRIBUTES.pack(attributes, 0, 0, 0)
    _call(_MOUNT_SETATTR, _AT_FDCWD, _path(path), flags, wanted, len(wanted))


def _call(number: int, *arguments: int | bytes) -> int:
    """A system call for which the C library may be too old to have a function."""
    converted = [
        ctypes.c_long(argument) if isinstance(argument, int) else ctypes.c_char_p(argument)
        for argument in arguments
    ]
    result: int = _libc().syscall(ctypes.c_long(number), *converted)
    _check(0 if result >= 0 else result)
    return result


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _path(path: Path | str) -> bytes:
    return os.fsencode(path)
