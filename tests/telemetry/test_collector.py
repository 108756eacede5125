"""The metrics page: valid in both formats, complete, and cut into pieces that do not hold up the loop."""

from __future__ import annotations

import asyncio
import math
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from unjam.core.balancer import Balancer
from unjam.core.load import LoadReport
from unjam.core.model import Outcome, Reason, Request
from unjam.core.spec import EndpointSpec, RegionSpec, ServiceSpec, Topology, VersionSpec
from unjam.telemetry.collector import PIECE, Collector, render, render_slowly
from unjam.telemetry.metrics import SECONDS, GatewayStats
from unjam.telemetry.runs import RunsStats

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def endpoint(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "url": name,
        "region": "us",
        "slots": 8,
        "inflight": 3,
        "heavy": 1,
        "avail": 3.5,
        "cores": 4.0,
        "memory": 8 << 30,
        "other_cpu": 0.25,
        "load": {
            "sources": {
                "reporter": {"age": 1.5, "cpu": 0.5, "memory_free": 1 << 30},
                "header": {"age": 9.0, "cpu": 0.9},
            },
            "accepted": 7,
            "refused": 2,
            "late": 1,
            "problem": "",
            "heavy_memory": 1 << 28,
        },
        "healthy": True,
        "ejected": False,
        "draining": False,
        **changes,
    }


def snapshot(endpoints: int = 2) -> dict[str, Any]:
    return {
        "leases": 6,
        "services": {
            "auditor": {
                "queue": {"fast": 1, "heavy": 2},
                "promoted": 4,
                "rollout": {"version": "v8", "share": 0.1, "state": "running"},
                "versions": {
                    "v7": {
                        "weight": 90.0,
                        "share": 0.9,
                        "breaker": {"state": "ramping", "share": 0.25},
                        "endpoints": [endpoint(f"http://10.0.{n // 256}.{n % 256}:9000") for n in range(endpoints)],
                    }
                },
            }
        },
        "regions": {"us": {"headroom": 0.75}},
    }


def stats() -> GatewayStats:
    stats = GatewayStats()
    stats.connections_open = 5
    stats.requests_total = 12
    stats.reject("bad_host")
    stats.report("accepted")
    stats.load_pull("metrics", "ok")
    stats.change("weight", "here")
    stats.webhook("delivered")
    stats.handed_on("taken")
    stats.asked("known", 2)
    service = stats.service("auditor")
    service.finished(True, Outcome.OK, 95.0, 0.34, 1.25)
    service.finished(False, Outcome.OK, 0.004, 0.0, 0.003)
    service.finished(False, Outcome.TIMEOUT, 9999.0, 0.0, -1.0)
    service.shed("queue_full")
    service.verdict("agent", "bad")
    service.evaluation("refusal", "good")
    return stats


def families(collector: Collector, accept: str = "") -> dict[str, Metric]:
    body, _ = render(collector, accept)
    parse = parse_openmetrics if accept else parse_text
    found = list(parse(body.decode()))
    names = [family.name for family in found]
    assert len(names) == len(set(names)), "a family is split"
    return {family.name: family for family in found}


