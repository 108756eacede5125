"""What reading a message costs, and why heads are read as they are.

    python -m benchmarks.wire_cost

The same checked result for the same request head, three ways: the line memo that `unjam.wire.request` is; httptools
with a reused parser and the checks it lacks in Python; one regular expression over the head and the same checks. Then
the other codecs. Microseconds per message on one core, the least of many short batches: what the code costs when
nothing else wants the core.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from itertools import cycle
from typing import Any

import httptools

from benchmarks.common import results
from unjam.wire import lines, request, response
from unjam.wire.http1 import ChunkedReader, Limits, RequestReader, ResponseReader, chunk
from unjam.wire.sse import SseTracker

FIELDS = [
    b"Host: gateway.example.com:8080",
    b"User-Agent: python-httpx/0.27.0",
    b"Accept: application/json",
    b"Accept-Encoding: gzip, deflate",
    b"Connection: keep-alive",
    b"Content-Type: application/json",
    b"Accept-Language: en",
    b"X-Tenant: acme",
    b"X-Env: prod",
    b"Content-Length: 26",
]
VARYING = [
    *FIELDS[:6],
    b"Authorization: Bearer sk-0123456789abcdef0123456789abcdef",
    b"X-Tenant: acme",
    b"traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    b"Content-Length: 1026",
]
START = b"POST /agents/auditor/run HTTP/1.1"


def lines_of(raw: bytes) -> list[bytes]:
    """As the readers cut a head that came in one piece."""
    start, _, _ = raw.partition(b"\r\n\r\n")
    return start.split(b"\r\n")


def head(fields: list[bytes]) -> bytes:
    return b"\r\n".join([START, *fields, b"", b""])


ANSWER = (
    b"HTTP/1.1 200 OK\r\nDate: Sun, 22 Nov 2026 09:42:03 GMT\r\nServer: uvicorn\r\nContent-Type: application/json\r\n"
    b"Connection: keep-alive\r\nContent-Length: 26\r\n\r\n"
)
EVENT = b'data: {"id":"chatcmpl-1","choices":[{"delta":{"content":" hello"}}]}\n\n'


class Llhttp:
    """httptools with what it lets through checked afterwards, as a gateway would have to."""

    def __init__(self) -> None:
        self.fields: list[tuple[bytes, bytes]] = []
        self.complete = False
        self.parser = httptools.HttpRequestParser(self)

    def on_url(self, url: bytes) -> None:
        self.url = url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value))

    def on_message_complete(self) -> None:
        self.complete = True

    def read(self, raw: bytes, body: bytes) -> Any:
        fields: list[tuple[bytes, bytes]] = []
        self.fields = fields
        self.parser.feed_data(raw)
        result = check(START, fields)
        # The parser is only reused once the message has ended.
        self.parser.feed_data(body)
        return result


_PAIRS = re.compile(
    rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*((?:[!-~\x80-\xff](?:[\t -~\x80-\xff]*[!-~\x80-\xff])?)?)[ \t]*\r\n"
)


def by_regex(raw: bytes) -> Any:
    end = raw.index(b"\r\n") + 2
    return check(raw[: end - 2], _PAIRS.findall(raw, end))


def check(start: bytes, fields: list[tuple[bytes, bytes]]) -> Any:
    """The same `RequestHead` as ours from pairs of name and value; names are known by how they are spelt."""
    result = request.RequestHead.__new__(request.RequestHead)
    result.method, result.path, result.wire_target, result.query, result.minor, _ = request._start(start)
    forward: list[bytes] = []
    known: dict[bytes, bytes] = {}
    host = length = connection = coding = None
    names = request.TABLE._names
    for name, value in fields:
        field = names[name]
        kind = field.kind
        if kind <= lines.BOTH:
            forward.append(b"%b: %b\r\n" % (name, value))
            if kind == lines.BOTH:
                known[field.lower] = value
        elif kind == lines.KNOWN:
            known[field.lower] = value
        elif kind == lines.HOST:
            host = hosts.get(value)
        elif kind == lines.LENGTH:
            length = int(value)
        elif kind == lines.CONNECTION:
            connection = value
        elif kind == lines.CODING:
            coding = value
    assert host is not None
    result.forward, result.known, result.length = forward, known, length
    result.host, result.authority = host
    result.chunked = coding is not None
    result.keep_alive = connection != b"close"
    result.expect_continue = result.connection_upgrade = False
    result.upgrade = None
    return result


hosts = {b"gateway.example.com:8080": ("gateway.example.com", b"gateway.example.com:8080")}


def cost(run: Callable[[], object], batch: int = 200, batches: int = 1500) -> float:
    """Microseconds per call, without those of an empty call."""

    def least(call: Callable[[], object]) -> float:
        best = float("inf")
        for _ in range(batches):
            started = time.perf_counter()
            for _ in range(batch):
                call()
            best = min(best, time.perf_counter() - started)
        return best / batch * 1e6

    return least(run) - least(lambda: None)


def main() -> None:
    same, varying, body = head(FIELDS), head(VARYING), b"x" * 1026
    read = RequestReader(Limits()).feed
    answered = ResponseReader().feed
    # The first look teaches the tables; the reader then sees a connection that repeats itself.
    for _ in range(4):
        read(same)
    repeated = cost(lambda: read(same))
    alike = cycle(
        [
            varying.replace(b"4bf9", b"%04d" % number).replace(b": 1026", b": %d" % number)
            for number in range(1000, 1064)
        ]
    )
    for _ in range(4):
        read(next(alike))
    shaped = cost(lambda: read(next(alike)))
    one, two = chunk(EVENT), chunk(EVENT) * 2
    decode = ChunkedReader(Limits(), "endpoint").feed
    track = SseTracker().feed
    llhttp = Llhttp()
    figures = {
        "request, 10 fields seen before: line memo": cost(lambda: request.build(lines_of(same))),
        "request, 10 fields seen before: httptools and checks": cost(lambda: llhttp.read(same, body[:26])),
        "request, 10 fields seen before: one regex and checks": cost(lambda: by_regex(same)),
        "request, key, traceparent and length new: line memo": cost(lambda: request.build(lines_of(varying))),
        "request, key, traceparent and length new: httptools and checks": cost(lambda: llhttp.read(varying, body)),
        "request, key, traceparent and length new: one regex and checks": cost(lambda: by_regex(varying)),
        "request, the same as the last on its connection": repeated,
        "request, alike but for traceparent and length": shaped,
        "response, 5 fields: line memo": cost(lambda: response.build(lines_of(ANSWER))),
        "response, the same as the last on its connection": cost(lambda: answered(ANSWER)),
        "chunked, one event in one chunk": cost(lambda: decode(one)),
        "chunked, two chunks": cost(lambda: decode(two)),
        "SSE, one event followed": cost(lambda: track(EVENT)),
    }
    results.table("Cost of reading", ["message", "µs"], [[name, f"{value:.2f}"] for name, value in figures.items()])
    results.write(
        "wire_cost", {"machine": results.machine(), "unjam": results.unjam_version(), "microseconds": figures}
    )


if __name__ == "__main__":
    main()
