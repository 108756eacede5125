"""The log: contiguous from 0, the same for every reader, each batch in it once."""

from __future__ import annotations

import asyncio

import pytest

from unjam.runs.model import NewEvent
from unjam.runs.store.base import LARGEST, TooLarge, UnknownRun

from .harness import Harness, data, progress

NOBODY = "run_00" + "0" * 25


async def test_events_are_appended_and_read(h: Harness) -> None:
    claim = await h.taken()
    appended = await h.store.append(claim.run.id, claim.run.fence, 1, [progress(1), progress(2)])
    assert (appended.first, appended.next, appended.cancel) == (2, 4, False)
    appended = await h.store.append(claim.run.id, claim.run.fence, 2, [progress(3)])
    assert (appended.first, appended.next) == (4, 5)
    log = await h.log(claim.run.id)
    assert [event.seq for event in log] == [0, 1, 2, 3, 4]
    assert [data(event) for event in log[2:]] == [{"page": 1}, {"page": 2}, {"page": 3}]
    assert all(event.at == pytest.approx(h.now(), abs=5) for event in log)
    assert (await h.store.get(claim.run.id)).seq == 5


async def test_a_repeated_batch_is_there_once(h: Harness) -> None:
    claim = await h.taken()
    answers = [await h.store.append(claim.run.id, claim.run.fence, 1, [progress(1)]) for _ in range(3)]
    assert len(set(answers)) == 1
    await h.emit(claim, 2, 2)
    await h.emit(claim, 2, 2)
    assert len(await h.log(claim.run.id)) == 4


async def test_many_of_the_same_batch_at_once_are_one(h: Harness) -> None:
    claim = await h.taken()
    answers = await asyncio.gather(
        *(h.store.append(claim.run.id, claim.run.fence, 1, [progress(1), progress(2)]) for _ in range(20))
    )
    assert len(set(answers)) == 1
    assert len(await h.log(claim.run.id)) == 4


@pytest.mark.parametrize("wrong", [0, -1, 1, 4])
async def test_a_batch_out_of_turn_is_refused(h: Harness, wrong: int) -> None:
    claim = await h.taken()
    await h.emit(claim, 1, 1)
    await h.emit(claim, 2, 2)
    with pytest.raises(ValueError, match="batch"):
        await h.emit(claim, wrong, 9)
    assert await h.emit(claim, 3, 3) == 5


@pytest.mark.parametrize("wrong", [0, 2])
async def test_batches_begin_at_1(h: Harness, wrong: int) -> None:
    claim = await h.taken()
    with pytest.raises(ValueError, match="batch"):
        await h.emit(claim, wrong, 1)
    assert len(await h.log(claim.run.id)) == 2


async def test_batches_begin_anew_with_each_owner(h: Harness) -> None:
    claim = await h.taken(retry="restart")
    await h.emit(claim, 1, 1)
    await h.emit(claim, 2, 2)
    await h.lose()
    again = await h.claim()
    with pytest.raises(ValueError, match="batch"):
        await h.emit(again, 3, 3)
    assert await h.emit(again, 1, 1) == 6
    assert [event.seq for event in await h.log(claim.run.id)] == list(range(6))


async def test_an_empty_batch_counts(h: Harness) -> None:
    claim = await h.taken()
    appended = await h.store.append(claim.run.id, claim.run.fence, 1, [])
    assert (appended.first, appended.next) == (2, 2)
    assert await h.emit(claim, 2, 1) == 3


async def test_a_log_is_read_in_parts(h: Harness) -> None:
    claim = await h.taken()
    await h.emit(claim, 1, *range(10))
    await h.store.finish(claim.run.id, claim.run.fence, "completed")
    whole = await h.log(claim.run.id)
    assert [event.seq for event in whole] == list(range(13))
    after, parts = -1, []
    while True:
        batch = await h.store.read(claim.run.id, after, limit=4)
        assert len(batch.events) <= 4
        parts += batch.events
        after = batch.next - 1
        assert batch.ended == (batch.next == 13)
        if batch.ended:
            break
    assert parts == whole


@pytest.mark.parametrize("after", range(-1, 6))
async def test_a_reader_goes_on_from_anywhere(h: Harness, after: int) -> None:
    claim = await h.taken()
    await h.emit(claim, 1, 1, 2, 3)
    batch = await h.store.read(claim.run.id, after)
    assert [event.seq for event in batch.events] == list(range(after + 1, 5))
    assert (batch.next, batch.ended) == (5, False)


