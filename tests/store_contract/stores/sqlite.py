"""The store in a SQLite file, with both clocks in the test's hand."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from unjam.runs.store.sqlite import SqliteStore

from ..harness import Harness
from .memory import Times


@dataclass
class InSqlite(Harness):
    times: Times = field(default_factory=Times)
    path: Path = Path()

    def now(self) -> float:
        return self.times.wall

    def wall(self, seconds: float) -> None:
        self.times.wall += seconds

    async def advance(self, seconds: float) -> None:
        # Others sweep all the while: time in which nobody does ends no lease.
        end = self.times.monotonic + seconds
        while self.times.monotonic < end:
            self.times.monotonic = min(end, self.times.monotonic + 1)
            await self.store.sweep(0)

    async def reopen(self) -> None:
        await self.store.close()
        self.store = self.made()
        await self.store.open()

    def made(self) -> SqliteStore:
        return SqliteStore(self.path, lambda: self.times.wall, lambda: self.times.monotonic)


@asynccontextmanager
async def factory(place: Path) -> AsyncIterator[Harness]:
    times = Times()
    store = SqliteStore(place / "runs.db", lambda: times.wall, lambda: times.monotonic)
    await store.open()
    capabilities = frozenset({"persistent", "wall", "fifo", "exact_limit"})
    harness = InSqlite(store, capabilities, times=times, path=place / "runs.db")
    yield harness
    await harness.store.close()
