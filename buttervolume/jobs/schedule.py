"""The schedule: which jobs there are, in a CSV file that people may edit as well."""

import csv
import io
import logging
import os
import sys
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from buttervolume import names
from buttervolume.errors import BadJob, BadName, BadPattern, NoSuchJob, OperationFailed
from buttervolume.jobs.actions import Action, parse_action
from buttervolume.jobs.when import When, parse_when
from buttervolume.system import files

_MARK = "\ufeff"
"""What some editors put before all in a file, to say that it is in UTF-8."""


@dataclass(frozen=True)
class Job:
    """A row of the schedule."""

    volume: str
    """A volume's name, or a pattern of names with `*` for anything."""
    action: str
    when: When
    active: bool
    task: Action

    @cached_property
    def key(self) -> str:
        """What tells jobs apart, in words; an action holds no space."""
        return f"{self.action} {self.volume}"

    @property
    def is_pattern(self) -> bool:
        """Whether it stands for a job of each volume that its pattern matches."""
        return "*" in self.volume


def concerned(volume: str, volumes: Sequence[str]) -> Sequence[str]:
    """Which of the volumes that exist, sorted, a row's name or pattern means."""
    if "*" in volume:
        return _matching(volume, volumes)
    place = bisect_left(volumes, volume)
    return volumes[place : place + 1] if volumes[place : place + 1] == (volume,) else ()


def resolve(jobs: Iterable[Job], volumes: Sequence[str]) -> list[Job]:
    """The jobs of volumes that rows stand for, one of each action for a volume.

    `volumes` are those that exist, sorted. A row that names the volume comes before a pattern with
    an action of the same kind, a longer pattern before a shorter one, and of two that are as long
    the one that is further up; whether they are paused does not matter. The row of a volume that
    does not exist stands for itself.
    """
    found: dict[str, Job] = {}
    spoken_for: set[tuple[str, str]] = set()
    """The kinds of action that a volume has a row for."""
    patterns: dict[tuple[str, str], list[Job]] = {}
    """The rows of each kind of action and pattern."""
    for job in jobs:
        if job.is_pattern:
            patterns.setdefault((job.task.kind, job.volume), []).append(job)
        else:
            found.setdefault(job.key, job)
            spoken_for.add((job.task.kind, job.volume))
    for kind, pattern in sorted(patterns, key=lambda each: len(each[1]), reverse=True):
        matching = _matching(pattern, volumes)
        free = [volume for volume in matching if (kind, volume) not in spoken_for]
        spoken_for.update((kind, volume) for volume in free)
        for job in patterns[kind, pattern]:
            for volume in free:
                one = Job(volume, job.action, job.when, job.active, job.task)
                found.setdefault(one.key, one)
    return list(found.values())


def _matching(pattern: str, volumes: Sequence[str]) -> Sequence[str]:
    """The volumes that a pattern matches, of a sorted list."""
    start, *rest = pattern.split("*")
    first = bisect_left(volumes, start)
    last = bisect_left(volumes, start + chr(sys.maxunicode), lo=first)
    if rest == [""]:
        return volumes[first:last]
    return [volume for volume in volumes[first:last] if _has_in_order(volume, start, rest)]


def _has_in_order(name: str, start: str, rest: Sequence[str]) -> bool:
    """Whether a name that begins with the start has the rest behind it, each part behind the one
    before, the last one at its end. A regular expression would try all places for each part."""
    *middle, end = rest
    at, last = len(start), len(name) - len(end)
    for part in middle:
        at = name.find(part, at, last)
        if at < 0:
            return False
        at += len(part)
    return at <= last and name.endswith(end)


def parse_row(fields: list[str]) -> Job:
    """Understand a row of three or four columns. Raises BadJob, BadName, BadPattern."""
    fields = [*fields[:1], *(field.strip() for field in fields[1:])]
    if len(fields) not in (3, 4):
        raise BadJob(f"{len(fields)} columns instead of 3 or 4")
    volume, action, when, active = (*fields, "")[:4]
    if active not in ("", "True", "False"):
        raise BadJob(f"{active!r} in the fourth column instead of True or False")
    return Job(
        names.check_volume_reference(volume),
        action,
        parse_when(when),
        active != "False",
        parse_action(action),
    )


@dataclass(frozen=True)
class Line:
    """A line of the file as it is, and the job that it is, if it can be understood."""

    text: str
    job: Job | None
    error: str = ""
    """Why it is no job; empty for a blank line, too."""

    @cached_property
    def shown(self) -> str:
        """The text as it can be shown: bytes that are no UTF-8 are escaped."""
        return _printable(self.text.rstrip("\r\n"))

    @cached_property
    def columns(self) -> list[str]:
        """Its columns, as well as they can be told apart."""
        text = self.text.rstrip("\r\n")
        try:
            return next(csv.reader([text], strict=True), [])
        except csv.Error:
            return text.split(",")

    def names(self, volume: str, action: str) -> bool:
        """Whether these are its first two columns, as they are or as they are shown."""
        first_two = [*self.columns, "", ""][:2]
        return [volume, action] in (first_two, [*map(_printable, first_two)])


def _printable(text: str) -> str:
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")


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

    @cached_property
    def unreadable(self) -> list[Line]:
        """The rows that nobody can understand."""
        return [line for line in self.lines if line.error]


