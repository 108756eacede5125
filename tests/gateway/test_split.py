"""Rules on callers and spill-over, through a real gateway."""

from __future__ import annotations

import asyncio
from collections import Counter

from tests.gateway.harness import Agent, Call, gateway, in_loop


@in_loop
async def test_premium_callers_get_the_dear_version() -> None:
    cheap, dear = await Agent().start(), await Agent().start()
    config = (
        "services:\n  main:\n    match: {path: /}\n"
        "    split: [{header: {X-Tier: premium}, weights: {dear: 1}}]\n"
        "    versions:\n"
        f"      cheap: {{weight: 9, endpoints: ['{cheap.url}']}}\n"
        f"      dear: {{weight: 1, endpoints: ['{dear.url}']}}\n"
    )
    async with gateway(cheap, dear, config=config) as gw:
        wire = await gw.connect()
        premium = [await wire.get(headers="x-tier: premium\r\n") for _ in range(20)]
        assert {answer.header("x-unjam-version") for answer in premium} == {"dear"}
        others = Counter([(await wire.get(headers="x-tier: free\r\n")).header("x-unjam-version") for _ in range(20)])
        assert others == {"cheap": 18, "dear": 2}


@in_loop
async def test_work_spills_into_the_dear_pool_after_the_stated_wait_and_no_sooner() -> None:
    go = asyncio.Event()

    async def slow(call: Call) -> None:
        await go.wait()
        await call.answer(b"cheap")

    async def quick(call: Call) -> None:
        await call.answer(b"dear")

    cheap, dear = await Agent(slow).start(), await Agent(quick).start()
    config = (
        "services:\n  main:\n    match: {path: /}\n    versions:\n"
        f"      cheap: {{overflow: {{to: dear, after: 300ms}}, endpoints: [{{url: '{cheap.url}', slots: 1}}]}}\n"
        f"      dear: {{weight: 0, endpoints: [{{url: '{dear.url}', slots: 1}}]}}\n"
    )
    async with gateway(cheap, dear, config=config) as gw:
        first, second = await gw.connect(), await gw.connect()
        await first.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        while not cheap.requests:
            await asyncio.sleep(0.001)
        answer = await second.get()
        assert (answer.body, answer.header("x-unjam-version")) == (b"dear", "dear")
        assert int(answer.header("x-unjam-queued-ms") or 0) >= 300
        go.set()
        assert (await first.answer()).body == b"cheap"
