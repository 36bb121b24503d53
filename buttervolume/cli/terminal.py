"""What people and scripts read: results on stdout, messages on stderr, one a line.

Names and messages may come from containers and other hosts: nothing of them commands a terminal.
"""

import sys

from buttervolume.words import LONGEST, printable, shortened


def say(message: str) -> None:
    """Print a message for people."""
    print(shortened(f"buttervolume: {message}", LONGEST), file=sys.stderr)


class Painted(str):
    """A line that may have colours, and in which all that others named is escaped already."""

    __slots__ = ()


def show(line: str) -> None:
    """Print a line of a result: no terminal takes it for more than text."""
    print(line if isinstance(line, Painted) else printable(line))
