"""The HTTP API of a real daemon, as Docker, the command line and nobody decent speak it."""

import json
import os
import re
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from itertools import count
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.btrfs.conftest import StartDaemon
from tests.btrfs.harness import (
    Answer,
    Client,
    Daemon,
    NoAnswer,
    Place,
    Shim,
    UnixConnection,
    btrfs,
    subvolume,
)

NUMBERS = count(1)
DRIVER = ["Create", "Get", "List", "Mount", "Path", "Unmount", "Remove", "Capabilities"]
MANAGEMENT = ["Snapshot", "Snapshot.List", "Snapshot.Remove", "Snapshot.Restore", "Clone"]
KEYS = {
    "Create": ["Name"],
    "Get": ["Name"],
    "Mount": ["Name"],
    "Path": ["Name"],
    "Unmount": ["Name"],
    "Remove": ["Name"],
    "Snapshot": ["Name"],
    "Snapshot.Remove": ["Name"],
    "Snapshot.Restore": ["Name"],
    "Clone": ["Name", "Target"],
}
"""The keys that must be there."""
OF_THE_VOLUMES = [*(name for name in DRIVER if name != "Capabilities"), *MANAGEMENT]
HOSTILE = [
    "",
    ".",
    "..",
    "../../x",
    "/etc",
    "v/../v",
    "a@b/../../volumes/v",
    "@",
    "name@1",
    "@/../..",
    ".hidden",
    ".buttervolume-lock",
    "-rf",
    "--help",
    "x" * 300,
    "ü" * 200,
    "nul\0byte",
    "new\nline",
    "\x1b[31mred",
    "\ud800",
    "\udcff",
    " ",
    "$(touch /tmp/pwned)",
    "`id`",
    "v\u2028v",
    "%2e%2e",
]


@pytest.fixture
def name() -> str:
    """A name that no other test uses."""
    return f"v{next(NUMBERS)}"


@pytest.fixture
def volume(plugin: Daemon, name: str) -> str:
    """An existing volume."""
    plugin.call("Create", Name=name)
    return name


def path_of(plugin: Daemon, name: str) -> Path:
    return plugin.place.volumes / name


# As Docker speaks


def test_activate_says_what_the_plugin_is(plugin: Daemon) -> None:
    answer = plugin.request("Plugin.Activate")

    assert (answer.status, answer.json) == (200, {"Err": "", "Implements": ["VolumeDriver"]})


@pytest.mark.parametrize("body", [b"", b"{}\n", b"null"])
def test_capabilities_are_local(plugin: Daemon, body: bytes) -> None:
    answer = plugin.request("VolumeDriver.Capabilities", body)

    if body == b"null":
        assert answer.status == 400
    else:
        assert answer.json == {"Err": "", "Capabilities": {"Scope": "local"}}


def test_the_life_of_a_volume(plugin: Daemon, name: str) -> None:
    user = "0123456789abcdef" * 4
    mountpoint = str(path_of(plugin, name))

    assert plugin.call("Create", Name=name, Opts=None) == {"Err": ""}
    assert plugin.call("Path", Name=name) == {"Err": "", "Mountpoint": mountpoint}
    assert plugin.call("Mount", Name=name, ID=user) == {"Err": "", "Mountpoint": mountpoint}
    assert {"Name": name, "Mountpoint": mountpoint} in plugin.call("List")["Volumes"]
    assert plugin.call("Unmount", Name=name, ID=user) == {"Err": ""}
    assert plugin.call("Remove", Name=name) == {"Err": ""}
    assert plugin.refused("Get", Name=name) == f"{name}: no such volume"
    assert plugin.refused("Remove", Name=name) == f"{name}: no such volume"


@pytest.mark.parametrize("opts", [None, {}, {"copyonwrite": "true"}, {"compression": "zstd"}])
def test_create_takes_the_options_that_docker_sends(
    plugin: Daemon, name: str, opts: dict[str, str] | None
) -> None:
    plugin.call("Create", Name=name, Opts=opts)

    cow = plugin.call("Get", Name=name)["Volume"]["Status"]["CopyOnWrite"]
    assert cow is bool(opts)


def test_create_without_opts_and_a_hex_name_is_what_docker_does(plugin: Daemon) -> None:
    plugin.call("Create", Name="0123456789abcdef" * 4)

    assert "0123456789abcdef" * 4 in plugin.names()


