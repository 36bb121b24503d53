"""The history: what is recorded is found again, and no harm to its file stops a job."""

import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buttervolume.errors import OperationFailed
from buttervolume.jobs.history import KEPT_FOR, History, Run, load_state
from buttervolume.jobs.memory import Memory, failed, succeeded
from tests.support.wait import wait_until

NOON = datetime(2026, 5, 6, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)


def run(number: int = 0, **changes: object) -> Run:
    usual = Run(NOON + number * MINUTE, 0.5, "snapshot", "db", outcome=f"db@{number}")
    return replace(usual, **changes)  # type: ignore[arg-type]


class Diary:
    """The histories that live with one file, one after the other."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "history.sqlite"
        self.state = directory / "schedule.csv.state.json"
        self.now = NOON
        self.kept_rows = 1000
        self.history = self.new()

    def new(self) -> History:
        self.history = History(self.path, lambda: self.now, self.kept_rows)
        return self.history

    def open(self) -> dict[str, Memory]:
        """Begin as the daemon does: what is remembered."""
        return self.new().start(self.state)

    def close(self) -> None:
        """End as the daemon does."""
        self.history.stop(time.monotonic() + 30)

    def reopen(self) -> dict[str, Memory]:
        self.close()
        return self.open()

    def found(self, volume: str | None = None, **how: object) -> list[Run]:
        return self.history.search(volume, **how)  # type: ignore[arg-type]


@pytest.fixture
def diary(tmp_path: Path) -> Iterator[Diary]:
    diary = Diary(tmp_path)
    yield diary
    diary.close()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


# What is recorded


def test_what_was_done_is_found_again_the_newest_last(diary: Diary) -> None:
    diary.open()
    runs = [
        run(1),
        run(2, operation="replicate:beta", host="beta", snapshot="db@2", bytes=1 << 40),
        run(3, volume="web", error="no space", outcome="", by="command"),
        run(4, operation="Create", outcome="", by="docker"),
    ]
    for each in runs:
        diary.history.record(each)

    assert diary.found() == runs
    diary.reopen()
    assert diary.found() == runs
    assert diary.found("db") == [runs[0], runs[1], runs[3]]
    assert diary.found("nosuch") == []
    assert diary.found(failed=True) == diary.found("web") == [runs[2]]
    assert diary.found("db", failed=True) == []
    assert diary.found(since=NOON + 3 * MINUTE) == runs[2:]
    assert diary.found(limit=2) == runs[2:]
    assert diary.found("db", since=NOON + 2 * MINUTE, limit=1) == [runs[3]]


texts = st.text(max_size=30)
runs_of_all_kinds = st.builds(
    Run,
    started=st.datetimes(timezones=st.just(UTC)),
    seconds=st.floats(0, 1e9),
    operation=texts,
    volume=texts,
    host=texts,
    snapshot=texts,
    bytes=st.none() | st.integers(0, (1 << 63) - 1),
    outcome=texts,
    error=texts,
    by=texts,
)
moments = st.none() | st.datetimes(timezones=st.just(UTC))
memories_of_all_kinds = st.builds(
    Memory,
    last_success=moments,
    outcome=texts,
    failures=st.integers(0, 10**12),
    first_failure=moments,
    last_failure=moments,
    message=texts,
    when=texts,
    since=moments,
)


@given(
    runs=st.lists(runs_of_all_kinds, max_size=5),
    memories=st.dictionaries(texts, memories_of_all_kinds, max_size=3),
)
def test_whatever_is_recorded_and_remembered_comes_back(
    tmp_path_factory: pytest.TempPathFactory, runs: list[Run], memories: dict[str, Memory]
) -> None:
    diary = Diary(tmp_path_factory.mktemp("history"))
    diary.now = datetime(1, 1, 1, tzinfo=UTC) + KEPT_FOR
    diary.open()
    for each in runs:
        diary.history.record(each)
    diary.history.remember(memories)

    assert diary.reopen() == memories
    assert diary.found() == runs
    diary.close()


def test_what_the_database_cannot_hold_is_held_as_well_as_can_be(diary: Diary) -> None:
    diary.open()

    diary.history.record(run(1, volume="half a pair \ud800", bytes=1 << 70))
    diary.history.record(run(2))

    [odd, good] = diary.found()
    assert odd.volume == r"half a pair \ud800"
    assert good == run(2)


def test_a_run_and_what_is_remembered_of_it_come_together(diary: Diary) -> None:
    diary.open()
    memory = failed(succeeded(Memory(when="60", since=NOON), NOON, "db@1"), NOON + HOUR, "no disk")

    diary.history.record(run(1), "snapshot db", memory)
    diary.history.remember({"snapshot web": Memory(when="5")})
    diary.history.remember({"snapshot gone": Memory(when="5")})
    diary.history.forget(["snapshot gone"])

    assert diary.reopen() == {"snapshot db": memory, "snapshot web": Memory(when="5")}
    assert diary.found() == [run(1)]


def test_nobody_else_may_read_it(diary: Diary) -> None:
    os.umask(0o022)
    diary.open()
    diary.history.record(run())
    diary.history.flush()

    modes = {path.name: path.stat().st_mode & 0o777 for path in diary.path.parent.iterdir()}

    assert set(modes.values()) == {0o600}
    assert diary.path.name in modes


def test_its_directory_is_made_when_it_is_needed(tmp_path: Path) -> None:
    diary = Diary(tmp_path / "not" / "yet")

    diary.open()
    diary.history.record(run())

    assert diary.found() == [run()]
    diary.close()


# How long


def test_what_is_older_than_90_days_goes_at_the_start(diary: Diary) -> None:
    diary.open()
    for day in range(0, 100, 10):
        diary.history.record(run(24 * 60 * day))

    diary.now = NOON + timedelta(days=120, seconds=-1)
    diary.reopen()

    wait_until(lambda: len(diary.found()) < 10)
    assert [r.started for r in diary.found()] == [
        NOON + timedelta(days=d) for d in range(30, 100, 10)
    ]


def test_of_too_many_rows_the_oldest_go(diary: Diary) -> None:
    diary.kept_rows = 5
    diary.open()
    for number in range(20):
        diary.history.record(run(number))
    diary.history.flush()

    diary.reopen()

    wait_until(lambda: len(diary.found()) < 20)
    assert diary.found() == [run(number) for number in range(15, 20)]


# What happens to the file


BROKEN = {
    "empty": b"",
    "zeros, as after a power failure": bytes(4096),
    "text": b"this is no database, " * 500,
    "a header and nothing": b"SQLite format 3\0" + bytes(4080),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_file_that_is_no_database_is_put_aside_and_a_new_one_begun(
    diary: Diary, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    diary.path.write_bytes(content)

    assert diary.open() == {}
    diary.history.record(run(), "snapshot db", Memory(NOON))

    assert diary.found() == [run()]
    if content:
        [warning] = warnings(caplog)
        assert str(diary.path) in warning
        assert diary.path.with_name("history.sqlite.broken").read_bytes() == content
    assert diary.reopen() == {"snapshot db": Memory(NOON)}


def fill(diary: Diary, number: int = 500) -> None:
    for each in range(number):
        diary.history.record(run(each), f"snapshot {each}", Memory(NOON))
    diary.close()


@pytest.mark.parametrize("place", [0, 30, 100, 0.1, 0.3, 0.5, 0.7, 0.9, "cut"])
def test_a_database_that_is_damaged_anywhere_stops_nothing_and_is_whole_again_at_last(
    diary: Diary, place: float | str
) -> None:
    diary.open()
    fill(diary)
    content = bytearray(diary.path.read_bytes())
    if isinstance(place, str):
        content = content[: len(content) // 2]
    else:
        start = place if isinstance(place, int) else int(place * len(content))
        content[start : start + 4096] = b"\x5a" * len(content[start : start + 4096])
    diary.path.write_bytes(content)

    diary.open()
    diary.history.record(run(1000), "snapshot new", Memory(NOON + HOUR))
    diary.history.flush()
    diary.close()

    memories = diary.open()
    assert memories["snapshot new"] == Memory(NOON + HOUR)
    assert diary.found("db")[-1] == run(1000)
    diary.close()
    with sqlite3.connect(diary.path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


def test_a_database_that_breaks_while_it_is_used_loses_no_memory(
    diary: Diary, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    diary.open()
    diary.history.remember({"snapshot db": Memory(NOON)})
    diary.history.flush()

    def break_it(connection: sqlite3.Connection) -> None:
        if not warnings(caplog):
            monkeypatch.undo()
            other = sqlite3.connect(diary.path)
            other.execute("CREATE TABLE x (y)")
            other.execute("PRAGMA writable_schema = ON")
            other.execute("UPDATE sqlite_schema SET sql = 'nonsense' WHERE name = 'memories'")
            other.commit()
            other.close()

    with closing(sqlite3.connect(":memory:")) as any_other:
        break_it(any_other)
    diary.history.record(run(1), "snapshot web", Memory(NOON + HOUR))
    diary.history.flush()

    assert diary.reopen() == {"snapshot db": Memory(NOON), "snapshot web": Memory(NOON + HOUR)}
    assert diary.found() == [run(1)]
    assert len(warnings(caplog)) == 1


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE runs SET outcome = CAST(x'ff41' AS TEXT) WHERE id = 1",
        "UPDATE runs SET started = 1 << 62 WHERE id = 1",
    ],
)
def test_a_value_that_nobody_can_have_written_spoils_nothing_else(
    diary: Diary, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """SQLite looks at pages, not at what is in them."""
    diary.open()
    diary.history.record(run(1), "snapshot db", Memory(NOON))
    diary.history.record(run(2), "snapshot web", Memory(NOON, "done"))
    diary.close()
    with closing(sqlite3.connect(diary.path)) as connection:
        connection.execute(damage)
        connection.execute(
            "UPDATE memories SET outcome = CAST(x'ff41' AS TEXT) WHERE job = 'snapshot db'"
        )
        connection.commit()

    memories = diary.open()
    diary.history.record(run(3))

    assert memories == {
        "snapshot db": Memory(NOON, "\ufffdA"),
        "snapshot web": Memory(NOON, "done"),
    }
    assert diary.found()[-2:] == [run(2), run(3)]
    assert warnings(caplog) == []


@pytest.mark.parametrize("replaced", [False, True], ids=["removed", "replaced"])
def test_a_database_that_is_taken_away_while_it_is_used_begins_anew(
    diary: Diary, replaced: bool
) -> None:
    before = [run(0)] if replaced else []
    diary.open()
    for each in before:
        diary.history.record(each)
    diary.close()
    saved = diary.path.read_bytes()
    diary.open()
    diary.history.record(run(1), "snapshot db", Memory(NOON))
    diary.history.flush()

    diary.path.unlink()
    if replaced:
        diary.path.write_bytes(saved)

    assert diary.found() == before, "it is no error to look"
    diary.history.record(run(2), "snapshot web", Memory(NOON + HOUR))
    assert diary.found() == [*before, run(2)]
    assert diary.reopen() == {"snapshot db": Memory(NOON), "snapshot web": Memory(NOON + HOUR)}
    assert diary.found() == [*before, run(2)]


def test_a_database_of_a_newer_version_is_put_aside(
    diary: Diary, caplog: pytest.LogCaptureFixture
) -> None:
    connection = sqlite3.connect(diary.path)
    connection.execute("CREATE TABLE runs (something_else TEXT)")
    connection.execute("PRAGMA user_version = 99")
    connection.close()

    diary.open()
    diary.history.record(run())

    assert diary.found() == [run()]
    assert "newer version (99)" in warnings(caplog)[0]


@pytest.mark.parametrize(
    "script",
    [
        "CREATE TABLE runs (something TEXT)",
        "CREATE TABLE memories (job TEXT)",
        "CREATE TABLE memories (job, last_success, outcome, failures, first_failure, last_failure,"
        " message, [when], since); INSERT INTO memories VALUES ('x', 'noon', 1, 2, 3, 4, 5, 6, 7)",
        "CREATE VIEW runs AS SELECT 1",
        "CREATE TABLE runs_by_start (x)",
    ],
)
def test_a_database_of_another_program_is_put_aside(
    diary: Diary, script: str, caplog: pytest.LogCaptureFixture
) -> None:
    connection = sqlite3.connect(diary.path)
    connection.executescript(script)
    connection.close()

    diary.open()
    diary.history.record(run())

    assert diary.found() == [run()]
    assert "not written by this program" in warnings(caplog)[0]


def test_a_database_that_somebody_has_locked_at_the_start_is_put_aside(
    diary: Diary, caplog: pytest.LogCaptureFixture
) -> None:
    diary.open()
    fill(diary, 3)
    locker = sqlite3.connect(diary.path, isolation_level=None)
    locker.execute("PRAGMA locking_mode = EXCLUSIVE")
    locker.execute("BEGIN EXCLUSIVE")

    assert diary.open() == {}
    diary.history.record(run(7))

    assert diary.found() == [run(7)]
    assert "locked" in warnings(caplog)[0]
    locker.close()


def test_while_somebody_locks_it_what_is_recorded_waits_and_nobody_else_does(
    diary: Diary, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("buttervolume.jobs.history._BUSY", 0.05)
    monkeypatch.setattr("buttervolume.jobs.history._PATIENCE", 0.05)
    diary.open()
    diary.history.record(run(1))
    diary.history.flush()
    locker = sqlite3.connect(diary.path, isolation_level=None)
    locker.execute("BEGIN IMMEDIATE")

    for number in range(2, 50):
        diary.history.record(run(number))
    wait_until(lambda: warnings(caplog))
    assert diary.found() == [run(1)], "who reads is not kept waiting either"

    locker.execute("ROLLBACK")
    locker.close()
    wait_until(lambda: len(diary.found()) == 49)
    assert diary.found() == [run(number) for number in range(1, 50)]
    assert len(warnings(caplog)) == 1, "it is said once"


@pytest.mark.parametrize("obstacle", ["a directory", "no directory", "a pipe"])
def test_a_file_that_cannot_be_written_stops_nothing(
    tmp_path: Path,
    obstacle: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("buttervolume.jobs.history._BUSY", 0.05)
    monkeypatch.setattr("buttervolume.jobs.history._PATIENCE", 0.05)
    diary = Diary(tmp_path)
    match obstacle:
        case "a directory":
            diary.path.mkdir()
        case "no directory":
            (tmp_path / "file").touch()
            diary.path = tmp_path / "file" / "history.sqlite"
        case _:
            os.mkfifo(diary.path)

    assert diary.open() == {}
    for number in range(100):
        diary.history.record(run(number), "snapshot db", Memory(NOON))
    wait_until(lambda: warnings(caplog))
    with pytest.raises(OperationFailed, match="read the history"):
        diary.found()

    diary.close()
    assert len(warnings(caplog)) == 1


def test_what_cannot_be_written_for_long_is_lost_from_its_old_end(tmp_path: Path) -> None:
    diary = Diary(tmp_path)
    diary.path.mkdir()
    diary.open()

    for number in range(11_000):
        diary.history.record(run(number))

    assert len(diary.history._tasks) == 10_000
    diary.close()


# Threads


def test_while_the_disk_lets_a_reader_wait_nobody_waits_who_records(
    diary: Diary, monkeypatch: pytest.MonkeyPatch
) -> None:
    diary.open()
    diary.history.flush()
    waits, go_on = threading.Event(), threading.Event()
    reader = threading.Thread(target=diary.found)
    recorder = threading.Thread(target=diary.history.record, args=(run(1),))
    real = os.stat

    def stat(path: Path | str, **how: bool) -> os.stat_result:
        if path == diary.path and threading.current_thread() is reader:
            waits.set()
            assert go_on.wait(120)
        return real(path, **how)

    monkeypatch.setattr(os, "stat", stat)
    reader.start()
    try:
        assert waits.wait(60)
        recorder.start()
        recorder.join(60)
        assert not recorder.is_alive()
    finally:
        go_on.set()
        reader.join()
    assert diary.found() == [run(1)]


def test_many_threads_record_and_read_at_once(diary: Diary) -> None:
    diary.open()
    errors = list[BaseException]()

    def work(volume: str) -> None:
        try:
            for number in range(100):
                diary.history.record(run(number, volume=volume), volume, Memory(NOON, str(number)))
                if not number % 10:
                    assert diary.found(volume)[-1].volume == volume
        except BaseException as error:  # noqa: BLE001 - the test fails with it
            errors.append(error)

    threads = [threading.Thread(target=work, args=[f"v{n}"], daemon=True) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert not errors
    assert len(diary.found()) == 800
    assert diary.reopen() == {f"v{n}": Memory(NOON, "99") for n in range(8)}


# The state file of earlier versions


def entry(**changed: object) -> bytes:
    """A state file with something else in one place of its one job."""
    values: dict[str, object] = {
        "last_success": NOON.isoformat(),
        "outcome": "x",
        "failures": 0,
        "first_failure": None,
        "last_failure": None,
        "message": "",
    }
    return json.dumps({"jobs": {"snapshot db": values | changed}}).encode()


def test_the_state_file_of_earlier_versions_is_taken_over_once(diary: Diary) -> None:
    diary.state.write_bytes(
        entry(failures=2, first_failure=NOON.isoformat(), last_failure=NOON.isoformat())
    )

    memory = diary.open()["snapshot db"]

    assert memory == Memory(NOON, "x", 2, NOON, NOON)
    assert not diary.state.exists()
    diary.history.remember({"snapshot db": Memory(NOON + HOUR)})
    assert diary.reopen() == {"snapshot db": Memory(NOON + HOUR)}


def test_what_is_in_the_database_counts_more_than_an_old_state_file(diary: Diary) -> None:
    diary.open()
    diary.history.remember({"snapshot db": Memory(NOON + HOUR)})
    diary.close()
    diary.state.write_bytes(entry())

    assert diary.open() == {"snapshot db": Memory(NOON + HOUR)}


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(bytes(4096), id="zeros, as after a power failure"),
        pytest.param(entry()[:-20], id="cut off"),
        pytest.param(b"\xff\xfe", id="no text"),
        pytest.param(b"null", id="null"),
        pytest.param(b"[1, 2]", id="a list"),
        pytest.param(b"{}", id="an empty object"),
        pytest.param(b'{"jobs": []}', id="jobs in a list"),
        pytest.param(b'{"jobs": {"snapshot db": null}}', id="a job of null"),
        pytest.param(b'{"jobs": {"snapshot db": {}}}', id="a job of nothing"),
        pytest.param(b'{"jobs": {"snapshot db": "noon"}}', id="a job of text"),
        pytest.param(entry(last_success="noon"), id="a foreign date"),
        pytest.param(entry(last_success=1234567890), id="a date in seconds"),
        pytest.param(entry(last_success="0001-01-01T00:00:00+14:00"), id="a date before time"),
        pytest.param(entry(failures="many"), id="failures in words"),
        pytest.param(entry(failures=[1]), id="failures in a list"),
        pytest.param(entry(failures=float("inf")), id="failures without end"),
        pytest.param(b"[" * 100_000, id="too deep"),
    ],
)
def test_a_state_file_that_is_broken_costs_one_early_run_and_a_warning(
    diary: Diary, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    diary.state.write_bytes(content)

    assert diary.open() == {}
    assert diary.reopen() == {}

    [warning] = warnings(caplog)
    assert str(diary.state) in warning


def test_a_time_without_an_offset_is_local_and_one_of_another_zone_the_same_moment(
    diary: Diary,
) -> None:
    local = NOON.astimezone().replace(tzinfo=None)
    elsewhere = NOON.astimezone(timezone(timedelta(hours=9)))
    for moment in (local, elsewhere):
        diary.state.write_bytes(entry(last_success=moment.isoformat()))

        assert load_state(diary.state)["snapshot db"].last_success == NOON
