"""What can go wrong while a snapshot is being sent. Each time: a clear error in bounded time, no
process left on either host, nothing lost, and the next send works."""

import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from tests.hosts.harness import MEBIBYTE, SNAPSHOTS, Background, Host, Pair
from tests.hosts.test_send import content, is_copy, is_incremental, snapshot_with
from tests.support.wait import wait_until

IMPATIENT_SSH = """
for argument; do
    shift
    case $argument in
        -oServerAliveInterval=15) argument=-oServerAliveInterval=1;;
        -oConnectTimeout=10) argument=-oConnectTimeout=3;;
    esac
    set -- "$@" "$argument"
done
exec $real "$@"
"""
"""Notices a dead peer after 4 to 5 seconds, instead of after 60 to 75."""


@dataclass(frozen=True)
class UnderWay:
    """A slow incremental send between two hosts that share a snapshot."""

    pair: Pair
    volume: str
    first: str
    second: str
    send: Background

    def check_next_send(self) -> None:
        """After all is healed: nothing was deleted, and what is sent now are changes still."""
        alpha, beta = self.pair.alpha, self.pair.beta
        self.pair.heal()
        assert f"{self.first}@beta" in alpha.snapshot_names(self.volume)
        assert is_copy(alpha, beta, self.first)
        before = alpha.bytes_sent()
        assert alpha.send(self.second, beta) == ""
        assert alpha.bytes_sent() - before < 18 * MEBIBYTE
        assert is_incremental(beta, self.second, self.first)
        assert is_copy(alpha, beta, self.second)
        assert beta.snapshot_names(self.volume) == [self.first, self.second]
        copied = beta.copied_file(self.second, "changed").read_bytes()
        assert copied == alpha.copied_file(self.second, "changed").read_bytes()


@pytest.fixture
def under_way(pair: Pair, volume: str) -> UnderWay:
    """A send of 16 MiB that moves, and would take many seconds yet."""
    first = snapshot_with(pair.alpha, volume, "first", content(4 * MEBIBYTE))
    assert pair.alpha.send(first, pair.beta) == ""
    second = snapshot_with(pair.alpha, volume, "changed", content(16 * MEBIBYTE))
    pair.network.limit("beta", "8mbit")
    send = pair.alpha.start_send(second, pair.beta)
    pair.alpha.wait_for_bytes(MEBIBYTE)
    wait_until(lambda: second in pair.beta.snapshot_names(volume), what="the copy to begin")
    return UnderWay(pair, volume, first, second, send)


@contextmanager
def impatient_ssh(host: Host) -> Iterator[None]:
    with host.shim("ssh", IMPATIENT_SSH):
        yield


@pytest.fixture
def impatient(pair: Pair) -> Iterator[None]:
    with impatient_ssh(pair.alpha):
        yield


# The network


def cut_this_host(pair: Pair) -> None:
    pair.network.cut("alpha")


def lose_every_packet(pair: Pair) -> None:
    pair.network.black_hole("beta")


@pytest.mark.parametrize("lose", [cut_this_host, lose_every_packet])
@pytest.mark.usefixtures("impatient")
def test_the_network_goes_away(under_way: UnderWay, lose: Callable[[Pair], None]) -> None:
    pair = under_way.pair
    lose(pair)

    assert re.fullmatch(r"beta: Timeout, server \S+ not responding\.", under_way.send.error(20))

    assert pair.alpha.snapshot_names(under_way.volume) == [
        under_way.first,
        f"{under_way.first}@beta",
        under_way.second,
    ]
    assert "a partial copy may be left on beta" in pair.alpha.daemon.stderr()
    pair.wait_until_idle(60)
    under_way.check_next_send()


@pytest.mark.usefixtures("impatient")
def test_the_other_host_is_not_there(pair: Pair, volume: str) -> None:
    snapshot = pair.alpha.snapshot(volume)
    pair.network.black_hole("beta")
    assert re.fullmatch(
        r"beta: ssh: connect to host \S+ port 1122: Connection timed out",
        pair.alpha.start_send(snapshot, "beta").error(10),
    )
    pair.network.restore("beta")
    pair.network.cut("alpha")
    assert re.fullmatch(
        r"beta: ssh: connect to host \S+ port 1122: Network is unreachable",
        pair.alpha.start_send(snapshot, "beta").error(10),
    )
    pair.heal()
    assert pair.alpha.send(snapshot, "beta") == ""