async def test_a_reader_ahead_of_the_log_is_told_where_it_ends(h: Harness) -> None:
    claim = await h.taken()
    batch = await h.store.read(claim.run.id, 100)
    assert (batch.events, batch.next, batch.ended) == ([], 2, False)


async def test_the_end_of_the_log_is_told_also_to_who_has_it_all(h: Harness) -> None:
    claim = await h.taken()
    await h.store.finish(claim.run.id, claim.run.fence, "completed")
    batch = await h.store.read(claim.run.id, 2)
    assert (batch.events, batch.next, batch.ended) == ([], 3, True)


async def test_reading_stops_at_a_size_but_gives_one_event(h: Harness) -> None:
    claim = await h.taken()
    await h.store.append(claim.run.id, claim.run.fence, 1, [NewEvent("page", b"%d" % n * 1000) for n in range(8)])
    batch = await h.store.read(claim.run.id, 1, size=2500)
    assert [event.seq for event in batch.events] == [2, 3, 4]
    assert batch.next == 5
    batch = await h.store.read(claim.run.id, 1, size=1)
    assert [event.seq for event in batch.events] == [2]


async def test_large_and_odd_events_come_back_as_they_went(h: Harness) -> None:
    claim = await h.taken()
    large = bytes(range(256)) * (LARGEST // 256)
    events = [NewEvent("odd\x00 ☃", b"\x00\r\n\xff"), NewEvent("large", large), NewEvent("empty", b"")]
    await h.store.append(claim.run.id, claim.run.fence, 1, events)
    log = await h.log(claim.run.id, after=1)
    assert [(event.type, event.data) for event in log] == [(event.type, event.data) for event in events]
    with pytest.raises(TooLarge):
        await h.store.append(claim.run.id, claim.run.fence, 2, [progress(1), NewEvent("large", large + b"x")])
    assert await h.emit(claim, 2, 1) == 6


async def test_a_thousand_events_in_one_batch(h: Harness) -> None:
    claim = await h.taken()
    assert await h.emit(claim, 1, *range(1000)) == 1002
    log = await h.log(claim.run.id)
    assert [event.seq for event in log] == list(range(1002))
    assert [data(event)["page"] for event in log[2:]] == list(range(1000))


async def test_readers_meet_no_hole_while_it_grows(h: Harness) -> None:
    claim = await h.taken()

    async def write() -> None:
        for batch in range(1, 31):
            await h.emit(claim, batch, batch, -batch)
            await asyncio.sleep(0)
        await h.store.finish(claim.run.id, claim.run.fence, "completed")

    async def follow() -> list[int]:
        seen: list[int] = []
        while True:
            batch = await h.store.read(claim.run.id, len(seen) - 1, limit=7)
            seen += [event.seq for event in batch.events]
            if batch.ended:
                return seen
            await asyncio.sleep(0)

    writing = asyncio.create_task(write())
    readers = await asyncio.gather(*(follow() for _ in range(5)))
    await writing
    assert readers == [list(range(63))] * 5


async def test_logs_are_apart(h: Harness) -> None:
    first, second = await h.taken(), await h.taken()
    await h.emit(first, 1, 1)
    await h.emit(second, 1, 2)
    assert data((await h.log(first.run.id))[-1]) == {"page": 1}
    assert data((await h.log(second.run.id))[-1]) == {"page": 2}


async def test_what_nobody_knows_is_unknown(h: Harness) -> None:
    await h.create()
    for call in (
        h.store.get(NOBODY),
        h.store.read(NOBODY),
        h.store.result(NOBODY),
        h.store.cancel(NOBODY),
        h.store.requeue(NOBODY),
        h.store.append(NOBODY, 1, 1, [progress(1)]),
        h.store.heartbeat(NOBODY, 1),
        h.store.finish(NOBODY, 1, "completed"),
        h.store.release(NOBODY, 1),
        h.store.send(NOBODY, b"1"),
        h.store.inputs(NOBODY, 0),
    ):
        with pytest.raises(UnknownRun):
            await call
    for odd in ("", "run_", "x" * 31, "run_zz" + "0" * 25, "run_ff" + "0" * 25, "run_00{}*?[]" + "0" * 19):
        with pytest.raises(UnknownRun):
            await h.store.get(odd)
