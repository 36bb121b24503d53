"""Members, disks and links of a followed volume, as values: the real state machine is driven over
them one small step at a time, with crashes and cuts between any two."""

import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import combinations

from buttervolume.follow import machine
from buttervolume.follow.machine import (
    Acquire,
    Answer,
    Copy,
    Fetch,
    Group,
    How,
    Line,
    Lock,
    Look,
    Policy,
    Publish,
    Refuse,
    Release,
    Resume,
    Role,
    Standing,
    Tell,
    Version,
    begins,
)

Writes = tuple[int, ...]
"""What a volume holds: the writes that went into it, in their order."""


class Violation(Exception):
    """One of the invariants does not hold."""


@dataclass(frozen=True)
class Member:
    """One member's disk, and what it is doing."""

    volume: Writes | None = None
    line: Line = ()
    role: Role = Role.NONE
    granted_to: str | None = None
    known: Line = ()
    """The longest line that it was told; on its disk."""
    copies: frozenset[tuple[Line, Writes]] = frozenset()
    forks: frozenset[Writes] = frozenset()
    """What is kept, and flagged."""
    used: bool = False
    up: bool = True
    lock: str | None = None
    acquire: Acquire | None = None


@dataclass(frozen=True)
class Limits:
    """How much may happen in one history."""

    writes: int = 3
    cuts: int = 2
    crashes: int = 1
    epochs: int = 3
    replications: int = 2


@dataclass(frozen=True)
class World:
    """Everything at one moment."""

    members: tuple[tuple[str, Member], ...]
    links: frozenset[frozenset[str]]
    writes: int = 0
    cuts: int = 0
    crashes: int = 0
    epochs: int = 0
    replications: int = 0
    lines: frozenset[Line] = frozenset()
    """The lines in which a container has started."""

    def __getitem__(self, name: str) -> Member:
        return dict(self.members)[name]

    def changed(self, *changes: tuple[str, Member], **others: object) -> "World":
        members = dict(self.members) | dict(changes)
        return replace(self, members=tuple(members.items()), **others)  # type: ignore[arg-type]

    def are_joined(self, one: str, other: str) -> bool:
        up = self[one].up and self[other].up
        return up and (one == other or frozenset((one, other)) in self.links)

    def unlocked(self, holder: str) -> "World":
        changes = [(n, replace(m, lock=None)) for n, m in self.members if m.lock == holder]
        return self.changed(*changes)


Step = tuple[str, World]


