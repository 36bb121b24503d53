"""Many volumes, many snapshots."""

from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial

from tests.benchmarks.calls import burst
from tests.benchmarks.host import SNAPSHOTS, Host
from tests.benchmarks.lab import FEW, ORIGINAL_LIMIT, Lab, few, on_each
from tests.benchmarks.measure import Measurement, interleave, medians
from tests.benchmarks.report import Goal, Row
from tests.benchmarks.subjects import BARE_SNAPSHOTS, Api, among_volumes
from tests.support.machine import DATA

LIST_GOAL = Goal(0.1)
GROWTH_GOAL = Goal(1.2)
PURGE_GOAL = Goal(1.5, "bare")
DATE_FORMAT = "%Y-%m-%dT%H:%M:%S.%f"
SHORT = 1000
"""Purges of more than this take minutes: there are two rounds, and one for the original."""


def _list(size: Callable[[Lab], int], lab: Lab) -> list[Row]:
    number = size(lab)
    hosts = dict(lab.large_hosts())
    if number > ORIGINAL_LIMIT:
        hosts.pop("original", None)
    for host in hosts.values():
        lab.fill_with_volumes(host, number)

    def once(host: Host) -> float:
        return host.api.timed("VolumeDriver.List")

    measurements = on_each(hosts, once)
    measurements["bare"] = partial(
        lab.large.runner.time, ["btrfs", "subvolume", "list", "-o", DATA]
    )
    rounds = min(lab.sizes.commands, 20)
    goal = LIST_GOAL if number == lab.sizes.many else None
    return [Row(f"List, {number:,} volumes", medians(interleave(rounds, measurements)), goal=goal)]


def _growth_of_create(lab: Lab) -> list[Row]:
    number = lab.sizes.many
    lab.fill_with_volumes(lab.large, number)
    few_bare, many_bare = lab.bare, among_volumes(lab.large)

    def once(subject: Api) -> float:
        volume = lab.name()
        seconds = subject.create(volume)
        subject.remove(volume)
        return seconds

    def once_bare(where: str) -> float:
        bare = {"few": few_bare, "many": many_bare}[where]
        volume = lab.name()
        seconds = bare.create(volume)
        bare.remove(volume)
        return seconds

    measurements: dict[str, Measurement] = {
        "few": partial(once, Api(lab.ours)),
        "many": partial(once, Api(lab.large)),
        "few bare": partial(once_bare, "few"),
        "many bare": partial(once_bare, "many"),
    }
    found = medians(interleave(lab.sizes.commands, measurements, warm_up=3))
    growth = {
        "ours": found["many"] / found["few"],
        "bare": found["many bare"] / found["few bare"],
    }
    return [
        Row(
            f"Create, {number:,} volumes present",
            {"ours": found["many"], "bare": found["many bare"]},
        ),
        Row(f"growth of Create from {FEW} to {number:,}", growth, "×", GROWTH_GOAL),
    ]


