"""Ends: exactly one, and the first one wins. Handing back, cancelling, inputs."""

from __future__ import annotations

import pytest

from unjam.runs.model import NewEvent
from unjam.runs.store.base import LARGEST, Fenced, TooLarge

from .harness import Harness, data, error, progress


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
async def test_a_worker_ends_its_run(h: Harness, status: str) -> None:
    claim = await h.taken()
    settled = await h.store.finish(claim.run.id, claim.run.fence, status)
    assert settled.changed
    run = await h.store.get(claim.run.id)
    assert settled.run == run
    assert run.status == status
    assert run.ended == pytest.approx(h.now(), abs=5)
    assert await h.types(run.id) == ["run.created", "run.attempt", f"run.{status}"]
    assert await h.store.depth() in ({}, {"auditor": (0, 0)})
    assert await h.maybe() is None


async def test_the_result_is_kept_apart(h: Harness) -> None:
    claim = await h.taken()
    assert await h.store.result(claim.run.id) is None
    large = b"7" * LARGEST
    await h.store.finish(claim.run.id, claim.run.fence, "completed", result=large)
    assert await h.store.result(claim.run.id) == large
    last = (await h.log(claim.run.id))[-1]
    assert (last.type, data(last)) == ("run.completed", {})


async def test_a_failure_is_told_in_the_run_and_in_its_log(h: Harness) -> None:
    claim = await h.taken()
    why = b'{"code":"no_paper","message":"\xe2\x98\x83"}'
    await h.store.finish(claim.run.id, claim.run.fence, "failed", error=why)
    assert error(await h.store.get(claim.run.id)) == {"code": "no_paper", "message": "☃"}
    assert data((await h.log(claim.run.id))[-1]) == {"error": {"code": "no_paper", "message": "☃"}}
    assert await h.store.dead() == []


async def test_a_failure_may_have_no_reason(h: Harness) -> None:
    claim = await h.taken()
    await h.store.finish(claim.run.id, claim.run.fence, "failed")
    assert data((await h.log(claim.run.id))[-1]) == {"error": None}


async def test_the_last_events_come_with_the_end(h: Harness) -> None:
    claim = await h.taken()
    await h.emit(claim, 1, 1)
    await h.store.finish(claim.run.id, claim.run.fence, "completed", batch=2, events=[progress(2), progress(3)])
    types = await h.types(claim.run.id)
    assert types == ["run.created", "run.attempt", "progress", "progress", "progress", "run.completed"]


async def test_events_that_were_there_do_not_come_again_with_the_end(h: Harness) -> None:
    claim = await h.taken()
    await h.emit(claim, 1, 1)
    settled = await h.store.finish(claim.run.id, claim.run.fence, "completed", batch=1, events=[progress(1)])
    assert settled.run.seq == 4
    assert await h.types(claim.run.id) == ["run.created", "run.attempt", "progress", "run.completed"]


async def test_an_end_with_a_gap_before_it_is_refused(h: Harness) -> None:
    claim = await h.taken()
    with pytest.raises(ValueError, match="batch"):
        await h.store.finish(claim.run.id, claim.run.fence, "completed", batch=2, events=[progress(1)])
    assert (await h.store.get(claim.run.id)).status == "running"


async def test_events_without_a_number_come_with_the_end_too(h: Harness) -> None:
    claim = await h.taken()
    await h.store.finish(claim.run.id, claim.run.fence, "failed", events=[progress(1)])
    assert await h.types(claim.run.id) == ["run.created", "run.attempt", "progress", "run.failed"]


async def test_finished_twice_is_finished_once(h: Harness) -> None:
    claim = await h.taken()
    run, fence = claim.run.id, claim.run.fence
    first = await h.store.finish(run, fence, "completed", result=b"1", batch=1, events=[progress(1)])
    again = await h.store.finish(run, fence, "completed", result=b"1", batch=1, events=[progress(1)])
    other = await h.store.finish(run, fence, "failed", result=b"2", error=b"{}")
    assert (again.changed, other.changed) == (False, False)
    assert again.run == other.run == first.run
    assert await h.store.result(run) == b"1"
    assert len(await h.log(run)) == 4


