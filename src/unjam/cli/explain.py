"""A configuration in words: what `unjam check` prints."""

from __future__ import annotations

from collections.abc import Iterator

from unjam.config import Config
from unjam.config.quantities import format_count, format_duration, format_share, format_size
from unjam.config.runs import ServiceRuns
from unjam.config.schema import Listen, Reporters
from unjam.config.topology import only_runs
from unjam.core import lanes
from unjam.core.spec import (
    UNSIZED_SLOTS,
    BreakerSpec,
    EndpointSpec,
    Maintenance,
    MatchSpec,
    ServiceSpec,
    Timeouts,
    Topology,
    VersionSpec,
)

_LABEL = 12


def explain(config: Config) -> Iterator[str]:
    topology = config.topology()
    endpoints = sum(len(version.endpoints) for spec in topology.services.values() for version in spec.versions)
    services = len(topology.services)
    open_ended = any(
        version.discover is not None for service in config.services.values() for version in service.versions.values()
    )
    yield (
        f"{config.name or 'The configuration'} is valid: {services} service{_s(services)}, "
        f"{endpoints} endpoint{_s(endpoints)}{', and reporters may add more' if open_ended else ''}."
    )
    yield ""
    yield from _gateway(config)
    for spec in topology.services.values():
        yield ""
        yield from _service(config, topology, spec)
    if topology.regions:
        yield ""
        yield "regions"
        for region in topology.regions.values():
            tokens = _rate(region.tokens_per_minute, "tokens")
            requests = _rate(region.requests_per_minute, "requests")
            yield _line(region.name, f"{tokens}, {requests}; {format_duration(region.burst)} of it at once")


def _runs(runs: ServiceRuns) -> str:
    """How the durable runs of a service are executed."""
    who = "pushed to its endpoints" if runs.execute == "push" else "claimed by workers"
    lost = "tried again" if runs.retry == "restart" else "failed"
    return (
        f"{who}, at most {runs.max_attempts} times, within {format_duration(runs.timeout)}; "
        f"{lost} when a worker is lost that has shown output and saved no checkpoint"
    )


def _gateway(config: Config) -> Iterator[str]:
    limits = config.limits
    yield _line("listens on", ", ".join(_listen(listen) for listen in config.listen), 0)
    admin = config.admin
    guarded = "" if admin is None else ", with a token" if admin.token else ", this machine only"
    yield _line("admin", f"{admin.listen}{guarded}" if admin else "off", 0)
    if config.reporters is not None:
        yield _line("reporters", _reporters(config.reporters), 0)
    yield _line(
        "clients",
        f"at most {format_count(limits.max_connections)} connections; headers up to "
        f"{format_size(limits.max_header_bytes)} within {format_duration(limits.header_timeout)}, "
        f"bodies up to {format_size(limits.max_body)}",
        0,
    )
    tenants = len({key.tenant for key in config.keys})
    keys = (
        f"{len(config.keys)} for {tenants} tenant{_s(tenants)}; every request needs one"
        if config.keys
        else "none asked for"
    )
    yield _line("API keys", keys, 0)
    yield _line(
        "access log", f"{config.access_log.to}, {config.access_log.format}" if config.access_log.enabled else "off", 0
    )
    if config.runs is not None:
        kept = {"memory": "in memory", "sqlite": f"in {config.state.path}", "redis": "in Redis"}[config.state.kind]
        yield _line(
            "runs",
            f"kept {kept}, {format_duration(config.runs.keep)} after their end; "
            f"at most {format_count(config.runs.max_queued)} of a service wait",
            0,
        )
    yield _line("on SIGTERM", f"what runs has {format_duration(config.drain_timeout)} to finish", 0)


def _service(config: Config, topology: Topology, spec: ServiceSpec) -> Iterator[str]:
    only = only_runs(config.services[spec.name]) and not spec.match
    yield f"{spec.name}: takes {'runs alone, which workers claim' if only else takes(spec)}"
    if spec.strip_prefix:
        yield _line("forwards", "the path without the matched prefix")
    weights = sum(version.weight for version in spec.versions)
    for version in spec.versions:
        share = version.weight / weights if weights else 0.0
        yield _line("version", f"{version.name}, {format_percent(share)} of the traffic")
        yield from _endpoints(spec, version)
        discover = config.services[spec.name].versions[version.name].discover
        if discover is not None:
            where = "" if discover.networks is None else f" in {', '.join(map(str, discover.networks))}"
            yield _line("", f"  and those that reporters add{where}")
    sticky = {"session": "its session", "tenant": "its tenant"}.get(spec.sticky or "", f"header {spec.sticky}")
    if len(spec.versions) > 1:
        yield _line(
            "", "each request by weight" if spec.sticky is None else f"a caller stays on its version, by {sticky}"
        )
    yield _line("policy", spec.policy)
    runs = config.services[spec.name].runs
    if config.runs is not None:
        yield _line("runs", _runs(runs) if runs.enabled else "none")
    if spec.session is not None:
        source = f"header {spec.session.header}" if spec.session.header else f"cookie {spec.session.cookie}"
        yield _line(
            "session",
            f"{source} meets the same endpoint, for {format_duration(spec.session.ttl)} after its last request",
        )
    yield from lane_lines(spec)
    queue = spec.queue
    yield _line(
        "queue",
        f"{format_count(queue.max)} requests wait at most, {format_duration(queue.timeout)} each; one tenant up to "
        f"{format_share(queue.tenant_share)}"
        if queue.max
        else "none: a request that finds no slot is refused",
    )
    yield _line("breaker", _breaker(spec))
    yield _line("fallback", _fallback(spec))
    yield _line("retries", _retries(spec))
    yield _line("health", _health(spec))
    origins = config.origins(spec.name)
    if origins is not None:
        yield _line("websocket", f"browsers from {', '.join(origins)} only" if origins else "no browsers")
    if spec.inspect == "body":
        yield _line("reads", f"model and max_tokens from JSON bodies up to {format_size(config.limits.max_inspect)}")


