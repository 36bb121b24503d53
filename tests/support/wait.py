"""Wait for something to become true, instead of sleeping and hoping."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

INTERVAL = 0.02
"""Seconds between two looks that cost nothing."""


def wait_until(
    condition: Callable[[], T],
    timeout: float = 60.0,
    what: str = "the condition to hold",
    interval: float = INTERVAL,
) -> T:
    """Return the first true answer of the condition; an AssertionError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout:g} s for {what}")
        time.sleep(interval)
    return answer
