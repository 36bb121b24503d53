"""What users do with Docker every day, while the daemon serves the legacy socket."""

import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.docker.harness import VOLUMES, Host
from tests.support.wait import wait_until

# Volumes


def test_a_new_volume_is_a_subvolume_that_docker_knows_all_about(host: Host) -> None:
    earliest = datetime.now(UTC) - timedelta(seconds=1)  # CreatedAt has no fractions

    created = host.docker("volume", "create", "--driver=btrfs", "--label=keep=me", "db").stdout

    assert created == "db\n"
    shown = host.machine.run("btrfs", "subvolume", "show", f"{VOLUMES}/db").stdout
    assert shown.startswith("volumes/db\n")
    assert host.listed() == ["db"]
    seen = host.inspect("db")
    assert earliest <= datetime.fromisoformat(seen.pop("CreatedAt")) <= datetime.now(UTC)
    assert not seen.pop("Options")  # {}, or null in later versions of Docker
    assert seen == {
        "Name": "db",
        "Driver": "btrfs",
        "Mountpoint": f"{VOLUMES}/db",
        "Scope": "local",
        "Labels": {"keep": "me"},
        "Status": {"CopyOnWrite": False, "Snapshots": 0, "LastSnapshot": None},
    }


def test_inspect_tells_of_the_snapshots_and_keeps_the_time_of_creation(host: Host) -> None:
    host.create("db")
    created = host.inspect("db")["CreatedAt"]
    host.run("db:/data", "echo one > /data/file")
    host.cli("snapshot", "db")
    latest = host.cli("snapshot", "db").stdout.strip()

    seen = host.inspect("db")

    assert seen["Status"] == {"CopyOnWrite": False, "Snapshots": 2, "LastSnapshot": latest}
    assert seen["CreatedAt"] == created


def test_a_volume_is_listed_beside_those_of_other_drivers(host: Host) -> None:
    for volume in ("zoo", "ant", "Mid.dle-1_2"):
        host.create(volume)
    host.docker("volume", "create", "local-one")

    every = host.docker("volume", "ls", "--format={{.Driver}} {{.Name}}").stdout.splitlines()

    assert sorted(every) == ["btrfs Mid.dle-1_2", "btrfs ant", "btrfs zoo", "local local-one"]
    host.docker("volume", "rm", "local-one")


@pytest.mark.parametrize(
    ("options", "copy_on_write", "compression"),
    [
        ([], False, None),
        (["copyonwrite=false"], False, None),
        (["copyonwrite=true"], True, None),
        (["compression=true"], True, "zstd"),
        (["compression=zlib"], True, "zlib"),
        (["compression=zstd", "copyonwrite=true"], True, "zstd"),
    ],
)
def test_options_decide_how_the_files_of_containers_are_written(
    host: Host, options: list[str], copy_on_write: bool, compression: str | None
) -> None:
    host.create("db", *(f"--opt={option}" for option in options))

    host.run("db:/data", "echo content > /data/file")

    for path in ("db", "db/file"):
        letters = host.machine.run("lsattr", "-d", f"{VOLUMES}/{path}").stdout.split()[0]
        assert ("C" in letters) is not copy_on_write
        assert compression_of(host.path(path)) == compression
    seen = host.inspect("db")
    assert (seen["Options"] or {}) == dict(option.split("=") for option in options)
    assert seen["Status"]["CopyOnWrite"] is copy_on_write


def compression_of(path: Path) -> str | None:
    """The compression that BTRFS has been asked for in a file or directory."""
    name = "btrfs.compression"
    return os.getxattr(path, name).decode() if name in os.listxattr(path) else None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["color=blue"],
            "unknown volume option 'color'; valid options: copyonwrite, compression",
        ),
        (["copyonwrite=maybe"], "copyonwrite='maybe' is not possible; valid values: true, false"),
        (["compression=gzip"], "valid values: false, true, zlib, lzo, zstd"),
        (["compression=zstd", "copyonwrite=false"], "compression needs copy-on-write"),
    ],
)
def test_docker_shows_what_is_wrong_with_an_option(
    host: Host, options: list[str], message: str
) -> None:
    before = host.entries()

    said = host.refused(
        "volume", "create", "--driver=btrfs", *(f"--opt={option}" for option in options), "db"
    )

    assert message in said
    assert host.entries() == before
    assert host.listed() == []


