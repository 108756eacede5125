"""A gateway that answers /ws itself, with an echo over a `SocketConnection`, and a client of raw frames, for tests.

The sockets' clock and wheel are the test's own: `Held.later` lets time pass.
"""

from __future__ import annotations

import asyncio
import base64
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

from unjam.config import from_urls
from unjam.gateway.client import ClientConnection
from unjam.gateway.exchange import Exchange
from unjam.gateway.gateway import Gateway
from unjam.gateway.settings import Settings
from unjam.gateway.socket_connection import Handler, SocketConnection
from unjam.gateway.sockets import Sockets
from unjam.gateway.timers import TICK, Wheel
from unjam.wire import frames, websocket
from unjam.wire.frames import FrameLimits
from unjam.wire.request import RequestHead

from .harness import PATIENCE, until

KEY = base64.b64encode(b"0123456789abcdef").decode()
HANDSHAKE = (
    "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n"
)
LIMITS = FrameLimits(message=100_000, fragments=16)


class Echo(Handler):
    """Says what it is told; what it has no room for it says when there is."""

    def __init__(self, connection: SocketConnection) -> None:
        self.connection = connection
        self.heard: list[str] = []
        self.owed: list[bytes] = []
        self.closed = 0
        self.drained: list[float] = []

    def on_message(self, text: str) -> None:
        self.heard.append(text)
        if text == "fail":
            raise ZeroDivisionError
        if text.startswith("close "):
            self.connection.close(int(text[6:]), "as you wish")
            return
        self.say(text)

    def say(self, text: str) -> None:
        self.owed.append(frames.text(text))
        self.on_writable()

    def on_writable(self) -> None:
        while self.owed and self.connection.send(self.owed[0]):
            del self.owed[0]

    def on_drain(self, seconds: float) -> None:
        self.drained.append(seconds)

    def on_closed(self) -> None:
        self.closed += 1


class Held(Gateway):
    """`now`: what its sockets take for the time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, origins: tuple[str, ...] | None, most: int) -> None:
        super().__init__(loop, Settings.of(from_urls(["http://127.0.0.1:9"])), Random(1))
        self.time = 1000.0
        self.handlers: list[Echo] = []
        self.faults: list[SocketConnection] = []
        self.origins = origins
        self.socket_wheel = Wheel(self.time)
        self.sockets = Sockets(
            loop,
            self.socket_wheel,
            limits=LIMITS,
            most=most,
            clock=lambda: self.time,
            on_fault=self.faults.append,
            on_gone=self._gone,
        )
        self.port = 0

    def route(self, client: ClientConnection, head: RequestHead, now: float) -> Exchange | None:
        if head.path != "/ws":
            return super().route(client, head, now)
        websocket.check_handshake(head, self.origins)
        self.sockets.take(client, head, self._handler)
        return None

    def _handler(self, connection: SocketConnection) -> Echo:
        handler = Echo(connection)
        self.handlers.append(handler)
        return handler

    def _gone(self, connection: SocketConnection) -> None:
        self.descriptors -= 1
        self.stats.connections_open -= 1

    async def later(self, seconds: float) -> None:
        """Let this much time pass for the sockets, tick by tick; and what was sent meanwhile arrive."""
        end = self.time + seconds
        while self.time < end:
            self.time = min(end, self.time + TICK)
            self.socket_wheel.turn(self.time, lambda timed: self.faults.append(timed))
        for _ in range(5):
            await asyncio.sleep(0)


class Client:
    """Raw frames out, events in. It answers nothing by itself."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(
        cls, port: int, headers: str = "", early: bytes = b"", small: bool = False, path: str = "/ws"
    ) -> Client:
        """`small`: with little room in its kernel, and in our reader, for what it does not read."""
        sock = socket.socket()
        if small:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        reader, writer = await asyncio.open_connection(sock=sock, limit=4096 if small else 1 << 20)
        writer.write((HANDSHAKE.replace("/ws", path) + headers + "\r\n").encode() + early)
        client = cls(reader, writer)
        client.head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
        return client

    head = b""

    async def send(self, *raw: bytes) -> None:
        self.writer.write(b"".join(raw))
        await self.writer.drain()

    async def frame(self) -> tuple[int, bytes]:
        """The next frame: its first byte and its payload. asyncio.IncompleteReadError at the end."""
        async with asyncio.timeout(PATIENCE):
            first, length = await self.reader.readexactly(2)
            assert length < 0x80, "a server masks nothing"
            if length == 126:
                length = int.from_bytes(await self.reader.readexactly(2), "big")
            payload = b""
            while len(payload) < length:
                payload += await self.reader.readexactly(min(4000, length - len(payload)))
            return first, payload

    async def message(self) -> str:
        """The next text message; control frames between are an error."""
        first, payload = await self.frame()
        assert first & 0x7F == frames.TEXT, hex(first)
        while not first & 0x80:
            first, more = await self.frame()
            assert first & 0x7F == frames.CONTINUATION, hex(first)
            payload += more
        return payload.decode()

    async def closed(self) -> tuple[int, bool]:
        """The code of the close frame that comes next, and whether the connection then ends without a reset."""
        first, payload = await self.frame()
        assert first == 0x88, hex(first)
        code = int.from_bytes(payload[:2], "big") if payload else frames.NO_CODE
        return code, await self.ended()

    async def ended(self) -> bool:
        """Whether it ends without a reset, and without another byte."""
        try:
            assert await asyncio.wait_for(self.reader.read(1), PATIENCE) == b""
        except ConnectionResetError:
            return False
        return True

    def hang_up(self) -> None:
        self.writer.transport.abort()

    reset = hang_up


def masked(first: int, payload: bytes = b"", mask: bytes = b"mask") -> bytes:
    """One frame of a client's."""
    size = len(payload)
    if size < 126:
        length = bytes([0x80 | size])
    elif size < 65536:
        length = b"\xfe" + size.to_bytes(2, "big")
    else:
        length = b"\xff" + size.to_bytes(8, "big")
    return bytes([first]) + length + mask + frames.unmask(mask, payload)


def text(message: str) -> bytes:
    return masked(0x81, message.encode())


PONG = masked(0x8A)


class Made:
    """A running `Held` and its clients."""

    def __init__(self, gateway: Held) -> None:
        self.gateway = gateway
        self.clients: list[Client] = []

    async def connect(self, **options: Any) -> tuple[Client, Echo]:
        before = len(self.gateway.handlers)
        client = await Client.connect(self.gateway.port, **options)
        self.clients.append(client)
        return client, self.gateway.handlers[before]

    async def open(self) -> Client:
        """One that is not served."""
        client = await Client.connect(self.gateway.port)
        self.clients.append(client)
        return client

    async def empty(self) -> None:
        await until(lambda: not self.gateway.sockets.held)


@asynccontextmanager
async def held(
    origins: tuple[str, ...] | None = None, most: int = 1000, ready: Callable[[Held], None] = lambda gateway: None
) -> AsyncIterator[Made]:
    loop = asyncio.get_running_loop()
    gateway = Held(loop, origins, most)
    ready(gateway)
    server = await loop.create_server(lambda: ClientConnection(gateway, False), "127.0.0.1", 0)
    gateway.port = server.sockets[0].getsockname()[1]
    made = Made(gateway)
    try:
        yield made
    finally:
        for client in made.clients:
            client.hang_up()
        gateway.sockets.abort()
        for left in list(gateway.clients):
            left.transport.abort()
        server.close()
        await made.empty()
        await until(lambda: not gateway.clients)
