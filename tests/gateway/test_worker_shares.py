"""Runs that workers of several versions claim, divided by the versions' weights: through a real gateway, over HTTP."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from itertools import accumulate
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from unjam.runs.model import Claim
from unjam.runs.store.base import Store
from unjam.runs.store.memory import MemoryStore
from unjam.runs.store.sqlite import SqliteStore
from unjam.worker import Run, Worker

from ..worker.made import create, ended, serving
from .durable import Api, runs_gateway
from .harness import in_loop, until
from .test_workers_view import claim, finish, refused, workers

SPLIT = """
services:
  auditor:
    match: {path: /agents/auditor}
    runs: {execute: pull}
    breaker: {open: 60s}
    versions:
      v7: {endpoints: ["http://127.0.0.1:9"], weight: 90}
      v8: {endpoints: ["http://127.0.0.1:9"], weight: 10}
"""
SHORT = "{lease: 3s}"


@pytest.fixture(autouse=True)
def nothing_is_found_by_looking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits is woken by what happens, not by the look that is taken in case a hint was lost."""
    monkeypatch.setattr("unjam.runs.ready.RECONCILE", 3600.0)


class Noting:
    """Notes the versions in the order in which they begin runs, and how often the store is asked."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.begun: list[str | None] = []
        self.asked = 0
        self._claim = store.claim
        store.claim = self.claim  # type: ignore[method-assign]

    async def claim(self, *args: Any, **more: Any) -> Claim | None:
        self.asked += 1
        await asyncio.sleep(0)  # as others do, the one in memory answers later
        claim = await self._claim(*args, **more)
        if claim is not None:
            self.begun.append(claim.run.version)
        return claim


@pytest.fixture(params=["memory", "sqlite"])
def noting(request: pytest.FixtureRequest, tmp_path: Path) -> Noting:
    return Noting(MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "runs"))


def assert_exact(begun: list[str | None], version: str, percent: int) -> None:
    """Within one run, in each window of a hundred."""
    total = [0, *accumulate(each == version for each in begun)]
    windows = [total[n + 100] - total[n] for n in range(len(begun) - 99)]
    assert windows
    assert {each for each in windows if abs(each - percent) > 1} == set()


@in_loop
async def test_under_little_load_the_shares_are_exact(noting: Noting) -> None:
    store = noting.store
    async with runs_gateway(services=SPLIT, store=store) as running, AsyncExitStack() as stack:
        url = f"http://127.0.0.1:{running.port}"
        for name, version in (("a", "v8"), ("b", "v7"), ("c", "v7"), ("d", "v7")):
            worker = Worker(url, service="auditor", version=version, name=name, report_load=False)

            @worker.run
            async def audit(run: Run) -> str | None:
                return run.version

            await stack.enter_async_context(serving(worker))
        await until(lambda: len(running.server.gateway.balancer.workers.seen) == 4)
        for _ in range(300):
            run = await ended(store, await create(store))
            assert run.status == "completed"
        assert_exact(noting.begun, "v8", 10)
        # A few for each run: when it comes, when it was given, and when its worker comes back. Nobody asks in a circle.
        assert noting.asked < 300 * 8


@in_loop
async def test_with_all_workers_busy_the_shares_are_exact_however_many_there_are_of_each(noting: Noting) -> None:
    store = noting.store
    async with runs_gateway(services=SPLIT, store=store) as running, AsyncExitStack() as stack:
        runs = [await create(store, n) for n in range(300)]
        url = f"http://127.0.0.1:{running.port}"
        for name, version, slots in (("a", "v8", 4), ("b", "v8", 4), ("c", "v7", 2), ("d", "v7", 1)):
            worker = Worker(url, service="auditor", version=version, slots=slots, name=name, report_load=False)

            @worker.run
            async def audit(run: Run) -> str | None:
                await asyncio.sleep(0.002 * (run.input % 3))
                return run.version

            await stack.enter_async_context(serving(worker))
            if name == "a":  # alone, it takes what there is
                await until(lambda: len(noting.begun) >= 20)
        for run in runs:
            assert (await ended(store, run)).status == "completed"
        both = noting.begun.index("v7")
        assert set(noting.begun[:both]) == {"v8"}
        assert_exact(noting.begun[both:], "v8", 10)


@in_loop
async def test_who_has_had_its_share_says_so_and_is_woken_when_it_is_its_turn() -> None:
    noting = Noting(MemoryStore())
    async with runs_gateway(services=SPLIT, store=noting.store) as running:
        old, new, client = [await Api.connect(running) for _ in range(3)]
        assert await claim(old, "old", version="v7") is None
        for _ in range(12):
            await client.create()
        first = await claim(new, "new", version="v8")
        assert first is not None
        body = {"services": ["auditor"], "worker": "new", "version": "v8", "slots": 50, "wait": 20}
        await new.send("POST", "/v1/workers/claim", body)
        await until(lambda: refused(running) == {("auditor", "share"): 1})
        assert workers(running, "v8")["new"]["why"] == ["version has had its share of fast runs"]
        asked = noting.asked
        for _ in range(9):
            await finish(old, await claim(old, "old", version="v7"))
        status, found = await new.read("POST", "/v1/workers/claim")
        assert (status, found["run"]["version"]) == (200, "v8")
        assert noting.begun == ["v8", *["v7"] * 9, "v8"]
        # It asked again, for each lane, when another had begun a run, and otherwise not at all.
        assert noting.asked - asked <= 9 + 2 * 10


@in_loop
async def test_who_waits_for_a_busy_version_goes_on_when_that_has_begun_its_own() -> None:
    async with runs_gateway(services=SPLIT) as running:
        old, new, client = [await Api.connect(running) for _ in range(3)]
        assert await claim(old, "old", version="v7", slots=50) is None
        for _ in range(20):
            await client.create()
        busy = await claim(new, "new", version="v8", slots=1)
        for _ in range(18):
            assert await claim(old, "old", version="v7", slots=50) is not None
        # Of nineteen runs v8 has one: of twenty it is to have two.
        body = {"services": ["auditor"], "worker": "old", "version": "v7", "slots": 50, "wait": 20}
        await old.send("POST", "/v1/workers/claim", body)
        await until(lambda: refused(running) == {("auditor", "share"): 1})
        await finish(new, busy)
        assert (await claim(new, "new", version="v8", slots=1))["run"]["version"] == "v8"
        await client.create()
        status, found = await old.read("POST", "/v1/workers/claim")
        assert (status, found["run"]["version"]) == (200, "v7")


@in_loop
async def test_the_end_of_a_long_run_is_no_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    late = 0.0
    monkeypatch.setattr("unjam.gateway.workers.monotonic", lambda: monotonic() + late)
    async with runs_gateway(services=SPLIT) as running:
        old, new, client = [await Api.connect(running) for _ in range(3)]
        assert await claim(old, "old", version="v7") is None
        for _ in range(5):
            await client.create()
        held = [(new, await claim(new, "new", version="v8", slots=1))]
        held.append((old, await claim(old, "old", version="v7", slots=1)))
        for seconds in (10.0, 20.0, 30.0):
            late = seconds
            for api, each in held:
                beat = f"/v1/runs/{each['run']['id']}/heartbeat"
                assert (await api.call("POST", beat, {"fence": each["fence"]}))[0] == 200
        for api, each in held:
            await finish(api, each)
        # That v8 has had its share is not forgotten because v7 asks first, before v8 could.
        assert await claim(old, "old", version="v7", slots=1) is not None
        assert await claim(new, "new", version="v8", slots=1) is None


@in_loop
async def test_a_run_that_is_handed_back_goes_to_its_version_though_that_has_had_its_share() -> None:
    async with runs_gateway(services=SPLIT) as running:
        old, new, client = [await Api.connect(running) for _ in range(3)]
        assert await claim(old, "old", version="v7", slots=50) is None
        for _ in range(12):
            await client.create()
        mine = await claim(new, "new", version="v8", slots=50)
        body = {"services": ["auditor"], "worker": "new", "version": "v8", "slots": 50, "wait": 20}
        await new.send("POST", "/v1/workers/claim", body)
        await until(lambda: refused(running) == {("auditor", "share"): 1})
        run = mine["run"]["id"]
        assert (await client.call("POST", f"/v1/runs/{run}/release", {"fence": mine["fence"]}))[0] == 200
        status, found = await new.read("POST", "/v1/workers/claim")
        assert (status, found["run"]["id"]) == (200, run)
        # Nor does it count a second time.
        assert await claim(new, "new", version="v8", slots=50) is None
        for _ in range(9):
            assert await claim(old, "old", version="v7", slots=50) is not None
        assert await claim(new, "new", version="v8", slots=50) is not None


@in_loop
async def test_a_hint_finds_the_version_that_the_run_is_for() -> None:
    async with runs_gateway(services=SPLIT) as running:
        held = {version: await Api.connect(running) for version in ("v7", "v8")}
        client = await Api.connect(running)
        for _ in range(3):
            for version, api in held.items():
                body = {"services": ["auditor"], "worker": version, "version": version, "slots": 50, "wait": 20}
                await api.send("POST", "/v1/workers/claim", body)
                await until(lambda version=version: workers(running, version).get(version, {}).get("claiming"))
            for version, api in reversed(held.items()):  # first for the one that has not waited longest
                await client.create(version=version)
                status, found = await api.read("POST", "/v1/workers/claim")
                assert (status, found["run"]["version"]) == (200, version)


@in_loop
async def test_a_run_asked_for_by_version_is_no_part_of_the_shares() -> None:
    async with runs_gateway(services=SPLIT) as running:
        old, new, client = [await Api.connect(running) for _ in range(3)]
        assert await claim(old, "old", version="v7", slots=50) is None
        for _ in range(20):
            await client.create(version="v8")
        for _ in range(20):
            assert await claim(new, "new", version="v8", slots=50) is not None
        await client.create()
        assert (await claim(new, "new", version="v8", slots=50))["run"]["version"] == "v8"


@pytest.mark.parametrize("how", ["weight", "breaker", "drained"])
@in_loop
async def test_nobody_waits_for_a_version_that_gets_nothing(how: str) -> None:
    async with runs_gateway(services=SPLIT) as running:
        old, new, client = [await Api.connect(running) for _ in range(3)]
        assert await claim(old, "old", version="v7", slots=50) is None
        await client.create()
        assert await claim(new, "new", version="v8", slots=50) is not None
        for _ in range(20):
            await client.create()
        body = {"services": ["auditor"], "worker": "new", "version": "v8", "slots": 50, "wait": 20}
        await new.send("POST", "/v1/workers/claim", body)
        await until(lambda: refused(running) == {("auditor", "share"): 1})
        balancer = running.server.gateway.balancer
        now = asyncio.get_running_loop().time()
        if how == "weight":
            balancer.set_weight("auditor", "v7", 0.0, now)
        elif how == "breaker":
            balancer.trip("auditor", "v7", now)
        else:
            balancer.drain(balancer.workers.named("old")[0], True, now)
        status, found = await new.read("POST", "/v1/workers/claim")
        assert (status, found["run"]["version"]) == (200, "v8")
        for _ in range(19):
            assert await claim(new, "new", version="v8", slots=50) is not None
        assert await claim(old, "old", version="v7", slots=50) is None


@in_loop
async def test_when_the_workers_of_one_version_are_gone_another_takes_all() -> None:
    async with runs_gateway(runs=SHORT, services=SPLIT) as running:
        old, new, client = [await Api.connect(running) for _ in range(3)]
        body = {"services": ["auditor"], "worker": "old", "version": "v7", "slots": 1, "wait": 20}
        await old.send("POST", "/v1/workers/claim", body)
        await until(lambda: workers(running, "v7").get("old", {}).get("claiming"))
        await client.create(version="v8")
        assert await claim(new, "new", version="v8", slots=50) is not None
        old.wire.reset()
        await until(lambda: not workers(running, "v7")["old"]["claiming"])
        for _ in range(20):
            await client.create()
        body = {"services": ["auditor"], "worker": "new", "version": "v8", "slots": 50, "wait": 20}
        begun = 0
        while begun < 20:
            await new.send("POST", "/v1/workers/claim", body)
            status, found = await new.read("POST", "/v1/workers/claim")
            assert (status, found["run"]["version"]) == (200, "v8")
            begun += 1
            if begun == 1:
                assert await claim(new, "new", version="v8", slots=50) is None  # for a while it may come back
        assert refused(running)[("auditor", "share")] >= 1


@in_loop
async def test_what_only_one_version_s_workers_ask_for_waits_for_no_other() -> None:
    async with runs_gateway(services=SPLIT) as running:
        old, new, client = [await Api.connect(running) for _ in range(3)]
        assert await claim(old, "old", version="v7", lanes=["fast"]) is None
        for _ in range(10):
            await client.create(lane="heavy")
        for _ in range(10):
            found = await claim(new, "new", version="v8", slots=50, lanes=["fast", "heavy"])
            assert found["run"]["lane"] == "heavy"


@in_loop
async def test_who_takes_a_run_of_another_lane_when_its_turn_has_come_lets_one_by() -> None:
    async with runs_gateway(services=SPLIT) as running:
        old, new, client = [await Api.connect(running) for _ in range(3)]
        assert await claim(new, "new", version="v8", slots=50) is None
        for lane in ("fast", "heavy"):
            for _ in range(20):
                await client.create(lane=lane)
        body = {"services": ["auditor"], "worker": "old", "version": "v7", "slots": 50, "lanes": ["heavy"], "wait": 20}
        for _ in range(9):
            assert await claim(old, "old", version="v7", slots=50, lanes=["heavy"]) is not None
        for _ in range(3):
            before = refused(running).get(("auditor", "share"), 0)
            await old.send("POST", "/v1/workers/claim", body)
            await until(lambda before=before: refused(running).get(("auditor", "share"), 0) > before)
            assert (await claim(new, "new", version="v8", slots=50))["run"]["lane"] == "fast"
            status, found = await old.read("POST", "/v1/workers/claim")
            assert (status, found["run"]["lane"], found["run"]["version"]) == (200, "heavy", "v7")


@in_loop
async def test_a_worker_that_does_not_say_what_it_is_takes_what_comes() -> None:
    async with runs_gateway(services=SPLIT) as running:
        old, new, client = [await Api.connect(running) for _ in range(3)]
        assert await claim(old, "old", version="v7", slots=50) is None
        for _ in range(40):
            await client.create()
        for _ in range(15):
            assert await claim(new, "any", slots=50) is not None
        # And nobody waits for it, though it is listed under v7.
        await old.call("POST", "/v1/workers/claim", {"services": ["auditor"], "worker": "old", "version": "v8"})
        for _ in range(15):
            assert await claim(new, "old", version="v8", slots=50) is not None
