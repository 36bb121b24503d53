"""Sessions with other hosts: what lies, is slow, endless, killed or cut does no harm."""

import os
import shlex
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.hosts.harness import MEBIBYTE, SNAPSHOTS, Host, Pair
from tests.support.machine import in_checkout
from tests.support.namespaces import Process
from tests.support.wait import wait_until

NUMBERS = count(1)

PROGRAM = f"""
import resource, sys, time
from datetime import datetime
from pathlib import Path
from buttervolume.errors import ButtervolumeError
from buttervolume.hosts import session
from buttervolume.hosts.intake import Intake
from buttervolume.hosts.lineage import Facts
from buttervolume.names import parse_snapshot
from buttervolume.system import btrfs
from buttervolume.system.command import Flow

SNAPSHOTS = Path({SNAPSHOTS!r})
HOST = "beta"
flow = Flow()
started = time.monotonic()

def facts(text):
    info = btrfs.info(SNAPSHOTS / text)
    return Facts(
        parse_snapshot(text), info.uuid, info.parent_uuid, info.received_uuid, info.readonly,
        info.created_in, info.tree, info.changed, info.send_transid, info.receive_transid,
    )

def connect(limit=3):
    return session.connect(HOST, 1122, "alpha", flow, limit, 20)

def look(peer):
    return peer.look("db", lambda name: None, flow).side.snapshots

def send(peer, text):
    argv = btrfs.send_command(SNAPSHOTS / text, parent=None, compressed=False)
    peer.send(facts(text), argv, None, [], flow)

def outcome(function, *arguments):
    try:
        with connect() as peer:
            print("none" if peer is None else function(peer, *arguments))
    except ButtervolumeError as error:
        print(type(error).__name__, str(error))
    print("took", time.monotonic() - started)
    print("used", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
GREETING = '{"buttervolume":1,"node":"beta","verbs":["look","receive","send"],"stream":2,"time":1}'
NUMBERED = (
    '{"name":"db@2026","uuid":7,"parent_uuid":null,"received_uuid":null,"readonly":true,'
    '"otransid":7,"tree":7,"ctransid":7,"send_transid":0,"receive_transid":0,"settled":false,'
    '"receiving":null,"backup":false}'
)


def run(host: Host, text: str, timeout: float = 60) -> str:
    return host.run(
        sys.executable, "-c", PROGRAM + text, env=in_checkout(None), timeout=timeout
    ).stdout


@pytest.fixture
def install(beta: Host) -> Iterator[Callable[..., None]]:
    """Install buttervolume on beta, or something that passes for it."""
    yield beta.install
    beta.uninstall()


@pytest.fixture
def snapshot(alpha: Host) -> str:
    """A snapshot on alpha with some MiB in it."""
    name = f"session-{next(NUMBERS)}"
    alpha.create(name)
    alpha.file(name, "file").write_bytes(os.urandom(8 * MEBIBYTE))
    return alpha.snapshot(name)


def names_in(host: Host) -> list[str]:
    return sorted(path.name for path in host.path(SNAPSHOTS).iterdir())


def left_of(snapshot: str, host: Host) -> list[str]:
    """A copy of it, and the note beside that."""
    return [name for name in names_in(host) if snapshot in name]


def test_a_host_without_it_has_no_session(alpha: Host, beta: Host) -> None:
    beta.uninstall()

    assert run(alpha, "outcome(look)").startswith("none\n")


def test_a_version_without_it_has_no_session(alpha: Host, install: Callable[..., None]) -> None:
    install("echo 'buttervolume: error: invalid choice: peer' >&2; exit 2")

    assert run(alpha, "outcome(look)").startswith("none\n")


def test_what_start_up_files_print_is_passed_over(
    alpha: Host, install: Callable[..., None]
) -> None:
    say = f"echo Welcome; echo '{{}}'; echo '{GREETING}'"
    answer = '{"snapshots": [], "strangers": [], "bound": false}'
    install(f"{say}; echo '{answer}'; exec cat > /dev/null")

    assert run(alpha, "outcome(look)").startswith("()\n")


LIARS = {
    "silent": "sleep 30",
    "greets, then is silent": f"echo '{GREETING}'; sleep 30",
    "endless line": "cat /dev/zero",
    "endless lines": "yes '{}'",
    "greets, then an endless line": f"echo '{GREETING}'; cat /dev/zero",
    "greets, then endless nonsense": f"echo '{GREETING}'; yes nonsense",
    "another protocol": "echo '{\"buttervolume\": 2}'; sleep 30",
    "greeting without keys": "echo '{\"buttervolume\": 1}'; sleep 30",
    "greeting with wrong types": 'echo \'{"buttervolume": 1, "node": [], "verbs": 7,'
    ' "stream": "x", "time": {}}\'; sleep 30',
    "number beyond all": f"echo '{GREETING.replace('2', '1e999', 1)}'; sleep 30",
    "look without keys": f"echo '{GREETING}'; echo '{{}}'; sleep 30",
    "look of wrong types": f"echo '{GREETING}';"
    ' echo \'{"snapshots": 7, "strangers": {}, "bound": 7}\'; sleep 30',
    "facts that are none": f"echo '{GREETING}';"
    ' echo \'{"snapshots": [{"name": "../x"}], "strangers": [], "bound": false}\'; sleep 30',
    "greeting that is too deep": "head -c 50000 /dev/zero | tr '\\0' '['; echo; sleep 30",
    "facts of wrong types": f"echo '{GREETING}';"
    f' echo \'{{"snapshots": [{NUMBERED}], "strangers": [], "bound": false}}\'; sleep 30',
    "strangers that are numbers": f"echo '{GREETING}';"
    ' echo \'{"snapshots": [], "strangers": [7], "bound": false}\'; sleep 30',
    "small things by the million": f"echo '{GREETING}'; printf '{{\"snapshots\": [';"
    " yes '[],' | head -c 16000000 | tr -d '\\n'; echo '[]]}'; sleep 30",
    "no object": f"echo '{GREETING}'; echo '[]'; sleep 30",
    "deep object": f"echo '{GREETING}'; head -c 900000 /dev/zero | tr '\\0' '['; echo; sleep 30",
    "error of wrong types": f"echo '{GREETING}'; echo '{{\"error\": {{}}, \"code\": []}}';"
    " sleep 30",
    "long error": f"echo '{GREETING}'; printf '{{\"error\": \"'; head -c 9000000 /dev/zero |"
    " tr '\\0' x; echo '\"}'; sleep 30",
    "ends": "exit 0",
    "greets and ends": f"echo '{GREETING}'",
    "dies": f"echo '{GREETING}'; kill -9 $$",
    "much on stderr": f"yes error | head -c 50000000 >&2; echo '{GREETING}'; exit 1",
}


@pytest.mark.parametrize("liar", LIARS.values(), ids=LIARS)
def test_a_peer_that_lies_is_an_error_in_a_short_time_and_little_memory(
    alpha: Host, install: Callable[..., None], liar: str
) -> None:
    install(liar)

    said, took, used = run(alpha, "outcome(look)").strip().split("\n")[-3:]

    assert said.split()[0] in ("HostFailed", "NoSession", "PeerRefused")
    assert len(said) < 2500
    assert float(took.split()[1]) < 45
    assert int(used.split()[1]) < 150_000


ANNOUNCED = (
    '{"stream":"x","uuid":"00000000-0000-0000-0000-000000000007","ctransid":7,"parent":null}'
)


@pytest.mark.parametrize(
    "sent",
    ["head -c 100000 /dev/zero", "cat /dev/zero", "true", "sleep 30", "echo '{}'", "yes '{}'"],
)
def test_who_sends_what_is_no_stream_leaves_nothing(
    alpha: Host, install: Callable[..., None], sent: str
) -> None:
    install(f"echo '{GREETING}'; echo '{ANNOUNCED}'; {sent}")
    before = names_in(alpha)

    said = run(
        alpha,
        "def receive(peer):\n"
        "    return peer.receive(parse_snapshot('db@2026'), None, Intake(SNAPSHOTS, 3), flow,"
        " version=2, expected=lambda announced: None)\n"
        "outcome(receive)",
    )

    assert said.startswith(("HostFailed", "StreamRefused"))
    assert names_in(alpha) == before


@pytest.fixture
def slow_send(
    pair: Pair, install: Callable[..., None], snapshot: str, tmp_path: Path
) -> Iterator[tuple[Process, Path]]:
    """A send that has begun and takes a while, and what it prints in the end."""
    install()
    pair.network.limit("alpha", "4mbit")
    log = tmp_path / "log"
    process = pair.alpha.popen(
        sys.executable,
        "-c",
        PROGRAM.replace("limit=3", "limit=60") + f"outcome(send, {snapshot!r})",
        env=in_checkout(None),
        log=log,
    )
    wait_until(lambda: snapshot in names_in(pair.beta), 60)
    yield process, log
    process.kill()


def test_a_send_that_is_killed_leaves_nothing_there(
    beta: Host, snapshot: str, slow_send: tuple[Process, Path]
) -> None:
    slow_send[0].kill()

    wait_until(lambda: not left_of(snapshot, beta), 60)


def test_a_network_that_is_cut_leaves_nothing_there(
    pair: Pair, beta: Host, snapshot: str, slow_send: tuple[Process, Path]
) -> None:
    pair.network.cut("alpha")

    wait_until(lambda: not left_of(snapshot, beta), 60)


def test_a_peer_that_is_killed_leaves_what_the_next_look_removes(
    pair: Pair, alpha: Host, beta: Host, snapshot: str, slow_send: tuple[Process, Path]
) -> None:
    beta.run("pkill", "-9", "-f", "buttervolume peer")
    wait_until(lambda: "HostFailed" in slow_send[1].read_text(), 60)
    assert snapshot in names_in(beta)
    pair.network.unlimit("alpha")
    volume = snapshot.partition("@")[0]
    run(alpha, f"outcome(lambda peer: peer.look({volume!r}, lambda name: None, flow))")

    assert not left_of(snapshot, beta)


def test_a_disk_that_is_full_is_an_error_and_leaves_nothing(
    alpha: Host, tiny: Host, snapshot: str
) -> None:
    tiny.install()
    volume = snapshot.partition("@")[0]
    alpha.file(volume, "more").write_bytes(os.urandom(150 * MEBIBYTE))
    big = alpha.snapshot(volume)
    before = names_in(tiny)

    said = run(alpha, f"HOST = 'tiny'\noutcome(send, {big!r})")

    assert "No space left" in said
    wait_until(lambda: names_in(tiny) == before, 60)


SLOW_DISK = """
import sys, time
from buttervolume.hosts.intake import Intake
seal = Intake._seal

