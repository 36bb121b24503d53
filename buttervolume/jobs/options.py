"""The jobs among the options of a new volume: `snapshot=60`, `replicate:backup=0 3 * * *`."""

import json
from collections.abc import Mapping

from buttervolume.errors import BadJob, BadName, BadOption, BadPattern
from buttervolume.jobs.actions import ACTIONS, parse_action
from buttervolume.jobs.schedule import Job
from buttervolume.jobs.when import parse_when


def split_jobs(volume: str, options: Mapping[str, object]) -> tuple[list[Job], dict[str, object]]:
    """The jobs that the options of a volume ask for, and the options that are about other things.

    A job's value is minutes or a cron expression; an empty one asks for nothing, as with all
    options. Raises BadOption.
    """
    kinds = {action.kind for action in ACTIONS}
    jobs: list[Job] = []
    others: dict[str, object] = {}
    for key, value in options.items():
        if key.partition(":")[0] not in kinds:
            others[key] = value
        elif (job := _parse(volume, key, value)) is not None:
            jobs.append(job)
    return jobs, others


def _parse(volume: str, action: str, value: object) -> Job | None:
    if not isinstance(value, str):
        raise BadOption(f"{action}={json.dumps(value)} is not valid: the value must be in quotes")
    try:
        task = parse_action(action)
        return Job(volume, action, parse_when(value.strip()), True, task) if value else None
    except (BadJob, BadName, BadPattern) as error:
        raise BadOption(f"{action}={value!r} is not possible: {error}") from error
