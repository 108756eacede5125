"""The endpoints of one version in one region, with the policy that orders them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unjam.core.policies import POLICIES
from unjam.core.policies.rendezvous import Rendezvous

if TYPE_CHECKING:
    from unjam.core.endpoint import Endpoint
    from unjam.core.model import Request
    from unjam.core.policies import Policy
    from unjam.core.policies.base import Rng
    from unjam.core.quota import Region
    from unjam.core.service import Version


class Pool:
    """`endpoints`: all of them, usable or not, in the order of the configuration. `homes`: where sessions are placed,
    None for services without sessions."""

    __slots__ = ("endpoints", "homes", "policy", "region", "version")

    def __init__(self, version: Version, region: Region | None, rng: Rng) -> None:
        spec = version.service.spec
        self.version = version
        self.region = region
        self.endpoints: dict[Endpoint, None] = {}
        self.policy: Policy = POLICIES[spec.policy](rng)
        self.homes: Rendezvous | None = Rendezvous(rng, spec.session.bound) if spec.session is not None else None

    def add(self, endpoint: Endpoint) -> None:
        """Take in an endpoint, which is open at once if it is usable."""
        self.endpoints[endpoint] = None
        endpoint.pool = self
        endpoint.region = self.region
        endpoint.entry = endpoint.heavy_entry = None
        endpoint.turn = endpoint.cost = 0.0
        if endpoint.usable:
            self.open(endpoint)

    def remove(self, endpoint: Endpoint) -> None:
        self.close(endpoint)
        del self.endpoints[endpoint]

    def open(self, endpoint: Endpoint) -> None:
        self.policy.open(endpoint)
        if self.homes is not None:
            self.homes.open(endpoint)

    def close(self, endpoint: Endpoint) -> None:
        self.policy.close(endpoint)
        if self.homes is not None:
            self.homes.close(endpoint)

    def touch(self, endpoint: Endpoint) -> None:
        self.policy.touch(endpoint)
        if self.homes is not None:
            self.homes.touch(endpoint)

    def started(self, endpoint: Endpoint, heavy: bool) -> None:
        self.policy.started(endpoint, heavy)
        if self.homes is not None:
            self.homes.started(endpoint, heavy)

    def ended(self, endpoint: Endpoint, seconds: float, now: float) -> None:
        self.policy.ended(endpoint, seconds, now)
        if self.homes is not None:
            self.homes.ended(endpoint, seconds, now)

    def pick(self, request: Request, heavy: bool, now: float, home: bool) -> Endpoint | None:
        """The endpoint for `request`; `home`: it starts a session, which is placed by its key."""
        if home and self.homes is not None:
            return self.homes.pick(request, heavy, now)
        return self.policy.pick(request, heavy, now)
