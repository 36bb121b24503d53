"""The managed plugin's ssh: its keys, its sshd, and what reaches the other host over it."""

import sys

import pytest

from tests.docker.plugin_harness import SSH, PluginHost
from tests.support.machine import SSH_PORT
from tests.support.wait import wait_until

pytest_plugins = ["tests.docker.plugin_fixtures"]

OTHER_PORT = 2222


def restart(plugin: PluginHost) -> None:
    plugin.disable("--force")
    plugin.enable()


def wait_until_it_listens(plugin: PluginHost, port: int = SSH_PORT) -> None:
    # the entrypoint looks every 5 seconds whether it can start one
    wait_until(lambda: plugin.listens(port), 30, f"sshd to listen on port {port}")


def ssh_files(plugin: PluginHost) -> dict[str, str]:
    """Each file of the ssh directory with owner, group and mode."""
    printed = plugin.machine.run("find", SSH, "-printf", "%P %u:%g %m\n").stdout
    return dict(line.split(" ", 1) for line in printed.splitlines())


def host_key(plugin: PluginHost) -> str:
    return plugin.machine.path(f"{SSH}/ssh_host_ed25519_key").read_text()


def test_nobody_can_log_in_without_authorized_keys(plugin: PluginHost) -> None:
    restart(plugin)

    wait_until(plugin.machine.path(f"{SSH}/config").exists, what="the entrypoint")

    assert ssh_files(plugin) == {"": "root:root 700", "config": "root:root 600"}
    assert plugin.processes("--exact", "sshd") == []
    assert not plugin.listens()
    plugin.machine.write(f"{SSH}/authorized_keys", "")
    wait_until_it_listens(plugin)


def test_sshd_is_started_again_when_it_dies(plugin: PluginHost) -> None:
    plugin.machine.write(f"{SSH}/authorized_keys", "")
    restart(plugin)
    wait_until_it_listens(plugin)

    killed = plugin.processes("--exact", "sshd")
    plugin.machine.run("kill", "-KILL", *map(str, killed))

    wait_until(lambda: plugin.processes("--exact", "sshd") not in ([], killed), 60, "another sshd")
    wait_until_it_listens(plugin)


def test_by_default_new_hosts_are_accepted_and_changed_ones_are_not(plugin: PluginHost) -> None:
    restart(plugin)

    wait_until(plugin.machine.path(f"{SSH}/config").exists, what="the entrypoint")

    assert "stricthostkeychecking accept-new\n" in plugin.inside("ssh", "-G", "anybody")


def test_permissions_are_made_right_and_the_host_key_stays(plugin: PluginHost) -> None:
    plugin.machine.write(f"{SSH}/authorized_keys", "")
    plugin.machine.write(f"{SSH}/config", "Host mine\n")
    plugin.machine.run("mkdir", f"{SSH}/deeper")
    plugin.machine.run("sh", "-c", f"chmod -R 777 {SSH}; chown -R 1000:1000 {SSH}")

    restart(plugin)

    wait_until_it_listens(plugin)
    assert ssh_files(plugin) == {
        "": "root:root 700",
        "authorized_keys": "root:root 600",
        "config": "root:root 600",
        "deeper": "root:root 700",
        "ssh_host_ed25519_key": "root:root 600",
        "ssh_host_ed25519_key.pub": "root:root 600",
    }
    assert plugin.machine.path(f"{SSH}/config").read_text() == "Host mine\n"
    first = host_key(plugin)
    restart(plugin)
    wait_until_it_listens(plugin)
    assert host_key(plugin) == first


def test_a_start_that_was_cut_off_does_not_matter(plugin: PluginHost) -> None:
    plugin.machine.write(f"{SSH}/authorized_keys", "")
    plugin.machine.write(f"{SSH}/.ssh_host_key.new", "half of a k")

    restart(plugin)

    wait_until_it_listens(plugin)
    assert host_key(plugin).endswith("-----END OPENSSH PRIVATE KEY-----\n")
    assert ".ssh_host_key.new" not in ssh_files(plugin)