def value(found: dict[str, Metric], name: str, **labels: str) -> float:
    family = re.sub(r"_(total|bucket|sum|count)$", "", name)
    samples = [s for s in found[family].samples if s.name == name and s.labels == labels]
    assert len(samples) == 1, (name, labels, found[family].samples)
    return float(samples[0].value)


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_values_arrive(accept: str) -> None:
    found = families(Collector(stats(), snapshot()), accept)
    lane = {"service": "auditor", "lane": "fast"}
    assert value(found, "unjam_requests_total", **lane, outcome="ok") == 1
    assert value(found, "unjam_requests_total", **lane, outcome="truncated") == 0
    assert value(found, "unjam_request_seconds_count", **lane) == 2
    assert value(found, "unjam_request_seconds_sum", **lane) == pytest.approx(9999.004)
    assert value(found, "unjam_first_byte_seconds_count", **lane) == 1
    assert value(found, "unjam_sheds_total", service="auditor", reason="queue_full") == 1
    assert value(found, "unjam_rejects_total", reason="bad_host") == 1
    assert value(found, "unjam_connections") == 5
    assert value(found, "unjam_leases") == 6
    assert value(found, "unjam_promotions_total", service="auditor") == 4
    assert value(found, "unjam_queue_length", service="auditor", lane="heavy") == 2
    assert value(found, "unjam_version_weight", service="auditor", version="v7") == 90
    assert value(found, "unjam_breaker_state", service="auditor", version="v7", state="ramping") == 1
    assert value(found, "unjam_breaker_state", service="auditor", version="v7", state="open") == 0
    assert value(found, "unjam_breaker_share", service="auditor", version="v7") == 0.25
    where = {"service": "auditor", "version": "v7", "endpoint": "http://10.0.0.1:9000"}
    assert value(found, "unjam_endpoint_inflight", **where) == 3
    assert value(found, "unjam_endpoint_available", **where) == 3.5
    assert value(found, "unjam_endpoint_healthy", **where) == 1
    assert value(found, "unjam_endpoint_cores", **where) == 4
    assert value(found, "unjam_endpoint_memory_bytes", **where) == 8 << 30
    assert value(found, "unjam_endpoint_other_cpu", **where) == 0.25
    assert value(found, "unjam_endpoint_cpu", **where) == 0.5
    assert value(found, "unjam_endpoint_memory_free_bytes", **where) == 1 << 30
    assert value(found, "unjam_endpoint_heavy_memory_bytes", **where) == 1 << 28
    assert value(found, "unjam_endpoint_report_age_seconds", **where, source="reporter") == 1.5
    assert value(found, "unjam_endpoint_report_age_seconds", **where, source="header") == 9
    assert value(found, "unjam_endpoint_reports_total", **where, result="accepted") == 7
    assert value(found, "unjam_endpoint_reports_total", **where, result="refused") == 2
    assert value(found, "unjam_endpoint_reports_total", **where, result="late") == 1
    assert value(found, "unjam_region_headroom", region="us") == 0.75
    assert value(found, "unjam_open_fds") > 0
    assert value(found, "unjam_max_fds") > value(found, "unjam_open_fds")


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_histogram_buckets_are_cumulative_and_end_with_the_count(accept: str) -> None:
    found = families(Collector(stats(), {}), accept)
    buckets = [
        (float(s.labels["le"]), s.value)
        for s in found["unjam_request_seconds"].samples
        if s.name.endswith("_bucket") and s.labels["lane"] == "fast"
    ]
    assert [bound for bound, _ in buckets] == [*SECONDS, math.inf]
    counts = [n for _, n in buckets]
    assert counts == sorted(counts)
    assert counts[-1] == 2
    assert dict(buckets)[0.005] == 1


def comparable(family: Metric) -> list[tuple[str, list[tuple[str, str]], float]]:
    return sorted((s.name, sorted(s.labels.items()), float(s.value)) for s in family.samples)


def test_our_pages_mean_what_prometheus_clients_own_writer_says() -> None:
    registry = CollectorRegistry()
    registry.register(Collector(stats(), snapshot()))
    theirs = {family.name: family for family in parse_text(generate_latest(registry).decode())}
    ours = families(Collector(stats(), snapshot()))
    assert set(ours) == set(theirs)
    volatile = {"unjam_cpu_seconds", "unjam_resident_bytes", "unjam_open_fds"}
    for name in set(ours) - volatile:
        assert ours[name].type == theirs[name].type
        assert ours[name].documentation == theirs[name].documentation
        assert comparable(ours[name]) == comparable(theirs[name]), name


