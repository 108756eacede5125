"""Opens many SSE streams and keeps them open.

    python -m benchmarks.load.hold --ports 8080 8081 --streams 10000 --rate 500 --hold 30

Prints a JSON line when every stream has had its first event (time from connect to that event), and one when the hold is
over: events since, streams lost, and the first-event time of a few more streams opened while all others were held.
"""

from __future__ import annotations

import argparse
import json
import select
import socket
import sys
import time

from benchmarks.common.figures import quantile

from .messages import CHAT_PATH, RequestMaker

FOREVER = 10**9


class Holder:
    """All streams in one epoll loop. Connections are spread over the ports and over loopback source addresses, so that
    no pair of addresses runs out of ports."""

    def __init__(self, ports: list[int]) -> None:
        self.ports = ports
        self.poll = select.epoll()
        self.socks: dict[int, socket.socket] = {}
        self.began: dict[int, float] = {}
        self.head: dict[int, bytes] = {}
        self.first: list[float] = []
        self.events = 0
        self.lost = 0
        self.refused: list[str] = []

    def open(self, number: int) -> None:
        port = self.ports[number % len(self.ports)]
        began = time.monotonic()
        try:
            source = (f"127.0.{1 + number // 20000}.1", 0)
            sock = socket.create_connection(("127.0.0.1", port), 10.0, source_address=source)
        except OSError as e:
            self.refused.append(repr(e))
            return
        maker = RequestMaker(number, f"127.0.0.1:{port}", CHAT_PATH, stream=True, max_tokens=FOREVER)
        sock.sendall(maker.next()[1])
        sock.setblocking(False)
        fd = sock.fileno()
        self.socks[fd] = sock
        self.began[fd] = began
        self.poll.register(fd, select.EPOLLIN)

    def read(self, wait: float) -> None:
        for fd, _ in self.poll.poll(wait):
            sock = self.socks[fd]
            try:
                data = sock.recv(65536)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            began = self.began.get(fd)
            if began is not None and data:
                # Head and first event may come apart.
                data = self.head.pop(fd, b"") + data
            if not data or (began is not None and not data.startswith(b"HTTP/1.1 200"[: len(data)])):
                self.lost += 1
                self.refused.append(repr(data[:200]))
                self.poll.unregister(fd)
                self.began.pop(fd, None)
                self.socks.pop(fd).close()
            elif began is None:
                self.events += data.count(b": still here")
            elif b"data: {" in data:
                self.first.append(time.monotonic() - began)
                del self.began[fd]
            else:
                self.head[fd] = data

    def open_all(self, start: int, count: int, rate: float, patience: float) -> None:
        """Opens `count` streams at `rate` a second and reads until each has had its first event."""
        begin = time.monotonic()
        done = 0
        deadline = begin + count / rate + patience
        while time.monotonic() < deadline and (done < count or self.began):
            while done < count and time.monotonic() >= begin + done / rate:
                self.open(start + done)
                done += 1
                self.read(0)
            self.read(0.001)

    def idle(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.read(min(left, 0.5))


def first_event(values: list[float]) -> dict[str, float]:
    ms = [v * 1e3 for v in values]
    return {"count": len(ms), "p50_ms": quantile(ms, 0.5), "p99_ms": quantile(ms, 0.99), "max_ms": max(ms, default=0.0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ports", type=int, nargs="+", required=True)
    parser.add_argument("--streams", type=int, default=10000)
    parser.add_argument("--rate", type=float, default=500.0, help="streams opened per second")
    parser.add_argument("--hold", type=float, default=30.0, help="seconds held after all are open")
    parser.add_argument("--more", type=int, default=200, help="streams opened at the end, while the others are held")
    given = parser.parse_args()
    holder = Holder(given.ports)
    holder.open_all(0, given.streams, given.rate, 30.0)
    opened = {"open": len(holder.socks), "lost": holder.lost, "first_event": first_event(holder.first)}
    opened["unanswered"] = len(holder.began)
    print(json.dumps({**opened, "trouble": holder.refused[:3]}), flush=True)
    holder.events, holder.lost = 0, 0
    holder.idle(given.hold)
    held = {"open": len(holder.socks), "lost": holder.lost, "events": holder.events, "trouble": holder.refused[:3]}
    holder.first.clear()
    holder.open_all(given.streams, given.more, 100.0, 10.0)
    print(json.dumps({**held, "first_event": first_event(holder.first)}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
