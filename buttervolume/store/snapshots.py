"""Snapshots: read-only subvolumes of one directory, named after a volume and a moment."""

import errno
import fcntl
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from buttervolume import names
from buttervolume.errors import (
    CommandFailed,
    NoSuchSnapshot,
    NotAVolume,
    OperationFailed,
    SnapshotBusy,
    Unreadable,
)
from buttervolume.names import FUTURE, Snapshot, SnapshotName
from buttervolume.store import attributes
from buttervolume.store.catalog import Catalog
from buttervolume.store.hindrance import explain
from buttervolume.store.retention import Pattern, Verdict, judge
from buttervolume.store.volumes import Volumes
from buttervolume.system import btrfs, files, nested, quota
from buttervolume.system.locks import Holds, is_locked
from buttervolume.words import enumerated

_NAMED = 20
"""How many nested subvolumes a message names."""
_LONGEST_NAMED = 100
"""Characters of a path that a message shows."""
_NUMBERS = ".buttervolume-numbers"
"""A file beside the snapshots. Its lock is held to number a snapshot of a followed volume, by the
daemon and by sessions of other hosts."""


@dataclass(frozen=True)
class Taken:
    """A new subvolume's name, and the nested subvolumes that are empty in it."""

    name: str
    left_out: tuple[str, ...]
    ahead: SnapshotName | None = None
    """A snapshot of the volume with a date in the future: one of the clocks was wrong."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is odd about it without being wrong."""
        found = []
        if self.left_out:
            found.append(f"nested subvolumes are not included: {enumerated(self.left_out)}")
        if self.ahead is not None:
            found.append(f"{self.ahead} has a date in the future: is the clock right?")
        return tuple(found)


@dataclass(frozen=True)
class PurgePlan:
    """What a purge would do now."""

    verdicts: Sequence[Verdict]
    warning: str = ""
    """Why nothing is to be purged, if something is wrong."""


@dataclass(frozen=True)
class Purged:
    """What a purge deleted, and what it could not delete, with the reason."""

    deleted: tuple[str, ...]
    failed: dict[str, str]
    warning: str = ""
    """Why nothing was purged, if something is wrong."""

    def explain(self) -> str:
        """What could not be deleted, in words; empty if all could."""
        return "; ".join(f"{name}: {reason}" for name, reason in self.failed.items())


