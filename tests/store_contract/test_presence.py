"""Which workers are there."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from unjam.runs.model import WorkerInfo
from unjam.runs.store import base
from unjam.runs.store.base import LARGEST_WORD, TooLarge

from .harness import Harness


def info(id_: str = "w1", **more: Any) -> WorkerInfo:
    return WorkerInfo(**{"id": id_, "services": ("auditor",), "slots": 4, "started": 5.0, "at": 6.0, **more})


async def there(h: Harness) -> list[str]:
    return [worker.id for worker in await h.store.workers()]


async def test_what_a_worker_says_is_told_as_it_is(h: Harness) -> None:
    said = info(
        "odd\n\x00☃",
        services=("auditor", "painter"),
        version="v7",
        running=3,
        lanes=("heavy",),
        load={"cpu": 0.25, "cores": 8.0},
        via="gateway-a",
    )
    bare = WorkerInfo(id="bare", services=())
    await h.store.announce(said, 30)
    await h.store.announce(bare, 30)
    assert await h.store.workers() == [bare, said]


async def test_the_latest_word_counts(h: Harness) -> None:
    assert await h.store.workers() == []
    await h.store.announce(info(running=1), 30)
    await h.store.announce(info(running=2, load={"cpu": 1.0}), 30)
    await h.store.announce(info("w0"), 30)
    assert await h.store.workers() == [info("w0"), info(running=2, load={"cpu": 1.0})]


async def test_who_says_goodbye_is_gone_at_once(h: Harness) -> None:
    await h.store.announce(info(), 30)
    await h.store.announce(info("w2"), 30)
    await h.store.announce(info(), 0)
    await h.store.announce(info("stranger"), 0)
    assert await there(h) == ["w2"]


async def test_who_is_silent_is_gone_after_its_time(h: Harness) -> None:
    await h.store.announce(info("short"), 50)
    await h.store.announce(info("long"), 600)
    await h.advance(40)
    await h.store.announce(info("again"), 50)
    assert await there(h) == ["again", "long", "short"]
    await h.advance(20)
    assert await there(h) == ["again", "long"]
    await h.store.announce(info("again"), 50)
    await h.advance(40)
    assert await there(h) == ["again", "long"]
    await h.advance(600)
    assert await there(h) == []


@pytest.mark.needs("wall")
async def test_a_jump_of_the_wall_clock_moves_nobody(h: Harness) -> None:
    await h.store.announce(info(), 30)
    h.wall(1e6)
    assert await there(h) == ["w1"]
    h.wall(-3e6)
    assert await there(h) == ["w1"]


async def test_presence_and_runs_have_nothing_to_do_with_each_other(h: Harness) -> None:
    claim = await h.taken()
    await h.store.announce(info(claim.run.worker or ""), 5)
    await h.advance(6)
    assert await there(h) == []
    assert await h.emit(claim, 1, 1) == 3
    assert [settled.run.id for settled in await h.lose()] == [claim.run.id]


async def test_too_much_said_is_refused(h: Harness) -> None:
    with pytest.raises(TooLarge):
        await h.store.announce(info(services=("x" * LARGEST_WORD,)), 30)
    assert await h.store.workers() == []
    await h.store.announce(info(services=("x" * (LARGEST_WORD - len(msgspec.json.encode(info()))),)), 30)
    assert await there(h) == ["w1"]


async def test_of_too_many_those_are_forgotten_whose_word_ends_first(
    h: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("presence", "redis"):
        monkeypatch.setattr(f"{base.__package__}.{module}.MOST_WORKERS", 3)
    for at, length in enumerate((30, 10, 40, 20, 50)):
        await h.store.announce(info(f"w{at}"), length)
    assert await there(h) == ["w0", "w2", "w4"]
