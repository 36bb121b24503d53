"""The managed plugin, as users of Docker meet it."""

import json
import re

import pytest

from tests.docker.harness import WRITE_ON
from tests.docker.plugin_harness import (
    CONFIG,
    DRIVER,
    NAME,
    SETTINGS,
    SSH,
    PluginHost,
    shell_functions,
)
from tests.support.machine import DATA
from tests.support.wait import wait_until

pytest_plugins = ["tests.docker.plugin_fixtures"]

COMPOSE = """\
version: "3"
services:
  web:
    image: busybox
    network_mode: none
    command: sh -c "echo hello >> /data/greeting"
    volumes:
      - pages:/data
volumes:
  pages:
    driver: anybox/buttervolume:latest
    driver_opts:
      compression: "true"
"""

# Volumes and containers


def test_docker_lists_a_volume_with_the_plugin_as_its_driver(plugin: PluginHost) -> None:
    plugin.create("db", "--label=keep=me")

    assert plugin.listed() == ["db"]
    seen = plugin.inspect("db")
    assert (seen["Driver"], seen["Labels"]) == (DRIVER, {"keep": "me"})
    assert seen["Status"] == {"CopyOnWrite": False, "Snapshots": 0, "LastSnapshot": None}


def test_options_reach_the_volume(plugin: PluginHost) -> None:
    plugin.create("logs", "--opt=compression=lzo")

    show = ("btrfs", "property", "get", f"{DATA}/volumes/logs", "compression")
    assert plugin.machine.run(*show).stdout == "compression=lzo\n"
    assert plugin.inspect("logs")["Status"]["CopyOnWrite"] is True


def test_an_unknown_option_is_refused_by_name(plugin: PluginHost) -> None:
    said = plugin.refused("volume", "create", f"--driver={NAME}", "--opt=color=blue", "db")

    assert "unknown volume option 'color'; valid options: copyonwrite, compression" in said
    assert plugin.listed() == []


def test_a_second_container_finds_the_data_of_the_first(plugin: PluginHost) -> None:
    plugin.create("db")

    plugin.run("db:/data", "echo hello > /data/greeting")

    assert plugin.run("db:/data", "cat /data/greeting") == "hello\n"
    assert (plugin.path("db") / "greeting").read_text() == "hello\n"


def test_docker_run_makes_the_volume(plugin: PluginHost) -> None:
    mount = f"--mount=type=volume,source=db,target=/data,volume-driver={DRIVER}"
    mount += ",volume-opt=copyonwrite=true"

    plugin.docker("run", "--rm", "--network=none", mount, "busybox", "touch", "/data/file")

    assert plugin.inspect("db")["Status"]["CopyOnWrite"] is True
    assert (plugin.path("db") / "file").exists()


def test_an_empty_volume_gets_the_files_of_the_image(plugin: PluginHost) -> None:
    plugin.create("db")

    assert plugin.run("db:/seeded", "cat /seeded/hello", image="seeded") == "hello\n"
    assert (plugin.path("db") / "hello").read_text() == "hello\n"


def test_a_compose_file_makes_the_volume_with_its_options(plugin: PluginHost) -> None:
    plugin.machine.write("/run/compose.yml", COMPOSE)
    compose = ("docker-compose", "--file=/run/compose.yml", "--project-name=site")

    for _ in range(2):
        plugin.machine.run(*compose, "up", timeout=120)
        plugin.machine.run(*compose, "down", timeout=120)

    assert plugin.listed() == ["site_pages"]
    assert plugin.inspect("site_pages")["Status"]["CopyOnWrite"] is True
    assert plugin.run("site_pages:/data", "cat /data/greeting") == "hello\nhello\n"


def test_a_removed_volume_is_gone_and_its_snapshot_is_not(plugin: PluginHost) -> None:
    plugin.create("db")
    snapshot = plugin.cli("snapshot", "db").stdout.strip()

    plugin.docker("volume", "rm", "db")

    assert plugin.listed() == []
    assert not plugin.path("db").exists()
    assert plugin.snapshot_path(snapshot).exists()


