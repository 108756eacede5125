"""Runs stay with the version that began them, as long as it is there."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from unjam.runs.model import Claim
from unjam.runs.store.base import LOOKED

from .harness import Harness, ids

BOTH = ("v1", "v2")


async def maybe(
    h: Harness, version: str | None, known: Sequence[str] = BOTH, service: str = "auditor", pinned: bool = False
) -> Claim | None:
    return await h.store.claim([service], "w", pull=True, lease=h.lease, version=version, known=known, pinned=pinned)


async def claimed(h: Harness, version: str | None, known: Sequence[str] = BOTH, service: str = "auditor") -> Claim:
    claim = await maybe(h, version, known, service)
    assert claim is not None, "nothing waits"
    return claim


async def test_a_claim_pins_the_run(h: Harness) -> None:
    run = await h.create()
    assert run.version is None
    claim = await claimed(h, "v1")
    assert (claim.run.id, claim.run.version) == (run.id, "v1")
    assert (await h.store.get(run.id)).version == "v1"


async def test_a_claim_without_a_version_pins_nothing_and_takes_anything(h: Harness) -> None:
    free, pinned = await h.create(), await h.create(version="v1")
    first, second = await claimed(h, None), await claimed(h, None)
    found = {claim.run.id: claim.run.version for claim in (first, second)}
    assert found == {free.id: None, pinned.id: "v1"}
    assert (await h.store.get(free.id)).version is None
    assert (await h.store.get(pinned.id)).version == "v1"


async def test_a_run_that_is_handed_back_or_lost_goes_to_its_version(h: Harness) -> None:
    claim = await h.taken(max_attempts=9)
    await h.store.release(claim.run.id, claim.run.fence)
    claim = await claimed(h, "v1")
    await h.store.release(claim.run.id, claim.run.fence)
    assert await maybe(h, "v2") is None
    claim = await claimed(h, "v1")
    await h.lose()
    assert await maybe(h, "v2") is None
    assert (await claimed(h, "v1")).run.id == claim.run.id


async def test_a_run_whose_version_is_gone_goes_to_another(h: Harness) -> None:
    run = await h.create(version="v1")
    assert await maybe(h, "v2") is None
    claim = await claimed(h, "v2", ["v2", "v3"])
    assert (claim.run.id, claim.run.version) == (run.id, "v2")
    await h.store.release(run.id, claim.run.fence)
    assert await maybe(h, "v1") is None
    assert (await h.store.get(run.id)).version == "v2"
    assert (await claimed(h, "v2")).run.version == "v2"


async def test_one_that_suits_is_found_behind_others(h: Harness) -> None:
    others = [await h.create(version="v1") for _ in range(LOOKED - 1)]
    mine = [await h.create(version="v2"), await h.create()]
    claims = [await claimed(h, "v2"), await claimed(h, "v2")]
    assert sorted(claim.run.id for claim in claims) == sorted(ids(mine))
    if "fifo" in h.capabilities:
        assert [claim.run.id for claim in claims] == ids(mine)
    assert await maybe(h, "v2") is None
    # And those that were passed over have kept their order.
    left = [(await claimed(h, "v1")).run.id for _ in others]
    assert sorted(left) == sorted(ids(others))
    if "fifo" in h.capabilities:
        assert left == ids(others)
    assert await h.maybe() is None


@pytest.mark.needs("fifo")
async def test_nobody_looks_behind_a_long_queue_of_others(h: Harness) -> None:
    for _ in range(LOOKED):
        await h.create(version="v1")
    mine = await h.create(version="v2")
    assert await maybe(h, "v2") is None
    await claimed(h, "v1")
    assert (await claimed(h, "v2")).run.id == mine.id


async def test_the_first_lane_that_has_one_that_suits(h: Harness) -> None:
    await h.create(version="v1", lane="fast")
    heavy = await h.create(version="v2", lane="heavy")
    assert (await claimed(h, "v2")).run.id == heavy.id


async def test_a_version_may_ask_only_for_what_is_its_own(h: Harness) -> None:
    free = await h.create()
    others = [await h.create(version="v1"), await h.create(version="gone")]
    assert await maybe(h, "v2", pinned=True) is None
    mine = await h.create(version="v2", lane="heavy")
    claim = await maybe(h, "v2", pinned=True)
    assert claim is not None
    assert (claim.run.id, claim.run.version, claim.pinned) == (mine.id, "v2", True)
    await h.store.release(mine.id, claim.run.fence)
    again = await maybe(h, "v2", pinned=True)
    assert again is not None
    assert (again.run.id, again.run.fence) == (mine.id, 2)
    assert await maybe(h, "v2", pinned=True) is None
    assert await maybe(h, "v2", known=(), pinned=True) is None  # what holds nobody is nobody's own
    assert await maybe(h, None, pinned=True) is None
    left = [(await claimed(h, None)).run.id for _ in range(3)]
    assert sorted(left) == sorted(ids([free, *others]))


async def test_what_is_its_own_is_found_behind_what_is_nobody_s(h: Harness) -> None:
    for _ in range(LOOKED - 1):
        await h.create()
    mine = await h.create(version="v2")
    claim = await maybe(h, "v2", pinned=True)
    assert claim is not None
    assert claim.run.id == mine.id


async def test_a_claim_says_whether_the_run_was_the_version_s_before(h: Harness) -> None:
    await h.create()
    first = await claimed(h, "v1")
    assert not first.pinned
    await h.store.release(first.run.id, first.run.fence)
    second = await claimed(h, "v1")
    assert second.pinned
    await h.store.release(first.run.id, second.run.fence)
    third = await claimed(h, None)
    assert not third.pinned
    await h.store.release(first.run.id, third.run.fence)
    assert not (await claimed(h, "v2", ["v2"])).pinned  # v1 is gone


@pytest.mark.needs("wall")
async def test_what_has_expired_is_given_to_nobody(h: Harness) -> None:
    await h.create(version="v1")
    await h.create(version="v2", deadline=h.now() + 5)
    mine = await h.create(version="v2")
    h.wall(10)
    assert (await claimed(h, "v2")).run.id == mine.id
    assert await maybe(h, "v2") is None


async def test_a_heartbeat_pins_what_has_no_pin(h: Harness) -> None:
    claim = await h.taken()
    run, fence = claim.run.id, claim.run.fence
    await h.store.heartbeat(run, fence, lease=h.lease)
    assert (await h.store.get(run)).version is None
    await h.store.heartbeat(run, fence, b"1", h.lease, "v1")
    await h.store.heartbeat(run, fence, None, h.lease, "v2")
    assert (await h.store.get(run)).version == "v1"
    await h.store.release(run, fence)
    assert await maybe(h, "v2") is None
    claim = await claimed(h, "v1")
    assert (claim.checkpoint, claim.run.version) == (b"1", "v1")


async def test_a_requeued_run_keeps_its_pin(h: Harness) -> None:
    await h.create()
    claim = await claimed(h, "v1")
    await h.store.finish(claim.run.id, claim.run.fence, "failed")
    settled = await h.store.requeue(claim.run.id)
    assert (settled.changed, settled.run.version) == (True, "v1")
    assert await maybe(h, "v2") is None
    assert (await claimed(h, "v1")).run.id == claim.run.id


@pytest.mark.needs("persistent")
async def test_a_pin_survives(h: Harness) -> None:
    await h.create()
    claim = await claimed(h, "v1")
    other = await h.taken(service="painter")
    await h.store.heartbeat(other.run.id, other.run.fence, None, h.lease, "v2")
    await h.reopen()
    assert (await h.store.get(claim.run.id)).version == "v1"
    assert (await h.store.get(other.run.id)).version == "v2"
    await h.store.release(claim.run.id, claim.run.fence)
    await h.store.release(other.run.id, other.run.fence)
    await h.reopen()
    assert await maybe(h, "v2") is None
    assert await maybe(h, "v1", service="painter") is None
    assert await maybe(h, "v1") is not None
    assert await maybe(h, "v2", service="painter") is not None


async def test_any_text_is_a_version(h: Harness) -> None:
    odd = 'v{1}:*\n\x00 "☃'
    await h.create(version=odd)
    await h.create("painter", version="")
    assert await maybe(h, "v1", [odd, "v1"]) is None
    assert (await claimed(h, odd, [odd, "v1"])).run.version == odd
    assert await maybe(h, "v1", ["", "v1"], "painter") is None
    assert (await claimed(h, "", ["", "v1"], "painter")).run.version == ""
