"""The manual's runnable blocks, run as written and in their order, on two hosts for each page."""

import re
import shlex
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from tests.support.docker import Dockerd
from tests.support.machine import BUTTERVOLUME, PATH, Machine, in_checkout
from tests.support.manual import MARK, PAGES, TOP, steps
from tests.support.network import Network

DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}")
AGE = re.compile(r" \(.+? old\)")
SERVICE = """CMD ["sh", "-c", "trap exit TERM; sleep 1000 & wait"]"""
STORIES = {
    str(page.relative_to(TOP)): page.read_text(encoding="utf-8")
    for page in PAGES
    if MARK.search(page.read_text(encoding="utf-8"))
}
"""The pages that have something to run."""
ALIASES = ("newhost", "vault.example.org", "web1", "web2")
"""What the manual calls the other host besides its name."""


def test_stories_are_found_in_tutorial_how_to_and_reference() -> None:
    for place in ("docs/tutorial", "docs/howto/", "docs/reference/"):
        assert any(name.startswith(place) for name in STORIES)
    assert sum(not step.given for page in STORIES.values() for step in steps(page)) > 50


@pytest.mark.parametrize("name", STORIES)
def test_the_commands_of_a_page_do_what_it_says(name: str, tmp_path: Path) -> None:
    story = steps(STORIES[name])
    with (
        Network() as network,
        Machine("www.example.org", tmp_path, network) as here,
        Machine("backup.example.org", tmp_path, network) as there,
        ExitStack() as dockers,
    ):
        prepare(here, there)
        for machine, is_here in ((here, True), (there, False)):
            if any("docker" in step.command for step in story if step.here == is_here):
                images(dockers.enter_context(Dockerd(machine)))
        path = f"{programs(tmp_path / 'bin')}:{PATH}"
        env = in_checkout({"PATH": path, "SHARED": str(tmp_path)})
        real: dict[str, str] = {}
        """The date that a snapshot has in this run, for each date in the manual."""
        for step in story:
            machine = here if step.here else there
            command = DATE.sub(partial(known, real), step.command)
            done = machine.run("sh", "-ec", in_last_directory(command), env=env)
            printed = as_shown(done.stderr, done.stdout)
            if step.output:
                assert without_times(printed) == without_times(step.output), step
                real |= zip(DATE.findall(step.output), DATE.findall(printed), strict=True)


def known(real: dict[str, str], date: re.Match[str]) -> str:
    return real.get(date[0], date[0])


def as_shown(stderr: str, stdout: str) -> str:
    """What a terminal shows of a command, without the messages of other programs."""
    messages = [line for line in stderr.split("\n") if line.startswith("buttervolume: ")]
    return "\n".join([*messages, stdout.strip()]).strip()


def without_times(output: str) -> str:
    return AGE.sub("", DATE.sub("", output))


def in_last_directory(command: str) -> str:
    """A command that begins where the last one of this host left off, as in a shell."""
    return f'cd "$(cat /run/cwd 2>/dev/null || echo /root)"\n{command}\npwd > /run/cwd'


def prepare(here: Machine, there: Machine) -> None:
    """What the manual takes for granted: daemons, and ssh access between the two hosts."""
    for machine, other in ((here, there), (there, here)):
        machine.start_daemon(BUTTERVOLUME_TIMER="86400")  # its jobs run at other times
        machine.start_sshd()
        machine.authorize(other)
        machine.install()
    here.run("sed", "-i", f"s/^Host .*/& {' '.join(ALIASES)}/", "/root/.ssh/config")
    key = here.path("/root/.ssh/id_ed25519")
    assert key.exists()


def images(dockerd: Dockerd) -> None:
    """The images that the manual names, as a few commands of busybox and a service that sleeps."""
    dockerd.busybox_image()
    for image in ("alpine", "debian"):
        dockerd.docker("tag", "busybox", image)
    for image in ("postgres:17", "nginx"):
        dockerd.image_with_files(image, {}, SERVICE)


def programs(directory: Path) -> Path:
    """A directory with the commands that a machine may lack."""
    directory.mkdir()
    for name, words in (
        ("buttervolume", f'exec {shlex.join(BUTTERVOLUME)} "$@"'),
        ("sudo", 'case $1 in -*) ;; *) exec "$@" ;; esac'),
        (
            "docker",
            '[ "$1" != compose ] || { shift; exec docker-compose "$@"; }\n'
            'PATH=${PATH#*:} exec docker "$@"',
        ),
    ):
        script = directory / name
        script.write_text(f"#!/bin/sh\n{words}\n")
        script.chmod(0o755)
    return directory
