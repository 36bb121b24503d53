"""The replicate and synchronize jobs, with a real host at the other end."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from tests.btrfs.harness import DATE_FORMAT
from tests.hosts.harness import MEBIBYTE, SNAPSHOTS, VOLUMES, Host, Pair
from tests.hosts.test_failures import impatient_ssh
from tests.hosts.test_field import bound
from tests.hosts.test_send import content, is_copy, is_incremental
from tests.support.wait import wait_until


def replicate(host: Host, volume: str) -> str | None:
    """Run the job once, as the scheduler does: the snapshot's name, or None for "unchanged"."""
    program = f"print(outcome(replication().replicate, {volume!r}, 'beta'))"
    said = host.program(program).strip()
    return None if said == "None" else said


def test_it_snapshots_and_sends_what_has_changed(alpha: Host, beta: Host, volume: str) -> None:
    alpha.file(volume, "file").write_bytes(b"1")
    first = replicate(alpha, volume)
    assert first is not None
    assert is_copy(alpha, beta, first)

    assert replicate(alpha, volume) is None
    assert replicate(alpha, volume) is None
    assert alpha.snapshot_names(volume) == [first, f"{first}@beta"]

    alpha.file(volume, "file").write_bytes(b"2")  # it may not have reached the disk yet
    second = replicate(alpha, volume)
    assert second is not None
    assert is_incremental(beta, second, first)
    assert beta.copied_file(second, "file").read_bytes() == b"2"
    assert replicate(alpha, volume) is None


CHANGES = {
    "a write in place": "printf x | dd of=big bs=1 seek=5000 conv=notrunc status=none",
    "a mode": "chmod 600 big",
    "an attribute": "setfattr -n user.key -v value big",
    "a new directory": "mkdir directory",
    "a mapped write": (
        "python3 -c \"import mmap; f = open('big', 'r+b'); m = mmap.mmap(f.fileno(), 0); m[5] = 1\""
    ),
    "a new name": "mv big new",
    "a removal": "rm new",
}


def test_every_kind_of_change_counts(alpha: Host, volume: str) -> None:
    directory = f"/var/lib/buttervolume/volumes/{volume}"
    program = f"""
import subprocess
Path({directory!r}, "big").write_bytes(bytes(1 << 20))
job = replication().replicate
job({volume!r}, "beta")
for name, change in {CHANGES!r}.items():
    subprocess.run(change, shell=True, cwd={directory!r}, check=True)
    assert job({volume!r}, "beta"), name
assert job({volume!r}, "beta") is None
print("done")
"""
    assert alpha.program(program, timeout=60) == "done\n"


def test_a_restored_volume_counts_as_changed(alpha: Host, beta: Host, volume: str) -> None:
    alpha.file(volume, "file").write_bytes(b"1")
    first = replicate(alpha, volume)
    assert first is not None
    alpha.api.call("Snapshot.Restore", Name=first)
    restored = replicate(alpha, volume)
    assert restored is not None
    assert is_incremental(beta, restored, first)


def test_what_was_sent_by_a_clock_that_was_ahead_is_not_the_last_for_ever(
    alpha: Host, beta: Host, volume: str
) -> None:
    ahead = f"{volume}@{(datetime.now() + timedelta(days=400)).strftime(DATE_FORMAT)}"
    paths = f"{VOLUMES}/{volume}", f"{SNAPSHOTS}/{ahead}"
    alpha.run("btrfs", "subvolume", "snapshot", "-r", *paths)
    assert alpha.send(ahead, beta) == ""
    assert replicate(alpha, volume) is None

    alpha.file(volume, "file").write_bytes(b"new")
    second = replicate(alpha, volume)

    assert second is not None
    assert is_incremental(beta, second, ahead)
    assert replicate(alpha, volume) is None


