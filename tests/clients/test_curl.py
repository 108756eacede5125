"""curl, as in the docs and in scripts: with a real gateway and a real worker or agent."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from ..gateway.harness import PATIENCE, Agent, in_loop, until_gone
from ..gateway.processes import served
from .common import configure, unjam, working

JSON = ("-H", "Content-Type: application/json")
STREAM = ("-H", "Accept: text/event-stream")


async def curl(*arguments: str) -> str:
    child = await asyncio.create_subprocess_exec(
        "curl", "-sS", "--noproxy", "*", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    said, complaints = await asyncio.wait_for(child.communicate(), PATIENCE)
    assert child.returncode == 0, complaints.decode()
    return said.decode()


@asynccontextmanager
async def streaming(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """`curl -N`, killed at the end if it still runs."""
    child = await asyncio.create_subprocess_exec(
        "curl", "-sSN", "--noproxy", "*", *arguments, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield child
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()
        child._transport.close()  # type: ignore[attr-defined]


async def frame(child: asyncio.subprocess.Process) -> dict[str, str] | None:
    """The next event as it stands in the stream; None at its end."""
    assert child.stdout is not None
    found: dict[str, str] = {}
    while line := (await asyncio.wait_for(child.stdout.readline(), PATIENCE)).decode():
        name, _, value = line.rstrip("\n").partition(": ")
        if name == "" and found:
            return found
        if name:
            found[name] = value
    return None


async def create(api: str, steps: int, *more: str) -> Any:
    return json.loads(
        await curl(f"{api}/runs", *JSON, *more, "-d", json.dumps({"service": "auditor", "input": {"steps": steps}}))
    )


@in_loop
async def test_create_and_wait_and_create_again_with_the_same_key(tmp_path: Path) -> None:
    async with unjam(tmp_path) as (_, port), working(tmp_path, port):
        api = f"http://127.0.0.1:{port}/v1"
        run = await create(api, 5, "-H", "Idempotency-Key: audit-17")
        held = json.loads(await curl(f"{api}/runs/{run['id']}?wait=20"))
        assert (held["status"], held["result"]) == ("completed", {"steps": 5})
        assert (await create(api, 5, "-H", "Idempotency-Key: audit-17"))["id"] == run["id"]


@in_loop
async def test_follow_to_the_end(tmp_path: Path) -> None:
    async with unjam(tmp_path) as (_, port), working(tmp_path, port):
        api = f"http://127.0.0.1:{port}/v1"
        run = await create(api, 5)
        async with streaming(f"{api}/runs/{run['id']}/events", *STREAM) as child:
            events = []
            while event := await frame(child):
                events.append(event)
            assert await child.wait() == 0
        assert [int(event["id"]) for event in events] == list(range(8))
        assert [event["event"] for event in events] == ["run.created", "run.attempt", *["step"] * 5, "run.completed"]
        assert [json.loads(event["data"]) for event in events[2:7]] == [{"n": n} for n in range(5)]


@in_loop
async def test_dropped_in_the_middle_and_resumed_with_last_event_id(tmp_path: Path) -> None:
    async with unjam(tmp_path) as (_, port), working(tmp_path, port):
        api = f"http://127.0.0.1:{port}/v1"
        run = await create(api, 40)
        seen: list[str] = []
        for stop in (9, 20, None):
            again = ("-H", f"Last-Event-ID: {seen[-1]}") if seen else ()
            async with streaming(f"{api}/runs/{run['id']}/events", *STREAM, *again) as child:
                while (event := await frame(child)) is not None:
                    seen.append(event["id"])
                    if len(seen) == stop:
                        child.kill()
                        break
        assert seen == [str(seq) for seq in range(43)]
        # The same without a stream, by page.
        status = await curl("-w", " %{http_code}", f"{api}/runs/{run['id']}/events?after=39&wait=5")
        batch = json.loads(status.removesuffix(" 200"))
        assert ([event["seq"] for event in batch["events"]], batch["ended"]) == ([40, 41, 42], True)


@in_loop
async def test_cancel_reaches_the_worker(tmp_path: Path) -> None:
    async with unjam(tmp_path) as (_, port), working(tmp_path, port) as worker:
        api = f"http://127.0.0.1:{port}/v1"
        run = await create(api, 100_000)
        async with streaming(f"{api}/runs/{run['id']}/events", *STREAM) as child:
            for _ in range(4):
                await frame(child)
            answer = json.loads(await curl("-X", "POST", f"{api}/runs/{run['id']}/cancel"))
            assert answer["cancel_requested"]
            await worker.says(f"stopped {run['id']} True")
            last = None
            while event := await frame(child):
                last = event["event"]
        assert last == "run.cancelled"
        assert json.loads(await curl(f"{api}/runs/{run['id']}?wait=5"))["status"] == "cancelled"


@in_loop
async def test_any_request_is_a_run_with_respond_async(tmp_path: Path) -> None:
    """Create, follow, drop, resume and cancel, of a request to an agent that knows nothing of runs."""
    agent = await Agent(until_gone).start()
    try:
        config = configure(tmp_path, agent=agent.url, execute="push")
        async with served("--config", config) as (_, port):
            url = f"http://127.0.0.1:{port}"
            said = await curl("-i", f"{url}/agents/auditor/report?deep=1", "-H", "Prefer: respond-async", "-d", "all")
            assert said.startswith("HTTP/1.1 202 ")
            assert "preference-applied: respond-async" in said.lower()
            location = re.search(r"(?im)^location: (\S+)", said)
            assert location is not None
            call = await asyncio.wait_for(agent.calls.get(), PATIENCE)
            assert (call.seen.target, call.seen.body) == ("/agents/auditor/report?deep=1", b"all")
            events = f"{url}{location.group(1)}/events"
            async with streaming(events, *STREAM) as child:
                first = await frame(child)
                child.kill()
            assert first is not None
            async with streaming(events, *STREAM, "-H", f"Last-Event-ID: {first['id']}") as child:
                second = await frame(child)
                assert second is not None
                await curl("-X", "POST", f"{url}{location.group(1)}/cancel")
                await asyncio.wait_for(call.gone.wait(), PATIENCE)
                third = await frame(child)
                assert third is not None
                assert await frame(child) is None
            got = [(event["id"], event["event"]) for event in (first, second, third)]
            assert got == [("0", "run.created"), ("1", "run.attempt"), ("2", "run.cancelled")]
    finally:
        await agent.stop()
