"""The report: each kind of problem and each state of a job, from plain facts."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from buttervolume.jobs.memory import Memory, failed, succeeded
from buttervolume.jobs.schedule import Job, parse_row
from buttervolume.jobs.scheduler import Activity
from buttervolume.names import Snapshot, parse_snapshot
from buttervolume.report import answer
from buttervolume.report.status import (
    Facts,
    Kind,
    Problem,
    Report,
    State,
    index,
    local,
    report,
)
from buttervolume.system.space import Device, Space

NOON = datetime(2026, 5, 6, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
TIMER = timedelta(seconds=60)
GIB = 1 << 30
HEALTHY = Space(
    size=100 * GIB,
    free=50 * GIB,
    metadata_size=2 * GIB,
    metadata_used=GIB,
    read_only=False,
    devices=(Device("/dev/sda", dict.fromkeys(("write", "read", "corruption"), 0)),),
)


def job(row: str = "db,snapshot,60") -> Job:
    return parse_row(row.split(","))


def activity(memories: Mapping[str, Memory] | None = None, *running: str) -> Activity:
    return Activity(
        jobs={},
        memories=memories or {},
        running=dict.fromkeys(running, NOON - MINUTE),
        waiting=frozenset(),
        since_round=1.0,
    )


def snapshot(name: str, age: timedelta | None = HOUR) -> Snapshot:
    return Snapshot(parse_snapshot(name), None if age is None else local(NOON) - age)


FACTS = Facts(
    now=NOON,
    timer=TIMER,
    min_free=0.1,
    volumes={"db"},
    holdings={},
    partial=(),
    jobs=(),
    paused=False,
    unreadable=(),
    activity=activity(),
    transfers=(),
    space=HEALTHY,
)


def kinds(made: Report) -> list[tuple[str, str | None]]:
    return [(problem.kind, problem.volume) for problem in made.problems]


def with_job(memory: Memory, row: str = "db,snapshot,60", *running: str) -> Facts:
    each = job(row)
    return replace(FACTS, jobs=(each,), activity=activity({each.key: memory}, *running))


# Jobs

FAILED = failed(succeeded(Memory(), NOON - HOUR, "x"), NOON - MINUTE, "no route to host")


@pytest.mark.parametrize(
    ("state", "facts"),
    [
        pytest.param(State.NEW, with_job(Memory()), id="never ran"),
        pytest.param(State.OK, with_job(succeeded(Memory(), NOON - HOUR, "x")), id="ran"),
        pytest.param(State.FAILING, with_job(FAILED), id="failed"),
        pytest.param(State.FAILING, with_job(failed(Memory(), NOON, "x")), id="never succeeded"),
        pytest.param(
            State.RUNNING, with_job(Memory(), "db,snapshot,60", "snapshot db"), id="running"
        ),
        pytest.param(
            State.RUNNING, with_job(FAILED, "db,snapshot,60", "snapshot db"), id="tried again"
        ),
        pytest.param(State.PAUSED, with_job(FAILED, "db,snapshot,60,False"), id="paused"),
        pytest.param(State.PAUSED, replace(with_job(FAILED), paused=True), id="all are paused"),
        pytest.param(State.WAITING, with_job(FAILED, "web,snapshot,60"), id="no such volume"),
        pytest.param(
            State.OK,
            replace(
                with_job(succeeded(Memory(), NOON - HOUR, "x"), "web,purge:1h:1d,60"),
                holdings=index([snapshot("web@1")]),
            ),
            id="received snapshots are purged without a volume",
        ),
    ],
)
def test_the_state_of_a_job(state: State, facts: Facts) -> None:
    (status,) = report(facts).jobs

    assert status.state is state


def test_a_job_is_late_once_its_success_is_older_than_two_periods_and_a_round() -> None:
    limit = 2 * HOUR + TIMER
    on_time = report(with_job(succeeded(Memory(), NOON - limit, "x")))
    late = report(with_job(succeeded(Memory(), NOON - limit - timedelta(seconds=1), "x")))

    assert (on_time.jobs[0].state, kinds(on_time)) == (State.OK, [])
    assert (late.jobs[0].state, kinds(late)) == (State.LATE, [("late", "db")])
    assert late.problems[0].since == NOON - timedelta(seconds=61)


def test_a_job_that_runs_late_is_running_and_a_problem_all_the_same() -> None:
    made = report(
        with_job(succeeded(Memory(), NOON - 5 * HOUR, "x"), "db,snapshot,60", "snapshot db")
    )

    assert made.jobs[0].state is State.RUNNING
    assert kinds(made) == [("late", "db")]
    assert "running now" in made.problems[0].message


def test_a_job_that_fails_stays_a_problem_while_it_is_tried_again() -> None:
    tried = report(with_job(FAILED, "db,snapshot,60", "snapshot db"))
    long_ago = failed(succeeded(Memory(), NOON - 9 * HOUR, "x"), NOON - MINUTE, "no route")
    late = report(with_job(long_ago, "db,snapshot,60", "snapshot db"))

    assert tried.jobs[0].state is State.RUNNING
    assert kinds(tried) == kinds(late) == [("failing", "db")]
    paused = replace(with_job(FAILED, "db,snapshot,60", "snapshot db"), paused=True)
    assert kinds(report(paused)) == []


def test_a_failing_job_says_how_often_since_when_and_why() -> None:
    memory = succeeded(Memory(), NOON - 9 * HOUR, "x")
    for minutes in (30, 20, 10):
        memory = failed(memory, NOON - minutes * MINUTE, f"no route to host ({minutes})")

    (problem,) = report(with_job(memory)).problems

    assert (problem.kind, problem.volume, problem.action) == (Kind.FAILING, "db", "snapshot")
    assert problem.since == NOON - 30 * MINUTE
    assert problem.message == "has failed 3 times in a row: no route to host (10)"


@pytest.mark.parametrize("memory", [FAILED, succeeded(Memory(), NOON - 99 * HOUR, "x"), Memory()])
@pytest.mark.parametrize("row", ["db,snapshot,60,False", "gone,snapshot,60"])
def test_what_is_paused_or_waits_is_no_problem(memory: Memory, row: str) -> None:
    made = report(with_job(memory, row))

    assert not made.problems
    assert made.jobs[0].next_run is None


def test_a_job_whose_volume_is_another_hosts_now_waits_and_is_no_problem() -> None:
    facts = with_job(succeeded(Memory(), NOON - 99 * HOUR, "x"))
    elsewhere = replace(facts.activity, elsewhere=frozenset({"snapshot db"}))

    made = report(replace(facts, activity=elsewhere))

    assert not made.problems
    assert (made.jobs[0].state, made.jobs[0].next_run) == (State.WAITING, None)


@pytest.mark.parametrize(
    ("memory", "next_run"),
    [
        (succeeded(Memory(), NOON - 10 * MINUTE, "x"), NOON + 50 * MINUTE),
        (failed(Memory(), NOON, "x"), NOON + MINUTE),
        (Memory(), None),
    ],
)
def test_when_a_job_runs_next(memory: Memory, next_run: datetime | None) -> None:
    assert report(with_job(memory)).jobs[0].next_run == next_run


@pytest.mark.parametrize(
    ("rows", "protected"),
    [
        (["db,purge:1h:1d,60"], False),
        (["db,purge:1h:1d,60", "db,synchronize:a,60"], False),
        (["db,purge:1h:1d,60", "db,snapshot,60"], True),
        (["db,purge:1h:1d,60", "db,replicate:b,60"], True),
        (["db,purge:1h:1d,60", "web,snapshot,60"], False),
        (["web,purge:1h:1d,60"], True),
        ([], True),
    ],
)
def test_a_volume_with_jobs_needs_one_that_copies_it(rows: list[str], protected: bool) -> None:
    made = report(replace(FACTS, jobs=tuple(map(job, rows))))

    assert kinds(made) == ([] if protected else [("unprotected", "db")])


# The host


def test_a_healthy_host_has_no_problem() -> None:
    made = report(FACTS)

    assert kinds(made) == []
    assert made.is_alive


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("space", {"free": 10 * GIB - 1}),
        ("metadata", {"metadata_used": int(1.81 * GIB)}),
        ("read-only", {"read_only": True}),
        ("device", {"devices": (Device("/dev/sdb", {"write": 0, "corruption": 3}),)}),
    ],
)
def test_each_problem_of_the_filesystem(kind: str, changes: dict[str, object]) -> None:
    space = replace(HEALTHY, **changes)  # type: ignore[arg-type]

    assert kinds(report(replace(FACTS, space=space))) == [(kind, None)]


@pytest.mark.parametrize(
    "changes",
    [{"free": 10 * GIB}, {"metadata_used": int(1.79 * GIB)}, {"devices": ()}],
)
def test_what_is_just_enough_is_no_problem(changes: dict[str, object]) -> None:
    space = replace(HEALTHY, **changes)  # type: ignore[arg-type]

    assert kinds(report(replace(FACTS, space=space))) == []


def test_a_device_with_errors_says_which_and_how_many() -> None:
    device = Device("/dev/sdb", {"write": 2, "read": 0, "corruption": 3})
    made = report(replace(FACTS, space=replace(HEALTHY, devices=(device,))))

    assert "/dev/sdb: 2 write, 3 corruption errors" in made.problems[0].message


def test_a_filesystem_that_is_gone_is_the_problem_and_no_job_waits_for_its_volume() -> None:
    made = report(replace(with_job(FAILED), space=None, volumes=()))

    assert kinds(made) == [("unavailable", None), ("failing", "db")]
    assert not made.is_alive


def test_a_scheduler_that_makes_no_round_is_a_problem_and_a_slow_one_is_not() -> None:
    stuck = replace(FACTS, activity=replace(activity(), since_round=241.0))
    slow = replace(FACTS, activity=replace(activity(), since_round=239.0))

    assert kinds(report(stuck)) == [("scheduler", None)]
    assert not report(stuck).is_alive
    assert report(slow).is_alive


@pytest.mark.parametrize(("count", "expected"), [(3, []), (4, [("partial", None)])])
def test_more_than_three_partial_copies_are_a_problem(
    count: int, expected: list[tuple[str, None]]
) -> None:
    partial = [parse_snapshot(f"db@{number}") for number in range(count)]

    assert kinds(report(replace(FACTS, partial=partial))) == expected


def test_what_cannot_be_found_out_is_a_problem_and_hides_no_other() -> None:
    schedule = Problem(Kind.UNREADABLE, "cannot read the schedule: Is a directory")
    volumes = Problem(Kind.UNAVAILABLE, "cannot list the volumes: Input/output error")
    sick = replace(HEALTHY, read_only=True)
    facts = with_job(succeeded(Memory(), NOON - HOUR, "x"))

    made = report(replace(facts, failures=[schedule, volumes], space=sick, volumes=()))

    assert {schedule, volumes} < set(made.problems)
    assert (Kind.READ_ONLY, None) in kinds(made)
    assert not made.is_alive
    assert made.jobs[0].state is State.OK, "no job waits for a volume that nobody can see"
    assert report(replace(facts, failures=[schedule])).is_alive


def test_rows_that_cannot_be_read_are_a_problem_that_shows_the_first() -> None:
    (problem,) = report(replace(FACTS, unreadable=["db,snapsot,60", "x"])).problems

    assert problem.kind is Kind.UNREADABLE
    assert problem.message.startswith("2 rows")
    assert "db,snapsot,60" in problem.message


@pytest.mark.parametrize(
    ("ahead", "expected"), [(HOUR, []), (HOUR + timedelta(seconds=1), [("clock", "db")])]
)
def test_a_clock_far_behind_the_newest_snapshot_is_a_problem(
    ahead: timedelta, expected: list[tuple[str, str]]
) -> None:
    holdings = index([snapshot("db@1"), snapshot("db@2", -ahead)])

    assert kinds(report(replace(FACTS, holdings=holdings))) == expected


# Volumes and copies


def test_a_volume_tells_its_newest_snapshot_and_how_far_each_host_is_behind() -> None:
    held = index(
        [
            snapshot("db@1", 5 * HOUR),
            snapshot("db@1@far", 5 * HOUR),
            snapshot("db@2", 2 * HOUR),
            snapshot("db@2@near", 2 * HOUR),
        ]
    )

    (volume,) = report(replace(FACTS, holdings=held)).volumes

    assert (volume.holdings.count, str(volume.holdings.newest)) == (2, "db@2")
    assert [(copy.host, str(copy.snapshot), copy.lag) for copy in volume.holdings.copies] == [
        ("far", "db@1", 3 * HOUR),
        ("near", "db@2", timedelta()),
    ]


def test_copies_of_another_hosts_volume_are_listed_without_one_here() -> None:
    made = report(replace(FACTS, holdings=index([snapshot("db@1"), snapshot("web@1", None)])))

    assert [(v.name, v.exists, v.holdings.count) for v in made.volumes] == [
        ("db", True, 1),
        ("web", False, 1),
    ]
    assert answer.report(made)["Volumes"][1]["LastTaken"] is None


def test_a_report_of_one_volume_keeps_what_concerns_the_whole_host() -> None:
    facts = replace(
        FACTS,
        volumes={"db", "web"},
        jobs=(job("db,purge:1h:1d,60"), job("web,purge:1h:1d,60")),
        space=replace(HEALTHY, read_only=True),
    )

    made = report(facts).of_volume("web")

    assert kinds(made) == [("read-only", None), ("unprotected", "web")]
    assert [v.name for v in made.volumes] == ["web"]
    assert [each.job.volume for each in made.jobs] == ["web"]


def test_no_message_of_the_answer_is_long_or_commands_a_terminal() -> None:
    memory = failed(Memory(), NOON, "\x1b[2J\u202e\n" + "x" * 100_000)

    made = answer.report(report(with_job(memory)))

    for message in (made["Problems"][0]["Message"], made["Jobs"][0]["Message"]):
        assert message.isprintable()
        assert len(message) <= 2048
