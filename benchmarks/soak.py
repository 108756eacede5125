"""Does anything stay behind? A million mixed requests through a real gateway process, then a look at what is left.

    python -m benchmarks.soak --requests 1000000

Closed loop over `--connections`: answers, errors, event streams, endpoints that die in the middle, clients that leave
before and during the answer. Asserts that every whole answer was the right one, that no lease is left, that no socket
is left, and that the gateway's memory is flat: the median of the last quarter within 5 % (or 4 MiB) of the first's.
Endpoint and clients share this process and its loop; only the gateway is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import statistics
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import uvloop

from benchmarks.common.procs import cpu_seconds, rss_bytes

#: What a request does, and out of a hundred how many do.
KINDS = {"ok": 90, "error": 4, "stream": 2, "dies": 1, "leaves": 2, "abandons": 1}
BODY = b'{"question": "What is left behind?"}'
EVENTS = [b"data: %d\n\n" % n for n in range(3)]
_CHUNK = re.compile(rb"[0-9a-f]+\r\n((?:data: [0-9]\n\n)*)\r\n").findall
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)\r\n").search


class Endpoint(asyncio.Protocol):
    """Answers by what the path says."""

    def __init__(self, seen: Counter[str]) -> None:
        self.seen = seen
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, end, body = self.buffer.partition(b"\r\n\r\n")
        if not end or len(body) < len(BODY):
            return
        self.buffer = b""
        _, kind, number = head.split(b" ", 2)[1].decode().split("/")
        self.seen[kind] += 1
        if kind in ("ok", "leaves"):
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(number), number.encode()))
        elif kind == "error":
            self.transport.write(b"HTTP/1.1 500 Oh\r\nContent-Length: 2\r\n\r\nno")
        elif kind == "stream":
            self.transport.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
                + b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in EVENTS)
                + b"0\r\n\r\n"
            )
        elif kind == "dies":
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")
            self.transport.close()
        # abandons: no answer; the client leaves, and the gateway hangs up


class Client(asyncio.Protocol):
    """One connection of the closed loop; replaced by a new one when it ends."""

    def __init__(self, soak: Soak) -> None:
        self.soak = soak
        self.buffer = b""
        self.kind = ""
        self.number = 0
        self.over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.soak.open.add(self)
        self.next()

    def next(self) -> None:
        soak = self.soak
        if soak.asked >= soak.requests:
            self.transport.close()
            return
        soak.asked += 1
        if soak.asked % soak.stride == 0:
            soak.sample()
        self.number = soak.asked
        self.kind = kind = soak.choose()
        self.buffer = b""
        self.transport.write(
            b"POST /%b/%d HTTP/1.1\r\nHost: soak\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (kind.encode(), self.number, len(BODY), BODY)
        )
        if kind in ("leaves", "abandons"):
            soak.loop.call_later(soak.rng.random() * 0.004, self.leave, self.number)

    def leave(self, number: int) -> None:
        if self.number == number and not self.over:
            self.soak.done[self.kind] += 1
            self.over = True
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if self.kind in ("leaves", "abandons"):
            return
        head, end, body = self.buffer.partition(b"\r\n\r\n")
        if not end:
            return
        length = _LENGTH(head + b"\r\n")
        if self.kind == "stream":
            if not body.endswith(b"0\r\n\r\n"):
                return
            good = b"".join(_CHUNK(body)) == b"".join(EVENTS)
        else:
            assert length is not None, head
            if self.kind == "dies" or len(body) < int(length.group(1)):
                return
            good = body == b"%d" % self.number if self.kind == "ok" else head.startswith(b"HTTP/1.1 500")
        if not good:
            self.soak.wrong.append(self.buffer[:300])
        self.soak.done[self.kind] += 1
        self.next()

    def connection_lost(self, error: Exception | None) -> None:
        soak = self.soak
        soak.open.discard(self)
        if not self.over:
            if self.kind == "dies" and self.buffer.endswith(b"half"):
                soak.done["dies"] += 1
            elif soak.asked < soak.requests:
                soak.wrong.append(b"hung up: " + self.kind.encode() + b" " + self.buffer[:300])
        if soak.asked < soak.requests:
            soak.connect()
        elif not soak.open:
            soak.finished.set()


class Soak:
    def __init__(self, requests: int, connections: int, seed: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.requests = requests
        self.connections = connections
        self.rng = Random(seed)
        self.kinds = [kind for kind, share in KINDS.items() for _ in range(share)]
        self.stride = max(1, requests // 200)
        self.asked = 0
        self.done: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()
        self.wrong: list[bytes] = []
        self.open: set[Client] = set()
        self.finished = asyncio.Event()
        self.memory: list[int] = []
        self.port = self.pid = 0
        self._connecting: set[asyncio.Task[Any]] = set()

    def choose(self) -> str:
        return self.kinds[int(self.rng.random() * len(self.kinds))]

    def connect(self) -> None:
        task = self.loop.create_task(self.loop.create_connection(lambda: Client(self), "127.0.0.1", self.port))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    def sample(self) -> None:
        self.memory.append(rss_bytes([self.pid]))

    async def run(self) -> dict[str, Any]:
        endpoint = await self.loop.create_server(lambda: Endpoint(self.seen), "127.0.0.1", 0)
        url = f"http://127.0.0.1:{endpoint.sockets[0].getsockname()[1]}"
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "soak.yaml")
            file.write_text(  # noqa: ASYNC240
                "listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\naccess_log: off\nservices:\n  soak:\n    breaker: off\n"
                f"    ejection: {{failures: 1000000000}}\n    versions: {{v1: {{endpoints: ['{url}']}}}}\n"
            )
            gateway = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "unjam.cli.main", "serve", "--config", str(file)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            try:
                return await self._measure(gateway)
            finally:
                if gateway.returncode is None:
                    gateway.kill()
                await gateway.wait()
                endpoint.close()

    async def _measure(self, gateway: asyncio.subprocess.Process) -> dict[str, Any]:
        assert gateway.stdout is not None
        said = b""
        while not (ready := re.search(rb'"event": ?"admin".*?"address": ?"([^"]+)"', said)):
            line = await asyncio.wait_for(gateway.stdout.readline(), 20)
            assert line, said.decode()
            said += line
        listening = re.search(rb'"event": ?"listening".*?"port": ?(\d+)', said)
        assert listening is not None
        self.port, self.pid = int(listening.group(1)), gateway.pid
        reading = self.loop.create_task(gateway.stdout.read())
        sockets = len(os.listdir(f"/proc/{self.pid}/fd"))
        began, cpu = time.monotonic(), cpu_seconds([self.pid])
        for _ in range(self.connections):
            self.connect()
        await self.finished.wait()
        seconds, cpu = time.monotonic() - began, cpu_seconds([self.pid]) - cpu
        leases, left = -1, -1
        for _ in range(100):  # what the last to leave had started ends within a tick or two
            leases = await asyncio.to_thread(leases_at, ready.group(1).decode())
            left = len(os.listdir(f"/proc/{self.pid}/fd")) - sockets
            if not leases and left <= 2 * self.connections:
                break
            await asyncio.sleep(0.1)
        gateway.send_signal(signal.SIGTERM)
        code = await asyncio.wait_for(gateway.wait(), 20)
        await reading
        quarter = max(1, len(self.memory) // 4)
        # The first tenth of the run fills caches and pools.
        first = statistics.median(self.memory[len(self.memory) // 10 : len(self.memory) // 10 + quarter])
        last = statistics.median(self.memory[-quarter:])
        return {
            "requests": self.requests,
            "seconds": round(seconds, 1),
            "gateway_cpu_us_per_request": round(cpu / self.requests * 1e6, 1),
            "done": dict(self.done),
            "at_endpoint": dict(self.seen),
            "wrong": [text.decode("latin-1") for text in self.wrong[:5]],
            "wrong_count": len(self.wrong),
            "leases_left": leases,
            "descriptors_left": left,
            "connections": self.connections,
            "rss_first_mib": round(first / 2**20, 2),
            "rss_last_mib": round(last / 2**20, 2),
            "exit_code": code,
        }


def leases_at(admin: str) -> int:
    with urllib.request.urlopen(f"http://{admin}/api/state", timeout=10) as answer:
        state = json.load(answer)
    total = 0
    for service in state["services"].values():
        for version in service["versions"].values():
            total += sum(endpoint["inflight"] for endpoint in version["endpoints"])
    return total


def faults(result: dict[str, Any]) -> list[str]:
    """What must not be, in words; empty when all is well."""
    found = []
    if result["wrong_count"]:
        found.append(f"{result['wrong_count']} wrong answers: {result['wrong']}")
    if sum(result["done"].values()) != result["requests"]:
        found.append(f"{sum(result['done'].values())} of {result['requests']} requests ended")
    if result["leases_left"]:
        found.append(f"{result['leases_left']} leases left")
    if result["descriptors_left"] > 2 * result["connections"]:
        found.append(f"{result['descriptors_left']} descriptors left")
    growth = result["rss_last_mib"] - result["rss_first_mib"]
    if growth > max(4.0, 0.05 * result["rss_first_mib"]):
        found.append(f"memory grew by {growth:.1f} MiB")
    if result["exit_code"]:
        found.append(f"the gateway ended with {result['exit_code']}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()

    async def run() -> dict[str, Any]:
        return await Soak(arguments.requests, arguments.connections, arguments.seed).run()

    result = uvloop.run(run())
    print(json.dumps(result, indent=2))
    found = faults(result)
    for fault in found:
        print(f"soak: {fault}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
