"""Packaging, with a man page and bash completion made from the parser of the command line.

The tools are configured in pyproject.toml.
"""

import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
MAN_PAGE = "build/share/buttervolume.1"
COMPLETION = "build/share/buttervolume"


class BuildWithDocuments(build_py):
    """Build the modules, after the documents that are installed with them."""

    def run(self) -> None:
        """Write the man page and the completion to where `data_files` has them."""
        import shtab
        from argparse_manpage.manpage import Manpage

        sys.path.insert(0, str(HERE))
        from buttervolume.cli.parser import build_parser

        (HERE / MAN_PAGE).parent.mkdir(parents=True, exist_ok=True)
        page = Manpage(build_parser())
        page.description = self.distribution.get_description()
        page.source = self.distribution.get_fullname()
        page.manual = "Buttervolume"
        (HERE / MAN_PAGE).write_text(str(page), encoding="utf-8")
        (HERE / COMPLETION).write_text(shtab.complete(build_parser(), "bash"), encoding="utf-8")
        super().run()


setup(
    name="buttervolume",
    version="3.15.0.dev0",
    description="Docker volume plugin that keeps each volume in a BTRFS subvolume",
    long_description=(HERE / "README.rst").read_text(encoding="utf-8"),
    long_description_content_type="text/x-rst",
    license="Apache-2.0",
    classifiers=[
        "Environment :: No Input/Output (Daemon)",
        "Intended Audience :: System Administrators",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: System :: Archiving :: Backup",
        "Topic :: System :: Filesystems",
    ],
    packages=find_packages(include=["buttervolume*"]),
    python_requires=">=3.11",
    install_requires=[
        "flask>=2.2",
        "waitress>=2.1",
        "requests>=2.28",
        "requests-unixsocket>=0.3",
        "crc32c>=2.3",
        "tqdm>=4.64",
        "humanize>=4.4",
        "tabulate>=0.8.9",
        "wcwidth>=0.2.5",
    ],
    extras_require={
        "test": [
            "docutils",
            "hypothesis",
            "mypy==2.4.*",
            "pytest",
            "ruff==0.17.*",
            "sphinx==9.0.*",
            "types-docutils",
            "types-requests",
            "types-tabulate",
            "types-tqdm",
            "types-waitress",
        ],
    },
    entry_points={"console_scripts": ["buttervolume = buttervolume.cli.main:main"]},
    cmdclass={"build_py": BuildWithDocuments},
    data_files=[
        ("share/man/man1", [MAN_PAGE]),
        ("share/bash-completion/completions", [COMPLETION]),
    ],
)
