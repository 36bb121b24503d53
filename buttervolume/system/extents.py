"""How much of the disk subvolumes take, by the extents that their trees name. Run as a program, it
measures one subvolume against others, whose paths it reads, at the lowest priority; no path in a
subvolume is looked at.

The items are those of linux/btrfs_tree.h.
"""

import json
import os
import struct
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from buttervolume.system import btrfs, command
from buttervolume.system.btrfs import Directory
from buttervolume.system.command import Flow
from buttervolume.system.trees import walk

_EXTENT_DATA = 108  # BTRFS_EXTENT_DATA_KEY
_FILE_EXTENT = struct.Struct("=QQBBHB")
_PLACE = struct.Struct("=QQ")
_INLINE = 0  # BTRFS_FILE_EXTENT_INLINE


@dataclass(frozen=True)
class Measured:
    """What was measured, in bytes on the disk: compressed where the files are."""

    used: int
    """What the subvolume refers to."""
    exclusive: int
    """Of that, what none of the others refers to."""
    others: int
    """What goes if the others go: what they refer to and it does not."""


def measure(path: Path, others: Sequence[Path], flow: Flow) -> Measured:
    """Measure a subvolume and its snapshots, in a process that yields to all others. Raises
    CommandFailed, Cancelled."""
    output: list[bytes] = []
    program = [sys.executable, "-m", "buttervolume.system.extents", str(path)]
    with open(os.memfd_create("others"), "w+b") as names:  # as arguments they may be too many
        names.write(b"\0".join(map(os.fsencode, others)))
        names.seek(0)
        command.watch(["nice", "-n", "14", *program], flow, output.append, names.fileno())
    return Measured(*json.loads(b"".join(output)))


def compare(path: Path, others: Iterable[Path]) -> Measured:
    """Measure here and now. Another that is gone by now counts for nothing. Raises OSError."""
    with btrfs.opened(path) as root:
        mine, inline = _extents(root)
    theirs: dict[int, int] = {}
    for other in others:
        try:
            with btrfs.opened(other) as root:
                theirs |= _extents(root)[0]
        except FileNotFoundError:
            continue
    return Measured(
        used=sum(mine.values()) + inline,
        exclusive=sum(size for place, size in mine.items() if place not in theirs) + inline,
        others=sum(size for place, size in theirs.items() if place not in mine),
    )


def _extents(root: Directory) -> tuple[dict[int, int], int]:
    """The place and size of each extent of a subvolume's files, and the bytes that small files have
    in the tree itself."""
    found: dict[int, int] = {}
    inline = 0
    for _, kind, item in walk(root):
        if kind != _EXTENT_DATA:
            continue
        if item[20] == _INLINE:
            inline += len(item) - _FILE_EXTENT.size
            continue
        place, size = _PLACE.unpack_from(item, _FILE_EXTENT.size)
        if place:  # else a hole
            found[place] = size
    return found, inline


if __name__ == "__main__":
    names = sys.stdin.buffer.read().split(b"\0")
    measured = compare(Path(sys.argv[1]), [Path(os.fsdecode(name)) for name in names if name])
    sys.stdout.write(json.dumps([measured.used, measured.exclusive, measured.others]))
