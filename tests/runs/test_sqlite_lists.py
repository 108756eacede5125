"""Lists of runs in a SQLite file: they are long in coming, maybe, and nobody else waits for them."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from unjam.runs.store import sqlite_reader

from .sqlite_stores import claimed, in_loop, new, opened


def test_a_list_comes_in_portions_and_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_reader, "LOOKED", 7)
    looks = []
    listed = sqlite_reader.listed

    def counted(*arguments: Any) -> Any:
        looks.append(arguments)
        return listed(*arguments)

    monkeypatch.setattr(sqlite_reader, "listed", counted)

    async def body() -> None:
        async with opened(tmp_path / "runs.db") as store:
            every = [
                (await store.create(new(service="rare" if n % 11 == 3 else "auditor", tenant="ab"[n % 2])))[0]
                for n in range(60)
            ]
            for _ in range(20):
                run = (await claimed(store)).run
                await store.finish(run.id, run.fence, "failed" if run.tenant == "a" else "completed")
            await claimed(store)
            expected = sorted([await store.get(run.id) for run in every], key=lambda run: run.id, reverse=True)
            for tenant in (None, "a", "b", "c"):
                for service in (None, "auditor", "rare", "none"):
                    for status in (None, "queued", "running", "completed", "failed", "expired"):
                        for before in (None, expected[20].id):
                            those = [
                                run
                                for run in expected
                                if tenant in (None, run.tenant)
                                and service in (None, run.service)
                                and status in (None, run.status)
                                and (before is None or run.id < before)
                            ]
                            for limit in (1, 5, 100):
                                asked = {"service": service, "status": status, "before": before, "limit": limit}
                                assert await store.list(tenant, **asked) == those[:limit], (tenant, asked)
            looks.clear()
            assert await store.list(None, service="none", limit=5) == []
            assert len(looks) == 60 // 7 + 1

    in_loop(body)


def test_what_is_rare_among_those_that_ended_is_found_by_an_index(tmp_path: Path) -> None:
    async def body() -> None:
        async with opened(tmp_path / "runs.db"):
            pass

    in_loop(body)
    # As it was before there was that index.
    with closing(sqlite3.connect(tmp_path / "runs.db")) as old:
        old.execute("DROP INDEX runs_listed")
    in_loop(body)
    with closing(sqlite3.connect(tmp_path / "runs.db")) as file:
        asked: list[str] = []
        file.set_trace_callback(asked.append)
        for status in ("failed", "running", "queued"):
            sqlite_reader.listed(file, "tenant", "auditor", status, "run_00" + "0" * 25, 50)
        file.set_trace_callback(None)
        plans = [str(file.execute(f"EXPLAIN QUERY PLAN {statement}").fetchall()) for statement in asked]
    assert len(plans) == 4  # where to end a look, and the look; the two others are of few
    for plan, index in zip(plans, ("listed", "listed", "running", "queue"), strict=True):
        assert f"INDEX runs_{index}" in plan


def test_who_asks_for_one_run_does_not_wait_for_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began, go_on = threading.Event(), threading.Event()

    def long(*arguments: Any) -> Any:
        began.set()
        assert go_on.wait(30)
        return [], None

    monkeypatch.setattr(sqlite_reader, "listed", long)

    async def body() -> None:
        async with opened(tmp_path / "runs.db") as store:
            run, _ = await store.create(new())
            listing = asyncio.create_task(store.list(None))
            try:
                assert await asyncio.to_thread(began.wait, 10)
                async with asyncio.timeout(20):
                    assert (await store.get(run.id)).id == run.id
                assert not listing.done()
            finally:
                go_on.set()
            assert await listing == []

    in_loop(body)
