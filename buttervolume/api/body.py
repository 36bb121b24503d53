"""What comes in and what goes out: JSON objects."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from buttervolume.words import enumerated

_LONGEST_TICKET = 64

Answer = dict[str, object]


class Unchanged(Answer):
    """The answer of a call that may change something, and this time has changed nothing."""


def joined(warnings: Iterable[str]) -> Answer:
    """The part of an answer that warns, if there is something to warn of."""
    said = [warning for warning in warnings if warning]
    return {"Warning": "; ".join(said)} if said else {}


def without(unreadable: Iterable[str]) -> Answer:
    """The warning of a list that some are named in, of which nothing else can be told."""
    named = enumerated(unreadable)
    return joined([f"cannot be read: {named}" if named else ""])


class MalformedRequest(Exception):
    """A request that is not what the protocol says: HTTP 400, no effect."""


class Body:
    """The JSON object of a request. Null is the same as a key left out."""

    def __init__(self, data: bytes) -> None:
        try:
            values = json.loads(data) if data.strip() else {}
        except (ValueError, RecursionError) as error:
            raise MalformedRequest(f"the request is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise MalformedRequest("the request must be a JSON object")
        self._values: dict[str, Any] = values

    def __str__(self) -> str:
        return json.dumps(self._values)

    def get(self, key: str) -> object:
        """Whatever is there, or None."""
        return self._values.get(key)

    def text(self, key: str) -> str:
        """A string that must be there."""
        value = self.optional_text(key)
        if value is None:
            raise MalformedRequest(f"{key} is missing")
        return value

    def optional_text(self, key: str) -> str | None:
        """A string, or None."""
        value = self._values.get(key)
        if value is not None and not isinstance(value, str):
            raise MalformedRequest(f"{key} must be a string")
        return value

    def text_or_number(self, key: str) -> str:
        """A string that must be there, or a whole number instead, as a string."""
        value = self._values.get(key)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if value is not None and not isinstance(value, str):
            raise MalformedRequest(f"{key} must be a string or a whole number")
        return self.text(key)

    def texts(self, key: str) -> Sequence[str]:
        """A list of strings that must be there, with one at the least."""
        value = self._values.get(key)
        if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
            raise MalformedRequest(f"{key} must be a list of strings")
        return value

    def number(self, key: str) -> int:
        """A whole number that must be there."""
        value = self._values.get(key)
        if not isinstance(value, int) or isinstance(value, bool):
            raise MalformedRequest(f"{key} must be a whole number")
        return value

    def optional_number(self, key: str, default: int, *, highest: int) -> int:
        """A whole number from 1 on, not above some other one; or the default if left out."""
        if self._values.get(key) is None:
            return default
        number = self.number(key)
        if not 1 <= number <= highest:
            raise MalformedRequest(f"{key} must be from 1 to {highest}")
        return number

    def ticket(self) -> str | None:
        """The name that the caller gives the transfers of this request, if any."""
        ticket = self.optional_text("Ticket")
        if ticket is not None and not 0 < len(ticket) <= _LONGEST_TICKET:
            raise MalformedRequest(f"Ticket must have from 1 to {_LONGEST_TICKET} characters")
        return ticket

    def flag(self, key: str) -> bool:
        """A boolean, False if left out."""
        value = self._values.get(key)
        if value is not None and not isinstance(value, bool):
            raise MalformedRequest(f"{key} must be true or false")
        return bool(value)

    def mapping(self, key: str) -> Mapping[str, object]:
        """An object, empty if left out."""
        value = self._values.get(key)
        if value is not None and not isinstance(value, dict):
            raise MalformedRequest(f"{key} must be an object")
        return value or {}
