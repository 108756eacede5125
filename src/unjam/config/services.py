"""The keys below `services` and `regions`. Defaults are those of `unjam.core.spec`, read from there."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainValidator, model_validator

from unjam.config.breakers import Breaker
from unjam.config.engines import ENGINES
from unjam.config.quality import Quality
from unjam.config.quantities import BadValue
from unjam.config.runs import ServiceRuns
from unjam.config.types import (
    AtLeastOne,
    CheckPath,
    CookieName,
    Cores,
    Count,
    Duration,
    FieldName,
    FieldValue,
    FilePath,
    HostPattern,
    Kind,
    MetricName,
    Model,
    Name,
    NetworkItem,
    Number,
    Origin,
    PathPrefix,
    Port,
    PositiveCount,
    PositiveDuration,
    PositiveNumber,
    PositiveShare,
    PositiveSize,
    ServerName,
    Share,
    Slots,
    Switch,
    Text,
    Url,
    field_name,
    one_of,
    one_or_list,
)
from unjam.config.versions import Overflow, Rollout, SplitRule
from unjam.core import spec
from unjam.core.policies import POLICIES

_LANES = spec.LanesSpec()
_QUEUE = spec.QueueSpec()
_SESSION = spec.SessionSpec()
_EJECTION = spec.EjectionSpec()
_WARM_UP = spec.WarmUpSpec()
_RETRY = spec.RetrySpec()
_HEALTH = spec.HealthSpec("/")
_METRICS = spec.MetricsSpec()
_AGENT_CHECK = spec.AgentCheckSpec(0)
_REGION = spec.RegionSpec("")
_MAINTENANCE = spec.Maintenance("")


def _is_off(value: object) -> bool:
    return value is False or (isinstance(value, str) and value.lower() in ("off", "false", "no"))


def _is_on(value: object) -> bool:
    return value is True or (isinstance(value, str) and value.lower() in ("on", "true", "yes"))


def off_means(meaning: Any) -> BeforeValidator:
    """Stands last in an annotation: pydantic runs the last one first."""
    return BeforeValidator(lambda value: meaning if _is_off(value) else value)


def short_for(key: str) -> BeforeValidator:
    """Text in place of a mapping is the value of `key`."""
    return BeforeValidator(lambda value: {key: value} if isinstance(value, str | int | float) else value)


def on_means(meaning: Any) -> BeforeValidator:
    return BeforeValidator(lambda value: meaning if _is_on(value) else value)


class Match(Model):
    """Which requests a service takes: all that is given must hold. The most specific service wins."""

    path: PathPrefix | None = Field(None, description="Prefix of the path, on segment boundaries.")
    host: HostPattern | None = Field(None, description="Host asked for; `*.` in front takes every name below.")
    header: dict[FieldName, FieldValue] = Field({}, description="Headers and their exact values; `*`: present.")
    model: Text | None = Field(None, description="`model` of a JSON body; implies `inspect: body`.")


class FastLane(Model):
    """Work that is expected to end soon."""

    up_to: PositiveDuration = Field(_LANES.up_to, description="Work expected to take longer is heavy.")
    connect: PositiveDuration = Field(_LANES.fast.connect, description="To reach the endpoint.")
    first_byte: PositiveDuration | None = Field(
        None, description="To the first byte of the answer. `timeout` if unset."
    )
    idle: PositiveDuration | None = Field(None, description="Longest silence within an answer. `timeout` if unset.")
    timeout: PositiveDuration = Field(_LANES.fast.total, description="The whole exchange.")

    @model_validator(mode="after")
    def _in_order(self) -> FastLane:
        _timeouts_in_order(self)
        return self


class HeavyLane(Model):
    """Work that is expected to take long, kept from filling every slot."""

    share: PositiveShare = Field(_LANES.share, description="Most of the slots that heavy work may hold.")
    connect: PositiveDuration = Field(_LANES.heavy.connect, description="To reach the endpoint.")
    first_byte: PositiveDuration | None = Field(
        None, description="To the first byte of the answer. `timeout` if unset."
    )
    idle: PositiveDuration | None = Field(None, description="Longest silence within an answer. `timeout` if unset.")
    timeout: PositiveDuration = Field(_LANES.heavy.total, description="The whole exchange.")

    @model_validator(mode="after")
    def _in_order(self) -> HeavyLane:
        _timeouts_in_order(self)
        return self


def _timeouts_in_order(lane: FastLane | HeavyLane) -> None:
    for key in ("connect", "first_byte", "idle"):
        value = getattr(lane, key)
        if value is not None and value > lane.timeout:
            raise BadValue(
                f"{key} is longer than timeout, so it would never be reached", f"Raise timeout or lower {key}."
            )


class Lanes(Model):
    fast: FastLane = Field(FastLane(), description="Work expected to end within `up_to`.")
    heavy: HeavyLane = Field(HeavyLane(), description="All other work.")


class Queue(Model):
    """Waiting in the gateway for a free slot."""

    max: Count = Field(_QUEUE.max, description="Most requests of this service that wait. 0: none waits.")
    timeout: PositiveDuration = Field(_QUEUE.timeout, description="Longest wait of one request.")
    tenant_share: PositiveShare = Field(
        _QUEUE.tenant_share, description="Most of the places that one tenant may hold while others wait."
    )


class Session(Model):
    """Requests of one session meet the same endpoint."""

    header: FieldName | None = Field(None, description="Header that names the session. Give this or `cookie`.")
    cookie: CookieName | None = Field(None, description="Cookie that names the session.")
    ttl: PositiveDuration = Field(_SESSION.ttl, description="Remembered for so long after its last request.")
    bound: AtLeastOne = Field(
        _SESSION.bound, description="Placed elsewhere when its first choice has more than this times the mean load."
    )

    @model_validator(mode="after")
    def _one_source(self) -> Session:
        if (self.header is None) == (self.cookie is None):
            raise BadValue("needs one source of the session key", "Give header: or cookie:, one of the two.")
        return self


class Ejection(Model):
    """Takes one endpoint out of traffic after failures in a row."""

    failures: PositiveCount = Field(_EJECTION.failures, description="Failures in a row that eject it.")
    base: PositiveDuration = Field(_EJECTION.base, description="First time out; grows with each ejection.")
    max: PositiveDuration = Field(_EJECTION.max, description="Longest time out.")
    panic: Share = Field(_EJECTION.panic, description="With fewer than this healthy, all are used.")

    @model_validator(mode="after")
    def _in_order(self) -> Ejection:
        if self.max < self.base:
            raise BadValue("max is shorter than base", "Raise max or lower base.")
        return self


class WarmUp(Model):
    """A new endpoint gets its full share over `window`."""

    window: Duration = Field(
        _WARM_UP.window, description="Time to full share. 0: at once. `warm_up: 30s` is short for it."
    )
    aggression: PositiveNumber = Field(_WARM_UP.aggression, description="1: linear; larger: steeper at first.")
    least: PositiveShare = Field(_WARM_UP.least, description="Share at the start.")


class Retry(Model):
    """Tries on another endpoint, only before the first byte of the answer."""

    attempts: Count = Field(_RETRY.attempts, description="More tries of one request. `retry: off` is short for 0.")
    budget: Share = Field(_RETRY.budget, description="Most retries as a share of all requests.")
    floor: Number = Field(_RETRY.floor, description="Retries per second that are always allowed.")
    answers: Annotated[str, one_of("probes", "always", "never"), Kind("probes, always or never")] = Field(
        _RETRY.answers,
        description="Whose failing answers another version or the fallback replaces: `probes`: of a version whose "
        "breaker isn't closed, `always`: anyone's, `never`: nobody's.",
    )

    @model_validator(mode="after")
    def _bounded(self) -> Retry:
        if self.attempts > 10:
            raise BadValue("attempts above 10 multiply an outage", "Give at most 10.")
        return self


class Health(Model):
    """Asks each endpoint whether it is well."""

    path: CheckPath = Field(description="Path to GET; 2xx and 3xx are healthy. `health: /healthz` is short for it.")
    interval: PositiveDuration = Field(_HEALTH.interval, description="Time between checks.")
    timeout: PositiveDuration = Field(_HEALTH.timeout, description="Time for an answer.")
    unhealthy_after: PositiveCount = Field(_HEALTH.unhealthy_after, description="Failed checks in a row.")
    healthy_after: PositiveCount = Field(_HEALTH.healthy_after, description="Good checks in a row.")


class Metrics(Model):
    """Reads each endpoint's Prometheus page."""

    path: CheckPath = Field(_METRICS.path, description="Path to GET; the page may have 4 MiB.")
    engine: Annotated[str, one_of(*ENGINES), Kind("vllm, sglang or tgi")] | None = Field(
        None, description="Whose names to look for. `metrics: vllm` is short for it."
    )
    running: MetricName | None = Field(None, description="Gauge of the requests worked on, in place of the engine's.")
    waiting: MetricName | None = Field(None, description="Gauge of the requests that wait.")
    cache: MetricName | None = Field(None, description="Gauge of the share of a cache in use, 0 to 1.")
    slots: MetricName | None = Field(None, description="Gauge of the requests that may run at once.")
    interval: PositiveDuration = Field(_METRICS.interval, description="Time between readings, and for an answer.")

    @model_validator(mode="after")
    def _some_name(self) -> Metrics:
        if not any((self.engine, self.running, self.waiting, self.cache, self.slots)):
            raise BadValue(
                "names no metric to read", "Write metrics: vllm (or sglang, tgi), or metrics: {running: NAME}."
            )
        return self


