"""What a job does: one class per action, from its words in the schedule to the work itself.

To add one, write its class and name it in ACTIONS. Only the command line names them, too: in its
help, its completion and its hints, which a test holds against ACTIONS.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar, Self

from buttervolume import names
from buttervolume.errors import BadJob, OperationFailed
from buttervolume.hosts.replication import Replication
from buttervolume.hosts.transfers import Transfers
from buttervolume.store.retention import Pattern, parse_pattern
from buttervolume.store.snapshots import Snapshots


@dataclass(frozen=True)
class Tools:
    """What the actions work with."""

    snapshots: Snapshots
    replication: Replication
    transfers: Transfers
    check_owner: Callable[[str], None] = lambda volume: None
    """Raises NotOwner if a volume follows its service, and this host does not own it."""
    owning: Callable[[str], AbstractContextManager[None]] = lambda volume: nullcontext()
    """Keeps such a volume here while something works on it; raises NotOwner, FollowBusy."""


@dataclass(frozen=True)
class Done:
    """What a run did."""

    outcome: str
    """In words, for the log and for a caller that waits for the run."""
    snapshot: str = ""
    """The snapshot that it was about, if it was one."""
    warnings: tuple[str, ...] = ()


class Action(ABC):
    """What a job does with its volume."""

    kind: ClassVar[str]
    """The word that it begins with in the schedule."""
    usage: ClassVar[str]
    """How it is written, for messages."""
    protects: ClassVar[bool] = False
    """Whether it makes a copy of the volume, or brings one."""
    takes_snapshots: ClassVar[bool] = False
    """Whether there is a new snapshot each time that the volume has changed."""
    needs_volume: ClassVar[bool] = True
    """Whether there is nothing to do for a volume that does not exist: the job waits for it."""
    everywhere: ClassVar[bool] = False
    """Whether it is for every member of a volume that follows its service, not for its owner only.
    """

    @classmethod
    @abstractmethod
    def parse(cls, rest: str) -> Self:
        """Understand what is behind the colon, if anything may be. Raises BadName, BadPattern,
        BadJob."""

    @property
    def hosts(self) -> tuple[str, ...]:
        """The other hosts that it transfers to or from: these may be slow, or dead."""
        return ()

    @property
    def alone(self) -> bool:
        """Whether only one of this kind may work on a volume at a time: the next one waits."""
        return False

    @property
    def warning(self) -> str:
        """What is odd about it without being wrong; empty if nothing is."""
        return ""

    @abstractmethod
    def run(self, volume: str, tools: Tools) -> Done:
        """Do it. Raises ButtervolumeError."""


@dataclass(frozen=True)
class Snapshot(Action):
    """Snapshot the volume, if it has changed."""

    kind = "snapshot"
    usage = "snapshot"
    protects = takes_snapshots = True

    @classmethod
    def parse(cls, rest: str) -> Self:
        """Nothing may be behind it."""
        return cls()

    def run(self, volume: str, tools: Tools) -> Done:
        """Take one, if there is something new to take."""
        unchanged = tools.snapshots.unchanged_since(volume)
        if unchanged is not None:
            return Done("unchanged", unchanged)
        taken = tools.snapshots.take(volume)
        return Done(taken.name, taken.name, taken.warnings)


@dataclass(frozen=True)
class Purge(Action):
    """Delete the snapshots that a retention pattern does not keep."""

    pattern: Pattern

    kind = "purge"
    usage = "purge:<pattern>"
    needs_volume = False  # what was received is purged where there is no volume
    everywhere = True

    @classmethod
    def parse(cls, rest: str) -> Self:
        """A retention pattern."""
        return cls(parse_pattern(rest))

    @property
    def warning(self) -> str:
        """What is odd about the pattern."""
        return self.pattern.warning

    def run(self, volume: str, tools: Tools) -> Done:
        """Delete them; what cannot be deleted makes it a failure."""
        purged = tools.snapshots.purge(volume, self.pattern)
        if purged.failed:
            raise OperationFailed("purge", purged.explain())
        warnings = (purged.warning,) if purged.warning else ()
        return Done(f"{len(purged.deleted)} purged", warnings=warnings)


@dataclass(frozen=True)
class WithHost(Action):
    """What one other host has a part in."""

    host: str

    @classmethod
    def parse(cls, rest: str) -> Self:
        """A host."""
        return cls(names.check_host(rest))

    @property
    def hosts(self) -> tuple[str, ...]:
        """That host."""
        return (self.host,)


class Replicate(WithHost):
    """Snapshot the volume and send the snapshot to a host."""

    kind = "replicate"
    usage = "replicate:<host>"
    protects = takes_snapshots = True

    def run(self, volume: str, tools: Tools) -> Done:
        """Send what is new."""
        sent = tools.replication.replicate(volume, self.host)
        return Done(sent or "unchanged", sent or "")


class Mirror(WithHost):
    """Send a host every snapshot of the volume that it lacks."""

    kind = "mirror"
    usage = "mirror:<host>"
    protects = True
    needs_volume = False  # its snapshots are enough

    def run(self, volume: str, tools: Tools) -> Done:
        """Send them, the oldest first; a failure keeps what has arrived."""
        sent = tools.replication.send_all(volume, self.host)
        if not sent:
            return Done("unchanged")
        warnings = dict.fromkeys(each.warning for each in sent if each.warning)
        return Done(f"{len(sent)} sent", sent[-1].snapshot, tuple(warnings))


class Receive(WithHost):
    """Receive the newest snapshot of the volume from a host."""

    kind = "receive"
    usage = "receive:<host>"
    protects = True
    needs_volume = False

    def run(self, volume: str, tools: Tools) -> Done:
        """Receive it; nothing is restored."""
        received = tools.replication.receive(volume, self.host)
        warnings = (received.warning,) if received.warning else ()
        return Done(received.snapshot, received.snapshot, warnings)


@dataclass(frozen=True)
class Synchronize(Action):
    """Bring newer files from hosts."""

    sources: tuple[str, ...]

    kind = "synchronize"
    usage = "synchronize:<host>[,<host>…]"

    @classmethod
    def parse(cls, rest: str) -> Self:
        """Hosts, each named once."""
        hosts = tuple(names.check_host(host) for host in rest.split(","))
        if len(set(hosts)) < len(hosts):
            raise BadJob(f"{rest}: a host is named twice")
        return cls(hosts)

    @property
    def hosts(self) -> tuple[str, ...]:
        """The sources."""
        return self.sources

    @property
    def alone(self) -> bool:
        """Two would write to one volume."""
        return True

    def run(self, volume: str, tools: Tools) -> Done:
        """Bring them; the snapshot that was taken first is the way back."""
        with tools.owning(volume):
            [taken] = tools.replication.synchronize([volume], self.sources)
        return Done("synchronized", taken.name, taken.warnings)


ACTIONS: tuple[type[Action], ...] = (
    Snapshot,
    Purge,
    Replicate,
    Mirror,
    Receive,
    Synchronize,
)
USAGES = tuple(action.usage for action in ACTIONS)


def parse_action(text: str) -> Action:
    """Understand an action of the schedule. Raises BadJob, BadName, BadPattern."""
    kind, colon, rest = text.partition(":")
    for action in ACTIONS:
        if action.kind == kind and bool(colon) is (":" in action.usage):
            return action.parse(rest)
    *most, last = USAGES
    raise BadJob(f"{text!r} is no action: use {', '.join(most)} or {last}")
