"""Followed volumes, for the edges: what Create, Mount, Unmount and Remove do.

A Mount that has to ask or to fetch goes on in a thread of its own, however long Docker waits; the
next Mount of the volume joins it.
"""

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from buttervolume import names
from buttervolume.errors import ButtervolumeError, FollowBusy, FollowRefused, NotOwner
from buttervolume.follow.acquire import LOCK_PATIENCE, Acquirer, Progress
from buttervolume.follow.charter import Charter, Report
from buttervolume.follow.link import Links
from buttervolume.follow.machine import Policy, Role, Standing
from buttervolume.follow.member import Member, check_owner
from buttervolume.follow.options import split_follow
from buttervolume.follow.rounds import Rounds
from buttervolume.hosts.transfers import Transfers

MOUNT_PATIENCE = 60.0
"""Seconds that a Mount waits; Docker gives it up after 120."""
UNMOUNT_PATIENCE = 40.0
"""Seconds that an Unmount waits until the members have its content; Docker gives up after 60."""
WAITING = 192
"""Mounts that may wait at a time: the others of Docker's threads are for those that need not."""
_PAUSE = 1.0
"""Seconds between two attempts, while it is in use elsewhere."""


@dataclass
class _Going:
    """An acquisition under way."""

    done: threading.Event = field(default_factory=threading.Event)
    progress: Progress = field(default_factory=Progress)
    users: set[str] = field(default_factory=set)
    """Those of Docker's ids that wait for it."""
    is_settled: bool = False
    """Whether the volume may be used, by those who waited for it."""
    reason: str = "its members are being asked"
    """Why not; of the last attempt, while there may be another."""
    may_pass: bool = False
    """Whether another attempt may succeed."""


@dataclass(frozen=True)
class Glance:
    """What is known here of a followed volume, without asking anybody."""

    owner: str | None
    epoch: int
    """How many there have been; 0 if it was never used."""
    last_copy: str | None
    """On the owner the newest snapshot that another member has got, elsewhere the newest here."""
    forks: tuple[str, ...]