# The command line


def test_the_command_line_of_the_host_finds_the_plugin(plugin: PluginHost) -> None:
    assert not plugin.machine.path("/run/docker/plugins/btrfs.sock").exists()
    plugin.create("db")
    plugin.run("db:/data", "echo old > /data/file")

    snapshot = plugin.cli("snapshot", "db").stdout.strip()
    plugin.run("db:/data", "echo new > /data/file")
    plugin.cli("restore", snapshot)

    assert plugin.run("db:/data", "cat /data/file") == "old\n"


def test_the_functions_of_the_manual_run_it_inside_of_the_plugin(plugin: PluginHost) -> None:
    plugin.create("db")
    script = f"{shell_functions()}\nbuttervolume snapshot db && buttervolume snapshots db"

    snapshot, listed = plugin.machine.run("bash", "-c", script).stdout.split()

    assert snapshot == listed
    assert plugin.snapshot_path(snapshot).exists()
    script = f"{shell_functions()}\nbuttervolume rm nothing@2026; echo $?; buttervolume --version"
    failed = plugin.machine.run("sh", "-c", script)
    assert re.fullmatch(r"1\nbuttervolume [0-9]\S+\n", failed.stdout)
    assert "nothing@2026" in failed.stderr


def test_the_functions_of_the_manual_find_the_runc_of_an_old_docker(plugin: PluginHost) -> None:
    """Docker before 20.10 had the plugins' runc elsewhere."""
    machine = plugin.machine
    machine.run("mkdir", "--parents", "/run/shim")
    machine.write("/run/shim/runc", '#!/bin/sh\necho "$@"\n')
    machine.run("chmod", "+x", "/run/shim/runc")
    hide = "mount -t tmpfs none /run/docker/runtime-runc; PATH=/run/shim:$PATH"
    script = f"{hide}\n{shell_functions()}\nbuttervolume snapshots"

    called = machine.run("unshare", "--mount", "sh", "-c", script).stdout

    root = "/run/docker/plugins/runtime-root/plugins.moby"
    assert called == f"--root {root} exec {plugin.id} buttervolume snapshots\n"


# Settings


def test_every_setting_arrives_and_empty_ones_leave_the_defaults(plugin: PluginHost) -> None:
    assert set(plugin.settings().items()) == {(name, "") for name in SETTINGS}
    values = {
        "BUTTERVOLUME_DRIVERNAME": DRIVER,
        "BUTTERVOLUME_VOLUMES_PATH": f"{DATA}/other/volumes",
        "BUTTERVOLUME_SNAPSHOTS_PATH": f"{DATA}/other/snapshots",
        "BUTTERVOLUME_TEST_REMOTE_PATH": f"{DATA}/other/received",
        "BUTTERVOLUME_SCHEDULE": "/etc/buttervolume/jobs.csv",
        "BUTTERVOLUME_RUNPATH": "/run/docker",
        "BUTTERVOLUME_SOCKET": "/run/docker/plugins/btrfs.sock",
        "BUTTERVOLUME_TIMER": "2",
        "BUTTERVOLUME_DTFORMAT": "%Y-%m-%d_%H-%M-%S.%f",
        "BUTTERVOLUME_LOGLEVEL": "DEBUG",
        "BUTTERVOLUME_HISTORY": "/etc/buttervolume/past.sqlite",
        "BUTTERVOLUME_MIN_FREE": "5%",
        "BUTTERVOLUME_WEB": "127.0.0.1:9178",
        "BUTTERVOLUME_WEB_TOKEN": "secret",
        "BUTTERVOLUME_NODE": "alpha",
        "BUTTERVOLUME_PEERS": "alpha,beta",
        "BUTTERVOLUME_NOTIFY": "json://127.0.0.1:1/x",
        "BUTTERVOLUME_KEEP_REMOVED": "2h",
        "SSH_PORT": "2222",
    }
    assert set(values) == set(SETTINGS)

    plugin.set(*(f"{name}={value}" for name, value in values.items()))

    assert (
        values.items()
        <= dict(line.split("=", 1) for line in plugin.inside("env").splitlines()).items()
    )
    plugin.create("db")
    assert plugin.run("db:/data", "touch /data/file; ls /data") == "file\n"
    assert plugin.machine.path(f"{DATA}/other/volumes/db/file").exists()
    snapshot = plugin.cli("snapshot", "db").stdout.strip()
    assert re.fullmatch(r"db@\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d\.\d{6}", snapshot)
    assert plugin.machine.path(f"{DATA}/other/snapshots/{snapshot}").exists()
    plugin.cli("rm", snapshot)
    plugin.docker("volume", "rm", "db")


