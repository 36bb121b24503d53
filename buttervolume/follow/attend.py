"""What a member of a followed volume does for another one: the answers to `follow` in a session.

Each request says `what`:

- `lock`: `{"locked"}`, or `{"taken"}` with the name of who has it. It is held until the session
  ends, which it does by itself if nothing comes for SILENCE seconds.
- `beat`: `{}`, a sign of life.
- `report`: `{"report"}`.
- `busy`, under the lock: `{"busy"}`, why the volume cannot be deleted just now, or nothing.
- `release`, `grantee`, under the lock: `{"copy"}`, or `{"refused", "in_use"}` with the reason. With
  `anew`, the copy is one that is taken for it, if it can be.
- `hear`, `line`, `dropped`: `{"heard"}`, or `{"refused"}`.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from buttervolume import names
from buttervolume.config import Config
from buttervolume.errors import FollowBusy, FollowRefused, InUse, NotAllowed, OperationFailed
from buttervolume.follow.charter import copy_to_json, lines_from_json, report_to_json
from buttervolume.follow.member import Member
from buttervolume.store.catalog import Catalog
from buttervolume.store.snapshots import Snapshots
from buttervolume.store.volumes import Volumes

SILENCE = 6.0
"""Seconds without a sign of life after which locks are given up: a connection that was cut would
hold them for minutes (TCP tries that long)."""


class Attendant:
    """One session's part in followed volumes. `close` gives up its locks."""

    def __init__(self, member: Member, asker: str) -> None:
        """`asker` is the name of the member on the other side."""
        self.silence = SILENCE
        self._member = member
        self._asker = asker
        self._locks = ExitStack()
        self._locked: set[str] = set()
        self._answers: Mapping[str, Callable[[str, Mapping[str, Any]], dict[str, Any]]] = {
            "lock": self._lock,
            "beat": lambda volume, request: {},
            "report": self._report,
            "busy": self._busy,
            "release": self._release,
            "hear": self._hear,
        }

    @property
    def is_locking(self) -> bool:
        """Whether the other side must show that it lives."""
        return bool(self._locked)

    def answer(self, volume: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """Carry out a request about a volume that may be touched. Raises KeyError, BadCharter,
        OperationFailed, NotAllowed."""
        return self._answers[request["what"]](volume, request)

    def drop(self, volume: str) -> dict[str, Any]:
        """Delete a volume for good. Raises NotAllowed, OperationFailed."""
        if volume not in self._locked or self._member.is_in_use(volume):
            raise NotAllowed(
                f"{volume}: it is deleted under its lock only, and while it is not used"
            )
        self._member.drop(volume)
        return {}

    def close(self) -> None:
        """Give up all locks."""
        self._locked.clear()
        self._locks.close()

    def _lock(self, volume: str, _: Mapping[str, Any]) -> dict[str, Any]:
        try:
            if volume not in self._locked:
                self._locks.enter_context(self._member.lock(volume, self._asker))
                self._locked.add(volume)
        except FollowBusy as error:
            return {"taken": error.holder}
        return {"locked": True}

    def _report(self, volume: str, _: Mapping[str, Any]) -> dict[str, Any]:
        return {"report": report_to_json(self._member.report(volume))}

    def _busy(self, volume: str, _: Mapping[str, Any]) -> dict[str, Any]:
        if volume not in self._locked:
            raise NotAllowed(f"{volume}: what is on its way is told under its lock only")
        return {"busy": self._member.busy(volume)}

    def _release(self, volume: str, request: Mapping[str, Any]) -> dict[str, Any]:
        if volume not in self._locked:
            raise NotAllowed(f"{volume}: it is let go under its lock only")
        if names.check_host(request["grantee"]) != self._asker:
            raise NotAllowed(f"{volume}: it is let go only to the member that asks")
        try:
            anew = request.get("anew") is True
            return {"copy": copy_to_json(self._member.release(volume, self._asker, anew=anew))}
        except FollowRefused as error:
            return {"refused": error.reason, "in_use": isinstance(error, InUse)}

    def _hear(self, volume: str, request: Mapping[str, Any]) -> dict[str, Any]:
        line, dropped = lines_from_json(request)
        try:
            if volume in self._locked:
                self._member.hear(volume, line, dropped)
            else:
                with self._member.lock(volume, self._asker):
                    self._member.overhear(volume, line, dropped)
        except FollowRefused as error:  # FollowBusy, too
            return {"refused": error.reason}
        return {"heard": True}


def member_of(config: Config) -> Member:
    """This host, without its daemon. Raises OperationFailed."""
    try:
        volumes = Volumes(config.volumes_path)
    except OSError as error:
        raise OperationFailed("look at the volumes", error) from error
    catalog = Catalog(config.snapshots_path, config.dtformat, volumes.check_available)
    snapshots = Snapshots(catalog, volumes)
    return Member(config.node, volumes, catalog, snapshots, config.follow_path)
