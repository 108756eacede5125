"""Runs in this process's memory: for tests, examples and gateways whose runs may die with them.

Semantics of `base` in full; the reference for what the others do. No method awaits anything, so each is atomic on its
event loop. Bounded: above `max_bytes` the payloads and logs of the runs that ended longest ago are dropped
(`LogExpired`), above `max_runs` those runs altogether (`UnknownRun`); when only live ones are left, `StoreAway`.
"""

from __future__ import annotations

import copy
import time
from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from unjam.runs.machine import (
    FINISH,
    QUEUED,
    RUNNING,
    TERMINAL,
    Status,
    Trigger,
    after_loss,
    after_release,
    change,
)
from unjam.runs.model import (
    EXHAUSTED,
    LOST,
    Appended,
    Batch,
    Beat,
    Claim,
    Event,
    NewEvent,
    NewRun,
    Run,
    Settled,
    WorkerInfo,
    age,
    attempt_data,
    created_data,
    failed_data,
    new_id,
)
from unjam.runs.store.base import (
    KEPT_AT_LEAST,
    KEY_KEPT,
    LEASE,
    Fenced,
    KeyReused,
    LogExpired,
    OnGrowth,
    OnReady,
    QueueFull,
    Runs,
    StoreAway,
    UnknownRun,
    Workers,
    check_size,
)
from unjam.runs.store.order import Due, Waiting
from unjam.runs.store.presence import Presence

#: Bytes counted for a run and for an event beside their payloads: about what they take.
_RUN, _EVENT = 2048, 200

#: tenant, service, key
_Key = tuple[str, str, str]


@dataclass(slots=True)
class _Held:
    """A run and all that belongs to it. `order`: number of its creation. `why`: reason of its next attempt. `length`:
    of its lease. `settled_by`: fence whose `finish` ended it. `dropped`: payloads and log are gone."""

    run: Run
    input: bytes
    order: int
    key: _Key | None = None
    result: bytes | None = None
    checkpoint: bytes | None = None
    checkpoint_seq: int = 1
    log: list[Event] = field(default_factory=list)
    inputs: list[bytes] = field(default_factory=list)
    shown: bool = False
    why: str = "first"
    released_by: int | None = None
    settled_by: int | None = None
    batch: int = 0
    appended: tuple[int, int] = (0, 0)
    length: float = LEASE
    size: int = 0
    dropped: bool = False


