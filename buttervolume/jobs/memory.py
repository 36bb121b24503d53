"""What is remembered of a job, and what follows from it: pure, with the clock as a parameter."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from buttervolume.jobs.schedule import Job
from buttervolume.jobs.when import Every

LONGEST_WAIT = timedelta(minutes=30)
"""How long a job that goes on failing waits at most."""


@dataclass(frozen=True)
class Memory:
    """What is remembered of a job; times are in UTC."""

    last_success: datetime | None = None
    """When its last successful run began."""
    outcome: str = ""
    """What that run did."""
    failures: int = 0
    """How many runs have failed since."""
    first_failure: datetime | None = None
    last_failure: datetime | None = None
    message: str = ""
    """Why the last of them failed."""
    when: str = ""
    """The minutes or the cron expression that it had; empty if that was not noted."""
    since: datetime | None = None
    """When the scheduler saw it first with these."""


def next_run(job: Job, memory: Memory, now: datetime) -> datetime:
    """When a job is to run; what is in the past means that it is due.

    That is when its period has passed since the start of its last success, or at the next moment of
    its cron expression after that; after a failure when 1, 2, 4 … minutes have passed, 30 at most,
    but never later than without the failure. A job that is new, or was edited since its last
    success, begins afresh: at once, or at the next moment of its cron expression.
    """
    if memory.last_failure is not None:
        wait = timedelta(minutes=2 ** min(memory.failures - 1, 40))
        retry = memory.last_failure + min(wait, LONGEST_WAIT)
        return min(retry, job.when.after(memory.last_failure))
    since = memory.since or memory.last_success or now
    if memory.last_success is None or memory.last_success < since:
        return job.when.first(since)
    return job.when.after(memory.last_success)


def may_start(job: Job, memory: Memory, now: datetime, slack: timedelta) -> datetime:
    """When a job may be begun: `slack` before its time, which is half the time between two looks,
    so that a period that is a multiple of that time does not drift. Cron is taken at its word."""
    due = next_run(job, memory, now)
    return due - slack if isinstance(job.when, Every) else due


def second_run(job: Job, memory: Memory) -> datetime | None:
    """When a job is to have succeeded a second time since its last success, or since it was
    edited; a success that is still missing then is late. None if it never succeeded."""
    if memory.last_success is None:
        return None
    last = max(memory.last_success, memory.since or memory.last_success)
    return job.when.after(job.when.after(last))


def known(memory: Memory | None, job: Job, now: datetime) -> Memory:
    """The memory of a job as it is in the schedule now: one that is new or was edited begins
    afresh, and keeps only what it did last."""
    when = str(job.when)
    if memory is None:
        return Memory(when=when, since=now)
    if not memory.when:  # taken over from an older version
        return replace(memory, when=when)
    if memory.when != when:
        return Memory(memory.last_success, memory.outcome, when=when, since=now)
    return memory


def settle(memory: Memory, now: datetime) -> Memory:
    """Take a time in the future, left by a clock that was set back, for now: the job then waits
    for one period, instead of for as long as the clock was wrong."""

    moments = (memory.last_success, memory.first_failure, memory.last_failure, memory.since)
    if not any(moment is not None and moment > now for moment in moments):
        return memory
    success, first, last, since = (None if m is None else min(m, now) for m in moments)
    return replace(
        memory, last_success=success, first_failure=first, last_failure=last, since=since
    )


def succeeded(memory: Memory, started: datetime, outcome: str) -> Memory:
    """The memory of a job after a successful run."""
    return Memory(started, outcome, when=memory.when, since=memory.since)


def failed(memory: Memory, now: datetime, message: str) -> Memory:
    """The memory of a job after a failed run."""
    return replace(
        memory,
        failures=memory.failures + 1,
        first_failure=memory.first_failure or now,
        last_failure=now,
        message=message,
    )
