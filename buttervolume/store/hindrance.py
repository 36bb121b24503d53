"""What hinders an operation on a volume, in words that say what to do about it."""

import errno
import os
import shlex
from pathlib import Path

from buttervolume.errors import CommandFailed
from buttervolume.system import btrfs, mounts


def explain(error: CommandFailed | OSError, volume: Path) -> str | CommandFailed | OSError:
    """Why something cannot be done with a volume, if more can be said than the kernel says."""
    denied = (os.strerror(errno.EPERM), os.strerror(errno.ETXTBSY))
    if not any(words in str(error) for words in denied):
        return error
    try:
        with btrfs.opened(volume) as root:
            protected = root.is_protected()
    except OSError:
        return error
    if protected:
        return f"its root is immutable or append-only; first: chattr -i -a {_quoted(volume)}"
    for swap in mounts.swap_files():
        if swap.is_relative_to(volume):
            return f"a swap file in it is in use; first: swapoff {_quoted(swap)}"
    return error


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
