"""The history of a daemon that is killed while it writes."""

import signal
import subprocess
import sys
import time
from pathlib import Path

from buttervolume.jobs.history import History

STORM = """
import sys
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from buttervolume.jobs.history import History, Run
from buttervolume.jobs.memory import Memory

history = History(Path(sys.argv[1]))
history.start()
for number in count():
    run = Run(datetime.now(UTC), 0.1, "snapshot", "db", outcome=str(number))
    history.record(run, "snapshot db", Memory(outcome=str(number)))
    if number % 20 == 0:
        history.flush()
        print(number, flush=True)
"""


def test_a_daemon_killed_in_a_storm_leaves_a_whole_history(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    for round_ in range(5):
        with subprocess.Popen(
            [sys.executable, "-c", STORM, str(path)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            for _ in range(3 + round_):
                written = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)

        history = History(path)
        memories = history.start()
        newest = history.search()[-1]
        history.stop(time.monotonic() + 30)

        assert int(newest.outcome) >= written, "what was flushed is there"
        assert memories["snapshot db"].outcome == newest.outcome, "both, or neither"
        assert not path.with_name("history.sqlite.broken").exists()
