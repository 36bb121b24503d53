"""What is open to another host stays open for a while, and is used again if nothing has changed."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hosts.harness import MEBIBYTE, Host, Pair
from tests.hosts.test_belief import equal
from tests.hosts.test_send import content, is_incremental, snapshot_with
from tests.hosts.test_session import GREETING
from tests.support.machine import in_checkout
from tests.support.wait import wait_until

PROGRAM = """
import os, subprocess, sys, time
from buttervolume.errors import ButtervolumeError
from buttervolume.hosts.reach import Reach
from buttervolume.system.command import Flow

reach = Reach(1122, "alpha", 20, keep=60)

def session():
    with reach.session("beta", Flow()) as peer:
        peer.look("db", lambda name: None, Flow())
        return peer

def change(path):
    with open(path, "a") as file:
        file.write("# changed\\n")

def on_beta(script):
    log_in = ["ssh", "-p", "1122", "-oBatchMode=yes", "beta", script]
    subprocess.run(log_in, check=True, stdin=subprocess.DEVNULL)

session()  # now ssh knows all there is to know of that host
first = session()
"""


def run(host: Host, text: str, check: bool = True) -> str:
    argv = (sys.executable, "-c", PROGRAM + text)
    return host.run(*argv, env=in_checkout(None), timeout=60, check=check).stdout


@pytest.fixture
def install(pair: Pair) -> Iterator[Callable[..., None]]:
    """Install buttervolume on beta, or something that passes for it."""
    yield pair.beta.install
    pair.beta.uninstall()


@pytest.fixture
def peer(install: Callable[..., None]) -> None:
    install()


@pytest.mark.usefixtures("peer")
def test_a_session_that_ended_well_is_used_again(alpha: Host) -> None:
    assert run(alpha, "print(session() is first)") == "True\n"


@pytest.mark.usefixtures("peer")
def test_two_at_a_time_have_a_session_each(alpha: Host) -> None:
    text = """
with reach.session("beta", Flow()) as one:
    other = session()
    print(one is first, other is first)
with reach.session("beta", Flow()) as one:
    print({one, session()} == {first, other})
"""
    assert run(alpha, text) == "True False\nTrue\n"


@pytest.mark.usefixtures("peer")
def test_one_that_failed_is_not_used_again(alpha: Host) -> None:
    text = """
try:
    with reach.session("beta", Flow()) as one:
        raise KeyError
except KeyError:
    print(one is first, session() is first)
"""
    assert run(alpha, text) == "True False\n"


CHANGES = {
    "the ssh configuration here": "change('/root/.ssh/config')",
    "a key here": "os.utime('/root/.ssh/id_ed25519')",
    "the keys there": "on_beta('touch /root/.ssh/authorized_keys')",
    "the program there": "on_beta('touch /usr/local/sbin/buttervolume')",
    "the configuration there": "on_beta('mkdir -p /etc/buttervolume;"
    " touch /etc/buttervolume/config.ini; echo >> /etc/buttervolume/config.ini')",
    "it is not there any more": "on_beta('pkill -9 -f [b]uttervolume.peer')",
    "ssh here is not there any more": "subprocess.run(['pkill', '-9', '-x', 'ssh'])",
}


@pytest.mark.usefixtures("peer")
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_after_a_change_there_is_a_new_one(alpha: Host, change: str) -> None:
    config = alpha.path("/root/.ssh/config").read_text()

    with alpha.changed_file("/root/.ssh/config", config):
        assert run(alpha, f"{change}\nprint(session() is first)") == "False\n"


def test_an_older_peer_is_asked_anew_each_time(alpha: Host, install: Callable[..., None]) -> None:
    look = '{"snapshots": [], "strangers": [], "bound": false}'
    unknown = '{"error": "this key does not allow \'still\'", "code": "NotAllowed"}'
    install(
        f"""echo '{GREETING}'
while read -r line; do
    case $line in *look*) echo '{look}';; *still*) echo '{unknown}';; esac
