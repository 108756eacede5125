"""Workers as operators see them, and what they tell of themselves: with a real gateway and a worker process, over HTTP
and straight at a store."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from typer.testing import CliRunner

from unjam.cli.main import app
from unjam.client import AsyncClient
from unjam.runs.store.memory import MemoryStore
from unjam.worker import Run, Worker
from unjam.worker.measure import Meter
from unjam.worker.store_link import StoreLink

from ..gateway.harness import gateway, in_loop, until
from ..gateway.processes import process
from .made import create, ended, serving

CONFIG = """
runs: {lease: 3s}
admin: 127.0.0.1:0
services:
  auditor:
    match: {path: /agents/auditor}
    runs: {execute: pull}
    versions:
      v7: {endpoints: ["http://127.0.0.1:9"], weight: 1}
      v8: {endpoints: ["http://127.0.0.1:9"], weight: 9}
"""

PROGRAM = """
import asyncio, os
from unjam.worker import Worker

worker = Worker("http://127.0.0.1:1", service="auditor")

@worker.run
async def audit(run):
    while not os.path.exists(f"go-{run.input}"):
        await asyncio.sleep(0.01)
    return run.version
"""


@in_loop
async def test_a_worker_process_is_seen_explained_drained_and_killed(tmp_path: Path) -> None:
    (tmp_path / "audit.py").write_text(PROGRAM)
    async with gateway(config=CONFIG, store=MemoryStore()) as there:
        assert there.server.admin is not None
        url = f"http://127.0.0.1:{there.server.admin.port}"

        async def unjam(*words: str) -> str:
            result = await asyncio.to_thread(CliRunner().invoke, app, [*words, "--admin", url])
            assert result.exit_code == 0, result.output
            return " ".join(result.output.split())

        target = ("--target", f"http://127.0.0.1:{there.port}", "--slots", "2", "--name", "web-1")
        known = there.server.gateway.balancer.workers
        async with (
            process("-m", "unjam.worker", "audit", *target, "--version", "v7", cwd=tmp_path) as child,
            AsyncClient(f"http://127.0.0.1:{there.port}") as client,
        ):
            await until(lambda: bool(known.named("web-1")))
            (worker,) = known.named("web-1")
            assert (worker.slots, worker.pool.version.name) == (2, "v7")
            await until(lambda: worker.heard is not None)
            assert worker.heard is not None
            assert worker.heard.latest("cores", worker.heard.at) > 0

            runs = [await client.submit("auditor", number) for number in range(3)]
            await until(lambda: worker.inflight == 2)
            assert "web-1 2 of 2" in await unjam("status")
            said = await unjam("status", "--why", "web-1")
            assert "It may do 2 runs at once, by its own word." in said
            assert "It does 2 runs of this gateway" in said
            assert "It gets nothing until" in said

            assert "nothing new" in await unjam("drain", "web-1")
            for number in (0, 1):
                (tmp_path / f"go-{number}").touch()
                assert await client.result(runs[number]) == "v7"
            await until(lambda: worker.inflight == 0 and worker.turned_away > 0)
            assert "It gets nothing because it was told to drain" in await unjam("status", "--why", "web-1")
            await unjam("undrain", "web-1")
            await until(lambda: worker.inflight == 1)
            child.child.kill()
            await child.exit_code()
            # Its lease runs out: the slot is given back, and it leaves the view.
            await until(lambda: worker.inflight == 0)
            await until(lambda: not known.named("web-1"))
            assert worker.failed == 1


@in_loop
async def test_inputs_come_when_they_are_sent_not_when_somebody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unjam.worker.run.LOOK", 60.0)
    monkeypatch.setattr("unjam.worker.plain.LOOK", 60.0)
    async with gateway(config=CONFIG, store=MemoryStore()) as there:
        url = f"http://127.0.0.1:{there.port}"
        slow, plain = Worker(url, service="auditor", name="slow"), Worker(url, service="auditor", name="plain")

        @slow.run
        async def asks(run: Run) -> object:
            async for _, given in run.inputs():
                return given

        def asks_too(run: object) -> object:
            return next(run.inputs()).data  # type: ignore[attr-defined]

        plain.run(asks_too)
        assert there.server.durable is not None
        given = there.server.durable.given
        for worker in (slow, plain):
            async with serving(worker), AsyncClient(url) as client:
                run = await client.submit("auditor")
                await until(lambda: len(given) == 1)
                await client.send(run, worker.name)
                assert await client.result(run) == worker.name
                # And it doesn't outlive a cancel.
                run = await client.submit("auditor")
                await until(lambda: len(given) == 1)
                await client.cancel(run)
                await until(lambda: len(given) == 0)


@in_loop
async def test_straight_at_a_store_a_worker_says_that_it_is_there_and_that_it_left() -> None:
    store = MemoryStore()
    worker = Worker(store, service="auditor", slots=3, version="v8", name="direct")

    @worker.run
    async def audit(run: Run) -> str | None:
        return run.version

    async def there() -> list[str]:
        return [each.id for each in await store.workers()]

    async with serving(worker):
        async with asyncio.timeout(20):
            while not await there():
                await asyncio.sleep(0.005)
        (info,) = await store.workers()
        assert (info.slots, info.version, info.via, info.services) == (3, "v8", "direct", ("auditor",))
        run = await ended(store, await create(store))
        assert run.version == "v8"
    assert await there() == []


@in_loop
async def test_straight_at_a_store_a_run_keeps_to_the_version_of_a_worker_that_is_there() -> None:
    store = MemoryStore()
    old, new = (
        Worker(store, service="auditor", version=version, name=version, report_load=False) for version in ("v7", "v8")
    )
    first, second = (StoreLink(store, ["auditor"], worker.name, standing=worker, lease=30.0) for worker in (old, new))
    run = await create(store)
    await first.open()
    try:
        job = await first.claim(0)
        assert job is not None
        await first.release(job.run, job.fence, None)
        await asyncio.sleep(0)
        await second.open()
        async with asyncio.timeout(20):
            while len(await store.workers()) < 2:
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.01)
        assert await second.claim(0) is None
        await first.close()  # v7 is gone, and holds nobody
        await second.close()
        await second.open()
        await asyncio.sleep(0.01)
        job = await second.claim(0)
        assert job is not None
        assert (job.run, job.version) == (run, "v8")
    finally:
        await second.close()


def test_a_machine_is_measured_no_more_often_than_that_tells_something() -> None:
    now, measured = [0.0], [0]
    meter = Meter(lambda: now[0])

    def measure() -> dict[str, float]:
        measured[0] += 1
        return {"cores": 2.0}

    meter._measure = measure
    for _ in range(100):
        now[0] += 0.1
        assert meter.read() == {"cores": 2.0}
    assert measured[0] <= 6


def test_a_machine_that_cannot_be_measured_is_told_once_and_never_asked_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    meter = Meter(lambda: float(len(caplog.records)) * 100)

    def fails() -> dict[str, float]:
        raise OSError("no /proc here")

    meter._measure = fails
    assert [meter.read() for _ in range(3)] == [None, None, None]
    assert len(caplog.records) == 1


@pytest.mark.parametrize("given", [{"version": ""}])
def test_what_cannot_be_meant_is_refused(given: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="version"):
        Worker("http://127.0.0.1:1", service="auditor", version=given["version"])
