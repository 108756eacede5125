"""Verdicts on answers: a bad one makes a failure of a success, a sample is evidence of its own."""

from __future__ import annotations

import random
from statistics import mean

import pytest

from unjam.core.balancer import Balancer
from unjam.core.breaker import RAMP, SILENCE, Breaker
from unjam.core.evidence import increments
from unjam.core.model import Outcome, Reason
from unjam.core.spec import BreakerSpec, Maintenance, QualitySpec, VersionSpec

from .made import OK, balancer, endpoints, fleet, lease, refusal, request, service

SPEC = BreakerSpec(open=60.0)
QUALITY = QualitySpec(error_rate=0.05)


def made_one(**rest: object) -> Balancer:
    return balancer(service(fleet=endpoints(1), fallback=(Maintenance("Soon."),), breaker=SPEC, **rest))


def answered(made: Balancer, now: float, bad: bool | None, sampled: bool = False) -> None:
    taken = lease(made.offer(request(made.services["s"]), now))
    made.finish(taken, OK, now)
    if bad is not None:
        made.verdict(taken.version, bad, now, taken.started, sampled=sampled, reason="it made up a source")


def state(made: Balancer, now: float) -> dict[str, object]:
    found: dict[str, object] = made.snapshot(now)["services"]["s"]["versions"]["v"]
    return found


def test_answers_that_are_all_bad_trip_it_like_failures() -> None:
    made = made_one()
    for i in range(5):
        assert made.services["s"].versions[0].breaker.state == "closed"
        answered(made, float(i), bad=True)
    seen = state(made, 5.0)
    assert seen["breaker"]["state"] == "open"  # type: ignore[index]
    assert seen["breaker"]["why"] == "error rate above 5 %, the last by a bad verdict: it made up a source"  # type: ignore[index]
    assert (seen["good"], seen["bad"], seen["failures"]) == (0, 5, 0)
    assert refusal(made.offer(request(made.services["s"]), 5.0)).reason is Reason.MAINTENANCE


@pytest.mark.parametrize(("rate", "most"), [(0.10, 89), (0.50, 12)])
def test_bad_answers_take_as_many_calls_to_trip_as_failures(rate: float, most: int) -> None:
    rng = random.Random(7)

    def calls() -> int:
        breaker = Breaker(SPEC)
        for call in range(1, 100_000):
            breaker.record(False, float(call), float(call))
            if rng.random() < rate and breaker.verdict(True, float(call), float(call), counted=True):
                return call
        raise AssertionError("it never tripped")

    assert mean(calls() for _ in range(400)) <= most


def test_good_verdicts_of_callers_change_nothing() -> None:
    made = made_one()
    answered(made, 0.0, bad=True)
    before = made.services["s"].versions[0].breaker.evidence
    assert before == pytest.approx(increments(0.05)[0], abs=0.1)
    taken = lease(made.offer(request(made.services["s"]), 1.0))
    for _ in range(100):
        made.verdict(taken.version, False, 1.0, taken.started, sampled=False)
    assert made.services["s"].versions[0].breaker.evidence == before


def test_a_sample_is_not_diluted_by_the_calls_nobody_looked_at() -> None:
    """One in ten is looked at, half of those are bad: ten verdicts trip it, whatever else went well."""
    made = made_one(quality=QUALITY)
    verdicts = 0
    for i in range(10_000):
        answered(made, float(i), bad=(i % 20 == 0) if i % 10 == 0 else None, sampled=True)
        verdicts += i % 10 == 0
        if made.services["s"].versions[0].breaker.state == "open":
            break
    assert verdicts <= 10
    assert state(made, 0.0)["breaker"]["why"] == (  # type: ignore[index]
        "more than 5 % of the answers looked at are bad: it made up a source"
    )


def test_good_answers_of_a_sample_take_its_evidence_away() -> None:
    made = made_one(quality=QUALITY)
    answered(made, 0.0, bad=True, sampled=True)
    breaker = made.services["s"].versions[0].breaker
    assert (breaker.evidence, breaker.quality_evidence) == (0.0, pytest.approx(increments(0.05)[0]))
    for _ in range(19):
        answered(made, 0.0, bad=False, sampled=True)
    assert breaker.quality_evidence == 0.0


def test_without_quality_a_sample_is_counted_and_judges_nothing() -> None:
    made = made_one()
    for _ in range(50):
        answered(made, 0.0, bad=True, sampled=True)
    seen = state(made, 0.0)
    assert (seen["bad"], seen["breaker"]["state"], seen["breaker"]["quality_evidence"]) == (50, "closed", None)  # type: ignore[index]


def test_a_late_verdict_counts_against_the_version_that_gave_the_answer() -> None:
    spec = service(versions=(VersionSpec("a", endpoints(1)), VersionSpec("b", endpoints(1), weight=0.0)), breaker=SPEC)
    made = balancer(spec)
    old = lease(made.offer(request(made.services["s"]), 0.0))
    made.finish(old, OK, 1.0)
    made.set_weight("s", "a", 0.0, 2.0)
    made.set_weight("s", "b", 1.0, 2.0)
    for i in range(5):
        made.verdict(old.version, True, 3600.0 + i, 0.0, sampled=False)
    a, b = made.services["s"].versions
    assert (a.breaker.state, b.breaker.state) == ("open", "closed")


