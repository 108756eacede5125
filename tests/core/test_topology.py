"""Reloads: what stays keeps everything, what goes finishes, what is wrong changes nothing."""

from __future__ import annotations

import pytest

from unjam.core.model import Outcome, Reason
from unjam.core.spec import (
    EndpointSpec,
    LanesSpec,
    Maintenance,
    RegionSpec,
    ServiceSpec,
    SessionSpec,
    Topology,
    VersionSpec,
)

from .made import OK, balancer, endpoints, fleet, lease, refusal, request, service, ticket, topology


def test_endpoints_that_stay_keep_what_runs_and_what_is_known_of_them() -> None:
    made = balancer(service(fleet=endpoints(3, slots=4)))
    s = made.services["s"]
    before = fleet(made)
    running = [lease(made.offer(request(s), 0.0)) for _ in range(6)]
    made.set_health(before[0], False, 1.0)
    made.drain(before[1], True, 1.0)
    before[2].shell = shell = object()
    applied = made.apply(topology(service(fleet=endpoints(4, slots=4))), 2.0)
    assert [e.name for e in applied.added] == ["http://e3"]
    assert applied.removed == []
    assert made.services["s"] is s
    assert fleet(made)[:3] == before
    assert [e.inflight for e in fleet(made)] == [2, 2, 2, 0]
    assert (before[0].healthy, before[1].draining, before[2].shell) == (False, True, shell)
    for each in running:
        made.finish(each, OK, 3.0)
    assert [e.inflight for e in fleet(made)] == [0, 0, 0, 0]


def test_a_removed_endpoint_finishes_and_comes_back_as_itself() -> None:
    made = balancer(service(fleet=endpoints(2, slots=1)))
    s = made.services["s"]
    a = lease(made.offer(request(s), 0.0))
    applied = made.apply(topology(service(fleet=[e for e in endpoints(2, slots=1) if e.url != a.endpoint.url])), 1.0)
    assert applied.removed == [a.endpoint]
    assert lease(made.offer(request(s), 1.0)).endpoint is not a.endpoint
    ticket(made.offer(request(s), 1.0))
    made.apply(topology(service(fleet=endpoints(2, slots=1))), 2.0)
    assert a.endpoint in fleet(made)
    assert made.tick(2.1) == []
    (started,) = made.finish(a, OK, 3.0)
    assert started.endpoint is a.endpoint


def test_a_new_size_is_taken_over() -> None:
    made = balancer(service(fleet=[EndpointSpec("http://e", slots=1)]))
    s = made.services["s"]
    lease(made.offer(request(s), 0.0))
    waiting = ticket(made.offer(request(s), 0.0))
    made.apply(topology(service(fleet=[EndpointSpec("http://e", slots=3, cores=2)])), 1.0)
    (started,) = made.tick(1.1)
    assert lease(started).request is waiting.request
    assert fleet(made)[0].avail == 2.0


def test_what_waited_for_a_removed_version_moves_and_for_a_removed_service_is_refused() -> None:
    versions = (VersionSpec("a", endpoints(1, slots=1)), VersionSpec("b", (EndpointSpec("http://b", slots=1),), 0.0))
    made = balancer(service("s", versions=versions), service("t", fleet=endpoints(1, slots=1)))
    s, t = made.services["s"], made.services["t"]
    old = lease(made.offer(request(s), 0.0))
    lease(made.offer(request(t), 0.0))
    moves, refused = ticket(made.offer(request(s), 0.0)), ticket(made.offer(request(t), 0.0))
    b_only = (VersionSpec("b", (EndpointSpec("http://b", slots=1),), 1.0),)
    applied = made.apply(topology(service("s", versions=b_only)), 1.0)
    (no,) = applied.refused_tickets
    assert (no.request, no.reason) == (refused.request, Reason.NO_ENDPOINT)
    (started,) = made.tick(1.1)
    assert (lease(started).request, started.version.name) == (moves.request, "b")
    assert made.finish(old, OK, 2.0) == ()
    assert made.leases == 2


def test_a_weight_set_by_hand_stays_until_the_file_changes_it() -> None:
    def versions(b: float) -> ServiceSpec:
        return service(versions=(VersionSpec("a", endpoints(1), 1.0), VersionSpec("b", endpoints(1), b)))

    made = balancer(versions(1.0))
    made.set_weight("s", "b", 0.0, 0.0)
    made.apply(topology(versions(1.0)), 1.0)
    assert made.services["s"].versions[1].weight == 0.0
    made.apply(topology(versions(5.0)), 2.0)
    assert made.services["s"].versions[1].weight == 5.0


