"""Runs in a SQLite file: the default store, for one gateway.

Semantics of `base` in full. One thread writes, in groups of what came while it wrote the last ones: one transaction for
many operations. One that fails takes no other with it: the others are done again, each alone. Another thread reads, and
one more looks for lists, by portions. No call blocks the event loop.

What returned survives the death of any process (also `kill -9`). A power cut takes nothing that was created, claimed,
sent or settled; it may take the last moments' events and checkpoints of a running run. Leases, and which workers are
there, are kept in memory: when the file is opened, each running run has a fresh lease. On a full disk, or a file that
can't be written to, calls raise `StoreAway`, having changed nothing, and work again once they can.
"""

from __future__ import annotations

import copy
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeVar, TypeVarTuple

from unjam.runs.machine import finishing
from unjam.runs.model import Appended, Batch, Beat, Claim, NewEvent, NewRun, Run, Settled
from unjam.runs.store import sqlite_reader as reader
from unjam.runs.store.base import (
    KEPT_AT_LEAST,
    LEASE,
    Runs,
    StoreAway,
    StoreError,
    check_size,
)
from unjam.runs.store.presence import OwnedStore
from unjam.runs.store.sqlite_desk import Answers, Desk, Done, Job, Jobs, settle
from unjam.runs.store.sqlite_ledger import Again, Ledger
from unjam.runs.store.sqlite_schema import INTACT, LOCKED, Displaced, Lock, code, connect, prepare, translated

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class _Written(NamedTuple):
    """What a group came to: answers, and what is to be told of it."""

    done: Answers
    growth: dict[str, int]
    ready: set[str]


class _GroupFailed(Exception):
    """`alone`: it is the fault of one of its operations, maybe; the others will do one by one."""

    def __init__(self, error: BaseException, alone: bool) -> None:
        super().__init__()
        self.error = error
        self.alone = alone


