"""What an operator reads: JSON, complete, and with a word on why."""

from __future__ import annotations

import json

from unjam.core.model import Outcome
from unjam.core.spec import BreakerSpec, EjectionSpec, Maintenance, RegionSpec, SessionSpec, WarmUpSpec

from .made import OK, balancer, endpoints, fleet, lease, request, service, teach, ticket


def test_it_is_json_and_says_what_runs_and_waits() -> None:
    spec = service(
        fleet=endpoints(2, slots=1, region="r"), session=SessionSpec(header="x"), fallback=("t", Maintenance("m"))
    )
    made = balancer(spec, service("t"), regions=[RegionSpec("r", tokens_per_minute=60.0)])
    s = made.services["s"]
    for _ in range(2):
        lease(made.offer(request(s, session="k", tenant="acme"), 0.0))
    ticket(made.offer(request(s), 0.0))
    shown = json.loads(json.dumps(made.snapshot(3.0), allow_nan=False))
    assert shown["leases"] == 2
    seen = shown["services"]["s"]
    assert (seen["offered"], seen["dispatched"], seen["queue"]["fast"], seen["running"]["fast"]) == (3, 2, 1, 2)
    assert seen["oldest"][0]["age"] == 3.0
    assert seen["oldest"][0]["tenant"] == "acme"
    version = seen["versions"]["v"]
    assert (version["weight"], version["breaker"]["state"], version["slots"]) == (1.0, "closed", 2)
    assert version["endpoints"][0]["why"] == ["full"]
    assert shown["regions"]["r"]["headroom"] == 1.0


def test_every_reason_has_its_words() -> None:
    made = balancer(
        service(
            fleet=endpoints(8, slots=8),
            breaker=BreakerSpec(enabled=False),
            ejection=EjectionSpec(failures=1, panic=0.0),
            warm_up=WarmUpSpec(window=60.0),
        )
    )
    s = made.services["s"]
    teach(made, "/audit", 600.0)
    drained, ill, ejected, warming, loaded, *_ = fleet(made)
    made.set_health(warming, False, 0.0)
    made.set_health(warming, True, 0.0)
    made.drain(drained, True, 0.0)
    made.set_health(ill, False, 0.0)
    asked = request(s)
    asked.tried = tuple(e for e in fleet(made) if e is not ejected)
    made.finish(lease(made.offer(asked, 0.0)), Outcome.SERVER_ERROR, 0.0)
    asked = request(s, "/audit")
    asked.tried = tuple(e for e in fleet(made) if e is not loaded)
    for _ in range(6):
        lease(made.offer(asked, 0.0))

    def words(at: int) -> list[str]:
        found: list[str] = made.snapshot(4.0)["services"]["s"]["versions"]["v"]["endpoints"][at]["why"]
        return found

    assert words(0) == ["draining"]
    assert words(1) == ["unhealthy"]
    assert words(2) == ["ejected for 6 s more", "failed lately"]
    assert words(3) == ["warming up"]
    assert words(4) == ["no more heavy work"]
    assert words(5) == ["open"]
    made.trip("s", "v", 4.0)
    assert words(5) == ["breaker open"]
    made.reset("s", "v", 4.0)
    made.set_weight("s", "v", 0.0, 4.0)
    assert words(5) == ["version has no weight"]


def test_counters_balance() -> None:
    made = balancer(service(fleet=endpoints(1, slots=1)))
    s = made.services["s"]
    first = lease(made.offer(request(s), 0.0))
    made.cancel(ticket(made.offer(request(s), 0.0)), 0.0)
    made.finish(first, OK, 1.0)
    made.trip("s", "v", 1.0)
    made.offer(request(s), 1.0)
    seen = made.snapshot(1.0)["services"]["s"]
    assert seen["offered"] == seen["dispatched"] + seen["withdrawn"] + sum(seen["refused"].values()) == 3
    assert seen["ended"] == {"ok": 1}
