"""The only door to other programs: a short command, a pipeline, a long command that reports.

What a program prints may be decided by a container or by another host. It is capped while it is
printed: of messages the beginning and the end are kept, and too long an output is a failure.
"""

import fcntl
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from buttervolume.errors import (
    Cancelled,
    CommandFailed,
    PipelineFailed,
    Stalled,
    TooMuchOutput,
)

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
LONGEST_OUTPUT = 16 << 20
"""Bytes: more on its standard output is a failure of a program."""
_KEPT_OF_MESSAGES = 4 << 10
"""Bytes that are kept of the beginning, and of the end, of what a program says to stderr."""
_LONGEST_MESSAGES = 1 << 20
"""Bytes that a short command may say to stderr; what it says beyond is lost."""
_LAST_WORDS = 2.0
"""Seconds to wait for what an ended program has printed, while something that it has left behind
could still print more."""
_LONGEST_COMMIT = 3600.0
"""Seconds in which the sink of a pipeline may bring to the disk what it has."""
_PIPE_SIZE = 1 << 20
"""Bytes: the most that a pipe can hold, unless the administrator has allowed more (pipe(7))."""
_ADD_SEALS, _SEAL_SHRINK, _SEAL_GROW = 1033, 2, 4  # linux/fcntl.h


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
        with _memory_file(LONGEST_OUTPUT) as stdout, _memory_file(_LONGEST_MESSAGES) as stderr:
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
            printed, said = _written(stdout), _written(stderr)
            if printed == LONGEST_OUTPUT:
                raise CommandFailed(argv, status, str(TooMuchOutput(LONGEST_OUTPUT)))
            if status != 0:
                messages = _Messages()
                messages.add(os.pread(stderr.fileno(), said, 0))
                raise CommandFailed(argv, status, messages.text())
            return os.pread(stdout.fileno(), printed, 0).decode(errors="replace")
    except OSError as error:
        hint = " (it may not be installed)" if isinstance(error, FileNotFoundError) else ""
        raise CommandFailed(argv, 127, f"{argv[0]}: {error.strerror}{hint}") from error


@contextmanager
def _memory_file(size: int) -> Iterator[IO[bytes]]:
    """A file for what a short command prints, which can grow no longer than this (F_SEAL_GROW in
    fcntl(2)). What is not written takes no memory."""
    with open(os.memfd_create("output", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC), "w+b", 0) as file:
        os.ftruncate(file.fileno(), size)
        fcntl.fcntl(file, _ADD_SEALS, _SEAL_SHRINK | _SEAL_GROW)
        yield file


def _written(file: IO[bytes]) -> int:
    """How much has been written to a memory file: its offset is the one of the command, too."""
    return os.lseek(file.fileno(), 0, os.SEEK_CUR)


class _Messages:
    """The beginning and the end of what a program says to stderr."""

    def __init__(self) -> None:
        self._head = b""
        self._tail = b""
        self._length = 0

    def add(self, said: bytes) -> None:
        """Take note of more."""
        self._length += len(said)
        missing = _KEPT_OF_MESSAGES - len(self._head)
        self._head += said[:missing]
        self._tail = (self._tail + said[missing:])[-_KEPT_OF_MESSAGES:]

    def text(self) -> str:
        """What is known of it, with a note of how much is not."""
        lost = self._length - len(self._head) - len(self._tail)
        note = f"\n… and {lost:,} more bytes …\n".encode() if lost else b""
        return (self._head + note + self._tail).decode(errors="replace")


