"""The doctor's judgement of what it found."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from buttervolume.errors import CommandFailed
from buttervolume.report.doctor import (
    Finding,
    Level,
    docker,
    judge_clocks,
    judge_greeting,
    judge_host,
    judge_kernel,
    judge_options,
    judge_report,
    judge_rsync,
    parse_answers,
    version_of,
)
from buttervolume.report.status import Kind, Problem, report
from tests.unit.test_status import FACTS, HEALTHY

PATH = Path("/var/lib/buttervolume/snapshots")
FINE = {
    "user": "0",
    "kernel": "6.12.1-amd64",
    "time": "1000",
    "btrfs": "btrfs-progs v6.14",
    "rsync": "rsync  version 3.5.0  protocol version 32",
    "peer": "buttervolume 3.15.0",
    "filesystem": "btrfs",
    "top": "256",
    "arrived": "buttervolume",
}


def levels(findings: Iterable[Finding]) -> dict[str, Level]:
    return {finding.check: finding.level for finding in findings}


def test_a_host_that_is_fine_has_only_good_findings() -> None:
    findings = list(judge_host(FINE, PATH, 1000.4))

    assert {finding.level for finding in findings} == {Level.GOOD}
    assert not any(finding.advice for finding in findings)


@pytest.mark.parametrize(
    ("check", "level", "changed"),
    [
        ("key", Level.BAD, {"user": "1000"}),
        ("path", Level.BAD, {"filesystem": "ext2/ext3"}),
        ("path", Level.BAD, {"filesystem": ""}),
        ("mount", Level.BAD, {"top": "257"}),
        ("write", Level.BAD, {"arrived": ""}),
        ("btrfs", Level.BAD, {"btrfs": ""}),
        ("kernel", Level.BAD, {"kernel": "4.19.0"}),
        ("rsync", Level.BAD, {"rsync": ""}),
        ("rsync", Level.NOTE, {"rsync": "rsync  version 3.2.7  protocol version 31"}),
        ("buttervolume", Level.NOTE, {"peer": ""}),
        ("clock", Level.BAD, {"time": "1062"}),
        ("clock", Level.BAD, {"time": "938"}),
    ],
)
def test_each_trouble_of_another_host_is_found_and_comes_with_advice(
    check: str, level: Level, changed: dict[str, str]
) -> None:
    findings = list(judge_host(FINE | changed, PATH, 1000))

    assert levels(findings)[check] is level
    assert all(finding.advice for finding in findings if finding.level is not Level.GOOD)


@pytest.mark.parametrize("seconds", [-61, 61, 1e9])
def test_clocks_that_are_apart_are_bad(seconds: float) -> None:
    assert judge_clocks(seconds).level is Level.BAD
    assert judge_clocks(seconds / abs(seconds) * 59).level is Level.GOOD


def test_a_guard_is_told_with_what_it_allows() -> None:
    key, clock = judge_greeting({"buttervolume": 1, "verbs": ["look", "send"], "time": 5}, 5)

    assert (key.level, key.message) == (Level.GOOD, "it is accepted, and guarded: look, send")
    assert clock.level is Level.GOOD
    assert [f.check for f in judge_greeting({"verbs": 5, "time": "now"}, 5)] == ["key"]


@pytest.mark.parametrize("time", ["²", "٣", "9" * 400, "9" * 5000, "-1", "1e3", ""], ids=range(7))
def test_a_time_that_is_none_is_passed_over(time: str) -> None:
    found = list(judge_host(FINE | {"time": time}, PATH, 1000))

    assert set(levels(found).values()) == {Level.GOOD}
    assert "clock" not in levels(found)


@pytest.mark.parametrize("time", [10**400, -1, True, "now", None, [1], 1e300], ids=range(7))
def test_a_greeting_may_tell_any_time(time: object) -> None:
    assert [f.check for f in judge_greeting({"verbs": ["look"], "time": time}, 5)] == ["key"]


def test_a_version_may_have_any_length() -> None:
    version = f"rsync  version {'9' * 5000}.{'9' * 5000}"

    assert judge_rsync(version).level is Level.GOOD
    assert judge_kernel(version).level is Level.GOOD


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["rw", "noatime"], ["good"]),
        (["rw", "relatime"], ["note"]),
        (["ro", "noatime"], ["bad"]),
        (["rw", "noatime", "autodefrag"], ["note"]),
    ],
)
def test_mount_options(options: list[str], expected: list[str]) -> None:
    assert [finding.level.value for finding in judge_options(options)] == expected


def test_versions() -> None:
    assert version_of("btrfs-progs v6.2") == (6, 2)
    assert version_of("rsync  version 3.4.1  protocol version 32") == (3, 4, 1)
    assert version_of("none") == ()
    assert judge_kernel("5.10.0-8-amd64").level is Level.BAD
    assert judge_kernel("6.1.0-13-amd64").level is Level.GOOD
    assert judge_rsync(None).level is Level.BAD
    assert judge_rsync("").level is Level.NOTE


def test_every_kind_of_problem_of_the_report_has_advice() -> None:
    problems = tuple(Problem(kind, "x") for kind in Kind)

    findings = list(judge_report(replace(report(FACTS), problems=problems)))

    assert [finding.check for finding in findings] == [kind.value for kind in Kind]
    assert all(finding.level is Level.BAD and finding.advice for finding in findings)


def test_a_healthy_report_is_good() -> None:
    findings = list(judge_report(report(replace(FACTS, space=HEALTHY))))

    assert {finding.level for finding in findings} == {Level.GOOD}


def test_answers_are_taken_from_between_the_marks_alone() -> None:
    printed = (
        "Welcome\nuser 5\nbuttervolume-doctor\nuser 0\nkernel 6.1\nbuttervolume-doctor\nuser 7\n"
    )

    assert parse_answers(printed) == {"user": "0", "kernel": "6.1"}
    assert parse_answers("user 0\n") == {}


def test_docker_that_answers_nothing_is_a_note_and_a_driver_that_does_not_is_bad() -> None:
    def nothing(argv: Sequence[str]) -> str:
        raise CommandFailed(argv, 127, "docker: not found")

    def hangs(argv: Sequence[str]) -> str:
        if "volume" in argv:
            raise CommandFailed(argv, 124, "")
        return "28.1\n"

    def fine(argv: Sequence[str]) -> str:
        return "local a\nbtrfs db\nbtrfs web\n" if "volume" in argv else "28.1\n"

    assert levels(docker(nothing)) == {"docker": Level.NOTE}
    assert levels(docker(hangs)) == {"docker": Level.GOOD, "volumes": Level.BAD}
    assert docker(fine)[1].message == "Docker lists 2 of this driver"
    assert levels(docker(fine, ["db", "web"])) == {"docker": Level.GOOD, "volumes": Level.GOOD}


def test_a_local_volume_in_the_place_of_one_of_ours_is_bad() -> None:
    def listed(argv: Sequence[str]) -> str:
        return "local db\nlocal other\nbtrfs web\n" if "volume" in argv else "28.1\n"

    *_, found = docker(listed, ["db", "web"])

    assert (found.check, found.level) == ("volumes", Level.BAD)
    assert "local volumes instead: db" in found.message
    assert "docker volume rm" in found.advice
