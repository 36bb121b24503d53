"""Volumes: subvolumes of one directory, each made, replaced and removed as a whole.

Nobody is told of a new volume, or of a new content, before its name is on the disk. So whatever a
power cut leaves under one of the daemon's own names has never been anybody's, or is the old content
of a volume that has been replaced or removed: `sweep` may delete it.
"""

import errno
import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from buttervolume import names
from buttervolume.errors import (
    CommandFailed,
    NoSuchVolume,
    NotAVolume,
    OperationFailed,
    QuotasOff,
    Unreadable,
    VolumeBusy,
    VolumeExists,
    VolumesUnavailable,
)
from buttervolume.store import attributes
from buttervolume.store.hindrance import explain
from buttervolume.store.options import Options
from buttervolume.system import btrfs, files, mounts, nested, quota
from buttervolume.system.locks import Holds, Mutexes

OWN_PREFIX = ".buttervolume-"
"""What the daemon itself puts among the volumes begins with this; `sweep` removes it."""
REMOVED_NAME = OWN_PREFIX + "removed"
"""The directory of the removed volumes, which `sweep` spares."""
_MODE = 0o755
"""Of the root of a new volume, whatever the daemon's umask is."""


@dataclass(frozen=True)
class Volume:
    """A volume as `get` finds it; None where the filesystem would not tell."""

    name: str
    mountpoint: Path
    created: datetime | None
    copy_on_write: bool | None


@dataclass(frozen=True)
class Found:
    """What a look at the directory of the volumes finds."""

    volumes: Sequence[str]
    """Names, sorted."""
    unreadable: Sequence[str]
    """The names of what is there, but cannot be looked at."""


