"""The HTTP API: decode a request, make one call, encode the answer.

It speaks to Docker as moby's sources want it (daemon/volume/drivers, pkg/plugins): no Content-Type
comes in, `Err` is a string in every answer, and a domain error is HTTP 200.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge
from werkzeug.routing import Map

from buttervolume.errors import ButtervolumeError, TooManyTransfers, VolumesUnavailable, enumerated
from buttervolume.replication import Replication
from buttervolume.retention import parse_pattern
from buttervolume.schedule import Purge, Schedule
from buttervolume.snapshots import Snapshots
from buttervolume.transfers import Transfer
from buttervolume.volumes import Volumes, parse_options

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
Handler = Callable[..., Answer]


def create_app(
    volumes: Volumes,
    snapshots: Snapshots,
    replication: Replication,
    schedule: Schedule,
    transfer_limit: int,
) -> Flask:
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
    """The endpoints whose failures are more than an answer to a question."""
    _handle_errors(app, log, changing)

    def add(
        route: str,
        handler: Handler,
        *,
        methods: Sequence[str] = ("POST",),
        on_volumes: bool = True,
        changes: bool = False,
    ) -> None:
        if changes:
            changing.add(route)

        def view(**parts: str) -> Response:
            if on_volumes:
                volumes.check_available()
            if (request.content_length or 0) > LARGEST_BODY:
                raise RequestEntityTooLarge
            data = request.get_data()
            if handler is get and not data.strip():
                raise NoAnswer  # only Docker's retry after a broken connection asks so
            body = Body(data)
            answer = handler(body, **parts)
            level = logging.INFO if changes else logging.DEBUG
            log.log(level, "%s %s: %.500s", route, body, answer)
            return _respond(answer)

        app.add_url_rule(
            route,
            endpoint=route,
            view_func=view,
            methods=methods,
            provide_automatic_options=False,
        )

    def activate(_: Body) -> Answer:
        return {"Implements": ["VolumeDriver"]}

    def capabilities(_: Body) -> Answer:
        return {"Capabilities": {"Scope": "local"}}

    def create(body: Body) -> Answer:
        name, options = body.text("Name"), body.mapping("Opts")
        volumes.create(name, parse_options(options))
        return {}

    def get(body: Body) -> Answer:
        volume = volumes.get(body.text("Name"))
        status: Answer = {}
        if volume.copy_on_write is not None:
            status["CopyOnWrite"] = volume.copy_on_write
        try:
            summary = snapshots.summary(volume.name)
            status |= {"Snapshots": summary.count, "LastSnapshot": summary.latest}
        except OSError as error:
            log.warning("%s: cannot list its snapshots: %s", volume.name, error)
        answer: Answer = {
            "Name": volume.name,
            "Mountpoint": str(volume.mountpoint),
            "Status": status,
        }
        if volume.created is not None:
            answer["CreatedAt"] = volume.created.isoformat(timespec="seconds")
        return {"Volume": answer}

    def list_volumes(_: Body) -> Answer:
        found = volumes.list()
        return {"Volumes": [{"Name": name, "Mountpoint": str(path)} for name, path in found]}

    def path(body: Body) -> Answer:
        return {"Mountpoint": str(volumes.mountpoint(body.text("Name")))}

    def mount(body: Body) -> Answer:
        name, user = body.text("Name"), body.optional_text("ID")
        mountpoint = volumes.mountpoint(name)
        volumes.remember_mount(name, user or "")
        return {"Mountpoint": str(mountpoint)}

    def unmount(body: Body) -> Answer:
        name, user = body.text("Name"), body.optional_text("ID")
        volumes.path_of(name)
        volumes.remember_unmount(name, user or "")
        return {}

    def remove(body: Body) -> Answer:
        volumes.remove(body.text("Name"))
        return {}

    def take_snapshot(body: Body) -> Answer:
        taken = snapshots.take(body.text("Name"))
        return {"Snapshot": taken.name, **_warning(taken.left_out)}

    def list_snapshots(body: Body, volume: str | None = None) -> Answer:
        volume = body.optional_text("Name") if volume is None else volume
        found = snapshots.list(volume)
        answer: Answer = {"Snapshots": [str(snapshot.name) for snapshot in found.snapshots]}
        if found.incomplete:
            copies = ", ".join(map(str, found.incomplete))
            answer["Warning"] = f"being received, or left by a transfer that failed: {copies}"
        return answer

    def remove_snapshot(body: Body) -> Answer:
        snapshots.remove(body.text("Name"))
        return {}

    def restore(body: Body) -> Answer:
        name, target = body.text("Name"), body.optional_text("Target")
        backup = snapshots.restore(name, target, force=body.flag("Force"))
        return {} if backup is None else {"VolumeBackup": backup}

    def clone(body: Body) -> Answer:
        taken = snapshots.clone(body.text("Name"), body.text("Target"))
        return {"VolumeCloned": taken.name, **_warning(taken.left_out)}

    def send(body: Body) -> Answer:
        name, host = body.text("Name"), body.text("Host")
        with _slot(slots, transfer_limit):
            replication.send(name, host)
        return {}

    def synchronize(body: Body) -> Answer:
        targets, hosts = body.texts("Volumes"), body.texts("Hosts")
        with _slot(slots, transfer_limit):
            taken = replication.synchronize(targets, hosts)
        return _warning([path for each in taken for path in each.left_out])

    def list_transfers(_: Body) -> Answer:
        return {"Transfers": [_describe(t) for t in replication.transfers.list()]}

    def cancel_transfer(body: Body) -> Answer:
        replication.transfers.cancel(body.number("Id"))
        return {}

    def purge(body: Body) -> Answer:
        name, pattern = body.text("Name"), parse_pattern(body.text("Pattern"))
        if body.flag("Dryrun"):
            verdicts = snapshots.plan_purge(name, pattern)
            return {
                "Purged": [str(verdict.name) for verdict in verdicts if not verdict.keep],
                "Verdicts": [
                    {"Name": str(verdict.name), "Keep": verdict.keep, "Reason": verdict.reason}
                    for verdict in verdicts
                ],
            }
        purged = snapshots.purge(name, pattern)
        return {"Purged": purged.deleted, "Err": purged.explain()}

    def set_job(body: Body) -> Answer:
        job = schedule.apply(body.text("Name"), body.text("Action"), body.text("Timer"))
        # snapshots that were received are purged where there is no volume
        if job is None or isinstance(job.task, Purge) or volumes.exists(job.volume):
            return {}
        return {"Warning": f"there is no volume {job.volume} yet"}

    def list_jobs(_: Body) -> Answer:
        contents = schedule.read()
        jobs = [
            {
                "Name": job.volume,
                "Action": job.action,
                "Timer": str(job.minutes),
                "Active": str(job.active),
            }
            for job in contents.jobs
        ]
        return {"Schedule": jobs, "Paused": contents.paused}

    def pause_jobs(_: Body) -> Answer:
        schedule.pause_all()
        return {}

    def resume_jobs(_: Body) -> Answer:
        schedule.resume_all()
        return {}

    add("/Plugin.Activate", activate, on_volumes=False)
    add("/VolumeDriver.Capabilities", capabilities, on_volumes=False)
    add("/VolumeDriver.Create", create, changes=True)
    add("/VolumeDriver.Get", get)
    add("/VolumeDriver.List", list_volumes)
    add("/VolumeDriver.Mount", mount)
    add("/VolumeDriver.Path", path)
    add("/VolumeDriver.Unmount", unmount)
    add("/VolumeDriver.Remove", remove, changes=True)
    add("/VolumeDriver.Snapshot", take_snapshot, changes=True)
    add("/VolumeDriver.Snapshot.List", list_snapshots, methods=("GET", "POST"))
    add("/VolumeDriver.Snapshot.List/<volume>", list_snapshots, methods=("GET", "POST"))
    add("/VolumeDriver.Snapshot.Remove", remove_snapshot, changes=True)
    add("/VolumeDriver.Snapshot.Restore", restore, changes=True)
    add("/VolumeDriver.Clone", clone, changes=True)
    add("/VolumeDriver.Snapshot.Send", send, changes=True)
    add("/VolumeDriver.Volume.Sync", synchronize, changes=True)
    add("/VolumeDriver.Snapshots.Purge", purge, changes=True)
    add("/VolumeDriver.Schedule", set_job, on_volumes=False, changes=True)
    add("/VolumeDriver.Schedule.List", list_jobs, methods=("GET", "POST"), on_volumes=False)
    add("/VolumeDriver.Schedule.Pause", pause_jobs, on_volumes=False, changes=True)
    add("/VolumeDriver.Schedule.Resume", resume_jobs, on_volumes=False, changes=True)
    add("/VolumeDriver.Transfers", list_transfers, methods=("GET", "POST"), on_volumes=False)
    add("/VolumeDriver.Transfers.Cancel", cancel_transfer, on_volumes=False, changes=True)
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


def _describe(transfer: Transfer) -> Answer:
    seconds = time.monotonic() - transfer.started
    return {
        "Id": transfer.number,
        "Operation": transfer.operation,
        "Volume": transfer.volume,
        "Snapshot": transfer.snapshot,
        "Host": transfer.host,
        "Parent": transfer.parent,
        "Phase": transfer.phase,
        "Bytes": transfer.flow.moved,
        "BytesPerSecond": round(transfer.flow.moved / seconds) if seconds else 0,
        "Seconds": round(seconds, 1),
    }


def _warning(left_out: Sequence[str]) -> Answer:
    """Say which nested subvolumes are empty in a snapshot or a clone."""
    if not left_out:
        return {}
    return {"Warning": f"nested subvolumes are not included: {enumerated(left_out)}"}


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
