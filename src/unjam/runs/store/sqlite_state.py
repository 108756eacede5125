"""The runs of a SQLite file in memory, as far as they are needed there, and the transaction that keeps both the same.

An operation decides on runs in memory, and leaves rows behind; those of a group of operations go into one transaction.
In memory are the running runs and the first few thousand of each queue, however many wait behind them; others visit.
`commit` or `abandon` ends the group: after either, memory says again what the file says.
"""

from __future__ import annotations

import copy
import sqlite3
from collections.abc import Callable
from typing import Any, Final

from unjam.runs.machine import QUEUED, RUNNING, Status
from unjam.runs.model import Run
from unjam.runs.store.base import LOOKED, UnknownRun
from unjam.runs.store.order import Due, QueueName
from unjam.runs.store.sqlite_queue import FETCH, Window
from unjam.runs.store.sqlite_rows import COLUMNS, Live, Rows, live_from
from unjam.runs.store.sqlite_schema import SEQ_BITS
from unjam.runs.store.sweeps import Sweeps

_FIND: Final = f"SELECT {COLUMNS} FROM runs WHERE id = ?"
_RUNNING: Final = f"SELECT {COLUMNS} FROM runs WHERE status = 'running'"
_WAITING: Final = (
    f"SELECT {COLUMNS} FROM runs WHERE status = 'queued' AND service = ? AND lane = ? AND pull = ? AND place > ?"
    " ORDER BY place LIMIT ?"
)
_QUEUED_OF: Final = "SELECT count(*) FROM runs WHERE status = 'queued' AND service = ? AND tenant = ?"
_SENT: Final = "SELECT ifnull(sum(length(data)), 0) FROM sent WHERE id >= ? AND id < ?"
NEXT_DEADLINE: Final = "SELECT min(deadline) FROM runs WHERE deadline IS NOT NULL AND ended IS NULL"

#: Tenants and services whose waiting runs are counted in memory; others are counted again when they create.
TENANTS: Final = 10_000

#: Runs whose inputs' bytes are counted in memory; others are counted again when they are sent something.
SENT: Final = 1000

#: What `abandon` restores of a run; None: it was created.
_Before = tuple[Any, ...] | None


