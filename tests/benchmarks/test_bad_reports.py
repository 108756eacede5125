"""The simulated servers, the ways of telling, and a small run of the whole: lies cost next to nothing."""

from __future__ import annotations

import math

import pytest
from benchmarks.bad_reports import compare
from benchmarks.bad_reports.tellers import BASE, ROWS
from benchmarks.bad_reports.world import Neighbours, Server, World, fleet
from benchmarks.heavy_tail.arrivals import CHAT, Job

QUIET = Neighbours(part=0.5, on=1e-9, off=1e12)


def test_requests_beyond_the_cores_share_them() -> None:
    jobs = [Job(0.0, CHAT, "/chat", 3.0) for _ in range(4)]
    world = World(fleet("least_loaded", (2,)), (2,), QUIET, None, 1)
    assert world.run(jobs) == [pytest.approx(6.0)] * 4
    alone = World(fleet("least_loaded", (2,)), (2,), QUIET, None, 1)
    assert alone.run(jobs[:2]) == [pytest.approx(3.0)] * 2


def test_requests_that_mostly_wait_disturb_each_other_less() -> None:
    jobs = [Job(0.0, CHAT, "/chat", 3.0) for _ in range(4)]
    world = World(fleet("least_loaded", (2,)), (2,), QUIET, None, 1, appetite=0.5)
    assert world.run(jobs) == [pytest.approx(3.0)] * 4


def test_a_neighbour_takes_its_part() -> None:
    server = Server(8, Neighbours(part=0.75))
    server.n = 4
    server.advance(10.0)
    assert (server.used, server.others_used) == (40.0, 0.0)
    server.noisy = True
    assert server.rate() == 0.5
    server.advance(20.0)
    assert (server.used, server.others_used) == (60.0, 60.0)


def test_a_fair_neighbour_makes_room() -> None:
    server = Server(8, Neighbours(part=1.0, fair=True))
    server.noisy = True
    assert (server.rate(), server.others()) == (1.0, 8.0)
    server.n = 8
    assert (server.rate(), server.others()) == (0.5, 4.0)


@pytest.mark.parametrize("row", [row for row in ROWS if row.make], ids=lambda row: row.name)
def test_what_is_told_is_what_the_row_says(row) -> None:  # type: ignore[no-untyped-def]
    out = compare.run(compare.Task(row.name, compare.SCENARIOS[1], 1, 1000))
    assert sum(len(values) for values in out["by"].values()) > 500
    assert out["refused_requests"] == 0
    lies_all = row.name in ("NaN", "negative", "10⁹ cores")
    assert (out["accepted"] == 0) == (lies_all or row.name == "60 s late, age known")
    assert (out["late"] > 0) == (row.name == "60 s late, age known")
    if lies_all:
        assert out["refused"] > 0
        assert out["problem"]
    if row.name in ("honest", "60 s late, age unknown"):
        assert (out["refused"], out["problem"]) == (0, "")


def test_ratios_are_of_the_same_seeds() -> None:
    slow = {"hello": [0.2], "chat": [20.0], "audit": [200.0]}
    fast = {"hello": [0.1], "chat": [10.0], "audit": [100.0]}
    ratios = compare.interval([slow] * 4, [fast] * 4)
    for name in compare.FIGURES:
        assert ratios[name]["ratio"] == pytest.approx(2.0)
        assert ratios[name]["low"] == pytest.approx(2.0)
    assert math.isnan(compare.interval([slow], [fast])["mean"]["low"])


def test_lies_and_silence_cost_little_beside_no_reports() -> None:
    names = ["NaN", "10⁹ cores", "60 s late, age known", "stopped for good at a bad moment", "always idle"]
    (made,) = compare.compare([compare.SCENARIOS[1]], [1, 2], 3000, 1, names)
    assert set(made["rows"]) == {BASE, *names}
    for name in names:
        assert made["rows"][name]["figures"]["mean"]["ratio"] < compare.LIMIT
