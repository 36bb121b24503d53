"""The shell scripts that run on another host, in a shell."""

import subprocess
from pathlib import Path

import pytest

from buttervolume.hosts import remote

NOTE = ".buttervolume-receiving-"
GOES_WHEN_READ = 'read() { command read "$@"; rm -f "$left"; }\n'
"""As when the send that a note belongs to ends right then."""


@pytest.mark.parametrize("sender", ["alpha", "gamma"])
def test_a_note_that_goes_while_it_is_looked_at_stops_nobody_else(
    tmp_path: Path, sender: str
) -> None:
    note = tmp_path / f"{NOTE}other@2026"
    note.write_text(f"{sender}\nother@2026\n1\n")
    script = f"id() {{ echo 0; }}\n{remote._COMMON}set -e\n{GOES_WHEN_READ}{remote._SWEEP}echo over"

    done = subprocess.run(
        ["sh", "-c", script, "sh", tmp_path, "db@2026", f"{NOTE}db@2026", "alpha"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout) == (0, "over\n"), done.stderr
