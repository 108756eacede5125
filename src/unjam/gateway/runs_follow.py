"""Clients that follow a run: an SSE stream, a long-poll for events, a held answer until the run has ended.

Each is a `Follower` of the hub on a held exchange: no task, and of the log nothing but a place in it. What a client is
sent is made once for all who stand at the same place.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING, Final

from unjam.gateway import runs_shapes as shapes
from unjam.gateway.local import Answer, LocalExchange, Refused
from unjam.gateway.runs_errors import refused
from unjam.runs.hub import LIMIT, SIZE, Delivery, Follower
from unjam.runs.machine import COMPLETED
from unjam.runs.model import Batch, Event, Run
from unjam.runs.store.base import StoreError

if TYPE_CHECKING:
    from unjam.gateway.durable import Durable

NOTHING: Final = Answer(204)

#: Milliseconds after which an `EventSource` that was cut off comes back: its own default may be three seconds and more.
#: A line of the first event, whichever that is.
RETRY: Final = b"retry: 1000\n"

_LINE_ENDS = str.maketrans("", "", "\r\n\0")


def frames(events: Sequence[Event]) -> bytes:
    """Events as SSE: `id` is the seq."""
    parts = []
    for event in events:
        data = event.data
        if b"\n" in data or b"\r" in data:
            # Only between tokens: a JSON string holds no line end. The client's lines are the same JSON.
            data = b"\ndata: ".join(data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n"))
        parts.append(b"id: %d\nevent: %b\ndata: %b\n\n" % (event.seq, _event_name(event.type), data))
    return b"".join(parts)


def _event_name(name: str) -> bytes:
    # Not every store is written to by gateways alone.
    return name.translate(_LINE_ENDS).encode("utf-8", "replace")


def gap(following: int) -> bytes:
    """The log has lost something, or has never had what the client has seen. The id is where it goes on from here: who
    comes back with it is not told again."""
    return b'id: %d\nevent: gap\ndata: {"next":%d}\n\n' % (following - 1, following)


class Held(Follower):
    """A held exchange that follows a run: what all of them share. The exchange is theirs until it ends."""

    __slots__ = ("durable", "exchange")

    def __init__(self, durable: Durable, exchange: LocalExchange, run: str, after: int = -1) -> None:
        super().__init__(run, after)
        self.durable = durable
        self.exchange = exchange

    def begin(self) -> None:
        """Follow from now on; the exchange is held. At a gateway that is stopping it goes on elsewhere at once."""
        exchange, durable = self.exchange, self.durable
        if durable.gateway.draining:
            self.rotate()
            return
        try:
            durable.check(exchange)  # the keys may have changed while the store was asked
        except Refused as refusal:
            exchange.refuse(refusal)
            return
        exchange.on_ended = self._over
        exchange.on_drain = self.rotate
        durable.held.add(exchange)
        if not exchange.started:
            exchange.hold()
        durable.hub.follow(self)

    def _over(self) -> None:
        self.durable.hub.unfollow(self)
        self.durable.held.discard(self.exchange)

    def rotate(self) -> None:
        """The gateway is stopping: the client shall go on elsewhere."""
        raise NotImplementedError

    def on_error(self, error: StoreError) -> None:
        self.exchange.refuse(refused(error))


class EventStream(Held):
    """`GET /v1/runs/{id}/events` as SSE."""

    __slots__ = ()

    def start(self, batch: Batch) -> None:
        """Begin the stream with what has been read already. Raises `Gone`."""
        exchange = self.exchange
        exchange.start()
        exchange.write(RETRY)
        first = batch.events[0].seq if batch.events else batch.next
        if first != self.cursor:
            self.on_gap(first)
        self.cursor = batch.next
        exchange.write(frames(batch.events))
        if batch.ended:
            exchange.end()
            return
        exchange.on_room = self._go_on
        self.begin()

    def _go_on(self) -> None:
        self.durable.hub.go_on(self)

    def on_events(self, delivery: Delivery) -> bool:
        return self.exchange.write(delivery.encoded(self.cursor, frames))

    def on_gap(self, following: int) -> None:
        self.exchange.write(gap(following))

    def on_end(self) -> None:
        self.exchange.end()

    def rotate(self) -> None:
        # EventSource, and any client that resumes, comes back by itself with the last id.
        self.exchange.end()


def batch_answer(events: Sequence[Event], following: int, ended: bool, lost: bool = False) -> Answer:
    found = shapes.EventBatch([shapes.event_view(event) for event in events], following, ended)
    if lost:
        found.gap = True
    return shapes.json(found)


class Poll(Held):
    """`GET /v1/runs/{id}/events?wait=`: answered with the first events that come."""

    __slots__ = ("_limit",)

    def hold_for(self, wait: float, limit: int) -> None:
        self._limit = limit
        self.begin()
        self.exchange.at(monotonic() + wait, self.rotate)

    def on_events(self, delivery: Delivery) -> bool:
        events = delivery.since(self.cursor)[: self._limit]
        following = events[-1].seq + 1
        self.exchange.answer(batch_answer(events, following, delivery.ended and following == delivery.next))
        return True

    def on_gap(self, following: int) -> None:
        self.exchange.answer(batch_answer((), following, False, lost=True))

    def on_end(self) -> None:
        self.exchange.answer(batch_answer((), self.cursor, True))

    def rotate(self) -> None:
        self.exchange.answer(NOTHING)


class Outcome(Held):
    """`GET /v1/runs/{id}?wait=`: answered when the run has ended, or with how it stands."""

    __slots__ = ("_with_result",)

    def hold_for(self, wait: float, with_result: bool) -> None:
        self._with_result = with_result
        self.begin()
        self.exchange.at(monotonic() + wait, self.rotate)

    def on_events(self, delivery: Delivery) -> bool:
        return True

    def on_end(self) -> None:
        self.rotate()

    def rotate(self) -> None:
        self.durable.hub.unfollow(self)
        self.exchange.at(float("inf"), self.rotate)
        self.exchange.work(self._tell)

    async def _tell(self, exchange: LocalExchange) -> Answer:
        try:
            run = await self.durable.store.get(self.run)
            return await run_answer(self.durable, run, self._with_result)
        except StoreError as error:
            raise refused(error) from None


async def run_answer(durable: Durable, run: Run, with_result: bool, status: int = 200, lines: bytes = b"") -> Answer:
    """A run, with its result when it has one and that is wanted. Raises StoreError."""
    if with_result and run.status == COMPLETED:

        async def make() -> bytes:
            return shapes.json(shapes.view(run, await durable.store.result(run.id))).body

        return Answer(status, await durable.bodies.get(("run", run.id, run.seq), make), lines)
    return shapes.json(shapes.view(run), status, lines)


__all__ = ["LIMIT", "SIZE", "EventStream", "Held", "Outcome", "Poll", "batch_answer", "frames", "gap", "run_answer"]
