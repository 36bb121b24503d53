"""One host of a test: its own mounts, processes, name, home, BTRFS and, on a network, address."""

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from tests.support.filesystem import make_image, make_loop_node, release_loop_device
from tests.support.namespaces import Namespaces, Process
from tests.support.network import Network
from tests.support.wait import wait_until

REPOSITORY = Path(__file__).parents[2]
BUTTERVOLUME = (sys.executable, "-m", "buttervolume")
DATA = "/var/lib/buttervolume"
SSH_PORT = 1122
PATH = "/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/bin"
"""The distribution's programs first: /usr/local/bin may hold a docker that is not dockerd's."""
PRIVATE_VARIABLES = ("BUTTERVOLUME_", "DOCKER_", "SSH_", "XDG_")
"""What these begin with belongs to the person who runs the tests."""


class Machine:
    """A host, as a context manager. What it writes below /etc, /run, /root and /var/lib is its own.

    The real directories there are never touched: /etc and /var/lib are covered by overlays, /run
    and /root by empty filesystems. All the rest, /tmp included, is the real one. Its processes
    live in a PID namespace, so that none outlives it, whether the test ends or is killed.
    """

    daemon_command: tuple[str, ...] = (*BUTTERVOLUME, "run")

    def __init__(
        self,
        name: str,
        directory: Path,
        network: Network | None = None,
        size: str = "1G",
        disks: Path | None = None,
    ) -> None:
        """With a directory for its disks, a machine made later finds on them what this one left."""
        self.name = name
        self.directory = directory / name
        """For logs and images; the same path inside and outside of the machine."""
        self.network = network
        self.address = "127.0.0.1"
        self.after_close = contextlib.ExitStack()
        """Called back once every process of the machine is gone."""
        self._size = size
        self._disks = disks
        self._processes: list[Process] = []
        self._started = 0

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True)
        namespaces = ["--mount", "--propagation=private", "--mount-proc", "--uts"]
        namespaces += ["--ipc", "--pid", "--fork", "--kill-child"]
        self._namespaces = Namespaces(*namespaces, *(["--net"] if self.network else []))
        self.pid = self._namespaces.pid
        try:
            self._set_up()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every process of the machine; its mounts, loop devices and network go with them."""
        with self.after_close:
            self._namespaces.close()
            if self.network:
                self.network.unplug(self.name)
            for process in self._processes:
                process.wait(60)

    # Running commands

    def run(
        self,
        *argv: str,
        check: bool = True,
        env: Mapping[str, str] | None = None,
        input: str | None = None,  # noqa: A002 - as subprocess.run calls it
        timeout: float = 120,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end in directory `/`; what it left running may keep running.

        `env` is added to the environment. An AssertionError tells of a failure, unless `check`
        is false, and of running out of time.
        """
        # Files rather than pipes: an ssh master left in the background would hold a pipe open.
        with (
            tempfile.TemporaryFile() as stdin,
            tempfile.TemporaryFile() as stdout,
            tempfile.TemporaryFile() as stderr,
        ):
            stdin.write((input or "").encode())
            stdin.seek(0)
            process = self._namespaces.popen(
                *argv, env=self._environment(env), stdin=stdin, stdout=stdout, stderr=stderr
            )
            try:
                status: int | None = process.wait(timeout)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                process.kill_group()
            stdout.seek(0)
            stderr.seek(0)
            out, err = (file.read().decode(errors="replace") for file in (stdout, stderr))
        if status is None or (check and status):
            why = (
                f"still running after {timeout:g} s" if status is None else f"exit status {status}"
            )
            raise AssertionError(
                f"{self.name}: {shlex.join(argv)}: {why}\n--- stdout\n{out}\n--- stderr\n{err}"
            )
        return subprocess.CompletedProcess(argv, status, out, err)

    def popen(self, *argv: str, env: Mapping[str, str] | None = None, log: Path) -> Process:
        """Start a command that runs until it is stopped, or the machine closes; both its outputs
        go to the end of the log."""
        with log.open("ab") as output:
            return self._popen(argv, env, output.fileno(), output.fileno())

    def _popen(
        self, argv: tuple[str, ...], env: Mapping[str, str] | None, stdout: int, stderr: int
    ) -> Process:
        process = self._namespaces.popen(
            *argv, env=self._environment(env), stdout=stdout, stderr=stderr
        )
        self._processes.append(process)
        return process

    def _environment(self, env: Mapping[str, str] | None) -> dict[str, str]:
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(PRIVATE_VARIABLES)
        }
        return inherited | {"HOME": "/root", "PATH": PATH} | dict(env or {})

    def pids(self, name: str) -> list[int]:
        """The processes of that name, by the ids that `os.kill` takes in the test.

        Processes inside of containers are not among them.
        """
        ours = os.readlink(f"/proc/{self.pid}/ns/pid")
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                if (
                    os.readlink(entry / "ns/pid") == ours
                    and (entry / "comm").read_text().rstrip() == name
                ):
                    found.append(int(entry.name))
        return found

    def kill(self, *names: str) -> None:
        """Kill every process of one of these names, and wait until they are gone."""

        def killed() -> bool:
            pids = [pid for name in names for pid in self.pids(name)]
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not pids

        wait_until(killed, what=f"{names} on {self.name} to be gone")

    # Files

    def path(self, inside: str) -> Path:
        """The path by which the test reaches a file of the machine.

        It must not lead through an absolute symbolic link, which would lead out of the machine.
        """
        return Path(f"/proc/{self.pid}/root") / inside.lstrip("/")

    def mount_image(self, mount_point: str, kind: str, size: str) -> None:
        """Mount a sparse filesystem of that kind (btrfs, ext4): a new one, which ends with the
        machine, unless it has disks that outlive it."""
        image = (
            self._disks or self.directory
        ) / f"{mount_point.strip('/').replace('/', '-')}.{kind}"
        if not image.exists():
            make_image(image, kind, size)
        try:
            make_loop_node()
            self.run("mkdir", "--parents", mount_point)
            self.run("mount", "-o", "loop", str(image), mount_point)
            self.after_close.callback(release_loop_device, image)
        finally:
            if not self._disks:
                image.unlink()  # the mount keeps it until its end, however the test ends

    def _set_up(self) -> None:
        scratch = self.directory / "scratch"
        scratch.mkdir()
        self._mount_tmpfs(str(scratch))
        for directory in ("/etc", "/var/lib"):
            upper, work = f"{scratch}{directory}/upper", f"{scratch}{directory}/work"
            self.run("mkdir", "--parents", upper, work)
            layers = f"lowerdir={directory},upperdir={upper},workdir={work}"
            self.run("mount", "-t", "overlay", "-o", layers, "overlay", directory)
        resolv_conf = Path("/etc/resolv.conf").read_text()
        for directory in ("/run", "/etc/buttervolume", "/etc/docker"):
            self._mount_tmpfs(directory)
        self.run("mkdir", "--parents", "/run/docker/plugins", "/run/lock", "/run/sshd")
        self._mount_home()
        self.mount_image(DATA, "btrfs", self._size)
        self.run("hostname", self.name)
        self.write("/etc/resolv.conf", resolv_conf)  # it may be a link into the real /run
        self.write("/etc/hosts", f"127.0.0.1 localhost\n::1 localhost\n127.0.0.1 {self.name}\n")
        # As on a real host, mounts propagate between the host and its containers.
        self.run("mount", "--make-rshared", "/")
        if self.network:
            self.address = self.network.plug(self.name, self.pid)

    def write(self, file: str, text: str) -> None:
        """Write a file of the machine anew, in place of whatever was there."""
        self.run("sh", "-c", 'rm -f "$1" && cat > "$1"', "sh", file, input=text)

    def _mount_tmpfs(self, directory: str) -> None:
        self.run("mkdir", "--parents", directory)
        self.run("mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", directory)

    def _mount_home(self) -> None:
        """Cover /root, but for what the tests run from: no start-up file there can disturb ssh."""
        needed = {Path(sys.prefix), Path(sys.base_prefix), REPOSITORY, self.directory}
        home = Path("/run/home")
        self.run("mkdir", str(home))
        self.run("mount", "--rbind", "/root", str(home))
        self._mount_tmpfs("/root")
        self.run("chmod", "0700", "/root")
        for directory in sorted(needed):
            if directory.is_relative_to("/root") and not needed & set(directory.parents):
                inside = directory.relative_to("/root")
                self.run("mkdir", "--parents", str(directory))
                self.run("mount", "--rbind", str(home / inside), str(directory))
        self.run("umount", "--lazy", str(home))
        self.run("rmdir", str(home))

    # Buttervolume

    def start_daemon(self, **env: str) -> "Daemon":
        """Start `buttervolume run`, with this in its environment, and wait until it answers."""
        self._started += 1
        daemon = Daemon(self, self.directory / f"daemon-{self._started}", env)
        runpath = env.get("BUTTERVOLUME_RUNPATH", "/run/docker")
        address = env.get("BUTTERVOLUME_SOCKET", f"{runpath}/plugins/btrfs.sock")
        try:
            wait_until(
                lambda: daemon.process.poll() is not None or answers(self.path(address)),
                what=f"the daemon to answer on {address}",
            )
            assert daemon.process.returncode is None, "the daemon ended"
        except AssertionError as error:
            error.add_note(f"exit status {daemon.process.returncode}\n{daemon.log()}")
            raise
        return daemon

    def cli(
        self,
        *args: str,
        check: bool = True,
        env: Mapping[str, str] | None = None,
        timeout: float = 120,
    ) -> subprocess.CompletedProcess[str]:
        """Run `buttervolume` with these arguments."""
        return self.run(*BUTTERVOLUME, *args, check=check, env=in_checkout(env), timeout=timeout)

    def install(self, script: str = "") -> None:
        """Let those who log in find `buttervolume`, or this shell script in its place."""
        if not self.path("/usr/local/sbin/buttervolume").exists():
            self.run("mount", "-t", "tmpfs", "tmpfs", "/usr/local/sbin")
        env = shlex.join(f"{key}={value}" for key, value in in_checkout(None).items())
        ours = f'exec env {env} {shlex.join(BUTTERVOLUME)} "$@"'
        self.write("/usr/local/sbin/buttervolume", f"#!/bin/sh\n{script or ours}\n")
        self.run("chmod", "755", "/usr/local/sbin/buttervolume")

    def uninstall(self) -> None:
        """Take it away again."""
        self.run("umount", "/usr/local/sbin", check=False)

    # ssh

    def start_sshd(self, port: int = SSH_PORT) -> None:
        """Set up an sshd that takes keys only, start it and wait until it answers."""
        self.run("usermod", "--password", "*", "root")  # sshd refuses an account that is locked
        key = "/etc/ssh/ssh_host_ed25519_key"  # one of each kind takes a processor for seconds
        make = f"rm -f /etc/ssh/ssh_host_*; ssh-keygen -q -t ed25519 -N '' -f {key}"
        self.run("sh", "-c", make)
        self.write(
            "/etc/ssh/sshd_config",
            f"""\
Port {port}
HostKey {key}
ListenAddress 127.0.0.1
{f"ListenAddress {self.address}" if self.network else ""}
PidFile /run/sshd-test.pid
UsePAM no
UseDNS no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
MaxStartups 100
ClientAliveInterval 1
ClientAliveCountMax 3
""",
        )
        self.launch_sshd()

    def launch_sshd(self) -> None:
        """Start the sshd that was set up before, with the host keys it has, and wait until it
        answers."""
        log = self.directory / "sshd.log"
        before = log.read_text().count("Server listening") if log.exists() else 0
        sshd = self.popen("/usr/sbin/sshd", "-D", "-e", log=log)
        wait_until(
            lambda: sshd.poll() is not None or log.read_text().count("Server listening") > before,
            what="sshd to listen",
        )
        if sshd.poll() is not None:
            raise AssertionError(f"{self.name}: sshd ended\n{log.read_text()}")

    def kill_sshd(self) -> None:
        """Kill sshd and its sessions: connections break, new ones are refused."""
        self.kill("sshd", "sshd-session", "sshd-auth")

    def authorize(self, other: "Machine") -> None:
        """Let root of the other machine log in here, by `ssh -p 1122 <this machine's name>`."""
        key = other.path("/root/.ssh/id_ed25519.pub")
        if not key.exists():
            other.run("mkdir", "--parents", "--mode=0700", "/root/.ssh")
            other.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/root/.ssh/id_ed25519")
        append = 'mkdir -p -m 0700 /root/.ssh && cat >> "/root/.ssh/$1"'
        alias = f"Host {self.name}\n    HostName {self.address}\n"
        alias += "    StrictHostKeyChecking accept-new\n"
        other.run("sh", "-c", append, "sh", "config", input=alias)
        self.run("sh", "-c", append, "sh", "authorized_keys", input=key.read_text())


