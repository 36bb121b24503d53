"""Snapshots received from another host, mirrored and replicated, with `buttervolume peer` there."""

import os
from collections.abc import Iterator
from itertools import pairwise

import pytest

from tests.hosts.harness import MEBIBYTE, SNAPSHOTS, VOLUMES, Host, Pair
from tests.hosts.test_belief import equal, forge, note_of
from tests.hosts.test_field import bound
from tests.hosts.test_send import content, is_incremental, snapshot_with
from tests.support.wait import wait_until


@pytest.fixture
def with_peer(alpha: Host, beta: Host) -> Iterator[None]:
    """Both hosts have `buttervolume` where who logs in finds it."""
    for host in (alpha, beta):
        host.install()
    yield
    for host in (alpha, beta):
        host.uninstall()


def receive(host: Host, name: str, origin: str = "beta") -> str:
    """Receive and return the snapshot's name."""
    received: str = host.api.call("Snapshot.Receive", Name=name, Host=origin)["Snapshot"]
    return received


@pytest.fixture
def there(beta: Host, volume: str) -> str:
    """The volume on beta that has the same name as the one on alpha."""
    beta.create(volume)
    return volume


# Receive


@pytest.mark.usefixtures("with_peer")
def test_the_newest_is_received_first_in_full_and_then_as_changes(
    alpha: Host, beta: Host, there: str
) -> None:
    first = snapshot_with(beta, there, "big", content(4 * MEBIBYTE))
    assert receive(alpha, there) == first
    assert equal(alpha, beta, first)
    assert f"{first}@alpha" in beta.snapshot_names(there), "beta keeps the parent"

    second = snapshot_with(beta, there, "small", b"2")
    before = beta.bytes_sent()
    assert receive(alpha, there) == second
    assert beta.bytes_sent() - before < MEBIBYTE
    assert is_incremental(alpha, second, first)
    assert equal(alpha, beta, second)
    assert not alpha.file(there, "small").exists(), "nothing is restored"
    assert not alpha.path(note_of(second)).exists()


@pytest.mark.usefixtures("with_peer")
def test_what_is_here_already_is_a_success(alpha: Host, beta: Host, there: str) -> None:
    name = snapshot_with(beta, there, "big", content())
    assert receive(alpha, there) == name
    before, copy = beta.bytes_sent(), alpha.show(name)
    assert receive(alpha, name) == name
    assert beta.bytes_sent() - before < MEBIBYTE
    assert alpha.show(name) == copy


@pytest.mark.usefixtures("with_peer")
def test_from_a_host_that_cannot_mark_what_was_received_it_comes_all_the_same(
    alpha: Host, beta: Host, there: str
) -> None:
    """Its disk may take nothing more: the more reason to have what is on it."""
    name = snapshot_with(beta, there, "file", b"1")
    beta.run("mkdir", f"{SNAPSHOTS}/{name}@alpha")
    before = len(alpha.daemon.log())
    for _ in ("now it comes", "now it is here"):
        assert receive(alpha, there) == name
    beta.run("rmdir", f"{SNAPSHOTS}/{name}@alpha")

    assert equal(alpha, beta, name)
    assert alpha.daemon.log()[before:].count("beta does not keep") == 2


BROUGHT_MEANWHILE = """
from buttervolume.errors import CopyInTheWay
from buttervolume.hosts.intake import Intake
receive = Intake.receive

def brought(self, name, *rest, **more):
    Intake.receive = receive
    receive(self, name, *rest, **more)
    raise CopyInTheWay(str(name))

Intake.receive = brought
"""


@pytest.mark.usefixtures("with_peer")
def test_what_somebody_else_brings_between_the_look_and_the_transfer_is_here(
    alpha: Host, beta: Host, there: str
) -> None:
    """As the owner of a followed volume may, while another member mounts it."""
    name = snapshot_with(beta, there, "file", b"1")

    said = alpha.program(
        f"{BROUGHT_MEANWHILE}print(replication().receive({name!r}, 'beta').snapshot)"
    )

    assert said == f"{name}\n"
    assert equal(alpha, beta, name)