class Volumes:
    """The volumes in one directory of a BTRFS filesystem."""

    def __init__(self, path: Path) -> None:
        """`path` must be on BTRFS: OSError if not."""
        self.path = path
        self.mutexes = Mutexes(lambda name: VolumeBusy(name, "another operation"))
        """One per volume, held while the volume is made, replaced, snapshotted or removed."""
        self.changing_hands = Mutexes()
        """One per volume, for moments: held while its name goes to another subvolume, until that
        is on the disk, and by a call that mounts it. Taken after its mutex, if both are taken."""
        self.synchronized = Holds(lambda name: VolumeBusy(name, "a synchronization"))
        """Volumes that rsync is writing to; held and let go only under their mutex."""
        self._filesystem = btrfs.filesystem(path)
        self._device = os.stat(path).st_dev
        self._mounted_guard = threading.Lock()  # protects _mounted
        self._mounted: dict[str, set[str]] = {}
        # protects _names and _names_of, the time of the directory that they were read at
        self._names_guard = threading.Lock()
        self._names: tuple[str, ...] = ()
        self._names_of: int | None = None
        self._names_on_disk = files.SharedSync(path)
        self._log = logging.getLogger(__name__)
        self._complaints_guard = threading.Lock()  # protects _complained_of
        self._complained_of: frozenset[str] = frozenset()
        """What could not be read when it was looked at last, and is in the log."""

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
        """Whether there is a volume of that name. Raises BadName, Unreadable."""
        path = self.path_of(name)
        try:
            return btrfs.is_subvolume(path)
        except OSError as error:
            self.check_available()
            raise Unreadable(name, error) from error

    def mountpoint(self, name: str) -> Path:
        """Where an existing volume is. Runs no command. Raises NoSuchVolume, Unreadable."""
        if not self.exists(name):
            self.check_available()  # else an unmounted filesystem would look like removed volumes
            raise NoSuchVolume(name)
        return self.path_of(name)

    def list(self) -> "list[tuple[str, Path]]":
        """Names and paths of all volumes that can be read, by name. Runs no command."""
        return [(name, self.path / name) for name in self.look().volumes]

    def look(self) -> Found:
        """All volumes, and what there is that cannot be read. Runs no command. Raises
        OperationFailed."""
        try:
            # by descriptor: else the kernel would walk the whole path to each of them
            descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                found, unreadable = _look(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise OperationFailed("list the volumes", error) from error
        with self._complaints_guard:
            complained_of, self._complained_of = self._complained_of, frozenset(unreadable)
        for name in unreadable.keys() - complained_of:
            self._log.warning("%s", Unreadable(name, unreadable[name]))
        return Found(sorted(found), sorted(unreadable))

    def names(self) -> tuple[str, ...]:
        """The names of all volumes, sorted, those that cannot be read included; the same object as
        before while the directory has not changed, without a look at what is in it. Raises
        VolumesUnavailable, OperationFailed."""
        self.check_available()
        try:
            with self._names_guard:
                started = time.time_ns()
                changed = os.stat(self.path).st_mtime_ns
                if changed != self._names_of:
                    look = self.look()
                    found = tuple(sorted((*look.volumes, *look.unreadable)))
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
            with btrfs.opened(path) as directory:
                created = directory.info().created
                copy_on_write = directory.copy_on_write()
        except OSError as error:
            self._log.warning("%s: cannot read its properties: %s", name, error)
        return Volume(name, path, created, copy_on_write)

    def create(self, name: str, options: Options) -> None:
        """Make an empty volume; if there is one of that name already, leave it as it is."""
        with self.creating(name) as is_new:
            if not is_new:
                return
            try:
                with self.workshop("create") as path:
                    btrfs.create(path)
                    with btrfs.opened(path) as directory:
                        os.fchmod(directory.descriptor, _MODE)
                        if not options.copy_on_write:
                            directory.disable_copy_on_write()
                        self.furnish(directory, options)
                    self.publish(path, name)
            except (CommandFailed, OSError) as error:
                raise OperationFailed(f"create volume {name}", error) from error

    @contextmanager
    def creating(self, name: str, *others: str) -> Iterator[bool]:
        """Hold the mutexes of a volume that may be new, and of others; says whether it is."""
        if not names.is_volume_reference(name):
            names.check_new_volume(name)  # says what a good name is
        with self.mutexes.hold(name, *others):
            is_new = not self.exists(name)
            if is_new:
                names.check_new_volume(name)
            else:  # a daemon that was killed may have made it just now; Docker asks the next one
                self.settle_names()
            yield is_new

    def furnish(self, root: btrfs.Directory, options: Options) -> None:
        """Make the root of a new volume what its options ask for. Raises QuotasOff."""
        if options.size is not None and not quota.are_on(root):
            raise QuotasOff(self.path)
        with quota.unlimited(root):  # it may be a copy of a volume that is full
            self._furnish(root, options)
        self.limit(root)

    @staticmethod
    def _furnish(root: btrfs.Directory, options: Options) -> None:
        if options.copy_on_write and not root.copy_on_write():
            root.enable_copy_on_write()
        if options.copy_on_write is False and root.copy_on_write():
            root.disable_copy_on_write()
        if options.compression:
            root.set_compression(options.compression)
        elif options.compression is not None:
            root.disable_compression()
        kept = attributes.read(root)
        if options.keep is not None:
            kept[attributes.KEEP] = options.keep
        if options.size is not None:
            kept[attributes.SIZE] = str(options.size)
        if options.follow is not None:
            kept[attributes.FOLLOW] = options.follow
        if kept:
            attributes.write(root, kept)
        if options.uid is not None or options.gid is not None:
            unsaid = -1
            uid = unsaid if options.uid is None else options.uid
            os.fchown(root.descriptor, uid, unsaid if options.gid is None else options.gid)
        if options.mode is not None:
            os.fchmod(root.descriptor, options.mode)

    def limit(self, root: btrfs.Directory, origin: btrfs.Directory | None = None) -> None:
        """Let a new subvolume have the size that its attributes say, where quotas are on, and not
        that of its `origin`, whose limit it has inherited."""
        size = attributes.read(root).get(attributes.SIZE)
        if size is None:
            if origin is not None and attributes.SIZE in attributes.read(origin):
                with suppress(OSError):  # quotas are off
                    quota.set_limit(root, None)
            return
        try:
            quota.set_limit(root, int(size))
        except (OSError, ValueError) as error:
            self._log.warning("a size of %s cannot be kept: %s", size, error)

    def remove(self, name: str) -> None:
        """Remove a volume and the subvolumes nested in it. Raises NoSuchVolume, VolumeBusy.

        Its name is gone at once; its content goes while nothing that others wait for is held.
        """
        doomed = self._own_path("remove")
        try:
            with self.mutexes.hold(name):
                path = self.mountpoint(name)
                self.synchronized.check_free(name)
                files.rename_new(path, doomed)
                with self._mounted_guard:
                    self._mounted.pop(name, None)
            try:
                nested.delete_tree(doomed)
            except (CommandFailed, OSError):
                self._put_back(doomed, name)
                raise
            self._names_on_disk.sync()
        except (CommandFailed, OSError) as error:
            reason = explain(error, self.path_of(name))
            raise OperationFailed(f"remove volume {name}", reason) from error

    def put_away(self, name: str, target: Path) -> None:
        """Move a volume out of the sight of all, on the disk before this returns. FileExistsError
        if there is something at the target. Raises NoSuchVolume, VolumeBusy."""
        with self.mutexes.hold(name), self.changing_hands.hold(name):
            path = self.mountpoint(name)
            self.synchronized.check_free(name)
            try:
                self._move_into_directory(path, target)
                self._names_on_disk.sync()
            except FileExistsError:
                raise
            except OSError as error:
                raise OperationFailed(f"remove volume {name}", explain(error, path)) from error
            with self._mounted_guard:
                self._mounted.pop(name, None)

    def settle_names(self) -> None:
        """Bring the names to the disk, if that can be, since whoever asks is told that they are
        there."""
        try:
            self._names_on_disk.sync()
        except OSError as error:
            self._log.warning("%s: the names in it may not be on the disk: %s", self.path, error)

    def sync_names(self) -> None:
        """Return when the names among the volumes, and of what was moved here, are on the disk."""
        self._names_on_disk.sync()

    def _move_into_directory(self, path: Path, target: Path) -> None:
        """Move a subvolume into a directory that is made for that."""
        while True:
            try:
                target.parent.mkdir(mode=0o700, exist_ok=True)
            except FileExistsError as error:
                wrong = errno.ENOTDIR
                raise NotADirectoryError(wrong, os.strerror(wrong), str(target.parent)) from error
            try:
                self.move(path, target)
                return
            except FileNotFoundError:
                if target.parent.exists():  # else somebody has just removed it, for it was empty
                    raise

    @staticmethod
    def move(path: Path, target: Path) -> None:
        """Give a subvolume a name in another directory. FileExistsError if there is something of
        that name. A read-only one must be writable for that (fs/namei.c), and is again read-only
        afterwards."""
        with btrfs.opened(path) as root, root.writable():
            files.rename_new(path, target)

    def _put_back(self, path: Path, name: str) -> None:
        """Give what could not be removed its name again, unless another volume has it by now; on
        the disk, too, where the next start would sweep it else."""
        try:
            with self.mutexes.hold(name):
                files.rename_new(path, self.path_of(name))
        except (OSError, VolumeBusy) as error:
            self._log.warning("%s is left over until the next start: %s", path, error)
        else:
            self.settle_names()

    def _own_path(self, purpose: str) -> Path:
        return self.path / f"{OWN_PREFIX}{purpose}-{uuid.uuid4().hex}"

    @contextmanager
    def workshop(self, purpose: str) -> Iterator[Path]:
        """A path of the daemon's own to make a subvolume at; what is left there at the end goes,
        and that may take long: no mutex should be held then."""
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
                nested.delete_tree(path)
            elif path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        except (CommandFailed, OSError) as error:
            self._log.warning("%s is left over and cannot be removed now: %s", path, error)

    def publish(self, path: Path, name: str) -> None:
        """Give a whole new subvolume its name, on the disk before this returns. Raises
        VolumeExists, or NotAVolume if something else has the name."""
        target = self.path_of(name)
        with self.changing_hands.hold(name):
            try:
                self.move(path, target)
            except FileExistsError as error:
                if btrfs.is_subvolume(target):
                    raise VolumeExists(name) from error
                raise NotAVolume(target) from error
            self._names_on_disk.sync()

    def exchange(self, path: Path, name: str) -> None:
        """Put a subvolume in the place of a volume in one step, on the disk before this returns;
        the old content is then at `path`. `changing_hands` is held."""
        files.exchange(path, self.path_of(name))
        self._names_on_disk.sync()

    def leftovers(self) -> Sequence[str]:
        """What a daemon that was killed has left. Only before this one makes anything."""
        with os.scandir(self.path) as entries:
            own = [e.name for e in entries if e.name.startswith(OWN_PREFIX)]
        return [name for name in own if name not in (names.LOCK_NAME, REMOVED_NAME)]

    def sweep(self, leftovers: Iterable[str]) -> None:
        """Remove what was left. Only while no other daemon runs."""
        for name in leftovers:
            self._log.info("sweeping %s, left by a daemon that did not end by itself", name)
            self._discard(self.path / name)

    def forget_origins(self) -> None:
        """Take their Received UUID off the volumes that have one: their snapshots would inherit
        it, and count as copies of something else."""
        for name, path in self.list():
            try:
                with self.mutexes.hold(name), btrfs.opened(path) as directory:
                    received = directory.info().received_uuid
                    if received is None:
                        continue
                    with directory.writable():
                        directory.set_received(None, 0)
            except FileNotFoundError:  # removed meanwhile
                continue
            except (OSError, VolumeBusy) as error:
                self._log.warning("%s: whether it has a Received UUID is unknown: %s", name, error)
            else:
                self._log.warning(
                    "%s: this volume had the Received UUID %s, which its snapshots would have "
                    "inherited; it is taken off", name, received,
                )  # fmt: skip

    def mount(self, name: str, user: str) -> Path:
        """Where Docker's `user`, an id of its own, finds a volume; remembered, as advice, until
        `remember_unmount`. Waits while the volume is being replaced. Raises NoSuchVolume."""
        with self.changing_hands.hold(name):
            path = self.mountpoint(name)
            self.remember_mount(name, user)
        return path

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
        """Whether a container uses a volume, or something in it, as far as can be known: by the
        calls since the daemon's start, or since the kernel shows it mounted."""
        return bool(self.users(name))

    def count_users(self) -> dict[str, int]:
        """How many use each volume that somebody uses: as far as the kernel shows it, else as many
        as Docker has named since the daemon's start."""
        with self._mounted_guard:
            named = {name: len(users) for name, users in self._mounted.items()}
        return named | mounts.users_below(self.path)

    def users(self, name: str) -> Sequence[str]:
        """Who uses a volume, or something in it, in words: as far as the kernel shows it, else as
        many as Docker has named since the daemon's start."""
        shown = [str(user) for user in mounts.users(self.path_of(name))]
        known = len(self._mounted.get(name, ()))
        if shown or not known:
            return shown
        return [f"{known} container{'' if known == 1 else 's'}, as Docker has told"]


def _look(directory: int) -> tuple[Sequence[str], Mapping[str, OSError]]:
    """The names of the volumes in an open directory, and what cannot be looked at, and why."""
    found, unreadable = list[str](), dict[str, OSError]()
    device = os.fstat(directory).st_dev
    with os.scandir(directory) as entries:
        for entry in entries:
            if names.is_volume_reference(entry.name) and entry.is_dir(follow_symlinks=False):
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:  # removed meanwhile
                    continue
                except OSError as error:
                    unreadable[entry.name] = error
                    continue
                if btrfs.is_subvolume_root(status, device):
                    found.append(entry.name)
    return found, unreadable
