"""What people and scripts read: results on stdout, messages on stderr, one a line.

Names and messages may come from containers and other hosts: nothing of them commands a terminal.
"""

import sys
from collections.abc import Iterable

from buttervolume.words import LONGEST, printable, shortened


def say(message: str) -> None:
    """Print a message for people."""
    print(shortened(f"buttervolume: {message}", LONGEST), file=sys.stderr)


def escaped(lines: Iterable[str]) -> list[str]:
    """Lines of a result that no terminal takes for more than text."""
    return [printable(line) for line in lines]
