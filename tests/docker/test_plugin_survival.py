"""A container's data through crashes of the plugin and of Docker, and through an upgrade."""

import pytest

from tests.docker.plugin_harness import CONFIG, NAME, SSH, PluginHost
from tests.support.machine import DATA
from tests.support.wait import wait_until

pytest_plugins = ["tests.docker.plugin_fixtures"]


def assert_unbroken(plugin: PluginHost, volume: str) -> None:
    """The container that writes on has written every line, and all of them to the volume."""
    numbers = [int(line) for line in (plugin.path(volume) / "log").read_text().splitlines()]
    assert numbers == list(range(1, len(numbers) + 1))


def test_a_crash_of_the_plugin_is_not_noticed_by_containers(plugin: PluginHost) -> None:
    plugin.create("db", "--label=keep=me")
    plugin.start("writer", "db:/data")
    plugin.wait_until_it_writes("writer")

    plugin.crash()

    plugin.wait_until_it_writes("writer")
    assert plugin.labels("db") == {"keep": "me"}
    plugin.wait_until_it_writes("writer")
    assert plugin.run("db:/data", "touch /data/file; ls /data") == "file\nlog\n"
    assert (plugin.path("db") / "file").exists()
    assert plugin.mounts() == [DATA]
    plugin.docker("stop", "--time=1", "writer")
    assert_unbroken(plugin, "db")


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_a_volume_outlives_dockerd(plugin: PluginHost, end: str) -> None:
    plugin.create("db", "--label=keep=me")
    plugin.start("writer", "db:/data")
    written = plugin.wait_until_it_writes("writer")

    getattr(plugin.dockerd, end)()
    plugin.dockerd.start()

    assert plugin.enabled()
    assert plugin.labels("db") == {"keep": "me"}
    assert plugin.mounts() == [DATA]
    assert_unbroken(plugin, "db")
    plugin.docker("start", "writer")
    wait_until(lambda: plugin.lines("writer") > written, what="the container to write on")
    assert (plugin.path("db") / "log").read_text().count("\n") >= written


def test_what_docker_unmounts_from_under_the_plugin_is_not_missed(plugin: PluginHost) -> None:
    """A Docker that was killed stops a plugin that outlived it and starts it again, but unmounts
    what belonged to the one while the other begins, and now and then too late."""
    plugin.create("db", "--label=keep=me")

    plugin.machine.run("umount", "--lazy", plugin.propagated_mount())

    assert plugin.run("db:/data", "touch /data/file; ls /data") == "file\n"
    assert (plugin.path("db") / "file").exists()
    assert plugin.labels("db") == {"keep": "me"}


def test_a_container_outlives_dockerd_with_live_restore(peer: PluginHost) -> None:
    peer.create("db")
    peer.start("writer", "db:/data")
    peer.wait_until_it_writes("writer")

    peer.dockerd.kill()
    peer.dockerd.start()

    peer.wait_until_it_writes("writer")
    assert peer.mounts() == [DATA]
    snapshot = peer.cli("snapshot", "db").stdout.strip()
    assert (peer.snapshot_path(snapshot) / "log").exists()
    peer.docker("stop", "--time=1", "writer")
    assert_unbroken(peer, "db")
    peer.docker("rm", "writer")
    peer.docker("volume", "rm", "db")


def test_volumes_of_a_daemon_on_the_host_become_the_plugin_s(plugin: PluginHost) -> None:
    """As the manual says to do it; then Docker is started while the plugin does not run."""
    plugin.disable("--force")
    daemon = plugin.machine.start_daemon()
    plugin.docker("volume", "create", "--driver=btrfs", "db")
    plugin.start("writer", "db:/data")
    plugin.wait_until_it_writes("writer")
    assert plugin.docker("volume", "ls", "-q", "-f", "driver=btrfs").stdout == "db\n"
    plugin.docker("rm", "--force", "writer")
    daemon.stop()
    plugin.dockerd.restart()
    plugin.enable()

    plugin.create("db")

    assert plugin.listed() == ["db"]
    plugin.start("writer", "db:/data")
    plugin.wait_until_it_writes("writer")

    plugin.docker("rm", "--force", "writer")
    plugin.disable("--force")
    plugin.dockerd.restart()
    assert plugin.run("db:/data", "ls /data") == "", "Docker has forgotten whose it is"
    plugin.enable()
    assert plugin.inspect("db")["Driver"] == "local"
    plugin.docker("volume", "rm", "db")
    plugin.create("db")
    assert plugin.run("db:/data", "ls /data") == "log\n"


def test_everything_outlives_an_upgrade(plugin: PluginHost) -> None:
    """As the manual says to do it, after a crash, with a container running."""
    plugin.create("db")
    plugin.create("idle")
    plugin.run("idle:/data", "echo hello > /data/greeting")
    plugin.start("writer", "db:/data")
    snapshot = plugin.cli("snapshot", "idle").stdout.strip()
    plugin.cli("schedule", "snapshot", "60", "idle")
    plugin.cli("scheduled", "pause")
    plugin.machine.write(f"{SSH}/authorized_keys", "")
    plugin.machine.write(f"{CONFIG}/config.ini", "[DEFAULT]\nTIMER = 30\n")
    plugin.crash()
    wait_until(plugin.machine.path(f"{SSH}/ssh_host_ed25519_key").exists, what="the host key")
    host_key = plugin.machine.path(f"{SSH}/ssh_host_ed25519_key").read_text()
    old, written = plugin.id, plugin.wait_until_it_writes("writer")

    plugin.disable("--force")
    plugin.docker("plugin", "rm", "--force", NAME)
    assert plugin.mounts() == [DATA]
    assert plugin.lines("writer") >= written
    plugin.create_plugin()
    plugin.enable()

    assert plugin.id != old
    assert plugin.listed() == ["db", "idle"]
    plugin.wait_until_it_writes("writer")
    assert plugin.run("idle:/data", "cat /data/greeting") == "hello\n"
    assert plugin.cli("snapshots").stdout.split() == [snapshot]
    assert plugin.cli("scheduled").stdout == "snapshot 60 idle\n"
    assert plugin.machine.path(f"{CONFIG}/schedule.csv.disabled").exists()
    assert plugin.machine.path(f"{CONFIG}/config.ini").read_text() == "[DEFAULT]\nTIMER = 30\n"
    assert plugin.machine.path(f"{SSH}/ssh_host_ed25519_key").read_text() == host_key
    plugin.docker("stop", "--time=1", "writer")
    assert_unbroken(plugin, "db")
    plugin.docker("start", "writer")
    plugin.wait_until_it_writes("writer")
