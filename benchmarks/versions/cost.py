"""CPU per request with sticky callers, rules, breaker, rollout and verdicts configured, beside the same gateway
without, and beside an older one. Rounds are interleaved; all gateways run throughout, and are idle unless it is their
turn."""

from __future__ import annotations

import argparse
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
from benchmarks.proxy_cost import client, start_origin

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
#: X-Request-Id differs with every request: each is a caller of its own, which is the dearest case; Authorization has
#: four values, which is a cheap one.
ALL = (
    TOP
    + """\
    sticky: {sticky}
    split:
      - {{header: {{x-tier: premium}}, weights: {{v2: 1}}}}
      - {{lane: heavy, weights: {{v1: 1, v2: 3}}}}
    quality: {{error_rate: 5%}}
    rollout: {{version: v2, steps: [50%, 100%], hold: 10h}}
    fallback: [{{maintenance: "Soon."}}]
    versions:
      v1: {{weight: 50, overflow: {{to: v2, after: 2s}}, endpoints: ["{one}"]}}
      v2: {{weight: 50, overflow: {{to: v1, after: 2s}}, endpoints: ["{two}"]}}
"""
)
REFERENCE = "one version"
FULL = "all of it, 4 sticky callers"
EACH_ITS_OWN = "all of it, every request a new caller"


class Gateway:
    """`source`: the tree it runs from."""

    def __init__(self, name: str, config: str, folder: Path, ports: list[int], source: Path) -> None:
        self.name = name
        self.port, admin = free_port(), free_port()
        one, two = (f"http://127.0.0.1:{port}" for port in ports)
        text = config.replace("{sticky}", "x-request-id" if name == EACH_ITS_OWN else "authorization")
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


def measure(rounds: int, seconds: float, beside: str) -> dict[str, Any]:
    given = argparse.Namespace(fields="ten", connections=32, streams=0, seconds=seconds)
    made: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="unjam-bench-") as scratch, ExitStack() as stack:
        folder = Path(scratch)
        origin, ports = start_origin(folder, 40.0)
        stack.callback(origin.stop)
        wanted = [(REFERENCE, ONE), ("two versions", TWO), (FULL, ALL), (EACH_ITS_OWN, ALL)]
        gateways = [Gateway(name, config, folder, ports, results.ROOT) for name, config in wanted]
        if beside:
            older = checkout(beside, folder)
            gateways.insert(0, Gateway(f"one version, {beside}", ONE, folder, ports, older))
        for gateway in gateways:
            stack.callback(gateway.process.stop)
        for number in range(rounds):
            print(f"  cost, round {number + 1} of {rounds}", file=sys.stderr)
            shift = number % len(gateways)
            for gateway in gateways[shift:] + gateways[:shift]:
                gateway.process.check()
                answer = client("json", gateway.port, gateway.process.pids, given, slow=False)
                if answer.get("failed") or answer.get("errors"):
                    raise RuntimeError(f"{gateway.name}: {answer.get('failed') or answer['error_samples']}")
                made.setdefault(gateway.name, []).append(answer)
    rows = {
        name: {
            "cpu_us": spread([each["proxy_cpu_us"] for each in runs]),
            "kernel_us": spread([each["proxy_kernel_us"] for each in runs]),
            "per_second": median([each["per_second"] for each in runs]),
            "done": sum(each["done"] for each in runs),
            "added": spread(
                [a["proxy_cpu_us"] - b["proxy_cpu_us"] for a, b in zip(runs, made[REFERENCE], strict=True)]
            ),
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
    columns = ["gateway", "CPU µs a request", "beside one version", "in kernel", "per s", "done"]
    results.table("Cost: JSON POST, 32 connections", columns, rows)