def test_get_tells_all_that_docker_shows(plugin: Daemon, volume: str) -> None:
    snapshot = plugin.call("Snapshot", Name=volume)["Snapshot"]
    found = plugin.call("Get", Name=volume)["Volume"]

    assert found["Name"] == volume
    assert found["Mountpoint"] == str(path_of(plugin, volume))
    assert found["Status"] == {"CopyOnWrite": False, "Snapshots": 1, "LastSnapshot": snapshot}
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", found["CreatedAt"]
    )
    age = datetime.now().astimezone() - datetime.fromisoformat(found["CreatedAt"])
    assert -1 < age.total_seconds() < 600


def test_get_of_a_volume_without_snapshots(plugin: Daemon, volume: str) -> None:
    status = plugin.call("Get", Name=volume)["Volume"]["Status"]

    assert status == {"CopyOnWrite": False, "Snapshots": 0, "LastSnapshot": None}


def test_the_time_of_creation_does_not_move_when_files_do(plugin: Daemon, volume: str) -> None:
    before = plugin.call("Get", Name=volume)["Volume"]["CreatedAt"]
    (path_of(plugin, volume) / "file").write_text("x")
    os.utime(path_of(plugin, volume), (0, 0))

    assert plugin.call("Get", Name=volume)["Volume"]["CreatedAt"] == before


@pytest.mark.parametrize("name", ["my old volume", "-rf", "größe", "n" * 200, "a'b\"c", "😀"])
def test_an_oddly_named_volume_of_an_older_version_is_served(plugin: Daemon, name: str) -> None:
    subvolume(path_of(plugin, name), {"file": "mine"})

    assert plugin.call("Create", Name=name) == {"Err": ""}
    assert plugin.call("Get", Name=name)["Volume"]["Name"] == name
    assert plugin.call("Mount", Name=name, ID="x")["Mountpoint"] == str(path_of(plugin, name))
    assert name in plugin.names()
    snapshot = plugin.call("Snapshot", Name=name)["Snapshot"]
    assert plugin.snapshot_names(name) == [snapshot]
    listed = plugin.request(f"VolumeDriver.Snapshot.List/{quote(name)}", method="GET")
    assert listed.json["Snapshots"] == [snapshot]
    plugin.call("Unmount", Name=name, ID="x")
    plugin.call("Remove", Name=name)
    assert name not in plugin.names()


def test_the_list_is_sorted_and_empty_without_volumes(daemon: Daemon) -> None:
    assert daemon.call("List") == {"Err": "", "Volumes": []}

    for name in ("b", "a", "C"):
        daemon.call("Create", Name=name)

    assert daemon.names() == ["C", "a", "b"]


def test_mount_and_unmount_decide_nothing_by_their_ids(plugin: Daemon, volume: str) -> None:
    for body in ({"ID": "one"}, {"ID": "one"}, {}, {"ID": None}, {"ID": ""}):
        assert plugin.call("Mount", Name=volume, **body)["Mountpoint"]
    for body in ({"ID": "unknown"}, {"ID": "one"}, {"ID": "one"}, {}, {"ID": None}):
        plugin.call("Unmount", Name=volume, **body)

    plugin.call("Remove", Name=volume)


def test_unmount_of_a_volume_that_is_gone_is_no_error(plugin: Daemon, name: str) -> None:
    plugin.call("Unmount", Name=name, ID="after live-restore")


def test_mount_of_an_unknown_volume_is_an_error_without_a_mountpoint(
    plugin: Daemon, name: str
) -> None:
    assert plugin.refused("Mount", Name=name, ID="x") == f"{name}: no such volume"
    assert plugin.refused("Path", Name=name) == f"{name}: no such volume"


def test_what_docker_leaves_out_may_be_left_out(plugin: Daemon) -> None:
    for headers in ({}, {"Host": "plugin.moby.localhost"}, {"Content-Type": "text/plain"}):
        answer = plugin.request("VolumeDriver.List", b"{}\n", headers=headers)
        assert (answer.status, answer.error) == (200, "")


