"""Changes of the directory tree that happen wholly or not at all."""

import ctypes
import errno
import os
import stat
import threading
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


class SharedSync:
    """Brings the names in a directory to the disk; of many that ask at once, all but the first
    wait together for one sync."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # protects the numbers of the syncs, for a moment at a time
        self._turn = threading.Condition()
        self._begun = 0
        self._done = 0
        self._is_running = False

    def sync(self) -> None:
        """Return when the names are on the disk as they are at this moment."""
        with self._turn:
            wanted = self._begun + 1  # the one that runs may have begun too early
            while self._done < wanted:
                if self._is_running:
                    self._turn.wait()
                else:
                    self._run()

    def _run(self) -> None:
        """Sync, while others may come to wait for the next one."""
        self._begun += 1
        number, self._is_running = self._begun, True
        self._turn.release()
        try:
            sync_directory(self._path)
        finally:
            self._turn.acquire()
            self._is_running = False
            self._turn.notify_all()
        self._done = number


def sync_directory(path: Path) -> None:
    """Return when the names in a directory are as they are now on the disk, too."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_gone(path: Path | str) -> bool:
    """Whether nothing has a name. What cannot be looked at is there, as far as anybody knows."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def read(path: Path) -> bytes:
    """What a file holds. OSError if it is none; also if it is a FIFO, whose end never comes."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISFIFO(mode):
            raise OSError(errno.EINVAL, "it is no file, but a FIFO", str(path))
        if stat.S_ISDIR(mode):  # Python's own error names the descriptor only
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def replace(path: Path, content: str) -> None:
    """Give a file a new content; whatever happens, it holds all of the old or all of the new.

    The file keeps owner, permissions and extended attributes; a new one is for its owner alone
    (0600). A link to it stays one. Only one thread at a time may replace a file: a half-written
    one is left under one name at most, and then used again.
    """
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{path.name}.new")
    with suppress(FileNotFoundError):
        temporary.unlink()
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            file.write(content)
            file.flush()
            _take_over(path, descriptor)
            os.fsync(descriptor)
        temporary.replace(path)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise
    sync_directory(path.parent)


def _take_over(path: Path, descriptor: int) -> None:
    """Give an open file the owner, attributes and permissions of another one, if that exists."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return
    os.fchown(descriptor, status.st_uid, status.st_gid)
    for name in os.listxattr(path):
        if name.startswith("btrfs."):  # how the filesystem writes it, not whose it is
            continue
        value = os.getxattr(path, name)
        if _attribute(descriptor, name) != value:
            os.setxattr(descriptor, name, value)
    os.fchmod(descriptor, status.st_mode & 0o7777)  # last: a change of owner takes bits away


def _attribute(descriptor: int, name: str) -> bytes | None:
    try:
        return os.getxattr(descriptor, name)
    except OSError:
        return None
