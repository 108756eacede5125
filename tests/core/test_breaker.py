"""The breaker trips on evidence: the rates of false and late trips are measured, its states are a table."""

import random
from math import log
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unjam.core.breaker import OPEN_MOST, RAMP, SILENCE, STEP_LEAST, TRANSITIONS, TRIP, Breaker, Event, increments
from unjam.core.spec import BreakerSpec, QualitySpec

SPEC = BreakerSpec(error_rate=0.05, open=60.0)


def calls_to_trip(rate: float, rng: random.Random, most: int = 10_000_000) -> int:
    breaker = Breaker(SPEC)
    for call in range(1, most + 1):
        if breaker.record(rng.random() < rate, float(call)):
            return call
    return most


def opened(now: float = 0.0, spec: BreakerSpec = SPEC) -> Breaker:
    breaker = Breaker(spec)
    breaker.trip(now, "test")
    return breaker


def ramp(breaker: Breaker, now: float, rate: float, rng: random.Random, per_second: float = 1000.0) -> float:
    """Traffic in proportion to the share until the breaker closes or opens; returns when."""
    while True:
        share = breaker.share(now)
        if breaker.state != "ramping":
            return now
        now += 1.0 / (per_second * share)
        if breaker.record(rng.random() < rate, now):
            return now


def test_the_constants_of_five_percent() -> None:
    up, down = increments(0.05)
    assert up == pytest.approx(1.609, abs=5e-4)
    assert down == pytest.approx(0.0852, abs=5e-5)


@given(st.floats(min_value=0.001, max_value=0.999), st.floats(min_value=0.0, max_value=0.99))
def test_constants_make_sense_for_every_rate(rate: float, baseline: float) -> None:
    up, down = increments(rate, baseline)
    assert up > 0.0
    assert down > 0.0
    # At the baseline the evidence must sink on average, or it would trip of itself.
    p = max(0.4 * rate, baseline)
    assert p * up < (1.0 - p) * down


@pytest.mark.parametrize(("rate", "baseline"), [(0.0, 0.0), (1.0, 0.0), (-0.1, 0.0), (0.05, 1.0), (float("nan"), 0.0)])
def test_rates_out_of_range_are_refused(rate: float, baseline: float) -> None:
    with pytest.raises(ValueError, match="rate"):
        increments(rate, baseline)


def test_five_straight_failures_trip_and_four_do_not() -> None:
    breaker = Breaker(SPEC)
    assert [breaker.record(True, float(i)) for i in range(5)] == [False, False, False, False, True]
    assert breaker.state == "open"
    assert breaker.share(4.0) == 0.0
    assert breaker.why == "error rate above 5 %"
    assert breaker.since == 4.0


def test_mean_calls_to_trip_at_ten_percent() -> None:
    rng = random.Random(7)
    # 79 by long simulation, standard deviation about 65: 400 runs know the mean to ± 3.3.
    assert mean(calls_to_trip(0.10, rng) for _ in range(400)) == pytest.approx(79, abs=10)


def test_mean_calls_to_trip_at_fifty_percent() -> None:
    rng = random.Random(7)
    assert mean(calls_to_trip(0.50, rng) for _ in range(400)) <= 12


def test_false_trips_at_one_percent() -> None:
    rng = random.Random(7)
    breaker = Breaker(SPEC)
    trips = 0
    for call in range(3_000_000):
        if breaker.record(rng.random() < 0.01, float(call)):
            trips += 1
            breaker.reset(float(call))
    # Half a trip per million is expected; six in three million has a chance of one in a thousand.
    assert trips <= 5


def test_a_known_baseline_is_no_reason_to_trip() -> None:
    rng = random.Random(7)
    breaker = Breaker(SPEC, baseline=0.08)
    assert not any(breaker.record(rng.random() < 0.08, float(call)) for call in range(20_000))


def test_successes_alone_leave_nothing_behind() -> None:
    breaker = Breaker(SPEC)
    breaker.record(True, 0.0)
    for _ in range(19):
        breaker.record(False, 0.0)
    assert breaker.evidence == 0.0


def test_switched_off_it_counts_nothing_but_obeys_by_hand() -> None:
    breaker = Breaker(BreakerSpec(enabled=False))
    assert not any(breaker.record(True, 0.0) for _ in range(100))
    breaker.trip(1.0, "by hand")
    assert breaker.share(1.0) == 0.0


def test_switched_off_and_opened_by_hand_time_alone_closes_it() -> None:
    breaker = opened(spec=BreakerSpec(enabled=False, open=10.0))
    for step, share in enumerate(RAMP):
        now = 10.0 + step * 10.0
        assert breaker.share(now) == share
        # It judges nothing on the way.
        assert not any(breaker.record(True, now + i, now) for i in range(9))
    assert (breaker.state, breaker.step) == ("ramping", len(RAMP) - 1)
    assert breaker.tick(60.0)
    assert (breaker.state, breaker.why) == ("closed", "back by time: the breaker is off")


