"""A session with `buttervolume peer` on another host, seen from the side that asks."""

import json
import logging
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from buttervolume.errors import (
    BadName,
    CommandFailed,
    HostFailed,
    PeerGone,
    PeerRefused,
    PeerSilent,
    Stalled,
)
from buttervolume.hosts import ssh
from buttervolume.hosts.intake import Intake
from buttervolume.hosts.lineage import Facts, Side
from buttervolume.hosts.protocol import PROTOCOL, facts_from_json, number
from buttervolume.hosts.stream import NEWEST_VERSION, Announced
from buttervolume.hosts.wire import Inlet, say
from buttervolume.names import SnapshotName
from buttervolume.system.btrfs import Subvolume
from buttervolume.system.command import PIPE, Flow, Process, enlarge

COMMAND = "buttervolume peer"
_NOT_THERE = (126, 127, 2)
"""The exit statuses of a shell that finds no such command, and of a version without `peer`."""
_LONGEST_PREFACE = 1 << 16
"""Bytes that start-up files of a shell may print before the peer says anything."""
_TO_COMMIT = 12
"""How many times as long as a transfer may stall a peer has to bring a stream to its disk: an hour,
where that is five minutes."""
_LAST_WORDS = 5.0
_STILL_LIMIT = 3.0
"""Seconds in which a peer that has had nothing to do must answer."""


@dataclass(frozen=True)
class PeerLook:
    """What a look at the other host has shown."""

    side: Side
    is_bound: bool
    """Whether the directory is in a bind mount that is no subvolume: it receives no changes."""


class NoSession(HostFailed):
    """There was a log-in, but something else than a session came of it."""


class Session:
    """An open session. Every request may raise HostFailed, PeerRefused and Cancelled."""

    def __init__(
        self, host: str, process: Process, inlet: Inlet, limit: float, greeting: dict[str, Any]
    ) -> None:
        """`limit` is how many seconds an answer, or a move of a stream, may take."""
        assert process.popen.stdin is not None
        self.host = host
        self.verbs = frozenset(map(str, greeting["verbs"]))
        self.node = str(greeting["node"])
        self.stream_version = min(number(greeting["stream"]), NEWEST_VERSION)
        self.time = number(greeting["time"])
        """The clock there, in seconds since 1970, when the session began."""
        self._process = process
        self._inlet = inlet
        self._outlet = process.popen.stdin.fileno()
        self._limit = limit

    def look(
        self, volume: str, moment_of: Callable[[SnapshotName], datetime | None], flow: Flow
    ) -> PeerLook:
        """What snapshots of a volume it has; what earlier sends of this host have left behind is
        removed there."""
        with self._told():
            said = self._ask(flow, do="look", volume=volume)
            facts = [facts_from_json(one, moment_of) for one in said["snapshots"]]
            own = tuple(one for one in facts if one.name.volume == volume)
            strangers = frozenset(UUID(str(one)) for one in said["strangers"])
            return PeerLook(Side(own, strangers), said["bound"] is True)

    def send(
        self,
        origin: Facts,
        argv: Sequence[str],
        parent: Facts | None,
        copies: Sequence[Facts],
        flow: Flow,
    ) -> None:
        """Send the stream that a command makes of a snapshot here, as changes of a parent that has
        `copies` there; when this returns, the copy there is whole and on the disk."""
        parents = {str(copy.uuid) for copy in copies} if parent else {None}
        with self._told():
            self._say(
                do="receive",
                name=str(origin.name),
                uuid=str(origin.identity),
                ctransid=origin.ctransid,
                parent=str(parent.identity) if parent else None,
            )
            os.set_blocking(self._outlet, True)
            with Process(argv, stdout=self._outlet) as source:
                source.wait(flow, self._limit, source.written)
                failure = source.failure()
            if failure and failure.status != -signal.SIGPIPE:  # it only lost the other end
                raise failure
            said = self._answer(flow, _TO_COMMIT * self._limit)
            if said["received"] != str(origin.name) or said["parent"] not in parents:
                raise PeerGone("the copy is not what was sent")

    def receive(
        self,
        name: SnapshotName,
        parent: SnapshotName | None,
        intake: Intake,
        flow: Flow,
        *,
        version: int,
        expected: Callable[[Announced], None],
        before: Callable[[int], None] = lambda cost: None,
    ) -> Subvolume:
        """Receive a snapshot from there, as changes of a parent that both have. `expected` is told
        what the stream will hold, and raises if it is something else than was asked for."""
        with self._told():
            said = self._ask(
                flow,
                do="send",
                name=str(name),
                parent=str(parent) if parent else None,
                stream=version,
            )
            announced = Announced(
                str(name),
                UUID(str(said["uuid"])),
                number(said["ctransid"]),
                UUID(str(said["parent"])) if said["parent"] else None,
            )
            expected(announced)
            copy = intake.receive(
                name,
                announced,
                self.host,
                self._inlet,
                flow,
                version=version,
                before=before,
            )
            self._answer(flow)
            self._mark(name, flow)
            return copy

    def mark(self, name: SnapshotName, flow: Flow) -> None:
        """Let the other host keep a snapshot that is here, for the changes that come next."""
        with self._told():
            self._mark(name, flow)

    def _mark(self, name: SnapshotName, flow: Flow) -> None:
        log = logging.getLogger(__name__)
        if "received" not in self.verbs:  # what comes next may be all again
            text = "%s does not offer to keep what was received from it as a parent"
            log.warning(text, self.host)
            return
        try:
            self._ask(flow, do="received", name=str(name))
        except PeerRefused as error:  # its disk may take nothing more; the copy is here
            log.warning("%s does not keep %s as a parent: %s", self.host, name, error.reason)

    def still_serves(self, flow: Flow) -> bool:
        """Whether the other side is there, and would answer a new session as it answers this one.
        An older peer does not know, and then this one is not used again. Raises Cancelled."""
        try:
            say(self._outlet, {"do": "still"}, _STILL_LIMIT)
            said = self._inlet.message(_STILL_LIMIT, flow)
        except (PeerGone, PeerSilent, OSError):
            return False
        return said is not None and said.get("still") is True

    def follow(
        self, what: str, volume: str, flow: Flow, limit: float, **more: object
    ) -> dict[str, Any]:
        """Ask about a volume that follows its service; `limit` is in seconds."""
        with self._told():
            self._say(do="follow", what=what, volume=volume, **more)
            return self._answer(flow, limit)

    def drop(self, volume: str, flow: Flow, limit: float) -> None:
        """Have a followed volume deleted that this session has locked; `limit` is in seconds."""
        with self._told():
            self._say(do="drop", volume=volume)
            self._answer(flow, limit)

    def discard(self, name: SnapshotName, flow: Flow) -> None:
        """Remove a partial copy there that this host has left."""
        with self._told():
            self._ask(flow, do="discard", name=str(name))

    def _ask(self, flow: Flow, **request: object) -> dict[str, Any]:
        self._say(**request)
        return self._answer(flow)

    def _say(self, **request: object) -> None:
        say(self._outlet, request, self._limit)

    def _answer(self, flow: Flow, limit: float | None = None) -> dict[str, Any]:
        said = self._inlet.message(self._limit if limit is None else limit, flow)
        if said is None:
            raise PeerGone("the other side has ended the session")
        if "error" in said:
            raise PeerRefused(self.host, str(said["error"])[:2000], str(said.get("code")))
        return said

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn what goes wrong with a session into what a user is told: ssh, or the other side,
        may have said more of it."""
        try:
            yield
        except (PeerGone, PeerSilent, OSError) as error:
            raise HostFailed(self.host, _last_words(self._process) or str(error)) from error
        except (BadName, KeyError, TypeError, ValueError) as error:
            raise HostFailed(self.host, f"it answers nonsense: {error!r}"[:500]) from error


@contextmanager
def connect(
    host: str,
    port: int,
    node: str,
    flow: Flow,
    limit: float,
    login_limit: float = ssh.LOGIN_LIMIT,
    *,
    start: Callable[[Sequence[str], int, int], Process] = Process,
) -> Iterator[Session | None]:
    """Have a session until the block ends; None if the host has no `buttervolume peer`. `node` is
    this host's name; `start` starts ssh. Raises NoSession, HostFailed, Cancelled."""
    with ExitStack() as stack:
        out, into = os.pipe()
        stack.callback(os.close, out)
        try:
            enlarge(into)
            argv = [*ssh.command_for(port), "-S", "none", host, COMMAND]
            process = stack.enter_context(start(argv, PIPE, into))
        finally:
            os.close(into)
        assert process.popen.stdin is not None
        enlarge(process.popen.stdin.fileno())
        yield _begin(host, process, Inlet(out), node, flow, limit, login_limit)