def _reporters(reporters: Reporters) -> str:
    tls = " (TLS)" if reporters.tls is not None else ""
    return (
        f"{reporters.listen}{tls}, with a token; an endpoint they added gets nothing after "
        f"{format_duration(reporters.expire)} of silence"
    )


def _endpoints(spec: ServiceSpec, version: VersionSpec) -> Iterator[str]:
    if not version.endpoints:
        return
    pooled = all(endpoint.hard_slots <= lanes.FEW for endpoint in version.endpoints)
    for endpoint in version.endpoints:
        known = endpoint.hard_slots != UNSIZED_SLOTS and not pooled
        heavy = f", {lanes.cap(spec.lanes.share, endpoint.hard_slots)} of them for heavy work" if known else ""
        region = f", region {endpoint.region}" if endpoint.region else ""
        weight = f", weight {endpoint.weight:g}" if endpoint.weight != 1 else ""
        yield _line("", f"  {endpoint.url}: {slots(endpoint)}{heavy}{weight}{region}")
    if pooled:
        total = sum(endpoint.hard_slots for endpoint in version.endpoints)
        yield _line("", f"  heavy work holds at most {lanes.cap(spec.lanes.share, total)} of these {total} slots")


def slots(endpoint: EndpointSpec) -> str:
    """How many requests an endpoint may run, and why that many."""
    number = endpoint.hard_slots
    word = f"{number} slot{_s(number)}"
    if endpoint.slots is not None:
        return word
    if endpoint.cores:
        return f"{word} (2 × {endpoint.cores:g} cores)"
    return "any number of slots (neither slots nor cores are given, so unjam spreads work and none waits)"


def lane_lines(spec: ServiceSpec) -> Iterator[str]:
    both = spec.lanes
    yield _line("fast lane", f"expected to end within {format_duration(both.up_to)}; {timeouts(both.fast)}")
    yield _line("heavy lane", f"up to {format_share(both.share)} of the slots; {timeouts(both.heavy)}")


def timeouts(limits: Timeouts) -> str:
    parts = [f"connect {format_duration(limits.connect)}"]
    if limits.first_byte != limits.total:
        parts.append(f"first byte {format_duration(limits.first_byte)}")
    if limits.idle != limits.total:
        parts.append(f"silence {format_duration(limits.idle)}")
    return ", ".join([*parts, f"in all {format_duration(limits.total)}"])


def takes(spec: ServiceSpec) -> str:
    if not spec.match:
        return "nothing by itself, only what other services fall back on"
    return ", or ".join(describe(match) for match in spec.match)


def describe(match: MatchSpec) -> str:
    """One match in words."""
    parts = []
    if match.host:
        parts.append(f"host {match.host}")
    if match.path:
        parts.append(f"path {match.path}")
    for name, value in match.headers.items():
        parts.append(f"header {name}" if value == "*" else f"header {name}: {value}")
    if match.model:
        parts.append(f"model {match.model}")
    return " and ".join(parts) or "every request that no other service takes"


def format_percent(share: float) -> str:
    return f"{share * 100:.3g}%"


def _breaker(spec: ServiceSpec) -> str:
    if not spec.breaker.enabled:
        return "off"
    return f"trips on {_rule(spec.breaker)}; {format_duration(spec.breaker.open)} out, then back in steps"


def _rule(spec: BreakerSpec) -> str:
    if spec.rule == "window":
        return f"more than {format_share(spec.error_rate)} errors among the last {spec.window} calls"
    return f"evidence of more than {format_share(spec.error_rate)} errors"


def _fallback(spec: ServiceSpec) -> str:
    if not spec.fallback:
        return "none: callers get 503 while every version is out"
    steps = []
    for step in spec.fallback:
        if isinstance(step, Maintenance):
            message = " ".join(step.message.split())
            steps.append(f"{step.status} “{message}”")
        else:
            steps.append(step)
    return ", then ".join(steps)


def _retries(spec: ServiceSpec) -> str:
    if not spec.retry.attempts:
        return "off"
    return (
        f"{spec.retry.attempts} on other endpoints before the first byte, at most "
        f"{format_share(spec.retry.budget)} of all requests"
    )


def _health(spec: ServiceSpec) -> str:
    passive = f"out after {spec.ejection.failures} failures in a row, {format_duration(spec.ejection.base)} and growing"
    if spec.health is None:
        return passive
    return f"GET {spec.health.path} every {format_duration(spec.health.interval)}; {passive}"


def _listen(listen: Listen) -> str:
    return f"{listen.address} (TLS)" if listen.cert else str(listen.address)


def _rate(rate: float | None, what: str) -> str:
    return f"any number of {what}" if rate is None else f"{format_count(int(rate))} {what} a minute"


def _line(label: str, text: str, indent: int = 2) -> str:
    return f"{' ' * indent}{label:<{_LABEL}}{' ' if len(label) >= _LABEL else ''}{text}"


def _s(number: int) -> str:
    return "" if number == 1 else "s"