def test_switching_it_off_ends_what_a_doubt_held_up() -> None:
    breaker = opened()
    breaker.share(60.0)
    breaker.record(True, 61.0)
    breaker.configure(BreakerSpec(enabled=False, open=60.0))
    for step in range(1, len(RAMP)):
        assert breaker.share(60.0 + step * 60.0) == RAMP[step]
    breaker.record(False, 360.0)
    assert breaker.state == "closed"


def test_after_open_it_ramps_by_steps_of_its_own_calls() -> None:
    breaker = opened()
    assert breaker.share(59.9) == 0.0
    assert breaker.share(60.0) == RAMP[0]
    seen = [RAMP[0]]
    now = 60.0
    while breaker.share(now) < 1.0 or breaker.state != "closed":
        now += 0.2
        breaker.record(False, now)
        if breaker.share(now) != seen[-1]:
            seen.append(breaker.share(now))
    assert tuple(seen) == RAMP
    # 36 calls clear a step of 5 %; at five a second that takes longer than the least a step lasts.
    assert now - 60.0 == pytest.approx(5 * 36 * 0.2, abs=1.1)


def test_no_amount_of_calls_makes_a_step_shorter_than_its_least() -> None:
    breaker = opened()
    breaker.share(60.0)
    for i in range(10_000):
        breaker.record(False, 60.0 + i * 1e-4)
    assert breaker.share(61.0) == RAMP[0]
    assert breaker.share(60.0 + STEP_LEAST * 60.0) == RAMP[1]


def test_with_hardly_any_traffic_time_takes_the_steps_but_not_the_last() -> None:
    breaker = opened()
    now = 60.0
    for share in RAMP[:-1]:
        assert breaker.share(now) == share
        now += 60.0
    assert breaker.share(now) == 1.0
    assert breaker.share(now + 1e6) == 1.0
    assert breaker.state == "ramping"
    for i in range(36):
        breaker.record(False, now + 100.0 + i)
    assert breaker.state == "closed"


def test_doubt_stops_patience() -> None:
    breaker = opened()
    breaker.share(60.0)
    breaker.record(True, 61.0)
    assert breaker.share(1000.0) == RAMP[0]


def test_three_failures_while_ramping_open_it_again_for_twice_as_long() -> None:
    breaker = opened()
    breaker.share(60.0)
    assert [breaker.record(True, 61.0) for _ in range(3)] == [False, False, True]
    assert breaker.why == "3 of 3 calls failed at 1% of its weight"
    assert breaker.until == 61.0 + 120.0
    assert breaker.trips == 2


def test_each_trip_doubles_the_wait_up_to_ten_minutes() -> None:
    breaker = opened()
    waits = []
    for _ in range(6):
        waits.append(breaker.until - breaker.since)
        now = breaker.until
        breaker.share(now)
        for _ in range(3):
            breaker.record(True, now)
    assert waits == [60.0, 120.0, 240.0, 480.0, OPEN_MOST, OPEN_MOST]


def test_a_trip_late_in_a_long_ramp_is_still_the_same_trouble() -> None:
    breaker = opened()
    for now in (60.0, 120.0, 180.0, 240.0):
        breaker.share(now)
    breaker.trip(299.0, "again")
    assert breaker.until == 299.0 + 120.0


def test_a_longer_open_than_ten_minutes_is_respected() -> None:
    breaker = opened(spec=BreakerSpec(open=3600.0))
    assert breaker.until == 3600.0


def test_once_well_closed_the_next_trip_is_a_new_one() -> None:
    breaker = opened()
    now = ramp(breaker, 60.0, 0.0, random.Random(1))
    assert breaker.state == "closed"
    breaker.trip(now + 61.0, "again")
    assert breaker.until == now + 61.0 + 60.0


def test_tripping_soon_after_closing_is_the_same_trouble() -> None:
    breaker = opened()
    now = ramp(breaker, 60.0, 0.0, random.Random(1))
    breaker.trip(now + 30.0, "again")
    assert breaker.until == now + 30.0 + 120.0


def test_a_bad_version_does_not_ramp_back_and_a_good_one_does() -> None:
    rng = random.Random(7)
    bad = good = 0
    for _ in range(200):
        breaker = opened()
        ramp(breaker, 60.0, 0.10, rng)
        bad += breaker.state == "closed"
        breaker = opened()
        ramp(breaker, 60.0, 0.005, rng)
        good += breaker.state == "closed"
    assert bad == 0
    assert good >= 196


def test_calls_from_before_the_trip_say_nothing_about_after() -> None:
    breaker = opened(100.0)
    assert breaker.share(160.0) == RAMP[0]
    assert not any(breaker.record(True, 161.0, started=50.0) for _ in range(100))
    assert breaker.state == "ramping"
    breaker.reset(170.0)
    assert not any(breaker.record(True, 171.0, started=165.0) for _ in range(100))
    assert breaker.evidence == 0.0
    assert [breaker.record(True, 172.0, started=171.0) for _ in range(5)][-1]


