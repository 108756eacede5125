"""Verdicts on durable runs: users', agents' own and evaluators', whoever executed the run."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.gateway.durable import Api, runs_gateway
from tests.gateway.harness import Agent, Call, Running, gateway, in_loop, until
from unjam.client import AsyncClient, Client, NotAccepted

SERVICES = """
services:
  auditor:
    match: {{path: /agents/auditor}}
    runs: {{execute: {execute}}}
    breaker: {{open: 1h}}
    quality: {quality}
    versions: {{{versions}}}
  plain:
    match: {{path: /agents/plain}}
    versions: {{v1: {{endpoints: ["http://127.0.0.1:9"]}}}}
"""


def services(quality: str = "on", execute: str = "pull", versions: str = "", agent: Agent | None = None) -> str:
    url = "http://127.0.0.1:9" if agent is None else agent.url
    versions = versions or f"v1: {{endpoints: ['{url}']}}"
    return SERVICES.format(quality=quality, execute=execute, versions=versions)


def version(gw: Running, name: str = "v1") -> Any:
    return next(v for v in gw.gateway.balancer.services["auditor"].versions if v.name == name)


async def worked(api: Api, result: Any = "It is 42.", by: str | None = None) -> str:
    """A run that a worker has completed."""
    run = await api.create()
    asked = {"services": ["auditor"], "worker": "w", "wait": 5, **({"version": by} if by else {})}
    status, claim = await api.call("POST", "/v1/workers/claim", asked)
    assert status == 200
    await api.finish(claim, result)
    return str(run["id"])


async def vote(api: Api, run: str, word: str) -> tuple[int, Any]:
    return await api.call("POST", f"/v1/runs/{run}/verdict", {"verdict": word, "reason": "of a reviewer"})


@in_loop
async def test_a_users_verdicts_on_pulled_runs_trip_the_version_that_had_them() -> None:
    two = "v1: {weight: 1, endpoints: ['http://127.0.0.1:9']}, v2: {weight: 1, endpoints: ['http://127.0.0.1:9']}"
    async with runs_gateway(services=services(versions=two)) as gw:
        api = await Api.connect(gw)
        runs = [await worked(api, by="v2") for _ in range(5)]
        for n, run in enumerate(runs):
            assert version(gw, "v2").breaker.state == "closed", n
            taken = {"service": "auditor", "version": "v2", "verdict": "bad"}
            assert await vote(api, run, "bad") == (202, taken)
            assert await vote(api, run, "bad") == (200, taken)
        assert version(gw, "v2").breaker.state == "open"
        assert (version(gw, "v1").bad, version(gw, "v2").bad) == (0, 5)
        assert version(gw, "v1").breaker.evidence == 0.0
        status, _ = await vote(api, runs[0], "good")
        assert status == 202
        assert (version(gw, "v2").good, version(gw, "v2").bad) == (0, 5)


@in_loop
async def test_what_cannot_be_judged() -> None:
    async with runs_gateway(services=services()) as gw:
        api = await Api.connect(gw)
        waiting = (await api.create())["id"]
        plain = (await api.create("plain"))["id"]
        for run, status, code in (
            (waiting, 409, "run_not_ended"),
            (plain, 404, "not_judged"),
            (f"{waiting[:-1]}x", 404, "unknown_run"),
        ):
            answer = await vote(api, run, "bad")
            assert (answer[0], answer[1]["error"]["code"]) == (status, code)
        status, _ = await api.call("POST", f"/v1/runs/{waiting}/cancel")
        assert status == 200
        assert (await vote(api, waiting, "bad"))[1]["error"]["code"] == "not_judged"  # nobody ever had it


@in_loop
async def test_evaluators_look_at_the_results_of_pulled_runs() -> None:
    quality = "{sample: 100%, evaluators: [{pattern: {never: 'made up'}}]}"
    async with runs_gateway(services=services(quality)) as gw:
        api = await Api.connect(gw)
        await worked(api)
        for _ in range(5):
            await worked(api, {"text": "made up"})
        stats = gw.gateway.stats.service("auditor")
        await until(lambda: sum(stats.evaluations.values()) == 6)
        assert stats.evaluations == {("pattern", "good"): 1, ("pattern", "bad"): 5}
        assert version(gw).breaker.state == "open"
        assert "what must never be there is" in version(gw).breaker.why


@in_loop
async def test_pushed_runs_are_judged_by_their_agent_by_users_and_by_evaluators() -> None:
    async def ashamed(call: Call) -> None:
        await call.answer(b"made up", headers="x-unjam-verdict: bad; made up\r\n")

    async def tells(call: Call) -> None:
        await call.start_events()
        await call.chunk(b'event: unjam.verdict\ndata: {"verdict": "bad"}\n\nevent: result\ndata: "made up"\n\n')
        await call.last_chunk()

    for behaviour in (ashamed, tells):
        agent = await Agent(behaviour).start()
        quality = "{sample: 100%, evaluators: [{pattern: {never: 'made up'}}]}"
        async with gateway(agent, config="runs: on\n" + services(quality, "push", agent=agent)) as gw:
            api = await Api.connect(gw)
            run = (await api.create())["id"]
            _, ended = await api.call("GET", f"/v1/runs/{run}?wait=5")
            assert (ended["status"], ended["result"]) == ("completed", "made up")
            stats = gw.gateway.stats.service("auditor")
            await until(lambda stats=stats: stats.evaluations == {("pattern", "bad"): 1})
            await gw.settled()
            assert stats.lane(False).outcomes["rejected_quality"] == 1
            assert stats.verdicts == {("agent", "bad"): 1, ("evaluators", "bad"): 1}
            assert (await vote(api, run, "bad"))[0] == 202
            assert version(gw).bad == 2


@in_loop
async def test_the_clients_say_what_a_result_was_worth() -> None:
    async with runs_gateway(services=services()) as gw:
        api = await Api.connect(gw)
        run = await worked(api)
        async with AsyncClient(f"http://127.0.0.1:{gw.port}") as client:
            assert await client.verdict(run, "bad", "it is 43") == "v1"
            assert await client.verdict(await client.get(run), "good") == "v1"
            assert (version(gw).good, version(gw).bad) == (0, 1)
            waits = await client.submit("auditor")
            with pytest.raises(NotAccepted) as caught:
                await client.verdict(waits, "bad")
            assert (caught.value.status, caught.value.code) == (409, "run_not_ended")

        def elsewhere() -> str:
            with Client(f"http://127.0.0.1:{gw.port}") as client:
                return client.verdict(run, "bad", reason="it is 43")

        assert await asyncio.to_thread(elsewhere) == "v1"
        assert gw.gateway.stats.service("auditor").verdicts == {("user", "bad"): 2, ("user", "good"): 1}


@in_loop
async def test_an_answers_verdict_fits_the_description_of_the_api() -> None:
    agent = await Agent().start()
    async with runs_gateway(services=services(agent=agent)) as gw:
        api, wire = await Api.connect(gw), await gw.connect()
        request_id = (await wire.get("/agents/auditor/x")).header("x-request-id")
        taken = {"service": "auditor", "version": "v1", "verdict": "bad"}
        path = f"/v1/requests/{request_id}/verdict"
        assert await api.call("POST", path, {"verdict": "bad"}) == (202, taken)
        assert await api.call("POST", path, {"verdict": "bad"}) == (200, taken)
        assert (await api.call("POST", "/v1/requests/made-up/verdict", {"verdict": "bad"}))[0] == 404
    await agent.stop()
