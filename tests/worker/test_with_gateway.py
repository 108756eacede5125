"""Workers and clients with real gateways: over HTTP, with keys, with two gateways of one Redis, straight at Redis."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from benchmarks.common.procs import free_port

from tests.runs.redis_servers import Server as Redis
from unjam.client import AsyncClient, NotAccepted, RunCancelled, RunFailed
from unjam.runs.store.memory import MemoryStore
from unjam.worker import Run, RunError, Worker

from ..gateway.harness import gateway, in_loop
from ..gateway.processes import process, served
from .made import serving

SERVICES = """
services:
  auditor:
    match: {path: /agents/auditor}
    runs: {execute: pull}
    versions: {v1: {endpoints: ["http://127.0.0.1:9"]}}
"""


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    folder = tmp_path / "redis"
    folder.mkdir()
    server = Redis(folder, "appendonly yes").start()
    yield server
    server.kill()


@in_loop
async def test_the_whole_story_over_http(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unjam.worker.run.LOOK", 0.02)
    async with gateway(
        config=f"runs: {{lease: 3s, max_result: 1MiB}}\nstate: 'memory:'\n{SERVICES}", store=MemoryStore()
    ) as there:
        url = f"http://127.0.0.1:{there.port}"
        worker = Worker(url, service="auditor", slots=4)

        @worker.run
        async def audit(run: Run) -> Any:
            await run.emit("begun", run.input)
            if run.input == "fail":
                raise RunError("bad_input", "it is bad")
            if isinstance(run.input, int):
                return "x" * run.input
            if run.input == "ask":
                async for number, data in run.inputs():
                    return [number, data]
            if run.input == "wait":
                await asyncio.Event().wait()
            await run.save({"page": 1})
            return {"done": run.input}

        async with serving(worker), AsyncClient(url) as client:
            good = await client.submit("auditor", {"a": "é"}, metadata={"who": "me"})
            assert await client.result(good) == {"done": {"a": "é"}}
            log = [(event.seq, event.type, event.data) async for event in client.follow(good)]
            assert log == [
                (0, "run.created", {"service": "auditor", "lane": "fast"}),
                (1, "run.attempt", {"n": 1, "from_seq": 1, "reason": "first"}),
                (2, "begun", {"a": "é"}),
                (3, "run.completed", {}),
            ]
            with pytest.raises(RunFailed, match="it is bad"):
                await client.result(await client.submit("auditor", "fail"))
            # Above what the gateway is told to take, above what it reads at all, above what any store takes.
            for size in (2 << 20, 12 << 20, 17 << 20):
                with pytest.raises(RunFailed) as caught:
                    await client.result(await client.submit("auditor", size))
                assert caught.value.code == "result_too_large"
            asked = await client.submit("auditor", "ask")
            assert await client.send(asked, {"more": True}) == 1
            assert await client.result(asked) == [1, {"more": True}]
            waiting = await client.submit("auditor", "wait")
            async for event in client.follow(waiting):
                if event.type == "begun":
                    await client.cancel(waiting)
            with pytest.raises(RunCancelled):
                await client.result(waiting)
            assert len(await client.list(service="auditor")) == 7
            with pytest.raises(NotAccepted) as ended:
                await client.send(waiting, "too late")
            assert (ended.value.status, ended.value.code) == (409, "run_ended")


@in_loop
async def test_a_gateway_with_keys_takes_workers_by_their_role() -> None:
    def entry(key: str, tenant: str, role: str) -> str:
        return f"  - {{hash: 'sha256:{sha256(key.encode()).hexdigest()}', tenant: {tenant}, role: {role}}}\n"

    keys = "keys:\n" + entry("c" * 32, "shop", "client") + entry("w" * 32, "jobs", "worker")
    async with gateway(config=f"runs: on\nstate: 'memory:'\n{keys}{SERVICES}", store=MemoryStore()) as there:
        url = f"http://127.0.0.1:{there.port}"
        wrong, right = Worker(url, service="auditor", key="c" * 32), Worker(url, service="auditor", key="w" * 32)
        names: list[str] = []
        for worker in (wrong, right):

            def audit(run: Any, name: str = worker.name) -> None:
                names.append(name)

            worker.run(audit)
        async with AsyncClient(url, key="c" * 32) as client, serving(wrong):
            run = await client.submit("auditor")
            async with serving(right):
                await client.result(run)
        assert names == [right.name]


PAGES = """
import asyncio, os
from unjam.worker import Worker

worker = Worker("http://127.0.0.1:1", service="auditor", lease=3)

@worker.run
async def pages(run):
    for page in range(run.checkpoint or 0, 20):
        await run.emit("page", page)
        await run.save(page + 1)
        while page == 9 and not os.path.exists("go"):
            await asyncio.sleep(0.01)
    return run.fence
"""


@pytest.mark.parametrize("straight", [False, True])
@in_loop
async def test_a_gateway_is_killed_a_worker_is_killed_and_no_event_is_missed(
    tmp_path: Path, redis: Redis, straight: bool
) -> None:
    (tmp_path / "pages.py").write_text(PAGES)
    config = f"admin: off\nstate: {redis.url()}\nruns: {{lease: 3s}}\n{SERVICES}"
    ports = [free_port(), free_port()]
    for port in ports:
        (tmp_path / f"{port}.yaml").write_text(f"listen: 127.0.0.1:{port}\n{config}")
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    targets = ["--target", redis.url()] if straight else [word for url in urls for word in ("--target", url)]
    seen: list[tuple[int, str]] = []
    async with (
        served("--config", f"{ports[0]}.yaml", cwd=tmp_path) as (first, _),
        served("--config", f"{ports[1]}.yaml", cwd=tmp_path),
        process("-m", "unjam.worker", "pages", *targets, cwd=tmp_path) as killed,
        AsyncClient(urls) as client,
        AsyncExitStack() as later,
    ):
        run = await client.submit("auditor")
        async for event in client.follow(run):
            seen.append((event.seq, event.type))
            # The second worker may show the page again: what is executed at least once is killed once.
            if event.type == "page" and event.data == 9 and not (tmp_path / "go").exists():
                first.send(signal.SIGKILL)
                killed.send(signal.SIGKILL)
                await first.exit_code()
                await killed.exit_code()
                (tmp_path / "go").touch()
                await later.enter_async_context(process("-m", "unjam.worker", "pages", *targets, cwd=tmp_path))
        assert await client.result(run) == 2  # the fence: a second worker has ended it
    assert [seq for seq, _ in seen] == list(range(len(seen)))
    assert [kind for _, kind in seen].count("run.completed") == 1
