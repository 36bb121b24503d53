"""What is decided of two hosts' snapshots, against histories of which the truth is known.

The simulation does what BTRFS does with UUIDs and transactions, and knows besides what every
subvolume really holds. Whatever happens there, nothing may be judged to be what it is not.
"""

import random
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import count
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buttervolume.hosts import lineage
from buttervolume.hosts.lineage import Copy, Facts, Side, Standing
from buttervolume.names import SnapshotName, parse_snapshot

START = datetime(2026, 11, 26, 12)
LATER = START + timedelta(days=300)


@dataclass
class Subvolume:
    """A subvolume of the simulation, with what it really holds."""

    uuid: UUID
    holds: object
    parent: UUID | None = None
    received: UUID | None = None
    readonly: bool = False
    otransid: int = 0
    ctransid: int = 0
    send_transid: int = 0
    receive_transid: int = 0
    settled: bool = False
    receiving: str | None = None
    unnoticed: bool = False
    """Whether it was changed in a way that no fact shows: a copy that was never settled."""


@dataclass
class Disk:
    """A BTRFS with a volume or two and their snapshots."""

    world: "World"
    transaction: int
    volumes: dict[str, Subvolume] = field(default_factory=dict)
    snapshots: dict[SnapshotName, Subvolume] = field(default_factory=dict)

    def commit(self) -> int:
        self.transaction += 1
        return self.transaction

    def volume(self, name: str) -> Subvolume:
        if name not in self.volumes:
            made = self.commit()
            new = Subvolume(self.world.uuid(), self.world.content(), otransid=made, ctransid=made)
            self.volumes[name] = new
        return self.volumes[name]

    def change(self, subvolume: Subvolume) -> None:
        subvolume.ctransid, subvolume.holds = self.commit(), self.world.content()
        if subvolume.received and not subvolume.settled:
            subvolume.unnoticed = True

    def snapshot(self, source: Subvolume, *, readonly: bool) -> Subvolume:
        new = replace(
            source,
            uuid=self.world.uuid(),
            parent=source.uuid,
            readonly=readonly,
            otransid=self.commit(),
            receiving=None,
        )
        if not readonly:
            new.received, new.send_transid, new.receive_transid = None, 0, 0
            new.settled = new.unnoticed = False
        return new

    def set_received(self, subvolume: Subvolume, received: UUID | None, transid: int) -> None:
        subvolume.received, subvolume.send_transid = received, transid
        subvolume.receive_transid = self.commit()

    def take(self, volume: str, *, strip: bool = True) -> SnapshotName:
        """Snapshot a volume: as we do, without a Received UUID, or as was done before."""
        name = self.world.name(volume)
        new = self.snapshot(self.volume(volume), readonly=True)
        if strip and new.received:
            new.received, new.send_transid = None, 0
        self.snapshots[name] = new
        return name

    def all(self) -> list[Subvolume]:
        return [*self.volumes.values(), *self.snapshots.values()]

    def side(self) -> Side:
        """The facts, as a host tells them."""
        return Side(
            tuple(self.facts(name) for name in self.snapshots),
            frozenset(v.received for v in self.volumes.values() if v.received),
        )

    def facts(self, name: SnapshotName) -> Facts:
        one = self.snapshots[name]
        return Facts(
            name,
            one.uuid,
            one.parent,
            one.received,
            one.readonly,
            one.otransid,
            ctransid=one.ctransid,
            send_transid=one.send_transid,
            receive_transid=one.receive_transid,
            settled=one.settled,
            taken=datetime.strptime(name.date, "%Y-%m-%dT%H:%M:%S"),
            receiving=one.receiving,
        )


