"""Pushed runs when something around them is slow or fails: the others go on, and nothing is left behind."""

from __future__ import annotations

import asyncio
import tracemalloc
from typing import Any

import pytest

from tests.clocks import Awake
from tests.gateway.harness import Agent, Call, in_loop, until, until_gone
from tests.gateway.pushing import Faulty, error_of, one, pushing
from unjam.gateway import answers as words
from unjam.runs.machine import RUNNING


async def one_event(call: Call) -> None:
    await call.start_events()
    await call.chunk(b"data: 1\n\n")
    await call.last_chunk()


@in_loop
async def test_a_store_without_room_for_events_still_gets_signs_of_life() -> None:
    """What is shown and not yet written must not cost the run its worker, which is alive."""
    agent = await Agent(one_event).start()
    store = Faulty(monotonic=Awake())
    async with pushing(agent, config=one(agent), store=store, lease=0.6) as pushed:
        store.away = {"append", "finish"}
        run = await pushed.submit({})
        while store.calls["heartbeat"] < 6:  # over two leases
            assert await store.sweep() == []
            await asyncio.sleep(0.02)
        assert (await store.get(run.id)).status == RUNNING
        store.away = set()
        ended = await pushed.ended(run)
        assert (ended.status, ended.attempt) == ("completed", 1)
        assert await pushed.types(run) == ["run.created", "run.attempt", "message", "run.completed"]


def several(**services: tuple[Agent, int]) -> str:
    """A configuration of services, each with an agent that has so many slots."""
    lines = [
        f"  {name}:\n    match: {{path: /{name}}}\n"
        f'    versions: {{v1: {{endpoints: [{{url: "{agent.url}", slots: {slots}}}]}}}}'
        for name, (agent, slots) in services.items()
    ]
    return "services:\n" + "\n".join(lines) + "\n"


async def answers(call: Call) -> None:
    await call.answer(b"done")


@in_loop
async def test_a_slow_service_leaves_places_to_the_others() -> None:
    """However many of its runs came first."""
    slow, quick = await Agent(until_gone).start(), await Agent(answers).start()
    config = several(slow=(slow, 100), quick=(quick, 8))
    async with pushing(slow, quick, config=config, services=("slow", "quick"), most=8) as pushed:
        for _ in range(20):
            await pushed.submit({}, service="slow")
        await until(lambda: pushed.dispatcher.active == 4)
        for _ in range(10):
            assert (await pushed.ended(await pushed.submit({}, service="quick"))).status == "completed"
        assert pushed.dispatcher.active == 4


@in_loop
async def test_one_service_alone_has_all_places() -> None:
    slow = await Agent(until_gone).start()
    async with pushing(slow, config=one(slow, slots=100), most=8) as pushed:
        for _ in range(20):
            await pushed.submit({})
        await until(lambda: pushed.dispatcher.active == 8)


@in_loop
async def test_services_with_room_in_different_lanes_are_asked_for_in_turn() -> None:
    """One whose fast lane is crowded is another group of claims than one that has room in both."""
    slow, quick = await Agent(until_gone).start(), await Agent(answers).start()
    config = several(slow=(slow, 1), quick=(quick, 8))
    async with pushing(slow, quick, config=config, services=("slow", "quick"), most=64) as pushed:
        for _ in range(30):
            await pushed.submit({}, service="slow")
            await pushed.submit({}, service="slow", lane="heavy")
        runs = [await pushed.submit({}, service="quick") for _ in range(20)]
        for run in runs:
            assert (await pushed.ended(run)).status == "completed"


class Slow(Faulty):
    """Holds claims until they are let go; releasing takes a while."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()
        self.go = asyncio.Event()

    async def claim(self, *args: Any, **options: Any) -> Any:
        self.asked.set()
        await self.go.wait()
        return await super().claim(*args, **options)

    async def release(self, *args: Any, **options: Any) -> Any:
        self._call("release")
        await asyncio.sleep(0.05)
        return await super().release(*args, **options)


@in_loop
async def test_a_claim_that_is_answered_during_a_drain_leaves_no_lease() -> None:
    agent = await Agent(until_gone).start()
    store = Slow()
    store.away = {"release"}  # nor when the store is away at first
    async with pushing(agent, config=one(agent), store=store) as pushed:
        run = await pushed.submit({})
        await store.asked.wait()
        draining = asyncio.create_task(pushed.dispatcher.drain(5.0))
        await asyncio.sleep(0)
        store.go.set()
        await until(lambda: store.refused["release"] > 0)
        store.away = set()
        await draining
        await pushed.dispatcher.close()
        found = await store.get(run.id)
        assert (found.status, found.attempt) == ("queued", 0)
        assert pushed.dispatcher.handed_back == 1


@in_loop
async def test_an_input_that_can_not_be_sent_is_refused_although_the_store_is_away_at_first() -> None:
    agent = await Agent(until_gone).start()
    store = Faulty()
    async with pushing(agent, config=one(agent), store=store) as pushed:
        store.away = {"finish"}
        run = await pushed.submit(b'{"unjam.request":1,"method":"POST","path":"nowhere","headers":[]}')
        await until(lambda: store.refused["finish"] > 0)
        store.away = set()
        ended = await pushed.ended(run)
        assert error_of(ended)["code"] == "bad_input"


@in_loop
async def test_a_large_error_event_is_kept_in_part() -> None:
    async def complains(call: Call) -> None:
        await call.start_events()
        await call.chunk(b'event: error\ndata: {"trace": "' + b"x" * 100_000 + b'"}\n\n')
        await call.last_chunk()

    agent = await Agent(complains).start()
    async with pushing(agent, config=one(agent)) as pushed:
        error = error_of(await pushed.ended(await pushed.submit({})))
        assert error["code"] == "agent_error"
        assert error["data"].startswith('{"trace": "xxx')
        assert len(error["data"]) == 4096


def test_what_an_agent_answers_is_not_taken_apart() -> None:
    """A list of a million lists would be 60 times as large."""
    data = b"[" + b"[]," * 300_000 + b"[]]"
    answer = words.Answer(200, b"application/json", 1 << 24)
    answer.feed(data)
    tracemalloc.start()
    try:
        assert answer.read() == (data, None)
        assert tracemalloc.get_traced_memory()[1] < 3 * len(data)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "data", [b"{", b"[1,]", b'"\xff"', b'"\\ud800"', b"[" * 100_000, b"1 2", b"\xef\xbb\xbf1", b""]
)
def test_what_is_no_json_is_text(data: bytes) -> None:
    assert not words.is_json(data)


@pytest.mark.parametrize("data", [b"1e999", b' {"a": [1, "\xc3\xa9"]} ', b"null", b'"\\ud83d\\ude00"'])
def test_what_is_json_is_passed_on(data: bytes) -> None:
    assert words.is_json(data)
