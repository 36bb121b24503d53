"""Fixtures: the managed plugin, built once, and machines on which it is installed."""

import shutil
from collections.abc import Iterator

import pytest

from tests.docker.plugin_harness import CONTEXT, Built, PluginHost, installed
from tests.support.docker import Dockerd
from tests.support.machine import REPOSITORY, Machine
from tests.support.network import Network


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    """The plugin, built from a copy of this checkout, so that nothing changes in the checkout."""
    directory = tmp_path_factory.mktemp("plugin")
    checkout = directory / "checkout"
    ignore = shutil.ignore_patterns("rootfs*", "__pycache__")
    checkout.mkdir()
    for name in CONTEXT:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, checkout / name, ignore=ignore)
        else:
            shutil.copy2(source, checkout / name)
    with Machine("builder", directory) as machine, Dockerd(machine) as dockerd:
        dockerd.debian_base_image()
        built = Built(checkout, machine, dockerd)
        built.build()
        yield built


@pytest.fixture(scope="session")
def network() -> Iterator[Network]:
    """What the machines with the plugin are on: the plugin uses the network of its machine."""
    with Network() as network:
        yield network


@pytest.fixture(scope="session")
def session_plugin(
    built: Built, network: Network, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PluginHost]:
    """The machine that most tests share."""
    with installed("alpha", tmp_path_factory.mktemp("plugin"), network, built) as host:
        host.dockerd.image_with_files("seeded", {"/seeded/hello": "hello\n"}, "VOLUME /seeded")
        yield host


@pytest.fixture
def plugin(session_plugin: PluginHost) -> Iterator[PluginHost]:
    """A machine with the plugin enabled, all its settings empty, and no volume."""
    yield session_plugin
    session_plugin.repair()
    session_plugin.clear()


@pytest.fixture(scope="session")
def session_peer(
    built: Built, network: Network, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PluginHost]:
    """Another machine, with live-restore."""
    with installed("beta", tmp_path_factory.mktemp("plugin"), network, built, True) as host:
        yield host


@pytest.fixture
def peer(session_peer: PluginHost) -> Iterator[PluginHost]:
    """Another machine with the plugin, on the same network, whose Docker has live-restore."""
    yield session_peer
    session_peer.repair()
    session_peer.clear()
