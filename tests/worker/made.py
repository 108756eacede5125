"""Runs in a memory store, and workers for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import wraps
from typing import Any

import msgspec

from unjam.runs.model import Event, NewRun, Run
from unjam.runs.store.base import Store
from unjam.worker import Worker

PATIENCE = 60.0


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @wraps(test)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(PATIENCE):
                await test(*args, **kwargs)

        asyncio.run(bounded())

    return wrapper


async def create(store: Store, data: object = None, service: str = "auditor", **more: Any) -> str:
    body = msgspec.json.encode(data)
    run, _ = await store.create(NewRun(service=service, input=body, digest=body, pull=True, **more))
    return run.id


async def ended(store: Store, run: str) -> Run:
    while (found := await store.get(run)).status in ("queued", "running"):
        await asyncio.sleep(0.005)
    return found


async def reaches(store: Store, run: str, status: str) -> Run:
    while (found := await store.get(run)).status != status:
        await asyncio.sleep(0.005)
    return found


async def log_of(store: Store, run: str) -> list[tuple[str, Any]]:
    """(type, data) of all events; their numbers have no gap."""
    events: list[Event] = []
    while batch := (await store.read(run, len(events) - 1)).events:
        events += batch
    assert [event.seq for event in events] == list(range(len(events)))
    return [(event.type, msgspec.json.decode(event.data)) for event in events]


async def own_of(store: Store, run: str) -> list[tuple[str, Any]]:
    """Events that the worker's function emitted."""
    return [event for event in await log_of(store, run) if not event[0].startswith("run.")]


async def result_of(store: Store, run: str) -> Any:
    return msgspec.json.decode(await store.result(run) or b"null")


@asynccontextmanager
async def serving(worker: Worker) -> AsyncIterator[asyncio.Task[None]]:
    """Stopped at once in the end, and waited for."""
    task = asyncio.create_task(worker.serve())
    await asyncio.sleep(0)
    try:
        yield task
    finally:
        worker.stop()
        worker.stop()
        await task
