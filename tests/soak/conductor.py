"""A soak: the clock goes on when all that is due has been done, and things happen meanwhile."""

import random
import threading
import time
from contextlib import ExitStack
from datetime import datetime, timedelta

from tests.soak import plan
from tests.soak.clients import Client, Sender, Tenant, Watcher, Writer
from tests.soak.clock import TICK, Clock
from tests.soak.diary import AWAY, RESTART, Diary
from tests.soak.host import SoakHost
from tests.soak.plan import Happening
from tests.soak.rules import Job
from tests.support.network import Network

PATIENCE = 300.0
"""Seconds of the real clock within which all that is due must be over."""
HOLE = 12.0
"""Seconds that the peer is in a black hole: ssh gives up after 10."""
LOOK = 0.4
"""Seconds between two looks for whether all is over."""


class Soak:
    """Two hosts, and what is done to them."""

    def __init__(
        self, network: Network, clock: Clock, alpha: SoakHost, beta: SoakHost, ticks: int
    ) -> None:
        self.network, self.clock, self.alpha, self.beta = network, clock, alpha, beta
        self.hosts = (alpha, beta)
        self.diary = Diary(clock)
        self.jobs: dict[str, list[Job]] = {alpha.name: [], beta.name: []}
        self._begin, self._end = plan.beginning(ticks), plan.end(ticks)
        self._happenings = plan.happenings(ticks)
        self._chance = random.Random(ticks)
        self._over = threading.Event()
        self._volumes = list(plan.volumes(beta.name))
        self._back = ExitStack()
        """What brings the peer back."""
        self._away_until = self._end
        self._writers = [Writer(host, "program", self.diary, self._over) for host in self.hosts]
        self._tenants = [
            Tenant(host, name, self.diary, self._over)
            for host, names in ((alpha, ("shop", "blog", "wiki")), (beta, ("mail",)))
            for name in names
        ]
        watchers = [Watcher(host, "monitor", self.diary, self._over) for host in self.hosts]
        sender = Sender(alpha, beta, "office", self.diary, self._over)
        self.clients: list[Client] = [*self._writers, *self._tenants, *watchers, sender]

    @property
    def tick(self) -> datetime:
        """The last jump of the clock."""
        return self.clock.tick()

    def run(self) -> None:
        """Let it all happen. Raises AssertionError if something that is due does not end."""
        self._set_up()
        for client in self.clients:
            client.start()
        try:
            while self.tick < self._end:
                self._one_tick()
            self._come_back()
            self._wait()
        finally:
            self._over.set()
            for client in self.clients:
                client.join(PATIENCE)
        self._wait()
        for tenant in self._tenants:
            tenant.finish()
            self.jobs[tenant.host.name] += tenant.jobs

    def _set_up(self) -> None:
        for host, rows in (
            (self.alpha, plan.rows(self.beta.name)),
            (self.beta, plan.rows_of_peer()),
        ):
            for volume, action, when in rows:
                host.api.call("Schedule", Name=volume, Action=action, Timer=str(when))
        for name in [*plan.FAR, *plan.BOTH]:
            self.beta.create(name)
            self.beta.file(name, "first").write_text(name)
            self.beta.snapshot(name)
            self._writers[1].volumes.append(name)
        for name in plan.BOTH:
            self.alpha.create(name)

    def _one_tick(self) -> None:
        self.clock.set(self.tick + TICK)
        self._create_volumes()
        for client in self.clients:
            client.next_tick()
        if self.tick >= self._away_until:
            self._come_back()
        number = (self.tick - self._begin) // TICK
        if number == plan.ARRIVED:
            self._purge_copies()
        if happening := self._happenings.get(number):
            time.sleep(self._chance.uniform(0, 1.5))  # at any moment of what goes on
            self._let_happen(happening)
        self._wait()
        for host in self.hosts:
            host.sample()

    def _create_volumes(self) -> None:
        for volume in self._volumes[: plan.CREATED_PER_TICK]:
            if plan.is_mirrored(volume):  # it has something to send from the start
                self.alpha.create(volume.name)
                self.alpha.snapshot(volume.name)
            since = self.clock.now()
            self.alpha.create(volume.name, **volume.options)
            self.jobs[self.alpha.name] += [
                Job(volume.name, action, when, since, self._end)
                for action, when in volume.jobs.items()
            ]
            self._writers[0].volumes.append(volume.name)
        del self._volumes[: plan.CREATED_PER_TICK]

    def _purge_copies(self) -> None:
        for host, names in zip(self.hosts, plan.purges(), strict=True):
            for name in names:
                action, when = f"purge:{plan.KEPT}", plan.PURGE
                since = self.clock.now()
                host.api.call("Schedule", Name=name, Action=action, Timer=str(when))
                self.jobs[host.name].append(Job(name, action, when, since, self._end))

    def _wait(self) -> None:
        """Wait until all that is due is over."""
        deadline = time.monotonic() + PATIENCE
        time.sleep(LOOK)  # there is nothing to see before the next round of the scheduler
        while True:
            begun = time.time()
            unfinished = [each for host in self.hosts for each in host.unfinished()]
            if not unfinished:
                busy = [client.busy_since or begun for client in self.clients]
                self.diary.settle(min([begun, *busy]))
                return
            assert time.monotonic() < deadline, f"at {self.tick}: {unfinished}"
            time.sleep(LOOK)

    # What happens

    def _let_happen(self, happening: Happening) -> None:
        match happening.what:
            case "sshd":
                self._go_away(happening)
                self.beta.kill_sshd()
                self._back.callback(self.beta.launch_sshd)
            case "cut":
                self._go_away(happening)
                self.network.cut(self.alpha.name)
                self._back.callback(self.network.restore, self.alpha.name)
            case "hole":
                with self.diary.event(AWAY, "black hole"):
                    self.network.black_hole(self.beta.name)
                    time.sleep(HOLE)
                    self.network.restore(self.beta.name)
            case _:
                self._restart(happening)

    def _go_away(self, happening: Happening) -> None:
        self._back.enter_context(self.diary.event(AWAY, happening.what))
        self._away_until = self.tick + happening.ticks * TICK

    def _come_back(self) -> None:
        self._back.close()
        self._away_until = self._end + timedelta(days=1)

    def _restart(self, happening: Happening) -> None:
        """End the daemon, let some time pass, and start it again."""
        with self.diary.event(RESTART, happening.what):
            self.alpha.is_up.clear()
            if happening.what == "term":
                assert self.alpha.daemon.stop() == 0, self.alpha.daemon.log()[-5000:]
            else:
                self.alpha.daemon.kill()
            self.clock.set(self.tick + happening.ticks * TICK)
            self.alpha.start_all()
