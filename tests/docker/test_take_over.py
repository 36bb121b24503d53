"""The managed plugin takes the place of the original, by `docker plugin upgrade`."""

import json
import re
from pathlib import Path
from typing import Any

from tests.docker.plugin_harness import Built, PluginHost
from tests.support.command import run
from tests.support.docker import Dockerd
from tests.support.machine import DATA, Machine
from tests.support.manual import text
from tests.support.wait import wait_until

pytest_plugins = ["tests.docker.plugin_fixtures"]

OURS = "localhost:5000/anybox/buttervolume:latest"
"""Stands for anybox/buttervolume: a registry of the test's own."""
ORIGINAL = "ccomb/buttervolume:latest"
REGISTRY = """
version: 0.1
storage: {filesystem: {rootdirectory: /var/lib/registry}}
http: {addr: "127.0.0.1:5000"}
"""


def original(built: Built, directory: Path) -> Path:
    """A plugin that is declared to Docker as the original is: other mounts, settings with values.

    Inside is our own program: that the files of the original are understood, other tests show.
    """
    run("cp", "--archive", str(built.directory), str(directory), timeout=300)
    (directory / "rootfs/original").touch()  # Docker wants no content twice
    declared: dict[str, Any] = json.loads((directory / "config.json").read_text())
    for variable in declared["Env"]:
        variable["Value"] = {"SSH_PORT": "1122", "BUTTERVOLUME_TIMER": "60"}.get(
            variable["Name"], ""
        )
    declared["Description"] = "the original"
    declared["Env"].append({"Name": "OF_THE_ORIGINAL", "Settable": ["value"], "Value": "1"})
    for mount in declared["Mounts"]:
        mount.pop("Name", None)
    (directory / "config.json").write_text(json.dumps(declared))
    return directory


def commands() -> list[str]:
    """What the manual says to type, with the registry of the test."""
    page = text("howto/take-over")
    found = re.findall(r"^    (docker plugin .*)$", page, re.MULTILINE)
    assert any("plugin upgrade" in command for command in found)
    return [re.sub(r"(?<= )anybox/buttervolume\S*", OURS, command) for command in found]


def test_an_upgrade_takes_over_in_place(built: Built, tmp_path: Path) -> None:
    with Machine("delta", tmp_path) as machine, Dockerd(machine) as dockerd:
        # given the original with a volume, a container that uses it, and a setting
        host = PluginHost(machine, dockerd, built.directory)
        machine.cli("init")
        docker = dockerd.docker
        docker("plugin", "create", ORIGINAL, str(original(built, tmp_path / "original")))
        docker("plugin", "set", ORIGINAL, "SSH_PORT=2222")
        docker("plugin", "enable", ORIGINAL)
        dockerd.busybox_image()
        docker("volume", "create", f"--driver={ORIGINAL}", "--label=shop=1", "db")
        host.start("writer", "db:/data")
        written = host.wait_until_it_writes("writer")
        # and ours in a registry
        machine.write("/etc/docker/registry.yml", REGISTRY)
        registry = tmp_path / "registry.log"
        machine.popen("docker-registry", "serve", "/etc/docker/registry.yml", log=registry)
        docker("plugin", "create", OURS, str(built.directory))
        wait_until(lambda: "listening on" in registry.read_text(), what="the registry")
        docker("plugin", "push", OURS)
        docker("plugin", "rm", OURS)

        for command in commands():
            machine.run("sh", "-ec", command, timeout=120)

        shown = json.loads(docker("plugin", "inspect", ORIGINAL).stdout)[0]
        assert shown["Enabled"]
        assert shown["Config"]["Description"] != "the original"
        assert "SSH_PORT=2222" in shown["Settings"]["Env"]
        assert host.wait_until_it_writes("writer") > written, "the container kept running"
        assert host.labels("db") == {"shop": "1"}
        docker("restart", "--time=0", "writer")
        assert host.wait_until_it_writes("writer") > written
        snapshot = machine.cli(
            "snapshot", "db", env={"BUTTERVOLUME_DRIVERNAME": ORIGINAL}
        ).stdout.strip()
        assert machine.path(f"{DATA}/snapshots/{snapshot}/log").exists()
