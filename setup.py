"""Packaging; the tools are configured in pyproject.toml."""

from pathlib import Path

from setuptools import setup

setup(
    name="buttervolume",
    version="3.14.0.dev0",
    description="Docker volume plugin that keeps each volume in a BTRFS subvolume",
    long_description=Path(__file__).with_name("README.rst").read_text(encoding="utf-8"),
    long_description_content_type="text/x-rst",
    license="Apache-2.0",
    classifiers=[
        "Environment :: No Input/Output (Daemon)",
        "Intended Audience :: System Administrators",
        "License :: OSI Approved :: Apache Software License",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: System :: Archiving :: Backup",
        "Topic :: System :: Filesystems",
    ],
    packages=["buttervolume"],
    python_requires=">=3.11",
    install_requires=[
        "flask>=2.2",
        "waitress>=2.1",
        "requests>=2.28",
        "requests-unixsocket>=0.3",
        "tqdm>=4.64",
    ],
    extras_require={
        "test": [
            "docutils",
            "hypothesis",
            "mypy==2.4.*",
            "pytest",
            "ruff==0.17.*",
            "types-docutils",
            "types-requests",
            "types-tqdm",
            "types-waitress",
        ],
    },
    entry_points={"console_scripts": ["buttervolume = buttervolume.cli:main"]},
)
