"""A machine with a dockerd and the daemon at its legacy socket, and words for what users do."""

import http.client
import json
import socket
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.support.docker import Dockerd
from tests.support.machine import DATA, Daemon, Machine
from tests.support.wait import wait_until

VOLUMES = f"{DATA}/volumes"
SNAPSHOTS = f"{DATA}/snapshots"
LOCK = ".buttervolume-lock"
WRITE_ON = "while :; do echo $((i += 1)) >> /data/log; usleep 20000; done"
"""What a container does that writes into its volume at /data until it ends."""


class Host:
    """One machine with a dockerd, and with the daemon while it is started."""

    def __init__(self, machine: Machine, dockerd: Dockerd) -> None:
        self.machine = machine
        self.dockerd = dockerd
        self.docker = dockerd.docker
        self.cli = machine.cli
        self.daemons: list[Daemon] = []

    # The daemon

    @property
    def daemon(self) -> Daemon:
        """The one that was started last."""
        return self.daemons[-1]

    def start_daemon(self) -> Daemon:
        self.daemons.append(self.machine.start_daemon())
        return self.daemon

    # Containers

    def run(self, volumes: str | Iterable[str], script: str, image: str = "busybox") -> str:
        """Run a script in a new container with these volumes (`db:/data`); what it printed."""
        return self.docker(
            "run", "--rm", "--network=none", *_options(volumes), image, "sh", "-c", script
        ).stdout

    def start(self, container: str, volumes: str | Iterable[str], script: str = WRITE_ON) -> None:
        """Start a container that runs until it is stopped; by default it writes into /data/log."""
        options = [f"--name={container}", "--network=none", "--init", *_options(volumes)]
        self.docker("run", "--detach", *options, "busybox", "sh", "-c", script)

    def execute(self, container: str, script: str) -> str:
        """Run a script in a running container; what it printed."""
        return self.docker("exec", container, "sh", "-c", script).stdout

    def lines(self, container: str) -> int:
        """How many lines the container that writes on sees in its log."""
        return int(self.execute(container, "touch /data/log; wc -l < /data/log"))

    def wait_until_it_writes(self, container: str) -> int:
        """Wait until the container has written another line; how many there are then."""
        before = self.lines(container)
        wait_until(lambda: self.lines(container) > before, what=f"{container} to write on")
        return before + 1

    def refused(self, *args: str) -> str:
        """What docker says of a command that it must not carry out."""
        ended = self.docker(*args, check=False)
        assert ended.returncode, f"docker {args} was done: {ended.stdout}"
        return ended.stderr

    # Volumes

    def create(self, volume: str, *options: str) -> None:
        self.docker("volume", "create", "--driver=btrfs", *options, volume)

    def create_many(self, volumes: Iterable[str], labels: dict[str, str]) -> None:
        """Create them over Docker's socket: a docker client for each would take long."""
        connection = _DockerConnection(self.machine.path("/run/docker.sock"))
        with closing(connection):
            for volume in volumes:
                body = {"Name": volume, "Driver": "btrfs", "Labels": labels}
                headers = {"Content-Type": "application/json"}
                connection.request("POST", "/volumes/create", json.dumps(body), headers)
                answer = connection.getresponse()
                assert answer.status == 201, answer.read()
                answer.read()

    def inspect(self, volume: str) -> dict[str, Any]:
        """What Docker knows of a volume."""
        found: list[dict[str, Any]] = json.loads(self.docker("volume", "inspect", volume).stdout)
        return found[0]

    def labels(self, volume: str) -> dict[str, str]:
        """The labels of a volume: Docker keeps them, and loses them when it forgets a volume."""
        return self.inspect(volume)["Labels"] or {}

    def listed(self) -> list[str]:
        """The names that `docker volume ls` shows of our driver."""
        return self.docker("volume", "ls", "--quiet", "--filter=driver=btrfs").stdout.split()

    def path(self, volume: str) -> Path:
        """Where the test finds a volume's files."""
        return self.machine.path(f"{VOLUMES}/{volume}")

    def snapshot_path(self, snapshot: str) -> Path:
        """Where the test finds a snapshot's files."""
        return self.machine.path(f"{SNAPSHOTS}/{snapshot}")

    def entries(self) -> set[str]:
        """Everything in the directories of volumes and snapshots and beside them, hidden or not."""
        places = (self.machine.path(place) for place in (DATA, VOLUMES, SNAPSHOTS))
        return {str(entry) for place in places for entry in place.iterdir()}

    # Between two tests

    def repair(self) -> None:
        """Start again what a test that failed has left dead."""
        if self.daemon.process.poll() is not None:
            self.start_daemon()
        if self.dockerd.process.poll() is not None:
            self.dockerd.start()

    def clear(self) -> None:
        """Remove what a test has left, after checking that the daemon has left nothing itself."""
        if containers := self.docker("ps", "--all", "--quiet").stdout.split():
            self.docker("rm", "--force", *containers)
        if volumes := self.listed():
            self.docker("volume", "rm", *volumes)
        self.cli("removed", "--purge")
        script = f"cd {SNAPSHOTS} && for s in *; do [ ! -e $s ] || btrfs subvolume delete $s; done"
        self.machine.run("sh", "-c", script)
        assert {entry.name for entry in self.path("").iterdir()} == {LOCK}
        for daemon in self.daemons:
            assert "Traceback" not in daemon.log(), daemon.log()
        del self.daemons[:-1]


class _DockerConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("docker", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _options(volumes: str | Iterable[str]) -> list[str]:
    return [f"--volume={volume}" for volume in ([volumes] if isinstance(volumes, str) else volumes)]
