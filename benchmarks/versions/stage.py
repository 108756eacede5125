"""The processes of the benchmark, `unjam serve` and endpoints, and a caller to drive them."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common import results
from benchmarks.common.procs import Process, free_port, wait_until_ready

_STATUS = re.compile(rb"HTTP/1\.1 (\d{3})")


class Answer(NamedTuple):
    status: int
    head: bytes
    body: bytes

    def field(self, name: str) -> str:
        """Empty when it isn't there."""
        found = re.search(rb"(?i)\r\n" + re.escape(name.encode()) + rb": *([^\r]*)", self.head)
        return found[1].decode("latin-1") if found else ""


class Caller(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self._buffer = b""
        self._waits: asyncio.Future[Answer] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def ask(self, request: bytes) -> asyncio.Future[Answer]:
        """Raises ConnectionError when the gateway closes."""
        self._waits = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self._waits

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, end, body = self._buffer.partition(b"\r\n\r\n")
        if not end:
            return
        at = head.lower().find(b"\r\ncontent-length:")
        whole = len(body) >= int(head[at + 17 :].split(b"\r", 1)[0]) if at >= 0 else body.endswith(b"0\r\n\r\n")
        if not whole:
            return
        self._buffer = b""
        waits, self._waits = self._waits, None
        found = _STATUS.match(head)
        if waits is not None and not waits.done() and found is not None:
            waits.set_result(Answer(int(found[1]), head, body))

    def connection_lost(self, error: Exception | None) -> None:
        if self._waits is not None and not self._waits.done():
            self._waits.set_exception(ConnectionError(f"the gateway closed a connection: {error}"))


def request(path: str, fields: str = "", body: bytes = b"") -> bytes:
    """GET, or POST with a body."""
    method = "POST" if body else "GET"
    more = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
    return f"{method} {path} HTTP/1.1\r\nHost: gateway\r\n{fields}{more}\r\n".encode() + body


class Stage:
    """`endpoints`: names; `config`: the services, with `{NAME}` where the URL of an endpoint goes."""

    def __init__(self, folder: Path, endpoints: tuple[str, ...], config: str, top: str = "") -> None:
        self.folder = folder
        self.ports = {name: free_port() for name in endpoints}
        self.port, self.admin = free_port(), free_port()
        self._endpoints = {name: self._endpoint(name) for name in endpoints}
        urls = {name: f"http://127.0.0.1:{port}" for name, port in self.ports.items()}
        for name, url in urls.items():
            config = config.replace(f"{{{name}}}", url)
        text = (
            f"listen: 127.0.0.1:{self.port}\nadmin: 127.0.0.1:{self.admin}\naccess_log: off\n{top}services:\n{config}"
        )
        path = folder / "unjam.yaml"
        path.write_text(text)
        argv = [sys.executable, "-m", "unjam", "serve", "--config", str(path)]
        self.gateway = Process("unjam", argv, folder / "unjam.log", cwd=results.ROOT)

    def _endpoint(self, name: str) -> Process:
        argv = [sys.executable, "-m", "benchmarks.load.version", "--port", str(self.ports[name])]
        return Process(name, argv, self.folder / f"{name}.log", cwd=results.ROOT)

    def ready(self) -> None:
        for name, process in self._endpoints.items():
            wait_until_ready(process, self.ports[name], "/plant")
        wait_until_ready(self.gateway, self.admin, "/readyz")

    def kill(self, name: str) -> None:
        os.kill(self._endpoints[name].pid, signal.SIGKILL)
        self._endpoints[name].stop()

    def restart(self, name: str) -> None:
        self._endpoints[name] = self._endpoint(name)
        wait_until_ready(self._endpoints[name], self.ports[name], "/plant")

    def plant(self, name: str, rate: float, seed: int = 0, how: str = "error") -> dict[str, int]:
        """What the endpoint does from now on; returns what it did since the last time."""
        found: dict[str, int] = _ask(self.ports[name], "GET", f"/plant?rate={rate}&seed={seed}&how={how}")
        return found

    def calls(self, name: str) -> int:
        return int(_ask(self.ports[name], "GET", "/plant")["calls"])

    def times(self, name: str) -> list[tuple[str, float]]:
        return [(path, at) for path, at in _ask(self.ports[name], "GET", "/times")]

    def get(self, path: str) -> Any:
        return _ask(self.admin, "GET", path)

    def post(self, path: str, **body: object) -> Any:
        return _ask(self.admin, "POST", path, body)

    def version(self, service: str, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.get("/api/state")["services"][service]["versions"][name]
        return found

    async def caller(self) -> Caller:
        loop = asyncio.get_running_loop()
        return (await loop.create_connection(Caller, "127.0.0.1", self.port))[1]

    async def crowd(self, count: int, work: Callable[[Caller, int], Coroutine[Any, Any, None]]) -> None:
        """`work(caller, number)` by so many callers at once."""
        callers = [await self.caller() for _ in range(count)]
        try:
            async with asyncio.TaskGroup() as group:
                for number, caller in enumerate(callers):
                    group.create_task(work(caller, number))
        finally:
            for caller in callers:
                caller.transport.abort()

    def stop(self) -> None:
        self.gateway.stop()
        for process in self._endpoints.values():
            process.stop()


def _ask(port: int, method: str, path: str, body: Mapping[str, object] | None = None) -> Any:
    """JSON of an answer. Raises RuntimeError unless it is a good one."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        text = None if body is None else json.dumps(body)
        connection.request(method, path, text, {"Content-Type": "application/json"} if text else {})
        answer = connection.getresponse()
        data = answer.read()
    finally:
        connection.close()
    if answer.status >= 300:
        raise RuntimeError(f"{method} {path}: {answer.status} {data[:200]!r}")
    return json.loads(data)
