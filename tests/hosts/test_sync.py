"""The newer files of volumes on other hosts, brought into the volume here."""

import os
import re
import signal

import pytest

from tests.hosts.harness import MEBIBYTE, SNAPSHOTS, VOLUMES, Background, Host, Pair
from tests.hosts.test_failures import impatient_ssh
from tests.hosts.test_send import content
from tests.support.wait import wait_until


@pytest.fixture
def there(beta: Host, volume: str) -> str:
    """The volume on beta that has the same name as the one on alpha."""
    beta.create(volume)
    return volume


def sync(host: Host, volume: str, *hosts: str) -> str:
    """Synchronize and return the `Err`, which is empty if all went well."""
    return start_sync(host, volume, *hosts).error()


def start_sync(host: Host, volume: str, *hosts: str) -> Background:
    return host.start("Volume.Sync", Volumes=[volume], Hosts=list(hosts))


def write(host: Host, volume: str, name: str, data: bytes, when: int) -> None:
    """Write a file and give it a time."""
    host.file(volume, name).write_bytes(data)
    os.utime(host.file(volume, name), (when, when))


@pytest.mark.usefixtures("there")
def test_newer_files_come_and_nothing_goes(alpha: Host, beta: Host, volume: str) -> None:
    write(alpha, volume, "older here", b"old", 1000)
    write(beta, volume, "older here", b"new", 2000)
    write(alpha, volume, "newer here", b"new", 2000)
    write(beta, volume, "newer here", b"old", 1000)
    write(alpha, volume, "only here", b"ours", 1000)
    write(beta, volume, "it's there; touch owned $(id)", b"theirs", 1000)
    beta.file(volume, "directory").mkdir()
    write(beta, volume, "directory/inner", b"inner", 1000)

    assert sync(alpha, volume, "beta") == ""

    assert alpha.file(volume, "older here").read_bytes() == b"new"
    assert alpha.file(volume, "older here").stat().st_mtime == 2000
    assert alpha.file(volume, "newer here").read_bytes() == b"new"
    assert alpha.file(volume, "only here").read_bytes() == b"ours"
    assert alpha.file(volume, "it's there; touch owned $(id)").read_bytes() == b"theirs"
    assert alpha.file(volume, "directory/inner").read_bytes() == b"inner"
    assert not beta.file(volume, "only here").exists()
    assert beta.file(volume, "newer here").read_bytes() == b"old"
    [before] = alpha.snapshot_names(volume)
    assert alpha.copied_file(before, "older here").read_bytes() == b"old"
    assert not alpha.copied_file(before, "directory").exists()


@pytest.mark.usefixtures("there")
def test_all_that_a_file_is_comes_with_it(alpha: Host, beta: Host, volume: str) -> None:
    for host, number in ((alpha, "7001"), (beta, "7002")):
        host.run("useradd", "--uid", number, "of-two-numbers")
    script = """cd "$1"
echo linked > one; ln one two
truncate -s 64M sparse; echo end >> sparse
echo listed > acl; setfacl -m u:7003:rw acl; setfacl -d -m u:7003:rwx .
echo attributed > xattr; setfattr -n user.key -v value xattr; setfattr -n trusted.key -v v xattr
echo owned > owner; chown of-two-numbers:7004 owner; chmod 4751 owner
ln -s /nowhere link; mkfifo fifo
"""
    beta.run("sh", "-ec", script, "sh", f"{VOLUMES}/{volume}")

    assert sync(alpha, volume, "beta") == ""

    assert alpha.file(volume, "one").stat().st_ino == alpha.file(volume, "two").stat().st_ino
    sparse = alpha.file(volume, "sparse").stat()
    assert sparse.st_size == 64 * MEBIBYTE + 4
    assert sparse.st_blocks * 512 < MEBIBYTE
    look = """cd "$1"
getfacl -n acl .; getfattr -d -m - xattr; stat -c '%n %u %g %a %F %N %s' *
"""
    shown = [
        host.run("sh", "-ec", look, "sh", f"{VOLUMES}/{volume}").stdout for host in (alpha, beta)
    ]
    assert shown[0] == shown[1]
    assert "user:7003:rw" in shown[0]
    assert "default:user:7003:rwx" in shown[0]
    assert 'trusted.key="v"' in shown[0]
    assert "owner 7002 7004 4751" in shown[0]


