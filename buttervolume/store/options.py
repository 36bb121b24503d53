"""The options of a new volume, as one table: what each may be, and what it means."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from buttervolume import ages, names
from buttervolume.errors import BadName, BadOption

_COPYONWRITE = {"true": True, "false": False}
_COMPRESSION = {"false": "", "true": "zstd", "zlib": "zlib", "lzo": "lzo", "zstd": "zstd"}
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_HIGHEST_ID = (1 << 32) - 2
"""The highest user and group; the one above means "leave it" (chown(2))."""
_SMALLEST = 1 << 20
_LARGEST = 1 << 60
"""Bytes."""


@dataclass(frozen=True)
class Options:
    """What a new volume is to be; None where nothing was asked for."""

    copy_on_write: bool | None = None
    compression: str | None = None
    """The algorithm, empty for none."""
    source: str | None = None
    """The volume or snapshot whose content it begins with."""
    keep: str | None = None
    """The age until which it is kept once it is removed, as it was written."""
    size: int | None = None
    """The bytes that it may hold."""
    follow: str | None = None
    """What it carries if it follows its service, as JSON (see `follow.charter`)."""
    uid: int | None = None
    gid: int | None = None
    mode: int | None = None


@dataclass(frozen=True)
class Option:
    """An option of Create."""

    name: str
    field: str
    """Of `Options`."""
    convert: Callable[[str], object]
    """Raises ValueError with the values that are possible."""


def _one_of(values: Mapping[str, object]) -> Callable[[str], object]:
    def convert(text: str) -> object:
        if text.lower() not in values:
            raise ValueError(", ".join(values))
        return values[text.lower()]

    return convert


def _source(text: str) -> str:
    check = names.parse_snapshot if "@" in text else names.check_volume_reference
    try:
        check(text)
    except BadName as error:
        raise ValueError("the name of a volume, or of a snapshot such as db@latest") from error
    return text


def _age(text: str) -> str:
    ages.parse(text.lower())
    return text.lower()


def _size(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,19})([kmgt]?)(?:i?b)?", text.lower(), re.ASCII)
    size = int(match[1]) * _UNITS[match[2]] if match else 0
    if not _SMALLEST <= size <= _LARGEST:
        raise ValueError("bytes, or a number with K, M, G or T such as 500M or 20G; 1M at least")
    return size


def _number(text: str) -> int:
    if re.fullmatch(r"[0-9]{1,10}", text, re.ASCII) and int(text) <= _HIGHEST_ID:
        return int(text)
    raise ValueError(f"a number from 0 to {_HIGHEST_ID}")


def _mode(text: str) -> int:
    if re.fullmatch(r"[0-7]{1,5}", text, re.ASCII) and int(text, 8) <= 0o7777:
        return int(text, 8)
    raise ValueError("an octal number from 0 to 7777, such as 0750")


OPTIONS = (
    Option("copyonwrite", "copy_on_write", _one_of(_COPYONWRITE)),
    Option("compression", "compression", _one_of(_COMPRESSION)),
    Option("from", "source", _source),
    Option("keep", "keep", _age),
    Option("size", "size", _size),
    Option("uid", "uid", _number),
    Option("gid", "gid", _number),
    Option("mode", "mode", _mode),
)
_BY_NAME = {option.name: option for option in OPTIONS}


def parse_options(options: Mapping[str, object], also_valid: Iterable[str] = ()) -> Options:
    """Check the options of a new volume; raise BadOption naming the valid ones, and with them those
    that somebody else understands. An empty value is the default.

    BTRFS compresses only what is written by copy-on-write (btrfs(5)): asking for compression
    turns that on, and asking for the one without the other is an error.
    """
    values: dict[str, object] = {}
    for key, text in options.items():
        option = _BY_NAME.get(key)
        if option is None:
            known = ", ".join((*_BY_NAME, *also_valid))
            raise BadOption(f"unknown volume option {key!r}; valid options: {known}")
        if text == "":
            continue
        if not isinstance(text, str):
            raise BadOption(f"{key}={json.dumps(text)} is not valid: the value must be in quotes")
        try:
            values[option.field] = option.convert(text.strip())
        except ValueError as error:
            raise BadOption(f"{key}={text!r} is not possible; valid values: {error}") from error
    if values.get("compression"):
        if values.get("copy_on_write") is False:
            raise BadOption(
                "compression needs copy-on-write: leave out copyonwrite=false, or the compression"
            )
        values["copy_on_write"] = True
    return Options(**values)  # type: ignore[arg-type]
