"""Nodes of a swarm that have the managed plugin in place of a daemon, set up as the manual says."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.btrfs.harness import Client
from tests.docker.plugin_harness import DRIVER, SSH, Built, PluginHost, shell_functions
from tests.support.manual import text
from tests.support.network import Network
from tests.support.wait import wait_until
from tests.swarm.harness import PATIENCE, VOLUMES, Node


def shown(pattern: str) -> str:
    """What a line of the manual shows for the group of a pattern."""
    found = re.search(f"^ +{pattern}$", text("howto/swarm"), re.MULTILINE)
    assert found, f"the manual has no {pattern}"
    return found[1]


class PluginNode(Node):
    """One host of the swarm, with the plugin."""

    driver = DRIVER
    host: PluginHost

    def __init__(self, built: Built, name: str, directory: Path, network: Network) -> None:
        super().__init__(name, directory, network)
        self._built = built

    def _set_up(self) -> None:
        self.machine.cli("init")

    def _introduce_to_docker(self) -> None:
        """A plugin needs no more than to be there."""
        self.host = PluginHost(self.machine, self.dockerd, self._built.directory)
        self.host.enabling = tuple(shown("docker plugin enable (.+) anybox/buttervolume").split())
        self._heal_daemon()

    def shell(self, script: str) -> str:
        """Run a script with the shell functions of the manual; what it printed."""
        return self.machine.run("bash", "-ec", f"{shell_functions()}\n{script}").stdout

    # Keys

    def let_in(self, other: Node) -> None:
        """Let another node log in here, as the manual says, and know its name."""
        key, public = f"{SSH}/id_ed25519", f"{other.name}.pub"
        if not other.machine.path(key).exists():
            other.machine.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
        self.machine.write(f"/root/{public}", other.machine.path(f"{key}.pub").read_text())
        authorize = f"buttervolume peer --authorize follow --node {other.name}"
        self.shell(f"{authorize} < /root/{public} >> {SSH}/authorized_keys")
        self.machine.run(
            "sh", "-c", "cat >> /etc/hosts", input=f"{other.machine.address} {other.name}\n"
        )

    def all_are_let_in(self, nodes: list[Node]) -> None:
        """Try each way, as the manual says."""
        for node in nodes:
            if node is not self:
                reaches = partial(self._reaches, node)
                wait_until(reaches, PATIENCE, f"{self.name} to reach {node.name}")

    def _reaches(self, other: Node) -> bool:
        """Whether the plugin there lets the one here in; it looks for keys every 5 seconds."""
        ask = shown("# (drunc exec .* ssh .*)").replace("web2", other.name)
        asked = self.shell(f"{ask} || true")
        if not asked:
            return False
        said = json.loads(asked)
        assert said["node"] == other.name
        return "follow" in said["verbs"]

    # What runs there

    @property
    def api(self) -> Client:
        return Client(self.machine.path("/run/plugin/btrfs.sock"))

    @contextmanager
    def besides(self, volume: str) -> Iterator[None]:
        """A container that has the directory of a volume mounted, of which the plugin is told
        nothing."""
        mount = f"--volume={VOLUMES}/{volume}:/data"
        options = ("--detach", "--name=besides", "--network=none", mount)
        self.docker("run", *options, "busybox", "sleep", "100000")
        try:
            yield
        finally:
            self.docker("rm", "--force", "besides")

    def upgrade(self) -> None:
        """Put the plugin in its own place, as the manual says of one that is built."""
        self.host.disable("--force")
        self.docker("plugin", "rm", "--force", self.driver)
        self._heal_daemon()

    def _heal_daemon(self) -> None:
        self.host.repair()
        # the path of a socket may have 107 characters, and the plugin's id has 64
        self.machine.run("ln", "-sfT", f"docker/plugins/{self.host.id}", "/run/plugin")

    def _check_logs(self) -> None:
        assert "Traceback" not in self.host.log()
