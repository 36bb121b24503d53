"""Disks of which a copy can be taken at any moment: what is on them when the power fails.

A disk is an image on an XFS with reflinks, attached as a loop device with direct I/O. Its copy is
one FICLONE (ioctl_ficlonerange(2)) of that file while everything goes on. Why that is the disk at
a power cut:

- With direct I/O, what BTRFS writes goes through no cache of the host. A write is in the file when
  the loop device says that it is done, and not before BTRFS has asked for it. What is in the memory
  of the kernel above, dirty pages and the transaction that is open, is not in the file.
- XFS holds the file's lock exclusively for the whole of a FICLONE, waits for the direct writes that
  are under way first and lets no other begin (xfs_reflink_remap_prep). So each write is in the copy
  as a whole or not at all, and the copy is of one moment, however long it takes.

So a copy is what a disk holds that loses its power at that moment and keeps what it has said to be
written. A disk that also loses what is in a cache of its own, unless it was told to flush, is not
tried: to flush at the right moments is the filesystem's work, not ours.

A copy has the UUID of its original, and the kernel would take one for the other. So none is mounted
before its original is unmounted, nor two copies at once, and the kernel is told to forget each.
"""

import fcntl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.support.command import run
from tests.support.filesystem import make_image, make_loop_node, release_loop_device, unmount
from tests.support.wait import wait_until

FICLONE = 0x40049409
"""From linux/fs.h."""


@contextmanager
def shelf(directory: Path, size: str = "32G") -> Iterator[Path]:
    """A new XFS with reflinks for the images, mounted until the end; sparse."""
    image = directory / "shelf.xfs"
    run("truncate", "--size", size, str(image))
    run("mkfs.xfs", "-q", "-m", "reflink=1", str(image))
    mount_point = directory / "shelf"
    mount_point.mkdir()
    try:
        make_loop_node()
        run("mount", "-o", "loop", str(image), str(mount_point))
        try:
            yield mount_point
        finally:
            unmount(mount_point)
    finally:
        with suppress(AssertionError):
            release_loop_device(image, timeout=5)
        image.unlink()


@dataclass(frozen=True)
class Disk:
    """A BTRFS in an image on the shelf."""

    image: Path

    @classmethod
    def make(cls, image: Path, size: str = "4G") -> "Disk":
        return cls(make_image(image, "btrfs", size))

    def copy(self, image: Path) -> "Disk":
        """The disk as it is at one moment while this runs."""
        with self.image.open("rb") as source, image.open("xb") as target:
            fcntl.ioctl(target.fileno(), FICLONE, source.fileno())
        return Disk(image)

    def problems(self) -> str:
        """What `btrfs check` has to say against it; empty if nothing. Not while it is mounted."""
        checked = subprocess.run(
            ["btrfs", "check", "--readonly", str(self.image)],
            capture_output=True,
            text=True,
            check=False,
        )
        return checked.stdout + checked.stderr if checked.returncode else ""

    @contextmanager
    def attached(self) -> Iterator[str]:
        """Its loop device. What mounts it meanwhile keeps it until the unmount."""
        device = wait_until(self._attach, timeout=60, what="a free loop device")
        try:
            yield device
        finally:
            run("losetup", "--detach", device)  # at once, or when it is unmounted

    def _attach(self) -> str:
        """Attach it; empty if somebody else was faster to take the free device."""
        make_loop_node()
        options = ("--find", "--show", "--direct-io=on")
        with suppress(AssertionError):
            return run("losetup", *options, str(self.image)).strip()
        return ""

    def forget(self, device: str) -> None:
        """Let the kernel forget that it has seen this filesystem there, so that another copy of it
        can be mounted."""
        with suppress(AssertionError):  # it has forgotten it by itself
            run("btrfs", "device", "scan", "--forget", device)

    def remove(self) -> None:
        release_loop_device(self.image)
        self.image.unlink()
