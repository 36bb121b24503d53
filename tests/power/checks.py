"""What is wrong on the disks of a cut, seen through a daemon that was started on each."""

import time
from collections.abc import Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

from tests.btrfs.harness import DATE_FORMAT
from tests.hosts.harness import SNAPSHOTS, VOLUMES
from tests.power.hosts import PowerHost
from tests.power.record import Content, Record, State, Thing, bytes_of
from tests.power.storm import Cut
from tests.support.machine import DATA
from tests.support.wait import wait_until

HISTORY = {"history.sqlite", "history.sqlite-shm", "history.sqlite-wal"}
INTEGRITY = f"""
import sqlite3
for line, in sqlite3.connect("{DATA}/config/history.sqlite").execute("PRAGMA integrity_check"):
    print(line)
"""
REMOVED = f"{VOLUMES}/.buttervolume-removed"
SKEW = 1.0
"""Seconds by which the name of a snapshot may be older than what is in it: it is named first."""


class Checker:
    """Looks at cuts, one after the other."""

    def __init__(
        self, hosts: tuple[PowerHost, PowerHost], record: Record, unnamed: Mapping[str, Thing]
    ) -> None:
        """`unnamed`: the volumes that get snapshots whose names nobody is told, by name; and whose
        content these hold."""
        self.hosts, self.record, self._unnamed = hosts, record, unnamed
        self._since_epoch = time.time() - time.monotonic()

    def problems(self, cut: Cut) -> list[str]:
        """All that is wrong after a cut. Its disks are changed by that."""
        with ThreadPoolExecutor() as pool:
            found = [problem for each in pool.map(self._boot, *self._each(cut)) for problem in each]
            try:
                for each in pool.map(self._look, *self._each(cut)):
                    found += each
                found += self._send_again(cut)
            finally:
                for host, log in zip(
                    self.hosts, pool.map(PowerHost.switch_off, self.hosts), strict=True
                ):
                    if "Traceback" in log:
                        found.append(f"{host.name}: {log}")
        return found

    def _each(self, cut: Cut) -> tuple[list[Cut], tuple[PowerHost, ...]]:
        return [cut] * len(self.hosts), self.hosts

    def _boot(self, cut: Cut, host: PowerHost) -> list[str]:
        disk = cut.disks[host.name]
        problems = disk.problems()
        host.switch_on(disk)
        return [f"{host.name}: btrfs check: {problems}"] if problems else []

    def _look(self, cut: Cut, host: PowerHost) -> list[str]:
        wait_until(lambda: not host.leftovers(), timeout=60, what=f"{host.name} to be swept")
        found = [*self._volumes(cut, host), *self._removed(cut, host)]
        found += [*self._snapshots(cut, host), *self._schedule(cut, host)]
        return [f"{host.name}: {problem}" for problem in [*found, *_history(host)]]

    def _possible(self, cut: Cut, thing: Thing) -> list[State]:
        return self.record.possible(thing, cut.begun, cut.ended)

    def _names(self, host: PowerHost, kind: str) -> set[str]:
        return {t.name for t in self.record.things() if (t.host, t.kind) == (host.name, kind)}

    def _volumes(self, cut: Cut, host: PowerHost) -> Iterator[str]:
        listed = set(host.api.names())
        for name in sorted(listed | self._names(host, "volume")):
            path = host.path(f"{VOLUMES}/{name}") if name in listed else None
            possible = self._possible(cut, Thing(host.name, "volume", name))
            yield from _compare(f"volume {name}", path, possible)

    def _removed(self, cut: Cut, host: PowerHost) -> Iterator[str]:
        """Of each name, the volume that was removed last."""
        removed = host.api.call("Volume.Removed")["Removed"]
        last = {each["Name"]: each["Date"] for each in removed}
        for name in sorted(last.keys() | self._names(host, "removed")):
            path = host.path(f"{REMOVED}/{name}@{last[name]}") if name in last else None
            possible = self._possible(cut, Thing(host.name, "removed", name))
            yield from _compare(f"removed volume {name}", path, possible)

    def _snapshots(self, cut: Cut, host: PowerHost) -> Iterator[str]:
        listed = set(host.api.snapshot_names())
        known = self._names(host, "snapshot")
        for name in sorted(listed | known):
            path = host.path(f"{SNAPSHOTS}/{name}") if name in listed else None
            if name in known:
                possible = self._possible(cut, Thing(host.name, "snapshot", name))
            else:
                possible = self._possible_by_date(cut, name)
            yield from _compare(f"snapshot {name}", path, possible)

    def _possible_by_date(self, cut: Cut, name: str) -> list[State]:
        """What a snapshot can hold that was taken without anybody being told its name."""
        volume, date = name.split("@")[:2]
        if volume not in self._unnamed:
            return [None]
        taken = datetime.strptime(date, DATE_FORMAT).timestamp() - self._since_epoch
        thing = self._unnamed[volume]
        if taken > cut.begun:  # taken of what was left, maybe after the cut
            return [None, *self._possible(cut, thing)]
        states = self.record.possible(thing, taken - SKEW, cut.ended)
        return [None, *(s.copied() if isinstance(s, Content) else s for s in states)]

    def _schedule(self, cut: Cut, host: PowerHost) -> Iterator[str]:
        answer = host.api.call("Schedule.List")
        if answer.get("Unreadable"):
            yield f"unreadable rows: {answer['Unreadable']}"
        rows: dict[str, State] = {
            f"{row['Name']} {row['Action']}": f"{row['Timer']} {row['Active']}"
            for row in answer["Schedule"]
        }
        for name in sorted(rows.keys() | self._names(host, "job")):
            possible = self._possible(cut, Thing(host.name, "job", name))
            if rows.get(name) not in possible:
                yield f"job {name} is {rows.get(name)}, not one of {possible}"
        paused = "paused" if answer["Paused"] else None
        possible = self._possible(cut, Thing(host.name, "pause", "all"))
        if paused not in possible:
            yield f"the schedule is {paused}, not one of {possible}"

    def _send_again(self, cut: Cut) -> list[str]:
        """Send what had arrived last, or was on its way, once more: it must arrive whole."""
        alpha, beta = self.hosts
        known = {name for name in self._names(beta, "snapshot") if name.startswith("sender")}
        sent = [name for name in alpha.api.snapshot_names() if name in known]
        if not sent:
            return []
        name = max(sent, key=lambda name: name.split("@")[1])
        answer = alpha.api.post("Snapshot.Send", Name=name, Host=beta.name)
        if answer.error:
            return [f"{name} cannot be sent after the cut: {answer.error}"]
        possible = self._possible(cut, Thing(alpha.name, "snapshot", name))
        path = beta.path(f"{SNAPSHOTS}/{name}") if name in beta.api.snapshot_names() else None
        wanted = [state for state in possible if state is not None]
        return list(_compare(f"{beta.name}: sent after the cut: {name}", path, wanted))


