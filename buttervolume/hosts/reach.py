"""How other hosts are reached: under which name, on which port, over what is open already.

A log-in, and a start of Python there, take longer than sending a small change. So a session with
`buttervolume peer` that ended well stays open for some seconds, for whatever comes next: nothing is
held by it, on either side. It is used again only if the peer says that nothing has changed there
(see `Session.still_serves`) and the ssh configuration here has not changed either.

A host that has no peer is remembered, too, so that a send there need not log in to find that out
again; its answer to a look tells whether that is still so.
"""

import os
import pwd
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from buttervolume.hosts import session, ssh
from buttervolume.hosts.intake import STALL
from buttervolume.hosts.session import Session
from buttervolume.hosts.ssh import Connection
from buttervolume.system.command import Flow, Process

KEEP = 5.0
"""Seconds for which a session that nobody uses stays open."""
_MOST_KEPT = 8
_FORGET = 600.0
"""Seconds after which a host may have a peer after all, whatever it tells."""
_SYSTEM_WIDE = Path("/etc/ssh")

_Configuration = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True)
class _Open:
    """A session, what ends it, and what the ssh configuration was when it began."""

    session: Session
    stack: ExitStack
    configuration: _Configuration
    until: float = 0
    """When it is to end if it is idle until then, in seconds of the monotonic clock."""


@dataclass
class _Without:
    """A host that had no peer."""

    until: float
    """Seconds of the monotonic clock."""
    program: str | None = None
    """What it then had in its place; None if it has not been asked."""


class Reach:
    """The way to other hosts, for all that is done with them."""

    def __init__(self, port: int, node: str, stall: float = STALL, keep: float = KEEP) -> None:
        """`port` is the sshd port of the other hosts, `node` this host's name among them. A
        transfer ends after `stall` seconds without a byte, an idle session after `keep` seconds."""
        self.port = port
        self.node = node
        self.stall = stall
        self._keep = keep
        # protects _idle, _without, _is_watched and _closed
        self._guard = threading.Lock()
        self._idle: list[_Open] = []
        self._without: dict[str, _Without] = {}
        self._is_watched = False
        self._closed = False
        # ssh ends with the thread that has started it (see `command`): with one that stays
        self._starter = ThreadPoolExecutor(1, "ssh")

    # Sessions

    @contextmanager
    def session(self, host: str, flow: Flow) -> Iterator[Session | None]:
        """Have a session with a host until the block ends; None if it has no `buttervolume peer`.

        Raises NoSession, HostFailed, Cancelled.
        """
        opened = self._take(host, flow) or self._open(host, flow)
        if opened is None:
            with self._guard:
                self._without[host] = _Without(time.monotonic() + _FORGET)
            yield None
            return
        with ExitStack() as stack:
            stack.push(opened.stack.__exit__)
            yield opened.session
            stack.pop_all()
        self._put_back(opened)

    def _open(self, host: str, flow: Flow) -> _Open | None:
        configuration = _configuration()
        with ExitStack() as stack:
            opened = stack.enter_context(
                session.connect(host, self.port, self.node, flow, self.stall, start=self._start)
            )
            if opened is None:
                return None
            return _Open(opened, stack.pop_all(), configuration)

    def _start(self, argv: Sequence[str], stdin: int, stdout: int) -> Process:
        return self._starter.submit(Process, argv, stdin, stdout).result()

    def _take(self, host: str, flow: Flow) -> _Open | None:
        """A session that is open still and can be used; those that cannot are ended."""
        configuration = _configuration()
        while opened := self._pop(host):
            with ExitStack() as stack:
                stack.push(opened.stack.__exit__)
                if opened.configuration == configuration and opened.session.still_serves(flow):
                    stack.pop_all()
                    return opened
        return None

    def _pop(self, host: str) -> _Open | None:
        """The idle session with a host that was used last."""
        with self._guard:
            for index in reversed(range(len(self._idle))):
                if self._idle[index].session.host == host:
                    return self._idle.pop(index)
        return None

    def _put_back(self, opened: _Open) -> None:
        """Let it stay open for a while."""
        with self._guard:
            is_kept = not self._closed and self._keep > 0 and len(self._idle) < _MOST_KEPT
            if is_kept:
                self._idle.append(replace(opened, until=time.monotonic() + self._keep))
            if is_kept and not self._is_watched:
                self._is_watched = True
                threading.Thread(target=self._watch, name="idle sessions", daemon=True).start()
        if not is_kept:
            opened.stack.close()

    def _watch(self) -> None:
        """End the sessions that have been idle for long, until there is none any more."""
        while True:
            now = time.monotonic()
            with self._guard:
                over = [one for one in self._idle if one.until <= now]
                self._idle = [one for one in self._idle if one.until > now]
                next_look = min((one.until for one in self._idle), default=None)
                if next_look is None:
                    self._is_watched = False
            for opened in over:
                opened.stack.close()
            if next_look is None:
                return
            time.sleep(max(0, next_look - time.monotonic()))

    def close(self) -> None:
        """End the sessions that are open and idle, and keep no other."""
        with self._guard:
            self._closed = True
            idle, self._idle = self._idle, []
        for opened in idle:
            opened.stack.close()

    # Without a peer

    def has_no_peer(self, host: str) -> bool:
        """Whether a host had no peer a while ago, so that scripts are worth a try."""
        with self._guard:
            known = self._without.get(host)
            if known and known.until < time.monotonic():
                del self._without[host]
            return host in self._without

    def forget(self, host: str) -> None:
        """Let a host be asked for a session again."""
        with self._guard:
            self._without.pop(host, None)

    def has_peer_now(self, host: str, program: str) -> bool:
        """Whether a host that had no peer may have got one, by what program it tells of."""
        with self._guard:
            known = self._without.get(host)
            if known is None or known.program in (None, program):
                if known:
                    known.program = program
                return False
            del self._without[host]
            return True

    def shell(
        self, host: str, flow: Flow, limit: float | None = None
    ) -> AbstractContextManager[Connection]:
        """A connection that runs scripts on a host, each for `limit` seconds at most (see
        `ssh.connect`)."""
        return ssh.connect(host, self.port, flow, self.stall if limit is None else limit)


def _configuration() -> _Configuration:
    """What tells whether the ssh configuration of this host, or its keys, have changed. Which hosts
    are known does not matter to a session that is open; ssh itself writes that down."""
    own = Path(pwd.getpwuid(os.geteuid()).pw_dir, ".ssh")
    found = []
    for directory in (own, _SYSTEM_WIDE, _SYSTEM_WIDE / "ssh_config.d"):
        try:
            with os.scandir(directory) as entries:
                files = [one for one in entries if one.is_file() and "known_hosts" not in one.name]
                stats = [(file.path, file.stat()) for file in files]
        except OSError:
            continue
        found += [(path, stat.st_ino, stat.st_mtime_ns, stat.st_size) for path, stat in stats]
    return tuple(sorted(found))
