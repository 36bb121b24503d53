"""A volume follows its service between three hosts, over real BTRFS and ssh."""

import json
import os
import random
import re
from collections.abc import Iterator
from functools import partial
from itertools import count

import pytest

from buttervolume.follow.machine import Lock
from buttervolume.names import RECEIVING
from tests.hosts.follow import LONG, Container, Node, Trio
from tests.hosts.harness import MEBIBYTE, SNAPSHOTS, VOLUMES
from tests.support.network import Network
from tests.support.wait import wait_until

NUMBERS = count(1)
ALL = "ann:bob:cleo"


@pytest.fixture(scope="module")
def shared_trio(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trio]:
    directory = tmp_path_factory.mktemp("trio")
    with (
        Node("ann", directory, network) as ann,
        Node("bob", directory, network) as bob,
        Node("cleo", directory, network) as cleo,
    ):
        trio = Trio(network, ann, bob, cleo)
        for node in trio.nodes:
            node.boot()
            node.install()
        for node in trio.nodes:
            for other in trio.nodes:
                if node is not other:
                    node.authorize(other)
        yield trio


@pytest.fixture
def trio(shared_trio: Trio) -> Iterator[Trio]:
    yield shared_trio
    shared_trio.heal()
    for node in shared_trio.nodes:
        node.kill("sleep")
        assert "Traceback" not in node.daemon.stderr()


@pytest.fixture
def volume() -> str:
    return f"v{next(NUMBERS)}"


def test_the_content_goes_where_the_service_goes(trio: Trio, volume: str) -> None:
    for node in trio.nodes:
        node.follow(volume, ALL)
    service = trio.ann.start_service(volume)
    service.write("log", "from ann")
    service.stop()

    service = trio.bob.start_service(volume)
    assert trio.bob.read(volume, "log") == "from ann"
    service.write("log", "from bob")
    service.stop()
    replicated(trio, volume, "from bob", trio.ann, trio.cleo)

    service = trio.ann.start_service(volume)
    assert trio.ann.read(volume, "log") == "from bob"
    service.stop()
    assert trio.ann.status(volume)["Owner"] == "ann"
    assert trio.ann.status(volume)["Epoch"] == 3
    assert [node.forks(volume) for node in trio.nodes] == [[], [], []]


def everywhere(trio: Trio, volume: str, **options: str) -> None:
    for node in trio.nodes:
        node.follow(volume, ALL, **options)


def used_on(node: Node, volume: str, text: str) -> None:
    """A service has run there, and written something."""
    service = node.start_service(volume)
    service.write("log", text)
    service.stop()


def replicated(trio: Trio, volume: str, text: str, *nodes: Node) -> None:
    for node in nodes or trio.nodes:
        has = partial(node.has_file, volume, "log", text)
        wait_until(has, LONG, f"{node.name} to have it")


# One user at a time


def test_what_is_in_use_is_waited_for_and_then_named(trio: Trio, volume: str) -> None:
    everywhere(trio, volume)
    service = trio.ann.start_service(volume)
    service.write("log", "1")
    assert "in use on ann" in trio.bob.mount(volume)
    waiting = trio.bob.start("Mount", Name=volume, ID="waits")
    wait_until(lambda: trio.ann.is_locked(volume), LONG, "bob to look for it")
    service.stop()
    assert waiting.error(150) == ""
    assert trio.bob.read(volume, "log") == "1"
    assert trio.bob.status(volume)["Owner"] == "bob"


def test_a_mount_is_patient_with_who_has_the_lock(trio: Trio, volume: str) -> None:
    """For longer than one attempt waits for it: rounds have it for a moment, and so do others that
    look for the volume."""
    everywhere(trio, volume)
    used_on(trio.ann, volume, "1")
    trio.bob.boot_telling_all()
    holder = trio.cleo.hold_lock(volume, trio.ann)
    waiting = trio.bob.start("Mount", Name=volume, ID="waits")

    def attempts() -> int:
        return trio.bob.daemon.log().count(f"{volume}: {Lock('ann')}")

    wait_until(lambda: attempts() >= 2 or waiting.is_over(), LONG, "bob to try again")
    assert not waiting.is_over(), waiting.error()
    holder.kill_group()
    assert waiting.error(150) == ""
    assert trio.bob.read(volume, "log") == "1"
    trio.bob.daemon.stop()


def test_of_two_that_mount_at_once_one_gets_it(trio: Trio, volume: str) -> None:
    everywhere(trio, volume)
    asked = {node: node.start("Mount", Name=volume, ID=node.name) for node in trio.nodes}
    first = wait_until(lambda: [node for node in trio.nodes if asked[node].is_over()], LONG)[0]
    Container(first, volume, first.name)
    answers = [asked[node].error(150) for node in trio.nodes]
    assert answers.count("") == 1, answers