def test_a_network_that_comes_back_soon_is_waited_for(under_way: UnderWay) -> None:
    pair = under_way.pair
    pair.network.black_hole("beta")
    [transfer] = pair.alpha.transfers()
    wait_until(
        lambda: pair.alpha.transfers()[0]["Seconds"] > transfer["Seconds"] + 2,
        what="two seconds to pass",
    )
    assert not under_way.send.is_over()
    pair.network.restore("beta")
    pair.network.unlimit("beta")
    assert under_way.send.error() == ""
    assert is_incremental(pair.beta, under_way.second, under_way.first)


# The other host


def test_sshd_there_is_killed(under_way: UnderWay) -> None:
    under_way.pair.beta.kill_sshd()
    error = under_way.send.error(20)
    assert re.fullmatch(r"beta: .*(closed by remote host|Broken pipe|reset by).*", error)
    assert "exit status" not in error
    under_way.pair.wait_until_idle()
    under_way.check_next_send()


def test_the_receiver_there_is_killed(under_way: UnderWay) -> None:
    under_way.pair.beta.signal("btrfs", signal.SIGKILL)
    assert under_way.send.error(20) == "beta: Killed (exit status 137)"
    under_way.pair.wait_until_idle()
    assert under_way.pair.beta.snapshot_names(under_way.volume) == [under_way.first]
    under_way.check_next_send()


def test_the_disk_there_is_full(alpha: Host, tiny: Host, volume: str) -> None:
    first = snapshot_with(alpha, volume, "small", b"1")
    assert alpha.send(first, tiny) == ""
    big = alpha.file(volume, "big")
    second = snapshot_with(alpha, volume, "big", content(120 * MEBIBYTE))

    error = alpha.send(second, tiny)

    assert error.startswith("tiny: ERROR: ")
    assert "No space left on device" in error
    assert "At s" not in error
    for host in (alpha, tiny):
        host.wait_until_idle()
    assert tiny.snapshot_names(volume) == [first]
    big.unlink()
    third = alpha.snapshot(volume)
    assert alpha.send(third, tiny) == ""
    assert is_incremental(tiny, third, first)


def test_the_key_is_revoked(under_way: UnderWay) -> None:
    alpha, beta = under_way.pair.alpha, under_way.pair.beta
    with beta.changed_file("/root/.ssh/authorized_keys", ""):
        beta.kill_sshd()
        beta.launch_sshd()
        assert under_way.send.error(20) != ""
        error = alpha.start_send(under_way.second, "beta").error(10)
        assert re.fullmatch(r"beta: root@\S+: Permission denied \(publickey\)\.", error)
        under_way.pair.wait_until_idle()
    under_way.check_next_send()


def test_there_is_no_btrfs_there(alpha: Host, beta: Host, volume: str) -> None:
    snapshot = alpha.snapshot(volume)
    with beta.shim("btrfs", 'echo "sh: 1: btrfs: not found" >&2; exit 127'):
        assert alpha.send(snapshot, beta) == "beta: sh: 1: btrfs: not found (exit status 127)"


def test_there_is_no_directory_for_snapshots_there(alpha: Host, beta: Host, volume: str) -> None:
    snapshot = alpha.snapshot(volume)
    away = f"{SNAPSHOTS}.away"
    beta.run("mv", SNAPSHOTS, away)
    try:
        error = alpha.send(snapshot, beta)
    finally:
        beta.run("mv", away, SNAPSHOTS)
    assert re.fullmatch(rf"beta: .*{SNAPSHOTS}.*No such file or directory.*", error)


# This host


