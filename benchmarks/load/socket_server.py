"""A `websockets` server that holds clients at /ws and tells all of them a thing when asked with GET /broadcast?TEXT.

    python -m benchmarks.load.socket_server websockets --port 8080

Runs until it is told to stop.
"""

from __future__ import annotations

import argparse
import http
import time
import urllib.parse
from typing import Any

import uvloop
from websockets.asyncio.server import ServerConnection, serve
from websockets.asyncio.server import broadcast as tell_all
from websockets.http11 import Request, Response

from unjam.gateway import descriptors
from unjam.gateway.listeners import BACKLOG


async def websockets(port: int, ping_every: float) -> None:
    held: set[ServerConnection] = set()

    async def hold(connection: ServerConnection) -> None:
        held.add(connection)
        await connection.wait_closed()
        held.discard(connection)

    def answer(connection: ServerConnection, request: Request) -> Response | None:
        if request.path == "/ws":
            return None
        path, _, message = request.path.partition("?")
        if path == "/broadcast":
            tell_all(held, urllib.parse.unquote(message))
        return connection.respond(http.HTTPStatus.OK, "ok\n")

    options: dict[str, Any] = {"compression": None, "ping_interval": ping_every, "process_request": answer}
    async with serve(hold, "127.0.0.1", port, backlog=BACKLOG, **options) as server:
        await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["websockets"])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--ping-every", type=float, default=30.0)
    given = parser.parse_args()
    descriptors.raise_limit()
    started = time.monotonic()
    try:
        uvloop.run(websockets(given.port, given.ping_every))
    except KeyboardInterrupt:
        print(f"stopped after {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
