"""A member of a followed volume, as the one that mounts it sees it: this host, or another one over
a session with its `buttervolume peer`."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol

from buttervolume.errors import (
    BadCharter,
    ButtervolumeError,
    Cancelled,
    FollowBusy,
    FollowRefused,
    HostFailed,
    InUse,
)
from buttervolume.follow.attend import SILENCE
from buttervolume.follow.charter import Report, copy_from_json, line_to_json, report_from_json
from buttervolume.follow.machine import Copy, Line
from buttervolume.follow.member import Member
from buttervolume.hosts import session
from buttervolume.hosts.session import NoSession, Session
from buttervolume.system.command import Flow

BEAT = 2.0
"""Seconds between two signs of life of who holds a lock."""
_LONG = 120.0
"""Seconds for what takes a snapshot and brings it to the disk."""
_PAUSE = 0.25


class Link(Protocol):
    """One member. Its lock is held until the link is closed, or the connection breaks."""

    member: str

    def lock(self, patience: float) -> None:
        """Lock the volume there. Raises FollowBusy if somebody else has the lock for so many
        seconds, HostFailed."""

    def report(self) -> Report:
        """What the member says of itself. Raises HostFailed."""

    def release(self, grantee: str, *, anew: bool = False) -> Copy:
        """Have the member let the volume go, `anew` with a snapshot that is taken now. Raises
        InUse, FollowRefused, HostFailed."""

    def hear(self, line: Line, dropped: frozenset[str]) -> None:
        """Have the member remember a line. Raises FollowRefused, HostFailed."""

    def check_can_drop(self) -> None:
        """Raise FollowRefused if the member would not delete the volume."""

    def busy(self) -> str:
        """Why the volume cannot be deleted there just now, its lock being held: a copy of it is on
        its way. Empty if none is. Raises HostFailed."""

    def drop(self) -> None:
        """Have the member delete the volume for good; its lock is held. Raises HostFailed."""


Connect = Callable[[str, str, float], AbstractContextManager[Link]]
"""Opens a link to a member for a volume, with so many seconds for the log-in. Raises HostFailed;
FollowRefused where something is wrong that waiting does not mend."""


class Here:
    """This host."""

    def __init__(self, member: Member, volume: str, locks: ExitStack) -> None:
        """The lock is held until `locks` is closed."""
        self.member = member.name
        self._member = member
        self._volume = volume
        self._locks = locks
        self._is_locked = False

    def lock(self, patience: float) -> None:
        """Lock the volume here."""
        self._locks.enter_context(self._member.lock(self._volume, self.member, patience))
        self._is_locked = True

    def report(self) -> Report:
        """What this member says of itself."""
        return self._member.report(self._volume)

    def release(self, grantee: str, *, anew: bool = False) -> Copy:
        """Nobody asks this host for its own volume."""
        raise AssertionError(grantee)

    def hear(self, line: Line, dropped: frozenset[str]) -> None:
        """Remember a line."""
        if self._is_locked:
            self._member.hear(self._volume, line, dropped)
            return
        with self._member.lock(self._volume, self.member):
            self._member.overhear(self._volume, line, dropped)

    def check_can_drop(self) -> None:
        """This host would."""

    def busy(self) -> str:
        """What is on its way from here, or to here."""
        return self._member.busy(self._volume)

    def drop(self) -> None:
        """Delete the volume here."""
        self._member.drop(self._volume)


class Remote:
    """Another host."""

    def __init__(self, member: str, volume: str, opened: Session, flow: Flow) -> None:
        self.member = member
        self._volume = volume
        self._session = opened
        self._flow = flow
        # protects the session: a request and its answer belong together
        self._turn = threading.Lock()
        self._is_over = threading.Event()
        self._failure: ButtervolumeError | None = None

    def lock(self, patience: float) -> None:
        """Lock the volume there, and let the other side know from then on that we live."""
        deadline = time.monotonic() + patience
        while "taken" in (said := self._ask("lock")):
            if time.monotonic() > deadline:
                raise FollowBusy(self._volume, str(said["taken"])[:100])
            time.sleep(_PAUSE)
        threading.Thread(target=self._beat, name=f"beat-{self.member}", daemon=True).start()

    def _beat(self) -> None:
        while not self._is_over.wait(BEAT):
            try:
                self._ask("beat")
            except ButtervolumeError:
                return  # the next request fails with the reason

    def report(self) -> Report:
        """What the member says of itself."""
        said = self._ask("report", limit=_LONG)
        try:
            return report_from_json(self.member, said["report"])
        except (BadCharter, KeyError) as error:
            raise self._nonsense(error) from error

    def release(self, grantee: str, *, anew: bool = False) -> Copy:
        """Have the member let the volume go; one of an older version knows no `anew`."""
        said = self._ask("release", limit=_LONG, grantee=grantee, anew=anew)
        if "refused" in said:
            kind = InUse if said.get("in_use") is True else FollowRefused
            raise kind(self._volume, str(said["refused"])[:1000])
        try:
            return copy_from_json(self.member, said["copy"])
        except (BadCharter, KeyError) as error:
            raise self._nonsense(error) from error

    def hear(self, line: Line, dropped: frozenset[str]) -> None:
        """Have the member remember a line."""
        said = self._ask("hear", line=line_to_json(line), dropped=sorted(dropped))
        if "heard" not in said:
            raise FollowRefused(self._volume, str(said.get("refused"))[:1000])

    def check_can_drop(self) -> None:
        """Ask what the key there allows."""
        if "drop" not in self._session.verbs:
            raise FollowRefused(
                self._volume,
                f"the key that this host has on {self.member} is not for deleting volumes; delete "
                "it on each member by itself, with docker volume rm and buttervolume rm",
            )

    def busy(self) -> str:
        """Ask what is on its way from there, or to there."""
        said = self._ask("busy")
        try:
            return str(said["busy"])[:1000]
        except KeyError as error:
            raise self._nonsense(error) from error

    def drop(self) -> None:
        """Have the member delete the volume."""
        with self._turn:
            self._session.drop(self._volume, self._flow, _LONG)

    def close(self) -> None:
        """End the heartbeat, and one that is under way: the files of the session are closed next,
        and may be somebody else's then. The session, which ends with who opened it, gives up the
        lock."""
        self._is_over.set()
        self._flow.cancel()
        with self._turn:
            self._failure = self._failure or Cancelled()

    def _nonsense(self, error: Exception) -> HostFailed:
        return HostFailed(self.member, f"it answers nonsense: {error!r}"[:500])

    def _ask(self, what: str, limit: float = SILENCE, **request: object) -> dict[str, Any]:
        """Ask, unless that has failed before: a lost lock stays lost."""
        with self._turn:
            if self._failure is not None:
                raise self._failure
            try:
                return self._session.follow(what, self._volume, self._flow, limit, **request)
            except ButtervolumeError as error:
                self._failure = error
                raise


class Connector:
    """Opens links to other members."""

    def __init__(self, port: int, node: str) -> None:
        """`port` is the sshd port of the other hosts, `node` this host's name among them."""
        self._port = port
        self._node = node

    @contextmanager
    def __call__(self, member: str, volume: str, limit: float) -> Iterator[Link]:
        """See `Connect`."""
        flow = Flow()
        with ExitStack() as stack:
            connection = session.connect(member, self._port, self._node, flow, SILENCE, limit)
            try:
                opened = stack.enter_context(connection)
            except NoSession as error:
                raise FollowRefused(volume, f"{member} gives no session: {error.reason}") from error
            if opened is None or "follow" not in opened.verbs:
                raise FollowRefused(
                    volume,
                    f"{member} has no buttervolume that lets volumes follow their services, or the "
                    "key that this host has there is not for the role follow, or the daemon there "
                    "has never run, or has settings in its environment alone: ssh sees config.ini "
                    "only",
                )
            if opened.node != member:
                raise FollowRefused(
                    volume,
                    f"the host that is reached as {member} calls itself {opened.node[:100]}: set "
                    "NODE there to the name that all members have for it",
                )
            link = Remote(member, volume, opened, flow)
            try:
                yield link
            finally:
                link.close()


