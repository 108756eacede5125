"""The endpoints: servers with hard slots, which hold one of them for as long as the request says.

    python -m benchmarks.heavy_tail.endpoints --sets 7 --endpoints 6 --slots 4

A request beyond the slots waits in the endpoint, first come first served, as a server with a worker pool does: that is
where early binding hurts. `sets` groups of endpoints are independent of each other, one for each balancer. Prints one
JSON line with the ports. GET /stats answers and resets the counters of the endpoint asked, and how late the event loop
has been.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import time
from collections import deque
from typing import Any, cast

import uvloop

from benchmarks.common.figures import quantile

_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_SECONDS = re.compile(rb"dur=([0-9.]+)")
_NONCE = re.compile(rb"nonce-[0-9a-f]{16}")


class Lag:
    """How late a 5 ms timer fires: the event loop's own delay, in milliseconds."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.late: list[float] = []
        self._due = time.monotonic() + 0.005
        loop.call_later(0.005, self._fire)

    def _fire(self) -> None:
        now = time.monotonic()
        self.late.append(max(0.0, (now - self._due) * 1e3))
        self._due = now + 0.005
        self._loop.call_later(0.005, self._fire)

    def figures(self) -> dict[str, float]:
        late, self.late = self.late, []
        return {"p50_ms": quantile(late, 0.5), "p99_ms": quantile(late, 0.99), "max_ms": max(late, default=0.0)}


class Endpoint:
    """One server: `slots` at once, the rest in a queue."""

    def __init__(self, loop: asyncio.AbstractEventLoop, slots: int, lag: Lag) -> None:
        self.loop, self.slots, self.lag = loop, slots, lag
        self.reset()
        self.busy = 0
        self.queue: deque[tuple[Connection, float, bytes]] = deque()

    def reset(self) -> None:
        self.served = self.waited = self.queued_most = 0
        self.asked = self.held = 0.0

    def submit(self, connection: Connection, seconds: float, nonce: bytes) -> None:
        if self.busy < self.slots:
            self.begin(connection, seconds, nonce)
        else:
            self.waited += 1
            self.queue.append((connection, seconds, nonce))
            self.queued_most = max(self.queued_most, len(self.queue))

    def begin(self, connection: Connection, seconds: float, nonce: bytes) -> None:
        self.busy += 1
        self.loop.call_later(seconds, self.end, connection, seconds, nonce, time.monotonic())

    def end(self, connection: Connection, seconds: float, nonce: bytes, began: float) -> None:
        self.busy -= 1
        self.served += 1
        self.asked += seconds
        self.held += time.monotonic() - began
        connection.answer(b'{"object":"chat.completion","id":"%s","choices":[]}' % nonce)
        while self.queue and self.busy < self.slots:
            self.begin(*self.queue.popleft())

    def stats(self) -> dict[str, Any]:
        out = {
            "served": self.served,
            "waited": self.waited,
            "queued_most": self.queued_most,
            "asked": self.asked,
            "held": self.held,
            "lag": self.lag.figures(),
        }
        self.reset()
        return out


class Connection(asyncio.Protocol):
    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.transport: asyncio.Transport | None = None
        self.data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have the interface without the base class.
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None

    def answer(self, body: bytes, status: bytes = b"200 OK") -> None:
        if self.transport is not None:
            head = b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
            self.transport.write(head + body)

    def data_received(self, data: bytes) -> None:
        data = self.data + data
        self.data = b""
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self.data = data
            return
        length = _LENGTH.search(data, 0, end + 2)
        if length is not None and len(data) < end + 4 + int(length[1]):
            self.data = data
            return
        if length is None and b"chunked" in data[:end].lower() and not data.endswith(b"0\r\n\r\n"):
            self.data = data
            return
        seconds = _SECONDS.search(data, end)
        if seconds is not None:
            mark = _NONCE.search(data, end)
            self.endpoint.submit(self, float(seconds[1]), mark[0] if mark else b"none")
        elif data.startswith(b"GET /stats"):
            self.answer(json.dumps(self.endpoint.stats()).encode())
        else:
            self.answer(b'{"object":"list","data":[{"id":"bench","object":"model"}],"model_path":"bench"}')


async def serve(given: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    lag = Lag(loop)
    ports: list[list[int]] = []
    for _ in range(given.sets):
        ports.append([])
        for _ in range(given.endpoints):
            endpoint = Endpoint(loop, given.slots, lag)
            server = await loop.create_server(lambda e=endpoint: Connection(e), "127.0.0.1", 0, backlog=4096)  # type: ignore[misc]
            ports[-1].append(server.sockets[0].getsockname()[1])
    print(json.dumps({"ports": ports}), flush=True)
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=1)
    parser.add_argument("--endpoints", type=int, default=6)
    parser.add_argument("--slots", type=int, default=4)
    given = parser.parse_args()
    try:
        uvloop.run(serve(given))
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
