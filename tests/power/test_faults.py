"""The tests of power cuts can fail: they do when a sync is taken out of the program."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from tests.btrfs.harness import btrfs
from tests.power.conftest import Laboratory
from tests.power.storm import Scene
from tests.power.test_power_cuts import cut_and_look
from tests.power.users import User
from tests.support.machine import DATA, REPOSITORY

NO_SYNC_BY_IOCTL = """
import fcntl
real = fcntl.ioctl
def ioctl(descriptor, request, *arguments):
    return 0 if request == 0x9408 else real(descriptor, request, *arguments)  # BTRFS_IOC_SYNC
fcntl.ioctl = ioctl
"""
NO_SYNC_OF = """
import os, stat
real = os.fsync
def fsync(descriptor):
    if not stat.{kind}(os.fstat(descriptor).st_mode):
        real(descriptor)
os.fsync = fsync
"""
"""What `stat.<kind>` is true of is not synced."""


def environment(directory: Path, text: str) -> dict[str, str]:
    """In which every Python program runs this at its start."""
    (directory / "sitecustomize.py").write_text(text)
    return {"PYTHONPATH": f"{directory}:{REPOSITORY}"}


def scene(user: User, *kinds: str) -> Scene:
    """Only this user does only this, with rests, and the power fails right after an answer."""
    return Scene(frozenset(kinds), frozenset({user.name}), pause=0.2, seconds=0.05, moment="answer")


def named(users: Sequence[User], name: str) -> User:
    return next(user for user in users if user.name.startswith(name))


def test_a_directory_that_is_not_synced_is_found(laboratory: Laboratory, tmp_path: Path) -> None:
    wanted = {
        "rm": ": snapshot",
        "create": ": volume",
        "clone": ": volume",
        "restore to a new name": ": volume",
    }

    def scenes(users: Sequence[User]) -> Iterator[Scene]:
        keeper = users[0]
        yield replace(scene(keeper, "create", "write", "snapshot"), pause=0, seconds=1)
        for kind in wanted:
            for _ in range(2):
                btrfs("filesystem", "sync", laboratory.alpha.path(DATA))  # what was before is there
                yield scene(keeper, kind, *(() if kind == "rm" else ("remove",)))

    found = cut_and_look(
        laboratory, scenes, "a test", environment(tmp_path, NO_SYNC_OF.format(kind="S_ISDIR"))
    )

    for kind, what in wanted.items():
        assert any(kind in problem and what in problem for problem in found), (kind, found)


def test_a_file_that_is_not_synced_is_found(laboratory: Laboratory, tmp_path: Path) -> None:
    def scenes(users: Sequence[User]) -> list[Scene]:
        return [scene(named(users, "clerk"), "schedule")] * 3

    found = cut_and_look(
        laboratory, scenes, "a test", environment(tmp_path, NO_SYNC_OF.format(kind="S_ISREG"))
    )

    assert any("alpha: job" in problem for problem in found), found


def test_files_that_were_brought_and_are_not_synced_are_found(
    laboratory: Laboratory, tmp_path: Path
) -> None:
    def scenes(users: Sequence[User]) -> list[Scene]:
        return [scene(named(users, "synchronizer"), "sync")] * 3

    found = cut_and_look(laboratory, scenes, "a test", environment(tmp_path, NO_SYNC_BY_IOCTL))

    assert any("alpha: volume synchronizer" in problem for problem in found), found


def test_a_copy_that_the_receiver_does_not_sync_is_found(laboratory: Laboratory) -> None:
    def scenes(users: Sequence[User]) -> list[Scene]:
        return [scene(named(users, "sender"), "send")] * 3

    with (
        laboratory.beta.shim("btrfs", 'case "$*" in *sync*) exit 0;; esac; exec "$real" "$@"'),
        laboratory.beta.shim("sync", "exit 0"),
    ):
        found = cut_and_look(laboratory, scenes, "a test")

    assert any("beta: snapshot sender" in problem for problem in found), found
