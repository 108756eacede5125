"""What the balancer is told beside requests: by checks, reporters, operators, providers and those who judge answers."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Final

from unjam.core import blame
from unjam.core.topology import Reload

if TYPE_CHECKING:
    from collections.abc import Sequence

    from unjam.core.endpoint import Endpoint
    from unjam.core.health import Health
    from unjam.core.load import LoadReport
    from unjam.core.model import Lease
    from unjam.core.policies.base import Rng
    from unjam.core.quota import Region
    from unjam.core.service import Service, Version
    from unjam.core.spec import EndpointSpec

NOTHING: Final[tuple[Lease, ...]] = ()


class Operations:
    """A part of `Balancer`. What waited and can be dispatched by what was told is returned."""

    __slots__ = ()

    services: dict[str, Service]
    regions: dict[str, Region]
    _health: Health
    _leaving: list[Service]
    _rng: Rng

    @abstractmethod
    def _dispatch(self, version: Version, now: float) -> Sequence[Lease]: ...

    def set_health(self, endpoint: Endpoint, healthy: bool, now: float) -> Sequence[Lease]:
        """What the active checks say."""
        self._health.checked(endpoint, healthy, now)
        return self._dispatch(endpoint.pool.version, now)

    def drain(self, endpoint: Endpoint, draining: bool, now: float) -> Sequence[Lease]:
        """Give it nothing new, or give it work again."""
        if not endpoint.removed:
            self._health.drain(endpoint, draining, now)
            if draining and endpoint.pool.version.service.sessions is not None:
                endpoint.pool.version.service.sessions.forget(endpoint)
        return self._dispatch(endpoint.pool.version, now)

    def report(self, endpoint: Endpoint, load: LoadReport, now: float) -> Sequence[Lease]:
        """What is said of an endpoint's load. `endpoint.tally` tells what was made of it: a report that can't be true
        is refused, one that is too old is late, and others count in full for 5 s and for nothing after 30."""
        if endpoint.removed:
            return NOTHING
        was_draining = endpoint.draining
        if not self._health.reported(endpoint, load, now):
            return NOTHING
        sessions = endpoint.pool.version.service.sessions
        if endpoint.draining and not was_draining and sessions is not None:
            sessions.forget(endpoint)
        if not endpoint.pool.version.queue.length:
            return NOTHING
        return self._dispatch(endpoint.pool.version, now)

    def join(self, service: str, version: str, spec: EndpointSpec, now: float) -> Endpoint:
        """Add an endpoint that announced itself. Raises KeyError for an unknown service, version or region, ValueError
        when the version has an endpoint of that URL."""
        return self._reload(now).join(self._version(service, version), spec)

    def leave(self, endpoint: Endpoint, now: float) -> Sequence[Lease]:
        """Remove an endpoint that joined; what runs on it may end."""
        version = endpoint.pool.version
        self._reload(now).leave(endpoint)
        return self._dispatch(version, now)

    def silence(self, endpoint: Endpoint, silent: bool, now: float) -> Sequence[Lease]:
        """The reporter of an endpoint that joined is not heard of any more: it gets nothing, unless too few are left.
        Or it is heard of again."""
        self._health.silence(endpoint, silent, now)
        return self._dispatch(endpoint.pool.version, now)

    def set_weight(self, service: str, version: str, weight: float, now: float) -> Sequence[Lease]:
        """Raises KeyError for an unknown service or version, ValueError for a weight below 0."""
        found = self._version(service, version)
        if not 0.0 <= weight < float("inf"):
            raise ValueError(f"a weight of {weight}")
        found.weight = weight
        found.evict = found.evict or weight == 0.0
        found.service.reweigh(now)
        return NOTHING

    def trip(self, service: str, version: str, now: float) -> None:
        """Open the breaker by hand. Raises KeyError for an unknown service or version."""
        found = self._version(service, version)
        if found.down:
            # It stays open from now on, whatever becomes of its endpoints.
            found.down = False
            found.outages -= 1
        found.breaker.trip(now, "by hand")
        found.evict = True
        found.service.reweigh(now)

    def reset(self, service: str, version: str, now: float) -> None:
        """Close the breaker by hand. Raises KeyError for an unknown service or version."""
        found = self._version(service, version)
        found.breaker.reset(now)
        found.service.reweigh(now)

    def verdict(
        self, version: Version, bad: bool, now: float, started: float, *, sampled: bool, reason: str = ""
    ) -> None:
        """Somebody judged an answer of `version` to a request that was dispatched at `started`.

        `sampled`: it is one of a sample, good ones reported too. Otherwise the call counts as a success, now or at its
        end: a bad verdict makes that a failure. `reason`: of a bad one, in words fit for a log."""
        blame.judged(version.original, bad, sampled, reason, started, now)

    def heed(
        self,
        endpoint: Endpoint,
        *,
        remaining_tokens: float | None = None,
        remaining_requests: float | None = None,
        reset: float | None = None,
        retry_after: float | None = None,
        now: float,
    ) -> None:
        """What the provider behind `endpoint` says of its quota. Without a region there is nothing to hold it
        against."""
        if endpoint.region is not None:
            endpoint.region.heed(
                remaining_tokens=remaining_tokens,
                remaining_requests=remaining_requests,
                reset=reset,
                retry_after=retry_after,
                now=now,
            )

    def ejections(self) -> list[tuple[Endpoint, float]]:
        """Endpoints ejected since this was last asked (at most the latest 1,000), and for how many seconds."""
        news = list(self._health.ejections)
        self._health.ejections.clear()
        return news

    def _reload(self, now: float) -> Reload:
        return Reload(self.services, self.regions, self._leaving, self._health, self._rng, now)

    def _version(self, service: str, name: str) -> Version:
        for version in self.services[service].versions:
            if version.name == name:
                return version
        raise KeyError(name)