class Daemon:
    """A running `buttervolume run`. It ends with its machine, if nobody stops it before."""

    def __init__(self, machine: Machine, log: Path, env: Mapping[str, str]) -> None:
        self._stdout, self._stderr = log.with_suffix(".stdout"), log.with_suffix(".stderr")
        with self._stdout.open("ab") as stdout, self._stderr.open("ab") as stderr:
            self.process = machine._popen(
                machine.daemon_command, in_checkout(env), stdout.fileno(), stderr.fileno()
            )

    def stdout(self) -> str:
        """What it has written to its standard output so far."""
        return self._stdout.read_text()

    def stderr(self) -> str:
        """What it has written to its standard error so far."""
        return self._stderr.read_text()

    def log(self) -> str:
        """All it has written so far."""
        return self.stdout() + self.stderr()

    def stop(self, signal: int = signal.SIGTERM) -> int:
        """Send the signal and return the exit status, which must come within a minute."""
        self.process.send_signal(signal)
        return self.process.wait(60)

    def kill(self) -> None:
        """End it as a crash or a power failure would: at once. The commands it ran may go on."""
        self.process.kill()
        self.process.wait(60)


def in_checkout(env: Mapping[str, str] | None) -> dict[str, str]:
    """An environment in which Python takes `buttervolume` from this checkout."""
    return {"PYTHONPATH": str(REPOSITORY)} | dict(env or {})


def answers(address: Path) -> bool:
    """Whether somebody takes connections on this unix socket."""
    with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(OSError):
        client.connect(str(address))
        return True
    return False
