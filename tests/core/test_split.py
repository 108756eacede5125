"""Who gets which version by rule, and where work goes that finds its version full."""

from __future__ import annotations

from collections import Counter

import pytest

from unjam.core.balancer import Balancer
from unjam.core.model import Lease, Outcome, Reason, Refusal, Ticket
from unjam.core.service import Service
from unjam.core.spec import (
    HEAVY,
    BreakerSpec,
    EndpointSpec,
    LanesSpec,
    Maintenance,
    OverflowSpec,
    QueueSpec,
    RegionSpec,
    SessionSpec,
    SplitSpec,
    VersionSpec,
)
from unjam.core.split import applicable

from .made import OK, balancer, lease, refusal, request, service, teach, ticket, topology

PREMIUM = SplitSpec({"dear": 1.0}, headers={"X-Tier": "premium"})
HEAVIES = SplitSpec({"cheap": 1.0, "dear": 3.0}, lane=HEAVY)


def versions(slots: int = 1000, overflow: OverflowSpec | None = None) -> tuple[VersionSpec, ...]:
    return (
        VersionSpec("cheap", (EndpointSpec("http://c", slots=slots),), 9.0, overflow),
        VersionSpec("dear", (EndpointSpec("http://d", slots=slots),), 1.0),
    )


def asked(s: Service, path: str = "/", tenant: str = "", now: float = 0.0, **headers: str) -> object:
    made = request(s, path, now, tenant=tenant)
    made.splits = applicable(
        s.splits,
        lambda name: value.encode() if (value := headers.get(name.decode().replace("-", "_"))) else None,
        tenant,
    )
    return made


def test_a_callers_header_chooses_the_weights_and_others_keep_theirs() -> None:
    made = balancer(service(versions=versions(), split=(PREMIUM, HEAVIES)))
    s = made.services["s"]
    premium = Counter(lease(made.offer(asked(s, x_tier="premium"), 0.0)).version.name for _ in range(50))
    assert premium == {"dear": 50}
    others = Counter(lease(made.offer(asked(s, x_tier="basic"), 0.0)).version.name for _ in range(50))
    assert others == {"cheap": 45, "dear": 5}


def test_a_lane_has_weights_of_its_own_once_its_work_is_known_to_be_heavy() -> None:
    made = balancer(service(versions=versions(), split=(PREMIUM, HEAVIES), lanes=LanesSpec(share=1.0)))
    s = made.services["s"]
    teach(made, "/audit", 60.0)
    teach(made, "/hello", 0.05)
    heavy = Counter(lease(made.offer(asked(s, "/audit"), 0.0)).version.name for _ in range(40))
    assert heavy == {"cheap": 10, "dear": 30}
    fast = Counter(lease(made.offer(asked(s, "/hello"), 0.0)).version.name for _ in range(40))
    assert fast == {"cheap": 36, "dear": 4}


def test_a_tenant_has_its_own_and_the_first_rule_that_holds_counts() -> None:
    rules = (SplitSpec({"cheap": 1.0}, tenant="acme"), PREMIUM)
    made = balancer(service(versions=versions(), split=rules))
    s = made.services["s"]
    both = Counter(lease(made.offer(asked(s, tenant="acme", x_tier="premium"), 0.0)).version.name for _ in range(20))
    assert both == {"cheap": 20}


def test_a_sticky_caller_stays_on_its_version_within_a_rule() -> None:
    made = balancer(
        service(versions=versions(), split=(SplitSpec({"cheap": 1, "dear": 1}, tenant="t"),), sticky="x-user")
    )
    s = made.services["s"]
    for user in range(50):
        seen = set()
        for _ in range(5):
            each = asked(s, tenant="t")
            each.sticky = f"user {user}"  # type: ignore[attr-defined]
            seen.add(lease(made.offer(each, 0.0)).version.name)  # type: ignore[arg-type]
        assert len(seen) == 1


def test_where_no_version_of_the_rule_is_left_the_weights_of_all_count() -> None:
    made = balancer(service(versions=versions(), split=(PREMIUM,), breaker=BreakerSpec(open=60.0)))
    s = made.services["s"]
    made.trip("s", "dear", 0.0)
    assert lease(made.offer(asked(s, x_tier="premium"), 0.0)).version.name == "cheap"
    made.reset("s", "dear", 1.0)
    assert lease(made.offer(asked(s, x_tier="premium"), 1.0)).version.name == "dear"


