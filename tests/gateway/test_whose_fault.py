"""What a version's breaker is told of exchanges that end badly: callers can't make it trip by how they behave, and what
the agent has said of itself counts although nobody waited for the end."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from time import monotonic

import h11

from tests.gateway.harness import Agent, Call, Running, Wire, gateway, in_loop, until, until_gone
from unjam.core.model import Outcome
from unjam.wire import websocket

KEY = base64.b64encode(bytes(16))
HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: %b\r\n\r\n" % KEY
)
ACCEPTS = (
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Accept: %b\r\n\r\n" % websocket.accept_for(KEY)
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
    await call.write(ACCEPTS)
    await until_gone(call)


@in_loop
async def test_tunnels_that_are_silent_or_last_long_say_nothing_of_their_version() -> None:
    for limits in ("connect: 1s, idle: 200ms", "connect: 1s, timeout: 1s"):
        agent = await Agent(tunnel).start()
        async with gateway(agent, config=config(agent, limits)) as gw:
            await opened(gw, HANDSHAKE)
            await all_ended(gw)
            assert (outcomes(gw), tripped(gw)) == ({Outcome.CANCELLED: CALLS}, False), limits


@in_loop
async def test_a_tunnel_that_ends_before_anybody_has_said_a_word_is_broken() -> None:
    for says, hears, outcome in (
        (b"", b"", Outcome.TRUNCATED),
        (b"\x88\x00", b"", Outcome.OK),
        (b"", b"?", Outcome.OK),
    ):

        async def hangs_up(call: Call, says: bytes = says, hears: bytes = hears) -> None:
            await call.write(ACCEPTS + says)
            await call.reader.readexactly(len(hears))
            call.abort()

        agent = await Agent(hangs_up).start()
        async with gateway(agent, config=config(agent)) as gw:
            for wire in await opened(gw, HANDSHAKE):
                await wire.reader.readuntil(b"\r\n\r\n")
                await wire.send(hears)
                await wire.closed()
            await all_ended(gw)
            assert (outcomes(gw), tripped(gw)) == ({outcome: CALLS}, outcome is Outcome.TRUNCATED)


@in_loop
async def test_slow_readers_say_nothing_of_their_version() -> None:
    async def endless(call: Call) -> None:
        await call.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 100000000\r\n\r\n")
        while True:
            await call.write(bytes(1 << 20))

    agent = await Agent(endless).start()
    async with gateway(agent, config=config(agent, "connect: 1s, timeout: 3s")) as gw:
        wires = await opened(gw, GET)
        # They do read, only less than there is.
        for wire in wires:
            await wire.reader.readexactly(100)
        await all_ended(gw)
        assert (outcomes(gw), tripped(gw)) == ({Outcome.CANCELLED: CALLS}, False)


@in_loop
async def test_an_agent_that_gives_up_on_slow_readers_is_not_to_blame() -> None:
    enough, full = asyncio.Event(), asyncio.Event()

    async def gives_up(call: Call) -> None:
        await call.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 100000000\r\n\r\n")
        call.writer.write(bytes(100 << 10))
        while call.writer.transport.get_write_buffer_size() < 1 << 16:
            call.writer.write(bytes(1 << 20))
            await asyncio.sleep(0.01)
        full.set()
        await enough.wait()
        call.abort()

    agent = await Agent(gives_up).start()
    async with gateway(agent, config=config(agent)) as gw:
        wire = await gw.connect()
        began = monotonic()
        await wire.send(GET)
        await full.wait()
        await until(lambda: any(client.write_paused for client in gw.gateway.clients))
        await asyncio.sleep(1.0 + 3 * (monotonic() - began))  # most of the time that it lasts
        enough.set()
        assert len(await wire.closed()) > 100 << 10
        await gw.settled()
        assert (outcomes(gw), tripped(gw)) == ({Outcome.CANCELLED: 1}, False)


@in_loop
async def test_an_agent_that_breaks_off_is_whoever_reads() -> None:
    async def breaks_off(call: Call) -> None:
        await call.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 100000000\r\n\r\n")
        await call.write(bytes(1 << 20))
        call.abort()

    agent = await Agent(breaks_off).start()
    async with gateway(agent, config=config(agent)) as gw:
        await asyncio.gather(*(wire.closed() for wire in await opened(gw, GET)))
        await all_ended(gw)
        assert (outcomes(gw), tripped(gw)) == ({Outcome.TRUNCATED: CALLS}, True)


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


async def asked(behaviour: Callable[[Call], Awaitable[None]], *methods: str, service: str = "") -> dict[Outcome, int]:
    """The outcomes of five requests."""
    agent = await Agent(behaviour).start()
    text = config(agent).replace("    breaker:", f"{service}    breaker:")
    async with gateway(agent, config=text) as gw:
        wire = await gw.connect()
        for n in range(5):
            method = methods[n % len(methods)]
            await wire.send(f"{method} / HTTP/1.1\r\nHost: test\r\n\r\n".encode())
            assert (await wire.answer(method)).whole
        await gw.settled()
        found = outcomes(gw)
        assert tripped(gw) is (found == {Outcome.SERVER_ERROR: 5})
        return found


@in_loop
async def test_methods_that_an_agent_does_not_know_are_the_callers_choice() -> None:
    async def unknown(call: Call) -> None:
        await call.answer(b"", status=501)

    assert await asked(unknown, "OPTIONS", "PROPFIND", "DELETE") == {Outcome.CLIENT_ERROR: 5}
    # These are known to everybody: here it says something else.
    assert await asked(unknown, "GET", "POST") == {Outcome.SERVER_ERROR: 5}


def events(data: bytes, in_pieces: bool) -> Callable[[Call], Awaitable[None]]:
    """A stream of events that has a length."""

    async def stream(call: Call) -> None:
        await call.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n" % len(data)
        )
        if in_pieces:
            await call.write(data[:9])
            await asyncio.sleep(0.02)
        await call.write(data[9 if in_pieces else 0 :])

    return stream


@in_loop
async def test_an_error_event_counts_in_a_stream_whose_length_is_told() -> None:
    for in_pieces in (False, True):
        assert await asked(events(b"event: error\ndata: {}\n\n", in_pieces), "GET") == {Outcome.SERVER_ERROR: 5}
        assert await asked(events(b"event: other\ndata: {}\n\n", in_pieces), "GET") == {Outcome.OK: 5}


@in_loop
async def test_nothing_of_ours_gets_into_a_stream_whose_length_is_told() -> None:
    async def stalls(call: Call) -> None:
        await call.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 99\r\n\r\ndata: 1\n\n")
        await until_gone(call)

    agent = await Agent(stalls).start()
    async with gateway(agent, config="heartbeat: 100ms\n" + config(agent, "connect: 1s, idle: 500ms")) as gw:
        wire = await gw.connect()
        await wire.send(GET)
        assert (await wire.closed()).endswith(b"\r\n\r\ndata: 1\n\n")
        await gw.settled()
        assert outcomes(gw) == {Outcome.TIMEOUT: 1}


@in_loop
async def test_openais_way_of_saying_that_a_stream_went_wrong() -> None:
    openai = "    dialect: openai\n"
    said = b'data: {"error": {"message": "no memory is left", "code": 500}}\n\ndata: [DONE]\n\n'
    for data in (said, said.replace(b": ", b":"), said.replace(b"500", b"null")):
        assert await asked(events(data, False), "GET", service=openai) == {Outcome.SERVER_ERROR: 5}, data
    for data in (said.replace(b"500", b"400"), said.replace(b"500", b'"429"'), b'data: {"error": null}\n\n'):
        assert await asked(events(data, False), "GET", service=openai) == {Outcome.OK: 5}, data
    # Elsewhere it may be what the agent talks about.
    assert await asked(events(said, False), "GET") == {Outcome.OK: 5}
