"""What a followed volume carries with it, what a member remembers of it, and what members tell each
other: from values to JSON and back.

What comes in, from a peer, an attribute or a file, is not believed to be well-formed: its types,
its sizes and its numbers are checked here, once.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from buttervolume import names
from buttervolume.errors import BadCharter, BadName
from buttervolume.follow import machine
from buttervolume.follow.machine import (
    Base,
    Copy,
    Epoch,
    How,
    Line,
    Policy,
    Role,
    Standing,
    Version,
)

DEFAULT_EVERY = 5
"""Minutes."""
LONGEST_EVERY = 7 * 24 * 60
"""Minutes."""
MOST_MEMBERS = 32
_MOST_EPOCHS = 4096
_MOST_OWNERS = 128
_MOST_NAMES = 100_000
_LARGEST = (1 << 62) - 1
_ID = re.compile(r"[0-9a-f]{4,32}")
_HOW = {"f": How.FIRST, "h": How.HANDED, "t": How.TAKEN}
_LETTER = {how: letter for letter, how in _HOW.items()}
_WRONG = (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError, BadName)
"""What comes of JSON that is not what it should be."""


@dataclass(frozen=True)
class Charter:
    """Who a volume follows its service among, and how far it has come. It is in an attribute of the
    volume's root, so it changes in one step with the content, and snapshots and copies have it."""

    members: tuple[str, ...]
    """ssh aliases that mean the same on every one of them, sorted."""
    policy: Policy = Policy.REFUSE
    every: int = DEFAULT_EVERY
    """Minutes between two replications to the other members."""
    line: Line = ()
    seq: int = 0
    """The number of the last snapshot; it rises before each."""

    @property
    def version(self) -> Version:
        """The version that a snapshot with this charter holds."""
        return Version(self.line, self.seq)

    def order(self, dropped: Collection[str]) -> tuple[bool, int, int]:
        """What is the higher, the newer the terms are; those of a line that was given up, with an
        epoch in `dropped`, hold no more."""
        return machine.without(self.line, dropped) == self.line, len(self.line), self.seq

    def dump(self) -> bytes:
        """As JSON, on one line."""
        return _dump(
            {
                "members": self.members,
                "orphan": self.policy.value,
                "every": self.every,
                "line": line_to_json(self.line),
                "seq": self.seq,
            }
        ).encode()

    @staticmethod
    @lru_cache(maxsize=1 << 12)  # each report reads those of all snapshots again
    def load(data: bytes) -> "Charter":
        """From JSON. Raises BadCharter."""
        try:
            values = json.loads(data)
            return Charter(
                _members(values["members"]),
                Policy(values["orphan"]),
                _whole(values["every"], 1, LONGEST_EVERY),
                line_from_json(values["line"]),
                _whole(values["seq"]),
            )
        except _WRONG as error:
            raise BadCharter(repr(error)) from error


@dataclass(frozen=True)
class Record:
    """What a member remembers of a volume, in a file of its own: what it must not forget however
    its volume changes."""

    role: Role = Role.NONE
    granted_to: str | None = None
    known: Line = ()
    """The longest line that it has heard of."""
    dropped: frozenset[str] = frozenset()
    """Epochs that a person has given up, with all that went on from them."""
    begun: str | None = None
    """The epoch that begins here with the volume that carries it: written before the volume is
    exchanged, so that a crash right after that leaves no doubt."""
    made: tuple[str, int] | None = None
    """The volume's UUID and generation when its epoch began here: as long as it has these, it holds
    what the epoch began with, and nothing of its own."""

    def dump(self) -> str:
        """As JSON."""
        values = {
            "role": self.role.value,
            "granted_to": self.granted_to,
            "known": line_to_json(self.known),
            "dropped": sorted(self.dropped),
            "begun": self.begun,
            "made": self.made,
        }
        return f"{json.dumps(values)}\n"

    @classmethod
    def load(cls, text: str) -> "Record":
        """From JSON. Raises BadCharter."""
        try:
            values = json.loads(text)
            granted_to, begun, made = values["granted_to"], values["begun"], values["made"]
            return cls(
                Role(values["role"]),
                None if granted_to is None else names.check_host(granted_to),
                line_from_json(values["known"]),
                ids_from_json(values["dropped"]),
                None if begun is None else _id(begun),
                None if made is None else (_text(made[0]), _whole(made[1])),
            )
        except _WRONG as error:
            raise BadCharter(repr(error)) from error


def line_to_json(line: Line) -> dict[str, Any]:
    """A line as JSON has it; as short as can be, since an attribute has little room."""
    owners = list(dict.fromkeys(epoch.owner for epoch in line))
    epochs = []
    for epoch in line:
        start = "" if epoch.base is None else f" {epoch.base.epoch} {epoch.base.seq}"
        epochs.append(f"{epoch.id} {_LETTER[epoch.how]} {owners.index(epoch.owner)}{start}")
    return {"owners": owners, "epochs": epochs}


def line_from_json(values: Mapping[str, Any]) -> Line:
    """A line from JSON. Raises one of what comes of wrong JSON."""
    owners = [names.check_host(owner) for owner in _list(values["owners"], _MOST_OWNERS)]
    line: list[Epoch] = []
    for text in _list(values["epochs"], _MOST_EPOCHS):
        new_id, letter, owner, *base = _text(text).split(" ")
        epoch = Epoch(_id(new_id), owners[_digits(owner)], _base(base, len(line)), _HOW[letter])
        line.append(epoch)
    if len({epoch.id for epoch in line}) < len(line):
        raise ValueError("an epoch is there twice")
    return tuple(line)