def test_a_rule_sends_to_a_version_that_has_no_weight_otherwise() -> None:
    cheap, dear = versions()
    only = (cheap, VersionSpec("dear", dear.endpoints, 0.0))
    made = balancer(service(versions=only, split=(PREMIUM,)))
    s = made.services["s"]
    assert lease(made.offer(asked(s, x_tier="premium"), 0.0)).version.name == "dear"
    assert {lease(made.offer(asked(s), 0.0)).version.name for _ in range(20)} == {"cheap"}


def test_a_reload_changes_the_rules() -> None:
    made = balancer(service(versions=versions()))
    s = made.services["s"]
    made.apply(topology(service(versions=versions(), split=(PREMIUM,))), 1.0)
    assert lease(made.offer(asked(s, x_tier="premium"), 1.0)).version.name == "dear"
    made.apply(topology(service(versions=versions())), 2.0)
    assert s.splits == ()


def stranded(fallback: tuple[Maintenance, ...] = ()) -> tuple[Balancer, Service, Lease, Ticket]:
    """A rule's version is full, one more waits for it; then a reload takes both the rule and the version away."""
    cheap, dear = versions(slots=1)
    rule = SplitSpec({"dear": 1.0}, tenant="t")
    rest = {"queue": QueueSpec(timeout=5.0), "fallback": fallback}
    made = balancer(service(versions=(cheap, dear), split=(rule,), **rest))
    s = made.services["s"]
    running = lease(made.offer(asked(s, tenant="t"), 0.0))
    waiting = ticket(made.offer(asked(s, tenant="t"), 0.0))
    made.apply(topology(service(versions=(cheap,), **rest)), 1.0)
    return made, s, running, waiting


def test_what_waits_under_a_rule_goes_elsewhere_when_a_reload_removes_the_rule_and_its_version() -> None:
    made, s, running, waiting = stranded()
    (started,) = made.tick(1.1)
    assert isinstance(started, Lease)
    assert (started.version.name, started.request) == ("cheap", waiting.request)
    assert made.finish(running, OK, 2.0) == ()
    assert (s.waiting.count, s.parting, waiting.live) == (0, [], False)


def test_another_try_under_a_rule_that_a_reload_removed_goes_to_what_is_left() -> None:
    made, s, running, _ = stranded()
    made.tick(1.1)
    made.finish(running, Outcome.SERVER_ERROR, 2.0, connect_failed=True)
    running.request.tried = (running.endpoint,)
    again = made.offer(running.request, 2.0)
    assert ticket(again).version.name == "cheap"
    (expired,) = made.tick(7.0)
    assert refusal(expired).request is running.request
    assert s.waiting.count == 0


def test_what_got_into_the_queue_of_a_version_that_is_gone_ends_all_the_same() -> None:
    """Whatever brought it there: it is moved on, or refused when its time is up."""
    for at, outcome in ((1.2, Lease), (9.0, Refusal)):
        made, s, _, waiting = stranded()
        (gone,) = s.parting
        gone.evict = False
        (decided,) = made.tick(at)
        assert isinstance(decided, outcome)
        assert decided.request is waiting.request
        assert (s.waiting.count, s.parting) == (0, [])


def test_a_rule_that_a_reload_leaves_as_it_was_still_holds_for_what_waits() -> None:
    cheap, dear = versions(slots=1)
    rule = SplitSpec({"dear": 1.0}, tenant="t")
    made = balancer(service(versions=(cheap, dear), split=(rule,)))
    s = made.services["s"]
    running = lease(made.offer(asked(s, tenant="t"), 0.0))
    waiting = ticket(made.offer(asked(s, tenant="t"), 0.0))
    made.apply(topology(service(versions=(cheap, dear), split=(PREMIUM, SplitSpec({"dear": 1.0}, tenant="t")))), 1.0)
    made.trip("s", "dear", 1.0)
    (moved,) = made.tick(1.1)
    assert isinstance(moved, Lease)
    assert (moved.version.name, moved.request) == ("cheap", waiting.request)
    made.reset("s", "dear", 2.0)
    made.finish(running, OK, 2.0)
    made.finish(moved, Outcome.SERVER_ERROR, 2.0, connect_failed=True)
    waiting.request.tried = (moved.endpoint,)
    assert lease(made.offer(waiting.request, 2.0)).version.name == "dear"


