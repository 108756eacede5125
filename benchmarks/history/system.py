"""The system under test: gateways, workers and a Redis as processes of their own, and what is done to them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from time import monotonic
from typing import Any, Final

from ..common.procs import Process, free_port
from ..common.results import ROOT
from .plan import Planned
from .records import Fault, Gauge, Left, Record

#: Seconds a process has to be there, or to go when it was asked to.
PATIENCE: Final = 30.0
LEAVING: Final = 10.0

_INFLIGHT = re.compile(r"^(unjam_endpoint_inflight\{[^}]*\}) (\S+)$", re.MULTILINE)


class Slot:
    """A place for one process after another. `up`: it does its work, `since` when; `busy`: something is done to it."""

    def __init__(self, name: str, make: Callable[[int], Process]) -> None:
        self.name = name
        self.up = False
        self.since = 0.0
        self.busy = False
        self.process: Process | None = None
        self._make = make
        self._number = 0

    def start(self) -> None:
        self._number += 1
        self.process = self._make(self._number)

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def kill(self) -> None:
        """With -9; returns when it is gone."""
        self.signal(signal.SIGKILL)
        self.stop()

    def stop(self, grace: float = 3.0) -> None:
        """Ask it to go, if it is there, and return when it has."""
        self.up = False
        process, self.process = self.process, None
        if process is not None:
            process.stop(grace)


class System:
    """`store`: memory, sqlite or redis. `planted`: gateways with the bug. `lease`: seconds, everywhere."""

    def __init__(
        self,
        folder: Path,
        store: str,
        history: list[Record],
        *,
        agent: int,
        workers: int,
        lease: float,
        planted: bool = False,
    ) -> None:
        self.folder = folder
        self.store = store
        self.history = history
        self.lease = lease
        self.planted = planted
        self.kills: dict[str, int] = {}
        self._agent = agent
        self._background: set[asyncio.Task[None]] = set()
        self.redis_port = free_port() if store == "redis" else 0
        count = 2 if store == "redis" else 1
        self.ports = [free_port() for _ in range(count)]
        self.admins = [free_port() for _ in range(count)]
        self.url = {
            "memory": "memory",
            "sqlite": f"sqlite:{folder / 'runs.db'}",
            "redis": f"redis://127.0.0.1:{self.redis_port}",
        }[store]
        self.redis = Slot("redis", self._redis)
        self.gateways = [Slot(f"gateway{n}", self._gateway(n)) for n in range(count)]
        self.workers = [Slot(f"worker{n}", self._worker(n)) for n in range(workers)]

    @property
    def urls(self) -> list[str]:
        return [f"http://127.0.0.1:{port}" for port in self.ports]

    @property
    def records(self) -> list[Path]:
        """Files that workers have written."""
        return sorted(self.folder.glob("*.records"))

    # -- processes -------------------------------------------------------------------------------------------

    def _redis(self, number: int) -> Process:
        # What is acknowledged is on the disk: killing it must lose nothing.
        options = ["--save", "", "--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction"]
        argv = ["redis-server", "--port", str(self.redis_port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        return Process("redis", [*argv, *options], self.folder / "redis.log")

    def _gateway(self, which: int) -> Callable[[int], Process]:
        # Without breakers: killed workers trip them, and nothing would happen until they close.
        config = self.folder / f"gateway{which}.yaml"
        config.write_text(f"""\
listen: 127.0.0.1:{self.ports[which]}
admin: 127.0.0.1:{self.admins[which]}
access_log: off
drain_timeout: 5s
state: "{self.url}"
runs: {{lease: {self.lease:g}s, wait: 60s}}
services:
  pulled:
    match: {{path: /pulled}}
    runs: {{execute: pull}}
    breaker: off
    versions: {{v1: {{endpoints: ["http://127.0.0.1:{self._agent}"]}}}}
  pushed:
    match: {{path: /pushed}}
    runs: {{execute: push}}
    breaker: off
    versions: {{v1: {{endpoints: [{{url: "http://127.0.0.1:{self._agent}", slots: 8}}]}}}}
