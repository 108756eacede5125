"""Held WebSocket clients on the data port: one lean `SocketConnection` each, and what they share.

A `ClientConnection` whose request asks for a WebSocket of the gateway's own is given up for a `SocketConnection` after
the 101: same transport, a fraction of the memory. What is said over it is a `Handler`'s business. Draining closes with
1012, spread over time, so that the clients don't all come back at once; one too many is closed with 1013.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

from unjam.gateway.intake import Intake
from unjam.gateway.socket_connection import FULL, Handler, SocketConnection
from unjam.gateway.timers import Wheel
from unjam.wire import frames, websocket
from unjam.wire.frames import FrameLimits

if TYPE_CHECKING:
    from unjam.gateway.client import ClientConnection
    from unjam.wire.request import RequestHead


class Sockets:
    """All held WebSocket clients of one gateway, and the figures they go by (seconds)."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        wheel: Wheel,
        *,
        limits: FrameLimits | None = None,
        most: int = 1 << 30,
        intake: Intake | None = None,
        clock: Callable[[], float] = monotonic,
        on_fault: Callable[[SocketConnection], None] = lambda connection: None,
        on_gone: Callable[[SocketConnection], None] = lambda connection: None,
    ) -> None:
        """`wheel` is turned by the owner, by the same `clock`. `most`: clients held at once; one more is closed with
        1013, as is whose message is too much for `intake`. `on_fault` is called in the `except` block of a handler that
        failed, `on_gone` for every connection that ended."""
        self.loop = loop
        self.wheel = wheel
        self.limits = limits if limits is not None else FrameLimits()
        self.most = most
        self.intake = intake if intake is not None else Intake()
        self.clock = clock
        self.on_fault = on_fault
        self.on_gone = on_gone
        self.held: set[SocketConnection] = set()
        self.draining = False
        #: A ping this often; how soon after it something must come; how long a client may have no room, a message be
        #: under way, and a goodbye go unanswered.
        self.ping_every = 30.0
        self.pong_within = 20.0
        self.stall = 30.0
        self.message_within = 60.0
        self.linger = 5.0
        #: Close code → clients we turned away or ended with it: for what they did, or for want of room; 0: no pong.
        self.closed_for: dict[int, int] = {}
        self._taken = 0

    def take(
        self,
        client: ClientConnection,
        head: RequestHead,
        make: Callable[[SocketConnection], Handler],
        *,
        subprotocol: bytes = b"",
        extra: bytes = b"",
    ) -> SocketConnection:
        """Answer 101 to the request under way on `client` and take its connection over; `client` is spent. `head` has
        passed `websocket.check_handshake`. `subprotocol`: one of those the client offered. `extra`: header lines,
        serialised. No extension is agreed on."""
        transport = client.transport
        early = client.hand_over()
        lines = [
            b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: ",
            websocket.accept_for(head.known[b"sec-websocket-key"]),
            b"\r\n",
        ]
        if subprotocol:
            lines.append(b"sec-websocket-protocol: %b\r\n" % subprotocol)
        lines += (extra, b"\r\n")
        transport.write(b"".join(lines))
        return self.adopt(transport, client.peer, make, early)

    def adopt(
        self,
        transport: asyncio.Transport,
        peer: str,
        make: Callable[[SocketConnection], Handler],
        early: bytes = b"",
    ) -> SocketConnection:
        """Serve a transport whose handshake is done. `early`: bytes that came behind it."""
        connection = SocketConnection(self, transport, peer)
        transport.set_protocol(connection)
        transport.set_write_buffer_limits(FULL)
        if not transport.is_closing():
            transport.resume_reading()
        full = self.draining or len(self.held) >= self.most
        self.held.add(connection)
        self._taken += 1
        if full:
            self.refused(frames.RESTART if self.draining else frames.TRY_LATER)
        # Spread those that come at once over half the interval, evenly whatever their number (golden ratio).
        share = 0.5 + (self._taken * 0.6180339887498949) % 1.0 / 2
        connection.begin(make(connection) if not full else Handler(), self.clock() + self.ping_every * share)
        if full:
            connection.close(
                frames.RESTART if self.draining else frames.TRY_LATER,
                "the gateway is stopping" if self.draining else "too many clients",
            )
        elif early:
            connection.data_received(early)
        return connection

    def drain(self, over: float) -> None:
        """Close all with 1012, evenly spread over `over` seconds; who comes now is closed at once."""
        self.draining = True
        now = self.clock()
        held = list(self.held)
        for number, connection in enumerate(held):
            connection.leave_at(now + over * number / len(held), now)

    def abort(self) -> None:
        for connection in list(self.held):
            connection.abort()

    def refused(self, code: int) -> None:
        self.closed_for[code] = self.closed_for.get(code, 0) + 1

    def forget(self, connection: SocketConnection) -> None:
        self.held.discard(connection)
        self.on_gone(connection)
