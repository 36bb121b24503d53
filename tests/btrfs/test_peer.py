"""`buttervolume peer` over pipes: what it says, and how it ends."""

import json
import os
import re
import select
import threading
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from buttervolume import config
from buttervolume.follow.attend import Attendant, member_of
from buttervolume.hosts.guard import Guard
from buttervolume.hosts.peer import SILENCE, Peer, run
from buttervolume.names import LOCK_NAME, receiving_note
from buttervolume.store import attributes
from tests.btrfs.conftest import StartDaemon
from tests.btrfs.harness import REPOSITORY, Daemon, Place, btrfs, entries, subvolume
from tests.support.wait import wait_until

ONE, TWO = "db@2026-11-26T10:00:00.000000", "db@2026-11-26T11:00:00.000000"
PUSH = Guard(frozenset(["push"]))
FULL_AT_FIRST = """
import errno, os
real, tries = os.setxattr, []

def setxattr(path, name, *rest, **more):
    if name.endswith(".records") and not tries:
        tries.append(name)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return real(path, name, *rest, **more)

os.setxattr = setxattr
"""
"""Lets the disk have no room for the first note. Python reads it when it starts."""


class Talk:
    """A session in a thread, over two pipes."""

    def __init__(
        self,
        place: Place,
        guard: Guard | None = None,
        silence: float = 20,
        history: Path | None = None,
    ) -> None:
        environ = {
            "BUTTERVOLUME_VOLUMES_PATH": str(place.volumes),
            "BUTTERVOLUME_SNAPSHOTS_PATH": str(place.snapshots),
            "BUTTERVOLUME_NODE": "beta",
            "BUTTERVOLUME_HISTORY": str(history or ""),
        }
        self._stdin, self.into = os.pipe()
        self.out, self._stdout = os.pipe()
        loaded = config.load(environ, Path("/nonexistent"))
        self._peer = Peer(
            loaded,
            guard or Guard(),
            self._stdin,
            self._stdout,
            silence,
            attend=lambda asker: Attendant(member_of(loaded), asker),
        )
        self.ended_well: bool | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        try:
            self.ended_well = self._peer.serve()
        finally:
            os.close(self._stdout)

    def say(self, **request: object) -> None:
        os.write(self.into, json.dumps(request).encode() + b"\n")

    def hang_up(self) -> None:
        os.close(self.into)

    def wait(self) -> None:
        self._thread.join(60)

    def answer(self) -> dict[str, Any]:
        """The next thing that it says."""
        said = b""
        while not said.endswith(b"\n"):
            said += os.read(self.out, 1) or b"{}\n"
        answer: dict[str, Any] = json.loads(said)
        return answer

    def answers(self) -> list[dict[str, Any]]:
        """Everything it says until it ends."""
        with os.fdopen(self.out, "rb") as file:
            said = [json.loads(line) for line in file]
        self.wait()
        return said


@pytest.fixture
def snapshots(place: Place) -> Path:
    """The directory of the snapshots, with one and its volume."""
    subvolume(place.volumes / "db", {"file": "text"})
    btrfs("subvolume", "snapshot", "-r", place.volumes / "db", place.snapshots / ONE)
    return place.snapshots


def test_it_says_first_what_it_can(place: Place) -> None:
    talk = Talk(place, PUSH)
    talk.hang_up()

    (greeting,) = talk.answers()

    assert greeting.pop("time") == pytest.approx(time.time(), abs=60)
    assert greeting == {
        "buttervolume": 1,
        "node": "beta",
        "verbs": ["discard", "look", "receive"],
        "stream": 2,
    }
    assert talk.ended_well


@pytest.mark.parametrize("user", [65534, 4_000_000_000])
def test_who_is_not_root_is_told_what_is_needed(
    place: Place, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], user: int
) -> None:
    settings = config.load({}, Path("/nonexistent"))
    monkeypatch.setattr(os, "geteuid", lambda: user)

    for guard, asked in ((Guard(), None), (PUSH, "buttervolume peer"), (PUSH, "rsync --server .")):
        assert not run(settings, guard, asked, lambda _: Attendant(member_of(settings), "alpha"))

        said = capfd.readouterr()
        assert said.out == ""
        told = r"buttervolume: logged in as \w+, who .*: log in as root there .*\n"
        assert re.fullmatch(told, said.err)


def test_where_the_directory_is_not_there_that_is_said(place: Place) -> None:
    place.snapshots.rmdir()
    talk = Talk(place)
    talk.say(do="hello", node="alpha")
    talk.say(do="look", volume="db")
    talk.hang_up()

    _, answer = talk.answers()

    assert "No such file or directory" in answer["error"]
    assert str(place.snapshots) in answer["error"]
    assert talk.ended_well


