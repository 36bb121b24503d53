"""Neither a container nor another host is believed: what passes for a copy or a parent is one."""

import subprocess
import uuid
from pathlib import Path

import pytest

from buttervolume import names
from tests.hosts.harness import SNAPSHOTS, VOLUMES, Host, Pair
from tests.hosts.test_send import (
    RECEIVED_UUID_ON_WRITABLE,
    content,
    is_copy,
    is_incremental,
    snapshot_with,
)
from tests.support.wait import wait_until


def forge(host: Host, path: str, value: str) -> None:
    """Give a subvolume a Received UUID, as its owner may."""
    host.run("python3", "-c", RECEIVED_UUID_ON_WRITABLE, path, value.replace("-", ""))


def take_as_before(host: Host, volume: str, date: str) -> str:
    """A snapshot as older versions took it, with the Received UUID of the volume."""
    name = f"{volume}@{date}"
    host.run("btrfs", "subvolume", "snapshot", "-r", f"{VOLUMES}/{volume}", f"{SNAPSHOTS}/{name}")
    return name


def equal(one: Host, other: Host, snapshot: str) -> bool:
    paths = [str(host.path(f"{SNAPSHOTS}/{snapshot}")) for host in (one, other)]
    argv = ["diff", "--recursive", "--no-dereference", *paths]
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


def test_snapshots_of_one_identity_are_not_taken_for_each_other(
    alpha: Host, beta: Host, volume: str
) -> None:
    forge(alpha, f"{VOLUMES}/{volume}", uuid.uuid4().hex)
    for number in range(1, 5):
        alpha.file(volume, f"file{number}").write_bytes(b"x" * number)
        name = take_as_before(alpha, volume, f"2026-01-0{number}T00:00:00.000000")
        error = alpha.send(name, beta)
        assert error or equal(alpha, beta, name)
    last = alpha.snapshot(volume)
    assert alpha.send(last, beta) == ""
    assert equal(alpha, beta, last)


def test_a_copy_that_was_purged_is_not_found_in_one_of_the_same_identity(
    alpha: Host, beta: Host, volume: str
) -> None:
    """One there, one here, the same identity, and not the same."""
    forge(alpha, f"{VOLUMES}/{volume}", uuid.uuid4().hex)
    alpha.file(volume, "link").symlink_to("/etc")
    first = take_as_before(alpha, volume, "2026-01-01T00:00:00.000000")
    assert alpha.send(first, beta) == ""
    alpha.file(volume, "link").unlink()
    alpha.file(volume, "link").mkdir()
    second = take_as_before(alpha, volume, "2026-01-02T00:00:00.000000")
    alpha.api.call("Snapshot.Remove", Name=first)
    alpha.file(volume, "link/hostname").write_bytes(b"by the container\n")
    third = alpha.snapshot(volume)
    before = beta.path("/etc/hostname").read_bytes()

    assert alpha.send(third, beta) == ""

    assert equal(alpha, beta, third)
    assert beta.show(third)["Parent UUID"] == "-"
    assert beta.path("/etc/hostname").read_bytes() == before
    assert second in alpha.snapshot_names(volume)


def test_a_volume_made_of_anothers_snapshot_does_not_disturb_its_sends(
    alpha: Host, beta: Host, volume: str
) -> None:
    first = snapshot_with(alpha, volume, "big", content())
    assert alpha.send(first, beta) == ""
    identity = alpha.show(first)["UUID"]
    impostor = f"{volume}-copy"
    alpha.api.call("Snapshot.Restore", Name=first, Target=impostor)
    forge(alpha, f"{VOLUMES}/{impostor}", identity)
    alpha.file(impostor, "mine").write_bytes(b"mine")
    posing = take_as_before(alpha, impostor, "2026-01-01T00:00:00.000000")
    second = snapshot_with(alpha, volume, "small", b"2")

    assert alpha.send(second, beta) == ""

    assert is_incremental(beta, second, first)
    assert equal(alpha, beta, second)
    for name in (posing, snapshot_with(alpha, impostor, "more", b"m")):
        assert alpha.send(name, beta) or equal(alpha, beta, name)