def test_the_sender_here_is_killed(under_way: UnderWay) -> None:
    under_way.pair.alpha.signal("btrfs", signal.SIGKILL)
    error = under_way.send.error(20)
    assert error == "beta: btrfs send failed on this side: no message (exit status -9)"
    under_way.pair.wait_until_idle()
    assert under_way.pair.beta.snapshot_names(under_way.volume) == [under_way.first]
    under_way.check_next_send()


def test_the_sender_here_fails_between_two_files(pair: Pair, volume: str) -> None:
    """The stream ends where one command of it ends: what has come is no copy all the same."""
    snapshot = snapshot_with(pair.alpha, volume, "file", content())
    cut_off = """
[ "$1" = send ] || exec $real "$@"
$real "$@" > /run/stream
python3 - <<END
import struct, sys
data = open("/run/stream", "rb").read()
position = 17
while position < len(data) * 0.5:
    position += 10 + struct.unpack_from("<I", data, position)[0]
sys.stdout.buffer.write(data[:position])
END
echo "ERROR: send ioctl failed with -5: Input/output error" >&2
exit 1
"""
    with pair.alpha.shim("btrfs", cut_off):
        error = pair.alpha.send(snapshot, "beta")
    assert error == (
        "beta: btrfs send failed on this side: ERROR: send ioctl failed with -5: "
        "Input/output error (exit status 1)"
    )
    assert pair.beta.snapshot_names(volume) == []
    assert pair.alpha.snapshot_names(volume) == [snapshot]
    assert pair.alpha.send(snapshot, "beta") == ""
    assert is_copy(pair.alpha, pair.beta, snapshot)


def test_the_daemon_is_killed(under_way: UnderWay) -> None:
    pair = under_way.pair
    pair.alpha.daemon.kill()
    assert under_way.send.error() == "no answer"
    pair.wait_until_idle(60)
    assert f"{under_way.second}@beta" not in pair.alpha.snapshot_names(under_way.volume)
    under_way.check_next_send()


def test_the_daemon_is_stopped(under_way: UnderWay) -> None:
    pair = under_way.pair
    assert pair.alpha.daemon.stop() == 0
    assert under_way.send.error() == "the transfer was cancelled"
    pair.wait_until_idle(60)
    assert "Traceback" not in pair.alpha.daemon.stderr()
    under_way.check_next_send()


def test_the_daemon_is_stopped_while_the_network_is_away(under_way: UnderWay) -> None:
    pair = under_way.pair
    pair.network.black_hole("beta")
    assert pair.alpha.daemon.stop() == 0
    pair.wait_until_idle(60)
    under_way.check_next_send()


# Nothing moves, or slowly


def test_a_transfer_that_moves_nothing_is_ended(pair: Pair, volume: str) -> None:
    alpha, beta = pair.alpha, pair.beta
    snapshot = snapshot_with(alpha, volume, "file", content(24 * MEBIBYTE))
    stuck = '[ "$1" != receive ] || kill -STOP $$; exec $real "$@"'
    with beta.shim("btrfs", stuck):
        program = f"print(outcome(replication(stall=2).send, {snapshot!r}, 'beta'))"
        said = alpha.program(program, timeout=60)
    expected = "Err: beta: nothing moved for 2 seconds, so the transfer was ended\n"
    assert said == expected
    beta.signal("btrfs", signal.SIGCONT)
    pair.wait_until_idle(60)
    assert alpha.send(snapshot, beta) == ""


def test_a_receiver_that_does_not_come_to_its_end_is_ended(pair: Pair, volume: str) -> None:
    alpha, beta = pair.alpha, pair.beta
    snapshot = snapshot_with(alpha, volume, "file", b"small")
    endless = '[ "$1" != receive ] || { cat > /dev/null; exec sleep 1000; }; exec $real "$@"'
    with beta.shim("btrfs", endless):
        program = f"print(outcome(replication(stall=1).send, {snapshot!r}, 'beta'))"
        assert "nothing moved for 1 seconds" in alpha.program(program, timeout=60)
    beta.kill("sleep")
    assert alpha.send(snapshot, beta) == ""