def test_requests_are_answered_in_their_order_without_waiting(
    place: Place, snapshots: Path
) -> None:
    talk = Talk(place)
    for volume in ("db", "none", "db"):
        talk.say(do="look", volume=volume)
    talk.hang_up()

    looks = talk.answers()[1:]

    assert [[s["name"] for s in look["snapshots"]] for look in looks] == [[ONE], [], [ONE]]


def test_a_look_tells_what_is_not_whole_and_who_else_passes_for_a_snapshot(
    place: Place, snapshots: Path
) -> None:
    btrfs("subvolume", "snapshot", "-r", place.volumes / "db", snapshots / TWO)
    (snapshots / receiving_note(TWO)).write_text(f"gamma\n{TWO}\n")
    (snapshots / "db@link").symlink_to(snapshots / ONE)
    subvolume(snapshots / "dbase@2026")
    talk = Talk(place)
    talk.say(do="look", volume="db")
    talk.hang_up()

    look = talk.answers()[1]

    found = {one["name"]: one for one in look["snapshots"]}
    assert sorted(found) == [ONE, TWO]
    assert (found[ONE]["receiving"], found[TWO]["receiving"]) == (None, "gamma")
    assert look["strangers"] == []
    assert not look["bound"]


def test_followed_volumes_that_the_daemon_remembers_elsewhere_are_not_talked_about(
    place: Place, snapshots: Path, daemon: Daemon
) -> None:
    """A daemon with a schedule from its environment, which a session over ssh does not see."""
    lock = place.volumes / LOCK_NAME
    records = Path(daemon.environ["BUTTERVOLUME_SCHEDULE"]).parent / "follow"
    assert attributes.records(lock) == str(records)
    assert ask_about_db(place) == (False, "NotAllowed")
    attributes.set_records(lock, str(config.load({}, Path("/nonexistent")).follow_path))
    assert ask_about_db(place) == (True, None)


def ask_about_db(place: Place, history: Path | None = None) -> tuple[bool, object]:
    """Whether a session offers to talk about followed volumes, and the code of the error if it is
    asked to."""
    talk = Talk(place, Guard(frozenset(["follow"])), history=history)
    talk.say(do="hello", node="alpha")
    talk.say(do="follow", what="report", volume="db")
    talk.hang_up()
    greeting, answer = talk.answers()
    return "follow" in greeting["verbs"], answer.get("code")


def test_nor_are_those_that_no_daemon_has_said_to_remember(place: Place, snapshots: Path) -> None:
    """No daemon has ever run on these volumes, or it could not write: the one that runs may have
    its volumes, or what it remembers, elsewhere."""
    assert ask_about_db(place) == (False, "NotAllowed")
    (place.volumes / LOCK_NAME).touch()
    assert ask_about_db(place) == (False, "NotAllowed")


def test_another_directory_at_the_same_path_is_elsewhere(place: Place, snapshots: Path) -> None:
    """The managed plugin and its host have an /etc/buttervolume each, and the same volumes."""
    (place.volumes / LOCK_NAME).touch()
    above = place.directory / "etc"
    above.mkdir()
    history = above / "history.sqlite"
    attributes.set_records(place.volumes / LOCK_NAME, str(above / "follow"))
    assert ask_about_db(place, history) == (True, None)
    above.rename(place.directory / "of the host")
    above.mkdir()
    assert ask_about_db(place, history) == (False, "NotAllowed")


def test_a_session_talks_of_them_no_longer_than_a_daemon_remembers_them_here(
    place: Place, snapshots: Path, daemon: Daemon
) -> None:
    lock = place.volumes / LOCK_NAME
    attributes.set_records(lock, str(config.load({}, Path("/nonexistent")).follow_path))
    talk = Talk(place, Guard(frozenset(["follow"])), silence=300)
    talk.say(do="hello", node="alpha")
    talk.say(do="follow", what="report", volume="db")
    assert "follow" in talk.answer()["verbs"]
    assert "report" in talk.answer()
    daemon.stop()
    daemon.start()
    talk.say(do="follow", what="report", volume="db")
    assert talk.answer()["code"] == "NotAllowed"
    talk.hang_up()
    talk.wait()


def test_a_daemon_notes_later_what_it_could_not_note_on_a_full_disk(
    place: Place, runtime: Path, start_daemon: StartDaemon
) -> None:
    (runtime / "sitecustomize.py").write_text(FULL_AT_FIRST)
    daemon = start_daemon(PYTHONPATH=f"{runtime}:{REPOSITORY}", BUTTERVOLUME_TIMER="1")
    lock = place.volumes / LOCK_NAME
    wait_until(lambda: attributes.records(lock) is not None, what="the note")
    assert "cannot note where followed volumes are remembered" in daemon.stderr()


