"""The SQLite file: its schema, how it is opened, and what its errors mean.

One process owns a file at a time, by a lock on `FILE.lock` (SQLite's own locks must stay free: our readers use them).
Whoever removes that file lets another process in: the first one notices before it writes again, and stands back.
A file with a newer schema, of something else, or that is no database is refused in words, and never changed.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from pathlib import Path
from typing import Final

from unjam.runs.store.base import StoreAway, StoreError

#: "unjm", so that a file of something else is never taken for ours.
APPLICATION: Final = 0x756E6A6D
VERSION: Final = 1
#: Rows of one run are neighbours: `no << SEQ_BITS | seq`.
SEQ_BITS: Final = 28
#: Seconds to wait for a lock that somebody else has on the database (a shell, a backup).
BUSY: Final = 1.0
#: Pages of log after which it is copied into the file: 16 MiB. The log keeps that size, so that on a full disk there
#: is room in it to delete with.
CHECKPOINT: Final = 4096

# `no` counts runs in the order they were made. `place` orders a queue: `no`, or below 0 for what was handed back.
# `shown`: an event of its own was appended. `closer`: the fence whose `finish` ended it. `checkpoint_seq`: the log's
# seq when the checkpoint was saved. `batch`, `batch_first`: its owner's last append. `trash`: deleted runs whose events
# are still there.
SCHEMA: Final = """
CREATE TABLE runs (
  no INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, service TEXT NOT NULL, tenant TEXT NOT NULL,
  lane TEXT NOT NULL, pull INTEGER NOT NULL, version TEXT, retry TEXT NOT NULL, max_attempts INTEGER NOT NULL,
  created REAL NOT NULL, deadline REAL, metadata BLOB, place INTEGER NOT NULL,
  status TEXT NOT NULL DEFAULT 'queued', attempt INTEGER NOT NULL DEFAULT 0, fence INTEGER NOT NULL DEFAULT 0,
  started REAL, ended REAL, worker TEXT, error BLOB, reason TEXT NOT NULL DEFAULT 'first',
  closer INTEGER NOT NULL DEFAULT 0, dead INTEGER NOT NULL DEFAULT 0,
  seq INTEGER NOT NULL DEFAULT 1, cancel_requested INTEGER NOT NULL DEFAULT 0, checkpoint_seq INTEGER,
  batch INTEGER NOT NULL DEFAULT 0, batch_first INTEGER NOT NULL DEFAULT 0, shown INTEGER NOT NULL DEFAULT 0,
  sent INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX runs_queue ON runs (service, lane, pull, place) WHERE status = 'queued';
CREATE INDEX runs_running ON runs (no) WHERE status = 'running';
CREATE INDEX runs_tenant ON runs (tenant, id);
CREATE INDEX runs_ended ON runs (ended) WHERE ended IS NOT NULL;
CREATE INDEX runs_dead ON runs (ended) WHERE dead = 1;
CREATE INDEX runs_deadline ON runs (deadline) WHERE deadline IS NOT NULL AND ended IS NULL;
CREATE TABLE events (id INTEGER PRIMARY KEY, type TEXT NOT NULL, data BLOB NOT NULL, at REAL NOT NULL);
CREATE TABLE inputs (no INTEGER PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE results (no INTEGER PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE checkpoints (no INTEGER PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE sent (id INTEGER PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE keys (scope TEXT PRIMARY KEY, digest BLOB NOT NULL, run TEXT NOT NULL, at REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX keys_at ON keys (at);
CREATE TABLE trash (no INTEGER PRIMARY KEY);
"""
#: What files that were made before may lack: of these a version without it makes nothing worse.
LATER: Final = "CREATE INDEX IF NOT EXISTS runs_listed ON runs (tenant, status, id) WHERE ended IS NOT NULL"


#: Errors that are one statement's: the connection and the file are as they were.
INTACT: Final = (
    0,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_TOOBIG,
    sqlite3.SQLITE_MISMATCH,
    sqlite3.SQLITE_RANGE,
)
#: Errors that are another process's.
LOCKED: Final = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def code(error: sqlite3.Error) -> int:
    """SQLite's primary code; 0: it is Python's own."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def translated(error: sqlite3.Error, path: Path) -> StoreError:
    """What SQLite says, in words for an operator."""
    match code(error):
        case sqlite3.SQLITE_FULL:
            return StoreAway(f"{path}: no room, the disk (or its quota) is full", retry_after=5.0)
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return StoreAway(f"{path}: another process holds a lock on the database ({error})")
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            return StoreAway(f"{path}: can't be written to ({error})")
        case sqlite3.SQLITE_CANTOPEN:
            return StoreAway(f"{path}: can't be opened; may we read and write there? ({error})")
        case sqlite3.SQLITE_NOTADB:
            return StoreError(f"{path}: is not a SQLite database")
        case sqlite3.SQLITE_CORRUPT:
            return StoreAway(f"{path}: the database is damaged ({error}); restore it from a backup", retry_after=30.0)
        case found if found in INTACT:
            return StoreError(f"{path}: {error}")
        case _:
            return StoreAway(f"{path}: {error}")


class Displaced(StoreAway):
    """The file isn't ours any more, or isn't there: what is in memory says nothing of it."""


_BACK: Final = "put it back, or restart the gateway to begin with what is there"


def _identity(path: Path) -> tuple[int, int] | None:
    """Of the file at a place; None: there is none, or it can't be known."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


class Lock:
    """On the use of the file at `path`, from the first `take` to `drop`, or to the end of the process."""

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(path.name + ".lock")
        self._guarded = path
        self._descriptor: int | None = None
        self._known: tuple[tuple[int, int] | None, tuple[int, int] | None] = (None, None)
        self._had = False

    def may_make(self) -> None:
        """Raises Displaced when there was a file before: an empty one in its place would be taken for all there is."""
        if self._known[1] is not None:
            raise Displaced(f"{self._guarded}: was deleted; {_BACK}")

    def opened(self) -> None:
        """The file is open: it is the one to be there from now on."""
        self._known = (_identity(self.path), _identity(self._guarded))

    def check(self) -> None:
        """Within a transaction, before it is committed. Raises Displaced."""
        lock, file = _identity(self.path), _identity(self._guarded)
        if file != self._known[1]:
            what = "was deleted" if file is None else "is another file than that which was opened"
            raise Displaced(f"{self._guarded}: {what}; {_BACK}")
        if lock != self._known[0]:
            self.drop()
            raise Displaced(f"{self.path}: was removed, so that another process may have come in; looking again")

    def take(self) -> None:
        """Raises StoreError when another has it, StoreAway when there can be none, or when we had it before."""
        if self._descriptor is not None:
            return
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StoreAway(f"{self.path}: can't be made ({error.strerror}); may we write there?") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
        except BlockingIOError as error:
            owner = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            who = f"process {owner}" if owner else "another process"
            kind = StoreAway if self._had else StoreError
            raise kind(
                f"{self._guarded}: {who} uses this store; one gateway at a time can, several need Redis"
            ) from error
        except OSError:
            pass  # no room for the number: it is locked all the same
        self._descriptor = descriptor
        self._had = True

    @property
    def held(self) -> bool:
        return self._descriptor is not None

    def drop(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def connect(path: Path, *, reader: bool = False) -> sqlite3.Connection:
    """A connection that any thread may use, one at a time; transactions are ours to begin. Raises sqlite3.Error."""
    # The writer has made the file; nobody else shall.
    where = f"{path.absolute().as_uri()}?mode=rw"
    connection = sqlite3.connect(
        where, uri=True, timeout=BUSY, isolation_level=None, check_same_thread=False, cached_statements=512
    )
    try:
        if reader:
            connection.execute("PRAGMA query_only=1")
        else:
            connection.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT}")
            connection.execute(f"PRAGMA journal_size_limit={CHECKPOINT * 4096}")
            connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA cache_size=-16384")
        connection.execute("PRAGMA temp_store=MEMORY")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Make the schema, or see that it is ours. Raises StoreError, sqlite3.Error."""
    if sqlite3.sqlite_version_info < (3, 35):
        raise StoreError(f"SQLite {sqlite3.sqlite_version} is too old: it must be 3.35 or newer")
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if tables and application != APPLICATION:
        raise StoreError(f"{path}: is a database of something else, not runs of unjam")
    if version > VERSION:
        raise StoreError(f"{path}: was made by a newer unjam (schema {version}; this one knows {VERSION})")
    if not tables:
        connection.execute("PRAGMA auto_vacuum=NONE")
    mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
    if mode != "wal":
        raise StoreError(f"{path}: its file system can't do a write-ahead log (SQLite keeps to {mode!r})")
    if not tables:
        connection.executescript(
            f"BEGIN IMMEDIATE;{SCHEMA}PRAGMA application_id={APPLICATION};PRAGMA user_version={VERSION};COMMIT;"
        )
    connection.execute(LATER)
