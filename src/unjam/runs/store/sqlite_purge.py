"""Deleting what is old from a SQLite file, in slices short enough for others to get their turn between them."""

from __future__ import annotations

import sqlite3
import time
from typing import Final

from unjam.runs.store.base import KEY_KEPT
from unjam.runs.store.sqlite_schema import SEQ_BITS

#: Seconds after which a slice ends.
SLICE: Final = 0.005
#: Events deleted at once; a run with more becomes trash: unknown at once, its events deleted slice by slice.
EVENTS: Final = 1000

_OLD: Final = "SELECT no, seq FROM runs WHERE ended < ? ORDER BY ended LIMIT ?"
_RANGE: Final = "id >= ? AND id < ?"


def purge(connection: sqlite3.Connection, now: float, keep: float, limit: int) -> tuple[int, bool]:
    """In a transaction: delete at most `limit` runs that ended more than `keep` seconds before `now`, and idempotency
    keys of their age. Returns how many runs were, and whether there is more to do. Pages that get free are used
    again."""
    end = time.monotonic() + SLICE
    if _trash(connection, end):
        return 0, True
    connection.execute(
        "DELETE FROM keys WHERE scope IN (SELECT scope FROM keys WHERE at < ? LIMIT ?)", (now - KEY_KEPT, EVENTS)
    )
    old = connection.execute(_OLD, (now - keep, min(limit, EVENTS))).fetchall()
    done = 0
    more = False
    for no, seq in old:
        more = erase(connection, no, seq) or more
        done += 1
        if time.monotonic() >= end:
            break
    return done, more or (done < limit and done == len(old) == EVENTS) or done < len(old)


def erase(connection: sqlite3.Connection, no: int, seq: int) -> bool:
    """In a transaction: delete a run. True: it has left trash."""
    every = (no << SEQ_BITS, (no + 1) << SEQ_BITS)
    if trash := seq > EVENTS:
        connection.execute("INSERT INTO trash (no) VALUES (?)", (no,))
    else:
        connection.execute(f"DELETE FROM events WHERE {_RANGE}", every)
    connection.execute(f"DELETE FROM sent WHERE {_RANGE}", every)
    for table in ("inputs", "results", "checkpoints", "runs"):
        connection.execute(f"DELETE FROM {table} WHERE no = ?", (no,))
    return trash


def _trash(connection: sqlite3.Connection, end: float) -> bool:
    """Delete events of what is trash. True: there was some, and time is up or it was not the last."""
    for (no,) in connection.execute("SELECT no FROM trash").fetchall():
        while True:
            gone = connection.execute(
                f"DELETE FROM events WHERE id IN (SELECT id FROM events WHERE {_RANGE} LIMIT ?)",
                (no << SEQ_BITS, (no + 1) << SEQ_BITS, EVENTS),
            ).rowcount
            if gone < EVENTS:
                connection.execute("DELETE FROM trash WHERE no = ?", (no,))
                break
            if time.monotonic() >= end:
                return True
    return False
