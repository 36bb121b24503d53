"""The other host as a store of snapshots: look, receive, discard, over shell scripts there.

The scripts are here and nowhere else. Nothing that they print is believed: it is capped, parsed as
what it should be or dropped, and decides only together with what this host knows (see `lineage`).
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from buttervolume import names
from buttervolume.errors import BadName, HostFailed
from buttervolume.hosts import lineage
from buttervolume.hosts.lineage import Copy, Facts, Side
from buttervolume.hosts.ssh import Connection
from buttervolume.names import SnapshotName
from buttervolume.system.command import Flow

_SHOWN_AT_ONCE = 250
"""Names for one script: with all that it does it is one argument, which has 128 KiB at the most
(MAX_ARG_STRLEN in execve(2))."""
RECEIVED = "received"
"""What the other host says, on a line of its own, when it has all bytes of a stream."""

# $1 is the directory of the snapshots and $2 the name of one, in all scripts.

_COMMON = """
umask 077
note="$1/$3"
if [ "$(id -u)" != 0 ]; then
    echo "logged in as $(id -un), who may not receive snapshots: log in as root there" \
"(User root in the ssh configuration here)" >&2
    exit 1
fi
is_subvolume() { [ ! -L "$1" ] && [ -d "$1" ] && [ "$(stat -c %i "$1")" = 256 ]; }
lock() { ! command -v flock >/dev/null || flock "$@"; }
place() { sync "$1" || sync; }
field() { printf '%s\\n' "$shown" | sed -n "s/^[[:space:]]*$1:[[:space:]]*//p" | head -n 1; }
"""
"""$3 is the name of the note beside the copy."""

_SWEEP = """
for left in "$1"/.buttervolume-receiving-*; do
    [ -f "$left" ] && [ ! -L "$left" ] || continue
    sender=; copy=; pid=
    { read -r sender; read -r copy; read -r pid; } < "$left" || true
    [ "$sender" = "$4" ] || continue
    case $copy in ''|.*|*/*) continue;; esac
    (
        if ! lock -n 9; then
            [ "${copy%%@*}" = "${2%%@*}" ] && [ "/proc/$pid/fd/9" -ef "$left" ] || exit 0
            kill "$pid"
            lock -w 15 9 || exit 0
        fi
        if is_subvolume "$1/$copy"; then btrfs subvolume delete "$1/$copy" >&2 || exit 0; fi
        rm -f "$left"
    ) 9<"$left" || [ ! -e "$left" ]
done
"""
"""Removes what sends of this host, $4, have left behind. A note is locked while its copy is being
received; but there is one send of a volume at a time, so that one of this volume has lost its
connection, which sshd may notice much later. A note that cannot be opened any more has been removed
by the end of the send of another volume."""

_LOOK = (
    _COMMON
    + """
set -e
list() { btrfs subvolume list "$@"; }
echo versions:
btrfs --version
cat /sys/fs/btrfs/features/send_stream_version 2>/dev/null || echo 1
program=$(command -v buttervolume) || program=
echo "program: $([ ! "$program" ] || stat -L -c '%n %i %Y %s' "$program" || true)"
"""
    + _SWEEP
    + """
point=$(stat -c %m "$1")
if [ "$(stat -c %i "$point")" != 256 ]; then
    echo bound:
    place=$(readlink -f "$1")
    while read -r _ _ _ root other _; do
        [ "$other" != "$point" ] || inside=${root%/}${place#"$point"}
    done < /proc/self/mountinfo
    while read -r _ _ _ root other _; do
        [ "$(stat -c %i "$other" 2>/dev/null)" = 256 ] || continue
        if [ "$other${inside#"${root%/}"}" -ef "$1" ]; then echo "mount: $other"; break; fi
    done < /proc/self/mountinfo
fi
echo copy:
if [ -L "$1/$2" ]; then echo "a link"
elif [ -e "$1/$2" ]; then
    place "$1"
    btrfs subvolume show "$1/$2" || echo "no subvolume"
fi
echo notes:
for left in "$1"/.buttervolume-receiving-*; do
    [ -f "$left" ] && [ ! -L "$left" ] || continue
    sender=; copy=
    { read -r sender; read -r copy; } < "$left" || true
    printf '%s\\n' "${copy:-${left##*/.buttervolume-receiving-}}" "${sender:-?}"