@dataclass(frozen=True)
class Changed:
    """What came of a change."""

    job: Job | None = None
    """The job that was made, or has replaced one."""
    warning: str = ""
    """What is odd about the change without being wrong."""


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
                    content, paused = files.read(path), path == self.disabled_path
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
            job = parse_row(next(csv.reader([text], strict=True)))
        except (csv.Error, ValueError, BadJob, BadPattern, BadName) as error:
            line = Line(text, None, _printable(str(error)))
            self._complain(f"{self.path}: this row is skipped: {line.shown!r}: {line.error}")
            return line
        if job.task.warning:
            self._complain(f"{self.path}: {job.key}: {job.task.warning}")
        return Line(text, job)

    # Changes

    def apply(self, volume: str, action: str, timer: str) -> Changed:
        """Do what the API's Schedule asks for: minutes or a cron expression make a job or replace
        it, `0` or `delete` removes it, `pause` and `resume` switch it.

        A row that nobody can read is removed or switched by the text of its first two columns. To
        remove what is not there is a success with a warning. Raises BadName, BadJob, BadPattern,
        NoSuchJob, OperationFailed; nothing is changed then.
        """
        if timer in ("0", "delete"):
            if self._change(volume, action, lambda line: None):
                return Changed()
            parse_action(action)  # a slip of the pen is more than a warning
            return Changed(warning=str(NoSuchJob(volume, action)))
        if timer in ("pause", "resume"):
            active = timer == "resume"
            if self._change(volume, action, lambda line: _with_active(line, active)):
                return Changed()
            raise NoSuchJob(volume, action)
        names.check_volume_reference(volume)
        task = parse_action(action)
        try:
            when = parse_when(timer)
        except BadJob as error:
            raise BadJob(f"{error}; or 0, delete, pause, resume or now") from error
        new = Job(volume, action, when, True, task)
        self._change(volume, action, lambda line: _to_text(new) if line.job else line.text, new)
        return Changed(new, task.warning)

    def _change(
        self,
        volume: str,
        action: str,
        change: Callable[[Line], str | None],
        otherwise: Job | None = None,
    ) -> bool:
        """Replace a job's row by what `change` makes of it, nothing for None; of several, the first
        stays. A job that is not there becomes `otherwise`. Returns whether it was there."""
        with self._guard:
            contents = self._read()
            meant = [
                line
                for line in contents.lines
                if line.job and (line.job.volume, line.job.action) == (volume, action)
            ]
            if not meant and otherwise is None:
                meant = [line for line in contents.unreadable if line.names(volume, action)]
                if not meant:
                    names.check_volume_reference(volume)
                    return False
            texts: list[str] = []
            first = True
            for line in contents.lines:
                if not any(line is each for each in meant):
                    texts.append(line.text)
                elif first or line.error:
                    texts.append(change(line) or "")
                    first = False
            if not meant and otherwise is not None:
                texts = _appended(texts, [otherwise])
            self._save(contents, texts)
            return bool(meant)

    @contextmanager
    def adding(self, jobs: Sequence[Job]) -> Iterator[Sequence[Job]]:
        """Add those jobs that are not there, in one write, for what the block makes, and let it
        know them; if it fails, they go again. A row that is there stays as it is. Raises
        OperationFailed; without jobs to add, the file is left alone."""
        if not jobs:
            yield jobs
            return
        with self._guard:
            contents = self._read()
            known = {(job.volume, job.action) for job in contents.jobs}
            new = [job for job in jobs if (job.volume, job.action) not in known]
            if new:
                self._save(contents, _appended([line.text for line in contents.lines], new))
        try:
            yield new
        except BaseException:
            for job in new:
                self._change(job.volume, job.action, lambda line: None)
            raise

    def _save(self, contents: Contents, texts: list[str]) -> None:
        """Write what is to be in the place of something read."""
        text = "".join(texts)
        if text.startswith(_MARK):  # of a row that was not the first: readers skip one
            text = _MARK + text
        self._write(self.disabled_path if contents.paused else self.path, text)

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
        except FileExistsError as error:
            reason = "both exist; take one of them away, or make one of the two"
            raise OperationFailed(f"rename {source} to {target}", reason) from error
        except OSError as error:
            raise OperationFailed(f"rename {source} to {target}", error) from error


def _with_active(line: Line, active: bool) -> str:
    """A row, switched on or off."""
    if line.job is not None:
        return _to_text(replace(line.job, active=active))
    columns = line.columns
    if not active:
        columns = [*columns, "", ""][: max(len(columns), 3)]
        return _as_csv([*columns[:3], "False", *columns[4:]])
    return _as_csv(columns[:3] if len(columns) == 4 else [*columns[:3], "True", *columns[4:]])


def _appended(texts: list[str], jobs: Iterable[Job]) -> list[str]:
    """The lines of a file with more jobs behind them."""
    if texts and not texts[-1].endswith(("\n", "\r")):
        texts = [*texts[:-1], f"{texts[-1]}\n"]
    return [*texts, *map(_to_text, jobs)]


def _to_text(job: Job) -> str:
    """A row for the file: three columns, and a fourth while the job is paused."""
    return _as_csv([job.volume, job.action, str(job.when)] + ([] if job.active else ["False"]))


def _as_csv(row: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator=os.linesep).writerow(row)
    return text.getvalue()
