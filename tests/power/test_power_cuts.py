"""The power fails in a storm of everything: what was answered is there, and nothing is half there.

`./test.sh tests/power --cuts 200` tries more moments than the usual 40.
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence

import pytest

from tests.power.checks import Checker
from tests.power.conftest import Laboratory
from tests.power.disks import Disk
from tests.power.record import Record
from tests.power.senders import Receiver, Replicator, Sender, Synchronizer
from tests.power.storm import Cut, Scene, Storm, draw_scene
from tests.power.users import (
    Clerk,
    Keeper,
    Purger,
    User,
    World,
    volume_thing,
)

ROUND = 20
"""Cuts of one storm: then all are looked at, and the next storm begins on empty disks."""


def everybody(world: World, seed: str, *, peer: bool) -> list[User]:
    """All users, those included that need `buttervolume peer` on the other host if it is there."""
    kinds: list[type[User]] = [Keeper, Keeper, Keeper, Purger, Clerk]
    kinds += [Sender, Sender, Synchronizer, Replicator, *([Receiver] if peer else [])]
    return [
        kind(world, f"{kind.__name__.lower()}{number}", random.Random(f"{seed} {number}"))
        for number, kind in enumerate(kinds)
    ]


def cut_and_look(
    laboratory: Laboratory,
    scenes: Callable[[Sequence[User]], Iterable[Scene]],
    seed: str,
    environ: Mapping[str, str] | None = None,
    *,
    peer: bool = False,
) -> list[str]:
    """Let a storm blow, cut the power at the end of each scene, and tell what is wrong then."""
    hosts = (laboratory.alpha, laboratory.beta)
    record = Record()
    world = World(*hosts, record)
    users = everybody(world, seed, peer=peer)
    disks = {host.name: Disk.make(laboratory.shelf / f"{host.name}.btrfs") for host in hosts}
    cuts: list[Cut] = []
    for host in hosts:
        host.switch_on(disks[host.name], environ)
    try:
        storm = Storm(world, users, disks)
        with storm.blowing():
            for number, scene in enumerate(scenes(users)):
                cuts.append(storm.play(number, scene, laboratory.shelf))
    finally:
        for host in hosts:
            host.switch_off()
            disks[host.name].remove()
    unnamed = {
        user.unnamed: volume_thing(laboratory.alpha, user.unnamed)
        for user in users
        if user.unnamed is not None
    }
    checker = Checker(hosts, record, unnamed)
    found = []
    for cut in cuts:
        found += [
            f"cut {cut.number + 1} of {seed} ({cut.scene}): {problem}"
            for problem in checker.problems(cut)
        ]
        for disk in cut.disks.values():
            disk.remove()
    return found


def test_what_was_answered_is_there_after_a_power_cut(
    laboratory: Laboratory, pytestconfig: pytest.Config
) -> None:
    cuts: int = pytestconfig.getoption("--cuts")
    found = []

    for number_of_round, first in enumerate(range(0, cuts, ROUND), 1):
        chance = random.Random(first)
        number = min(ROUND, cuts - first)

        def scenes(
            users: Sequence[User], chance: random.Random = chance, number: int = number
        ) -> list[Scene]:
            return [draw_scene(users, chance) for _ in range(number)]

        with laboratory.peers(installed=number_of_round % 2 == 0) as peer:
            found += cut_and_look(laboratory, scenes, f"round {number_of_round}", peer=peer)

    assert not found, "\n".join(found)
