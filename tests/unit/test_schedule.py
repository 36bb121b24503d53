"""The schedule: the file of older versions, what people write into it, and changes that last."""

import itertools
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buttervolume.errors import (
    BadJob,
    BadName,
    BadOption,
    BadPattern,
    ButtervolumeError,
    NoSuchJob,
    OperationFailed,
)
from buttervolume.jobs.actions import Purge, Replicate, Snapshot, Synchronize, parse_action
from buttervolume.jobs.options import split_jobs
from buttervolume.jobs.schedule import Job, Schedule, parse_row, resolve
from buttervolume.jobs.when import Every
from buttervolume.store.retention import parse_pattern

SETTLED = 0.15
"""Seconds after which a file's time says whether it has changed."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "schedule.csv"


@pytest.fixture
def disabled(file: Path) -> Path:
    return file.with_name("schedule.csv.disabled")


@pytest.fixture
def schedule(file: Path) -> Schedule:
    return Schedule(file)


Row = tuple[str, str, int | str, bool]


def rows(schedule: Schedule) -> list[Row]:
    """The jobs without what their actions mean."""
    return [
        (
            job.volume,
            job.action,
            job.when.minutes if isinstance(job.when, Every) else str(job.when),
            job.active,
        )
        for job in schedule.read().jobs
    ]


def refuse(schedule: Schedule, volume: str, action: str, timer: str) -> ButtervolumeError:
    """The error of a change, which must be one line and must have changed nothing."""
    before = schedule.path.read_bytes() if schedule.path.exists() else None
    with pytest.raises(ButtervolumeError) as refusal:
        schedule.apply(volume, action, timer)
    assert (schedule.path.read_bytes() if schedule.path.exists() else None) == before
    return refusal.value


# Reading


def test_the_schedule_of_an_original_installation_is_understood(
    file: Path, schedule: Schedule
) -> None:
    # given files as versions 2 and 3 wrote them, with csv's own line ends
    file.write_bytes(
        b"db,snapshot,60\r\n"
        b"db,replicate:host2,1440,True\r\n"
        b"db,purge:4h:1d:2w:2y,1440,False\r\n"
        b'www,"synchronize:host1,host2.example.org",5,\r\n'
    )

    assert rows(schedule) == [
        ("db", "snapshot", 60, True),
        ("db", "replicate:host2", 1440, True),
        ("db", "purge:4h:1d:2w:2y", 1440, False),
        ("www", "synchronize:host1,host2.example.org", 5, True),
    ]


def test_every_job_knows_what_it_is_to_do(file: Path, schedule: Schedule) -> None:
    file.write_text(
        'db,snapshot,1\ndb,replicate:h,1\ndb,purge:4h:1d,1\ndb,"synchronize:a,b",1\n',
        encoding="utf-8",
    )

    assert [job.task for job in schedule.read().jobs] == [
        Snapshot(),
        Replicate("h"),
        Purge(parse_pattern("4h:1d")),
        Synchronize(("a", "b")),
    ]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("db,snapshot,60", ("db", "snapshot", 60, True)),
        ("db,snapshot, 60 ", ("db", "snapshot", 60, True)),
        ("db,snapshot,060", ("db", "snapshot", 60, True)),
        ("db,snapshot,60,", ("db", "snapshot", 60, True)),
        ("db,snapshot,60, True", ("db", "snapshot", 60, True)),
        ("db,snapshot,60,False ", ("db", "snapshot", 60, False)),
        ('"db","snapshot","60","False"', ("db", "snapshot", 60, False)),
        ("größe 1,snapshot,60", ("größe 1", "snapshot", 60, True)),
        ('"a,""b""",snapshot,60', ('a,"b"', "snapshot", 60, True)),
    ],
)
def test_what_people_and_old_versions_write_is_understood(
    file: Path, schedule: Schedule, row: str, expected: Row
) -> None:
    file.write_text(row, encoding="utf-8")

    assert rows(schedule) == [expected]


UNREADABLE = [
    b"db",
    b"db,snapshot",
    b"db,snapshot,60,False,",
    b"db,synchronize:a,b,60",
    b"db,snapshot,60,maybe",
    b"db,snapshot,0",
    b"db,snapshot,-5",
    b"db,snapshot,1.5",
    b"db,snapshot,",
    b"db,snapshot,soon",
    "db,snapshot,٣".encode(),
    b"db,snapshot," + b"9" * 5000,
    b"db,snap,60",
    b"db,,60",
    b",snapshot,60",
    b"../db,snapshot,60",
    b"a/b,snapshot,60",
    b"db,purge:4h/x,60",
    b"db,replicate:,60",
    b"db,replicate:-oProxyCommand=x,60",
    b'db,"synchronize:a,",60',
    b'db,"snapshot,60',
    b'db,snapshot,"60',
    b'"db"s,snapshot,60',
    b"# db,snapshot,60 is for later",
    b"\xff\xfe,snapshot,60",
    b"db\0,snapshot,60",
]


