"""The page of a real daemon, for tests over HTTP and in a browser."""

import http.client
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.message import Message
from typing import Any

import pytest

from tests.btrfs.conftest import filesystem, place, runtime, start_daemon
from tests.btrfs.harness import Daemon
from tests.support.ports import free_port

__all__ = ["filesystem", "place", "runtime", "start_daemon"]


@dataclass(frozen=True)
class Got:
    """What came back."""

    status: int
    headers: Message
    text: str

    @property
    def json(self) -> dict[str, Any]:
        return dict(json.loads(self.text))


@dataclass
class Site:
    """A daemon with a page."""

    daemon: Daemon
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str = "/", method: str = "GET", **headers: str) -> Got:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(
                method, path, headers={k.replace("_", "-"): v for k, v in headers.items()}
            )
            response = connection.getresponse()
            return Got(response.status, response.headers, response.read().decode())
        finally:
            connection.close()


StartSite = Callable[..., Site]


@pytest.fixture
def start_site(start_daemon: Callable[..., Daemon]) -> StartSite:
    def start(**environ: str) -> Site:
        port = free_port()
        return Site(start_daemon(BUTTERVOLUME_WEB=f"127.0.0.1:{port}", **environ), port)

    return start


@pytest.fixture
def site(start_site: StartSite) -> Iterator[Site]:
    """A daemon with a page, which must end well and have logged no fault."""
    site = start_site(BUTTERVOLUME_TIMER="1", SSH_PORT="1")
    yield site
    site.daemon.stop()
    assert "Traceback" not in site.daemon.stderr()
