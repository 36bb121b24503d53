"""What a key may do: verbs, volumes, rsync's arguments, and the line that says so."""

import shlex
from pathlib import Path

import pytest

from buttervolume.errors import BadName, NotAllowed
from buttervolume.hosts.guard import (
    ROLES,
    Guard,
    authorized_line,
    check_pattern,
    is_secluded,
    parse_rsync,
    wants_session,
)

VOLUMES = Path("/var/lib/buttervolume/volumes")
PUSH, PULL, SYNC, FOLLOW = (Guard(frozenset([role]), ("shop-*", "db")) for role in ROLES)
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIaqK1zYt9Cq root@web1"
SHORT = "-ulHogDtpAXrSe.iLsfxCIvu"
RSYNC = f"rsync --server --sender {SHORT} --timeout=300 --numeric-ids ."


def test_each_role_has_its_verbs_and_together_they_have_all() -> None:
    assert PUSH.verbs == {"look", "receive", "discard"}
    assert PULL.verbs == {"look", "send", "received"}
    assert SYNC.verbs == {"rsync"}
    assert Guard(frozenset(["push", "pull"])).verbs == PUSH.verbs | PULL.verbs
    assert FOLLOW.verbs == PUSH.verbs | PULL.verbs | {"follow"}
    assert Guard().verbs == FOLLOW.verbs | SYNC.verbs | {"drop"}
    assert not Guard().is_on


@pytest.mark.parametrize("verb", ["send", "received", "rsync", "", "hello", None, ["look"], 7])
def test_no_other_verb_is_allowed(verb: object) -> None:
    with pytest.raises(NotAllowed):
        PUSH.check_verb(verb)


@pytest.mark.parametrize("volume", ["shop-a", "shop-", "db"])
def test_a_volume_that_matches_one_of_the_patterns_may_be_touched(volume: str) -> None:
    assert PUSH.check_volume(volume) == volume


@pytest.mark.parametrize("volume", ["dbx", "shop", "xshop-a", "DB", "secret"])
def test_another_volume_may_not(volume: str) -> None:
    with pytest.raises(NotAllowed):
        PUSH.check_volume(volume)


@pytest.mark.parametrize("volume", ["shop-/../secret", "shop-a@b", "", "..", "shop-\n", "shop-\0"])
def test_what_is_no_name_of_a_volume_is_refused_even_if_it_matches(volume: str) -> None:
    with pytest.raises(BadName):
        PUSH.check_volume(volume)


def test_the_other_side_has_the_name_that_it_is_given_here() -> None:
    assert PUSH.sender("web1") == "web1"
    assert Guard(PUSH.roles, node="web1").sender("backup") == "web1"
    for said in (None, "", "a/b", "-x", 7, ["web1"]):
        with pytest.raises(BadName):
            PUSH.sender(said)


@pytest.mark.parametrize("asked", [None, "", "buttervolume peer", "'buttervolume'  peer"])
def test_a_session_is_asked_for_plainly(asked: str | None) -> None:
    assert wants_session(asked)


@pytest.mark.parametrize(
    "asked",
    [
        "sh",
        "sh -c id",
        "buttervolume peer; id",
        "buttervolume peer --role pull",
        "buttervolume run",
        "$(id)",
        "rsync --server -logDtpr . /",
        "rsync --daemon",
        "/usr/bin/rsync --server --sender",
        "rsync --sender --server",
        "buttervolume 'peer",
        "scp -f x",
        "internal-sftp",
        "buttervolume\npeer\nid",
    ],
)
def test_nothing_else_may_be_asked_for(asked: str) -> None:
    with pytest.raises(NotAllowed):
        wants_session(asked)


def test_rsync_reads_the_volume_that_is_named_with_what_our_side_asks_for() -> None:
    reading = parse_rsync(f"{RSYNC} {VOLUMES}/db/", [], VOLUMES, SYNC)

    assert not wants_session(f"{RSYNC} {VOLUMES}/db/")
    assert reading.argv(VOLUMES) == [
        *("rsync", "--server", "--sender", SHORT, "--timeout=300", "--numeric-ids", "."),
        f"{VOLUMES}/db/",
    ]


