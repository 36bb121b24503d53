"""The log of a real daemon: whoever stops reading it stops nobody, and nobody forges a line."""

import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.btrfs.conftest import StartDaemon
from tests.btrfs.harness import Daemon, Place, subvolume
from tests.support.wait import wait_until

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (DEBUG|INFO|WARNING|ERROR|CRITICAL) \S.*")
LOST = re.compile(r"^(\d+) lines of the log are lost here", re.MULTILINE)
ODD = "a\n2026-01-01 03:00:00,000 INFO forged\x1b[2J\x9b\u202e\u2028\x85\udcff"


class Piped(Daemon):
    """A daemon whose stdout and stderr are files of the test's choice."""

    def begin(self, out: int, err: int, **environ: str) -> "Piped":
        self.process = subprocess.Popen(
            [sys.executable, "-m", "buttervolume", "run"],
            env=self.environ | environ,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            cwd="/",
        )
        wait_until(self.answers, timeout=60, what="the daemon to answer")
        return self


@pytest.fixture
def piped(place: Place, runtime: Path) -> Iterator[Piped]:
    daemon = Piped(place, runtime / "run", BUTTERVOLUME_LOGLEVEL="DEBUG")
    yield daemon
    daemon.close()


def small_pipe() -> tuple[int, int]:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    return reading, writing


def read_all(descriptor: int, quiet: float = 1.0) -> str:
    """What is in a pipe, until nothing has come for a while or nobody writes any more."""
    os.set_blocking(descriptor, False)
    text, last = b"", time.monotonic()
    while time.monotonic() - last < quiet:
        try:
            part = os.read(descriptor, 1 << 20)
        except BlockingIOError:
            time.sleep(0.02)
            continue
        if not part:
            break
        text, last = text + part, time.monotonic()
    return text.decode()


@pytest.mark.parametrize("which", ["one pipe for both", "stdout", "stderr"])
def test_a_reader_that_stops_costs_lines_and_nothing_else(piped: Piped, which: str) -> None:
    reading, writing = small_pipe()
    null = os.open(os.devnull, os.O_WRONLY)
    out, err = {
        "one pipe for both": (writing, writing),
        "stdout": (writing, null),
        "stderr": (null, writing),
    }[which]
    piped.begin(out, err)

    slowest = 0.0
    for number in range(400):  # more than the pipe and the queue hold, at 3 KiB for each
        started = time.monotonic()
        piped.call("Create", Name=f"db{number % 5}", Opts={"copyonwrite": "true"})
        piped.refused("Create", Name="x" * 2000)
        piped.call("Get", Name="db0")
        slowest = max(slowest, time.monotonic() - started)
    assert slowest < 8, "a short wait, and none for each line"
    for _ in range(700):
        piped.refused("Create", Name="y" * 2000)

    lost = said = 0
    text = read_all(reading)
    piped.call("Remove", Name="db0")
    piped.refused("Create", Name="a b")
    text += read_all(reading)
    for found in LOST.finditer(text):
        lost, said = lost + int(found[1]), said + 1
    if which != "stdout":
        assert lost > 100
        refusals = text.count("is not allowed as the name of a")
        assert 1100 + 1 - refusals == pytest.approx(lost, abs=0 if which == "stderr" else 2500)
        assert "'a b' is not allowed" in text
    if which != "stderr":
        assert "VolumeDriver.Remove" in text
    piped.stop()
    for descriptor in (reading, writing, null):
        os.close(descriptor)


def socket_pair() -> tuple[int, int]:
    one, other = socket.socketpair()
    return one.detach(), other.detach()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("pair", [small_pipe, os.openpty, socket_pair])
def test_while_nobody_reads_it_answers_and_ends(
    piped: Piped, pair: Callable[[], tuple[int, int]], number: signal.Signals
) -> None:
    reading, writing = pair()
    piped.begin(writing, writing)
    for _ in range(300):  # more than the kernel keeps of it
        piped.refused("Create", Name="x" * 1000)

    piped.call("Create", Name="db")
    piped.stop(number)

    os.close(reading)
    os.close(writing)


def test_a_reader_that_has_gone_stops_nobody(piped: Piped) -> None:
    reading, writing = os.pipe()
    piped.begin(writing, writing)
    os.close(reading)
    os.close(writing)

    for number in range(20):
        piped.call("Create", Name=f"db{number}")
    piped.stop()


def test_whoever_shares_the_pipe_keeps_it_blocking(piped: Piped) -> None:
    reading, writing = os.pipe()
    piped.begin(writing, writing)
    piped.call("Create", Name="db")

    assert os.get_blocking(writing)
    assert "VolumeDriver.Create" in os.read(reading, 1 << 16).decode()
    piped.stop()
    os.close(reading)
    os.close(writing)


