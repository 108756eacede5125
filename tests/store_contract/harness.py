"""What the suite needs of a store beside the store: its times, and the same data through a new store object."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from unjam.runs.model import Claim, Event, NewEvent, NewRun, Run, Settled
from unjam.runs.store.base import Store

#: What a store may lack, in which case the tests of it are left out (each store names what it has):
#: `persistent`: `reopen` finds everything again.
#: `wall`: its wall clock can be moved.
#: `fifo`: the order of a queue is exact over all its runs.
#: `exact_limit`: `max_queued` is never exceeded, however many create at once.
CAPABILITIES = frozenset({"persistent", "wall", "fifo", "exact_limit"})


@dataclass
class Harness:
    """A store under test. Each kind derives its own in `stores/`; times in seconds.

    `lease`: what the suite's claims and heartbeats hold; stores whose lease time can only pass really make it short.
    `examples`: how many of hypothesis' examples it is quick enough for.
    """

    store: Store
    capabilities: frozenset[str]
    lease: float = 30.0
    examples: int = 10

    def now(self) -> float:
        """The store's wall time."""
        raise NotImplementedError

    def wall(self, seconds: float) -> None:
        """Moves the store's wall clock, back too; no other. Only with `wall`."""
        raise NotImplementedError

    async def advance(self, seconds: float) -> None:
        """Lets that much of the store's lease time pass."""
        raise NotImplementedError

    async def reopen(self) -> None:
        """Closes the store; `store` is a new one of the same data from then on, open. Only with `persistent`."""
        raise NotImplementedError

    # What most tests do, in one line. ------------------------------------------------------------------------------

    async def create(self, service: str = "auditor", input: bytes = b"{}", **more: Any) -> Run:  # noqa: A002
        run, made = await self.store.create(new_run(service, input, **more))
        assert made
        return run

    async def claim(self, *services: str, worker: str = "w1", pull: bool = True) -> Claim:
        claim = await self.maybe(*services, worker=worker, pull=pull)
        assert claim is not None, "nothing waits"
        return claim

    async def maybe(self, *services: str, worker: str = "w1", pull: bool = True) -> Claim | None:
        return await self.store.claim(services or ("auditor",), worker, pull=pull, lease=self.lease)

    async def taken(self, **more: Any) -> Claim:
        """A run that was just created and claimed; in a service of its own, when it is told one."""
        run = await self.create(**more)
        claim = await self.claim(run.service)
        assert claim.run.id == run.id
        return claim

    async def emit(self, claim: Claim, batch: int, *pages: int) -> int:
        """Appends `progress` events; the next seq."""
        appended = await self.store.append(claim.run.id, claim.run.fence, batch, [progress(page) for page in pages])
        return appended.next

    async def lose(self) -> list[Settled]:
        """All leases expire, and somebody sweeps."""
        await self.advance(self.lease * 1.1)
        return await self.store.sweep()

    async def log(self, run: str, after: int = -1) -> list[Event]:
        """All of it, in as many reads as it takes."""
        events: list[Event] = []
        while True:
            batch = await self.store.read(run, after, limit=100)
            events += batch.events
            assert batch.next == (events[-1].seq + 1 if events else batch.next)
            if not batch.events:
                return events
            after = batch.next - 1

    async def types(self, run: str) -> list[str]:
        return [event.type for event in await self.log(run)]


#: Makes the kind of store in an empty place of its own. The loop it is entered on runs until it is left.
Factory = Callable[[Path], AbstractAsyncContextManager[Harness]]


def new_run(service: str = "auditor", input: bytes = b"{}", **more: Any) -> NewRun:  # noqa: A002
    more.setdefault("digest", input)
    more.setdefault("pull", True)
    return NewRun(service=service, input=input, **more)


def progress(page: int) -> NewEvent:
    return NewEvent("progress", msgspec.json.encode({"page": page}))


def data(event: Event) -> Any:
    return msgspec.json.decode(event.data)


def error(run: Run) -> Any:
    assert run.error is not None
    return msgspec.json.decode(run.error)


def ids(runs: Sequence[Run]) -> list[str]:
    return [run.id for run in runs]
