"""What is decided about a transfer, from what the hosts have said of themselves."""

from dataclasses import replace
from datetime import datetime
from uuid import UUID

import pytest

from buttervolume.errors import CommandFailed
from buttervolume.hosts.replication import (
    Copy,
    identity,
    judge_copy,
    parents,
    parse_look,
    stream_version,
)
from buttervolume.hosts.ssh import CONNECTION_FAILED, command_for, explain
from buttervolume.names import Snapshot, parse_snapshot
from buttervolume.system.btrfs import Subvolume

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


@pytest.mark.parametrize(
    ("shown", "copy"),
    [
        ("", Copy.ABSENT),
        ("\n", Copy.ABSENT),
        (COMPLETE, Copy.COMPLETE),
        (PARTIAL, Copy.PARTIAL),
        (WRITABLE, Copy.FOREIGN),
        (NOT_RECEIVED, Copy.FOREIGN),
        (COMPLETE.replace(str(OURS), str(ANOTHER)), Copy.FOREIGN),
        (WRITABLE.replace(str(OURS), str(ANOTHER)), Copy.FOREIGN),
        ("a link\n", Copy.FOREIGN),
        ("no subvolume\n", Copy.FOREIGN),
        ("whatever\n", Copy.FOREIGN),
        (COMPLETE.replace("Flags:", "Marks:"), Copy.FOREIGN),
        (PARTIAL.replace("Received UUID:", "UUID of origin:"), Copy.FOREIGN),
    ],
)
def test_only_what_is_certain_is_complete_or_partial(shown: str, copy: Copy) -> None:
    assert judge_copy(shown, OURS) is copy


LISTED = """\
ID 257 gen 17 top level 5 received_uuid -                                    \
uuid 1ec6e10a-5e46-7249-9ed4-b21ef32cd0c8 path snapshots/a b@2026-11-23T21:42:54.000000
ID 270 gen 8 top level 5 received_uuid ca4fd36f-bb92-f242-b472-619b0d3c6550 \
uuid bffce63e-6ba2-4244-b576-f771ab5858f9 path snapshots/db@2026-11-23T21:42:55.123456
"""
LOOK = f"""versions:
btrfs-progs v6.2
3
{LISTED}copy:
{COMPLETE}"""


def test_a_look_tells_versions_subvolumes_and_the_copy() -> None:
    there = parse_look(LOOK)
    assert there.stream_version == 2
    assert there.copy == COMPLETE
    assert there.identities == {
        OURS,
        UUID("1ec6e10a-5e46-7249-9ed4-b21ef32cd0c8"),
        UUID("bffce63e-6ba2-4244-b576-f771ab5858f9"),
    }


def test_a_look_at_a_host_that_has_nothing() -> None:
    there = parse_look("versions:\nbtrfs-progs v5.10.1\n1\ncopy:\n")
    assert (there.identities, there.copy, there.stream_version) == (frozenset(), "", 1)


def test_a_look_at_debian_13_whose_version_has_two_lines() -> None:
    there = parse_look("versions:\nbtrfs-progs v6.14\n-EXPERIMENTAL +LZO\n3\ncopy:\n")
    assert there.stream_version == 2


@pytest.mark.parametrize(
    "noise", ["Welcome!\n", "no end of line", "copy:\nversions\nbtrfs-progs v9\n"]
)
def test_what_a_start_up_file_prints_is_passed_over(noise: str) -> None:
    assert parse_look(noise + LOOK) == parse_look(LOOK)


@pytest.mark.parametrize("output", ["", "Welcome!\n", "versions:\n", "versions:\nbtrfs-progs v6\n"])
def test_an_answer_that_breaks_off_is_none(output: str) -> None:
    with pytest.raises(ValueError, match="no version"):
        parse_look(output)


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


def subvolume(uuid: UUID, received: UUID | None = None) -> Subvolume:
    return Subvolume(
        tree=300,
        uuid=uuid,
        parent_uuid=None,
        received_uuid=received,
        changed=1,
        created_in=1,
        send_transid=0,
        receive_transid=0,
        settled=False,
        created=None,
        readonly=True,
    )


def test_what_was_received_is_known_by_its_origin() -> None:
    assert identity(subvolume(OURS)) == OURS
    assert identity(subvolume(ANOTHER, received=OURS)) == OURS


def test_the_parent_is_the_newest_that_both_have() -> None:
    uuids = [UUID(int=number) for number in range(1, 6)]
    days = [datetime(2026, 1, day) for day in (1, 2, 3, 4)]
    local = [
        (Snapshot(parse_snapshot(f"db@{day:%Y-%m-%d}"), day), subvolume(uuid))
        for day, uuid in zip(days, uuids, strict=False)
    ]
    odd = Snapshot(parse_snapshot("db@odd"), None), subvolume(uuids[4])
    received = local[2][0], replace(local[2][1], received_uuid=OURS)

    assert parents([], frozenset(uuids)) == []
    assert parents(local, frozenset()) == []
    assert parents(local, frozenset([ANOTHER])) == []
    shared = [str(name) for name in parents(local, frozenset(uuids[:3]))]
    assert shared == ["db@2026-01-03", "db@2026-01-02", "db@2026-01-01"]
    assert [str(name) for name in parents([odd, *local], frozenset(uuids))][-1] == "db@odd"
    assert parents([received], frozenset([uuids[2]])) == []
    assert [str(name) for name in parents([received], frozenset([OURS]))] == ["db@2026-01-03"]


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
