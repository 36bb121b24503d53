"""What people and scripts read: results on stdout, messages on stderr, one a line.

Names and messages may come from containers and other hosts: nothing of them commands a terminal.
"""

import io
import os
import sys
from contextlib import suppress

from buttervolume.words import LONGEST, printable, shortened

_COLUMNS = 80
"""The width of a terminal that does not tell its own."""


def settle_streams() -> None:
    """See that there is something to read from and to print to, whatever started the process, and
    that it takes any name."""
    for descriptor in (0, 1, 2):  # else a socket or a file would get the number, and the messages
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - for the life of the process
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def say(message: str) -> None:
    """Print a message for people."""
    print(shortened(f"buttervolume: {message}", LONGEST), file=sys.stderr)


class Painted(str):
    """A line that may have colours, and in which names are escaped already."""

    __slots__ = ()


def show(line: str) -> None:
    """Print a line of a result: no terminal takes it for more than text."""
    print(line if isinstance(line, Painted) else printable(line))


def columns() -> int:
    """How wide the terminal is: `shutil.get_terminal_size` without all that this imports."""
    with suppress(ValueError):
        if (said := int(os.environ.get("COLUMNS", ""))) > 0:
            return said
    with suppress(ValueError, OSError):  # the standard output is closed, or no terminal
        return os.get_terminal_size().columns or _COLUMNS
    return _COLUMNS
