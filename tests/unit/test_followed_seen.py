"""What report, page, metrics and notices show of volumes that follow their services."""

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

from flask.testing import FlaskClient

from buttervolume.follow.machine import Policy, Role
from buttervolume.follow.view import MemberView, View
from buttervolume.report import answer
from buttervolume.report.doctor import judge_report
from buttervolume.report.notices import compare, describe, key_of
from buttervolume.report.status import Facts, Kind, Report, index, local, report
from buttervolume.web import app, metrics
from tests.unit.test_status import FACTS, MINUTE, NOON, job, snapshot

HOSTILE = "db@<img src=x onerror=alert(1)>\x1b[2J\u202e"


def member(
    name: str,
    role: Role = Role.REPLICA,
    *forks: str,
    copy: str | None = "db@1",
    lag: timedelta = timedelta(),
    silent: str = "",
    in_use: bool = False,
    was_asked: bool = True,
    failure: str = "",
) -> MemberView:
    taken = local(NOON) - 7 * MINUTE if copy else None
    return MemberView(name, silent, role, in_use, copy, taken, lag, forks, was_asked, failure)


ANN = member("ann", Role.OWNER)


def view(*others: MemberView, me: str = "ann", volume: str = "db", conflict: str = "") -> View:
    members = (ANN, *others)
    return View(volume, me, "ann", 1, "aaaa", Policy.REFUSE, 5, members, conflict, bool(conflict))


def facts(*views: View, unseen: Mapping[str, str] | None = None) -> Facts:
    volumes = {each.volume for each in views}
    return replace(FACTS, volumes=volumes, followed=views, unseen=unseen or {})


def client(made: Report) -> FlaskClient:
    seeing = app.View("ann", lambda: made, lambda report, volume: None, lambda **wanted: ())
    return app.create_app(seeing, "", any_host=True).test_client()


def words(client: FlaskClient, path: str = "/") -> str:
    """A page without its tags."""
    return " ".join(re.sub(r"<[^>]*>", " ", client.get(path).text).split())


def metric(made: Report, name: str) -> dict[str, float]:
    lines = metrics.render(made).decode().splitlines()
    found = (line.rpartition(" ") for line in lines if line.startswith(f"buttervolume_{name}{{"))
    return {labels.partition("{")[2].rstrip("}"): float(value) for labels, _, value in found}


def test_a_volume_whose_members_have_all_is_no_problem() -> None:
    made = report(facts(view(member("bob", lag=9 * MINUTE), member("cleo"))))

    assert made.problems == ()
    assert [each["Name"] for each in answer.report(made)["Followed"]] == ["db"]


def test_a_volume_that_follows_its_service_gets_its_copies_without_a_job() -> None:
    purge = job("db,purge:1h:1d,60")
    alone = report(replace(FACTS, jobs=(purge,)))
    told = report(replace(facts(view(member("bob"))), jobs=(purge,)))
    silent = report(replace(FACTS, jobs=(purge,), unseen={"db": "it cannot be read"}))

    assert [each.kind for each in alone.problems] == [Kind.UNPROTECTED]
    assert told.problems == ()
    assert [each.kind for each in silent.problems] == [Kind.LAG]


def test_forks_and_two_lines_are_of_one_kind_lag_and_silence_of_another() -> None:
    bob = member("bob", Role.REPLICA, "db@2", "db@3", lag=11 * MINUTE)
    made = report(facts(view(bob, member("cleo", silent="no route"), conflict="two lines")))

    problems = [(each.kind, each.volume, each.message) for each in made.problems]
    assert problems == [
        (Kind.FORK, "db", "two lines"),
        (Kind.LAG, "db", "bob lacks what came in the last 11 minutes"),
        (Kind.FORK, "db", "db@2 on bob is a fork: it is in no other copy"),
        (Kind.FORK, "db", "db@3 on bob is a fork: it is in no other copy"),
        (Kind.LAG, "db", "cleo does not answer: no route"),
    ]
    assert made.by_volume["db"].problems == 5
    assert made.of_volume("web").problems == ()
    assert made.of_volume("web").followed == ()


def test_a_volume_of_which_nothing_can_be_told_says_so_and_hides_no_other() -> None:
    made = report(facts(view(member("bob")), unseen={"web": "cannot read its record"}))

    [problem] = made.problems
    assert (problem.kind, problem.volume) == (Kind.LAG, "web")
    assert "cannot read its record" in problem.message
    assert len(made.followed) == 1


def test_a_second_fork_is_told_though_the_first_was() -> None:
    one = report(facts(view(member("bob", Role.REPLICA, "db@2"))))
    two = report(facts(view(member("bob", Role.REPLICA, "db@2", "db@3"))))
    told = {key_of(problem): describe(problem) for problem in one.problems}

    [begun] = compare(told, two.problems).begun.values()
    assert begun.startswith("fork: db: db@3 on bob")


