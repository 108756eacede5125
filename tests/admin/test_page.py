"""The status page: right, safe under a policy that allows no script, and without anybody's secrets."""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import structlog

from unjam.admin import frame, page
from unjam.core.balancer import Balancer
from unjam.core.load import LoadReport
from unjam.core.model import Lease, Request
from unjam.core.spec import EndpointSpec, RegionSpec, ServiceSpec, Topology, VersionSpec
from unjam.telemetry import logs
from unjam.telemetry.accesslog import AccessLog, Entry
from unjam.telemetry.collector import render

from .fleet import Fleet, endpoint
from .served import TOKEN, in_loop, served


class Reader(HTMLParser):
    """Text, tags and attributes; complains about tags that do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "rect"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def show(fleet: Fleet | None = None, **changes: Any) -> Reader:
    return Reader(page.render((fleet or Fleet()).snapshot(), **{"ready": True, "why": "", **changes}))


def test_it_shows_services_versions_and_endpoints() -> None:
    text = show().text
    for words in (
        "auditor",
        "least_loaded",
        "3 waiting",
        "heavy 3",
        "v7 breaker closed weight 90 (90 %)",
        "v8 breaker open weight 10 (10 %) · gets 0 % of it · error rate 31 %",
        "http://10.0.0.1:9000 2 / 8 8 open",
        "http://10.0.0.2:9000 2 / 8 8 unhealthy",
        "http://10.0.0.3:9000 8 / 8 8 breaker open full",
        "12 running",
        "1 of 3 endpoints usable",
        "us-east-1 40 % left",
    ):
        assert words in text, (words, text)


def test_the_balancers_own_snapshot_fits() -> None:
    balancer = Balancer(random.Random(1))
    url = "http://10.0.0.1:9000"
    versions = (VersionSpec("v7", (EndpointSpec(url, slots=4, region="us"),)),)
    regions = {"us": RegionSpec("us", tokens_per_minute=1e6)}
    balancer.apply(Topology({"auditor": ServiceSpec("auditor", versions)}, regions), 0.0)
    lease = balancer.offer(Request(balancer.services["auditor"], "POST /agents", 0.0, "acme", tokens=10), 0.0)
    assert isinstance(lease, Lease)
    balancer.drain(lease.endpoint, True, 4.0)
    text = Reader(page.render(balancer.snapshot(5.0), True, "")).text
    for words in (
        f"{url} us slots as configured 1 / 4 4 draining",
        f"POST /agents acme {url} fast 5.0 s",
        "0 of 1 endpoints usable",
    ):
        assert words in text, (words, text)


def test_what_an_endpoint_reports_is_shown() -> None:
    balancer = Balancer(random.Random(1))
    specs = tuple(EndpointSpec(f"http://10.0.0.{n}:9000", cores=8, memory=16 << 30) for n in (1, 2, 3, 4))
    balancer.apply(Topology({"auditor": ServiceSpec("auditor", (VersionSpec("v7", specs),))}), 0.0)
    noisy, choked, liar, _ = balancer.services["auditor"].versions[0].endpoints.values()
    lease = balancer.offer(Request(balancer.services["auditor"], "POST /agents", 0.0), 0.0)
    assert isinstance(lease, Lease)
    assert lease.endpoint is noisy
    balancer.report(noisy, LoadReport(cpu=0.6, agent_cpu=0.1, memory_free=9 << 30), 1.0)
    balancer.report(choked, LoadReport(cpu=0.97, agent_cpu=0.0, memory_free=4 << 30, source="header"), 1.0)
    balancer.report(liar, LoadReport(cores=1e9), 1.0)
    reader = Reader(page.render(balancer.snapshot(2.0), True, ""))
    for words in (
        "endpoint slots running CPU memory free available state",
        f"{noisy.name} 8 cores · 16 GiB · slots by cores · reporter 1.0 s ago 1 / 16 10 % ours, 50 % others 9.0 GiB 4 "
        "open others use 50 % of its CPU",
        "slots by cores · header 1.0 s ago 0 / 16 0 % ours, 97 % others 4.0 GiB 0.4 no heavy work: "
        "others use 97 % of its CPU",
        "0 / 16 not reported 8 reports refused: cores is 1e+09: it must be from 0 to 4096 1 report refused",
        "0 / 16 not reported 8 open",
        "4 of 4 endpoints usable",
        "CPU ours others",
    ):
        assert words in reader.text, (words, reader.text)
    bars = [
        {attributes["class"]: attributes["width"] for _, attributes in tags}
        for tags in _groups([tag for tag in reader.tags if tag[0] in ("svg", "rect")])
    ]
    assert {"free": "100", "ours": "10.00", "others": "50.00"} in bars
    pills = {attributes["class"] for tag, attributes in reader.tags if "pill" in (attributes.get("class") or "")}
    assert pills == {"pill ok", "pill note", "pill warn"}, "notes are no alarms"


def test_a_fleet_without_reports_has_no_columns_for_them() -> None:
    text = show().text
    assert "endpoint slots running available state" in text
    assert "CPU" not in text


def test_bars_have_the_right_lengths() -> None:
    bars = [
        {attributes["class"]: attributes["width"] for _, attributes in tags}
        for tags in _groups([tag for tag in show().tags if tag[0] in ("svg", "rect")])
    ]
    assert {"free": "100", "heavy": "12.50", "fast": "12.50"} in bars
    assert {"free": "100", "heavy": "25.00", "fast": "75.00"} in bars


def _groups(tags: list[tuple[str, dict[str, str | None]]]) -> list[list[tuple[str, dict[str, str | None]]]]:
    groups: list[list[tuple[str, dict[str, str | None]]]] = []
    for tag in tags:
        if tag[0] == "svg":
            groups.append([])
        else:
            groups[-1].append(tag)
    return groups


def test_endpoints_in_trouble_come_first_and_a_long_list_is_cut() -> None:
    fleet = Fleet()
    fleet.state["services"]["auditor"]["versions"]["v7"]["endpoints"] = [
        *(endpoint(f"http://10.1.{n // 256}.{n % 256}:9000") for n in range(500)),
        endpoint("http://10.9.9.9:9000", ejected=True, why=["ejected for 9 s more"]),
    ]
    text = show(fleet).text
    assert "and 401 more" in text
    assert "http://10.9.9.9:9000 2 / 8 8 ejected for 9 s more" in text


def test_an_empty_gateway_has_a_page_too() -> None:
    text = Reader(page.render({}, False, "no configuration")).text
    assert "No service is configured." in text
    assert "not ready: no configuration" in text


def test_unknown_sizes_do_not_break_it() -> None:
    fleet = Fleet()
    fleet.state["services"]["auditor"]["versions"]["v7"]["endpoints"] = [
        {"name": "x", "slots": None, "inflight": 3, "heavy": 0},
        {"name": "y"},
    ]
    assert "3 / 0" in show(fleet).text


def test_it_says_that_runs_cannot_be_reached() -> None:
    html = page.render({"store_away": "Redis <is> away"}, True, "")
    assert "runs can't be reached: Redis <is> away" in Reader(html).text
    assert "reached" not in show().text


def test_names_are_escaped() -> None:
    odd = "<script>alert(1)</script>\"'&"
    state: dict[str, Any] = {
        "services": {
            odd: {
                "policy": odd,
                "queue": {"fast": 1},
                "oldest": [
                    dict.fromkeys(("bucket", "tenant", "endpoint", "lane"), odd) | {"age": 1.0, "expected": 300.0}
                ],
                "versions": {
                    odd: {
                        "weight": 1,
                        "breaker": {"state": odd, "share": 0.5, "why": odd},
                        "endpoints": [endpoint(odd, region=odd, why=[odd])],
                    }
                },
            }
        },
        "regions": {odd: {"headroom": 0.5}},
    }
    html = page.render(state, False, odd)
    assert "<script" not in html
    assert "script" not in {tag for tag, _ in Reader(html).tags}
    assert odd in Reader(html).text


def test_it_keeps_to_its_own_policy() -> None:
    html = page.render(Fleet().snapshot(), True, "")
    (style,) = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in frame.CSP
    assert "unsafe" not in frame.CSP
    for tag, attributes in Reader(html).tags:
        assert tag not in ("script", "img", "iframe", "object", "form")
        assert not any(name == "style" or name.startswith("on") for name in attributes)
        for link in (attributes.get("href"), attributes.get("src")):
            assert link is None or link.startswith(("/", "data:,"))


def test_refresh() -> None:
    assert frame.parse_refresh(None) == frame.DEFAULT_REFRESH
    for text in ("x", "-1", "1e3", "99999", "", "\u0661"):
        assert frame.parse_refresh(text) == frame.DEFAULT_REFRESH
    assert frame.parse_refresh("10") == 10
    assert frame.parse_refresh("9999") == frame.MAX_REFRESH
    assert ("meta", {"http-equiv": "refresh", "content": "2"}) in show().tags
    assert not any(attributes.get("http-equiv") for _, attributes in show(refresh=0).tags)


@in_loop
async def test_it_is_served_with_its_policy() -> None:
    async with served() as admin:
        answer = await admin.client.get("/", params={"refresh": "5"})
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert answer.headers["content-security-policy"] == frame.CSP
        assert 'content="5"' in answer.text


@in_loop
async def test_a_planted_secret_appears_in_no_log_metric_traceback_or_page(tmp_path: Path) -> None:
    """Hostile-input 52, as far as this part of the gateway goes: the admin token, sent right and wrong, in every place
    a client can put it, while things fail."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stderr = os.open(tmp_path / "stderr", os.O_WRONLY | os.O_CREAT)
    access = AccessLog(str(tmp_path / "access"), style="json")
    seen = []
    try:
        logs.setup("debug", "json", fd=stderr)
        async with served(token=TOKEN) as admin:
            rejections = logs.Rejections(admin.fleet.stats)
            for headers in ({"x-unjam-token": TOKEN}, {"authorization": f"Bearer {TOKEN}"}, {"authorization": TOKEN}):
                for method, path in (("GET", "/"), ("GET", "/metrics"), ("GET", "/api/state"), ("GET", f"/{TOKEN}")):
                    answer = await admin.client.request(method, path, headers={**headers, "user-agent": TOKEN})
                    seen.append(answer.text + str(answer.headers))
                for body in ({"endpoint": TOKEN}, {"endpoint": "http://10.0.0.1:9000"}, {TOKEN: TOKEN}):
                    answer = await admin.client.post("/api/drain", json=body, headers=headers)
                    if TOKEN not in body:
                        seen.append(answer.text)
            admin.fleet.break_with = RuntimeError(f"no such token: {TOKEN}")
            answer = await admin.client.get("/api/state", headers={"x-unjam-token": TOKEN})
            assert answer.status_code == 500
            seen.append(answer.text)
            rejections.reject("bad_token", "192.0.2.1")
            access.write(Entry("id", "192.0.2.1", None, "GET", "/api/state", 401, "refused", "bad_key"))
            access.close()
            seen.append(render(admin.fleet.metrics())[0].decode())
    finally:
        root.handlers, root.level = handlers, level
        structlog.reset_defaults()
        logs._sink = None
        os.close(stderr)
    seen += [(tmp_path / "stderr").read_text(), (tmp_path / "access").read_text()]
    assert "RuntimeError: no such token: [redacted]" in seen[-2]
    assert '"event":"control"' in seen[-2]
    for text in seen:
        assert TOKEN not in text
