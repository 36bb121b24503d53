"""The index of the snapshots: which there are, which is the latest, where they are.

The directory is read once; afterwards the kernel tells each change in it, and only that is looked
at.
"""

import logging
import os
import re
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, MutableSequence, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from pathlib import Path
from uuid import UUID

from buttervolume import names
from buttervolume.errors import (
    AmbiguousName,
    BadName,
    BadRestore,
    IncompleteSnapshot,
    NoSnapshots,
    NoSuchSnapshot,
    OperationFailed,
    Unreadable,
)
from buttervolume.names import FUTURE, Snapshot, SnapshotName
from buttervolume.store import attributes
from buttervolume.system import btrfs, files
from buttervolume.system.watch import Watch

_LARGE = 1 << 13
"""Size of a directory, on BTRFS twice the length of all names in it, that takes longer to read for
the first time, 55 µs for each, than Docker is to wait: some 130 snapshots."""
_ISO_FORMAT = "%Y-%m-%dT%H:%M:%S.%f"
_ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}", re.ASCII)
LATEST = "latest"
"""What may stand for the date in a snapshot's name."""


@dataclass(frozen=True)
class Listing:
    """The snapshots there are, and the copies among them that are not whole (yet)."""

    snapshots: tuple[Snapshot, ...]
    """By volume, then moment; those without a moment come first."""
    names: tuple[str, ...]
    """Theirs, in the same order."""
    incomplete: tuple[SnapshotName, ...]
    unreadable: tuple[SnapshotName, ...] = ()
    """Those that cannot be looked at, whatever they are."""


@dataclass(frozen=True)
class Summary:
    """What there is of one volume's snapshots, without markers."""

    count: int
    latest: str | None


@dataclass(frozen=True, slots=True)
class _Entry:
    """What the index knows of a snapshot. There may be 100,000."""

    tree: int
    snapshot: Snapshot
    created_in: int
    """The transaction that made it."""
    created: datetime | None
    """Local time."""
    received: bytes
    """Its Received UUID; empty if it has none."""
    is_backup: bool
    """Whether a restore made it, of what it replaced."""
    is_fork: bool
    """Whether it is what a host of a followed volume held and the others do not go on with."""

    @property
    def taken(self) -> datetime | None:
        """The moment that its name means."""
        return self.snapshot.taken

    @property
    def is_received(self) -> bool:
        """Whether it came from another host, as far as it says."""
        return bool(self.received)

    @property
    def is_own(self) -> bool:
        """Whether it was named here when it was made: then its date is what the clock said, be that
        right or wrong, and those of one volume came in the order of their transactions."""
        if self.is_received or self.taken is None or self.created is None:
            return False
        return abs(self.taken - self.created) <= FUTURE

    def is_from_the_future(self, now: datetime) -> bool:
        """Whether it was received, and has a date that cannot be believed yet."""
        return self.is_received and self.taken is not None and self.taken > now + FUTURE