def test_the_page_and_its_metrics_are_there_by_one_setting(plugin: PluginHost) -> None:
    plugin.create("db")
    plugin.set("BUTTERVOLUME_WEB=127.0.0.1:9178")

    def got(path: str) -> str:
        return plugin.machine.run("curl", "-sS", f"http://127.0.0.1:9178{path}").stdout

    assert got("/health") == "alive\n"
    assert 'href="/volumes/db"' in got("/")
    assert "All is well" in got("/")
    assert "buttervolume_alive 1.0" in got("/metrics")
    assert "--good" in got("/static/style.css")


def test_notices_can_be_sent_from_the_plugin(plugin: PluginHost) -> None:
    plugin.set("BUTTERVOLUME_NOTIFY=json://127.0.0.1:1/x")

    failed = plugin.cli("notify", "--test", check=False)

    assert failed.returncode == 1
    assert "address 1 (json) did not take it" in failed.stderr


def test_the_configuration_file_counts_and_outlives_a_restart(plugin: PluginHost) -> None:
    lines = ("[DEFAULT]", "DTFORMAT = %Y%m%d-%H%M%S", f"VOLUMES_PATH = {DATA}/elsewhere")
    plugin.machine.write(f"{CONFIG}/config.ini", "\n".join(lines))
    plugin.disable("--force")

    plugin.enable()

    plugin.create("db")
    assert re.fullmatch(r"db@\d{8}-\d{6}\n", plugin.cli("snapshot", "db").stdout)
    assert plugin.run("db:/data", "touch /data/file; ls /data") == "file\n"
    assert plugin.machine.path(f"{DATA}/elsewhere/db/file").exists()
    plugin.docker("volume", "rm", "db")
    plugin.machine.run("rm", f"{CONFIG}/config.ini")
    plugin.disable("--force")
    plugin.enable()


@pytest.mark.parametrize(
    ("setting", "value", "problem"),
    [
        ("TIMER", "often", "TIMER = 'often' (environment variable BUTTERVOLUME_TIMER)"),
        ("VOLUMES_PATH", "/srv/volumes", f"VOLUMES_PATH = /srv/volumes: it must be below {DATA}"),
    ],
)
def test_a_setting_that_cannot_be_is_in_the_log(
    plugin: PluginHost, setting: str, value: str, problem: str
) -> None:
    plugin.disable("--force")
    plugin.docker("plugin", "set", NAME, f"BUTTERVOLUME_{setting}={value}")

    said = plugin.docker("plugin", "enable", "--timeout=1", NAME, check=False)

    assert said.returncode
    assert problem in plugin.log()
    wait_until(lambda: not plugin.has_container(), 60, "Docker to have cleared up")


def test_without_the_directories_of_the_host_docker_names_the_first_missing(
    plugin: PluginHost,
) -> None:
    assert f"{CONFIG}: no such file or directory" in plugin.answer_before_init


# The schedule


def test_the_schedule_outlives_a_restart_and_its_snapshots_are_taken(plugin: PluginHost) -> None:
    plugin.create("db")
    plugin.cli("schedule", "snapshot", "60", "db")
    plugin.cli("schedule", "purge:1h:1d", "60", "db")
    plugin.set("BUTTERVOLUME_TIMER=1")

    assert plugin.cli("scheduled").stdout == "snapshot 60 db\npurge:1h:1d 60 db\n"
    assert plugin.machine.path(f"{CONFIG}/schedule.csv").exists()
    snapshots = wait_until(
        lambda: plugin.cli("snapshots", "db").stdout.split(), what="the scheduled snapshot"
    )
    plugin.set("BUTTERVOLUME_TIMER=")
    assert plugin.cli("snapshots", "db").stdout.split()[: len(snapshots)] == snapshots


