"""What comes out: a table, the same as CSV, and a plot where matplotlib is there."""

import csv
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HEADINGS = ("what", "ours", "bare", "ours/bare", "original", "original/ours")
COMPARED = ("what", "before", "now", "now/before", "before/bare", "now/bare")
UNITS = {"s": 1.0, "ms": 1000.0, "MB": 1e-6, "×": 1.0}
"""By what to multiply seconds, bytes and ratios."""


@dataclass(frozen=True)
class Goal:
    """A ceiling: of our own value, or of its ratio to one of the others."""

    limit: float
    of: str = "ours"
    """`ours` (in seconds, bytes or ratios, as the row's values are), `bare` or `original`."""
    extra: float = 0.0
    """What comes on top of so many times one of the others, in what the row's values are in."""


@dataclass(frozen=True)
class Row:
    """One line of the table: values in seconds, bytes (unit MB) or ratios (unit ×)."""

    what: str
    values: Mapping[str, float]
    """Of `ours`, `bare` and `original`, those that there are."""
    unit: str = "ms"
    goal: Goal | None = None

    def ratio(self, one: str, other: str) -> float | None:
        """How many times the other the one is, if both are there."""
        if one not in self.values or not self.values.get(other):
            return None
        return self.values[one] / self.values[other]

    def misses_goal(self) -> bool:
        """Whether ours is above its ceiling."""
        if self.goal is None or "ours" not in self.values:
            return False
        if self.goal.of == "ours":
            return self.values["ours"] > self.goal.limit
        other = self.values.get(self.goal.of)
        limit = None if other is None else self.goal.limit * other + self.goal.extra
        return limit is not None and self.values["ours"] > limit

    def cells(self) -> tuple[str, ...]:
        """The line as texts, in the order of HEADINGS."""
        return (
            self.what,
            self._value("ours"),
            self._value("bare"),
            _ratio(self.ratio("ours", "bare")),
            self._value("original"),
            _ratio(self.ratio("original", "ours")),
        )

    def goal_in_words(self) -> str:
        """The ceiling as a text; empty if there is none."""
        if self.goal is None:
            return ""
        if self.goal.of == "ours":
            return _number(self.goal.limit * UNITS[self.unit], self.unit)
        extra = _number(self.goal.extra * UNITS[self.unit], self.unit)
        return f"{self.goal.limit:g} × {self.goal.of}" + (f" + {extra}" if self.goal.extra else "")

    def _value(self, column: str) -> str:
        value = self.values.get(column)
        return "" if value is None else _number(value * UNITS[self.unit], self.unit)


def _number(value: float, unit: str) -> str:
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:.{digits}f} {unit}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}" if value < 10 else f"{value:.0f}"


def table(rows: Sequence[Row]) -> str:
    """The table, and below it what is above its goal."""
    missed = [
        f"above its goal: {row.what}, which is {row.goal_in_words()}"
        for row in rows
        if row.misses_goal()
    ]
    return "\n".join([_aligned([HEADINGS, *(row.cells() for row in rows)]), "", *missed])


def comparison(before: Sequence[Row], now: Sequence[Row]) -> str:
    """A table of two runs side by side, of what both have measured; the ratios to the bare command
    say what has changed in us rather than in the machine."""
    known = {row.what: row for row in before}
    lines = [COMPARED]
    for row in now:
        if (old := known.get(row.what)) is not None and {"ours"} <= row.values.keys():
            share = row.values["ours"] / old.values["ours"] if old.values.get("ours") else None
            lines.append(
                (
                    row.what,
                    old.cells()[1],
                    row.cells()[1],
                    _ratio(share),
                    old.cells()[3],
                    row.cells()[3],
                )
            )
    return _aligned(lines)


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells as a table, the first as its heading."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = [_line(cells, widths) for cells in lines]
    texts.insert(1, "-|-".join("-" * width for width in widths))
    return "\n".join(texts)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    what, *numbers = (
        cell.ljust(width) if number == 0 else cell.rjust(width)
        for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return " | ".join([what, *numbers])


def write_csv(rows: Sequence[Row], file: Path) -> None:
    """Write the numbers, unrounded, each in its row's unit."""
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow([*HEADINGS, "unit", "goal"])
        for row in rows:
            scale = UNITS[row.unit]
            ours, bare, original = (
                row.values[column] * scale if column in row.values else ""
                for column in ("ours", "bare", "original")
            )
            writer.writerow(
                [
                    row.what,
                    ours,
                    bare,
                    row.ratio("ours", "bare") or "",
                    original,
                    row.ratio("original", "ours") or "",
                    row.unit,
                    row.goal_in_words(),
                ]
            )


def read_csv(file: Path) -> list[Row]:
    """The rows that `write_csv` has written, without their goals. Raises OSError, ValueError."""
    with file.open(newline="", encoding="utf-8") as stream:
        lines = list(csv.DictReader(stream))
    try:
        return [
            Row(
                line["what"],
                {
                    column: float(line[column]) / UNITS[line["unit"]]
                    for column in ("ours", "bare", "original")
                    if line[column]
                },
                line["unit"],
            )
            for line in lines
        ]
    except KeyError as error:
        raise ValueError(f"{file} has no column or unit {error}") from error


def write_plot(rows: Sequence[Row], title: str, file: Path) -> bool:
    """Draw bare and original relative to ours, if matplotlib is there; return whether it is."""
    try:
        matplotlib: Any = importlib.import_module("matplotlib")
    except ImportError:
        return False
    matplotlib.use("Agg")
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    drawn = [row for row in rows if len(row.values) > 1][::-1]
    figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.26 * len(drawn)))
    for column, colour, label in (
        ("bare", "tab:gray", "bare command"),
        ("original", "tab:red", "buttervolume 3.13"),
    ):
        points = [(row.ratio(column, "ours"), height) for height, row in enumerate(drawn)]
        known = [(ratio, height) for ratio, height in points if ratio is not None]
        axes.plot(*zip(*known, strict=True), "o", color=colour, label=label) if known else None
    axes.axvline(1, color="tab:blue", label="this version")
    axes.set_xscale("log")
    axes.set_yticks(range(len(drawn)), [f"{row.what} ({row.cells()[1]})" for row in drawn])
    axes.set_xlabel("times as much as this version (right is worse than this version)")
    axes.margins(y=0.02)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.suptitle(title, fontsize="small")
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
    return True