@pytest.mark.parametrize("row", UNREADABLE)
def test_a_row_that_cannot_be_read_is_skipped_and_logged_once_and_the_others_are_read(
    file: Path, schedule: Schedule, row: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    # given an odd row between two good ones
    file.write_bytes(b"a,snapshot,1\n" + row + b"\nb,snapshot,2\n")

    # when the file is read, changed, and read again
    assert rows(schedule) == [("a", "snapshot", 1, True), ("b", "snapshot", 2, True)]
    schedule.apply("c", "snapshot", "3")
    schedule.apply("a", "snapshot", "delete")
    assert rows(schedule) == [("b", "snapshot", 2, True), ("c", "snapshot", 3, True)]

    # then it is in its place, byte for byte
    assert file.read_bytes() == row + b"\nb,snapshot,2\nc,snapshot,3\n"
    # and is logged once, in one line that any log can hold
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(file) in record.getMessage()
    assert record.getMessage().isprintable()


def test_two_odd_rows_are_two_complaints_and_a_new_daemon_complains_again(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file.write_text("odd\neven,snapshot\nodd\n", encoding="utf-8")

    assert rows(Schedule(file)) == []
    assert len(caplog.records) == 2
    assert rows(Schedule(file)) == []
    assert len(caplog.records) == 4


def test_one_quote_too_many_costs_its_own_row_only(file: Path, schedule: Schedule) -> None:
    file.write_text('"db,snapshot,60\nwww,snapshot,5\n', encoding="utf-8")

    assert rows(schedule) == [("www", "snapshot", 5, True)]


def test_blank_lines_and_the_ends_of_lines_stay_as_they_are(
    file: Path, schedule: Schedule, caplog: pytest.LogCaptureFixture
) -> None:
    file.write_bytes(b"\n  \r\nodd\r\n\ndb,snapshot,60\n\n")

    schedule.apply("db", "snapshot", "pause")

    assert file.read_bytes() == b"\n  \r\nodd\r\n\ndb,snapshot,60,False\n\n"
    assert len(caplog.records) == 1, "of the odd row"


def test_without_a_file_there_are_no_jobs(schedule: Schedule, file: Path) -> None:
    assert rows(schedule) == []
    assert not schedule.read().paused
    assert not file.exists(), "reading makes nothing"


def test_a_file_that_cannot_be_read_at_all_is_an_error_and_not_an_empty_schedule(
    file: Path, schedule: Schedule
) -> None:
    file.mkdir()

    with pytest.raises(OperationFailed, match="cannot read the schedule"):
        schedule.read()
    with pytest.raises(OperationFailed):
        schedule.apply("db", "snapshot", "5")


def test_what_somebody_edits_counts_even_within_one_tick_of_the_clock(
    file: Path, schedule: Schedule
) -> None:
    tick = time.time_ns()
    for number in (10, 20):
        # given an edit that changes neither the size nor the time of the file
        file.write_text(f"db,snapshot,{number}\n", encoding="utf-8")
        os.utime(file, ns=(tick, tick))

        assert rows(schedule) == [("db", "snapshot", number, True)]


def test_an_edit_counts_that_comes_long_after_the_last_reading(
    file: Path, schedule: Schedule
) -> None:
    file.write_text("db,snapshot,10\n", encoding="utf-8")
    time.sleep(SETTLED)
    assert rows(schedule) == [("db", "snapshot", 10, True)]

    file.write_text("db,snapshot,20\n", encoding="utf-8")

    assert rows(schedule) == [("db", "snapshot", 20, True)]


def test_what_has_not_changed_is_not_parsed_again(
    file: Path, schedule: Schedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = "".join(f"volume{n},purge:4h:1d:2w:2y,60\n" for n in range(50))
    file.write_text(content, encoding="utf-8")
    before = schedule.read()
    parse = Mock(wraps=schedule._parse)
    monkeypatch.setattr(schedule, "_parse", parse)

    assert schedule.read() is before
    file.write_text(f"{content}db,snapshot,60\n", encoding="utf-8")

    assert [job.volume for job in schedule.read().jobs][-2:] == ["volume49", "db"]
    parse.assert_called_once_with("db,snapshot,60\n")


def test_a_mark_of_the_byte_order_is_no_part_of_the_first_volume(
    file: Path, schedule: Schedule
) -> None:
    file.write_text("db,snapshot,60\n", encoding="utf-8-sig")

    assert rows(schedule) == [("db", "snapshot", 60, True)]

    schedule.apply("db", "snapshot", "30")

    assert file.read_bytes() == b"db,snapshot,30\n"


# Changes


def test_a_new_job_is_appended_with_three_columns(file: Path, schedule: Schedule) -> None:
    schedule.apply("db", "snapshot", "60")
    schedule.apply("db", "synchronize:a,b", "5")

    assert file.read_text(encoding="utf-8") == 'db,snapshot,60\ndb,"synchronize:a,b",5\n'


def test_a_job_for_a_volume_of_any_name_that_may_exist_comes_back(schedule: Schedule) -> None:
    odd = ["my volume", 'a"b', "a,b", "-x", "#x", " x", "größe", "'", '"quoted"']
    for volume in odd:
        schedule.apply(volume, "snapshot", "60")

    assert [job.volume for job in Schedule(schedule.path).read().jobs] == odd


def test_the_directory_of_the_schedule_is_made_when_it_is_needed(tmp_path: Path) -> None:
    schedule = Schedule(tmp_path / "etc" / "buttervolume" / "schedule.csv")

    schedule.apply("db", "snapshot", "60")

    assert rows(schedule) == [("db", "snapshot", 60, True)]


def test_a_new_period_replaces_the_row_in_its_place_and_makes_it_active(
    file: Path, schedule: Schedule
) -> None:
    file.write_text("a,snapshot,1\ndb,snapshot,60,False\nz,snapshot,1\n", encoding="utf-8")

    schedule.apply("db", "snapshot", "30")

    assert file.read_text(encoding="utf-8") == "a,snapshot,1\ndb,snapshot,30\nz,snapshot,1\n"


@pytest.mark.parametrize("timer", ["0", "delete"])
def test_zero_and_delete_remove_the_one_job(file: Path, schedule: Schedule, timer: str) -> None:
    file.write_text("db,snapshot,60\ndb,purge:4h:1d,60\nwww,snapshot,60\n", encoding="utf-8")

    schedule.apply("db", "snapshot", timer)

    assert file.read_text(encoding="utf-8") == "db,purge:4h:1d,60\nwww,snapshot,60\n"


def test_the_last_job_can_be_removed(file: Path, schedule: Schedule) -> None:
    schedule.apply("db", "snapshot", "60")
    schedule.apply("db", "snapshot", "delete")

    assert rows(schedule) == []
    assert file.read_bytes() == b""


def test_pause_and_resume_switch_the_one_job_and_may_be_repeated(
    file: Path, schedule: Schedule
) -> None:
    file.write_text("db,snapshot,60\nwww,snapshot,60\n", encoding="utf-8")

    for _ in range(2):
        schedule.apply("db", "snapshot", "pause")
        assert file.read_text(encoding="utf-8") == "db,snapshot,60,False\nwww,snapshot,60\n"
    for _ in range(2):
        schedule.apply("db", "snapshot", "resume")
        assert file.read_text(encoding="utf-8") == "db,snapshot,60\nwww,snapshot,60\n"


@pytest.mark.parametrize(
    ("volume", "action"), [("db", "purge:4h:1d"), ("www", "snapshot"), ("db", "a\nb")]
)
@pytest.mark.parametrize("timer", ["pause", "resume"])
def test_a_job_that_is_not_there_cannot_be_switched(
    file: Path, schedule: Schedule, volume: str, action: str, timer: str
) -> None:
    file.write_text("db,snapshot,60\n", encoding="utf-8")

    error = refuse(schedule, volume, action, timer)

    assert isinstance(error, NoSuchJob)
    assert volume in str(error)
    assert repr(action) in str(error)


@pytest.mark.parametrize(("volume", "action"), [("db", "purge:4h:1d"), ("www", "snapshot")])
@pytest.mark.parametrize("timer", ["0", "delete"])
def test_to_remove_a_job_that_is_not_there_is_a_success_with_a_warning(
    file: Path, schedule: Schedule, volume: str, action: str, timer: str
) -> None:
    file.write_text("db,snapshot,60\n", encoding="utf-8")

    changed = schedule.apply(volume, action, timer)

    assert volume in changed.warning
    assert repr(action) in changed.warning
    assert changed.job is None
    assert file.read_text(encoding="utf-8") == "db,snapshot,60\n"


def test_several_rows_of_one_job_become_one_by_the_next_change(
    file: Path, schedule: Schedule
) -> None:
    twice = "db,snapshot,60\nwww,snapshot,5\ndb,snapshot,30\n"

    file.write_text(twice, encoding="utf-8")
    schedule.apply("db", "snapshot", "10")
    assert file.read_text(encoding="utf-8") == "db,snapshot,10\nwww,snapshot,5\n"

    file.write_text(twice, encoding="utf-8")
    schedule.apply("db", "snapshot", "delete")
    assert file.read_text(encoding="utf-8") == "www,snapshot,5\n"

    file.write_text(twice, encoding="utf-8")
    schedule.apply("db", "snapshot", "pause")
    assert file.read_text(encoding="utf-8") == "db,snapshot,60,False\nwww,snapshot,5\n"


def test_a_last_line_without_an_end_is_not_glued_to_a_new_job(
    file: Path, schedule: Schedule
) -> None:
    for last in ("www,snapshot,5", "odd"):
        file.write_text(last, encoding="utf-8")

        schedule.apply("db", "snapshot", "60")

        assert file.read_text(encoding="utf-8") == f"{last}\ndb,snapshot,60\n"


def test_the_file_keeps_its_permissions_and_stays_the_link_that_it_was(
    tmp_path: Path, file: Path, schedule: Schedule
) -> None:
    target = tmp_path / "elsewhere.csv"
    target.write_text("db,snapshot,60\n", encoding="utf-8")
    target.chmod(0o600)
    file.symlink_to(target)

    schedule.apply("db", "snapshot", "30")

    assert file.is_symlink()
    assert target.read_text(encoding="utf-8") == "db,snapshot,30\n"
    assert target.stat().st_mode & 0o777 == 0o600


# Rows that nobody can read


@pytest.mark.parametrize(
    ("row", "volume", "action", "paused", "resumed"),
    [
        ("nave,replicat:beta,60", "nave", "replicat:beta", "nave,replicat:beta,60,False", None),
        ("porch,snapshot,soon", "porch", "snapshot", "porch,snapshot,soon,False", None),
        ("db,snapshot", "db", "snapshot", "db,snapshot,,False", "db,snapshot,"),
        ("../db,snapshot,60", "../db", "snapshot", "../db,snapshot,60,False", None),
        ("db,snap,6,True,x", "db", "snap", "db,snap,6,False,x", "db,snap,6,True,x"),
        ('db,"snapshot,60', "db", '"snapshot', 'db,"""snapshot",60,False', 'db,"""snapshot",60'),
        (" db ,snap,60", " db ", "snap", " db ,snap,60,False", None),
        ("# snapshots", "# snapshots", "", "# snapshots,,,False", "# snapshots,,"),
        ('"', '"', "", '"""",,,False', '"""",,'),
    ],
)
def test_a_row_that_nobody_can_read_is_switched_and_removed_by_its_first_two_columns(
    file: Path,
    schedule: Schedule,
    row: str,
    volume: str,
    action: str,
    paused: str,
    resumed: str | None,
) -> None:
    before, after = "a,snapshot,1\r\n", "#x\nz,snapshot,2"
    file.write_text(f"{before}{row}\n{after}", encoding="utf-8", newline="")
    [shown, _] = [(line.shown, line.error) for line in schedule.read().unreadable]
    assert shown[0] == row
    assert shown[1]

    schedule.apply(volume, action, "pause")
    assert file.read_bytes().decode() == f"{before}{paused}\n{after}"

    [again, _] = schedule.read().unreadable
    name, kind = again.columns[:2]
    schedule.apply(name, kind, "resume")
    assert file.read_bytes().decode() == f"{before}{row if resumed is None else resumed}\n{after}"

    [again, _] = schedule.read().unreadable
    name, kind = again.columns[:2]
    schedule.apply(name, kind, "delete")
    assert file.read_bytes().decode() == before + after


def test_a_row_of_bytes_that_are_no_text_is_removed_by_what_is_shown_of_it(
    file: Path, schedule: Schedule
) -> None:
    file.write_bytes(b"gr\xf6\xdfe,snapshot,60\n")
    [line] = schedule.read().unreadable
    assert line.shown == r"gr\xf6\xdfe,snapshot,60"

    schedule.apply(r"gr\xf6\xdfe", "snapshot", "delete")

    assert file.read_bytes() == b""


def test_a_job_comes_before_a_row_that_nobody_can_read(file: Path, schedule: Schedule) -> None:
    file.write_text("db,snapshot,soon\ndb,snapshot,60\n", encoding="utf-8")

    schedule.apply("db", "snapshot", "delete")
    assert file.read_text(encoding="utf-8") == "db,snapshot,soon\n"
    schedule.apply("db", "snapshot", "delete")
    assert file.read_bytes() == b""


def test_a_mark_of_utf_8_that_comes_to_stand_first_stays_with_its_row(
    schedule: Schedule, file: Path
) -> None:
    file.write_bytes(b"db,snapshot,60\n\xef\xbb\xbfodd\n")

    schedule.apply("db", "snapshot", "delete")

    assert [line.text for line in Schedule(file).read().lines] == ["\ufeffodd\n"]


PIECES = st.sampled_from(
    (
        *("db", "web", "a*", "snapshot", "purge:2h", "purge:1h/2:1d", "replicate:h", "60", "False"),
        *("True", "0 3 * * *", '"', '""', ",", ",", ",", ",", "\n", "\n", "\r\n", "\r", " ", "#"),
        *("\0", "é", "\ufeff", "\u2028", "\x0c", "@", "/", "../", "1e9", "9" * 30),
    )
)
TEXTS = st.lists(PIECES, max_size=40).map("".join).map(str.encode) | st.binary(max_size=60)


@given(content=TEXTS, data=st.data())
def test_whatever_is_in_the_file_a_change_leaves_all_other_lines_byte_by_byte(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, data: st.DataObject
) -> None:
    file = tmp_path_factory.mktemp("fuzz") / "schedule.csv"
    file.write_bytes(content)
    schedule = Schedule(file)
    before = schedule.read()
    assert "".join(line.text for line in before.lines).encode(errors="surrogateescape") == (
        content.removeprefix("\ufeff".encode())
    )

    # one that is there is removed, by its name or by its text; or a new one comes
    known = [(job.volume, job.action) for job in before.jobs]
    texts_of_two = ([*row.columns, "", ""] for row in before.unreadable)
    known += [(columns[0], columns[1]) for columns in texts_of_two]
    volume, action = data.draw(st.sampled_from([*known, ("new", "snapshot")]))
    timer = data.draw(st.sampled_from(["delete", "pause", "resume", "7"]))
    with suppress(ButtervolumeError):
        schedule.apply(volume, action, timer)

    after = Schedule(file).read()
    gone = [line for line in before.lines if not line.job and not line.names(volume, action)]
    gone += [
        line
        for line in before.lines
        if line.job and (line.job.volume, line.job.action) != (volume, action)
    ]
    texts = [line.text for line in after.lines]
    for line in gone:
        assert line.text in texts or f"{line.text}\n" in texts
    for line in after.unreadable:
        assert line.shown.isascii() or line.shown.encode()
    assert len(resolve(after.jobs, ("abc", "db"))) <= 2 * len(after.jobs)


# Cron and patterns of volumes


def test_a_cron_expression_is_written_and_read_as_one_column(
    file: Path, schedule: Schedule
) -> None:
    schedule.apply("db", "snapshot", " 0  3,15 * * mon-fri ")

    assert file.read_text(encoding="utf-8") == 'db,snapshot,"0 3,15 * * mon-fri"\n'
    assert rows(Schedule(file)) == [("db", "snapshot", "0 3,15 * * mon-fri", True)]


def resolved(volumes: list[str], *rows: str) -> list[str]:
    """The jobs that rows stand for, as rows."""
    jobs = [parse_row(row.split(",")) for row in rows]
    found = resolve(jobs, tuple(sorted(volumes)))
    return sorted(
        f"{job.volume},{job.action},{job.when}" + ("" if job.active else ",False") for job in found
    )


def test_a_pattern_is_a_job_of_each_volume_that_it_matches() -> None:
    assert resolved(["db", "web", "web-1", "web-2", "wéb-3"], "web-*,snapshot,60") == [
        "web-1,snapshot,60",
        "web-2,snapshot,60",
    ]
    assert resolved(["a1b2c", "a1c", "abc"], "a*b*c,snapshot,5") == [
        "a1b2c,snapshot,5",
        "abc,snapshot,5",
    ]
    assert resolved(["x.y", "xzy"], "*.y,snapshot,5") == ["x.y,snapshot,5"], "a dot is a dot"
    assert resolved([], "*,snapshot,60", "db,snapshot,5") == ["db,snapshot,5"]


@pytest.mark.parametrize("off", ["", ",False"])
def test_the_more_specific_row_comes_first_paused_or_not(off: str) -> None:
    volumes = ["db", "web-1", "web-2"]
    everything = ["*,snapshot,60", "web-*,snapshot,30", f"web-1,snapshot,5{off}"]

    for rows in itertools.permutations(everything):
        assert resolved(volumes, *rows) == [
            "db,snapshot,60",
            f"web-1,snapshot,5{off}",
            "web-2,snapshot,30",
        ]


def test_a_pattern_of_many_stars_is_soon_told_from_a_name_that_nearly_matches() -> None:
    """Else nobody got an answer meanwhile. (In a process of its own, which can be given up.)"""
    program = """
from buttervolume.jobs.schedule import concerned
names = ("a" * 128, "a" * 127 + "b")
print(concerned("*a" * 60 + "*b", names) == [names[1]])
"""
    argv = [sys.executable, "-c", program]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout == "True\n"


def test_rows_of_other_kinds_of_action_and_of_the_same_pattern_stand_beside_each_other() -> None:
    rows = ["*,purge:1h:1d,60", "*,replicate:a,60", "*,replicate:b,60", "db,purge:2h:2d,60"]

    assert resolved(["db", "web"], *rows) == [
        "db,purge:2h:2d,60",
        *(f"{v},replicate:{h},60" for v in ("db",) for h in "ab"),
        "web,purge:1h:1d,60",
        *(f"{v},replicate:{h},60" for v in ("web",) for h in "ab"),
    ]


def test_of_two_patterns_as_long_the_first_counts() -> None:
    assert resolved(["a-b"], "a-*,snapshot,1", "*-b,snapshot,2") == ["a-b,snapshot,1"]
    assert resolved(["a-b"], "*-b,snapshot,2", "a-*,snapshot,1") == ["a-b,snapshot,2"]
    other_kind = "*-b,purge:1h:1d,3"
    assert resolved(["a-b"], other_kind, "a-*,snapshot,1", "*-b,snapshot,2") == [
        "a-b,purge:1h:1d,3",
        "a-b,snapshot,1",
    ]


NAMES = st.text("ab-", min_size=1, max_size=5)
ROWS = st.lists(
    st.tuples(
        st.text("ab-*", min_size=1, max_size=5),
        st.sampled_from(["snapshot", "purge:1h:1d", "replicate:x", "replicate:y"]),
        st.integers(1, 99),
        st.sampled_from(["", "False"]),
    ),
    max_size=8,
)


@given(volumes=st.sets(NAMES, max_size=8), rows=ROWS)
def test_each_volume_gets_the_rows_that_a_slow_search_finds(
    volumes: set[str], rows: list[tuple[str, str, int, str]]
) -> None:
    jobs = [parse_row([volume, action, str(n), off]) for volume, action, n, off in rows]
    expected: dict[str, Job] = {}
    for volume in volumes | {job.volume for job in jobs if not job.is_pattern}:
        for kind in {job.task.kind for job in jobs}:
            of_kind = [job for job in jobs if job.task.kind == kind]
            exact = [job for job in of_kind if job.volume == volume]
            matching = [
                job
                for job in of_kind
                if job.is_pattern and volume in volumes and fnmatchcase(volume, job.volume)
            ]
            longest = max(matching, key=lambda job: len(job.volume), default=None)
            chosen = exact or [j for j in matching if longest and j.volume == longest.volume]
            for job in chosen:
                one = replace(job, volume=volume)
                expected.setdefault(one.key, one)

    found = resolve(jobs, tuple(sorted(volumes)))

    assert {job.key: job for job in found} == expected
    assert len(found) == len(expected)


def test_5000_rows_over_10000_volumes_are_resolved() -> None:
    volumes = tuple(sorted(f"customer{n % 2500}-{n}" for n in range(10_000)))
    rows = [parse_row([f"customer{n}-*", "snapshot", "60"]) for n in range(2500)]
    rows += [parse_row([f"customer{n}-{n}", "purge:1h:1d", "60"]) for n in range(2500)]

    found = resolve(rows, volumes)

    assert len(found) == 12_500


# Jobs that come with a volume


def test_jobs_are_added_together_where_they_are_missing(file: Path, schedule: Schedule) -> None:
    file.write_text("db,snapshot,5,False", encoding="utf-8")
    jobs, others = split_jobs(
        "db",
        {
            "snapshot": "60",
            "purge:4h:1d": "0 3 * * *",
            "replicate:backup": " 120 ",
            "synchronize:a,b": "",
            "copyonwrite": "true",
            "snapshots": "60",
        },
    )
    assert others == {"copyonwrite": "true", "snapshots": "60"}

    with schedule.adding(jobs):
        pass

    assert file.read_text(encoding="utf-8") == (
        "db,snapshot,5,False\ndb,purge:4h:1d,0 3 * * *\ndb,replicate:backup,120\n"
    )


def test_jobs_that_were_added_for_something_that_failed_go_again(
    file: Path, schedule: Schedule
) -> None:
    content = "odd\r\ndb,snapshot,5,False\n"
    file.write_text(content, encoding="utf-8", newline="")
    jobs, _ = split_jobs("db", {"snapshot": "60", "purge:4h:1d": "60"})

    def fail() -> None:
        with schedule.adding(jobs):
            assert len(rows(schedule)) == 2
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()

    assert file.read_bytes().decode() == content


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("snapshot", "0"),
        ("snapshot", "delete"),
        ("snapshot", "now"),
        ("snapshot", "true"),
        ("snapshot", 60),
        ("snapshot:x", "60"),
        ("purge", "60"),
        ("purge:x", "60"),
        ("replicate:-x", "60"),
        ("replicate:a", "61 * * * *"),
        ("synchronize:a,a", "60"),
        ("snapshot:x", ""),
        ("purge:x", ""),
        ("replicate:", ""),
    ],
)
def test_an_option_that_is_no_good_job_is_refused(key: str, value: object) -> None:
    with pytest.raises(BadOption, match=re.escape(key)) as refusal:
        split_jobs("db", {key: value})

    assert str(refusal.value).isprintable()


# What is refused


BAD_ACTIONS = [
    *("", "snap", "Snapshot", "snapshot:", "snapshot:now", " snapshot", "snapshot\n"),
    *("purge", "purge:", "purge:4h/0", "purge:4h:x", "purge:0h:1d"),
    *("mirror", "mirror:", "mirror:-x", "mirror:a,b"),
    *("replicate", "replicate:", "replicate:a b", "replicate:-x", "replicate:a,b", "replicate:é"),
    *("synchronize", "synchronize:", "synchronize:a,", "synchronize:,a", "synchronize:a, b"),
    *("synchronize:a,a", "synchronize:a;b", "replicate:a\n"),
]


@pytest.mark.parametrize("timer", ["60", "delete"])
@pytest.mark.parametrize("action", BAD_ACTIONS)
def test_a_bad_action_is_refused_and_changes_nothing(
    file: Path, schedule: Schedule, action: str, timer: str
) -> None:
    file.write_text("db,snapshot,60\n", encoding="utf-8")

    error = refuse(schedule, "db", action, timer)

    assert isinstance(error, BadJob | BadName | BadPattern)
    assert str(error).isprintable()


def test_a_bad_action_is_told_which_ones_there_are() -> None:
    with pytest.raises(BadJob, match=r"'snap'.*snapshot.*purge:.*replicate:.*synchronize:"):
        parse_action("snap")


@pytest.mark.parametrize(
    "timer",
    [
        *("", " ", "00", "-1", "+1", "1.5", "1e3", "1_0", "0x10", " 5", "5\n", "5m"),
        *("٣", "²", "５", "Delete", "PAUSE", "paused", "9" * 12, "9" * 5000),
    ],
)
def test_bad_minutes_are_refused_and_change_nothing(
    file: Path, schedule: Schedule, timer: str
) -> None:
    file.write_text("db,snapshot,60\n", encoding="utf-8")

    error = refuse(schedule, "db", "snapshot", timer)

    assert isinstance(error, BadJob)
    assert "whole number" in str(error)
    assert str(error).isprintable()


@pytest.mark.parametrize("volume", ["", ".", "..", ".hidden", "a/b", "a@b", "a\nb", "x" * 256])
@pytest.mark.parametrize("timer", ["60", "delete", "pause"])
def test_a_volume_of_a_bad_name_is_refused(
    file: Path, schedule: Schedule, volume: str, timer: str
) -> None:
    file.write_text("db,snapshot,60\n", encoding="utf-8")

    assert isinstance(refuse(schedule, volume, "snapshot", timer), BadName)


def test_a_job_with_the_longest_names_is_a_job(schedule: Schedule) -> None:
    volume, host = "v" * 255, "h" * 98

    schedule.apply(volume, f"replicate:{host}", "1")

    assert rows(schedule) == [(volume, f"replicate:{host}", 1, True)]


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    schedule = Schedule(tmp_path / "file" / "schedule.csv")

    with pytest.raises(OperationFailed, match=r"the schedule"):
        schedule.apply("db", "snapshot", "60")


# All at once


def test_pausing_renames_the_file_and_resuming_renames_it_back(
    file: Path, disabled: Path, schedule: Schedule
) -> None:
    file.write_text("odd\ndb,snapshot,60\nwww,snapshot,5,False\n", encoding="utf-8")
    before, jobs = file.read_bytes(), rows(schedule)

    for _ in range(2):  # again does no harm
        schedule.pause_all()
        assert not file.exists()
        assert disabled.read_bytes() == before
        assert (rows(schedule), schedule.read().paused) == (jobs, True)
    for _ in range(2):
        schedule.resume_all()
        assert not disabled.exists()
        assert file.read_bytes() == before
        assert (rows(schedule), schedule.read().paused) == (jobs, False)


def test_pausing_without_a_file_makes_an_empty_one_of_the_other_name(tmp_path: Path) -> None:
    schedule = Schedule(tmp_path / "etc" / "schedule.csv")

    schedule.pause_all()

    assert schedule.read().paused
    assert [path.name for path in (tmp_path / "etc").iterdir()] == ["schedule.csv.disabled"]
    assert (tmp_path / "etc" / "schedule.csv.disabled").read_bytes() == b""


def test_resuming_what_was_never_paused_does_nothing(
    tmp_path: Path, file: Path, schedule: Schedule
) -> None:
    schedule.resume_all()

    assert list(tmp_path.iterdir()) == []
    assert not schedule.read().paused


def test_what_somebody_pauses_by_hand_is_paused(
    file: Path, disabled: Path, schedule: Schedule
) -> None:
    file.write_text("db,snapshot,60\n", encoding="utf-8")
    time.sleep(SETTLED)
    assert not schedule.read().paused

    file.rename(disabled)

    assert schedule.read().paused
    assert rows(schedule) == [("db", "snapshot", 60, True)]

    disabled.rename(file)

    assert not schedule.read().paused


def test_changes_while_all_is_paused_go_to_the_paused_file(
    file: Path, disabled: Path, schedule: Schedule
) -> None:
    file.write_text("db,snapshot,60\nwww,snapshot,60\n", encoding="utf-8")
    schedule.pause_all()

    schedule.apply("db", "snapshot", "30")
    schedule.apply("www", "snapshot", "pause")
    schedule.apply("new", "snapshot", "5")

    assert not file.exists()
    assert schedule.read().paused
    expected = "db,snapshot,30\nwww,snapshot,60,False\nnew,snapshot,5\n"
    assert disabled.read_text(encoding="utf-8") == expected


@pytest.mark.parametrize("look", range(4))
def test_a_rename_by_hand_in_the_middle_of_a_change_loses_nothing(
    file: Path,
    disabled: Path,
    schedule: Schedule,
    look: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # given somebody who pauses by hand just before one of the looks that a change takes
    file.write_text("db,snapshot,60\nwww,snapshot,60\n", encoding="utf-8")
    looks = itertools.count()

    def watch(event: Callable[..., object]) -> Callable[..., object]:
        def watched(path: Path, **options: object) -> object:
            if next(looks) == look:
                file.rename(disabled)
            return event(path, **options)

        return watched

    for name in ("exists", "stat", "read_bytes"):
        monkeypatch.setattr(Path, name, watch(getattr(Path, name)))

    schedule.apply("new", "snapshot", "5")
    monkeypatch.undo()

    left = [path.read_text(encoding="utf-8") for path in (file, disabled) if path.exists()]
    assert any(text.startswith("db,snapshot,60\nwww,snapshot,60\n") for text in left)
    assert any("new,snapshot,5\n" in text for text in left)


def test_two_files_that_somebody_left_are_complained_of_once_and_neither_is_lost(
    file: Path, disabled: Path, schedule: Schedule, caplog: pytest.LogCaptureFixture
) -> None:
    # given a schedule that was paused, and another that was put in its place by hand
    disabled.write_text("db,snapshot,60\n", encoding="utf-8")
    file.write_text("www,snapshot,5\n", encoding="utf-8")

    # then all stays paused
    assert schedule.read().paused
    assert rows(schedule) == [("db", "snapshot", 60, True)]
    # and whatever is asked for, both contents stay
    schedule.pause_all()
    with pytest.raises(OperationFailed) as refusal:
        schedule.resume_all()
    assert str(file) in str(refusal.value)
    assert str(disabled) in str(refusal.value)
    assert "take one of them away" in str(refusal.value)
    schedule.apply("new", "snapshot", "1")
    assert file.read_text(encoding="utf-8") == "www,snapshot,5\n"
    assert disabled.read_text(encoding="utf-8") == "db,snapshot,60\nnew,snapshot,1\n"
    assert len(caplog.records) == 1
