"""Commands on the real machine, for what is needed before there is a machine of the test's."""

import shlex
import subprocess


def run(*argv: str, timeout: float = 120) -> str:
    """Run it and return its output; an AssertionError shows what a failing one said."""
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=timeout)
    if ended.returncode:
        raise AssertionError(
            f"{shlex.join(argv)}: exit status {ended.returncode}\n{ended.stdout}{ended.stderr}"
        )
    return ended.stdout