@pytest.mark.parametrize("by", ["scripts", "peer"])
def test_what_is_odd_about_a_replication_is_said(
    alpha: Host, beta: Host, volume: str, by: str
) -> None:
    alpha.run("btrfs", "subvolume", "create", f"{VOLUMES}/{volume}/nested")
    before = len(alpha.daemon.stderr())
    if by == "peer":
        beta.install()
    try:
        with bound(beta):
            answer = alpha.api.call("Replicate", Name=volume, Host="beta")
            alpha.file(volume, "file").write_bytes(b"new")
            alpha.api.call("Schedule", Name=volume, Action="replicate:beta", Timer="now")
    finally:
        beta.uninstall()

    def said(what: str) -> list[str]:
        return [line for line in alpha.daemon.stderr()[before:].split("\n") if what in line]

    for odd in ("nested subvolumes are not included: nested", "is in a bind mount of a plain"):
        assert odd in answer["Warning"]
        wait_until(lambda odd=odd: len(said(odd)) == 2, 60, odd)  # type: ignore[misc]


def test_a_copy_that_was_lost_is_sent_again(alpha: Host, beta: Host, volume: str) -> None:
    alpha.file(volume, "file").write_bytes(b"1")
    first = replicate(alpha, volume)
    assert first is not None
    beta.api.call("Snapshot.Remove", Name=first)
    assert replicate(alpha, volume) is None
    assert is_copy(alpha, beta, first)
    assert alpha.snapshot_names(volume) == [first, f"{first}@beta"]


def test_a_snapshot_that_was_lost_here_is_taken_again(alpha: Host, beta: Host, volume: str) -> None:
    first = replicate(alpha, volume)
    assert first is not None
    alpha.api.call("Snapshot.Remove", Name=first)
    second = replicate(alpha, volume)
    assert second is not None
    assert is_copy(alpha, beta, second)


def test_a_host_that_is_down_leaves_no_pile_of_snapshots(pair: Pair, volume: str) -> None:
    alpha, beta = pair.alpha, pair.beta
    first = replicate(alpha, volume)
    assert first is not None
    beta.kill_sshd()
    for number in range(3):
        alpha.file(volume, "file").write_bytes(b"%d" % number)
        assert "Err: beta: ssh: connect to host" in str(replicate(alpha, volume))
    assert alpha.snapshot_names(volume) == [first, f"{first}@beta"]

    beta.boot()
    last = replicate(alpha, volume)
    assert last is not None
    assert is_incremental(beta, last, first)


def test_a_link_that_breaks_leaves_no_pile_of_partial_copies(pair: Pair, volume: str) -> None:
    """The copies of snapshots that are gone here, and that nobody will send again."""
    alpha, beta = pair.alpha, pair.beta
    alpha.file(volume, "file").write_bytes(content(8 * MEBIBYTE))
    go_on = alpha.directory / f"{volume}-go-on"
    process_log = alpha.directory / f"{volume}.log"
    program = f"""
import os, time
job = replication()
print(outcome(job.replicate, {volume!r}, "beta"), flush=True)
while not os.path.exists({str(go_on)!r}):
    time.sleep(0.02)
print(outcome(job.replicate, {volume!r}, "beta"), flush=True)
"""
    pair.network.limit("beta", "8mbit")
    with impatient_ssh(alpha):
        process = alpha.start_program(program, process_log)
        wait_until(lambda: beta.snapshot_names(volume), 60, "the copy to begin")
        pair.network.black_hole("beta")
        wait_until(lambda: "Err: beta: Timeout" in process_log.read_text(), 60, "the failure")
    assert alpha.snapshot_names(volume) == []
    pair.heal()
    [partial] = beta.snapshot_names(volume)
    assert beta.show(partial)["Flags"] == "-"
    beta.wait_until_idle()  # who receives there must have seen the end

    go_on.touch()
    assert process.wait(60) == 0
    last = process_log.read_text().splitlines()[-1]
    assert alpha.snapshot_names(volume) == [last, f"{last}@beta"]
    assert beta.snapshot_names(volume) == [last]


