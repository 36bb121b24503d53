"""What somebody may have meant whose command was refused, as can be told from its form."""

import argparse
import itertools
import re
import shlex
from collections.abc import Callable

_PATTERN = re.compile(r"[0-9]+[a-z](/[0-9]+)?(:[0-9]+[a-z](/[0-9]+)?)*")
_ACTION = re.compile(r"snapshot|(purge|replicate|mirror|receive|synchronize):.+")
_TIMER = re.compile(r"[0-9]+|delete|pause|resume|now|\S+( \S+){4}")


def meant(arguments: argparse.Namespace) -> str:
    """A hint that names the command that was meant; empty if nothing stands out."""
    find = _HINTS.get(arguments.command)
    return "" if find is None else find(arguments)


def _command(*words: str) -> str:
    return f"buttervolume {shlex.join(words)}"


def _is_snapshot(name: str) -> bool:
    return "@" in name


def _snapshot(arguments: argparse.Namespace) -> str:
    if not _is_snapshot(arguments.volume):
        return ""
    volume = arguments.volume.partition("@")[0]
    return f"this is a snapshot; to take one of its volume: {_command('snapshot', volume)}"


def _snapshots(arguments: argparse.Namespace) -> str:
    if not _is_snapshot(arguments.volume or ""):
        return ""
    volume = arguments.volume.partition("@")[0]
    return f"to list the snapshots of a volume: {_command('snapshots', volume)}"


def _clone(arguments: argparse.Namespace) -> str:
    if not _is_snapshot(arguments.volume):
        return ""
    command = _command("restore", arguments.volume, arguments.new_volume)
    return f"to make a volume from a snapshot: {command}"


def _restore(arguments: argparse.Namespace) -> str:
    if _is_snapshot(arguments.name) or not _is_snapshot(arguments.target or ""):
        return ""
    command = _command("restore", arguments.target, arguments.name)
    return f"the snapshot comes first: {command}"


def _rm(arguments: argparse.Namespace) -> str:
    volumes = [name for name in arguments.snapshot if name and not _is_snapshot(name)]
    if not volumes:
        return ""
    name = volumes[0]
    return (
        f"rm is for snapshots, which {_command('snapshots', name)} lists; "
        f"to remove a volume: {shlex.join(['docker', 'volume', 'rm', name])}"
    )


def _send(arguments: argparse.Namespace) -> str:
    if _is_snapshot(arguments.snapshot):
        return ""
    if _is_snapshot(arguments.host):
        command = _command("send", arguments.snapshot, arguments.host)
        return f"the host comes first: {command}"
    take = _command("snapshot", arguments.snapshot)
    return (
        f"send takes a snapshot; to send the latest one of a volume: "
        f"{_command('send', arguments.host, f'{arguments.snapshot}@latest')}; to take one: {take}"
    )


def _sync(arguments: argparse.Namespace) -> str:
    return f"the volume comes first, then the hosts: {_command('sync')} <volume> <host>"


def _purge(arguments: argparse.Namespace) -> str:
    if _PATTERN.fullmatch(arguments.pattern) or not _PATTERN.fullmatch(arguments.volume):
        return ""
    return f"the pattern comes first: {_command('purge', arguments.volume, arguments.pattern)}"


def _schedule(arguments: argparse.Namespace) -> str:
    given = (arguments.action, arguments.timer, arguments.volume)
    for words in itertools.permutations(given):
        if _ACTION.fullmatch(words[0]) and _TIMER.fullmatch(words[1]):
            return "" if words == given else f"the order is: {_command('schedule', *words)}"
    return ""


_HINTS: dict[str, Callable[[argparse.Namespace], str]] = {
    "snapshot": _snapshot,
    "snapshots": _snapshots,
    "clone": _clone,
    "restore": _restore,
    "rm": _rm,
    "send": _send,
    "sync": _sync,
    "purge": _purge,
    "schedule": _schedule,
}