@pytest.mark.usefixtures("with_peer")
def test_a_snapshot_can_be_named(alpha: Host, beta: Host, there: str) -> None:
    older = snapshot_with(beta, there, "file", b"1")
    snapshot_with(beta, there, "file", b"2")
    assert alpha.cli("receive", "beta", older).stdout == f"{older}\n"
    assert alpha.snapshot_names(there) == [older]
    assert equal(alpha, beta, older)


@pytest.mark.usefixtures("with_peer")
def test_a_beginning_that_one_snapshot_there_has_will_do(
    alpha: Host, beta: Host, there: str
) -> None:
    older = snapshot_with(beta, there, "file", b"1")
    newer = snapshot_with(beta, there, "file", b"2")
    beginning = next(older[:end] for end in range(len(older)) if not newer.startswith(older[:end]))

    ambiguous = alpha.api.refused("Snapshot.Receive", Name=f"{there}@2", Host="beta")
    assert "several snapshots begin so" in ambiguous
    assert older in ambiguous
    assert alpha.snapshot_names(there) == []
    assert receive(alpha, beginning) == older
    assert receive(alpha, beginning) == older, "the marker there is not meant"
    assert alpha.snapshot_names(there) == [older]
    restored = alpha.api.call("Snapshot.Restore", Name=beginning, From="beta")["Restored"]
    assert restored == older


@pytest.mark.usefixtures("with_peer")
def test_the_way_back_is_restored_in_one_command(alpha: Host, beta: Host, volume: str) -> None:
    first = snapshot_with(alpha, volume, "big", content(4 * MEBIBYTE))
    assert alpha.send(first, beta) == ""
    beta.api.call("Snapshot.Restore", Name=first)
    second = snapshot_with(beta, volume, "small", b"from beta")

    before = beta.bytes_sent()
    ended = alpha.cli("restore", "--from", "beta", volume)

    assert beta.bytes_sent() - before < MEBIBYTE
    assert is_incremental(alpha, second, first)
    assert alpha.file(volume, "small").read_bytes() == b"from beta"
    assert ended.stdout.startswith(f"{volume}@")
    assert ended.stdout.strip() in alpha.snapshot_names(volume)


@pytest.mark.usefixtures("with_peer")
def test_what_cannot_be_received_is_said(alpha: Host, beta: Host, there: str) -> None:
    def refused(name: str, host: str = "beta") -> str:
        return alpha.api.refused("Snapshot.Receive", Name=name, Host=host)

    assert "there is no snapshot of this volume" in refused(there)
    assert "no such snapshot" in refused(f"{there}@nothing")
    assert "Could not resolve" in refused(there, "nohost")
    assert "is not allowed" in refused(there, "root@beta")
    name = snapshot_with(beta, there, "file", b"1")
    alpha.run("btrfs", "subvolume", "create", f"{SNAPSHOTS}/{name}")
    alpha.run("btrfs", "property", "set", "-ts", f"{SNAPSHOTS}/{name}", "ro", "true")
    assert "never touched" in refused(name)
    assert alpha.snapshot_names(there) == [name]


def test_a_host_without_buttervolume_says_what_to_install(
    alpha: Host, beta: Host, there: str
) -> None:
    snapshot_with(beta, there, "file", b"1")
    refusal = alpha.api.refused("Snapshot.Receive", Name=there, Host="beta")
    assert "no buttervolume 3.15" in refusal
    assert "install" in refusal


@pytest.mark.usefixtures("with_peer")
def test_a_volume_here_that_poses_as_the_parent_is_not_taken_for_it(
    alpha: Host, beta: Host, there: str
) -> None:
    first = snapshot_with(beta, there, "big", content())
    receive(alpha, there)
    forge(alpha, f"{VOLUMES}/{there}", beta.show(first)["UUID"])
    second = snapshot_with(beta, there, "small", b"2")
    assert receive(alpha, there) == second
    assert equal(alpha, beta, second)


