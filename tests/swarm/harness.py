"""Three hosts that are a Docker swarm, each with the daemon, and what can happen to them."""

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, Self, TypeVar
from urllib.parse import urlencode

from tests.btrfs.harness import Client, UnixConnection
from tests.support.docker import Dockerd
from tests.support.machine import DATA, Daemon, Machine
from tests.support.network import Network
from tests.support.wait import wait_until

T = TypeVar("T")

NAMES = ("alpha", "beta", "gamma")
"""The first one is the manager: a cut manager decides nothing. Services run on the others."""
VOLUMES = f"{DATA}/volumes"
SNAPSHOTS = f"{DATA}/snapshots"
PATIENCE = 150
"""Seconds for what Docker does in its own time: it calls a node down after 10 to 16 of them."""
USED = "used"
"""A volume that every node has, always."""
WITNESS = "/witness"
"""Where containers see a directory that is on no node, and so survives all of them."""

WRITE_ON = """\
me=$(cat /proc/sys/kernel/random/uuid)
mkdir -p /witness/starts /witness/lines
last=$(tail -n 1 /data/log 2>/dev/null)
echo "$NODE ${last:-nothing}" > /witness/starts/.$me
mv /witness/starts/.$me /witness/starts/$me
while :; do
    line=$me:$((i += 1))
    echo $line >> /data/log && echo $line >> /witness/lines/$me
    usleep 50000
done
"""
"""Writes lines into the volume for ever, and after each one into the witness that it has; before,
what it found as the last line."""


