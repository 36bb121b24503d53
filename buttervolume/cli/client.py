"""The daemon's socket, as the command line uses it."""

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

from buttervolume.config import Config
from buttervolume.errors import ButtervolumeError, CommandFailed, NoDaemon
from buttervolume.system import command
from buttervolume.words import lines

NOT_STARTED = 127
"""The status of a command that is not there, as shells have it."""


class Refused(ButtervolumeError):
    """The daemon's own words on why it did not do what it was asked, with the kind of error: the
    name of its class in `errors`, or None if the daemon is too old to tell. `answer` is all that it
    said: some of it may have been done."""

    def __init__(self, message: str, answer: "Answer | None" = None) -> None:
        self.answer = Answer() if answer is None else answer
        self.code: str | None = self.answer.get("Code")
        super().__init__(message)


class OtherVersion(ButtervolumeError):
    """The daemon's answer does not fit this command."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"the daemon {what}: it is of another version than this command; "
            "bring both to the same one and restart the daemon"
        )


class Answer(dict[str, Any]):
    """A JSON object of an answer, or one within it."""

    def __missing__(self, key: str) -> NoReturn:
        raise OtherVersion(f"does not tell {key}")


def find_socket(config: Config) -> Path:
    """The daemon's socket: the configured one if it exists, else the managed plugin's.

    Raises NoDaemon if neither is there.
    """
    if _exists(config.socket):
        return config.socket
    said = [f"there is no socket {config.socket}"]
    unknown, told = [], ""
    for name in (config.drivername, *config.other_drivernames):
        try:
            inspect = ["docker", "plugin", "inspect", "--format", "{{.Id}}", name]
            plugin = command.run(inspect).strip()
        except CommandFailed as error:
            if os.geteuid() and "permission denied" in error.stderr.lower():
                said.append("docker may not be asked for the managed plugin: permission denied")
                raise NoDaemon(", and ".join(said), "run this as root") from error
            unknown.append(name)
            told = "; ".join(lines(error.stderr))
            if error.status == NOT_STARTED:
                break
            continue
        path = config.runpath / "plugins" / plugin / "btrfs.sock"
        if _exists(path):
            return path
        said.append(f"the plugin {name} is not running: there is no socket {path}")
    if unknown:
        said.append(f"docker knows no plugin {' or '.join(unknown)} ({told})")
    raise NoDaemon(", and ".join(said))


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

    def call(self, endpoint: str, body: Mapping[str, object]) -> Answer:
        """Make one call and return the answer. Raises NoDaemon, Refused, OtherVersion.

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
        if response.status_code == 404:
            raise OtherVersion(f"does not know {endpoint}")
        try:
            answer = json.loads(response.content, object_hook=Answer)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, Answer) or "Err" not in answer:
            raise Refused(f"{path} does not speak this program's protocol")
        if answer["Err"] or response.status_code != 200:
            problem = str(answer["Err"] or f"HTTP {response.status_code}")
            raise Refused(problem, answer)
        return answer


def _unreachable(path: Path, config: Config) -> NoDaemon:
    """Why a call at a socket had no answer, and what to do."""
    import socket

    with socket.socket(socket.AF_UNIX) as probe:
        try:
            number = probe.connect_ex(os.fsencode(path))
        except OSError as error:  # there is no room for it in an address
            return NoDaemon(f"{path}: {error}", "choose a shorter RUNPATH")
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
