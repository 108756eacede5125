"""What a worker needs of whoever keeps the runs: a gateway over HTTP, or a store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from unjam.runs.model import Appended, Beat, NewEvent
from unjam.runs.store.base import StoreError


class Refused(StoreError):
    """Not taken, and trying again would change nothing. `code`: why, as the gateway says it. `passing`: it is no word
    on this call, but may be one of somebody in between, or of a gateway or key that is being changed."""

    def __init__(self, code: str, message: str, passing: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.passing = passing


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A run that is ours to execute. `input`, `checkpoint`, `metadata`: JSON. `lease`: seconds between two signs of
    life, at most; `fence`: what proves that it is ours."""

    run: str
    service: str
    lane: str
    attempt: int
    fence: int
    input: bytes
    checkpoint: bytes | None
    lease: float
    version: str | None = None
    metadata: bytes | None = None


class Standing(Protocol):
    """What a worker tells of itself with each claim."""

    @property
    def slots(self) -> int: ...

    @property
    def running(self) -> int: ...

    @property
    def version(self) -> str | None: ...

    def load(self) -> dict[str, float] | None:
        """Figures of its machine, by the names of a load report; None: it doesn't say."""


class Link(Protocol):
    """Each method is one attempt. Raises `StoreAway` (try again later), `Fenced` (no longer ours), and any other
    `StoreError` for what won't ever be taken."""

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def claim(self, wait: float) -> Job | None:
        """A run, as soon as there is one; None after `wait` seconds, or soon after `interrupt`."""

    def interrupt(self) -> None:
        """No run is wanted any more. One that is on its way still comes."""

    async def append(self, run: str, fence: int, batch: int, events: Sequence[NewEvent]) -> Appended: ...

    async def heartbeat(self, run: str, fence: int, checkpoint: bytes | None, number: int = 0) -> Beat:
        """`number`: the checkpoint's, from 1."""

    async def finish(
        self,
        run: str,
        fence: int,
        status: str,
        result: bytes | None,
        error: bytes | None,
        batch: int | None,
        events: Sequence[NewEvent],
    ) -> None: ...

    async def release(self, run: str, fence: int, checkpoint: bytes | None) -> None: ...

    async def inputs(self, run: str, after: int, wait: float = 0.0) -> list[tuple[int, bytes]]:
        """Those with numbers above `after`, as soon as there is one; none after `wait` seconds, or before."""
