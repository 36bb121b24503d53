"""A volume that follows its service from host to host: who may use it, decided without any I/O.

One member owns the volume. Ownership passes by the owner's consent, or by a takeover that is on
record: each time an *epoch* begins, and the epochs make a *line* that travels with the content.
Dates decide nothing.

Two things are kept apart. `decide` and its like are pure functions of what the members have said.
`Acquire` is what a Mount goes through, as a value: it says what is to be done next, is told what
came of it, and so on to the answer. `following` carries it out; the model of the tests interleaves
members, crashes and cuts between any two steps (tests/unit/test_follow_model.py).
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum


class Policy(Enum):
    """What happens to a volume whose owner cannot be reached."""

    REFUSE = "refuse"
    """Nobody uses it until the owner is back, or a person decides."""
    LATEST = "latest"
    """It goes on with the newest copy in reach; what came after that stays with the owner."""


class How(Enum):
    """How an epoch began."""

    FIRST = "first"
    HANDED = "handed"
    TAKEN = "taken"


@dataclass(frozen=True)
class Base:
    """Where in a line an epoch began: behind a snapshot of an earlier epoch."""

    epoch: int
    seq: int


@dataclass(frozen=True)
class Epoch:
    """A time in which one member owns the volume."""

    id: str
    """Nobody else's: two takeovers at the same place of a line are two epochs."""
    owner: str
    base: Base | None
    """None for the first epoch only."""
    how: How


Line = tuple[Epoch, ...]
"""Epochs in their order; the place in it is an epoch's number."""


def begins(line: Line, other: Line) -> bool:
    """Whether another line is this one, or goes on from it."""
    return other[: len(line)] == line


@dataclass(frozen=True)
class Version:
    """A state of the volume: the snapshot `seq` of the last epoch of a line."""

    line: Line
    seq: int

    def __contains__(self, earlier: "Version") -> bool:
        """Whether what another version holds went into this one.

        From the tip back along the bases: what an epoch held beyond the base of the next one is not
        in that one, and an epoch that no base leads to is not in it at all.
        """
        if not earlier.line or not begins(earlier.line, self.line):
            return False
        wanted, epoch, seq = len(earlier.line) - 1, len(self.line) - 1, self.seq
        while epoch > wanted:
            base = self.line[epoch].base
            if base is None:
                return False
            epoch, seq = base.epoch, base.seq
        return epoch == wanted and earlier.seq <= seq


class Relation(Enum):
    """How one version stands to another."""

    EQUAL = "equal"
    ANCESTOR = "ancestor"
    DESCENDANT = "descendant"
    FORK = "fork"


def compare(one: Version, other: Version) -> Relation:
    """How one version stands to another; what neither contains is a fork."""
    match (one in other, other in one):
        case (True, True):
            return Relation.EQUAL
        case (True, False):
            return Relation.ANCESTOR
        case (False, True):
            return Relation.DESCENDANT
        case _:
            return Relation.FORK


_ANY_SEQ = 1 << 62


def tip(line: Line) -> Version:
    """All that is ever written in the last epoch of a line."""
    return Version(line, _ANY_SEQ)


def newest(copies: "Iterable[Copy]", line: Line) -> "Copy | None":
    """The copy that goes furthest on a line; what the line does not contain does not count."""
    end = tip(line)
    on_line = [copy for copy in copies if copy.version in end]
    return max(on_line, key=lambda c: (len(c.version.line), c.version.seq), default=None)


class Role(Enum):
    """What a member is to the volume, on its own disk."""

    NONE = "none"
    """It has nothing of it yet."""
    OWNER = "owner"
    GRANTED = "granted"
    """It was the owner and has let the volume go to somebody, who may not have begun."""
    REPLICA = "replica"
    SUPERSEDED = "superseded"
    """It was the owner, and somebody has taken over."""


@dataclass(frozen=True)
class Copy:
    """A whole copy of a version on a member's disk."""

    member: str
    snapshot: str
    version: Version


@dataclass(frozen=True)
class Standing:
    """What a member says of itself."""

    member: str
    known: Line = ()
    """The longest line that it has heard of."""
    held: Line = ()
    """The line of what its volume holds."""
    role: Role = Role.NONE
    granted_to: str | None = None
    """The member that the owner has let the volume go to; None with a role of GRANTED: any."""
    dropped: frozenset[str] = frozenset()
    """Epochs that a person has given up, with what went on from them."""
    in_use: bool = False
    copies: tuple[Copy, ...] = ()


