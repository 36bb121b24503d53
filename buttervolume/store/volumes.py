"""Volumes: subvolumes of one directory, each made, replaced and removed as a whole."""

import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from buttervolume import names
from buttervolume.errors import (
    CommandFailed,
    NoSuchVolume,
    NotAVolume,
    OperationFailed,
    VolumeBusy,
    VolumeExists,
    VolumesUnavailable,
)
from buttervolume.store.options import Options
from buttervolume.system import btrfs, files, mounts
from buttervolume.system.locks import Holds, Mutexes

OWN_PREFIX = ".buttervolume-"
"""What the daemon itself puts among the volumes begins with this; `sweep` removes it."""
LOCK_NAME = OWN_PREFIX + "lock"


@dataclass(frozen=True)
class Volume:
    """A volume as `get` finds it; None where the filesystem would not tell."""

    name: str
    mountpoint: Path
    created: datetime | None
    copy_on_write: bool | None


class Volumes:
    """The volumes in one directory of a BTRFS filesystem."""

    def __init__(self, path: Path) -> None:
        """`path` must be on BTRFS: OSError if not."""
        self.path = path
        self.mutexes = Mutexes(lambda name: VolumeBusy(name, "another operation"))
        """One per volume: whoever makes, replaces, snapshots or removes a volume holds it."""
        self.synchronized = Holds(lambda name: VolumeBusy(name, "a synchronization"))
        """Volumes that rsync is writing to; held and let go only by who holds their mutex."""
        self._filesystem = btrfs.filesystem(path)
        self._device = os.stat(path).st_dev
        self._mounted_guard = threading.Lock()  # protects _mounted
        self._mounted: dict[str, set[str]] = {}
        # protects _names and _names_of, the time of the directory that they were read at
        self._names_guard = threading.Lock()
        self._names: tuple[str, ...] = ()
        self._names_of: int | None = None
        self._log = logging.getLogger(__name__)

    def check_available(self) -> None:
        """Raise VolumesUnavailable if the directory is no longer on the filesystem it was on."""
        try:
            device = os.stat(f"{self.path}/").st_dev  # the slash: a file is no answer
            if device != self._device:  # mounted again, or something else is mounted over it
                if btrfs.filesystem(self.path) != self._filesystem:
                    raise VolumesUnavailable(self.path)
                self._device = device
        except OSError as error:
            raise VolumesUnavailable(self.path) from error

    def path_of(self, name: str) -> Path:
        """Where a volume is or would be. Raises BadName."""
        return self.path / names.check_volume_reference(name)

    def exists(self, name: str) -> bool:
        """Whether there is a volume of that name. Raises BadName."""
        return btrfs.is_subvolume(self.path_of(name))

    def mountpoint(self, name: str) -> Path:
        """Where an existing volume is. Runs no command. Raises NoSuchVolume."""
        if not self.exists(name):
            self.check_available()  # else an unmounted filesystem would look like removed volumes
            raise NoSuchVolume(name)
        return self.path_of(name)

    def list(self) -> "list[tuple[str, Path]]":
        """Names and paths of all volumes, by name. Runs no command."""
        found = []
        with os.scandir(self.path) as entries:
            device = os.stat(self.path).st_dev
            for entry in entries:
                if names.is_volume_reference(entry.name) and entry.is_dir(follow_symlinks=False):
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:  # removed meanwhile
                        continue
                    if btrfs.is_subvolume_root(status, device):
                        found.append(entry.name)
        return [(name, self.path / name) for name in sorted(found)]

    def names(self) -> tuple[str, ...]:
        """The names of all volumes, sorted; the same object as before while the directory has not
        changed, without a look at what is in it. Raises VolumesUnavailable, OperationFailed."""
        self.check_available()
        try:
            with self._names_guard:
                started = time.time_ns()
                changed = os.stat(self.path).st_mtime_ns
                if changed != self._names_of:
                    found = tuple(name for name, _ in self.list())
                    settled = 0 <= changed < started - files.RACY
                    self._names_of = changed if settled else None
                    if found != self._names:
                        self._names = found
                return self._names
        except OSError as error:
            raise OperationFailed("list the volumes", error) from error

    def get(self, name: str) -> Volume:
        """One volume. Runs no command; what cannot be found out is left out, since Docker would
        take an error for "does not exist". Raises NoSuchVolume."""
        path = self.mountpoint(name)
        created = copy_on_write = None
        try:
            created = btrfs.info(path).created
            copy_on_write = btrfs.copy_on_write(path)
        except OSError as error:
            self._log.warning("%s: cannot read its properties: %s", name, error)
        return Volume(name, path, created, copy_on_write)

    def create(self, name: str, options: Options) -> None:
        """Make a volume; if there is one of that name already, leave it as it is."""
        if not names.is_volume_reference(name):
            names.check_new_volume(name)  # says what a good name is
        with self.mutexes.hold(name):
            if self.exists(name):
                return
            names.check_new_volume(name)
            try:
                with self.workshop("create") as path:
                    btrfs.create(path)
                    path.chmod(0o755)
                    if not options.copy_on_write:
                        btrfs.disable_copy_on_write(path)
                    if options.compression:
                        btrfs.set_compression(path, options.compression)
                    self.publish(path, name)
            except (CommandFailed, OSError) as error:
                raise OperationFailed(f"create volume {name}", error) from error

    def remove(self, name: str) -> None:
        """Remove a volume and the subvolumes nested in it. Raises NoSuchVolume, VolumeBusy."""
        with self.mutexes.hold(name):
            path = self.mountpoint(name)
            self.synchronized.check_free(name)
            doomed = self._own_path("remove")
            try:
                files.rename_new(path, doomed)
                try:
                    btrfs.delete_tree(doomed)
                except (CommandFailed, OSError):
                    files.rename_new(doomed, path)
                    raise
            except (CommandFailed, OSError) as error:
                raise OperationFailed(f"remove volume {name}", error) from error
            with self._mounted_guard:
                self._mounted.pop(name, None)

    def _own_path(self, purpose: str) -> Path:
        return self.path / f"{OWN_PREFIX}{purpose}-{uuid.uuid4().hex}"

    @contextmanager
    def workshop(self, purpose: str) -> Iterator[Path]:
        """A path of the daemon's own to make a subvolume at; what is left there at the end goes."""
        path = self._own_path(purpose)
        try:
            yield path
        finally:
            if os.path.lexists(path):
                self._discard(path)

    def _discard(self, path: Path) -> None:
        """Remove something of the daemon's own; what cannot go now goes at the next start."""
        try:
            if btrfs.is_subvolume(path):
                btrfs.delete_tree(path)
            elif path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        except (CommandFailed, OSError) as error:
            self._log.warning("%s is left over and cannot be removed now: %s", path, error)

    def publish(self, path: Path, name: str) -> None:
        """Give a whole new subvolume its name. Raises VolumeExists, or NotAVolume if something
        else has the name."""
        target = self.path_of(name)
        try:
            files.rename_new(path, target)
        except FileExistsError as error:
            if btrfs.is_subvolume(target):
                raise VolumeExists(name) from error
            raise NotAVolume(target) from error

    def exchange(self, path: Path, name: str) -> None:
        """Put a subvolume in the place of a volume in one step, on the disk before this returns;
        the old content is then at `path`."""
        files.exchange(path, self.path_of(name))
        files.sync_directory(self.path)

    def leftovers(self) -> Sequence[str]:
        """What a daemon that was killed has left. Only before this one makes anything."""
        with os.scandir(self.path) as entries:
            own = [e.name for e in entries if e.name.startswith(OWN_PREFIX)]
        return [name for name in own if name != LOCK_NAME]

    def sweep(self, leftovers: Iterable[str]) -> None:
        """Remove what was left. Only while no other daemon runs."""
        for name in leftovers:
            self._log.info("sweeping %s, left by a daemon that did not end by itself", name)
            self._discard(self.path / name)

    def remember_mount(self, name: str, user: str) -> None:
        """Remember, as advice, that Docker mounted a volume for `user`, an id of its own."""
        with self._mounted_guard:
            self._mounted.setdefault(name, set()).add(user)

    def remember_unmount(self, name: str, user: str) -> None:
        """Forget a mount. Docker repeats and skips Unmount: an unknown one is no error."""
        with self._mounted_guard:
            users = self._mounted.get(name, set())
            users.discard(user)
            if not users:
                self._mounted.pop(name, None)

    def is_mounted(self, name: str) -> bool:
        """Whether a container uses a volume, as far as can be known: by the calls since the
        daemon's start, or since the kernel shows the volume mounted."""
        return name in self._mounted or mounts.is_mounted(self.path_of(name))