def test_names_follow_prometheus_conventions() -> None:
    body, content_type = render(Collector(stats(), snapshot()))
    assert content_type.startswith("text/plain; version=0.0.4")
    for family in families(Collector(stats(), snapshot())).values():
        assert re.fullmatch(r"unjam_[a-z][a-z_]*[a-z]", family.name)
        assert family.documentation
        assert family.documentation.endswith(".")
        assert not family.name.endswith(("_total", "_count", "_sum", "_bucket", "_ms", "_milliseconds"))
        for sample in family.samples:
            assert family.type != "counter" or sample.name.endswith("_total")
            assert all(re.fullmatch(r"[a-z_]+", label) for label in sample.labels)
    assert body.endswith(b"\n")


def test_openmetrics_is_served_to_those_who_ask() -> None:
    body, content_type = render(Collector(stats(), {}), OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert body.endswith(b"# EOF\n")


def test_odd_names_from_the_configuration_are_escaped() -> None:
    odd = 'a"b\\c\nd'
    gateway = GatewayStats()
    gateway.service(odd)
    shot = {"services": {odd: {"queue": {"fast": 1}, "versions": {}}}}
    for accept in ("", OPENMETRICS):
        assert value(families(Collector(gateway, shot), accept), "unjam_queue_length", service=odd, lane="fast") == 1


def test_an_endpoint_listed_twice_does_not_spoil_the_page() -> None:
    shot = snapshot()
    listed = shot["services"]["auditor"]["versions"]["v7"]["endpoints"]
    listed.append(dict(listed[0]))
    assert len(families(Collector(stats(), shot))["unjam_endpoint_slots"].samples) == 2


def test_a_missing_part_of_the_snapshot_is_left_out_not_invented() -> None:
    found = families(
        Collector(GatewayStats(), {"services": {"a": {"versions": {"v1": {"endpoints": [{"name": "x"}]}}}}})
    )
    assert found["unjam_endpoint_inflight"].samples == []
    assert "unjam_leases" not in found


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_ten_thousand_endpoints_come_in_pieces(accept: str) -> None:
    collector = Collector(stats(), snapshot(10_000))
    assert max(len(piece.rows) for piece in collector.pieces()) <= PIECE

    async def main() -> tuple[bytes, int]:
        turns = 0
        done = False

        async def other_work() -> None:
            nonlocal turns
            while not done:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other_work())
        body, _ = await render_slowly(collector, accept)
        done = True
        await task
        return body, turns

    body, turns = asyncio.run(main())
    assert turns > 70_000 / PIECE / 2
    assert body.count(b"\nunjam_endpoint_slots{") == 10_000
    assert body.count(b"\n# TYPE unjam_endpoint_slots ") == 1


def test_an_endpoint_that_never_reported_has_no_figures_of_reports() -> None:
    shot = snapshot(1)
    (one,) = shot["services"]["auditor"]["versions"]["v7"]["endpoints"]
    one.update(load=None, other_cpu=0.0, cores=None)
    found = families(Collector(stats(), shot))
    for name in ("other_cpu", "cpu", "memory_free_bytes", "report_age_seconds", "reports", "cores"):
        assert found[f"unjam_endpoint_{name}"].samples == [], name


def test_reports_that_were_all_refused_are_counted_and_give_no_figures() -> None:
    shot = snapshot(1)
    (one,) = shot["services"]["auditor"]["versions"]["v7"]["endpoints"]
    one["load"] = {"sources": {}, "accepted": 0, "refused": 5, "late": 0, "problem": "cpu is not a number"}
    found = families(Collector(stats(), shot))
    where = {"service": "auditor", "version": "v7", "endpoint": one["name"]}
    assert value(found, "unjam_endpoint_reports_total", **where, result="refused") == 5
    for name in ("other_cpu", "cpu", "memory_free_bytes", "report_age_seconds"):
        assert found[f"unjam_endpoint_{name}"].samples == [], name


