"""Text that others control, made fit for the edges: an answer, the log, a terminal.

Names in volumes, what `btrfs`, `ssh` and a peer print, and requests themselves may hold line ends
that forge a line of the log, sequences that command a terminal, and megabytes. Everything below the
edges passes such text on as it is; each edge calls `shortened` once, for messages, or `printable`,
for names that are a result. Both leave alone what went through them before.
"""

from collections.abc import Iterable

LONGEST = 2048
"""Bytes in UTF-8 of the longest message."""
_NOTE = 64
"""Bytes for the words that tell how much was left out."""


def _escaped(character: str) -> str:
    return character if character.isprintable() else repr(character)[1:-1]


def printable(text: str) -> str:
    r"""Write what is not printable as `\n`, `\x1b`, `\u2028` …: control characters, line
    separators, bidirectional and other format controls, halves of surrogate pairs, unassigned."""
    if text.isprintable():
        return text
    return "".join(map(_escaped, text))


def shortened(text: str, longest: int = LONGEST) -> str:
    """Printable, and at most so many bytes: of a longer text the beginning and the end."""
    if len(text) <= longest:
        whole = printable(text)
        if len(whole.encode()) <= longest:
            return whole
    room = longest - _NOTE
    head = _fitting(text, room * 3 // 4)
    tail = _fitting(reversed(text), room // 4)
    left_out = len(text) - len(head) - len(tail)
    return f"{''.join(head)}… and {left_out:,} more …{''.join(reversed(tail))}"


def _fitting(characters: Iterable[str], room: int) -> list[str]:
    """The first characters, escaped, as many as have room, in bytes."""
    fitting = []
    for character in map(_escaped, characters):
        room -= len(character.encode())
        if room < 0:
            break
        fitting.append(character)
    return fitting


def enumerated(names: Iterable[str], longest: int = LONGEST // 2) -> str:
    """Names one after the other, as many as have room, in bytes; then how many more there are."""
    names = list(names)
    shown: list[str] = []
    for name in names:
        longest -= len(shortened(name).encode()) + 2
        if shown and longest < 0:
            return f"{', '.join(shown)} … and {len(names) - len(shown):,} more"
        shown.append(name)
    return ", ".join(shown)


def lines(text: str) -> list[str]:
    """The lines of what a program printed, without empty ones. Only a line feed ends a line:
    `str.splitlines` would also split names at form feeds and at U+2028."""
    found = (line.rstrip("\r") for line in text.split("\n"))
    return [line for line in found if line.strip(" \t")]
