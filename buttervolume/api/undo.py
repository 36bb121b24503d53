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
    name, target = body.text("Name"), body.optional_text("Target")
    warning = _left_out(services, name)
    return {"Volume": services.removed.bring_back(name, target), **warning}


def purge_removed(services: Services, body: Body) -> Answer:
    """Delete removed volumes now."""
    name = body.optional_text("Name")
    warning = _left_out(services, name)
    return {"Purged": services.removed.purge(name), **warning}


def _left_out(services: Services, name: str | None) -> Answer:
    """The warning that names what is meant as well by the name of a volume, or by none, but cannot
    be read: it may be what was removed last."""
    if name is not None and "@" in name:
        return {}
    return without(sorted(services.removed.look(name).unreadable))


ENDPOINTS = (
    Endpoint("VolumeDriver.Volume.Removed", list_removed, methods=("GET", "POST")),
    Endpoint("VolumeDriver.Volume.Undelete", undelete, changes=True),
    Endpoint("VolumeDriver.Volume.Removed.Purge", purge_removed, changes=True),
)
