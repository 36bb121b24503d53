"""Snapshots received from other hosts: a send with the roles swapped."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime

from buttervolume import names
from buttervolume.errors import (
    AmbiguousName,
    BadName,
    CopyInTheWay,
    HostFailed,
    NoSuchParent,
    NoSuchSnapshot,
    SnapshotBusy,
    TransferBusy,
)
from buttervolume.hosts import intake, lineage
from buttervolume.hosts.intake import Intake, Space, bind_warning, takes_changes
from buttervolume.hosts.lineage import Copy, Facts, Side
from buttervolume.hosts.local import Local
from buttervolume.hosts.peer import stream_version
from buttervolume.hosts.reach import Reach
from buttervolume.hosts.session import Session
from buttervolume.hosts.stream import Announced
from buttervolume.hosts.transfers import Transfer, Transfers
from buttervolume.names import SnapshotName
from buttervolume.store.snapshots import Snapshots
from buttervolume.system.locks import Holds

NO_PEER = (
    "there is no buttervolume 3.15 or later that could send it: install that there, and see to it "
    "that root finds it (ssh HOST command -v buttervolume)"
)


@dataclass(frozen=True)
class Received:
    """What has been received, or was here already."""

    snapshot: str
    warning: str = ""


class Receiver:
    """Receives snapshots from other hosts."""

    def __init__(
        self,
        snapshots: Snapshots,
        local: Local,
        reach: Reach,
        transfers: Transfers,
        now: Callable[[], datetime] = datetime.now,
        min_free: float = 0,
    ) -> None:
        """As for `Sender`; `min_free` is the share of the filesystem that is to stay free."""
        self._snapshots = snapshots
        self._local = local
        self._reach = reach
        self._transfers = transfers
        self._now = now
        self._min_free = min_free
        self._receiving: Holds = Holds(lambda key: TransferBusy(*key.split("@"), incoming=True))
        self._log = logging.getLogger(__name__)

    def receive(self, name: str, host: str) -> Received:
        """Receive a snapshot from a host, or the newest of a volume there.

        What comes are changes of a snapshot that both have, if there is one. When this returns, the
        copy here is verified and on the disk, and the other host keeps its origin as the parent of
        what comes next. What is here already is a success. Of a snapshot's name, a beginning will
        do that only one there has.

        Raises BadName, AmbiguousName, TransferBusy, HostFailed, NoSuchSnapshot, CopyInTheWay,
        TooLittleSpace, OperationFailed, Cancelled.
        """
        names.check_host(host)
        wanted: SnapshotName | None = None
        name = name.removesuffix("@latest")
        if "@" in name:
            wanted = names.parse_snapshot(name)
            if wanted.is_marker:
                raise BadName("snapshot to receive", name, "it is a sent marker")
        volume = wanted.volume if wanted else names.check_volume_reference(name)
        with (
            self._receiving.claim([f"{volume}@{host}"]) as claimed,
            self._transfers.start("receive", volume, name, host) as transfer,
        ):
            if not claimed:
                raise TransferBusy(volume, host, incoming=True)
            try:
                return self._receive(volume, wanted, host, transfer, may_be_changes=True)
            except NoSuchParent:
                self._log.info("%s: no parent here is for sure; receiving in full", name)
                return self._receive(volume, wanted, host, transfer, may_be_changes=False)
            except CopyInTheWay:  # if somebody else has brought it since the look, all is well
                if transfer.phase == "looking":  # it was there before
                    raise
                return self._receive(volume, wanted, host, transfer, may_be_changes=False)

    def _receive(
        self,
        volume: str,
        wanted: SnapshotName | None,
        host: str,
        transfer: Transfer,
        *,
        may_be_changes: bool,
    ) -> Received:
        flow = transfer.flow
        with self._reach.session(host, flow) as peer:
            if peer is None:
                raise HostFailed(host, NO_PEER.replace("HOST", host))
            transfer.phase = "looking"
            there = peer.look(volume, self._local.moment_of, flow).side
            origin = self._origin(volume, wanted, host, there)
            transfer.snapshot = str(origin.name)
            here = self._local.side(volume)
            mine = here.of(origin.name)
            state = lineage.judge_copy(origin, mine)
            if state is Copy.COMPLETE:
                self._log.info("%s is here already", origin.name)
                peer.mark(origin.name, flow)
                return Received(str(origin.name))
            if state is Copy.FOREIGN:
                raise CopyInTheWay(str(origin.name))
            self._remove_what_is_left(origin.name)
            is_bound = not takes_changes(self._local.path)
            usable = may_be_changes and not is_bound
            with self._parent(origin, there, here if usable else Side()) as parent:
                self._stream(origin, parent, peer, transfer)
        warning = bind_warning("this host", self._local.path) if is_bound else ""
        return Received(str(origin.name), warning)

    def _remove_what_is_left(self, name: SnapshotName) -> None:
        """Remove what a transfer that is over has left of a copy here, whoever was its sender, who
        may never come again. Raises PartialCopyBusy if it is not over."""
        note = intake.read_note(self._local.path / names.receiving_note(str(name)))
        if note is not None:
            intake.discard(self._local.path, name, note.sender, without_note=False)

    def _origin(self, volume: str, wanted: SnapshotName | None, host: str, there: Side) -> Facts:
        """The snapshot there that is to come."""
        if wanted is None:
            found = lineage.newest(there, volume, self._now())
            if found is None:
                raise HostFailed(host, f"{volume}: there is no snapshot of this volume")
        else:
            found = there.of(wanted) or self._begun(wanted, there)
            if found is None:
                raise HostFailed(host, f"{wanted}: no such snapshot")
        if not found.is_whole:
            raise HostFailed(host, f"{found.name}: it is incomplete there, or was changed")
        return found

    def _begun(self, beginning: SnapshotName, there: Side) -> Facts | None:
        """The one snapshot there whose name begins so, if there is one. Raises AmbiguousName."""
        whole = (facts for facts in there.of_volume(beginning.volume) if facts.is_whole)
        meant = [facts for facts in whole if str(facts.name).startswith(str(beginning))]
        if len(meant) > 1:
            raise AmbiguousName(str(beginning), (str(facts.name) for facts in meant))
        return meant[0] if meant else None

    @contextmanager
    def _parent(self, origin: Facts, there: Side, here: Side) -> Iterator[Facts | None]:
        """The snapshot there that both have, its copies held here so that nobody removes them."""
        with ExitStack() as stack:
            for candidate in lineage.parents(origin, there, here):
                copies = lineage.copy_for_changes(candidate, there, here)
                try:
                    held = [str(copy.name) for copy in copies]
                    stack.enter_context(self._snapshots.in_transfer.hold(*held))
                    for name in held:
                        self._local.check_complete(name)
                except (SnapshotBusy, NoSuchSnapshot):
                    continue  # it is being removed
                yield candidate
                return
            yield None

    def _stream(
        self, origin: Facts, parent: Facts | None, peer: Session, transfer: Transfer
    ) -> None:
        transfer.phase = "receiving"
        transfer.parent = str(parent.name) if parent else None
        how = f"as changes since {parent.name}" if parent else "in full"
        self._log.info("%s: receiving from %s, %s", origin.name, peer.host, how)

        def check(announced: Announced) -> None:
            what = (announced.uuid, announced.ctransid, announced.parent)
            if what != (origin.identity, origin.ctransid, parent.identity if parent else None):
                raise HostFailed(peer.host, "it sends something else than was asked for")

        space = Space(self._local.path, self._min_free)
        space.check(0)
        peer.receive(
            origin.name,
            parent.name if parent else None,
            Intake(self._local.path, self._reach.stall),
            transfer.flow,
            version=min(peer.stream_version, stream_version()),
            expected=check,
            before=space.check,
        )
