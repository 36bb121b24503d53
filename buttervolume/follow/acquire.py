"""A Mount on its way: carries out what `machine.Acquire` says is next, on the members' disks."""

import logging
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar, assert_never

from buttervolume.errors import (
    ButtervolumeError,
    CopyInTheWay,
    FollowBusy,
    FollowRefused,
    HostFailed,
    InUse,
    PartialCopyBusy,
    PeerRefused,
    TransferBusy,
)
from buttervolume.follow import machine
from buttervolume.follow.charter import Charter, Report
from buttervolume.follow.link import Connect, Link, Links, linked, reached
from buttervolume.follow.machine import (
    Acquire,
    Answer,
    Copy,
    Fetch,
    Group,
    Line,
    Lock,
    Look,
    Policy,
    Publish,
    Refuse,
    Release,
    Resume,
    Role,
    Step,
    Tell,
)
from buttervolume.follow.member import Member

OWNERS_PATIENCE = 5.0
"""Seconds that an owner waits for the others, who may know that somebody has taken over."""
LOGIN_PATIENCE = 30.0
"""Seconds to wait for a member: who is dead does not answer for 10 (ConnectTimeout of ssh), and who
is slow must not pass for dead."""
LOCK_PATIENCE = 10.0
"""Seconds to wait until who has the lock is done."""
_BUSY_PATIENCE = 60.0
"""Seconds for which the same copy may be on its way here by other means."""
_REGROUPINGS = 3
_T = TypeVar("_T")


class _Regroup(Exception):
    """The members are others than was thought."""

    def __init__(self, charter: Charter) -> None:
        self.charter = charter


@dataclass
class Progress:
    """What an acquisition is doing, for those who wait for it."""

    fetching: Copy | None = None


class Acquirer:
    """Makes this host the owner of a volume, if that may be."""

    def __init__(
        self, member: Member, connect: Connect, fetch: Callable[[str, str], object]
    ) -> None:
        """`fetch` brings a snapshot from a host. It raises ButtervolumeError."""
        self._member = member
        self._connect = connect
        self._fetch = fetch
        self._log = logging.getLogger(__name__)

    def acquire(
        self,
        volume: str,
        progress: Progress,
        done: Callable[[], None],
        heard: Callable[[Links, Mapping[str, Report]], None],
        *,
        by_hand: bool = False,
    ) -> Answer:
        """Try once. `done` is called if the volume may be used, while the locks are held; `heard`
        when the members have said how they stand. Raises ButtervolumeError."""
        charter = self._member.report(volume, with_use=False).charter
        if charter is None:
            raise FollowRefused(volume, "it follows nobody any more")

        def attempt(charter: Charter) -> Answer:
            return self._with(charter, volume, progress, done, heard, by_hand)

        return with_members(self._member.name, volume, charter, attempt)

    def _with(
        self,
        charter: Charter,
        volume: str,
        progress: Progress,
        done: Callable[[], None],
        heard: Callable[[Links, Mapping[str, Report]], None],
        by_hand: bool,
    ) -> Answer:
        me = self._member.name
        group = Group(me, charter.members, charter.policy)
        patient = not self._member.owns(volume) or group.must_tell()
        limit = LOGIN_PATIENCE if patient else OWNERS_PATIENCE
        acquire = Acquire.start(group, by_hand=by_hand)
        with linked(self._member, volume, charter.members, self._connect, limit) as links:
            if patient:
                _check_configuration(links)
            while not isinstance(acquire.step, Answer):
                self._log.debug("%s: %s", volume, acquire.step)
                try:
                    result = self._carry_out(volume, charter, acquire.step, links, progress, heard)
                except ButtervolumeError as error:
                    if isinstance(acquire.step, Lock):
                        raise
                    if isinstance(acquire.step, Look):
                        return Answer(str(error), may_pass=isinstance(error, HostFailed))
                    reason = error.reason if isinstance(error, FollowRefused) else str(error)
                    result = Refuse(reason, may_pass=isinstance(error, InUse | HostFailed))
                acquire = acquire.after(result, uuid.uuid4().hex[:12])
            if not acquire.step.reason:
                done()
        return acquire.step

    def _carry_out(
        self,
        volume: str,
        charter: Charter,
        step: Step,
        links: Links,
        progress: Progress,
        heard: Callable[[Links, Mapping[str, Report]], None],
    ) -> object:
        """Carry out one step, and say what came of it as `Acquire` wants to know it."""
        match step:
            case Lock(member):
                return _lock(links, member)
            case Look(members):
                reports = _reports(links, members)
                heard(links, reports)
                check_members(charter, reports)
                mine = reports[self._member.name].standing
                is_known = any(report.standing.known for report in reports.values())
                if mine.in_use and is_known and mine.role not in (Role.OWNER, Role.GRANTED):
                    raise HostFailed(  # what uses it would go on writing to what is replaced
                        self._member.name, "what this host held before is still in use here"
                    )
                return {name: report.standing for name, report in reports.items()}
            case Release(owner):
                self._log.info("%s: asking %s to let it go", volume, owner)
                return reached(links[owner]).release(self._member.name)
            case Fetch(copy, is_final):
                try:
                    self._bring(copy, progress)
                except CopyInTheWay:
                    if not is_final:
                        raise
                    self._log.info("%s: something else has that name here", copy.snapshot)
                    copy = reached(links[copy.member]).release(self._member.name, anew=True)
                    self._bring(copy, progress)
                return copy
            case Publish(line, copy):
                epoch = line[-1]
                how = f"{epoch.how.value} with {copy.snapshot}" if copy else epoch.how.value
                self._log.info("%s: epoch %d begins, %s", volume, len(line), how)
                self._member.publish(volume, line, copy, charter)
                return True
            case Resume(line):
                self._member.resume(volume, line)
                return True
            case Tell(members, line):
                return sum(_tell(links[name], line) for name in members)
            case Answer():
                raise AssertionError(step)
            case _:
                assert_never(step)

    def _bring(self, copy: Copy, progress: Progress) -> None:
        """Bring a copy here; who is bringing it by other means may finish first."""
        progress.fetching = copy
        deadline = time.monotonic() + _BUSY_PATIENCE
        try:
            while True:
                try:
                    self._fetch(copy.snapshot, copy.member)
                    return
                except (PartialCopyBusy, TransferBusy):
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(1)
        finally:
            progress.fetching = None


