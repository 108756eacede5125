"""From the file's models to the core's plain values."""

from __future__ import annotations

from collections.abc import Mapping

from unjam.config import services as s
from unjam.config.engines import ENGINES, Names
from unjam.core import spec


def topology(services: Mapping[str, s.Service], regions: Mapping[str, s.Region]) -> spec.Topology:
    fallbacks = fallback_names(services)
    return spec.Topology(
        services={name: service_spec(name, service, name in fallbacks) for name, service in services.items()},
        regions={
            name: spec.RegionSpec(name, region.tokens_per_minute, region.requests_per_minute, region.burst)
            for name, region in regions.items()
        },
    )


def fallback_names(services: Mapping[str, s.Service]) -> frozenset[str]:
    """The services that others fall back to."""
    return frozenset(
        step.service for service in services.values() for step in service.fallback if step.service is not None
    )


def service_spec(name: str, service: s.Service, is_fallback: bool) -> spec.ServiceSpec:
    return spec.ServiceSpec(
        name=name,
        versions=tuple(_version(version_name, version) for version_name, version in service.versions.items()),
        match=matches(service, is_fallback),
        policy=service.policy,
        lanes=spec.LanesSpec(
            up_to=service.lanes.fast.up_to,
            share=service.lanes.heavy.share,
            fast=_timeouts(service.lanes.fast),
            heavy=_timeouts(service.lanes.heavy),
        ),
        queue=spec.QueueSpec(service.queue.max, service.queue.timeout, service.queue.tenant_share),
        session=_session(service.session),
        sticky=service.sticky,
        breaker=service.breaker.to_spec(),
        quality=None if service.quality is None else spec.QualitySpec(service.quality.error_rate),
        ejection=spec.EjectionSpec(
            service.ejection.failures, service.ejection.base, service.ejection.max, service.ejection.panic
        ),
        warm_up=spec.WarmUpSpec(service.warm_up.window, service.warm_up.aggression, service.warm_up.least),
        retry=spec.RetrySpec(service.retry.attempts, service.retry.budget, service.retry.floor, service.retry.answers),
        health=_health(service.health),
        load=_load(service.load),
        rollout=_rollout(service),
        split=tuple(
            spec.SplitSpec(dict(rule.weights), rule.lane, rule.tenant, dict(rule.header)) for rule in service.split
        ),
        fallback=tuple(_step(step) for step in service.fallback),
        strip_prefix=service.strip_prefix,
        inspect="body" if any(match.model for match in service.match or ()) else service.inspect,
        dialect=service.dialect,
    )


def matches(service: s.Service, is_fallback: bool) -> tuple[spec.MatchSpec, ...]:
    """Without `match` a service takes every request, unless it is only there to be fallen back to, or for runs that
    workers claim: it has no endpoints then."""
    if service.match is None:
        return () if is_fallback or only_runs(service) else (spec.MatchSpec(),)
    return tuple(
        spec.MatchSpec(
            # "/" is a prefix of everything, as no path is.
            path=None if match.path == "/" else match.path,
            host=match.host,
            headers=dict(match.header),
            model=match.model,
        )
        for match in service.match
    )


def only_runs(service: s.Service) -> bool:
    """Workers claim its runs, and it has nothing else."""
    return service.runs.pulled and not any(
        version.endpoints or version.discover for version in service.versions.values()
    )


def _version(name: str, version: s.Version) -> spec.VersionSpec:
    return spec.VersionSpec(
        name=name,
        weight=version.weight,
        overflow=None if version.overflow is None else spec.OverflowSpec(version.overflow.to, version.overflow.after),
        endpoints=tuple(
            spec.EndpointSpec(
                url=endpoint.url,
                cores=endpoint.cores,
                memory=endpoint.memory,
                slots=endpoint.slots,
                region=endpoint.region,
                weight=endpoint.weight,
            )
            for endpoint in version.endpoints
        ),
    )


def _rollout(service: s.Service) -> spec.RolloutSpec | None:
    given = service.rollout
    if given is None:
        return None
    version = list(service.versions)[-1] if given.version is None else given.version
    return spec.RolloutSpec(version, given.steps, given.hold, given.min_requests)


def _timeouts(lane: s.FastLane | s.HeavyLane) -> spec.Timeouts:
    return spec.Timeouts(
        connect=lane.connect,
        first_byte=lane.timeout if lane.first_byte is None else lane.first_byte,
        idle=lane.timeout if lane.idle is None else lane.idle,
        total=lane.timeout,
    )


def _session(session: s.Session | None) -> spec.SessionSpec | None:
    if session is None:
        return None
    return spec.SessionSpec(session.header, session.cookie, session.ttl, session.bound)


def _health(health: s.Health | None) -> spec.HealthSpec | None:
    if health is None:
        return None
    return spec.HealthSpec(health.path, health.interval, health.timeout, health.unhealthy_after, health.healthy_after)


def _load(load: s.Load) -> spec.LoadSpec:
    agent = load.agent_check
    return spec.LoadSpec(
        load.headers,
        None if load.metrics is None else _metrics(load.metrics),
        None if agent is None else spec.AgentCheckSpec(agent.port, agent.interval, agent.send or ""),
    )


def _metrics(metrics: s.Metrics) -> spec.MetricsSpec:
    """The engine's names, or what is given in place of them."""
    names = ENGINES[metrics.engine] if metrics.engine is not None else Names((), ())
    return spec.MetricsSpec(
        path=metrics.path,
        running=(metrics.running,) if metrics.running else names.running,
        waiting=(metrics.waiting,) if metrics.waiting else names.waiting,
        cache=(metrics.cache,) if metrics.cache else names.cache,
        slots=(metrics.slots,) if metrics.slots else (),
        interval=metrics.interval,
    )


def _step(step: s.FallbackStep) -> str | spec.Maintenance:
    if step.service is not None:
        return step.service
    return spec.Maintenance(step.maintenance or "", step.status, step.retry_after)
