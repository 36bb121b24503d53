"""The HTTP API: decode a request, make one call, encode the answer.

It speaks to Docker as moby's sources want it (daemon/volume/drivers, pkg/plugins): no Content-Type
comes in, `Err` is a string in every answer, and a domain error is HTTP 200.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from functools import cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from buttervolume.api.body import Answer, Body, MalformedRequest, Unchanged
from buttervolume.api.records import record
from buttervolume.errors import (
    ButtervolumeError,
    OperationFailed,
    TooManyTransfers,
    VolumesUnavailable,
)
from buttervolume.services import Services
from buttervolume.words import shortened

if TYPE_CHECKING:  # it takes a tenth of a second to load
    from flask import Flask

MIMETYPE = "application/vnd.docker.plugins.v1.2+json"
LARGEST_BODY = 1 << 20
"""Bytes; the server refuses more before it reads them. Docker sends some hundreds."""
TRANSFERS = 8
"""How many run for callers at a time."""
Wsgi = Callable[[dict[str, Any], Any], Iterable[bytes]]
"""What a WSGI server calls for a request (PEP 3333)."""


class NoAnswer(Exception):
    """The connection is to be closed without a byte of an answer.

    Docker tries again after a broken connection; from any answer of Get but a good one it
    concludes that the volume does not exist, and forgets its labels and options.
    """


class Lane(Enum):
    """Which threads work on a request, so that no kind of them keeps another waiting."""

    DOCKER_QUESTION = "docker question"
    """Docker's own calls that wait for nobody."""
    DOCKER = "docker"
    """Docker's own calls that may wait for another operation on their volume."""
    DOCKER_MOUNT = "docker mount"
    """Docker's own calls that may wait for other hosts. Not all threads may wait: some are for
    calls that need not."""
    QUESTION = "question"
    """Other calls that wait for nobody."""
    MANAGEMENT = "management"
    """Other calls that may wait for another operation on their volume."""
    TRANSFER = "transfer"
    """Takes as long as it takes: at most TRANSFERS at a time, and one more is refused at once."""

    @property
    def patience(self) -> float:
        """Seconds to wait for the mutex of a volume; Docker itself gives up after 60."""
        return 50 if self in (Lane.DOCKER, Lane.DOCKER_MOUNT) else 10


@dataclass(frozen=True)
class Endpoint:
    """A call of the API."""

    name: str
    """The path, without the slash before it; parts in `<>` are given to the handler by name."""
    handler: Callable[..., Answer]
    """Gets the services and the body, and returns the answer without its empty `Err`."""
    lane: Lane = Lane.MANAGEMENT
    """Management that changes nothing is a question."""
    methods: Sequence[str] = ("POST",)
    on_volumes: bool = True
    """Whether there is nothing to answer while the filesystem of the volumes is gone."""
    changes: bool = False
    """Whether it may change something: its failures are more than an answer to a question."""
    runs_job: Callable[[Body], bool] = lambda _: False
    """Whether a request runs a job, which the scheduler records."""
    transfers: Callable[[Body], bool] = lambda _: False
    """Whether a request is a transfer, and counts as one, even though not all of this call are."""
    empty_is_retry: bool = False
    """Whether an empty body can only be Docker's retry after a broken connection: no answer."""

    def is_transfer(self, body: Body) -> bool:
        """Whether a request is one that takes as long as it takes."""
        return self.lane is Lane.TRANSFER or self.transfers(body)


def find_lanes(endpoints: Iterable[Endpoint]) -> Callable[[str], Lane]:
    """What tells the lane of a path. What is no endpoint is a question, soon answered."""
    lanes = {
        f"/{endpoint.name}": endpoint.lane
        for endpoint in endpoints
        if endpoint.changes or endpoint.lane is not Lane.MANAGEMENT
    }

    def lane_of(path: str) -> Lane:
        # several slashes at the beginning are one to the server
        return lanes.get(f"/{path.lstrip('/')}", Lane.QUESTION)

    return lane_of


