"""`buttervolume init`: prepare the place for volumes and snapshots; never format what exists."""

import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from buttervolume.config import CONFIG_FILE, Config
from buttervolume.errors import ButtervolumeError, CommandFailed, NotOnBtrfs, OperationFailed
from buttervolume.system import btrfs, command

DEFAULT_SIZE = "10G"
OPTIONS = "loop,noatime"
"""Of the mount: without noatime, reading writes what every snapshot then keeps."""
_SMALLEST = 256 << 20  # mkfs.btrfs wants 109 MiB at the least, which leaves next to nothing
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_MAGIC, _MAGIC_OFFSET = b"_BHRfS_M", 0x10040  # of the first superblock, btrfs(5)


class CannotInitialize(ButtervolumeError):
    """The place is not as `init` can use it; nothing was changed."""


def parse_size(text: str) -> int:
    """A size in bytes from a whole number with K, M, G or T behind it; raises CannotInitialize."""
    match = re.fullmatch(r"([0-9]{1,15})([KMGT]?)", text.strip().upper())
    size = int(match[1]) * _UNITS[match[2]] if match else 0
    if not _SMALLEST <= size < 1 << 60:
        raise CannotInitialize(f"size {text!r}: write a number with M, G or T, 256M at the least")
    return size


def initialize(
    config: Config,
    image: Path | None = None,
    size: str = DEFAULT_SIZE,
    home: Path | None = None,
) -> list[str]:
    """Make the directories on BTRFS, on a mounted image file if one is given; say what was done.

    With a `home`, that is prepared instead of the configured directories, with a configuration of
    its own. Raises NotOnBtrfs without an image where there is no BTRFS, CannotInitialize,
    OperationFailed.
    """
    if home is not None:
        config = _at(config, home.absolute())
    settings = _settings(config) if home is not None else ""
    home = _common_directory(config)
    wanted = parse_size(size)
    if image is None or _is_on_btrfs(home):
        if not _is_on_btrfs(home):
            raise NotOnBtrfs(f"{home} is not on a BTRFS filesystem")
        said = [f"{home} is on BTRFS" + (f": {image} is not needed" if image else "")]
    else:
        said = _mount_image(image.absolute(), home, wanted)
    directories = [config.volumes_path, config.snapshots_path, home / "config", home / "ssh"]
    for path in directories:
        if not path.is_dir():
            _make_directory(path, 0o755 if path.name == "config" else 0o700)
            said.append(f"made {path}")
    if settings:
        said += _configure(home / "config" / CONFIG_FILE.name, settings)
    return said + _link(config, home / "config")


def _at(config: Config, home: Path) -> Config:
    """The configuration of a daemon that works in another directory."""
    if not str(home).isprintable() or str(home) != str(home).strip():
        raise CannotInitialize(f"{str(home)!r}: no line of a configuration can hold this name")
    return replace(config, volumes_path=home / "volumes", snapshots_path=home / "snapshots")


def _settings(config: Config) -> str:
    """Lines of a configuration that name the directories."""
    paths = {"VOLUMES_PATH": config.volumes_path, "SNAPSHOTS_PATH": config.snapshots_path}
    lines = [f"{key} = {str(path).replace('%', '%%')}" for key, path in paths.items()]
    return "\n".join(["[DEFAULT]", *lines, ""])


def _configure(path: Path, settings: str) -> list[str]:
    """Let a configuration file have these settings, unless there is one."""
    try:
        with path.open("x", encoding="utf-8", errors="surrogateescape") as file:
            file.write(settings)
    except FileExistsError:
        lines = settings.strip().split("\n")[1:]
        return [f"{path} is kept as it is; the directories need these lines in it:", *lines]
    except OSError as error:
        raise OperationFailed(f"write {path}", error) from error
    return [f"made {path}, which names the directories"]