def full(after: float, slots: int = 2) -> tuple[object, Service, list[Lease]]:
    cheap, dear = versions(slots, OverflowSpec("dear", after))
    made = balancer(service(versions=(cheap, VersionSpec("dear", dear.endpoints, 0.0)), queue=QueueSpec(timeout=60.0)))
    s = made.services["s"]
    return made, s, [lease(made.offer(request(s), 0.0)) for _ in range(slots)]


def test_what_has_waited_for_as_long_as_stated_goes_to_the_other_as_far_as_that_has_slots() -> None:
    made, s, running = full(2.0)
    assert {each.version.name for each in running} == {"cheap"}
    waiting = [ticket(made.offer(request(s, now=0.5), 0.5)) for _ in range(3)]  # type: ignore[attr-defined]
    assert made.tick(2.4) == []  # type: ignore[attr-defined]
    spilled = made.tick(2.5)  # type: ignore[attr-defined]
    assert [(each.version.name, each.request) for each in spilled] == [("dear", t.request) for t in waiting[:2]]
    assert [t.live for t in waiting] == [False, False, True]
    assert (s.versions[0].overflowed, s.waiting.count) == (2, 1)
    (started,) = made.finish(spilled[0], OK, 3.0) or made.tick(3.0)  # type: ignore[attr-defined]
    assert (started.version.name, started.request) == ("dear", waiting[2].request)
    assert s.waiting.count == 0


def test_it_stays_where_it_is_cheap_when_a_slot_is_free_in_time() -> None:
    made, s, running = full(2.0)
    waiting = ticket(made.offer(request(s, now=0.5), 0.5))  # type: ignore[attr-defined]
    (started,) = made.finish(running[0], OK, 2.0)  # type: ignore[attr-defined]
    assert (started.version.name, started.request) == ("cheap", waiting.request)
    assert s.versions[0].overflowed == 0


def test_without_a_wait_it_goes_at_once() -> None:
    made, s, _ = full(0.0)
    assert lease(made.offer(request(s), 0.0)).version.name == "dear"  # type: ignore[attr-defined]
    assert s.versions[0].overflowed == 1


def test_nothing_spills_into_a_version_that_is_out() -> None:
    made, s, _ = full(0.0)
    made.trip("s", "dear", 0.0)  # type: ignore[attr-defined]
    waiting = ticket(made.offer(request(s), 0.0))  # type: ignore[attr-defined]
    assert made.tick(1.0) == []  # type: ignore[attr-defined]
    made.reset("s", "dear", 1.0)  # type: ignore[attr-defined]
    (spilled,) = made.tick(1.1)  # type: ignore[attr-defined]
    assert spilled.request is waiting.request


def test_what_cannot_spill_goes_on_to_wait_and_is_counted_once() -> None:
    made, s, running = full(1.0, slots=1)
    tickets = [ticket(made.offer(request(s), 0.0)) for _ in range(4)]  # type: ignore[attr-defined]
    spilled = made.tick(1.0)  # type: ignore[attr-defined]
    assert len(spilled) == 1
    for each in (*running, *spilled):
        made.finish(each, Outcome.OK, 2.0)  # type: ignore[attr-defined]
    made.tick(2.0)  # type: ignore[attr-defined]
    assert s.offered == s.dispatched + s.waiting.count
    assert sum(t.live for t in tickets) == s.waiting.count


def test_a_message_at_the_end_of_the_chain_does_not_stand_in_the_way_of_the_rule() -> None:
    made = balancer(service(versions=versions(), split=(PREMIUM,), fallback=(Maintenance("later"),)))
    s = made.services["s"]
    assert lease(made.offer(asked(s, x_tier="premium"), 0.0)).version.name == "dear"


@pytest.mark.parametrize("after", [0.0, 2.0])
def test_work_pinned_to_a_version_waits_for_it_and_does_not_spill(after: float) -> None:
    made, s, running = full(after)
    pinned = request(s, now=0.5)
    pinned.pin = "cheap"
    waiting = ticket(made.offer_pinned(pinned, 0.5))  # type: ignore[attr-defined]
    other = made.offer(request(s, now=0.5), 0.5)  # type: ignore[attr-defined]
    spilled = made.tick(3.0)  # type: ignore[attr-defined]
    assert [each.version.name for each in spilled or [other]] == ["dear"]
    assert waiting.live
    (started,) = made.finish(running[0], OK, 4.0)  # type: ignore[attr-defined]
    assert (started.version.name, started.request) == ("cheap", pinned)


