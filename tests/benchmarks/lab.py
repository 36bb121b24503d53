"""The machines of a run, each made when the first benchmark needs it."""

import shlex
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import count
from pathlib import Path
from typing import Self

from tests.benchmarks import subvolumes
from tests.benchmarks.host import SNAPSHOTS, VOLUMES, Host
from tests.benchmarks.measure import Measurement
from tests.benchmarks.program import Program
from tests.benchmarks.subjects import Api, Bare, Subject, beside
from tests.support.docker import Dockerd
from tests.support.machine import DATA, Machine
from tests.support.network import Network

FEW = 10
"""Volumes that every host has from the start."""
ORIGINAL_LIMIT = 300
"""Volumes that the original may have: its time to list them grows with their square."""
DISK = "40G"
"""Each machine's; its image is sparse."""


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    calls: int
    """Rounds of what takes less than a millisecond."""
    commands: int
    """Rounds of what runs a command."""
    transfers: int
    """Rounds of what takes seconds."""
    some: int
    """Volumes, and snapshots to purge."""
    many: int
    """Volumes, snapshots, and snapshots to purge."""
    snapshots: int
    """As many as a host may have."""
    seconds: float
    """How long many ask at once."""
    large_file: int
    """Bytes."""
    small_files: int
    change: int
    """Bytes of an incremental send."""


FULL = Sizes(
    calls=1000,
    commands=60,
    transfers=5,
    some=1000,
    many=10_000,
    snapshots=100_000,
    seconds=10,
    large_file=1 << 30,
    small_files=50_000,
    change=1 << 20,
)
QUICK = Sizes(
    calls=50,
    commands=4,
    transfers=2,
    some=20,
    many=100,
    snapshots=200,
    seconds=1,
    large_file=1 << 24,
    small_files=200,
    change=1 << 18,
)


class Lab:
    """The machines, as a context manager; what is not used is not made."""

    def __init__(
        self, directory: Path, sizes: Sizes, ours: Program, original: Program | None
    ) -> None:
        """The directory is for the images of the machines' disks."""
        self.sizes = sizes
        self._directory = directory
        self._ours = ours
        self._original = original
        self._stack = ExitStack()
        self._numbers = count(1)
        self._friends: set[str] = set()
        self._dockerds: dict[str, Dockerd] = {}

    def __enter__(self) -> Self:
        self._network = self._stack.enter_context(Network())
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def name(self) -> str:
        """A name for a volume that none has had yet."""
        return f"v{next(self._numbers)}"

    # Hosts

    @cached_property
    def ours(self) -> Host:
        """This version, with few volumes."""
        return self._host("ours", self._ours)

    @cached_property
    def large(self) -> Host:
        """This version, where volumes and snapshots become many."""
        return self._host("large", self._ours)

    @cached_property
    def aged(self) -> Host:
        """This version, with few volumes, whose snapshots become a great many."""
        return self._host("aged", self._ours)

    @cached_property
    def limited(self) -> Host:
        """This version, with few volumes, where quotas are on."""
        host = self._host("limited", self._ours)
        host.runner.run(["btrfs", "quota", "enable", DATA])
        return host

    @cached_property
    def original(self) -> Host | None:
        """The original, with few volumes; None if it could not be installed."""
        return None if self._original is None else self._host("original", self._original)

    @cached_property
    def large_original(self) -> Host | None:
        """The original, where volumes become more."""
        return None if self._original is None else self._host("original2", self._original)

    @cached_property
    def bare(self) -> Bare:
        """The bare commands, on the filesystem of `ours`, with as many volumes of their own."""
        bare = beside(self.ours)
        for number in range(FEW):
            bare.create(few(number))
        return bare

    def subjects(self) -> Mapping[str, Subject]:
        """Who can do the operations, by column of the table."""
        found: dict[str, Subject] = {"ours": Api(self.ours), "bare": self.bare}
        if self.original is not None:
            found["original"] = Api(self.original)
        return found

    def hosts(self) -> Mapping[str, Host]:
        """Who can answer calls, by column of the table."""
        return self._columns(self.ours, self.original)

    def large_hosts(self) -> Mapping[str, Host]:
        """The two where volumes and snapshots may become many, by column of the table."""
        return self._columns(self.large, self.large_original)

    def _columns(self, ours: Host, original: Host | None) -> Mapping[str, Host]:
        return {"ours": ours} | ({} if original is None else {"original": original})

    def _host(self, name: str, program: Program) -> Host:
        host = Host(self._machine(name), program)
        for number in range(FEW):
            host.api.call("VolumeDriver.Create", Name=few(number), Opts=None)
        return host

    def _machine(self, name: str) -> Machine:
        return self._stack.enter_context(Machine(name, self._directory, self._network, size=DISK))

    # What is around them

    def peer(self, host: Host) -> Host:
        """The other host, to which this one may log in by ssh as `peer`."""
        if host.machine.name not in self._friends:
            self._friends.add(host.machine.name)
            self._peer.machine.authorize(host.machine)
            host.runner.run(["ssh", "-p", "1122", "peer", "true"])  # makes its key known
        return self._peer

    @cached_property
    def _peer(self) -> Host:
        machine = self._machine("peer")
        machine.start_sshd()
        env = shlex.join(f"{key}={value}" for key, value in self._ours.env.items())
        machine.install(f'exec env {env} {shlex.join(self._ours.argv)} "$@"')
        return Host(machine, self._ours)

    def docker(self, host: Host) -> Dockerd:
        """A Docker daemon on that host, with the image busybox."""
        if host.machine.name not in self._dockerds:
            dockerd = self._stack.enter_context(Dockerd(host.machine))
            dockerd.busybox_image()
            self._dockerds[host.machine.name] = dockerd
        return self._dockerds[host.machine.name]

    def fill_with_volumes(self, host: Host, number: int) -> None:
        """See that there are that many volumes, not counting other benchmarks' passing ones."""
        with host.opened(VOLUMES) as directory:
            there = set(host.machine.path(VOLUMES).iterdir())
            names = [few(index) for index in range(number)]
            present = {path.name for path in there}
            subvolumes.create(directory, [name for name in names if name not in present])
        host.sync()

    def fill_with_snapshots(self, host: Host, names: list[str], directory: str = SNAPSHOTS) -> None:
        """Snapshot the first volume under each of these names."""
        with host.opened(f"{VOLUMES}/{few(0)}") as source, host.opened(directory) as target:
            subvolumes.snapshot(source, target, names)
        host.sync()


def few(number: int) -> str:
    """The name of one of the volumes that a host has from the start, or is filled with."""
    return f"base{number}"


def on_each(hosts: Mapping[str, Host], once: Callable[[Host], float]) -> dict[str, Measurement]:
    """The same measurement on each host."""
    return {column: partial(once, host) for column, host in hosts.items()}
