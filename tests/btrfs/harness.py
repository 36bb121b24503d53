"""A place on BTRFS, a real daemon on it, and a client that can also misbehave."""

import http.client
import json
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from buttervolume.store.catalog import Catalog
from buttervolume.store.contents import Contents
from buttervolume.store.snapshots import Snapshots
from buttervolume.store.volumes import Volumes
from buttervolume.system import btrfs as kernel
from buttervolume.system import nested
from tests.support.wait import wait_until

REPOSITORY = Path(__file__).parents[2]
BTRFS = shutil.which("btrfs") or "/usr/bin/btrfs"
DATE_FORMAT = "%Y-%m-%dT%H:%M:%S.%f"
MIMETYPE = "application/vnd.docker.plugins.v1.2+json"


def btrfs(*arguments: object) -> str:
    """Run the `btrfs` command as an administrator would."""
    return subprocess.run(
        [BTRFS, *map(str, arguments)], check=True, capture_output=True, errors="surrogateescape"
    ).stdout


def subvolume(path: Path, files: Mapping[str, str] | None = None) -> Path:
    """Make a subvolume by hand, with some files in it."""
    btrfs("subvolume", "create", path)
    for name, text in (files or {}).items():
        (path / name).write_text(text)
    return path


def entries(directory: Path) -> list[str]:
    """Every name in a directory, sorted."""
    return sorted(path.name for path in directory.iterdir())


def put(path: Path, kind: str, target: Path | str = "/nowhere") -> None:
    """Put something there that is no subvolume: a file, directory, fifo, or link to the target."""
    match kind:
        case "file":
            path.write_text("precious")
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "link":
            path.symlink_to(target)
        case _:
            raise ValueError(kind)


def is_copied_on_write(path: Path) -> bool:
    """Whether new files in a directory are written by copy-on-write, as lsattr shows it."""
    shown = subprocess.run(["lsattr", "-d", path], check=True, capture_output=True, text=True)
    return "C" not in shown.stdout.split()[0]


def nested_in(path: Path) -> list[str | None]:
    """The paths of the subvolumes nested in one; None for what has too long a path."""
    with kernel.opened(path) as root:
        return nested.paths(root, nested.find(root))


def is_readonly(path: Path) -> bool:
    return btrfs("property", "get", "-ts", path, "ro").strip() == "ro=true"


@dataclass(frozen=True)
class Place:
    """Directories for volumes and snapshots on one BTRFS, and one beside them for the rest."""

    directory: Path
    volumes: Path
    snapshots: Path

    @classmethod
    def make(cls, directory: Path) -> Self:
        place = cls(directory, directory / "volumes", directory / "snapshots")
        for path in (directory, place.volumes, place.snapshots):
            path.mkdir()
        return place

    def tree(self) -> dict[str, tuple[int, int, int]]:
        """Every name below, hidden ones too, with what would change if somebody touched it."""
        return {str(path): _fingerprint(path) for path in self.directory.rglob("*")}

    def own_names(self) -> list[str]:
        """What the daemon has put among the volumes for itself, but for its lock."""
        return [
            name
            for name in entries(self.volumes)
            if name.startswith(".buttervolume-")
            and name not in (".buttervolume-lock", ".buttervolume-removed")
        ]

    def wait_until_swept(self) -> None:
        """Wait for a daemon that has just started to remove what another has left."""
        wait_until(lambda: not self.own_names(), what="the sweep")

    def snapshot_names(self) -> list[str]:
        return entries(self.snapshots)


def _fingerprint(path: Path) -> tuple[int, int, int]:
    status = path.lstat()
    changed = 0 if stat.S_ISDIR(status.st_mode) else status.st_mtime_ns
    return status.st_mode, status.st_ino, changed


@dataclass(frozen=True)
class Store:
    """The volumes and snapshots of a place without a daemon."""

    place: Place
    volumes: Volumes
    catalog: Catalog
    snapshots: Snapshots
    contents: Contents

    @classmethod
    def make(
        cls,
        place: Place,
        date_format: str = DATE_FORMAT,
        now: Callable[[], datetime] = datetime.now,
    ) -> Self:
        volumes = Volumes(place.volumes)
        catalog = Catalog(place.snapshots, date_format, volumes.check_available, now)
        snapshots = Snapshots(catalog, volumes, now)
        return cls(place, volumes, catalog, snapshots, Contents(volumes, catalog, snapshots))