class State:
    """`clock`: wall time; `monotonic`: what leases go by. `watched`: ids whose growth is to be told. `lease`: seconds
    that owners get when the file is opened."""

    def __init__(
        self, clock: Callable[[], float], monotonic: Callable[[], float], watched: set[str], lease: float
    ) -> None:
        self._lease = lease
        self.connection: sqlite3.Connection | None = None
        self.commits = 0
        #: The group is to reach the disk: otherwise it survives a killed process, but not a power cut. Set it before.
        self.firm = True
        #: What the group is to tell: run → next seq; services with something to claim.
        self.growth: dict[str, int] = {}
        self.ready: set[str] = set()
        #: Called before each commit; raises what stands against it.
        self.check: Callable[[], None] = lambda: None
        #: Signs of life were refused since the last sweep: there was no connection, or a group of theirs failed.
        self.missed = False
        self._firm_now = True
        self._clock = clock
        self._monotonic = monotonic
        self._watched = watched
        self._rows = Rows()
        self._journal: list[tuple[Live, _Before]] = []
        self._visitors: list[Live] = []
        self._keys: dict[str, tuple[bytes, str, float]] = {}
        self._lives: dict[str, Live] = {}
        self._windows: dict[tuple[str, str, bool], Window] = {}
        self._counts: dict[str, dict[Status, int]] = {}
        #: (service, tenant) → how many wait, of those that were asked for.
        self._tenants: dict[tuple[str, str], int] = {}
        #: Number of a run → bytes of what it was sent, of those that were sent something lately.
        self._sent: dict[int, int] = {}
        self._leases = Due()
        self._sweeps = Sweeps()
        #: Run → when its lease ends, by `monotonic`; its length.
        self._lent: dict[str, tuple[float, float]] = {}
        self._next_no = 1
        #: By the claim that is under way.
        self._expired = 0
        self._front = 0
        self._next_deadline: float | None = None

    # -- groups --------------------------------------------------------------------------------------------------------

    def load(self, connection: sqlite3.Connection) -> None:
        """Begin with what the file says. Running runs keep the lease they have; they get a fresh one where there was
        none."""
        self.connection = connection
        self._firm_now = True
        self._forget()
        self._lives.clear()
        self._windows.clear()
        self._counts.clear()
        self._tenants.clear()
        self._sent.clear()
        one = "SELECT 1 + max(ifnull((SELECT max(no) FROM runs), 0), ifnull((SELECT max(no) FROM trash), 0))"
        self._next_no = connection.execute(one).fetchone()[0]
        fronts = connection.execute("SELECT ifnull(min(place), 0) FROM runs WHERE status = 'queued'")
        self._front = min(0, fronts.fetchone()[0])
        self._next_deadline = connection.execute(NEXT_DEADLINE).fetchone()[0]
        for status in (QUEUED, RUNNING):
            rows = connection.execute(f"SELECT service, count(*) FROM runs WHERE status = '{status}' GROUP BY service")
            for service, number in rows:
                self._counts.setdefault(service, {QUEUED: 0, RUNNING: 0})[status] = number
        lent, self._lent, self._leases = self._lent, {}, Due()
        now = self._monotonic()
        for row in connection.execute(_RUNNING):
            live = live_from(row)
            self._lives[live.run.id] = live
            self._relend(live, lent.get(live.run.id, (now + self._lease, self._lease)))

    @property
    def touched(self) -> int:
        """Grows when an operation changes something: one that raises before that has happened not at all."""
        return len(self._journal)

    def commit(self) -> None:
        """Raises sqlite3.Error, and what `check` does; `abandon` is due then."""
        assert self.connection is not None
        if self._rows.any():
            self._flush()
        if self.connection.in_transaction:
            self.check()
            self.connection.execute("COMMIT")
            self.commits += 1
        for live, _ in self._journal:
            self._let_go(live)
        for live in self._visitors:
            self._let_go(live)
        self._forget()

    def abandon(self) -> None:
        """Nothing of the group has happened. Raises sqlite3.Error when the connection is of no use any more."""
        self._sent.clear()
        for live, before in reversed(self._journal):
            self._restore(live, before)
        for live, _ in self._journal:
            self._let_go(live)
        for live in self._visitors:
            self._let_go(live)
        self._forget()
        if self.connection is not None and self.connection.in_transaction:
            self.connection.execute("ROLLBACK")

    def _forget(self) -> None:
        self._rows.forget()
        self._journal.clear()
        self._visitors.clear()
        self._keys.clear()
        self.growth = {}
        self.ready = set()

    def _flush(self) -> sqlite3.Connection:
        """Rows so far into the transaction, which is begun where it isn't: for a query, or a commit."""
        connection = self.connection
        assert connection is not None
        if not connection.in_transaction:
            if self.firm != self._firm_now:
                connection.execute(f"PRAGMA synchronous={'FULL' if self.firm else 'NORMAL'}")
                self._firm_now = self.firm
            connection.execute("BEGIN IMMEDIATE")
        self._rows.write(connection)
        return connection

    def _query(self, statement: str, values: tuple[Any, ...]) -> sqlite3.Cursor:
        """Of what the file will say."""
        connection = self._flush() if self._rows.any() else self.connection
        assert connection is not None
        return connection.execute(statement, values)

    # -- runs ----------------------------------------------------------------------------------------------------------

    def _find(self, run: str) -> Live:
        live = self._lives.get(run)
        if live is None:
            assert self.connection is not None
            row = self.connection.execute(_FIND, (run,)).fetchone()
            if row is None:
                raise UnknownRun(f"no run {run}")
            live = live_from(row)
            self._lives[run] = live
            self._visitors.append(live)
        return live

    def _known_or(self, row: tuple[Any, ...]) -> Live:
        live = self._lives.get(row[1])
        if live is None:
            live = self._lives[row[1]] = live_from(row)
        return live

    def _let_go(self, live: Live) -> None:
        status = live.run.status
        if status != RUNNING and not (status == QUEUED and live.windowed):
            self._lives.pop(live.run.id, None)

    def _touch(self, live: Live) -> None:
        """Before anything of it changes."""
        # fmt: off
        before = (
            copy.copy(live.run), live.place, live.reason, live.closer, live.dead, live.checkpoint_seq, live.batch,
            live.batch_first, live.shown, live.sent, live.input, live.saved, self._lent.get(live.run.id),
        )
        # fmt: on
        self._journal.append((live, before))

    def _restore(self, live: Live, before: _Before) -> None:
        run = live.run
        if before is None:
            self._count(run, run.status, -1)
            del self._lives[run.id]
            return
        status = run.status
        self._lives[run.id] = live
        # fmt: off
        (
            live.run, live.place, live.reason, live.closer, live.dead, live.checkpoint_seq, live.batch,
            live.batch_first, live.shown, live.sent, live.input, live.saved, lent,
        ) = before
        # fmt: on
        if live.run.status != status:
            self._count(run, status, -1)
            self._count(run, live.run.status, 1)
        if live.run.deadline is not None and (self._next_deadline is None or live.run.deadline < self._next_deadline):
            self._next_deadline = live.run.deadline
        self._relend(live, lent)
        if live.run.status == QUEUED:
            self._window(live).add(live)

    def _log(self, live: Live, kind: str | None, data: bytes, now: float) -> None:
        if kind is None:
            return
        run = live.run
        self._rows.event(live, kind, data, now)
        run.seq += 1
        if run.id in self._watched:
            self.growth[run.id] = run.seq

    def _count(self, run: Run, status: Status, by: int) -> None:
        counts = self._counts.get(run.service)
        if counts is None:
            counts = self._counts[run.service] = {QUEUED: 0, RUNNING: 0}
        if status in counts:
            counts[status] += by
        if self._tenants and status == QUEUED and (whose := (run.service, run.tenant)) in self._tenants:
            self._tenants[whose] += by

    def _queued_of(self, service: str, tenant: str) -> int:
        """How many of its runs wait: counted in the file when it is first asked for, and kept from then on."""
        whose = (service, tenant)
        count = self._tenants.get(whose)
        if count is None:
            if len(self._tenants) >= TENANTS:
                del self._tenants[next(iter(self._tenants))]
            count = self._tenants[whose] = self._query(_QUEUED_OF, whose).fetchone()[0]
        return count

    def _sent_to(self, live: Live) -> int:
        """Bytes of its inputs: counted in the file when it is first asked for, and kept from then on."""
        size = self._sent.get(live.no)
        if size is None:
            if len(self._sent) >= SENT:
                del self._sent[next(iter(self._sent))]
            size = self._sent[live.no] = self._query(
                _SENT, (live.no << SEQ_BITS, (live.no + 1) << SEQ_BITS)
            ).fetchone()[0]
        return size

    def _move(self, live: Live, to: Status) -> None:
        self._count(live.run, live.run.status, -1)
        self._count(live.run, to, 1)
        live.run.status = to
        live.windowed = False

    def _relend(self, live: Live, lent: tuple[float, float] | None) -> None:
        run = live.run.id
        if lent is None:
            self._lent.pop(run, None)
            self._leases.discard(run)
        else:
            self._lent[run] = lent
            self._leases.put(run, lent[0])

    def _extend(self, live: Live, length: float) -> None:
        self._relend(live, (self._monotonic() + length, length))

    def _wait_on(self) -> None:
        """Before a sweep: owners that could not be heard get their time."""
        missed, self.missed = self.missed, False
        lent = ((run, end, length) for run, (end, length) in self._lent.items())
        for run, end in self._sweeps.begin(self._monotonic(), lent, missed):
            self._lent[run] = (end, self._lent[run][1])
            self._leases.put(run, end)

    def _window(self, live: Live) -> Window:
        name = (live.run.service, live.run.lane, live.run.pull)
        window = self._windows.get(name)
        if window is None:
            window = self._windows[name] = Window()
        return window

    def _first(self, service: str, lane: str, pull: bool) -> Live | None:
        """The first of the queue, left there."""
        counts = self._counts.get(service)
        if counts is None or not counts[QUEUED]:
            return None
        name = (service, lane, pull)
        window = self._windows.get(name)
        if window is None:
            window = self._windows[name] = Window()
        while (live := window.head(self._lives)) is None and window.bound is not None:
            self._fetch(window, name)
        return live

    def _front_of(self, service: str, lane: str, pull: bool) -> list[Live]:
        """The first `LOOKED` of a queue that has some, left there."""
        name = (service, lane, pull)
        window = self._windows[name]
        while len(front := window.front(self._lives, LOOKED)) < LOOKED and window.bound is not None:
            self._fetch(window, name)
        return front

    def _fetch(self, window: Window, name: QueueName) -> None:
        window.fetched([self._known_or(row) for row in self._query(_WAITING, (*name, window.bound, FETCH))])