def test_a_mount_that_was_answered_counts_before_its_container_is_there(
    trio: Trio, volume: str
) -> None:
    everywhere(trio, volume)
    assert trio.ann.mount(volume, "early") == ""
    trio.ann.daemon.kill()  # it is on the disk, and another daemon knows it
    trio.ann.boot()
    asked = trio.bob.start("Mount", Name=volume, ID="late")
    wait_until(lambda: trio.ann.is_locked(volume), LONG, "bob to ask")
    assert not asked.is_over()
    trio.ann.api.call("Unmount", Name=volume, ID="early")
    assert asked.error(150) == ""


def test_the_first_time_all_members_must_answer(trio: Trio, volume: str) -> None:
    trio.ann.follow(volume, ALL)
    with trio.without(trio.cleo):
        said = trio.ann.mount(volume)
    assert "cleo cannot be reached" in said
    trio.ann.start_service(volume).stop()


# The owner cannot be reached


def test_with_refuse_nobody_goes_on_without_the_owner(trio: Trio, volume: str) -> None:
    everywhere(trio, volume)
    used_on(trio.ann, volume, "1")
    replicated(trio, volume, "1")
    with trio.without(trio.ann):
        said = trio.bob.mount(volume)
        assert "its owner ann cannot be reached" in said
        assert f"{volume}@" in said, "the newest copy is named"
        assert trio.bob.read(volume, "log") == ""
        assert trio.ann.mount(volume, "again") == "", "the owner needs nobody"
        trio.ann.api.call("Unmount", Name=volume, ID="again")
    trio.bob.start_service(volume).stop()
    assert trio.bob.read(volume, "log") == "1"


def test_what_was_let_go_to_who_is_gone_waits_for_that_one(trio: Trio, volume: str) -> None:
    everywhere(trio, volume)
    used_on(trio.ann, volume, "1")
    with trio.ann.release_to_nobody(volume, "bob"), trio.without(trio.bob):
        said = trio.ann.mount(volume)
        assert "ann has let it go to bob, which cannot be reached" in said
    trio.ann.start_service(volume).stop()
    assert trio.ann.status(volume)["Epoch"] == 1, "bob has not begun: ann is its owner still"


def test_a_lock_ends_with_the_link_that_it_came_over(trio: Trio, volume: str) -> None:
    everywhere(trio, volume)
    used_on(trio.bob, volume, "1")
    trio.cleo.hold_lock(volume, trio.ann)
    assert trio.ann.is_locked(volume)
    trio.network.black_hole("cleo")
    wait_until(lambda: not trio.ann.is_locked(volume), LONG, "the lock to be given up")
    trio.network.restore("cleo")


def test_a_link_that_is_cut_in_the_middle_of_a_fetch_loses_nothing(trio: Trio, volume: str) -> None:
    everywhere(trio, volume)
    used_on(trio.ann, volume, "old")
    replicated(trio, volume, "old")
    trio.ann.daemon.stop()  # whose rounds would send it, too
    trio.ann.file(volume, "log").write_text("new")
    big = random.Random(volume).randbytes(24 * MEBIBYTE)
    trio.ann.file(volume, "big").write_bytes(big)
    before = trio.bob.snapshot_names(volume)

    with trio.limited(trio.ann, "4mbit"):
        asked = trio.bob.start("Mount", Name=volume, ID="cut")
        trio.bob.wait_for_bytes(MEBIBYTE)
        with trio.without(trio.ann):
            assert re.search("fetching from ann|ann cannot be reached", asked.error(150))
            wait_until(lambda: not trio.ann.is_locked(volume), LONG, "ann to give up the lock")

            def refuses() -> bool:
                said = trio.bob.mount(volume)
                assert said, "it is mounted without what is new"
                return "its owner ann cannot be reached" in said

            wait_until(refuses, 2 * LONG, "the fetch to be given up")
            assert trio.bob.snapshot_names(volume) == before
            assert trio.bob.unfinished(volume) == []
            assert trio.bob.read(volume, "log") == ""
            trio.ann.boot()
            assert "let it go to bob, which cannot be reached" in trio.ann.mount(volume)

    trio.bob.start_service(volume).stop()
    assert trio.bob.read(volume, "log") == "new"
    assert trio.bob.file(volume, "big").read_bytes() == big
    assert [node.forks(volume) for node in trio.nodes] == [[], [], []]


