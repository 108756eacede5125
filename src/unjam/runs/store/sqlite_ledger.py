"""The operations on runs in a SQLite file: who may do what, and what becomes of the run. On the writer's thread."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from typing import Final

import msgspec

from unjam.runs.machine import QUEUED, RUNNING, TERMINAL, Trigger, after_loss, after_release, change
from unjam.runs.model import (
    EXHAUSTED,
    LOST,
    Appended,
    Beat,
    Claim,
    NewEvent,
    NewRun,
    Run,
    Settled,
    attempt_data,
    created_data,
    failed_data,
    new_id,
    suits,
)
from unjam.runs.store.base import (
    KEY_KEPT,
    Fenced,
    KeyReused,
    NotEnded,
    QueueFull,
    TenantQueueFull,
    UnknownRun,
    check_inputs,
)
from unjam.runs.store.sqlite_purge import erase, purge
from unjam.runs.store.sqlite_rows import COLUMNS, Live
from unjam.runs.store.sqlite_schema import SEQ_BITS
from unjam.runs.store.sqlite_state import NEXT_DEADLINE, State

#: Inputs up to so many bytes stay in memory while their run is in a window.
SHORT: Final = 4096

_OVERDUE: Final = f"SELECT {COLUMNS} FROM runs WHERE deadline <= ? AND ended IS NULL ORDER BY deadline LIMIT ?"


#: Overdue runs that one claim expires before others have their turn.
OVERDUE: Final = 100


class Again:
    """In place of an answer: so much was done, ask again."""


class Ledger(State):
    """Its methods do what those of the same names do in `base.Store`; they also raise sqlite3.Error."""

    def create(self, new: NewRun) -> tuple[Run, bool]:
        now = self._clock()
        scope = None if new.key is None else "\0".join((new.tenant, new.service, new.key))
        if scope is not None and (known := self._known(scope, new.digest, now)) is not None:
            return copy.copy(known.run), False
        counts = self._counts.get(new.service)
        if new.max_queued is not None and counts is not None and counts[QUEUED] >= new.max_queued:
            raise QueueFull(f"{new.max_queued} runs of {new.service} wait already")
        if new.max_queued_tenant is not None and self._queued_of(new.service, new.tenant) >= new.max_queued_tenant:
            raise TenantQueueFull(f"{new.max_queued_tenant} runs of this tenant wait for {new.service} already")
        # Always the same partition: ids then are in the order of their making, and so are the index's pages.
        run = new.record(new_id(now, 0), now)
        live = Live(self._next_no, run)
        self._next_no += 1
        self._journal.append((live, None))
        self._lives[run.id] = live
        self._rows.create(live, new.input)
        self._log(live, "run.created", created_data(new.service, new.lane), now)
        if scope is not None:
            self._keys[scope] = entry = (new.digest, run.id, now)
            self._rows.keys.flat += (scope, *entry)
        if new.deadline is not None and (self._next_deadline is None or new.deadline < self._next_deadline):
            self._next_deadline = new.deadline
        self._count(run, QUEUED, 1)
        self._window(live).add_newest(live)
        if live.windowed and len(new.input) <= SHORT:
            live.input = new.input
        self.ready.add(run.service)
        return copy.copy(run), True

    def claim(
        self,
        services: Sequence[str],
        worker: str,
        pull: bool,
        lanes: Sequence[str],
        lease: float,
        version: str | None,
        known: Collection[str],
        pinned: bool,
    ) -> Claim | Again | None:
        self._expired = 0
        live = self._oldest(services, pull, lanes, version, known, pinned)
        if self._expired >= OVERDUE:
            return Again()
        if live is None:
            return None
        data = live.input
        if data is None:
            data = self._query("SELECT data FROM inputs WHERE no = ?", (live.no,)).fetchone()[0]
        checkpoint = None
        if live.checkpoint_seq is not None:
            checkpoint = self._query("SELECT data FROM checkpoints WHERE no = ?", (live.no,)).fetchone()[0]
        run = live.run
        to = change(run.status, "claim")
        self._touch(live)
        self._move(live, to.to)
        now = self._clock()
        run.attempt += to.charged
        run.fence += 1
        run.worker = worker
        before = version is not None and run.version == version
        if version is not None and not before:
            self._pin(live, version)
        if run.started is None:
            run.started = now
        live.batch = live.batch_first = 0
        live.input = None
        self._relend(live, (self._monotonic() + lease, lease))
        from_seq = 1 if live.checkpoint_seq is None else live.checkpoint_seq
        self._log(live, to.event, attempt_data(run.attempt, from_seq, live.reason), now)
        self._rows.change(live)
        return Claim(copy.copy(run), data, checkpoint, before)

    def append(self, run: str, fence: int, batch: int, events: Sequence[NewEvent]) -> Appended:
        live = self._owned(run, fence)
        if self._is_new(live, batch):
            self._touch(live)
            self._add(live, batch, events)
        self._extend(live, self._lent[run][1])
        return Appended(live.batch_first, live.run.seq, live.run.cancel_requested)

    def heartbeat(
        self, run: str, fence: int, checkpoint: bytes | None, lease: float, version: str | None, number: int | None
    ) -> Beat:
        live = self._owned(run, fence)
        if checkpoint is not None and (number is None or (fence, number) > live.saved):
            self._touch(live)
            self._keep(live, checkpoint)
            live.saved = (fence, number or 0)
        if version is not None and live.run.version is None:
            self._touch(live)
            self._pin(live, version)
        self._extend(live, lease)
        return Beat(live.run.cancel_requested, live.sent)

    def finish(
        self,
        run: str,
        fence: int,
        trigger: Trigger,
        result: bytes | None,
        error: bytes | None,
        batch: int | None,
        events: Sequence[NewEvent],
    ) -> Settled:
        live = self._find(run)
        if live.closer and live.closer == fence:
            return Settled(copy.copy(live.run), False)
        live = self._owned(run, fence)
        fresh = bool(events) and (batch is None or self._is_new(live, batch))
        self._touch(live)
        if fresh:
            self._add(live, live.batch + 1 if batch is None else batch, events)
        if result is not None:
            self._rows.results.flat += (live.no, result)
        live.closer = fence
        return self._end(live, trigger, error)

    def release(self, run: str, fence: int, checkpoint: bytes | None) -> Settled:
        live = self._find(run)
        if live.run.status == QUEUED and live.reason == "handed_back" and live.run.fence == fence:
            return Settled(copy.copy(live.run), False)
        live = self._owned(run, fence)
        self._touch(live)
        if checkpoint is not None:
            self._keep(live, checkpoint)
        trigger = after_release(live.run)
        if trigger != "release":
            return self._end(live, trigger)
        self._front -= 1
        return self._requeue(live, trigger, "handed_back", live.run.attempt - 1, self._front)

    def sweep(self, limit: int) -> list[Settled]:
        settled: list[Settled] = []
        now = self._clock()
        if self._next_deadline is not None and self._next_deadline <= now:
            for row in self._query(_OVERDUE, (now, limit)).fetchall():
                live = self._known_or(row)
                self._touch(live)
                settled.append(self._end(live, "expire"))
            self._next_deadline = self._query(NEXT_DEADLINE, ()).fetchone()[0]
        self._wait_on()
        while len(settled) < limit and (run := self._leases.pop(self._monotonic())) is not None:
            live = self._lives[run]
            self._touch(live)
            trigger = after_loss(live.run, live.shown)
            if trigger == "lost_resumable":
                settled.append(self._requeue(live, trigger, "lost", live.run.attempt, live.no))
            else:
                error = {"lost_unresumable": LOST, "exhausted": EXHAUSTED}.get(trigger)
                settled.append(self._end(live, trigger, error))
        return settled

    def cancel(self, run: str) -> Settled:
        live = self._find(run)
        if live.run.status in TERMINAL or live.run.cancel_requested:
            return Settled(copy.copy(live.run), False)
        self._touch(live)
        if change(live.run.status, "cancel").to in TERMINAL:
            return self._end(live, "cancel")
        live.run.cancel_requested = True
        self._rows.advance(live)
        return Settled(copy.copy(live.run), True)

    def requeue(self, run: str) -> Settled:
        live = self._find(run)
        state = live.run
        if state.status not in ("failed", "expired"):
            return Settled(copy.copy(state), False)
        to = change(state.status, "requeue")
        now = self._clock()
        self._touch(live)
        state.ended = state.error = None
        state.cancel_requested = False
        if state.deadline is not None:
            if state.deadline <= now:
                state.deadline = None
            else:
                self._next_deadline = min(state.deadline, self._next_deadline or state.deadline)
        live.closer, live.dead = 0, False
        self._log(live, to.event, b"{}", now)
        self._flush().execute("DELETE FROM results WHERE no = ?", (live.no,))
        return self._requeue(live, "requeue", "requeued", 0, live.no)

    def send(self, run: str, data: bytes) -> int:
        live = self._find(run)
        if live.run.status in TERMINAL:
            raise Fenced(f"{run} has ended: {live.run.status}")
        size = self._sent_to(live) + len(data)
        check_inputs(live.sent + 1, size)
        self._touch(live)
        self._sent[live.no] = size
        live.sent += 1
        self._rows.sent.flat += (live.no << SEQ_BITS | live.sent, data)
        self._rows.advance(live)
        if run in self._watched:
            self.growth[run] = live.run.seq
        return live.sent

    def depth(self) -> dict[str, tuple[int, int]]:
        return {
            service: (counts[QUEUED], counts[RUNNING])
            for service, counts in self._counts.items()
            if counts[QUEUED] or counts[RUNNING]
        }

    def delete(self, run: str) -> bool:
        """True: there is more to do, by `purge`."""
        live = self._find(run)
        if live.run.status not in TERMINAL:
            raise NotEnded(f"{run} is {live.run.status}")
        self._touch(live)
        del self._lives[run]
        return erase(self._flush(), live.no, live.run.seq)

    def purge(self, keep: float, limit: int) -> tuple[int, bool]:
        """A slice of `housekeep`, of a few milliseconds: runs deleted, whether there is more to do."""
        return purge(self._flush(), self._clock(), keep, limit)

    # -- who may -------------------------------------------------------------------------------------------------------

    def _owned(self, run: str, fence: int) -> Live:
        live = self._find(run)
        if live.run.status != RUNNING or live.run.fence != fence:
            raise Fenced(f"{run} is {live.run.status}, its fence {live.run.fence}, not {fence}")
        return live

    def _known(self, scope: str, digest: bytes, now: float) -> Live | None:
        used = self._keys.get(scope)
        if used is None:
            assert self.connection is not None
            used = self.connection.execute("SELECT digest, run, at FROM keys WHERE scope = ?", (scope,)).fetchone()
        if used is None or now - used[2] > KEY_KEPT:
            return None
        try:
            live = self._find(used[1])
        except UnknownRun:
            return None
        if used[0] != digest:
            raise KeyReused("this idempotency key was used for another request")
        return live

    @staticmethod
    def _is_new(live: Live, batch: int) -> bool:
        if batch == live.batch and batch > 0:
            return False
        if batch != live.batch + 1:
            raise ValueError(f"batch {batch} after batch {live.batch}")
        return True

    # -- changes -------------------------------------------------------------------------------------------------------

    def _add(self, live: Live, batch: int, events: Sequence[NewEvent]) -> None:
        live.batch, live.batch_first = batch, live.run.seq
        now = self._clock()
        for event in events:
            self._log(live, event.type, event.data, now)
            live.shown = True
        self._rows.advance(live)

    def _keep(self, live: Live, checkpoint: bytes) -> None:
        live.checkpoint_seq, live.run.has_checkpoint = live.run.seq, True
        self._rows.checkpoints.flat += (live.no, checkpoint)
        self._rows.advance(live)

    def _pin(self, live: Live, version: str) -> None:
        live.run.version = version
        self._rows.pin(live)

    def _requeue(self, live: Live, trigger: Trigger, reason: str, attempts: int, place: int) -> Settled:
        run = live.run
        self._move(live, change(run.status, trigger).to)
        run.attempt, run.worker = attempts, None
        live.reason, live.place = reason, place
        self._relend(live, None)
        self._rows.change(live)
        self._window(live).add(live)
        self.ready.add(run.service)
        return Settled(copy.copy(run), True)

    def _end(self, live: Live, trigger: Trigger, error: bytes | None = None) -> Settled:
        run = live.run
        to = change(run.status, trigger)
        self._move(live, to.to)
        run.ended = now = self._clock()
        run.error = None if error is None else msgspec.Raw(error)
        live.dead = trigger == "exhausted"
        live.input = None
        self._relend(live, None)
        self._log(live, to.event, failed_data(error) if to.to == "failed" else b"{}", now)
        self._rows.change(live)
        return Settled(copy.copy(run), True)

    def _oldest(
        self,
        services: Sequence[str],
        pull: bool,
        lanes: Sequence[str],
        version: str | None,
        known: Collection[str],
        pinned: bool,
    ) -> Live | None:
        for lane in lanes:
            oldest = None
            for service in services:
                head = self._head(service, lane, pull, version, known, pinned)
                if head is not None and (oldest is None or head.place < oldest.place):
                    oldest = head
            if oldest is not None:
                return oldest
        return None

    def _head(
        self, service: str, lane: str, pull: bool, version: str | None, known: Collection[str], pinned: bool
    ) -> Live | None:
        """The first of the queue that suits, left there. What is past its deadline expires."""
        while (live := self._first(service, lane, pull)) is not None:
            if live.run.deadline is None or live.run.deadline > self._clock():
                break
            self._touch(live)
            self._end(live, "expire")
            self._expired += 1
            if self._expired >= OVERDUE:
                return None
        if live is None or suits(live.run.version, version, known, pinned):
            return live
        now = self._clock()
        for live in self._front_of(service, lane, pull):
            if suits(live.run.version, version, known, pinned) and (
                live.run.deadline is None or live.run.deadline > now
            ):
                return live
        return None
