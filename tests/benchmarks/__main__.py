"""The command: `./test.sh --benchmarks [--quick] [name …]`, as root."""

import argparse
import fnmatch
import logging
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from tests.benchmarks import calls, commands, crowds, load, report, transfers
from tests.benchmarks.lab import FULL, QUICK, Lab
from tests.benchmarks.program import (
    ORIGINAL,
    NotInstalled,
    Program,
    install_original,
    install_ours,
)
from tests.benchmarks.report import Row
from tests.support.command import run
from tests.support.machine import REPOSITORY

BENCHMARKS: dict[str, Callable[[Lab], list[Row]]] = (
    load.BENCHMARKS
    | calls.BENCHMARKS
    | crowds.BENCHMARKS
    | transfers.BENCHMARKS
    | commands.BENCHMARKS
)
CACHE = REPOSITORY / ".cache"
LOG = logging.getLogger("benchmarks")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="./test.sh --benchmarks", description=__doc__)
    add = parser.add_argument
    add("names", nargs="*", metavar="name", default=["*"], help="which: get, 'send-*' (all)")
    add("--list", action="store_true", help="print the names and end")
    add("--quick", action="store_true", help="small numbers, to see whether it works")
    add("--no-original", action="store_true", help="leave the original out")
    add("--compare", type=Path, metavar="FILE", help="show the table.csv of another run beside it")
    add("--output", type=Path, default=CACHE / "benchmarks", help="directory of the results")
    add("--directory", type=Path, help="where the disk images are made (a temporary directory)")
    return parser


def select(patterns: Sequence[str]) -> list[str]:
    """The names that one of the patterns fits, in the order of the table."""
    return [
        name
        for name in BENCHMARKS
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    ]


def measure(names: Sequence[str], lab: Lab) -> tuple[list[Row], list[str]]:
    """Run benchmarks; return their rows, and the names of those that failed."""
    rows: list[Row] = []
    failed: list[str] = []
    for name in names:
        LOG.info("%s", name)
        try:
            found = BENCHMARKS[name](lab)
        except (AssertionError, OSError, RuntimeError):  # the others can be measured all the same
            LOG.exception("%s failed", name)
            failed.append(name)
            continue
        for row in found:
            LOG.info("    %s", " | ".join(row.cells()))
        rows += found
    return rows, failed


def machine() -> str:
    """What was measured on, in one line."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30)
    return (
        f"{datetime.now():%Y-%m-%d %H:%M}, {os.cpu_count()} × {(models or ['CPU'])[0]}, "
        f"{memory:.0f} GB, Linux {platform.release()}, {run('btrfs', '--version').split()[1]} of "
        f"btrfs-progs, Python {platform.python_version()}, "
        f"load {os.getloadavg()[0]:.1f}"
    )


def original(wanted: bool) -> Program | None:
    """The published original, if it is wanted and pip has it."""
    if not wanted:
        return None
    try:
        return install_original(CACHE / "benchmarks-original-venv")
    except NotInstalled as error:
        LOG.warning("%s cannot be installed, its column stays empty: %s", ORIGINAL, error)
        return None


def write(rows: Sequence[Row], before: Sequence[Row], described: str, output: Path) -> None:
    """Print the table, and that of two runs side by side if there was one before; write them, the
    CSV and the plot into a directory."""
    text = f"{described}\n\n{report.table(rows)}\n"
    if before:
        text += f"\n{report.comparison(before, rows)}\n"
    sys.stdout.write(text)
    output.mkdir(parents=True, exist_ok=True)
    (output / "table.txt").write_text(text, encoding="utf-8")
    report.write_csv(rows, output / "table.csv")
    if not report.write_plot(rows, described, output / "plot.png"):
        LOG.warning("no plot: matplotlib is not installed")
    LOG.info("the results are in %s", output)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and write what was found; return the exit status."""
    arguments = build_parser().parse_args(argv)
    names = select(arguments.names)
    if arguments.list:
        sys.stdout.write("\n".join(names) + "\n")
        return 0
    if os.geteuid() or not names:
        sys.stderr.write("it must be run as root, with names that --list knows\n")
        return 2
    try:
        before = report.read_csv(arguments.compare) if arguments.compare else []
    except (OSError, ValueError) as error:
        sys.stderr.write(f"cannot compare: {error}\n")
        return 2
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    described = machine()
    LOG.info("%s", described)
    sizes = QUICK if arguments.quick else FULL
    try:
        ours = install_ours(CACHE / "benchmarks-venv")
    except NotInstalled as error:
        sys.stderr.write(f"this checkout cannot be installed: {error}\n")
        return 1
    theirs = original(not arguments.no_original)
    with (
        tempfile.TemporaryDirectory(dir=arguments.directory, prefix="benchmarks-") as directory,
        Lab(Path(directory), sizes, ours, theirs) as lab,
    ):
        rows, failed = measure(names, lab)
        write(rows, before, described, arguments.output)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
