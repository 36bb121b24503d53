"""The schedule: which jobs there are, in a CSV file that people may edit as well."""

import csv
import io
import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path

from buttervolume import names
from buttervolume.errors import BadJob, BadName, BadPattern, NoSuchJob, OperationFailed
from buttervolume.store.retention import Pattern, parse_pattern
from buttervolume.system import files

LONGEST_PERIOD = 10 * 366 * 24 * 60
"""Minutes: ten years, more than anybody means."""


# What a job does


@dataclass(frozen=True)
class Take:
    """Snapshot the volume."""


@dataclass(frozen=True)
class Purge:
    """Delete the snapshots that a retention pattern does not keep."""

    pattern: Pattern


@dataclass(frozen=True)
class Replicate:
    """Snapshot the volume and send the snapshot to a host."""

    host: str


@dataclass(frozen=True)
class Synchronize:
    """Bring newer files from hosts."""

    hosts: tuple[str, ...]


Task = Take | Purge | Replicate | Synchronize


def parse_action(action: str) -> Task:
    """Understand an action of the schedule. Raises BadJob, BadName, BadPattern."""
    kind, colon, rest = action.partition(":")
    match kind:
        case "snapshot" if not colon:
            return Take()
        case "purge":
            return Purge(parse_pattern(rest))
        case "replicate":
            return Replicate(names.check_host(rest))
        case "synchronize":
            hosts = tuple(names.check_host(host) for host in rest.split(","))
            if len(set(hosts)) < len(hosts):
                raise BadJob(f"{action}: a host is named twice")
            return Synchronize(hosts)
    raise BadJob(
        f"{action!r} is no action: use snapshot, purge:<pattern>, replicate:<host> or "
        "synchronize:<host>[,<host>…]"
    )


def parse_minutes(text: str) -> int:
    """Understand a period. Raises BadJob."""
    if text.isascii() and text.isdigit() and len(text) < 10:
        minutes = int(text)
        if 0 < minutes <= LONGEST_PERIOD:
            return minutes
    raise BadJob(f"{text!r}: the minutes must be a whole number from 1 to {LONGEST_PERIOD}")


@dataclass(frozen=True)
class Job:
    """A row of the schedule."""

    volume: str
    action: str
    minutes: int
    active: bool
    task: Task

    @cached_property
    def period(self) -> timedelta:
        """The time between two runs."""
        return timedelta(minutes=self.minutes)

    @cached_property
    def key(self) -> str:
        """What tells jobs apart, in words; an action holds no space."""
        return f"{self.action} {self.volume}"


def parse_row(fields: list[str]) -> Job:
    """Understand a row of three or four columns. Raises BadJob, BadName, BadPattern."""
    fields = [*fields[:1], *(field.strip() for field in fields[1:])]
    if len(fields) not in (3, 4):
        raise BadJob(f"{len(fields)} columns instead of 3 or 4")
    volume, action, minutes, active = (*fields, "")[:4]
    if active not in ("", "True", "False"):
        raise BadJob(f"{active!r} in the fourth column instead of True or False")
    return Job(
        names.check_volume_reference(volume),
        action,
        parse_minutes(minutes),
        active != "False",
        parse_action(action),
    )


@dataclass(frozen=True)
class Line:
    """A line of the file as it is, and the job that it is, if it can be understood."""

    text: str
    job: Job | None


@dataclass(frozen=True)
class Contents:
    """The schedule at one moment."""

    lines: tuple[Line, ...]
    paused: bool
    """Whether all jobs are paused."""

    @cached_property
    def jobs(self) -> list[Job]:
        """The jobs in their order, paused ones included."""
        return [line.job for line in self.lines if line.job is not None]