# With the scheduler of a real daemon


@contextmanager
def scheduling(host: Host) -> Iterator[None]:
    """Let the host's daemon look at its schedule every second."""
    host.daemon.stop()
    host.daemon = host.start_daemon(BUTTERVOLUME_TIMER="1")
    try:
        yield
    finally:
        host.daemon.stop()
        host.run(
            "sh", "-c", "rm -f /etc/buttervolume/schedule.csv /etc/buttervolume/history.sqlite*"
        )


def state(host: Host, job: str) -> dict[str, Any]:
    """What the scheduler remembers of a job, looked up on the host itself: SQLite resolves links,
    so that a path into the host would lead it elsewhere."""
    program = f"""
import json
from tests.support import history
print(json.dumps(history.memory(Path("/etc/buttervolume/history.sqlite"), {job!r})))
"""
    found: dict[str, Any] = json.loads(host.program(program))
    return found


@pytest.mark.parametrize("up", [True, False])
def test_the_scheduler_replicates(pair: Pair, volume: str, up: bool) -> None:
    alpha, beta = pair.alpha, pair.beta
    job = f"replicate:beta {volume}"
    if not up:
        beta.kill_sshd()
    with scheduling(alpha):
        alpha.api.call("Schedule", Name=volume, Action="replicate:beta", Timer="60")
        wait_until(lambda: state(alpha, job), 60, "the job to have run")
        remembered = state(alpha, job)
        snapshots = alpha.snapshot_names(volume)
    if up:
        assert snapshots == [remembered["outcome"], f"{remembered['outcome']}@beta"]
        assert is_copy(alpha, beta, snapshots[0])
    else:
        assert "Connection refused" in str(remembered["message"])
        assert remembered["failures"] == 1
        assert snapshots == []


def test_the_scheduler_synchronizes(pair: Pair, volume: str) -> None:
    alpha, beta = pair.alpha, pair.beta
    beta.create(volume)
    beta.file(volume, "file").write_bytes(b"theirs")
    with scheduling(alpha):
        alpha.api.call("Schedule", Name=volume, Action="synchronize:beta,nohost", Timer="60")
        job = f"synchronize:beta,nohost {volume}"
        wait_until(lambda: state(alpha, job), 60, "the job to have run")
        message = str(state(alpha, job)["message"])
    assert alpha.file(volume, "file").read_bytes() == b"theirs"
    assert f"{volume} from nohost: ssh: Could not resolve" in message
    assert "from beta" not in message
    assert len(alpha.snapshot_names(volume)) == 1


def test_the_scheduler_mirrors(pair: Pair, volume: str) -> None:
    """Every snapshot gets there, each as changes of the one before, and none twice."""
    alpha, beta = pair.alpha, pair.beta
    taken = []
    for number in range(3):
        alpha.file(volume, "file").write_bytes(b"%d" % number)
        taken.append(alpha.api.call("Snapshot", Name=volume)["Snapshot"])

    def now() -> str:
        answer = alpha.api.call("Schedule", Name=volume, Action="mirror:beta", Timer="now")
        return str(answer["Result"])

    assert now() == "3 sent"
    assert beta.snapshot_names(volume) == taken
    for parent, name in pairwise(taken):
        assert is_incremental(beta, name, parent)
    assert now() == "unchanged"
    alpha.file(volume, "file").write_bytes(b"more")
    taken.append(alpha.api.call("Snapshot", Name=volume)["Snapshot"])
    assert now() == "1 sent"
    assert is_copy(alpha, beta, taken[-1])

    told = alpha.api.call("Log", Name=volume)["Log"]
    runs = [run for run in told if run["Operation"] == "mirror:beta"]
    assert [run["Outcome"] for run in runs] == ["3 sent", "unchanged", "1 sent"]
    assert runs[0]["Bytes"] > runs[2]["Bytes"] > 0
    assert (runs[2]["Host"], runs[2]["Snapshot"]) == ("beta", taken[-1])
