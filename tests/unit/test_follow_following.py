"""Mounts that wait for a followed volume, without members."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from buttervolume.errors import FollowRefused
from buttervolume.follow import following
from buttervolume.follow.charter import Charter
from buttervolume.follow.following import Following
from buttervolume.follow.machine import Answer
from buttervolume.hosts.transfers import Transfers
from tests.support.wait import wait_until


class Member:
    """The host itself, with one followed volume."""

    name = "bob"

    def __init__(self) -> None:
        self.uses: list[str] = []

    def charter(self, _volume: str) -> Charter:
        return Charter(("ann", "bob"))

    def use(self, _volume: str, *users: str) -> None:
        self.uses += users


class Rounds:
    """Nobody has been asked."""

    def asked_lately(self, *_: object) -> bool:
        return False

    def soon(self, _volume: str) -> None:
        pass


class Owner:
    """Another host, whose service stops when somebody asks for the second time."""

    def __init__(self) -> None:
        self.asked = 0
        self.answers = threading.Event()

    def acquire(
        self, _volume: str, _progress: object, done: Callable[[], None], *_: object, by_hand: bool
    ) -> Answer:
        assert not by_hand
        self.asked += 1
        if self.asked > 1:
            done()
            return Answer("")
        self.answers.wait(60)
        return Answer("in use on ann", may_pass=True)


def test_a_mount_that_joins_an_attempt_at_its_end_waits_for_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Given a Mount that has waited in vain, when another one comes right before the attempt that
    both wait for is over, and the service stops then, then the second one gets the volume."""
    monkeypatch.setattr(following, "_PAUSE", 0.01)
    member: Any = Member()
    owner: Any = Owner()
    rounds: Any = Rounds()
    follows = Following(member, owner, rounds, Transfers(), patience=0.1)
    with pytest.raises(FollowRefused, match="tried again"):
        follows.mount("db", "first")

    follows._patience = 60
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(follows.mount, "db", "second")
        wait_until(lambda: follows._going["db"].users == {"second"}, 60)
        owner.answers.set()
        second.result(60)

    assert owner.asked == 2
    assert member.uses == ["second"]
