"""Users of two hosts, each with names of its own, who record what they ask and what is answered.

A user does one thing after the other, so that the record knows the order; several users at once
make the storm. Each offers what it can do by kind, so that a scene can have some kinds only: where
snapshots are taken all the time, each of them syncs the whole filesystem, and no sync is missed.
"""

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from tests.btrfs.harness import btrfs
from tests.hosts.harness import SNAPSHOTS, VOLUMES
from tests.power.hosts import PowerHost
from tests.power.record import Content, Record, State, Thing, bytes_of

SIZES = (0, 17, 900, 5_000, 40_000, 300_000)
"""Of files, in bytes: the smallest lie in the metadata of BTRFS, the largest in several extents."""
MOST_FILES = 40
MOST_SNAPSHOTS = 8
NAMES = 5
"""How many volumes a user has at most: names that are used again tell more than new ones."""


@dataclass(frozen=True)
class World:
    """What all users share."""

    alpha: PowerHost
    beta: PowerHost
    record: Record


def volume_thing(host: PowerHost, name: str) -> Thing:
    return Thing(host.name, "volume", name)


def removed_thing(host: PowerHost, name: str) -> Thing:
    """The volume of that name that was removed last, of those that can be had back."""
    return Thing(host.name, "removed", name)


def snapshot_thing(host: PowerHost, name: str) -> Thing:
    return Thing(host.name, "snapshot", name)


class User:
    """Somebody who does something of a kind when asked."""

    unnamed: str | None = None
    """A volume of its own of which snapshots are taken whose names it is not told."""

    def __init__(self, world: World, name: str, chance: random.Random) -> None:
        self.world, self.name, self.chance = world, name, chance
        self.alpha, self.beta, self.record = world.alpha, world.beta, world.record
        self.kinds: dict[str, Callable[[], bool]] = {}
        """Each does it, or returns False if there is nothing of that kind to do now."""
        self._files = count(1)

    def begin(self) -> None:
        """What it needs before the storm."""

    def choose(self, names: list[str]) -> str | None:
        return self.chance.choice(names) if names else None

    def call(self, endpoint: str, states: dict[Thing, State], **body: object) -> dict[str, Any]:
        """A call to alpha that must succeed, and the states that it leads to."""
        begun = time.monotonic()
        answer = self.alpha.api.call(endpoint, **body)
        self.record.add(begun, time.monotonic(), states)
        return answer

    # Files

    def write(self, host: PowerHost, volume: str, *, sync: bool = True) -> bool:
        """Write a new file into a volume as a program would that cares for what it writes."""
        thing = volume_thing(host, volume)
        directory = host.path(f"{VOLUMES}/{volume}")
        content = self.record.content(thing)
        while len(content.written) >= MOST_FILES:
            old = self.chance.choice(sorted(content.written))
            content = content.without(old)
            self._note(thing, content)
            (directory / old).unlink()
        name = f"{self.name}-{next(self._files)}-{self.chance.choice(SIZES)}"
        begun = self._note(thing, content.with_begun(name))
        _write(directory / name, sync=sync)
        if sync:
            _sync_directory(directory)
        done = content.with_begun(name).with_written(name, synced=sync)
        self.record.add(begun, time.monotonic(), {thing: done}, answer=False)
        return True

    def _note(self, thing: Thing, state: State) -> float:
        """Record that a state is possible from now on; return this moment."""
        now = time.monotonic()
        self.record.add(now, now, {thing: state}, answer=False)
        return now

    @contextmanager
    def writing(self, host: PowerHost, volume: str) -> Iterator[None]:
        """Meanwhile, write files into the volume."""
        over = threading.Event()

        def go_on() -> None:
            while not over.is_set() and self.write(host, volume, sync=self.chance.random() < 0.5):
                pass

        with ThreadPoolExecutor(1) as pool:
            writer = pool.submit(go_on)
            try:
                yield
            finally:
                over.set()
        writer.result()

    def snapshot(self, volume: str, *, busy: bool = False) -> str:
        """Take a snapshot, perhaps of a volume that somebody writes to."""
        thing = volume_thing(self.alpha, volume)
        before = self.record.content(thing)
        begun = time.monotonic()
        if busy:
            with self.writing(self.alpha, volume):
                name = str(self.alpha.api.call("Snapshot", Name=volume)["Snapshot"])
                ended = time.monotonic()
        else:
            name = str(self.alpha.api.call("Snapshot", Name=volume)["Snapshot"])
            ended = time.monotonic()
        content = before.copied(self.record.content(thing))
        self.record.add(begun, ended, {snapshot_thing(self.alpha, name): content})
        return name


