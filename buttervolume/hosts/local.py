"""This host's side of a transfer: its snapshots, with the facts that lineage decides by."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from buttervolume.errors import OperationFailed
from buttervolume.hosts.lineage import Facts, Side
from buttervolume.names import Snapshot, SnapshotName
from buttervolume.store import attributes
from buttervolume.system import btrfs

if TYPE_CHECKING:  # a session with another host begins sooner without it
    from buttervolume.store.catalog import Catalog


class Local:
    """The snapshots of this host as another one is told of them."""

    def __init__(self, catalog: "Catalog") -> None:
        self._catalog = catalog
        self.path: Path = catalog.path

    def side(self, volume: str) -> Side:
        """The facts of a volume's snapshots as they are on the disk, and of whatever could be
        mistaken for one of them. Raises OperationFailed."""
        try:
            btrfs.sync(self.path)
        except OSError as error:
            raise OperationFailed("look at the snapshots here", error) from error
        own = self._facts(self._catalog.list(volume).snapshots)
        if all(facts.received_uuid is None for facts in own):
            return Side(tuple(own))
        return Side(tuple(self._facts(self._catalog.list().snapshots)))

    def _facts(self, snapshots: "tuple[Snapshot, ...]") -> list[Facts]:
        read = (facts_of(self.path, snapshot.name, taken=snapshot.taken) for snapshot in snapshots)
        return [facts for facts in read if facts]

    def check_complete(self, name: str) -> Path:
        """The path of a snapshot that can be used. Raises NoSuchSnapshot, IncompleteSnapshot."""
        return self._catalog.check_complete(name)

    def moment_of(self, name: SnapshotName) -> datetime | None:
        """The moment that a name's date means, if any."""
        return self._catalog.moment_of(name)

    def has(self, volume: str) -> bool:
        """Whether there is a snapshot of a volume."""
        return bool(self._catalog.list(volume).snapshots)

    def last_sent(self, volume: str, host: str) -> SnapshotName | None:
        """The last snapshot made here that a host got, by its markers."""
        found = self._catalog.list(volume).snapshots
        sent = {snapshot.name.snapshot for snapshot in found if snapshot.name.host == host}
        return next((name for name in self._catalog.newest_made(volume) if name in sent), None)


def facts_of(
    directory: Path,
    name: SnapshotName,
    *,
    taken: datetime | None = None,
    receiving: str | None = None,
) -> Facts | None:
    """What the kernel tells of a snapshot in a directory; None if it was removed meanwhile, or is
    damaged: it is no parent then, and no copy."""
    try:
        with btrfs.opened(directory / str(name)) as root:
            found, is_set_aside = root.info(), attributes.is_set_aside(root, str(name))
    except OSError:
        return None
    return Facts(
        name,
        uuid=found.uuid,
        parent_uuid=found.parent_uuid,
        received_uuid=found.received_uuid,
        readonly=found.readonly,
        otransid=found.created_in,
        tree=found.tree,
        ctransid=found.changed,
        send_transid=found.send_transid,
        receive_transid=found.receive_transid,
        settled=found.settled,
        taken=taken,
        receiving=receiving,
        backup=is_set_aside,
    )
