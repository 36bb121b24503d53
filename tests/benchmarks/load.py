"""The daemon's start, its memory, and its answers while much is going on."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from tests.benchmarks.host import Host
from tests.benchmarks.lab import FEW, Lab, few, on_each
from tests.benchmarks.measure import interleave, medians
from tests.benchmarks.report import Goal, Row
from tests.benchmarks.subjects import Api

CLIENTS = 16
START_GOAL = Goal(0.25)
MEMORY_GOAL = Goal(40e6)


def _start(lab: Lab) -> list[Row]:
    def once(host: Host) -> float:
        host.stop()
        return host.start()

    samples = interleave(min(lab.sizes.commands, 10), on_each(lab.hosts(), once))
    return [Row("start to first answer", medians(samples), goal=START_GOAL)]


def _memory(lab: Lab) -> list[Row]:
    """Resident, after every kind of call; with the commands that run at that moment, if any."""

    def loaded(host: Host) -> float:
        host.stop()
        host.start()
        for _ in range(lab.sizes.commands):
            _use_volume(lab, host)
        _ask_at_once(host, lab.sizes.calls // 10)
        return host.memory()

    found = medians(interleave(1, on_each(lab.hosts(), loaded), warm_up=0))
    return [Row("memory after the load", found, "MB", MEMORY_GOAL)]


def _use_volume(lab: Lab, host: Host) -> None:
    volume, clone, subject = lab.name(), lab.name(), Api(host)
    subject.create(volume)
    for endpoint in ("Mount", "Get", "Path", "List", "Unmount"):
        host.api.call(f"VolumeDriver.{endpoint}", Name=volume, ID="benchmark")
    subject.clone(volume, clone)
    _, snapshot = subject.snapshot(volume)
    _, backup = subject.restore(snapshot)
    host.api.call("VolumeDriver.Snapshot.List")
    for left in (snapshot, backup):
        subject.remove_snapshot(left)
    for left in (volume, clone):
        subject.remove(left)


def _at_once(lab: Lab) -> list[Row]:
    number = max(1, lab.sizes.calls // 10)
    rounds = lab.sizes.transfers
    asking = interleave(rounds, on_each(lab.hosts(), partial(_ask_at_once, number=number)))
    creating = interleave(rounds, on_each(lab.hosts(), partial(_create_at_once, lab)))
    return [
        Row(f"{CLIENTS} clients at once, Get: time per answer", medians(asking)),
        Row(f"{CLIENTS} clients at once, Create: time per answer", medians(creating)),
    ]


def _ask_at_once(host: Host, number: int) -> float:
    """Let every client ask that many times; return the seconds per answer, over all clients."""

    def ask(_: int) -> None:
        connection = host.connect()
        for turn in range(number):
            connection.call("VolumeDriver.Get", Name=few(turn % FEW))
        connection.close()

    return _together(ask) / (CLIENTS * number)


def _create_at_once(lab: Lab, host: Host) -> float:
    volumes = [lab.name() for _ in range(CLIENTS)]

    def create(client: int) -> None:
        connection = host.connect()
        connection.call("VolumeDriver.Create", Name=volumes[client], Opts=None)
        connection.close()

    seconds = _together(create)
    for volume in volumes:
        host.api.call("VolumeDriver.Remove", Name=volume)
    return seconds / CLIENTS


def _together(act: Callable[[int], None]) -> float:
    with ThreadPoolExecutor(CLIENTS) as pool:
        started = time.perf_counter()
        list(pool.map(act, range(CLIENTS)))
        return time.perf_counter() - started


BENCHMARKS: dict[str, Callable[[Lab], list[Row]]] = {
    "start": _start,
    "memory": _memory,
    "clients": _at_once,
}
