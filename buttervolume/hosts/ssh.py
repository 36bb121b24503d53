"""Other hosts over ssh: how to reach them, and one connection shared by several commands."""

import base64
import logging
import os
import re
import select
import shlex
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from buttervolume.errors import (
    CommandFailed,
    HostFailed,
    OperationFailed,
    Stalled,
    TooMuchOutput,
)
from buttervolume.system.command import PIPE, Flow, Process
from buttervolume.words import lines, shortened

CONNECTION_FAILED = 255
"""The exit status of ssh when ssh itself failed, and not the command there (ssh(1))."""
LOGIN_LIMIT = 60.0
"""Seconds for the whole of a log-in; ConnectTimeout covers only its beginning."""
_CHATTER = re.compile(
    r"Warning: Permanently added |\*\* |At subvol |At snapshot |Chroot to |@@@|rsync error: |"
    r"ControlSocket .* already exists|mux_client_request_session: "
)
"""Begins messages of ssh, `btrfs receive` and rsync that say nothing of why something failed."""
_NO_SECOND_SESSION = "mux_client_request_session: session request failed"
"""What ssh says before it falls back on a connection of its own (mux.c of OpenSSH)."""
_WEAK = re.compile("rsync: connection unexpectedly closed")
"""Begins messages that are worth something where there are no others."""
_OWN_WORDS = re.compile(
    r"ssh: |ssh_|kex_|client_loop|Timeout, server |Connection |Received disconnect |Disconnected |"
    r"Host key |Permission denied|Unable to |No |Too many |channel |percent_|Bad |\S+: line \d+: |"
    r"command-line|(\S+@)?\S+: Permission denied|Could not |Load key |Bind |Control"
)
"""Begins what ssh itself says of its failure; the rest may be the banner of the other host."""
_LONGEST_GREETING = 1 << 16
"""Bytes that a log-in may print before our command runs."""
_LONGEST_DIRECTORY = 60
"""Bytes: a longer path leaves no room for a socket, with what ssh adds to its name (unix(7))."""
_LAST_WORDS = 1.0
"""Seconds in which the master of a broken connection says why it broke."""
_HOLD_OPEN = "printf '\\nready\\n' && exec cat >/dev/null"
"""Keeps a connection open until this side closes its end, or dies. The word has a line of its own,
whatever a start-up file of the shell there has printed before."""


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
        "ForwardAgent": "no",  # the other host needs nobody's keys
        "ForwardX11": "no",
        "PermitLocalCommand": "no",  # it would print among our bytes
        "StdinNull": "no",
        "SessionType": "default",
        "ForkAfterAuthentication": "no",
        "LogLevel": "INFO",  # says why it fails, and no more
    }
    return ["ssh", "-p", str(port), *(f"-o{key}={value}" for key, value in options.items())]


class Connection:
    """An open connection to a host."""

    def __init__(self, host: str, argv: Sequence[str], master: Process, limit: float) -> None:
        """`limit` is how many seconds a command of `run` may take."""
        self.host = host
        self.argv_without_host = tuple(argv)
        """The local command that uses the connection, for programs that add the host themselves."""
        self._argv = [*argv, host]
        self._takes_one_session = False
        self._master = master
        self._limit = limit

    def argv(self, script: str, *arguments: str) -> list[str]:
        """The local command that runs a shell script there, with arguments as $1, $2 …"""
        return [*self._argv, remote_command(script, *arguments)]

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
            except TooMuchOutput as error:
                raise HostFailed(self.host, str(error)) from error
            self._note_refusal(process)
            failure = process.failure()
            if failure:
                raise HostFailed(self.host, self.explain(failure))
            return process.output()

    def _note_refusal(self, process: Process) -> None:
        """Say once, of each connection, that it cannot be shared, which costs log-ins."""
        if not self._takes_one_session and _NO_SECOND_SESSION in process.messages():
            self._takes_one_session = True
            logging.getLogger(__name__).info(
                "%s takes one session a connection (MaxSessions in sshd_config), so each command "
                "logs in anew",
                self.host,
            )

    def passed_on(self) -> int:
        """How many bytes have gone to the other host over this connection. The ssh of a command
        hands its files over to the master and moves nothing itself; where the other host takes no
        second session (MaxSessions in sshd_config(5)), it has a connection of its own, and moves
        them itself."""
        return self._master.written()

    def explain(self, failure: CommandFailed, *, may_be_lost: bool = False) -> str:
        """What a command there said of its failure; if the connection broke, the ssh that holds it
        open knows why. Programs that use ssh `may_be_lost` with a status of their own."""
        if failure.status == CONNECTION_FAILED or may_be_lost:
            with suppress(Stalled):
                self._master.wait(Flow(), _LAST_WORDS)
                failure = self._master.failure() or failure
        return explain(failure)


