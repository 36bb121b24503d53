"""Docker's nine calls of a volume driver (moby: daemon/volume/drivers)."""

import logging
from dataclasses import replace

from buttervolume import names
from buttervolume.api.body import Answer, Body, Unchanged, joined, without
from buttervolume.api.http import Endpoint, Lane, NoAnswer
from buttervolume.errors import ButtervolumeError, Unreadable
from buttervolume.follow.options import FOLLOW_OPTIONS
from buttervolume.jobs.actions import USAGES
from buttervolume.jobs.options import split_jobs
from buttervolume.services import Services
from buttervolume.store.options import parse_options


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
    charter, others = services.following.split_options(others)
    options = parse_options(others, also_valid=(*FOLLOW_OPTIONS, *USAGES))
    if charter is not None:  # a new volume has it from the first: it is never a plain one
        options = replace(options, follow=charter.dump().decode())
    names.check_volume_reference(name)
    is_there = services.volumes.exists(name)
    if not is_there:  # before there is a job of that name, which may be a pattern
        names.check_new_volume(name)
    warnings = [job.task.warning for job in jobs]
    begins = False
    with services.schedule.adding(jobs) as added:
        made = services.contents.create(name, options)
        if charter is not None:
            begins, warning = services.following.found(name, charter)
            warnings.append(warning)
            if begins and is_there:
                warnings.append(f"{name} was here already, and follows its service from now on")
    answer: Answer = Unchanged() if is_there and not added and not begins else {}
    answer |= joined([*warnings, *made.warnings])
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
    status |= _follow_status(services, volume.name)
    answer: Answer = {
        "Name": volume.name,
        "Mountpoint": str(volume.mountpoint),
        "Status": status,
    }
    if volume.created is not None:
        answer["CreatedAt"] = volume.created.isoformat(timespec="seconds")
    return {"Volume": answer}


def _follow_status(services: Services, name: str) -> Answer:
    """How a followed volume stands, as far as it is known here."""
    try:
        glance = services.following.glance(name)
    except (ButtervolumeError, OSError) as error:  # Get must not fail for that
        logging.getLogger(__name__).warning("%s: how does it follow? %s", name, error)
        return {}
    if glance is None:
        return {}
    return {
        "Owner": glance.owner,
        "Epoch": glance.epoch,
        "LastCopy": glance.last_copy,
        "Forks": list(glance.forks),
    }


def list_volumes(services: Services, _: Body) -> Answer:
    """Every volume."""
    found = services.volumes.look()
    within = f"{services.volumes.path}/"
    listed = [{"Name": name, "Mountpoint": within + name} for name in found.volumes]
    return {"Volumes": listed, **without(found.unreadable)}


def path(services: Services, body: Body) -> Answer:
    """Where a volume is."""
    return {"Mountpoint": str(services.volumes.mountpoint(body.text("Name")))}


def mount(services: Services, body: Body) -> Answer:
    """Where a container finds a volume."""
    name, user = body.text("Name"), body.optional_text("ID")
    services.following.mount(name, user or "")
    return {"Mountpoint": str(services.volumes.mount(name, user or ""))}


def unmount(services: Services, body: Body) -> Answer:
    """A container no longer uses a volume."""
    name, user = body.text("Name"), body.optional_text("ID")
    services.volumes.path_of(name)
    services.volumes.remember_unmount(name, user or "")
    services.following.unmount(name, user or "")
    return {}


def remove(services: Services, body: Body) -> Answer:
    """Remove a volume."""
    name = body.text("Name")
    with services.following.removing(name):
        services.removed.remove(name)
    return {}


ENDPOINTS = (
    Endpoint("Plugin.Activate", activate, Lane.DOCKER_QUESTION, on_volumes=False),
    Endpoint("VolumeDriver.Capabilities", capabilities, Lane.DOCKER_QUESTION, on_volumes=False),
    Endpoint("VolumeDriver.Create", create, Lane.DOCKER, changes=True),
    Endpoint("VolumeDriver.Get", get, Lane.DOCKER_QUESTION, empty_is_retry=True),
    Endpoint("VolumeDriver.List", list_volumes, Lane.DOCKER_QUESTION),
    Endpoint("VolumeDriver.Mount", mount, Lane.DOCKER_MOUNT),
    Endpoint("VolumeDriver.Path", path, Lane.DOCKER_QUESTION),
    Endpoint("VolumeDriver.Unmount", unmount, Lane.DOCKER_MOUNT),
    Endpoint("VolumeDriver.Remove", remove, Lane.DOCKER, changes=True),
)
