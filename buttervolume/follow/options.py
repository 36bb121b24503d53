"""The options of a new volume that are about other hosts: `follow`, `every` and `orphan`."""

import re
from collections.abc import Mapping, Sequence

from buttervolume.errors import BadName, BadOption
from buttervolume.follow.charter import DEFAULT_EVERY, LONGEST_EVERY, Charter, check_members
from buttervolume.follow.machine import Policy

FOLLOW_OPTIONS = ("follow", "every", "orphan")


def split_follow(
    options: Mapping[str, object], node: str, peers: Sequence[str]
) -> tuple[Charter | None, dict[str, object]]:
    """Whether and how a volume is to follow its service, and the options that are about other
    things. `node` is this host's name, `peers` who is meant by `follow=peers`. Raises BadOption.
    """
    said = {key: _text(key, options[key]) for key in FOLLOW_OPTIONS if key in options}
    said = {key: value for key, value in said.items() if value}
    others = {key: value for key, value in options.items() if key not in FOLLOW_OPTIONS}
    if "follow" not in said:
        if said:
            raise BadOption(f"{', '.join(said)} can be given together with follow only")
        return None, others
    members = parse_members(said["follow"], node, peers)
    policy = parse_policy(said["orphan"]) if "orphan" in said else Policy.REFUSE
    every = parse_every(said["every"]) if "every" in said else DEFAULT_EVERY
    return Charter(members, policy, every), others


def parse_members(text: str, node: str, peers: Sequence[str]) -> tuple[str, ...]:
    """The members; this host must be one of them. Raises BadOption."""
    names: Sequence[str] = [name.strip() for name in re.split("[,:]", text)]
    if text.lower() == "peers":
        names = peers
        if not names:
            raise BadOption("follow=peers takes the members from PEERS, which is not set here")
    try:
        members = check_members(names)
    except (BadName, ValueError) as error:
        raise BadOption(
            f"follow={text!r} is not possible: {error}; write the names that ssh has for all "
            "members, such as a:b:c"
        ) from error
    if node not in members:
        raise BadOption(
            f"follow={text!r}: this host is {node}, which is none of the members; set NODE to the "
            "name that they have for this host"
        )
    return members


def parse_policy(text: str) -> Policy:
    """What is to happen when the owner cannot be reached. Raises BadOption."""
    try:
        return Policy(text.lower())
    except ValueError as error:
        raise BadOption(f"orphan={text!r} is not possible; valid values: refuse, latest") from error


def parse_every(text: str) -> int:
    """Minutes. Raises BadOption."""
    if text.isascii() and text.isdigit() and len(text) < 9 and 1 <= int(text) <= LONGEST_EVERY:
        return int(text)
    raise BadOption(f"every={text!r} is not possible; valid values: minutes, 1 to {LONGEST_EVERY}")


def _text(key: str, value: object) -> str:
    if not isinstance(value, str):
        raise BadOption(f"{key}={value!r} is not possible; write it in quotes")
    return value.strip()
