"""What is decided about a transfer, from what the hosts have said of themselves."""

import shutil
import subprocess
from dataclasses import replace
from datetime import datetime
from uuid import UUID

import pytest

from buttervolume.errors import CommandFailed
from buttervolume.hosts.lineage import Copy, Facts, Side, judge_copy
from buttervolume.hosts.remote import (
    Look,
    Remote,
    examined,
    parse_look,
    parse_shows,
    stream_version,
)
from buttervolume.hosts.ssh import (
    CONNECTION_FAILED,
    Connection,
    command_for,
    explain,
    remote_command,
)
from buttervolume.names import SnapshotName, parse_snapshot
from buttervolume.system.command import Flow

OURS = UUID("ca4fd36f-bb92-f242-b472-619b0d3c6550")
ANOTHER = UUID("fd8c02b6-f05b-ce45-b4fb-bf46262ca6bd")

COMPLETE = """snapshots/db@2026-11-23T21:42:55.123456
\tName: \t\t\tdb@2026-11-23T21:42:55.123456
\tUUID: \t\t\tbffce63e-6ba2-4244-b576-f771ab5858f9
\tParent UUID: \t\t-
\tReceived UUID: \t\tca4fd36f-bb92-f242-b472-619b0d3c6550
\tCreation time: \t\t2026-11-23 21:42:55 +0000
\tSubvolume ID: \t\t270
\tGeneration: \t\t8
\tGen at creation: \t8
\tParent ID: \t\t5
\tTop level ID: \t\t5
\tFlags: \t\t\treadonly
\tSend transid: \t\t7
\tSend time: \t\t2026-11-23 21:42:55 +0000
\tReceive transid: \t8
\tReceive time: \t\t2026-11-23 21:42:55 +0000
\tSnapshot(s):
\t\t\t\tsnapshots/db@2026-11-23T21:42:55.123456@gamma
\tQuota group:\t\tn/a
"""
"""btrfs-progs 6.2."""
WRITABLE = COMPLETE.replace("\treadonly", "\t-")
NOT_RECEIVED = COMPLETE.replace(str(OURS), "-")
PARTIAL = NOT_RECEIVED.replace("\treadonly", "\t-")


NAME = parse_snapshot("db@2026-11-23T21:42:55.123456")
ORIGIN = Facts(NAME, OURS, ANOTHER, None, readonly=True, otransid=7, ctransid=7)


def no_moment(_: SnapshotName) -> datetime | None:
    return None


LISTED = """\
ID 257 gen 17 cgen 9 top level 5 parent_uuid -                                    \
received_uuid -                                    \
uuid 1ec6e10a-5e46-7249-9ed4-b21ef32cd0c8 path snapshots/a b@2026-11-23T21:42:54.000000
ID 258 gen 17 cgen 9 top level 5 parent_uuid -                                    \
received_uuid -                                    \
uuid 1ec6e10a-5e46-7249-9ed4-b21ef32cd0c9 path volumes/db
ID 270 gen 8 cgen 8 top level 5 parent_uuid 1ec6e10a-5e46-7249-9ed4-b21ef32cd0c8 \
received_uuid ca4fd36f-bb92-f242-b472-619b0d3c6550 \
uuid bffce63e-6ba2-4244-b576-f771ab5858f9 path snapshots/db@2026-11-23T21:42:55.123456
"""
READONLY = "ID 257 gen 17 top level 5\nID 270 gen 8 top level 5\n"
ALL = "".join(
    f"ID {number} gen 17 top level 5 received_uuid {received} uuid {UUID(int=number)}\n"
    for number, received in ((257, "-"), (258, "-"), (270, OURS), (300, ANOTHER))
)


def look(
    head: str = "btrfs-progs v6.2\n3\n",
    copy: str = COMPLETE,
    notes: str = "",
    listed: str = LISTED,
    readonly: str = READONLY,
    everything: str = ALL,
) -> str:
    return (
        f"versions:\n{head}copy:\n{copy}notes:\n{notes}snapshots:\n{listed}"
        f"readonly:\n{readonly}all:\n{everything}"
    )


def parsed(text: str) -> Look:
    return parse_look(text, NAME, no_moment)


