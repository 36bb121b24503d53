"""To and from another host, over ssh."""

import os
import shlex
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from buttervolume.system import btrfs
from tests.benchmarks.host import SNAPSHOTS, VOLUMES, Host
from tests.benchmarks.lab import FEW, Lab, few, on_each
from tests.benchmarks.measure import Measurement, Samples, interleave, medians, percentile
from tests.benchmarks.report import Goal, Row
from tests.benchmarks.subjects import BARE_SNAPSHOTS, BARE_VOLUMES, Api
from tests.support.machine import DATA

TRANSFER_GOAL = Goal(1.05, "bare")
CHANGE_GOAL = Goal(1.15, "bare")
CHECKED_GOAL = Goal(1 / 0.9, "bare")
PATIENCE_GOAL = Goal(0.005)
PAUSE = 0.002
"""Seconds between two questions while a send is going on."""
SMALL = 1000
"""Bytes of a small file."""
RECEIVED = f"{DATA}/bare"
"""Where the other host receives from the bare pipe."""

Fill = Callable[[Lab, Path], None]


def _fill_large(lab: Lab, directory: Path) -> None:
    pieces = 8
    for number in range(pieces):
        (directory / f"large{number}").write_bytes(os.urandom(lab.sizes.large_file // pieces))


def _fill_small(lab: Lab, directory: Path) -> None:
    for number in range(lab.sizes.small_files):
        part = directory / f"part{number // 100}"
        part.mkdir(exist_ok=True)
        (part / f"small{number}").write_bytes(os.urandom(SMALL))


def _fill_mixed(lab: Lab, directory: Path) -> None:
    (directory / "large").write_bytes(os.urandom(lab.sizes.large_file // 4))
    for number in range(lab.sizes.small_files // 10):
        (directory / f"small{number}").write_bytes(os.urandom(SMALL))


def _filled(lab: Lab, host: Host, volume: str, fill: Fill) -> None:
    """See that there is a volume of that name, with that in it.

    The two programs differ in whether a volume is copy-on-write by default, and so in what BTRFS
    makes of the same files: only with copy-on-write it keeps small ones within its metadata, where
    they are soon read, and gives large ones checksums.
    """
    if not host.machine.path(f"{VOLUMES}/{volume}").exists():
        Api(host).create(volume, copyonwrite="true")
        fill(lab, host.machine.path(f"{VOLUMES}/{volume}"))


def _snapshot(lab: Lab, host: Host, volume: str, fill: Fill) -> str:
    """A snapshot of such a volume."""
    _filled(lab, host, volume, fill)
    return Api(host).snapshot(volume)[1]


# Send


def _send(lab: Lab, host: Host, snapshot: str) -> float:
    """Send it, then forget on both sides that it was sent."""
    _settle(lab, host)
    seconds = host.api.timed("VolumeDriver.Snapshot.Send", Name=snapshot, Host="peer")
    _forget(lab, host, snapshot)
    return seconds


def _settle(lab: Lab, host: Host) -> None:
    for each in (host, lab.peer(host)):
        each.sync()


def _forget(lab: Lab, host: Host, snapshot: str) -> None:
    lab.peer(host).runner.run(["btrfs", "subvolume", "delete", f"{SNAPSHOTS}/{snapshot}"])
    host.runner.run(["btrfs", "subvolume", "delete", f"{SNAPSHOTS}/{snapshot}@peer"])


def _pipe(snapshot: str, parent: str | None = None) -> list[str]:
    """The pipe that an administrator would type who wants the copy to outlive a power cut."""
    since = f"-p {SNAPSHOTS}/{parent} " if parent else ""
    there = f"'btrfs receive {RECEIVED} && btrfs filesystem sync {RECEIVED}'"
    pipe = f"btrfs send -q {since}{SNAPSHOTS}/{snapshot} | ssh -p 1122 peer {there}"
    return ["bash", "-c", f"set -o pipefail; {pipe}"]


def _send_bare(lab: Lab, snapshot: str) -> float:
    _settle(lab, lab.ours)
    peer = lab.peer(lab.ours)
    peer.runner.run(["mkdir", "-p", RECEIVED])
    seconds = lab.ours.runner.time(_pipe(snapshot))
    peer.runner.run(["btrfs", "subvolume", "delete", f"{RECEIVED}/{snapshot}"])
    return seconds


def _send_in_full(what: Callable[[Lab], str], fill: Fill, lab: Lab) -> list[Row]:
    volume = lab.name()
    measurements: dict[str, Measurement] = {}
    for column, host in lab.hosts().items():
        measurements[column] = partial(_send, lab, host, _snapshot(lab, host, volume, fill))
        if host is lab.ours:
            taken = _snapshot(lab, host, volume, fill)
            measurements["bare"] = partial(_send_bare, lab, taken)
    samples = interleave(lab.sizes.transfers, measurements)
    _remove(lab.hosts().values(), volume)
    return [Row(f"send of {what(lab)}", medians(samples), goal=TRANSFER_GOAL, unit="s")]


def _remove(hosts: Iterable[Host], volume: str) -> None:
    """Remove a volume and its snapshots."""
    for host in hosts:
        Api(host).remove(volume)
        for path in host.machine.path(SNAPSHOTS).glob(f"{volume}@*"):
            host.runner.run(["btrfs", "subvolume", "delete", f"{SNAPSHOTS}/{path.name}"])


def _send_changes(lab: Lab) -> list[Row]:
    """Every round writes the change into a volume of its own column, and sends it."""
    measurements: dict[str, Measurement] = {}
    for column, host in lab.hosts().items():
        measurements[column] = partial(_send_change, lab, host, _start_chain(lab, host))
    volume, parents = _start_chain(lab, lab.ours), [""]
    measurements["bare"] = partial(_send_change_bare, lab, volume, parents)
    samples = interleave(max(lab.sizes.transfers, lab.sizes.commands // 4), measurements, 2)
    what = f"incremental send of {_size(lab.sizes.change)}"
    return [Row(what, medians(samples), goal=CHANGE_GOAL)]


CHECK = """
import sys
from uuid import UUID
from buttervolume.hosts.stream import Announced, Checker
from buttervolume.hosts.wire import Inlet
from buttervolume.system.command import Flow, enlarge
name, uuid, ctransid = sys.argv[1:]
enlarge(1)
checker = Checker(Announced(name, UUID(uuid), int(ctransid)))
Inlet(0).pass_stream(checker, 1, stall=60, flow=Flow())
"""
"""Checks a stream between its input and its output."""


def _check_stream(lab: Lab) -> list[Row]:
    """A stream from one directory to another, as it is and through the checker."""
    host, volume = lab.ours, lab.name()
    host.runner.run(["mkdir", "-p", RECEIVED])
    snapshot = _snapshot(lab, host, volume, _fill_large)
    host.sync()
    info = btrfs.info(host.machine.path(f"{SNAPSHOTS}/{snapshot}"))
    python = Path(host.program.argv[0]).with_name("python")
    check = shlex.join([str(python), "-c", CHECK, snapshot, str(info.uuid), str(info.changed)])

    def receive(through: str) -> float:
        host.sync()
        pipe = f"btrfs send -q {SNAPSHOTS}/{snapshot} {through} | btrfs receive -q {RECEIVED}"
        seconds = host.runner.time(["bash", "-c", f"set -o pipefail; {pipe}"])
        host.runner.run(["btrfs", "subvolume", "delete", f"{RECEIVED}/{snapshot}"])
        return seconds

    measurements: dict[str, Measurement] = {
        "ours": partial(receive, f"| {check}"),
        "bare": partial(receive, ""),
    }
    samples = interleave(lab.sizes.transfers, measurements)
    _remove([host], volume)
    what = f"stream of {_size(lab.sizes.large_file)}, checked"
    return [Row(what, medians(samples), goal=CHECKED_GOAL, unit="s")]


def _start_chain(lab: Lab, host: Host) -> str:
    volume = lab.name()
    Api(host).create(volume)
    lab.peer(host)
    return volume


def _change(lab: Lab, host: Host, volume: str) -> str:
    file = host.machine.path(f"{VOLUMES}/{volume}/file")
    file.write_bytes(os.urandom(lab.sizes.change))
    snapshot = Api(host).snapshot(volume)[1]
    _settle(lab, host)
    return snapshot


def _send_change(lab: Lab, host: Host, volume: str) -> float:
    snapshot = _change(lab, host, volume)
    return host.api.timed("VolumeDriver.Snapshot.Send", Name=snapshot, Host="peer")


def _send_change_bare(lab: Lab, volume: str, parents: list[str]) -> float:
    lab.peer(lab.ours).runner.run(["mkdir", "-p", RECEIVED])
    snapshot = _change(lab, lab.ours, volume)
    seconds = lab.ours.runner.time(_pipe(snapshot, parents[-1] or None))
    parents.append(snapshot)
    return seconds


# Driver calls during a send


def _get_during_send(lab: Lab) -> list[Row]:
    volume = lab.name()
    quiet: Samples = {}
    busy: Samples = {}
    for column, host in lab.hosts().items():
        snapshot = _snapshot(lab, host, volume, _fill_large)
        quiet[column] = [_get(host) for _ in range(lab.sizes.calls)]
        busy[column] = [
            seconds
            for _ in range(max(2, lab.sizes.transfers // 2))
            for seconds in _ask_during_send(lab, host, snapshot)
        ]
    _remove(lab.hosts().values(), volume)

    def rank(samples: Samples) -> dict[str, float]:
        return {column: percentile(values, 99) for column, values in samples.items()}

    sent = _size(lab.sizes.large_file)
    return [
        Row("Get's 99th percentile, no send", rank(quiet)),
        Row(f"Get's 99th percentile during a send of {sent}", rank(busy), goal=PATIENCE_GOAL),
        Row(f"Get's median during a send of {sent}", medians(busy)),
    ]


def _get(host: Host) -> float:
    time.sleep(PAUSE)
    return host.api.timed("VolumeDriver.Get", Name=few(int(time.monotonic_ns()) % FEW))


def _ask_during_send(lab: Lab, host: Host, snapshot: str) -> list[float]:
    _settle(lab, host)
    connection = host.connect()
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(
            connection.call, "VolumeDriver.Snapshot.Send", Name=snapshot, Host="peer"
        )
        samples = []
        while not sending.done():
            samples.append(_get(host))
        sending.result()
    connection.close()
    _forget(lab, host, snapshot)
    return samples


# Sync

RSYNC = (
    "rsync", "--archive", "--hard-links", "--acls", "--xattrs", "--sparse", "--numeric-ids",
    "--update", "--rsh", "ssh -p 1122",
)  # fmt: skip


def _sync(lab: Lab) -> list[Row]:
    """Files that are all new, then files of which none is."""
    volume = lab.name()
    for host in lab.hosts().values():
        _filled(lab, lab.peer(host), volume, _fill_mixed)
    new = {column: partial(_sync_new, lab, host, volume) for column, host in lab.hosts().items()}
    new["bare"] = partial(_sync_new_bare, lab, volume)
    all_new = interleave(lab.sizes.transfers, new)
    for host in lab.hosts().values():
        Api(host).create(volume)
    _bare_volume(lab, volume)
    same = on_each(lab.hosts(), partial(_sync_once, lab, volume))
    same["bare"] = partial(lab.ours.runner.time, _rsync(volume))
    none_new = interleave(max(lab.sizes.transfers, lab.sizes.commands // 4), same)
    _remove(lab.hosts().values(), volume)
    files, size = lab.sizes.small_files // 10, _size(lab.sizes.large_file // 4)
    return [
        Row(f"sync, {size} and {files:,} files new", medians(all_new), "s", TRANSFER_GOAL),
        Row(f"sync, none of {files:,} files new", medians(none_new), "ms", TRANSFER_GOAL),
    ]


def _sync_once(lab: Lab, volume: str, host: Host) -> float:
    return host.api.timed("VolumeDriver.Volume.Sync", Volumes=[volume], Hosts=["peer"])


def _sync_new(lab: Lab, host: Host, volume: str) -> float:
    Api(host).create(volume)
    _settle(lab, host)
    seconds = _sync_once(lab, volume, host)
    Api(host).remove(volume)
    return seconds


def _sync_new_bare(lab: Lab, volume: str) -> float:
    _bare_volume(lab, volume)
    _settle(lab, lab.ours)
    seconds = lab.ours.runner.time(_rsync(volume))
    lab.ours.runner.run(["btrfs", "subvolume", "delete", f"{BARE_VOLUMES}/{volume}"])
    return seconds


def _bare_volume(lab: Lab, volume: str) -> None:
    """A subvolume for the bare rsync, like those that the daemon makes."""
    path = f"{BARE_VOLUMES}/{volume}"
    lab.ours.runner.run(
        ["mkdir", "-p", BARE_VOLUMES, BARE_SNAPSHOTS],
        ["btrfs", "subvolume", "create", path],
        ["chattr", "+C", path],
    )


def _rsync(volume: str) -> list[str]:
    return [*RSYNC, f"peer:{VOLUMES}/{volume}/", f"{BARE_VOLUMES}/{volume}/"]


def _size(number: int) -> str:
    for unit, name in ((1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "kB")):
        if number >= unit:
            return f"{number // unit} {name}"
    return f"{number} bytes"


BENCHMARKS: dict[str, Callable[[Lab], list[Row]]] = {
    "get-during-send": _get_during_send,
    "send-large": partial(_send_in_full, lambda lab: _size(lab.sizes.large_file), _fill_large),
    "send-small": partial(
        _send_in_full, lambda lab: f"{lab.sizes.small_files:,} small files", _fill_small
    ),
    "send-change": _send_changes,
    "check-stream": _check_stream,
    "sync": _sync,
}
