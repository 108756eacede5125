"""Claims: the oldest of the first lane, one owner at a time."""

from __future__ import annotations

import asyncio

import pytest

from unjam.runs.store.base import Fenced

from .harness import Harness, data, error, ids, progress


async def test_a_claim_gives_the_run_what_it_needs(h: Harness) -> None:
    run = await h.create(input=b'{"pdf":"a"}', max_attempts=2)
    claim = await h.claim(worker="w7")
    assert claim.input == b'{"pdf":"a"}'
    assert claim.checkpoint is None
    assert (claim.run.id, claim.run.status, claim.run.worker) == (run.id, "running", "w7")
    assert (claim.run.attempt, claim.run.fence, claim.run.seq) == (1, 1, 2)
    assert claim.run.started == pytest.approx(h.now(), abs=5)
    assert await h.store.get(run.id) == claim.run
    assert await h.store.depth() == {"auditor": (0, 1)}
    event = (await h.log(run.id))[1]
    assert (event.type, data(event)) == ("run.attempt", {"n": 1, "from_seq": 1, "reason": "first"})


async def test_nothing_waits(h: Harness) -> None:
    assert await h.maybe() is None
    assert await h.store.claim((), "w", pull=True) is None
    assert await h.store.depth() in ({}, {"auditor": (0, 0)})


async def test_nobody_gets_what_somebody_has(h: Harness) -> None:
    await h.taken()
    assert await h.maybe() is None


async def test_runs_of_other_services_and_ways_are_left_alone(h: Harness) -> None:
    await h.create("painter")
    pushed = await h.create("auditor", pull=False)
    assert await h.maybe("auditor") is None
    assert (await h.claim("auditor", pull=False)).run.id == pushed.id
    assert (await h.claim("auditor", "painter")).run.service == "painter"


async def test_a_lane_that_was_not_asked_for_is_left_alone(h: Harness) -> None:
    await h.create(lane="heavy")
    assert await h.store.claim(["auditor"], "w", pull=True, lanes=["fast"]) is None
    assert await h.store.claim(["auditor"], "w", pull=True, lanes=[]) is None
    assert await h.store.claim(["auditor"], "w", pull=True, lanes=["heavy"]) is not None


async def test_the_first_lane_goes_first(h: Harness) -> None:
    heavy = await h.create(lane="heavy")
    fast = await h.create(lane="fast")
    assert (await h.claim()).run.id == fast.id
    assert (await h.claim()).run.id == heavy.id
    heavy = await h.create(lane="heavy")
    await h.create(lane="fast")
    claim = await h.store.claim(["auditor"], "w", pull=True, lanes=["heavy", "fast"])
    assert claim is not None
    assert claim.run.id == heavy.id


@pytest.mark.needs("fifo")
async def test_first_come_first_served(h: Harness) -> None:
    made = [await h.create() for _ in range(12)]
    assert [(await h.claim()).run.id for _ in made] == ids(made)


@pytest.mark.needs("fifo")
async def test_of_several_services_the_oldest(h: Harness) -> None:
    made = [await h.create(service) for service in ("b", "a", "c", "a", "b")]
    assert [(await h.claim("a", "b", "c")).run.id for _ in made] == ids(made)


@pytest.mark.needs("wall", "fifo")
async def test_58_the_order_does_not_go_by_the_wall_clock(h: Harness) -> None:
    first = await h.create()
    h.wall(-7200)
    second = await h.create()
    assert [(await h.claim()).run.id, (await h.claim()).run.id] == [first.id, second.id]


async def test_all_that_waits_is_claimed_sometime(h: Harness) -> None:
    made = [await h.create() for _ in range(40)]
    assert sorted([(await h.claim()).run.id for _ in made]) == sorted(ids(made))
    assert await h.maybe() is None


@pytest.mark.needs("fifo")
async def test_what_was_lost_keeps_its_place(h: Harness) -> None:
    first, second, third = [await h.create() for _ in range(3)]
    assert (await h.claim()).run.id == first.id
    await h.lose()
    assert [(await h.claim()).run.id for _ in range(3)] == [first.id, second.id, third.id]


@pytest.mark.needs("fifo")
async def test_what_is_handed_back_goes_to_the_front(h: Harness) -> None:
    first, second, third = [await h.create() for _ in range(3)]
    await h.claim()
    claim = await h.claim()
    await h.store.release(claim.run.id, claim.run.fence)
    await h.lose()
    assert [(await h.claim()).run.id for _ in range(3)] == [second.id, first.id, third.id]


@pytest.mark.needs("fifo")
async def test_the_front_is_of_its_own_lane(h: Harness) -> None:
    fast = await h.create(lane="fast")
    heavy = await h.create(lane="heavy")
    claim = await h.store.claim(["auditor"], "w", pull=True, lanes=["heavy"])
    assert claim is not None
    await h.store.release(heavy.id, claim.run.fence)
    assert (await h.claim()).run.id == fast.id


async def test_each_claim_has_a_higher_fence(h: Harness) -> None:
    run = await h.create(max_attempts=3)
    for n in (1, 2, 3):
        claim = await h.claim()
        assert (claim.run.fence, claim.run.attempt) == (n, n)
        await h.lose()
    assert (await h.store.get(run.id)).status == "failed"


