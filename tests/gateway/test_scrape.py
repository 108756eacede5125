"""Load from metrics pages: real pages of inference engines, and pages of every bad kind."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unjam.config import parse
from unjam.config.engines import ENGINES
from unjam.core.spec import MetricsSpec
from unjam.gateway.scrape import MOST_WANTED, load_of, samples

from .harness import Agent, Call, Wire, gateway, in_loop, until, until_gone
from .told import listen, source, told, until_pulled, until_ticked

#: As vLLM writes it, two engines behind one server; shortened.
VLLM = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0",model_name="m, \\"x\\" {{y}}"}} {running}
vllm:num_requests_running{{engine="1",model_name="m"}} 1.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{{engine="0",model_name="m"}} {waiting}
vllm:num_requests_waiting{{engine="1",model_name="m"}} 0.0
vllm:num_requests_waiting_by_reason{{reason="capacity"}} 900.0
# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{{engine="0",model_name="m"}} {cache}
vllm:kv_cache_usage_perc{{engine="1",model_name="m"}} 0.25
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{{le="0.001",model_name="m"}} 0.0
vllm:time_to_first_token_seconds_bucket{{le="+Inf",model_name="m"}} 0.0
"""


def vllm(running: object = 2.0, waiting: object = 1.0, cache: object = 0.5) -> bytes:
    return VLLM.format(running=running, waiting=waiting, cache=cache).encode()


def spec_of(engine: str) -> MetricsSpec:
    return MetricsSpec("/metrics", *ENGINES[engine])


def with_page(page: bytes, status: int = 200) -> Agent:
    """An endpoint with this page; it works on everything else."""

    async def answers(call: Call) -> None:
        if call.seen.target == "/metrics":
            await call.answer(page, status)
        else:
            await call.answer()

    return Agent(answers)


def configured(*agents: Agent, load: str = "{metrics: {engine: vllm, interval: 80ms}}", more: str = "") -> str:
    endpoints = ", ".join(f"{{url: '{agent.url}'}}" for agent in agents)
    return f"services: {{s: {{load: {load}, {more}versions: {{v: {{endpoints: [{endpoints}]}}}}}}}}\n"


# -- reading a page ------------------------------------------------------------------------------------------------


def test_counts_are_summed_and_of_shares_the_largest_counts() -> None:
    load = load_of(vllm(), spec_of("vllm"))
    assert load.known() == {"in_flight": 4, "waiting": 1, "cache": 0.5}
    assert load.source == "metrics"


@pytest.mark.parametrize(
    ("engine", "page", "known"),
    [
        (
            "vllm",
            b"vllm:num_requests_running 2\nvllm:num_requests_waiting 3\nvllm:gpu_cache_usage_perc 0.75\n",
            {"in_flight": 5, "waiting": 3, "cache": 0.75},
        ),
        (
            "sglang",
            b'sglang:num_running_reqs{m="a"} 7\nsglang:num_queue_reqs{m="a"} 2\nsglang:token_usage{m="a"} 0.28\n',
            {"in_flight": 9, "waiting": 2, "cache": 0.28},
        ),
        (
            "sglang",
            b"sglang_num_running_reqs 7.0\r\nsglang_num_queue_reqs 0.0\r\nsglang_token_usage 0.1\r\n",
            {"in_flight": 7, "waiting": 0, "cache": 0.1},
        ),
        ("tgi", b"tgi_queue_size 4\ntgi_batch_current_size 16", {"in_flight": 20, "waiting": 4}),
        ("tgi", b"tgi_queue_size\t4 1700000000000\n", {"waiting": 4}),
    ],
)
def test_the_pages_of_engines(engine: str, page: bytes, known: dict[str, Any]) -> None:
    assert load_of(page, spec_of(engine)).known() == known


def test_names_of_ones_own() -> None:
    spec = MetricsSpec("/", running=("jobs",), slots=("workers",))
    assert load_of(b"jobs_total 9\njobs 3\nworkers 8\n", spec).known() == {"in_flight": 3, "slots": 8}


