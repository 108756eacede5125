"""Requests broken at random (seeded): whatever a gateway lets pass, the endpoint reads exactly as it was counted."""

from __future__ import annotations

import asyncio
from random import Random

from ..gateway.harness import Agent, Call, in_loop
from .gateway_driver import answers_in, converse, hostile

SEEDS = [
    b"GET /a HTTP/1.1\r\nHost: x\r\nX-A: 1\r\n\r\nGET /b HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\n\r\nGET /evil Hx",
    b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\n6;a=b\r\n world\r\n0\r\nX-T: 1\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nConnection: keep-alive, x-a\r\nX-A: 1\r\n\r\nabc"
    b"PUT /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"GET http://y/a?b=c HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nUpgrade: h2c\r\n\r\n",
]
PIECES = [
    b"\r", b"\n", b"\r\n", b"\r\n\r\n", b" ", b"\t", b"\x00", b":", b",", b";", b"0", b"1", b"f", b"-", b"+", b"\xff",
    b"\r\nContent-Length: 5", b"\r\nTransfer-Encoding: chunked", b"\r\nTransfer-Encoding: identity", b"\r\nHost: z",
    b"\r\nX: \r\n y", b"0\r\n\r\n", b"GET /evil HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.0", b"\r\nConnection: close",
]  # fmt: skip


def mutant(rng: Random) -> bytes:
    raw = bytearray(rng.choice(SEEDS))
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        at = rng.randrange(len(raw) + 1)
        match rng.randrange(4):
            case 0:
                raw[at:at] = rng.choice(PIECES)
            case 1:
                del raw[at : at + rng.randrange(1, 6)]
            case 2:
                raw[at : at + 1] = bytes((rng.randrange(256),))
            case 3:
                end = min(len(raw), at + rng.randrange(1, 40))
                raw[at:at] = raw[at:end]
    return bytes(raw)


#: Fields that the gateway writes itself: one of each, whatever was sent.
OURS = ("host", "x-forwarded-for", "x-forwarded-proto", "forwarded", "x-request-id")


@in_loop
async def test_what_passes_is_what_was_counted() -> None:
    async def answers(call: Call) -> None:
        await call.answer(call.seen.target.encode())

    agent = Agent(answers)
    rng = Random(20261122)
    limits = {"header_timeout": 0.2, "body_timeout": 0.2, "keepalive": 0.2}
    async with hostile(agent, limits=limits, breaker="off", ejection={"failures": 10**6}) as target:
        mutants = [mutant(rng) for _ in range(1500)]
        ok = 0
        for at in range(0, len(mutants), 150):
            batch = []
            for raw in mutants[at : at + 150]:
                cut = rng.randrange(len(raw) + 1)
                batch.append(converse(target.port, [raw[:cut], raw[cut:]]))
            for answer in await asyncio.gather(*batch):
                ok += answer.count(b"HTTP/1.1 200 ")
                assert answers_in(answer) <= 8
        await target.running.settled()
        stats = target.running.gateway.stats.service("default")
        outcomes = {str(o): n + stats.lane(True).outcomes[o] for o, n in stats.lane(False).outcomes.items()}
        assert ok == len(agent.requests) == outcomes["ok"]
        assert outcomes["server_error"] == outcomes["truncated"] == outcomes["timeout"] == 0
        assert ok > 500
        assert sum(target.rejects.values()) > 300
        for seen in agent.requests:
            names = [name for name, _ in seen.headers]
            assert all(names.count(name) == 1 for name in OURS), seen
            assert seen.header("host") == f"127.0.0.1:{agent.port}"
            assert names.count("content-length") + names.count("transfer-encoding") <= 1
            assert not {"connection", "upgrade", "expect", "te", "trailer"} & set(names)
