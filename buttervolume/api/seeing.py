"""What tells how everything stands, and changes nothing."""

from buttervolume.api.http import Answer, Body, Endpoint
from buttervolume.errors import NoSuchVolume
from buttervolume.names import check_volume_reference
from buttervolume.report import answer
from buttervolume.services import Services


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


_READ = ("GET", "POST")
ENDPOINTS = (
    # it has to say so when the volumes are gone, and Docker never asks for it
    Endpoint("VolumeDriver.Status", status, methods=_READ, on_volumes=False),
)
