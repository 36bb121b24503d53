"""What people decide about followed volumes, with members that keep what they are told."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from unittest.mock import create_autospec

import pytest

from buttervolume.errors import FollowRefused
from buttervolume.follow import decisions
from buttervolume.follow.charter import Charter, Report
from buttervolume.follow.decisions import Decisions
from buttervolume.follow.following import Following
from buttervolume.follow.machine import Base, Epoch, How, Line, Standing, begins, without
from buttervolume.follow.member import Member
from buttervolume.follow.rounds import Rounds
from buttervolume.store.contents import Contents
from buttervolume.store.snapshots import Snapshots

FIRST = Epoch("aaaa", "ann", None, How.FIRST)
MEMBERS = ("ann", "bob", "cleo", "dan")


@dataclass
class Link:
    """A member with a line of its own."""

    member: str
    known: Line
    dropped: set[str] = field(default_factory=set)

    def report(self) -> Report:
        return Report(Standing(self.member, self.known, dropped=frozenset(self.dropped)))

    def hear(self, line: Line, dropped: frozenset[str]) -> None:
        known, line = without(self.known, dropped), without(line, dropped)
        if not begins(known, line):
            raise FollowRefused("db", f"{self.member} knows of another line")
        self.known = line
        self.dropped |= dropped


def taken(member: str) -> Line:
    return FIRST, Epoch(f"{member.encode().hex()}", member, Base(0, 1), How.TAKEN)


@pytest.mark.parametrize("order", [MEMBERS, MEMBERS[::-1]], ids=" ".join)
def test_of_three_lines_two_are_given_up_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch, order: tuple[str, ...]
) -> None:
    links = {name: Link(name, taken(name) if name != "ann" else (FIRST,)) for name in order}

    @contextmanager
    def linked(*_: object) -> Iterator[dict[str, Link]]:
        yield links

    monkeypatch.setattr(decisions, "linked", linked)
    following = create_autospec(Following, instance=True)
    following.rounds = create_autospec(Rounds, instance=True)
    following.member = create_autospec(Member, instance=True)
    following.member.charter.return_value = charter = Charter(MEMBERS, line=(FIRST,))
    following.member.report.return_value = Report(Standing("ann", (FIRST,)), charter)
    contents, snapshots = (create_autospec(each, instance=True) for each in (Contents, Snapshots))
    decide = Decisions(following, lambda *_: pytest.fail("nobody"), contents, snapshots)

    for member in ("bob", "cleo"):
        decide.give_up_line("db", taken(member)[-1].id)

    assert {link.known for link in links.values()} == {taken("dan")}
