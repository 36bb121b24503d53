"""The daemon: put the parts together, serve until a signal comes, end in order."""

import ctypes
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from buttervolume import names
from buttervolume.api import driver, management, seeing
from buttervolume.api.http import create_wsgi, find_lanes
from buttervolume.api.server import Server, allow_connections, listen
from buttervolume.config import Address, Config
from buttervolume.errors import AlreadyRunning, NotOnBtrfs, OperationFailed
from buttervolume.follow.acquire import Acquirer
from buttervolume.follow.decisions import Decisions
from buttervolume.follow.following import Following
from buttervolume.follow.link import Connect, Connector
from buttervolume.follow.member import Member
from buttervolume.follow.rounds import Rounds
from buttervolume.hosts.replication import Replication
from buttervolume.hosts.transfers import Transfers
from buttervolume.jobs.actions import Tools
from buttervolume.jobs.history import History
from buttervolume.jobs.schedule import Schedule
from buttervolume.jobs.scheduler import Scheduler
from buttervolume.report.doctor import Doctor
from buttervolume.report.misplaced import misplaced
from buttervolume.report.notices import Apprise, Notifier
from buttervolume.report.observer import Observer
from buttervolume.services import Services
from buttervolume.store import attributes
from buttervolume.store.catalog import Catalog
from buttervolume.store.contents import Contents
from buttervolume.store.removed import Removed
from buttervolume.store.snapshots import Snapshots
from buttervolume.store.usage import Meter
from buttervolume.store.volumes import Volumes
from buttervolume.system import btrfs
from buttervolume.system.locks import lock_file
from buttervolume.system.log import to_standard_streams
from buttervolume.words import enumerated

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
PATIENCE = 3.0
"""Seconds to wait for a lock that a command of a killed daemon may still hold, and for what is
being worked on when the daemon is told to stop."""
SWITCH_INTERVAL = 0.0005
"""Seconds after which a thread that computes lets another one run: a tenth of Python's default."""
COLLECT_EVERY = 600
"""Seconds between two looks for garbage among all objects. Nobody gets an answer meanwhile: with
50,000 snapshots that is a tenth of a second, and Python by itself looks after each page."""
NEVER = 1 << 30
M_ARENA_MAX = -8
"""From glibc's malloc.h, for mallopt(3)."""
ARENAS = 2
"""How many pools of memory malloc has. By default each thread gets its own and keeps what it has
ever needed at once: with 25 threads, memory grows for hours."""
LAST_WRITE = 0.5
"""Seconds for what the history has still to write, however long the rest took."""
PAGE_EVERY = 5.0
"""Seconds between two tries to have the address of the page."""


