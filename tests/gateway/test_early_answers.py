"""Answers that come before the request is there in full, and bytes that come after the answer is complete: whose they
are must never be in doubt."""

from __future__ import annotations

import asyncio
import socket

import pytest

from .harness import Agent, Call, Running, Wire, gateway, in_loop, until

EXPECTING = b"POST %b HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"


class Reluctant:
    """An endpoint in the kernel's hands: connections are accepted, and read from as far as a test says."""

    def __init__(self) -> None:
        self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen()
        self.listener.setblocking(False)
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.config = f"services: {{s: {{versions: {{v: {{endpoints: ['{self.url}']}}}}}}}}\n"
        self.accepted: list[socket.socket] = []

    async def accept(self) -> socket.socket:
        """The next connection, when the first bytes of its request have come."""
        loop = asyncio.get_running_loop()
        connection, _ = await loop.sock_accept(self.listener)
        self.accepted.append(connection)
        await loop.sock_recv(connection, 64)
        return connection

    def __enter__(self) -> Reluctant:
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self.listener, *self.accepted):
            each.close()


async def fill(gw: Running, wire: Wire, size: int) -> None:
    """Send so much of a body that some of it stays in the gateway: its endpoint does not read."""
    client = next(iter(gw.gateway.clients))
    await until(lambda: client.exchange is not None and client.exchange.upstream is not None)
    assert client.exchange is not None
    assert client.exchange.upstream is not None
    transport = client.exchange.upstream.transport
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    wire.writer.write(b"x" * size)
    await until(lambda: transport.get_write_buffer_size())


@in_loop
async def test_a_late_body_of_a_head_answer_reaches_nobody() -> None:
    late = asyncio.Event()
    forged = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nX-Forged: yes\r\n\r\nforged"

    async def careless(call: Call) -> None:
        if call.seen.method == "HEAD":
            await call.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(forged))
            await late.wait()
            await call.write(forged)
        else:
            await late.wait()
            await call.answer(b"real")

    async with gateway(Agent(careless)) as gw:
        one, other = await gw.connect(), await gw.connect()
        await one.send(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await one.answer("HEAD")).header("content-length") == str(len(forged))
        await other.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: gw.leases == 1)
        late.set()
        answer = await other.answer()
        assert (answer.status, answer.body, answer.header("x-forged")) == (200, b"real", None)
        assert (await one.get()).body == b"real"


@in_loop
async def test_connections_of_head_answers_without_a_length_are_kept() -> None:
    async def no_length(call: Call) -> None:
        await call.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async with gateway(agent := Agent(no_length)) as gw:
        wire = await gw.connect()
        for _ in range(3):
            await wire.send(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await wire.answer("HEAD")).status == 200
        assert agent.connections == 1


@in_loop
async def test_the_socket_of_an_endpoint_that_answers_early_and_reads_no_more_is_closed() -> None:
    with Reluctant() as endpoint:
        async with gateway(config=endpoint.config) as gw:
            wire = await gw.connect()
            await wire.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 50000000\r\n\r\n")
            connection = await endpoint.accept()
            await fill(gw, wire, 4_000_000)
            connection.sendall(b"HTTP/1.1 413 X\r\nContent-Length: 2\r\n\r\nno")
            assert (await wire.answer("POST")).status == 413
            wire.reset()
            upstream = gw.endpoint(endpoint.url).shell
            await until(lambda: not upstream.connections)
            await gw.settled()
            await until(lambda: not gw.gateway.descriptors)


@in_loop
async def test_a_connection_with_a_body_still_unsent_serves_nobody_else() -> None:
    """The whole body is with the gateway, the endpoint answers without having read it: the next request would wait
    behind what nobody reads."""
    with Reluctant() as endpoint:
        async with gateway(config=endpoint.config) as gw:
            wire = await gw.connect()
            await wire.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n")
            connection = await endpoint.accept()
            await fill(gw, wire, 60_000)
            client = next(iter(gw.gateway.clients))
            await until(lambda: client.exchange is not None and client.exchange.body_done)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            assert (await wire.answer("POST")).status == 200
            await wire.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            other = await asyncio.wait_for(endpoint.accept(), 20)
            other.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nnew")
            assert (await wire.answer()).body == b"new"


@pytest.mark.parametrize(("path", "status"), [("/healthz", 200), ("/readyz", 200), ("/nowhere", 404)])
@in_loop
async def test_what_follows_an_answer_of_ours_is_never_taken_for_the_body_it_did_not_wait_for(
    path: str, status: int
) -> None:
    """A client that expects 100 and gets the answer at once may leave its body out: so what comes next can't be told
    from a body, and the connection ends."""
    agent = await Agent().start()
    config = f"services: {{s: {{match: {{path: /s}}, versions: {{v: {{endpoints: ['{agent.url}']}}}}}}}}\n"
    async with gateway(agent, config=config) as gw:
        wire = await gw.connect()
        following = b"GET /s/wanted HTTP/1.1\r\nHost: x\r\n\r\n"
        await wire.send(EXPECTING % (path.encode(), len(following)))
        answer = await wire.answer("POST")
        assert (answer.status, answer.header("connection")) == (status, "close")
        await wire.send(following + b"GET /s/unwanted HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await wire.closed() == b""
        assert agent.requests == []


@in_loop
async def test_a_health_check_with_a_body_does_not_hand_it_on_as_a_request() -> None:
    async with gateway(agent := Agent()) as gw:
        wire = await gw.connect()
        inner = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
        await wire.send(b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(inner))
        assert (await wire.answer("POST")).status == 200
        await wire.send(inner)
        assert (await wire.get("/next")).status == 200
        assert [seen.target for seen in agent.requests] == ["/next"]


@in_loop
async def test_a_body_is_asked_for_whatever_the_lengths_before_it_were() -> None:
    async with gateway(Agent()) as gw:
        wire = await gw.connect()
        for length in (b"0", b"00", b"0", b"00"):
            await wire.send((EXPECTING % (b"/", 7)).replace(b"7", length))
            interim: list[int] = []
            assert (await wire.answer("POST", interim)).status == 200
            assert interim == []
        await wire.send(EXPECTING % (b"/", 5))
        assert await asyncio.wait_for(wire.reader.readuntil(b"\r\n\r\n"), 20) == b"HTTP/1.1 100 Continue\r\n\r\n"
        await wire.send(b"12345")
        assert (await wire.answer("POST")).status == 200
