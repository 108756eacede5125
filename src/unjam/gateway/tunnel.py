"""How an exchange becomes a WebSocket tunnel: bytes pass through, both ways, until one side closes (RFC 6455)."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from unjam.gateway import heads, loads, respond
from unjam.gateway.states import TUNNELLING
from unjam.gateway.upstream import TUNNEL
from unjam.wire import websocket
from unjam.wire.errors import Malformed

if TYPE_CHECKING:
    from unjam.gateway.exchange import Exchange
    from unjam.wire.http1 import ResponseHead


def begin(exchange: Exchange, head: ResponseHead, rest: bytes) -> None:
    """The endpoint said 101, and `rest` behind it: go on as a tunnel, if that was asked for and the endpoint really
    agreed (RFC 6455 §4.1)."""
    key = exchange.head.known.get(b"sec-websocket-key", b"")
    if exchange.head.upgrade != "websocket" or not websocket.check_accept(head, key):
        exchange.bad_answer(Malformed("unasked_101", "endpoint"))
        return
    connection = exchange.upstream
    assert connection is not None
    assert exchange.lease is not None
    client = exchange.client
    connection.mode = TUNNEL
    exchange.state = TUNNELLING
    exchange.status = 101
    exchange.first_byte = exchange.last = monotonic()
    if not loads.PRESENT.isdisjoint(head.known):
        loads.said(connection.upstream, head.known, exchange.last)
    lines = [respond.status_line(101), *head.forward, b"Connection: Upgrade\r\nUpgrade: websocket\r\n"]
    lines += [heads.markers(exchange), b"\r\n"]
    client.gateway.stats.tunnels_open += 1
    exchange.forget_heads()
    client.transport.write(b"".join(lines) + rest)
    exchange.bytes_out += len(rest)
    client.start_tunnel()
    client.look(exchange.last + exchange.timeouts().idle)
