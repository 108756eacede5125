"""Gateways as users start them, and a real worker behind them, for the clients that people have."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from ..gateway.processes import Process, process, served

#: One step after the other, until it has done what it was asked for or is told to stop. It says what becomes of it.
WORKER = """
import asyncio
import sys

from unjam.worker import Run, Worker

worker = Worker(sys.argv[1], service="auditor", slots=16)


@worker.run
async def audit(run: Run):
    try:
        for n in range(run.input["steps"]):
            await asyncio.sleep(run.input.get("pace", 0.02))
            await run.emit("step", {"n": n})
            await run.save(n + 1)
    except asyncio.CancelledError:
        print("stopped", run.id, run.cancelled, flush=True)
        raise
    print("did", run.id, flush=True)
    return {"steps": run.input["steps"]}


worker.main()
"""


def configure(
    folder: Path,
    *,
    state: str = "sqlite:runs.db",
    port: int = 0,
    agent: str = "http://127.0.0.1:9",
    execute: str = "pull",
    pages: str = "http://127.0.0.1:9",
    name: str = "unjam",
) -> str:
    """Writes a configuration; its path."""
    path = folder / f"{name}.yaml"
    path.write_text(
        f"listen: 127.0.0.1:{port}\nadmin: off\naccess_log: off\nstate: '{state}'\nruns: {{lease: 3s}}\nservices:\n"
        "  auditor:\n    match: {path: /agents/auditor}\n"
        f"    runs: {{execute: {execute}}}\n    versions: {{v1: {{endpoints: ['{agent}']}}}}\n"
        f"  pages:\n    match: {{path: /pages}}\n    versions: {{v1: {{endpoints: ['{pages}']}}}}\n",
        encoding="utf-8",
    )
    return str(path)


@asynccontextmanager
async def unjam(folder: Path, port: int = 0) -> AsyncIterator[tuple[Process, int]]:
    """A gateway on SQLite whose runs workers claim."""
    async with served("--config", configure(folder, port=port)) as running:
        yield running


@asynccontextmanager
async def working(folder: Path, port: int) -> AsyncIterator[Process]:
    """A worker in a process of its own."""
    script = folder / "worker.py"
    script.write_text(WORKER, encoding="utf-8")
    async with process(str(script), f"http://127.0.0.1:{port}") as worker:
        yield worker
