"""Small fleets for the tests of the core."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from unjam.core.balancer import Balancer
from unjam.core.endpoint import Endpoint
from unjam.core.model import Lease, Outcome, Refusal, Request, Ticket
from unjam.core.service import Service
from unjam.core.spec import EndpointSpec, RegionSpec, ServiceSpec, Topology, VersionSpec

OK = Outcome.OK


def endpoints(count: int, **size: Any) -> tuple[EndpointSpec, ...]:
    return tuple(EndpointSpec(f"http://e{i}", **size) for i in range(count))


def service(name: str = "s", fleet: Sequence[EndpointSpec] | None = None, **rest: Any) -> ServiceSpec:
    if "versions" not in rest:
        rest["versions"] = (VersionSpec("v", tuple(fleet if fleet is not None else endpoints(2, slots=4))),)
    return ServiceSpec(name, **rest)


def balancer(*specs: ServiceSpec, regions: Sequence[RegionSpec] = (), seed: int = 1) -> Balancer:
    made = Balancer(random.Random(seed))
    made.apply(topology(*specs, regions=regions), 0.0)
    return made


def topology(*specs: ServiceSpec, regions: Sequence[RegionSpec] = ()) -> Topology:
    return Topology({spec.name: spec for spec in specs}, {region.name: region for region in regions})


def request(of: Service, path: str = "/", now: float = 0.0, **rest: Any) -> Request:
    return Request(of, path, now, **rest)


def fleet(made: Balancer, name: str = "s", version: int = 0) -> list[Endpoint]:
    return list(made.services[name].versions[version].endpoints.values())


def lease(decision: object) -> Lease:
    assert isinstance(decision, Lease), decision
    return decision


def ticket(decision: object) -> Ticket:
    assert isinstance(decision, Ticket), decision
    return decision


def refusal(decision: object) -> Refusal:
    assert isinstance(decision, Refusal), getattr(decision, "endpoint", decision)
    return decision


def teach(made: Balancer, path: str, seconds: float, times: int = 40, name: str = "s", now: float = 0.0) -> None:
    """The estimator has seen `path` take `seconds`."""
    bucket = made.services[name].estimator.bucket(path)
    for _ in range(times):
        bucket.observe(seconds)
