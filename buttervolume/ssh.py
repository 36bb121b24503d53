"""Other hosts over ssh: how to reach them, and one connection shared by several commands."""

import re
import select
import shlex
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from buttervolume.command import Flow, Process
from buttervolume.errors import CommandFailed, HostFailed

CONNECTION_FAILED = 255
"""The exit status of ssh when ssh itself failed, and not the command there (ssh(1))."""
_LOGIN_LIMIT = 60.0
"""Seconds for the whole of a log-in; ConnectTimeout covers only its beginning."""
_HOLD_OPEN = "echo ready && exec cat >/dev/null"
"""Keeps a connection open until this side closes its end, be it by dying."""


def command_for(port: int) -> list[str]:
    """The ssh command, without the host. It never asks for anything, and notices a dead peer;
    everything else is the ssh configuration's to say."""
    options = {
        "BatchMode": "yes",
        "ConnectTimeout": "10",
        "ServerAliveInterval": "15",
        "ServerAliveCountMax": "4",
    }
    return ["ssh", "-p", str(port), *(f"-o{key}={value}" for key, value in options.items())]


class Connection:
    """An open connection to a host."""

    def __init__(self, host: str, argv: Sequence[str], limit: float) -> None:
        """`limit` is how many seconds a command of `run` may take."""
        self.host = host
        self._argv = [*argv, host]
        self._limit = limit

    def argv(self, script: str, *arguments: str) -> list[str]:
        """The local command that runs a shell script there, with arguments as $1, $2 …"""
        remote = shlex.join(["sh", "-c", f"export LC_ALL=C; {script}", "sh", *arguments])
        return [*self._argv, remote]

    def run(self, flow: Flow, script: str, *arguments: str) -> str:
        """Run a script there to its end and return what it printed.

        Raises HostFailed, Stalled, Cancelled.
        """
        with Process(self.argv(script, *arguments)) as process:
            process.wait(flow, self._limit)
            failure = process.failure()
            if failure:
                raise HostFailed(self.host, explain(failure))
            return process.output()


@contextmanager
def connect(host: str, port: int, flow: Flow, limit: float) -> Iterator[Connection]:
    """Open a connection that ends with the block, or with this process.

    Raises HostFailed if it cannot be had, Cancelled.
    """
    with tempfile.TemporaryDirectory(prefix="buttervolume-") as directory:
        control = Path(directory, "ssh")
        ssh = command_for(port)
        hold_open = [*ssh, "-M", "-S", str(control), host, shlex.join(["sh", "-c", _HOLD_OPEN])]
        with Process(hold_open, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as master:
            _wait_until_ready(master, host, flow)
            yield Connection(host, [*ssh, "-S", str(control)], limit)


def _wait_until_ready(master: Process, host: str, flow: Flow) -> None:
    assert master.popen.stdout is not None
    deadline = time.monotonic() + _LOGIN_LIMIT
    poll = select.poll()
    poll.register(master.popen.stdout, select.POLLIN)
    printed = b""
    while b"ready" not in printed.split(b"\n")[:-1]:
        flow.check()
        if time.monotonic() > deadline:
            raise HostFailed(host, f"no log-in within {_LOGIN_LIMIT:g} seconds")
        if poll.poll(200):
            more = master.popen.stdout.read1()  # type: ignore[attr-defined]
            printed += more
            if not more:
                master.wait(flow, _LOGIN_LIMIT)
                failure = master.failure()
                raise HostFailed(
                    host, explain(failure) if failure else "the log-in printed nothing"
                )


def explain(failure: CommandFailed) -> str:
    """What ssh, or the command there, said of its failure."""
    said = "; ".join(line.strip() for line in failure.stderr.splitlines() if line.strip())
    said = re.sub(r"Warning: Permanently added .*?\.(; |$)", "", said)
    if failure.status == CONNECTION_FAILED:
        return said or "the ssh connection failed"
    return f"{said or 'no message'} (exit status {failure.status})"
