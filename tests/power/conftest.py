"""Two hosts on one network, and a shelf for their disks."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.power.disks import shelf
from tests.power.hosts import PowerHost
from tests.support.network import Network


@dataclass(frozen=True)
class Laboratory:
    """What all tests share."""

    alpha: PowerHost
    beta: PowerHost
    shelf: Path

    @contextmanager
    def peers(self, *, installed: bool) -> Iterator[bool]:
        """Meanwhile, each finds `buttervolume` on the other host, or shell scripts have to do."""
        for host in (self.alpha, self.beta) if installed else ():
            host.install()
        try:
            yield installed
        finally:
            for host in (self.alpha, self.beta) if installed else ():
                host.uninstall()


@pytest.fixture(scope="session")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    directory = tmp_path_factory.mktemp("power")
    with (
        shelf(directory) as images,
        Network() as network,
        PowerHost("alpha", directory, network) as alpha,
        PowerHost("beta", directory, network) as beta,
    ):
        for host in (alpha, beta):
            host.start_sshd()
        alpha.authorize(beta)
        beta.authorize(alpha)
        yield Laboratory(alpha, beta, images)
