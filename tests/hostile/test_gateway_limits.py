"""Hostile input 24 to 30 through a real gateway: limits of size and time, the connection cap, and 100-continue."""

from __future__ import annotations

import asyncio
import socket

from unjam.gateway.server import Server

from ..gateway.harness import PATIENCE, Agent, Call, Running, Wire, gateway, in_loop, until_gone
from .gateway_driver import MARK, answers_in, hostile, request


async def reaches(condition: object) -> None:
    """Wait until `condition()` holds."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.005)


@in_loop
async def test_24_lines_heads_and_numbers_of_fields_over_their_limits() -> None:
    async with hostile() as target:
        long = request(start=b"GET /" + MARK + b"a" * 8192 + b" HTTP/1.1")
        await target.refuses(long, "request_line_too_long", 414)
        await target.refuses(request(b"X: " + b"a" * 8190), "field_too_long", 431)
        await target.refuses(request(*[b"X-%d: " % n + b"a" * 1000 for n in range(40)]), "head_too_large", 431)
        await target.refuses(request(*[b"X-%d: 1" % n for n in range(100)]), "too_many_fields", 431)


@in_loop
async def test_25_a_body_over_the_limit_is_refused_by_its_length_before_it_is_read() -> None:
    async with hostile(limits={"max_body": 1000}) as target:
        raw = request(b"Content-Length: 1001", start=b"POST /" + MARK + b" HTTP/1.1")
        await target.refuses(raw, "body_too_large", 413)
        assert target.agent.connections == 0
        await target.accepts(
            request(b"Content-Length: 1000", b"Connection: close", start=b"POST / HTTP/1.1", body=b"x" * 1000)
        )


@in_loop
async def test_25_a_chunked_body_is_refused_where_it_crosses_the_limit() -> None:
    async with hostile(limits={"max_body": 1000}) as target:
        head = request(b"Transfer-Encoding: chunked", start=b"POST / HTTP/1.1")
        await target.refuses(head + b"3e8\r\n" + b"x" * 1000 + b"\r\n1\r\n" + b"y\r\n0\r\n\r\n", "body_too_large", 413)
        assert target.agent.requests == []
        stats = target.running.gateway.stats.service("default")
        assert stats.total == stats.lane(False).outcomes["cancelled"] > 0  # the client's doing, not the endpoint's


@in_loop
async def test_26_a_slow_head_is_answered_408_at_an_absolute_deadline() -> None:
    async with gateway(agent := Agent(), limits={"header_timeout": 0.4}) as gw:
        wire = await gw.connect()
        raw = request(*[b"X-%d: 1" % n for n in range(90)])
        start = asyncio.get_running_loop().time()

        async def drip() -> None:
            try:
                for byte in raw:
                    await wire.send(bytes((byte,)))
                    await asyncio.sleep(0.02)
            except ConnectionError:
                pass

        dripping = asyncio.create_task(drip())
        answer = await wire.answer()
        elapsed = asyncio.get_running_loop().time() - start
        assert (answer.status, answer.header("connection")) == (408, "close")
        assert 0.35 < elapsed < len(raw) * 0.02, "it was answered for its end, which came at last"
        dripping.cancel()
        assert gw.gateway.stats.rejects == {"head_timeout": 1}
        assert agent.requests == []


@in_loop
async def test_27_a_slow_body_is_answered_408_and_the_endpoint_cancelled() -> None:
    agent = Agent()
    async with gateway(agent, limits={"body_timeout": 0.3}) as gw:
        wire = await gw.connect()
        await wire.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
        answer = await wire.answer("POST")
        assert (answer.status, answer.header("connection")) == (408, "close")
        lost = await asyncio.wait_for(agent.lost.get(), PATIENCE)
        assert lost.body == b"abc"
        await gw.settled()
        assert agent.requests == []
        assert gw.gateway.stats.rejects == {"body_timeout": 1}
        assert gw.gateway.stats.service("default").lane(False).outcomes["cancelled"] == 1


def unread(port: int, raw: bytes, buffer: int = 4096) -> socket.socket:
    """A client that asks and then reads nothing, with small buffers."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    sock.connect(("127.0.0.1", port))
    sock.sendall(raw)
    sock.setblocking(False)
    return sock


GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@in_loop
async def test_28_a_stalled_reader_is_dropped_alone_with_bounded_memory() -> None:
    sent = 0

    async def endless(call: Call) -> None:
        nonlocal sent
        if call.seen.target == "/quick":
            return await call.answer()
        await call.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            await call.chunk(b"x" * 16384)
            sent += 16384

    async with gateway(Agent(endless), limits={"stalled_timeout": 0.6}) as gw:
        sock = unread(gw.port, GET)
        other = await gw.connect()
        await reaches(lambda: any(client.write_paused for client in gw.gateway.clients))
        (client,) = [client for client in gw.gateway.clients if client.write_paused]
        at_pause = sent
        assert (await other.get("/quick")).status == 200
        most = 0
        while client in gw.gateway.clients:
            most = max(most, client.transport.get_write_buffer_size())
            await asyncio.sleep(0.01)
        assert most < 512 * 1024
        assert sent - at_pause < 16 * 2**20  # what fits between two sockets, not what an endpoint can make
        await gw.settled()
        assert (await other.get("/quick")).status == 200
        assert gw.gateway.stats.service("default").lane(False).outcomes["cancelled"] == 1
        assert gw.gateway.stats.service("default").lane(False).outcomes["timeout"] == 0
        sock.close()


@in_loop
async def test_28_a_reader_that_pauses_and_goes_on_gets_everything() -> None:
    body = bytes(range(256)) * 4096 * 8

    async def large(call: Call) -> None:
        await call.answer(body)

    async with gateway(agent := Agent(large)) as gw:
        sock = unread(gw.port, GET, 1 << 18)
        await reaches(lambda: any(client.write_paused for client in gw.gateway.clients))
        loop = asyncio.get_running_loop()
        got = b""
        while not got.endswith(body[-1024:]) or len(got) < len(body):
            got += await asyncio.wait_for(loop.sock_recv(sock, 1 << 20), PATIENCE)
        assert got.partition(b"\r\n\r\n")[2] == body
        await gw.settled()
        sock.close()
        # The endpoint's connection went back to the pool while its client was behind: it must still be readable.
        wire = await gw.connect()
        assert (await wire.get()).body == body
        assert agent.connections <= 2


@in_loop
async def test_28_a_connection_that_was_paused_at_its_last_byte_can_be_used_again() -> None:
    size = 1_000_000  # below what the sockets hold; the last read that no longer fits is met on the way up

    async def steps(call: Call) -> None:
        await call.answer(b"x" * (2 if call.seen.target == "/quick" else size))

    async with gateway(agent := Agent(steps)) as gw:
        quick = await gw.connect()
        paused_at_the_end = 0
        for _ in range(300):
            if paused_at_the_end == 3:
                break
            with unread(gw.port, GET.replace(b"/ ", b"/big ")) as sock:
                await agent.calls.get()
                await reaches(lambda: not gw.leases or any(c.write_paused for c in gw.gateway.clients))
                too_much = bool(gw.leases)
                if not too_much and any(c.write_paused for c in gw.gateway.clients):
                    paused_at_the_end += 1
                    assert (await asyncio.wait_for(quick.get("/quick"), PATIENCE)).body == b"xx"
                    await agent.calls.get()
                assert sock.fileno() > 0
            await gw.settled()
            # What the sockets hold differs from one connection to the next: around it, from both sides.
            size += -37_000 if too_much else 90_000
        assert paused_at_the_end == 3


@in_loop
async def test_28_a_client_that_pipelines_and_never_reads_is_bounded() -> None:
    async def large(call: Call) -> None:
        await call.answer(b"x" * 60_000)

    async with gateway(agent := Agent(large), limits={"stalled_timeout": 1.0}) as gw:
        sock = unread(gw.port, b"")
        loop = asyncio.get_running_loop()
        feeding = asyncio.create_task(loop.sock_sendall(sock, GET * 20_000))
        await reaches(lambda: any(client.write_paused for client in gw.gateway.clients))
        (client,) = gw.gateway.clients
        most = 0
        while client in gw.gateway.clients:
            most = max(most, client.transport.get_write_buffer_size())
            await asyncio.sleep(0.005)
        assert most < 512 * 1024
        feeding.cancel()
        sock.close()
        served = len(agent.requests)
        assert served < 2000
        await gw.settled()


@in_loop
async def test_28_a_client_that_pipelines_and_reads_late_gets_every_answer() -> None:
    async def large(call: Call) -> None:
        await call.answer(call.seen.target.encode().rjust(60_000, b"."))

    async with gateway(Agent(large)) as gw:
        sock = unread(gw.port, b"", 1 << 17)
        loop = asyncio.get_running_loop()
        sending = asyncio.create_task(
            loop.sock_sendall(sock, b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % n for n in range(300)))
        )
        await reaches(lambda: any(client.write_paused for client in gw.gateway.clients))
        got = bytearray()
        while b"./299" not in got[-10:]:
            got += await asyncio.wait_for(loop.sock_recv(sock, 1 << 20), PATIENCE)
        await sending
        assert answers_in(bytes(got)) == 300
        places = [got.index(b"./%dHTTP" % n if n < 299 else b"./299") for n in range(300)]
        assert places == sorted(places)
        sock.close()


