"""The doctor: what goes wrong in practice, looked for, with what to do about it.

What was found is judged by pure functions; the class here, for this host and others, only looks.
"""

import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from buttervolume.errors import ButtervolumeError, CommandFailed, Stalled, TooMuchOutput
from buttervolume.hosts.session import COMMAND
from buttervolume.hosts.ssh import CONNECTION_FAILED, command_for, explain, remote_command
from buttervolume.names import check_host
from buttervolume.report.observer import Observer
from buttervolume.report.status import Kind, Report
from buttervolume.store.catalog import Catalog
from buttervolume.store.volumes import Volumes
from buttervolume.system import btrfs, command, mounts, quota
from buttervolume.system.command import Flow, Process
from buttervolume.words import lines, shortened

CLOCKS_APART = 60
"""Seconds between the clocks of two hosts that are too many."""
_LIMIT = 60.0
"""Seconds that looking at another host may take."""
_KNOCK = 5.0
"""Seconds to wait for a port to open."""
_OLDEST_KERNEL = (5, 15)
_SAFE_RSYNC = (3, 5)
_MOST_SHOWN = 3
_TIME = re.compile("[0-9]{1,15}")
"""Seconds since 1970, as a host may tell them."""


class Level(StrEnum):
    """How a check came out."""

    GOOD = "good"
    NOTE = "note"
    """Worth knowing, and no harm."""
    BAD = "bad"


@dataclass(frozen=True)
class Finding:
    """What a check found."""

    check: str
    level: Level
    message: str
    advice: str = ""
    """What to do, unless all is well."""


def good(check: str, message: str) -> Finding:
    """A finding that is as it should be."""
    return Finding(check, Level.GOOD, message)


def bad(check: str, message: str, advice: str) -> Finding:
    """A finding that somebody has to do something about."""
    return Finding(check, Level.BAD, message, advice)


def note(check: str, message: str, advice: str = "") -> Finding:
    """A finding that is no harm."""
    return Finding(check, Level.NOTE, message, advice)


# Judging: pure


def version_of(text: str) -> tuple[int, ...]:
    """The first version number in what a program prints; empty if there is none."""
    found = re.search(r"(\d{1,9})\.(\d{1,9})(?:\.(\d{1,9}))?", text, re.ASCII)
    return tuple(int(part) for part in found.groups() if part) if found else ()


def judge_kernel(release: str) -> Finding:
    """The kernel's version."""
    if version_of(release) < _OLDEST_KERNEL:
        return bad("kernel", release, "5.15 or later is what this is made for")
    return good("kernel", release)


def judge_rsync(printed: str | None) -> Finding:
    """The version of rsync; None if there is none."""
    if printed is None:
        return bad("rsync", "it is not installed", "install rsync, for synchronization")
    version = version_of(printed)
    shown = ".".join(map(str, version)) or "unknown version"
    if version < _SAFE_RSYNC:
        advice = "3.5.0, or a package that mends CVE-2026-53797, is needed to be synchronized from"
        return note("rsync", shown, advice)
    return good("rsync", shown)


def judge_options(options: Iterable[str]) -> Iterator[Finding]:
    """The mount options of the filesystem."""
    options = set(options)
    if "ro" in options:
        yield bad("mount", "it is mounted read-only", "see dmesg; mount it again read-write")
    if "autodefrag" in options:
        yield note("mount", "autodefrag", "it takes apart what snapshots share: remove the option")
    if not {"noatime", "ro"} & options:
        advice = "reading then writes, and every snapshot keeps what that changes: add noatime"
        yield note("mount", "without noatime", advice)
    if not {"ro", "autodefrag"} & options and "noatime" in options:
        yield good("mount", "its options are fine")


def judge_report(report: Report) -> Iterator[Finding]:
    """What the report knows: of the filesystem, the clock, the schedule."""
    for problem in report.problems:
        yield bad(problem.kind.value, problem.text, problem.kind.advice)
    kinds = {problem.kind for problem in report.problems}
    if report.space is not None and not kinds & {Kind.SPACE, Kind.METADATA, Kind.READ_ONLY}:
        share = report.space.free / (report.space.size or 1)
        yield good("space", f"{share:.0%} is free")
    if Kind.CLOCK not in kinds:
        yield good("clock", "no snapshot is in the future")
    if not kinds & {Kind.FAILING, Kind.LATE, Kind.UNPROTECTED}:
        yield good("jobs", "none fails or is late")


def judge_greeting(greeting: Mapping[str, object], now: float) -> Iterator[Finding]:
    """What a guarded key is greeted with."""
    verbs = greeting.get("verbs")
    allowed = ", ".join(map(str, verbs)) if isinstance(verbs, list) else "nothing"
    yield good("key", f"it is accepted, and guarded: {allowed}")
    there = str(greeting.get("time"))
    if _TIME.fullmatch(there):
        yield judge_clocks(int(there) - now)


