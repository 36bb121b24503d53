"""What can be done, seen and ended while a transfer runs."""

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.hosts.harness import MEBIBYTE, SNAPSHOTS, Background, Host, Pair
from tests.hosts.test_send import content, is_copy, is_incremental, snapshot_with
from tests.support.machine import BUTTERVOLUME, in_checkout
from tests.support.wait import wait_until


@contextmanager
def slow_send(pair: Pair, snapshot: str) -> Iterator[Background]:
    """A send that runs slowly during the block, then fast to its end, which must be good."""
    pair.network.limit("beta", "8mbit")
    send = pair.alpha.start_send(snapshot, pair.beta)
    pair.alpha.wait_for_bytes()
    yield send
    assert not send.is_over(), "the block took longer than the transfer"
    pair.network.unlimit("beta")
    assert send.error() == ""
    assert is_copy(pair.alpha, pair.beta, snapshot)


def test_docker_is_answered_and_the_volume_can_be_snapshotted(pair: Pair, volume: str) -> None:
    alpha = pair.alpha
    snapshot = snapshot_with(alpha, volume, "file", content(16 * MEBIBYTE))
    with slow_send(pair, snapshot):
        alpha.create(f"{volume}-other")
        for _ in range(10):
            alpha.api.call("Get", Name=volume)
            alpha.api.call("Mount", Name=volume, ID="1")
            alpha.api.call("Unmount", Name=volume, ID="1")
            alpha.api.call("List")
        alpha.api.call("Remove", Name=f"{volume}-other")
        meanwhile = snapshot_with(alpha, volume, "file2", b"2")
    assert alpha.send(meanwhile, pair.beta) == ""
    assert is_incremental(pair.beta, meanwhile, snapshot)


def test_what_is_being_sent_and_its_parent_are_held(pair: Pair, volume: str) -> None:
    alpha = pair.alpha
    aged = [f"{volume}@2020-0{month}-01T00:00:00.000000" for month in (1, 2, 3, 4)]
    for number, name in enumerate(aged[:3]):
        taken = snapshot_with(alpha, volume, "file", content((1, 1, 16)[number] * MEBIBYTE))
        alpha.path(f"{SNAPSHOTS}/{taken}").rename(alpha.path(f"{SNAPSHOTS}/{name}"))
    _, parent, sent, _ = aged
    assert alpha.send(parent, pair.beta) == ""
    alpha.api.call("Snapshot.Remove", Name=f"{parent}@beta")
    newest = alpha.snapshot(volume)
    with slow_send(pair, sent):
        assert alpha.transfers()[0]["Parent"] == parent
        for held in (parent, sent):
            assert "under way" in alpha.api.refused("Snapshot.Remove", Name=held)
        purged = alpha.api.call("Snapshots.Purge", Name=volume, Pattern="1h:1h")["Purged"]
        assert purged == [aged[0]]
    assert alpha.snapshot_names(volume) == [parent, sent, f"{sent}@beta", newest]
    alpha.api.call("Snapshot.Remove", Name=parent)


def test_the_volume_being_sent_can_be_restored_and_removed(pair: Pair, volume: str) -> None:
    alpha = pair.alpha
    snapshot = snapshot_with(alpha, volume, "file", content(16 * MEBIBYTE))
    with slow_send(pair, snapshot):
        alpha.api.call("Snapshot.Restore", Name=snapshot)
        alpha.api.call("Remove", Name=volume)


def test_the_same_send_again_is_refused_at_once(pair: Pair, volume: str) -> None:
    alpha = pair.alpha
    first = snapshot_with(alpha, volume, "file", content(16 * MEBIBYTE))
    second = alpha.snapshot(volume)
    with slow_send(pair, first) as send:
        for snapshot in (first, second):
            refusal = alpha.start_send(snapshot, "beta").error(5)
            assert refusal == f"{volume}: a send of this volume to beta is under way already"
        assert not send.is_over()
    assert alpha.send(second, "beta") == ""


