"""The gateway decides nothing by itself: the bare core, given the same seed and inputs, decides the same.

Every call that a gateway under real traffic makes to its balancer is written down with its time and its answer; then a
fresh balancer is given the same calls. Every endpoint, lane, version, ticket and refusal must be the same, and so must
the order in which waiting requests were sent on.
"""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import pytest

from unjam.core.balancer import Balancer
from unjam.core.model import Lease, Refusal, Request, Ticket
from unjam.core.policies import POLICIES

from .harness import Agent, Call, gateway, in_loop

FIELDS = ("bucket", "arrived", "tenant", "session", "sticky", "lane_hint", "seconds_hint", "tokens", "deadline")


def told(decision: Any) -> Any:
    """A decision in words that mean the same in two balancers."""
    if isinstance(decision, Lease):
        return ("lease", decision.endpoint.name, decision.version.name, decision.lane, round(decision.expected, 9))
    if isinstance(decision, Refusal):
        return ("refusal", decision.reason.value, decision.status, decision.message, decision.retry_after)
    if isinstance(decision, Ticket):
        return ("ticket", decision.version.name, decision.heavy, decision.expires)
    return decision


class Recorder:
    """Stands where the balancer stands and writes down what it is asked and what it answers."""

    def __init__(self, balancer: Balancer) -> None:
        self._balancer = balancer
        self.calls: list[tuple[Any, ...]] = []
        self.numbers: dict[int, int] = {}  # id of a request, lease or ticket → which one it was
        self._kept: list[Any] = []
        self.dispatched = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._balancer, name)

    def _number(self, thing: Any) -> int:
        if id(thing) not in self.numbers:
            self.numbers[id(thing)] = len(self.numbers)
            self._kept.append(thing)
        return self.numbers[id(thing)]

    def offer(self, request: Request, now: float) -> Any:
        fields = {name: getattr(request, name) for name in FIELDS}
        tried = tuple(endpoint.name for endpoint in request.tried)
        number = self._number(request)
        decision = self._balancer.offer(request, now)
        self.dispatched += isinstance(decision, Lease)
        self.calls.append(("offer", number, request.service.name, fields, tried, now, told(decision)))
        return decision

    def finish(self, lease: Lease, outcome: Any, now: float, **more: Any) -> Any:
        request = self._number(lease.request)
        started = self._balancer.finish(lease, outcome, now, **more)
        self.dispatched += len(started)
        self.calls.append(
            ("finish", request, outcome, now, more, [(self._number(s.request), told(s)) for s in started])
        )
        return started

    def cancel(self, ticket: Ticket, now: float) -> None:
        self.calls.append(("cancel", self._number(ticket.request), now))
        self._balancer.cancel(ticket, now)

    def tick(self, now: float) -> Any:
        decided = self._balancer.tick(now)
        self.dispatched += sum(isinstance(decision, Lease) for decision in decided)
        self.calls.append(("tick", now, [(self._number(d.request), told(d)) for d in decided]))
        return decided

    def may_retry(self, service: Any, now: float) -> bool:
        allowed = self._balancer.may_retry(service, now)
        self.calls.append(("may_retry", service.name, now, allowed))
        return allowed


def replay(calls: list[tuple[Any, ...]], balancer: Balancer) -> int:
    """Make the same calls of a fresh balancer and compare every answer. Returns how many leases there were."""
    requests: dict[int, Request] = {}
    leases: dict[int, Lease] = {}
    tickets: dict[int, Ticket] = {}
    dispatched: list[int] = []
    endpoints = {
        endpoint.name: endpoint
        for service in balancer.services.values()
        for version in service.versions
        for pool in version.pools
        for endpoint in pool.endpoints
    }

    def take(number: int, decision: Any) -> None:
        if isinstance(decision, Lease):
            leases[number] = decision
            dispatched.append(number)
        elif isinstance(decision, Ticket):
            tickets[number] = decision

    def numbered(decisions: Any) -> list[tuple[int, Any]]:
        found = []
        for decision in decisions:
            number = next(number for number, request in requests.items() if request is decision.request)
            take(number, decision)
            found.append((number, told(decision)))
        return found

    for call in calls:
        match call:
            case ("offer", number, service, fields, tried, now, expected):
                request = requests.get(number)
                if request is None:
                    request = requests[number] = Request(balancer.services[service], "", 0.0)
                for name, value in fields.items():
                    setattr(request, name, value)
                request.tried = tuple(endpoints[name] for name in tried)
                decision = balancer.offer(request, now)
                take(number, decision)
                assert told(decision) == expected
            case ("finish", number, outcome, now, more, expected):
                assert numbered(balancer.finish(leases.pop(number), outcome, now, **more)) == expected
            case ("cancel", number, now):
                balancer.cancel(tickets[number], now)
            case ("tick", now, expected):
                assert numbered(balancer.tick(now)) == expected
            case ("may_retry", service, now, expected):
                assert balancer.may_retry(balancer.services[service], now) == expected
    return len(dispatched)


@pytest.mark.parametrize("policy", sorted(POLICIES))
@in_loop
async def test_the_gateway_and_the_bare_core_decide_the_same(policy: str) -> None:
    rng = Random(42)

    async def works(call: Call) -> None:
        kind = call.seen.target
        if kind == "/fails":
            await call.answer(b"no", 500)
        elif kind == "/dies":
            call.abort()
        else:
            await asyncio.sleep(rng.random() * (0.03 if kind == "/heavy" else 0.003))
            await call.answer()

    agents = [Agent(works) for _ in range(4)]
    for agent in agents:
        await agent.start()
    config = f"""
services:
  s:
    policy: {policy}
    queue: {{max: 6, timeout: 1s}}
    breaker: {{error_rate: 30%}}
    lanes: {{fast: {{up_to: 10ms}}, heavy: {{share: 0.5}}}}
    session: {{header: x-session-id}}
    versions:
      v1: {{weight: 70, endpoints: [{{url: "{agents[0].url}", slots: 2}}, {{url: "{agents[1].url}", slots: 2}}]}}
      v2: {{weight: 30, endpoints: [{{url: "{agents[2].url}", slots: 3}}, {{url: "{agents[3].url}", slots: 1}}]}}
"""
    async with gateway(*agents, config=config) as gw:
        recorder = Recorder(gw.gateway.balancer)
        gw.gateway.balancer = recorder  # type: ignore[assignment]

        async def client(number: int) -> None:
            mine = Random(number)
            wire = await gw.connect()
            for _ in range(25):
                kind = mine.choice(["/hello"] * 8 + ["/heavy"] * 8 + ["/fails", "/dies"])
                headers = mine.choice(["", "x-session-id: a\r\n", "x-unjam-lane: heavy\r\n"])
                if mine.random() < 0.05:
                    await wire.send(b"GET /heavy HTTP/1.1\r\nHost: x\r\n\r\n")
                    wire.reset()
                    wire = await gw.connect()
                else:
                    await wire.get(kind, headers)

        await asyncio.gather(*(client(number) for number in range(12)))
        await gw.settled()
        calls = recorder.calls
        bare = Balancer(Random(1))
        bare.apply(gw.server.config.topology(), recorder.calls[0][5] - 1.0)
        kinds = {call[-1][0] for call in calls if call[0] == "offer"}
        assert {"lease", "ticket", "refusal"} <= kinds  # the traffic reached every kind of decision
        assert replay(calls, bare) == recorder.dispatched > 20