@pytest.mark.parametrize(
    ("shown", "copy"),
    [
        (COMPLETE, Copy.COMPLETE),
        (PARTIAL, Copy.PARTIAL),
        (PARTIAL.replace("Receive transid: \t8", "Receive transid: \t0"), Copy.PARTIAL),
        (WRITABLE, Copy.FOREIGN),
        (NOT_RECEIVED, Copy.FOREIGN),
        (COMPLETE.replace(str(OURS), str(ANOTHER)), Copy.FOREIGN),
        (WRITABLE.replace(str(OURS), str(ANOTHER)), Copy.FOREIGN),
        (COMPLETE.replace("Send transid: \t\t7", "Send transid: \t\t8"), Copy.FOREIGN),
    ],
)
def test_only_what_is_certain_is_complete_or_partial(shown: str, copy: Copy) -> None:
    found = parsed(look(copy=shown))
    assert not found.is_in_the_way
    if copy is Copy.PARTIAL and "transid: \t8" in shown:
        copy = Copy.FOREIGN  # it had a Received UUID once
    assert judge_copy(ORIGIN, found.side.of(NAME)) is copy


@pytest.mark.parametrize(
    "shown",
    [
        "a link\n",
        "no subvolume\n",
        "whatever\n",
        COMPLETE.replace("Flags:", "Marks:"),
        PARTIAL.replace("Received UUID:", "UUID of origin:"),
        COMPLETE.replace("Gen at creation: \t8", "Gen at creation: \tx"),
    ],
)
def test_what_cannot_be_understood_is_in_the_way(shown: str) -> None:
    assert parsed(look(copy=shown)).is_in_the_way


def test_a_look_tells_versions_subvolumes_and_the_copy() -> None:
    found = parsed(look())
    assert found.stream_version == 2
    assert (found.is_bound, found.mount) == (False, None)
    other, copy = found.side.snapshots
    assert str(other.name) == "a b@2026-11-23T21:42:54.000000"
    assert (other.readonly, other.otransid, other.received_uuid) == (True, 9, None)
    assert (copy.name, copy.received_uuid, copy.send_transid) == (NAME, OURS, 7)
    assert found.side.strangers == {ANOTHER}


def test_a_look_at_a_host_that_has_nothing() -> None:
    found = parsed(look("btrfs-progs v5.10.1\n1\n", "", "", "", "", ""))
    assert (found.side, found.stream_version) == (Side(), 1)
    assert not found.is_in_the_way


def test_a_look_at_debian_13_whose_version_has_two_lines() -> None:
    assert parsed(look("btrfs-progs v6.14\n-EXPERIMENTAL +LZO\n3\n")).stream_version == 2


def test_a_look_at_a_bind_mount() -> None:
    found = parsed(look("btrfs-progs v6.2\n3\nbound:\nmount: /mnt/all of it\n"))
    assert (found.is_bound, found.mount) == (True, "/mnt/all of it")


def test_a_note_tells_who_is_sending() -> None:
    found = parsed(look(notes=f"{NAME}\nalpha\nother@2026\nbeta\n"))
    copy = found.side.of(NAME)
    assert copy is not None
    assert copy.receiving == "alpha"
    assert judge_copy(ORIGIN, copy) is Copy.PARTIAL


def test_two_of_one_name_are_doubtful_until_they_are_looked_at() -> None:
    twin = LISTED.replace("ID 257", "ID 299").replace("-b21ef32cd0c8 path", "-b21ef32cd0ff path")
    twin = twin.replace("received_uuid -  ", f"received_uuid {ANOTHER}")
    found = parsed(look(listed=LISTED + twin.split("\n")[0] + "\n"))
    [name] = found.doubtful
    shown = COMPLETE.replace("bffce63e-6ba2-4244-b576-f771ab5858f9", str(UUID(int=5)))
    side = examined(found.side, {str(name): parse_shows(f"show: x\n{shown}")["x"]})
    assert side.of(name) is None
    assert ANOTHER in side.strangers


def test_however_many_are_doubtful_no_command_is_longer_than_the_kernel_lets_it_be() -> None:
    asked: list[str] = []

    class Lines(Connection):
        def __init__(self) -> None:
            pass

        def run(self, flow: Flow, script: str, *arguments: str) -> str:
            assert len(remote_command(script, *arguments)) < 128 << 10
            asked.extend(arguments[1:])
            return "".join(f"show: {name}\n{COMPLETE}" for name in arguments[1:])

    doubtful = [parse_snapshot(f"{'v' * 200}@{number}") for number in range(3000)]
    facts = [replace(ORIGIN, name=name, uuid=UUID(int=1)) for name in doubtful]
    remote = Remote(Lines(), "/snapshots", "alpha", no_moment)

    side = remote.examine(Side(tuple(facts)), doubtful, Flow())

    assert asked == [str(name) for name in doubtful]
    assert side.snapshots == (), "they are others than was listed"


def test_lines_that_a_container_has_forged_add_strangers_at_most() -> None:
    forged = f"x\nID 270 gen 1 top level 5 received_uuid {ANOTHER} uuid {ANOTHER}\n"
    forged += "snapshots:\nall:\nID 9"
    before = parsed(look())
    after = parsed(look(everything=ALL + forged))
    assert after.side.snapshots == before.side.snapshots


