"""A followed volume on this host's disk: its charter, what is remembered of it, its lock.

The daemon uses this, and so does the `buttervolume peer` that another member's ssh starts; a lock
of the kernel's on a file keeps them apart, and goes with the process that holds it. What is
remembered is on the disk before anybody is told of it.
"""

import errno
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from buttervolume import names
from buttervolume.errors import (
    BadCharter,
    CommandFailed,
    FollowBusy,
    FollowRefused,
    InUse,
    NoSuchSnapshot,
    NotOwner,
    OperationFailed,
)
from buttervolume.follow import machine
from buttervolume.follow.charter import Charter, Record, Report
from buttervolume.follow.machine import Copy, Line, Role, Standing, Version
from buttervolume.hosts import intake
from buttervolume.store import attributes
from buttervolume.store.catalog import Catalog
from buttervolume.store.contents import copy as copy_subvolume
from buttervolume.store.snapshots import Snapshots, left_out
from buttervolume.store.volumes import Volumes
from buttervolume.system import btrfs, files, inodes, mounts, quota
from buttervolume.system.locks import lock_file, share_file
from buttervolume.words import enumerated

NOT_SEEN_LIMIT = 30.0
"""Seconds for which a Mount that was answered counts before the kernel shows a container."""
_ATTRIBUTE = attributes.PREFIX + attributes.FOLLOW
_MOST_TOLD = 500
"""Copies that a member tells the others of, beside the newest of each line."""
_WAY_OUT = "; put it back from a backup, or remove it"
"""What to do about a file that cannot be understood."""
_TICK = 0.1
_LONGEST_NOTE = 1024


def charter_of(path: Path) -> Charter | None:
    """The charter of a volume or snapshot; None if it follows nobody. OSError, BadCharter."""
    with btrfs.opened(path) as root:
        try:
            return Charter.load(os.getxattr(root.descriptor, _ATTRIBUTE))
        except OSError as error:
            if error.errno == errno.ENODATA:
                return None
            raise


def set_charter(path: Path, charter: Charter) -> None:
    """Give a volume a charter, in one step; its containers may have filled it, or made it
    read-only. OSError."""
    with btrfs.opened(path) as root, root.writable(), quota.unlimited(root):
        os.setxattr(root.descriptor, _ATTRIBUTE, charter.dump())


