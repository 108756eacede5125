"""A worker's line straight to a store: no gateway between, so a worker goes on while gateways restart."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Final

from unjam.http.gateways import pause
from unjam.runs.model import Appended, Beat, NewEvent
from unjam.runs.store.base import LEASE, Store
from unjam.worker.link import Job

#: Seconds after which the queue is looked at although nobody said that a run is ready.
RECONCILE: Final = 5.0


class StoreLink:
    """`own`: the store is opened and closed with the link. A store that others use too keeps telling them."""

    def __init__(
        self,
        store: Store,
        services: Sequence[str],
        worker: str,
        *,
        lanes: Sequence[str] = ("fast", "heavy"),
        lease: float = LEASE,
        own: bool = False,
        rng: random.Random | None = None,
    ) -> None:
        self._store = store
        self._services = tuple(services)
        self._worker = worker
        self._lanes = tuple(lanes)
        self._lease = lease
        self._own = own
        self._rng = rng or random.Random()
        self._ready = asyncio.Event()
        self._enough = False
        self._others = store.on_ready

    async def open(self) -> None:
        self._store.on_ready = self._on_ready
        if self._own:
            await self._store.open()

    async def close(self) -> None:
        if self._store.on_ready == self._on_ready:
            self._store.on_ready = self._others
        if self._own:
            await self._store.close()

    def _on_ready(self, service: str) -> None:
        self._others(service)
        if service in self._services:
            self._ready.set()

    def interrupt(self) -> None:
        self._enough = True
        self._ready.set()

    async def claim(self, wait: float) -> Job | None:
        until = asyncio.get_running_loop().time() + wait
        while not self._enough:
            self._ready.clear()
            claim = await self._store.claim(
                self._services, self._worker, pull=True, lanes=self._lanes, lease=self._lease
            )
            if claim is not None:
                run = claim.run
                return Job(
                    run=run.id,
                    service=run.service,
                    lane=run.lane,
                    attempt=run.attempt,
                    fence=run.fence,
                    input=claim.input,
                    checkpoint=claim.checkpoint,
                    lease=self._lease,
                    version=run.version,
                    metadata=None if run.metadata is None else bytes(run.metadata),
                )
            left = until - asyncio.get_running_loop().time()
            if left <= 0:
                return None
            # Jitter: workers that were started together must not ask together for ever.
            await pause(min(left, RECONCILE * (0.5 + self._rng.random())), self._ready)
        return None

    async def append(self, run: str, fence: int, batch: int, events: Sequence[NewEvent]) -> Appended:
        return await self._store.append(run, fence, batch, events)

    async def heartbeat(self, run: str, fence: int, checkpoint: bytes | None) -> Beat:
        return await self._store.heartbeat(run, fence, checkpoint, self._lease)

    async def finish(
        self,
        run: str,
        fence: int,
        status: str,
        result: bytes | None,
        error: bytes | None,
        batch: int | None,
        events: Sequence[NewEvent],
    ) -> None:
        await self._store.finish(run, fence, status, result=result, error=error, batch=batch, events=events)

    async def release(self, run: str, fence: int, checkpoint: bytes | None) -> None:
        await self._store.release(run, fence, checkpoint)

    async def inputs(self, run: str, after: int) -> list[tuple[int, bytes]]:
        return await self._store.inputs(run, after)
