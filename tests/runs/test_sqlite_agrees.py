"""The SQLite store beside the one in memory: the same answers to the same calls, also when writes fail on the way.

Windows are a few runs wide here, so that most of a queue is in the file only.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from unjam.runs.model import Claim
from unjam.runs.store import sqlite_queue, sqlite_state
from unjam.runs.store.base import Fenced, NotEnded, Store, StoreAway, TenantQueueFull, UnknownRun
from unjam.runs.store.memory import MemoryStore
from unjam.runs.store.sqlite import SqliteStore
from unjam.runs.store.sqlite_rows import Rows
from unjam.runs.store.sweeps import Sweeps

from .sqlite_stores import EVENT, all_runs, in_loop, new, opened


class Faults:
    """Some writes fail: before or after the rows are there, for want of room or with the connection."""

    def __init__(self, share: float, rng: random.Random, patch: pytest.MonkeyPatch) -> None:
        self.share = share
        self.met = 0
        write = Rows.write

        def faulty(rows: Rows, connection: sqlite3.Connection) -> None:
            fate = rng.random()
            if fate < self.share:
                self.met += 1
                if fate < self.share / 2:
                    write(rows, connection)
                error = sqlite3.OperationalError("injected")
                error.sqlite_errorcode = rng.choice([sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR])
                raise error
            write(rows, connection)

        patch.setattr(Rows, "write", faulty)


class Pair:
    """Each call goes to both; not to the reference where ours was away. `names`: its run of ours."""

    def __init__(self, ours: SqliteStore, reference: MemoryStore) -> None:
        self.ours, self.reference = ours, reference
        self.names: dict[str, str] = {}
        self.owned: list[tuple[str, int, int]] = []

    async def both(self, call: Callable[[Store, str], Awaitable[Any]], run: str = "") -> tuple[Any, Any] | None:
        try:
            found = await call(self.ours, run)
        except StoreAway:
            return None
        except (Fenced, ValueError, NotEnded, UnknownRun, TenantQueueFull) as error:
            with pytest.raises(type(error)):
                await call(self.reference, self.names.get(run, run))
            return None
        return found, await call(self.reference, self.names.get(run, ""))

    async def create(self, deadline: float | None, **more: Any) -> None:
        asked = new(deadline=deadline, **more)
        if (made := await self.both(lambda store, _: store.create(asked))) is not None:
            self.names[made[0][0].id] = made[1][0].id

    async def claim(self, version: str | None) -> None:
        claims = await self.both(
            lambda store, _: store.claim(["auditor"], "w", pull=True, version=version, known=["v1", "v2"])
        )
        if claims is None:
            return
        ours, theirs = claims
        assert (ours is None) == (theirs is None)
        if isinstance(ours, Claim):
            assert self.names[ours.run.id] == theirs.run.id
            assert (ours.run.fence, ours.checkpoint) == (theirs.run.fence, theirs.checkpoint)
            self.owned.append((ours.run.id, ours.run.fence, 1))

    async def sweep(self) -> None:
        if (swept := await self.both(lambda store, _: store.sweep(1000))) is not None:
            assert {(self.names[s.run.id], s.run.status) for s in swept[0]} == {
                (s.run.id, s.run.status) for s in swept[1]
            }

    async def append(self, at: int) -> None:
        run, fence, batch = self.owned[at]
        if await self.both(lambda store, name: store.append(name, fence, batch, [EVENT]), run) is not None:
            self.owned[at] = (run, fence, batch + 1)

    async def pin(self, at: int, version: str) -> None:
        run, fence, _ = self.owned[at]
        await self.both(lambda store, name: store.heartbeat(name, fence, version=version), run)

    async def delete(self, at: int) -> None:
        run, _, _ = self.owned[at]
        if await self.both(lambda store, name: store.delete(name), run) is not None:
            del self.names[run]

    async def settle(self, how: str, at: int) -> None:
        run, fence, _ = self.owned[at]
        calls: dict[str, Callable[[Store, str], Awaitable[Any]]] = {
            "finish": lambda store, name: store.finish(name, fence, "completed", result=b"1"),
            "fail": lambda store, name: store.finish(name, fence, "failed", error=b"{}", events=[EVENT]),
            "release": lambda store, name: store.release(name, fence, b"7"),
            "cancel": lambda store, name: store.cancel(name),
            "requeue": lambda store, name: store.requeue(name),
        }
        if (settled := await self.both(calls[how], run)) is not None:
            assert settled[0].changed == settled[1].changed
            assert settled[0].run.status == settled[1].run.status

    async def agree(self) -> None:
        depths = None
        while depths is None:
            depths = await self.both(lambda store, _: store.depth())
        assert depths[0] == depths[1]

    async def agree_in_full(self, store: SqliteStore) -> None:
        assert {run.id for run in await all_runs(store)} == set(self.names)
        for ours, theirs in self.names.items():
            expected = await self.reference.get(theirs)
            expected.id = ours
            assert await store.get(ours) == expected
            log, other = [(await side.read(run)).events for side, run in ((store, ours), (self.reference, theirs))]
            assert [(event.seq, event.type, event.data) for event in log] == [
                (event.seq, event.type, event.data) for event in other
            ]
        assert await store.depth() == await self.reference.depth()


@pytest.mark.parametrize("share", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(6))
def test_the_same_calls_have_the_same_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, share: float
) -> None:
    monkeypatch.setattr(sqlite_queue, "WIDE", 4)
    monkeypatch.setattr(sqlite_queue, "FETCH", 3)
    monkeypatch.setattr(sqlite_state, "FETCH", 3)
    # What is refused to owners costs them no lease, and the reference refuses nothing.
    monkeypatch.setattr(Sweeps, "begin", lambda *_: [])
    rng = random.Random(seed)
    faults = Faults(share, rng, monkeypatch)
    wall, now = [1_700_000_000.0], [100.0]
    path, times = tmp_path / "runs.db", (lambda: wall[0], lambda: now[0])
    calls = ["create"] * 4 + ["claim"] * 4 + ["append"] * 2 + ["finish", "fail", "release", "cancel", "requeue", "lose"]
    calls += ["pin", "delete"]

    async def body() -> None:
        async with opened(path, *times) as store:
            pair = Pair(store, MemoryStore(*times))
            for _ in range(300):
                wall[0] += 1
                what = rng.choice(calls)
                if what == "create":
                    deadline = wall[0] + rng.choice([5, 50]) if rng.random() < 0.2 else None
                    lane, tenant = rng.choice(["fast", "heavy"]), rng.choice(["", "acme"])
                    own = rng.choice([None, 3, 8])
                    await pair.create(deadline, lane=lane, tenant=tenant, max_queued_tenant=own)
                elif what == "claim":
                    await pair.claim(rng.choice([None, "v1", "v2"]))
                elif what == "lose":
                    now[0] += rng.choice([1.0, 40.0])
                    await pair.sweep()
                elif pair.owned:
                    at = rng.randrange(len(pair.owned))
                    if what == "append":
                        await pair.append(at)
                    elif what == "pin":
                        await pair.pin(at, rng.choice(["v1", "v2"]))
                    elif what == "delete":
                        await pair.delete(at)
                    else:
                        await pair.settle(what, at)
                await pair.agree()
        assert bool(faults.met) == bool(share)
        faults.share = 0.0
        async with opened(path, *times) as store:
            await pair.agree_in_full(store)

    in_loop(body)
