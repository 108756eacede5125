"""What a run is: its record, its events, and what stores and workers exchange about it. Plain values.

Times are wall-clock seconds since the epoch, for people and retention only; no lease depends on them. Payloads (input,
result, event data, checkpoints) are JSON as bytes: nobody between client and worker needs to understand them.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection
from typing import Final

import msgspec

from unjam.runs.machine import ATTEMPTS_EXHAUSTED, QUEUED, WORKER_LOST, Status

#: Runs are spread over so many partitions; a run's is in its id, so that all keys of a run can share a hash tag.
PARTITIONS: Final = 128
_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS: Final = [high + low for high in _ALPHABET for low in _ALPHABET]
_ID: Final = re.compile(f"run_[0-7][0-9a-f][{_ALPHABET}]{{25}}")


def new_id(now: float, partition: int | None = None) -> str:
    """`run_PPtttttttttrrrrrrrrrrrrrrrr`: two hexadecimal digits of partition, nine of time (milliseconds, base 32) and
    80 random bits, so that ids of one partition sort by age and can't be guessed."""
    part = secrets.randbelow(PARTITIONS) if partition is None else partition
    return f"run_{part:02x}{_time(int(now * 1000))}{_random(secrets.randbits(80))}"


def partition_of(run: str) -> int:
    """Raises ValueError for what is no run id."""
    if _ID.fullmatch(run) is None:
        raise ValueError("not a run id")
    return int(run[4:6], 16)


def age(run: str) -> str:
    """Sorts ids by age, over all partitions: what `list` goes by."""
    partition_of(run)
    return run[6:]


# Every run that is made gets one: so two digits at once, and no loop.
def _time(ms: int) -> str:
    """Nine digits of base 32."""
    two = _PAIRS
    return (
        _ALPHABET[ms >> 40 & 31] + two[ms >> 30 & 1023] + two[ms >> 20 & 1023] + two[ms >> 10 & 1023] + two[ms & 1023]
    )


def _random(bits: int) -> str:
    """Sixteen digits of base 32."""
    two = _PAIRS
    return (
        two[bits >> 70 & 1023]
        + two[bits >> 60 & 1023]
        + two[bits >> 50 & 1023]
        + two[bits >> 40 & 1023]
        + two[bits >> 30 & 1023]
        + two[bits >> 20 & 1023]
        + two[bits >> 10 & 1023]
        + two[bits & 1023]
    )


class Run(msgspec.Struct, kw_only=True):
    """One durable unit of work, without its payloads. `seq`: the next event's number. `attempt`: executions begun that
    were charged; `fence`: numbers its owners, 0 before the first. `retry`: what happens when a worker is lost after it
    has shown output and there is no checkpoint: `fail` or `restart`. `deadline`: wall time at which it expires, None:
    never. `pull`: workers claim it; otherwise the gateway's dispatcher pushes it to an endpoint. `version`: the one
    it is pinned to: asked for, or the one that began it. `worker`: who has it, or had it when it ended."""

    id: str
    service: str
    tenant: str = ""
    status: Status = QUEUED
    lane: str = "fast"
    pull: bool = False
    version: str | None = None
    retry: str = "fail"
    max_attempts: int = 3
    attempt: int = 0
    fence: int = 0
    seq: int = 0
    created: float = 0.0
    started: float | None = None
    ended: float | None = None
    deadline: float | None = None
    worker: str | None = None
    cancel_requested: bool = False
    has_checkpoint: bool = False
    error: msgspec.Raw | None = None
    metadata: msgspec.Raw | None = None


class Event(msgspec.Struct, frozen=True):
    """One entry of a run's log. `data`: JSON. `at`: wall time it was appended."""

    seq: int
    type: str
    data: bytes
    at: float


class NewEvent(msgspec.Struct, frozen=True):
    type: str
    data: bytes


