"""What happens to a volume that follows its service: the rows of the failure table.

Each with a service that must not lose anything (`refuse`) and one that goes on with the newest copy
(`latest`), side by side. Nothing that was ever written may be missing from all disks.
"""

import re

from tests.support.wait import wait_until
from tests.swarm.harness import PATIENCE, SNAPSHOTS, Node, Service, Swarm, assert_all_is_there

MEMBERS = "follow=alpha:beta:gamma"


def begin(swarm: Swarm, name: str, node: Node) -> tuple[Service, Service]:
    """A service of each policy, that has begun on this node, and of which there is a copy."""
    with swarm.only(node):
        refuse = Service(swarm, f"{name}-refuse", MEMBERS, "every=1")
        latest = Service(swarm, f"{name}-latest", MEMBERS, "every=1", "orphan=latest")
        for service in (refuse, latest):
            service.wait_for_start(on=node)
            service.wait_for_copies(node)
    return refuse, latest


def test_moves_that_are_ordered(swarm: Swarm) -> None:
    beta, gamma = swarm.workers
    services = begin(swarm, "moved", beta)

    # a drain, in the middle of which the daemon that is to have it is killed
    swarm.drain(beta)
    wait_until(lambda: "asking beta to let it go" in gamma.daemon.log(), PATIENCE, "the move")
    gamma.daemon.kill()
    gamma.start_daemon()
    for service in services:
        service.wait_for_start(2, on=gamma)

    # an update that stops first, in the middle of which the daemon that has it is killed
    swarm.activate(beta)
    for service in services:
        move = "--constraint-add=node.hostname==beta"
        swarm.update("--update-order=stop-first", move, service.name)
    wait_until(lambda: "asking gamma to let it go" in beta.daemon.log(), PATIENCE, "the move back")
    gamma.daemon.kill()
    gamma.start_daemon()
    for service in services:
        service.wait_for_start(3, on=beta)

    # the end of dockerd
    for service in services:
        swarm.update("--constraint-rm=node.hostname==beta", service.name)
    beta.dockerd.stop()
    for service in services:
        service.wait_for_start(4, on=gamma)

    assert_all_is_there(*services)


def test_two_at_once(swarm: Swarm) -> None:
    """One may use it, and the other is told who does: with an update that starts first, and when
    the swarm takes for dead who is not."""
    beta, gamma = swarm.workers
    services = begin(swarm, "twice", beta)

    for service in services:
        move = "--constraint-add=node.hostname==gamma"
        swarm.update("--update-order=start-first", move, service.name)
    for service in services:
        service.wait_for_error("in use on beta", on=gamma)

    beta.dockerd.kill()
    wait_until(lambda: swarm.states()["beta"] == "down", PATIENCE, "the node to be down")
    wait_until(lambda: not gamma.runs_anything())
    for service in services:
        service.wait_until_it_writes(service.latest())
        assert len(service.starts()) == 1

    # Docker may now start two at once on one node, which is allowed: they share the volume.
    beta.dockerd.start()
    for service in services:
        second, first = service.wait_for_start(2), service.starts()[0]
        found = (swarm.node(second.node).path(service.volume) / "log").read_text().split()
        assert set(first.lines) <= set(found)
        service.assert_nothing_is_lost()
        assert service.forks() == []


def test_two_replicas(swarm: Swarm) -> None:
    """The first one goes on, and the second one is told who has the volume until that has ended;
    the same with a service that is to run on every node."""
    beta, gamma = swarm.workers
    with swarm.only(beta):
        apart = ("--replicas=2", "--replicas-max-per-node=1")  # on one node they share the volume
        two = Service(swarm, "two-replicas", MEMBERS, "every=1", how=apart)
        on_all = Service(swarm, "on-all-nodes", MEMBERS, "every=1", how=("--mode=global",))
        for service in (two, on_all):
            service.wait_for_start(on=beta)

    for service in (two, on_all):
        service.wait_for_error("in use on beta", on=gamma)
        assert_all_is_there(service)
        assert len(service.starts()) == 1

    swarm.drain(beta)
    for service in (two, on_all):
        service.wait_for_start(2, on=gamma)
        assert_all_is_there(service)


