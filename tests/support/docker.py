"""A Docker daemon of a test's own, inside of a machine."""

import fcntl
import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from tests.support.command import run
from tests.support.machine import Machine
from tests.support.wait import wait_until

CGROUPS = Path("/sys/fs/cgroup")
CACHE = Path("/var/cache/buttervolume-tests")
"""Survives the tests: what took long to make."""
PULL_LIMIT = 30.0
"""Seconds in which a registry must deliver the base image."""


class Dockerd:
    """A dockerd, as a context manager; more options for it may follow the machine.

    It has a filesystem of its own for its images (ext4, so that it uses overlay2), its own
    containerd and no network: containers run with `--network none` or `host`. Everything it
    started ends with the machine at the latest.
    """

    def __init__(self, machine: Machine, *options: str, live_restore: bool = False) -> None:
        self.machine = machine
        self._options = [*options, *(["--live-restore"] if live_restore else [])]
        self._log = machine.directory / "dockerd.log"
        self._cgroup = f"buttervolume-tests-{os.getpid()}-{machine.name}"
        self._dockerd = shutil.which("dockerd") or "/usr/sbin/dockerd"
        beside = (
            Path(self._dockerd).parent / "docker",
            Path(self._dockerd).parents[1] / "bin/docker",
        )
        self._client = next((str(client) for client in beside if client.exists()), "docker")

    def __enter__(self) -> Self:
        remove_cgroups_of_dead_tests()
        self.machine.after_close.callback(remove_cgroups, self._cgroup)
        self.machine.mount_image("/var/lib/docker", "ext4", "16G")
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Kill it: a container may take 10 seconds to stop, the machine's end takes none."""
        self.leave_no_cgroups()
        self.kill()

    def leave_no_cgroups(self) -> None:
        """See that those of the plugins, too, go with the machine."""
        for plugin in self.machine.path("/var/lib/docker/plugins").glob(64 * "[0-9a-f]"):
            self.machine.after_close.callback(remove_cgroups, plugin.name)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.process = self.machine.popen(
            self._dockerd,
            "--bridge=none",
            "--iptables=false",
            "--exec-opt=native.cgroupdriver=cgroupfs",
            f"--cgroup-parent=/{self._cgroup}",
            *self._options,
            log=self._log,
        )
        try:
            wait_until(
                lambda: (
                    self.process.poll() is not None
                    or self.docker("version", check=False).returncode == 0
                ),
                timeout=60,
                what="dockerd to answer",
            )
            assert self.process.returncode is None, "dockerd ended"
        except AssertionError as error:
            error.add_note(self.log())
            raise

    def stop(self) -> None:
        """Stop it as an administrator would; with live-restore, its containers stay."""
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Kill dockerd alone: the kernel kills its containerd; shims and containers stay."""
        self.process.kill()
        self.process.wait(60)

    def restart(self) -> None:
        """Stop it if it still runs, and start it again."""
        self.stop()
        self.start()

    @contextmanager
    def debugging(self) -> Iterator[Callable[[], str]]:
        """Let it say more within the block, and return what it has said since its beginning."""
        settings = self.machine.path("/etc/docker/daemon.json")
        settings.parent.mkdir(exist_ok=True)
        start = len(self.log())

        def reload(debug: bool) -> None:
            heard = len(self.log())
            settings.write_text(json.dumps({"debug": debug}))
            self.process.send_signal(signal.SIGHUP)
            done = "Reloaded configuration"
            wait_until(lambda: done in self.log()[heard:], what="dockerd to read its settings")

        reload(debug=True)
        try:
            yield lambda: self.log()[start:]
        finally:
            reload(debug=False)

    def log(self) -> str:
        """What dockerd has written so far; the plugins' output is in there too."""
        return self._log.read_text()

    def docker(
        self,
        *args: str,
        check: bool = True,
        input: str | None = None,  # noqa: A002 - as subprocess.run calls it
        timeout: float = 120,
    ) -> subprocess.CompletedProcess[str]:
        """Run the docker client that came with this dockerd."""
        return self.machine.run(self._client, *args, check=check, input=input, timeout=timeout)

    # Images

    def busybox_image(self) -> None:
        """Make the image `busybox` from this machine's static one, with all its commands."""
        self.image_with_files("busybox", {})

    def image_with_files(self, name: str, files: Mapping[str, str], *changes: str) -> None:
        """Make an image of busybox and these files, by path: `{"/seeded/hello": "hello\\n"}`.

        The changes are lines of a Dockerfile: `VOLUME /seeded`.
        """
        archive = self.machine.directory / "image.tar"
        write_busybox_archive(archive, files)
        options = [f"--change={change}" for change in ('CMD ["sh"]', *changes)]
        self.docker("import", *options, str(archive), name)
        archive.unlink()

    def debian_base_image(self, suite: str = "trixie") -> str:
        """Have `debian:<suite>-slim`, pulled or else made by debootstrap once; return that name."""
        name = f"debian:{suite}-slim"
        with suppress(AssertionError):
            self.docker("pull", name, timeout=PULL_LIMIT)
            return name
        self.docker("import", '--change=CMD ["bash"]', str(debootstrapped(suite)), name)
        return name


def write_busybox_archive(archive: Path, files: Mapping[str, str]) -> None:
    """Write a tar file of a root filesystem: busybox, a link to it per command, these files."""
    busybox = shutil.which("busybox")
    assert busybox, "the tests need busybox-static"
    commands = run(busybox, "--list").split()
    texts = {"/etc/passwd": "root:x:0:0:root:/root:/bin/sh\n", "/etc/group": "root:x:0:\n"} | dict(
        files
    )
    with tarfile.open(archive, "w") as tar:
        tar.add(Path(busybox).resolve(), "bin/busybox")
        for command in commands:
            if command != "busybox":
                link = tarfile.TarInfo(f"bin/{command}")
                link.type, link.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(link)
        for directory, mode in (("root", 0o700), ("tmp", 0o1777)):
            member = tarfile.TarInfo(directory)
            member.type, member.mode = tarfile.DIRTYPE, mode
            tar.addfile(member)
        for path, text in texts.items():
            member = tarfile.TarInfo(path.lstrip("/"))
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))


def debootstrapped(suite: str) -> Path:
    """The tar file of a minimal Debian, made at the first call, which takes half a minute."""
    CACHE.mkdir(parents=True, exist_ok=True)
    archive = CACHE / f"debian-{suite}.tar"
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one test run makes it, the others wait
        if not archive.exists():
            with tempfile.TemporaryDirectory(dir=CACHE) as directory:
                root, unfinished = Path(directory, "root"), Path(directory, archive.name)
                private = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
                run(*private, "debootstrap", "--variant=minbase", suite, str(root), timeout=900)
                run("tar", "-C", str(root), "-cf", str(unfinished), ".", timeout=900)
                unfinished.rename(archive)
    return archive


def remove_cgroups_of_dead_tests() -> None:
    """Remove what a test that was killed could not."""
    for cgroup in {cgroup.name for cgroup in CGROUPS.glob("**/buttervolume-tests-*")}:
        if not Path("/proc", cgroup.split("-")[2]).exists():
            remove_cgroups(cgroup)


def remove_cgroups(name: str) -> None:
    """Remove these control groups, whose processes have ended, from every hierarchy."""
    for cgroup in CGROUPS.glob(f"**/{name}"):
        for directory, _, _ in os.walk(cgroup, topdown=False):
            with suppress(OSError):
                Path(directory).rmdir()