@pytest.mark.usefixtures("there")
def test_a_dead_host_of_three_stops_nothing_and_is_named(
    alpha: Host, beta: Host, gamma: Host, volume: str
) -> None:
    gamma.create(volume)
    write(beta, volume, "from beta", b"b", 1000)
    write(gamma, volume, "from gamma", b"c", 1000)

    error = sync(alpha, volume, "beta", "nohost", "gamma")

    assert re.fullmatch(
        f"not synchronized: {volume} from nohost: ssh: Could not resolve hostname nohost.*", error
    )
    assert "from beta" not in error
    assert alpha.file(volume, "from beta").read_bytes() == b"b"
    assert alpha.file(volume, "from gamma").read_bytes() == b"c"
    assert len(alpha.snapshot_names(volume)) == 1


def test_if_every_host_fails_the_snapshot_goes_again(
    alpha: Host, beta: Host, gamma: Host, volume: str
) -> None:
    write(alpha, volume, "file", b"ours", 1000)
    error = sync(alpha, volume, "nohost", "beta")
    assert f"{volume} from nohost: ssh: Could not resolve" in error
    assert re.search(f"; {volume} from beta: .*{VOLUMES}/{volume}.*No such file", error)
    assert alpha.snapshot_names(volume) == []
    assert alpha.file(volume, "file").read_bytes() == b"ours"


def test_an_unknown_volume_is_an_error_before_anything_is_done(
    alpha: Host, there: str, beta: Host
) -> None:
    write(beta, there, "file", b"theirs", 1000)
    request = alpha.start("Volume.Sync", Volumes=[there, "unknown"], Hosts=["beta"])
    assert request.error() == "unknown: no such volume"
    assert not alpha.file(there, "file").exists()
    assert alpha.snapshot_names(there) == []


@pytest.mark.usefixtures("there")
def test_files_that_vanish_there_meanwhile_are_no_failure(alpha: Host, volume: str) -> None:
    with alpha.shim("rsync", '$real "$@" && exit 24'):
        assert sync(alpha, volume, "beta") == ""
    with alpha.shim(
        "rsync", '$real "$@"; echo "rsync: some files were not transferred" >&2; exit 23'
    ):
        assert "beta: rsync: some files were not transferred (exit status 23)" in sync(
            alpha, volume, "beta"
        )


# What stays as it is


@pytest.mark.usefixtures("there")
def test_what_is_newer_here_stays_whatever_it_is(alpha: Host, beta: Host, volume: str) -> None:
    script = """cd "$1"
make() { # NAME KIND: what lies under a name
    case $2 in
        file) echo "$3" > "$1";; link) ln -s "$3" "$1";; dir) mkdir "$1";; fifo) mkfifo "$1";;
    esac
    touch -h -d "$4" "$1"
}
"""
    cases = [
        (here, there, age)
        for here in ("file", "link", "dir", "fifo")
        for there in ("file", "link", "fifo")
        for age in ("newer", "older")
        if not (here == "dir" and age == "older")
    ]
    for host, side in ((alpha, 0), (beta, 1)):
        lines = [script]
        for here, there, age in cases:
            kind = (here, there)[side]
            date = "2020-01-01" if (side == 0) == (age == "older") else "2024-01-01"
            name = f"{here} [{there}]* \\ {age}"
            lines.append(f"make '{name}' {kind} {host.name} {date}\n")
        host.run("sh", "-ec", "".join(lines), "sh", f"{VOLUMES}/{volume}")

    assert sync(alpha, volume, "beta") == ""

    for here, there, age in cases:
        path = alpha.file(volume, f"{here} [{there}]* \\ {age}")
        kind = here if age == "newer" else there
        found = (
            "link" if path.is_symlink()
            else "file" if path.is_file()
            else "fifo" if path.is_fifo()
            else "dir"
        )  # fmt: skip
        assert found == kind, path.name
        owner = "alpha" if age == "newer" else "beta"
        if kind == "link":
            assert str(path.readlink()) == owner, path.name
        if kind == "file":
            assert path.read_text() == f"{owner}\n", path.name


