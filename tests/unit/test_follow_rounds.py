"""The rounds of followed volumes, with a member that says what it is told to."""

import time
from unittest.mock import create_autospec

import pytest

from buttervolume.errors import HostFailed, OperationFailed
from buttervolume.follow.charter import Charter, Report
from buttervolume.follow.link import Remote
from buttervolume.follow.machine import Copy, Role, Standing, Version
from buttervolume.follow.member import Member
from buttervolume.follow.rounds import Rounds
from buttervolume.hosts.session import Session
from buttervolume.system.command import Flow
from tests.support.wait import wait_until

CHARTER = Charter(("alpha", "beta"))


def test_one_that_cannot_be_read_keeps_no_other_from_its_round_nor_from_being_seen(
    caplog: pytest.LogCaptureFixture,
) -> None:
    looked_at: list[str] = []

    def charter(volume: str) -> Charter:
        if volume == "bad":
            raise OperationFailed("read the members of volume bad", "Input/output error")
        return CHARTER

    def report(volume: str, *, with_use: bool = True) -> Report:
        looked_at.append(volume)
        return Report(Standing("alpha", (), (), Role.REPLICA), charter(volume), ())

    member = create_autospec(Member, instance=True)
    member.name = "alpha"
    member.names.return_value = member.followed.return_value = ("bad", "good")
    member.charter.side_effect, member.report.side_effect = charter, report
    rounds = Rounds(member, lambda *_: pytest.fail("nobody is to be asked"), print, lambda _: None)

    rounds.round()
    wait_until(lambda: sorted(looked_at) == ["bad", "good"], what="both to be looked after")
    wait_until(
        lambda: "Input/output error" in caplog.text, what="what is wrong with one to be said"
    )
    rounds.round()  # not again at once

    views, unseen = rounds.views()
    assert [view.volume for view in views] == ["good"]
    assert list(unseen) == ["bad"]
    assert sorted(looked_at) == ["bad", "bad", "good", "good"], "by the views"


def test_a_member_that_does_not_say_what_is_on_its_way_has_failed() -> None:
    session = create_autospec(Session, instance=True)
    session.follow.return_value = {"locked": True}

    with pytest.raises(HostFailed, match="nonsense"):
        Remote("beta", "db", session, Flow()).busy()


def test_one_that_could_not_be_read_for_a_moment_is_found_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    member = create_autospec(Member, instance=True)
    member.names.return_value = ("one", "two")
    member.followed.side_effect = [("one",), ("one", "two")]
    rounds = Rounds(member, lambda *_: pytest.fail("nobody is to be asked"), print, lambda _: None)

    assert rounds.followed() == ("one",)
    assert rounds.followed() == ("one",), "it costs nothing while there is no other name"
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 3600)
    assert rounds.followed() == ("one", "two")


def test_after_a_send_that_failed_the_members_are_asked_before_the_next_mount() -> None:
    """This host may be the one that was cut off, and another one may have taken over."""
    member = create_autospec(Member, instance=True)
    member.name = "alpha"
    member.report.return_value = Report(Standing("alpha", (), (), Role.OWNER), CHARTER, ())
    member.has_marked.return_value = False
    member.copy.return_value = Copy("alpha", "db@2026", Version((), 1))
    reports = dict.fromkeys(CHARTER.members, member.report.return_value)

    def send(snapshot: str, host: str) -> None:
        if is_cut:
            raise HostFailed(host, "Connection timed out")

    rounds = Rounds(member, lambda *_: pytest.fail("nobody is to be asked"), send, lambda _: None)
    for is_cut in (False, True):
        rounds.saw("db", dict.fromkeys(CHARTER.members, create_autospec(Remote)), reports)
        assert rounds.push("db").wait(60)
        assert rounds.asked_lately("db", CHARTER) is not is_cut
