"""`buttervolume peer` in the managed plugin: two plugins, and a plugin and a daemon, over real ssh
with keys that can do what they are for and nothing else."""

import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.docker.plugin_harness import SSH, PluginHost
from tests.hosts.harness import SNAPSHOTS, VOLUMES
from tests.hosts.harness import Host as DaemonHost
from tests.support.machine import BUTTERVOLUME, Machine, in_checkout
from tests.support.namespaces import Process
from tests.support.network import Network
from tests.support.wait import wait_until

pytest_plugins = ["tests.docker.plugin_fixtures"]

MEBIBYTE = 1 << 20
GREETING = '{"buttervolume":1,"node":"x","verbs":["look","receive","send"],"stream":2,"time":1}'


@dataclass(frozen=True)
class Side:
    """A host with the plugin or the daemon: what the tests do the same way on both."""

    machine: Machine
    ssh: str
    """The directory of its keys."""
    run: Callable[[str], str]
    """Runs a shell script where sshd does."""
    create: Callable[[str], None]

    @property
    def address(self) -> str:
        assert self.machine.address
        return self.machine.address

    def fill(self, volume: str, name: str, size: int = 1000) -> None:
        self.machine.path(f"{VOLUMES}/{volume}/{name}").write_bytes(os.urandom(size))

    def snapshot(self, volume: str) -> str:
        return self.machine.cli("snapshot", volume).stdout.strip()

    def names(self, volume: str) -> list[str]:
        """All that there is of a volume's name among the snapshots."""
        found = self.machine.path(SNAPSHOTS).iterdir()
        return sorted(path.name for path in found if path.name.startswith(f"{volume}@"))

    def left(self) -> list[str]:
        """Notes of copies that are not whole."""
        found = self.machine.path(SNAPSHOTS).iterdir()
        return [path.name for path in found if path.name.startswith(".buttervolume-receiving")]

    def same(self, other: "Side", snapshot: str) -> bool:
        """Whether both have the same files in a snapshot."""
        script = f"cd {SNAPSHOTS}/{snapshot} && find . -type f -exec sha256sum {{}} + | sort"
        mine, theirs = (side.machine.run("sh", "-c", script).stdout for side in (self, other))
        return mine == theirs != ""

    def parent(self, snapshot: str) -> str:
        shown = self.machine.run("btrfs", "subvolume", "show", f"{SNAPSHOTS}/{snapshot}").stdout
        line = next(line for line in shown.splitlines() if "Parent UUID" in line)
        return line.split()[-1]

    def let_in(self, other: "Side", *roles: str) -> None:
        """Let the other host's key do what these roles allow, with the volumes named db…"""
        key = other.machine.path(f"{other.ssh}/id_ed25519.pub")
        if not key.exists():
            other.machine.run("mkdir", "-p", "-m", "700", other.ssh)
            file = f"{other.ssh}/id_ed25519"
            other.machine.run("ssh-keygen", "-qt", "ed25519", "-N", "", "-f", file)
        wanted = " ".join(f"--authorize {role}" for role in roles)
        ask = f"buttervolume peer {wanted} --volumes 'db*' --node other"
        line = self.run(f"printf %s {shlex.quote(key.read_text())} | {ask}")
        assert line.startswith('restrict,command="buttervolume peer --role ')
        self.authorize(line)

    def let_in_to_a_liar(self, other: "Side", script: str) -> None:
        """Let the other host's key meet this script, whatever it asks for."""
        key = other.machine.path(f"{other.ssh}/id_ed25519.pub").read_text()
        self.machine.write(f"{self.ssh}/liar", f"{script}\n")
        self.authorize(f'restrict,command="sh /root/.ssh/liar" {key}')

    def authorize(self, line: str) -> None:
        self.machine.write(f"{self.ssh}/authorized_keys", line)
        self.machine.run("chmod", "-R", "go-rwx", self.ssh)


def of_plugin(host: PluginHost) -> Side:
    """The plugin, started anew: an earlier test has taken away all that it keeps of ssh."""
    host.disable("--force")
    host.enable()
    wait_until(host.machine.path(f"{SSH}/config").exists, 60, "the entrypoint")
    return Side(host.machine, SSH, lambda script: host.inside("sh", "-c", script), host.create)


@pytest.fixture
def two_plugins(plugin: PluginHost, peer: PluginHost) -> tuple[Side, Side]:
    return of_plugin(plugin), of_plugin(peer)


@pytest.fixture(scope="session")
def session_daemon(
    network: Network, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DaemonHost]:
    with DaemonHost("gamma", tmp_path_factory.mktemp("daemon"), network, size="2G") as host:
        host.boot()
        host.install()
        host.run("mkdir", "-p", "-m", "700", "/root/.ssh")
        # as the plugin does by default
        host.write("/root/.ssh/config", "Host *\n    StrictHostKeyChecking accept-new\n")
        yield host


