"""Runs in this process's memory: for tests, examples and gateways whose runs may die with them.

Semantics of `base` in full; the reference for what the others do. No method but `list` awaits anything, so each is
atomic on its event loop. Bounded: above `max_bytes` the payloads and logs of the runs that ended longest ago are
dropped (`LogExpired`), above `max_runs` those runs altogether (`UnknownRun`); when only live ones are left,
`StoreAway`.
"""

from __future__ import annotations

import asyncio
import copy
from bisect import bisect_left, insort
from collections.abc import Sequence
from itertools import islice, takewhile

from unjam.runs.machine import (
    QUEUED,
    TERMINAL,
    after_release,
    change,
    finishing,
)
from unjam.runs.model import (
    Appended,
    Batch,
    Beat,
    Claim,
    Event,
    NewEvent,
    NewRun,
    Run,
    Settled,
    age,
    attempt_data,
    created_data,
    new_id,
)
from unjam.runs.store.base import (
    KEPT_AT_LEAST,
    KEY_KEPT,
    LEASE,
    Fenced,
    LogExpired,
    NotEnded,
    QueueFull,
    Runs,
    TenantQueueFull,
    check_inputs,
    check_size,
)
from unjam.runs.store.memory_book import EVENT, RUN, Book, Held, past

#: Runs that a list passes by before others get their turn.
LOOKS = 2000


class MemoryStore(Book):
    """`clock`: wall time; `monotonic`: what leases go by. Both in seconds."""

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
        own = new.max_queued_tenant
        if own is not None and self._queued_of.get((new.service, new.tenant), 0) >= own:
            raise TenantQueueFull(f"{own} runs of this tenant wait for {new.service} already")
        self._make_room(len(new.input) + RUN + EVENT)
        self._make_room_for_record()
        self._created += 1
        run = new.record(new_id(now), now)
        held = Held(run, new.input, order=self._created, key=key)
        self._held[run.id] = held
        insort(self._by_age, (age(run.id), run.id))
        self._grow(held, len(new.input) + RUN)
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
        version: str | None = None,
        known: Sequence[str] = (),
        pinned: bool = False,
    ) -> Claim | None:
        held = self._oldest(services, pull, lanes, version, known, pinned)
        if held is None:
            return None
        run = held.run
        before = version is not None and run.version == version
        to = change(run.status, "claim")
        self._leave(held)
        run.status = to.to
        run.attempt += to.charged
        run.fence += 1
        run.worker = worker
        run.version = run.version if version is None else version
        if run.started is None:
            run.started = self._clock()
        self._running[run.service] = self._running.get(run.service, 0) + 1
        held.batch, held.appended, held.released_by = 0, (0, 0), None
        self._lend(held, lease)
        self._write(held, to.event, attempt_data(run.attempt, held.checkpoint_seq, held.why))
        return Claim(copy.copy(run), held.input, held.checkpoint, before)

    async def append(self, run: str, fence: int, batch: int, events: Sequence[NewEvent]) -> Appended:
        check_size(*(event.data for event in events))
        held = self._owned(run, fence)
        if self._is_new(held, batch):
            self._make_room(sum(len(event.data) + EVENT for event in events))
            self._add(held, batch, events)
        self._lend(held, held.length)
        first, following = held.appended
        return Appended(first, following, held.run.cancel_requested)

    async def heartbeat(
        self,
        run: str,
        fence: int,
        checkpoint: bytes | None = None,
        lease: float = LEASE,
        version: str | None = None,
        number: int | None = None,
    ) -> Beat:
        check_size(checkpoint)
        held = self._owned(run, fence)
        if checkpoint is not None and (number is None or (fence, number) > held.saved):
            self._make_room(len(checkpoint) - len(held.checkpoint or b""))
            self._keep_checkpoint(held, checkpoint)
            held.saved = (fence, number or 0)
        if held.run.version is None:
            held.run.version = version
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
        trigger = finishing(status)
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
        lent = ((run, end, self._held[run].length) for run, end in self._leases)
        for run, end in self._sweeps.begin(now, lent):
            self._leases.put(run, end)
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
        self._make_room(EVENT)
        if held.dropped:
            raise LogExpired(f"the input of {run} is gone")
        for place in (self._ended, self._whole, self._dead):
            place.pop(run, None)
        state = held.run
        state.ended = state.error = None
        state.cancel_requested = False
        if past(state, self._clock()):
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
        check_inputs(len(held.inputs) + 1, held.sent + len(data))
        self._make_room(len(data) + EVENT)
        held.inputs.append(data)
        held.sent += len(data)
        self._grow(held, len(data) + EVENT)
        if run in self._watched:
            self.on_growth(run, held.run.seq)
        return len(held.inputs)

    async def inputs(self, run: str, after: int, limit: int = 256, size: int = 1 << 20) -> list[tuple[int, bytes]]:
        held = self._get(run)
        begin = max(after, 0)
        found: list[tuple[int, bytes]] = []
        for number, data in enumerate(held.inputs[begin : begin + max(limit, 1)], start=begin + 1):
            found.append((number, data))
            size -= len(data)
            if size <= 0:
                break
        return found

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
        looked = 0
        while at > 0 and len(found) < limit:
            at -= 1
            last = self._by_age[at]
            run = self._held[last[1]].run
            if tenant in (None, run.tenant) and service in (None, run.service) and status in (None, run.status):
                found.append(copy.copy(run))
            looked += 1
            if looked % LOOKS == 0:
                await asyncio.sleep(0)
                at = bisect_left(self._by_age, last)
        return found

    async def dead(self, service: str | None = None, limit: int = 100) -> Runs:
        runs = (self._held[run].run for run in reversed(self._dead))
        return [copy.copy(run) for run in islice((run for run in runs if service in (None, run.service)), limit)]

    async def delete(self, run: str) -> None:
        status = self._get(run).run.status
        if status not in TERMINAL:
            raise NotEnded(f"{run} is {status}")
        self._delete(run)

    async def housekeep(self, keep: float, limit: int = 1000) -> int:
        if keep < KEPT_AT_LEAST:
            raise ValueError(f"ended runs are kept {KEPT_AT_LEAST:g} s at least")
        now = self._clock()
        for key in [key for key, (_, _, used) in self._keys.items() if now - used > KEY_KEPT]:
            del self._keys[key]
        # In the order of their end, so that those that are kept need not be looked at.
        ended = takewhile(lambda run: now - (self._held[run].run.ended or now) > keep, self._ended)
        old = list(islice(ended, limit))
        for run in old:
            self._delete(run)
        return len(old)

    async def depth(self) -> dict[str, tuple[int, int]]:
        queued = self._waiting.lengths()
        services = queued.keys() | self._running.keys()
        return {service: (queued.get(service, 0), self._running.get(service, 0)) for service in services}
