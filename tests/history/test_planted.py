"""The checker finds the bug that was planted: the same two workers, with a store that looks at fences and one that
doesn't."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from time import monotonic

import msgspec
import pytest
from benchmarks.history.checker import Violation, check
from benchmarks.history.drive import Settings, drive
from benchmarks.history.planted import Unfenced
from benchmarks.history.records import Book, Created, Got, Looked, Mark, Opened, Record, load
from benchmarks.history.worker import STEP, RecordingLink

from unjam.runs.model import NewEvent, NewRun
from unjam.runs.store.base import Fenced
from unjam.runs.store.memory import MemoryStore
from unjam.worker import StoreLink


class Clock:
    """Of the leases."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def step(fence: int, n: int, step: int) -> NewEvent:
    return NewEvent(STEP, msgspec.json.encode(Mark(f"r:{fence}", n, step, fence=fence)))


async def two_owners(store: MemoryStore, clock: Clock, place: Path) -> list[Violation]:
    """The first is silent for longer than its lease, and then goes on as if nothing were."""
    history: list[Record] = []
    run, _ = await store.create(NewRun(service="s", input=b"{}", digest=b"", pull=True, retry="restart"))
    history.append(Created("c", "k", run.id, monotonic(), monotonic(), steps=2))
    books = [Book(place / name) for name in ("a", "b")]
    links = [RecordingLink(StoreLink(store, ("s",), name), name, book) for name, book in zip("ab", books, strict=True)]
    first, second = links
    job = await first.claim(0)
    assert job is not None
    await first.append(run.id, job.fence, 1, [step(1, 1, 0)])
    clock.now += 31
    await store.sweep()
    again = await second.claim(0)
    assert again is not None
    await second.append(run.id, again.fence, 1, [step(2, 1, 0)])
    with suppress(Fenced):
        await first.append(run.id, job.fence, 2, [step(1, 2, 1)])
    with suppress(Fenced):
        await first.finish(run.id, job.fence, "completed", b'{"fence":1}', None, None, ())
    with suppress(Fenced):
        await second.append(run.id, again.fence, 2, [step(2, 2, 1)])
        await second.finish(run.id, again.fence, "completed", b'{"fence":2}', None, None, ())
    history.append(Opened("x", run.id, -1, monotonic()))
    for event in (await store.read(run.id)).events:
        mark = msgspec.json.decode(event.data, type=Mark) if event.type == STEP else None
        data = "" if mark else event.data.decode()
        history.append(Got("x", run.id, event.seq, event.type, monotonic(), mark, data))
    ended = await store.get(run.id)
    result = msgspec.json.decode(await store.result(run.id) or b"{}").get("fence")
    history.append(Looked(run.id, ended.status, monotonic(), "", result))
    for book in books:
        book.close()
    return check(history + load([place / "a", place / "b"]))


@pytest.mark.parametrize("kind", [MemoryStore, Unfenced])
def test_a_store_without_fences_is_found(kind: type[MemoryStore], tmp_path: Path) -> None:
    clock = Clock()
    found = asyncio.run(two_owners(kind(monotonic=clock), clock, tmp_path))
    if kind is MemoryStore:
        assert found == []
        return
    words = [str(violation) for violation in found]
    assert any("append of a with fence 1 was accepted although b had the run with 2" in each for each in words)
    assert any("finish of a with fence 1 was accepted although b had the run with 2" in each for each in words)
    assert any("is of fence 1, when 2 had the run" in each for each in words)
    assert any("its result is of fence 1, when 2 had the run" in each for each in words)


def test_a_gateway_with_such_a_store_is_found_by_killing_and_stopping_workers(tmp_path: Path) -> None:
    # Whether an owner that was stopped comes back while its run goes on elsewhere is a matter of chance with processes.
    rules: set[str] = set()
    for seed in (53, 54, 55):
        place = tmp_path / str(seed)
        place.mkdir()
        settings = Settings("memory", kills=3, seed=seed, every=2.0, clients=12, workers=3, planted=True, steps=40)
        rules |= {violation.rule for violation in check(asyncio.run(drive(place, settings)))}
        if "stale" in rules:
            break
    assert "stale" in rules
