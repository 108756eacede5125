"""Decisions in a SQLite file: they outlive the process, and gateways of one machine may share it.

A connection of its own, on a thread of its own: nothing here waits for the runs' store, nor that for us. A write is one
transaction, synced (`kill -9` takes nothing that was kept, a power cut neither).
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

from unjam.kept.base import LOGGED, MOST, Change, KeptAway, KeptError, checked, decode
from unjam.kept.others import Others

T = TypeVar("T")

#: "unjk", so that a file of something else is never taken for ours.
APPLICATION: Final = 0x756E6A6B
VERSION: Final = 1
#: Seconds to wait while another process writes.
BUSY: Final = 1.0

_SCHEMA: Final = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS log (n INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL, change BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS latest (key TEXT PRIMARY KEY, change BLOB NOT NULL) WITHOUT ROWID;
PRAGMA application_id={APPLICATION};
PRAGMA user_version={VERSION};
COMMIT;
"""


def beside(path: str) -> Path:
    """The file for what is kept, of a state in `path`."""
    found = Path(path)
    return found.with_name(f"{found.name}.kept")


class SqliteKept:
    """`path`: of the file, which is made where there is none."""

    shared = True

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._connection: sqlite3.Connection | None = None
        self._thread: ThreadPoolExecutor | None = None

    async def open(self) -> None:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "unjam-kept")
        await self._do(self._ready)

    async def close(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            # On the thread, after all that was asked for; also when the loop is about to go.
            await asyncio.shield(asyncio.get_running_loop().run_in_executor(thread, self._shut))
            thread.shutdown()

    async def put(self, *changes: Change) -> int:
        checked(changes, 1)
        return await self._do(self._put, changes)

    async def current(self) -> dict[str, Change]:
        rows = await self._do(self._rows, "SELECT change FROM latest ORDER BY key", ())
        return {change.key: change for change in rows}

    async def history(self, limit: int = 100, before: int | None = None, key: str | None = None) -> list[Change]:
        wheres, values = ["1"], list[Any]()
        if before is not None:
            wheres.append("n < ?")
            values.append(before)
        if key is not None:
            wheres.append("(key = ? OR substr(key, 1, ?) = ?)")
            values += [key, len(key) + 1, f"{key}/"]
        sql = f"SELECT change FROM log WHERE {' AND '.join(wheres)} ORDER BY n DESC LIMIT ?"
        return await self._do(self._rows, sql, (*values, min(limit, MOST)))

    async def since(self, n: int) -> list[Change]:
        sql = "SELECT change FROM log WHERE n > CASE WHEN ?1 > (SELECT coalesce(max(n), 0) FROM log) THEN 0 ELSE ?1 END"
        return await self._do(self._rows, f"{sql} ORDER BY n LIMIT {MOST}", (n,))

    def others(self) -> Others:
        from unjam.kept.unix_others import UnixOthers

        return UnixOthers(self.path)

    # -- on the thread --------------------------------------------------------------------------------------------

    def _ready(self) -> sqlite3.Connection:
        """The connection, opened where there is none. Raises KeptError, sqlite3.Error."""
        if self._connection is not None:
            return self._connection
        # Only our own process may read who steered.
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        connection = sqlite3.connect(self.path, timeout=BUSY, isolation_level=None, check_same_thread=False)
        try:
            application = connection.execute("PRAGMA application_id").fetchone()[0]
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if tables and application != APPLICATION:
                raise KeptError(f"{self.path}: is a database of something else")
            if version > VERSION:
                raise KeptError(f"{self.path}: was made by a newer unjam (schema {version}; this one knows {VERSION})")
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            if not tables:
                connection.executescript(_SCHEMA)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    def _shut(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _put(self, changes: tuple[Change, ...]) -> int:
        connection = self._ready()
        connection.execute("BEGIN IMMEDIATE")
        try:
            last = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'log'").fetchone()
            for change, data in checked(changes, (last[0] if last else 0) + 1):
                connection.execute("INSERT INTO log (n, key, change) VALUES (?, ?, ?)", (change.n, change.key, data))
                connection.execute("INSERT OR REPLACE INTO latest VALUES (?, ?)", (change.key, data))
            connection.execute("DELETE FROM log WHERE n <= ?", (change.n - LOGGED,))
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        return change.n

    def _rows(self, sql: str, values: tuple[Any, ...]) -> list[Change]:
        return [decode(row[0]) for row in self._ready().execute(sql, values)]

    async def _do(self, call: Callable[..., T], *arguments: Any) -> T:
        if self._thread is None:
            raise KeptAway(f"{self.path}: is closed")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, call, *arguments)
        except sqlite3.DatabaseError as error:
            raise self._in_words(error) from error
        except OSError as error:
            raise KeptAway(f"{self.path}: can't be opened ({error.strerror}); may we read and write there?") from error

    def _in_words(self, error: sqlite3.DatabaseError) -> KeptError:
        match getattr(error, "sqlite_errorcode", 0) & 0xFF:
            case sqlite3.SQLITE_FULL:
                return KeptAway(f"{self.path}: no room, the disk (or its quota) is full")
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                return KeptAway(f"{self.path}: another process holds a lock on it")
            case sqlite3.SQLITE_NOTADB:
                return KeptError(f"{self.path}: is not a SQLite database")
            case _:
                return KeptAway(f"{self.path}: {error}")