""")
        plain = ["-m", "unjam.cli.main", "serve", "--config", str(config)]
        argv = ["-m", "benchmarks.history.planted", str(config)] if self.planted else plain
        return lambda number: Process(
            f"gateway{which}", [sys.executable, *argv], self.folder / f"gateway{which}.log", cwd=ROOT
        )

    def _worker(self, which: int) -> Callable[[int], Process]:
        # With a Redis every other worker goes straight to it.
        direct = self.store == "redis" and which % 2 == 1
        targets = [self.url] if direct else [*self.urls[which % len(self.urls) :], *self.urls[: which % len(self.urls)]]

        def make(number: int) -> Process:
            name = f"worker{which}.{number}"
            argv = [sys.executable, "-m", "benchmarks.history.worker", "--service", "pulled", "--name", name]
            argv += ["--records", str(self.folder / f"{name}.records"), "--lease", str(self.lease)]
            for target in targets:
                argv += ["--target", target]
            return Process(name, argv, self.folder / f"worker{which}.log", cwd=ROOT)

        return make

    async def start(self) -> None:
        """Raises RuntimeError when something doesn't come up."""
        if self.store == "redis":
            self.redis.start()
            await self._until(self.redis, self._redis_serves)
        for gateway in self.gateways:
            gateway.start()
        for worker in self.workers:
            worker.start()
            worker.up = True
        for gateway in self.gateways:
            await self._until(gateway, lambda gateway=gateway: self._serves(gateway))

    def close(self) -> None:
        for slot in (*self.workers, *self.gateways, self.redis):
            if slot.process is not None:
                slot.signal(signal.SIGCONT)
                slot.stop(LEAVING)

    async def _until(self, slot: Slot, true: Callable[[], Coroutine[Any, Any, bool]]) -> None:
        until = monotonic() + PATIENCE
        while not await true():
            assert slot.process is not None
            slot.process.check()
            if monotonic() > until:
                raise RuntimeError(f"{slot.name} isn't there after {PATIENCE:g} s: see {slot.process.log}")
            await asyncio.sleep(0.03)
        slot.up, slot.since = True, monotonic()

    async def _serves(self, gateway: Slot) -> bool:
        port = self.ports[self.gateways.index(gateway)]
        answer = await _exchange(port, b"GET /v1/runs?limit=1 HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n")
        return answer.startswith(b"HTTP/1.1 200 ")

    async def _redis_serves(self) -> bool:
        return b"PONG" in await self._redis_command("PING")

    async def _redis_command(self, *commands: str) -> bytes:
        return await _exchange(self.redis_port, b"".join(f"{line}\r\n".encode() for line in (*commands, "QUIT")))

    # -- what is done to them --------------------------------------------------------------------------------

    async def do(self, planned: Planned) -> None:
        """Returns when it is done; what was killed comes back by itself."""
        await asyncio.sleep(planned.pause)
        match planned.kind:
            case "worker" | "freeze" | "leave":
                slot = await self._pick(self.workers, planned.pick)
            case "gateway" | "freeze_gateway":
                slot = await self._pick(self.gateways, planned.pick, planned.served)
            case _:
                slot = await self._pick([self.redis], 0.0)
        self.history.append(Fault(planned.kind, slot.name, monotonic()))
        match planned.kind:
            case "cut":
                await self._cut(planned.pick)
            case "freeze" | "freeze_gateway":
                slot.busy = True
                slot.signal(signal.SIGSTOP)
                self._later(planned.back, slot, self._go_on)
            case "leave":
                slot.busy = True
                slot.signal(signal.SIGTERM)
                self._later(0.0, slot, self._left)
            case _:
                slot.busy = True
                slot.kill()
                self._later(planned.back, slot, self._back)
        self.kills[planned.kind] = self.kills.get(planned.kind, 0) + 1

    async def settle(self) -> None:
        """Until all that was killed is back."""
        while self._background:
            await asyncio.gather(*self._background)

    async def _pick(self, slots: Sequence[Slot], pick: float, served: float = 0.0) -> Slot:
        until = monotonic() + 2 * PATIENCE

        def able(slot: Slot) -> bool:
            return slot.up and not slot.busy and monotonic() - slot.since >= served

        while not (found := [slot for slot in slots if able(slot)]):
            if monotonic() > until:
                raise RuntimeError(f"{slots[0].name} doesn't come back")
            await asyncio.sleep(0.02)
        return found[int(pick * len(found))]

    def _later(self, seconds: float, slot: Slot, then: Callable[[Slot], Coroutine[Any, Any, None]]) -> None:
        async def wait() -> None:
            await asyncio.sleep(seconds)
            await then(slot)
            slot.busy = False

        task = asyncio.create_task(wait())
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _go_on(self, slot: Slot) -> None:
        slot.signal(signal.SIGCONT)

    async def _left(self, slot: Slot) -> None:
        assert slot.process is not None
        until = monotonic() + LEAVING
        while slot.process.ended is None and monotonic() < until:
            await asyncio.sleep(0.05)
        slot.stop(0.1)
        await self._back(slot)

    async def _back(self, slot: Slot) -> None:
        slot.start()
        if slot in self.gateways:
            await self._until(slot, lambda: self._serves(slot))
        elif slot is self.redis:
            await self._until(slot, self._redis_serves)
        else:
            slot.up = True

    async def _cut(self, pick: float) -> None:
        """All connections to Redis, or one."""
        if pick < 0.4:
            await self._redis_command("CLIENT KILL TYPE normal", "CLIENT KILL TYPE pubsub")
            return
        ids = re.findall(rb"\bid=(\d+) ", await self._redis_command("CLIENT LIST"))
        if ids:
            await self._redis_command(f"CLIENT KILL ID {int(ids[int(pick * len(ids))])}")

    # -- when all is over ------------------------------------------------------------------------------------

    async def gauges(self, last: bool) -> None:
        """What the gateways count as running at endpoints."""
        for slot, port in zip(self.gateways, self.admins, strict=True):
            answer = await _exchange(port, b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            for name, value in _INFLIGHT.findall(answer.decode("utf-8", "replace")):
                self.history.append(Gauge(f"{slot.name} {name}", float(value), monotonic(), last))

    async def what_is_left(self) -> None:
        """Of the store itself, once its gateways and workers have gone."""
        if self.store == "memory":
            return
        for slot in (*self.workers, *self.gateways):
            slot.stop(LEAVING)
        from unjam.runs.store import make

        store = make(self.url)
        await store.open()
        try:
            depth = await store.depth()
        finally:
            await store.close()
        queued, running = (sum(each[place] for each in depth.values()) for place in (0, 1))
        leases = 0
        if self.store == "redis":
            for key in re.findall(rb"unjam:[^\r]*leases", await self._redis_command("KEYS unjam:*leases")):
                leases += int((await self._redis_command(f"ZCARD {key.decode()}")).split(b"\r")[0].lstrip(b":"))
        self.history.append(Left(self.store, queued, running, leases))


async def _exchange(port: int, question: bytes) -> bytes:
    """All that is answered until the other side closes; empty when nobody is there."""
    try:
        async with asyncio.timeout(5.0):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(question)
                return await reader.read(-1)
            finally:
                writer.transport.abort()
    except (OSError, TimeoutError):
        return b""
