"""Members of followed volumes, and what a swarm does with them."""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from buttervolume.names import RECEIVING
from tests.btrfs.harness import Client
from tests.hosts.harness import SNAPSHOTS, VOLUMES, Host
from tests.support.machine import BUTTERVOLUME, in_checkout
from tests.support.namespaces import Process
from tests.support.network import Network
from tests.support.wait import wait_until

IDS = count(1)
LONG = 90.0
"""Seconds in which what has to happen happens, on however busy a machine."""


LOCKER = """
import sys, time
from buttervolume.follow.link import Connector
with Connector(1122, "cleo")(sys.argv[2], sys.argv[1], 30) as link:
    link.lock(0)
    print("locked", flush=True)
    time.sleep(600)
"""
TELLER = """
import os, sys, time
from buttervolume.follow.link import Connector
with Connector(1122, "cleo")(sys.argv[2], sys.argv[1], 30) as link:
    line = link.report().standing.known
    print("seen", flush=True)
    while not os.path.exists(sys.argv[3]):
        time.sleep(0.1)
        link.report()  # else the other side ends the session after a minute
    link.hear(line, frozenset())
    print("told", flush=True)
"""
RELEASER = """
import os, sys
from buttervolume.config import load
from buttervolume.follow.attend import member_of
member = member_of(load(os.environ))
with member.lock(sys.argv[1], sys.argv[2], 30):
    member.release(sys.argv[1], sys.argv[2])
"""
KILLER = """
import os, signal

def install():
    from buttervolume.follow.acquire import Acquirer
    from buttervolume.follow.member import Member
    from buttervolume.store.volumes import Volumes
    from buttervolume.follow.machine import Role

    def killing(owner, name, before, when=lambda *a: True):
        real = getattr(owner, name)
        def killed(self, *arguments, **more):
            if before and when(*arguments):
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(self, *arguments, **more)
            if when(*arguments):
                os.kill(os.getpid(), signal.SIGKILL)
            return result
        setattr(owner, name, killed)

    def begins(volume, record):
        return record.begun is not None

    def owns(volume, record):
        return record.role is Role.OWNER and record.begun is None

    def grants(volume, record):
        return record.role is Role.GRANTED

    match os.environ["KILLED_AT"]:
        case "fetch":
            killing(Acquirer, "_bring", False)
        case "remember":
            killing(Member, "remember", False, begins)
        case "exchange":
            killing(Volumes, "exchange", False)
        case "remembered":
            killing(Member, "remember", False, owns)
        case "use":
            killing(Member, "use", False)
        case "snapshot":
            killing(Member, "snapshot", False)
        case "granted":
            killing(Member, "remember", False, grants)

install()
"""
"""Kills a process at a step. Python reads it when it starts."""


class Container:
    """A process that has a volume mounted for itself, as a container has."""

    def __init__(self, node: "Node", volume: str, user: str) -> None:
        self.node, self.volume, self.user = node, volume, user
        number = next(IDS)
        log = node.directory / f"container-{number}.log"
        script = 'mount --bind "$1" /mnt && echo up && exec sleep 1000'
        self.process: Process = node.popen(
            *("unshare", "-m", "sh", "-c", script, "sh", f"{VOLUMES}/{volume}"), log=log
        )
        wait_until(lambda: "up" in log.read_text(), LONG, "the container to be up")

    def write(self, name: str, text: str) -> None:
        """Write a file by way of the container's own mount, whatever has become of the name."""
        pid = self.process.inner_pid()
        Path(f"/proc/{pid}/root/mnt/{name}").write_text(text)

    def kill(self) -> None:
        """End it, and tell nobody."""
        pid = self.process.inner_pid() if self.process.poll() is None else None
        self.process.kill_group()
        wait_until(lambda: pid is None or not Path(f"/proc/{pid}").exists(), LONG, "it to end")

    def stop(self) -> None:
        """End it as Docker does."""
        self.kill()
        self.node.api.call("Unmount", Name=self.volume, ID=self.user)