def test_latest_goes_on_with_the_newest_copy_and_keeps_the_rest_as_a_fork(
    trio: Trio, volume: str
) -> None:
    everywhere(trio, volume, orphan="latest")
    used_on(trio.ann, volume, "replicated")
    replicated(trio, volume, "replicated")
    with trio.without(trio.ann):
        old = trio.ann.start_alone(volume)
        old.write("late", "written while it was cut off")
        new = trio.bob.start_service(volume)
        assert trio.bob.read(volume, "log") == "replicated"
        new.write("log", "from bob")
        assert "could be told" in trio.ann.mount(volume), "ann cannot start another one"
    trio.ann.look_after(volume)
    wait_until(lambda: "has taken it over" in trio.ann.daemon.log(), LONG, "ann to hear of it")
    old.kill()
    trio.ann.look_after(volume)
    fork = wait_until(lambda: trio.ann.forks(volume), LONG, "ann to keep a fork")[0]
    assert trio.ann.copied_file(fork, "late").read_text() == "written while it was cut off"

    new.stop()
    trio.ann.start_service(volume).stop()
    assert trio.ann.read(volume, "log") == "from bob"
    assert trio.ann.read(volume, "late") == ""
    assert trio.ann.forks(volume) == [fork]
    trio.ann.cli("purge", "1m", volume)
    assert fork in trio.ann.copies(volume), "no purge deletes it"
    assert "was a fork" in trio.ann.cli("rm", fork).stderr
    assert trio.ann.forks(volume) == []


def test_with_latest_a_minority_goes_on_with_nothing(trio: Trio, volume: str) -> None:
    everywhere(trio, volume, orphan="latest")
    used_on(trio.ann, volume, "1")
    replicated(trio, volume, "1")
    with trio.without(trio.ann, trio.bob):
        said = trio.cleo.mount(volume)
        assert "only 1 of 3 members" in said
        assert "could be told" in trio.ann.mount(volume)


def test_reading_alone_makes_no_fork(trio: Trio, volume: str) -> None:
    everywhere(trio, volume, orphan="latest")
    used_on(trio.ann, volume, "1")
    replicated(trio, volume, "1")
    with trio.without(trio.ann):
        path = trio.ann.file(volume, "log")
        before = path.stat()
        trio.ann.run("cat", f"{VOLUMES}/{volume}/log")
        assert path.stat().st_atime_ns > before.st_atime_ns
        trio.bob.start_service(volume).stop()
    trio.ann.look_after(volume)
    wait_until(lambda: "this host is a replica" in trio.ann.daemon.log(), LONG)
    assert trio.ann.forks(volume) == []


# What follows and what does not


def test_options_that_cannot_be_are_refused(trio: Trio, volume: str) -> None:
    def refused(**options: str) -> str:
        return trio.ann.api.refused("Create", Name=volume, Opts=options)

    assert "none of the members" in refused(follow="bob:cleo")
    assert "from 2 to" in refused(follow="ann")
    assert "a name of their own" in refused(follow="ann:bob:bob")
    assert "PEERS" in refused(follow="peers")
    assert "not allowed" in refused(follow="ann:b/b")
    assert "refuse, latest" in refused(follow=ALL, orphan="newest")
    assert "minutes" in refused(follow=ALL, every="0")
    assert "together with follow" in refused(every="5")
    assert "follow, every, orphan" in refused(flow=ALL)
    assert volume not in trio.ann.cli("volumes").stdout


def test_a_volume_that_is_there_follows_from_then_on(trio: Trio, volume: str) -> None:
    for node in (trio.ann, trio.bob):
        node.create(volume)
        node.file(volume, "log").write_text(f"from {node.name} before")
    answer = trio.ann.api.call("Create", Name=volume, Opts={"follow": "ann,bob"})
    assert "was here already" in answer["Warning"]
    trio.bob.follow(volume, "ann,bob")

    trio.ann.start_service(volume).stop()
    assert trio.ann.read(volume, "log") == "from ann before"
    trio.bob.start_service(volume).stop()
    assert trio.bob.read(volume, "log") == "from ann before"
    [fork] = trio.bob.forks(volume)
    assert trio.bob.copied_file(fork, "log").read_text() == "from bob before"


def test_a_clone_and_a_copy_are_volumes_of_their_own(trio: Trio, volume: str) -> None:
    everywhere(trio, volume)
    used_on(trio.ann, volume, "1")
    trio.ann.cli("clone", volume, f"{volume}-clone")
    replicated(trio, volume, "1", trio.bob)  # so there is a snapshot
    trio.ann.cli("restore", f"{volume}@latest", f"{volume}-restored")
    trio.ann.create(f"{volume}-from", **{"from": volume})
    for name in ("clone", "restored", "from"):
        assert "Owner" not in trio.ann.status(f"{volume}-{name}")
        assert trio.ann.mount(f"{volume}-{name}") == ""


def test_what_changes_a_volume_is_done_on_its_owner(trio: Trio, volume: str) -> None:
    everywhere(trio, volume)
    used_on(trio.ann, volume, "1")
    replicated(trio, volume, "1")
    ended = trio.bob.cli("restore", volume, check=False)
    assert "on ann, which owns it" in ended.stderr
    assert "on ann" in trio.bob.cli("sync", volume, "ann", check=False).stderr
    assert "on ann" in trio.bob.cli("schedule", "snapshot", "now", volume, check=False).stderr
    trio.bob.cli("schedule", "purge:1m", "now", volume)
    snapshot = trio.ann.snapshot(volume)
    trio.ann.file(volume, "log").write_text("2")
    trio.ann.cli("restore", "--force", snapshot)
    assert trio.ann.read(volume, "log") == "1"
    trio.bob.start_service(volume).stop()
    assert trio.bob.read(volume, "log") == "1"


