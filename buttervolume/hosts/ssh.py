"""Other hosts over ssh: how to reach them, and one connection shared by several commands."""

import re
import select
import shlex
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from buttervolume.errors import CommandFailed, HostFailed, Stalled
from buttervolume.system.command import PIPE, Flow, Process

CONNECTION_FAILED = 255
"""The exit status of ssh when ssh itself failed, and not the command there (ssh(1))."""
LOGIN_LIMIT = 60.0
"""Seconds for the whole of a log-in; ConnectTimeout covers only its beginning."""
_CHATTER = re.compile("Warning: Permanently added |At subvol |At snapshot |@@@|rsync error: ")
"""Begins messages of ssh, `btrfs receive` and rsync that say nothing of why something failed."""
_LAST_WORDS = 1.0
"""Seconds in which the master of a broken connection says why it broke."""
_HOLD_OPEN = "printf '\\nready\\n' && exec cat >/dev/null"
"""Keeps a connection open until this side closes its end, be it by dying. The word has a line of
its own, whatever a start-up file of the shell there has printed before."""


def command_for(port: int) -> list[str]:
    """The ssh command, without the host. It never asks for anything, notices a dead peer, and does
    nothing beside running a command there; everything else is the ssh configuration's to say."""
    options = {
        "BatchMode": "yes",
        "ConnectTimeout": "10",
        "ServerAliveInterval": "15",
        "ServerAliveCountMax": "4",
        "ControlPersist": "no",  # would leave a process behind
        "RequestTTY": "no",  # would change bytes
        "RemoteCommand": "none",
        "ClearAllForwardings": "yes",  # the ports may be taken by somebody's other session
    }
    return ["ssh", "-p", str(port), *(f"-o{key}={value}" for key, value in options.items())]


class Connection:
    """An open connection to a host."""

    def __init__(self, host: str, argv: Sequence[str], master: Process, limit: float) -> None:
        """`limit` is how many seconds a command of `run` may take."""
        self.host = host
        self._argv = [*argv, host]
        self._master = master
        self._limit = limit

    def argv(self, script: str, *arguments: str) -> list[str]:
        """The local command that runs a shell script there, with arguments as $1, $2 …"""
        remote = shlex.join(["sh", "-c", f"export LC_ALL=C; {script}", "sh", *arguments])
        return [*self._argv, remote]

    def run(self, flow: Flow, script: str, *arguments: str) -> str:
        """Run a script there to its end and return what it printed.

        Raises HostFailed, Cancelled.
        """
        with Process(self.argv(script, *arguments)) as process:
            try:
                process.wait(flow, self._limit)
            except Stalled as error:
                reason = f"no answer within {self._limit:g} seconds"
                raise HostFailed(self.host, reason) from error
            failure = process.failure()
            if failure:
                raise HostFailed(self.host, self.explain(failure))
            return process.output()

    def passed_on(self) -> int:
        """How many bytes have gone to the other host. The ssh of a command hands its files over to
        the master and moves nothing itself."""
        return self._master.written()

    def explain(self, failure: CommandFailed) -> str:
        """What a command there said of its failure; if the connection broke, the ssh that holds it
        open knows why."""
        if failure.status == CONNECTION_FAILED:
            with suppress(Stalled):
                self._master.wait(Flow(), _LAST_WORDS)
                failure = self._master.failure() or failure
        return explain(failure)


@contextmanager
def connect(
    host: str, port: int, flow: Flow, limit: float, login_limit: float = LOGIN_LIMIT
) -> Iterator[Connection]:
    """Open a connection that ends with the block, or with this process.

    The limits are in seconds, see `Connection`. Raises HostFailed if it cannot be had, Cancelled.
    """
    with tempfile.TemporaryDirectory(prefix="buttervolume-") as directory:
        control = Path(directory, "ssh")
        ssh = command_for(port)
        hold_open = [*ssh, "-M", "-S", str(control), host, shlex.join(["sh", "-c", _HOLD_OPEN])]
        with Process(hold_open, stdin=PIPE, stdout=PIPE) as master:
            _wait_until_ready(master, host, flow, login_limit)
            shared = [*ssh, "-oControlMaster=no", "-S", str(control)]
            yield Connection(host, shared, master, limit)


def _wait_until_ready(master: Process, host: str, flow: Flow, limit: float) -> None:
    assert master.popen.stdout is not None
    deadline = time.monotonic() + limit
    poll = select.poll()
    poll.register(master.popen.stdout, select.POLLIN)
    printed = b""
    while b"ready" not in printed.split(b"\n")[:-1]:
        flow.check()
        if time.monotonic() > deadline:
            raise HostFailed(host, f"no log-in within {limit:g} seconds")
        if poll.poll(200):
            more = master.popen.stdout.read1()  # type: ignore[attr-defined]
            printed += more
            if not more:
                master.wait(flow, limit)
                failure = master.failure()
                raise HostFailed(
                    host, explain(failure) if failure else "the log-in printed nothing"
                )


def explain(failure: CommandFailed) -> str:
    """What ssh, or the command there, said of its failure."""
    lines = (line.strip() for line in failure.stderr.splitlines())
    said = "; ".join(line for line in lines if line and not _CHATTER.match(line))
    if failure.status == CONNECTION_FAILED:
        return said or "the ssh connection failed"
    return f"{said or 'no message'} (exit status {failure.status})"