class _Reader:
    """A connection that only reads, on a thread of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None

    def serve(self, jobs: Jobs) -> _Written:
        return _Written([self._answer(job) for job in jobs if not job.future.cancelled()], {}, set())

    def _answer(self, job: Job) -> Done:
        try:
            if self._connection is None:
                self._connection = connect(self._path, reader=True)
            return Done(job, job.call(self._connection, *job.arguments), None)
        except sqlite3.Error as error:
            if self._connection is not None and code(error) not in INTACT + LOCKED:
                self._connection.close()
                self._connection = None
            return Done(job, None, translated(error, self._path))
        except Exception as error:  # noqa: BLE001 - a fault in one query is its caller's; the thread serves others
            return Done(job, None, error)

    def shut(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class SqliteStore(OwnedStore):
    """`path`: of the file, which is made where there is none. `clock`: wall time; `monotonic`: what leases go by. Both
    in seconds, and called on any thread. `lease`: seconds that the owners of running runs are given when the file is
    opened: the clock that their leases went by is gone."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        lease: float = LEASE,
    ) -> None:
        super().__init__(monotonic)
        self.path = Path(path)
        self._ledger = Ledger(clock, monotonic, self._watched, lease)
        self._lock = Lock(self.path)
        self._ledger.check = self._lock.check
        self._writing: Desk | None = None
        self._reading: Desk | None = None
        self._listing: Desk | None = None

    @property
    def commits(self) -> int:
        """Transactions so far."""
        return self._ledger.commits

    async def open(self) -> None:
        self._writing = Desk("unjam-runs-write", self._write_group, self._tell, self._shut)
        at_once, lister = _Reader(self.path), _Reader(self.path)
        self._reading = Desk("unjam-runs-read", at_once.serve, self._tell, at_once.shut)
        self._listing = Desk("unjam-runs-list", lister.serve, self._tell, lister.shut)
        try:
            await self._write(self._begin)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        for desk in (self._reading, self._listing, self._writing):
            if desk is not None:
                await desk.close()

    # -- a run's life ---------------------------------------------------------------------------------------------

    async def create(self, new: NewRun) -> tuple[Run, bool]:
        check_size(new.input)
        return await self._write(self._ledger.create, new)

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
        call = self._ledger.claim
        while True:
            claim = await self._write(call, services, worker, pull, lanes, lease, version, known, pinned)
            if not isinstance(claim, Again):
                return claim

    async def append(self, run: str, fence: int, batch: int, events: Sequence[NewEvent]) -> Appended:
        check_size(*[event.data for event in events])
        return await self._write(self._ledger.append, run, fence, batch, events, firm=False)

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
        return await self._write(self._ledger.heartbeat, run, fence, checkpoint, lease, version, number, firm=False)

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
        check_size(result, error, *[event.data for event in events])
        return await self._write(self._ledger.finish, run, fence, trigger, result, error, batch, events)

    async def release(self, run: str, fence: int, checkpoint: bytes | None = None) -> Settled:
        check_size(checkpoint)
        return await self._write(self._ledger.release, run, fence, checkpoint)

    async def sweep(self, limit: int = 100) -> list[Settled]:
        return await self._write(self._ledger.sweep, limit)

    async def cancel(self, run: str) -> Settled:
        return await self._write(self._ledger.cancel, run)

    async def requeue(self, run: str) -> Settled:
        return await self._write(self._ledger.requeue, run)

    async def send(self, run: str, data: bytes) -> int:
        check_size(data)
        return await self._write(self._ledger.send, run, data)

    async def delete(self, run: str) -> None:
        more = await self._write(self._ledger.delete, run)
        # The run is gone; what its long log has left behind goes now, or when the house is kept.
        with suppress(StoreError):
            while more:
                _, more = await self._write(self._ledger.purge, KEPT_AT_LEAST, 0)

    async def housekeep(self, keep: float, limit: int = 1000) -> int:
        if keep < KEPT_AT_LEAST:
            raise ValueError(f"ended runs are kept {KEPT_AT_LEAST:g} s at least")
        gone, more = 0, True
        while more:
            number, more = await self._write(self._ledger.purge, keep, limit - gone)
            gone += number
        return gone

    async def depth(self) -> dict[str, tuple[int, int]]:
        return await self._write(self._ledger.depth)

    # -- from it ------------------------------------------------------------------------------------------------------

    async def inputs(self, run: str, after: int, limit: int = 256, size: int = 1 << 20) -> list[tuple[int, bytes]]:
        return await self._read(reader.inputs, run, after, limit, size)

    async def get(self, run: str) -> Run:
        return await self._read(reader.get, run)

    async def result(self, run: str) -> bytes | None:
        return await self._read(reader.result, run)

    async def read(self, run: str, after: int = -1, limit: int = 256, size: int = 1 << 20) -> Batch:
        return await self._read(reader.read, run, after, limit, size)

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
        at = before
        while True:
            some, at = await self._list(reader.listed, tenant, service, status, at, limit - len(found))
            found += some
            if at is None:
                return found

    async def dead(self, service: str | None = None, limit: int = 100) -> Runs:
        return await self._list(reader.dead, service, limit)

    # -- on the loop --------------------------------------------------------------------------------------------------

    async def _write(self, call: Callable[[*Ts], T], *arguments: *Ts, firm: bool = True) -> T:
        if self._writing is None:
            raise StoreAway("the store is not open")
        answer: T = await self._writing.submit(call, arguments, firm)
        return answer

    async def _read(self, call: Callable[[sqlite3.Connection, *Ts], T], *arguments: *Ts) -> T:
        if self._reading is None:
            raise StoreAway("the store is not open")
        answer: T = await self._reading.submit(call, arguments, False)
        return answer

    async def _list(self, call: Callable[[sqlite3.Connection, *Ts], T], *arguments: *Ts) -> T:
        if self._listing is None:
            raise StoreAway("the store is not open")
        answer: T = await self._listing.submit(call, arguments, False)
        return answer

    def _tell(self, written: _Written) -> None:
        for done in written.done:
            if not settle(done) and isinstance(done.value, Claim):
                self._give_back(done.value.run)
        for run, seq in written.growth.items():
            self.on_growth(run, seq)
        for service in written.ready:
            self.on_ready(service)

    def _give_back(self, run: Run) -> None:
        """Whoever claimed it was cancelled meanwhile and doesn't know; the lease would be long in expiring."""
        assert self._writing is not None
        try:
            future = self._writing.submit(self._ledger.release, (run.id, run.fence, None), True)
        except StoreAway:
            return
        # If that fails, the lease will expire.
        future.add_done_callback(lambda ended: ended.cancelled() or ended.exception())

    # -- on the writer's thread ---------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """First job of the writer."""

    def _write_group(self, jobs: Jobs) -> _Written:
        # Who was cancelled by now gets nothing done.
        jobs = [job for job in jobs if not job.future.cancelled()]
        try:
            return self._together(jobs)
        except _GroupFailed as failed:
            if not failed.alone or len(jobs) == 1:
                return _Written([Done(job, None, copy.copy(failed.error)) for job in jobs], {}, set())
        every = _Written([], {}, set())
        for job in jobs:
            try:
                written = self._together([job])
            except _GroupFailed as failed:
                every.done.append(Done(job, None, failed.error))
            else:
                every.done.extend(written.done)
                every.growth.update(written.growth)
                every.ready.update(written.ready)
        return every

    def _together(self, jobs: Jobs) -> _Written:
        """All in one transaction. Raises _GroupFailed: none of it has happened."""
        try:
            self._connect()
        except StoreError as error:
            raise _GroupFailed(error, alone=False) from error
        except sqlite3.Error as error:
            raise _GroupFailed(translated(error, self.path), alone=False) from error
        except OSError as error:
            away = StoreAway(f"{self.path}: can't be made ({error.strerror})")
            raise _GroupFailed(away, alone=False) from error
        except Exception as error:
            # Out of memory, say: the next group finds out whether it is still so.
            raise _GroupFailed(StoreAway(f"{self.path}: can't be opened ({error!r})"), alone=False) from error
        ledger = self._ledger
        done: Answers = []
        try:
            ledger.firm = any(job.firm for job in jobs)
            for job in jobs:
                touched = ledger.touched
                try:
                    done.append(Done(job, job.call(*job.arguments), None))
                except sqlite3.Error:
                    raise
                except Exception as error:
                    if ledger.touched != touched:
                        raise
                    done.append(Done(job, None, error))
            growth, ready = ledger.growth, ledger.ready
            ledger.commit()
        except sqlite3.Error as error:
            found = code(error)
            # Those among them that only give a sign of life are not tried again.
            ledger.missed = ledger.missed or found not in INTACT
            self._abandon(usable=found in INTACT + LOCKED)
            raise _GroupFailed(translated(error, self.path), alone=found in INTACT) from error
        except Displaced as error:
            # A file that was put away may be put back; one that others have written must be read again.
            ledger.missed = True
            self._abandon(usable=self._lock.held)
            raise _GroupFailed(error, alone=False) from error
        except Exception as error:
            self._abandon(usable=True)
            raise _GroupFailed(error, alone=True) from error
        return _Written(done, growth, ready)

    def _connect(self) -> None:
        """Where there is no connection: the first time, and after a fault."""
        if self._ledger.connection is not None:
            return
        self._lock.take()
        connection = None
        try:
            if not self.path.exists():
                self._lock.may_make()
                # Payloads are nobody else's business.
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            connection = connect(self.path)
            prepare(connection, self.path)
            self._lock.opened()
            # Not while somebody who was let in beside us finishes a transaction.
            connection.execute("BEGIN IMMEDIATE")
            self._ledger.load(connection)
            connection.execute("COMMIT")
        except BaseException:
            self._ledger.missed = True
            self._ledger.connection = None
            if connection is not None:
                connection.close()
            raise

    def _abandon(self, usable: bool) -> None:
        """Not `usable`: connect anew, and load all of it again."""
        try:
            self._ledger.abandon()
        except Exception:  # noqa: BLE001 - whatever it is, what the file says is the truth
            usable = False
        if not usable and self._ledger.connection is not None:
            connection, self._ledger.connection = self._ledger.connection, None
            with suppress(sqlite3.Error):
                connection.close()

    def _shut(self) -> None:
        try:
            if self._ledger.connection is not None:
                self._ledger.connection.close()
                self._ledger.connection = None
        finally:
            self._lock.drop()
