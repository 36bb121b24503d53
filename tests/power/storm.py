"""A storm of everything, and the copies of both disks that are taken in it."""

import random
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.power.disks import Disk
from tests.power.users import User, World


@dataclass(frozen=True)
class Scene:
    """Who does what for a while, until the power fails."""

    kinds: frozenset[str]
    users: frozenset[str]
    pause: float
    """The longest rest of a user between two things, in seconds."""
    seconds: float
    moment: str
    """When the power fails: at "any" moment, right after an "answer", or right after an "arrival"
    of a snapshot on the other host."""

    def __str__(self) -> str:
        who, what = (", ".join(sorted(names)) for names in (self.users, self.kinds))
        return f"{who}: {what}; cut at {self.moment}, {self.seconds:.2f} s"


def draw_scene(users: Sequence[User], chance: random.Random) -> Scene:
    """A scene by chance: from one user with one kind of thing to do, to everybody with all."""
    some = chance.sample(users, chance.choice((1, 1, 2, len(users))))
    kinds = sorted({kind for user in some for kind in user.kinds})
    if chance.random() < 0.6:
        kinds = chance.sample(kinds, min(len(kinds), chance.choice((1, 2, 3))))
    return Scene(
        frozenset(kinds),
        frozenset(user.name for user in some),
        pause=chance.choice((0, 0.005, 0.05)),
        seconds=chance.uniform(0.1, 1.0),
        moment=chance.choice(("any", "answer", "arrival" if "send" in kinds else "answer")),
    )


@dataclass(frozen=True)
class Cut:
    """What was on the disks when the power failed everywhere, between these two moments."""

    number: int
    scene: Scene
    begun: float
    ended: float
    disks: dict[str, Disk]
    """By host."""


class Storm:
    """Users who go on until the end of the scenes, each in a thread of its own."""

    def __init__(self, world: World, users: Sequence[User], disks: dict[str, Disk]) -> None:
        self.users, self.record, self._disks = users, world.record, disks
        self._receiver = world.beta
        self._changed = threading.Condition()  # protects _scene and _over
        self._scene: Scene | None = None
        self._over = False

    @contextmanager
    def blowing(self) -> Iterator[None]:
        """Users act meanwhile. At the end each has the answer to what it has asked last."""
        for user in self.users:
            user.begin()
        with ThreadPoolExecutor(len(self.users)) as pool:
            acting = [pool.submit(self._act, user) for user in self.users]
            try:
                yield
            finally:
                self._set(None, over=True)
        for each in acting:
            each.result()

    def play(self, number: int, scene: Scene, shelf: Path) -> Cut:
        """Let a scene go on until its moment comes, and take a copy of each disk."""
        self._set(scene)
        time.sleep(scene.seconds)  # the moment of the cut: any
        match scene.moment:
            case "answer":
                self.record.wait_for_answer(2)
            case "arrival":
                self._receiver.wait_for_arrival(3)
        begun = time.monotonic()
        disks = {
            host: disk.copy(shelf / f"{host}-{number}.btrfs") for host, disk in self._disks.items()
        }
        return Cut(number, scene, begun, time.monotonic(), disks)

    def _set(self, scene: Scene | None, *, over: bool = False) -> None:
        with self._changed:
            self._scene, self._over = scene, over
            self._changed.notify_all()

    def _act(self, user: User) -> None:
        while not self._over:
            if not self._act_once(user):
                with self._changed:
                    self._changed.wait(0.05)

    def _act_once(self, user: User) -> bool:
        scene = self._scene
        if scene is None or user.name not in scene.users:
            return False
        kinds = sorted(scene.kinds & user.kinds.keys())
        if not kinds or not user.kinds[user.chance.choice(kinds)]():
            return False
        time.sleep(user.chance.uniform(0, scene.pause))
        return True