class _OfVolume:
    """The entries of one volume. What was asked of it is kept until something changes."""

    def __init__(self) -> None:
        self.whole: dict[str, _Entry] = {}
        self.incomplete: dict[str, SnapshotName] = {}
        self.unreadable: dict[str, SnapshotName] = {}
        self._sorted: list[Snapshot] | None = None
        """The snapshots that are whole, once somebody has asked for them."""
        self._names: list[str] = []
        """Their names, in the same order."""
        self._listing: Listing | None = None
        self._newest: _Newest | None = None

    def put(self, entry: _Entry) -> None:
        """Add one that is whole, and is not there."""
        name = str(entry.snapshot.name)
        self.whole[name] = entry
        if self._sorted is not None:
            at = bisect_left(self._sorted, _by_moment(entry.snapshot), key=_by_moment)
            self._sorted.insert(at, entry.snapshot)
            self._names.insert(at, name)
        if self._newest is not None and not entry.snapshot.name.is_marker:
            self._newest = self._newest.with_one_more(entry)
        self._listing = None

    def drop(self, name: str) -> None:
        """Forget one, whatever it was."""
        entry = self.whole.pop(name, None)
        if entry is not None and self._sorted is not None:
            at = bisect_left(self._sorted, _by_moment(entry.snapshot), key=_by_moment)
            del self._sorted[at], self._names[at]  # no two are equal
        if entry is not None and self._newest is not None and not entry.snapshot.name.is_marker:
            self._newest = self._newest.with_one_less(entry)
        self.incomplete.pop(name, None)
        self.unreadable.pop(name, None)
        self._listing = None

    def _in_order(self) -> list[Snapshot]:
        if self._sorted is None:
            items = sorted(self.whole.items(), key=lambda item: _by_moment(item[1].snapshot))
            self._sorted = [entry.snapshot for _, entry in items]
            self._names = [name for name, _ in items]
        return self._sorted

    def newest(self, limit: datetime) -> Snapshot | None:
        """The one, or the marker, with the newest date that is not later than that."""
        ordered = self._in_order()
        at = bisect_right(ordered, limit, key=lambda snapshot: snapshot.taken or datetime.min)
        return ordered[at - 1] if at and ordered[at - 1].taken is not None else None

    def listing(self) -> Listing:
        """All of them, in order."""
        if self._listing is None:
            self._listing = Listing(
                tuple(self._in_order()),
                tuple(self._names),
                tuple(sorted(self.incomplete.values(), key=str)),
                tuple(sorted(self.unreadable.values(), key=str)),
            )
        return self._listing

    def summary(self, now: datetime) -> Summary:
        """How many there are, and which is the latest."""
        newest = self._newest
        if newest is None:
            found = [e for e in self.whole.values() if not e.snapshot.name.is_marker]
            newest = _newest(found, now)
            if not any(entry.is_from_the_future(now) for entry in found):  # else time changes it
                self._newest = newest
        latest = newest.latest()
        return Summary(newest.count, None if latest is None else str(latest.snapshot.name))


@dataclass(frozen=True)
class _Newest:
    """Of some snapshots, how many they are and the newest of each kind that can be the latest."""

    count: int
    own: _Entry | None
    """Of those that were made and named here, which came in the order of their transactions,
    whatever the clock said."""
    other: _Entry | None
    """Of the others, by date."""

    def latest(self) -> _Entry | None:
        """The latest of all: between the two kinds the date decides."""
        if self.own is None or self.other is None:
            return self.own or self.other
        return self.other if _date(self.other) > _date(self.own) else self.own

    def with_one_more(self, entry: _Entry) -> "_Newest | None":
        """The same with another one; None if that must be found out anew."""
        if entry.created is None or entry.is_from_the_future(entry.created):
            return None  # whether it counts depends on the clock
        one = _newest([entry], entry.taken or datetime.min)
        own, other = (self.own, one.own), (self.other, one.other)
        return _Newest(
            self.count + 1,
            max(filter(None, own), key=_order_made, default=None),
            max(filter(None, other), key=_date, default=None),
        )

    def with_one_less(self, entry: _Entry) -> "_Newest | None":
        """The same without one of them; None if that must be found out anew."""
        if entry in (self.own, self.other):
            return None
        return _Newest(self.count - 1, self.own, self.other)


def _newest(entries: Iterable[_Entry], now: datetime) -> _Newest:
    """Count snapshots, and find the newest. A backup or a fork is never meant by the latest, nor is
    one that was received and has a date in the future, which cannot be believed."""
    count, own, other = 0, None, None
    for entry in entries:
        count += 1
        if entry.taken is None or entry.is_backup or entry.is_fork:
            continue
        if entry.is_from_the_future(now):
            continue
        if entry.is_own:
            own = entry if own is None else max(own, entry, key=_order_made)
        else:
            other = entry if other is None else max(other, entry, key=_date)
    return _Newest(count, own, other)


def _date(entry: _Entry) -> datetime:
    return entry.taken or datetime.min


