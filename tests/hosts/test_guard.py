"""What a stolen key of each role can and cannot do, over real ssh."""

import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from buttervolume.hosts.stream import Command
from tests.hosts.harness import MEBIBYTE, SNAPSHOTS, VOLUMES, Host
from tests.support.streams import command, header
from tests.support.wait import wait_until

KEYS = count(1)
SESSION = "buttervolume peer"
SECRET = "what the other volume holds"  # noqa: S105 - no password


@dataclass
class Answer:
    """What a thief got."""

    status: int
    stdout: bytes
    stderr: str

    def said(self) -> list[dict[str, Any]]:
        """The lines of a session, after the greeting."""
        return [json.loads(line) for line in self.stdout.splitlines()[1:]]

    def refusals(self) -> list[str]:
        return [line.get("code", "") for line in self.said()]


@dataclass
class Key:
    """A key that was stolen from a host, which another one lets in under its guard."""

    thief: Host
    victim: Host
    file: str

    def ask(self, *said: dict[str, Any] | bytes, asked: str = SESSION, options: str = "") -> Answer:
        """Log in with it and say something."""
        data = b"".join(
            one if isinstance(one, bytes) else json.dumps(one).encode() + b"\n" for one in said
        )
        name = f"said-{next(KEYS)}"
        (self.thief.directory / name).write_bytes(data)
        line = (
            f"ssh -p 1122 -o IdentitiesOnly=yes -o BatchMode=yes -i {self.file} "
            f"{options or self._sharing()} "
            f"{self.victim.name} {shlex.quote(asked)} < {self.thief.directory / name} "
            f"> {self.thief.directory / name}.out"
        )
        done = self.thief.run("sh", "-c", line, check=False, timeout=60)
        out = Path(f"{self.thief.directory / name}.out")
        return Answer(done.returncode, out.read_bytes(), done.stderr)

    def _sharing(self) -> str:
        """Options that let all that is asked in a test go over one connection."""
        path = f"/run/ssh-{Path(self.file).name}"
        return f"-o ControlMaster=auto -o ControlPath={path} -o ControlPersist=2"

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Let the thief's own programs log in by it."""
        config = f"Host {self.victim.name}\n    IdentityFile {self.file}\n    IdentitiesOnly yes\n"
        with self.thief.ssh_config(config):
            yield


@pytest.fixture
def install(beta: Host) -> Iterator[None]:
    beta.install()
    yield
    beta.uninstall()


@pytest.fixture
def volumes(alpha: Host, beta: Host) -> tuple[str, str]:
    """A volume that the keys are for, and one that they are not, on both hosts."""
    number = next(KEYS)
    shop, secret = f"shop-{number}", f"secret-{number}"
    for host in (alpha, beta):
        for volume in (shop, secret):
            host.create(volume)
        host.file(shop, "ware").write_text("a ware of the shop")
        host.file(secret, "file").write_text(SECRET)
    return shop, secret


def steal(alpha: Host, beta: Host, *roles: str, node: str | None = "alpha") -> Key:
    file = f"/root/.ssh/key-{next(KEYS)}"
    alpha.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", file)
    wanted = [word for role in roles for word in ("--authorize", role)]
    public = alpha.path(f"{file}.pub").read_text()
    named = f"--node {node}" if node else ""
    script = f"buttervolume peer {shlex.join(wanted)} --volumes 'shop-*' {named}"
    line = beta.run("sh", "-c", script, input=public).stdout
    assert line.startswith('restrict,command="buttervolume peer --role ')
    beta.run("sh", "-c", "cat >> /root/.ssh/authorized_keys", input=line)
    return Key(alpha, beta, file)


@pytest.fixture
def push(alpha: Host, beta: Host, install: None) -> Key:
    return steal(alpha, beta, "push")


@pytest.fixture
def pull(alpha: Host, beta: Host, install: None) -> Key:
    return steal(alpha, beta, "pull")


@pytest.fixture
def sync(alpha: Host, beta: Host, install: None) -> Key:
    return steal(alpha, beta, "sync")


