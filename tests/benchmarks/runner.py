"""Runs inside of a machine, by itself: runs the commands it is told to and says how long they took.

A separate program, so that what is timed is the command as a small process would start it, without
the way into the machine's namespaces. It takes one JSON line, `{"commands": [[…], …], "env": {…},
"rename": ["…", "…"], "sync": "…"}`, and answers with one, `{"seconds": …, "error": "…"}`. What is
to be synced is a directory; a rename after the commands, and that the names in the directory are
on the disk, are timed, too.
"""

import json
import os
import socket
import subprocess
import sys
import time


def run(
    commands: list[list[str]], env: dict[str, str], rename: list[str], sync: str
) -> dict[str, object]:
    """Run commands one after another, until one fails, then rename something and sync a directory
    if they are given."""
    environment = {**os.environ, "LC_ALL": "C.UTF-8", **env}
    error = ""
    with os.fdopen(os.memfd_create("output"), "r+b") as output:  # the cheapest that keeps it
        started = time.perf_counter()
        for argv in commands:
            done = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                close_fds=False,
            )
            if done.returncode:
                error = f"{argv}: exit status {done.returncode}"
                break
        if rename and not error:
            os.rename(*rename)
        if sync and not error:
            descriptor = os.open(sync, os.O_RDONLY | os.O_DIRECTORY)
            os.fsync(descriptor)
            os.close(descriptor)
        seconds = time.perf_counter() - started
        if error:
            output.seek(0)
            error += "\n" + output.read().decode(errors="replace")
    return {"seconds": seconds, "error": error}


def main(address: str) -> None:
    """Serve the first who connects, until it leaves."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        connection, _ = listener.accept()
    with connection, connection.makefile("rw", encoding="utf-8") as stream:
        for line in stream:
            request = json.loads(line)
            stream.write(json.dumps(run(**request)) + "\n")
            stream.flush()


if __name__ == "__main__":
    main(sys.argv[1])
