"""The API without a server: the direct way and that of Flask answer alike."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from unittest.mock import create_autospec

import pytest
from werkzeug.test import Client

from buttervolume.api import http
from buttervolume.api.body import Answer, Body
from buttervolume.api.http import (
    MIMETYPE,
    Endpoint,
    Lane,
    NoAnswer,
    create_app,
    create_wsgi,
    find_lanes,
)
from buttervolume.errors import NoSuchVolume, VolumesUnavailable
from buttervolume.services import Services
from buttervolume.store.volumes import Volumes
from buttervolume.system.locks import Mutexes

PATHS = ("/Test", "/Test/part")
"""The first is answered directly, the other one is found by Flask."""


def echo(_services: Services, body: Body, part: str = "part") -> Answer:
    return {"Name": body.text("Name"), "Part": part}


def failing(error: Exception) -> Callable[..., Answer]:
    def handler(_services: Services, _: Body, part: str = "") -> Answer:
        raise error

    return handler


def serve(
    handler: Callable[..., Answer],
    *,
    gone: bool = False,
    retry: bool = False,
    create: Callable[..., http.Wsgi] = create_app,
) -> Client:
    volumes = create_autospec(Volumes, instance=True, mutexes=Mutexes())
    if gone:
        volumes.check_available.side_effect = VolumesUnavailable("/volumes")
    services = create_autospec(Services, instance=True, volumes=volumes)
    methods = ("GET", "POST")
    endpoints = [
        Endpoint("Test", handler, methods=methods, empty_is_retry=retry),
        Endpoint("Test/<part>", handler, methods=methods, empty_is_retry=retry),
    ]
    return Client(create(services, endpoints))


def ask(client: Client, data: bytes) -> list[tuple[int, dict[str, str], bytes]]:
    """What comes back by each way."""
    answers = [client.open(path, method=m, data=data) for path in PATHS for m in ("GET", "POST")]
    return [(each.status_code, dict(each.headers), each.data) for each in answers]


@pytest.mark.parametrize("create", [create_app, create_wsgi])
@pytest.mark.parametrize(
    ("handler", "data", "status", "expected"),
    [
        (echo, b'{"Name": "db"}', 200, {"Err": "", "Name": "db", "Part": "part"}),
        (echo, '{"Name": "ü"}'.encode(), 200, {"Err": "", "Name": "ü", "Part": "part"}),
        (echo, b"[]", 400, {"Code": "MalformedRequest"}),
        (echo, b"", 400, {"Code": "MalformedRequest"}),
        (failing(NoSuchVolume("db")), b"", 200, {"Code": "NoSuchVolume"}),
        (failing(NoSuchVolume("a\nb\x1b")), b"", 200, {"Err": r"a\nb\x1b: no such volume"}),
        (failing(ZeroDivisionError("secret")), b"", 500, {"Code": "InternalError"}),
        (lambda *_, **__: {"Odd": object()}, b"", 500, {"Code": "InternalError"}),
    ],
)
def test_both_ways_answer_alike(
    handler: Callable[..., Answer],
    data: bytes,
    status: int,
    expected: dict[str, str],
    create: Callable[..., http.Wsgi],
) -> None:
    answers = ask(serve(handler, create=create), data)

    assert all(each == answers[0] for each in answers)
    found, headers, content = answers[0]
    assert found == status
    assert headers["Content-Type"] == MIMETYPE
    assert int(headers["Content-Length"]) == len(content)
    assert json.loads(content).items() >= expected.items()
    assert b"secret" not in content


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("client", "data"),
    [
        (serve(echo, gone=True), b"{}"),
        (serve(echo, gone=True), b"no JSON"),
        (serve(echo, retry=True), b" \n"),
        (serve(failing(VolumesUnavailable("/volumes"))), b"{}"),
        (serve(failing(ZeroDivisionError()), retry=True), b"{}"),
    ],
)
def test_what_gets_no_answer_gets_none_by_either_way(
    client: Client, data: bytes, path: str, method: str
) -> None:
    with pytest.raises(NoAnswer):
        client.open(path, method=method, data=data)


def test_a_fault_is_in_the_log_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    client = serve(failing(ZeroDivisionError("secret")))

    with caplog.at_level(logging.ERROR):
        client.post("/Test")

    assert "/Test: unexpected fault" in caplog.text
    assert "ZeroDivisionError: secret" in caplog.text


@pytest.mark.parametrize(("method", "path"), [("PUT", "/Test"), ("POST", "/None"), ("GET", "/")])
def test_what_is_no_endpoint_is_refused_in_json(method: str, path: str) -> None:
    answer = serve(echo).open(path, method=method, data=b'{"Name": "db"}')

    assert answer.status_code == (405 if path == "/Test" else 404)
    assert answer.headers["Content-Type"] == MIMETYPE
    assert path in json.loads(answer.data)["Err"]


@pytest.mark.parametrize("slashes", ["/", "//", "///"])
def test_slashes_that_are_too_many_lead_to_the_same_threads(slashes: str) -> None:
    """The server takes them for one, and answers."""
    lane_of = find_lanes([Endpoint("Test", echo, Lane.TRANSFER)])

    assert lane_of(f"{slashes}Test") is Lane.TRANSFER
    assert lane_of(f"{slashes}Test/part") is lane_of(slashes) is lane_of("") is Lane.QUESTION


def test_what_is_answered_directly_is_so_without_flask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_create_flask", failing(AssertionError("Flask is asked")))
    client = serve(echo, create=create_wsgi)

    for method in ("GET", "POST"):
        answer = client.open("/Test", method=method, data=b'{"Name": "db"}')
        assert json.loads(answer.data)["Name"] == "db"


def test_the_daemon_loads_no_flask_before_it_is_needed() -> None:
    load = "import sys, buttervolume.daemon; sys.exit('flask' in sys.modules)"

    subprocess.run([sys.executable, "-c", load], check=True)
