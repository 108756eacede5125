"""Functions that end in ways nobody meant: the run fails, and nothing else does."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from unjam.runs.store.memory import MemoryStore
from unjam.worker import PlainRun, Run, RunError, Worker

from .made import create, ended, in_loop, serving

MODES = ["coroutine", "thread", "process"]


class Odd(BaseException):
    pass


class Unspeakable:
    """Another process can't make one of it."""

    def __reduce__(self) -> Any:
        raise TypeError("not to be sent")


def meets(what: str) -> object:
    match what:
        case "exit":
            sys.exit("a command line that is wrong, say")
        case "odd":
            raise Odd
        case "cause":
            raise RunError("bad_file", "no", cause=ValueError("it says"), page=3, thing=Unspeakable())
        case "name":
            raise RunError("bad_file", "no \udc80", name="\udc80")
    return what


def plain(run: PlainRun) -> object:
    return meets(run.input)


async def coroutine(run: Run) -> object:
    return meets(run.input)


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes find functions of this file by name."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))


async def outcomes(mode: str, *inputs: str) -> list[tuple[str, Any]]:
    """Of runs with these inputs, one after another in one slot: status, and error or result."""
    store = MemoryStore()
    worker = Worker(store, service="auditor", processes=mode == "process")
    function: Callable[..., Any] = coroutine if mode == "coroutine" else plain
    worker.run(function)
    runs = [await create(store, each) for each in inputs]
    found = []
    async with serving(worker):
        for run in runs:
            made = await ended(store, run)
            said = made.error if made.error is not None else await store.result(run)
            assert (made.attempt, said is None) == (1, False)
            found.append((made.status, msgspec.json.decode(said or b"")))
    return found


@pytest.mark.parametrize("mode", MODES)
@in_loop
async def test_what_is_no_exception_fails_the_run_and_leaves_the_slot_and_the_worker(mode: str) -> None:
    assert await outcomes(mode, "exit", "odd", "well") == [
        ("failed", {"code": "worker_error", "message": "the worker failed: SystemExit"}),
        ("failed", {"code": "worker_error", "message": "the worker failed: Odd"}),
        ("completed", "well"),
    ]


@pytest.mark.parametrize("mode", MODES)
@in_loop
async def test_an_error_that_cannot_be_told_is_told_as_far_as_it_can_be(mode: str) -> None:
    detail = {"cause": {"not_json": "ValueError"}, "page": 3, "thing": {"not_json": "Unspeakable"}}
    assert await outcomes(mode, "cause", "name", "well") == [
        ("failed", {"code": "bad_file", "message": "no", "detail": detail}),
        ("failed", {"code": "bad_file", "message": "no ?", "detail": {"name": {"not_json": "str"}}}),
        ("completed", "well"),
    ]


@in_loop
async def test_a_thread_that_cancels_itself_fails() -> None:
    store = MemoryStore()
    worker = Worker(store, service="auditor")

    @worker.run
    def audit(run: PlainRun) -> None:
        raise asyncio.CancelledError

    run = await create(store)
    async with serving(worker):
        assert (await ended(store, run)).status == "failed"


@in_loop
async def test_a_worker_without_a_thread_for_a_run_hands_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start
    refused: list[str] = []

    def full(thread: threading.Thread) -> None:
        if thread.name.startswith("run_") and not refused:
            refused.append(thread.name)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", full)
    store = MemoryStore()
    worker = Worker(store, service="auditor")

    @worker.run
    def audit(run: PlainRun) -> int:
        return run.attempt

    run = await create(store)
    async with serving(worker):
        assert (await ended(store, run)).attempt == 1
    assert refused == [run]
    assert await store.result(run) == b"1"


@in_loop
async def test_a_fault_in_a_claim_does_not_end_the_worker(caplog: pytest.LogCaptureFixture) -> None:
    class Faulty(MemoryStore):
        claims = 0

        async def claim(self, *arguments: Any, **more: Any) -> Any:
            self.claims += 1
            if self.claims == 1:
                raise RuntimeError("planted")
            return await super().claim(*arguments, **more)

    store = Faulty()
    worker = Worker(store, service="auditor")
    worker.run(coroutine)
    run = await create(store, "well")
    async with serving(worker):
        assert (await ended(store, run)).status == "completed"
    assert "planted" in caplog.text
