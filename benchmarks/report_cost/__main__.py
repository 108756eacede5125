"""What reports cost, and how soon an endpoint that its reporter brings is used.

    python -m benchmarks.report_cost [--quick] [--only sidecar gateway joining]

sidecar: CPU and memory of a reporter beside a busy agent. gateway: CPU of a real gateway to which 1,000 endpoints
report every 2 s over connections of their own, above what it uses when nobody reports. joining: from the start of a
reporter's process to the first request that its endpoint serves. About 3 minutes; --quick one.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.common import results
from benchmarks.common.figures import median, quantile, significant
from benchmarks.common.peers import Setting
from benchmarks.common.procs import Process, cpu_seconds, http_get, kernel_seconds, pss_bytes, rss_bytes
from benchmarks.common.reported import INTERVAL, SERVICE, UnjamReported, stop_all
from benchmarks.common.results import ROOT
from benchmarks.noisy_neighbour.turn import start_agents

MIB = 1 << 20
ENDPOINTS = 1000
LIMITS = {"sidecar_cpu": 0.005, "sidecar_mib": 40.0, "gateway_cpu": 0.03, "joined": 2.0}
PARTS = ("sidecar", "gateway", "joining")


def start_gateway(peer: UnjamReported, folder: Path) -> Process:
    """A gateway to which reporters bring the endpoints. It has none of its own, so readiness is that of its admin."""
    folder.mkdir()
    plan = peer.launch(Setting([], folder))
    for name, text in plan.files.items():
        (folder / name).write_text(text)
    process = Process("unjam", plan.argv, folder / "output.log", plan.env, cwd=folder)
    deadline = time.monotonic() + 20.0
    while True:
        process.check()
        try:
            peer.state()
            return process
        except OSError:
            if time.monotonic() > deadline:
                process.stop()
                raise RuntimeError("the gateway did not start") from None
            time.sleep(0.05)


class Work:
    """Keeps an agent at about `share` of a core: requests of 20 ms, one at a time."""

    def __init__(self, port: int, share: float) -> None:
        self._port, self._share = port, share
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        while not self._end.wait(0.02 / self._share - 0.02):
            connection.request("POST", "/work", b'{"content": "dur=0.02"}')
            connection.getresponse().read()
        connection.close()

    def stop(self) -> None:
        self._end.set()
        self._thread.join(5.0)


def sidecar(folder: Path, seconds: float) -> dict[str, Any]:
    """Share of a core and memory of one reporter, from its third report on."""
    peer = UnjamReported(discover=True)
    core = min(os.sched_getaffinity(0))
    agents, ports = start_agents(folder, [core])
    started: list[Process] = [*agents]
    try:
        started.append(start_gateway(peer, folder / "gateway"))
        work = Work(ports[0], 0.4)
        reporter = peer.reporter(ports[0], folder)
        started.append(reporter)
        peer.wait_for_reports(1)
        pids = reporter.pids
        began, used, agent_used = time.monotonic(), cpu_seconds(pids), cpu_seconds(agents[0].pids)
        time.sleep(seconds)
        passed = time.monotonic() - began
        reporter.check()
        work.stop()
        load = peer.endpoints()[0]["load"]
        return {
            "seconds": passed,
            "cpu_share": (cpu_seconds(pids) - used) / passed,
            "rss_mib": rss_bytes(pids) / MIB,
            "pss_mib": pss_bytes(pids) / MIB,
            "agent_cpu_share": (cpu_seconds(agents[0].pids) - agent_used) / passed,
            "reports": load["accepted"],
            "refused": load["refused"],
        }
    finally:
        stop_all(started)


def gateway(folder: Path, seconds: float, restless: bool = False) -> dict[str, Any]:
    """CPU of the gateway: idle without endpoints, and while `ENDPOINTS` report. The first interval, in which all join,
    is not counted; it is told apart."""
    peer = UnjamReported(discover=True)
    process = start_gateway(peer, folder / "gateway")
    reports: Process | None = None
    try:
        time.sleep(1.0)
        pids = process.pids
        idle = _share(pids, min(seconds, 15.0))
        joining = cpu_seconds(pids)
        argv = [sys.executable, "-m", "benchmarks.report_cost.reports", "--port", str(peer.reports_port)]
        argv += ["--count", str(ENDPOINTS), "--interval", str(INTERVAL), "--service", SERVICE]
        # Begins with the connections and the joining, and goes on a little longer than what is measured.
        argv += ["--seconds", str(seconds + 4 * INTERVAL)]
        argv += ["--restless"] * restless
        log = folder / "reports.log"
        reports = Process("reporters", argv, log, {"UNJAM_REPORT_TOKEN": peer.token}, cwd=ROOT)
        peer.wait_for_reports(ENDPOINTS, within=30.0)
        joining = cpu_seconds(pids) - joining
        before = _accepted(peer)
        # Asking for a thousand endpoints' state is work too: not within what is measured.
        time.sleep(0.5)
        in_kernel = kernel_seconds(pids)
        busy = _share(pids, seconds)
        in_kernel = kernel_seconds(pids) - in_kernel
        count = seconds / INTERVAL * ENDPOINTS
        deadline = time.monotonic() + 10 * INTERVAL
        while reports.ended is None and time.monotonic() < deadline:
            time.sleep(0.1)
        process.check()
        said = json.loads(log.read_text().splitlines()[-1])
        after = _accepted(peer)
        return {
            "endpoints": ENDPOINTS,
            "interval": INTERVAL,
            "seconds": seconds,
            "idle_cpu_share": idle,
            "cpu_share": busy,
            "above_idle": busy - idle,
            "us_per_report": (busy - idle) * seconds / count * 1e6,
            "us_in_kernel": in_kernel / count * 1e6,
            "reports_per_second": count / seconds,
            "accepted_between": after - before,
            "joining_cpu_seconds": joining,
            "rss_mib": rss_bytes(pids) / MIB,
            **said,
        }
    finally:
        if reports is not None:
            reports.stop()
        process.stop()


def _share(pids: list[int], seconds: float) -> float:
    began, used = time.monotonic(), cpu_seconds(pids)
    time.sleep(seconds)
    return (cpu_seconds(pids) - used) / (time.monotonic() - began)


def _accepted(peer: UnjamReported) -> int:
    return sum(e["load"]["accepted"] for e in peer.endpoints() if e["load"])


def joining(folder: Path, times: int) -> dict[str, Any]:
    """Seconds from the start of the reporter's process until a request through the gateway is answered by its agent."""
    peer = UnjamReported(discover=True)
    agents, ports = start_agents(folder, [min(os.sched_getaffinity(0))])
    process = None
    joined = []
    try:
        process = start_gateway(peer, folder / "gateway")
        listen = next(
            int(line.rpartition(":")[2])
            for line in (folder / "gateway" / "unjam.yaml").read_text().splitlines()
            if line.startswith("listen:")
        )
        for _ in range(times):
            began = time.monotonic()
            reporter = peer.reporter(ports[0], folder)
            try:
                while http_get(listen, "/") != 200:
                    reporter.check()
                    if time.monotonic() - began > 20.0:
                        raise RuntimeError("the endpoint was not used within 20 s")
                    time.sleep(0.005)
                joined.append(time.monotonic() - began)
            finally:
                reporter.stop(grace=10.0)
            while peer.endpoints():
                time.sleep(0.02)
        return {"seconds": joined, "median": median(joined), "max": max(joined), "p90": quantile(joined, 0.9)}
    finally:
        if process is not None:
            process.stop()
        stop_all(agents)