@pytest.mark.parametrize(
    "name", ["name@1", "../../x", "../snapshots/x", "a/b", ".hidden", "a b", 129 * "x"]
)
def test_a_name_that_could_do_harm_is_refused_and_nothing_is_made(host: Host, name: str) -> None:
    before = host.entries()

    said = host.refused("volume", "create", "--driver=btrfs", name)

    assert f"{name!r} is not allowed as the name of a " in said
    assert host.entries() == before
    assert host.listed() == []


def test_a_container_with_a_name_that_could_do_harm_does_not_start(host: Host) -> None:
    before = host.entries()
    mount = "type=volume,source=../../x@y,target=/data,volume-driver=btrfs"

    said = host.refused("run", "--rm", "--network=none", f"--mount={mount}", "busybox", "true")

    assert "../../x@y" in said
    assert host.entries() == before


def test_to_create_a_volume_again_changes_nothing(host: Host) -> None:
    host.create("db", "--label=keep=me")
    host.run("db:/data", "echo precious > /data/file")

    for option in ("--label=keep=me", "--opt=copyonwrite=true"):
        assert host.docker("volume", "create", "--driver=btrfs", option, "db").stdout == "db\n"

    assert host.run("db:/data", "cat /data/file") == "precious\n"
    assert host.labels("db") == {"keep": "me"}
    assert host.inspect("db")["Status"]["CopyOnWrite"] is False


def test_many_clients_create_volumes_at_once_some_of_them_the_same(host: Host) -> None:
    script = (
        'for i in $(seq 20); do docker volume create -d btrfs v$((i % 10)) & pids="$pids $!"; done;'
        "for pid in $pids; do wait $pid || exit 1; done"
    )

    host.machine.run("sh", "-c", script)

    assert sorted(host.listed()) == [f"v{i}" for i in range(10)]


def test_a_volume_that_docker_has_not_made_can_be_used(host: Host) -> None:
    """As those of older versions are, on a machine that was installed anew."""
    host.machine.run("btrfs", "subvolume", "create", f"{VOLUMES}/old")
    (host.path("old") / "file").write_text("from former times\n")

    assert host.listed() == ["old"]
    assert host.run("old:/data", "cat /data/file") == "from former times\n"
    host.docker("volume", "rm", "old")

    assert not host.path("old").exists()


def test_a_volume_that_was_removed_is_shown_again_as_soon_as_it_is_back(host: Host) -> None:
    host.create("db", "--opt=keep=2h")
    host.run("db:/data", "echo mine > /data/file")
    host.docker("volume", "rm", "db")
    assert host.listed() == []

    host.cli("undelete", "db")

    assert host.listed() == ["db"]
    assert host.run("db:/data", "cat /data/file") == "mine\n"


def test_an_unknown_volume_is_reported_as_such(host: Host) -> None:
    assert "no such volume" in host.refused("volume", "inspect", "nothing").lower()
    assert "no such volume" in host.refused("volume", "rm", "nothing").lower()


# Containers


def test_two_containers_share_a_volume(host: Host) -> None:
    host.create("db")
    host.start("writer", "db:/data")
    host.start("reader", "db:/data:ro", "sleep 1000")

    first = host.wait_until_it_writes("writer")

    assert int(host.execute("reader", "wc -l < /data/log")) >= first
    wait_until(
        lambda: int(host.execute("reader", "wc -l < /data/log")) > first,
        what="the reader to see what the writer writes",
    )
    assert "Read-only" in host.refused("exec", "reader", "touch", "/data/x")
    host.docker("rm", "--force", "writer")
    assert int(host.execute("reader", "wc -l < /data/log")) >= first


def test_a_new_volume_is_filled_with_the_files_of_the_image_once(host: Host) -> None:
    host.create("app")

    seen = host.run("app:/seeded", "cat /seeded/hello /seeded/deep/er", image="seeded")
    host.run("app:/seeded", "echo changed > /seeded/hello; rm -r /seeded/deep", image="seeded")

    assert seen == "hello\ndown\n"
    assert host.run("app:/seeded", "cat /seeded/hello; ls /seeded", image="seeded") == (
        "changed\nhello\n"
    )


def test_a_new_volume_takes_the_mode_of_the_directory_it_covers(host: Host) -> None:
    host.create("scratch")
    options = ["--rm", "--network=none", "--user=1000:1000", "--volume=scratch:/tmp"]

    host.docker("run", *options, "busybox", "touch", "/tmp/mine")

    assert host.path("scratch").stat().st_mode & 0o7777 == 0o1777
    assert (host.path("scratch") / "mine").stat().st_uid == 1000