def test_host_keys_of_one_s_own_are_used(plugin: PluginHost) -> None:
    plugin.machine.write(f"{SSH}/authorized_keys", "")
    own = f"{SSH}/ssh_host_ecdsa_key"
    plugin.machine.run("ssh-keygen", "-qt", "ecdsa", "-N", "", "-f", own)

    restart(plugin)

    wait_until_it_listens(plugin)
    scan = ("ssh-keyscan", "-p", str(SSH_PORT), "127.0.0.1")
    lines = plugin.machine.run(*scan).stdout.splitlines()
    kinds = {line.split()[1] for line in lines if not line.startswith("#")}
    assert kinds == {"ecdsa-sha2-nistp256"}


def test_a_password_opens_nothing(plugin: PluginHost, peer: PluginHost) -> None:
    plugin.machine.write(f"{SSH}/authorized_keys", "")
    restart(plugin)
    wait_until_it_listens(plugin)
    options = ("PubkeyAuthentication=no", "BatchMode=no", "StrictHostKeyChecking=no")

    login = ("ssh", "-p", str(SSH_PORT), *(f"-o{option}" for option in options))
    refused = peer.machine.run(*login, plugin.machine.address, "true", check=False)

    assert refused.returncode == 255
    assert "Permission denied (publickey)." in refused.stderr


def test_a_port_that_is_taken_leaves_the_volumes_alone(plugin: PluginHost) -> None:
    plugin.machine.write(f"{SSH}/authorized_keys", "")
    plugin.disable("--force")
    server = (sys.executable, "-m", "http.server", "--directory=/run", str(SSH_PORT))
    taken = plugin.machine.popen(*server, log=plugin.machine.directory / "taken.log")
    wait_until(plugin.listens, what="another server to listen")

    plugin.enable()

    plugin.create("db")
    assert plugin.run("db:/data", "touch /data/file; ls /data") == "file\n"
    wait_until(
        lambda: f"Bind to port {SSH_PORT} on 0.0.0.0 failed: Address already in use" in plugin.log()
    )
    taken.kill()
    taken.wait(60)
    wait_until_it_listens(plugin)


@pytest.fixture
def pair(plugin: PluginHost, peer: PluginHost) -> tuple[PluginHost, PluginHost]:
    """Two plugins whose sshds listen on a port of their own, and that may log in to each other."""
    plugin.authorize(peer)
    peer.authorize(plugin)
    for host in (plugin, peer):
        host.set(f"SSH_PORT={OTHER_PORT}", "BUTTERVOLUME_TIMER=1")
    for host in (plugin, peer):
        wait_until_it_listens(host, OTHER_PORT)
    return plugin, peer


def test_snapshots_and_files_go_from_plugin_to_plugin(pair: tuple[PluginHost, PluginHost]) -> None:
    here, there = pair
    address = there.machine.address
    assert host_key(here) != host_key(there), "it came with the plugin"

    # a snapshot, and the changes since
    here.create("db")
    here.run("db:/data", "echo one > /data/file")
    first = here.cli("snapshot", "db").stdout.strip()
    here.cli("send", address, first)
    assert (there.snapshot_path(first) / "file").read_text() == "one\n"
    here.run("db:/data", "echo two > /data/other")
    second = here.cli("snapshot", "db").stdout.strip()
    here.cli("send", address, second)
    assert (there.snapshot_path(second) / "other").read_text() == "two\n"
    assert there.cli("snapshots").stdout.split() == [first, second]
    assert f"{second}@{address}" in here.cli("snapshots", "db").stdout.split()

    # files back from there
    there.cli("restore", second, "db")
    there.run("db:/data", "echo three > /data/back")
    here.cli("sync", "db", address)
    assert here.run("db:/data", "cat /data/back") == "three\n"

    # and on a schedule
    here.cli("schedule", f"replicate:{address}", "60", "db")
    wait_until(
        lambda: len(there.cli("snapshots", "db").stdout.split()) == 3,
        timeout=60,
        what="the scheduled replication",
    )
    latest = there.cli("snapshots", "db").stdout.split()[-1]
    assert (there.snapshot_path(latest) / "back").read_text() == "three\n"
