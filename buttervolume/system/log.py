"""The log on stdout and stderr: lines that nobody can forge, from a daemon that nobody can stop by
not reading them.

A pipe whose reader has stopped blocks each process that writes into it, and making it non-blocking
would do so for all of them. So a thread writes, and what finds no room in its queue is counted.
"""

import logging
import os
import select
import socket
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial

from buttervolume.words import LONGEST, shortened

CAPACITY = 1 << 20
"""Bytes of lines that wait for a reader."""
_AT_ONCE = 4096
"""Bytes that a pipe takes as a whole or not at all: PIPE_BUF (pipe(7))."""
_PATIENCE = 0.1
"""Seconds to wait for a line to be written, so that it is there before the answer that it is about.
A reader that took longer is not waited for until it has read all."""
_LAST_PATIENCE = 0.5
"""Seconds to wait at the end for what is left."""
_LONGEST_TRACEBACK = 100
"""Lines."""
_ROOM_FOR_DATE = 64
_PRIORITIES = (
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
)
"""Levels of logging, and those of syslog that the journal takes (sd-daemon(3))."""


class Writer:
    """Writes lines into a file, from a thread of its own; into a pipe or a socket that has room for
    them, at once."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._write_at_once = _without_waiting(descriptor)
        # protects all below; notified when a line has come or gone
        self._changed = threading.Condition()
        self._lines: deque[tuple[bytes, int]] = deque()
        """Each with how many lines are lost if it is."""
        self._size = 0
        self._come = self._gone = 0
        self._lost = 0
        self._unwritten = 0
        """How many of those that had room in the queue could not be written."""
        self._is_slow = False
        threading.Thread(target=self._work, name="log", daemon=True).start()

    def put(self, line: bytes) -> None:
        """Let a line be written, and return when it is, or will not be for a while."""
        with self._changed:
            if self._size + len(line) > CAPACITY:
                self._lost += 1
                return
            self._tell_losses()
            is_next = not self._lines and not self._unwritten and len(line) <= _AT_ONCE
            if self._write_at_once is not None and is_next:
                with suppress(OSError):  # it has no room
                    line = line[self._write_at_once(line) :]
                if not line:
                    return
            self._append(line)
            wanted = self._come
            if not self._is_slow:
                self._is_slow = not self._changed.wait_for(lambda: self._gone >= wanted, _PATIENCE)

    def finish(self, deadline: float) -> None:
        """Wait for what is left to be written, until a moment of the monotonic clock."""
        with self._changed:
            self._changed.wait_for(lambda: not self._lines, deadline - time.monotonic())

    def _append(self, line: bytes, worth: int = 1) -> None:
        self._lines.append((line, worth))
        self._size += len(line)
        self._come += 1
        self._changed.notify_all()

    def _tell_losses(self) -> None:
        if self._lost:
            self._append(_note(self._lost), self._lost)
            self._lost = 0

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._lines:
                    self._tell_losses()
                self._changed.wait_for(lambda: self._lines)
                line, worth = self._lines[0]
            if self._unwritten and _write(self._descriptor, _note(self._unwritten)):
                self._unwritten = 0
            if self._unwritten or not _write(self._descriptor, line):
                self._unwritten += worth
            with self._changed:
                self._lines.popleft()
                self._size -= len(line)
                self._gone += 1
                self._is_slow = self._is_slow and bool(self._lines)
                self._changed.notify_all()


def _without_waiting(descriptor: int) -> Callable[[bytes], int] | None:
    """What writes to a file, returns how much of it, and waits for nobody; None if nothing does
    that. (poll(2) tells of a terminal that is nearly full, and of a file on any disk, that it has
    room, and the write waits all the same.)"""
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISFIFO(mode):  # opened once more: for others who have the pipe, writing waits
            own = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK)
            return partial(os.write, own)
        if stat.S_ISSOCK(mode):
            sender = socket.socket(fileno=os.dup(descriptor))
            return lambda line: sender.send(line, socket.MSG_DONTWAIT)
    except OSError:  # it is closed, or nobody reads it
        pass
    return None


def _note(lost: int) -> bytes:
    return b"%d lines of the log are lost here: they could not be written\n" % lost


def _write(descriptor: int, line: bytes) -> bool:
    """Write a line, however long that takes; say whether that was possible."""
    while line:
        try:
            line = line[os.write(descriptor, line) :]
        except BlockingIOError:  # somebody who has the file, too, made it so
            with suppress(OSError):
                select.select([], [descriptor], [])
        except OSError:
            return False
    return True


class _Handler(logging.Handler):
    """Gives the lines of records to a writer."""

    def __init__(self, writer: Writer, formatter: logging.Formatter) -> None:
        super().__init__()
        self._writer = writer
        self.setFormatter(formatter)

    def handle(self, record: logging.LogRecord) -> bool:
        """Write a record, without the lock of others: only this thread waits for the writer."""
        is_wanted = bool(self.filter(record))
        if is_wanted:
            self.emit(record)
        return is_wanted

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        try:
            text = self.format(record)
        except Exception as error:  # noqa: BLE001 - a line must not end what it tells of
            text = f"a line of the log, {record.msg!r:.200}, could not be made: {error!r:.200}"
        self._writer.put(f"{text}\n".encode())


class _Formatter(logging.Formatter):
    """One line for a message; those of a traceback below it begin with blanks."""

    def __init__(self, begin: Callable[[logging.LogRecord], str], again: str = "") -> None:
        """`begin` makes what stands before a message; `again` what makes a traceback's lines
        belong to it."""
        super().__init__()
        self._begin = begin
        self._again = again

    def format(self, record: logging.LogRecord) -> str:
        """The text of a record, printable and not too long, without the last line end."""
        text = self._begin(record) + shortened(record.getMessage(), LONGEST - _ROOM_FOR_DATE)
        if record.exc_info:
            below = self.formatException(record.exc_info).split("\n")
            half = _LONGEST_TRACEBACK // 2
            if len(below) > _LONGEST_TRACEBACK:
                below[half:-half] = [f"… and {len(below) - 2 * half:,} more …"]
            room = LONGEST - _ROOM_FOR_DATE
            text = "\n".join([text, *(f"{self._again}    {shortened(b, room)}" for b in below)])
        return text


def _priority(record: logging.LogRecord) -> str:
    number = next((number for level, number in _PRIORITIES if record.levelno >= level), 7)
    return f"<{number}>"


def _is_journal(descriptor: int, environ: Mapping[str, str]) -> bool:
    """Whether a file is the journal's socket (systemd.exec(5), JOURNAL_STREAM)."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _formatter(descriptor: int, environ: Mapping[str, str]) -> logging.Formatter:
    if _is_journal(descriptor, environ):  # which knows the time itself
        return _Formatter(_priority, "<3>")
    date = logging.Formatter()
    return _Formatter(lambda record: f"{date.formatTime(record)} {record.levelname} ")


