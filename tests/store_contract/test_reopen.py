"""What a persistent store keeps when it is closed and opened again: everything."""

from __future__ import annotations

import pytest

from unjam.runs.store.base import Fenced

from .harness import Harness, ids, new_run, progress

pytestmark = pytest.mark.needs("persistent")


async def test_everything_is_there_again(h: Harness) -> None:
    queued = [await h.create(input=b"%d" % n, key=f"k{n}") for n in range(3)]
    first = await h.claim()
    await h.emit(first, 1, 1, 2)
    await h.store.heartbeat(first.run.id, first.run.fence, b"cp", h.lease)
    await h.store.send(first.run.id, b"in")
    ended = await h.taken(service="painter", tenant="acme")
    await h.store.finish(ended.run.id, ended.run.fence, "completed", result=b"res")
    dead = await h.taken(service="sculptor", max_attempts=1)
    await h.lose()
    before = {run.id: run for run in await h.store.list(None)}
    logs = {run: await h.log(run) for run in before}
    depth = await h.store.depth()
    await h.reopen()
    assert {run.id: run for run in await h.store.list(None)} == before
    assert {run: await h.log(run) for run in before} == logs
    assert await h.store.depth() == depth
    assert ids(await h.store.dead()) == [dead.run.id]
    assert await h.store.result(ended.run.id) == b"res"
    assert await h.store.inputs(first.run.id, 0) == [(1, b"in")]
    claims = {(claim := await h.claim()).run.id: claim for _ in queued}
    assert sorted(claims) == sorted(ids(queued))
    assert {claims[run.id].input for run in queued} == {b"0", b"1", b"2"}
    assert claims[first.run.id].checkpoint == b"cp"
    again, made = await h.store.create(new_run(input=b"1", key="k1"))
    assert (again.id, made) == (queued[1].id, False)


async def test_an_owner_goes_on(h: Harness) -> None:
    claim = await h.taken()
    await h.emit(claim, 1, 1)
    await h.store.cancel(claim.run.id)
    await h.reopen()
    repeated = await h.store.append(claim.run.id, claim.run.fence, 1, [progress(1)])
    assert (repeated.first, repeated.next, repeated.cancel) == (2, 3, True)
    assert await h.emit(claim, 2, 2) == 4
    with pytest.raises(Fenced):
        await h.store.heartbeat(claim.run.id, claim.run.fence + 1)
    settled = await h.store.finish(claim.run.id, claim.run.fence, "completed")
    await h.reopen()
    again = await h.store.finish(claim.run.id, claim.run.fence, "completed")
    assert (again.changed, again.run) == (False, settled.run)


async def test_an_owner_that_is_gone_loses_its_run_still(h: Harness) -> None:
    claim = await h.taken()
    await h.reopen()
    [settled] = await h.lose()
    assert (settled.run.id, settled.run.status) == (claim.run.id, "queued")
    assert (await h.claim()).run.fence == 2


async def test_what_was_shown_is_known_still(h: Harness) -> None:
    claim = await h.taken()
    await h.emit(claim, 1, 1)
    await h.reopen()
    [settled] = await h.lose()
    assert (settled.run.id, settled.run.status) == (claim.run.id, "failed")


async def test_what_was_handed_back_is_in_front_still(h: Harness) -> None:
    first = await h.taken()
    second = await h.create()
    await h.store.release(first.run.id, first.run.fence)
    await h.reopen()
    again = await h.store.release(first.run.id, first.run.fence)
    assert not again.changed
    order = [(await h.claim()).run.id, (await h.claim()).run.id]
    if "fifo" in h.capabilities:
        assert order == [first.run.id, second.id]
    else:
        assert sorted(order) == sorted([first.run.id, second.id])


@pytest.mark.needs("fifo")
async def test_the_order_of_the_queue_is_kept(h: Harness) -> None:
    made = [await h.create() for _ in range(5)]
    await h.reopen()
    made.append(await h.create())
    assert [(await h.claim()).run.id for _ in made] == ids(made)


async def test_opened_many_times(h: Harness) -> None:
    run = await h.create()
    for _ in range(3):
        await h.reopen()
    assert (await h.claim()).run.id == run.id
