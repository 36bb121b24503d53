"""Files of volumes brought from their namesakes on other hosts, by rsync.

The containers of a volume, here and there, change it while rsync works: see `confine`.
"""

import calendar
import logging
import os
import re
import shlex
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from buttervolume import names
from buttervolume.errors import (
    ButtervolumeError,
    CommandFailed,
    HostFailed,
    OperationFailed,
    SyncFailed,
)
from buttervolume.hosts import ssh
from buttervolume.hosts.guard import REFUSED
from buttervolume.hosts.reach import Reach
from buttervolume.hosts.ssh import Connection
from buttervolume.hosts.transfers import Transfer, Transfers
from buttervolume.store.catalog import Catalog
from buttervolume.store.snapshots import Snapshots, Taken
from buttervolume.store.volumes import Volumes
from buttervolume.system import btrfs, command, confine

_RSYNC_VANISHED = 24
"""Exit status: some files were removed there while rsync worked (rsync(1)); nothing is missing."""
_RSYNC_IN_PART = 23
"""Exit status: some files could not be transferred."""
_RSYNC_LOST = (10, 12)
"""Exit statuses: socket or protocol broke off."""
_OF_THE_HOST = (
    *("btrfs.*", "trusted.buttervolume.*"),
    *("security.selinux", "security.ima", "security.evm"),
)
"""Extended attributes that belong to a host and not to the data."""
_NEVER = ("system.*",)
"""What rsync leaves out by default, as long as there are no rules for attributes (rsync(1)): the
ACLs among them have an option of their own."""
_NO_ACLS = re.compile(r"ACLs are not supported|sys_acl_\w+\([^\n]*Operation not supported")
_NOT_READABLE = "Permission denied (13)"
"""What rsync says of a file that it may not read there; root may read all."""
_ADVICE = "; log in as root there (User root in the ssh configuration here)"
_LONGEST_LINE = 1 << 16
_REPORT = "%i %M %n"
"""What a dry run prints of an entry that it would change: how, the time there, the name."""
_REPORTED = re.compile(rb"(?P<how>[<>ch.*][fdLDS][^ ]{9,}) (?P<time>\d{4}/\S+) (?P<name>.+)")
_SAFE_RSYNC = """
version=$(rsync --version | sed -n 's/^rsync *version v*\\([0-9.]*\\).*/\\1/p')
case $version in
    [012].*|3.[0-4]|3.[0-4].*|'')
        { zcat -f /usr/share/doc/rsync/changelog* || rpm -q --changelog rsync; } 2>/dev/null |
            grep -q CVE-2026-53797 || {
            echo "rsync ${version:-of an unknown version} there can be led out of the volume by a" \
"container; install rsync 3.5.0, or a package of the distribution that mends CVE-2026-53797" >&2
            exit 5
        };;
esac
exec rsync "$@"
"""
"""Becomes rsync if that does not follow a directory that is swapped for a link while it reads."""


@dataclass(frozen=True)
class _Way:
    """How rsync gets to another host."""

    shell: Sequence[str]
    """What runs a command there; rsync adds the host."""
    program: str = ""
    """What runs there; rsync itself, if nothing is named."""
    connection: Connection | None = None
    """What the shell goes through."""

    def explain(self, failure: CommandFailed) -> str:
        """What was said of a failure of rsync, and what to do if that is known."""
        advice = _ADVICE if _NOT_READABLE in failure.stderr else ""
        if self.connection is None:
            return ssh.explain(failure) + advice
        may_be_lost = failure.status in _RSYNC_LOST
        return self.connection.explain(failure, may_be_lost=may_be_lost) + advice


