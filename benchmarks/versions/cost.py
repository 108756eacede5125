"""CPU per request with sticky callers, rules, breaker, rollout and verdicts configured, beside the same gateway
without, and beside an older one. Rounds are interleaved; all gateways run throughout, and are idle unless it is their
turn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import Any

from benchmarks.common import results
from benchmarks.common.figures import median, significant, spread
from benchmarks.common.procs import Process, free_port, wait_until_ready
from benchmarks.proxy_cost import start_origin

TOP = """\
listen: 127.0.0.1:{port}
admin: 127.0.0.1:{admin}
state: "memory:"
access_log: off
limits: {{keepalive: 1h}}
services:
  bench:
    lanes: {{fast: {{up_to: 5s}}, heavy: {{share: 0.75}}}}
    queue: {{max: 100000, timeout: 1h}}
    breaker: {{error_rate: 5%}}
"""
ONE = (
    TOP
    + """\
    versions: {{v1: {{endpoints: ["{one}", "{two}"]}}}}
"""
)
TWO = (
    TOP
    + """\
    versions: {{v1: {{weight: 50, endpoints: ["{one}"]}}, v2: {{weight: 50, endpoints: ["{two}"]}}}}
"""
)
#: X-User-Id is the connection's: 32 callers. X-Request-Id differs with every request: each is a caller of its own.
ALL = (
    TOP
    + """\
    sticky: {sticky}
    split:
      - {{header: {{x-tier: premium}}, weights: {{v2: 1}}}}
      - {{lane: heavy, weights: {{v1: 1, v2: 3}}}}
    quality: on
    rollout: {{version: v2, steps: [50%, 100%], hold: 10h}}
    fallback: [{{maintenance: "Soon."}}]
    versions:
      v1: {{weight: 50, overflow: {{to: v2, after: 2s}}, endpoints: ["{one}"]}}
      v2: {{weight: 50, overflow: {{to: v1, after: 2s}}, endpoints: ["{two}"]}}
"""
)
REFERENCE = "one version"
SHARED = TWO.replace(
    "    versions",
    """\
    sticky: x-user-id
    split:
      - {{header: {{x-tier: premium}}, weights: {{v2: 1}}}}
      - {{lane: heavy, weights: {{v1: 1, v2: 3}}}}
    versions""",
)
JUDGED = TWO.replace(
    "    versions",
    """\
    quality: on
    rollout: {{version: v2, steps: [50%, 100%], hold: 10h}}
    versions""",
)
BEFORE = "two versions"
FULL = "all of it"
EACH_ITS_OWN = "all of it, every request a new caller"
SAYING = "all of it, and every answer has a verdict"


class Gateway:
    """`source`: the tree it runs from."""

    def __init__(self, name: str, config: str, folder: Path, ports: list[int], source: Path) -> None:
        self.name = name
        self.port, admin = free_port(), free_port()
        one, two = (f"http://127.0.0.1:{port}" for port in ports)
        text = config.replace("{sticky}", "x-request-id" if name == EACH_ITS_OWN else "x-user-id")
        path = folder / f"{self.port}.yaml"
        path.write_text(text.format(port=self.port, admin=admin, one=one, two=two))
        argv = [sys.executable, "-m", "unjam", "serve", "--config", str(path)]
        env = {"PYTHONPATH": str(source / "src")}
        self.process = Process(name, argv, folder / f"{self.port}.log", env, cwd=folder)
        wait_until_ready(self.process, admin, "/readyz")


def checkout(commit: str, folder: Path) -> Path:
    """The tree of a commit."""
    packed = subprocess.run(
        ["git", "archive", commit, "src"], cwd=results.ROOT, check=True, capture_output=True, timeout=60
    ).stdout
    with tarfile.open(fileobj=BytesIO(packed)) as tree:
        tree.extractall(folder / "older", filter="data")
    return folder / "older"


def load(gateway: Gateway, seconds: float) -> dict[str, Any]:
    """One round. Raises RuntimeError unless every answer was right."""
    argv = [sys.executable, "-m", "benchmarks.load.client", "json", "--port", str(gateway.port), "--users"]
    argv += ["--connections", "32", "--warm", "1", "--seconds", str(seconds)]
    argv += ["--watch", *map(str, gateway.process.pids)]
    done = subprocess.run(argv, cwd=results.ROOT, capture_output=True, text=True, timeout=seconds + 60, check=False)
    if done.returncode:
        raise RuntimeError(f"{gateway.name}: {done.stdout}{done.stderr[-500:]}")
    answer: dict[str, Any] = json.loads(done.stdout)
    if answer["errors"]:
        raise RuntimeError(f"{gateway.name}: {answer['error_samples']}")
    return answer


def measure(rounds: int, seconds: float, beside: str) -> dict[str, Any]:
    made: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="unjam-bench-") as scratch, ExitStack() as stack:
        folder = Path(scratch)
        origin, ports = start_origin(folder, 40.0)
        stack.callback(origin.stop)
        saying, theirs = start_origin(folder, 41.0, extra="x-unjam-verdict: good")
        stack.callback(saying.stop)
        gateways: list[Gateway] = []

        def add(name: str, config: str, to: list[int], source: Path = results.ROOT) -> None:
            gateways.append(Gateway(name, config, folder, to, source))
            stack.callback(gateways[-1].process.stop)

        if beside:
            older = checkout(beside, folder)
            add(f"{REFERENCE}, {beside}", ONE, ports, older)
            add(f"{BEFORE}, {beside}", TWO, ports, older)
        add(REFERENCE, ONE, ports)
        add(BEFORE, TWO, ports)
        add("sticky and rules", SHARED, ports)
        add("quality and rollout", JUDGED, ports)
        add(FULL, ALL, ports)
        add(EACH_ITS_OWN, ALL, ports)
        add(SAYING, ALL, theirs)
        for number in range(rounds):
            print(f"  cost, round {number + 1} of {rounds}", file=sys.stderr)
            shift = number % len(gateways)
            for gateway in gateways[shift:] + gateways[:shift]:
                gateway.process.check()
                answer = load(gateway, seconds)
                made.setdefault(gateway.name, []).append(answer)
    rows = {
        name: {
            "cpu_us": spread([each["proxy_cpu_us"] for each in runs]),
            "kernel_us": spread([each["proxy_kernel_us"] for each in runs]),
            "per_second": median([each["per_second"] for each in runs]),
            "done": sum(each["done"] for each in runs),
            "added": spread([a["proxy_cpu_us"] - b["proxy_cpu_us"] for a, b in zip(runs, made[BEFORE], strict=True)]),
        }
        for name, runs in made.items()
    }
    return {"rows": rows, "added": rows[FULL]["added"], "load_average": os.getloadavg()[0]}


def show(found: dict[str, Any]) -> None:
    rows = []
    for name, row in found["rows"].items():
        cpu, added = row["cpu_us"], row["added"]
        rows.append(
            [
                name,
                f"{cpu['median']:.1f} ({cpu['min']:.1f}–{cpu['max']:.1f})",
                f"{added['median']:+.1f} ({added['min']:+.1f}–{added['max']:+.1f})",
                significant(row["kernel_us"]["median"]),
                significant(row["per_second"]),
                f"{row['done']:,}",
            ]
        )
    columns = ["gateway", "CPU µs a request", "beside two versions", "in kernel", "per s", "done"]
    results.table("Cost: JSON POST, 32 connections", columns, rows)
