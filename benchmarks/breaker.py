"""How soon the breaker trips, and how often for nothing: by calculation, by simulation, and through a real gateway.

    python -m benchmarks.breaker [--quick] [--only calculated gateway] [--calls 1000000] [--seeds 200]

`calculated`: CUSUM by its Markov chain and five in a row by formula, exactly; the windows by simulation with many
seeds. `gateway`: `unjam serve` in front of an endpoint that fails at a planted rate, drawn by a seed; one run per seed,
each until callers read the maintenance message, with the breaker reset in between by the admin API. Services with the
default rule, with a window, and with bad verdicts in an answer header in place of errors.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import math
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from unjam.core.evidence import TRIP, Cusum, Window, increments

from .common import results
from .common.figures import mean, significant
from .common.procs import Process, free_port, wait_until_ready

GOOD_RATE = 0.01
BAD_RATES = (0.10, 0.50)
#: At 1 % each seed gives so many calls.
A_MILLION = 1_000_000
#: At most so many: false trips in a million calls at 1 %, mean calls to trip at 10 % and at 50 %.
TARGETS = (1.0, 85.0, 12.0)
CUSUM = "CUSUM, 5 % (default)"
CONFIG = """\
listen: 127.0.0.1:{port}
admin: {{listen: "127.0.0.1:{admin}"}}
access_log: off
services:
  errors: {{match: {{path: /errors}}, versions: {{v1: {{endpoints: ["http://127.0.0.1:{endpoint}"]}}}}, retry: off,
           breaker: {{error_rate: 5%, open: 1h}}, fallback: [{{maintenance: "Soon."}}]}}
  window: {{match: {{path: /window}}, versions: {{v1: {{endpoints: ["http://127.0.0.1:{endpoint}"]}}}}, retry: off,
           breaker: {{error_rate: 5%, open: 1h, rule: window, window: 100, least: 100}},
           fallback: [{{maintenance: "Soon."}}]}}
  quality: {{match: {{path: /quality}}, versions: {{v1: {{endpoints: ["http://127.0.0.1:{endpoint}"]}}}}, retry: off,
           breaker: {{error_rate: 5%, open: 1h}}, fallback: [{{maintenance: "Soon."}}]}}
