"""What runs on a host for another one, as the command of an ssh session: `buttervolume peer`.

It says first what it can, then answers requests, a JSON object a line each, in the order in which
they come; the other side may send more of them before it has an answer. A stream follows the
request `receive` and the answer to `send`, and says itself where it ends. Whatever is wrong with a
request that a stream follows, or with the stream, ends the session: there is no telling what comes
next.

It works on the directories themselves, so no daemon is needed here; one that runs sees what has
come in its directory, and by the notes what is not whole.
"""

import os
import pwd
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

from buttervolume import names
from buttervolume.config import CONFIG_FILE, Config
from buttervolume.errors import (
    ButtervolumeError,
    CommandFailed,
    IncompleteSnapshot,
    NoSuchSnapshot,
    NotAllowed,
    OperationFailed,
    PeerGone,
    Unreadable,
)
from buttervolume.hosts import intake
from buttervolume.hosts.guard import Guard, is_secluded, parse_rsync, wants_session
from buttervolume.hosts.intake import Intake, Space
from buttervolume.hosts.lineage import Facts
from buttervolume.hosts.local import facts_of
from buttervolume.hosts.protocol import PROTOCOL, facts_as_json, number
from buttervolume.hosts.stream import NEWEST_VERSION, Announced
from buttervolume.hosts.wire import Inlet, say
from buttervolume.names import LOCK_NAME, SnapshotName
from buttervolume.store import attributes
from buttervolume.system import btrfs, command, locks, namespace, uuids
from buttervolume.system.command import Flow, Process
from buttervolume.words import shortened

SILENCE = 60.0
"""Seconds in which the other side must ask for something."""
_TO_COMMIT = 60
"""How many times as long it has to bring a stream to its disk: an hour."""
_LONGEST_REQUEST = 1 << 18
"""Bytes: a long line of epochs fits."""