done
echo snapshots:
list -o -u -q -R -c "$1"
echo readonly:
list -o -r "$1" | sed 's/ path .*//'
echo all:
list -u -R "$1" | sed -n 's/ path .*//p' | tr -s ' '
"""
)
"""That the note of a copy has gone is on the disk before the copy is shown: who removed it may have
been cut off before that. The last list may hold names that containers have given, so that their
lines may be forged; they can only add to it."""

_SHOW = """
kind() {
    if command -v getfattr >/dev/null; then
        getfattr -h --only-values -n trusted.buttervolume.kind "$1"
    else
        python3 -c 'import os, sys; print(os.getxattr(sys.argv[1], "trusted.buttervolume.kind"\
, follow_symlinks=False).decode())' "$1"
    fi
}
for name; do
    [ "$name" != "$1" ] || continue
    echo "show: $name"
    if [ ! -L "$1/$name" ]; then btrfs subvolume show "$1/$name" 2>/dev/null || true; fi
    if [ "$(kind "$1/$name" 2>/dev/null)" = "backup of $name" ]; then echo "is a backup"; fi
done
"""

_RECEIVE = (
    _COMMON
    + """
set -e
exec 9>>"$note"
lock -w 15 9 || { echo "somebody is sending this snapshot to there already" >&2; exit 1; }
if [ -e "$1/$2" ] || [ -L "$1/$2" ]; then
    [ -s "$note" ] || rm -f "$note"
    echo "something has got this name there just now, which is never touched" >&2
    exit 1
fi
for try in 1 2 3; do
    printf '%s\\n%s\\n%s\\n' "$4" "$2" $$ | tee "$note" > /dev/null && break
    [ $try != 3 ] || exit 1
    # what was deleted from a full disk gives its space back later
    btrfs filesystem sync "$1" >&2
    timeout 20 btrfs subvolume sync "$1" > /dev/null 2>&1 || sleep 1
done
place "$note"
place "$1"
nice -n 5 btrfs receive -C ${8:+-m "$8"} "$1" >&2 9>&-
echo received
btrfs filesystem sync "$1" >&2
shown=$(btrfs subvolume show "$1/$2")
[ "$(field 'Received UUID')" = "$5" ] && [ "$(field Flags)" = readonly ] &&
case " $7 " in *" $(field 'Parent UUID') "*) ;; *) false;; esac &&
case "$(field 'Send transid')" in ''|"$6") ;; *) false;; esac ||
{ echo "the copy is not what was sent" >&2; exit 1; }
rm "$note"
place "$1"
printf '%s\\n' "$shown"
"""
)
"""What has got the name since the look, such as a snapshot that was taken there, must not lie
beside a note, since that would say that it may be deleted.

$5 is the identity and $6 the version that the copy must have, $7 its possible parents there, and
$8 where another mount shows the parent, if the directory's own does not."""

_DISCARD = (
    _COMMON
    + """
is_subvolume "$1/$2" || { [ -e "$1/$2" ] || rm -f "$note"; exit 0; }
if [ -f "$note" ]; then
    { read -r sender; } < "$note" && [ "$sender" = "$4" ] || exit 0
    exec 9<"$note"
    lock -w 15 9 || exit 0
else
    shown=$(btrfs subvolume show "$1/$2" 2>/dev/null) || exit 0
    [ "$(btrfs property get -t subvol "$1/$2" ro)" = ro=false ] || exit 0
    [ "$(field 'Received UUID')" = - ] || exit 0
    case "$(field 'Receive transid')" in ''|0) ;; *) exit 0;; esac
fi
btrfs subvolume delete "$1/$2" && rm -f "$note" && btrfs filesystem sync "$1"
"""
)
"""Deletes what is partial still: meanwhile a transfer that was given up may have completed it. A
link would be followed, and what lost its Received UUID by being made writable was whole once."""


@dataclass(frozen=True)
class Look:
    """What a look at the other host has shown."""

    side: Side
    stream_version: int
    """The highest version of the send stream that its kernel and its btrfs-progs take."""
    is_in_the_way: bool = False
    """Whether something that is no subvolume has the name of the copy."""
    doubtful: frozenset[SnapshotName] = frozenset()
    """Names that the list has more than once: one of them may be in the directory."""
    is_bound: bool = False
    """Whether the directory is in a bind mount that is no subvolume: `btrfs receive` finds no
    parent there (subvol_uuid_search in btrfs-progs gives a path from the top)."""
    program: str = ""
    """What it has of that name as ours; it cannot be a peer as it is."""
    mount: str | None = None
    """Another mount, that shows the directory in a subvolume."""


