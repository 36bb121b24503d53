"""All that is done with other hosts, for the edges and the jobs."""

from collections.abc import Callable, Sequence
from datetime import datetime

from buttervolume.hosts.intake import STALL
from buttervolume.hosts.local import Local
from buttervolume.hosts.reach import Reach
from buttervolume.hosts.receive import Received, Receiver
from buttervolume.hosts.send import Sender, Sent
from buttervolume.hosts.sync import Synchronizer
from buttervolume.hosts.transfers import Transfers
from buttervolume.store.catalog import Catalog
from buttervolume.store.snapshots import Snapshots, Taken
from buttervolume.store.volumes import Volumes


class Replication:
    """Transfers between this host and others."""

    def __init__(
        self,
        volumes: Volumes,
        catalog: Catalog,
        snapshots: Snapshots,
        *,
        port: int,
        node: str,
        transfers: Transfers,
        stall: float = STALL,
        min_free: float = 0,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        """`port` is the sshd port of the other hosts, `node` this host's name among them, `stall`
        in seconds, `min_free` the share of the filesystem that what is received leaves free, `now`
        the clock of the snapshots' names. The other hosts keep volumes and snapshots at the paths
        that they have here."""
        self._reach = Reach(port, node, stall)
        local = Local(catalog)
        self._sender = Sender(volumes, snapshots, local, self._reach, transfers, now)
        self._receiver = Receiver(snapshots, local, self._reach, transfers, now, min_free)
        self._synchronizer = Synchronizer(volumes, catalog, snapshots, self._reach, transfers)

    def close(self) -> None:
        """End what is open to other hosts for what comes next."""
        self._reach.close()

    def send(self, snapshot: str, host: str, *, force: bool = False) -> Sent:
        """Copy a snapshot to a host (see `Sender.send`)."""
        return self._sender.send(snapshot, host, force=force)

    def send_all(self, volume: str, host: str, *, force: bool = False) -> list[Sent]:
        """Copy every snapshot that a host lacks (see `Sender.send_all`)."""
        return self._sender.send_all(volume, host, force=force)

    def receive(self, name: str, host: str) -> Received:
        """Receive a snapshot, or the newest of a volume, from a host (see `Receiver.receive`)."""
        return self._receiver.receive(name, host)

    def replicate_now(self, volume: str, host: str, *, force: bool = False) -> Sent:
        """Snapshot a volume and send that (see `Sender.replicate`)."""
        return self._sender.replicate(volume, host, force=force)

    def replicate(self, volume: str, host: str) -> str | None:
        """Snapshot a volume and send that; return its name, or None if the volume has not changed
        since the last snapshot that the host got (see `Sender.replicate`)."""
        sent = self._sender.replicate(volume, host)
        return sent.snapshot if sent.created else None

    def synchronize(self, volumes: Sequence[str], hosts: Sequence[str]) -> list[Taken]:
        """Bring newer files of volumes from hosts (see `Synchronizer.synchronize`)."""
        return self._synchronizer.synchronize(volumes, hosts)
