"""The states of a run, as a table. Everything that changes a run's state is here; stores only carry it out.

`docs/runs.md` draws its picture from `TABLE`. A transition that isn't in it is refused with `Illegal`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple, Protocol

Status = Literal["queued", "running", "completed", "failed", "cancelled", "expired"]

QUEUED: Final = "queued"
RUNNING: Final = "running"
COMPLETED: Final = "completed"
FAILED: Final = "failed"
CANCELLED: Final = "cancelled"
EXPIRED: Final = "expired"

TERMINAL: Final[frozenset[Status]] = frozenset({"completed", "failed", "cancelled", "expired"})

Trigger = Literal[
    "claim",
    "complete",
    "fail",
    "stopped",
    "cancel",
    "release",
    "lost_resumable",
    "lost_unresumable",
    "exhausted",
    "expire",
    "requeue",
]


class Illegal(Exception):
    """This can't happen to a run in that state."""


class Change(NamedTuple):
    """`to`: the next state. `event`: type of the event that tells it, None where none is written. `charged`: the
    attempt counts."""

    to: Status
    event: str | None
    charged: bool = False


#: (state, what happens) → change.
TABLE: Final[Mapping[tuple[Status, Trigger], Change]] = {
    ("queued", "claim"): Change("running", "run.attempt", charged=True),
    ("queued", "cancel"): Change("cancelled", "run.cancelled"),
    ("queued", "expire"): Change("expired", "run.expired"),
    ("running", "complete"): Change("completed", "run.completed"),
    ("running", "fail"): Change("failed", "run.failed"),
    ("running", "stopped"): Change("cancelled", "run.cancelled"),
    ("running", "cancel"): Change("running", None),
    ("running", "release"): Change("queued", None),
    ("running", "lost_resumable"): Change("queued", None),
    ("running", "lost_unresumable"): Change("failed", "run.failed"),
    ("running", "exhausted"): Change("failed", "run.failed"),
    ("running", "expire"): Change("expired", "run.expired"),
    ("failed", "requeue"): Change("queued", "run.requeued"),
    ("expired", "requeue"): Change("queued", "run.requeued"),
}

#: What a worker says of the end → what happens.
FINISH: Final[Mapping[str, Trigger]] = {"completed": "complete", "failed": "fail", "cancelled": "stopped"}

#: `error.code` of a run that failed without its worker's word.
WORKER_LOST: Final = "worker_lost"
ATTEMPTS_EXHAUSTED: Final = "attempts_exhausted"


def finishing(status: str) -> Trigger:
    """What happens to a run whose worker says that it ended as `status`. Raises ValueError for what is not for workers
    to say."""
    trigger = FINISH.get(status)
    if trigger is None:
        raise ValueError(f"no run finishes as {status!r}")
    return trigger


def change(status: Status, trigger: Trigger) -> Change:
    """Raises Illegal."""
    found = TABLE.get((status, trigger))
    if found is None:
        raise Illegal(f"{trigger} can't happen to a run that is {status}")
    return found


class Executed(Protocol):
    """What the decisions below need to know of a run; `model.Run` has it."""

    retry: str
    max_attempts: int
    attempt: int
    cancel_requested: bool
    has_checkpoint: bool


def after_loss(run: Executed, shown: bool) -> Trigger:
    """What happens to a running run whose lease has expired. `shown`: an event of its own was appended, ever.

    What was to be cancelled is. What can begin again without showing anything twice, or may show it twice, is tried
    again while attempts are left. A deadline that has passed goes before all this.
    """
    if run.cancel_requested:
        return "stopped"
    if shown and not run.has_checkpoint and run.retry != "restart":
        return "lost_unresumable"
    if run.attempt >= run.max_attempts:
        return "exhausted"
    return "lost_resumable"


def after_release(run: Executed) -> Trigger:
    """What happens to a running run that is handed back: nobody shall go on with one that was to be cancelled."""
    return "stopped" if run.cancel_requested else "release"


def picture() -> str:
    """The table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", "    [*] --> queued: create"]
    labels: dict[tuple[str, str], list[str]] = {}
    for (status, trigger), to in TABLE.items():
        labels.setdefault((status, to.to), []).append(trigger)
    lines += [f"    {status} --> {to}: {', '.join(triggers)}" for (status, to), triggers in labels.items()]
    lines += [f"    {status} --> [*]" for status in sorted(TERMINAL)]
    return "\n".join(lines) + "\n"
