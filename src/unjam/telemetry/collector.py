"""Renders the counters and a snapshot of the balancer for Prometheus, when somebody asks and never on the hot path.

Names start with `unjam_`; docs/observability.md says what each means. Label values come from the configuration and from
our own tables (services, versions, endpoints, regions, reasons, outcomes), never from a request.

prometheus_client's objects are made only for those who register the collector with one of its registries; everybody
else has the page written by `exposition`.
"""

from __future__ import annotations

import asyncio
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import registry
from prometheus_client.metrics_core import Metric

from unjam import __version__
from unjam.core import breaker, promotion
from unjam.telemetry import endpoints as read
from unjam.telemetry.exposition import PIECE, Page, Piece, Rows, by_label, counter, gauge, histogram
from unjam.telemetry.metrics import GatewayStats, Histogram, LaneStats, ServiceStats
from unjam.telemetry.process import max_fds, open_fds, resident_bytes
from unjam.telemetry.runs import RunsStats

LANES = ((False, "fast"), (True, "heavy"))


class Collector(registry.Collector):
    """One frozen view. `snapshot`: what `Balancer.snapshot(now)` returned; parts that are missing are left out.

    May be registered with a prometheus_client registry too.
    """

    def __init__(self, stats: GatewayStats, snapshot: Mapping[str, Any], runs: RunsStats | None = None) -> None:
        self._stats = stats
        self._snapshot = snapshot
        self._runs = runs

    def collect(self) -> Iterator[Metric]:
        metric: Metric | None = None
        for piece in self.pieces():
            if metric is None or metric.name != piece.name:
                if metric is not None:
                    yield metric
                metric = Metric(piece.name, piece.documentation, piece.kind)
            for suffix, (values, value) in piece.rows:
                names = (*piece.labels, "le") if suffix == "_bucket" else piece.labels
                metric.add_sample(piece.name + suffix, dict(zip(names, values, strict=True)), value)
        if metric is not None:
            yield metric

    def pieces(self) -> Iterator[Piece]:
        """Families of at most about `PIECE` samples; those of one name follow each other."""
        yield from self._process()
        yield from self._gateway()
        yield from self._services()
        yield from self._balancer()
        if self._runs is not None:
            yield from _durable(self._runs)

    def _process(self) -> Iterator[Piece]:
        build = (__version__, platform.python_version(), platform.python_implementation())
        yield from gauge(
            "unjam_build_info",
            "Always 1; the labels say what runs.",
            ("version", "python", "implementation"),
            [(build, 1)],
        )
        yield from counter("unjam_cpu_seconds", "CPU time of this process, seconds.", (), [((), time.process_time())])
        if (resident := resident_bytes()) is not None:
            yield from gauge("unjam_resident_bytes", "Memory of this process, bytes.", (), [((), resident)])
        if (fds := open_fds()) is not None:
            yield from gauge("unjam_open_fds", "File descriptors in use.", (), [((), fds)])
        yield from gauge("unjam_max_fds", "File descriptors allowed (soft limit).", (), [((), max_fds())])

    def _gateway(self) -> Iterator[Piece]:
        stats = self._stats
        for name, help_, value in (
            ("unjam_connections", "Client connections open now.", stats.connections_open),
            ("unjam_held_streams", "Streamed answers open now.", stats.held),
            ("unjam_tunnels", "WebSocket tunnels open now.", stats.tunnels_open),
            ("unjam_endpoints_discovered", "Endpoints that reporters added.", stats.endpoints_discovered),
        ):
            yield from gauge(name, help_, (), [((), value)])
        for name, help_, value in (
            ("unjam_connections_accepted", "Client connections accepted.", stats.connections_total),
            ("unjam_connections_refused", "Client connections refused over the cap.", stats.connections_refused),
            ("unjam_requests_received", "Request heads read, served or not.", stats.requests_total),
            ("unjam_upstream_connects", "Connections opened to endpoints.", stats.upstream_connects),
            ("unjam_upstream_reuses", "Requests sent over a kept connection.", stats.upstream_reuses),
            ("unjam_upstream_connect_failures", "Connections that failed.", stats.upstream_connect_failures),
            ("unjam_upstream_discarded", "Endpoint connections not fit for reuse.", stats.upstream_discarded),
            ("unjam_log_dropped", "Access-log lines lost to a full disk or stalled reader.", stats.log_dropped),
        ):
            yield from counter(name, help_, (), [((), value)])
        reloads: Rows = [(("ok",), stats.reloads_ok), (("failed",), stats.reloads_failed)]
        yield from counter("unjam_reloads", "Configuration reloads.", ("result",), reloads)
        yield from counter(
            "unjam_reports", "Reports of load that came in, by result.", ("result",), by_label(stats.reports)
        )
        yield from counter(
            "unjam_load_pulls",
            "Questions for an endpoint's load, by source and result.",
            ("source", "result"),
            sorted(stats.load_pulls.items()),
        )
        yield from counter(
            "unjam_changes",
            "Weights, breakers, drains and rollouts changed, by what and where it was decided.",
            ("kind", "origin"),
            sorted(stats.changes.items()),
        )
        yield from gauge(
            "unjam_changes_kept", "1 while such changes can be kept.", (), [((), float(stats.changes_kept))]
        )
        for name, help_, counted in (
            ("unjam_verdicts_handed_on", "Verdicts asked of other gateways.", stats.verdicts_handed_on),
            ("unjam_verdicts_asked", "Verdicts that other gateways asked about.", stats.verdicts_asked),
        ):
            yield from counter(name, help_, ("result",), by_label(counted))
        yield from counter("unjam_webhooks", "Events for webhooks, by result.", ("result",), by_label(stats.webhooks))
        yield from gauge("unjam_webhooks_waiting", "Events to be sent.", (), [((), stats.webhooks_waiting)])
        yield from counter(
            "unjam_rejects", "Requests refused before they met a service.", ("reason",), by_label(stats.rejects)
        )

    def _services(self) -> Iterator[Piece]:
        services = sorted(self._stats.services.values(), key=lambda service: service.name)
        yield from counter(
            "unjam_requests",
            "Leases ended, by outcome.",
            ("service", "lane", "outcome"),
            (
                ((service.name, lane, str(outcome)), n)
                for service in services
                for heavy, lane in LANES
                for outcome, n in service.lane(heavy).outcomes.items()
            ),
        )
        for name, help_, pick in _PER_LANE:
            series = (
                ((service.name, lane), pick(service.lane(heavy))) for service in services for heavy, lane in LANES
            )
            yield from histogram(name, help_, ("service", "lane"), series)
        for name, help_, count in _PER_SERVICE:
            yield from counter(name, help_, ("service",), [((service.name,), count(service)) for service in services])
        yield from counter(
            "unjam_sheds",
            "Requests refused by their service.",
            ("service", "reason"),
            (((service.name, reason), n) for service in services for reason, n in sorted(service.sheds.items())),
        )
        yield from counter(
            "unjam_verdicts",
            "Judgements of answers.",
            ("service", "source", "verdict"),
            (((service.name, *said), n) for service in services for said, n in sorted(service.verdicts.items())),
        )
        yield from counter(
            "unjam_evaluations",
            "Looks of evaluators at answers.",
            ("service", "evaluator", "result"),
            (((service.name, *said), n) for service in services for said, n in sorted(service.evaluations.items())),
        )

    def _balancer(self) -> Iterator[Piece]:
        snapshot = self._snapshot
        if "leases" in snapshot:
            yield from gauge("unjam_leases", "Requests running on endpoints.", (), [((), snapshot["leases"])])
        services: Mapping[str, Any] = snapshot.get("services", {})
        yield from gauge(
            "unjam_queue_length",
            "Requests waiting in the gateway.",
            ("service", "lane"),
            (
                ((name, lane), service["queue"][lane])
                for name, service in services.items()
                for _, lane in LANES
                if lane in service.get("queue", {})
            ),
        )
        yield from counter(
            "unjam_promotions",
            "Fast requests that outlived the lane's boundary.",
            ("service",),
            (((name,), service["promoted"]) for name, service in services.items() if "promoted" in service),
        )
        versions = [
            (name, released, version)
            for name, service in services.items()
            for released, version in service.get("versions", {}).items()
        ]
        labels = ("service", "version")
        yield from gauge(
            "unjam_version_weight",
            "Configured weight.",
            labels,
            (((name, released), version["weight"]) for name, released, version in versions if "weight" in version),
        )
        yield from gauge(
            "unjam_version_share",
            "Share of the service's traffic it gets by weights and breakers, 0 to 1.",
            labels,
            (((name, released), version["share"]) for name, released, version in versions if "share" in version),
        )
        rollouts = [(name, service["rollout"]) for name, service in services.items() if "rollout" in service]
        yield from gauge(
            "unjam_rollout_share",
            "Share of the traffic that a rollout wants its new version to have, 0 to 1.",
            ("service", "version"),
            (((name, rollout["version"]), rollout["share"]) for name, rollout in rollouts),
        )
        yield from gauge(
            "unjam_rollout_state",
            "1 for the state the rollout is in, 0 for the others.",
            ("service", "version", "state"),
            (
                ((name, rollout["version"], state), rollout["state"] == state)
                for name, rollout in rollouts
                for state in promotion.STATES
            ),
        )
        yield from gauge(
            "unjam_breaker_state",
            "1 for the state the breaker is in, 0 for the others.",
            (*labels, "state"),
            (
                ((name, released, state), version["breaker"]["state"] == state)
                for name, released, version in versions
                if "breaker" in version
                for state in breaker.STATES
            ),
        )
        yield from gauge(
            "unjam_breaker_share",
            "Share of its weight the version may get, 0 to 1.",
            labels,
            (
                ((name, released), version["breaker"]["share"])
                for name, released, version in versions
                if "share" in version.get("breaker", {})
            ),
        )
        endpoints = [
            ((name, released, endpoint["name"]), endpoint)
            for name, released, version in versions
            for endpoint in version.get("endpoints", ())
        ]
        for metric, help_, key in _PER_ENDPOINT:
            yield from gauge(
                metric,
                help_,
                (*labels, "endpoint"),
                ((where, endpoint[key]) for where, endpoint in endpoints if endpoint.get(key) is not None),
            )
        yield from self._reports([(where, endpoint) for where, endpoint in endpoints if endpoint.get("load")])
        yield from gauge(
            "unjam_region_headroom",
            "Share of the region's quota that is left, 0 to 1.",
            ("region",),
            (
                ((name,), region["headroom"])
                for name, region in snapshot.get("regions", {}).items()
                if "headroom" in region
            ),
        )

    def _reports(self, endpoints: list[tuple[tuple[str, str, str], Mapping[str, Any]]]) -> Iterator[Piece]:
        """Figures of endpoints that report, or did once."""
        labels = ("service", "version", "endpoint")
        yield from gauge(
            "unjam_endpoint_other_cpu",
            "Share of its CPU that others than our requests use, as it counts now, 0 to 1.",
            labels,
            (
                (where, endpoint["other_cpu"])
                for where, endpoint in endpoints
                if endpoint.get("other_cpu") is not None and read.has_load(endpoint)
            ),
        )
        for metric, help_, key in _PER_REPORT:
            yield from gauge(
                metric,
                help_,
                labels,
                (
                    (where, value)
                    for where, endpoint in endpoints
                    if (value := read.number(read.figure(endpoint, key))) is not None
                ),
            )
        yield from gauge(
            "unjam_endpoint_heavy_memory_bytes",
            "The most that one heavy request of the version was seen to need, bytes.",
            labels,
            (
                (where, value)
                for where, endpoint in endpoints
                if (value := read.number(endpoint["load"].get("heavy_memory"))) is not None
            ),
        )
        yield from gauge(
            "unjam_endpoint_report_age_seconds",
            "Since the source last measured, seconds.",
            (*labels, "source"),
            (((*where, source.name), source.age) for where, endpoint in endpoints for source in read.sources(endpoint)),
        )
        yield from counter(
            "unjam_endpoint_reports",
            "Reports of load, by what was made of them.",
            (*labels, "result"),
            (((*where, result), n) for where, endpoint in endpoints for result, n in read.tally(endpoint).items()),
        )


