"""What the history keeps of calls: every one that may change something, done or refused."""

import sqlite3
from datetime import UTC, datetime

from tests.btrfs.harness import Daemon
from tests.support.wait import wait_until

Row = dict[str, str | float]


def rows(daemon: Daemon) -> list[Row]:
    """Everything in the history, the oldest first."""
    path = daemon.directory / "history.sqlite"
    if not path.exists():
        return []
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        cursor = connection.execute("SELECT * FROM runs ORDER BY id")
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor]
    except sqlite3.OperationalError:  # it is being made
        return []
    finally:
        connection.close()


def kept(daemon: Daemon, count: int) -> list[Row]:
    """Everything in the history, which must come to so many rows."""
    daemon.refused("Remove", Name="last")
    wait_until(lambda: [r for r in rows(daemon) if r["volume"] == "last"], what="the last call")
    found = rows(daemon)[:-1]
    assert len(found) == count, [(row["operation"], row["volume"]) for row in found]
    return found


def test_who_did_what_to_what_and_when(daemon: Daemon) -> None:
    before = datetime.now(UTC).timestamp()

    daemon.call("Create", Name="db")
    snapshot = daemon.call("Snapshot", Name="db")["Snapshot"]
    backup = daemon.call("Snapshot.Restore", Name=snapshot)["VolumeBackup"]
    daemon.call("Clone", Name="db", Target="copy")
    daemon.call("Schedule", Name="db", Action="snapshot", Timer="60")
    daemon.call("Snapshots.Purge", Name="db", Pattern="1m:1m")
    daemon.call("Snapshot.Remove", Name=snapshot)
    daemon.call("Remove", Name="copy")

    found = kept(daemon, 8)
    assert [(r["operation"], r["volume"], r["by"]) for r in found] == [
        ("Create", "db", "docker"),
        ("Snapshot", "db", "command"),
        ("Snapshot.Restore", "db", "command"),
        ("Clone", "db", "command"),
        ("Schedule", "db", "command"),
        ("Snapshots.Purge", "db", "command"),
        ("Snapshot.Remove", "db", "command"),
        ("Remove", "copy", "docker"),
    ]
    assert [r["error"] for r in found] == [""] * 8
    assert found[1]["snapshot"] == found[2]["snapshot"] == found[6]["snapshot"] == snapshot
    assert backup in str(found[2]["outcome"])
    assert found[3]["outcome"] == "copy"
    assert found[5]["outcome"] == "0 purged"
    for row in found:
        assert before - 1 < float(row["started"]) / 1e6 < datetime.now(UTC).timestamp() + 1
        assert 0 < float(row["seconds"]) < 30


def test_what_was_refused_is_kept_with_the_reason(daemon: Daemon) -> None:
    reasons = [
        daemon.refused("Snapshot", Name="unknown"),
        daemon.refused("Create", Name="a b"),
        daemon.refused("Snapshot.Send", Name="db@1", Host="-x"),
        daemon.refused("Volume.Sync", Volumes=["a", "b"], Hosts=["one", "two"]),
        daemon.refused("Remove", Name="unknown"),
    ]

    found = kept(daemon, 5)
    assert [row["error"] for row in found] == reasons
    assert [(row["volume"], row["host"]) for row in found] == [
        ("unknown", ""),
        ("a b", ""),
        ("db", "-x"),
        ("a,b", "one,two"),
        ("unknown", ""),
    ]


def test_questions_and_what_changes_nothing_are_not_kept(daemon: Daemon) -> None:
    daemon.call("Create", Name="db")
    daemon.call("Snapshot", Name="db")
    daemon.call("Create", Name="db")
    daemon.call("Get", Name="db")
    daemon.call("List")
    daemon.call("Mount", Name="db", ID="x")
    daemon.call("Unmount", Name="db", ID="x")
    daemon.call("Snapshot.List")
    daemon.call("Snapshots.Purge", Name="db", Pattern="1m:1m", Dryrun=True)
    daemon.request("VolumeDriver.Create", b'{"Name": 1}')
    daemon.request("VolumeDriver.Create", b"")
    daemon.refused("Get", Name="unknown")
    daemon.call("Remove", Name="db")

    operations = [row["operation"] for row in kept(daemon, 3)]
    assert operations == ["Create", "Snapshot", "Remove"]


def test_hostile_names_are_kept_short_and_printable(daemon: Daemon) -> None:
    for odd in ("a\n\x1b[2J\u202e\u2028", "\ud800", "x" * 500_000):
        daemon.post("Snapshot", Name=odd)

    for row in kept(daemon, 3):
        for value in row.values():
            assert len(str(value).encode()) <= 2048
            assert str(value).isprintable()


def test_a_job_that_is_run_now_is_kept_once(daemon: Daemon) -> None:
    daemon.call("Create", Name="db")
    daemon.call("Schedule", Name="db", Action="snapshot", Timer="now")
    daemon.call("Remove", Name="db")

    operations = [row["operation"] for row in kept(daemon, 3)]
    assert operations == ["Create", "snapshot", "Remove"]


def test_a_restore_from_another_host_is_kept_with_that_host(daemon: Daemon) -> None:
    daemon.refused("Snapshot.Restore", Name="db", From="127.0.0.1")

    [row] = kept(daemon, 1)
    assert (row["operation"], row["volume"], row["host"]) == ("Snapshot.Restore", "db", "127.0.0.1")
