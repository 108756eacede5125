"""The SQLite store among faults: killed processes, two of them, full disks, damaged files."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from unjam.runs.model import NewEvent
from unjam.runs.store import sqlite
from unjam.runs.store.base import StoreAway, StoreError
from unjam.runs.store.sqlite import SqliteStore
from unjam.runs.store.sqlite_desk import Desk, Jobs
from unjam.runs.store.sqlite_state import State

from .sqlite_stores import EVENT, all_runs, claimed, in_loop, new, opened, types

# -- processes ---------------------------------------------------------------------------------------------------------

WORKER = """
import asyncio, os, sys
from unjam.runs.model import NewEvent, NewRun
from unjam.runs.store.sqlite import SqliteStore

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

async def main():
    store = SqliteStore(sys.argv[1])
    await store.open()
    say("open")
    async def actor():
        while True:
            run, _ = await store.create(NewRun(service="auditor", input=b"{}", digest=b"", pull=True))
            say("created", run.id)
            claim = await store.claim(["auditor"], "w", pull=True)
            run, fence = claim.run.id, claim.run.fence
            say("claimed", run, fence)
            for batch in (1, 2):
                appended = await store.append(run, fence, batch, [NewEvent("progress", b"%d" % batch)])
                say("appended", run, appended.next)
            await store.finish(run, fence, "completed", result=run.encode())
            say("finished", run)
    if sys.argv[2:] == ["hold"]:
        await asyncio.Event().wait()
    await asyncio.gather(*[actor() for _ in range(8)])

asyncio.run(main())
"""


def worker(path: Path, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", WORKER, str(path), *arguments], stdout=subprocess.PIPE)


@pytest.mark.parametrize("acknowledged", [7, 200, 900])
def test_all_that_was_acknowledged_survives_kill_9(tmp_path: Path, acknowledged: int) -> None:
    said: list[list[str]] = []
    for _ in range(2):  # the second time with what the first has left
        with worker(tmp_path / "runs.db") as process:
            assert process.stdout is not None
            for number, line in enumerate(process.stdout):
                said.append(line.decode().split())
                if number == acknowledged:
                    process.send_signal(signal.SIGKILL)

    async def body() -> None:
        async with opened(tmp_path / "runs.db") as store:
            known = {run.id: run for run in await all_runs(store)}
            logs = {run: await types(store, run) for run in known}
            for what, *run in said:
                match what, run:
                    case "created", [id_]:
                        assert known[id_].created > 0
                    case "claimed", [id_, fence]:
                        assert known[id_].fence >= int(fence)
                    case "appended", [id_, seq]:
                        assert len(logs[id_]) >= int(seq)
                    case "finished", [id_]:
                        assert known[id_].status == "completed"
                        assert await store.result(id_) == id_.encode()
            assert sum(1 for what, *_ in said if what == "created") >= acknowledged / 8
            for run, log in logs.items():
                ends = [kind for kind in log if kind == "run.completed"]
                assert len(ends) == (known[run].status == "completed")
                assert known[run].seq == len(log)

    in_loop(body)


def test_a_file_belongs_to_one_process_until_that_ends(tmp_path: Path) -> None:
    async def refused(pid: int) -> None:
        store = SqliteStore(tmp_path / "runs.db")
        with pytest.raises(StoreError, match=f"process {pid} uses this store") as caught:
            await store.open()
        assert not isinstance(caught.value, StoreAway)

    async def body() -> None:
        with worker(tmp_path / "runs.db", "hold") as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"open\n"
            await refused(process.pid)
            process.kill()
        async with opened(tmp_path / "runs.db") as store:
            await store.create(new())
            await refused(os.getpid())
            await store.create(new())
        async with opened(tmp_path / "runs.db") as store:
            assert len(await all_runs(store)) == 2

    in_loop(body)


def test_while_somebody_locks_the_database_writers_are_told_and_readers_served(tmp_path: Path) -> None:
    async def body() -> None:
        async with opened(tmp_path / "runs.db") as store:
            run, _ = await store.create(new())
            other = sqlite3.connect(tmp_path / "runs.db", isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            group = await asyncio.gather(*[store.create(new()) for _ in range(8)], return_exceptions=True)
            assert {type(error) for error in group} == {StoreAway}
            assert "another process holds a lock" in str(group[0])
            assert (await store.get(run.id)).status == "queued"
            other.execute("ROLLBACK")
            other.close()
            assert (await claimed(store)).run.id == run.id
            assert len(await all_runs(store)) == 1

    in_loop(body)


# -- the disk ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "small", place], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("needs to mount a file system")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_loses_nothing_and_is_survived(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 600_000)

    async def body() -> None:
        async with opened(small_disk / "runs.db") as store:
            running, _ = await store.create(new())
            fence = (await claimed(store)).run.fence
            acknowledged = [running.id]
            away = 0
            while away < 20:
                answers = await asyncio.gather(
                    *[store.create(new(b"x" * 20_000)) for _ in range(4)], return_exceptions=True
                )
                for answer in answers:
                    if isinstance(answer, tuple):
                        acknowledged.append(answer[0].id)
                    else:
                        assert isinstance(answer, StoreAway)
                        assert "full" in str(answer)
                        assert answer.retry_after > 0
                        away += 1
            assert len(acknowledged) > 10
            with pytest.raises(StoreAway):
                await store.append(running.id, fence, 1, [NewEvent("progress", b"x" * 50_000)])
            # What needs no room goes on.
            assert not (await store.heartbeat(running.id, fence)).cancel
            assert {run.id for run in await all_runs(store)} == set(acknowledged)
            assert await store.depth() == {"auditor": (len(acknowledged) - 1, 1)}
            ballast.unlink()
            assert (await store.append(running.id, fence, 1, [EVENT])).first == 2
            await store.finish(running.id, fence, "completed")
            acknowledged.append((await store.create(new(b"x" * 20_000)))[0].id)
            # In their order still.
            assert (await claimed(store)).run.id == acknowledged[1]
        async with opened(small_disk / "runs.db") as store:
            assert {run.id for run in await all_runs(store)} == set(acknowledged)
            log = ["run.created", "run.attempt", "progress", "run.completed"]
            assert await types(store, running.id) == log
            assert await store.depth() == {"auditor": (len(acknowledged) - 2, 1)}

    in_loop(body)


def test_a_disk_that_turns_read_only_is_survived(small_disk: Path) -> None:
    def remount(mode: str) -> bool:
        return subprocess.run(["mount", "-o", f"remount,{mode}", small_disk], check=False).returncode == 0

    async def body() -> None:
        async with opened(small_disk / "runs.db") as store:
            run, _ = await store.create(new())
        assert remount("ro")
        store = SqliteStore(small_disk / "runs.db")
        with pytest.raises(StoreAway, match="may we write there"):
            await store.open()
        assert remount("rw")
        async with opened(small_disk / "runs.db") as store:
            assert (await claimed(store)).run.id == run.id

    in_loop(body)


LIMITED = """
import asyncio, resource, sys
from unjam.runs.model import NewRun
from unjam.runs.store.base import StoreAway
from unjam.runs.store.sqlite import SqliteStore