def test_a_pipe_that_somebody_made_non_blocking_loses_nothing(piped: Piped) -> None:
    reading, writing = small_pipe()
    os.set_blocking(writing, False)
    piped.begin(writing, writing)
    for _ in range(20):
        piped.refused("Create", Name="x" * 1000)

    text = read_all(reading)

    assert text.count("is not allowed as the name of a") == 20
    assert not LOST.search(text)
    piped.stop()
    os.close(reading)
    os.close(writing)


def test_without_stdout_and_stderr_no_other_file_gets_the_log(place: Place, runtime: Path) -> None:
    daemon = Daemon(place, runtime / "run")
    daemon.process = subprocess.Popen(
        ["sh", "-c", f"exec {sys.executable} -m buttervolume run >&- 2>&- <&-"],
        env=daemon.environ,
        cwd="/",
    )
    try:
        wait_until(daemon.answers, timeout=60, what="the daemon to answer")
        daemon.call("Create", Name="db")
        daemon.refused("Create", Name="a b")
        assert (place.volumes / ".buttervolume-lock").read_text() == ""
        daemon.process.terminate()
        assert daemon.process.wait(60) == 0
    finally:
        daemon.close()


def test_whatever_is_asked_each_line_of_the_log_is_ours_printable_and_short(
    start_daemon: StartDaemon, place: Place
) -> None:
    daemon = start_daemon(BUTTERVOLUME_LOGLEVEL="DEBUG")
    subvolume(place.volumes / "v")
    for name in ("n\n2026-01-01 forged", "\x1b]0;forged\x07", "\u202egnp.exe", "a\u2028b"):
        subvolume(place.volumes / "v" / name)
    (place.snapshots / "x@\u2028").mkdir()
    warned = daemon.call("Snapshot", Name="v")["Warning"]
    for text in (ODD, ODD * 3000):
        for endpoint in ("Create", "Remove", "Snapshot", "Snapshot.Remove", "Snapshot.Restore"):
            answer = daemon.post(endpoint, Name=text, Opts={text: text}, Target=text)
            assert answer.error.isprintable()
            assert len(answer.error.encode()) <= 2048
        daemon.post("Clone", Name="v", Target=text)
        daemon.post("Snapshot.Send", Name="v@1", Host=text)
        daemon.post("Snapshots.Purge", Name="v", Pattern=text)
        daemon.post("Schedule", Name=text, Action=text, Timer=text)
        daemon.post("Create", Name="w", Opts={"copyonwrite": text})
        daemon.post("Volume.Sync", Volumes=[text], Hosts=[text])
    daemon.stop()

    assert warned.isprintable()
    assert len(warned.encode()) <= 2048
    for line in (daemon.stdout() + daemon.stderr()).rstrip("\n").split("\n"):
        assert LINE.fullmatch(line), line
        assert line.isprintable()
        assert len(line.encode()) <= 2048


@pytest.mark.parametrize(
    "target", ["/{}", "/VolumeDriver.Snapshot.List/{}", "/VolumeDriver.Get/{}"]
)
def test_the_names_in_an_unknown_route_are_escaped_and_cut(daemon: Daemon, target: str) -> None:
    from urllib.parse import quote

    for text in ("\x1b[2J\u202e\u2028", "x" * 100_000, "\u2028" * 20_000):
        answer = daemon.request(target.format(quote(text)).lstrip("/"), b"{}")
        assert answer.error.isprintable()
        assert len(answer.error.encode()) <= 2048


def test_the_journal_gets_priorities_and_no_date(place: Place, runtime: Path) -> None:
    ours, journals = socket.socketpair()
    status = os.fstat(journals.fileno())
    daemon = Piped(place, runtime / "run", BUTTERVOLUME_LOGLEVEL="DEBUG")
    try:
        stream = f"{status.st_dev}:{status.st_ino}"
        daemon.begin(journals.fileno(), journals.fileno(), JOURNAL_STREAM=stream)
        daemon.call("Create", Name="db")
        daemon.call("Get", Name="db")
        daemon.refused("Create", Name="a b")
        daemon.stop()
    finally:
        daemon.close()
    journals.close()
    with ours, ours.makefile("r", encoding="utf-8") as file:
        lines = file.read().rstrip("\n").split("\n")

    assert all(re.match(r"<[2-7]>[^0-9]", line) for line in lines), lines
    assert [line[:3] for line in lines if "VolumeDriver.Get" in line] == ["<7>"]
    assert [line[:3] for line in lines if "ready on" in line] == ["<6>"]
    assert [line[:3] for line in lines if "is not allowed" in line] == ["<4>"]


def test_a_stream_that_is_not_the_journal_is_dated(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(JOURNAL_STREAM="8:12345")
    daemon.stop()

    assert LINE.match(daemon.stdout())
