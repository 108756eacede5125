"""A worker and its function: results, events, checkpoints, errors, cancelling, leaving; over a store and over HTTP."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from unjam.runs.store.base import StoreAway
from unjam.runs.store.memory import MemoryStore
from unjam.worker import PlainRun, Run, RunError, RunStopped, Worker

from ..clocks import Awake
from .api import api, until
from .made import create, ended, in_loop, log_of, own_of, reaches, result_of, serving


@asynccontextmanager
async def target(kind: str, store: MemoryStore, lease: float) -> AsyncIterator[Any]:
    if kind == "store":
        yield store
        return
    async with api(store, lease) as server:
        yield server.url


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes find functions of this file by name."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))


both = pytest.mark.parametrize("kind", ["store", "http"])


@both
@in_loop
async def test_a_run_becomes_its_result_and_its_events(kind: str) -> None:
    store = MemoryStore()
    async with target(kind, store, 30.0) as where:
        worker = Worker(where, service="auditor")
        seen: list[Any] = []

        @worker.run
        async def audit(run: Run) -> dict[str, int]:
            seen.append((run.service, run.attempt, run.fence, run.checkpoint, run.lane, run.metadata, run.cancelled))
            for page in range(3):
                await run.emit("progress", {"page": page})
            return {"findings": run.input["pages"]}

        run = await create(store, {"pages": 12}, metadata=msgspec.Raw(b'{"who": "me"}'))
        async with serving(worker):
            assert (await ended(store, run)).status == "completed"
        assert await result_of(store, run) == {"findings": 12}
        assert seen == [("auditor", 1, 1, None, "fast", {"who": "me"}, False)]
        assert await log_of(store, run) == [
            ("run.created", {"service": "auditor", "lane": "fast"}),
            ("run.attempt", {"n": 1, "from_seq": 1, "reason": "first"}),
            *[("progress", {"page": page}) for page in range(3)],
            ("run.completed", {}),
        ]


@both
@in_loop
async def test_thousands_of_events_come_whole_and_in_order(kind: str) -> None:
    store = MemoryStore()
    async with target(kind, store, 30.0) as where:
        worker = Worker(where, service="auditor")

        @worker.run
        async def audit(run: Run) -> None:
            for n in range(3000):
                await run.emit("n", n)
            await run.emit("large", "x" * 200_000)
            await run.emit("last")

        run = await create(store)
        async with serving(worker):
            assert (await ended(store, run)).status == "completed"
        events = await own_of(store, run)
        assert [data for kind, data in events if kind == "n"] == list(range(3000))
        assert [kind for kind, _ in events[-2:]] == ["large", "last"]


@in_loop
async def test_events_gather_while_one_append_is_on_its_way() -> None:
    store = MemoryStore()
    async with api(store) as server:
        worker = Worker(server.url, service="auditor")

        @worker.run
        async def audit(run: Run) -> None:
            for n in range(500):
                await run.emit("n", n)

        run = await create(store)
        async with serving(worker):
            await ended(store, run)
        sizes = [len(call[3]["events"]) for call in server.calls("/append")]
        assert len(sizes) < 10
        assert max(sizes) == 128
        assert [call[3]["batch"] for call in server.calls("/append")] == list(range(1, len(sizes) + 1))


@both
@pytest.mark.parametrize("mode", ["thread", "process"])
@in_loop
async def test_plain_functions_run_in_threads_and_processes(kind: str, mode: str) -> None:
    store = MemoryStore()
    async with target(kind, store, 30.0) as where:
        worker = Worker(where, service="auditor", slots=2, processes=mode == "process")
        worker.run(plain)
        runs = [await create(store, n) for n in range(4)]
        async with serving(worker):
            for n, run in enumerate(runs):
                assert (await ended(store, run)).status == "completed"
                own_process = mode == "thread"
                told = await result_of(store, run)
                assert told["square"] == n * n
                assert (told["pid"] == os.getpid()) == own_process
                assert await own_of(store, run) == [("progress", {"i": 0}), ("progress", {"i": 1})]


def plain(run: PlainRun) -> dict[str, int]:
    for i in range(2):
        run.emit("progress", {"i": i})
        run.save(i)
    return {"square": run.input**2, "pid": os.getpid()}


@in_loop
async def test_slots_are_how_many_run_at_once() -> None:
    store = MemoryStore()
    worker = Worker(store, service="auditor", slots=3)
    running: list[str] = []
    most, go = [0], asyncio.Event()

    @worker.run
    async def audit(run: Run) -> None:
        running.append(run.id)
        most[0] = max(most[0], len(running))
        await go.wait()
        running.remove(run.id)

    runs = [await create(store, n) for n in range(7)]
    async with serving(worker):
        await until(lambda: len(running) == 3)
        assert (await store.depth())["auditor"] == (4, 3)
        go.set()
        for run in runs:
            await ended(store, run)
    assert most == [3]


# ---------------------------------------------------------------------------------------------------------- errors


@both
@in_loop
async def test_an_exception_fails_the_run_and_gives_nothing_away(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore()
    async with target(kind, store, 30.0) as where:
        worker = Worker(where, service="auditor")

        @worker.run
        async def audit(run: Run) -> None:
            await run.emit("before")
            raise KeyError("password is hunter2")

        run = await create(store)
        with caplog.at_level(logging.INFO, "unjam.worker"):
            async with serving(worker):
                found = await ended(store, run)
    assert found.status == "failed"
    assert found.error is not None
    assert bytes(found.error) == b'{"code":"worker_error","message":"the worker failed: KeyError"}'
    # Who runs the worker sees it: what went wrong in the line of the run, and where below it.
    (said,) = [record.message for record in caplog.records if "attempt 1" in record.message]
    line, *below = said.splitlines()
    assert "failed (worker_error: KeyError: 'password is hunter2') after" in line
    assert line.endswith(" s, 1 event")
    assert below[0].startswith("Traceback")
    assert await own_of(store, run) == [("before", None)]


@in_loop
async def test_an_error_for_the_client_is_told_to_the_client() -> None:
    store = MemoryStore()
    worker = Worker(store, service="auditor")

    @worker.run
    async def audit(run: Run) -> None:
        raise RunError("not_a_pdf", "page 3 is not a PDF", page=3)

    run = await create(store)
    async with serving(worker):
        found = await ended(store, run)
    assert found.error is not None
    assert bytes(found.error) == b'{"code":"not_a_pdf","message":"page 3 is not a PDF","detail":{"page":3}}'


def raises_run_error(run: PlainRun) -> None:
    raise RunError("not_a_pdf", "no", page=run.input)


@in_loop
async def test_it_comes_through_a_process_too() -> None:
    store = MemoryStore()
    worker = Worker(store, service="auditor", processes=True)
    worker.run(raises_run_error)
    run = await create(store, 4)
    async with serving(worker):
        found = await ended(store, run)
    assert found.error is not None
    assert bytes(found.error) == b'{"code":"not_a_pdf","message":"no","detail":{"page":4}}'


@in_loop
async def test_what_is_no_json_is_a_mistake_of_the_function() -> None:
    store = MemoryStore()
    worker = Worker(store, service="auditor", slots=2)
    caught: list[str] = []

    @worker.run
    async def audit(run: Run) -> object:
        try:
            await run.emit("progress", object())
        except TypeError:
            caught.append("data")
        for kind in ("run.completed", "", "two\nlines", "x" * 65):
            try:
                await run.emit(kind)
            except ValueError:
                caught.append(kind[:20])
        return object()

    run = await create(store)
    async with serving(worker):
        found = await ended(store, run)
    assert caught == ["data", "run.completed", "", "two\nlines", "x" * 20]
    assert found.error is not None
    assert b'"bad_result"' in bytes(found.error)


@in_loop
async def test_what_the_gateway_refuses_as_too_large_fails_the_run_by_name() -> None:
    store = MemoryStore()
    async with api(store) as server:
        server.most_event, server.most_result = 1000, 5000
        worker = Worker(server.url, service="auditor")
        stopped: list[str] = []

        @worker.run
        async def audit(run: Run) -> object:
            if run.input == "result":
                await run.emit("fine")
                return "x" * 6000
            try:
                await run.emit("large", "x" * 2000)
                await asyncio.Event().wait()
            finally:
                stopped.append(run.id)

        event, result = await create(store, "event"), await create(store, "result")
        async with serving(worker):
            of_event, of_result = await ended(store, event), await ended(store, result)
        assert of_event.error is not None
        assert of_result.error is not None
        assert b'"payload_too_large"' in bytes(of_event.error)
        assert b'"result_too_large"' in bytes(of_result.error)
        assert stopped == [event]
        assert await own_of(store, result) == [("fine", None)]


# ---------------------------------------------------------------------------------------- leases, fences, lost replies


@both
@in_loop
async def test_a_long_silent_run_keeps_its_lease(kind: str) -> None:
    store = MemoryStore(monotonic=Awake())
    async with target(kind, store, 0.3) as where:
        worker = Worker(where, service="auditor", lease=0.3)
        go = asyncio.Event()

        @worker.run
        async def audit(run: Run) -> None:
            await go.wait()

        run = await create(store)
        async with serving(worker):
            await reaches(store, run, "running")
            began = time.monotonic()
            while time.monotonic() - began < 0.9:
                assert await store.sweep() == []
                await asyncio.sleep(0.02)
            go.set()
            found = await ended(store, run)
        assert (found.status, found.attempt, found.fence) == ("completed", 1, 1)


@both
@in_loop
async def test_a_fenced_run_stops_at_once_and_says_nothing_more(kind: str) -> None:
    clock = [0.0]
    store = MemoryStore(monotonic=lambda: clock[0])
    async with target(kind, store, 30.0) as where:
        worker = Worker(where, service="auditor")
        stopped, began = asyncio.Event(), asyncio.Event()

        @worker.run
        async def audit(run: Run) -> str:
            await run.emit("mine")
            began.set()
            try:
                while True:
                    await asyncio.sleep(0.01)
                    await run.emit("more")
            finally:
                assert run.cancelled
                stopped.set()

        run = await create(store, retry="restart")
        async with serving(worker):
            await began.wait()
            clock[0] += 100
            while not await store.sweep():
                clock[0] += 100
            claim = await store.claim(["auditor"], "another", pull=True)
            assert claim is not None
            await stopped.wait()
            before = len(await log_of(store, run))
            await until(lambda: not worker._sessions)
            assert len(await log_of(store, run)) == before
        found = await store.get(run)
        assert (found.status, found.fence, found.worker) == ("running", 2, "another")


@in_loop
async def test_replies_that_are_lost_change_nothing() -> None:
    store = MemoryStore()
    async with api(store) as server:
        for call in ("append", "heartbeat", "finish"):
            server.lose[call] = 2
        worker = Worker(server.url, service="auditor")

        @worker.run
        async def audit(run: Run) -> int:
            for n in range(5):
                await run.emit("n", n)
                await run.save(n)
            return 7

        run = await create(store)
        async with serving(worker):
            found = await ended(store, run)
            await until(lambda: not worker._sessions)
        assert (found.status, await result_of(store, run)) == ("completed", 7)
        assert await own_of(store, run) == [("n", n) for n in range(5)]
        assert +server.lose == {}
        assert [call[3]["batch"] for call in server.calls("/append")][:4] == [1, 1, 1, 2]
        assert len(server.calls("/finish")) == 3


@in_loop
async def test_a_gateway_that_is_away_for_a_while_costs_nothing_but_time() -> None:
    store = MemoryStore()
    async with api(store) as server:
        worker = Worker(server.url, service="auditor")
        emitted, go = asyncio.Event(), asyncio.Event()

        @worker.run
        async def audit(run: Run) -> str:
            await run.emit("before")
            emitted.set()
            await go.wait()
            await run.emit("while_away")
            await run.save("here")
            return "done"

        run = await create(store)
        async with serving(worker):
            await emitted.wait()
            await server.stop()
            go.set()
            await asyncio.sleep(0.2)
            await server.start()
            found = await ended(store, run)
            later = await create(store, "later")
            await ended(store, later)
        assert (found.status, found.attempt) == ("completed", 1)
        assert await own_of(store, run) == [("before", None), ("while_away", None)]


@in_loop
async def test_a_store_that_is_away_is_asked_several_times_within_a_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it asks for: so one that is back before the lease is up hears of the worker before it is up."""
    lease, pauses = 9.0, list[float]()

    class Away(MemoryStore):
        async def heartbeat(self, *arguments: Any, **more: Any) -> Any:
            if len(pauses) < 12:
                raise StoreAway("it is restarted", retry_after=60.0)
            return await super().heartbeat(*arguments, **more)

    async def pause(seconds: float, until: asyncio.Event | None = None) -> None:
        if seconds == lease / 3:
            await asyncio.Event().wait()  # the sign of life by itself
        pauses.append(seconds)

    monkeypatch.setattr("unjam.worker.session.pause", pause)
    store = Away()
    worker = Worker(store, service="auditor", lease=lease)

    @worker.run
    async def audit(run: Run) -> None:
        await run.save("here")

    run = await create(store)
    async with serving(worker):
        assert (await ended(store, run)).attempt == 1
    assert len(pauses) == 12
    assert max(pauses) <= lease / 6


