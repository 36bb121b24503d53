"""What tells how everything stands, and changes nothing."""

from buttervolume.api.body import Answer, Body, MalformedRequest, joined, without
from buttervolume.api.http import Endpoint, Lane
from buttervolume.errors import ButtervolumeError, NoSuchVolume, OperationFailed, Unreadable
from buttervolume.jobs.history import parse_since
from buttervolume.names import check_volume_reference
from buttervolume.report import answer
from buttervolume.services import Services
from buttervolume.store.usage import Usage
from buttervolume.system import btrfs
from buttervolume.words import shortened

MOST_RUNS = 10_000
"""How many runs one answer has at most; some megabytes."""


def status(services: Services, body: Body) -> Answer:
    """The report: of all, or of one volume and of what concerns the whole host."""
    report = services.observer.report()
    volume = body.optional_text("Name")
    if volume is not None:
        check_volume_reference(volume)
        report = report.of_volume(volume)
        if not report.volumes and not report.jobs and report.is_alive:
            raise NoSuchVolume(volume)
    return answer.report(report)


def list_volumes(services: Services, body: Body) -> Answer:
    """Every volume with what there is to know of it without measuring, or one."""
    wanted = body.optional_text("Name")
    if wanted is not None:
        services.volumes.mountpoint(wanted)
    services.volumes.names()  # an error if they cannot be listed, where a report is without them
    report = services.observer.report()
    users = services.volumes.count_users()
    volumes, unreadable = [], list[str]()
    for each in report.volumes:
        if each.exists and wanted in (None, each.name):
            path = services.volumes.path_of(each.name)
            listed = {"Mountpoint": str(path), "InUse": users.get(each.name, 0)}
            try:
                created = btrfs.info(path).created
                if created is not None:
                    listed["CreatedAt"] = created.isoformat(timespec="seconds")
            except FileNotFoundError:  # removed meanwhile
                pass
            except OSError:
                unreadable.append(each.name)
            volumes.append(answer.volume(each) | listed)
    now = report.now.isoformat(timespec="seconds")
    return without(unreadable) | {"Now": now, "Volumes": volumes}


def measure(services: Services, body: Body) -> Answer:
    """What volumes take of the disk: one, or all."""
    name = body.optional_text("Name")
    names = services.volumes.names() if name is None else (name,)
    found: list[Usage] = []
    failures: list[ButtervolumeError] = []
    for each in names:
        try:
            found.append(services.meter.measure(each))
        except NoSuchVolume:
            if name is not None:
                raise
            continue  # removed meanwhile
        except (Unreadable, OperationFailed) as error:
            failures.append(error)
    if failures and not found:
        raise failures[0]
    return joined(map(str, failures)) | {
        "Usage": [
            {
                "Name": usage.name,
                "Bytes": usage.used,
                "Exclusive": usage.exclusive,
                "Snapshots": usage.snapshots,
                "By": "group" if usage.by_group else "extents",
            }
            for usage in found
        ]
    }


def examine(services: Services, body: Body) -> Answer:
    """What is wrong here, or with other hosts as seen from here, and what to do."""
    hosts = () if body.get("Hosts") is None else body.texts("Hosts")
    found = [("", finding) for finding in services.doctor.here()] if not hosts else []
    for host in hosts:
        found += [(host, finding) for finding in services.doctor.host(host)]
    return {
        "Findings": [
            {
                "Host": host or None,
                "Check": finding.check,
                "Level": finding.level,
                "Message": shortened(finding.message),
                "Advice": finding.advice,
            }
            for host, finding in found
        ]
    }


def notify(services: Services, body: Body) -> Answer:
    """Send a notice, to see whether it arrives."""
    if not body.flag("Test"):
        raise MalformedRequest("Test must be true: there is nothing else to send")
    services.notifier.test()
    return {}


def list_snapshots(services: Services, body: Body, volume: str | None = None) -> Answer:
    """The snapshots, of one volume or all."""
    volume = body.optional_text("Name") if volume is None else volume
    found = services.catalog.list(volume)
    listed: Answer = {"Snapshots": found.names}
    if body.flag("Details"):
        listed |= details_of_snapshots(services, volume)
    warnings = []
    if found.incomplete:
        copies = ", ".join(map(str, found.incomplete))
        warnings.append(f"being received, or left by a transfer that failed: {copies}")
    if found.unreadable:
        warnings.append(f"cannot be read: {', '.join(map(str, found.unreadable))}")
    return listed | joined(warnings)


def details_of_snapshots(services: Services, volume: str | None) -> Answer:
    """The snapshots of one volume or all, without markers: which hosts have each, and until when
    the volume's purge job keeps it."""
    report = services.observer.report()
    volumes = [each for each in report.volumes if volume in (None, each.name)]
    details = []
    for each in volumes:
        outlook = services.observer.outlook(report, each.name)
        details += answer.snapshots(each.holdings.snapshots, outlook)
    return {"Now": report.now.isoformat(timespec="seconds"), "Details": details}


def list_transfers(services: Services, _: Body) -> Answer:
    """What is being transferred."""
    return {"Transfers": [answer.transfer(t) for t in services.transfers.list()]}


def list_jobs(services: Services, _: Body) -> Answer:
    """Every job, and every row of the schedule that is none."""
    contents = services.schedule.read()
    jobs = [
        {
            "Name": job.volume,
            "Action": job.action,
            "Timer": str(job.when),
            "Active": str(job.active),
        }
        for job in contents.jobs
    ]
    unreadable = [
        {"Line": line.shown, "Error": shortened(line.error)} for line in contents.unreadable
    ]
    return {"Schedule": jobs, "Paused": contents.paused, "Unreadable": unreadable}


def log(services: Services, body: Body) -> Answer:
    """What was done last, of one volume or all, the newest last."""
    since = body.optional_text("Since")
    now = services.now()
    found = services.history.search(
        body.optional_text("Name"),
        since=None if since is None else parse_since(since, now),
        failed=body.flag("Failed"),
        limit=body.optional_number("Limit", MOST_RUNS, highest=MOST_RUNS),
    )
    return {"Now": now.isoformat(timespec="seconds"), "Log": [answer.run(each) for each in found]}


_READ = ("GET", "POST")
ENDPOINTS = (
    # it has to say so when the volumes are gone, and Docker never asks for it
    Endpoint("VolumeDriver.Status", status, methods=_READ, on_volumes=False),
    Endpoint("VolumeDriver.Log", log, methods=_READ, on_volumes=False),
    Endpoint("VolumeDriver.Snapshot.List", list_snapshots, methods=_READ),
    Endpoint("VolumeDriver.Snapshot.List/<volume>", list_snapshots, methods=_READ),
    Endpoint("VolumeDriver.Schedule.List", list_jobs, methods=_READ, on_volumes=False),
    Endpoint("VolumeDriver.Transfers", list_transfers, methods=_READ, on_volumes=False),
    Endpoint("VolumeDriver.Volume.List", list_volumes, methods=_READ),
    Endpoint("VolumeDriver.Usage", measure, Lane.TRANSFER, methods=_READ),
    Endpoint("VolumeDriver.Doctor", examine, Lane.TRANSFER, on_volumes=False),
    Endpoint("VolumeDriver.Notify", notify, on_volumes=False),
)