def test_subvolumes_nested_in_a_volume_keep_it_where_it_is(trio: Trio, volume: str) -> None:
    everywhere(trio, volume)
    used_on(trio.ann, volume, "1")
    nested = f"/var/lib/buttervolume/volumes/{volume}/inner"
    trio.ann.run("btrfs", "subvolume", "create", nested)
    assert "inner" in trio.bob.mount(volume)
    trio.ann.start_service(volume).stop()
    trio.ann.run("btrfs", "subvolume", "delete", nested)
    trio.bob.start_service(volume).stop()


def test_what_its_owner_removes_the_others_go_on_with(trio: Trio, volume: str) -> None:
    everywhere(trio, volume)
    used_on(trio.ann, volume, "1")
    trio.ann.file(volume, "late").write_text("2")
    trio.ann.api.call("Remove", Name=volume)
    assert "on ann" in trio.ann.cli("restore", volume, check=False).stderr
    trio.bob.start_service(volume).stop()
    assert trio.bob.read(volume, "late") == "2"
    trio.ann.follow(volume, ALL)
    trio.ann.start_service(volume).stop()
    assert trio.ann.read(volume, "log") == "1"


def test_an_owner_that_lost_its_last_copy_keeps_nobody_from_going_on(
    trio: Trio, volume: str
) -> None:
    everywhere(trio, volume)
    used_on(trio.ann, volume, "1")
    replicated(trio, volume, "1")
    trio.ann.api.call("Remove", Name=volume)
    trio.ann.cli("rm", *trio.ann.copies(volume))
    said = trio.bob.mount(volume)
    assert "its owner ann has lost it" in said
    assert "follow take" in said
    trio.bob.cli("follow", "take", "--yes", volume)
    trio.bob.start_service(volume).stop()
    assert trio.bob.read(volume, "log") == "1"


def test_what_nobody_has_a_copy_of_is_dropped_and_made_anew(trio: Trio, volume: str) -> None:
    everywhere(trio, volume)
    used_on(trio.ann, volume, "1")
    replicated(trio, volume, "1")
    for node in trio.nodes:
        node.api.call("Remove", Name=volume)
        node.cli("rm", *node.copies(volume))
    everywhere(trio, volume)
    assert "follow drop" in trio.bob.mount(volume)
    assert "follow drop" in trio.ann.mount(volume)
    drop(trio.bob, volume)
    everywhere(trio, volume)
    trio.bob.start_service(volume).stop()
    assert trio.bob.status(volume)["Epoch"] == 1


def test_an_owner_that_lost_its_records_goes_on_once_all_members_answer(
    trio: Trio, volume: str
) -> None:
    everywhere(trio, volume)
    used_on(trio.ann, volume, "1")
    trio.ann.daemon.stop()
    trio.ann.run("rm", f"/etc/buttervolume/follow/{volume}.json")
    trio.ann.boot()
    with trio.without(trio.cleo):
        assert "its owner ann has lost it" in trio.ann.mount(volume)
    assert "its owner ann has lost it" in trio.bob.mount(volume)
    trio.ann.start_service(volume).stop()
    trio.bob.start_service(volume).stop()
    assert trio.bob.read(volume, "log") == "1"


def test_a_member_whose_record_is_damaged_is_as_good_as_one_that_is_down(
    trio: Trio, volume: str
) -> None:
    everywhere(trio, volume, orphan="latest")
    used_on(trio.ann, volume, "1")
    replicated(trio, volume, "1")
    trio.bob.write(f"/etc/buttervolume/follow/{volume}.json", "{")
    trio.cleo.start_service(volume).stop()
    assert trio.cleo.read(volume, "log") == "1"
    said = trio.bob.mount(volume)
    assert f"follow/{volume}.json" in said
    assert "remove it" in said
    trio.cleo.write(f"/etc/buttervolume/follow/{volume}.json", "{")
    said = trio.ann.mount(volume)
    assert f"/{volume}.json" in said, "who may use it is not taken for a host that is down"
    trio.bob.run("rm", f"/etc/buttervolume/follow/{volume}.json")
    trio.cleo.run("rm", f"/etc/buttervolume/follow/{volume}.json")
    trio.cleo.start_service(volume).stop()
    trio.bob.start_service(volume).stop()
    assert trio.bob.read(volume, "log") == "1"


