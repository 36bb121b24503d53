"""What can go wrong, as a user is told of it.

Every class carries its data and words its own message; `str(error)` is that message. The edges
(api, cli, scheduler) decide what a class means to them, never what it says.
"""

import os
import shlex
import signal
from collections.abc import Iterable, Sequence
from datetime import datetime

from buttervolume.words import enumerated, lines


class ButtervolumeError(Exception):
    """A refusal or a failure that a user can understand and act on."""


class CommandFailed(ButtervolumeError):
    """A command ended with an exit status other than 0, or could not be started.

    `status` is the exit status, negative for a signal, as in `subprocess`.
    """

    def __init__(self, argv: Sequence[str], status: int, stderr: str) -> None:
        self.argv = tuple(argv)
        self.status = status
        self.stderr = stderr.strip()
        super().__init__(argv, status, stderr)

    def __str__(self) -> str:
        end = f"signal {-self.status}" if self.status < 0 else f"exit status {self.status}"
        command = shlex.join(self.argv)
        if len(command) > 300:
            command = f"{command[:300]}…"
        message = "; ".join(lines(self.stderr))
        return f"{message or 'no message'} ({command}: {end})"


class PipelineFailed(ButtervolumeError):
    """One or both ends of a pipeline failed. The cause comes first, as far as can be known: an end
    that died of SIGPIPE only lost the other."""

    def __init__(self, failures: Sequence[CommandFailed]) -> None:
        self.failures = tuple(sorted(failures, key=lambda each: each.status == -signal.SIGPIPE))
        super().__init__("; ".join(map(str, self.failures)))


class Stalled(ButtervolumeError):
    """A transfer moved nothing for too long and was ended."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        super().__init__(f"nothing moved for {seconds:g} seconds, so the transfer was ended")


class TooMuchOutput(ButtervolumeError):
    """A program printed more than anybody needs."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        super().__init__(f"it printed more than {limit >> 20} MiB")


class Cancelled(ButtervolumeError):
    """A transfer was ended because somebody asked for that."""

    def __init__(self) -> None:
        super().__init__("the transfer was cancelled")


class OperationFailed(ButtervolumeError):
    """Something that should have worked did not: what was tried, and the reason."""

    def __init__(self, attempt: str, reason: object) -> None:
        self.attempt = attempt
        self.reason = reason
        super().__init__(f"cannot {attempt}: {_in_words(reason, attempt)}")


def _in_words(reason: object, attempt: str) -> str:
    """A reason without what is Python's own, numbers of errors and of descriptors for names, and
    without the files that the attempt names already."""
    if not isinstance(reason, OSError) or reason.strerror is None:
        return str(reason)
    paths = [
        os.fsdecode(name)
        for name in (reason.filename, reason.filename2)
        if isinstance(name, (str, bytes, os.PathLike))
    ]
    paths = [path for path in paths if f" {path} " not in f" {attempt} "]
    return f"{reason.strerror}: {' -> '.join(paths)}" if paths else reason.strerror


class BadName(ButtervolumeError):
    """A name that is not allowed for a thing of this kind."""

    def __init__(self, kind: str, name: str, rule: str) -> None:
        self.kind = kind
        self.name = name
        super().__init__(f"{name!r} is not allowed as the name of a {kind}: {rule}")


class BadOption(ButtervolumeError):
    """An unknown volume option, or a value that it does not take."""


class NoSuchVolume(ButtervolumeError):
    """The volume does not exist."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"{name}: no such volume")


class NoSuchSnapshot(ButtervolumeError):
    """The snapshot does not exist."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"{name}: no such snapshot")


class NoSnapshots(ButtervolumeError):
    """A volume has no snapshot that can be meant."""

    def __init__(
        self,
        volume: str,
        until: datetime | None = None,
        *,
        backup: bool = False,
        others: Iterable[str] = (),
    ) -> None:
        """`until` is the moment that it must not be later than; a backup is one that a restore has
        made; `others` are there, but only their own names mean them."""
        self.volume = volume
        what = "no backup that a restore has made" if backup else "no snapshot"
        when = f" from {until:%Y-%m-%d %H:%M:%S} or before" if until else ""
        named = enumerated(others)
        hint = (
            " that the volume's name could mean, only backups and snapshots whose date cannot be "
            f"read or is in the future; name the one that you mean: {named}"
        )
        super().__init__(f"{volume}: there is {what} of this volume{when}{hint if named else ''}")


