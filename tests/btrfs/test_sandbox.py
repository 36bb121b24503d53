"""The daemon with no more capabilities than docker/buttervolume.service gives it."""

import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.btrfs.harness import REPOSITORY, Daemon, Place, btrfs, subvolume
from tests.support.wait import wait_until

UNIT = REPOSITORY / "docker/buttervolume.service"


def shut_in(*argv: str) -> list[str]:
    """A command with the capabilities of the unit, and no way to get others."""
    text = UNIT.read_text()
    lines = re.findall(r"^CapabilityBoundingSet=(.*)$", text, re.MULTILINE)
    names = [name.removeprefix("CAP_").lower() for line in lines for name in line.split()]
    bounding = ",".join(["-all", *(f"+{name}" for name in names)])
    return ["setpriv", "--inh-caps=-all", f"--bounding-set={bounding}", "--no-new-privs", *argv]


@pytest.fixture
def daemon(place: Place, runtime: Path) -> Iterator[Daemon]:
    daemon = Daemon(place, runtime / "run")
    with daemon._file("out").open("ab") as out, daemon._file("err").open("ab") as err:
        daemon.process = subprocess.Popen(
            shut_in(sys.executable, "-m", "buttervolume", "run"),
            env=daemon.environ,
            stdout=out,
            stderr=err,
        )
    try:
        wait_until(daemon.answers, timeout=60, what="the daemon to answer")
        yield daemon
        daemon.stop()
        assert "Traceback" not in daemon.stderr()
    finally:
        daemon.close()


def test_all_that_is_done_on_this_host_works(daemon: Daemon, place: Place) -> None:
    assert daemon.process is not None
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    assert int(status.partition("CapEff:")[2].split()[0], 16) < (1 << 38) - 1, "it has them all"
    assert status.partition("NoNewPrivs:")[2].split()[0] == "1"

    daemon.call("Create", Name="db", Opts={"compression": "zstd"})
    file = place.volumes / "db/file"
    file.write_text("old")
    os.chown(file, 1234, 1234)
    file.chmod(0o600)
    subvolume(place.volumes / "db/nested")
    snapshot = daemon.call("Snapshot", Name="db")["Snapshot"]
    daemon.call("Snapshot.Restore", Name=snapshot, Force=True)
    daemon.call("Clone", Name="db", Target="copy")
    subvolume(place.volumes / "copy/other")
    daemon.call("Snapshots.Purge", Name="db", Pattern="1m:1m")
    daemon.call("Schedule", Name="db", Action="snapshot", Timer="now")
    for name in ("db", "copy"):
        daemon.call("Remove", Name=name)

    assert daemon.names() == []


def test_the_mounts_of_containers_are_seen(daemon: Daemon, place: Place, runtime: Path) -> None:
    daemon.call("Create", Name="db")
    snapshot = daemon.call("Snapshot", Name="db")["Snapshot"]
    (runtime / "mnt").mkdir()
    mount = f"mount --bind {place.volumes / 'db'} {runtime / 'mnt'} && echo up && exec sleep 60"
    with subprocess.Popen(
        ["unshare", "-m", "sh", "-c", mount], stdout=subprocess.PIPE
    ) as container:
        try:
            assert container.stdout is not None
            assert container.stdout.readline() == b"up\n"
            assert "force" in daemon.refused("Snapshot.Restore", Name=snapshot)
        finally:
            container.kill()


def test_a_copy_can_be_received_whatever_is_in_it(place: Place, runtime: Path) -> None:
    volume = subvolume(place.volumes / "db")
    os.mknod(volume / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mkfifo(volume / "fifo")
    (volume / "program").write_text("x")
    os.chown(volume / "program", 1234, 1234)
    (volume / "program").chmod(0o6755)
    os.setxattr(volume / "program", "trusted.x", b"y")
    btrfs("subvolume", "snapshot", "-r", volume, place.snapshots / "db@1")
    stream = runtime / "stream"
    btrfs("send", "-q", "-f", stream, place.snapshots / "db@1")
    received = place.directory / "received"
    received.mkdir()

    receive = shut_in("btrfs", "receive", "-q", "-C", "-f", str(stream), str(received))
    subprocess.run(receive, check=True)

    copy = received / "db@1"
    assert stat.S_ISCHR((copy / "device").stat().st_mode)
    assert stat.S_IMODE((copy / "program").stat().st_mode) == 0o6755
    assert (copy / "program").stat().st_uid == 1234
    assert os.getxattr(copy / "program", "trusted.x") == b"y"
