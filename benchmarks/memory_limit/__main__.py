"""An endpoint near its memory limit: does it get heavy work, and is anything killed?

    python -m benchmarks.memory_limit [--quick] [--only unjam haproxy] [--rlimit]

Two agents, each under a memory limit of 640 MiB (a control group where this machine lets us make one, otherwise a
bound on the address space); in the first one's a neighbour holds 505 MiB. Each audit takes 100 MiB for a second and a
half: one fits beside the neighbour, two don't. The same script through each balancer in turn; what the kernel killed
is counted and started again. About 5 minutes; --quick one.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.common import results
from benchmarks.common.figures import median, quantile, significant
from benchmarks.common.peers import HAProxy, Peer, Setting
from benchmarks.common.procs import Process
from benchmarks.common.reported import UnjamReported, stop_all
from benchmarks.heavy_tail.arrivals import AUDIT, HELLO, Job
from benchmarks.heavy_tail.drive import Run, Target, drive

from . import fleet

AUDITS_PER_SECOND, HELLOS_PER_SECOND = 2.0, 10.0
AUDIT_SECONDS, HELLO_SECONDS = 1.5, 0.002
UP_TO = 0.3
#: Before the script, one after the other: what an audit is and needs can be learnt. They count as all others do, except
#: for where they went.
FIRST = [Job(2.0 * n, AUDIT, "/audit", AUDIT_SECONDS) for n in range(5)]
PATIENCE = 30.0


def script(seconds: float, seed: int) -> list[Job]:
    """`FIRST`, then two Poisson streams for `seconds`."""
    began = FIRST[-1].at + 2.0
    jobs = list(FIRST)
    for kind, rate, each in (
        (AUDIT, AUDITS_PER_SECOND, AUDIT_SECONDS),
        (HELLO, HELLOS_PER_SECOND, HELLO_SECONDS),
    ):
        rng = random.Random(f"memory_limit/{seed}/{seconds}/{kind}")
        at = began + rng.expovariate(rate)
        while at < began + seconds:
            jobs.append(Job(at, kind, "/" + kind, each))
            at += rng.expovariate(rate)
    jobs.sort(key=lambda job: job.at)
    return jobs


def balancers() -> list[Peer]:
    return [UnjamReported(), UnjamReported("least_outstanding", reports=False), HAProxy()]


async def _play(target: Target, jobs: list[Job], seed: int) -> Run:
    runs, _ = await drive([target], jobs, seed, PATIENCE)
    return runs[0]


def one_turn(
    peer: Peer, jobs: list[Job], seed: int, folder: Path, groups: bool, learning: int = len(FIRST)
) -> dict[str, Any]:
    """The script through one balancer, with agents of its own. `groups`: use control groups where there are any.
    `learning`: jobs at the start that nobody can know."""
    agents = fleet.start(fleet.Sizes(), folder, groups)
    reporters: list[Process] = []
    try:
        running = peer.start(Setting([a.port for a in agents], folder / "balancer", up_to=UP_TO))
        try:
            if isinstance(peer, UnjamReported) and peer.reports:
                reporters = [peer.reporter(a.port, folder) for a in agents]
                peer.wait_for_reports(len(agents))
            run = uvloop.run(_play(Target(peer.name, running.port), jobs, seed))
            why = []
            if isinstance(peer, UnjamReported):
                why = [f"{e['name']}: {', '.join(e['why'])}" for e in peer.endpoints()]
            running.process.check()
        finally:
            stop_all(reporters)
            running.stop()
        first, second = agents
        audits = [r for job, r in zip(jobs, run.response, strict=True) if job.kind == AUDIT]
        hellos = [r for job, r in zip(jobs, run.response, strict=True) if job.kind == HELLO]
        answered = [r for r in audits if not math.isnan(r)]
        return {
            "limit": f"cgroup v{first.group.version}" if first.group is not None else "RLIMIT_AS",
            "kills": first.deaths + second.deaths,
            "failed": len(run.errors),
            "error_samples": run.errors[:3],
            "audits": len(audits),
            "hellos": len(hellos),
            "failed_audits": len(audits) - len(answered),
            "learning_on_first": sum(_job(mark) < learning for mark in first.begun()),
            "audits_on_first": sum(_job(mark) >= learning for mark in first.begun()),
            "audits_on_second": sum(_job(mark) >= learning for mark in second.begun()),
            "audit_p50": quantile(answered, 0.5),
            "audit_p99": quantile(answered, 0.99),
            "hello_p99": quantile([r for r in hellos if not math.isnan(r)], 0.99),
            "agents": [a.figures() for a in agents],
            "why_at_the_end": why,
        }
    finally:
        fleet.stop(agents)


def _job(mark: str) -> int:
    """Its number in the script, of a nonce."""
    return int(mark[12:], 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of 10 s instead of three of 20")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--only", nargs="+", help="names of balancers")
    parser.add_argument("--rlimit", action="store_true", help="bound the address space, even with control groups here")
    given = parser.parse_args()
    if given.quick:
        given.rounds, given.seconds = 1, min(given.seconds, 10.0)
    machine = results.machine()
    chosen = [p for p in balancers() if not given.only or p.name in given.only]
    absent = {p.name: why for p in chosen if (why := p.missing())}
    chosen = [p for p in chosen if p.name not in absent]
    about = {p.name: {"version": p.version(), "note": p.note} for p in chosen}
    rounds: dict[str, list[dict[str, Any]]] = {p.name: [] for p in chosen}
    with tempfile.TemporaryDirectory(prefix="unjam-bench-") as scratch:
        for n in range(given.rounds):
            jobs = script(given.seconds, n + 1)
            for peer in chosen:
                folder = Path(scratch) / f"{peer.name.replace(' ', '_').replace(',', '')}-{n}"
                made = one_turn(peer, jobs, n + 1, folder, not given.rlimit)
                rounds[peer.name].append(made)
                print(
                    f"round {n + 1}, {peer.name} ({made['limit']}): {made['kills']} killed, {made['failed']} of "
                    f"{len(jobs)} requests failed, audits {made['audits_on_first']} + {made['audits_on_second']}; "
                    f"{'; '.join(made['why_at_the_end'])}",
                    file=sys.stderr,
                )
    rows = [
        [
            name,
            *(str(sum(r[key] for r in each)) for key in ("kills", "failed", "failed_audits")),
            f"{sum(r['audits_on_first'] for r in each)} of {sum(r['audits'] - len(FIRST) for r in each)}",
            *(significant(median([r[key] for r in each])) for key in ("audit_p50", "audit_p99")),
            significant(median([r["hello_p99"] for r in each]) * 1e3),
        ]
        for name, each in rounds.items()
    ]
    rows += [[name, why, *[""] * 6] for name, why in absent.items()]
    columns = [
        f"{given.rounds} rounds together",
        "killed",
        "requests failed",
        "of them audits",
        "audits on the full one",
    ]
    columns += ["audit p50, s", "p99, s", "hello p99, ms"]
    results.table("memory limit", columns, rows)
    settings = {
        **dataclasses.asdict(fleet.Sizes()),
        "rounds": given.rounds,
        "seconds": given.seconds,
        "audit_seconds": AUDIT_SECONDS,
        "audits_per_second": AUDITS_PER_SECOND,
        "hellos_per_second": HELLOS_PER_SECOND,
        "first_one_by_one": len(FIRST),
    }
    checks = targets(rounds)
    for c in checks:
        print(f"{'PASS ' if c['pass'] else 'short'} {c['target']}: {c['value']:g} against {c['limit']}")
    body = {"machine": machine, "settings": settings, "balancers": about, "absent": absent, "rounds": rounds}
    path = results.write("memory_limit", {**body, "targets": checks}, given.quick)
    print(f"written: {path.relative_to(results.ROOT)}")


def targets(rounds: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Nothing of ours killed or failed, no audit on the full endpoint; and the run is only worth something when least
    connections gets a process killed in it."""
    out = []
    for key, what in (
        ("kills", "killed with unjam"),
        ("failed", "requests failed with unjam"),
        ("audits_on_first", "audits on the full endpoint with unjam"),
    ):
        if ours := rounds.get("unjam"):
            value = sum(r[key] for r in ours)
            out.append({"target": what, "value": value, "limit": "0", "pass": value == 0})
    if theirs := rounds.get("haproxy"):
        value = min(r["kills"] for r in theirs)
        out.append(
            {"target": "killed with haproxy, least of the rounds", "value": value, "limit": "≥ 1", "pass": value > 0}
        )
    return out


if __name__ == "__main__":
    main()
