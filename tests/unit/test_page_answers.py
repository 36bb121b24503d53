"""The answers of the page: kept for a moment, and never made one right after the other."""

from collections.abc import Callable

import pytest
from flask import Response

from buttervolume.web.app import Answers


class World:
    """A clock that only moves when somebody works or sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept = 0.0
        self.made = 0
        self.answers = Answers(lambda: self.now, self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += seconds

    def working(self, seconds: float) -> Callable[[], Response]:
        def make() -> Response:
            self.now += seconds
            self.made += 1
            return Response(f"number {self.made}", 200 + self.made, {"X-Made": str(self.made)})

        return make


@pytest.fixture
def world() -> World:
    return World()


def test_who_asks_the_same_within_a_moment_gets_the_same(world: World) -> None:
    first = world.answers.get("/", world.working(0.1))
    again = world.answers.get("/", world.working(0.1))

    assert (first.data, first.status_code) == (b"number 1", 201)
    assert (again.data, again.status_code, again.headers["X-Made"]) == (b"number 1", 201, "1")
    assert world.slept == 0


def test_later_it_is_made_anew(world: World) -> None:
    world.answers.get("/", world.working(0.1))
    world.now += 1.0

    assert world.answers.get("/", world.working(0.1)).data == b"number 2"


def test_other_questions_leave_the_processor_free_for_half_of_the_time(world: World) -> None:
    began = world.now
    for number in range(50):
        world.answers.get(f"/?new={number}", world.working(0.2))
        world.answers.now(world.working(0.05))

    worked = 50 * 0.25
    assert world.made == 100
    assert world.now - began >= 2 * worked - 0.2
    assert world.slept == pytest.approx(worked - 0.05)


def test_a_rest_is_no_longer_than_a_second(world: World) -> None:
    world.answers.get("/", world.working(30))
    world.answers.get("/log", world.working(0.1))

    assert world.slept == pytest.approx(1.0)


def test_who_comes_after_the_rest_waits_for_nothing(world: World) -> None:
    world.answers.get("/", world.working(0.5))
    world.now += 0.5
    world.answers.get("/log", world.working(0.1))

    assert world.slept == 0


def test_one_that_fails_costs_its_time_too_and_is_not_kept(world: World) -> None:
    def fail() -> Response:
        world.now += 0.4
        raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            world.answers.get("/", fail)

    assert world.slept == pytest.approx(0.4)
    assert world.answers.get("/", world.working(0.1)).data == b"number 1"
