"""The catalogue: whoever changes the directory, and however, it tells what a first look would."""

import errno
import os
import random
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from buttervolume.errors import OperationFailed
from buttervolume.names import RECEIVING
from buttervolume.store.catalog import Catalog, Summary
from buttervolume.system.btrfs import set_received
from buttervolume.system.watch import Watch
from tests.btrfs.harness import DATE_FORMAT, Store, btrfs, subvolume
from tests.support.wait import wait_until

CHANGES = 120
BEFORE = [f"2026-01-{day:02}" for day in range(1, 9)]
BIG = 300
"""More snapshots than are looked at one by one when they are new."""


def take(store: Store, name: str, *, whole: bool = True) -> Path:
    """Put a snapshot there by hand, or part of one."""
    path = store.place.snapshots / name
    options = ["-r"] if whole else []
    btrfs("subvolume", "snapshot", *options, store.place.volumes / "db", path)
    return path


def names_in(catalog: Catalog, volume: str | None = None) -> list[str]:
    return [str(snapshot.name) for snapshot in catalog.list(volume).snapshots]


def fresh(store: Store) -> Catalog:
    """One that has seen nothing yet."""
    return Catalog(store.place.snapshots, DATE_FORMAT)


@pytest.fixture
def store_with_volume(store: Store) -> Store:
    subvolume(store.place.volumes / "db")
    return store


def changes(store: Store, chance: random.Random) -> list[Callable[[], object]]:
    """What others may do in the directory, each by chance to one of the names there."""
    snapshots = store.place.snapshots
    dates = [f"{day}T00:00:00.000000" for day in (*BEFORE, "2099-01-01", "2099-01-02")]
    name = f"{chance.choice(('db', 'web', 'db-1'))}@{chance.choice(dates)}"
    path, there = snapshots / name, [p for p in snapshots.iterdir() if not p.name.startswith(".")]
    other = chance.choice(there) if there else None

    def absent(act: Callable[[], object]) -> Callable[[], object]:
        return lambda: None if path.exists() else act()

    def of_other(act: Callable[[Path], object]) -> Callable[[], object]:
        return lambda: None if other is None else act(other)

    def delete(victim: Path) -> None:
        if victim.is_dir() and victim.stat().st_ino == 256:
            btrfs("subvolume", "delete", victim)
        elif victim.is_dir():
            victim.rmdir()
        else:
            victim.unlink()

    def replace(victim: Path) -> None:
        delete(victim)
        take(store, victim.name, whole=chance.random() < 0.5)

    def rename(victim: Path) -> None:
        if not path.exists():
            victim.rename(path)

    def complete(victim: Path) -> None:
        if victim.is_dir() and victim.stat().st_ino == 256:
            btrfs("property", "set", "-ts", victim, "ro", "true")

    def receive() -> None:
        set_received(take(store, name), uuid4(), 1)

    return [
        absent(lambda: take(store, name)),
        absent(lambda: take(store, name)),
        absent(receive),
        absent(receive),
        absent(lambda: take(store, name, whole=False)),
        absent(lambda: subvolume(path)),  # not on the disk yet, nor in the trees
        absent(path.mkdir),
        absent(lambda: path.write_text("")),
        of_other(delete),
        of_other(delete),
        of_other(replace),
        of_other(rename),
        of_other(complete),
        of_other(lambda victim: (snapshots / f"{RECEIVING}{victim.name}").touch()),
    ]


def tidy_up(store: Store) -> None:
    """Leave whole snapshots only."""
    for path in store.place.snapshots.iterdir():
        if path.is_dir() and path.stat().st_ino == 256:
            btrfs("property", "set", "-ts", path, "ro", "true")
        elif path.is_dir():
            path.rmdir()
        else:
            path.unlink()


@pytest.mark.parametrize("tidiness", [0.0, 0.5])
def test_after_whatever_others_do_it_is_as_at_a_first_look(
    store_with_volume: Store, tidiness: float
) -> None:
    store, chance = store_with_volume, random.Random(7)
    catalog = store.catalog

    for number in range(CHANGES):
        for _ in range(chance.choice((1, 1, 2, 5))):
            chance.choice(changes(store, chance))()
        if chance.random() < 0.1:
            os.sync()
        if chance.random() < tidiness:
            tidy_up(store)
            store.catalog.list()
            chance.choice(changes(store, chance))()

        listing, expected = catalog.list(), fresh(store).list()
        assert listing == expected, number
        assert [*listing.names] == [str(snapshot.name) for snapshot in listing.snapshots]
        for volume in ("db", "web", "none"):
            assert catalog.list(volume) == fresh(store).list(volume)
            assert catalog.glance(volume) == fresh(store).summary(volume)


