"""Running other programs: pipelines, limits, and how they end."""

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from buttervolume.errors import (
    Cancelled,
    CommandFailed,
    PipelineFailed,
    Stalled,
    TooMuchOutput,
)
from buttervolume.system import command
from buttervolume.system.command import Flow, Process
from tests.support.wait import wait_until

PATIENT = 60.0


def sh(script: str) -> list[str]:
    return ["sh", "-c", script]


def children() -> set[str]:
    """The processes that any thread of this one has started and not yet waited for."""
    found = set[str]()
    for thread in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError):  # the thread has ended, as have its children
            found |= set((thread / "children").read_text().split())
    return found


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No test leaves a process or an open file."""
    before = children(), len(list(Path("/proc/self/fd").iterdir()))
    yield
    assert (children(), len(list(Path("/proc/self/fd").iterdir()))) == before


# A short command


def test_a_command_returns_what_it_printed() -> None:
    assert command.run(["printf", "%s|", "a b", "'", "$HOME"]) == "a b|'|$HOME|"


def test_a_failed_command_tells_its_status_and_its_words() -> None:
    with pytest.raises(CommandFailed) as failure:
        command.run(sh("echo out; echo oops >&2; exit 3"))
    assert (failure.value.status, failure.value.stderr) == (3, "oops")
    assert "oops" in str(failure.value)
    assert "exit status 3" in str(failure.value)


def test_a_killed_command_tells_the_signal() -> None:
    with pytest.raises(CommandFailed, match="signal 9"):
        command.run(sh("kill -KILL $$"))


def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(CommandFailed, match="no-such-program: No such file"):
        command.run(["no-such-program"])
    with pytest.raises(CommandFailed, match="no-such-program"):
        command.watch(["no-such-program"], Flow(), lambda _: None)
    with pytest.raises(PipelineFailed, match="no-such-program"):
        pipe(["no-such-program"], ["cat"])
    with pytest.raises(PipelineFailed, match="no-such-program"):
        pipe(["echo"], ["no-such-program"])


def test_messages_are_in_english_and_any_bytes_are_borne(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    assert command.run(sh("echo $LC_ALL")) == "C.UTF-8\n"
    assert command.run(sh(r"printf '\377'")) == "\ufffd"


def test_a_command_starts_with_nothing_to_read_and_the_usual_end_by_sigpipe() -> None:
    assert command.run(["readlink", "/proc/self/fd/0"]) == "/dev/null\n"
    ignored = command.run(["grep", "SigIgn", "/proc/self/status"]).split()[1]
    assert not int(ignored, 16) & 1 << signal.SIGPIPE - 1


# A pipeline


def pipe(
    source: list[str],
    sink: list[str],
    flow: Flow | None = None,
    stall: float = PATIENT,
    moved: Callable[[], int] = lambda: 0,
) -> str:
    return command.pipe(source, sink, flow or Flow(), stall=stall, moved=lambda _: moved())


def size_of(path: Path) -> Callable[[], int]:
    return lambda: path.stat().st_size if path.exists() else 0


def test_a_pipeline_moves_every_byte_and_counts_them(tmp_path: Path) -> None:
    data = os.urandom(40_000_003)
    (tmp_path / "in").write_bytes(data)
    flow = Flow()
    printed = pipe(
        ["cat", str(tmp_path / "in")],
        sh(f"cat > {shlex.quote(str(tmp_path / 'out'))}; echo done"),
        flow,
        moved=size_of(tmp_path / "out"),
    )
    assert printed == "done\n"
    assert flow.moved == len(data)
    assert (tmp_path / "out").read_bytes() == data


def test_an_empty_pipeline_is_none_the_less_one() -> None:
    flow = Flow()
    assert pipe(["true"], ["wc", "-c"], flow) == "0\n"
    assert flow.moved == 0


def test_a_source_in_small_pieces_arrives_whole() -> None:
    source = "for i in $(seq 300); do echo $i; done"
    assert pipe(sh(source), ["md5sum"]) == command.run(sh(f"({source}) | md5sum"))


ENDLESS = ["cat", "/dev/zero"]


@pytest.mark.parametrize(
    ("source", "sink", "cause", "statuses"),
    [
        ("echo data; echo broken >&2; exit 4", "cat", "broken", [4]),
        ("kill -KILL $$", "cat", "no message", [-9]),
        ("echo data", "cat; echo full >&2; exit 5", "full", [5]),
        ("exec cat /dev/zero", "head -c 9; echo full >&2; exit 5", "full", [5, -13]),
        ("exec cat /dev/zero", "echo refused >&2; exit 6", "refused", [6, -13]),
        ("exec cat /dev/zero", "exec <&-; sleep 0.3; echo late >&2; exit 7", "late", [7, -13]),
        ("exec cat /dev/zero", "kill -KILL $$", "no message", [-9, -13]),
        # a sink that got half of it may well complain, too: the source is the cause
        ("echo cut >&2; exit 4", "cat; echo unexpected end >&2; exit 1", "cut", [4, 1]),
    ],
)
def test_the_exit_status_of_both_ends_counts_and_the_cause_comes_first(
    source: str, sink: str, cause: str, statuses: list[int]
) -> None:
    with pytest.raises(PipelineFailed) as failure:
        pipe(sh(source), sh(sink))
    assert [end.status for end in failure.value.failures] == statuses
    assert cause in str(failure.value.failures[0])


def test_a_source_that_is_cut_short_by_a_content_sink_has_failed() -> None:
    with pytest.raises(PipelineFailed) as failure:
        pipe(ENDLESS, ["head", "-c", "1000000"])
    assert [end.status for end in failure.value.failures] == [-signal.SIGPIPE]


@pytest.mark.parametrize(
    ("source", "sink"),
    [
        (["sleep", "1000"], ["cat"]),
        (ENDLESS, ["sleep", "1000"]),
        (sh("echo some; exec sleep 1000"), ["cat"]),
        (["echo"], sh("cat; exec sleep 1000")),
        (sh("exec >&-; exec sleep 1000"), ["cat"]),
        (sh("trap '' TERM; while :; do sleep 0.1; done"), ["cat"]),
    ],
)
def test_a_pipeline_in_which_nothing_moves_is_ended(source: list[str], sink: list[str]) -> None:
    started = time.monotonic()
    with pytest.raises(Stalled) as stalled:
        pipe(source, sink, stall=0.3)
    assert 0.3 < time.monotonic() - started < 60
    assert stalled.value.seconds == 0.3


def test_a_pipeline_that_moves_is_never_ended_for_taking_long(tmp_path: Path) -> None:
    started = time.monotonic()
    slow = "for i in 1 2 3 4 5 6; do head -c 100000 /dev/zero; sleep 0.25; done"
    sink = ["tee", str(tmp_path / "out")]
    assert len(pipe(sh(slow), sink, stall=1, moved=size_of(tmp_path / "out"))) == 600_000
    assert time.monotonic() - started > 1


def test_a_second_try_moves_though_it_has_not_come_as_far_as_the_first(tmp_path: Path) -> None:
    flow = Flow()
    flow.moved = 10_000_000
    slow = "for i in 1 2 3 4 5 6; do head -c 100000 /dev/zero; sleep 0.25; done"
    sink = ["tee", str(tmp_path / "out")]
    assert len(pipe(sh(slow), sink, flow, stall=1, moved=size_of(tmp_path / "out"))) == 600_000
    assert flow.moved == 10_000_000


def test_a_trickle_as_of_keepalives_is_no_movement(tmp_path: Path) -> None:
    trickle = sh("while :; do echo alive; sleep 0.1; done")
    with pytest.raises(Stalled):
        pipe(trickle, ["tee", str(tmp_path / "out")], stall=1, moved=size_of(tmp_path / "out"))


@pytest.mark.parametrize(
    ("source", "sink"),
    [(["sleep", "1000"], ["cat"]), (ENDLESS, ["sleep", "1000"]), (ENDLESS, sh("cat >/dev/null"))],
)
def test_a_pipeline_can_be_cancelled(source: list[str], sink: list[str]) -> None:
    flow = Flow()
    timer = threading.Timer(0.3, flow.cancel)
    timer.start()
    started = time.monotonic()
    with pytest.raises(Cancelled):
        pipe(source, sink, flow)
    assert time.monotonic() - started < 60
    timer.join()


def test_what_is_cancelled_before_it_begins_does_not_begin() -> None:
    flow = Flow()
    flow.cancel()
    with pytest.raises(Cancelled):
        pipe(["sleep", "1000"], ["cat"], flow)
    with pytest.raises(Cancelled):
        command.watch(["sleep", "1000"], flow, lambda _: None)


# A command that reports


def test_what_a_command_reports_is_passed_on_while_it_runs(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    reports: list[bytes] = []

    def on_output(output: bytes) -> None:
        reports.append(output)
        seen.touch()

    script = f"echo one; until [ -e {seen} ]; do sleep 0.05; done; echo two"
    command.watch(sh(script), Flow(), on_output)

    assert b"".join(reports) == b"one\ntwo\n"


def test_a_reporting_command_that_fails_says_why() -> None:
    with pytest.raises(CommandFailed, match="oops"):
        command.watch(sh("echo some; echo oops >&2; exit 2"), Flow(), lambda _: None)


@pytest.mark.parametrize("script", ["exec sleep 1000", "exec >&-; exec sleep 1000"])
def test_a_reporting_command_can_be_cancelled(script: str) -> None:
    flow = Flow()
    timer = threading.Timer(0.3, flow.cancel)
    timer.start()
    with pytest.raises(Cancelled):
        command.watch(sh(script), flow, lambda _: None)
    timer.join()


# A process and its end


def test_what_a_command_has_started_ends_with_it(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    with Process(sh(f"sleep 1000 & echo $! > {pid_file}; wait")):
        pid = int(wait_until(lambda: pid_file.exists() and pid_file.read_text()))
        assert is_running(pid)
    wait_until(lambda: not is_running(pid), what="the grandchild to be gone")


def test_a_command_has_no_terminal_to_ask_on() -> None:
    with Process(sh("(: < /dev/tty) 2>&1; ps -o tty= -p $$")) as process:
        process.wait(Flow(), PATIENT)
        assert process.output().splitlines()[-1].strip() == "?"


def test_a_command_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = f"echo $$ > {pid_file}; exec sleep 1000"
    program = f"""
