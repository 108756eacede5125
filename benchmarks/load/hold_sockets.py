"""Opens many WebSocket clients and keeps them: answers pings, and times what they are told.

    python -m benchmarks.load.hold_sockets --ports 8080 8081 --path /ws --clients 8000 --rate 2000 --first 0

Prints a JSON line when all are open. Then it obeys lines on stdin: `expect WORD SECONDS` waits until every client was
told a text that begins with WORD and a time (of `time.monotonic`, the same for all processes), or the seconds are
over, and prints how long each took; `count` prints what came since; the end of input ends it.

With `--say`, for each port, each client says that once it is open. A text that is a JSON object counts by its `data`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import select
import socket
import sys
import time

from benchmarks.common.figures import quantile

PONG = b"\x8a\x80mask"


def masked(message: bytes) -> bytes:
    """A text of at most 65,535 bytes, as clients send it."""
    length = b"%c" % (0x80 | len(message)) if len(message) < 126 else b"\xfe" + len(message).to_bytes(2, "big")
    return b"\x81" + length + bytes(4) + message


class Holder:
    """All clients of one process in one epoll loop, spread over the ports and over loopback source addresses, so that
    no pair of addresses runs out of ports. `first`: the number of the first client, so that processes differ."""

    def __init__(self, ports: list[int], path: str, first: int, say: list[str]) -> None:
        self.ports = ports
        self.say = [masked(message.encode()) if message else b"" for message in say or [""] * len(ports)]
        self.path = path
        self.number = first
        self.poll = select.epoll()
        self.poll.register(0, select.EPOLLIN)
        self.socks: dict[int, socket.socket] = {}
        self.shaking: dict[int, int] = {}
        self.rest: dict[int, bytes] = {}
        self.told: dict[str, list[float]] = {}
        self.pings = 0
        self.lost = 0
        self.trouble: list[str] = []
        self.asked = False

    def open(self) -> None:
        number = self.number
        self.number += 1
        port = self.ports[number % len(self.ports)]
        try:
            sock = socket.create_connection(
                ("127.0.0.1", port), 20.0, source_address=(f"127.0.{1 + number // 10000}.1", 0)
            )
        except OSError as e:
            self.lost += 1
            self.trouble.append(repr(e))
            return
        sock.sendall(
            f"GET {self.path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n".encode()
        )
        sock.setblocking(False)
        fd = sock.fileno()
        self.socks[fd] = sock
        self.shaking[fd] = number % len(self.ports)
        self.poll.register(fd, select.EPOLLIN)

    def read(self, wait: float) -> None:
        for fd, _ in self.poll.poll(wait):
            if fd == 0:
                self.asked = True
                self.poll.unregister(0)
                continue
            try:
                data = self.socks[fd].recv(65536)
            except BlockingIOError:
                continue
            except OSError as e:
                self.trouble.append(repr(e))
                data = b""
            if data:
                data = self.rest.pop(fd, b"") + data
                if fd in self.shaking:
                    data = self._shaken(fd, data)
                if data:
                    data = self._frames(fd, data)
                if data:
                    self.rest[fd] = data
            else:
                self._drop(fd)

    def _shaken(self, fd: int, data: bytes) -> bytes:
        head, end, rest = data.partition(b"\r\n\r\n")
        if not end:
            return data
        place = self.shaking.pop(fd)
        if head.startswith(b"HTTP/1.1 101"):
            if self.say[place]:
                self.socks[fd].send(self.say[place])
            return rest
        self.trouble.append(head[:100].decode("latin-1"))
        self._drop(fd)
        return b""

    def _frames(self, fd: int, data: bytes) -> bytes:
        """Whole frames; returns the bytes of one that is cut."""
        while len(data) >= 2:
            length, start = data[1], 2
            if length == 126:
                length, start = int.from_bytes(data[2:4], "big"), 4
            if len(data) < start + length:
                break
            payload = data[start : start + length]
            if data[0] == 0x89:
                self.pings += 1
                with contextlib.suppress(OSError):
                    self.socks[fd].send(PONG if not payload else b"\x8a%c\x00\x00\x00\x00%b" % (0x80 | length, payload))
            elif data[0] == 0x81:
                if payload.startswith(b"{"):
                    payload = payload.partition(b'"data":"')[2]
                word, _, at = payload.partition(b" ")
                if not at:
                    self.trouble.append(repr(payload[:40]))
                    data = data[start + length :]
                    continue
                self.told.setdefault(word.decode(), []).append(time.monotonic() - float(at.split(b" ", 1)[0]))
            else:
                self.trouble.append(f"frame {data[0]:x} {payload[:40]!r}")
            data = data[start + length :]
        return data

    def _drop(self, fd: int) -> None:
        self.lost += 1
        self.poll.unregister(fd)
        self.shaking.pop(fd, None)
        self.rest.pop(fd, None)
        self.socks.pop(fd).close()

    def open_all(self, count: int, rate: float) -> None:
        begin = time.monotonic()
        done = 0
        deadline = begin + count / rate + 60.0
        while time.monotonic() < deadline and (done < count or self.shaking):
            while done < count and time.monotonic() >= begin + done / rate:
                self.open()
                done += 1
                self.read(0)
            self.read(0.001)

    def line(self) -> str:
        """The next line of stdin; the clients are served meanwhile."""
        while not self.asked:
            self.read(0.5)
        line = sys.stdin.readline()
        self.asked = False
        with contextlib.suppress(FileExistsError):
            self.poll.register(0, select.EPOLLIN)
        return line

    def expect(self, word: str, seconds: float) -> dict[str, float]:
        until = time.monotonic() + seconds
        while len(self.told.get(word, ())) < len(self.socks) and time.monotonic() < until:
            self.read(0.05)
        ms = [value * 1e3 for value in self.told.get(word, ())]
        return {
            "told": len(ms),
            "p50_ms": quantile(ms, 0.5),
            "p99_ms": quantile(ms, 0.99),
            "max_ms": max(ms, default=0),
        }

    def counted(self) -> dict[str, object]:
        figures = {"open": len(self.socks), "lost": self.lost, "pings": self.pings, "trouble": self.trouble[:3]}
        self.pings = 0
        return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ports", type=int, nargs="+", required=True)
    parser.add_argument("--path", default="/ws")
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=1000.0, help="clients opened per second")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--say", nargs="*", default=[])
    given = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    holder = Holder(given.ports, given.path, given.first, given.say)
    holder.open_all(given.clients, given.rate)
    print(json.dumps(holder.counted()), flush=True)
    while line := holder.line():
        verb, *rest = line.split()
        if verb == "expect":
            print(json.dumps(holder.expect(rest[0], float(rest[1]))), flush=True)
        else:
            print(json.dumps(holder.counted()), flush=True)


if __name__ == "__main__":
    main()