# Decisions


@dataclass(frozen=True)
class Refuse:
    """The volume is not mounted, and why."""

    reason: str
    may_pass: bool = False
    """Whether it is worth while to wait a moment and look again."""


@dataclass(frozen=True)
class GoOn:
    """This member is the owner, or has let it go to nobody who began: it stays the owner. So it
    does if it has forgotten that, and no member knows of another."""

    line: Line


@dataclass(frozen=True)
class AskFor:
    """The owner is to let the volume go: it does if nobody uses it there."""

    owner: str
    line: Line


@dataclass(frozen=True)
class Begin:
    """A new epoch begins here, with the content of a copy; without one the volume is new."""

    how: How
    line: Line
    """The line that the epoch is added to: all that is known, even where the copy stands before."""
    copy: Copy | None = None

    def epoch(self, owner: str, new_id: str) -> Epoch:
        """The epoch itself."""
        if self.copy is None:
            return Epoch(new_id, owner, None, self.how)
        version = self.copy.version
        return Epoch(new_id, owner, Base(len(version.line) - 1, version.seq), self.how)


Decision = Refuse | GoOn | AskFor | Begin


class TwoLines(Exception):
    """Two members have gone on apart; a person must say which line is given up."""

    def __init__(self, one: Line, other: Line) -> None:
        self.one, self.other = next((a, b) for a, b in zip(one, other, strict=False) if a != b)
        super().__init__(
            f"two lines: {self.one.owner} began {self.one.id} and {self.other.owner} began "
            f"{self.other.id}; give one up with: buttervolume follow resolve"
        )


def without(line: Line, dropped: Collection[str]) -> Line:
    """A line up to the first epoch that was given up."""
    kept = next((n for n, epoch in enumerate(line) if epoch.id in dropped), len(line))
    return line[:kept]


def known_line(standings: Iterable[Standing]) -> Line:
    """The longest line that any of them has heard of, less what was given up. Raises TwoLines."""
    standings = list(standings)
    dropped = frozenset[str]().union(*(standing.dropped for standing in standings))
    lines = [without(line, dropped) for s in standings for line in (s.known, s.held)]
    longest = max(lines, key=len, default=())
    for line in lines:
        if not begins(line, longest):
            raise TwoLines(line, longest)
    return longest


def is_majority(reached: int, members: int) -> bool:
    """Whether so many may decide for all. Of two members one is enough: with `latest` two of them
    can end in two lines, which are then named."""
    return 2 * reached > members or members == 2


@dataclass(frozen=True)
class Group:
    """Who a volume follows its service among, as one of them sees it."""

    me: str
    members: tuple[str, ...]
    """In the order of their names, in which all take their locks."""
    policy: Policy

    def decide(self, standings: Mapping[str, Standing], *, by_hand: bool = False) -> Decision:
        """What a Mount here leads to.

        `standings` holds the members that were reached and locked, this one among them. `by_hand`
        is a person's word that who cannot be reached is dead.
        """
        try:
            line = known_line(standings.values())
        except TwoLines as error:
            return Refuse(str(error))
        if not line:
            return self._first(standings)
        owner = line[-1].owner
        if owner not in standings:
            return self._without(f"its owner {owner} cannot be reached", line, standings, by_hand)
        standing = standings[owner]
        if standing.in_use and owner != self.me:  # whatever has become of its record
            return Refuse(f"in use on {owner}", may_pass=True)
        grantee = standing.granted_to if standing.role is Role.GRANTED else None
        if grantee is not None and grantee not in standings and grantee != self.me:
            why = f"{owner} has let it go to {grantee}, which cannot be reached"
            return self._without(why, line, standings, by_hand)
        is_whole = standing.held == line
        if owner == self.me and is_whole and all(member in standings for member in self.members):
            return GoOn(line)  # even if its record is lost: who had begun would say so
        if not _has_the_last(standing, line, standings.values()):
            return self._without(f"its owner {owner} has lost it", line, standings, by_hand)
        if owner == self.me:  # else it was removed here, after a last snapshot
            return (
                GoOn(line) if is_whole else Begin(How.HANDED, line, newest(standing.copies, line))
            )
        if by_hand:
            return Refuse(
                f"its owner {owner} answers: stop what uses it there, if anything does, and it is "
                "handed over when it is mounted here; if it cannot let it go, shut that host down"
            )
        return AskFor(owner, line)

    def _first(self, standings: Mapping[str, Standing]) -> Decision:
        away = [member for member in self.members if member not in standings]
        if away:
            return Refuse(
                f"nobody is known to have used it, and {', '.join(away)} cannot be reached, "
                "which may have; the first time, all members must answer"
            )
        users = [member for member in self.members if standings[member].in_use]
        if users and users != [self.me]:  # it was there before it began to follow
            return Refuse(f"in use on {', '.join(users)}", may_pass=True)
        return Begin(How.FIRST, ())

    def _without(
        self, why: str, line: Line, standings: Mapping[str, Standing], by_hand: bool
    ) -> Decision:
        """What to do where the owner says nothing."""
        copies = [copy for standing in standings.values() for copy in standing.copies]
        best = newest(copies, line)
        if best is None:
            all_answer = all(member in standings for member in self.members)
            way_out = "; to make it anew, first: buttervolume follow drop" if all_answer else ""
            return Refuse(f"{why}; there is no copy in reach{way_out}")
        take = "to go on with that, if nothing newer comes back: buttervolume follow take"
        if self.policy is Policy.REFUSE and not by_hand:
            known = f"the newest copy in reach is {best.snapshot} on {best.member}"
            return Refuse(f"{why}; {known}; {take}")
        if not by_hand and not is_majority(len(standings), len(self.members)):
            return Refuse(
                f"{why}, and only {len(standings)} of {len(self.members)} members can be reached"
            )
        return Begin(How.TAKEN, line, best)

    def must_tell(self) -> bool:
        """Whether a majority must know a line before a container starts in it."""
        return self.policy is Policy.LATEST and len(self.members) > 2