def test_a_volume_there_that_poses_as_the_parent_is_not_taken_for_it(
    alpha: Host, beta: Host, volume: str
) -> None:
    first = snapshot_with(alpha, volume, "big", content())
    assert alpha.send(first, beta) == ""
    second = snapshot_with(alpha, volume, "small", b"2")
    impostor = f"{volume}-impostor"
    beta.create(impostor)
    forge(beta, f"{VOLUMES}/{impostor}", alpha.show(first)["UUID"])

    assert alpha.send(second, beta) == ""

    assert equal(alpha, beta, second)


CHANGE_A_COPY = """
set -e
btrfs property set -f -ts "$1" ro false
echo changed > "$1/changed"
btrfs property set -ts "$1" ro true
"""


def test_a_snapshot_that_was_changed_after_it_was_sent_is_no_parent(
    alpha: Host, beta: Host, volume: str
) -> None:
    first = snapshot_with(alpha, volume, "file", b"1")
    assert alpha.send(first, beta) == ""
    alpha.run("sh", "-c", CHANGE_A_COPY, "sh", f"{SNAPSHOTS}/{first}")
    second = snapshot_with(alpha, volume, "file", b"2")

    assert alpha.send(second, beta) == ""

    assert equal(alpha, beta, second)
    assert "something else" in alpha.send(first, beta)
    assert not beta.copied_file(first, "changed").exists()


def test_a_copy_that_was_made_writable_there_is_never_deleted(
    alpha: Host, beta: Host, volume: str
) -> None:
    first = snapshot_with(alpha, volume, "file", b"1")
    assert alpha.send(first, beta) == ""
    path = f"{SNAPSHOTS}/{first}"
    beta.run("btrfs", "property", "set", "-f", "-ts", path, "ro", "false")
    beta.copied_file(first, "precious").write_bytes(b"only here")
    assert beta.show(first)["Received UUID"] == "-"

    assert "something else" in alpha.send(first, beta)
    second = snapshot_with(alpha, volume, "file", b"2")
    assert alpha.send(second, beta) == ""

    assert equal(alpha, beta, second)
    assert beta.copied_file(first, "precious").read_bytes() == b"only here"


ANOTHER_COPY = f"""
[ "$1" = receive ] || exec $real "$@"
cat > /dev/null
$real subvolume create {SNAPSHOTS}/NAME >&2
$real property set -ts {SNAPSHOTS}/NAME ro true
"""


def test_what_arrives_must_be_what_was_sent(alpha: Host, beta: Host, volume: str) -> None:
    snapshot = snapshot_with(alpha, volume, "file", b"1")
    with beta.shim("btrfs", ANOTHER_COPY.replace("NAME", snapshot)):
        assert "the copy is not what was sent" in alpha.send(snapshot, beta)
    assert alpha.snapshot_names(volume) == [snapshot]
    assert beta.snapshot_names(volume) == []
    assert alpha.send(snapshot, beta) == ""
    assert equal(alpha, beta, snapshot)


def test_receiving_can_write_below_the_snapshots_only(alpha: Host, beta: Host, volume: str) -> None:
    calls = f'echo "$@" >> /run/{volume}.calls; exec $real "$@"'
    with beta.shim("btrfs", calls):
        assert alpha.send(snapshot_with(alpha, volume, "file", b"1"), beta) == ""
    received = [
        line
        for line in beta.path(f"/run/{volume}.calls").read_text().splitlines()
        if line.startswith("receive")
    ]
    assert received == [f"receive -C {SNAPSHOTS}"]


# Other subvolumes of a copy's name


def test_a_copy_elsewhere_on_the_filesystem_is_none(alpha: Host, beta: Host, volume: str) -> None:
    first = snapshot_with(alpha, volume, "file", b"1")
    elsewhere = f"/var/lib/buttervolume/attic-{volume}"
    beta.run("mkdir", elsewhere)
    assert alpha.send(first, beta) == ""
    beta.run("btrfs", "subvolume", "snapshot", "-r", f"{SNAPSHOTS}/{first}", elsewhere)
    beta.run("btrfs", "subvolume", "delete", f"{SNAPSHOTS}/{first}")
    second = snapshot_with(alpha, volume, "file", b"2")

    assert alpha.send(second, beta) == ""
    assert beta.show(second)["Parent UUID"] == "-"
    assert alpha.send(first, beta) == ""
    assert equal(alpha, beta, first)


