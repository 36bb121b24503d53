"""What an ssh key may do here: the guard of a forced command, and the line that makes it one.

A line of authorized_keys names the command that sshd runs for a key, whatever the other side has
asked for (sshd(8)); that wish is in SSH_ORIGINAL_COMMAND, is parsed, and reaches no shell.
"""

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from buttervolume import names
from buttervolume.errors import BadName, NotAllowed

ROLES: Mapping[str, frozenset[str]] = {
    "push": frozenset(("look", "receive", "discard")),
    "pull": frozenset(("look", "send", "received")),
    "sync": frozenset(("rsync",)),
    "follow": frozenset(("follow", "look", "receive", "discard", "send", "received")),
}
"""The verbs of each role."""
VERBS = frozenset(("drop",)).union(*ROLES.values())
"""All there are: what deletes for good is in no role."""
REFUSED = "this key does not allow the command"
"""Begins the refusal of anything but a session or rsync."""
ASKED = ("buttervolume", "peer")
"""What the other side asks for to have a session."""

_PATTERN = re.compile(r"[a-zA-Z0-9_.*?\[\]!-]+")
_KEY = re.compile(r"(?P<kind>[a-z0-9@.-]+) (?P<key>[A-Za-z0-9+/]+={0,3})(?: [^\0-\x1f\x7f]*)?")
_KINDS = ("ssh-", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-")
_SHORT = re.compile(r"-[vnulHogDtpAXrSxWzsiqcyd]+(?:e[0-9.]*[a-zA-Z]*)?")
"""Options of the sender that lead nowhere else and change nothing here, and behind `e.` what the
other side understands (server_options in rsync's options.c)."""
_TIMEOUT = re.compile(r"--timeout=(\d{1,6})")
_LONGEST_TIMEOUT = 300


@dataclass(frozen=True)
class Guard:
    """What a session may do; without roles, everything."""

    roles: frozenset[str] = frozenset()
    patterns: tuple[str, ...] = ("*",)
    """Patterns of the volumes' names."""
    node: str | None = None
    """The name that the other side has here, whatever it says."""

    @property
    def is_on(self) -> bool:
        """Whether anything is forbidden."""
        return bool(self.roles)

    @property
    def verbs(self) -> frozenset[str]:
        """What may be asked for."""
        return frozenset().union(*(ROLES[role] for role in self.roles)) if self.is_on else VERBS

    def check_verb(self, verb: object) -> str:
        """Return a verb that may be used, or raise NotAllowed."""
        if not isinstance(verb, str) or verb not in self.verbs:
            purpose = f"is for {' and '.join(sorted(self.roles))} and " if self.roles else ""
            raise NotAllowed(f"this key {purpose}does not allow {str(verb)[:50]!r}")
        return verb

    def allows_volume(self, volume: str) -> bool:
        """Whether a volume is one of those that the session is for."""
        return any(fnmatchcase(volume, pattern) for pattern in self.patterns)

    def check_volume(self, volume: str) -> str:
        """Return the name of a volume that may be touched, or raise NotAllowed, BadName."""
        names.check_volume_reference(volume)
        if not self.allows_volume(volume):
            raise NotAllowed(f"{volume}: this key is not for this volume")
        return volume

    def sender(self, said: object) -> str:
        """The name of the other side. Raises BadName."""
        return names.check_host(self.node or (said if isinstance(said, str) else ""))


@dataclass(frozen=True)
class Reading:
    """What rsync is to read for the other side."""

    options: str
    timeout: int
    volumes: tuple[str, ...]

    def argv(self, directory: Path) -> list[str]:
        """The command, of options that are known and paths that are ours."""
        paths = [f"{directory / volume}/" for volume in self.volumes]
        limit = f"--timeout={self.timeout}"
        return ["rsync", "--server", "--sender", self.options, limit, "--numeric-ids", ".", *paths]


def wants_session(asked: str | None) -> bool:
    """Whether the other side wants a session, and not rsync. Raises NotAllowed."""
    if not asked:
        return True
    words = _words(asked)
    if tuple(words) == ASKED:
        return True
    if words[:3] == ["rsync", "--server", "--sender"]:
        return False
    raise NotAllowed(
        f"{REFUSED} {asked[:100]!r}; it is for buttervolume on the other "
        "side, of version 3.15 or later"
    )


def is_secluded(asked: str) -> bool:
    """Whether rsync's arguments come over its input (rsync(1), --secluded-args)."""
    words = _words(asked)
    return len(words) == 4 and _SHORT.fullmatch(words[3]) is not None and "s" in _flags(words[3])


def parse_rsync(asked: str, secluded: Sequence[str], directory: Path, guard: Guard) -> Reading:
    """What rsync was asked to read, all of it checked: volumes of the directory, and options that
    this host can grant. Raises NotAllowed, BadName."""
    words = [*_words(asked)[3:], *secluded]
    options, timeout = "", _LONGEST_TIMEOUT
    while words and words[0] != ".":
        word = words.pop(0)
        limit = _TIMEOUT.fullmatch(word)
        if limit:
            timeout = max(1, min(int(limit[1]), _LONGEST_TIMEOUT))
        elif _SHORT.fullmatch(word) and not options:
            flags = _flags(word)
            options = f"-{flags.replace('s', '')}{word[1 + len(flags) :]}"
        elif word != "--numeric-ids":
            raise NotAllowed(f"this key does not allow rsync's option {word[:50]!r}")
    if not options or len(words) < 2:
        raise NotAllowed("this key allows rsync to read volumes, and none was named")
    volumes = tuple(_volume(path, directory, guard) for path in words[1:])
    return Reading(options, timeout, volumes)


def _flags(word: str) -> str:
    return word[1:].partition("e")[0]


def _volume(path: str, directory: Path, guard: Guard) -> str:
    """The volume that a path is, exactly."""
    name = path.removeprefix(f"{directory}/").removesuffix("/")
    if path not in (f"{directory}/{name}", f"{directory}/{name}/"):
        raise NotAllowed(f"{path[:200]!r}: this key allows to read volumes alone")
    return guard.check_volume(name)


def _words(asked: str) -> list[str]:
    try:
        return shlex.split(asked)
    except ValueError as error:
        raise NotAllowed("the command cannot be understood") from error


def check_pattern(pattern: str) -> str:
    """Return a pattern of volumes that can be in a line of authorized_keys, or raise BadName."""
    if not _PATTERN.fullmatch(pattern):
        raise BadName("pattern of volumes", pattern, "letters, digits and _ . - * ? [ ] ! alone")
    return pattern


def authorized_line(key: str, guard: Guard, program: str) -> str:
    """The line of authorized_keys that lets a public key do what the guard allows, and no more.
    Raises BadName if it is no public key."""
    found = _KEY.fullmatch(key.strip())
    if not found or not found["kind"].startswith(_KINDS):
        rule = "it must be one line, as in a file that ssh-keygen names .pub, without options"
        raise BadName("public key", key.strip()[:100], rule)
    command = shlex.join([program, "peer", *_options(guard)])
    escaped = command.replace("\\", "\\\\").replace('"', '\\"')
    return f'restrict,command="{escaped}" {found[0]}'


def _options(guard: Guard) -> Iterable[str]:
    for role in sorted(guard.roles):
        yield from ("--role", role)
    if guard.patterns != ("*",):
        for pattern in guard.patterns:
            yield from ("--volumes", pattern)
    if guard.node:
        yield from ("--node", guard.node)
