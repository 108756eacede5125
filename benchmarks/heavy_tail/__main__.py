"""Mixed work before endpoints with hard slots: who keeps a hello fast while audits run?

    python -m benchmarks.heavy_tail [--quick] [--only unjam haproxy]

Six endpoints of four hard slots for each balancer; the same arrival script through all of them at the same time, at
ρ 0.85 and 0.95 and with bursts of 30 audits on top of 0.85, three seeds each. About 13 minutes; --quick about two. The
machine is nearly idle meanwhile (endpoints sleep); the event loops' own lag is reported, and is the error of a figure.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.common import results
from benchmarks.common.figures import quantile, significant
from benchmarks.common.peers import Running, Setting, all_peers
from benchmarks.common.procs import Process, cpu_seconds
from benchmarks.load.messages import CHAT_PATH

from . import report
from .arrivals import Bursts, Job, Mix, offered, script
from .drive import Run, Target, drive, stats
from .references import central_priority, clairvoyant_srpt

ENDPOINTS, SLOTS = 6, 4
#: The first tenth of each script is not counted: queues fill and estimators learn.
WARM = 0.1
BURSTS = Bursts(audits=30, every=60.0)


def start_endpoints(folder: Path, sets: int) -> tuple[Process, list[list[int]]]:
    log = folder / "endpoints.log"
    argv = [sys.executable, "-m", "benchmarks.heavy_tail.endpoints", "--sets", str(sets)]
    process = Process("endpoints", [*argv, "--endpoints", str(ENDPOINTS), "--slots", str(SLOTS)], log, cwd=results.ROOT)
    for _ in range(100):
        process.check()
        text = log.read_text()
        if text.endswith("\n"):
            return process, json.loads(text)["ports"]
        time.sleep(0.05)
    process.stop()
    raise RuntimeError("the endpoints did not start")


async def _read_stats(ports: list[list[int]]) -> tuple[list[list[dict[str, Any]]], dict[str, float]]:
    """Stats of all endpoints, and the lag of their loop (kept by the first one asked)."""
    out = [[await stats(port) for port in group] for group in ports]
    return out, out[0][0]["lag"]


async def one_run(
    targets: list[Target], ports: list[list[int]], jobs: list[Job], seed: int, patience: float
) -> tuple[list[Run], dict[str, Any]]:
    """One script through all balancers; what the endpoints counted beside it."""
    await _read_stats(ports)
    runs, lag = await drive(targets, jobs, seed, patience)
    counted, endpoint_lag = await _read_stats(ports)
    side: dict[str, Any] = {
        "driver_lag": lag,
        "endpoint_lag": endpoint_lag,
        "inflation": report.inflation([s for group in counted for s in group]),
        "endpoints": {
            target.name: {
                "waited": sum(s["waited"] for s in group),
                "queued_most": max(s["queued_most"] for s in group),
                "served": [s["served"] for s in group],
            }
            for target, group in zip(targets, counted, strict=True)
        },
    }
    return runs, side


def scenario(
    load: float, bursts: Bursts | None, given: argparse.Namespace, targets: list[Target], ports: list[list[int]]
) -> dict[str, Any]:
    """All seeds at one load; prints its table."""
    scripts, runs_by_seed, sides = [], [], []
    for seed in given.seeds:
        jobs = script(load, given.count, seed, ENDPOINTS * SLOTS, bursts=bursts)
        title = f"ρ {load:g}{' + bursts' if bursts else ''}, seed {seed}: {len(jobs)} requests in {jobs[-1].at:.0f} s"
        print(f"  {title}, really offered {offered(jobs):.3f}", file=sys.stderr)
        runs, side = uvloop.run(one_run(targets, ports, jobs, seed, given.patience))
        scripts.append(jobs)
        runs_by_seed.append(runs)
        sides.append(side)
    responses: dict[str, list[list[float]]] = {
        target.name: [runs[n].response for runs in runs_by_seed] for n, target in enumerate(targets)
    }
    responses[report.PRIORITY] = [central_priority(jobs, ENDPOINTS * SLOTS) for jobs in scripts]
    responses[report.BY_PATH] = [central_priority(jobs, ENDPOINTS * SLOTS, by_path=True) for jobs in scripts]
    responses[report.SRPT] = [clairvoyant_srpt(jobs, ENDPOINTS * SLOTS) for jobs in scripts]
    together = {name: report.pooled(scripts, each, WARM) for name, each in responses.items()}
    seeds = [
        {name: report.figures(jobs, each[n], WARM) for name, each in responses.items()}
        for n, jobs in enumerate(scripts)
    ]
    extra = {
        target.name: {
            "errors": sum(len(runs[n].errors) for runs in runs_by_seed),
            "error_samples": [e for runs in runs_by_seed for e in runs[n].errors][:5],
            "waited": sum(side["endpoints"][target.name]["waited"] for side in sides),
            "connections": sum(runs[n].connections for runs in runs_by_seed),
            "late_p99_ms": max(quantile(runs[n].late_ms, 0.99) for runs in runs_by_seed),
        }
        for n, target in enumerate(targets)
    }
    return {
        "load": load,
        "bursts": {"audits": bursts.audits, "every": bursts.every} if bursts else None,
        "offered": [offered(jobs) for jobs in scripts],
        "requests": [len(jobs) for jobs in scripts],
        "together": together,
        "seeds": seeds,
        "extra": extra,
        "sides": sides,
        "targets": report.targets(load, bursts is not None, together, seeds),
    }


def show(made: dict[str, Any], absent: dict[str, str]) -> None:
    bursts = made["bursts"]
    title = f"ρ {made['load']:g}" + (
        f" + {bursts['audits']} audits at once every {bursts['every']:g} s" if bursts else ""
    )
    title += f", {len(made['requests'])} seeds, {sum(made['requests']):,} requests each balancer"
    report.show(title, made["together"], made["extra"], absent)
    driver = report.worst([s["driver_lag"] for s in made["sides"]])
    endpoints = report.worst([s["endpoint_lag"] for s in made["sides"]])
    held = max(s["inflation"] for s in made["sides"])
    print(
        f"Loop lag ms, driver p99 {significant(driver['p99_ms'])} (most {significant(driver['max_ms'])}), "
        f"endpoints p99 {significant(endpoints['p99_ms'])} (most {significant(endpoints['max_ms'])}); slots were held "
        f"{(held - 1) * 100:.2f} % longer than asked. Really offered: {', '.join(f'{x:.3f}' for x in made['offered'])}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, a third of the requests")
    parser.add_argument("--count", type=int, default=12000, help="Poisson arrivals of one run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--loads", type=float, nargs="+", default=[0.85, 0.95])
    parser.add_argument("--no-bursts", action="store_true")
    parser.add_argument("--up-to", type=float, default=0.5, help="unjam's boundary between fast and heavy, seconds")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds after the last arrival")
    parser.add_argument("--only", nargs="+", help="names of balancers")
    parser.add_argument("--name", default="heavy_tail", help="name of the result file")
    given = parser.parse_args()
    if given.quick:
        given.count, given.seeds = min(given.count, 4000), given.seeds[:1]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard) if soft < hard else (soft, hard))
    machine = results.machine()
    names = ("unjam, log on", "litellm")
    chosen = [p for p in all_peers() if "slots" in p.modes and p.name not in names]
    chosen = [p for p in chosen if not given.only or p.name in given.only]
    absent = {p.name: why for p in chosen if (why := p.missing())}
    chosen = [p for p in chosen if p.name not in absent]
    about = {p.name: {"version": p.version(), "note": p.note} for p in chosen}
    made: list[dict[str, Any]] = []
    running: list[Running] = []
    with tempfile.TemporaryDirectory(prefix="unjam-bench-") as scratch:
        endpoints, ports = start_endpoints(Path(scratch), len(chosen))
        try:
            targets, groups = [], []
            for peer, group in zip(chosen, ports, strict=True):
                folder = Path(scratch) / peer.name.replace(" ", "_")
                try:
                    started = peer.start(Setting(group, folder, hard_slots=SLOTS, up_to=given.up_to))
                except (RuntimeError, OSError) as e:
                    absent[peer.name] = "did not start: " + str(e).strip().splitlines()[-1][:100]
                    continue
                running.append(started)
                groups.append(group)
                targets.append(Target(peer.name, started.port, CHAT_PATH if peer.name == "sglang-router" else None))
            began, used = time.monotonic(), cpu_seconds([p for r in running for p in r.process.pids])
            plan: list[tuple[float, Bursts | None]] = [(load, None) for load in given.loads]
            plan += [] if given.no_bursts else [(0.85, BURSTS)]
            for load, bursts in plan:
                made.append(scenario(load, bursts, given, targets, groups))
                show(made[-1], absent)
            busy = cpu_seconds([p for r in running for p in r.process.pids]) - used
            busy /= time.monotonic() - began
        finally:
            for r in running:
                r.stop()
            endpoints.stop()
    checks = [c for m in made for c in m["targets"]]
    report.show_targets(checks)
    mix = Mix()
    settings = {k: v for k, v in vars(given).items() if k not in ("only", "name", "quick")}
    settings |= {"endpoints": ENDPOINTS, "slots": SLOTS, "warm": WARM}
    settings["mix"] = {k: getattr(mix, k) for k in ("hello", "chat", "audit", "mislabelled")}
    body: dict[str, Any] = {"machine": machine, "settings": settings, "balancers": about, "absent": absent}
    body |= {"balancers_cpu_share": busy, "scenarios": made, "targets": checks}
    print(f"written: {results.write(given.name, body, given.quick).relative_to(results.ROOT)}")


if __name__ == "__main__":
    main()