class Member:
    """This host, as one of the members of its followed volumes."""

    def __init__(
        self,
        name: str,
        volumes: Volumes,
        catalog: Catalog,
        snapshots: Snapshots,
        directory: Path,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`name` is what the other members call this host; `directory` is for what is remembered,
        and `now` in seconds."""
        self.name = name
        self._volumes = volumes
        self._catalog = catalog
        self._snapshots = snapshots
        self._directory = directory
        self._now = now
        self._uses_guard = threading.Lock()  # protects the files of uses, which the daemon writes

    # What there is

    def charter(self, volume: str) -> Charter | None:
        """The charter of a volume that is here; None if there is none, or no volume. Raises
        OperationFailed: to take it for a plain volume could make two users."""
        if not names.is_volume_reference(volume):
            return None  # the operation itself says what is wrong
        try:
            return charter_of(self._volumes.path_of(volume))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, BadCharter) as error:
            raise OperationFailed(f"read the members of volume {volume}", error) from error

    def exists(self, volume: str) -> bool:
        """Whether there is a volume of that name here."""
        return self._volumes.exists(volume)

    def names(self) -> Sequence[str]:
        """The names of all volumes (see `Volumes.names`)."""
        return self._volumes.names()

    def followed(self, among: Sequence[str]) -> tuple[str, ...]:
        """Which of some volumes follow their services."""
        found = []
        for name in among:
            try:
                with btrfs.opened(self._volumes.path_of(name)) as root:
                    if attributes.follows(root):
                        found.append(name)
            except OSError:
                continue  # removed meanwhile, or it cannot be read
        return tuple(found)

    def _told(self, volume: str) -> list[tuple[Copy, Charter]]:
        """The whole copies of versions of a volume on this disk, each with its charter; forks are
        none, since nobody goes on from them."""
        found = []
        forks = set(self._catalog.forks(volume))
        for snapshot in self._catalog.list(volume).snapshots:
            name = str(snapshot.name)
            if not snapshot.name.is_marker and name not in forks:
                try:
                    charter = charter_of(self._catalog.path / name)
                except (OSError, BadCharter):  # removed meanwhile, or nothing of ours
                    continue
                if charter is not None and charter.line:
                    found.append((Copy(self.name, name, charter.version), charter))
        return found

    def report(self, volume: str, *, with_use: bool = True) -> Report:
        """What this member says of itself. Whether it is in use takes the longest to find out, and
        can be left out. Raises OperationFailed."""
        own, record, told = self.charter(volume), self.record(volume), self._told(volume)
        held = own.line if own else ()
        lines = [record.known, held, *(copy.version.line for copy, _ in told)]
        known = max((machine.without(line, record.dropped) for line in lines), key=len)
        role, granted_to = record.role, record.granted_to
        if record.begun is not None and held and held[-1].id == record.begun:
            role, granted_to = Role.OWNER, None  # it began, and power was cut right after that
        standing = Standing(
            self.name,
            known,
            held,
            role,
            granted_to,
            record.dropped,
            with_use and self.is_in_use(volume),
            _worth_telling([copy for copy, _ in told]),
        )
        charters = [charter for _, charter in told] + ([own] if own else [])
        newest = max(charters, key=lambda each: each.order(record.dropped), default=None)
        return Report(standing, newest, self.forks(volume))

    def standing(self, volume: str) -> Standing:
        """How this member stands. Raises OperationFailed."""
        return self.report(volume).standing

    def forks(self, volume: str) -> tuple[str, ...]:
        """The snapshots that are kept here of what the others do not go on with."""
        return tuple(name for name in self._catalog.forks(volume) if name.count("@") == 1)

    def owns(self, volume: str) -> bool:
        """Whether this host is the owner, as far as it has heard."""
        standing = self.report(volume, with_use=False).standing
        return standing.role is Role.OWNER and standing.held == standing.known

    def owner(self, volume: str) -> str | None:
        """Who owns it, as far as is known here; None if nobody yet."""
        known = self.report(volume, with_use=False).standing.known
        return known[-1].owner if known else None

    # What is remembered

    def _file(self, volume: str, kind: str) -> Path:
        return self._directory / f"{names.check_volume_reference(volume)}.{kind}"

    def _make_directory(self) -> None:
        if not self._directory.is_dir():
            self._directory.mkdir(0o700, parents=True, exist_ok=True)
            files.sync_directory(self._directory.parent)

    def record(self, volume: str) -> Record:
        """What is remembered of a volume. Raises OperationFailed: forgetting that it was let go
        could make two owners."""
        path = self._file(volume, "json")
        try:
            return Record.load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return Record()
        except OSError as error:
            raise OperationFailed(f"read {path}", error) from error
        except (BadCharter, UnicodeDecodeError) as error:
            raise OperationFailed(f"read {path}", f"{error}{_WAY_OUT}") from error

    def remember(self, volume: str, record: Record) -> None:
        """Remember that from now on, over power cuts, too."""
        self._write(self._file(volume, "json"), record.dump())

    def _write(self, path: Path, text: str) -> None:
        try:
            self._make_directory()
            files.replace(path, text)
        except OSError as error:
            raise OperationFailed(f"write {path}", error) from error

    def hear(self, volume: str, line: Line, dropped: frozenset[str] = frozenset()) -> None:
        """Remember a line, if it goes on from what was known; the lock is held. Raises
        FollowRefused."""
        known = self.report(volume, with_use=False).standing.known
        record = self.record(volume)
        dropped |= record.dropped
        known, line = machine.without(known, dropped), machine.without(line, dropped)
        if not machine.begins(known, line):
            if machine.begins(line, known):
                line = known
            else:
                raise FollowRefused(volume, f"{self.name} knows of another line")
        heard = replace(record, known=line, dropped=dropped)
        if heard != record:
            self.remember(volume, heard)

    def overhear(self, volume: str, line: Line, dropped: frozenset[str]) -> None:
        """The same from a member that has locked this one alone: the volume may have been deleted
        since it looked, and a new one may have its name. Who knows nothing of it is not told of it
        so, and asks the others before it uses it."""
        if self.report(volume, with_use=False).standing.known:
            self.hear(volume, line, dropped)

    # Locks

    @contextmanager
    def lock(self, volume: str, holder: str, patience: float = 0.0) -> Iterator[None]:
        """Lock a volume on this member for one that looks for it; raises FollowBusy, naming who
        has the lock, after so many seconds."""
        with self._opened(volume, "lock") as descriptor:
            try:
                lock_file(descriptor, patience, _TICK)
            except BlockingIOError as error:
                other = os.pread(descriptor, _LONGEST_NOTE, 0).decode(errors="replace")
                raise FollowBusy(volume, other or "somebody") from error
            _write_note(descriptor, holder)
            yield

    @contextmanager
    def _opened(self, volume: str, kind: str) -> Iterator[int]:
        """A file to be locked; the lock goes with the block."""
        path = self._file(volume, kind)
        try:
            self._make_directory()
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise OperationFailed(f"lock {path}", error) from error
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    @contextmanager
    def sending(self, volume: str, hosts: Sequence[str]) -> Iterator[None]:
        """Send copies of a volume to hosts in the block, which begins while the lock is held: who
        has the lock then can see it, in whatever process (see `busy`)."""
        with self._opened(volume, "sending") as descriptor:
            share_file(descriptor)
            _write_note(descriptor, enumerated(hosts))
            yield

    def busy(self, volume: str) -> str:
        """Why a volume cannot be deleted just now, its lock being held: a copy of it is on its way,
        in words. Empty if none is."""
        if self._file(volume, "sending").exists():  # there may be no room for it on the disk
            with self._opened(volume, "sending") as descriptor:
                try:
                    lock_file(descriptor, 0, _TICK)
                except BlockingIOError:
                    hosts = os.pread(descriptor, _LONGEST_NOTE, 0).decode(errors="replace")
                    return f"it is being sent to {hosts or 'others'} from {self.name}"
        try:
            arriving = intake.arriving(self._catalog.path, volume)
        except OSError as error:
            raise OperationFailed(f"look for copies of {volume}", error) from error
        return f"{arriving} is on its way to {self.name}" if arriving else ""

    # Use

    def use(self, volume: str, *users: str) -> None:
        """Remember that Mounts are answered; the lock is held."""
        self._change_uses(volume, lambda uses: uses | dict.fromkeys(users, self._now()))

    def end_use(self, volume: str, user: str) -> None:
        """Forget a Mount."""
        self._change_uses(volume, lambda uses: {u: t for u, t in uses.items() if u != user})

    def is_in_use(self, volume: str) -> bool:
        """Whether a container uses it, as the kernel shows, or is about to: between the answer to a
        Mount and the container nothing is to be seen."""
        if mounts.users(self._volumes.path_of(volume)):
            return True
        return bool(self._recent(self._uses(volume)))

    def _recent(self, uses: dict[str, float]) -> dict[str, float]:
        now = self._now()
        return {u: since for u, since in uses.items() if abs(now - since) < NOT_SEEN_LIMIT}

    def _uses(self, volume: str) -> dict[str, float]:
        path = self._file(volume, "uses")
        try:
            uses = json.loads(path.read_text(encoding="utf-8"))
            return {str(user): float(since) for user, since in uses.items()}
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise OperationFailed(f"read {path}", error) from error
        except (ValueError, TypeError, AttributeError) as error:
            raise OperationFailed(f"read {path}", f"{error}{_WAY_OUT}") from error

    def _change_uses(
        self, volume: str, change: Callable[[dict[str, float]], dict[str, float]]
    ) -> None:
        with self._uses_guard:
            before = self._uses(volume)
            after = change(self._recent(before))
            if after != before:
                self._write(self._file(volume, "uses"), json.dumps(after))

    # Changes; the lock is held

    def found(self, volume: str, charter: Charter) -> None:
        """Let a volume that is here follow its service, if it does not yet."""
        with self._volumes.mutexes.hold(volume):
            path = self._volumes.mountpoint(volume)
            try:
                if charter_of(path) is None:
                    set_charter(path, charter)
                    btrfs.sync(path)
            except (OSError, BadCharter) as error:
                raise OperationFailed(f"let volume {volume} follow its service", error) from error

    def snapshot(self, volume: str) -> str:
        """The newest snapshot of what a volume holds, taken now unless there is one."""
        unchanged = self._snapshots.unchanged_since(volume)
        if unchanged is not None:
            try:
                if charter_of(self._catalog.path / unchanged) == self.charter(volume):
                    return unchanged
            except (OSError, BadCharter):  # removed meanwhile
                pass
        return self._snapshots.take(volume).name

    def copy(self, volume: str) -> Copy:
        """The version that a volume holds, in a snapshot. Raises OperationFailed."""
        snapshot = self.snapshot(volume)
        copy = self._copy_of(volume, snapshot)
        if copy is None:
            raise OperationFailed(f"look at {snapshot}", "it follows nobody")
        return copy

    def last_marked(self, volume: str) -> str | None:
        """The newest snapshot that another host has got, by its marker."""
        markers = [s.name for s in self._catalog.list(volume).snapshots if s.name.is_marker]
        return str(markers[-1].snapshot) if markers else None

    def has_marked(self, snapshot: str, host: str) -> bool:
        """Whether a host has got a snapshot, by its marker."""
        return self._catalog.exists(f"{snapshot}@{host}")

    def release(self, volume: str, grantee: str | None, *, anew: bool = False) -> Copy:
        """Let a volume go, to another member or (None) to any that asks, and say what it held, in a
        snapshot that is taken `anew` even if there is one; raises FollowRefused if it is in use, or
        not this member's to give."""
        standing = self.standing(volume)
        if grantee is not None:
            if standing.in_use:
                raise InUse(volume, f"in use on {self.name}")
            self.check_nothing_nested(volume)
        owns = standing.role in (Role.OWNER, Role.GRANTED)
        if owns and standing.held == standing.known and standing.held:
            name = self._snapshots.take(volume).name if anew else self.snapshot(volume)
            final = self._copy_of(volume, name)
        elif standing.role is Role.GRANTED:  # the volume was removed since, or is an older one
            final = machine.newest(standing.copies, standing.known)
        else:
            raise FollowRefused(volume, f"{self.name} does not own it")
        if final is None:
            raise FollowRefused(volume, f"its last copy on {self.name} is gone")
        try:
            btrfs.sync(self._catalog.path)
        except OSError as error:
            raise OperationFailed(f"let go of volume {volume}", error) from error
        record = self.record(volume)
        granted = replace(record, role=Role.GRANTED, granted_to=grantee, known=standing.known)
        self.remember(volume, replace(granted, begun=None))
        return final

    def change(self, volume: str, charter: Charter) -> Charter:
        """Give a volume other terms: they are in its next snapshot. What it has then."""
        changed = replace(charter, seq=charter.seq + 1)  # so that no older one passes for newer
        with self._volumes.mutexes.hold(volume):
            try:
                path = self._volumes.mountpoint(volume)
                held = charter_of(path)
                if held is None or held.line != charter.line:
                    raise FollowRefused(volume, "it has changed hands meanwhile; try again")
                changed = replace(changed, seq=max(changed.seq, held.seq + 1))
                set_charter(path, changed)
                btrfs.sync(path)
            except (OSError, BadCharter) as error:
                raise OperationFailed(f"change how volume {volume} follows", error) from error
        return changed

    def drop(self, volume: str) -> None:
        """Delete a volume for good, with its snapshots and all that is remembered of it."""
        self._remove_snapshots(volume)
        if self.exists(volume):
            self._volumes.remove(volume)
        self._remove_snapshots(volume)  # somebody may have taken one
        try:
            for kind in ("json", "uses", "sending"):  # who waits for the lock has the file open
                self._file(volume, kind).unlink(missing_ok=True)
            if self._directory.is_dir():
                files.sync_directory(self._directory)
        except OSError as error:
            raise OperationFailed(f"forget volume {volume}", error) from error

    def _remove_snapshots(self, volume: str) -> None:
        """Remove the snapshots of a volume, and what is left of copies that never became whole."""
        found = self._catalog.list(volume)
        try:
            deleted, _ = self._snapshots.remove_many(found.names)
        except OSError as error:
            raise OperationFailed(f"delete the snapshots of {volume}", error) from error
        for name in {*found.names, *map(str, found.incomplete)}.difference(deleted):
            with suppress(NoSuchSnapshot):  # somebody else has removed it meanwhile
                self._snapshots.remove(name)

    def check_nothing_nested(self, volume: str) -> None:
        """Raise FollowRefused if there are subvolumes in a volume, which are in no snapshot."""
        if not self.exists(volume):
            return
        try:
            nested = left_out(self._volumes.path_of(volume))
        except OSError as error:
            raise OperationFailed(f"look at volume {volume}", error) from error
        if nested:
            raise FollowRefused(
                volume,
                f"the subvolumes nested in it on {self.name} ({enumerated(nested)}) are in no "
                "snapshot and cannot follow it; move them away, or make plain directories of them",
            )

    def _copy_of(self, volume: str, snapshot: str) -> Copy | None:
        try:
            charter = charter_of(self._catalog.path / snapshot)
        except (OSError, BadCharter) as error:
            raise OperationFailed(f"look at the last snapshot of {volume}", error) from error
        return Copy(self.name, snapshot, charter.version) if charter else None

    def resume(self, volume: str, line: Line) -> None:
        """Be the owner again, where a grant was given that nobody took."""
        record = replace(self.record(volume), role=Role.OWNER, granted_to=None, known=line)
        self.remember(volume, replace(record, begun=None))

    def publish(self, volume: str, line: Line, found: Copy | None, terms: Charter) -> None:
        """Begin an epoch: put the content of a copy that is here, and the line, in the place of the
        volume, in one step. Without a copy the volume stays as it is, and gets the terms that were
        set last, by whichever member. Raises OperationFailed, FollowRefused if something uses what
        would be replaced."""
        record = self.record(volume)
        self.remember(volume, replace(record, begun=line[-1].id))
        made = None
        try:
            path = self._volumes.mountpoint(volume)
            if found is None:
                charter = charter_of(path)
                if charter is None:
                    raise FollowRefused(volume, "it follows nobody any more")
                set_charter(path, replace(terms, line=line, seq=charter.seq))
                btrfs.sync(path)
            else:
                made = self._replace(volume, line, found)
        except (CommandFailed, OSError, BadCharter) as error:
            raise OperationFailed(f"go on with volume {volume}", error) from error
        owner = Record(Role.OWNER, None, line, self.record(volume).dropped, None, made)
        self.remember(volume, owner)

    def _replace(self, volume: str, line: Line, found: Copy) -> tuple[str, int]:
        """Exchange a volume; the UUID and the generation of what it is then."""
        source = self._catalog.check_complete(found.snapshot)
        charter = charter_of(source)
        if charter is None or charter.version != found.version:
            raise FollowRefused(volume, f"{found.snapshot} is not what {found.member} said")
        with self._volumes.workshop("follow") as path:
            copy_subvolume(source, path)
            set_charter(path, replace(charter, line=line))
            with btrfs.opened(path) as root:
                self._volumes.limit(root)
            btrfs.sync(path)
            info = btrfs.info(path)
            with self._volumes.mutexes.hold(volume):
                self._check_unused(volume)
                self.check_nothing_nested(volume)  # it would be in no fork
                self._keep_fork(volume, Version(line, charter.seq))
                with self._volumes.changing_hands.hold(volume):
                    self._check_unused(volume)
                    self._volumes.exchange(path, volume)
        return str(info.uuid), info.changed

    def _check_unused(self, volume: str) -> None:
        if self.is_in_use(volume):
            raise InUse(
                volume,
                f"what {self.name} held before is still in use there, which must end first",
            )

    def give_up(self, volume: str, tip: Version) -> None:
        """Become a replica, since somebody goes on from a version; what this member holds beyond
        that is kept as a fork."""
        if self.exists(volume):
            with self._volumes.mutexes.hold(volume):
                self._keep_fork(volume, tip)
        record = replace(self.record(volume), role=Role.REPLICA, granted_to=None, known=tip.line)
        self.remember(volume, replace(record, begun=None))

    def supersede(self, volume: str) -> None:
        """Note that somebody has taken over while it is used here still."""
        record = self.record(volume)
        if record.role is not Role.SUPERSEDED:
            self.remember(volume, replace(record, role=Role.SUPERSEDED, begun=None))

    def part(self, volume: str) -> None:
        """Prepare for the removal of a volume from this host. On its owner a last snapshot is kept,
        and any member that asks may go on from that; elsewhere changes of its own are kept as a
        fork."""
        standing = self.report(volume, with_use=False).standing
        if not standing.known:  # nobody has ever used it
            return
        if standing.role in (Role.OWNER, Role.GRANTED) and standing.held == standing.known:
            self.release(volume, None)
        elif standing.held and standing.role is not Role.GRANTED:
            self.give_up(volume, machine.tip(standing.known))
        else:  # the others go on with a snapshot that is here, or what is here was never followed
            with self._volumes.mutexes.hold(volume):
                self._keep_fork(volume, machine.tip(standing.known))

    def _keep_fork(self, volume: str, tip: Version) -> None:
        """Keep what a volume holds, if the version that takes its place does not contain it; its
        mutex is held."""
        charter = self.charter(volume)
        with (
            btrfs.opened(self._volumes.path_of(volume)) as root,
            os.scandir(root.descriptor) as entries,
        ):
            if (charter is None or not charter.line) and next(entries, None) is None:
                return  # the empty volume that Docker had made here
        btrfs.sync(self._catalog.path)  # what is not on the disk yet would not show
        snapshot = self._snapshots.unchanged_since(volume)
        if snapshot is not None and snapshot in self._catalog.forks(volume):
            return  # it is kept already
        if any(held in tip for held in self._contents(volume, snapshot, charter)):
            return
        self._snapshots.take_held(volume, fork=True)
        btrfs.sync(self._catalog.path)

    def _contents(
        self, volume: str, snapshot: str | None, charter: Charter | None
    ) -> Iterator[Version]:
        """The versions that a volume holds, and nothing beyond them but times of access; it is
        unchanged since a snapshot, or None."""
        if charter is None:
            return
        if snapshot is not None:
            copy = self._copy_of(volume, snapshot)
            if copy is not None and copy.version.line:
                yield copy.version
        with btrfs.opened(self._volumes.path_of(volume)) as root:
            info, record = root.info(), self.record(volume)
            base = charter.line[-1].base if charter.line else None
            origin = Version(charter.line[: base.epoch + 1], base.seq) if base else None
            is_made = record.made is not None and record.made[0] == str(info.uuid)
            if origin and is_made and record.made and info.changed <= record.made[1]:
                yield origin
            for copy, _ in self._told(volume):
                path = self._catalog.path / copy.snapshot
                try:
                    with btrfs.opened(path) as before:
                        shown = before.info()
                        if shown.parent_uuid == info.uuid:
                            since = shown.created_in
                        elif origin and is_made and record.made and copy.version == origin:
                            since = record.made[1]
                        else:
                            continue
                        if not inodes.is_changed(root, since, before):
                            yield copy.version
                except OSError:
                    continue  # removed meanwhile, or it cannot be told: then it is a fork


def _write_note(descriptor: int, text: str) -> None:
    """Say in a locked file whose lock it is, or for what: advice, which a full disk takes not."""
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)


def _worth_telling(copies: list[Copy]) -> tuple[Copy, ...]:
    """The newest copy of each line, and some more of the newest."""

    def order(copy: Copy) -> tuple[int, int]:
        return len(copy.version.line), copy.version.seq

    ordered = sorted(copies, key=order)
    newest = {copy.version.line: copy for copy in ordered}
    kept = {copy.snapshot for copy in [*newest.values(), *ordered[-_MOST_TOLD:]]}
    return tuple(copy for copy in ordered if copy.snapshot in kept)


def check_owner(member: Member, volume: str) -> None:
    """Raise NotOwner if a volume follows its service, and this host does not own it."""
    if member.charter(volume) is not None and not member.owns(volume):
        owner = member.owner(volume)
        # who has let it go owns it again once it is mounted there
        raise NotOwner(volume, None if owner == member.name else owner)
