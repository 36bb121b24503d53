"""The runs of a volume's jobs as bars: how long each took, and how much it moved. Pure."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from buttervolume import human
from buttervolume.jobs.history import Run
from buttervolume.words import printable, shortened

MOST = 60
"""Runs of a job that are shown: the last."""
HEIGHT = 56.0
_STEP = 12.0
_LOWEST = 3.0
_LONGEST_TEXT = 300
"""Bytes."""


@dataclass(frozen=True)
class Bar:
    """A run."""

    x: float
    y: float
    height: float
    failed: bool
    text: str


@dataclass(frozen=True)
class Chart:
    """The runs of one job, the newest at the right."""

    operation: str
    durations: tuple[Bar, ...]
    amounts: tuple[Bar, ...]
    """Empty where nothing is moved."""
    width: float
    summary: str


def draw(runs: Sequence[Run], now: datetime) -> list[Chart]:
    """A chart for each job that has run, by its words; `runs` come by time."""
    by_operation: dict[str, list[Run]] = {}
    for run in runs:
        if run.by == "schedule":
            by_operation.setdefault(run.operation, []).append(run)
    return [_chart(name, found[-MOST:], now) for name, found in sorted(by_operation.items())]


def _chart(operation: str, runs: Sequence[Run], now: datetime) -> Chart:
    texts = [_describe(run, now) for run in runs]
    failed = [bool(run.error) for run in runs]
    amounts: tuple[Bar, ...] = ()
    if any(run.bytes for run in runs):
        amounts = _bars([float(run.bytes or 0) for run in runs], failed, texts)
    failures = sum(failed)
    summary = f"{len(runs)} run{'' if len(runs) == 1 else 's'}, {failures or 'none'} failed"
    longest = max(run.seconds for run in runs)
    summary += f", the longest took {_seconds(longest)}"
    if amounts:
        summary += f", the most was {human.size(max(run.bytes or 0 for run in runs))}"
    return Chart(
        printable(operation),
        _bars([run.seconds for run in runs], failed, texts),
        amounts,
        _STEP * MOST,
        summary,
    )


def _bars(values: Sequence[float], failed: Iterable[bool], texts: Iterable[str]) -> tuple[Bar, ...]:
    """Bars as high as the square roots of the values, so that the small ones are seen, too."""
    highest = math.sqrt(max([*values, 1e-9]))
    start = _STEP * (MOST - len(values))
    bars = []
    for number, (value, has_failed, text) in enumerate(zip(values, failed, texts, strict=True)):
        height = max(_LOWEST, round(HEIGHT * math.sqrt(max(value, 0)) / highest, 1))
        bars.append(Bar(start + number * _STEP, HEIGHT - height, height, has_failed, text))
    return tuple(bars)


def _describe(run: Run, now: datetime) -> str:
    moved = "" if run.bytes is None else f", {human.size(run.bytes)}"
    said = run.error or run.outcome
    what = f"{human.age(run.started, now)}: {_seconds(run.seconds)}{moved}"
    return shortened(f"{what}; {'failed: ' if run.error else ''}{said}", _LONGEST_TEXT)


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else human.duration(timedelta(seconds=seconds))
