"""A gateway whose runs are pushed to agents, for tests: real sockets, a store in memory that can be made to fail."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from tests.gateway.harness import PATIENCE, Agent, Running, gateway
from unjam.gateway.dispatcher import Dispatcher, PushOptions
from unjam.runs.model import Event, NewRun, Run
from unjam.runs.store.base import StoreAway
from unjam.runs.store.memory import MemoryStore


class Faulty(MemoryStore):
    """`away`: names of calls that fail until it is emptied; `gate`: while it is cleared, `append` waits."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.away: set[str] = set()
        self.calls: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.gate = asyncio.Event()
        self.gate.set()

    def _call(self, name: str) -> None:
        self.calls[name] += 1
        if name in self.away:
            self.refused[name] += 1
            raise StoreAway("unplugged", retry_after=0.1)

    async def claim(self, *args: Any, **options: Any) -> Any:
        self._call("claim")
        return await super().claim(*args, **options)

    async def append(self, *args: Any, **options: Any) -> Any:
        self._call("append")
        await self.gate.wait()
        return await super().append(*args, **options)

    async def heartbeat(self, *args: Any, **options: Any) -> Any:
        self._call("heartbeat")
        return await super().heartbeat(*args, **options)

    async def finish(self, *args: Any, **options: Any) -> Any:
        self._call("finish")
        return await super().finish(*args, **options)


class Pushing:
    """A gateway with its dispatcher and the store behind it."""

    def __init__(self, running: Running, store: Faulty, dispatcher: Dispatcher) -> None:
        self.running = running
        self.store = store
        self.dispatcher = dispatcher

    async def submit(self, given: object = None, service: str = "agent", **options: Any) -> Run:
        payload = given if isinstance(given, bytes) else msgspec.json.encode(given)
        run, _ = await self.store.create(NewRun(service=service, input=payload, digest=payload, **options))
        return run

    async def ended(self, run: Run) -> Run:
        return await self.status(run, "completed", "failed", "cancelled", "expired")

    async def status(self, run: Run, *wanted: str) -> Run:
        async with asyncio.timeout(PATIENCE):
            while (found := await self.store.get(run.id)).status not in wanted:
                await asyncio.sleep(0.002)
        return found

    async def log(self, run: Run) -> list[Event]:
        return (await self.store.read(run.id, limit=10_000, size=1 << 30)).events

    async def types(self, run: Run) -> list[str]:
        return [event.type for event in await self.log(run)]

    async def logged(self, run: Run, kind: str, times: int = 1) -> list[Event]:
        """The events of that type, once there are so many."""
        async with asyncio.timeout(PATIENCE):
            while len(found := [event for event in await self.log(run) if event.type == kind]) < times:
                await asyncio.sleep(0.002)
        return found

    async def result(self, run: Run) -> Any:
        found = await self.store.result(run.id)
        return None if found is None else msgspec.json.decode(found)


def error_of(run: Run) -> dict[str, Any]:
    assert run.error is not None
    return msgspec.json.decode(run.error)  # type: ignore[no-any-return]


@asynccontextmanager
async def pushing(
    *agents: Agent,
    config: str | None = None,
    services: Sequence[str] = ("agent",),
    path: str | None = None,
    store: Faulty | None = None,
    **options: Any,
) -> AsyncIterator[Pushing]:
    """As `gateway`; all `services` have their runs pushed. `options`: of the dispatcher."""
    async with gateway(*agents, config=config) as running:
        kept = store or Faulty()
        dispatcher = Dispatcher(running.gateway, kept, PushOptions(**options))
        kept.on_ready = dispatcher.ready
        dispatcher.configure(dict.fromkeys(services, path))
        dispatcher.start()
        try:
            yield Pushing(running, kept, dispatcher)
        finally:
            await dispatcher.close()


def one(*agents: Agent, slots: int = 8, more: str = "", match: str = "/agents/agent") -> str:
    """The configuration of a service `agent` with these endpoints. `more`: keys of the service."""
    endpoints = ", ".join(f'{{url: "{agent.url}", slots: {slots}}}' for agent in agents)
    return (
        f"services:\n  agent:\n    match: {{path: {match}}}\n    versions: {{v1: {{endpoints: [{endpoints}]}}}}\n{more}"
    )