class AmbiguousName(ButtervolumeError):
    """A beginning of a snapshot's name that several have."""

    def __init__(self, name: str, candidates: Iterable[str]) -> None:
        self.name = name
        self.candidates = tuple(candidates)
        super().__init__(f"{name}: several snapshots begin so: {enumerated(self.candidates)}")


class BadRestore(ButtervolumeError):
    """What is to be restored is named in two ways, or cannot be understood."""


class Unreadable(ButtervolumeError):
    """A volume or a snapshot is there, but the filesystem does not let it be looked at."""

    def __init__(self, name: str, error: OSError) -> None:
        self.name = name
        super().__init__(f"{name}: it cannot be read ({error.strerror}); look at the kernel's log")


class IncompleteSnapshot(ButtervolumeError):
    """A writable subvolume among the snapshots: `btrfs receive` has not finished it."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(
            f"{name}: this copy is incomplete (it is being received, or its transfer failed); "
            "send it again, or remove it with: buttervolume rm"
        )


class NoSuchRemoved(ButtervolumeError):
    """No removed volume of that name is kept."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"{name}: no such removed volume is kept; see: buttervolume removed")


class QuotasOff(ButtervolumeError):
    """A volume was to have a size, and the filesystem counts none."""

    def __init__(self, path: object) -> None:
        super().__init__(
            "size needs quota groups, which are off on this filesystem; turn them on with: "
            f"btrfs quota enable --simple {path} (without --simple where btrfs does not know it)"
        )


class VolumeExists(ButtervolumeError):
    """The target of an operation that makes a new volume exists already."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"{name}: this volume exists already; choose another name")


class NotAVolume(ButtervolumeError):
    """Something that is no subvolume is in the place of a volume."""

    def __init__(self, path: object) -> None:
        self.path = path
        super().__init__(f"{path} is in the way: it is not a BTRFS subvolume; move it elsewhere")


class VolumeMounted(ButtervolumeError):
    """A volume would be replaced under a running container."""

    def __init__(self, name: str, users: Iterable[str] = ()) -> None:
        """`users` are those that the kernel shows, as far as it does."""
        self.name = name
        self.users = tuple(users)
        who = f" ({enumerated(self.users)})" if self.users else ""
        super().__init__(
            f"{name}: a container uses this volume{who} and would go on writing to the old "
            "content, which is deleted; stop it first, or restore with --force"
        )


class VolumeBusy(ButtervolumeError):
    """Another operation needs the volume as it is."""

    def __init__(self, name: str, operation: str) -> None:
        self.name = name
        self.operation = operation
        super().__init__(f"{name}: {operation} of this volume is under way; try again after it")


class SnapshotBusy(ButtervolumeError):
    """A transfer or a restore needs the snapshot, itself or as a parent, or somebody removes it."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(
            f"{name}: a transfer or a restore under way needs this snapshot, or it is being removed"
        )


class NestedSubvolumes(ButtervolumeError):
    """Subvolumes nested in a volume would be lost, since a snapshot does not hold them."""

    def __init__(self, name: str, nested: Iterable[str]) -> None:
        self.name = name
        self.nested = tuple(nested)
        super().__init__(
            f"{name}: the subvolumes nested in this volume ({enumerated(self.nested)}) are in no "
            "snapshot and would be deleted; move them away, or restore with --force"
        )


class TransferBusy(ButtervolumeError):
    """The same transfer is under way already."""

    def __init__(self, volume: str, host: str, *, incoming: bool = False) -> None:
        way = "receive of this volume from" if incoming else "send of this volume to"
        super().__init__(f"{volume}: a {way} {host} is under way already")


