"""What people ask of followed volumes, and what they decide about them."""

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import replace

from buttervolume.errors import (
    ButtervolumeError,
    FollowRefused,
    NoSuchVolume,
    NotOwner,
)
from buttervolume.follow import machine
from buttervolume.follow.acquire import (
    LOCK_PATIENCE,
    LOGIN_PATIENCE,
    check_members,
    with_members,
)
from buttervolume.follow.charter import Charter, Report
from buttervolume.follow.following import Following
from buttervolume.follow.link import Connect, Link, Links, linked, reached
from buttervolume.follow.machine import Begin, Copy, GoOn, Group, Refuse, Role
from buttervolume.follow.options import parse_every, parse_members, parse_policy
from buttervolume.follow.view import View
from buttervolume.store.contents import Contents
from buttervolume.store.snapshots import Snapshots

_AT_ONCE = 8
_PAUSE = 0.5


class Decisions:
    """For the edges: each call is somebody's wish."""

    def __init__(
        self,
        following: Following,
        connect: Connect,
        contents: Contents,
        snapshots: Snapshots,
    ) -> None:
        self._following = following
        self._member = following.member
        self._rounds = following.rounds
        self._connect = connect
        self._contents = contents
        self._snapshots = snapshots
        self._log = logging.getLogger(__name__)

    # Looking

    def look(self, volume: str | None = None) -> tuple[list[View], dict[str, str]]:
        """How one followed volume stands, or all, asked now, and why this cannot be told of some.
        Raises NoSuchVolume, FollowRefused."""
        if volume is not None:
            self._charter(volume)
            self._rounds.ask(volume)
            return [self._rounds.view(volume)], {}
        followed = self._rounds.followed()
        slots = threading.BoundedSemaphore(_AT_ONCE)

        def ask(each: str) -> None:
            with slots:
                try:
                    self._rounds.ask(each)
                except ButtervolumeError as error:
                    self._log.warning("%s", error)

        threads = [threading.Thread(target=ask, args=(each,), daemon=True) for each in followed]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return self._rounds.views()

    # Deciding

    def change(
        self,
        volume: str,
        members: str | None = None,
        every: str | None = None,
        orphan: str | None = None,
    ) -> Charter:
        """Give a volume other members, or other terms, on its owner; they travel with the next
        replication. Raises NoSuchVolume, FollowRefused, NotOwner, BadOption."""
        charter = self._charter(volume)
        if charter.line:
            self._following.check_owner(volume)
        else:
            charter = self._terms_before_use(volume, charter)
        if members is not None:
            others = self._following.peers
            charter = replace(charter, members=parse_members(members, self._member.name, others))
        if every is not None:
            charter = replace(charter, every=parse_every(every))
        if orphan is not None:
            charter = replace(charter, policy=parse_policy(orphan))
        with self._member.lock(volume, self._member.name, LOCK_PATIENCE):
            if charter.line:
                self._following.check_owner(volume)
            changed = self._member.change(volume, charter)
        self._rounds.soon(volume)
        return changed

    def _terms_before_use(self, volume: str, charter: Charter) -> Charter:
        """What was set last, on whichever member in reach, for a volume that has no owner yet.
        Raises NotOwner if one of them knows of an owner that this host has not heard of."""
        with linked(self._member, volume, charter.members, self._connect, LOGIN_PATIENCE) as links:
            reports = _reports(links).values()
        for report in reports:
            if report.standing.known:
                raise NotOwner(volume, report.standing.known[-1].owner)
        charters = [report.charter for report in reports if report.charter]
        return max(charters, key=lambda each: each.seq, default=charter)

    def what_taking_gives(self, volume: str) -> Copy | None:
        """With which copy `take` would go on now; None if with what is here. Raises FollowRefused,
        if the owner answers, or there is nothing to go on with."""
        charter = self._charter(volume)
        with linked(self._member, volume, charter.members, self._connect, LOGIN_PATIENCE) as links:
            standings = {name: each.standing for name, each in _reports(links).items()}
        me = self._member.name
        decision = Group(me, charter.members, charter.policy).decide(standings, by_hand=True)
        match decision:
            case Begin(_, _, copy):
                return copy
            case GoOn():
                return None
            case Refuse(reason):
                raise FollowRefused(volume, reason)
        raise AssertionError(decision)

    def take(self, volume: str) -> str | None:
        """Go on here with the newest copy in reach, since a person says that the owner is dead;
        the copy that it was. Raises NoSuchVolume, FollowRefused."""
        self._charter(volume)
        with self._member.lock(volume, self._member.name, LOCK_PATIENCE):
            standing = self._member.standing(volume)
            if standing.held and standing.held == standing.known and standing.role != Role.OWNER:
                self._member.snapshot(volume)  # the newest of all may be what is here
        copy = self.what_taking_gives(volume)
        self._following.take(volume)
        return copy.snapshot if copy else None

    def give_up_fork(self, volume: str, fork: str, target: str | None = None) -> None:
        """Delete a fork that is kept here, or make a new volume of it, which has all that it held.
        Raises FollowRefused, VolumeExists, BadName."""
        if fork not in self._member.forks(volume):
            raise FollowRefused(
                volume, f"{fork} is no fork of it here; give it up on the member that keeps it"
            )
        if target is not None:
            self._contents.new_from(fork, target)
        self._snapshots.remove(fork)

    def give_up_line(self, volume: str, epoch: str) -> None:
        """Give up an epoch, and all that went on from it: who holds that keeps it as a fork. Raises
        NoSuchVolume, FollowRefused."""
        charter = self._charter(volume)
        with linked(self._member, volume, charter.members, self._connect, LOGIN_PATIENCE) as links:
            answering = [e for e in links.values() if not isinstance(e, ButtervolumeError)]
            standings = [link.report().standing for link in answering]
            lines = [line for each in standings for line in (each.known, each.held)]
            if not any(one.id == epoch for line in lines for one in line):
                raise FollowRefused(volume, f"no member in reach knows of an epoch {epoch}")
            dropped = frozenset({epoch}).union(*(each.dropped for each in standings))
            line = max((machine.without(line, dropped) for line in lines), key=len)
            if not line:
                raise FollowRefused(volume, f"nothing would be left without epoch {epoch}")
            for link, each in zip(answering, standings, strict=True):
                own = machine.without(each.known, dropped)  # there may be a third line, still
                link.hear(line if machine.begins(own, line) else own, dropped)
        self._rounds.soon(volume)

    def drop(self, volume: str) -> None:
        """Delete a volume for good, with its snapshots, on all members. Nothing is deleted if one
        of them cannot be reached, uses it, or does not allow it. Raises NoSuchVolume,
        FollowRefused, HostFailed."""
        charter = self._charter(volume)

        def attempt(charter: Charter) -> None:
            self._drop(volume, charter)

        with_members(self._member.name, volume, charter, attempt)
        self._rounds.forget(volume)

    def _drop(self, volume: str, charter: Charter) -> None:
        me, members = self._member.name, charter.members
        with linked(self._member, volume, members, self._connect, LOGIN_PATIENCE) as links:
            reports = {}
            for name in members:
                link = reached(links[name])
                link.lock(LOCK_PATIENCE)
                link.check_can_drop()
                reports[name] = link.report()
                if reports[name].standing.in_use:
                    raise FollowRefused(volume, f"in use on {name}")
            check_members(charter, reports)
            self._wait_for_transfers(volume, [reached(links[name]) for name in members])
            for name in sorted(members, key=lambda each: each == me):
                reached(links[name]).drop()

    def _wait_for_transfers(self, volume: str, links: Sequence[Link]) -> None:
        """Wait until no copy is on its way between the members; they are locked, so that no round
        begins to send another. Raises FollowRefused if that takes long."""
        deadline = time.monotonic() + LOCK_PATIENCE
        for link in links:
            while said := link.busy():
                if time.monotonic() > deadline:
                    raise FollowRefused(volume, f"{said}; try again when that is done")
                time.sleep(_PAUSE)
        self._check_in_no_transfer(volume)

    def _check_in_no_transfer(self, volume: str) -> None:
        held = self._snapshots.in_transfer.held()
        name = next((each for each in sorted(held) if each.partition("@")[0] == volume), None)
        if name is not None:
            raise FollowRefused(volume, f"a transfer needs {name}; try again when that is done")

    def _charter(self, volume: str) -> Charter:
        charter = self._member.report(volume, with_use=False).charter
        own = self._member.charter(volume)
        if own is None:
            if not self._member.exists(volume) and charter is not None:
                members = ":".join(charter.members)
                raise FollowRefused(
                    volume,
                    "there are copies of it here, but no volume; make it, and try again: "
                    f"docker volume create -d btrfs -o follow={members} {volume}",
                )
            if not self._member.exists(volume):
                raise NoSuchVolume(volume)
            raise FollowRefused(volume, "it follows nobody: it was made without follow")
        return charter or own


def _reports(links: Links) -> dict[str, Report]:
    """What those members say of themselves that can be reached."""
    return {
        name: link.report()
        for name, link in links.items()
        if not isinstance(link, ButtervolumeError)
    }
