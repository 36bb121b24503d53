"""The API without a server: the direct way of a POST, and Flask's of all else, answer alike."""

import json
import logging
from collections.abc import Callable
from unittest.mock import create_autospec

import pytest
from werkzeug.test import Client

from buttervolume.api.body import Answer, Body
from buttervolume.api.http import MIMETYPE, Endpoint, NoAnswer, create_app
from buttervolume.errors import NoSuchVolume, VolumesUnavailable
from buttervolume.services import Services
from buttervolume.store.volumes import Volumes
from buttervolume.system.locks import Mutexes

PATHS = ("/Test", "/Test/part")
"""The first is answered directly when it is a POST, the other one is found by Flask."""


def echo(_services: Services, body: Body, part: str = "part") -> Answer:
    return {"Name": body.text("Name"), "Part": part}


def failing(error: Exception) -> Callable[..., Answer]:
    def handler(_services: Services, _: Body, part: str = "") -> Answer:
        raise error

    return handler


def serve(handler: Callable[..., Answer], *, gone: bool = False, retry: bool = False) -> Client:
    volumes = create_autospec(Volumes, instance=True, mutexes=Mutexes())
    if gone:
        volumes.check_available.side_effect = VolumesUnavailable("/volumes")
    services = create_autospec(Services, instance=True, volumes=volumes)
    methods = ("GET", "POST")
    endpoints = [
        Endpoint("Test", handler, methods=methods, empty_is_retry=retry),
        Endpoint("Test/<part>", handler, methods=methods, empty_is_retry=retry),
    ]
    return Client(create_app(services, endpoints))


def ask(client: Client, data: bytes) -> list[tuple[int, dict[str, str], bytes]]:
    """What comes back by each way."""
    answers = [client.open(path, method=m, data=data) for path in PATHS for m in ("GET", "POST")]
    return [(each.status_code, dict(each.headers), each.data) for each in answers]


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
    handler: Callable[..., Answer], data: bytes, status: int, expected: dict[str, str]
) -> None:
    answers = ask(serve(handler), data)

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