def judge_clocks(difference: float) -> Finding:
    """How far apart the clocks of two hosts are, in seconds."""
    shown = f"{abs(difference):.0f} s {'ahead' if difference > 0 else 'behind'}"
    if abs(difference) > CLOCKS_APART:
        return bad("clock", shown, "let both hosts set their clocks by NTP (timedatectl)")
    return good("clock", "the same as here" if abs(difference) < 2 else shown)


def judge_host(answers: Mapping[str, str], path: Path, now: float) -> Iterator[Finding]:
    """What a script found on the other host."""
    if answers.get("user") == "0":
        yield good("key", "it is accepted, for root")
    else:
        advice = "receiving needs root there: User root in the ssh configuration, or a guarded key"
        yield bad("key", f"it is accepted, for user {answers.get('user')}", advice)
    kind = answers.get("filesystem", "")
    if kind != "btrfs":
        advice = "mount BTRFS there and run buttervolume init, or set SNAPSHOTS_PATH alike on both"
        yield bad("path", f"{path} is {f'on {kind}' if kind else 'not there'}", advice)
    else:
        yield good("path", f"{path} is on BTRFS")
        if answers.get("top") != "256":
            advice = "mount the subvolume itself there: btrfs receive does not work below a bind"
            yield bad("mount", "a directory is bound there, no subvolume", advice)
        arrived = answers.get("arrived") == "buttervolume"
        if arrived:
            yield good("write", "a byte that was sent arrived")
        else:
            yield bad("write", "nothing can be written there", "is it read-only, full, or a quota?")
    progs = answers.get("btrfs", "")
    if progs:
        yield good("btrfs", progs)
    else:
        yield bad("btrfs", "there is no btrfs command", "install btrfs-progs there")
    yield judge_kernel(answers.get("kernel", "unknown"))
    yield judge_rsync(answers.get("rsync") or None)
    if answers.get("peer"):
        yield good("buttervolume", answers["peer"])
    else:
        advice = "install buttervolume there to receive from it, and for guarded keys"
        yield note("buttervolume", "it is not installed there", advice)
    there = answers.get("time", "")
    if _TIME.fullmatch(there):
        yield judge_clocks(int(there) - now)


def parse_answers(printed: str) -> dict[str, str]:
    """The lines `name value` between the marks of the script."""
    inside = printed.partition(f"{_MARK}\n")[2].partition(f"{_MARK}\n")[0]
    pairs = (line.partition(" ") for line in lines(inside))
    return {name: value for name, _, value in pairs}


# This host