class Remote:
    """The snapshots of another host, over a connection."""

    def __init__(
        self,
        connection: Connection,
        directory: str,
        node: str,
        moment_of: Callable[[SnapshotName], datetime | None],
    ) -> None:
        """`directory` is where the snapshots are there, `node` this host's name among its peers,
        `moment_of` tells what the date of a name means."""
        self._connection = connection
        self._directory = directory
        self._node = node
        self._moment_of = moment_of

    @property
    def host(self) -> str:
        """Its name."""
        return self._connection.host

    def look(self, name: SnapshotName, flow: Flow) -> Look:
        """What snapshots it has, and what of that name; what earlier sends of this host have left
        behind is removed. Raises HostFailed, Cancelled."""
        note = names.receiving_note(str(name))
        output = self._run(flow, _LOOK, str(name), note, self._node)
        try:
            look = parse_look(output, name, self._moment_of)
        except ValueError as error:
            raise HostFailed(self.host, f"unexpected answer: {output[:200]!r}") from error
        return replace(look, side=self.examine(look.side, look.doubtful, flow))

    def examine(self, side: Side, doubtful: Iterable[SnapshotName], flow: Flow) -> Side:
        """What a look has shown, with all that can be found out of some snapshots."""
        wanted = [str(name) for name in doubtful]
        shown: dict[str, dict[str, str]] = {}
        for start in range(0, len(wanted), _SHOWN_AT_ONCE):
            output = self._run(flow, _SHOW, *wanted[start : start + _SHOWN_AT_ONCE])
            shown |= parse_shows(output)
        return examined(side, shown)

    def receive_argv(
        self, name: SnapshotName, origin: Facts, copies: Sequence[Facts], mount: str | None
    ) -> list[str]:
        """The local command that takes a stream to the other host and verifies what it made.

        `copies` are what may be the parent there, none for a stream of all.
        """
        return self._connection.argv(
            _RECEIVE,
            self._directory,
            str(name),
            names.receiving_note(str(name)),
            self._node,
            str(origin.identity),
            str(origin.ctransid),
            " ".join(str(copy.uuid) for copy in copies) or "-",
            mount or "",
        )

    def check_received(self, said: str, origin: Facts, copies: Sequence[Facts]) -> None:
        """Raise HostFailed unless what the command of `receive_argv` printed is of a complete copy
        whose parent is the one that was meant."""
        shown = _shown(origin.name, _fields(said), {}, lambda _: None)
        parents: set[UUID | None] = {copy.uuid for copy in copies} or {None}
        if (
            shown is None
            or shown.parent_uuid not in parents
            or lineage.judge_copy(origin, shown) is not Copy.COMPLETE
        ):
            raise HostFailed(self.host, "the copy is not complete after the transfer")

    def discard(self, name: SnapshotName, flow: Flow) -> None:
        """Remove a partial copy, one that this host has left or of an older version."""
        self._run(flow, _DISCARD, str(name), names.receiving_note(str(name)), self._node)

    def _run(self, flow: Flow, script: str, *arguments: str) -> str:
        return self._connection.run(flow, script, self._directory, *arguments)


def stream_version(version: str, feature: str) -> int:
    """The send stream that a host can handle, from `btrfs --version` and the kernel's feature file.

    Version 2 carries compressed extents as they are; it came with btrfs-progs 6.0 and Linux 6.0.
    """
    progs = re.search(r"v(\d+)", version)
    if progs and int(progs[1]) >= 6 and feature.strip().isdigit():
        return min(int(feature), 2)
    return 1


def parse_look(
    output: str, name: SnapshotName, moment_of: Callable[[SnapshotName], datetime | None]
) -> Look:
    """Understand the answer of a look. Raises ValueError."""
    _, _, answer = output.partition("versions:\n")  # after what a start-up file may have printed
    head, copy, notes, listed, readonly, everything = _sections(
        answer, "copy:", "notes:", "snapshots:", "readonly:", "all:"
    )
    feature = re.search(r"^\d+$", head, re.MULTILINE)
    if not feature:
        raise ValueError("there is no version of the stream")
    mount = re.search(r"^mount: (/.*)$", head, re.MULTILINE)
    program = re.search(r"^program: (.*)$", head, re.MULTILINE)
    receiving = _notes(notes)
    locked = {_number(line) for line in readonly.split("\n")}
    lines = (_listed(line, locked, receiving, moment_of) for line in listed.split("\n"))
    found = [facts for facts in lines if facts]
    shown = _shown(name, _fields(copy), receiving, moment_of)
    found = [facts for facts in found if facts.name != name]  # if not shown, it is elsewhere
    if shown:
        found.append(shown)
    numbers = {facts.tree for facts in found}
    times = Counter(facts.name for facts in found)
    strangers = {
        UUID(match[2])
        for match in re.finditer(r"^ID (\d+) .*received_uuid ([-0-9a-f]{36})\b", everything, re.M)
        if int(match[1]) not in numbers
    }
    return Look(
        Side(tuple(found), frozenset(strangers)),
        stream_version(head[: feature.start()], feature[0]),
        is_in_the_way=bool(copy.strip()) and shown is None,
        doubtful=frozenset(one for one, number in times.items() if number > 1),
        is_bound="\nbound:" in head,
        program=program[1] if program else "",
        mount=mount[1] if mount else None,
    )