@dataclass
class Rules:
    """The machine and its surroundings; a mutant overrides one of them."""

    policy: Policy
    limits: Limits = field(default_factory=Limits)
    group: type[Group] = Group

    def takes_lock(self, member: Member) -> bool:
        """Whether a lock can be had."""
        return member.lock is None

    def has_lock(self, member: Member, holder: str) -> bool:
        return member.lock == holder

    def lets_go(self, member: Member) -> bool:
        """Whether the owner lets a volume go."""
        return not member.used and member.role in (Role.OWNER, Role.GRANTED)

    def flags(self, held: Version, tip: Version) -> bool:
        return machine.is_fork(held, tip)

    # What can happen next

    def steps(self, world: World) -> Iterator[Step]:
        """Every next step that there can be, with what comes of it."""
        for name, member in world.members:
            if not member.up:
                yield f"{name} has power again", world.changed((name, replace(member, up=True)))
                continue
            yield from self._by_container(world, name, member)
            if world.crashes < self.limits.crashes:
                down = replace(member, up=False, used=False, acquire=None, lock=None)
                crashed = world.changed((name, down), crashes=world.crashes + 1).unlocked(name)
                yield f"{name} crashes", crashed
            if member.acquire is not None:
                yield from self._acquire(world, name, member, member.acquire)
            yield from self._rounds(world, name, member)
        if world.cuts < self.limits.cuts:
            for pair in combinations(dict(world.members), 2):
                links = world.links ^ {frozenset(pair)}
                yield f"link {pair}", replace(world, links=links, cuts=world.cuts + 1)

    def _by_container(self, world: World, name: str, member: Member) -> Iterator[Step]:
        if member.used:
            assert member.volume is not None
            if world.writes < self.limits.writes:
                wrote = replace(member, volume=(*member.volume, world.writes))
                yield f"write on {name}", world.changed((name, wrote), writes=world.writes + 1)
            yield f"unmount on {name}", world.changed((name, replace(member, used=False)))
        elif member.acquire is None:
            names = tuple(sorted(dict(world.members)))
            acquire = Acquire.start(self.group(name, names, self.policy))
            yield f"mount on {name}", world.changed((name, replace(member, acquire=acquire)))

    def _acquire(self, world: World, me: str, member: Member, acquire: Acquire) -> Iterator[Step]:
        def on(result: object, other: World = world) -> World:
            epoch = f"{other.epochs}{me}"
            now = replace(other[me], acquire=acquire.after(result, epoch))
            return other.changed((me, now))

        step = acquire.step
        what = f"{me}: {type(step).__name__}"
        match step:
            case Lock(other):
                if not world.are_joined(me, other):
                    yield f"{what} {other} away", on(None)
                elif self.takes_lock(world[other]):
                    locked = world.changed((other, replace(world[other], lock=me)))
                    yield f"{what} {other}", on(True, locked)
                else:
                    yield f"{what} {other} taken", on(str(world[other].lock))
            case Look(members):
                if self._holds(world, me, members):
                    standings = {name: self.standing(name, world[name]) for name in members}
                    yield what, on(standings)
                else:
                    yield f"{what} lost", on(None)
            case Release(owner):
                there = world[owner]
                if not self._holds(world, me, (owner,)):
                    yield f"{what} lost", on(Refuse("the connection was lost"))
                elif not self.lets_go(there):
                    yield f"{what} refused", on(Refuse("it is in use"))
                else:
                    assert there.volume is not None
                    kept = there.copies | {(there.line, there.volume)}
                    granted = replace(there, role=Role.GRANTED, granted_to=me, copies=kept)
                    final = Copy(owner, "final", Version(there.line, len(there.volume)))
                    yield f"{what} {owner}", on(final, world.changed((owner, granted)))
            case Fetch(copy):
                if not world.are_joined(me, copy.member):
                    yield f"{what} lost", on(Refuse("the connection was lost"))
                else:
                    content = self.content(world[copy.member], copy)
                    here = replace(member, copies=member.copies | {(copy.version.line, content)})
                    yield what, on(True, world.changed((me, here)))
            case Publish(line, copy):
                if world.epochs < self.limits.epochs:
                    content = () if copy is None else self.content(member, copy)
                    there = replace(
                        self._kept(member, Version(line, len(content))),
                        volume=content,
                        line=line,
                        known=line,
                        role=Role.OWNER,
                        granted_to=None,
                    )
                    begun = world.changed((me, there), epochs=world.epochs + 1)
                    yield f"{what} {line[-1].how.value}", on(True, begun)
            case Resume():
                resumed = replace(member, role=Role.OWNER, granted_to=None)
                yield what, on(True, world.changed((me, resumed)))
            case Tell(members, line):
                told = world
                reached = 0
                for name in members:
                    yield f"{what} {reached} and no more", on(reached, told)
                    if self._holds(told, me, (name,)) and begins(told[name].known, line):
                        told = told.changed((name, replace(told[name], known=line)))
                        reached += 1
                yield f"{what} {reached}", on(reached, told)
            case Answer(reason):
                done = replace(member, acquire=None, used=not reason)
                lines = world.lines if reason else world.lines | {member.line}
                ended = world.changed((me, done), lines=lines).unlocked(me)
                yield f"{me} answers {reason or 'mounted'}", ended

    def _holds(self, world: World, me: str, names: tuple[str, ...]) -> bool:
        return all(world.are_joined(me, n) and self.has_lock(world[n], me) for n in names)

    def standing(self, name: str, member: Member) -> Standing:
        copies = set(member.copies)
        if member.volume is not None:
            copies.add((member.line, member.volume))
        return Standing(
            name,
            max(member.known, member.line, *(line for line, _ in copies), key=len)
            if copies
            else max(member.known, member.line, key=len),
            member.line,
            member.role,
            member.granted_to,
            in_use=member.used,
            copies=tuple(
                Copy(name, "copy", Version(line, len(content)))
                for line, content in sorted(copies, key=repr)
            ),
        )

    def content(self, member: Member, copy: Copy) -> Writes:
        """The content of a copy of a version: the longest of that line counts, if it is behind."""
        held = set(member.copies)
        if member.volume is not None:
            held.add((member.line, member.volume))
        return next(
            content
            for line, content in held
            if line == copy.version.line and len(content) == copy.version.seq
        )

    def _kept(self, member: Member, tip: Version) -> Member:
        """A member whose volume is replaced, or given up: what the new line lacks is a fork."""
        if member.volume is None:
            return member
        copies = member.copies | {(member.line, member.volume)}
        forks = member.forks
        if self.flags(Version(member.line, len(member.volume)), tip):
            forks |= {member.volume}
        return replace(member, copies=copies, forks=forks)

    def _rounds(self, world: World, name: str, member: Member) -> Iterator[Step]:
        for other, there in world.members:
            if other == name or not world.are_joined(name, other):
                continue
            mine = self.standing(name, member)
            line = there.line
            busy = member.lock is not None or member.acquire is not None or member.used
            if not busy and there.volume is not None and machine.is_superseded(mine, line):
                kept = self._kept(member, Version(line, len(there.volume)))
                given_up = replace(kept, role=Role.REPLICA, granted_to=None, known=line)
                yield f"{name} learns of {other}", world.changed((name, given_up))
            if (
                member.role is Role.OWNER
                and member.volume is not None
                and world.replications < self.limits.replications
                and begins(there.line, member.line)
                and there.role is not Role.OWNER
                and (member.line, member.volume) not in there.copies
            ):
                copies = there.copies | {(member.line, member.volume)}
                replicated = world.changed(
                    (other, replace(there, copies=copies)), replications=world.replications + 1
                )
                yield f"{name} replicates to {other}", replicated

    # What must hold

    def check(self, before: World, after: World) -> None:
        """Raise Violation if a step from one world to the next breaks an invariant."""
        on_disks = {w for _, m in after.members for w in m.volume or ()}
        on_disks |= {w for _, m in after.members for _, content in m.copies for w in content}
        if on_disks != set(range(after.writes)):
            raise Violation("I1: a write is on no disk")
        for name, now in after.members:
            was = before[name]
            if now.used and not was.used:
                self._check_mount(name, after)
            self._check_replaced(was, now)
        if self.policy is Policy.REFUSE:
            lines = {m.line for _, m in after.members}
            if any(not begins(a, b) and not begins(b, a) for a, b in combinations(lines, 2)):
                raise Violation("I3: two lines")
        if len(after.members) > 2:
            for one, other in combinations(after.lines, 2):
                if not begins(one, other) and not begins(other, one):
                    raise Violation("I5: containers have started in two lines")

    def _check_mount(self, name: str, world: World) -> None:
        member = world[name]
        others = [other for other, m in world.members if other != name and m.used]
        if self.policy is Policy.REFUSE:
            if others:
                raise Violation("I3: two users")
            if set(member.volume or ()) != set(range(world.writes)):
                raise Violation("I3: mounted without all that was written")
        taken = any(e.how is How.TAKEN for _, m in world.members for e in m.line)
        if others and not taken:
            raise Violation("I4: two users, and none has taken it")
        if len(world.members) > 2 and any(len(line) > len(member.line) for line in world.lines):
            raise Violation("I5: started in an old line")

    def _check_replaced(self, was: Member, now: Member) -> None:
        """I2: content is replaced, or given up, only if the new line contains it or it is kept."""
        if was.volume is None or now.volume is None:
            return
        replaced = now.volume[: len(was.volume)] != was.volume
        kept = any(fork[: len(was.volume)] == was.volume for fork in now.forks)
        if replaced and not kept:
            raise Violation(f"I2: {was.volume} replaced by {now.volume}")


