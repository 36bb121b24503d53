"""Many volumes, many snapshots."""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from itertools import count
from pathlib import Path

from tests.benchmarks.calls import burst
from tests.benchmarks.host import SNAPSHOTS, Host
from tests.benchmarks.lab import FEW, ORIGINAL_LIMIT, Lab, few, on_each
from tests.benchmarks.measure import Measurement, interleave, medians, percentile
from tests.benchmarks.report import Goal, Row
from tests.benchmarks.subjects import BARE_SNAPSHOTS, Api, among_volumes
from tests.btrfs.harness import UnixConnection
from tests.support.machine import DATA

LIST_GOAL = Goal(0.06)
GROWTH_GOAL = Goal(1.2)
PURGE_GOAL = Goal(1.2, "bare")
DATE_FORMAT = "%Y-%m-%dT%H:%M:%S.%f"
PAGE = "/run/page.sock"
SCHEDULE = "/etc/buttervolume/schedule.csv"
CLIENTS = 16
TAKEN_A_SECOND = 20
PAUSE = 0.05
"""Seconds between two questions of one client: together they ask less than can be answered, so that
the time of an answer is not that of a queue."""
SETTLED = 1.0
"""Seconds of processor time in twice that time that say that jobs are still being run."""
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

    def changed(question: str, name: str | None, host: Host) -> float:
        snapshot = Api(host).snapshot(few(1))[1]
        seconds = host.api.timed(f"VolumeDriver.{question}", Name=name)
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
            medians(interleave(rounds, on_each(hosts, partial(changed, "Snapshot.List", None)))),
        ),
        Row(
            f"Get, {what}, one of them new",
            medians(interleave(rounds, on_each(hosts, partial(changed, "Get", few(1))))),
        ),
    ]


def _growth_with_snapshots(lab: Lab) -> list[Row]:
    """From few snapshots to a great many, of all the volumes in turn."""
    host = lab.aged
    names = [
        f"{few(number % FEW)}@{name.partition('@')[2]}"
        for number, name in enumerate(dated("", lab.sizes.snapshots))
    ]
    sizes = [FEW]
    while sizes[-1] < lab.sizes.snapshots:
        sizes.append(min(lab.sizes.snapshots, sizes[-1] * 10))
    rows: list[Row] = []
    present = 0
    for number in sizes:
        lab.fill_with_snapshots(host, names[present:number])
        present = number
        rows += _with_snapshots(lab, host, number)
    return rows


def _with_snapshots(lab: Lab, host: Host, number: int) -> list[Row]:
    def first() -> float:
        host.stop()
        host.start()
        return host.api.timed("VolumeDriver.Get", Name=few(0))

    def snapshot() -> float:
        seconds, name = Api(host).snapshot(few(1))
        Api(host).remove_snapshot(name)
        return seconds

    measurements: dict[str, Measurement] = {
        "Get, first after a start": first,
        "Get": partial(burst, "Get", host),
        "Snapshot.List of one volume": partial(
            host.api.timed, "VolumeDriver.Snapshot.List/" + few(1)
        ),
        "Snapshot": snapshot,
    }
    goals = {"Get, first after a start": Goal(0.005), "Get": Goal(0.001)}
    rows = []
    for what, measurement in measurements.items():
        found = medians(interleave(min(5, lab.sizes.commands), {"ours": measurement}))
        rows.append(Row(f"{what}, {number:,} snapshots", found, goal=goals.get(what)))
    return rows


