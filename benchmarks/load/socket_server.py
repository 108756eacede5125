"""Servers that hold WebSocket clients at /ws and tell all of them a thing when asked with GET /broadcast?TEXT.

    python -m benchmarks.load.socket_server unjam --port 8080
    python -m benchmarks.load.socket_server websockets --port 8080

`unjam` is a gateway's way in and its held connections (listener, request parser, take-over, timer wheel, uvloop), with
a handler that does nothing. Runs until it is told to stop.
"""

from __future__ import annotations

import argparse
import asyncio
import http
import time
import urllib.parse
from random import Random
from typing import Any

import uvloop
from websockets.asyncio.server import ServerConnection, serve
from websockets.asyncio.server import broadcast as tell_all
from websockets.http11 import Request, Response

from unjam.config import from_urls
from unjam.gateway import descriptors, respond
from unjam.gateway.client import ClientConnection
from unjam.gateway.exchange import Exchange
from unjam.gateway.gateway import Gateway
from unjam.gateway.server import BACKLOG
from unjam.gateway.settings import Settings
from unjam.gateway.sockets import Handler, SocketConnection, Sockets, broadcast
from unjam.gateway.timers import TICK
from unjam.wire import websocket
from unjam.wire.request import RequestHead


class HoldingGateway(Gateway):
    def __init__(self, loop: asyncio.AbstractEventLoop, ping_every: float) -> None:
        super().__init__(loop, Settings.of(from_urls(["http://127.0.0.1:9"])), Random(1))
        self.sockets = Sockets(loop, self.wheel, on_gone=self._gone)
        self.sockets.ping_every = ping_every
        self.sockets.pong_within = min(self.sockets.pong_within, ping_every / 2)

    def route(self, client: ClientConnection, head: RequestHead, now: float) -> Exchange | None:
        if head.path == "/ws":
            websocket.check_handshake(head, None)
            self.sockets.take(client, head, _nothing)
        elif head.path == "/broadcast":
            late = broadcast(self.sockets.held, urllib.parse.unquote((head.query or b"").decode().lstrip("?")))
            client.transport.write(respond.text(200, b"%d late\n" % len(late)))
        else:
            return super().route(client, head, now)
        return None

    def _gone(self, connection: SocketConnection) -> None:
        self.descriptors -= 1
        self.stats.connections_open -= 1


def _nothing(connection: SocketConnection) -> Handler:
    return Handler()


async def unjam(port: int, ping_every: float) -> None:
    loop = asyncio.get_running_loop()
    gateway = HoldingGateway(loop, ping_every)

    def tick() -> None:
        loop.call_later(TICK, tick)
        gateway.tick()

    tick()
    server = await loop.create_server(lambda: ClientConnection(gateway, False), "127.0.0.1", port, backlog=BACKLOG)
    await server.serve_forever()


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
    parser.add_argument("kind", choices=["unjam", "websockets"])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--ping-every", type=float, default=30.0)
    given = parser.parse_args()
    descriptors.raise_limit()
    started = time.monotonic()
    try:
        uvloop.run({"unjam": unjam, "websockets": websockets}[given.kind](given.port, given.ping_every))
    except KeyboardInterrupt:
        print(f"stopped after {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
