"""What the owner of a claimed run writes to the store: events, signs of life, the end. In order, one call at a time.

Nobody waits for it: what is to be written is handed over, and a task exists only while something is. While the store is
away the same call is made again until it is answered, which every store takes for one call; between two tries it gets a
sign of life when one is due, as a store may take that and have no room for more. When the run has another owner, or
ended otherwise, `Owner.on_fenced` is told once and nothing more is written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from time import monotonic
from typing import Any, Final, Protocol

from unjam.runs.model import Appended, Beat, Claim, NewEvent, Settled, error_body
from unjam.runs.store.base import LEASE, Fenced, Store, StoreAway, TooLarge, UnknownRun

#: Bytes that may wait to be written before the endpoint is asked to wait, and below which it may go on.
HIGH: Final = 262144
LOW: Final = 65536

#: Bytes counted for an event beside its data.
_EVENT: Final = 200

#: Seconds between two tries while the store is away: the first, the longest.
AGAIN: Final = 0.1
AGAIN_MOST: Final = 5.0

#: How an owner parts with a run, beside `finish`.
RELEASE: Final = "release"
GIVE_UP: Final = "give_up"


class Owner(Protocol):
    def on_cancel(self) -> None:
        """The run is to be stopped; told until it has an end."""

    def on_fenced(self) -> None:
        """The run is ours no longer."""

    def on_room(self) -> None:
        """Enough of what was full has been written."""

    def on_settled(self, settled: Settled | None) -> None:
        """It has ended or is back in its queue, by our doing. None: what became of it was not told."""


class Journal:
    """`owner` is told on the loop's thread. `spawn`: runs a coroutine, and tells of its faults."""

    __slots__ = (
        "_batch",
        "_beating",
        "_end",
        "_events",
        "_owner",
        "_spawn",
        "_store",
        "_writing",
        "beat_at",
        "closed",
        "fence",
        "lease",
        "run",
        "shown",
        "size",
        "version",
    )

    def __init__(
        self,
        store: Store,
        claim: Claim,
        owner: Owner,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        lease: float = LEASE,
    ) -> None:
        self._store = store
        self._owner = owner
        self._spawn = spawn
        self.run = claim.run.id
        self.fence = claim.run.fence
        self.lease = lease
        #: What it runs on, told with its signs of life.
        self.version: str | None = None
        self._batch = 0
        self._events: list[NewEvent] = []
        #: status, result, error; or RELEASE or GIVE_UP.
        self._end: tuple[str, bytes | None, bytes | None] | None = None
        self._beating = False
        self._writing = False
        #: Bytes that wait to be written, or are being.
        self.size = 0
        self.shown = False
        self.closed = False
        #: Monotonic seconds at which a sign of life is due.
        self.beat_at = monotonic() + lease / 3

    @property
    def full(self) -> bool:
        return self.size > HIGH

    @property
    def ending(self) -> bool:
        """Whether its end is on the way, or written already."""
        return self._end is not None or self.closed

    def add(self, kind: str, data: bytes) -> None:
        """Add an event to the log. `data`: JSON."""
        if not self.ending:
            self._events.append(NewEvent(kind, data))
            self.size += len(data) + _EVENT
            self.shown = True
            self._kick()

    def beat(self) -> None:
        """Give a sign of life now; the answer tells whether the run is to be stopped."""
        if not self.ending:
            self._beating = True
            self._kick()

    def pin(self, version: str, at_once: bool) -> None:
        """It has begun on this version of its service, and keeps to it. `at_once`: say so now, because there are
        others, and not with the next sign of life."""
        if self.version is None:
            self.version = version
            if at_once:
                self.beat()

    def finish(self, status: str, result: bytes | None = None, error: bytes | None = None) -> None:
        """End the run, once all events are written. Only the first end counts."""
        if not self.ending:
            self._end = (status, result, error)
            self._kick()

    def release(self) -> None:
        """Hand it back, as if it had not been claimed."""
        self.finish(RELEASE)

    def give_up(self) -> None:
        """This attempt is lost: what follows is for the store to say, by the same rule as for an owner that died."""
        self.finish(GIVE_UP)

    def close(self) -> None:
        """Write nothing more, and tell nothing."""
        self.closed = True

    # -- the task ---------------------------------------------------------------------------------------------------

    def _kick(self) -> None:
        if not self._writing and not self.closed:
            self._writing = True
            self._spawn(self._write())

    async def _write(self) -> None:
        try:
            while not self.closed:
                if self._end is not None and (not self._events or self._end[0] not in (RELEASE, GIVE_UP)):
                    await self._persist(self._settle(self._end))
                elif self._events:
                    await self._persist(self._append())
                elif self._beating:
                    self._beating = False
                    await self._persist(self._beat)
                else:
                    return
        finally:
            self._writing = False

    async def _persist(self, call: Callable[[], Awaitable[None]]) -> None:
        """Make a call to the store again and again, until it is answered."""
        wait, longest = AGAIN, min(AGAIN_MOST, self.lease / 6)
        while not self.closed:
            try:
                await call()
            except StoreAway:
                await asyncio.sleep(wait)
                wait = min(2 * wait, longest)
                if call != self._beat:
                    await self._live_on()
                continue
            except (Fenced, UnknownRun):
                self._lose()
            except TooLarge as error:
                self._drop()
                self._end = ("failed", None, error_body(error.code, str(error)))
            except BaseException:
                self._lose()  # a fault, or the gateway is stopping: the lease will run out
                raise
            return

    async def _live_on(self) -> None:
        """What was to be written could not be, and is tried again: meanwhile the lease must not run out."""
        given_up = self._end is not None and self._end[0] == GIVE_UP
        if given_up or self.closed or not (self._beating or monotonic() >= self.beat_at):
            return
        self._beating = False
        try:
            await self._beat()
        except (StoreAway, Fenced, UnknownRun):
            pass  # the next try finds out; it may be what has ended the run, and only the answer was lost

    def _lose(self) -> None:
        if not self.closed:
            self.closed = True
            self._owner.on_fenced()

    def _drop(self) -> list[NewEvent]:
        events, self._events = self._events, []
        return events

    def _append(self) -> Callable[[], Awaitable[None]]:
        events = self._drop()
        self._batch += 1
        batch, size = self._batch, self.size

        async def append() -> None:
            answer: Appended = await self._store.append(self.run, self.fence, batch, events)
            was_full = size > LOW
            self.size -= sum(len(event.data) + _EVENT for event in events)
            self._alive()
            if was_full and self.size <= LOW:
                self._owner.on_room()
            if answer.cancel:
                self._cancel()

        return append

    async def _beat(self) -> None:
        answer: Beat = await self._store.heartbeat(self.run, self.fence, lease=self.lease, version=self.version)
        self._alive()
        if answer.cancel:
            self._cancel()

    def _settle(self, end: tuple[str, bytes | None, bytes | None]) -> Callable[[], Awaitable[None]]:
        status, result, error = end
        events = self._drop()
        batch = None
        if events:
            self._batch += 1
            batch = self._batch

        async def settle() -> None:
            settled = None
            if status == RELEASE:
                settled = await self._store.release(self.run, self.fence)
            elif status == GIVE_UP:
                await self._store.heartbeat(self.run, self.fence, lease=0.0)
                mine = [each for each in await self._store.sweep() if each.run.id == self.run]
                settled = mine[0] if mine else None
            else:
                settled = await self._store.finish(
                    self.run, self.fence, status, result=result, error=error, batch=batch, events=events
                )
            self.closed = True
            self.size = 0
            self._owner.on_settled(settled)

        return settle

    def _alive(self) -> None:
        self.beat_at = monotonic() + self.lease / 3

    def _cancel(self) -> None:
        if not self.ending:
            self._owner.on_cancel()
