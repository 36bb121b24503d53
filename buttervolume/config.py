"""The configuration: environment first, then the file, then the default; read and checked once."""

import configparser
import logging
import os
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from buttervolume import ages
from buttervolume.errors import BadName, ConfigError
from buttervolume.names import HOST_RULE, check_host

CONFIG_FILE = Path("/etc/buttervolume/config.ini")
PREFIX = "BUTTERVOLUME_"
SSH_PORT = "SSH_PORT"
LONGEST_DATE = 100
"""Bytes of the date in a snapshot's name, of 255 for the whole name."""
OLDER_DRIVERNAME = "ccomb/buttervolume:latest"
"""The name of the first plugins."""
LONGEST_PATH, LONGEST_NAME = 4000, 255
"""Bytes of a path, with room for names in it, and of each part (Linux's limits.h)."""
LONGEST_FILE = 200
"""Bytes of a file's name, with room for what the names of others beside it have behind it."""
LONGEST_SOCKET_PATH = 107
"""Bytes, from the size of sun_path in unix(7), less the final NUL."""


@dataclass(frozen=True)
class Address:
    """Where to serve: an IP address with a port, or a unix socket."""

    host: str = ""
    port: int = 0
    path: Path | None = None

    @property
    def is_private(self) -> bool:
        """Whether only this machine can reach it."""
        from ipaddress import ip_address  # no command needs it but `run`

        return self.path is not None or ip_address(self.host).is_loopback

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/"


@dataclass(frozen=True)
class Config:
    """Every setting, checked. The manual and config.ini.example explain them to users."""

    drivername: str
    volumes_path: Path
    snapshots_path: Path
    test_remote_path: Path
    schedule: Path
    history: Path
    runpath: Path
    socket: Path
    timer: int
    """Seconds between two rounds of the scheduler."""
    dtformat: str
    loglevel: int
    keep_removed: timedelta
    """How long a removed volume can be brought back."""
    min_free: float
    """The share of free space below which it is a problem."""
    web: Address | None
    """Where the page is served; None if it is not."""
    web_token: str
    node: str
    """This host's name among its peers."""
    peers: tuple[str, ...]
    """The members of a volume with `follow=peers`."""
    notify: tuple[str, ...]
    """The Apprise addresses that problems are reported to."""
    ssh_port: int
    warnings: tuple[str, ...] = ()
    """What is odd about the configuration without being wrong."""
    other_drivernames: tuple[str, ...] = field(default=(), compare=False)
    """Further names under which the plugin may run, where none is configured."""

    @property
    def follow_path(self) -> Path:
        """The directory of what is remembered of followed volumes."""
        return self.history.with_name("follow")


def _text(value: str) -> str:
    if any(c.isspace() or not c.isprintable() for c in value):
        raise ValueError("a name without spaces")
    return value


def _path(value: str) -> Path:
    path = os.path.normpath(value)
    if (
        not value.startswith("/")
        or "\0" in value
        or len(os.fsencode(path)) > LONGEST_PATH
        or any(len(os.fsencode(part)) > LONGEST_NAME for part in path.split("/"))
    ):
        raise ValueError(
            f"an absolute path of at most {LONGEST_PATH} bytes, {LONGEST_NAME} in each part"
        )
    return Path(path)


def _file(value: str) -> Path:
    path = _path(value)
    if not 0 < len(os.fsencode(path.name)) <= LONGEST_FILE:
        raise ValueError(f"an absolute path of a file, with a name of at most {LONGEST_FILE} bytes")
    return path


def _socket(value: str) -> Path:
    path = _path(value)
    if len(os.fsencode(path)) > LONGEST_SOCKET_PATH:
        raise ValueError(f"an absolute path of at most {LONGEST_SOCKET_PATH} bytes")
    return path


def _whole_number(lowest: int, highest: int) -> Callable[[str], int]:
    def convert(value: str) -> int:
        if value.isascii() and value.isdigit() and len(value) < 10:
            number = int(value)
            if lowest <= number <= highest:
                return number
        raise ValueError(f"a whole number from {lowest} to {highest}")

    return convert


