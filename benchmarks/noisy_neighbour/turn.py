"""One balancer's turn: real agents, its reporters if it has any, the script, and the hog in the middle of it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.common.peers import Peer, Setting
from benchmarks.common.procs import Process, cpu_seconds
from benchmarks.common.reported import UnjamReported, stop_all
from benchmarks.common.results import ROOT
from benchmarks.heavy_tail.arrivals import Job
from benchmarks.heavy_tail.drive import Run, Target, drive
from benchmarks.load.messages import CHAT_PATH

#: The endpoint that the hog sits on is the first.
HOGGED = 0


@dataclass(frozen=True)
class Plan:
    """Seconds since the start of the script; `hogs`: processes."""

    on: float
    off: float
    end: float
    hogs: int
    load: float
    up_to: float = 0.1
    patience: float = 90.0


@dataclass
class Turn:
    """What came of it. `went`: by job, the endpoint it was sent to and when (seconds since the start), None where no
    endpoint saw it. `on`, `off`: when the hog really came and went."""

    run: Run
    went: list[tuple[float, int] | None]
    on: float
    off: float
    balancer_cpu: float
    reporters_cpu: float
    lag: dict[str, float]
    why: list[str]


def pinned(process: Process, core: int) -> Process:
    """Only on that core, with all it starts from now on."""
    os.sched_setaffinity(process.pid, {core})
    return process


def start_agents(folder: Path, cores: Sequence[int], *extra: str) -> tuple[list[Process], list[int]]:
    """One agent on each of `cores`, and their ports."""
    agents, ports = [], []
    for n, core in enumerate(cores):
        log = folder / f"agent-{n}.log"
        argv = [sys.executable, "-m", "benchmarks.load.agent", *extra]
        agents.append(pinned(Process(f"agent {n}", argv, log, cwd=ROOT), core))
    for agent in agents:
        for _ in range(100):
            agent.check()
            if (text := agent.log.read_text()).endswith("\n"):
                ports.append(json.loads(text.splitlines()[0])["port"])
                break
            time.sleep(0.05)
        else:
            stop_all(agents)
            raise RuntimeError("the agents did not start")
    return agents, ports


def taken(port: int) -> list[tuple[str, float, float]]:
    """The log of the agent at `port` since it was last read."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/log", timeout=10) as answer:
        return [(mark, arrived, ended) for mark, arrived, ended in json.load(answer)]


class Hog:
    """A foreign program: processes that do nothing but count, all on one core. Each is a session of its own, so that
    the scheduler's grouping by session doesn't make one of them all."""

    def __init__(self, folder: Path, core: int, count: int) -> None:
        self._folder, self._core, self._count = folder, core, count
        self._running: list[Process] = []

    def start(self) -> None:
        for n in range(self._count):
            argv = [sys.executable, "-S", "-c", "while True: pass"]
            self._running.append(pinned(Process("hog", argv, self._folder / f"hog-{n}.log"), self._core))

    def stop(self) -> None:
        for process in self._running:
            process.stop(grace=0.0)
        self._running.clear()


async def _play(
    plan: Plan, target: Target, jobs: list[Job], seed: int, hog: Hog
) -> tuple[Run, dict[str, float], float, float, float]:
    loop = asyncio.get_running_loop()
    start = loop.time() + 0.2
    times = [0.0, 0.0]

    async def neighbour() -> None:
        await asyncio.sleep(start + plan.on - loop.time())
        times[0] = time.monotonic()
        await asyncio.to_thread(hog.start)
        await asyncio.sleep(start + plan.off - loop.time())
        await asyncio.to_thread(hog.stop)
        times[1] = time.monotonic()

    task = asyncio.create_task(neighbour())
    try:
        runs, lag = await drive([target], jobs, seed, plan.patience)
        await task
    finally:
        task.cancel()
        hog.stop()
    return runs[0], lag, start, times[0] - start, times[1] - start


def take_turn(
    peer: Peer, plan: Plan, jobs: list[Job], seed: int, ports: Sequence[int], cores: Sequence[int], folder: Path
) -> Turn:
    """Starts the balancer afresh, with a reporter on each agent's core where it has reporters, and plays the script.
    Raises RuntimeError when something does not start."""
    running = peer.start(Setting(ports, folder, up_to=plan.up_to))
    reporters: list[Process] = []
    try:
        if isinstance(peer, UnjamReported) and peer.reports:
            reporters = [pinned(peer.reporter(port, folder), core) for port, core in zip(ports, cores, strict=True)]
            peer.wait_for_reports(len(ports))
        for port in ports:
            taken(port)
        everything = [running.process, *reporters]
        used = [cpu_seconds(p.pids) for p in everything]
        target = Target(peer.name, running.port, CHAT_PATH if peer.name == "sglang-router" else None)
        hog = Hog(folder, cores[HOGGED], plan.hogs)
        run, lag, start, on, off = uvloop.run(_play(plan, target, jobs, seed, hog))
        spent = [cpu_seconds(p.pids) - before for p, before in zip(everything, used, strict=True)]
        for process in everything:
            process.check()
        why = []
        if isinstance(peer, UnjamReported):
            why = [f"{e['name']}: {', '.join(e['why'])}" for e in peer.endpoints()]
    finally:
        stop_all(reporters)
        running.stop()
    went: list[tuple[float, int] | None] = [None] * len(jobs)
    for n, port in enumerate(ports):
        for mark, arrived, _ in taken(port):
            job = int(mark[12:], 16)
            if int(mark[6:12], 16) == seed and job < len(jobs):
                went[job] = (arrived - start, n)
    seconds = jobs[-1].at
    reporting = sum(spent[1:]) / max(1, len(reporters))
    return Turn(run, went, on, off, spent[0] / seconds, reporting / seconds, lag, why)


def summary(turn: Turn) -> dict[str, Any]:
    """What goes into the result file beside the figures."""
    return {
        "errors": len(turn.run.errors),
        "error_samples": turn.run.errors[:3],
        "hog": [turn.on, turn.off],
        "balancer_cpu_share": turn.balancer_cpu,
        "reporter_cpu_share": turn.reporters_cpu,
        "driver_lag": turn.lag,
        "why_at_the_end": turn.why,
    }
