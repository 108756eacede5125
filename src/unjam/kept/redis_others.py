"""The other gateways of one Redis: two channels of Pub/Sub, sharded ones in a cluster; it stores nothing of them.

`{kept}:ask` has all of them, who count themselves among those that Redis says it has told: a gateway that doesn't hear
its own question can't hear the answers either. Answers go to `{kept}:told:NAME`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from unjam.kept.base import KeptAway, KeptError
from unjam.kept.others import Others, Round
from unjam.runs.store.redis_feed import Feed
from unjam.runs.store.redis_url import Address, Place

if TYPE_CHECKING:
    from unjam.kept.redis import RedisKept

#: Seconds between two looks for the server, and after the connection was lost for which others may not be back yet.
_AGAIN: Final = 0.5
SETTLING: Final = 5.0
#: Messages under way at once; with more Redis is not there.
_SENT: Final = 64
#: Seconds that those may still take when it is closed.
_CLOSING: Final = 1.0


class RedisOthers(Others):
    """`kept`: by whose connections it is spoken; it is closed after this."""

    def __init__(self, kept: RedisKept) -> None:
        super().__init__()
        self._kept = kept
        self._servers = _Servers(kept, lambda why: self._warn(why), f"{kept.channels}:ask")
        self._ask, self._told = f"{kept.channels}:ask", f"{kept.channels}:told:"
        self._feed = Feed(self._servers, self._hear, self._subscribed)
        self._servers.on_found = self._feed.replan
        self._missing = {self._ask, self._told + self.name}
        self._ready = asyncio.Event()
        self._unsure = 0.0
        self._opening: asyncio.Task[None] | None = None
        self._sending: set[asyncio.Task[int]] = set()

    async def close(self) -> None:
        self._servers.closed = True
        tasks = {task for task in (*self._sending, self._opening, self._servers.looking) if task is not None}
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=_CLOSING)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
        await self._feed.close()

    async def ask(self, question: bytes, patience: float, on_answer: Callable[[bytes], None]) -> bool:
        complete = await super().ask(question, patience, on_answer)
        return complete and asyncio.get_running_loop().time() >= self._unsure

    def _begin(self) -> None:
        for channel in self._missing:
            self._feed.add(channel, 0)
        self._servers.look()
        self._opening = asyncio.get_running_loop().create_task(self._feed.open(0.0))

    async def _send(self, frame: bytes, round_: Round) -> int:
        await self._ready.wait()
        if len(self._sending) >= _SENT:
            raise KeptAway("Redis doesn't take what is said to other gateways")
        # Its end is not ours: redis-py leaves connections behind that are opened by whoever is cancelled.
        return await asyncio.shield(self._publish(self._ask, frame))

    def _subscribed(self, channels: list[str]) -> None:
        if self._ready.is_set():
            # Others have lost theirs with it, and those who are late would be taken for gone.
            self._unsure = asyncio.get_running_loop().time() + SETTLING
        self._missing.difference_update(channels)
        if not self._missing:
            self._ready.set()

    def _hear(self, channel: str, payload: bytes) -> None:
        if channel != self._ask:
            self._answered(payload)
        elif len(self._sending) < _SENT:
            reply = self._asked(payload)
            if reply is not None:
                # When it fails, who asked finds by itself that not all have answered.
                self._publish(self._told + reply[0], reply[1])

    def _publish(self, channel: str, frame: bytes) -> asyncio.Task[int]:
        task = asyncio.get_running_loop().create_task(self._kept.publish(channel, frame))
        self._sending.add(task)
        task.add_done_callback(self._sent)
        return task

    def _sent(self, task: asyncio.Task[int]) -> None:
        self._sending.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waits for it is told; there may be nobody left


class _Servers:
    """Where the channels' server is: all that the feed has to know. Looked for anew when it is suspected."""

    def __init__(self, kept: RedisKept, on_warning: Callable[[str], None], channel: str) -> None:
        self.place: Place = kept.place
        self.clustered = kept.place.kind == "cluster"
        self.on_found: Callable[[], None] = lambda: None
        self._kept = kept
        self._channel = channel
        self._address: Address | None = kept.place.addresses[0] if kept.place.kind == "one" else None
        self._warn = on_warning
        self._warned: set[str] = set()
        self.looking: asyncio.Task[None] | None = None
        self.closed = False

    def server(self, part: int) -> Address | None:
        return self._address

    def servers(self) -> set[Address]:
        return set() if self._address is None else {self._address}

    def suspect(self, address: Address) -> None:
        if self.place.kind != "one":
            self.look()

    def tell(self, warning: str, always: bool = False) -> None:
        if warning not in self._warned and len(self._warned) < 100:
            self._warned.add(warning)
            self._warn(warning)

    def look(self) -> None:
        if self.place.kind != "one" and not self.closed and (self.looking is None or self.looking.done()):
            self.looking = asyncio.get_running_loop().create_task(self._look())

    async def _look(self) -> None:
        while not self.closed:
            try:
                self._address = await self._kept.server(self._channel)
            except KeptError:
                await asyncio.sleep(_AGAIN)
            else:
                self.on_found()
                return
