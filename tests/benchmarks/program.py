"""The two Buttervolumes, each installed as a user would, in a virtual environment of its own.

The checkout is not run as it is: the way in which a development environment finds it costs every
start of Python some milliseconds. The original is run, and never read.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.machine import PATH, REPOSITORY

ORIGINAL = "buttervolume==3.13"
SOURCES = ("setup.py", "pyproject.toml", "README.rst", "buttervolume")


class NotInstalled(Exception):
    """pip could not install it; the text says why."""


@dataclass(frozen=True)
class Program:
    """How one of them is started: the command, and what it needs in its environment."""

    argv: tuple[str, ...]
    env: Mapping[str, str]


def install_ours(venv: Path) -> Program:
    """Install this checkout. Raises NotInstalled."""
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory)
        for name in SOURCES:
            source = REPOSITORY / name
            if source.is_dir():
                shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, copy)
        return _install(venv, str(copy))


def install_original(venv: Path) -> Program:
    """Install the published original, if it is not there yet. Raises NotInstalled."""
    return _program(venv) if _executable(venv).exists() else _install(venv, ORIGINAL)


def _install(venv: Path, what: str) -> Program:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    for argv in (
        [sys.executable, "-m", "venv", str(venv)],
        [str(venv / "bin/python"), "-m", "pip", "install", "--quiet", what],
    ):
        done = subprocess.run(argv, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise NotInstalled((done.stderr or done.stdout).strip())
    return _program(venv)


def _program(venv: Path) -> Program:
    # the checkout must not be found before the environment's own package
    return Program((str(_executable(venv)),), {"PYTHONPATH": "", "PATH": f"{venv}/bin:{PATH}"})


def _executable(venv: Path) -> Path:
    return venv / "bin/buttervolume"