def _get_while_snapshots_are_taken(lab: Lab) -> list[Row]:
    """Many clients ask all the time while a snapshot is taken every twentieth of a second."""
    host, number = lab.large, 2 * lab.sizes.many
    there = len(list(host.machine.path(SNAPSHOTS).iterdir()))
    lab.fill_with_snapshots(host, dated(few(2), number)[: max(0, number - there)])
    host.api.call("VolumeDriver.Snapshot.List")
    over = time.monotonic() + lab.sizes.seconds

    def take(_: int) -> list[float]:
        connection = host.connect()
        while time.monotonic() < over:
            connection.call("VolumeDriver.Snapshot", Name=few(1))
            time.sleep(1 / TAKEN_A_SECOND)
        return []

    def ask(client: int) -> list[float]:
        connection, seconds = host.connect(), []
        while time.monotonic() < over:
            seconds.append(connection.timed("VolumeDriver.Get", Name=few(client % FEW)))
            time.sleep(PAUSE)
        return seconds

    with ThreadPoolExecutor(CLIENTS + 1) as pool:
        asking = [pool.submit(ask, client) for client in range(CLIENTS)]
        pool.submit(take, 0).result()
        found = [seconds for each in asking for seconds in each.result()]
    what = f"Get, {number:,} snapshots, {TAKEN_A_SECOND} a second taken, {CLIENTS} clients"
    return [
        Row(f"{what}: median", {"ours": statistics.median(found)}, goal=Goal(0.001)),
        Row(f"{what}: worst", {"ours": max(found)}, goal=Goal(0.02)),
    ]


@contextmanager
def _full_host(lab: Lab, **env: str) -> Iterator[tuple[Host, str]]:
    """A daemon that has been started with this in its environment, many volumes, snapshots of them
    in turn, and jobs that are not run meanwhile; and a text that says how many."""
    host, volumes, snapshots = lab.large, lab.sizes.many, 5 * lab.sizes.many
    jobs = volumes // 10
    lab.fill_with_volumes(host, volumes)
    there = len(list(host.machine.path(SNAPSHOTS).iterdir()))
    lab.fill_with_snapshots(host, dated(few(3), snapshots)[: max(0, snapshots - there)])
    host.stop()
    host.start(BUTTERVOLUME_TIMER=str(24 * 60 * 60), **env)
    rows = (f"{few(number)},snapshot,60" for number in range(jobs))
    host.machine.write(SCHEDULE, "\n".join([*rows, ""]))
    yield host, f"{volumes:,} volumes, {snapshots:,} snapshots, {jobs:,} jobs"
    host.machine.write(SCHEDULE, "")
    host.stop()
    host.start()


def _status(lab: Lab) -> list[Row]:
    """The first after a start finds nothing read; then as it is asked again and again."""
    with _full_host(lab) as (host, what):
        first = host.api.timed("VolumeDriver.Status")
        rounds = min(lab.sizes.commands, 10)
        ask = partial(host.api.timed, "VolumeDriver.Status")
        found = medians(interleave(rounds, {"ours": ask}))
    return [
        Row(f"Status, first after a start, {what}", {"ours": first}),
        Row(f"Status, {what}", found, goal=Goal(0.2)),
    ]


def _log(lab: Lab) -> list[Row]:
    """After all that the other benchmarks have done; `Remove` has recorded one more."""
    host = lab.ours
    for _ in range(lab.sizes.commands):
        volume, subject = lab.name(), Api(host)
        subject.create(volume)
        subject.remove(volume)
    ask = partial(host.api.timed, "VolumeDriver.Log")
    found = medians(interleave(min(lab.sizes.commands, 20), {"ours": ask}))
    return [Row("Log, the last 50", found)]


def _page(lab: Lab) -> list[Row]:
    """Each time one that nobody has asked for a moment before."""
    with _full_host(lab, BUTTERVOLUME_WEB=f"unix:{PAGE}") as (host, what):
        load = partial(_load, host.machine.path(PAGE), count())
        load("/")
        pages = {"/": "the page", f"/volumes/{few(9)}": "a volume's page", "/metrics": "metrics"}
        rows = []
        for path, name in pages.items():
            rested = partial(_after_a_rest, partial(load, path))
            found = medians(interleave(min(lab.sizes.commands, 10), {"ours": rested}))
            goal = None if path == "/metrics" else Goal(0.3)
            rows.append(Row(f"{name}, {what}", found, goal=goal))
    return rows


def _after_a_rest(load: Callable[[], float]) -> float:
    """So that it does not wait for the rest that the page takes after each answer."""
    time.sleep(1)
    return load()


