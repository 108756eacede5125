"""What the status page says of versions: breakers and what they go by, rollouts, workers, and who changed what."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from typing import Any

import pytest

from unjam.admin import app as admin_app
from unjam.admin import page
from unjam.admin.control import ControlRefused
from unjam.core.balancer import Balancer
from unjam.core.model import Lease, Outcome, Request
from unjam.core.spec import BreakerSpec, EndpointSpec, QualitySpec, ServiceSpec, Topology, VersionSpec

from .fleet import Fleet
from .served import in_loop, served
from .test_page import Reader

ODD = "<script>alert(1)</script>\"'&"


def shown(version: Mapping[str, Any] | None = None, **service: Any) -> Reader:
    found = {"versions": {} if version is None else {"v8": version}, **service}
    return Reader(page.render({"services": {"agent": found}}, True, ""))


def real(rate_limit: float = 0.05) -> tuple[Balancer, Any]:
    balancer = Balancer(random.Random(1))
    versions = tuple(
        VersionSpec(name, (EndpointSpec(f"http://10.0.0.{n}:9000"),), weight=weight)
        for n, (name, weight) in enumerate({"v7": 90.0, "v8": 10.0}.items(), 1)
    )
    spec = ServiceSpec("agent", versions, breaker=BreakerSpec(rate_limit, 60.0), quality=QualitySpec())
    balancer.apply(Topology({"agent": spec}), 0.0)
    return balancer, balancer.services["agent"]


def fail(balancer: Balancer, service: Any, version: str, times: int) -> None:
    while times:
        lease = balancer.offer(Request(service, "GET /", 0.0), 1.0)
        assert isinstance(lease, Lease)
        bad = lease.version.name == version
        times -= bad
        balancer.finish(lease, Outcome.SERVER_ERROR if bad else Outcome.OK, 1.0)


def test_the_balancers_evidence_is_drawn_beside_what_it_trips_at() -> None:
    balancer, service = real()
    fail(balancer, service, "v8", 3)
    reader = Reader(page.render(balancer.snapshot(1.0), True, ""))
    assert "breaker closed weight 10 (10 %)" in reader.text
    assert "evidence 4.83 of 7" in reader.text
    assert "3 calls · 3 failed (100 %)" in reader.text
    drawn = [attributes for tag, attributes in reader.tags if attributes.get("class") == "near"]
    assert [bar["width"] for bar in drawn] == ["68.98"]


def test_a_version_that_is_out_says_since_what_and_until_when() -> None:
    balancer, service = real()
    fail(balancer, service, "v8", 5)
    text = Reader(page.render(balancer.snapshot(16.0), True, "")).text
    told = "breaker open weight 10 (10 %) · gets 0 % of the traffic · tries again in 45.0 s · error rate above 5 %"
    assert told in text, text
    assert "breaker closed weight 90 (90 %) · gets 100 % of the traffic" in text
    assert "breaker ramping" in Reader(page.render(_ramping(balancer), True, "")).text


def _ramping(balancer: Balancer) -> dict[str, Any]:
    balancer.tick(62.0)
    return balancer.snapshot(62.0)


def test_verdicts_and_spill_over_are_counted() -> None:
    text = shown({"weight": 1, "calls": 1200, "failures": 3, "good": 40, "bad": 2, "overflowed": 17}).text
    assert "1,200 calls · 3 failed (0.25 %) · verdicts: 40 good, 2 bad · 17 overflowed" in text
    assert "verdicts" not in shown({"weight": 1, "calls": 1, "good": 0, "bad": 0}).text


@pytest.mark.parametrize("missing", [{}, {"breaker": {"rule": "off", "evidence": 1.0, "trips_at": 7.0}}])
def test_where_nobody_counts_there_is_no_evidence(missing: dict[str, Any]) -> None:
    assert "evidence" not in shown({"weight": 1, **missing}).text


RUNNING: dict[str, Any] = {
    "version": "v8",
    "state": "running",
    "share": 0.1,
    "step": 1,
    "steps": [0.01, 0.1, 0.5, 1.0],
    "waits_for": "12 s of its hold are left",
    "why": "no worse at 1 %",
    "new": {"calls": 120, "failures": 1, "judged": 10, "bad": 2},
    "old": {"calls": 1080, "failures": 9, "judged": 0, "bad": 0},
}


def test_a_rollout_under_way_shows_where_it_stands_and_what_it_waits_for() -> None:
    reader = shown(rollout=RUNNING)
    assert (
        "rollout of v8 running 10 % 1 % 10 % 50 % 100 % waits: 12 s of its hold are left no worse at 1 % "
        "this step: 120 calls, 1 failed, 2 of 10 verdicts bad; others: 1,080 calls, 9 failed"
    ) in reader.text
    steps = [attributes for tag, attributes in reader.tags if tag == "li"]
    assert [step["class"] for step in steps] == ["done", "here", "next", "next"]
    assert [step.get("aria-current") for step in steps] == [None, "step", None, None]


@pytest.mark.parametrize(
    ("state", "share", "tone", "dots"),
    [("promoted", 1.0, "ok", "done"), ("rolled_back", 0.0, "bad", "next"), ("paused", 0.1, "warn", None)],
)
def test_a_rollout_that_is_over_or_stopped(state: str, share: float, tone: str, dots: str | None) -> None:
    reader = shown(rollout={**RUNNING, "state": state, "share": share, "waits_for": "", "why": "its breaker tripped"})
    assert f"{state.replace('_', ' ')} {100 * share:.0f} %" in reader.text
    assert "its breaker tripped" in reader.text
    assert "waits:" not in reader.text
    assert ("span", {"class": f"pill {tone}"}) in reader.tags
    if dots is not None:
        assert {attributes["class"] for tag, attributes in reader.tags if tag == "li"} == {dots}


CHANGES = [
    {
        "n": 3,
        "at": "2026-11-22T16:19:43.886Z",
        "who": "alice",
        "key": "weight/agent/v8",
        "before": 10.0,
        "after": {"weight": 12.5, "base": 10.0},
        "why": "",
    },
    {
        "n": 2,
        "at": "2026-11-22T16:19:42.000Z",
        "who": "gw-1",
        "key": "rollout/agent",
        "before": {**RUNNING, "share": 0.01},
        "after": {"state": "rolled_back", "share": 0.0},
        "why": "its breaker tripped",
    },
    {
        "n": 1,
        "at": "2026-11-22T16:19:41.000Z",
        "who": "bob",
        "key": "drain/http://10.0.0.1:9000",
        "before": False,
        "after": True,
        "why": "",
    },
]


def test_the_latest_changes_say_who_when_from_and_to() -> None:
    text = Reader(page.render({}, True, "", 0, CHANGES)).text
    for words in (
        "when (UTC) who what from to why",
        "16:19:43 2026-11-22 alice weight agent/v8 10 12.5",
        "gw-1 rollout agent running, 1 % rolled back, 0 % its breaker tripped",
        "bob drain http://10.0.0.1:9000 in use draining",
    ):
        assert words in text, (words, text)
    assert "Changes" not in Reader(page.render({}, True, "")).text


def test_workers_are_shown_beside_endpoints() -> None:
    worker = {
        "name": "w-1",
        "slots": 4,
        "inflight": 2,
        "heavy": 1,
        "taken": 3,
        "claiming": 1,
        "seen": 2.5,
        "why": ["open"],
        "via": "gw-2",
    }
    text = shown({"weight": 1, "endpoints": [], "workers": [worker]}).text
    assert (
        "worker slots running heard of state w-1 1 by others · waits for work · known to gw-2 2 / 4 2.5 s ago open"
        in text
    )
    assert "no endpoints" not in text
    crowd = [{**worker, "name": f"w-{n}"} for n in range(130)]
    assert "and 30 more" in shown({"weight": 1, "workers": crowd}).text


def test_nothing_of_it_is_taken_for_markup() -> None:
    breaker = {"state": "closed", "why": ODD, "evidence": 1.0, "trips_at": 7.0}
    rollout = dict.fromkeys(("version", "state", "waits_for", "why"), ODD) | {"steps": [0.5], "share": 1}
    change = dict.fromkeys(("at", "who", "key", "before", "after", "why"), ODD)
    worker = dict.fromkeys(("name", "via"), ODD)
    version = {"weight": 1, "breaker": breaker, "workers": [worker]}
    state = {"services": {"agent": {"versions": {"v8": version}, "rollout": rollout}}}
    for html in (page.render(state, True, "", 0, [change]), page.render(state, True, "", 0, (), ODD)):
        assert "<script" not in html
        assert ODD in Reader(html).text


@in_loop
async def test_the_page_reads_the_audit_log() -> None:
    async with served() as admin:
        text = Reader((await admin.client.get("/")).text).text
        assert "Changes when (UTC) who what" in text


@in_loop
async def test_the_page_comes_while_the_audit_log_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    class Away(Fleet):
        reads = 0

        async def audit(self, limit: int, before: int | None, key: str | None) -> list[dict[str, Any]]:
            self.reads += 1
            if self.problems:
                raise ControlRefused("store_away", "The audit log can't be read now: Redis is away.", 503)
            await asyncio.Event().wait()
            return []

    fleet = Away()
    fleet.problems = ["refused"]
    async with served(fleet) as admin:
        text = Reader((await admin.client.get("/")).text).text
        assert "The audit log can't be read now: Redis is away." in text
        assert "breaker open" in text
        fleet.problems, fleet.reads = [], 0
        monkeypatch.setattr(admin_app, "PAGE_PATIENCE", 0.01)
        for _ in range(3):
            answer = await admin.client.get("/")
            assert answer.status_code == 200
            assert "doesn't answer" in Reader(answer.text).text
        assert fleet.reads == 1, "who looks again waits for the same reading"
