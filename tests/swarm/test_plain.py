"""A volume without `follow`: each node has its own, as with Docker's own driver."""

from tests.support.wait import wait_until
from tests.swarm.harness import PATIENCE, Service, Swarm


def test_a_drained_service_starts_on_another_node(swarm: Swarm) -> None:
    service = Service(swarm, "plain")
    first = service.wait_for_start()
    here = swarm.node(first.node)

    swarm.drain(here)

    there = swarm.other_worker(here)
    second = service.wait_for_start(2, on=there)
    assert second.after == "nothing"
    service.wait_until_it_writes(second)
    service.assert_nothing_is_lost()


def test_a_service_leaves_a_node_without_power_which_comes_back_with_its_disk(swarm: Swarm) -> None:
    service = Service(swarm, "power")
    first = service.wait_for_start()
    here = swarm.node(first.node)

    here.cut_power()

    there = swarm.other_worker(here)
    service.wait_for_start(2, on=there)
    assert swarm.states()[here.name] == "down"
    here.boot()
    swarm.wait_until_ready()
    service.assert_nothing_is_lost()
    assert first.lines[0] in (here.path("power") / "log").read_text()


def test_a_service_of_a_node_that_is_cut_off_runs_twice(swarm: Swarm) -> None:
    service = Service(swarm, "cut")
    first = service.wait_for_start()
    here = swarm.node(first.node)

    swarm.network.black_hole(here.name)

    second = service.wait_for_start(2, on=swarm.other_worker(here))
    service.wait_until_it_writes(first)
    service.wait_until_it_writes(second)
    swarm.network.restore(here.name)
    wait_until(lambda: not here.runs_anything(), PATIENCE, "Docker to end the one that was cut off")
    service.assert_nothing_is_lost()