def test_attributes_of_a_host_are_neither_brought_nor_removed(
    alpha: Host, beta: Host, volume: str
) -> None:
    beta.create(volume, compression="zstd")
    for host in (alpha, beta):
        host.run("mkdir", f"{VOLUMES}/{volume}/dir")
        path = f"{VOLUMES}/{volume}"
        for name in ("trusted.buttervolume.keep", "trusted.key", "user.key"):
            host.run("setfattr", "-n", name, "-v", host.name, path)
    alpha.run("setfattr", "-n", "trusted.buttervolume.only", "-v", "here", f"{VOLUMES}/{volume}")
    beta.file(volume, "dir/file").write_bytes(b"x" * 5000)

    assert sync(alpha, volume, "beta") == ""

    shown = alpha.run("getfattr", "-d", "-m", "-", f"{VOLUMES}/{volume}").stdout
    assert 'trusted.buttervolume.keep="alpha"' in shown
    assert 'trusted.buttervolume.only="here"' in shown
    assert "btrfs.compression" not in shown
    assert 'trusted.key="beta"' in shown
    assert 'user.key="beta"' in shown
    assert alpha.run("lsattr", "-d", f"{VOLUMES}/{volume}").stdout.split()[0].count("C") == 1
    assert alpha.file(volume, "dir/file").read_bytes() == b"x" * 5000


@pytest.mark.usefixtures("there")
def test_a_half_done_synchronization_keeps_the_way_back_and_names_it(
    alpha: Host, beta: Host, volume: str
) -> None:
    write(alpha, volume, "file", b"ours", 1000)
    write(beta, volume, "file", b"theirs", 2000)
    with alpha.shim("rsync", '$real "$@"; exit 23'):
        error = sync(alpha, volume, "beta")
    [before] = alpha.snapshot_names(volume)
    assert f"{volume} as it was before is {before}" in error
    assert alpha.copied_file(before, "file").read_bytes() == b"ours"
    assert alpha.file(volume, "file").read_bytes() == b"theirs"
    assert alpha.api.call("Snapshot.Restore", Name=before)
    assert alpha.file(volume, "file").read_bytes() == b"ours"


@pytest.mark.usefixtures("there")
def test_a_failure_that_changed_nothing_leaves_no_snapshot(
    alpha: Host, beta: Host, volume: str
) -> None:
    write(alpha, volume, "file", b"ours", 1000)
    write(beta, volume, "file", b"ours", 1000)
    with alpha.shim("rsync", '$real "$@"; exit 23'):
        assert "exit status 23" in sync(alpha, volume, "beta")
    assert alpha.snapshot_names(volume) == []


# rsync itself


@pytest.mark.usefixtures("there")
@pytest.mark.parametrize("version", ["3.2.7", "3.4.1", "2.6.9"])
def test_an_rsync_there_that_follows_swapped_links_is_refused(
    alpha: Host, beta: Host, volume: str, version: str
) -> None:
    write(beta, volume, "file", b"theirs", 1000)
    old = f'[ "$1" != --version ] || {{ echo "rsync  version {version}  protocol"; exit; }}'
    with beta.shim("rsync", f'{old}; exec $real "$@"'), beta.shim("zcat", "exit 0"):
        error = sync(alpha, volume, "beta")
    assert f"rsync {version} there can be led out of the volume" in error
    assert "install rsync 3.5.0" in error
    assert not alpha.file(volume, "file").exists()


@pytest.mark.usefixtures("there")
def test_one_that_the_distribution_has_mended_is_used(alpha: Host, beta: Host, volume: str) -> None:
    write(beta, volume, "file", b"theirs", 1000)
    old = '[ "$1" != --version ] || { echo "rsync  version 3.4.1  protocol"; exit; }'
    with (
        beta.shim("rsync", f'{old}; exec $real "$@"'),
        beta.shim("zcat", 'echo "  * CVE-2026-53797: mended"'),
    ):
        assert sync(alpha, volume, "beta") == ""
    assert alpha.file(volume, "file").read_bytes() == b"theirs"


@pytest.mark.usefixtures("there")
def test_rsync_here_can_write_the_volume_only(alpha: Host, beta: Host, volume: str) -> None:
    """One that follows links out of it, as older ones could be led to."""
    write(beta, volume, "file", b"theirs", 1000)
    alpha.create(f"{volume}-other")
    outside = [f"{VOLUMES}/{volume}-other", SNAPSHOTS, "/etc", "/root", "/run", "/tmp", "/dev/shm"]
    tries = "".join(f"touch {place}/{volume}-escaped 2>/dev/null;" for place in outside)
    inside = f"touch {VOLUMES}/{volume}/inside; mknod {VOLUMES}/{volume}/null c 1 3"
    opened = f"echo > {VOLUMES}/{volume}/null && touch {VOLUMES}/{volume}/opened"
    with alpha.shim("rsync", f'{tries} {inside}; ({opened}) 2>/dev/null; exec $real "$@"'):
        assert sync(alpha, volume, "beta") == ""
    assert alpha.file(volume, "inside").exists()
    assert not alpha.file(volume, "opened").exists()
    for place in outside:
        assert not alpha.path(f"{place}/{volume}-escaped").exists(), place


