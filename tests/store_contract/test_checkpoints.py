"""Checkpoints that come late, because somebody in between was slow: they are of no use any more, and do no harm."""

from __future__ import annotations

from .harness import Harness, data


async def test_a_checkpoint_that_comes_late_takes_no_later_ones_place(h: Harness) -> None:
    claim = await h.taken()
    run, fence = claim.run.id, claim.run.fence
    await h.store.heartbeat(run, fence, b"1", h.lease, number=1)
    following = await h.emit(claim, 1, 1)
    await h.store.heartbeat(run, fence, b"2", h.lease, number=2)
    for late, number in ((b"1", 1), (b"2", 2)):
        await h.emit(claim, 1 + number, 2)
        assert not (await h.store.heartbeat(run, fence, late, h.lease, number=number)).cancel
    await h.lose()
    again = await h.claim()
    assert again.checkpoint == b"2"
    (attempt,) = [data(event) for event in await h.log(run) if event.type == "run.attempt" and data(event)["n"] == 2]
    assert attempt["from_seq"] == following


async def test_a_late_checkpoint_is_a_sign_of_life(h: Harness) -> None:
    claim = await h.taken()
    await h.store.heartbeat(claim.run.id, claim.run.fence, b"2", h.lease, number=2)
    for _ in range(2):
        await h.advance(h.lease * 0.7)
        await h.store.heartbeat(claim.run.id, claim.run.fence, b"1", h.lease, number=1)
    assert await h.store.sweep() == []


async def test_each_owner_numbers_its_own(h: Harness) -> None:
    claim = await h.taken(max_attempts=9)
    run = claim.run.id
    await h.store.heartbeat(run, claim.run.fence, b"7", h.lease, number=7)
    await h.lose()
    second = await h.claim()
    await h.store.heartbeat(run, second.run.fence, b"1", h.lease, number=1)
    await h.lose()
    third = await h.claim()
    assert third.checkpoint == b"1"
    # Who doesn't number them has the order in which they come.
    for checkpoint in (b"2", b"3"):
        await h.store.heartbeat(run, third.run.fence, checkpoint, h.lease)
    await h.lose()
    assert (await h.claim()).checkpoint == b"3"
