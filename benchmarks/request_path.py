"""Where the microseconds of a proxied request go, in Python: the whole path without sockets, and its parts.

    python -m benchmarks.request_path

A real gateway whose two transports are stand-ins that keep what is written: the bytes of a keep-alive JSON POST of ten
fields (length and request id change every time) go in at one end, those of an answer at the other. What `proxy_cost`
measures beyond this is the kernel, the event loop, and caches that the kernel has emptied in between. CPU time of this
process; the least of many small batches, since other processes can only add.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from typing import Any

import uvloop

from unjam.config import from_urls
from unjam.core.balancer import Balancer
from unjam.core.model import Outcome, Request
from unjam.gateway.client import ClientConnection
from unjam.gateway.server import Server
from unjam.gateway.upstream import UpstreamConnection
from unjam.telemetry import logs
from unjam.telemetry.metrics import ServiceStats
from unjam.wire.http1 import Limits, RequestReader, ResponseReader

from .common import results

FIELDS = (
    b"Host: 127.0.0.1:8080\r\nAccept: application/json\r\nAccept-Encoding: gzip, deflate\r\n"
    b"Content-Type: application/json\r\nUser-Agent: OpenAI/Python 1.61.0\r\nX-Stainless-Lang: python\r\n"
    b"X-Stainless-Retry-Count: 0\r\nAuthorization: Bearer sk-0123456789abcdef\r\n"
)
REQUESTS = [
    b"POST /v1/chat/completions HTTP/1.1\r\n%bContent-Length: %d\r\nX-Request-Id: %032x\r\n\r\n%b"
    % (FIELDS, 200 + n % 8, n, b"x" * (200 + n % 8))
    for n in range(64)
]
ANSWERS = [
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 300\r\nServer: agent\r\n"
    b"Date: Mon, 01 Jan 2024 00:00:00 GMT\r\nX-Request-Id: %032x\r\n\r\n%b" % (n, b"y" * 300)
    for n in range(64)
]


class Transport:
    """As much of a transport as the hot path asks for."""

    def write(self, data: bytes) -> None:
        self.written = data

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 4711) if name == "peername" else default

    def set_write_buffer_limits(self, high: int) -> None:
        pass

    def close(self) -> None:
        pass

    abort = close


def least(step: Callable[[int], object], batches: int, size: int = 500) -> float:
    """Microseconds of CPU a step, in the least disturbed of `batches` batches."""
    best = float("inf")
    for _ in range(batches):
        began = time.process_time()
        for number in range(size):
            step(number & 63)
        best = min(best, time.process_time() - began)
    return best / size * 1e6


async def whole(batches: int) -> float:
    """The whole way of a request and its answer through a gateway."""
    logs.setup("error")
    urls = ["http://127.0.0.1:1", "http://127.0.0.1:2"]
    server = Server(from_urls(urls, listen="127.0.0.1:0", admin="off", access_log="off"), seed=1)
    await server.start()
    balancer = server.gateway.balancer
    for endpoint in balancer.services["default"].versions[0].endpoints.values():
        connection = UpstreamConnection(endpoint.shell)
        connection.connection_made(Transport())  # type: ignore[arg-type]
        connection.release()
    client = ClientConnection(server.gateway, False)
    client.connection_made(Transport())  # type: ignore[arg-type]

    def step(number: int) -> None:
        client.data_received(REQUESTS[number])
        client.exchange.upstream.data_received(ANSWERS[number])  # type: ignore[union-attr]

    cost = least(step, batches)
    await server.stop()
    return cost


def parts(batches: int) -> dict[str, float]:
    """What the parts cost by themselves."""
    request, answer = RequestReader(Limits()), ResponseReader()
    balancer = Balancer(random.Random(1))
    balancer.apply(from_urls(["http://127.0.0.1:1", "http://127.0.0.1:2"]).topology(), 0.0)
    service = balancer.services["default"]
    stats = ServiceStats("s")

    def decide(number: int) -> None:
        lease = balancer.offer(Request(service, "POST /x s1", 1.0), 1.0)
        balancer.finish(lease, Outcome.OK, 1.1)  # type: ignore[arg-type]

    return {
        "request head: framing, grammar, normal form": least(lambda n: request.feed(REQUESTS[n]), batches),
        "answer head": least(lambda n: answer.feed(ANSWERS[n]), batches),
        "decision: estimate, lane, version, breaker, endpoint, lease, outcome": least(decide, batches),
        "metrics": least(lambda n: stats.finished(False, Outcome.OK, 0.004, 0.0, 0.003), batches),
    }


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=300)
    parser.add_argument("--quick", action="store_true", help="fewer batches")
    options = parser.parse_args()
    batches = 30 if options.quick else options.batches
    total = uvloop.run(whole(batches))
    costs = parts(batches)
    costs["the rest: routing, exchange, serialising, timers, counters"] = total - sum(costs.values())
    for name, cost in costs.items():
        print(f"{cost:6.2f} µs  {name}")
    print(f"{total:6.2f} µs  in all")
    results.write("request_path", {"total_us": total, "parts_us": costs}, quick=options.quick)


if __name__ == "__main__":
    main()
