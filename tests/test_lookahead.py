"""Steps that work ahead: bounded, complete, and clean when a bundle fails."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest
from apache_beam.utils.windowed_value import WindowedValue

from transforms.lookahead import LookAheadDoFn


class Squares(LookAheadDoFn):
    """Squares whole numbers when the test says so; everything else passes."""

    def __init__(self, max_ahead: int, room: int = 100) -> None:
        super().__init__(max_ahead)
        self.room = room
        self.started: dict[int, Future[int]] = {}
        self.discarded: list[int] = []

    def handles(self, element: Any) -> bool:
        return isinstance(element, int)

    def submit(self, element: int) -> Future[int] | None:
        if not self.room:
            return None
        self.room -= 1
        self.started[element] = Future()
        return self.started[element]

    def wait_for_room(self, element: int) -> None:
        self.room += 1

    def discard(self, result: int) -> None:
        self.discarded.append(result)

    def finish(self, element: int) -> None:
        self.started[element].set_result(element * element)


@pytest.fixture
def squares():
    return in_bundle(Squares(max_ahead=2))


def in_bundle(step: Squares) -> Squares:
    step.setup()
    step.start_bundle()
    return step


def test_what_the_step_does_not_handle_passes_at_once_and_overtakes(squares):
    assert list(squares.process(3)) == []
    assert list(squares.process("end of unit")) == ["end of unit"]


def test_finished_results_come_with_the_next_element(squares):
    list(squares.process(3))
    squares.finish(3)
    assert list(squares.process(4)) == [9]


def test_results_come_in_the_order_they_finish(squares):
    list(squares.process(3))
    list(squares.process(4))
    squares.finish(4)
    assert list(squares.process(5)) == [16]


def test_an_element_is_not_begun_before_one_under_way_has_finished_once_the_bound_is_reached(squares):
    list(squares.process(3))
    list(squares.process(4))
    waiting = squares.process(5)
    squares.finish(3)
    assert next(waiting) == 9
    assert 5 not in squares.started


def test_the_end_of_the_bundle_yields_the_rest(squares):
    list(squares.process(3))
    list(squares.process(4))
    squares.finish(3)
    squares.finish(4)
    rest = list(squares.finish_bundle())
    assert all(isinstance(value, WindowedValue) for value in rest)
    assert sorted(value.value for value in rest) == [9, 16]


def test_without_room_the_step_first_yields_what_it_has_under_way():
    squares = in_bundle(Squares(max_ahead=5, room=1))
    list(squares.process(3))
    waiting = squares.process(4)
    squares.finish(3)
    assert next(waiting) == 9
    assert 4 not in squares.started


def test_without_room_and_with_nothing_under_way_the_step_waits_for_room():
    squares = in_bundle(Squares(max_ahead=5, room=0))
    assert list(squares.process(4)) == []
    assert 4 in squares.started


def test_a_future_that_raises_ends_the_bundle_and_cancels_the_others(squares):
    list(squares.process(3))
    list(squares.process(4))
    squares.started[3].set_exception(RuntimeError("the machine is broken"))
    with pytest.raises(RuntimeError, match="the machine is broken"):
        list(squares.finish_bundle())
    assert squares.started[4].cancelled()


def test_what_a_failed_bundle_left_under_way_is_discarded_when_it_finishes(squares):
    list(squares.process(3))
    squares.started[3].set_running_or_notify_cancel()
    squares.start_bundle()
    squares.finish(3)
    assert squares.discarded == [9]
    assert list(squares.finish_bundle()) == []


def test_a_bound_of_nothing_is_refused():
    with pytest.raises(ValueError, match="max_ahead must be at least 1, got 0"):
        Squares(max_ahead=0)