def test_a_volume_is_made_by_the_mount_option_of_run(host: Host) -> None:
    mount = "type=volume,source=db,target=/data,volume-driver=btrfs,volume-opt=copyonwrite=true"

    host.docker(
        "run", "--rm", "--network=none", f"--mount={mount}", "busybox", "touch", "/data/file"
    )

    assert host.listed() == ["db"]
    assert host.inspect("db")["Status"]["CopyOnWrite"] is True
    assert (host.path("db") / "file").exists()


def test_a_volume_without_a_name_lives_as_long_as_its_container(host: Host) -> None:
    options = ["--network=none", "--volume-driver=btrfs", "--volume=/data"]
    host.docker("run", "--name=once", *options, "busybox", "touch", "/data/file")

    [name] = host.listed()

    assert re.fullmatch("[0-9a-f]{64}", name)
    assert (host.path(name) / "file").exists()
    host.docker("rm", "--volumes", "once")
    assert host.listed() == []
    assert not host.path(name).exists()


def test_a_volume_that_the_image_declares_is_filled_and_goes_with_the_container(host: Host) -> None:
    options = ["--rm", "--network=none", "--volume-driver=btrfs"]

    seen = host.docker("run", *options, "seeded", "sh", "-c", "cat /seeded/hello; mount").stdout

    assert seen.startswith("hello\n")
    assert re.search(r" on /seeded type btrfs .*/volumes/[0-9a-f]{64}\b", seen)
    assert host.listed() == []


def test_files_copied_in_by_docker_are_there_and_the_container_writes_on(host: Host) -> None:
    """`docker cp` mounts and unmounts the volume under the id of the running container."""
    host.create("db")
    host.start("writer", "db:/data")
    host.wait_until_it_writes("writer")

    copy_in(host, "writer", "copied\n")
    copied_out = host.docker("cp", "writer:/data/file", "-").stdout

    assert "copied" in copied_out
    assert host.execute("writer", "cat /data/file") == "copied\n"
    host.wait_until_it_writes("writer")
    assert "in use" in host.refused("volume", "rm", "db")
    host.docker("stop", "writer")
    assert host.run("db:/data", "cat /data/file") == "copied\n"


def copy_in(host: Host, container: str, text: str) -> None:
    file = host.machine.directory / "file"
    file.write_text(text)
    host.docker("cp", str(file), f"{container}:/data/file")


def test_a_volume_in_use_cannot_be_removed(host: Host) -> None:
    host.create("db")
    host.start("writer", "db:/data")
    host.wait_until_it_writes("writer")

    assert "volume is in use" in host.refused("volume", "rm", "db")
    assert "volume is in use" in host.refused("volume", "rm", "--force", "db")
    host.wait_until_it_writes("writer")
    host.docker("stop", "writer")
    assert "volume is in use" in host.refused("volume", "rm", "db")

    host.docker("rm", "writer")
    assert host.docker("volume", "rm", "db").stdout == "db\n"
    assert not host.path("db").exists()


def test_a_volume_is_removed_with_the_subvolumes_that_a_container_made_in_it(host: Host) -> None:
    host.create("db")
    host.start("writer", "db:/data")
    host.machine.run("btrfs", "subvolume", "create", f"{VOLUMES}/db/inner")
    host.machine.run("btrfs", "subvolume", "create", f"{VOLUMES}/db/inner/most")
    assert host.execute("writer", "echo deep > /data/inner/most/file; ls /data/inner") == "most\n"
    host.docker("rm", "--force", "writer")

    host.docker("volume", "rm", "db")

    assert not host.path("db").exists()
    assert host.listed() == []


# Snapshots, restore, clone


def test_a_restore_between_two_runs_brings_the_old_data_back(host: Host) -> None:
    host.create("db", "--label=keep=me")
    host.run("db:/data", "echo old > /data/file")
    snapshot = host.cli("snapshot", "db").stdout.strip()
    host.run("db:/data", "echo new > /data/file; touch /data/more")

    backup = host.cli("restore", "db").stdout.strip()

    assert host.run("db:/data", "cat /data/file; ls /data") == "old\nfile\n"
    assert host.labels("db") == {"keep": "me"}
    assert host.cli("snapshots", "db").stdout.splitlines() == [snapshot, backup]
    host.cli("restore", backup)
    assert host.run("db:/data", "cat /data/file; ls /data") == "new\nfile\nmore\n"


def test_a_snapshot_of_a_volume_in_use_holds_what_was_written_until_then(host: Host) -> None:
    host.create("db")
    host.start("writer", "db:/data")
    before = host.wait_until_it_writes("writer")

    snapshot = host.cli("snapshot", "db").stdout.strip()
    host.wait_until_it_writes("writer")

    assert before <= lines_in(host, snapshot) < host.lines("writer")