class Synchronizer:
    """Brings newer files of volumes from other hosts."""

    def __init__(
        self,
        volumes: Volumes,
        catalog: Catalog,
        snapshots: Snapshots,
        reach: Reach,
        transfers: Transfers,
    ) -> None:
        """The other hosts keep volumes at the path that they have here."""
        self._volumes = volumes
        self._catalog = catalog
        self._snapshots = snapshots
        self._reach = reach
        self._transfers = transfers
        self._log = logging.getLogger(__name__)

    def synchronize(self, volumes: Sequence[str], hosts: Sequence[str]) -> list[Taken]:
        """Bring the newer files of volumes' namesakes on other hosts into them, and to the disk.

        Nothing is deleted. Each volume is snapshotted first, and these snapshots are returned; one
        goes again if every host failed and the volume is as it was. One failure stops nothing else.

        Raises NoSuchVolume before anything is done, SyncFailed.
        """
        for host in hosts:
            names.check_host(host)
        for volume in volumes:
            self._volumes.mountpoint(volume)
        taken: list[Taken] = []
        failures: list[str] = []
        for volume in volumes:
            try:
                taken.append(self._synchronize_one(volume, hosts))
            except SyncFailed as error:
                failures += error.failures
            except ButtervolumeError as error:  # it is busy, or cannot be snapshotted
                failures.append(str(error))
        if failures:
            raise SyncFailed(failures)
        return taken

    def _synchronize_one(self, volume: str, hosts: Sequence[str]) -> Taken:
        with ExitStack() as stack:
            with self._volumes.mutexes.hold(volume):
                path = self._volumes.mountpoint(volume)
                self._volumes.synchronized.check_free(volume)
                stack.enter_context(self._volumes.synchronized.hold(volume))
            taken = self._snapshots.take(volume, provisional=True)
            failures = []
            for host in hosts:
                try:
                    with self._transfers.start("sync", volume, taken.name, host) as transfer:
                        self._bring(path, transfer)
                except HostFailed as error:
                    failures.append(f"{volume} from {error}")
                except ButtervolumeError as error:
                    failures.append(f"{volume} from {host}: {error}")
                except OSError as error:  # of this host: its /tmp may be full
                    reason = OperationFailed("synchronize", error)
                    failures.append(f"{volume} from {host}: {reason}")
            if len(failures) < len(hosts):
                self._snapshots.keep(taken.name)
            elif not self._forget(volume, taken):
                self._snapshots.keep(taken.name)
                failures.append(f"{volume} as it was before is {taken.name}")
            if failures:
                raise SyncFailed(failures)
        return taken

    def _forget(self, volume: str, taken: Taken) -> bool:
        """Remove the snapshot that was taken beforehand, if the volume still is what it shows;
        whether that is so."""
        try:
            path = self._volumes.mountpoint(volume)
            if not btrfs.holds_what(path, btrfs.info(self._catalog.path_of(taken.name))):
                return False
            self._snapshots.forget(taken.name)
        except (ButtervolumeError, OSError) as error:
            self._log.warning("%s: %s", taken.name, error)
            return False
        return True

    def _bring(self, path: Path, transfer: Transfer) -> None:
        """Bring what is newer on a host, and to the disk."""
        transfer.phase = "looking"
        try:
            with self._reach.shell(transfer.host, transfer.flow) as connection:
                way = _Way(
                    connection.argv_without_host, ssh.remote_program(_SAFE_RSYNC), connection
                )
                self._bring_so(way, path, transfer)
        except HostFailed as error:
            if REFUSED not in error.reason:
                raise
            # the guard lets rsync read the volumes and nothing else, whatever its version
            way = _Way((*ssh.command_for(self._reach.port), "-S", "none"))
            self._bring_so(way, path, transfer)
        try:
            btrfs.sync(path)
        except OSError as error:
            raise OperationFailed("bring the files to the disk", error) from error

    def _bring_so(self, way: "_Way", path: Path, transfer: Transfer) -> None:
        """Bring it, without ACLs where there are none."""
        try:
            self._rsync(path, transfer, way, acls=True)
        except CommandFailed as error:
            if not _NO_ACLS.search(error.stderr):
                raise HostFailed(transfer.host, way.explain(error)) from error
            self._log.warning("%s: without ACLs: %s", path, ssh.explain(error))
            try:
                self._rsync(path, transfer, way, acls=False)
            except CommandFailed as second:
                raise HostFailed(transfer.host, way.explain(second)) from second

    def _rsync(self, path: Path, transfer: Transfer, through: "_Way", acls: bool) -> None:
        """Run rsync, first to see what is to be left alone. Raises CommandFailed, Cancelled."""
        argv = [
            "rsync", "--archive", "--hard-links", "--xattrs", "--sparse",
            "--numeric-ids", "--update", "--protect-args", "--no-human-readable",
            f"--timeout={max(1, round(self._reach.stall))}",
            "--rsh", shlex.join(through.shell),
            *(["--rsync-path", through.program] if through.program else []),
            *(["--acls"] if acls else []),
            *(f"--filter=-x {pattern}" for pattern in (*_OF_THE_HOST, *_NEVER)),
        ]  # fmt: skip
        way = [f"{transfer.host}:{path}/", f"{path}/"]
        report = [f"--out-format={_REPORT}", "--existing", "--dry-run", "--8-bit-output"]
        how = ["--info=progress2", "--from0", "--exclude-from=-"]
        with tempfile.TemporaryFile() as rules:
            with _NewerHere(path, rules) as newer:
                try:
                    self._watch(path, [*argv, *report, *way], transfer, _Lines(newer.take))
                except CommandFailed as error:
                    if error.status != _RSYNC_IN_PART:  # what can be read there comes all the same
                        raise
            rules.seek(0)
            transfer.phase = "synchronizing"
            progress = _Lines(lambda line: _note_progress(line, transfer))
            self._watch(path, [*argv, *how, *way], transfer, progress, rules.fileno())

    def _watch(
        self,
        path: Path,
        rsync: Sequence[str],
        transfer: Transfer,
        report: Callable[[bytes], None],
        stdin: int | None = None,
    ) -> None:
        try:
            argv = confine.argv(path, ["env", "TZ=UTC", *rsync])
            command.watch(argv, transfer.flow, report, stdin=stdin)
        except CommandFailed as error:
            if error.status != _RSYNC_VANISHED:
                raise
            self._log.info("%s: files were removed on %s meanwhile", path, transfer.host)