def _compare(what: str, path: Path | None, possible: Sequence[State]) -> Iterator[str]:
    """Say what is wrong with the files there, or with that nothing is there."""
    if path is None:
        if None not in possible:
            yield f"{what} is lost"
        return
    contents = [state for state in possible if isinstance(state, Content)]
    if not contents:
        yield f"{what} is there, and must not be"
        return
    try:
        found = {
            file.name: file.read_bytes() == bytes_of(file.name)
            for file in path.iterdir()
            if not file.name.startswith(".")  # what rsync had not finished
        }
    except FileNotFoundError:
        if None not in possible:  # else a job has purged it since it was listed
            raise
        return
    if not any(content.holds(found) for content in contents):
        synced, begun = contents[-1].synced, contents[-1].begun
        broken = {name for name in synced & found.keys() if not found[name]}
        yield (
            f"{what} is none of {len(contents)} contents; compared to the last of these, it has "
            f"lost {_some(synced - found.keys())}, holds {_some(broken)} in part, and has "
            f"{_some(found.keys() - begun)}, which it never had"
        )


def _some(names: Set[str]) -> str:
    return f"{len(names)} ({', '.join(sorted(names)[:3])})" if names else "nothing"


def _history(host: PowerHost) -> Iterator[str]:
    """What is wrong with the history that the daemon goes on with, which is to be the one of before
    the cut."""
    names = {path.name for path in host.path(f"{DATA}/config").glob("history*")}
    for name in sorted(names - HISTORY):
        yield f"{name} was put aside"
    shown = host.run("python3", "-c", INTEGRITY, check=False)
    if shown.stdout != "ok\n":
        yield f"history: {shown.stdout}{shown.stderr}"
