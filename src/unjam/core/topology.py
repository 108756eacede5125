"""From one configuration to the next without losing what runs: services, versions and endpoints are matched by name and
URL; those that stay keep their leases, health, history, breakers and sessions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from unjam.core.endpoint import AMPLE, Endpoint
from unjam.core.lanes import FEW, add_slots, recap, set_caps
from unjam.core.load import READY
from unjam.core.model import Refusal
from unjam.core.policies import POLICIES
from unjam.core.pool import Pool
from unjam.core.quota import Region
from unjam.core.refusals import no_endpoint
from unjam.core.service import Service, Version
from unjam.core.spec import EndpointSpec, Maintenance, ServiceSpec, Topology, VersionSpec

if TYPE_CHECKING:
    from unjam.core.health import Health
    from unjam.core.policies.base import Rng


@dataclass(slots=True)
class Applied:
    """What a new topology changed. Removed endpoints finish what they run; `refused_tickets`: what waited for a service
    that is gone. What waited for a version that is gone moves at the next tick, and so does what newly fits."""

    added: list[Endpoint] = field(default_factory=list)
    removed: list[Endpoint] = field(default_factory=list)
    refused_tickets: list[Refusal] = field(default_factory=list)


def validate(topology: Topology) -> None:
    """Raises ValueError for what would break an invariant; nothing has been changed then."""
    for key, spec in topology.services.items():
        where = f"service {key!r}"
        if spec.name != key:
            raise ValueError(f"{where}: its specification is named {spec.name!r}")
        if spec.policy not in POLICIES:
            raise ValueError(f"{where}: unknown policy {spec.policy!r}; there are {', '.join(sorted(POLICIES))}")
        names = [version.name for version in spec.versions]
        if len(set(names)) != len(names):
            raise ValueError(f"{where}: a version's name is given twice")
        for version in spec.versions:
            urls = [endpoint.url for endpoint in version.endpoints]
            if len(set(urls)) != len(urls):
                raise ValueError(f"{where}, version {version.name!r}: an endpoint's URL is given twice")
            for endpoint in version.endpoints:
                if endpoint.region is not None and endpoint.region not in topology.regions:
                    raise ValueError(f"{where}: endpoint {endpoint.url} is in an unknown region {endpoint.region!r}")
                if endpoint.hard_slots < 1 or endpoint.capacity <= 0.0 or endpoint.weight < 0.0:
                    raise ValueError(
                        f"{where}: endpoint {endpoint.url} needs slots, cores above 0 and a weight not below"
                    )
        for i, step in enumerate(spec.fallback):
            if isinstance(step, Maintenance):
                if i + 1 < len(spec.fallback):
                    raise ValueError(f"{where}: nothing can follow maintenance in its fallback")
            elif step not in topology.services:
                raise ValueError(f"{where}: falls back on an unknown service {step!r}")
    for name in topology.services:
        _chain(topology, name, ())


def _chain(topology: Topology, name: str, above: tuple[str, ...]) -> tuple[list[str], Maintenance | None]:
    """The services `name` falls back on, depth first, and the message at the end of it all: its own, or the first
    met."""
    if name in above:
        raise ValueError(f"service {name!r}: its fallback loops: {' → '.join((*above, name))}")
    services: list[str] = []
    own: Maintenance | None = None
    inherited: Maintenance | None = None
    for step in topology.services[name].fallback:
        if isinstance(step, Maintenance):
            own = step
            continue
        further, end = _chain(topology, step, (*above, name))
        services.extend(other for other in (step, *further) if other not in services)
        inherited = inherited or end
    return services, own or inherited


class Reload:
    """One application of a topology to the books of a balancer."""

    def __init__(
        self,
        services: dict[str, Service],
        regions: dict[str, Region],
        leaving: list[Service],
        health: Health,
        rng: Rng,
        now: float,
    ) -> None:
        self.services = services
        self.regions = regions
        self.leaving = leaving
        self.health = health
        self.rng = rng
        self.now = now
        self.applied = Applied()

    def run(self, topology: Topology) -> Applied:
        validate(topology)
        self._regions(topology)
        for name in [name for name in self.services if name not in topology.services]:
            self._remove_service(self.services.pop(name))
        fresh: dict[str, Service] = {}
        for name, spec in topology.services.items():
            service = self.services.get(name)
            if service is None:
                service = Service(spec)
            else:
                self._reconfigure(service, spec)
            fresh[name] = service
        # In the order of the configuration, in the same dict: others hold it.
        self.services.clear()
        self.services.update(fresh)
        for name, service in fresh.items():
            chain, service.maintenance = _chain(topology, name, ())
            service.chain = tuple(fresh[other] for other in chain)
        for service in fresh.values():
            self._versions(service)
        for name in [name for name in self.regions if name not in topology.regions]:
            del self.regions[name]
        return self.applied

    def _regions(self, topology: Topology) -> None:
        for name, spec in topology.regions.items():
            region = self.regions.get(name)
            if region is None:
                self.regions[name] = Region(spec)
            else:
                region.configure(spec, self.now)

    def _reconfigure(self, service: Service, spec: ServiceSpec) -> None:
        old, service.spec = service.spec, spec
        if spec.lanes.up_to != old.lanes.up_to:
            service.estimator.set_boundary(spec.lanes.up_to)
        service.retry.spec = spec.retry
        if spec.session is None:
            service.sessions = None
        elif service.sessions is None:
            service.open_sessions()
        else:
            service.sessions.ttl = spec.session.ttl
        if spec.split != old.split:
            service.split_up()
        weights = {version.name: version.weight for version in old.versions}
        for version in service.versions:
            version.breaker.configure(spec.breaker)
            version.breaker.judge_quality(spec.quality)
            for new in spec.versions:
                # A weight that the file didn't change may have been changed by hand since.
                if new.name == version.name and new.weight != weights.get(new.name):
                    version.weight = new.weight
                    version.evict = version.evict or not version.weight
        if spec.policy != old.policy or spec.session != old.session:
            for version in service.versions:
                for i, pool in enumerate(version.pools):
                    version.pools[i] = self._rebuilt(version, pool)

    def _rebuilt(self, version: Version, old: Pool) -> Pool:
        pool = Pool(version, old.region, self.rng)
        for endpoint in list(old.endpoints):
            old.remove(endpoint)
            pool.add(endpoint)
        return pool

    def _versions(self, service: Service) -> None:
        kept = {version.name: version for version in service.versions}
        service.versions = []
        for spec in service.spec.versions:
            version = kept.pop(spec.name, None)
            fresh = version is None
            if version is None:
                version = Version(spec.name, service, spec.weight)
            version.overflow = spec.overflow
            service.versions.append(version)
            self._endpoints(version, spec, fresh)
        for version in kept.values():
            self._remove_version(version)
        if service.departed:
            service.fold()
        for version in service.versions:
            set_caps(version)
            self.health.settle_all(version, self.now)
        service.reweigh(self.now)

    def join(self, version: Version, spec: EndpointSpec) -> Endpoint:
        """One more endpoint, of an announcement instead of the configuration. Raises KeyError, ValueError."""
        if spec.url in version.endpoints:
            raise ValueError(f"version {version.name!r} has an endpoint {spec.url} already")
        endpoint = self._add(version, spec, fresh=False)
        endpoint.discovered = True
        self._tidy(version)
        recap(version, endpoint)
        version.service.reweigh(self.now)
        return endpoint

    def leave(self, endpoint: Endpoint) -> None:
        """Take one endpoint away; what runs on it may end."""
        version = endpoint.pool.version
        if version.endpoints.pop(endpoint.url, None) is None:
            return
        version.large -= endpoint.slots > FEW
        self._remove_endpoint(endpoint)
        self._tidy(version)
        if version.barred:
            set_caps(version)
        else:
            recap(version, endpoint)
        version.service.reweigh(self.now)

    def _endpoints(self, version: Version, spec: VersionSpec, fresh: bool) -> None:
        old = version.endpoints
        version.endpoints = {}
        for endpoint_spec in spec.endpoints:
            endpoint = old.pop(endpoint_spec.url, None)
            if endpoint is not None:
                version.endpoints[endpoint.url] = endpoint
                self._resize(endpoint, endpoint_spec, self._pool(version, endpoint_spec))
            else:
                self.applied.added.append(self._add(version, endpoint_spec, fresh))
        for endpoint in old.values():
            self._remove_endpoint(endpoint)
        self._tidy(version)

    def _add(self, version: Version, spec: EndpointSpec, fresh: bool) -> Endpoint:
        """Make a new endpoint, or take back one that was removed and on which something still runs."""
        pool = self._pool(version, spec)
        endpoint = version.leaving.pop(spec.url, None)
        if endpoint is None:
            endpoint = Endpoint(spec, pool, pool.region)
        else:
            endpoint.configure(spec)
            endpoint.removed = endpoint.draining = endpoint.drained = endpoint.silent = False
            endpoint.load_state = READY
            endpoint.barred = endpoint.choked = False
            endpoint.room = AMPLE
        version.endpoints[endpoint.url] = endpoint
        version.large += endpoint.slots > FEW
        pool.add(endpoint)
        self.health.joined(endpoint, self.now, warm_up=not fresh)
        if endpoint.heard is not None:
            self.health.back(endpoint, self.now)
        return endpoint

    def _pool(self, version: Version, spec: EndpointSpec) -> Pool:
        """Where an endpoint of the version belongs. Raises KeyError for an unknown region."""
        region = self.regions[spec.region] if spec.region is not None else None
        pool = version.pool_of(region)
        if pool is None:
            pool = Pool(version, region, self.rng)
            version.pools.append(pool)
        return pool

    def _tidy(self, version: Version) -> None:
        """Endpoints came or went: let go of pools and leaving endpoints that are empty."""
        version.pools = [pool for pool in version.pools if pool.endpoints]
        only = version.pools[0] if len(version.pools) == 1 else None
        version.sole = only if only is not None and only.region is None else None
        version.leaving = {url: e for url, e in version.leaving.items() if e.inflight}

    def _resize(self, endpoint: Endpoint, spec: EndpointSpec, pool: Pool) -> None:
        version = pool.version
        if endpoint.given != spec:
            was_member = endpoint.spec.weight > 0.0 and not endpoint.draining
            before = endpoint.slots
            endpoint.configure(spec)
            if endpoint.usable:
                add_slots(version, endpoint.slots - before)
            version.members += (spec.weight > 0.0 and not endpoint.draining) - was_member
        if endpoint.pool is not pool:
            endpoint.pool.remove(endpoint)
            pool.add(endpoint)
        self.health.changed(endpoint, self.now)

    def _remove_endpoint(self, endpoint: Endpoint) -> None:
        version = endpoint.pool.version
        self.health.left(endpoint, self.now)
        endpoint.pool.remove(endpoint)
        if version.service.sessions is not None:
            version.service.sessions.forget(endpoint)
        if endpoint.inflight:
            version.leaving[endpoint.url] = endpoint
        self.applied.removed.append(endpoint)

    def _remove_version(self, version: Version) -> None:
        version.removed = version.evict = True
        version.service.departed.append(version)
        version.weight = 0.0
        for endpoint in list(version.endpoints.values()):
            self._remove_endpoint(endpoint)
        version.endpoints = {}
        if version.queue:
            version.service.parting.append(version)

    def _remove_service(self, service: Service) -> None:
        service.removed = True
        for version in (*service.versions, *service.parting):
            for ticket in version.queue.tickets():
                version.queue.drop(ticket)
                service.waiting.remove(ticket.request.tenant)
                self.applied.refused_tickets.append(no_endpoint(ticket.request, service, self.now))
            self._remove_version(version)
        if service.live:
            self.leaving.append(service)
