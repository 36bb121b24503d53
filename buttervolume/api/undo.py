"""Removed volumes: listed, brought back, deleted for good."""

from buttervolume.api.body import Answer, Body, without
from buttervolume.api.http import Endpoint
from buttervolume.report.status import with_offset
from buttervolume.services import Services


def list_removed(services: Services, _: Body) -> Answer:
    """The removed volumes that are kept."""
    kept = services.removed.look()
    return without(sorted(kept.unreadable)) | {
        "Removed": [
            {
                "Name": each.name,
                "Date": each.date,
                "Until": with_offset(each.until),
                **({} if each.size is None else {"Size": each.size}),
            }
            for each in kept.volumes
        ]
    }


def undelete(services: Services, body: Body) -> Answer:
    """Bring a removed volume back, under its own name or another one."""
    return {"Volume": services.removed.bring_back(body.text("Name"), body.optional_text("Target"))}


def purge_removed(services: Services, body: Body) -> Answer:
    """Delete removed volumes now."""
    return {"Purged": services.removed.purge(body.optional_text("Name"))}


ENDPOINTS = (
    Endpoint("VolumeDriver.Volume.Removed", list_removed, methods=("GET", "POST")),
    Endpoint("VolumeDriver.Volume.Undelete", undelete, changes=True),
    Endpoint("VolumeDriver.Volume.Removed.Purge", purge_removed, changes=True),
)