_PER_LANE: tuple[tuple[str, str, Callable[[LaneStats], Histogram]], ...] = (
    ("unjam_request_seconds", "Arrival to end. Seconds.", lambda lane: lane.latency),
    ("unjam_queue_seconds", "Wait in the gateway. Seconds.", lambda lane: lane.queued),
    ("unjam_first_byte_seconds", "Arrival to first byte. Seconds.", lambda lane: lane.first_byte),
)

_PER_SERVICE: tuple[tuple[str, str, Callable[[ServiceStats], int]], ...] = (
    ("unjam_request_bytes", "Request body bytes from clients.", lambda s: s.bytes_in),
    ("unjam_response_bytes", "Response body bytes to clients.", lambda s: s.bytes_out),
    ("unjam_retries", "Further tries after a first one failed.", lambda s: s.retries),
    ("unjam_fallbacks", "Requests served by another service of the chain.", lambda s: s.fallbacks),
    ("unjam_queue_cancelled", "Clients that left while they waited.", lambda s: s.queue_cancelled),
    ("unjam_sse_events", "Server-sent events relayed.", lambda s: s.sse_events),
)

_PER_ENDPOINT = (
    ("unjam_endpoint_inflight", "Requests running on the endpoint.", "inflight"),
    ("unjam_endpoint_heavy", "Heavy requests among them.", "heavy"),
    ("unjam_endpoint_slots", "Requests it may run at once.", "slots"),
    ("unjam_endpoint_available", "Capacity the policy reckons with: cores x what others leave x warm-up.", "avail"),
    ("unjam_endpoint_cores", "Cores it has, configured or found.", "cores"),
    ("unjam_endpoint_memory_bytes", "Memory it has, configured or found, bytes.", "memory"),
    ("unjam_endpoint_healthy", "1 when active checks pass.", "healthy"),
    ("unjam_endpoint_ejected", "1 while it is out for failures in a row.", "ejected"),
    ("unjam_endpoint_draining", "1 while it takes nothing new.", "draining"),
)

