"""The daemon: put the parts together, serve until a signal comes, end in order."""

import fcntl
import logging
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from waitress.channel import ClientDisconnected
from waitress.server import create_server

from buttervolume.api import driver, management, seeing
from buttervolume.api.http import NoAnswer, create_app
from buttervolume.config import Config
from buttervolume.errors import AlreadyRunning, NotOnBtrfs, OperationFailed
from buttervolume.hosts.replication import Replication
from buttervolume.hosts.transfers import Transfers
from buttervolume.jobs.schedule import Schedule
from buttervolume.jobs.scheduler import Scheduler
from buttervolume.report.observer import Observer
from buttervolume.services import Services
from buttervolume.store.catalog import Catalog
from buttervolume.store.contents import Contents
from buttervolume.store.snapshots import Snapshots
from buttervolume.store.volumes import LOCK_NAME, Volumes
from buttervolume.system import btrfs

THREADS = 32
CONNECTIONS = 4096
"""A dockerd that starts asks about all of its volumes at once, each on a connection of its own."""
PATIENCE = 3.0
"""Seconds to wait for a lock that a command of a killed daemon may still hold, and for what is
being worked on when the daemon is told to stop."""


def run(config: Config) -> None:
    """Serve until SIGTERM or SIGINT. Raises AlreadyRunning, NotOnBtrfs, OperationFailed."""
    log_to_standard_streams(config.loglevel)
    log = logging.getLogger(__name__)
    for warning in config.warnings:
        log.warning("%s", warning)
    signals = catch_signals()
    _allow_many_files()
    prepare_directories(config)
    with ExitStack() as stack:
        stack.enter_context(lock(config.volumes_path / LOCK_NAME))
        stack.enter_context(lock(Path(f"{config.socket}.lock")))
        volumes = Volumes(config.volumes_path)
        volumes.sweep()
        catalog = Catalog(config.snapshots_path, config.dtformat, volumes.check_available)
        snapshots = Snapshots(catalog, volumes)
        transfers = Transfers()
        replication = Replication(
            volumes, catalog, snapshots, port=config.ssh_port, transfers=transfers
        )
        schedule = Schedule(config.schedule)
        state = Path(f"{config.schedule}.state.json")
        scheduler = Scheduler(schedule, snapshots, replication, state, config.timer)
        services = Services(
            volumes=volumes,
            catalog=catalog,
            snapshots=snapshots,
            contents=Contents(volumes, catalog, snapshots),
            transfers=transfers,
            replication=replication,
            schedule=schedule,
            scheduler=scheduler,
            observer=Observer(
                volumes,
                catalog,
                schedule,
                scheduler,
                transfers,
                snapshots.in_transfer.held,
                timer=config.timer,
                min_free=config.min_free,
            ),
        )
        endpoints = (*driver.ENDPOINTS, *management.ENDPOINTS, *seeing.ENDPOINTS)
        server = Server(create_app(services, endpoints, THREADS // 4))
        listener = stack.enter_context(listen(config.socket))
        server.start(listener)
        scheduler.start()
        log.info("ready on %s", config.socket)
        log.info("stopping: %s", signal.Signals(os.read(signals, 1)[0]).name)
        config.socket.unlink(missing_ok=True)
        transfers.close()
        deadline = time.monotonic() + PATIENCE
        scheduler.stop(deadline)
        server.stop(deadline)


def catch_signals() -> int:
    """Let SIGTERM and SIGINT come as bytes out of a pipe.

    Python's own handlers run only when the main thread does: with a queue between them, a signal
    in the moment before the thread waits for the queue would not wake it.
    """
    arrived, sender = os.pipe()
    os.set_blocking(sender, False)
    signal.set_wakeup_fd(sender)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    return arrived


def log_to_standard_streams(level: int) -> None:
    """Log INFO and below to stdout, the rest to stderr: Docker marks them info and error."""
    formatter = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    out, err = logging.StreamHandler(sys.stdout), logging.StreamHandler(sys.stderr)
    out.addFilter(lambda record: record.levelno < logging.WARNING)
    err.setLevel(logging.WARNING)
    for handler in (out, err):
        handler.setFormatter(formatter)
    logging.basicConfig(level=level, handlers=[out, err], force=True)
    logging.getLogger("waitress").setLevel(max(level, logging.WARNING))
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # it tells of each short wait


def _allow_many_files() -> None:
    """Raise the soft limit on open files, 1024 in most places, for CONNECTIONS."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS + 1024
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def prepare_directories(config: Config) -> None:
    """Make the volumes and snapshots directories, if BTRFS is there; raise NotOnBtrfs if not."""
    filesystems = set()
    for path in (config.volumes_path, config.snapshots_path):
        existing = next(p for p in (path, *path.parents) if p.exists())
        try:
            filesystems.add(btrfs.filesystem(existing))
        except OSError as error:
            raise NotOnBtrfs(f"{path} is not on a BTRFS filesystem") from error
    if len(filesystems) > 1:
        raise NotOnBtrfs(
            f"{config.volumes_path} and {config.snapshots_path} are on two filesystems, "
            "but a snapshot must be on that of its volume"
        )
    for path in (config.volumes_path, config.snapshots_path):
        try:
            path.mkdir(0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise OperationFailed(f"make {path}", error) from error


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file, so that no second daemon starts. Raises AlreadyRunning.

    Short commands inherit the lock on purpose (see `command.run`): what a killed daemon left
    running ends before the next daemon sweeps.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise OperationFailed(f"lock {path}", error) from error
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise AlreadyRunning(path) from error
                time.sleep(0.02)
        os.set_inheritable(descriptor, True)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def listen(path: Path) -> Iterator[socket.socket]:
    """Listen on a unix socket that owner and group may use; a stale one is replaced.

    The lock beside the socket must be held.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            if path.is_socket():
                path.unlink()
            elif os.path.lexists(path):
                raise OperationFailed(f"listen on {path}", "it exists and is no socket")
            mask = os.umask(0o177)
            try:
                listener.bind(str(path))
            finally:
                os.umask(mask)
            path.chmod(0o660)
        except OSError as error:
            raise OperationFailed(f"listen on {path}", error) from error
        listener.listen(CONNECTIONS)
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


class Server:
    """waitress in a thread of its own, with an end that lets started answers go out."""

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self._app = app
        self._stopping = threading.Event()

    def start(self, listener: socket.socket) -> None:
        """Serve what comes in on a listening socket."""
        self._server: Any = create_server(  # the type stubs know no active_channels
            self._serve,
            sockets=[listener],
            threads=THREADS,
            connection_limit=CONNECTIONS,
            backlog=CONNECTIONS,
            asyncore_use_poll=True,  # select() ends at 1,024 connections
            clear_untrusted_proxy_headers=False,
        )
        threading.Thread(target=self._server.run, name="waitress", daemon=True).start()

    def _serve(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if self._stopping.is_set():
            raise ClientDisconnected  # Docker asks the next daemon
        try:
            return self._app(environ, start_response)
        except NoAnswer:
            raise ClientDisconnected from None  # waitress closes without an answer

    def stop(self, deadline: float) -> None:
        """Take no more requests, and wait for those that are being worked on, until a moment of
        the monotonic clock."""
        self._stopping.set()
        while self._is_answering() and time.monotonic() < deadline:
            time.sleep(0.01)

    def _is_answering(self) -> bool:
        """Whether waitress works on a request, or has part of an answer that is still to be sent:
        it sends from a thread of its own after the application has returned."""
        channels = list(self._server.active_channels.values())
        return any(channel.requests or channel.total_outbufs_len for channel in channels)
