"""What the kernel tells of mounts, in whatever namespace they are (proc_pid_mountinfo(5))."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class Mount:
    """A line of mountinfo."""

    device: str
    """Major and minor number, the same for all mounts of one BTRFS filesystem."""
    root: str
    """Which directory of the filesystem is mounted."""
    point: str
    """Where, as the process of the line sees it."""


def parse(mountinfo: str) -> list[Mount]:
    """The mounts of a mountinfo file."""
    return [
        Mount(fields[2], _unescape(fields[3]), _unescape(fields[4]))
        for fields in map(str.split, mountinfo.splitlines())
    ]


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def of_directory(path: str, mounts: list[Mount]) -> tuple[str, str] | None:
    """The device of a directory and its place in the filesystem, as seen by who has these mounts;
    of several on one mount point the last counts."""
    wanted = PurePosixPath(path)
    holding = [mount for mount in mounts if wanted.is_relative_to(mount.point)]
    if not holding:
        return None
    longest = max(len(mount.point) for mount in holding)
    mount = [mount for mount in holding if len(mount.point) == longest][-1]
    return mount.device, str(PurePosixPath(mount.root, wanted.relative_to(mount.point)))


def is_mounted(path: Path) -> bool:
    """Whether a directory itself is mounted anywhere, such as in a container.

    Only what the processes that can be seen see counts: a managed plugin has its own PID
    namespace and sees no container.
    """
    place = of_directory(os.path.realpath(path), parse(_read(Path("/proc/self/mountinfo"))))
    return place is not None and any(
        (mount.device, mount.root) == place for text in _all() for mount in parse(text)
    )


def _all() -> Iterator[str]:
    """The mountinfo of every mount namespace that a visible process is in, each once."""
    seen = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            namespace = (process / "ns/mnt").readlink()
            if namespace not in seen:
                yield _read(process / "mountinfo")
                seen.add(namespace)
        except OSError:
            continue  # the process has ended


def _read(path: Path) -> str:
    return path.read_bytes().decode(errors="surrogateescape")