"""


# Calculated


def cusum_calls(rate: float, error_rate: float = 0.05, baseline: float = 0.0) -> float:
    """Mean calls until CUSUM trips at a true `rate`: exact, by its Markov chain.

    A cycle begins and ends with no evidence. Within one the evidence is j·up − k·down after j failures and k successes,
    so these pairs are the states. Mean calls = mean length of a cycle over the chance that it trips.
    """
    up, down = increments(error_rate, baseline)
    tripped = 0.0
    calls = 1.0 / rate  # until the first failure of a cycle
    layer = {0: 1.0}  # successes so far → probability, after j failures
    j = 1
    while layer:
        after: dict[int, float] = {}
        carried = 0.0
        k, last = min(layer), max(layer)
        while k <= last or carried > 1e-18:
            here = carried + layer.get(k, 0.0)
            carried = 0.0
            evidence = j * up - k * down
            if evidence > 0.0 and here:
                calls += here
                if evidence + up >= TRIP:
                    tripped += here * rate
                else:
                    after[k] = after.get(k, 0.0) + here * rate
                carried = here * (1.0 - rate)
            k += 1
        layer = after if sum(after.values()) > 1e-15 else {}
        j += 1
    return calls / tripped


def in_a_row_calls(rate: float, failures: int = 5) -> float:
    """Mean calls until so many failures in a row, exactly."""
    return (rate**-failures - 1.0) / (1.0 - rate)


def window_calls(rate: float, error_rate: float, calls: int, rng: random.Random) -> tuple[float, int]:
    """Simulated over `calls` calls, beginning anew with nothing against it after each trip: (mean calls to trip,
    trips)."""
    rule = Window(error_rate, 100, 1)
    draw = rng.random
    trips = 0
    for _ in range(calls):
        if draw() >= rate:
            rule.good()
        elif rule.bad():
            trips += 1
            rule.clear()
    return (calls / trips if trips else math.inf), trips


def drawn_trips(calls: int) -> int:
    """Trips of CUSUM alone on the draws of the endpoint at 1 %."""
    trips = 0
    for seed in range(math.ceil(calls / A_MILLION)):
        draw = random.Random(seed).random
        rule = Cusum(0.05)
        for _ in range(min(A_MILLION, calls - seed * A_MILLION)):
            if draw() >= GOOD_RATE:
                rule.good()
            elif rule.bad():
                trips += 1
                rule.clear()
    return trips


def calculated(calls: int) -> list[dict[str, Any]]:
    rng = random.Random(1)
    rows: list[dict[str, Any]] = []

    def row(rule: str, how: str, means: list[float], trips: int | None = None) -> None:
        rows.append(
            {"rule": rule, "how": how, "false_per_million": 1e6 / means[0], "calls_to_trip": means[1:], "trips": trips}
        )

    row(CUSUM, "exact", [cusum_calls(rate) for rate in (GOOD_RATE, *BAD_RATES)])
    for name, error_rate in (("more than 5 % of the last 100", 0.05), ("8 of the last 100", 0.07)):
        print(f"  {name}", file=sys.stderr)
        at_good, trips = window_calls(GOOD_RATE, error_rate, calls, rng)
        row(
            name,
            f"simulated, {calls:,} calls at 1 %",
            [at_good, *(window_calls(rate, error_rate, calls // 10, rng)[0] for rate in BAD_RATES)],
            trips,
        )
    row("five in a row", "exact", [in_a_row_calls(rate) for rate in (GOOD_RATE, *BAD_RATES)])
    return rows


# Through a gateway


class Caller(asyncio.Protocol):
    """One connection in a closed loop. `wanted`: further calls of all connections, `served`: answers of the endpoint;
    stops when callers read the maintenance message."""

    def __init__(self, path: str, run: Run) -> None:
        self.request = f"GET /{path} HTTP/1.1\r\nHost: gateway\r\n\r\n".encode()
        self.run = run
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, end, body = self.buffer.partition(b"\r\n\r\n")
        if not end:
            return
        at = head.lower().find(b"content-length:")
        if len(body) < int(head[at + 15 :].split(b"\r", 1)[0]):
            return
        self.buffer = b""
        self.run.answered(int(head[9:12]), self)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.run.done.done():
            self.run.done.set_exception(RuntimeError(f"the gateway closed a connection: {error}"))


class Run:
    """Calls until the breaker trips, or `calls` of them."""

    def __init__(self, calls: int) -> None:
        self.left = calls
        self.served = 0
        self.failed = 0
        self.out = 0
        self.tripped = False
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def answered(self, status: int, caller: Caller) -> None:
        self.out -= 1
        if status == 503:
            self.tripped = True
        else:
            self.served += 1
            self.failed += status >= 500
        if not self.tripped:
            self.call(caller)
        if not self.out and not self.done.done():
            self.done.set_result(None)

    def call(self, caller: Caller) -> None:
        if self.left:
            self.left -= 1
            self.out += 1
            caller.transport.write(caller.request)


class Gateway:
    """The processes of the benchmark."""

    def __init__(self, folder: Path) -> None:
        self.port, self.admin, self.endpoint = free_port(), free_port(), free_port()
        config = folder / "unjam.yaml"
        config.write_text(CONFIG.format(port=self.port, admin=self.admin, endpoint=self.endpoint))
        argv = [sys.executable, "-m", "benchmarks.load.planted", "--port", str(self.endpoint)]
        self.processes = [Process("planted", argv, folder / "planted.log", cwd=results.ROOT)]
        argv = [sys.executable, "-m", "unjam", "serve", "--config", str(config)]
        self.processes.append(Process("unjam", argv, folder / "unjam.log", cwd=results.ROOT))
        self.connections: dict[int, http.client.HTTPConnection] = {}

    def ready(self) -> None:
        wait_until_ready(self.processes[0], self.endpoint, "/plant")
        wait_until_ready(self.processes[1], self.admin, "/readyz")

    def ask(self, port: int, method: str, path: str, body: object = None) -> Any:
        """JSON of an answer. Raises RuntimeError unless it is a good one."""
        connection = self.connections.setdefault(port, http.client.HTTPConnection("127.0.0.1", port, timeout=10))
        text = None if body is None else json.dumps(body)
        fields = {"Content-Type": "application/json"} if text else {}
        try:
            connection.request(method, path, text, fields)
            answer = connection.getresponse()
        except (ConnectionError, http.client.BadStatusLine):
            # Closed meanwhile, for having been idle.
            connection.close()
            connection.request(method, path, text, fields)
            answer = connection.getresponse()
        data = answer.read()
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {data[:200]!r}")
        return json.loads(data)

    def plant(self, rate: float, seed: int, how: str) -> dict[str, int]:
        """What the endpoint does from now on; returns what it did since the last time."""
        found: dict[str, int] = self.ask(self.endpoint, "GET", f"/plant?rate={rate}&seed={seed}&how={how}")
        return found

    def reset(self, service: str) -> None:
        self.ask(self.admin, "POST", "/api/breaker", {"service": service, "version": "v1", "action": "reset"})

    async def run(self, service: str, calls: int, connections: int) -> Run:
        run = Run(calls)
        loop = asyncio.get_running_loop()
        callers = [
            (await loop.create_connection(lambda: Caller(service, run), "127.0.0.1", self.port))[1]
            for _ in range(connections)
        ]
        for caller in callers:
            run.call(caller)
        try:
            await run.done
        finally:
            for caller in callers:
                caller.transport.abort()
        return run

    def stop(self) -> None:
        for connection in self.connections.values():
            connection.close()
        for process in reversed(self.processes):
            process.stop()


async def measure(gateway: Gateway, service: str, calls: int, seeds: int) -> dict[str, Any]:
    how = "verdict" if service == "quality" else "error"
    to_trip: dict[str, list[int]] = {}
    for rate in BAD_RATES:
        found = to_trip[f"{rate:.0%}"] = []
        for seed in range(seeds):
            gateway.reset(service)
            if service == "window":
                # It was good before, as CUSUM is taken to have been: its window is full.
                gateway.plant(0.0, seed, how)
                await gateway.run(service, 100, 1)
            gateway.plant(rate, seed, how)
            run = await gateway.run(service, 100_000, 1)
            if not run.tripped:
                raise RuntimeError(f"{service} never tripped at {rate:.0%}")
            said = gateway.plant(0.0, 0, how)
            if said["calls"] != run.served:
                raise RuntimeError(f"the endpoint served {said['calls']} calls and callers got {run.served}")
            found.append(run.served)
    served = failures = trips = 0
    began = time.monotonic()
    for seed in range(math.ceil(calls / A_MILLION)):
        gateway.plant(GOOD_RATE, seed, how)
        gateway.reset(service)
        due = min(calls, (seed + 1) * A_MILLION)
        while served < due:
            run = await gateway.run(service, min(due - served, 50_000), 16)
            served += run.served
            if run.tripped:
                trips += 1
                gateway.reset(service)
            print(f"  {service}: {served:,} of {calls:,} at 1 %, {trips} trips", file=sys.stderr)
        failures += gateway.plant(0.0, 0, how)["failures"]
    return {
        "service": service,
        "calls": served,
        "failures": failures,
        "false_trips": trips,
        "per_second": served / (time.monotonic() - began),
        "calls_to_trip": to_trip,
    }


def through_gateway(calls: int, others: int, seeds: int) -> list[dict[str, Any]]:
    rows = []
    with tempfile.TemporaryDirectory(prefix="unjam-bench-") as scratch:
        gateway = Gateway(Path(scratch))
        try:
            gateway.ready()
            for service, many in (("errors", calls), ("quality", others), ("window", others)):
                print(f"  {service}", file=sys.stderr)
                rows.append(asyncio.run(measure(gateway, service, many, seeds)))
        finally:
            gateway.stop()
    return rows


# Told


def show(body: dict[str, Any]) -> None:
    columns = ["rule", "false trips in a million calls, 1 %", "calls to trip, 10 %", "50 %", "how"]
    rows = [
        [
            row["rule"],
            significant(row["false_per_million"]),
            *(significant(calls) for calls in row["calls_to_trip"]),
            row["how"],
        ]
        for row in body.get("calculated", ())
    ]
    if rows:
        results.table("Calculated and simulated", columns, rows)
    names = {
        "errors": CUSUM,
        "quality": "the same, all HTTP 200, bad verdicts",
        "window": "more than 5 % of the last 100",
    }
    columns = ["real gateway, real endpoint", "calls at 1 %", "false trips", "calls to trip, 10 %", "50 %", "per s"]
    rows = [
        [
            names[row["service"]],
            f"{row['calls']:,}",
            str(row["false_trips"]),
            *(
                f"{mean(found):.1f} ± {deviation(found) / math.sqrt(len(found)):.1f}, at most {max(found)}"
                for found in row["calls_to_trip"].values()
            ),
            significant(row["per_second"]),
        ]
        for row in body.get("gateway", ())
    ]
    if rows:
        results.table("Through a gateway", columns, rows, "± the error of the mean")


def deviation(values: list[int]) -> float:
    middle = mean(values)
    return math.sqrt(sum((value - middle) ** 2 for value in values) / max(1, len(values) - 1))


def targets(body: dict[str, Any]) -> list[dict[str, Any]]:
    most_false, *most = TARGETS
    checks = []
    for row in body.get("calculated", ()):
        if row["rule"] == CUSUM:
            value = row["false_per_million"]
            checks.append({"target": "1 %, exactly: false trips in a million below 1", "value": value})
            checks[-1]["met"] = value < most_false
    for row in body.get("gateway", ()):
        if row["service"] == "window":
            continue
        for (rate, found), limit in zip(row["calls_to_trip"].items(), most, strict=True):
            value = mean(found)
            checks.append({"target": f"{row['service']}, {rate}: at most {limit:g} calls to trip", "value": value})
            checks[-1]["met"] = value <= limit
        # Three million calls can't show a rate below one in a million, but the same draws must trip it as often.
        expected = drawn_trips(row["calls"])
        checks.append({"target": f"{row['service']}, 1 %: {expected} trips, as the same draws give without a gateway"})
        checks[-1] |= {"value": row["false_trips"], "met": row["false_trips"] == expected}
    return checks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the calls")
    parser.add_argument("--only", nargs="+", choices=("calculated", "gateway"), default=["calculated", "gateway"])
    parser.add_argument("--calls", type=int, default=3_000_000, help="at 1 %% through the gateway")
    parser.add_argument("--other-calls", type=int, default=500_000, help="the same for verdicts and the window")
    parser.add_argument("--simulated", type=int, default=20_000_000)
    parser.add_argument("--seeds", type=int, default=200)
    given = parser.parse_args()
    if given.quick:
        given.calls, given.other_calls, given.simulated = 100_000, 20_000, 2_000_000
    body: dict[str, Any] = {"machine": results.machine(), "unjam": results.unjam_version(), "settings": vars(given)}
    if "calculated" in given.only:
        body["calculated"] = calculated(given.simulated)
    if "gateway" in given.only:
        body["gateway"] = through_gateway(given.calls, given.other_calls, given.seeds)
    show(body)
    body["targets"] = targets(body)
    for check in body["targets"]:
        print(f"{'met' if check['met'] else 'MISSED'}: {check['target']}: {significant(check['value'])}")
    print(f"written: {results.write('breaker', body, given.quick).relative_to(results.ROOT)}")


if __name__ == "__main__":
    main()