@pytest.mark.parametrize(
    ("page", "why"),
    [
        (b"", "the page has none of vllm:num_requests_running, "),
        (b"<html>not here</html>", "the page has none of"),
        (b"# vllm:num_requests_running 3\n", "the page has none of"),
        (b"vllm:num_requests_running three\n", "not in the Prometheus text format"),
        (b"vllm:num_requests_running \n", "not in the Prometheus text format"),
        (b'vllm:num_requests_running{a="b 3\n', "not in the Prometheus text format"),
        (b"vllm:num_requests_running{ 3\n", "not in the Prometheus text format"),
        (b"vllm:num_requests_running %b\n" % (b"9" * 400), "not in the Prometheus text format"),
        (b"vllm:num_requests_running \xff\n", "not in the Prometheus text format"),
        (b'vllm:num_requests_running{a="%b"} 1\n' % (b"x" * 5000), "too many or too long"),
        (b'vllm:num_requests_running{a="b"} 1\n' * 4000, "too many or too long"),
    ],
)
def test_pages_that_cannot_be_read(page: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        load_of(page, spec_of("vllm"))


@pytest.mark.parametrize(
    ("page", "problem"),
    [
        (vllm(running="NaN"), "in_flight is not a number"),
        (vllm(waiting="+Inf"), "in_flight is not a number"),
        (vllm(running=-4), "in_flight is -2"),
        (vllm(running="1e300"), "in_flight is 1e+300"),
        (vllm(cache=50), "cache is 50"),
        (vllm(cache="NaN"), "cache is not a number"),
    ],
)
def test_what_cannot_be_true_is_handed_on_for_the_core_to_name(page: bytes, problem: str) -> None:
    assert problem in load_of(page, spec_of("vllm")).problem()


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_whatever_is_on_the_page(one: bytes, other: bytes) -> None:
    """It is read, or refused with a ValueError; nothing else, and what is read can be judged."""
    try:
        found = load_of(b"queue%b\nqueue %b\nqueue{%b" % (one, other, one), MetricsSpec("/", waiting=("queue",)))
    except ValueError:
        return
    found.problem()


def test_a_long_page_costs_little() -> None:
    """Its lines are not parsed: 4 MiB of others take less than a few dozen wanted ones would."""
    page = b'vllm:request_seconds_bucket{le="0.1",model_name="some/model"} 0.0\n' * 60_000 + vllm()
    started = time.process_time()
    assert load_of(page, spec_of("vllm")).in_flight == 4
    assert time.process_time() - started < 0.25


def test_the_worst_page_is_bounded() -> None:
    line = b'queue{a="%b"} 1\n' % (b'\\"' * 1900)
    page = line * (MOST_WANTED // len(line))
    started = time.process_time()
    assert math.isfinite(sum(samples(page, ["queue"])["queue"]))
    assert time.process_time() - started < 1.0


# -- asking for it -------------------------------------------------------------------------------------------------


@in_loop
async def test_a_page_becomes_what_is_known_of_the_endpoint() -> None:
    agent = await with_page(vllm()).start()
    async with gateway(agent, config=configured(agent, load="{metrics: {engine: vllm, interval: 300ms}}")) as running:
        await until_pulled(running, "metrics", "ok", 3)
        assert source(running, agent, "metrics")["in_flight"] == 4
        assert agent.connections == 1, "the connection is used again"
        asked = agent.requests[0]
        assert asked.header("user-agent") == "unjam-load"
        assert (asked.header("accept") or "").startswith("text/plain")


async def silent(call: Call) -> None:
    if call.seen.target == "/metrics":
        await until_gone(call)
    else:
        await call.answer()


async def endless(call: Call) -> None:
    if call.seen.target != "/metrics":
        await call.answer()
        return
    await call.write(b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n")
    while not call.writer.is_closing():
        await call.chunk(b"# nothing\n" * 6000)


async def broken(call: Call) -> None:
    if call.seen.target == "/metrics":
        await call.write(b"oh\r\n\r\n")
    else:
        await call.answer()


@pytest.mark.parametrize(
    ("behaviour", "result", "why"),
    [
        (with_page(vllm(), 503).behaviour, "failed", "status 503"),
        (with_page(b"{}").behaviour, "failed", "the page has none of"),
        (with_page(vllm(running="NaN")).behaviour, "refused", "in_flight is not a number"),
        (silent, "failed", "no answer within 0.08 s"),
        (broken, "failed", "bad_status_line"),
    ],
)
@in_loop
async def test_failures_are_counted_and_told_once_and_requests_go_on(behaviour: Any, result: str, why: str) -> None:
    agent = await Agent(behaviour).start()
    interval = 80 if behaviour is silent else 300  # ms, also for an answer
    config = configured(agent, load=f"{{metrics: {{engine: vllm, interval: {interval}ms}}}}")
    async with gateway(agent, config=config) as running:
        log = listen(running)
        await until_pulled(running, "metrics", result, 3)
        ((level, ok, told_why),) = log.of("load_pull")
        assert (level, ok) == ("warning", False)
        assert why in told_why
        assert (await (await running.connect()).get()).status == 200
        assert source(running, agent, "metrics") is None
        agent.behaviour = with_page(vllm()).behaviour
        await until_pulled(running, "metrics", "ok")
        assert [ok for _, ok, _ in log.of("load_pull")] == [False, True]
        assert source(running, agent, "metrics")["waiting"] == 1


@in_loop
async def test_a_page_without_an_end_is_cut_off() -> None:
    agent = await Agent(endless).start()
    async with gateway(agent, config=configured(agent, load="{metrics: {engine: vllm, interval: 2s}}")) as running:
        log = listen(running)
        await until_pulled(running, "metrics", "failed")
        ((_, _, why),) = log.of("load_pull")
        assert why == f"the answer is longer than {4 << 20} bytes"


@in_loop
async def test_an_endpoint_that_is_not_there() -> None:
    agent = await Agent().start()
    async with gateway(agent, config=configured(agent, load="{metrics: {engine: vllm, interval: 500ms}}")) as running:
        log = listen(running)
        await agent.stop()
        await until_pulled(running, "metrics", "failed", 2)
        assert any("Refused" in why or "Reset" in why for _, _, why in log.of("load_pull"))


@in_loop
async def test_a_reload_changes_what_is_asked_and_stops_it() -> None:
    agent = await with_page(vllm()).start()
    configs = [
        configured(agent, load="{metrics: {engine: vllm, interval: 80ms, path: /other}}"),
        configured(agent, load="off", more="health: {path: /health, interval: 80ms}, "),
    ]
    top = "listen: 127.0.0.1:0\nadmin: off\naccess_log: off\n"

    def asked(path: str) -> int:
        return sum(seen.target == path for seen in agent.requests)

    async with gateway(agent, config=configured(agent), reload=lambda: parse(top + configs.pop(0), {})) as running:
        await until(lambda: asked("/metrics"))
        assert await running.server.reload() == []
        await until(lambda: asked("/other"))
        before = asked("/metrics")
        await until_pulled(running, "metrics", "failed", 3)  # /other is no page
        assert asked("/metrics") == before
        assert await running.server.reload() == []
        await until(lambda: asked("/health"))
        before = asked("/other")
        wanted = asked("/health") + 4
        await until(lambda: asked("/health") >= wanted)
        assert asked("/other") == before


@in_loop
async def test_an_endpoint_that_joins_is_asked_until_it_leaves() -> None:
    agent = await with_page(vllm()).start()
    token = "a-token-of-reporters"
    config = f"""reporters: {{listen: "127.0.0.1:0", token: {token}}}
services: {{s: {{load: {{metrics: {{engine: vllm, interval: 80ms}}}}, versions: {{v: {{discover: true}}}}}}}}
"""
    async with gateway(agent, config=config) as running:
        port = next(each.port for name, each in running.server.listeners.items() if name.startswith("reporters"))
        wire = await Wire.connect(port)
        running.wires.append(wire)
        bearer = f"Authorization: Bearer {token}\r\nContent-Type: application/json\r\n"
        report = f'{{"service": "s", "url": "{agent.url}", "load": {{}}%s}}'
        assert (await wire.post("/v1/report", (report % "").encode(), bearer)).status == 200
        await until_pulled(running, "metrics", "ok", 2)
        assert source(running, agent, "metrics")["in_flight"] == 4
        leaving = (report % ', "state": "leaving"').encode()
        assert (await wire.post("/v1/report", leaving, bearer)).status == 200
        asked = len(agent.requests)
        await until_ticked(running, 3)
        assert len(agent.requests) <= asked + 1  # one may have been under way


@in_loop
async def test_it_moves_traffic() -> None:
    """An engine whose cache is full gets no heavy work; hellos it does get."""
    full = await with_page(vllm(cache=0.99)).start()
    free = await with_page(vllm(cache=0.1)).start()
    async with gateway(full, free, config=configured(full, free)) as running:
        await until(lambda: told(running, full) and told(running, free))
        wire = await running.connect()

        def worked(agent: Agent) -> int:
            return sum(seen.target == "/work" for seen in agent.requests)

        for _ in range(5):  # later ones would not be believed to be heavy: they end at once
            answer = await wire.get("/work", "x-unjam-lane: heavy\r\n")
            assert (answer.status, answer.header("x-unjam-lane")) == (200, "heavy")
        assert (worked(full), worked(free)) == (0, 5)
        for _ in range(10):
            await wire.get("/work", "x-unjam-lane: fast\r\n")
        assert worked(full) > 0
