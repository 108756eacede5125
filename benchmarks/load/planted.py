"""An endpoint that fails as often as it is told to, by a seed.

    python -m benchmarks.load.planted --port 9001

`GET /plant?rate=0.1&seed=7&how=error` (on the endpoint itself) says how from now on: each further request fails with
probability `rate`, drawn by `random.Random(seed)`: with 500 (`how=error`), or with 200 and `x-unjam-verdict: bad`
(`how=verdict`). Answers with how many calls it was sent since the last time, and how many of them failed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from collections.abc import Callable
from functools import partial
from urllib.parse import parse_qsl

_BODY = b'{"answer": 42}'
_FIELDS = b"content-type: application/json\r\ncontent-length: %d\r\n" % len(_BODY)
GOOD = b"HTTP/1.1 200 OK\r\n%b\r\n%b" % (_FIELDS, _BODY)
ERROR = b"HTTP/1.1 500 Internal Server Error\r\n%b\r\n%b" % (_FIELDS, _BODY)
REJECTED = b"HTTP/1.1 200 OK\r\nx-unjam-verdict: bad; it made up a source\r\n%b\r\n%b" % (_FIELDS, _BODY)


class Plan:
    """What goes wrong. Of the process: all connections draw from one sequence."""

    def __init__(self) -> None:
        self.set(0.0, 0, "error")

    def set(self, rate: float, seed: int, how: str) -> None:
        self.rate = rate
        self.draw = random.Random(seed).random
        self.bad = REJECTED if how == "verdict" else ERROR
        self.calls = 0
        self.failures = 0

    def answer(self) -> bytes:
        self.calls += 1
        if self.draw() >= self.rate:
            return GOOD
        self.failures += 1
        return self.bad


class Endpoint(asyncio.Protocol):
    """GET requests without bodies, which is all that the benchmark sends."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        *heads, self.rest = (self.rest + data).split(b"\r\n\r\n")
        for head in heads:
            path, _, query = head.split(b" ", 2)[1].decode().partition("?")
            self.transport.write(self.plant(query) if path == "/plant" else self.plan.answer())

    def plant(self, query: str) -> bytes:
        given = dict(parse_qsl(query))
        body = json.dumps({"calls": self.plan.calls, "failures": self.plan.failures}).encode()
        if given:
            self.plan.set(float(given["rate"]), int(given["seed"]), given["how"])
        return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


async def serve(port: int, endpoint: Callable[[], asyncio.Protocol]) -> None:
    server = await asyncio.get_running_loop().create_server(endpoint, "127.0.0.1", port)
    await server.serve_forever()


def main(about: str | None, endpoint: Callable[[], asyncio.Protocol]) -> None:
    """The program: serves each connection with a new `endpoint` until it is killed."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    asyncio.run(serve(parser.parse_args().port, endpoint))


if __name__ == "__main__":
    main(__doc__, partial(Endpoint, Plan()))
