"""What is done for followed volumes while nobody asks: their content goes to the other members, and
what has become of them is heard."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any

from buttervolume.errors import (
    ButtervolumeError,
    FollowBusy,
    FollowRefused,
    HostFailed,
    OperationFailed,
    PeerRefused,
    TransferBusy,
    VolumesUnavailable,
)
from buttervolume.follow import machine
from buttervolume.follow.acquire import LOCK_PATIENCE, LOGIN_PATIENCE, check_is_member
from buttervolume.follow.charter import Charter, Report
from buttervolume.follow.link import Connect, Link, Links, linked
from buttervolume.follow.machine import Copy, Line, Role
from buttervolume.follow.member import Member
from buttervolume.follow.view import View, see
from buttervolume.system.locks import Mutexes

_WAKE = 2.0
"""Seconds between two looks at what is due."""
_AT_ONCE = 4
"""Volumes that are looked after side by side, and that rounds send to one member."""
_PATIENCE = 30.0
"""Seconds that a round waits for its turn to send to a member; then it comes with the next one."""
_DOWN = 30.0
"""Seconds for which a host that could not be reached is not tried again."""
_LATELY = 600.0
"""Seconds after which the others are asked before a Mount on the owner, however rare its rounds
are: a cut between two of them goes unnoticed."""
_AGAIN = 300.0
"""Seconds after which all volumes are looked at again: one may not have been readable."""


class Rounds:
    """Looks after every followed volume of this host, each every so many minutes."""

    def __init__(
        self,
        member: Member,
        connect: Connect,
        send: Callable[[str, str], object],
        moment_of: Callable[[str], datetime | None],
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        """`send` sends a snapshot to a host, and raises ButtervolumeError; `moment_of` tells when a
        snapshot was taken, by its name, and `now` is local time, too."""
        self._moment_of = moment_of
        self._now = now
        self._member = member
        self._connect = connect
        self._send = send
        self._log = logging.getLogger(__name__)
        self._slots = threading.BoundedSemaphore(_AT_ONCE)
        self._sending = Mutexes()
        """One per volume and member: of two that send, the second may find that all is done."""
        self._lanes: dict[str, threading.BoundedSemaphore] = {}
        """To each member: who takes days for the first copies holds up nobody else's."""
        # protects all below, for a moment at a time
        self._guard = threading.Lock()
        self._followed: tuple[str, ...] = ()
        self._followed_of: object = None
        """The names of all volumes that `_followed` was found among."""
        self._followed_until = 0.0
        """When that is to be looked at again, by the monotonic clock."""
        self._last: dict[str, float] = {}
        """When a volume was looked after last, by the monotonic clock."""
        self._running: set[str] = set()
        self._asked: dict[str, float] = {}
        """When all other members were heard last, by the monotonic clock."""
        self._seen: dict[str, dict[str, Report]] = {}
        self._silent: dict[str, dict[str, str]] = {}
        """Of each volume, who could not be reached when it was tried last, and why."""
        self._problems: dict[str, str] = {}
        """What went wrong in the last round, as the log has it."""
        self._conflicts: dict[str, str] = {}
        """Of that, what is neither silence nor a copy that did not arrive."""
        self._failures: dict[str, dict[str, str]] = {}
        """Of each volume, who did not get what was sent last, and why."""
        self._down: dict[str, tuple[float, HostFailed]] = {}

    def start(self) -> None:
        """Begin, in a thread of its own that ends with the process."""
        threading.Thread(target=self._loop, name="follow", daemon=True).start()

    def _loop(self) -> None:
        problem = ""
        while True:
            try:
                self.round()
                problem = ""
            except VolumesUnavailable:
                pass  # which every call tells
            except ButtervolumeError as error:
                if str(error) != problem:
                    self._log.warning("the followed volumes are not looked after: %s", error)
                problem = str(error)
            except Exception:  # noqa: BLE001 - whatever it is, the next round may be better
                self._log.exception("the round of the followed volumes failed")
            time.sleep(_WAKE)

    def forget(self, volume: str) -> None:
        """Look again which volumes follow their services: this one is new, or gone, and nothing
        that was heard of a volume of its name is about it."""
        memories: Sequence[dict[str, Any]] = (
            self._last,
            self._asked,
            self._seen,
            self._silent,
            self._problems,
            self._conflicts,
            self._failures,
        )
        with self._guard:
            self._followed_of = None
            for memory in memories:
                memory.pop(volume, None)

    def soon(self, volume: str) -> None:
        """Look after a volume in the next round."""
        with self._guard:
            self._last.pop(volume, None)

    def followed(self) -> tuple[str, ...]:
        """The names of the followed volumes that are here. It costs next to nothing while there is
        no other volume than before."""
        names = self._member.names()
        with self._guard:
            if names is self._followed_of and time.monotonic() < self._followed_until:
                return self._followed
        found = self._member.followed(names)
        with self._guard:
            self._followed, self._followed_of = found, names
            self._followed_until = time.monotonic() + _AGAIN
        return found

    def asked_lately(self, volume: str, charter: Charter) -> bool:
        """Whether all other members have said how they stand not too long ago, and none was silent
        since: then nobody has taken over without this host's hearing of it."""
        with self._guard:
            asked, silent = self._asked.get(volume), self._silent.get(volume)
        if silent or asked is None:
            return False
        return time.monotonic() - asked < min(2 * 60 * charter.every, _LATELY)

    def saw(self, volume: str, links: Links, reports: Mapping[str, Report]) -> None:
        """Keep what the members have said of themselves."""
        silent = {
            name: link.reason if isinstance(link, HostFailed | FollowRefused) else str(link)
            for name, link in links.items()
            if isinstance(link, ButtervolumeError)
        }
        with self._guard:
            self._seen[volume] = self._seen.get(volume, {}) | dict(reports)
            self._silent[volume] = silent
            if len(reports) == len(links):
                self._asked[volume] = time.monotonic()

    # Views

    def ask(self, volume: str) -> None:
        """Ask the members of a volume how they stand, now. Raises ButtervolumeError."""
        charter = self._member.report(volume, with_use=False).charter
        if charter is None:
            raise FollowRefused(volume, "it follows nobody")
        with linked(self._member, volume, charter.members, self._connect, LOGIN_PATIENCE) as links:
            self.saw(volume, links, self._reports(links))

    def views(self) -> tuple[list[View], dict[str, str]]:
        """How every followed volume of this host stands, as far as the members were heard last, and
        why this cannot be told of some. Nobody is asked, so it costs little. Raises
        VolumesUnavailable."""
        views, unseen = [], {}
        for volume in self.followed():
            try:
                views.append(self.view(volume))
            except VolumesUnavailable:
                raise
            except ButtervolumeError as error:
                unseen[volume] = str(error)
        return views, unseen

    def view(self, volume: str) -> View:
        """The same for one. Raises OperationFailed."""
        own = self._member.report(volume, with_use=False)
        with self._guard:
            seen = dict(self._seen.get(volume, {}))
            silent, conflict = self._silent.get(volume, {}), self._conflicts.get(volume, "")
            failures = dict(self._failures.get(volume, {}))
        in_use = seen[self._member.name].standing.in_use if self._member.name in seen else False
        standing = replace(own.standing, in_use=in_use)
        seen[self._member.name] = replace(own, standing=standing)
        charter = own.charter or Charter(())
        return see(
            volume,
            charter,
            seen,
            silent,
            conflict,
            self._moment_of,
            self._now(),
            me=self._member.name,
            failures=failures if own.standing.role is Role.OWNER else {},
        )

    # Rounds

    def round(self) -> None:
        """Look after every volume that is due. Each in a thread of its own: a host that is down
        delays no other. Raises VolumesUnavailable, OperationFailed."""
        for volume in self.followed():
            try:
                charter = self._member.charter(volume)
            except OperationFailed:  # which its own round says
                charter = Charter(())
            if charter is None:
                continue
            now = time.monotonic()
            with self._guard:
                last = self._last.get(volume)
                if volume in self._running or (last and now - last < 60 * charter.every):
                    continue
                self._last[volume] = now
                self._running.add(volume)
            threading.Thread(
                target=self._round_of, args=(volume,), name=f"follow-{volume}", daemon=True
            ).start()

    def _round_of(self, volume: str) -> None:
        problem = conflict = ""
        try:
            with self._slots:
                problem = self._look_after(volume)
        except FollowBusy as error:  # which is over in the next round
            problem = str(error)
        except FollowRefused as error:
            problem, conflict = str(error), error.reason
        except ButtervolumeError as error:
            problem = conflict = str(error)
        except Exception as error:  # noqa: BLE001 - the next round may be better
            self._log.exception("%s: unexpected fault in a round", volume)
            problem = conflict = f"unexpected fault: {error!r}"
        finally:
            with self._guard:
                self._running.discard(volume)
        with self._guard:
            before = self._problems.get(volume, "")
            self._problems[volume] = problem
            self._conflicts[volume] = conflict
        if problem and problem != before:
            self._log.error("%s", problem)

    def _look_after(self, volume: str) -> str:
        """Hear of the others' lines, and let them have what is new here. What is wrong, if anything
        is. Raises ButtervolumeError."""
        own = self._member.report(volume, with_use=False)
        if own.charter is None or not own.standing.known:
            return ""  # nobody has used it yet
        check_is_member(self._member.name, volume, own.charter)
        members = own.charter.members
        with linked(self._member, volume, members, self._unless_down, LOGIN_PATIENCE) as links:
            reports = self._reports(links)
            self.saw(volume, links, reports)
            try:
                line = machine.known_line(report.standing for report in reports.values())
            except machine.TwoLines as error:
                raise FollowRefused(volume, str(error)) from error
            dropped = frozenset[str]().union(*(r.standing.dropped for r in reports.values()))
            self._learn(volume, line, dropped)
            for name, report in reports.items():
                knows = report.standing.known == line and report.standing.dropped == dropped
                if not knows and name != self._member.name:
                    self._tell(links[name], line, dropped)
        failed = HostFailed | PeerRefused
        failures = {n: e.reason for n, e in links.items() if isinstance(e, failed)}
        failures |= {n: str(e) for n, e in links.items() if isinstance(e, FollowRefused)}
        if self._member.owns(volume):
            self._replicate(volume, members, reports)
        return "; ".join(f"{volume}: {name}: {reason}" for name, reason in failures.items())

    @contextmanager
    def _unless_down(self, member: str, volume: str, limit: float) -> Iterator[Link]:
        """A link, unless the host has just been found to be down."""
        with self._guard:
            found = self._down.get(member)
        if found is not None and time.monotonic() - found[0] < _DOWN:
            raise found[1]
        try:
            with self._connect(member, volume, limit) as link:
                yield link
        except HostFailed as error:
            with self._guard:
                self._down[member] = (time.monotonic(), error)
            raise

    def _reports(self, links: Links) -> dict[str, Report]:
        reports = {}
        for name, link in links.items():
            if not isinstance(link, ButtervolumeError):
                try:
                    reports[name] = link.report()
                except ButtervolumeError as error:
                    if name == self._member.name:
                        raise
                    links[name] = error
        return reports

    def _tell(self, link: Link | ButtervolumeError, line: Line, dropped: frozenset[str]) -> None:
        try:
            if not isinstance(link, ButtervolumeError):
                link.hear(line, dropped)
        except ButtervolumeError as error:  # it hears of it in the next round
            self._log.info("%s could not be told: %s", getattr(link, "member", "a member"), error)

    def _learn(self, volume: str, line: Line, dropped: frozenset[str]) -> None:
        """Take note of a line, and step back if somebody has gone on from what was this host's."""
        try:
            with self._member.lock(volume, self._member.name):
                self._member.overhear(volume, line, dropped)
                mine = self._member.standing(volume)
                if machine.is_owner_again(mine):
                    self._log.warning("%s: nobody goes on with it but this host", volume)
                    self._member.resume(volume, mine.known)
                if not machine.is_superseded(mine, mine.known):
                    return
                owner = mine.known[-1].owner
                if mine.in_use:
                    self._member.supersede(volume)
                    raise FollowRefused(
                        volume,
                        f"{owner} has taken it over, and it is still used on {self._member.name}: "
                        "what is written here now is in no other copy; stop what uses it",
                    )
                self._member.give_up(volume, machine.tip(mine.known))
                self._log.warning("%s: %s goes on with it; this host is a replica", volume, owner)
        except FollowBusy:
            pass  # who looks for it learns it as well

    # Replication

    def push(self, volume: str) -> threading.Event:
        """Let every other member have what a volume holds now, if this host owns it; what is
        returned is set when that has ended."""
        over = threading.Event()

        def work() -> None:
            try:
                charter = self._member.report(volume, with_use=False).charter
                if charter is not None:
                    self._replicate(volume, charter.members, None).wait()
            except ButtervolumeError as error:
                self._log.warning("%s", error)
            except Exception:  # noqa: BLE001 - the next round may be better
                self._log.exception("%s: unexpected fault in a replication", volume)
            finally:
                over.set()

        threading.Thread(target=work, name=f"push-{volume}", daemon=True).start()
        return over

    def _replicate(
        self, volume: str, members: tuple[str, ...], reports: Mapping[str, Report] | None
    ) -> threading.Event:
        """Let every other member have what a volume holds now. Who has it already, by what it said,
        or without `reports` by the markers here, is not asked again. What is returned is set when
        all that can be done is done: nobody waits for the slowest but who wants to."""
        others = [member for member in members if member != self._member.name]
        over = threading.Event()
        with ExitStack() as stack:
            with self._member.lock(volume, self._member.name, LOCK_PATIENCE):
                if not self._member.owns(volume):
                    over.set()
                    return over
                copy = self._member.copy(volume)
                stack.enter_context(self._member.sending(volume, others))
            sending = stack.pop_all()

        def work() -> None:
            try:
                with sending:
                    self._send_to(others, volume, copy, reports)
            finally:
                over.set()

        threading.Thread(target=work, name=f"send-{volume}", daemon=True).start()
        return over

    def _send_to(
        self,
        others: Iterable[str],
        volume: str,
        copy: Copy,
        reports: Mapping[str, Report] | None,
    ) -> None:
        """Send a copy to those members that have not got it, side by side."""

        def send(member: str) -> None:
            failure = ""
            try:
                if reports is None or member not in reports:
                    self._send_unmarked(volume, copy, member)
                elif not _has(reports[member], copy):
                    self._send_in_turn(volume, copy, member)
                self._note(volume, member, copy)
            except TimeoutError:
                return
            except ButtervolumeError as error:
                failure = error.reason if isinstance(error, HostFailed) else str(error)
                self._log.warning("%s: %s did not get it: %s", copy.snapshot, member, failure)
            with self._guard:
                self._failures.setdefault(volume, {})[member] = failure
                if failure:  # this host may have been cut off: the next Mount asks them all
                    self._asked.pop(volume, None)

        threads = [threading.Thread(target=send, args=(other,), daemon=True) for other in others]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _send_unmarked(self, volume: str, copy: Copy, member: str) -> None:
        """Send a copy to a member unless a marker says that it has got it."""
        with self._sending.hold(f"{volume}@{member}"):
            if not self._member.has_marked(copy.snapshot, member):
                self._send_patiently(copy, member)

    def _send_in_turn(self, volume: str, copy: Copy, member: str) -> None:
        """Send a copy to a member that has not got it, while not too much else goes there. Raises
        TimeoutError: it gets what there is then in a later round."""
        with self._guard:
            lane = self._lanes.setdefault(member, threading.BoundedSemaphore(_AT_ONCE))
        if not lane.acquire(timeout=_PATIENCE):
            raise TimeoutError
        try:
            with self._sending.patience(_PATIENCE), self._sending.hold(f"{volume}@{member}"):
                self._send_patiently(copy, member)
        finally:
            lane.release()

    def _send_patiently(self, copy: Copy, member: str) -> None:
        """Send a copy, when who sends another one there, at somebody's wish, is done."""
        while True:
            try:
                self._send(copy.snapshot, member)
                return
            except TransferBusy:
                time.sleep(1)

    def _note(self, volume: str, member: str, copy: Copy) -> None:
        """Remember that a member has a copy, without asking it again."""
        with self._guard:
            seen = self._seen.setdefault(volume, {})
            report = seen.get(member)
            if report is not None:
                copies = (*report.standing.copies, replace(copy, member=member))
                seen[member] = replace(report, standing=replace(report.standing, copies=copies))


def _has(report: Report, copy: Copy) -> bool:
    """Whether a member has this very copy: another name may mean another content of that number,
    where somebody has put an older disk, or subvolume, back."""
    said = ((each.snapshot, each.version) for each in report.standing.copies)
    return (copy.snapshot, copy.version) in said
