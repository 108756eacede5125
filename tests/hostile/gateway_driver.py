"""Plays bytes at a real gateway over real sockets, whole or in pieces, and says what came of it."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from structlog.testing import capture_logs

from unjam.gateway.client import ClientConnection
from unjam.telemetry import logs

from ..gateway.harness import PATIENCE, Agent, Running, gateway

#: Part of every hostile message; must turn up nowhere but at an endpoint.
MARK = b"zq9mark"

#: Inputs longer than this are not split at every byte but at some.
LONG = 200

#: Connections at a time.
ABREAST = 32


class Raw(asyncio.Protocol):
    """A client that keeps what it is sent until the gateway hangs up."""

    def __init__(self) -> None:
        self.data = b""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.data += data

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)


def port_of(transport: asyncio.BaseTransport, name: str = "sockname") -> int:
    return int(transport.get_extra_info(name)[1])


#: Bytes the gateway has read, by its client's port.
read_from: Counter[int] = Counter()


def _counting(self: ClientConnection, data: bytes, plain: Any = ClientConnection.data_received) -> None:
    read_from[port_of(self.transport, "peername")] += len(data)
    plain(self, data)


async def converse(port: int, pieces: Iterable[bytes]) -> bytes:
    """Send the pieces, each read by the gateway before the next is sent; all it answers until it hangs up."""
    loop = asyncio.get_running_loop()
    transport, raw = await loop.create_connection(Raw, "127.0.0.1", port)
    sent = read_from[port_of(transport)] = 0  # the port may have been another connection's
    for piece in pieces:
        if transport.is_closing():
            break
        if piece:
            transport.write(piece)
            sent += len(piece)
            while read_from[port_of(transport)] < sent and not transport.is_closing():
                await asyncio.sleep(0)
    try:
        await asyncio.wait_for(raw.done, PATIENCE)
    finally:
        transport.abort()
    return raw.data


def splits(raw: bytes, at_least: int = 1) -> Iterator[list[bytes]]:
    """Every way to cut `raw` in two, some of them if it is long; and cut at every byte."""
    step = 1 if len(raw) <= LONG else len(raw) // 40 + 1
    for at in range(at_least, len(raw), step):
        yield [raw[:at], raw[at:]]
    if len(raw) <= 4 * LONG:
        yield [raw[at : at + 1] for at in range(len(raw))]


@dataclass
class Hostile:
    """A gateway that counts every refusal's line, and the endpoint behind it."""

    running: Running
    agent: Agent
    lines: list[Any]

    @property
    def port(self) -> int:
        return self.running.port

    @property
    def rejects(self) -> dict[str, int]:
        return self.running.gateway.stats.rejects

    async def refuses(self, raw: bytes, reason: str, status: int = 400, split: bool = True) -> None:
        """However it is split: one answer with `status`, closed, counted and logged once, nothing forwarded."""
        ways = [[raw], *(splits(raw) if split else ())]
        before = self.rejects.get(reason, 0), sum(self.rejects.values()), len(self.agent.requests)
        del self.lines[:]
        answers: list[bytes] = []
        for at in range(0, len(ways), ABREAST):
            answers += await asyncio.gather(*(converse(self.port, way) for way in ways[at : at + ABREAST]))
        for way, answer in zip(ways, answers, strict=True):
            head, _, body = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 %d " % status), (raw[:80], way[0][-20:], answer[:200])
            assert b"connection: close" in head.lower(), raw[:80]
            assert answers_in(answer) == 1, (way, answer)
            assert reason.encode() in body
            assert MARK not in answer
        after = self.rejects.get(reason, 0), sum(self.rejects.values()), len(self.agent.requests)
        assert after == (before[0] + len(ways), before[1] + len(ways), before[2]), (raw[:80], self.rejects)
        said = [line for line in self.lines if line["event"] == "rejected"]
        assert len(said) == len(ways)
        assert {(line["reason"], line["peer"]) for line in said} == {(reason, "127.0.0.1")}
        assert MARK.decode() not in str(self.lines)
        await self.running.settled()

    async def accepts(self, raw: bytes, split: bool = True) -> None:
        """However it is split, the endpoint sees the same one request. `raw` must ask for the connection to close."""
        ways = [[raw], *(splits(raw) if split else ())]
        start = len(self.agent.requests)
        answers: list[bytes] = []
        for at in range(0, len(ways), ABREAST):
            answers += await asyncio.gather(*(converse(self.port, way) for way in ways[at : at + ABREAST]))
        assert {answer[:13] for answer in answers} == {b"HTTP/1.1 200 "}
        seen = self.agent.requests[start:]
        assert len(seen) == len(ways)
        first = seen[0]
        for one in seen[1:]:
            assert (one.method, one.target, one.body) == (first.method, first.target, first.body)
            assert without_ids(one.headers) == without_ids(first.headers)


def answers_in(data: bytes) -> int:
    return len(re.findall(rb"HTTP/1\.1 [0-9]{3} ", data))


def without_ids(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(name, value) for name, value in headers if name != "x-request-id"]


@asynccontextmanager
async def hostile(agent: Agent | None = None, **overrides: Any) -> AsyncIterator[Hostile]:
    agent = agent or Agent()
    read_from.clear()
    with capture_logs() as lines, patch.object(ClientConnection, "data_received", _counting):
        async with gateway(agent, **overrides) as running:
            # Every refusal's line, not only ten in a second.
            running.gateway.rejections = logs.Rejections(running.gateway.stats, per_second=1e9)
            yield Hostile(running, agent, lines)
            await running.settled()
            assert running.leases == 0
            served = sum(stats.total for stats in running.gateway.stats.services.values())
            assert served >= len(agent.requests)


def request(
    *lines: bytes, start: bytes = b"GET /" + MARK + b" HTTP/1.1", host: bytes = b"Host: a.example", body: bytes = b""
) -> bytes:
    """A request head with its empty line; Host is added unless it is empty."""
    return b"\r\n".join([start, *([host] if host else []), *lines, b"", body])