def test_what_is_nested_in_a_volume_that_would_be_replaced_is_not_lost(
    trio: Trio, volume: str
) -> None:
    everywhere(trio, volume)
    used_on(trio.ann, volume, "1")
    replicated(trio, volume, "1")
    nested = f"{VOLUMES}/{volume}/inner"
    trio.ann.run("btrfs", "subvolume", "create", nested)
    trio.ann.write(f"{nested}/file", "only here")
    with trio.without(trio.ann):
        trio.bob.cli("follow", "take", "--yes", volume)
        used_on(trio.bob, volume, "2")
    trio.ann.look_after(volume)  # it may not have noticed that it was cut off
    assert "inner" in trio.ann.mount(volume)
    assert trio.ann.read(volume, "inner/file") == "only here"
    trio.ann.run("mv", nested, f"{VOLUMES}/{volume}-inner")
    trio.ann.start_service(volume).stop()
    assert trio.ann.read(volume, "log") == "2"
    assert trio.ann.read(f"{volume}-inner", "file") == "only here"


def test_what_a_volume_held_before_it_followed_is_kept_when_it_is_removed(
    trio: Trio, volume: str
) -> None:
    trio.bob.create(volume)
    trio.bob.file(volume, "log").write_text("from bob before")
    everywhere(trio, volume)
    used_on(trio.ann, volume, "1")
    wait_until(lambda: trio.bob.status(volume)["Owner"], LONG, "bob to have a whole copy")
    trio.bob.api.call("Remove", Name=volume)
    assert trio.bob.has_file(volume, "log", "from bob before")
    trio.bob.follow(volume, ALL)
    trio.bob.start_service(volume).stop()
    assert trio.bob.read(volume, "log") == "1"
    [fork] = trio.bob.forks(volume)
    assert trio.bob.copied_file(fork, "log").read_text() == "from bob before"


def test_an_older_volume_that_is_put_back_does_not_keep_others_from_the_last_snapshot(
    trio: Trio, volume: str
) -> None:
    everywhere(trio, volume)
    used_on(trio.ann, volume, "1")
    trio.ann.api.call("Remove", Name=volume)
    trio.ann.follow(volume, ALL)
    used_on(trio.ann, volume, "2")
    trio.ann.api.call("Remove", Name=volume)
    [older, _] = [
        v
        for v in json.loads(trio.ann.cli("removed", "--json").stdout)["Removed"]
        if v["Name"] == volume
    ]
    trio.ann.cli("undelete", f"{volume}@{older['Date']}")
    trio.bob.start_service(volume).stop()
    assert trio.bob.read(volume, "log") == "2"


def test_undeleted_under_another_name_it_follows_nobody(trio: Trio, volume: str) -> None:
    everywhere(trio, volume)
    used_on(trio.ann, volume, "1")
    trio.ann.api.call("Remove", Name=volume)
    old = f"{volume}-old"
    trio.ann.cli("undelete", volume, old)
    assert "Owner" not in trio.ann.status(old)
    assert trio.ann.mount(old) == ""
    assert trio.ann.read(old, "log") == "1"


# Copies that are in the way


def kept_from(trio: Trio, node: Node, volume: str) -> str:
    """The name of a snapshot of ann's that another member has not got yet."""
    used_on(trio.ann, volume, "0")
    replicated(trio, volume, "0")
    with trio.without(node):
        used_on(trio.ann, volume, "1")
        replicated(trio, volume, "1", *(each for each in trio.nodes if each is not node))
        trio.ann.daemon.stop()  # whose rounds would bring it
    return trio.ann.copies(volume)[-1]


def test_what_a_transfer_from_a_third_host_left_behind_is_replaced(trio: Trio, volume: str) -> None:
    everywhere(trio, volume)
    name = kept_from(trio, trio.bob, volume)
    trio.bob.run("btrfs", "subvolume", "create", f"{SNAPSHOTS}/{name}")
    trio.bob.write(f"{SNAPSHOTS}/{RECEIVING}{name}", f"cleo\n{name}\n")
    trio.bob.start_service(volume).stop()
    assert trio.bob.read(volume, "log") == "1"
    assert trio.bob.unfinished(volume) == []


@pytest.mark.parametrize("kind", ["whole", "partial"])
def test_a_name_that_is_taken_where_the_volume_goes_does_not_keep_it(
    trio: Trio, volume: str, kind: str
) -> None:
    """As where names have seconds only, and two hosts took a snapshot in the same one."""
    everywhere(trio, volume)
    name = kept_from(trio, trio.bob, volume)
    trio.bob.run("btrfs", "subvolume", "create", f"{SNAPSHOTS}/{name}")
    trio.bob.write(f"{SNAPSHOTS}/{name}/file", "bob's own")
    if kind == "whole":
        trio.bob.run("btrfs", "property", "set", f"{SNAPSHOTS}/{name}", "ro", "true")
    trio.bob.start_service(volume).stop()
    assert trio.bob.read(volume, "log") == "1"
    assert trio.bob.copied_file(name, "file").read_text() == "bob's own"


