"""A worker's line straight to a store: no gateway between, so a worker goes on while gateways restart."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from typing import Final

from unjam.http.gateways import pause
from unjam.runs.model import Appended, Beat, NewEvent, WorkerInfo
from unjam.runs.store.base import LEASE, Store, StoreError
from unjam.worker.link import Job, Standing

#: Seconds for which the worker is known to be there without another word, and after which it gives one; and that the
#: last word may take.
KNOWN: Final = 15.0
TOLD: Final = 5.0
FAREWELL: Final = 1.0
#: Seconds after which the queue is looked at although nobody said that a run is ready.
RECONCILE: Final = 5.0


class StoreLink:
    """`standing`: what the worker tells of itself, for people and for gateways to show; None: nobody hears of it.
    `own`: the store is opened and closed with the link. A store that others use too keeps telling them."""

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
        standing: Standing | None = None,
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
        self._standing = standing
        self._known: tuple[str, ...] = ()
        self._began = time.time()
        self._telling: asyncio.Task[None] | None = None

    async def open(self) -> None:
        self._store.on_ready = self._on_ready
        if self._own:
            await self._store.open()
        if self._standing is not None:
            self._telling = asyncio.create_task(self._tell_on(self._standing))

    async def close(self) -> None:
        telling, self._telling = self._telling, None
        if telling is not None:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)
            assert self._standing is not None
            try:
                async with asyncio.timeout(FAREWELL):
                    await self._store.announce(self._info(self._standing), 0)
            except (StoreError, TimeoutError):
                pass  # it is forgotten soon
        if self._store.on_ready == self._on_ready:
            self._store.on_ready = self._others
        if self._own:
            await self._store.close()

    def _on_ready(self, service: str) -> None:
        self._others(service)
        if service in self._services:
            self._ready.set()

    async def _tell_on(self, standing: Standing) -> None:
        """Say that the worker is there, and hear of which versions the others are."""
        while True:
            try:
                await self._store.announce(self._info(standing), KNOWN)
                if standing.version is not None:
                    others = [each for each in await self._store.workers() if set(each.services) & set(self._services)]
                    self._known = tuple({each.version for each in others if each.version is not None})
            except StoreError:
                pass  # people don't see it meanwhile: no run depends on it
            await asyncio.sleep(TOLD)

    def _info(self, standing: Standing) -> WorkerInfo:
        return WorkerInfo(
            id=self._worker,
            services=self._services,
            version=standing.version,
            slots=standing.slots,
            running=standing.running,
            lanes=self._lanes,
            load=standing.load(),
            started=self._began,
            at=time.time(),
        )

    def interrupt(self) -> None:
        self._enough = True
        self._ready.set()

    async def claim(self, wait: float) -> Job | None:
        until = asyncio.get_running_loop().time() + wait
        while not self._enough:
            self._ready.clear()
            claim = await self._store.claim(
                self._services,
                self._worker,
                pull=True,
                lanes=self._lanes,
                lease=self._lease,
                version=None if self._standing is None else self._standing.version,
                known=self._known,
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

    async def heartbeat(self, run: str, fence: int, checkpoint: bytes | None, number: int = 0) -> Beat:
        return await self._store.heartbeat(run, fence, checkpoint, self._lease, number=number or None)

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

    async def inputs(self, run: str, after: int, wait: float = 0.0) -> list[tuple[int, bytes]]:
        """Never held: a store says nothing of inputs by itself."""
        return await self._store.inputs(run, after)
