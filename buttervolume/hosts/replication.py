"""Volumes on more than one host: snapshots sent to another, files synchronized from others."""

import logging
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from pathlib import Path
from uuid import UUID

from buttervolume import names
from buttervolume.errors import (
    BadName,
    ButtervolumeError,
    Cancelled,
    CommandFailed,
    ForeignCopy,
    HostFailed,
    NoSuchSnapshot,
    PipelineFailed,
    SnapshotBusy,
    Stalled,
    SyncFailed,
    TransferBusy,
)
from buttervolume.hosts import ssh
from buttervolume.hosts.ssh import Connection
from buttervolume.hosts.transfers import Transfer, Transfers
from buttervolume.names import Snapshot, SnapshotName
from buttervolume.store.catalog import Catalog
from buttervolume.store.snapshots import Snapshots, Taken
from buttervolume.store.volumes import Volumes
from buttervolume.system import btrfs, command
from buttervolume.system.btrfs import Subvolume
from buttervolume.system.command import Flow
from buttervolume.system.locks import Holds

STALL = 300.0
"""Seconds without a byte after which a transfer is ended; on the whole it may take days."""
_RSYNC_VANISHED = 24
"""Exit status: some files were removed there while rsync worked (rsync(1)); nothing is missing."""

_CLEAN_UP_LIMIT = 60.0
"""Seconds for each step of removing a partial copy after a failure; the next try does what takes
longer."""

_SENDING = "sending"
"""The phase of a transfer in which a failure leaves a partial copy."""

# What is asked of the other host; $1 is the directory of the snapshots, $2 the snapshot's name.
_LOOK = """set -e
echo versions:
btrfs --version
cat /sys/fs/btrfs/features/send_stream_version 2>/dev/null || echo 1
btrfs subvolume list -r -u -R -o "$1"
echo copy:
if [ -L "$1/$2" ]; then echo "a link"
elif [ -e "$1/$2" ]; then btrfs subvolume show "$1/$2" || echo "no subvolume"; fi
"""
_RECEIVE = """set -e
nice -n 5 btrfs receive "$1" >&2
btrfs subvolume show "$1/$2"
"""
_DELETE = """shown=$(btrfs subvolume show "$1/$2" 2>/dev/null) || exit 0
[ ! -L "$1/$2" ] && [ "$(btrfs property get -t subvol "$1/$2" ro)" = ro=false ] &&
echo "$shown" | grep -q "Received UUID:[[:space:]]*-$" || exit 0
btrfs subvolume delete "$1/$2"
"""
"""Deletes what is partial still: meanwhile a transfer that was given up may have completed it. A
link would be followed."""


class MissingParent(ButtervolumeError):
    """The other host no longer has the parent of an incremental send."""


class Copy(Enum):
    """What a host has under the name of a snapshot of ours."""

    ABSENT = "absent"
    PARTIAL = "partial"
    COMPLETE = "complete"
    FOREIGN = "foreign"


@dataclass(frozen=True)
class There:
    """What a look at the other host has shown."""

    identities: frozenset[UUID]
    """UUIDs and Received UUIDs of its read-only subvolumes."""
    copy: str
    """What `btrfs subvolume show` says of the copy, empty if there is nothing of its name."""
    stream_version: int
    """The highest version of the send stream that its kernel and its btrfs-progs take."""


def identity(subvolume: Subvolume) -> UUID:
    """The UUID that a sent stream names a subvolume by, and that its copy has as Received UUID.

    A subvolume that was itself received is named by its origin's (fs/btrfs/send.c).
    """
    return subvolume.received_uuid or subvolume.uuid


def judge_copy(shown: str, expected: UUID) -> Copy:
    """What the output of `btrfs subvolume show` means for a snapshot of that identity.

    `btrfs receive` makes a subvolume writable and without Received UUID, and gives it both
    properties at the very end; so whatever else has the name is somebody else's.
    """
    if not shown.strip():
        return Copy.ABSENT
    flags = re.search(r"^\s*Flags:\s*(.*)$", shown, re.MULTILINE)
    received = re.search(r"^\s*Received UUID:\s*(\S+)$", shown, re.MULTILINE)
    if not flags or not received:
        return Copy.FOREIGN
    readonly = "readonly" in flags[1]
    if readonly and received[1] == str(expected):
        return Copy.COMPLETE
    if not readonly and received[1] == "-":
        return Copy.PARTIAL
    return Copy.FOREIGN


def parents(
    local: Iterable[tuple[Snapshot, Subvolume]], there: frozenset[UUID]
) -> list[SnapshotName]:
    """The snapshots here that the other host has as well, the newest first: any can be the parent
    of an incremental send."""
    shared = [snapshot for snapshot, subvolume in local if identity(subvolume) in there]
    shared.sort(key=lambda snapshot: (snapshot.taken or datetime.min, str(snapshot.name)))
    return [snapshot.name for snapshot in reversed(shared)]