def test_a_copy_that_came_by_a_third_host_is_not_in_the_way(trio: Trio, volume: str) -> None:
    everywhere(trio, volume, orphan="latest")
    name = kept_from(trio, trio.cleo, volume)
    with trio.without(trio.ann):
        trio.cleo.boot_killed_at("fetch")
        assert trio.cleo.mount(volume) == "no answer"
        trio.cleo.daemon.process.wait(LONG)
        trio.cleo.boot()
    assert name in trio.cleo.copies(volume)
    trio.cleo.start_service(volume).stop()
    assert trio.cleo.read(volume, "log") == "1"
    assert trio.cleo.forks(volume) == []


def test_two_hosts_with_one_name_are_an_error_and_no_dead_host(trio: Trio, volume: str) -> None:
    everywhere(trio, volume, orphan="latest")
    used_on(trio.ann, volume, "1")
    with trio.ann.installed_as("cleo"):
        assert "calls itself cleo" in trio.bob.mount(volume)
    trio.bob.start_service(volume).stop()


def test_a_daemon_that_is_killed_in_the_middle_loses_nothing(trio: Trio, volume: str) -> None:
    """At each step that is on a disk: of who takes it over, and of who lets it go."""
    everywhere(trio, volume)
    used_on(trio.ann, volume, "0")
    here, there = trio.ann, trio.bob
    text = "0"
    for step in ("fetch", "remember", "exchange", "remembered", "use"):
        there.boot_killed_at(step)
        assert there.mount(volume) == "no answer", step
        there.daemon.process.wait(LONG)  # its connections end before it has
        there.boot()
        here.start_service(volume).stop() if step in ("fetch", "remember") else None
        service = there.start_service(volume)
        assert there.read(volume, "log") == text, step
        text = step
        service.write("log", text)
        service.stop()
        here, there = there, here
    for step in ("snapshot", "granted"):
        with here.peer_killed_at(step):
            said = there.mount(volume)
        assert said, step
        here.start_service(volume).stop()
        service = there.start_service(volume)
        assert there.read(volume, "log") == text, step
        text = step
        service.write("log", text)
        service.stop()
        here, there = there, here
    assert [node.forks(volume) for node in trio.nodes] == [[], [], []]


# What people decide


def pair_of(trio: Trio, volume: str, **options: str) -> None:
    for node in (trio.ann, trio.bob):
        node.follow(volume, "ann:bob", **options)


def drop(node: Node, volume: str) -> None:
    """Delete it everywhere, once nothing of it is on its way, nor tried to be."""

    def is_dropped() -> bool:
        return not node.cli("follow", "drop", "--yes", volume, check=False).returncode

    wait_until(is_dropped, 2 * LONG, f"{volume} to be dropped")


def two_lines(trio: Trio, volume: str) -> None:
    """Two members have gone on, each without the owner and without the other."""
    everywhere(trio, volume)
    used_on(trio.ann, volume, "all")
    replicated(trio, volume, "all")
    with trio.without(*trio.nodes):
        for node in (trio.bob, trio.cleo):
            node.cli("follow", "take", "--yes", volume)
            used_on(node, volume, f"{node.name} alone")


def test_after_two_takes_the_lines_are_named_and_one_is_given_up(trio: Trio, volume: str) -> None:
    two_lines(trio, volume)
    trio.cleo.cli("follow", volume, "--members", "bob:cleo")  # of a line that is given up
    said = trio.bob.mount(volume)
    assert "two lines" in said
    assert trio.bob.cli("follow", volume, check=False).returncode == 1
    [epoch] = re.findall(r"cleo began ([0-9a-f]+)", said)

    trio.bob.cli("follow", "resolve", "--yes", volume, epoch, "drop")
    trio.cleo.look_after(volume)
    [fork] = wait_until(lambda: trio.cleo.forks(volume), LONG, "cleo to keep what it held")
    assert trio.cleo.copied_file(fork, "log").read_text() == "cleo alone"
    trio.ann.start_service(volume).stop()
    trio.cleo.start_service(volume).stop()
    assert trio.cleo.read(volume, "log") == "bob alone"

    shown = trio.bob.cli("follow", volume, check=False)
    assert (shown.returncode, fork in shown.stdout) == (1, True)
    clone = f"{volume}-clone"
    assert trio.cleo.cli("follow", "resolve", volume, fork, "clone", clone).stdout == f"{clone}\n"
    assert trio.cleo.read(clone, "log") == "cleo alone"
    assert "Owner" not in trio.cleo.status(clone)
    assert trio.cleo.forks(volume) == []


def test_a_member_that_takes_long_to_receive_keeps_no_other_from_its_copies(
    trio: Trio, volume: str
) -> None:
    everywhere(trio, volume)
    service = trio.ann.start_service(volume)
    replicated_once = partial(trio.bob.copies, volume)
    wait_until(replicated_once, LONG, "the first round")
    service.write("log", "1")
    with trio.cleo.receiving_nothing():
        trio.ann.cli("follow", volume, "--every", "7")  # has a round at once
        wait_until(lambda: trio.cleo.unfinished(volume), LONG, "the copy to be on its way")
        service.write("log", "2")
        trio.ann.cli("follow", volume, "--every", "8")
        replicated(trio, volume, "2", trio.bob)
        assert trio.cleo.unfinished(volume)
    service.stop()
    replicated(trio, volume, "2", trio.cleo)