async def main():
    store = SqliteStore(sys.argv[1])
    await store.open()
    made, away = [], 0
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, resource.RLIM_INFINITY))
    while away < 5:
        try:
            run, _ = await store.create(NewRun(service="a", input=b"x" * 10_000, digest=b""))
            made.append(run.id)
        except StoreAway:
            away += 1
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    made.append((await store.create(NewRun(service="a", input=b"x" * 10_000, digest=b"")))[0].id)
    assert {run.id for run in await store.list(None, limit=1000)} == set(made)
    await store.close()
    print(*made)

asyncio.run(main())
"""


def test_a_write_that_fails_half_way_loses_nothing_and_is_survived(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    ended = subprocess.run([sys.executable, "-c", LIMITED, str(path)], stdout=subprocess.PIPE, check=True, timeout=60)
    made = ended.stdout.decode().split()
    assert len(made) > 10

    async def body() -> None:
        async with opened(path) as store:
            assert {run.id for run in await all_runs(store)} == set(made)

    in_loop(body)


# -- files that aren't ours, or not any more ---------------------------------------------------------------------------


def refused(path: Path) -> StoreError:
    async def body() -> StoreError:
        store = SqliteStore(path)
        with pytest.raises(StoreError) as caught:
            await store.open()
        with pytest.raises(StoreAway, match="closed"):
            await store.create(new())
        return caught.value

    return in_loop(body)


def test_what_is_no_database_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database\n" * 500)
    assert "is not a SQLite database" in str(refused(path))
    assert path.read_text() == "not a database\n" * 500


def test_a_database_of_something_else_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE runs (id)")
    other.commit()
    other.close()
    before = path.read_bytes()
    assert "something else" in str(refused(path))
    assert path.read_bytes() == before


def test_a_newer_schema_is_refused_in_words(tmp_path: Path) -> None:
    async def body() -> None:
        async with opened(tmp_path / "runs.db"):
            pass

    in_loop(body)
    newer = sqlite3.connect(tmp_path / "runs.db")
    newer.execute("PRAGMA user_version=7")
    newer.close()
    assert "newer unjam (schema 7; this one knows 1)" in str(refused(tmp_path / "runs.db"))


def test_a_place_that_is_not_there_is_refused_in_words(tmp_path: Path) -> None:
    assert "may we write there?" in str(refused(tmp_path / "nowhere" / "runs.db"))


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_file_is_told_and_never_answered_from(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "runs.db"
    made: list[str] = []

    async def fill() -> None:
        async with opened(path) as store:
            for _ in range(200):
                made.append((await store.create(new(b'"%s"' % (b"x" * 200))))[0].id)

    async def body() -> None:
        told: list[str] = []
        store = SqliteStore(path)
        try:
            await store.open()
        except StoreAway as error:
            told.append(str(error))
        else:
            for run in made:
                try:
                    assert (await store.get(run)).id == run
                    assert (await store.read(run)).events[0].type == "run.created"
                    assert (await claimed(store)).input.startswith(b'"xxx')
                except StoreAway as error:
                    told.append(str(error))
            await store.close()
        assert told
        assert all("damaged" in words for words in told)

    in_loop(fill)
    content = bytearray(path.read_bytes())
    pages = range(1, len(content) // 4096)
    for page in random.Random(seed).sample(pages, len(pages) // 2):
        content[page * 4096 : (page + 1) * 4096] = b"\xa5" * 4096
    path.write_bytes(content)
    in_loop(body)


def test_payloads_are_for_the_owner_of_the_process_only(tmp_path: Path) -> None:
    async def body() -> None:
        async with opened(tmp_path / "runs.db") as store:
            await store.create(new())
            modes = {file.name: os.stat(tmp_path / file.name).st_mode & 0o777 for file in os.scandir(tmp_path)}
            assert set(modes) >= {"runs.db", "runs.db-wal"}
            assert set(modes.values()) == {0o600}

    in_loop(body)


# -- faults of our own -------------------------------------------------------------------------------------------------


def test_a_fault_while_it_connects_anew_is_told_and_over_when_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        store = SqliteStore(tmp_path / "runs.db")
        await store.open()
        connection, store._ledger.connection = store._ledger.connection, None
        assert connection is not None
        connection.close()

        def no_memory(*arguments: object) -> None:
            raise MemoryError

        async with asyncio.timeout(20):
            with monkeypatch.context() as fault:
                fault.setattr(State, "load", no_memory)
                with pytest.raises(StoreAway):
                    await store.create(new())
            assert (await store.create(new()))[1]
            await store.close()

    in_loop(body)


def test_while_the_file_was_away_no_lease_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*arguments: object) -> sqlite3.Connection:
        raise OSError(5, "a disk that is away")

    async def body() -> None:
        now = 1000.0
        store = SqliteStore(tmp_path / "runs.db", monotonic=lambda: now)
        await store.open()
        await store.create(new())
        run = (await claimed(store)).run
        await store.append(run.id, run.fence, 1, [EVENT])
        with monkeypatch.context() as fault:
            fault.setattr(sqlite, "connect", unreachable)
            connection, store._ledger.connection = store._ledger.connection, None
            assert connection is not None
            connection.close()
            with pytest.raises(StoreAway, match="a disk that is away"):
                await store.heartbeat(run.id, run.fence)
            now += 60
        assert await store.sweep() == []
        await store.heartbeat(run.id, run.fence)
        now += 31
        assert [settled.run.status for settled in await store.sweep()] == ["failed"]
        await store.close()

    in_loop(body)


def test_whatever_a_desk_stumbles_on_it_answers_and_goes_on() -> None:
    async def body() -> None:
        def serve(jobs: Jobs) -> None:
            raise ZeroDivisionError

        def closed() -> None:
            told.append("closed")

        told: list[object] = []
        desk = Desk("desk", serve, told.append, closed)
        async with asyncio.timeout(20):
            for _ in range(2):
                with pytest.raises(StoreError, match="ZeroDivisionError"):
                    await desk.submit(print, (), False)
            await desk.close()
        assert told == ["closed"]

    in_loop(body)