@pytest.mark.usefixtures("there")
def test_a_peer_without_acls_does_not_fail_what_arrives(
    alpha: Host, beta: Host, volume: str
) -> None:
    write(beta, volume, "file", b"theirs", 1000)
    complain = """
case "$*" in
    *--acls*) echo "ACLs are not supported on this server" >&2; exit 4;;
esac
exec $real "$@"
"""
    with alpha.shim("rsync", complain):
        assert sync(alpha, volume, "beta") == ""
    assert alpha.file(volume, "file").read_bytes() == b"theirs"


# While it runs


@pytest.fixture
def syncing(pair: Pair, there: str) -> Background:
    """A synchronization that moves, and would take many seconds yet."""
    pair.beta.file(there, "big").write_bytes(content(16 * MEBIBYTE))
    pair.network.limit("beta", "8mbit")
    request = start_sync(pair.alpha, there, "beta")
    pair.alpha.wait_for_bytes(MEBIBYTE)
    return request


def test_the_volume_can_be_neither_replaced_nor_removed(
    pair: Pair, volume: str, syncing: Background
) -> None:
    alpha = pair.alpha
    [transfer] = alpha.transfers()
    assert {key: transfer[key] for key in ("Operation", "Volume", "Host", "Parent", "Phase")} == {
        "Operation": "sync",
        "Volume": volume,
        "Host": "beta",
        "Parent": None,
        "Phase": "synchronizing",
    }
    assert alpha.snapshot_names(volume) == [transfer["Snapshot"]]
    for force in (False, True):
        refusal = alpha.api.refused("Snapshot.Restore", Name=transfer["Snapshot"], Force=force)
        assert "under way" in refusal
    assert "under way" in alpha.api.refused("Remove", Name=volume)
    other = f"{volume}-other"
    alpha.create(other)
    both = alpha.start("Volume.Sync", Volumes=[other, volume], Hosts=["nohost"]).error(5)
    assert f"{other} from nohost: " in both
    assert f"{volume}: a synchronization of this volume is under way" in both
    alpha.api.call("Get", Name=volume)
    alpha.snapshot(volume)
    assert not syncing.is_over()

    pair.network.unlimit("beta")
    assert syncing.error() == ""
    assert alpha.file(volume, "big").stat().st_size == 16 * MEBIBYTE
    alpha.api.call("Snapshot.Restore", Name=transfer["Snapshot"])
    alpha.api.call("Remove", Name=volume)


def left_over(host: Host, volume: str) -> list[str]:
    """What a synchronization that was ended has left in the volume."""
    return [path.name for path in host.file(volume, "").iterdir()]


def test_it_can_be_cancelled(pair: Pair, volume: str, syncing: Background) -> None:
    [transfer] = pair.alpha.transfers()
    pair.alpha.api.call("Transfers.Cancel", Id=transfer["Id"])
    [before] = pair.alpha.snapshot_names(volume)
    assert syncing.error(10) == (
        f"not synchronized: {volume} from beta: the transfer was cancelled; "
        f"{volume} as it was before is {before}"
    )
    pair.wait_until_idle()
    assert left_over(pair.alpha, volume) == []
    assert pair.alpha.snapshot_names(volume) == [before], "rsync has written to the volume"


def test_the_daemon_is_stopped(pair: Pair, volume: str, syncing: Background) -> None:
    assert pair.alpha.daemon.stop() == 0
    assert "cancelled" in syncing.error(10)
    pair.wait_until_idle()
    assert left_over(pair.alpha, volume) == []


def test_the_daemon_is_killed(pair: Pair, volume: str, syncing: Background) -> None:
    pair.alpha.daemon.kill()
    assert syncing.error(10) == "no answer"
    pair.wait_until_idle(60)
    pair.heal()
    assert sync(pair.alpha, volume, "beta") == ""
    assert pair.alpha.file(volume, "big").stat().st_size == 16 * MEBIBYTE


