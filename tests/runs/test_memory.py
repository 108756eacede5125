"""What is the memory store's own: the event loop it shares."""

from __future__ import annotations

import asyncio

import pytest

from unjam.runs.model import NewRun
from unjam.runs.store import memory
from unjam.runs.store.memory import MemoryStore

from .redis_faults import in_loop


@in_loop
async def test_a_list_lets_others_in_and_shows_each_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "LOOKS", 10)
    store = MemoryStore()

    async def create(service: str) -> str:
        run, _ = await store.create(NewRun(service=service, input=b"{}", digest=b"", pull=True))
        return run.id

    made = {await create("auditor") for _ in range(100)}
    listing = asyncio.create_task(store.list(None, service="auditor", limit=1000))
    turns = 0
    gone = next(iter(made))
    while not listing.done():
        await asyncio.sleep(0)
        turns += 1
        await create("auditor")
        if turns == 2:
            await store.cancel(gone)
            await store.delete(gone)
    found = [run.id for run in await listing]
    assert turns >= 10
    assert len(found) == len(set(found))
    # Of those that were made meanwhile there may be some: of the same millisecond.
    assert made - {gone} <= set(found)