class Node:
    """One host of the swarm, on disks that outlive it."""

    driver = "btrfs"
    """What Docker calls the daemon there."""
    machine: Machine
    dockerd: Dockerd
    daemon: Daemon

    def __init__(self, name: str, directory: Path, network: Network) -> None:
        self.name = name
        self.network = network
        self._directory = directory / name
        self._disks = self._directory / "disks"
        self._disks.mkdir(parents=True)
        self._boots = 0
        self._daemons: list[Daemon] = []

    # Power

    def boot(self) -> None:
        """Start the host, with all that runs on it, on what its disks hold."""
        self._boots += 1
        directory = self._directory / f"boot-{self._boots}"
        self.machine = Machine(self.name, directory, self.network, disks=self._disks)
        with ExitStack() as stack:
            stack.enter_context(self.machine)
            self.machine.write("/etc/resolv.conf", "")  # else looking names up takes for ever
            self._set_up()
            self.dockerd = Dockerd(self.machine)
            stack.enter_context(self.dockerd)
            self._introduce_to_docker()
            stack.pop_all()  # it is ended by `cut_power`

    def cut_power(self) -> None:
        """Kill its process 1, and so all of them, at once."""
        if self.is_on():
            self.dockerd.leave_no_cgroups()
            with suppress(ProcessLookupError):
                os.kill(self.machine.pid, signal.SIGKILL)
            self.machine.close()

    def destroy_disk(self) -> None:
        """Let the host, which is off, have an empty disk for its volumes at its next start."""
        (disk,) = self._disks.glob("*.btrfs")
        disk.unlink()

    def is_on(self) -> bool:
        return hasattr(self, "dockerd") and Path(f"/proc/{self.machine.pid}").exists()

    def _set_up(self) -> None:
        machine = self.machine
        machine.run("umount", "/etc/buttervolume")  # what is in there is to outlive the machine
        machine.run("rm", "-rf", "/etc/buttervolume")
        machine.cli("init")
        machine.install()
        keys = self._disks / "keys.tar"
        if keys.exists():
            machine.run("usermod", "--password", "*", "root")
            machine.run("tar", "--extract", "--directory=/", f"--file={keys}")
            machine.launch_sshd()
        else:
            machine.start_sshd()
        self.start_daemon()

    def _introduce_to_docker(self) -> None:
        """Docker tells the swarm of no driver that it has not used."""
        self.docker("volume", "create", f"--driver={self.driver}", USED)

    def let_in(self, other: "Node") -> None:
        """Let another node log in here."""
        self.machine.authorize(other.machine)

    def all_are_let_in(self, _: "list[Node]") -> None:
        """Put what ssh has onto the disks, so that it is there after the next start."""
        what = ("etc/ssh", "root/.ssh")
        self.machine.run(
            "tar", "--create", "--directory=/", f"--file={self._disks}/keys.tar", *what
        )

    # What runs there

    def start_daemon(self) -> Daemon:
        self.daemon = self.machine.start_daemon(BUTTERVOLUME_TIMER="1")
        self._daemons.append(self.daemon)
        return self.daemon

    def docker(self, *args: str, check: bool = True) -> CompletedProcess[str]:
        return self.dockerd.docker(*args, check=check)

    def cli(self, *args: str, check: bool = True) -> CompletedProcess[str]:
        return self.machine.cli(*args, check=check)

    @property
    def api(self) -> Client:
        return Client(self.machine.path("/run/docker/plugins/btrfs.sock"))

    def status(self, volume: str) -> dict[str, Any]:
        """What Docker can know of a volume; empty if there is none of that name."""
        answer = self.api.post("Get", Name=volume)
        return {} if answer.error else answer.json["Volume"]["Status"]

    def path(self, volume: str) -> Path:
        """Where the test finds a volume's files."""
        return self.machine.path(f"{VOLUMES}/{volume}")

    def ask(self, path: str) -> Any:
        """Ask Docker over its socket: the command takes a processor for a moment each time."""
        connection = UnixConnection(self.machine.path("/run/docker.sock"), PATIENCE)
        with closing(connection):
            connection.request("GET", path)
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            return json.loads(answer.read())

    def containers(self) -> list[str]:
        """All that there are, be they running or not."""
        return [container["Id"] for container in self.ask("/containers/json?all=1")]

    def runs_anything(self) -> bool:
        """Whether a container runs there."""
        return bool(self.ask("/containers/json"))

    def contents(self, volume: str) -> Iterator[tuple[str, Path]]:
        """Every copy of a volume that the disk holds, by name: itself, and its snapshots."""
        if self.path(volume).exists():
            yield volume, self.path(volume)
        for snapshot in self.machine.path(SNAPSHOTS).iterdir():
            if snapshot.name.startswith(f"{volume}@"):
                yield snapshot.name, snapshot

    def heal(self) -> None:
        """Start again whatever of it does not run any more."""
        if not self.is_on():
            self.boot()
        self._heal_daemon()
        if self.dockerd.process.poll() is not None:
            self.dockerd.start()

    def _heal_daemon(self) -> None:
        if self.daemon.process.poll() is not None:
            self.start_daemon()

    def clear(self) -> None:
        """Remove what a test has left, once its containers have ended."""
        wait_until(lambda: not self.containers(), PATIENCE, f"no container on {self.name}")
        listed = self.docker("volume", "ls", "--quiet", f"--filter=driver={self.driver}")
        if volumes := [name for name in listed.stdout.split() if name != USED]:
            self.docker("volume", "rm", *volumes)
        self.api.call("Volume.Removed.Purge")
        script = f"cd {SNAPSHOTS} && for s in *; do [ ! -e $s ] || btrfs subvolume delete $s; done"
        self.machine.run("sh", "-c", script)
        self._check_logs()

    def _check_logs(self) -> None:
        for daemon in self._daemons:
            assert "Traceback" not in daemon.log(), daemon.log()
        self._daemons = [self.daemon]


@dataclass(frozen=True)
class Task:
    """A line of `docker service ps`."""

    node: str
    desired: str
    state: str
    """running, failed, rejected, shutdown and the like."""
    error: str


