"""A thousand connections opened and dropped at random points: no lease, no socket and no memory stays behind."""

from __future__ import annotations

import asyncio
import gc
import os
import tracemalloc
from random import Random

import pytest

from .harness import PATIENCE, Agent, Call, Running, gateway, in_loop

REQUESTS = [
    b"GET /quick HTTP/1.1\r\nHost: x\r\n\r\n" * 3,
    b"POST /quick HTTP/1.1\r\nHost: x\r\nContent-Length: 3000\r\n\r\n" + b"x" * 3000,
    b"POST /quick HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"100\r\n"
    + b"y" * 256
    + b"\r\n0\r\n\r\n",
    b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /never HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /dies HTTP/1.1\r\nHost: x\r\n\r\n" * 2,
    b"GET /quick HTTP/1.1\r\nHost : x\r\n\r\n",
    b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\nearly",
]


async def behaves(call: Call) -> None:
    path = call.seen.target
    if path == "/quick":
        await call.answer()
    elif path == "/large":
        await call.answer(b"z" * 3_000_000)
    elif path == "/events":
        await call.start_events()
        for _ in range(20):
            await call.chunk(b"data: x\n\n")
            await asyncio.sleep(0.001)
        await call.last_chunk()
    elif path == "/dies":
        await call.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        call.abort()
    elif path == "/ws":
        await call.answer(status=403)
    else:
        await call.reader.read()


async def drop_one(port: int, rng: Random) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    raw = rng.choice(REQUESTS)
    cut = len(raw) if rng.random() < 0.6 else rng.randrange(len(raw))
    first = rng.randrange(cut + 1)
    writer.write(raw[:first])
    if rng.random() < 0.5:
        await asyncio.sleep(0)
    writer.write(raw[first:cut])
    fate = rng.random()
    if fate < 0.3:
        await asyncio.sleep(rng.random() * 0.01)
    elif fate < 0.6:
        try:
            await asyncio.wait_for(reader.read(rng.choice((1, 100, 100_000))), rng.random() * 0.05)
        except (TimeoutError, ConnectionError):
            pass
    if rng.random() < 0.5:
        writer.transport.abort()
    else:
        writer.close()


async def churn(gw: Running, count: int, rng: Random) -> None:
    left = count

    async def worker() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await drop_one(gw.port, rng)

    await asyncio.gather(*(worker() for _ in range(24)))
    async with asyncio.timeout(PATIENCE):
        while gw.gateway.clients or gw.leases:
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("slots", [1024, 4])
@in_loop
async def test_nothing_is_left_of_a_thousand_dropped_connections(slots: int) -> None:
    agent = await Agent(behaves).start()
    config = (
        "limits: {header_timeout: 1s, body_timeout: 1s, keepalive: 1s}\nservices: {default: {breaker: off, "
        f"ejection: {{failures: 1000000}}, versions: {{v: {{endpoints: [{{url: '{agent.url}', slots: {slots}}}]}}}}}}}}"
    )
    async with gateway(agent, config=config) as gw:
        rng = Random(20261122 + slots)
        await churn(gw, 200, rng)
        sockets = len(os.listdir("/proc/self/fd"))
        tracemalloc.start()
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        await churn(gw, 1000, rng)
        endpoint = gw.endpoint(agent.url)
        async with asyncio.timeout(PATIENCE):
            while endpoint.shell.connections > len(endpoint.shell.idle):
                await asyncio.sleep(0.005)
        agent.requests.clear()
        while not agent.calls.empty():
            agent.calls.get_nowait()
        while not agent.lost.empty():
            agent.lost.get_nowait()
        # The wheel lets go of the last of them within the longest of their time-outs.
        async with asyncio.timeout(PATIENCE):
            while len(gw.gateway.wheel):
                await asyncio.sleep(0.05)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        assert gw.leases == endpoint.inflight == 0
        assert gw.gateway.stats.connections_open == gw.gateway.stats.held == gw.gateway.stats.tunnels_open == 0
        assert gw.gateway.descriptors == endpoint.shell.connections == len(endpoint.shell.idle)
        assert len(os.listdir("/proc/self/fd")) <= sockets + 2 * 24
        assert grown < 1_500_000, grown
        stats = gw.gateway.stats.service("default")
        assert stats.total <= gw.gateway.stats.requests_total
