"""A bare Debian of any suite, to install things in: its own files, processes and mounts."""

import errno
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

from tests.support.command import run
from tests.support.docker import CACHE, debootstrapped
from tests.support.namespaces import Namespaces, Process

TOP = Path(__file__).parents[2]
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
"""Whom this machine trusts, as PIP_CERT there: the suite's own package would replace the file."""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Debian:
    """What debootstrap makes, as a context manager; it uses the network of this machine.

    It is a real root, not a chroot, so that it can have containers and mounts of its own. All that
    is in it ends with it. Packages that were downloaded are kept for the next one of the suite.
    """

    def __init__(self, suite: str, directory: Path) -> None:
        self.suite = suite
        self.root = directory / f"debian-{suite}"
        self._downloaded = self.root / "var/cache/apt/archives"
        self._kept = CACHE / f"packages-{suite}"

    def __enter__(self) -> Self:
        self.root.mkdir(parents=True)
        run("tar", "-C", str(self.root), "-xf", str(debootstrapped(self.suite)), timeout=300)
        options = ["--mount", "--propagation=private", "--mount-proc", "--uts"]
        self._namespaces = Namespaces(*options, "--pid", "--fork", "--kill-child")
        try:
            self._enter_root()
        except BaseException:
            self._namespaces.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._namespaces.close()
        share_files(self._downloaded, self._kept)
        run("rm", "-rf", "--one-file-system", str(self.root), timeout=300)

    def _enter_root(self) -> None:
        share_files(self._kept, self._downloaded)
        (self.root / "etc/apt/apt.conf.d/99tests").write_text(
            'Binary::apt-get::APT::Keep-Downloaded-Packages "true";\n'
            'APT::Install-Recommends "false";\n'
            'APT::Sandbox::User "root";\n'
        )
        (self.root / "etc/dpkg/dpkg.cfg.d/tests").write_text("force-unsafe-io\n")
        no_services = self.root / "usr/sbin/policy-rc.d"
        no_services.write_text("#!/bin/sh\nexit 101\n")
        no_services.chmod(0o755)
        (self.root / "etc/resolv.conf").unlink(missing_ok=True)
        (self.root / "etc/resolv.conf").write_text(Path("/etc/resolv.conf").read_text())
        if CERTIFICATES.exists():
            (self.root / "etc/tests.crt").write_bytes(CERTIFICATES.read_bytes())
        script = """
            mount --bind "$1" "$1" && cd "$1"
            mount -t proc proc proc && mount --rbind /sys sys && mount --rbind /dev dev
            mount -t tmpfs -o mode=0755 tmpfs run
            mkdir -p old && pivot_root . old && umount -l old && rmdir old
        """
        run(*self._enter, "sh", "-ec", script, "sh", str(self.root))

    def run(self, *argv: str, env: Mapping[str, str] | None = None, timeout: float = 600) -> str:
        """Run a command in directory `/`; its output. A failure is an AssertionError."""
        return run(*self.argv(*argv, env=env), timeout=timeout)

    def argv(self, *argv: str, env: Mapping[str, str] | None = None) -> list[str]:
        """What runs a command in there, in directory `/` and with a clean environment."""
        clean = ["env", "-i", *(f"{name}={value}" for name, value in variables(env).items())]
        return [*self._enter, *clean, *argv]

    def popen(self, *argv: str, log: Path) -> Process:
        """Start a command that runs until it is stopped, or the root closes."""
        with log.open("ab") as output:
            return self._namespaces.popen(*argv, env=variables(), stdout=output, stderr=output)

    def install(self, *packages: str) -> None:
        """Install packages of the suite."""
        self._apt_get("install", *packages)

    def install_build_depends(self, source: str) -> None:
        """Install what a directory of sources needs to be built, as it says itself."""
        self._apt_get("build-dep", source)

    def _apt_get(self, *args: str) -> None:
        self.run("apt-get", "-q", "update")
        self.run("apt-get", "-qy", *args, env={"DEBIAN_FRONTEND": "noninteractive"})

    def path(self, inside: str) -> Path:
        """The path by which the test reaches a file in there."""
        return Path(f"/proc/{self._namespaces.pid}/root") / inside.lstrip("/")

    def packages(self) -> set[str]:
        """The names of what is installed."""
        listed = self.run("dpkg-query", "-f", "${Package} ${db:Status-Abbrev}\\n", "-W")
        return {line.split()[0] for line in listed.splitlines() if line.split()[1:] == ["ii"]}

    @property
    def _enter(self) -> list[str]:
        return ["nsenter", "--all", "--target", str(self._namespaces.pid), "--"]


def copy_checkout(target: Path) -> None:
    """What git has, or will have with the next commit, as `git clone` would copy it."""
    target.mkdir(parents=True)
    listed = run("git", "-C", str(TOP), "ls-files", "--cached", "--others", "--exclude-standard")
    names = [name for name in listed.splitlines() if (TOP / name).exists()]
    archive = target / "checkout.tar"
    run("tar", "-C", str(TOP), "-cf", str(archive), "--no-recursion", "--", *names)
    run("tar", "-C", str(target), "--no-same-owner", "-xf", str(archive))
    archive.unlink()


def share_files(source: Path, target: Path) -> None:
    """Let packages of one directory be in the other, too: as links where that is possible."""
    target.mkdir(parents=True, exist_ok=True)
    for package in source.glob("*.deb"):
        with suppress(FileExistsError):
            try:
                os.link(package, target / package.name)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                shutil.copy2(package, target / package.name)


def variables(env: Mapping[str, str] | None = None) -> dict[str, str]:
    """A clean environment; what says how pip gets its packages on this machine holds there, too."""
    pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    if CERTIFICATES.exists():
        pip["PIP_CERT"] = "/etc/tests.crt"
    return {"PATH": PATH, "HOME": "/root", "LC_ALL": "C.UTF-8"} | pip | dict(env or {})
