"""Jobs and keys that are where this daemon does not look for them.

The managed plugin has its configuration and its keys beside the volumes, a daemon on the host in
/etc/buttervolume and root's home. A change from one to the other may leave some behind.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from buttervolume.config import CONFIG_FILE, Config


def misplaced(config: Config, ssh_directory: Path) -> list[str]:
    """What is in another place than where this daemon, whose ssh has this directory, looks."""
    home = Path(os.path.commonpath([config.volumes_path, config.snapshots_path]))
    found = []
    schedules = [place / config.schedule.name for place in (CONFIG_FILE.parent, home / "config")]
    for schedule in _others(config.schedule, schedules):
        if _has_rows(schedule) or _has_rows(Path(f"{schedule}.disabled")):
            found.append(
                f"the jobs in {schedule} are not run: the schedule is {config.schedule}; "
                f"move them there, or make {CONFIG_FILE.parent} a link to {home / 'config'}"
            )
    for directory in _others(ssh_directory, [home / "ssh"]):
        if _has_keys(directory) and not _has_keys(ssh_directory):
            found.append(
                f"the keys in {directory} are not used: ssh looks in {ssh_directory}; "
                "copy them there to replicate as before"
            )
    return found


def _others(own: Path, candidates: Iterable[Path]) -> list[Path]:
    return [path for path in candidates if os.path.realpath(path) != os.path.realpath(own)]


def _has_rows(path: Path) -> bool:
    try:
        return bool(path.read_bytes().strip())
    except OSError:  # there is none
        return False


def _has_keys(directory: Path) -> bool:
    try:
        return any(path.name.startswith("id_") for path in directory.iterdir())
    except OSError:
        return False
