"""Time limits through a real gateway: first byte, idle, total by lane, the caller's deadline, keep-alive."""

from __future__ import annotations

import asyncio
import socket

from .harness import PATIENCE, Agent, Call, Running, gateway, in_loop, until, until_gone

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def outcomes(gw: Running, heavy: bool = False) -> dict[str, int]:
    return {str(o): n for o, n in gw.gateway.stats.service("default").lane(heavy).outcomes.items() if n}


@in_loop
async def test_no_first_byte_in_time_is_504_and_the_endpoint_is_cancelled() -> None:
    async with gateway(agent := Agent(until_gone), lanes={"fast": {"first_byte": 0.2}}) as gw:
        wire = await gw.connect()
        answer = await wire.post()
        assert answer.status == 504
        assert b"first_byte_timeout" in answer.body
        call = await agent.calls.get()
        await asyncio.wait_for(call.gone.wait(), PATIENCE)
        assert outcomes(gw) == {"timeout": 1}
        assert len(agent.requests) == 1  # not tried again: it may be at work


@in_loop
async def test_silence_within_an_answer_is_a_cut() -> None:
    async def falls_silent(call: Call) -> None:
        await call.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
        await until_gone(call)

    async with gateway(agent := Agent(falls_silent), lanes={"fast": {"idle": 0.3}}) as gw:
        answer = await (await gw.connect()).get()
        assert (answer.body, answer.whole) == (b"half", False)
        call = await agent.calls.get()
        await asyncio.wait_for(call.gone.wait(), PATIENCE)
        assert outcomes(gw) == {"timeout": 1}


@in_loop
async def test_silence_within_a_stream_is_said_with_an_event() -> None:
    async def falls_silent(call: Call) -> None:
        await call.start_events()
        await call.chunk(b"data: 1\n\n")
        await until_gone(call)

    async with gateway(Agent(falls_silent), lanes={"fast": {"idle": 0.4}}, heartbeat=0.1) as gw:
        answer = await (await gw.connect()).get()
        assert answer.body.startswith(b"data: 1\n\n:\n\n")  # heartbeats don't count as the endpoint's
        assert b"event: error" in answer.body
        assert b"idle_timeout" in answer.body
        assert not answer.whole


@in_loop
async def test_steady_work_is_stopped_at_the_total_limit_of_its_lane() -> None:
    async def steady(call: Call) -> None:
        await call.start_events()
        while not call.writer.is_closing():
            await call.chunk(b"data: 1\n\n")
            await asyncio.sleep(0.02)

    lanes = {"fast": {"connect": 0.3, "timeout": 0.4, "up_to": 10}, "heavy": {"timeout": 60}}
    async with gateway(agent := Agent(steady), lanes=lanes) as gw:
        fast, heavy = await gw.connect(), await gw.connect()
        await heavy.send(b"GET / HTTP/1.1\r\nHost: x\r\nx-unjam-lane: heavy\r\n\r\n")
        await agent.calls.get()
        answer = await fast.get("/other")
        assert b"total_timeout" in answer.body
        assert not answer.whole
        assert outcomes(gw) == {"timeout": 1}
        assert gw.leases == 1  # the heavy one goes on
        heavy.reset()
        await gw.settled()
        assert outcomes(gw, heavy=True) == {"cancelled": 1}


@in_loop
async def test_the_callers_deadline_cuts_without_blaming_the_endpoint() -> None:
    async def by_path(call: Call) -> None:
        if call.seen.target == "/stream":
            await call.start_events()
            await call.chunk(b"data: 1\n\n")
        await until_gone(call)

    async with gateway(agent := Agent(by_path)) as gw:
        wire = await gw.connect()
        answer = await wire.get("/wait", "x-unjam-deadline: 0.3\r\n")
        assert answer.status == 504
        assert b"deadline" in answer.body
        answer = await wire.get("/stream", "x-unjam-deadline: 0.3\r\n")
        assert b"event: error" in answer.body
        assert not answer.whole
        await gw.settled()
        assert outcomes(gw) == {"cancelled": 2}
        assert gw.endpoint(agent.url).failures == 0


@in_loop
async def test_a_deadline_bounds_the_wait_in_the_queue() -> None:
    agent = await Agent(until_gone).start()
    config = f"services: {{default: {{versions: {{v: {{endpoints: [{{url: '{agent.url}', slots: 1}}]}}}}}}}}"
    async with gateway(agent, config=config) as gw:
        busy = await gw.connect()
        await busy.send(GET)
        await agent.calls.get()
        wire = await gw.connect()
        answer = await wire.get("/", "x-unjam-deadline: 0.3\r\n")
        assert answer.status == 504
        assert len(agent.requests) == 1
        assert gw.gateway.stats.service("default").sheds["deadline"] == 1


@in_loop
async def test_hints_that_say_nothing_are_400() -> None:
    async with gateway(agent := Agent()) as gw:
        wire = await gw.connect()
        for hint in ("x-unjam-deadline: soon", "x-unjam-deadline: -1", "x-unjam-deadline: nan", "x-unjam-lane: middle"):
            answer = await wire.get("/", hint + "\r\n")
            assert (answer.status, b"bad_hint" in answer.body) == (400, True), hint
        assert agent.requests == []


@in_loop
async def test_an_idle_connection_is_closed_and_a_busy_one_is_not() -> None:
    go = asyncio.Event()

    async def slow(call: Call) -> None:
        await go.wait()
        await call.answer()

    async with gateway(agent := Agent(slow), limits={"keepalive": 0.3}) as gw:
        busy = await gw.connect()
        await busy.send(GET)
        await agent.calls.get()
        idle = await gw.connect()
        assert await idle.closed() == b""
        closed = gw.gateway.now
        await until(lambda: gw.gateway.now > closed + 0.6)
        go.set()
        assert (await busy.answer()).status == 200
        assert await busy.closed() == b""


@in_loop
async def test_an_endpoint_that_does_not_read_a_long_body_is_timed_out() -> None:
    listener = socket.socket()  # its kernel accepts for it, and fills
    listener.bind(("127.0.0.1", 0))
    listener.listen(8)
    port = listener.getsockname()[1]
    config = (
        "limits: {body_timeout: 60s}\nservices: {default: {lanes: {fast: {first_byte: 500ms}}, "
        f"versions: {{v: {{endpoints: ['http://127.0.0.1:{port}']}}}}}}}}"
    )
    async with gateway(config=config) as gw:
        wire = await gw.connect()
        wire.writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n" + b"x" * 30_000_000)
        answer = await asyncio.wait_for(wire.answer("POST"), PATIENCE)
        assert answer.status == 504
        await gw.settled()
        assert outcomes(gw) == {"timeout": 1}
    listener.close()
