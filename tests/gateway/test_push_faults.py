"""Pushed runs when something around them is slow or fails: the others go on, and nothing is left behind."""

from __future__ import annotations

import asyncio

from tests.gateway.harness import Agent, Call, in_loop
from tests.gateway.pushing import Faulty, one, pushing
from unjam.runs.machine import RUNNING


async def one_event(call: Call) -> None:
    await call.start_events()
    await call.chunk(b"data: 1\n\n")
    await call.last_chunk()


@in_loop
async def test_a_store_without_room_for_events_still_gets_signs_of_life() -> None:
    """What is shown and not yet written must not cost the run its worker, which is alive."""
    agent = await Agent(one_event).start()
    store = Faulty()
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
