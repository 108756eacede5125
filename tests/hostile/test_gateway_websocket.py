"""Hostile input 41 to 43: WebSocket handshakes are judged before an endpoint is dialled, and tunnelled only after a
real 101."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Callable

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

from unjam.wire.websocket import accept_for

from ..gateway.harness import PATIENCE, Agent, Call, gateway, in_loop, until_gone

KEY = base64.b64encode(b"0123456789abcdef").decode()
OFFER = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Key": KEY,
    "Sec-WebSocket-Version": "13",
}


def handshake(start: str = "GET /ws HTTP/1.1", **changes: str | None) -> bytes:
    fields = {**OFFER, **{name.replace("_", "-"): value for name, value in changes.items()}}
    lines = [f"{name}: {value}" for name, value in fields.items() if value is not None]
    return "\r\n".join([start, "Host: x", *lines, "", ""]).encode()


ACCEPT = (
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Accept: " + accept_for(KEY.encode()) + b"\r\n\r\n"
)


async def reaches(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.002)


@in_loop
async def test_41_bad_handshakes_are_answered_without_dialling() -> None:
    async with gateway(agent := Agent()) as gw:
        for raw, status in [
            (handshake(Sec_WebSocket_Key="short"), 400),
            (handshake(Sec_WebSocket_Key="AAAAAAAAAAAAAAAAAAAAAB=="), 400),
            (handshake(Upgrade="h2c, websocket"), 400),
            (handshake(Upgrade=None), 400),
            (handshake(Connection="keep-alive"), 400),
            (handshake("POST /ws HTTP/1.1"), 400),
            (handshake("GET /ws HTTP/1.0"), 400),
            (handshake(Content_Length="5") + b"hello", 400),
            (handshake(Sec_WebSocket_Version=None), 400),
            (handshake(Sec_WebSocket_Version="8"), 426),
        ]:
            wire = await gw.connect()
            await wire.send(raw)
            answer = await wire.answer()
            assert (answer.status, answer.header("connection")) == (status, "close"), raw
            if status == 426:
                assert answer.header("sec-websocket-version") == "13"
        assert agent.connections == 0
        assert gw.leases == 0


@in_loop
async def test_42_origins_that_are_not_allowed_are_403() -> None:
    async with gateway(agent := Agent(until_gone), websocket={"origins": ["https://good.example"]}) as gw:
        wire = await gw.connect()
        await wire.send(handshake(Origin="https://evil.example"))
        assert (await wire.answer()).status == 403
        assert agent.connections == 0
        for origin in ("https://good.example", None):
            wire = await gw.connect()
            await wire.send(handshake(Origin=origin))
            await agent.calls.get()


@in_loop
async def test_43_early_bytes_wait_for_the_101() -> None:
    say = asyncio.Event()
    got = bytearray()

    async def slow(call: Call) -> None:
        await say.wait()
        assert not call.reader._buffer  # type: ignore[attr-defined]
        await call.write(ACCEPT + b"from-endpoint")
        while data := await call.reader.read(1024):
            got.extend(data)
            await call.write(data.upper())

    async with gateway(agent := Agent(slow)) as gw:
        wire = await gw.connect()
        await wire.send(handshake() + b"early-")
        await agent.calls.get()
        await wire.send(b"bytes")
        for _ in range(50):
            await asyncio.sleep(0.001)
        say.set()
        head = await wire.reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ")
        assert accept_for(KEY.encode()) in head
        assert await wire.reader.readexactly(24) == b"from-endpointEARLY-BYTES"
        assert bytes(got) == b"early-bytes"
        assert gw.gateway.stats.tunnels_open == 1
        wire.reset()
        await gw.settled()
        assert gw.gateway.stats.tunnels_open == 0


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        ACCEPT.replace(b"Accept: ", b"Accept: x"),
        ACCEPT.replace(b"Upgrade: websocket", b"Upgrade: h2c"),
        ACCEPT.replace(b"Connection: Upgrade\r\n", b""),
    ],
)
@in_loop
async def test_43_a_101_that_does_not_accept_is_502(answer: bytes) -> None:
    async def lies(call: Call) -> None:
        await call.write(answer + b"GET /smuggled HTTP/1.1\r\n\r\n")
        await until_gone(call)

    async with gateway(agent := Agent(lies)) as gw:
        wire = await gw.connect()
        await wire.send(handshake() + b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await wire.answer()).status == 502
        assert gw.gateway.stats.tunnels_open == 0
        await gw.settled()
        # What came early is a request of this client's own to us, if anything; no endpoint ever saw its bytes raw.
        assert all(seen.header("x-forwarded-for") for seen in agent.requests)


@in_loop
async def test_43_an_endpoint_that_does_not_switch_is_an_ordinary_answer() -> None:
    async def refuses(call: Call) -> None:
        await call.answer(b"no", status=403)

    async with gateway(Agent(refuses)) as gw:
        wire = await gw.connect()
        await wire.send(handshake())
        answer = await wire.answer()
        assert (answer.status, answer.body) == (403, b"no")
        assert (await wire.get()).status == 403


@in_loop
async def test_43_a_real_client_and_a_real_server_talk_through_the_tunnel() -> None:
    async def echo(connection: ServerConnection) -> None:
        async for message in connection:
            await connection.send(message)

    async with serve(echo, "127.0.0.1", 0, max_size=2**22) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        config = f"services: {{a: {{versions: {{v: {{endpoints: ['http://127.0.0.1:{port}']}}}}}}}}"
        async with gateway(config=config) as gw:
            url = f"ws://127.0.0.1:{gw.port}/ws"
            async with connect(url, max_size=2**22, proxy=None) as client, connect(url, proxy=None) as other:
                await client.send("hello")
                assert await client.recv() == "hello"
                large = os.urandom(2_000_000)
                await asyncio.gather(client.send(large), other.send("beside"))
                assert await client.recv() == large
                assert await other.recv() == "beside"
                assert await asyncio.wait_for(await client.ping(), PATIENCE) >= 0
                assert gw.gateway.stats.tunnels_open == 2
                await client.close(4001, "bye")
                assert client.close_code == 4001
            await gw.settled()
            assert gw.gateway.stats.tunnels_open == 0
            assert gw.gateway.stats.service("a").total == 2


@in_loop
async def test_43_what_a_client_says_last_reaches_the_endpoint() -> None:
    got = bytearray()
    ended = asyncio.Event()

    async def listens(call: Call) -> None:
        await call.write(ACCEPT)
        try:
            while data := await call.reader.read(65536):
                got.extend(data)
        finally:
            ended.set()

    async with gateway(Agent(listens)) as gw:
        wire = await gw.connect()
        await wire.send(handshake())
        await wire.reader.readuntil(b"\r\n\r\n")
        last = b"x" * 3_000_000 + b"the end"
        wire.writer.write(last)
        wire.writer.close()
        await asyncio.wait_for(ended.wait(), PATIENCE)
        assert bytes(got) == last
        await gw.settled()