def test_the_network_goes_away(pair: Pair, volume: str, there: str) -> None:
    pair.beta.file(there, "big").write_bytes(content(16 * MEBIBYTE))
    pair.network.limit("beta", "8mbit")
    with impatient_ssh(pair.alpha):
        request = start_sync(pair.alpha, there, "beta")
        pair.alpha.wait_for_bytes(MEBIBYTE)
        pair.network.black_hole("beta")
        error = request.error(20)
    assert re.match(
        rf"not synchronized: {volume} from beta: Timeout, server \S+ not responding\.", error
    )
    pair.alpha.wait_until_idle()
    assert left_over(pair.alpha, volume) == []
    pair.heal()
    assert sync(pair.alpha, volume, "beta") == ""


def test_a_synchronization_that_moves_nothing_is_ended(pair: Pair, volume: str, there: str) -> None:
    stop = 'case "$*" in *--server*) kill -STOP $$;; esac; exec $real "$@"'
    with pair.beta.shim("rsync", stop):
        program = f"print(outcome(replication(stall=2).synchronize, [{there!r}], ['beta']))"
        said = pair.alpha.program(program, timeout=60)
        pair.beta.signal("rsync", signal.SIGCONT)
    assert f"Err: not synchronized: {volume} from beta: " in said
    assert "timeout" in said
    pair.wait_until_idle()


# The command line


def test_sync_shows_what_rsync_reports_on_a_terminal_and_ctrl_c_ends_it(
    pair: Pair, volume: str, there: str
) -> None:
    pair.beta.file(there, "big").write_bytes(content(16 * MEBIBYTE))
    pair.network.limit("beta", "8mbit")
    terminal = pair.alpha.on_terminal("sync", volume, "beta")
    wait_until(
        lambda: re.search(r"beta: \d.*MB \[.*B/s, synchronizing\]", terminal.shown()),
        20,
        "a progress line",
    )
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.wait() == 1
    assert "the transfer was ended" in terminal.shown()
    pair.wait_until_idle()
    assert left_over(pair.alpha, volume) == []


WAIT = 'touch /run/arrived; while [ ! -e /run/go-on ]; do sleep 0.01; done; exec "$real" "$@"'


def test_ctrl_c_before_the_transfer_has_begun_ends_it_too(
    alpha: Host, beta: Host, volume: str, there: str
) -> None:
    write(beta, there, "file", b"theirs", 1000)
    before = len(alpha.daemon.log())
    with alpha.shim("btrfs", WAIT):  # the snapshot before the transfer takes long
        terminal = alpha.on_terminal("sync", volume, "beta")
        wait_until(lambda: alpha.path("/run/arrived").exists(), 60, "the snapshot")
        assert alpha.transfers() == []
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.wait() == 1
        assert "the transfer was ended" in terminal.shown()
        alpha.write("/run/go-on", "")
        wait_until(lambda: "the transfer was cancelled" in alpha.daemon.log()[before:], 60)
    alpha.run("rm", "/run/arrived", "/run/go-on")
    assert not alpha.file(volume, "file").exists()
    assert alpha.transfers() == []


def test_a_ticket_ends_what_it_names_and_nothing_else(alpha: Host, beta: Host, volume: str) -> None:
    alpha.api.call("Transfers.Cancel", Ticket="mine")
    body = {"Volumes": [volume], "Hosts": ["beta"]}

    assert "was cancelled" in alpha.api.post("Volume.Sync", Ticket="mine", **body).error
    beta.create(volume)
    assert alpha.api.post("Volume.Sync", Ticket="other", **body).error == ""
    assert alpha.api.post("Volume.Sync", **body).error == ""


@pytest.mark.parametrize("ticket", ["", "x" * 65, 1, ["x"]])
def test_a_ticket_that_is_none_is_malformed(alpha: Host, volume: str, ticket: object) -> None:
    for endpoint, body in (
        ("Volume.Sync", {"Volumes": [volume], "Hosts": ["beta"]}),
        ("Transfers.Cancel", {}),
    ):
        assert alpha.api.post(endpoint, Ticket=ticket, **body).status == 400


@pytest.mark.usefixtures("there")
def test_sync_is_silent_where_there_is_no_terminal(alpha: Host, beta: Host, volume: str) -> None:
    write(beta, volume, "file", b"theirs", 1000)
    ended = alpha.cli("sync", volume, "beta")
    assert (ended.stdout, ended.stderr) == ("", "")
    failed = alpha.cli("sync", volume, "nohost", "beta", check=False)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert f"not synchronized: {volume} from nohost" in failed.stderr
