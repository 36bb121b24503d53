"""What is told when, and what is kept to oneself."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from buttervolume.errors import OperationFailed
from buttervolume.report.notices import (
    BETWEEN_MESSAGES,
    SETTLE,
    Apprise,
    Message,
    Notifier,
    Send,
    compare,
    describe,
    key_of,
    word,
)
from buttervolume.report.status import Kind, Problem, Report, report
from tests.unit.test_status import FACTS

FAILING = Problem(Kind.FAILING, "has failed once: no route", "db", "replicate:backup")
LATE = Problem(Kind.LATE, "has not succeeded", "web", "snapshot")
SPACE = Problem(Kind.SPACE, "5% of the filesystem is free")


class Stage:
    """A notifier whose clock, report and post the test has in hand."""

    def __init__(self, directory: Path) -> None:
        self.problems: tuple[Problem, ...] = ()
        self.sent: list[Message] = []
        self.now = 0.0
        self.is_down = False
        self.memory = directory / "notices.json"
        self.sends: dict[str, Send] = {"1 mail": self.send}
        self.notifier = self.restart()

    def restart(self) -> Notifier:
        self.notifier = Notifier(self.report, self.sends, "host", self.memory, lambda: self.now)
        self.notifier._told = self.notifier._remember()
        return self.notifier

    def report(self) -> Report:
        return replace(report(FACTS), problems=self.problems)

    def send(self, message: Message) -> None:
        if self.is_down:
            raise OperationFailed("send a notice", "no network")
        self.sent.append(message)

    def look(self, *problems: Problem, after: float = BETWEEN_MESSAGES) -> list[str]:
        """Look once more: the lines that are sent."""
        self.problems, before = problems, len(self.sent)
        self.now += after
        self.notifier.look()
        return [line for message in self.sent[before:] for line in message.body.splitlines()]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def test_a_problem_is_told_once_when_it_begins_and_once_when_it_ends(stage: Stage) -> None:
    assert stage.look() == []
    assert stage.look(FAILING) == ["failing: db replicate:backup: has failed once: no route"]
    assert stage.look(replace(FAILING, message="has failed 2 times in a row: no route")) == []
    assert stage.look() == ["over: failing: db replicate:backup: has failed once: no route"]
    assert stage.look() == []
    assert [message.title for message in stage.sent] == [
        "host: 1 problem with volumes",
        "host: all is well again with the volumes",
    ]


def test_right_after_a_start_nothing_is_told(stage: Stage) -> None:
    assert stage.look(LATE, after=SETTLE - 1) == []
    assert stage.look(LATE, after=1) == [describe(LATE)]


def test_there_is_one_message_a_minute_and_it_has_all_the_news(stage: Stage) -> None:
    assert len(stage.look(SPACE)) == 1
    for _ in range(5):
        assert stage.look(SPACE, FAILING, after=10) == []
    assert stage.look(LATE, FAILING, after=10) == [
        describe(LATE),
        describe(FAILING),
        f"over: {describe(SPACE)}",
    ]


def test_what_comes_and_goes_within_the_minute_is_no_news(stage: Stage) -> None:
    stage.look(SPACE)
    stage.look(SPACE, FAILING, after=10)

    assert stage.look(SPACE) == []


def test_a_restart_tells_nothing_twice_and_nothing_too_little(stage: Stage) -> None:
    stage.look(FAILING, SPACE)
    stage.restart()

    assert stage.look(FAILING, LATE) == [describe(LATE), f"over: {describe(SPACE)}"]


@pytest.mark.parametrize("content", ["", "null", "[]", '{"told": []}', "\0", '{"told": {"a": 1}}'])
def test_a_memory_that_is_broken_costs_a_second_message_and_no_more(
    stage: Stage, content: str
) -> None:
    stage.look(FAILING)
    stage.memory.write_text(content)
    stage.restart()

    assert describe(FAILING) in stage.look(FAILING)
    stage.restart()
    assert stage.look(FAILING) == []


def test_what_could_not_be_sent_is_sent_later_and_complained_of_once(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.is_down = True
    for _ in range(3):
        stage.look(FAILING)
    assert len([r for r in caplog.records if "no network" in r.getMessage()]) == 1

    stage.is_down = False
    assert stage.look(FAILING, LATE) == [describe(FAILING), describe(LATE)]


def test_an_address_that_takes_nothing_makes_no_storm_at_the_others(stage: Stage) -> None:
    hooked: list[str] = []
    is_down = True

    def hook(message: Message) -> None:
        if is_down:
            raise OperationFailed("send a notice", "no hook")
        hooked.extend(message.body.splitlines())

    stage.sends["2 hook"] = hook
    stage.restart()

    assert stage.look(FAILING) == [describe(FAILING)]
    assert [stage.look(FAILING) for _ in range(3)] == [[], [], []]
    stage.restart()
    assert stage.look(FAILING, SPACE) == [describe(SPACE)]

    is_down = False
    assert stage.look(FAILING, SPACE) == []
    assert hooked == [describe(FAILING), describe(SPACE)], "what it missed"
    stage.restart()
    assert stage.look(SPACE) == [f"over: {describe(FAILING)}"]
    assert hooked[2:] == [f"over: {describe(FAILING)}"]


@given(count=st.integers(1, 200))
@example(count=5000)
def test_no_message_is_endless(count: int) -> None:
    problems = [Problem(Kind.FAILING, "ü" * 5000, f"v{n}", "snapshot") for n in range(count)]

    message = word(compare({}, problems), "host", count)

    *lines, last = message.body.splitlines()
    assert len(lines) <= 20
    assert len(message.body.encode()) <= 2048
    left_out = re.search(r"and ([0-9,]+) more: buttervolume status$", last)
    told = len(lines) + 1 if left_out is None else len(lines) + int(left_out[1].replace(",", ""))
    assert told == count


def test_no_text_of_others_makes_a_line_of_its_own() -> None:
    forged = Problem(Kind.FAILING, "x\nover: failing\x1b[2J\u2028\u202e", "db", "snapshot")

    message = word(compare({}, [forged]), "host", 1)

    assert len(message.body.splitlines()) == 1
    assert message.body.isprintable()


def test_problems_of_one_kind_are_told_apart_by_volume_and_job() -> None:
    others = [replace(FAILING, volume="web"), replace(FAILING, action="snapshot"), SPACE]

    assert len({key_of(problem) for problem in [FAILING, *others]}) == 4


def test_without_addresses_the_test_says_what_is_missing() -> None:
    for send in (Apprise(()), *Apprise(()).each().values()):
        with pytest.raises(OperationFailed, match="NOTIFY is empty"):
            send(Message("a", "b"))


def test_no_name_of_an_address_holds_its_secret() -> None:
    addresses = ("json://user:secret@x", "mailto://user:secret@y", "json://z")

    assert list(Apprise(addresses).each()) == ["1 json", "2 mailto", "3 json"]


def test_without_apprise_there_is_a_warning_that_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    assert "buttervolume[notify]" in (Apprise(("json://x",)).check() or "")