class Attendant(Protocol):
    """Does for another member of followed volumes what it asks for (see `follow.attend`)."""

    silence: float
    """Seconds in which the other side must show that it lives, while it has a lock."""

    @property
    def is_locking(self) -> bool:
        """Whether it has one."""

    def answer(self, volume: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """Carry out a request about a volume."""

    def drop(self, volume: str) -> dict[str, Any]:
        """Delete a volume for good."""

    def close(self) -> None:
        """Give up all locks."""


Attend = Callable[[str], Attendant]
"""Makes one for the member of that name."""


class Peer:
    """One session. `stdin` and `stdout` are its descriptors."""

    def __init__(
        self,
        config: Config,
        guard: Guard,
        stdin: int = 0,
        stdout: int = 1,
        silence: float = SILENCE,
        *,
        attend: Attend,
    ) -> None:
        self._config = config
        self._attend = attend
        self._guard = guard
        self._inlet = Inlet(stdin)
        self._stdout = stdout
        self._silence = silence
        self._directory = config.snapshots_path
        self._node: str | None = None
        self._is_streaming = False
        self._has_just_sent = False
        """Whether the other side has a stream from here to bring to its disk."""
        self._basis, self._keys = _basis(), _keys()
        self._verbs: dict[str, Callable[[Mapping[str, Any]], dict[str, Any] | None]] = {
            "look": self._look,
            "receive": self._receive,
            "discard": self._discard,
            "send": self._send,
            "received": self._received,
            "follow": self._follow,
            "drop": self._drop,
        }
        self._attendant: Attendant | None = None

    def serve(self) -> bool:
        """Answer until the other side has no more requests; False if that ended otherwise. Raises
        ButtervolumeError if a stream from here broke off."""
        greeting = {
            "buttervolume": PROTOCOL,
            "node": self._config.node,
            "verbs": sorted(self._verbs_offered()),
            "stream": stream_version(),
            "time": int(time.time()),
        }
        try:
            self._say(greeting)
            while True:
                request = self._inlet.message(self._patience, longest=_LONGEST_REQUEST)
                if request is None:
                    return True
                if not self._answer(request):
                    return False
        except ButtervolumeError as error:  # it is silent, or talks nonsense
            if self._is_streaming:
                raise
            self._complain(error)
        except BrokenPipeError:
            pass
        finally:
            if self._attendant is not None:
                self._attendant.close()
        return False

    def _verbs_offered(self) -> frozenset[str]:
        """What can be asked for. Followed volumes are left out unless the daemon has said that it
        remembers them where this session looks. It does not with settings in its environment alone,
        and two hosts might use one at the same time."""
        verbs = self._guard.verbs
        lock = self._config.volumes_path / LOCK_NAME
        if attributes.are_records(lock, str(self._config.follow_path)):
            return verbs
        return verbs - {"follow", "drop"}

    @property
    def _patience(self) -> float:
        """Seconds in which the other side must say something."""
        if self._attendant is not None and self._attendant.is_locking:
            return min(self._silence, self._attendant.silence)
        return self._silence * (_TO_COMMIT if self._has_just_sent else 1)

    def _answer(self, request: Mapping[str, Any]) -> bool:
        """Carry out one request; whether there can be another."""
        verb = request.get("do")
        self._has_just_sent = False
        try:
            if verb == "hello":
                self._node = self._guard.sender(request.get("node"))
                return True
            if verb == "still":
                return self._still()
            if self._guard.is_on and self._keys != _keys():  # this one may be gone
                raise NotAllowed("the keys have changed here: log in anew")
            answer = self._verbs[self._guard.check_verb(verb)](request)
        except ButtervolumeError as error:
            if self._is_streaming:  # what would be said would pass for a part of the stream
                raise
            self._complain(error)
            return verb != "receive"
        except (KeyError, TypeError, ValueError) as error:
            self._complain(PeerGone(f"the request cannot be understood: {error!r}"))
            return False
        except OSError as error:
            if self._is_streaming or isinstance(error, BrokenPipeError):
                raise
            self._complain(OperationFailed("do what was asked", error))
            return verb != "receive"
        self._say(answer or {})
        if verb == "look":
            _get_ready()
        return True

    def _still(self) -> bool:
        """Say that the session can go on, unless a new one would differ from it: there is another
        version now, or the configuration or the keys have changed."""
        is_same = self._basis == _basis()
        if is_same:
            self._say({"still": True})
        return is_same

    def _say(self, message: Mapping[str, object]) -> None:
        say(self._stdout, message, self._silence)

    def _complain(self, error: ButtervolumeError) -> None:
        """Tell the other side of an error, if it still listens."""
        try:
            self._say({"error": str(error)[:2000], "code": type(error).__name__})
        except (ButtervolumeError, OSError):
            print(shortened(f"buttervolume: {error}"), file=sys.stderr)  # noqa: T201 - none else is told

    # Requests

    def _name(self, request: Mapping[str, Any], key: str = "name") -> SnapshotName:
        """The snapshot that a request is about, of a volume that may be touched."""
        name = names.parse_snapshot(_text(request[key]))
        self._guard.check_volume(name.volume)
        return name

    def _sender(self) -> str:
        return self._guard.sender(self._node)

    def _look(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """All that is here of a volume, as lineage needs it, after removing what transfers of the
        same host have left behind."""
        volume = self._guard.check_volume(_text(request["volume"]))
        try:
            if "discard" in self._guard.verbs and self._node:
                intake.sweep(self._directory, self._node, lambda other: other == volume)
            btrfs.sync(self._directory)
            found = self._facts(volume)
            known = {facts.tree for facts in found}
            strangers = {
                str(facts.identity)
                for facts in found
                if not known.issuperset(uuids.found_by_receive(self._directory, facts.identity))
            }
        except OSError as error:
            raise OperationFailed("look at the snapshots", error) from error
        return {
            "snapshots": [facts_as_json(facts) for facts in found],
            "strangers": sorted(strangers),
            "bound": not intake.takes_changes(self._directory),
        }

    def _facts(self, volume: str) -> list[Facts]:
        notes = {note.copy: note.sender for note in intake.notes_in(self._directory)}
        read = (
            facts_of(self._directory, name, receiving=notes.get(str(name)))
            for name in intake.snapshots_of(self._directory, volume)
        )
        return [facts for facts in read if facts]

    def _receive(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Take in a stream, which follows the request."""
        name = self._name(request)
        if name.is_marker:
            raise NotAllowed(f"{name}: only snapshots are sent, and no markers of them")
        if "follow" not in self._guard.verbs and self._follows(name.volume):
            raise NotAllowed(
                f"{name.volume} follows its service here: its snapshots say who goes on with it, "
                "and are taken with a key of the role follow only"
            )
        parent = request.get("parent")
        announced = Announced(
            str(name),
            UUID(_text(request["uuid"])),
            number(request["ctransid"]),
            UUID(_text(parent)) if parent else None,
        )
        space = Space(self._directory, self._config.min_free if self._guard.is_on else 0)
        space.check(0)
        copy = Intake(self._directory).receive(
            name,
            announced,
            self._sender(),
            self._inlet,
            Flow(),
            version=NEWEST_VERSION,
            before=space.check,
        )
        return {
            "received": str(name),
            "uuid": str(copy.uuid),
            "parent": str(copy.parent_uuid) if copy.parent_uuid else None,
            "ctransid": copy.send_transid,
        }

    def _discard(self, request: Mapping[str, Any]) -> dict[str, Any]:
        name = self._name(request)
        intake.discard(self._directory, name, self._sender(), without_note=not self._guard.is_on)
        return {"discarded": str(name)}

    def _send(self, request: Mapping[str, Any]) -> None:
        """Send a snapshot: what it is, then its stream. If the stream breaks off, so does the
        session, since nothing else could be told from it."""
        name = self._name(request)
        path = self._whole(name)
        info = btrfs.info(path)
        parent_path = parent = None
        if request.get("parent"):
            parent_name = self._name(request, "parent")
            if parent_name.volume != name.volume:
                raise NotAllowed("a parent is of the same volume")
            parent_path = self._whole(parent_name)
            other = btrfs.info(parent_path)
            parent = other.received_uuid or other.uuid
        compressed = number(request.get("stream", 1)) >= 2 and stream_version() >= 2
        argv = btrfs.send_command(path, parent=parent_path, compressed=compressed)
        with ExitStack() as stack:
            try:
                for each in filter(None, (path, parent_path)):
                    stack.enter_context(locks.reading(each))
            except OSError as error:
                raise OperationFailed(f"send {name}", error) from error
            self._say(
                {
                    "stream": str(name),
                    "uuid": str(info.received_uuid or info.uuid),
                    "ctransid": info.changed,
                    "parent": str(parent) if parent else None,
                }
            )
            self._is_streaming = True
            os.set_blocking(self._stdout, True)
            process = stack.enter_context(Process(argv, stdout=self._stdout))
            process.wait(Flow(), intake.STALL, process.written)
            failure = process.failure()
        if failure:
            raise OperationFailed(f"send {name}", failure)
        self._is_streaming, self._has_just_sent = False, True

    def _received(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Mark what the other side says it has: it is the parent of what it will ask for next."""
        from buttervolume.store.catalog import Catalog
        from buttervolume.store.snapshots import Snapshots
        from buttervolume.store.volumes import Volumes

        name = self._name(request)
        self._whole(name)
        try:
            volumes = Volumes(self._config.volumes_path)
        except OSError as error:
            raise OperationFailed(f"mark {name}", error) from error
        catalog = Catalog(self._directory, self._config.dtformat)
        Snapshots(catalog, volumes).mark_sent(name, self._sender())
        return {"marked": str(name)}

    def _follow(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Do what another member asks about a volume that follows its service."""
        volume = self._guard.check_volume(_text(request["volume"]))
        if "follow" not in self._verbs_offered():  # there may be another daemon by now
            raise NotAllowed(f"{volume}: the daemon here remembers followed volumes elsewhere")
        if self._attendant is None:
            self._attendant = self._attend(self._sender())
        return self._attendant.answer(volume, request)

    def _drop(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Delete such a volume for good."""
        volume = self._guard.check_volume(_text(request["volume"]))
        if self._attendant is None:
            raise NotAllowed(f"{volume}: it is deleted under its lock only")
        return self._attendant.drop(volume)

    def _follows(self, volume: str) -> bool:
        """Whether this host is, or was, a member of a volume that follows its service."""
        noted = attributes.records(self._config.volumes_path / LOCK_NAME)
        if Path(noted or self._config.follow_path, f"{volume}.json").exists():
            return True
        try:
            with btrfs.opened(self._config.volumes_path / volume) as root:
                return attributes.follows(root)
        except OSError:  # there is none
            return False

    def _whole(self, name: SnapshotName) -> Path:
        """The path of a snapshot that can be sent. Raises NoSuchSnapshot, IncompleteSnapshot,
        Unreadable."""
        path = self._directory / str(name)
        try:
            if not btrfs.is_subvolume(path):
                raise NoSuchSnapshot(str(name))
            if not btrfs.info(path).readonly or intake.has_note(self._directory, name):
                raise IncompleteSnapshot(str(name))
        except OSError as error:
            raise Unreadable(str(name), error) from error
        return path


def serve_rsync(config: Config, guard: Guard, asked: str) -> None:
    """Become rsync, which reads volumes for the other side and sees nothing else.

    Raises NotAllowed, BadName, OperationFailed, PeerGone, PeerSilent.
    """
    guard.check_verb("rsync")
    secluded = _secluded_arguments(0) if is_secluded(asked) else []
    reading = parse_rsync(asked, secluded, config.volumes_path, guard)
    paths = [config.volumes_path / volume for volume in reading.volumes]
    for path in paths:
        if not btrfs.is_subvolume(path):
            raise NotAllowed(f"{path.name}: there is no such volume")
    try:
        namespace.with_only(paths)
    except OSError as error:
        raise OperationFailed("confine rsync", error) from error
    argv = reading.argv(config.volumes_path)
    os.execvp(argv[0], argv)  # noqa: S606 - the arguments are of our making


def _secluded_arguments(descriptor: int) -> list[str]:
    """The arguments that rsync sends over its input, each ended by NUL, the last one empty, and
    not a byte more (send_protected_args in rsync's rsync.c)."""
    inlet = Inlet(descriptor, size=1)
    said = b""
    while not said.endswith(b"\0\0") and said != b"\0":
        if len(said) > _LONGEST_REQUEST:
            raise PeerGone("rsync's arguments have no end")
        said += inlet.some(SILENCE)
    os.set_blocking(descriptor, True)
    arguments = said.decode(errors="surrogateescape").split("\0")[:-2]
    return arguments[1:] if arguments[:1] == ["rsync"] else arguments


def run(config: Config, guard: Guard, asked: str | None, attend: Attend) -> bool:
    """Serve the other side of this process's input and output; whether all went well.

    `asked` is what it asked sshd for, where this is a forced command.
    """
    try:
        _check_root()
        if guard.is_on and asked and not wants_session(asked):
            serve_rsync(config, guard, asked)
        return Peer(config, guard, attend=attend).serve()
    except ButtervolumeError as error:
        print(shortened(f"buttervolume: {error}"), file=sys.stderr)  # noqa: T201 - ssh shows it
        return False


def _check_root() -> None:
    """Raise NotAllowed, saying what is needed, for whoever the kernel lets do nothing of this."""
    user = os.geteuid()
    if user:
        try:
            name = pwd.getpwuid(user).pw_name
        except KeyError:
            name = str(user)
        raise NotAllowed(
            f"logged in as {name}, who may not work with snapshots and volumes: log in as root "
            "there (User root in the ssh configuration here)"
        )


def _basis() -> list[tuple[int, int, int] | None]:
    """What tells whether a new session would be served in the same way."""
    paths = [CONFIG_FILE, Path(__file__), Path(sys.argv[0])]
    paths += [Path(directory, "buttervolume") for directory in os.get_exec_path()]
    return [_identity(path) for path in paths] + _keys()


def _keys() -> list[tuple[int, int, int] | None]:
    """A value that differs once other keys may log in here."""
    directory = Path(pwd.getpwuid(os.geteuid()).pw_dir, ".ssh")
    return [_identity(directory / name) for name in ("authorized_keys", "authorized_keys2")]


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _get_ready() -> None:
    """Import what a stream will need, while the other side decides whether to send one."""
    import concurrent.futures.thread  # noqa: F401

    import crc32c  # noqa: F401


def stream_version() -> int:
    """The newest version of the stream that this host can make and take: 2 came with Linux and
    btrfs-progs 6.0."""
    try:
        kernel = int(Path("/sys/fs/btrfs/features/send_stream_version").read_text())
        progs = command.run(["btrfs", "--version"]).rpartition("v")[2]
        newest = min(kernel, NEWEST_VERSION)
        return newest if int(progs.partition(".")[0]) >= 6 else 1
    except (OSError, ValueError, CommandFailed):
        return 1


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("it must be text")
    return value
