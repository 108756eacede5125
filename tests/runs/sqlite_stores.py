"""What the tests of the SQLite store share."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

from unjam.runs.model import Claim, NewEvent, NewRun, Run
from unjam.runs.store.memory import MemoryStore
from unjam.runs.store.sqlite import SqliteStore

T = TypeVar("T")
EVENT: Final = NewEvent("progress", b'{"page":1}')
HOUR: Final = 3600.0


def new(payload: bytes = b"{}", **more: Any) -> NewRun:
    return NewRun(**{"service": "auditor", "input": payload, "digest": payload[:32], "pull": True, **more})


@asynccontextmanager
async def opened(path: Path, *times: Callable[[], float]) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(path, *times)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def in_loop(body: Callable[[], Awaitable[T]]) -> T:
    async def run() -> T:
        async with asyncio.timeout(60):
            return await body()

    return asyncio.run(run())


async def claimed(store: SqliteStore | MemoryStore) -> Claim:
    claim = await store.claim(["auditor"], "w1", pull=True)
    assert claim is not None
    return claim


async def all_runs(store: SqliteStore) -> list[Run]:
    return await store.list(None, limit=1_000_000)


async def types(store: SqliteStore, run: str) -> list[str]:
    events = (await store.read(run, limit=100_000, size=1 << 30)).events
    assert [event.seq for event in events] == list(range(len(events)))
    return [event.type for event in events]


class Gate:
    """A wall clock that holds the store's thread up within an operation."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.met = threading.Event()

    def __call__(self) -> float:
        self.met.set()
        assert self.open.wait(30)
        return 1_700_000_000.0

    @contextmanager
    def shut(self) -> Iterator[None]:
        self.open.clear()
        self.met.clear()
        yield
        self.open.set()

    async def meets(self) -> None:
        while not self.met.is_set():
            await asyncio.sleep(0.001)
