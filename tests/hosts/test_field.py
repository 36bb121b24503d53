"""Other hosts as people have them: their sshd, login shells, mounts and ssh configurations."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.hosts.harness import MEBIBYTE, VOLUMES, Host, Pair
from tests.hosts.test_belief import equal
from tests.hosts.test_send import content, is_copy, is_incremental, snapshot_with
from tests.hosts.test_sync import sync
from tests.support.machine import DATA


@contextmanager
def sshd_config(host: Host, text: str) -> Iterator[None]:
    """Let a host's sshd have more settings."""
    file = "/etc/ssh/sshd_config"
    with host.changed_file(file, host.path(file).read_text() + text):
        host.kill_sshd()
        host.launch_sshd()
        yield
    host.kill_sshd()
    host.launch_sshd()


def send_and_sync(alpha: Host, beta: Host, volume: str) -> None:
    """Two sends, the second of changes, and a synchronization: all must work."""
    first = snapshot_with(alpha, volume, "file", content(MEBIBYTE))
    assert alpha.send(first, beta) == ""
    second = snapshot_with(alpha, volume, "more", b"2")
    assert alpha.send(second, beta) == ""
    assert is_incremental(beta, second, first)
    assert equal(alpha, beta, second)
    beta.run("btrfs", "subvolume", "create", f"{VOLUMES}/{volume}")
    beta.file(volume, "theirs").write_bytes(b"theirs")
    assert sync(alpha, volume, "beta") == ""
    assert alpha.file(volume, "theirs").read_bytes() == b"theirs"


# sshd


def test_an_sshd_that_takes_one_session_a_connection(pair: Pair, volume: str) -> None:
    """What leaves is counted, whichever process carries it, and no such transfer is ended."""
    alpha, beta = pair.alpha, pair.beta
    snapshot = snapshot_with(alpha, volume, "file", content(12 * MEBIBYTE))
    with sshd_config(beta, "MaxSessions 1\n"):
        pair.network.limit("beta", "8mbit")
        program = f"print(outcome(replication(stall=8).send, {snapshot!r}, 'beta'))"
        assert alpha.program(program) == "None\n"
        pair.network.unlimit("beta")
        assert is_copy(alpha, beta, snapshot)
        alpha.file(volume, "more").write_bytes(content(4 * MEBIBYTE))
        second = alpha.snapshot(volume)
        pair.network.limit("beta", "8mbit")
        sending = alpha.start_send(second, beta)
        alpha.wait_for_bytes(2 * MEBIBYTE)
        pair.network.unlimit("beta")
        assert sending.error() == ""
    told = [line for line in alpha.daemon.stdout().splitlines() if "MaxSessions" in line]
    assert len(told) == 1, "once for the whole transfer"


def test_a_long_banner_does_not_hide_the_reason(alpha: Host, beta: Host, volume: str) -> None:
    beta.write("/etc/ssh/banner", "Authorised use only, all is logged!\n" * 400)
    snapshot = alpha.snapshot(volume)
    with (
        sshd_config(beta, "Banner /etc/ssh/banner\n"),
        beta.changed_file("/root/.ssh/authorized_keys", ""),
    ):
        error = alpha.send(snapshot, beta)
    assert "Permission denied" in error
    assert "Authorised" not in error


# Login shells and users


@contextmanager
def login_shell(host: Host, shell: str) -> Iterator[None]:
    host.run("usermod", "--shell", shell, "root")
    try:
        yield
    finally:
        host.run("usermod", "--shell", "/bin/bash", "root")


STRICT = r"""#!/bin/bash
case "$2" in *$'\n'*|*!*|*\\*) echo "Unmatched '''." >&2; exit 1;; esac
exec /bin/sh "$@"
"""
"""Takes within quotes neither an end of line nor `!`, as csh, and no backslash, as fish."""
SHELLS = [shell for name in ("dash", "zsh", "fish", "tcsh") if (shell := shutil.which(name))]


@pytest.mark.parametrize("shell", ["/run/strict", *SHELLS])
def test_any_login_shell_passes_our_commands_on(
    alpha: Host, beta: Host, volume: str, shell: str
) -> None:
    beta.write("/run/strict", STRICT)
    beta.run("chmod", "755", "/run/strict")
    odd = f"{volume} it's $(odd) \\ !"
    alpha.run("btrfs", "subvolume", "create", f"{VOLUMES}/{odd}")
    with login_shell(beta, shell):
        send_and_sync(alpha, beta, volume)
        snapshot = snapshot_with(alpha, odd, "file", b"1")
        assert alpha.send(snapshot, beta) == ""
    assert equal(alpha, beta, snapshot)


def test_the_words_of_nologin_are_shown(alpha: Host, beta: Host, volume: str) -> None:
    snapshot = alpha.snapshot(volume)
    with login_shell(beta, "/usr/sbin/nologin"):
        assert "This account is currently not available" in alpha.send(snapshot, beta)
        assert "This account is currently not available" in sync(alpha, volume, "beta")


def test_a_user_who_is_not_root_is_told_what_is_needed(
    alpha: Host, beta: Host, volume: str
) -> None:
    beta.run("useradd", "-m", "-d", f"/run/{volume}", "-p*", "-s/bin/bash", volume)
    keys = 'mkdir -p "$1/.ssh" && cp /root/.ssh/authorized_keys "$1/.ssh" && chown -R "$2" "$1"'
    beta.run("sh", "-ec", keys, "sh", f"/run/{volume}", volume)
    snapshot = alpha.snapshot(volume)
    with alpha.ssh_config(f"Host beta\n    User {volume}\n"):
        error = alpha.send(snapshot, beta)
        unread = sync(alpha, volume, "beta")
    assert f"logged in as {volume}, who may not receive snapshots: log in as root" in error
    assert "Permission denied (13)" in unread
    assert "log in as root there" in unread