def remote_program(script: str) -> str:
    """The beginning of a command line that is to run a script; the caller adds arguments."""
    word = base64.b64encode(f"export LC_ALL=C; {script}".encode()).decode()
    return f"sh -c 'eval \"$(echo {word} | base64 -d)\"' sh"


def remote_command(script: str, *arguments: str) -> str:
    """The command line, for whatever shell root has there, that runs a script in `sh`.

    It is one line of letters, digits and what sh, bash, dash, zsh, fish, csh and tcsh take alike:
    within quotes csh takes no end of line and no `!`, and fish no backslash.
    """
    text = f"export LC_ALL=C; set -- {shlex.join(arguments)}; {script}"
    word = base64.b64encode(text.encode()).decode()
    return f"sh -c 'eval \"$(echo {word} | base64 -d)\"'"


@contextmanager
def connect(
    host: str, port: int, flow: Flow, limit: float, login_limit: float = LOGIN_LIMIT
) -> Iterator[Connection]:
    """Open a connection that ends with the block, or with this process.

    The limits are in seconds, see `Connection`. Raises HostFailed if it cannot be had, Cancelled,
    OperationFailed if there is no room for its socket.
    """
    with ExitStack() as stack:
        try:
            made = tempfile.TemporaryDirectory(prefix="buttervolume-", dir=_short_directory())
        except OSError as error:
            raise OperationFailed("make a directory for the socket of ssh", error) from error
        control = Path(stack.enter_context(made), "ssh")
        ssh = command_for(port)
        hold_open = [*ssh, "-M", "-S", str(control), host, remote_command(_HOLD_OPEN)]
        with Process(hold_open, stdin=PIPE, stdout=PIPE) as master:
            _wait_until_ready(master, host, flow, login_limit)
            shared = [*ssh, "-oControlMaster=no", "-S", str(control)]
            yield Connection(host, shared, master, limit)


def _short_directory() -> str:
    """Where a socket can be: its path must be short, and ssh takes some characters for more."""
    usual = tempfile.gettempdir()
    if len(usual) <= _LONGEST_DIRECTORY and re.fullmatch(r"[\w/.-]+", usual, re.ASCII):
        return usual
    return "/run" if os.access("/run", os.W_OK) else "/tmp"  # noqa: S108 - in a new directory


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
        if len(printed) > _LONGEST_GREETING:
            raise HostFailed(host, "the log-in prints without end")
        if poll.poll(200):
            more = os.read(master.popen.stdout.fileno(), _LONGEST_GREETING)
            printed += more
            if not more:
                with suppress(Stalled):
                    master.wait(flow, limit)
                raise HostFailed(host, _why_no_login(master, printed))


def _why_no_login(master: Process, printed: bytes) -> str:
    """What was said when a log-in came to nothing; nologin(8) says it on standard output."""
    failure = master.failure()
    if failure and failure.status != CONNECTION_FAILED and not _telling(failure.stderr):
        failure = CommandFailed(failure.argv, failure.status, printed.decode(errors="replace"))
    if failure:
        return explain(failure)
    return shortened(printed.decode(errors="replace").strip()) or "the log-in printed nothing"


def _telling(stderr: str) -> list[str]:
    """The lines of messages that may say why something failed."""
    stripped = (line.strip() for line in lines(stderr))
    return [line for line in stripped if line and not _CHATTER.match(line)]


def explain(failure: CommandFailed) -> str:
    """What ssh, or the command there, said of its failure, in not too many words."""
    said = list(dict.fromkeys(_telling(failure.stderr)))
    said = [line for line in said if not _WEAK.match(line)] or said
    if failure.status == CONNECTION_FAILED:
        own = [line for line in said if _OWN_WORDS.match(line)]
        return shortened("; ".join(own or said)) or "the ssh connection failed"
    return f"{shortened('; '.join(said)) or 'no message'} (exit status {failure.status})"
