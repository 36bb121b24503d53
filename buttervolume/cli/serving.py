"""`buttervolume peer`: what another host runs here over ssh, and the line that lets it."""

import argparse
import io
import os
import shutil
import sys
from typing import TYPE_CHECKING

from buttervolume import names
from buttervolume.config import Config
from buttervolume.errors import SessionFailed
from buttervolume.hosts.guard import Guard, authorized_line, check_pattern

if TYPE_CHECKING:
    from buttervolume.follow.attend import Attendant

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where sshd looks for commands."""


def peer(config: Config, arguments: argparse.Namespace) -> list[str]:
    """Serve the other side, or say how a key may. Raises BadName, SessionFailed."""
    roles = arguments.authorize or arguments.role or ()
    if arguments.authorize and arguments.role:
        raise argparse.ArgumentTypeError("--authorize names the roles; leave out --role")
    if not roles and (arguments.volumes or arguments.node):
        raise argparse.ArgumentTypeError("--volumes and --node go with --role or --authorize")
    patterns = tuple(check_pattern(pattern) for pattern in arguments.volumes or ["*"])
    node = names.check_host(arguments.node) if arguments.node else None
    guard = Guard(frozenset(roles), patterns, node)
    if arguments.authorize:
        if isinstance(sys.stdin, io.TextIOWrapper):  # the comment may be in any encoding
            sys.stdin.reconfigure(errors="replace")
        key = sys.stdin.read(1 << 16)
        if not key.strip():
            raise argparse.ArgumentTypeError("it reads a public key: write < key.pub behind it")
        return [authorized_line(key, guard, _program())]
    from buttervolume.hosts.peer import run

    def attend(asker: str) -> "Attendant":
        from buttervolume.follow.attend import Attendant, member_of

        return Attendant(member_of(config), asker)

    if not run(config, guard, os.environ.get("SSH_ORIGINAL_COMMAND"), attend):
        raise SessionFailed
    return []


def _program() -> str:
    """The command that sshd finds."""
    found = shutil.which("buttervolume", path=_PATH)
    return "buttervolume" if found else os.path.abspath(sys.argv[0])
