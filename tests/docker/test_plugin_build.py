"""docker/build.sh, and the root filesystem that it makes."""

import os
import re
from pathlib import Path

from tests.docker.plugin_harness import Built
from tests.support.machine import PATH

pytest_plugins = ["tests.docker.plugin_fixtures"]

MEGABYTE = 1 << 20


def files(root: Path) -> list[Path]:
    return [Path(directory, name) for directory, _, names in os.walk(root) for name in names]


def test_the_root_filesystem_is_small(built: Built) -> None:
    found = {
        (status.st_dev, status.st_ino): status for status in map(os.lstat, files(built.rootfs))
    }

    assert sum(status.st_blocks * 512 for status in found.values()) < 180 * MEGABYTE


def test_nothing_secret_is_in_it(built: Built) -> None:
    shadow = (built.rootfs / "etc/shadow").read_text()

    assert "root:*:" in shadow
    assert re.findall(r"^[^:]+:[^:*!]+:", shadow, re.M) == []
    assert [path for path in files(built.rootfs) if path.name.startswith("ssh_host_")] == []
    keys = "-----BEGIN [A-Z ]*PRIVATE KEY-----"
    grep = ("grep", "-rIlE", "--devices=skip", "--", keys, str(built.rootfs))
    assert built.machine.run(*grep, check=False).stdout == ""


def test_it_holds_nothing_for_nobody(built: Built) -> None:
    leftovers = ("usr/share/man", "usr/share/locale", "var/lib/apt/lists", "var/cache/apt")

    assert [path for name in leftovers for path in files(built.rootfs / name)] == []
    assert not (built.rootfs / ".dockerenv").exists()
    assert not (built.rootfs / "usr/bin/gcc").exists()


def test_it_holds_the_modules_of_the_checkout_compiled(built: Built) -> None:
    (package,) = built.rootfs.glob("usr/local/lib/python3*/dist-packages/buttervolume")

    for module in (built.checkout / "buttervolume").rglob("*.py"):
        installed = package / module.relative_to(built.checkout / "buttervolume")
        assert installed.read_text() == module.read_text()
        (compiled,) = installed.parent.glob(f"__pycache__/{module.stem}.*.pyc")
        seconds = int(installed.stat().st_mtime)
        assert int.from_bytes(compiled.read_bytes()[8:12], "little") == seconds, "it is out of date"


def test_the_man_page_and_the_completion_come_with_it(built: Built) -> None:
    """Both are made from the parser when the package is built."""
    share = built.rootfs / "usr/local/share"
    page = (share / "man/man1/buttervolume.1").read_text()
    completion = (share / "bash-completion/completions/buttervolume").read_text()

    assert re.search(r"^\.SH NAME\nbuttervolume \\- Docker volume plugin", page, re.M)
    for command in ("snapshot", "restore", "purge", "schedule"):
        assert f"buttervolume {command}" in page.replace("\\", "")
        assert f"_shtab_buttervolume_{command}" in completion


def test_building_again_replaces_it_and_touches_no_plugin(built: Built) -> None:
    stale = built.rootfs / "stale"
    stale.touch()
    calls = built.machine.directory / "calls"
    shim = built.machine.directory / "bin/docker"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\necho "$1" >>{calls}\nPATH=${{PATH#*:}} exec docker "$@"\n')
    shim.chmod(0o755)

    printed = built.build("another:tag", path=f"{shim.parent}:{PATH}")

    assert not stale.exists()
    assert (built.rootfs / "entrypoint.sh").exists()
    assert calls.read_text().split() == ["build", "create", "export", "rm"]
    size = re.search(r"^docker/rootfs: ([0-9]+) MB$", printed, re.M)
    assert size
    assert int(size[1]) < 170
    assert built.dockerd.docker("image", "inspect", "another:tag").returncode == 0


def test_a_build_that_fails_leaves_what_was_built_before(built: Built) -> None:
    before = sorted(entry.name for entry in built.directory.iterdir())

    failed = built.machine.run(str(built.directory / "build.sh"), "--no-such-option", check=False)

    assert failed.returncode
    assert "no-such-option" in failed.stderr
    assert sorted(entry.name for entry in built.directory.iterdir()) == before
    assert (built.rootfs / "entrypoint.sh").exists()