@pytest.fixture
def follow(alpha: Host, beta: Host, install: None) -> Key:
    return steal(alpha, beta, "follow")


@pytest.fixture
def key(request: pytest.FixtureRequest) -> Key:
    found: Key = request.getfixturevalue(request.param)
    return found


OURS = UUID(int=7)


def announce(name: str, uuid: UUID = OURS, parent: UUID | None = None) -> dict[str, Any]:
    wanted = str(parent) if parent else None
    return {"do": "receive", "name": name, "uuid": str(uuid), "ctransid": 7, "parent": wanted}


def stream(name: str, *commands: bytes, uuid: UUID = OURS) -> bytes:
    """A small stream of version 2 that makes a snapshot with some things in it."""
    begin = command(Command.SUBVOL, path=name.encode(), uuid=uuid, ctransid=7)
    return b"".join((header(2), begin, *commands, command(Command.END)))


ALL_KEYS = pytest.mark.parametrize("key", ["push", "pull", "sync", "follow"], indirect=True)
COMMANDS = (
    "id", "sh -c id", "buttervolume peer; id", "buttervolume peer --role pull", "$(id)", "`id`",
    "buttervolume run", "rsync --server --sender -L . /etc/", "rsync --server -r . /tmp/x",
    "scp -f /etc/shadow", "cat /etc/shadow", "btrfs receive /", "true && id",
)  # fmt: skip


@ALL_KEYS
def test_no_key_runs_a_command_of_its_own(key: Key) -> None:
    for asked in COMMANDS:
        answer = key.ask(asked=asked)

        assert answer.status != 0, asked
        assert b"uid=" not in answer.stdout, asked
        assert b"root:" not in answer.stdout, asked
        assert "buttervolume:" in answer.stderr, asked


@ALL_KEYS
def test_no_key_gets_a_terminal_a_subsystem_or_a_way_through(key: Key) -> None:
    assert "PTY allocation request failed" in key.ask(options="-tt").stderr
    assert key.ask(asked="sftp", options="-s").status != 0
    assert b"SSH-2.0" not in key.ask(options="-W localhost:1122", asked="").stdout
    listening = key.ask({"do": "hello", "node": "alpha"}, options="-R 4711:localhost:22")
    assert "remote port forwarding failed" in listening.stderr


REVOKED = """
import json, subprocess, sys
log_in = ["ssh", "-p", "1122", "-o", "BatchMode=yes"]
key = ["-o", "IdentitiesOnly=yes", "-i", sys.argv[1]]
open_pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
session = subprocess.Popen([*log_in, *key, "beta", "buttervolume peer"], **open_pipes)
def ask(**request):
    session.stdin.write(json.dumps(request).encode() + b"\\n")
    session.stdin.flush()
    return session.stdout.readline().decode()
session.stdout.readline()
print("snapshots" in ask(do="look", volume=sys.argv[2]))
subprocess.run([*log_in, "beta", "touch /root/.ssh/authorized_keys"], check=True)
print(ask(do="look", volume=sys.argv[2]), ask(do="send", name=sys.argv[3]))
"""


def test_a_key_that_is_removed_is_of_no_use_in_a_session_that_is_open(
    pull: Key, alpha: Host, beta: Host, volumes: tuple[str, str]
) -> None:
    shop, _ = volumes
    snapshot = beta.snapshot(shop)

    said = alpha.run(sys.executable, "-c", REVOKED, pull.file, shop, snapshot).stdout

    assert said.startswith("True\n")
    assert said.count("the keys have changed here: log in anew") == 2


