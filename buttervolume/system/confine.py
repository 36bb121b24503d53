"""A program in a mount namespace in which it can write one directory only.

Run as a program of its own, it makes the namespace and becomes the program: whatever links and
directories are swapped meanwhile in what it works on, nothing else can be written, and there are
neither devices nor set-user-ID programs in it.
"""

import ctypes
import os
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

_CLONE_NEWNS = 0x00020000
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_AT_RECURSIVE = 0x8000
_MOUNT_SETATTR = 442  # the same number on every architecture (linux/unistd.h)
_READONLY, _NOSUID, _NODEV, _NOATIME, _ATIME = 1, 2, 4, 0x10, 0x70
_ATTRIBUTES = struct.Struct("=QQQQ")  # struct mount_attr: set, clear, propagation, user namespace
CANNOT = 125
"""The exit status when the namespace cannot be made, as that of env(1) and others."""


def argv(directory: Path, program: Sequence[str]) -> list[str]:
    """The command that runs a program so."""
    return [sys.executable, "-I", "-S", __file__, str(directory), *program]


def main(directory: str, *program: str) -> None:
    """Become the program."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        _check(libc.unshare(_CLONE_NEWNS))
        _mount(libc, "none", "/", _MS_REC | _MS_PRIVATE)
        _mount(libc, directory, directory, _MS_BIND)
        _set_attributes(libc, "/", _AT_RECURSIVE, on=_READONLY)
        marks = _NOSUID | _NODEV | _NOATIME  # to read files is no change of the volume
        _set_attributes(libc, directory, 0, on=marks, off=_READONLY | _ATIME)
        os.chdir("/")
    except OSError as error:
        print(f"cannot confine {program[0]}: {error.strerror}", file=sys.stderr)  # noqa: T201
        sys.exit(CANNOT)
    os.execvp(program[0], program)  # noqa: S606 - no shell is wanted


def _mount(libc: ctypes.CDLL, source: str, target: str, flags: int) -> None:
    none = ctypes.c_char_p(None)
    _check(libc.mount(os.fsencode(source), os.fsencode(target), none, ctypes.c_ulong(flags), none))


def _set_attributes(libc: ctypes.CDLL, path: str, flags: int, *, on: int = 0, off: int = 0) -> None:
    """mount_setattr(2), which needs Linux 5.12."""
    attributes = _ATTRIBUTES.pack(on, off, 0, 0)
    _check(
        libc.syscall(
            _MOUNT_SETATTR,
            -100,
            ctypes.c_char_p(os.fsencode(path)),
            ctypes.c_uint(flags),
            ctypes.c_char_p(attributes),
            ctypes.c_size_t(len(attributes)),
        )
    )


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    main(*sys.argv[1:])
