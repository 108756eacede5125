"""What a decision costs: microseconds of a whole `offer` + `finish`, by policy and number of endpoints.

    python -m benchmarks.decision_cost [--quick] [--policies least_loaded …] [--endpoints 10 1000 10000]

The pipeline as the gateway runs it: estimator, lanes, version, breaker, retry budget, queue, counters. Half of all
slots are taken at all times; each step ends a random one of the requests that run and offers a new one, so that the
fleet's state is as ragged as a real one's. Requests are made beforehand: the gateway makes them while it parses. The
figure is the median of the rounds; `least` is the round that other processes disturbed the least.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
import time
from typing import Any

from benchmarks.common import results
from benchmarks.common.figures import Spread, spread
from unjam.core.balancer import Balancer
from unjam.core.model import Lease, Outcome, Request
from unjam.core.policies import POLICIES
from unjam.core.spec import EndpointSpec, ServiceSpec, Topology, VersionSpec

CORES = 4.0
SLOTS = 8
#: Microseconds per decision that the default policy may take, by number of endpoints.
TARGETS = {10: 6.0, 10_000: 8.0}
DEFAULT = "least_loaded"
#: (path, seconds, weight in the mix).
PATHS = (("POST /hello", 0.05, 60), ("POST /chat", 2.0, 38), ("POST /audit", 600.0, 2))


class Bench:
    """A fleet at half load. `mixed`: 2 % of the requests are heavy, otherwise all are alike."""

    def __init__(self, policy: str, endpoints: int, mixed: bool, seed: int) -> None:
        self.rng = random.Random(seed)
        fleet = tuple(EndpointSpec(f"http://10.0.{i >> 8}.{i & 255}:9000", cores=CORES) for i in range(endpoints))
        spec = ServiceSpec("agents", (VersionSpec("v1", fleet),), policy=policy)
        self.balancer = Balancer(random.Random(seed))
        self.balancer.apply(Topology({"agents": spec}), 0.0)
        self.service = self.balancer.services["agents"]
        self.now = 0.0
        self.paths = [name for name, _, weight in PATHS for _ in range(weight)] if mixed else [PATHS[1][0]]
        for name, seconds, _ in PATHS:
            for _ in range(64):
                self.service.estimator.bucket(name).observe(seconds)
        self.running: list[Lease] = []
        for _ in range(int(endpoints * SLOTS / 2)):
            decision = self.balancer.offer(self.request(), self.now)
            if not isinstance(decision, Lease):
                raise RuntimeError("half of the slots ought to be free")
            self.running.append(decision)

    def request(self) -> Request:
        return Request(self.service, self.rng.choice(self.paths), self.now)

    def round(self, steps: int) -> float:
        """Microseconds per step."""
        requests = [self.request() for _ in range(steps)]
        picks = [self.rng.randrange(len(self.running)) for _ in range(steps)]
        offer, finish, running, now, ok = (
            self.balancer.offer,
            self.balancer.finish,
            self.running,
            self.now,
            Outcome.OK,
        )
        # Requests last a second on average, whatever the size of the fleet.
        step = 1.0 / len(running)
        gc.collect()
        begin = time.perf_counter()
        for request, i in zip(requests, picks, strict=True):
            now += step
            finish(running[i], ok, now)
            running[i] = offer(request, now)  # type: ignore[call-overload]
        taken = time.perf_counter() - begin
        self.now = now
        # What time brings about is not part of a decision, but the fleet must be as it would be.
        self.balancer.tick(now)
        return taken / steps * 1e6


def measure(policy: str, endpoints: int, mixed: bool, rounds: int, steps: int, seed: int) -> Spread:
    bench = Bench(policy, endpoints, mixed, seed)
    gc.freeze()
    # Until the fleet is ragged, and the first heavy request has made its own order.
    bench.round(max(10_000, 4 * endpoints))
    figures = spread(bench.round(steps) for _ in range(rounds))
    gc.unfreeze()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policies", nargs="+", choices=sorted(POLICIES), default=list(POLICIES))
    parser.add_argument("--endpoints", nargs="+", type=int, default=[10, 1000, 10_000])
    parser.add_argument("--rounds", type=int, default=75)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    given = parser.parse_args()
    if given.quick:
        given.rounds = 15
    machine = results.machine()
    rows: list[list[str]] = []
    made: list[dict[str, Any]] = []
    for policy in given.policies:
        row = [policy]
        for mixed in (False, True):
            for endpoints in given.endpoints:
                print(f"  {policy}, {endpoints} endpoints{', mixed' if mixed else ''}", file=sys.stderr)
                figures = measure(policy, endpoints, mixed, given.rounds, given.steps, given.seed)
                made.append({"policy": policy, "endpoints": endpoints, "mixed": mixed, "us": figures})
                row.append(f"{figures['median']:.2f} ({figures['min']:.2f})")
        rows.append(row)
    columns = ["µs per offer + finish: median (least)"]
    columns += [f"{n:,}{' mixed' if mixed else ''}" for mixed in (False, True) for n in given.endpoints]
    results.table("Cost of a decision", columns, rows, "mixed: 60 % hello, 38 % chat, 2 % audits in the heavy lane")
    checks = []
    for entry in made:
        target = TARGETS.get(entry["endpoints"])
        if entry["policy"] == DEFAULT and not entry["mixed"] and target is not None:
            met = entry["us"]["median"] <= target
            checks.append({"endpoints": entry["endpoints"], "target_us": target, "met": met})
            print(f"{'met' if met else 'MISSED'}: {DEFAULT} with {entry['endpoints']:,} endpoints in {target:g} µs")
    body = {"machine": machine, "unjam": results.unjam_version(), "settings": vars(given), "cost": made}
    path = results.write("decision_cost", {**body, "targets": checks}, given.quick)
    print(f"written: {path.relative_to(results.ROOT)}")


if __name__ == "__main__":
    main()