@ALL_KEYS
def test_no_key_touches_or_shows_a_volume_that_it_is_not_for(
    key: Key, beta: Host, volumes: tuple[str, str]
) -> None:
    _, secret = volumes
    snapshot = beta.snapshot(secret)

    answer = key.ask(
        {"do": "look", "volume": secret},
        {"do": "discard", "name": snapshot},
        {"do": "send", "name": snapshot},
        {"do": "received", "name": snapshot},
    )
    path = f"{VOLUMES}/{secret}/"
    reading = key.ask(asked=f"rsync --server --sender -logDtpre.iLsfxCIvu . {path}")

    assert answer.refusals() == ["NotAllowed"] * 4
    assert SECRET.encode() not in answer.stdout + reading.stdout
    assert reading.status != 0
    assert beta.snapshot_names(secret) == [snapshot]


def test_a_push_key_sends_snapshots_of_its_volumes(
    push: Key, alpha: Host, beta: Host, volumes: tuple[str, str]
) -> None:
    shop, _ = volumes
    name = f"{shop}@2026-11-26T10:00:00.000000"
    ware = command(Command.MKFILE, path=b"ware", ino=257)
    ware += command(Command.WRITE, path=b"ware", file_offset=0, data=b"a ware")

    answer = push.ask(
        {"do": "hello", "node": "alpha"}, announce(name), stream(name, ware),
        {"do": "look", "volume": shop},
    )  # fmt: skip

    received, look = answer.said()
    assert received["received"] == name
    assert [one["name"] for one in look["snapshots"]] == [name]
    assert beta.copied_file(name, "ware").read_text() == "a ware"
    assert answer.status == 0


def test_a_push_key_reads_nothing(push: Key, beta: Host, volumes: tuple[str, str]) -> None:
    shop, _ = volumes
    snapshot = beta.snapshot(shop)

    answer = push.ask({"do": "send", "name": snapshot}, {"do": "received", "name": snapshot})
    reading = push.ask(asked=f"rsync --server --sender -logDtpre.iLsf . {VOLUMES}/{shop}/")

    assert answer.refusals() == ["NotAllowed", "NotAllowed"]
    assert b"ware" not in answer.stdout + reading.stdout
    assert beta.snapshot_names(shop) == [snapshot]


def test_a_push_key_deletes_and_changes_nothing_that_is_whole(
    push: Key, beta: Host, volumes: tuple[str, str]
) -> None:
    shop, _ = volumes
    snapshot = beta.snapshot(shop)
    identity = UUID(beta.show(snapshot)["UUID"])
    before = beta.show(snapshot)

    discarded = push.ask({"do": "discard", "name": snapshot})
    overwritten = push.ask(announce(snapshot), stream(snapshot))
    same = push.ask(announce(snapshot, identity), stream(snapshot, uuid=identity))

    assert beta.show(snapshot) == before
    assert beta.copied_file(snapshot, "ware").read_text() == "a ware of the shop"
    assert discarded.status == 0
    assert overwritten.refusals() == same.refusals() == ["CopyInTheWay"]


def test_a_push_key_deletes_no_writable_subvolume_without_a_note_of_its_own(
    push: Key, beta: Host, volumes: tuple[str, str]
) -> None:
    shop, _ = volumes
    mine, others = f"{shop}@2026-11-26T09:00:00.000000", f"{shop}@2026-11-26T10:00:00.000000"
    for name in (mine, others):
        beta.run("btrfs", "subvolume", "create", f"{SNAPSHOTS}/{name}")
    beta.write(f"{SNAPSHOTS}/.buttervolume-receiving-{others}", f"gamma\n{others}\n")

    push.ask(
        {"do": "hello", "node": "gamma"}, {"do": "look", "volume": shop},
        {"do": "discard", "name": mine}, {"do": "discard", "name": others},
        announce(others), stream(others),
    )  # fmt: skip

    assert beta.snapshot_names(shop) == [mine, others]
    beta.run("rm", f"{SNAPSHOTS}/.buttervolume-receiving-{others}")


@pytest.mark.parametrize(
    "name", ["{secret}@2026", "{shop}@2026@alpha", "{shop}@x/../../y", "x", ""]
)
def test_a_push_key_makes_nothing_but_snapshots_of_its_volumes(
    push: Key, beta: Host, volumes: tuple[str, str], name: str
) -> None:
    shop, secret = volumes
    wanted = name.format(shop=shop, secret=secret)
    before = sorted(path.name for path in beta.path(SNAPSHOTS).iterdir())

    answer = push.ask(announce(wanted), stream(wanted))

    assert answer.status != 0
    assert sorted(path.name for path in beta.path(SNAPSHOTS).iterdir()) == before


