"""The same operations, done by a daemon and by bare commands. All times are in seconds."""

from itertools import count
from typing import Protocol

from tests.benchmarks.host import SNAPSHOTS, VOLUMES, Host, Runner
from tests.support.machine import DATA

BARE_VOLUMES = f"{DATA}/bare/volumes"
BARE_SNAPSHOTS = f"{DATA}/bare/snapshots"
BARE_REMOVED = f"{DATA}/bare/removed"


class Subject(Protocol):
    """Who does an operation. Each returns the time it took."""

    def create(self, volume: str) -> float:
        """Make an empty volume."""

    def remove(self, volume: str) -> float:
        """Remove it, so that it can be had back for a while."""

    def snapshot(self, volume: str) -> tuple[float, str]:
        """Snapshot it; the snapshot's name is returned, too."""

    def clone(self, volume: str, target: str) -> float:
        """Make a volume with its content."""

    def restore(self, snapshot: str) -> tuple[float, str]:
        """Give its volume the content of a snapshot; the backup's name is returned, too."""

    def remove_snapshot(self, snapshot: str) -> float:
        """Remove a snapshot."""


class Api:
    """A daemon, over its socket."""

    def __init__(self, host: Host) -> None:
        self._api = host.api

    def create(self, volume: str, **options: str) -> float:
        """`VolumeDriver.Create`, with what Docker sends when no options are given."""
        return self._api.timed("VolumeDriver.Create", Name=volume, Opts=options or None)

    def create_with(self, volume: str, **options: str) -> float:
        """`VolumeDriver.Create` with options."""
        return self._api.timed("VolumeDriver.Create", Name=volume, Opts=options)

    def remove(self, volume: str) -> float:
        """`VolumeDriver.Remove`."""
        return self._api.timed("VolumeDriver.Remove", Name=volume)

    def undelete(self, volume: str) -> float:
        """`VolumeDriver.Volume.Undelete`, after a `VolumeDriver.Remove` that is not timed."""
        self.remove(volume)
        return self._api.timed("VolumeDriver.Volume.Undelete", Name=volume)

    def snapshot(self, volume: str) -> tuple[float, str]:
        """`VolumeDriver.Snapshot`."""
        seconds, answer = self._api.timed_call("VolumeDriver.Snapshot", Name=volume)
        return seconds, answer["Snapshot"]

    def clone(self, volume: str, target: str) -> float:
        """`VolumeDriver.Clone`."""
        return self._api.timed("VolumeDriver.Clone", Name=volume, Target=target)

    def restore(self, snapshot: str) -> tuple[float, str]:
        """`VolumeDriver.Snapshot.Restore`."""
        seconds, answer = self._api.timed_call("VolumeDriver.Snapshot.Restore", Name=snapshot)
        return seconds, answer["VolumeBackup"]

    def remove_snapshot(self, snapshot: str) -> float:
        """`VolumeDriver.Snapshot.Remove`."""
        return self._api.timed("VolumeDriver.Snapshot.Remove", Name=snapshot)


class Bare:
    """The `btrfs` command, as an administrator would use it whose work is to survive a power cut,
    and who gives a volume its name when it is whole, and takes that away first: after what does
    not sync by itself, as a snapshot does, the directory is synced."""

    def __init__(self, runner: Runner, volumes: str, snapshots: str) -> None:
        self._runner, self._volumes, self._snapshots = runner, volumes, snapshots
        self._numbers = count()

    def create(self, volume: str) -> float:
        """One command, and a sync."""
        return self._btrfs("create", f"{self._volumes}/{volume}", sync=self._volumes)

    def create_furnished(self, volume: str, size: str) -> float:
        """Two commands, and a sync."""
        path = f"{self._volumes}/{volume}"
        limit = ["btrfs", "qgroup", "limit", size, path]
        return self._runner.time(["btrfs", "subvolume", "create", path], limit, sync=self._volumes)

    def remove(self, volume: str) -> float:
        """No command: a rename, after which it can be had back, and a sync."""
        kept = f"{BARE_REMOVED}/{volume}@{next(self._numbers)}"
        rename = (f"{self._volumes}/{volume}", kept)
        return self._runner.time(rename=rename, sync=self._volumes)

    def undelete(self, volume: str) -> float:
        """Remove it, and bring it back: a rename, and a sync; only this is timed."""
        kept = f"{BARE_REMOVED}/{volume}"
        path = f"{self._volumes}/{volume}"
        self._runner.time(rename=(path, kept), sync=self._volumes)
        return self._runner.time(rename=(kept, path), sync=self._volumes)

    def snapshot(self, volume: str) -> tuple[float, str]:
        """One command."""
        name = f"{volume}@{next(self._numbers)}"
        source = f"{self._volumes}/{volume}"
        return self._btrfs("snapshot", "-r", source, f"{self._snapshots}/{name}"), name

    def clone(self, volume: str, target: str) -> float:
        """One command, a rename and a sync."""
        new = f"{self._volumes}/.new-{target}"
        command = ["btrfs", "subvolume", "snapshot", f"{self._volumes}/{volume}", new]
        rename = (new, f"{self._volumes}/{target}")
        return self._runner.time(command, rename=rename, sync=self._volumes)

    def restore(self, snapshot: str) -> tuple[float, str]:
        """Three commands: a backup, away with the volume, a copy of the snapshot in its place; and
        a sync by the last of them."""
        backup = f"{snapshot}-{next(self._numbers)}"
        volume = f"{self._volumes}/{snapshot.partition('@')[0]}"
        seconds = self._runner.time(
            ["btrfs", "subvolume", "snapshot", "-r", volume, f"{self._snapshots}/{backup}"],
            ["btrfs", "subvolume", "delete", volume],
            ["btrfs", "subvolume", "snapshot", f"{self._snapshots}/{snapshot}", volume],
        )
        return seconds, backup

    def remove_snapshot(self, snapshot: str) -> float:
        """One command, and a sync."""
        return self._btrfs("delete", f"{self._snapshots}/{snapshot}", sync=self._snapshots)

    def _btrfs(self, *arguments: str, sync: str = "") -> float:
        return self._runner.time(["btrfs", "subvolume", *arguments], sync=sync)


def beside(host: Host) -> Bare:
    """The bare commands in a directory of their own on a host's filesystem."""
    host.runner.run(["mkdir", "-p", BARE_VOLUMES, BARE_SNAPSHOTS, BARE_REMOVED])
    return Bare(host.runner, BARE_VOLUMES, BARE_SNAPSHOTS)


def among_volumes(host: Host) -> Bare:
    """The bare commands in the very directories of a daemon, among all that it has there."""
    host.runner.run(["mkdir", "-p", BARE_REMOVED])
    return Bare(host.runner, VOLUMES, SNAPSHOTS)
