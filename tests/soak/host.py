"""A host whose daemon goes by the simulated clock, and what can be seen of it from outside."""

import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from tests.btrfs.harness import UnixConnection
from tests.hosts.harness import SNAPSHOTS, VOLUMES, Host
from tests.soak.clock import Clock
from tests.soak.rules import Run, Sample, moment
from tests.support.history import runs
from tests.support.network import Network

ZONE = "Europe/Berlin"
TEMPORARY = "/run/temporary"
HISTORY = "/etc/buttervolume/history.sqlite"
PAGE = "/run/page.sock"
_SPARED = (".buttervolume-lock", ".buttervolume-removed")
_LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) (\w+) (.*)")


@dataclass(frozen=True)
class LogLine:
    """What a daemon has logged at a moment of the real clock, with the traceback below it."""

    time: float
    text: str


class SoakHost(Host):
    """A host of the soak."""

    def __init__(
        self,
        name: str,
        directory: Path,
        network: Network,
        clock: Clock,
        *,
        is_restarted: bool = False,
    ) -> None:
        """`is_restarted`: whether that happens to its daemon now and then."""
        super().__init__(name, directory, network, size="8G")
        self.clock, self.is_restarted = clock, is_restarted
        self.daemon_command = (sys.executable, "-m", "tests.soak.daemon", str(clock.path))
        self.is_up = threading.Event()
        """Whether the daemon is to answer."""
        self.life = 0
        """How often it was started."""
        self.samples: list[Sample] = []

    def start_all(self) -> None:
        """Start what does not run."""
        self.run("mkdir", "--parents", TEMPORARY)
        self.boot()
        self.life += 1
        self.is_up.set()

    def start_daemon(self, **env: str) -> Any:
        return super().start_daemon(
            TZ=ZONE,
            TMPDIR=TEMPORARY,
            BUTTERVOLUME_TIMER="1",
            BUTTERVOLUME_WEB=f"unix:{PAGE}",
            BUTTERVOLUME_KEEP_REMOVED="30m",
            **env,
        )

    # What it does

    def unfinished(self) -> list[str]:
        """The jobs that are running, or due and not yet run."""
        report = self.api.call("Status")
        now = datetime.fromisoformat(report["Now"])
        return [
            f"{job['Action']} {job['Name']}: {job['State']}, due {job['NextRun']}"
            for job in report["Jobs"]
            if job["State"] not in ("paused", "waiting")
            and (job["State"] == "running" or _is_due(job["NextRun"], now))
        ]

    def job_runs(self) -> dict[str, list[Run]]:
        """The runs of each job that the schedule has started, by action and volume."""
        found: dict[str, list[Run]] = {}
        for row in runs(self.path(HISTORY)):
            if row["by"] == "schedule":
                started = moment(row["started"])
                ended = started + timedelta(seconds=row["seconds"])
                run = Run(started, ended, str(row["error"]))
                found.setdefault(f"{row['operation']} {row['volume']}", []).append(run)
        return found

    def get_page(self, path: str) -> int:
        """Ask for a page and return the status of the answer."""
        connection = UnixConnection(self.path(PAGE), timeout=60)
        try:
            connection.request("GET", path, headers={"Host": "localhost"})
            response = connection.getresponse()
            response.read()
            return response.status
        finally:
            connection.close()

    def complaints(self) -> Iterator[LogLine]:
        """What the daemons have logged as warnings or errors."""
        for log in sorted(self.directory.glob("daemon-*.stderr")):
            lines: list[LogLine] = []
            for text in log.read_text(errors="replace").splitlines():
                if found := _LINE.fullmatch(text):
                    when = datetime.strptime(found[1], "%Y-%m-%d %H:%M:%S,%f")
                    time = when.replace(tzinfo=ZoneInfo(ZONE)).timestamp()
                    lines.append(LogLine(time, f"{found[2]} {found[3]}"))
                elif lines:
                    lines[-1] = LogLine(lines[-1].time, f"{lines[-1].text}\n{text}")
                else:
                    lines.append(LogLine(0.0, text))
            yield from lines

    # What it holds

    def sample(self) -> None:
        """Note what the daemon holds now."""
        pid = self.daemon.process.inner_pid()
        if pid is None:
            return
        process = Path(f"/proc/{pid}")
        status = dict(
            line.split(":", 1) for line in (process / "status").read_text().splitlines() if line
        )
        self.samples.append(
            Sample(
                moment=self.clock.tick(),
                life=self.life,
                memory=int(status["VmRSS"].split()[0]),
                descriptors=len(list((process / "fd").iterdir())),
                threads=int(status["Threads"]),
                children=len(_descendants(pid)),
                files=len(list(self.temporary_files())),
                snapshots=len(list(self.path(SNAPSHOTS).iterdir())),
            )
        )

    def temporary_files(self) -> Iterator[str]:
        """What is there for a while only, or should be."""
        for directory in (VOLUMES, SNAPSHOTS):
            yield from (
                str(path)
                for path in self.path(directory).iterdir()
                if path.name.startswith(".") and path.name not in _SPARED
            )
        for directory in (TEMPORARY, "/run/docker", "/etc/buttervolume"):
            for root, directories, files in os.walk(self.path(directory)):
                yield from (f"{root}/{name}" for name in (*directories, *files))


def _is_due(next_run: str | None, now: datetime) -> bool:
    return next_run is None or datetime.fromisoformat(next_run) <= now


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):  # it has ended meanwhile
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *_descendants(child)]
    return found
