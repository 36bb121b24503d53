"""`buttervolume follow`: how volumes that follow their services stand, and what is decided."""

import argparse
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

from buttervolume import human
from buttervolume.cli.printing import Cell, Colour, age_of, as_json, line, table
from buttervolume.cli.terminal import say

Call = Callable[..., dict[str, Any]]
_WORDS = {"take": (2, 2), "resolve": (4, 5), "drop": (2, 2)}
"""What is decided, with how many words it has at the least and at the most. One word alone is a
volume, whatever it is called."""
COLUMNS = ["MEMBER", "ROLE", "USED", "NEWEST COPY", "TAKEN", "LACKS"]


def follow(call: Call, arguments: argparse.Namespace) -> tuple[list[str], bool]:
    """What the command prints, and whether all is well."""
    words: Sequence[str] = arguments.words
    terms = (arguments.members, arguments.every, arguments.orphan)
    if len(words) > 1:
        least, most = _WORDS.get(words[0], (0, 0))
        if not least <= len(words) <= most or arguments.json or any(terms):
            raise argparse.ArgumentTypeError(
                "say take <volume>, resolve <volume> <fork> drop, resolve <volume> <fork> clone "
                "<new volume>, or drop <volume>"
            )
        decide = {"take": _take, "resolve": _resolve, "drop": _drop}[words[0]]
        return decide(call, words[1:], arguments.yes), True
    volume = words[0] if words else None
    if any(term is not None for term in terms):
        if volume is None:
            raise argparse.ArgumentTypeError("--members, --every and --orphan need a volume")
        return _change(call, volume, arguments), True
    return _show(call, volume, as_it_is=arguments.json)


def _show(call: Call, volume: str | None, *, as_it_is: bool) -> tuple[list[str], bool]:
    answer = call("VolumeDriver.Follow", Name=volume)
    is_well = "Warning" not in answer and all(each["Healthy"] for each in answer["Volumes"])
    if as_it_is:
        return as_json(answer), is_well
    now = datetime.fromisoformat(answer["Now"])
    lines: list[str] = []
    for each in answer["Volumes"]:
        if lines:
            lines.append("")
        lines += _volume(each, now)
    return lines, is_well


def _volume(volume: dict[str, Any], now: datetime) -> list[str]:
    owner = f"owned by {volume['Owner']}" if volume["Owner"] else "not used by anybody yet"
    epoch = f", epoch {volume['Epoch']} ({volume['EpochId']})" if volume["Epoch"] else ""
    terms = f"every {volume['Every']} minutes, orphan={volume['Orphan']}"
    lines = [line(f"{volume['Name']}: {owner}{epoch}, {terms}", Colour.TITLE)]
    lines += [line(problem, Colour.BAD) for problem in volume["Problems"]]
    rows = [member_row(member, volume["Owner"], now) for member in volume["Members"]]
    return [*lines, *table(COLUMNS, rows)]


def member_row(member: dict[str, Any], owner: str | None, now: datetime) -> list[str | Cell]:
    """A member of a followed volume as a row of a table with these columns."""
    taken = datetime.fromisoformat(member["Taken"]) if member["Taken"] else None
    role = Cell("silent", Colour.BAD) if member["Silent"] else Cell(member["Role"])
    lag = timedelta(seconds=member["Lag"])
    return [
        member["Name"],
        role,
        "yes" if member["InUse"] else "",
        member["Copy"] or "",
        human.age(taken, now),
        human.duration(lag) if lag and member["Name"] != owner else "",
    ]


def _change(call: Call, volume: str, arguments: argparse.Namespace) -> list[str]:
    answer = call(
        "VolumeDriver.Follow.Set",
        Name=volume,
        Members=arguments.members,
        Every=arguments.every,
        Orphan=arguments.orphan,
    )
    members = ":".join(answer["Members"])
    return [f"follow={members} every={answer['Every']} orphan={answer['Orphan']}"]


def _take(call: Call, words: Sequence[str], is_sure: bool) -> list[str]:
    (volume,) = words
    found = call("VolumeDriver.Follow.Take", Name=volume, Dryrun=True)
    snapshot = found["Snapshot"]
    if snapshot is None:
        say(f"{volume} goes on with what is here")
    else:
        say(f"{volume} goes on with {snapshot}, from {found['Member']}{age_of(snapshot)}")
        _ask("whatever its owner has written since then stays there, as a fork; go on?", is_sure)
    taken = call("VolumeDriver.Follow.Take", Name=volume)["Snapshot"]
    return [taken] if taken else []


def _resolve(call: Call, words: Sequence[str], is_sure: bool) -> list[str]:
    volume, fork, action, *target = words
    if action not in ("drop", "clone") or (action == "clone") != bool(target):
        raise argparse.ArgumentTypeError("say drop, or clone and the name of the new volume")
    if action == "drop":
        what = "what it holds is deleted" if "@" in fork else "members that hold it keep a fork"
        _ask(f"{fork} is given up, and {what}; go on?", is_sure)
    call(
        "VolumeDriver.Follow.Resolve",
        Name=volume,
        Fork=fork,
        Action=action,
        Target=target[0] if target else None,
    )
    return target


def _drop(call: Call, words: Sequence[str], is_sure: bool) -> list[str]:
    (volume,) = words
    _ask(f"{volume} is deleted on all members, for good, with all its snapshots; go on?", is_sure)
    call("VolumeDriver.Follow.Drop", Name=volume)
    return []


def _ask(question: str, is_sure: bool) -> None:
    """Ask, if somebody sits there. Raises KeyboardInterrupt if the answer is no."""
    if is_sure or not sys.stdin.isatty():
        return
    say(f"{question} [y/N]")
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise KeyboardInterrupt
