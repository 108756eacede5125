"""What the store in memory holds, and how it changes: runs, queues, leases, and the bounds of it all."""

from __future__ import annotations

import copy
import time
from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import msgspec

from unjam.runs.machine import (
    QUEUED,
    RUNNING,
    Status,
    Trigger,
    after_loss,
    change,
)
from unjam.runs.model import (
    EXHAUSTED,
    LOST,
    Event,
    NewEvent,
    Run,
    Settled,
    age,
    failed_data,
    suits,
)
from unjam.runs.store.base import (
    KEY_KEPT,
    LEASE,
    LOOKED,
    Fenced,
    KeyReused,
    StoreAway,
    UnknownRun,
)
from unjam.runs.store.order import Due, QueueName, Waiting
from unjam.runs.store.presence import OwnedStore
from unjam.runs.store.sweeps import Sweeps

#: Bytes counted for a run and for an event beside their payloads: about what they take.
RUN, EVENT = 2048, 200

#: tenant, service, key
Key = tuple[str, str, str]


@dataclass(slots=True)
class Held:
    """A run and all that belongs to it. `order`: number of its creation. `why`: reason of its next attempt. `length`:
    of its lease. `sent`: bytes of its inputs. `settled_by`: fence whose `finish` ended it. `saved`: fence and
    number of the last checkpoint. `dropped`: payloads and log are gone."""

    run: Run
    input: bytes
    order: int
    key: Key | None = None
    result: bytes | None = None
    checkpoint: bytes | None = None
    checkpoint_seq: int = 1
    log: list[Event] = field(default_factory=list)
    inputs: list[bytes] = field(default_factory=list)
    sent: int = 0
    shown: bool = False
    why: str = "first"
    released_by: int | None = None
    settled_by: int | None = None
    batch: int = 0
    appended: tuple[int, int] = (0, 0)
    saved: tuple[int, int] = (0, 0)
    length: float = LEASE
    size: int = 0
    dropped: bool = False