class Snapshots:
    """What makes, marks and removes the snapshots of the volumes on the same filesystem."""

    def __init__(
        self,
        catalog: Catalog,
        volumes: Volumes,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self.in_transfer = Holds(SnapshotBusy)
        """Snapshots that are being sent, and their parents; claimed while they are deleted."""
        self._catalog = catalog
        self._volumes = volumes
        self._now = now
        self._names_on_disk = files.SharedSync(catalog.path)
        self._provisional: set[str] = set()
        """Snapshots that go again if what they were taken for fails. Changed in one step."""

    def take(self, volume: str, *, provisional: bool = False) -> Taken:
        """Snapshot a volume. Raises NoSuchVolume.

        A provisional snapshot is taken for something that may fail, and then goes again: nobody
        may rely on it before `keep`, or before it is marked as sent.
        """
        with self._volumes.mutexes.hold(volume):
            return self.take_held(volume, provisional=provisional)

    def keep(self, name: str) -> None:
        """Let a provisional snapshot be one like all others, or forget one that is gone."""
        self._provisional.discard(name)

    def unchanged_since(self, volume: str) -> str | None:
        """The newest snapshot of a volume that was taken here, if the volume still holds what that
        shows; None if it has changed since. Raises NoSuchVolume."""
        path = self._volumes.mountpoint(volume)
        try:
            for name in map(str, self._catalog.newest_made(volume)):
                if name in self._provisional:
                    continue
                newest = btrfs.info(self._catalog.path / name)
                if newest.received_uuid is None:
                    return name if btrfs.holds_what(path, newest) else None
        except OSError:  # removed meanwhile, or it cannot be read
            return None
        return None

    def take_held(
        self,
        volume: str,
        *,
        provisional: bool = False,
        backup: bool = False,
        fork: bool = False,
    ) -> Taken:
        """Snapshot a volume whose mutex is held; the backup of a restore is marked, and so is the
        volume: `attributes.forget_kind` if that stays. A fork is marked as well."""
        source = self._volumes.mountpoint(volume)
        try:
            name = str(self._free_name(volume))
        except OperationFailed as error:
            raise OperationFailed(f"snapshot volume {volume}", error.reason) from error
        if provisional:
            self._provisional.add(name)
        try:
            missing = what_is_left_out(source)
            if backup or fork:
                call = _mark_backup if backup else attributes.call_fork
                with btrfs.opened(source) as root, root.writable(), quota.unlimited(root):
                    call(root, name)
            with self._numbered(source):
                btrfs.snapshot(source, self._catalog.path / name, readonly=True)
        except (CommandFailed, OSError, ValueError) as error:
            reason = error if isinstance(error, ValueError) else explain(error, source)
            raise OperationFailed(f"snapshot volume {volume}", reason) from error
        return Taken(name, missing, self._catalog.ahead(volume, self._now()))

    @contextmanager
    def _numbered(self, source: Path) -> Iterator[None]:
        """Give a volume that follows its service the number of the snapshot that the block takes;
        nobody else, of this process or another, takes one meanwhile."""
        with btrfs.opened(source) as root:
            if not attributes.follows(root):
                yield
                return
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
            lock = os.open(self._catalog.path / _NUMBERS, flags, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                with root.writable(), quota.unlimited(root):
                    attributes.count_snapshot(root)
                yield
            finally:
                os.close(lock)

    def _free_name(self, volume: str) -> SnapshotName:
        """The name of this moment, or of the next tick of the date format that has none yet, nor a
        copy that is about to come, and is later than all dates that the volume's snapshots have,
        those in the future not counted."""
        tick, some_day = timedelta(microseconds=1), datetime(2000, 1, 1)
        if self._catalog.date_of(some_day + tick) == self._catalog.date_of(some_day):
            tick = timedelta(seconds=1)
        newest = self._catalog.newest_date(volume, self._now()) or datetime.min
        moment = max(self._now(), newest + tick)
        while True:
            name = names.new_snapshot(volume, self._catalog.date_of(moment))
            is_later = (self._catalog.moment_of(name) or moment) > newest
            taken = (str(name), names.receiving_note(str(name)))
            if is_later and not any(os.path.lexists(self._catalog.path / one) for one in taken):
                return name
            moment += tick

    def mark_sent(self, name: SnapshotName, host: str) -> None:
        """Record that a host has a snapshot, and forget its markers of earlier dates."""
        marker = names.new_snapshot(name.volume, name.date, host)
        moment = self._catalog.moment_of(name)
        path = self._catalog.path / str(marker)
        if not btrfs.is_subvolume(path):
            if os.path.lexists(path):
                raise NotAVolume(path)
            try:
                btrfs.snapshot(self._catalog.path / str(name), path, readonly=True)
            except CommandFailed as error:
                raise OperationFailed(f"mark {name} as sent to {host}", error) from error
        self.keep(str(name))
        for other in self._catalog.list(name.volume).snapshots:
            if other.name.host == host and moment and other.taken and other.taken < moment:
                try:
                    self.remove(str(other.name))
                except (NoSuchSnapshot, SnapshotBusy):  # being purged
                    continue
                except Unreadable as error:  # the send is done all the same
                    logging.getLogger(__name__).warning("%s", error)

    def remove(self, name: str) -> None:
        """Remove a snapshot, a marker or an incomplete copy; its name is gone from the disk, too,
        before this returns.

        Raises NoSuchSnapshot, SnapshotBusy.
        """
        path = self._catalog.path_of(name)
        if not self._catalog.exists(name):
            self._volumes.check_available()
            raise NoSuchSnapshot(name)
        with self.in_transfer.claim([name]) as claimed:
            if not claimed:
                raise SnapshotBusy(name)
            try:
                nested.delete_tree(path)
                path.with_name(names.receiving_note(name)).unlink(missing_ok=True)
                self._names_on_disk.sync()
            except (CommandFailed, OSError) as error:
                if is_locked(path):  # by a session of another host; BTRFS deletes none that is sent
                    raise SnapshotBusy(name) from error
                raise OperationFailed(f"remove snapshot {name}", error) from error
        self.keep(name)

    def forget(self, name: str) -> None:
        """Remove a provisional snapshot that was taken for nothing. If another host has got it
        meanwhile, it stays, as the parent of what that gets next. Raises as `remove` does."""
        if self.needed_by(name):
            self.keep(name)
        else:
            self.remove(name)

    def needed_by(self, name: str) -> Sequence[str]:
        """The hosts whose newest marker is of this snapshot: with it, the next send to them is of
        the changes only."""
        found = self._catalog.list(names.parse_snapshot(name).volume).snapshots
        newest = {s.name.host: s.name for s in found if s.name.is_marker and s.taken}
        return [host for host, marker in newest.items() if host and name == str(marker.snapshot)]

    def plan_purge(self, volume: str, pattern: Pattern) -> PurgePlan:
        """Decide which snapshots of a volume a purge would delete now, and why: none while the
        clock is behind what it was. Raises NoSuchVolume if there is neither the volume nor a
        snapshot of it."""
        snapshots = self._catalog.list(volume).snapshots
        if not snapshots:
            self._volumes.mountpoint(volume)
        now = self._now()
        ahead = self._taken_later(volume, snapshots, now)
        if ahead is not None:
            reason = f"the clock is behind the date of {ahead}"
            warning = (
                f"nothing is purged: it is {self._catalog.date_of(now)} by the clock, and {ahead} "
                "was taken here; set the clock, or remove that snapshot"
            )
            return PurgePlan([Verdict(each.name, True, reason) for each in snapshots], warning)
        verdicts = judge(
            snapshots,
            pattern,
            now,
            self.in_transfer.held(),
            self._catalog.received(volume),
            self._catalog.forks(volume),
            self._catalog.latest_name(volume),
        )
        return PurgePlan(verdicts)

    def _taken_later(
        self, volume: str, snapshots: Sequence[Snapshot], now: datetime
    ) -> SnapshotName | None:
        """A snapshot of a volume that was taken here while the clock was far ahead of what it is
        now. What came from elsewhere says nothing of the clock here."""
        for snapshot in reversed(snapshots):
            if snapshot.taken is None or snapshot.taken <= now + FUTURE:
                return None
            if self._catalog.is_own(snapshot.name):  # whatever has become of its volume
                return snapshot.name
            try:
                taken = btrfs.info(self._catalog.path / str(snapshot.name))
                if taken.parent_uuid == btrfs.info(self._volumes.path_of(volume)).uuid:
                    return snapshot.name
            except OSError:  # it was removed meanwhile, or the volume is
                continue
        return None

    def purge(self, volume: str, pattern: Pattern) -> Purged:
        """Delete what a retention pattern no longer keeps; one that cannot be deleted does not
        stop the others, and one that another host receives just now is left for the next time.
        Raises NoSuchVolume as `plan_purge` does."""
        plan = self.plan_purge(volume, pattern)
        doomed = [str(verdict.name) for verdict in plan.verdicts if not verdict.keep]
        try:
            deleted, failed = self.remove_many(doomed)
        except OSError as error:
            raise OperationFailed(f"purge volume {volume}", error) from error
        failed = {n: why for n, why in failed.items() if not is_locked(self._catalog.path / n)}
        return Purged(deleted, failed, plan.warning)

    def remove_many(self, doomed: Sequence[str]) -> tuple[tuple[str, ...], dict[str, str]]:
        """Remove whole snapshots and markers in as few commands as there can be: those that are
        gone, from the disk, too; and those that could not be removed, with the reason. What a
        transfer needs is in neither, and stays. OSError."""
        with self.in_transfer.claim(doomed) as claimed:
            paths = {f"{self._catalog.path}/{name}": name for name in doomed if name in claimed}
            failed = {
                paths[path]: reason
                for path, reason in btrfs.delete(list(paths)).items()
                if not _deleted_as_protected(Path(path))
            }
            deleted = tuple(name for name in paths.values() if name not in failed)
            if deleted:
                self._names_on_disk.sync()
        return deleted, failed


def _mark_backup(root: btrfs.Directory, name: str) -> None:
    """Mark the backup of a restore, as far as there is room: BTRFS puts attributes whose names have
    one hash into one place, which a container can fill. If the disk is full, the snapshot tells."""
    try:
        attributes.call_backup(root, name)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        logging.getLogger(__name__).warning(
            "%s cannot be marked as the backup of a restore, so it may pass for the latest: %s",
            name, error.strerror,
        )  # fmt: skip


def _deleted_as_protected(path: Path) -> bool:
    """Delete a snapshot whose root is immutable, as that of its volume was; False if it is not, or
    cannot be deleted so either."""
    try:
        with btrfs.opened(path) as root:
            if not root.is_protected():
                return False
        nested.delete_tree(path)
    except (CommandFailed, OSError):
        return False
    return True


def what_is_left_out(source: Path) -> tuple[str, ...]:
    """What `left_out` says, or nothing if that cannot be found out: a warning is no reason not to
    have a snapshot."""
    try:
        return left_out(source)
    except OSError as error:
        logging.getLogger(__name__).warning("%s: what is nested in it? %s", source, error)
        return ()


def left_out(source: Path) -> tuple[str, ...]:
    """The subvolumes nested in one, in few words: the paths of some, and how many more there are,
    those whose path is too long or cannot be found out included."""
    with btrfs.opened(source) as root:
        found = nested.find(root)
        paths = nested.paths(root, found[:_NAMED])
    named = tuple(path for path in paths if path is not None and len(path) <= _LONGEST_NAMED)
    more = len(found) - len(named)
    if not more:
        return named
    return (*named, f"and {more:,} more" if named else f"{more:,} whose names are too long")