def _date_format(value: str) -> str:
    """A format is good if every moment comes back from it, to the second, and leaves room for the
    other parts of a snapshot's name."""
    moments = (datetime(2001, 2, 3, 4, 5, 6, 7), datetime(2026, 12, 31, 23, 59, 58, 999999))
    allowed = (
        "a format of Python's strftime that strptime reads back to the second, without '/' or '@', "
        f"and of at most {LONGEST_DATE} bytes"
    )
    try:
        for moment in moments:
            text = moment.strftime(value)
            with warnings.catch_warnings():  # of days without a year, which are refused below
                warnings.simplefilter("ignore", DeprecationWarning)
                back = datetime.strptime(text, value)
            if back.replace(microsecond=0) != moment.replace(microsecond=0):
                raise ValueError(allowed)
            if len(text.encode()) > LONGEST_DATE:
                raise ValueError(allowed)
            if back.strftime(value) != text or not text.isprintable() or set("/@") & set(text):
                raise ValueError(allowed)
    except (ValueError, UnicodeError, re.error) as error:  # strptime makes a regular expression
        raise ValueError(allowed) from error
    return value


def _address(value: str) -> Address | None:
    if not value:
        return None
    if value.startswith("unix:"):
        return Address(path=_socket(value.removeprefix("unix:")))
    from ipaddress import ip_address

    host, _, port = value.rpartition(":")
    try:
        number = _whole_number(1, 65535)(port)
        address = str(ip_address(host.removeprefix("[").removesuffix("]")))
        if (":" in address) != (host.startswith("[") and host.endswith("]")):
            raise ValueError
    except ValueError as error:
        raise ValueError(
            "an IP address and a port, such as 127.0.0.1:9178 or [::1]:9178, or unix:/path"
        ) from error
    return Address(address, number)


def _addresses(value: str) -> tuple[str, ...]:
    addresses = tuple(value.split())
    if not all("://" in address and address.isprintable() for address in addresses):
        raise ValueError("Apprise addresses such as mailto://…, separated by blanks")
    return addresses


def _token(value: str) -> str:
    if value != value.strip() or not value.isascii() or not value.isprintable():
        raise ValueError("printable ASCII without blanks at its ends")
    return value


def _age(value: str) -> timedelta:
    return ages.parse(value.lower())


def _share(value: str) -> float:
    number = value.removesuffix("%")
    is_number = number.isascii() and number.isdigit() and len(number) < 10
    if value.endswith("%") and is_number and int(number) < 100:
        return int(number) / 100
    raise ValueError("a whole number from 0% to 99%")


def _host(value: str) -> str:
    try:
        return check_host(value)
    except BadName as error:
        raise ValueError(f"a name; {HOST_RULE}") from error


def _hosts(value: str) -> tuple[str, ...]:
    hosts = tuple(_host(host) for host in re.split(r"[\s,]+", value) if host)
    if len(set(hosts)) < len(hosts):
        raise ValueError("names separated by blanks or commas, each one once")
    return hosts


def _own_name() -> str:
    """The name of this host, as far as it can be one of a peer."""
    return re.sub("[^a-zA-Z0-9._-]", "-", os.uname().nodename)[:98].lstrip("._-") or "localhost"


def _log_level(value: str) -> int:
    levels = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
    if value.upper() not in levels:
        raise ValueError(f"one of {', '.join(levels)}")
    return int(getattr(logging, value.upper()))


# Each key with its default and what turns its text into a value, or raises ValueError saying
# what is allowed. SOCKET's default follows RUNPATH, HISTORY's SCHEDULE, NODE's
# is the host's name.
_KEYS: dict[str, tuple[str, Callable[[str], object]]] = {
    "DRIVERNAME": ("anybox/buttervolume:latest", _text),
    "VOLUMES_PATH": ("/var/lib/buttervolume/volumes/", _path),
    "SNAPSHOTS_PATH": ("/var/lib/buttervolume/snapshots/", _path),
    "TEST_REMOTE_PATH": ("/var/lib/buttervolume/received/", _path),
    "SCHEDULE": ("/etc/buttervolume/schedule.csv", _file),
    "HISTORY": ("", _file),
    "RUNPATH": ("/run/docker", _path),
    "SOCKET": ("", _socket),
    "TIMER": ("60", _whole_number(1, 86400)),
    "DTFORMAT": ("%Y-%m-%dT%H:%M:%S.%f", _date_format),
    "LOGLEVEL": ("INFO", _log_level),
    "KEEP_REMOVED": ("1d", _age),
    "MIN_FREE": ("10%", _share),
    "WEB": ("", _address),
    "WEB_TOKEN": ("", _token),
    "NODE": ("", _host),
    "PEERS": ("", _hosts),
    "NOTIFY": ("", _addresses),
    SSH_PORT: ("1122", _whole_number(1, 65535)),
}