def test_the_balancers_own_snapshot_fills_every_gauge() -> None:
    balancer = Balancer(random.Random(1))
    endpoint = EndpointSpec("http://10.0.0.1:9000", cores=2, memory=1 << 30, slots=4, region="us")
    versions = (VersionSpec("v7", (endpoint,), weight=90.0),)
    regions = {"us": RegionSpec("us", tokens_per_minute=1e6)}
    balancer.apply(Topology({"auditor": ServiceSpec("auditor", versions)}, regions), 0.0)
    (reporting,) = balancer.services["auditor"].versions[0].endpoints.values()
    idle = LoadReport(cpu=0.5, agent_cpu=0.0, memory_free=1 << 29, agent_memory=1 << 26)
    balancer.report(reporting, idle, 0.0)
    balancer.offer(Request(balancer.services["auditor"], "POST /", 0.0, tokens=10, lane_hint="heavy"), 0.0)
    balancer.report(reporting, replace(idle, agent_memory=1 << 27), 0.5)
    balancer.trip("auditor", "v7", 1.0)
    found = families(Collector(GatewayStats(), balancer.snapshot(1.0)))
    for name, family in found.items():
        if name.startswith(("unjam_endpoint", "unjam_version", "unjam_breaker", "unjam_region", "unjam_queue_length")):
            assert family.samples, name
    assert value(found, "unjam_leases") == 1
    assert value(found, "unjam_breaker_state", service="auditor", version="v7", state="open") == 1
    where = {"service": "auditor", "version": "v7", "endpoint": "http://10.0.0.1:9000"}
    assert value(found, "unjam_endpoint_inflight", **where) == 1


def durable() -> RunsStats:
    stats = RunsStats()
    stats.created = {"auditor": 7}
    stats.ended = {("auditor", "completed"): 4, ("auditor", "failed"): 1}
    stats.swept = {("auditor", "queued"): 2}
    stats.errors = {"queue_full": 3}
    stats.claims_refused = {("auditor", "slots"): 1}
    stats.depth = {"auditor": (5, 6)}
    stats.followers, stats.followed, stats.waiting = 9, 8, 2
    stats.sockets, stats.sockets_closed = 30, {4408: 3}
    return stats


def test_durable_runs_are_told_where_there_are_any() -> None:
    found = families(Collector(GatewayStats(), {}, durable()))
    assert value(found, "unjam_runs_created_total", service="auditor") == 7
    assert value(found, "unjam_runs_ended_total", service="auditor", status="failed") == 1
    assert value(found, "unjam_runs_swept_total", service="auditor", status="queued") == 2
    assert value(found, "unjam_runs_store_errors_total", code="queue_full") == 3
    assert value(found, "unjam_runs_sockets") == 30
    assert value(found, "unjam_runs_sockets_closed_total", code="4408") == 3
    assert value(found, "unjam_runs_queued", service="auditor") == 5
    assert value(found, "unjam_runs_running", service="auditor") == 6
    assert value(found, "unjam_runs_followers") == 9
    assert value(found, "unjam_runs_followed") == 8
    assert value(found, "unjam_runs_claims_waiting") == 2
    assert value(found, "unjam_runs_store_up") == 1
    assert not any(name.startswith("unjam_runs") for name in families(Collector(GatewayStats(), {})))


def test_every_metric_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "observability.md").read_text()
    for family in families(Collector(stats(), snapshot(), durable())).values():
        name = family.name + "_total" if family.type == "counter" else family.name
        labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
        shown = name + ("{" + ",".join(labels) + "}" if labels else "")
        rows = re.findall(rf"^\| `({name}(?:\{{[^`]*\}})?)`", page, re.MULTILINE)
        assert len(rows) == 1, f"docs/observability.md needs one row for {shown}"
        documented = rows[0].removeprefix(name).strip("{}")
        assert sorted(filter(None, documented.split(","))) == labels, f"docs/observability.md: {shown}"
    for word in (*Outcome, *Reason):
        assert f"`{word}`" in page, f"docs/observability.md: {word}"


def test_no_documented_metric_is_gone() -> None:
    page = (Path(__file__).parents[2] / "docs" / "observability.md").read_text()
    documented = {re.sub(r"_total$", "", name) for name in re.findall(r"^\| `(unjam_\w+)", page, re.MULTILINE)}
    assert documented == set(families(Collector(stats(), snapshot(), durable())))
