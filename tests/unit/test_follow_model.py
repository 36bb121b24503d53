"""The state machine of followed volumes: every invariant over all interleavings that fit in a few
seconds, over long random histories, and caught mutants of the machine."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import settings

from buttervolume.follow.machine import (
    Acquire,
    AskFor,
    Base,
    Begin,
    Copy,
    Decision,
    Epoch,
    Fetch,
    GoOn,
    Group,
    How,
    Policy,
    Publish,
    Refuse,
    Resume,
    Role,
    Standing,
    Version,
    is_superseded,
)
from tests.support.follow_world import (
    Limits,
    Member,
    Rules,
    Violation,
    World,
    begin,
    search,
    walk,
)

HISTORIES = 12 if settings.default.max_examples > 100 else 3  # type: ignore[union-attr]
"""Random ones of each kind; CI has time for more."""
LONG = Limits(writes=6, cuts=8, crashes=4, epochs=7, replications=6)
POLICIES = pytest.mark.parametrize("policy", list(Policy))
MEMBERS = pytest.mark.parametrize("members", [2, 3])


@POLICIES
@MEMBERS
def test_all_interleavings_of_short_histories_keep_the_invariants(
    policy: Policy, members: int
) -> None:
    assert search(Rules(policy), begin(members), limit=3000) >= 3000


@POLICIES
@MEMBERS
@pytest.mark.parametrize("used_before", [False, True])
def test_long_random_histories_keep_the_invariants(
    policy: Policy, members: int, used_before: bool
) -> None:
    for seed in range(HISTORIES):
        walk(Rules(policy, LONG), begin(members, used_before=used_before), seed)


@POLICIES
@MEMBERS
def test_when_all_are_back_and_idle_a_mount_succeeds_or_names_the_conflict(
    policy: Policy, members: int
) -> None:
    rules = Rules(policy, LONG)
    for seed in range(HISTORIES):
        world = healed(walk(rules, begin(members, used_before=True), seed, length=80))
        for name, _ in world.members:
            answer = mount_alone(rules, world, name)
            assert answer == "mounted" or (policy is Policy.LATEST and "two lines" in answer), seed


def healed(world: World) -> World:
    everybody = [
        (name, replace(member, up=True, used=False, lock=None, acquire=None))
        for name, member in world.members
    ]
    names = dict(world.members)
    links = frozenset(frozenset((a, b)) for a in names for b in names if a != b)
    return replace(world.changed(*everybody), links=links, epochs=0)


def mount_alone(rules: Rules, world: World, name: str) -> str:
    """Mount there while nothing else happens; what is answered."""
    for _ in range(40):
        steps = {
            label: after
            for label, after in rules.steps(world)
            if label == f"mount on {name}" or label.startswith((f"{name}: ", f"{name} answers"))
        }
        label, world = list(steps.items())[-1]
        if " answers " in label:
            return label.partition(" answers ")[2]
    raise AssertionError("no answer")


# Mutants: each lacks one thing that the protocol needs, and is caught


class NoLock(Rules):
    def takes_lock(self, member: Member) -> bool:
        return True

    def has_lock(self, member: Member, holder: str) -> bool:
        return True


class NoUseCheck(Rules):
    def lets_go(self, member: Member) -> bool:
        return member.role in (Role.OWNER, Role.GRANTED)


class BlindGroup(Group):
    def decide(self, standings: Mapping[str, Standing], *, by_hand: bool = False) -> Decision:
        unused = {name: replace(s, in_use=False) for name, s in standings.items()}
        return super().decide(unused, by_hand=by_hand)


class FirstWithoutAll(Group):
    """Whoever does not answer is taken to have nothing."""

    def decide(self, standings: Mapping[str, Standing], *, by_hand: bool = False) -> Decision:
        silent = {m: Standing(m) for m in self.members if m not in standings}
        if not any(s.known for s in standings.values()):
            return Begin(How.FIRST, ())
        return super().decide({**silent, **standings}, by_hand=by_hand)


class GrantedTwice(Group):
    """A grant is given anew, whether or not its holder may have begun."""

    def decide(self, standings: Mapping[str, Standing], *, by_hand: bool = False) -> Decision:
        forgetful = {
            name: replace(s, granted_to=self.me) if s.role is Role.GRANTED else s
            for name, s in standings.items()
        }
        return super().decide(forgetful, by_hand=by_hand)


class NoForks(Rules):
    def flags(self, held: Version, tip: Version) -> bool:
        return False


class NotTold(Group):
    def must_tell(self) -> bool:
        return False


@pytest.mark.parametrize(
    ("mutant", "members", "used_before"),
    [
        (NoLock(Policy.REFUSE, LONG), 2, True),
        (NoUseCheck(Policy.REFUSE, LONG, group=BlindGroup), 2, True),
        (Rules(Policy.REFUSE, LONG, group=FirstWithoutAll), 2, False),
        (Rules(Policy.REFUSE, LONG, group=GrantedTwice), 3, True),
        (NoForks(Policy.LATEST, LONG), 2, True),
        (Rules(Policy.LATEST, LONG, group=NotTold), 3, True),
    ],
    ids=lambda value: (
        f"{type(value).__name__}-{value.group.__name__}" if isinstance(value, Rules) else str(value)
    ),
)
def test_a_mutant_is_caught(mutant: Rules, members: int, used_before: bool) -> None:
    def walk_often() -> None:
        for seed in range(3000):
            walk(mutant, begin(members, used_before=used_before), seed)

    with pytest.raises(Violation):
        walk_often()


def test_an_owner_that_uses_it_is_not_taken_from_whatever_it_remembers() -> None:
    line = (Epoch("aaaa", "a", None, How.FIRST),)
    copy = Copy("b", "v@1", Version(line, 1))
    forgetful = Standing("a", line, line, Role.NONE, in_use=True)
    mine = Standing("b", line, (), Role.REPLICA, copies=(copy,))

    decision = Group("b", ("a", "b"), Policy.LATEST).decide({"a": forgetful, "b": mine})

    assert decision == Refuse("in use on a", may_pass=True)


def test_the_first_user_is_not_joined_by_another_where_it_was_used_before_it_followed() -> None:
    standings = {name: Standing(name, in_use=name == "a") for name in ("a", "b")}

    group = Group("b", ("a", "b"), Policy.REFUSE)

    assert group.decide(standings) == Refuse("in use on a", may_pass=True)
    assert isinstance(Group("a", ("a", "b"), Policy.REFUSE).decide(standings), Begin)


LINE = (Epoch("aaaa", "a", None, How.FIRST),)
ALL = ("a", "b", "c")


def copy_of(member: str, seq: int) -> Copy:
    return Copy(member, f"v@{seq}", Version(LINE, seq))


def let_go(*copies: Copy) -> Standing:
    """An owner that let the volume go, which was removed there then."""
    return Standing("a", LINE, (), Role.GRANTED, copies=copies)


def replica(member: str, *copies: Copy) -> Standing:
    return Standing(member, LINE, (), Role.REPLICA, copies=copies)


def said(decision: Decision) -> str:
    assert isinstance(decision, Refuse)
    return decision.reason


def test_what_was_removed_is_gone_on_with_from_its_last_copy() -> None:
    standings = {"a": let_go(copy_of("a", 2)), "b": replica("b", copy_of("b", 2))}

    assert Group("b", ALL, Policy.REFUSE).decide(standings) == AskFor("a", LINE)
    decision = Group("a", ALL, Policy.REFUSE).decide(standings)
    assert decision == Begin(How.HANDED, LINE, copy_of("a", 2))


@pytest.mark.parametrize("left", [(), (copy_of("a", 1),)], ids=["no copy", "an older one"])
@pytest.mark.parametrize("me", ["a", "b"])
def test_an_owner_that_lacks_the_last_copy_hands_nothing_over(
    left: tuple[Copy, ...], me: str
) -> None:
    standings = {"a": let_go(*left), "b": replica("b", copy_of("b", 2))}

    reason = said(Group(me, ALL, Policy.REFUSE).decide(standings))

    assert "its owner a has lost it" in reason
    assert "v@2 on b" in reason
    assert "follow take" in reason
    by_hand = Group(me, ALL, Policy.REFUSE).decide(standings, by_hand=True)
    assert by_hand == Begin(How.TAKEN, LINE, copy_of("b", 2))


def test_where_nobody_has_a_copy_it_can_be_dropped() -> None:
    standings = {"a": let_go(), "b": replica("b"), "c": replica("c")}
    group = Group("b", ALL, Policy.LATEST)

    assert "follow drop" in said(group.decide(standings))
    assert "follow drop" in said(group.decide(standings, by_hand=True))
    del standings["c"]
    assert "follow drop" not in said(group.decide(standings)), "c may have one"


def test_what_was_let_go_and_is_used_is_not_taken() -> None:
    used = Standing("a", LINE, LINE, Role.GRANTED, "c", in_use=True, copies=(copy_of("a", 2),))
    standings = {"a": used, "b": replica("b", copy_of("b", 2))}

    decision = Group("b", ("a", "b", "c"), Policy.LATEST).decide(standings)

    assert decision == Refuse("in use on a", may_pass=True)


@pytest.mark.parametrize("role", [Role.NONE, Role.REPLICA, Role.SUPERSEDED])
def test_an_owner_that_has_forgotten_it_goes_on_if_all_members_know_of_nobody_else(
    role: Role,
) -> None:
    forgetful = Standing("a", LINE, LINE, role, copies=(copy_of("a", 2),))
    standings = {"a": forgetful, "b": replica("b"), "c": replica("c")}
    group = Group("a", ALL, Policy.REFUSE)

    assert group.decide(standings) == GoOn(LINE)
    acquire = Acquire.start(group)
    for _ in ALL:
        acquire = acquire.after(True)
    assert acquire.after(standings).step == Resume(LINE), "it is on its disk again"
    assert "a has lost it" in said(Group("b", ALL, Policy.REFUSE).decide(standings))
    del standings["c"]
    assert "a has lost it" in said(group.decide(standings)), "c may have begun"


def test_who_has_forgotten_that_it_owned_it_is_superseded_as_well() -> None:
    taken = (*LINE, Epoch("bbbb", "b", Base(0, 2), How.TAKEN))

    assert is_superseded(Standing("a", taken, LINE), taken)
    assert not is_superseded(Standing("a", LINE, LINE), LINE)
    assert not is_superseded(Standing("c", taken, ()), taken), "it never had it"


def test_what_came_in_the_place_of_a_copy_is_what_the_epoch_begins_with() -> None:
    acquire = Acquire.start(Group("b", ("a", "b"), Policy.REFUSE)).after(True).after(True)
    owner = Standing("a", LINE, LINE, Role.OWNER, copies=(copy_of("a", 2),))
    fetching = acquire.after({"a": owner, "b": replica("b")}).after(copy_of("a", 2))
    assert fetching.step == Fetch(copy_of("a", 2), is_final=True)

    begun = fetching.after(copy_of("a", 3), "bbbb")

    epoch = Epoch("bbbb", "b", Base(0, 3), How.HANDED)
    assert begun.step == Publish((*LINE, epoch), copy_of("a", 3))