class _Reader(threading.Thread):
    """Reads what a long command prints, so that it is never held up, and keeps what may be kept.

    It ends when all that could print has ended, or when it is closed.
    """

    def __init__(self, stdout: IO[bytes] | None, stderr: IO[bytes]) -> None:
        super().__init__(daemon=True)
        self.printed = bytearray()
        self.messages = _Messages()
        self.overflowed = False
        self._stdout = stdout
        self._stderr = stderr
        self._closing = os.eventfd(0)

    def run(self) -> None:
        """Read until the end."""
        poll = select.poll()
        poll.register(self._closing, select.POLLIN)
        streams = [stream for stream in (self._stdout, self._stderr) if stream]
        for stream in streams:
            poll.register(stream, select.POLLIN)
        while streams:
            ready = [descriptor for descriptor, _ in poll.poll()]
            if self._closing in ready:
                break
            for stream in [s for s in streams if s.fileno() in ready]:
                data = os.read(stream.fileno(), 1 << 16)
                if stream is self._stderr:
                    self.messages.add(data)
                else:
                    self.printed += data
                    self.overflowed = len(self.printed) > LONGEST_OUTPUT
                if not data or (self.overflowed and stream is self._stdout):
                    poll.unregister(stream)
                    streams.remove(stream)
                    stream.close()

    def close(self) -> None:
        """Read no more."""
        os.eventfd_write(self._closing, 1)
        self.join()
        os.close(self._closing)
        for stream in (self._stdout, self._stderr):
            if stream:
                stream.close()


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

    What it says is read all the time. It has a session of its own: no terminal that it or what it
    starts could ask for a password, no Ctrl-C meant for the daemon, and one signal ends it with all
    that it has started.
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
        try:
            self.popen = subprocess.Popen(
                [*_IN_THE_BACKGROUND, *argv],
                stdin=stdin,
                stdout=PIPE if stdout is None else stdout,
                stderr=PIPE,
                env=environment(),
                start_new_session=True,
            )
        except OSError as error:
            raise CommandFailed(argv, 127, f"{error.filename}: {error.strerror}") from error
        assert self.popen.stderr is not None
        self._reader = _Reader(self.popen.stdout if stdout is None else None, self.popen.stderr)
        self._reader.start()

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        if self.popen.stdin is not None:
            with suppress(BrokenPipeError):  # what was not taken is of no use now
                self.popen.stdin.close()
        self._reader.close()
        if self.popen.stdout is not None:
            self.popen.stdout.close()
        if self.popen.poll() is None:
            os.killpg(self.popen.pid, signal.SIGTERM)
            try:
                self.popen.wait(_GRACE)
            except subprocess.TimeoutExpired:
                os.killpg(self.popen.pid, signal.SIGKILL)
                self.popen.wait()

    def output(self) -> str:
        """What it has printed, once it has ended."""
        self._reader.join(_LAST_WORDS)
        return self._reader.printed.decode(errors="replace")

    def messages(self) -> str:
        """What it has said to stderr, once it has ended."""
        self._reader.join(_LAST_WORDS)
        return self._reader.messages.text()

    def written(self) -> int:
        """How many bytes it has written to wherever, as far as the kernel tells (proc(5))."""
        try:
            counters = Path(f"/proc/{self.popen.pid}/io").read_text()
        except OSError:
            return 0
        return int(counters.partition("wchar: ")[2].split()[0])

    def has_printed(self, line: bytes | None) -> bool:
        """Whether it has printed this, in a line of its own."""
        return line is not None and line in bytes(self._reader.printed).split(b"\n")[:-1]

    def wait(
        self,
        flow: Flow,
        limit: float,
        moved: Callable[[], int] = lambda: 0,
        may_rest: Callable[[], bool] = lambda: False,
    ) -> None:
        """Wait for the end, and let the flow know meanwhile what has `moved`, in bytes. Raises
        Cancelled, TooMuchOutput, or Stalled after `limit` seconds in which nothing worth mentioning
        did, unless it `may_rest`."""
        last_move, until_then = time.monotonic(), moved()
        with _pidfd(self) as descriptor:
            while not _poll(descriptor, select.POLLIN):
                flow.check()
                self._check_output()
                by_now = moved()
                flow.moved = max(flow.moved, by_now)
                if by_now >= until_then + _NOTABLE:
                    last_move, until_then = time.monotonic(), by_now
                if time.monotonic() - last_move > limit and not may_rest():
                    raise Stalled(limit)
            flow.moved = max(flow.moved, moved())
        self.popen.wait()
        self._reader.join(_LAST_WORDS)
        self._check_output()

    def _check_output(self) -> None:
        if self._reader.overflowed:
            raise TooMuchOutput(LONGEST_OUTPUT)

    def failure(self) -> CommandFailed | None:
        """How it failed, once it has ended."""
        status = self.popen.returncode
        if not status:
            return None
        return CommandFailed(self.argv, status, self.messages())


@contextmanager
def _pidfd(process: Process) -> Iterator[int]:
    """A file that becomes readable when a process ends."""
    descriptor = os.pidfd_open(process.popen.pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def enlarge(pipe: int) -> None:
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
    moved: Callable[["Process"], int],
    arrived: bytes | None = None,
) -> str:
    """Run `source | sink` to the end of both and return what the sink printed.

    One pipe joins them, as in a shell, and no byte goes through this process. `moved` gets the
    sink's process, and tells how many bytes have come out of the pipe. Once the sink has printed
    the line `arrived`, it has everything, and may take an hour more.

    Raises PipelineFailed if either end fails, Stalled if none worth mentioning does for `stall`
    seconds, TooMuchOutput, Cancelled.
    """
    out_of_pipe, into_pipe = os.pipe()
    with ExitStack() as stack:
        try:
            enlarge(into_pipe)
            receiver = stack.enter_context(Process(sink, stdin=out_of_pipe))
            sender = stack.enter_context(Process(source, stdout=into_pipe))
        finally:  # else neither would learn of the other's end
            os.close(out_of_pipe)
            os.close(into_pipe)
        sender.wait(flow, stall, lambda: moved(receiver))
        end = time.monotonic() + _LONGEST_COMMIT

        def may_rest() -> bool:
            return receiver.has_printed(arrived) and time.monotonic() < end

        receiver.wait(flow, stall, lambda: moved(receiver), may_rest)
        failures = [end.failure() for end in (sender, receiver)]
        if any(failures):
            raise PipelineFailed([failure for failure in failures if failure])
        return receiver.output()


def watch(
    argv: Sequence[str],
    flow: Flow,
    on_output: Callable[[bytes], None],
    stdin: int | None = None,
) -> None:
    """Run a long command that reports on its output; raise CommandFailed, Cancelled.

    It is looked at a few times a second only: rsync reports each of its files. That it comes to an
    end when nothing moves is left to the command.
    """
    nothing = subprocess.DEVNULL
    with Process(argv, stdin=nothing if stdin is None else stdin, stdout=PIPE) as process:
        assert process.popen.stdout is not None
        report = process.popen.stdout.fileno()
        enlarge(report)
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