async def test_after_the_end_there_is_nothing(h: Harness) -> None:
    claim = await h.taken()
    run, fence = claim.run.id, claim.run.fence
    ended = (await h.store.finish(run, fence, "completed")).run
    with pytest.raises(Fenced):
        await h.store.append(run, fence, 1, [progress(1)])
    with pytest.raises(Fenced):
        await h.store.heartbeat(run, fence, b"1")
    with pytest.raises(Fenced):
        await h.store.release(run, fence)
    with pytest.raises(Fenced):
        await h.store.send(run, b"1")
    for stale in (0, fence + 1):
        with pytest.raises(Fenced):
            await h.store.finish(run, stale, "failed")
    assert await h.lose() == []
    assert await h.store.get(run) == ended


async def test_nothing_ends_in_any_other_way(h: Harness) -> None:
    claim = await h.taken()
    for status in ("expired", "queued", "running", "done", ""):
        with pytest.raises(ValueError, match="finish"):
            await h.store.finish(claim.run.id, claim.run.fence, status)
    assert (await h.store.get(claim.run.id)).status == "running"


async def test_too_large_an_end_is_none(h: Harness) -> None:
    claim = await h.taken()
    run, fence = claim.run.id, claim.run.fence
    large = b"1" * (LARGEST + 1)
    with pytest.raises(TooLarge):
        await h.store.finish(run, fence, "completed", result=large)
    with pytest.raises(TooLarge):
        await h.store.finish(run, fence, "failed", error=large)
    with pytest.raises(TooLarge):
        await h.store.finish(run, fence, "completed", batch=1, events=[NewEvent("large", large)])
    with pytest.raises(TooLarge):
        await h.store.heartbeat(run, fence, large)
    with pytest.raises(TooLarge):
        await h.store.release(run, fence, large)
    with pytest.raises(TooLarge):
        await h.store.send(run, large)
    assert await h.store.get(run) == claim.run


async def test_a_lease_that_nobody_swept_is_still_its_owners(h: Harness) -> None:
    claim = await h.taken()
    await h.advance(h.lease * 1.1)
    await h.emit(claim, 1, 1)
    assert await h.store.sweep() == []
    await h.advance(h.lease * 1.1)
    settled = await h.store.finish(claim.run.id, claim.run.fence, "completed")
    assert settled.changed


async def test_a_run_handed_back_costs_no_attempt(h: Harness) -> None:
    claim = await h.taken(max_attempts=1)
    for n in range(1, 4):
        assert (claim.run.attempt, claim.run.fence) == (1, n)
        settled = await h.store.release(claim.run.id, claim.run.fence)
        assert settled.changed
        assert (settled.run.status, settled.run.attempt, settled.run.worker) == ("queued", 0, None)
        assert await h.store.depth() == {"auditor": (1, 0)}
        claim = await h.claim()
    assert "run.requeued" not in await h.types(claim.run.id)


async def test_handed_back_twice_is_handed_back_once(h: Harness) -> None:
    claim = await h.taken()
    run, fence = claim.run.id, claim.run.fence
    first = await h.store.release(run, fence, b"1")
    again = await h.store.release(run, fence, b"1")
    assert (again.changed, again.run) == (False, first.run)
    claim = await h.claim()
    assert claim.checkpoint == b"1"
    with pytest.raises(Fenced):
        await h.store.release(run, fence, b"0")
    assert await h.maybe() is None


async def test_nobody_writes_to_a_run_it_handed_back(h: Harness) -> None:
    claim = await h.taken()
    run, fence = claim.run.id, claim.run.fence
    await h.store.release(run, fence)
    with pytest.raises(Fenced):
        await h.store.append(run, fence, 1, [progress(1)])
    with pytest.raises(Fenced):
        await h.store.heartbeat(run, fence)
    with pytest.raises(Fenced):
        await h.store.finish(run, fence, "completed")