class AgentCheck(Model):
    """Asks a program beside each endpoint that speaks HAProxy's agent-check."""

    port: Port = Field(description="Its port, on the endpoint's host. `agent_check: 9100` is short for it.")
    interval: PositiveDuration = Field(_AGENT_CHECK.interval, description="Time between questions, and for an answer.")
    send: Text | None = Field(None, description="A line to send first.")


class Load(Model):
    """Where the gateway learns how busy the endpoints are, beside their reporters. `load: off`: nowhere."""

    headers: Switch = Field(True, description="From `endpoint-load-metrics` in their answers.")
    metrics: Annotated[Metrics | None, short_for("engine"), off_means(None)] = Field(
        None, description="From their Prometheus pages."
    )
    agent_check: Annotated[AgentCheck | None, short_for("port"), off_means(None)] = Field(
        None, description="From HAProxy agents beside them."
    )


def _maintenance_text(value: object) -> str:
    """May have several lines: it is only ever a body."""
    if not isinstance(value, str) or not value.strip():
        raise BadValue("needs a message for the callers", 'Write {maintenance: "We are back soon."}.')
    return value.strip()


def _maintenance_status(value: object) -> int:
    from unjam.config.quantities import count

    status = count(value)
    if status != 200 and not 400 <= status <= 599:
        raise BadValue(f"{status} is no status for it", "Give one from 400 to 599, of which 503 is usual; or 200.")
    return status


