"""Active health checks: every framing of an answer, over connections that are used again."""

from __future__ import annotations

import pytest

from unjam.core.spec import HealthSpec
from unjam.gateway.probes import check

from .harness import Agent, Call, gateway, in_loop, until_gone

SPEC = HealthSpec("/health", timeout=5.0)


async def chunked(call: Call) -> None:
    await call.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    await call.chunk(b"fine")
    await call.last_chunk()


async def empty(call: Call) -> None:
    await call.write(b"HTTP/1.1 204 No Content\r\n\r\n")


async def until_closed(call: Call) -> None:
    await call.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nfine")
    call.writer.close()


async def in_pieces(call: Call) -> None:
    await call.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfi")
    await call.write(b"ne")


async def moved(call: Call) -> None:
    await call.answer(status=302, headers="Location: /elsewhere\r\n")


@pytest.mark.parametrize("behaviour", [Call.answer, chunked, empty, until_closed, in_pieces, moved])
@in_loop
async def test_good_answers_are_healthy_however_they_are_framed(behaviour: object) -> None:
    agent = await Agent(behaviour).start()  # type: ignore[arg-type]
    async with gateway(agent) as running:
        upstream = running.endpoint(agent.url).shell
        for _ in range(3):
            assert await check(upstream, SPEC) == ""
        assert [seen.target for seen in agent.requests] == ["/health"] * 3
        assert agent.connections == (3 if behaviour is until_closed else 1)


@in_loop
async def test_what_is_wrong_is_said() -> None:
    async def fails(call: Call) -> None:
        await call.answer(status=503)

    async def nonsense(call: Call) -> None:
        await call.write(b"hello\r\n\r\n")

    agent = await Agent(fails).start()
    async with gateway(agent) as running:
        upstream = running.endpoint(agent.url).shell
        assert await check(upstream, SPEC) == "status 503"
        agent.behaviour = nonsense
        assert await check(upstream, SPEC) == "Malformed: bad_status_line"
        agent.behaviour = until_gone
        assert await check(upstream, HealthSpec("/health", timeout=0.05)) == "no answer within 0.05 s"
        await agent.stop()
        assert "refused" in (await check(upstream, SPEC)).lower()
