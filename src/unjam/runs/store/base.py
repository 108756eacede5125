"""What every store of runs does. One contract suite (tests/store_contract) runs over all of them.

Promises, of every method:
- What returned is durable as far as the store goes: `create` and `finish` survive the death of any process.
- Atomic: a call that raises or is cancelled has happened wholly or not at all; called again, it gives the same answer.
- Leases go by a clock of the store's own. In memory and SQLite it is monotonic. In Redis it is the server's, which is
  that machine's wall clock: put forward, it ends no lease (it counts as time in which nobody could give a sign of
  life); put back, leases that nobody renews end later by as much. Nobody else's clock counts.
- When the store was away, or nobody swept for long as all stood still, no owner that lives loses its run by that: all
  leases hold for a full length from when it is back.
- `StoreAway` means: not now, try again. Nothing is retried in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from unjam.runs.model import Appended, Batch, Beat, Claim, Event, NewEvent, NewRun, Run, Settled, WorkerInfo

#: Seconds a claim holds without a sign of life; workers give one every third of it.
LEASE: Final = 30.0
#: Bytes of the largest input, result, event, checkpoint or error a store takes; the API's limits are lower.
LARGEST: Final = 16 << 20
#: Inputs that a run takes in its life, and bytes of them all: each is kept for as long as the run is.
MOST_INPUTS: int = 10_000
INPUT_BYTES: int = 64 << 20
#: Seconds an idempotency key is known, by the wall clock.
KEY_KEPT: Final = 24 * 3600.0
#: Seconds an ended run is kept at least.
KEPT_AT_LEAST: Final = 3600.0
#: Workers that are known to be there at once; above that, those whose word ends first are forgotten first.
MOST_WORKERS: Final = 10_000
#: Bytes that a worker may say of itself.
LARGEST_WORD: Final = 16 << 10
#: How many at the front of a queue a claim of some version looks at, for one that suits it.
LOOKED: Final = 64


class StoreError(Exception):
    """Base of what stores raise. `code`: snake_case, the `error.code` of the API and the label of metrics."""

    code = "store_error"


class StoreAway(StoreError):
    """It can't be reached, is read-only, full, or not allowed to us: 503 with Retry-After. `retry_after`: seconds."""

    code = "store_away"

    def __init__(self, why: str, retry_after: float = 2.0) -> None:
        super().__init__(why)
        self.retry_after = retry_after


class UnknownRun(StoreError):
    """There is no such run, or not any more."""

    code = "unknown_run"


class Fenced(StoreError):
    """The caller lost the run to another owner, or it has ended: stop working on it."""

    code = "fenced"


class KeyReused(StoreError):
    """The idempotency key was used for another request."""

    code = "idempotency_key_reused"


class QueueFull(StoreError):
    """As many runs of the service wait as may."""

    code = "queue_full"


class TenantQueueFull(QueueFull):
    """As many runs of the service wait for one tenant as may."""

    code = "tenant_queue_full"


class InputsFull(StoreError):
    """The run was sent as much as it takes."""

    code = "inputs_full"


class NotEnded(StoreError):
    """Only what has ended may be deleted."""

    code = "run_not_ended"


class LogExpired(StoreError):
    """The events asked for are gone; the run itself may be known still."""

    code = "log_expired"


class TooLarge(StoreError):
    """A payload is above the limit."""

    code = "payload_too_large"


def check_size(*payloads: bytes | None) -> None:
    """Raises TooLarge."""
    for payload in payloads:
        if payload is not None and len(payload) > LARGEST:
            raise TooLarge(f"{len(payload)} bytes in one payload; at most {LARGEST}")


def check_inputs(number: int, size: int) -> None:
    """`number`: the next one's, `size`: bytes of all with it. Raises InputsFull."""
    if number > MOST_INPUTS or size > INPUT_BYTES:
        raise InputsFull(f"a run takes {MOST_INPUTS} inputs, of {INPUT_BYTES} bytes together")