# Start and stop


def test_it_answers_docker_s_knock_and_ends_at_once(plugin: PluginHost) -> None:
    """Docker kills a plugin that has not ended 10 s after SIGTERM; it knocks 0.5, 3.5, 6.5 and
    9.5 s after a start, and then gives up."""
    plugin.create("db")
    plugin.start("writer", "db:/data")

    with plugin.dockerd.debugging() as said:
        plugin.disable("--force")
        plugin.enable()
        log = said()

    assert "Clean shutdown of plugin" in log
    assert "Force shutdown plugin" not in log
    plugin.wait_until_it_writes("writer")


def test_it_leaves_no_process_when_it_is_disabled_or_has_crashed(plugin: PluginHost) -> None:
    """It has no PID namespace of its own that would take them along."""
    plugin.machine.write(f"{SSH}/authorized_keys", "")

    def disable() -> None:
        plugin.disable("--force")

    for end in (disable, plugin.crash):
        wait_until(lambda: plugin.processes("--exact", "sshd"), 60, "its sshd")
        before = plugin.processes()
        assert len(before) >= 4, "tini, the daemon, sshd and who starts that again"

        end()

        assert [pid for pid in before if plugin.exists(pid)] == []
        if not plugin.enabled():
            plugin.enable()


def test_no_process_is_left_dead(plugin: PluginHost) -> None:
    """Orphans become children of its first process, which must take their exit status."""
    plugin.disable("--force")
    plugin.enable()
    (first,) = plugin.processes("--exact", "tini")
    (starter,) = plugin.processes("--exact", "entrypoint.sh")
    orphan = wait_until(lambda: plugin.processes("--exact", "sleep"), what="it to wait for keys")[0]

    plugin.machine.run("kill", "-KILL", str(starter))

    assert plugin.processes("--exact", "sleep", f"--parent={first}") == [orphan]
    wait_until(lambda: not plugin.exists(orphan), 60, "the orphan to be reaped")
    wait_until(lambda: not plugin.exists(starter), what="its parent to be reaped")
    plugin.disable("--force")
    plugin.enable()


# Who uses a volume


def test_who_uses_a_volume_is_known_whatever_docker_has_told(plugin: PluginHost) -> None:
    users = {"root": [], "somebody": ["--user=1000"], "capable": ["--cap-add=NET_ADMIN"]}
    snapshots, containers = {}, {}
    for name, options in users.items():
        plugin.create(name, "--opt=mode=0777")
        snapshots[name] = plugin.cli("snapshot", name).stdout.strip()
        volume = ("--network=none", f"--volume={name}:/data")
        run = ("run", "--detach", "--init", f"--name={name}", *volume, *options)
        containers[name] = plugin.docker(*run, "busybox", "sh", "-c", WRITE_ON).stdout.strip()
        plugin.wait_until_it_writes(name)

    def forget_by_a_copy() -> None:
        """It sends an Unmount with the id of the container, which runs on."""
        for name in users:
            plugin.docker("cp", f"{name}:/data/log", "-")

    def start_anew() -> None:
        plugin.disable("--force")
        plugin.enable()

    for forget in (forget_by_a_copy, start_anew, plugin.crash):
        forget()
        for name in users:
            refused = plugin.cli("restore", snapshots[name], check=False)
            assert refused.returncode == 1
            assert f"container {containers[name][:12]}" in refused.stderr
        volumes = json.loads(plugin.cli("volumes", "--json").stdout)["Volumes"]
        assert {volume["Name"]: volume["InUse"] for volume in volumes} == dict.fromkeys(users, 1)
    for name in users:
        plugin.wait_until_it_writes(name)

    plugin.docker("rm", "--force", *users)
    for name in users:
        plugin.cli("restore", snapshots[name])