def check_is_member(me: str, volume: str, charter: Charter) -> None:
    """Raise FollowRefused if this host is none of the members."""
    if me not in charter.members:
        raise FollowRefused(
            volume,
            f"this host is {me}, which is none of its members {', '.join(charter.members)}; set "
            "NODE to the name that they have for this host",
        )


def _check_configuration(links: Links) -> None:
    """Raise what waiting does not mend: it is no sign of a host that is down."""
    for link in links.values():
        if isinstance(link, ButtervolumeError) and not isinstance(link, HostFailed):
            raise link


def with_members(me: str, volume: str, charter: Charter, attempt: Callable[[Charter], _T]) -> _T:
    """Try something among the members of a volume, and again if one of them knows of later ones,
    which `check_members` finds out. Raises FollowRefused, and what the attempt raises."""
    for _ in range(_REGROUPINGS):
        check_is_member(me, volume, charter)
        try:
            return attempt(charter)
        except _Regroup as error:
            charter = error.charter
    raise FollowRefused(volume, "its members change all the time")


def check_members(charter: Charter, reports: Mapping[str, Report]) -> None:
    """Let what `with_members` tries be tried again if somebody knows of a later change of the
    members or the terms."""

    dropped = frozenset[str]().union(*(r.standing.dropped for r in reports.values()))

    def order(each: Charter) -> tuple[bool, int, int]:
        return each.order(dropped)

    newest = max((r.charter for r in reports.values() if r.charter), key=order, default=charter)
    if order(newest) > order(charter) and _terms(newest) != _terms(charter):
        raise _Regroup(newest)


def _terms(charter: Charter) -> tuple[tuple[str, ...], Policy, int]:
    return charter.members, charter.policy, charter.every


def _lock(links: Links, member: str) -> object:
    """True, None if the member cannot be reached, or who has the lock."""
    link = links[member]
    try:
        if isinstance(link, ButtervolumeError):
            return None
        link.lock(LOCK_PATIENCE)
    except (HostFailed, PeerRefused) as error:
        links[member] = error
        return None
    except FollowBusy as error:
        return error.holder
    return True


def _reports(links: Links, members: tuple[str, ...]) -> dict[str, Report]:
    """What the locked members say of themselves.

    One that answers with an error counts as one that does not answer, unless it may own the volume:
    then it may use it, too. Raises ButtervolumeError.
    """
    reports = {}
    for name in members:
        try:
            reports[name] = reached(links[name]).report()
        except PeerRefused as error:
            links[name] = error
    faulty = {name: link for name, link in links.items() if isinstance(link, PeerRefused)}
    if faulty:
        try:
            line = machine.known_line(report.standing for report in reports.values())
        except machine.TwoLines:  # nobody gets it anyway
            return reports
        owner = line[-1].owner if line else None
        grantee = reports[owner].standing.granted_to if owner in reports else None
        for name, failure in faulty.items():
            if owner is None or name in (owner, grantee):
                raise failure
    return reports


def _tell(link: Link | ButtervolumeError, line: Line) -> bool:
    try:
        reached(link).hear(line, frozenset())
    except ButtervolumeError:
        return False
    return True
