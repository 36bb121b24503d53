"""Received UUIDs: what carries one, and what it tells."""

import subprocess
import threading
import uuid
from pathlib import Path

import pytest

from buttervolume.names import parse_snapshot
from buttervolume.store.options import Options
from buttervolume.system import btrfs
from tests.btrfs.harness import Store

FORGE = """
import fcntl, os, struct, sys, uuid
descriptor = os.open(sys.argv[1], os.O_RDONLY)
while True:
    value = uuid.UUID(sys.argv[2]).bytes if sys.argv[2:] else uuid.uuid4().bytes
    arguments = bytearray(struct.pack("=16sQ", value, 1).ljust(200, b"\\0"))
    fcntl.ioctl(descriptor, 0xC0C89425, arguments)  # BTRFS_IOC_SET_RECEIVED_SUBVOL
    if sys.argv[2:]:
        break
"""
UNPRIVILEGED = ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-all", "--no-new-privs"]
"""A container is root without CAP_SYS_ADMIN."""


def forge(volume: Path, value: object) -> None:
    """Give a volume a Received UUID, as a container may."""
    argv = [*UNPRIVILEGED, "python3", "-c", FORGE, str(volume), str(value)]
    subprocess.run(argv, check=True)


def test_a_snapshot_has_no_received_uuid_whatever_its_volume_has(store: Store) -> None:
    store.volumes.create("db", Options())
    volume = store.volumes.path_of("db")
    (volume / "file").write_text("data")
    forge(volume, uuid.uuid4())
    assert btrfs.info(volume).received_uuid is not None

    taken = store.catalog.path_of(store.snapshots.take("db").name)

    found = btrfs.info(taken)
    assert (found.received_uuid, found.readonly) == (None, True)
    assert found.parent_uuid == btrfs.info(volume).uuid
    assert (taken / "file").read_text() == "data"
    assert [s.name for s in store.catalog.list("db").snapshots] == [parse_snapshot(taken.name)]


def test_nor_has_one_that_is_taken_while_a_container_sets_one_without_end(store: Store) -> None:
    store.volumes.create("db", Options())
    volume = store.volumes.path_of("db")
    with subprocess.Popen([*UNPRIVILEGED, "python3", "-c", FORGE, str(volume)]) as container:
        try:
            for _ in range(20):
                taken = store.catalog.path_of(store.snapshots.take("db").name)
                assert btrfs.info(taken).received_uuid is None
                assert btrfs.info(taken).readonly
        finally:
            container.kill()


def test_a_marker_does_not_share_the_identity_of_what_it_marks(store: Store) -> None:
    store.volumes.create("db", Options())
    name = parse_snapshot(store.snapshots.take("db").name)
    btrfs.set_received(store.catalog.path_of(str(name)), uuid.uuid4(), 7)

    store.snapshots.mark_sent(name, "beta")

    assert btrfs.info(store.catalog.path_of(f"{name}@beta")).received_uuid is None


def test_a_settled_copy_that_is_changed_betrays_it(store: Store) -> None:
    store.volumes.create("db", Options())
    taken = store.catalog.path_of(store.snapshots.take("db").name)
    identity = uuid.uuid4()
    btrfs.sync(taken)

    btrfs.set_received(taken, identity, 4711)

    found = btrfs.info(taken)
    assert (found.received_uuid, found.send_transid) == (identity, 4711)
    assert found.readonly
    assert found.settled
    assert found.changed <= found.receive_transid
    store.snapshots.mark_sent(parse_snapshot(taken.name), "gamma")
    btrfs.sync(taken)
    assert btrfs.info(taken).changed <= found.receive_transid

    subprocess.run(["btrfs", "property", "set", "-f", "-ts", taken, "ro", "false"], check=True)
    assert not btrfs.info(taken).settled
    btrfs.set_received(taken, identity, 4711)
    argv = ["python3", "-c", FORGE, str(taken), str(identity)]
    with pytest.raises(subprocess.CalledProcessError):
        subprocess.run(argv, check=True, capture_output=True)


def test_readers_meanwhile_see_a_snapshot_that_is_whole_or_none(store: Store) -> None:
    """What is being taken of a volume with a Received UUID is writable for a moment."""
    store.volumes.create("db", Options())
    forge(store.volumes.path_of("db"), uuid.uuid4())
    seen: list[str] = []
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            for snapshot in store.catalog.list("db").snapshots:
                path = store.catalog.path_of(str(snapshot.name))
                if not btrfs.info(path).readonly:
                    seen.append(path.name)

    reader = threading.Thread(target=look)
    reader.start()
    for _ in range(10):
        store.snapshots.take("db")
    done.set()
    reader.join()
    assert seen == []
