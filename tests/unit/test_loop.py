"""The loop behind the socket: it asks only those connections with which something has happened."""

import select
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from buttervolume.api.loop import Loop

BRIEFLY = 0.0
LONG = 60.0


class Dispatcher:
    """One of waitress's, as far as the loop knows them."""

    accepting = False

    def __init__(self) -> None:
        self.near, self.far = socket.socketpair()
        self._fileno = self.near.fileno()
        self.reads = True
        self.writes = False
        self.asked = 0

    def readable(self) -> bool:
        self.asked += 1
        return self.reads

    def writable(self) -> bool:
        return self.writes

    def close(self) -> None:
        self.near.close()
        self.far.close()


class Trigger(Dispatcher):
    """What interrupts the wait of the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.pulled = 0

    def pull_trigger(self) -> None:
        self.pulled += 1
        self.far.send(b"x")


class Listener(Dispatcher):
    """The server."""

    accepting = True

    def __init__(self, trigger: Trigger, *others: Dispatcher) -> None:
        super().__init__()
        self.next_channel_cleanup = self.cleans_next = 0.0
        self.trigger = trigger
        self._map = {each._fileno: each for each in (self, trigger, *others)}

    def readable(self) -> bool:
        """Whether to accept; waitress looks for idle connections here, now and then."""
        self.next_channel_cleanup = self.cleans_next
        return True


class World:
    """A loop with a server and some connections; `happened` is what it has let them act on."""

    def __init__(self, number: int) -> None:
        self.trigger = Trigger()
        self.connections = [Dispatcher() for _ in range(number)]
        self.server = Listener(self.trigger, *self.connections)
        self.happened: list[tuple[Dispatcher, int]] = []
        self.loop = Loop(self.server, self._act)

    def _act(self, dispatcher: Any, events: int) -> None:
        if events & select.POLLIN:
            dispatcher.near.recv(1000)
        if dispatcher is not self.trigger:
            self.happened.append((dispatcher, events))

    def turn_until(self, number: int) -> None:
        """Until so much has happened."""
        while len(self.happened) < number:
            self.loop.turn(LONG)

    def close(self) -> None:
        for each in (self.server, self.trigger, *self.connections):
            each.close()


@pytest.fixture
def world() -> Iterator[World]:
    world = World(50)
    world.loop.turn(BRIEFLY)
    yield world
    world.close()


def test_only_those_with_news_are_asked(world: World) -> None:
    one, *others = world.connections
    before = [each.asked for each in others]

    for _ in range(3):
        one.far.send(b"x")
        world.loop.turn(LONG)

    assert world.happened == 3 * [(one, select.POLLIN)]
    assert [each.asked for each in others] == before


def test_one_that_wants_nothing_is_left_alone_until_a_thread_says_otherwise(world: World) -> None:
    one = world.connections[7]
    one.far.send(b"x")
    one.reads = False
    world.loop.touch(one._fileno)
    world.loop.turn(BRIEFLY)
    assert world.happened == []

    with world.loop.working_on(one._fileno):
        one.reads = True
        world.loop.wake()
    world.turn_until(1)

    assert world.happened == [(one, select.POLLIN)]


def test_a_thread_that_has_something_to_send_interrupts_the_wait(world: World) -> None:
    one = world.connections[3]

    def work() -> None:
        with world.loop.working_on(one._fileno):
            one.writes = True
            world.loop.wake()

    thread = threading.Timer(0.05, work)
    thread.start()
    world.turn_until(1)
    thread.join()

    assert world.happened == [(one, select.POLLOUT)]


def test_many_who_wake_it_at_once_interrupt_it_once(world: World) -> None:
    for each in world.connections:
        with world.loop.working_on(each._fileno):
            each.writes = True
            world.loop.wake()
    assert world.trigger.pulled == 1

    world.turn_until(len(world.connections))

    assert {each for each, _ in world.happened} == {*world.connections}
    world.loop.wake()
    assert world.trigger.pulled == 2


def test_after_a_look_for_idle_ones_all_are_asked(world: World) -> None:
    idle = world.connections[9]
    idle.writes = True  # as waitress has it with those that it wants to close
    world.loop.turn(BRIEFLY)
    assert world.happened == []

    world.server.cleans_next = 30.0
    world.turn_until(1)

    assert world.happened == [(idle, select.POLLOUT)]


def test_a_descriptor_that_is_used_again_is_a_new_connection(world: World) -> None:
    old = world.connections[5]
    world.loop.forget(old._fileno)
    del world.server._map[old._fileno]
    old.close()
    new = Dispatcher()
    world.connections.append(new)
    assert new._fileno == old._fileno, "the lowest free number is given"
    world.server._map[new._fileno] = new
    world.loop.touch(new._fileno)
    new.far.send(b"x")

    world.turn_until(1)

    assert world.happened == [(new, select.POLLIN)]


def test_one_that_has_gone_meanwhile_disturbs_nobody(world: World) -> None:
    gone = world.connections.pop(0)
    world.loop.touch(gone._fileno)
    world.loop.forget(gone._fileno)
    del world.server._map[gone._fileno]
    gone.close()
    world.connections[0].far.send(b"x")

    world.turn_until(1)

    assert world.happened == [(world.connections[0], select.POLLIN)]
