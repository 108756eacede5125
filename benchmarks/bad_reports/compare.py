"""The simulated table: every way of telling on the same arrivals, as ratios to weighted least outstanding requests
without reports."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

from benchmarks.common.figures import mean, quantile
from benchmarks.heavy_tail.arrivals import AUDIT, CLASSES, HELLO, Mix, script
from unjam.core.endpoint import Endpoint
from unjam.core.policies import POLICIES
from unjam.core.policies._levels import Key, LevelPolicy

from .tellers import BASE, ROWS
from .world import FLEET, Neighbours, World, fleet

#: Sizes as the dispatch rules were found with: seconds in full length, nothing is scaled.
MIX = Mix(hello=(0.30, 0.05, 0.0), chat=(0.665, 10.0, 1.0), audit=(0.035, 600.0, 0.8))
#: The first part of each script is not counted: it starts with empty servers and nothing learned.
WARM = 0.2
LIMIT = 1.05


@dataclass(frozen=True)
class Scenario:
    """`sized`: the configuration gives the servers' cores; otherwise only reports tell them. `appetite`: part of a core
    that a request uses; where that is little, `load` is of the slots (two for each core), otherwise of the cores that
    the neighbours leave in the long run (of all, where they make room)."""

    load: float
    neighbours: Neighbours
    sized: bool = True
    appetite: float = 1.0
    cores: tuple[int, ...] = FLEET
    mix: Mix = MIX
    #: Of the requests asked for: long scripts of few servers say no more.
    part: float = 1.0


#: More of the work in audits, all of it shorter: for few servers.
SMALL = Mix(hello=(0.5, 0.05, 0.0), chat=(0.3, 2.0, 1.0), audit=(0.2, 60.0, 0.8))

#: Neighbours that come and go within the life of a report are where old news does the most harm.
SCENARIOS = (
    Scenario(0.7, Neighbours()),
    Scenario(0.9, Neighbours()),
    Scenario(0.9, Neighbours(on=30.0, off=60.0)),
    Scenario(0.7, Neighbours(), sized=False),
    Scenario(0.8, Neighbours(part=0.75)),
    Scenario(0.8, Neighbours(part=0.75), appetite=0.1),
    Scenario(0.7, Neighbours(part=1.0, fair=True)),
    Scenario(0.35, Neighbours(part=3.0, on=200.0, off=100.0, fair=True), cores=(4, 4), mix=SMALL, part=0.4),
    Scenario(0.25, Neighbours(part=8.0, on=200.0, off=100.0, fair=True), cores=(1, 1), mix=SMALL, part=0.4),
)


class WeightedLeastOutstanding(LevelPolicy):
    """The yardstick, not a policy of the package: the fewest requests in flight per core of the configuration, for
    either lane. No floor, no reports."""

    __slots__ = ()
    name: ClassVar[str] = "weighted_least_outstanding"

    def key(self, endpoint: Endpoint) -> Key:
        return ((endpoint.inflight + 1) / endpoint.spec.capacity, 0.0)


@dataclass(frozen=True)
class Task:
    row: str
    scenario: Scenario
    seed: int
    count: int


def run(task: Task) -> dict[str, Any]:
    """One way of telling through one script: response times by class, of the jobs counted."""
    POLICIES[WeightedLeastOutstanding.name] = WeightedLeastOutstanding
    try:
        return _run(task)
    finally:
        del POLICIES[WeightedLeastOutstanding.name]


def _run(task: Task) -> dict[str, Any]:
    row = next(r for r in ROWS if r.name == task.row)
    scenario = task.scenario
    neighbours, servers, mix = scenario.neighbours, scenario.cores, scenario.mix
    cores = 2.0 * sum(servers)
    if scenario.appetite == 1.0:
        cores = sum(servers) * (1.0 if neighbours.fair else 1.0 - neighbours.taken)
    count = max(100, round(task.count * scenario.part))
    jobs = script(scenario.load, count, task.seed, round(cores), mix)
    # Between a chat of usual length and an audit.
    spec = fleet(row.policy, servers, up_to=mix.audit[1] / 10.0, sized=scenario.sized)
    teller = row.make() if row.make else None
    world = World(spec, servers, neighbours, teller, task.seed, appetite=scenario.appetite)
    seconds = world.run(jobs)
    since = WARM * jobs[-1].at
    by: dict[str, list[float]] = {kind: [] for kind in CLASSES}
    for job, response in zip(jobs, seconds, strict=True):
        if job.at >= since:
            by[job.kind].append(response)
    tallies = [getattr(endpoint, "tally", None) for s in world.servers if (endpoint := s.endpoint) is not None]
    told = [t for t in tallies if t is not None]
    return {
        "row": task.row,
        "scenario": task.scenario,
        "seed": task.seed,
        "by": by,
        "refused_requests": world.refused,
        "accepted": sum(t.accepted for t in told),
        "refused": sum(t.refused for t in told),
        "late": sum(t.late for t in told),
        "problem": next((t.problem for t in told if t.problem), ""),
    }


FIGURES = ("mean", "heavy mean", "heavy p99", "hello p99")


def figures(by: dict[str, list[float]]) -> dict[str, float]:
    everything = [s for values in by.values() for s in values]
    return {
        "mean": mean(everything),
        "heavy mean": mean(by[AUDIT]),
        "heavy p99": quantile(by[AUDIT], 0.99),
        "hello p99": quantile(by[HELLO], 0.99),
    }


def pool(runs: Sequence[dict[str, list[float]]]) -> dict[str, float]:
    return figures({kind: [s for by in runs for s in by[kind]] for kind in CLASSES})


def interval(
    ours: Sequence[dict[str, list[float]]], base: Sequence[dict[str, list[float]]], draws: int = 200
) -> dict[str, dict[str, float]]:
    """Ratio of the pooled figures, with the 2.5 % and 97.5 % points of a bootstrap over seeds (pairs are drawn, as both
    had the same arrivals)."""
    rng = random.Random(20)
    whole, whole_base = pool(ours), pool(base)
    ratios: dict[str, list[float]] = {name: [] for name in FIGURES}
    # Quantiles of thousands of pooled values for each draw: only what is needed is pooled.
    for _ in range(draws if len(ours) > 2 else 0):
        chosen = [rng.randrange(len(ours)) for _ in ours]
        a, b = pool([ours[n] for n in chosen]), pool([base[n] for n in chosen])
        for name in FIGURES:
            ratios[name].append(a[name] / b[name])
    out = {}
    for name in FIGURES:
        drawn = ratios[name]
        out[name] = {
            "value": whole[name],
            "ratio": whole[name] / whole_base[name],
            "low": quantile(drawn, 0.025) if drawn else math.nan,
            "high": quantile(drawn, 0.975) if drawn else math.nan,
        }
    return out


def compare(
    scenarios: Sequence[Scenario], seeds: Sequence[int], count: int, processes: int, rows: Sequence[str]
) -> list[dict[str, Any]]:
    """One entry for each scenario: `rows` by name, each with its figures and their ratios to `BASE`."""
    names = [BASE, *(n for n in rows if n != BASE)]
    tasks = [Task(name, scenario, seed, count) for scenario in scenarios for name in names for seed in seeds]
    with ProcessPoolExecutor(processes) as workers:
        done = list(workers.map(run, tasks))
    out = []
    for scenario in scenarios:
        base = [r["by"] for r in done if r["scenario"] == scenario and r["row"] == BASE]
        made: dict[str, Any] = {}
        for row in ROWS:
            runs = [r for r in done if r["scenario"] == scenario and r["row"] == row.name]
            if not runs:
                continue
            ratios = interval([r["by"] for r in runs], base)
            made[row.name] = {
                "required": row.required,
                "figures": ratios,
                "reports": {key: sum(r[key] for r in runs) for key in ("accepted", "refused", "late")},
                "problem": next((r["problem"] for r in runs if r["problem"]), ""),
                "refused_requests": sum(r["refused_requests"] for r in runs),
                "pass": all(ratios[name]["ratio"] <= LIMIT for name in ("mean", "heavy p99")),
            }
        neighbours = scenario.neighbours
        about = {"load": scenario.load, "on": neighbours.on, "off": neighbours.off, "part": neighbours.part}
        about |= {"cores": scenario.cores, "count_part": scenario.part}
        about |= {"fair": neighbours.fair, "sized": scenario.sized, "appetite": scenario.appetite}
        out.append({**about, "rows": made})
    return out