def test_one_connection_serves_many_requests(plugin: Daemon) -> None:
    connection = UnixConnection(plugin.path, timeout=60)
    try:
        for _ in range(3):
            connection.request("POST", "/VolumeDriver.List", b"{}\n", {"Host": ""})
            assert b'"Err": ""' in connection.getresponse().read()
            assert connection.sock is not None, "the daemon closed it"
    finally:
        connection.close()


def test_a_knock_without_a_byte_harms_nobody(plugin: Daemon) -> None:
    for _ in range(50):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(plugin.path))

    assert plugin.answers()


# No commands


def test_questions_run_no_command_and_create_runs_one(
    shim: Shim, daemon: Daemon, place: Place
) -> None:
    for number in range(5):
        subvolume(place.volumes / f"old{number}")
    shim.forget()

    daemon.call("Create", Name="db")
    assert [call.split()[:2] for call in shim.calls()] == [["subvolume", "create"]]

    shim.forget()
    daemon.call("Create", Name="db")  # there already
    daemon.call("Get", Name="db")
    daemon.call("Path", Name="db")
    daemon.call("Mount", Name="db", ID="x")
    daemon.call("List")
    daemon.call("Unmount", Name="db", ID="x")
    daemon.call("Snapshot.List")
    daemon.refused("Get", Name="unknown")
    assert shim.calls() == []


# Errors


def test_a_get_with_an_empty_body_is_closed(plugin: Daemon) -> None:
    """Only Docker's retry after a broken connection sends one; any answer makes it forget."""
    assert plugin.is_closed("Get", b"")
    assert plugin.is_closed("Get", b" \n")


@pytest.mark.parametrize("endpoint", [name for name in KEYS if name != "Get"])
@pytest.mark.parametrize("body", [b"", b"{}", b"{}\n"])
def test_an_empty_body_where_a_name_is_needed_is_malformed(
    plugin: Daemon, endpoint: str, body: bytes
) -> None:
    answer = plugin.request(f"VolumeDriver.{endpoint}", body)

    assert (answer.status, answer.error) == (400, "Name is missing")


@pytest.mark.parametrize("endpoint", ["List", "Snapshot.List"])
def test_an_empty_body_where_nothing_is_needed_is_fine(plugin: Daemon, endpoint: str) -> None:
    assert plugin.request(f"VolumeDriver.{endpoint}", b"").status == 200


MALFORMED = [
    b"{",
    b"}",
    b"not json",
    b'"text"',
    b"[]",
    b"null",
    b"1",
    b"true",
    b"[" * 100_000,
    b'{"Name": "x"' * 20_000,
    b"\xff\xfe",
    b"\0",
    b'{"Name": "a\nb"}',
    b"{'Name': 'x'}",
    b'{"Name": "x"} trailing',
    b'{"Name": "x",}',
    b'{"Name": ' + b"9" * 10_000 + b"}",
    b'{"Name": "\xff"}',
    b"Name=x",
    b"<xml/>",
]


@pytest.mark.parametrize("endpoint", ["Create", "Get", "List", "Snapshot.Restore", "Clone"])
@pytest.mark.parametrize("body", MALFORMED, ids=range(len(MALFORMED)))
def test_what_is_no_json_object_is_malformed_and_has_no_effect(
    plugin: Daemon, endpoint: str, body: bytes
) -> None:
    before = plugin.place.tree()

    answer = plugin.request(f"VolumeDriver.{endpoint}", body)

    assert answer.status == 400
    assert answer.error
    assert "\n" not in answer.error
    assert len(answer.error) < 300
    assert plugin.place.tree() == before


@pytest.mark.parametrize("value", [1, True, [], ["x"], {}, {"x": 1}, 1.5, None])
@pytest.mark.parametrize(("endpoint", "key"), [(e, k) for e, ks in KEYS.items() for k in ks])
def test_a_missing_or_mistyped_key_is_malformed_and_named(
    plugin: Daemon, volume: str, endpoint: str, key: str, value: object
) -> None:
    before = plugin.place.tree()
    body = {"Name": volume, "Target": f"{volume}-copy", "ID": "x", key: value}

    answer = plugin.post(endpoint, **body)

    assert answer.status == 400
    assert key in answer.error
    assert plugin.place.tree() == before