def run(config: Config, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
    """Serve until a signal comes. Raises AlreadyRunning, NotOnBtrfs, OperationFailed.

    `now` is the clock, in UTC, that dates snapshots and says what is due.
    """
    settle_process()
    with to_standard_streams(config.loglevel, os.environ):
        _serve(config, now)


def _serve(config: Config, now: Callable[[], datetime]) -> None:
    log = logging.getLogger(__name__)
    warnings = (*config.warnings, *misplaced(config, Path.home() / ".ssh"))
    for warning in warnings:
        log.warning("%s", warning)
    signals = catch_signals()
    connections = allow_connections()
    prepare_directories(config)
    with ExitStack() as stack:
        stack.enter_context(lock(config.volumes_path / names.LOCK_NAME))
        if not note(config):
            _in_background("note", _note_later, config)
        stack.enter_context(lock(Path(f"{config.socket}.lock")))
        volumes = Volumes(config.volumes_path)
        leftovers = volumes.leftovers()
        services = _put_together(config, volumes, warnings, now)
        endpoints = (
            *driver.ENDPOINTS,
            *management.ENDPOINTS,
            *seeing.ENDPOINTS,
        )
        server = Server(create_wsgi(services, endpoints), find_lanes(endpoints), connections)
        listener = stack.enter_context(listen(config.socket))
        page = None if config.web is None else _listen_for_page(config.web, stack)
        server.start(listener)
        services.following.rounds.start()
        old_state = Path(f"{config.schedule}.state.json")
        services.scheduler.start(services.history.start(old_state))
        _in_background("tidy", _tidy, services, leftovers, config.timer)
        _in_background("collect", _collect)
        if page is not None:
            _serve_page(config, services, page)
        elif config.web is not None and config.web.path is None:
            _in_background("page", _wait_for_page, config, services, config.web)
        if config.notify and (problem := Apprise(config.notify).check()):
            log.warning("%s", problem)
        elif config.notify:
            services.notifier.start()
        log.info("ready on %s", config.socket)
        notify(os.environ, "READY=1")
        log.info("stopping: %s", signal.Signals(os.read(signals, 1)[0]).name)
        notify(os.environ, "STOPPING=1")
        config.socket.unlink(missing_ok=True)
        services.transfers.close()
        services.replication.close()
        deadline = time.monotonic() + PATIENCE
        services.scheduler.stop(deadline)
        server.stop(deadline)
        services.history.stop(max(deadline, time.monotonic() + LAST_WRITE))


def _in_background(name: str, work: Callable[..., None], *arguments: object) -> None:
    """Do something in a thread that nobody waits for."""
    threading.Thread(target=work, args=arguments, name=name, daemon=True).start()


def _put_together(
    config: Config, volumes: Volumes, warnings: Sequence[str], now: Callable[[], datetime]
) -> Services:
    """All the parts; none of them has begun to do anything."""

    def local_now() -> datetime:
        return datetime.fromtimestamp(now().timestamp())  # noqa: DTZ006 - as snapshots are named

    catalog = Catalog(config.snapshots_path, config.dtformat, volumes.check_available, local_now)
    snapshots = Snapshots(catalog, volumes, local_now)
    transfers = Transfers()
    replication = Replication(
        volumes,
        catalog,
        snapshots,
        port=config.ssh_port,
        node=config.node,
        transfers=transfers,
        min_free=config.min_free,
        now=local_now,
    )
    contents = Contents(volumes, catalog, snapshots)
    connector = Connector(config.ssh_port, config.node)
    member = Member(config.node, volumes, catalog, snapshots, config.follow_path)
    acquirer = Acquirer(member, connector, replication.receive)
    rounds = _rounds(member, connector, catalog, replication, local_now)
    following = Following(member, acquirer, rounds, transfers, config.peers)
    schedule = Schedule(config.schedule)
    history = History(config.history, now)
    tools = Tools(snapshots, replication, transfers, following.check_owner, following.owning)
    scheduler = Scheduler(schedule, tools, history, volumes.names, config.timer, now)
    observer = Observer(
        volumes,
        catalog,
        schedule,
        scheduler,
        transfers,
        rounds,
        snapshots.in_transfer.held,
        timer=config.timer,
        min_free=config.min_free,
        now=now,
    )
    return Services(
        volumes=volumes,
        catalog=catalog,
        snapshots=snapshots,
        removed=Removed(volumes, config.dtformat, config.keep_removed, config.min_free, local_now),
        contents=contents,
        transfers=transfers,
        replication=replication,
        following=following,
        decisions=Decisions(following, connector, contents, snapshots),
        schedule=schedule,
        scheduler=scheduler,
        observer=observer,
        meter=Meter(volumes, catalog),
        doctor=Doctor(volumes, catalog, observer, warnings, config.ssh_port),
        notifier=Notifier(
            observer.report,
            Apprise(config.notify).each(),
            config.node,
            config.history.with_name("notices.json"),
        ),
        history=history,
        now=now,
    )


def _rounds(
    member: Member,
    connect: Connect,
    catalog: Catalog,
    replication: Replication,
    now: Callable[[], datetime],
) -> Rounds:
    """What keeps the members of followed volumes up to date."""

    def send(snapshot: str, host: str) -> None:
        replication.send(snapshot, host, force=True)  # a fork there is no history to come

    def moment_of(snapshot: str) -> datetime | None:
        return catalog.moment_of(names.parse_snapshot(snapshot))

    return Rounds(member, connect, send, moment_of, now)


def _listen_for_page(web: Address, stack: ExitStack) -> socket.socket | None:
    """Listen where the page is to be; if that cannot be, the volumes are there without it."""
    from buttervolume.web.server import listen as listen_at

    try:
        if web.path is None:
            return stack.enter_context(listen_at(web.host, web.port))
        stack.enter_context(lock(Path(f"{web.path}.lock")))
        return stack.enter_context(listen(web.path))
    except (AlreadyRunning, OperationFailed) as error:
        logging.getLogger(__name__).error("there is no page: %s", error)
        return None


def _wait_for_page(config: Config, services: Services, web: Address) -> None:
    """Serve the page once its address can be had: at boot the network may come after us."""
    from buttervolume.web.server import listen as listen_at

    while True:
        time.sleep(PAGE_EVERY)
        try:
            listener = listen_at(web.host, web.port)
        except OperationFailed:
            continue
        _serve_page(config, services, listener)
        return


def _serve_page(config: Config, services: Services, listener: socket.socket) -> None:
    """Serve the page and the metrics."""
    # prometheus_client takes a tenth of a second to load
    from buttervolume.web.app import View
    from buttervolume.web.app import create_app as create_pages
    from buttervolume.web.server import serve

    observer, history = services.observer, services.history
    view = View(config.node, observer.report, observer.outlook, history.search)
    on_socket = config.web is not None and config.web.path is not None
    serve(create_pages(view, config.web_token, any_host=on_socket), listener)
    logging.getLogger(__name__).info("the page is at %s", config.web)


def settle_process() -> None:
    """Make the process what the daemon relies on, whatever started it."""
    os.umask(0o077)  # what others may read says so itself
    # one answer to Docker needs Python's lock some ten times, and a thread that computes, such as
    # one that makes a page, gives it up after this only
    sys.setswitchinterval(SWITCH_INTERVAL)
    gc.set_threshold(*gc.get_threshold()[:2], NEVER)  # _collect does that
    with suppress(AttributeError):  # another C library than glibc
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, ARENAS)
    # ignored, as some parents leave it, it would keep the end of every command from us
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _tidy(services: Services, leftovers: Sequence[str], timer: int) -> None:
    """What is to be set right and looked at after a start, and may take long; then, for good, what
    becomes of removed volumes."""
    try:
        services.volumes.sweep(leftovers)
        services.volumes.forget_origins()
        services.catalog.read_ahead()
        for identity, shared in services.catalog.sharing_identity().items():
            logging.getLogger(__name__).warning(
                "%s have one Received UUID, %s, so that none can be a parent of a send: purge them "
                "in time", enumerated(shared), identity,
            )  # fmt: skip
    except (OSError, OperationFailed) as error:  # the directory has gone, which every call tells
        logging.getLogger(__name__).error("cannot tidy up after the start: %s", error)
    while True:
        services.removed.expire()
        time.sleep(timer)


