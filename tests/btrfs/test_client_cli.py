"""The command line against a real daemon: what it prints, where, and how it ends."""

import os
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest

from tests.btrfs.conftest import StartDaemon
from tests.btrfs.harness import Daemon, Place, cli, environment, subvolume

NUMBERS = count(1)


@pytest.fixture
def volume(plugin: Daemon) -> str:
    name = f"cli{next(NUMBERS)}"
    plugin.call("Create", Name=name)
    (plugin.place.volumes / name / "file").write_text("old")
    return name


def printed(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines of a command that has succeeded and had nothing to complain of."""
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def complaint(done: subprocess.CompletedProcess[str], status: int = 1) -> str:
    """The one line of a command that has failed."""
    assert (done.returncode, done.stdout) == (status, ""), done
    assert done.stderr.startswith("buttervolume: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_snapshot_prints_the_name_and_snapshots_lists_it(plugin: Daemon, volume: str) -> None:
    first = printed(plugin.cli("snapshot", volume))
    second = printed(plugin.cli("snapshot", volume))

    assert first[0].startswith(f"{volume}@")
    assert printed(plugin.cli("snapshots", volume)) == first + second
    everything = printed(plugin.cli("snapshots"))
    assert set(first + second) <= set(everything)


def test_snapshots_of_an_unknown_volume_prints_nothing(plugin: Daemon) -> None:
    assert printed(plugin.cli("snapshots", "unknown")) == []


def test_restore_prints_the_backup_if_there_is_one(plugin: Daemon, volume: str) -> None:
    file = plugin.place.volumes / volume / "file"
    [snapshot] = printed(plugin.cli("snapshot", volume))
    file.write_text("new")

    [backup] = printed(plugin.cli("restore", snapshot))

    assert file.read_text() == "old"
    assert (plugin.place.snapshots / backup / "file").read_text() == "new"
    assert printed(plugin.cli("restore", volume, f"{volume}-copy")) == []
    assert (plugin.place.volumes / f"{volume}-copy/file").read_text() == "new"


def test_restore_of_a_mounted_volume_needs_force(plugin: Daemon, volume: str) -> None:
    plugin.cli("snapshot", volume)
    plugin.call("Mount", Name=volume, ID="x")

    assert "force" in complaint(plugin.cli("restore", volume))
    assert len(printed(plugin.cli("restore", "--force", volume))) == 1


def test_clone_prints_the_new_volume(plugin: Daemon, volume: str) -> None:
    assert printed(plugin.cli("clone", volume, f"{volume}-c")) == [f"{volume}-c"]
    assert "exists already" in complaint(plugin.cli("clone", volume, f"{volume}-c"))


def test_rm_prints_nothing(plugin: Daemon, volume: str) -> None:
    [snapshot] = printed(plugin.cli("snapshot", volume))

    assert printed(plugin.cli("rm", snapshot)) == []
    assert printed(plugin.cli("snapshots", volume)) == []
    assert complaint(plugin.cli("rm", snapshot)) == f"buttervolume: {snapshot}: no such snapshot\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["snapshot", "unknown"],
        ["snapshot", ""],
        ["snapshot", "a/b"],
        ["snapshots", "../volumes"],
        ["restore", "unknown"],
        ["restore", "unknown@2026"],
        ["clone", "unknown", "copy"],
        ["rm", "unknown"],
        ["rm", "a@b/../../volumes/v"],
        ["rm", ""],
    ],
)
def test_what_is_refused_is_one_line_on_stderr_and_exit_status_1(
    plugin: Daemon, arguments: list[str]
) -> None:
    before = plugin.place.tree()

    complaint(plugin.cli(*arguments))

    assert plugin.place.tree() == before


def test_an_argument_that_is_no_text_is_refused_in_words(plugin: Daemon) -> None:
    assert "not allowed" in complaint(plugin.cli("snapshot", os.fsdecode(b"v\xff")))


@pytest.mark.parametrize("name", ["my old volume", "größe", "-odd", "a'b\"c\\d", "50%"])
def test_odd_names_arrive_as_they_are(plugin: Daemon, name: str) -> None:
    subvolume(plugin.place.volumes / name)

    [snapshot] = printed(plugin.cli("snapshot", "--", name))
    assert snapshot.startswith(f"{name}@")
    assert printed(plugin.cli("snapshots", "--", name)) == [snapshot]
    assert len(printed(plugin.cli("restore", "--", snapshot))) == 1
    assert printed(plugin.cli("rm", "--", snapshot)) == []


def test_a_name_that_the_terminal_cannot_show_is_no_traceback(plugin: Daemon) -> None:
    subvolume(plugin.place.volumes / "smile-😀")
    plugin.call("Snapshot", Name="smile-😀")

    done = plugin.cli("snapshots", PYTHONIOENCODING="ascii")

    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "smile-" in done.stdout


def test_nested_subvolumes_are_warned_of_on_stderr(plugin: Daemon, volume: str) -> None:
    subvolume(plugin.place.volumes / volume / "cache")

    done = plugin.cli("snapshot", volume)

    assert done.returncode == 0
    assert done.stdout.startswith(f"{volume}@")
    assert done.stdout.count("\n") == 1
    assert done.stderr.startswith("buttervolume: warning: ")
    assert "cache" in done.stderr


def test_without_a_reader_it_ends_quietly(plugin: Daemon, volume: str) -> None:
    for _ in range(3):
        plugin.call("Snapshot", Name=volume)
    program = f"{sys.executable} -m buttervolume snapshots | true"

    done = subprocess.run(
        ["sh", "-c", program], env=plugin.environ, capture_output=True, text=True, check=True
    )

    assert done.stderr == ""


def test_the_socket_may_be_at_a_strange_place(start_daemon: StartDaemon, runtime: Path) -> None:
    place = runtime / "a b%20ü?#&"
    place.mkdir()
    daemon = start_daemon(BUTTERVOLUME_SOCKET=str(place / "s.sock"))

    assert printed(daemon.cli("snapshots")) == []
    daemon.stop()


def test_proxies_of_the_environment_are_not_asked(plugin: Daemon) -> None:
    proxy = "http://127.0.0.1:1"
    assert plugin.cli("snapshots", http_proxy=proxy, ALL_PROXY=proxy).returncode == 0


def test_the_socket_of_the_managed_plugin_is_found_through_docker(
    start_daemon: StartDaemon, runtime: Path
) -> None:
    address = runtime / "docker/plugins/0123abcd/btrfs.sock"
    daemon = start_daemon(BUTTERVOLUME_SOCKET=str(address))
    (runtime / "bin").mkdir()
    docker = runtime / "bin/docker"
    docker.write_text("#!/bin/sh\necho 0123abcd\n")
    docker.chmod(0o755)
    environ = daemon.environ | {
        "BUTTERVOLUME_SOCKET": "",
        "BUTTERVOLUME_RUNPATH": str(runtime / "docker"),
        "PATH": f"{runtime / 'bin'}:{os.environ['PATH']}",
    }

    assert printed(cli(["snapshots"], environ)) == []
    daemon.stop()
    line = complaint(cli(["snapshots"], environ), 3)
    assert str(address) in line


@pytest.mark.parametrize("state", ["stale", "no socket", "never"])
def test_without_a_daemon_the_exit_status_is_3_and_the_way_to_start_one_is_told(
    place: Place, runtime: Path, start_daemon: StartDaemon, state: str
) -> None:
    address = runtime / "btrfs.sock"
    if state == "stale":
        start_daemon(BUTTERVOLUME_SOCKET=str(address)).kill()
    elif state == "no socket":
        address.write_text("")
    environ = environment(place, runtime, BUTTERVOLUME_SOCKET=str(address))
    environ["PATH"] = "/nonexistent"

    line = complaint(cli(["snapshots"], environ), 3)

    assert str(address) in line
    assert "buttervolume run" in line


def test_a_closed_connection_is_exit_status_3_and_says_what_may_be_wrong(
    daemon: Daemon, place: Place
) -> None:
    place.volumes.rename(place.directory / "away")
    try:
        line = complaint(daemon.cli("snapshots"), 3)
    finally:
        (place.directory / "away").rename(place.volumes)

    assert str(place.volumes) in line
    assert "mounted" in line


def test_a_socket_of_something_else_is_told_so(place: Place, runtime: Path) -> None:
    address = runtime / "other.sock"
    server = f"""
import socket, sys
with socket.socket(socket.AF_UNIX) as listener:
    listener.bind({str(address)!r})
    listener.listen()
    print("ready", flush=True)
    connection, _ = listener.accept()
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 5\\r\\n\\r\\nhello")
    connection.close()
"""
    with subprocess.Popen([sys.executable, "-c", server], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        environ = environment(place, runtime, BUTTERVOLUME_SOCKET=str(address))
        line = complaint(cli(["snapshots"], environ))

    assert "does not speak" in line
