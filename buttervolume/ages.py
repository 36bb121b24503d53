"""Lengths of time as people write them: a number with m, h, d, w or y."""

import re
from datetime import timedelta

UNITS = {
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
    "w": timedelta(weeks=1),
    "y": timedelta(days=365),
}
_LONGEST = timedelta(days=365 * 1000)


def parse(text: str) -> timedelta:
    """A length of time; `0` is none. Raises ValueError with what is possible."""
    if text == "0":
        return timedelta()
    match = re.fullmatch(r"([0-9]{1,9})([mhdwy])", text, re.ASCII)
    if match:
        number, unit = int(match[1]), UNITS[match[2]]
        if number <= _LONGEST / unit:
            return number * unit
    raise ValueError("an age such as 12h, 1d or 2w, or 0")
