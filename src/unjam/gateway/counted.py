"""The store as the gateway uses it: every call counted, and it is known whether the store is away.

Whoever works with runs here (API, dispatcher, hub, sweeps) goes by this one, so that what is counted is all there is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from unjam.runs.machine import COMPLETED, TERMINAL
from unjam.runs.model import Appended, Batch, Beat, Claim, NewEvent, NewRun, Run, Settled, WorkerInfo
from unjam.runs.store.base import LEASE, OnEvents, OnGrowth, OnReady, Runs, Store, StoreAway, StoreError, Workers
from unjam.telemetry.runs import RunsStats

T = TypeVar("T")

#: Results fetched at once. Each may be large, and whoever asked for it answers with it before the next one comes.
RESULTS: Final = 8


class CountedStore:
    """Passes everything on. `on_away` is told why at the first call that finds the store away, `on_back` at the first
    that finds it there again."""

    def __init__(
        self, store: Store, stats: RunsStats, on_away: Callable[[str], None], on_back: Callable[[], None]
    ) -> None:
        self._store = store
        self._stats = stats
        self._on_away = on_away
        self._on_back = on_back
        self._open = False
        #: Why the store can't be reached now; empty while it can.
        self.why_away = ""
        self._results = asyncio.Semaphore(RESULTS)
        #: Told of each run that is completed by way of this gateway, with its result.
        self.on_completed: Callable[[Run, bytes | None], None] = lambda run, result: None
        #: Told of each run that a sweep of this gateway has settled, whoever swept and for whatever reason.
        self.on_swept: Callable[[Run], None] = lambda run: None

    # Whom the store tells.

    @property
    def on_growth(self) -> OnGrowth:
        return self._store.on_growth

    @on_growth.setter
    def on_growth(self, call: OnGrowth) -> None:
        self._store.on_growth = call

    @property
    def on_events(self) -> OnEvents:
        return self._store.on_events

    @on_events.setter
    def on_events(self, call: OnEvents) -> None:
        self._store.on_events = call

    @property
    def on_ready(self) -> OnReady:
        return self._store.on_ready

    @on_ready.setter
    def on_ready(self, call: OnReady) -> None:
        self._store.on_ready = call

    async def _ask(self, call: Callable[[], Awaitable[T]]) -> T:
        if not self._open:
            self._count("store_away")
            raise StoreAway(self.why_away or "the store has not been reached yet")
        return await self._try(call)

    async def _try(self, call: Callable[[], Awaitable[T]]) -> T:
        stats = self._stats
        try:
            answer = await call()
        except StoreAway as error:
            self._count(error.code)
            self.why_away = str(error)
            if not stats.away:
                stats.away = True
                self._on_away(str(error))
            raise
        except StoreError as error:
            self._count(error.code)
            raise
        if stats.away:
            stats.away = False
            self.why_away = ""
            self._on_back()
        return answer

    def _count(self, code: str) -> None:
        errors = self._stats.errors
        errors[code] = errors.get(code, 0) + 1

    def _settled(self, settled: Settled) -> Settled:
        run = settled.run
        if settled.changed and run.status in TERMINAL:
            key = run.service, run.status
            self._stats.ended[key] = self._stats.ended.get(key, 0) + 1
        return settled

    # The store's own.

    async def open(self) -> None:
        await self._try(self._store.open)
        self._open = True

    async def close(self) -> None:
        self._open = False
        await self._store.close()

    async def create(self, new: NewRun) -> tuple[Run, bool]:
        run, made = await self._ask(lambda: self._store.create(new))
        if made:
            self._stats.created[run.service] = self._stats.created.get(run.service, 0) + 1
        return run, made

    async def claim(
        self,
        services: Sequence[str],
        worker: str,
        *,
        pull: bool,
        lanes: Sequence[str] = ("fast", "heavy"),
        lease: float = LEASE,
        version: str | None = None,
        known: Sequence[str] = (),
        pinned: bool = False,
    ) -> Claim | None:
        return await self._ask(
            lambda: self._store.claim(
                services, worker, pull=pull, lanes=lanes, lease=lease, version=version, known=known, pinned=pinned
            )
        )

    async def append(self, run: str, fence: int, batch: int, events: Sequence[NewEvent]) -> Appended:
        return await self._ask(lambda: self._store.append(run, fence, batch, events))

    async def heartbeat(
        self,
        run: str,
        fence: int,
        checkpoint: bytes | None = None,
        lease: float = LEASE,
        version: str | None = None,
        number: int | None = None,
    ) -> Beat:
        return await self._ask(lambda: self._store.heartbeat(run, fence, checkpoint, lease, version, number))

    async def finish(
        self,
        run: str,
        fence: int,
        status: str,
        *,
        result: bytes | None = None,
        error: bytes | None = None,
        batch: int | None = None,
        events: Sequence[NewEvent] = (),
    ) -> Settled:
        settled = self._settled(
            await self._ask(
                lambda: self._store.finish(run, fence, status, result=result, error=error, batch=batch, events=events)
            )
        )
        if settled.changed and settled.run.status == COMPLETED:
            self.on_completed(settled.run, result)
        return settled

    async def release(self, run: str, fence: int, checkpoint: bytes | None = None) -> Settled:
        return self._settled(await self._ask(lambda: self._store.release(run, fence, checkpoint)))

    async def sweep(self, limit: int = 100) -> list[Settled]:
        swept = await self._ask(lambda: self._store.sweep(limit))
        for settled in swept:
            self._settled(settled)
            key = settled.run.service, settled.run.status
            self._stats.swept[key] = self._stats.swept.get(key, 0) + 1
            self.on_swept(settled.run)
        return swept

    async def cancel(self, run: str) -> Settled:
        return self._settled(await self._ask(lambda: self._store.cancel(run)))

    async def requeue(self, run: str) -> Settled:
        return await self._ask(lambda: self._store.requeue(run))

    async def send(self, run: str, data: bytes) -> int:
        return await self._ask(lambda: self._store.send(run, data))

    async def inputs(self, run: str, after: int, limit: int = 256, size: int = 1 << 20) -> list[tuple[int, bytes]]:
        return await self._ask(lambda: self._store.inputs(run, after, limit, size))

    async def get(self, run: str) -> Run:
        return await self._ask(lambda: self._store.get(run))

    async def result(self, run: str) -> bytes | None:
        async with self._results:
            return await self._ask(lambda: self._store.result(run))

    async def read(self, run: str, after: int = -1, limit: int = 256, size: int = 1 << 20) -> Batch:
        return await self._ask(lambda: self._store.read(run, after, limit, size))

    async def list(
        self,
        tenant: str | None,
        *,
        service: str | None = None,
        status: str | None = None,
        before: str | None = None,
        limit: int = 50,
    ) -> Runs:
        return await self._ask(
            lambda: self._store.list(tenant, service=service, status=status, before=before, limit=limit)
        )

    async def dead(self, service: str | None = None, limit: int = 100) -> Runs:
        return await self._ask(lambda: self._store.dead(service, limit))

    async def delete(self, run: str) -> None:
        await self._ask(lambda: self._store.delete(run))

    async def housekeep(self, keep: float, limit: int = 1000) -> int:
        return await self._ask(lambda: self._store.housekeep(keep, limit))

    async def depth(self) -> dict[str, tuple[int, int]]:
        return await self._ask(self._store.depth)

    async def announce(self, info: WorkerInfo, ttl: float) -> None:
        await self._ask(lambda: self._store.announce(info, ttl))

    async def workers(self) -> Workers:
        return await self._ask(self._store.workers)

    def watch(self, run: str) -> None:
        self._store.watch(run)

    def unwatch(self, run: str) -> None:
        self._store.unwatch(run)