class FallbackStep(Model):
    """One step of a fallback chain: another service, or the message at the end."""

    service: Name | None = Field(None, description="Another service. Its bare name is short for it.")
    maintenance: Annotated[str, PlainValidator(_maintenance_text), Kind("text")] | None = Field(
        None, description="What callers read when nothing is left; last step only."
    )
    status: Annotated[int, PlainValidator(_maintenance_status), Kind("status")] = Field(
        _MAINTENANCE.status,
        description="Status of the maintenance answer: 400 to 599, or 200 for one that callers read like any other.",
    )
    retry_after: Duration = Field(_MAINTENANCE.retry_after, description="Its Retry-After.")

    @model_validator(mode="after")
    def _one_of_two(self) -> FallbackStep:
        if (self.service is None) == (self.maintenance is None):
            raise BadValue(
                "is neither a service nor a message", 'Write the name of a service, or {maintenance: "..."}.'
            )
        if self.service is not None and self.model_fields_set & {"status", "retry_after"}:
            raise BadValue("status and retry_after belong to maintenance", "Remove them here.")
        return self


class WebSocket(Model):
    origins: Annotated[tuple[Origin, ...], BeforeValidator(one_or_list)] | None = Field(
        None, description="Origins that browsers may connect from, `*` for all. Unset: any."
    )


class EndpointTls(Model):
    """TLS to https:// endpoints."""

    verify: Switch = Field(True, description="Check the endpoint's certificate.")
    ca: FilePath | None = Field(None, description="PEM file of authorities, in place of the system's.")
    server_name: ServerName | None = Field(None, description="Name to ask for and check, in place of the URL's host.")

    @model_validator(mode="after")
    def _of_use(self) -> EndpointTls:
        if not self.verify and self.ca is not None:
            raise BadValue("ca has no use with verify: false", "Remove one of the two.")
        return self


class Endpoint(Model):
    """One server process. A bare URL is short for `{url: ...}`."""

    url: Url = Field(description="http://host:port, https://host or unix:/path.")
    cores: Cores | None = Field(None, description="CPU cores it may use.")
    memory: PositiveSize | None = Field(None, description="Memory it may use.")
    slots: Slots | None = Field(
        None, description=f"Concurrent requests it may run. Unset: 2 × cores, or {spec.UNSIZED_SLOTS} without cores."
    )
    region: Name | None = Field(None, description="One of `regions`: whose quota its work uses.")
    weight: PositiveNumber = Field(1.0, description="Its share beside the others, for policies that use weights.")
    endpoint_tls: EndpointTls | None = Field(None, description="In place of the version's.")


EndpointItem = Annotated[Endpoint, short_for("url")]


class Discover(Model):
    """Reporters may add endpoints to the version."""

    networks: Annotated[tuple[NetworkItem, ...], BeforeValidator(one_or_list)] | None = Field(
        None,
        description="Endpoints must have an address in one of these. Unset: any host, but no link-local address.",
    )

    @model_validator(mode="after")
    def _some(self) -> Discover:
        if self.networks == ():
            raise BadValue("allows no address", "Name the networks of your servers, or write discover: true for any.")
        return self