class NoAnswer(Exception):
    """The connection was closed without a byte of an answer."""


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def json(self) -> dict[str, Any]:
        """The JSON object that every answer must be, with a string `Err`."""
        assert self.headers["Content-Type"] == MIMETYPE, self
        answer = json.loads(self.content)
        assert isinstance(answer, dict)
        assert isinstance(answer["Err"], str)
        return answer

    @property
    def error(self) -> str:
        return str(self.json["Err"])


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Client:
    """Speaks to a socket as Docker does: an empty Host, an Accept, and no Content-Type."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def request(
        self,
        endpoint: str,
        body: bytes = b"",
        method: str = "POST",
        headers: Mapping[str, str] | None = None,
        timeout: float = 60,
    ) -> Answer:
        """Send any bytes to any endpoint. Raises NoAnswer."""
        connection = UnixConnection(self.path, timeout)
        everything = {"Host": "", "Accept": MIMETYPE, "Content-Length": str(len(body))}
        try:
            connection.putrequest(method, f"/{endpoint}", skip_host=True, skip_accept_encoding=True)
            for key, value in (everything | dict(headers or {})).items():
                connection.putheader(key, value)
            connection.endheaders(body)
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError) as error:
            raise NoAnswer from error
        finally:
            connection.close()

    def post(self, endpoint: str, **body: object) -> Answer:
        """Send a JSON object with these keys to an endpoint of the driver."""
        return self.request(f"VolumeDriver.{endpoint}", json.dumps(body).encode())

    def call(self, endpoint: str, **body: object) -> dict[str, Any]:
        """A call that must succeed."""
        answer = self.post(endpoint, **body)
        assert (answer.status, answer.error) == (200, ""), answer
        return answer.json

    def refused(self, endpoint: str, **body: object) -> str:
        """A call that must be refused for a reason that a user can understand: the reason."""
        answer = self.post(endpoint, **body)
        assert answer.status == 200, answer
        assert answer.error, answer
        assert set(answer.json) == {"Err", "Code"}, answer
        return answer.error

    def is_closed(self, endpoint: str, body: bytes = b"{}") -> bool:
        """Whether the endpoint gives no answer at all."""
        try:
            self.request(f"VolumeDriver.{endpoint}", body)
        except NoAnswer:
            return True
        return False

    def names(self) -> list[str]:
        return [volume["Name"] for volume in self.call("List")["Volumes"]]

    def snapshot_names(self, volume: str | None = None) -> list[str]:
        names: list[str] = self.call("Snapshot.List", Name=volume)["Snapshots"]
        return names

    def answers(self) -> bool:
        try:
            return self.request("Plugin.Activate", timeout=5).status == 200
        except (OSError, NoAnswer):
            return False


class Shim:
    """A `btrfs` in front of the real one: it notes each call, and can be told to stop at one."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()
        self._log = directory / "log"
        self._log.touch()
        self._gate = directory / "gate"
        self._pid = directory / "pid"
        program = directory / "btrfs"
        program.write_text(
            f"""#!/bin/sh
echo "$*" >> {self._log}
if [ -e {self._gate} ]; then
    case "$*" in $(cat {self._gate}))
        echo $$ > {self._pid}
        while [ -e {self._gate} ]; do sleep 0.01; done;;
    esac
fi
exec {BTRFS} "$@"
"""
        )
        program.chmod(0o755)

    def calls(self) -> list[str]:
        """The arguments of every call so far."""
        return self._log.read_text().splitlines()

    def forget(self) -> None:
        self._log.write_text("")

    def stop_at(self, pattern: str) -> None:
        """Let the next call that matches this pattern of the shell wait at its very beginning."""
        self._pid.unlink(missing_ok=True)
        self._gate.write_text(pattern)

    def wait_for_arrival(self) -> None:
        wait_until(lambda: self._pid.exists() and self._pid.read_text(), what="the command")

    def pid(self) -> int:
        """The process that waits; it becomes the real command when it goes on."""
        return int(self._pid.read_text())

    def is_running(self) -> bool:
        """Whether the command that has waited is still there."""
        try:
            return Path(f"/proc/{self.pid()}/stat").read_text().split()[2] != "Z"
        except FileNotFoundError:
            return False

    def go_on(self) -> None:
        self._gate.unlink()


class Daemon(Client):
    """A real `buttervolume run`."""

    def __init__(
        self, place: Place, directory: Path, shim: Shim | None = None, **environ: str
    ) -> None:
        self.place = place
        self.directory = directory
        directory.mkdir(exist_ok=True)
        self.environ = environment(place, directory, **environ)
        default = str(directory / "plugins/btrfs.sock")
        super().__init__(Path(self.environ.get("BUTTERVOLUME_SOCKET", default)))
        if shim is not None:
            self.environ["PATH"] = f"{shim.directory}:{self.environ['PATH']}"
        self._number = random.randrange(1 << 32)
        self.process: subprocess.Popen[bytes] | None = None

    def launch(self) -> subprocess.Popen[bytes]:
        """Start the process and don't wait for anything."""
        with self._file("out").open("ab") as out, self._file("err").open("ab") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "buttervolume", "run"],
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd="/",
            )
        return self.process

    def start(self) -> Self:
        """Start it and wait until it answers."""
        process = self.launch()
        wait_until(
            lambda: self.answers() or process.poll() is not None,
            timeout=60,
            what="the daemon to answer",
        )
        assert process.poll() is None, self.stderr()
        return self

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it as `docker plugin disable` or Ctrl-C would, and see that it ends well."""
        assert self.process is not None
        self.process.send_signal(number)
        assert self.process.wait(60) == 0, self.stderr()
        assert not self.path.exists(), "the socket is left over"

    def kill(self) -> None:
        """End it as a crash would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(60)

    def close(self) -> None:
        """Leave no process behind, whatever the test has done."""
        if self.process is not None and self.process.poll() is None:
            self.kill()

    def stdout(self) -> str:
        return self._file("out").read_text()

    def stderr(self) -> str:
        return self._file("err").read_text()

    def _file(self, kind: str) -> Path:
        return self.directory / f"{self._number}.{kind}"

    def cli(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run `buttervolume` against this daemon."""
        return cli(arguments, self.environ | environ)


def environment(place: Place, directory: Path, **environ: str) -> dict[str, str]:
    """The environment of everything that works with this place."""
    ours = {key: value for key, value in os.environ.items() if not key.startswith("BUTTERVOLUME_")}
    return ours | {
        "PYTHONPATH": str(REPOSITORY),
        "BUTTERVOLUME_VOLUMES_PATH": str(place.volumes),
        "BUTTERVOLUME_SNAPSHOTS_PATH": str(place.snapshots),
        "BUTTERVOLUME_SCHEDULE": str(directory / "schedule.csv"),
        "BUTTERVOLUME_RUNPATH": str(directory),
        **environ,
    }


def cli(
    arguments: Sequence[str], environ: Mapping[str, str], timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run `buttervolume` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "buttervolume", *arguments],
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
