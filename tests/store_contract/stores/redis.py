"""The store in one real Redis, started once for all tests, each with keys of its own.

Its lease time is the server's; it passes by putting the ends of all leases earlier.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.runs.redis_servers import Cluster, Server
from unjam.runs.model import PARTITIONS
from unjam.runs.store.redis import RedisStore

from ..harness import Harness
from .memory import Times

#: Of all indexes' keys: of one server's, and of a cluster's.
TAGS = ["all", *(f"p{part:02x}" for part in range(PARTITIONS))]


@dataclass
class InRedis(Harness):
    # The server's own time goes on meanwhile: to a part of a lease of minutes it adds little.
    lease: float = 300.0
    times: Times = field(default_factory=Times)
    url: str = ""
    prefix: str = ""
    servers: list[Server] = field(default_factory=list)

    def now(self) -> float:
        return self.times.wall

    def wall(self, seconds: float) -> None:
        self.times.wall += seconds

    async def advance(self, seconds: float) -> None:
        names = [f"{self.prefix}{{{tag}}}:{what}" for tag in TAGS for what in ("leases", "present")]
        for server in self.servers:
            with server.client() as client:
                # A server of a cluster refuses to tell of the keys that others have.
                # Others have swept all the while: time in which nobody does ends no lease.
                asked = client.pipeline(transaction=False)
                for tag in TAGS:
                    asked.delete(f"{self.prefix}{{{tag}}}:swept")
                asked.execute(raise_on_error=False)
                for name in names:
                    asked.zrange(name, 0, -1)
                for name, runs in zip(names, asked.execute(raise_on_error=False), strict=True):
                    for run in runs if isinstance(runs, list) else ():
                        client.zincrby(name, -seconds * 1000, run)

    async def reopen(self) -> None:
        await self.store.close()
        self.store = self.made()
        await self.store.open()

    def made(self) -> RedisStore:
        return RedisStore(self.url, clock=lambda: self.times.wall)


def place() -> Path:
    """A folder for as long as the tests run; servers outlive each of them."""
    folder = Path(tempfile.mkdtemp(prefix="unjam-redis-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def server() -> Server:
    found = Server(place(), "appendonly yes")
    atexit.register(found.kill)
    return found.start()


@functools.cache
def cluster() -> Cluster:
    found = Cluster(place())
    atexit.register(found.kill)
    return found.start()


@asynccontextmanager
async def opened(url: str, prefix: str, servers: list[Server], *capabilities: str) -> AsyncIterator[Harness]:
    times = Times()
    store = RedisStore(url, clock=lambda: times.wall)
    harness = InRedis(
        store, frozenset({"persistent", "wall", *capabilities}), times=times, url=url, prefix=prefix, servers=servers
    )
    await store.open()
    try:
        yield harness
    finally:
        await harness.store.close()


@asynccontextmanager
async def factory(place: Path) -> AsyncIterator[Harness]:
    prefix = f"{uuid.uuid4().hex[:8]}:"
    async with opened(server().url(prefix=prefix), prefix, [server()], "fifo", "exact_limit") as harness:
        yield harness
