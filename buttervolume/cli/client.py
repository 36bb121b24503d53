"""The daemon's socket, as the command line uses it."""

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from buttervolume.config import Config
from buttervolume.errors import ButtervolumeError, CommandFailed, NoDaemon
from buttervolume.system import command


class Refused(ButtervolumeError):
    """The daemon's own words on why it did not do what it was asked."""


def find_socket(config: Config) -> Path:
    """The daemon's socket: the configured one if it exists, else that of the managed plugin.

    Raises NoDaemon if neither is there.
    """
    if _exists(config.socket):
        return config.socket
    try:
        plugin = command.run(
            ["docker", "plugin", "inspect", "--format", "{{.Id}}", config.drivername]
        ).strip()
    except CommandFailed as error:
        raise NoDaemon(
            f"there is no socket {config.socket}, and docker knows no plugin "
            f"{config.drivername}: {error.stderr}"
        ) from error
    path = config.runpath / "plugins" / plugin / "btrfs.sock"
    if not _exists(path):
        raise NoDaemon(
            f"there is no socket {config.socket}, and the plugin {config.drivername} "
            f"is not running: there is no socket {path}"
        )
    return path


def _exists(path: Path) -> bool:
    """Whether the path exists; raise NoDaemon if the user may not look."""
    try:
        return path.exists()
    except PermissionError as error:
        raise _not_allowed(path) from error


class Client:
    """Calls of one daemon."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def call(self, endpoint: str, body: Mapping[str, object]) -> dict[str, Any]:
        """Make one call and return the answer. Raises NoDaemon, Refused.

        It waits for as long as the daemon works: a transfer may take days.
        """
        # a command that makes no call needs none of these, and they take 0.1 s to load
        import requests
        import requests_unixsocket

        path = find_socket(self._config)
        url = f"http+unix://{quote(str(path), safe='')}/{endpoint}"
        try:
            with requests_unixsocket.Session() as session:
                session.trust_env = False
                response = session.post(url, json=body, timeout=None)
        except requests.RequestException as error:
            raise _unreachable(path, self._config) from error
        try:
            answer = cast(dict[str, Any], json.loads(response.content))
            problem = str(answer["Err"])
        except (ValueError, KeyError, TypeError) as error:
            raise Refused(f"{path} does not speak this program's protocol") from error
        if problem or response.status_code != 200:
            raise Refused(problem or f"HTTP {response.status_code}")
        return answer


def _unreachable(path: Path, config: Config) -> NoDaemon:
    """Why a call at a socket had no answer, and what to do."""
    import socket

    with socket.socket(socket.AF_UNIX) as probe:
        number = probe.connect_ex(os.fsencode(path))
    if number == errno.EACCES:
        return _not_allowed(path)
    if number:
        return NoDaemon(f"{path}: {os.strerror(number)}")
    return NoDaemon(
        f"{path}: the connection was closed without an answer",
        f"is {config.volumes_path} mounted? The daemon's log says more",
    )


def _not_allowed(path: Path) -> NoDaemon:
    return NoDaemon(f"{path}: permission denied", "run this as root")
