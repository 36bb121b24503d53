"""Snapshots sent from one host to another over real ssh."""

import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.hosts.harness import MEBIBYTE, SNAPSHOTS, VOLUMES, Host, Pair
from tests.support.wait import wait_until

RECEIVED_UUID_ON_WRITABLE = """
import fcntl, os, struct, sys
descriptor = os.open(sys.argv[1], os.O_RDONLY)
arguments = struct.pack("16sQQQI4xQI4xQ128x", bytes.fromhex(sys.argv[2]), 1, 0, 0, 0, 0, 0, 0)
fcntl.ioctl(descriptor, 0xC0C89425, arguments)  # BTRFS_IOC_SET_RECEIVED_SUBVOL
"""


def content(size: int = 2 * MEBIBYTE) -> bytes:
    """Bytes that nothing can compress."""
    return os.urandom(size)


def snapshot_with(host: Host, volume: str, name: str, data: bytes) -> str:
    """Write a file into a volume and snapshot it."""
    host.file(volume, name).write_bytes(data)
    return host.snapshot(volume)


def is_incremental(host: Host, snapshot: str, parent: str) -> bool:
    """Whether a copy was received as changes of another."""
    return host.show(snapshot)["Parent UUID"] == host.show(parent)["UUID"]


def is_copy(origin: Host, copy: Host, snapshot: str) -> bool:
    """Whether a copy is complete and of this snapshot."""
    here, there = origin.show(snapshot), copy.show(snapshot)
    identity = here["UUID"] if here["Received UUID"] == "-" else here["Received UUID"]
    return there["Flags"] == "readonly" and there["Received UUID"] == identity


# What is sent


def test_the_first_send_is_whole_and_the_next_ones_are_changes(
    alpha: Host, beta: Host, volume: str
) -> None:
    big, small = content(8 * MEBIBYTE), content(1000)
    first = snapshot_with(alpha, volume, "big", big)
    before = alpha.bytes_sent()
    assert alpha.send(first, beta) == ""
    assert alpha.bytes_sent() - before > len(big)
    assert beta.show(first)["Parent UUID"] == "-"
    assert is_copy(alpha, beta, first)
    assert beta.copied_file(first, "big").read_bytes() == big
    assert alpha.snapshot_names(volume) == [first, f"{first}@beta"]

    second = snapshot_with(alpha, volume, "small", small)
    before = alpha.bytes_sent()
    assert alpha.send(second, beta) == ""
    assert alpha.bytes_sent() - before < MEBIBYTE
    assert is_incremental(beta, second, first)
    assert is_copy(alpha, beta, second)
    assert beta.copied_file(second, "big").read_bytes() == big
    assert beta.copied_file(second, "small").read_bytes() == small
    assert alpha.snapshot_names(volume) == [first, second, f"{second}@beta"]


def delete_markers(pair: Pair, first: str, second: str) -> str:
    for marker in (f"{first}@beta", f"{second}@beta"):
        pair.alpha.run("sh", "-c", f"btrfs subvolume delete {SNAPSHOTS}/{marker} || true")
    return second


def remove_the_older(pair: Pair, first: str, second: str) -> str:
    for host in (pair.alpha, pair.beta):
        host.api.call("Snapshot.Remove", Name=first)
    return second


def purge_all_that_is_old(pair: Pair, first: str, second: str) -> str:
    volume = first.partition("@")[0]
    old, less_old = f"{volume}@2020-01-01T00:00:00.000000", f"{volume}@2020-06-01T00:00:00.000000"
    for host in (pair.alpha, pair.beta):
        for now, then in ((first, old), (second, less_old)):
            host.path(f"{SNAPSHOTS}/{now}").rename(host.path(f"{SNAPSHOTS}/{then}"))
    marker = pair.alpha.path(f"{SNAPSHOTS}/{second}@beta")
    marker.rename(marker.with_name(f"{less_old}@beta"))
    for host in (pair.alpha, pair.beta):
        purged = host.api.call("Snapshots.Purge", Name=volume, Pattern="1h:1d")["Purged"]
        assert purged == [old]
    return less_old


def restart(pair: Pair, first: str, second: str) -> str:
    for host in (pair.alpha, pair.beta):
        assert host.daemon.stop() == 0
        host.boot()
    return second


def restore_the_first(pair: Pair, first: str, second: str) -> str:
    pair.alpha.api.call("Snapshot.Restore", Name=first)
    return second


