"""The file: what a killed process leaves, and files that are none of ours or can't be written to."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from unjam.kept.base import KeptAway, KeptError
from unjam.kept.sqlite import SqliteKept, beside

from .conftest import change

WRITER = """
import asyncio, sys
from unjam.kept.base import Change
from unjam.kept.sqlite import SqliteKept
async def main():
    kept = SqliteKept(sys.argv[1])
    await kept.open()
    n = 0
    while True:
        n = await kept.put(*[Change(key=f"weight/a/v{v}", after=n, who="w", where="g") for v in (7, 8)])
        print(n, flush=True)
asyncio.run(main())
"""


async def test_a_killed_process_leaves_all_it_was_told_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "unjam.db.kept"
    child = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    told = 0
    while told < 100:
        told = int(child.stdout.readline())
    child.send_signal(signal.SIGKILL)
    told = max([told, *(int(line) for line in child.stdout.read().split("\n")[:-1])])
    child.stdout.close()
    child.wait()
    kept = SqliteKept(path)
    await kept.open()
    logged = await kept.since(0)
    assert told <= len(logged) <= told + 2
    # Never one of the two without the other.
    assert len(logged) % 2 == 0
    assert {each.after for each in (await kept.current()).values()} == {logged[-1].after}
    await kept.close()


def test_the_file_is_beside_that_of_the_runs() -> None:
    assert beside("/var/lib/unjam/unjam.db") == Path("/var/lib/unjam/unjam.db.kept")


async def test_only_our_user_may_read_it(tmp_path: Path) -> None:
    kept = SqliteKept(tmp_path / "k")
    await kept.open()
    await kept.put(change("weight/a/v1", 1))
    await kept.close()
    assert [oct(os.stat(tmp_path / "k").st_mode)[-3:]] == ["600"]


async def test_files_of_something_else_are_refused_and_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE theirs (a)")
    connection.close()
    newer = tmp_path / "newer.db"
    with sqlite3.connect(newer) as connection:
        connection.executescript("CREATE TABLE log (n); PRAGMA application_id=1970170475; PRAGMA user_version=9;")
    connection.close()
    text = tmp_path / "notes.txt"
    text.write_text("remember the milk\n" * 100)
    for path, why in ((other, "something else"), (newer, "newer unjam"), (text, "is not a SQLite database")):
        before = path.read_bytes()
        kept = SqliteKept(path)
        with pytest.raises(KeptError, match=why) as refused:
            await kept.open()
        assert not isinstance(refused.value, KeptAway)
        await kept.close()
        assert path.read_bytes() == before


async def test_a_folder_that_is_not_there_is_waited_for(tmp_path: Path) -> None:
    kept = SqliteKept(tmp_path / "later" / "k")
    with pytest.raises(KeptAway, match="may we read and write there"):
        await kept.open()
    (tmp_path / "later").mkdir()
    assert await kept.put(change("weight/a/v1", 1)) == 1
    await kept.close()


async def test_while_somebody_else_writes_it_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unjam.kept.sqlite.BUSY", 0.05)
    kept = SqliteKept(tmp_path / "k")
    await kept.open()
    other = sqlite3.connect(tmp_path / "k", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(KeptAway, match="another process"):
        await kept.put(change("weight/a/v1", 1))
    assert await kept.current() == {}
    other.execute("ROLLBACK")
    other.close()
    assert await kept.put(change("weight/a/v1", 1)) == 1
    await kept.close()
