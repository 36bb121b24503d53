"""The only door to other programs: a short command, a pipeline, a long command that reports."""

import fcntl
import os
import select
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from buttervolume.errors import Cancelled, CommandFailed, PipelineFailed, Stalled

PIPE = subprocess.PIPE
_TICK = 0.2
"""Seconds between two looks at whether a long command is to be ended."""
_GRACE = 1.0
"""Seconds between SIGTERM and SIGKILL."""
_IN_THE_BACKGROUND = ("nice", "-n", "5", "setpriv", "--pdeathsig", "SIGTERM", "--")
"""Lets what needs the processor now, such as an answer to Docker, go before a long command, and has
that end when this process dies, by SIGKILL too. The kernel looks at the thread that started it
(PR_SET_PDEATHSIG in prctl(2)), and that one waits for it."""
_NOTABLE = 1 << 16
"""Bytes: more than the keepalives of an ssh on which nothing else moves, in minutes."""
_PIPE_SIZE = 1 << 20
"""Bytes: the most that a pipe can hold, unless the administrator has allowed more (pipe(7))."""


def environment() -> dict[str, str]:
    """The environment of every command: ours, with messages in English."""
    return {**os.environ, "LC_ALL": "C.UTF-8"}


def run(argv: Sequence[str]) -> str:
    """Run one short command to its end and return what it printed; raise CommandFailed.

    It is started and waited for as plainly as can be: what `subprocess` adds, and reading pipes
    meanwhile, would be a tenth of the time that creating a volume takes.

    The command inherits what the daemon made inheritable on purpose, and that is its locks alone
    (see `daemon.lock`): a daemon started anew waits until a command that a killed one left behind
    has ended.
    """
    try:
        with _memory_file() as stdout, _memory_file() as stderr:
            pid = os.posix_spawnp(
                argv[0],
                list(argv),
                environment(),
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, stdout.fileno(), 1),
                    (os.POSIX_SPAWN_DUP2, stderr.fileno(), 2),
                ],
                setsigdef=[signal.SIGPIPE],  # which Python ignores, and programs don't expect to
            )
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            if status != 0:
                raise CommandFailed(argv, status, _read(stderr))
            return _read(stdout)
    except OSError as error:
        hint = " (it may not be installed)" if isinstance(error, FileNotFoundError) else ""
        raise CommandFailed(argv, 127, f"{argv[0]}: {error.strerror}{hint}") from error


def _memory_file() -> IO[bytes]:
    """A file for what a short command prints."""
    return open(os.memfd_create("output"), "w+b", buffering=0)


