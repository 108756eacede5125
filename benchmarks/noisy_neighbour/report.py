"""Figures of the turns, ratios, targets, and the tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common import results
from benchmarks.common.figures import median, quantile, significant
from benchmarks.heavy_tail.arrivals import AUDIT, HELLO, Job

from . import figures as f
from .turn import HOGGED, Plan, Turn, summary

US = "unjam"
#: The heavy p99 of these must be at least `FACTOR` times ours, over all rounds together.
RIVALS = ("haproxy", "envoy", "sglang-router")
FACTOR = 2.0
MOVE_SECONDS, RETURN_SECONDS = 3.0, 10.0
#: Seconds in a column of the table of shares over time.
WIDE = 4.0
#: Not counted in response times: the balancers learn.
WARM_SECONDS = 5.0


def _failed_as_forever(seconds: float) -> float:
    return math.inf if math.isnan(seconds) else seconds


def evaluate(turn: Turn, jobs: Sequence[Job], plan: Plan) -> dict[str, Any]:
    """Response times in seconds, shares in 0..1. A request that failed counts as one that took for ever."""
    times: dict[str, list[float]] = {"heavy": [], "heavy_hogged": [], "hello": [], "hello_hogged": []}
    heavy: list[f.Dispatch] = []
    everything: list[f.Dispatch] = []
    for job, response, went in zip(jobs, turn.run.response, turn.went, strict=True):
        kind = "hello" if job.kind == HELLO else "heavy"
        if job.at >= WARM_SECONDS:
            times[kind].append(_failed_as_forever(response))
            if turn.on <= job.at < turn.off:
                times[kind + "_hogged"].append(_failed_as_forever(response))
        if went is not None:
            everything.append((went[0], went[1] == HOGGED))
            if job.kind == AUDIT:
                heavy.append((went[0], went[1] == HOGGED))
    heavy.sort()
    everything.sort()
    return {
        **{f"{name}_p50": quantile(v, 0.5) for name, v in times.items()},
        **{f"{name}_p99": quantile(v, 0.99) for name, v in times.items()},
        "heavy_count": len(times["heavy"]),
        "heavy_seconds": times["heavy"],
        "moved": f.time_to_move(heavy, turn.on, turn.off),
        "returned": f.time_to_return(heavy, turn.off, plan.end),
        "oscillations": f.oscillations(heavy, plan.end),
        "share_before": f.share(heavy, WARM_SECONDS, turn.on),
        "share_hogged": f.share(heavy, turn.on, turn.off),
        "share_after": f.share(heavy, turn.off, plan.end),
        "shares_heavy": f.shares(heavy, plan.end),
        "shares_wide": f.shares(heavy, math.ceil(plan.end / WIDE) * WIDE, WIDE),
        "shares_all": f.shares(everything, plan.end),
        **summary(turn),
    }


def across(rounds: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Median, least and most over the rounds, by balancer; ratios are of the same round. The p99 of all rounds' heavy
    requests together stands beside them: that of one round is made of one or two requests."""
    out: dict[str, dict[str, Any]] = {}
    for name, each in rounds.items():
        out[name] = {
            key: _spread([r[key] for r in each])
            for key, value in each[0].items()
            if isinstance(value, (int, float)) and key != "errors"
        }
        out[name]["errors"] = sum(r["errors"] for r in each)
        out[name]["heavy_pooled_p99"] = quantile([s for r in each for s in r["heavy_seconds"]], 0.99)
        for key in ("heavy_p99", "heavy_hogged_p99", "hello_p99"):
            ours = rounds.get(US)
            if ours:
                pairs = zip(each, ours, strict=False)
                out[name][f"{key}_ratio"] = _spread([theirs[key] / us[key] for theirs, us in pairs])
    if US in out:
        for each in out.values():
            each["heavy_pooled_p99_ratio"] = each["heavy_pooled_p99"] / out[US]["heavy_pooled_p99"]
    return out


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {"median": median(values), "min": min(values), "max": max(values), "rounds": list(values)}


def targets(by: Mapping[str, Mapping[str, Any]], per_round: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each target with its value and limit. Times must hold in every round; p99 is of all rounds together."""
    out: list[dict[str, Any]] = []

    def add(what: str, value: float, limit: float, at_least: bool = False) -> None:
        good = value >= limit if at_least else value <= limit
        out.append({"target": what, "value": value, "limit": limit, "pass": good})

    if US not in by:
        return out
    add("seconds until heavy traffic moved away, worst round", max(r["moved"] for r in per_round), MOVE_SECONDS)
    add("seconds until it was back, worst round", max(r["returned"] for r in per_round), RETURN_SECONDS)
    add("oscillations, all rounds", sum(r["oscillations"] for r in per_round), 0)
    for rival in RIVALS:
        if rival in by:
            add(f"{rival}'s heavy p99 ÷ ours", by[rival]["heavy_pooled_p99_ratio"], FACTOR, at_least=True)
    return out


def _cell(spread: Mapping[str, Any], scale: float = 1.0, digits: int = 3) -> str:
    low, middle, high = (significant(spread[k] * scale, digits) for k in ("min", "median", "max"))
    return middle if low == high else f"{middle} ({low}-{high})"


def show(by: Mapping[str, Mapping[str, Any]], absent: Mapping[str, str], rounds: int) -> None:
    rows = []
    for name, each in by.items():
        rows.append(
            [
                name,
                *(_cell(each[k]) for k in ("moved", "returned")),
                str(int(sum(each["oscillations"]["rounds"]))),
                _cell(each["heavy_p50"]),
                significant(each["heavy_pooled_p99"]),
                significant(each.get("heavy_pooled_p99_ratio", math.nan)),
                _cell(each["heavy_p99"]),
                _cell(each["heavy_p99_ratio"]) if "heavy_p99_ratio" in each else "-",
                _cell(each["heavy_hogged_p99"]),
                _cell(each["hello_p99"], 1e3),
                str(each["errors"]),
            ]
        )
    rows += [[name, why, *[""] * 10] for name, why in absent.items()]
    columns = ["median (least-most)", "away, s", "back, s", "osc.", "heavy p50, s", "p99 of all, s", "÷ unjam"]
    columns += ["p99 by round", "÷ unjam", "p99 with hog, s", "hello p99, ms", "errors"]
    results.table(f"noisy neighbour, {rounds} rounds", columns, rows)


def show_shares(turns: Mapping[str, Mapping[str, Any]], plan: Plan) -> None:
    """One round: the hogged endpoint's share of the heavy dispatches in each `WIDE` seconds."""
    seconds, width = int(plan.end), int(WIDE)
    columns = ["from second"]
    for at in range(0, seconds, width):
        columns.append(f"{at}{'*' if plan.on <= at < plan.off else ''}")
    rows = []
    for name, turn in turns.items():
        cells = turn["shares_wide"][: len(columns) - 1]
        rows.append([name, *("-" if math.isnan(c) else f"{c * 100:.0f}" for c in cells)])
    title = f"share of heavy dispatches to the hogged endpoint, % (hog on {plan.on:g}-{plan.off:g} s: *)"
    results.table(title, columns, rows)