def _order_made(entry: _Entry) -> tuple[int, datetime]:
    return entry.created_in, _date(entry)


def _by_moment(snapshot: Snapshot) -> tuple[datetime, str, str]:
    return snapshot.taken or datetime.min, snapshot.name.date, snapshot.name.host or ""


class Catalog:
    """The snapshots in one directory."""

    def __init__(
        self,
        path: Path,
        date_format: str,
        check_available: Callable[[], None] = lambda: None,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        """`check_available` raises VolumesUnavailable if the filesystem has gone away: what is not
        there then is not "no such snapshot"."""
        self.path = path
        self._date_format = date_format
        self._check_available = check_available
        self._now = now
        # protects all that follows
        self._guard = threading.Lock()
        self._volumes: dict[str, _OfVolume] = {}
        self._everything: Listing | None = None
        """The list of all, until something changes."""
        self._unsettled: dict[str, None] = {}
        """What may become whole, or readable, without a change of the directory."""
        self._has_read = False
        self._being_read = threading.Lock()  # held by a thread of `read_ahead`
        self._watch: Watch | None = None
        self._device = 0
        """That of the directory."""
        self._seen: tuple[int, int, int] | None = None
        """What the directory was when it was read: device, inode, and time of change."""

    # Names

    def date_of(self, moment: datetime) -> str:
        """A moment as the configured format writes it."""
        return moment.strftime(self._date_format)

    def moment_of(self, name: SnapshotName) -> datetime | None:
        """The moment that a name's date means; None if it does not fit the configured format."""
        try:
            if self._date_format == _ISO_FORMAT and _ISO.fullmatch(name.date):
                return datetime.fromisoformat(name.date)  # a tenth of the time
            return datetime.strptime(name.date, self._date_format)
        except ValueError:
            return None

    def parse_moment(self, text: str) -> datetime:
        """The moment, local time, that a date in the configured format or in ISO 8601 means. Raises
        BadRestore."""
        try:
            return datetime.strptime(text, self._date_format)
        except ValueError:
            pass
        try:
            moment = datetime.fromisoformat(text)
            return moment.astimezone().replace(tzinfo=None) if moment.tzinfo else moment
        except (ValueError, OverflowError) as error:  # at the end of the calendar
            example = self.date_of(datetime(2026, 11, 26, 10))
            raise BadRestore(
                f"{text!r} is no date: write it as 2026-11-26, 2026-11-26T10:00 or {example}"
            ) from error

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
            is_complete = self._is_whole(name)
        except FileNotFoundError as error:  # removed meanwhile
            raise NoSuchSnapshot(name) from error
        except OSError as error:
            raise Unreadable(name, error) from error
        if not is_complete:
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
        """All snapshots, or those of one volume. Raises BadName."""
        if volume is not None:
            names.check_volume_reference(volume)
        try:
            with self._guard:
                self._refresh()
                return self._all() if volume is None else self._of(volume).listing()
        except OSError as error:
            raise OperationFailed("list the snapshots", error) from error

    def _all(self) -> Listing:
        if self._everything is None:
            listings = [self._volumes[volume].listing() for volume in sorted(self._volumes)]
            self._everything = Listing(
                tuple(chain.from_iterable(each.snapshots for each in listings)),
                tuple(chain.from_iterable(each.names for each in listings)),
                tuple(chain.from_iterable(each.incomplete for each in listings)),
                tuple(chain.from_iterable(each.unreadable for each in listings)),
            )
        return self._everything

    def _of(self, volume: str) -> _OfVolume:
        return self._volumes.get(volume) or _OfVolume()

    def summary(self, volume: str) -> Summary:
        """How many snapshots a volume has, and which is the latest. It costs as much as what has
        changed since the last look."""
        with self._guard:
            self._refresh()
            return self._of(volume).summary(self._now())

    def glance(self, volume: str) -> Summary | None:
        """The summary of a volume, if it can be had soon: None while the directory is read, where
        that takes long. Raises OSError."""
        if not self._has_read and os.stat(self.path).st_size > _LARGE:
            self.read_ahead()
            return None
        return self.summary(volume)

    def read_ahead(self) -> None:
        """Let a thread read the directory, which may take seconds for the first time; callers that
        do not need it go on meanwhile."""

        def read() -> None:
            try:
                with self._guard:
                    self._refresh()
            except OSError as error:
                logging.getLogger(__name__).warning("cannot list the snapshots: %s", error)
            finally:
                self._being_read.release()

        if self._being_read.acquire(blocking=False):
            threading.Thread(target=read, name="catalog", daemon=True).start()

    def latest(self, volume: str, until: datetime | None = None) -> SnapshotName:
        """The latest snapshot of a volume, or the latest that is not later than a moment; a marker
        if the snapshot itself is gone. What a restore has made as a backup is never meant.

        Raises BadName, NoSnapshots.
        """
        entries = [
            entry
            for entry in self._entries(volume)
            if until is None or (entry.taken is not None and entry.taken <= until)
        ]
        latest = _newest(entries, self._now()).latest()
        if latest is None:
            others = [] if until else [str(entry.snapshot.name) for entry in entries]
            raise NoSnapshots(volume, until, others=others)
        same = [entry.snapshot.name for entry in entries if entry.taken == latest.taken]
        return min(same, key=lambda name: (name.is_marker, str(name)))

    def latest_name(self, volume: str) -> str:
        """The name of the latest snapshot of a volume; empty if there is none. Raises BadName."""
        try:
            return str(self.latest(volume))
        except NoSnapshots:
            return ""

    def newest_made(self, volume: str) -> Sequence[SnapshotName]:
        """The snapshots of a volume that have a date, without markers, in the order in which they
        came about here, whatever the clock said; the newest first. Raises BadName."""
        entries = [
            entry
            for entry in self._entries(volume)
            if entry.taken is not None and not entry.snapshot.name.is_marker
        ]
        return [e.snapshot.name for e in sorted(entries, key=_order_made, reverse=True)]

    def last_backup(self, volume: str) -> SnapshotName:
        """The backup that the last restore of a volume made. Raises BadName, NoSnapshots."""
        backups = [
            entry
            for entry in self._entries(volume)
            if entry.is_backup and not entry.is_received and not entry.snapshot.name.is_marker
        ]
        if not backups:
            raise NoSnapshots(volume, backup=True)
        return max(backups, key=lambda entry: entry.created_in).snapshot.name

    def received(self, volume: str) -> "frozenset[str]":
        """The names of a volume's snapshots that came from other hosts."""
        return frozenset(str(e.snapshot.name) for e in self._entries(volume) if e.is_received)

    def sharing_identity(self) -> "dict[UUID, Sequence[str]]":
        """The names of the snapshots that have one Received UUID, by that, where there are several:
        none of them can be told from the others by it. Raises OSError."""
        with self._guard:
            self._refresh()
            volumes = [*self._volumes.values()]
            entries = [e for each in volumes for e in each.whole.values() if e.received]
        found: dict[bytes, MutableSequence[str]] = {}
        for entry in entries:
            if not entry.snapshot.name.is_marker:
                found.setdefault(entry.received, []).append(str(entry.snapshot.name))
        return {UUID(bytes=one): sorted(shared) for one, shared in found.items() if shared[1:]}

    def forks(self, volume: str) -> "tuple[str, ...]":
        """The names of a followed volume's snapshots that are forks, sorted; markers too."""
        return tuple(sorted(str(e.snapshot.name) for e in self._entries(volume) if e.is_fork))

    def is_backup(self, name: SnapshotName) -> bool:
        """Whether a restore made a snapshot, of what it replaced."""
        entry = self._whole(name)
        return entry is not None and entry.is_backup

    def is_own(self, name: SnapshotName) -> bool:
        """Whether a snapshot was named here when it was made, by the clock that there was then."""
        entry = self._whole(name)
        return entry is not None and entry.is_own

    def newest_date(self, volume: str, now: datetime) -> datetime | None:
        """The newest date of a volume's snapshots and markers that is not in the future."""
        newest = self._newest_dated(volume, now + FUTURE)
        return None if newest is None else newest.taken

    def ahead(self, volume: str, now: datetime) -> SnapshotName | None:
        """A snapshot of a volume with a date in the future, if there is one: the clock is, or was,
        wrong."""
        newest = self._newest_dated(volume, datetime.max)
        if newest is None or newest.taken is None or newest.taken <= now + FUTURE:
            return None
        return newest.name

    def _newest_dated(self, volume: str, limit: datetime) -> Snapshot | None:
        names.check_volume_reference(volume)
        try:
            with self._guard:
                self._refresh()
                return self._of(volume).newest(limit)
        except OSError as error:
            raise OperationFailed("list the snapshots", error) from error

    def newer_without_date(self, name: SnapshotName) -> SnapshotName | None:
        """A snapshot of the same volume that was made after this one, and has a name whose date
        cannot be read, if there is one."""
        entries = self._entries(name.volume)
        made = [e.created_in for e in entries if e.snapshot.name == name and not e.is_received]
        odd = [e for e in entries if e.taken is None and made and e.created_in > made[0]]
        return max(odd, key=lambda e: e.created_in).snapshot.name if odd else None

    def newer_unreadable(
        self, name: SnapshotName, until: datetime | None = None
    ) -> "tuple[SnapshotName, ...]":
        """The snapshots of the same volume that cannot be looked at and have a later date, but none
        later than a moment."""
        after, until = self.moment_of(name) or datetime.max, until or datetime.max
        dated = [(self.moment_of(one), one) for one in self.list(name.volume).unreadable]
        return tuple(one for taken, one in dated if taken is not None and after < taken <= until)

    def resolve(self, name: str) -> str:
        """The full name that is meant by a snapshot's name, by `<volume>@latest`, or by a beginning
        that only one snapshot has: the `@` and one character at the least. Markers count only
        where a marker is typed. What cannot be meant so comes back as it is.

        Raises AmbiguousName, NoSnapshots.
        """
        volume, _, rest = name.partition("@")
        ats = name.count("@")
        if not rest or not names.is_volume_reference(volume):
            return name
        found = self.list(volume)
        known = found.names
        if name in {*known, *map(str, found.incomplete), *map(str, found.unreadable)}:
            return name
        if rest == LATEST:
            return str(self.latest(volume))
        meant = [each for each in known if each.startswith(name) and each.count("@") == ats]
        if len(meant) > 1:
            raise AmbiguousName(name, meant)
        return meant[0] if meant else name

    def _entries(self, volume: str) -> tuple[_Entry, ...]:
        names.check_volume_reference(volume)
        try:
            with self._guard:
                self._refresh()
                return tuple(self._of(volume).whole.values())
        except OSError as error:
            raise OperationFailed("list the snapshots", error) from error

    def _whole(self, name: SnapshotName) -> _Entry | None:
        try:
            with self._guard:
                self._refresh()
                return self._of(name.volume).whole.get(str(name))
        except OSError as error:
            raise OperationFailed("list the snapshots", error) from error

    # The index

    def _refresh(self) -> None:
        """Bring the index up to date; the guard is held."""
        status = os.stat(self.path)
        place = status.st_dev, status.st_ino
        self._device = status.st_dev
        changed = self._watch.changes() if self._watch is not None else None
        if self._seen is None or self._seen[:2] != place or self._watch is None or changed is None:
            self._read_if_changed(status)
        elif changed:
            for name in changed:
                self._look(name)
        for name in [*self._unsettled]:
            if self._may_have_settled(name):
                self._look(name)

    def _read_if_changed(self, status: os.stat_result) -> None:
        """Read the directory, and watch it from now on. Where the kernel gives no watch, read it
        whenever it has another time of change."""
        seen = status.st_dev, status.st_ino, status.st_mtime_ns
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        started = time.time_ns()
        try:
            self._watch = Watch(self.path)
        except OSError as error:
            logging.getLogger(__name__).debug("no watch on the snapshots: %s", error)
            if self._seen == seen:
                return
        self._seen = None  # if it cannot be read now, the next call tries again
        self._read()
        settled = 0 <= status.st_mtime_ns < started - files.RACY
        self._seen = seen if settled or self._watch is not None else None

    def _read(self) -> None:
        """Look at every entry of the directory; one that is known by name and number, and was whole
        once, stays so."""
        known = {name: e for each in self._volumes.values() for name, e in each.whole.items()}
        complained = frozenset(self._unsettled)
        self._volumes, self._everything, self._unsettled = {}, None, {}
        with os.scandir(self.path) as directory:
            entries = [*directory]
        receiving = {e.name for e in entries if e.name.startswith(names.RECEIVING)}
        for entry in entries:
            before = known.get(entry.name)
            # for a subvolume, BTRFS gives the number of its tree as that of the entry
            if before is None or before.tree != entry.inode():
                if entry.is_dir(follow_symlinks=False):
                    self._look(entry.name, complained)
            elif receiving and names.receiving_note(entry.name) in receiving:
                self._look(entry.name, complained)
            else:
                self._put(before)
        now = self._now()
        for volume in self._volumes.values():
            volume.summary(now)  # while nobody waits for it
        self._has_read = True

    def _put(self, entry: _Entry) -> None:
        self._volumes.setdefault(entry.snapshot.name.volume, _OfVolume()).put(entry)

    def _look(self, name: str, complained: frozenset[str] = frozenset()) -> None:
        """Look at one entry of the directory, whatever it is and was."""
        if name.startswith(names.RECEIVING):
            noted = name.removeprefix(names.RECEIVING)
            for each in {noted, *self._unsettled}:
                if not each.startswith("."):
                    self._look(each)
            return
        try:
            parsed = names.parse_snapshot(name)
        except BadName:  # nothing of ours
            return
        was_unsettled = name in self._unsettled or name in complained
        volume = self._volumes.setdefault(parsed.volume, _OfVolume())
        volume.drop(name)
        self._unsettled.pop(name, None)
        self._everything = None
        try:
            entry = self._entry(parsed)
        except (FileNotFoundError, NotADirectoryError):  # removed, or no directory
            pass
        except OSError as error:
            if not was_unsettled:
                logging.getLogger(__name__).warning("%s", Unreadable(name, error))
            volume.unreadable[name] = parsed
            self._unsettled[name] = None
        else:
            if entry is None:
                volume.incomplete[name] = parsed
                self._unsettled[name] = None
            else:
                volume.put(entry)
        if not (volume.whole or volume.incomplete or volume.unreadable):
            del self._volumes[parsed.volume]

    def _entry(self, name: SnapshotName) -> _Entry | None:
        """What there is of that name; None if it is not whole. Raises NotADirectoryError if it is
        no subvolume."""
        text = str(name)
        with btrfs.opened(f"{self.path}/{text}") as directory:
            if not directory.is_subvolume(self._device):
                raise NotADirectoryError
            info = directory.info()
            is_backup = attributes.is_backup(directory, text)
            is_fork = attributes.is_fork(directory, text)
        if not info.is_complete or os.path.lexists(f"{self.path}/{names.receiving_note(text)}"):
            return None
        return _Entry(
            tree=info.tree,
            snapshot=Snapshot(name, self.moment_of(name)),
            created_in=info.created_in,
            created=info.created.replace(tzinfo=None) if info.created else None,
            received=info.received_uuid.bytes if info.received_uuid else b"",
            is_backup=is_backup,
            is_fork=is_fork,
        )

    def _may_have_settled(self, name: str) -> bool:
        """Whether a copy has been completed, or another one can be read now, which does not change
        the directory."""
        try:
            return self._is_whole(name)
        except FileNotFoundError:
            return True
        except OSError:
            return False  # as before
