"""Queries on a SQLite file of runs, on a connection of their own: they see what is committed, and hold nobody up."""

from __future__ import annotations

import sqlite3
from typing import Any, Final

from unjam.runs.machine import QUEUED, RUNNING, TERMINAL
from unjam.runs.model import Batch, Event, Run, age
from unjam.runs.store.base import UnknownRun
from unjam.runs.store.sqlite_rows import COLUMNS, run_from
from unjam.runs.store.sqlite_schema import SEQ_BITS

#: Runs that one look for a list passes by.
LOOKED: Final = 2000

_LAST: Final = (1 << SEQ_BITS) - 1
# One statement, so that a run that is deleted meanwhile is there with its events or not at all.
_READ: Final = (
    "SELECT runs.status, runs.seq, runs.no, events.id, events.type, events.data, events.at FROM runs"
    f" LEFT JOIN events ON events.id >= (runs.no << {SEQ_BITS}) + min(?, runs.seq)"
    f" AND events.id < (runs.no << {SEQ_BITS}) + runs.seq WHERE runs.id = ? ORDER BY events.id LIMIT ?"
)
_RESULT: Final = "SELECT runs.no, results.data FROM runs LEFT JOIN results USING (no) WHERE runs.id = ?"
_SENT: Final = (
    "SELECT runs.no, sent.id, sent.data FROM runs"
    f" LEFT JOIN sent ON sent.id > (runs.no << {SEQ_BITS}) + ? AND sent.id <= (runs.no << {SEQ_BITS}) + {_LAST}"
    " WHERE runs.id = ? ORDER BY sent.id LIMIT ?"
)


def get(connection: sqlite3.Connection, run: str) -> Run:
    row = connection.execute(f"SELECT {COLUMNS} FROM runs WHERE id = ?", (run,)).fetchone()
    if row is None:
        raise UnknownRun(f"no run {run}")
    return run_from(row)


def result(connection: sqlite3.Connection, run: str) -> bytes | None:
    row = connection.execute(_RESULT, (run,)).fetchone()
    if row is None:
        raise UnknownRun(f"no run {run}")
    data: bytes | None = row[1]
    return data


def read(connection: sqlite3.Connection, run: str, after: int, limit: int, size: int) -> Batch:
    events: list[Event] = []
    status, following = None, 0
    cursor = connection.execute(_READ, (min(max(after + 1, 0), _LAST), run, max(limit, 1)))
    for status, following, no, at, type_, data, when in cursor:  # noqa: B007
        if at is None:
            break
        events.append(Event(at - (no << SEQ_BITS), type_, data, when))
        size -= len(data)
        if size <= 0:
            break
    cursor.close()
    if status is None:
        raise UnknownRun(f"no run {run}")
    reached = events[-1].seq + 1 if events else following
    return Batch(events, reached, status in TERMINAL and reached == following)


def inputs(connection: sqlite3.Connection, run: str, after: int, limit: int, size: int) -> list[tuple[int, bytes]]:
    found: list[tuple[int, bytes]] = []
    known = False
    cursor = connection.execute(_SENT, (min(max(after, 0), _LAST), run, max(limit, 1)))
    for no, at, data in cursor:
        known = True
        if at is None:
            break
        found.append((at - (no << SEQ_BITS), data))
        size -= len(data)
        if size <= 0:
            break
    cursor.close()
    if not known:
        raise UnknownRun(f"no run {run}")
    return found


def listed(
    connection: sqlite3.Connection,
    tenant: str | None,
    service: str | None,
    status: str | None,
    before: str | None,
    limit: int,
) -> tuple[list[Run], str | None]:
    """What it found, and a run to go on from `before`; None: that was all, or as much as was asked for. It looks at
    about `LOOKED` rows, so that others get their turn."""
    source, conditions, values = "runs", ["1"], list[Any]()
    if status in (QUEUED, RUNNING):
        # Few beside those that ended.
        source += f" INDEXED BY {'runs_queue' if status == QUEUED else 'runs_running'}"
        conditions.append(f"status = '{status}'")
    for column, value in (("tenant", tenant), ("status", status if status in TERMINAL else None)):
        if value is not None:
            conditions.append(f"{column} = ?")
            values.append(value)
    if status in TERMINAL:
        conditions.append("ended IS NOT NULL")
    if before is not None:
        # All ids here are of partition 0, so that their order is that of their age.
        conditions.append("id < ?")
        values.append("run_00" + age(before))
    floor = None
    if status not in (QUEUED, RUNNING):
        last = f"SELECT id FROM runs WHERE {' AND '.join(conditions)} ORDER BY id DESC LIMIT 1 OFFSET ?"
        if (row := connection.execute(last, (*values, max(LOOKED, limit) - 1)).fetchone()) is not None:
            floor = row[0]
            conditions.append("id >= ?")
            values.append(floor)
    if service is not None:
        conditions.append("service = ?")
        values.append(service)
    statement = f"SELECT {COLUMNS} FROM {source} WHERE {' AND '.join(conditions)} ORDER BY id DESC LIMIT ?"
    found = [run_from(row) for row in connection.execute(statement, (*values, limit))]
    return found, None if len(found) == limit else floor


def dead(connection: sqlite3.Connection, service: str | None, limit: int) -> list[Run]:
    """`service` None: all."""
    statement = (
        f"SELECT {COLUMNS} FROM runs WHERE dead = 1 AND (?1 IS NULL OR service = ?1)"
        " ORDER BY ended DESC, no DESC LIMIT ?2"
    )
    return [run_from(row) for row in connection.execute(statement, (service, limit))]
