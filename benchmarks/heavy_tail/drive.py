"""The open-loop client: sends each job of a script when it is due, whatever has become of those before it.

All balancers are driven at once, each on its own endpoints, by the same script; their clocks are offset by a few
milliseconds so that one arrival does not make all of them work in the same instant. Response time is from the write
of the request to the last byte of its answer.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from benchmarks.load.messages import MODEL

from .arrivals import Job
from .endpoints import _LENGTH, Lag


@dataclass
class Target:
    """One balancer: where it listens, and the path it insists on (None: the job's own)."""

    name: str
    port: int
    path: str | None = None


@dataclass
class Run:
    """What came of a script through one balancer: seconds for each job, NaN where it failed."""

    name: str
    response: list[float]
    errors: list[str] = field(default_factory=list)
    late_ms: list[float] = field(default_factory=list)
    connections: int = 0
    left: int = 0


class _Connection(asyncio.Protocol):
    """A keep-alive connection with at most one request on it."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.transport: asyncio.Transport | None = None
        self.request = b""
        self.mark = b""
        self.job = -1
        self.sent = 0.0
        self.data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have the interface without the base class.
        self.transport = cast(asyncio.Transport, transport)
        self._write()

    def ask(self, job: int, mark: bytes, request: bytes) -> None:
        self.job, self.mark, self.request = job, mark, request
        if self.transport is not None:
            self._write()

    def _write(self) -> None:
        assert self.transport is not None
        self.sent = time.monotonic()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        data = self.data + data
        end = data.find(b"\r\n\r\n")
        length = _LENGTH.search(data, 0, end + 2) if end >= 0 else None
        if length is not None:
            whole = len(data) >= end + 4 + int(length[1])
        else:
            whole = end >= 0 and data.endswith(b"0\r\n\r\n")
        if not whole:
            self.data = data
            return
        self.data = b""
        job, self.job = self.job, -1
        good = data.startswith(b"HTTP/1.1 200") and self.mark in data
        self.driver.done(job, time.monotonic() - self.sent, None if good else repr(data[:200]))
        if good:
            self.driver.idle.append(self)
        elif self.transport is not None:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if self in self.driver.idle:
            self.driver.idle.remove(self)
        if self.job >= 0:
            self.driver.done(self.job, 0.0, f"the connection was lost: {exc!r}")
            self.job = -1


class Driver:
    """Sends one script through one balancer."""

    def __init__(self, target: Target, jobs: Sequence[Job], seed: int) -> None:
        self.target, self.jobs, self.seed = target, jobs, seed
        self.loop = asyncio.get_running_loop()
        self.run = Run(target.name, [float("nan")] * len(jobs), left=len(jobs))
        self.idle: list[_Connection] = []
        self.finished = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._next = 0
        self._start = 0.0

    def begin(self, at: float) -> None:
        self._start = at
        self.loop.call_at(at, self._due)

    def _due(self) -> None:
        now = self.loop.time()
        while self._next < len(self.jobs):
            at = self._start + self.jobs[self._next].at
            if at > now:
                self.loop.call_at(at, self._due)
                return
            self.run.late_ms.append((now - at) * 1e3)
            self._send(self._next)
            self._next += 1

    def _send(self, i: int) -> None:
        job = self.jobs[i]
        mark = b"nonce-%06x%010x" % (self.seed & 0xFFFFFF, i)
        body = b'{"model":"%s","messages":[{"role":"user","content":"%s dur=%.6f"}]}' % (
            MODEL.encode(),
            mark,
            job.seconds,
        )
        request = (
            b"POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
            % ((self.target.path or job.path).encode(), self.target.port, len(body), body)
        )
        if self.idle:
            self.idle.pop().ask(i, mark, request)
            return
        connection = _Connection(self)
        connection.ask(i, mark, request)
        self.run.connections += 1
        task = self.loop.create_task(self._connect(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, connection: _Connection) -> None:
        try:
            await self.loop.create_connection(lambda: connection, "127.0.0.1", self.target.port)
        except OSError as e:
            job, connection.job = connection.job, -1
            self.done(job, 0.0, repr(e))

    def done(self, job: int, seconds: float, error: str | None) -> None:
        if error is None:
            self.run.response[job] = seconds
        else:
            self.run.errors.append(error)
        self.run.left -= 1
        if self.run.left == 0:
            self.finished.set()

    def close(self) -> None:
        for connection in self.idle:
            if connection.transport is not None:
                connection.transport.abort()
        self.idle.clear()


async def stats(port: int) -> dict[str, Any]:
    """Counters of the endpoint at `port` since they were last read."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /stats HTTP/1.1\r\nHost: x\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    out: dict[str, Any] = json.loads(await reader.readuntil(b"}}"))
    writer.close()
    return out


async def drive(
    targets: Sequence[Target], jobs: Sequence[Job], seed: int, patience: float
) -> tuple[list[Run], dict[str, float]]:
    """Runs the script through all targets at once. Waits up to `patience` seconds after the last arrival for what is
    still under way; what is not answered by then counts as failed. Also returns this event loop's own lag."""
    loop = asyncio.get_running_loop()
    lag = Lag(loop)
    drivers = [Driver(target, jobs, seed) for target in targets]
    start = loop.time() + 0.2
    for n, driver in enumerate(drivers):
        driver.begin(start + n * 0.0137)
    deadline = start + jobs[-1].at + patience
    for driver in drivers:
        try:
            await asyncio.wait_for(driver.finished.wait(), max(0.1, deadline - loop.time()))
        except TimeoutError:
            driver.run.errors.extend(["not answered in time"] * driver.run.left)
        driver.close()
    return [driver.run for driver in drivers], lag.figures()
