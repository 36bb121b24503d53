"""What a person runs: the command line, and Docker."""

import sys
from collections.abc import Callable
from functools import partial

from tests.benchmarks.host import Host
from tests.benchmarks.lab import Lab, on_each
from tests.benchmarks.measure import Measurement, interleave, medians
from tests.benchmarks.report import Goal, Row

CLI_GOAL = Goal(0.5, "original")
RUN_GOAL = Goal(1.1, "bare")
STEPS = ("docker volume create", "docker run with a volume", "docker volume rm")


def _cli(arguments: tuple[str, ...], lab: Lab) -> list[Row]:
    """The bare command is Python's own start, which does nothing."""

    def once(host: Host) -> float:
        return host.runner.time([*host.program.argv, *arguments], env=host.program.env)

    measurements = on_each(lab.hosts(), once)
    measurements["bare"] = partial(lab.ours.runner.time, [sys.executable, "-c", "pass"])
    samples = interleave(min(lab.sizes.commands, 30), measurements, warm_up=3)
    return [Row(f"buttervolume {' '.join(arguments)}", medians(samples), goal=CLI_GOAL)]


def _docker(lab: Lab) -> list[Row]:
    """One volume's life in three commands; the bare command is Docker's `local` driver."""
    for host in lab.hosts().values():
        lab.docker(host)
    lives: dict[str, Measurement] = {}
    steps: dict[str, list[list[float]]] = {}
    for column, host, driver in (
        *((column, host, "btrfs") for column, host in lab.hosts().items()),
        ("bare", lab.ours, "local"),
    ):
        steps[column] = []
        lives[column] = partial(_life, lab, host, driver, steps[column])
    warm_up, rounds = 2, max(lab.sizes.transfers, lab.sizes.commands // 3)
    total = medians(interleave(rounds, lives, warm_up))
    rows = []
    for number, what in enumerate(STEPS):
        values = medians(
            {
                column: [life[number] for life in measured[warm_up:]]
                for column, measured in steps.items()
            }
        )
        rows.append(Row(what, values, goal=RUN_GOAL if "run" in what else None))
    return [*rows, Row("docker: all three", total)]


def _life(lab: Lab, host: Host, driver: str, steps: list[list[float]]) -> float:
    volume = lab.name()
    commands = (
        ["docker", "volume", "create", "--driver", driver, volume],
        ["docker", "run", "--rm", "--network=none", f"--volume={volume}:/data", "busybox", "true"],
        ["docker", "volume", "rm", volume],
    )
    steps.append([host.runner.time(command) for command in commands])
    return sum(steps[-1])


BENCHMARKS: dict[str, Callable[[Lab], list[Row]]] = {
    "cli-help": partial(_cli, ("--help",)),
    "cli-snapshots": partial(_cli, ("snapshots",)),
    "docker": _docker,
}