@pytest.fixture
def plugin_and_daemon(
    plugin: PluginHost, session_daemon: DaemonHost
) -> Iterator[tuple[Side, Side]]:
    host = session_daemon
    host.run("rm", "-f", "/root/.ssh/known_hosts")  # the plugin may have a new key
    side = Side(host, "/root/.ssh", lambda script: host.run("sh", "-c", script).stdout, host.create)
    yield of_plugin(plugin), side
    script = f"cd {SNAPSHOTS} && for s in *; do [ ! -e $s ] || btrfs sub delete $s; done"
    host.run("sh", "-c", script)
    for path in host.path(VOLUMES).iterdir():
        if not path.name.startswith("."):
            host.api.call("Remove", Name=path.name)
    host.cli("removed", "--purge")


@pytest.fixture(params=["two_plugins", "plugin_and_daemon", "daemon_and_plugin"])
def sides(request: pytest.FixtureRequest) -> tuple[Side, Side]:
    """The host where the volume is, and the other."""
    if request.param == "daemon_and_plugin":
        other, here = request.getfixturevalue("plugin_and_daemon")
        return here, other
    found: tuple[Side, Side] = request.getfixturevalue(request.param)
    return found


def wait_for_sshd(side: Side, other: Side) -> None:
    """Wait until the other host can log in; the plugin looks every 5 seconds for its first key."""
    ask = ("ssh", "-p", "1122", "-oBatchMode=yes", "-oStrictHostKeyChecking=no")
    known = ("-oUserKnownHostsFile=/dev/null", "-i", f"{other.ssh}/id_ed25519")

    def answers() -> bool:
        asked = other.machine.run(*ask, *known, side.address, "buttervolume peer", check=False)
        return "buttervolume" in asked.stdout

    wait_until(answers, 60, f"the sshd of {side.machine.name}")


def test_a_key_for_all_three_roles_does_all_that_they_are_for(sides: tuple[Side, Side]) -> None:
    here, there = sides
    there.let_in(here, "push", "pull", "sync")
    wait_for_sshd(there, here)

    # push: all, then changes; no script would get past the guard
    here.create("db")
    here.fill("db", "big", 4 * MEBIBYTE)
    first = here.snapshot("db")
    here.machine.cli("send", there.address, first)
    here.fill("db", "small")
    second = here.machine.cli("replicate", there.address, "db").stdout.strip()
    assert here.same(there, first)
    assert here.same(there, second)
    assert there.parent(second) != "-", "it came as changes"

    # pull, of changes that were made there, and what it takes to have them back
    there.machine.cli("restore", second, "db")
    there.fill("db", "theirs")
    third = there.snapshot("db")
    assert here.machine.cli("receive", there.address, "db").stdout.split() == [third]
    assert here.same(there, third)
    assert f"{third}@other" in there.names("db"), "the parent of what comes next is kept"
    here.machine.cli("restore", "--from", there.address, "db")
    assert here.machine.path(f"{VOLUMES}/db/theirs").exists()

    # sync
    there.fill("db", "newest")
    here.machine.cli("sync", "db", there.address)
    assert here.machine.path(f"{VOLUMES}/db/newest").exists()

    # and nothing else
    here.create("other")
    refused = here.machine.cli("send", there.address, here.snapshot("other"), check=False)
    assert refused.returncode == 1
    assert "this key is not for this volume" in refused.stderr
    assert there.names("other") == []
    assert here.left() == there.left() == []


@dataclass(frozen=True)
class Slow:
    """A send that has begun and takes a while."""

    here: Side
    there: Side
    snapshot: str
    process: Process
    log: Path
    network: Network

    def error(self) -> str:
        """What it says in the end."""
        wait_until(lambda: "buttervolume: " in self.log.read_text(), 120, "the end of the send")
        return self.log.read_text()


@pytest.fixture(params=["two_plugins", "plugin_and_daemon"])
def slow(request: pytest.FixtureRequest, network: Network, tmp_path: Path) -> Iterator[Slow]:
    here, there = request.getfixturevalue(request.param)
    there.let_in(here, "push")
    wait_for_sshd(there, here)
    here.create("db")
    here.fill("db", "big", 8 * MEBIBYTE)
    snapshot = here.snapshot("db")
    network.limit(here.machine.name, "4mbit")
    log = tmp_path / "log"
    send = (*BUTTERVOLUME, "send", there.address, snapshot)
    process = here.machine.popen(*send, env=in_checkout(None), log=log)
    wait_until(lambda: snapshot in there.names("db"), 60, "the copy to begin")
    yield Slow(here, there, snapshot, process, log, network)
    process.kill()
    with suppress(AssertionError):
        network.restore(here.machine.name)
    with suppress(AssertionError):
        network.unlimit(here.machine.name)