# Notes beside copies that are being received


def note_of(snapshot: str) -> str:
    return f"{SNAPSHOTS}/{names.receiving_note(snapshot)}"


def leave_behind(host: Host, snapshot: str, sender: str, *, whole: bool) -> None:
    """What a power cut leaves of a send: a note, and a copy that may look whole."""
    path = f"{SNAPSHOTS}/{snapshot}"
    host.run("btrfs", "subvolume", "create", path)
    if whole:
        forge(host, path, uuid.uuid4().hex)
        host.run("btrfs", "property", "set", "-ts", path, "ro", "true")
    host.write(note_of(snapshot), f"{sender}\n{snapshot}\n")


@pytest.mark.parametrize("whole", [True, False])
def test_a_copy_with_a_note_is_partial_for_whoever_asks(
    alpha: Host, beta: Host, volume: str, whole: bool
) -> None:
    older = f"{volume}@2026-01-01T00:00:00.000000"
    beta.create(volume)
    beta.run("btrfs", "subvolume", "snapshot", "-r", f"{VOLUMES}/{volume}", f"{SNAPSHOTS}/{older}")
    newer = f"{volume}@2026-01-02T00:00:00.000000"
    leave_behind(beta, newer, "somebody", whole=whole)

    assert beta.api.call("Snapshot.List", Name=volume)["Snapshots"] == [older]
    assert beta.api.call("Snapshot.Restore", Name=volume)["VolumeBackup"]
    assert "incomplete" in beta.api.refused("Snapshot.Restore", Name=newer)
    assert "incomplete" in beta.send(newer, alpha)
    purged = beta.api.call("Snapshots.Purge", Name=volume, Pattern="1m:1m")["Purged"]
    assert newer not in purged
    assert newer in beta.snapshot_names(volume)
    beta.api.call("Snapshot.Remove", Name=newer)
    assert not beta.path(note_of(newer)).exists()


@pytest.mark.parametrize("whole", [True, False])
def test_what_a_power_cut_has_left_is_removed_by_the_next_look_of_its_sender(
    alpha: Host, beta: Host, volume: str, whole: bool
) -> None:
    mine, anothers = f"{volume}@2026-01-01", f"{volume}@2026-01-02"
    leave_behind(beta, mine, "alpha", whole=whole)
    leave_behind(beta, anothers, "gamma", whole=whole)

    snapshot = snapshot_with(alpha, volume, "file", b"1")
    assert alpha.send(snapshot, beta) == ""

    assert beta.snapshot_names(volume) == [anothers, snapshot]
    assert not beta.path(note_of(mine)).exists()
    assert beta.path(note_of(anothers)).exists()


def test_a_copy_that_somebody_else_is_sending_is_left_alone(
    alpha: Host, beta: Host, volume: str
) -> None:
    snapshot = snapshot_with(alpha, volume, "file", b"1")
    leave_behind(beta, snapshot, "gamma", whole=False)
    assert "gamma" in alpha.send(snapshot, beta)
    assert beta.snapshot_names(volume) == [snapshot]
    assert beta.path(note_of(snapshot)).exists()


def test_what_gets_the_name_between_the_look_and_the_transfer_is_not_touched(
    alpha: Host, beta: Host, volume: str
) -> None:
    """Such as a snapshot that the other host takes of its own volume in the same second."""
    snapshot = snapshot_with(alpha, volume, "file", b"1")
    beta.create(volume)
    take = f"btrfs subvolume snapshot -r {VOLUMES}/{volume} {SNAPSHOTS}/{snapshot}"
    with beta.shim("flock", f'[ -e {SNAPSHOTS}/{snapshot} ] || {take} >&2; exec $real "$@"'):
        error = alpha.send(snapshot, beta)

    assert "something has got this name there just now" in error
    assert beta.snapshot_names(volume) == [snapshot]
    assert beta.show(snapshot)["Received UUID"] == "-"
    assert not beta.path(note_of(snapshot)).exists()
    beta.run("btrfs", "subvolume", "delete", f"{SNAPSHOTS}/{snapshot}")
    assert alpha.send(snapshot, beta) == ""