def test_breakers_history_and_sessions_survive() -> None:
    spec = service(session=SessionSpec(header="x"))
    made = balancer(spec)
    s = made.services["s"]
    home = lease(made.offer(request(s, session="k"), 0.0))
    made.finish(home, OK, 7.0)
    made.finish(lease(made.offer(request(s), 7.0)), Outcome.SERVER_ERROR, 8.0)
    evidence = s.versions[0].breaker.evidence
    made.apply(topology(service(session=SessionSpec(header="x", ttl=10.0), lanes=LanesSpec(up_to=3.0))), 8.0)
    assert s.versions[0].breaker.evidence == evidence > 0.0
    assert s.estimator.boundary == 3.0
    assert s.estimator.bucket("/").known
    assert lease(made.offer(request(s, session="k"), 9.0)).endpoint is home.endpoint


def test_endpoints_move_between_regions() -> None:
    regions = [RegionSpec("r", tokens_per_minute=60.0)]
    made = balancer(service(fleet=endpoints(2, slots=2)), regions=regions)
    running = [lease(made.offer(request(made.services["s"]), 0.0)) for _ in range(2)]
    moved = (EndpointSpec("http://e0", slots=2, region="r"), EndpointSpec("http://e1", slots=2))
    made.apply(topology(service(fleet=moved), regions=regions), 1.0)
    assert fleet(made)[0].region is made.regions["r"]
    assert len(made.services["s"].versions[0].pools) == 2
    for each in running:
        made.finish(each, OK, 2.0)
    assert [e.inflight for e in fleet(made)] == [0, 0]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (service("a", fallback=("b",)), "unknown service 'b'"),
        (service("a", fallback=("a",)), "a → a"),
        (service("a", policy="best"), "unknown policy 'best'"),
        (service("a", fallback=(Maintenance("x"), "a")), "nothing can follow"),
        (service("a", versions=(VersionSpec("v", endpoints(1)), VersionSpec("v", endpoints(1)))), "given twice"),
        (service("a", fleet=endpoints(1) + endpoints(1)), "URL is given twice"),
        (service("a", fleet=endpoints(1, region="r")), "unknown region 'r'"),
        (service("a", fleet=endpoints(1, slots=0)), "needs slots"),
    ],
)
def test_what_is_wrong_is_refused_and_changes_nothing(spec: ServiceSpec, words: str) -> None:
    made = balancer(service("kept"))
    with pytest.raises(ValueError, match=words):
        made.apply(topology(spec), 1.0)
    assert list(made.services) == ["kept"]
    lease(made.offer(request(made.services["kept"]), 1.0))


def test_a_fallback_that_loops_is_refused_with_its_way() -> None:
    specs = (service("a", fallback=("b",)), service("b", fallback=("c",)), service("c", fallback=("a",)))
    with pytest.raises(ValueError, match="a → b → c → a"):
        balancer(*specs)


def test_chains_go_through_each_other_and_end_in_ones_own_message() -> None:
    made = balancer(
        service("a", fallback=("b", "d", Maintenance("mine"))),
        service("b", fallback=("c", Maintenance("theirs"))),
        service("c"),
        service("d"),
    )
    a = made.services["a"]
    assert [other.name for other in a.chain] == ["b", "c", "d"]
    for name in ("a", "b", "c", "d"):
        made.trip(name, "v", 0.0)
    assert refusal(made.offer(request(a), 0.0)).message == "mine"


def test_names_must_agree() -> None:
    with pytest.raises(ValueError, match="named 'x'"):
        balancer().apply(Topology({"y": service("x")}), 0.0)


def test_what_removed_versions_did_stays_counted_once() -> None:
    made = balancer(service(versions=(VersionSpec("a", endpoints(1)),)))
    s = made.services["s"]
    for _ in range(3):
        made.finish(lease(made.offer(request(s), 0.0)), OK, 0.0)
    running = lease(made.offer(request(s), 0.0))
    for now, name in ((1.0, "b"), (2.0, "c"), (3.0, "d")):
        made.apply(topology(service(versions=(VersionSpec(name, endpoints(1)),))), now)
        made.finish(lease(made.offer(request(s), now)), OK, now)
    made.finish(running, OK, 4.0)
    assert s.ended[OK] == 7
    made.apply(topology(service(versions=(VersionSpec("e", endpoints(1)),))), 5.0)
    assert s.ended[OK] == 7
    assert not s.departed