def ends_well_after_all(slow: Slow) -> None:
    """What was left is removed by the next send, and that is a good one."""
    slow.here.machine.cli("send", slow.there.address, slow.snapshot, timeout=120)
    assert slow.here.same(slow.there, slow.snapshot)
    assert slow.there.left() == []


def test_a_slow_peer_is_waited_for(slow: Slow) -> None:
    assert slow.process.wait(300) == 0, slow.log.read_text()

    assert slow.here.same(slow.there, slow.snapshot)
    assert slow.there.left() == []


def test_the_network_is_cut(slow: Slow) -> None:
    slow.network.cut(slow.here.machine.name)

    assert slow.there.address in slow.error()
    wait_until(lambda: slow.there.names("db") == [], 120, "sshd there to notice it")

    slow.network.restore(slow.here.machine.name)
    slow.network.unlimit(slow.here.machine.name)
    ends_well_after_all(slow)


def test_the_peer_is_killed(slow: Slow) -> None:
    slow.there.run("kill -9 $(grep -lza '^peer' /proc/[0-9]*/cmdline | cut -d/ -f3)")

    assert slow.there.address in slow.error()

    slow.network.unlimit(slow.here.machine.name)
    ends_well_after_all(slow)


LIARS = {
    "silent": f"echo '{GREETING}'; exec sleep 5",
    "endless": "exec cat /dev/zero",
    "another protocol": "echo '{\"buttervolume\": 2}'; exec sleep 5",
    "no buttervolume": "echo 'sh: buttervolume: not found' >&2; exit 127",
}


def test_what_lies_is_an_error_and_leaves_nothing(sides: tuple[Side, Side]) -> None:
    here, there = sides
    there.let_in(here, "push")
    wait_for_sshd(there, here)
    here.create("db")
    snapshot = here.snapshot("db")

    for name, liar in LIARS.items():
        there.let_in_to_a_liar(here, liar)
        for command in (["send", there.address, snapshot], ["receive", there.address, "db"]):
            refused = here.machine.cli(*command, check=False, timeout=120)

            assert refused.returncode == 1, (name, command)
            assert there.address in refused.stderr
            assert len(refused.stderr) < 2500
    assert here.names("db") == [snapshot]
    assert there.names("db") == []
    there.let_in(here, "push")
    here.machine.cli("send", there.address, snapshot)


def test_a_disk_that_is_full_is_an_error_and_leaves_nothing(sides: tuple[Side, Side]) -> None:
    here, there = sides
    there.let_in(here, "push")
    wait_for_sshd(there, here)
    here.create("db")
    here.fill("db", "file", MEBIBYTE)
    snapshot = here.snapshot("db")
    ballast = there.machine.path(f"{SNAPSHOTS}/ballast")
    disk = os.statvfs(ballast.parent)
    size = (disk.f_bavail - disk.f_blocks * 8 // 100) * disk.f_frsize  # a tenth is to be kept
    there.machine.run("fallocate", "-l", str(size), f"{SNAPSHOTS}/ballast")
    try:
        refused = here.machine.cli("send", there.address, snapshot, check=False)
    finally:
        ballast.unlink()

    assert "are to be kept (MIN_FREE)" in refused.stderr
    assert there.names("db") == []
    assert there.left() == []


def test_its_sshd_forwards_nothing_and_gives_no_terminal(two_plugins: tuple[Side, Side]) -> None:
    """Even to a key without a guard."""
    here, there = two_plugins
    there.let_in(here, "push")
    there.authorize(here.machine.path(f"{here.ssh}/id_ed25519.pub").read_text())
    there.machine.write(f"{there.ssh}/rc", "touch /root/.ssh/rc-was-run\n")
    wait_for_sshd(there, here)
    login = ("ssh", "-p", "1122", "-i", f"{here.ssh}/id_ed25519", "-oBatchMode=yes")
    known = ("-oStrictHostKeyChecking=no", "-oUserKnownHostsFile=/dev/null")

    def said(*options: str) -> str:
        asked = here.machine.run(*login, *known, *options, there.address, "true", check=False)
        return asked.stdout + asked.stderr

    assert "PTY allocation request failed" in said("-tt")
    assert "remote port forwarding failed" in said("-R", "4711:localhost:22")
    through = here.machine.run(*login, *known, "-W", "localhost:1122", there.address, check=False)
    assert "SSH-2.0" not in through.stdout
    assert "remote port forwarding failed" in said("-R", "/run/tunnel:localhost:22")
    assert not there.machine.path(f"{there.ssh}/rc-was-run").exists()
