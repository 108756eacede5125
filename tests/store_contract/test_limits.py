"""How many runs of one tenant may wait for a service: counted exactly, whatever becomes of them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from unjam.runs.model import Run
from unjam.runs.store.base import QueueFull, TenantQueueFull

from .harness import Harness, ids, new_run


async def create(h: Harness, most: int = 2, tenant: str = "acme", service: str = "auditor", **more: Any) -> Run:
    return await h.create(service, tenant=tenant, max_queued_tenant=most, **more)


async def is_full(h: Harness, most: int = 2, tenant: str = "acme") -> bool:
    """Whether there is no room for one more, which then is made, and cancelled again."""
    try:
        run = await create(h, most, tenant)
    except TenantQueueFull:
        return True
    assert (await h.store.cancel(run.id)).changed
    return False


async def test_one_tenant_is_refused_and_nobody_else(h: Harness) -> None:
    made = [await create(h, lane="fast"), await create(h, lane="heavy", pull=False)]
    with pytest.raises(TenantQueueFull) as refused:
        await create(h)
    assert isinstance(refused.value, QueueFull)
    assert refused.value.code == "tenant_queue_full"
    made += [await create(h, tenant=""), await create(h, service="painter"), await create(h, tenant="acme2")]
    made += [await h.create(tenant="acme"), await create(h, most=4)]
    assert sorted(ids(await h.store.list(None))) == sorted(ids(made))
    assert await h.store.depth() == {"auditor": (6, 0), "painter": (1, 0)}


async def test_a_service_that_is_full_for_all_says_so(h: Harness) -> None:
    await create(h)
    with pytest.raises(QueueFull) as refused:
        await create(h, max_queued=1, most=1)
    assert refused.value.code == "queue_full"
    with pytest.raises(TenantQueueFull):
        await create(h, max_queued=2, most=1)


async def test_those_count_that_were_made_without_a_limit(h: Harness) -> None:
    for _ in range(2):
        await h.create(tenant="acme")
    assert await is_full(h)
    assert not await is_full(h, most=3)


async def test_whatever_becomes_of_a_run_is_counted(h: Harness) -> None:
    await create(h)
    run = await create(h, max_attempts=1)
    assert await is_full(h)

    first = await h.claim()
    assert not await is_full(h)
    await h.store.release(first.run.id, first.run.fence)
    assert await is_full(h)

    first = await h.claim()
    await h.lose()
    assert await is_full(h)

    claims = [await h.claim(), await h.claim()]
    assert not await is_full(h)
    [dead] = [settled.run for settled in await h.lose() if settled.run.status == "failed"]
    assert dead.id == run.id
    assert not await is_full(h)
    await h.store.requeue(run.id)
    assert await is_full(h)

    assert (await h.store.cancel(claims[0].run.id)).changed
    assert not (await h.store.cancel(claims[0].run.id)).changed
    assert not await is_full(h)
    await create(h)
    assert await is_full(h)


@pytest.mark.needs("wall")
async def test_what_expires_makes_room(h: Harness) -> None:
    for _ in range(2):
        await create(h, deadline=h.now() + 5)
    assert await is_full(h)
    h.wall(10)
    assert len(await h.store.sweep()) == 2
    assert not await is_full(h)
    await create(h, deadline=h.now() + 5)
    await create(h)
    h.wall(10)
    claim = await h.claim()
    assert claim.run.deadline is None
    await h.store.sweep()
    assert not await is_full(h, most=1)


async def test_a_run_that_ended_and_is_deleted_counts_nothing(h: Harness) -> None:
    await create(h)
    claim = await h.claim()
    await h.store.finish(claim.run.id, claim.run.fence, "completed")
    await h.store.delete(claim.run.id)
    assert not await is_full(h, most=1)
    await create(h, most=1)
    assert await is_full(h, most=1)


async def test_a_key_that_is_known_is_answered_though_there_is_no_room(h: Harness) -> None:
    run = await create(h, most=1, key="k")
    again, made = await h.store.create(new_run(tenant="acme", key="k", max_queued_tenant=1))
    assert (again.id, made) == (run.id, False)


async def test_a_refused_create_uses_no_key(h: Harness) -> None:
    await create(h, most=1)
    with pytest.raises(TenantQueueFull):
        await create(h, most=1, key="k")
    await h.claim()
    _, made = await h.store.create(new_run(tenant="acme", key="k", digest=b"another", max_queued_tenant=1))
    assert made


@pytest.mark.needs("exact_limit")
async def test_it_holds_when_many_create_and_claim_at_once(h: Harness) -> None:
    async def one(n: int) -> bool:
        try:
            await create(h, most=5, tenant=f"t{n % 2}")
        except TenantQueueFull:
            return False
        return True

    assert sum(await asyncio.gather(*(one(n) for n in range(40)))) == 10
    claims, made = await asyncio.gather(
        asyncio.gather(*(h.claim() for _ in range(6))), asyncio.gather(*(one(n) for n in range(40)))
    )
    waiting = await h.store.list(None, status="queued", limit=100)
    for tenant in ("t0", "t1"):
        assert len([run for run in waiting if run.tenant == tenant]) <= 5
    assert len(waiting) == 10 - len(claims) + sum(made)
    assert await is_full(h, most=5, tenant="t0") == (len([r for r in waiting if r.tenant == "t0"]) == 5)


@pytest.mark.needs("persistent")
async def test_it_is_counted_after_it_was_opened_again(h: Harness) -> None:
    for _ in range(2):
        await create(h)
    await h.reopen()
    assert await is_full(h)
    await h.claim()
    assert not await is_full(h)
