"""The HTTP API: decode a request, make one call, encode the answer.

It speaks to Docker as moby's sources want it (daemon/volume/drivers, pkg/plugins): no Content-Type
comes in, `Err` is a string in every answer, and a domain error is HTTP 200.
"""

import json
import logging
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from enum import Enum
from typing import Any

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge
from werkzeug.routing import Map

from buttervolume.errors import ButtervolumeError, TooManyTransfers, VolumesUnavailable
from buttervolume.services import Services

MIMETYPE = "application/vnd.docker.plugins.v1.2+json"
LARGEST_BODY = 1 << 20
"""Bytes. The largest that Docker sends is some hundreds."""


class NoAnswer(Exception):
    """The connection is to be closed without a byte of an answer.

    Docker tries again after a broken connection; from any answer of Get but a good one it
    concludes that the volume does not exist, and forgets its labels and options.
    """


class MalformedRequest(Exception):
    """A request that is not what the protocol says: HTTP 400, no effect."""


class Body:
    """The JSON object of a request. Null is the same as a key left out."""

    def __init__(self, data: bytes) -> None:
        try:
            values = json.loads(data) if data.strip() else {}
        except (ValueError, RecursionError) as error:
            raise MalformedRequest(f"the request is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise MalformedRequest("the request must be a JSON object")
        self._values: dict[str, Any] = values

    def __str__(self) -> str:
        return json.dumps(self._values)

    def text(self, key: str) -> str:
        """A string that must be there."""
        value = self.optional_text(key)
        if value is None:
            raise MalformedRequest(f"{key} is missing")
        return value

    def optional_text(self, key: str) -> str | None:
        """A string, or None."""
        value = self._values.get(key)
        if value is not None and not isinstance(value, str):
            raise MalformedRequest(f"{key} must be a string")
        return value

    def texts(self, key: str) -> Sequence[str]:
        """A list of strings that must be there, with one at the least."""
        value = self._values.get(key)
        if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
            raise MalformedRequest(f"{key} must be a list of strings")
        return value

    def number(self, key: str) -> int:
        """A whole number that must be there."""
        value = self._values.get(key)
        if not isinstance(value, int) or isinstance(value, bool):
            raise MalformedRequest(f"{key} must be a whole number")
        return value

    def flag(self, key: str) -> bool:
        """A boolean, False if left out."""
        value = self._values.get(key)
        if value is not None and not isinstance(value, bool):
            raise MalformedRequest(f"{key} must be true or false")
        return bool(value)

    def mapping(self, key: str) -> Mapping[str, object]:
        """An object, empty if left out."""
        value = self._values.get(key)
        if value is not None and not isinstance(value, dict):
            raise MalformedRequest(f"{key} must be an object")
        return value or {}


Answer = dict[str, object]


class Lane(Enum):
    """Who works on a request, so that no kind of them keeps another waiting."""

    DRIVER = "driver"
    """Docker's own calls."""
    MANAGEMENT = "management"
    TRANSFER = "transfer"
    """Takes as long as it takes: at most so many at a time, and one more is refused at once."""


@dataclass(frozen=True)
class Endpoint:
    """A call of the API."""

    name: str
    """The path, without the slash before it; parts in `<>` are given to the handler by name."""
    handler: Callable[..., Answer]
    """Gets the services and the body, and returns the answer without its empty `Err`."""
    lane: Lane = Lane.MANAGEMENT
    methods: Sequence[str] = ("POST",)
    on_volumes: bool = True
    """Whether there is nothing to answer while the filesystem of the volumes is gone."""
    changes: bool = False
    """Whether it may change something: its failures are more than an answer to a question."""
    empty_is_retry: bool = False
    """Whether an empty body can only be Docker's retry after a broken connection: no answer."""


def create_app(services: Services, endpoints: Iterable[Endpoint], transfer_limit: int) -> Flask:
    """The application that answers Docker and the command line.

    At most `transfer_limit` transfers run for callers at a time, so that threads are left for
    Docker.
    """
    slots = threading.BoundedSemaphore(transfer_limit)
    app = Flask("buttervolume", static_folder=None)
    app.url_map = Map(merge_slashes=False)  # it would be by a redirect, which is HTML
    app.config["PROPAGATE_EXCEPTIONS"] = True  # NoAnswer is for the server
    log = logging.getLogger(__name__)
    changing: set[str] = set()
    """The routes whose failures are more than an answer to a question."""
    _handle_errors(app, log, changing)

    def add(endpoint: Endpoint) -> None:
        route = f"/{endpoint.name}"
        if endpoint.changes:
            changing.add(route)

        def view(**parts: str) -> Response:
            if endpoint.on_volumes:
                services.volumes.check_available()
            if (request.content_length or 0) > LARGEST_BODY:
                raise RequestEntityTooLarge
            data = request.get_data()
            if endpoint.empty_is_retry and not data.strip():
                raise NoAnswer
            body = Body(data)
            with _slot(slots, transfer_limit) if endpoint.lane is Lane.TRANSFER else nullcontext():
                answer = endpoint.handler(services, body, **parts)
            level = logging.INFO if endpoint.changes else logging.DEBUG
            log.log(level, "%s %s: %.500s", route, body, answer)
            return _respond(answer)

        app.add_url_rule(
            route,
            endpoint=route,
            view_func=view,
            methods=endpoint.methods,
            provide_automatic_options=False,
        )

    for endpoint in endpoints:
        add(endpoint)
    return app


@contextmanager
def _slot(slots: threading.BoundedSemaphore, limit: int) -> Iterator[None]:
    """Take one of the slots for transfers, or raise TooManyTransfers at once."""
    if not slots.acquire(blocking=False):
        raise TooManyTransfers(limit)
    try:
        yield
    finally:
        slots.release()


def _respond(answer: Answer, status: int = 200) -> Response:
    return Response(json.dumps({"Err": "", **answer}), status, content_type=MIMETYPE)


def _handle_errors(app: Flask, log: logging.Logger, changing: Collection[str]) -> None:
    """The one place that turns errors into answers."""

    @app.errorhandler(ButtervolumeError)
    def refused(error: ButtervolumeError) -> Response:
        level = logging.WARNING if request.endpoint in changing else logging.INFO
        log.log(level, "%s: %s", request.url_rule, error)
        return _respond({"Err": str(error)})

    @app.errorhandler(VolumesUnavailable)
    def unavailable(error: VolumesUnavailable) -> Response:
        log.error("%s gets no answer: %s", request.url_rule, error)
        raise NoAnswer from error

    @app.errorhandler(MalformedRequest)
    def malformed(error: MalformedRequest) -> Response:
        return _respond({"Err": str(error)}, 400)

    @app.errorhandler(HTTPException)
    def http(error: HTTPException) -> Response:
        response = _respond({"Err": f"{request.path}: {error.name}"}, error.code or 500)
        response.headers.extend(
            (key, value) for key, value in error.get_headers() if key == "Allow"
        )
        return response

    @app.errorhandler(Exception)
    def fault(error: Exception) -> Response:
        if isinstance(error, NoAnswer):
            raise error
        log.exception("%s: unexpected fault", request.url_rule)
        if request.path == "/VolumeDriver.Get":
            raise NoAnswer from error
        return _respond({"Err": f"internal error ({type(error).__name__}); see the log"}, 500)