class Doctor:
    """Looks at this host, as far as the daemon sees it, and at others."""

    def __init__(
        self,
        volumes: Volumes,
        catalog: Catalog,
        observer: Observer,
        warnings: Sequence[str],
        port: int,
    ) -> None:
        """`warnings` are what is odd about the configuration and where its files are; `port` is the
        sshd port of the other hosts."""
        self._volumes = volumes
        self._catalog = catalog
        self._observer = observer
        self._warnings = warnings
        self._port = port

    def here(self) -> list[Finding]:
        """Everything about this host; a check that fails itself is a finding."""
        checks: tuple[Callable[[], Iterable[Finding]], ...] = (
            self._configuration, self._mount, self._versions, self._quotas, self._identities,
            self._report,
        )  # fmt: skip
        found: list[Finding] = []
        for check in checks:
            try:
                found += check()
            except (ButtervolumeError, OSError) as error:
                name = check.__name__.strip("_")
                found.append(bad(name, f"cannot be looked at: {error}", "the message says why"))
        return found

    def _configuration(self) -> Iterator[Finding]:
        for warning in self._warnings:
            yield note("configuration", warning)
        if not self._warnings:
            yield good("configuration", "it can be read, and every key is known")

    def _mount(self) -> Iterator[Finding]:
        self._volumes.check_available()
        path = Path(os.path.realpath(self._volumes.path))
        point = mounts.point_of(path)
        yield good("BTRFS", f"{path} is on BTRFS, mounted at {point}")
        yield from judge_options(mounts.options_of(path))
        with btrfs.opened(Path(point)) as directory:
            if directory.inode() != btrfs.ROOT_INODE:
                advice = "mount the subvolume itself: nothing can be received below a bind"
                yield bad("mount", f"{point} is a directory bound there, no subvolume", advice)
        yield from _boot_order(point)

    def _versions(self) -> Iterator[Finding]:
        yield judge_kernel(os.uname().release)
        progs = _printed("btrfs", "--version")
        if progs is None:
            yield bad("btrfs", "it is not installed", "install btrfs-progs")
        else:
            yield good("btrfs", progs)
        ssh = shutil.which("ssh")
        if ssh is None:
            yield bad("ssh", "it is not installed", "install openssh-client, for other hosts")
        else:
            yield good("ssh", _version_of_ssh() or ssh)
        yield judge_rsync(_printed("rsync", "--version"))

    def _quotas(self) -> Iterator[Finding]:
        with btrfs.opened(self._volumes.path) as directory:
            are_on = quota.are_on(directory)
        if not are_on:
            yield good("quotas", "they are off")
        else:
            advice = "they make deleting many snapshots slow; needed for the option size"
            yield note("quotas", "quota groups are on", advice)

    def _identities(self) -> Iterator[Finding]:
        """A Received UUID in a volume would be inherited by its snapshots."""
        carrying = []
        for name, path in self._volumes.list():
            try:
                if btrfs.info(path).received_uuid is not None:
                    carrying.append(name)
            except OSError:
                continue  # removed meanwhile
        if carrying:
            advice = "restart the daemon, which takes it off: its snapshots would inherit it"
            yield bad("identity", f"volumes with a Received UUID: {_some(carrying)}", advice)
        owners: dict[object, list[str]] = {}
        for snapshot in self._catalog.list().snapshots:
            try:
                uuid = btrfs.info(self._catalog.path / str(snapshot.name)).received_uuid
            except OSError:
                continue
            if uuid is not None and not snapshot.name.is_marker:
                owners.setdefault(uuid, []).append(str(snapshot.name))
        shared = [name for names in owners.values() if len(names) > 1 for name in names]
        if shared:
            advice = "they are no parents of a send any more: purge them in time"
            yield bad("identity", f"snapshots that share a Received UUID: {_some(shared)}", advice)
        if not carrying and not shared:
            yield good("identity", "no volume carries a Received UUID, no two snapshots share one")

    def _report(self) -> Iterator[Finding]:
        yield from judge_report(self._observer.report())

    # Another host

    def host(self, name: str) -> list[Finding]:
        """Everything about another host. Raises BadName."""
        check_host(name)
        found: list[Finding] = []
        try:
            settings = _ssh_settings(name, self._port)
        except CommandFailed as error:
            return [bad("ssh", str(error), "mend the ssh configuration")]
        address, port = settings.get("hostname", name), int(settings.get("port", self._port))
        indirect = any(settings.get(key, "none") != "none" for key in ("proxyjump", "proxycommand"))
        if not indirect:
            found += _knock(address, port)
            if any(finding.level is Level.BAD for finding in found):
                return found
        return found + self._ask(name)

    def _ask(self, host: str) -> list[Finding]:
        """Run the script there, or else, since a guard refuses any script, be greeted by it."""
        try:
            printed, failure = self._run(host, remote_command(_SCRIPT, str(self._catalog.path)))
            now = time.time()
            answers = parse_answers(printed)
            if answers:
                return list(judge_host(answers, self._catalog.path, now))
            if failure is None or failure.status != CONNECTION_FAILED:
                greeting = _greeting(self._run(host, COMMAND)[0])
                if greeting is not None:
                    return list(judge_greeting(greeting, time.time()))
        except (Stalled, TooMuchOutput, CommandFailed) as error:
            return [bad("ssh", str(error), "ssh there by hand, as root, to see where it hangs")]
        reason = shortened(explain(failure), 400) if failure else "it answered nothing"
        return [bad("key", reason, _advice_for(reason))]

    def _run(self, host: str, line: str) -> tuple[str, CommandFailed | None]:
        """What a command line prints on the other host, and its failure, if it failed. Raises
        Stalled, TooMuchOutput, CommandFailed."""
        with Process([*command_for(self._port), host, line]) as process:
            process.wait(Flow(), _LIMIT)
            return process.output(), process.failure()