class _Calls:
    """Makes the calls that come in, and encodes what becomes of them."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._slots = threading.BoundedSemaphore(TRANSFERS)
        self._log = logging.getLogger(__name__)

    def answer(self, endpoint: Endpoint, data: bytes, parts: Mapping[str, str]) -> "_Encoded":
        """Answer a request; the one place that turns errors into answers. Raises NoAnswer."""
        try:
            return _encode(self._make(endpoint, data, parts))
        except NoAnswer:
            raise
        except VolumesUnavailable as error:
            self._log.error("/%s gets no answer: %s", endpoint.name, error)
            raise NoAnswer from error
        except ButtervolumeError as error:
            level = logging.WARNING if endpoint.changes else logging.INFO
            self._log.log(level, "/%s: %s", endpoint.name, error)
            return _refuse(type(error).__name__, str(error))
        except MalformedRequest as error:
            return _refuse(type(error).__name__, str(error), 400)
        except Exception as error:
            self._log.exception("/%s: unexpected fault", endpoint.name)
            if endpoint.empty_is_retry:  # what Docker would take for an answer
                raise NoAnswer from error
            message = f"internal error ({type(error).__name__}); see the log"
            return _refuse("InternalError", message, 500)

    def _make(self, endpoint: Endpoint, data: bytes, parts: Mapping[str, str]) -> Answer:
        services = self._services
        if endpoint.on_volumes:
            services.volumes.check_available()
        if endpoint.empty_is_retry and not data.strip():
            raise NoAnswer
        body = Body(data)
        with ExitStack() as stack:
            keep: Callable[[Answer], None] = _forget
            if endpoint.changes and not endpoint.runs_job(body):
                keep = stack.enter_context(_recorded(services, endpoint, body))
            stack.enter_context(services.volumes.mutexes.patience(endpoint.lane.patience))
            if endpoint.is_transfer(body):
                stack.enter_context(services.transfers.ticket(body.ticket()))
                stack.enter_context(_slot(self._slots))
            answer = endpoint.handler(services, body, **parts)
            keep(answer)
        level = logging.INFO if endpoint.changes else logging.DEBUG
        if self._log.isEnabledFor(level):
            said = shortened(str(body), 1024), shortened(str(answer), 512)
            self._log.log(level, "/%s %s: %s", endpoint.name, *said)
        return answer


class _Direct:
    """WSGI in front of Flask: a call of an endpoint whose path has no parts, as all of Docker's
    are, needs nothing of what Flask does, which would be a third of the time of an answer."""

    def __init__(
        self, calls: _Calls, endpoints: Iterable[Endpoint], others: Callable[[], Wsgi]
    ) -> None:
        """`others` gives what answers everything else; it is called when that is needed."""
        self._calls = calls
        self._endpoints = {
            (method, f"/{endpoint.name}"): endpoint
            for endpoint in endpoints
            for method in endpoint.methods
            if "<" not in endpoint.name
        }
        self._others = others

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        endpoint = self._endpoints.get((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
        if endpoint is None:
            return self._others()(environ, start_response)
        # the server has read the whole body, as far as it is not too big
        encoded = self._calls.answer(endpoint, environ["wsgi.input"].read(), {})
        length = str(len(encoded.content))
        headers = [("Content-Type", MIMETYPE), ("Content-Length", length)]
        start_response(f"{encoded.status} {HTTPStatus(encoded.status).phrase}", headers)
        return [encoded.content]


def create_app(services: Services, endpoints: Sequence[Endpoint]) -> "Flask":
    """The application that answers Docker and the command line."""
    calls = _Calls(services)
    app = _create_flask(calls, endpoints)
    in_flask = app.wsgi_app
    app.wsgi_app = _Direct(calls, endpoints, lambda: in_flask)  # type: ignore[method-assign]
    return app


def create_wsgi(services: Services, endpoints: Sequence[Endpoint]) -> Wsgi:
    """The same, without Flask until a request needs it: loading it takes a tenth of a second, and
    13 MB, a third of all that the daemon would have."""
    calls = _Calls(services)
    return _Direct(calls, endpoints, cache(lambda: _create_flask(calls, endpoints).wsgi_app))


def _create_flask(calls: _Calls, endpoints: Sequence[Endpoint]) -> "Flask":
    from flask import Flask, Response, request
    from werkzeug.exceptions import HTTPException
    from werkzeug.routing import Map

    def respond(encoded: _Encoded) -> Response:
        return Response(encoded.content, encoded.status, content_type=MIMETYPE)

    app = Flask("buttervolume", static_folder=None)
    app.url_map = Map(merge_slashes=False)  # it would be by a redirect, which is HTML
    app.config["PROPAGATE_EXCEPTIONS"] = True  # NoAnswer is for the server

    def add(endpoint: Endpoint) -> None:
        def view(**parts: str) -> Response:
            return respond(calls.answer(endpoint, request.get_data(), parts))

        app.add_url_rule(
            f"/{endpoint.name}",
            endpoint=endpoint.name,
            view_func=view,
            methods=endpoint.methods,
            provide_automatic_options=False,
        )

    for endpoint in endpoints:
        add(endpoint)

    @app.errorhandler(HTTPException)
    def http(error: HTTPException) -> Response:
        message = f"{shortened(request.path, 512)}: {error.name}"
        response = respond(_refuse(type(error).__name__, message, error.code or 500))
        response.headers.extend(
            (key, value) for key, value in error.get_headers() if key == "Allow"
        )
        return response

    return app


def _forget(_: Answer) -> None:
    """Keep no record of an answer."""


@contextmanager
def _recorded(
    services: Services, endpoint: Endpoint, body: Body
) -> Iterator[Callable[[Answer], None]]:
    """Keep in the history what becomes of a call: the answer that the block gives, or its error."""
    started, clock = services.now(), time.monotonic()
    by = "docker" if endpoint.lane is Lane.DOCKER else "command"

    def keep(answer: Answer) -> None:
        if not isinstance(answer, Unchanged):
            seconds = time.monotonic() - clock
            run = record(endpoint.name, body, answer, started=started, seconds=seconds, by=by)
            moved = tally.moved if endpoint.is_transfer(body) else None
            services.history.record(replace(run, bytes=moved))

    with services.transfers.tally() as tally:
        try:
            yield keep
        except (MalformedRequest, NoAnswer, VolumesUnavailable):
            raise  # it was not understood, or will come again
        except Exception as error:
            keep({"Err": str(error) or type(error).__name__})
            raise


@contextmanager
def _slot(slots: threading.BoundedSemaphore) -> Iterator[None]:
    """Take one of the slots for transfers, or raise TooManyTransfers at once."""
    if not slots.acquire(blocking=False):
        raise TooManyTransfers(TRANSFERS)
    try:
        yield
    finally:
        slots.release()


@dataclass(frozen=True)
class _Encoded:
    """What goes out."""

    content: bytes
    status: int = 200


def _encode(answer: Answer, status: int = 200) -> _Encoded:
    """Encode an answer. What it tells people is made printable and short here."""
    said = {key: shortened(str(answer[key])) for key in ("Err", "Warning") if key in answer}
    kind = {"Code": OperationFailed.__name__} if said.get("Err") else {}
    return _Encoded(json.dumps({"Err": "", **kind, **answer, **said}).encode(), status)


def _refuse(kind: str, message: str, status: int = 200) -> _Encoded:
    return _encode({"Err": message, "Code": kind}, status)
