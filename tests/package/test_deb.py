"""The package for Debian: built, installed and removed on bare Debian 12 and 13."""

from pathlib import Path

import pytest

from tests.support.debian import Debian, copy_checkout

UNIT = "/lib/systemd/system/buttervolume.service"


@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_it_is_built_installed_and_removed(suite: str, tmp_path: Path) -> None:
    with Debian(suite, tmp_path / "build") as builder:
        copy_checkout(builder.path("/src/buttervolume"))
        builder.install_build_depends("/src/buttervolume")
        build = "cd /src/buttervolume && dpkg-buildpackage -us -uc -b && cp ../*.deb /"
        builder.run("sh", "-ec", build)
        (built,) = builder.path("/").glob("*.deb")
        deb = tmp_path / built.name
        deb.write_bytes(built.read_bytes())

    with Debian(suite, tmp_path / "host") as host:
        before = host.packages()
        data = host.path("/var/lib/buttervolume/volumes/db")
        data.mkdir(parents=True)
        (data / "precious").touch()
        host.path("/buttervolume.deb").write_bytes(deb.read_bytes())
        host.install("systemd", "man-db", "/buttervolume.deb")

        assert host.run("buttervolume", "--version").startswith("buttervolume 3.")
        for program in ("btrfs", "ssh", "rsync"):
            host.run("which", program)
        assert "NAME" in host.run("man", "--encoding=ascii", "buttervolume")
        completion = "/usr/share/bash-completion/completions/buttervolume"
        assert "snapshots" in host.run("cat", completion)
        assert "ExecStart=/usr/bin/buttervolume run" in host.run("cat", UNIT)
        complaints = host.run("sh", "-c", f"systemd-analyze verify {UNIT} 2>&1 || true")
        assert "buttervolume.service:" not in complaints
        offline = {"SYSTEMD_OFFLINE": "1"}
        enabled = host.run("sh", "-c", "systemctl is-enabled buttervolume || true", env=offline)
        assert enabled.strip() == "disabled"

        host.run("apt-get", "-qy", "purge", "buttervolume")

        assert "buttervolume" not in host.packages()
        assert host.packages() >= before
        left = host.run("sh", "-c", "find / -xdev -name '*buttervolume*' ! -path '/proc/*'")
        assert sorted(left.split()) == ["/buttervolume.deb", "/var/lib/buttervolume"]
        assert (data / "precious").exists()
