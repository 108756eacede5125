"""The load generator: closed-loop JSON requests, paced SSE streams read as they come, WebSocket echo in a closed loop.

    python -m benchmarks.load.client json --port 8080 --connections 32 --seconds 4 --watch PID

One thread, epoll and plain sockets. Every answer is checked (status, length, and the nonce of its own request). With
`--watch` it reads the CPU of those processes at both edges of its measuring window, so that work and cost belong to the
same seconds. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import re
import select
import socket
import sys
import time
from typing import Any

from benchmarks.common.figures import mean, quantile
from benchmarks.common.procs import cpu_seconds, kernel_seconds, rss_bytes

from .messages import CHAT_PATH, RequestMaker, dechunk, masked_text, nonce, websocket_accept

_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_STAMP = re.compile(rb'"t":(\d{19})')
FOREVER = 10**9


class Failed(Exception):
    """The proxy did not do its work; the message says how."""


class Window:
    """Warm-up, then measurement: counts only what ends inside the window."""

    def __init__(self, warm: float, seconds: float, watch: list[int]) -> None:
        self.warm, self.seconds, self.watch = warm, seconds, watch
        self.done = 0
        self.nanoseconds: list[int] = []
        self.errors = 0
        self.samples: list[str] = []
        self.extra: dict[str, Any] = {}
        self._begin = 0.0
        self._at = (0, 0.0, 0.0, 0.0)

    def open(self) -> float:
        """Starts measuring; returns the time to stop."""
        self.nanoseconds.clear()
        self._begin = time.monotonic()
        self._at = (self.done, cpu_seconds(self.watch), time.process_time(), kernel_seconds(self.watch))
        return self._begin + self.seconds

    def fail(self, what: str) -> None:
        self.errors += 1
        if len(self.samples) < 5:
            self.samples.append(what)

    def close(self) -> dict[str, Any]:
        elapsed = time.monotonic() - self._begin
        done = self.done - self._at[0]
        proxy = cpu_seconds(self.watch) - self._at[1]
        own = time.process_time() - self._at[2]
        kernel = kernel_seconds(self.watch) - self._at[3]
        ms = [n / 1e6 for n in self.nanoseconds]
        return {
            "done": done,
            "seconds": elapsed,
            "per_second": done / elapsed,
            "errors": self.errors,
            "error_samples": self.samples,
            "proxy_cpu_us": proxy / done * 1e6 if done else None,
            "proxy_kernel_us": kernel / done * 1e6 if done else None,
            "proxy_cpu_share": proxy / elapsed,
            "client_cpu_us": own / done * 1e6 if done else None,
            "p50_ms": quantile(ms, 0.50) if ms else None,
            "p99_ms": quantile(ms, 0.99) if ms else None,
            "mean_ms": mean(ms) if ms else None,
            "rss": rss_bytes(self.watch),
            **self.extra,
        }


def connect(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), 10.0)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def read_until(sock: socket.socket, mark: bytes, limit: int = 1 << 20) -> bytes:
    data = b""
    while mark not in data:
        more = sock.recv(65536)
        if not more:
            raise Failed(f"closed after {len(data)} bytes: {data[:200]!r}")
        data += more
        if len(data) > limit:
            raise Failed("the answer is too long")
    return data


class JsonConnection:
    __slots__ = ("data", "make", "mark", "sent", "sock")

    def __init__(self, port: int, number: int, path: str, fields: str, users: bool) -> None:
        self.make = RequestMaker(number, f"127.0.0.1:{port}", path, fields=fields, users=users).next
        self.sock = connect(port)
        self.data = b""
        self.mark, self.sent = b"", 0


def run_json(given: argparse.Namespace, window: Window) -> None:
    poll = select.epoll()
    now = time.monotonic_ns
    connections: dict[int, JsonConnection] = {}

    def ask(c: JsonConnection) -> None:
        c.mark, request = c.make()
        c.sent = now()
        c.sock.send(request)

    def add(number: int) -> None:
        c = JsonConnection(given.port, number, given.path, given.fields, given.users)
        connections[c.sock.fileno()] = c
        poll.register(c.sock.fileno(), select.EPOLLIN)
        ask(c)

    for i in range(given.connections):
        add(i)
    number = given.connections
    search, stop, measuring = _LENGTH.search, time.monotonic() + given.warm, False
    while True:
        events = poll.poll(1.0)
        if time.monotonic() >= stop:
            if measuring:
                return
            measuring = True
            stop = window.open()
        for fd, _ in events:
            c = connections[fd]
            try:
                data = c.sock.recv(65536)
            except OSError as e:
                data = b""
                window.fail(repr(e))
            if not data:
                window.fail("the connection was closed")
                poll.unregister(fd)
                connections.pop(fd).sock.close()
                number += 1
                add(number)
                continue
            if c.data:
                data = c.data + data
            end = data.find(b"\r\n\r\n")
            length = search(data, 0, end + 2) if end >= 0 else None
            if length is not None:
                whole = len(data) >= end + 4 + int(length[1])
            else:
                whole = end >= 0 and data.endswith(b"0\r\n\r\n")
            if not whole:
                c.data = data
                continue
            c.data = b""
            if data.startswith(b"HTTP/1.1 200") and c.mark in data:
                window.done += 1
                window.nanoseconds.append(now() - c.sent)
            else:
                window.fail(f"{c.mark!r} expected in {data[:300]!r}")
                if window.errors > 1000:
                    raise Failed("more than 1000 wrong answers")
            ask(c)


def check_stream(port: int, path: str) -> None:
    """One short stream, decoded byte by byte: all of it, in order, with a clean end. Raises Failed."""
    mark, request = RequestMaker(0xFFFFFF, f"127.0.0.1:{port}", path, stream=True, max_tokens=20).next()
    with connect(port) as sock:
        sock.sendall(request)
        data = read_until(sock, b"0\r\n\r\n")
    head, _, body = data.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200") or b"text/event-stream" not in head.lower():
        raise Failed(f"not an event stream: {head!r}")
    payload, complete = dechunk(body)
    events = [e for e in payload.split(b"\n\n") if e.startswith(b"data: {")]
    numbers = [int(e.split(b'"n":')[1][:8]) for e in events]
    if not complete or b"[DONE]" not in payload or numbers != list(range(20)) or any(mark not in e for e in events):
        raise Failed(f"stream damaged: complete {complete}, events {numbers}")


def run_sse(given: argparse.Namespace, window: Window) -> None:
    check_stream(given.port, given.path)
    poll = select.epoll()
    socks: dict[int, tuple[socket.socket, bytes]] = {}
    for i in range(given.connections):
        maker = RequestMaker(i, f"127.0.0.1:{given.port}", given.path, stream=True, max_tokens=FOREVER)
        mark, request = maker.next()
        sock = connect(given.port)
        sock.sendall(request)
        socks[sock.fileno()] = (sock, mark)
        poll.register(sock.fileno(), select.EPOLLIN)
    unseen, reads, at_open = set(socks), 0, 0
    stop, measuring = time.monotonic() + given.warm, False
    while True:
        events = poll.poll(1.0)
        t = time.monotonic()
        if t >= stop:
            if measuring:
                window.extra["events_per_read"] = (window.done - at_open) / max(1, reads)
                return
            if unseen:
                raise Failed(f"{len(unseen)} of {given.connections} streams have not begun after {given.warm} s")
            measuring, reads, at_open = True, 0, window.done
            stop = window.open()
        for fd, _ in events:
            sock, mark = socks[fd]
            try:
                data = sock.recv(65536)
            except OSError as e:
                raise Failed(f"a stream broke: {e!r}") from e
            if not data:
                raise Failed("a stream ended early")
            reads += 1
            # The stamp lies in one piece whenever events arrive in one piece, which is nearly always.
            window.done += data.count(b"data: {")
            stamp = _STAMP.search(data)
            if stamp is not None:
                window.nanoseconds.append(time.monotonic_ns() - int(stamp[1]))
            if fd in unseen and b"data: {" in data:
                unseen.discard(fd)
            if (reads & 63) == 0 and b'"id":"' in data and mark not in data:
                window.fail(f"{mark!r} expected in {data[:200]!r}")


def handshake(port: int) -> socket.socket:
    key = b"dGhlIHNhbXBsZSBub25jZQ=="
    sock = connect(port)
    sock.sendall(
        b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: %s\r\nSec-WebSocket-Version: 13\r\n\r\n" % (port, key)
    )
    head = read_until(sock, b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 101") or websocket_accept(key) not in head:
        raise Failed(f"no WebSocket: {head[:200]!r}")
    return sock


def run_ws(given: argparse.Namespace, window: Window) -> None:
    poll = select.epoll()
    now = time.monotonic_ns
    socks: dict[int, socket.socket] = {}
    expected: dict[int, tuple[bytes, int]] = {}
    counters: dict[int, int] = {}
    mask = b"\x37\xfa\x21\x3d"

    def say(fd: int) -> None:
        counters[fd] += 1
        text = nonce(fd, counters[fd]) + b" tell me what is wrong with this audit"
        expected[fd] = (bytes((0x81, len(text))) + text, now())
        socks[fd].send(masked_text(text, mask))

    for _ in range(given.connections):
        sock = handshake(given.port)
        fd = sock.fileno()
        socks[fd] = sock
        counters[fd] = 0
        poll.register(fd, select.EPOLLIN)
        say(fd)
    partial: dict[int, bytes] = {}
    stop, measuring = time.monotonic() + given.warm, False
    while True:
        events = poll.poll(1.0)
        if time.monotonic() >= stop:
            if measuring:
                return
            measuring = True
            stop = window.open()
        for fd, _ in events:
            data = socks[fd].recv(4096)
            if not data:
                raise Failed("a WebSocket was closed")
            if partial:
                data = partial.pop(fd, b"") + data
            wanted, sent = expected[fd]
            if len(data) < len(wanted):
                partial[fd] = data
                continue
            if data == wanted:
                window.done += 1
                window.nanoseconds.append(now() - sent)
            else:
                window.fail(f"{wanted!r} expected, not {data!r}")
            say(fd)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=("json", "sse", "ws"))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", default=CHAT_PATH)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--warm", type=float, default=0.5, help="seconds before measuring")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--fields", choices=("ten", "sdk"), default="ten", help="ten fields, or the SDK's seventeen")
    parser.add_argument("--users", action="store_true", help="json: each connection is a user, by X-User-Id")
    parser.add_argument("--watch", type=int, nargs="*", default=[], help="process ids whose CPU is read")
    given = parser.parse_args()
    window = Window(given.warm, given.seconds, given.watch)
    try:
        {"json": run_json, "sse": run_sse, "ws": run_ws}[given.mode](given, window)
    except (Failed, OSError) as e:
        print(json.dumps({"failed": f"{type(e).__name__}: {e}", "error_samples": window.samples}))
        sys.exit(1)
    print(json.dumps(window.close()))


if __name__ == "__main__":
    main()