class Schedule:
    """The file, read and changed from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.disabled_path = path.with_name(f"{path.name}.disabled")
        """The file's name while all jobs are paused."""
        self._log = logging.getLogger(__name__)
        # protects the file from read to write, and what follows
        self._guard = threading.Lock()
        self._contents = Contents((), False)
        self._content = b""
        self._complained: set[str] = set()

    def read(self) -> Contents:
        """The schedule. What has not changed is not parsed again. Raises OperationFailed."""
        with self._guard:
            return self._read()

    def _read(self) -> Contents:
        content, paused = self._load()
        if content != self._content or paused != self._contents.paused:
            known = {line.text: line for line in self._contents.lines}
            texts = io.StringIO(content.decode("utf-8-sig", "surrogateescape"), newline="")
            lines = tuple(known.get(text) or self._parse(text) for text in texts)
            self._contents, self._content = Contents(lines, paused), content
        return self._contents

    def _load(self) -> tuple[bytes, bool]:
        """What is in the file that counts, and whether it is the paused one.

        If somebody has left both, all stays paused: doing nothing can be undone. The paused name is
        looked at twice, so that a file that somebody renames meanwhile does not pass for none.
        """
        try:
            for path in (self.disabled_path, self.path, self.disabled_path):
                with suppress(FileNotFoundError):
                    content, paused = path.read_bytes(), path == self.disabled_path
                    if paused and self.path.exists():
                        self._complain(f"both {self.path} and {path} exist; the jobs are paused")
                    return content, paused
        except OSError as error:
            raise OperationFailed("read the schedule", error) from error
        return b"", False

    def _complain(self, problem: str) -> None:
        """Log a problem once in the life of the daemon."""
        if problem not in self._complained:
            self._complained.add(problem)
            self._log.warning("%s", problem)

    def _parse(self, text: str) -> Line:
        if not text.strip():
            return Line(text, None)
        try:
            rows = list(csv.reader([text], strict=True))
            return Line(text, parse_row(rows[0]))
        except (csv.Error, ValueError, BadJob, BadPattern, BadName) as error:
            shown = text.strip().encode(errors="backslashreplace").decode()
            self._complain(f"{self.path}: this row is skipped: {shown!r}: {error}")
            return Line(text, None)

    # Changes

    def apply(self, volume: str, action: str, timer: str) -> Job | None:
        """Do what the API's Schedule asks for: a period in minutes makes a job or replaces it,
        `0` or `delete` removes it, `pause` and `resume` switch it. Returns the job it has made.

        Raises BadName, BadJob, BadPattern, NoSuchJob, OperationFailed; nothing is changed then.
        """
        names.check_volume_reference(volume)
        if timer in ("0", "delete"):
            self._change(volume, action, lambda job: None)
        elif timer in ("pause", "resume"):
            active = timer == "resume"
            self._change(volume, action, lambda job: _with_active(job, active))
        else:
            task = parse_action(action)
            try:
                minutes = parse_minutes(timer)
            except BadJob as error:
                raise BadJob(f"{error}; or 0, delete, pause or resume") from error
            new = Job(volume, action, minutes, True, task)
            self._change(volume, action, lambda job: new, otherwise=new)
            return new
        return None

    def _change(
        self,
        volume: str,
        action: str,
        change: Callable[[Job], Job | None],
        otherwise: Job | None = None,
    ) -> None:
        """Replace a job's row by what `change` makes of it; of several, the first stays. A job
        that is not there becomes `otherwise`; raises NoSuchJob without."""
        with self._guard:
            contents = self._read()
            lines: list[str] = []
            found = False
            for line in contents.lines:
                if line.job is None or (line.job.volume, line.job.action) != (volume, action):
                    lines.append(line.text)
                elif not found:
                    found = True
                    new = change(line.job)
                    if new is not None:
                        lines.append(_to_text(new))
            if not found:
                if otherwise is None:
                    raise NoSuchJob(volume, action)
                if lines and not lines[-1].endswith(("\n", "\r")):
                    lines[-1] += "\n"
                lines.append(_to_text(otherwise))
            self._write(self.disabled_path if contents.paused else self.path, "".join(lines))

    def _write(self, path: Path, text: str) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            files.replace(path, text)
        except OSError as error:
            raise OperationFailed("write the schedule", error) from error

    def pause_all(self) -> None:
        """Pause all jobs: the file gets its other name, and is made if there is none."""
        with self._guard:
            if not self._load()[1]:
                if self.path.exists():
                    self._rename(self.path, self.disabled_path)
                else:
                    self._write(self.disabled_path, "")

    def resume_all(self) -> None:
        """Resume all jobs. Raises OperationFailed if both files exist: one would be lost."""
        with self._guard:
            if self._load()[1]:
                self._rename(self.disabled_path, self.path)

    def _rename(self, source: Path, target: Path) -> None:
        try:
            files.rename_new(source, target)
            files.sync_directory(target.parent)
        except OSError as error:
            raise OperationFailed(f"rename {source} to {target}", error) from error


def _with_active(job: Job, active: bool) -> Job:
    return Job(job.volume, job.action, job.minutes, active, job.task)


def _to_text(job: Job) -> str:
    """A row for the file: three columns, and a fourth while the job is paused."""
    row = [job.volume, job.action, str(job.minutes)] + ([] if job.active else ["False"])
    text = io.StringIO()
    csv.writer(text, lineterminator=os.linesep).writerow(row)
    return text.getvalue()
