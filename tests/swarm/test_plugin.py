"""A volume follows its service between hosts with the managed plugin, set up as the manual says."""

from collections.abc import Iterator
from functools import partial

import pytest

from tests.docker.plugin_harness import Built
from tests.swarm.harness import Service, Swarm, assert_all_is_there
from tests.swarm.plugin import PluginNode

pytest_plugins = ["tests.docker.plugin_fixtures"]

MEMBERS = "follow=web1:web2:web3"


@pytest.fixture(scope="module")
def shared_swarm(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    make = partial(PluginNode, built)
    with Swarm(tmp_path_factory.mktemp("plugins"), make, "web1", "web2", "web3") as swarm:
        yield swarm


def begin(swarm: Swarm, *names: str) -> list[Service]:
    """Services on the first worker, of whose volumes there are copies."""
    here = swarm.workers[0]
    with swarm.only(here):
        services = [Service(swarm, name, MEMBERS, "every=1") for name in names]
        for service in services:
            service.wait_for_start(on=here)
            service.wait_for_copies(here)
    return services


def test_moves_and_upgrades(swarm: Swarm) -> None:
    here, there = swarm.workers
    assert isinstance(here, PluginNode)
    assert isinstance(there, PluginNode)
    (service,) = begin(swarm, "moved")

    swarm.drain(here)
    service.wait_for_start(2, on=there)

    # a new plugin on both sides, while its container runs on
    swarm.activate(here)
    for node in (here, there):
        node.upgrade()
    service.wait_until_it_writes(service.latest())
    assert len(service.starts()) == 2
    assert there.status(service.volume)["Owner"] == there.name

    swarm.drain(there)
    service.wait_for_start(3, on=here)
    assert_all_is_there(service)


def test_two_at_once(swarm: Swarm) -> None:
    """One may use it, whatever Docker has told the plugin, which looks at the kernel."""
    here, there = swarm.workers
    assert isinstance(here, PluginNode)
    first, told_nothing = services = begin(swarm, "twice", "untold")

    move = f"--constraint-add=node.hostname=={there.name}"
    with here.besides(told_nothing.volume):
        swarm.update("--update-order=start-first", move, first.name)
        swarm.update("--update-order=stop-first", move, told_nothing.name)
        for service in services:
            service.wait_for_error(f"in use on {here.name}", on=there)
            assert len(service.starts()) == 1
        first.wait_until_it_writes(first.latest())

    told_nothing.wait_for_start(2, on=there)
    assert_all_is_there(told_nothing)
