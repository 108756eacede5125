"""Figures of the runs, the targets, and the tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common import results
from benchmarks.common.figures import mean, median, quantile, significant

from .arrivals import AUDIT, CHAT, CLASSES, HELLO, Job

REFERENCE = "haproxy"
PRIORITY = "priority queue, true classes (sim.)"
BY_PATH = "priority queue, classes by path (sim.)"
SRPT = "clairvoyant SRPT (sim.)"

#: Least factor by which hello's p99 must be below HAProxy's, by load; most milliseconds of it under bursts.
HELLO_FACTOR = {0.85: 5.0, 0.95: 10.0}
HELLO_UNDER_BURSTS_MS = 60.0
MEAN_OVER_PRIORITY = 1.05
CLASS_OVER_REFERENCE = 1.25


def figures(jobs: Sequence[Job], response: Sequence[float], warm: float) -> dict[str, Any]:
    """p50, p99 and mean in seconds by class and over all, of the jobs that arrived after the first `warm` (a share of
    the script's length). Failed jobs (NaN) are left out here and counted apart."""
    since = warm * jobs[-1].at
    by: dict[str, list[float]] = {kind: [] for kind in CLASSES}
    for job, seconds in zip(jobs, response, strict=True):
        if job.at >= since and not math.isnan(seconds):
            by[job.kind].append(seconds)
    everything = [seconds for kind in CLASSES for seconds in by[kind]]
    out: dict[str, Any] = {"all": {"mean": mean(everything), "count": len(everything)}}
    for kind, values in by.items():
        out[kind] = {
            "p50": quantile(values, 0.5),
            "p99": quantile(values, 0.99),
            "mean": mean(values),
            "count": len(values),
        }
    return out


def pooled(jobs: Sequence[Sequence[Job]], responses: Sequence[Sequence[float]], warm: float) -> dict[str, Any]:
    """`figures` over several runs taken together."""
    kept: list[Job] = []
    values: list[float] = []
    for script, response in zip(jobs, responses, strict=True):
        since = warm * script[-1].at
        for job, seconds in zip(script, response, strict=True):
            if job.at >= since:
                kept.append(job)
                values.append(seconds)
    return figures(kept, values, 0.0)


def targets(
    load: float, bursts: bool, together: Mapping[str, Any], seeds: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Each target at this load: measured value, limit, pass. `together`: name → figures over all seeds; `seeds`: the
    same for each seed."""
    ours, theirs = together.get("unjam"), together.get(REFERENCE)
    out: list[dict[str, Any]] = []
    if ours is None:
        return out

    def add(what: str, value: float, limit: float, at_least: bool = False) -> None:
        good = value >= limit if at_least else value <= limit
        out.append({"load": load, "bursts": bursts, "target": what, "value": value, "limit": limit, "pass": good})

    if bursts:
        add("hello p99 under bursts of audits, ms", ours[HELLO]["p99"] * 1e3, HELLO_UNDER_BURSTS_MS)
    if theirs is not None and not bursts:
        factor = HELLO_FACTOR.get(load, 5.0)
        add("hello p99: times below HAProxy's", theirs[HELLO]["p99"] / ours[HELLO]["p99"], factor, at_least=True)
        each = [s[REFERENCE][HELLO]["p99"] / s["unjam"][HELLO]["p99"] for s in seeds if REFERENCE in s and "unjam" in s]
        add(f"the same, worst of {len(each)} seeds", min(each), factor, at_least=True)
    if theirs is not None and not bursts:
        add("mean over all ÷ HAProxy's", ours["all"]["mean"] / theirs["all"]["mean"], 1.0)
        for kind in CLASSES:
            add(f"{kind} p99 ÷ HAProxy's", ours[kind]["p99"] / theirs[kind]["p99"], CLASS_OVER_REFERENCE)
    if not bursts:
        for name, known in ((PRIORITY, "true classes"), (BY_PATH, "classes by path, as a gateway is told")):
            what = f"mean over all ÷ central priority queue's ({known})"
            add(what, ours["all"]["mean"] / together[name]["all"]["mean"], MEAN_OVER_PRIORITY)
    return out


def show_targets(checks: Sequence[Mapping[str, Any]]) -> None:
    for c in checks:
        word = "PASS " if c["pass"] else "short"
        by = "" if c["pass"] else f"  (short by {significant(abs(c['value'] - c['limit']))})"
        load = f"ρ {c['load']:g}{' + bursts' if c['bursts'] else ''}"
        print(f"{word} {load:14} {c['target']}: {significant(c['value'])} against {c['limit']:g}{by}")


def show(
    title: str, together: Mapping[str, Any], extra: Mapping[str, Mapping[str, Any]], absent: Mapping[str, str]
) -> None:
    """One table: a row for each balancer and reference, milliseconds."""
    base = together.get(REFERENCE)
    rows = []
    for name, f in together.items():
        ratio = base[HELLO]["p99"] / f[HELLO]["p99"] if base else math.nan
        e = extra.get(name, {})
        rows.append(
            [
                name,
                *(significant(f[kind][q] * 1e3) for kind in (HELLO, CHAT, AUDIT) for q in ("p50", "p99")),
                significant(f["all"]["mean"] * 1e3),
                significant(f["all"]["mean"] / base["all"]["mean"]) if base else "-",
                significant(ratio),
                str(e.get("errors", "-")),
                str(e.get("waited", "-")),
            ]
        )
    rows += [[name, why, *[""] * 10] for name, why in absent.items()]
    columns = ["ms", "hello p50", "p99", "chat p50", "p99", "audit p50", "p99"]
    columns += ["mean", "÷ HAProxy", "hello p99: × below HAProxy", "errors", "waited in endpoint"]
    results.table(title, columns, rows)


def inflation(stats: Sequence[Mapping[str, float]]) -> float:
    """Seconds that slots were held ÷ seconds asked for: what the endpoints' timers add to the work."""
    asked = math.fsum(s["asked"] for s in stats)
    return math.fsum(s["held"] for s in stats) / asked if asked else math.nan


def worst(lags: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The lags of several runs: median of medians, worst of the rest."""
    return {
        "p50_ms": median([lag["p50_ms"] for lag in lags]),
        "p99_ms": max(lag["p99_ms"] for lag in lags),
        "max_ms": max(lag["max_ms"] for lag in lags),
    }
