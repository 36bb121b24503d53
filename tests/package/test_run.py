"""run.sh on a bare Debian: what it sets up, and that --uninstall takes back just that."""

import re
from pathlib import Path

from tests.support.debian import Debian, copy_checkout
from tests.support.filesystem import make_loop_node
from tests.support.wait import wait_until

SOCKET = "/run/docker/plugins/btrfs.sock"
IMAGE = "/var/lib/buttervolume.img"


def test_run_sets_up_a_machine_and_uninstall_takes_it_back_but_no_data(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    with Debian("bookworm", tmp_path) as host:
        copy_checkout(host.path("/checkout"))
        docker = host.path("/usr/local/bin/docker")  # whoever has a Docker keeps it
        docker.write_text("#!/bin/sh\n")
        docker.chmod(0o755)
        before = host.packages()
        make_loop_node()

        daemon = host.popen("/checkout/run.sh", log=log)
        wait_until(
            lambda: host.path(SOCKET).exists() or daemon.poll() is not None,
            timeout=300,
            what="run.sh to serve",
        )
        assert daemon.poll() is None, log.read_text()

        assert host.packages() > before
        host.run("btrfs", "subvolume", "create", "/var/lib/buttervolume/volumes/db")
        host.path("/var/lib/buttervolume/volumes/db/precious").touch()
        snapshot = host.run("/checkout/.venv/bin/buttervolume", "snapshot", "db").strip()
        refused = host.run("sh", "-c", "/checkout/run.sh --uninstall 2>&1 || echo refused")
        assert "end it first" in refused
        assert refused.endswith("refused\n")
        daemon.terminate()
        assert daemon.wait(60) == 0

        said = host.run("/checkout/run.sh", "--uninstall")

        assert re.search(rf"unmounted /var/lib/buttervolume; .* stay in {IMAGE}", said)
        assert host.packages() == before
        assert not host.path("/checkout/.venv").exists()
        assert not host.path("/checkout/build").exists()
        assert not host.path("/var/lib/buttervolume").exists()
        assert host.path(IMAGE).exists()

        make_loop_node()
        host.run("mount", "-o", "loop", IMAGE, "/mnt")
        assert host.path("/mnt/volumes/db/precious").exists()
        assert host.path(f"/mnt/snapshots/{snapshot}/precious").exists()
