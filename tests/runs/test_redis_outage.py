"""What an outage, a lack of memory or a slow way to Redis does to runs whose owners are well: nothing."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from unjam.runs.model import Claim
from unjam.runs.store import redis_line, redis_link
from unjam.runs.store.base import StoreAway
from unjam.runs.store.redis import RedisStore

from .redis_faults import Proxy, in_loop, new_run, progress
from .redis_servers import Server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("redis"), "appendonly yes").start()
    yield server
    server.kill()


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    return re.sub(r"\W", "", request.node.name)[:40] + ":"


async def shown(store: RedisStore) -> Claim:
    """Of a run that is lost when its lease is: it has shown something."""
    await store.create(new_run())
    claim = await store.claim(["auditor"], "w", pull=True)
    assert claim is not None
    await store.append(claim.run.id, claim.run.fence, 1, [progress(1)])
    return claim


def pass_by(server: Server, prefix: str, seconds: float, *fields: str) -> None:
    """The server's clock is later by so much: since the last sweep where `fields` is `at`."""
    with server.client() as client:
        for run in client.zrange(f"{prefix}{{all}}:leases", 0, -1):
            client.zincrby(f"{prefix}{{all}}:leases", -seconds * 1000, run)
        for field in fields:
            if client.hexists(f"{prefix}{{all}}:swept", field):
                client.hincrby(f"{prefix}{{all}}:swept", field, -int(seconds * 1000))


@in_loop
async def test_an_outage_longer_than_the_lease_takes_no_run_from_its_owner(server: Server, prefix: str) -> None:
    store = RedisStore(server.url(prefix=prefix))
    await store.open()
    claim = await shown(store)
    run, fence = claim.run.id, claim.run.fence
    assert await store.sweep() == []
    for _ in range(2):
        # Nobody came through, nobody swept; the first who comes is a sweep.
        pass_by(server, prefix, 60, "at", "calm")
        assert await store.sweep() == []
        assert not (await store.heartbeat(run, fence)).cancel
        # A sweep in time, so that another outage is one again.
        pass_by(server, prefix, 1, "at", "calm")
        assert await store.sweep() == []
    # The owner died in the meantime: noticed once the wait is over.
    for _ in range(28):
        assert await store.sweep() == []
        pass_by(server, prefix, 1, "at", "calm")
    pass_by(server, prefix, 2, "at", "calm")
    assert [settled.run.status for settled in await store.sweep()] == ["failed"]
    await store.close()


@in_loop
async def test_who_sweeps_seldom_sweeps_all_the_same(server: Server, prefix: str) -> None:
    store = RedisStore(server.url(prefix=prefix))
    await store.open()
    await shown(store)
    swept = []
    for _ in range(8):
        swept += await store.sweep()
        pass_by(server, prefix, 20, "at", "calm")
    assert [settled.run.status for settled in swept] == ["failed"]
    await store.close()


@contextmanager
def full(server: Server) -> Iterator[None]:
    """It has no memory left meanwhile."""
    server.ask("CONFIG", "SET", "maxmemory", "1")
    try:
        yield
    finally:
        server.ask("CONFIG", "SET", "maxmemory", "0")


@in_loop
async def test_out_of_memory_it_takes_signs_of_life(server: Server, prefix: str) -> None:
    store = RedisStore(server.url(prefix=prefix))
    await store.open()
    claim = await shown(store)
    run, fence = claim.run.id, claim.run.fence
    other = RedisStore(server.url(prefix=prefix))
    try:
        pass_by(server, prefix, 25)
        with full(server):
            await store.heartbeat(run, fence)
            with pytest.raises(StoreAway, match="out of memory"):
                await store.heartbeat(run, fence, b"a checkpoint is for later")
        pass_by(server, prefix, 25)
        with full(server):
            assert await store.sweep() == []
            # Who comes only now is heard too.
            await other.open()
            await other.heartbeat(run, fence)
        pass_by(server, prefix, 25)
        with full(server):
            assert await other.sweep() == []
            assert (await other.finish(run, fence, "completed", result=b"1")).changed
    finally:
        await other.close()
        await store.close()