def _write(path: Path, *, sync: bool) -> None:
    with path.open("xb", buffering=0) as file:
        file.write(bytes_of(path.name))
        if sync:
            os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Keeper(User):
    """Makes volumes, fills, copies, restores and removes them."""

    def __init__(self, world: World, name: str, chance: random.Random) -> None:
        super().__init__(world, name, chance)
        self.names = [f"{name}-{number}" for number in range(NAMES)]
        self.volumes: list[str] = []
        self.snapshots: list[str] = []
        self.removed: dict[str, list[Content]] = {}
        """What can be had back under each name, the last removed last."""
        self.kinds = {
            "create": self.create,
            "write": self.fill,
            "snapshot": self.take,
            "restore": self.restore,
            "restore to a new name": self.restore_new,
            "clone": self.clone,
            "remove": self.remove,
            "undelete": self.undelete,
            "purge removed": self.purge_removed,
            "rm": self.remove_snapshot,
        }

    def _free_name(self) -> str | None:
        return self.choose([name for name in self.names if name not in self.volumes])

    def create(self) -> bool:
        name = self._free_name()
        if name is None:
            return self.remove()
        options = self.chance.choice(({}, {"copyonwrite": "true"}, {"compression": "zstd"}))
        self.call("Create", {volume_thing(self.alpha, name): Content()}, Name=name, Opts=options)
        self.volumes.append(name)
        return True

    def fill(self) -> bool:
        name = self.choose(self.volumes)
        return name is not None and self.write(self.alpha, name, sync=self.chance.random() < 0.7)

    def take(self) -> bool:
        name = self.choose(self.volumes)
        if name is None:
            return False
        while len(self.snapshots) >= MOST_SNAPSHOTS:
            self.remove_snapshot()
        self.snapshots.append(self.snapshot(name, busy=self.chance.random() < 0.5))
        return True

    def restore(self) -> bool:
        snapshot, target = self.choose(self.snapshots), self.choose(self.volumes)
        if snapshot is None or target is None:
            return False
        thing = volume_thing(self.alpha, target)
        before = self.record.content(thing)
        after = self.record.content(snapshot_thing(self.alpha, snapshot))
        begun = time.monotonic()
        answer = self.alpha.api.call("Snapshot.Restore", Name=snapshot, Target=target)
        states: dict[Thing, State] = {thing: after}
        if backup := answer.get("VolumeBackup"):
            states[snapshot_thing(self.alpha, backup)] = before.copied()
            self.snapshots.append(backup)
        self.record.add(begun, time.monotonic(), states)
        return True

    def restore_new(self) -> bool:
        snapshot, target = self.choose(self.snapshots), self._free_name()
        if snapshot is None or target is None:
            return False
        content = self.record.content(snapshot_thing(self.alpha, snapshot))
        states: dict[Thing, State] = {volume_thing(self.alpha, target): content}
        self.call("Snapshot.Restore", states, Name=snapshot, Target=target)
        self.volumes.append(target)
        return True

    def clone(self) -> bool:
        source, target = self.choose(self.volumes), self._free_name()
        if source is None or target is None:
            return False
        content = self.record.content(volume_thing(self.alpha, source)).copied()
        states: dict[Thing, State] = {volume_thing(self.alpha, target): content}
        self.call("Clone", states, Name=source, Target=target)
        self.volumes.append(target)
        return True

    def remove(self) -> bool:
        name = self.choose(self.volumes)
        if name is None:
            return False
        self.volumes.remove(name)
        thing = volume_thing(self.alpha, name)
        content = self.record.content(thing)
        states: dict[Thing, State] = {thing: None, removed_thing(self.alpha, name): content}
        self.call("Remove", states, Name=name)
        self.removed.setdefault(name, []).append(content)
        return True

    def undelete(self) -> bool:
        """Bring the last of a name back, mostly under that name."""
        name = self.choose(sorted(self.removed))
        target = name if self.chance.random() < 0.7 else self._free_name()
        if name is None or target is None or target in self.volumes:
            return False
        contents = self.removed[name]
        states: dict[Thing, State] = {volume_thing(self.alpha, target): contents.pop()}
        states[removed_thing(self.alpha, name)] = contents[-1] if contents else None
        self.call("Volume.Undelete", states, Name=name, Target=target)
        self.volumes.append(target)
        if not contents:
            del self.removed[name]
        return True

    def purge_removed(self) -> bool:
        name = self.choose(sorted(self.removed))
        if name is None:
            return False
        answer = self.call(
            "Volume.Removed.Purge", {removed_thing(self.alpha, name): None}, Name=name
        )
        assert len(answer["Purged"]) == len(self.removed.pop(name)), answer
        return True

    def remove_snapshot(self) -> bool:
        name = self.choose(self.snapshots)
        if name is None:
            return False
        self.snapshots.remove(name)
        self.call("Snapshot.Remove", {snapshot_thing(self.alpha, name): None}, Name=name)
        return True


