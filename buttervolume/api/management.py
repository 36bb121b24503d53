"""What the command line has done beside Docker's calls; names and keys as in the original 3.x."""

from contextlib import ExitStack, suppress

from buttervolume.api import follow, undo
from buttervolume.api.body import Answer, Body, Unchanged, joined
from buttervolume.api.http import Endpoint, Lane
from buttervolume.errors import (
    BadRestore,
    ButtervolumeError,
    NoSuchVolume,
    VolumesUnavailable,
)
from buttervolume.jobs.actions import parse_action
from buttervolume.jobs.schedule import concerned
from buttervolume.names import check_volume_reference
from buttervolume.services import Services
from buttervolume.store.retention import parse_pattern
from buttervolume.words import enumerated


def take_snapshot(services: Services, body: Body) -> Answer:
    """Snapshot a volume."""
    taken = services.snapshots.take(body.text("Name"))
    return {"Snapshot": taken.name, **joined(taken.warnings)}


def remove_snapshot(services: Services, body: Body) -> Answer:
    """Remove a snapshot."""
    name = services.catalog.resolve(body.text("Name"))
    hosts = services.snapshots.needed_by(name)
    is_fork = name in services.catalog.forks(name.partition("@")[0])
    services.snapshots.remove(name)
    warnings = []
    if is_fork:
        warnings.append(
            f"{name} was a fork: what this host held of a volume that follows its service, when "
            "another host went on without it"
        )
    if hosts:
        warnings.append(f"the next send to {enumerated(hosts)} cannot be of changes since {name}")
    return joined(warnings)


def restore(services: Services, body: Body) -> Answer:
    """Give a volume the content of a snapshot."""
    name, origin = body.text("Name"), body.optional_text("From")
    target, at = body.optional_text("Target"), body.optional_text("At")
    force, backwards = body.flag("Force"), body.flag("Undo")
    volume = name.partition("@")[0] if target is None else target
    warnings: list[str] = []
    if origin is not None:  # what can be refused is refused before days of transfer
        if backwards or at is not None:
            raise BadRestore("from another host comes its newest snapshot, or one that is named")
        check_volume_reference(volume)
        with services.following.restoring(volume):
            services.contents.check_target(volume, name.partition("@")[0], force=force)
        received = services.replication.receive(name, origin)
        name, warnings = received.snapshot, [received.warning]
    with services.following.restoring(volume):
        restored = services.contents.restore(name, target, force=force, undo=backwards, at=at)
    answer: Answer = {"Restored": restored.snapshot}
    if restored.backup is not None:
        answer["VolumeBackup"] = restored.backup
    return answer | joined([*warnings, *restored.warnings])


def _is_from_afar(body: Body) -> bool:
    return body.get("From") is not None


def clone(services: Services, body: Body) -> Answer:
    """Make a volume with the content of another."""
    taken = services.contents.clone(body.text("Name"), body.text("Target"))
    return {"VolumeCloned": taken.name, **joined(taken.warnings)}


def send(services: Services, body: Body) -> Answer:
    """Send a snapshot to another host."""
    name, host, force = body.text("Name"), body.text("Host"), body.flag("Force")
    if body.flag("All"):
        all_sent = services.replication.send_all(name, host, force=force)
        names = [sent.snapshot for sent in all_sent]
        return {"Snapshots": names, **joined([*dict.fromkeys(sent.warning for sent in all_sent)])}
    sent = services.replication.send(services.catalog.resolve(name), host, force=force)
    return {"Snapshot": sent.snapshot, **joined([sent.warning])}


def receive(services: Services, body: Body) -> Answer:
    """Receive a snapshot, or the newest of a volume, from another host."""
    received = services.replication.receive(body.text("Name"), body.text("Host"))
    return {"Snapshot": received.snapshot, **joined([received.warning])}


def replicate(services: Services, body: Body) -> Answer:
    """Do what a replicate job does."""
    name, host, force = body.text("Name"), body.text("Host"), body.flag("Force")
    sent = services.replication.replicate_now(name, host, force=force)
    return {"Snapshot": sent.snapshot, "Created": sent.created, **joined([sent.warning])}


def synchronize(services: Services, body: Body) -> Answer:
    """Bring newer files of volumes from other hosts."""
    targets, hosts = body.texts("Volumes"), body.texts("Hosts")
    with ExitStack() as stack:
        for volume in sorted(set(targets)):
            stack.enter_context(services.following.owning(volume))
        taken = services.replication.synchronize(targets, hosts)
    return joined(warning for each in taken for warning in each.warnings)