class Version(Model):
    """One released variant of a service."""

    weight: Number = Field(1.0, description="Its share of the traffic beside the other versions. 0: none.")
    endpoints: Annotated[tuple[EndpointItem, ...], BeforeValidator(one_or_list)] = Field(
        (),
        description="Its servers. Required, unless reporters may add them (`discover`) or workers claim the service's "
        "runs.",
    )
    discover: Annotated[Discover | None, on_means({}), off_means(None)] = Field(
        None, description="Whether reporters may add endpoints: `true`, or in which networks."
    )
    endpoint_tls: EndpointTls | None = Field(None, description="TLS to its https:// endpoints.")
    overflow: Annotated[Overflow | None, short_for("to"), off_means(None)] = Field(
        None, description="Where its requests go when it has no free slot. Unset: they wait."
    )

    @model_validator(mode="after")
    def _some(self) -> Version:
        if not self.endpoints and self.discover is None and "endpoints" in self.model_fields_set:
            raise BadValue("has no endpoints", "List at least one URL, or let reporters add them: discover: true.")
        return self


def _sticky(value: object) -> str:
    return value if value in ("session", "tenant") else field_name(value)


class Service(Model):
    """One logical agent that clients call."""

    match: Annotated[tuple[Match, ...], BeforeValidator(one_or_list)] | None = Field(
        None,
        description="One or a list. Unset: every request, or none where the service is only another's fallback or has "
        "no endpoints.",
    )
    policy: Annotated[str, one_of(*POLICIES), Kind("policy")] = Field(
        "least_loaded", description="How to order endpoints."
    )
    lanes: Lanes = Field(Lanes(), description="Fast and heavy work.")
    queue: Annotated[Queue, off_means({"max": 0})] = Field(Queue(), description="Waiting. `off`: none waits.")
    session: Annotated[Session | None, off_means(None)] = Field(None, description="Session affinity.")
    sticky: Annotated[str, PlainValidator(_sticky), Kind("session, tenant or a header name")] | None = Field(
        None, description="What keeps a caller on the same version. Unset: each request by weight."
    )
    rollout: Annotated[Rollout | None, on_means({}), off_means(None)] = Field(
        None, description="How a new version comes to its traffic. Unset: by its weight."
    )
    split: Annotated[tuple[SplitRule, ...], BeforeValidator(one_or_list)] = Field(
        (), description="Weights for some callers or a lane; the first rule that holds counts."
    )
    breaker: Annotated[Breaker, off_means({"enabled": False})] = Field(Breaker(), description="Per version.")
    quality: Annotated[Quality | None, on_means({}), off_means(None)] = Field(
        None, description="Verdicts on answers: by users, and on a sample by evaluators. `on`: by users alone."
    )
    ejection: Ejection = Field(Ejection(), description="Passive health, per endpoint.")
    warm_up: Annotated[WarmUp, short_for("window"), off_means({"window": 0})] = Field(
        WarmUp(), description="Slow start."
    )
    retry: Annotated[Retry, off_means({"attempts": 0})] = Field(Retry(), description="Before the first byte.")
    health: Annotated[Health | None, short_for("path"), off_means(None)] = Field(None, description="Active checks.")
    load: Annotated[Load, off_means({"headers": False})] = Field(Load(), description="How busy endpoints say they are.")
    fallback: Annotated[tuple[Annotated[FallbackStep, short_for("service")], ...], BeforeValidator(one_or_list)] = (
        Field((), description="Where callers go when every version is out, in order.")
    )
    strip_prefix: Switch = Field(False, description="Remove the matched path before forwarding.")
    inspect: Annotated[str, one_of("none", "body"), Kind("none or body")] = Field(
        "none", description="`body`: read model and max_tokens from a JSON body before routing."
    )
    dialect: Annotated[str, one_of("json", "openai"), Kind("json or openai")] = Field(
        "json", description="How errors are spoken."
    )
    websocket: WebSocket = Field(WebSocket(), description="WebSocket handshakes.")
    runs: Annotated[ServiceRuns, off_means({"enabled": False})] = Field(
        ServiceRuns(), description="Durable runs, where the top level has them."
    )
    versions: dict[Name, Version] = Field(description="Its versions by name.")


class Region(Model):
    """Endpoints that share one provider quota."""

    tokens_per_minute: PositiveCount | None = Field(None, description="Unset: unlimited.")
    requests_per_minute: PositiveCount | None = Field(None, description="Unset: unlimited.")
    burst: PositiveDuration = Field(_REGION.burst, description="How much of the rate may be spent at once.")
