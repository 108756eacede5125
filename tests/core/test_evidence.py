"""The rules by which a closed breaker trips, what is learnt as normal, and whose failures they were."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unjam.core.breaker import Breaker
from unjam.core.evidence import LEARN_CALLS, TRIP, Cusum, Window, allowed, increments, normal_rate
from unjam.core.spec import BreakerSpec

WINDOW = BreakerSpec(rule="window")
calls = st.lists(st.booleans(), max_size=400)


@given(calls, st.integers(1, 60), st.integers(1, 60), st.floats(0.01, 0.5))
def test_the_window_is_a_plain_count(outcomes: list[bool], window: int, least: int, rate: float) -> None:
    least = min(least, window)
    rule = Window(rate, window, least)
    for i, failed in enumerate(outcomes):
        last = outcomes[max(0, i + 1 - window) : i + 1]
        expected = failed and sum(last) > allowed(rate, window) and i + 1 >= least
        if failed:
            assert rule.ripe() is expected
            assert rule.bad() is expected
        else:
            rule.good()
        assert rule.level == sum(last)
        assert list(rule.calls()) == last


@pytest.mark.parametrize(("rate", "most"), [(0.05, 5), (0.29, 29), (0.07, 7), (0.055, 5)])
def test_more_than_the_rate_is_counted_without_rounding_errors(rate: float, most: int) -> None:
    assert allowed(rate, 100) == most


def test_a_window_trips_at_the_sixth_failure_of_the_last_hundred() -> None:
    breaker = Breaker(WINDOW)
    for i in range(5):
        assert not any(breaker.record(False, float(i)) for _ in range(10))
        assert not breaker.record(True, float(i))
    assert breaker.record(True, 5.0)
    assert breaker.why == "6 of the last 56 calls failed"


def test_failures_that_have_left_the_window_are_forgotten() -> None:
    breaker = Breaker(WINDOW)
    for i in range(50):
        assert not breaker.record(True, float(i))
        for _ in range(20):
            breaker.record(False, float(i))
    assert breaker.evidence == 4.0


def test_a_window_waits_for_the_least_number_of_calls() -> None:
    breaker = Breaker(WINDOW)
    assert [breaker.record(True, 0.0) for _ in range(20)] == [False] * 19 + [True]


def test_a_window_full_of_successes_need_not_be_told_of_more() -> None:
    breaker = Breaker(WINDOW)
    for _ in range(100):
        assert breaker.watching
        breaker.record(False, 0.0)
    assert not breaker.watching
    assert [breaker.record(True, 0.0) for _ in range(6)] == [False] * 5 + [True]


def test_a_smaller_window_keeps_the_latest_calls() -> None:
    rule = Window(0.05, 100, 20)
    for failed in [True, False, False, True] * 10:
        rule.bad() if failed else rule.good()
    rule.configure(0.5, 10, 5)
    assert list(rule.calls()) == [0, 1, 1, 0, 0, 1, 1, 0, 0, 1]
    assert rule.level == 5.0
    rule.configure(0.5, 20, 5)
    assert len(rule.calls()) == 10


def test_windows_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="have to be seen"):
        Window(0.05, 10, 11)
    with pytest.raises(ValueError, match="unknown rule"):
        Breaker(BreakerSpec(rule="count"))


def test_changing_the_rule_begins_anew_and_changing_the_rate_does_not() -> None:
    breaker = Breaker(BreakerSpec())
    breaker.record(True, 0.0)
    breaker.configure(BreakerSpec(error_rate=0.1))
    assert breaker.evidence == pytest.approx(increments(0.05)[0])
    breaker.configure(WINDOW)
    assert breaker.evidence == 0.0
    breaker.record(True, 0.0)
    assert breaker.evidence == 1.0


@given(calls, st.sampled_from(["cusum", "window"]))
def test_evidence_is_never_negative_and_only_it_trips(outcomes: list[bool], rule: str) -> None:
    breaker = Breaker(BreakerSpec(rule=rule))
    for i, failed in enumerate(outcomes):
        before, ripe = breaker.evidence, breaker.ripe(float(i))
        tripped = breaker.record(failed, float(i))
        assert tripped == (failed and ripe)
        if tripped:
            assert breaker.state == "open"
            return
        assert breaker.evidence >= 0.0
        # A window may be past its limit and wait: for its least number of calls, or for the next one that fails.
        assert breaker.evidence < breaker.limit or rule == "window"
        assert failed or breaker.evidence <= before
        # What need not be recorded really changes nothing.
        if not breaker.watching:
            level = breaker.evidence
            breaker.record(False, float(i))
            assert (breaker.evidence, breaker.watching) == (level, False)


@given(calls)
def test_a_bad_verdict_on_a_call_that_just_ended_well_is_as_if_it_had_failed(outcomes: list[bool]) -> None:
    """Up to one success less, and never more: a success at evidence 0 took nothing that could be given back."""
    up, down = increments(0.05)
    failed, judged = Cusum(0.05), Cusum(0.05)
    for outcome in outcomes:
        for rule in (failed, judged):
            rule.bad() if outcome else rule.good()
        if failed.level >= TRIP:
            return
    tripped = failed.bad()
    judged.good()
    late = judged.worse()
    assert judged.level <= failed.level + 1e-9
    assert judged.level >= failed.level - down - 1e-9
    assert late == tripped or failed.level - TRIP < down
    assert judged.level >= up


@given(calls, st.integers(2, 60))
def test_in_a_window_it_is_exactly_so(outcomes: list[bool], window: int) -> None:
    failed, judged = Window(0.05, window, 1), Window(0.05, window, 1)
    for outcome in outcomes:
        for rule in (failed, judged):
            rule.bad() if outcome else rule.good()
    tripped = failed.bad()
    judged.good()
    assert judged.worse() is tripped
    assert judged.calls() == failed.calls()
    assert judged.level == failed.level


def test_a_verdict_before_the_end_of_its_call_counts_once() -> None:
    """Header first, success after: five such calls are five failures."""
    for rule in ("cusum", "window"):
        breaker = Breaker(BreakerSpec(rule=rule, window=100, least=1))
        needed = 0
        while not breaker.verdict(True, 0.0, 0.0, counted=True):
            needed += 1
            breaker.record(False, 0.0, 0.0)
        assert needed + 1 == (5 if rule == "cusum" else 6)


# What is normal


def test_the_normal_rate_is_learnt_from_a_thousand_calls_while_closed() -> None:
    breaker = Breaker(BreakerSpec(learn=True))
    assert breaker.baseline == pytest.approx(0.02)
    good = 0
    for i in range(LEARN_CALLS):
        if i % 33 == 0:
            breaker.record(True, float(i))
        else:
            good += 1
            breaker.record(False, float(i))
        if i == LEARN_CALLS - 2:
            breaker.note(good)
            assert breaker.learnt is None
    breaker.note(good)
    assert breaker.learnt == pytest.approx(0.041, abs=0.001)
    assert breaker.baseline == breaker.learnt


def test_what_is_too_much_never_becomes_normal_and_a_good_version_keeps_the_usual() -> None:
    for failures, expected in ((0, 0.02), (9, 0.02), (400, 0.05)):
        breaker = Breaker(BreakerSpec(learn=True))
        for i in range(failures):
            breaker.record(True, float(i))
            breaker.start_anew(float(i))
        breaker.note(LEARN_CALLS - failures)
        assert breaker.baseline == pytest.approx(expected)


def test_calls_while_it_is_open_teach_nothing() -> None:
    breaker = Breaker(BreakerSpec(learn=True))
    breaker.trip(0.0, "by hand")
    breaker.note(5 * LEARN_CALLS)
    assert breaker.learnt is None
    breaker.reset(1.0)
    breaker.note(5 * LEARN_CALLS)
    assert breaker.learnt is None


def test_learning_begins_when_it_is_switched_on() -> None:
    breaker = Breaker(BreakerSpec())
    breaker.record(True, 0.0)
    breaker.configure(BreakerSpec(learn=True))
    breaker.note(5 * LEARN_CALLS)
    assert breaker.learnt is None
    breaker.note(6 * LEARN_CALLS)
    assert breaker.learnt == normal_rate(0, LEARN_CALLS)


def test_a_rate_measured_elsewhere_counts_until_its_own_is_known() -> None:
    spec = BreakerSpec(learn=True)
    breaker = Breaker(spec)
    breaker.configure(spec, 0.03)
    assert breaker.baseline == 0.03
    breaker.configure(BreakerSpec(learn=True, open=30.0))
    assert breaker.baseline == 0.03
    breaker.note(LEARN_CALLS)
    assert breaker.baseline == pytest.approx(0.02)
    assert Breaker(BreakerSpec(baseline=0.035)).baseline == 0.035


def test_a_version_that_always_fails_a_little_is_left_alone_once_that_is_known() -> None:
    """At 3.5 % the usual 2 % would trip it every few hundred calls."""
    rng = random.Random(7)
    trips = {}
    for learn in (False, True):
        breaker = Breaker(BreakerSpec(learn=learn))
        breaker.configure(breaker.spec, normal_rate(35, 1000) if learn else None)
        trips[learn] = 0
        for call in range(100_000):
            if breaker.record(rng.random() < 0.035, float(call)):
                trips[learn] += 1
                breaker.reset(float(call))
    assert trips[False] > 20
    assert trips[True] <= 2


def test_too_few_calls_have_no_normal_rate() -> None:
    assert normal_rate(1, LEARN_CALLS - 1) is None
    assert normal_rate(10, LEARN_CALLS) == pytest.approx(0.0167, abs=1e-4)
    # More of them make it no narrower: the distance is what keeps chance from tripping.
    assert normal_rate(1000, 100 * LEARN_CALLS) == pytest.approx(0.0167, abs=1e-4)