def _link(config: Config, directory: Path) -> list[str]:
    """Let the daemon on this host and the managed plugin have one schedule and configuration."""
    place = CONFIG_FILE.parent
    if config.schedule.parent != place or os.path.realpath(place) == os.path.realpath(directory):
        return []
    if os.path.lexists(place):
        return [f"{place} is kept as it is: the daemon does not use {directory}"]
    try:
        place.symlink_to(directory)
    except OSError as error:
        return [f"{place} cannot be made a link to {directory}: {error.strerror}"]
    return [f"made {place}, a link to {directory}"]


def _make_directory(path: Path, mode: int = 0o755) -> None:
    try:
        path.mkdir(parents=True, mode=mode, exist_ok=True)
    except OSError as error:
        raise OperationFailed(f"make {path}", error) from error


def _common_directory(config: Config) -> Path:
    home = Path(os.path.commonpath([config.volumes_path, config.snapshots_path]))
    if home == Path("/"):
        raise CannotInitialize(
            f"VOLUMES_PATH ({config.volumes_path}) and SNAPSHOTS_PATH ({config.snapshots_path}) "
            "share no directory that could be prepared: put both below one"
        )
    return home


def _is_on_btrfs(path: Path) -> bool:
    existing = next(p for p in (path, *path.parents) if p.exists())
    try:
        btrfs.filesystem(existing)
    except OSError:
        return False
    return True


def _mount_image(image: Path, home: Path, size: int) -> list[str]:
    """Mount an image file, made first if it does not exist."""
    if Path(os.path.realpath(image)).is_relative_to(os.path.realpath(home)):
        raise CannotInitialize(f"{image} cannot be inside {home}, where it is to be mounted")
    hidden = next(_files_below(home), None)
    if hidden is not None:
        raise CannotInitialize(
            f"{home} is not empty (there is {hidden}): a mount would hide what is in it; "
            "move it elsewhere first"
        )
    _make_directory(home)
    said = []
    if os.path.lexists(image):
        _check_holds_btrfs(image)
        said.append(f"{image} holds BTRFS already and is used as it is")
    else:
        _make_image(image, size)
        said.append(f"made {image}, a sparse file of {size >> 20} MiB with a new BTRFS")
    try:
        command.run(["mount", "-o", OPTIONS, str(image), str(home)])
    except CommandFailed as error:
        raise OperationFailed(f"mount {image} on {home}", error) from error
    said.append(f"mounted {image} on {home}")
    said.append("to mount it at each start of the machine, put this line into /etc/fstab:")
    said.append(" ".join([_fstab(image), _fstab(home), "btrfs", OPTIONS, "0", "0"]))
    return said


def _files_below(directory: Path) -> Iterator[Path]:
    for parent, directories, files in os.walk(directory):
        links = [name for name in directories if Path(parent, name).is_symlink()]
        for name in (*files, *links):
            yield Path(parent, name)


def _check_holds_btrfs(image: Path) -> None:
    magic = b""
    if image.is_file():
        with image.open("rb") as file:
            file.seek(_MAGIC_OFFSET)
            magic = file.read(len(_MAGIC))
    if magic != _MAGIC:
        raise CannotInitialize(
            f"{image} exists and holds no BTRFS: it stays as it is; name another file"
        )


def _make_image(image: Path, size: int) -> None:
    """Make a sparse file with a new BTRFS; it gets its name only when it is whole."""
    try:
        image.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{image.name}.", dir=image.parent)
        try:
            os.truncate(descriptor, size)
            os.close(descriptor)
            command.run(["mkfs.btrfs", "--quiet", name])
            os.link(name, image)  # fails if the name has been taken meanwhile
        finally:
            os.unlink(name)
    except (CommandFailed, OSError) as error:
        raise OperationFailed(f"make {image}", error) from error


def _fstab(path: Path) -> str:
    """A path as fstab(5) wants it, without blanks."""
    return str(path).replace("\\", "\\134").replace(" ", "\\040").replace("\t", "\\011")
