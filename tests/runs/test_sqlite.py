"""What is the SQLite store's own: groups, callers that go away, the loop left alone, room used again."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from pathlib import Path

import pytest

from unjam.runs.model import NewEvent, Settled
from unjam.runs.store.base import Fenced, StoreAway, UnknownRun
from unjam.runs.store.sqlite import SqliteStore

from .sqlite_stores import EVENT, HOUR, Gate, all_runs, claimed, in_loop, new, opened, types

# -- groups ----------------------------------------------------------------------------------------------------------


def test_what_comes_while_a_group_is_written_is_written_together(tmp_path: Path) -> None:
    async def body() -> None:
        gate = Gate()
        async with opened(tmp_path / "runs.db", gate) as store:
            before = store.commits
            with gate.shut():
                first = asyncio.create_task(store.create(new()))
                await gate.meets()
                others = [asyncio.create_task(store.create(new())) for _ in range(50)]
                await asyncio.sleep(0)
            made = await asyncio.gather(first, *others)
            assert store.commits - before == 2
            assert len({run.id for run, _ in made}) == 51

    in_loop(body)


def test_under_load_there_are_many_operations_to_a_commit(tmp_path: Path) -> None:
    async def body() -> None:
        async with opened(tmp_path / "runs.db") as store:

            async def actor() -> None:
                for _ in range(10):
                    await store.create(new())
                    run = (await claimed(store)).run
                    await store.append(run.id, run.fence, 1, [EVENT])
                    await store.finish(run.id, run.fence, "completed")

            await asyncio.gather(*[actor() for _ in range(32)])
            assert store.commits < 32 * 10 * 4 / 4
            assert {run.status for run in await all_runs(store)} == {"completed"}

    in_loop(body)


def test_an_operation_that_fails_takes_none_of_its_group_with_it(tmp_path: Path) -> None:
    async def body() -> None:
        gate = Gate()
        async with opened(tmp_path / "runs.db", gate) as store:
            claims = []
            for _ in range(2):
                await store.create(new())
                claims.append(await claimed(store))
            (one, two) = (claim.run for claim in claims)
            with gate.shut():
                first = asyncio.create_task(store.create(new()))
                await gate.meets()
                group = [
                    store.create(new()),
                    store.create(new(tenant="\ud800")),  # can't be written
                    store.append(one.id, one.fence, 7, [EVENT]),  # a gap
                    store.append(one.id, one.fence, 1, [NewEvent("x", 7)]),  # type: ignore[arg-type]
                    store.finish(two.id, two.fence, "completed", events=[EVENT]),
                    store.finish(one.id, 99, "completed"),
                    store.get("run_nothing"),
                ]
                tasks = [asyncio.ensure_future(call) for call in group]
                await asyncio.sleep(0)
            await first
            made, bad, gap, number, settled, fenced, unknown = await asyncio.gather(*tasks, return_exceptions=True)
            assert isinstance(made, tuple)
            assert isinstance(settled, Settled)
            assert [type(error) for error in (bad, gap, fenced, unknown)] == [
                UnicodeEncodeError,
                ValueError,
                Fenced,
                UnknownRun,
            ]
            assert isinstance(number, Exception)
            assert await store.depth() == {"auditor": (2, 1)}
            assert await types(store, two.id) == ["run.created", "run.attempt", "progress", "run.completed"]
            assert (await store.append(one.id, one.fence, 1, [EVENT])).first == 2

    in_loop(body)


# -- callers that go away ----------------------------------------------------------------------------------------------


def test_a_caller_who_is_cancelled_before_its_turn_has_done_nothing(tmp_path: Path) -> None:
    async def body() -> None:
        gate = Gate()
        async with opened(tmp_path / "runs.db", gate) as store:
            with gate.shut():
                first = asyncio.create_task(store.create(new()))
                await gate.meets()
                second = asyncio.create_task(store.create(new()))
                await asyncio.sleep(0)
                second.cancel()
                await asyncio.gather(second, return_exceptions=True)
            run, _ = await first
            assert [found.id for found in await all_runs(store)] == [run.id]

    in_loop(body)


def test_a_run_that_was_claimed_for_somebody_who_has_gone_waits_again_at_once(tmp_path: Path) -> None:
    async def body() -> None:
        gate = Gate()
        async with opened(tmp_path / "runs.db", gate) as store:
            run, _ = await store.create(new())
            with gate.shut():
                claim = asyncio.create_task(claimed(store))
                await gate.meets()
                claim.cancel()
                await asyncio.gather(claim, return_exceptions=True)
            while (again := await store.claim(["auditor"], "w2", pull=True)) is None:
                await asyncio.sleep(0.001)
            assert (again.run.id, again.run.attempt, again.run.fence) == (run.id, 1, 2)

    in_loop(body)


def test_what_was_asked_before_close_is_done_and_nothing_after(tmp_path: Path) -> None:
    async def body() -> None:
        async with opened(tmp_path / "runs.db") as store:
            asked = [asyncio.create_task(store.create(new())) for _ in range(20)]
            await asyncio.sleep(0)
            await store.close()
            made = {run.id for run, _ in await asyncio.gather(*asked)}
            with pytest.raises(StoreAway, match="closed"):
                await store.create(new())
            with pytest.raises(StoreAway, match="closed"):
                await store.depth()
        async with opened(tmp_path / "runs.db") as store:
            assert {run.id for run in await all_runs(store)} == made

    in_loop(body)


# -- the event loop ----------------------------------------------------------------------------------------------------


def test_a_thread_that_is_held_up_does_not_hold_the_loop_up(tmp_path: Path) -> None:
    async def body() -> None:
        gate = Gate()
        async with opened(tmp_path / "runs.db", gate) as store:
            run, _ = await store.create(new())
            with gate.shut():
                blocked = asyncio.create_task(store.create(new()))
                await gate.meets()
                # The loop goes on, and so do readers.
                for _ in range(50):
                    await asyncio.sleep(0)
                    assert (await store.get(run.id)).status == "queued"
                assert not blocked.done()
            await blocked

    in_loop(body)


def test_the_loop_is_late_by_a_few_milliseconds_at_most_under_load(tmp_path: Path) -> None:
    async def body() -> None:
        gaps: list[float] = []
        async with opened(tmp_path / "runs.db") as store:
            going = True

            async def actor(large: bytes) -> None:
                while going:
                    await store.create(new(large))
                    run = (await claimed(store)).run
                    await store.append(run.id, run.fence, 1, [EVENT] * 20)
                    await store.finish(run.id, run.fence, "completed", result=large)

            actors = [asyncio.create_task(actor(b"x" * (100 if n else 1 << 20))) for n in range(32)]
            for _ in range(5):  # as often as others keep the machine busy
                gaps.clear()
                for _ in range(300):
                    before = time.perf_counter()
                    await asyncio.sleep(0.001)
                    gaps.append(time.perf_counter() - before - 0.001)
                gaps.sort()
                # Not the longest one: that is the machine's, which others use too.
                if gaps[len(gaps) * 9 // 10] < 0.02:
                    break
            going = False
            await asyncio.gather(*actors)
        assert gaps[len(gaps) * 9 // 10] < 0.02

    in_loop(body)


# -- room -------------------------------------------------------------------------------------------------------------


def test_retention_deletes_all_of_a_run_and_its_room_is_used_again(tmp_path: Path) -> None:
    wall = [1_700_000_000.0]
    path = tmp_path / "runs.db"

    async def fill(store: SqliteStore) -> None:
        for number in range(60):
            run, _ = await store.create(new(b"x" * 5_000, key=f"{number} {wall[0]}"))
            fence = (await claimed(store)).run.fence
            await store.heartbeat(run.id, fence, b"x" * 5_000)
            await store.send(run.id, b"x" * 5_000)
            # One of them with a log too long to be deleted at once.
            await store.append(run.id, fence, 1, [NewEvent("page", b"x" * 100)] * (40 if number else 3_500))
            await store.finish(run.id, fence, "completed", result=b"x" * 5_000)

    async def body() -> None:
        async with opened(path, lambda: wall[0]) as store:
            await fill(store)
            wall[0] += 2 * HOUR
            kept, _ = await store.create(new())
            assert await store.housekeep(3 * HOUR) == 0
            assert await store.housekeep(HOUR, limit=25) == 25
            assert await store.housekeep(HOUR) == 35
            assert [run.id for run in await all_runs(store)] == [kept.id]
            await store.cancel(kept.id)
        size = path.stat().st_size
        async with opened(path, lambda: wall[0]) as store:
            await fill(store)
            wall[0] += 30 * HOUR
            assert await store.housekeep(HOUR) == 61
        assert path.stat().st_size < 1.05 * size
        rows = sqlite3.connect(path)
        for table in ("runs", "events", "inputs", "results", "checkpoints", "sent", "keys", "trash"):
            assert rows.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), table
        rows.close()

    in_loop(body)


# -- leases over a restart ---------------------------------------------------------------------------------------------


def test_owners_get_the_configured_lease_when_the_file_is_opened_again(tmp_path: Path) -> None:
    """The clock that their leases went by ended with its process; shorter or longer than was promised is wrong."""

    async def body() -> None:
        now = 0.0
        path = tmp_path / "runs.db"
        async with opened(path) as store:
            run, _ = await store.create(new())
            await claimed(store)
        again = SqliteStore(path, time.time, lambda: now, 3.0)
        await again.open()
        try:
            now = 2.9
            assert await again.sweep() == []
            now = 3.1
            assert [settled.run.id for settled in await again.sweep()] == [run.id]
        finally:
            await again.close()

    in_loop(body)


def test_a_claim_expires_many_overdue_runs_in_portions(tmp_path: Path) -> None:
    """Others, and signs of life, get their turn between."""
    wall = [1_700_000_000.0]

    async def body() -> None:
        async with opened(tmp_path / "runs.db", lambda: wall[0]) as store:
            await asyncio.gather(*(store.create(new(deadline=wall[0] + 1)) for _ in range(450)))
            last, _ = await store.create(new())
            wall[0] += 2
            before = store.commits
            claim = await store.claim(["auditor"], "w1", pull=True)
            assert claim is not None
            assert claim.run.id == last.id
            assert store.commits - before == 5
            assert await store.depth() == {"auditor": (0, 1)}

    in_loop(body)