def _collect() -> None:
    """Free, now and then, objects that only refer to each other and are too old for Python's own
    quick looks, and give the kernel back what malloc has kept since it was needed last."""
    while True:
        time.sleep(COLLECT_EVERY)
        gc.collect()
        with suppress(AttributeError):  # another C library than glibc
            ctypes.CDLL(None).malloc_trim(0)


def catch_signals() -> int:
    """Let the signals that end the daemon come as bytes out of a pipe.

    Python's own handlers run only when the main thread does: with a queue between them, a signal
    in the moment before the thread waits for the queue would not wake it.
    """
    arrived, sender = os.pipe()
    os.set_blocking(sender, False)
    signal.set_wakeup_fd(sender, warn_on_full_buffer=False)
    for number in ENDING:
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    return arrived


def notify(environ: Mapping[str, str], state: str) -> None:
    """Tell systemd about us, if it asked for that (sd_notify(3))."""
    address = environ.get("NOTIFY_SOCKET", "")
    if address.startswith(("/", "@")):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            try:
                sender.sendto(state.encode(), address.replace("@", "\0", 1))
            except OSError as error:
                logging.getLogger(__name__).warning("cannot tell systemd %s: %s", state, error)


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
        try:
            lock_file(descriptor, PATIENCE, 0.02)
        except BlockingIOError as error:
            raise AlreadyRunning(path) from error
        os.set_inheritable(descriptor, True)
        yield
    finally:
        os.close(descriptor)


def note(config: Config) -> bool:
    """Note on the lock of the volumes where this daemon remembers its followed ones: a session of
    another member that would look elsewhere must not be believed. Whether that could be done."""
    records = config.follow_path
    try:
        records.parent.mkdir(0o700, parents=True, exist_ok=True)  # for HISTORY, too
        attributes.set_records(config.volumes_path / names.LOCK_NAME, str(records))
    except OSError as error:  # the disk may be full
        logging.getLogger(__name__).warning(
            "cannot note where followed volumes are remembered, so other hosts may be refused: %s",
            error,
        )
        return False
    return True


def _note_later(config: Config) -> None:
    """Note it once that can be done."""
    is_noted = False
    while not is_noted:
        time.sleep(config.timer)
        is_noted = note(config)
