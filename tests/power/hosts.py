"""Two hosts whose disks can be taken out, and put in again as they were at some moment."""

import fcntl
import os
import struct
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from tests.btrfs.harness import Client
from tests.hosts.harness import SNAPSHOTS, VOLUMES, Host
from tests.power.disks import Disk
from tests.support.machine import DATA
from tests.support.network import Network
from tests.support.wait import wait_until

ENVIRONMENT = {"BUTTERVOLUME_SCHEDULE": f"{DATA}/config/schedule.csv", "BUTTERVOLUME_TIMER": "1"}
"""The schedule and all that is remembered of it are on the disk, too."""
SPARED = (".buttervolume-lock", ".buttervolume-removed")
"""What the daemon keeps among the volumes for itself."""

SUBVOL_GETFLAGS = 0x80089419
SUBVOL_RDONLY = 2
"""From linux/btrfs.h."""


class PowerHost(Host):
    """A host whose data is on a disk that somebody puts in. Nothing runs but an sshd until then."""

    def __init__(self, name: str, directory: Path, network: Network) -> None:
        super().__init__(name, directory, network)
        self._device = ""
        self._disk: Disk | None = None

    def mount_image(self, mount_point: str, kind: str, size: str) -> None:
        """Nothing: the disk is put in later."""

    def put_in(self, disk: Disk) -> None:
        """Mount a disk."""
        with disk.attached() as device:
            self.run("mkdir", "--parents", DATA)
            self.run("mount", device, DATA)
            self._disk, self._device = disk, device

    def take_out(self) -> None:
        """Unmount the disk, whatever still runs on it."""
        if self._disk is None:
            return
        self.kill_transfers()
        wait_until(self._unmount, timeout=60, what=f"{DATA} of {self.name} to be free")
        self._disk.forget(self._device)
        self._disk = None

    def _unmount(self) -> bool:
        return self.run("umount", DATA, check=False).returncode == 0

    def switch_on(self, disk: Disk, environ: Mapping[str, str] | None = None) -> None:
        """Put in a disk and start the daemon on it."""
        self.put_in(disk)
        self.run("mkdir", "--parents", VOLUMES, SNAPSHOTS, f"{DATA}/config")
        self.daemon = self.start_daemon(**ENVIRONMENT | dict(environ or {}))
        self.api = Client(self.path("/run/docker/plugins/btrfs.sock"))

    def switch_off(self) -> str:
        """End the daemon, take out the disk, and return what the daemon logged."""
        assert self.daemon.stop() == 0, self.daemon.log()
        self.take_out()
        return self.daemon.log()

    def wait_for_arrival(self, timeout: float) -> None:
        """Return right after a new snapshot was made read-only, as the last step of a receive, or
        when the time is over."""
        path = self.path(SNAPSHOTS)
        before = set(path.iterdir())
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            for copy in set(path.iterdir()) - before:
                with suppress(OSError):
                    if not copy.name.startswith(".") and _is_readonly(copy):
                        return
            time.sleep(0.001)

    def leftovers(self) -> list[str]:
        """What of the daemon's own is still among the volumes."""
        return [
            path.name
            for path in self.path(VOLUMES).iterdir()
            if path.name.startswith(".buttervolume-") and path.name not in SPARED
        ]


def _is_readonly(subvolume: Path) -> bool:
    descriptor = os.open(subvolume, os.O_RDONLY | os.O_DIRECTORY)
    try:
        (flags,) = struct.unpack("=Q", fcntl.ioctl(descriptor, SUBVOL_GETFLAGS, bytes(8)))
    finally:
        os.close(descriptor)
    return bool(flags & SUBVOL_RDONLY)
