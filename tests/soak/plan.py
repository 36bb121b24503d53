"""Which volumes and jobs there are, and what happens when."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from tests.soak.clock import TICK
from tests.soak.rules import When

VOLUMES = 300
CREATED_PER_TICK = 20
SETTLING = 24
"""Ticks after which there are all volumes, and as many snapshots as there will be."""
WARMING_UP = 12
"""Ticks after which a daemon that was started has done everything once, and has what that needs."""
SHIFT = datetime(2026, 10, 25, 1, tzinfo=UTC)
"""When clocks are set back by an hour: a long soak goes on before and after that."""
_SHORT = 144

SNAPSHOT, PURGE = When(60), When(30)
"""The jobs of all volumes, by patterns, but for those that have others of the kind."""
TRANSFER = When(120)
"""Those with the peer: an ssh costs more than a snapshot."""
KEPT = "40m"


REPLICATED, MIRRORED = range(0, VOLUMES, 25), range(6, VOLUMES, 50)
"""The numbers of the volumes that are; apart, so that they are not due in one minute."""


@dataclass(frozen=True)
class Volume:
    """A volume that is there for good, and the jobs that it has."""

    name: str
    jobs: Mapping[str, When]
    options: Mapping[str, str] = field(default_factory=dict)
    """Those jobs that are made with it."""


def _name(number: int) -> str:
    return f"db-{number:03}"


def is_mirrored(volume: "Volume") -> bool:
    """Whether its snapshots are sent as they are."""
    return any(action.startswith("mirror:") for action in volume.jobs)


def volumes(peer: str) -> Iterator[Volume]:
    """The volumes of the host whose jobs are looked at."""
    every = When(minutes=frozenset((3, 18, 33, 48)))
    for number in range(VOLUMES):
        own: dict[str, When] = {}
        if number in REPLICATED:
            own[f"replicate:{peer}"] = TRANSFER
        elif number in MIRRORED:
            own[f"mirror:{peer}"] = TRANSFER
        elif number % 15 == 2:
            own["snapshot"] = every
        elif number % 15 == 3:
            own["snapshot"] = When(10)
        elif number % 30 == 4:
            own[f"purge:{KEPT}"] = When(minutes=frozenset((5, 35)))
        jobs = {"snapshot": SNAPSHOT, f"purge:{KEPT}": PURGE, **own}
        yield Volume(_name(number), jobs, {action: str(when) for action, when in own.items()})


FAR = [*(f"far-{number}" for number in range(3)), "far-sent"]
"""Volumes of the peer, whose snapshots are received here."""
BOTH = [*(f"both-{number}" for number in range(3)), "both-sent"]
"""Volumes of both, whose files are synchronized from the peer."""


def rows(peer: str) -> Iterator[tuple[str, str, When]]:
    """The rest of the schedule here: volume or pattern, action, and when."""
    for pattern in ("db-*", "both-*", "sent-*"):
        yield pattern, "snapshot", SNAPSHOT
        yield pattern, f"purge:{KEPT}", PURGE
    yield from tenants()
    for name in FAR[:-1]:
        yield name, f"receive:{peer}", TRANSFER
    for name in BOTH[:-1]:
        yield name, f"synchronize:{peer}", TRANSFER


def tenants() -> Iterator[tuple[str, str, When]]:
    """The jobs of volumes that come and go."""
    yield "app-*", "snapshot", When(15)
    yield "app-*", "purge:15m", PURGE


def rows_of_peer() -> Iterator[tuple[str, str, When]]:
    """The schedule of the peer."""
    for pattern in ("far-*", "both-*"):
        yield pattern, "snapshot", When(15)
        yield pattern, f"purge:{KEPT}", PURGE
    yield from tenants()


ARRIVED = 18
"""Ticks after which the first snapshots are on the other host."""


def purges() -> tuple[list[str], list[str]]:
    """The volumes that there are only copies of, here and on the peer: a purge has to be asked for
    by name, once there is something to purge."""
    return FAR[:-1], [_name(n) for n in (*REPLICATED, *MIRRORED)]


# What happens


@dataclass(frozen=True)
class Happening:
    """Something that is done to the hosts."""

    what: str
    """"sshd", "cut" or "hole" to the peer; "term" or "kill" to the daemon."""
    ticks: int
    """How long it lasts."""


def happenings(ticks: int) -> dict[int, Happening]:
    """What happens in a soak of so many ticks, by tick. The daemon's first start lasts for a
    quarter, its last for another one, so that what grows has time for it; the peer comes and goes
    all the time."""
    chance = random.Random(ticks)
    found: dict[int, Happening] = {}
    kinds = ["cut", "sshd", "hole"]
    tick = ARRIVED + 2
    while tick < ticks - 12:
        kinds.append(kinds.pop(0))
        found[tick] = Happening(kinds[-1], chance.randint(2, 6))
        tick += chance.randint(10, 20)
    ends = ["kill", "term"]
    tick = max(round(ticks * 0.3), ARRIVED + 4)
    while tick < ticks * 0.65:
        ends.append(ends.pop(0))
        found[tick] = Happening(ends[-1], chance.randint(0, 3))
        tick += max(10, min(30, round(ticks * 0.2)))
    return found


def beginning(ticks: int) -> datetime:
    """The first tick of a soak of so many. A short one begins after the shift: for an hour, the
    clock shows what it has shown before, and nothing gets old."""
    return SHIFT - (ticks // 2 if ticks > _SHORT else -24) * TICK


def end(ticks: int) -> datetime:
    """The tick after the last."""
    return beginning(ticks) + ticks * TICK
