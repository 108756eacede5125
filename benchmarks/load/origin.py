"""The origin behind the proxies: JSON answers at once, paced SSE streams, WebSocket echo, and what routers probe.

    python -m benchmarks.load.origin --ports 2 --rate 40

Prints one JSON line with its ports when it listens. One thread, epoll and plain sockets; a stream's events are spread
over a wheel of one-millisecond slots, so that streams don't all speak at once.
"""

from __future__ import annotations

import argparse
import json
import re
import select
import socket
import sys
import time

from .messages import AnswerMaker, chunk, find_nonce, sse_event, sse_head, websocket_accept

_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_STREAM = re.compile(rb'"stream": ?true')
_LIMIT = re.compile(rb'"max_(?:completion_)?tokens": ?(\d+)')
_KEY = re.compile(rb"(?i)\r\nsec-websocket-key: *([^\r]+)")

#: What the routers ask a worker before they trust it.
_INFO = {
    b"/health": b"{}",
    b"/healthz": b"{}",
    b"/v1/models": b'{"object":"list","data":[{"id":"bench","object":"model","created":17,"owned_by":"bench"}]}',
    b"/metrics": b"bench_up 1\n",
    b"/get_server_info": b'{"model_path":"bench","served_model_name":"bench","tp_size":1,"dp_size":1}',
    b"/server_info": b'{"model_path":"bench","served_model_name":"bench","tp_size":1,"dp_size":1}',
    b"/get_model_info": b'{"model_path":"bench","served_model_name":"bench","is_generation":true}',
    b"/model_info": b'{"model_path":"bench","served_model_name":"bench","is_generation":true}',
}


class Connection:
    __slots__ = ("fd", "left", "mark", "number", "pending", "send", "sock", "websocket")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.send = sock.send
        self.pending = b""
        self.websocket = False
        self.mark = b""
        self.number = 0
        self.left = -1