async def test_55_who_lost_a_run_can_do_nothing_to_it(h: Harness) -> None:
    old = await h.taken()
    await h.lose()
    new = await h.claim(worker="w2")
    run, fence = old.run.id, old.run.fence
    for stale in (fence, 0, -1, new.run.fence + 1):
        with pytest.raises(Fenced):
            await h.store.append(run, stale, 1, [progress(1)])
        with pytest.raises(Fenced):
            await h.store.heartbeat(run, stale, b"1")
        with pytest.raises(Fenced):
            await h.store.finish(run, stale, "completed", result=b"1", batch=1, events=[progress(1)])
        with pytest.raises(Fenced):
            await h.store.release(run, stale, b"1")
    assert await h.store.get(run) == new.run
    assert await h.types(run) == ["run.created", "run.attempt", "run.attempt"]
    await h.emit(new, 1, 1)
    settled = await h.store.finish(run, new.run.fence, "completed", result=b"2")
    assert settled.run.status == "completed"
    assert await h.store.result(run) == b"2"


async def test_who_lost_a_run_can_do_nothing_while_it_waits(h: Harness) -> None:
    old = await h.taken()
    await h.lose()
    run, fence = old.run.id, old.run.fence
    with pytest.raises(Fenced):
        await h.store.append(run, fence, 1, [progress(1)])
    with pytest.raises(Fenced):
        await h.store.heartbeat(run, fence)
    with pytest.raises(Fenced):
        await h.store.finish(run, fence, "completed")
    with pytest.raises(Fenced):
        await h.store.release(run, fence)
    assert await h.store.depth() == {"auditor": (1, 0)}


async def test_nobody_owns_a_run_that_was_never_claimed(h: Harness) -> None:
    run = await h.create()
    for fence in (0, 1):
        with pytest.raises(Fenced):
            await h.store.finish(run.id, fence, "completed")
        with pytest.raises(Fenced):
            await h.store.release(run.id, fence)
    await h.store.cancel(run.id)
    for fence in (0, 1):
        with pytest.raises(Fenced):
            await h.store.finish(run.id, fence, "completed")


async def test_a_hundred_claims_at_once_get_a_hundred_runs(h: Harness) -> None:
    made = await asyncio.gather(*(h.create() for _ in range(100)))
    claims = await asyncio.gather(*(h.maybe(worker=f"w{n}") for n in range(120)))
    got = [claim for claim in claims if claim is not None]
    assert sorted(claim.run.id for claim in got) == sorted(ids(made))
    for claim in got:
        assert (await h.store.get(claim.run.id)).worker == claim.run.worker


async def test_what_is_past_its_deadline_is_not_begun(h: Harness) -> None:
    late = await h.create(deadline=h.now() - 1)
    timely = await h.create(deadline=h.now() + 900)
    assert (await h.claim()).run.id == timely.id
    assert await h.maybe() is None
    # Whoever notices first: the claim or a sweep.
    await h.store.sweep()
    found = await h.store.get(late.id)
    assert (found.status, found.attempt, found.error) == ("expired", 0, None)
    assert found.ended is not None
    assert await h.types(late.id) == ["run.created", "run.expired"]


async def test_an_attempt_says_why_and_from_where(h: Harness) -> None:
    claim = await h.taken(max_attempts=3)
    run = claim.run.id
    await h.emit(claim, 1, 1, 2)  # 2, 3
    await h.store.heartbeat(run, claim.run.fence, b'{"page":2}', h.lease)
    await h.emit(claim, 2, 3)  # 4, after the checkpoint: it may come again
    await h.lose()
    claim = await h.claim()  # 5
    assert claim.checkpoint == b'{"page":2}'
    assert claim.run.has_checkpoint
    await h.emit(claim, 1, 3)  # 6
    await h.store.release(run, claim.run.fence, b'{"page":3}')
    claim = await h.claim()  # 7
    assert claim.checkpoint == b'{"page":3}'
    await h.store.finish(run, claim.run.fence, "failed", error=b'{"code":"no_paper"}')  # 8
    await h.store.requeue(run)  # 9
    claim = await h.claim()  # 10
    assert claim.checkpoint == b'{"page":3}'
    attempts = {event.seq: data(event) for event in await h.log(run) if event.type == "run.attempt"}
    assert attempts == {
        1: {"n": 1, "from_seq": 1, "reason": "first"},
        5: {"n": 2, "from_seq": 4, "reason": "lost"},
        7: {"n": 2, "from_seq": 7, "reason": "handed_back"},
        10: {"n": 1, "from_seq": 7, "reason": "requeued"},
    }


async def test_a_new_attempt_without_a_checkpoint_begins_at_the_start(h: Harness) -> None:
    claim = await h.taken(retry="restart", max_attempts=2)
    await h.emit(claim, 1, 1, 2)
    await h.lose()
    claim = await h.claim()
    assert claim.checkpoint is None
    assert data((await h.log(claim.run.id))[-1]) == {"n": 2, "from_seq": 1, "reason": "lost"}
    await h.lose()
    run = await h.store.get(claim.run.id)
    assert error(run)["code"] == "attempts_exhausted"


@pytest.mark.needs("wall")
async def test_a_run_has_begun_when_it_first_did(h: Harness) -> None:
    claim = await h.taken()
    h.wall(60)
    await h.lose()
    again = await h.claim()
    assert again.run.started == claim.run.started
