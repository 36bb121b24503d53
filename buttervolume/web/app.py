"""The application behind WEB. It is given a view, and so has nothing that could change anything."""

import hmac
import ipaddress
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock

from flask import Flask, Response, jsonify, render_template, request
from werkzeug.exceptions import HTTPException

from buttervolume.errors import ButtervolumeError, OperationFailed
from buttervolume.jobs.history import Run
from buttervolume.report import answer
from buttervolume.report.observer import Outlook
from buttervolume.report.status import Report
from buttervolume.web import metrics, pages

_FRESH = 1.0
"""Seconds for which an answer is given again: however many ask, one of each is made in this time.
It is also the longest rest between two."""
_MOST_ANSWERS = 100
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; "
    "img-src 'self'; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; "
    "base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class View:
    """All that the pages can know: questions, and no way to change anything."""

    node: str
    """The name of this host."""
    report: Callable[[], Report]
    outlook: Callable[[Report, str], Outlook | None]
    runs: Callable[..., Sequence[Run]]
    """What was done, as `History.search` finds it."""


def create_app(view: View, token: str, *, any_host: bool) -> Flask:
    """The pages, the metrics and the report as JSON.

    Where a token is given, it is asked for. Without one only `Host`s that are addresses or
    loopback names are served, so that no name of somebody else's can be made to lead here (DNS
    rebinding), unless `any_host`, which is for a unix socket.
    """
    app = Flask("buttervolume.web")
    app.jinja_env.filters.update(pages.FILTERS)
    app.jinja_env.lstrip_blocks = True
    answers = Answers()

    def answer_of(make: Callable[[], Response]) -> Response:
        return answers.get(request.full_path, make)

    @app.before_request
    def check() -> Response | None:
        if token:
            return None if _has_token(token) else _unauthorized()
        if any_host or _is_safe_host(request.host):
            return None
        return _text("this name is not served; use an address, or set WEB_TOKEN", 421)

    @app.after_request
    def harden(response: Response) -> Response:
        response.headers.update(_HEADERS)
        return response

    @app.errorhandler(ButtervolumeError)
    def failed(error: ButtervolumeError) -> tuple[str, int]:
        return render_template("error.html", node=view.node, problem=str(error)), 503

    @app.errorhandler(HTTPException)
    def http(error: HTTPException) -> tuple[str, int]:
        problem = error.name if error.code != 404 else "There is no such page."
        return render_template("error.html", node=view.node, problem=problem), error.code or 500

    @app.errorhandler(Exception)
    def fault(error: Exception) -> tuple[str, int]:
        logging.getLogger(__name__).exception("%s: unexpected fault", request.path)
        problem = f"internal error ({type(error).__name__}); see the log"
        return render_template("error.html", node=view.node, problem=problem), 500

    @app.get("/")
    def home() -> Response:
        return answer_of(lambda: _html(pages.home(view.report(), request.args), "home.html"))

    @app.get("/volumes/<name>")
    def volume(name: str) -> Response:
        def make() -> Response:
            report = view.report()
            if name not in report.by_volume:
                page = render_template(
                    "error.html", node=view.node, problem=f"{name}: no such volume"
                )
                return Response(page, 404)
            outlook, runs = view.outlook(report, name), _runs(volume=name)
            return _html(pages.volume(report, name, outlook, runs), "volume.html")

        return answer_of(make)

    @app.get("/log")
    def log() -> Response:
        def make() -> Response:
            wanted = pages.Wanted.parse(request.args)
            runs = _runs(volume=wanted.volume, failed=wanted.failed, limit=wanted.limit)
            return _html(pages.log(view.report(), wanted, runs), "log.html")

        return answer_of(make)

    @app.get("/metrics")
    def scrape() -> Response:
        return answer_of(
            lambda: Response(metrics.render(view.report()), content_type=metrics.CONTENT_TYPE)
        )

    @app.get("/health")
    def health() -> Response:
        def make() -> Response:
            alive = view.report().is_alive
            return _text("alive" if alive else "not alive: see the report", 200 if alive else 503)

        return answers.now(make)

    @app.get("/api/status")
    def status() -> Response:
        return answer_of(lambda: jsonify(answer.report(view.report())))

    def _runs(**question: object) -> Sequence[Run] | None:
        """What was done; None if the history cannot be read now."""
        try:
            return view.runs(**question)
        except OperationFailed as error:
            logging.getLogger(__name__).warning("%s", error)
            return None

    def _html(context: pages.Context, template: str) -> Response:
        return Response(render_template(template, node=view.node, **context))

    return app


class Answers:
    """Makes one answer at a time, and rests after each for as long as it took, so that Docker's
    calls find the processor free for half of the time at the least, whatever is asked here. The
    last answer to each question is kept for a moment; several who ask the same wait for one."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._guard = Lock()  # protects what follows, and is held while an answer is made
        self._made: dict[str, tuple[float, Response]] = {}
        self._rested = -math.inf
        """The earliest moment to make another one."""

    def get(self, question: str, make: Callable[[], Response]) -> Response:
        """A fresh answer; for a moment, the same question gets the same one."""
        with self._guard:
            now = self._clock()
            made, response = self._made.get(question, (-_FRESH, None))
            if response is None or now - made >= _FRESH:
                self._made = {
                    known: entry
                    for known, entry in list(self._made.items())[-_MOST_ANSWERS:]
                    if now - entry[0] < _FRESH
                }
                response = self._make(make)
                self._made[question] = self._clock(), response
        return Response(response.get_data(), response.status_code, dict(response.headers))

    def now(self, make: Callable[[], Response]) -> Response:
        """An answer of this moment."""
        with self._guard:
            return self._make(make)

    def _make(self, make: Callable[[], Response]) -> Response:
        started = self._clock()
        if started < self._rested:
            self._sleep(self._rested - started)
            started = self._clock()
        try:
            return make()
        finally:
            ended = self._clock()
            self._rested = ended + min(ended - started, _FRESH)


def _is_safe_host(host: str) -> bool:
    """Whether a `Host` is an address, or a name that means the loopback to every browser."""
    host = host.lower()
    name = host.rpartition(":")[0] if host.count(":") == 1 or "]:" in host else host
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _has_token(token: str) -> bool:
    given = request.authorization
    if given is not None and given.type == "basic":
        candidate = given.password or ""
    else:
        scheme, _, candidate = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return False
    return hmac.compare_digest(candidate.strip().encode(), token.encode())


def _unauthorized() -> Response:
    response = _text("the token of WEB_TOKEN is needed", 401)
    response.headers["WWW-Authenticate"] = 'Basic realm="buttervolume", charset="UTF-8"'
    return response


def _text(text: str, status: int) -> Response:
    return Response(f"{text}\n", status, content_type="text/plain; charset=utf-8")