def test_a_push_key_announces_one_thing_and_sends_that(
    push: Key, beta: Host, volumes: tuple[str, str]
) -> None:
    shop, secret = volumes
    name, other = f"{shop}@2026-11-26T10:00:00.000000", f"{secret}@2026-11-26T10:00:00.000000"
    before = sorted(path.name for path in beta.path(SNAPSHOTS).iterdir())

    for sent in (
        stream(other),
        stream(name, uuid=UUID(int=8)),
        stream(name, command(Command.SUBVOL, path=other.encode(), uuid=UUID(int=8), ctransid=7)),
        stream(name, command(Command.MKDIR, path=b"../x", ino=257)),
        b"no stream at all",
        b"",
    ):
        assert push.ask(announce(name), sent).status != 0
        assert sorted(path.name for path in beta.path(SNAPSHOTS).iterdir()) == before


def test_a_push_key_takes_no_data_from_a_volume_that_it_is_not_for(
    push: Key, beta: Host, volumes: tuple[str, str]
) -> None:
    """Else a key that may pull as well would read what it may not."""
    shop, secret = volumes
    snapshot, name = beta.snapshot(secret), f"{shop}@2026-11-26T10:00:00.000000"
    identity = UUID(beta.show(snapshot)["UUID"])
    copy = command(Command.MKFILE, path=b"f", ino=257) + command(
        Command.CLONE, file_offset=0, clone_len=4096, path=b"f", clone_uuid=identity,
        clone_ctransid=1, clone_path=b"file", clone_offset=0,
    )  # fmt: skip
    begin = command(
        Command.SNAPSHOT, path=name.encode(), uuid=UUID(int=7), ctransid=7,
        clone_uuid=identity, clone_ctransid=1,
    )  # fmt: skip

    as_source = push.ask(announce(name), stream(name, copy))
    as_parent = push.ask(announce(name, parent=identity), header(2) + begin + command(Command.END))

    assert as_source.refusals() == ["StreamRefused"]
    assert as_parent.refusals() == ["NoSuchParent"]
    assert beta.snapshot_names(shop) == []