def test_the_owner_loses_its_power_and_then_its_disk(swarm: Swarm) -> None:
    beta, gamma = swarm.workers
    refuse, latest = begin(swarm, "power", beta)

    # without power
    beta.cut_power()
    latest.wait_for_start(2, on=gamma)
    refuse.wait_for_error("beta,? .*cannot be reached", on=gamma)
    assert len(refuse.starts()) == 1

    # and back
    beta.boot()
    swarm.wait_until_ready()
    refuse.wait_for_start(2, on=gamma)
    refuse.assert_one_line()
    latest.assert_one_line_or_fork()
    for service in (refuse, latest):
        service.assert_nothing_is_lost()
        service.wait_for_copies(gamma)

    # without a disk: what came after the last copy is lost, and nothing else
    gamma.cut_power()
    gamma.destroy_disk()
    latest.wait_for_start(3, on=beta)
    refuse.wait_for_error("gamma,? .*cannot be reached", on=beta)
    assert len(refuse.starts()) == 2
    beta.cli("follow", "take", refuse.volume, "--yes")
    refuse.wait_for_start(3, on=beta)
    for service in (refuse, latest):
        first, second, third = service.starts()
        assert third.after.startswith((first.id, second.id))

    # and with an empty one
    gamma.boot()
    swarm.wait_until_ready()
    swarm.drain(beta)
    for service in (refuse, latest):
        assert service.wait_for_start(4, on=gamma).after.startswith(service.starts()[2].id)


def test_the_owner_is_cut_off_and_goes_on(swarm: Swarm) -> None:
    beta, gamma = swarm.workers
    refuse, latest = begin(swarm, "cut", beta)

    swarm.network.black_hole(beta.name)
    latest.wait_for_start(2, on=gamma)
    refuse.wait_for_error("beta,? .*cannot be reached", on=gamma)
    for service in (refuse, latest):
        service.wait_until_it_writes(service.starts()[0])
    assert len(refuse.starts()) == 1

    swarm.network.restore(beta.name)
    refuse.wait_for_start(2)
    refuse.assert_one_line()
    latest.assert_one_line_or_fork()
    for service in (refuse, latest):
        service.assert_nothing_is_lost()

    # what goes on goes on
    latest.wait_until_it_writes(latest.starts()[1])
    swarm.drain(gamma)
    second, third = latest.starts()[1], latest.wait_for_start(3, on=beta)
    assert third.after.startswith(second.id)
    for service in (refuse, latest):
        service.assert_nothing_is_lost()


def test_two_members_take_it(swarm: Swarm) -> None:
    """As two people may do who do not know of each other. Nobody goes on until a third decides."""
    alpha, (beta, gamma) = swarm.manager, swarm.workers
    service, _ = begin(swarm, "taken", beta)
    volume = service.volume

    # given that both go on without the owner
    beta.cut_power()
    service.wait_for_error("beta,? .*cannot be reached", on=gamma)
    alpha.api.call("Create", Name=volume, Opts={"follow": "alpha:beta:gamma", "every": "1"})
    swarm.network.black_hole(gamma.name)
    for node in (alpha, gamma):
        node.cli("follow", "take", volume, "--yes")
    alpha.api.call("Mount", Name=volume, ID="somebody")
    with (alpha.path(volume) / "log").open("a") as log:
        log.write("written on alpha\n")
    alpha.api.call("Unmount", Name=volume, ID="somebody")

    # when they hear of each other
    swarm.network.restore(gamma.name)
    service.wait_for_error("two lines: ", on=gamma)
    assert len(service.starts()) == 1

    # then a person gives up one of the lines, which is kept as a fork
    said = alpha.cli("follow", volume, check=False).stdout
    found = re.search(r"alpha began (\w+)", said)
    assert found, said
    alpha.cli("follow", "resolve", volume, found[1], "drop")
    second = service.wait_for_start(2, on=gamma)
    service.wait_until_it_writes(second)
    (fork,) = wait_until(lambda: alpha.status(volume)["Forks"], PATIENCE, "the fork")
    assert "written on alpha" in (alpha.machine.path(f"{SNAPSHOTS}/{fork}") / "log").read_text()