def lines_in(host: Host, snapshot: str) -> int:
    """How many lines a container that writes on had written when the snapshot was taken."""
    return len((host.snapshot_path(snapshot) / "log").read_text().splitlines())


def test_a_removed_volume_comes_back_from_its_snapshot(host: Host) -> None:
    host.create("db")
    host.run("db:/data", "echo old > /data/file")
    host.cli("snapshot", "db")
    host.docker("volume", "rm", "db")

    assert host.cli("restore", "db").stdout == ""

    assert host.listed() == ["db"]
    assert host.run("db:/data", "cat /data/file") == "old\n"


def test_a_volume_in_use_is_restored_only_by_force(host: Host) -> None:
    host.create("db")
    host.run("db:/data", "echo old > /data/file")
    host.cli("snapshot", "db")
    host.start("writer", "db:/data")
    written = host.wait_until_it_writes("writer")

    refused = host.cli("restore", "db", check=False)

    assert refused.returncode == 1
    assert "db: a container uses this volume" in refused.stderr
    assert len(host.cli("snapshots", "db").stdout.splitlines()) == 1
    assert host.wait_until_it_writes("writer") > written

    backup = host.cli("restore", "--force", "db").stdout.strip()
    host.docker("restart", "--time=0", "writer")
    assert host.execute("writer", "cat /data/file") == "old\n"
    assert lines_in(host, backup) >= written


def test_a_volume_that_was_in_use_can_be_restored(host: Host) -> None:
    host.create("db")
    host.cli("snapshot", "db")
    host.start("writer", "db:/data")
    host.wait_until_it_writes("writer")
    host.docker("stop", "writer")

    host.cli("restore", "db")

    assert host.run("db:/data", "ls /data") == ""
    host.docker("start", "writer")
    host.wait_until_it_writes("writer")


def test_docker_cp_does_not_make_a_volume_look_unused(host: Host) -> None:
    """Docker has said that it unmounts the volume; the kernel knows better."""
    host.create("db")
    host.cli("snapshot", "db")
    host.start("writer", "db:/data")
    copy_in(host, "writer", "copied\n")
    written = host.wait_until_it_writes("writer")

    refused = host.cli("restore", "db", check=False)

    assert refused.returncode == 1
    assert "a container uses this volume" in refused.stderr
    assert host.wait_until_it_writes("writer") > written


def test_a_new_daemon_knows_of_the_containers_that_run(host: Host) -> None:
    host.create("db")
    host.cli("snapshot", "db")
    host.start("writer", "db:/data")
    host.wait_until_it_writes("writer")

    host.daemon.stop()
    host.start_daemon()

    refused = host.cli("restore", "db", check=False)
    assert refused.returncode == 1
    assert "a container uses this volume" in refused.stderr
    host.docker("kill", "writer")
    host.cli("restore", "db")


def test_a_clone_lives_on_by_itself_in_another_container(host: Host) -> None:
    host.create("db")
    host.start("original", "db:/data")
    before = host.wait_until_it_writes("original")

    assert host.cli("clone", "db", "copy").stdout == "copy\n"

    host.start("other", "copy:/data", "sleep 1000")
    copied = int(host.execute("other", "wc -l < /data/log"))
    assert copied >= before
    assert host.wait_until_it_writes("original") > copied
    host.execute("other", "rm /data/log")
    host.wait_until_it_writes("original")
    assert sorted(host.listed()) == ["copy", "db"]
    assert host.docker("volume", "create", "--driver=btrfs", "copy").stdout == "copy\n"
    host.docker("rm", "--force", "original", "other")
    host.docker("volume", "rm", "db")
    assert host.run("copy:/data", "touch /data/x; ls /data") == "x\n"


def test_the_life_of_a_volume_leaves_no_warning_in_either_log(host: Host) -> None:
    daemon, dockerd = len(host.daemon.stderr()), len(host.dockerd.log())

    host.create("db", "--opt=compression=true")
    host.run("db:/seeded", "cat /seeded/hello", image="seeded")
    host.cli("snapshot", "db")
    host.cli("restore", "db")
    host.docker("volume", "rm", "db")

    assert host.daemon.stderr()[daemon:] == ""
    complaints = re.findall(r"level=(?:warning|error).*", host.dockerd.log()[dockerd:])
    assert [line for line in complaints if "btrfs" in line or "olume" in line] == []
