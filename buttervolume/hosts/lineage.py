"""Where the snapshots of a volume on two hosts come from. Pure: everything is decided from facts.

A UUID alone proves nothing. The owner of a subvolume may give it any Received UUID, read-only
snapshots inherit it, and what was read-only can have been made writable, changed, and made
read-only again. What a snapshot is follows from several facts together (fs/btrfs/ioctl.c, send.c
and transaction.c):

- its *identity*: the UUID that a stream names it by, its Received UUID or else its own UUID;
- its *version*: `ctransid`, the last transaction that changed something in it, which a stream
  carries and its copy has as Send transid;
- a snapshot inherits its source's `ctransid`, so that a later one than `otransid`, the transaction
  that created it, shows that it was changed afterwards;
- a copy that is *settled* was synced before it got its Received UUID, so that a later `ctransid`
  than its Receive transid shows the same.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from uuid import UUID

from buttervolume.names import FUTURE, SnapshotName


@dataclass(frozen=True)
class Facts:
    """What a host tells of one direct child of its directory of snapshots."""

    name: SnapshotName
    uuid: UUID
    parent_uuid: UUID | None
    received_uuid: UUID | None
    readonly: bool
    otransid: int
    """The transaction that created it there."""
    tree: int = 0
    ctransid: int | None = None
    """The last transaction that changed something in it, after a sync. None: not told, which no
    version of btrfs-progs does."""
    send_transid: int | None = None
    """0 if it was never received. None: not told; `btrfs subvolume show` does, one by one."""
    receive_transid: int | None = None
    settled: bool = False
    """Whether it got its Received UUID after a sync."""
    taken: datetime | None = None
    """The moment that its name means, if any."""
    receiving: str | None = None
    """Who is sending it, by the note beside it: it is not whole before the note has gone."""
    backup: bool = False
    """Whether a restore made it, of what it replaced."""

    @property
    def identity(self) -> UUID:
        """The UUID that a stream of it carries, and that its copies have as Received UUID."""
        return self.received_uuid or self.uuid

    @property
    def version(self) -> int | None:
        """What its copies have as Send transid, where it was made."""
        return self.send_transid if self.received_uuid else self.ctransid

    @property
    def is_whole(self) -> bool:
        """Whether it can be a copy or a parent: read-only, not being received, and as it was."""
        return self.readonly and self.receiving is None and not self.was_changed

    @property
    def was_changed(self) -> bool:
        """Whether it is known not to be what it was when it was received."""
        if self.received_uuid is None or not self.settled:
            return False
        if self.ctransid is None or not self.receive_transid:
            return False
        return self.ctransid > self.receive_transid

    @property
    def was_made_here(self) -> bool:
        """Whether what it holds is this host's own: taken here, or received and then changed."""
        return self.received_uuid is None or self.was_changed


@dataclass(frozen=True)
class Side:
    """One host: its snapshots, of all volumes, and what could be mistaken for them."""

    snapshots: tuple[Facts, ...] = ()
    strangers: frozenset[UUID] = frozenset()
    """Received UUIDs of subvolumes elsewhere on the filesystem: `btrfs receive` looks there too."""

    def of(self, name: SnapshotName) -> Facts | None:
        """What has that name, if anything."""
        return next((facts for facts in self.snapshots if facts.name == name), None)

    def of_volume(self, volume: str) -> list[Facts]:
        """The snapshots of a volume, without sent markers."""
        return [f for f in self.snapshots if f.name.volume == volume and not f.name.is_marker]


class Copy(Enum):
    """What a host has under the name of a snapshot of ours."""

    ABSENT = "absent"
    PARTIAL = "partial"
    COMPLETE = "complete"
    FOREIGN = "foreign"


class Standing(Enum):
    """How a history here stands to the one there."""

    SAME = "same"
    AHEAD = "ahead"
    BEHIND = "behind"
    DIVERGED = "diverged"
    UNRELATED = "unrelated"


def judge_copy(origin: Facts, copy: Facts | None) -> Copy:
    """What a subvolume means that has the name of a snapshot of ours.

    `btrfs receive` makes a writable subvolume that was never received, and gives it its Received
    UUID at the very end; one that lost it later, by being made writable, still has a Receive
    transid, and one that ours came from was never a copy: both may hold what exists nowhere else.
    """
    if copy is None:
        return Copy.ABSENT
    if copy.receiving is not None:
        return Copy.PARTIAL
    if not copy.readonly:
        began = copy.received_uuid is None and not copy.receive_transid
        is_source = copy.uuid == origin.received_uuid
        return Copy.PARTIAL if began and not is_source else Copy.FOREIGN
    return Copy.COMPLETE if _is_copy(origin, copy) else Copy.FOREIGN


def _is_copy(origin: Facts, copy: Facts) -> bool:
    """Whether a read-only subvolume there holds what the snapshot here holds."""
    if not origin.is_whole or not copy.is_whole or copy.identity != origin.identity:
        return False
    if copy.received_uuid is None:  # the one that ours came from
        return _agree(origin.send_transid, copy.ctransid)
    if origin.received_uuid is None:
        return _agree(copy.send_transid, origin.ctransid)
    return copy.send_transid is None or copy.send_transid in (origin.send_transid, origin.ctransid)


def _agree(one: int | None, other: int | None) -> bool:
    return one is None or other is None or one == other


def _came_by_a_third_host(origin: Facts, copy: Facts) -> bool:
    """Whether a copy can have come from another host that has ours: a stream carries the version
    that the snapshot has *there*. Identity and name are then all there is to go by, so the origin
    must be the very one that the identity means, as it was when it was taken."""
    return (
        origin.received_uuid is None
        and origin.ctransid is not None
        and origin.ctransid <= origin.otransid
        and copy.received_uuid == origin.uuid
        and copy.name == origin.name
        and origin.is_whole
        and copy.is_whole
    )