def _load(socket: Path, numbers: Iterator[int], path: str) -> float:
    """Load a page by an address that nobody has asked for before; return the seconds."""
    connection = UnixConnection(socket, 60)
    started = time.monotonic()
    try:
        connection.request("GET", f"{path}?new={next(numbers)}", headers={"Host": "localhost"})
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        answer.read()
    finally:
        connection.close()
    return time.monotonic() - started


def _storm(lab: Lab) -> list[Row]:
    """Docker's question while nobody loads the page, and while several do all the time."""
    clients = 8
    rows = []
    with _full_host(lab, BUTTERVOLUME_WEB=f"unix:{PAGE}") as (host, what):
        page = host.machine.path(PAGE)
        _load(page, count(), "/")

        def asked(over: float) -> list[float]:
            seconds = []
            while time.monotonic() < over:
                seconds.append(host.api.timed("VolumeDriver.Get", Name=few(0)))
                time.sleep(PAUSE / 5)
            return seconds

        def storm(client: int, over: float) -> None:
            numbers = count(client, clients)
            while time.monotonic() < over:
                _load(page, numbers, "/")

        processes = multiprocessing.get_context("fork")  # none of them waits for this one's lock
        for loading, name in ((0, "nobody loads the page"), (clients, f"{clients} clients do")):
            over = time.monotonic() + lab.sizes.seconds
            readers = [processes.Process(target=storm, args=(n, over)) for n in range(loading)]
            for reader in readers:
                reader.start()
            found = asked(over)
            for reader in readers:
                reader.join()
                assert reader.exitcode == 0
            text = f"Get while {name}, {what}"
            rows.append(Row(f"{text}: median", {"ours": statistics.median(found)}))
            rows.append(Row(f"{text}: 99th percentile", {"ours": percentile(found, 99)}))
    return rows


def _round(lab: Lab) -> list[Row]:
    """The processor time of a look at the schedule, when nothing in it is due."""
    host, volumes = lab.large, lab.sizes.many
    jobs = volumes // 2
    lab.fill_with_volumes(host, volumes)
    rows = (f"{few(number)},purge:9y:10y,60" for number in range(jobs))
    host.stop()
    host.machine.write(SCHEDULE, "\n".join([*rows, ""]))
    host.start(BUTTERVOLUME_TIMER="1")
    used = host.processor_time()
    while True:  # each job runs once
        time.sleep(2 * SETTLED)
        used, before = host.processor_time(), used
        if used - before < SETTLED:
            break
    rounds = max(3, round(lab.sizes.seconds))
    time.sleep(rounds)
    per_round = (host.processor_time() - used) / rounds
    host.stop()
    host.machine.write(SCHEDULE, "")
    host.start()
    what = f"processor time of a round, {jobs:,} jobs, {volumes:,} volumes"
    return [Row(what, {"ours": per_round})]


def _memory_with_many(lab: Lab) -> list[Row]:
    """Once they have been listed: those snapshots that `list-snapshots` has made."""
    lab.fill_with_volumes(lab.large, lab.sizes.many)
    for endpoint in ("List", "Snapshot.List"):
        for _ in range(5):
            lab.large.api.call(f"VolumeDriver.{endpoint}")
    what = f"memory with {lab.sizes.many:,} volumes and their snapshots"
    return [Row(what, {"ours": lab.large.memory()}, "MB")]


def _purge(size: Callable[[Lab], int], lab: Lab) -> list[Row]:
    """All but the newest of some old snapshots, and as many by one command and a sync.

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
        seconds = runner.time(["btrfs", "subvolume", "delete", *paths], sync=BARE_SNAPSHOTS)
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
    "snapshots-growth": _growth_with_snapshots,
    "get-while-snapshots": _get_while_snapshots_are_taken,
    "status": _status,
    "log": _log,
    "page": _page,
    "storm": _storm,
    "round": _round,
    "memory-many": _memory_with_many,
    "purge-some": partial(_purge, lambda lab: lab.sizes.some),
    "purge-many": partial(_purge, lambda lab: lab.sizes.many),
}
