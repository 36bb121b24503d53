"""What a command may have been meant to say, as far as its form tells: for one that was refused, or
that did something else."""

import argparse
import itertools
import os
import re
import shlex
from collections.abc import Callable, Sequence

_PATTERN = re.compile(r"[0-9]+[a-z](/[0-9]+)?(:[0-9]+[a-z](/[0-9]+)?)*")
_WITH_WORDS = ("purge", "replicate", "mirror", "receive", "synchronize")
"""Actions that say more behind a colon."""
_ACTION = re.compile(rf"snapshot|({'|'.join(_WITH_WORDS)}):.+")
_TIMER = re.compile(r"[0-9]+|delete|pause|resume|now|\S+( \S+){4}")
_DATE = re.compile(r"latest|[0-9]{4}-[0-9]{2}.*")
"""What stands behind the @ in the name of a snapshot, at least with the DTFORMAT by default."""

_LIST = "'volumes' lists the volumes, 'snapshots' the snapshots, 'scheduled' the jobs"
_MAKE = "Docker makes volumes: docker volume create -d btrfs <name>"
_REMOVE = "'rm' removes a snapshot; Docker removes volumes: docker volume rm <name>"
_RUN = "'run' runs the daemon; in the background: systemctl start buttervolume"
_RESTORE = "'restore' gives a volume an earlier content, 'undelete' brings a removed one back"
_JOBS = "'schedule' makes a job, 'scheduled' lists them"
OTHER_WORDS = {
    **dict.fromkeys(("list", "ls", "ps", "show"), _LIST),
    **dict.fromkeys(("add", "create", "new"), _MAKE),
    **dict.fromkeys(("delete", "del", "destroy", "remove"), _REMOVE),
    **dict.fromkeys(("daemon", "serve", "server", "start"), _RUN),
    **dict.fromkeys(("recover", "revert", "rollback", "undo"), _RESTORE),
    **dict.fromkeys(("cron", "job", "jobs"), _JOBS),
    **dict.fromkeys(("stop", "restart"), "systemctl stops and restarts the daemon"),
    **dict.fromkeys(("copy", "cp"), "'clone' makes a volume from another"),
    **dict.fromkeys(("push", "upload"), "'send' sends a snapshot, 'replicate' takes and sends one"),
    **dict.fromkeys(("pull", "fetch", "download"), "'receive' brings a snapshot from another host"),
    **dict.fromkeys(("clean", "cleanup", "prune"), "'purge' deletes old snapshots"),
    **dict.fromkeys(("info", "inspect"), "'status' shows how all stands; docker volume inspect"),
    **dict.fromkeys(("events", "history", "logs"), "'log' shows what was done"),
    **dict.fromkeys(("df", "du", "size", "space"), "'usage' measures what takes the space"),
    **dict.fromkeys(("check", "diagnose", "health", "test"), "'doctor' looks for what is wrong"),
    "backup": "'snapshot' takes one here, 'replicate' takes and sends one to another host",
    "help": "buttervolume --help lists the commands, buttervolume <command> --help explains one",
    "mount": "Docker mounts volumes: docker run -v <name>:/data",
}
"""What other programs call it, or do where Docker does it here, and what to write instead."""


def meant(arguments: argparse.Namespace, code: str | None = None) -> str:
    """A hint that names the command that was meant; empty if nothing stands out. `code` is the
    kind of error that the daemon named, if it did."""
    find = _HINTS.get(arguments.command)
    is_of_volumes = find in (_sync, _replicate) or getattr(arguments, "all", False)
    if is_of_volumes and code not in (None, "NoSuchVolume", "BadName"):
        find = None
    hint = "" if find is None else find(arguments)
    host = getattr(arguments, "origin", None) or getattr(arguments, "host", None)
    if not hint and code == "HostFailed" and isinstance(host, str):
        return f"to find out more: {_command('doctor', host)}"
    return hint


def meant_by_words(arguments: argparse.Namespace, more: Sequence[str]) -> str:
    """A hint for a command that got more words than it takes; empty if nothing stands out."""
    if arguments.command != "schedule":
        return ""
    words = [arguments.action, arguments.timer, arguments.volume, *more]
    if len(words) == 4 and words[0] in _WITH_WORDS:
        return f"join them by a colon: {_command('schedule', ':'.join(words[:2]), *words[2:])}"
    if len(words) == 7:
        return f"quote cron: {_command('schedule', words[0], ' '.join(words[1:6]), words[6])}"
    return "quote cron, in which the shell replaces *: '0 3 * * *'" if len(words) > 4 else ""


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
    name, target = arguments.name, arguments.target or ""
    if _is_snapshot(name):
        return ""
    if _is_snapshot(target):
        return f"the snapshot comes first: {_command('restore', target, name)}"
    if _DATE.fullmatch(target):
        return f"if you meant a snapshot of {name}: {_command('restore', f'{name}@{target}')}"
    return ""


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
    if arguments.all:
        return f"the host comes first, then the volume: {_command('send', '--all')} <host> <volume>"
    if _is_snapshot(arguments.snapshot):
        return ""
    if _is_snapshot(arguments.host):
        command = _command("send", arguments.snapshot, arguments.host)
        return f"the host comes first: {command}"
    if "." in arguments.snapshot and "." not in arguments.host:
        latest = f"{arguments.host}@latest"
        return f"the host comes first: {_command('send', arguments.snapshot, latest)}"
    take = _command("snapshot", arguments.snapshot)
    return (
        f"send takes a snapshot; to send the latest one of a volume: "
        f"{_command('send', arguments.host, f'{arguments.snapshot}@latest')}; to take one: {take}"
    )


def _receive(arguments: argparse.Namespace) -> str:
    if "." not in arguments.name.partition("@")[0] or "." in arguments.host.partition("@")[0]:
        return ""
    return f"the host comes first: {_command('receive', arguments.name, arguments.host)}"


def _replicate(_: argparse.Namespace) -> str:
    return f"the host comes first, then the volume: {_command('replicate')} <host> <volume>"


def _as_root(_: argparse.Namespace) -> str:
    return "run this as root" if os.geteuid() else ""


def _sync(_: argparse.Namespace) -> str:
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
    "receive": _receive,
    "replicate": _replicate,
    "sync": _sync,
    "init": _as_root,
    "run": _as_root,
    "purge": _purge,
    "schedule": _schedule,
}