@in_loop
async def test_another_gateway_is_asked_when_one_is_gone() -> None:
    store = MemoryStore()
    async with api(store) as gone, api(store) as there:
        await gone.stop()
        worker = Worker([gone.url, there.url], service="auditor")
        worker.run(plain)
        run = await create(store, 3)
        async with serving(worker):
            assert (await ended(store, run)).status == "completed"


@in_loop
async def test_a_refused_worker_says_why_and_goes_on_trying(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore()
    async with api(store) as server:
        server.refuse["claim"] = (403, "forbidden")
        worker = Worker(server.url, service="auditor", key="secret-key")
        worker.run(plain)
        run = await create(store, 3)
        with caplog.at_level(logging.WARNING, "unjam.worker"):
            async with serving(worker):
                await until(lambda: len(server.calls("/claim")) >= 2)
                server.refuse.clear()
                assert (await ended(store, run)).status == "completed"
        assert caplog.text.count("403: refused: forbidden") == 1
        assert server.calls("/claim")[0][2]["authorization"] == "Bearer secret-key"
        assert "secret-key" not in caplog.text


# ---------------------------------------------------------------------------------------------------- cancellation


@both
@in_loop
async def test_cancel_stops_a_coroutine_that_waits(kind: str) -> None:
    store = MemoryStore()
    async with target(kind, store, 0.3) as where:
        worker = Worker(where, service="auditor", lease=0.3)
        cleaned = []

        @worker.run
        async def audit(run: Run) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                await run.emit("cleaned")
                cleaned.append(run.cancelled)

        run = await create(store)
        async with serving(worker):
            await reaches(store, run, "running")
            await store.cancel(run)
            found = await ended(store, run)
        assert (found.status, cleaned) == ("cancelled", [True])
        assert [kind for kind, _ in await log_of(store, run)][-2:] == ["cleaned", "run.cancelled"]


@in_loop
async def test_cancel_keeps_what_is_returned_nevertheless() -> None:
    store = MemoryStore()
    worker = Worker(store, service="auditor", lease=0.3)

    @worker.run
    async def audit(run: Run) -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass
        return "half of it"

    run = await create(store)
    async with serving(worker):
        await reaches(store, run, "running")
        await store.cancel(run)
        found = await ended(store, run)
    assert (found.status, await result_of(store, run)) == ("cancelled", "half of it")


def emits_for_ever(run: PlainRun) -> None:
    while True:
        run.emit("tick")
        time.sleep(0.01)


@pytest.mark.parametrize("processes", [False, True])
@in_loop
async def test_cancel_stops_a_plain_function_where_it_emits(processes: bool) -> None:
    store = MemoryStore()
    worker = Worker(store, service="auditor", processes=processes)
    worker.run(emits_for_ever)
    run = await create(store)
    async with serving(worker):
        while not await own_of(store, run):
            await asyncio.sleep(0.01)
        await store.cancel(run)
        assert (await ended(store, run)).status == "cancelled"


@in_loop
async def test_a_plain_function_that_says_nothing_can_see_that_it_is_cancelled() -> None:
    store = MemoryStore()
    worker = Worker(store, service="auditor", lease=0.15)

    @worker.run
    def audit(run: PlainRun) -> None:
        while not run.cancelled:
            time.sleep(0.005)
        run.input = None
        with pytest.raises(RunStopped):
            run.emit("told_once")
        run.emit("then_it_may_clean_up")

    run = await create(store)
    async with serving(worker):
        await reaches(store, run, "running")
        await store.cancel(run)
        assert (await ended(store, run)).status == "cancelled"
    assert await own_of(store, run) == [("then_it_may_clean_up", None)]


# ------------------------------------------------------------------------------------------------- leaving, inputs


async def pages_from_checkpoint(run: Run) -> str:
    for page in range(run.checkpoint or 0, 6):
        await run.emit("page", page)
        await asyncio.sleep(0.02)
        await run.save(page + 1)
    return f"in attempt {run.attempt}"


def plain_pages_from_checkpoint(run: PlainRun) -> str:
    for page in range(run.checkpoint or 0, 6):
        run.emit("page", page)
        time.sleep(0.02)
        run.save(page + 1)
    return f"in attempt {run.attempt}"


@both
@pytest.mark.parametrize("mode", ["coroutine", "thread", "process"])
@in_loop
async def test_a_worker_that_leaves_hands_back_at_the_next_checkpoint(kind: str, mode: str) -> None:
    store = MemoryStore()
    async with target(kind, store, 30.0) as where:
        function: Any = pages_from_checkpoint if mode == "coroutine" else plain_pages_from_checkpoint
        first, second = (Worker(where, service="auditor", processes=mode == "process") for _ in range(2))
        first.run(function)
        second.run(function)
        run = await create(store)
        serve = asyncio.create_task(first.serve())
        while len(await own_of(store, run)) < 2:
            await asyncio.sleep(0.005)
        first.stop()
        await serve
        found = await store.get(run)
        assert (found.status, found.attempt, found.has_checkpoint) == ("queued", 0, True)
        async with serving(second):
            assert (await ended(store, run)).status == "completed"
        # Not a page lost, not one twice, and no attempt charged.
        assert await own_of(store, run) == [("page", page) for page in range(6)]
        assert await result_of(store, run) == "in attempt 1"
        reasons = [data["reason"] for kind, data in await log_of(store, run) if kind == "run.attempt"]
        assert reasons == ["first", "handed_back"]


@both
@in_loop
async def test_what_never_saves_may_end_within_the_grace_and_is_handed_back_after_it(kind: str) -> None:
    store = MemoryStore()
    async with target(kind, store, 30.0) as where:
        worker = Worker(where, service="auditor", slots=2, grace=0.3)
        go = asyncio.Event()

        @worker.run
        async def audit(run: Run) -> None:
            await (go if run.input == "ends" else asyncio.Event()).wait()

        ends, never = await create(store, "ends"), await create(store, "never")
        serve = asyncio.create_task(worker.serve())
        await reaches(store, never, "running")
        worker.stop()
        go.set()
        await serve
        assert (await store.get(ends)).status == "completed"
        found = await store.get(never)
        assert (found.status, found.attempt) == ("queued", 0)


@in_loop
async def test_a_thread_that_does_not_stop_does_not_hold_the_worker_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unjam.worker.session.LINGER", 0.1)
    store, go = MemoryStore(), threading.Event()
    worker = Worker(store, service="auditor", grace=0.1)

    @worker.run
    def audit(run: PlainRun) -> None:
        go.wait(20)

    run = await create(store)
    serve = asyncio.create_task(worker.serve())
    await reaches(store, run, "running")
    worker.stop()
    await serve
    assert (await store.get(run)).status == "queued"
    go.set()


@both
@in_loop
async def test_a_worker_without_work_leaves_at_once(kind: str) -> None:
    store = MemoryStore()
    async with target(kind, store, 30.0) as where:
        worker = Worker(where, service="auditor")
        worker.run(plain)
        serve = asyncio.create_task(worker.serve())
        await asyncio.sleep(0.05)
        began = time.monotonic()
        worker.stop()
        await serve
        assert time.monotonic() - began < 10  # not the half minute of a claim


@both
@in_loop
async def test_inputs_reach_the_function_while_it_runs(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unjam.worker.run.LOOK", 0.02)
    store = MemoryStore()
    async with target(kind, store, 30.0) as where:
        worker = Worker(where, service="auditor")

        @worker.run
        async def audit(run: Run) -> list[Any]:
            found = []
            async for number, data in run.inputs():
                found.append([number, data])
                await run.emit("heard", data)
                if data == "enough":
                    return found
            return []

        run = await create(store)
        await store.send(run, b'"early"')
        async with serving(worker):
            while not await own_of(store, run):
                await asyncio.sleep(0.005)
            await store.send(run, b'{"late": 1}')
            await store.send(run, b'"enough"')
            await ended(store, run)
        assert await result_of(store, run) == [[1, "early"], [2, {"late": 1}], [3, "enough"]]


# -------------------------------------------------------------------------------------------------------- mistakes


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(ValueError, match="slots"):
        Worker("http://127.0.0.1:1", service="a", slots=0)
    with pytest.raises(ValueError, match="service"):
        Worker("http://127.0.0.1:1", service=[])
    with pytest.raises(ValueError, match="http://"):
        Worker("sqlite:x.db", service="a").link()
    worker = Worker("http://127.0.0.1:1", service="a", processes=True)
    with pytest.raises(ValueError, match="processes"):
        worker.run(pages_from_checkpoint)
    worker.run(lambda run: None)
    with pytest.raises(ValueError, match="top of a module"):
        asyncio.run(worker.serve())
    with pytest.raises(ValueError, match="no function"):
        asyncio.run(Worker("http://127.0.0.1:1", service="a").serve())


def test_what_an_error_has_to_say_is_bounded() -> None:
    """Everybody who lists runs gets it."""
    assert b"left_out" not in RunError("not_a_pdf", "no", pages=[1, 2]).encode()
    large = RunError("not_a_pdf", "no", pages=list(range(100_000))).encode()
    assert len(large) < 200
    assert b'"left_out":' in large


@in_loop
async def test_a_fault_in_a_sign_of_life_does_not_end_them(caplog: pytest.LogCaptureFixture) -> None:
    class Faulty(MemoryStore):
        beats = 0

        async def heartbeat(self, *arguments: Any, **more: Any) -> Any:
            self.beats += 1
            if self.beats == 1:
                raise RuntimeError("planted")
            return await super().heartbeat(*arguments, **more)

    store = Faulty()
    await store.open()
    worker = Worker(store, service="auditor", lease=0.3)

    @worker.run
    async def audit(run: Run) -> str:
        while store.beats < 3:
            await asyncio.sleep(0.01)
        return "done"

    async with serving(worker):
        run = await create(store)
        assert (await ended(store, run)).status == "completed"
    assert "planted" in caplog.text