def test_a_pin_to_a_version_that_is_gone_keeps_nothing_from_spilling() -> None:
    made, s, _ = full(0.0)
    pinned = request(s)
    pinned.pin = "older"
    assert lease(made.offer_pinned(pinned, 0.0)).version.name == "dear"  # type: ignore[attr-defined]


def spilling_into_a_quota(own: str | None = None) -> tuple[Balancer, Service]:
    """The dear version may start one request a minute; the cheap one has a single slot, in the region `own`."""
    cheap = VersionSpec("cheap", (EndpointSpec("http://c", slots=1, region=own),), 1.0, OverflowSpec("dear", 0.0))
    dear = VersionSpec("dear", (EndpointSpec("http://d", slots=5, region="small"),), 0.0)
    regions = [RegionSpec(name, requests_per_minute=1.0, burst=60.0) for name in ("small", "own")]
    made = balancer(service(versions=(cheap, dear), queue=QueueSpec(timeout=10.0)), regions=regions)
    return made, made.services["s"]


def test_what_the_others_quota_has_no_room_for_waits_for_its_own_version() -> None:
    made, s = spilling_into_a_quota()
    first = lease(made.offer(request(s), 0.0))
    assert lease(made.offer(request(s), 0.0)).version.name == "dear"
    waiting = ticket(made.offer(request(s), 0.0))
    (started,) = made.finish(first, OK, 1.0)
    assert (started.version.name, started.request) == ("cheap", waiting.request)


def test_what_its_own_quota_has_no_room_for_in_time_is_still_refused() -> None:
    made, s = spilling_into_a_quota("own")
    made.finish(lease(made.offer(request(s), 0.0)), OK, 0.0)
    made.trip("s", "dear", 0.0)
    assert refusal(made.offer(request(s), 0.0)).reason is Reason.QUOTA
    made.reset("s", "dear", 0.0)
    assert lease(made.offer(request(s), 0.0)).version.name == "dear"
    assert refusal(made.offer(request(s), 0.0)).reason is Reason.QUOTA


def test_what_a_rule_keeps_from_a_version_does_not_spill_over_into_it() -> None:
    free = SplitSpec({"cheap": 1.0}, headers={"X-Tier": "free"})
    for after in (0.0, 2.0):
        made = balancer(service(versions=versions(1, OverflowSpec("dear", after)), split=(free,)))
        s = made.services["s"]
        running = lease(made.offer(asked(s, x_tier="free"), 0.0))
        waits = ticket(made.offer(asked(s, x_tier="free"), 0.0))
        assert not made.tick(after + 0.1)
        assert [each.request for each in made.finish(running, OK, after + 0.2)] == [waits.request]
        # Others of the same version do.
        other = request(s)
        other.tried = tuple(s.versions[1].endpoints.values())
        decision = made.offer(other, after + 0.3)
        other.tried = ()
        spilt = decision if isinstance(decision, Lease) else next(iter(made.tick(2 * after + 0.4)))
        assert isinstance(spilt, Lease)
        assert spilt.version.name == "dear"


def test_sessions_stay_where_only_a_rule_sends_them() -> None:
    three = tuple(EndpointSpec(f"http://d{n}", slots=100) for n in range(3))
    dear = (VersionSpec("cheap", (EndpointSpec("http://c"),), 1.0), VersionSpec("dear", three, 0.0))
    made = balancer(service(versions=dear, split=(PREMIUM,), session=SessionSpec(header="x-session-id")))
    s = made.services["s"]

    def meets(session: str, **headers: str) -> str:
        asking = asked(s, **headers)
        asking.session = session  # type: ignore[attr-defined]
        return lease(made.offer(asking, 0.0)).endpoint.url

    # They all run on, so that bounded load would send some of them elsewhere.
    homes = {name: meets(name, x_tier="premium") for name in map(str, range(20))}
    for _ in range(3):
        assert {name: meets(name, x_tier="premium") for name in homes} == homes
    # One that the rule is no longer for has no place there.
    assert meets("0") == "http://c"