@pytest.mark.parametrize(
    "between",
    [delete_markers, remove_the_older, purge_all_that_is_old, restart, restore_the_first],
)
def test_sends_stay_incremental(
    pair: Pair, volume: str, between: Callable[[Pair, str, str], str]
) -> None:
    alpha, beta = pair.alpha, pair.beta
    first = snapshot_with(alpha, volume, "big", content(4 * MEBIBYTE))
    second = snapshot_with(alpha, volume, "small", b"2")
    assert alpha.send(first, beta) == ""
    assert alpha.send(second, beta) == ""

    parent = between(pair, first, second)

    third = snapshot_with(alpha, volume, "third", b"3")
    before = alpha.bytes_sent()
    assert alpha.send(third, beta) == ""
    assert alpha.bytes_sent() - before < MEBIBYTE
    assert is_incremental(beta, third, parent)
    assert is_copy(alpha, beta, third)
    assert beta.copied_file(third, "third").read_bytes() == b"3"
    assert (beta.copied_file(third, "small").exists()) == (between is not restore_the_first)


def test_the_way_back_is_incremental(alpha: Host, beta: Host, volume: str) -> None:
    big = content(4 * MEBIBYTE)
    there = snapshot_with(alpha, volume, "big", big)
    assert alpha.send(there, beta) == ""

    beta.api.call("Snapshot.Restore", Name=there)
    back = snapshot_with(beta, volume, "new", b"from beta")
    before = beta.bytes_sent()
    assert beta.send(back, alpha) == ""

    assert beta.bytes_sent() - before < MEBIBYTE
    assert is_incremental(alpha, back, there)
    assert is_copy(beta, alpha, back)
    alpha.api.call("Snapshot.Restore", Name=back)
    assert alpha.file(volume, "big").read_bytes() == big
    assert alpha.file(volume, "new").read_bytes() == b"from beta"

    again = snapshot_with(alpha, volume, "newer", b"from alpha")
    assert alpha.send(again, beta) == ""
    assert is_incremental(beta, again, back)


def test_a_third_host_that_got_it_from_the_second_takes_changes_from_the_first(
    alpha: Host, beta: Host, gamma: Host, volume: str
) -> None:
    first = snapshot_with(alpha, volume, "big", content())
    assert alpha.send(first, beta) == ""
    assert beta.send(first, gamma) == ""
    assert is_copy(alpha, gamma, first)

    second = snapshot_with(alpha, volume, "small", b"2")
    assert alpha.send(second, gamma) == ""
    assert is_incremental(gamma, second, first)


def test_an_older_snapshot_can_follow_a_newer_one(alpha: Host, beta: Host, volume: str) -> None:
    older = snapshot_with(alpha, volume, "a", b"older")
    newer = snapshot_with(alpha, volume, "a", b"newer")
    assert alpha.send(newer, beta) == ""
    assert alpha.send(older, beta) == ""
    assert is_incremental(beta, older, newer)
    assert beta.copied_file(older, "a").read_bytes() == b"older"
    assert {f"{newer}@beta", f"{older}@beta"} <= set(alpha.snapshot_names(volume))


def test_what_is_complete_there_is_not_sent_again(alpha: Host, beta: Host, volume: str) -> None:
    snapshot = snapshot_with(alpha, volume, "big", content(4 * MEBIBYTE))
    assert alpha.send(snapshot, beta) == ""
    alpha.api.call("Snapshot.Remove", Name=f"{snapshot}@beta")
    copy, before = beta.show(snapshot), alpha.bytes_sent()

    assert alpha.send(snapshot, beta) == ""

    assert beta.show(snapshot) == copy
    assert alpha.bytes_sent() - before < MEBIBYTE
    assert f"{snapshot}@beta" in alpha.snapshot_names(volume)


def test_a_partial_copy_is_removed_before_the_next_try(
    alpha: Host, beta: Host, volume: str
) -> None:
    snapshot = snapshot_with(alpha, volume, "file", b"whole")
    beta.run("btrfs", "subvolume", "create", f"{SNAPSHOTS}/{snapshot}")
    beta.copied_file(snapshot, "file").write_bytes(b"par")

    assert alpha.send(snapshot, beta) == ""

    assert is_copy(alpha, beta, snapshot)
    assert beta.copied_file(snapshot, "file").read_bytes() == b"whole"


# What is somebody else's


