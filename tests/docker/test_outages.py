"""Docker and the daemon die, stop and start in every order; the data and Docker's memory stay."""

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.docker.harness import Host
from tests.support.docker import Dockerd
from tests.support.machine import DATA, Machine
from tests.support.wait import wait_until

SOCKET = "/run/docker/plugins/btrfs.sock"


# dockerd ends


def test_dockerd_is_killed_and_finds_its_containers_and_volumes_again(host: Host) -> None:
    host.create("db", "--label=keep=me", "--opt=copyonwrite=true")
    created = host.inspect("db")
    snapshot = host.cli("snapshot", "db").stdout.strip()
    host.start("writer", "db:/data")
    written = host.wait_until_it_writes("writer")

    host.dockerd.kill()
    host.dockerd.start()

    # Without live-restore, Docker ends the containers of its predecessor.
    assert host.inspect("db") == created | {
        "Status": {"CopyOnWrite": True, "Snapshots": 1, "LastSnapshot": snapshot}
    }
    assert "volume is in use" in host.refused("volume", "rm", "db")
    host.docker("start", "writer")
    assert host.wait_until_it_writes("writer") > written
    host.docker("stop", "writer")
    host.cli("restore", "db")
    assert host.run("db:/data", "ls /data") == ""
    host.docker("rm", "writer")
    host.docker("volume", "rm", "db")


def test_with_live_restore_a_container_writes_on_while_dockerd_is_dead(host: Host) -> None:
    with live_restore(host):
        host.create("db", "--label=keep=me")
        host.cli("snapshot", "db")
        host.start("writer", "db:/data")
        host.wait_until_it_writes("writer")

        host.dockerd.kill()
        log = host.path("db") / "log"
        size = log.stat().st_size
        wait_until(lambda: log.stat().st_size > size, what="the container to write on")
        host.dockerd.start()

        host.wait_until_it_writes("writer")
        assert host.labels("db") == {"keep": "me"}
        assert "volume is in use" in host.refused("volume", "rm", "db")
        assert "a container uses this volume" in host.cli("restore", "db", check=False).stderr
        host.docker("stop", "writer")
        host.cli("restore", "db")
        assert host.run("db:/data", "ls /data") == ""


@contextmanager
def live_restore(host: Host) -> Iterator[None]:
    """Let dockerd leave containers alone when it ends, for a while."""
    set_live_restore(host, "true")
    try:
        yield
    finally:
        host.repair()
        set_live_restore(host, "false")


def set_live_restore(host: Host, value: str) -> None:
    host.machine.write("/etc/docker/daemon.json", f'{{"live-restore": {value}}}')
    host.dockerd.process.send_signal(signal.SIGHUP)
    wait_until(
        lambda: host.docker("info", "--format={{.LiveRestoreEnabled}}").stdout.strip() == value,
        what=f"live-restore to be {value}",
    )


def test_dockerd_starts_promptly_with_hundreds_of_volumes(host: Host) -> None:
    """It asks for all of them at once, each on a connection of its own."""
    names = [f"v{number:03}" for number in range(200)]
    host.create_many(names, {"keep": "me"})
    host.create("used")
    host.start("writer", "used:/data")
    host.dockerd.stop()
    heard = len(host.dockerd.log())

    host.dockerd.start()

    said = host.dockerd.log()[heard:]
    assert "Unable to connect to plugin" not in said
    assert "Error restoring volume" not in said
    assert sorted(host.listed()) == ["used", *names]
    assert host.docker("volume", "ls", "--quiet", "--filter=label=keep=me").stdout.split() == names
    host.docker("start", "writer")
    host.wait_until_it_writes("writer")


def test_docker_starts_before_the_daemon_as_at_a_boot_in_the_wrong_order(host: Host) -> None:
    host.create("db", "--label=keep=me")
    options = ["--detach", "--name=server", "--network=none", "--init", "--restart=always"]
    host.docker("run", *options, "--volume=db:/data", "busybox", "sleep", "1000")
    host.dockerd.kill()
    host.daemon.stop()
    heard = len(host.dockerd.log())

    with ThreadPoolExecutor() as pool:
        started = pool.submit(host.dockerd.start)
        wait_until(
            lambda: "Unable to locate plugin: btrfs" in host.dockerd.log()[heard:],
            what="dockerd to miss the daemon",
        )
        host.start_daemon()
        started.result()

    assert host.labels("db") == {"keep": "me"}
    wait_until(
        lambda: "true" in host.docker("inspect", "--format={{.State.Running}}", "server").stdout,
        what="the container to be started again",
    )
    assert host.execute("server", "echo new > /data/file; cat /data/file") == "new\n"


