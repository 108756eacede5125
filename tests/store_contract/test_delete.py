"""What has ended may be deleted: then nothing of it is left."""

from __future__ import annotations

import asyncio

import pytest

from unjam.runs.model import Claim
from unjam.runs.store.base import Fenced, NotEnded, UnknownRun

from .harness import Harness, ids, new_run, progress


async def ended(h: Harness, status: str = "completed", **more: object) -> Claim:
    claim = await h.taken(**more)
    await h.emit(claim, 1, 1, 2)
    await h.store.heartbeat(claim.run.id, claim.run.fence, b"cp", h.lease)
    await h.store.send(claim.run.id, b"in")
    await h.store.finish(claim.run.id, claim.run.fence, status, result=b"res")
    return claim


async def test_nothing_of_it_is_left(h: Harness) -> None:
    other = await ended(h, tenant="acme")
    run = (await ended(h, tenant="acme", key="k")).run.id
    await h.store.delete(run)
    store = h.store
    for call in (store.get(run), store.read(run), store.result(run), store.inputs(run, 0), store.send(run, b"x")):
        with pytest.raises(UnknownRun):
            await call
    for call in (store.cancel(run), store.requeue(run), store.heartbeat(run, 1), store.finish(run, 1, "completed")):
        with pytest.raises(UnknownRun):
            await call
    with pytest.raises(UnknownRun):
        await store.delete(run)
    assert ids(await store.list(None)) == ids(await store.list("acme", status="completed")) == [other.run.id]
    assert await store.depth() in ({}, {"auditor": (0, 0)})
    assert await h.types(other.run.id) == ["run.created", "run.attempt", "progress", "progress", "run.completed"]
    assert await store.result(other.run.id) == b"res"
    assert await store.inputs(other.run.id, 0) == [(1, b"in")]


async def test_what_has_not_ended_stays(h: Harness) -> None:
    queued, claim = await h.create("painter"), await h.taken()
    for run in (queued.id, claim.run.id):
        with pytest.raises(NotEnded):
            await h.store.delete(run)
    assert NotEnded.code == "run_not_ended"
    assert await h.emit(claim, 1, 1) == 3
    assert (await h.claim("painter")).run.id == queued.id
    await h.store.release(claim.run.id, claim.run.fence)
    with pytest.raises(NotEnded):
        await h.store.delete(claim.run.id)


@pytest.mark.parametrize("run", ["", "x", "run_", "run_211hf7yat00kknj6dkn8aw63d6t", "☃"])
async def test_what_never_was_is_unknown(h: Harness, run: str) -> None:
    with pytest.raises(UnknownRun):
        await h.store.delete(run)


async def test_however_it_ended(h: Harness) -> None:
    cancelled = await h.create()
    await h.store.cancel(cancelled.id)
    failed = await ended(h, "failed")
    runs = [cancelled.id, failed.run.id]
    late = await h.create(deadline=h.now() - 1)
    await h.store.sweep()
    for run in [*runs, late.id]:
        await h.store.delete(run)
    assert await h.store.list(None) == []
    assert await h.store.sweep() == []


async def test_its_key_is_free(h: Harness) -> None:
    first = await ended(h, key="k")
    await h.store.delete(first.run.id)
    second, made = await h.store.create(new_run(key="k", digest=b"another"))
    assert made
    assert second.id != first.run.id
    again, made = await h.store.create(new_run(key="k", digest=b"another"))
    assert (again.id, made) == (second.id, False)


async def test_the_dead_are_listed_no_more(h: Harness) -> None:
    runs = [(await h.taken(max_attempts=1)).run.id for _ in range(2)]
    await h.lose()
    assert sorted(ids(await h.store.dead())) == sorted(runs)
    await h.store.delete(runs[0])
    assert ids(await h.store.dead()) == ids(await h.store.dead("auditor")) == [runs[1]]


async def test_a_long_log_goes_too(h: Harness) -> None:
    claim = await h.taken()
    for batch in range(1, 4):
        await h.store.append(claim.run.id, claim.run.fence, batch, [progress(page) for page in range(500)])
    await h.store.finish(claim.run.id, claim.run.fence, "completed")
    await h.store.delete(claim.run.id)
    with pytest.raises(UnknownRun):
        await h.store.read(claim.run.id)
    other = await h.taken()
    assert await h.types(other.run.id) == ["run.created", "run.attempt"]


async def test_one_of_those_that_delete_at_once_does_it(h: Harness) -> None:
    claim = await ended(h)
    answers = await asyncio.gather(*(h.store.delete(claim.run.id) for _ in range(8)), return_exceptions=True)
    assert sorted(map(type, answers), key=str) == sorted([type(None), *[UnknownRun] * 7], key=str)


async def test_deleted_as_it_ends_and_asked_for_again(h: Harness) -> None:
    """Calls that may share a group, or a connection."""
    claim, left = await h.taken(), await h.taken()
    run, fence = claim.run.id, claim.run.fence
    finished, deleted, refused, gone, later = await asyncio.gather(
        h.store.finish(run, fence, "completed"),
        h.store.delete(run),
        h.store.delete(left.run.id),
        h.store.append(run, fence, 1, [progress(1)]),
        h.store.create(new_run("painter", key="k")),
        return_exceptions=True,
    )
    assert not isinstance(finished, BaseException)
    assert isinstance(gone, UnknownRun | Fenced)
    assert isinstance(refused, NotEnded)
    assert not isinstance(later, BaseException)
    if deleted is None:
        with pytest.raises(UnknownRun):
            await h.store.get(run)
    else:
        assert isinstance(deleted, NotEnded)
    assert await h.emit(left, 1, 1) == 3


@pytest.mark.needs("persistent")
async def test_it_stays_deleted(h: Harness) -> None:
    first, second = await ended(h, key="k"), await ended(h)
    await h.store.delete(first.run.id)
    await h.reopen()
    with pytest.raises(UnknownRun):
        await h.store.get(first.run.id)
    assert ids(await h.store.list(None)) == [second.run.id]
    _, made = await h.store.create(new_run(key="k", digest=b"another"))
    assert made
