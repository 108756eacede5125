"""One history: start the system, let clients live while it is hurt, wait until all has ended, look once more."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any, Final, NamedTuple

from unjam.http.gateways import Gateways

from .agent import Agent
from .checker import TERMINAL
from .clients import Clients
from .plan import plan
from .records import Claimed, Created, Fault, Got, Left, Looked, Record, Said, load
from .system import System

#: Seconds of a lease: the shortest that gateways take.
LEASE: Final = 3.0
#: Seconds within which all runs end once nothing is killed any more.
ENDING: Final = 90.0
#: Runs looked at together, at the end.
TOGETHER: Final = 16


class Settings(NamedTuple):
    """`every`: seconds between kills in the mean; `clients`: runs under way at once; `workers`: processes; `steps`: of
    the longest run; `push`: some of the runs are pushed. `apart`: gateways are hurt first, and only then workers: each
    opening of a file gives all owners a fresh lease, and in a short history those of lost ones would hardly end."""

    store: str
    kills: int
    seed: int = 1
    every: float = 0.5
    clients: int = 12
    workers: int = 4
    planted: bool = False
    steps: int = 8
    push: bool = True
    apart: bool = False


async def drive(folder: Path, settings: Settings, tell: Callable[[str], None] = lambda words: None) -> list[Record]:
    """The history of all clients and workers. Raises RuntimeError when a process doesn't come up any more; a run that
    doesn't end is in the history, for the checker to find."""
    history: list[Record] = []
    agent = Agent()
    port = await agent.start()
    system = System(
        folder,
        settings.store,
        history,
        agent=port,
        workers=settings.workers,
        lease=LEASE,
        planted=settings.planted,
    )
    clients = Clients(system.urls, history, settings.seed, settings.steps, settings.push)
    try:
        await system.start()
        living = [asyncio.create_task(clients.live(f"client{n}")) for n in range(settings.clients)]
        try:
            await _hurt(system, clients, living, settings, tell)
            clients.closed.set()
            await system.settle()
            tell(f"nothing is killed any more; {clients.count} runs were acknowledged")
            _, still = await asyncio.wait(living, timeout=ENDING)
            if still:
                tell(f"{len(still)} clients wait still")
            _raise_first(living)
        finally:
            for task in living:
                task.cancel()
            await asyncio.gather(*living, return_exceptions=True)
        await _look(system, clients, settings)
    finally:
        system.close()
        await agent.close()
    return history + load(system.records)


async def _hurt(
    system: System,
    clients: Clients,
    living: list[asyncio.Task[None]],
    settings: Settings,
    tell: Callable[[str], None],
) -> None:
    told = monotonic()
    planned = plan(settings.store, settings.kills, settings.seed, settings.every, LEASE)
    if settings.apart:
        planned.sort(key=lambda each: "gateway" not in each.kind)
    for number, each in enumerate(planned):
        if settings.apart and number and "gateway" in planned[number - 1].kind and "gateway" not in each.kind:
            await system.settle()
            await asyncio.sleep(LEASE)  # by then all owners have given a sign of life
        await system.do(each)
        _raise_first(living)
        if monotonic() - told > 15.0:
            told = monotonic()
            done = ", ".join(f"{count} {kind}" for kind, count in sorted(system.kills.items()))
            tell(f"{number + 1} of {len(planned)}: {done}; {clients.count} runs")
            await system.gauges(last=False)


def _raise_first(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        if task.done() and not task.cancelled() and (error := task.exception()) is not None:
            raise error


async def _look(system: System, clients: Clients, settings: Settings) -> None:
    runs = list(dict.fromkeys(record.run for record in system.history if isinstance(record, Created) and record.run))
    gateways = Gateways(system.urls, agent="history")
    places = asyncio.Semaphore(TOGETHER)

    async def look(run: str) -> None:
        async with places:
            await clients.look(run, gateways)

    try:
        queued, running = [await clients.count_of(status, gateways) for status in ("queued", "running")]
        async with asyncio.TaskGroup() as group:
            for run in runs:
                group.create_task(look(run))
    finally:
        gateways.close()
    system.history.append(Left("the list of runs", queued, running))
    await system.gauges(last=True)
    await system.what_is_left()


def summary(history: list[Record], settings: Settings) -> dict[str, Any]:
    """What happened, in figures."""
    kinds = Counter(record.kind for record in history if isinstance(record, Fault))
    said = Counter(record.outcome for record in history if isinstance(record, Said))
    states = Counter(record.status or "gone" for record in history if isinstance(record, Looked))
    claims = [record for record in history if isinstance(record, Claimed)]
    events = [record for record in history if isinstance(record, Got)]
    readers = {record.reader for record in events}
    return {
        "kills": settings.kills,
        **{kind: kinds[kind] for kind in sorted(kinds)},
        "runs": len({record.run for record in history if isinstance(record, Created) and record.run}),
        **{state: states[state] for state in sorted(TERMINAL.values())},
        "claims": len(claims),
        "again": sum(claim.fence > 1 for claim in claims),
        "refused by fence": said["fenced"],
        "without an answer": said[""],
        "readers": len(readers),
        "events read": len(events),
    }


__all__ = ["LEASE", "Settings", "drive", "summary"]
