"""What a configuration says, as plain values: the core's input, free of files, formats and defaults of taste.

`unjam.config` builds these from YAML; tests, the simulator and library users build them by hand. Units: seconds, bytes,
tokens, fractions of one. Every value here has been validated by whoever built it; `Balancer.apply` refuses only what
would break an invariant (duplicate names, a fallback that loops).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

HOUR = 3600.0

FAST = "fast"
HEAVY = "heavy"

#: Slots of an endpoint for which neither slots nor cores were given: no queueing in unjam, only balancing.
UNSIZED_SLOTS = 100_000
#: Bytes that a slot is taken to need, where slots are derived: 64 cores with 1 GiB get 16 slots, not 128.
MEMORY_PER_SLOT = 64 << 20


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Limits of one exchange with an endpoint, seconds. `idle` is the longest silence in the middle of an answer."""

    connect: float = 5.0
    first_byte: float = 60.0
    idle: float = 60.0
    total: float = 300.0


#: Heavy work may think for an hour before its first byte.
HEAVY_TIMEOUTS = Timeouts(connect=5.0, first_byte=HOUR, idle=HOUR, total=HOUR)


@dataclass(frozen=True, slots=True)
class LanesSpec:
    """`up_to`: expected seconds from which work is heavy. `share`: the most of the slots that heavy work may hold."""

    up_to: float = 5.0
    share: float = 0.75
    fast: Timeouts = Timeouts(first_byte=HOUR, idle=HOUR, total=HOUR)
    heavy: Timeouts = HEAVY_TIMEOUTS


@dataclass(frozen=True, slots=True)
class QueueSpec:
    """Waiting in the gateway: at most `max` requests of a service, `timeout` seconds each; one tenant may hold at most
    `tenant_share` of the places while others wait too."""

    max: int = 1000
    timeout: float = 60.0
    tenant_share: float = 0.5


@dataclass(frozen=True, slots=True)
class BreakerSpec:
    """Per version: trips on evidence that the error rate is above `error_rate`; `open` seconds, then a ramp.

    `rule`: cusum, or window: more than `error_rate` of the last `window` calls failed and at least `least` were seen.
    `baseline`: the rate at which a good version fails, where it is known; `learn`: measure it."""

    error_rate: float = 0.05
    open: float = 60.0
    enabled: bool = True
    rule: str = "cusum"
    window: int = 100
    least: int = 20
    baseline: float | None = None
    learn: bool = False


@dataclass(frozen=True, slots=True)
class QualitySpec:
    """Sampled verdicts on answers: they trip a version's breaker on evidence that more than `error_rate` are bad."""

    error_rate: float = 0.05


@dataclass(frozen=True, slots=True)
class RolloutSpec:
    """`version` gets each of `steps` (shares 0 .. 1, rising) of the traffic for at least `hold` seconds and
    `min_requests` of its own calls, as long as it is no worse than the others."""

    version: str
    steps: tuple[float, ...] = (0.01, 0.1, 0.5, 1.0)
    hold: float = 1800.0
    min_requests: int = 200


@dataclass(frozen=True, slots=True)
class EjectionSpec:
    """Passive health of one endpoint: `failures` in a row eject it for `base` seconds × the number of times, at most
    `max`. Below `panic` of the pool healthy, all of it is used."""

    failures: int = 5
    base: float = 10.0
    max: float = 300.0
    panic: float = 0.5


@dataclass(frozen=True, slots=True)
class WarmUpSpec:
    """Envoy's slow start: capacity factor `max(least, (t / window) ** (1 / aggression))` after a (re)start."""

    window: float = 0.0
    aggression: float = 1.0
    least: float = 0.1


@dataclass(frozen=True, slots=True)
class RetrySpec:
    """Retries before the first byte: `attempts` more tries of one request, at most `budget` of all requests
    (over the last 10 s), and always `floor` per second. `answers`: whose failing answers the caller isn't shown while
    somebody else could serve it, beyond the budget: those of a version on probation (`probes`), of all (`always`),
    `never` any."""

    attempts: int = 2
    budget: float = 0.2
    floor: float = 3.0
    answers: str = "probes"


@dataclass(frozen=True, slots=True)
class HealthSpec:
    """Active checks: GET `path` every `interval` seconds, answered 2xx or 3xx within `timeout`."""

    path: str
    interval: float = 5.0
    timeout: float = 2.0
    unhealthy_after: int = 2
    healthy_after: int = 2


@dataclass(frozen=True, slots=True)
class MetricsSpec:
    """An endpoint's Prometheus page, read every `interval` seconds (and given up after as many). Names of gauges; of
    several for one figure the first on the page counts. `running` and `waiting`: requests; `cache`: share 0 .. 1 of an
    inference engine's key-value cache in use; `slots`: most requests it wants at once."""

    path: str = "/metrics"
    running: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    cache: tuple[str, ...] = ()
    slots: tuple[str, ...] = ()
    interval: float = 2.0