class TooManyTransfers(ButtervolumeError):
    """As many transfers run as may run at a time."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"{limit} transfers are under way, which is the limit; try again later")


class NoSuchTransfer(ButtervolumeError):
    """No transfer of that number is under way."""

    def __init__(self, number: int) -> None:
        super().__init__(f"{number}: no such transfer is under way")


class HostFailed(ButtervolumeError):
    """Another host cannot be reached, or did not do what it was asked."""

    def __init__(self, host: str, reason: str) -> None:
        self.host = host
        self.reason = reason
        super().__init__(f"{host}: {reason}")


class PeerRefused(ButtervolumeError):
    """Another host has refused a request, or failed to carry it out."""

    def __init__(self, host: str, reason: str, kind: str) -> None:
        self.host = host
        self.reason = reason
        self.kind = kind
        """The name of its error's class there."""
        super().__init__(f"{host}: {reason}")


class StreamRefused(ButtervolumeError):
    """A stream of btrfs send that is not what was announced, or not well-formed."""

    def __init__(self, name: str, position: int, reason: str) -> None:
        self.name = name
        self.position = position
        self.reason = reason
        super().__init__(f"{name}: the stream is refused at byte {position}: {reason}")


class PeerSilent(ButtervolumeError):
    """The other side of a session says nothing, or takes nothing, for too long."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        super().__init__(f"the other side has said nothing for {seconds:g} seconds")


class PeerGone(ButtervolumeError):
    """The other side of a session has ended it, or broken its rules."""


class CopyInTheWay(ButtervolumeError):
    """Something has the name that a snapshot to be received would get."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(
            f"{name}: there is something else of that name already, which is never touched; if "
            f"nobody needs it, remove it on the host that receives (buttervolume rm {name})"
        )


class PartialCopyBusy(ButtervolumeError):
    """Another transfer is bringing the same snapshot, or has left a part of it."""

    def __init__(self, name: str, sender: str) -> None:
        self.name = name
        self.sender = sender
        super().__init__(
            f"{name}: {sender or 'somebody'} is sending this snapshot, or has left a part of it "
            "(to remove that: buttervolume rm)"
        )


class NoSuchParent(ButtervolumeError):
    """The parent of a stream of changes is not here, or something else could pass for it."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"{name}: its parent is not here, or something else passes for it")


class SessionFailed(ButtervolumeError):
    """A session with another host did not end well; the other side was told why."""

    def __init__(self) -> None:
        super().__init__("the session with the other host was broken off")


class NotAllowed(ButtervolumeError):
    """What the key of a session does not allow."""


class TooLittleSpace(ButtervolumeError):
    """A transfer that would leave less free space than is to be kept."""

    def __init__(self, free: int, kept: int) -> None:
        super().__init__(
            f"{free >> 20} MiB are free, and {kept >> 20} MiB are to be kept (MIN_FREE)"
        )


class ForeignCopy(ButtervolumeError):
    """Something else has the name that the copy of a snapshot would have on a host."""

    def __init__(self, host: str, path: object, what: str) -> None:
        super().__init__(
            f"{host} has something else at {path} ({what}), which is never touched; "
            "move it away there, then send again"
        )


class ChangedCopy(ButtervolumeError):
    """A snapshot was changed after it was received."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(
            f"{name}: this snapshot was changed after it was received, and is no longer a copy of "
            "its origin; restore it and take a new snapshot, or remove it"
        )


class Diverged(ButtervolumeError):
    """A send would bury a history that was made on the other host."""

    def __init__(self, host: str, volume: str, theirs: str, ours: str) -> None:
        self.host = host
        self.volume = volume
        self.theirs = theirs
        self.ours = ours
        here = f"the newest here is {ours}" if ours else "there is none here"
        super().__init__(
            f"{volume} has gone its own way on {host}: its newest snapshot there, {theirs}, was "
            f"made there and has not come here, and {here}; receive and restore it "
            f"(buttervolume restore --from {host} {volume}), remove it there, or send with --force"
        )