@in_loop
async def test_28_an_endpoint_is_not_blamed_for_a_client_that_does_not_read() -> None:
    async def endless(call: Call) -> None:
        await call.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            await call.chunk(b"x" * 16384)

    async with gateway(Agent(endless), lanes={"fast": {"idle": 0.3}}, limits={"stalled_timeout": 1.0}) as gw:
        with unread(gw.port, GET):
            await reaches(lambda: gw.leases)
            await gw.settled()
        outcomes = gw.gateway.stats.service("default").lane(False).outcomes
        assert (outcomes["timeout"], outcomes["cancelled"]) == (0, 1)


@in_loop
async def test_29_over_the_connection_cap_503_while_admin_still_answers() -> None:
    agent = await Agent().start()
    async with gateway(
        agent,
        limits={"max_connections": 3},
        admin="127.0.0.1:0",
    ) as gw:
        wires = [await gw.connect() for _ in range(3)]
        for wire in wires:
            assert (await wire.get()).status == 200
        refused = await gw.connect()
        answer = await refused.answer()
        assert (answer.status, answer.header("connection")) == (503, "close")
        assert int(answer.header("retry-after") or 0) > 0
        assert gw.gateway.stats.connections_refused == 1
        await refused.closed()
        assert (await admin_get(gw.server, "/metrics")).startswith(b"HTTP/1.1 200")
        wires[0].reset()
        await reaches(lambda: gw.gateway.stats.connections_open == 2)
        assert (await (await gw.connect()).get()).status == 200


async def admin_get(server: Server, path: str) -> bytes:
    assert server.admin is not None
    reader, writer = await asyncio.open_connection("127.0.0.1", server.admin.port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{server.admin.port}\r\nConnection: close\r\n\r\n".encode())
    data = await reader.read()
    writer.close()
    return data


EXPECTS = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"


async def quiet(gw: Running, wire: Wire, turns: int = 50) -> None:
    """Nothing has come for the client after everything that could run has run."""
    for _ in range(turns):
        await asyncio.sleep(0.001)
    assert not wire.reader._buffer  # type: ignore[attr-defined]


@in_loop
async def test_30_continue_is_said_after_admission_and_not_forwarded() -> None:
    async with gateway(agent := Agent()) as gw:
        wire = await gw.connect()
        await wire.send(EXPECTS)
        assert await wire.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await wire.send(b"hello")
        assert (await wire.answer("POST")).status == 200
        assert agent.requests[0].body == b"hello"
        assert agent.requests[0].header("expect") is None
        assert (await wire.get()).status == 200


@in_loop
async def test_30_continue_waits_while_the_request_is_queued() -> None:
    release = asyncio.Event()

    async def first_waits(call: Call) -> None:
        if call.seen.method == "GET":
            await release.wait()
        await call.answer()

    agent = await Agent(first_waits).start()
    config = f"services: {{a: {{versions: {{v: {{endpoints: [{{url: '{agent.url}', slots: 1}}]}}}}}}}}"
    async with gateway(agent, config=config) as gw:
        busy = await gw.connect()
        await busy.send(GET)
        await agent.calls.get()
        wire = await gw.connect()
        await wire.send(EXPECTS)
        await reaches(lambda: sum(1 for client in gw.gateway.clients if client.exchange) == 2)
        await quiet(gw, wire)
        release.set()
        assert (await busy.answer()).status == 200
        assert await wire.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await wire.send(b"hello")
        assert (await wire.answer("POST")).status == 200


@in_loop
async def test_30_no_continue_for_what_is_refused() -> None:
    agent = await Agent(until_gone).start()
    config = (
        f"services: {{a: {{queue: off, versions: {{v: {{endpoints: [{{url: '{agent.url}', slots: 1}}]}}}}}}}}\n"
        "keys: [{hash: 'sha256:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b', tenant: t}]"
    )
    async with gateway(agent, config=config) as gw:
        wire = await gw.connect()
        await wire.send(EXPECTS)
        answer = await wire.answer("POST", interim := [])
        assert (answer.status, interim, answer.header("connection")) == (401, [], "close")
        assert await wire.closed() == b""
        key = b"x-api-key: secret\r\n\r\n"
        busy = await gw.connect()
        await busy.send(GET[:-2] + key)
        await agent.calls.get()
        wire = await gw.connect()
        await wire.send(EXPECTS[:-2] + key)
        answer = await wire.answer("POST", interim := [])
        assert (answer.status, interim, answer.header("connection")) == (503, [], "close")
        assert len(agent.requests) == 1


@in_loop
async def test_30_a_body_that_comes_unasked_gets_no_continue() -> None:
    async with gateway(Agent()) as gw:
        wire = await gw.connect()
        await wire.send(EXPECTS + b"hello")
        answer = await wire.answer("POST", interim := [])
        assert (answer.status, interim) == (200, [])