def _growth_of_get(lab: Lab) -> list[Row]:
    number = lab.sizes.many
    lab.fill_with_volumes(lab.large, number)
    measurements: dict[str, Measurement] = {
        "few": partial(burst, "Get", lab.ours),
        "many": partial(burst, "Get", lab.large),
    }
    found = medians(interleave(lab.sizes.calls // FEW, measurements, warm_up=3))
    growth = {"ours": found["many"] / found["few"]}
    return [
        Row(f"Get, {number:,} volumes present", {"ours": found["many"]}),
        Row(f"growth of Get from {FEW} to {number:,}", growth, "×", GROWTH_GOAL),
    ]


def _list_snapshots(lab: Lab) -> list[Row]:
    """With the directory as it was at the last look, and changed since."""
    number = lab.sizes.many
    hosts = lab.large_hosts()
    for host in hosts.values():
        there = len(list(host.machine.path(SNAPSHOTS).iterdir()))
        lab.fill_with_snapshots(host, dated(few(0), number - there))

    def unchanged(host: Host) -> float:
        return host.api.timed("VolumeDriver.Snapshot.List")

    def changed(question: str, host: Host) -> float:
        snapshot = Api(host).snapshot(few(1))[1]
        seconds = host.api.timed(f"VolumeDriver.{question}", Name=few(1))
        Api(host).remove_snapshot(snapshot)
        host.api.timed("VolumeDriver.Snapshot.List")
        return seconds

    rounds = min(lab.sizes.commands, 20)
    what = f"{number:,} snapshots"
    return [
        Row(
            f"Snapshot.List, {what}",
            medians(interleave(rounds, on_each(hosts, unchanged))),
        ),
        Row(
            f"Snapshot.List, {what}, one of them new",
            medians(interleave(rounds, on_each(hosts, partial(changed, "Snapshot.List")))),
        ),
        Row(
            f"Get, {what}, one of them new",
            medians(interleave(rounds, on_each(hosts, partial(changed, "Get")))),
        ),
    ]


def _memory_with_many(lab: Lab) -> list[Row]:
    """Once they have been listed: those snapshots that `list-snapshots` has made."""
    lab.fill_with_volumes(lab.large, lab.sizes.many)
    for endpoint in ("List", "Snapshot.List"):
        for _ in range(5):
            lab.large.api.call(f"VolumeDriver.{endpoint}")
    what = f"memory with {lab.sizes.many:,} volumes and their snapshots"
    return [Row(what, {"ours": lab.large.memory()}, "MB")]


def _purge(size: Callable[[Lab], int], lab: Lab) -> list[Row]:
    """All but the newest of some old snapshots, and as many by one command.

    They have been listed before: a daemon has seen the snapshots that it took over the years.
    """
    number = size(lab)
    runner = lab.ours.runner
    runner.run(["mkdir", "-p", BARE_SNAPSHOTS])

    def once(host: Host) -> float:
        lab.fill_with_snapshots(host, dated(few(0), number + 1))
        host.api.call("VolumeDriver.Snapshot.List")
        seconds = host.api.timed("VolumeDriver.Snapshots.Purge", Name=few(0), Pattern="1h:1d")
        left = list(host.machine.path(SNAPSHOTS).glob(f"{few(0)}@*"))
        for path in left:
            Api(host).remove_snapshot(path.name)
        host.sync()
        return seconds

    def bare() -> float:
        names = dated(few(0), number)
        lab.fill_with_snapshots(lab.ours, names, BARE_SNAPSHOTS)
        paths = [f"{BARE_SNAPSHOTS}/{name}" for name in names]
        seconds = runner.time(["btrfs", "subvolume", "delete", *paths])
        lab.ours.sync()
        return seconds

    measurements = on_each(lab.hosts(), once)
    measurements["bare"] = bare
    if number <= SHORT:
        found = medians(interleave(lab.sizes.transfers, measurements))
    else:
        original = measurements.pop("original", None)
        found = medians(interleave(2, measurements, warm_up=0))
        if original is not None:
            found["original"] = original()
    return [Row(f"purge of {number:,}", found, goal=PURGE_GOAL)]


def dated(volume: str, number: int) -> list[str]:
    """Names of snapshots, taken every ten minutes long ago."""
    first = datetime(2020, 1, 1, 0, 0, 0, 1)
    dates = (first + timedelta(minutes=10 * index) for index in range(number))
    return [f"{volume}@{date.strftime(DATE_FORMAT)}" for date in dates]


BENCHMARKS: dict[str, Callable[[Lab], list[Row]]] = {
    "list-few": partial(_list, lambda lab: FEW),
    "list-original": partial(_list, lambda lab: min(ORIGINAL_LIMIT, lab.sizes.some)),
    "list-some": partial(_list, lambda lab: lab.sizes.some),
    "list-many": partial(_list, lambda lab: lab.sizes.many),
    "create-growth": _growth_of_create,
    "get-growth": _growth_of_get,
    "list-snapshots": _list_snapshots,
    "memory-many": _memory_with_many,
    "purge-some": partial(_purge, lambda lab: lab.sizes.some),
    "purge-many": partial(_purge, lambda lab: lab.sizes.many),
}
