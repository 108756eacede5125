"""The clients: submitting once, following without a gap over cuts and gateways, results, cancelling, inputs."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest

from unjam.client import (
    AsyncClient,
    Client,
    ClientError,
    NotAccepted,
    RunCancelled,
    RunFailed,
    Unavailable,
)
from unjam.client.sse import Message, Reader
from unjam.runs.model import NewEvent
from unjam.runs.store.memory import MemoryStore

from ..worker.api import Api, api
from ..worker.made import in_loop


async def work(store: MemoryStore, events: int, result: object = None, status: str = "completed") -> str:
    """Claim a run and take it to its end."""
    claim = await store.claim(["auditor"], "w", pull=True)
    assert claim is not None
    run, fence = claim.run.id, claim.run.fence
    for n in range(events):
        await store.append(run, fence, n + 1, [NewEvent("n", msgspec.json.encode(n))])
    error = b'{"code": "broken", "message": "it broke"}' if status == "failed" else None
    await store.finish(run, fence, status, result=msgspec.json.encode(result), error=error)
    return run


@in_loop
async def test_a_run_is_submitted_followed_and_answered() -> None:
    store = MemoryStore()
    async with api(store) as server, AsyncClient(server.url) as client:
        run = await client.submit("auditor", {"pages": 5}, lane="heavy", metadata={"who": "me"}, pull=True)
        assert (run.service, run.status, run.lane, run.metadata, run.ended) == (
            "auditor", "queued", "heavy", {"who": "me"}, False,
        )  # fmt: skip
        waiting = asyncio.create_task(client.result(run))
        await work(store, 3, {"findings": 12})
        assert await waiting == {"findings": 12}
        events = [(event.seq, event.type, event.data) async for event in client.follow(run)]
        assert events == [
            (0, "run.created", {"service": "auditor", "lane": "heavy"}),
            (1, "run.attempt", {"n": 1, "from_seq": 1, "reason": "first"}),
            *[(n + 2, "n", n) for n in range(3)],
            (5, "run.completed", {}),
        ]
        assert [event.seq async for event in client.follow(run.id, after=3)] == [4, 5]
        assert [found.id for found in await client.list(service="auditor")] == [run.id]
        assert (await client.get(run)).result == {"findings": 12}


@in_loop
async def test_an_answer_that_is_lost_makes_no_second_run() -> None:
    store = MemoryStore()
    async with api(store) as server, AsyncClient(server.url) as client:
        server.lose["runs"] = 2
        run = await client.submit("auditor", 1)
        assert [found.id for found in await store.list(None)] == [run.id]
        keys = {call[2]["idempotency-key"] for call in server.calls("/v1/runs")}
        assert len(keys) == 1
        other = await client.submit("auditor", 1)
        assert other.id != run.id
        same = await client.submit("auditor", 2, key="mine"), await client.submit("auditor", 2, key="mine")
        assert same[0].id == same[1].id
        with pytest.raises(NotAccepted) as caught:
            await client.submit("auditor", 3, key="mine")
        assert (caught.value.status, caught.value.code) == (422, "idempotency_key_reused")


@in_loop
async def test_a_store_that_is_away_is_tried_again_and_a_refusal_is_not() -> None:
    store = MemoryStore()
    async with api(store) as server, AsyncClient(server.url, key="abc", patience=30) as client:
        server.refuse["runs"] = (503, "store_away")
        submitting = asyncio.create_task(client.submit("auditor"))
        while len(server.asked) < 2:
            await asyncio.sleep(0.01)
        server.refuse.clear()
        await submitting
        server.refuse["runs"] = (403, "forbidden")
        asked = len(server.asked)
        with pytest.raises(NotAccepted, match="refused: forbidden"):
            await client.submit("auditor")
        assert len(server.asked) == asked + 1
        assert {call[2]["authorization"] for call in server.asked} == {"Bearer abc"}


@in_loop
async def test_following_goes_on_over_cuts_without_a_gap_or_a_repeat() -> None:
    store = MemoryStore()
    async with api(store) as one, api(store) as two, AsyncClient([one.url, two.url]) as client:
        one.cut_after, two.cut_after = 3, 2
        run = await client.submit("auditor", pull=True)
        await work(store, 10)
        seen = [event.seq async for event in client.follow(run)]
        assert seen == list(range(13))
        assert len(one.calls("/events")) > 1
        assert len(two.calls("/events")) > 1
        assert two.calls("/events")[0][2]["last-event-id"] == "2"


@in_loop
async def test_following_survives_a_restart_of_the_gateway() -> None:
    store = MemoryStore()
    async with api(store) as server, AsyncClient(server.url) as client:
        run = await client.submit("auditor", pull=True)
        seen: list[int] = []

        async def follow() -> None:
            async for event in client.follow(run):
                seen.append(event.seq)

        following = asyncio.create_task(follow())
        while not seen:
            await asyncio.sleep(0.005)
        await server.stop()
        await work(store, 4)
        await server.start()
        await following
        assert seen == list(range(7))


@in_loop
async def test_no_gateway_at_all_is_told_after_a_while() -> None:
    async with AsyncClient("http://127.0.0.1:1", patience=0.3) as client:
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1 cannot be reached: Connection refused"):
            await client.submit("auditor")
        with pytest.raises(Unavailable):
            async for _ in client.follow("run_x"):
                pass


@in_loop
async def test_runs_that_end_without_a_result_raise() -> None:
    store = MemoryStore()
    async with api(store) as server, AsyncClient(server.url) as client:
        failed = await client.submit("auditor", pull=True)
        await work(store, 0, status="failed")
        with pytest.raises(RunFailed, match="it broke") as caught:
            await client.result(failed)
        assert (caught.value.code, caught.value.run.id) == ("broken", failed.id)
        cancelled = await client.submit("auditor", pull=True)
        assert (await client.cancel(cancelled)).status == "cancelled"
        with pytest.raises(RunCancelled):
            await client.result(cancelled)
        queued = await client.submit("auditor", pull=True)
        with pytest.raises(TimeoutError, match=rf"{queued.id} has not ended within 0.05 s"):
            await client.result(queued, timeout=0.05)
        with pytest.raises(NotAccepted) as unknown:
            await client.get("run_" + "0" * 27)
        assert unknown.value.status == 404
        with pytest.raises(NotAccepted):
            async for _ in client.follow("run_" + "0" * 27):
                pass


@in_loop
async def test_an_input_is_never_sent_twice() -> None:
    store = MemoryStore()
    async with api(store) as server, AsyncClient(server.url) as client:
        run = await client.submit("auditor", pull=True)
        assert await client.send(run, {"more": 1}) == 1
        server.lose["input"] = 1
        with pytest.raises(Unavailable) as caught:
            await client.send(run, {"more": 2})
        assert caught.value.uncertain
        assert [data for _, data in await store.inputs(run.id, 0)] == [b'{"more":1}', b'{"more":2}']


# ------------------------------------------------------------------------------------------------------------- sync


@contextmanager
def served(store: MemoryStore) -> Iterator[tuple[Api, asyncio.AbstractEventLoop]]:
    """The API in a thread, with the loop of its store."""
    loop, server = asyncio.new_event_loop(), Api(store)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(server.start(), loop).result()
    try:
        yield server, loop
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_the_same_without_asyncio() -> None:
    store = MemoryStore()
    with served(store) as (server, loop), Client(server.url) as client:

        def in_store(asked: Any) -> Any:
            return asyncio.run_coroutine_threadsafe(asked, loop).result()

        run = client.submit("auditor", {"pages": 5}, pull=True)
        assert client.send(run, 1) == 1
        in_store(work(store, 3, {"findings": 2}))
        assert client.result(run) == {"findings": 2}
        assert [event.seq for event in client.follow(run)] == list(range(6))
        for event in client.follow(run, after=2):
            assert event.seq == 3
            break
        assert client.get(run).status == "completed"
        other = client.submit("auditor")
        assert client.cancel(other).status == "cancelled"
        assert len(client.list()) == 2
        with pytest.raises(NotAccepted):
            client.get("run_x")
    with pytest.raises(RuntimeError, match="closed"):
        client.get("run_x")


def test_it_may_be_used_where_a_loop_runs_and_by_many_threads() -> None:
    store = MemoryStore()
    with served(store) as (server, _), Client(server.url) as client:

        async def inside() -> str:
            return client.submit("auditor", 1).id

        ids = [asyncio.run(inside())]
        threads = [threading.Thread(target=lambda n=n: ids.append(client.submit("auditor", n).id)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(ids)) == 9


def test_a_client_that_is_not_closed_does_not_keep_the_program() -> None:
    store = MemoryStore()
    with served(store) as (server, _):
        code = (
            f"from unjam.client import Client\nclient = Client('{server.url}')\nrun = client.submit('auditor')\n"
            "for event in client.follow(run):\n    print(event.type)\n    break\n"
            "events = client.follow(run)\nnext(events)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "run.created\n", "")


def test_it_loads_little() -> None:
    """Of others' packages msgspec alone; nothing of the gateway."""
    for module in ("unjam.client", "unjam.worker"):
        code = f"import sys, {module}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
        names = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        assert not {"pydantic", "typer", "rich", "yaml", "uvloop", "starlette", "structlog", "psutil"} & set(names)


