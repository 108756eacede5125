"""Hints: the log has grown, a run may be claimable. They may be late or doubled, not absent while all is well."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence

import pytest

from unjam.runs.model import Event, NewEvent
from unjam.runs.store.base import Fenced

from .harness import Harness


class Told:
    """What the hints said. `until` waits for what is to come, 5 s at most."""

    def __init__(self, h: Harness) -> None:
        self.growth: dict[str, int] = {}
        self.ready: list[str] = []
        self.strangers: list[int] = []
        self._loops = threading.get_ident()
        self._news = asyncio.Event()
        h.store.on_growth = self._grown
        h.store.on_ready = self._ready

    def _grown(self, run: str, seq: int) -> None:
        self._noticed()
        self.growth[run] = max(seq, self.growth.get(run, 0))

    def _ready(self, service: str) -> None:
        self._noticed()
        self.ready.append(service)

    def _noticed(self) -> None:
        if threading.get_ident() != self._loops:
            self.strangers.append(threading.get_ident())
        self._news.set()

    async def until(self, what: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not what():
                self._news.clear()
                await self._news.wait()


async def test_a_watched_run_tells_how_far_its_log_goes(h: Harness) -> None:
    told = Told(h)
    claim = await h.taken()
    run = claim.run.id
    h.store.watch(run)
    await h.emit(claim, 1, 1, 2)
    await told.until(lambda: told.growth.get(run) == 4)
    await h.store.finish(run, claim.run.fence, "completed")
    await told.until(lambda: told.growth.get(run) == 5)
    assert not told.strangers


async def test_whoever_watches_first_then_reads_misses_nothing(h: Harness) -> None:
    told = Told(h)
    run = await h.create()
    h.store.watch(run.id)
    seen = len((await h.store.read(run.id)).events)
    claim = await h.claim()
    await told.until(lambda: told.growth.get(run.id, 0) > seen)
    assert [event.type for event in await h.log(run.id, seen - 1)] == ["run.attempt"]
    await h.emit(claim, 1, 1)
    await told.until(lambda: told.growth.get(run.id, 0) == 3)


async def test_every_kind_of_growth_is_told(h: Harness) -> None:
    told = Told(h)
    run = (await h.create(max_attempts=1)).id
    h.store.watch(run)
    await h.claim()
    await told.until(lambda: told.growth.get(run) == 2)
    await h.lose()
    await told.until(lambda: told.growth.get(run) == 3)
    await h.store.requeue(run)
    await told.until(lambda: told.growth.get(run) == 4)
    await h.store.cancel(run)
    await told.until(lambda: told.growth.get(run) == 5)
    late = await h.create(deadline=h.now() - 1)
    h.store.watch(late.id)
    await h.store.sweep()
    await told.until(lambda: told.growth.get(late.id) == 2)


async def test_an_input_is_told_to_who_watches_the_run(h: Harness) -> None:
    told = Told(h)
    claim, queued, silent = await h.taken(), await h.create(), await h.create()
    h.store.watch(claim.run.id)
    h.store.watch(queued.id)
    for number in (1, 2):
        told.growth.clear()
        assert await h.store.send(claim.run.id, b"in") == number
        await told.until(lambda: told.growth.get(claim.run.id) == 2)
    await h.store.send(silent.id, b"in")
    await h.store.send(queued.id, b"in")
    await told.until(lambda: told.growth.get(queued.id) == 1)
    assert silent.id not in told.growth
    assert [event.seq for event in await h.log(claim.run.id)] == [0, 1]
    assert not told.strangers


async def test_an_unwatched_run_says_nothing(h: Harness) -> None:
    told = Told(h)
    silent, watched = await h.taken(), await h.taken()
    h.store.watch(silent.run.id)
    h.store.watch(watched.run.id)
    h.store.unwatch(silent.run.id)
    await h.emit(silent, 1, 1)
    await h.emit(watched, 1, 1)
    await told.until(lambda: told.growth.get(watched.run.id) == 3)
    assert silent.run.id not in told.growth


async def test_to_unwatch_what_nobody_watches_is_nothing(h: Harness) -> None:
    run = await h.create()
    h.store.unwatch(run.id)
    h.store.watch(run.id)
    h.store.watch(run.id)
    h.store.unwatch(run.id)
    h.store.unwatch(run.id)


async def test_what_can_be_claimed_is_told(h: Harness) -> None:
    told = Told(h)
    await h.create()
    await h.create("painter")
    await told.until(lambda: {"auditor", "painter"} <= set(told.ready))
    claim = await h.claim()
    told.ready.clear()
    await h.store.release(claim.run.id, claim.run.fence)
    await told.until(lambda: "auditor" in told.ready)
    claim = await h.claim()
    told.ready.clear()
    await h.lose()
    await told.until(lambda: "auditor" in told.ready)
    claim = await h.claim()
    await h.store.finish(claim.run.id, claim.run.fence, "failed")
    told.ready.clear()
    await h.store.requeue(claim.run.id)
    await told.until(lambda: "auditor" in told.ready)
    assert not told.strangers


async def test_what_was_refused_tells_nothing(h: Harness) -> None:
    told = Told(h)
    claim, other = await h.taken(), await h.taken()
    h.store.watch(claim.run.id)
    h.store.watch(other.run.id)
    with pytest.raises(Fenced):
        await h.store.finish(claim.run.id, 99, "completed")
    await h.emit(other, 1, 1)
    await told.until(lambda: other.run.id in told.growth)
    # To tell again of what was there already is allowed.
    assert told.growth.get(claim.run.id, 2) == 2


async def test_events_that_are_told_are_those_of_the_log(h: Harness) -> None:
    told = Told(h)
    events: dict[int, Event] = {}

    def appended(run: str, new: Sequence[Event]) -> None:
        for event in new:
            assert events.setdefault(event.seq, event) == event
        told._grown(run, new[-1].seq + 1)

    h.store.on_events = appended
    claim = await h.taken()
    run, fence = claim.run.id, claim.run.fence
    h.store.watch(run)
    await h.emit(claim, 1, 1)
    await told.until(lambda: told.growth.get(run) == 3)
    odd = [
        NewEvent("\u00e4 b", '{"text":"\u00df 1 2\\n3"}'.encode()),
        NewEvent("c", b'"\n 4 5\n"'),
        NewEvent("d", b"0"),
    ]
    await h.store.append(run, fence, 2, odd)
    await told.until(lambda: told.growth.get(run) == 6)
    # What is too large to be told is told of.
    await h.store.append(run, fence, 3, [NewEvent("big", b'"' + b"x" * 100_000 + b'"')])
    await told.until(lambda: told.growth.get(run) == 7)
    await h.store.finish(run, fence, "completed", batch=4, events=[NewEvent("last", b"1")])
    await told.until(lambda: told.growth.get(run) == 9)
    log = {event.seq: event for event in (await h.store.read(run)).events}
    assert all(log[seq] == event for seq, event in events.items())
    assert not told.strangers
