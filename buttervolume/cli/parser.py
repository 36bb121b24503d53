"""The commands of the command line, declared: help, man page and completion come from here."""

import argparse
import textwrap
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from buttervolume.cli.terminal import columns
from buttervolume.cli.usage import Parser

if TYPE_CHECKING:
    from pathlib import Path

DEFAULT_IMAGE = "/var/lib/buttervolume.img"


ROLES = ("push", "pull", "sync", "follow")
"""What a key may be for (see `peer --role`)."""


class _Arguments:
    """Adds arguments to the parser of a command, or nowhere if another command is given."""

    def __init__(self, parser: argparse.ArgumentParser | None) -> None:
        self._parser = parser

    def add_argument(self, *names: str, **options: Any) -> None:
        """Add one, as argparse does."""
        if self._parser is not None:
            self._parser.add_argument(*names, **options)


def build_parser(asked: str | None = None) -> Parser:
    """Every command with its arguments; the name of the one that is given is in `command`.

    If a command is asked for, and there is one of that name, only that: to make all of them is a
    sixth of the time that most commands take.
    """
    width = columns() - 2  # else argparse would find it out for each argument
    parser = Parser(
        prog="buttervolume",
        formatter_class=partial(argparse.HelpFormatter, width=width),
        description="Docker volumes on BTRFS: snapshots, clones, restores, retention, replication.",
        epilog="Exit status: 0 done, 1 refused or failed, 2 wrong usage, 3 no daemon answers.",
        example="snapshot db",
    )
    parser.add_argument("--version", action=_Version, help="print the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="<command>", dest="command")

    def add(
        name: str, summary: str, *examples: str, details: str = "", also: str = ""
    ) -> _Arguments:
        if asked not in (None, name):
            return _Arguments(None)
        lines = "\n".join(f"  buttervolume {example}" for example in examples)
        parser.commands[name] = commands.add_parser(
            name,
            example=examples[-1],
            also=also,
            help=summary,
            description=textwrap.fill(f"{summary}. {details}", 79),
            epilog=f"examples:\n{lines}",
            formatter_class=partial(argparse.RawDescriptionHelpFormatter, width=width),
        )
        return _Arguments(parser.commands[name])

    command = add(
        "init",
        "Prepare the directories for volumes and snapshots on BTRFS",
        "init",
        "init --file /data/volumes.img --size 50G",
        details="Nothing that exists is ever formatted.",
    )
    command.add_argument(
        "--file",
        nargs="?",
        type=_path,
        const=DEFAULT_IMAGE,
        metavar="IMAGE",
        help="where there is no BTRFS, make a BTRFS image file and mount it (default: %(const)s)",
    )
    command.add_argument("--size", help="size of a new image file, such as 500M or 20G (10G)")
    command.add_argument(
        "--path",
        type=_path,
        metavar="DIR",
        help="prepare this directory instead of the configured one (/var/lib/buttervolume)",
    )

    add("run", "Run the daemon in the foreground", "run", details="SIGTERM or Ctrl-C ends it.")

    command = add(
        "peer",
        "Serve another host over ssh, or print the line of authorized_keys that lets it in",
        "peer --authorize push --volumes 'shop-*' < web1.pub >> /root/.ssh/authorized_keys",
        "peer --authorize pull --node backup < backup.pub >> /root/.ssh/authorized_keys",
        details="This is what the other host runs here. With --role it does no more than the "
        "roles allow: push sends snapshots to here, pull takes them from here, sync lets rsync "
        "read volumes, follow is for the members of volumes that follow their service.",
    )
    command.add_argument(
        "--authorize",
        action="append",
        choices=ROLES,
        metavar="ROLE",
        help="print the line for the public key on the standard input; may be repeated",
    )
    command.add_argument(
        "--role",
        action="append",
        choices=ROLES,
        metavar="ROLE",
        help="allow only what push, pull, sync or follow needs; may be repeated",
    )
    command.add_argument(
        "--volumes",
        action="append",
        metavar="PATTERN",
        help="only volumes of such a name, such as 'shop-*'; may be repeated",
    )
    command.add_argument("--node", metavar="NAME", help="the name that the other host has here")

    command = add("snapshot", "Snapshot a volume and print the snapshot's name", "snapshot db")
    command.add_argument("volume")

    command = add(
        "snapshots",
        "List the snapshots, of one volume or all",
        "snapshots",
        "snapshots db",
        "snapshots --long db",
    )
    command.add_argument(
        "-l",
        "--long",
        action="store_true",
        help="as a table: age, the hosts that have it, how long the purge job keeps it",
    )
    _add_json(command)
    command.add_argument("volume", nargs="?")

    command = add(
        "restore",
        "Give a volume the content of a snapshot",
        "restore db@2026-11-23T21:00:00.123456",
        "restore db",
        "restore db@2026-11-23T21:00:00.123456 db-as-it-was",
        "restore --at 2026-11-23T20:00 db",
        "restore --undo db",
        details="The old content is kept in a new snapshot, whose name is printed.",
    )
    command.add_argument(
        "--undo", action="store_true", help="give back what the last restore replaced"
    )
    command.add_argument(
        "--at", metavar="date", help="the newest that is not later, such as 2026-11-23T20:00"
    )
    command.add_argument("name", metavar="snapshot", help="a snapshot, or a volume for its latest")
    command.add_argument("target", nargs="?", help="restore into this volume instead")
    command.add_argument(
        "--force",
        action="store_true",
        help="even if a container uses the volume, or subvolumes nested in it would be lost",
    )
    command.add_argument(
        "--from",
        dest="origin",
        metavar="HOST",
        help="receive it from another host first: the snapshot, or the newest of the volume",
    )

    command = add("clone", "Make a new volume with the content of another", "clone db db-test")
    command.add_argument("volume")
    command.add_argument("new_volume")

    command = add(
        "removed",
        "List the removed volumes that can be had back, or delete them for good",
        "removed --purge db",
        "removed",
        details="They are kept for the time in KEEP_REMOVED, or in the option keep of the volume.",
    )
    _add_json(command)
    command.add_argument("--purge", action="store_true", help="delete now: one, or all")
    command.add_argument("volume", nargs="?", metavar="name", help="a volume, or volume@date")

    command = add(
        "undelete",
        "Bring a removed volume back, with all that is in it",
        "undelete db",
        "undelete db@2026-11-23T21:00 db-as-it-was",
    )
    command.add_argument("volume", metavar="name", help="the one removed last, or volume@date")
    command.add_argument("new_name", nargs="?", help="the name that it gets instead of its own")

    command = add("rm", "Remove snapshots", "rm db@2026-11-23T21:00:00.123456")
    command.add_argument("snapshot", nargs="+")

    command = add(
        "send",
        "Send a snapshot to another host, as changes if it can be",
        "send backup.example.org db@2026-11-23T21:00:00.123456",
        "send --all backup.example.org db",
        details="ssh uses the port in SSH_PORT (1122). Ctrl-C ends the transfer.",
    )
    command.add_argument(
        "--all",
        action="store_true",
        help="every snapshot of a volume that the host lacks, the oldest first, and print them",
    )
    _add_force_against_history(command)
    command.add_argument("host")
    command.add_argument("snapshot")

    command = add(
        "receive",
        "Receive a snapshot, or the newest of a volume, from another host",
        "receive web1.example.org db",
        "receive web1.example.org db@2026-11-23T21:00:00.123456",
        details="It is not restored. Its name is printed.",
    )
    command.add_argument("host")
    command.add_argument("name", metavar="volume or snapshot")

    command = add(
        "replicate",
        "Snapshot a volume and send that to another host, as a replicate job does",
        "replicate backup.example.org db",
        details="The name of the snapshot that the host has now is printed.",
    )
    _add_force_against_history(command)
    command.add_argument("host")
    command.add_argument("volume")

    command = add(
        "sync",
        "Bring the newer files of a volume on other hosts into it",
        "sync uploads web1 web2",
        details="Nothing is deleted; a snapshot is taken first. Ctrl-C ends the transfer.",
    )
    command.add_argument("volume")
    command.add_argument("host", nargs="+")

    command = add(
        "purge",
        "Delete the snapshots that a retention pattern does not keep",
        "purge --dryrun --verbose 4h:1d:2w:2y db",
        "purge 4h:1d:2w:2y db",
        details="4h:1d:2w:2y keeps all of the last 4 hours, then one per 4 hours for a day, one "
        "per day for two weeks, one per two weeks for two years, and nothing older. With counts, "
        "1h/24:1d/7 keeps all of the last hour, then 24 times one per hour, 7 times one per day.",
    )
    command.add_argument(
        "--dryrun", "--dry-run", action="store_true", help="only print what would be deleted"
    )
    command.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="with --dryrun: print what is kept too, and why",
    )
    command.add_argument("pattern", help="ages with m, h, d, w or y, joined by ':'")
    command.add_argument("volume")

    command = add(
        "schedule",
        "Make, change or remove a job",
        "schedule purge:4h:1d:2w:2y 720 db",
        "schedule replicate:backup.example.org 120 db",
        "schedule synchronize:web1,web2 30 uploads",
        "schedule snapshot '0 3 * * *' 'web-*'",
        "schedule snapshot pause db",
        "schedule snapshot delete db",
        "schedule snapshot 60 db",
        also="the jobs are listed by: buttervolume scheduled",
    )
    command.add_argument(
        "action",
        help="snapshot, purge:<pattern>, replicate:<host>, mirror:<host>, receive:<host> or "
        "synchronize:<host>[,<host>…]",
    )
    command.add_argument(
        "timer",
        metavar="minutes",
        help="every how many minutes, or cron ('0 3 * * *'); or 0, delete, pause, resume or now",
    )
    command.add_argument("volume")

    command = add(
        "scheduled",
        "List the jobs, or pause or resume all of them",
        "scheduled",
        "scheduled pause",
    )
    _add_json(command)
    command.add_argument("what", nargs="?", choices=["list", "pause", "resume"], default="list")

    command = add(
        "status",
        "Show what is wrong, and how every job stands",
        "status",
        "status db",
        "status --json",
        details="Exits with 1 if there is a problem, of the volume or of the whole host, so that "
        "a monitoring system can run it.",
    )
    _add_json(command)
    command.add_argument("volume", nargs="?")

    command = add(
        "transfers",
        "List the transfers under way: operation, snapshot or volume, host, bytes, seconds",
        "transfers",
        "transfers --json",
    )
    _add_json(command)

    command = add(
        "log",
        "Show what was done last, by jobs, commands and Docker, and what came of it",
        "log",
        "log --failed --since 2d",
        "log -n 100 db",
        details="The newest comes last. It goes back 90 days.",
    )
    _add_json(command)
    command.add_argument(
        "-n",
        dest="number",
        type=int,
        default=50,
        metavar="N",
        help="show the last N (%(default)s)",
    )
    command.add_argument("--since", metavar="AGE", help="an age such as 2d, or a date")
    command.add_argument("--failed", action="store_true", help="only what failed or was refused")
    command.add_argument("volume", nargs="?")

    command = add(
        "notify",
        "Send a notice to the addresses in NOTIFY, to see whether it arrives",
        "notify --test",
    )
    command.add_argument("--test", action="store_true", required=True, help="send a test")

    command = add(
        "volumes",
        "List the volumes: created, in use by how many, snapshots, the newest, jobs",
        "volumes",
        "volumes --json",
    )
    _add_json(command)

    command = add(
        "follow",
        "Show how volumes that follow their services stand, or decide about one",
        "follow db",
        "follow db --every 10 --orphan latest",
        "follow take db",
        "follow resolve db db@2026-11-23T21:00:00.123456 clone db-fork",
        "follow drop db",
        details="take goes on here, with the newest copy in reach, when the owner is dead. resolve "
        "... drop deletes a fork, or gives up one of two lines by the id of its epoch; resolve ... "
        "clone makes a volume of a fork. drop deletes the volume for good, on all members. Without "
        "these words it exits with 1 on a fork, a lag or a silent member.",
    )
    _add_json(command)
    command.add_argument("--members", metavar="A:B:C", help="on the owner: its members from now on")
    command.add_argument(
        "--every", metavar="MINUTES", help="on the owner: between two replications"
    )
    command.add_argument(
        "--orphan",
        metavar="POLICY",
        help="on the owner: refuse or latest, when it cannot be reached",
    )
    command.add_argument("--yes", action="store_true", help="do not ask, on a terminal either")
    command.add_argument("words", nargs="*", metavar="volume")

    command = add(
        "usage",
        "Measure what volumes and their snapshots take of the disk",
        "usage db",
        "usage",
        details="All extents are looked at, at the lowest priority, which takes minutes for "
        "millions of files.",
    )
    _add_json(command)
    command.add_argument("volume", nargs="?")

    command = add(
        "doctor",
        "Look for what goes wrong in practice, here or with other hosts, and say what to do",
        "doctor",
        "doctor backup.example.org",
        details="Exits with 1 if anything is bad.",
    )
    _add_json(command)
    command.add_argument("host", nargs="*")
    return parser if asked is None or parser.commands else build_parser()


def _path(text: str) -> "Path":
    from pathlib import Path  # seldom needed, and long to import

    return Path(text)


def _add_json(command: _Arguments) -> None:
    command.add_argument("--json", action="store_true", help="print the daemon's answer, exactly")


class _Version(argparse.Action):
    """Print the version; the package's metadata is read only then."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:  # noqa: A002
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"buttervolume {version('buttervolume')}")
        parser.exit()


def _add_force_against_history(command: _Arguments) -> None:
    command.add_argument(
        "--force",
        action="store_true",
        help="even if the volume has newer snapshots there that were made there",
    )