def test_verdicts_on_calls_from_before_the_trip_say_nothing() -> None:
    made = made_one(quality=QUALITY)
    version = made.services["s"].versions[0]
    made.trip("s", "v", 10.0)
    made.reset("s", "v", 20.0)
    for _ in range(20):
        made.verdict(version, True, 30.0, 5.0, sampled=False)
        made.verdict(version, True, 30.0, 5.0, sampled=True)
    assert (version.breaker.state, version.bad) == ("closed", 40)
    made.verdict(version, True, 30.0, 25.0, sampled=True)
    assert version.breaker.quality_evidence


def test_bad_answers_while_ramping_open_it_again() -> None:
    for sampled in (False, True):
        made = made_one(quality=QUALITY)
        made.trip("s", "v", 0.0)
        made.tick(60.0)
        version = made.services["s"].versions[0]
        assert version.share == RAMP[0]
        for i in range(3):
            assert version.breaker.state == "ramping"
            version.breaker.record(False, 61.0 + i, 61.0)
            made.verdict(version, True, 61.0 + i, 61.0, sampled=sampled, reason="drivel")
        assert version.breaker.state == "open"
        assert version.breaker.why.endswith("drivel")
        assert version.breaker.until == 63.0 + 120.0


def test_what_bad_answers_tripped_takes_good_ones_to_close() -> None:
    made = made_one(quality=QUALITY)
    version = made.services["s"].versions[0]
    breaker = version.breaker
    for i in range(5):
        answered(made, float(i), bad=True, sampled=True)
    assert breaker.state == "open"
    now = breaker.until
    breaker.share(now)
    for _ in range(500):
        now += 0.1
        breaker.record(False, now, now)
    assert breaker.share(now) == RAMP[0]
    for step in range(len(RAMP)):
        assert breaker.step == step
        now += 5.0
        for _ in range(36):
            breaker.record(False, now, now)
            made.verdict(version, False, now, now, sampled=True)
    assert breaker.state == "closed"


def at_the_last_step(made: Balancer) -> float:
    """Tripped by quality, and back to all of its weight with nobody judging its answers."""
    breaker = made.services["s"].versions[0].breaker
    for i in range(5):
        answered(made, float(i), bad=True, sampled=True)
    now = breaker.until
    while breaker.share(now) < 1.0:
        now += 1.0
        breaker.record(False, now, now)
    made.tick(now)
    assert breaker.state == "ramping"
    return now


def test_where_nobody_judges_answers_any_more_its_calls_close_what_bad_ones_tripped() -> None:
    made = made_one(quality=QUALITY)
    breaker = made.services["s"].versions[0].breaker
    began = now = at_the_last_step(made)
    while breaker.state == "ramping" and now < began + 1000.0:
        now += 1.0
        answered(made, now, bad=None)
        made.tick(now)
    assert now == began + SILENCE * 60.0
    assert breaker.state == "closed"
    assert breaker.why == "300 of 300 calls were good; too few of their answers were judged for 300 s"


def test_a_doubt_lasts_for_as_long_as_somebody_judges_answers_and_a_while_more() -> None:
    made = made_one(quality=QUALITY)
    version = made.services["s"].versions[0]
    now = at_the_last_step(made)
    for bad in (True, True, False):
        now += 100.0
        answered(made, now, bad=None)
        made.verdict(version, bad, now, now, sampled=True)
    for _ in range(49):
        now += SILENCE * 60.0 / 50
        answered(made, now, bad=None)
        made.tick(now)
    assert version.breaker.state == "ramping"
    now += SILENCE * 60.0 / 50
    made.tick(now)
    assert version.breaker.state == "closed"
    # Bad answers that are found later count as ever.
    for i in range(5):
        answered(made, now + i, bad=True, sampled=True)
    assert version.breaker.state == "open"


def test_a_version_opened_by_hand_with_its_breaker_off_comes_back_by_itself() -> None:
    made = balancer(service(fleet=endpoints(1), breaker=BreakerSpec(enabled=False, open=10.0)))
    version = made.services["s"].versions[0]
    made.trip("s", "v", 0.0)
    shares = set()
    for i in range(600):
        made.tick(i / 10.0)
        shares.add(version.share)
    assert shares == {0.0, *RAMP}
    assert version.breaker.state == "ramping"
    made.tick(60.0)
    assert (version.breaker.state, version.share) == ("closed", 1.0)


def test_errors_and_bad_answers_add_up_but_a_sample_stands_alone() -> None:
    made = made_one(quality=QUALITY)
    breaker = made.services["s"].versions[0].breaker
    for sampled in (True, True, True, True, False, False):
        answered(made, 0.0, bad=True, sampled=sampled)
    for _ in range(2):
        made.finish(lease(made.offer(request(made.services["s"]), 0.0)), Outcome.SERVER_ERROR, 0.0)
        assert breaker.state == "closed"
    made.finish(lease(made.offer(request(made.services["s"]), 0.0)), Outcome.SERVER_ERROR, 0.0)
    assert breaker.state == "open"


def test_switched_off_verdicts_are_only_counted() -> None:
    made = balancer(service(fleet=endpoints(1), breaker=BreakerSpec(enabled=False), quality=QUALITY))
    for _ in range(20):
        answered(made, 0.0, bad=True)
        answered(made, 0.0, bad=True, sampled=True)
    assert state(made, 0.0)["bad"] == 40
    assert fleet(made)[0].usable
    assert made.services["s"].versions[0].breaker.state == "closed"
