"""A host with a daemon and an sshd, and what the tests do on it."""

import json
import os
import pty
import select
import signal
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.btrfs.harness import DATE_FORMAT, Client, NoAnswer
from tests.support.machine import BUTTERVOLUME, DATA, Daemon, Machine, in_checkout
from tests.support.namespaces import Process
from tests.support.network import INTERFACE, Network
from tests.support.wait import wait_until

VOLUMES = f"{DATA}/volumes"
SNAPSHOTS = f"{DATA}/snapshots"
TRANSFER_PROGRAMS = ("ssh", "btrfs", "rsync", "sshd-session", "sshd-auth")
MEBIBYTE = 1 << 20

PRELUDE = f"""
import socket
import sys
from pathlib import Path
from buttervolume.errors import ButtervolumeError
from buttervolume.hosts.replication import Replication
from buttervolume.store.catalog import Catalog
from buttervolume.store.snapshots import Snapshots
from buttervolume.hosts.transfers import Transfers
from buttervolume.store.volumes import Volumes

volumes = Volumes(Path({VOLUMES!r}))
catalog = Catalog(Path({SNAPSHOTS!r}), {DATE_FORMAT!r}, volumes.check_available)
snapshots = Snapshots(catalog, volumes)

class Plain:  # its outcomes print as plainly as can be
    def __init__(self, **parameters):
        parameters = {{"port": 1122, "node": socket.gethostname(), **parameters}}
        transfers = Transfers()
        made = Replication(volumes, catalog, snapshots, transfers=transfers, **parameters)
        self._made = made
        self.replicate, self.synchronize = made.replicate, made.synchronize
        self.receive = made.receive

    def send(self, snapshot, host, **how):
        self._made.send(snapshot, host, **how)


replication = Plain

def outcome(function, *arguments):
    try:
        return function(*arguments)
    except ButtervolumeError as error:
        return f"Err: {{error}}"
"""
"""Begins a program that works with a host's volumes without its daemon."""


class Background:
    """A request whose answer comes later."""

    def __init__(self, client: Client, endpoint: str, body: dict[str, object]) -> None:
        self._client, self._endpoint, self._body = client, endpoint, body
        self._error: str | None = None
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        data = json.dumps(self._body).encode()
        try:
            answer = self._client.request(f"VolumeDriver.{self._endpoint}", data, timeout=120)
            self._error = answer.error
        except NoAnswer:
            self._error = "no answer"

    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def error(self, timeout: float = 60) -> str:
        """The `Err` of the answer, which must come in time; "no answer" if there was none."""
        self._thread.join(timeout)
        assert self._error is not None, f"no answer to {self._endpoint} within {timeout:g} s"
        return self._error


class Terminal:
    """What a terminal shows of the process that runs on it."""

    def __init__(self, process: Process, descriptor: int) -> None:
        self.process = process
        self._descriptor = descriptor
        self._shown = b""

    def shown(self) -> str:
        """All it has shown so far."""
        while select.select([self._descriptor], [], [], 0)[0]:
            try:
                self._shown += os.read(self._descriptor, 1 << 16)
            except OSError:  # nobody has the terminal open any more
                break
        return self._shown.decode(errors="replace")

    def wait(self, timeout: float = 60) -> int:
        """Wait for the end of the process and return its exit status."""

        def is_over() -> bool:
            self.shown()  # or else a full terminal would keep the process from its end
            return self.process.poll() is not None

        wait_until(is_over, timeout, "the command to end")
        return self.process.wait()


