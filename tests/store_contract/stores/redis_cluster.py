"""The store in a real Redis Cluster of three masters, where the order of queues is near-FIFO."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from ..harness import Harness
from .redis import cluster, opened


@asynccontextmanager
async def factory(place: Path) -> AsyncIterator[Harness]:
    prefix = f"{uuid.uuid4().hex[:8]}:"
    async with opened(cluster().url(prefix=prefix), prefix, cluster().servers) as harness:
        harness.examples = 3
        yield harness
