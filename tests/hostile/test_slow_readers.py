"""Hostile input 28 for durable runs: who reads slowly costs a bounded amount, and only itself."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
from contextlib import AsyncExitStack
from pathlib import Path
from time import monotonic
from typing import Any

from ..gateway.durable import SERVICES, Api, Source, runs_gateway
from ..gateway.harness import PATIENCE, Running, Wire, in_loop, until
from ..gateway.held import masked
from ..gateway.processes import served

MIB = 1 << 20


async def narrow(port: int) -> Wire:
    """A connection that has hardly any room in the client's kernel."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    return Wire(*await asyncio.open_connection(sock=sock, limit=4096))


async def asks(port: int, path: str, headers: str = "") -> Wire:
    wire = await narrow(port)
    await wire.send(f"GET {path} HTTP/1.1\r\nHost: t\r\n{headers}\r\n".encode())
    return wire


async def completed(api: Api, size: int) -> Any:
    """A run with a result of so many bytes."""
    run = await api.create()
    await api.finish(await api.claim(), "x" * size)
    return run


def serving(running: Running) -> list[Any]:
    return [client for client in running.gateway.clients if client.exchange is not None]


@in_loop
async def test_28_a_large_result_goes_in_pieces_as_it_is_read() -> None:
    async with runs_gateway("limits: {stalled_timeout: 1500ms}\n") as running:
        api = await Api.connect(running)
        run = await completed(api, 8 * MIB)
        wire = await asks(running.port, run["links"]["self"])
        running.wires.append(wire)
        await until(lambda: any(client.write_paused for client in serving(running)))
        (client,) = serving(running)
        assert running.gateway.backlog.size > 8 * MIB
        # Nobody else waits for it.
        assert (await api.call("GET", run["links"]["self"]))[1]["result"] == "x" * 8 * MIB
        # Somebody who reads slowly is not somebody who reads nothing: it takes longer than the latter is given.
        began, body, most = monotonic(), b"", 0
        head = await wire.reader.readuntil(b"\r\n\r\n")
        length = int(head.partition(b"content-length: ")[2].split()[0])
        while len(body) < length:
            body += await wire.reader.readexactly(min(256 * 1024, length - len(body)))
            most = max(most, client.transport.get_write_buffer_size())
            await asyncio.sleep(0.06)
        assert monotonic() - began > 1.5
        assert most < 200_000, f"{most} bytes of it were handed over at once"
        assert json.loads(body)["result"] == "x" * 8 * MIB
        await until(lambda: not serving(running))
        assert running.gateway.backlog.size == 0
        # The connection serves the next request.
        assert (await wire.get("/v1/openapi.json")).status == 200


@in_loop
async def test_28_who_does_not_read_a_large_result_at_all_is_dropped() -> None:
    async with runs_gateway("limits: {stalled_timeout: 200ms}\n") as running:
        api = await Api.connect(running)
        run = await completed(api, 8 * MIB)
        wire = await asks(running.port, run["links"]["self"])
        running.wires.append(wire)
        await until(lambda: running.gateway.backlog.size)
        await until(lambda: not running.gateway.backlog.size)
        assert len(await wire.closed()) < 8 * MIB


@in_loop
async def test_28_large_results_cost_so_much_together_and_the_slowest_reader_is_dropped() -> None:
    async with runs_gateway() as running:
        api = await Api.connect(running)
        runs = [await completed(api, 6 * MIB) for _ in range(7)]
        running.gateway.backlog.most = 20 * MIB
        steady = await asks(running.port, runs.pop()["links"]["self"])
        running.wires.append(steady)
        got = len(await steady.reader.readexactly(3 * MIB))
        for run in runs:
            running.wires.append(await asks(running.port, run["links"]["self"]))
            await until(lambda: len(running.gateway.clients) >= 3)
        await until(lambda: len(serving(running)) == 3)
        assert running.gateway.backlog.size <= 20 * MIB
        while got < 6 * MIB:  # it was not the slowest
            got += len(await steady.reader.readexactly(min(MIB, 6 * MIB - got)))


@in_loop
async def test_28_readers_of_one_large_result_share_it_however_many_they_are() -> None:
    async with runs_gateway() as running:
        api = await Api.connect(running)
        run = await completed(api, 6 * MIB)
        running.gateway.backlog.most = 10 * MIB
        for number in range(12):
            running.wires.append(await asks(running.port, run["links"]["self"]))
            await until(lambda most=number: len(serving(running)) > most)
        assert 6 * MIB < running.gateway.backlog.size < 7 * MIB
        steady = await asks(running.port, run["links"]["self"])
        running.wires.append(steady)
        assert len(await steady.reader.readexactly(6 * MIB)) == 6 * MIB
        assert len(serving(running)) >= 12


@in_loop
async def test_28_the_memory_of_a_gateway_with_many_slow_readers(tmp_path: Path) -> None:
    (tmp_path / "unjam.yaml").write_text(
        "listen: 127.0.0.1:0\nadmin: off\naccess_log: off\nstate: sqlite:runs.db\nruns: on\n" + SERVICES
    )
    async with served("--config", str(tmp_path / "unjam.yaml")) as (process, port), AsyncExitStack() as stack:
        api = Api(await Wire.connect(port))
        stack.callback(api.wire.close)
        run = await api.create()
        claim = await api.claim()
        # What a reader of each kind may make it hold does not depend on how long the log is: here 24 MB.
        events, readers, text = 400, 40, "x" * 60_000
        await api.emit(claim, 1, text)
        before = process.resident()
        key = base64.b64encode(os.urandom(16)).decode()
        upgrade = (
            f"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
        )
        for _ in range(readers):
            for path, headers in ((run["links"]["events"], "Accept: text/event-stream\r\n"), ("/v1/ws", upgrade)):
                wire = await asks(port, path, headers)
                stack.callback(wire.reset)
                if path == "/v1/ws":
                    await wire.reader.readuntil(b"\r\n\r\n")
                    await wire.send(masked(0x81, json.dumps({"op": "subscribe", "run": run["id"]}).encode()))
                wire.writer.transport.pause_reading()  # type: ignore[attr-defined]
        source = Source()
        following = asyncio.create_task(source.follow(port, run["links"]["events"]))
        for batch in range(2, events + 1):
            await api.emit(claim, batch, text)
        await api.finish(claim, "x" * 8 * MIB)
        async with asyncio.timeout(PATIENCE):  # one who reads has waited for none of them
            await following
        assert source.ids == list(range(events + 3))
        used = process.resident() - before
        assert used < 60 * MIB, f"{used / MIB:.0f} MiB for {2 * readers} readers of {events * len(text) / MIB:.0f} MiB"
        # And 60 who do not read 8 MiB each.
        for _ in range(60):
            stack.callback((await asks(port, run["links"]["self"])).reset)
        assert (await api.call("GET", run["links"]["self"]))[1]["status"] == "completed"
        used = process.resident() - before
        assert used < 400 * MIB, f"{used / MIB:.0f} MiB; unbounded it would be more than 480"
