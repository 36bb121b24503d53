"""The daemon as a process: how it starts, refuses to start, ends, and what it says meanwhile."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.btrfs.conftest import StartDaemon
from tests.btrfs.harness import Daemon, NoAnswer, Place, Shim, cli, environment, subvolume
from tests.support.filesystem import loop_btrfs
from tests.support.wait import wait_until

Attempt = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def attempt(place: Place, runtime: Path) -> Attempt:
    """Run a daemon that is to end by itself at once, with these variables."""

    def run(**environ: str) -> subprocess.CompletedProcess[str]:
        return cli(["run"], environment(place, runtime / "attempt", **environ), timeout=60)

    return run


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The one line by which a daemon that does not start says why."""
    assert done.returncode == 1, done
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("buttervolume: ")
    return lines[0]


# Start


def test_it_is_ready_before_dockers_second_knock(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()

    assert daemon.process is not None
    fields = Path(f"/proc/{daemon.process.pid}/stat").read_text().rpartition(")")[2].split()
    used = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    assert used < 3.5, "and the processor may be busy with other things as well"
    wait_until(lambda: f"ready on {daemon.path}" in daemon.stdout(), what="it to say so")
    daemon.stop()


def test_it_makes_its_directories_and_the_one_for_the_socket(
    filesystem: Path, place: Place, runtime: Path
) -> None:
    fresh = Place(
        place.directory, place.directory / "deep/er/volumes", place.directory / "deep/snapshots"
    )
    daemon = Daemon(fresh, runtime / "run", BUTTERVOLUME_RUNPATH=str(runtime / "run"))
    try:
        daemon.start()
        assert fresh.volumes.is_dir()
        assert fresh.snapshots.is_dir()
        for path in (fresh.volumes, fresh.snapshots):
            assert stat.S_IMODE(path.stat().st_mode) == 0o700, "it is nobody's but root's"
        daemon.call("Create", Name="db")
        daemon.stop()
    finally:
        daemon.close()


def test_the_socket_is_for_owner_and_group(daemon: Daemon) -> None:
    status = daemon.path.lstat()

    assert stat.S_ISSOCK(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o660


def test_a_stale_socket_is_replaced(start_daemon: StartDaemon) -> None:
    first = start_daemon()
    first.kill()
    assert first.path.exists()

    second = start_daemon(BUTTERVOLUME_SOCKET=str(first.path))
    second.stop()


def test_a_file_that_is_no_socket_is_not_replaced(attempt: Attempt, runtime: Path) -> None:
    precious = runtime / "precious"
    precious.write_text("mine")

    line = refusal(attempt(BUTTERVOLUME_SOCKET=str(precious)))

    assert str(precious) in line
    assert precious.read_text() == "mine"


@pytest.mark.parametrize("obstacle", ["directory", "below a file", "unwritable"])
def test_a_place_where_no_socket_can_be_is_told_in_one_line(
    attempt: Attempt, runtime: Path, obstacle: str
) -> None:
    (runtime / "file").touch()
    (runtime / "directory").mkdir()
    address = {
        "directory": runtime / "directory",
        "below a file": runtime / "file/btrfs.sock",
        "unwritable": Path("/proc/self/btrfs.sock"),
    }[obstacle]

    assert str(address) in refusal(attempt(BUTTERVOLUME_SOCKET=str(address)))


def test_a_lock_file_that_cannot_be_made_is_told_in_one_line(
    attempt: Attempt, place: Place
) -> None:
    lock = place.volumes / ".buttervolume-lock"
    lock.mkdir()

    assert str(lock) in refusal(attempt())


def test_a_bad_configuration_stops_it_with_one_line(attempt: Attempt) -> None:
    line = refusal(attempt(BUTTERVOLUME_TIMER="often"))

    assert "TIMER = 'often'" in line
    assert "BUTTERVOLUME_TIMER" in line


def test_an_unknown_key_is_a_warning_on_stderr(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(BUTTERVOLUME_TIMMER="5")

    assert "BUTTERVOLUME_TIMMER" in daemon.stderr()
    assert "WARNING" in daemon.stderr()
    daemon.stop()


@pytest.mark.parametrize("which", ["VOLUMES_PATH", "SNAPSHOTS_PATH"])
def test_a_place_that_is_not_on_btrfs_stops_it_and_names_the_way_out(
    attempt: Attempt, runtime: Path, which: str
) -> None:
    line = refusal(attempt(**{f"BUTTERVOLUME_{which}": str(runtime / "elsewhere")}))

    assert "buttervolume init" in line
    assert not (runtime / "elsewhere").exists()


def test_volumes_and_snapshots_on_two_filesystems_stop_it(attempt: Attempt, tmp_path: Path) -> None:
    with loop_btrfs(tmp_path, size="128M") as other:
        line = refusal(attempt(BUTTERVOLUME_SNAPSHOTS_PATH=str(other / "snapshots")))

        assert "two filesystems" in line
        assert not (other / "snapshots").exists()


def test_a_second_daemon_on_the_same_volumes_refuses_and_harms_nothing(
    daemon: Daemon, attempt: Attempt, place: Place, runtime: Path
) -> None:
    working = subvolume(place.volumes / ".buttervolume-create-0123")

    line = refusal(attempt())

    assert "another daemon is running" in line
    assert str(place.volumes / ".buttervolume-lock") in line
    assert working.exists(), "what the first one is working on is not swept"
    assert daemon.answers()


def test_a_second_daemon_on_the_same_socket_refuses_and_harms_nothing(
    daemon: Daemon, attempt: Attempt, place: Place
) -> None:
    other = Place.make(place.directory / "other")

    line = refusal(
        attempt(
            BUTTERVOLUME_VOLUMES_PATH=str(other.volumes),
            BUTTERVOLUME_SNAPSHOTS_PATH=str(other.snapshots),
            BUTTERVOLUME_SOCKET=str(daemon.path),
        )
    )

    assert "another daemon is running" in line
    assert f"{daemon.path}.lock" in line
    assert daemon.answers()


def test_two_daemons_on_volumes_and_sockets_of_their_own_live_side_by_side(
    daemon: Daemon, place: Place, runtime: Path
) -> None:
    other = Daemon(Place.make(place.directory / "other"), runtime / "other")
    try:
        other.start()
        other.call("Create", Name="db")
        assert daemon.names() == []
        other.stop()
    finally:
        other.close()
    assert daemon.answers()


def test_it_starts_again_right_after_it_ended(start_daemon: StartDaemon) -> None:
    for _ in range(3):
        start_daemon().stop()


def test_volumes_of_before_are_there_after_a_restart(start_daemon: StartDaemon) -> None:
    first = start_daemon()
    first.call("Create", Name="db")
    snapshot = first.call("Snapshot", Name="db")["Snapshot"]
    first.stop()

    second = start_daemon()

    assert second.names() == ["db"]
    assert second.snapshot_names() == [snapshot]
    second.stop()


def test_it_sweeps_what_a_killed_one_has_left(start_daemon: StartDaemon, place: Place) -> None:
    subvolume(place.volumes / ".buttervolume-restore-1")
    subvolume(place.volumes / ".buttervolume-restore-1/nested")
    subvolume(place.volumes / ".hidden")
    subvolume(place.volumes / "db", {"file": "mine"})

    daemon = start_daemon()

    place.wait_until_swept()
    assert (place.volumes / ".hidden").is_dir()
    assert daemon.names() == ["db"]
    daemon.stop()


# End


ENDING = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT]


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_ends_it_well(start_daemon: StartDaemon, number: signal.Signals) -> None:
    daemon = start_daemon()
    daemon.call("Create", Name="db")

    daemon.stop(number)

    assert f"stopping: {number.name}" in daemon.stdout()
    assert daemon.stderr() == ""


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_during_the_start_ends_it_well(
    place: Place, runtime: Path, number: signal.Signals
) -> None:
    daemon = Daemon(place, runtime / "run")
    process = daemon.launch()
    try:
        lock = place.volumes / ".buttervolume-lock"
        wait_until(lambda: lock.exists() or process.poll() is not None, what="the lock")
        process.send_signal(number)
        assert process.wait(60) == 0, daemon.stderr()
    finally:
        daemon.close()
    assert not daemon.path.exists()


def inherit_oddly() -> None:
    """What a careless parent leaves to its children."""
    os.umask(0o777)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)


@pytest.mark.parametrize("number", ENDING)
def test_whatever_it_inherits_it_works_and_ends(
    place: Place, runtime: Path, number: signal.Signals
) -> None:
    daemon = Daemon(place, runtime / "run")
    with daemon._file("out").open("ab") as out, daemon._file("err").open("ab") as err:
        daemon.process = subprocess.Popen(
            [sys.executable, "-m", "buttervolume", "run"],
            env=daemon.environ,
            stdout=out,
            stderr=err,
            preexec_fn=inherit_oddly,
        )
    try:
        wait_until(daemon.answers, timeout=60, what="the daemon to answer")
        daemon.call("Create", Name="db")
        snapshot = daemon.call("Snapshot", Name="db")["Snapshot"]
        daemon.call("Clone", Name="db", Target="copy")
        daemon.call("Snapshot.Restore", Name=snapshot)
        daemon.call("Schedule", Name="db", Action="snapshot", Timer="60")
        for name in ("db", "copy"):
            assert stat.S_IMODE((place.volumes / name).stat().st_mode) == 0o755
        assert stat.S_IMODE(daemon.path.stat().st_mode) == 0o660
        daemon.stop(number)
    finally:
        daemon.close()


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o777])
def test_a_new_volume_is_for_all_to_enter_and_the_daemons_files_are_not(
    place: Place, runtime: Path, mask: int
) -> None:
    fresh = Place(place.directory, place.directory / "new/volumes", place.directory / "new/snaps")
    daemon = Daemon(fresh, runtime / "run")
    before = os.umask(mask)
    try:
        daemon.start()
    finally:
        os.umask(before)
    try:
        daemon.call("Create", Name="db")
        daemon.call("Schedule", Name="db", Action="snapshot", Timer="60")
        assert stat.S_IMODE((fresh.volumes / "db").stat().st_mode) == 0o755
        made = [path for path in (fresh.volumes, fresh.snapshots) for path in (path, path.parent)]
        for path in made:
            assert stat.S_IMODE(path.stat().st_mode) == 0o700, path
        files = [fresh.volumes / ".buttervolume-lock", Path(f"{daemon.path}.lock")]
        files += [path for path in daemon.directory.rglob("*schedule*") if path.is_file()]
        assert len(files) > 2
        for path in files:
            assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path
        daemon.stop()
    finally:
        daemon.close()