def _folder(scratch: str, part: str) -> Path:
    made = Path(scratch) / part
    made.mkdir()
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="10 s instead of a minute, 3 times instead of 10")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    given = parser.parse_args()
    if given.quick:
        given.seconds = min(given.seconds, 10.0)
    machine = results.machine()
    body: dict[str, Any] = {"machine": machine, "unjam": results.unjam_version(), "limits": LIMITS}
    rows = []
    checks: list[tuple[str, float, float]] = []
    with tempfile.TemporaryDirectory(prefix="unjam-bench-") as scratch:
        if "sidecar" in given.only:
            body["sidecar"] = made = sidecar(_folder(scratch, "sidecar"), given.seconds)
            rows.append(["sidecar: CPU, % of a core", significant(made["cpu_share"] * 100)])
            rows.append(["sidecar: memory (RSS), MiB", significant(made["rss_mib"])])
            rows.append(
                ["sidecar: memory not shared with other Python programs (PSS), MiB", significant(made["pss_mib"])]
            )
            checks += [("sidecar CPU share", made["cpu_share"], LIMITS["sidecar_cpu"])]
            checks += [("sidecar RSS, MiB", made["rss_mib"], LIMITS["sidecar_mib"])]
        for restless in (False, True) if "gateway" in given.only else ():
            name = "gateway_restless" if restless else "gateway"
            body[name] = made = gateway(_folder(scratch, name), given.seconds, restless)
            words = f"{ENDPOINTS:,} endpoints, loads that {'wander' if restless else 'vary a little'}: "
            rows.append([f"{words}CPU above idle, %", significant(made["above_idle"] * 100)])
            rows.append(["    one report, µs", significant(made["us_per_report"])])
            rows.append(["    of it in the kernel, µs", significant(made["us_in_kernel"])])
            rows.append(["    answers", ", ".join(f"{k}: {v:,}" for k, v in made["statuses"].items())])
            rows.append(["    slowest answer, ms", significant(made["slowest_ms"])])
            rows.append(["    idle before, %", significant(made["idle_cpu_share"] * 100)])
            checks += [(f"{name}: CPU share above idle", made["above_idle"], LIMITS["gateway_cpu"])]
        if "joining" in given.only:
            body["joining"] = made = joining(_folder(scratch, "joining"), 3 if given.quick else 10)
            rows.append(["start of a reporter to first request served: median, s", significant(made["median"])])
            rows.append(["the same, slowest", significant(made["max"])])
            checks += [("slowest joining, s", made["max"], LIMITS["joined"])]
    results.table("cost of reports", ["", ""], rows)
    for what, value, limit in checks:
        print(f"{'PASS ' if value <= limit else 'short'} {what}: {significant(value)} against {limit:g}")
    body["targets"] = [{"target": w, "value": v, "limit": m, "pass": v <= m} for w, v, m in checks]
    print(f"written: {results.write('report_cost', body, given.quick).relative_to(results.ROOT)}")


if __name__ == "__main__":
    main()
