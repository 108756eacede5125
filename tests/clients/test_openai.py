"""The `openai` SDK as it comes, with two gateways on one Redis in processes of their own: what one of them began, the
other goes on with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from ..gateway.harness import Agent, Call, in_loop, until
from ..gateway.processes import served
from ..runs.redis_servers import Server
from .common import configure

WORDS = ["You ", "have ", "twelve ", "findings", "."]


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "redis", "appendonly yes").start()
    yield server
    server.kill()


class Talker:
    """An agent that streams one word for each time that it is told to."""

    def __init__(self) -> None:
        self.go = asyncio.Semaphore(0)
        self.left = asyncio.Event()

    async def __call__(self, call: Call) -> None:
        await call.start_events()
        watching = asyncio.create_task(self._watch(call))
        try:
            for word in WORDS:
                await self.go.acquire()
                await call.chunk(b'data: "%b"\n\n' % word.encode())
            await call.last_chunk()
        finally:
            watching.cancel()

    async def _watch(self, call: Call) -> None:
        while await call.reader.read(65536):
            pass
        self.left.set()

    def say(self, words: int = len(WORDS)) -> None:
        for _ in range(words):
            self.go.release()


@dataclass
class World:
    agent: Agent
    talker: Talker
    ports: list[int]
    one: openai.AsyncOpenAI
    other: openai.AsyncOpenAI


@asynccontextmanager
async def world(folder: Path, redis: Server) -> AsyncIterator[World]:
    talker = Talker()
    agent = await Agent(talker).start()
    configs = [
        configure(folder, state=redis.url(), agent=agent.url, execute="push", name=name) for name in ("one", "other")
    ]
    try:
        async with (
            served("--config", configs[0]) as (_, first),
            served("--config", configs[1]) as (_, second),
            openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{first}/v1", api_key="unused") as one,
            openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{second}/v1", api_key="unused") as other,
        ):
            yield World(agent, talker, [first, second], one, other)
    finally:
        await agent.stop()


def text(events: list[Any]) -> str:
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")


@in_loop
async def test_create_and_retrieve_until_it_is_there(tmp_path: Path, redis: Server) -> None:
    async with world(tmp_path, redis) as there:
        response = await there.one.responses.create(model="auditor", input="Audit this.", background=True)
        assert response.status == "queued"
        there.talker.say()
        async with asyncio.timeout(20):
            while response.status in {"queued", "in_progress"}:
                await asyncio.sleep(0.02)
                response = await there.other.responses.retrieve(response.id)
        assert (response.status, response.output_text) == ("completed", "".join(WORDS))
        assert len(there.agent.requests) == 1


@in_loop
async def test_follow_to_the_end(tmp_path: Path, redis: Server) -> None:
    async with world(tmp_path, redis) as there:
        stream = await there.one.responses.create(model="auditor", input="x", background=True, stream=True)
        there.talker.say()
        events = [event async for event in stream]
        assert [event.sequence_number for event in events] == list(range(len(events)))
        assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
        assert text(events) == "".join(WORDS)
        # And again from its beginning, at the other, by the helper that puts a response together.
        async with there.other.responses.stream(response_id=events[0].response.id) as again:
            assert [event.sequence_number async for event in again] == [event.sequence_number for event in events]
            assert (await again.get_final_response()).output_text == "".join(WORDS)


@in_loop
async def test_dropped_in_the_middle_it_goes_on_and_is_resumed_at_the_other_gateway(
    tmp_path: Path, redis: Server
) -> None:
    async with world(tmp_path, redis) as there:
        stream = await there.one.responses.create(model="auditor", input="x", background=True, stream=True)
        there.talker.say(2)
        seen: list[Any] = []
        async for event in stream:
            seen.append(event)
            if text(seen) == "You have ":
                break
        await stream.response.aclose()  # the connection is cut, not the run
        there.talker.say(1)
        resumed = await there.other.responses.retrieve(
            seen[0].response.id, stream=True, starting_after=seen[-1].sequence_number
        )
        async for event in resumed:
            seen.append(event)
            if text(seen) == "You have twelve ":
                break
        await resumed.response.aclose()
        assert not there.talker.left.is_set()
        there.talker.say(2)
        async with there.other.responses.stream(
            response_id=seen[0].response.id, starting_after=seen[-1].sequence_number
        ) as rest:
            seen += [event async for event in rest]
        assert [event.sequence_number for event in seen] == list(range(len(seen)))
        assert text(seen) == "".join(WORDS)
        assert seen[-1].response.output_text == "".join(WORDS)
        assert len(there.agent.requests) == 1


@in_loop
async def test_cancel_at_the_other_gateway_reaches_the_agent(tmp_path: Path, redis: Server) -> None:
    async with world(tmp_path, redis) as there:
        stream = await there.one.responses.create(model="auditor", input="x", background=True, stream=True)
        first = await anext(aiter(stream))
        await until(lambda: there.agent.requests)
        cancelled = await there.other.responses.cancel(first.response.id)
        assert cancelled.status == "cancelled"
        await asyncio.wait_for(there.talker.left.wait(), 20)
        rest = [event async for event in stream]
        assert [event.sequence_number for event in (first, *rest)] == list(range(1 + len(rest)))
        assert (rest[-1].type, rest[-1].response.status) == ("response.incomplete", "cancelled")
        assert (await there.one.responses.retrieve(first.response.id)).status == "cancelled"
