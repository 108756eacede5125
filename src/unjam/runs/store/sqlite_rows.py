"""Rows on their way into the SQLite file: collected for a group of operations, then written with few statements.

Each statement takes many rows, because between statements the thread must win the interpreter's lock back from a busy
event loop: with a statement per row that, not SQLite, would be the bound.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from unjam.runs.model import Run
from unjam.runs.store.sqlite_schema import SEQ_BITS

#: Rows per statement.
_CHUNKS: Final = (32, 16, 8, 4, 2, 1)

_CREATED: Final = (
    "no", "id", "service", "tenant", "lane", "pull", "version", "retry", "max_attempts", "created", "deadline",
    "metadata", "place",
)  # fmt: skip
# Kept apart because it touches no index: most operations on a run change only this.
_PROGRESS: Final = ("seq", "cancel_requested", "checkpoint_seq", "batch", "batch_first", "shown", "sent")
_STATE: Final = (
    "status", "attempt", "fence", "started", "ended", "deadline", "worker", "error", "reason", "closer", "dead",
    "place",
)  # fmt: skip
#: What `from_row` takes.
COLUMNS: Final = ", ".join([*_CREATED, *[name for name in _STATE if name not in _CREATED], *_PROGRESS])


class Live:
    """A run and what the store alone knows of it. `place`, `reason`, `closer` and the like: columns of the schema.
    `windowed`: it is in its queue's window. `input`: kept while that is short and the run waits."""

    __slots__ = (
        "batch", "batch_first", "checkpoint_seq", "closer", "dead", "input", "no", "place", "reason", "run", "saved",
        "sent", "shown", "windowed",
    )  # fmt: skip

    def __init__(self, no: int, run: Run) -> None:
        self.no = no
        self.run = run
        self.place = no
        self.reason = "first"
        self.closer = 0
        self.dead = False
        self.checkpoint_seq: int | None = None
        self.batch = 0
        self.batch_first = 0
        self.shown = False
        self.sent = 0
        #: Fence and number of the last checkpoint, as far as it came to this process.
        self.saved = (0, 0)
        self.windowed = False
        self.input: bytes | None = None


def run_from(row: tuple[Any, ...]) -> Run:
    """A row of `COLUMNS`."""
    return Run(
        id=row[1],
        service=row[2],
        tenant=row[3],
        lane=row[4],
        pull=bool(row[5]),
        version=row[6],
        retry=row[7],
        max_attempts=row[8],
        created=row[9],
        deadline=row[10],
        metadata=None if row[11] is None else msgspec.Raw(row[11]),
        status=row[13],
        attempt=row[14],
        fence=row[15],
        started=row[16],
        ended=row[17],
        worker=row[18],
        error=None if row[19] is None else msgspec.Raw(row[19]),
        seq=row[23],
        cancel_requested=bool(row[24]),
        has_checkpoint=row[25] is not None,
    )


def live_from(row: tuple[Any, ...]) -> Live:
    """A row of `COLUMNS`."""
    live = Live(row[0], run_from(row))
    live.place, live.reason, live.closer, live.dead = row[12], row[20], row[21], bool(row[22])
    live.checkpoint_seq, live.batch, live.batch_first = row[25], row[26], row[27]
    live.shown, live.sent = bool(row[28]), row[29]
    return live


class _Insert:
    """`flat`: the values of its rows, one after another."""

    def __init__(self, verb: str, table: str, columns: Sequence[str]) -> None:
        self.flat: list[Any] = []
        self.width = len(columns)
        marks = f"({','.join('?' * self.width)})"
        head = f"{verb} INTO {table} ({', '.join(columns)}) VALUES "
        self._statements = [(size, head + ",".join([marks] * size)) for size in _CHUNKS]

    def write(self, connection: sqlite3.Connection) -> None:
        flat, at, width = self.flat, 0, self.width
        for size, statement in self._statements:
            step = size * width
            while len(flat) - at >= step:
                connection.execute(statement, flat[at : at + step])
                at += step
        flat.clear()