def writable_but_received(host: Host, path: str, identity: str) -> None:
    host.run("btrfs", "subvolume", "create", path)
    host.run("python3", "-c", RECEIVED_UUID_ON_WRITABLE, path, identity.replace("-", ""))


def readonly_but_not_received(host: Host, path: str, identity: str) -> None:
    host.run("btrfs", "subvolume", "create", path)
    host.run("btrfs", "property", "set", "-ts", path, "ro", "true")


def received_of_another(host: Host, path: str, identity: str) -> None:
    writable_but_received(host, path, uuid.uuid4().hex)
    host.run("btrfs", "property", "set", "-ts", path, "ro", "true")


def plain_directory(host: Host, path: str, identity: str) -> None:
    host.run("mkdir", path)
    host.run("touch", f"{path}/precious")


def plain_file(host: Host, path: str, identity: str) -> None:
    host.run("touch", path)


def link_to_a_volume(host: Host, path: str, identity: str) -> None:
    volume = f"{VOLUMES}/precious{uuid.uuid4().hex}"
    host.run("btrfs", "subvolume", "create", volume)
    host.run("touch", f"{volume}/precious")
    host.run("ln", "-s", volume, path)


def link_to_nothing(host: Host, path: str, identity: str) -> None:
    host.run("ln", "-s", "nowhere", path)


FOREIGN = [
    writable_but_received,
    readonly_but_not_received,
    received_of_another,
    plain_directory,
    plain_file,
    link_to_a_volume,
    link_to_nothing,
]


@pytest.mark.parametrize("make", FOREIGN)
def test_what_is_no_copy_of_ours_is_never_touched(
    alpha: Host, beta: Host, volume: str, make: Callable[[Host, str, str], None]
) -> None:
    snapshot = snapshot_with(alpha, volume, "file", b"data")
    path = f"{SNAPSHOTS}/{snapshot}"
    make(beta, path, alpha.show(snapshot)["UUID"])

    def state() -> str:
        look = (
            'stat -c "%N %i %F %a %Y %Z" "$1"; ls -lR "$1" "$1/"; btrfs subvolume show "$1"; true'
        )
        return beta.run("sh", "-c", look, "sh", path).stdout

    before = state()
    error = alpha.send(snapshot, beta)

    assert error.startswith("beta has something else at ")
    assert path in error
    assert state() == before
    assert alpha.snapshot_names(volume) == [snapshot]


# Names and what goes through shells


def test_a_volume_of_an_odd_name_reaches_the_other_host(alpha: Host, beta: Host) -> None:
    volume = 'it\'s "odd"; touch $(touch owned) `touch owned` * -x\\é'
    alpha.run("btrfs", "subvolume", "create", f"{VOLUMES}/{volume}")
    first = snapshot_with(alpha, volume, "file", content())
    second = snapshot_with(alpha, volume, "file2", b"2")
    for snapshot in (first, second):
        assert alpha.send(snapshot, beta) == ""
        assert is_copy(alpha, beta, snapshot)
    assert is_incremental(beta, second, first)
    for host in (alpha, beta):
        assert host.run("find", "/root", "/", "-maxdepth", "1", "-name", "owned*").stdout == ""


@pytest.mark.parametrize(
    "host", ["-oProxyCommand=touch /run/owned", "-V", "root@beta", "beta:22", "beta;id", "", "a b"]
)
def test_a_host_name_that_is_more_than_a_name_is_refused(
    alpha: Host, volume: str, host: str
) -> None:
    snapshot = alpha.snapshot(volume)
    for refusal in (
        alpha.api.refused("Snapshot.Send", Name=snapshot, Host=host),
        alpha.api.refused("Volume.Sync", Volumes=[volume], Hosts=[host]),
    ):
        assert "is not allowed as the name of a host" in refusal
    assert not alpha.path("/run/owned").exists()
    assert alpha.snapshot_names(volume) == [snapshot]


def test_what_cannot_be_sent_is_refused(alpha: Host, beta: Host, volume: str) -> None:
    snapshot = alpha.snapshot(volume)
    assert alpha.send(snapshot, beta) == ""
    assert "send its snapshot" in alpha.send(f"{snapshot}@beta", beta)
    assert "no such snapshot" in alpha.send(f"{volume}@nothing", beta)
    assert "is not allowed" in alpha.send(volume, beta)
    assert "is not allowed" in alpha.send("a@b/../../volumes/v", beta)
    alpha.run("btrfs", "subvolume", "create", f"{SNAPSHOTS}/{volume}@partial")
    assert "incomplete" in alpha.send(f"{volume}@partial", beta)


