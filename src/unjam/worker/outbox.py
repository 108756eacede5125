"""Events on their way to the log: in order, in numbered batches, one append in flight.

While one append is on its way the next events gather for the following one. Whoever sends waits only when too much is
on its way already.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

from unjam.runs.model import NewEvent
from unjam.runs.store.base import StoreError

#: Events and bytes of one batch; an event that is larger goes alone.
BATCH: Final = 128
BATCH_BYTES: Final = 128 << 10
#: Events and bytes that may wait.
WAITING: Final = 1024
WAITING_BYTES: Final = 1 << 20
_OVERHEAD: Final = 64

#: Appends the batch of this number, however long that takes; raises when it can't be any more.
Append = Callable[[int, list[NewEvent]], Awaitable[None]]


class Outbox:
    """`stopped`: makes what is raised to those who send after an append has failed for good, or after `close`."""

    def __init__(self, append: Append, stopped: Callable[[], BaseException]) -> None:
        self.sent = 0
        self._append = append
        self._stopped = stopped
        self._pending: deque[NewEvent] = deque()
        self._bytes = 0
        self._taken = 0
        self._batch = 0
        self._shut = False
        self._failed = False
        self._sender: asyncio.Task[None] | None = None
        self._waiters: list[asyncio.Future[None]] = []

    async def put(self, event: NewEvent) -> None:
        """Returns once the event is on its way, in order. After `flush` it is in the log."""
        await self._until(lambda: len(self._pending) < WAITING and self._bytes < WAITING_BYTES)
        if self._failed or self._shut:
            raise self._stopped()
        self._pending.append(event)
        self._bytes += len(event.data) + _OVERHEAD
        self._taken += 1
        if self._sender is None:
            self._sender = asyncio.create_task(self._send())

    async def flush(self) -> None:
        """Returns once all that was put before is in the log."""
        wanted = self._taken
        await self._until(lambda: self.sent >= wanted)

    async def close(self) -> tuple[int | None, list[NewEvent]]:
        """Takes nothing more. The last batch, unsent, and its number, to go with the end of the run; None when there is
        none, or when nothing can be sent any more."""
        self._shut = True
        while self._sender is not None:
            await asyncio.wait((self._sender,))
        self._wake()
        if self._failed or not self._pending:
            return None, []
        return self._batch + 1, self._take()

    async def _send(self) -> None:
        whole = False
        try:
            # What is emitted in one go goes in one batch.
            await asyncio.sleep(0)
            while self._pending and not (self._shut and self._fits()):
                events = self._take()
                self._batch += 1
                await self._append(self._batch, events)
                self.sent += len(events)
                self._wake()
            whole = True
        except StoreError:
            # Who appends has seen to it; who waits is told by `_stopped`.
            pass
        finally:
            if not whole:
                self._failed = True
                self._pending.clear()
                self._bytes = 0
            self._sender = None
            self._wake()

    def _take(self) -> list[NewEvent]:
        events: list[NewEvent] = []
        size = 0
        while self._pending and len(events) < BATCH:
            size += len(self._pending[0].data)
            if events and size > BATCH_BYTES:
                break
            events.append(self._pending.popleft())
        self._bytes -= sum(len(event.data) + _OVERHEAD for event in events)
        return events

    def _fits(self) -> bool:
        return len(self._pending) <= BATCH and (len(self._pending) == 1 or self._bytes <= BATCH_BYTES)

    async def _until(self, true: Callable[[], bool]) -> None:
        while not true():
            if self._failed or (self._shut and self._sender is None):
                raise self._stopped()
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
