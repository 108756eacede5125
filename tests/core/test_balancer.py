"""The verbs of the pipeline, one promise each; test_invariants.py has what must hold in every order of events."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from unjam.core.balancer import LeaseEnded
from unjam.core.model import Outcome, Reason
from unjam.core.spec import (
    BreakerSpec,
    EjectionSpec,
    EndpointSpec,
    LanesSpec,
    Maintenance,
    QueueSpec,
    ServiceSpec,
    SessionSpec,
    VersionSpec,
)

from .made import OK, balancer, endpoints, fleet, lease, refusal, request, service, teach, ticket, topology


def test_a_slot_is_claimed_at_offer_and_given_back_at_finish() -> None:
    made = balancer(service(fleet=endpoints(1, slots=1)))
    s = made.services["s"]
    first = lease(made.offer(request(s), 0.0))
    assert (first.endpoint.inflight, made.leases) == (1, 1)
    assert made.finish(first, OK, 1.0) == ()
    assert (first.endpoint.inflight, made.leases, first.endpoint.served) == (0, 0, 1)


def test_a_lease_ends_once() -> None:
    made = balancer(service())
    first = lease(made.offer(request(made.services["s"]), 0.0))
    made.finish(first, OK, 1.0)
    with pytest.raises(LeaseEnded, match="ended twice"):
        made.finish(first, Outcome.CANCELLED, 2.0)
    assert first.endpoint.inflight == 0


def test_what_does_not_fit_waits_and_is_dispatched_by_the_finish_that_makes_room() -> None:
    made = balancer(service(fleet=endpoints(1, slots=1)))
    s = made.services["s"]
    running = lease(made.offer(request(s), 0.0))
    waiting = ticket(made.offer(request(s, context="mine"), 0.0))
    (started,) = made.finish(running, OK, 1.0)
    assert (started.request.context, waiting.live, started.started) == ("mine", False, 1.0)
    assert s.waiting.count == 0


def test_a_cancelled_ticket_is_never_dispatched() -> None:
    made = balancer(service(fleet=endpoints(1, slots=1)))
    s = made.services["s"]
    running = lease(made.offer(request(s), 0.0))
    gone = ticket(made.offer(request(s), 0.0))
    stays = ticket(made.offer(request(s), 0.0))
    made.cancel(gone, 0.5)
    made.cancel(gone, 0.6)
    (started,) = made.finish(running, OK, 1.0)
    assert started.request is stays.request
    assert (s.waiting.count, s.withdrawn) == (0, 1)


def test_the_queue_is_bounded_in_length_and_time() -> None:
    made = balancer(service(fleet=endpoints(1, slots=1), queue=QueueSpec(max=1, timeout=5.0)))
    s = made.services["s"]
    made.offer(request(s), 0.0)
    waiting = ticket(made.offer(request(s), 0.0))
    full = refusal(made.offer(request(s), 0.0))
    assert (full.reason, full.status) == (Reason.QUEUE_FULL, 503)
    assert full.retry_after is not None
    assert made.tick(4.9) == []
    (late,) = made.tick(5.0)
    assert refusal(late).reason is Reason.QUEUE_TIMEOUT
    assert late.request is waiting.request


def test_a_deadline_is_kept_in_the_queue_and_before_it() -> None:
    made = balancer(service(fleet=endpoints(1, slots=1)))
    s = made.services["s"]
    made.offer(request(s), 0.0)
    ticket(made.offer(request(s, deadline=2.0), 0.0))
    assert made.tick(1.9) == []
    (late,) = made.tick(2.0)
    assert (refusal(late).reason, late.status) == (Reason.DEADLINE, 504)
    assert refusal(made.offer(request(s, deadline=2.0), 2.0)).reason is Reason.DEADLINE


def test_a_deadline_that_the_queue_cannot_meet_is_refused_at_once() -> None:
    made = balancer(service(fleet=endpoints(1, slots=1)))
    s = made.services["s"]
    running = lease(made.offer(request(s), 0.0))
    for _ in range(60):
        ticket(made.offer(request(s), 0.0))
    for second in range(1, 21):
        (running,) = made.finish(running, OK, float(second))
    # Forty wait and one is done per second.
    hopeless = refusal(made.offer(request(s, now=20.0, deadline=30.0), 20.0))
    assert hopeless.reason is Reason.DEADLINE
    assert "about 41 s" in hopeless.message
    ticket(made.offer(request(s, now=20.0, deadline=75.0), 20.0))


def test_heavy_work_leaves_slots_to_fast_work() -> None:
    made = balancer(service(fleet=endpoints(2, slots=4)))
    s = made.services["s"]
    teach(made, "/audit", 600.0)
    teach(made, "/hello", 0.05)
    for _ in range(6):
        assert lease(made.offer(request(s, "/audit"), 0.0)).heavy
    waiting = ticket(made.offer(request(s, "/audit"), 0.0))
    fast = [lease(made.offer(request(s, "/hello"), 0.0)) for _ in range(2)]
    assert not any(each.heavy for each in fast)
    made.finish(fast[0], OK, 0.1)
    assert waiting.live


def test_where_slots_are_many_the_share_is_kept_on_each_endpoint() -> None:
    made = balancer(service(fleet=endpoints(2, slots=8), lanes=LanesSpec(share=0.5)))
    s = made.services["s"]
    teach(made, "/audit", 600.0)
    for _ in range(8):
        lease(made.offer(request(s, "/audit"), 0.0))
    assert [endpoint.heavy for endpoint in fleet(made)] == [4, 4]
    ticket(made.offer(request(s, "/audit"), 0.0))


def test_fast_work_goes_before_heavy_and_short_before_long() -> None:
    made = balancer(service(fleet=endpoints(1, slots=1)))
    s = made.services["s"]
    for path, seconds in (("/hello", 0.05), ("/chat", 2.0), ("/audit", 600.0)):
        teach(made, path, seconds)
    running = lease(made.offer(request(s, "/chat"), 0.0))
    for i, path in enumerate(("/audit", "/chat", "/hello")):
        ticket(made.offer(request(s, path, now=0.01 * i), 0.01 * i))
    order = []
    for second in (1.0, 2.0, 3.0):
        (running,) = made.finish(running, OK, second)
        order.append(running.request.bucket)
    assert order == ["/hello", "/chat", "/audit"]


def test_waiting_makes_up_for_size_so_that_nobody_is_overtaken_for_ever() -> None:
    made = balancer(service(fleet=endpoints(1, slots=1), queue=QueueSpec(timeout=1000.0)))
    s = made.services["s"]
    teach(made, "/chat", 2.0)
    teach(made, "/hello", 0.05)
    running = lease(made.offer(request(s, "/hello"), 0.0))
    chat = ticket(made.offer(request(s, "/chat"), 0.0))
    for i in range(1000):
        ticket(made.offer(request(s, "/hello", now=i * 0.1), i * 0.1))
        (running,) = made.finish(running, OK, i * 0.1 + 0.09)
        if running.request is chat.request:
            break
    else:
        pytest.fail("the chat starved")
    assert 10.0 < i * 0.1 < 30.0


def test_heavy_work_that_has_waited_half_its_time_gets_every_other_slot() -> None:
    made = balancer(service(fleet=endpoints(1, slots=4), queue=QueueSpec(timeout=20.0)))
    s = made.services["s"]
    teach(made, "/audit", 600.0)
    teach(made, "/hello", 0.05)
    running = [lease(made.offer(request(s, "/hello"), 0.0)) for _ in range(4)]
    heavy = [ticket(made.offer(request(s, "/audit"), 0.0)) for _ in range(2)]
    for _ in range(8):
        ticket(made.offer(request(s, "/hello"), 0.0))
    order = []
    for i in range(4):
        (started,) = made.finish(running[i], OK, 11.0)
        order.append(started.request.bucket)
    assert order == ["/audit", "/hello", "/audit", "/hello"]
    assert not any(each.live for each in heavy)


def test_a_fast_request_that_runs_on_is_promoted_and_counts_as_heavy() -> None:
    made = balancer(service(fleet=endpoints(1, slots=4), lanes=LanesSpec(up_to=5.0)))
    s = made.services["s"]
    long = [lease(made.offer(request(s, "/new"), 0.0)) for _ in range(3)]
    made.tick(4.9)
    assert not any(each.heavy for each in long)
    made.tick(5.0)
    assert all(each.heavy and each.promoted for each in long)
    assert (fleet(made)[0].heavy, s.versions[0].heavy, s.promoted) == (3, 3, 3)
    teach(made, "/audit", 600.0)
    ticket(made.offer(request(s, "/audit"), 5.0))
    for each in long:
        made.finish(each, OK, 6.0)
    assert (fleet(made)[0].heavy, s.versions[0].burden) == (1, 64)


def test_a_mixed_path_counts_by_its_risk() -> None:
    made = balancer(service(fleet=endpoints(6, slots=4)))
    s = made.services["s"]
    bucket = s.estimator.bucket("/mixed")
    for i in range(200):
        bucket.observe(600.0 if i % 4 == 0 else 1.0)
    assert bucket.heavy
    assert bucket.risk == pytest.approx(16, abs=2)
    taken = 0
    while len(s.versions[0].queue) == 0:
        made.offer(request(s, "/mixed"), 0.0)
        taken += 1
    # Not 18 as if all were heavy, and not 24 as if none were.
    assert taken - 1 == 20


def test_one_tenants_burst_does_not_hold_up_another() -> None:
    made = balancer(service(fleet=endpoints(1, slots=1)))
    s = made.services["s"]
    teach(made, "/", 1.0)
    running = lease(made.offer(request(s, tenant="a"), 0.0))
    for _ in range(100):
        ticket(made.offer(request(s, tenant="a"), 0.0))
    other = ticket(made.offer(request(s, now=0.5, tenant="b"), 0.5))
    (running,) = made.finish(running, OK, 1.0)
    (second,) = made.finish(running, OK, 2.0)
    assert other.request in (running.request, second.request)


def test_a_tenant_cannot_fill_the_queue_while_others_wait() -> None:
    made = balancer(service(fleet=endpoints(1, slots=1), queue=QueueSpec(max=20, tenant_share=0.5)))
    s = made.services["s"]
    made.offer(request(s, tenant="a"), 0.0)
    for _ in range(18):
        ticket(made.offer(request(s, tenant="a"), 0.0))
    # Alone it may fill all but the last tenth.
    assert refusal(made.offer(request(s, tenant="a"), 0.0)).status == 429
    ticket(made.offer(request(s, tenant="b"), 0.0))
    assert refusal(made.offer(request(s, tenant="a"), 0.0)).reason is Reason.TENANT_SHARE
    ticket(made.offer(request(s, tenant="b"), 0.0))
    assert refusal(made.offer(request(s, tenant="c"), 0.0)).reason is Reason.QUEUE_FULL


def test_endpoints_tried_are_not_used_again() -> None:
    made = balancer(service(fleet=endpoints(3, slots=2)))
    s = made.services["s"]
    a, b, c = fleet(made)
    again = request(s)
    again.tried = (a, b)
    assert lease(made.offer(again, 0.0)).endpoint is c
    assert lease(made.offer(again, 0.0)).endpoint is c
    waiting = ticket(made.offer(again, 0.0))
    made.offer(request(s), 0.0)
    held = [each for each in s.young if each.endpoint is not c]
    made.finish(held[0], OK, 1.0)
    assert waiting.live
    (started,) = made.finish(next(each for each in s.young if each.endpoint is c), OK, 1.0)
    assert started.endpoint is c
    again.tried = (a, b, c)
    assert refusal(made.offer(again, 1.0)).reason is Reason.NO_ENDPOINT


def test_a_version_that_fails_is_taken_out_and_callers_fall_back() -> None:
    specs = (
        service("s", fallback=("basic", Maintenance("Back soon.", status=503, retry_after=30.0)), fleet=endpoints(8)),
        service("basic", fleet=endpoints(1)),
    )
    made = balancer(*specs)
    s = made.services["s"]
    for i in range(5):
        made.finish(lease(made.offer(request(s), i)), Outcome.SERVER_ERROR, i + 0.5)
    assert s.versions[0].breaker.state == "open"
    fallen = lease(made.offer(request(s), 6.0))
    assert (fallen.fallback, fallen.service.name) == (True, "basic")
    made.trip("basic", "v", 6.0)
    over = refusal(made.offer(request(s), 6.0))
    assert (over.reason, over.message, over.retry_after) == (Reason.MAINTENANCE, "Back soon.", 30.0)
    made.reset("s", "v", 7.0)
    assert not lease(made.offer(request(s), 7.0)).fallback


def test_without_a_fallback_an_open_breaker_refuses_and_says_until_when() -> None:
    made = balancer(service(breaker=BreakerSpec(open=60.0)))
    made.trip("s", "v", 10.0)
    down = refusal(made.offer(request(made.services["s"]), 20.0))
    assert (down.reason, down.status) == (Reason.NO_ENDPOINT, 503)
    assert down.retry_after == pytest.approx(50.0)


def test_what_waits_for_a_version_that_trips_moves_on() -> None:
    versions = (VersionSpec("a", endpoints(1, slots=1), 100.0), VersionSpec("b", endpoints(1, slots=1), 0.0))
    made = balancer(service(versions=versions))
    s = made.services["s"]
    lease(made.offer(request(s), 0.0))
    waiting = ticket(made.offer(request(s), 0.0))
    made.set_weight("s", "b", 1.0, 0.0)
    made.trip("s", "a", 0.1)
    (moved,) = made.tick(0.2)
    assert (lease(moved).version.name, moved.request) == ("b", waiting.request)
    assert s.waiting.count == 0


def test_weights_are_met_exactly_and_weight_zero_gets_nothing() -> None:
    versions = tuple(VersionSpec(name, endpoints(1), weight) for name, weight in (("a", 90), ("b", 10), ("c", 0)))
    made = balancer(service(versions=versions))
    s = made.services["s"]
    counts = {"a": 0, "b": 0, "c": 0}
    for i in range(1000):
        counts[lease(made.offer(request(s), i)).version.name] += 1
    assert counts == {"a": 900, "b": 100, "c": 0}


def test_a_caller_sticks_to_its_version() -> None:
    versions = (VersionSpec("a", endpoints(1), 50), VersionSpec("b", endpoints(1), 50))
    made = balancer(service(versions=versions, sticky="tenant"))
    s = made.services["s"]
    for tenant in ("x", "y", "z", "w"):
        assert len({lease(made.offer(request(s, tenant=tenant), 0.0)).version.name for _ in range(10)}) == 1


def sessions(**rest: object) -> object:
    return service(fleet=endpoints(3, slots=2), session=SessionSpec(header="x-session-id", ttl=100.0), **rest)


def test_a_session_meets_the_same_endpoint() -> None:
    made = balancer(sessions())  # type: ignore[arg-type]
    s = made.services["s"]
    home = lease(made.offer(request(s, session="k"), 0.0))
    for i in range(20):
        others = [lease(made.offer(request(s, session=f"o{i}"), i))]
        made.finish(others[0], OK, i)
    made.finish(home, OK, 20.0)
    for i in range(5):
        again = lease(made.offer(request(s, session="k"), 21.0 + i))
        assert again.endpoint is home.endpoint
        made.finish(again, OK, 21.5 + i)


def test_a_session_is_a_guest_elsewhere_while_its_home_is_full() -> None:
    made = balancer(sessions())  # type: ignore[arg-type]
    s = made.services["s"]
    home = lease(made.offer(request(s, session="k"), 0.0))
    second = lease(made.offer(request(s, session="k"), 0.0))
    assert second.endpoint is home.endpoint
    guest = lease(made.offer(request(s, session="k"), 0.0))
    assert guest.endpoint is not home.endpoint
    made.finish(home, OK, 1.0)
    assert lease(made.offer(request(s, session="k"), 1.0)).endpoint is home.endpoint


@pytest.mark.parametrize("loss", ["drain", "unhealthy", "removed"])
def test_a_session_moves_when_its_home_goes(loss: str) -> None:
    made = balancer(sessions())  # type: ignore[arg-type]
    s = made.services["s"]
    home = lease(made.offer(request(s, session="k"), 0.0)).endpoint
    if loss == "drain":
        made.drain(home, True, 1.0)
    elif loss == "unhealthy":
        made.set_health(home, False, 1.0)
    else:
        left = tuple(e for e in endpoints(3, slots=2) if e.url != home.url)
        made.apply(topology(service(fleet=left, session=SessionSpec(header="x-session-id", ttl=100.0))), 1.0)
    moved = lease(made.offer(request(s, session="k"), 2.0)).endpoint
    assert moved is not home
    if loss == "unhealthy":
        made.set_health(home, True, 3.0)
    # It has settled there: it does not go back.
    assert lease(made.offer(request(s, session="k"), 4.0)).endpoint is moved


def test_the_clients_own_fault_is_nobodys() -> None:
    made = balancer(service(fleet=endpoints(1), ejection=EjectionSpec(failures=2)))
    s = made.services["s"]
    for i in range(200):
        outcome = Outcome.CLIENT_ERROR if i % 2 else Outcome.CANCELLED
        made.finish(lease(made.offer(request(s), i)), outcome, i + 0.5)
    (endpoint,) = fleet(made)
    assert (endpoint.failed, endpoint.ejected_until, s.versions[0].breaker.evidence) == (0, 0.0, 0.0)


def test_what_was_cut_off_counts_as_at_least_that_long() -> None:
    made = balancer(service(fleet=endpoints(1), breaker=BreakerSpec(enabled=False)))
    s = made.services["s"]
    teach(made, "/", 1.0)
    bucket = s.estimator.bucket("/")
    for i in range(40):
        made.finish(lease(made.offer(request(s), i * 100.0)), Outcome.TIMEOUT, i * 100.0 + 60.0)
    assert bucket.mean > 20.0
    before = bucket.count
    made.finish(lease(made.offer(request(s), 5000.0)), Outcome.TRUNCATED, 5000.001)
    assert bucket.count == before


def test_work_ends_where_it_began_whatever_became_of_the_service() -> None:
    made = balancer(service("s"), service("t"))
    running = lease(made.offer(request(made.services["s"]), 0.0))
    made.apply(topology(service("t")), 1.0)
    assert made.leases == 1
    assert made.finish(running, OK, 2.0) == ()
    assert made.leases == 0


def test_the_retry_budget_is_asked_for() -> None:
    made = balancer(service())
    s = made.services["s"]
    granted = sum(made.may_retry(s, 0.0) for _ in range(100))
    assert 0 < granted < 100


def test_sessions_come_back_to_a_version_that_ramps_as_its_share_allows_and_move_once() -> None:
    fleet = (VersionSpec("a", endpoints(1, slots=9999)), VersionSpec("b", (EndpointSpec("http://b", slots=9999),)))
    spec = service(versions=fleet, session=SessionSpec(header="x-session-id"), breaker=BreakerSpec(open=10.0))
    made = balancer(spec)
    s = made.services["s"]

    def meets(name: str, now: float) -> str:
        return lease(made.offer(request(s, session=name), now)).version.name

    homes = {name: meets(name, 0.0) for name in map(str, range(4000))}
    before = [name for name, home in homes.items() if home == "b"]
    assert len(before) > 1900
    made.trip("s", "b", 1.0)
    made.tick(12.0)
    assert (s.versions[1].breaker.state, s.versions[1].share) == ("ramping", 0.01)
    # 1 % of those that it had come back by themselves; of the others it gets its share as of any sessions.
    met = {name: meets(name, 12.0) for name in before}
    assert 10 <= Counter(met.values())["b"] <= 60
    # Who moved stays, also when all is well again.
    made.reset("s", "b", 13.0)
    assert {name: meets(name, 13.0) for name in before} == met


def test_a_trip_by_hand_outlasts_an_outage() -> None:
    two = tuple(VersionSpec(name, (EndpointSpec(f"http://{name}"),)) for name in ("a", "b"))
    made = balancer(service(versions=two, breaker=BreakerSpec(open=60.0)))
    (endpoint,) = fleet(made, version=1)
    breaker = endpoint.pool.version.breaker
    made.set_health(endpoint, False, 1.0)
    made.set_health(endpoint, True, 2.0)
    assert breaker.state == "closed"
    made.set_health(endpoint, False, 3.0)
    made.trip("s", "b", 4.0)
    made.set_health(endpoint, True, 5.0)
    assert (breaker.state, breaker.why) == ("open", "by hand")
    assert {lease(made.offer(request(made.services["s"]), 6.0)).version.name for _ in range(4)} == {"a"}
    # And one more outage changes nothing.
    made.set_health(endpoint, False, 7.0)
    made.set_health(endpoint, True, 8.0)
    assert breaker.state == "open"
    made.tick(64.5)
    assert breaker.state == "ramping"


def full() -> tuple[ServiceSpec, tuple[VersionSpec, ...]]:
    versions = tuple(VersionSpec(name, (EndpointSpec(f"http://{name}", slots=1),)) for name in ("a", "b"))
    return service(versions=versions, breaker=BreakerSpec(open=60.0)), versions


def test_what_waits_for_a_tripped_version_moves_though_its_weight_was_changed_at_that_moment() -> None:
    made = balancer(full()[0])
    s = made.services["s"]
    running = [lease(made.offer(request(s), 0.0)) for _ in range(2)]
    waiting = [ticket(made.offer(request(s), 0.0)) for _ in range(2)]
    made.trip("s", "b", 1.0)
    made.set_weight("s", "b", 5.0, 1.0)
    made.tick(1.1)
    assert {each.version.name for each in waiting} == {"a"}
    for each in running:
        started = made.finish(each, OK, 2.0)
        assert [each.version.name for each in started] == ["a"] * (each.version.name == "a")


def test_what_waits_for_a_version_that_the_file_gives_nothing_any_more_moves() -> None:
    spec, (a, b) = full()
    made = balancer(spec)
    s = made.services["s"]
    running = [lease(made.offer(request(s), 0.0)) for _ in range(2)]
    waiting = [ticket(made.offer(request(s), 0.0)) for _ in range(2)]
    assert {each.version.name for each in (*running, *waiting)} == {"a", "b"}
    made.apply(topology(replace(spec, versions=(a, replace(b, weight=0.0)))), 1.0)
    made.tick(1.1)
    assert {each.version.name for each in waiting} == {"a"}


def test_asking_for_others_uses_up_nobodys_turn() -> None:
    both = tuple(VersionSpec(name, (EndpointSpec(f"http://{name}", slots=99),)) for name in ("a", "b"))
    made = balancer(service(fallback=("basic",)), service("basic", versions=both))
    s = made.services["s"]
    met = Counter[str]()
    for _ in range(20):
        again = request(s)
        again.tried = made.spared(again, s.versions[0], 1.0)
        met[lease(made.offer(again, 1.0)).version.name] += 1
    assert met == {"a": 10, "b": 10}


def test_nobody_is_spared_for_nobody() -> None:
    alone = balancer(service())
    s = alone.services["s"]
    assert not alone.spared(request(s), s.versions[0], 1.0)
    made = balancer(full()[0])
    s = made.services["s"]
    asked = request(s)
    assert set(made.spared(asked, s.versions[1], 1.0)) == set(s.versions[1].endpoints.values())
    assert asked.tried == ()
    asked.pin = "b"
    assert not made.spared(asked, s.versions[1], 1.0)
    asked.pin = None
    made.set_weight("s", "a", 0.0, 2.0)
    assert not made.spared(asked, s.versions[1], 2.0)
    made.set_weight("s", "a", 1.0, 2.0)
    made.trip("s", "a", 3.0)
    assert not made.spared(asked, s.versions[1], 3.0)
