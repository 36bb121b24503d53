"""The index of the snapshots: which there are, which is the latest, where they are."""

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from buttervolume import names
from buttervolume.errors import (
    BadName,
    IncompleteSnapshot,
    NoSnapshots,
    NoSuchSnapshot,
    OperationFailed,
    Unreadable,
)
from buttervolume.names import Snapshot, SnapshotName
from buttervolume.system import btrfs, files


@dataclass(frozen=True)
class Listing:
    """The snapshots there are, and the copies among them that are not whole (yet)."""

    snapshots: tuple[Snapshot, ...]
    """By volume, then moment; those without a moment come first."""
    incomplete: tuple[SnapshotName, ...]
    unreadable: tuple[SnapshotName, ...] = ()
    """Those that cannot be looked at, whatever they are."""


@dataclass(frozen=True)
class Summary:
    """What there is of one volume's snapshots, without markers."""

    count: int
    latest: str | None


class Catalog:
    """The snapshots in one directory."""

    def __init__(
        self, path: Path, date_format: str, check_available: Callable[[], None] = lambda: None
    ) -> None:
        """`check_available` raises VolumesUnavailable if the filesystem has gone away: what is not
        there then is not "no such snapshot"."""
        self.path = path
        self._date_format = date_format
        self._check_available = check_available
        # protects _index, _listing, _summaries and _seen
        self._guard = threading.Lock()
        self._index: dict[str, tuple[int, Snapshot]] = {}
        self._listing: Listing | None = None
        self._summaries: dict[str, Summary] = {}
        self._seen = (0, 0, 0)
        self._complained_of: frozenset[SnapshotName] = frozenset()
        """What could not be read when it was looked at last, and is in the log."""

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
        if not self.exists(name):
            self._check_available()
            raise NoSuchSnapshot(name)
        try:
            is_whole = self._is_whole(name)
        except FileNotFoundError as error:  # removed meanwhile
            raise NoSuchSnapshot(name) from error
        except OSError as error:
            raise Unreadable(name, error) from error
        if not is_whole:
            raise IncompleteSnapshot(name)
        return path

    def exists(self, name: str) -> bool:
        """Whether there is a snapshot of that name, or part of one. Raises BadName, Unreadable."""
        path = self.path_of(name)
        try:
            return btrfs.is_subvolume(path)
        except OSError as error:
            self._check_available()
            raise Unreadable(name, error) from error

    def _is_whole(self, name: str) -> bool:
        """Whether a snapshot is complete, and no note says that it is not on the disk yet."""
        if os.path.lexists(self.path / names.receiving_note(name)):
            return False
        return btrfs.info(self.path / name).is_complete

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
            tuple(name for name in listing.unreadable if name.volume == volume),
        )

    def _current(self) -> Listing:
        with self._guard:
            started = time.time_ns()
            status = os.stat(self.path)
            seen = (status.st_dev, status.st_ino, status.st_mtime_ns)
            if self._listing is None or seen != self._seen or self._has_grown(self._listing):
                self._listing = self._read()
                self._summaries = _summaries(self._listing.snapshots)
                settled = 0 <= status.st_mtime_ns < started - files.RACY
                self._seen = seen if settled else (0, 0, 0)
            return self._listing

    def _has_grown(self, listing: Listing) -> bool:
        """Whether a copy has been completed, or another one can be read now, which does not change
        the directory's time."""
        for name in (*listing.incomplete, *listing.unreadable):
            try:
                if self._is_whole(str(name)):
                    return True
            except FileNotFoundError:
                return True
            except OSError:
                continue  # as before
        return False

    def _read(self) -> Listing:
        """Read the directory; afterwards `_index` holds what is complete, and nothing else."""
        index: dict[str, tuple[int, Snapshot]] = {}
        incomplete: list[SnapshotName] = []
        unreadable: dict[SnapshotName, OSError] = {}
        with os.scandir(self.path) as directory:
            entries = list(directory)
            device = os.stat(self.path).st_dev
            receiving = {e.name for e in entries if e.name.startswith(names.RECEIVING)}
            for entry in entries:
                number = entry.inode()  # for a subvolume, BTRFS gives the number of its tree here
                known = self._index.get(entry.name)
                noted = bool(receiving) and names.receiving_note(entry.name) in receiving
                if known and known[0] == number and not noted:
                    index[entry.name] = known
                    continue
                try:
                    name = names.parse_snapshot(entry.name)
                    if not btrfs.is_subvolume_root(entry.stat(follow_symlinks=False), device):
                        continue
                    if not noted and btrfs.info(self.path / entry.name).is_complete:
                        index[entry.name] = number, Snapshot(name, self.moment_of(name))
                    else:
                        incomplete.append(name)
                except (BadName, FileNotFoundError, NotADirectoryError):
                    continue  # nothing of ours, or removed meanwhile
                except OSError as error:
                    unreadable[name] = error
        for name in unreadable.keys() - self._complained_of:
            logging.getLogger(__name__).warning("%s", Unreadable(str(name), unreadable[name]))
        self._complained_of = frozenset(unreadable)
        self._index = index
        return Listing(
            tuple(sorted((snapshot for _, snapshot in index.values()), key=_by_volume_and_moment)),
            tuple(sorted(incomplete, key=str)),
            tuple(sorted(unreadable, key=str)),
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