def _base(parts: Sequence[str], number: int) -> Base | None:
    """Where an epoch began, which is before it."""
    if not parts:
        if number:
            raise ValueError("only the first epoch has no base")
        return None
    epoch, seq = map(_digits, parts)
    if epoch >= number:
        raise ValueError(f"epoch {number} cannot begin in epoch {epoch}")
    return Base(epoch, seq)


def ids_from_json(values: object) -> frozenset[str]:
    """Ids of epochs."""
    return frozenset(_id(each) for each in _list(values, _MOST_EPOCHS))


# What a member says of itself


@dataclass(frozen=True)
class Report:
    """What a member says of itself, and who it takes the members to be."""

    standing: Standing
    charter: Charter | None = None
    """The newest that it has, of its volume and its copies."""
    forks: tuple[str, ...] = ()


def report_to_json(report: Report) -> dict[str, Any]:
    """A report as JSON has it. Lines are told once, and referred to by how much of them is meant:
    the copies of a volume have beginnings of the same one."""
    standing = report.standing
    told: list[Line] = []

    def refer(line: Line) -> list[int]:
        for place, other in enumerate(told):
            if machine.begins(line, other):
                return [place, len(line)]
            if machine.begins(other, line):
                told[place] = line
                return [place, len(line)]
        told.append(line)
        return [len(told) - 1, len(line)]

    said = {
        "known": refer(standing.known),
        "held": refer(standing.held),
        "role": standing.role.value,
        "granted_to": standing.granted_to,
        "dropped": sorted(standing.dropped),
        "in_use": standing.in_use,
        "copies": [
            [copy.snapshot, *refer(copy.version.line), copy.version.seq] for copy in standing.copies
        ],
        "charter": report.charter.dump().decode() if report.charter else None,
        "forks": report.forks,
    }
    return said | {"lines": [line_to_json(line) for line in told]}


def report_from_json(member: str, said: Mapping[str, Any]) -> Report:
    """A report from what a member has said. Raises BadCharter."""
    try:
        lines = [line_from_json(line) for line in _list(said["lines"], _MOST_EPOCHS)]

        def meant(place: object, length: object) -> Line:
            line = lines[_whole(place)]
            return line[: _whole(length, 0, len(line))]

        granted_to, charter = said["granted_to"], said["charter"]
        copies = []
        for name, place, length, seq in _list(said["copies"], _MOST_NAMES):
            version = Version(meant(place, length), _whole(seq))
            copies.append(Copy(member, str(names.parse_snapshot(name)), version))
        standing = Standing(
            member,
            meant(*said["known"]),
            meant(*said["held"]),
            Role(said["role"]),
            None if granted_to is None else names.check_host(granted_to),
            ids_from_json(said["dropped"]),
            _flag(said["in_use"]),
            tuple(copies),
        )
        forks = tuple(str(names.parse_snapshot(f)) for f in _list(said["forks"], _MOST_NAMES))
        return Report(
            standing, None if charter is None else Charter.load(_text(charter).encode()), forks
        )
    except _WRONG as error:
        raise BadCharter(repr(error)) from error


def copy_to_json(copy: Copy) -> dict[str, Any]:
    """A copy as JSON has it."""
    version = copy.version
    return {"snapshot": copy.snapshot, "line": line_to_json(version.line), "seq": version.seq}


def copy_from_json(member: str, said: Mapping[str, Any]) -> Copy:
    """A copy from what a member has said. Raises BadCharter."""
    try:
        version = Version(line_from_json(said["line"]), _whole(said["seq"]))
        return Copy(member, str(names.parse_snapshot(said["snapshot"])), version)
    except _WRONG as error:
        raise BadCharter(repr(error)) from error


def lines_from_json(said: Mapping[str, Any]) -> tuple[Line, frozenset[str]]:
    """A line to keep, and the epochs that were given up, as somebody tells them. Raises
    BadCharter."""
    try:
        return line_from_json(said["line"]), ids_from_json(said["dropped"])
    except _WRONG as error:
        raise BadCharter(repr(error)) from error


# Checks


def _dump(values: object) -> str:
    return json.dumps(values, separators=(",", ":"))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("it must be text")
    return value


def _id(value: object) -> str:
    if not _ID.fullmatch(_text(value)):
        raise ValueError("no id of an epoch")
    return _text(value)


def _digits(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 19:
        raise ValueError("it must be a number")
    return _whole(int(text))


def _whole(value: object, lowest: int = 0, highest: int = _LARGEST) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
        raise ValueError(f"it must be a whole number from {lowest} to {highest}")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError("it must be true or false")
    return value


def _list(value: object, longest: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > longest:
        raise ValueError(f"it must be a list of at most {longest}")
    return value


def _members(value: object) -> tuple[str, ...]:
    return check_members([_text(each) for each in _list(value, MOST_MEMBERS)])


def check_members(members: Sequence[str]) -> tuple[str, ...]:
    """Members in the order of their names. Raises BadName, ValueError."""
    for member in members:
        names.check_host(member)
    if not 2 <= len(members) <= MOST_MEMBERS:
        raise ValueError(f"from 2 to {MOST_MEMBERS} members")
    if len(set(members)) < len(members):
        raise ValueError("members that each have a name of their own")
    return tuple(sorted(members))
