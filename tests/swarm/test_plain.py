"""A volume without `follow`: each node has its own, as with Docker's own driver."""

from tests.swarm.harness import Service, Swarm


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
