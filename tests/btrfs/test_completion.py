"""The completion for bash, as a shell runs it, against a daemon with friendly and hostile names."""

import subprocess
import sys
from pathlib import Path

import pytest

from buttervolume.cli.completion import PREAMBLE, completed
from buttervolume.cli.parser import build_parser
from tests.btrfs.conftest import StartDaemon
from tests.btrfs.harness import Daemon, Place, btrfs, subvolume

shtab = pytest.importorskip("shtab")


@pytest.fixture
def script(runtime: Path) -> Path:
    """The script, and beside it a `buttervolume`, and a `timeout` that is more patient."""
    programs = {
        "buttervolume": f'exec {sys.executable} -m buttervolume "$@"',
        "timeout": 'shift; exec /usr/bin/timeout 60 "$@"',
    }
    (runtime / "bin").mkdir()
    for name, text in programs.items():
        program = runtime / "bin" / name
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
    path = runtime / "completion"
    path.write_text(shtab.complete(completed(build_parser()), "bash", preamble={"bash": PREAMBLE}))
    return path


def offered(daemon: Daemon, script: Path, *words: str, home: Path | None = None) -> list[str]:
    """What is offered for the last of these words behind `buttervolume`."""
    shell = f"""
source {script}
COMP_WORDS=(buttervolume "$@"); COMP_CWORD=$#
COMP_LINE="buttervolume $*"; COMP_POINT=${{#COMP_LINE}}
_shtab_buttervolume
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    environ = daemon.environ | {"PATH": f"{script.parent}/bin:{daemon.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", shell, "bash", *words],
        env=environ | ({} if home is None else {"HOME": str(home)}),
        cwd=script.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_names_are_completed(daemon: Daemon, place: Place, script: Path, tmp_path: Path) -> None:
    for name in ("db", "db2", "web"):
        daemon.call("Create", Name=name)
    taken = daemon.call("Snapshot", Name="db")["Snapshot"]
    btrfs("subvolume", "snapshot", "-r", place.snapshots / taken, place.snapshots / f"{taken}@nas")
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/config").write_text("Host backup other\n  Port 22\nHost *\n")

    assert offered(daemon, script, "snapshot", "d") == ["db", "db2"]
    assert offered(daemon, script, "clone", "w") == ["web"]
    assert offered(daemon, script, "rm", "db@") == [taken, f"{taken}@nas"]
    assert offered(daemon, script, "restore", "d") == ["db", "db2"]
    assert offered(daemon, script, "restore", "db@") == [taken, f"{taken}@nas"]
    assert offered(daemon, script, "send", "", home=tmp_path) == ["backup", "nas", "other"]
    assert offered(daemon, script, "restore", "--from", "b", home=tmp_path) == ["backup"]
    assert offered(daemon, script, "follow", "d") == ["db", "db2"]
    assert offered(daemon, script, "follow", "take", "w") == ["web"]
    assert offered(daemon, script, "schedule", "s") == ["snapshot", "synchronize:"]


def test_no_name_becomes_a_command(daemon: Daemon, place: Place, script: Path) -> None:
    mark = script.parent / "executed"
    for name in (f"x$(touch {mark.name})", "x`id`", "x;id", "x*", "x y", "x'", 'x"', "x\\n"):
        subvolume(place.volumes / name)
        btrfs("subvolume", "snapshot", "-r", place.volumes / name, place.snapshots / f"{name}@1")

    assert offered(daemon, script, "snapshot", "x") == []
    assert offered(daemon, script, "rm", "x") == []
    assert not mark.exists()


def test_without_a_daemon_nothing_is_offered_and_nobody_waits(
    start_daemon: StartDaemon, script: Path
) -> None:
    daemon = start_daemon()
    daemon.stop()

    assert offered(daemon, script, "snapshot", "") == []