class Swarm:
    """The nodes, as a context manager; what else is wanted of it goes through its manager."""

    def __init__(
        self, directory: Path, make: Callable[[str, Path, Network], Node] = Node, *names: str
    ) -> None:
        """`make` makes a node; `names` are others than those of NAMES, in the same order."""
        self.directory = directory
        self._make = make
        self._names = names or NAMES
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.network = stack.enter_context(Network())
            self.nodes = [self._make(name, self.directory, self.network) for name in self._names]
            for node in self.nodes:
                stack.callback(node.cut_power)
            self._at_once(Node.boot)
            self._at_once(lambda node: node.dockerd.busybox_image())
            self._introduce()
            self._join()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def manager(self) -> Node:
        return self.nodes[0]

    @property
    def workers(self) -> list[Node]:
        return self.nodes[1:]

    def _at_once(self, act: Callable[[Node], None]) -> None:
        """Do something on all nodes side by side."""
        with ThreadPoolExecutor() as pool:
            for done in as_completed(pool.submit(act, node) for node in self.nodes):
                done.result()

    def _introduce(self) -> None:
        for node in self.nodes:
            for other in self.nodes:
                if other is not node:
                    node.let_in(other)
        for node in self.nodes:
            node.all_are_let_in(self.nodes)

    def _join(self) -> None:
        address = self.manager.machine.address
        self.manager.docker("swarm", "init", f"--advertise-addr={address}")
        token = self.manager.docker("swarm", "join-token", "--quiet", "worker").stdout.strip()
        for node in self.workers:
            here = f"--advertise-addr={node.machine.address}"
            node.docker("swarm", "join", f"--token={token}", here, f"{address}:2377")
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Wait until the manager takes every node for able to run something."""
        wait_until(lambda: set(self.states().values()) == {"ready"}, PATIENCE, "all nodes")

    def states(self) -> dict[str, str]:
        """What the manager thinks of each node: ready, down, unknown."""
        return {node["Description"]["Hostname"]: node["Status"]["State"] for node in self._nodes()}

    def tasks(self, service: str) -> list[Task]:
        """What `docker service ps` shows of a service, the latest last."""
        names = {node["ID"]: node["Description"]["Hostname"] for node in self._nodes()}
        wanted = urlencode({"filters": json.dumps({"service": [service]})})
        found = sorted(self.manager.ask(f"/tasks?{wanted}"), key=lambda task: task["CreatedAt"])
        return [
            Task(
                names.get(task.get("NodeID"), "nowhere"),
                task["DesiredState"],
                task["Status"]["State"],
                task["Status"].get("Err", ""),
            )
            for task in found
        ]

    def _nodes(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.manager.ask("/nodes")
        return found

    def node(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    def other_worker(self, node: Node) -> Node:
        return next(worker for worker in self.workers if worker is not node)

    # What an administrator does

    def drain(self, node: Node) -> None:
        """Have nothing run there any more."""
        self.manager.docker("node", "update", "--availability=drain", node.name)

    def activate(self, node: Node) -> None:
        """Allow it again."""
        self.manager.docker("node", "update", "--availability=active", node.name)

    def update(self, *arguments: str) -> None:
        """Change a service, and don't wait for what comes of it."""
        self.manager.docker("service", "update", "--detach", "--no-resolve-image", *arguments)

    @contextmanager
    def only(self, node: Node) -> Iterator[None]:
        """See that services which are made meanwhile begin on this worker."""
        other = self.other_worker(node)
        self.drain(other)
        yield
        self.activate(other)

    # Between two tests

    def heal(self) -> None:
        """Undo what a test has done to the network and to the nodes, and remove its services."""
        for node in self.nodes:
            if node.is_on():
                self.network.restore(node.name)
            node.heal()
        if services := self.manager.docker("service", "ls", "--quiet").stdout.split():
            self.manager.docker("service", "rm", *services)
        for shown in self._nodes():
            if shown["Spec"]["Availability"] != "active":
                self.activate(self.node(shown["Description"]["Hostname"]))
        self.wait_until_ready()
        self._at_once(Node.clear)


@dataclass(frozen=True)
class Start:
    """A container of the service that has begun to write."""

    id: str
    node: str
    after: str
    """The last line that it found."""
    lines: tuple[str, ...] = field(repr=False)
    """What it has surely written since."""


