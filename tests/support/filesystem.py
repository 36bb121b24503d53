"""Filesystems in image files: what a test does to them, it does to nobody's disk."""

import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.command import run
from tests.support.wait import wait_until

LOOP_MAJOR = 7
LOOP_CTL_GET_FREE = 0x4C82
"""From linux/loop.h: the number of a loop device that is free, made if there is none."""


@contextmanager
def loop_btrfs(directory: Path, size: str = "1G") -> Iterator[Path]:
    """A new BTRFS mounted on `directory/mnt`, unmounted afterwards with all that is below it."""
    image = make_image(directory / "btrfs.img", "btrfs", size)
    mount_point = directory / "mnt"
    mount_point.mkdir(exist_ok=True)
    try:
        make_loop_node()
        run("mount", "-o", "loop", str(image), str(mount_point))
        try:
            yield mount_point
        finally:
            unmount(mount_point)
    finally:
        with suppress(AssertionError):  # a machine made meanwhile has the mount too, till its end
            release_loop_device(image, timeout=2)
        image.unlink()


@contextmanager
def failing_btrfs(directory: Path) -> Iterator[tuple[Path, Callable[[], None]]]:
    """A new BTRFS whose disk takes nothing more from the moment on that what is yielded second is
    called: it lies in a memory that is then full. BTRFS then makes itself read-only."""
    memory = directory / "memory"
    memory.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=128M", "memory", str(memory))

    def fail() -> None:
        piece = 1 << 20
        with (memory / "filler").open("wb", buffering=0) as filler:
            while piece >= 4096:
                try:
                    filler.write(bytes(piece))
                except OSError:
                    piece //= 2

    try:
        with loop_btrfs(memory) as mount_point:
            yield mount_point, fail
    finally:
        unmount(memory)


def make_image(image: Path, kind: str, size: str) -> Path:
    """Make a sparse file with an empty filesystem of that kind (btrfs, ext4) in it."""
    run("truncate", "--size", size, str(image))
    run(f"mkfs.{kind}", "-q", str(image))
    return image


def make_loop_node() -> None:
    """See that the next free loop device has its node: a container's /dev often lacks it. So that
    several mounts may come at a time, those behind it get theirs, too.

    `mount -o loop` asks the kernel for a device, as many as it takes, but makes no node itself.
    """
    with Path("/dev/loop-control").open() as control:
        free = fcntl.ioctl(control, LOOP_CTL_GET_FREE)
    for number in range(free, free + 8):
        with suppress(FileExistsError):
            os.mknod(f"/dev/loop{number}", 0o660 | stat.S_IFBLK, os.makedev(LOOP_MAJOR, number))


def unmount(mount_point: Path) -> None:
    """Unmount it and whatever is mounted below it; what is busy goes when it is last used."""
    try:
        run("umount", "--recursive", str(mount_point))
    except AssertionError:
        run("umount", "--recursive", "--lazy", str(mount_point))


def release_loop_device(image: Path, timeout: float = 10) -> None:
    """Wait until no loop device holds the image: the kernel lets go a moment after the unmount."""
    wait_until(lambda: not loop_devices(image), timeout, f"the loop device of {image} to be free")


def loop_devices(image: Path) -> list[str]:
    """The loop devices that hold this image, which may have been removed since."""
    return [
        f"/dev/{backing_file.parts[3]}"
        for backing_file in Path("/sys/block").glob("loop*/loop/backing_file")
        if _read(backing_file).removesuffix(" (deleted)") == str(image)
    ]


def _read(backing_file: Path) -> str:
    try:
        return backing_file.read_text().strip()
    except OSError:  # it was detached since it was listed
        return ""