def _has_the_last(owner: Standing, line: Line, standings: Iterable[Standing]) -> bool:
    """Whether an owner has what was written last: in its volume or, where that was removed after it
    was let go, in a snapshot that is as new as any."""
    if owner.held == line:
        return owner.role in (Role.OWNER, Role.GRANTED)
    if owner.role is not Role.GRANTED:
        return False
    best = newest((copy for standing in standings for copy in standing.copies), line)
    return best is not None and any(copy.version == best.version for copy in owner.copies)


# Mount, step by step


@dataclass(frozen=True)
class Lock:
    """Lock the volume at a member: True, or None if it cannot be reached, or who has the lock."""

    member: str


@dataclass(frozen=True)
class Look:
    """Read what the locked members say of themselves: their standings. None if a lock is lost."""

    members: tuple[str, ...]


@dataclass(frozen=True)
class Release:
    """Have the owner let the volume go to this member: the final copy, or a refusal.

    The owner looks again whether its lock is still held by this very Mount, and nobody uses the
    volume, and has the grant on its disk before it answers."""

    owner: str


@dataclass(frozen=True)
class Fetch:
    """Bring a copy here: True, another one that has come in its place, or a refusal."""

    copy: Copy
    is_final: bool = False
    """Whether the owner has let the volume go with it. It can take another one, where something
    else has the name here."""


@dataclass(frozen=True)
class Publish:
    """Put the content of a copy (nothing without one) and the line in the volume's place, in one
    step; what the volume held and the line does not contain is a fork. True, or a refusal."""

    line: Line
    copy: Copy | None


@dataclass(frozen=True)
class Resume:
    """Be the owner again, where a grant was given that nobody took. True, or a refusal."""

    line: Line


@dataclass(frozen=True)
class Tell:
    """Tell the locked members the line, and have them keep it on their disks: how many did."""

    members: tuple[str, ...]
    line: Line


@dataclass(frozen=True)
class Answer:
    """The end. An empty string: the volume may be used; else why not."""

    reason: str = ""
    may_pass: bool = False
    """Whether it is worth while to wait a moment and begin again."""


Step = Lock | Look | Release | Fetch | Publish | Resume | Tell | Answer


