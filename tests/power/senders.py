"""Users who bring something from one host to the other."""

import random
import time

from tests.power.record import Content, State, Thing
from tests.power.users import MOST_SNAPSHOTS, Planner, User, World, snapshot_thing, volume_thing


class Sender(User):
    """Sends snapshots of one volume to beta, each as changes of the one before."""

    def __init__(self, world: World, name: str, chance: random.Random) -> None:
        super().__init__(world, name, chance)
        self.volume = f"{name}-db"
        self.kinds = {"write": self.fill, "send": self.send, "rm": self.remove}
        self.sent: list[str] = []

    def begin(self) -> None:
        thing = volume_thing(self.alpha, self.volume)
        self.call("Create", {thing: Content()}, Name=self.volume)
        self.fill()

    def fill(self) -> bool:
        return self.write(self.alpha, self.volume, sync=self.chance.random() < 0.5)

    def send(self) -> bool:
        while len(self.sent) >= MOST_SNAPSHOTS:
            self.remove()
        snapshot = self.snapshot(self.volume)
        content = self.record.content(snapshot_thing(self.alpha, snapshot))
        states: dict[Thing, State] = {
            snapshot_thing(self.beta, snapshot): content,
            snapshot_thing(self.alpha, f"{snapshot}@{self.beta.name}"): content,
        }
        if self.sent:
            states[snapshot_thing(self.alpha, f"{self.sent[-1]}@{self.beta.name}")] = None
        self.call("Snapshot.Send", states, Name=snapshot, Host=self.beta.name)
        self.sent.append(snapshot)
        return True

    def remove(self) -> bool:
        """Remove an old snapshot on one side, then on the other."""
        if len(self.sent) < 3:
            return False
        name = self.sent.pop(0)
        self.call("Snapshot.Remove", {snapshot_thing(self.alpha, name): None}, Name=name)
        begun = time.monotonic()
        self.beta.api.call("Snapshot.Remove", Name=name)
        self.record.add(begun, time.monotonic(), {snapshot_thing(self.beta, name): None})
        return True


class Receiver(User):
    """Receives snapshots that were taken on beta, each as changes of the one before."""

    def __init__(self, world: World, name: str, chance: random.Random) -> None:
        super().__init__(world, name, chance)
        self.volume = f"{name}-db"
        self.kinds = {"write": self.fill, "receive": self.receive}
        self._received: list[str] = []

    def begin(self) -> None:
        begun = time.monotonic()
        self.beta.api.call("Create", Name=self.volume)
        states: dict[Thing, State] = {volume_thing(self.beta, self.volume): Content()}
        self.record.add(begun, time.monotonic(), states)
        self.fill()

    def fill(self) -> bool:
        return self.write(self.beta, self.volume, sync=self.chance.random() < 0.5)

    def receive(self) -> bool:
        self._remove_old()
        content = self.record.content(volume_thing(self.beta, self.volume)).copied()
        begun = time.monotonic()
        name = str(self.beta.api.call("Snapshot", Name=self.volume)["Snapshot"])
        self.record.add(begun, time.monotonic(), {snapshot_thing(self.beta, name): content})
        states: dict[Thing, State] = {
            snapshot_thing(self.alpha, name): content,
            snapshot_thing(self.beta, f"{name}@{self.alpha.name}"): content,
        }
        if self._received:
            before = f"{self._received[-1]}@{self.alpha.name}"
            states[snapshot_thing(self.beta, before)] = None
        self.call("Snapshot.Receive", states, Name=self.volume, Host=self.beta.name)
        self._received.append(name)
        return True

    def _remove_old(self) -> None:
        while len(self._received) >= MOST_SNAPSHOTS:
            name = self._received.pop(0)
            for host in (self.alpha, self.beta):
                begun = time.monotonic()
                host.api.call("Snapshot.Remove", Name=name)
                self.record.add(begun, time.monotonic(), {snapshot_thing(host, name): None})


class Synchronizer(User):
    """Brings the files of a volume on beta into its namesake on alpha."""

    def __init__(self, world: World, name: str, chance: random.Random) -> None:
        super().__init__(world, name, chance)
        self.volume = self.unnamed = f"{name}-db"
        self.kinds = {"write": self.fill, "sync": self.synchronize}

    def begin(self) -> None:
        for host in (self.alpha, self.beta):
            begun = time.monotonic()
            host.api.call("Create", Name=self.volume)
            states: dict[Thing, State] = {volume_thing(host, self.volume): Content()}
            self.record.add(begun, time.monotonic(), states)

    def fill(self) -> bool:
        return self.write(self.beta, self.volume, sync=self.chance.random() < 0.5)

    def synchronize(self) -> bool:
        self.fill()
        here, there = (volume_thing(host, self.volume) for host in (self.alpha, self.beta))
        before, brought = self.record.content(here), self.record.content(there)
        meanwhile = Content(before.synced, before.written, before.begun | brought.begun)
        self._note(here, meanwhile)
        after = Content(
            before.synced | brought.written, before.written | brought.written, meanwhile.begun
        )
        self.call("Volume.Sync", {here: after}, Volumes=[self.volume], Hosts=[self.beta.name])
        return True


class Replicator(Planner):
    """Has jobs of which some send what they have taken."""

    ACTIONS = (*Planner.ACTIONS, "replicate:beta", "mirror:beta")
