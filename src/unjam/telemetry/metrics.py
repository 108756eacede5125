"""Counters that the hot path increments inline: plain slotted objects, no locks, no prometheus types.

One event loop writes them; `collector.Collector` reads them at scrape. Durations are seconds, sizes bytes. Cost: one
`Histogram.observe` about 0.15 µs, one `ServiceStats.finished` about 0.5 µs.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import pairwise

from unjam.core.model import Outcome, Reason

#: Upper bounds in seconds, from a hello's millisecond to an audit's hour.
SECONDS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    120.0,
    300.0,
    600.0,
    1800.0,
    3600.0,
)

#: Distinct reasons kept apart in one counter; later ones count as `other`, so that a caller's mistake (a raw value
#: passed as a reason) cannot make the metrics page grow without bound.
MAX_REASONS = 64
OTHER = "other"


class Histogram:
    """Counts of observations up to each bound (inclusive), and above the last. `sum`: total of all values."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...] = SECONDS) -> None:
        if not bounds or any(a >= b for a, b in pairwise(bounds)):
            raise ValueError("histogram bounds must be given and strictly increasing")
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        return sum(self.counts)

    def quantile(self, q: float) -> float | None:
        """Value below which a share `q` of the observations lies, linear inside a bucket; None without observations,
        the last bound when it lies above that. As Prometheus' `histogram_quantile`."""
        total = self.count
        if not total:
            return None
        rank, seen, low = q * total, 0, 0.0
        for bound, n in zip(self.bounds, self.counts, strict=False):
            if n and seen + n >= rank:
                return low + (bound - low) * max(0.0, rank - seen) / n
            seen += n
            low = bound
        return low


class LaneStats:
    """One lane of one service. `first_byte` counts only exchanges in which the endpoint answered at all."""

    __slots__ = ("first_byte", "latency", "outcomes", "queued")

    def __init__(self) -> None:
        self.outcomes: dict[Outcome, int] = dict.fromkeys(Outcome, 0)
        self.latency = Histogram()
        self.queued = Histogram()
        self.first_byte = Histogram()


