"""Bodies of answers that take long to make: made once, however many ask for one at the same time, and kept."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Final

#: Bytes that are kept.
MOST: Final = 32 << 20


class BodyCache:
    """`most`: bytes that are kept at once; those that were asked for longest ago go first."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._kept: OrderedDict[Hashable, bytes] = OrderedDict()
        self._making: dict[Hashable, asyncio.Task[bytes]] = {}
        self.size = 0

    async def get(self, key: Hashable, make: Callable[[], Awaitable[bytes]]) -> bytes:
        """What `make` gives, or has given for `key`. Raises what it raises; that is not kept."""
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
            return found
        making = self._making.get(key)
        if making is None:
            making = self._making[key] = asyncio.create_task(self._make(key, make))
        return await asyncio.shield(making)

    async def _make(self, key: Hashable, make: Callable[[], Awaitable[bytes]]) -> bytes:
        try:
            body = await make()
        finally:
            del self._making[key]
        if len(body) <= self._most:
            self._kept[key] = body
            self.size += len(body)
            while self.size > self._most:
                self.size -= len(self._kept.popitem(last=False)[1])
        return body
