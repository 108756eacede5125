"""What a version's breaker is told of exchanges that end badly: callers can't make it trip by how they behave, and what
the agent has said of itself counts although nobody waited for the end."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable

import h11

from tests.gateway.harness import Agent, Call, Running, Wire, gateway, in_loop, until, until_gone
from unjam.core.model import Outcome
from unjam.wire import websocket

KEY = base64.b64encode(bytes(16))
HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: %b\r\n\r\n" % KEY
)
GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
HALF = b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 100\r\n\r\nhalf of it"
#: Enough to trip it, if they counted.
CALLS = 6


def config(agent: Agent, limits: str = "") -> str:
    lanes = f"    lanes: {{fast: {{{limits}}}, heavy: {{{limits}}}}}\n" if limits else ""
    return (
        f"services:\n  main:\n    match: {{path: /}}\n    breaker: {{open: 1h}}\n{lanes}"
        f"    versions: {{v: {{endpoints: ['{agent.url}']}}}}\n"
    )


def outcomes(gw: Running) -> dict[Outcome, int]:
    return {outcome: count for outcome, count in gw.gateway.balancer.services["main"].ended.items() if count}


def tripped(gw: Running) -> bool:
    return gw.gateway.balancer.services["main"].versions[0].breaker.state == "open"


async def opened(gw: Running, request: bytes) -> list[Wire]:
    wires = [await gw.connect() for _ in range(CALLS)]
    for wire in wires:
        await wire.send(request)
    return wires


async def all_ended(gw: Running) -> None:
    await until(lambda: sum(gw.gateway.balancer.services["main"].ended.values()) == CALLS)


async def tunnel(call: Call) -> None:
    await call.write(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Accept: %b\r\n\r\n" % websocket.accept_for(KEY)
    )
    await until_gone(call)


@in_loop
async def test_tunnels_that_are_silent_or_last_long_say_nothing_of_their_version() -> None:
    for limits in ("connect: 1s, first_byte: 1s, idle: 200ms", "connect: 1s, timeout: 1s"):
        agent = await Agent(tunnel).start()
        async with gateway(agent, config=config(agent, limits)) as gw:
            await opened(gw, HANDSHAKE)
            await all_ended(gw)
            assert (outcomes(gw), tripped(gw)) == ({Outcome.CANCELLED: CALLS}, False), limits


@in_loop
async def test_slow_readers_say_nothing_of_their_version() -> None:
    async def endless(call: Call) -> None:
        await call.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 100000000\r\n\r\n")
        while True:
            await call.write(bytes(1 << 20))

    agent = await Agent(endless).start()
    async with gateway(agent, config=config(agent, "connect: 1s, timeout: 1s")) as gw:
        wires = await opened(gw, GET)
        # They do read, only less than there is.
        for wire in wires:
            await wire.reader.readexactly(100)
        await all_ended(gw)
        assert (outcomes(gw), tripped(gw)) == ({Outcome.CANCELLED: CALLS}, False)


@in_loop
async def test_slow_senders_say_nothing_of_their_version() -> None:
    agent = await Agent().start()
    async with gateway(agent, config=config(agent, "connect: 1s, timeout: 1s")) as gw:
        wires = await opened(gw, HALF)
        assert [(await wire.answer("POST")).status for wire in wires] == [504] * CALLS
        await all_ended(gw)
        assert (outcomes(gw), tripped(gw)) == ({Outcome.CANCELLED: CALLS}, False)


class Impatient(Agent):
    """Hangs up on those that have not sent their request whole when it has had enough."""

    enough = asyncio.Event()

    async def _read(self, parser: h11.Connection, reader: asyncio.StreamReader) -> None:
        await reader.read(1)
        await self.enough.wait()


@in_loop
async def test_an_agent_that_gives_up_on_slow_senders_is_not_to_blame() -> None:
    agent = Impatient()
    agent.enough = asyncio.Event()
    await agent.start()
    async with gateway(agent, config=config(agent)) as gw:
        wires = await opened(gw, HALF)
        await until(lambda: agent.connections == CALLS)
        agent.enough.set()
        for wire in wires:
            answer = await wire.answer("POST")
            assert (answer.status, b"endpoint_lost" in answer.body) == (502, True)
        await all_ended(gw)
        assert (outcomes(gw), tripped(gw)) == ({Outcome.CANCELLED: CALLS}, False)


@in_loop
async def test_one_that_hangs_up_on_whole_requests_is() -> None:
    async def hangs_up(call: Call) -> None:
        call.abort()

    agent = await Agent(hangs_up).start()
    async with gateway(agent, config=config(agent)) as gw:
        for _ in range(5):
            assert (await (await gw.connect()).post()).status == 502
        await until(lambda: tripped(gw))


async def error_event(call: Call) -> None:
    await call.start_events()
    await call.chunk(b"event: error\ndata: {}\n\n")
    await until_gone(call)


async def verdict_event(call: Call) -> None:
    await call.start_events()
    await call.chunk(b'event: unjam.verdict\ndata: {"verdict": "bad"}\n\n')
    await until_gone(call)


async def verdict_header(call: Call) -> None:
    await call.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nx-unjam-verdict: bad\r\n\r\nhalf")
    await until_gone(call)


async def failing(call: Call) -> None:
    await call.write(b"HTTP/1.1 500 No\r\nContent-Length: 5\r\n\r\nhalf")
    await until_gone(call)


async def well(call: Call) -> None:
    await call.start_events()
    await call.chunk(b"data: half\n\n")
    await until_gone(call)


async def left_at_once(behaviour: Callable[[Call], Awaitable[None]], deadline: bytes = b"") -> dict[Outcome, int]:
    """The outcomes of calls whose callers go as soon as they have read what came, or when their deadline passes."""
    agent = await Agent(behaviour).start()
    async with gateway(agent, config=config(agent)) as gw:
        for wire in await opened(gw, GET[:-2] + deadline + b"\r\n"):
            data = b""
            while not data.endswith((b"half", b"\n\n\r\n")):
                more = await wire.reader.read(65536)
                assert more, data
                data += more
            if not deadline:
                wire.reset()
        await all_ended(gw)
        found = outcomes(gw)
        assert tripped(gw) is (Outcome.CANCELLED not in found)
        return found


@in_loop
async def test_a_failure_that_has_been_told_counts_though_its_caller_left() -> None:
    assert await left_at_once(error_event) == {Outcome.SERVER_ERROR: CALLS}
    assert await left_at_once(verdict_event) == {Outcome.REJECTED_QUALITY: CALLS}
    assert await left_at_once(verdict_header) == {Outcome.REJECTED_QUALITY: CALLS}
    assert await left_at_once(failing) == {Outcome.SERVER_ERROR: CALLS}
    assert await left_at_once(well) == {Outcome.CANCELLED: CALLS}


@in_loop
async def test_and_so_it_does_though_its_callers_deadline_passed() -> None:
    assert await left_at_once(error_event, b"x-unjam-deadline: 2\r\n") == {Outcome.SERVER_ERROR: CALLS}
    assert await left_at_once(well, b"x-unjam-deadline: 2\r\n") == {Outcome.CANCELLED: CALLS}
