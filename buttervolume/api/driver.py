"""Docker's nine calls of a volume driver (moby: daemon/volume/drivers)."""

import logging

from buttervolume import names
from buttervolume.api.body import Answer, Body, Unchanged
from buttervolume.api.http import Endpoint, Lane, NoAnswer
from buttervolume.errors import Unreadable
from buttervolume.jobs.actions import USAGES
from buttervolume.jobs.options import split_jobs
from buttervolume.services import Services
from buttervolume.store.options import parse_options
from buttervolume.words import enumerated


def activate(_services: Services, _: Body) -> Answer:
    """Say what this plugin is."""
    return {"Implements": ["VolumeDriver"]}


def capabilities(_services: Services, _: Body) -> Answer:
    """Volumes are of this host alone."""
    return {"Capabilities": {"Scope": "local"}}


def create(services: Services, body: Body) -> Answer:
    """Make a volume, unless there is one."""
    name = body.text("Name")
    jobs, others = split_jobs(name, body.mapping("Opts"))
    options = parse_options(others, also_valid=USAGES)
    names.check_volume_reference(name)
    is_there = services.volumes.exists(name)
    with services.schedule.adding(jobs) as added:
        made = services.contents.create(name, options)
    answer: Answer = Unchanged() if is_there and not added else {}
    warnings = [job.task.warning for job in jobs if job.task.warning]
    if made.left_out:
        warnings.append(f"nested subvolumes are not included: {enumerated(made.left_out)}")
    if warnings:
        answer["Warning"] = "; ".join(warnings)
    return answer


def get(services: Services, body: Body) -> Answer:
    """What there is to know of a volume."""
    try:
        volume = services.volumes.get(body.text("Name"))
    except Unreadable as error:  # it is there: Docker is to ask again, not to forget it
        logging.getLogger(__name__).error("Get gets no answer: %s", error)
        raise NoAnswer from error
    status: Answer = {}
    if volume.copy_on_write is not None:
        status["CopyOnWrite"] = volume.copy_on_write
    try:
        if (summary := services.catalog.glance(volume.name)) is not None:
            status |= {"Snapshots": summary.count, "LastSnapshot": summary.latest}
    except OSError as error:
        logging.getLogger(__name__).warning("%s: cannot list its snapshots: %s", volume.name, error)
    answer: Answer = {
        "Name": volume.name,
        "Mountpoint": str(volume.mountpoint),
        "Status": status,
    }
    if volume.created is not None:
        answer["CreatedAt"] = volume.created.isoformat(timespec="seconds")
    return {"Volume": answer}


def list_volumes(services: Services, _: Body) -> Answer:
    """Every volume."""
    found = services.volumes.look()
    within = f"{services.volumes.path}/"
    answer: Answer = {
        "Volumes": [{"Name": name, "Mountpoint": within + name} for name in found.volumes]
    }
    if found.unreadable:
        answer["Warning"] = f"cannot be read: {enumerated(found.unreadable)}"
    return answer


def path(services: Services, body: Body) -> Answer:
    """Where a volume is."""
    return {"Mountpoint": str(services.volumes.mountpoint(body.text("Name")))}


def mount(services: Services, body: Body) -> Answer:
    """Where a container finds a volume."""
    name, user = body.text("Name"), body.optional_text("ID")
    return {"Mountpoint": str(services.volumes.mount(name, user or ""))}


def unmount(services: Services, body: Body) -> Answer:
    """A container no longer uses a volume."""
    name, user = body.text("Name"), body.optional_text("ID")
    services.volumes.path_of(name)
    services.volumes.remember_unmount(name, user or "")
    return {}


def remove(services: Services, body: Body) -> Answer:
    """Remove a volume."""
    services.removed.remove(body.text("Name"))
    return {}


ENDPOINTS = (
    Endpoint("Plugin.Activate", activate, Lane.DOCKER_QUESTION, on_volumes=False),
    Endpoint("VolumeDriver.Capabilities", capabilities, Lane.DOCKER_QUESTION, on_volumes=False),
    Endpoint("VolumeDriver.Create", create, Lane.DOCKER, changes=True),
    Endpoint("VolumeDriver.Get", get, Lane.DOCKER_QUESTION, empty_is_retry=True),
    Endpoint("VolumeDriver.List", list_volumes, Lane.DOCKER_QUESTION),
    Endpoint("VolumeDriver.Mount", mount, Lane.DOCKER),
    Endpoint("VolumeDriver.Path", path, Lane.DOCKER_QUESTION),
    Endpoint("VolumeDriver.Unmount", unmount, Lane.DOCKER_QUESTION),
    Endpoint("VolumeDriver.Remove", remove, Lane.DOCKER, changes=True),
)
