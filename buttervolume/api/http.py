"""The HTTP API: decode a request, make one call, encode the answer.

It speaks to Docker as moby's sources want it (daemon/volume/drivers, pkg/plugins): no Content-Type
comes in, `Err` is a string in every answer, and a domain error is HTTP 200.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from enum import Enum

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException
from werkzeug.routing import Map

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

MIMETYPE = "application/vnd.docker.plugins.v1.2+json"
LARGEST_BODY = 1 << 20
"""Bytes; the server refuses more before it reads them. Docker sends some hundreds."""
TRANSFERS = 8
"""How many run for callers at a time."""


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
    QUESTION = "question"
    """Other calls that wait for nobody."""
    MANAGEMENT = "management"
    """Other calls that may wait for another operation on their volume."""
    TRANSFER = "transfer"
    """Takes as long as it takes: at most TRANSFERS at a time, and one more is refused at once."""

    @property
    def patience(self) -> float:
        """Seconds to wait for the mutex of a volume; Docker itself gives up after 60."""
        return 50 if self is Lane.DOCKER else 10


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
    empty_is_retry: bool = False
    """Whether an empty body can only be Docker's retry after a broken connection: no answer."""


def find_lanes(endpoints: Iterable[Endpoint]) -> Callable[[str], Lane]:
    """What tells the lane of a path. What is no endpoint is a question, soon answered."""
    lanes = {
        f"/{endpoint.name}": endpoint.lane
        for endpoint in endpoints
        if endpoint.changes or endpoint.lane is not Lane.MANAGEMENT
    }

    def lane_of(path: str) -> Lane:
        return lanes.get(path, Lane.QUESTION)

    return lane_of


def create_app(services: Services, endpoints: Iterable[Endpoint]) -> Flask:
    """The application that answers Docker and the command line."""
    slots = threading.BoundedSemaphore(TRANSFERS)
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
            data = request.get_data()
            if endpoint.empty_is_retry and not data.strip():
                raise NoAnswer
            body = Body(data)
            with ExitStack() as stack:
                keep: Callable[[Answer], None] = _forget
                if endpoint.changes and not endpoint.runs_job(body):
                    keep = stack.enter_context(_recorded(services, endpoint, body))
                stack.enter_context(services.volumes.mutexes.patience(endpoint.lane.patience))
                if endpoint.lane is Lane.TRANSFER:
                    stack.enter_context(services.transfers.ticket(body.ticket()))
                    stack.enter_context(_slot(slots))
                answer = endpoint.handler(services, body, **parts)
                keep(answer)
            level = logging.INFO if endpoint.changes else logging.DEBUG
            if log.isEnabledFor(level):
                said = shortened(str(body), 1024), shortened(str(answer), 512)
                log.log(level, "%s %s: %s", route, *said)
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
            moved = tally.moved if endpoint.lane is Lane.TRANSFER else None
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


def _respond(answer: Answer, status: int = 200) -> Response:
    """Encode an answer. What it tells people is made printable and short here."""
    said = {key: shortened(str(answer[key])) for key in ("Err", "Warning") if key in answer}
    kind = {"Code": OperationFailed.__name__} if said.get("Err") else {}
    content = json.dumps({"Err": "", **kind, **answer, **said})
    return Response(content, status, content_type=MIMETYPE)


def _refuse(kind: str, message: str, status: int = 200) -> Response:
    return _respond({"Err": message, "Code": kind}, status)


def _handle_errors(app: Flask, log: logging.Logger, changing: Collection[str]) -> None:
    """The one place that turns errors into answers."""

    @app.errorhandler(ButtervolumeError)
    def refused(error: ButtervolumeError) -> Response:
        level = logging.WARNING if request.endpoint in changing else logging.INFO
        log.log(level, "%s: %s", request.url_rule, error)
        return _refuse(type(error).__name__, str(error))

    @app.errorhandler(VolumesUnavailable)
    def unavailable(error: VolumesUnavailable) -> Response:
        log.error("%s gets no answer: %s", request.url_rule, error)
        raise NoAnswer from error

    @app.errorhandler(MalformedRequest)
    def malformed(error: MalformedRequest) -> Response:
        return _refuse(type(error).__name__, str(error), 400)

    @app.errorhandler(HTTPException)
    def http(error: HTTPException) -> Response:
        message = f"{shortened(request.path, 512)}: {error.name}"
        response = _refuse(type(error).__name__, message, error.code or 500)
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
        message = f"internal error ({type(error).__name__}); see the log"
        return _refuse("InternalError", message, 500)
