"""Removed volumes: kept whole for a while, brought back, deleted when their time has come."""

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, MutableSequence, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from buttervolume import ages, names
from buttervolume.errors import (
    AmbiguousName,
    ButtervolumeError,
    CommandFailed,
    NoSuchRemoved,
    OperationFailed,
    Unreadable,
    VolumeExists,
    VolumesUnavailable,
)
from buttervolume.store import attributes
from buttervolume.store.hindrance import explain
from buttervolume.store.volumes import REMOVED_NAME, Volumes
from buttervolume.system import btrfs, files, quota, space

_FUTURE = timedelta(hours=1)
"""A date that is further ahead than this is one of the future: of a clock that was wrong."""


@dataclass(frozen=True)
class RemovedVolume:
    """A removed volume that can be brought back."""

    name: str
    date: str
    """When it was removed, in the configured format: `<name>@<date>` names it."""
    removed: datetime
    """The same, local time."""
    until: datetime
    """When it is deleted."""
    size: int | None
    """Bytes, if quota groups count them."""

    def __str__(self) -> str:
        return f"{self.name}@{self.date}"


@dataclass(frozen=True)
class Kept:
    """What a look at the removed volumes finds."""

    volumes: Sequence[RemovedVolume]
    """By name and date."""
    unreadable: Mapping[str, OSError]
    """The names of what is there, but cannot be looked at, and why."""


