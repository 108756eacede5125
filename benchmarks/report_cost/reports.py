"""Many reporters in one process: each on a connection of its own that stays open, a report every two seconds.

    python -m benchmarks.report_cost.reports --port 8082 --count 1000 --seconds 30    # the token: UNJAM_REPORT_TOKEN

What they say changes a little from report to report (use of the CPU by up to 2 % of it), as real figures do, or a lot
with `--restless`: then what follows for slots and shares has to be worked out again and again. Each sends back the echo
of the answer before, as unjam's own reporter does. The reports are spread evenly over the interval. Prints one JSON
line: reports sent, answers by status, the slowest answer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import time
from typing import cast

import uvloop

#: Endpoints' ports in their URLs. Nobody listens there and nobody asks.
FIRST_PORT = 20_000
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
GIB = 1 << 30


class Reporter(asyncio.Protocol):
    """One endpoint's. `statuses` is shared by all."""

    def __init__(self, n: int, given: argparse.Namespace, token: str, statuses: dict[str, int]) -> None:
        self.given = given
        self.statuses = statuses
        self.rng = random.Random(n)
        self.url = f"http://127.0.0.1:{FIRST_PORT + n}"
        self.head = (
            f"POST /v1/report HTTP/1.1\r\nHost: 127.0.0.1:{given.port}\r\nAuthorization: Bearer {token}\r\n"
            "Content-Type: application/json\r\nContent-Length: "
        ).encode()
        self.cores = self.rng.choice((4, 8, 16, 64))
        self.cpu = self.rng.random() * 0.8
        self.transport: asyncio.Transport | None = None
        self.echo: str | None = None
        self.answered = self.sent = 0.0
        self.slowest = 0.0
        self.waiting = False
        self.data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have the interface without the base class.
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None

    def report(self) -> None:
        if self.transport is None:
            self._count("lost")
            return
        if self.waiting:
            self._count("no answer before the next")
            return
        rng = self.rng
        if self.given.restless:
            self.cpu = min(0.95, max(0.02, self.cpu + rng.uniform(-0.1, 0.1)))
        cpu = min(1.0, max(0.0, self.cpu + rng.uniform(-0.02, 0.02)))
        memory = self.cores * 2 * GIB
        load = {
            "cores": self.cores,
            "memory": memory,
            "cpu": round(cpu, 4),
            "agent_cpu": round(cpu * rng.uniform(0.5, 0.6), 4),
            "memory_free": int(memory * rng.uniform(0.4, 0.5)),
            "agent_memory": int(memory * rng.uniform(0.2, 0.3)),
            "pressure": round(0.1 * cpu, 4),
            "memory_pressure": 0.0,
            "run_queue": round(rng.random() * self.cores, 2),
            "open_files": rng.randrange(60, 90),
        }
        told: dict[str, object] = {"service": self.given.service, "url": self.url, "state": "ready", "load": load}
        now = time.monotonic()
        if self.echo is not None:
            told |= {"echo": self.echo, "held": round(now - self.answered, 4)}
        body = json.dumps(told, separators=(",", ":")).encode()
        self.waiting = True
        self.sent = now
        self._count("sent")
        self.transport.write(b"%s%d\r\n\r\n%s" % (self.head, len(body), body))

    def data_received(self, data: bytes) -> None:
        data = self.data + data
        end = data.find(b"\r\n\r\n")
        length = _LENGTH.search(data, 0, end + 2) if end >= 0 else None
        if length is None or len(data) < end + 4 + int(length[1]):
            self.data = data
            return
        self.data = b""
        self.waiting = False
        self.answered = time.monotonic()
        self.slowest = max(self.slowest, self.answered - self.sent)
        status = data[9:12].decode()
        self._count(status)
        if status == "200":
            self.echo = json.loads(data[end + 4 :])["echo"]

    def _count(self, what: str) -> None:
        self.statuses[what] = self.statuses.get(what, 0) + 1


async def run(given: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    statuses: dict[str, int] = {}
    token = os.environ["UNJAM_REPORT_TOKEN"]
    reporters = [Reporter(n, given, token, statuses) for n in range(given.count)]
    for reporter in reporters:
        await loop.create_connection(lambda r=reporter: r, "127.0.0.1", given.port)  # type: ignore[misc]
    start = loop.time()
    end = start + given.seconds

    def again(reporter: Reporter, due: float) -> None:
        reporter.report()
        if due + given.interval < end:
            loop.call_at(due + given.interval, again, reporter, due + given.interval)

    for n, reporter in enumerate(reporters):
        due = start + given.interval * n / given.count
        loop.call_at(due, again, reporter, due)
    await asyncio.sleep(given.seconds + 0.5)
    print(json.dumps({"statuses": statuses, "slowest_ms": max(r.slowest for r in reporters) * 1e3}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--interval", type=float, default=2.0)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--restless", action="store_true", help="use wanders by up to a tenth between reports")
    parser.add_argument("--service", default="bench")
    uvloop.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
