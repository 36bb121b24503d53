"""Linux namespaces that end with the test, and processes run inside of them."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

from tests.support.wait import wait_until

HOLDER = Path(__file__).with_name("holder.py")


class Process(subprocess.Popen[bytes]):
    """A process inside namespaces; a signal goes to it, not to the nsenter that waits for it."""

    def inner_pid(self) -> int | None:
        """The process's own id as the test sees it; None when it has ended."""
        wait_until(lambda: _children(self.pid) or self.poll() is not None, what="nsenter to fork")
        return next(iter(_children(self.pid)), None)

    def send_signal(self, sig: int) -> None:
        """Send it the signal, if it still runs. `terminate()` and `kill()` come here too."""
        if self.poll() is None and (pid := self.inner_pid()) is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, sig)

    def kill_group(self) -> None:
        """End it at once, with all that it started and that stayed in its process group."""
        if self.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
            self.wait(60)


class Namespaces:
    """New namespaces, of the kinds named by unshare's options, until `close` or the test's end."""

    def __init__(self, *unshare_options: str) -> None:
        self._holder = subprocess.Popen(
            ["unshare", *unshare_options, "--", sys.executable, "-I", "-S", str(HOLDER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"ready\n":
            self.close()
            raise AssertionError(f"unshare {unshare_options} failed: are you root?")
        forked = "--fork" in unshare_options
        self.pid = _children(self._holder.pid)[0] if forked else self._holder.pid

    def close(self) -> None:
        """End the holder; where it is process 1, the kernel ends all the others with it."""
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        self._holder.stdin.close()
        self._holder.wait(60)
        self._holder.stdout.close()

    def popen(
        self,
        *argv: str,
        env: Mapping[str, str],
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        stdout: int | IO[bytes],
        stderr: int | IO[bytes],
    ) -> Process:
        """Start a command in these namespaces, with exactly this environment, in directory `/`."""
        return Process(
            ["nsenter", "--all", "--target", str(self.pid), "--", *argv],
            env=env,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )


def _children(pid: int) -> list[int]:
    with suppress(FileNotFoundError, ProcessLookupError):
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    return []
