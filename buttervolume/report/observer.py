"""Where the facts of a report come from: the one part of this floor that looks."""

import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from buttervolume.errors import OperationFailed, VolumesUnavailable
from buttervolume.follow.rounds import Rounds
from buttervolume.follow.view import View
from buttervolume.hosts.transfers import Transfers
from buttervolume.jobs.actions import Purge
from buttervolume.jobs.schedule import Contents, Schedule, resolve
from buttervolume.jobs.scheduler import Scheduler
from buttervolume.names import Snapshot
from buttervolume.report.forecast import Forecast, forecast
from buttervolume.report.status import (
    Facts,
    Holdings,
    JobStatus,
    Kind,
    Problem,
    Report,
    index,
    interval,
    local,
    report,
)
from buttervolume.store.catalog import Catalog, Listing
from buttervolume.store.volumes import Volumes
from buttervolume.system import space


@dataclass(frozen=True)
class Outlook:
    """What is to come of a volume's snapshots."""

    purge: JobStatus
    """The job that deletes them."""
    forecast: Forecast


class Observer:
    """Looks at everything and changes nothing; this is all that a read-only edge needs."""

    def __init__(
        self,
        volumes: Volumes,
        catalog: Catalog,
        schedule: Schedule,
        scheduler: Scheduler,
        transfers: Transfers,
        rounds: Rounds,
        in_transfer: Callable[[], Collection[str]],
        *,
        timer: int,
        min_free: float,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`in_transfer` names the snapshots that are being sent; `timer` is in seconds, `min_free`
        a share."""
        self._volumes = volumes
        self._catalog = catalog
        self._schedule = schedule
        self._scheduler = scheduler
        self._transfers = transfers
        self._rounds = rounds
        self._in_transfer = in_transfer
        self._timer = timedelta(seconds=timer)
        self._min_free = min_free
        self._now = now
        # protects what follows: the index of a list of snapshots, made anew when that has changed
        self._guard = threading.Lock()
        self._indexed: tuple[Snapshot, ...] = ()
        self._holdings: dict[str, Holdings] = {}

    def report(self) -> Report:
        """How everything stands now."""
        return report(self.observe())

    def outlook(self, report: Report, volume: str) -> Outlook | None:
        """What the purge job of a volume in a report will do; None if there is no such job."""
        jobs = [status for status in report.jobs if status.job.volume == volume]
        purge = next((each for each in jobs if isinstance(each.job.task, Purge)), None)
        held = report.by_volume.get(volume)
        if purge is None or held is None or not isinstance(purge.job.task, Purge):
            return None
        forks = self._catalog.forks(volume)
        ahead = forecast(
            [each for each in held.holdings.snapshots if str(each.name) not in forks],
            purge.job.task.pattern,
            local(max(purge.next_run or report.now, report.now)),
            interval((status.job for status in jobs), report.now),
            self._in_transfer(),
            self._catalog.received(volume),
            self._catalog.latest_name(volume),
        )
        return Outlook(purge, ahead)

    def observe(self) -> Facts:
        """The facts of this moment; of a filesystem that is gone, that it is."""
        failures: list[Problem] = []
        contents = Contents((), paused=False)
        try:
            contents = self._schedule.read()
        except OperationFailed as error:
            failures.append(Problem(Kind.UNREADABLE, str(error)))
        volumes: tuple[str, ...] = ()
        listing = Listing((), (), ())
        found = None
        followed: list[View] = []
        unseen: dict[str, str] = {}
        try:
            self._volumes.check_available()
            found = space.look(self._volumes.path)
            volumes = self._volumes.names()
            listing = self._catalog.list()
            followed, unseen = self._rounds.views()
        except OperationFailed as error:
            failures.append(Problem(Kind.UNAVAILABLE, str(error)))
        except (OSError, VolumesUnavailable):
            found = None
        return Facts(
            now=self._now(),
            timer=self._timer,
            min_free=self._min_free,
            volumes=frozenset(volumes),
            holdings=self._index(listing.snapshots),
            partial=listing.incomplete,
            jobs=resolve(contents.jobs, volumes),
            paused=contents.paused,
            unreadable=[line.shown for line in contents.unreadable],
            activity=self._scheduler.activity(),
            transfers=self._transfers.list(),
            space=found,
            failures=failures,
            followed=followed,
            unseen=unseen,
        )

    def _index(self, snapshots: tuple[Snapshot, ...]) -> dict[str, Holdings]:
        with self._guard:
            if snapshots is not self._indexed:
                self._indexed, self._holdings = snapshots, index(snapshots, self._holdings)
            return self._holdings
