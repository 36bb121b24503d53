"""How a followed volume stands, from what its members have said."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from buttervolume.follow.charter import Charter, Report
from buttervolume.follow.machine import (
    Base,
    Copy,
    Epoch,
    How,
    Line,
    Policy,
    Role,
    Standing,
    Version,
)
from buttervolume.follow.view import View, see

FIRST = Epoch("aaaa", "ann", None, How.FIRST)
TAKEN = Epoch("bbbb", "bob", Base(0, 2), How.TAKEN)
OTHER = Epoch("cccc", "ann", Base(0, 3), How.TAKEN)
NOW = datetime(2026, 11, 26, 12, 0)
CHARTER = Charter(("ann", "bob", "cleo"), Policy.LATEST, 5, (FIRST,), 4)


def moment_of(snapshot: str) -> datetime | None:
    """Snapshots are named after the minutes before now."""
    minutes = snapshot.partition("@")[2]
    return NOW - timedelta(minutes=int(minutes)) if minutes.isdigit() else None


def member(
    name: str, *copies: tuple[int, int], line: Line = (FIRST,), forks: tuple[str, ...] = ()
) -> tuple[str, Report]:
    """What a member says that has copies, each a number and its age in minutes."""
    has = tuple(Copy(name, f"db@{minutes}", Version(line, seq)) for seq, minutes in copies)
    role = Role.OWNER if line and line[-1].owner == name else Role.REPLICA
    return name, Report(Standing(name, line, line, role, copies=has), CHARTER, forks)


def seen(
    *members: tuple[str, Report],
    problem: str = "",
    failures: Mapping[str, str] | None = None,
    **silent: str,
) -> View:
    """How it stands for ann."""
    failures = failures or {}
    reports = dict(members)
    return see("db", CHARTER, reports, silent, problem, moment_of, NOW, me="ann", failures=failures)


def test_all_is_well_where_everybody_has_the_newest() -> None:
    view = seen(*(member(name, (3, 60), (4, 50)) for name in CHARTER.members))
    assert (view.owner, view.epoch, view.epoch_id, view.problems) == ("ann", 1, "aaaa", ())
    assert [each.copy for each in view.members] == ["db@50"] * 3
    assert all(each.lag == timedelta() for each in view.members)


def test_who_lacks_something_lags_since_it_was_there_for_others() -> None:
    ann = member("ann", (3, 60), (4, 9), (5, 1))
    view = seen(ann, member("bob", (3, 60), (4, 9)), member("cleo", (3, 60)))
    assert [each.lag for each in view.members] == [timedelta(minutes=m) for m in (0, 1, 9)]
    assert view.problems == ()
    late = seen(member("ann", (3, 60), (4, 11)), member("bob", (4, 11)), member("cleo", (3, 60)))
    assert late.problems == ("cleo lacks what came in the last 11 minutes",)


def test_who_has_nothing_yet_lags_since_there_is_something() -> None:
    view = seen(member("ann", (1, 30)), member("bob", (1, 30)), member("cleo"))
    assert view.members[2].copy is None
    assert view.members[2].lag == timedelta(minutes=30)


def test_what_is_beside_the_line_counts_for_nothing() -> None:
    line = (FIRST, TAKEN)
    ann = member("ann", (2, 60), (3, 55), line=(FIRST,), forks=("db@54",))
    view = seen(ann, member("bob", (2, 60)), member("cleo", (3, 10), line=line))
    assert view.owner == "bob"
    assert view.members[0].copy == "db@60"
    assert view.forks == (("ann", "db@54"),)
    assert any("db@54 on ann is a fork" in problem for problem in view.problems)


def test_two_lines_are_a_problem_and_the_charter_s_own_is_shown() -> None:
    view = seen(member("ann", line=(FIRST, OTHER)), member("bob", line=(FIRST, TAKEN)))
    assert "two lines" in view.problems[0]
    assert view.owner == "ann"


def test_who_is_silent_is_named_with_what_it_said_before() -> None:
    view = seen(*(member(name, (4, 50)) for name in CHARTER.members), cleo="no route")
    assert view.members[2].copy == "db@50"
    assert view.problems == ("cleo does not answer: no route",)
    assert seen(member("ann")).members[1].silent


def test_nobody_has_used_it_yet() -> None:
    view = seen(*(member(name, line=()) for name in CHARTER.members))
    assert (view.owner, view.epoch, view.epoch_id, view.problems) == (None, 0, None, ())


def test_who_was_not_asked_yet_is_no_concern() -> None:
    view = seen(member("ann", (1, 600)))
    assert view.problems == ()
    assert not view.members[1].was_asked
    assert not view.members[1].is_known


def test_who_was_never_heard_is_silent_and_nothing_is_known_of_its_copies() -> None:
    view = seen(member("ann", (1, 600)), bob="no route")
    assert view.problems == ("bob does not answer: no route",)
    assert view.members[1].was_asked
    assert not view.members[1].is_known


def test_why_a_member_did_not_get_something_is_told_while_it_answers() -> None:
    everybody = [member(name, (4, 50)) for name in CHARTER.members]
    failures = {"bob": "its disk is full", "cleo": "no route"}
    view = seen(*everybody, failures=failures, cleo="no route")
    assert [(each.is_fork, each.member, each.message) for each in view.concerns] == [
        (False, "bob", "bob did not get what is new: its disk is full"),
        (False, "cleo", "cleo does not answer: no route"),
    ]


def test_the_owner_knows_that_it_is_and_whoever_stepped_back_that_it_is_not() -> None:
    assert seen(member("ann", (1, 5))).is_owner
    assert not seen(member("ann", (1, 5)), member("bob", line=(FIRST, TAKEN))).is_owner
    name, report = member("ann", (1, 5))
    granted = replace(report.standing, role=Role.GRANTED)
    assert not seen((name, replace(report, standing=granted))).is_owner


@pytest.mark.parametrize("name", ["ann", "cleo"])
def test_used_where_it_was_taken_over_from_is_as_bad_as_a_fork(name: str) -> None:
    given = member(name, (1, 5), line=(FIRST, TAKEN))[1]
    used = replace(given.standing, role=Role.SUPERSEDED, in_use=True)
    problem = "bob has taken it over, and it is still used on ann" if name == "ann" else ""
    view = seen((name, replace(given, standing=used)), problem=problem)
    [concern] = [each for each in view.concerns if each.is_fork]
    assert "bob has taken it over" in concern.message
    assert name in concern.message


def test_what_else_went_wrong_is_no_fork() -> None:
    [concern] = seen(member("ann", (1, 5)), problem="cannot read it").concerns
    assert (concern.is_fork, concern.message) == (False, "cannot read it")


def test_each_fork_is_a_concern_of_its_own() -> None:
    view = seen(member("ann", (1, 5), forks=("db@7", "db@8")), member("bob", (1, 5)))
    assert [(each.is_fork, each.fork) for each in view.concerns] == [(True, "db@7"), (True, "db@8")]


def test_it_is_said_before_there_is_no_room_for_another_change_of_hands() -> None:
    more = tuple(Epoch(f"{n:012x}", "ann", Base(n - 1, n), How.HANDED) for n in range(1, 401))
    assert (
        seen(*(member(n, (1, 1), line=(FIRST, *more[:-1])) for n in CHARTER.members)).problems == ()
    )
    view = seen(*(member(name, (1, 1), line=(FIRST, *more)) for name in CHARTER.members))
    [problem] = view.problems
    assert "changed hands 401 times" in problem
