"""The store in memory, with both clocks in the test's hand."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from unjam.runs.store.memory import MemoryStore

from ..harness import Harness


@dataclass
class Times:
    wall: float = 1_700_000_000.0
    monotonic: float = 1000.0


@dataclass
class InMemory(Harness):
    times: Times = field(default_factory=Times)

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


@asynccontextmanager
async def factory(place: Path) -> AsyncIterator[Harness]:
    times = Times()
    store = MemoryStore(lambda: times.wall, lambda: times.monotonic)
    await store.open()
    yield InMemory(store, frozenset({"wall", "fifo", "exact_limit"}), examples=20, times=times)
    await store.close()
