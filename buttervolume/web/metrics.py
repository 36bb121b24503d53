"""The report for Prometheus. Names and units after its conventions (prometheus.io)."""

from collections.abc import Iterable, Iterator
from datetime import datetime

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from buttervolume.follow.view import View
from buttervolume.report.status import JobStatus, Kind, Report, State
from buttervolume.system.space import Space
from buttervolume.words import printable

CONTENT_TYPE = CONTENT_TYPE_LATEST
_PREFIX = "buttervolume"


def render(report: Report) -> bytes:
    """All metrics in the text format."""
    registry = CollectorRegistry()
    registry.register(_Rendering(report))
    return generate_latest(registry)


class _Rendering(Collector):
    """One report as metrics."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def collect(self) -> Iterator[Metric]:
        """Every metric that there is something to say of."""
        report = self._report
        yield _gauge("alive", "Whether the volumes are there and jobs are run.", report.is_alive)
        yield _problems(report)
        if report.space is not None:
            yield from _filesystem(report.space)
        yield from _volumes(report)
        yield from _jobs(report.jobs)
        yield from _transfers(report)
        yield from _followed(report.followed)


def _gauge(name: str, help_text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{_PREFIX}_{name}", help_text, value=float(value))


def _labelled(name: str, help_text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{_PREFIX}_{name}", help_text, labels=labels)


def _problems(report: Report) -> Metric:
    family = _labelled("problems", "What is wrong, by kind; see the report.", "kind")
    counts = dict.fromkeys(Kind, 0)
    for problem in report.problems:
        counts[problem.kind] += 1
    for kind, count in counts.items():
        family.add_metric([kind], count)
    return family


def _filesystem(space: Space) -> Iterator[Metric]:
    yield _gauge("filesystem_size_bytes", "Size of the filesystem.", space.size)
    yield _gauge("filesystem_free_bytes", "What can still be written.", space.free)
    yield _gauge(
        "filesystem_metadata_size_bytes",
        "What is set apart for metadata, and what could still be.",
        space.metadata_size,
    )
    yield _gauge("filesystem_metadata_used_bytes", "Metadata in use.", space.metadata_used)
    yield _gauge("filesystem_readonly", "Whether it is read-only.", space.read_only)
    family = CounterMetricFamily(
        f"{_PREFIX}_device_errors", "Errors that BTRFS has counted.", labels=("device", "kind")
    )
    for device in space.devices:
        for kind, count in device.errors.items():
            family.add_metric([printable(device.path), kind], count)
    yield family


def _volumes(report: Report) -> Iterator[Metric]:
    yield _gauge("volumes", "How many volumes.", sum(v.exists for v in report.volumes))
    yield _gauge("partial_copies", "Copies that are not whole.", len(report.partial))
    count = _labelled("snapshots", "How many snapshots, without sent markers.", "volume")
    newest = _labelled(
        "newest_snapshot_timestamp_seconds", "When the newest snapshot was taken.", "volume"
    )
    copy = _labelled(
        "newest_copy_timestamp_seconds",
        "When the newest snapshot that a host has was taken.",
        *("volume", "host"),
    )
    lag = _labelled(
        "copy_lag_seconds",
        "How much younger the newest snapshot here is than what a host has.",
        *("volume", "host"),
    )
    for volume in report.volumes:
        name, holdings = printable(volume.name), volume.holdings
        count.add_metric([name], holdings.count)
        if holdings.taken is not None:
            newest.add_metric([name], _timestamp(holdings.taken))
        for each in holdings.copies:
            if each.taken is not None:
                copy.add_metric([name, printable(each.host)], _timestamp(each.taken))
            if each.lag is not None:
                lag.add_metric([name, printable(each.host)], each.lag.total_seconds())
    yield from (count, newest, copy, lag)


def _timestamp(taken: datetime) -> float:
    """Seconds since 1970 of a moment of local time."""
    try:
        return taken.timestamp()
    except (ValueError, OverflowError):  # at the ends of the calendar: within a day
        return (taken - datetime(1970, 1, 1)).total_seconds()


def _jobs(jobs: Iterable[JobStatus]) -> Iterator[Metric]:
    labels = ("volume", "action")
    failures = _labelled("job_consecutive_failures", "How often it has failed since.", *labels)
    success = _labelled(
        "job_last_success_timestamp_seconds", "When its last successful run began.", *labels
    )
    upcoming = _labelled("job_next_run_timestamp_seconds", "When it is due.", *labels)
    state = _labelled("job_state", "1 for the state that it is in.", *labels, "state")
    for job in jobs:
        values = [printable(job.job.volume), printable(job.job.action)]
        failures.add_metric(values, job.memory.failures)
        if job.memory.last_success is not None:
            success.add_metric(values, job.memory.last_success.timestamp())
        if job.next_run is not None:
            upcoming.add_metric(values, job.next_run.timestamp())
        for each in State:
            state.add_metric([*values, each], float(job.state is each))
    yield from (failures, success, upcoming, state)


def _transfers(report: Report) -> Iterator[Metric]:
    yield _gauge("transfers", "How many transfers are under way.", len(report.transfers))
    moved = _labelled(
        "transfer_moved_bytes",
        "What a transfer under way has moved so far.",
        *("operation", "volume", "host"),
    )
    totals: dict[tuple[str, str, str], int] = {}
    for each in report.transfers:
        labels = each.operation, printable(each.volume), printable(each.host)
        totals[labels] = totals.get(labels, 0) + each.flow.moved
    for labels, total in totals.items():
        moved.add_metric(labels, total)
    yield moved


def _followed(views: Iterable[View]) -> Iterator[Metric]:
    """Of the volumes that follow their services, as their members were heard last."""
    labels = ("volume", "member")
    is_owner = _labelled("follow_is_owner", "Whether this host owns it.", "volume")
    forks = _labelled("follow_forks", "How many forks its members keep.", "volume")
    lag = _labelled(
        "follow_copy_lag_seconds", "For how long a member has lacked a newer copy.", *labels
    )
    silent = _labelled(
        "follow_silent", "Whether a member did not answer when it was asked last.", *labels
    )
    for view in views:
        name = printable(view.volume)
        is_owner.add_metric([name], float(view.is_owner))
        forks.add_metric([name], len(view.forks))
        for each in view.members:
            values = [name, printable(each.name)]
            if each.is_known:
                lag.add_metric(values, each.lag.total_seconds())
            if each.was_asked:
                silent.add_metric(values, float(bool(each.silent)))
    yield from (is_owner, forks, lag, silent)
