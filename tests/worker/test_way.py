"""The way between a worker and its gateway: what others say on it, and what it forgets."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from tests.clocks import Awake
from tests.runs.redis_faults import Proxy
from unjam.runs.store.memory import MemoryStore
from unjam.worker import Run, Worker

from .api import api, until
from .made import create, ended, in_loop, own_of, reaches, serving


class Way(Proxy):
    """`forget`: connections of now are never heard of again, and nobody is told."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self._known = asyncio.Event()
        self.forgotten = 0

    def forget(self) -> None:
        self._known.set()
        self._known = asyncio.Event()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, replies: bool) -> None:
        forgotten = self._known
        while piece := await reader.read(1 << 16):
            if forgotten.is_set():
                self.forgotten += 1
                await asyncio.Event().wait()
            writer.write(piece)
        raise EOFError


@pytest.mark.parametrize("refusal", [(404, ""), (401, "unauthorized"), (403, "forbidden"), (404, "unknown_service")])
@in_loop
async def test_a_refusal_that_passes_costs_no_run(refusal: tuple[int, str]) -> None:
    """A proxy that is reloaded, a key that is renewed."""
    store = MemoryStore()
    async with api(store, lease=0.3) as server:
        worker = Worker(server.url, service="auditor")
        go = asyncio.Event()

        @worker.run
        async def audit(run: Run) -> str:
            await run.emit("before")
            await go.wait()
            await run.emit("meanwhile")
            await run.save(1)
            return "done"

        run = await create(store)
        async with serving(worker):
            await reaches(store, run, "running")
            server.refuse = {"append": refusal, "heartbeat": refusal, "finish": refusal}
            go.set()
            await until(lambda: len(server.calls("/append")) >= 2 and len(server.calls("/heartbeat")) >= 2)
            server.refuse.clear()
            assert (await ended(store, run)).status == "completed"
        assert [kind for kind, _ in await own_of(store, run)] == ["before", "meanwhile"]


@in_loop
async def test_a_refusal_that_does_not_pass_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unjam.worker.session.DOUBT", 0.2)
    store = MemoryStore()
    async with api(store) as server:
        server.refuse["append"] = (403, "")
        worker = Worker(server.url, service="auditor")

        @worker.run
        async def audit(run: Run) -> None:
            await run.emit("somebody_between_takes_offence")
            await run.save(1)

        run = await create(store)
        async with serving(worker):
            assert (await ended(store, run)).status == "failed"


@in_loop
async def test_a_way_that_forgets_its_connections_costs_no_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unjam.worker.http_link.LEAST", 0.05)
    store = MemoryStore(monotonic=Awake(0.08))
    async with api(store, lease=1.2) as server, Way(server.port) as way:
        worker = Worker(f"http://127.0.0.1:{way.port}", service="auditor", slots=3)
        go = asyncio.Event()

        @worker.run
        async def audit(run: Run) -> int:
            await run.emit("page")
            await go.wait()
            return run.attempt

        runs = [await create(store) for _ in range(3)]
        async with serving(worker):
            await until(lambda: len(server.calls("/append")) == 3)
            way.forget()
            swept: list[Any] = []
            for _ in range(60):
                await asyncio.sleep(0.05)
                swept += await store.sweep()
            assert way.forgotten > 0
            go.set()
            assert [(await ended(store, run)).status for run in runs] == ["completed"] * 3
            assert swept == []


@in_loop
async def test_a_checkpoint_that_was_held_up_on_the_way_does_no_harm() -> None:
    """A gateway that was stopped goes on with what it was sent then, after another one has taken the same."""
    store = MemoryStore()
    async with api(store) as server:
        worker = Worker(server.url, service="auditor")

        @worker.run
        async def audit(run: Run) -> object:
            for page in range(run.checkpoint or 0, 3):
                await run.emit("page", page)
                await run.save(page + 1)
            await asyncio.Event().wait()
            return None

        run = await create(store)
        async with serving(worker):
            await until(lambda: len(server.calls("/heartbeat")) == 3)
            _, path, _, first = server.calls("/heartbeat")[0]
            claim = await store.get(run)
            status, _ = await server._do("POST", path, {}, msgspec.json.encode(first), None)
            assert (status, claim.status) == (200, "running")
        again = await store.claim(["auditor"], "w2", pull=True)
        assert again is not None
        assert again.checkpoint == b"3"