def test_rsync_s_arguments_may_come_over_its_input() -> None:
    asked = f"rsync --server --sender -s{SHORT[1:]}"

    reading = parse_rsync(
        asked, ["--timeout=9999", "--numeric-ids", ".", f"{VOLUMES}/db"], VOLUMES, SYNC
    )

    assert is_secluded(asked)
    assert not is_secluded(f"{RSYNC} {VOLUMES}/db/")
    assert reading.argv(VOLUMES)[3:5] == [SHORT, "--timeout=300"]


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/etc/shadow",
        f"{VOLUMES}",
        f"{VOLUMES}/",
        f"{VOLUMES}/secret/",
        f"{VOLUMES}/db/../secret/",
        f"{VOLUMES}/db/sub",
        f"{VOLUMES}/./db/",
        f"{VOLUMES}//db/",
        "db",
        "db/",
        f"{VOLUMES}/db//",
        "/var/lib/buttervolume/snapshots/db@2026/",
        f"{VOLUMES}/*",
        f"{VOLUMES}/shop-*/../secret",
        f"{VOLUMES}/.buttervolume-removed/",
    ],
)
def test_rsync_reads_nothing_else(path: str) -> None:
    for paths in ([path], [f"{VOLUMES}/db/", path]):
        with pytest.raises((NotAllowed, BadName)):
            parse_rsync(f"{RSYNC} {shlex.join(paths)}", [], VOLUMES, SYNC)


@pytest.mark.parametrize(
    "option",
    [
        "-L",
        "-uL",
        "-K",
        "-k",
        "-R",
        "-rR",
        "-F",
        "-r -L",
        "--copy-links",
        "--remove-source-files",
        "--files-from=/etc/shadow",
        "--log-file=/etc/passwd",
        "--daemon",
        "--rsh=sh",
        "--write-devices",
        "--copy-devices",
        "--filter=merge /etc/shadow",
        "--timeout=x",
        "-e.iLs",
        "--timeout=1 --copy-links",
        "--server",
        "--no-numeric-ids",
        "-M--copy-links",
        "--delete",
        "-vC -u",
        "--temp-dir=/etc",
        "-T/etc",
        "--partial-dir=/etc",
        "--fake-super",
        "-f:/etc/shadow",
    ],
)
def test_rsync_has_no_other_option(option: str) -> None:
    with pytest.raises(NotAllowed):
        parse_rsync(f"rsync --server --sender {option} . {VOLUMES}/db/", [], VOLUMES, SYNC)
    words = [*shlex.split(option), ".", f"{VOLUMES}/db/"]
    with pytest.raises(NotAllowed):
        parse_rsync("rsync --server --sender -sr -r", words, VOLUMES, SYNC)


def test_rsync_without_a_volume_reads_nothing() -> None:
    for asked in (RSYNC, "rsync --server --sender", f"rsync --server --sender {VOLUMES}/db/"):
        with pytest.raises(NotAllowed):
            parse_rsync(asked, [], VOLUMES, SYNC)


def test_the_line_of_authorized_keys_is_the_one_of_the_manual() -> None:
    guard = Guard(frozenset(["push"]), ("shop-*",))

    line = authorized_line(f"{KEY}\n", guard, "buttervolume")

    assert line == (f"restrict,command=\"buttervolume peer --role push --volumes 'shop-*'\" {KEY}")


def test_the_line_holds_every_role_pattern_and_the_name() -> None:
    guard = Guard(frozenset(["push", "pull"]), ("a", "b-?"), "web1")

    line = authorized_line(KEY, guard, "/opt/it's/buttervolume")

    command = line.removeprefix('restrict,command="').partition('" ssh-')[0].replace('\\"', '"')
    assert shlex.split(command) == [
        *("/opt/it's/buttervolume", "peer", "--role", "pull", "--role", "push"),
        *("--volumes", "a", "--volumes", "b-?", "--node", "web1"),
    ]


@pytest.mark.parametrize(
    "key",
    [
        "",
        "ssh-ed25519",
        f"no-pty {KEY}",
        f"{KEY}\n{KEY}",
        "ssh-ed25519 AAAA\nssh-rsa BBBB",
        'command="sh" ssh-ed25519 AAAA',
        "-----BEGIN OPENSSH PRIVATE KEY-----",
        "ssh-ed25519 AA AA\x07",
        "hello world",
    ],
)
def test_what_is_no_public_key_gets_no_line(key: str) -> None:
    with pytest.raises(BadName):
        authorized_line(key, PUSH, "buttervolume")


@pytest.mark.parametrize("comment", ["jérôme@hôte", "root@web1 (nouveau)", "\ufffd", ""])
def test_a_key_may_have_any_comment_in_its_line(comment: str) -> None:
    line = authorized_line(f"ssh-ed25519 AAAA {comment}\r\n", PUSH, "buttervolume")

    assert line.endswith(f'" ssh-ed25519 AAAA {comment}'.rstrip())


@pytest.mark.parametrize("pattern", ["", 'a"b', "a'b", "a b", "a\\b", "a\nb", "a/b", "$HOME", "ä"])
def test_a_pattern_that_could_mean_something_to_sshd_is_refused(pattern: str) -> None:
    with pytest.raises(BadName):
        check_pattern(pattern)
