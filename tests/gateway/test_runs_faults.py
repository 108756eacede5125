"""The runs API beside clients, workers and agents that are odd, many or hostile: the others go on unharmed."""

from __future__ import annotations

import asyncio
from hashlib import sha256

import pytest

from .durable import Api, runs_gateway
from .harness import in_loop, until


async def waits(api: Api, worker: str, *lanes: str) -> None:
    body = {"services": ["auditor"], "worker": worker, "lanes": list(lanes), "wait": 60}
    await api.send("POST", "/v1/workers/claim", body)


@in_loop
async def test_an_idle_worker_gets_a_run_although_others_wait_longer_that_may_not_have_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("unjam.runs.ready.RECONCILE", 60.0)  # nobody looks unasked
    async with runs_gateway() as running:
        assert running.server.durable is not None
        ready = running.server.durable.ready
        for number in range(4):
            await waits(await Api.connect(running), f"heavy{number}", "heavy")
        await until(lambda: len(ready) == 4)
        worker = await Api.connect(running)
        await waits(worker, "fast", "fast")
        await until(lambda: len(ready) == 5)
        client = await Api.connect(running)
        async with asyncio.timeout(20):
            run = await client.create()
            status, claim = await worker.read("POST", "/v1/workers/claim")
        assert (status, claim["run"]["id"]) == (200, run["id"])


@in_loop
async def test_a_worker_that_left_takes_no_hint_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unjam.runs.ready.RECONCILE", 60.0)
    async with runs_gateway() as running:
        assert running.server.durable is not None
        ready = running.server.durable.ready
        leaves, worker, client = [await Api.connect(running) for _ in range(3)]
        await waits(leaves, "w1", "fast")
        await until(lambda: len(ready) == 1)
        await waits(worker, "w2", "fast")
        await until(lambda: len(ready) == 2)
        leaves.wire.writer.transport.abort()
        async with asyncio.timeout(20):
            run = await client.create()
            status, claim = await worker.read("POST", "/v1/workers/claim")
        assert (status, claim["run"]["id"]) == (200, run["id"])


@in_loop
async def test_an_error_is_no_result_and_may_not_be_as_large() -> None:
    """It is in the run's record, so whoever lists runs is sent it."""
    async with runs_gateway() as running:
        api = await Api.connect(running)
        run = await api.create()
        claim = await api.claim()
        path, body = f"/v1/runs/{run['id']}/finish", {"fence": claim["fence"], "status": "failed"}
        status, answer = await api.call("POST", path, {**body, "error": {"code": "x", "trace": "x" * 65536}})
        assert (status, answer["error"]["code"]) == (413, "payload_too_large")
        status, _ = await api.call("POST", path, {**body, "error": {"code": "x", "trace": "x" * 60000}})
        assert status == 200


@pytest.mark.parametrize(("tenants", "most"), [(("acme", "acme"), 6), (("acme", "globex"), 3)])
@in_loop
async def test_one_tenant_does_not_fill_the_queue_for_the_others(tenants: tuple[str, str], most: int) -> None:
    """Where there are others, and nothing else was said."""
    keys = [("A" * 32, tenants[0]), ("B" * 32, tenants[1])]
    more = "keys:\n" + "".join(
        f'  - {{hash: "sha256:{sha256(key.encode()).hexdigest()}", tenant: {tenant}}}\n' for key, tenant in keys
    )
    async with runs_gateway(more, runs="{max_queued: 6}") as running:
        api = await Api.connect(running, keys[0][0])
        for _ in range(most):
            await api.create()
        status, answer = await api.call("POST", "/v1/runs", {"service": "auditor", "input": 1})
        shared = tenants[0] != tenants[1]
        assert (status, answer["error"]["code"]) == (429, "tenant_queue_full" if shared else "queue_full")
        if shared:
            other = await Api.connect(running, keys[1][0])
            assert (await other.create())["status"] == "queued"