class Purger(User):
    """Makes old snapshots, by hand, and purges them."""

    def __init__(self, world: World, name: str, chance: random.Random) -> None:
        super().__init__(world, name, chance)
        self.volume = f"{name}-db"
        self.kinds = {"write": self.fill, "plant": self.plant, "purge": self.purge}
        self._planted: list[str] = []
        self._dates = count(1)

    def begin(self) -> None:
        thing = volume_thing(self.alpha, self.volume)
        self.call("Create", {thing: Content()}, Name=self.volume)
        self.snapshot(self.volume)  # the newest, which is never purged

    def fill(self) -> bool:
        return self.write(self.alpha, self.volume)

    def plant(self) -> bool:
        if len(self._planted) >= MOST_SNAPSHOTS:
            return self.purge()
        seconds = next(self._dates)
        name = f"{self.volume}@2020-01-01T{seconds // 3600:02}:{seconds // 60 % 60:02}"
        name += f":{seconds % 60:02}.000000"
        content = self.record.content(volume_thing(self.alpha, self.volume)).copied()
        begun = time.monotonic()
        paths = (f"{VOLUMES}/{self.volume}", f"{SNAPSHOTS}/{name}")
        btrfs("subvolume", "snapshot", "-r", *map(self.alpha.path, paths))
        states: dict[Thing, State] = {snapshot_thing(self.alpha, name): content}
        self.record.add(begun, time.monotonic(), states, answer=False)
        self._planted.append(name)
        return True

    def purge(self) -> bool:
        if not self._planted:
            return False
        doomed = [snapshot_thing(self.alpha, name) for name in self._planted]
        answer = self.call(
            "Snapshots.Purge", dict.fromkeys(doomed), Name=self.volume, Pattern="1d:1d"
        )
        assert answer["Purged"] == self._planted, answer
        self._planted = []
        return True


class Clerk(User):
    """Changes the schedule; its volumes do not exist, so that its jobs do nothing."""

    ACTIONS = ("snapshot", "purge:1d:1d", "purge:2h:1d:1w")

    def __init__(self, world: World, name: str, chance: random.Random) -> None:
        super().__init__(world, name, chance)
        self.kinds = {"schedule": self.change, "pause": self.pause}
        self._paused = False

    def change(self) -> bool:
        volume = f"{self.name}-{self.chance.randrange(NAMES)}"
        action = self.chance.choice(self.ACTIONS)
        thing = Thing(self.alpha.name, "job", f"{volume} {action}")
        state = self.record.now(thing)
        minutes = str(self.chance.randint(60, 999))
        timer = minutes if state is None else self.chance.choice([minutes, "pause", "resume", "0"])
        after: State
        match timer:
            case "0":
                after = None
            case "pause" | "resume":
                assert isinstance(state, str)
                after = f"{state.split()[0]} {timer == 'resume'}"
            case _:
                after = f"{minutes} True"
        self.call("Schedule", {thing: after}, Name=volume, Action=action, Timer=timer)
        return True

    def pause(self) -> bool:
        self._paused = not self._paused
        thing = Thing(self.alpha.name, "pause", "all")
        endpoint = "Schedule.Pause" if self._paused else "Schedule.Resume"
        self.call(endpoint, {thing: "paused" if self._paused else None})
        return True


class Planner(User):
    """Has jobs that the scheduler runs by itself, since each change of a job runs it anew."""

    ACTIONS: tuple[str, ...] = ("snapshot", "purge:1m:1m")

    def __init__(self, world: World, name: str, chance: random.Random) -> None:
        super().__init__(world, name, chance)
        self.volume = self.unnamed = f"{name}-db"
        self.kinds = {"write": self.fill, "job": self.plan}
        self._minutes = count(60)

    def begin(self) -> None:
        thing = volume_thing(self.alpha, self.volume)
        self.call("Create", {thing: Content()}, Name=self.volume)

    def fill(self) -> bool:
        return self.write(self.alpha, self.volume, sync=self.chance.random() < 0.5)

    def plan(self) -> bool:
        self.fill()
        action = self.chance.choice(self.ACTIONS)
        minutes = str(next(self._minutes))
        thing = Thing(self.alpha.name, "job", f"{self.volume} {action}")
        states: dict[Thing, State] = {thing: f"{minutes} True"}
        self.call("Schedule", states, Name=self.volume, Action=action, Timer=minutes)
        return True