def test_a_transfer_that_moves_slowly_is_never_ended(pair: Pair, volume: str) -> None:
    alpha, beta = pair.alpha, pair.beta
    snapshot = snapshot_with(alpha, volume, "file", content(6 * MEBIBYTE))
    pair.network.limit("beta", "8mbit")  # half of it waits in ssh when btrfs send has ended
    program = f"""
import time
started = time.monotonic()
print(outcome(replication(stall=2).send, {snapshot!r}, 'beta'), time.monotonic() - started)
"""
    error, seconds = alpha.program(program).split()
    assert error == "None"
    assert float(seconds) > 2 * 2
    assert is_copy(alpha, beta, snapshot)


# Nothing asks


def test_a_host_that_is_unknown_is_no_reason_to_ask(alpha: Host, beta: Host, volume: str) -> None:
    snapshot = alpha.snapshot(volume)
    config = f"Host stranger\n    HostName {beta.address}\n    StrictHostKeyChecking ask\n"
    config += "    UserKnownHostsFile /run/nothing-known\n"
    with alpha.ssh_config(config):
        error = alpha.start_send(snapshot, "stranger").error(10)
        assert error == "stranger: Host key verification failed."
    assert not alpha.path("/run/nothing-known").exists()


def test_a_host_whose_key_has_changed_is_not_trusted(
    alpha: Host, beta: Host, gamma: Host, volume: str
) -> None:
    snapshot = alpha.snapshot(volume)
    config = f"Host changed\n    HostName {beta.address}\n    HostKeyAlias gamma-key\n"
    config += "    UserKnownHostsFile /run/known-wrongly\n"
    keys = gamma.run("cat", "/etc/ssh/ssh_host_ed25519_key.pub").stdout
    alpha.write("/run/known-wrongly", f"gamma-key {keys}")
    with alpha.ssh_config(config):
        error = alpha.start_send(snapshot, "changed").error(10)
    assert error.startswith("changed: ")
    assert "verification failed" in error
    assert "@@@" not in error


def test_no_password_is_asked_for(pair: Pair, gamma: Host, volume: str) -> None:
    """Not by ssh, nor by the ssh that it starts for a jump host, even if there is a terminal."""
    alpha, beta = pair.alpha, pair.beta
    snapshot = alpha.snapshot(volume)
    sshd_config = gamma.path("/etc/ssh/sshd_config").read_text()
    passwords = sshd_config.replace("PasswordAuthentication no", "PasswordAuthentication yes")
    passwords = passwords.replace("prohibit-password", "yes")
    config = f"""\
Host protected
    HostName {gamma.address}
    PubkeyAuthentication no
    StrictHostKeyChecking accept-new
Host behind
    HostName {beta.address}
    ProxyCommand ssh -p 1122 -W %h:%p protected
"""
    program = f"print(outcome(replication().send, {snapshot!r}, 'HOST'))"
    with gamma.changed_file("/etc/ssh/sshd_config", passwords), alpha.ssh_config(config):
        gamma.kill_sshd()
        gamma.launch_sshd()
        for host in ("protected", "behind"):
            error = alpha.start_send(snapshot, host).error(10)
            assert error.startswith(f"{host}: ")
            assert "Permission denied" in error
            terminal = alpha.program_on_terminal(program.replace("HOST", host))
            assert terminal.wait(60) == 0
            assert f"Err: {host}: " in terminal.shown()
            assert "password" not in terminal.shown().replace("(publickey,password)", "")
    gamma.kill_sshd()
    gamma.launch_sshd()
    alpha.wait_until_idle()


def test_a_start_up_file_that_never_ends_is_not_waited_for(pair: Pair, volume: str) -> None:
    alpha, beta = pair.alpha, pair.beta
    program = """
from buttervolume.hosts import ssh
from buttervolume.system.command import Flow
def log_in():
    with ssh.connect("beta", 1122, Flow(), limit=5, login_limit=2):
        pass
print(ssh.LOGIN_LIMIT, outcome(log_in))
"""
    with beta.changed_file("/root/.bashrc", "sleep 1000\n"):
        assert alpha.program(program) == "60.0 Err: beta: no log-in within 2 seconds\n"
    alpha.wait_until_idle()
    beta.kill("sleep")
    pair.wait_until_idle()
