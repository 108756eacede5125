"""Gateways with durable runs, their clients and workers, for tests.

Every JSON answer that goes through `Api` is held against the gateway's own OpenAPI document.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from unjam.gateway.openapi import document
from unjam.runs.model import Batch, Run
from unjam.runs.store.base import Store, StoreAway
from unjam.runs.store.memory import MemoryStore

from . import schema
from .harness import PATIENCE, Answer, Running, Wire, gateway

SERVICES = """
services:
  auditor:
    match: {path: /agents/auditor}
    runs: {execute: pull}
    versions: {v1: {endpoints: ["http://127.0.0.1:9"]}}
  other:
    match: {path: /agents/other}
    runs: {execute: pull}
    versions: {v1: {endpoints: ["http://127.0.0.1:9"]}}
  plain:
    match: {path: /agents/plain}
    runs: off
    versions: {v1: {endpoints: ["http://127.0.0.1:9"]}}
"""


@asynccontextmanager
async def runs_gateway(
    more: str = "", runs: str = "on", services: str = SERVICES, **given: Any
) -> AsyncIterator[Running]:
    async with gateway(config=f"runs: {runs}\n{more}{services}", **given) as running:
        yield running


class Shared:
    """One store for several gateways in this process, as a Redis is: each has a `tap` of its own."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.taps: list[Tap] = []
        self.store.on_growth = lambda run, seq: [tap.on_growth(run, seq) for tap in self.taps]  # type: ignore[assignment]
        self.store.on_ready = lambda service: [tap.on_ready(service) for tap in self.taps]  # type: ignore[assignment]

    def tap(self) -> Store:
        tap = Tap(self.store)
        self.taps.append(tap)
        return tap  # type: ignore[return-value]


class Tap:
    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self.on_growth: Callable[[str, int], None] = lambda run, seq: None
        self.on_ready: Callable[[str], None] = lambda service: None

    def unwatch(self, run: str) -> None:
        """The others may watch it still."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class Fragile(MemoryStore):
    """May go away."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False

    def check(self) -> None:
        if self.away:
            raise StoreAway("connection refused", 3.0)

    async def open(self) -> None:
        self.check()
        await super().open()

    async def create(self, *args: Any, **more: Any) -> Any:
        self.check()
        return await super().create(*args, **more)

    async def get(self, run: str) -> Run:
        self.check()
        return await super().get(run)

    async def read(self, *args: Any, **more: Any) -> Batch:
        self.check()
        return await super().read(*args, **more)

    async def claim(self, *args: Any, **more: Any) -> Any:
        self.check()
        return await super().claim(*args, **more)


@dataclass
class Api:
    """Calls over one connection, one after the other."""

    wire: Wire
    key: str = ""
    answer: Answer | None = None

    @classmethod
    async def connect(cls, running: Running, key: str = "") -> Api:
        return cls(await running.connect(), key)

    async def call(self, method: str, path: str, body: Any = None, headers: str = "") -> tuple[int, Any]:
        """Status and decoded body. `body`: bytes go as they are."""
        await self.send(method, path, body, headers)
        return await self.read(method, path)

    async def send(self, method: str, path: str, body: Any = None, headers: str = "") -> None:
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        kind = "Content-Type: application/json\r\n" if body is not None and "Content-Type" not in headers else ""
        length = f"Content-Length: {len(data)}\r\n" if body is not None or method == "POST" else ""
        key = f"Authorization: Bearer {self.key}\r\n" if self.key else ""
        await self.wire.send(f"{method} {path} HTTP/1.1\r\nHost: t\r\n{kind}{length}{key}{headers}\r\n".encode() + data)

    async def read(self, method: str, path: str) -> tuple[int, Any]:
        answer = self.answer = await self.wire.answer(method)
        kind = answer.header("content-type")
        body = json.loads(answer.body) if kind == "application/json" and answer.body else None
        if path.startswith(("/v1/runs", "/v1/workers")) and answer.status not in (401, 405):
            schema.answer(document(), method, path, answer.status, kind, body)
        return answer.status, body

    # In one line. -------------------------------------------------------------------------------------------------

    async def create(self, service: str = "auditor", given: Any = None, headers: str = "", **more: Any) -> Any:
        status, run = await self.call("POST", "/v1/runs", {"service": service, "input": given, **more}, headers)
        assert status in (200, 201), run
        return run

    async def claim(self, service: str = "auditor", worker: str = "w1", wait: float = 0) -> Any:
        status, claim = await self.call(
            "POST", "/v1/workers/claim", {"services": [service], "worker": worker, "wait": wait}
        )
        assert status in (200, 204), claim
        return claim

    async def emit(self, claim: Any, batch: int, *data: Any) -> Any:
        events = [{"type": "progress", "data": each} for each in data]
        status, answer = await self.call(
            "POST", f"/v1/runs/{claim['run']['id']}/append", {"fence": claim["fence"], "batch": batch, "events": events}
        )
        assert status == 200, answer
        return answer

    async def finish(self, claim: Any, result: Any = None, status: str = "completed", **more: Any) -> Any:
        body = {"fence": claim["fence"], "status": status, "result": result, **more}
        code, answer = await self.call("POST", f"/v1/runs/{claim['run']['id']}/finish", body)
        assert code == 200, answer
        return answer


@dataclass
class Source:
    """What an EventSource does: reads events by the rules of its standard, and comes back with the last id."""

    events: list[tuple[str, str, str]] = field(default_factory=list)
    last: str = ""
    comments: int = 0
    retry: str = ""
    #: Status of the latest answer.
    status: int = 0
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def follow(self, port: int, path: str, headers: str = "") -> None:
        """One connection, until it ends."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            again = f"Last-Event-ID: {self.last}\r\n" if self.last else ""
            writer.write(
                f"GET {path} HTTP/1.1\r\nHost: t\r\nAccept: text/event-stream\r\n{again}{headers}\r\n".encode()
            )
            head = await reader.readuntil(b"\r\n\r\n")
            self.status = int(head.split()[1])
            if self.status != 200:
                return
            assert b"content-type: text/event-stream\r\n" in head
            assert b"transfer-encoding: chunked\r\n" in head
            await self._read(reader)
        finally:
            writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        kind, data = "", list[str]()
        left = b""
        while size := int((await reader.readuntil(b"\r\n")).strip(), 16):
            left += (await reader.readexactly(size + 2))[:-2]
            *lines, left = left.split(b"\n")
            for line in lines:
                name, _, value = line.decode().partition(":")
                value = value.removeprefix(" ")
                if not line:
                    if data:
                        self.events.append((self.last, kind, "\n".join(data)))
                        self.arrived.set()
                    kind, data = "", []
                elif not name:
                    self.comments += 1
                    self.arrived.set()
                elif name == "id":
                    self.last = value
                elif name == "retry":
                    self.retry = value
                elif name == "event":
                    kind = value
                elif name == "data":
                    data.append(value)
        await reader.readuntil(b"\r\n")

    async def until(self, condition: Callable[[], object]) -> None:
        """Until what has arrived fits."""
        async with asyncio.timeout(PATIENCE):
            while not condition():
                self.arrived.clear()
                await self.arrived.wait()

    @property
    def ids(self) -> list[int]:
        return [int(id_) for id_, kind, _ in self.events if kind != "gap"]