def test_a_push_key_leaves_the_free_space_that_is_to_be_kept(
    push: Key, beta: Host, volumes: tuple[str, str]
) -> None:
    shop, _ = volumes
    name = f"{shop}@2026-11-26T10:00:00.000000"
    status = os.statvfs(beta.path(SNAPSHOTS))
    share = status.f_bavail * 100 // status.f_blocks - 6  # which leaves 240 MiB and more
    block = os.urandom(MEBIBYTE // 2)
    writes = [
        command(Command.WRITE, path=b"f", file_offset=at * len(block), data=block)
        for at in range(800)
    ]
    big = stream(name, command(Command.MKFILE, path=b"f", ino=257), *writes)
    reserved = stream(
        name,
        command(Command.MKFILE, path=b"f", ino=257),
        command(Command.FALLOCATE, path=b"f", fallocate_mode=bytes(4), file_offset=0, size=1 << 29),
    )

    with beta.changed_file("/etc/buttervolume/config.ini", f"[DEFAULT]\nMIN_FREE = {share}%\n"):
        answers = [push.ask(announce(name), sent) for sent in (big, reserved)]

    assert [answer.refusals() for answer in answers] == [["TooLittleSpace"]] * 2
    assert beta.snapshot_names(shop) == []


def test_a_push_key_that_breaks_off_leaves_nothing(
    push: Key, beta: Host, volumes: tuple[str, str]
) -> None:
    shop, _ = volumes
    name = f"{shop}@2026-11-26T10:00:00.000000"
    before = sorted(path.name for path in beta.path(SNAPSHOTS).iterdir())

    push.ask(announce(name), stream(name)[:-3])

    wait_until(lambda: sorted(p.name for p in beta.path(SNAPSHOTS).iterdir()) == before)


def test_a_pull_key_reads_the_snapshots_of_its_volumes(
    pull: Key, beta: Host, volumes: tuple[str, str]
) -> None:
    shop, _ = volumes
    snapshot = beta.snapshot(shop)

    answer = pull.ask({"do": "send", "name": snapshot, "stream": 1})

    greeting, said, rest = answer.stdout.split(b"\n", 2)
    assert json.loads(greeting)["verbs"] == ["look", "received", "send"]
    assert json.loads(said)["uuid"] == beta.show(snapshot)["UUID"]
    assert rest.startswith(b"btrfs-stream\0")
    assert b"a ware of the shop" in rest
    assert rest.endswith(b"{}\n")


def test_a_pull_key_changes_nothing_but_its_own_marker(
    pull: Key, beta: Host, volumes: tuple[str, str]
) -> None:
    shop, _ = volumes
    first, second = beta.snapshot(shop), beta.snapshot(shop)
    made = f"{shop}@2026-11-26T10:00:00.000000"

    answer = pull.ask(
        {"do": "hello", "node": "gamma"},
        {"do": "received", "name": first},
        {"do": "received", "name": second},
        {"do": "discard", "name": first},
        {"do": "received", "name": f"{shop}@1999"},
        announce(made),
        stream(made),
    )

    assert beta.snapshot_names(shop) == [first, second, f"{second}@alpha"]
    assert answer.refusals()[2:] == ["NotAllowed", "NoSuchSnapshot", "NotAllowed"]


def test_a_pull_key_without_a_name_can_move_the_mark_of_another_host(
    alpha: Host, beta: Host, install: None, volumes: tuple[str, str]
) -> None:
    shop, _ = volumes
    first, second = beta.snapshot(shop), beta.snapshot(shop)
    nameless = steal(alpha, beta, "pull", node=None)

    for snapshot in (first, second):
        nameless.ask({"do": "hello", "node": "gamma"}, {"do": "received", "name": snapshot})

    assert beta.snapshot_names(shop) == [first, second, f"{second}@gamma"]


def test_a_pull_key_gets_no_copy_that_is_not_whole(
    pull: Key, beta: Host, volumes: tuple[str, str]
) -> None:
    shop, _ = volumes
    name = f"{shop}@2026-11-26T10:00:00.000000"
    beta.run("btrfs", "subvolume", "create", f"{SNAPSHOTS}/{name}")

    answer = pull.ask({"do": "send", "name": name}, {"do": "send", "name": f"{shop}@1999"})

    assert answer.refusals() == ["IncompleteSnapshot", "NoSuchSnapshot"]


def test_a_sync_key_reads_its_volumes_and_nothing_over_their_links(
    sync: Key, alpha: Host, beta: Host, volumes: tuple[str, str]
) -> None:
    shop, secret = volumes
    beta.file(shop, "new").write_text("a new ware")
    beta.file(shop, "link").symlink_to(f"{VOLUMES}/{secret}/file")
    beta.file(shop, "dir").symlink_to("/etc")

    with sync.in_use():
        alpha.api.call("Volume.Sync", Volumes=[shop], Hosts=["beta"])

    assert alpha.file(shop, "new").read_text() == "a new ware"
    assert alpha.file(shop, "link").readlink() == Path(f"{VOLUMES}/{secret}/file")
    assert alpha.file(shop, "dir").is_symlink()


def test_a_sync_key_has_no_session(sync: Key, beta: Host, volumes: tuple[str, str]) -> None:
    shop, _ = volumes
    snapshot = beta.snapshot(shop)

    answer = sync.ask(
        {"do": "look", "volume": shop}, {"do": "send", "name": snapshot},
        {"do": "discard", "name": snapshot}, announce(f"{shop}@2026"),
    )  # fmt: skip

    assert answer.refusals() == ["NotAllowed"] * 4
    assert beta.snapshot_names(shop) == [snapshot]


def test_what_rsync_is_shown_holds_no_secret_of_the_host(
    sync: Key, beta: Host, volumes: tuple[str, str]
) -> None:
    """Filters go over the protocol, unchecked, and could name files to be merged."""
    shop, secret = volumes
    beta.run("mkdir", "-p", "/etc/rsync-test")
    beta.write("/etc/rsync-test/filter", "- ware\n")
    beta.write(f"{VOLUMES}/{secret}/filter", "- ware\n")

    def brought(filter_file: str) -> list[str]:
        with sync.in_use():
            done = sync.thief.run(
                "rsync", "-rn", "--out-format=%n", "-e", "ssh -p 1122",
                f"--filter=:s {filter_file}", f"beta:{VOLUMES}/{shop}/", "/run/nowhere/",
            )  # fmt: skip
        return done.stdout.split()

    assert "ware" in brought("/etc/rsync-test/filter")
    assert "ware" in brought(f"{VOLUMES}/{secret}/filter")
    assert "ware" in brought(f"../{secret}/filter")


def test_a_key_may_have_several_roles(
    alpha: Host, beta: Host, install: None, volumes: tuple[str, str]
) -> None:
    shop, _ = volumes
    key = steal(alpha, beta, "push", "pull")
    snapshot = beta.snapshot(shop)

    answer = key.ask({"do": "send", "name": snapshot})

    assert json.loads(answer.stdout.split(b"\n", 1)[0])["verbs"] == [
        "discard", "look", "receive", "received", "send",
    ]  # fmt: skip
    assert b"btrfs-stream\0" in answer.stdout


@ALL_KEYS
def test_nonsense_ends_the_session_and_nothing_else(key: Key, beta: Host) -> None:
    for said in (
        b"\0" * 100, b"x" * 200_000, b"[]\n", b"{\n", b'{"do": "receive"}\n', b'{"do": ["x"]}\n',
        b'{"do": "look"}\n', b'{"do": "look", "volume": 7}\n', b'{"do": "hello", "node": {}}\n',
        b'{"do":"receive","name":"shop-1@x","uuid":"x","ctransid":1}\n',
        b'{"do":"receive","name":"shop-1@x","uuid":"00000000-0000-0000-0000-000000000007",'
        b'"ctransid":1e999}\n',
    ):  # fmt: skip
        answer = key.ask(said)
        assert "Traceback" not in answer.stderr + answer.stdout.decode(errors="replace"), said


@pytest.mark.parametrize("said", [b"\0", b"\0\0", b"rsync\0\0", b"rsync"])
def test_arguments_of_rsync_that_are_none_end_the_session_and_nothing_else(
    sync: Key, said: bytes
) -> None:
    answer = sync.ask(said, asked="rsync --server --sender -s")

    assert answer.status != 0
    assert "Traceback" not in answer.stderr
    assert "buttervolume: " in answer.stderr


def test_a_daemon_sends_by_a_push_key_and_its_next_send_is_of_the_changes(
    push: Key, alpha: Host, beta: Host, volumes: tuple[str, str]
) -> None:
    shop, secret = volumes
    with push.in_use():
        first = alpha.snapshot(shop)
        assert alpha.send(first, beta) == ""
        alpha.file(shop, "more").write_text("more")
        second = alpha.snapshot(shop)
        assert alpha.send(second, beta) == ""
        assert "not for this volume" in alpha.send(alpha.snapshot(secret), beta)

    assert beta.snapshot_names(shop) == [first, second]
    assert beta.show(second)["Parent UUID"] == beta.show(first)["UUID"]
    assert beta.copied_file(second, "more").read_text() == "more"


def test_a_daemon_receives_by_a_pull_key_and_leaves_its_mark(
    pull: Key, alpha: Host, beta: Host, volumes: tuple[str, str]
) -> None:
    shop, secret = volumes
    beta.snapshot(secret)
    snapshot = beta.snapshot(shop)
    with pull.in_use():
        answer = alpha.api.call("Snapshot.Receive", Name=shop, Host="beta")
        refused = alpha.start("Snapshot.Receive", Name=secret, Host="beta").error()

    assert answer["Snapshot"] == snapshot
    assert alpha.copied_file(snapshot, "ware").read_text() == "a ware of the shop"
    assert beta.snapshot_names(shop) == [snapshot, f"{snapshot}@alpha"]
    assert "not for this volume" in refused


@pytest.mark.parametrize(
    ("key", "allowed"), [("push", "discard, look, receive"), ("pull", "look, received, send")],
    indirect=["key"],
)  # fmt: skip
def test_the_doctor_of_the_other_host_finds_a_guarded_key_good(
    key: Key, alpha: Host, beta: Host, allowed: str
) -> None:
    with key.in_use():
        done = alpha.cli("doctor", "--json", beta.name)

    found = {one["Check"]: one for one in json.loads(done.stdout)["Findings"]}
    assert found["key"]["Message"] == f"it is accepted, and guarded: {allowed}"
    assert found["clock"]["Level"] == "good"


# follow


def asked(volume: str, what: str, **more: object) -> dict[str, Any]:
    return {"do": "follow", "volume": volume, "what": what, **more}


def test_a_follow_key_asks_about_its_volumes_and_no_others(
    follow: Key, volumes: tuple[str, str]
) -> None:
    shop, secret = volumes
    answer = follow.ask(*(asked(shop, each) for each in ("lock", "report", "beat")))
    assert answer.refusals() == [""] * 3
    verbs = ("lock", "report", "release", "hear")
    answer = follow.ask(*(asked(secret, each, grantee="alpha") for each in verbs))
    assert answer.refusals() == ["NotAllowed"] * 4


def test_a_follow_key_has_nothing_let_go_without_its_lock_nor_to_somebody_else(
    follow: Key, volumes: tuple[str, str], beta: Host
) -> None:
    shop, _ = volumes
    beta.create(shop, follow="alpha:beta")
    assert follow.ask(asked(shop, "release", grantee="alpha")).refusals() == ["NotAllowed"]
    locked = follow.ask(asked(shop, "lock"), asked(shop, "release", grantee="gamma"))
    assert locked.refusals() == ["", "NotAllowed"]
    never_used = follow.ask(asked(shop, "lock"), asked(shop, "release", grantee="alpha"))
    assert "does not own it" in never_used.said()[1]["refused"]


def test_a_follow_key_deletes_nothing(follow: Key, volumes: tuple[str, str], beta: Host) -> None:
    shop, _ = volumes
    beta.create(shop, follow="alpha:beta")
    snapshot = beta.snapshot(shop)
    answer = follow.ask(asked(shop, "lock"), {"do": "drop", "volume": shop})
    assert answer.refusals() == ["", "NotAllowed"]
    follow.ask({"do": "discard", "name": snapshot})
    assert snapshot in beta.snapshot_names(shop)
    assert beta.file(shop, "ware").read_text() == "a ware of the shop"


@pytest.mark.parametrize(
    "more",
    [
        {"line": None, "dropped": []},
        {"line": {"owners": ["alpha"] * 1000, "epochs": []}, "dropped": []},
        {"line": {"owners": ["alpha"], "epochs": ["aaaa t 0 0 0"]}, "dropped": []},
        {"line": {"owners": ["../etc"], "epochs": ["aaaa f 0"]}, "dropped": []},
        {"line": {"owners": ["alpha"], "epochs": ["aaaa f 0"]}, "dropped": "all"},
    ],
)
def test_what_a_follow_key_tells_must_be_well_formed(
    follow: Key, volumes: tuple[str, str], more: dict[str, object], beta: Host
) -> None:
    shop, _ = volumes
    beta.create(shop, follow="alpha:beta")
    assert follow.ask(asked(shop, "hear", **more)).refusals() == ["BadCharter"]
    assert beta.api.call("Get", Name=shop)["Volume"]["Status"]["Epoch"] == 0
