"""What a volume holds: cloned, restored, each in one step."""

from pathlib import Path

from buttervolume import names
from buttervolume.errors import (
    CommandFailed,
    NestedSubvolumes,
    OperationFailed,
    VolumeExists,
    VolumeMounted,
)
from buttervolume.store.catalog import Catalog
from buttervolume.store.hindrance import explain
from buttervolume.store.snapshots import Snapshots, Taken, left_out, what_is_left_out
from buttervolume.store.volumes import Volumes
from buttervolume.system import btrfs


class Contents:
    """What gives volumes the content of others, or of snapshots."""

    def __init__(self, volumes: Volumes, catalog: Catalog, snapshots: Snapshots) -> None:
        self._volumes = volumes
        self._catalog = catalog
        self._snapshots = snapshots

    def clone(self, volume: str, target: str) -> Taken:
        """Make a new volume with the content of another. Raises NoSuchVolume, VolumeExists."""
        names.check_new_volume(target)
        with self._volumes.mutexes.hold(volume, target):
            source = self._volumes.mountpoint(volume)
            if self._volumes.exists(target):
                raise VolumeExists(target)
            missing = self._make_volume(source, target, "clone")
        return Taken(target, missing)

    def _make_volume(self, source: Path, target: str, purpose: str) -> tuple[str, ...]:
        """Make a new volume from a subvolume, and return the nested ones that are empty in it; the
        target's mutex is held."""
        with self._volumes.workshop(purpose) as path:
            try:
                missing = what_is_left_out(source)
                copy(source, path)
                self._volumes.publish(path, target)
            except (CommandFailed, OSError) as error:
                reason = explain(error, source)
                raise OperationFailed(f"{purpose} to volume {target}", reason) from error
        return missing

    def restore(self, name: str, target: str | None = None, *, force: bool = False) -> str | None:
        """Give a volume the content of a snapshot, and return the backup made of the old content.

        `name` is a snapshot, or a volume for its latest snapshot; the target is the snapshot's own
        volume unless another is named. Without `force`, a volume that a container uses, or that
        holds nested subvolumes, is refused. The volume is replaced in one step: whatever happens,
        its name holds the old content or the new one.

        Raises NoSuchSnapshot, NoSnapshots, IncompleteSnapshot, VolumeMounted, NestedSubvolumes,
        VolumeBusy.
        """
        snapshot = names.parse_snapshot(name) if "@" in name else self._catalog.latest(name)
        source = self._catalog.check_complete(str(snapshot))
        target = snapshot.volume if target is None else target
        # the old content goes when the volume's mutex is no longer held
        with self._volumes.workshop("restore") as path, self._volumes.mutexes.hold(target):
            if not self._volumes.exists(target):
                if target != snapshot.volume:
                    names.check_new_volume(target)
                self._make_volume(source, target, "restore")
                return None
            self._volumes.synchronized.check_free(target)
            if not force:
                self._check_replaceable(target)
            return self._replace(source, target, path, force=force)

    def _check_replaceable(self, volume: str) -> None:
        self._check_unused(volume)
        try:
            missing = left_out(self._volumes.path_of(volume))
        except OSError as error:
            raise OperationFailed(f"restore volume {volume}", error) from error
        if missing:
            raise NestedSubvolumes(volume, missing)

    def _check_unused(self, volume: str) -> None:
        if self._volumes.is_mounted(volume):
            raise VolumeMounted(volume, self._volumes.users(volume))

    def _replace(self, source: Path, volume: str, path: Path, *, force: bool) -> str:
        """Back up a volume and put a copy of a snapshot in its place; its mutex is held. The old
        content is left at `path`."""
        backup = self._snapshots.take_held(volume).name
        try:
            copy(source, path)
            with self._volumes.changing_hands.hold(volume):
                if not force:  # somebody may have mounted it meanwhile, and nobody can now
                    self._check_unused(volume)
                self._volumes.exchange(path, volume)
        except VolumeMounted:
            self._snapshots.remove(backup)
            raise
        except (CommandFailed, OSError) as error:
            attempt = f"restore volume {volume} ({backup} is a backup)"
            reason = explain(error, self._volumes.path_of(volume))
            raise OperationFailed(attempt, reason) from error
        return backup


def copy(source: Path, target: Path) -> None:
    """Make a writable snapshot that can be given a name, even if the source is immutable."""
    btrfs.snapshot(source, target, readonly=False)
    with btrfs.opened(target) as root:
        if root.is_protected():
            root.unprotect()