def _note_progress(line: bytes, transfer: Transfer) -> None:
    moved = re.match(rb"\s*(\d+)\s+\d+%", line)
    if moved:
        transfer.flow.moved = int(moved[1])


class _Lines:
    """Passes on, line by line, what a program prints; what is no line in its length is lost."""

    def __init__(self, take: Callable[[bytes], None]) -> None:
        self._take = take
        self._unread = b""

    def __call__(self, output: bytes) -> None:
        *lines, unread = re.split(rb"[\r\n]", self._unread + output)
        self._unread = unread[:_LONGEST_LINE]
        for line in lines:
            self._take(line)


class _NewerHere:
    """Which of the entries that rsync would change are newer here: it looks at that for files only,
    not for links, nor where one is a file, and the other a directory."""

    def __init__(self, path: Path, rules: IO[bytes]) -> None:
        """Rules that exclude them are written to `rules`, ended by a NUL each."""
        self._path = path
        self._rules = rules
        self._length = 0

    def __enter__(self) -> "_NewerHere":
        self._root = os.open(self._path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._root)

    def take(self, line: bytes) -> None:
        """Look at an entry that a dry run reports."""
        reported = _REPORTED.fullmatch(line)
        if not reported or (reported["how"][2:3] != b"+" and reported["how"][1:2] in b"fd"):
            return
        name = _unescaped(reported["name"]).rstrip(b"/")
        try:
            here = _status(self._root, name)
            there = calendar.timegm(time.strptime(reported["time"].decode(), "%Y/%m/%d-%H:%M:%S"))
        except (OSError, ValueError):
            return  # it is not there any more, or has no time that can be read
        if int(here.st_mtime) > there:
            rule = _pattern(name) + b"\0"
            self._length += len(rule)
            if self._length > command.LONGEST_OUTPUT:
                raise OperationFailed("synchronize", "too many entries are newer here")
            self._rules.write(rule)


def _unescaped(name: bytes) -> bytes:
    r"""A name as it is, which rsync prints with `\#012` for what is not printable."""
    return re.sub(rb"\\#([0-7]{3})", lambda match: bytes([int(match[1], 8) & 255]), name)


def _pattern(name: bytes) -> bytes:
    """A rule of rsync for exactly that name: a backslash escapes only where there is a wildcard."""
    if re.search(rb"[*?[]", name):
        name = re.sub(rb"([\\*?[])", rb"\\\1", name)
    return b"/" + name


def _status(root: int, name: bytes) -> os.stat_result:
    """What lies at a relative path, over no link. Raises OSError."""
    *above, last = name.split(b"/")
    with ExitStack() as stack:
        for part in above:
            flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
            root = os.open(part, flags, dir_fd=root)
            stack.callback(os.close, root)
        return os.stat(last, dir_fd=root, follow_symlinks=False)
