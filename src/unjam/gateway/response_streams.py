"""Responses as streams: one `Story` for all streams of a run that have come equally far in its log.

A stream that keeps up costs a place in the log and a number. One that begins, or falls behind, has a story of its own
until it has caught up; the texts that are told are the same for all, wherever they stand.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from unjam.gateway.local import Gone, LocalExchange, Refused
from unjam.gateway.response_events import Json, Story, Texts, frame
from unjam.gateway.runs_errors import refused
from unjam.gateway.runs_follow import Held
from unjam.runs.hub import Delivery
from unjam.runs.machine import COMPLETED
from unjam.runs.store.base import Store, StoreError

if TYPE_CHECKING:
    from unjam.gateway.durable import Durable


class Told:
    """Events that were told in one go, as SSE."""

    __slots__ = ("_frames", "_whole", "telling")

    def __init__(self, events: Iterable[Json], telling: Telling) -> None:
        self._frames = [(event["sequence_number"], frame(event)) for event in events]
        self._whole: bytes | None = None
        #: The telling that goes on behind them.
        self.telling = telling

    def since(self, after: int) -> bytes:
        """All with a number above `after`; the very same bytes for all who want the whole."""
        frames = self._frames
        if frames and frames[0][0] <= after:
            return b"".join([data for number, data in frames if number > after])
        if self._whole is None:
            self._whole = b"".join([data for _, data in frames])
        return self._whole


class Telling:
    """A story that has been told up to the log's event before `cursor`."""

    __slots__ = ("__weakref__", "_completed", "_ending", "cursor", "run", "story")

    def __init__(self, run: str, story: Story, cursor: int = 0) -> None:
        self.run = run
        self.story = story
        self.cursor = cursor
        self._completed = False
        self._ending: asyncio.Task[Told] | None = None

    def tell(self, delivery: Delivery) -> Told:
        """Tell what stands in the log from `cursor` on."""
        self._ending = None  # it was no end, but a run that was queued again
        said: list[Json] = []
        for event in delivery.since(self.cursor):
            said += self.story.tell(event)
        self.cursor = delivery.next
        return Told(said, self)

    def fork(self) -> Telling:
        """Another telling, which stays here when this one goes on."""
        if self._completed:
            return self  # there is nothing more to tell
        return Telling(self.run, self.story.fork(), self.cursor)

    async def end(self, store: Store) -> Told:
        """What is told when the log has ended, made once for all streams. Raises StoreError."""
        ending = self._ending
        if ending is None or (ending.done() and (ending.cancelled() or ending.exception() is not None)):
            ending = self._ending = asyncio.create_task(self._end(store))
        return await asyncio.shield(ending)

    async def _end(self, store: Store) -> Told:
        if (await store.get(self.run)).status != COMPLETED:
            return Told((), self)
        result = await store.result(self.run)
        self._completed = True
        return Told(self.story.end(result), self)


class Tellings:
    """The telling that has come furthest, for each run that somebody follows."""

    def __init__(self) -> None:
        self._furthest: WeakValueDictionary[str, Telling] = WeakValueDictionary()
        #: What their stories have in common.
        self._texts: WeakValueDictionary[str, Texts] = WeakValueDictionary()

    def begin(self, run: str, story: Story, after: int) -> Telling:
        """For a client that has everything up to the number `after`: it need not hear again what all have heard."""
        found = self._furthest.get(run)
        if found is not None and found.story.number - 1 <= after:
            return found
        story.texts = self._texts.setdefault(run, story.texts)
        return Telling(run, story)

    def met(self, telling: Telling) -> Telling:
        """The telling to go on with: the one that is furthest, if it stands at the same place as `telling`."""
        found = self._furthest.get(telling.run)
        if found is None or found.cursor < telling.cursor:
            self._furthest[telling.run] = found = telling
        return found if found.cursor == telling.cursor else telling


class Stream(Held):
    """A response as a stream. It is told from the log's beginning whoever asks, as numbers and texts depend on it; the
    client gets what comes after the number it has."""

    __slots__ = ("_after", "_story", "_telling", "_tellings")

    def __init__(
        self, durable: Durable, exchange: LocalExchange, tellings: Tellings, run: str, story: Story, after: int
    ) -> None:
        super().__init__(durable, exchange, run)
        self._after = after
        self._tellings = tellings
        self._telling = tellings.begin(run, story, after)
        self.cursor = self._telling.cursor

    def begin(self) -> None:
        """Raises `Gone`."""
        self.exchange.start()
        self.exchange.on_room = self._go_on
        super().begin()

    def _go_on(self) -> None:
        self.durable.hub.go_on(self)

    def take(self, delivery: Delivery) -> bool:
        # All who stand here have told the same, so what one has told of this goes for all.
        key = Telling, self.cursor
        told: Told | None = delivery.cache.get(key)
        if told is None:
            assert self._telling.cursor == self.cursor, "a story that others went on with"
            told = delivery.cache[key] = self._telling.tell(delivery)
        self.cursor = delivery.next
        self._telling = self._tellings.met(told.telling)
        data = told.since(self._after)
        room = self.exchange.write(data) if data else self.exchange.room
        if not room:
            self._telling = self._telling.fork()  # the others go on without it
        return room

    def on_gap(self, following: int) -> None:
        self.exchange.refuse(Refused(410, "log_expired", "What this response said is not kept any more."))

    def on_end(self) -> None:
        self._telling = self._tellings.met(self._telling)
        self.exchange.work(self._finish)

    async def _finish(self, exchange: LocalExchange) -> None:
        try:
            await exchange.send((await self._telling.end(self.durable.store)).since(self._after))
        except Gone:
            return
        except StoreError as error:
            exchange.refuse(refused(error))
            return
        exchange.end()

    def rotate(self) -> None:
        self.exchange.end()  # the client goes on elsewhere from the number it has


__all__ = ["Stream", "Telling", "Tellings", "Told"]
