"""The command line: declare the commands, make one call each, print what comes back.

What a command needs is imported when it is needed, so that `--help` is there at once.
"""

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from buttervolume import config as configuration
from buttervolume.errors import ButtervolumeError, NoDaemon

if TYPE_CHECKING:
    from buttervolume.config import Config

Call = Callable[..., dict[str, Any]]


class Exit(IntEnum):
    """The exit statuses of the command line."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NO_DAEMON = 3


# One function per command: from the arguments to the lines to print.


def _run(config: "Config", _: argparse.Namespace) -> list[str]:
    from buttervolume import daemon

    daemon.run(config)
    return []


def _init(config: "Config", arguments: argparse.Namespace) -> list[str]:
    from buttervolume.init import DEFAULT_SIZE, initialize

    if arguments.size is not None and not arguments.file:
        raise argparse.ArgumentTypeError("--size goes with --file")
    size = DEFAULT_SIZE if arguments.size is None else arguments.size
    return initialize(config, arguments.file, size)


def _snapshot(call: Call, arguments: argparse.Namespace) -> list[str]:
    return [call("VolumeDriver.Snapshot", Name=arguments.volume)["Snapshot"]]


def _snapshots(call: Call, arguments: argparse.Namespace) -> list[str]:
    names: list[str] = call("VolumeDriver.Snapshot.List", Name=arguments.volume)["Snapshots"]
    return names


def _restore(call: Call, arguments: argparse.Namespace) -> list[str]:
    answer = call(
        "VolumeDriver.Snapshot.Restore",
        Name=arguments.name,
        Target=arguments.target,
        Force=arguments.force,
    )
    return [answer["VolumeBackup"]] if "VolumeBackup" in answer else []


def _clone(call: Call, arguments: argparse.Namespace) -> list[str]:
    answer = call("VolumeDriver.Clone", Name=arguments.volume, Target=arguments.new_volume)
    return [answer["VolumeCloned"]]


def _rm(call: Call, arguments: argparse.Namespace) -> list[str]:
    call("VolumeDriver.Snapshot.Remove", Name=arguments.snapshot)
    return []


def _send(call: Call, arguments: argparse.Namespace) -> list[str]:
    from buttervolume.progress import watch

    with watch(call, "send", arguments.snapshot.partition("@")[0], [arguments.host]):
        call("VolumeDriver.Snapshot.Send", Name=arguments.snapshot, Host=arguments.host)
    return []


def _sync(call: Call, arguments: argparse.Namespace) -> list[str]:
    from buttervolume.progress import watch

    with watch(call, "sync", arguments.volume, arguments.host):
        call("VolumeDriver.Volume.Sync", Volumes=[arguments.volume], Hosts=arguments.host)
    return []


def _purge(call: Call, arguments: argparse.Namespace) -> list[str]:
    if arguments.verbose and not arguments.dryrun:
        raise argparse.ArgumentTypeError("--verbose goes with --dryrun")
    answer = call(
        "VolumeDriver.Snapshots.Purge",
        Name=arguments.volume,
        Pattern=arguments.pattern,
        Dryrun=arguments.dryrun,
    )
    if arguments.verbose:
        return [
            f"{'keep' if verdict['Keep'] else 'delete'} {verdict['Name']}: {verdict['Reason']}"
            for verdict in answer["Verdicts"]
        ]
    purged: list[str] = answer["Purged"]
    return purged


def _schedule(call: Call, arguments: argparse.Namespace) -> list[str]:
    call(
        "VolumeDriver.Schedule",
        Name=arguments.volume,
        Action=arguments.action,
        Timer=arguments.timer,
    )
    return []


def _scheduled(call: Call, arguments: argparse.Namespace) -> list[str]:
    if arguments.what != "list":
        call(f"VolumeDriver.Schedule.{arguments.what.capitalize()}")
        return []
    answer = call("VolumeDriver.Schedule.List")
    if answer["Paused"]:
        print("buttervolume: all jobs are paused", file=sys.stderr)
    return [
        f"{job['Action']} {job['Timer']} {job['Name']}"
        + (" (paused)" if job["Active"] == "False" else "")
        for job in answer["Schedule"]
    ]


def build_parser() -> argparse.ArgumentParser:
    """Every command with its arguments."""
    parser = argparse.ArgumentParser(
        prog="buttervolume",
        description="Docker volumes on BTRFS: snapshots, clones and restores.",
    )
    parser.add_argument("--version", action=_Version, help="print the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="<command>")

    def add(name: str, act: Callable[..., list[str]], summary: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=summary, description=f"{summary}.")
        command.set_defaults(act=act, local=act in (_run, _init))
        return command

    command = add("init", _init, "Prepare the directories for volumes and snapshots on BTRFS")
    command.add_argument(
        "--file",
        nargs="?",
        type=Path,
        const=Path("/var/lib/buttervolume.img"),
        metavar="IMAGE",
        help="where there is no BTRFS, make a BTRFS image file and mount it (default: %(const)s)",
    )
    command.add_argument("--size", help="size of a new image file, such as 500M or 20G (10G)")

    add("run", _run, "Run the daemon in the foreground")

    command = add("snapshot", _snapshot, "Snapshot a volume and print the snapshot's name")
    command.add_argument("volume")

    command = add("snapshots", _snapshots, "List the snapshots, of one volume or all")
    command.add_argument("volume", nargs="?")

    command = add("restore", _restore, "Give a volume the content of a snapshot")
    command.add_argument("name", metavar="snapshot", help="a snapshot, or a volume for its latest")
    command.add_argument("target", nargs="?", help="restore into this volume instead")
    command.add_argument(
        "--force",
        action="store_true",
        help="even if a container uses the volume, or subvolumes nested in it would be lost",
    )

    command = add("clone", _clone, "Make a new volume with the content of another")
    command.add_argument("volume")
    command.add_argument("new_volume")

    command = add("rm", _rm, "Remove a snapshot")
    command.add_argument("snapshot")

    command = add("send", _send, "Send a snapshot to another host, as changes if it can be")
    command.add_argument("host")
    command.add_argument("snapshot")

    command = add("sync", _sync, "Bring the newer files of a volume on other hosts into it")
    command.add_argument("volume")
    command.add_argument("host", nargs="+")

    command = add("purge", _purge, "Delete the snapshots that a retention pattern does not keep")
    command.add_argument("--dryrun", action="store_true", help="only print what would be deleted")
    command.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="with --dryrun, print what is kept, too, and why",
    )
    command.add_argument("pattern", help="ages with m, h, d, w or y, such as 4h:1d:2w:2y")
    command.add_argument("volume")

    command = add("schedule", _schedule, "Make, change or remove a job")
    command.add_argument(
        "action",
        help="snapshot, purge:<pattern>, replicate:<host> or synchronize:<host>[,<host>…]",
    )
    command.add_argument(
        "timer", metavar="minutes", help="every how many minutes; 0, delete, pause or resume"
    )
    command.add_argument("volume")

    command = add("scheduled", _scheduled, "List the jobs, or pause or resume all of them")
    command.add_argument("what", nargs="?", choices=["list", "pause", "resume"], default="list")
    return parser


class _Version(argparse.Action):
    """Print the version; the package's metadata is read only then."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:  # noqa: A002
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"buttervolume {version('buttervolume')}")
        parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; every error becomes a line on stderr here."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if "act" not in arguments:
        parser.print_help()
        return Exit.DONE
    try:
        config = configuration.load(os.environ)
        context = config if arguments.local else _caller(config)
        if isinstance(sys.stdout, io.TextIOWrapper):  # no name is too odd for any terminal
            sys.stdout.reconfigure(errors="backslashreplace")
        for line in arguments.act(context, arguments):
            print(line)
        sys.stdout.flush()
    except argparse.ArgumentTypeError as error:
        parser.error(str(error))
    except NoDaemon as error:
        print(f"buttervolume: {error}", file=sys.stderr)
        return Exit.NO_DAEMON
    except ButtervolumeError as error:
        print(f"buttervolume: {error}", file=sys.stderr)
        return Exit.FAILED
    except KeyboardInterrupt:
        print("buttervolume: interrupted", file=sys.stderr)
        return Exit.FAILED
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FAILED
    return Exit.DONE


def _caller(config: "Config") -> Call:
    """A function that calls the daemon, and prints the warning that an answer may carry."""
    from buttervolume.client import Client

    client = Client(config)

    def call(endpoint: str, **body: object) -> dict[str, Any]:
        answer = client.call(endpoint, body)
        if "Warning" in answer:
            print(f"buttervolume: warning: {answer['Warning']}", file=sys.stderr)
        return answer

    return call
