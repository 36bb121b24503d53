"""A day of two hosts in minutes: nothing grows, nothing fails without a cause, nothing is late.

`./test.sh tests/soak` takes some hours of simulated time; `./test.sh tests/soak --hours 24` a day.
What was measured at each tick is in `.cache/soak`.
"""

import csv
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.soak import plan
from tests.soak.clock import TICK, Clock
from tests.soak.conductor import Soak
from tests.soak.diary import AWAY, RESTART, Complaint, Event
from tests.soak.host import HISTORY, SoakHost
from tests.soak.rules import Job, Sample, growing, lives, untimely
from tests.support.machine import REPOSITORY
from tests.support.network import Network

MEASURED = REPOSITORY / ".cache/soak"


def test_a_day_leaves_nothing_behind(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    ticks = round(pytestconfig.getoption("--hours") * timedelta(hours=1) / TICK)
    clock = Clock(tmp_path / "clock")
    clock.set(plan.beginning(ticks))
    with (
        Network() as network,
        SoakHost("alpha", tmp_path, network, clock, is_restarted=True) as alpha,
        SoakHost("beta", tmp_path, network, clock) as beta,
    ):
        beta.install()
        alpha.start_all()
        beta.start_all()
        beta.authorize(alpha)
        soak = Soak(network, clock, alpha, beta, ticks)
        try:
            soak.run()
        finally:
            _keep(soak)
        found = [
            *_unexplained(soak),
            *(f"{h.name}: {p}" for h in soak.hosts for p in (*_grown(h), *_untimely(soak, h))),
            *(f"{h.name}: {problem}" for h in soak.hosts for problem in _left(h)),
        ]
    assert not found, "\n".join(found)


def _keep(soak: Soak) -> None:
    """Let people look at what was measured, and at what happened when."""
    shutil.rmtree(MEASURED, ignore_errors=True)
    MEASURED.mkdir(parents=True)
    _write("events", Event, soak.diary.events)
    _write("complaints", Complaint, soak.diary.complaints)
    for host in soak.hosts:
        _write(host.name, Sample, host.samples)
        _write(f"{host.name}-jobs", Job, soak.jobs[host.name])
        history = host.path(HISTORY)
        files = [*history.parent.glob(f"{history.name}*"), *host.directory.glob("daemon-*")]
        for file in files:
            shutil.copyfile(file, MEASURED / f"{host.name}-{file.name}")


def _write(name: str, kind: type[Event | Complaint | Sample | Job], rows: Iterable[Any]) -> None:
    with (MEASURED / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(kind)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def _grown(host: SoakHost) -> Iterator[str]:
    """What has grown since the volumes are there, in each start of the daemon and in all."""
    first = host.samples[0].moment + plan.SETTLING * TICK
    samples = [sample for sample in host.samples if sample.moment >= first]
    settled = lives(samples, plan.WARMING_UP * TICK)
    for each in (*settled, [sample for life in settled for sample in life]):
        yield from growing(each)


def _untimely(soak: Soak, host: SoakHost) -> Iterator[str]:
    runs = host.job_runs()
    outages = soak.diary.outages(soak.tick)  # when the clock jumped on, for all
    for job in soak.jobs[host.name]:
        its = runs.get(f"{job.action} {job.volume}", [])
        yield from untimely(job, [r for r in its if job.since <= r.started <= job.until], outages)


def _unexplained(soak: Soak) -> Iterator[str]:
    """What went wrong without a cause."""
    diary = soak.diary
    for each in diary.complaints:
        if not diary.explains(each.causes, each.begun, each.ended):
            yield f"{each.who}: {each.what}"
    for host in soak.hosts:
        here = (RESTART,) if host.is_restarted else ()
        for line in host.complaints():
            kinds = (*here, AWAY) if soak.beta.name in line.text else here
            if "Traceback" in line.text or not diary.explains(kinds, line.time, line.time):
                yield f"{host.name} logged: {line.text}"
        for job, runs in host.job_runs().items():
            kinds = (*here, AWAY) if soak.beta.name in job else here
            for run in runs:
                if run.error and not diary.explains_run(kinds, run.started, soak.tick):
                    yield f"{host.name}: {job} failed at {run.started}: {run.error}"


def _left(host: SoakHost) -> Iterator[str]:
    """What is wrong at the end."""
    report = host.api.call("Status")
    yield from (f"a problem at the end: {each}" for each in report["Problems"])
    daemon = host.daemon
    if daemon.stop() != 0:
        yield f"the daemon did not end well: {daemon.log()[-2000:]}"