class Flow:
    """What a long command has moved so far, and the means to end it from another thread."""

    def __init__(self) -> None:
        self.moved = 0
        """Bytes."""
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Let the command be ended as soon as it is looked at again."""
        self._cancelled.set()

    def check(self) -> None:
        """Raise Cancelled if so asked."""
        if self._cancelled.is_set():
            raise Cancelled


class Process:
    """A long command; at the end of the `with` block it has ended, by force if need be.

    Its messages go to a file, since nobody reads a pipe while the command works. It has a session
    of its own: no terminal that it or what it starts could ask for a password, no Ctrl-C meant for
    the daemon, and one signal ends it with all that it has started.
    """

    def __init__(
        self,
        argv: Sequence[str],
        stdin: int = subprocess.DEVNULL,
        stdout: int | None = None,
    ) -> None:
        """`stdin` and `stdout` are as in `subprocess.Popen`; without `stdout`, the output is kept
        for `output`."""
        self.argv = argv
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        self._stdout = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self.popen = subprocess.Popen(
                [*_IN_THE_BACKGROUND, *argv],
                stdin=stdin,
                stdout=self._stdout if stdout is None else stdout,
                stderr=self._stderr,
                env=environment(),
                start_new_session=True,
            )
        except OSError as error:
            self._stderr.close()
            self._stdout.close()
            raise CommandFailed(argv, 127, f"{error.filename}: {error.strerror}") from error

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self.popen.stdin, self.popen.stdout, self._stderr, self._stdout):
            if stream is not None:
                stream.close()
        if self.popen.poll() is None:
            os.killpg(self.popen.pid, signal.SIGTERM)
            try:
                self.popen.wait(_GRACE)
            except subprocess.TimeoutExpired:
                os.killpg(self.popen.pid, signal.SIGKILL)
                self.popen.wait()

    def output(self) -> str:
        """What it has printed so far."""
        return _read(self._stdout)

    def written(self) -> int:
        """How many bytes it has written to wherever, as far as the kernel tells (proc(5))."""
        try:
            counters = Path(f"/proc/{self.popen.pid}/io").read_text()
        except OSError:
            return 0
        return int(counters.partition("wchar: ")[2].split()[0])

    def wait(self, flow: Flow, limit: float, moved: Callable[[], int] = lambda: 0) -> None:
        """Wait for the end, and let the flow know meanwhile what has `moved`, in bytes. Raises
        Cancelled, or Stalled after `limit` seconds in which nothing worth mentioning did."""
        last_move, until_then = time.monotonic(), moved()
        with _pidfd(self) as descriptor:
            while not _poll(descriptor, select.POLLIN):
                flow.check()
                by_now = moved()
                flow.moved = max(flow.moved, by_now)
                if by_now >= until_then + _NOTABLE:
                    last_move, until_then = time.monotonic(), by_now
                if time.monotonic() - last_move > limit:
                    raise Stalled(limit)
            flow.moved = max(flow.moved, moved())
        self.popen.wait()

    def failure(self) -> CommandFailed | None:
        """How it failed, once it has ended."""
        status = self.popen.returncode
        return CommandFailed(self.argv, status, _read(self._stderr)) if status else None


def _read(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


@contextmanager
def _pidfd(process: Process) -> Iterator[int]:
    """A file that becomes readable when a process ends."""
    descriptor = os.pidfd_open(process.popen.pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _enlarge(pipe: int) -> None:
    """Let a pipe hold as much as pipes may."""
    with suppress(PermissionError):  # the user's share of pipe memory is used up (pipe(7))
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)


def _poll(descriptor: int, events: int) -> int:
    """Wait a tick for something to happen to a file; return what did, or 0."""
    poll = select.poll()
    poll.register(descriptor, events)
    happened = poll.poll(_TICK * 1000)
    return happened[0][1] if happened else 0


def pipe(
    source: Sequence[str],
    sink: Sequence[str],
    flow: Flow,
    *,
    stall: float,
    moved: Callable[[], int],
) -> str:
    """Run `source | sink` to the end of both and return what the sink printed.

    One pipe joins them, as in a shell, so that nothing of the way is ours. `moved` tells how many
    bytes have come out of it at the other end. Raises PipelineFailed if either end fails, Stalled
    if none worth mentioning does for `stall` seconds, Cancelled.
    """
    out_of_pipe, into_pipe = os.pipe()
    with ExitStack() as stack:
        try:
            _enlarge(into_pipe)
            receiver = stack.enter_context(Process(sink, stdin=out_of_pipe))
            sender = stack.enter_context(Process(source, stdout=into_pipe))
        finally:  # else neither would learn of the other's end
            os.close(out_of_pipe)
            os.close(into_pipe)
        sender.wait(flow, stall, moved)
        receiver.wait(flow, stall, moved)
        failures = [end.failure() for end in (sender, receiver)]
        if any(failures):
            raise PipelineFailed([failure for failure in failures if failure])
        return receiver.output()


def watch(argv: Sequence[str], flow: Flow, on_output: Callable[[bytes], None]) -> None:
    """Run a long command that reports on its output; raise CommandFailed, Cancelled.

    It is looked at a few times a second only: rsync reports each of its files. That it comes to an
    end when nothing moves is left to the command.
    """
    with Process(argv, stdout=PIPE) as process:
        assert process.popen.stdout is not None
        report = process.popen.stdout.fileno()
        _enlarge(report)
        os.set_blocking(report, False)
        with _pidfd(process) as descriptor:
            has_ended = False
            while not has_ended:
                flow.check()
                has_ended = bool(_poll(descriptor, select.POLLIN))
                with suppress(BlockingIOError):
                    while output := os.read(report, _PIPE_SIZE):
                        on_output(output)
        process.popen.wait()
        failure = process.failure()
        if failure:
            raise failure