class Book(OwnedStore):
    """See `MemoryStore`, whose state this is."""

    def __init__(
        self,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        *,
        max_bytes: int = 1 << 30,
        max_runs: int = 200_000,
    ) -> None:
        super().__init__(monotonic)
        self._clock = clock
        self._monotonic = monotonic
        self._max_bytes = max_bytes
        self._max_runs = max_runs
        self._bytes = 0
        self._created = 0
        self._fronts = 0
        self._held: dict[str, Held] = {}
        self._by_age: list[tuple[str, str]] = []
        self._waiting = Waiting()
        self._running: dict[str, int] = {}
        #: (service, tenant) → how many wait.
        self._queued_of: dict[tuple[str, str], int] = {}
        self._leases = Due()
        self._deadlines = Due()
        self._sweeps = Sweeps()
        #: In the order of their end; those of `_whole` have their payloads and log still.
        self._ended: dict[str, None] = {}
        self._whole: dict[str, None] = {}
        self._dead: dict[str, None] = {}
        #: key → digest, run, wall time of its use.
        self._keys: dict[Key, tuple[bytes, str, float]] = {}

    # -- who may ----------------------------------------------------------------------------------------------------

    def _get(self, run: str) -> Held:
        held = self._held.get(run)
        if held is None:
            raise UnknownRun(f"no run {run}")
        return held

    def _owned(self, run: str, fence: int) -> Held:
        held = self._get(run)
        if held.run.status != RUNNING or held.run.fence != fence:
            raise Fenced(f"{run} is {held.run.status}, its fence {held.run.fence}, not {fence}")
        return held

    def _known(self, key: Key, digest: bytes, now: float) -> Held | None:
        """What the key was used for. Raises KeyReused."""
        used = self._keys.get(key)
        if used is None or now - used[2] > KEY_KEPT:
            return None
        if used[0] != digest:
            raise KeyReused("this idempotency key was used for another request")
        return self._held[used[1]]

    @staticmethod
    def _is_new(held: Held, batch: int) -> bool:
        if batch == held.batch and batch > 0:
            return False
        if batch != held.batch + 1:
            raise ValueError(f"batch {batch} after batch {held.batch}")
        return True

    # -- changes ----------------------------------------------------------------------------------------------------

    def _write(self, held: Held, type_: str | None, data: bytes) -> None:
        if type_ is None:
            return
        run = held.run
        held.log.append(Event(run.seq, type_, data, self._clock()))
        run.seq += 1
        self._grow(held, len(data) + EVENT)
        if run.id in self._watched:
            self.on_growth(run.id, run.seq)

    def _add(self, held: Held, batch: int, events: Sequence[NewEvent]) -> None:
        first = held.run.seq
        now = self._clock()
        for offset, event in enumerate(events):
            held.log.append(Event(first + offset, event.type, event.data, now))
        held.run.seq += len(events)
        held.shown = held.shown or bool(events)
        held.batch = batch
        held.appended = (first, held.run.seq)
        self._grow(held, sum(len(event.data) + EVENT for event in events))
        if events and held.run.id in self._watched:
            self.on_growth(held.run.id, held.run.seq)

    def _keep_checkpoint(self, held: Held, checkpoint: bytes) -> None:
        self._grow(held, len(checkpoint) - len(held.checkpoint or b""))
        held.checkpoint, held.checkpoint_seq, held.run.has_checkpoint = checkpoint, held.run.seq, True

    def _lend(self, held: Held, length: float) -> None:
        held.length = length
        self._leases.put(held.run.id, self._monotonic() + length)

    def _leave(self, held: Held) -> None:
        """Take it out of the queue, or away from its worker."""
        run = held.run
        if run.status == QUEUED:
            self._waiting.remove((run.service, run.lane, run.pull), run.id)
            whose = (run.service, run.tenant)
            if self._queued_of[whose] == 1:
                del self._queued_of[whose]
            else:
                self._queued_of[whose] -= 1
        elif run.status == RUNNING:
            self._leases.discard(run.id)
            left = self._running[run.service] - 1
            if left:
                self._running[run.service] = left
            else:
                del self._running[run.service]

    def _lose(self, held: Held) -> Settled:
        trigger = after_loss(held.run, held.shown)
        if trigger == "lost_resumable":
            return self._requeue(held, trigger, "lost", held.run.attempt, place=held.order)
        return self._end(held, trigger, {"lost_unresumable": LOST, "exhausted": EXHAUSTED}.get(trigger))

    def _requeue(self, held: Held, trigger: Trigger, why: str, attempts: int, place: int) -> Settled:
        run = held.run
        to: Status = change(run.status, trigger).to
        self._leave(held)
        run.status, run.attempt, run.worker, held.why = to, attempts, None, why
        self._enqueue(held, place)
        return Settled(copy.copy(run), True)

    def _end(self, held: Held, trigger: Trigger, error: bytes | None = None) -> Settled:
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

    def _enqueue(self, held: Held, place: int) -> None:
        run = held.run
        self._waiting.add((run.service, run.lane, run.pull), place, run.id)
        whose = (run.service, run.tenant)
        self._queued_of[whose] = self._queued_of.get(whose, 0) + 1
        self.on_ready(run.service)

    def _head(
        self, name: QueueName, version: str | None, known: Collection[str], pinned: bool
    ) -> tuple[int, str] | None:
        """The first of the queue that suits, left there. What is past its deadline expires."""
        while (head := self._waiting.head(name)) is not None:
            held = self._held[head[1]]
            if not past(held.run, self._clock()):
                break
            self._end(held, "expire")
        if head is None or suits(held.run.version, version, known, pinned):
            return head
        for place, id_ in self._waiting.front(name, LOOKED):
            run = self._held[id_].run
            if suits(run.version, version, known, pinned) and not past(run, self._clock()):
                return place, id_
        return None

    def _oldest(
        self,
        services: Sequence[str],
        pull: bool,
        lanes: Sequence[str],
        version: str | None,
        known: Collection[str],
        pinned: bool,
    ) -> Held | None:
        for lane in lanes:
            names = [(service, lane, pull) for service in services]
            heads = [head for name in names if (head := self._head(name, version, known, pinned)) is not None]
            if heads:
                return self._held[min(heads)[1]]
        return None

    # -- bounds -----------------------------------------------------------------------------------------------------

    def _grow(self, held: Held, by: int) -> None:
        held.size += by
        self._bytes += by

    def _make_room(self, need: int) -> None:
        """Raises StoreAway, having changed nothing that is live."""
        while self._bytes + need > self._max_bytes and self._whole:
            run = next(iter(self._whole))
            del self._whole[run]
            held = self._held[run]
            self._grow(held, RUN - held.size)
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


def past(run: Run, now: float) -> bool:
    return run.deadline is not None and run.deadline <= now