#: (run id, seq of the next event): the log has grown to that, or an input was sent. Only a hint: it may be lost, late
#: or doubled.
OnGrowth = Callable[[str, int], None]
#: (run id, events): instead of `on_growth`, from a store that has them at hand: these were appended, as `read` gives
#: them. Also only a hint: what came before them may not have been told.
OnEvents = Callable[[str, Sequence[Event]], None]
#: (service): a run of the service may be claimable. Only a hint.
OnReady = Callable[[str], None]


class Hints:
    """Whom a store tells: nobody, until somebody says so. `Store` says of what."""

    def __init__(self) -> None:
        self.on_growth: OnGrowth = lambda run, seq: None
        self.on_events: OnEvents = lambda run, events: self.on_growth(run, events[-1].seq + 1)
        self.on_ready: OnReady = lambda service: None
        self._watched: set[str] = set()


#: `Store.list` would hide `list` within the class.
Runs = list[Run]
Workers = list[WorkerInfo]


class Store(Protocol):
    """`run`: id. `fence`: from the `Claim`. All may raise `StoreAway`; those of one run also `UnknownRun`."""

    async def open(self) -> None:
        """Connect, make or check the schema, recover. Raises StoreAway, or StoreError for a store that isn't ours."""

    async def close(self) -> None: ...

    async def create(self, new: NewRun) -> tuple[Run, bool]:
        """Record the run with event 0 (`run.created`) and put it in its queue, all at once. False: the idempotency key
        (of the tenant and service, kept 24 h, or as long as its run) was used for the same request before; this is that
        run. Both limits count all that wait, however they came to; they hold exactly, but in a cluster, where as many
        as create at the same time may go beyond them. Raises KeyReused, QueueFull, TenantQueueFull, TooLarge."""

    async def claim(
        self,
        services: Sequence[str],
        worker: str,
        *,
        pull: bool,
        lanes: Sequence[str] = ("fast", "heavy"),
        lease: float = LEASE,
        version: str | None = None,
        known: Sequence[str] = (),
        pinned: bool = False,
    ) -> Claim | None:
        """The oldest claimable run of these services, of the first lane that has one: fence and attempt one higher,
        event `run.attempt` (`attempt_data`). None: none waits. A run past its deadline is expired instead, and passed
        over.

        With a `version` only runs that suit it (`model.suits`), and the run is pinned to it from then on. `known`: the
        versions that there are. `pinned`: only what is pinned to that version already; nothing without one. Behind the
        first `LOOKED` of a queue (a service and lane; in a cluster also a partition) that don't suit nobody looks."""

    async def append(self, run: str, fence: int, batch: int, events: Sequence[NewEvent]) -> Appended:
        """Add events to the log. `batch` numbers the appends of one owner from 1: a repeated number changes nothing and
        gives the first answer; ValueError for a gap, or for a number that was followed by others. Extends the lease, by
        the length of the claim or last heartbeat: also one that has expired, as long as nobody swept it. Raises Fenced,
        TooLarge."""

    async def heartbeat(
        self,
        run: str,
        fence: int,
        checkpoint: bytes | None = None,
        lease: float = LEASE,
        version: str | None = None,
        number: int | None = None,
    ) -> Beat:
        """A sign of life, and how far it has come. `version`: the one that works on it, for owners who learn that after
        the claim: the run is pinned to it unless it has a pin. `number` numbers the checkpoints of one owner: one that
        isn't above the last has come late, and takes no later one's place. Raises Fenced, TooLarge."""

    async def finish(
        self,
        run: str,
        fence: int,
        status: str,
        *,
        result: bytes | None = None,
        error: bytes | None = None,
        batch: int | None = None,
        events: Sequence[NewEvent] = (),
    ) -> Settled:
        """End the run as `completed`, `failed` or `cancelled`, after `events`, with one terminal event. The first one
        wins: by its own fence again, `changed` is False and the run is as it ended. Raises Fenced to all others (also
        when not `finish` ended it), ValueError for another status, TooLarge. A `batch` counts as in `append`."""

    async def release(self, run: str, fence: int, checkpoint: bytes | None = None) -> Settled:
        """Hand it back to the queue's front; no attempt is charged. One that was to be cancelled is, instead. Repeated
        while it waits: `changed` is False. Raises Fenced, TooLarge."""

    async def sweep(self, limit: int = 100) -> list[Settled]:
        """Runs whose lease has expired go as `machine.after_loss` says: back to the queue, failed (`worker_lost`),
        failed and dead (`attempts_exhausted`), or cancelled. Runs past their deadline expire, queued or running,
        whatever their lease. At most `limit`. Any number of gateways may do it at once."""

    async def cancel(self, run: str) -> Settled:
        """Queued: cancelled at once. Running: its worker is told by its next heartbeat or append; `changed` is True for
        the first call only. Ended: unchanged."""

    async def send(self, run: str, data: bytes) -> int:
        """Give a running or queued run an input; its number, from 1. Who watches the run gets `on_growth`, so that its
        owner looks for it at once. Raises Fenced when it has ended,
        InputsFull, TooLarge."""

    async def inputs(self, run: str, after: int, limit: int = 256, size: int = 1 << 20) -> list[tuple[int, bytes]]:
        """The inputs sent to it with numbers above `after`, in order: at most `limit`, and no more once they have
        `size` bytes (but one at least)."""

    async def get(self, run: str) -> Run: ...

    async def result(self, run: str) -> bytes | None:
        """What it returned; None while it has not, or when it returned nothing. Raises LogExpired."""

    async def read(self, run: str, after: int = -1, limit: int = 256, size: int = 1 << 20) -> Batch:
        """Events with a seq above `after`, at most `limit`, and no more once they have `size` bytes (but one at least).
        When there are none, `next` is the log's own: below `after` + 1 it tells of a log that has lost its tail.
        Raises LogExpired."""

    async def list(
        self,
        tenant: str | None,
        *,
        service: str | None = None,
        status: str | None = None,
        before: str | None = None,
        limit: int = 50,
    ) -> Runs:
        """The newest first, by `model.age`. `tenant` None: all tenants'. `before`: a run id to go on from, known still
        or not; ValueError for what is none."""

    async def dead(self, service: str | None = None, limit: int = 100) -> Runs:
        """Runs that were given up: attempts exhausted. The newest first."""

    async def requeue(self, run: str) -> Settled:
        """Queue a failed or expired run again, from its checkpoint: its attempts and a deadline that has passed are
        forgiven, its error, result and a wish to cancel forgotten. It stays pinned to its version. In any other state:
        unchanged."""

    async def delete(self, run: str) -> None:
        """Forget an ended run at once: its record, payloads, log and place in every list. Its idempotency key is free
        then: used again, it makes a new run. Raises NotEnded."""

    async def housekeep(self, keep: float, limit: int = 1000) -> int:
        """Delete runs that ended more than `keep` seconds ago; how many were. ValueError below `KEPT_AT_LEAST`."""

    async def depth(self) -> dict[str, tuple[int, int]]:
        """By service: runs queued, runs running. One that has neither may be missing."""

    async def announce(self, info: WorkerInfo, ttl: float) -> None:
        """This worker is there, for `ttl` seconds of the store's own clock unless it is announced again; 0: it is gone.
        For people and planning: no run depends on it, and what fails here harms none. Not durable: a store that is
        opened again may know of nobody until the next word. Raises TooLarge."""

    async def workers(self) -> Workers:
        """Those that are there, by id."""

    def watch(self, run: str) -> None:
        """From now on `on_growth` is told of this run. Register first, then read, then go live."""

    def unwatch(self, run: str) -> None: ...

    on_growth: OnGrowth
    #: Where nobody sets it, `on_growth` is told.
    on_events: OnEvents
    on_ready: OnReady