class FollowRefused(ButtervolumeError):
    """A volume that follows its service may not be used, or changed, here and now."""

    def __init__(self, volume: str, reason: str) -> None:
        self.volume = volume
        self.reason = reason
        super().__init__(f"{volume}: {reason}")


class InUse(FollowRefused):
    """A followed volume is in use on the host that is to let it go, or to replace it."""


class FollowBusy(FollowRefused):
    """Somebody has the lock of a followed volume."""

    def __init__(self, volume: str, holder: str) -> None:
        self.holder = holder
        super().__init__(volume, f"{holder} is looking for it at this moment; try again after that")


class NotOwner(ButtervolumeError):
    """Only the owner of a followed volume may do this, and this host is not the owner."""

    def __init__(self, volume: str, owner: str | None) -> None:
        self.volume = volume
        self.owner = owner
        where = f"on {owner}, which owns it" if owner else "where it is mounted first"
        super().__init__(f"{volume} follows its service: this is done {where}")


class BadCharter(ButtervolumeError):
    """Data that should name the members of a followed volume, and cannot be understood."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"what is known of a followed volume cannot be understood: {reason[:200]}")


class SyncFailed(ButtervolumeError):
    """Volumes that could not be synchronized from some hosts, each with the reason."""

    def __init__(self, failures: Sequence[str]) -> None:
        self.failures = tuple(failures)
        super().__init__(f"not synchronized: {'; '.join(failures)}")


class ConfigError(ButtervolumeError):
    """A configuration value, or the file itself, that the program cannot work with."""


class NotOnBtrfs(ButtervolumeError):
    """The daemon's directories are not on one BTRFS filesystem."""

    def __init__(self, problem: str) -> None:
        super().__init__(
            f"{problem}; mount one there, or make one in a file with: buttervolume init --file"
        )


class VolumesUnavailable(ButtervolumeError):
    """The filesystem of the volumes has gone away.

    Docker must get no answer then: any answer would make it forget its volumes, while a broken
    connection is tried again (moby, daemon/volume/service/store.go).
    """

    def __init__(self, path: object) -> None:
        self.path = path
        super().__init__(
            f"{path} is missing, or no longer on its BTRFS filesystem: mount that again, or, if "
            "another one is mounted there on purpose, restart the daemon"
        )


class AlreadyRunning(ButtervolumeError):
    """Another daemon works with the same volumes or the same socket."""

    def __init__(self, path: object) -> None:
        self.path = path
        super().__init__(
            f"another daemon is running, or a command that it left behind: it locks {path}"
        )


class NoDaemon(ButtervolumeError):
    """No daemon answers where the command line expects one."""

    def __init__(
        self,
        reason: str,
        advice: str = "start the daemon with 'systemctl start buttervolume' or 'buttervolume run', "
        "or the managed plugin with 'docker plugin enable anybox/buttervolume'",
    ) -> None:
        self.reason = reason
        super().__init__(f"{reason}; {advice}")


class BadPattern(ButtervolumeError):
    """A retention pattern that cannot be understood."""

    def __init__(
        self,
        pattern: str,
        problem: str = "write ages joined by ':', each a number with m, h, d, w or y, such as "
        "4h:1d:2w:2y, or with a count behind it, such as 1h/24:1d/7:1w/4",
    ) -> None:
        self.pattern = pattern
        super().__init__(f"{pattern!r} is no retention pattern: {problem}")


class BadMoment(ButtervolumeError):
    """A moment that cannot be understood."""

    def __init__(self, text: str) -> None:
        super().__init__(
            f"{text!r} is no moment: write an age with m, h, d, w or y, such as 2d, or a date, "
            "such as 2026-11-23 or 2026-11-23T21:00"
        )


class BadJob(ButtervolumeError):
    """A job that cannot be understood."""


class NoSuchJob(ButtervolumeError):
    """The schedule has no such job."""

    def __init__(self, volume: str, action: str) -> None:
        self.volume = volume
        self.action = action
        super().__init__(f"{action!r} of {volume}: there is no such job in the schedule")