class Node(Host):
    """A host that may be a member."""

    def follow(self, volume: str, members: str, **options: str) -> None:
        self.create(volume, follow=members, **options)

    def mount(self, volume: str, user: str = "") -> str:
        """The `Err` of a Mount; empty if it succeeded."""
        name = user or f"m{next(IDS)}"
        return self.start("Mount", Name=volume, ID=name).error(150)

    def start_service(self, volume: str, timeout: float = LONG) -> Container:
        """Mount as often as it takes, as swarm does, and start the container."""
        user = f"s{next(IDS)}"
        said = [""]

        def is_mounted() -> bool:
            said.append(self.mount(volume, user))
            return not said[-1]

        try:
            wait_until(is_mounted, timeout, f"{volume} to be mounted on {self.name}")
        except AssertionError as error:
            raise AssertionError(f"{error}: {said[-1]}\n{self.daemon.log()[-3000:]}") from error
        return Container(self, volume, user)

    def start_alone(self, volume: str) -> Container:
        """A container that runs on, whatever the daemon would say."""
        return Container(self, volume, f"a{next(IDS)}")

    def look_after(self, volume: str) -> None:
        """Have a round of this volume soon: a new daemon looks after all."""
        self.daemon.stop()
        self.boot()

    def is_locked(self, volume: str) -> bool:
        """Whether somebody has the volume's lock on this host."""
        file = f"/etc/buttervolume/follow/{volume}.lock"
        return self.run("flock", "-n", file, "true", check=False).returncode == 1

    def hold_lock(self, volume: str, other: Host) -> Process:
        """Lock a volume on another host, and hold it for as long as the link, and what is returned,
        are there."""
        log = self.directory / f"lock-{next(IDS)}.log"
        argv = (sys.executable, "-c", LOCKER, volume, other.name)
        holder = self.popen(*argv, env=in_checkout(None), log=log)
        wait_until(lambda: "locked" in log.read_text(), LONG, "the lock")
        return holder

    @contextmanager
    def in_a_round(self, volume: str, other: Host) -> Iterator[None]:
        """Look how a volume stands on another host before the block, and tell that host so after
        it, as a round does."""
        number = next(IDS)
        log, go_on = self.directory / f"round-{number}.log", self.directory / f"round-{number}"
        argv = (sys.executable, "-c", TELLER, volume, other.name, str(go_on))
        self.popen(*argv, env=in_checkout(None), log=log)
        wait_until(lambda: "seen" in log.read_text(), LONG, "the look")
        yield
        go_on.touch()
        wait_until(lambda: "told" in log.read_text(), LONG, "the end of the round")

    @contextmanager
    def receiving_nothing(self) -> Iterator[None]:
        """Let what is sent here not come in before the end of the block."""
        go_on = f"/run/go-on-{next(IDS)}"
        script = f"""
        case $1 in receive) while [ ! -e {go_on} ]; do sleep 0.1; done ;; esac
        exec "$real" "$@"
        """
        with self.shim("btrfs", script):
            try:
                yield
            finally:
                self.write(go_on, "")

    @contextmanager
    def release_to_nobody(self, volume: str, grantee: str) -> Iterator[None]:
        """Let a volume go to a member that never hears of it."""
        arguments = (volume, grantee)
        self.run(sys.executable, "-c", RELEASER, *arguments, env=in_checkout(None))
        yield

    @contextmanager
    def installed_as(self, name: str) -> Iterator[None]:
        """Let this host call itself something else when others log in."""
        program = shlex.join(BUTTERVOLUME)
        env = shlex.join(f"{k}={v}" for k, v in in_checkout({"BUTTERVOLUME_NODE": name}).items())
        self.install(f'exec env {env} {program} "$@"')
        try:
            yield
        finally:
            self.install()

    def boot_telling_all(self) -> None:
        """Start the daemon anew; it logs all it does."""
        self.daemon.stop()
        self._boot_with(BUTTERVOLUME_LOGLEVEL="DEBUG")

    def _boot_with(self, **env: str) -> None:
        self.daemon = self.start_daemon(**env)
        self.api = Client(self.path("/run/docker/plugins/btrfs.sock"))

    def boot_killed_at(self, step: str) -> None:
        """Start the daemon anew; it is killed as soon as it comes to a step."""
        self.daemon.stop()
        killer = self.path("/run/killer")
        killer.mkdir(exist_ok=True)
        (killer / "sitecustomize.py").write_text(KILLER)
        path = f"/run/killer:{in_checkout(None)['PYTHONPATH']}"
        self._boot_with(PYTHONPATH=path, KILLED_AT=step)

    @contextmanager
    def peer_killed_at(self, step: str) -> Iterator[None]:
        """Let the sessions of others be killed as soon as they come to a step."""
        killer = self.path("/run/killer")
        killer.mkdir(exist_ok=True)
        (killer / "sitecustomize.py").write_text(KILLER)
        path = f"/run/killer:{in_checkout(None)['PYTHONPATH']}"
        env = shlex.join(["env", f"PYTHONPATH={path}", f"KILLED_AT={step}"])
        self.install(f'exec {env} {shlex.join(BUTTERVOLUME)} "$@"')
        try:
            yield
        finally:
            self.install()

    def read(self, volume: str, name: str) -> str:
        """A file of a volume; empty if there is none."""
        path = self.file(volume, name)
        return path.read_text() if path.exists() else ""

    def status(self, volume: str) -> dict[str, Any]:
        found: dict[str, Any] = self.api.call("Get", Name=volume)["Volume"]["Status"]
        return found

    def forks(self, volume: str) -> list[str]:
        found: list[str] = self.status(volume).get("Forks", [])
        return found

    def problems(self, volume: str) -> list[tuple[str, str]]:
        """Kind and message of each problem that `status` shows of a volume."""
        answer = self.api.call("Status", Name=volume)
        return [(p["Kind"], p["Message"]) for p in answer["Problems"] if p["Volume"] == volume]

    def copies(self, volume: str) -> list[str]:
        """The snapshots, without markers."""
        return [name for name in self.snapshot_names(volume) if name.count("@") == 1]

    def unfinished(self, volume: str) -> list[str]:
        """The notes of copies that are not whole."""
        found = (path.name for path in self.path(SNAPSHOTS).iterdir())
        return [name for name in found if name.startswith(f"{RECEIVING}{volume}@")]

    def has_file(self, volume: str, name: str, text: str) -> bool:
        """Whether some snapshot has a file with that text."""
        return any(
            (path := self.copied_file(copy, name)).exists() and path.read_text() == text
            for copy in self.copies(volume)
        )


@dataclass(frozen=True)
class Trio:
    """Three hosts that may log in at each other."""

    network: Network
    ann: Node
    bob: Node
    cleo: Node

    @property
    def nodes(self) -> tuple[Node, ...]:
        return self.ann, self.bob, self.cleo

    def heal(self) -> None:
        for node in self.nodes:
            self.network.restore(node.name)
            node.boot()

    @contextmanager
    def without(self, *nodes: Node) -> Iterator[None]:
        """The others cannot reach these, and these not each other."""
        for node in nodes:
            self.network.black_hole(node.name)
        try:
            yield
        finally:
            for node in nodes:
                self.network.restore(node.name)

    @contextmanager
    def limited(self, node: Node, rate: str) -> Iterator[None]:
        """No more than this (`1mbit`) passes from and to a node."""
        self.network.limit(node.name, rate)
        try:
            yield
        finally:
            self.network.unlimit(node.name)
