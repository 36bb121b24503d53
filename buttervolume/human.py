"""Lengths of time and sizes as people say them. The library for it is loaded when it is needed."""

from datetime import datetime, timedelta


def size(count: float | None) -> str:
    """Bytes, such as `1.2 GiB`."""
    if count is None:
        return "-"
    from humanize import naturalsize

    return naturalsize(count, binary=True)


def duration(length: timedelta) -> str:
    """A length of time, such as `3 hours`."""
    from humanize import naturaldelta

    return naturaldelta(length)


def age(moment: datetime | None, now: datetime) -> str:
    """How long ago a moment was, such as `3 hours ago`, or in how long it will be."""
    if moment is None:
        return "never"
    return until(moment, now) if moment > now else f"{duration(now - moment)} ago"


def until(moment: datetime | None, now: datetime) -> str:
    """When a moment to come is, such as `in 5 minutes`."""
    if moment is None:
        return "-"
    return "now" if moment <= now else f"in {duration(moment - now)}"
