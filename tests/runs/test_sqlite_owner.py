"""Whose the file is: a lock or a file that somebody removes lets nobody in beside us, and nothing is lost unnoticed."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from unjam.runs.store.base import Fenced, StoreAway, StoreError
from unjam.runs.store.sqlite import SqliteStore

from .sqlite_stores import EVENT, in_loop, new, opened


async def fence_of(store: SqliteStore, worker: str) -> tuple[str, int]:
    claim = await store.claim(["auditor"], worker, pull=True)
    assert claim is not None
    return claim.run.id, claim.run.fence


def test_who_removes_the_lock_lets_nobody_in_beside_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"

    async def body() -> None:
        async with opened(path) as first:
            for _ in range(3):
                await first.create(new())
            one, fence = await fence_of(first, "first")
            second = SqliteStore(path)
            with pytest.raises(StoreError, match="uses this store") as caught:
                await second.open()
            # It doesn't say which file to remove.
            assert not isinstance(caught.value, StoreAway)
            assert ".lock" not in str(caught.value)

            (tmp_path / "runs.db.lock").unlink()
            async with opened(path) as other:
                two, _ = await fence_of(other, "second")
                assert two != one
                for call in (first.create(new()), first.append(one, fence, 1, [EVENT])):
                    with pytest.raises(StoreAway):
                        await call
                with pytest.raises(StoreAway, match="uses this store"):
                    await first.claim(["auditor"], "first", pull=True)
                assert await other.depth() == {"auditor": (1, 2)}
                await other.append(one, fence, 1, [EVENT])
                await other.finish(one, fence, "completed")
            # Alone again it begins with what the other has left.
            assert await first.depth() == {"auditor": (1, 1)}
            with pytest.raises(Fenced):
                await first.append(one, fence, 2, [EVENT])
            three, _ = await fence_of(first, "first")
            assert three not in (one, two)

    in_loop(body)


def test_a_lock_that_was_removed_is_taken_again(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"

    async def body() -> None:
        async with opened(path) as store:
            (tmp_path / "runs.db.lock").unlink()
            with pytest.raises(StoreAway, match="was removed"):
                await store.create(new())
            await store.create(new())
            with pytest.raises(StoreError, match="uses this store"):
                await SqliteStore(path).open()

    in_loop(body)


def test_nothing_is_acknowledged_in_a_file_that_is_gone(tmp_path: Path) -> None:
    path, elsewhere = tmp_path / "runs.db", tmp_path / "elsewhere.db"

    async def body() -> None:
        async with opened(path) as store:
            run, _ = await store.create(new())
            path.rename(elsewhere)
            for _ in range(2):
                with pytest.raises(StoreAway, match="was deleted; put it back"):
                    await store.create(new())
            sqlite3.connect(path).close()
            path.touch()
            with pytest.raises(StoreAway, match="is another file"):
                await store.create(new())
            elsewhere.rename(path)
            await store.create(new())
            assert await store.depth() == {"auditor": (2, 0)}
            assert (await store.get(run.id)).status == "queued"

    in_loop(body)


def test_no_empty_file_takes_the_place_of_one_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "runs.db"

    async def body() -> None:
        async with opened(path) as store:
            await store.create(new())
            path.unlink()
            with monkeypatch.context() as patch:
                # A fault for which the connection is given up.
                error = sqlite3.OperationalError("planted")
                error.sqlite_errorcode = sqlite3.SQLITE_IOERR

                def write(*_: object) -> None:
                    raise error

                patch.setattr("unjam.runs.store.sqlite_rows.Rows.write", write)
                with pytest.raises(StoreAway):
                    await store.create(new())
            with pytest.raises(StoreAway, match="was deleted"):
                await store.create(new())
            assert not path.exists()

    in_loop(body)