class MemoryStore:
    """`clock`: wall time; `monotonic`: what leases go by. Both in seconds."""

    def __init__(
        self,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        *,
        max_bytes: int = 1 << 30,
        max_runs: int = 200_000,
    ) -> None:
        self.on_growth: OnGrowth = lambda run, seq: None
        self.on_ready: OnReady = lambda service: None
        self._clock = clock
        self._monotonic = monotonic
        self._max_bytes = max_bytes
        self._max_runs = max_runs
        self._bytes = 0
        self._created = 0
        self._fronts = 0
        self._held: dict[str, _Held] = {}
        self._by_age: list[tuple[str, str]] = []
        self._waiting = Waiting()
        self._running: dict[str, int] = {}
        self._leases = Due()
        self._deadlines = Due()
        #: In the order of their end; those of `_whole` have their payloads and log still.
        self._ended: dict[str, None] = {}
        self._whole: dict[str, None] = {}
        self._dead: dict[str, None] = {}
        #: key → digest, run, wall time of its use.
        self._keys: dict[_Key, tuple[bytes, str, float]] = {}
        self._watched: set[str] = set()
        self._presence = Presence(monotonic)

    async def open(self) -> None:
        """Nothing to connect to."""

    async def close(self) -> None:
        """What it holds is gone with the object only."""

    # -- a run's life ---------------------------------------------------------------------------------------------

    async def create(self, new: NewRun) -> tuple[Run, bool]:
        check_size(new.input)
        now = self._clock()
        key = None if new.key is None else (new.tenant, new.service, new.key)
        if key is not None and (known := self._known(key, new.digest, now)) is not None:
            return copy.copy(known.run), False
        if new.max_queued is not None and self._waiting.lengths().get(new.service, 0) >= new.max_queued:
            raise QueueFull(f"{new.max_queued} runs of {new.service} wait already")
        self._make_room(len(new.input) + _RUN + _EVENT)
        self._make_room_for_record()
        self._created += 1
        run = Run(
            id=new_id(now),
            service=new.service,
            tenant=new.tenant,
            lane=new.lane,
            pull=new.pull,
            version=new.version,
            retry=new.retry,
            max_attempts=new.max_attempts,
            created=now,
            deadline=new.deadline,
            metadata=new.metadata,
        )
        held = _Held(run, new.input, order=self._created, key=key)
        self._held[run.id] = held
        insort(self._by_age, (age(run.id), run.id))
        self._grow(held, len(new.input) + _RUN)
        if key is not None:
            self._keys[key] = (new.digest, run.id, now)
        self._write(held, "run.created", created_data(new.service, new.lane))
        if run.deadline is not None:
            self._deadlines.put(run.id, run.deadline)
        self._enqueue(held, held.order)
        return copy.copy(run), True

    async def claim(
        self,
        services: Sequence[str],
        worker: str,
        *,
        pull: bool,
        lanes: Sequence[str] = ("fast", "heavy"),
        lease: float = LEASE,
    ) -> Claim | None:
        held = self._oldest(services, pull, lanes)
        if held is None:
            return None
        run = held.run
        to = change(run.status, "claim")
        self._leave(held)
        run.status = to.to
        run.attempt += to.charged
        run.fence += 1
        run.worker = worker
        if run.started is None:
            run.started = self._clock()
        self._running[run.service] = self._running.get(run.service, 0) + 1
        held.batch, held.appended, held.released_by = 0, (0, 0), None
        self._lend(held, lease)
        self._write(held, to.event, attempt_data(run.attempt, held.checkpoint_seq, held.why))
        return Claim(copy.copy(run), held.input, held.checkpoint)

    async def append(self, run: str, fence: int, batch: int, events: Sequence[NewEvent]) -> Appended:
        check_size(*(event.data for event in events))
        held = self._owned(run, fence)
        if self._is_new(held, batch):
            self._make_room(sum(len(event.data) + _EVENT for event in events))
            self._add(held, batch, events)
        self._lend(held, held.length)
        first, following = held.appended
        return Appended(first, following, held.run.cancel_requested)

    async def heartbeat(self, run: str, fence: int, checkpoint: bytes | None = None, lease: float = LEASE) -> Beat:
        check_size(checkpoint)
        held = self._owned(run, fence)
        if checkpoint is not None:
            self._make_room(len(checkpoint) - len(held.checkpoint or b""))
            self._keep_checkpoint(held, checkpoint)
        self._lend(held, lease)
        return Beat(held.run.cancel_requested, len(held.inputs))

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
        trigger = FINISH.get(status)
        if trigger is None:
            raise ValueError(f"no run finishes as {status!r}")
        check_size(result, error, *(event.data for event in events))
        held = self._get(run)
        if held.settled_by is not None and held.settled_by == fence:
            return Settled(copy.copy(held.run), False)
        held = self._owned(run, fence)
        # The end is taken whatever the budget says: it is what frees room.
        if events and (batch is None or self._is_new(held, batch)):
            self._add(held, held.batch + 1 if batch is None else batch, events)
        held.result = result
        self._grow(held, len(result or b""))
        held.settled_by = fence
        return self._end(held, trigger, error)

    async def release(self, run: str, fence: int, checkpoint: bytes | None = None) -> Settled:
        check_size(checkpoint)
        held = self._get(run)
        if held.run.status == QUEUED and held.released_by == fence:
            return Settled(copy.copy(held.run), False)
        held = self._owned(run, fence)
        if checkpoint is not None:
            self._keep_checkpoint(held, checkpoint)
        trigger = after_release(held.run)
        if trigger != "release":
            return self._end(held, trigger)
        held.released_by = fence
        self._fronts += 1
        return self._requeue(held, trigger, "handed_back", held.run.attempt - 1, place=-self._fronts)

    async def sweep(self, limit: int = 100) -> list[Settled]:
        settled: list[Settled] = []
        now = self._clock()
        while len(settled) < limit and (run := self._deadlines.pop(now)) is not None:
            settled.append(self._end(self._held[run], "expire"))
        now = self._monotonic()
        while len(settled) < limit and (run := self._leases.pop(now)) is not None:
            settled.append(self._lose(self._held[run]))
        return settled

    async def cancel(self, run: str) -> Settled:
        held = self._get(run)
        if held.run.status in TERMINAL or held.run.cancel_requested:
            return Settled(copy.copy(held.run), False)
        to = change(held.run.status, "cancel")
        if to.to in TERMINAL:
            return self._end(held, "cancel")
        held.run.cancel_requested = True
        return Settled(copy.copy(held.run), True)

    async def requeue(self, run: str) -> Settled:
        held = self._get(run)
        if held.run.status not in ("failed", "expired"):
            return Settled(copy.copy(held.run), False)
        if held.dropped:
            raise LogExpired(f"the input of {run} is gone")
        to = change(held.run.status, "requeue")
        self._make_room(_EVENT)
        if held.dropped:
            raise LogExpired(f"the input of {run} is gone")
        for place in (self._ended, self._whole, self._dead):
            place.pop(run, None)
        state = held.run
        state.ended = state.error = None
        state.cancel_requested = False
        if _past(state, self._clock()):
            state.deadline = None
        if state.deadline is not None:
            self._deadlines.put(run, state.deadline)
        held.settled_by = held.released_by = None
        self._grow(held, -len(held.result or b""))
        held.result = None
        self._write(held, to.event, b"{}")
        return self._requeue(held, "requeue", "requeued", 0, place=held.order)

    # -- to and from it -------------------------------------------------------------------------------------------

    async def send(self, run: str, data: bytes) -> int:
        check_size(data)
        held = self._get(run)
        if held.run.status in TERMINAL:
            raise Fenced(f"{run} has ended: {held.run.status}")
        self._make_room(len(data) + _EVENT)
        held.inputs.append(data)
        self._grow(held, len(data) + _EVENT)
        return len(held.inputs)

    async def inputs(self, run: str, after: int) -> list[tuple[int, bytes]]:
        held = self._get(run)
        begin = max(after, 0)
        return list(enumerate(held.inputs[begin:], start=begin + 1))

    async def get(self, run: str) -> Run:
        return copy.copy(self._get(run).run)

    async def result(self, run: str) -> bytes | None:
        held = self._get(run)
        if held.dropped:
            raise LogExpired(f"the result of {run} is gone")
        return held.result

    async def read(self, run: str, after: int = -1, limit: int = 256, size: int = 1 << 20) -> Batch:
        held = self._get(run)
        if held.dropped:
            raise LogExpired(f"the log of {run} is gone")
        events: list[Event] = []
        begin = max(after + 1, 0)
        for event in held.log[begin : begin + max(limit, 1)]:
            events.append(event)
            size -= len(event.data)
            if size <= 0:
                break
        following = events[-1].seq + 1 if events else held.run.seq
        ended = held.run.status in TERMINAL and following == held.run.seq
        return Batch(events, following, ended)

    async def list(
        self,
        tenant: str | None,
        *,
        service: str | None = None,
        status: str | None = None,
        before: str | None = None,
        limit: int = 50,
    ) -> Runs:
        found: Runs = []
        at = len(self._by_age) if before is None else bisect_left(self._by_age, (age(before), before))
        while at > 0 and len(found) < limit:
            at -= 1
            run = self._held[self._by_age[at][1]].run
            if tenant in (None, run.tenant) and service in (None, run.service) and status in (None, run.status):
                found.append(copy.copy(run))
        return found

    async def dead(self, service: str | None = None, limit: int = 100) -> Runs:
        runs = (self._held[run].run for run in reversed(self._dead))
        found = [copy.copy(run) for run in runs if service in (None, run.service)]
        return found[:limit]

    async def housekeep(self, keep: float, limit: int = 1000) -> int:
        if keep < KEPT_AT_LEAST:
            raise ValueError(f"ended runs are kept {KEPT_AT_LEAST:g} s at least")
        now = self._clock()
        for key in [key for key, (_, _, used) in self._keys.items() if now - used > KEY_KEPT]:
            del self._keys[key]
        old = [run for run in self._ended if now - (self._held[run].run.ended or now) > keep][:limit]
        for run in old:
            self._delete(run)
        return len(old)

    async def depth(self) -> dict[str, tuple[int, int]]:
        queued = self._waiting.lengths()
        services = queued.keys() | self._running.keys()
        return {service: (queued.get(service, 0), self._running.get(service, 0)) for service in services}

    def watch(self, run: str) -> None:
        self._watched.add(run)

    def unwatch(self, run: str) -> None:
        self._watched.discard(run)

    # -- workers ------------------------------------------------------------------------------------------------------

    async def announce(self, info: WorkerInfo, ttl: float) -> None:
        self._presence.announce(info, ttl)

    async def workers(self) -> Workers:
        return self._presence.workers()

    # -- who may ----------------------------------------------------------------------------------------------------

    def _get(self, run: str) -> _Held:
        held = self._held.get(run)
        if held is None:
            raise UnknownRun(f"no run {run}")
        return held

    def _owned(self, run: str, fence: int) -> _Held:
        held = self._get(run)
        if held.run.status != RUNNING or held.run.fence != fence:
            raise Fenced(f"{run} is {held.run.status}, its fence {held.run.fence}, not {fence}")
        return held

    def _known(self, key: _Key, digest: bytes, now: float) -> _Held | None:
        """What the key was used for. Raises KeyReused."""
        used = self._keys.get(key)
        if used is None or now - used[2] > KEY_KEPT:
            return None
        if used[0] != digest:
            raise KeyReused("this idempotency key was used for another request")
        return self._held[used[1]]

    @staticmethod
    def _is_new(held: _Held, batch: int) -> bool:
        if batch == held.batch and batch > 0:
            return False
        if batch != held.batch + 1:
            raise ValueError(f"batch {batch} after batch {held.batch}")
        return True

    # -- changes ----------------------------------------------------------------------------------------------------

    def _write(self, held: _Held, type_: str | None, data: bytes) -> None:
        if type_ is None:
            return
        run = held.run
        held.log.append(Event(run.seq, type_, data, self._clock()))
        run.seq += 1
        self._grow(held, len(data) + _EVENT)
        if run.id in self._watched:
            self.on_growth(run.id, run.seq)

    def _add(self, held: _Held, batch: int, events: Sequence[NewEvent]) -> None:
        first = held.run.seq
        now = self._clock()
        for offset, event in enumerate(events):
            held.log.append(Event(first + offset, event.type, event.data, now))
        held.run.seq += len(events)
        held.shown = held.shown or bool(events)
        held.batch = batch
        held.appended = (first, held.run.seq)
        self._grow(held, sum(len(event.data) + _EVENT for event in events))
        if events and held.run.id in self._watched:
            self.on_growth(held.run.id, held.run.seq)

    def _keep_checkpoint(self, held: _Held, checkpoint: bytes) -> None:
        self._grow(held, len(checkpoint) - len(held.checkpoint or b""))
        held.checkpoint, held.checkpoint_seq, held.run.has_checkpoint = checkpoint, held.run.seq, True

    def _lend(self, held: _Held, length: float) -> None:
        held.length = length
        self._leases.put(held.run.id, self._monotonic() + length)

    def _leave(self, held: _Held) -> None:
        """Out of the queue, or off its worker."""
        run = held.run
        if run.status == QUEUED:
            self._waiting.remove((run.service, run.lane, run.pull), run.id)
        elif run.status == RUNNING:
            self._leases.discard(run.id)
            left = self._running[run.service] - 1
            if left:
                self._running[run.service] = left
            else:
                del self._running[run.service]

    def _lose(self, held: _Held) -> Settled:
        trigger = after_loss(held.run, held.shown)
        if trigger == "lost_resumable":
            return self._requeue(held, trigger, "lost", held.run.attempt, place=held.order)
        return self._end(held, trigger, {"lost_unresumable": LOST, "exhausted": EXHAUSTED}.get(trigger))

    def _requeue(self, held: _Held, trigger: Trigger, why: str, attempts: int, place: int) -> Settled:
        run = held.run
        to: Status = change(run.status, trigger).to
        self._leave(held)
        run.status, run.attempt, run.worker, held.why = to, attempts, None, why
        self._enqueue(held, place)
        return Settled(copy.copy(run), True)

    def _end(self, held: _Held, trigger: Trigger, error: bytes | None = None) -> Settled:
        run = held.run
        to = change(run.status, trigger)
        self._leave(held)
        self._deadlines.discard(run.id)
        run.status, run.ended = to.to, self._clock()
        run.error = None if error is None else msgspec.Raw(error)
        self._ended[run.id] = self._whole[run.id] = None
        if trigger == "exhausted":
            self._dead[run.id] = None
        self._write(held, to.event, failed_data(error) if to.to == "failed" else b"{}")
        return Settled(copy.copy(run), True)

    # -- queues -----------------------------------------------------------------------------------------------------

    def _enqueue(self, held: _Held, place: int) -> None:
        run = held.run
        self._waiting.add((run.service, run.lane, run.pull), place, run.id)
        self.on_ready(run.service)

    def _head(self, service: str, lane: str, pull: bool) -> tuple[int, str] | None:
        """The first of the queue, left there. What is past its deadline expires."""
        while (head := self._waiting.head((service, lane, pull))) is not None:
            held = self._held[head[1]]
            if not _past(held.run, self._clock()):
                break
            self._end(held, "expire")
        return head

    def _oldest(self, services: Sequence[str], pull: bool, lanes: Sequence[str]) -> _Held | None:
        for lane in lanes:
            heads = [head for service in services if (head := self._head(service, lane, pull)) is not None]
            if heads:
                return self._held[min(heads)[1]]
        return None

    # -- bounds -----------------------------------------------------------------------------------------------------

    def _grow(self, held: _Held, by: int) -> None:
        held.size += by
        self._bytes += by

    def _make_room(self, need: int) -> None:
        """Raises StoreAway, having changed nothing that is live."""
        while self._bytes + need > self._max_bytes and self._whole:
            run = next(iter(self._whole))
            del self._whole[run]
            held = self._held[run]
            self._grow(held, _RUN - held.size)
            held.input, held.result, held.checkpoint, held.log, held.inputs = b"", None, None, [], []
            held.dropped = True
        if self._bytes + need > self._max_bytes:
            raise StoreAway(f"the store's {self._max_bytes} bytes are full of runs that have not ended")

    def _make_room_for_record(self) -> None:
        if len(self._held) < self._max_runs:
            return
        oldest = next(iter(self._ended), None)
        if oldest is None:
            raise StoreAway(f"{self._max_runs} runs, none of which has ended")
        self._delete(oldest)

    def _delete(self, run: str) -> None:
        held = self._held.pop(run)
        self._bytes -= held.size
        if held.key is not None and self._keys.get(held.key, (b"", "", 0.0))[1] == run:
            del self._keys[held.key]
        entry = (age(run), run)
        del self._by_age[bisect_left(self._by_age, entry)]
        del self._ended[run]
        self._whole.pop(run, None)
        self._dead.pop(run, None)


def _past(run: Run, now: float) -> bool:
    return run.deadline is not None and run.deadline <= now
