"""Rollouts by themselves: who is promoted, who goes back, and how seldom that is a mistake."""

from __future__ import annotations

import random
from math import comb, isclose
from time import thread_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unjam.core.promotion import ALPHA, Promotion, Seen, weights, worse
from unjam.core.spec import RolloutSpec

SPEC = RolloutSpec("v2", (0.1, 0.5, 1.0), hold=60.0, min_requests=100)
NOTHING = Seen(0, 0, 0, 0)


def fresh(spec: RolloutSpec = SPEC) -> Promotion:
    made = Promotion(spec)
    made.begin(0, NOTHING, NOTHING, 0.0, "begun")
    return made


def good(calls: int) -> Seen:
    return Seen(calls, 0, 0, 0)


def test_a_good_version_takes_step_after_step_and_arrives() -> None:
    made = fresh()
    shares = [made.share]
    for turn in (1, 2, 3):
        assert made.look(good(200 * turn), good(2000 * turn), "", 60.0 * turn)
        shares.append(made.share)
    assert shares == [0.1, 0.5, 1.0, 1.0]
    assert made.state == "promoted"
    assert not made.look(good(1000), good(9000), "", 999.0)


def test_a_step_needs_its_time_and_its_requests() -> None:
    made = fresh()
    assert not made.look(good(500), good(5000), "", 59.0)
    assert made.waits(good(500), 59.0) == "1 s of its hold are left"
    assert not made.look(good(99), good(5000), "", 600.0)
    assert made.waits(good(99), 600.0) == "99 of 100 requests"
    assert made.look(good(100), good(5000), "", 601.0)
    # The next step counts its own.
    assert not made.look(good(199), good(6000), "", 700.0)
    assert made.look(good(200), good(6000), "", 700.0)


@pytest.mark.parametrize(
    ("new", "old", "words"),
    [
        (Seen(200, 10, 0, 0), Seen(2000, 10, 0, 0), "10 of its 200 calls failed, 10 of 2000 of the others"),
        (Seen(200, 0, 40, 8), Seen(2000, 0, 400, 8), "8 of 40 verdicts on it were bad, 8 of 400 on the others"),
    ],
)
def test_a_worse_one_goes_back(new: Seen, old: Seen, words: str) -> None:
    made = fresh()
    assert made.look(new, old, "", 60.0)
    assert (made.state, made.share, made.why) == ("rolled_back", 0.0, words)


def test_a_trip_sends_it_back_at_once_even_while_it_is_paused() -> None:
    made = fresh()
    made.pause(1.0)
    assert made.look(Seen(5, 5, 0, 0), good(50), "error rate above 5 %", 2.0)
    assert (made.state, made.why) == ("rolled_back", "its breaker tripped: error rate above 5 %")


def test_a_slower_one_goes_back_and_one_that_is_as_slow_does_not() -> None:
    for factor, state in ((1.0, "running"), (1.05, "running"), (2.0, "rolled_back")):
        made = fresh()
        rng = random.Random(3)
        for _ in range(1500):
            made.times.note("v1", True, rng.uniform(1.0, 10.0))
        for _ in range(200):
            made.times.note("v2", True, factor * rng.uniform(1.0, 10.0))
        made.look(good(200), good(1500), "", 60.0)
        assert made.state == state, factor
    assert "p95 in the heavy lane" in made.why


def test_a_few_milliseconds_that_little_traffic_costs_are_no_reason_to_go_back() -> None:
    for more, state in ((0.0003, "running"), (0.009, "running"), (0.02, "rolled_back")):
        made = fresh()
        for _ in range(500):
            made.times.note("v1", False, 0.0003)
            made.times.note("v2", False, 0.0003 + more)
        made.look(good(500), good(500), "", 60.0)
        assert made.state == state, more


def test_a_pause_does_not_count_as_time_held() -> None:
    made = fresh()
    made.pause(30.0)
    assert not made.look(good(900), good(900), "", 1000.0)
    made.resume(1000.0)
    assert not made.look(good(900), good(900), "", 1029.0)
    assert made.look(good(900), good(900), "", 1030.0)


def test_equal_versions_are_seldom_called_worse_and_clearly_worse_ones_seldom_pass() -> None:
    rng = random.Random(7)

    def failures(calls: int, rate: float) -> int:
        return sum(rng.random() < rate for _ in range(calls))

    back = 0
    for _ in range(400):
        made = fresh()
        made.look(Seen(200, failures(200, 0.03), 0, 0), Seen(1800, failures(1800, 0.03), 0, 0), "", 60.0)
        back += made.state == "rolled_back"
    assert back <= 400 * 3 * ALPHA
    passed = 0
    for _ in range(400):
        made = fresh()
        made.look(Seen(200, failures(200, 0.12), 0, 0), Seen(1800, failures(1800, 0.03), 0, 0), "", 60.0)
        passed += made.state != "rolled_back"
    assert passed <= 8


@given(st.integers(0, 30), st.integers(1, 60), st.integers(0, 30), st.integers(1, 60))
def test_the_tail_is_that_of_the_definition(hits: int, calls: int, other: int, others: int) -> None:
    hits, other = min(hits, calls), min(other, others)
    total = hits + other
    exact = sum(comb(calls, k) * comb(others, total - k) for k in range(hits, min(total, calls) + 1)) / comb(
        calls + others, total
    )
    assert isclose(worse(hits, calls, other, others), exact, rel_tol=1e-9, abs_tol=1e-12)


def test_millions_of_calls_are_compared_in_no_time() -> None:
    """The gateway waits for it."""
    calls = 10_000_000

    def spent() -> float:
        begun = thread_time()
        assert 0.4 < worse(200_000, calls, 200_000, calls) < 0.6
        assert worse(203_000, calls, 200_000, calls) < ALPHA
        assert worse(0, calls, 200_000, calls) == 1.0
        return thread_time() - begun

    assert min(spent() for _ in range(5)) < 0.05


def test_it_goes_on_after_a_restart_with_what_it_had_held() -> None:
    made = fresh()
    made.look(good(200), good(2000), "", 60.0)
    saved = made.saved(100.0)
    again = Promotion(SPEC)
    again.restore(saved, NOTHING, NOTHING, 5000.0)
    assert (again.share, again.state, again.why) == (made.share, made.state, made.why)
    assert again.waits(good(500), 5019.0)
    assert again.look(good(500), good(500), "", 5020.0)
    shorter = Promotion(RolloutSpec("v2", (1.0,)))
    shorter.restore(saved, NOTHING, NOTHING, 0.0)
    assert shorter.share == 1.0
    with pytest.raises(ValueError, match="no state"):
        again.restore({**saved, "state": "odd"}, NOTHING, NOTHING, 0.0)


@given(
    st.dictionaries(st.sampled_from("abc"), st.one_of(st.just(0.0), st.floats(1e-3, 1e6)), min_size=1).map(
        lambda w: {**w, "new": 1.0}
    ),
    st.floats(0.0, 1.0),
)
def test_weights_give_the_share_and_keep_the_others_proportions(before: dict[str, float], share: float) -> None:
    found = weights(before, "new", share)
    assert isclose(sum(found.values()), 100.0)
    assert isclose(found["new"], 100.0 * share)
    rest = sum(weight for name, weight in before.items() if name != "new")
    if rest:
        for name, weight in before.items():
            if name != "new":
                assert isclose(found[name] * rest, (100.0 - found["new"]) * weight, rel_tol=1e-6, abs_tol=1e-3)
