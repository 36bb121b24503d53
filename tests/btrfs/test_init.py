"""`buttervolume init`: what it prepares, and that it never formats anything that exists.

Everything happens in a mount namespace of the test's own, so that no mount outlives it.
"""

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from buttervolume.cli.init import CannotInitialize, parse_size
from buttervolume.config import load
from tests.btrfs.harness import BTRFS, REPOSITORY, Place, cli, entries, environment, put
from tests.support.filesystem import make_image, make_loop_node
from tests.support.namespaces import Namespaces

SIZE = 256 << 20


class Host:
    """A mount namespace, and a directory that stands for the root of a machine."""

    def __init__(self, root: Path, namespaces: Namespaces) -> None:
        self.root = root
        self.home = root / "var/lib/buttervolume"
        self.image = root / "var/lib/buttervolume.img"
        self._namespaces = namespaces
        self._have_an_etc_of_its_own()
        self.environ = {
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "BUTTERVOLUME_VOLUMES_PATH": str(self.home / "volumes"),
            "BUTTERVOLUME_SNAPSHOTS_PATH": str(self.home / "snapshots"),
        }

    def _have_an_etc_of_its_own(self) -> None:
        """What is written to /etc is gone at the end, and a daemon of this host left nothing."""
        script = """mount -t tmpfs none /mnt && mkdir /mnt/etc /mnt/work &&
            mount -t overlay none -o lowerdir=/etc,upperdir=/mnt/etc,workdir=/mnt/work /etc &&
            rm -rf /etc/buttervolume"""
        self.environ = dict(os.environ)
        done = self.run("sh", "-c", script)
        assert done.returncode == 0, done

    def run(self, *argv: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the namespace, with these variables added."""
        make_loop_node()
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            process = self._namespaces.popen(
                *argv, env=self.environ | environ, stdout=out, stderr=err
            )
            status = process.wait(60)
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(
                argv, status, out.read().decode(), err.read().decode()
            )

    def init(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "buttervolume", "init", *arguments, **environ)

    def inside(self, path: Path) -> Path:
        """The path by which the test sees what the namespace sees."""
        return Path(f"/proc/{self._namespaces.pid}/root{path}")

    def init_file(self, *arguments: str) -> list[str]:
        """Initialize with the image file, which must succeed; what was said."""
        return said(self.init("--file", str(self.image), "--size", "256M", *arguments))

    def is_mounted(self) -> bool:
        return self.run("findmnt", str(self.home)).returncode == 0

    def unmount(self) -> None:
        assert self.run("umount", str(self.home)).returncode == 0


@pytest.fixture
def host() -> Iterator[Host]:
    with tempfile.TemporaryDirectory(prefix="buttervolume-") as name:
        namespaces = Namespaces("--mount", "--propagation=private")
        try:
            yield Host(Path(name), namespaces)
        finally:
            namespaces.close()


def said(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout.splitlines()


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    assert (done.returncode, done.stdout) == (1, ""), done
    assert done.stderr.startswith("buttervolume: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def uuid(image: Path) -> str:
    return subprocess.run(
        ["blkid", "-o", "value", "-s", "UUID", str(image)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout


# On BTRFS


def test_on_btrfs_it_makes_the_directories(place: Place, runtime: Path) -> None:
    home = place.directory / "home"
    environ = environment(Place(home, home / "volumes", home / "snapshots"), runtime)

    lines = said(cli(["init"], environ))

    assert entries(home) == ["config", "snapshots", "ssh", "volumes"]
    for name in ("snapshots", "ssh", "volumes"):
        assert stat.S_IMODE((home / name).stat().st_mode) == 0o700, "it is nobody's but root's"
    for name in ("config", "snapshots", "ssh", "volumes"):
        assert f"made {home / name}" in lines
    assert not any("fstab" in line for line in lines)


@pytest.mark.parametrize("arguments", [["init"], ["init", "--file"]])
def test_on_btrfs_it_keeps_what_is_there(place: Place, runtime: Path, arguments: list[str]) -> None:
    (place.volumes / "precious").mkdir()
    (place.directory / "config").mkdir()
    (place.directory / "config/config.ini").write_text("[DEFAULT]")
    place.volumes.chmod(0o700)
    said(cli(["init"], environment(place, runtime)))
    before = place.tree()

    lines = said(cli(arguments, environment(place, runtime)))

    assert place.tree() == before
    assert len(lines) == 1
    assert lines[0].startswith(f"{place.directory} is on BTRFS")
    assert ("is not needed" in lines[0]) == ("--file" in arguments)


def test_on_btrfs_an_image_is_not_even_made(place: Place, runtime: Path) -> None:
    image = runtime / "image"

    said(cli(["init", "--file", str(image)], environment(place, runtime)))

    assert not image.exists()


@pytest.mark.parametrize("name", ["config", "volumes", "ssh"])
def test_a_file_in_the_place_of_a_directory_is_told_and_stays(
    place: Place, runtime: Path, name: str
) -> None:
    home = place.directory / "home"
    home.mkdir()
    (home / name).write_text("precious")
    environ = environment(Place(home, home / "volumes", home / "snapshots"), runtime)

    assert str(home / name) in refusal(cli(["init"], environ))
    assert (home / name).read_text() == "precious"


def test_directories_that_share_nothing_are_refused(place: Place, runtime: Path) -> None:
    environ = environment(place, runtime, BUTTERVOLUME_SNAPSHOTS_PATH="/nowhere/snapshots")

    for arguments in (["init"], ["init", "--file", str(runtime / "image")]):
        line = refusal(cli(arguments, environ))
        assert "VOLUMES_PATH" in line
        assert "SNAPSHOTS_PATH" in line
    assert not Path("/nowhere").exists()


# Elsewhere


def test_elsewhere_it_names_the_way_out_and_changes_nothing(host: Host) -> None:
    line = refusal(host.init())

    assert str(host.home) in line
    assert "--file" in line
    assert entries(host.root) == []


def test_with_a_file_it_makes_mounts_and_fills_an_image(host: Host) -> None:
    lines = host.init_file()

    status = host.image.stat()
    assert status.st_size == SIZE
    assert status.st_blocks * 512 < SIZE / 4, "sparse"
    assert stat.S_IMODE(status.st_mode) & 0o077 == 0, "the volumes are nobody's but root's"
    assert entries(host.inside(host.home)) == ["config", "snapshots", "ssh", "volumes"]
    assert any(line.startswith(f"made {host.image}") for line in lines)
    assert f"mounted {host.image} on {host.home}" in lines
    assert entries(host.image.parent) == ["buttervolume", "buttervolume.img"]
    done = host.run(BTRFS, "subvolume", "create", str(host.home / "volumes/db"))
    assert done.returncode == 0, done


def mount_options(host: Host) -> list[str]:
    return host.run("findmnt", "-no", "OPTIONS", str(host.home)).stdout.strip().split(",")


def test_the_fstab_line_mounts_it_again(host: Host) -> None:
    lines = host.init_file()
    options = mount_options(host)
    host.inside(host.home / "volumes/mine").mkdir()
    host.unmount()
    fstab = host.root / "fstab"
    fstab.write_text(f"{lines[lines.index(next(x for x in lines if 'fstab' in x)) + 1]}\n")

    done = host.run("mount", "--fstab", str(fstab), str(host.home))

    assert done.returncode == 0, done
    assert host.inside(host.home / "volumes/mine").is_dir()
    assert mount_options(host) == options
    assert "noatime" in options, "the doctor wants it"


def test_the_fstab_line_bears_blanks_in_names(host: Host) -> None:
    image = host.root / "my image.img"
    environ = {
        "BUTTERVOLUME_VOLUMES_PATH": str(host.root / "my home/volumes"),
        "BUTTERVOLUME_SNAPSHOTS_PATH": str(host.root / "my home/snapshots"),
    }

    lines = said(host.init("--file", str(image), "--size", "256M", **environ))

    fstab = host.root / "fstab"
    fstab.write_text(f"{lines[lines.index(next(x for x in lines if 'fstab' in x)) + 1]}\n")
    assert host.run("umount", str(host.root / "my home")).returncode == 0
    done = host.run("mount", "--fstab", str(fstab), str(host.root / "my home"))
    assert done.returncode == 0, done


def test_twice_is_as_good_as_once(host: Host) -> None:
    host.init_file()
    host.inside(host.home / "volumes/mine").mkdir()
    before = uuid(host.image)

    host.init_file()
    said(host.init())

    assert host.inside(host.home / "volumes/mine").is_dir()
    assert uuid(host.image) == before
    mounts = host.run("findmnt", "-n", str(host.home)).stdout
    assert mounts.count("\n") == 1, "mounted once"


def test_an_image_with_btrfs_is_mounted_as_it_is(host: Host) -> None:
    host.init_file()
    host.inside(host.home / "volumes/mine").mkdir()
    host.unmount()
    before = uuid(host.image)

    lines = said(host.init("--file", str(host.image), "--size", "1G"))

    assert any("used as it is" in line for line in lines)
    assert any("fstab" in line for line in lines)
    assert host.inside(host.home / "volumes/mine").is_dir()
    assert uuid(host.image) == before
    assert host.image.stat().st_size == SIZE


@pytest.mark.parametrize(
    "kind", ["empty", "text", "zeros", "ext4", "directory", "dangling link", "fifo", "socket"]
)
def test_whatever_else_exists_is_refused_and_stays(host: Host, kind: str) -> None:
    host.image.parent.mkdir(parents=True)
    if kind == "ext4":
        make_image(host.image, "ext4", "16M")
    elif kind == "directory":
        host.image.mkdir()
    elif kind == "dangling link":
        host.image.symlink_to(host.root / "nowhere")
    elif kind in ("fifo", "socket"):
        os.mknod(host.image, 0o600 | (stat.S_IFIFO if kind == "fifo" else stat.S_IFSOCK))
    else:
        host.image.write_bytes({"empty": b"", "text": b"mine", "zeros": bytes(1 << 20)}[kind])
    before = host.image.lstat()
    content = host.image.read_bytes() if kind in ("text", "ext4", "zeros") else b""

    line = refusal(host.init("--file", str(host.image)))

    assert str(host.image) in line
    after = host.image.lstat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (
        before.st_ino,
        before.st_size,
        before.st_mtime_ns,
    )
    if content:
        assert host.image.read_bytes() == content
    assert not host.is_mounted()
    assert not (host.root / "nowhere").exists()
    assert set(entries(host.image.parent)) <= {host.image.name, host.home.name}


def test_a_link_to_an_image_with_btrfs_is_an_image_with_btrfs(host: Host) -> None:
    real = make_image(host.root / "real.img", "btrfs", "256M")
    before = uuid(real)
    host.image.parent.mkdir(parents=True)
    host.image.symlink_to(real)

    said(host.init("--file", str(host.image)))

    assert uuid(real) == before


def test_a_broken_btrfs_image_is_refused_by_mount_and_stays(host: Host) -> None:
    host.image.parent.mkdir(parents=True)
    make_image(host.image, "btrfs", "256M")
    with host.image.open("r+b") as file:
        file.seek(0x10000)
        file.write(b"\0" * 32)  # the checksum of the superblock
    content = host.image.read_bytes()

    line = refusal(host.init("--file", str(host.image)))

    assert "cannot mount" in line
    assert host.image.read_bytes() == content


@pytest.mark.parametrize("where", [".", "volumes/db"])
@pytest.mark.parametrize(
    ("kind", "target"), [("file", ""), ("fifo", ""), ("link", "/nowhere"), ("link", "/etc")]
)
def test_a_directory_with_something_in_it_is_not_hidden(
    host: Host, where: str, kind: str, target: str
) -> None:
    directory = host.home / where
    directory.mkdir(parents=True)
    precious = directory / "precious"
    put(precious, kind, target)

    line = refusal(host.init("--file", str(host.image), "--size", "256M"))

    assert str(precious) in line
    assert os.path.lexists(precious)
    assert not host.image.exists()
    assert not host.is_mounted()


def test_empty_directories_may_be_mounted_over(host: Host) -> None:
    (host.home / "volumes").mkdir(parents=True)

    host.init_file()

    assert host.is_mounted()


def test_a_file_in_the_place_of_the_home_is_told_and_no_image_is_made(host: Host) -> None:
    host.home.parent.mkdir(parents=True)
    host.home.write_text("precious")

    line = refusal(host.init("--file", str(host.image), "--size", "256M"))

    assert str(host.home) in line
    assert host.home.read_text() == "precious"
    assert not host.image.exists()


def test_an_image_cannot_be_inside_of_what_it_is_mounted_on(host: Host) -> None:
    host.home.mkdir(parents=True)

    done = host.init("--file", str(host.home / "volumes.img"), "--size", "256M")

    assert done.returncode == 1
    assert "cannot be inside" in done.stderr
    assert not list(host.home.iterdir())


def test_an_image_that_cannot_be_made_is_told_and_leaves_nothing(host: Host) -> None:
    (host.root / "file").write_text("")

    line = refusal(host.init("--file", str(host.root / "file/image"), "--size", "256M"))
    assert str(host.root / "file") in line

    python = ("env", "PATH=/nonexistent", sys.executable, "-m", "buttervolume")
    line = refusal(host.run(*python, "init", "--file", str(host.image), "--size", "256M"))
    assert "mkfs.btrfs" in line
    assert entries(host.image.parent) == [host.home.name]


@pytest.mark.parametrize(
    "size",
    ["255M", "0", "-1G", "1.5G", "10 G", "10GB", "10GiB", "ten", "9" * 30, "1P", "1e9", "٣G"],
)
def test_a_bad_size_is_refused_and_nothing_is_made(host: Host, size: str) -> None:
    line = refusal(host.init("--file", str(host.image), f"--size={size}"))

    assert repr(size) in line
    assert "256M" in line
    assert entries(host.root) == []


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("256M", 256 << 20),
        ("10G", 10 << 30),
        ("1t", 1 << 40),
        ("268435456", 256 << 20),
        ("262144K", 256 << 20),
    ],
)
def test_a_good_size_is_in_bytes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", " ", "M", "G10"])
def test_a_size_without_a_number_is_none(text: str) -> None:
    with pytest.raises(CannotInitialize):
        parse_size(text)


def test_an_empty_size_is_not_quietly_the_default(host: Host) -> None:
    """`--size "$SIZE"` with SIZE unset."""
    done = host.init("--file", str(host.image), "--size", "")

    assert done.returncode in (1, 2), done
    assert not host.image.exists()


# One configuration for both ways of running it


ETC = Path("/etc/buttervolume")


@pytest.fixture
def on_btrfs(place: Place, host: Host) -> Host:
    """A machine whose directory for volumes is on BTRFS, and which has no /etc/buttervolume."""
    host.home = place.directory / "home"
    host.environ |= {
        "BUTTERVOLUME_VOLUMES_PATH": str(host.home / "volumes"),
        "BUTTERVOLUME_SNAPSHOTS_PATH": str(host.home / "snapshots"),
    }
    return host


def test_etc_becomes_a_link_to_the_one_configuration(on_btrfs: Host) -> None:
    lines = said(on_btrfs.init())

    assert os.readlink(on_btrfs.inside(ETC)) == str(on_btrfs.home / "config")
    assert lines[-1] == f"made {ETC}, a link to {on_btrfs.home / 'config'}"
    assert len(said(on_btrfs.init())) == 1


@pytest.mark.parametrize("kind", ["directory", "link"])
def test_an_etc_that_exists_stays_and_is_told(on_btrfs: Host, kind: str) -> None:
    put(on_btrfs.inside(ETC), kind)

    assert said(on_btrfs.init())[-1].startswith(f"{ETC} is kept as it is")
    assert not (on_btrfs.inside(ETC).is_symlink() and kind != "link")


def test_an_etc_that_cannot_be_written_is_told(on_btrfs: Host) -> None:
    on_btrfs.run("mount", "-o", "remount,ro", "/etc")

    assert f"{ETC} cannot be made a link" in said(on_btrfs.init())[-1]
    assert (on_btrfs.home / "volumes").is_dir()


def test_a_schedule_elsewhere_needs_no_link(on_btrfs: Host) -> None:
    said(on_btrfs.init(BUTTERVOLUME_SCHEDULE="/srv/schedule.csv"))

    assert not os.path.lexists(on_btrfs.inside(ETC))


@pytest.mark.parametrize("name", ["annex", "a b", "100%%", "größe"])
def test_another_directory_is_prepared_with_a_configuration_that_says_so(
    place: Place, on_btrfs: Host, name: str
) -> None:
    home = place.directory / name
    lines = said(on_btrfs.init("--path", str(home)))

    assert entries(home) == ["config", "snapshots", "ssh", "volumes"]
    assert not on_btrfs.home.exists()
    assert f"made {home / 'config/config.ini'}, which names the directories" in lines
    config = load({}, home / "config/config.ini")
    assert (config.volumes_path, config.snapshots_path) == (home / "volumes", home / "snapshots")
    assert config.warnings == ()
    assert load({}, on_btrfs.inside(ETC) / "config.ini").volumes_path == home / "volumes"
    assert any("is on BTRFS" in line for line in said(on_btrfs.init("--path", str(home))))


def test_a_configuration_that_is_there_stays_and_the_lines_that_it_needs_are_told(
    place: Place, on_btrfs: Host
) -> None:
    home = place.directory / "annex"
    (home / "config").mkdir(parents=True)
    (home / "config/config.ini").write_text("[DEFAULT]\nTIMER = 5\n")

    lines = said(on_btrfs.init("--path", str(home)))

    assert (home / "config/config.ini").read_text() == "[DEFAULT]\nTIMER = 5\n"
    assert f"VOLUMES_PATH = {home / 'volumes'}" in lines
    assert f"SNAPSHOTS_PATH = {home / 'snapshots'}" in lines


def test_another_directory_must_be_on_btrfs_have_a_sane_name_and_no_image(
    place: Place, on_btrfs: Host
) -> None:
    assert "not on a BTRFS filesystem" in refusal(on_btrfs.init("--path", str(on_btrfs.root)))
    for name in ("a\nb", "a\u2028b", "b "):
        assert "no line" in refusal(on_btrfs.init("--path", str(place.directory / name)))
    done = on_btrfs.init("--path", str(place.directory / "x"), "--file")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--path does not go with --file" in done.stderr
    assert entries(place.directory) == ["snapshots", "volumes"]


def test_a_relative_directory_is_meant_from_here(place: Place, on_btrfs: Host) -> None:
    script = f"cd {place.directory} && exec {sys.executable} -m buttervolume init --path annex"
    said(on_btrfs.run("sh", "-c", script))

    config = load({}, place.directory / "annex/config/config.ini")
    assert config.volumes_path == place.directory / "annex/volumes"
