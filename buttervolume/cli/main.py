"""The command line: for each command one call, and print what comes back.

What a command needs is imported when it is needed, so that `--help` is there at once.
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from buttervolume.cli.parser import build_parser
from buttervolume.cli.terminal import say, settle_streams, show
from buttervolume.cli.usage import parse
from buttervolume.errors import ButtervolumeError, NoDaemon, OperationFailed

if TYPE_CHECKING:
    from buttervolume.config import Config

Call = Callable[..., dict[str, Any]]


class Outcome(NamedTuple):
    """What a command prints, whether what it shows is as it should be, and what of it failed."""

    lines: list[str]
    is_well: bool = True
    failure: ButtervolumeError | None = None


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
    from buttervolume.cli.init import DEFAULT_SIZE, initialize

    if arguments.size is not None and not arguments.file:
        raise argparse.ArgumentTypeError("--size goes with --file")
    if arguments.path is not None and arguments.file:
        raise argparse.ArgumentTypeError("--path does not go with --file: mount something there")
    size = DEFAULT_SIZE if arguments.size is None else arguments.size
    return initialize(config, arguments.file, size, arguments.path)


def _peer(config: "Config", arguments: argparse.Namespace) -> list[str]:
    from buttervolume.cli import serving

    return serving.peer(config, arguments)


def _snapshot(call: Call, arguments: argparse.Namespace) -> list[str]:
    return [call("VolumeDriver.Snapshot", Name=arguments.volume)["Snapshot"]]


def _snapshots(call: Call, arguments: argparse.Namespace) -> list[str]:
    from buttervolume.cli import seeing

    return seeing.snapshots(call, arguments)


def _restore(call: Call, arguments: argparse.Namespace) -> list[str]:
    from buttervolume.cli.progress import watch

    name, origin = arguments.name, arguments.origin
    volume = name.partition("@")[0]
    with watch(call, "receive", volume, [origin]) if origin else nullcontext() as ticket:
        answer = call(
            "VolumeDriver.Snapshot.Restore",
            Name=name,
            Target=arguments.target,
            Force=arguments.force,
            Undo=arguments.undo,
            At=arguments.at,
            From=origin,
            Ticket=ticket,
        )
    backup = answer.get("VolumeBackup")
    if "Restored" in answer:  # a daemon before 3.15 does not tell
        from buttervolume.cli.printing import age_of

        snapshot = answer["Restored"]
        volume = snapshot.partition("@")[0]
        rest = f"; what it held is in {backup}" if backup else ""
        say(f"restored {arguments.target or volume} from {snapshot}{age_of(snapshot)}{rest}")
    if backup is None and arguments.target is not None:
        from buttervolume.cli.meant import meant

        if hint := meant(arguments):
            say(f"warning: {arguments.target} is a new volume; {hint}")
    return [backup] if backup else []


def _clone(call: Call, arguments: argparse.Namespace) -> list[str]:
    answer = call("VolumeDriver.Clone", Name=arguments.volume, Target=arguments.new_volume)
    return [answer["VolumeCloned"]]


def _rm(call: Call, arguments: argparse.Namespace) -> list[str]:
    from buttervolume.cli.client import Refused

    refusals = []
    for name in arguments.snapshot:
        try:
            call("VolumeDriver.Snapshot.Remove", Name=name)
        except Refused as refusal:
            refusals.append(refusal)
    for each in refusals[:-1]:
        say(str(each))
    if refusals:
        raise refusals[-1]
    return []


def _send(call: Call, arguments: argparse.Namespace) -> list[str]:
    from buttervolume.cli.progress import watch

    volume = arguments.snapshot.partition("@")[0]
    with watch(call, "send", volume, [arguments.host]) as ticket:
        answer = call(
            "VolumeDriver.Snapshot.Send",
            Name=arguments.snapshot,
            Host=arguments.host,
            Force=arguments.force,
            All=arguments.all,
            Ticket=ticket,
        )
    return list(answer.get("Snapshots", []))


def _receive(call: Call, arguments: argparse.Namespace) -> list[str]:
    from buttervolume.cli.progress import watch

    with watch(call, "receive", arguments.name.partition("@")[0], [arguments.host]) as ticket:
        answer = call(
            "VolumeDriver.Snapshot.Receive",
            Name=arguments.name,
            Host=arguments.host,
            Ticket=ticket,
        )
    return [answer["Snapshot"]]


def _replicate(call: Call, arguments: argparse.Namespace) -> list[str]:
    from buttervolume.cli.progress import watch

    with watch(call, "send", arguments.volume, [arguments.host]) as ticket:
        answer = call(
            "VolumeDriver.Replicate",
            Name=arguments.volume,
            Host=arguments.host,
            Force=arguments.force,
            Ticket=ticket,
        )
    return [answer["Snapshot"]]


def _sync(call: Call, arguments: argparse.Namespace) -> list[str]:
    from buttervolume.cli.progress import watch

    volume, hosts = arguments.volume, arguments.host
    with watch(call, "sync", volume, hosts) as ticket:
        call("VolumeDriver.Volume.Sync", Volumes=[volume], Hosts=hosts, Ticket=ticket)
    return []


def _purge(call: Call, arguments: argparse.Namespace) -> Outcome:
    if arguments.verbose and not arguments.dryrun:
        raise argparse.ArgumentTypeError("--verbose goes with --dryrun")
    answer, failure = _as_far_as_it_went(
        call,
        "Purged",
        "VolumeDriver.Snapshots.Purge",
        Name=arguments.volume,
        Pattern=arguments.pattern,
        Dryrun=arguments.dryrun,
    )
    if arguments.verbose:
        return Outcome(
            [
                f"{'keep' if verdict['Keep'] else 'delete'} {verdict['Name']}: {verdict['Reason']}"
                for verdict in answer["Verdicts"]
            ]
        )
    return Outcome(answer["Purged"], failure=failure)


def _schedule(call: Call, arguments: argparse.Namespace) -> Outcome:
    answer, failure = _as_far_as_it_went(
        call,
        "Result",
        "VolumeDriver.Schedule",
        Name=arguments.volume,
        Action=arguments.action,
        Timer=arguments.timer,
    )
    result = str(answer.get("Result", ""))
    return Outcome(result.split("\n") if result else [], failure=failure)


def _as_far_as_it_went(
    call: Call, done: str, endpoint: str, **body: object
) -> tuple[dict[str, Any], ButtervolumeError | None]:
    """Make a call that may do a part of its work only. The answer's `done` says what was done; the
    error is about the rest."""
    from buttervolume.cli.client import Refused

    try:
        return call(endpoint, **body), None
    except Refused as refusal:
        if not refusal.answer.get(done):
            raise
        return refusal.answer, refusal


def _scheduled(call: Call, arguments: argparse.Namespace) -> list[str]:
    if arguments.what != "list":
        call(f"VolumeDriver.Schedule.{arguments.what.capitalize()}")
        return []
    from buttervolume.cli import seeing

    return seeing.scheduled(call, arguments)


def _removed(call: Call, arguments: argparse.Namespace) -> list[str]:
    if arguments.purge:
        answer = call("VolumeDriver.Volume.Removed.Purge", Name=arguments.volume)
        return [str(name) for name in answer["Purged"]]
    if arguments.volume is not None:
        import shlex

        name = shlex.quote(arguments.volume)
        raise argparse.ArgumentTypeError(
            "all are listed, without a name; to bring one back: "
            f"buttervolume undelete {name}; to delete it for good: "
            f"buttervolume removed --purge {name}"
        )
    from buttervolume.cli import seeing

    return seeing.removed(call, arguments)


def _undelete(call: Call, arguments: argparse.Namespace) -> list[str]:
    answer = call("VolumeDriver.Volume.Undelete", Name=arguments.volume, Target=arguments.new_name)
    return [answer["Volume"]]


def _status(call: Call, arguments: argparse.Namespace) -> Outcome:
    from buttervolume.cli import seeing

    return Outcome(*seeing.status(call, arguments))


def _volumes(call: Call, arguments: argparse.Namespace) -> list[str]:
    from buttervolume.cli import seeing

    return seeing.volumes(call, arguments)


def _usage(call: Call, arguments: argparse.Namespace) -> list[str]:
    from buttervolume.cli import seeing

    return seeing.usage(call, arguments)


def _doctor(call: Call, arguments: argparse.Namespace) -> Outcome:
    from buttervolume.cli import seeing

    return Outcome(*seeing.doctor(call, arguments))


def _notify(call: Call, arguments: argparse.Namespace) -> list[str]:
    call("VolumeDriver.Notify", Test=arguments.test)
    return []


def _transfers(call: Call, arguments: argparse.Namespace) -> list[str]:
    from buttervolume.cli import seeing

    return seeing.transfers(call, arguments)


def _log(call: Call, arguments: argparse.Namespace) -> list[str]:
    from buttervolume.cli import seeing

    return seeing.log(call, arguments)


def _follow(call: Call, arguments: argparse.Namespace) -> Outcome:
    from buttervolume.cli.following import follow

    return Outcome(*follow(call, arguments))


_LOCAL: dict[str, Callable[["Config", argparse.Namespace], list[str]]]
_LOCAL = {"init": _init, "peer": _peer, "run": _run}
_BY_DAEMON: dict[str, Callable[[Call, argparse.Namespace], list[str] | Outcome]]
_BY_DAEMON = {
    "snapshot": _snapshot,
    "snapshots": _snapshots,
    "restore": _restore,
    "clone": _clone,
    "removed": _removed,
    "undelete": _undelete,
    "rm": _rm,
    "send": _send,
    "receive": _receive,
    "replicate": _replicate,
    "sync": _sync,
    "purge": _purge,
    "schedule": _schedule,
    "scheduled": _scheduled,
    "status": _status,
    "transfers": _transfers,
    "log": _log,
    "notify": _notify,
    "volumes": _volumes,
    "follow": _follow,
    "usage": _usage,
    "doctor": _doctor,
}


def _perform(arguments: argparse.Namespace) -> Outcome:
    """Do what a command is for."""
    from buttervolume.config import load

    config = load(os.environ)
    if arguments.command in _LOCAL:
        return Outcome(_LOCAL[arguments.command](config, arguments))
    from buttervolume.cli.client import OtherVersion

    try:
        outcome = _BY_DAEMON[arguments.command](_caller(config), arguments)
        if not isinstance(outcome, Outcome):
            outcome = Outcome(outcome)
        if not all(isinstance(line, str) for line in outcome.lines):
            raise TypeError
    except (TypeError, ValueError, AttributeError, LookupError) as error:  # of another type
        raise OtherVersion("answers what this command does not understand") from error
    return outcome


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; every error becomes a line on stderr here."""
    settle_streams()
    # ignored, as some parents leave it, it would keep the end of every command from us
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    words = sys.argv[1:] if argv is None else argv
    parser = build_parser(words[0] if words else None)
    arguments = parse(parser, words)
    if arguments.command is None:
        parser.print_help()
        return Exit.DONE
    try:
        outcome = _perform(arguments)
        _print(outcome.lines)
        if outcome.failure is not None:
            raise outcome.failure
    except argparse.ArgumentTypeError as error:
        parser.commands[arguments.command].error(str(error))
    except NoDaemon as error:
        say(str(error))
        return Exit.NO_DAEMON
    except ButtervolumeError as error:
        from buttervolume.cli.meant import meant

        hint = meant(arguments, getattr(error, "code", None))
        say(f"{error}; {hint}" if hint else str(error))
        return Exit.FAILED
    except KeyboardInterrupt:
        say("interrupted")
        return Exit.FAILED
    except BrokenPipeError:  # the reader of the output has seen enough
        return Exit.FAILED
    return Exit.DONE if outcome.is_well else Exit.FAILED


def _print(lines: Sequence[str]) -> None:
    """Print a result, all of it now, to learn whether it arrives. Raises BrokenPipeError,
    OperationFailed."""
    if not lines:  # a daemon that ends would wait for whoever has stopped reading its log
        return
    try:
        for line in lines:
            show(line)
        print(end="", flush=True)
    except OSError as error:
        # what is still to be printed would fail again when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise
        raise OperationFailed("print what was done", error) from error


def _caller(config: "Config") -> Call:
    """A function that calls the daemon, and prints the warning that an answer may carry."""
    from buttervolume.cli.client import Client, Refused

    client = Client(config)

    def call(endpoint: str, **body: object) -> dict[str, Any]:
        try:
            answer = client.call(endpoint, body)
        except Refused as refusal:
            _warn(refusal.answer)
            raise
        _warn(answer)
        return answer

    return call


def _warn(answer: Mapping[str, object]) -> None:
    if "Warning" in answer:
        say(f"warning: {answer['Warning']}")
