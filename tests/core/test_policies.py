"""Each policy: its order, and that nothing closed, full, tried or over its heavy share is ever picked."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unjam.core.model import Lease, Outcome
from unjam.core.policies import POLICIES
from unjam.core.spec import EndpointSpec, LanesSpec, WarmUpSpec

from .made import OK, balancer, endpoints, fleet, lease, request, service, teach, topology

WEIGHTED = ("weighted_round_robin", "random", "power_of_two")


def picks(policy: str, specs: tuple[EndpointSpec, ...], count: int) -> Counter[str]:
    """Endpoints chosen for requests that end at once."""
    made = balancer(service(fleet=specs, policy=policy))
    s = made.services["s"]
    chosen: Counter[str] = Counter()
    for i in range(count):
        taken = lease(made.offer(request(s, tenant=f"t{i}"), 0.0))
        chosen[taken.endpoint.name] += 1
        made.finish(taken, OK, 0.0)
    return chosen


@pytest.mark.parametrize("policy", ["least_loaded", "least_outstanding", "round_robin", "weighted_round_robin"])
def test_ties_rotate(policy: str) -> None:
    assert set(picks(policy, endpoints(7, slots=4), 700).values()) == {100}


def test_least_loaded_takes_the_least_stretch_then_the_fewest_heavy() -> None:
    made = balancer(service(fleet=(EndpointSpec("http://small", cores=1), EndpointSpec("http://big", cores=4))))
    s = made.services["s"]
    # One each below a request per core, then only the big one has a core to spare.
    names = [lease(made.offer(request(s), 0.0)).endpoint.name for _ in range(5)]
    assert Counter(names) == {"http://small": 1, "http://big": 4}


def test_least_loaded_keeps_heavy_requests_apart() -> None:
    made = balancer(service(fleet=endpoints(3, cores=8)))
    s = made.services["s"]
    teach(made, "/audit", 600.0)
    teach(made, "/hello", 0.05)
    for _ in range(2):
        lease(made.offer(request(s, "/audit"), 0.0))
    free = next(e for e in fleet(made) if not e.heavy)
    assert lease(made.offer(request(s, "/audit"), 0.0)).endpoint is free
    assert [e.heavy for e in fleet(made)] == [1, 1, 1]
    fourth = lease(made.offer(request(s, "/audit"), 0.0)).endpoint
    # Fast work stays clear of the one with two heavy requests while nobody is stretched.
    assert fourth not in [lease(made.offer(request(s, "/hello"), 0.0)).endpoint for _ in range(4)]


def test_least_outstanding_counts_and_nothing_else() -> None:
    made = balancer(
        service(
            fleet=(EndpointSpec("http://a", cores=1), EndpointSpec("http://b", cores=64)), policy="least_outstanding"
        )
    )
    s = made.services["s"]
    names = [lease(made.offer(request(s), 0.0)).endpoint.name for _ in range(4)]
    assert Counter(names) == {"http://a": 2, "http://b": 2}


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(1, 400))
@settings(max_examples=60, deadline=None)
def test_weighted_round_robin_is_never_more_than_one_from_the_exact_share(weights: list[int], count: int) -> None:
    specs = tuple(EndpointSpec(f"http://e{i}", weight=float(w)) for i, w in enumerate(weights))
    made = balancer(service(fleet=specs, policy="weighted_round_robin"))
    s = made.services["s"]
    chosen: Counter[str] = Counter()
    for n in range(1, count + 1):
        taken = lease(made.offer(request(s), 0.0))
        chosen[taken.endpoint.name] += 1
        made.finish(taken, OK, 0.0)
        for spec in specs:
            assert abs(chosen[spec.url] - n * spec.weight / sum(weights)) <= 1.0 + 1e-6


@pytest.mark.parametrize("policy", WEIGHTED)
def test_capacity_is_weight(policy: str) -> None:
    chosen = picks(policy, (EndpointSpec("http://a", cores=2), EndpointSpec("http://b", cores=8)), 4000)
    if policy == "power_of_two":
        # Two idle ones: the less stretched of both, whichever was drawn first.
        assert chosen["http://b"] > 3000
    else:
        assert chosen["http://b"] == pytest.approx(3200, abs=120)


def test_random_is_exact_over_weights_that_differ_by_orders_of_magnitude() -> None:
    cores = (1.0, 3.0, 7.0, 100.0, 0.5)
    specs = tuple(EndpointSpec(f"http://e{i}", cores=c, slots=9) for i, c in enumerate(cores))
    chosen = picks("random", specs, 20000)
    for spec in specs:
        share = (spec.cores or 0.0) / sum(cores)
        assert chosen[spec.url] == pytest.approx(20000 * share, abs=4 * (20000 * share) ** 0.5 + 1)


def test_power_of_two_prefers_the_less_loaded() -> None:
    made = balancer(service(fleet=endpoints(2, slots=100), policy="power_of_two"))
    s = made.services["s"]
    for _ in range(100):
        lease(made.offer(request(s), 0.0))
    assert abs(fleet(made)[0].inflight - 50) <= 2


def test_peak_ewma_avoids_the_slow() -> None:
    made = balancer(service(fleet=endpoints(2, slots=100), policy="peak_ewma"))
    s = made.services["s"]
    slow, quick = fleet(made)
    for _ in range(200):
        taken = lease(made.offer(request(s), 0.0))
        made.finish(taken, OK, 2.0 if taken.endpoint is slow else 0.01)
    after = Counter(lease(made.offer(request(s), 2.0)).endpoint.name for _ in range(20))
    assert after[quick.name] > 15


def test_rendezvous_keeps_a_key_at_home_and_moves_only_what_must() -> None:
    def homes(count: int) -> dict[str, str]:
        made = balancer(service(fleet=endpoints(count, slots=8), policy="rendezvous"))
        s = made.services["s"]
        found = {}
        for i in range(600):
            taken = lease(made.offer(request(s, session=f"k{i}"), 0.0))
            found[f"k{i}"] = taken.endpoint.name
            made.finish(taken, OK, 0.0)
        return found

    for count in (10, 100):
        before, after = homes(count), homes(count + 1)
        assert before == homes(count)
        moved = [key for key in before if before[key] != after[key]]
        new = f"http://e{count}"
        # A leaf that splits moves some within itself; all else goes to the newcomer.
        strangers = [key for key in moved if after[key] != new]
        assert len(strangers) <= (0 if count == 10 else 40)
        assert 0 < len([key for key in moved if after[key] == new]) < 2.5 * 600 / count
        assert max(Counter(before.values()).values()) < 4 * 600 / count + 10


def test_rendezvous_bounds_the_load_of_a_popular_key() -> None:
    made = balancer(service(fleet=endpoints(10, slots=100), policy="rendezvous"))
    s = made.services["s"]
    for _ in range(200):
        lease(made.offer(request(s, session="everybody"), 0.0))
    assert max(e.inflight for e in fleet(made)) <= 1.25 * 20 + 2


def test_rendezvous_finds_the_last_open_one_among_thousands() -> None:
    made = balancer(service(fleet=endpoints(3000, slots=1), policy="rendezvous"))
    s = made.services["s"]
    for i in range(3000):
        lease(made.offer(request(s, session=f"k{i % 7}"), 0.0))
    assert all(e.inflight == 1 for e in fleet(made))


@pytest.mark.parametrize("policy", sorted(POLICIES))
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_nothing_closed_is_ever_picked_and_nothing_open_overlooked(policy: str, data: st.DataObject) -> None:
    rng = random.Random(data.draw(st.integers(0, 10_000)))
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=50))
    specs = tuple(EndpointSpec(f"http://e{i}", cores=size, slots=size) for i, size in enumerate(sizes))
    made = balancer(service(fleet=specs, policy=policy, lanes=LanesSpec(share=0.6)))
    s = made.services["s"]
    teach(made, "/audit", 600.0)
    teach(made, "/hello", 0.05)
    everything = fleet(made)
    (pool,) = s.versions[0].pools
    running: list[Lease] = []
    now = 0.0
    for _ in range(150):
        now += 0.2
        tried = tuple(rng.sample(everything, min(len(everything), rng.randrange(3)))) if rng.random() < 0.3 else ()
        heavy = rng.random() < 0.4
        asked = request(s, "/audit" if heavy else "/hello", session=f"k{rng.randrange(50)}")
        asked.tried = tried
        fitting = [
            e
            for e in everything
            if e.usable and e.inflight < e.slots and e not in tried and (e.takes_heavy() or not heavy)
        ]
        picked = pool.policy.pick(asked, heavy, now)
        assert (picked in fitting) if fitting else picked is None
        if rng.random() < 0.6:
            decision = made.offer(asked, now)
            if isinstance(decision, Lease):
                assert not decision.endpoint.draining
                running.append(decision)
            elif hasattr(decision, "live"):
                made.cancel(decision, now)
        elif running and rng.random() < 0.8:
            ended = running.pop(rng.randrange(len(running)))
            running.extend(made.finish(ended, rng.choice([OK, OK, Outcome.SERVER_ERROR]), now))
        elif rng.random() < 0.5:
            made.drain(rng.choice(everything), rng.random() < 0.5, now)
        else:
            made.set_health(rng.choice(everything), rng.random() < 0.6, now)
        made.tick(now)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_new_endpoint_is_warmed_up(policy: str) -> None:
    warm = WarmUpSpec(window=100.0)
    made = balancer(service(fleet=endpoints(4, cores=4, slots=50), policy=policy, warm_up=warm))
    s = made.services["s"]
    made.apply(topology(service(fleet=endpoints(5, cores=4, slots=50), policy=policy, warm_up=warm)), 0.0)
    made.tick(1.0)
    new = fleet(made)[4]
    assert new.avail == pytest.approx(0.4)
    for i in range(60):
        lease(made.offer(request(s, session=f"k{i}"), 1.0))
    others = [e.inflight for e in fleet(made)[:4]]
    assert new.inflight < sum(others) / 4 / 2
    made.tick(200.0)
    assert new.avail == 4.0


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_reload_to_another_policy_keeps_what_runs(policy: str) -> None:
    made = balancer(service(fleet=endpoints(3, slots=4)))
    s = made.services["s"]
    running = [lease(made.offer(request(s), 0.0)) for _ in range(6)]
    made.apply(topology(service(fleet=endpoints(3, slots=4), policy=policy)), 1.0)
    assert [e.inflight for e in fleet(made)] == [2, 2, 2]
    for _ in range(6):
        lease(made.offer(request(s), 1.0))
    assert [e.inflight for e in fleet(made)] == [4, 4, 4]
    for each in running:
        made.finish(each, OK, 2.0)