def test_the_copy_is_on_the_disk_before_its_note_goes(alpha: Host, beta: Host, volume: str) -> None:
    log = f"/run/{volume}.order"
    snapshot = snapshot_with(alpha, volume, "file", content())
    noted = f"[ -e {note_of(snapshot)} ] && note=noted || note=plain"
    with (
        beta.shim("btrfs", f'{noted}; echo "btrfs $1 $2 $note" >> {log}; exec $real "$@"'),
        beta.shim("sync", f'{noted}; echo "sync $note" >> {log}; exec $real "$@"'),
    ):
        assert alpha.send(snapshot, beta) == ""
    order = beta.path(log).read_text().split("\n")
    done = [line for line in order if "receive" in line or "sync" in line]
    assert done == [
        "sync noted",
        "sync noted",
        "btrfs receive -C noted",
        "btrfs filesystem sync noted",
        "sync plain",
    ]
    assert not beta.path(note_of(snapshot)).exists()


def test_that_it_is_there_already_is_on_the_disk_before_it_is_said(
    alpha: Host, beta: Host, volume: str
) -> None:
    """Who had received it may have been cut off when its note was gone, but not from the disk."""
    log = f"/run/{volume}.synced"
    snapshot = snapshot_with(alpha, volume, "file", b"1")
    assert alpha.send(snapshot, beta) == ""
    with beta.shim("sync", f'echo "$@" >> {log}; exec $real "$@"'):
        assert alpha.send(snapshot, beta) == ""
    assert SNAPSHOTS in beta.path(log).read_text().split("\n")


def test_while_it_is_received_the_note_says_who_sends_and_is_locked(
    pair: Pair, volume: str
) -> None:
    alpha, beta = pair.alpha, pair.beta
    snapshot = snapshot_with(alpha, volume, "file", content(8 << 20))
    pair.network.limit("beta", "8mbit")
    sending = alpha.start_send(snapshot, beta)
    wait_until(lambda: beta.path(note_of(snapshot)).exists(), 60, "the note")
    wait_until(lambda: beta.path(note_of(snapshot)).read_text(), 60, "its text")
    assert beta.path(note_of(snapshot)).read_text().split()[:2] == ["alpha", snapshot]
    assert beta.run("flock", "-n", note_of(snapshot), "true", check=False).returncode == 1
    pair.network.unlimit("beta")
    assert sending.error() == ""
    assert is_copy(alpha, beta, snapshot)


# Hosts that talk too much


def peak_memory(host: Host) -> int:
    """The most that the daemon ever used, in bytes."""
    status = Path(f"/proc/{host.daemon.process.inner_pid()}/status")
    return int(status.read_text().partition("VmHWM:")[2].split()[0]) << 10


@pytest.mark.parametrize(
    "talk",
    [
        '[ "$1 $2" != "subvolume list" ] || exec yes "ID 1 gen 1 top level 5 path of a subvolume"',
        '[ "$1" != "--version" ] || exec yes "btrfs-progs v6.2"',
        '[ "$1" != receive ] || { cat > /dev/null; yes oops | head -c 60000000 >&2; exit 1; }',
    ],
)
def test_a_host_that_talks_without_end_takes_no_memory_and_has_failed(
    alpha: Host, beta: Host, volume: str, talk: str
) -> None:
    snapshot = snapshot_with(alpha, volume, "file", b"1")
    before, log = peak_memory(alpha), len(alpha.daemon.log())
    with beta.shim("btrfs", f'{talk}; exec $real "$@"'):
        error = alpha.send(snapshot, beta)
    assert error.startswith("beta: ")
    assert len(error) < 2100
    assert len(alpha.daemon.log()) - log < 8192
    assert peak_memory(alpha) - before < 100 << 20
    beta.kill("yes")
    assert alpha.send(snapshot, beta) == ""
    assert equal(alpha, beta, snapshot)


def test_a_log_in_that_prints_without_end_has_failed(alpha: Host, beta: Host, volume: str) -> None:
    snapshot = snapshot_with(alpha, volume, "file", b"1")
    with beta.changed_file("/root/.bashrc", "yes welcome\n"):
        assert alpha.start_send(snapshot, beta).error(30).startswith("beta: ")
    beta.kill("yes")
    assert alpha.send(snapshot, beta) == ""
