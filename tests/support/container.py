"""What a container can do in its volume: a process that is root there, with the capabilities that
Docker gives by default. CAP_SYS_ADMIN is none of them.

As a program, it runs one of the deeds below. The numbers are those of linux/btrfs.h.
"""

import ctypes
import fcntl
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_CAPABILITIES = (
    "chown", "dac_override", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap",
    "net_bind_service", "net_raw", "sys_chroot", "mknod", "audit_write", "setfcap",
)  # fmt: skip
_SETPRIV = (
    *("setpriv", "--inh-caps", "-all", "--no-new-privs"),
    *("--bounding-set", ",".join(["-all", *(f"+{name}" for name in _CAPABILITIES)]), "--"),
)
_SUBVOL_CREATE = 0x5000940E
_SUBVOL_SETFLAGS = 0x4008941A
_SUBVOL_RDONLY = 1 << 1
_SET_RECEIVED_SUBVOL = 0xC0C89425
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


def run_in_container(deed: str, *arguments: object) -> str:
    """Do one of the deeds below, and return what it printed."""
    done = subprocess.run(command(deed, *arguments), check=True, capture_output=True, text=True)
    return done.stdout.strip()


@contextmanager
def running_in_container(deed: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """One of the deeds that have no end, begun when the block begins, and ended with it."""
    with subprocess.Popen(command(deed, *arguments), stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def command(deed: str, *arguments: object) -> list[str]:
    """The command that does a deed, for where a test runs its commands in another way."""
    return [*_SETPRIV, sys.executable, "-I", "-S", __file__, deed, *map(str, arguments)]


def _say_ready() -> None:
    sys.stdout.write("ready\n")
    sys.stdout.flush()


def _ioctl(directory: str | int, number: int, request: bytes) -> None:
    flags = os.O_RDONLY | os.O_DIRECTORY
    descriptor = os.open(directory, flags) if isinstance(directory, str) else os.dup(directory)
    try:
        fcntl.ioctl(descriptor, number, bytearray(request))
    finally:
        os.close(descriptor)


def nest(directory: str, name: str) -> None:
    """Make a subvolume."""
    _ioctl(directory, _SUBVOL_CREATE, struct.pack("=q", 0) + os.fsencode(name).ljust(4088, b"\0"))


def nest_many(directory: str, count: str, length: str = "8") -> None:
    """Make many subvolumes beside each other, with names of a length."""
    for number in range(int(count)):
        nest(directory, str(number).rjust(int(length), "n"))


def nest_deep(directory: str, depth: str, length: str, kind: str) -> None:
    """Make so many subvolumes, or directories with a subvolume at their end, in each other."""
    os.chdir(directory)
    name = "d" * int(length)
    for _ in range(int(depth)):
        if kind == "subvolumes":
            nest(".", name)
        else:
            os.mkdir(name)
        os.chdir(name)
    if kind != "subvolumes":
        nest(".", "end")


def make_readonly(subvolume: str) -> None:
    """Make an own subvolume read-only."""
    _ioctl(subvolume, _SUBVOL_SETFLAGS, struct.pack("=Q", _SUBVOL_RDONLY))


def receive(subvolume: str, uuid: str) -> None:
    """Pretend that an own subvolume was received from another one."""
    sender = bytes.fromhex(uuid.replace("-", ""))
    _ioctl(subvolume, _SET_RECEIVED_SUBVOL, struct.pack("=16sQ", sender, 1).ljust(200, b"\0"))


def receive_forever(subvolume: str, uuid: str) -> None:
    """Do so again and again."""
    _say_ready()
    while True:
        try:
            receive(subvolume, uuid)
        except OSError:  # it is read-only for a moment
            continue


def add_attributes(path: str, count: str) -> None:
    """Give something so many extended attributes with names of 250 bytes."""
    for number in range(int(count)):
        os.setxattr(path, f"user.{number:0>245}", b"x")


def nest_forever(directory: str) -> None:
    """Make subvolumes as fast as it goes, until the directory is gone."""
    _say_ready()
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    for number in range(1 << 30):
        request = struct.pack("=q", 0) + f"made-{number}".encode().ljust(4088, b"\0")
        try:
            _ioctl(descriptor, _SUBVOL_CREATE, request)
        except FileNotFoundError:
            return
        except OSError:  # read-only for a moment
            continue


def swap_forever(directory: str, target: str, name: str, count: str) -> None:
    """Swap without end a directory in which many subvolumes of one name lie, and one in which
    links lead to a target outside, where something of that name is as well."""
    os.chdir(directory)
    os.mkdir("links")
    for number in range(int(count)):
        os.makedirs(f"real/{number}")
        nest(f"real/{number}", name)
        Path(f"links/{number}").symlink_to(target)
    _say_ready()
    swap = ctypes.CDLL(None).renameat2
    while True:
        swap(_AT_FDCWD, b"real", _AT_FDCWD, b"links", _RENAME_EXCHANGE)


_DEEDS: tuple[Callable[..., None], ...] = (
    nest, nest_many, nest_deep, nest_forever, make_readonly, receive, receive_forever, swap_forever,
    add_attributes,
)  # fmt: skip

if __name__ == "__main__":
    {deed.__name__: deed for deed in _DEEDS}[sys.argv[1]](*sys.argv[2:])