from buttervolume.system.command import Flow, Process
with Process(["sh", "-c", {script!r}]) as process:
    process.wait(Flow(), 1000)
"""
    with subprocess.Popen([sys.executable, "-c", program]) as parent:
        pid = int(wait_until(lambda: pid_file.exists() and pid_file.read_text()))
        parent.kill()
    wait_until(lambda: not is_running(pid), what="the command to be gone")


# Programs that print more than anybody needs


def chatter(count: int, last: str) -> str:
    """Says so many lines to stderr, between a first and a last word."""
    return f"(echo cause; yes filler | head -n {count}; echo {last}) >&2"


def failure_of(run_it: Callable[[list[str]], object], script: str) -> CommandFailed:
    """How it fails to run a script."""
    with pytest.raises((CommandFailed, PipelineFailed)) as caught:
        run_it(sh(script))
    error = caught.value
    if isinstance(error, PipelineFailed):
        return error.failures[0]
    assert isinstance(error, CommandFailed)
    return error


def as_a_process(argv: list[str]) -> None:
    with Process(argv) as process:
        process.wait(Flow(), PATIENT)
        failure = process.failure()
    assert failure is not None
    raise failure


@pytest.mark.parametrize(
    "run_it",
    [
        command.run,
        as_a_process,
        lambda argv: command.watch(argv, Flow(), lambda _: None),
        lambda argv: pipe(argv, ["cat"]),
        lambda argv: pipe(["true"], argv),
    ],
)
def test_of_endless_messages_the_beginning_and_the_end_are_kept(
    run_it: Callable[[list[str]], object],
) -> None:
    failure = failure_of(run_it, f"{chatter(100_000, 'the last word')}; exit 3")
    assert failure.status == 3
    assert failure.stderr.startswith("cause\nfiller\n")
    assert failure.stderr.endswith("filler\nthe last word")
    assert "more bytes …" in failure.stderr
    assert len(failure.stderr) < 9000


def test_short_messages_are_kept_whole() -> None:
    for count in (0, 1, 500, 1100):
        with pytest.raises(CommandFailed) as failure:
            command.run(sh(f"{chatter(count, 'end')}; exit 1"))
        assert failure.value.stderr == "\n".join(["cause", *["filler"] * count, "end"])


def test_an_endless_output_is_a_failure_and_fills_neither_memory_nor_disk() -> None:
    with pytest.raises(CommandFailed, match="more than 16 MiB"):
        command.run(["cat", "/dev/zero"])
    for sink in (["cat", "/dev/zero"], sh("cat /dev/zero; exec sleep 1000")):
        with pytest.raises(TooMuchOutput):
            pipe(["true"], sink)
    with Process(["cat", "/dev/zero"]) as process, pytest.raises(TooMuchOutput):
        process.wait(Flow(), PATIENT)


def test_an_output_of_the_longest_length_is_none_too_long() -> None:
    size = command.LONGEST_OUTPUT - 1
    argv = ["head", "-c", str(size), "/dev/zero"]
    assert len(command.run(argv)) == size
    assert len(pipe(["true"], argv)) == size


def test_a_program_that_says_much_while_it_works_is_not_held_up() -> None:
    source = sh(f"{chatter(300_000, 'end')}; echo data")
    assert pipe(source, sh(f"cat; {chatter(300_000, 'end')}")) == "data\n"


def test_what_an_ended_program_has_left_behind_is_not_waited_for() -> None:
    started = time.monotonic()
    with Process(sh("setsid sleep 100 & echo done; exit 1")) as process:
        process.wait(Flow(), PATIENT)
        assert process.failure() is not None
        assert process.output() == "done\n"
    assert time.monotonic() - started < 60