# The daemon ends


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_daemon_ends_under_a_container_and_is_started_again(
    host: Host, how: signal.Signals
) -> None:
    host.create("db", "--label=keep=me")
    host.cli("snapshot", "db")
    host.start("writer", "db:/data")
    host.wait_until_it_writes("writer")

    host.daemon.process.send_signal(how)
    host.daemon.process.wait(60)

    written = host.wait_until_it_writes("writer")
    assert host.cli("snapshots", check=False).returncode == 3
    assert host.machine.path(SOCKET).exists() == (how == signal.SIGKILL)
    host.start_daemon()
    heard = len(host.dockerd.log())
    assert host.listed() == ["db"]
    assert host.labels("db") == {"keep": "me"}
    assert host.wait_until_it_writes("writer") > written
    host.start("other", "db:/data", "sleep 1000")
    assert "Unable to connect to plugin" not in host.dockerd.log()[heard:]
    assert int(host.execute("other", "wc -l < /data/log")) > written
    host.docker("stop", "writer", "other")
    host.cli("restore", "db")
    assert host.run("db:/data", "ls /data") == ""
    host.docker("rm", "writer", "other")
    host.docker("volume", "rm", "db")


def test_the_daemon_comes_back_while_docker_waits_for_it(host: Host) -> None:
    host.create("db", "--label=keep=me")
    host.daemon.kill()
    heard = len(host.dockerd.log())

    with ThreadPoolExecutor() as pool:
        created = pool.submit(host.create, "other")
        wait_until(
            lambda: "Unable to connect to plugin" in host.dockerd.log()[heard:],
            what="docker to miss the daemon",
        )
        host.start_daemon()
        created.result()

    assert sorted(host.listed()) == ["db", "other"]
    assert host.path("other").exists()
    assert host.labels("db") == {"keep": "me"}


def test_a_stopped_daemon_does_not_freeze_docker(host: Host) -> None:
    host.create("db", "--label=keep=me")
    host.docker("volume", "create", "of-another-driver")
    assert host.daemon.stop() == 0

    listed = host.docker("volume", "ls", "--quiet").stdout.split()  # which has a limit

    assert "of-another-driver" in listed
    host.docker("volume", "rm", "of-another-driver")
    host.start_daemon()
    assert host.listed() == ["db"]
    assert host.labels("db") == {"keep": "me"}


def test_a_stopped_daemon_that_docker_never_met_costs_no_time(tmp_path: Path) -> None:
    with Machine("fresh", tmp_path) as machine, Dockerd(machine) as dockerd:
        machine.start_daemon().stop()

        assert dockerd.docker("volume", "ls", "--quiet").stdout == ""

        assert "Unable to" not in dockerd.log()


# The filesystem goes


def test_docker_forgets_nothing_while_the_filesystem_is_away(host: Host) -> None:
    host.create("db", "--label=keep=me")
    host.create("other", "--label=keep=too")
    host.run("db:/data", "echo precious > /data/file")

    with filesystem_away(host), ThreadPoolExecutor() as pool:
        asked = [
            pool.submit(host.docker, "volume", *question, check=False)
            for question in (["inspect", "db"], ["rm", "other"], ["ls"])
        ]
        inspected, removed, _listed = (question.result() for question in asked)

    for answer in (inspected, removed):
        assert answer.returncode
        assert "error while checking" in answer.stderr  # and not "no such volume"
    assert "is missing, or no longer on its BTRFS filesystem" in host.daemon.stderr()
    assert sorted(host.listed()) == ["db", "other"]
    assert host.labels("db") == {"keep": "me"}
    assert host.labels("other") == {"keep": "too"}
    assert host.run("db:/data", "cat /data/file") == "precious\n"


@contextmanager
def filesystem_away(host: Host) -> Iterator[None]:
    """Unmount the daemon's filesystem, which it still has files open on, and bring it back."""
    host.machine.run("sh", "-c", f"mkdir -p /run/keep && mount --bind {DATA} /run/keep")
    host.machine.run("umount", "--lazy", DATA)
    try:
        yield
    finally:
        host.machine.run("mount", "--bind", "/run/keep", DATA)
        host.machine.run("umount", "/run/keep")
