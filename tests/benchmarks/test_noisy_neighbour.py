"""Shares over time, times to move and to return, changes of mind; and the script that they are taken from."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
from benchmarks.heavy_tail.arrivals import AUDIT, HELLO
from benchmarks.noisy_neighbour import figures as f
from benchmarks.noisy_neighbour import report
from benchmarks.noisy_neighbour.arrivals import HEAVY, offered, script
from benchmarks.noisy_neighbour.turn import Plan

ON, OFF, END = 20.0, 45.0, 75.0


def made(rule: Any, step: float = 0.5) -> list[f.Dispatch]:
    """One dispatch every `step` seconds, to the hogged endpoint where `rule(n, at)` says so."""
    return [(n * step, rule(n, n * step)) for n in range(round(END / step))]


def halves(n: int, at: float) -> bool:
    return n % 2 == 0


def moved_after(seconds: float, back: float) -> list[f.Dispatch]:
    return made(lambda n, at: halves(n, at) and not ON + seconds <= at < OFF + back)


def test_shares_over_time() -> None:
    dispatches = moved_after(2.0, 4.0)
    assert f.share(dispatches, 0.0, 10.0) == 0.5
    assert f.share(dispatches, 30.0, 40.0) == 0.0
    assert math.isnan(f.share(dispatches, 80.0, 90.0))
    shares = f.shares(dispatches, END, 5.0)
    assert len(shares) == 15
    assert shares[0] == 0.5
    assert shares[5] == 0.0


def test_time_to_move_is_that_of_the_last_dispatch_that_went_astray() -> None:
    slow = made(lambda n, at: halves(n, at) and not ON + 2.5 <= at < OFF, 1.0)
    assert f.time_to_move(slow, ON, OFF) == 2.0
    assert f.time_to_move(moved_after(0.0, 4.0), ON, OFF) == 0.0


def test_one_that_never_moves_never_moves() -> None:
    assert f.time_to_move(made(halves), ON, OFF) == math.inf


def test_a_lull_at_the_end_of_the_hog_is_not_a_move() -> None:
    assert f.time_to_move(moved_after(OFF - ON - f.WINDOW / 2, 0.0), ON, OFF) == math.inf


def test_dispatches_astray_later_are_let_pass_only_below_a_tenth() -> None:
    late = made(lambda n, at: (halves(n, at) and not ON <= at < OFF) or at == 40.0)
    assert f.time_to_move(late, ON, OFF) == 0.0
    more = made(lambda n, at: (halves(n, at) and not ON + 2 <= at < OFF) or at in (30.0, 31.0, 32.0, 33.0, 34.0))
    assert f.time_to_move(more, ON, OFF) > 10.0


def test_time_to_return() -> None:
    assert f.time_to_return(moved_after(2.0, 4.0), OFF, END) == 4.0
    assert f.time_to_return(made(halves), OFF, END) == 0.0
    assert f.time_to_return(moved_after(2.0, 100.0), OFF, END) == math.inf


def test_one_try_is_not_a_return() -> None:
    tried = made(lambda n, at: (halves(n, at) and not ON <= at < OFF + 20) or at == OFF + 3)
    assert f.time_to_return(tried, OFF, END) > 10.0


def test_away_and_back_is_no_oscillation() -> None:
    assert f.changes(moved_after(2.0, 4.0), END) == 2
    assert f.oscillations(moved_after(2.0, 4.0), END) == 0
    assert f.oscillations(made(halves), END) == 0


def test_to_and_fro_is() -> None:
    swings = made(lambda n, at: int(at / 10.0) % 2 == 0)
    assert f.changes(swings, END) == 6
    assert f.oscillations(swings, END) == 4


def test_the_script_is_the_same_for_a_seed_and_needs_what_it_says() -> None:
    jobs = script(0.55, 75.0, 1)
    assert jobs == script(0.55, 75.0, 1)
    assert jobs != script(0.55, 75.0, 2)
    assert all(HEAVY[0] <= job.seconds <= HEAVY[1] for job in jobs if job.kind == AUDIT)
    assert sum(job.kind == HELLO for job in jobs) > 900
    long = script(0.55, 5000.0, 1)
    assert offered(long, 5000.0) == pytest.approx(0.55, rel=0.05)
    with pytest.raises(ValueError, match="nothing for heavy"):
        script(0.04, 75.0, 1)


def test_failed_requests_count_as_endless_and_where_they_went_as_seen() -> None:
    plan = Plan(on=ON, off=OFF, end=END, hogs=1, load=0.55)
    jobs = script(plan.load, plan.end, 1)
    went = [(job.at, n % 2) for n, job in enumerate(jobs)]
    turn: Any = SimpleNamespace(
        run=SimpleNamespace(response=[math.nan if job.kind == AUDIT else 0.01 for job in jobs], errors=["x"] * 90),
        went=went,
        on=ON,
        off=OFF,
        balancer_cpu=0.0,
        reporters_cpu=0.0,
        lag={},
        why=[],
    )
    out = report.evaluate(turn, jobs, plan)
    assert out["heavy_p99"] == math.inf
    assert out["hello_p99"] == 0.01
    assert out["errors"] == 90
    assert out["moved"] == math.inf


def test_targets() -> None:
    good = {"moved": 2.0, "returned": 8.0, "oscillations": 0}
    by = {name: {"heavy_pooled_p99_ratio": 2.5} for name in ("unjam", "haproxy", "envoy", "sglang-router")}
    assert all(t["pass"] for t in report.targets(by, [good, good]))
    checks = report.targets(by | {"envoy": {"heavy_pooled_p99_ratio": 1.9}}, [good, good | {"moved": 3.5}])
    assert [t["target"] for t in checks if not t["pass"]] == [
        "seconds until heavy traffic moved away, worst round",
        "envoy's heavy p99 ÷ ours",
    ]
    assert report.targets({"haproxy": by["haproxy"]}, []) == []


def test_all_rounds_together_beside_each_round() -> None:
    ours = [{"heavy_seconds": [1.0] * 99 + [5.0], "errors": 0}, {"heavy_seconds": [1.0] * 100, "errors": 1}]
    theirs = [{"heavy_seconds": [2.0] * 90 + [6.0] * 10, "errors": 0}] * 2
    filled = {
        name: [
            {**r, **{key: max(r["heavy_seconds"]) for key in ("heavy_p99", "heavy_hogged_p99", "hello_p99")}}
            for r in each
        ]
        for name, each in (("unjam", ours), ("envoy", theirs))
    }
    by = report.across(filled)
    assert by["unjam"]["heavy_pooled_p99"] == 1.0
    assert by["envoy"]["heavy_pooled_p99_ratio"] == 6.0
    assert by["envoy"]["heavy_p99_ratio"]["rounds"] == [1.2, 6.0]
    assert by["unjam"]["errors"] == 1