@pytest.mark.usefixtures("with_peer")
def test_while_it_comes_it_is_partial_and_it_can_be_cancelled(pair: Pair, there: str) -> None:
    alpha, beta = pair.alpha, pair.beta
    name = snapshot_with(beta, there, "big", content(16 * MEBIBYTE))
    pair.network.limit("beta", "8mbit")
    receiving = alpha.start("Snapshot.Receive", Name=there, Host="beta")
    alpha.wait_for_bytes(MEBIBYTE)
    [transfer] = alpha.transfers()
    assert (transfer["Operation"], transfer["Snapshot"]) == ("receive", name)
    wait_until(lambda: name in alpha.snapshot_names(there), 60, "the copy to begin")
    assert alpha.path(note_of(name)).exists()
    assert alpha.api.call("Snapshot.List", Name=there)["Snapshots"] == []
    alpha.api.call("Transfers.Cancel", Id=transfer["Id"])
    assert receiving.error(20) == "the transfer was cancelled"
    pair.wait_until_idle(60)
    assert alpha.snapshot_names(there) == []
    assert not alpha.path(note_of(name)).exists()


@pytest.mark.usefixtures("with_peer")
def test_what_is_being_received_and_its_parent_are_held_there(pair: Pair, there: str) -> None:
    alpha, beta = pair.alpha, pair.beta
    aged = [f"{there}@2020-0{month}-01T00:00:00.000000" for month in (1, 2, 3)]
    for name, size in zip(aged, (1, 1, 16), strict=True):
        taken = snapshot_with(beta, there, "big", content(size * MEBIBYTE))
        beta.path(f"{SNAPSHOTS}/{taken}").rename(beta.path(f"{SNAPSHOTS}/{name}"))
    oldest, parent, sent = aged
    newest = beta.snapshot(there)
    assert receive(alpha, parent) == parent
    pair.network.limit("beta", "2mbit")
    receiving = alpha.start("Snapshot.Receive", Name=sent, Host="beta")
    alpha.wait_for_bytes()

    for held in (parent, sent):
        assert "under way" in beta.api.refused("Snapshot.Remove", Name=held)
    assert beta.api.call("Snapshots.Purge", Name=there, Pattern="1h:1h")["Purged"] == [oldest]
    assert not receiving.is_over()

    pair.network.unlimit("beta")
    assert receiving.error() == ""
    assert equal(alpha, beta, sent)
    assert beta.snapshot_names(there) == [parent, sent, f"{sent}@alpha", newest]


@pytest.mark.usefixtures("with_peer")
def test_the_same_receive_again_is_refused_as_one(pair: Pair, there: str) -> None:
    alpha, beta = pair.alpha, pair.beta
    snapshot_with(beta, there, "big", content(16 * MEBIBYTE))
    pair.network.limit("beta", "2mbit")
    receiving = alpha.start("Snapshot.Receive", Name=there, Host="beta")
    alpha.wait_for_bytes()

    refusal = alpha.start("Snapshot.Receive", Name=there, Host="beta").error()

    assert refusal == f"{there}: a receive of this volume from beta is under way already"
    [transfer] = alpha.transfers()
    alpha.api.call("Transfers.Cancel", Id=transfer["Id"])
    assert receiving.error() == "the transfer was cancelled"


@pytest.mark.usefixtures("with_peer")
def test_what_would_fill_the_disk_here_does_not_come_in(
    alpha: Host, tiny: Host, volume: str
) -> None:
    name = snapshot_with(alpha, volume, "big", content(MEBIBYTE))
    before = sorted(path.name for path in tiny.path(SNAPSHOTS).iterdir())
    alpha.authorize(tiny)

    refusal = tiny.start("Snapshot.Receive", Name=volume, Host="alpha").error()

    assert "are to be kept (MIN_FREE)" in refusal
    assert sorted(path.name for path in tiny.path(SNAPSHOTS).iterdir()) == before
    assert alpha.snapshot_names(volume) == [name], "nothing is marked that has not arrived"


@pytest.mark.usefixtures("with_peer")
def test_into_a_bind_mount_here_all_comes_with_a_warning(
    alpha: Host, beta: Host, there: str
) -> None:
    program = f"""
for _ in range(2):
    received = replication()._made.receive({there!r}, "beta")
    print(received.snapshot, received.warning)
"""
    with bound(alpha):
        for number in range(2):
            name = snapshot_with(beta, there, f"file{number}", b"x")
            said = alpha.program(program).splitlines()
            assert said[0].startswith(f"{name} this host: ")
            assert "is in a bind mount of a plain directory" in said[0]
            assert said[1].strip() == name, "it is here already"
            assert alpha.show(name)["Parent UUID"] == "-"
            assert equal(alpha, beta, name)


