"""A container in real Docker that is hostile: root, with the capabilities that Docker gives."""

import shutil
from pathlib import Path

from tests.docker.harness import SNAPSHOTS, VOLUMES, Host
from tests.support import container
from tests.support.wait import wait_until

PYTHON = str(Path(shutil.which("python3", path="/usr/bin") or "/usr/bin/python3"))
FORGED = "2026-01-01 03:00:00,000 INFO replicate:backup evil: done"


def in_container(host: Host, *options: str, program: tuple[str, ...]) -> str:
    """Run a program of the host, which the container sees, on the volume `evil` at /mnt."""
    return host.docker(
        *("run", "--network=none", *options, "--volume=/:/host:ro", "--volume=evil:/host/mnt"),
        *("busybox", "chroot", "/host", PYTHON, "-I", "-S", *program),
    ).stdout


def deed(host: Host, name: str, *arguments: str) -> str:
    return in_container(host, "--rm", program=(str(container.__file__), name, "/mnt", *arguments))


def received_uuid(host: Host, path: str) -> str:
    shown = host.machine.run("btrfs", "subvolume", "show", path).stdout
    fields = dict(line.strip().split(":", 1) for line in shown.split("\n") if ":" in line)
    return fields["Received UUID"].strip()


def test_an_identity_that_it_forges_does_not_get_into_a_snapshot(host: Host) -> None:
    host.create("evil")
    deed(host, "receive", "0badc0de" * 4)
    assert received_uuid(host, f"{VOLUMES}/evil") != "-"

    snapshot = host.cli("snapshot", "evil").stdout.strip()

    assert received_uuid(host, f"{SNAPSHOTS}/{snapshot}") == "-"


def test_it_can_neither_read_nor_write_what_belongs_to_its_volume(host: Host) -> None:
    host.create("evil", "--opt=keep=3d")
    name = "trusted.buttervolume.keep"
    program = (
        "import os\n"
        f"for deed in (lambda: os.getxattr('/mnt', {name!r}),"
        f" lambda: os.setxattr('/mnt', {name!r}, b'0')):\n"
        "    try:\n        print(deed())\n"
        "    except OSError as error:\n        print(type(error).__name__, error.errno)\n"
    )

    tried = in_container(host, "--rm", program=("-c", program)).splitlines()

    assert len(tried) == 2
    assert all(line.startswith(("OSError", "PermissionError")) for line in tried), tried


def test_however_deep_it_nests_its_volume_is_saved_and_goes(host: Host) -> None:
    host.create("evil")
    deed(host, "nest_deep", "22", "200", "directories")
    deed(host, "nest", f"name\n{FORGED}\x1b[2J")

    taken = host.cli("snapshot", "evil")
    host.docker("volume", "rm", "evil")

    assert taken.stdout.startswith("evil@")
    assert FORGED not in taken.stderr.split("\n")
    assert "\x1b" not in taken.stderr
    assert host.listed() == []


def test_directories_that_it_swaps_for_links_cost_nobody_else_anything(host: Host) -> None:
    host.create("evil")
    host.create("precious")
    host.run("precious:/data", "echo gold > /data/file")
    kept = host.cli("snapshot", "precious").stdout.strip()
    snapshot = host.cli("snapshot", "evil").stdout.strip()
    swap = (str(container.__file__), "swap_forever", "/mnt", f"/host{VOLUMES}", "precious", "100")
    in_container(host, "--detach", "--name=swapping", program=swap)
    wait_until(lambda: "ready" in host.docker("logs", "swapping").stdout, what="the swapping")

    for _ in range(3):
        host.cli("restore", "--force", snapshot)

    assert host.run("precious:/data", "cat /data/file") == "gold\n"
    assert (host.snapshot_path(kept) / "file").read_text() == "gold\n"