def _same_state(one: Facts, other: Facts) -> bool:
    """Whether two subvolumes of one identity on one host hold the same: one is a snapshot of the
    other, such as a sent marker, and neither was changed."""
    related = one.uuid == other.parent_uuid or one.parent_uuid == other.uuid
    if not (related and one.is_whole and other.is_whole):
        return False
    if one.ctransid is None or other.ctransid is None:
        return one.name.snapshot == other.name.snapshot
    return one.ctransid == other.ctransid


def found_by_receive(side: Side, identity: UUID) -> list[Facts] | None:
    """The subvolumes that `btrfs receive` may take for the parent of that identity; None if it may
    take one that is no snapshot. It looks by Received UUID first, then by UUID, and takes any
    (cmds/receive.c in btrfs-progs)."""
    if identity in side.strangers:
        return None
    received = [facts for facts in side.snapshots if facts.received_uuid == identity]
    return received or [facts for facts in side.snapshots if facts.uuid == identity]


def copy_for_changes(origin: Facts, here: Side, there: Side) -> list[Facts]:
    """The copies there of a snapshot here, if it can be the parent of a stream of changes: whole
    and unchanged on both sides, and taken for no other by its identity. Else an empty list.

    More than one only where one is a snapshot of the other, holding the same.
    """
    rivals = (f for f in here.snapshots if f.identity == origin.identity and f != origin)
    if origin.received_uuid is None:  # of another volume it cannot be mistaken: see below
        rivals = (f for f in rivals if f.name.volume == origin.name.volume)
    if any(not _same_state(origin, rival) for rival in rivals):
        return []
    found = found_by_receive(there, origin.identity)
    if not found or any(facts.name.volume != origin.name.volume for facts in found):
        return []
    copies = [f for f in found if _is_known(origin, [f])]
    if not copies or any(f != copies[0] and not _same_state(copies[0], f) for f in found):
        return []
    return found


def parents(snapshot: Facts, here: Side, there: Side) -> list[Facts]:
    """The snapshots here that can be the parent of a send of another of their volume, the newest
    first."""
    possible = [
        facts
        for facts in here.of_volume(snapshot.name.volume)
        if facts.name != snapshot.name and copy_for_changes(facts, here, there)
    ]
    return list(reversed(in_order(possible)))


def in_order(facts: Iterable[Facts]) -> list[Facts]:
    """The snapshots of one volume on one host, the oldest first.

    Those taken from one subvolume there are in the order of the transactions that made them,
    whatever the clock was. Where nothing connects them, the date in the name decides.
    """
    groups: dict[object, list[Facts]] = {}
    for one in facts:
        line: object = one.parent_uuid if one.was_made_here and one.parent_uuid else one.uuid
        groups.setdefault(line, []).append(one)
    placed: list[tuple[datetime, int, str, Facts]] = []
    for group in groups.values():
        latest = datetime.min
        for one in sorted(group, key=lambda f: (f.otransid, f.tree)):
            latest = max(latest, one.taken or datetime.min)  # no earlier than the one before it
            placed.append((latest, one.otransid, str(one.name), one))
    return [one for *_, one in sorted(placed, key=lambda p: p[:3])]


def newest(side: Side, volume: str, now: datetime) -> Facts | None:
    """The newest snapshot of a volume on a host: whole, of a readable date, and no backup that a
    restore made. One that was received and has a date in the future does not count."""
    candidates = [
        facts
        for facts in in_order(side.of_volume(volume))
        if facts.readonly
        and facts.receiving is None
        and not facts.backup
        and facts.taken is not None
        and (facts.received_uuid is None or facts.taken <= now + FUTURE)
    ]
    return candidates[-1] if candidates else None


def buried(here: Side, there: Side, volume: str, now: datetime) -> Facts | None:
    """The newest snapshot there, if to send would bury a history that was made there: one that was
    taken or changed there, and that has not come here."""
    tip = newest(there, volume, now)
    if tip is None or not tip.was_made_here:
        return None
    known = any(facts.received_uuid == tip.uuid for facts in here.snapshots)
    return None if known and not tip.was_changed else tip


def compare(here: Side, there: Side, volume: str, now: datetime) -> Standing:
    """How the history of a volume here stands to the one there."""
    ours, theirs = newest(here, volume, now), newest(there, volume, now)
    if ours is None or theirs is None:
        return Standing.UNRELATED
    if _is_known(ours, [theirs]):
        return Standing.SAME
    if _is_known(theirs, here.of_volume(volume)):
        return Standing.AHEAD
    if _is_known(ours, there.of_volume(volume)):
        return Standing.BEHIND
    common = any(_is_known(one, there.of_volume(volume)) for one in here.of_volume(volume))
    return Standing.DIVERGED if common else Standing.UNRELATED


def _is_known(one: Facts, others: Collection[Facts]) -> bool:
    """Whether a snapshot of one host is among those of the other."""
    return any(
        _is_copy(one, other)
        or _is_copy(other, one)
        or _came_by_a_third_host(one, other)
        or _came_by_a_third_host(other, one)
        for other in others
    )


def missing(here: Side, there: Side, volume: str) -> Sequence[Facts]:
    """The snapshots here that the other host lacks and that are newer than the newest that both
    have, the oldest first; all, if both have none."""
    ours = [
        facts
        for facts in in_order(here.of_volume(volume))
        if facts.is_whole and facts.taken is not None
    ]
    theirs = there.of_volume(volume)
    shared = [number for number, facts in enumerate(ours) if _is_known(facts, theirs)]
    return ours[shared[-1] + 1 :] if shared else ours
