"""Keeps a machine's namespaces alive: runs as its process 1, for as long as the test holds a pipe.

When the test closes the pipe, or dies in whatever way, this ends, and the kernel kills every
process of the machine and takes down its mounts and its network.
"""

import os
import signal
import sys
from contextlib import suppress


def reap(*_: object) -> None:
    """Take the exit status of every child that has ended: orphans become children of process 1."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, reap)
    os.write(sys.stdout.fileno(), b"ready\n")
    os.read(sys.stdin.fileno(), 1)
