"""Run tests on a bare Debian of another suite, with its Python, Docker, ssh and btrfs-progs:

python -m tests.on_debian trixie tests/unit tests/docker/test_legacy.py
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.debian import Debian, copy_checkout


def main(suite: str, *arguments: str) -> int:
    """Run test.sh there with these arguments; its exit status."""
    with (
        tempfile.TemporaryDirectory(prefix=f"tests-on-{suite}-") as directory,
        Debian(suite, Path(directory)) as host,
    ):
        copy_checkout(host.path("/checkout"))
        profile = os.environ.get("HYPOTHESIS_PROFILE", "quick")
        argv = host.argv("/checkout/test.sh", *arguments, env={"HYPOTHESIS_PROFILE": profile})
        return subprocess.run(argv, stdin=subprocess.DEVNULL, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
