"""From the managed plugin to the daemon and back, with schedule, settings and keys."""

import re
from pathlib import Path

from tests.docker.plugin_harness import CONFIG, NAME, SSH, Built, installed
from tests.support.machine import DATA
from tests.support.manual import text
from tests.support.network import Network

pytest_plugins = ["tests.docker.plugin_fixtures"]

KEY = "/root/.ssh/id_ed25519"


def commands(title: str) -> str:
    """The indented commands that copy things, below a title of the page."""
    page = text("howto/switch")
    found = re.search(rf"^{title}\n=+\n(.*?)(?=^\S[^\n]*\n=+\n|\Z)", page, re.DOTALL | re.MULTILINE)
    assert found, title
    lines = re.findall(r"^ {7}(\S.*)$", found[1], re.MULTILINE)
    assert len(lines) > 1
    return "\n".join(lines)


def test_there_and_back_again(built: Built, network: Network, tmp_path: Path) -> None:
    with installed("gamma", tmp_path, network, built) as host:
        # given a plugin with a volume, a job, a setting in the file, and a key
        host.create("db")
        host.run("db:/data", "echo precious > /data/file")
        snapshot = host.cli("snapshot", "db").stdout.strip()
        host.cli("schedule", "snapshot", "60", "db")
        host.machine.write(f"{CONFIG}/config.ini", "[DEFAULT]\nTIMER = 86400\n")
        host.machine.run("ssh-keygen", "-qt", "ed25519", "-N", "", "-f", f"{SSH}/id_ed25519")
        host.machine.write(f"{SSH}/authorized_keys", "")
        host.machine.write(f"{SSH}/known_hosts", "")
        key = host.machine.path(f"{SSH}/id_ed25519").read_text()

        # when the daemon takes its place
        host.disable("--force")
        host.docker("plugin", "rm", "--force", NAME)
        host.dockerd.restart()
        host.machine.run("umount", "/etc/buttervolume")  # what the tests' machine has there
        host.machine.run("rm", "-r", "/etc/buttervolume")  # and what this host has
        host.machine.run("sh", "-ec", commands("From the plugin to the daemon"))
        daemon = host.machine.start_daemon()
        host.docker("volume", "create", "--driver=btrfs", "db")

        # then all is there
        assert host.cli("scheduled").stdout == "snapshot 60 db\n"
        assert host.cli("snapshots").stdout.split()[0] == snapshot
        assert host.run("db:/data", "cat /data/file") == "precious\n"
        assert host.machine.path(KEY).read_text() == key

        # and when the plugin comes back
        host.cli("schedule", "snapshot", "90", "db")
        host.machine.run("rm", f"{SSH}/id_ed25519", f"{SSH}/id_ed25519.pub")
        assert daemon.stop() == 0
        host.dockerd.restart()
        host.machine.run("sh", "-ec", commands("From the daemon to the plugin"))
        host.create_plugin()
        host.enable()
        host.create("db")

        assert host.cli("scheduled").stdout == "snapshot 90 db\n"
        assert host.run("db:/data", "cat /data/file") == "precious\n"
        assert host.machine.path(f"{SSH}/id_ed25519").read_text() == key
        assert host.machine.path(f"{DATA}/snapshots/{snapshot}/file").exists()
