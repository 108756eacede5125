"""What goes wrong with one client's request stays with that client.

A pipelined request is taken in where the answer before it ends: inside the end of an exchange, often inside the tick
that decides on many. A fault there must not take the others' time-outs, refusals and leases with it.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Any

import pytest

from unjam.config import parse

from .harness import Agent, Call, Running, gateway, in_loop, until, until_gone

FAULT = b"GET /fault HTTP/1.1\r\nHost: x\r\n\r\n"
GET = b"GET /victim HTTP/1.1\r\nHost: x\r\n\r\n"


class Fault(Exception):
    """What no code of ours expects."""


def plant(gw: Running) -> None:
    """From now on the gateway fails at requests for /fault."""
    route = gw.gateway.route

    def failing(client: Any, head: Any, now: float) -> Any:
        if head.path == "/fault":
            raise Fault
        return route(client, head, now)

    gw.gateway.route = failing  # type: ignore[method-assign]


def one_slot(*agents: Agent, more: str = "") -> str:
    """All but the first have ten slots."""
    endpoints = ", ".join(f"{{url: '{agent.url}', slots: {10 if index else 1}}}" for index, agent in enumerate(agents))
    return (
        "listen: 127.0.0.1:0\nadmin: off\naccess_log: off\n"
        f"services: {{s: {{inspect: body, {more} versions: {{v: {{endpoints: [{endpoints}]}}}}}}}}\n"
    )


def inspecting(agent: Agent) -> str:
    return f"services: {{s: {{inspect: body, versions: {{v: {{endpoints: ['{agent.url}']}}}}}}}}\n"


def post(body: bytes) -> bytes:
    return b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"\xff"}',
        b'{"a":' + b"[" * 20_000,
        b"[" * 20_000,
        b'{"model":"\\ud800"}',
        b'{"max_tokens":' + b"9" * 300 + b"}",
        b'{"max_tokens":1e400}',
    ],
    ids=["not utf-8", "deep", "deep at once", "half a pair", "many digits", "beyond floats"],
)
@in_loop
async def test_a_body_that_cannot_be_read_is_the_endpoints_to_judge(body: bytes) -> None:
    agent = await Agent().start()
    async with gateway(agent, config=inspecting(agent)) as gw:
        wire = await gw.connect()
        await wire.send(GET + post(body) + GET)
        assert [(await wire.answer()).status for _ in range(3)] == [200, 200, 200]
        assert [seen.body for seen in agent.requests] == [b"", body, b""]


@pytest.mark.parametrize(
    ("hint", "status"),
    [
        ("x-unjam-deadline: 1e308", 400),
        ("x-unjam-expected-seconds: 1e308", 400),
        ("request-timeout: 1e308", 200),  # another library's field: passed over
        ("x-unjam-expected-seconds: 5e-324", 200),
    ],
)
@in_loop
async def test_numbers_at_the_edge_of_floats_get_an_answer(hint: str, status: int) -> None:
    async with gateway(Agent()) as gw:
        wire = await gw.connect()
        await wire.send(GET + f"GET / HTTP/1.1\r\nHost: x\r\n{hint}\r\n\r\n".encode() + GET)
        assert [(await wire.answer()).status for _ in range(3)] == [200, status, 200]


@in_loop
async def test_a_fault_ends_its_clients_connection_and_nothing_else() -> None:
    async with gateway(agent := Agent()) as gw:
        plant(gw)
        faulty, other = await gw.connect(), await gw.connect()
        await faulty.send(GET + FAULT + GET)
        await faulty.closed()
        assert (await other.get()).status == 200
        await gw.settled()
        await until(lambda: len(gw.gateway.clients) == 1)
        assert len(agent.requests) == 2


@in_loop
async def test_time_outs_of_the_same_tick_go_on() -> None:
    async with gateway(agent := Agent(until_gone)) as gw:
        plant(gw)
        faulty = await gw.connect()
        victims = [await gw.connect() for _ in range(8)]
        hurried = b"GET / HTTP/1.1\r\nHost: x\r\nx-unjam-deadline: 0.3\r\n\r\n"
        await faulty.send(hurried + FAULT)
        await agent.calls.get()  # the first to be looked at
        for victim in victims:
            await victim.send(hurried)
        for victim in victims:
            assert (await victim.answer()).status == 504
        await faulty.closed()
        await gw.settled()


@in_loop
async def test_refusals_of_the_same_tick_go_on() -> None:
    agent = await Agent(until_gone).start()
    async with gateway(agent, config=one_slot(agent, more="queue: {timeout: 300ms},")) as gw:
        plant(gw)
        holder, faulty = await gw.connect(), await gw.connect()
        victims = [await gw.connect() for _ in range(8)]
        await holder.send(GET)
        await agent.calls.get()
        service = gw.gateway.balancer.services["s"]
        await faulty.send(GET + FAULT)
        await until(lambda: service.waiting.count == 1)
        for victim in victims:
            await victim.send(GET)
        for victim in victims:
            assert (await victim.answer()).status == 503
        await faulty.closed()
        assert service.waiting.count == 0
        holder.reset()
        await gw.settled()


@in_loop
async def test_leases_of_the_same_tick_go_on() -> None:
    busy, free = await Agent(until_gone).start(), await Agent().start()
    current = one_slot(busy)
    async with gateway(busy, free, config=current, reload=lambda: parse(current, {})) as gw:
        plant(gw)
        holder, faulty = await gw.connect(), await gw.connect()
        victims = [await gw.connect() for _ in range(5)]
        await holder.send(GET)
        await busy.calls.get()
        assert gw.server._ticker is not None
        gw.server._ticker.cancel()  # until all that one tick is to decide has come together
        service = gw.gateway.balancer.services["s"]
        await faulty.send(b"GET / HTTP/1.1\r\nHost: x\r\nx-unjam-deadline: 0.05\r\n\r\n" + FAULT)
        for victim in victims:
            await victim.send(GET)
        await until(lambda: service.waiting.count == 6)
        passed = monotonic() + 0.05
        current = one_slot(busy, free)
        assert await gw.server.reload() == []
        await until(lambda: monotonic() > passed)
        gw.server._tick()  # refuses the one, sends the others on
        for victim in victims:
            assert (await victim.answer()).status == 200
        await faulty.closed()
        holder.reset()
        await gw.settled()
        assert gw.endpoint(free.url).inflight == 0


@in_loop
async def test_who_waited_for_a_slot_gets_it_when_its_holder_ends_in_a_fault() -> None:
    go = asyncio.Event()

    async def waits(call: Call) -> None:
        await go.wait()
        await call.answer()

    agent = await Agent(waits).start()
    async with gateway(agent, config=one_slot(agent)) as gw:
        plant(gw)
        holder, waiting = await gw.connect(), await gw.connect()
        await holder.send(GET + FAULT)
        await agent.calls.get()
        await waiting.send(GET)
        await until(lambda: gw.gateway.balancer.services["s"].waiting.count == 1)
        go.set()
        assert (await waiting.answer()).status == 200
        await holder.closed()
        await gw.settled()