@pytest.mark.parametrize(
    ("endpoint", "key", "value"),
    [
        ("Create", "Opts", []),
        ("Create", "Opts", "copyonwrite=true"),
        ("Create", "Opts", 0),
        ("Create", "Opts", False),
        ("Mount", "ID", 1),
        ("Mount", "ID", ["x"]),
        ("Unmount", "ID", {}),
        ("Snapshot.Restore", "Force", "true"),
        ("Snapshot.Restore", "Force", 1),
        ("Snapshot.Restore", "Force", []),
        ("Snapshot.Restore", "Target", 1),
        ("Snapshot.List", "Name", 1),
    ],
)
def test_a_mistyped_optional_key_is_malformed_and_null_is_left_out(
    plugin: Daemon, volume: str, endpoint: str, key: str, value: object
) -> None:
    plugin.call("Snapshot", Name=volume)
    before = plugin.place.tree()
    body: dict[str, object] = {"Name": f"{volume}-new" if endpoint == "Create" else volume}

    answer = plugin.post(endpoint, **(body | {key: value}))

    assert (answer.status, key in answer.error) == (400, True)
    assert plugin.place.tree() == before
    assert plugin.post(endpoint, **(body | {key: None})).error == ""


def test_a_body_that_is_far_too_big_is_refused_in_json(plugin: Daemon) -> None:
    answer = plugin.request("VolumeDriver.Create", b'{"Name": "' + b"x" * (2 << 20) + b'"}')

    assert answer.status in (400, 413)
    assert answer.error


@pytest.mark.parametrize(
    "path",
    [
        "",
        "VolumeDriver.Nonsense",
        "VolumeDriver",
        "VolumeDriver.Get/",
        "VolumeDriver.List/x",
        "volumedriver.get",
        "VolumeDriver.Snapshot.List/",
        "VolumeDriver.Snapshot.List/a/b",
        "VolumeDriver.Snapshot.List//a",
        "VolumeDriver.Snapshot.List/%2Fa",
        "x//VolumeDriver.List",
        "static/x",
        "../etc/passwd",
        "%2e%2e/%2e%2e/etc/passwd",
        "VolumeDriver.Get%00",
        "%ff",
        "favicon.ico",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_unknown_route_is_404_in_json(plugin: Daemon, path: str, method: str) -> None:
    answer = plugin.request(path, b"{}", method)

    assert answer.status == 404
    assert answer.error


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "PATCH", "NONSENSE"])
@pytest.mark.parametrize(
    "endpoint", ["Plugin.Activate", *(f"VolumeDriver.{name}" for name in [*DRIVER, "Snapshot"])]
)
def test_a_wrong_method_is_405_in_json(plugin: Daemon, endpoint: str, method: str) -> None:
    answer = plugin.request(endpoint, b'{"Name": "x"}', method)

    assert answer.status == 405
    assert answer.error
    assert answer.headers["Allow"] == "POST"


@pytest.mark.parametrize("method", ["OPTIONS", "PUT", "DELETE"])
def test_the_list_of_snapshots_takes_get_and_post_only(plugin: Daemon, method: str) -> None:
    for path in ("VolumeDriver.Snapshot.List", "VolumeDriver.Snapshot.List/x"):
        assert plugin.request(path, method=method).status == 405
        assert plugin.request(path, method="GET").json["Snapshots"] is not None


@pytest.mark.parametrize("headers", [{"Host": "a b"}, {"Host": "<x>"}, {"Host": "a/../b:99999"}])
def test_an_odd_host_is_nobodys_business(plugin: Daemon, headers: dict[str, str]) -> None:
    answer = plugin.request("VolumeDriver.List", b"{}", headers=headers)

    assert (answer.status, answer.error) == (200, "")


