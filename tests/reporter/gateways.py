"""Gateways that are not: they take reports as the real ones do, remember them, and answer what a test wants."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

TOKEN = "a-token-of-some-length"


class FakeGateway:
    """`inflight`: what it says runs at the endpoint. `status`, `message`: its answer to the next reports. `mute`: it
    takes them and never answers."""

    def __init__(self) -> None:
        self.port = 0
        self.reports: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.tokens: list[str] = []
        self.connections = 0
        self.inflight = 0
        self.interval = 0.0
        self.status = 200
        self.message = ""
        self.mute = False
        self.raw: bytes | None = None
        self._life = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._more = asyncio.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def states(self) -> list[str]:
        return [report["state"] for report in self.reports]

    async def start(self) -> None:
        self._life += 1
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def report(self, number: int) -> dict[str, Any]:
        """The report of this number, from 0, when it has come."""
        async with asyncio.timeout(300):
            while len(self.reports) <= number:
                self._more.clear()
                await self._more.wait()
        return self.reports[number]

    async def says(self, **wanted: Any) -> dict[str, Any]:
        """The first report that has these, when it has come."""
        number = 0
        while True:
            report = await self.report(number)
            if all({**report, **report["load"]}.get(name) == value for name, value in wanted.items()):
                return report
            number += 1

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                first, *lines = head.split("\r\n")[:-2]
                assert first == "POST /v1/report HTTP/1.1", first
                fields = dict(line.split(": ", 1) for line in lines)
                assert fields["host"] == f"127.0.0.1:{self.port}"
                assert fields["content-type"] == "application/json"
                report = json.loads(await reader.readexactly(int(fields["content-length"])))
                self.times.append(asyncio.get_running_loop().time())
                self.tokens.append(fields["authorization"])
                self.reports.append(report)
                self._more.set()
                if not self.mute:
                    writer.write(self._answer(report))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writers.discard(writer)
            self._tasks.discard(task)
            writer.close()

    def _answer(self, report: dict[str, Any]) -> bytes:
        if self.raw is not None:
            return self.raw
        answer: dict[str, Any] = {
            "endpoint": report["url"],
            "inflight": self.inflight,
            "heavy": 0,
            "echo": f"{self._life}:{len(self.reports)}",
            "interval": self.interval,
            "draining": report["state"] != "ready",
        }
        if self.status != 200:
            answer = {"error": {"code": "some_code", "message": self.message}}
        body = json.dumps(answer).encode()
        return b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%b" % (self.status, len(body), body)


@asynccontextmanager
async def fake_gateway() -> AsyncIterator[FakeGateway]:
    gateway = FakeGateway()
    await gateway.start()
    try:
        yield gateway
    finally:
        await gateway.stop()
