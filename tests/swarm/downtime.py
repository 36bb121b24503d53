"""How long a service on a swarm is down, with volumes of ours and with Docker's own, which stay
where they are. As root, on a machine that does nothing else, in 5 rounds or as many as are named:
python -m tests.swarm.downtime [ROUNDS]
"""

import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from statistics import median

from tests.swarm.harness import Node, Service, Swarm

MEMBERS = "follow=alpha:beta:gamma"
KINDS: dict[str, tuple[str, ...]] = {
    "Docker's own volume": (),
    "follow, refuse": (MEMBERS, "every=1"),
    "follow, latest": (MEMBERS, "every=1", "orphan=latest"),
}
NUMBERS = count(1)


def begin(swarm: Swarm, kind: str, node: Node) -> Service:
    """A service that has begun on this node, and whose volume has been copied if it ever is."""
    driver = "btrfs" if KINDS[kind] else "local"
    with swarm.only(node):
        service = Service(swarm, f"down-{next(NUMBERS)}", *KINDS[kind], driver=driver)
        service.wait_for_start(on=node)
    if driver == "btrfs":
        service.wait_for_copies(node)
    return service


def drains(swarm: Swarm, kind: str, rounds: int) -> list[float]:
    """From the last line on the node that is drained to the first on the other, so many times."""
    here, there = swarm.workers
    service = begin(swarm, kind, here)
    found = []
    for number in range(2, 2 + rounds):
        before = service.latest()
        swarm.drain(here)
        after = service.wait_for_start(number, on=there)
        swarm.activate(here)
        found.append(service.moments(after)[0] - service.moments(before)[1])
        here, there = there, here
    swarm.heal()
    return found


def cuts(swarm: Swarm, kind: str, rounds: int) -> list[float]:
    """From the cut of the node to the first line on the other one."""
    here, there = swarm.workers
    found = []
    for _ in range(rounds):
        service = begin(swarm, kind, here)
        cut = time.time()
        swarm.network.black_hole(here.name)
        found.append(service.moments(service.wait_for_start(2, on=there))[0] - cut)
        swarm.heal()
    return found


def restarts(swarm: Swarm, kind: str, rounds: int) -> list[float]:
    """The longest time between two lines while the daemon is killed and started again."""
    node = swarm.workers[0]
    service = begin(swarm, kind, node)
    start, found = service.latest(), []

    def restart() -> None:
        node.daemon.kill()
        node.start_daemon()

    for _ in range(rounds):
        longest = 0.0
        with ThreadPoolExecutor() as pool:
            done = pool.submit(restart)
            while not done.done():
                longest = max(longest, time.time() - service.moments(start)[1])
                time.sleep(0.01)
            done.result()
        found.append(longest)
    swarm.heal()
    return found


def main() -> None:
    """Measure all, and print a table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with tempfile.TemporaryDirectory() as directory, Swarm(Path(directory)) as swarm:
        for what, measure, kinds in (
            ("a drain", drains, list(KINDS)),
            ("a cut", cuts, ["Docker's own volume", "follow, latest"]),
            ("the daemon's restart", restarts, list(KINDS)),
        ):
            for kind in kinds:
                took = sorted(measure(swarm, kind, rounds))
                shown = f"{median(took):6.1f} s ({took[0]:.1f} to {took[-1]:.1f})"
                sys.stdout.write(f"{what:22} {kind:22} {shown}\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
