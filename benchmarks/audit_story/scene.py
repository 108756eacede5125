"""The processes of the story: Redis, gateways, workers of the example auditor, a server for the page. All of them as a
user starts them; each ended by its own id."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import monotonic
from typing import Any, Final
from urllib.request import urlopen

from ..common.procs import Process, cpu_seconds, free_port, http_get
from ..common.results import ROOT
from .settings import Settings

#: Seconds a process has to be there, or to go when it was asked to.
PATIENCE: Final = 30.0
EXAMPLES: Final = ROOT / "examples"


class Scene:
    """`folder`: for their files; the ledger is `folder / "ledger.pdf"`."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder = folder
        self.settings = settings
        self.redis_port = free_port()
        redis = settings.store == "redis"
        self.url = f"redis://127.0.0.1:{self.redis_port}" if redis else f"sqlite:{folder / 'runs.db'}"
        self.ports = {name: free_port() for name in (("a", "b") if redis else ("a",))}
        self.admins = {name: free_port() for name in self.ports}
        self.processes: dict[str, Process] = {}
        #: CPU seconds of processes that are gone.
        self.used: dict[str, float] = {}
        self._files = free_port()

    # -- start and end -----------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Raises RuntimeError when something doesn't come up."""
        if self.settings.store == "redis":
            await self.start_redis()
        self._start(
            "pages",
            [sys.executable, "-m", "http.server", str(self._files), "--bind", "127.0.0.1"],
            cwd=EXAMPLES / "browser",
        )
        for number in (1, 2):
            # They wait for the gateways.
            self._start_worker(f"worker-{number}", straight=self.settings.straight and number == 2)
        await asyncio.gather(
            self._until("pages", lambda: _answers(self._files, "/audit.html")), *map(self.start_gateway, self.ports)
        )

    async def close(self) -> None:
        # Workers first, Redis last: nobody shall wait for somebody who has gone.
        for part in ("worker", "gateway", ""):
            await asyncio.gather(*(self.stop(name, 5.0) for name in list(self.processes) if part in name))

    async def start_redis(self) -> None:
        options = ["--save", "", "--appendonly", "yes", "--maxmemory-policy", "noeviction"]
        argv = ["redis-server", "--port", str(self.redis_port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        self._start("redis", [*argv, *options])
        await self._until("redis", self._redis_serves)

    async def start_gateway(self, name: str) -> None:
        """As examples/runs.yaml has it, on this store."""
        text = (EXAMPLES / "runs.yaml").read_text(encoding="utf-8")
        for old, new in (
            ("listen: 127.0.0.1:8080", f"listen: 127.0.0.1:{self.ports[name]}\nadmin: 127.0.0.1:{self.admins[name]}"),
            ("state: sqlite:runs.db", f"state: {self.url}"),
            ("runs: on", f"runs: {{lease: {self.settings.lease:g}s}}"),
            ("127.0.0.1:9005", f"127.0.0.1:{self._files}"),
        ):
            assert old in text, f"examples/runs.yaml has no {old!r} any more"
            text = text.replace(old, new)
        config = self.folder / f"gateway-{name}.yaml"
        config.write_text(text, encoding="utf-8")
        self._start(f"gateway-{name}", [sys.executable, "-m", "unjam.cli.main", "serve", "--config", str(config)])
        await self._until(f"gateway-{name}", lambda: _answers(self.ports[name], "/v1/runs?limit=1"))

    def _start_worker(self, name: str, *, straight: bool) -> None:
        """`straight`: to the store itself, and not to the gateways."""
        argv = [sys.executable, "-m", "unjam.cli.main", "worker", "audit_worker:worker", "--slots", "1", "--name", name]
        for target in [self.url] if straight else [f"http://127.0.0.1:{port}" for port in self.ports.values()]:
            argv += ["--target", target]
        env = {
            "AUDIT_DOCUMENT": str(self.folder / "ledger.pdf"),
            "AUDIT_PACE": str(self.settings.pace),
            "AUDIT_EFFORT": str(self.settings.effort),
        }
        self._start(name, argv, env=env, cwd=EXAMPLES)

    def _start(self, name: str, argv: list[str], env: dict[str, str] | None = None, cwd: Path | None = None) -> None:
        path = os.pathsep.join(each for each in (str(ROOT / "src"), os.environ.get("PYTHONPATH")) if each)
        full = {"PYTHONPATH": path, **(env or {})}
        self.processes[name] = Process(name, argv, self.folder / f"{name}.log", full, cwd or self.folder)

    # -- what is done to them ----------------------------------------------------------------------------------

    async def stop(self, name: str, grace: float = PATIENCE) -> None:
        """With SIGTERM; returns when it has gone."""
        process = self.processes.pop(name)
        self._count(name, process)
        await asyncio.to_thread(process.stop, grace)

    async def kill(self, name: str) -> list[int]:
        """With -9, and only the process itself; what it had started, which is to end by itself."""
        process = self.processes.pop(name)
        children = [pid for pid in process.pids if pid != process.pid]
        self._count(name, process)
        os.kill(process.pid, signal.SIGKILL)
        end = monotonic() + PATIENCE
        while process.ended is None or _alive(children):
            if monotonic() > end:
                break
            await asyncio.sleep(0.02)
        left = _alive(children)
        await asyncio.to_thread(process.stop)
        return left

    async def worker_of(self, run: str) -> str:
        """Who has it, by a gateway's admin API."""
        port = next(iter(self.admins.values()))
        found = await asyncio.to_thread(_get, f"http://127.0.0.1:{port}/api/runs/{run}")
        return str(found["run"]["worker"])

    def cpu(self) -> dict[str, float]:
        """CPU seconds by name, of all that were and are, and what they started."""
        total = dict(self.used)
        for name, process in self.processes.items():
            total[name] = total.get(name, 0.0) + cpu_seconds(process.pids)
        return total

    def _count(self, name: str, process: Process) -> None:
        self.used[name] = self.used.get(name, 0.0) + cpu_seconds(process.pids)

    async def _until(self, name: str, true: Callable[[], Awaitable[bool]]) -> None:
        end = monotonic() + PATIENCE
        while not await true():
            self.processes[name].check()
            if monotonic() > end:
                raise RuntimeError(f"{name} isn't there after {PATIENCE:g} s: see {self.processes[name].log}")
            await asyncio.sleep(0.03)

    async def _redis_serves(self) -> bool:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.redis_port)
        except OSError:
            return False
        try:
            writer.write(b"PING\r\n")
            # While it loads its file it says LOADING.
            return (await reader.readline()).startswith(b"+PONG")
        except OSError:
            return False
        finally:
            writer.transport.abort()


async def _answers(port: int, path: str) -> bool:
    return await asyncio.to_thread(http_get, port, path) == 200


def _alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def _get(url: str) -> Any:
    with urlopen(url, timeout=PATIENCE) as answer:
        return json.loads(answer.read())
