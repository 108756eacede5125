"""Many at once, and callers that go away: always one end, and nothing by halves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import pytest

from unjam.runs.machine import TERMINAL
from unjam.runs.model import NewRun, Settled
from unjam.runs.store.base import Fenced

from .harness import Harness, ids, new_run, progress


async def settle(call: Awaitable[Settled]) -> bool:
    """Whether it was this call that did it."""
    try:
        return (await call).changed
    except Fenced:
        return False


@pytest.mark.parametrize("turn", range(6))
async def test_finish_sweep_and_cancel_at_once_leave_one_end(h: Harness, turn: int) -> None:
    claim = await h.taken(max_attempts=1)
    run, fence = claim.run.id, claim.run.fence
    await h.emit(claim, 1, 1)
    await h.advance(h.lease * 1.1)

    async def sweep() -> bool:
        return bool(await h.store.sweep())

    racers = [
        settle(h.store.finish(run, fence, "completed", result=b"1")),
        settle(h.store.finish(run, fence, "failed", error=b"{}")),
        sweep(),
        sweep(),
        settle(h.store.cancel(run)),
        settle(h.store.release(run, fence)),
    ]
    await asyncio.gather(*racers[turn:], *racers[:turn])
    await h.lose()
    found = await h.store.get(run)
    if found.status not in TERMINAL:  # Handed back first, and nobody has cancelled it since.
        assert found.status == "queued"
        await h.store.cancel(run)
        found = await h.store.get(run)
    types = await h.types(run)
    assert [type_ for type_ in types if type_[4:] in TERMINAL] == [f"run.{found.status}"]
    assert types[-1] == f"run.{found.status}"
    assert (await h.store.result(run) is not None) == (found.status == "completed")
    assert await h.store.depth() in ({}, {"auditor": (0, 0)})
    assert await h.lose() == []


async def test_many_sweeps_at_once_settle_each_run_once(h: Harness) -> None:
    made = [await h.create() for _ in range(20)]
    for _ in made:
        await h.claim()
    await h.advance(h.lease * 1.1)
    swept = await asyncio.gather(*(h.store.sweep() for _ in range(10)))
    assert sorted(settled.run.id for sweep in swept for settled in sweep) == sorted(ids(made))
    assert await h.store.depth() == {"auditor": (20, 0)}


async def test_many_finish_at_once_one_does(h: Harness) -> None:
    claim = await h.taken()
    ends = [h.store.finish(claim.run.id, claim.run.fence, status) for status in ("completed", "failed") * 10]
    settled = await asyncio.gather(*ends)
    assert sum(each.changed for each in settled) == 1
    assert len({each.run.status for each in settled}) == 1
    assert len(await h.log(claim.run.id)) == 3


async def test_many_cancel_at_once_one_does(h: Harness) -> None:
    queued, running = await h.create("painter"), await h.taken()
    for run in (queued.id, running.run.id):
        settled = await asyncio.gather(*(h.store.cancel(run) for _ in range(10)))
        assert sum(each.changed for each in settled) == 1


async def test_inputs_sent_at_once_have_numbers_of_their_own(h: Harness) -> None:
    run = await h.create()
    numbers = await asyncio.gather(*(h.store.send(run.id, b"%d" % n) for n in range(30)))
    assert sorted(numbers) == list(range(1, 31))
    kept = await h.store.inputs(run.id, 0)
    assert [number for number, _ in kept] == list(range(1, 31))
    assert dict(kept) == {number: b"%d" % n for n, number in enumerate(numbers)}


async def test_a_claim_and_a_cancel_at_once(h: Harness) -> None:
    for _ in range(10):
        run = await h.create()
        claim, cancelled = await asyncio.gather(h.maybe(), h.store.cancel(run.id))
        assert cancelled.changed
        found = await h.store.get(run.id)
        if claim is None:
            assert found.status == "cancelled"
        else:
            assert (found.status, found.cancel_requested) == ("running", True)
            await h.store.finish(run.id, claim.run.fence, "cancelled")


async def drop(call: Awaitable[object], turns: int) -> None:
    """Awaits it, but goes away after so many turns of the loop."""
    task = asyncio.ensure_future(call)
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])


TURNS = [0, 1, 2, 5]


@pytest.mark.parametrize("turns", TURNS)
async def test_54_a_caller_that_goes_away_leaves_a_created_run_or_none(h: Harness, turns: int) -> None:
    new: NewRun = new_run(key="k")
    await drop(h.store.create(new), turns)
    run, _ = await h.store.create(new)
    assert ids(await h.store.list(None)) == [run.id]
    assert await h.store.depth() == {"auditor": (1, 0)}
    assert await h.types(run.id) == ["run.created"]


@pytest.mark.parametrize("turns", TURNS)
async def test_54_a_claim_nobody_waits_for_loses_no_run(h: Harness, turns: int) -> None:
    run = await h.create()
    await drop(h.maybe(), turns)
    await h.lose()
    claim = await h.claim()
    assert claim.run.id == run.id
    # A claim that was made in vain has its event; the attempt is charged unless it could be handed back.
    assert claim.run.fence == claim.run.seq - 1
    assert 1 <= claim.run.attempt <= claim.run.fence


@pytest.mark.parametrize("turns", TURNS)
async def test_54_an_append_nobody_waits_for_is_there_once_when_repeated(h: Harness, turns: int) -> None:
    claim = await h.taken()
    events = [progress(1), progress(2)]
    await drop(h.store.append(claim.run.id, claim.run.fence, 1, events), turns)
    appended = await h.store.append(claim.run.id, claim.run.fence, 1, events)
    assert (appended.first, appended.next) == (2, 4)
    assert await h.types(claim.run.id) == ["run.created", "run.attempt", "progress", "progress"]


@pytest.mark.parametrize("turns", TURNS)
async def test_54_a_finish_nobody_waits_for_can_be_repeated(h: Harness, turns: int) -> None:
    claim = await h.taken()
    run, fence = claim.run.id, claim.run.fence
    await drop(h.store.finish(run, fence, "completed", result=b"1", batch=1, events=[progress(1)]), turns)
    settled = await h.store.finish(run, fence, "completed", result=b"1", batch=1, events=[progress(1)])
    assert settled.run.status == "completed"
    assert await h.store.result(run) == b"1"
    assert await h.types(run) == ["run.created", "run.attempt", "progress", "run.completed"]
    assert await h.lose() == []


async def test_54_answers_go_to_whoever_asked(h: Harness) -> None:
    """A reply that nobody waited for must not be taken for that of the next call."""
    claims = [await h.taken(service=f"s{n}") for n in range(10)]
    calls = [asyncio.ensure_future(h.store.get(claim.run.id)) for claim in claims]
    await asyncio.sleep(0)
    for call in calls[::2]:
        call.cancel()
    await asyncio.wait(calls)
    for claim in claims:
        assert (await h.store.get(claim.run.id)).id == claim.run.id
    assert [(await call).id for call in calls[1::2]] == [claim.run.id for claim in claims[1::2]]


async def test_a_crowd_of_workers_loses_nothing_and_doubles_nothing(h: Harness) -> None:
    made = await asyncio.gather(*(h.create(retry="restart", max_attempts=99) for _ in range(60)))
    done: list[str] = []

    async def work(n: int) -> None:
        while (claim := await h.maybe(worker=f"w{n}")) is not None:
            run, fence = claim.run.id, claim.run.fence
            await h.emit(claim, 1, n)
            await asyncio.sleep(0)
            if fence == 1 and (len(done) + n) % 3 == 0:
                await h.store.release(run, fence)
                continue
            await h.emit(claim, 2, n)
            settled = await h.store.finish(run, fence, "completed", result=b"%d" % n)
            assert settled.changed
            done.append(run)

    workers = [asyncio.create_task(work(n)) for n in (1, 2, 4, 5, 7, 8)]
    await asyncio.gather(*workers)
    while (claim := await h.maybe()) is not None:
        await h.store.finish(claim.run.id, claim.run.fence, "completed")
        done.append(claim.run.id)
    assert sorted(done) == sorted(ids(made))
    for run in done:
        log = await h.log(run)
        assert [event.seq for event in log] == list(range(len(log)))
        assert [event.type for event in log].count("run.completed") == 1
    assert await h.store.depth() in ({}, {"auditor": (0, 0)})
