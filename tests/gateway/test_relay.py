"""What goes in at one side comes out at the other, whole, in order, and cut honestly when it can't."""

from __future__ import annotations

import asyncio

from .harness import Agent, Call, gateway, in_loop, until_gone


@in_loop
async def test_a_request_reaches_the_endpoint_and_its_answer_the_client() -> None:
    agent = Agent()
    async with gateway(agent) as gw:
        wire = await gw.connect()
        answer = await wire.post("/a/b?c=d", b'{"x": 1}', "X-Thing: 7\r\n")
        assert (answer.status, answer.body, answer.whole) == (200, b"ok", True)
        (seen,) = agent.requests
        assert (seen.method, seen.target, seen.body) == ("POST", "/a/b?c=d", b'{"x": 1}')
        assert seen.header("x-thing") == "7"
        assert seen.header("host") == f"127.0.0.1:{agent.port}"
        assert seen.header("x-forwarded-host") == "test"
        assert seen.header("x-forwarded-for") == "127.0.0.1"
        assert answer.header("x-unjam-endpoint") == agent.url
        assert answer.header("x-unjam-lane") == "fast"
        assert answer.header("x-request-id") == seen.header("x-request-id")
        assert gw.leases == 0


@in_loop
async def test_both_connections_are_kept_and_used_again() -> None:
    agent = Agent()
    async with gateway(agent) as gw:
        wire = await gw.connect()
        for _ in range(5):
            assert (await wire.get()).status == 200
        assert agent.connections == 1
        assert gw.gateway.stats.connections_total == 1
        assert gw.gateway.stats.upstream_reuses == 4


@in_loop
async def test_pipelined_requests_are_answered_in_order() -> None:
    async def echo(call: Call) -> None:
        await call.answer(call.seen.target.encode())

    async with gateway(Agent(echo), Agent(echo)) as gw:
        wire = await gw.connect()
        await wire.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % n for n in range(20)))
        for n in range(20):
            assert (await wire.answer()).body == b"/%d" % n


@in_loop
async def test_a_chunked_body_is_streamed_both_ways() -> None:
    async def echo(call: Call) -> None:
        await call.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for at in range(0, len(call.seen.body), 7):
            await call.chunk(call.seen.body[at : at + 7])
        await call.last_chunk()

    async with gateway(agent := Agent(echo)) as gw:
        wire = await gw.connect()
        await wire.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        await wire.send(b"5\r\nhello\r\n")
        await wire.send(b"6\r\n world\r\n0\r\n\r\n")
        answer = await wire.answer("POST")
        assert (answer.body, answer.whole) == (b"hello world", True)
        assert agent.requests[0].header("transfer-encoding") == "chunked"
        assert (await wire.get()).status == 200


@in_loop
async def test_a_large_body_passes_through_in_both_directions() -> None:
    async def echo(call: Call) -> None:
        await call.answer(call.seen.body)

    body = bytes(range(256)) * 4096 * 8
    async with gateway(Agent(echo)) as gw:
        wire = await gw.connect()
        answer, _ = await asyncio.gather(
            wire.answer("POST"),
            wire.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body),
        )
        assert answer.whole
        assert answer.body == body


@in_loop
async def test_an_answer_that_ends_with_the_connection_is_whole() -> None:
    async def until_close(call: Call) -> None:
        await call.write(b"HTTP/1.1 200 OK\r\n\r\nsome text")
        call.writer.close()

    async with gateway(Agent(until_close)) as gw:
        wire = await gw.connect()
        answer = await wire.get()
        assert (answer.body, answer.whole) == (b"some text", True)
        assert (await wire.get()).whole  # and the client's connection goes on


@in_loop
async def test_head_and_304_carry_a_length_without_a_body() -> None:
    async def not_modified(call: Call) -> None:
        if call.seen.method == "HEAD":
            await call.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n")
        else:
            await call.write(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n")

    async with gateway(Agent(not_modified)) as gw:
        wire = await gw.connect()
        await wire.send(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = await wire.answer("HEAD")
        assert (answer.status, answer.header("content-length"), answer.body) == (200, "1234", b"")
        assert (await wire.get()).status == 304


@in_loop
async def test_an_endpoint_that_dies_in_a_body_leaves_no_clean_end() -> None:
    async def dies(call: Call) -> None:
        await call.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        call.abort()

    async with gateway(Agent(dies)) as gw:
        wire = await gw.connect()
        answer = await wire.get()
        assert (answer.body, answer.whole) == (b"half", False)
        await gw.settled()
        stats = gw.gateway.stats.service("default")
        assert stats.lane(False).outcomes["truncated"] == 1


@in_loop
async def test_an_endpoint_that_dies_in_a_stream_leaves_an_error_event_and_no_last_chunk() -> None:
    async def dies(call: Call) -> None:
        await call.start_events()
        await call.chunk(b"data: one\n\n")
        call.abort()

    async with gateway(Agent(dies)) as gw:
        wire = await gw.connect()
        answer = await wire.get()
        assert answer.body.startswith(b"data: one\n\nevent: error\ndata: ")
        assert b"endpoint_lost" in answer.body
        assert not answer.whole
        assert gw.leases == 0


@in_loop
async def test_a_silent_stream_is_kept_alive_by_comments_between_events() -> None:
    more = asyncio.Event()

    async def slow(call: Call) -> None:
        await call.start_events()
        await call.chunk(b"data: one\n\ndata: ha")
        await more.wait()
        await call.chunk(b"lf\n\n")
        await until_gone(call)

    async with gateway(Agent(slow), heartbeat=0.1) as gw:
        wire = await gw.connect()
        await wire.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        head = await wire.reader.readuntil(b"data: ha\r\n")
        assert head.endswith(b"13\r\ndata: one\n\ndata: ha\r\n")
        before = gw.gateway.now
        async with asyncio.timeout(20):
            while gw.gateway.now < before + 0.5:  # five heartbeats' time in the middle of an event: none is sent
                await asyncio.sleep(0.01)
        more.set()
        rest = await wire.reader.readuntil(b"lf\n\n\r\n")
        assert b":\n" not in rest
        assert await wire.reader.readuntil(b"\n\n\r\n") == b"3\r\n:\n\n\r\n"


@in_loop
async def test_a_client_that_leaves_frees_the_slot_and_tells_the_endpoint() -> None:
    agent = Agent(until_gone)
    async with gateway(agent) as gw:
        wire = await gw.connect()
        await wire.send(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        call = await agent.calls.get()
        assert gw.leases == 1
        wire.reset()
        await call.gone.wait()
        await gw.settled()
        assert gw.gateway.stats.service("default").lane(False).outcomes["cancelled"] == 1
