"""Who waits for whom: slow and many calls of one kind keep no other kind waiting."""

import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.btrfs.conftest import StartDaemon
from tests.btrfs.harness import Answer, Daemon, NoAnswer, Place, Shim
from tests.support.wait import wait_until


@contextmanager
def held(
    daemon: Daemon, shim: Shim, pattern: str, calls: list[tuple[str, dict[str, object]]]
) -> Iterator[list["Future[Answer]"]]:
    """While the block runs, these calls are under way, and commands that match don't go on, of
    which the first call runs one."""
    shim.stop_at(pattern)
    with ThreadPoolExecutor(len(calls)) as pool:
        (endpoint, body), *others = calls
        futures = [pool.submit(daemon.post, endpoint, **body)]
        try:
            shim.wait_for_arrival()
            futures += [pool.submit(daemon.post, endpoint, **body) for endpoint, body in others]
            yield futures
        finally:
            shim.go_on()


def assert_docker_is_served(daemon: Daemon) -> None:
    daemon.call("Create", Name="new")
    assert daemon.call("Get", Name="new")["Volume"]
    assert daemon.call("Mount", Name="new", ID="x")["Mountpoint"]
    daemon.call("Unmount", Name="new", ID="x")
    assert "new" in daemon.names()
    daemon.call("Remove", Name="new")
    assert daemon.answers()


def test_slow_snapshots_of_many_volumes_hold_up_nobody(
    shim: Shim, start_daemon: StartDaemon
) -> None:
    daemon = start_daemon()
    names = [f"db{number}" for number in range(40)]
    for name in names:
        daemon.call("Create", Name=name)
    snapshots: list[tuple[str, dict[str, object]]] = [("Snapshot", {"Name": n}) for n in names]

    with held(daemon, shim, "*snapshot -r*", snapshots) as under_way:
        wait_until(lambda: len(shim.calls()) >= 2 * 40, what="all of them to wait")
        assert_docker_is_served(daemon)
        assert daemon.snapshot_names() == []
        assert daemon.call("Schedule.List")["Schedule"] == []
        assert not any(future.done() for future in under_way)

    assert all(future.result().error == "" for future in under_way)
    daemon.stop()


@pytest.mark.parametrize("endpoint", ["Snapshot", "Remove", "Create", "Snapshot.Restore"])
def test_many_calls_for_one_volume_hold_up_nobody(
    shim: Shim, start_daemon: StartDaemon, endpoint: str
) -> None:
    daemon = start_daemon()
    daemon.call("Create", Name="slow")
    daemon.call("Create", Name="quick")
    body: dict[str, object] = {"Name": "slow"}
    calls = [("Snapshot", body), *[(endpoint, body)] * 40]

    with held(daemon, shim, "*snapshot -r*slow*", calls) as under_way:
        daemon.call("Create", Name="first")
        if endpoint in ("Remove", "Create"):  # they wait for longer than others
            assert not any(future.done() for future in under_way)
        assert_docker_is_served(daemon)
        assert daemon.call("Snapshot", Name="quick")["Snapshot"]
        assert len(daemon.snapshot_names("quick")) == 1
    daemon.stop()


def test_a_management_call_waits_ten_seconds_for_a_volume_and_docker_longer(
    shim: Shim, start_daemon: StartDaemon
) -> None:
    daemon = start_daemon()
    daemon.call("Create", Name="db")
    daemon.call("Create", Name="other")
    calls: list[tuple[str, dict[str, object]]] = [
        ("Snapshot", {"Name": "db"}),
        ("Snapshot", {"Name": "db"}),
        ("Remove", {"Name": "db"}),
    ]

    with ThreadPoolExecutor(2) as pool, held(daemon, shim, "*snapshot -r*", calls[:1]) as first:
        started = time.monotonic()
        second, removal = (pool.submit(daemon.post, name, **body) for name, body in calls[1:])
        refused = second.result()
        assert time.monotonic() - started > 9
        assert (refused.json["Code"], "another operation" in refused.error) == ("VolumeBusy", True)
        assert "db" in refused.error
        assert not removal.done()
    assert first[0].result().error == ""
    assert removal.result().error == ""
    daemon.stop()


# Bodies


