"""Workers that are lost, deadlines, and runs that were given up."""

from __future__ import annotations

import pytest

from unjam.runs.store.base import Fenced

from .harness import Harness, data, error, ids


async def test_a_lease_holds_as_long_as_there_are_signs_of_life(h: Harness) -> None:
    claim = await h.taken()
    run, fence = claim.run.id, claim.run.fence
    for batch in range(1, 4):
        await h.advance(h.lease * 0.7)
        assert await h.store.sweep() == []
        await h.emit(claim, batch, batch)
        await h.advance(h.lease * 0.7)
        await h.store.heartbeat(run, fence, lease=h.lease)
    assert await h.store.sweep() == []
    assert (await h.store.get(run)).attempt == 1
    assert len(await h.lose()) == 1


async def test_a_repeated_batch_is_a_sign_of_life_too(h: Harness) -> None:
    claim = await h.taken()
    await h.emit(claim, 1, 1)
    await h.advance(h.lease * 0.7)
    await h.emit(claim, 1, 1)
    await h.advance(h.lease * 0.7)
    assert await h.store.sweep() == []


async def test_an_append_extends_by_the_length_last_given(h: Harness) -> None:
    claim = await h.taken()
    await h.store.heartbeat(claim.run.id, claim.run.fence, lease=h.lease * 3)
    await h.emit(claim, 1, 1)
    await h.advance(h.lease * 2)
    assert await h.store.sweep() == []
    await h.store.heartbeat(claim.run.id, claim.run.fence, lease=h.lease)
    await h.emit(claim, 2, 2)
    assert len(await h.lose()) == 1


async def test_each_lease_is_its_own(h: Harness) -> None:
    lost, alive = await h.taken(), await h.taken()
    await h.advance(h.lease * 0.7)
    await h.store.heartbeat(alive.run.id, alive.run.fence, lease=h.lease)
    await h.advance(h.lease * 0.5)
    [settled] = await h.store.sweep()
    assert settled.run.id == lost.run.id
    assert (await h.store.get(alive.run.id)).status == "running"


async def test_55_nothing_was_shown_so_another_begins(h: Harness) -> None:
    claim = await h.taken()
    [settled] = await h.lose()
    assert settled.changed
    assert (settled.run.status, settled.run.attempt, settled.run.worker) == ("queued", 1, None)
    assert await h.store.depth() == {"auditor": (1, 0)}
    again = await h.claim(worker="w2")
    assert (again.run.id, again.run.attempt, again.run.fence) == (claim.run.id, 2, 2)
    assert [data(event).get("reason") for event in await h.log(claim.run.id)] == [None, "first", "lost"]


async def test_something_was_shown_so_it_fails(h: Harness) -> None:
    claim = await h.taken()
    await h.emit(claim, 1, 1)
    [settled] = await h.lose()
    assert (settled.changed, settled.run.status) == (True, "failed")
    assert settled.run == await h.store.get(claim.run.id)
    assert error(settled.run)["code"] == "worker_lost"
    last = (await h.log(claim.run.id))[-1]
    assert (last.type, data(last)["error"]["code"]) == ("run.failed", "worker_lost")
    assert await h.store.dead() == []
    with pytest.raises(Fenced):
        await h.store.finish(claim.run.id, claim.run.fence, "completed")


async def test_something_was_shown_by_an_earlier_owner_so_it_fails(h: Harness) -> None:
    claim = await h.taken()
    await h.emit(claim, 1, 1)
    await h.store.release(claim.run.id, claim.run.fence)
    await h.claim()
    [settled] = await h.lose()
    assert error(settled.run)["code"] == "worker_lost"


async def test_an_empty_batch_shows_nothing(h: Harness) -> None:
    claim = await h.taken()
    await h.emit(claim, 1)
    [settled] = await h.lose()
    assert settled.run.status == "queued"


async def test_an_empty_batch_hides_nothing(h: Harness) -> None:
    claim = await h.taken()
    await h.emit(claim, 1, 1)
    await h.emit(claim, 2)
    [settled] = await h.lose()
    assert settled.run.status == "failed"