@pytest.mark.usefixtures("with_peer")
def test_a_restore_from_another_host_is_a_transfer(pair: Pair, there: str) -> None:
    alpha, beta = pair.alpha, pair.beta
    name = snapshot_with(beta, there, "big", content(16 * MEBIBYTE))
    pair.network.limit("beta", "8mbit")
    ticket = {"Ticket": "0" * 32}
    restoring = alpha.start("Snapshot.Restore", Name=there, From="beta", Force=True, **ticket)
    alpha.wait_for_bytes(MEBIBYTE)
    [transfer] = alpha.transfers()
    assert (transfer["Snapshot"], transfer["Ticket"]) == (name, ticket["Ticket"])

    alpha.api.call("Transfers.Cancel", **ticket)

    assert restoring.error(20) == "the transfer was cancelled"
    assert alpha.snapshot_names(there) == []


@pytest.mark.usefixtures("with_peer")
def test_a_restore_that_will_be_refused_is_so_before_anything_comes(
    alpha: Host, beta: Host, there: str
) -> None:
    snapshot_with(beta, there, "file", b"1")
    alpha.api.call("Create", Name=there)

    def refused() -> str:
        return alpha.api.refused("Snapshot.Restore", Name=there, From="beta")

    alpha.api.call("Mount", Name=there, ID="container")
    assert "a container uses this volume" in refused()
    alpha.api.call("Unmount", Name=there, ID="container")
    alpha.run("btrfs", "subvolume", "create", f"{VOLUMES}/{there}/nested")
    assert "nested" in refused()
    assert alpha.snapshot_names(there) == []

    restored = alpha.api.call("Snapshot.Restore", Name=there, From="beta", Force=True)
    assert alpha.snapshot_names(there) == sorted([restored["Restored"], restored["VolumeBackup"]])


# Histories that have gone their own ways


@pytest.mark.parametrize("peer", [True, False])
def test_a_history_of_the_other_host_is_not_buried(
    alpha: Host, beta: Host, there: str, peer: bool
) -> None:
    if peer:
        beta.install()
    try:
        shared = snapshot_with(alpha, there, "file", b"1")
        assert alpha.send(shared, beta) == ""
        theirs = snapshot_with(beta, there, "file", b"theirs")
        ours = snapshot_with(alpha, there, "file", b"ours")

        error = alpha.send(ours, beta)

        assert theirs in error
        assert ours in error
        assert "--force" in error
        assert ours not in beta.snapshot_names(there)
        failed = alpha.cli("replicate", "beta", there, check=False)
        assert failed.returncode == 1
        assert "has gone its own way on beta" in failed.stderr
        assert alpha.cli("send", "--force", "beta", ours).returncode == 0
        assert equal(alpha, beta, ours)
        after = snapshot_with(alpha, there, "file", b"more of ours")
        assert alpha.send(after, beta) == ""
        assert is_incremental(beta, after, ours)
    finally:
        beta.uninstall()


@pytest.mark.usefixtures("with_peer")
def test_a_history_that_came_here_is_an_ancestor(alpha: Host, beta: Host, there: str) -> None:
    theirs = snapshot_with(beta, there, "file", b"theirs")
    assert receive(alpha, there) == theirs
    ours = snapshot_with(alpha, there, "file", b"ours")
    assert alpha.send(ours, beta) == ""


def test_a_host_that_only_keeps_copies_never_diverges(
    alpha: Host, beta: Host, gamma: Host, volume: str
) -> None:
    for number in (1, 2):
        assert alpha.send(snapshot_with(alpha, volume, "file", b"%d" % number), beta) == ""
    for name in alpha.snapshot_names(volume):
        alpha.run("btrfs", "subvolume", "delete", f"{SNAPSHOTS}/{name}")
    assert alpha.send(snapshot_with(alpha, volume, "file", b"3"), beta) == ""
    gamma.create(volume)
    assert gamma.send(snapshot_with(gamma, volume, "file", b"g"), beta) != ""
    last = snapshot_with(alpha, volume, "file", b"4")
    assert alpha.send(last, beta) == ""


