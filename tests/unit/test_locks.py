"""Mutexes and holds: who waits for whom, and who is told to come back later."""

import threading
from collections.abc import Callable

import pytest

from buttervolume.system.locks import Holds, Mutexes
from tests.support.wait import wait_until


class Taken(Exception):
    """What these holds raise for a name that is taken."""


def start(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_who_wants_a_mutex_that_is_held_waits_for_it() -> None:
    mutexes, order = Mutexes(), list[str]()

    def second() -> None:
        with mutexes.hold("db"):
            order.append("second")

    with mutexes.hold("db"):
        thread = start(second)
        wait_until(lambda: mutexes._users["db"] == 2, what="the second to wait")
        order.append("first")
    thread.join(60)

    assert order == ["first", "second"]


def test_mutexes_of_different_names_do_not_meet() -> None:
    mutexes, passed = Mutexes(), threading.Event()

    def other() -> None:
        with mutexes.hold("other"):
            passed.set()

    with mutexes.hold("db"):
        start(other)
        assert passed.wait(60)


def test_two_that_take_the_same_names_in_opposite_order_both_end() -> None:
    mutexes, rounds = Mutexes(), list[str]()

    def take(*names: str) -> None:
        for _ in range(2000):
            with mutexes.hold(*names):
                rounds.append(names[0])

    threads = [start(lambda: take("a", "b")), start(lambda: take("b", "a"))]
    for thread in threads:
        thread.join(60)

    assert len(rounds) == 4000


def test_one_name_given_twice_is_held_once() -> None:
    mutexes = Mutexes()

    with mutexes.hold("db", "db"):
        pass

    assert not mutexes._mutexes


def test_a_mutex_is_free_again_and_forgotten_after_an_error() -> None:
    mutexes = Mutexes()

    with pytest.raises(Taken), mutexes.hold("a", "b"):
        raise Taken

    assert not mutexes._mutexes
    assert not mutexes._users


def test_many_at_once_are_alone_inside_and_leave_nothing() -> None:
    mutexes, inside, most = Mutexes(), list[int](), list[int]()

    def work() -> None:
        for _ in range(200):
            with mutexes.hold("db"):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [start(work) for _ in range(8)]
    for thread in threads:
        thread.join(60)

    assert max(most) == 1
    assert len(most) == 8 * 200
    assert not mutexes._mutexes


def test_what_is_held_cannot_be_claimed_until_the_last_lets_go() -> None:
    holds = Holds(Taken)

    with holds.hold("a"):
        with holds.hold("a", "b"), holds.claim(["a", "b", "c"]) as claimed:
            assert claimed == {"c"}
            assert holds.held() == {"a", "b"}
        with holds.claim(["a", "b"]) as claimed:
            assert claimed == {"b"}

    with holds.claim(["a"]) as claimed:
        assert claimed == {"a"}
    assert holds.held() == frozenset()


def test_what_is_claimed_can_neither_be_held_nor_claimed_again() -> None:
    holds = Holds(Taken)

    with holds.claim(["a"]):
        with pytest.raises(Taken, match=r"^a$"), holds.hold("b", "a"):
            pytest.fail("held what is being changed")
        with holds.claim(["a"]) as second:
            assert not second
        assert not holds.held(), "a refused hold must not leave half of it held"

    with holds.hold("a", "b"):
        assert holds.held() == {"a", "b"}


def test_check_free_tells_at_once_who_is_busy() -> None:
    holds = Holds(Taken)

    with holds.hold("a"):
        holds.check_free("b")
        with pytest.raises(Taken, match=r"^a$"):
            holds.check_free("a")

    holds.check_free("a")


def test_holds_are_let_go_after_an_error() -> None:
    holds = Holds(Taken)

    with pytest.raises(ZeroDivisionError), holds.hold("a"):
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), holds.claim(["a"]):
        raise ZeroDivisionError

    with holds.claim(["a"]) as claimed:
        assert claimed == {"a"}