NOISY = "echo Welcome to beta; echo versions; echo copy:; echo oops >&2; printf 'no end of line'\n"


def test_shell_start_up_files_that_print_do_not_matter(
    alpha: Host, beta: Host, volume: str
) -> None:
    first = snapshot_with(alpha, volume, "file", content())
    with beta.changed_file("/root/.bashrc", NOISY):
        assert "Welcome" in alpha.run("ssh", "-p", "1122", "beta", "true").stdout
        assert alpha.send(first, beta) == ""
        second = snapshot_with(alpha, volume, "file2", b"2")
        assert alpha.send(second, beta) == ""
    assert is_incremental(beta, second, first)
    assert is_copy(alpha, beta, second)


# The ssh configuration


def test_aliases_users_jump_hosts_and_ports_of_the_ssh_configuration_work(
    alpha: Host, beta: Host, gamma: Host, volume: str
) -> None:
    beta.run("useradd", "--non-unique", "-u0", "-g0", "-d/root", "-p*", "-s/bin/bash", "admin")
    snapshot = snapshot_with(alpha, volume, "file", content())
    config = f"""\
Host the.Backup_host-1
    HostName {beta.address}
    User admin
    HostKeyAlias beta-by-another-name
    StrictHostKeyChecking accept-new
    ProxyJump jump
Host jump
    HostName {gamma.address}
    Port 1122
    StrictHostKeyChecking accept-new
"""
    with alpha.ssh_config(config):
        assert alpha.send(snapshot, "the.Backup_host-1") == ""
        assert "for admin from" in (beta.directory / "sshd.log").read_text()
        assert "for root from" in (gamma.directory / "sshd.log").read_text()
        assert is_copy(alpha, beta, snapshot)
        assert f"{snapshot}@the.Backup_host-1" in alpha.snapshot_names(volume)
        alpha.wait_until_idle()
        gamma.wait_until_idle()


def test_an_ssh_configuration_made_for_people_does_no_harm(
    alpha: Host, beta: Host, volume: str
) -> None:
    config = """\
Host beta
    ControlMaster auto
    ControlPath /root/.ssh/shared-%C
    ControlPersist yes
    RequestTTY force
    RemoteCommand echo hello; exec bash
    LocalForward 1122 localhost:80
    ExitOnForwardFailure yes
    Compression yes
"""
    beta.create(volume)
    beta.file(volume, "theirs").write_bytes(b"theirs")
    data = bytes(range(256)) * 4096
    snapshot = snapshot_with(alpha, volume, "every byte", data)
    with alpha.ssh_config(config):
        assert alpha.send(snapshot, beta) == ""
        alpha.api.call("Volume.Sync", Volumes=[volume], Hosts=["beta"])
        alpha.wait_until_idle()
    assert beta.copied_file(snapshot, "every byte").read_bytes() == data
    assert alpha.file(volume, "theirs").read_bytes() == b"theirs"
    assert alpha.run("find", "/root/.ssh", "-name", "shared-*").stdout == ""


# Compressed data