class ServiceStats:
    """What happened to the requests of one service. `requests`, `latency`, `queued` and `first_byte` are indexed by
    lane: False (0) is fast, True (1) is heavy.

    `sheds`: refused by reason. `retries`: further tries after a first one failed. `fallbacks`: served by another
    service of the chain. `queue_cancelled`: the client left while it waited (one that leaves later has outcome
    `cancelled`). `verdicts`: on its answers, by who judged and what was said (`good`, `bad`, `unreadable`).
    `evaluations`: of its answers, by evaluator and result.
    """

    __slots__ = (
        "_fast",
        "_heavy",
        "bytes_in",
        "bytes_out",
        "evaluations",
        "fallbacks",
        "name",
        "queue_cancelled",
        "retries",
        "sheds",
        "sse_events",
        "verdicts",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self._fast = LaneStats()
        self._heavy = LaneStats()
        self.bytes_in = 0
        self.bytes_out = 0
        self.fallbacks = 0
        self.queue_cancelled = 0
        self.retries = 0
        self.sheds: dict[str, int] = dict.fromkeys([str(r) for r in Reason], 0)
        self.sse_events = 0
        self.verdicts: dict[tuple[str, str], int] = {}
        self.evaluations: dict[tuple[str, str], int] = {}

    def lane(self, heavy: bool) -> LaneStats:
        return self._heavy if heavy else self._fast

    def finished(self, heavy: bool, outcome: Outcome, seconds: float, queued: float, first_byte: float) -> None:
        """Count one ended lease. `seconds`: from arrival to the end; `queued`: waited in the gateway; `first_byte`:
        from arrival to the first byte of the answer's head, negative when there was none."""
        # Written out instead of three observe() calls: this runs once per request.
        stats = self._heavy if heavy else self._fast
        stats.outcomes[outcome] += 1
        histogram = stats.latency
        histogram.counts[bisect_left(SECONDS, seconds)] += 1
        histogram.sum += seconds
        histogram = stats.queued
        if queued > 0.0:
            histogram.counts[bisect_left(SECONDS, queued)] += 1
            histogram.sum += queued
        else:
            histogram.counts[0] += 1
        if first_byte >= 0.0:
            histogram = stats.first_byte
            histogram.counts[bisect_left(SECONDS, first_byte)] += 1
            histogram.sum += first_byte

    def shed(self, reason: str) -> None:
        count(self.sheds, reason)

    def verdict(self, source: str, said: str) -> None:
        """`source`: agent, user or evaluators."""
        self.verdicts[source, said] = self.verdicts.get((source, said), 0) + 1

    def evaluation(self, evaluator: str, result: str) -> None:
        """`evaluator`: its name, of the configuration."""
        self.evaluations[evaluator, result] = self.evaluations.get((evaluator, result), 0) + 1

    @property
    def total(self) -> int:
        """Leases ended, both lanes."""
        return sum(self._fast.outcomes.values()) + sum(self._heavy.outcomes.values())


class GatewayStats:
    """What happened to this process' connections and requests, and the stats of its services.

    `reports`: reports of load that came in, by what became of them; `load_pulls`: those that were asked for, by source
    and result. `changes`: of weights, breakers, drains and rollouts, by what and where they came from; `changes_kept`:
    the last one could be kept. `verdicts_handed_on`: users' verdicts on requests that aren't remembered here, by what
    the other gateways made of them; `verdicts_asked`: those that others asked about here. `webhooks`: events by what
    became of them; `webhooks_waiting`: those to be sent.

    `requests_total` counts every request head read, refused or not; `rejects` those refused before they reached a
    service (malformed, over a limit, not allowed), by reason. `endpoints_discovered`: those there now that reporters
    added. `held` and `tunnels_open` are gauges: streamed answers
    open right now, and WebSocket tunnels among them.
    """

    __slots__ = (
        "changes",
        "changes_kept",
        "connections_open",
        "connections_refused",
        "connections_total",
        "endpoints_discovered",
        "held",
        "load_pulls",
        "log_dropped",
        "rejects",
        "reloads_failed",
        "reloads_ok",
        "reports",
        "requests_total",
        "services",
        "tunnels_open",
        "upstream_connect_failures",
        "upstream_connects",
        "upstream_discarded",
        "upstream_reuses",
        "verdicts_asked",
        "verdicts_handed_on",
        "webhooks",
        "webhooks_waiting",
    )

    def __init__(self) -> None:
        self.changes: dict[tuple[str, str], int] = {}
        self.changes_kept = True
        self.connections_open = 0
        self.connections_refused = 0
        self.connections_total = 0
        self.endpoints_discovered = 0
        self.held = 0
        self.load_pulls: dict[tuple[str, str], int] = {}
        self.log_dropped = 0
        self.rejects: dict[str, int] = {}
        self.reloads_failed = 0
        self.reloads_ok = 0
        self.reports: dict[str, int] = {}
        self.requests_total = 0
        self.services: dict[str, ServiceStats] = {}
        self.tunnels_open = 0
        self.upstream_connect_failures = 0
        self.upstream_connects = 0
        self.upstream_discarded = 0
        self.upstream_reuses = 0
        self.verdicts_asked: dict[str, int] = {}
        self.verdicts_handed_on: dict[str, int] = {}
        self.webhooks: dict[str, int] = {}
        self.webhooks_waiting = 0

    def service(self, name: str) -> ServiceStats:
        """The stats of a configured service, made on first use. Keep the result; never call it per request."""
        stats = self.services.get(name)
        if stats is None:
            stats = self.services[name] = ServiceStats(name)
        return stats

    def retain(self, names: set[str]) -> None:
        """Forget services that a reload removed. Requests still running keep their own reference."""
        for name in [name for name in self.services if name not in names]:
            del self.services[name]

    def reject(self, reason: str) -> None:
        """Count a refusal by its code. `logs.Rejections.reject` does this and logs it; call one of the two."""
        count(self.rejects, reason)

    def report(self, result: str) -> None:
        """Count a report of an endpoint's load, or an attempt at one, by what became of it."""
        count(self.reports, result)

    def change(self, kind: str, origin: str) -> None:
        """Count a change of weights, breakers, drains or rollouts: `kind`, and decided `here` or `elsewhere`."""
        self.changes[kind, origin] = self.changes.get((kind, origin), 0) + 1

    def handed_on(self, result: str) -> None:
        """Count a user's verdict that other gateways were to be asked about: `taken`, `unknown`, `unanswered` or
        `refused`."""
        count(self.verdicts_handed_on, result)

    def asked(self, result: str, times: int = 1) -> None:
        """Count verdicts that another gateway asked about: `known` and `unknown` here, or questions `dropped`."""
        if times:
            self.verdicts_asked[result] = self.verdicts_asked.get(result, 0) + times

    def webhook(self, result: str) -> None:
        """Count an event for a webhook: `delivered`, `failed` or `dropped`."""
        count(self.webhooks, result)

    def load_pull(self, source: str, result: str) -> None:
        """Count a question for an endpoint's load: `source` as in `LoadReport`, `result` ok, refused or failed."""
        self.load_pulls[source, result] = self.load_pulls.get((source, result), 0) + 1


def count(counter: dict[str, int], reason: str) -> None:
    """Add one to `counter[reason]`, or to `other` once there are `MAX_REASONS` reasons."""
    if reason in counter:
        counter[reason] += 1
    elif len(counter) < MAX_REASONS:
        counter[reason] = 1
    else:
        counter[OTHER] = counter.get(OTHER, 0) + 1