def _begin(
    host: str,
    process: Process,
    inlet: Inlet,
    node: str,
    flow: Flow,
    limit: float,
    login_limit: float,
) -> Session | None:
    assert process.popen.stdin is not None
    try:
        say(process.popen.stdin.fileno(), {"do": "hello", "node": node}, limit)
        return Session(host, process, inlet, limit, _greeting(inlet, flow, login_limit))
    except PeerSilent as error:
        raise HostFailed(host, f"no log-in within {login_limit:g} seconds") from error
    except (PeerGone, BrokenPipeError, KeyError, TypeError, ValueError) as error:
        words = _last_words(process)
        status = process.popen.poll()
        if status in _NOT_THERE:
            return None
        if status not in (None, ssh.CONNECTION_FAILED):
            raise NoSession(host, words or f"unexpected answer: {error}") from error
        raise HostFailed(host, words or f"unexpected answer: {error}") from error


def _greeting(inlet: Inlet, flow: Flow, limit: float) -> dict[str, Any]:
    """What the peer says first, after whatever a shell's start-up files print."""
    passed = 0
    while passed < _LONGEST_PREFACE:
        line = inlet.line(limit, flow, _LONGEST_PREFACE)
        if not line:
            raise PeerGone("the session was ended")
        passed += len(line)
        with suppress(ValueError, RecursionError):
            said = json.loads(line)
            if isinstance(said, dict) and said.get("buttervolume") == PROTOCOL:
                return said
            if isinstance(said, dict) and isinstance(said.get("buttervolume"), int):
                raise PeerGone(
                    f"it speaks version {said['buttervolume']} of the protocol, and this host "
                    f"version {PROTOCOL}: install the same version of buttervolume on both"
                )
    raise PeerGone("the other side is no buttervolume")


def _last_words(process: Process) -> str:
    """What ssh, or the command there, has said of its failure."""
    with suppress(Stalled, CommandFailed):
        process.wait(Flow(), _LAST_WORDS)
        failure = process.failure()
        return ssh.explain(failure) if failure else ""
    return ""