@pytest.fixture
def compressed(alpha: Host, volume: str) -> str:
    """A snapshot of 16 MiB that compression makes much smaller."""
    name = f"{volume}-compressed"
    alpha.create(name, compression="zstd")
    return snapshot_with(alpha, name, "text", b"All work and no play. " * (16 * MEBIBYTE // 22))


def test_compressed_extents_travel_compressed(alpha: Host, beta: Host, compressed: str) -> None:
    before = alpha.bytes_sent()
    assert alpha.send(compressed, beta) == ""
    assert alpha.bytes_sent() - before < 2 * MEBIBYTE
    assert is_copy(alpha, beta, compressed)
    text = alpha.copied_file(compressed, "text").read_bytes()
    assert beta.copied_file(compressed, "text").read_bytes() == text


OLD_PROGS = """
case "$*" in
    --version) echo btrfs-progs v5.10.1; exit;;
    receive*)
        { head -c 17; exec cat; } | {
            head -c 17 > /run/header
            version=$(od -An -tu1 -j13 -N1 /run/header)
            [ "$version" -eq 1 ] || { echo "ERROR: stream version $version" >&2; exit 1; }
            { cat /run/header; exec cat; } | $real "$@"
        }
        exit;;
esac
exec $real "$@"
"""


def test_a_host_with_older_btrfs_progs_gets_the_older_stream(
    alpha: Host, beta: Host, compressed: str
) -> None:
    before = alpha.bytes_sent()
    with beta.shim("btrfs", OLD_PROGS):
        assert alpha.send(compressed, beta) == ""
    assert alpha.bytes_sent() - before > 16 * MEBIBYTE
    assert is_copy(alpha, beta, compressed)


def test_older_btrfs_progs_here_send_the_older_stream(
    alpha: Host, beta: Host, compressed: str
) -> None:
    old = """
case "$*" in
    --version) echo btrfs-progs v5.16.2; exit;;
    *--proto*) echo "btrfs send: unrecognized option '--proto'" >&2; exit 1;;
esac
exec $real "$@"
"""
    with alpha.shim("btrfs", old):
        assert alpha.send(compressed, beta) == ""
    assert is_copy(alpha, beta, compressed)


# A parent that is not there any more


def test_when_the_parent_vanishes_meanwhile_the_snapshot_is_sent_in_full(
    alpha: Host, beta: Host, volume: str
) -> None:
    first = snapshot_with(alpha, volume, "first", content())
    assert alpha.send(first, beta) == ""
    second = snapshot_with(alpha, volume, "second", b"2")
    vanish = f"""
[ "$1" != receive ] || $real subvolume delete '{SNAPSHOTS}/{first}' >&2
exec $real "$@"
"""
    with beta.shim("btrfs", vanish):
        assert alpha.send(second, beta) == ""
    assert beta.snapshot_names(volume) == [second]
    assert beta.show(second)["Parent UUID"] == "-"
    assert is_copy(alpha, beta, second)
    assert beta.copied_file(second, "first").stat().st_size == 2 * MEBIBYTE


# Several at a time, and one after the other


def test_several_volumes_travel_at_a_time(pair: Pair, volume: str) -> None:
    alpha, beta = pair.alpha, pair.beta
    volumes = [volume, f"{volume}-b", f"{volume}-c"]
    for other in volumes[1:]:
        alpha.create(other)
    snapshots = [snapshot_with(alpha, each, "file", content()) for each in volumes]
    pair.network.limit("beta", "20mbit")
    sends = [alpha.start_send(snapshot, beta) for snapshot in snapshots]
    alpha.wait_for_bytes(number=3)
    assert {transfer["Volume"] for transfer in alpha.transfers()} == set(volumes)
    assert [send.error() for send in sends] == ["", "", ""]
    for snapshot in snapshots:
        assert is_copy(alpha, beta, snapshot)


def test_two_hosts_can_send_a_volume_of_one_name_to_a_third(
    alpha: Host, beta: Host, gamma: Host, volume: str
) -> None:
    beta.create(volume)
    snapshots = {host: snapshot_with(host, volume, "file", content()) for host in (alpha, beta)}
    sends = [host.start_send(snapshot, gamma) for host, snapshot in snapshots.items()]
    assert [send.error() for send in sends] == ["", ""]
    for host, snapshot in snapshots.items():
        assert is_copy(host, gamma, snapshot)


def test_nothing_is_left_by_many_sends(pair: Pair, volume: str) -> None:
    alpha, beta = pair.alpha, pair.beta
    process = Path(f"/proc/{alpha.daemon.process.inner_pid()}")

    def directories() -> set[str]:
        return {str(path) for path in alpha.path("/tmp").glob("buttervolume-*/ssh")}

    def children() -> list[str]:
        found: list[str] = []
        for thread in process.glob("task/*/children"):
            with suppress(OSError):  # it has ended meanwhile
                found += thread.read_text().split()
        return found

    def files_when_idle() -> int:
        pair.wait_until_idle()
        # daemons of other tests, which run beside this one, have some there for a while, too
        wait_until(lambda: not children() and directories() <= others, what="the sends' end")
        return len(list((process / "fd").iterdir()))

    others = directories()
    assert alpha.send(alpha.snapshot(volume), beta) == ""
    assert alpha.send(alpha.snapshot(volume), "nohost") != ""
    before = files_when_idle()
    for number in range(5):
        assert alpha.send(snapshot_with(alpha, volume, "file", b"%d" % number), beta) == ""
        assert alpha.send(alpha.snapshot(volume), "nohost") != ""
    after = files_when_idle()
    assert after < before + 4  # connections of the test's own may be open, but none for each send
