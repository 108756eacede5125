"""What clients get to see of a run."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final, Literal

import msgspec

Status = Literal["queued", "running", "completed", "failed", "cancelled", "expired"]

TERMINAL: Final = frozenset({"completed", "failed", "cancelled", "expired"})
#: Types of the events that end a log, unless the run is queued again.
LAST: Final = frozenset({f"run.{status}" for status in TERMINAL})


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """A run as it was when the gateway was asked. `attempt`: executions begun. `error`: `{"code", "message", …}` of one
    that failed. `result`: what the worker returned, of one that is completed."""

    id: str
    service: str
    status: Status
    lane: str
    attempt: int
    created_at: datetime
    version: str | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    cancel_requested: bool = False
    metadata: Any = None
    error: Any = None
    result: Any = None

    @property
    def ended(self) -> bool:
        return self.status in TERMINAL


class Event(msgspec.Struct, frozen=True):
    """One entry of a run's log. `seq`: its number, the same for every reader; -1 only for `gap`, which tells that the
    log has lost what was before `data["next"]`."""

    seq: int
    type: str
    data: Any

    @property
    def last(self) -> bool:
        """The run has ended with it."""
        return self.type in LAST