def slow(*arguments):
    time.sleep(8)
    seal(*arguments)

Intake._seal = slow
from buttervolume.cli.main import main
sys.exit(main(["peer"]))
"""


def test_a_disk_there_that_takes_longer_than_a_transfer_may_stall_is_waited_for(
    alpha: Host, beta: Host, install: Callable[..., None]
) -> None:
    """Given a peer that needs 8 seconds to bring a copy to the disk, when a host sends to it that
    lets a transfer stall for 3, then the send is done."""
    install(f"exec {shlex.join(peer_program(SLOW_DISK))}")
    volume = f"session-{next(NUMBERS)}"
    alpha.create(volume)
    alpha.file(volume, "file").write_bytes(b"x")
    snapshot = alpha.snapshot(volume)

    said = run(alpha, f"outcome(send, {snapshot!r})")

    assert said.startswith("None\n"), said
    assert left_of(snapshot, beta) == [snapshot]


# Other versions


def peer_without(verb: str) -> str:
    """A script that serves as an older version would, which does not know a verb yet."""
    program = (
        "import sys; from buttervolume.hosts import guard; "
        f"guard.VERBS -= {{{verb!r}}}; "
        "from buttervolume.cli.main import main; sys.exit(main(['peer']))"
    )
    return f"exec {shlex.join(peer_program(program))}"


def peer_program(program: str) -> list[str]:
    """The command that runs a program in the place of a peer."""
    environment = [f"{key}={value}" for key, value in in_checkout(None).items()]
    return ["env", *environment, sys.executable, "-c", program]


def test_from_an_older_one_that_keeps_no_parent_all_is_received(
    alpha: Host, beta: Host, install: Callable[..., None]
) -> None:
    """Given a peer that does not know `received`, when two snapshots are received from it, then
    both come, and the second one as changes as long as the first is still there."""
    install(peer_without("received"))
    volume = f"session-{next(NUMBERS)}"
    beta.create(volume)
    for _ in range(2):
        beta.file(volume, "file").write_bytes(os.urandom(MEBIBYTE))
        snapshot = beta.snapshot(volume)

        received = alpha.api.call("Snapshot.Receive", Name=volume, Host="beta")

        assert received["Snapshot"] == snapshot
        assert alpha.snapshot_names(volume)[-1] == snapshot
        assert beta.snapshot_names(volume)[-1] == snapshot, "no marker was made"
    assert alpha.show(snapshot)["Parent UUID"] != "-"


@pytest.mark.parametrize("verb", ["look", "receive"])
def test_an_older_one_that_cannot_be_sent_to_says_so(
    alpha: Host, beta: Host, install: Callable[..., None], snapshot: str, verb: str
) -> None:
    install(peer_without(verb))

    said = alpha.send(snapshot, "beta")

    assert said == f"beta: this key does not allow '{verb}'"
    assert left_of(snapshot, beta) == []


def test_an_older_one_that_cannot_send_says_so(
    alpha: Host, beta: Host, install: Callable[..., None]
) -> None:
    install(peer_without("send"))
    volume = f"session-{next(NUMBERS)}"
    beta.create(volume)
    beta.snapshot(volume)

    refusal = alpha.start("Snapshot.Receive", Name=volume, Host="beta").error()

    assert refusal == "beta: this key does not allow 'send'"
    assert alpha.snapshot_names(volume) == []


@pytest.mark.parametrize("version", [0, 2, 99])
def test_another_version_of_the_protocol_is_said(
    alpha: Host, beta: Host, install: Callable[..., None], snapshot: str, version: int
) -> None:
    greeting = GREETING.replace('"buttervolume":1', f'"buttervolume":{version}')
    install(f"echo '{greeting}'; exec cat > /dev/null")
    volume = snapshot.partition("@")[0]

    for said in (
        alpha.send(snapshot, "beta"),
        alpha.start("Snapshot.Receive", Name=volume, Host="beta").error(),
    ):
        assert f"it speaks version {version} of the protocol, and this host version 1" in said
    assert left_of(snapshot, beta) == []