async def test_an_input_shows_nothing(h: Harness) -> None:
    claim = await h.taken()
    await h.store.send(claim.run.id, b"1")
    [settled] = await h.lose()
    assert settled.run.status == "queued"


@pytest.mark.parametrize("how", ["restart", "checkpoint"])
async def test_something_was_shown_and_it_may_go_on(h: Harness, how: str) -> None:
    claim = await h.taken(retry="restart" if how == "restart" else "fail")
    await h.emit(claim, 1, 1)
    if how == "checkpoint":
        await h.store.heartbeat(claim.run.id, claim.run.fence, b"1", h.lease)
    [settled] = await h.lose()
    assert settled.run.status == "queued"
    assert (await h.claim()).checkpoint == (b"1" if how == "checkpoint" else None)


async def test_the_latest_checkpoint_counts_and_an_empty_one_is_one(h: Harness) -> None:
    claim = await h.taken()
    await h.emit(claim, 1, 1)
    for checkpoint in (b"1", b"22", b""):
        await h.store.heartbeat(claim.run.id, claim.run.fence, checkpoint, h.lease)
    await h.store.heartbeat(claim.run.id, claim.run.fence, None, h.lease)
    await h.lose()
    assert (await h.claim()).checkpoint == b""


@pytest.mark.parametrize("retry", ["fail", "restart"])
async def test_attempts_are_exhausted_and_the_run_is_dead(h: Harness, retry: str) -> None:
    claim = await h.taken(max_attempts=2, retry=retry)
    await h.lose()
    await h.claim()
    [settled] = await h.lose()
    assert (settled.run.status, settled.run.attempt) == ("failed", 2)
    assert error(settled.run)["code"] == "attempts_exhausted"
    assert data((await h.log(claim.run.id))[-1])["error"]["code"] == "attempts_exhausted"
    assert await h.store.dead() == [settled.run]
    assert await h.maybe() is None


async def test_dead_runs_are_listed_the_newest_first(h: Harness) -> None:
    dead = []
    for service in ("auditor", "painter", "auditor"):
        claim = await h.taken(service=service, max_attempts=1)
        assert len(await h.lose()) == 1
        dead.append(claim.run.id)
    assert ids(await h.store.dead()) == dead[::-1]
    assert ids(await h.store.dead(limit=2)) == dead[:0:-1]
    assert ids(await h.store.dead("auditor")) == [dead[2], dead[0]]
    assert ids(await h.store.dead("painter")) == [dead[1]]
    assert await h.store.dead("nobody") == []


async def test_a_dead_run_is_queued_again(h: Harness) -> None:
    claim = await h.taken(max_attempts=1)
    run = claim.run.id
    await h.lose()
    settled = await h.store.requeue(run)
    assert settled.changed
    now = settled.run
    assert (now.status, now.attempt, now.error, now.ended, now.worker) == ("queued", 0, None, None, None)
    assert await h.store.get(run) == now
    assert await h.store.dead() == []
    assert await h.store.depth() == {"auditor": (1, 0)}
    again = await h.store.requeue(run)
    assert (again.changed, again.run) == (False, now)
    batch = await h.store.read(run)
    assert not batch.ended
    assert [event.type for event in batch.events][2:] == ["run.failed", "run.requeued"]
    claim = await h.claim()
    assert (claim.run.id, claim.run.attempt, claim.run.fence) == (run, 1, 2)
    with pytest.raises(Fenced):
        await h.store.finish(run, 1, "completed")
    await h.store.finish(run, 2, "completed")
    log = await h.log(run)
    assert [event.seq for event in log] == list(range(len(log)))


async def test_who_failed_a_run_has_nothing_to_say_once_it_waits_again(h: Harness) -> None:
    claim = await h.taken()
    await h.store.finish(claim.run.id, claim.run.fence, "failed", result=b"half of it")
    await h.store.requeue(claim.run.id)
    assert await h.store.result(claim.run.id) is None
    with pytest.raises(Fenced):
        await h.store.finish(claim.run.id, claim.run.fence, "failed")
    assert (await h.store.get(claim.run.id)).status == "queued"