def test_no_more_than_eight_transfers_run_for_callers(pair: Pair, volume: str) -> None:
    alpha = pair.alpha
    volumes = [f"{volume}-{number}" for number in range(9)]
    for each in volumes:
        alpha.create(each)
    snapshots = [snapshot_with(alpha, each, "file", content(4 * MEBIBYTE)) for each in volumes]
    pair.network.limit("beta", "16mbit")
    sends = [alpha.start_send(snapshot, "beta") for snapshot in snapshots[:8]]
    wait_until(lambda: len(alpha.transfers()) == 8, what="eight transfers")

    expected = "8 transfers are under way, which is the limit; try again later"
    assert alpha.start_send(snapshots[8], "beta").error(5) == expected
    assert alpha.start("Volume.Sync", Volumes=[volumes[8]], Hosts=["beta"]).error(5) == expected
    assert alpha.api.names()

    assert not any(send.is_over() for send in sends)
    pair.network.unlimit("beta")
    assert [send.error() for send in sends] == [""] * 8
    assert alpha.send(snapshots[8], "beta") == ""


def test_running_transfers_are_listed(pair: Pair, volume: str) -> None:
    alpha = pair.alpha
    assert alpha.transfers() == []
    first = snapshot_with(alpha, volume, "file", b"1")
    assert alpha.send(first, "beta") == ""
    second = snapshot_with(alpha, volume, "file", content(16 * MEBIBYTE))
    with slow_send(pair, second):
        [early] = alpha.transfers()
        alpha.wait_for_bytes(early["Bytes"] + MEBIBYTE)
        [late] = alpha.api.call("Transfers")["Transfers"]
        fixed = {
            "Operation": "send",
            "Volume": volume,
            "Snapshot": second,
            "Host": "beta",
            "Parent": first,
            "Phase": "sending",
        }
        assert {key: late[key] for key in fixed} == fixed
        assert late["Id"] == early["Id"]
        assert early["Bytes"] < late["Bytes"] < 17 * MEBIBYTE
        assert early["Seconds"] <= late["Seconds"] < 60
        assert late["BytesPerSecond"] == pytest.approx(late["Bytes"] / late["Seconds"], rel=0.2)
    wait_until(lambda: alpha.transfers() == [], what="the list to be empty again")


# Ending one


def test_a_transfer_can_be_cancelled(pair: Pair, volume: str) -> None:
    alpha, beta = pair.alpha, pair.beta
    snapshot = snapshot_with(alpha, volume, "file", content(16 * MEBIBYTE))
    pair.network.limit("beta", "8mbit")
    send = alpha.start_send(snapshot, beta)
    alpha.wait_for_bytes()
    [transfer] = alpha.transfers()
    alpha.api.call("Transfers.Cancel", Id=transfer["Id"])

    assert send.error(20) == "the transfer was cancelled"
    pair.wait_until_idle()
    assert beta.snapshot_names(volume) == []
    assert alpha.snapshot_names(volume) == [snapshot]
    refusal = alpha.api.refused("Transfers.Cancel", Id=transfer["Id"])
    assert "no such transfer is under way" in refusal
    pair.network.unlimit("beta")
    assert alpha.send(snapshot, beta) == ""


def test_a_snapshot_that_another_host_has_got_outlives_the_replication_that_it_was_taken_for(
    pair: Pair, gamma: Host, volume: str
) -> None:
    """It is the parent of what that host gets next."""
    alpha = pair.alpha
    alpha.file(volume, "file").write_bytes(content(16 * MEBIBYTE))
    pair.network.limit("beta", "1mbit")
    replication = alpha.start("Replicate", Name=volume, Host="beta")
    alpha.wait_for_bytes()
    [transfer] = alpha.transfers()
    snapshot = transfer["Snapshot"]
    assert alpha.send(snapshot, gamma) == ""

    alpha.api.call("Transfers.Cancel", Id=transfer["Id"])

    assert replication.error(60) == "the transfer was cancelled"
    pair.network.unlimit("beta")
    assert alpha.snapshot_names(volume) == [snapshot, f"{snapshot}@gamma"]
    second = snapshot_with(alpha, volume, "small", b"2")
    assert alpha.send(second, gamma) == ""
    assert is_incremental(gamma, second, snapshot)


