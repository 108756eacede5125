"""Load from programs beside the endpoints that speak HAProxy's agent-check."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from unjam.config import parse

from .harness import Agent, Call, Running, gateway, in_loop, until, until_gone
from .told import listen, source, until_pulled

TOP = "listen: 127.0.0.1:0\nadmin: off\naccess_log: off\n"


class Beside:
    """An agent-check server: answers `line` to whoever connects, and keeps what it was sent."""

    def __init__(self, line: bytes, reads: bool = False, host: str = "127.0.0.1") -> None:
        self.line = line
        self.reads = reads
        self.host = host
        self.sent: list[bytes] = []
        self.asked = 0
        self.port = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked += 1
        try:
            if self.reads:
                self.sent.append(await reader.readline())
            if self.line == b"silence":
                await reader.read()
            for part in self.line.split(b"|"):  # in pieces, as TCP may
                writer.write(part)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def says(self, line: bytes) -> None:
        """Until it has been asked since it says this, and asked again: then what it said has been heeded."""
        self.line = line
        wanted = self.asked + 2
        await until(lambda: self.asked >= wanted)


@asynccontextmanager
async def beside(line: bytes, reads: bool = False, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[Beside]:
    program = Beside(line, reads, host)
    server = await asyncio.start_server(program.answer, host, port)
    program.port = server.sockets[0].getsockname()[1]
    try:
        yield program
    finally:
        server.close()


def configured(program: Beside, *urls: str, more: str = "", slots: str = "", interval: int = 200) -> str:
    """`interval`: ms between two questions, which is the time for an answer, too."""
    endpoints = ", ".join(f"{{url: '{url}'{slots}}}" for url in urls)
    load = f"load: {{agent_check: {{port: {program.port}, interval: {interval}ms{more}}}}}"
    return f"services: {{s: {{{load}, versions: {{v: {{endpoints: [{endpoints}]}}}}}}}}\n"


@pytest.mark.parametrize(
    ("line", "known"),
    [
        (b"50%\n", {"weight": 0.5}),
        (b"maxconn:3\n", {"slots": 3}),
        (b"maxconn:30\n", {"slots": 30}),
        (b"max|conn:3|0\n", {"slots": 30}),
        (b"ready up 75% maxconn:8", {"weight": 0.75, "slots": 8, "state": "ready"}),
        (b"UP,READY\r\n", {"state": "ready"}),
        (b"drain\n", {"state": "draining"}),
        (b"maint\n", {"state": "draining"}),
        (b"down #disk full\n", {"state": "down"}),
        (b"stopped\n", {"state": "down"}),
        (b"fail\n", {"state": "down"}),
        (b"up drain\n", {"state": "draining"}),
        (b"ready down\n", {"state": "down"}),
    ],
)
@in_loop
async def test_what_it_says_is_what_is_known(line: bytes, known: dict[str, Any]) -> None:
    agent = await Agent().start()
    async with beside(line) as program, gateway(agent, config=configured(program, agent.url)) as running:
        await until_pulled(running, "agent_check", "ok")
        figures = source(running, agent, "agent_check")
        assert {
            name: figures.get(name) for name in ("weight", "slots", "state") if figures.get(name) is not None
        } == known


@in_loop
async def test_what_a_line_does_not_mention_stays_and_only_its_own_kind_reverts_it() -> None:
    agent = await Agent().start()
    async with beside(b"drain 50%\n") as program, gateway(agent, config=configured(program, agent.url)) as running:

        async def state_after(line: bytes) -> Any:
            await program.says(line)
            figures = source(running, agent, "agent_check")
            return figures["state"], figures["weight"]

        assert await state_after(b"drain 50%\n") == ("draining", 0.5)
        assert await state_after(b"75%\n") == ("draining", 0.75)
        assert await state_after(b"up\n") == ("draining", 0.75)
        assert await state_after(b"down\n") == ("down", 0.75)
        assert await state_after(b"ready\n") == ("down", 0.75)
        assert await state_after(b"up 100%\n") == ("ready", 1.0)


@in_loop
async def test_a_line_can_be_sent_first() -> None:
    agent = await Agent().start()
    async with (
        beside(b"up\n", reads=True) as program,
        gateway(agent, config=configured(program, agent.url, more=", send: auditor v7")) as running,
    ):
        await until_pulled(running, "agent_check", "ok")
        assert program.sent[0] == b"auditor v7\n"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"hello\n", "a word is none of the agent-check's"),
        (b"50\n", "a word is none of the agent-check's"),
        (b"500%\n", "a percentage is more than 256"),
        (b"", "hung up without an answer"),
        (b"x" * 2000, "longer than 1024 bytes"),
        (b"silence", "no answer within 0.06 s"),
    ],
)
@in_loop
async def test_what_cannot_be_read_is_counted_and_told_once(line: bytes, why: str) -> None:
    agent = await Agent().start()
    async with beside(line) as program:
        config = configured(program, agent.url, interval=60 if line == b"silence" else 200)
        async with gateway(agent, config=config) as running:
            await cannot_be_read(running, program, agent, why)


async def cannot_be_read(running: Running, program: Beside, agent: Agent, why: str) -> None:
    log = listen(running)
    await until_pulled(running, "agent_check", "failed", 3)
    ((level, ok, told_why),) = log.of("load_pull")
    assert (level, ok) == ("warning", False)
    assert why in told_why
    assert source(running, agent, "agent_check") is None
    assert (await (await running.connect()).get()).status == 200
    program.line = b"up\n"
    await until_pulled(running, "agent_check", "ok")
    assert [ok for _, ok, _ in log.of("load_pull")] == [False, True]


@in_loop
async def test_nobody_is_there() -> None:
    agent = await Agent().start()
    async with beside(b"drain\n") as program:
        config = configured(program, agent.url)
    async with gateway(agent, config=config) as running:
        log = listen(running)
        await until_pulled(running, "agent_check", "failed", 2)
        assert "refused" in log.of("load_pull")[0][2].lower()
        assert (await (await running.connect()).get()).status == 200


class Elsewhere(Agent):
    """An endpoint on another address of this machine."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.2:{self.port}"

    async def start(self, ssl: Any = None, path: str | None = None, port: int = 0) -> Elsewhere:
        self._server = await asyncio.start_server(self._serve, "127.0.0.2", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self


async def spread(running: Any, one: Agent, other: Agent, requests: int) -> tuple[int, int]:
    """How many of so many requests, one after the other, each of the two got."""
    wire = await running.connect()
    before = len(one.requests), len(other.requests)
    for _ in range(requests):
        assert (await wire.get()).status == 200
    return len(one.requests) - before[0], len(other.requests) - before[1]


@pytest.mark.parametrize("word", [b"drain #upgrade\n", b"maint\n", b"down #disk full\n", b"0%\n"])
@in_loop
async def test_it_moves_traffic_away_and_back(word: bytes) -> None:
    agent, other = await Agent().start(), await Elsewhere().start()
    async with beside(b"up ready 100%\n") as program, beside(b"up\n", host="127.0.0.2", port=program.port):
        config = configured(program, agent.url, other.url, slots=", slots: 8")
        async with gateway(agent, other, config=config) as running:
            await program.says(b"up ready 100%\n")
            assert min(await spread(running, agent, other, 12)) > 0
            await program.says(word)
            assert await spread(running, agent, other, 12) == (0, 12)
            await program.says(b"up ready 100%\n")
            assert min(await spread(running, agent, other, 12)) > 0


@in_loop
async def test_its_maxconn_bounds_what_runs_there() -> None:
    agent = await Agent(until_gone).start()
    async with beside(b"maxconn:2\n") as program, gateway(agent, config=configured(program, agent.url)) as running:
        await until_pulled(running, "agent_check", "ok")
        for _ in range(4):
            await (await running.connect()).send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: len(running.gateway.clients) == 4 and len(agent.requests) == 2)
        await program.says(b"maxconn:3\n")
        await until(lambda: len(agent.requests) == 3)
        await program.says(b"maxconn:3\n")
        assert len(agent.requests) == 3


@in_loop
async def test_a_reload_that_switches_it_off_stops_asking() -> None:
    async def answers(call: Call) -> None:
        await call.answer()

    agent = await Agent(answers).start()
    health = "health: {path: /health, interval: 60ms}"
    off = f"services: {{s: {{{health}, versions: {{v: {{endpoints: ['{agent.url}']}}}}}}}}\n"
    async with beside(b"up\n") as program:
        config = configured(program, agent.url)
        async with gateway(agent, config=config, reload=lambda: parse(TOP + off, {})) as running:
            await until_pulled(running, "agent_check", "ok")
            assert await running.server.reload() == []
            asked = program.asked
            await until(lambda: len(agent.requests) > 4)
            assert program.asked <= asked + 1  # one may have been under way
