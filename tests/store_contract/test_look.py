"""Lists, depths, and how long what has ended is kept."""

from __future__ import annotations

import pytest

from unjam.runs.model import Run
from unjam.runs.store.base import UnknownRun

from .harness import Harness, ids


async def some(h: Harness, count: int, **more: str) -> list[Run]:
    runs = []
    for _ in range(count):
        runs.append(await h.create(**more))
        if "wall" in h.capabilities:
            h.wall(1)
    return runs


@pytest.mark.needs("wall")
async def test_runs_are_listed_the_newest_first(h: Harness) -> None:
    runs = await some(h, 10)
    assert await h.store.list(None) == runs[::-1]
    assert await h.store.list(None, limit=3) == runs[:-4:-1]


async def test_pages_are_whole(h: Harness) -> None:
    runs = await some(h, 23)
    listed: list[Run] = []
    while page := await h.store.list(None, before=listed[-1].id if listed else None, limit=5):
        assert len(page) <= 5
        listed += page
    assert sorted(ids(listed)) == sorted(ids(runs))
    assert [run.created for run in listed] == sorted((run.created for run in listed), reverse=True)
    assert ids(listed) == ids(await h.store.list(None, limit=100))


async def test_pages_go_on_though_new_ones_come(h: Harness) -> None:
    old = await some(h, 6)
    first = await h.store.list(None, limit=3)
    await some(h, 3)
    second = await h.store.list(None, before=first[-1].id, limit=3)
    assert sorted(ids(first + second)) == sorted(ids(old))


@pytest.mark.needs("wall")
async def test_pages_go_on_from_a_run_that_is_gone(h: Harness) -> None:
    old, gone, new = await some(h, 3)
    claims = [await h.claim() for _ in range(3)]
    [claim] = [claim for claim in claims if claim.run.id == gone.id]
    await h.store.finish(gone.id, claim.run.fence, "completed")
    h.wall(7200)
    assert await h.store.housekeep(3600) == 1
    assert ids(await h.store.list(None)) == [new.id, old.id]
    assert ids(await h.store.list(None, before=gone.id)) == [old.id]


async def test_what_is_no_id_is_no_place_to_go_on_from(h: Harness) -> None:
    for odd in ("", "run_", "zzz", "run_ff" + "0" * 25):
        with pytest.raises(ValueError, match="id"):
            await h.store.list(None, before=odd)


async def test_tenants_see_their_own(h: Harness) -> None:
    ours = await some(h, 3, tenant="acme")
    theirs = await some(h, 2, tenant="Acme")
    nobodys = await some(h, 1)
    assert sorted(ids(await h.store.list("acme"))) == sorted(ids(ours))
    assert sorted(ids(await h.store.list("Acme"))) == sorted(ids(theirs))
    assert ids(await h.store.list("")) == ids(nobodys)
    assert await h.store.list("other") == []
    assert len(await h.store.list(None)) == 6


async def test_lists_are_narrowed(h: Harness) -> None:
    claim = await h.taken(tenant="acme")
    other = await h.taken(tenant="acme")
    await h.store.finish(other.run.id, other.run.fence, "completed")
    queued = await h.create(tenant="acme")
    painted = await h.create("painter", tenant="acme")
    await h.create(tenant="other")
    assert ids(await h.store.list("acme", status="running")) == [claim.run.id]
    assert ids(await h.store.list("acme", status="completed")) == [other.run.id]
    assert sorted(ids(await h.store.list("acme", status="queued"))) == sorted([queued.id, painted.id])
    assert ids(await h.store.list("acme", status="queued", service="auditor")) == [queued.id]
    assert ids(await h.store.list("acme", service="painter")) == [painted.id]
    assert await h.store.list("acme", status="failed") == []


async def test_a_narrow_list_is_found_behind_many_others(h: Harness) -> None:
    first = await h.create(tenant="acme")
    await some(h, 60, tenant="other")
    assert ids(await h.store.list("acme", limit=2)) == [first.id]


async def test_depth_tells_what_waits_and_what_runs(h: Harness) -> None:
    await some(h, 3)
    await h.create("painter", lane="heavy", pull=False)
    await h.claim()
    assert await h.store.depth() == {"auditor": (2, 1), "painter": (1, 0)}


@pytest.mark.needs("wall")
async def test_what_ended_long_ago_is_deleted(h: Harness) -> None:
    claim = await h.taken(key="k", tenant="acme")
    run, fence = claim.run.id, claim.run.fence
    await h.store.send(run, b"1")
    await h.emit(claim, 1, 1)
    await h.store.finish(run, fence, "completed", result=b"1")
    waiting = await h.create()
    h.wall(3599)
    assert await h.store.housekeep(3600) == 0
    assert len(await h.log(run)) == 4
    h.wall(2)
    assert await h.store.housekeep(7200) == 0
    assert await h.store.housekeep(3600) == 1
    for call in (h.store.get(run), h.store.read(run), h.store.result(run), h.store.inputs(run, 0), h.store.cancel(run)):
        with pytest.raises(UnknownRun):
            await call
    with pytest.raises(UnknownRun):
        await h.store.finish(run, fence, "completed")
    assert ids(await h.store.list(None)) == [waiting.id]
    assert await h.store.list("acme") == []


@pytest.mark.needs("wall")
async def test_what_has_not_ended_is_never_deleted(h: Harness) -> None:
    claim = await h.taken()
    queued = await h.create()
    h.wall(365 * 86400)
    assert await h.store.housekeep(3600) == 0
    assert (await h.store.get(queued.id)).status == "queued"
    await h.store.heartbeat(claim.run.id, claim.run.fence)


@pytest.mark.needs("wall")
async def test_dead_runs_are_deleted_too(h: Harness) -> None:
    await h.taken(max_attempts=1)
    await h.lose()
    h.wall(3601)
    assert await h.store.housekeep(3600) == 1
    assert await h.store.dead() == []


@pytest.mark.needs("wall")
async def test_what_was_queued_again_is_not_deleted(h: Harness) -> None:
    claim = await h.taken()
    await h.store.finish(claim.run.id, claim.run.fence, "failed")
    h.wall(3601)
    await h.store.requeue(claim.run.id)
    assert await h.store.housekeep(3600) == 0
    assert (await h.claim()).input == b"{}"


@pytest.mark.needs("wall")
async def test_housekeeping_does_as_much_as_it_is_told(h: Harness) -> None:
    for _ in range(5):
        claim = await h.taken()
        await h.store.finish(claim.run.id, claim.run.fence, "completed")
    h.wall(3601)
    assert [await h.store.housekeep(3600, limit=2) for _ in range(4)] == [2, 2, 1, 0]


async def test_an_hour_is_the_least(h: Harness) -> None:
    with pytest.raises(ValueError, match="kept"):
        await h.store.housekeep(3599)