async def test_a_queued_run_is_cancelled_at_once(h: Harness) -> None:
    run = await h.create()
    settled = await h.store.cancel(run.id)
    assert (settled.changed, settled.run.status) == (True, "cancelled")
    assert settled.run.ended is not None
    assert await h.maybe() is None
    again = await h.store.cancel(run.id)
    assert (again.changed, again.run) == (False, settled.run)
    assert await h.types(run.id) == ["run.created", "run.cancelled"]
    assert await h.store.depth() in ({}, {"auditor": (0, 0)})


async def test_a_running_run_is_told_to_stop(h: Harness) -> None:
    claim = await h.taken()
    run, fence = claim.run.id, claim.run.fence
    assert not (await h.store.heartbeat(run, fence)).cancel
    settled = await h.store.cancel(run)
    assert (settled.changed, settled.run.status, settled.run.cancel_requested) == (True, "running", True)
    assert not (await h.store.cancel(run)).changed
    assert (await h.store.heartbeat(run, fence)).cancel
    assert (await h.store.append(run, fence, 1, [progress(1)])).cancel
    assert (await h.store.append(run, fence, 1, [progress(1)])).cancel
    settled = await h.store.finish(run, fence, "cancelled")
    assert settled.run.status == "cancelled"
    assert await h.types(run) == ["run.created", "run.attempt", "progress", "run.cancelled"]


async def test_a_run_may_complete_though_it_was_to_stop(h: Harness) -> None:
    claim = await h.taken()
    await h.store.cancel(claim.run.id)
    settled = await h.store.finish(claim.run.id, claim.run.fence, "completed", result=b"1")
    assert settled.run.status == "completed"


async def test_a_run_that_was_to_stop_is_not_begun_again(h: Harness) -> None:
    released, lost = await h.taken(), await h.taken()
    for claim in (released, lost):
        await h.store.cancel(claim.run.id)
    settled = await h.store.release(released.run.id, released.run.fence, b"1")
    assert (settled.changed, settled.run.status) == (True, "cancelled")
    [settled] = await h.lose()
    assert (settled.run.id, settled.run.status) == (lost.run.id, "cancelled")
    assert await h.types(lost.run.id) == ["run.created", "run.attempt", "run.cancelled"]
    with pytest.raises(Fenced):
        await h.store.finish(lost.run.id, lost.run.fence, "completed")
    assert await h.maybe() is None


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
async def test_what_has_ended_is_not_cancelled(h: Harness, status: str) -> None:
    claim = await h.taken()
    ended = (await h.store.finish(claim.run.id, claim.run.fence, status)).run
    settled = await h.store.cancel(claim.run.id)
    assert (settled.changed, settled.run) == (False, ended)


async def test_inputs_are_numbered_and_kept(h: Harness) -> None:
    run = await h.create()
    other = await h.create("painter")
    assert await h.store.inputs(run.id, 0) == []
    assert await h.store.send(run.id, b'"while it waits"') == 1
    claim = await h.claim()
    assert (await h.store.heartbeat(run.id, claim.run.fence)).inputs == 1
    assert await h.store.send(run.id, b"\x00\xff") == 2
    assert await h.store.send(run.id, b"x" * LARGEST) == 3
    assert await h.store.send(other.id, b"1") == 1
    assert (await h.store.heartbeat(run.id, claim.run.fence)).inputs == 3
    assert await h.store.inputs(run.id, 0) == [(1, b'"while it waits"'), (2, b"\x00\xff"), (3, b"x" * LARGEST)]
    assert await h.store.inputs(run.id, 1) == [(2, b"\x00\xff"), (3, b"x" * LARGEST)]
    assert await h.store.inputs(run.id, 3) == []
    assert (await h.store.get(run.id)).seq == 2
    await h.store.finish(run.id, claim.run.fence, "completed")
    assert len(await h.store.inputs(run.id, 0)) == 3
