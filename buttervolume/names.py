"""The names of volumes, snapshots and hosts: parse, check, build. Nothing here touches a disk.

Two rules are kept apart. What is *made* gets a name that any tool can live with; a name that only
*refers* to something has to be safe, so that a volume with an odd name from an older version can
still be used and removed.
"""

import re
from dataclasses import dataclass
from datetime import datetime, timedelta

from buttervolume.errors import BadName

NEW_VOLUME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")
HOST = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,97}")
NEW_VOLUME_RULE = (
    "it must begin with a letter or a digit, followed by letters, digits, '_', '.' or '-', "
    "at most 128 characters in all"
)
REFERENCE_RULE = (
    "it must not be empty, begin with '.', hold '/', '@' or a control character, "
    "or be longer than 255 bytes"
)
SNAPSHOT_RULE = "it must be <volume>@<date>, or <volume>@<date>@<host> for a sent marker"
HOST_RULE = (
    "it must begin with a letter or a digit, followed by letters, digits, '.', '_' or '-', "
    "at most 98 characters in all; a user or an IPv6 address is said in the ssh configuration, "
    "below 'Host <name>', and the port of all hosts in SSH_PORT (of one host, by its ProxyCommand, "
    "such as nc %h 2222)"
)
_UNSAFE = re.compile(r"[/\x00-\x1f\x7f-\x9f]")
"""What leads out of a directory, or disturbs a terminal and a log."""
_PART = r"[a-zA-Z0-9_-][a-zA-Z0-9_.:+-]*"
_PLAIN_VOLUME = re.compile(_PART)
_PLAIN_SNAPSHOT = re.compile(rf"({_PART})@([a-zA-Z0-9_.:+-]+)(?:@([a-zA-Z0-9_.:+-]+))?")
"""What nearly all names are, seen to be safe at a glance: there are 100,000 to be looked at."""
RECEIVING = ".buttervolume-receiving-"
"""Begins the names of notes beside copies that are being received (see `receiving_note`)."""
LOCK_NAME = ".buttervolume-lock"
"""A file among the volumes that the daemon holds."""
LONGEST = 255
"""Bytes in a file name (NAME_MAX in Linux's limits.h)."""
FUTURE = timedelta(hours=1)
"""How far a snapshot's date may be ahead of the clock: summer time ends with an hour that comes
twice. One that is further ahead is of the future: some clock is, or was, wrong."""


@dataclass(frozen=True, slots=True)
class SnapshotName:
    """A snapshot's name in its parts; with a host it is a sent marker of the snapshot."""

    volume: str
    date: str
    host: str | None = None

    def __str__(self) -> str:
        base = f"{self.volume}@{self.date}"
        return base if self.host is None else f"{base}@{self.host}"

    @property
    def is_marker(self) -> bool:
        """Whether the name says "this snapshot reached that host"."""
        return self.host is not None

    @property
    def snapshot(self) -> "SnapshotName":
        """The snapshot itself, without the host that a marker adds."""
        return SnapshotName(self.volume, self.date)

    def marker(self, host: str) -> "SnapshotName":
        """The sent marker of this snapshot for a host."""
        return SnapshotName(self.volume, self.date, host)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot's name with the moment that its date means, local time; None if the date does
    not fit the configured format: such a one is never "latest" and never purged."""

    name: SnapshotName
    taken: datetime | None


def _is_safe_file_name(name: str) -> bool:
    """Whether a name stays within its directory and can be printed and logged."""
    if not name or name.startswith(".") or _UNSAFE.search(name):
        return False
    try:
        return len(name.encode()) <= LONGEST
    except UnicodeEncodeError:  # half of a surrogate pair: no file name in UTF-8
        return False


def is_volume_reference(name: str) -> bool:
    """Whether a name may refer to a volume."""
    if _PLAIN_VOLUME.fullmatch(name):
        return len(name) <= LONGEST
    return _is_safe_file_name(name) and "@" not in name


def check_volume_reference(name: str) -> str:
    """Return a name that may refer to a volume, or raise BadName."""
    if not is_volume_reference(name):
        raise BadName("volume", name, REFERENCE_RULE)
    return name


def check_new_volume(name: str) -> str:
    """Return a name that a new volume may have, or raise BadName."""
    if not NEW_VOLUME.fullmatch(name):
        raise BadName("new volume", name, NEW_VOLUME_RULE)
    return name


def check_host(name: str) -> str:
    """Return a name that a host may have, any `Host` alias of the ssh configuration, or raise."""
    if not HOST.fullmatch(name):
        raise BadName("host", name, HOST_RULE)
    return name


def parse_snapshot(name: str) -> SnapshotName:
    """Take a snapshot's name apart, or raise BadName."""
    plain = _PLAIN_SNAPSHOT.fullmatch(name)
    if plain is not None and len(name) <= LONGEST:
        return SnapshotName(plain[1], plain[2], plain[3])
    parts = name.split("@")
    if not _is_safe_file_name(name) or len(parts) not in (2, 3) or not all(parts):
        raise BadName("snapshot", name, SNAPSHOT_RULE)
    return SnapshotName(*parts)


def new_snapshot(volume: str, date: str, host: str | None = None) -> SnapshotName:
    """Build a name for a snapshot to be made, or raise BadName if no file can have it."""
    name = SnapshotName(volume, date, host)
    if len(str(name).encode()) > LONGEST:
        raise BadName("snapshot", str(name), f"it is longer than {LONGEST} bytes")
    return name


def receiving_note(name: str) -> str:
    """The file beside a copy that is being received, and not known to be on the disk yet."""
    data = name.encode(errors="surrogateescape")
    if len(RECEIVING) + len(data) > LONGEST:  # a volume of an older version, of a very long name
        from hashlib import sha256  # seldom needed, and long to import

        return f"{RECEIVING}{sha256(data).hexdigest()}"
    return f"{RECEIVING}{name}"