def send_slowly(daemon: Daemon, head: bytes, part: bytes, count: int) -> bytes:
    """Send a request whose body comes in parts, and return what the daemon says to it."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(60)
        client.connect(str(daemon.path))
        client.sendall(head)
        for _ in range(count):
            client.sendall(part)
        with client.makefile("rb") as file:
            return file.read()


CHUNK = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"


@pytest.mark.parametrize(
    ("head", "part", "count"),
    [
        (b"Content-Length: %d" % (1 << 40), b"", 0),
        (b"Content-Length: %d" % ((1 << 20) + 1), b"", 0),
        (b"Content-Length: %d" % (64 << 20), b"x" * (1 << 20), 64),
        (b"Transfer-Encoding: chunked", CHUNK, 1000),
    ],
    ids=["announced", "just too long", "sent", "chunked"],
)
def test_a_body_over_the_limit_is_refused_in_json_and_goes_nowhere(
    daemon: Daemon, head: bytes, part: bytes, count: int
) -> None:
    assert daemon.process is not None
    status = Path(f"/proc/{daemon.process.pid}/status")

    def memory() -> int:
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) << 10

    before = memory()
    start = b"POST /VolumeDriver.Create HTTP/1.1\r\nHost: \r\n"

    said = send_slowly(daemon, start + head + b"\r\n\r\n", part, count)

    assert said.startswith(b"HTTP/1.1 413 "), said
    answer = json.loads(said.partition(b"\r\n\r\n")[2])
    assert answer["Err"]
    assert answer["Code"] == "RequestEntityTooLarge"
    assert memory() - before < 16 << 20
    assert daemon.answers()


def test_the_largest_body_is_taken(daemon: Daemon) -> None:
    body = b'{"Name": "db"' + b" " * ((1 << 20) - 14) + b"}"
    assert len(body) == 1 << 20

    assert daemon.request("VolumeDriver.Create", body).error == ""


def test_what_follows_a_refused_body_is_no_request(daemon: Daemon) -> None:
    daemon.call("Create", Name="db")
    hidden = b'POST /VolumeDriver.Remove HTTP/1.1\r\nContent-Length: 14\r\n\r\n{"Name": "db"}'
    head = b"POST /VolumeDriver.List HTTP/1.1\r\nContent-Length: 2000000\r\n\r\n"

    send_slowly(daemon, head + hidden * 10, hidden, 20_000)

    assert daemon.names() == ["db"]


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (b"nonsense / HTTP/1.1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nX: " + b"y" * 300_000 + b"\r\n\r\n", 431),
        (b"POST / HTTP/1.1\r\n \xe2\x80\xa8: y\r\n\r\n", 400),
    ],
)
def test_what_the_server_itself_refuses_is_json(daemon: Daemon, request_: bytes, code: int) -> None:
    said = send_slowly(daemon, request_, b"", 0)

    assert said.startswith(b"HTTP/1.%d %d " % (said[7] - 48, code)), said
    answer = json.loads(said.partition(b"\r\n\r\n")[2])
    assert answer["Err"].isprintable()
    assert answer["Code"]


def test_clients_that_linger_are_closed(daemon: Daemon) -> None:
    """Who is refused and neither reads nor stops sending gets a few seconds."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(60)
        client.connect(str(daemon.path))
        client.sendall(b"POST / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n")

        def is_closed() -> bool:
            try:
                client.sendall(b"x" * 1000)
            except (BrokenPipeError, ConnectionResetError):
                return True
            return False

        wait_until(is_closed, timeout=60, what="the connection to be closed")


# Few files


@pytest.mark.parametrize("limit", [64, 128, 256])
def test_with_few_files_it_serves_what_it_can_and_never_spins(
    place: Place, runtime: Path, limit: int
) -> None:
    daemon = Daemon(place, runtime / "run")

    def few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))

    with (runtime / "out").open("wb") as out:
        daemon.process = subprocess.Popen(
            [sys.executable, "-m", "buttervolume", "run"],
            env=daemon.environ,
            stdout=out,
            stderr=out,
            preexec_fn=few,
        )
    clients = []
    try:
        wait_until(daemon.answers, timeout=60, what="the daemon to answer")
        for _ in range(limit):
            client = socket.socket(socket.AF_UNIX)
            clients.append(client)
            client.connect(str(daemon.path))
            client.sendall(b"POST /VolumeDriver.List HTTP/1.1\r\n")
        used = cpu(daemon.process.pid)
        time.sleep(2)  # to see how much it works, not to wait for something
        assert cpu(daemon.process.pid) - used < 0.8, "it spins"
        for client in clients:
            client.close()
        clients = []
        wait_until(daemon.answers, what="it to answer again")
        for number in range(10):
            daemon.call("Create", Name=f"db{number}")
        daemon.stop()
    finally:
        for client in clients:
            client.close()
        daemon.close()
    assert (runtime / "out").stat().st_size < 100_000
    assert b"Too many open files" not in (runtime / "out").read_bytes()


def cpu(pid: int) -> float:
    """Seconds of the processor that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_client_that_leaves_while_it_waits_harms_nobody(
    shim: Shim, start_daemon: StartDaemon
) -> None:
    daemon = start_daemon()
    daemon.call("Create", Name="db")
    with held(daemon, shim, "*snapshot -r*", [("Snapshot", {"Name": "db"})]):
        for _ in range(70):  # more than there are threads
            with pytest.raises((TimeoutError, NoAnswer)):
                daemon.request("VolumeDriver.Snapshot", b'{"Name": "db"}', timeout=0.01)
        assert_docker_is_served(daemon)
    daemon.stop()
    assert "Traceback" not in daemon.stderr()