@pytest.mark.parametrize("host", ["root@beta", "beta:1122", "[::1]", "fd00::2"])
def test_who_adds_a_user_or_a_port_is_told_where_that_belongs(
    alpha: Host, volume: str, host: str
) -> None:
    refusal = alpha.api.refused("Snapshot.Send", Name=alpha.snapshot(volume), Host=host)
    assert "is said in the ssh configuration, below 'Host <name>'" in refusal
    assert "the port of all hosts in SSH_PORT" in refusal


def test_one_host_may_have_another_port(alpha: Host, beta: Host, volume: str) -> None:
    snapshot = snapshot_with(alpha, volume, "file", b"1")
    to_port = "exec 3<>/dev/tcp/%h/1122; cat <&3 & exec cat >&3"
    config = f"""\
Host beta
    Port 7
    StrictHostKeyChecking accept-new
    ProxyCommand bash -c '{to_port}'
"""
    with alpha.ssh_config(config):
        program = f"print(outcome(replication(port=9).send, {snapshot!r}, 'beta'))"
        assert alpha.program(program) == "None\n"
    assert is_copy(alpha, beta, snapshot)


# ssh configurations


OPTIONS = [
    "PermitLocalCommand yes\nLocalCommand echo hello",
    "StdinNull yes",
    "SessionType none",
    "ForkAfterAuthentication yes",
    "LogLevel DEBUG3",
    "ForwardAgent yes\nForwardX11 yes\nVisualHostKey yes\nEscapeChar ~",
]


@pytest.mark.parametrize("option", OPTIONS)
def test_options_that_are_meant_for_other_sessions_do_no_harm(
    alpha: Host, beta: Host, volume: str, option: str
) -> None:
    with alpha.ssh_config(f"Host beta\n{option}\n"):
        send_and_sync(alpha, beta, volume)


@pytest.mark.parametrize("name", ["x" * 200, "it's 100%h and ${HOME}"])
def test_any_directory_for_temporary_files_will_do(
    alpha: Host, beta: Host, volume: str, name: str
) -> None:
    directory = f"/run/{name}"
    alpha.run("mkdir", "-p", directory)
    snapshot = snapshot_with(alpha, volume, "file", b"1")
    program = f"""
import tempfile
tempfile.tempdir = {directory!r}
print(outcome(replication().send, {snapshot!r}, "beta"))
"""
    assert alpha.program(program) == "None\n"


# Mounts


@contextmanager
def bound(host: Host, *, top: str = "") -> Iterator[None]:
    """The data are in a plain directory, bound to where they should be."""
    script = """
mkdir -p "$1/srv/store/snapshots" "$1/srv/store/volumes"
[ -z "$2" ] || { mkdir -p "$2"; mount --bind --make-private "$1" "$2"; }
mount --bind "$1/srv/store" "$1"
"""
    host.run("sh", "-ec", script, "sh", DATA, top)
    try:
        yield
    finally:
        host.run("umount", "--lazy", DATA)
        if top:
            host.run("umount", "--lazy", top)


def test_a_receiver_on_a_bind_mount_gets_all_with_a_warning(
    alpha: Host, beta: Host, volume: str
) -> None:
    with bound(beta):
        for number in range(3):
            alpha.file(volume, f"file{number}").write_bytes(b"x")
            snapshot = alpha.snapshot(volume)
            answer = alpha.api.call("Snapshot.Send", Name=snapshot, Host="beta")
            assert "is in a bind mount of a plain directory" in answer["Warning"]
            assert equal(alpha, beta, snapshot)
            assert beta.show(snapshot)["Parent UUID"] == "-"


def test_another_mount_that_shows_the_parent_is_used(alpha: Host, beta: Host, volume: str) -> None:
    before = None
    with bound(beta, top="/run/top"):
        for number in range(3):
            snapshot = snapshot_with(alpha, volume, f"file{number}", b"x")
            answer = alpha.api.call("Snapshot.Send", Name=snapshot, Host="beta")
            assert "Warning" not in answer
            assert equal(alpha, beta, snapshot)
            assert before is None or is_incremental(beta, snapshot, before)
            before = snapshot


@contextmanager
def without_copy_on_write(host: Host) -> Iterator[None]:
    host.run("mount", "-o", "remount,nodatacow", DATA)
    try:
        yield
    finally:
        host.run("mount", "-o", "remount,datasum", DATA)


@pytest.mark.parametrize("by", ["scripts", "peer"])
def test_a_receiver_without_copy_on_write_takes_all_but_what_is_compressed(
    alpha: Host, beta: Host, volume: str, by: str
) -> None:
    packed = f"{volume}-packed"
    alpha.create(packed, compression="zstd")
    plain = snapshot_with(alpha, volume, "file", content(MEBIBYTE))
    snapshot = snapshot_with(alpha, packed, "file", content(MEBIBYTE))
    if by == "peer":
        beta.install()
    try:
        with without_copy_on_write(beta):
            assert alpha.send(plain, beta) == ""
            assert equal(alpha, beta, plain)
            error = alpha.send(snapshot, beta)
            assert "mount the filesystem there without nodatacow" in error
            assert beta.snapshot_names(packed) == []
        assert alpha.send(snapshot, beta) == ""
        assert equal(alpha, beta, snapshot)
    finally:
        beta.uninstall()