def test_who_takes_goes_on_and_what_the_owner_had_is_a_fork(trio: Trio, volume: str) -> None:
    everywhere(trio, volume)
    used_on(trio.ann, volume, "1")
    replicated(trio, volume, "1")
    refused = trio.bob.cli("follow", "take", volume, check=False)
    assert "its owner ann answers" in refused.stderr
    trio.cleo.api.call("Remove", Name=volume)
    refused = trio.cleo.cli("follow", "take", volume, check=False)
    assert f"docker volume create -d btrfs -o follow=ann:bob:cleo {volume}" in refused.stderr
    trio.cleo.follow(volume, ALL)
    with trio.without(trio.ann):
        trio.ann.file(volume, "log").write_text("2")
        taken = trio.bob.cli("follow", "take", "--yes", volume)
        assert taken.stdout.strip() in trio.bob.copies(volume)
        assert taken.stdout.strip() in taken.stderr
        trio.bob.start_service(volume).stop()
        assert trio.bob.read(volume, "log") == "1"
    trio.ann.look_after(volume)
    [fork] = wait_until(lambda: trio.ann.forks(volume), LONG, "ann to keep what it held")
    assert trio.ann.copied_file(fork, "log").read_text() == "2"
    assert ("fork", f"{fork} on ann is a fork: it is in no other copy") in trio.ann.problems(volume)
    trio.ann.cli("follow", "resolve", "--yes", volume, fork, "drop")
    assert fork not in trio.ann.copies(volume)
    assert "fork" not in [kind for kind, _ in trio.ann.problems(volume)]


def test_all_can_be_seen_of_it(trio: Trio, volume: str) -> None:
    everywhere(trio, volume)
    service = trio.ann.start_service(volume)
    service.write("log", "1")
    replicated(trio, volume, "1")
    [seen] = json.loads(trio.cleo.cli("follow", "--json", volume).stdout)["Volumes"]
    assert (seen["Owner"], seen["Epoch"], seen["Healthy"]) == ("ann", 1, True)
    assert [each["Name"] for each in seen["Members"]] == ["ann", "bob", "cleo"]
    assert [each["InUse"] for each in seen["Members"]] == [True, False, False]
    assert len({each["Copy"] for each in seen["Members"]}) == 1
    assert "owned by ann" in trio.bob.cli("follow", volume).stdout
    with trio.without(trio.cleo):
        shown = trio.bob.cli("follow", volume, check=False)
        [(kind, message)] = trio.bob.problems(volume)
        status = trio.bob.cli("status", volume, check=False)
    assert (shown.returncode, "cleo does not answer" in shown.stdout) == (1, True)
    assert (kind, message.partition(":")[0]) == ("lag", "cleo does not answer")
    assert re.search(rf"{volume} +cleo +silent", status.stdout)
    asks = partial(trio.bob.cli, "follow", volume, check=False)
    wait_until(lambda: not asks().returncode, LONG, "cleo to answer again")
    assert trio.bob.problems(volume) == []
    plain = f"{volume}-plain"
    trio.ann.create(plain)
    assert "follows nobody" in trio.ann.cli("follow", plain, check=False).stderr
    assert "no such volume" in trio.ann.cli("follow", f"{plain}-not", check=False).stderr


def test_while_it_is_being_sent_it_is_not_dropped(trio: Trio, volume: str) -> None:
    pair_of(trio, volume)
    service = trio.ann.start_service(volume)
    trio.ann.file(volume, "big").write_bytes(os.urandom(16 << 20))
    service.kill()
    trio.network.limit("bob", "2mbit")
    try:
        unmount = trio.ann.start("Unmount", Name=volume, ID=service.user)
        wait_until(trio.ann.transfers, LONG, "the copy to be on its way")
        refused = trio.ann.cli("follow", "drop", "--yes", volume, check=False)
    finally:
        trio.network.unlimit("bob")
    assert "it is being sent to bob" in refused.stderr
    assert unmount.error(150) == ""
    assert trio.ann.file(volume, "big").exists()
    drop(trio.ann, volume)
    assert not trio.ann.file(volume, "").exists()