@pytest.mark.usefixtures("with_peer")
def test_the_backup_that_a_restore_made_there_is_no_history(
    alpha: Host, beta: Host, there: str
) -> None:
    first = snapshot_with(alpha, there, "file", b"1")
    assert alpha.send(first, beta) == ""
    beta.api.call("Snapshot.Restore", Name=first)
    second = snapshot_with(alpha, there, "file", b"2")
    assert alpha.send(second, beta) == ""


# Push, by the peer


@pytest.mark.usefixtures("with_peer")
def test_sends_over_the_peer_are_changes_and_leave_settled_copies(
    alpha: Host, beta: Host, volume: str
) -> None:
    first = snapshot_with(alpha, volume, "big", content(4 * MEBIBYTE))
    with beta.shim("sync", "echo the scripts were used >&2; exit 1"):
        assert alpha.send(first, beta) == ""
        second = snapshot_with(alpha, volume, "small", b"2")
        before = alpha.bytes_sent()
        assert alpha.send(second, beta) == ""
    assert alpha.bytes_sent() - before < MEBIBYTE
    assert is_incremental(beta, second, first)
    assert equal(alpha, beta, second)
    changed = """
btrfs property set -f -ts "$1" ro false && echo more > "$1/more"
btrfs property set -ts "$1" ro true
"""
    beta.run("sh", "-ec", changed, "sh", f"{SNAPSHOTS}/{second}")
    assert "something else" in alpha.send(second, beta)
    third = snapshot_with(alpha, volume, "third", b"3")
    assert "has gone its own way" in alpha.send(third, beta), "it was changed there"
    alpha.api.call("Snapshot.Send", Name=third, Host="beta", Force=True)
    assert equal(alpha, beta, third)


@pytest.mark.usefixtures("with_peer")
def test_a_mirror_gets_every_snapshot_in_their_order(alpha: Host, beta: Host, volume: str) -> None:
    names = [snapshot_with(alpha, volume, f"file{n}", content(200_000)) for n in range(3)]
    ended = alpha.cli("send", "--all", "beta", volume)
    assert ended.stdout.split() == names
    assert beta.snapshot_names(volume) == names
    for parent, name in pairwise(names):
        assert is_incremental(beta, name, parent)
        assert equal(alpha, beta, name)
    assert alpha.cli("send", "--all", "beta", volume).stdout == ""
    more = snapshot_with(alpha, volume, "more", b"m")
    assert alpha.cli("send", "--all", "beta", volume).stdout.split() == [more]


def test_a_mirror_gets_what_a_restore_has_kept_even_if_that_is_all(
    alpha: Host, beta: Host, volume: str
) -> None:
    first = snapshot_with(alpha, volume, "file", b"1")
    alpha.file(volume, "file").write_bytes(b"2")
    backup = alpha.api.call("Snapshot.Restore", Name=first)["VolumeBackup"]
    alpha.api.call("Snapshot.Remove", Name=first)

    assert alpha.cli("send", "--all", "beta", volume).stdout.split() == [backup]
    assert equal(alpha, beta, backup)


@pytest.mark.usefixtures("with_peer")
def test_a_mirror_leaves_out_what_is_removed_before_its_turn(pair: Pair, volume: str) -> None:
    alpha, beta = pair.alpha, pair.beta
    first, second, third = [
        snapshot_with(alpha, volume, f"file{n}", content(1_000_000)) for n in range(3)
    ]
    pair.network.limit("beta", "4mbit")
    mirror = alpha.start("Snapshot.Send", Name=volume, Host="beta", All=True)
    alpha.wait_for_bytes(100_000)
    alpha.api.call("Snapshot.Remove", Name=second)
    pair.network.unlimit("beta")

    assert mirror.error() == ""
    assert beta.snapshot_names(volume) == [first, third]
    assert is_incremental(beta, third, first)


def test_replicate_is_what_the_job_does_now(alpha: Host, beta: Host, volume: str) -> None:
    alpha.file(volume, "file").write_bytes(os.urandom(1000))
    created = alpha.api.call("Replicate", Name=volume, Host="beta")
    assert created["Created"] is True
    name = created["Snapshot"]
    assert equal(alpha, beta, name)
    again = alpha.api.call("Replicate", Name=volume, Host="beta")
    assert (again["Snapshot"], again["Created"]) == (name, False)
    assert alpha.cli("replicate", "beta", volume).stdout == f"{name}\n"
