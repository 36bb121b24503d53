"""Fixtures on a real BTRFS: one filesystem for all tests, directories of its own for each."""

import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.btrfs.harness import Daemon, Place, Shim, Store
from tests.support.filesystem import loop_btrfs

PLACES = count(1)
StartDaemon = Callable[..., Daemon]


@pytest.fixture(scope="session")
def filesystem(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A BTRFS that all tests share."""
    with loop_btrfs(tmp_path_factory.mktemp("btrfs"), size="4G") as mount_point:
        yield mount_point


@pytest.fixture
def place(filesystem: Path) -> Place:
    """Directories for volumes and snapshots, for one test alone."""
    return Place.make(filesystem / str(next(PLACES)))


@pytest.fixture(scope="module")
def module_place(filesystem: Path) -> Place:
    """Directories that the tests of one file share."""
    return Place.make(filesystem / str(next(PLACES)))


@pytest.fixture
def store(place: Place) -> Store:
    """Volumes and snapshots without a daemon."""
    return Store.make(place)


@pytest.fixture
def runtime() -> Iterator[Path]:
    """A directory for sockets, whose paths must be short."""
    with tempfile.TemporaryDirectory(prefix="buttervolume-") as name:
        yield Path(name)


@pytest.fixture
def shim(runtime: Path) -> Shim:
    """A `btrfs` that notes its calls; the daemons of the test use it."""
    return Shim(runtime / "shim")


@pytest.fixture
def start_daemon(
    place: Place, runtime: Path, request: pytest.FixtureRequest
) -> Iterator[StartDaemon]:
    """Start daemons that may end in any way; none outlives the test."""
    daemons: list[Daemon] = []
    shim = request.getfixturevalue("shim") if "shim" in request.fixturenames else None

    def start(**environ: str) -> Daemon:
        daemons.append(Daemon(place, runtime / f"run{len(daemons)}", shim, **environ))
        return daemons[-1].start()

    yield start
    for daemon in daemons:
        daemon.close()


@pytest.fixture
def daemon(start_daemon: StartDaemon) -> Iterator[Daemon]:
    """A running daemon, which must end well at the end of the test and have logged no fault."""
    daemon = start_daemon()
    yield daemon
    daemon.stop()
    assert "Traceback" not in daemon.stderr()


@pytest.fixture(scope="module")
def plugin(module_place: Place) -> Iterator[Daemon]:
    """A running daemon for all tests of a file, each with names of its own."""
    with tempfile.TemporaryDirectory(prefix="buttervolume-") as name:
        daemon = Daemon(module_place, Path(name) / "run").start()
        try:
            yield daemon
            daemon.stop()
            assert "Traceback" not in daemon.stderr()
        finally:
            daemon.close()
