"""The words of a session between two hosts: what `buttervolume peer` and its caller agree on.

First the peer says `{"buttervolume": 1, "node", "verbs", "stream", "time"}`. Then, request by
request, with its answer:

- `{"do": "hello", "node"}`: who asks; no answer.
- `{"do": "look", "volume"}`: `{"snapshots": [facts], "strangers": [uuid], "bound"}`.
- `{"do": "receive", "name", "uuid", "ctransid", "parent"}` and a stream: `{"received", …}`.
- `{"do": "send", "name", "parent", "stream"}`: `{"stream", "uuid", "ctransid", "parent"}`, then a
  stream, then `{}`.
- `{"do": "received", "name"}`: the other side has it, and a marker here will say so: `{"marked"}`.
- `{"do": "discard", "name"}`: `{"discarded"}`.
- `{"do": "follow", "volume", "what"}`, about a volume that follows its service (see `attend`).
- `{"do": "drop", "volume"}`: `{}`. Such a volume, which the session has locked, is deleted.
- `{"do": "still"}`: `{"still": true}` if a new session would have the same to say; else the peer
  ends this one. Every key may ask that.

An answer may be `{"error", "code"}`. Keys and verbs may be added; what is not known is left alone.
"""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from buttervolume import names
from buttervolume.hosts.lineage import Facts
from buttervolume.names import SnapshotName

PROTOCOL = 1


def facts_as_json(facts: Facts) -> dict[str, object]:
    """What a host tells of a snapshot."""
    return {
        "name": str(facts.name),
        "tree": facts.tree,
        "uuid": str(facts.uuid),
        "parent_uuid": _text(facts.parent_uuid),
        "received_uuid": _text(facts.received_uuid),
        "readonly": facts.readonly,
        "otransid": facts.otransid,
        "ctransid": facts.ctransid,
        "send_transid": facts.send_transid,
        "receive_transid": facts.receive_transid,
        "settled": facts.settled,
        "receiving": facts.receiving,
        "backup": facts.backup,
    }


def facts_from_json(
    said: Mapping[str, Any], moment_of: Callable[[SnapshotName], datetime | None]
) -> Facts:
    """What another host has told of a snapshot, none of it believed to be well-formed. Raises
    BadName, ValueError, KeyError, TypeError."""
    name = names.parse_snapshot(str(said["name"]))
    receiving = said["receiving"]
    return Facts(
        name,
        uuid=UUID(str(said["uuid"])),
        parent_uuid=_uuid(said["parent_uuid"]),
        received_uuid=_uuid(said["received_uuid"]),
        readonly=said["readonly"] is True,
        otransid=number(said["otransid"]),
        tree=number(said["tree"]),
        ctransid=number(said["ctransid"]),
        send_transid=number(said["send_transid"]),
        receive_transid=number(said["receive_transid"]),
        settled=said["settled"] is True,
        taken=moment_of(name),
        receiving=None if receiving is None else str(receiving),
        backup=said["backup"] is True,
    )


def number(said: object) -> int:
    """A transaction, or the number of a tree. Raises ValueError."""
    if not isinstance(said, int) or not 0 <= said < 1 << 64:
        raise ValueError("it must be a number of 64 bits")
    return said


def _text(uuid: UUID | None) -> str | None:
    return str(uuid) if uuid else None


def _uuid(text: object) -> UUID | None:
    return UUID(str(text)) if text else None