def test_a_name_beside_which_nothing_can_be_looked_up_is_an_error_in_words(
    place: Place, snapshots: Path
) -> None:
    """What is remembered of a volume is in a file of its name, and a few letters more."""
    (place.volumes / LOCK_NAME).touch()
    (place.directory / "follow").mkdir()
    attributes.set_records(place.volumes / LOCK_NAME, str(place.directory / "follow"))
    talk = Talk(place, PUSH)
    talk.say(do="hello", node="alpha")
    talk.say(do="receive", name=f"{'v' * 252}@x", uuid=str(uuid4()), ctransid=1)
    talk.hang_up()

    _, answer = talk.answers()

    assert answer["error"]
    assert talk.ended_well is False
    assert entries(snapshots) == [ONE]


def test_what_says_who_goes_on_with_a_followed_volume_takes_its_own_role(
    place: Place, snapshots: Path
) -> None:
    os.setxattr(place.volumes / "db", "trusted.buttervolume.follow", b"{}")
    stream = {"do": "receive", "name": TWO, "uuid": str(uuid4()), "ctransid": 1}

    codes, errors = list[str](), list[str]()
    for guard in (PUSH, Guard(frozenset(["follow"]))):
        talk = Talk(place, guard)
        talk.say(do="hello", node="alpha")
        talk.say(**stream)
        talk.hang_up()  # where the stream would begin
        refused = talk.answers()[1]
        codes.append(refused["code"])
        errors.append(refused["error"])

    assert codes[0] == "NotAllowed"
    assert "role follow only" in errors[0]
    assert codes[1] != "NotAllowed"
    assert entries(snapshots) == [ONE]


def test_who_says_nothing_has_no_session_any_more(place: Place) -> None:
    started = time.monotonic()
    talk = Talk(place, silence=0.5)

    last = talk.answers()[-1]

    assert last["code"] == "PeerSilent"
    assert time.monotonic() - started < 60
    assert not talk.ended_well


def test_by_default_that_takes_a_minute() -> None:
    assert SILENCE == 60


def test_who_brings_a_stream_to_its_disk_may_take_its_time(place: Place, snapshots: Path) -> None:
    """Given a session that ends after half a second of silence, when a snapshot was sent in it, and
    the other side says only later that it has it, then it is marked."""
    talk = Talk(place, silence=0.5)
    talk.say(do="hello", node="alpha")
    talk.say(do="send", name=ONE)
    assert talk.answer()["buttervolume"]
    assert talk.answer()["stream"] == ONE
    stream = b""
    while not stream.endswith(b"{}\n"):
        stream += os.read(talk.out, 1 << 16)

    said, _, _ = select.select([talk.out], [], [], 3)
    assert not said, os.read(talk.out, 1 << 16)
    talk.say(do="received", name=ONE)

    assert talk.answer() == {"marked": ONE}
    assert entries(snapshots) == [ONE, f"{ONE}@alpha"]
    assert talk.answer()["code"] == "PeerSilent", "then it is as before"


def test_who_does_not_listen_has_no_session_any_more(place: Place, snapshots: Path) -> None:
    talk = Talk(place, silence=0.5)
    try:
        for _ in range(400):  # as many answers as no pipe holds
            talk.say(do="look", volume="db")
    except BrokenPipeError:
        pass

    talk.wait()

    assert talk.ended_well is False
    os.close(talk.out)


def test_an_error_does_not_end_a_session_unless_a_stream_would_follow(
    place: Place, snapshots: Path
) -> None:
    talk = Talk(place)
    talk.say(do="nonsense")
    talk.say(do="send", name="db@1999")
    talk.say(do="look", volume="../db")
    talk.say(do="hello", node="alpha")
    talk.say(do="receive", name=ONE, uuid=str(uuid4()), ctransid=1)
    talk.say(do="look", volume="db")
    talk.hang_up()

    codes = [answer["code"] for answer in talk.answers()[1:]]

    assert codes == ["NotAllowed", "NoSuchSnapshot", "BadName", "CopyInTheWay"]
    assert entries(snapshots) == [ONE]


def test_who_has_no_name_sends_nothing(place: Place, snapshots: Path) -> None:
    talk = Talk(place)
    talk.say(do="receive", name=TWO, uuid=str(uuid4()), ctransid=1)
    talk.hang_up()

    assert talk.answers()[1]["code"] == "BadName"
    assert entries(snapshots) == [ONE]


def test_what_has_arrived_is_marked_and_the_earlier_mark_goes(
    place: Place, snapshots: Path
) -> None:
    btrfs("subvolume", "snapshot", "-r", place.volumes / "db", snapshots / TWO)
    talk = Talk(place)
    talk.say(do="hello", node="backup")
    talk.say(do="received", name=ONE)
    talk.say(do="received", name=TWO)
    talk.hang_up()

    assert talk.answers()[1:] == [{"marked": ONE}, {"marked": TWO}]
    assert entries(snapshots) == [ONE, TWO, f"{TWO}@backup"]