class Service:
    """A service with a volume of ours, whose every line is also written where it cannot be lost."""

    def __init__(
        self,
        swarm: Swarm,
        name: str,
        *options: str,
        driver: str = "",
        how: tuple[str, ...] = (),
    ) -> None:
        """The options are those of the volume: `every=1`. Its driver is ours, unless one is named;
        `how` are more options of the service: `--replicas=2`."""
        self.swarm = swarm
        self.name = self.volume = name
        self.witness = swarm.directory / f"witness-{name}"
        self.witness.mkdir()
        volume = ["type=volume", f"source={self.volume}", "target=/data"]
        volume += [f"volume-driver={driver or swarm.manager.driver}"]
        volume += [f"volume-opt={option}" for option in options]
        swarm.manager.docker(
            "service",
            "create",
            "--detach",
            "--network=host",
            "--no-resolve-image",
            "--constraint=node.role==worker",
            "--restart-delay=1s",
            "--stop-grace-period=1s",
            f"--name={name}",
            *how,
            "--env=NODE={{.Node.Hostname}}",
            f"--mount={','.join(volume)}",
            f"--mount=type=bind,source={self.witness},target={WITNESS}",
            "busybox",
            "sh",
            "-c",
            WRITE_ON,
        )

    def starts(self) -> list[Start]:
        """Every container that has begun, the earliest first."""
        directory = self.witness / "starts"
        begun = list(directory.glob("[0-9a-f]*")) if directory.exists() else []
        return [
            self._start(file) for file in sorted(begun, key=lambda file: file.stat().st_mtime_ns)
        ]

    def _start(self, file: Path) -> Start:
        node, after = file.read_text().split()
        written = self.witness / "lines" / file.name
        return Start(
            file.name, node, after, tuple(written.read_text().split()) if written.exists() else ()
        )

    def wait_for_start(self, number: int = 1, on: Node | None = None) -> Start:
        """Wait until that many containers have begun, the last of them on that node, if one is
        named, and has written."""

        def begun() -> Start | None:
            starts = self.starts()
            here = len(starts) >= number and (on is None or starts[-1].node == on.name)
            return starts[-1] if here and starts[-1].lines else None

        return self._explained(begun, f"start {number} on {on.name if on else 'any node'}")

    def wait_for_error(self, pattern: str, on: Node) -> None:
        """Wait until the swarm shows a task of that node with such an error."""
        self._explained(
            lambda: [
                task
                for task in self.swarm.tasks(self.name)
                if task.node == on.name and re.search(pattern, task.error)
            ],
            f"the error {pattern!r} on {on.name}",
        )

    def forks(self) -> list[str]:
        """What the nodes say that they keep beside the line that goes on."""
        return [
            f"{fork} on {node.name}"
            for node in self.swarm.nodes
            for fork in node.status(self.volume).get("Forks", [])
        ]

    def wait_for_copies(self, owner: Node) -> None:
        """Wait until every other node has a snapshot of what the service has written there."""
        for node in self.swarm.nodes:
            if node is not owner:
                self._explained(
                    lambda node=node: node.api.snapshot_names(self.volume),  # type: ignore[misc]
                    f"a copy on {node.name}",
                )

    def _explained(self, condition: Callable[[], T | None], what: str) -> T:
        try:
            found = wait_until(condition, PATIENCE, f"{self.name}: {what}", 0.1)
        except AssertionError as error:
            error.add_note("\n".join(map(str, [*self.swarm.tasks(self.name), *self.starts()])))
            raise
        assert found is not None  # which mypy does not know
        return found

    def latest(self) -> Start:
        """The container that began last."""
        return self.starts()[-1]

    def moments(self, start: Start) -> tuple[float, float]:
        """When a container began, and when it wrote last, in seconds since 1970."""
        begun, wrote = (self.witness / kind / start.id for kind in ("starts", "lines"))
        return begun.stat().st_mtime, wrote.stat().st_mtime

    def wait_until_it_writes(self, start: Start) -> None:
        """Wait until a container has written another line."""
        file = self.witness / "lines" / start.id
        size = file.stat().st_size
        self._explained(lambda: file.stat().st_size > size or None, f"{start.id} to write on")

    def assert_nothing_is_lost(self) -> None:
        """Every line that was ever written is in a copy that some node has."""
        written = {line for start in self.starts() for line in start.lines}
        kept = {
            line
            for node in self.swarm.nodes
            if node.is_on()
            for _, copy in node.contents(self.volume)
            if (copy / "log").exists()
            for line in (copy / "log").read_text().split()
        }
        assert written
        assert not written - kept

    def assert_one_line_or_fork(self) -> None:
        """What a container did not find of what was written before is soon shown as a fork."""
        if not self.is_one_line():
            self._explained(lambda: self.forks() or None, "a fork")

    def is_one_line(self) -> bool:
        with suppress(AssertionError):
            self.assert_one_line()
            return True
        return False

    def assert_one_line(self) -> None:
        """Every container found all that was ever written before it began."""
        starts = {start.id: start for start in self.starts()}
        followers: dict[str, list[int]] = {id_: [] for id_ in (*starts, "nothing")}
        for start in starts.values():
            before, _, number = start.after.partition(":")
            if start.lines or any(each.after.startswith(start.id) for each in starts.values()):
                followers[before].append(int(number or 0))
        assert len(followers.pop("nothing")) == 1
        for id_, numbers in followers.items():
            written = len(starts[id_].lines)
            # the last line may have reached the volume and not the witness
            assert numbers in ([], [written], [written + 1]), (id_, numbers, written)


def assert_all_is_there(*services: Service) -> None:
    """Each service goes on, and has lost nothing: all that was ever written is in one line."""
    for service in services:
        service.wait_until_it_writes(service.latest())
        service.assert_one_line()
        service.assert_nothing_is_lost()
        assert service.forks() == []
