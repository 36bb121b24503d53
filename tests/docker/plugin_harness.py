"""The managed plugin, built by docker/build.sh, and machines on which it is installed."""

import contextlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.docker.harness import Host
from tests.support.docker import Dockerd
from tests.support.machine import DATA, PATH, REPOSITORY, SSH_PORT, Machine
from tests.support.manual import text
from tests.support.network import Network
from tests.support.wait import wait_until

NAME = "anybox/buttervolume"
DRIVER = f"{NAME}:latest"
SSH = f"{DATA}/ssh"
CONFIG = f"{DATA}/config"
PLUGINS = "/var/lib/docker/plugins"
CONTEXT = ("setup.py", "pyproject.toml", "README.rst", "LICENSE", "buttervolume", "docker")
"""What a checkout must hold for build.sh."""
SETTINGS = tuple(
    variable["Name"]
    for variable in json.loads((REPOSITORY / "docker/config.json").read_text())["Env"]
)


@dataclass(frozen=True)
class Built:
    """A copy of the checkout, in which build.sh has run."""

    checkout: Path
    machine: Machine
    dockerd: Dockerd

    @property
    def directory(self) -> Path:
        """What `docker plugin create` wants: config.json and rootfs."""
        return self.checkout / "docker"

    @property
    def rootfs(self) -> Path:
        return self.directory / "rootfs"

    def build(self, *args: str, path: str = PATH) -> str:
        """Run build.sh; what it printed. It may use the network of the real machine."""
        script = str(self.directory / "build.sh")
        argv = (script, *args, "--network=host")
        return self.machine.run(*argv, env={"PATH": path}, timeout=900).stdout


