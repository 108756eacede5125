"""What must hold in every order of events, under every policy."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from unjam.core import lanes
from unjam.core.balancer import Balancer, LoadReport
from unjam.core.endpoint import Endpoint
from unjam.core.model import Lease, Outcome, Reason, Refusal, Request, Ticket
from unjam.core.policies import POLICIES
from unjam.core.service import Service, Version
from unjam.core.spec import (
    HEAVY,
    EndpointSpec,
    LanesSpec,
    Maintenance,
    QueueSpec,
    RegionSpec,
    ServiceSpec,
    SessionSpec,
    SplitSpec,
    Topology,
    VersionSpec,
    WarmUpSpec,
)
from unjam.core.split import applicable

#: Rules in force between two reloads. Some name a version that may be gone; some are the same in two of them.
RULES: tuple[tuple[SplitSpec, ...], ...] = (
    (),
    (SplitSpec({"v2": 1.0}, tenant="a"),),
    (SplitSpec({"v2": 1.0}, tenant="a"), SplitSpec({"v1": 1.0, "v2": 2.0}, lane=HEAVY)),
    (SplitSpec({"v1": 1.0, "v2": 1.0}, tenant="a"), SplitSpec({"v2": 1.0})),
)
PATHS = ("/hello", "/chat", "/audit", "/mixed")


def size(path: str, rng: random.Random) -> float:
    if path == "/mixed":
        path = "/audit" if rng.random() < 0.25 else "/chat"
    return {"/hello": 0.05, "/chat": 2.0, "/audit": 60.0}[path]


class Machine(RuleBasedStateMachine):
    """A service with two versions and a fallback, driven at random; the books are kept a second time here."""

    policy = "least_loaded"

    @initialize(
        sizes=st.lists(st.integers(1, 6), min_size=1, max_size=5),
        seed=st.integers(0, 1000),
        session=st.booleans(),
        regions=st.booleans(),
        share=st.sampled_from([0.5, 0.75, 1.0]),
        sized=st.booleans(),
        rules=st.sampled_from(RULES),
    )
    def build(
        self,
        sizes: list[int],
        seed: int,
        session: bool,
        regions: bool,
        share: float,
        sized: bool,
        rules: tuple[SplitSpec, ...],
    ) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.session, self.regions, self.share, self.sized = session, regions, share, sized
        self.joined: list[Endpoint] = []
        self.balancer = Balancer(random.Random(seed))
        self.running: list[Lease] = []
        self.waiting: dict[Request, Ticket] = {}
        self.offered = self.refused = self.cancelled = self.ended = 0
        self.apply_topology(sizes, rules)

    def apply_topology(self, sizes: list[int], rules: tuple[SplitSpec, ...] = (), both: bool = True) -> None:
        fleet = tuple(
            EndpointSpec(
                f"http://e{i}",
                cores=slots,
                memory=None if i % 2 else 8 << 30,
                slots=slots if self.sized else None,
                region=("r0", "r1")[i % 2] if self.regions else None,
            )
            for i, slots in enumerate(sizes)
        )
        self.sizes = sizes
        self.joined.clear()  # a plain library user's reload knows nothing of them
        rest: dict[str, Any] = {
            "lanes": LanesSpec(up_to=5.0, share=self.share),
            "queue": QueueSpec(max=12, timeout=20.0, tenant_share=0.5),
            "warm_up": WarmUpSpec(window=5.0),
            "policy": self.policy,
            "split": rules,
        }
        if self.session:
            rest["session"] = SessionSpec(header="x", ttl=60.0)
        versions = (VersionSpec("v1", fleet, 3.0), VersionSpec("v2", (EndpointSpec("http://f", slots=2),), 1.0))
        if not both:
            versions = versions[:1]
        topology = Topology(
            {
                "main": ServiceSpec("main", versions, fallback=("basic", Maintenance("soon")), **rest),
                "basic": ServiceSpec("basic", (VersionSpec("v", (EndpointSpec("http://b", slots=1),)),), **rest),
            },
            {"r0": RegionSpec("r0", tokens_per_minute=6000.0), "r1": RegionSpec("r1", requests_per_minute=600.0)},
        )
        applied = self.balancer.apply(topology, self.now)
        assert applied.refused_tickets == []
        self.take(self.balancer.tick(self.now))

    def take(self, decided: Any) -> None:
        for decision in decided:
            if isinstance(decision, Refusal):
                self.refused += 1
                self.waiting.pop(decision.request, None)
                assert decision.message
                assert decision.status in (429, 503, 504)
            else:
                assert isinstance(decision, Lease)
                ticket = self.waiting.pop(decision.request, None)
                assert ticket is None or not ticket.live
                endpoint = decision.endpoint
                assert endpoint.inflight <= endpoint.slots
                assert not endpoint.draining
                assert not endpoint.removed
                assert endpoint not in decision.request.tried
                assert endpoint.usable
                if endpoint.ejected_until or not endpoint.healthy or endpoint.silent or endpoint.load_state == "down":
                    assert decision.version.panic
                assert endpoint.load_state != "draining"
                if decision.heavy and not decision.promoted:
                    assert endpoint.heavy <= endpoint.room
                    assert not endpoint.barred
                self.running.append(decision)

    @property
    def endpoints(self) -> list[Endpoint]:
        return [e for s in self.balancer.services.values() for v in s.versions for e in v.endpoints.values()]

    @rule(
        path=st.sampled_from(PATHS),
        tenant=st.sampled_from(["", "a", "b", "c"]),
        key=st.sampled_from([None, "k1", "k2", "k3"]),
        tokens=st.sampled_from([None, 10, 300]),
        patience=st.sampled_from([None, 3.0]),
        tried=st.integers(0, 2),
    )
    def offer(
        self, path: str, tenant: str, key: str | None, tokens: int | None, patience: float | None, tried: int
    ) -> None:
        deadline = None if patience is None else self.now + patience
        request = Request(self.balancer.services["main"], path, self.now, tenant, key, tokens=tokens, deadline=deadline)
        request.splits = applicable(request.service.splits, lambda name: None, tenant)
        if tried:
            request.tried = tuple(self.endpoints[:tried])
        self.decide(request)

    def decide(self, request: Request) -> None:
        self.offered += 1
        decision = self.balancer.offer(request, self.now)
        if isinstance(decision, Ticket):
            assert decision.live
            self.waiting[request] = decision
        else:
            self.take([decision])

    @precondition(lambda self: self.running)
    @rule(
        at=st.integers(0, 50),
        outcome=st.sampled_from([Outcome.OK] * 6 + list(Outcome)),
        connect=st.booleans(),
        tokens=st.sampled_from([None, 5, 500]),
    )
    def finish(self, at: int, outcome: Outcome, connect: bool, tokens: int | None) -> None:
        lease = self.running.pop(at % len(self.running))
        self.ended += 1
        failed = outcome is Outcome.SERVER_ERROR and connect
        risks = [ticket.bucket.risk for ticket in self.waiting.values()]
        self.take(self.balancer.finish(lease, outcome, self.now, tokens=tokens, connect_failed=failed))
        if risks != [ticket.bucket.risk for ticket in self.waiting.values()]:
            # What was learnt here may make room for what waits for the other version, which the next tick sees.
            self.take(self.balancer.tick(self.now))

    @precondition(lambda self: self.running)
    @rule(at=st.integers(0, 50))
    def try_again(self, at: int) -> None:
        """Its endpoint can't be reached: the same request comes again, with the rules of its first try."""
        lease = self.running.pop(at % len(self.running))
        self.ended += 1
        self.take(self.balancer.finish(lease, Outcome.SERVER_ERROR, self.now, connect_failed=True))
        self.take(self.balancer.tick(self.now))
        lease.request.tried = (*lease.request.tried, lease.endpoint)
        self.decide(lease.request)

    @precondition(lambda self: self.waiting)
    @rule(at=st.integers(0, 50))
    def cancel(self, at: int) -> None:
        request = list(self.waiting)[at % len(self.waiting)]
        self.balancer.cancel(self.waiting.pop(request), self.now)
        self.cancelled += 1
        # What stood behind it may fit now where it waited for a quota; time has to pass for that anyway.
        self.take(self.balancer.tick(self.now))

    @rule(seconds=st.sampled_from([0.1, 1.0, 6.0, 15.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.take(self.balancer.tick(self.now))

    @rule(at=st.integers(0, 9), healthy=st.booleans())
    def health(self, at: int, healthy: bool) -> None:
        self.take(self.balancer.set_health(self.endpoints[at % len(self.endpoints)], healthy, self.now))
        self.take(self.balancer.tick(self.now))

    @rule(at=st.integers(0, 9), draining=st.booleans())
    def drain(self, at: int, draining: bool) -> None:
        self.take(self.balancer.drain(self.endpoints[at % len(self.endpoints)], draining, self.now))
        self.take(self.balancer.tick(self.now))

    @rule(
        at=st.integers(0, 9),
        cpu=st.sampled_from([None, 0.0, 0.5, 0.97, 1.0]),
        agent=st.sampled_from([None, 0.0, 0.4]),
        free=st.sampled_from([None, 0, 1 << 30, 4 << 30]),
        used=st.sampled_from([None, 1 << 28, 1 << 30]),
        waiting=st.sampled_from([None, 0, 3]),
        slots=st.sampled_from([None, None, 1, 3]),
        state=st.sampled_from([None, None, "ready", "draining", "down"]),
        age=st.sampled_from([0.0, 0.0, 4.0, 20.0, 60.0]),
        source=st.sampled_from(["reporter", "header", "metrics"]),
    )
    def report(
        self,
        at: int,
        cpu: float | None,
        agent: float | None,
        free: int | None,
        used: int | None,
        waiting: int | None,
        slots: int | None,
        state: str | None,
        age: float,
        source: str,
    ) -> None:
        load = LoadReport(
            cpu=cpu,
            agent_cpu=agent,
            memory_free=free,
            agent_memory=used,
            in_flight=None if waiting is None else waiting + 2,
            waiting=waiting,
            slots=slots,
            state=state,
            age=age,
            source=source,
        )
        endpoint = self.endpoints[at % len(self.endpoints)]
        self.take(self.balancer.report(endpoint, load, self.now))
        tally = endpoint.tally
        assert tally is not None
        assert bool(load.problem()) <= bool(tally.problem)
        self.take(self.balancer.tick(self.now))

    @precondition(lambda self: len(self.joined) < 3)
    @rule(cores=st.sampled_from([None, 1, 4]))
    def join(self, cores: int | None) -> None:
        spec = EndpointSpec(f"http://j{len(self.joined)}", cores=cores)
        version = self.balancer.services["main"].versions[0]
        if spec.url not in version.endpoints:
            self.joined.append(self.balancer.join("main", "v1", spec, self.now))
            self.take(self.balancer.tick(self.now))

    @precondition(lambda self: self.joined)
    @rule()
    def leave(self) -> None:
        endpoint = self.joined.pop()
        self.take(self.balancer.leave(endpoint, self.now))
        assert endpoint.removed
        self.take(self.balancer.tick(self.now))

    @precondition(lambda self: self.joined)
    @rule(silent=st.booleans())
    def silence(self, silent: bool) -> None:
        self.take(self.balancer.silence(self.joined[-1], silent, self.now))
        self.take(self.balancer.tick(self.now))

    @rule(version=st.sampled_from(["v1", "v2"]), weight=st.sampled_from([0.0, 1.0, 9.0]))
    def weigh(self, version: str, weight: float) -> None:
        if version not in {v.name for v in self.balancer.services["main"].versions}:
            return
        self.take(self.balancer.set_weight("main", version, weight, self.now))
        self.take(self.balancer.tick(self.now))

    @rule(version=st.sampled_from(["v1", "v2"]), trip=st.booleans())
    def breaker(self, version: str, trip: bool) -> None:
        if version not in {v.name for v in self.balancer.services["main"].versions}:
            return
        (self.balancer.trip if trip else self.balancer.reset)("main", version, self.now)
        self.take(self.balancer.tick(self.now))

    @rule(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=5), rules=st.sampled_from(RULES), both=st.booleans())
    def reload(self, sizes: list[int], rules: tuple[SplitSpec, ...], both: bool) -> None:
        self.apply_topology(sizes, rules, both)

    @invariant()
    def requests_are_conserved(self) -> None:
        services = self.balancer.services.values()
        assert self.offered == self.refused + self.cancelled + self.ended + len(self.running) + len(self.waiting)
        assert self.balancer.leases == len(self.running)
        assert sum(s.offered for s in services) == self.offered
        assert sum(sum(s.refused.values()) for s in services) == self.refused
        assert sum(s.withdrawn for s in services) == self.cancelled
        assert sum(sum(s.ended.values()) for s in services) == self.ended

    @invariant()
    def counts_are_those_of_the_live_leases(self) -> None:
        for endpoint in self.endpoints:
            here = [lease for lease in self.running if lease.endpoint is endpoint]
            assert endpoint.inflight == len(here)
            assert endpoint.heavy == sum(lease.heavy for lease in here)
            assert endpoint.burden == sum(lease.burden for lease in here)
        for s in self.balancer.services.values():
            assert s.live == sum(lease.service is s for lease in self.running)
            for version in s.versions:
                here = [lease for lease in self.running if lease.version is version]
                assert version.heavy == sum(lease.heavy for lease in here)
                assert version.burden == sum(lease.burden for lease in here)
                assert version.usable == sum(e.usable for e in version.endpoints.values())
                assert version.slots == sum(e.slots for e in version.endpoints.values() if e.usable)
                assert version.healthy == sum(e.well for e in version.endpoints.values())
                assert version.large == sum(e.slots > lanes.FEW for e in version.endpoints.values())
                assert (version.heavy_cap is None) is (
                    version.large > 0 or any(e.barred for e in version.endpoints.values())
                )

    @invariant()
    def the_queue_holds_what_waits(self) -> None:
        assert all(ticket.live for ticket in self.waiting.values())
        for s in self.balancer.services.values():
            here = [ticket for ticket in self.waiting.values() if ticket.service is s]
            assert s.waiting.count == len(here) <= s.spec.queue.max
            assert sum(s.waiting.tenants.values()) == len(here)
            assert sum(len(version.queue) for version in s.versions) == len(here)
            assert all(ticket.version in s.versions for ticket in here)

    @invariant()
    def nothing_waits_beside_a_free_slot_that_fits(self) -> None:
        if self.regions:
            return  # a quota may be what is missing
        for ticket in self.waiting.values():
            if self.flows(ticket.version):
                assert not self.fits(ticket)

    def flows(self, version: Version) -> bool:
        return version.weight > 0.0 and version.share > 0.0 and bool(version.usable)

    def fits(self, ticket: Ticket) -> bool:
        version = ticket.version
        if ticket.heavy and not lanes.fits(version, ticket.bucket):
            return False
        return any(
            endpoint.usable
            and endpoint.inflight < endpoint.slots
            and endpoint not in ticket.request.tried
            and (endpoint.takes_heavy() or not ticket.heavy)
            for endpoint in version.endpoints.values()
        )

    def teardown(self) -> None:
        """Whatever was done, all of it ends and nothing is left."""
        if not hasattr(self, "balancer"):
            return
        for endpoint in self.endpoints:
            self.take(self.balancer.drain(endpoint, False, self.now))
            self.take(self.balancer.set_health(endpoint, True, self.now))
            ready = LoadReport(state="ready", memory_free=7 << 30, memory=8 << 30, weight=1.0)
            self.take(self.balancer.report(endpoint, ready, self.now))
            self.take(self.balancer.silence(endpoint, False, self.now))
        for _ in range(1000):
            while self.running:
                self.ended += 1
                self.take(self.balancer.finish(self.running.pop(), Outcome.OK, self.now))
            if not self.waiting:
                break
            self.now += 5.0
            self.take(self.balancer.tick(self.now))
        assert not self.waiting
        assert self.balancer.leases == 0
        assert all(e.inflight == e.heavy == e.burden == 0 for e in self.endpoints)
        assert all(s.waiting.count == 0 and not s.waiting.tenants for s in self.balancer.services.values())


def machine(policy: str) -> type[Machine]:
    return type(f"Machine_{policy}", (Machine,), {"policy": policy})


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_invariants(policy: str) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    examples = 400 if policy == "least_loaded" else 60
    run_state_machine_as_test(
        machine(policy),
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        ),
    )


def work(policy: str, seed: int, steps: int) -> list[tuple[object, ...]]:
    """A long run with everything going on; returns its decisions."""
    rng = random.Random(seed)
    balancer = Balancer(random.Random(seed))
    fleet = tuple(EndpointSpec(f"http://e{i}", cores=4, slots=4 + i % 3) for i in range(6))
    spec = ServiceSpec("s", (VersionSpec("v", fleet),), policy=policy, queue=QueueSpec(max=50, timeout=30.0))
    balancer.apply(Topology({"s": spec}), 0.0)
    service: Service = balancer.services["s"]
    running: list[tuple[float, int, Lease]] = []
    log: list[tuple[object, ...]] = []
    now = 0.0

    def note(decision: object) -> None:
        if isinstance(decision, Lease):
            log.append((now, decision.request.context, decision.endpoint.name, decision.heavy))
            running.append((now + size(decision.request.bucket, rng), len(log), decision))
        elif isinstance(decision, Refusal):
            log.append((now, decision.request.context, decision.reason))

    for i in range(steps):
        now += rng.expovariate(5.0)
        running.sort()
        while running and running[0][0] <= now:
            _, _, done = running.pop(0)
            outcome = rng.choice([Outcome.OK] * 30 + [Outcome.SERVER_ERROR, Outcome.CANCELLED])
            for started in balancer.finish(done, outcome, now):
                note(started)
        path = rng.choices(PATHS, (30, 50, 1, 3))[0]
        note(balancer.offer(Request(service, path, now, rng.choice("abc"), context=i), now))
        if i % 5 == 0:
            for decision in balancer.tick(now):
                note(decision)
    return log


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_same_seed_and_inputs_same_decisions(policy: str) -> None:
    log = work(policy, 7, 2000)
    assert log == work(policy, 7, 2000)
    assert len(log) > 1500
    assert Reason.QUEUE_TIMEOUT not in {entry[2] for entry in log[:100]}