def stream_version(version: str, feature: str) -> int:
    """The send stream that a host can handle, from `btrfs --version` and the kernel's feature file.

    Version 2 carries compressed extents as they are; it came with btrfs-progs 6.0 and Linux 6.0.
    """
    progs = re.search(r"v(\d+)", version)
    if progs and int(progs[1]) >= 6 and feature.strip().isdigit():
        return min(int(feature), 2)
    return 1


def parse_look(output: str) -> There:
    """Understand the answer of a look. Raises ValueError."""
    _, _, answer = output.partition("versions:\n")  # after what a start-up file may have printed
    lists, _, copy = answer.partition("\ncopy:\n")
    feature = re.search(r"^\d+$", lists, re.MULTILINE)
    if not feature:
        raise ValueError("there is no version of the stream")
    version, subvolumes = lists[: feature.start()], lists[feature.end() :]
    identities = set()
    for line in subvolumes.splitlines():
        found = re.search(r"received_uuid (\S+)\s+uuid (\S+)", line)
        if found:
            identities |= {UUID(text) for text in found.groups() if text != "-"}
    return There(frozenset(identities), copy, stream_version(version, feature[0]))


class Replication:
    """Transfers between this host and others."""

    def __init__(
        self,
        volumes: Volumes,
        catalog: Catalog,
        snapshots: Snapshots,
        *,
        port: int,
        transfers: Transfers,
        stall: float = STALL,
    ) -> None:
        """`port` is that of the other hosts' sshd, `stall` in seconds. The other hosts keep
        volumes and snapshots at the paths that they have here."""
        self.transfers = transfers
        self._volumes = volumes
        self._catalog = catalog
        self._snapshots = snapshots
        self._port = port
        self._stall = stall
        self._leftovers: dict[tuple[str, str], set[SnapshotName]] = {}
        """The partial copies of a volume that may be left on a host; touched only by the one send
        of that volume to that host. A snapshot of `replicate` that failed is sent never again."""
        self._sending: Holds = Holds(lambda key: TransferBusy(*key.split("@")))
        self._log = logging.getLogger(__name__)

    # Send

    def send(self, snapshot: str, host: str) -> None:
        """Copy a snapshot to a host, incrementally if both share one of the volume.

        When this returns, the copy there is complete and verified, and a sent marker says so.
        Raises NoSuchSnapshot, IncompleteSnapshot, TransferBusy, HostFailed, ForeignCopy,
        OperationFailed, Cancelled.
        """
        names.check_host(host)
        name = names.parse_snapshot(snapshot)
        if name.is_marker:
            raise BadName("snapshot to send", snapshot, "it is a sent marker; send its snapshot")
        key = f"{name.volume}@{host}"
        with (
            self._sending.claim([key]) as claimed,
            self._snapshots.in_transfer.hold(snapshot),
        ):
            if not claimed:
                raise TransferBusy(name.volume, host)
            self._catalog.check_complete(snapshot)
            with self.transfers.start("send", name.volume, snapshot, host) as transfer:
                try:
                    with ssh.connect(host, self._port, transfer.flow, self._stall) as connection:
                        self._send(name, connection, transfer)
                except ButtervolumeError:
                    if transfer.phase == _SENDING:
                        transfer.phase = "cleaning up"
                        self._discard_partial(name, host)
                    raise
            self._snapshots.mark_sent(name, host)

    def replicate(self, volume: str, host: str) -> str | None:
        """Snapshot a volume and send the snapshot; return its name, or None if the volume has not
        changed since the last snapshot that the host got.

        Even then the host is asked whether it still has that one, and gets it again if not. When
        the send fails, the new snapshot goes, so that a host that is down leaves no pile of them.
        """
        unchanged = self._sent_and_unchanged(volume, host)
        if unchanged:
            self.send(unchanged, host)
            return None
        taken = self._snapshots.take(volume, provisional=True)
        if taken.left_out:
            self._log.warning("%s: not in it: %s", taken.name, ", ".join(taken.left_out))
        try:
            self.send(taken.name, host)
        except BaseException:
            self._forget(taken)
            raise
        return taken.name

    def _forget(self, taken: Taken) -> None:
        """Remove a snapshot that was taken for nothing; whatever is in the way, the failure of the
        transfer matters more."""
        try:
            self._snapshots.remove(taken.name)
        except ButtervolumeError as error:
            self._log.warning("%s", error)

    def _sent_and_unchanged(self, volume: str, host: str) -> str | None:
        """The last snapshot that a host got, if it still is what the volume holds."""
        path = self._volumes.mountpoint(volume)
        sent = [s for s in self._catalog.list(volume).snapshots if s.name.host == host and s.taken]
        if not sent:
            return None
        last = str(sent[-1].name.snapshot)
        try:
            taken_from = btrfs.info(self._catalog.check_complete(last))
        except (NoSuchSnapshot, OSError):
            return None
        btrfs.sync(path)
        now = btrfs.info(path)
        same = taken_from.parent_uuid == now.uuid and now.changed <= taken_from.created_in
        return last if same else None

    def _send(self, name: SnapshotName, connection: Connection, transfer: Transfer) -> None:
        path = self._catalog.path_of(str(name))
        expected = identity(btrfs.info(path))
        transfer.phase = "looking"
        there = self._look(name, connection, transfer.flow)
        state = judge_copy(there.copy, expected)
        self._remove_leftovers(name.volume, connection, transfer.flow)
        if state is Copy.COMPLETE:
            self._log.info("%s is complete on %s already", name, connection.host)
            return
        if state is Copy.FOREIGN:
            raise ForeignCopy(connection.host, path, "no copy of this snapshot")
        if state is Copy.PARTIAL:
            self._remove_partial(name, connection, transfer.flow)
        with self._parent(name, there.identities) as parent:
            try:
                self._transfer(name, parent, there, expected, connection, transfer)
            except MissingParent:
                self._log.info("%s: %s misses %s; sending in full", name, connection.host, parent)
                self._remove_partial(name, connection, transfer.flow)
                self._transfer(name, None, there, expected, connection, transfer)

    def _remove_leftovers(self, volume: str, connection: Connection, flow: Flow) -> None:
        for name in self._leftovers.get((volume, connection.host), set()):
            self._remove_partial(name, connection, flow)
        self._leftovers.pop((volume, connection.host), None)

    def _remove_partial(self, name: SnapshotName, connection: Connection, flow: Flow) -> None:
        self._log.info("%s: removing the partial copy on %s", name, connection.host)
        connection.run(flow, _DELETE, *self._there(name))

    def _there(self, name: SnapshotName) -> tuple[str, str]:
        """The arguments of the scripts that run on the other host."""
        return str(self._catalog.path), str(name)

    def _look(self, name: SnapshotName, connection: Connection, flow: Flow) -> There:
        output = connection.run(flow, _LOOK, *self._there(name))
        try:
            return parse_look(output)
        except ValueError as error:
            raise HostFailed(connection.host, f"unexpected answer: {output[:200]!r}") from error

    @contextmanager
    def _parent(self, name: SnapshotName, there: frozenset[UUID]) -> Iterator[SnapshotName | None]:
        """The parent to use, held so that nobody removes it; None for a full send."""
        local = []
        for snapshot in self._catalog.list(name.volume).snapshots:
            if not snapshot.name.is_marker and snapshot.name != name:
                try:
                    local.append((snapshot, btrfs.info(self._catalog.path / str(snapshot.name))))
                except OSError:
                    continue  # removed meanwhile
        with ExitStack() as stack:
            for candidate in parents(local, there):
                try:
                    stack.enter_context(self._snapshots.in_transfer.hold(str(candidate)))
                    self._catalog.check_complete(str(candidate))
                except (SnapshotBusy, NoSuchSnapshot):
                    continue  # it is being removed
                yield candidate
                return
            yield None

    def _transfer(
        self,
        name: SnapshotName,
        parent: SnapshotName | None,
        there: There,
        expected: UUID,
        connection: Connection,
        transfer: Transfer,
    ) -> None:
        """Send, and verify what has arrived."""
        transfer.phase, transfer.parent = _SENDING, str(parent) if parent else None
        how = f"as changes since {parent}" if parent else "in full"
        self._log.info("%s: sending to %s, %s", name, connection.host, how)
        path = self._catalog.path / str(name)
        source = btrfs.send_command(
            path,
            parent=self._catalog.path / str(parent) if parent else None,
            compressed=min(there.stream_version, self._own_stream_version()) >= 2,
        )
        sink = connection.argv(_RECEIVE, *self._there(name))
        before = connection.passed_on()
        try:
            shown = command.pipe(
                source,
                sink,
                transfer.flow,
                stall=self._stall,
                moved=lambda: connection.passed_on() - before,
            )
            if judge_copy(shown, expected) is not Copy.COMPLETE:
                raise HostFailed(connection.host, "the copy is not complete after the transfer")
        except (PipelineFailed, Stalled, Cancelled, HostFailed) as error:
            raise self._explain(error, connection, parent) from error

    def _explain(
        self, error: ButtervolumeError, connection: Connection, parent: SnapshotName | None
    ) -> ButtervolumeError:
        host = connection.host
        if isinstance(error, HostFailed | Cancelled):
            return error
        if not isinstance(error, PipelineFailed):
            return HostFailed(host, str(error))
        cause = error.failures[0]
        if cause.argv[0] == "btrfs":
            return HostFailed(host, f"btrfs send failed on this side: {ssh.explain(cause)}")
        lost = cause.status == ssh.CONNECTION_FAILED
        if parent and not lost and re.search(r"parent subvol|source subvol", cause.stderr):
            return MissingParent(str(parent))
        return HostFailed(host, connection.explain(cause))

    def _discard_partial(self, name: SnapshotName, host: str) -> None:
        """Remove the partial copy that a failed send has left, if the host answers; if not, that
        is done before the next try. Nothing else is ever removed there."""
        flow = Flow()  # the transfer's own may be cancelled
        limit = min(self._stall, _CLEAN_UP_LIMIT)
        try:
            with ssh.connect(host, self._port, flow, limit) as connection:
                there = self._look(name, connection, flow)
                expected = identity(btrfs.info(self._catalog.path / str(name)))
                if judge_copy(there.copy, expected) is Copy.PARTIAL:
                    self._remove_partial(name, connection, flow)
        except ButtervolumeError as error:
            self._log.warning("%s: a partial copy may be left on %s: %s", name, host, error)
            self._leftovers.setdefault((name.volume, host), set()).add(name)

    def _own_stream_version(self) -> int:
        try:
            feature = Path("/sys/fs/btrfs/features/send_stream_version").read_text()
        except OSError:
            return 1
        return stream_version(command.run(["btrfs", "--version"]), feature)

    # Sync

    def synchronize(self, volumes: Sequence[str], hosts: Sequence[str]) -> list[Taken]:
        """Bring the newer files of volumes' namesakes on other hosts into them.

        Nothing is deleted. Each volume is snapshotted first, and these snapshots are returned; one
        goes again if every host failed. One failure stops nothing else. Raises NoSuchVolume before
        anything is done, SyncFailed.
        """
        for host in hosts:
            names.check_host(host)
        for volume in volumes:
            self._volumes.mountpoint(volume)
        taken: list[Taken] = []
        failures: list[str] = []
        for volume in volumes:
            try:
                taken.append(self._synchronize_one(volume, hosts))
            except SyncFailed as error:
                failures += error.failures
            except ButtervolumeError as error:  # it is busy, or cannot be snapshotted
                failures.append(str(error))
        if failures:
            raise SyncFailed(failures)
        return taken

    def _synchronize_one(self, volume: str, hosts: Sequence[str]) -> Taken:
        with ExitStack() as stack:
            with self._volumes.mutexes.hold(volume):
                path = self._volumes.mountpoint(volume)
                self._volumes.synchronized.check_free(volume)
                stack.enter_context(self._volumes.synchronized.hold(volume))
            taken = self._snapshots.take(volume, provisional=True)
            failures = []
            for host in hosts:
                try:
                    with self.transfers.start("sync", volume, taken.name, host) as transfer:
                        self._rsync(path, transfer)
                except HostFailed as error:
                    failures.append(f"{volume} from {error}")
                except Cancelled as error:
                    failures.append(f"{volume} from {host}: {error}")
            if len(failures) == len(hosts):
                self._forget(taken)
            else:
                self._snapshots.keep(taken.name)
            if failures:
                raise SyncFailed(failures)
        return taken

    def _rsync(self, path: Path, transfer: Transfer) -> None:
        argv = [
            "rsync", "--archive", "--hard-links", "--acls", "--xattrs", "--sparse",
            "--numeric-ids", "--update", "--protect-args", "--no-human-readable",
            "--info=progress2", f"--timeout={max(1, round(self._stall))}",
            "--rsh", shlex.join([*ssh.command_for(self._port), "-S", "none"]),
            f"{transfer.host}:{path}/", f"{path}/",
        ]  # fmt: skip
        transfer.phase = "synchronizing"

        unread = b""

        def on_output(output: bytes) -> None:
            nonlocal unread
            *lines, unread = re.split(rb"[\r\n]", unread + output)
            for line in lines:
                moved = re.match(rb"\s*(\d+)\s+\d+%", line)
                if moved:
                    transfer.flow.moved = int(moved[1])

        try:
            command.watch(argv, transfer.flow, on_output)
        except CommandFailed as error:
            if error.status == _RSYNC_VANISHED:
                self._log.info("%s: files were removed on %s meanwhile", path, transfer.host)
                return
            raise HostFailed(transfer.host, ssh.explain(error)) from error
