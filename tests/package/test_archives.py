"""What is built for PyPI and packagers, from a copy of the checkout."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.support.debian import copy_checkout

GENERATED = ("PKG-INFO", "setup.cfg", "buttervolume.egg-info/")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, in which both archives have been built, and not for the first time:
    setuptools alone would take a module that the sources have no more from `build/lib`."""
    checkout = tmp_path_factory.mktemp("archives") / "checkout"
    copy_checkout(checkout)
    before = sources(checkout)
    stale = checkout / "build/lib/buttervolume/stale.py"
    stale.parent.mkdir(parents=True)
    stale.touch()
    argv = [sys.executable, "-m", "build", "--sdist", "--wheel", str(checkout)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sources(checkout) == before, "it writes below build and dist only"
    return checkout


def wheel(checkout: Path) -> zipfile.ZipFile:
    (found,) = checkout.glob("dist/*.whl")
    return zipfile.ZipFile(found)


def sources(checkout: Path) -> set[str]:
    """Every file of the checkout, but what the builds have made."""
    files = (path for path in checkout.rglob("*") if not path.is_dir())
    names = {str(path.relative_to(checkout)) for path in files}
    return {name for name in names if not name.startswith(("build/", "dist/", *GENERATED))}


def test_the_source_archive_holds_all_that_git_has(checkout: Path) -> None:
    (found,) = checkout.glob("dist/*.tar.gz")
    with tarfile.open(found) as archive:
        names = {member.name.partition("/")[2] for member in archive if not member.isdir()}
        modes = {member.name.partition("/")[2]: member.mode for member in archive}

    assert {name for name in names if not name.startswith(GENERATED)} == sources(checkout)
    assert modes["run.sh"] & 0o111, "it is a program"


def test_the_wheel_holds_each_file_of_the_package_and_no_other(checkout: Path) -> None:
    names = {name for name in wheel(checkout).namelist() if name.startswith("buttervolume/")}

    assert names == {name for name in sources(checkout) if name.startswith("buttervolume/")}
    assert "buttervolume/py.typed" in names


def test_the_documents_come_from_the_parser(checkout: Path) -> None:
    archive = wheel(checkout)
    (page,) = [name for name in archive.namelist() if name.endswith("man1/buttervolume.1")]
    (completion,) = [
        name for name in archive.namelist() if name.endswith("completions/buttervolume")
    ]

    assert "buttervolume snapshot" in archive.read(page).decode().replace("\\", "")
    assert "_shtab_buttervolume_snapshot" in archive.read(completion).decode()
