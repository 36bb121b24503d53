"""What volumes and their snapshots take of the disk."""

import threading
from dataclasses import dataclass

from buttervolume.errors import CommandFailed, OperationFailed
from buttervolume.store.catalog import Catalog
from buttervolume.store.volumes import Volumes
from buttervolume.system import btrfs, extents, quota
from buttervolume.system.command import Flow


@dataclass(frozen=True)
class Usage:
    """What one volume takes, in bytes on the disk."""

    name: str
    used: int
    """All that it refers to."""
    exclusive: int
    """What is nowhere else: by quota group, or as far as its own snapshots go."""
    snapshots: int
    """What goes if its snapshots go, as far as it and they are concerned."""
    by_group: bool
    """Whether the first two come from its quota group."""


class Meter:
    """Measures volumes, one at a time, since the disk has other work."""

    def __init__(self, volumes: Volumes, catalog: Catalog) -> None:
        self._volumes = volumes
        self._catalog = catalog
        self._turn = threading.Lock()  # one measurement at a time

    def measure(self, name: str) -> Usage:
        """Measure a volume; of millions of files it takes minutes. Raises NoSuchVolume."""
        path = self._volumes.mountpoint(name)
        held = self._catalog.list(name).snapshots
        kept = {snapshot.name for snapshot in held if not snapshot.name.is_marker}
        # a marker has what its snapshot has
        others = [s.name for s in held if not s.name.is_marker or s.name.snapshot not in kept]
        try:
            with self._turn:
                btrfs.sync(path)  # what is not written yet has no extent
                measured = extents.measure(
                    path, [self._catalog.path / str(other) for other in others], Flow()
                )
                with btrfs.opened(path) as root:
                    group = quota.count(root)
        except (CommandFailed, OSError) as error:
            raise OperationFailed(f"measure volume {name}", error) from error
        used, exclusive = group or (measured.used, measured.exclusive)
        return Usage(name, used, exclusive, measured.others, group is not None)