def begin(members: int, *, used_before: bool = False) -> World:
    """Members that are all up and see each other; the first may own the volume already."""
    names = "abcdef"[:members]
    all_members = {name: Member() for name in names}
    links = frozenset(frozenset(pair) for pair in combinations(names, 2))
    if used_before:
        line: Line = (machine.Epoch("first", "a", None, How.FIRST),)
        all_members = {name: Member(known=line) for name in names}
        all_members["a"] = Member((), line, Role.OWNER, known=line)
    return World(tuple(all_members.items()), links, epochs=int(used_before))


def search(rules: Rules, world: World, limit: int) -> int:
    """Look at every world that can come of one, breadth first; return how many there were."""
    seen = {world}
    queue: deque[tuple[World, tuple[str, ...]]] = deque([(world, ())])
    while queue and len(seen) < limit:
        before, trace = queue.popleft()
        for label, after in rules.steps(before):
            _check(rules, before, after, (*trace, label))
            if after not in seen:
                seen.add(after)
                queue.append((after, (*trace, label)))
    return len(seen)


def _weight(label: str) -> float:
    """How likely a step is, beside the others that could be taken."""
    if "crashes" in label or "link" in label:
        return 0.4
    return 3.0 if ":" in label or "write" in label else 1.0


def walk(rules: Rules, world: World, seed: int, length: int = 160) -> World:
    """Go on at random, with more of what makes progress."""
    chance = random.Random(seed)
    trace: tuple[str, ...] = ()
    for _ in range(length):
        steps = list(rules.steps(world))
        weights = [_weight(label) for label, _ in steps]
        label, after = chance.choices(steps, weights)[0]
        trace = (*trace, label)
        _check(rules, world, after, trace)
        world = after
    return world


def _check(rules: Rules, before: World, after: World, trace: tuple[str, ...]) -> None:
    try:
        rules.check(before, after)
    except Violation as violation:
        story = "\n".join(f"  {number}. {label}" for number, label in enumerate(trace, 1))
        raise Violation(f"{violation}\n{story}") from None