class _Update(_Insert):
    """Columns of `runs` by `no`, which comes first in each row."""

    def __init__(self, columns: Sequence[str]) -> None:
        self.flat = []
        self.width = len(columns) + 1
        marks = f"({','.join('?' * self.width)})"
        sets = ", ".join(f"{name} = v.column{at}" for at, name in enumerate(columns, 2))
        self._statements = [
            (size, f"UPDATE runs SET {sets} FROM (VALUES {','.join([marks] * size)}) AS v WHERE runs.no = v.column1")
            for size in _CHUNKS
        ]


class Rows:
    """What a group of operations will write."""

    def __init__(self) -> None:
        self.created = _Insert("INSERT", "runs", _CREATED)
        self.events = _Insert("INSERT", "events", ["id", "type", "data", "at"])
        self.inputs = _Insert("INSERT", "inputs", ["no", "data"])
        self.results = _Insert("INSERT", "results", ["no", "data"])
        self.checkpoints = _Insert("REPLACE", "checkpoints", ["no", "data"])
        self.sent = _Insert("INSERT", "sent", ["id", "data"])
        self.keys = _Insert("REPLACE", "keys", ["scope", "digest", "run", "at"])
        self._inserts = (
            self.created, self.events, self.inputs, self.results, self.checkpoints, self.sent, self.keys,
        )  # fmt: skip
        self._state = _Update(_STATE)
        self._progress = _Update(_PROGRESS)
        self._version = _Update(("version",))
        self._changed: dict[int, Live] = {}
        self._pinned: dict[int, Live] = {}
        self._advanced: dict[int, Live] = {}

    def create(self, live: Live, data: bytes) -> None:
        run = live.run
        # fmt: off
        self.created.flat += (
            live.no, run.id, run.service, run.tenant, run.lane, run.pull, run.version, run.retry, run.max_attempts,
            run.created, run.deadline, None if run.metadata is None else bytes(run.metadata), live.place,
        )
        # fmt: on
        self.inputs.flat += (live.no, data)

    def event(self, live: Live, kind: str, data: bytes, at: float) -> None:
        self.events.flat += (live.no << SEQ_BITS | live.run.seq, kind, data, at)

    def change(self, live: Live) -> None:
        """Have all of it written, its state too."""
        self._changed[live.no] = live
        self._advanced[live.no] = live

    def advance(self, live: Live) -> None:
        """Have all of it written but its state."""
        self._advanced[live.no] = live

    def pin(self, live: Live) -> None:
        """Have its version written, and the rest but its state."""
        self._pinned[live.no] = live
        self._advanced[live.no] = live

    def forget(self) -> None:
        for insert in self._inserts:
            insert.flat.clear()
        self._changed.clear()
        self._pinned.clear()
        self._advanced.clear()

    def any(self) -> bool:
        return bool(self._advanced or any(insert.flat for insert in self._inserts))

    def write(self, connection: sqlite3.Connection) -> None:
        """In a transaction. Raises sqlite3.Error; then `forget` is due."""
        for insert in self._inserts:
            if insert.flat:
                insert.write(connection)
        if self._changed:
            flat = self._state.flat
            flat.clear()
            for no, live in self._changed.items():
                run = live.run
                # fmt: off
                flat += (
                    no, run.status, run.attempt, run.fence, run.started, run.ended, run.deadline, run.worker,
                    None if run.error is None else bytes(run.error), live.reason, live.closer, live.dead, live.place,
                )
                # fmt: on
            self._changed.clear()
            self._state.write(connection)
        if self._pinned:
            self._version.flat = [value for no, live in self._pinned.items() for value in (no, live.run.version)]
            self._pinned.clear()
            self._version.write(connection)
        if self._advanced:
            flat = self._progress.flat
            flat.clear()
            for no, live in self._advanced.items():
                run = live.run
                # fmt: off
                flat += (
                    no, run.seq, run.cancel_requested, live.checkpoint_seq, live.batch, live.batch_first, live.shown,
                    live.sent,
                )
                # fmt: on
            self._advanced.clear()
            self._progress.write(connection)