def test_outcomes_while_open_change_nothing() -> None:
    breaker = opened()
    assert not any(breaker.record(failed, 30.0) for failed in (True, False) * 50)
    assert (breaker.state, breaker.until) == ("open", 60.0)


def test_tripping_an_open_one_keeps_it_open_longer() -> None:
    breaker = opened()
    breaker.trip(50.0, "health checks fail")
    assert breaker.until == 110.0
    assert breaker.trips == 1
    assert breaker.why == "health checks fail"


def test_reset_closes_at_once_from_every_state() -> None:
    for prepare in (lambda b: None, lambda b: b.trip(0.0, "x"), lambda b: (b.trip(0.0, "x"), b.share(60.0))):
        breaker = Breaker(SPEC)
        prepare(breaker)
        breaker.reset(61.0)
        assert (breaker.state, breaker.closed, breaker.share(61.0)) == ("closed", True, 1.0)


def test_tick_tells_when_the_share_changed() -> None:
    breaker = opened()
    assert not breaker.tick(59.0)
    assert breaker.tick(60.0)
    assert not breaker.tick(60.1)
    assert breaker.tick(120.0)


def test_a_new_error_rate_keeps_the_state() -> None:
    breaker = opened()
    breaker.configure(BreakerSpec(error_rate=0.20, open=60.0))
    assert breaker.state == "open"
    breaker.reset(0.0)
    breaker.record(True, 0.0)
    assert breaker.evidence == pytest.approx(log(0.4 / 0.08))


def test_every_state_can_be_left_and_reset() -> None:
    states = {"closed", "open", "ramping"}
    assert {state for state, _ in TRANSITIONS} == states == set(TRANSITIONS.values())
    assert all(TRANSITIONS[state, "reset"] == "closed" and TRANSITIONS[state, "trip"] == "open" for state in states)


class Watched(Breaker):
    """Knows of every change of state that went by the table."""

    __slots__ = ("known",)

    def _enter(self, event: Event, why: str, now: float) -> None:
        before = self.state
        assert (before, event) in TRANSITIONS
        super()._enter(event, why, now)
        assert self.state == TRANSITIONS[before, event]
        self.known = self.state


EVENTS = ("ok", "fail", "bad", "sampled bad", "sampled good", "tick", "trip", "reset", "anew", "configure")


@given(
    st.lists(st.tuples(st.sampled_from(EVENTS), st.floats(min_value=0.0, max_value=100.0)), max_size=200),
    st.sampled_from(["cusum", "window"]),
)
def test_whatever_happens_the_share_fits_the_state(events: list[tuple[str, float]], rule: str) -> None:
    specs = [
        BreakerSpec(rule=rule, least=1, window=100),
        BreakerSpec(rule=rule, error_rate=0.1, least=1, window=30),
        BreakerSpec(rule=rule, least=1, window=100, enabled=False),
    ]
    breaker = Watched(specs[0], quality=QualitySpec())
    breaker.known = "closed"
    now = 0.0
    for event, gap in events:
        now += gap
        ripe = breaker.ripe(now)
        tripped = None
        if event in ("ok", "fail"):
            tripped = breaker.record(event == "fail", now)
            assert tripped == (ripe and event == "fail")
        elif event == "bad":
            tripped = breaker.verdict(True, now, now, counted=True)
        elif event in ("sampled bad", "sampled good"):
            tripped = breaker.verdict(event == "sampled bad", now, now, counted=False)
            assert not (tripped and event == "sampled good")
        elif event == "tick":
            breaker.tick(now)
        elif event == "trip":
            breaker.trip(now, "x")
            assert breaker.state == "open"
        elif event == "reset":
            breaker.reset(now)
        elif event == "anew":
            breaker.start_anew(now)
            assert breaker.evidence == 0.0
        else:
            specs.append(specs.pop(0))
            breaker.configure(specs[0])
        assert not tripped or breaker.state == "open"
        share = breaker.share(now)
        assert breaker.state == breaker.known
        assert (share == 0.0) == (breaker.state == "open")
        assert breaker.closed == (breaker.state == "closed")
        assert breaker.closed is False or share == 1.0
        assert breaker.evidence >= 0.0
        # Fewer failures may be allowed than before: it trips at the next one.
        assert breaker.evidence < breaker.limit or rule == "window"
        assert 0.0 <= (breaker.quality_evidence or 0.0) < TRIP
        if breaker.closed and not breaker.watching and breaker.spec.enabled:
            assert breaker.evidence == 0.0
    # Good calls close it in the end, whoever tripped it and for what, even when nobody judges answers any more.
    end = now + OPEN_MOST + len(RAMP) * SILENCE * 60.0
    while not breaker.closed and now <= end:
        now += 5.0
        breaker.record(False, now)
    assert breaker.closed