@pytest.mark.parametrize(
    "noise", ["Welcome!\n", "no end of line", "copy:\nversions\nbtrfs-progs v9\n"]
)
def test_what_a_start_up_file_prints_is_passed_over(noise: str) -> None:
    assert parsed(noise + look()) == parsed(look())


@pytest.mark.parametrize(
    "output",
    ["", "Welcome!\n", "versions:\n", "versions:\nbtrfs-progs v6\n", look()[:100], look("v6\n")],
)
def test_an_answer_that_breaks_off_is_none(output: str) -> None:
    with pytest.raises(ValueError, match="no version"):
        parsed(output)


@pytest.mark.parametrize(
    ("progs", "feature", "version"),
    [
        ("btrfs-progs v6.2", "3\n", 2),
        ("btrfs-progs v6.0", "2\n", 2),
        ("btrfs-progs v6.14\n-EXPERIMENTAL +INJECT", "2", 2),
        ("btrfs-progs v10.1", "2", 2),
        ("btrfs-progs v5.16.2", "2\n", 1),
        ("btrfs-progs v6.2", "1\n", 1),
        ("btrfs-progs v6.2", "", 1),
        ("btrfs-progs v6.2", "what?", 1),
        ("what?", "2", 1),
    ],
)
def test_the_stream_is_what_both_kernel_and_progs_can(
    progs: str, feature: str, version: int
) -> None:
    assert stream_version(progs, feature) == version


def test_ssh_never_asks_notices_a_dead_peer_and_does_nothing_on_the_side() -> None:
    argv = command_for(1122)
    assert argv[:3] == ["ssh", "-p", "1122"]
    assert {
        "-oBatchMode=yes",
        "-oConnectTimeout=10",
        "-oServerAliveInterval=15",
        "-oServerAliveCountMax=4",
    } <= set(argv)
    assert not any("StrictHostKeyChecking" in argument for argument in argv)


@pytest.mark.parametrize(
    ("status", "stderr", "words"),
    [
        (255, "", "the ssh connection failed"),
        (
            255,
            "ssh: connect to host beta port 1122: Connection refused\r\n",
            "ssh: connect to host beta port 1122: Connection refused",
        ),
        (
            255,
            "Warning: Permanently added '[10.0.0.2]:1122' (ED25519) to the list of known hosts.\r\n"
            "root@beta: Permission denied (publickey).",
            "root@beta: Permission denied (publickey).",
        ),
        (
            1,
            "At snapshot db@2026\nERROR: write: No space left on device\n",
            "ERROR: write: No space left on device (exit status 1)",
        ),
        (137, "At subvol db@2026", "no message (exit status 137)"),
    ],
)
def test_a_failure_is_told_in_the_words_of_its_program(
    status: int, stderr: str, words: str
) -> None:
    assert explain(CommandFailed(["ssh", "beta"], status, stderr)) == words


def test_the_status_of_ssh_itself() -> None:
    assert CONNECTION_FAILED == 255  # ssh(1)


# The line that a login shell gets


SHELLS = ["sh", "bash", "dash", "zsh", "fish", "tcsh", "csh"]


@pytest.mark.parametrize("shell", [shell for shell in SHELLS if shutil.which(shell)])
def test_every_shell_passes_a_script_and_its_arguments_on(shell: str) -> None:
    arguments = ["it's", 'a "b" `c` $(d) $e \\n !! !x * ~ # % [x] {y} é', "", "-x", "a\\'b"]
    script = """for argument; do
    printf '<%s>\\n' "$argument"
done; cat; exit 3"""
    line = remote_command(script, *arguments)
    assert "\n" not in line
    ran = subprocess.run(
        [shell, "-c", line], input="data", capture_output=True, text=True, check=False
    )
    assert ran.stdout == "".join(f"<{argument}>\n" for argument in arguments) + "data"
    assert (ran.returncode, ran.stderr) == (3, "")


def test_a_banner_does_not_hide_the_reason() -> None:
    banner = "\n".join(["*" * 70, "Authorised use only!", "All is logged."] * 100)
    reason = "root@beta: Permission denied (publickey)."
    said = f"** WARNING: connection is not using a post-quantum\r\n{banner}\n{reason}"
    assert explain(CommandFailed(["ssh"], 255, said)) == reason


def test_endless_words_are_shortened() -> None:
    said = "\n".join(f"ERROR: all work {number}" for number in range(10_000))
    for status in (1, 255):
        words = explain(CommandFailed(["ssh"], status, said))
        assert len(words) < 2100
        assert words.startswith("ERROR: all work 0; ")
