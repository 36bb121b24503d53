"""Snapshots: read-only subvolumes of one directory, named after a volume and a moment."""

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from buttervolume import btrfs, names
from buttervolume.errors import (
    BadName,
    CommandFailed,
    IncompleteSnapshot,
    NestedSubvolumes,
    NoSnapshots,
    NoSuchSnapshot,
    NotAVolume,
    OperationFailed,
    SnapshotBusy,
    VolumeExists,
    VolumeMounted,
)
from buttervolume.locks import Holds
from buttervolume.names import Snapshot, SnapshotName
from buttervolume.retention import Pattern, Verdict, judge
from buttervolume.volumes import Volumes

_RACY = 100_000_000
"""Nanoseconds in which a directory may change again without changing its time: twice the longest
tick of the kernel's clock."""


@dataclass(frozen=True)
class Listing:
    """The snapshots there are, and the copies among them that are not whole (yet)."""

    snapshots: tuple[Snapshot, ...]
    """By volume, then moment; those without a moment come first."""
    incomplete: tuple[SnapshotName, ...]


@dataclass(frozen=True)
class Taken:
    """A new subvolume's name, and the nested subvolumes that are empty in it."""

    name: str
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Purged:
    """What a purge deleted, and what it could not delete, with the reason."""

    deleted: tuple[str, ...]
    failed: dict[str, str]

    def explain(self) -> str:
        """What could not be deleted, in words; empty if all could."""
        return "; ".join(f"{name}: {reason}" for name, reason in self.failed.items())


@dataclass(frozen=True)
class Summary:
    """What there is of one volume's snapshots, without markers."""

    count: int
    latest: str | None