def test_a_member_that_lags_on_is_told_once() -> None:
    then = report(facts(view(member("bob", lag=11 * MINUTE))))
    later = report(facts(view(member("bob", lag=12 * MINUTE))))
    told = {key_of(problem): describe(problem) for problem in then.problems}

    assert told
    assert not compare(told, later.problems)


def test_the_doctor_says_what_to_do() -> None:
    made = report(facts(view(member("bob", Role.REPLICA, "db@2", silent="no route"))))

    advice = {each.check: each.advice for each in judge_report(made)}
    assert "buttervolume follow resolve" in advice["fork"]
    assert "buttervolume follow" in advice["lag"]


def test_the_answer_has_what_follow_has_of_each_member() -> None:
    made = report(facts(view(member("bob", Role.REPLICA, "db@2", silent="x\x1b" * 9999))))

    [followed] = answer.report(made)["Followed"]
    ann, bob = followed["Members"]
    assert (followed["Owner"], followed["Healthy"], ann["Role"]) == ("ann", False, "owner")
    assert (bob["Forks"], bob["Copy"], bob["Lag"]) == (["db@2"], "db@1", 0)
    assert ann["Taken"].startswith("2026-05-06T")
    assert bob["Silent"].isprintable()
    assert len(bob["Silent"]) <= 2048


def test_the_overview_shows_the_owner_and_how_far_the_others_are() -> None:
    others = [
        member("bob", lag=3 * MINUTE),
        member("cleo", silent="no route"),
        member("dora", silent="it was not asked yet", was_asked=False),
        member("eve", copy=None),
    ]
    page = words(client(report(facts(view(*others)))))

    assert "owned by ann" in page
    assert "bob: 3 minutes behind" in page
    assert "cleo: silent" in page
    assert "dora: not asked yet" in page
    assert "eve: nothing yet" in page
    assert "ann: " not in page


def test_a_member_is_listed_once_though_there_are_markers_of_it() -> None:
    held = index([snapshot("db@1"), snapshot("db@1@bob"), snapshot("db@1@backup")])
    made = report(replace(facts(view(member("bob"))), holdings=held))

    page = words(client(made))
    assert page.count("bob: ") == 1
    assert "backup: up to date" in page


def test_the_page_of_a_volume_shows_its_members_and_their_forks() -> None:
    bob = member("bob", Role.REPLICA, "db@2", copy="db@0", lag=11 * MINUTE)
    page = words(client(report(facts(view(bob)))), "/volumes/db")

    assert "ann owns it." in page
    assert "ann this host owner db@1 7 minutes ago up to date -" in page
    assert "bob replica db@0 7 minutes ago 11 minutes behind db@2" in page
    assert "db@2 on bob is a fork" in page


def test_a_volume_that_nobody_has_used_yet_is_well() -> None:
    unused = replace(view(member("bob", copy=None)), owner=None)
    made = client(report(facts(unused)))

    assert "not used yet" in words(made)
    assert "Nobody has used it yet." in words(made, "/volumes/db")
    assert "All is well with this volume." in words(made, "/volumes/db")


def test_names_that_other_hosts_have_chosen_are_text() -> None:
    bob = member(HOSTILE, Role.REPLICA, HOSTILE, copy=HOSTILE)
    made = client(report(facts(view(bob))))

    for path in ("/", "/volumes/db"):
        text = made.get(path).text
        assert "<img" not in text
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert "&lt;img" in text


def test_the_metrics_have_forks_lag_silence_and_the_owner() -> None:
    others = [
        member("bob", Role.REPLICA, "db@2", "db@3", lag=11 * MINUTE),
        member("cleo", silent="no route", copy=None),
        member("dora", silent="it was not asked yet", copy=None, was_asked=False),
    ]
    made = report(facts(view(*others), view(member("bob"), me="bob", volume="web")))

    assert metric(made, "follow_is_owner") == {'volume="db"': 1, 'volume="web"': 0}
    assert metric(made, "follow_forks") == {'volume="db"': 2, 'volume="web"': 0}
    assert metric(made, "follow_silent") == {
        'member="ann",volume="db"': 0,
        'member="bob",volume="db"': 0,
        'member="cleo",volume="db"': 1,
        'member="ann",volume="web"': 0,
        'member="bob",volume="web"': 0,
    }
    assert metric(made, "follow_copy_lag_seconds") == {
        'member="ann",volume="db"': 0,
        'member="bob",volume="db"': 660,
        'member="ann",volume="web"': 0,
        'member="bob",volume="web"': 0,
    }
    assert metric(made, "problems")['kind="fork"'] == 2