def test_a_leftover_that_takes_long_to_delete_delays_no_answer(
    shim: Shim, start_daemon: StartDaemon, place: Place
) -> None:
    subvolume(place.volumes / ".buttervolume-restore-1")
    subvolume(place.volumes / "db")
    shim.stop_at("*subvolume delete*")

    daemon = start_daemon()

    assert daemon.names() == ["db"]
    wait_until(lambda: f"ready on {daemon.path}" in daemon.stdout(), what="it to say so")
    daemon.call("Create", Name="new")
    daemon.call("Snapshot", Name="db")
    shim.go_on()
    place.wait_until_swept()
    assert daemon.names() == ["db", "new"]
    daemon.stop()


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_systemd_is_told_when_it_is_ready_and_when_it_ends(
    start_daemon: StartDaemon, runtime: Path, kind: str
) -> None:
    address = str(runtime / "notify") if kind == "path" else f"@{runtime / 'notify'}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address.replace("@", "\0", 1))
        systemd.settimeout(60)

        daemon = start_daemon(NOTIFY_SOCKET=address)

        assert systemd.recv(100) == b"READY=1"
        daemon.stop()
        assert systemd.recv(100) == b"STOPPING=1"


def test_a_systemd_that_cannot_be_told_is_a_line_in_the_log(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(NOTIFY_SOCKET="/nonexistent/notify")

    daemon.stop()
    assert "cannot tell systemd READY=1" in daemon.stderr()


def test_idle_connections_do_not_hold_it(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    clients = [socket.socket(socket.AF_UNIX) for _ in range(100)]
    try:
        for client in clients:
            client.connect(str(daemon.path))
            client.sendall(b"POST /VolumeDriver.List HTTP/1.1\r\nHost:")
        daemon.stop()
    finally:
        for client in clients:
            client.close()


def test_a_request_in_flight_gets_its_answer(shim: Shim, start_daemon: StartDaemon) -> None:
    for round_ in range(3):
        daemon = start_daemon()
        shim.stop_at("*create*")
        with ThreadPoolExecutor(1) as pool:
            create = pool.submit(daemon.call, "Create", Name=f"db{round_}")
            shim.wait_for_arrival()
            assert daemon.process is not None
            daemon.process.terminate()
            wait_until(lambda: not daemon.path.exists(), what="the socket to go")  # noqa: B023
            shim.go_on()
            assert create.result() == {"Err": ""}
        assert daemon.process.wait(60) == 0
        assert (daemon.place.volumes / f"db{round_}").is_dir()


def test_a_request_in_flight_that_takes_too_long_does_not_hold_it(
    shim: Shim, start_daemon: StartDaemon, place: Place
) -> None:
    daemon = start_daemon()
    shim.stop_at("*create*")
    with ThreadPoolExecutor(1) as pool:
        create = pool.submit(daemon.call, "Create", Name="db")
        shim.wait_for_arrival()

        daemon.stop()

        with pytest.raises(NoAnswer):
            create.result(10)
    shim.go_on()
    wait_until(lambda: place.own_names() or (place.volumes / "db").exists(), what="the command")

    again = start_daemon()
    assert again.names() == []
    place.wait_until_swept()
    again.call("Create", Name="db")
    again.stop()


def test_the_next_daemon_waits_for_a_command_that_a_killed_one_left(
    shim: Shim, start_daemon: StartDaemon, place: Place, runtime: Path
) -> None:
    daemon = start_daemon()
    shim.stop_at("*create*")
    with ThreadPoolExecutor(1) as pool:
        create = pool.submit(daemon.post, "Create", Name="db")
        shim.wait_for_arrival()
        daemon.kill()
        with pytest.raises(NoAnswer):
            create.result(10)

    line = refusal(cli(["run"], environment(place, runtime / "early")))
    assert "or a command that it left behind" in line

    shim.go_on()
    wait_until(place.own_names, what="the command to make its subvolume")
    again = start_daemon()
    place.wait_until_swept()
    again.stop()


# What it says


@pytest.fixture
def talkative(start_daemon: StartDaemon) -> Iterator[Daemon]:
    daemon = start_daemon(BUTTERVOLUME_LOGLEVEL="DEBUG")
    yield daemon
    daemon.stop()


def test_info_and_below_go_to_stdout_warnings_and_up_to_stderr(
    talkative: Daemon, place: Place
) -> None:
    talkative.call("Create", Name="db")
    talkative.call("List")
    place.volumes.rename(place.directory / "away")
    try:
        assert talkative.is_closed("List")
    finally:
        (place.directory / "away").rename(place.volumes)

    out, err = talkative.stdout(), talkative.stderr()
    for words in (" INFO ", " DEBUG ", "VolumeDriver.Create", "VolumeDriver.List"):
        assert words in out
    assert "gets no answer" in err
    for words in (" WARNING ", " ERROR "):
        assert words not in out
    for words in (" INFO ", " DEBUG "):
        assert words not in err


def test_a_change_is_logged_and_a_question_is_not(daemon: Daemon) -> None:
    daemon.call("Create", Name="db", Opts={"copyonwrite": "true"})
    snapshot = daemon.call("Snapshot", Name="db")["Snapshot"]
    daemon.call("Get", Name="db")
    daemon.call("List")

    log = daemon.stdout()
    assert "VolumeDriver.Create" in log
    assert snapshot in log
    assert "VolumeDriver.Get" not in log
    assert "VolumeDriver.List" not in log


def test_a_refused_change_is_in_the_log(daemon: Daemon) -> None:
    daemon.refused("Create", Name="a b")
    daemon.refused("Snapshot.Remove", Name="x@1")

    log = daemon.stdout() + daemon.stderr()
    assert "'a b' is not allowed" in log
    assert "x@1: no such snapshot" in log


@pytest.mark.parametrize("name", ["schedule.csv", "schedule.csv.disabled"])
def test_jobs_in_the_other_place_are_warned_of(
    start_daemon: StartDaemon, place: Place, name: str
) -> None:
    (place.directory / "config").mkdir()
    (place.directory / "config" / name).write_text("db,snapshot,60\n")

    daemon = start_daemon()

    wait_until(lambda: str(place.directory / "config/schedule.csv") in daemon.stderr(), 60)
    assert "are not run" in daemon.stderr()
    daemon.stop()


def test_keys_in_the_other_place_are_warned_of(
    start_daemon: StartDaemon, place: Place, runtime: Path
) -> None:
    (place.directory / "ssh").mkdir()
    (place.directory / "ssh/id_ed25519").touch()
    (runtime / "home/.ssh").mkdir(parents=True)
    daemon = start_daemon(HOME=str(runtime / "home"))
    assert f"the keys in {place.directory / 'ssh'} are not used" in daemon.stderr()
    daemon.stop()
    (runtime / "home/.ssh/id_rsa").touch()

    daemon = start_daemon(HOME=str(runtime / "home"))

    assert "keys" not in daemon.stderr()
    daemon.stop()


def test_where_both_places_are_one_nothing_is_warned_of(
    start_daemon: StartDaemon, place: Place, runtime: Path
) -> None:
    (place.directory / "config").mkdir()
    (place.directory / "config/schedule.csv").write_text("db,snapshot,60\n")
    (runtime / "etc").symlink_to(place.directory / "config")
    (place.directory / "ssh").mkdir()
    (place.directory / "ssh/id_rsa").touch()
    (runtime / "home").mkdir()
    (runtime / "home/.ssh").symlink_to(place.directory / "ssh")

    daemon = start_daemon(
        BUTTERVOLUME_SCHEDULE=str(runtime / "etc/schedule.csv"), HOME=str(runtime / "home")
    )

    assert daemon.stderr() == ""
    daemon.stop()


def test_a_directory_of_the_schedule_that_is_read_only_is_told_and_all_else_works(
    start_daemon: StartDaemon, place: Place
) -> None:
    directory = place.directory / "config"
    directory.mkdir()
    (directory / "schedule.csv").write_text("db,snapshot,60\n")
    subprocess.run(["chattr", "+i", directory], check=True)
    try:
        daemon = start_daemon(BUTTERVOLUME_SCHEDULE=str(directory / "schedule.csv"))
        daemon.call("Create", Name="db")
        assert [job["Name"] for job in daemon.call("Schedule.List")["Schedule"]] == ["db"]
        for endpoint, body in (
            ("Schedule", {"Name": "db", "Action": "snapshot", "Timer": "30"}),
            ("Schedule.Pause", {}),
        ):
            refusal = daemon.refused(endpoint, **body)
            assert str(directory) in refusal
            assert "Operation not permitted" in refusal
        daemon.call("Snapshot", Name="db")
        wait_until(lambda: "history" in daemon.stderr(), what="a line about the history")
        daemon.stop()
        assert "Traceback" not in daemon.stderr()
    finally:
        subprocess.run(["chattr", "-i", directory], check=True)


def test_a_disk_that_is_mounted_after_the_start_is_told_with_what_to_do(
    start_daemon: StartDaemon, place: Place, tmp_path: Path
) -> None:
    daemon = start_daemon()
    with loop_btrfs(tmp_path, size="128M") as late:
        (late / "volumes").mkdir()
        subprocess.run(["mount", "--bind", late / "volumes", place.volumes], check=True)
        try:
            assert daemon.is_closed("List")
            assert "restart the daemon" in daemon.stderr()
            daemon.stop()
        finally:
            subprocess.run(["umount", place.volumes], check=True)


def test_loglevel_hides_what_is_below_it(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(BUTTERVOLUME_LOGLEVEL="ERROR")
    daemon.call("Create", Name="db")
    daemon.stop()

    assert daemon.stdout() == daemon.stderr() == ""


def test_names_that_no_terminal_knows_do_not_break_the_log(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(LC_ALL="C")
    subvolume(daemon.place.volumes / "größe-😀")

    assert daemon.call("Snapshot", Name="größe-😀")["Snapshot"].startswith("größe-😀@")
    daemon.call("Remove", Name="größe-😀")
    daemon.stop()
    assert "Logging error" not in daemon.stderr()


def test_a_command_that_is_missing_is_told_by_name(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(PATH="/nonexistent")

    error = daemon.refused("Create", Name="db")

    assert "btrfs" in error
    assert "installed" in error
    daemon.stop()


def test_it_leaves_no_child_and_no_file_open_after_much_work(daemon: Daemon) -> None:
    assert daemon.process is not None
    descriptors = Path(f"/proc/{daemon.process.pid}/fd")

    def work(number: int) -> None:
        daemon.call("Create", Name=f"db{number}")
        snapshot = daemon.call("Snapshot", Name=f"db{number}")["Snapshot"]
        daemon.call("Get", Name=f"db{number}")
        daemon.call("Snapshot.Restore", Name=snapshot)
        daemon.refused("Get", Name="unknown")
        daemon.call("Remove", Name=f"db{number}")

    work(0)  # what is opened once, such as the history, stays open
    before = len(list(descriptors.iterdir()))

    for number in range(1, 20):
        work(number)

    wait_until(lambda: len(list(descriptors.iterdir())) <= before, what="files to be closed")
    children = Path(f"/proc/{daemon.process.pid}/task/{daemon.process.pid}/children")
    assert children.read_text() == ""


def pools_of_memory(pid: int) -> list[str]:
    """Those that malloc has made beside its first: they begin at multiples of 64 MB (glibc's
    arena.c, HEAP_MAX_SIZE)."""
    maps = [line.split() for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    return [
        fields[0]
        for fields in maps
        if len(fields) == 5
        and fields[1] == "rw-p"
        and int(fields[0].partition("-")[0], 16) % (64 << 20) == 0
    ]


def test_memory_is_not_kept_for_each_thread(daemon: Daemon) -> None:
    assert daemon.process is not None
    names = [f"db{number}" for number in range(16)]

    with ThreadPoolExecutor(len(names)) as pool:
        for endpoint in ("Create", "Snapshot", "Get", "Remove"):
            list(pool.map(lambda name, called=endpoint: daemon.call(called, Name=name), names))

    assert len(pools_of_memory(daemon.process.pid)) < 3


def test_docker_retries_are_taken_calmly(daemon: Daemon) -> None:
    """After a broken connection Docker sends the request again with an empty body."""
    daemon.call("Create", Name="db")
    for endpoint in ("Create", "Remove", "Mount"):
        answer = daemon.request(f"VolumeDriver.{endpoint}", b"")
        assert (answer.status, bool(answer.error)) == (400, True)

    assert daemon.names() == ["db"]
    assert json.loads(daemon.request("Plugin.Activate").content)["Implements"]
    assert os.path.lexists(daemon.path)
