"""Regions: the one with the most headroom, reservations settled, waiting for a refill or a 429 that says how long."""

from __future__ import annotations

import pytest

from unjam.core.model import Outcome, Reason
from unjam.core.spec import EndpointSpec, QueueSpec, RegionSpec

from .made import OK, balancer, fleet, lease, refusal, request, service, teach, ticket

TWO = (EndpointSpec("http://us", slots=8, region="us"), EndpointSpec("http://eu", slots=8, region="eu"))
REGIONS = (RegionSpec("us", tokens_per_minute=600.0), RegionSpec("eu", tokens_per_minute=600.0))


def test_work_goes_where_the_most_quota_is_left() -> None:
    made = balancer(service(fleet=TWO), regions=REGIONS)
    s = made.services["s"]
    names = [lease(made.offer(request(s, tokens=100), 0.0)).endpoint.name for _ in range(6)]
    assert sorted(names) == ["http://eu"] * 3 + ["http://us"] * 3


def test_without_quota_it_waits_for_the_refill() -> None:
    made = balancer(service(fleet=TWO[:1], queue=QueueSpec(timeout=60.0)), regions=REGIONS)
    s = made.services["s"]
    lease(made.offer(request(s, tokens=600), 0.0))
    waiting = ticket(made.offer(request(s, tokens=100), 0.0))
    assert made.tick(9.9) == []
    (started,) = made.tick(10.0)
    assert lease(started).request is waiting.request


def test_a_refill_that_comes_too_late_is_refused_with_its_time() -> None:
    made = balancer(service(fleet=TWO[:1], queue=QueueSpec(timeout=5.0)), regions=REGIONS)
    s = made.services["s"]
    lease(made.offer(request(s, tokens=600), 0.0))
    spent = refusal(made.offer(request(s, tokens=100), 0.0))
    assert (spent.reason, spent.status) == (Reason.QUOTA, 429)
    assert spent.retry_after == pytest.approx(10.0)
    never = refusal(made.offer(request(s, tokens=601), 0.0))
    assert never.retry_after is None
    assert "more tokens" in never.message


def test_what_was_not_used_is_given_back_and_a_failed_connect_costs_nothing() -> None:
    made = balancer(service(fleet=TWO[:1]), regions=REGIONS)
    s = made.services["s"]
    made.finish(lease(made.offer(request(s, tokens=600), 0.0)), OK, 0.0, tokens=100)
    assert made.regions["us"].left(0.0)[0] == pytest.approx(500.0)
    gone = lease(made.offer(request(s, tokens=500), 0.0))
    made.finish(gone, Outcome.SERVER_ERROR, 0.0, connect_failed=True)
    assert made.regions["us"].left(0.0)[0] == pytest.approx(500.0)


def test_tokens_that_nobody_declared_are_guessed_from_history() -> None:
    made = balancer(service(fleet=TWO[:1]), regions=REGIONS)
    s = made.services["s"]
    teach(made, "/", 1.0)
    for _ in range(20):
        s.estimator.bucket("/").observe_tokens(200)
    taken = lease(made.offer(request(s), 0.0))
    assert taken.reservation is not None
    assert taken.reservation.tokens == pytest.approx(200.0, rel=0.1)


def test_what_the_provider_says_is_heeded() -> None:
    made = balancer(service(fleet=TWO), regions=REGIONS)
    s = made.services["s"]
    us, _ = fleet(made)
    made.heed(us, remaining_tokens=0, reset=30.0, now=0.0)
    assert {lease(made.offer(request(s, tokens=50), 0.0)).endpoint.name for _ in range(5)} == {"http://eu"}
    made.heed(us, retry_after=5.0, now=0.0)
    assert "region out of quota" in made.snapshot(1.0)["services"]["s"]["versions"]["v"]["endpoints"][0]["why"]


def test_a_full_region_does_not_stop_work_in_the_other() -> None:
    made = balancer(service(fleet=(EndpointSpec("http://us", slots=1, region="us"), TWO[1])), regions=REGIONS)
    s = made.services["s"]
    names = [lease(made.offer(request(s, tokens=1), 0.0)).endpoint.name for _ in range(9)]
    assert names.count("http://us") == 1
