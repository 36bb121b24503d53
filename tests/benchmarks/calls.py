"""What Docker and the command line ask of the daemon, one call at a time."""

import statistics
from collections.abc import Callable, Mapping
from functools import partial

from tests.benchmarks.host import Host
from tests.benchmarks.lab import FEW, Lab, few, on_each
from tests.benchmarks.measure import Measurement, interleave, medians
from tests.benchmarks.report import Goal, Row
from tests.benchmarks.subjects import Api, Bare, Subject, beside

QUESTION_GOAL = Goal(0.0005)
KEPT = {"keep": "2d", "mode": "0750", "uid": "999"}
SIZE = "100M"


def burst(endpoint: str, host: Host) -> float:
    """The median of some calls in a row: one alone would find the caches full of the others'."""
    return statistics.median(
        host.api.timed(f"VolumeDriver.{endpoint}", Name=few(number), ID="benchmark")
        for number in range(FEW)
    )


def _questions(endpoint: str, lab: Lab) -> list[Row]:
    once = partial(burst, endpoint)
    samples = interleave(lab.sizes.calls // FEW, on_each(lab.hosts(), once), warm_up=3)
    return [Row(endpoint, medians(samples), goal=QUESTION_GOAL)]


def _operations(
    what: str, goal: Goal | None, once: Callable[[Lab, Subject], float], lab: Lab
) -> list[Row]:
    measurements = {
        column: partial(once, lab, subject) for column, subject in lab.subjects().items()
    }
    return [Row(what, medians(interleave(lab.sizes.commands, measurements, 3)), goal=goal)]


def _create(lab: Lab, subject: Subject) -> float:
    volume = lab.name()
    seconds = subject.create(volume)
    subject.remove(volume)
    return seconds


def _remove(lab: Lab, subject: Subject) -> float:
    volume = lab.name()
    subject.create(volume)
    return subject.remove(volume)


def _undelete(subject: Api | Bare) -> float:
    return subject.undelete(few(FEW - 1))


def _snapshot(_: Lab, subject: Subject) -> float:
    seconds, snapshot = subject.snapshot(few(0))
    subject.remove_snapshot(snapshot)
    return seconds


def _clone(lab: Lab, subject: Subject) -> float:
    target = lab.name()
    seconds = subject.clone(few(0), target)
    subject.remove(target)
    return seconds


def _restore(_: Lab, subject: Subject) -> float:
    snapshot = subject.snapshot(few(0))[1]
    seconds, backup = subject.restore(snapshot)
    for left in (snapshot, backup):
        subject.remove_snapshot(left)
    return seconds


def _bring_back(lab: Lab) -> list[Row]:
    measurements: dict[str, Measurement] = {
        "ours": partial(_undelete, Api(lab.ours)),
        "bare": partial(_undelete, lab.bare),
    }
    found = medians(interleave(lab.sizes.commands, measurements, 3))
    return [Row("undelete", found, goal=Goal(1, "bare", 0.001))]


def _options(lab: Lab) -> list[Row]:
    """With what goes into attributes of the root; and where quotas are on, with a size."""

    def ours(host: Host, options: Mapping[str, str]) -> float:
        volume, subject = lab.name(), Api(host)
        seconds = subject.create_with(volume, **options)
        subject.remove(volume)
        return seconds

    def bare() -> float:
        volume = lab.name()
        seconds = limited.create_furnished(volume, SIZE)
        limited.remove(volume)
        return seconds

    kept: dict[str, Measurement] = {
        "ours": partial(ours, lab.ours, KEPT),
        "bare": partial(_create, lab, lab.bare),
    }
    rows = [Row("Create with options", medians(interleave(lab.sizes.commands, kept, 3)))]
    limited = beside(lab.limited)
    sized: dict[str, Measurement] = {
        "ours": partial(ours, lab.limited, {"size": SIZE}),
        "bare": bare,
    }
    found = medians(interleave(lab.sizes.commands, sized, 3))
    return [*rows, Row("Create with a size, quotas on", found)]


BENCHMARKS: dict[str, Callable[[Lab], list[Row]]] = {
    "create": partial(_operations, "Create", Goal(1.4, "bare"), _create),
    "get": partial(_questions, "Get"),
    "path": partial(_questions, "Path"),
    "mount": partial(_questions, "Mount"),
    "unmount": partial(_questions, "Unmount"),
    "remove": partial(_operations, "Remove", Goal(1, "bare", 0.0005), _remove),
    "undelete": _bring_back,
    "options": _options,
    "snapshot": partial(_operations, "Snapshot", Goal(1.25, "bare"), _snapshot),
    "clone": partial(_operations, "Clone", Goal(1.25, "bare"), _clone),
    "restore": partial(_operations, "Restore", Goal(1.3, "bare"), _restore),
}