@dataclass(frozen=True, slots=True)
class AgentCheckSpec:
    """HAProxy's agent-check: connect to `port` of the endpoint's host every `interval` seconds, send the line `send`
    unless it is empty, read a line."""

    port: int
    interval: float = 2.0
    send: str = ""


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """Where the gateway learns how busy the endpoints are, beside their reporters. `headers`: from their answers'
    endpoint-load-metrics."""

    headers: bool = True
    metrics: MetricsSpec | None = None
    agent_check: AgentCheckSpec | None = None


@dataclass(frozen=True, slots=True)
class SessionSpec:
    """Requests with the same `header` (or `cookie`) meet the same endpoint for `ttl` seconds after the last one."""

    header: str | None = None
    cookie: str | None = None
    ttl: float = HOUR
    #: Bounded load: a session is placed elsewhere when its first choice has more than this times the mean stretch.
    bound: float = 1.25


@dataclass(frozen=True, slots=True)
class MatchSpec:
    """All that is given must hold. `path` is a prefix on segment boundaries; `host` may start with `*.`; header values
    are exact, or `*` for present. Empty matches everything."""

    path: str | None = None
    host: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    model: str | None = None


@dataclass(frozen=True, slots=True)
class EndpointSpec:
    """One server process. `url`: http://, https:// or unix:/path. `slots` None: 2 × cores as far as `memory` has room
    for them, or `UNSIZED_SLOTS`."""

    url: str
    cores: float | None = None
    memory: int | None = None
    slots: int | None = None
    region: str | None = None
    weight: float = 1.0

    @property
    def capacity(self) -> float:
        """Cores, or slots, or 1: what `avail` is when no report says better."""
        return self.cores or (float(self.slots) if self.slots else 1.0)

    @property
    def hard_slots(self) -> int:
        if self.slots is not None:
            return self.slots
        if not self.cores:
            return UNSIZED_SLOTS
        slots = round(2 * self.cores)
        return max(1, slots if self.memory is None else min(slots, self.memory // MEMORY_PER_SLOT))


@dataclass(frozen=True, slots=True)
class OverflowSpec:
    """Spill-over: what has waited `after` seconds for a slot goes to version `to` as soon as that has one."""

    to: str
    after: float = 0.0


@dataclass(frozen=True, slots=True)
class VersionSpec:
    name: str
    endpoints: tuple[EndpointSpec, ...]
    weight: float = 1.0
    overflow: OverflowSpec | None = None


@dataclass(frozen=True, slots=True)
class SplitSpec:
    """Weights for some requests: those of `lane`, of `tenant`, with all these `headers` (exact values, or `*` for
    present), as far as given. Versions that `weights` doesn't name get none of them."""

    weights: Mapping[str, float]
    lane: str | None = None
    tenant: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Maintenance:
    """The end of a fallback chain: what callers read when nothing else is left."""

    message: str
    status: int = 503
    retry_after: float = 60.0


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    name: str
    versions: tuple[VersionSpec, ...]
    match: tuple[MatchSpec, ...] = (MatchSpec(),)
    policy: str = "least_loaded"
    lanes: LanesSpec = LanesSpec()
    queue: QueueSpec = QueueSpec()
    session: SessionSpec | None = None
    #: What a caller's version sticks to: session, tenant, or a header's name. None: nothing (weights per request).
    sticky: str | None = None
    breaker: BreakerSpec = BreakerSpec()
    #: None: nobody judges a sample of its answers.
    quality: QualitySpec | None = None
    ejection: EjectionSpec = EjectionSpec()
    warm_up: WarmUpSpec = WarmUpSpec()
    retry: RetrySpec = RetrySpec()
    health: HealthSpec | None = None
    load: LoadSpec = LoadSpec()
    #: The first that holds for a request gives its weights; none: those of the versions.
    split: tuple[SplitSpec, ...] = ()
    rollout: RolloutSpec | None = None
    #: Names of services, then at most one Maintenance, in the order they are tried.
    fallback: tuple[str | Maintenance, ...] = ()
    #: The path prefix matched is removed before the request is forwarded.
    strip_prefix: bool = False
    #: `body`: read `model` and `max_tokens` from a JSON body (bounded) before routing. `none`: stream it.
    inspect: str = "none"
    #: The dialect errors are spoken in: json or openai.
    dialect: str = "json"


@dataclass(frozen=True, slots=True)
class RegionSpec:
    """One provider quota. Rates per minute; None: unlimited. `burst` seconds of the rate may be spent at once."""

    name: str
    tokens_per_minute: float | None = None
    requests_per_minute: float | None = None
    burst: float = 60.0


@dataclass(frozen=True, slots=True)
class Topology:
    services: Mapping[str, ServiceSpec]
    regions: Mapping[str, RegionSpec] = field(default_factory=dict)
