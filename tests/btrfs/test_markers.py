"""Sent markers, made without a transfer: what stands in the way, and what happens meanwhile."""

import errno
import os
from pathlib import Path

import pytest

from buttervolume.errors import NotAVolume
from buttervolume.names import parse_snapshot
from buttervolume.store.options import Options
from buttervolume.system import btrfs as kernel
from tests.btrfs.harness import Store


def test_the_newest_marker_of_a_host_replaces_the_older_ones(store: Store) -> None:
    store.volumes.create("db", Options())
    first, second = (parse_snapshot(store.snapshots.take("db").name) for _ in range(2))
    store.snapshots.mark_sent(first, "beta")
    store.snapshots.mark_sent(first, "gamma")

    store.snapshots.mark_sent(second, "beta")

    markers = {str(s.name) for s in store.catalog.list("db").snapshots if s.name.is_marker}
    assert markers == {f"{first}@gamma", f"{second}@beta"}


def test_an_older_marker_that_is_being_purged_does_not_make_a_send_fail(store: Store) -> None:
    store.volumes.create("db", Options())
    first, second = (parse_snapshot(store.snapshots.take("db").name) for _ in range(2))
    store.snapshots.mark_sent(first, "beta")

    with store.snapshots.in_transfer.claim([f"{first}@beta"]):
        store.snapshots.mark_sent(second, "beta")

    assert (store.place.snapshots / f"{second}@beta").exists()


def test_an_older_marker_that_cannot_be_read_does_not_make_a_send_fail(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store.volumes.create("db", Options())
    first, second = (parse_snapshot(store.snapshots.take("db").name) for _ in range(2))
    store.snapshots.mark_sent(first, "beta")
    real = kernel.is_subvolume

    def is_subvolume(path: Path) -> bool:
        if path.name == f"{first}@beta":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path)

    monkeypatch.setattr(kernel, "is_subvolume", is_subvolume)
    store.snapshots.mark_sent(second, "beta")

    assert (store.place.snapshots / f"{second}@beta").exists()
    assert f"{first}@beta: it cannot be read" in caplog.text


def test_a_directory_of_a_marker_s_name_gets_nothing_put_inside(store: Store) -> None:
    store.volumes.create("db", Options())
    name = parse_snapshot(store.snapshots.take("db").name)
    in_the_way = store.place.snapshots / f"{name}@beta"
    in_the_way.mkdir()

    with pytest.raises(NotAVolume, match="in the way"):
        store.snapshots.mark_sent(name, "beta")

    assert not list(in_the_way.iterdir())
