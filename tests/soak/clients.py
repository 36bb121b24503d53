"""Who works with the hosts while time flies: Docker, administrators, monitoring, programs that
write into volumes. Each has names of its own, so that whatever it is refused is a fault, unless
something that happened explains it."""

import itertools
import random
import threading
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from http.client import HTTPException
from typing import Any

from tests.btrfs.harness import NoAnswer
from tests.hosts.harness import VOLUMES
from tests.soak.diary import AWAY, RESTART, Diary
from tests.soak.host import SoakHost
from tests.soak.rules import Job, When

NAMES = 5
"""How many volumes a tenant has at most."""
LOOK = 0.1
"""Seconds between two looks for whether there is something to do."""
TENANTS_SNAPSHOTS = When(15)
"""The job of each volume of a tenant, by a pattern."""


class Refused(Exception):
    """The daemon has answered that it will not."""


class Interrupted(Exception):
    """The daemon has ended before it answered."""


class Client(threading.Thread):
    """Somebody who does one thing after the other, while the daemon is there."""

    per_tick = 1
    """How many things between two jumps of the clock."""
    may_fail: tuple[str, ...] = ()
    """The kinds of events, beside restarts of its own daemon, by which it may be refused."""

    def __init__(self, host: SoakHost, name: str, diary: Diary, over: threading.Event) -> None:
        super().__init__(name=f"{name} on {host.name}")
        self.host, self.diary, self.over = host, diary, over
        self.chance = random.Random(self.name)
        self._wishes = threading.Semaphore(0)
        self.busy_since: float | None = None

    def next_tick(self) -> None:
        """Let it do what it does in this time, sooner or later."""
        self._wishes.release(self.per_tick)

    def run(self) -> None:
        while not self.over.is_set():
            if self._wishes.acquire(timeout=LOOK):
                while not self.host.is_up.wait(LOOK):
                    if self.over.is_set():
                        return
                self._act_once()

    def _act_once(self) -> None:
        begun = self.busy_since = time.time()
        try:
            self.act()
        except (Refused, Interrupted) as error:
            causes = (*self.may_fail, *((RESTART,) if self.host.is_restarted else ()))
            self.diary.complain(self.name, repr(error), begun, causes)
            self.recover()
        except Exception as error:  # noqa: BLE001 - it is told at the end of the soak
            self.diary.complain(self.name, repr(error), begun, ())
        finally:
            self.busy_since = None

    def act(self) -> None:
        """Do something."""
        raise NotImplementedError

    def recover(self) -> None:
        """Find out what there is, after a deed whose end is unknown."""

    def call(self, endpoint: str, **body: object) -> dict[str, Any]:
        """Ask the daemon. Raises Refused, Interrupted."""
        try:
            answer = self.host.api.post(endpoint, **body)
        except (OSError, NoAnswer, HTTPException) as error:
            raise Interrupted(endpoint, str(body), repr(error)) from error
        if answer.error:
            raise Refused(endpoint, str(body), answer.error)
        return answer.json

    def write(self, volume: str) -> None:
        """Write a file into a volume."""
        path = self.host.path(f"{VOLUMES}/{volume}/file-{self.chance.randrange(4)}")
        path.write_bytes(self.chance.randbytes(self.chance.choice((30, 3_000, 60_000))))