def _some(names: Sequence[str]) -> str:
    rest = len(names) - _MOST_SHOWN
    return ", ".join(names[:_MOST_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _printed(*argv: str) -> str | None:
    """The first line of what a program prints about its version; None if there is no program."""
    if shutil.which(argv[0]) is None:
        return None
    return next(iter(lines(command.run(argv))), "")


def _version_of_ssh() -> str:
    """What ssh says of its version, which goes to stderr."""
    with Process(["ssh", "-V"]) as process:
        process.wait(Flow(), _LIMIT)
        return next(iter(lines(process.messages())), "")


def _boot_order(point: str) -> Iterator[Finding]:
    """Whether the filesystem comes back at the next start of the machine, before Docker."""
    try:
        table = Path("/etc/fstab").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return  # as in the managed plugin, where nobody can tell
    rows = [re.split(r"[ \t]+", row.strip(" \t")) for row in table.split("\n")]  # fstab(5)
    points = {fields[1] for fields in rows if len(fields) > 1}
    if point != "/" and point.replace(" ", "\\040") not in points:
        advice = "put it into /etc/fstab, unless something else mounts it before Docker starts"
        yield note("boot", f"{point} is not in /etc/fstab", advice)
    else:
        yield good("boot", f"{point} is mounted at the start of the machine")


def _ssh_settings(host: str, port: int) -> dict[str, str]:
    """What the ssh configuration says of a host. Raises CommandFailed."""
    printed = command.run([*command_for(port), "-G", host])
    pairs = (line.partition(" ") for line in lines(printed))
    return {key: value for key, _, value in pairs}


def _knock(address: str, port: int) -> Iterator[Finding]:
    """Whether a name resolves, and somebody listens there."""
    try:
        places = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # of a part that is empty or too long
        advice = "name it in /etc/hosts or DNS, or set HostName in the ssh configuration"
        reason = error.strerror if isinstance(error, OSError) else "no name is like that"
        yield bad("name", f"{address} does not resolve: {reason}", advice)
        return
    yield good("name", f"{address} is {places[0][4][0]}")
    problem = ""
    for family, kind, protocol, _, place in places:
        with socket.socket(family, kind, protocol) as probe:
            probe.settimeout(_KNOCK)
            try:
                probe.connect(place)
                yield good("port", f"{port} is open")
                return
            except OSError as error:
                problem = str(error.strerror or error)
    advice = "does sshd run there, on SSH_PORT? the plugin's runs once there is an authorized_keys"
    yield bad("port", f"{port}: {problem}", advice)


def _greeting(printed: str) -> dict[str, object] | None:
    """What `buttervolume peer` says first, if that is what answered."""
    for line in lines(printed):
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict) and "buttervolume" in found:
            return found
    return None


def _advice_for(reason: str) -> str:
    """What to do when a log-in fails."""
    if "Host key verification failed" in reason or "IDENTIFICATION HAS CHANGED" in reason:
        return "its host key is unknown or has changed: log in once by hand, or ssh-keygen -R"
    if "Permission denied" in reason:
        return (
            "let root's public key into authorized_keys there, by buttervolume peer --authorize; a "
            "passphrase cannot be asked for"
        )
    return "ssh there by hand, as root, with -o BatchMode=yes"


_MARK = "buttervolume-doctor"
_SCRIPT = f"""
echo {_MARK}
echo "user $(id -u)"
echo "kernel $(uname -r)"
echo "time $(date +%s)"
echo "btrfs $(btrfs --version 2>/dev/null | head -n 1)"
echo "rsync $(rsync --version 2>/dev/null | head -n 1)"
echo "peer $(buttervolume --version 2>/dev/null | head -n 1)"
echo "filesystem $(stat -f -c %T "$1" 2>/dev/null)"
echo "top $(stat -c %i "$(findmnt -n -o TARGET --target "$1" || stat -c %m "$1")")" 2>/dev/null
new="$1/.buttervolume-doctor-$$"
(umask 077 && set -C && printf buttervolume >"$new") 2>/dev/null &&
    echo "arrived $(cat "$new")" && rm -f "$new"
echo {_MARK}
"""
"""What is asked of another host; $1 is the directory of its snapshots."""


# Docker, which only the command line can ask: the daemon may be in a container of its own


def docker(
    driver_answers: Callable[[Sequence[str]], str], volumes: Collection[str] = ()
) -> list[Finding]:
    """Whether Docker reaches the daemon, and takes none of its `volumes` for one of its own.
    `driver_answers` runs a command of docker's and raises CommandFailed."""
    try:
        version = driver_answers(["docker", "version", "--format", "{{.Server.Version}}"]).strip()
    except CommandFailed as error:
        reason = shortened(str(error), 200)
        return [note("docker", f"it does not answer: {reason}", "start Docker, if it is used here")]
    found = [good("docker", version)]
    try:
        argv = ["timeout", "25", "docker", "volume", "ls", "--format", "{{.Driver}} {{.Name}}"]
        listed = driver_answers(argv)
    except CommandFailed as error:
        advice = "the driver does not answer Docker: remove stale sockets in /run/docker/plugins"
        found.append(bad("volumes", shortened(str(error), 200), advice))
        return found
    rows = [line.partition(" ") for line in lines(listed)]
    ours = [name for driver, _, name in rows if driver.startswith(("btrfs", "anybox/", "ccomb/"))]
    found.append(good("volumes", f"Docker lists {len(ours)} of this driver"))
    local = [name for driver, _, name in rows if driver == "local" and name in volumes]
    if local:
        advice = "see 'Docker made a local volume' in the manual: docker volume rm, then create it"
        found.append(bad("volumes", f"Docker has local volumes instead: {_some(local)}", advice))
    return found
