"""Calls as the history keeps them: whatever may change something, done or refused."""

from datetime import datetime

from buttervolume.api.body import Answer, Body
from buttervolume.jobs.history import Run
from buttervolume.words import shortened

_LONGEST_NAME = 512
"""Bytes of a name that somebody gave, which need not be one."""
_MADE = ("Restored", "VolumeBackup", "VolumeCloned", "Volume", "Created", "Result")
"""Keys of answers that name what was done."""


def record(
    operation: str,
    body: Body,
    answer: Answer,
    *,
    started: datetime,
    seconds: float,
    by: str,
) -> Run:
    """What is to be remembered of a call, `answer` being what it led to."""
    name = _name(body, "Name") or _name(body, "Volumes")
    snapshot = str(answer.get("Snapshot") or (name if "@" in name else ""))
    made = [str(answer[key]) for key in _MADE if isinstance(answer.get(key), str) and answer[key]]
    purged = answer.get("Purged")
    if isinstance(purged, list | tuple):
        made.append(f"{len(purged)} purged")
    return Run(
        started=started,
        seconds=seconds,
        operation=operation.removeprefix("VolumeDriver."),
        volume=name.partition("@")[0],
        host=_name(body, "Host") or _name(body, "Hosts") or _name(body, "From"),
        snapshot=snapshot,
        outcome=shortened(", ".join(made)),
        error=shortened(str(answer.get("Err", ""))),
        by=by,
    )


def _name(body: Body, key: str) -> str:
    """What a key of the request names; several, separated by commas; empty if it is no name."""
    value = body.get(key)
    values = value if isinstance(value, list) else [value]
    return shortened(",".join(v for v in values if isinstance(v, str)), _LONGEST_NAME)