@dataclass(frozen=True)
class Acquire:
    """A Mount on its way. `step` is what is to be done; `after` says what came of it."""

    group: Group
    by_hand: bool = False
    locked: tuple[str, ...] = ()
    begin: Begin | None = None
    """The epoch that is to begin, once its copy is here."""
    step: Step = field(default=Answer("not begun"))

    @classmethod
    def start(cls, group: Group, *, by_hand: bool = False) -> "Acquire":
        """A Mount that begins."""
        return cls(group, by_hand, step=Lock(group.members[0]))

    def after(self, result: object, new_id: str = "") -> "Acquire":
        """Go on with what came of the step. `new_id` is for an epoch that may begin now."""
        match self.step:
            case Lock(member):
                return self._after_lock(member, result)
            case Look():
                return self._after_look(result, new_id)
            case Release():
                if not isinstance(result, Copy):
                    return self._refused(result)
                assert isinstance(self.begin, Begin)
                return self._fetch(replace(self.begin, copy=result), new_id)
            case Fetch():
                if isinstance(result, Copy):
                    assert self.begin is not None
                    return replace(self, begin=replace(self.begin, copy=result))._publish(new_id)
                return self._publish(new_id) if result is True else self._refused(result)
            case Publish(line) | Resume(line):
                return self._tell(line) if result is True else self._refused(result)
            case Tell(members, line):
                return self._after_tell(members, line, result)
            case Answer():
                raise AssertionError("it has ended")

    def _end(self, reason: str = "", *, may_pass: bool = False) -> "Acquire":
        return replace(self, step=Answer(reason, may_pass))

    def _refused(self, result: object) -> "Acquire":
        assert isinstance(result, Refuse)
        return self._end(result.reason, may_pass=result.may_pass)

    def _after_lock(self, member: str, result: object) -> "Acquire":
        if isinstance(result, str):
            return self._end(f"{result} is looking for it on {member} now", may_pass=True)
        locked = (*self.locked, member) if result else self.locked
        if not result and member == self.group.me:
            return self._end("this host cannot lock it")
        rest = self.group.members[self.group.members.index(member) + 1 :]
        step: Step = Lock(rest[0]) if rest else Look(locked)
        return replace(self, locked=locked, step=step)

    def _after_look(self, result: object, new_id: str) -> "Acquire":
        if not isinstance(result, Mapping):
            return self._end("the connection to a member was lost", may_pass=True)
        match self.group.decide(result, by_hand=self.by_hand):
            case Refuse(reason, may_pass):
                return self._end(reason, may_pass=may_pass)
            case GoOn(line):
                if result[self.group.me].role is not Role.OWNER:
                    return replace(self, step=Resume(line))
                return self._tell(line)
            case AskFor(owner, line):
                return replace(self, begin=Begin(How.HANDED, line), step=Release(owner))
            case Begin() as begin:
                return self._fetch(begin, new_id)

    def _fetch(self, begin: Begin, new_id: str) -> "Acquire":
        going = replace(self, begin=begin)
        if begin.copy is None or begin.copy.member == self.group.me:
            return going._publish(new_id)
        return replace(going, step=Fetch(begin.copy, begin.how is How.HANDED))

    def _publish(self, new_id: str) -> "Acquire":
        assert self.begin is not None
        line = (*self.begin.line, self.begin.epoch(self.group.me, new_id))
        return replace(self, step=Publish(line, self.begin.copy))

    def _tell(self, line: Line) -> "Acquire":
        others = tuple(member for member in self.locked if member != self.group.me)
        if not self.group.must_tell():
            return self._end()
        return replace(self, step=Tell(others, line))

    def _after_tell(self, members: tuple[str, ...], line: Line, result: object) -> "Acquire":
        assert isinstance(result, int)
        if self.by_hand or is_majority(result + 1, len(self.group.members)):
            return self._end()
        return self._end(f"only {result} of {len(members)} other members could be told")


# Between Mounts


def is_superseded(mine: Standing, line: Line) -> bool:
    """Whether a line that was heard of says that somebody else goes on with what was this
    member's, even if that has forgotten what it was."""
    was_owner = mine.role in (Role.OWNER, Role.GRANTED, Role.SUPERSEDED)
    return (
        (was_owner or (mine.role is Role.NONE and bool(mine.held)))
        and bool(line)
        and begins(mine.known, line)
        and line[-1].owner != mine.member
    )


def is_owner_again(mine: Standing) -> bool:
    """Whether a member that had stepped back holds the end of the line: what others had gone on
    with was given up."""
    return (
        mine.role in (Role.REPLICA, Role.SUPERSEDED)
        and bool(mine.held)
        and mine.held == mine.known
        and mine.held[-1].owner == mine.member
    )


def is_fork(held: Version, tip: Version) -> bool:
    """Whether what a member holds is to be kept apart, since the version that takes its place does
    not contain it."""
    return held not in tip