# -------------------------------------------------------------------------------------------------------------- sse


STREAM = (
    b": hello\n\nid: 1\nevent: a\ndata: {\ndata: }\n\nid: 2\r\ndata:3\r\n\r\nevent: gap\rdata: 4\r\r"
    b"id: 5\nevent: none\n\nid: 6\ndata: \xc3\xa9\n\n"
)
MESSAGES = [
    Message("1", "a", "{\n}"), Message("2", "message", "3"), Message(None, "gap", "4"), Message("6", "message", "é"),
]  # fmt: skip


@pytest.mark.parametrize("size", [1, 2, 3, 7, len(STREAM)])
def test_events_are_read_over_any_splits(size: int) -> None:
    reader = Reader()
    found = [message for at in range(0, len(STREAM), size) for message in reader.feed(STREAM[at : at + size])]
    assert found == MESSAGES


def test_urls_and_keys_that_cannot_be_meant_are_refused() -> None:
    for urls in ("localhost:8080", "ftp://x", [], "http://user@host"):
        with pytest.raises(ValueError, match=r"."):
            Client(urls)
    with pytest.raises(ValueError, match="visible"):
        Client("http://h", key="a\r\nb")
    with pytest.raises(ValueError, match="certificates"):
        Client("https://h", ca=os.devnull + "/none")
    assert issubclass(Unavailable, ClientError)
