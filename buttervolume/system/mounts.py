"""What the kernel tells of mounts, in whatever namespace they are (proc_pid_mountinfo(5)).

Its lines end at a newline and its fields at a blank; those two, the tab and the backslash are the
only bytes that it escapes, so that everything else that a path can hold is read as it is.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_CONTAINER = re.compile(rb"[/-]([0-9a-f]{64})(?:\.scope)?$", re.MULTILINE)
"""A container's id at the end of its control group, whichever driver of Docker's made that."""

_CHUNK = 1 << 16
"""Bytes that are read at a time."""


@dataclass(frozen=True)
class Mount:
    """A line of mountinfo."""

    device: str
    """Major and minor number, the same for all mounts of one BTRFS filesystem."""
    root: str
    """Which directory of the filesystem is mounted."""
    point: str
    """Where, as the process of the line sees it."""


@dataclass(frozen=True)
class User:
    """A process with a directory, or something below it, mounted for itself."""

    pid: int
    command: str
    container: str | None
    """The id of the container that it runs in, if it is one of Docker's."""
    point: str
    """Where, as the process sees it."""

    def __str__(self) -> str:
        process = f"process {self.pid} ({self.command}), at {self.point}"
        return f"container {self.container[:12]}: {process}" if self.container else process


def parse(mountinfo: bytes) -> list[Mount]:
    """The mounts of a mountinfo file; a line that is not understood is left out."""
    lines = (line.split(b" ") for line in mountinfo.split(b"\n"))
    return [
        Mount(_text(fields[2]), _text(fields[3]), _text(fields[4]))
        for fields in lines
        if len(fields) > 4
    ]


def _text(field: bytes) -> str:
    if b"\\" in field:
        field = re.sub(rb"\\([0-3][0-7]{2})", lambda match: bytes([int(match[1], 8)]), field)
    return os.fsdecode(field)


def of_directory(path: str, mounts: list[Mount]) -> tuple[str, str] | None:
    """The device of a directory and its place in the filesystem, as seen by a process with these
    mounts; of several on one mount point the last counts."""
    wanted = PurePosixPath(path)
    holding = [mount for mount in mounts if wanted.is_relative_to(mount.point)]
    if not holding:
        return None
    longest = max(len(mount.point) for mount in holding)
    mount = [mount for mount in holding if len(mount.point) == longest][-1]
    return mount.device, str(PurePosixPath(mount.root, wanted.relative_to(mount.point)))


def point_of(path: Path) -> str:
    """Where the mount is mounted that shows this path, which has no links in it. Raises OSError."""
    wanted = PurePosixPath(path)
    points = [mount.point for mount in parse(_read("/proc/self/mountinfo"))]
    return max((point for point in points if wanted.is_relative_to(point)), key=len)


def options_of(path: Path) -> list[str]:
    """The options of the mount that shows this path, which has no links in it. Raises OSError."""
    point = point_of(path)
    found: list[str] = []
    for line in _read("/proc/self/mountinfo").split(b"\n"):
        fields = line.split(b" ")
        if len(fields) > 6 and _text(fields[4]) == point:
            found = [*_text(fields[5]).split(","), *_text(fields[-1]).split(",")]
    return found


def users(path: Path) -> list[User]:
    """Who has a directory, or anything below it, mounted, such as a container: one process for
    each mount namespace.

    Only what the processes that can be seen see counts: a daemon in a PID namespace of its own
    sees no container. (The managed plugin shares the host's.)
    """
    place = of_directory(os.path.realpath(path), parse(_read("/proc/self/mountinfo")))
    if place is None:
        return []
    return [
        _user(process, point)
        for process, mountinfo in _all()
        if (point := _shown(mountinfo, *place)) is not None
    ]


def users_below(path: Path) -> Counter[str]:
    """How many mount namespaces have each entry of a directory, or anything below it, mounted; of
    all entries in one go. The same as for `users` counts."""
    counts: Counter[str] = Counter()
    place = of_directory(os.path.realpath(path), parse(_read("/proc/self/mountinfo")))
    if place is None:
        return counts
    device, directory = place
    below = directory.rstrip("/") + "/"
    for _, mountinfo in _all():
        counts.update(
            {
                mount.root.removeprefix(below).partition("/")[0]
                for mount in parse(mountinfo)
                if mount.device == device and mount.root.startswith(below)
            }
        )
    return counts


def swap_files() -> list[Path]:
    """The files and devices that the kernel swaps to, as proc_swaps(5) shows them."""
    lines = _read("/proc/swaps").split(b"\n")[1:]
    return [Path(_text(line.split(b" ")[0].split(b"\t")[0])) for line in lines if line]


def _shown(mountinfo: bytes, device: str, directory: str) -> str | None:
    """Where a directory of a device, or something below it, is mounted, if it is."""
    below = directory.rstrip("/") + "/"
    on_device = f" {device} ".encode()
    lines = (line for line in mountinfo.split(b"\n") if on_device in line)
    for mount in parse(b"\n".join(lines)):
        if mount.device == device and f"{mount.root}/".startswith(below):
            return mount.point
    return None


def _all() -> Iterator[tuple[str, bytes]]:
    """The mountinfo of every mount namespace that a visible process is in, each once, and the
    process.

    Which namespace a process is in may be hidden without CAP_SYS_PTRACE, which the managed plugin
    lacks; its mountinfo never is. The id of its first mount is in no other namespace.
    """
    seen: set[str | bytes] = set()
    proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    try:
        with os.scandir(proc) as processes:
            names = [entry.name for entry in processes if entry.name.isdigit()]
        for process in names:
            try:
                namespace = _namespace(proc, process)
                if namespace in seen:
                    continue
                with open(f"/proc/{process}/mountinfo", "rb", buffering=0) as file:
                    first = file.read(_FIRST_MOUNT)
                    if first not in seen:
                        yield process, first + file.read()
                    seen.update((first, namespace) if namespace else (first,))
            except OSError:
                continue  # the process has ended
    finally:
        os.close(proc)


_FIRST_MOUNT = 64
"""Bytes of a mountinfo that begin with the id of its first mount, and are read in no time."""


def _namespace(proc: int, process: str) -> str | None:
    """A name of the mount namespace that a process is in, by an open /proc; None if that is hidden
    from us."""
    try:
        return os.readlink(f"{process}/ns/mnt", dir_fd=proc)
    except PermissionError:
        return None


def _user(process: str, point: str) -> User:
    try:
        command = os.fsdecode(_read(f"/proc/{process}/comm").removesuffix(b"\n"))
        found = _CONTAINER.search(_read(f"/proc/{process}/cgroup"))
    except OSError:
        command, found = "which has ended", None
    return User(int(process), command, found[1].decode() if found else None, point)


def _read(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return b"".join(iter(lambda: os.read(descriptor, _CHUNK), b""))
    finally:
        os.close(descriptor)
