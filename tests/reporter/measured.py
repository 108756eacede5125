"""A machine whose figures a test sets, and a sidecar that watches it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from unjam.reporter.change import WINDOW
from unjam.reporter.link import Link
from unjam.reporter.options import Options, parse
from unjam.reporter.sidecar import READ_EVERY, Sidecar

from .gateways import TOKEN, FakeGateway

GIB = 1 << 30


class FakeMeter:
    """`figures`: what is measured from now on. `process`: the agent's, None while it is gone."""

    def __init__(self, **figures: Any) -> None:
        self.figures: dict[str, Any] = {"cores": 8.0, "memory": 16 * GIB, "memory_free": 12 * GIB}
        self.figures |= {"cpu": 0.25, "agent_cpu": 0.05, **figures}
        self.process: int | None = 4242
        self.reads = 0

    def load(self) -> dict[str, Any]:
        self.reads += 1
        return dict(self.figures)

    def pid(self) -> int | None:
        return self.process


def options(*arguments: str) -> Options:
    return parse(arguments, {"UNJAM_REPORT_TOKEN": TOKEN})


class Running:
    def __init__(self, sidecar: Sidecar, meter: FakeMeter, task: asyncio.Task[int]) -> None:
        self.sidecar = sidecar
        self.meter = meter
        self.task = task

    async def exit_code(self) -> int:
        async with asyncio.timeout(7200):
            return await self.task


@asynccontextmanager
async def sidecar(
    *arguments: str, gateways: tuple[FakeGateway, ...] = (), quick: float = 1.0, **figures: Any
) -> AsyncIterator[Running]:
    """One that reports to `gateways` about a `FakeMeter`, in this loop. `quick`: it reads that many times as often."""
    given = list(arguments)
    for gateway in gateways:
        given += ["--gateway", gateway.url]
    if gateways:
        given += ["--service", "auditor"]
        if "--url" not in arguments:
            given += ["--url", "http://127.0.0.1:9"]
    chosen = options(*given)
    meter = FakeMeter(**figures)
    links = [Link(each, chosen.read_token, chosen.about, chosen.interval) for each in chosen.gateways]
    made = Sidecar(chosen, meter, links, cost=lambda: 0.0, every=READ_EVERY / quick, window=WINDOW / quick)
    task = asyncio.create_task(made.run())
    try:
        yield Running(made, meter, task)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
