"""The history that a daemon writes, as a test looks into it while the daemon runs."""

import shutil
import sqlite3
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MOMENTS = ("last_success", "first_failure", "last_failure")


def _rows(path: Path, query: str, *values: object) -> list[dict[str, Any]]:
    """What a query finds; nothing if there is no database yet."""
    if not path.exists():
        return []
    # a copy: sqlite would follow /proc/<pid>/root, by which hosts of the tests are reached, to "/"
    with TemporaryDirectory() as directory:
        copy = Path(directory, "copy")
        try:
            shutil.copyfile(path, copy)
            with suppress(FileNotFoundError):  # all of it is in the database
                shutil.copyfile(f"{path}-wal", f"{copy}-wal")
            with closing(sqlite3.connect(copy)) as connection:
                connection.row_factory = sqlite3.Row
                return [dict(row) for row in connection.execute(query, values)]
        except sqlite3.DatabaseError:  # it is being made, or changed
            return []


def memory(path: Path, job: str) -> dict[str, Any]:
    """What is remembered of a job that has run, with moments in ISO format; empty if nothing."""
    for row in _rows(path, "SELECT * FROM memories WHERE job = ?", job):
        for name in _MOMENTS:
            if row[name] is not None:
                row[name] = (_EPOCH + timedelta(microseconds=row[name])).isoformat()
        if row["last_success"] or row["last_failure"]:
            return row
    return {}


def runs(path: Path, volume: str = "") -> list[dict[str, Any]]:
    """What was done, of one volume or all, the oldest first."""
    return _rows(path, "SELECT * FROM runs WHERE ? IN ('', volume) ORDER BY id", volume)


def make_older(path: Path, job: str, age: timedelta) -> None:
    """Let the last run of a job have begun so long ago; no daemon must run."""
    moment = (datetime.now(UTC) - age - _EPOCH) // timedelta(microseconds=1)
    with closing(sqlite3.connect(path)) as connection, connection:
        for query in (
            "UPDATE memories SET since = min(since, ?) WHERE job = ?",
            "UPDATE memories SET last_success = ? WHERE job = ? AND last_success IS NOT NULL",
            "UPDATE memories SET last_failure = ? WHERE job = ? AND last_failure IS NOT NULL",
        ):
            connection.execute(query, (moment, job))