#: Figures of reports, from the freshest source that knows them.
_PER_REPORT = (
    ("unjam_endpoint_cpu", "Share of its CPU in use by anybody, as reported, 0 to 1.", "cpu"),
    ("unjam_endpoint_memory_free_bytes", "Memory that could still be used, as reported, bytes.", "memory_free"),
)


def _durable(runs: RunsStats) -> Iterator[Piece]:
    """Durable runs: counted here, except for the gauges of the queues, which are of the whole store."""
    service = ("service",)
    yield from counter("unjam_runs_created", "Runs recorded by this gateway.", service, by_label(runs.created))
    yield from counter(
        "unjam_runs_ended", "Runs ended by this gateway.", ("service", "status"), sorted(runs.ended.items())
    )
    yield from counter(
        "unjam_runs_swept",
        "Runs whose lease or deadline had passed, by what became of them.",
        ("service", "status"),
        sorted(runs.swept.items()),
    )
    yield from counter(
        "unjam_runs_claims_refused",
        "Claims of workers that were given nothing, whatever waited, by reason.",
        ("service", "reason"),
        sorted(runs.claims_refused.items()),
    )
    yield from counter(
        "unjam_runs_store_errors",
        "Calls that the store refused or failed at.",
        ("code",),
        by_label(runs.errors),
    )
    yield from counter(
        "unjam_runs_sockets_closed",
        "WebSocket clients that were closed for what they did or for want of room, by close code; 0: no pong.",
        ("code",),
        [((str(code),), n) for code, n in sorted(runs.sockets_closed.items())],
    )
    depth = sorted(runs.depth.items())
    yield from gauge("unjam_runs_queued", "Runs that wait, in the store.", service, [((s,), q) for s, (q, _) in depth])
    yield from gauge("unjam_runs_running", "Runs under way, in the store.", service, [((s,), r) for s, (_, r) in depth])
    for name, help_, value in (
        ("unjam_runs_followers", "Clients that follow a run here.", runs.followers),
        ("unjam_runs_followed", "Runs that are followed here.", runs.followed),
        ("unjam_runs_claims_waiting", "Workers that wait for a run here.", runs.waiting),
        ("unjam_runs_sockets", "WebSocket clients held here.", runs.sockets),
        ("unjam_runs_store_up", "1 while the store answers.", 0 if runs.away else 1),
    ):
        yield from gauge(name, help_, (), [((), value)])


def render(collector: Collector, accept: str = "") -> tuple[bytes, str]:
    """The page and its content type: OpenMetrics 1.0 when `accept` asks for it, else the Prometheus text format."""
    page = Page(accept)
    for piece in collector.pieces():
        page.add(piece)
    return page.body(), page.content_type


async def render_slowly(collector: Collector, accept: str = "") -> tuple[bytes, str]:
    """As `render`, giving way to other work about once a millisecond."""
    page = Page(accept)
    done = 0
    for piece in collector.pieces():
        page.add(piece)
        done += len(piece.rows)
        if done >= PIECE:
            done = 0
            await asyncio.sleep(0)
    return page.body(), page.content_type
