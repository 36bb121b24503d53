"""A swarm that all tests share: each has a service and a volume of its own, and what it breaks is
mended before the next one."""

from collections.abc import Iterator

import pytest

from tests.swarm.harness import Swarm


@pytest.fixture(scope="session")
def shared_swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    with Swarm(tmp_path_factory.mktemp("swarm")) as swarm:
        yield swarm


@pytest.fixture
def swarm(shared_swarm: Swarm) -> Iterator[Swarm]:
    """Three nodes in good health, with no service and no volume."""
    yield shared_swarm
    shared_swarm.heal()
