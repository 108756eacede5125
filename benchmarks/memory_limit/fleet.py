"""Two agents, each under a memory limit of its own; the first shares it with a neighbour that needs most of it. An
agent that is killed is started again on its port, as a supervisor does."""

from __future__ import annotations

import json
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common.procs import Process, free_port
from benchmarks.common.results import ROOT

from .limits import MIB, Group, make_group


@dataclass(frozen=True)
class Sizes:
    """MiB: limit of each agent, neighbour of the first, one audit. Beside the neighbour and an idle agent (about 10)
    one audit fits into the first agent's limit and two don't."""

    limit: int = 640
    ballast: int = 505
    audit: int = 100


#: Where there is no control group, address space is bounded, of which an interpreter takes that much more. MiB.
SPACE_MORE = 60
_BALLAST = """
import sys, time
block = bytearray(int(sys.argv[1]) << 20)
for at in range(0, len(block), 4096):
    block[at] = 1
print("full", flush=True)
time.sleep(1e6)
"""


class Agent:
    """`port` stays the same over its lives; `deaths` counts those that nobody asked for."""

    def __init__(self, n: int, sizes: Sizes, folder: Path, groups: bool) -> None:
        self.n, self.sizes, self.folder = n, sizes, folder
        self.port = free_port()
        self.deaths = 0
        self.group: Group | None = make_group(f"agent-{n}", sizes.limit * MIB) if groups else None
        self.log = folder / f"agent-{n}.log"
        self._ballast: Process | None = None
        self._stopping = False
        try:
            if n == 0 and self.group is not None:
                self._start_ballast(self.group)
            self._process = self._start()
        except BaseException:
            self.stop()
            raise
        self._watch = threading.Thread(target=self._supervise, daemon=True)
        self._watch.start()

    def _start_ballast(self, group: Group) -> None:
        log = self.folder / "ballast.log"
        argv = group.enter([sys.executable, "-S", "-c", _BALLAST, str(self.sizes.ballast)])
        self._ballast = Process("ballast", argv, log)
        _wait_for(self._ballast, log, b"full")

    def _start(self) -> Process:
        argv = [sys.executable, "-m", "benchmarks.load.agent", "--port", str(self.port)]
        argv += ["--hold-mib", str(self.sizes.audit)]
        if self.group is not None:
            # Where memory runs out the kernel is to choose the agent, not its neighbour, as it does with the pods of
            # Kubernetes that asked for nothing.
            argv = self.group.enter(argv, oom_score=1000)
        else:
            argv += ["--space-mib", str(self.sizes.limit + SPACE_MORE)]
            argv += ["--ballast-mib", str(self.sizes.ballast if self.n == 0 else 0)]
        before = self.log.stat().st_size if self.log.exists() else 0
        process = Process(f"agent {self.n}", argv, self.log, {"MALLOC_ARENA_MAX": "1"}, cwd=ROOT)
        try:
            _wait_for(process, self.log, b'"port"', before)
        except BaseException:
            process.stop()
            raise
        return process

    def _supervise(self) -> None:
        while not self._stopping:
            if self._process.ended is not None and not self._stopping:
                self.deaths += 1
                self._process.stop()
                self._process = self._start()
            time.sleep(0.02)

    @property
    def pid(self) -> int:
        return self._process.pid

    def begun(self) -> list[str]:
        """Nonces of the audits that it began, in all its lives."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line["begun"] for line in lines if "begun" in line]

    def figures(self) -> dict[str, Any]:
        return {
            "deaths": self.deaths,
            "oom_kills": self.group.kills if self.group is not None else None,
            "audits_begun": len(self.begun()),
        }

    def stop(self) -> None:
        self._stopping = True
        if watch := getattr(self, "_watch", None):
            watch.join(5.0)
        if process := getattr(self, "_process", None):
            process.stop()
        if self._ballast is not None:
            self._ballast.stop()
        if self.group is not None:
            # The kernel takes its time to empty it.
            for _ in range(50):
                if not (self.group.folder / "cgroup.procs").read_text():
                    break
                time.sleep(0.02)
            self.group.remove()


def _wait_for(process: Process, log: Path, word: bytes, since: int = 0) -> None:
    """Until `word` is in its log, after the first `since` bytes. Raises RuntimeError when it ends before, or after
    10 s."""
    deadline = time.monotonic() + 10.0
    while not (log.exists() and word in log.read_bytes()[since:]):
        process.check()
        if time.monotonic() > deadline:
            raise RuntimeError(f"{process.name} did not start")
        time.sleep(0.02)


def start(sizes: Sizes, folder: Path, groups: bool = True) -> list[Agent]:
    """Both agents. `groups` False: without control groups, even where there could be some."""
    agents: list[Agent] = []
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for n in range(2):
            agents.append(Agent(n, sizes, folder, groups))
    except BaseException:
        stop(agents)
        raise
    return agents


def stop(agents: list[Agent]) -> None:
    for agent in agents:
        agent.stop()
