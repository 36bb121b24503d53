"""The options of a new volume."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from buttervolume.errors import BadOption

_COPYONWRITE = {"true": True, "false": False}
_COMPRESSION = {"false": None, "true": "zstd", "zlib": "zlib", "lzo": "lzo", "zstd": "zstd"}


@dataclass(frozen=True)
class Options:
    """How the files of a new volume are written."""

    copy_on_write: bool = False
    compression: str | None = None


def parse_options(options: Mapping[str, object], also_valid: Iterable[str] = ()) -> Options:
    """Check the options of a new volume; raise BadOption naming the valid ones, and with them those
    that somebody else understands.

    BTRFS compresses only what is written by copy-on-write (btrfs(5)): asking for compression
    turns that on, and asking for the one without the other is an error.
    """
    valid: dict[str, Mapping[str, object]]
    valid = {"copyonwrite": _COPYONWRITE, "compression": _COMPRESSION}
    for key, value in options.items():
        if key not in valid:
            known = ", ".join((*valid, *also_valid))
            raise BadOption(f"unknown volume option {key!r}; valid options: {known}")
        if not isinstance(value, str) or value not in valid[key]:
            raise BadOption(
                f"{key}={value!r} is not possible; valid values of {key}: {', '.join(valid[key])}"
            )
    compression = _COMPRESSION[str(options.get("compression", "false"))]
    wanted = options.get("copyonwrite")
    if compression and wanted == "false":
        raise BadOption(
            "compression needs copy-on-write: leave out copyonwrite=false, or the compression"
        )
    return Options(_COPYONWRITE[str(wanted or "false")] or bool(compression), compression)