done"""
    )

    assert run(alpha, "print(session() is first)") == "False\n"


@pytest.mark.usefixtures("peer")
def test_a_network_that_is_cut_meanwhile_is_an_error_soon(pair: Pair) -> None:
    log = pair.alpha.directory / "cut.log"
    text = """
print("ready", flush=True)
try:
    while session() is first:
        pass
except ButtervolumeError as error:
    print(error)
"""
    argv = (sys.executable, "-c", PROGRAM + text)
    process = pair.alpha.popen(*argv, env=in_checkout(None), log=log)
    wait_until(lambda: "ready" in log.read_text(), 60)

    pair.network.cut("alpha")

    wait_until(lambda: process.poll() is not None, 60)
    assert "beta: " in log.read_text()


ENDS = {
    "idle for a while": "reach.close()\nreach = Reach(1122, 'alpha', 20, keep=0.2)\nsession()",
    "the end": "reach.close()",
    "used after the end": "reach.close()\nprint(session() is first)",
}


@pytest.mark.usefixtures("peer")
@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_an_idle_one_ends(alpha: Host, end: str) -> None:
    text = """
def is_open():
    argv = ["pgrep", "-f", "^ssh.*beta buttervolume peer"]
    return subprocess.run(argv, stdout=subprocess.DEVNULL).returncode == 0

print(is_open())
deadline = time.monotonic() + 50
"""
    waits = (
        "while is_open() and time.monotonic() < deadline:\n    time.sleep(0.1)\nprint(is_open())"
    )

    lines = run(alpha, f"{text}{end}\n{waits}").splitlines()

    assert (lines[0], lines[-1]) == ("True", "False")
    assert "True" not in lines[1:-1], "it was used again after the end"


@pytest.mark.usefixtures("peer")
def test_who_is_killed_leaves_none_open(pair: Pair) -> None:
    run(pair.alpha, "os.kill(os.getpid(), 9)", check=False)

    pair.wait_until_idle(60)


# Hosts that have no peer


def calls(host: Host) -> int:
    """How often a session was asked for."""
    path = host.path("/run/calls")
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_a_host_that_had_none_and_lets_nothing_else_in_by_now_is_asked_for_it(
    alpha: Host, beta: Host, volume: str, install: Callable[..., None]
) -> None:
    """Given that beta is known to have no peer, when it gets one and a guard before it, then the
    scripts, which the guard does not run, are not the last word."""
    first = snapshot_with(alpha, volume, "big", content(MEBIBYTE))
    assert alpha.send(first, beta) == ""
    install()
    keys = beta.path("/root/.ssh/authorized_keys").read_text()
    key = alpha.path("/root/.ssh/id_ed25519.pub").read_text()
    authorize = ("sh", "-c", "buttervolume peer --authorize push --node alpha")
    line = beta.run(*authorize, input=key).stdout
    with beta.changed_file("/root/.ssh/authorized_keys", keys.replace(key, line)):
        second = snapshot_with(alpha, volume, "small", b"s")

        assert alpha.send(second, beta) == ""

    assert is_incremental(beta, second, first)


@pytest.mark.parametrize("older", ["", "echo called >> /run/calls; exit 2"])
def test_a_host_without_a_peer_is_not_asked_for_it_at_each_send_until_it_has_one(
    alpha: Host, beta: Host, volume: str, install: Callable[..., None], older: str
) -> None:
    if older:
        install(older)
    asked = calls(beta)
    names = [snapshot_with(alpha, volume, "big", content(4 * MEBIBYTE))]
    assert alpha.send(names[0], beta) == ""
    for number in range(3):
        names.append(snapshot_with(alpha, volume, f"small{number}", b"s"))
        assert alpha.send(names[-1], beta) == ""
        assert is_incremental(beta, *names[:-3:-1])
    assert calls(beta) <= asked + 1

    install()
    with beta.shim("sync", "echo the scripts were used >&2; exit 1"):
        names.append(snapshot_with(alpha, volume, "last", b"s"))
        assert alpha.send(names[-1], beta) == ""

    assert is_incremental(beta, *names[:-3:-1])
    assert equal(alpha, beta, names[-1])
    beta.run("rm", "-f", str(Path("/run/calls")))