@in_loop
async def test_no_hint_and_no_fault_of_who_is_told_ends_the_hints(server: Server, prefix: str) -> None:
    warnings: list[str] = []
    store = RedisStore(server.url(prefix=prefix), on_warning=warnings.append)
    await store.open()
    grown: asyncio.Queue[int] = asyncio.Queue()
    ready: asyncio.Queue[str] = asyncio.Queue()
    batches = itertools.count(2)
    store.on_growth = lambda run, seq: grown.put_nowait(seq)
    claim = await shown(store)
    run, fence = claim.run.id, claim.run.fence
    store.watch(run)
    store.on_ready = ready.put_nowait
    while await grown.get() != 3:  # once it is subscribed
        pass

    async def heard() -> None:
        following = (await store.append(run, fence, next(batches), [progress(1)])).next
        while await grown.get() != following:
            pass
        await store.create(new_run(service="another"))
        while await ready.get() != "another":
            pass

    async with asyncio.timeout(20):
        await heard()
        for channel in (f"{prefix}{{all}}:ready", f"{prefix}{{p{run[4:6]}}}:log:{run}"):
            for rubbish in (b"x", b"", b"\xff\n\n\n", b"1\nfast\nno number\nauditor\n"):
                server.ask("PUBLISH", channel, rubbish)
        await heard()
        assert any("hint" in warning for warning in warnings)

        def broken(*told: object) -> None:
            raise ZeroDivisionError("who is told")

        store.on_growth = store.on_ready = broken
        told = len(warnings)
        await store.append(run, fence, next(batches), [progress(1)])
        await store.create(new_run(service="third"))
        while len(warnings) == told:
            await asyncio.sleep(0.01)
        assert "who is told" in warnings[-1]
        store.on_growth = lambda run, seq: grown.put_nowait(seq)
        store.on_ready = ready.put_nowait
        await heard()
    await store.close()


@in_loop
async def test_a_slow_way_is_no_silence(server: Server, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # For so long nothing may cross; the result below takes longer to cross.
    monkeypatch.setattr(redis_link, "_SILENCE", 0.2)
    monkeypatch.setattr(redis_link, "_WATCH", 0.05)
    large = b'"' + b"x" * (2 << 20) + b'"'
    async with Proxy(server.port, rate=4 << 20) as proxy:
        store = RedisStore(f"redis://127.0.0.1:{proxy.port}?prefix={prefix}&patience=1")
        await store.open()
        try:
            claim = await shown(store)
            run, fence = claim.run.id, claim.run.fence
            # Beside it, small calls pass as ever.
            finish = asyncio.create_task(store.finish(run, fence, "completed", result=large))
            while not finish.done():
                assert (await store.get(run)).id == run
                await asyncio.sleep(0.05)
            assert (await finish).changed
            assert await asyncio.gather(store.result(run), store.result(run)) == [large, large]
        finally:
            await store.close()


@in_loop
async def test_large_replies_are_asked_for_few_at_once(
    server: Server, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RedisStore(server.url(prefix=prefix))
    await store.open()
    claim = await shown(store)
    await store.finish(claim.run.id, claim.run.fence, "completed", result=b"1")
    at_once: list[int] = []
    under_way = 0
    call = store._link._call

    async def counted(*arguments: Any) -> Any:
        nonlocal under_way
        under_way += 1
        at_once.append(under_way)
        try:
            return await call(*arguments)
        finally:
            under_way -= 1

    monkeypatch.setattr(store._link, "_call", counted)
    assert await asyncio.gather(*(store.result(claim.run.id) for _ in range(50))) == [b"1"] * 50
    assert max(at_once) == 8
    await store.close()


@in_loop
async def test_a_server_that_stops_in_the_middle_is_silent(
    server: Server, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_line, "_SLOWEST", 64 << 20)
    monkeypatch.setattr(redis_link, "_SILENCE", 0.3)
    monkeypatch.setattr(redis_link, "_WATCH", 0.05)
    store = RedisStore(server.url(prefix=prefix, patience=1))
    await store.open()
    claim = await shown(store)
    server.pause()
    try:
        large = b'"' + b"x" * (15 << 20) + b'"'
        async with asyncio.timeout(20):
            with pytest.raises(StoreAway, match=r"can't be reached: (silent|no answer)"):
                await store.finish(claim.run.id, claim.run.fence, "completed", result=large)
    finally:
        server.resume()
    async with asyncio.timeout(20):
        while True:
            with suppress(StoreAway):
                assert (await store.finish(claim.run.id, claim.run.fence, "completed", result=large)).run.ended
                break
            await asyncio.sleep(0.05)
    await store.close()


@in_loop
async def test_a_claim_passes_by_many_overdue_runs_in_portions(
    server: Server, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    store = RedisStore(server.url(prefix=prefix), clock=lambda: now)
    await store.open()
    await asyncio.gather(*(store.create(new_run(deadline=1010.0)) for _ in range(350)))
    last, _ = await store.create(new_run())
    now = 1020.0
    calls: list[str] = []
    script = store._link.script

    async def counted(name: str, *arguments: Any, **more: Any) -> Any:
        calls.append(name)
        return await script(name, *arguments, **more)

    monkeypatch.setattr(store._link, "script", counted)
    claim = await store.claim(["auditor"], "w", pull=True)
    assert claim is not None
    assert claim.run.id == last.id
    assert calls == ["claim"] * 4
    assert {run.status for run in await store.list(None, limit=1000) if run.id != last.id} == {"expired"}
    assert await store.claim(["auditor"], "w", pull=True) is None
    await store.close()
