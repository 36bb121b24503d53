"""The manual's runnable blocks, run as they are written, in their order, on two hosts."""

import re
import shlex
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.support.docker import Dockerd
from tests.support.machine import BUTTERVOLUME, PATH, Machine, in_checkout
from tests.support.network import Network

README = Path(__file__).parents[2] / "README.rst"
BLOCK = re.compile(
    r"^\.\. runnable on (this|the other) host\n\n(?:(?!^\S.*::\n).*\n)*?.*::\n\n((?:    .*\n|\n)+)",
    re.MULTILINE,
)
DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}")
SERVICE = """CMD ["sh", "-c", "trap exit TERM; sleep 1000 & wait"]"""


@dataclass(frozen=True)
class Step:
    """A command of the manual and the output that it shows, if any."""

    here: bool
    command: str
    output: str


def steps() -> list[Step]:
    """What the manual has to run. Without a prompt, every line is a command."""
    found = []
    for where, block in BLOCK.findall(README.read_text(encoding="utf-8")):
        lines = [line.removeprefix("    ") for line in block.strip("\n").split("\n")]
        if not any(line.startswith("# ") for line in lines):
            lines = [f"# {line}" for line in lines if line]
        for part in re.split(r"^# ", "\n".join(lines), flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            found.append(Step(where == "this", command, output.strip()))
    return found


def test_every_runnable_block_is_found() -> None:
    marks = README.read_text(encoding="utf-8").count("\n.. runnable on ")
    assert len(BLOCK.findall(README.read_text(encoding="utf-8"))) == marks > 15


def test_the_commands_of_the_manual_do_what_it_says(tmp_path: Path) -> None:
    with (
        Network() as network,
        Machine("here", tmp_path, network) as here,
        Machine("backup.example.org", tmp_path, network) as there,
        Dockerd(here) as dockerd,
    ):
        prepare(here, there, dockerd)
        path = f"{programs(tmp_path / 'bin')}:{PATH}"
        real: dict[str, str] = {}
        """The date that a snapshot has in this run, for each date in the manual."""
        for step in steps():
            machine = here if step.here else there
            command = DATE.sub(partial(known, real), step.command)
            printed = machine.run("sh", "-c", command, env=in_checkout({"PATH": path})).stdout
            if step.output:
                assert DATE.sub("", printed.strip()) == DATE.sub("", step.output), step
                real |= zip(DATE.findall(step.output), DATE.findall(printed), strict=True)


def known(real: dict[str, str], date: re.Match[str]) -> str:
    return real.get(date[0], date[0])


def prepare(here: Machine, there: Machine, dockerd: Dockerd) -> None:
    """What the manual takes for granted: daemons, ssh access, images, and an application."""
    for machine in (here, there):
        machine.start_daemon(BUTTERVOLUME_TIMER="86400")  # its jobs run at other times
    there.start_sshd()
    there.authorize(here)
    here.run("sed", "-i", "s/^Host .*/& newhost/", "/root/.ssh/config")
    dockerd.busybox_image()
    dockerd.docker("tag", "busybox", "alpine")
    for image in ("postgres:17", "nginx"):
        dockerd.image_with_files(image, {}, SERVICE)
    dockerd.docker("volume", "create", "-d", "btrfs", "web-data")
    dockerd.docker("run", "-d", "--name", "web", "-v", "web-data:/srv", "nginx")


def programs(directory: Path) -> Path:
    """A directory with the commands that a machine may lack."""
    directory.mkdir()
    for name, words in (("buttervolume", shlex.join(BUTTERVOLUME)), ("sudo", "")):
        script = directory / name
        script.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        script.chmod(0o755)
    return directory
