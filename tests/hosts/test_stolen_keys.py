"""Each line of the manual's table of stolen keys, tried with a key of each role over real ssh."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count

import pytest

from buttervolume.hosts.stream import Command
from tests.hosts.harness import MEBIBYTE, SNAPSHOTS, VOLUMES, Host
from tests.hosts.test_guard import OURS, SECRET, SESSION, Key, announce, steal, stream
from tests.support.manual import text
from tests.support.streams import command

NUMBERS = count(1)
ROLES = ("push", "pull", "sync", "follow")
WARE = "a ware of the shop"


@dataclass
class Theft:
    """A stolen key, and what is on the host that it opens."""

    key: Key
    victim: Host
    shop: str
    """A volume that the key is for."""
    secret: str
    """One that it is not for."""
    old: str
    """A snapshot of the shop."""
    hidden: str
    """One of the secret."""

    def new(self) -> str:
        """The name of a snapshot of the shop that is not there."""
        return f"{self.shop}@2026-11-26T10:00:00.{next(NUMBERS):06}"

    def rsync(self, path: str) -> bytes:
        """What rsync brings from there, if anything."""
        thief = self.key.thief
        target = f"/run/stolen-{next(NUMBERS)}"
        ssh = f"ssh -p 1122 -i {self.key.file} -oIdentitiesOnly=yes -oBatchMode=yes"
        brings = ("rsync", "-r", "-e", ssh, f"{self.victim.name}:{path}/", f"{target}/")
        thief.run(*brings, check=False)
        script = f"find {target} -type f -exec cat {{}} + 2>/dev/null"
        return thief.run("sh", "-c", script, check=False).stdout.encode()

    def brings(self, name: str, *commands: bytes) -> bool:
        """Whether a snapshot of that name can be made."""
        self.key.ask(announce(name), stream(name, *commands, uuid=OURS))
        return self.victim.path(f"{SNAPSHOTS}/{name}").exists()

    def everything(self) -> str:
        """What is in the directories of volumes and snapshots, and how it is."""
        listed = "find . -mindepth 1 -printf '%p %i %m %s %T@\\n' | sort"
        script = f"for d in {VOLUMES} {SNAPSHOTS}; do cd $d && {listed}; done"
        return self.victim.run("sh", "-c", script).stdout


def has_a_shell(theft: Theft) -> bool:
    asked = [theft.key.ask(asked=what) for what in ("id", "sh -c id", f"{SESSION}; id")]
    through = theft.key.ask(options="-W localhost:1122", asked="")
    return any(b"uid=" in one.stdout for one in asked) or b"SSH-2.0" in through.stdout


def sees_another_volume(theft: Theft) -> bool:
    answer = theft.key.ask(
        {"do": "look", "volume": theft.secret},
        {"do": "received", "name": theft.hidden},
        {"do": "send", "name": theft.hidden},
    )
    seen = [one for one in answer.said() if "error" not in one]
    got = theft.rsync(f"{VOLUMES}/{theft.secret}")
    made = theft.brings(f"{theft.secret}@2026-11-26T10:00:00.000000")
    marked = len(theft.victim.snapshot_names(theft.secret)) > 1
    return bool(seen) or SECRET.encode() in answer.stdout + got or made or marked


def reads_snapshots(theft: Theft) -> bool:
    answer = theft.key.ask({"do": "send", "name": theft.old, "stream": 1})
    got = theft.rsync(f"{SNAPSHOTS}/{theft.old}")
    return WARE.encode() in answer.stdout + got


def reads_volumes(theft: Theft) -> bool:
    return b"what it holds now" in theft.rsync(f"{VOLUMES}/{theft.shop}")


def removes_a_snapshot(theft: Theft) -> bool:
    before = theft.victim.show(theft.old)
    theft.key.ask({"do": "hello", "node": "beta"}, {"do": "discard", "name": theft.old})
    theft.brings(theft.old, command(Command.MKFILE, path=b"x", ino=257))
    names = theft.victim.snapshot_names(theft.shop)
    return theft.old not in names or theft.victim.show(theft.old) != before


def adds_snapshots(theft: Theft) -> bool:
    return theft.brings(theft.new())


def fills_the_disk(theft: Theft) -> bool:
    """How far is tried in test_guard."""
    data = bytes(MEBIBYTE // 32)
    make = command(Command.MKFILE, path=b"f", ino=257)
    write = command(Command.WRITE, path=b"f", file_offset=0, data=data)
    return theft.brings(theft.new(), make, write)


def keeps_snapshots(theft: Theft) -> bool:
    theft.key.ask({"do": "received", "name": theft.old})
    return f"{theft.old}@alpha" in theft.victim.snapshot_names(theft.shop)


def writes_anything_else(theft: Theft) -> bool:
    before = theft.everything()
    for name in (f"../volumes/{theft.shop}", theft.shop, f"{theft.old}@gamma", ".x@2026", "x"):
        theft.key.ask(announce(name), stream(name))
    name = theft.new()
    theft.key.ask(announce(name), stream(name, command(Command.MKFILE, path=b"../x", ino=257)))
    for asked in ("rsync --server -logDtpre.iLsfxCIvu", "scp -t", "tee", "btrfs receive"):
        theft.key.ask(b"x" * 100, asked=f"{asked} . {VOLUMES}/{theft.shop}/")
    return theft.everything() != before


ATTEMPTS: Mapping[str, Callable[[Theft], bool]] = {
    "have a shell, forward ports, run another command": has_a_shell,
    "see or touch a volume that the key is not for": sees_another_volume,
    "read what is in the snapshots of the key's volumes": reads_snapshots,
    "read what is in the key's volumes now": reads_volumes,
    "remove or change a snapshot that is whole": removes_a_snapshot,
    "add snapshots to the key's volumes": adds_snapshots,
    "fill the disk until ``MIN_FREE`` is left": fills_the_disk,
    "keep snapshots of the key's volumes from being purged": keeps_snapshots,
    "write anything else": writes_anything_else,
}


def table() -> dict[str, dict[str, bool]]:
    """What the manual says of each attempt, by role."""
    page = text("reference/keys-and-roles").partition("What a stolen key can do\n")[2]
    found = {}
    for line in page.splitlines():
        cells = re.split(r" {2,}", line.strip())
        if len(cells) == len(ROLES) + 1 and set(cells[1:]) <= {"no", "**yes**"}:
            found[cells[0]] = {
                role: cell != "no" for role, cell in zip(ROLES, cells[1:], strict=True)
            }
    return found


def test_every_line_of_the_manual_is_tried() -> None:
    assert list(table()) == list(ATTEMPTS)


@pytest.mark.parametrize("role", ROLES)
def test_a_stolen_key_can_do_what_the_manual_says_and_no_more(
    alpha: Host, beta: Host, role: str
) -> None:
    number = next(NUMBERS)
    shop, secret = f"shop-stolen-{number}", f"secret-stolen-{number}"
    for volume, content in ((shop, WARE), (secret, SECRET)):
        beta.create(volume)
        beta.file(volume, "file").write_text(content)
    old, hidden = beta.snapshot(shop), beta.snapshot(secret)
    beta.file(shop, "now").write_text("what it holds now")
    beta.install()
    try:
        theft = Theft(steal(alpha, beta, role), beta, shop, secret, old, hidden)

        can = {what: attempt(theft) for what, attempt in ATTEMPTS.items()}
    finally:
        beta.uninstall()

    assert can == {what: said[role] for what, said in table().items()}
