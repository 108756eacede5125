"""What reports are believed, and how others' use of the processor is told from ours."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.made import OK, balancer, endpoints, fleet, lease, request, service
from unjam.core.heard import FROZEN_AFTER, others, share_left
from unjam.core.load import LoadReport

GIB = 1 << 30
GOOD = LoadReport(cores=8, memory=16 * GIB, cpu=0.5, agent_cpu=0.2, memory_free=8 * GIB, in_flight=3, waiting=1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cpu": math.nan}, "cpu is not a number"),
        ({"cpu": math.inf}, "cpu is not a number"),
        ({"cpu": -0.1}, "cpu is -0.1: it must be from 0 to 1"),
        ({"cpu": 1.5}, "cpu is 1.5: it must be from 0 to 1"),
        ({"cores": 1e9}, "cores is 1e+09: it must be from 0 to 4096"),
        ({"cores": 0.0}, "cores is 0: it must be at least 0.01"),
        ({"memory_free": -1}, "memory_free is -1"),
        ({"memory_free": 17 * GIB}, "memory_free (18253611008) is more than memory"),
        ({"agent_cpu": 0.8}, "agent_cpu (0.8) is more than cpu (0.5), of which it is a part"),
        ({"waiting": 4}, "waiting (4) is more than in_flight (3)"),
        ({"weight": 3.0}, "weight is 3"),
        ({"state": "great"}, "state must be ready, draining or down"),
        ({"age": math.nan}, "age is not a number"),
    ],
)
def test_a_report_that_cannot_be_true_is_named(change: dict[str, object], words: str) -> None:
    assert GOOD.problem() == ""
    assert words in replace(GOOD, **change).problem()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("cpu", "agent", "in_flight", "ours", "left_to_others"),
    [
        (0.9, 0.9, None, 3, 0.0),  # all of it is our work
        (0.9, 0.4, None, 3, 0.5),  # a hog beside the agent
        (0.9, 0.9, None, 0, 0.9),  # the agent works, but for nobody of ours
        (0.8, 0.8, 4, 1, 0.6),  # three of its four requests are another gateway's
        (0.8, 0.8, 1, 3, 0.0),  # one of several workers counts only its own requests
        (0.5, None, None, 2, 0.25),  # a total only: each of ours may use one of the 8 cores
        (0.5, None, None, 0, 0.5),
        (0.0, 0.2, None, 1, 0.0),
    ],
)
def test_what_others_use(
    cpu: float, agent: float | None, in_flight: int | None, ours: int, left_to_others: float
) -> None:
    assert others(cpu, agent, 8, in_flight, ours) == pytest.approx(left_to_others)


@given(
    st.floats(0, 1),
    st.none() | st.floats(0, 1),
    st.floats(0.01, 4096),
    st.none() | st.integers(0, 1000),
    st.floats(0, 1e6),
)
def test_others_use_a_share(cpu: float, agent: float | None, cores: float, in_flight: int | None, ours: float) -> None:
    assert 0.0 <= others(cpu, agent, cores, in_flight, ours) <= cpu


def test_its_own_work_does_not_drive_work_away() -> None:
    made = balancer(service(fleet=endpoints(2, cores=4)))
    one, _ = fleet(made)
    running = [lease(made.offer(request(made.services["s"]), 0.0)) for _ in range(8)]
    made.report(one, LoadReport(cpu=1.0, agent_cpu=1.0), 2.0)
    assert one.avail == 4.0
    for each in running:
        made.finish(each, OK, 3.0)
    made.report(one, LoadReport(cpu=0.95, agent_cpu=0.95), 4.0)
    assert one.avail == 4.0  # it had work of ours a moment ago
    made.report(one, LoadReport(cpu=0.9, agent_cpu=0.9), 6.0)
    assert one.avail == pytest.approx(0.4)  # what it does now is nothing of ours


def test_short_requests_between_two_reports_are_ours_too() -> None:
    made = balancer(service(fleet=endpoints(1, cores=1, slots=50)))
    one = fleet(made)[0]
    made.report(one, LoadReport(cpu=0.0), 0.0)
    now = 0.0
    while now < 1.9:
        each = lease(made.offer(request(made.services["s"]), now))
        made.finish(each, OK, now + 0.04)
        now += 0.05
    made.report(one, LoadReport(cpu=0.8), 2.0)
    assert one.avail == pytest.approx(1.0, abs=0.05)  # requests ran for three quarters of the time


def test_refused_late_and_accepted_are_counted_and_named() -> None:
    made = balancer(service(fleet=endpoints(2, cores=8)))
    one, _ = fleet(made)
    made.report(one, GOOD, 0.0)
    made.report(one, LoadReport(cores=1e9), 1.0)
    tally = one.tally
    assert tally is not None
    assert (tally.accepted, tally.refused, tally.late) == (1, 1, 0)
    assert one.avail == 8.0  # who says one thing that can't be true isn't believed the rest
    seen = made.snapshot(1.0)["services"]["s"]["versions"]["v"]["endpoints"][0]
    assert "reports refused: cores is 1e+09: it must be from 0 to 4096" in seen["why"]
    assert seen["load"]["refused"] == 1
    made.report(one, replace(GOOD, age=30.0), 40.0)
    assert (tally.accepted, tally.late) == (1, 1)
    made.report(one, replace(GOOD, age=4.0), 40.0)
    made.report(one, replace(GOOD, cpu=1.0, age=9.0), 41.0)  # overtaken on its way
    assert (tally.accepted, tally.late) == (2, 2)
    assert one.avail == 4.0
    assert tally.problem == ""


def test_an_aged_report_counts_by_when_it_was_measured() -> None:
    made = balancer(service(fleet=endpoints(2, cores=8)))
    one, _ = fleet(made)
    made.report(one, LoadReport(cpu=0.5, age=17.5), 100.0)
    assert one.avail == pytest.approx(6.0)
    assert "report 18 s old" in made.snapshot(100.0)["services"]["s"]["versions"]["v"]["endpoints"][0]["why"]
    made.tick(112.5)
    assert one.avail == 8.0


def test_figures_that_never_move_while_requests_run_are_made_up() -> None:
    made = balancer(service(fleet=endpoints(2, cores=8)))
    one, other = fleet(made)
    held = [lease(made.offer(request(made.services["s"]), 0.0)) for _ in range(2)]
    assert {each.endpoint for each in held} == {one, other}
    lie = LoadReport(cpu=0.5, agent_cpu=0.0, memory_free=GIB)
    for i in range(FROZEN_AFTER):
        made.report(one, lie, 2.0 * i)
        made.report(other, replace(lie, memory_free=GIB + i), 2.0 * i)
    now = 2.0 * FROZEN_AFTER
    assert one.avail == other.avail == 4.0
    made.report(one, lie, now)
    made.report(other, replace(lie, memory_free=GIB - 1), now)
    assert one.avail == 8.0
    assert other.avail == 4.0
    assert one.tally is not None
    assert one.tally.problem == "cpu was exactly 0.5 in 9 reports while requests ran"
    made.report(one, replace(lie, cpu=0.51), now + 2.0)  # it moves: believed again
    assert one.avail == pytest.approx(8 * 0.49)


def test_an_idle_endpoint_may_say_the_same_for_ever() -> None:
    made = balancer(service(fleet=endpoints(1, cores=8)))
    one = fleet(made)[0]
    for i in range(50):
        made.report(one, LoadReport(cpu=0.25, agent_cpu=0.0), 2.0 * i)
    assert one.tally is not None
    assert one.tally.refused == 0
    assert one.avail == 6.0


def test_each_figure_comes_from_the_freshest_source_that_knows_it() -> None:
    made = balancer(service(fleet=endpoints(1, cores=8)))
    one = fleet(made)[0]
    made.report(one, LoadReport(cpu=0.5, agent_cpu=0.0, source="reporter"), 0.0)
    for second in range(1, 41):
        made.report(one, LoadReport(in_flight=0, source="header"), float(second))
        made.tick(float(second))
        if second == 4:
            assert one.avail == 4.0
    assert one.avail == 8.0  # the headers kept coming; what the reporter once said of the processor did not stay


def test_a_liar_takes_only_its_own_word_with_it() -> None:
    made = balancer(service(fleet=endpoints(1, cores=8)))
    one = fleet(made)[0]
    made.report(one, LoadReport(cpu=0.5, agent_cpu=0.0, source="reporter"), 0.0)
    made.report(one, LoadReport(memory_free=1000, source="header"), 0.1)
    made.report(one, LoadReport(cpu=math.nan, source="header"), 0.2)
    assert one.avail == 4.0
    assert one.tally is not None
    assert set(one.tally.sources) == {"reporter"}
    made.report(one, LoadReport(cpu=2.0, source="reporter"), 0.3)
    assert one.avail == 8.0


def test_the_worst_word_of_all_sources_counts() -> None:
    made = balancer(service(fleet=endpoints(2, cores=8)))
    one, _ = fleet(made)
    made.report(one, LoadReport(state="draining", source="agent_check"), 0.0)
    made.report(one, LoadReport(state="ready", source="reporter"), 1.0)
    assert one.draining
    made.report(one, LoadReport(weight=1.0, source="agent_check"), 2.0)
    assert one.draining  # nothing said of it is no change
    made.report(one, LoadReport(state="ready", source="agent_check"), 3.0)
    assert not one.draining


def test_a_small_change_is_not_worth_a_new_order() -> None:
    made = balancer(service(fleet=endpoints(1, cores=10)))
    one = fleet(made)[0]
    made.report(one, LoadReport(cpu=0.50), 0.0)
    made.report(one, LoadReport(cpu=0.53), 1.0)
    assert one.avail == 5.0
    made.report(one, LoadReport(cpu=0.56), 2.0)
    assert one.avail == pytest.approx(4.4)


@pytest.mark.parametrize(
    ("other", "own", "cores", "run_queue", "ours", "share"),
    [
        (0.5, 0.0, 8, None, 0, 0.5),  # nobody says who waits: what is used is gone
        (0.5, 0.0, 8, 4.0, 0, 8 / 12),  # four tasks of others would make room for eight of ours
        (1.0, 0.0, 1, 8.0, 0, 1 / 9),  # a hog of eight, nothing of ours: the queue tells
        (0.89, 0.11, 1, 9.0, 1, 1 / (1 + 0.89 / 0.11)),  # the same beside one of ours: how time was divided tells
        (0.05, 0.95, 1, 9.0, 1, 1.0),  # the queue is another processor's: here hardly anything but ours ran
        (0.15, 0.0, 1, 1.0, 0, 1.0),  # the machine's own services
        (0.0, 1.0, 4, 16.0, 16, 1.0),  # crowded with our own work
    ],
)
def test_the_share_that_others_leave(
    other: float, own: float, cores: float, run_queue: float | None, ours: float, share: float
) -> None:
    assert share_left(other, own, cores, run_queue, ours) == pytest.approx(share)


def test_a_hog_is_seen_within_two_reports_and_missed_in_one() -> None:
    made = balancer(service(fleet=endpoints(2, cores=1)))
    one, _ = fleet(made)
    calm = LoadReport(cpu=0.05, agent_cpu=0.05, run_queue=0.0)
    hog = LoadReport(cpu=1.0, agent_cpu=0.0, run_queue=8.0)
    made.report(one, calm, 0.0)
    assert one.avail == 1.0
    made.report(one, hog, 2.0)
    made.report(one, replace(hog, run_queue=9.0), 2.5)
    assert one.avail < 0.4
    made.report(one, replace(hog, run_queue=8.0, memory_free=1), 4.5)
    assert one.barred
    made.report(one, calm, 6.5)
    assert one.avail == 1.0
    assert not one.barred