class World:
    """Hosts, and the clock that all of them have."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self._contents, self._moments = count(1), count(1)
        self.disks = [Disk(self, self.random.randrange(1, 5000)) for _ in range(3)]
        self.incremental = 0

    def uuid(self) -> UUID:
        return UUID(int=self.random.getrandbits(128))

    def content(self) -> int:
        return next(self._contents)

    def name(self, volume: str) -> SnapshotName:
        moment = START + timedelta(seconds=next(self._moments))
        return SnapshotName(volume, moment.strftime("%Y-%m-%dT%H:%M:%S"))

    def send(self, here: Disk, name: SnapshotName, there: Disk, *, settle: bool) -> Copy:
        """Send as the program does; what it takes for true must be so."""
        origin, facts = here.snapshots[name], here.facts(name)
        if not facts.is_whole:
            return Copy.FOREIGN  # refused
        state = lineage.judge_copy(facts, there.side().of(name))
        if state is Copy.COMPLETE:
            copy = there.snapshots[name]
            if not (origin.unnoticed or copy.unnoticed):
                assert copy.holds == origin.holds
            return state
        if state is Copy.FOREIGN:
            return state
        if state is Copy.PARTIAL:
            assert there.snapshots[name].holds == "part", "what was whole would be deleted"
            del there.snapshots[name]
        base = None
        for parent in lineage.parents(facts, here.side(), there.side()):
            base = self.base_of(there, parent.identity)
            assert base is not None
            mine = here.snapshots[parent.name]
            if not (mine.unnoticed or base.unnoticed):
                assert base.holds == mine.holds, f"changes since {parent.name} on another"
            self.incremental += 1
            break
        copy = Subvolume(self.uuid(), origin.holds, base.uuid if base else None, readonly=True)
        copy.otransid = copy.ctransid = there.commit()
        there.set_received(copy, facts.identity, origin.ctransid)
        copy.settled, copy.unnoticed = settle, origin.unnoticed
        if settle:
            copy.send_transid = facts.version or 0
        else:
            copy.ctransid = there.commit()  # its data come to the disk later
        there.snapshots[name] = copy
        assert lineage.judge_copy(facts, there.side().of(name)) is Copy.COMPLETE
        return Copy.ABSENT

    def base_of(self, disk: Disk, identity: UUID) -> Subvolume | None:
        """The subvolume that `btrfs receive` applies changes to; of several, whichever."""
        received = [s for s in disk.all() if s.received == identity]
        found = received or [s for s in disk.all() if s.uuid == identity]
        return self.random.choice(found) if found else None

    # What happens

    def step(self, deed: str, *, settle: bool) -> None:
        here, there = self.random.sample(self.disks, 2)
        volume = self.random.choice(["shop", "shop", "copy"])
        names = sorted(here.snapshots, key=str)
        snapshot = self.random.choice(names) if names else None
        match deed:
            case "change":
                here.change(here.volume(volume))
            case "take":
                here.take(volume)
            case "take as before":
                here.take(volume, strip=False)
            case "clone":
                here.volumes["copy"] = here.snapshot(here.volume("shop"), readonly=False)
            case "forge":
                known = [s.uuid for s in here.all()] + [s.received for s in here.all()]
                parent = here.volume(volume).parent
                forged = self.random.choice([*known, parent, parent, self.uuid()])
                here.set_received(here.volume(volume), forged, self.random.randrange(3))
        if snapshot is None:
            return
        subvolume = here.snapshots[snapshot]
        alterable = subvolume.holds != "part"
        match deed:
            case "restore":
                restored = here.snapshot(subvolume, readonly=False)
                here.volumes[snapshot.volume] = restored
            case "send" if not snapshot.is_marker:
                self.send(here, snapshot, there, settle=settle)
            case "send newest":
                newest = lineage.newest(here.side(), volume, LATER)
                if newest:
                    self.send(here, newest.name, there, settle=settle)
            case "remove":
                del here.snapshots[snapshot]
            case "mark":
                here.snapshots[snapshot.marker("gamma")] = here.snapshot(subvolume, readonly=True)
            case "break off" if subvolume.readonly and not snapshot.is_marker:
                name = self.name(snapshot.volume)
                there.snapshots[name] = Subvolume(self.uuid(), "part", otransid=there.commit())
                here.snapshots[name] = here.snapshot(subvolume, readonly=True)
            case "alter" if alterable:
                here.change(subvolume)
            case "make writable" | "make writable and back" if alterable:
                if subvolume.received:
                    here.set_received(subvolume, None, 0)
                subvolume.readonly = deed.endswith("back")
                here.change(subvolume)


GOOD = ["change", "take", "take", "restore", "send", "send newest", "send newest", "remove"]
BAD = [
    *GOOD * 3,
    "take as before",
    "clone",
    "forge",
    "forge",
    "mark",
    "break off",
    "alter",
    "make writable",
    "make writable and back",
]


@given(
    seed=st.integers(0, 2**32),
    deeds=st.lists(st.tuples(st.sampled_from(BAD), st.booleans()), min_size=5, max_size=60),
)
def test_nothing_is_taken_for_what_it_is_not(seed: int, deeds: list[tuple[str, bool]]) -> None:
    world = World(seed)
    for deed, settle in deeds:
        world.step(deed, settle=settle)


def test_the_histories_above_hold_many_sends_of_changes() -> None:
    """Else what they show would be worth little."""
    incremental = 0
    for seed in range(200):
        world = World(seed)
        for number in range(80):
            world.step(world.random.choice(BAD), settle=number % 2 == 0)
        incremental += world.incremental
    assert incremental > 100


@given(
    seed=st.integers(0, 2**32),
    deeds=st.lists(st.tuples(st.sampled_from(GOOD), st.booleans()), min_size=5, max_size=60),
)
def test_what_both_hosts_have_is_always_a_parent(seed: int, deeds: list[tuple[str, bool]]) -> None:
    """As long as nobody forges or alters anything, however the copies came there."""
    world = World(seed)
    for deed, settle in deeds:
        world.step(deed, settle=settle)
    here, there = world.disks[:2]
    name = here.take("shop")
    shared = [
        n
        for n, one in here.snapshots.items()
        if n.volume == "shop" and n in there.snapshots and there.snapshots[n].holds == one.holds
    ]
    identities = [here.facts(n).identity for n in shared]
    found = lineage.parents(here.facts(name), here.side(), there.side())
    direct = [
        n
        for n in shared
        if here.snapshots[n].received is None or there.snapshots[n].received is None
    ]
    assert len(set(identities)) == len(identities)
    assert {facts.name for facts in found} >= set(direct)


# Cases with a name


def facts(name: str = "db@2026-11-26T12:00:00", **changes: object) -> Facts:
    """A snapshot that was taken on this host."""
    parsed = parse_snapshot(name)
    plain = Facts(
        parsed,
        uuid=UUID(int=1),
        parent_uuid=UUID(int=100),
        received_uuid=None,
        readonly=True,
        otransid=50,
        ctransid=50,
        send_transid=0,
        receive_transid=0,
        taken=datetime.strptime(parsed.date, "%Y-%m-%dT%H:%M:%S"),
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def copy_of(origin: Facts, **changes: object) -> Facts:
    """What `btrfs receive` makes of it, with the sync and the second Received UUID."""
    copy = replace(
        origin,
        uuid=UUID(int=2),
        parent_uuid=None,
        received_uuid=origin.identity,
        otransid=7,
        ctransid=8,
        send_transid=origin.version,
        receive_transid=9,
        settled=True,
    )
    return replace(copy, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, Copy.COMPLETE),
        ({"send_transid": None}, Copy.COMPLETE),
        ({"ctransid": None, "receive_transid": None}, Copy.COMPLETE),
        ({"settled": False, "ctransid": 12}, Copy.COMPLETE),
        ({"ctransid": 12}, Copy.FOREIGN),
        ({"send_transid": 49}, Copy.FOREIGN),
        ({"send_transid": 0}, Copy.FOREIGN),
        ({"received_uuid": None}, Copy.FOREIGN),
        ({"received_uuid": UUID(int=9)}, Copy.FOREIGN),
        ({"readonly": False}, Copy.FOREIGN),
        ({"readonly": False, "received_uuid": None}, Copy.FOREIGN),
        ({"readonly": False, "received_uuid": None, "receive_transid": 0}, Copy.PARTIAL),
        ({"readonly": False, "received_uuid": None, "receive_transid": None}, Copy.PARTIAL),
        ({"receiving": "alpha"}, Copy.PARTIAL),
    ],
)
def test_what_a_copy_is(changes: dict[str, object], state: Copy) -> None:
    assert lineage.judge_copy(facts(), copy_of(facts(), **changes)) is state


def test_nothing_is_absent_and_the_origin_itself_is_complete() -> None:
    origin = facts()
    assert lineage.judge_copy(origin, None) is Copy.ABSENT
    assert lineage.judge_copy(copy_of(origin), origin) is Copy.COMPLETE
    assert lineage.judge_copy(copy_of(origin), replace(origin, ctransid=51)) is Copy.FOREIGN


def test_a_snapshot_that_was_changed_since_it_was_sent_is_no_parent() -> None:
    origin = facts()
    copy, third = copy_of(origin), facts("db@2026-11-26T13:00:00", uuid=UUID(int=3))
    for changed in (replace(origin, ctransid=60), replace(origin, readonly=False)):
        here, there = Side((changed, third)), Side((copy,))
        assert lineage.parents(third, here, there) == []
    assert lineage.parents(third, Side((origin, third)), Side((copy,))) == [origin]


def test_a_stranger_with_the_identity_of_a_copy_makes_it_useless() -> None:
    origin = facts()
    third = facts("db@2026-11-26T13:00:00", uuid=UUID(int=3))
    here = Side((origin, third))
    there = Side((copy_of(origin),), strangers=frozenset([origin.uuid]))
    assert lineage.parents(third, here, there) == []


def test_a_volume_made_of_anothers_snapshot_does_not_disturb_it() -> None:
    origin, third = facts(), facts("db@2026-11-26T13:00:00", uuid=UUID(int=3))
    forged = facts("copy@2026-11-26T12:30:00", uuid=UUID(int=4), received_uuid=origin.uuid)
    here, there = Side((origin, third, forged)), Side((copy_of(origin),))
    assert lineage.parents(third, here, there) == [origin]
    another = facts("copy@2026-11-26T12:40:00", uuid=UUID(int=5))
    assert lineage.parents(another, here, there) == []


def test_an_identity_that_two_snapshots_here_share_is_that_of_neither() -> None:
    origin, third = facts(), facts("db@2026-11-26T13:00:00", uuid=UUID(int=3))
    name = "db@2026-11-26T12:30:00"
    forged = facts(name, uuid=UUID(int=4), received_uuid=origin.uuid, send_transid=50, ctransid=51)
    here, there = Side((origin, third, forged)), Side((copy_of(origin),))
    assert lineage.parents(third, here, there) == []


def test_a_marker_of_an_older_version_shares_the_identity_of_its_snapshot() -> None:
    origin, third = facts(), facts("db@2026-11-26T13:00:00", uuid=UUID(int=3))
    copy = copy_of(origin)
    name = copy.name.marker("gamma")
    marker = replace(copy, name=name, uuid=UUID(int=6), parent_uuid=copy.uuid)
    for there in (Side((copy, marker)), Side((marker, copy))):
        assert lineage.parents(third, Side((origin, third)), there) == [origin]
    changed = replace(marker, ctransid=copy.ctransid and copy.ctransid + 1, settled=False)
    assert lineage.parents(third, Side((origin, third)), Side((copy, changed))) == []


def test_what_came_by_a_third_host_is_a_parent_by_name_and_identity() -> None:
    origin, third = facts(), facts("db@2026-11-26T13:00:00", uuid=UUID(int=3))
    copy = copy_of(origin, send_transid=4711)
    assert lineage.parents(third, Side((origin, third)), Side((copy,))) == [origin]
    renamed = replace(copy, name=parse_snapshot("db@2026-11-26T12:00:01"))
    assert lineage.parents(third, Side((origin, third)), Side((renamed,))) == []
    altered = replace(origin, ctransid=51)
    assert lineage.parents(third, Side((altered, third)), Side((copy,))) == []


def test_transactions_tell_the_order_where_the_clock_went_back() -> None:
    before = facts("db@2026-10-25T02:30:00", uuid=UUID(int=1), otransid=10)
    after = facts("db@2026-10-25T02:10:00", uuid=UUID(int=2), otransid=11)
    by_hand = facts("db@2026-10-25T02:20:00", uuid=UUID(int=3), parent_uuid=None, otransid=99)
    assert lineage.in_order([after, before, by_hand]) == [by_hand, before, after]
    assert lineage.newest(Side((after, before)), "db", LATER) == after


@pytest.mark.parametrize(
    "changes",
    [
        {"receiving": "alpha"},
        {"readonly": False},
        {"backup": True},
        {"taken": None},
        {"received_uuid": UUID(int=8), "taken": LATER + timedelta(days=1)},
    ],
)
def test_what_is_never_the_newest(changes: dict[str, object]) -> None:
    older = facts("db@2026-11-26T11:00:00")
    other = facts("db@2026-11-26T12:00:00", uuid=UUID(int=2), otransid=60, **changes)
    assert lineage.newest(Side((older, other)), "db", LATER) == older


def test_only_what_was_made_there_and_never_came_here_would_be_buried() -> None:
    ours = facts()
    theirs = facts("db@2026-11-26T13:00:00", uuid=UUID(int=20), parent_uuid=UUID(int=200))

    def buried(here: Side, there: Side) -> Facts | None:
        return lineage.buried(here, there, "db", LATER)

    assert buried(Side((ours,)), Side((theirs,))) == theirs
    assert buried(Side((ours,)), Side((copy_of(ours), theirs))) == theirs
    assert buried(Side((ours, copy_of(theirs, uuid=UUID(int=21)))), Side((theirs,))) is None
    assert buried(Side((ours,)), Side((replace(theirs, backup=True),))) is None
    from_elsewhere = replace(theirs, received_uuid=UUID(int=77), send_transid=1)
    assert buried(Side((ours,)), Side((from_elsewhere,))) is None
    changed = replace(from_elsewhere, settled=True, receive_transid=8, ctransid=9)
    assert buried(Side((ours,)), Side((changed,))) == changed
    assert buried(Side(()), Side((copy_of(ours),))) is None


def test_how_two_histories_stand() -> None:
    def compare(here: list[Facts], there: list[Facts]) -> Standing:
        return lineage.compare(Side(tuple(here)), Side(tuple(there)), "db", LATER)

    first = facts()
    second = facts("db@2026-11-26T13:00:00", uuid=UUID(int=3), otransid=60, ctransid=60)
    theirs = facts("db@2026-11-26T13:30:00", uuid=UUID(int=30), parent_uuid=UUID(int=2))
    copy = copy_of(first)

    assert compare([first], [copy]) is Standing.SAME
    assert compare([first, second], [copy]) is Standing.AHEAD
    assert compare([first], [copy, theirs]) is Standing.BEHIND
    assert compare([first, second], [copy, theirs]) is Standing.DIVERGED
    assert compare([second], [theirs]) is Standing.UNRELATED
    assert compare([second], []) is Standing.UNRELATED


def test_a_mirror_lacks_what_is_newer_than_the_newest_that_both_have() -> None:
    first = facts()
    second = facts("db@2026-11-26T13:00:00", uuid=UUID(int=3), otransid=60, ctransid=60)
    third = facts("db@2026-11-26T14:00:00", uuid=UUID(int=4), otransid=70, ctransid=70)
    here = Side((third, first, second))

    def missing(*there: Facts) -> list[Facts]:
        return list(lineage.missing(here, Side(there), "db"))

    assert missing() == [first, second, third]
    assert missing(copy_of(first)) == [second, third]
    assert missing(copy_of(second)) == [third]
    assert missing(copy_of(third)) == []