def test_a_directory_that_could_not_be_read_is_read_at_the_next_call(
    store_with_volume: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = store_with_volume.catalog
    take(store_with_volume, "db@2026-01-01T00:00:00.000000")
    before = catalog.list()
    real, failures = os.scandir, [errno.EMFILE]

    def scandir(path: Path) -> object:
        if failures and path == catalog.path:
            number = failures.pop()
            raise OSError(number, os.strerror(number))
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(Watch, "changes", lambda _: None)  # some were lost
        patch.setattr(os, "scandir", scandir)
        with pytest.raises(OperationFailed, match="Too many open files"):
            catalog.list()

    assert catalog.list() == before
    assert len(before.snapshots) == 1


def test_what_we_remove_is_gone_without_another_look(store_with_volume: Store) -> None:
    store = store_with_volume
    names = [store.snapshots.take("db").name for _ in range(4)]
    assert names_in(store.catalog) == names

    store.snapshots.remove(names[1])
    take(store, "db@2020-01-01T00:00:00.000000")
    store.snapshots.remove(names[2])

    assert names_in(store.catalog) == ["db@2020-01-01T00:00:00.000000", names[0], names[3]]


def test_the_newest_date_of_now_and_of_the_future(store_with_volume: Store) -> None:
    store, now = store_with_volume, datetime(2026, 6, 1, 12)
    day = timedelta(days=1)

    def asked() -> tuple[datetime | None, str | None]:
        ahead = store.catalog.ahead("db", now)
        return store.catalog.newest_date("db", now), None if ahead is None else str(ahead)

    assert asked() == (None, None)
    take(store, "db@no-date")
    assert asked() == (None, None)
    take(store, "web@2026-06-01T11:00:00.000000")
    take(store, "db@2026-05-01T12:00:00.000000")
    assert asked() == (now - 31 * day, None)
    take(store, "db@2026-06-01T13:00:00.000000")  # an hour ahead is no future yet
    assert asked() == (now + timedelta(hours=1), None)
    take(store, "db@2026-06-01T13:00:00.000001@backup")
    assert asked() == (now + timedelta(hours=1), "db@2026-06-01T13:00:00.000001@backup")
    take(store, "db@2027-06-01T12:00:00.000000")
    assert asked() == (now + timedelta(hours=1), "db@2027-06-01T12:00:00.000000")
    store.snapshots.remove("db@2027-06-01T12:00:00.000000")
    store.snapshots.remove("db@2026-06-01T13:00:00.000000")
    assert asked() == (now - 31 * day, "db@2026-06-01T13:00:00.000001@backup")


def test_many_at_once_are_found_as_one_by_one(store_with_volume: Store) -> None:
    store = store_with_volume
    dates = [f"2026-01-01T00:00:00.{number:06}" for number in range(BIG)]
    for date in dates:
        take(store, f"db@{date}")
    take(store, "db@2026-01-02T00:00:00.000000", whole=False)
    (store.place.snapshots / "db@2026-01-03T00:00:00.000000").mkdir()
    (store.place.snapshots / f"{RECEIVING}db@{dates[7]}").touch()

    listing = fresh(store).list()

    assert [s.name.date for s in listing.snapshots] == [d for d in dates if d != dates[7]]
    assert [name.date for name in listing.incomplete] == [dates[7], "2026-01-02T00:00:00.000000"]


def test_a_glance_does_not_wait_for_the_first_look(
    store_with_volume: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_with_volume
    name = "db@2026-01-01T00:00:00.000000"
    take(store, name)
    monkeypatch.setattr("buttervolume.store.catalog._LARGE", 0)
    reading, go_on = threading.Event(), threading.Event()
    scan = os.scandir

    def slow_scan(path: Path) -> Iterator[os.DirEntry[str]]:
        reading.set()
        assert go_on.wait(60)
        return scan(path)

    monkeypatch.setattr("os.scandir", slow_scan)

    assert store.catalog.glance("db") is None
    assert reading.wait(60)
    assert store.catalog.glance("db") is None
    go_on.set()

    wait_until(lambda: store.catalog.glance("db") == Summary(1, name))
    store.snapshots.remove(name)
    assert store.catalog.glance("db") == Summary(0, None)
