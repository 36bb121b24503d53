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
from buttervolume.store.snapshots import Snapshots, Taken, copy
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
            left_out = self._make_volume(source, target, "clone")
        return Taken(target, left_out)

    def _make_volume(self, source: Path, target: str, purpose: str) -> tuple[str, ...]:
        """Make a new volume from a subvolume, and return the nested ones that are empty in it; the
        target's mutex is held."""
        with self._volumes.workshop(purpose) as path:
            try:
                left_out = copy(source, path, readonly=False)
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
        snapshot = names.parse_snapshot(name) if "@" in name else self._catalog.latest(name)
        source = self._catalog.check_complete(str(snapshot))
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
        backup = self._snapshots.take_held(volume).name
        try:
            with self._volumes.workshop("restore") as path:
                btrfs.snapshot(source, path, readonly=False)
                self._volumes.exchange(path, volume)
        except (CommandFailed, OSError) as error:
            attempt = f"restore volume {volume} ({backup} is a backup)"
            raise OperationFailed(attempt, error) from error
        return backup
