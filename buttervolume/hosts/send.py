"""Snapshots sent to other hosts: look, decide by lineage, send, verify, mark."""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime

from buttervolume import names
from buttervolume.errors import (
    BadName,
    ButtervolumeError,
    Cancelled,
    ChangedCopy,
    CommandFailed,
    Diverged,
    ForeignCopy,
    HostFailed,
    NoSuchParent,
    NoSuchSnapshot,
    PeerRefused,
    PipelineFailed,
    SnapshotBusy,
    Stalled,
    TooMuchOutput,
    TransferBusy,
)
from buttervolume.hosts import lineage, ssh
from buttervolume.hosts.guard import REFUSED
from buttervolume.hosts.intake import advice, bind_warning
from buttervolume.hosts.lineage import Copy, Facts, Side
from buttervolume.hosts.local import Local
from buttervolume.hosts.peer import stream_version
from buttervolume.hosts.reach import Reach
from buttervolume.hosts.remote import RECEIVED, Look, Remote
from buttervolume.hosts.session import NoSession, Session
from buttervolume.hosts.ssh import Connection
from buttervolume.hosts.transfers import Transfer, Transfers
from buttervolume.names import SnapshotName
from buttervolume.store.snapshots import Snapshots, Taken
from buttervolume.store.volumes import Volumes
from buttervolume.system import btrfs, command
from buttervolume.system.command import Flow, Process
from buttervolume.system.locks import Holds

_CLEAN_UP_LIMIT = 60.0
"""Seconds for each step of removing a partial copy after a failure; the next try does what takes
longer."""
_SENDING = "sending"
"""The phase of a transfer in which a failure of the scripts leaves a partial copy."""
_MOST_EXAMINED = 5
"""Possible parents that are looked at one by one, the newest first."""


class MissingParent(ButtervolumeError):
    """The other host no longer has the parent of an incremental send."""


class _NoPeer(ButtervolumeError):
    """The other host has no `buttervolume peer`."""


class _PeerFound(ButtervolumeError):
    """The other host may have a `buttervolume peer` by now."""


@dataclass(frozen=True)
class Sent:
    """What has become of a send."""

    snapshot: str
    created: bool = False
    """Whether the snapshot was taken for it."""
    warning: str = ""


@dataclass(frozen=True)
class _Parent:
    """The parent of a stream of changes: the snapshot here, and its possible copies there."""

    facts: Facts
    copies: Sequence[Facts]