class Snapshots:
    """The snapshots in one directory, of the volumes on the same filesystem."""

    def __init__(
        self,
        path: Path,
        volumes: Volumes,
        date_format: str,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self.path = path
        self.in_transfer = Holds(SnapshotBusy)
        """Snapshots that are being sent, and their parents; claimed while they are deleted."""
        self._volumes = volumes
        self._date_format = date_format
        self._now = now
        self._log = logging.getLogger(__name__)
        # protects _index, _listing and _seen
        self._guard = threading.Lock()
        self._index: dict[str, tuple[int, Snapshot]] = {}
        self._listing: Listing | None = None
        self._summaries: dict[str, Summary] = {}
        self._seen = (0, 0, 0)

    # Names

    def date_of(self, moment: datetime) -> str:
        """A moment as the configured format writes it."""
        return moment.strftime(self._date_format)

    def moment_of(self, name: SnapshotName) -> datetime | None:
        """The moment that a name's date means; None if it does not fit the configured format."""
        try:
            return datetime.strptime(name.date, self._date_format)
        except ValueError:
            return None

    def path_of(self, name: str) -> Path:
        """Where a snapshot is or would be. Raises BadName."""
        return self.path / str(names.parse_snapshot(name))

    def check_complete(self, name: str) -> Path:
        """The path of a snapshot that can be used. Raises NoSuchSnapshot, IncompleteSnapshot."""
        path = self.path_of(name)
        if not btrfs.is_subvolume(path):
            self._volumes.check_available()
            raise NoSuchSnapshot(name)
        if not btrfs.info(path).is_complete:
            raise IncompleteSnapshot(name)
        return path

    # Questions

    def list(self, volume: str | None = None) -> Listing:
        """All snapshots, or those of one volume. Raises BadName.

        The directory is read again only after it has changed, and only what is new in it is looked
        at: a snapshot that was whole once stays so.
        """
        try:
            listing = self._current()
        except OSError as error:
            raise OperationFailed("list the snapshots", error) from error
        if volume is None:
            return listing
        names.check_volume_reference(volume)
        return Listing(
            tuple(s for s in listing.snapshots if s.name.volume == volume),
            tuple(name for name in listing.incomplete if name.volume == volume),
        )

    def _current(self) -> Listing:
        with self._guard:
            started = time.time_ns()
            status = os.stat(self.path)
            seen = (status.st_dev, status.st_ino, status.st_mtime_ns)
            if self._listing is None or seen != self._seen or self._has_grown(self._listing):
                self._listing = self._read()
                self._summaries = _summaries(self._listing.snapshots)
                settled = 0 <= status.st_mtime_ns < started - _RACY
                self._seen = seen if settled else (0, 0, 0)
            return self._listing

    def _has_grown(self, listing: Listing) -> bool:
        """Whether a copy has been completed, which does not change the directory's time."""
        try:
            return any(btrfs.info(self.path / str(name)).is_complete for name in listing.incomplete)
        except FileNotFoundError:
            return True

    def _read(self) -> Listing:
        """Read the directory; afterwards `_index` holds what is complete, and nothing else."""
        index: dict[str, tuple[int, Snapshot]] = {}
        incomplete: list[SnapshotName] = []
        with os.scandir(self.path) as entries:
            device = os.stat(self.path).st_dev
            for entry in entries:
                number = entry.inode()  # for a subvolume, BTRFS gives the number of its tree here
                known = self._index.get(entry.name)
                if known and known[0] == number:
                    index[entry.name] = known
                    continue
                try:
                    name = names.parse_snapshot(entry.name)
                    if not btrfs.is_subvolume_root(entry.stat(follow_symlinks=False), device):
                        continue
                    if btrfs.info(self.path / entry.name).is_complete:
                        index[entry.name] = number, Snapshot(name, self.moment_of(name))
                    else:
                        incomplete.append(name)
                except (BadName, FileNotFoundError, NotADirectoryError):
                    continue  # nothing of ours, or removed meanwhile
        self._index = index
        return Listing(
            tuple(sorted((snapshot for _, snapshot in index.values()), key=_by_volume_and_moment)),
            tuple(sorted(incomplete, key=str)),
        )

    def summary(self, volume: str) -> Summary:
        """How many snapshots a volume has, and which is the latest. Costs the same for any number
        of snapshots that have not changed."""
        self._current()
        with self._guard:
            return self._summaries.get(volume, Summary(0, None))

    def latest(self, volume: str) -> SnapshotName:
        """The latest snapshot of a volume by date; a marker if the snapshot itself is gone.

        Raises BadName, NoSnapshots.
        """
        dated = [(s.taken, s.name) for s in self.list(volume).snapshots if s.taken is not None]
        if not dated:
            raise NoSnapshots(volume)
        newest = max(taken for taken, _ in dated)
        candidates = [name for taken, name in dated if taken == newest]
        return min(candidates, key=lambda name: (name.is_marker, str(name)))

    # Changes

    def take(self, volume: str) -> Taken:
        """Snapshot a volume. Raises NoSuchVolume."""
        with self._volumes.mutexes.hold(volume):
            return self._take(volume)

    def _take(self, volume: str) -> Taken:
        """Snapshot a volume whose mutex is held."""
        source = self._volumes.mountpoint(volume)
        name = str(self._free_name(volume))
        try:
            left_out = _copy(source, self.path / name, readonly=True)
        except (CommandFailed, OSError) as error:
            raise OperationFailed(f"snapshot volume {volume}", error) from error
        return Taken(name, left_out)

    def _free_name(self, volume: str) -> SnapshotName:
        """The name of this moment, or of the next tick of the date format that has none yet."""
        moment = self._now()
        tick, some_day = timedelta(microseconds=1), datetime(2000, 1, 1)
        if self.date_of(some_day + tick) == self.date_of(some_day):
            tick = timedelta(seconds=1)
        while True:
            name = names.new_snapshot(volume, self.date_of(moment))
            if not os.path.lexists(self.path / str(name)):
                return name
            moment += tick

    def mark_sent(self, name: SnapshotName, host: str) -> None:
        """Record that a host has a snapshot, and forget its markers of earlier dates."""
        marker = names.new_snapshot(name.volume, name.date, host)
        moment = self.moment_of(name)
        path = self.path / str(marker)
        if not btrfs.is_subvolume(path):
            if os.path.lexists(path):
                raise NotAVolume(path)
            try:
                btrfs.snapshot(self.path / str(name), path, readonly=True)
            except CommandFailed as error:
                raise OperationFailed(f"mark {name} as sent to {host}", error) from error
        for other in self.list(name.volume).snapshots:
            if other.name.host == host and moment and other.taken and other.taken < moment:
                with suppress(NoSuchSnapshot, SnapshotBusy):  # being purged
                    self.remove(str(other.name))

    def remove(self, name: str) -> None:
        """Remove a snapshot, a marker or an incomplete copy.

        Raises NoSuchSnapshot, SnapshotBusy.
        """
        path = self.path_of(name)
        if not btrfs.is_subvolume(path):
            self._volumes.check_available()
            raise NoSuchSnapshot(name)
        with self.in_transfer.claim([name]) as claimed:
            if not claimed:
                raise SnapshotBusy(name)
            try:
                btrfs.delete_tree(path)
            except (CommandFailed, OSError) as error:
                raise OperationFailed(f"remove snapshot {name}", error) from error

    def plan_purge(self, volume: str, pattern: Pattern) -> Sequence[Verdict]:
        """Decide which snapshots of a volume a purge would delete now, and why. Raises
        NoSuchVolume if there is neither the volume nor a snapshot of it."""
        snapshots = self.list(volume).snapshots
        if not snapshots:
            self._volumes.mountpoint(volume)
        return judge(snapshots, pattern, self._now(), self.in_transfer.held())

    def purge(self, volume: str, pattern: Pattern) -> Purged:
        """Delete what a retention pattern no longer keeps; one that cannot be deleted does not
        stop the others. Raises NoSuchVolume as `plan_purge` does."""
        verdicts = self.plan_purge(volume, pattern)
        doomed = [str(verdict.name) for verdict in verdicts if not verdict.keep]
        with self.in_transfer.claim(doomed) as claimed:
            paths = [self.path / name for name in doomed if name in claimed]
            failed = {path.name: reason for path, reason in btrfs.delete(paths).items()}
        deleted = tuple(path.name for path in paths if path.name not in failed)
        return Purged(deleted, failed)

    def clone(self, volume: str, target: str) -> Taken:
        """Make a new volume with the content of another. Raises NoSuchVolume, VolumeExists."""
        names.check_new_volume(target)
        with self._volumes.mutexes.hold(volume, target):
            source = self._volumes.mountpoint(volume)
            if self._volumes.exists(target):
                raise VolumeExists(target)
            left_out = self._make_volume(source, target, "clone")
        return Taken(target, left_out)

    def _make_volume(self, source: Path, target: str, purpose: str) -> tuple[str, ...]:
        """Make a new volume from a subvolume, and return the nested ones that are empty in it; the
        target's mutex is held."""
        with self._volumes.workshop(purpose) as path:
            try:
                left_out = _copy(source, path, readonly=False)
                self._volumes.publish(path, target)
            except (CommandFailed, OSError) as error:
                raise OperationFailed(f"{purpose} to volume {target}", error) from error
        return left_out

    def restore(self, name: str, target: str | None = None, *, force: bool = False) -> str | None:
        """Give a volume the content of a snapshot, and return the backup made of the old content.

        `name` is a snapshot, or a volume for its latest snapshot; the target is the snapshot's own
        volume unless another is named. Without `force`, a volume that a container uses, or that
        holds nested subvolumes, is refused. The volume is replaced in one step: whatever happens,
        its name holds the old content or the new one.

        Raises NoSuchSnapshot, NoSnapshots, IncompleteSnapshot, VolumeMounted, NestedSubvolumes,
        VolumeBusy.
        """
        snapshot = names.parse_snapshot(name) if "@" in name else self.latest(name)
        source = self.check_complete(str(snapshot))
        target = snapshot.volume if target is None else target
        with self._volumes.mutexes.hold(target):
            if not self._volumes.exists(target):
                if target != snapshot.volume:
                    names.check_new_volume(target)
                self._make_volume(source, target, "restore")
                return None
            self._volumes.synchronized.check_free(target)
            if not force:
                self._check_replaceable(target)
            return self._replace(source, target)

    def _check_replaceable(self, volume: str) -> None:
        if self._volumes.is_mounted(volume):
            raise VolumeMounted(volume)
        try:
            nested = btrfs.nested(self._volumes.path_of(volume))
        except OSError as error:
            raise OperationFailed(f"restore volume {volume}", error) from error
        if nested:
            raise NestedSubvolumes(volume, (inner.path for inner in nested))

    def _replace(self, source: Path, volume: str) -> str:
        """Back up a volume and put a copy of a snapshot in its place; its mutex is held."""
        backup = self._take(volume).name
        try:
            with self._volumes.workshop("restore") as path:
                btrfs.snapshot(source, path, readonly=False)
                self._volumes.exchange(path, volume)
        except (CommandFailed, OSError) as error:
            attempt = f"restore volume {volume} ({backup} is a backup)"
            raise OperationFailed(attempt, error) from error
        return backup


def _copy(source: Path, target: Path, *, readonly: bool) -> tuple[str, ...]:
    """Snapshot a subvolume, and return the ones nested in it, which are empty in the snapshot."""
    left_out = tuple(inner.path for inner in btrfs.nested(source))
    btrfs.snapshot(source, target, readonly=readonly)
    return left_out


def _by_volume_and_moment(snapshot: Snapshot) -> tuple[str, datetime, str, str]:
    name = snapshot.name
    return name.volume, snapshot.taken or datetime.min, name.date, name.host or ""


def _summaries(snapshots: "tuple[Snapshot, ...]") -> dict[str, Summary]:
    """The summary of every volume; the snapshots come by moment."""
    counts: Counter[str] = Counter()
    last: dict[str, Snapshot] = {}
    for snapshot in snapshots:
        if not snapshot.name.is_marker:
            counts[snapshot.name.volume] += 1
            last[snapshot.name.volume] = snapshot
    return {
        volume: Summary(counts[volume], None if snapshot.taken is None else str(snapshot.name))
        for volume, snapshot in last.items()
    }
