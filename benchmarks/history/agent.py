"""The agent that runs are pushed to: it knows nothing of unjam but the attempt it is told, and streams its steps."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from typing import Any

import msgspec

from .records import Mark
from .worker import STEP

_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class Agent:
    """`begun`: executions so far."""

    def __init__(self) -> None:
        self.begun = 0
        self._numbers = itertools.count(1)
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.Task[Any], asyncio.StreamWriter] = {}

    async def start(self) -> int:
        """The port, of the system's choosing."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in self._open.values():
            writer.transport.abort()
        await asyncio.gather(*self._open)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = writer
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                while True:
                    await self._answer(await reader.readuntil(b"\r\n\r\n"), reader, writer)
        finally:
            del self._open[task]
            writer.transport.abort()

    async def _answer(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
        body = await reader.readexactly(int(fields.get(b"content-length", b"0")))
        if b"x-unjam-run-id" not in fields:
            writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
            return
        given = json.loads(body)
        self.begun += 1
        by = f"agent:{next(self._numbers)}"
        writer.write(_HEAD)
        for step in range(given["steps"]):
            mark = Mark(by, step + 1, step, attempt=int(fields[b"x-unjam-attempt"]))
            event = b"event: %b\ndata: %b\n\n" % (STEP.encode(), msgspec.json.encode(mark))
            writer.write(b"%x\r\n%b\r\n" % (len(event), event))
            await writer.drain()
            await asyncio.sleep(given["pause"])
        writer.write(b"0\r\n\r\n")
        await writer.drain()
