"""How connections end: last answers reach slow readers, last words reach endpoints, and what was broken off does not
look complete."""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import closing
from pathlib import Path
from time import monotonic

import pytest

from unjam.gateway.client import CLOSED
from unjam.gateway.timers import TICK
from unjam.wire.websocket import accept_for

from .harness import Agent, Call, gateway, in_loop, until
from .test_process import certificate


def behind(agent: Agent, limits: str = "", listen: str = "127.0.0.1:0", path: str = "/") -> str:
    return (
        f"listen: {listen}\nlimits: {{{limits}}}\n"
        f"services: {{s: {{match: {{path: {path}}}, versions: {{v: {{endpoints: ['{agent.url}']}}}}}}}}\n"
    )


@in_loop
async def test_the_last_answer_is_not_cut_by_a_look_that_was_planned_before_it() -> None:
    body = b"x" * 100_000
    go = asyncio.Event()

    async def waits(call: Call) -> None:
        await go.wait()
        await call.answer(body)

    agent = await Agent(waits).start()
    async with gateway(agent, config=behind(agent, "header_timeout: 500ms")) as gw:
        loop = asyncio.get_running_loop()
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.setblocking(False)
            await loop.sock_connect(slow, ("127.0.0.1", gw.port))
            await loop.sock_sendall(slow, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            await agent.calls.get()
            client = next(iter(gw.gateway.clients))
            client.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            go.set()
            await until(lambda: client.mode == CLOSED)
            planned = client.due
            assert planned < monotonic() + 0.5
            assert client.transport.get_write_buffer_size()
            await until(lambda: gw.gateway.now > planned + 2 * TICK)
            got = b""
            while data := await loop.sock_recv(slow, 65536):
                got += data
            assert got.endswith(b"\r\n\r\n" + body)


@in_loop
async def test_the_last_words_of_a_tunnel_reach_the_endpoint() -> None:
    words = b"z" * 60_000
    go = asyncio.Event()
    heard: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        key = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key"))
        writer.write(
            b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %b\r\n\r\n"
            % accept_for(key.partition(b": ")[2])
        )
        await go.wait()
        data = b""
        try:
            while more := await reader.read(65536):
                data += more
        except ConnectionError:
            pass
        heard.set_result(data)
        writer.close()

    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    listener.bind(("127.0.0.1", 0))
    endpoint = await asyncio.start_server(serve, sock=listener, limit=2048)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    config = f"services: {{s: {{versions: {{v: {{endpoints: ['{url}']}}}}}}}}\n"
    with closing(endpoint):
        async with gateway(config=config) as gw:
            wire = await gw.connect()
            await wire.send(
                b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            assert (await wire.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
            client = next(iter(gw.gateway.clients))
            assert client.exchange is not None
            assert client.exchange.upstream is not None
            transport = client.exchange.upstream.transport
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            await wire.send(words)
            exchange = client.exchange
            await until(lambda: exchange.bytes_in == len(words))
            assert transport.get_write_buffer_size()
            wire.close()
            await until(lambda: not gw.gateway.clients)
            go.set()
            assert len(await asyncio.wait_for(heard, 20)) == len(words)
            await until(lambda: not gw.gateway.descriptors)


@pytest.mark.parametrize(("path", "status"), [("/s", 200), ("/healthz", 200), ("/nowhere", 404)])
@in_loop
async def test_a_connection_in_use_is_kept_whatever_it_asks_for(path: str, status: int) -> None:
    agent = await Agent().start()
    async with gateway(agent, config=behind(agent, "keepalive: 1s, header_timeout: 1s", path="/s")) as gw:
        for _ in range(5):
            wire = await gw.connect()
            asked = monotonic()
            end = asked + 2.2
            try:
                while asked < end:
                    assert (await wire.get(path)).status == status
                    asked = monotonic()
            except (AssertionError, ConnectionError):
                if monotonic() - asked < 0.8:
                    raise
                continue  # this machine stood still for so long that the connection was idle
            break
        assert await wire.closed() == b""  # and at last it is idle


@in_loop
async def test_an_empty_line_after_a_body_is_no_request_that_takes_too_long() -> None:
    agent = await Agent().start()
    async with gateway(agent, config=behind(agent, "keepalive: 600ms, header_timeout: 200ms")) as gw:
        wire = await gw.connect()
        await wire.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}\r\n")
        assert (await wire.answer("POST")).status == 200
        assert await wire.closed() == b""
        wire = await gw.connect()
        await wire.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}\r\n")
        assert (await wire.answer("POST")).status == 200
        assert (await wire.get()).status == 200


@pytest.mark.parametrize("secure", [False, True], ids=["tcp", "tls"])
@in_loop
async def test_an_answer_without_framing_that_breaks_off_does_not_end_cleanly(secure: bool, tmp_path: Path) -> None:
    """To HTTP/1.0 an answer without a length ends with the connection: a cut must look like one."""
    go = asyncio.Event()

    async def breaks_off(call: Call) -> None:
        await call.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"
        )
        await go.wait()
        call.abort()

    cert, key = certificate(tmp_path, "gateway")
    listen = f"{{address: '127.0.0.1:0', tls: {{cert: {cert}, key: {key}}}}}" if secure else "127.0.0.1:0"
    agent = await Agent(breaks_off).start()
    async with gateway(agent, config=behind(agent, listen=listen)) as gw:
        loop = asyncio.get_running_loop()

        def read() -> bytes:
            """Blocking, as asyncio takes an end without close_notify for a clean one."""
            connection = socket.create_connection(("127.0.0.1", gw.port), timeout=20)
            if secure:
                trust = ssl.create_default_context(cafile=cert)
                connection = trust.wrap_socket(connection, server_hostname="localhost", suppress_ragged_eofs=False)
            with connection:
                connection.sendall(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
                data = b""
                while not data.endswith(b"half"):
                    data += connection.recv(4096)
                loop.call_soon_threadsafe(go.set)
                return connection.recv(4096)

        with pytest.raises((ConnectionResetError, ssl.SSLEOFError)):
            await asyncio.to_thread(read)
        await gw.settled()