@contextmanager
def to_standard_streams(level: int, environ: Mapping[str, str]) -> Iterator[None]:
    """Log INFO and below to stdout, the rest to stderr: Docker marks them info and error."""
    out, err = 1, 2
    writers = {out: Writer(out)}
    # one writer if both are one file, else lines would change their order
    writers[err] = writers[out] if _are_one(out, err) else Writer(err)
    handlers = [_Handler(writers[file], _formatter(file, environ)) for file in (out, err)]
    handlers[0].addFilter(lambda record: record.levelno < logging.WARNING)
    handlers[1].setLevel(logging.WARNING)
    logging.basicConfig(level=level, handlers=handlers, force=True)
    logging.getLogger("waitress").setLevel(max(level, logging.WARNING))
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # it tells of each short wait
    threading.excepthook = _log_fault
    try:
        yield
    finally:
        deadline = time.monotonic() + _LAST_PATIENCE
        for writer in writers.values():
            writer.finish(deadline)


def _are_one(one: int, other: int) -> bool:
    try:
        return os.path.sameopenfile(one, other)
    except OSError:  # one of them is closed
        return False


def _log_fault(fault: threading.ExceptHookArgs) -> None:
    """Log what ended a thread."""
    if fault.exc_value is not None:
        name = fault.thread.name if fault.thread else "?"
        logging.getLogger(__name__).error(
            "thread %s ended by a fault",
            name,
            exc_info=(fault.exc_type, fault.exc_value, fault.exc_traceback),
        )