def test_no_member_drops_it_while_its_owner_sends_it(trio: Trio, volume: str) -> None:
    everywhere(trio, volume)
    used_on(trio.ann, volume, "1")
    replicated(trio, volume, "1")
    trio.ann.file(volume, "big").write_bytes(os.urandom(24 * MEBIBYTE))
    with trio.bob.receiving_nothing():
        trio.ann.look_after(volume)
        wait_until(lambda: trio.bob.unfinished(volume), LONG, "the copy to be on its way")
        copies = trio.ann.copies(volume)

        def is_refused_for_that() -> bool:
            refused = trio.cleo.cli("follow", "drop", "--yes", volume, check=False)
            assert refused.returncode, "it is dropped in the middle of a send"
            return "it is being sent to bob, cleo from ann" in refused.stderr

        wait_until(is_refused_for_that, LONG, "ann to be asked")
        assert trio.ann.copies(volume) == copies
        assert trio.ann.read(volume, "log") == "1"
    drop(trio.cleo, volume)
    for node in trio.nodes:
        assert node.snapshot_names(volume) + node.unfinished(volume) == []


def test_who_has_not_heard_of_a_new_member_drops_it_there_too(trio: Trio, volume: str) -> None:
    pair_of(trio, volume)
    used_on(trio.ann, volume, "1")
    replicated(trio, volume, "1", trio.bob)
    with trio.without(trio.bob):
        trio.ann.cli("follow", volume, "--members", ALL)
        replicated(trio, volume, "1", trio.cleo)
    drop(trio.bob, volume)
    assert [node.snapshot_names(volume) for node in trio.nodes] == [[], [], []]


def test_what_is_told_of_a_dropped_volume_is_not_about_a_new_one(trio: Trio, volume: str) -> None:
    everywhere(trio, volume)
    used_on(trio.ann, volume, "old")
    replicated(trio, volume, "old")
    assert "owned by ann" in trio.bob.cli("follow", volume, check=False).stdout
    with trio.cleo.in_a_round(volume, trio.bob):
        drop(trio.ann, volume)
        trio.bob.follow(volume, ALL)
    assert trio.bob.status(volume)["Owner"] is None
    with trio.without(trio.ann):
        shown = trio.bob.cli("follow", volume, check=False).stdout
    assert "not used by anybody yet" in shown
    trio.bob.start_service(volume).stop()
    assert trio.bob.status(volume)["Epoch"] == 1, "it begins anew"


def test_terms_that_are_set_before_anybody_uses_it_hold(trio: Trio, volume: str) -> None:
    everywhere(trio, volume, orphan="latest")
    trio.ann.cli("follow", volume, "--every", "7", "--orphan", "refuse")
    said = trio.cleo.cli("follow", volume, "--every", "9").stdout
    assert "every=9 orphan=refuse" in said, "what ann has set stays"
    trio.bob.start_service(volume).stop()
    [seen] = json.loads(trio.bob.cli("follow", "--json", volume, check=False).stdout)["Volumes"]
    assert (seen["Owner"], seen["Every"], seen["Orphan"]) == ("bob", 9, "refuse")


def test_it_is_looked_after_though_another_one_had_its_name(trio: Trio, volume: str) -> None:
    trio.ann.create(volume)
    assert volume not in trio.ann.cli("follow", check=False).stdout
    trio.ann.api.call("Remove", Name=volume)
    trio.ann.follow(volume, ALL)
    assert volume in trio.ann.cli("follow", check=False).stdout


def test_its_owner_can_give_it_other_terms(trio: Trio, volume: str) -> None:
    pair_of(trio, volume)
    used_on(trio.ann, volume, "1")
    said = trio.bob.cli("follow", volume, "--every", "7", check=False)
    assert "on ann" in said.stderr
    trio.ann.cli("follow", volume, "--members", "cleo,ann", "--every", "7")
    wait_until(lambda: trio.cleo.has_file(volume, "log", "1"), LONG, "cleo to have it")
    trio.cleo.follow(volume, "ann:bob:cleo")
    trio.cleo.start_service(volume).stop()
    assert trio.cleo.read(volume, "log") == "1"

    def is_told() -> bool:
        said = trio.bob.mount(volume)
        assert said, "it is mounted by who is no member"
        return "none of its members" in said

    wait_until(is_told, LONG, "bob to hear of the change")


def test_dropped_it_is_gone_everywhere_or_nowhere(trio: Trio, volume: str) -> None:
    everywhere(trio, volume)
    used_on(trio.ann, volume, "1")
    replicated(trio, volume, "1")
    with trio.without(trio.cleo):
        assert "cleo" in trio.ann.cli("follow", "drop", "--yes", volume, check=False).stderr
    assert trio.ann.read(volume, "log") == "1"
    unfinished = f"{SNAPSHOTS}/{volume}@2026-11-26T10:00:00.000000"
    trio.bob.run("btrfs", "subvolume", "create", unfinished)
    with trio.cleo.in_a_round(volume, trio.bob):
        drop(trio.ann, volume)
    for node in trio.nodes:
        assert node.snapshot_names(volume) == []
        assert not node.file(volume, "").exists()
        assert not node.path(f"/etc/buttervolume/follow/{volume}.json").exists()
    everywhere(trio, volume)
    trio.bob.start_service(volume).stop()
    assert trio.bob.status(volume)["Epoch"] == 1, "it begins anew"
