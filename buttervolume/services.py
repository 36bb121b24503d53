"""What the edges work with: the parts of the program that requests and commands use."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from buttervolume.follow.decisions import Decisions
from buttervolume.follow.following import Following
from buttervolume.hosts.replication import Replication
from buttervolume.hosts.transfers import Transfers
from buttervolume.jobs.history import History
from buttervolume.jobs.schedule import Schedule
from buttervolume.jobs.scheduler import Scheduler
from buttervolume.report.doctor import Doctor
from buttervolume.report.notices import Notifier
from buttervolume.report.observer import Observer
from buttervolume.store.catalog import Catalog
from buttervolume.store.contents import Contents
from buttervolume.store.removed import Removed
from buttervolume.store.snapshots import Snapshots
from buttervolume.store.usage import Meter
from buttervolume.store.volumes import Volumes


@dataclass(frozen=True)
class Services:
    """The parts that a request or a command can be about; the daemon puts them together once."""

    volumes: Volumes
    catalog: Catalog
    snapshots: Snapshots
    removed: Removed
    contents: Contents
    transfers: Transfers
    replication: Replication
    following: Following
    decisions: Decisions
    schedule: Schedule
    scheduler: Scheduler
    observer: Observer
    notifier: Notifier
    meter: Meter
    doctor: Doctor
    history: History
    now: Callable[[], datetime]
    """The clock, in UTC."""
