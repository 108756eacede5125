"""The arrival script: the same everywhere, with the shares and the load that it promises."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from benchmarks.heavy_tail.arrivals import AUDIT, CHAT, HELLO, Bursts, Mix, offered, script

SLOTS = 24

#: First job of seed 1: class, path, arrival and seconds.
PINNED = ("chat", "/chat", 0.003590314865455109, 0.1906849432046356)


def test_same_seed_same_script_and_other_seed_another() -> None:
    assert script(0.85, 500, 1) == script(0.85, 500, 1)
    assert script(0.85, 500, 1) != script(0.85, 500, 2)
    assert script(0.85, 500, 1) != script(0.95, 500, 1)


def test_script_is_pinned_across_machines_and_versions() -> None:
    first = script(0.85, 300, 1)[0]
    assert (first.kind, first.path) == PINNED[:2]
    assert first.at == pytest.approx(PINNED[2], rel=1e-12)
    assert first.seconds == pytest.approx(PINNED[3], rel=1e-12)


def test_shares_of_classes_and_of_wrong_paths() -> None:
    jobs = script(0.9, 60_000, 7)
    by = {kind: [j for j in jobs if j.kind == kind] for kind in (HELLO, CHAT, AUDIT)}
    assert len(by[HELLO]) / len(jobs) == pytest.approx(0.30, abs=0.01)
    assert len(by[CHAT]) / len(jobs) == pytest.approx(0.665, abs=0.01)
    assert len(by[AUDIT]) / len(jobs) == pytest.approx(0.035, abs=0.004)
    assert all(j.path == "/hello" and j.seconds == 0.005 for j in by[HELLO])
    for kind, other in ((CHAT, "/audit"), (AUDIT, "/chat")):
        astray = sum(j.path == other for j in by[kind]) / len(by[kind])
        assert astray == pytest.approx(0.15, abs=0.02)
    assert sum(j.seconds for j in by[CHAT]) / len(by[CHAT]) == pytest.approx(0.05, rel=0.05)
    assert sum(j.seconds for j in by[AUDIT]) / len(by[AUDIT]) == pytest.approx(3.0, rel=0.1)


@pytest.mark.parametrize("load", [0.5, 0.85, 0.95])
def test_offers_the_load_asked_for(load: float) -> None:
    for seed in range(3):
        assert offered(script(load, 1000, seed, SLOTS), SLOTS) == pytest.approx(load)


def test_gaps_are_exponential() -> None:
    times = [j.at for j in script(0.85, 50_000, 5)]
    gaps = [b - a for a, b in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    assert sum((g - mean) ** 2 for g in gaps) / len(gaps) == pytest.approx(mean**2, rel=0.05)
    assert sum(g < mean * math.log(2) for g in gaps) / len(gaps) == pytest.approx(0.5, abs=0.01)


def test_bursts_come_on_top_and_in_order() -> None:
    plain = script(0.85, 3000, 1)
    bursts = Bursts(audits=30, every=5.0)
    jobs = script(0.85, 3000, 1, bursts=bursts)
    known = set(plain)
    assert [j for j in jobs if j in known] == plain
    added = [j for j in jobs if j not in known]
    assert {j.kind for j in added} == {AUDIT}
    times = sorted({j.at for j in added})
    assert times == [1.25 + 5.0 * n for n in range(len(times))]
    assert len(added) == 30 * len(times)
    assert [j.at for j in jobs] == sorted(j.at for j in jobs)


def test_mean_of_the_mix() -> None:
    assert Mix().mean == pytest.approx(0.3 * 0.005 + 0.665 * 0.05 + 0.035 * 3.0)
