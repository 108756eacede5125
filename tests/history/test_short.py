"""A short history of each store under kills: gateways, workers, connections to Redis, a Redis. The long one is a
command: `python -m benchmarks.history`."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
from benchmarks.history.checker import check
from benchmarks.history.drive import Settings, drive, summary
from benchmarks.history.plan import KILLS, plan

SHORT = {
    "sqlite": Settings("sqlite", kills=16, seed=386, every=0.4, clients=8, workers=3, apart=True),
    "redis": Settings("redis", kills=16, seed=5, every=0.4, clients=8, workers=3),
}


@pytest.mark.parametrize("store", list(SHORT))
def test_nothing_is_lost_or_doubled_under_kills(store: str, tmp_path: Path) -> None:
    if store == "redis":
        assert shutil.which("redis-server"), "make test installs it"
    settings = SHORT[store]
    history = asyncio.run(drive(tmp_path, settings))
    assert [str(violation) for violation in check(history)] == []
    figures = summary(history, settings)
    # It was under load, and it was hurt.
    assert figures["completed"] >= 10
    assert figures["gateway"] >= 1
    assert figures["worker"] >= 1
    assert figures["again"] >= 1, "no run was claimed a second time"


@pytest.mark.parametrize("store", list(KILLS))
def test_what_is_killed_and_when_is_the_seeds_word(store: str) -> None:
    first = plan(store, 200, 7, 0.5, 3.0)
    assert first == plan(store, 200, 7, 0.5, 3.0)
    assert first != plan(store, 200, 8, 0.5, 3.0)
    kinds = [each.kind for each in first]
    assert sum(kind in KILLS[store] for kind in kinds) == 200
    assert set(kinds) >= set(KILLS[store]) | {"freeze", "leave"}
    assert all(each.back > 3.0 for each in first if each.kind == "freeze"), "longer than the lease"
