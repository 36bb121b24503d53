"""What a volume holds: cloned, restored, each in one step."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from buttervolume import names
from buttervolume.errors import (
    BadRestore,
    ButtervolumeError,
    CommandFailed,
    NestedSubvolumes,
    NotAVolume,
    OperationFailed,
    VolumeExists,
    VolumeMounted,
)
from buttervolume.names import SnapshotName
from buttervolume.store import attributes
from buttervolume.store.catalog import Catalog
from buttervolume.store.hindrance import explain
from buttervolume.store.options import Options
from buttervolume.store.snapshots import Snapshots, Taken, left_out, what_is_left_out
from buttervolume.store.volumes import Volumes
from buttervolume.system import btrfs, quota
from buttervolume.words import enumerated


@dataclass(frozen=True)
class Restored:
    """What a restore has done."""

    snapshot: str
    """Which one is the content now."""
    backup: str | None
    """The snapshot of what the volume held before, if there was one."""
    warnings: tuple[str, ...] = ()


class Contents:
    """What gives volumes the content of others, or of snapshots."""

    def __init__(self, volumes: Volumes, catalog: Catalog, snapshots: Snapshots) -> None:
        self._volumes = volumes
        self._catalog = catalog
        self._snapshots = snapshots

    def create(self, name: str, options: Options) -> Taken:
        """Make a volume, empty or with the content of another one or of a snapshot; if there is
        one of that name already, leave it as it is. Raises NoSuchVolume, NoSuchSnapshot,
        QuotasOff."""
        source = options.source
        if source is None:
            self._volumes.create(name, options)
            return Taken(name, ())
        others = [] if "@" in source else [names.check_volume_reference(source)]
        with self._volumes.creating(name, *others) as is_new:
            if not is_new:
                return Taken(name, ())
            attempt = f"copy {source}"
            if "@" in source:
                with self._kept(self._catalog.resolve(source)) as path:
                    missing = self._make_volume(path, name, attempt, options)
            else:
                path = self._volumes.mountpoint(source)
                missing = self._make_volume(path, name, attempt, options)
        return Taken(name, missing)

    @contextmanager
    def _kept(self, snapshot: str) -> Iterator[Path]:
        """The path of a snapshot that nobody removes or purges within the block. Raises
        NoSuchSnapshot, IncompleteSnapshot, SnapshotBusy if somebody is at it."""
        with self._snapshots.in_transfer.hold(snapshot):
            yield self._catalog.check_complete(snapshot)

    def new_from(self, snapshot: str, target: str) -> Taken:
        """Make a new volume with the content of a snapshot. Raises NoSuchSnapshot, VolumeExists."""
        names.check_new_volume(target)
        with self._volumes.mutexes.hold(target):
            if self._volumes.exists(target):
                raise VolumeExists(target)
            with self._kept(snapshot) as source:
                return Taken(target, self._make_volume(source, target, f"copy {snapshot}"))

    def clone(self, volume: str, target: str) -> Taken:
        """Make a new volume with the content of another. Raises NoSuchVolume, VolumeExists."""
        names.check_new_volume(target)
        with self._volumes.mutexes.hold(volume, target):
            source = self._volumes.mountpoint(volume)
            if self._volumes.exists(target):
                raise VolumeExists(target)
            missing = self._make_volume(source, target, "clone")
        return Taken(target, missing)

    def _make_volume(
        self, source: Path, target: str, attempt: str, options: Options | None = None
    ) -> tuple[str, ...]:
        """Make a new volume from a subvolume, and return the nested ones that are empty in it; the
        target's mutex is held."""
        with self._volumes.workshop(attempt.partition(" ")[0]) as path:
            try:
                missing = what_is_left_out(source)
                copy(source, path)
                with btrfs.opened(path) as root:
                    self._volumes.furnish(root, options or Options())
                self._volumes.publish(path, target)
            except (CommandFailed, OSError) as error:
                reason = explain(error, source)
                raise OperationFailed(f"{attempt} to volume {target}", reason) from error
        return missing

    def restore(
        self,
        name: str,
        target: str | None = None,
        *,
        force: bool = False,
        undo: bool = False,
        at: str | None = None,
    ) -> Restored:
        """Give a volume the content of a snapshot.

        `name` is a snapshot, or a volume: for its latest snapshot, the latest that is not later
        than `at`, or with `undo` for what the last restore replaced. The target is the snapshot's
        own volume unless another is named. Without `force`, a volume that a container uses, or that
        holds nested subvolumes, is refused. What it held is kept as a backup. The volume is
        replaced in one step: whatever happens, its name holds the old content or the new one.

        Raises NoSuchSnapshot, NoSnapshots, BadRestore, AmbiguousName, IncompleteSnapshot,
        VolumeBusy, and what `check_target` raises.
        """
        snapshot, warnings = self._choose(name, undo=undo, at=at)
        self._catalog.check_complete(str(snapshot))  # before the wait for the volume
        target = snapshot.volume if target is None else target
        backup = None
        # the old content goes when the volume's mutex is no longer held
        with (
            self._volumes.workshop("restore") as path,
            self._volumes.mutexes.hold(target),
            self._kept(str(snapshot)) as source,
        ):
            self.check_target(target, snapshot.volume, force=force)
            if not self._volumes.exists(target):
                self._make_volume(source, target, "restore")
            else:
                backup, users = self._replace(source, target, path, force=force)
                if users:
                    warnings.append(
                        f"restart {enumerated(users)}: until then, the old content is in use there"
                    )
        if os.path.lexists(path):
            warnings.append(f"{path}, the old content, cannot be removed now; see the log")
        return Restored(str(snapshot), backup, tuple(warnings))

    def _choose(self, name: str, *, undo: bool, at: str | None) -> tuple[SnapshotName, list[str]]:
        """The snapshot that is meant, and what is odd about that."""
        if undo and at is not None:
            raise BadRestore("undo and a date are two ways to say what to restore; give one")
        if "@" in name:
            if undo or at is not None:
                raise BadRestore(f"{name} is a snapshot; with undo or a date, name a volume")
            return names.parse_snapshot(self._catalog.resolve(name)), []
        if undo:
            return self._catalog.last_backup(name), []
        until = None if at is None else self._catalog.parse_moment(at)
        latest = self._catalog.latest(name, until)
        odd = None if until else self._catalog.newer_without_date(latest)
        warnings = []
        if odd:
            warnings.append(f"{odd} is newer, but its date cannot be read: restore it by its name")
        if lost := self._catalog.newer_unreadable(latest, until):
            warnings.append(f"newer, but cannot be read: {enumerated(map(str, lost))}")
        return latest, warnings

    def check_target(self, target: str, volume: str, *, force: bool) -> None:
        """Raise what a restore of a snapshot of a volume into the target would now: VolumeBusy
        while it is synchronized, BadName or NotAVolume if it is not there, VolumeMounted or
        NestedSubvolumes if it is, without force."""
        self._volumes.synchronized.check_free(target)
        if self._volumes.exists(target):
            if not force:
                self._check_replaceable(target)
            return
        if target != volume:
            names.check_new_volume(target)
        path = self._volumes.path_of(target)
        if os.path.lexists(path):
            raise NotAVolume(path)

    def _check_replaceable(self, volume: str) -> None:
        self._check_unused(volume)
        try:
            missing = left_out(self._volumes.path_of(volume))
        except OSError as error:
            raise OperationFailed(f"restore volume {volume}", error) from error
        if missing:
            raise NestedSubvolumes(volume, missing)

    def _check_unused(self, volume: str) -> None:
        users = self._volumes.users(volume)
        if users:
            raise VolumeMounted(volume, users)

    def _replace(
        self, source: Path, volume: str, path: Path, *, force: bool
    ) -> tuple[str, Sequence[str]]:
        """Back up a volume and put a copy of a snapshot in its place; its mutex is held. The old
        content is left at `path`. Returns the backup, and who goes on using the old content."""
        with ThreadPoolExecutor(1) as beside:  # two transactions at once take little more than one
            copied = beside.submit(copy, source, path)
            try:
                backup = self._snapshots.take_held(volume, backup=True).name
            except ButtervolumeError:
                self._forget_backup(volume)
                raise
        try:
            copied.result()
            with (
                btrfs.opened(path) as root,
                btrfs.opened(source) as origin,
                btrfs.opened(self._volumes.path_of(volume)) as before,
            ):
                with quota.unlimited(root):  # not beside: the backup has changed them
                    attributes.write(root, attributes.read(before))
                self._volumes.limit(root, origin)
            with self._volumes.changing_hands.hold(volume):
                # somebody may have mounted it meanwhile, and nobody can now
                users = self._volumes.users(volume)
                if users and not force:
                    raise VolumeMounted(volume, users)
                self._volumes.exchange(path, volume)
        except VolumeMounted:
            self._forget_backup(volume)
            self._snapshots.remove(backup)
            raise
        except (CommandFailed, OSError) as error:
            self._forget_backup(volume)
            attempt = f"restore volume {volume} ({backup} is a backup)"
            reason = explain(error, self._volumes.path_of(volume))
            raise OperationFailed(attempt, reason) from error
        return backup, users

    def _forget_backup(self, volume: str) -> None:
        """Take the mark off a volume that was to be replaced and stays."""
        with (
            suppress(OSError),
            btrfs.opened(self._volumes.path_of(volume)) as root,
            quota.unlimited(root),
        ):
            attributes.forget_kind(root)


def copy(source: Path, target: Path) -> None:
    """Make a writable snapshot that can be given a name, even if the source is immutable. It keeps
    its attributes of ours, and follows nobody."""
    btrfs.snapshot(source, target, readonly=False)
    with btrfs.opened(target) as root, quota.unlimited(root):
        if root.is_protected():
            root.unprotect()
        attributes.leave_behind(root)
        attributes.forget_kind(root)
