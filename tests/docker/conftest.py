"""Fixtures: a machine of one's own with Docker and the daemon for each file of tests."""

from collections.abc import Iterator

import pytest

from tests.docker.harness import Host
from tests.support.docker import Dockerd
from tests.support.machine import Machine


@pytest.fixture(scope="module")
def module_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """The host that the tests of one file share, with the images `busybox` and `seeded`."""
    with Machine("host", tmp_path_factory.mktemp("docker")) as machine, Dockerd(machine) as dockerd:
        host = Host(machine, dockerd)
        dockerd.busybox_image()
        dockerd.image_with_files(
            "seeded", {"/seeded/hello": "hello\n", "/seeded/deep/er": "down\n"}, "VOLUME /seeded"
        )
        host.start_daemon()
        yield host
        assert host.daemon.stop() == 0, host.daemon.log()


@pytest.fixture
def host(module_host: Host) -> Iterator[Host]:
    """The host, with no container, volume or snapshot on it."""
    yield module_host
    module_host.repair()
    module_host.clear()
