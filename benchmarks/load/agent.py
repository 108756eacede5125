"""An agent server that really works: each request burns the CPU seconds it asks for, and may hold memory meanwhile.

    python -m benchmarks.load.agent [--port 0] [--hold-mib 100] [--ballast-mib 400] [--space-mib 600]

`dur=0.4` in the body is CPU seconds of the thread that serves the request (not time on a clock: a crowded core makes
it last longer), burnt outside the interpreter's lock, so that requests share a core as processes do. With `--hold-mib`
a request for /audit takes that much memory, touches every page of it, and holds it for `dur` seconds without using the
CPU; the agent says so in a line of its own when it begins. `--ballast-mib` is held all the time; `--space-mib` bounds
the address space, and an agent that gets no memory then ends as if it were killed. One thread for each connection.
Prints one JSON line with its port. GET /log answers and forgets what was served: [nonce, arrived, ended] on the
monotonic clock. Everything else is answered at once, health checks too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import resource
import socketserver
import sys
import threading
import time
from typing import Any, BinaryIO

_SECONDS = re.compile(rb"dur=([0-9.]+)")
_NONCE = re.compile(rb"nonce-[0-9a-f]{16}")
#: About half a millisecond of hashing between two looks at the clock.
_ROUNDS = 700
_PAGE = 4096


def burn(seconds: float) -> None:
    """That much CPU time of this thread. The hash lets other threads run."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        hashlib.pbkdf2_hmac("sha256", b"agent", b"salt", _ROUNDS)


def taken(mib: int) -> bytearray:
    """`mib` MiB with every page touched. Ends this process when there is no more, as the kernel does where a control
    group is the limit."""
    try:
        block = bytearray(mib << 20)
    except MemoryError:
        os._exit(137)
    for at in range(0, len(block), _PAGE):
        block[at] = 1
    return block


def hold(mib: int, seconds: float) -> None:
    """Takes `mib` MiB for that long."""
    block = taken(mib)
    time.sleep(seconds)
    del block


class Log:
    """What was served: (nonce, arrived, ended)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._served: list[tuple[str, float, float]] = []

    def add(self, mark: str, arrived: float, ended: float) -> None:
        with self._lock:
            self._served.append((mark, arrived, ended))

    def take(self) -> list[tuple[str, float, float]]:
        with self._lock:
            served, self._served = self._served, []
        return served


def _read(stream: BinaryIO) -> tuple[bytes, bytes] | None:
    """(request line, body) of the next request; None at the end of the connection."""
    line = stream.readline(65536)
    if not line:
        return None
    length, chunked = 0, False
    while (field := stream.readline(65536)) not in (b"\r\n", b"\n", b""):
        name, _, value = field.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
        elif name.lower() == b"transfer-encoding":
            chunked = b"chunked" in value.lower()
    if not chunked:
        return line, stream.read(length) if length else b""
    body = b""
    while size := int(stream.readline(1024).split(b";")[0], 16):
        body += stream.read(size)
        stream.readline(1024)
    stream.readline(1024)
    return line, body


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 1024

    def __init__(self, port: int, hold_mib: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.hold_mib = hold_mib
        self.log = Log()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Balancers that go away break connections off; that is not worth a traceback."""


class Handler(socketserver.StreamRequestHandler):
    disable_nagle_algorithm = True
    server: Server

    def handle(self) -> None:
        while (got := _read(self.rfile)) is not None:
            arrived = time.monotonic()
            line, body = got
            seconds = _SECONDS.search(body)
            if seconds is not None:
                mark = _NONCE.search(body)
                nonce = mark[0].decode() if mark else ""
                if self.server.hold_mib and b" /audit" in line:
                    # In one piece: several requests begin at once, and a line's end must not follow another's line.
                    sys.stdout.write(json.dumps({"begun": nonce}) + "\n")
                    sys.stdout.flush()
                    hold(self.server.hold_mib, float(seconds[1]))
                else:
                    burn(float(seconds[1]))
                self._answer({"object": "chat.completion", "id": nonce, "choices": []})
                self.server.log.add(nonce, arrived, time.monotonic())
            elif line.startswith(b"GET /log "):
                self._answer(self.server.log.take())
            else:
                models = [{"id": "bench", "object": "model"}]
                self._answer({"object": "list", "data": models, "model_path": "bench"})

    def _answer(self, value: Any) -> None:
        body = json.dumps(value).encode()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        self.request.sendall(head + body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="0: any")
    parser.add_argument("--hold-mib", type=int, default=0)
    parser.add_argument("--ballast-mib", type=int, default=0)
    parser.add_argument("--space-mib", type=int, default=0, help="0: no bound")
    given = parser.parse_args()
    # Small stacks: address space is what may be bounded.
    threading.stack_size(256 * 1024)
    if given.space_mib:
        resource.setrlimit(resource.RLIMIT_AS, (given.space_mib << 20, given.space_mib << 20))
    ballast = taken(given.ballast_mib)
    with Server(given.port, given.hold_mib) as server:
        print(json.dumps({"port": server.socket.getsockname()[1]}), flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass
    del ballast


if __name__ == "__main__":
    main()

__all__ = ["Log", "Server", "burn", "hold"]
