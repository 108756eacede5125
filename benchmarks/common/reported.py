"""unjam with its reporters: the gateway listens for reports, and a sidecar runs beside each endpoint."""

from __future__ import annotations

import json
import re
import secrets
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .peers import Launch, Setting, Unjam
from .procs import Process, free_port
from .results import ROOT

SERVICE = "bench"
INTERVAL = 2.0


class UnjamReported(Unjam):
    """`policy`: of the service. `reports`: False for the same gateway without anybody that reports. `discover`: the
    endpoints are not in the configuration, their reporters bring them. After `launch`: `reports_port`, `admin_port` and
    `token` are those of the gateway started last."""

    modes = frozenset({"json", "sse", "ws", "slots"})

    def __init__(
        self, policy: str = "least_loaded", reports: bool = True, discover: bool = False, queue: str = "1h"
    ) -> None:
        super().__init__()
        self.policy = policy
        self.reports = reports
        self.discover = discover
        self.queue = queue
        self.name = "unjam" if reports else f"unjam {policy}, no reports"
        self.note = f"{policy}, {f'a report every {INTERVAL:g} s' if reports else 'no reports'}"
        self.token = secrets.token_urlsafe(24)
        self.reports_port = self.admin_port = 0

    def launch(self, s: Setting) -> Launch:
        plan = super().launch(s)
        text = plan.files["unjam.yaml"]
        found = re.search(r"admin: 127\.0\.0\.1:(\d+)", text)
        assert found is not None
        self.admin_port = int(found[1])
        self.reports_port = free_port()
        text = text.replace("    lanes:", f"    policy: {self.policy}\n    lanes:")
        text = text.replace("timeout: 1h}", f"timeout: {self.queue}}}")
        if self.reports:
            listener = f"reporters: {{listen: 127.0.0.1:{self.reports_port}, token: {self.token}}}\n"
            text = text.replace("services:", listener + "services:")
        if self.discover:
            text = text[: text.index("        endpoints:")] + "        discover: true\n"
        return Launch(plan.port, plan.argv, {"unjam.yaml": text}, plan.env, "/health")

    def reporter(self, port: int, folder: Path, *extra: str) -> Process:
        """A sidecar for the endpoint at `port`."""
        argv = [sys.executable, "-m", "unjam.reporter", "--gateway", f"http://127.0.0.1:{self.reports_port}"]
        argv += ["--service", SERVICE, "--url", f"http://127.0.0.1:{port}", "--interval", f"{INTERVAL:g}s", *extra]
        log = folder / f"reporter-{port}.log"
        return Process(f"reporter of {port}", argv, log, {"UNJAM_REPORT_TOKEN": self.token}, cwd=ROOT)

    def state(self) -> dict[str, Any]:
        """The gateway's own account of itself, from its admin listener. Raises OSError."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}/api/state", timeout=5) as answer:
            out: dict[str, Any] = json.load(answer)
        return out

    def endpoints(self) -> list[dict[str, Any]]:
        """Those of the service in the gateway's account."""
        state = self.state()
        services = state.get("services") or state["balancer"]["services"]
        return [e for version in services[SERVICE]["versions"].values() for e in version["endpoints"]]

    def wait_for_reports(self, count: int, within: float = 15.0) -> None:
        """Until `count` endpoints have reported, two reports each: the first has no share of the CPU yet. Raises
        RuntimeError."""
        deadline = time.monotonic() + within
        while True:
            loads = [e["load"] for e in self.endpoints() if e.get("load")]
            if sum(load["accepted"] >= 2 for load in loads) >= count:
                return
            if time.monotonic() > deadline:
                raise RuntimeError(f"{count} endpoints should have reported after {within:g} s; heard: {loads}")
            time.sleep(0.1)


def stop_all(processes: Sequence[Process]) -> None:
    for process in processes:
        process.stop()
