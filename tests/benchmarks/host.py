"""A machine with one of the two programs on it, and what the benchmarks do there."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.benchmarks.connection import Connection
from tests.benchmarks.program import Program
from tests.support.machine import DATA, Machine
from tests.support.namespaces import Process
from tests.support.wait import wait_until

VOLUMES = f"{DATA}/volumes"
SNAPSHOTS = f"{DATA}/snapshots"
SOCKET = "/run/docker/plugins/btrfs.sock"
RUNNER = Path(__file__).with_name("runner.py")
START_LIMIT = 30.0
"""Seconds in which a daemon must answer."""


class CommandFailed(RuntimeError):
    """A command in a machine failed."""


class Runner:
    """Runs commands inside of a machine, and tells how long they took there (see runner.py)."""

    def __init__(self, machine: Machine) -> None:
        address = machine.directory / "runner"
        machine.popen(
            sys.executable, "-I", "-S", str(RUNNER), str(address), log=machine.directory / "log"
        )
        wait_until(address.exists, what="the runner")
        self._socket = socket.socket(socket.AF_UNIX)
        wait_until(lambda: self._socket.connect_ex(str(address)) == 0, what="the runner")
        self._stream = self._socket.makefile("rw", encoding="utf-8")

    def time(
        self,
        *commands: Sequence[str],
        env: Mapping[str, str] | None = None,
        rename: Sequence[str] = (),
        sync: str = "",
    ) -> float:
        """Run commands one after another, rename one path to another, and sync a directory, if
        they are given; return the seconds all that took."""
        argvs = [list(argv) for argv in commands]
        request = {"commands": argvs, "env": dict(env or {}), "rename": rename, "sync": sync}
        self._stream.write(json.dumps(request) + "\n")
        self._stream.flush()
        answer = json.loads(self._stream.readline())
        if answer["error"]:
            raise CommandFailed(answer["error"])
        return float(answer["seconds"])

    def run(self, *commands: Sequence[str]) -> None:
        """Run commands one after another."""
        self.time(*commands)


class Host:
    """A machine with a daemon of one of the two programs."""

    def __init__(self, machine: Machine, program: Program) -> None:
        self.machine = machine
        self.program = program
        self.runner = Runner(machine)
        self.api = Connection(machine.path(SOCKET))
        self._daemon: Process | None = None
        self.runner.run(["mkdir", "-p", VOLUMES, SNAPSHOTS])
        self.start()

    def start(self, **env: str) -> float:
        """Start the daemon, with this in its environment, and return the seconds until it has
        answered for the first time."""
        log = self.machine.directory / "daemon.log"
        started = time.perf_counter()
        self._daemon = self.machine.popen(
            *self.program.argv, "run", env={**self.program.env, **env}, log=log
        )
        while True:
            with suppress(OSError):
                self.api.call("Plugin.Activate")
                return time.perf_counter() - started
            late = time.perf_counter() - started > START_LIMIT
            if late or self._daemon.poll() is not None:
                raise CommandFailed(f"{self.program.argv}: no answer\n{log.read_text()}")
            time.sleep(0.001)

    def stop(self) -> None:
        """End the daemon, by force if it takes long."""
        if self._daemon is not None:
            self.api.close()
            self._daemon.terminate()
            try:
                self._daemon.wait(10)
            except subprocess.TimeoutExpired:
                self._daemon.kill()
                self._daemon.wait(10)

    def memory(self) -> int:
        """The resident memory, in bytes, of the daemon and whatever it runs just now."""
        assert self._daemon is not None
        pid = self._daemon.inner_pid()
        assert pid is not None, "the daemon has ended"
        return sum(_resident(process) for process in _tree(pid))

    def processor_time(self) -> float:
        """The seconds of processor time that the daemon has used, without its commands."""
        assert self._daemon is not None
        fields = (
            Path(f"/proc/{self._daemon.inner_pid()}/stat").read_text().rpartition(")")[2].split()
        )
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def connect(self) -> Connection:
        """One more connection to the daemon."""
        return Connection(self.machine.path(SOCKET))

    def sync(self) -> None:
        """Let what was written and deleted before cost what is measured next as little as can be:
        deleted subvolumes are gone, everything is on the disk."""
        self.runner.run(["btrfs", "filesystem", "sync", DATA], ["btrfs", "subvolume", "sync", DATA])

    @contextmanager
    def opened(self, directory: str) -> Iterator[int]:
        """A directory of the machine, opened."""
        descriptor = os.open(self.machine.path(directory), os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def _resident(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _tree(pid: int) -> Iterator[int]:
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from _tree(int(child))
