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


_READ = ("GET", "POST")
ENDPOINTS = (
    # it has to say so when the volumes are gone, and Docker never asks for it
    Endpoint("VolumeDriver.Status", status, methods=_READ, on_volumes=False),
)
