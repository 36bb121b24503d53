"""Volumes that follow their services: how they stand, and what people decide about them."""

from datetime import datetime

from buttervolume.api.body import Answer, Body, MalformedRequest, joined
from buttervolume.api.http import Endpoint, Lane
from buttervolume.report import answer
from buttervolume.services import Services


def show(services: Services, body: Body) -> Answer:
    """How one volume stands, or all: the members are asked."""
    views, unseen = services.decisions.look(body.optional_text("Name"))
    now = datetime.now().astimezone()
    return joined(unseen.values()) | {
        "Now": now.isoformat(timespec="seconds"),
        "Volumes": [answer.followed(each) for each in views],
    }


def change(services: Services, body: Body) -> Answer:
    """Give a volume other members or terms."""
    every = None if body.get("Every") is None else body.text_or_number("Every")
    charter = services.decisions.change(
        body.text("Name"), body.optional_text("Members"), every, body.optional_text("Orphan")
    )
    return {
        "Members": list(charter.members),
        "Every": charter.every,
        "Orphan": charter.policy.value,
    }


def take(services: Services, body: Body) -> Answer:
    """Go on here though the owner cannot be reached; or say with what that would be."""
    volume = body.text("Name")
    if body.flag("Dryrun"):
        copy = services.decisions.what_taking_gives(volume)
        return {"Snapshot": copy and copy.snapshot, "Member": copy and copy.member}
    return {"Snapshot": services.decisions.take(volume)}


def resolve(services: Services, body: Body) -> Answer:
    """Give up a fork, or a line of two; or make a volume of a fork."""
    volume, fork = body.text("Name"), body.text("Fork")
    action, target = body.text("Action"), body.optional_text("Target")
    match action, target:
        case "drop", None if "@" in fork:
            services.decisions.give_up_fork(volume, fork)
        case "drop", None:
            services.decisions.give_up_line(volume, fork)
        case "clone", str():
            services.decisions.give_up_fork(volume, fork, target)
        case _:
            raise MalformedRequest("Action must be drop, or clone with a Target")
    return {}


def drop(services: Services, body: Body) -> Answer:
    """Delete a volume for good, on all members."""
    services.decisions.drop(body.text("Name"))
    return {}


ENDPOINTS = (
    Endpoint("VolumeDriver.Follow", show, Lane.TRANSFER, methods=("GET", "POST")),
    Endpoint("VolumeDriver.Follow.Set", change, changes=True),
    Endpoint("VolumeDriver.Follow.Take", take, Lane.TRANSFER, changes=True),
    Endpoint("VolumeDriver.Follow.Resolve", resolve, Lane.TRANSFER, changes=True),
    Endpoint("VolumeDriver.Follow.Drop", drop, Lane.TRANSFER, changes=True),
)
