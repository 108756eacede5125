"""The Responses API over runs of agents that say odd things, at length, and over gateways that stop."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from unjam.gateway.story import Story, frame
from unjam.runs.model import Event, Run
from unjam.runs.store.memory import MemoryStore

from .durable import Api, runs_gateway
from .harness import Running, in_loop

RESPONSE = {"model": "auditor", "input": "x", "background": True}


async def created(api: Api) -> tuple[str, Any]:
    """A response and the claim of its run."""
    status, found = await api.call("POST", "/v1/responses", RESPONSE)
    assert status == 200
    return found["id"], await api.claim()


async def say(api: Api, claim: Any, batch: int, *data: bytes) -> None:
    events = b",".join(b'{"type":"delta","data":%b}' % each for each in data)
    body = b'{"fence":%d,"batch":%d,"events":[%b]}' % (claim["fence"], batch, events)
    status, answer = await api.call("POST", f"/v1/runs/{claim['run']['id']}/append", body)
    assert status == 200, answer


class Reader:
    """One stream, from its request on."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def of(cls, running: Running, response: str, after: int | None = None) -> Reader:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        start = "" if after is None else f"&starting_after={after}"
        writer.write(f"GET /v1/responses/{response}?stream=true{start} HTTP/1.1\r\nHost: t\r\n\r\n".encode())
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        return cls(reader, writer)

    async def until(self, mark: bytes) -> bytes:
        return await self.reader.readuntil(mark)

    async def rest(self) -> list[Any]:
        """The events until the stream's end."""
        events = []
        data = b""
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            data += (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readexactly(2)
        self.writer.close()
        for block in data.split(b"\n\n"):
            lines = [line for line in block.split(b"\n") if line.startswith(b"data: ")]
            events += [msgspec.json.decode(line[6:]) for line in lines]
        return events


@in_loop
async def test_a_number_that_is_none_here_is_told_as_text_and_the_stream_ends() -> None:
    """JSON has no largest number."""
    async with runs_gateway() as running:
        api = await Api.connect(running)
        response, claim = await created(api)
        stream = await Reader.of(running, response)
        await say(api, claim, 1, b"1e999", b'" and on"')
        await api.call(
            "POST", f"/v1/runs/{claim['run']['id']}/finish", b'{"fence":1,"status":"completed","result":[1e999]}'
        )
        events = await stream.rest()
        assert events[-1]["type"] == "response.completed"
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        _, found = await api.call("GET", f"/v1/responses/{response}")
        assert found["output"][0]["content"][0]["text"] == "1e999 and on"


@pytest.mark.parametrize(
    "data",
    [
        {"object": "chat.completion.chunk", "choices": 5, "usage": {"prompt_tokens": "many"}},
        {"object": "chat.completion.chunk", "choices": [{"delta": "text"}, 7, {"delta": {"content": 1}}]},
        {"type": "response.output_item.added", "output_index": "first", "item": 7},
        {"type": "response.completed", "response": {"object": "response", "output": 5}},
        {"type": "response.one\nid: 5\n\n"},
    ],
)
def test_what_is_not_as_it_should_be_is_passed_over(data: Any) -> None:
    story = Story("resp_1", 0.0, {})
    said = story.tell(Event(0, "delta", msgspec.json.encode(data), 0.0))
    frames = b"".join(map(frame, [*said, *story.end(b'{"object":"response","output":5}')]))
    assert frames.count(b"\n\n") == frames.count(b"event: ")
    assert b"\nid:" not in frames


class Gated(MemoryStore):
    """`get` waits while `gate` is cleared."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def get(self, run: str) -> Run:
        self.asked.set()
        await self.gate.wait()
        return await super().get(run)


@in_loop
async def test_a_stream_that_is_asked_for_as_a_drain_begins_does_not_hold_it_up() -> None:
    store = Gated()
    async with runs_gateway("drain_timeout: 60s\n", store=store) as running:
        api = await Api.connect(running)
        response, _ = await created(api)
        store.asked.clear()
        store.gate.clear()
        asking = asyncio.create_task(Reader.of(running, response))
        await store.asked.wait()
        draining = asyncio.create_task(running.server.drain())
        async with asyncio.timeout(5):
            while not running.gateway.draining:
                await asyncio.sleep(0.01)
            store.gate.set()
            assert await (await asking).rest() == []
            await draining