class Removed:
    """The removed volumes, in a directory of their own among the volumes."""

    def __init__(
        self,
        volumes: Volumes,
        date_format: str,
        keep: timedelta,
        min_free: float = 0.0,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        """`keep` is how long a volume is kept unless it says otherwise itself; below `min_free`, a
        share of the filesystem, the oldest go before their time."""
        self.path = volumes.path / REMOVED_NAME
        self._volumes = volumes
        self._date_format = date_format
        self._keep = keep
        self._min_free = min_free
        self._now = now
        self._log = logging.getLogger(__name__)
        self._complained_of: set[str] = set()
        """What cannot be read or deleted, and is in the log."""
        # protects the newest date of a removal, for a moment at a time
        self._guard = threading.Lock()
        self._newest: datetime | None = None

    def remove(self, name: str) -> None:
        """Take a volume's name away, and keep the rest for its time. Raises NoSuchVolume,
        VolumeBusy."""
        path = self._volumes.mountpoint(name)
        try:
            with btrfs.opened(path) as root:
                keep = self._keep_of(root)
        except OSError:  # it says what is wrong when it is to be moved
            keep = self._keep
        longest = len(f"{name}@{self._now().strftime(self._date_format)}".encode())
        if not keep or longest > names.LONGEST:
            self._volumes.remove(name)
            return
        tick = timedelta(microseconds=1) if "%f" in self._date_format else timedelta(seconds=1)
        moment = self._moment()
        while True:
            target = self.path / f"{name}@{moment.strftime(self._date_format)}"
            try:
                self._volumes.put_away(name, target)
            except FileExistsError:
                moment = self._moment(moment + tick)
            else:
                return

    def _moment(self, earliest: datetime = datetime.min) -> datetime:
        """The date of what is removed now: none is before the one of another removal, but for those
        in the future. An hour may come twice, and which was removed last must show."""
        with self._guard:
            now = self._now()
            known = [self._newest] if self._newest else self._dates()
            self._newest = max([now, earliest, *(date for date in known if date <= now + _FUTURE)])
            return self._newest

    def _dates(self) -> Iterator[datetime]:
        """When the removed volumes were removed, by their names."""
        try:
            found = [path.name for path in self.path.iterdir()]
        except OSError:  # there are none, or it says what is wrong when one is moved there
            return
        for entry in found:
            with suppress(ValueError):  # no removed volume, or the format has been changed
                yield datetime.strptime(entry.partition("@")[2], self._date_format)

    def _keep_of(self, root: btrfs.Directory) -> timedelta:
        """How long a volume is to be kept once it is removed."""
        try:
            return ages.parse(attributes.read(root).get(attributes.KEEP, ""))
        except ValueError:
            return self._keep

    def list(self, name: str | None = None) -> Sequence[RemovedVolume]:
        """All that can be brought back, or those of one name, by name and date. Raises
        OperationFailed."""
        return self.look(name).volumes

    def look(self, name: str | None = None) -> Kept:
        """The same, and what there is that cannot be read. Raises OperationFailed."""
        found: MutableSequence[RemovedVolume] = []
        unreadable: dict[str, OSError] = {}
        try:
            with os.scandir(self.path) as entries:
                for entry in entries:
                    if name not in (None, entry.name.partition("@")[0]):
                        continue
                    try:
                        found.extend(self._look(Path(entry.path)))
                    except (FileNotFoundError, NotADirectoryError):  # gone meanwhile, or no volume
                        continue
                    except OSError as error:
                        unreadable[entry.name] = error
        except FileNotFoundError:
            return Kept([], {})
        except OSError as error:
            raise OperationFailed("list the removed volumes", error) from error
        for each in unreadable.keys() - self._complained_of:
            self._complained_of.add(each)
            self._log.warning("%s", Unreadable(each, unreadable[each]))
        return Kept(sorted(found, key=lambda v: (v.name, v.removed, v.date)), unreadable)

    def _look(self, path: Path) -> Sequence[RemovedVolume]:
        """What there is at a path, if it is a removed volume."""
        name, _, date = path.name.partition("@")
        with btrfs.opened(path) as root:
            if not date or root.inode() != btrfs.ROOT_INODE:
                return []
            try:
                removed = datetime.strptime(date, self._date_format)
            except ValueError:  # the format has been changed: what renamed it changed this as well
                changed = os.fstat(root.descriptor).st_ctime
                removed = datetime.fromtimestamp(changed, UTC).astimezone().replace(tzinfo=None)
            try:
                until = removed + self._keep_of(root)
            except OverflowError:  # the clock was beyond all bounds
                until = datetime.max
            return [RemovedVolume(name, date, removed, until, quota.referenced(root))]

    def find(self, name: str) -> RemovedVolume:
        """The removed volume that is meant: by name and date or a beginning of that, or by its
        name, the one that was removed last. Raises NoSuchRemoved, AmbiguousName, Unreadable."""
        volume, at, date = name.partition("@")
        kept = self.look(volume)
        found = kept.volumes
        if at:
            exact = [each for each in found if each.date == date]
            found = exact or [each for each in found if date and each.date.startswith(date)]
            if len(found) > 1:
                raise AmbiguousName(name, map(str, found))
        if not found:
            for each, error in kept.unreadable.items():
                if not at or (date and each.startswith(name)):
                    raise Unreadable(each, error)
            raise NoSuchRemoved(name)
        believed = self._now() + _FUTURE
        return max(found, key=lambda each: (each.removed <= believed, each.removed, each.date))

    def bring_back(self, name: str, target: str | None = None) -> str:
        """Give a removed volume its name again, or another one, and return that. Raises
        NoSuchRemoved, AmbiguousName, VolumeExists, BadName."""
        found = self.find(name)
        target = found.name if target is None else target
        if target != found.name:
            names.check_new_volume(target)
        with self._volumes.mutexes.hold(target):
            if self._volumes.exists(target):
                raise VolumeExists(target)
            try:
                with btrfs.opened(self.path / str(found)) as root:
                    self._volumes.publish(self.path / str(found), target)
                    if target != found.name:  # a volume of its own, which follows nobody
                        with root.writable(), quota.unlimited(root):
                            attributes.leave_behind(root)
            except FileNotFoundError as error:
                raise NoSuchRemoved(name) from error
            except OSError as error:
                raise OperationFailed(f"bring back volume {found}", error) from error
        self._forget_directory()
        return target

    def purge(self, name: str | None = None) -> Sequence[str]:
        """Delete removed volumes now: all, or those of a name, or one; return which. Their names
        are gone from the disk, too, before this returns. Raises NoSuchRemoved, AmbiguousName,
        OperationFailed."""
        if name is None:
            doomed = self.list()
        elif "@" in name:
            doomed = [self.find(name)]
        else:
            doomed = self.list(name)
            if not doomed:
                doomed = [self.find(name)]  # which says what is wrong
        purged, failures = [], []
        for each in doomed:
            try:
                if self._delete(each):
                    purged.append(str(each))
            except OperationFailed as error:
                failures.append(error)
        self._forget_directory()
        try:
            self._volumes.sync_names()
        except OSError as error:
            failures.append(OperationFailed("delete removed volumes", error))
        if failures:
            raise failures[0]
        return purged

    def expire(self) -> None:
        """Delete what has been kept for its time, and where there is too little room, the oldest
        before its time: one at a call, since room comes back a while after a deletion."""
        try:
            self._volumes.check_available()
        except VolumesUnavailable:  # which every call tells
            return
        try:
            kept = self.list()
            now = self._now()
            expired = [each for each in kept if each.until <= now]
            deleted = [each for each in expired if self._could_delete(each)]
            for each in deleted:
                self._log.info("%s: deleted, its time has come", each)
            rest = sorted((e for e in kept if e not in expired), key=lambda each: each.removed)
            if rest and not deleted and self._is_short_of_room():
                self._delete_one_of(rest)
            if kept:
                self._forget_directory()
            with btrfs.opened(self._volumes.path) as directory:
                if stale := quota.clear_stale(directory):
                    self._log.info("quota groups of deleted subvolumes: %d destroyed", stale)
        except (ButtervolumeError, OSError) as error:
            self._log.warning("the removed volumes cannot be tidied up: %s", error)

    def _delete_one_of(self, rest: Sequence[RemovedVolume]) -> None:
        """Delete the first that can be deleted, before its time."""
        for each in rest:
            if self._could_delete(each):
                self._log.warning(
                    "%s: deleted before its time (%s): less than %.0f%% of the filesystem is free",
                    each, each.until, 100 * self._min_free,
                )  # fmt: skip
                return
            if files.is_gone(self.path / str(each)):
                return  # its content is left over for a reason that the others may share

    def _could_delete(self, removed: RemovedVolume) -> bool:
        """Delete one if that can be; one that cannot be deleted stops no other, and is told of
        once."""
        try:
            return self._delete(removed)
        except OperationFailed as error:
            if str(removed) not in self._complained_of:
                self._complained_of.add(str(removed))
                self._log.warning("%s", error)
            return False

    def _is_short_of_room(self) -> bool:
        room = space.look(self.path)
        return room.free < self._min_free * room.size

    def _delete(self, removed: RemovedVolume) -> bool:
        """Delete a removed volume; False if it was not there any more. It is no removed volume from
        the first moment on, so that nobody gets back a part of one."""
        path = self.path / str(removed)
        try:
            with self._volumes.workshop("purge") as doomed:
                self._volumes.move(path, doomed)
        except FileNotFoundError:
            return False
        except (CommandFailed, OSError) as error:
            raise OperationFailed(f"delete {removed}", explain(error, path)) from error
        if os.path.lexists(doomed):
            raise OperationFailed(f"delete {removed}", f"{doomed} is left over; see the log")
        return True

    def _forget_directory(self) -> None:
        with suppress(OSError):  # it holds something still
            self.path.rmdir()