# The command line


@pytest.mark.parametrize("columns", [100, 0])
def test_send_shows_its_progress_on_a_terminal(pair: Pair, volume: str, columns: int) -> None:
    snapshot = snapshot_with(pair.alpha, volume, "file", content(4 * MEBIBYTE))
    pair.network.limit("beta", "16mbit")
    terminal = pair.alpha.on_terminal("send", "beta", snapshot, columns=columns)
    assert terminal.wait() == 0
    # bytes, time that has passed, rate, phase
    assert re.search(r"beta: \d\.\d+MB \[00:0\d, \d.*B/s, sending\]", terminal.shown())
    assert is_copy(pair.alpha, pair.beta, snapshot)


def test_send_is_silent_where_there_is_no_terminal(pair: Pair, volume: str) -> None:
    snapshot = snapshot_with(pair.alpha, volume, "file", content(3 * MEBIBYTE))
    pair.network.limit("beta", "16mbit")
    ended = pair.alpha.cli("send", "beta", snapshot)
    assert (ended.stdout, ended.stderr) == ("", "")


def test_a_failed_send_says_why_and_exits_with_1(pair: Pair, volume: str) -> None:
    snapshot = pair.alpha.snapshot(volume)
    ended = pair.alpha.cli("send", "nohost", snapshot, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert re.fullmatch(
        r"buttervolume: nohost: ssh: Could not resolve hostname nohost: .*\n", ended.stderr
    )


def test_ctrl_c_ends_the_transfer_and_says_so(pair: Pair, volume: str) -> None:
    alpha, beta = pair.alpha, pair.beta
    snapshot = snapshot_with(alpha, volume, "file", content(16 * MEBIBYTE))
    pair.network.limit("beta", "8mbit")
    terminal = alpha.on_terminal("send", "beta", snapshot)
    alpha.wait_for_bytes()
    wait_until(lambda: "sending" in terminal.shown(), what="a progress line")

    terminal.process.send_signal(signal.SIGINT)

    assert terminal.wait() == 1
    assert "the transfer was ended" in terminal.shown()
    assert "Traceback" not in terminal.shown()
    assert alpha.transfers() == []
    pair.wait_until_idle()
    assert beta.snapshot_names(volume) == []
    pair.network.unlimit("beta")
    assert alpha.send(snapshot, beta) == ""


def test_the_client_that_is_killed_leaves_the_transfer_alone(pair: Pair, volume: str) -> None:
    snapshot = snapshot_with(pair.alpha, volume, "file", content(6 * MEBIBYTE))
    pair.network.limit("beta", "16mbit")
    log = pair.alpha.directory / "client.log"
    client = pair.alpha.popen(
        *BUTTERVOLUME, "send", "beta", snapshot, env=in_checkout(None), log=log
    )
    pair.alpha.wait_for_bytes()
    client.kill()
    assert client.wait(60) == -signal.SIGKILL
    wait_until(lambda: pair.alpha.transfers() == [], 60, "the transfer to end")
    assert is_copy(pair.alpha, pair.beta, snapshot)


def test_no_progress_library_is_loaded_without_a_terminal(pair: Pair, volume: str) -> None:
    snapshot = pair.alpha.snapshot(volume)
    program = (
        "import sys; from buttervolume.cli.main import main; "
        f"assert main(['send', 'beta', {snapshot!r}]) == 0; print('tqdm' in sys.modules)"
    )
    ended = pair.alpha.run(BUTTERVOLUME[0], "-c", program, env=in_checkout(None))
    assert ended.stdout == "False\n"