class Following:
    """What keeps followed volumes with their services."""

    def __init__(
        self,
        member: Member,
        acquirer: Acquirer,
        rounds: Rounds,
        transfers: Transfers,
        peers: Sequence[str] = (),
        *,
        patience: float = MOUNT_PATIENCE,
    ) -> None:
        """`peers` is who is meant by `follow=peers`; `patience` is in seconds."""
        self.peers = peers
        self.member = member
        self.rounds = rounds
        self._acquirer = acquirer
        self._transfers = transfers
        self._patience = patience
        self._waiting = threading.BoundedSemaphore(WAITING)
        # protects _going and what is in there, for a moment at a time
        self._guard = threading.Lock()
        self._going: dict[str, _Going] = {}
        self._log = logging.getLogger(__name__)

    # Create and Remove

    def split_options(
        self, options: Mapping[str, object]
    ) -> tuple[Charter | None, dict[str, object]]:
        """Whether and how a new volume is to follow its service, and the options that are about
        other things. Raises BadOption."""
        return split_follow(options, self.member.name, self.peers)

    def found(self, volume: str, charter: Charter) -> tuple[bool, str]:
        """Let a volume that is here follow its service from now on; one that does already is left
        as it is. Returns whether it begins to, and a warning, if there is something to know."""
        self.rounds.forget(volume)
        if self.member.charter(volume) is not None:
            return False, ""
        with self.member.lock(volume, self.member.name, LOCK_PATIENCE):
            self.member.found(volume, charter)
        self.rounds.forget(volume)
        try:
            self.member.check_nothing_nested(volume)
        except FollowRefused as error:
            return True, error.reason
        return True, ""

    @contextmanager
    def removing(self, volume: str) -> Iterator[None]:
        """Do what the removal of a volume from this host, in the block, needs before: nothing is
        lost by it. Raises FollowBusy, OperationFailed."""
        if self.member.charter(volume) is None:
            yield
            return
        with self.member.lock(volume, self.member.name, LOCK_PATIENCE):
            self.member.part(volume)
            yield
        self.rounds.forget(volume)

    # Mount and Unmount

    def mount(self, volume: str, user: str) -> None:
        """Let a volume be used here by `user`, an id of Docker's; what follows nobody may. Raises
        FollowRefused, in words that say who has it and what to do."""
        charter = self.member.charter(volume)
        if charter is None:
            return
        is_alone = charter.policy is Policy.REFUSE and self.rounds.asked_lately(volume, charter)
        if is_alone and self._use(volume, user):
            return
        if not self._waiting.acquire(blocking=False):
            raise FollowRefused(volume, f"{WAITING} Mounts wait already; it is tried again")
        try:
            self._wait(volume, user)
        finally:
            self._waiting.release()

    def _use(self, volume: str, user: str) -> bool:
        """Remember a use, if this host owns the volume."""
        try:
            with self.member.lock(volume, self.member.name):
                if not self.member.owns(volume):
                    return False
                self.member.use(volume, user)
        except FollowBusy:
            return False
        return True

    def _wait(self, volume: str, user: str) -> None:
        """Wait for an acquisition, a new one or one that is under way; if that began long before
        and ends soon, for the next one."""
        deadline = time.monotonic() + self._patience
        while True:
            with self._guard:
                going = self._going.get(volume)
                if going is None:
                    going = self._going[volume] = self._begin(volume)
                going.users.add(user)
            if not going.done.wait(max(0.0, deadline - time.monotonic())):
                with self._guard:
                    if not going.is_settled:  # else it has just succeeded
                        going.users.discard(user)
                        raise FollowRefused(volume, f"{self._story(going)}; it is tried again")
                going.done.wait()
            if not going.reason:
                return
            if not going.may_pass or time.monotonic() > deadline:
                raise FollowRefused(volume, going.reason)
            time.sleep(_PAUSE)  # `take` goes before

    def _story(self, going: _Going) -> str:
        copy = going.progress.fetching
        if copy is None:
            return going.reason
        running = self._transfers.list()
        moved = [each.flow.moved for each in running if each.snapshot == copy.snapshot]
        amount = f": {max(moved) / 1e9:.1f} GB so far" if moved else ""
        return f"fetching from {copy.member}{amount}"

    def _begin(self, volume: str, *, by_hand: bool = False) -> _Going:
        going = _Going()
        threading.Thread(
            target=self._acquire, args=(volume, going, by_hand), name=f"mount-{volume}", daemon=True
        ).start()
        return going

    def _acquire(self, volume: str, going: _Going, by_hand: bool) -> None:
        """Try until it succeeds, or is refused for good, or nobody waits any more."""

        def done() -> None:
            with self._guard:  # no user is added or gives up from here on
                going.is_settled = True
                del self._going[volume]
            if going.users:
                self.member.use(volume, *going.users)
            self.rounds.soon(volume)

        def heard(links: Links, reports: Mapping[str, Report]) -> None:
            self.rounds.saw(volume, links, reports)

        deadline = time.monotonic() + self._patience
        try:
            while True:
                answer = self._acquirer.acquire(
                    volume, going.progress, done, heard, by_hand=by_hand
                )
                going.reason, going.may_pass = answer.reason, answer.may_pass
                if not answer.may_pass or by_hand or time.monotonic() > deadline:
                    break
                with self._guard:
                    if not going.users:
                        break
                time.sleep(_PAUSE)
        except ButtervolumeError as error:
            going.reason = error.reason if isinstance(error, FollowRefused) else str(error)
            going.may_pass = False
        except Exception as error:  # noqa: BLE001 - a Mount waits for an answer, whatever happens
            self._log.exception("%s: unexpected fault", volume)
            going.reason, going.may_pass = f"unexpected fault: {error!r}", False
        finally:
            with self._guard:
                if self._going.get(volume) is going:
                    del self._going[volume]
            if going.reason:
                self._log.warning("%s is not mounted: %s", volume, going.reason)
            going.done.set()

    def take(self, volume: str) -> None:
        """Make this host the owner, since a person says that who cannot be reached is dead; waits
        for as long as it takes. Raises FollowRefused."""
        deadline = time.monotonic() + 2 * self._patience
        while True:
            with self._guard:
                before = self._going.get(volume)
                if before is None:
                    going = self._going[volume] = self._begin(volume, by_hand=True)
                    break
            # Docker comes again and again while the owner is dead; this goes next.
            if not before.done.wait(max(0.0, deadline - time.monotonic())):
                raise FollowRefused(volume, f"a Mount waits for it: {self._story(before)}")
        going.done.wait()
        if going.reason:
            raise FollowRefused(volume, going.reason)

    def unmount(self, volume: str, user: str) -> None:
        """Forget a use; if it was the last, and something has changed, the members get it. What
        takes longer than Docker waits goes on."""
        if self.member.charter(volume) is None:
            return
        self.member.end_use(volume, user)
        if not self.member.is_in_use(volume):
            self.rounds.push(volume).wait(UNMOUNT_PATIENCE)

    # Owners

    def check_owner(self, volume: str) -> None:
        """Raise NotOwner if a volume follows its service and this host does not own it."""
        check_owner(self.member, volume)

    @contextmanager
    def owning(self, volume: str) -> Iterator[None]:
        """Keep a volume from being let go until the block ends. Raises NotOwner, FollowBusy."""
        if self.member.charter(volume) is None:
            yield
            return
        with self.member.lock(volume, self.member.name, LOCK_PATIENCE):
            check_owner(self.member, volume)
            yield

    @contextmanager
    def restoring(self, volume: str) -> Iterator[None]:
        """The same for a volume that gets other content; one that is not here must not come back
        as a plain one while its service goes on with it."""
        is_possible = names.is_volume_reference(volume)
        if is_possible and self.member.charter(volume) is None and not self.member.exists(volume):
            owner = self.member.owner(volume)
            if owner is not None:
                raise NotOwner(volume, owner)
        with self.owning(volume):
            yield

    # What there is to know

    def glance(self, volume: str) -> Glance | None:
        """What is known here of a volume; None if it follows nobody. Raises ButtervolumeError."""
        charter = self.member.charter(volume)
        if charter is None:
            return None
        standing = self.member.report(volume, with_use=False).standing
        owner = standing.known[-1].owner if standing.known else None
        return Glance(
            owner,
            len(standing.known),
            self._last_copy(volume, standing),
            self.member.forks(volume),
        )

    def _last_copy(self, volume: str, standing: Standing) -> str | None:
        if standing.role is Role.OWNER:
            return self.member.last_marked(volume)
        newest = max(
            standing.copies, key=lambda c: (len(c.version.line), c.version.seq), default=None
        )
        return newest.snapshot if newest else None
