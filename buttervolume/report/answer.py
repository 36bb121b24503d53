"""The report as plain data, for JSON. It is a contract: keys are added, none is ever removed."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from buttervolume.follow.view import MemberView, View
from buttervolume.hosts.transfers import Transfer
from buttervolume.jobs.history import Run
from buttervolume.names import Snapshot
from buttervolume.report.observer import Outlook
from buttervolume.report.status import (
    JobStatus,
    Problem,
    Report,
    VolumeStatus,
    hosts_of,
    with_offset,
)
from buttervolume.system.space import Space
from buttervolume.words import shortened

Data = dict[str, Any]


def report(status: Report) -> Data:
    """Everything."""
    return {
        "Now": _moment(status.now),
        "Healthy": not status.problems,
        "Alive": status.is_alive,
        "Problems": [problem(each) for each in status.problems],
        "Filesystem": None if status.space is None else _space(status.space, status.min_free),
        "Paused": status.paused,
        "Jobs": [_job(each) for each in status.jobs],
        "Volumes": [volume(each) for each in status.volumes],
        "Transfers": [transfer(each) for each in status.transfers],
        "Partial": [str(name) for name in status.partial],
        "Followed": [followed(view) for view in status.followed],
    }


def problem(each: Problem) -> Data:
    """One problem."""
    return {
        "Kind": each.kind,
        "Volume": each.volume,
        "Action": each.action,
        "Since": _moment(each.since),
        "Message": shortened(each.message),
    }


def _space(space: Space, min_free: float) -> Data:
    return {
        "Size": space.size,
        "Free": space.free,
        "MinFree": round(min_free * space.size),
        "MetadataSize": space.metadata_size,
        "MetadataUsed": space.metadata_used,
        "ReadOnly": space.read_only,
        "Devices": [
            {"Path": device.path, "Errors": dict(device.errors)} for device in space.devices
        ],
    }


def _job(status: JobStatus) -> Data:
    memory = status.memory
    return {
        "Name": status.job.volume,
        "Action": status.job.action,
        "Timer": str(status.job.when),
        "State": status.state,
        "LastSuccess": _moment(memory.last_success),
        "Outcome": memory.outcome,
        "NextRun": _moment(status.next_run),
        "RunningSince": _moment(status.running_since),
        "Failures": memory.failures,
        "FirstFailure": _moment(memory.first_failure),
        "LastFailure": _moment(memory.last_failure),
        "Message": shortened(memory.message),
    }


def volume(status: VolumeStatus) -> Data:
    """How a volume stands."""
    return {
        "Name": status.name,
        "Exists": status.exists,
        **status.holdings.data,
        "Jobs": status.jobs,
        "Problems": status.problems,
    }


def followed(view: View) -> Data:
    """How a volume that follows its service stands."""
    problems = view.problems
    return {
        "Name": view.volume,
        "Owner": view.owner,
        "Epoch": view.epoch,
        "EpochId": view.epoch_id,
        "Orphan": view.policy.value,
        "Every": view.every,
        "Healthy": not problems,
        "Problems": [shortened(each) for each in problems],
        "Members": [_member(each) for each in view.members],
    }


def _member(member: MemberView) -> Data:
    return {
        "Name": member.name,
        "Role": member.role.value,
        "InUse": member.in_use,
        "Silent": shortened(member.silent),
        "Copy": member.copy,
        "Taken": with_offset(member.taken),
        "Lag": round(member.lag.total_seconds()),
        "Forks": list(member.forks),
    }


def run(each: Run) -> Data:
    """Something that was done, or tried."""
    return {
        "Started": each.started.isoformat(timespec="milliseconds"),
        "Seconds": round(each.seconds, 3),
        "Operation": each.operation,
        "Volume": each.volume,
        "Host": each.host,
        "Snapshot": each.snapshot,
        "Bytes": each.bytes,
        "Outcome": each.outcome,
        "Message": shortened(each.error),
        "By": each.by,
    }


def transfer(each: Transfer) -> Data:
    """A transfer under way."""
    seconds = each.seconds
    return {
        "Id": each.number,
        "Operation": each.operation,
        "Volume": each.volume,
        "Snapshot": each.snapshot,
        "Host": each.host,
        "Parent": each.parent,
        "Ticket": each.ticket,
        "Phase": each.phase,
        "Bytes": each.flow.moved,
        "BytesPerSecond": round(each.flow.moved / seconds) if seconds else 0,
        "Seconds": round(seconds, 1),
    }


def _moment(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="seconds")


def snapshots(held: Sequence[Snapshot], outlook: Outlook | None) -> list[Data]:
    """The snapshots of a volume without markers, each with the hosts that have it."""
    hosts = hosts_of(held)
    verdicts = {} if outlook is None else {v.name: v for v in outlook.forecast.verdicts}
    ends = {} if outlook is None else outlook.forecast.ends
    return [
        {
            "Name": str(snapshot.name),
            "Volume": snapshot.name.volume,
            "Taken": with_offset(snapshot.taken),
            "Hosts": hosts.get(snapshot.name, []),
            "KeptUntil": with_offset(ends.get(str(snapshot.name))),
            "Purged": snapshot.name in verdicts and not verdicts[snapshot.name].keep,
            "Reason": verdicts[snapshot.name].reason if snapshot.name in verdicts else None,
        }
        for snapshot in held
        if snapshot.name.host is None
    ]
