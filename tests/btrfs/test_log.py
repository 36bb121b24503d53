"""`log`: what a real daemon has done, as a command and an endpoint tell of it."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from tests.btrfs.harness import Daemon, subvolume
from tests.support.wait import wait_until


@pytest.fixture(name="worked")
def that_worked(daemon: Daemon) -> Daemon:
    """A daemon that has done something for `db`, and failed at something for `web`."""
    for name in ("db", "web"):
        subvolume(daemon.place.volumes / name, {"file": "old"})
    daemon.call("Schedule", Name="db", Action="snapshot", Timer="now")
    daemon.refused("Schedule", Name="web", Action="replicate:no-such-host.invalid", Timer="now")
    daemon.call("Schedule", Name="db", Action="purge:1h:1d", Timer="now")
    return daemon


def runs(daemon: Daemon, **body: object) -> list[str]:
    """The jobs among what was done."""
    found = daemon.call("Log", **body)["Log"]
    jobs = ("snapshot", "purge:1h:1d", "replicate:no-such-host.invalid")
    return [run["Operation"] for run in found if run["Operation"] in jobs]


def test_what_was_done_is_told_the_newest_last(worked: Daemon) -> None:
    everything = ["snapshot", "replicate:no-such-host.invalid", "purge:1h:1d"]
    assert runs(worked) == everything
    assert runs(worked, Name="db") == ["snapshot", "purge:1h:1d"]
    assert runs(worked, Name="nosuch") == []
    assert runs(worked, Failed=True) == everything[1:2]
    assert runs(worked, Limit=1) == everything[2:]
    for since in ("1d", (datetime.now(UTC) - timedelta(minutes=5)).isoformat(), "2020-01-01"):
        assert runs(worked, Since=since) == everything
    assert runs(worked, Since=(datetime.now(UTC) + timedelta(minutes=5)).isoformat()) == []

    [run] = worked.call("Log", Name="db", Limit=1)["Log"]
    assert run["Outcome"] == "0 purged"
    assert (run["Volume"], run["Host"], run["Bytes"]) == ("db", "", None)
    assert (run["Message"], run["By"]) == ("", "command")
    assert datetime.now(UTC) - datetime.fromisoformat(run["Started"]) < timedelta(minutes=5)
    [snapshot] = [r for r in worked.call("Log", Name="db")["Log"] if r["Operation"] == "snapshot"]
    assert [snapshot["Snapshot"]] == worked.call("Snapshot.List", Name="db")["Snapshots"]
    [failed] = [r for r in worked.call("Log", Failed=True)["Log"] if r["Host"]]
    assert failed["Host"] == "no-such-host.invalid"
    assert "no-such-host.invalid" in failed["Message"]


def test_it_is_there_after_a_restart_and_while_the_volumes_are_gone(worked: Daemon) -> None:
    worked.stop()
    worked.start()

    assert len(runs(worked)) == 3


@pytest.mark.parametrize(
    "body", [{"Limit": 0}, {"Limit": -1}, {"Limit": 10**9}, {"Limit": "1"}, {"Failed": 1}]
)
def test_a_malformed_question_is_told_so(daemon: Daemon, body: dict[str, object]) -> None:
    assert daemon.post("Log", **body).status == 400


@pytest.mark.parametrize("since", ["", "2", "2x", "-2d", "yesterday", "2026-13-01", "٢d"])
def test_a_moment_that_is_none_is_refused_with_what_is_allowed(daemon: Daemon, since: str) -> None:
    assert "such as 2d" in daemon.refused("Log", Since=since)
    done = daemon.cli("log", f"--since={since}")
    assert (done.returncode, done.stdout) == (1, "")


def test_the_command_prints_a_table_or_json(worked: Daemon) -> None:
    done = worked.cli("log", "db")
    assert (done.returncode, done.stderr) == (0, "")
    heading, first, *_ = done.stdout.splitlines()
    assert heading.split() == ["WHEN", "TOOK", "WHAT", "VOLUME", "BY", "MOVED", "RESULT"]
    assert "snapshot" in first
    assert worked.call("Snapshot.List", Name="db")["Snapshots"][0] in first
    assert "no-such-host.invalid" not in done.stdout

    done = worked.cli("log", "--failed", "-n", "1", "--since", "1h")
    assert "no-such-host.invalid: " in done.stdout.splitlines()[1]
    assert len(done.stdout.splitlines()) == 2
    assert worked.cli("log", "nosuch").stdout == ""

    told = json.loads(worked.cli("log", "--json", "db").stdout)
    assert told["Log"] == worked.call("Log", Name="db")["Log"]


def test_a_job_of_the_schedule_is_told_as_such(daemon: Daemon) -> None:
    subvolume(daemon.place.volumes / "db", {"file": "old"})
    (daemon.directory / "schedule.csv").write_text("db,snapshot,60\n")
    daemon.stop()
    daemon.start()

    [run] = wait_until(
        lambda: [r for r in daemon.call("Log")["Log"] if r["By"] == "schedule"], 30, "the run"
    )

    assert (run["Operation"], run["Volume"]) == ("snapshot", "db")