_SECRETS = ("WEB_TOKEN", "NOTIFY")
"""Keys whose values no message shows."""


def _variable(key: str) -> str:
    """The name of the environment variable of a key."""
    return key if key == SSH_PORT else PREFIX + key


def _read_file(path: Path) -> dict[str, str]:
    """The `[DEFAULT]` section; other sections and SSH_PORT come out as keys that nobody knows."""
    parser = configparser.ConfigParser(interpolation=None)
    try:
        with path.open(encoding="utf-8-sig") as file:
            parser.read_file(file)
    except FileNotFoundError:
        return {}
    except PermissionError as error:
        raise ConfigError(f"{path} cannot be read: permission denied; run this as root") from error
    except (configparser.Error, UnicodeDecodeError, OSError) as error:
        problem = " ".join(str(error).split())
        raise ConfigError(
            f"{path} cannot be read: {problem}; it must be a text file with a line [DEFAULT] "
            "followed by lines KEY = value"
        ) from error
    found = {key.upper(): value.replace("%%", "%") for key, value in parser.defaults().items()}
    if SSH_PORT in found:
        found[f"{SSH_PORT} (set it in the environment)"] = found.pop(SSH_PORT)
    return found | {f"[{section}]": "section" for section in parser.sections()}


def load(environ: Mapping[str, str], path: Path = CONFIG_FILE) -> Config:
    """Read and check the configuration; raise ConfigError for a value that cannot be used.

    Only the value that counts is checked: a good variable hides a bad line of the file. An empty
    value counts as unset, since the managed plugin has each variable, empty.
    """
    in_file = _read_file(path)
    warnings = [f"{path}: unknown key {key}" for key in in_file if key not in _KEYS]
    warnings += [
        f"environment: unknown key {name}"
        for name in sorted(environ)
        if name.startswith(PREFIX) and name.removeprefix(PREFIX) not in set(_KEYS) - {SSH_PORT}
    ]
    values: dict[str, object] = {}
    for key, (default, convert) in _KEYS.items():
        if environ.get(_variable(key)):
            text, source = environ[_variable(key)], f"environment variable {_variable(key)}"
        elif in_file.get(key):
            text, source = in_file[key], str(path)
        elif key == "HISTORY":
            beside = Path(str(values["schedule"]))
            text, source = str(beside.with_name("history.sqlite")), "default beside SCHEDULE"
        elif key == "SOCKET":
            text, source = f"{values['runpath']}/plugins/btrfs.sock", "default below RUNPATH"
        elif key == "NODE":
            text, source = _own_name(), "this host's name"
        else:
            text, source = default, "default"
        try:
            values[key.lower()] = convert(text)
        except ValueError as error:
            shown = "…" if key in _SECRETS else repr(text)
            raise ConfigError(f"{key} = {shown} ({source}): it must be {error}") from error
    is_named = environ.get(_variable("DRIVERNAME")) or in_file.get("DRIVERNAME")
    config = Config(
        warnings=tuple(warnings),
        other_drivernames=() if is_named else (OLDER_DRIVERNAME,),
        **values,  # type: ignore[arg-type]
    )
    _check_together(config)
    return config


def _check_together(config: Config) -> None:
    """Volumes and snapshots must be two separate trees: neither listing may show the other."""
    volumes, snapshots = config.volumes_path, config.snapshots_path
    if volumes.is_relative_to(snapshots) or snapshots.is_relative_to(volumes):
        raise ConfigError(
            f"VOLUMES_PATH = {str(volumes)!r} and SNAPSHOTS_PATH = {str(snapshots)!r}: "
            "they must be two directories, neither inside the other"
        )
    schedules = (config.schedule, config.schedule.with_name(f"{config.schedule.name}.disabled"))
    if config.history in (*schedules, config.socket):
        raise ConfigError(
            f"HISTORY = {str(config.history)!r}: it must be a file of its own, "
            "neither SCHEDULE nor SOCKET"
        )
    if config.web is not None and not config.web.is_private and not config.web_token:
        raise ConfigError(
            f"WEB = {config.web}: others can reach this address, so WEB_TOKEN must be set, "
            "which is asked of them; or use 127.0.0.1, [::1] or unix:/path"
        )
