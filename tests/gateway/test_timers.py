"""The timer wheel by itself, with a clock of the test's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from unjam.gateway.timers import NEVER, TICK, Wheel


class Timed:
    def __init__(self, then: Callable[[float], float]) -> None:
        self.due = NEVER
        self.then = then
        self.calls: list[float] = []

    def on_timer(self, now: float) -> float:
        self.calls.append(now)
        return self.then(now)


def never(now: float) -> float:
    return NEVER


def unexpected(timed: object) -> None:
    raise AssertionError("no look failed here")


def test_a_time_out_comes_within_a_tick_and_once() -> None:
    wheel = Wheel(100.0)
    timed = Timed(never)
    wheel.at(timed, 101.0)
    for step in range(30):
        wheel.turn(100.0 + step * TICK, unexpected)
    assert len(timed.calls) == 1
    assert 101.0 <= timed.calls[0] <= 101.0 + 2 * TICK
    assert len(wheel) == 0


def test_only_an_earlier_look_is_entered_and_a_later_one_is_asked_for_then() -> None:
    wheel = Wheel(0.0)
    timed = Timed(lambda now: 5.0 if now < 5.0 else NEVER)
    wheel.at(timed, 2.0)
    wheel.at(timed, 3.0)
    assert len(wheel) == 1
    wheel.at(timed, 1.0)
    for step in range(100):
        wheel.turn(step * TICK, unexpected)
    assert len(timed.calls) == 2
    assert timed.calls[0] == pytest.approx(1.0, abs=2 * TICK)
    assert timed.calls[1] == pytest.approx(5.0, abs=2 * TICK)


def test_a_pause_of_the_process_loses_nothing() -> None:
    wheel = Wheel(0.0)
    many = [Timed(never) for _ in range(50)]
    for number, timed in enumerate(many):
        wheel.at(timed, 1.0 + number)
    wheel.turn(3600.0, unexpected)
    assert [len(timed.calls) for timed in many] == [1] * 50


def test_one_that_fails_does_not_take_the_others_with_it() -> None:
    def fails(now: float) -> float:
        raise ZeroDivisionError

    wheel = Wheel(0.0)
    many = [Timed(never), Timed(fails), Timed(never), Timed(never)]
    for timed in many[:3]:
        wheel.at(timed, 1.0)
    wheel.at(many[3], 1.5)
    faults: list[Timed] = []
    wheel.turn(2.0, faults.append)
    assert faults == [many[1]]
    assert [len(timed.calls) for timed in many] == [1, 1, 1, 1]


def test_a_time_beyond_all_reason_is_as_good_as_never() -> None:
    wheel = Wheel(0.0)
    timed = Timed(never)
    wheel.at(timed, 1e308)
    wheel.turn(1e6, unexpected)
    assert timed.calls == []
