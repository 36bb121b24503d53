"""What has changed in a directory, as inotify(7) tells it."""

import ctypes
import os
import struct
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

# sys/inotify.h
_IN_CLOEXEC = os.O_CLOEXEC
_IN_NONBLOCK = os.O_NONBLOCK
_IN_MOVED_FROM = 0x40
_IN_MOVED_TO = 0x80
_IN_CREATE = 0x100
_IN_DELETE = 0x200
_IN_DELETE_SELF = 0x400
_IN_MOVE_SELF = 0x800
_IN_ONLYDIR = 0x01000000
_NAMED = _IN_MOVED_FROM | _IN_MOVED_TO | _IN_CREATE | _IN_DELETE
"""Events that name an entry of the directory; each other one is about the directory itself, or says
that some were lost."""

_EVENT = struct.Struct("=iIII")
_BUFFER = 1 << 16


class Watch:
    """Notes which entries of a directory come, go and get other names."""

    def __init__(self, path: Path) -> None:
        """Raises OSError if the kernel gives no more watches (see inotify(7))."""
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(_IN_CLOEXEC | _IN_NONBLOCK)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
        self._close = weakref.finalize(self, os.close, self._descriptor)
        mask = _NAMED | _IN_DELETE_SELF | _IN_MOVE_SELF | _IN_ONLYDIR
        if libc.inotify_add_watch(self._descriptor, os.fsencode(path), mask) < 0:
            number = ctypes.get_errno()
            self.close()
            raise OSError(number, os.strerror(number), str(path))

    def changes(self) -> set[str] | None:
        """The names that something has happened to since the last call; None if that is not known
        of all, or not known any more."""
        changed = set[str]()
        with suppress(BlockingIOError):  # there is no more
            while True:
                for mask, name in _events(os.read(self._descriptor, _BUFFER)):
                    if not mask & _NAMED:
                        return None
                    changed.add(name)
        return changed

    def close(self) -> None:
        """Watch no more; the same happens when this object is no longer used."""
        self._close()


def _events(data: bytes) -> Iterator[tuple[int, str]]:
    """The mask and the name of each event in what was read."""
    at = 0
    while at < len(data):
        _, mask, _, length = _EVENT.unpack_from(data, at)
        at += _EVENT.size + length
        yield mask, os.fsdecode(data[at - length : at].rstrip(b"\0"))
