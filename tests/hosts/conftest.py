"""Hosts with a daemon and an sshd each, joined by a network. All tests share them; each test has
volumes of its own, and what it breaks is healed before the next one."""

from collections.abc import Iterator
from itertools import count

import pytest

from tests.hosts.harness import Host, Pair
from tests.support.network import Network

NUMBERS = count(1)


@pytest.fixture(scope="session")
def network() -> Iterator[Network]:
    with Network() as network:
        yield network


@pytest.fixture(scope="session")
def shared_pair(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    directory = tmp_path_factory.mktemp("hosts")
    with (
        Host("alpha", directory, network, size="4G") as alpha,
        Host("beta", directory, network, size="4G") as beta,
    ):
        for host, other in ((alpha, beta), (beta, alpha)):
            host.boot()
            host.authorize(other)
        yield Pair(network, alpha, beta)


@pytest.fixture
def pair(shared_pair: Pair) -> Iterator[Pair]:
    """Two hosts in good health. The test may leave no process of a transfer on either."""
    yield shared_pair
    daemons = [shared_pair.alpha.daemon, shared_pair.beta.daemon]
    shared_pair.heal()
    try:
        shared_pair.wait_until_idle(60)
    finally:
        for host in (shared_pair.alpha, shared_pair.beta):
            host.kill_transfers()
    for daemon in daemons:
        assert "Traceback" not in daemon.stderr()


@pytest.fixture
def alpha(pair: Pair) -> Host:
    """The host that sends."""
    return pair.alpha


@pytest.fixture
def beta(pair: Pair) -> Host:
    """The host that receives."""
    return pair.beta


@pytest.fixture(scope="session")
def gamma(
    network: Network, shared_pair: Pair, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Host]:
    """A third host. The two others may log in there."""
    with Host("gamma", tmp_path_factory.mktemp("third"), network) as gamma:
        gamma.boot()
        gamma.authorize(shared_pair.alpha)
        gamma.authorize(shared_pair.beta)
        yield gamma


@pytest.fixture(scope="session")
def tiny(
    network: Network, shared_pair: Pair, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Host]:
    """A host whose disk is nearly full from the start."""
    with Host("tiny", tmp_path_factory.mktemp("tiny"), network, size="120M") as tiny:
        tiny.boot()
        tiny.authorize(shared_pair.alpha)
        yield tiny


@pytest.fixture
def volume(alpha: Host) -> str:
    """The name of a new volume on alpha."""
    name = f"v{next(NUMBERS)}"
    alpha.create(name)
    return name