def cancel_transfer(services: Services, body: Body) -> Answer:
    """End a transfer, or all of a ticket, those that have not begun yet included."""
    ticket = body.ticket()
    if ticket is None:
        services.transfers.cancel(body.number("Id"))
    else:
        services.transfers.call_off(ticket)
    return {}


def purge(services: Services, body: Body) -> Answer:
    """Delete the snapshots that a pattern does not keep, or say which."""
    name, pattern = body.text("Name"), parse_pattern(body.text("Pattern"))
    if body.flag("Dryrun"):
        plan = services.snapshots.plan_purge(name, pattern)
        return Unchanged(
            Purged=[str(verdict.name) for verdict in plan.verdicts if not verdict.keep],
            Verdicts=[
                {"Name": str(verdict.name), "Keep": verdict.keep, "Reason": verdict.reason}
                for verdict in plan.verdicts
            ],
            **joined([pattern.warning, plan.warning]),
        )
    purged = services.snapshots.purge(name, pattern)
    warnings = joined([pattern.warning, purged.warning])
    return {"Purged": purged.deleted, "Err": purged.explain()} | warnings


def set_job(services: Services, body: Body) -> Answer:
    """Make, change or remove a job."""
    volume, action, timer = body.text("Name"), body.text("Action"), body.text_or_number("Timer")
    if timer == "now":
        return _run_now(services, volume, action)
    changed = services.schedule.apply(volume, action, timer)
    warnings = [changed.warning]
    job = changed.job
    with suppress(VolumesUnavailable):
        names = services.volumes.names()
        if job and job.task.needs_volume and not concerned(volume, names):
            warnings.append(f"there is no volume {volume} yet")
    return joined(warnings)


def _is_now(body: Body) -> bool:
    return body.get("Timer") == "now"


def _run_now(services: Services, name: str, action: str) -> Answer:
    """Run a job at once, of each volume if the name is a pattern."""
    warnings = [parse_action(action).warning]
    if "*" not in name:
        done = services.scheduler.run_now(name, action)
        return {"Result": done.outcome} | joined([*warnings, *done.warnings])
    results, failures = list[str](), list[str]()
    volumes = concerned(name, services.volumes.names())
    if not volumes:
        raise NoSuchVolume(name)
    for volume in volumes:
        try:
            done = services.scheduler.run_now(volume, action)
            results.append(f"{volume}: {done.outcome}")
            warnings += [f"{volume}: {warning}" for warning in done.warnings]
        except ButtervolumeError as error:
            failures.append(f"{volume}: {error}")
    return {"Result": "\n".join(results), "Err": "; ".join(failures)} | joined(warnings)


def pause_jobs(services: Services, _: Body) -> Answer:
    """Pause all jobs."""
    services.schedule.pause_all()
    return {}


def resume_jobs(services: Services, _: Body) -> Answer:
    """Resume all jobs."""
    services.schedule.resume_all()
    return {}


ENDPOINTS = (
    Endpoint("VolumeDriver.Snapshot", take_snapshot, changes=True),
    Endpoint("VolumeDriver.Snapshot.Remove", remove_snapshot, changes=True),
    Endpoint("VolumeDriver.Snapshot.Restore", restore, changes=True, transfers=_is_from_afar),
    Endpoint("VolumeDriver.Clone", clone, changes=True),
    *undo.ENDPOINTS,
    *follow.ENDPOINTS,
    Endpoint("VolumeDriver.Snapshot.Send", send, Lane.TRANSFER, changes=True),
    Endpoint("VolumeDriver.Snapshot.Receive", receive, Lane.TRANSFER, changes=True),
    Endpoint("VolumeDriver.Replicate", replicate, Lane.TRANSFER, changes=True),
    Endpoint("VolumeDriver.Volume.Sync", synchronize, Lane.TRANSFER, changes=True),
    Endpoint("VolumeDriver.Snapshots.Purge", purge, changes=True),
    Endpoint("VolumeDriver.Schedule", set_job, on_volumes=False, changes=True, runs_job=_is_now),
    Endpoint("VolumeDriver.Schedule.Pause", pause_jobs, on_volumes=False, changes=True),
    Endpoint("VolumeDriver.Schedule.Resume", resume_jobs, on_volumes=False, changes=True),
    Endpoint(
        "VolumeDriver.Transfers.Cancel",
        cancel_transfer,
        Lane.QUESTION,
        on_volumes=False,
        changes=True,
    ),
)