class Sender:
    """Sends snapshots to other hosts."""

    def __init__(
        self,
        volumes: Volumes,
        snapshots: Snapshots,
        local: Local,
        reach: Reach,
        transfers: Transfers,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        """The other hosts keep snapshots at the path that they have here."""
        self._volumes = volumes
        self._snapshots = snapshots
        self._local = local
        self._reach = reach
        self._transfers = transfers
        self._now = now
        self._sending: Holds = Holds(lambda key: TransferBusy(*key.split("@")))
        self._log = logging.getLogger(__name__)

    def send(self, snapshot: str, host: str, *, force: bool = False) -> Sent:
        """Copy a snapshot to a host, incrementally if both share one of the volume.

        When this returns, the copy there is complete, verified and on the disk, and a sent marker
        says so. With `force`, a history that was made there does not matter.

        Raises NoSuchSnapshot, IncompleteSnapshot, TransferBusy, HostFailed, ForeignCopy, Diverged,
        ChangedCopy, OperationFailed, Cancelled.
        """
        names.check_host(host)
        name = names.parse_snapshot(snapshot)
        if name.is_marker:
            raise BadName("snapshot to send", snapshot, "it is a sent marker; send its snapshot")
        with self._alone(name.volume, host), self._snapshots.in_transfer.hold(snapshot):
            self._local.check_complete(snapshot)
            warning = self._transfer_one(name, host, force=force)
            self._snapshots.mark_sent(name, host)
        if warning:
            self._log.warning("%s", warning)
        return Sent(snapshot, warning=warning)

    def send_all(self, volume: str, host: str, *, force: bool = False) -> list[Sent]:
        """Send every snapshot of a volume that a host lacks and that is newer than the newest that
        both have (all, if both have none), the oldest first, each as changes of the one before.

        A failure keeps what has arrived. What is purged or removed before its turn has come is left
        out. Raises as `send` does, NoSuchVolume.
        """
        names.check_host(host)
        names.check_volume_reference(volume)
        if not self._local.has(volume):
            self._volumes.mountpoint(volume)
        sent: list[Sent] = []
        for name in self._missing(volume, host):
            try:
                sent.append(self.send(str(name), host, force=force))
            except (NoSuchSnapshot, SnapshotBusy) as error:
                if error.name != str(name):
                    raise
                self._log.info("%s is gone before it was sent to %s", name, host)
        return sent

    def replicate(self, volume: str, host: str, *, force: bool = False) -> Sent:
        """Snapshot a volume and send the snapshot; or, if the volume has not changed since the last
        snapshot that the host got, make sure that the host still has that.

        When the send fails, the new snapshot goes, so that a host that is down leaves no pile.
        """
        unchanged = self._sent_and_unchanged(volume, host)
        if unchanged:
            return self.send(unchanged, host, force=force)
        taken = self._snapshots.take(volume, provisional=True)
        for warning in taken.warnings:
            self._log.warning("%s: %s", taken.name, warning)
        try:
            sent = self.send(taken.name, host, force=force)
        except BaseException:
            self._forget(taken)
            raise
        warnings = filter(None, (*taken.warnings, sent.warning))
        return Sent(sent.snapshot, created=True, warning="; ".join(warnings))

    @contextmanager
    def _alone(self, volume: str, host: str) -> Iterator[None]:
        """One send of a volume to a host at a time."""
        with self._sending.claim([f"{volume}@{host}"]) as claimed:
            if not claimed:
                raise TransferBusy(volume, host)
            yield

    def _forget(self, taken: Taken) -> None:
        """Forget a snapshot that was taken for nothing; whatever is in the way, the failure of the
        transfer matters more."""
        try:
            self._snapshots.forget(taken.name)
        except ButtervolumeError as error:
            self._log.warning("%s", error)

    def _sent_and_unchanged(self, volume: str, host: str) -> str | None:
        """The last snapshot that a host got, if it still is what the volume holds."""
        path = self._volumes.mountpoint(volume)
        last = self._local.last_sent(volume, host)
        if last is None:
            return None
        try:
            shown = btrfs.info(self._local.check_complete(str(last)))
        except (NoSuchSnapshot, OSError):
            return None
        return str(last) if btrfs.holds_what(path, shown) else None

    def _missing(self, volume: str, host: str) -> list[SnapshotName]:
        """The snapshots that a host lacks."""
        here = self._local.side(volume)
        ours = lineage.missing(here, Side(), volume)
        if not ours:
            return []
        newest = ours[-1].name
        with self._transfers.start("send", volume, str(newest), host) as transfer:
            there = self._side_of(host, newest, transfer)
        return [facts.name for facts in lineage.missing(here, there, volume)]

    def _side_of(self, host: str, name: SnapshotName, transfer: Transfer) -> Side:
        """What another host has of a volume."""
        flow = transfer.flow
        try:
            with self._reach.session(host, flow) as peer:
                if peer is not None:
                    return peer.look(name.volume, self._local.moment_of, flow).side
        except NoSession:
            pass  # the scripts will find out what it is
        with self._reach.shell(host, flow) as connection:
            return self._remote(connection).look(name, flow).side

    def _remote(self, connection: Connection) -> Remote:
        return Remote(connection, str(self._local.path), self._reach.node, self._local.moment_of)

    # One transfer

    def _transfer_one(self, name: SnapshotName, host: str, *, force: bool) -> str:
        """Send a snapshot, and clean up if that fails. Returns a warning, if there is one.

        The other side is `buttervolume peer` where it has that, else what the scripts of `remote`
        do.
        """
        with self._transfers.start("send", name.volume, str(name), host) as transfer:
            if self._reach.has_no_peer(host):
                try:
                    return self._transfer_by_scripts(name, host, transfer, force, remembered=True)
                except _PeerFound:
                    self._log.info("%s has got a buttervolume of its own", host)
            with suppress(_NoPeer):
                return self._transfer_by_session(name, host, transfer, force)
            return self._transfer_by_scripts(name, host, transfer, force)

    def _transfer_by_session(
        self, name: SnapshotName, host: str, transfer: Transfer, force: bool
    ) -> str:
        """Send a snapshot to `buttervolume peer`. Raises _NoPeer where that is not."""
        for may_be_changes in (True, False):
            try:
                with self._reach.session(host, transfer.flow) as peer:
                    if peer is None:
                        break
                    return self._send_to_peer(name, peer, transfer, force, may_be_changes)
            except NoSession:
                break  # the scripts will find out what it is
            except MissingParent as error:
                self._log.info("%s: %s misses %s; sending in full", name, host, error)
        raise _NoPeer(host)

    def _transfer_by_scripts(
        self,
        name: SnapshotName,
        host: str,
        transfer: Transfer,
        force: bool,
        *,
        remembered: bool = False,
    ) -> str:
        """Send a snapshot to a host that has no peer. Where that is only `remembered`, and there is
        one now, raises _PeerFound."""
        try:
            with self._reach.shell(host, transfer.flow) as connection:
                return self._send(name, connection, transfer, force=force)
        except ButtervolumeError as error:
            if transfer.phase == _SENDING:
                transfer.phase = "cleaning up"
                self._discard(name, host)
            if remembered and isinstance(error, HostFailed) and REFUSED in error.reason:
                self._reach.forget(host)
                raise _PeerFound(host) from error
            raise

    def _send_to_peer(
        self,
        name: SnapshotName,
        peer: Session,
        transfer: Transfer,
        force: bool,
        may_be_changes: bool,
    ) -> str:
        flow = transfer.flow
        here = self._local.side(name.volume)
        origin = self._origin(name, here)
        transfer.phase = "looking"
        look = peer.look(name.volume, self._local.moment_of, flow)
        there = look.side
        copy = there.of(name)
        state = self._judge(origin, copy, peer.host)
        if state is Copy.COMPLETE:
            return ""
        tip = None if force else lineage.buried(here, there, name.volume, self._now())
        if tip:
            raise self._diverged(peer.host, name.volume, here, tip)
        if state is Copy.PARTIAL:
            peer.discard(name, flow)
        usable = may_be_changes and not look.is_bound
        with self._held_parent(origin, here, there if usable else Side()) as parent:
            transfer.phase, transfer.parent = "sending", str(parent.name) if parent else None
            self._log_how(name, peer.host, parent)
            copies = lineage.copy_for_changes(parent, here, there) if parent else []
            compressed = min(peer.stream_version, stream_version()) >= 2
            argv = self._source(name, parent.name if parent else None, compressed)
            try:
                peer.send(origin, argv, parent, copies, flow)
            except CommandFailed as error:
                reason = f"btrfs send failed on this side: {ssh.explain(error)}"
                raise HostFailed(peer.host, reason) from error
            except PeerRefused as error:
                if error.kind == NoSuchParent.__name__ and parent:
                    raise MissingParent(str(parent.name)) from error
                raise
        return bind_warning(peer.host, self._local.path) if look.is_bound else ""

    def _origin(self, name: SnapshotName, here: Side) -> Facts:
        """The facts of the snapshot to send. Raises NoSuchSnapshot, ChangedCopy."""
        origin = here.of(name)
        if origin is None:
            raise NoSuchSnapshot(str(name))
        if origin.was_changed:
            raise ChangedCopy(str(name))
        return origin

    def _judge(
        self, origin: Facts, copy: Facts | None, host: str, *, is_in_the_way: bool = False
    ) -> Copy:
        """What the other host has under the name. Raises ForeignCopy."""
        state = Copy.FOREIGN if is_in_the_way else lineage.judge_copy(origin, copy)
        path = self._local.path / str(origin.name)
        if state is Copy.COMPLETE:
            self._log.info("%s is complete on %s already", origin.name, host)
        if state is Copy.FOREIGN:
            raise ForeignCopy(host, path, "no copy of this snapshot")
        if copy and copy.receiving not in (None, self._reach.node):
            what = f"{copy.receiving} is sending it there, or has left it behind"
            raise ForeignCopy(host, path, what)
        return state

    def _diverged(self, host: str, volume: str, here: Side, tip: Facts) -> Diverged:
        ours = lineage.newest(here, volume, self._now())
        return Diverged(host, volume, str(tip.name), str(ours.name) if ours else "")

    @contextmanager
    def _held_parent(self, origin: Facts, here: Side, there: Side) -> Iterator[Facts | None]:
        """The newest snapshot here that can be the parent, held so that nobody removes it."""
        with ExitStack() as stack:
            for candidate in lineage.parents(origin, here, there):
                if self._hold(candidate.name, stack):
                    yield candidate
                    return
            yield None

    def _hold(self, name: SnapshotName, stack: ExitStack) -> bool:
        """Keep a snapshot from being removed; whether that was in time."""
        try:
            stack.enter_context(self._snapshots.in_transfer.hold(str(name)))
            self._local.check_complete(str(name))
        except (SnapshotBusy, NoSuchSnapshot):
            return False
        return True

    def _log_how(self, name: SnapshotName, host: str, parent: Facts | None) -> None:
        how = f"as changes since {parent.name}" if parent else "in full"
        self._log.info("%s: sending to %s, %s", name, host, how)

    def _source(
        self, name: SnapshotName, parent: SnapshotName | None, compressed: bool
    ) -> list[str]:
        """The command that makes the stream."""
        return btrfs.send_command(
            self._local.path / str(name),
            parent=self._local.path / str(parent) if parent else None,
            compressed=compressed,
        )

    # By scripts

    def _send(
        self, name: SnapshotName, connection: Connection, transfer: Transfer, *, force: bool
    ) -> str:
        remote, flow = self._remote(connection), transfer.flow
        here = self._local.side(name.volume)
        origin = self._origin(name, here)
        transfer.phase = "looking"
        look = remote.look(name, flow)
        if self._reach.has_peer_now(remote.host, look.program):
            raise _PeerFound(remote.host)
        copy = look.side.of(name)
        state = self._judge(origin, copy, remote.host, is_in_the_way=look.is_in_the_way)
        if state is Copy.COMPLETE:
            return ""
        if not force:
            self._check_not_buried(name.volume, here, look.side, remote, flow)
        if state is Copy.PARTIAL:
            self._log.info("%s: removing the partial copy on %s", name, connection.host)
            remote.discard(name, flow)
        is_bound = look.is_bound and look.mount is None
        warning = bind_warning(remote.host, self._local.path) if is_bound else ""
        with self._parent(origin, here, look, remote, flow) as parent:
            try:
                self._stream(origin, parent, look, remote, connection, transfer)
            except MissingParent:
                lost = parent.facts.name if parent else None
                self._log.info("%s: %s misses %s; sending in full", name, connection.host, lost)
                remote.discard(name, flow)
                self._stream(origin, None, look, remote, connection, transfer)
        return warning

    def _check_not_buried(
        self, volume: str, here: Side, there: Side, remote: Remote, flow: Flow
    ) -> None:
        """Raise Diverged if the other host has a history of its own that is the newest there."""
        asked: set[SnapshotName] = set()
        while tip := lineage.buried(here, there, volume, self._now()):
            if tip.name in asked:
                raise self._diverged(remote.host, volume, here, tip)
            asked.add(tip.name)  # a restore there may have made it
            there = remote.examine(there, [tip.name], flow)

    @contextmanager
    def _parent(
        self, origin: Facts, here: Side, look: Look, remote: Remote, flow: Flow
    ) -> Iterator[_Parent | None]:
        """The parent to use, held so that nobody removes it; None for a full send."""
        if look.is_bound and look.mount is None:
            yield None
            return
        there = look.side
        with ExitStack() as stack:
            for candidate in lineage.parents(origin, here, there)[:_MOST_EXAMINED]:
                copies = lineage.copy_for_changes(candidate, here, there)
                there = remote.examine(there, [copy.name for copy in copies], flow)
                copies = lineage.copy_for_changes(candidate, here, there)
                if not copies:
                    continue
                if self._hold(candidate.name, stack):
                    yield _Parent(candidate, copies)
                    return
            yield None

    def _stream(
        self,
        origin: Facts,
        parent: _Parent | None,
        look: Look,
        remote: Remote,
        connection: Connection,
        transfer: Transfer,
    ) -> None:
        """Send, and verify what has arrived."""
        name = origin.name
        facts = parent.facts if parent else None
        transfer.phase, transfer.parent = _SENDING, str(facts.name) if facts else None
        self._log_how(name, connection.host, facts)
        compressed = min(look.stream_version, stream_version()) >= 2
        source = self._source(name, facts.name if facts else None, compressed)
        copies = parent.copies if parent else ()
        sink = remote.receive_argv(name, origin, copies, look.mount)
        before = connection.passed_on()

        def moved(process: Process) -> int:
            return connection.passed_on() - before + process.written()

        try:
            said = command.pipe(
                source,
                sink,
                transfer.flow,
                stall=self._reach.stall,
                moved=moved,
                arrived=RECEIVED.encode(),
            )
            remote.check_received(said, origin, copies)
        except (PipelineFailed, Stalled, TooMuchOutput, Cancelled, HostFailed) as error:
            raise _explain(error, connection, parent) from error

    def _discard(self, name: SnapshotName, host: str) -> None:
        """Remove the partial copy that a failed send has left, if the host answers; if not, the
        next look there does. Nothing else is ever removed there."""
        flow = Flow()  # the transfer's own may be cancelled
        limit = min(self._reach.stall, _CLEAN_UP_LIMIT)
        try:
            with self._reach.shell(host, flow, limit) as connection:
                self._remote(connection).discard(name, flow)
        except ButtervolumeError as error:
            self._log.warning("%s: a partial copy may be left on %s: %s", name, host, error)


def _explain(
    error: ButtervolumeError, connection: Connection, parent: _Parent | None
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
        return MissingParent(str(parent.facts.name))
    return HostFailed(host, f"{connection.explain(cause)}{advice(cause.stderr)}")