Links = dict[str, Link | ButtervolumeError]
"""To each member, or why there is none."""


@contextmanager
def linked(
    member: Member, volume: str, others: Iterable[str], connect: Connect, limit: float
) -> Iterator[Links]:
    """Links to this host and to others, connected to side by side, until the block ends."""
    others = [other for other in others if other != member.name]
    links: Links = {}
    tried: queue.SimpleQueue[tuple[str, Link | ButtervolumeError]] = queue.SimpleQueue()
    closing = threading.Event()

    def hold(other: str) -> None:
        # ssh ends with the thread that has started it (see `command`), so this one stays
        try:
            with connect(other, volume, limit) as link:
                tried.put((other, link))
                closing.wait()
        except ButtervolumeError as error:
            tried.put((other, error))
        except Exception as error:
            logging.getLogger(__name__).exception("%s: unexpected fault", other)
            tried.put((other, HostFailed(other, f"unexpected fault: {error!r}")))

    threads = [
        threading.Thread(target=hold, args=(other,), name=f"link-{other}", daemon=True)
        for other in others
    ]
    with ExitStack() as locks:
        links[member.name] = Here(member, volume, locks)
        try:
            for thread in threads:
                thread.start()
            for _ in threads:
                other, link = tried.get()
                links[other] = link
            yield links
        finally:
            closing.set()
    for thread in threads:
        thread.join()


def reached(link: Link | ButtervolumeError) -> Link:
    """A link, or the error that stands for it raised."""
    if isinstance(link, ButtervolumeError):
        raise link
    return link
