"""A foreign program takes one server's CPU for a while: who notices, and whose heavy requests stay fast?

    python -m benchmarks.noisy_neighbour [--quick] [--only unjam haproxy]

Two real agents, one on each core of a two-core machine, that burn real CPU for each request; the same arrival script
through each balancer in turn, in interleaved rounds; after 20 s of it a hog of eight processes sits down on the first
agent's core, and leaves a minute and a half later. About 40 minutes; --quick about four. Needs two cores and nothing
else on them: the balancer and the load generator take a few per cent of the same two cores, the same for all.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import results
from benchmarks.common.peers import Envoy, HAProxy, Peer, SglangRouter
from benchmarks.common.procs import cpu_seconds
from benchmarks.common.reported import UnjamReported, stop_all

from . import figures, report
from .arrivals import HEAVY, HELLO_SECONDS, HELLOS_PER_SECOND, offered, script
from .turn import Plan, start_agents, take_turn

FULL = Plan(on=20.0, off=110.0, end=140.0, hogs=8, load=0.55)
QUICK = Plan(on=10.0, off=26.0, end=44.0, hogs=8, load=0.55)


def balancers() -> list[Peer]:
    """In the order of the table. The second is unjam without anything that reports: what the reports are worth."""
    return [UnjamReported(), UnjamReported(reports=False), HAProxy(), Envoy(), SglangRouter()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of 44 s each instead of 140")
    parser.add_argument("--rounds", type=int, help="3, or 1 with --quick")
    parser.add_argument("--load", type=float, default=FULL.load, help="cores that the script needs, of two")
    parser.add_argument("--hogs", type=int, default=FULL.hogs, help="processes")
    parser.add_argument("--only", nargs="+", help="names of balancers")
    parser.add_argument("--name", default="noisy_neighbour", help="name of the result file")
    given = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        parser.error("this needs two cores")
    given.rounds = given.rounds or (1 if given.quick else 3)
    plan = dataclasses.replace(QUICK if given.quick else FULL, load=given.load, hogs=given.hogs)
    machine = results.machine()
    chosen = [p for p in balancers() if not given.only or p.name in given.only]
    absent = {p.name: why for p in chosen if (why := p.missing())}
    chosen = [p for p in chosen if p.name not in absent]
    about = {p.name: {"version": p.version(), "note": p.note} for p in chosen}
    rounds: dict[str, list[dict[str, Any]]] = {p.name: [] for p in chosen}
    with tempfile.TemporaryDirectory(prefix="unjam-bench-") as scratch:
        agents, ports = start_agents(Path(scratch), cores)
        try:
            for n in range(given.rounds):
                jobs = script(plan.load, plan.end, n + 1)
                print(f"round {n + 1}: {len(jobs)} requests need {offered(jobs, plan.end):.3f} cores", file=sys.stderr)
                # Each balancer comes first once.
                for peer in chosen[n % len(chosen) :] + chosen[: n % len(chosen)]:
                    folder = Path(scratch) / f"{peer.name.replace(' ', '_').replace(',', '')}-{n}"
                    began, used = time.monotonic(), cpu_seconds([os.getpid()])
                    turn = take_turn(peer, plan, jobs, n + 1, ports, cores, folder)
                    made = report.evaluate(turn, jobs, plan)
                    made["driver_cpu_share"] = (cpu_seconds([os.getpid()]) - used) / (time.monotonic() - began)
                    rounds[peer.name].append(made)
                    print(
                        f"  {peer.name}: away after {made['moved']:.1f} s, back after {made['returned']:.1f} s, heavy "
                        f"p99 {made['heavy_p99']:.2f} s, {made['errors']} errors; {'; '.join(made['why_at_the_end'])}",
                        file=sys.stderr,
                    )
                last = {name: each[-1] for name, each in rounds.items()}
                report.show_shares(last, plan)
        finally:
            stop_all(agents)
    by = report.across(rounds)
    report.show(by, absent, given.rounds)
    for name, each in by.items():
        reporter = each["reporter_cpu_share"]["median"]
        beside = f", a reporter {reporter * 100:.2f} %" if reporter else ""
        print(
            f"CPU of a core: {name} {each['balancer_cpu_share']['median'] * 100:.1f} %{beside}, "
            f"load generator {each['driver_cpu_share']['median'] * 100:.1f} %"
        )
    checks = report.targets(by, rounds.get(report.US, []))
    for c in checks:
        print(f"{'PASS ' if c['pass'] else 'short'} {c['target']}: {c['value']:.3g} against {c['limit']:g}")
    settings = {
        **dataclasses.asdict(plan),
        "rounds": given.rounds,
        "heavy_cpu_seconds": HEAVY,
        "hello_cpu_seconds": HELLO_SECONDS,
        "hellos_per_second": HELLOS_PER_SECOND,
        "away_below": figures.AWAY,
        "back_from": figures.BACK,
        "window_seconds": figures.WINDOW,
    }
    body: dict[str, Any] = {"machine": machine, "settings": settings, "balancers": about, "absent": absent}
    body |= {"across": by, "rounds": rounds, "targets": checks}
    print(f"written: {results.write(given.name, body, given.quick).relative_to(results.ROOT)}")


if __name__ == "__main__":
    main()
