"""What is told, and when the machine is read for it: time is an argument here."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from unjam.reporter.figures import Figures
from unjam.reporter.reading import Reading
from unjam.wire.orca import parse, report


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Machine:
    """Reads when it is let, as a slow one would."""

    def __init__(self) -> None:
        self.reads = 0
        self.reading = Reading(cpu=0.5)
        self.fails = False
        self.let = threading.Event()
        self.let.set()

    def read(self) -> Reading:
        self.let.wait(20)
        self.reads += 1
        if self.fails:
            raise OSError("no such file")
        return self.reading


@pytest.fixture(autouse=True)
def complaints(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What threads raised."""
    said: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: said.append(args.exc_value))
    yield said
    join()


def join() -> None:
    for thread in threading.enumerate():
        if thread.name == "unjam-load":
            thread.join(20)


def told(figures: Figures) -> dict[str, Any]:
    return report(parse(figures.header()))


def test_a_reading_is_told_until_the_next_and_made_no_more_often_than_every() -> None:
    clock, machine = Clock(), Machine()
    figures = Figures(machine=machine, every=1.0, clock=clock)
    assert told(figures) == {"in_flight": 0}
    join()
    assert told(figures) == {"in_flight": 0, "cpu": 0.5}
    assert machine.reads == 2  # shares are over the time between two readings
    machine.reading = Reading(cpu=0.75)
    for _ in range(9):
        clock.now += 0.1
        assert told(figures) == {"in_flight": 0, "cpu": 0.5}
        join()
    assert machine.reads == 2
    clock.now += 0.2
    told(figures)
    join()
    assert machine.reads == 3
    assert told(figures) == {"in_flight": 0, "cpu": 0.75}
    assert json.loads(figures.body()) == {"in_flight": 0, "cpu": 0.75}


def test_one_reading_at_a_time() -> None:
    clock, machine = Clock(), Machine()
    machine.let.clear()
    figures = Figures(machine=machine, every=1.0, clock=clock)
    for _ in range(5):
        assert told(figures) == {"in_flight": 0}
        clock.now += 2.0
    assert [thread.name for thread in threading.enumerate()].count("unjam-load") == 1
    machine.let.set()
    join()


def test_after_a_rest_neither_old_figures_nor_shares_since_then_are_told() -> None:
    clock, machine = Clock(), Machine()
    figures = Figures(machine=machine, every=1.0, clock=clock)
    told(figures)
    join()
    clock.now += 60
    machine.reading = Reading(cpu=0.9)
    assert told(figures) == {"in_flight": 0}
    join()
    assert machine.reads == 4
    assert told(figures) == {"in_flight": 0, "cpu": 0.9}


def test_a_machine_that_cannot_be_read_is_shown_and_breaks_no_answer(complaints: list[Any]) -> None:
    clock, machine = Clock(), Machine()
    machine.fails = True
    figures = Figures(machine=machine, every=1.0, clock=clock)
    for _ in range(3):
        assert told(figures) == {"in_flight": 0}
        join()
    assert [str(error) for error in complaints] == ["no such file"]
    machine.fails = False
    clock.now += 1.5
    told(figures)
    join()
    assert told(figures) == {"in_flight": 0, "cpu": 0.5}


def test_figures_that_cannot_be_told_break_no_answer(complaints: list[Any]) -> None:
    machine = Machine()
    machine.reading = Reading(cpu=math.nan)
    figures = Figures(machine=machine, every=1.0, clock=Clock())
    told(figures)
    join()
    assert told(figures) == {"in_flight": 0}
    assert len(complaints) == 1


def test_counts_are_told_as_they_are_now() -> None:
    waiting = 0
    figures = Figures(waiting=lambda: waiting, format="json")
    figures.counter.begin()
    figures.counter.begin()
    assert told(figures) == {"in_flight": 2, "waiting": 0}
    waiting = 1
    assert told(figures) == {"in_flight": 2, "waiting": 1}
    figures.counter.end()
    assert told(figures) == {"in_flight": 1, "waiting": 1}
    figures.counter.end()
    assert json.loads(figures.body()) == {"in_flight": 0, "waiting": 0}
