"""What people read: tables and colours. Exact numbers are in the JSON.

The libraries are loaded when something is printed.
"""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Any

from buttervolume.cli.terminal import Painted, columns
from buttervolume.words import printable

_GAP = 2
"""Cells between two columns, as `tabulate` puts them."""
_NARROWEST = 4
"""Cells that a column keeps however narrow the terminal is."""


class Colour(Enum):
    """What a colour says; the words say the same."""

    PLAIN = ""
    GOOD = "32"
    BAD = "1;31"
    DIM = "2"
    TITLE = "1"


@dataclass(frozen=True)
class Cell:
    """A text with a colour."""

    text: str
    colour: Colour = Colour.PLAIN


def table(headings: Sequence[str], rows: Iterable[Sequence[str | Cell]]) -> list[str]:
    """The lines of a table, none wider than the terminal: the widest columns are cut."""
    from tabulate import tabulate

    cells = [[_cell(value) for value in row] for row in rows]
    titles = [Cell(heading, Colour.TITLE) for heading in headings]
    everything = [titles, *cells]
    widths = [[_width(cell.text) for cell in row] for row in everything]
    limits = _limits(widths, _terminal_width())
    coloured = is_coloured()
    shown = [
        [_shown(cell, limit, coloured) for cell, limit in zip(row, limits, strict=True)]
        for row in everything
    ]
    text = tabulate(shown, tablefmt="plain", disable_numparse=True)
    return [Painted(shown_row.rstrip()) for shown_row in text.split("\n")]


def _cell(value: str | Cell) -> Cell:
    cell = value if isinstance(value, Cell) else Cell(value)
    # nothing lets tabulate see a number, or a blank that it would strip
    return Cell(printable(cell.text).strip() or "-", cell.colour)


def _shown(cell: Cell, limit: int, coloured: bool) -> str:
    text = cut(cell.text, limit)
    return paint(text, cell.colour) if coloured else text


def paint(text: str, colour: Colour) -> str:
    """A text in a colour (ECMA-48, SGR)."""
    return f"\x1b[{colour.value}m{text}\x1b[0m" if colour.value else text


def line(text: str, colour: Colour) -> str:
    """A line that is no table, such as a heading."""
    text = printable(text)
    return Painted(paint(text, colour) if is_coloured() else text)


def cut(text: str, width: int) -> str:
    """A text in at most so many cells of a terminal."""
    from wcwidth import wcwidth

    if _width(text) <= width:
        return text
    kept, used = [], 0
    for character in text:
        used += max(wcwidth(character), 0)
        if used > width - 1:
            break
        kept.append(character)
    return "".join(kept) + "…"


def _width(text: str) -> int:
    from wcwidth import wcswidth

    return len(text) if text.isascii() else max(wcswidth(text), 0)


def _limits(widths: Sequence[Sequence[int]], available: int | None) -> list[int]:
    """How wide each column may be: the widest give way until all fit."""
    limits = [max(column) for column in zip(*widths, strict=True)]
    if available is None:
        return limits
    room = available - _GAP * (len(limits) - 1)
    while sum(limits) > room and max(limits) > _NARROWEST:
        widest = max(limits)
        limits[len(limits) - 1 - limits[::-1].index(widest)] -= 1
    return limits


def _terminal_width() -> int | None:
    """None where the output is a file or a pipe, which gets everything."""
    return columns() if sys.stdout.isatty() else None


def is_coloured() -> bool:
    """Colours are for terminals, unless NO_COLOR (no-color.org) says otherwise."""
    return (
        sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    )


def age_of(snapshot: str) -> str:
    """What is put behind a snapshot's name, such as ` (3 hours old)`; empty if its date does not
    tell its age."""
    from buttervolume import human

    date = snapshot.partition("@")[2].partition("@")[0]
    try:
        age = datetime.now().astimezone().replace(tzinfo=None) - datetime.fromisoformat(date)
    except (ValueError, TypeError):  # in another format, or of another time zone
        return ""
    return f" ({human.duration(age)} old)" if age >= timedelta() else ""


def as_json(answer: dict[str, Any]) -> list[str]:
    """An answer of the daemon as it is, but for the `Err` that it does not have."""
    shown = {key: value for key, value in answer.items() if key != "Err"}
    return json.dumps(shown, indent=2, ensure_ascii=True).split("\n")
