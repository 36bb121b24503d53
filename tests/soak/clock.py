"""A clock that jumps five minutes at a time, for the test and for the daemons that it has started.

Between two jumps it goes on as other clocks do, so that what comes later has a later date.
"""

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

TICK = timedelta(minutes=5)
"""What the scheduler, which looks each second, takes for the time between two looks."""
_LONGEST_REST = TICK - timedelta(seconds=1)
"""How far it goes at most without a jump: what takes longer finds it standing."""


class Clock:
    """A moment in a file, and when it was written; every process that reads it has one time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def set(self, moment: datetime) -> None:
        """Let it be this moment now."""
        new = self.path.with_name(f"{self.path.name}.new")
        new.write_text(f"{moment.isoformat()} {time.monotonic_ns()}")
        new.replace(self.path)

    def tick(self) -> datetime:
        """The moment of the last jump, in UTC."""
        return self._read()[0]

    def now(self) -> datetime:
        """This moment, in UTC."""
        moment, written = self._read()
        passed = timedelta(microseconds=(time.monotonic_ns() - written) // 1000)
        return moment + min(passed, _LONGEST_REST)

    def _read(self) -> tuple[datetime, int]:
        moment, written = self.path.read_text().split()
        return datetime.fromisoformat(moment).astimezone(UTC), int(written)
