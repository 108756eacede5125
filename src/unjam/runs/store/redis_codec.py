"""Between Redis replies and what the store gives out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from unjam.runs.model import Batch, Event, NewEvent, NewRun, Run, WorkerInfo
from unjam.runs.store.base import (
    Fenced,
    InputsFull,
    KeyReused,
    LogExpired,
    NotEnded,
    QueueFull,
    TenantQueueFull,
    UnknownRun,
)


def checked(reply: Sequence[Any], run: str = "") -> Sequence[Any]:
    """The reply of a script, if it is good. Raises what it says."""
    code = reply[0]
    if code == b"ok" or code == b"none" or code == b"again":
        return reply
    if code == b"unknown":
        raise UnknownRun(f"no run {run}")
    if code == b"fenced":
        fence = reply[2].decode() if isinstance(reply[2], bytes) else reply[2]
        raise Fenced(f"{run} is {reply[1].decode()}, its fence {fence}")
    if code == b"live":
        raise NotEnded(f"{run} is {reply[1].decode()}")
    if code == b"batch":
        raise ValueError(f"after batch {reply[1]} must come the next one")
    if code == b"inputs full":
        raise InputsFull(f"{run} was sent as much as a run takes")
    if code == b"reused":
        raise KeyReused("this idempotency key was used for another request")
    if code == b"full":
        raise QueueFull("as many runs of the service wait as may")
    if code == b"tenant full":
        raise TenantQueueFull("as many runs of this tenant wait for the service as may")
    raise ValueError(f"unknown answer of a script: {code!r}")


def run_of(values: Sequence[Any]) -> Run:
    """Of the record as scripts give it, in the order of `RECORD` in common.lua."""
    (
        id_, service, tenant, status, lane, pull, version, retry, most, attempt, fence, seq, created, started, ended,
        deadline, worker, cancel, check, error, metadata,
    ) = values  # fmt: skip
    return Run(
        id=id_.decode(),
        service=service.decode(),
        tenant=tenant.decode(),
        status=status.decode(),
        lane=lane.decode(),
        pull=pull == b"1",
        version=None if version is None else version.decode(),
        retry=retry.decode(),
        max_attempts=int(most),
        attempt=int(attempt),
        fence=int(fence),
        seq=int(seq),
        created=float(created),
        started=None if started is None else float(started),
        ended=None if ended is None else float(ended),
        deadline=None if deadline is None else float(deadline),
        worker=None if worker is None else worker.decode(),
        cancel_requested=cancel is not None,
        has_checkpoint=check is not None,
        error=None if error is None else msgspec.Raw(error),
        metadata=None if metadata is None else msgspec.Raw(metadata),
    )


def fields_of(new: NewRun) -> list[Any]:
    """What is kept of a new run, names and values."""
    fields: list[Any] = [
        "service", new.service, "tenant", new.tenant, "lane", new.lane, "pull", "1" if new.pull else "0",
        "retry", new.retry, "max", new.max_attempts, "fence", 0,
    ]  # fmt: skip
    if new.version is not None:
        fields += ["version", new.version]
    if new.metadata is not None:
        fields += ["metadata", bytes(new.metadata)]
    return fields


def worker_of(said: bytes) -> WorkerInfo | None:
    """None for what another version says that isn't understood here: it is for people only."""
    try:
        return msgspec.json.decode(said, type=WorkerInfo)
    except msgspec.MsgspecError:
        return None


def flat(events: Sequence[NewEvent]) -> list[Any]:
    found: list[Any] = []
    for event in events:
        found += [event.type, event.data]
    return found


def news_of(payload: bytes) -> tuple[int, list[Event]]:
    """Of what is published of a log: the seq that comes next, and the events that lead up to it, or none. The first
    line has that seq, then the time of the events, and the lengths of type and data of each, which follow it."""
    line, _, rest = payload.partition(b"\n")
    following, *more = line.split()
    seq = int(following)
    if not more:
        return seq, []
    at, lengths, events, begin = float(more[0]), more[1:], [], 0
    number = seq - len(lengths) // 2
    for length, size in zip(lengths[::2], lengths[1::2], strict=True):
        middle = begin + int(length)
        end = middle + int(size)
        events.append(Event(number, rest[begin:middle].decode(), rest[middle:end], at))
        number, begin = number + 1, end
    return seq, events


def batch_of(run: str, after: int, reply: Sequence[Any]) -> Batch:
    """Of what `read` answers: seq, status, entries. Raises LogExpired."""
    seq = int(reply[1])
    events = [
        Event(int(entry.partition(b"-")[0]), type_.decode(), data, float(at))
        for entry, (_, type_, _, data, _, at) in reply[3]
    ]
    if not events and after + 1 < seq:
        raise LogExpired(f"the log of {run} is gone")
    following = events[-1].seq + 1 if events else seq
    return Batch(events, following, reply[2] not in (b"queued", b"running") and following >= seq)