class NewRun(msgspec.Struct, kw_only=True, frozen=True):
    """What `create` is given. `digest`: of everything that makes two requests the same, for the idempotency key.
    `max_queued`: runs of the service that may wait, `max_queued_tenant`: those of this tenant; None: any number."""

    service: str
    input: bytes
    digest: bytes
    tenant: str = ""
    key: str | None = None
    lane: str = "fast"
    pull: bool = False
    version: str | None = None
    retry: str = "fail"
    max_attempts: int = 3
    deadline: float | None = None
    metadata: msgspec.Raw | None = None
    max_queued: int | None = None
    max_queued_tenant: int | None = None

    def record(self, run: str, created: float, seq: int = 0) -> Run:
        """The run that is made of it. `created`: wall time; `seq`: the number of its next event."""
        return Run(
            id=run,
            service=self.service,
            tenant=self.tenant,
            lane=self.lane,
            pull=self.pull,
            version=self.version,
            retry=self.retry,
            max_attempts=self.max_attempts,
            seq=seq,
            created=created,
            deadline=self.deadline,
            metadata=self.metadata,
        )


class Claim(msgspec.Struct, frozen=True):
    """A run that was given to a worker, and what it needs to begin or go on. `pinned`: it was pinned to the worker's
    version before; False also where the answer was lost, and is told again."""

    run: Run
    input: bytes
    checkpoint: bytes | None
    pinned: bool = False


class Beat(msgspec.Struct, frozen=True):
    """The answer to a sign of life. `cancel`: the run is to be stopped. `inputs`: how many inputs were sent to it."""

    cancel: bool
    inputs: int = 0


class Appended(msgspec.Struct, frozen=True):
    """`first`: seq of the first event of the batch; `next`: of the next one to come."""

    first: int
    next: int
    cancel: bool


class Batch(msgspec.Struct, frozen=True):
    """Events read from a log. `next`: seq of the next one that may come; `ended`: the log has its last event and
    `events` reaches it."""

    events: list[Event]
    next: int
    ended: bool


class WorkerInfo(msgspec.Struct, kw_only=True, frozen=True):
    """A worker that is there, as it was last announced. `slots`: runs it does at once; `running`: those it does now.
    `load`: what it says of its machine, figures named as in a load report; None: nothing. `via`: the name of the
    gateway it came by, or `direct` for one that talks to the store itself. `started`, `at`: wall time of its start and
    of what is said here."""

    id: str
    services: tuple[str, ...]
    version: str | None = None
    slots: int = 1
    running: int = 0
    lanes: tuple[str, ...] = ("fast", "heavy")
    load: dict[str, float] | None = None
    via: str = "direct"
    started: float = 0.0
    at: float = 0.0


class Settled(msgspec.Struct, frozen=True):
    """What became of a run in `finish`, `cancel`, `release` or `sweep`. `changed`: it was this call that did it."""

    run: Run
    changed: bool


def suits(pin: str | None, version: str | None, known: Collection[str], pinned: bool = False) -> bool:
    """Whether a run that is pinned to the version `pin` may go to a worker of `version`; None: to one that doesn't say.
    `known`: versions that there are still; a pin to another one holds nobody. `pinned`: the worker wants only what is
    pinned to its version."""
    if pinned:
        return pin is not None and pin == version
    return version is None or pin is None or pin == version or pin not in known


def created_data(service: str, lane: str) -> bytes:
    """Data of `run.created`."""
    return msgspec.json.encode({"service": service, "lane": lane})


def attempt_data(n: int, from_seq: int, reason: str) -> bytes:
    """Data of `run.attempt`. `from_seq`: what was shown from there on, up to this event, may be shown again: the log's
    `seq` when the checkpoint was saved that the attempt begins from, or 1, all but `run.created`, without one.
    `reason`: first, lost, handed_back or requeued."""
    return msgspec.json.encode({"n": n, "from_seq": from_seq, "reason": reason})


def failed_data(error: bytes | None) -> bytes:
    """Data of `run.failed`; `error`: JSON."""
    return b'{"error":' + (error or b"null") + b"}"


def error_body(code: str, message: str) -> bytes:
    """The `error` of a run, where it is ours."""
    return msgspec.json.encode({"code": code, "message": message})


LOST: Final = error_body(WORKER_LOST, "its worker was lost after it had shown output, and there is no checkpoint")
EXHAUSTED: Final = error_body(ATTEMPTS_EXHAUSTED, "its worker was lost, and no attempts are left")