@pytest.mark.parametrize(
    "request_line", [b"NONSENSE\r\n\r\n", b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n", b"\0\0"]
)
def test_what_is_no_http_harms_nobody(plugin: Daemon, request_line: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(plugin.path))
        client.sendall(request_line)
        client.shutdown(socket.SHUT_WR)
        client.settimeout(60)
        assert b"<html" not in client.recv(65536).lower()

    assert plugin.answers()


def exchanged(plugin: Daemon, request: bytes) -> bytes:
    """All that comes back for these bytes, until the daemon closes the connection."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(str(plugin.path))
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


@pytest.mark.parametrize(
    "target",
    ["/VolumeDriver.Path", "//VolumeDriver.Path", "/VolumeDriver%2EPath", "/VolumeDriver.Path?x=1"],
)
@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_request_may_be_written_in_other_ways(
    plugin: Daemon, volume: str, target: str, version: str, is_chunked: bool
) -> None:
    body = json.dumps({"Name": volume}).encode()
    kind = f"Content-Length: {len(body)}"
    if is_chunked and version == "1.1":
        body, kind = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body), "Transfer-Encoding: chunked"
    head = f"POST {target} HTTP/{version}\r\nHost:\r\nConnection: close\r\n{kind}\r\n\r\n"

    head_of_answer, _, content = exchanged(plugin, head.encode() + body).partition(b"\r\n\r\n")

    assert head_of_answer.startswith(f"HTTP/{version} 200 OK\r\n".encode())
    assert f"Content-Length: {len(content)}".encode() in head_of_answer
    assert json.loads(content)["Mountpoint"].endswith(f"/{volume}")


def test_requests_that_come_at_once_are_answered_in_their_order(
    plugin: Daemon, volume: str
) -> None:
    names = [volume, "unknown", volume, volume, "unknown"]
    requests = b""
    for number, name in enumerate(names):
        body = json.dumps({"Name": name}).encode()
        last = "Connection: close\r\n" if number == len(names) - 1 else ""
        head = f"POST /VolumeDriver.Path HTTP/1.1\r\n{last}Content-Length: {len(body)}\r\n\r\n"
        requests += head.encode() + body

    answers = exchanged(plugin, requests).split(b"HTTP/1.1 200 OK\r\n")[1:]

    assert ["no such volume" in answer.decode() for answer in answers] == [
        name == "unknown" for name in names
    ]


def test_a_request_cut_off_in_its_body_has_no_effect(plugin: Daemon, name: str) -> None:
    body = json.dumps({"Name": name}).encode()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(plugin.path))
        client.sendall(
            b"POST /VolumeDriver.Create HTTP/1.1\r\nHost: \r\nContent-Length: 100\r\n\r\n" + body
        )

    assert plugin.answers()
    assert name not in plugin.names()


@pytest.mark.parametrize(
    "opts",
    [{"colour": "red"}, {"copyonwrite": "maybe"}, {"compression": "true", "copyonwrite": "false"}],
)
def test_options_are_checked_first_and_list_what_is_valid(
    plugin: Daemon, volume: str, opts: dict[str, str]
) -> None:
    for name in (volume, f"{volume}-new", "../bad"):
        error = plugin.refused("Create", Name=name, Opts=opts)
        assert "copyonwrite" in error
        assert "compression" in error or "true, false" in error

    assert f"{volume}-new" not in plugin.names()


@pytest.mark.parametrize("value", ["a\nb", "\ud800", "x" * 10_000])
def test_an_odd_option_neither_breaks_the_log_nor_the_answer(
    plugin: Daemon, name: str, value: str
) -> None:
    answer = plugin.post("Create", Name=name, Opts={"copyonwrite": value})

    assert (answer.status, "\n" in answer.error) == (200, False)
    assert "Logging error" not in plugin.stderr()


def test_hostile_names_make_and_delete_nothing_anywhere(daemon: Daemon, place: Place) -> None:
    daemon.call("Create", Name="v")
    (place.volumes / "v/file").write_text("mine")
    snapshot = daemon.call("Snapshot", Name="v")["Snapshot"]
    subvolume(place.volumes / ".hidden")
    subvolume(place.directory / "x")
    (place.volumes / "link").symlink_to(place.snapshots / snapshot)
    before = place.tree()

    bodies: list[tuple[str, dict[str, object]]] = []
    for hostile in [*HOSTILE, "link", "x", snapshot + "/..", f"{snapshot}/../../volumes/v"]:
        if hostile not in ("x", "link", "-rf", "--help", " ", "%2e%2e"):
            bodies.append(("Create", {"Name": hostile}))
        bodies += [(name, {"Name": hostile, "ID": "x"}) for name in KEYS if name != "Create"]
        bodies += [
            ("Clone", {"Name": hostile, "Target": "copy"}),
            ("Snapshot.Restore", {"Name": hostile, "Target": "copy", "Force": True}),
        ]
        if hostile not in ("x",):
            bodies += [
                ("Clone", {"Name": "v", "Target": hostile}),
                ("Snapshot.Restore", {"Name": snapshot, "Target": hostile, "Force": True}),
                ("Snapshot.Restore", {"Name": "v", "Target": hostile, "Force": True}),
            ]
    for endpoint, body in bodies:
        answer = daemon.post(endpoint, **body)
        assert answer.status in (200, 400), (endpoint, body, answer)
        if endpoint != "Unmount":
            assert answer.error, (endpoint, body, answer)
        assert "\n" not in answer.error

    for hostile in HOSTILE:
        encoded = quote(hostile, safe="", errors="surrogatepass")
        listed = daemon.request(f"VolumeDriver.Snapshot.List/{encoded}", method="GET")
        assert listed.status in (200, 404), (hostile, listed)
        assert not listed.json.get("Snapshots")
        assert not daemon.post("Snapshot.List", Name=hostile).json.get("Snapshots")

    assert place.tree() == before
    assert daemon.names() == ["v"]
    assert not Path("/tmp/pwned").exists()
    assert "Logging error" not in daemon.stderr()


def test_nobody_writes_into_the_log_but_the_daemon(daemon: Daemon) -> None:
    forged = "2026-01-01 00:00:00,000 ERROR forged"
    for endpoint in KEYS:
        if endpoint != "Get":
            daemon.post(endpoint, Name=f"x\n{forged}", Target=f"x\n{forged}")
    daemon.post("Create", Name="x", Opts={"copyonwrite": f"x\n{forged}", f"x\n{forged}": "x"})
    daemon.request(f"VolumeDriver.Snapshot.List/{quote(f'x{chr(10)}{forged}')}", method="GET")
    daemon.request(quote(f"x{chr(10)}{forged}"), method="GET")

    lines = (daemon.stdout() + daemon.stderr()).splitlines()
    assert not [line for line in lines if line.startswith(forged)]


# Snapshots


def test_snapshot_list_restore_and_remove(plugin: Daemon, volume: str) -> None:
    file = path_of(plugin, volume) / "file"
    file.write_text("old")

    snapshot = plugin.call("Snapshot", Name=volume)["Snapshot"]
    file.write_text("new")
    answer = plugin.call("Snapshot.Restore", Name=snapshot)
    backup = answer["VolumeBackup"]

    assert answer == {"Err": "", "Restored": snapshot, "VolumeBackup": backup}
    assert file.read_text() == "old"
    assert plugin.snapshot_names(volume) == [snapshot, backup]
    assert plugin.call("Snapshot.Remove", Name=snapshot) == {"Err": ""}
    assert plugin.snapshot_names(volume) == [backup]
    assert plugin.refused("Snapshot.Remove", Name=snapshot) == f"{snapshot}: no such snapshot"


def test_the_list_of_snapshots_in_all_its_forms(plugin: Daemon, volume: str) -> None:
    other = f"{volume}0"
    plugin.call("Create", Name=other)
    mine = plugin.call("Snapshot", Name=volume)["Snapshot"]
    theirs = plugin.call("Snapshot", Name=other)["Snapshot"]

    for answer in (
        plugin.request("VolumeDriver.Snapshot.List", method="GET"),
        plugin.request("VolumeDriver.Snapshot.List"),
        plugin.post("Snapshot.List", Name=None),
    ):
        assert {mine, theirs} <= set(answer.json["Snapshots"])
    for answer in (
        plugin.request(f"VolumeDriver.Snapshot.List/{volume}", method="GET"),
        plugin.request(f"VolumeDriver.Snapshot.List/{volume}"),
        plugin.post("Snapshot.List", Name=volume),
    ):
        assert answer.json == {"Err": "", "Snapshots": [mine]}
    assert plugin.snapshot_names("unknown") == []


def test_restore_and_clone_into_new_volumes_answer_what_they_made(
    plugin: Daemon, volume: str
) -> None:
    plugin.call("Snapshot", Name=volume)

    restored = plugin.call("Snapshot.Restore", Name=volume, Target=f"{volume}-r")
    cloned = plugin.call("Clone", Name=volume, Target=f"{volume}-c")

    assert "VolumeBackup" not in restored
    assert cloned == {"Err": "", "VolumeCloned": f"{volume}-c"}
    assert {f"{volume}-r", f"{volume}-c"} <= set(plugin.names())
    assert "exists already" in plugin.refused("Clone", Name=volume, Target=f"{volume}-r")


def test_nested_subvolumes_are_warned_of_and_guarded(plugin: Daemon, volume: str) -> None:
    subvolume(path_of(plugin, volume) / "cache")
    btrfs("subvolume", "create", os.fsdecode(bytes(path_of(plugin, volume)) + b"/new\nline \xff"))

    taken = plugin.call("Snapshot", Name=volume)
    cloned = plugin.call("Clone", Name=volume, Target=f"{volume}-c")
    refusal = plugin.refused("Snapshot.Restore", Name=volume)

    for text in (taken["Warning"], cloned["Warning"], refusal):
        assert "cache" in text
        assert "\n" not in text
    assert "force" in refusal
    assert "Logging error" not in plugin.stderr()
    assert plugin.call("Snapshot.Restore", Name=volume, Force=True)["VolumeBackup"]


def test_a_mounted_volume_is_restored_only_by_force(plugin: Daemon, volume: str) -> None:
    plugin.call("Snapshot", Name=volume)
    plugin.call("Mount", Name=volume, ID="one")

    for body in ({}, {"Force": False}, {"Force": None}):
        assert "container" in plugin.refused("Snapshot.Restore", Name=volume, **body)
    assert plugin.call("Snapshot.Restore", Name=volume, Force=True)["VolumeBackup"]
    plugin.call("Unmount", Name=volume, ID="one")
    assert plugin.call("Snapshot.Restore", Name=volume)["VolumeBackup"]


def test_an_incomplete_copy_is_told_of_and_can_be_removed(plugin: Daemon, volume: str) -> None:
    half = f"{volume}@2026-01-01T00:00:00.000000"
    subvolume(plugin.place.snapshots / half)

    listed = plugin.call("Snapshot.List", Name=volume)
    assert listed["Snapshots"] == []
    assert half in listed["Warning"]
    assert "incomplete" in plugin.refused("Snapshot.Restore", Name=half)
    plugin.call("Snapshot.Remove", Name=half)
    assert plugin.call("Snapshot.List", Name=volume) == {"Err": "", "Snapshots": []}


# The filesystem goes away


@pytest.mark.parametrize(
    ("vanish", "come_back"),
    [
        ("mount -t tmpfs tmpfs {volumes}", "umount {volumes}"),
        ("mv {volumes} {volumes}-away", "mv {volumes}-away {volumes}"),
        (
            "mv {volumes} {volumes}-away; ln -s /nowhere {volumes}",
            "rm {volumes}; mv {volumes}-away {volumes}",
        ),
        (
            "mv {volumes} {volumes}-away; touch {volumes}",
            "rm {volumes}; mv {volumes}-away {volumes}",
        ),
    ],
    ids=["hidden", "renamed", "dangling", "file"],
)
def test_without_its_filesystem_the_daemon_gives_no_answer_about_volumes(
    daemon: Daemon, place: Place, vanish: str, come_back: str
) -> None:
    daemon.call("Create", Name="db")
    snapshot = daemon.call("Snapshot", Name="db")["Snapshot"]
    body = json.dumps({"Name": "db", "Target": "copy", "ID": "x"}).encode()
    subprocess.run(vanish.format(volumes=place.volumes), shell=True, check=True)  # noqa: S602
    try:
        for endpoint in OF_THE_VOLUMES:
            for sent in (body, b"", b"{}", b"not json", b"[]"):
                assert daemon.is_closed(endpoint, sent), endpoint
        assert daemon.request("Plugin.Activate").error == ""
        assert daemon.call("Capabilities")["Capabilities"]
        assert daemon.request("VolumeDriver.Nonsense").status == 404
    finally:
        subprocess.run(come_back.format(volumes=place.volumes), shell=True, check=True)  # noqa: S602

    assert daemon.call("Get", Name="db")["Volume"]["Name"] == "db"
    assert daemon.names() == ["db"]
    assert daemon.snapshot_names() == [snapshot]
    assert "missing, or no longer on its BTRFS filesystem" in daemon.stderr()


def test_without_the_snapshots_directory_get_still_answers(daemon: Daemon, place: Place) -> None:
    daemon.call("Create", Name="db")
    place.snapshots.rmdir()
    try:
        assert daemon.call("Get", Name="db")["Volume"]["Name"] == "db"
        assert "snapshot" in daemon.refused("Snapshot", Name="db")
        assert "cannot list the snapshots" in daemon.refused("Snapshot.List")
        assert "cannot list the snapshots" in daemon.refused("Snapshot.Restore", Name="db")
    finally:
        place.snapshots.mkdir()

    assert daemon.snapshot_names() == []


# Many at once


def many(requests: list[tuple[Client, str, dict[str, object]]]) -> list[Answer | NoAnswer]:
    """Send all at the same time, each on its own connection."""

    def send(client: Client, endpoint: str, body: dict[str, object]) -> Answer | NoAnswer:
        try:
            return client.post(endpoint, **body)
        except NoAnswer as error:
            return error

    with ThreadPoolExecutor(len(requests)) as pool:
        return [future.result() for future in [pool.submit(send, *each) for each in requests]]


def errors(answers: list[Answer | NoAnswer]) -> set[str]:
    return {
        answer.error if isinstance(answer, Answer) else "closed without an answer"
        for answer in answers
    }


def test_fifty_creates_at_once_of_one_name(plugin: Daemon, name: str) -> None:
    answers = many([(plugin, "Create", {"Name": name})] * 50)

    assert errors(answers) == {""}
    assert plugin.names().count(name) == 1
    assert plugin.place.own_names() == []


def test_fifty_creates_at_once_of_different_names(plugin: Daemon, name: str) -> None:
    names = {f"{name}-{number}" for number in range(50)}

    answers = many([(plugin, "Create", {"Name": each}) for each in names])

    assert errors(answers) == {""}
    assert names <= set(plugin.names())
    assert plugin.place.own_names() == []


def test_create_and_remove_of_one_name_at_once_leave_it_whole_or_gone(
    plugin: Daemon, name: str
) -> None:
    answers = many(
        [(plugin, endpoint, {"Name": name}) for endpoint in ("Create", "Remove") for _ in range(20)]
    )

    assert errors(answers) <= {"", f"{name}: no such volume"}
    assert plugin.names().count(name) <= 1
    assert plugin.place.own_names() == []


def test_two_hundred_gets_at_once_all_get_their_answer(plugin: Daemon, volume: str) -> None:
    answers = many([(plugin, "Get", {"Name": volume})] * 200)

    assert errors(answers) == {""}


def test_a_thousand_connections_at_once_all_get_their_answer(plugin: Daemon, volume: str) -> None:
    """A dockerd that starts asks about all of its volumes at once."""
    body = json.dumps({"Name": volume}).encode()
    request = (
        b"POST /VolumeDriver.Get HTTP/1.1\r\nHost: \r\nConnection: close\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    )
    clients = [socket.socket(socket.AF_UNIX) for _ in range(1000)]
    try:
        for client in clients:
            client.settimeout(60)
            client.connect(str(plugin.path))
        for client in clients:
            client.sendall(request)
        answers = []
        for client in clients:
            with client.makefile("rb") as file:
                answers.append(file.read())
    finally:
        for client in clients:
            client.close()

    assert len([answer for answer in answers if b'"Err": ""' in answer]) == 1000


def test_idle_connections_hold_up_nobody(plugin: Daemon) -> None:
    clients = [socket.socket(socket.AF_UNIX) for _ in range(200)]
    try:
        for client in clients:
            client.connect(str(plugin.path))
            client.sendall(b"POST /VolumeDriver.List HTTP/1.1\r\n")
        assert plugin.answers()
        assert plugin.call("List")["Volumes"] is not None
    finally:
        for client in clients:
            client.close()


def test_a_slow_operation_on_one_volume_holds_up_no_other(
    shim: Shim, start_daemon: StartDaemon
) -> None:
    daemon = start_daemon()
    daemon.call("Create", Name="slow")
    daemon.call("Create", Name="quick")
    shim.stop_at("*slow*")
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(daemon.call, "Snapshot", Name="slow")
        shim.wait_for_arrival()

        assert daemon.call("Get", Name="slow")["Volume"]
        assert daemon.call("Mount", Name="slow", ID="x")["Mountpoint"]
        assert daemon.names() == ["quick", "slow"]
        assert daemon.call("Snapshot", Name="quick")["Snapshot"]
        assert not slow.done()

        shim.go_on()
        assert slow.result()["Snapshot"]
    daemon.stop()
