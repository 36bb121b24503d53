"""The command line against a real daemon: what it prints, where, and how it ends."""

import json
import os
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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


def restored(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines of a restore that has succeeded, and has said what it did and nothing else."""
    assert done.returncode == 0
    told = [line for line in done.stderr.splitlines() if "warning: restart" not in line]
    assert [line.split()[:2] for line in told] == [["buttervolume:", "restored"]]
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


@pytest.mark.parametrize("form", [[], ["--long"], ["--json"]], ids=str)
def test_snapshots_of_an_unknown_volume_prints_nothing_and_says_so(
    plugin: Daemon, form: list[str]
) -> None:
    done = plugin.cli("snapshots", *form, "unknown")

    assert done.returncode == 0
    assert json.loads(done.stdout)["Details"] == [] if "--json" in form else done.stdout == ""
    assert done.stderr.startswith("buttervolume: unknown: there is neither such a volume")


def test_snapshots_of_a_volume_without_any_has_nothing_to_say(plugin: Daemon, volume: str) -> None:
    assert printed(plugin.cli("snapshots", volume)) == []


def test_snapshots_of_a_volume_that_is_gone_are_listed(plugin: Daemon, volume: str) -> None:
    [snapshot] = printed(plugin.cli("snapshot", volume))
    plugin.call("Remove", Name=volume)

    assert printed(plugin.cli("snapshots", volume)) == [snapshot]
    assert printed(plugin.cli("rm", snapshot)) == []
    assert "neither" in plugin.cli("snapshots", volume).stderr


def test_rm_takes_several_and_removes_those_that_it_can(plugin: Daemon, volume: str) -> None:
    names = [printed(plugin.cli("snapshot", volume))[0] for _ in range(4)]

    assert printed(plugin.cli("rm", *names[:2])) == []
    done = plugin.cli("rm", names[0], names[2], "unknown@1", names[3])

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.split("\n") == [
        f"buttervolume: {names[0]}: no such snapshot",
        "buttervolume: unknown@1: no such snapshot",
        "",
    ]
    assert printed(plugin.cli("snapshots", volume)) == []


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["clone", "{s}", "copy"], "buttervolume restore {s} copy"),
        (["rm", "{v}"], "docker volume rm {v}"),
        (["send", "nohost", "{v}"], "buttervolume send nohost {v}@latest"),
        (["send", "{s}", "nohost"], "buttervolume send nohost {s}"),
        (["purge", "{v}", "1h:1d"], "buttervolume purge 1h:1d {v}"),
        (["schedule", "snapshot", "{v}", "60"], "buttervolume schedule snapshot 60 {v}"),
        (["restore", "{v}", "{s}"], "buttervolume restore {s} {v}"),
    ],
)
def test_what_was_meant_is_named_in_the_same_line(
    plugin: Daemon, volume: str, arguments: list[str], hint: str
) -> None:
    [snapshot] = printed(plugin.cli("snapshot", volume))
    before = plugin.place.tree()

    line = complaint(plugin.cli(*(word.format(v=volume, s=snapshot) for word in arguments)))

    assert hint.format(v=volume, s=snapshot) in line
    assert plugin.place.tree() == before


@pytest.mark.parametrize("odd", ["\u202egnp.exe", "a\u2028b", "\u2066x\u2069", "\u200b", "\ue000"])
def test_no_name_reaches_the_terminal_as_it_is(plugin: Daemon, odd: str) -> None:
    name = f"cli{next(NUMBERS)}{odd}"
    subvolume(plugin.place.volumes / name)
    (plugin.place.volumes / name / "nested").mkdir()
    subvolume(plugin.place.volumes / name / odd)
    ran = [plugin.cli("snapshot", name)]
    snapshot = plugin.snapshot_names(name)[0]
    ran += [
        plugin.cli("snapshots", name),
        plugin.cli("snapshots", "--json", name),
        plugin.cli("clone", name, f"copy{odd}"),
        plugin.cli("restore", snapshot),
        plugin.cli("rm", f"{odd}@1"),
        plugin.cli("schedule", "snapshot", "60", f"new{odd}"),
        plugin.cli("scheduled"),
        plugin.cli("schedule", "snapshot", "delete", f"new{odd}"),
        plugin.cli("status"),
        plugin.cli("rm", snapshot),
    ]

    assert ran[-1].returncode == 0, "the name arrives as it is"
    for done in ran:
        for line in (done.stdout + done.stderr).split("\n"):
            assert line.isprintable(), line


def test_restore_prints_the_backup_if_there_is_one(plugin: Daemon, volume: str) -> None:
    file = plugin.place.volumes / volume / "file"
    [snapshot] = printed(plugin.cli("snapshot", volume))
    file.write_text("new")

    [backup] = restored(plugin.cli("restore", snapshot))

    assert file.read_text() == "old"
    assert (plugin.place.snapshots / backup / "file").read_text() == "new"
    assert restored(plugin.cli("restore", "--undo", volume, f"{volume}-copy")) == []
    assert (plugin.place.volumes / f"{volume}-copy/file").read_text() == "new"


def test_restore_of_a_mounted_volume_needs_force(plugin: Daemon, volume: str) -> None:
    plugin.cli("snapshot", volume)
    plugin.call("Mount", Name=volume, ID="x")

    assert "force" in complaint(plugin.cli("restore", volume))
    assert len(restored(plugin.cli("restore", "--force", volume))) == 1


@pytest.mark.parametrize("target", ["latest", "2026-11-26"])
def test_a_new_volume_that_is_called_like_a_snapshot_is_warned_of(
    plugin: Daemon, volume: str, target: str
) -> None:
    plugin.cli("snapshot", volume)

    done = plugin.cli("restore", volume, target)

    assert (done.returncode, done.stdout) == (0, "")
    restored_line, warning = done.stderr.splitlines()
    assert restored_line.startswith(f"buttervolume: restored {target} from {volume}@")
    assert warning.startswith(f"buttervolume: warning: {target} is a new volume; ")
    assert f"buttervolume restore {volume}@{target}" in warning
    assert len(restored(plugin.cli("restore", volume, target))) == 1, "it is there now, and meant"
    plugin.call("Remove", Name=target)


def test_a_date_that_is_no_name_of_a_volume_is_taken_for_a_snapshots(
    plugin: Daemon, volume: str
) -> None:
    plugin.cli("snapshot", volume)

    line = complaint(plugin.cli("restore", volume, "2026-11-26T10:00"))

    assert f"buttervolume restore {volume}@2026-11-26T10:00" in line


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
    assert len(restored(plugin.cli("restore", "--", snapshot))) == 1
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


@pytest.mark.parametrize("arguments", [["snapshots"], ["volumes"], ["volumes", "--json"], ["log"]])
def test_a_result_that_cannot_be_written_is_a_failure_in_words(
    plugin: Daemon, volume: str, arguments: list[str]
) -> None:
    plugin.call("Snapshot", Name=volume)
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "buttervolume", *arguments],
            env=plugin.environ,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )

    assert done.returncode == 1
    assert done.stderr.endswith("cannot print what was done: No space left on device\n")
    assert "Traceback" not in done.stderr


def test_without_a_place_to_write_to_a_result_is_lost_and_no_more(plugin: Daemon) -> None:
    command = shlex.join([sys.executable, "-m", "buttervolume", "volumes"])

    done = subprocess.run(["sh", "-c", f"{command} <&- >&- 2>&-"], env=plugin.environ, check=False)

    assert done.returncode == 0


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


@contextmanager
def other_daemon(address: Path, content: bytes, status: str = "200 OK") -> Iterator[None]:
    """Something that answers every call with the same."""
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(content)}\r\nConnection: close\r\n\r\n"

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(head.encode() + content)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen()
        threading.Thread(target=serve, daemon=True).start()
        yield
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    "content",
    [
        b"hello",
        b"",
        b"[]",
        b"null",
        b'"x"',
        b"{}",
        b"<html>Error: 500</html>",
        b"\xff",
        b"[" * 99999,
    ],
)
@pytest.mark.parametrize("status", ["200 OK", "400 Bad Request", "500 Internal Server Error"])
def test_a_socket_of_something_else_is_told_so(
    place: Place, runtime: Path, content: bytes, status: str
) -> None:
    address = runtime / "other.sock"
    with other_daemon(address, content, status):
        environ = environment(place, runtime, BUTTERVOLUME_SOCKET=str(address))
        line = complaint(cli(["snapshots"], environ))

    assert "does not speak" in line


COMMANDS = [
    ["snapshot", "db"],
    ["snapshots", "db"],
    ["snapshots", "--long", "db"],
    ["clone", "db", "copy"],
    ["purge", "1h:1d", "db"],
    ["purge", "--dryrun", "--verbose", "1h:1d", "db"],
    ["scheduled"],
    ["status"],
    ["transfers"],
]


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("answer", ['{"Err": ""}', '{"Err": "", "Warning": "x\\ny"}'])
def test_a_daemon_that_tells_less_is_of_another_version(
    place: Place, runtime: Path, arguments: list[str], answer: str
) -> None:
    address = runtime / "other.sock"
    with other_daemon(address, answer.encode()):
        environ = environment(place, runtime, BUTTERVOLUME_SOCKET=str(address))
        done = cli(arguments, environ)

    assert (done.returncode, done.stdout) == (1, "")
    assert "another version" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("content", [b'{"Err": "x: Not Found"}', b"<html>Error: 404</html>"])
def test_a_daemon_that_does_not_know_the_call_is_of_another_version(
    place: Place, runtime: Path, arguments: list[str], content: bytes
) -> None:
    address = runtime / "other.sock"
    with other_daemon(address, content, "404 Not Found"):
        environ = environment(place, runtime, BUTTERVOLUME_SOCKET=str(address))
        line = complaint(cli(arguments, environ))

    assert "does not know VolumeDriver." in line
    assert "another version" in line


@pytest.mark.parametrize("odd", ["garbage", 5, [5, None], [{}], {"a": 1}, [[]]], ids=str)
@pytest.mark.parametrize("arguments", [["volumes"], ["snapshots"], ["snapshots", "-l"], ["log"]])
def test_an_answer_of_another_form_is_told_in_words(
    place: Place, runtime: Path, arguments: list[str], odd: object
) -> None:
    address = runtime / "other.sock"
    keys = ("Now", "Volumes", "Snapshots", "Details", "Log")
    with other_daemon(address, json.dumps({"Err": "", **dict.fromkeys(keys, odd)}).encode()):
        environ = environment(place, runtime, BUTTERVOLUME_SOCKET=str(address))
        done = cli(arguments, environ)

    assert "Traceback" not in done.stderr
    assert done.returncode == 0 or "another version" in done.stderr


def test_the_list_of_jobs_of_the_original_can_be_shown(place: Place, runtime: Path) -> None:
    """It tells nothing of a pause."""
    address = runtime / "other.sock"
    job = b'{"Name": "db", "Action": "snapshot", "Timer": "60", "Active": "True"}'
    with other_daemon(address, b'{"Err": "", "Schedule": [%s]}' % job):
        environ = environment(place, runtime, BUTTERVOLUME_SOCKET=str(address))
        assert printed(cli(["scheduled"], environ)) == ["snapshot 60 db"]


def test_what_a_daemon_says_is_fit_for_the_terminal(place: Place, runtime: Path) -> None:
    """An older one escapes nothing."""
    address = runtime / "other.sock"
    said = {"Err": "a\nbuttervolume: done \x1b[2J\u202e" + "x" * 1_000_000, "Warning": "b\n\x1b[2J"}
    with other_daemon(address, json.dumps(said).encode()):
        environ = environment(place, runtime, BUTTERVOLUME_SOCKET=str(address))
        done = cli(["snapshot", "db"], environ)

    assert (done.returncode, done.stdout) == (1, "")
    warning, line = done.stderr.splitlines()
    assert warning.startswith("buttervolume: warning: b")
    assert (warning + line).isprintable()
    assert len(line.encode()) <= 2049


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["purge", "1h:1d", "db"], {"Purged": ["db@1", "db@2"]}),
        (["schedule", "snapshot", "now", "*"], {"Result": "db@1\ndb@2"}),
    ],
    ids=["purge", "now"],
)
def test_what_was_done_is_printed_though_the_rest_failed(
    place: Place, runtime: Path, arguments: list[str], answer: dict[str, object]
) -> None:
    address = runtime / "other.sock"
    said = {"Err": "web: no space", "Warning": "the clock"} | answer
    with other_daemon(address, json.dumps(said).encode()):
        environ = environment(place, runtime, BUTTERVOLUME_SOCKET=str(address))
        done = cli(arguments, environ)

    assert done.returncode == 1
    assert done.stdout.splitlines() == ["db@1", "db@2"]
    assert done.stderr.splitlines() == [
        "buttervolume: warning: the clock",
        "buttervolume: web: no space",
    ]


PLUGINS = ["anybox/buttervolume:latest", "ccomb/buttervolume:latest", "me/mine:1"]


@pytest.mark.parametrize("known", [*PLUGINS, "none"])
@pytest.mark.parametrize("configured", ["", "me/mine:1", "anybox/buttervolume:latest"])
def test_the_plugin_is_found_under_its_older_name_unless_one_is_configured(
    daemon: Daemon, runtime: Path, known: str, configured: str
) -> None:
    docker = runtime / "bin/docker"
    docker.parent.mkdir()
    docker.write_text(
        f"""#!/bin/sh
for last; do :; done
[ "$last" = {known} ] && echo 0a1b && exit
echo "Error: No such plugin: $last" >&2
exit 1
"""
    )
    docker.chmod(0o755)
    (runtime / "plugins/0a1b").mkdir(parents=True)
    (runtime / "plugins/0a1b/btrfs.sock").symlink_to(daemon.path)
    done = daemon.cli(
        "snapshots",
        BUTTERVOLUME_RUNPATH=str(runtime),
        BUTTERVOLUME_DRIVERNAME=configured,
        PATH=f"{docker.parent}:{os.environ['PATH']}",
    )

    if known == configured or (not configured and known in PLUGINS[:2]):
        assert printed(done) == []
    else:
        line = complaint(done, 3)
        for name in [configured] if configured else PLUGINS[:2]:
            assert name in line