class Host(Machine):
    """A machine whose volumes and snapshots are at the default paths."""

    daemon: Daemon
    api: Client

    def boot(self) -> None:
        """Start what runs on a host, or what of it does not run any more."""
        if not any(self._is_listener(pid) for pid in self.pids("sshd")):
            if self.path("/etc/ssh/sshd_config.test").exists():
                self.launch_sshd()
            else:
                self.start_sshd()
                self.write("/etc/ssh/sshd_config.test", "")
        if not hasattr(self, "daemon") or self.daemon.process.poll() is not None:
            self.daemon = self.start_daemon()
            self.api = Client(self.path("/run/docker/plugins/btrfs.sock"))

    # Volumes and snapshots

    def create(self, volume: str, **options: str) -> None:
        self.api.call("Create", Name=volume, Opts=options)

    def file(self, volume: str, name: str) -> Path:
        """A file of a volume."""
        return self.path(f"{VOLUMES}/{volume}/{name}")

    def copied_file(self, snapshot: str, name: str) -> Path:
        """A file of a snapshot."""
        return self.path(f"{SNAPSHOTS}/{snapshot}/{name}")

    def snapshot(self, volume: str) -> str:
        name: str = self.api.call("Snapshot", Name=volume)["Snapshot"]
        return name

    def snapshot_names(self, volume: str) -> list[str]:
        """All that there is of a volume's name among the snapshots, whatever it is."""
        names = (path.name for path in self.path(SNAPSHOTS).iterdir())
        return sorted(name for name in names if name.startswith(f"{volume}@"))

    def show(self, snapshot: str) -> dict[str, str]:
        """What `btrfs subvolume show` says."""
        shown = self.run("btrfs", "subvolume", "show", f"{SNAPSHOTS}/{snapshot}").stdout
        fields = (line.strip().partition(":") for line in shown.splitlines()[1:])
        return {key: value.strip() for key, _, value in fields}

    # Transfers

    def send(self, snapshot: str, host: "Host | str") -> str:
        """Send a snapshot and return the `Err`, which is empty if all went well."""
        return self.start_send(snapshot, host).error()

    def start_send(self, snapshot: str, host: "Host | str") -> Background:
        name = host if isinstance(host, str) else host.name
        return self.start("Snapshot.Send", Name=snapshot, Host=name)

    def start(self, endpoint: str, **body: object) -> Background:
        """Ask for something and don't wait for the answer."""
        return Background(self.api, endpoint, body)

    def transfers(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.api.request("VolumeDriver.Transfers", method="GET").json[
            "Transfers"
        ]
        return found

    def wait_for_bytes(self, count: int = 1, number: int = 1) -> None:
        """Wait until that many transfers have moved that many bytes each."""
        wait_until(
            lambda: len([t for t in self.transfers() if t["Bytes"] >= count]) >= number,
            timeout=60,
            what=f"{number} transfers to move {count} bytes",
        )

    def bytes_sent(self) -> int:
        """How many bytes have left the host over the network."""
        for line in Path(f"/proc/{self.pid}/net/dev").read_text().splitlines():
            interface, _, counters = line.partition(":")
            if interface.strip() == INTERFACE:
                return int(counters.split()[8])
        raise AssertionError(f"{self.name} has no {INTERFACE}")

    def on_terminal(self, *arguments: str, columns: int = 100) -> Terminal:
        """Run `buttervolume` on a terminal of its own, which may not know how wide it is: 0."""
        return self._on_terminal(*BUTTERVOLUME, *arguments, columns=columns)

    def program_on_terminal(self, text: str) -> Terminal:
        """Run a program as `program` does, but on a terminal, as a daemon in the foreground."""
        return self._on_terminal("setsid", "--ctty", sys.executable, "-c", PRELUDE + text)

    def _on_terminal(self, *argv: str, columns: int = 100) -> Terminal:
        master, slave = pty.openpty()
        self.after_close.callback(os.close, master)
        termios.tcsetwinsize(slave, (24, columns))
        process = self._namespaces.popen(
            *argv,
            env=self._environment(in_checkout({"TERM": "xterm"})),
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        self._processes.append(process)
        os.close(slave)
        return Terminal(process, master)

    def program(self, text: str, timeout: float = 60) -> str:
        """Run a Python program with `replication(…)` and `outcome(…)` on this host, without its
        daemon, and return what it printed."""
        return self.run(
            sys.executable, "-c", PRELUDE + text, env=in_checkout(None), timeout=timeout
        ).stdout

    def start_program(self, text: str, log: Path) -> Process:
        """Start such a program, and let it write to the log what it prints."""
        return self.popen(sys.executable, "-c", PRELUDE + text, env=in_checkout(None), log=log)

    # Processes

    def transfer_processes(self) -> list[str]:
        """The processes that work for a transfer, here or for another host's."""
        pids = [pid for name in TRANSFER_PROGRAMS for pid in self.pids(name)]
        pids += [pid for pid in self.pids("sshd") if not self._is_listener(pid)]
        return [f"{pid} {_command_line(pid)}" for pid in pids]

    def kill_transfers(self) -> None:
        """End whatever a test has left, so that the next one does not suffer from it."""
        self.kill(*TRANSFER_PROGRAMS)

    def wait_until_idle(self, timeout: float = 60) -> None:
        """Wait until no process of a transfer is left."""
        try:
            wait_until(lambda: not self.transfer_processes(), timeout)
        except AssertionError as error:
            raise AssertionError(f"left on {self.name}: {self.transfer_processes()}") from error

    def _is_listener(self, pid: int) -> bool:
        return "[listener]" in _command_line(pid) or "-D" in _command_line(pid).split()

    def signal(self, program: str, number: signal.Signals) -> None:
        """Send a signal to every process of that name."""
        self.run("pkill", f"-{number.value}", "--exact", program)

    @contextmanager
    def shim(self, program: str, script: str) -> Iterator[None]:
        """Put a shell script in the place of a program of this host; `$real` is the program."""
        real, shim = f"/run/real-{program}", f"/run/shim-{program}"
        target = self.run("which", program).stdout.strip()
        self.run("cp", target, real)
        self.write(shim, f"#!/bin/sh\nreal={real}\n{script}\n")
        self.run("chmod", "755", shim)
        self.run("mount", "--bind", shim, target)
        try:
            yield
        finally:
            self.run("umount", "--lazy", target)

    @contextmanager
    def changed_file(self, file: str, text: str) -> Iterator[None]:
        """Let a file, which need not exist, have this content for a while."""
        path = self.path(file)
        before = path.read_text() if path.exists() else None
        self.write(file, text)
        try:
            yield
        finally:
            if before is None:
                self.run("rm", file)
            else:
                self.write(file, before)
            if file.startswith("/root/.ssh"):
                self.run("chmod", "-R", "go-rwx", "/root/.ssh")

    @contextmanager
    def ssh_config(self, text: str) -> Iterator[None]:
        """Put lines before all others of root's ssh configuration."""
        file = "/root/.ssh/config"
        with self.changed_file(file, text + self.path(file).read_text()):
            yield


def _command_line(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    return ""


@dataclass(frozen=True)
class Pair:
    """Two hosts that may log in at each other, and the network between them."""

    network: Network
    alpha: Host
    beta: Host

    def heal(self) -> None:
        """Undo what a test has done to the network and to what runs on the hosts."""
        for host in (self.alpha, self.beta):
            self.network.restore(host.name)
            with suppress(AssertionError):
                self.network.unlimit(host.name)
            host.boot()

    def wait_until_idle(self, timeout: float = 60) -> None:
        for host in (self.alpha, self.beta):
            host.wait_until_idle(timeout)