class PluginHost(Host):
    """One machine with a dockerd, and with the managed plugin in place of a daemon."""

    def __init__(self, machine: Machine, dockerd: Dockerd, directory: Path) -> None:
        super().__init__(machine, dockerd)
        self.directory = directory
        self.enabling: tuple[str, ...] = ()
        """Options with which the plugin is enabled."""
        self.answer_before_init = ""
        """What Docker said when the plugin was enabled before the binds' sources were made."""

    # The plugin

    def create_plugin(self) -> None:
        self.docker("plugin", "create", NAME, str(self.directory))

    def enable(self) -> None:
        self.docker("plugin", "enable", *self.enabling, NAME)

    def disable(self, *options: str) -> None:
        self.docker("plugin", "disable", *options, NAME)

    def set(self, *settings: str) -> None:
        """Change settings (`SSH_PORT=22`), for which the plugin is stopped for a moment."""
        self.disable("--force")
        self.docker("plugin", "set", NAME, *settings)
        self.enable()

    @property
    def id(self) -> str:
        return self.docker("plugin", "inspect", "--format={{.Id}}", NAME).stdout.strip()

    def enabled(self) -> bool:
        inspect = ("plugin", "inspect", "--format={{.Enabled}}", NAME)
        return self.docker(*inspect).stdout == "true\n"

    def inside(self, *args: str, check: bool = True) -> str:
        """Run a command inside of the plugin; what it printed."""
        root = "/run/docker/runtime-runc/plugins.moby"
        return self.machine.run(
            "runc", f"--root={root}", "exec", self.id, *args, check=check
        ).stdout

    def processes(self, *options: str) -> list[int]:
        """The plugin's processes, by their ids on the machine, which it shares: all, or those that
        pgrep finds with these options (`--exact`, `sshd`)."""
        same = (f"--ns={self.pid()}", "--nslist=mnt")
        listed = self.machine.run("pgrep", *same, *(options or (".",)), check=False)
        return [int(pid) for pid in listed.stdout.split()]

    def exists(self, pid: int) -> bool:
        """Whether the machine has this process, be it dead and not reaped."""
        return self.machine.run("test", "-e", f"/proc/{pid}", check=False).returncode == 0

    def pid(self) -> int | None:
        """The plugin's first process, by its id on the machine; None while there is none."""
        root = "/run/docker/runtime-runc/plugins.moby"
        state = self.machine.run("runc", f"--root={root}", "state", self.id, check=False)
        return (state.returncode == 0 and json.loads(state.stdout)["pid"]) or None

    def has_container(self) -> bool:
        """Whether Docker's containerd has something of the plugin. For a moment after it has failed
        to start it has, and then Docker cannot start it."""
        address = "--address=/run/docker/containerd/containerd.sock"
        listed = ("ctr", address, "--namespace=plugins.moby", "containers", "ls", "--quiet")
        return self.machine.run(*listed).stdout != ""

    def crash(self) -> None:
        """Kill the plugin's first process, and wait until Docker has started it again."""
        record = self.machine.path(f"{PLUGINS}/{self.id}/config.json")
        before, pid = record.stat().st_mtime_ns, self.pid()
        self.machine.run("kill", "-KILL", str(pid))
        # A plugin that ends before Docker has knocked is not started again; then this is written.
        wait_until(
            lambda: record.stat().st_mtime_ns != before and self.pid() not in (pid, None),
            timeout=60,
            what="Docker to start the plugin again",
        )

    def propagated_mount(self) -> str:
        """The directory in which Docker looks for the volumes."""
        return f"{PLUGINS}/{self.id}/propagated-mount"

    def mounts(self) -> list[str]:
        """Where the machine has the volumes' filesystem mounted, as often as it is."""
        text = Path(f"/proc/{self.machine.pid}/mountinfo").read_text()
        mounts = [(fields[2], fields[4]) for fields in map(str.split, text.splitlines())]
        (device,) = {device for device, point in mounts if point == DATA}
        return [point for of, point in mounts if of == device]

    def log(self) -> str:
        """What the plugin and Docker have logged."""
        return self.dockerd.log()

    # Words of Host, with this driver

    def create(self, volume: str, *options: str) -> None:
        self.docker("volume", "create", f"--driver={NAME}", *options, volume)

    def listed(self) -> list[str]:
        return self.docker("volume", "ls", "--quiet", f"--filter=driver={DRIVER}").stdout.split()

    def create_many(self, volumes: Iterable[str], labels: dict[str, str]) -> None:
        raise NotImplementedError

    # ssh

    def listens(self, port: int = SSH_PORT) -> bool:
        """Whether the plugin's sshd takes connections."""
        return any(
            re.search(rf":{port:04X} [0-9A-F:]+ 0A ", line)
            for name in ("tcp", "tcp6")
            for line in Path(f"/proc/{self.machine.pid}/net/{name}").read_text().splitlines()
        )

    def authorize(self, other: "PluginHost") -> None:
        """Let the other plugin log in to this one, once it is started again."""
        if not other.machine.path(f"{SSH}/id_ed25519").exists():
            other.machine.run("ssh-keygen", "-qt", "ed25519", "-N", "", "-f", f"{SSH}/id_ed25519")
        key = other.machine.path(f"{SSH}/id_ed25519.pub").read_text()
        self.machine.write(f"{SSH}/authorized_keys", key)

    # Between two tests

    def repair(self) -> None:
        if self.dockerd.process.poll() is not None:
            self.dockerd.start()
        if self.docker("plugin", "inspect", NAME, check=False).returncode:
            self.create_plugin()
        if not self.enabled():
            self._empty_settings()
            self.enable()

    def clear(self) -> None:
        """Remove what a test has left, and undo its settings."""
        if containers := self.docker("ps", "--all", "--quiet").stdout.split():
            self.docker("rm", "--force", *containers)
        if volumes := self.listed():
            self.docker("volume", "rm", *volumes)
        script = f"cd {DATA}/snapshots && for s in *; do [ ! -e $s ] || btrfs sub delete $s; done"
        self.machine.run("sh", "-c", f"{script}; cd .. && rm -rf config/* ssh/* ssh/.[!.]*")
        assert "Traceback" not in self.log()
        if any(self.settings().values()):
            self.disable("--force")
            self._empty_settings()
            self.enable()

    def _empty_settings(self) -> None:
        self.docker("plugin", "set", NAME, *(f"{name}=" for name in SETTINGS))

    def settings(self) -> dict[str, str]:
        """The plugin's environment as Docker keeps it."""
        shown = self.docker("plugin", "inspect", "--format={{json .Settings.Env}}", NAME).stdout
        pairs: list[str] = json.loads(shown)
        return dict(pair.split("=", 1) for pair in pairs)


def shell_functions() -> str:
    """The shell functions of the manual."""
    page = text("howto/plugin")
    found = re.search(r"^ +drunc\(\) \{.*?^ +buttervolume\(\) \{.*?^ +\}$", page, re.M | re.S)
    assert found, "the manual has no shell functions drunc and buttervolume"
    return found[0]


@contextlib.contextmanager
def installed(
    name: str, directory: Path, network: Network, built: Built, live_restore: bool = False
) -> Iterator[PluginHost]:
    """A machine with the plugin, as the manual says to install it."""
    with (
        Machine(name, directory, network) as machine,
        Dockerd(machine, live_restore=live_restore) as dockerd,
    ):
        host = PluginHost(machine, dockerd, built.directory)
        host.create_plugin()
        host.answer_before_init = host.refused("plugin", "enable", NAME)
        machine.cli("init")
        host.enable()
        dockerd.busybox_image()
        yield host
