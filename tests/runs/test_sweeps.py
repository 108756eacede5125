"""A gateway, a machine or a disk that stood still: owners that live keep their runs, in the stores that one process
owns. Redis, which several sweep, is in test_redis_outage."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.store_contract.stores.memory import Times
from unjam.runs.model import Claim, NewEvent, NewRun
from unjam.runs.store.base import Store, StoreAway
from unjam.runs.store.memory import MemoryStore
from unjam.runs.store.sqlite import SqliteStore
from unjam.runs.store.sweeps import Sweeps

from .redis_faults import in_loop

KINDS = ["memory", "sqlite"]


@asynccontextmanager
async def opened(kind: str, place: Path, times: Times) -> AsyncIterator[Store]:
    store: Store = (
        MemoryStore(monotonic=lambda: times.monotonic)
        if kind == "memory"
        else SqliteStore(place / "runs.db", monotonic=lambda: times.monotonic)
    )
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def shown(store: Store, lease: float = 30.0) -> Claim:
    """Of a run that is lost when its lease is: it has shown something."""
    await store.create(NewRun(service="auditor", input=b"{}", digest=b"", pull=True))
    claim = await store.claim(["auditor"], "w", pull=True, lease=lease)
    assert claim is not None
    await store.append(claim.run.id, claim.run.fence, 1, [NewEvent("progress", b"1")])
    return claim


@pytest.mark.parametrize("kind", KINDS)
@in_loop
async def test_what_stood_still_takes_no_run_from_an_owner_that_lives(kind: str, tmp_path: Path) -> None:
    times = Times()
    async with opened(kind, tmp_path, times) as store:
        claim = await shown(store)
        short = await shown(store, 3.0)
        assert await store.sweep() == []
        for _ in range(2):
            times.monotonic += 60
            # The sweep is the first to go on.
            assert await store.sweep() == []
            for each, lease in ((claim, 30.0), (short, 3.0)):
                assert not (await store.heartbeat(each.run.id, each.run.fence, lease=lease)).cancel
            times.monotonic += 1
            assert await store.sweep() == []
        # An owner that died meanwhile has a full length to be heard in, and no more.
        times.monotonic += 60
        swept = []
        for second in range(40):
            swept += [(second, settled.run.status) for settled in await store.sweep()]
            times.monotonic += 1
        assert swept == [(3, "failed"), (30, "failed")]


@pytest.mark.parametrize("kind", KINDS)
@in_loop
async def test_who_sweeps_seldom_sweeps_all_the_same(kind: str, tmp_path: Path) -> None:
    times = Times()
    async with opened(kind, tmp_path, times) as store:
        await shown(store)
        swept = []
        for _ in range(8):
            swept += await store.sweep()
            times.monotonic += 20
        assert [settled.run.status for settled in swept] == ["failed"]


def test_a_short_pause_costs_a_short_lease_only() -> None:
    sweeps = Sweeps()
    lent = [("short", 101.0, 3.0), ("long", 101.0, 60.0)]
    assert sweeps.begin(100.0, lent) == []
    assert sweeps.begin(102.0, lent) == []
    assert sweeps.begin(106.0, lent) == [("short", 109.0)]
    assert sweeps.begin(107.0, lent) == []
    assert sweeps.begin(127.0, lent) == [("short", 130.0), ("long", 187.0)]


@in_loop
async def test_a_lock_of_somebody_else_takes_no_run_from_an_owner_that_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unjam.runs.store.sqlite_schema.BUSY", 0.01)
    times = Times()
    async with opened("sqlite", tmp_path, times) as store:
        claim = await shown(store)
        run, fence = claim.run.id, claim.run.fence
        assert await store.sweep() == []
        other = sqlite3.connect(tmp_path / "runs.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        for second in range(33):
            times.monotonic += 1
            # Together with what is to be written, a sign of life is refused too.
            written = store.append(run, fence, 2, [NewEvent("progress", b"2")])
            given = await asyncio.gather(written, store.heartbeat(run, fence), return_exceptions=True)
            assert isinstance(given[0], StoreAway)
            try:
                assert await store.sweep() == []
            except StoreAway:
                assert second >= 29
        other.execute("ROLLBACK")
        other.close()
        times.monotonic += 1
        assert await store.sweep() == []
        await store.append(run, fence, 2, [NewEvent("progress", b"2")])
        assert (await store.finish(run, fence, "completed")).changed