class Tenant(Client):
    """Creates, uses, snapshots, restores, clones and removes volumes."""

    per_tick = 2

    def __init__(self, host: SoakHost, name: str, diary: Diary, over: threading.Event) -> None:
        super().__init__(host, name, diary, over)
        self.names = [f"app-{name}-{number}" for number in range(NAMES)]
        self.since: dict[str, datetime] = {}
        """Since when each volume is there."""
        self.jobs: list[Job] = []
        """Those of volumes that are gone."""

    def act(self) -> None:
        deeds: list[Callable[[str], None]] = [self.use, self.use, self.snapshot, self.restore]
        deeds += [self.clone, self.remove, self.remove_and_undelete]
        name = self.chance.choice(self.names)
        if name in self.since:
            self.chance.choice(deeds)(name)
        else:
            self.create(name)

    def create(self, name: str) -> None:
        options = {"keep": "20m", **self.chance.choice(({}, {"compression": "zstd"}))}
        self.call("Create", Name=name, Opts=options)
        self.since[name] = self.host.clock.now()
        self.write(name)

    def use(self, name: str) -> None:
        """As a container would."""
        self.call("Get", Name=name)
        self.call("Mount", Name=name, ID=self.name)
        self.write(name)
        self.call("Path", Name=name)
        self.call("Unmount", Name=name, ID=self.name)
        assert name in [volume["Name"] for volume in self.call("List")["Volumes"]]

    def snapshot(self, name: str) -> None:
        taken = self.call("Snapshot", Name=name)["Snapshot"]
        if self.chance.random() < 0.5:
            self.call("Snapshot.Remove", Name=taken)

    def restore(self, name: str) -> None:
        self.call("Snapshot", Name=name)
        self.write(name)
        self.call("Snapshot.Restore", Name=name)

    def clone(self, name: str) -> None:
        free = [other for other in self.names if other not in self.since]
        if free:
            self.call("Clone", Name=name, Target=free[0])
            self.since[free[0]] = self.host.clock.now()

    def remove(self, name: str) -> None:
        self._gone(name)
        self.call("Remove", Name=name)

    def remove_and_undelete(self, name: str) -> None:
        self.remove(name)
        self.call("Volume.Undelete", Name=name)
        self.since[name] = self.host.clock.now()

    def _gone(self, name: str) -> None:
        since, until = self.since.pop(name), self.host.clock.now()
        self.jobs.append(Job(name, "snapshot", TENANTS_SNAPSHOTS, since, until, is_new=False))

    def finish(self) -> None:
        """Let the lives of all volumes end here, for the records."""
        for name in list(self.since):
            self._gone(name)

    def recover(self) -> None:
        while not self.over.is_set():
            try:
                there = {volume["Name"] for volume in self.call("List")["Volumes"]}
            except Interrupted:
                self.over.wait(0.2)
                continue
            self.since = {
                name: self.since.get(name, self.host.clock.now())
                for name in self.names
                if name in there
            }
            return


class Sender(Client):
    """Sends to the other host, and gets from it, beside what the jobs do."""

    may_fail = (AWAY,)

    def __init__(
        self, host: SoakHost, peer: SoakHost, name: str, diary: Diary, over: threading.Event
    ) -> None:
        super().__init__(host, name, diary, over)
        self.peer = peer.name
        self.volume = f"sent-{name}"

    def act(self) -> None:
        if self.host.clock.tick().minute % 20:
            return
        self.call("Create", Name=self.volume)
        self.write(self.volume)
        match self.chance.randrange(4):
            case 0:
                self.call("Replicate", Name=self.volume, Host=self.peer)
            case 1:
                self.call("Snapshot.Receive", Name="far-sent", Host=self.peer)
            case 2:
                self.call("Volume.Sync", Volumes=["both-sent"], Hosts=[self.peer])
            case _:
                taken = self.call("Snapshot", Name=self.volume)["Snapshot"]
                self.call("Snapshot.Send", Name=taken, Host=self.peer)


class Writer(Client):
    """A program that writes into volumes that are there for good."""

    def __init__(self, host: SoakHost, name: str, diary: Diary, over: threading.Event) -> None:
        super().__init__(host, name, diary, over)
        self.volumes: list[str] = []

    def act(self) -> None:
        for volume in self.chance.sample(self.volumes, min(20, len(self.volumes))):
            self.write(volume)


class Watcher(Client):
    """Looks at everything, as monitoring does, and people."""

    def __init__(self, host: SoakHost, name: str, diary: Diary, over: threading.Event) -> None:
        super().__init__(host, name, diary, over)
        pages = ("/", "/metrics", "/log", "/health", "/api/status")
        lists = ("Volume.List", "Snapshot.List", "Schedule.List", "Volume.Removed", "Transfers")
        looks: list[Callable[[], object]] = [partial(self._page, page) for page in pages]
        looks += [partial(self.call, each) for each in lists]
        looks.append(partial(self.call, "Log", Limit=100))
        self._looks = itertools.cycle(looks)

    def act(self) -> None:
        next(self._looks)()

    def _page(self, path: str) -> None:
        try:
            status = self.host.get_page(path)
        except (OSError, HTTPException) as error:
            raise Interrupted(path, repr(error)) from error
        if status != 200:
            raise Refused(path, status)