async def test_only_what_failed_or_expired_is_queued_again(h: Harness) -> None:
    claim = await h.taken()
    run, fence = claim.run.id, claim.run.fence
    for status in ("completed", "cancelled"):
        claim = await h.taken(service=status)
        ended = (await h.store.finish(claim.run.id, claim.run.fence, status)).run
        settled = await h.store.requeue(claim.run.id)
        assert (settled.changed, settled.run) == (False, ended)
    settled = await h.store.requeue(run)
    assert (settled.changed, settled.run.status) == (False, "running")
    await h.store.heartbeat(run, fence)


async def test_what_waits_past_its_deadline_expires(h: Harness) -> None:
    late = await h.create(deadline=h.now() - 1)
    timely = await h.create(deadline=h.now() + 900)
    [settled] = await h.store.sweep()
    assert settled.changed
    assert (settled.run.id, settled.run.status, settled.run.error) == (late.id, "expired", None)
    assert await h.types(late.id) == ["run.created", "run.expired"]
    assert await h.store.depth() == {"auditor": (1, 0)}
    assert (await h.claim()).run.id == timely.id


@pytest.mark.needs("wall")
async def test_what_runs_past_its_deadline_expires_whatever_its_lease(h: Harness) -> None:
    claim = await h.taken(deadline=h.now() + 900)
    await h.store.cancel(claim.run.id)
    h.wall(899)
    assert await h.store.sweep() == []
    h.wall(2)
    [settled] = await h.store.sweep()
    assert (settled.run.id, settled.run.status) == (claim.run.id, "expired")
    for call in (
        h.store.append(claim.run.id, claim.run.fence, 1, []),
        h.store.heartbeat(claim.run.id, claim.run.fence),
        h.store.finish(claim.run.id, claim.run.fence, "completed"),
    ):
        with pytest.raises(Fenced):
            await call
    assert await h.lose() == []
    assert await h.types(claim.run.id) == ["run.created", "run.attempt", "run.expired"]


@pytest.mark.needs("wall")
async def test_an_expired_run_is_queued_again_without_its_deadline(h: Harness) -> None:
    claim = await h.taken(deadline=h.now() + 900)
    await h.store.cancel(claim.run.id)
    h.wall(901)
    await h.store.sweep()
    settled = await h.store.requeue(claim.run.id)
    now = settled.run
    assert (now.status, now.deadline, now.cancel_requested, now.attempt) == ("queued", None, False, 0)
    assert await h.store.sweep() == []
    assert (await h.claim()).run.id == claim.run.id


@pytest.mark.needs("wall")
async def test_a_deadline_that_is_to_come_stays(h: Harness) -> None:
    claim = await h.taken(deadline=h.now() + 900)
    await h.store.finish(claim.run.id, claim.run.fence, "failed")
    settled = await h.store.requeue(claim.run.id)
    assert settled.run.deadline == claim.run.deadline
    h.wall(901)
    [settled] = await h.store.sweep()
    assert settled.run.status == "expired"


@pytest.mark.needs("wall")
async def test_what_ended_in_time_does_not_expire(h: Harness) -> None:
    claim = await h.taken(deadline=h.now() + 900)
    await h.store.finish(claim.run.id, claim.run.fence, "completed")
    h.wall(901)
    assert await h.store.sweep() == []
    assert (await h.store.get(claim.run.id)).status == "completed"


@pytest.mark.needs("wall")
@pytest.mark.parametrize("jump", [-10 * 365 * 86400, 10 * 365 * 86400])
async def test_58_a_wall_clock_jump_moves_no_lease(h: Harness, jump: float) -> None:
    claim = await h.taken()
    h.wall(jump)
    assert await h.store.sweep() == []
    await h.store.heartbeat(claim.run.id, claim.run.fence, lease=h.lease)
    h.wall(-jump)
    assert await h.store.sweep() == []
    h.wall(jump)
    assert len(await h.lose()) == 1


async def test_a_sweep_does_as_much_as_it_is_told(h: Harness) -> None:
    for _ in range(7):
        await h.create()
        await h.claim()
    await h.advance(h.lease * 1.1)
    sizes = [len(await h.store.sweep(limit=3)) for _ in range(4)]
    assert sizes == [3, 3, 1, 0]
    assert await h.store.depth() == {"auditor": (7, 0)}
