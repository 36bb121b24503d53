"""The only door to other programs."""

import os
import subprocess
from collections.abc import Sequence

from buttervolume.errors import CommandFailed


def environment() -> dict[str, str]:
    """The environment of every command: ours, with messages in English."""
    return {**os.environ, "LC_ALL": "C.UTF-8"}


def run(argv: Sequence[str]) -> str:
    """Run one short command to its end and return what it printed; raise CommandFailed.

    The command inherits what the daemon made inheritable on purpose, and that is the lock of its
    volumes alone (see `daemon.lock`): a daemon started anew waits until a command that a killed
    one left behind has ended.
    """
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=environment(),
            close_fds=False,
            check=False,
        )
    except OSError as error:
        raise CommandFailed(argv, 127, f"{argv[0]}: {error.strerror}; is it installed?") from error
    if done.returncode != 0:
        raise CommandFailed(argv, done.returncode, done.stderr)
    return done.stdout