def _sections(text: str, *headings: str) -> list[str]:
    """The parts of an answer, each after its heading, which is a line of its own."""
    parts = []
    for heading in headings:
        before, found, text = f"\n{text}".partition(f"\n{heading}\n")
        if not found:
            raise ValueError("there is no version of the stream, or a part is missing")
        parts.append(f"{before}\n")
    return [*parts, text]


def _notes(text: str) -> dict[str, str]:
    """Who is sending what, by the notes."""
    lines = text.strip("\n").split("\n")
    return dict(zip(lines[::2], lines[1::2], strict=False))


def _number(line: str) -> int:
    match = re.match(r"ID (\d+) ", line)
    return int(match[1]) if match else 0


_LISTED = re.compile(
    r"ID (?P<tree>\d+) gen \d+ cgen (?P<otransid>\d+) top level \d+ "
    r"parent_uuid (?P<parent>\S+)\s+received_uuid (?P<received>\S+)\s+uuid (?P<uuid>\S+) "
    r"path (?P<path>.*)"
)


def _listed(
    line: str,
    locked: set[int],
    receiving: dict[str, str],
    moment_of: Callable[[SnapshotName], datetime | None],
) -> Facts | None:
    """A snapshot in a list of subvolumes, None if it is none."""
    match = _LISTED.fullmatch(line)
    if not match:
        return None
    try:
        name = names.parse_snapshot(match["path"].rpartition("/")[2])
        return Facts(
            name,
            uuid=UUID(match["uuid"]),
            parent_uuid=_uuid(match["parent"]),
            received_uuid=_uuid(match["received"]),
            readonly=int(match["tree"]) in locked,
            otransid=int(match["otransid"]),
            tree=int(match["tree"]),
            taken=moment_of(name),
            receiving=receiving.get(str(name)),
        )
    except (BadName, ValueError):
        return None


def _uuid(text: str) -> UUID | None:
    return None if text == "-" else UUID(text)


def parse_shows(output: str) -> dict[str, dict[str, str]]:
    """What `btrfs subvolume show` says of some snapshots, by name."""
    parts = re.split(r"^show: (.*)\n", output, flags=re.MULTILINE)
    return {name: _fields(text) for name, text in zip(parts[1::2], parts[2::2], strict=True)}


def _fields(shown: str) -> dict[str, str]:
    """The fields that `btrfs subvolume show` prints; of one that is there twice, the first."""
    fields: dict[str, str] = {}
    for line in shown.split("\n"):
        key, colon, value = line.strip().partition(":")
        if colon and line.startswith("\t") and not line.startswith("\t\t"):
            fields.setdefault(key, value.strip())
        if line == "is a backup":
            fields["kind"] = "backup"
    return fields


def _shown(
    name: SnapshotName,
    shown: dict[str, str],
    receiving: dict[str, str],
    moment_of: Callable[[SnapshotName], datetime | None],
) -> Facts | None:
    """A snapshot as it was shown, None if that cannot be understood."""
    try:
        return Facts(
            name,
            uuid=UUID(shown["UUID"]),
            parent_uuid=_uuid(shown["Parent UUID"]),
            received_uuid=_uuid(shown["Received UUID"]),
            readonly="readonly" in shown["Flags"],
            otransid=int(shown["Gen at creation"]),
            tree=int(shown["Subvolume ID"]),
            send_transid=_transaction(shown, "Send transid"),
            receive_transid=_transaction(shown, "Receive transid"),
            taken=moment_of(name),
            receiving=receiving.get(str(name)),
        )
    except (KeyError, ValueError):
        return None


def _transaction(shown: dict[str, str], key: str) -> int | None:
    """A number that older versions of btrfs-progs do not show."""
    return int(shown[key]) if key in shown else None


def examined(side: Side, shown: dict[str, dict[str, str]]) -> Side:
    """What a look has shown, with what was shown of some snapshots one by one. What the list took
    for them, and is not them, is somewhere else on that filesystem."""
    kept: list[Facts] = []
    strangers = set(side.strangers)
    for facts in side.snapshots:
        if str(facts.name) not in shown:
            kept.append(facts)
            continue
        fields = shown[str(facts.name)]
        found = _shown(facts.name, fields, {}, lambda _: None)
        if found and found.uuid == facts.uuid:
            is_backup = fields.get("kind") == "backup"
            kept.append(
                replace(found, taken=facts.taken, receiving=facts.receiving, backup=is_backup)
            )
        elif facts.received_uuid:
            strangers.add(facts.received_uuid)
    return Side(tuple(kept), frozenset(strangers))
