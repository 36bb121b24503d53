"""Changes of the directory tree that happen wholly or not at all."""

import ctypes
import os
from contextlib import suppress
from functools import cache
from pathlib import Path

# linux/fs.h and renameat2(2)
_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100
RACY = 100_000_000
"""Nanoseconds in which a directory may change again without changing its time: twice the longest
tick of the kernel's clock."""


@cache
def _libc() -> ctypes.CDLL:
    """The C library; made once, since each of these makes classes of its own."""
    return ctypes.CDLL(None, use_errno=True)


def _renameat2(source: Path, target: Path, flags: int) -> None:
    if _libc().renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(source), None, str(target))


def rename_new(source: Path, target: Path) -> None:
    """Rename, but never over something that exists: FileExistsError then."""
    _renameat2(source, target, _RENAME_NOREPLACE)


def exchange(one: Path, other: Path) -> None:
    """Swap two names in one atomic step, so that at no moment either is missing."""
    _renameat2(one, other, _RENAME_EXCHANGE)


def sync_directory(path: Path) -> None:
    """Return when the names in a directory are as they are now on the disk, too."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(path: Path, content: str) -> None:
    """Give a file a new content; whatever happens, it holds all of the old or all of the new.

    The file keeps its permissions, and a new one is for its owner alone. A link to it stays one.
    Only one thread at a time may replace a file: a half-written one is left under one name at most,
    and then used again.
    """
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{path.name}.new")
    try:
        mode = path.stat().st_mode & 0o7777
    except FileNotFoundError:
        mode = 0o600
    with suppress(FileNotFoundError):
        temporary.unlink()
    try:
        with temporary.open("x", encoding="utf-8", errors="surrogateescape", newline="") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise
    sync_directory(path.parent)
