"""The same lies told to a real gateway: what it answers, what it counts, and what `unjam status` says of each.

One endpoint of each kind reports for a few seconds over HTTP, as unjam's own reporter does, while requests go through
the gateway to all of them. A lie that cannot be said in JSON (NaN) is sent as somebody might.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common.peers import Setting
from benchmarks.common.procs import Process, http_get
from benchmarks.common.reported import SERVICE, UnjamReported, stop_all
from benchmarks.common.results import ROOT

GIB = 1 << 30
#: However it is put: the last that was heard of it is old.
OLD = r"\bold\b|\bago\b|stopped|silent|no report"
#: Of one whose reports get older and older; from this age on they are counted as late.
LATE, LATE_AFTER = OLD + r"|\blate\b", 30.0
INTERVAL = 0.25


@dataclass(frozen=True)
class Liar:
    """`load`: what is said in the n-th report. `seen`: what `unjam status` must say of the endpoint (a regular
    expression); `counted`: the label under which `unjam_reports_total` must have it. `until`: it stops there."""

    name: str
    load: Callable[[int, random.Random], dict[str, Any] | str]
    seen: str
    counted: str
    until: int | None = None


def _fair(rng: random.Random) -> dict[str, Any]:
    used = rng.uniform(0.2, 0.3)
    return {"cores": 8, "memory": 16 * GIB, "cpu": used, "agent_cpu": used / 2, "memory_free": int(GIB * (8 + used))}


LIARS = (
    Liar("honest", lambda n, rng: _fair(rng), "", "accepted"),
    Liar("stopped after 2 s", lambda n, rng: _fair(rng), OLD, "accepted", until=8),
    Liar("measured at the start, ever later", lambda n, rng: _fair(rng), LATE, "late"),
    Liar(
        "always idle",
        lambda n, rng: {"cores": 8, "memory": 16 * GIB, "cpu": 0.0, "agent_cpu": 0.0, "memory_free": 8 * GIB},
        r"reports refused: .*exactly 0",
        "bad_load",
    ),
    Liar("NaN", lambda n, rng: '{"cores": 8, "cpu": NaN}', r"", "bad_report"),
    Liar("NaN in quotes", lambda n, rng: {**_fair(rng), "cpu": "NaN"}, r"", "bad_report"),
    Liar("negative", lambda n, rng: {**_fair(rng), "cpu": -0.5}, r"reports refused: .*cpu is -0\.5", "bad_load"),
    Liar("10⁹ cores", lambda n, rng: {**_fair(rng), "cores": 1e9}, r"reports refused: .*cores is 1e\+09", "bad_load"),
)


class Teller(threading.Thread):
    """One endpoint's reporter. `statuses`: of the answers."""

    def __init__(self, liar: Liar, port: int, peer: UnjamReported, end: threading.Event) -> None:
        super().__init__(daemon=True)
        self.liar, self.port, self.peer, self.end = liar, port, peer, end
        self.statuses: dict[int, int] = {}
        self.said = ""
        self.error = ""

    def run(self) -> None:
        rng = random.Random(self.port)
        connection = http.client.HTTPConnection("127.0.0.1", self.peer.reports_port, timeout=10)
        headers = {"Authorization": f"Bearer {self.peer.token}", "Content-Type": "application/json"}
        echo = None
        n = 0
        while not self.end.wait(INTERVAL) and (self.liar.until is None or n < self.liar.until):
            told: dict[str, Any] = {"service": SERVICE, "url": f"http://127.0.0.1:{self.port}"}
            load = self.liar.load(n, rng)
            if echo is not None:
                told |= {"echo": echo, "held": 0.0}
            body = json.dumps(told | {"load": "@"}).replace('"@"', load if isinstance(load, str) else json.dumps(load))
            connection.request("POST", "/v1/report", body, headers)
            answer = connection.getresponse()
            content = answer.read()
            self.statuses[answer.status] = self.statuses.get(answer.status, 0) + 1
            if answer.status != 200:
                self.said = content.decode(errors="replace")[:200]
            elif not (self.liar.seen == LATE and echo):
                # One that is late keeps its first echo: what it says was measured then.
                echo = json.loads(content)["echo"]
            n += 1
        connection.close()


def play(folder: Path, seconds: float) -> list[dict[str, Any]]:
    """One entry for each liar: answers, what was counted, what `unjam status` says, and whether that is as it should
    be. Raises RuntimeError when something does not start."""
    peer = UnjamReported()
    log = folder / "endpoints.log"
    argv = [sys.executable, "-m", "benchmarks.heavy_tail.endpoints", "--sets", "1", "--endpoints", str(len(LIARS))]
    endpoints = Process("endpoints", argv, log, cwd=ROOT)
    started = [endpoints]
    end = threading.Event()
    try:
        for _ in range(100):
            endpoints.check()
            if (text := log.read_text()).endswith("\n"):
                break
            time.sleep(0.05)
        ports = json.loads(text)["ports"][0]
        running = peer.start(Setting(ports, folder / "gateway"))
        started.append(running.process)
        tellers = [Teller(liar, port, peer, end) for liar, port in zip(LIARS, ports, strict=True)]
        for teller in tellers:
            teller.start()
        failed = _traffic(running.port, seconds)
        status = _status(peer, folder)
        metrics = _metrics(peer)
        found = {e["url"]: e for e in peer.endpoints()}
        end.set()
        for teller in tellers:
            teller.join(5.0)
        running.process.check()
    finally:
        end.set()
        stop_all(started)
    out = []
    for teller in tellers:
        url = f"http://127.0.0.1:{teller.port}"
        words = ", ".join(found[url]["why"])
        load = found[url]["load"]
        counts = {k: load[k] for k in ("accepted", "refused", "late")} if load else {}
        liar = teller.liar
        good = re.search(liar.seen, words) is not None
        if liar.seen == LATE and seconds > LATE_AFTER + 5.0:
            good = good and counts.get("late", 0) > 0
        out.append(
            {
                "liar": liar.name,
                "answers": teller.statuses,
                "said": teller.said,
                "why": words,
                "counts": counts,
                "served": found[url]["served"],
                "counted": metrics.get(liar.counted, 0.0) > 0 or (liar.seen == LATE and seconds < LATE_AFTER),
                "named": good,
                "in_status": words.split(", ")[0] in status,
                "failed_requests": failed,
            }
        )
    return out


def _traffic(port: int, seconds: float) -> int:
    """A request every 20 ms; how many were not answered 200."""
    failed = 0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        failed += http_get(port, "/v1/models") != 200
        time.sleep(0.02)
    return failed


def _status(peer: UnjamReported, folder: Path) -> str:
    """What `unjam status` prints, without line breaks in its cells."""
    argv = [sys.executable, "-m", "unjam", "status", "--admin", f"http://127.0.0.1:{peer.admin_port}"]
    env = {**os.environ, "COLUMNS": "400", "NO_COLOR": "1"}
    done = subprocess.run(argv, capture_output=True, text=True, env=env, timeout=30, cwd=folder, check=False)
    return done.stdout + done.stderr


def _metrics(peer: UnjamReported) -> dict[str, float]:
    connection = http.client.HTTPConnection("127.0.0.1", peer.admin_port, timeout=10)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return {m[1]: float(m[2]) for m in re.finditer(r'unjam_reports_total\{[^}]*result="(\w+)"[^}]*\} ([\d.e+]+)', text)}