class Origin:
    def __init__(self, ports: int, rate: float, beat: bool, extra: bytes = b"") -> None:
        self.poll = select.epoll()
        self.connections: dict[int, Connection] = {}
        self.listeners: dict[int, socket.socket] = {}
        self.answers = AnswerMaker(extra)
        self.beat = beat
        self.wheel: list[list[Connection]] = [[] for _ in range(max(1, round(1000 / rate)))]
        self.cursor = 0
        self.slot = 0
        self.streams = 0
        for _ in range(ports):
            listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
            listener.setblocking(False)
            self.listeners[listener.fileno()] = listener
            self.poll.register(listener.fileno(), select.EPOLLIN)

    @property
    def ports(self) -> list[int]:
        return [s.getsockname()[1] for s in self.listeners.values()]

    def run(self) -> None:
        tick = time.monotonic()
        dated = tick
        listeners, connections = self.listeners, self.connections
        while True:
            wait = max(0.0, tick - time.monotonic()) if self.streams else 1.0
            for fd, _ in self.poll.poll(wait, 256):
                connection = connections.get(fd)
                if connection is not None:
                    self.readable(connection)
                elif fd in listeners:
                    self.accept(listeners[fd])
            now = time.monotonic()
            if now - dated > 1.0:
                dated = now
                self.answers.refresh()
            if not self.streams:
                tick = now
            # After a pause longer than 50 ms the missed slots are skipped: a burst would coalesce the events.
            tick = max(tick, now - 0.05)
            while tick <= now:
                tick += 0.001
                self.turn()

    def accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connections[sock.fileno()] = Connection(sock)
            self.poll.register(sock.fileno(), select.EPOLLIN)

    def close(self, connection: Connection) -> None:
        # The number may already belong to a later connection: a stream stays on the wheel until its turn.
        if self.connections.get(connection.fd) is connection:
            del self.connections[connection.fd]
            connection.left = 0
            connection.sock.close()

    def readable(self, c: Connection) -> None:
        try:
            data = c.sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close(c)
            return
        if c.websocket:
            self.echo(c, data)
            return
        if c.pending:
            data = c.pending + data
            c.pending = b""
        end = data.find(b"\r\n\r\n")
        if end < 0:
            c.pending = data
            return
        length = _LENGTH.search(data, 0, end + 2)
        if length is not None:
            if len(data) < end + 4 + int(length[1]):
                c.pending = data
                return
        elif b"chunked" in data[:end].lower() and not data.endswith(b"0\r\n\r\n"):
            c.pending = data
            return
        if data.startswith(b"POST"):
            if _STREAM.search(data, end):
                self.stream(c, data)
            else:
                c.send(self.answers.make(find_nonce(data)))
        else:
            self.get(c, data)

    def get(self, c: Connection, data: bytes) -> None:
        key = _KEY.search(data)
        if key is not None:
            c.websocket = True
            c.send(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: " + websocket_accept(key[1].strip()) + b"\r\n\r\n"
            )
            return
        body = _INFO.get(data.split(b" ", 2)[1].split(b"?")[0])
        status = b"200 OK" if body is not None else b"404 Not Found"
        kind = b"text/plain" if body is not None and not body.startswith(b"{") else b"application/json"
        body = body or b"{}"
        head = b"HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n" % (status, kind, len(body))
        c.send(head + (b"" if data.startswith(b"HEAD") else body))

    def stream(self, c: Connection, data: bytes) -> None:
        limit = _LIMIT.search(data)
        c.mark = find_nonce(data)
        c.number = 0
        c.left = int(limit[1]) if limit is not None else 1
        self.streams += 1
        c.send(sse_head())
        c.send(sse_event(c.mark, 0))
        c.left -= 1
        self.slot = (self.slot + 1) % len(self.wheel)
        # Neighbours in time land far apart on the wheel (a multiplier near the golden ratio of its length).
        step = round(len(self.wheel) * 0.618) | 1
        self.wheel[self.slot * step % len(self.wheel)].append(c)

    def turn(self) -> None:
        """One millisecond: the streams of this slot speak once."""
        self.cursor = (self.cursor + 1) % len(self.wheel)
        streams = self.wheel[self.cursor]
        if not streams:
            return
        ended = False
        for c in streams:
            try:
                if c.left > 0:
                    c.number += 1
                    c.left -= 1
                    c.send(chunk(b": still here\n\n") if self.beat else sse_event(c.mark, c.number))
                elif self.connections.get(c.fd) is c:
                    c.send(chunk(b"data: [DONE]\n\n"))
                    c.send(b"0\r\n\r\n")
                    ended = True
                    c.left = -1
                else:
                    ended = True
                    c.left = -1
            except BlockingIOError:
                pass  # it reads slowly: it misses one
            except OSError:
                self.close(c)
        if ended:
            self.streams -= sum(1 for c in streams if c.left < 0)
            self.wheel[self.cursor] = [c for c in streams if c.left >= 0]

    def echo(self, c: Connection, data: bytes) -> None:
        """Short masked text frames come back unmasked; any other frame closes the connection."""
        data = c.pending + data
        at = 0
        out = b""
        while len(data) - at >= 6:
            n = data[at + 1] & 0x7F
            if data[at] != 0x81 or n > 125:
                self.close(c)
                return
            if len(data) - at < 6 + n:
                break
            pad = (data[at + 2 : at + 6] * (n // 4 + 1))[:n]
            plain = int.from_bytes(data[at + 6 : at + 6 + n]) ^ int.from_bytes(pad)
            out += bytes((0x81, n)) + plain.to_bytes(n)
            at += 6 + n
        c.pending = data[at:]
        if out:
            c.send(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ports", type=int, default=2, help="listening ports, one for each endpoint")
    parser.add_argument("--rate", type=float, default=40.0, help="events per second and stream")
    parser.add_argument("--beat", action="store_true", help="after the first event, send comments only")
    parser.add_argument("--field", default="", help="one more field of JSON answers, `name: value`")
    given = parser.parse_args()
    extra = f"{given.field}\r\n".encode() if given.field else b""
    origin = Origin(given.ports, given.rate, given.beat, extra)
    print(json.dumps({"ports": origin.ports}), flush=True)
    try:
        origin.run()
    except KeyboardInterrupt:
        sys.exit(0)


if __name__ == "__main__":
    main()
