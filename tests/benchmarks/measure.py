"""How things are timed: side by side, in turns, so that the machine's moods hit all alike."""

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence

Measurement = Callable[[], float]
"""Does a thing once and returns what it took, in seconds. What it needs to prepare and to tidy up
is not in it."""
Samples = dict[str, list[float]]


def interleave(rounds: int, measurements: Mapping[str, Measurement], warm_up: int = 1) -> Samples:
    """Measure each once a round, in every order in turn: what one leaves behind (a cold cache, a
    busy disk) hits each of the others as often.

    The rounds for warming up come first and do not count.
    """
    orders = itertools.cycle(itertools.permutations(measurements.items()))
    samples: Samples = {name: [] for name in measurements}
    for number, order in zip(range(-warm_up, rounds), orders, strict=False):
        for name, measure in order:
            seconds = measure()
            if number >= 0:
                samples[name].append(seconds)
    return samples


def medians(samples: Samples) -> dict[str, float]:
    """The median of each."""
    return {name: statistics.median(values) for name, values in samples.items()}


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that `percent` of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]
