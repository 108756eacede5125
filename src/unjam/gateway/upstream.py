"""The endpoint side: one `Upstream` per endpoint with its idle connections, one `UpstreamConnection` per socket.

A connection carries one request at a time. It decodes the endpoint's framing and hands heads and payloads to the
`Asker`, which owns every decision; it goes back to the pool only after an answer that ended exactly where its framing
said (RFC 9112 §9.3, §6.3).
"""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from unjam.gateway.loads import Said
from unjam.gateway.states import Unwanted
from unjam.wire.errors import Malformed
from unjam.wire.http1 import RESPONSE_LIMITS, ChunkedReader, ResponseReader

if TYPE_CHECKING:
    from unjam.core.endpoint import Endpoint
    from unjam.gateway.gateway import Gateway
    from unjam.wire.http1 import ResponseHead

#: What the next bytes from the endpoint are.
IDLE, HEAD, LENGTH, CHUNKED, CLOSE, TUNNEL, DEAD = range(7)

#: Bytes queued to an endpoint before its client is asked to wait.
WRITE_HIGH = 65536

#: Seconds that an endpoint may take to read the last of what was sent to it.
FLUSH = 10.0

#: Idle connections kept for one endpoint, and for how many seconds: less than the 60 s after which servers hang up.
MAX_IDLE = 256
IDLE_SECONDS = 45.0


class _Head(Protocol):
    @property
    def method(self) -> str: ...


class Reading(Protocol):
    """Where the request comes from, which can be told to wait."""

    def hold_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


class Asker(Protocol):
    """Whose request a connection carries: a client's exchange, a pushed run, a probe."""

    @property
    def head(self) -> _Head: ...

    @property
    def client(self) -> Reading: ...

    @property
    def last(self) -> float:
        """When something came last, monotonic seconds."""

    def on_interim(self, head: ResponseHead) -> None:
        """An informational answer, other than 101, has come before the real one."""

    def on_switch(self, head: ResponseHead, rest: bytes) -> None:
        """The endpoint switches protocols. `rest`: the bytes behind its 101."""

    def on_head(self, head: ResponseHead, kind: str, payload: bytes) -> None:
        """The answer begins, its body framed as `kind` says (`ResponseHead.body`); `payload`: as much as is here.
        Raises Unwanted."""

    def on_body(self, payload: bytes) -> None: ...

    def on_end(self, reusable: bool, now: float = 0.0) -> None:
        """The answer is whole; who asked gives the connection back, by `release` or `close`."""

    def on_lost(self, error: Exception | None) -> None:
        """The connection went away before the answer was whole."""

    def bad_answer(self, error: Malformed) -> None:
        """What came is not valid HTTP."""


class Connecting(Asker, Protocol):
    """One for whom a connection is opened."""

    def connected(self, connection: UpstreamConnection) -> bool:
        """The connection is open. False: it is not wanted any more."""

    def connect_failed(self, upstream: Upstream, error: Exception) -> None: ...


class Upstream:
    """Where one endpoint is and how to reach it. `Endpoint.shell` points here."""

    __slots__ = (
        "authority",
        "connections",
        "endpoint",
        "gateway",
        "host",
        "host_line",
        "idle",
        "load",
        "markers",
        "port",
        "prompt",
        "server_name",
        "tls",
        "unix_path",
    )

    def __init__(
        self, gateway: Gateway, endpoint: Endpoint, tls: ssl.SSLContext | None, server_name: str | None
    ) -> None:
        self.gateway = gateway
        self.endpoint = endpoint
        self.tls = tls
        self.idle: list[UpstreamConnection] = []
        self.connections = 0
        self.load = Said()
        url = endpoint.url
        self.unix_path: str | None = None
        self.host = "localhost"
        self.port = 0
        if url.startswith("unix:"):
            self.unix_path = url.removeprefix("unix:")
            self.authority = b"localhost"
        else:
            parts = urlsplit(url)
            self.host = parts.hostname or ""
            self.port = parts.port or (443 if parts.scheme == "https" else 80)
            self.authority = parts.netloc.encode("ascii")
        self.server_name = server_name or self.host
        self.host_line = b"Host: %b\r\n" % self.authority
        version = endpoint.pool.version
        #: The x-unjam-* lines by lane; `prompt`: those of a request that didn't wait.
        self.markers = tuple(
            f"x-unjam-endpoint: {endpoint.name}\r\nx-unjam-version: {version.name}\r\nx-unjam-lane: {lane}\r\n".encode()
            for lane in ("fast", "heavy")
        )
        self.prompt = tuple(lines + b"x-unjam-queued-ms: 0\r\n" for lines in self.markers)

    def acquire(self) -> UpstreamConnection | None:
        """An idle connection, the warmest first; None when one must be opened."""
        idle = self.idle
        while idle:
            connection = idle.pop()
            if connection.mode == IDLE:
                self.gateway.stats.upstream_reuses += 1
                return connection
        return None

    def connect(self, asker: Connecting, timeout: float) -> None:
        """Open a connection for `asker`, which is told by `connected` or `connect_failed`."""
        self.gateway.spawn(self._connect(asker, timeout))

    async def _connect(self, asker: Connecting, timeout: float) -> None:
        try:
            connection = await self.open(timeout)
        except (OSError, ssl.SSLError, TimeoutError, ValueError) as error:  # ValueError: a name that IDNA refuses
            self.gateway.stats.upstream_connect_failures += 1
            asker.connect_failed(self, error)
            return
        if not asker.connected(connection):
            connection.release()  # its client left meanwhile; the connection is good

    async def open(self, timeout: float) -> UpstreamConnection:
        """Raises OSError, ssl.SSLError, TimeoutError."""
        loop = self.gateway.loop
        async with asyncio.timeout(timeout):
            connection = UpstreamConnection(self)
            if self.unix_path is not None:
                await loop.create_unix_connection(lambda: connection, self.unix_path)
            elif self.tls is not None:
                await loop.create_connection(
                    lambda: connection, self.host, self.port, ssl=self.tls, server_hostname=self.server_name
                )
            else:
                await loop.create_connection(lambda: connection, self.host, self.port)
        self.gateway.stats.upstream_connects += 1
        if connection.mode != IDLE:
            raise ConnectionResetError("the endpoint accepted the connection and closed it at once")
        return connection

    def expire(self, now: float) -> None:
        """Close what has been idle for long; called about once a second."""
        idle = self.idle
        while idle and (idle[0].mode != IDLE or now - idle[0].idle_since > IDLE_SECONDS):
            connection = idle.pop(0)
            if connection.mode == IDLE:
                connection.close()

    def close(self) -> None:
        """Close what is idle. Busy connections end with their exchanges."""
        while self.idle:
            self.idle.pop().close()


class UpstreamConnection(asyncio.Protocol):
    __slots__ = (
        "chunks",
        "exchange",
        "idle_since",
        "keep",
        "left",
        "mode",
        "paused",
        "reader",
        "transport",
        "upstream",
        "used",
    )

    transport: asyncio.Transport

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.exchange: Asker | None = None
        self.reader = ResponseReader()
        self.chunks: ChunkedReader | None = None
        self.mode = IDLE
        self.left = 0
        self.idle_since = 0.0
        self.keep = True
        self.used = False
        self.paused = False

    # -- asyncio.Protocol ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.transport.set_write_buffer_limits(WRITE_HIGH)
        self.upstream.connections += 1
        self.upstream.gateway.descriptors += 1

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is None:
            self.upstream.gateway.stats.upstream_discarded += 1
            self.abort()  # bytes that nobody asked for: this connection can't be trusted again
            return
        mode = self.mode
        if mode == HEAD:
            try:
                self._head(exchange, data)
            except Malformed as error:
                exchange.bad_answer(error)
            except Unwanted:
                pass  # the exchange has gone elsewhere
        elif mode == LENGTH:
            left = self.left - len(data)
            if left > 0:
                self.left = left
                exchange.on_body(data)
            else:
                exchange.on_body(data if left == 0 else data[: self.left])
                exchange.on_end(left == 0 and self.keep)
        elif mode == CHUNKED:
            try:
                self._chunks(exchange, data)
            except Malformed as error:
                exchange.bad_answer(error)
        else:  # CLOSE, TUNNEL
            exchange.on_body(data)

    def eof_received(self) -> bool:
        if self.exchange is None:
            self.mode = CLOSE  # `acquire` must not hand it out in the moment before `connection_lost`
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.upstream.connections -= 1
        self.upstream.gateway.descriptors -= 1
        mode, self.mode = self.mode, DEAD
        exchange, self.exchange = self.exchange, None
        if exchange is None:
            if self in self.upstream.idle:
                self.upstream.idle.remove(self)
        elif mode == TUNNEL or (mode == CLOSE and error is None):
            exchange.on_end(False)
        else:
            exchange.on_lost(error)

    def pause_writing(self) -> None:
        if self.exchange is not None:
            self.exchange.client.hold_reading()

    def resume_writing(self) -> None:
        if self.exchange is not None:
            self.exchange.client.resume_reading()

    # -- decoding --------------------------------------------------------------------------------------------------

    def _head(self, exchange: Asker, data: bytes) -> None:
        reader = self.reader
        head = reader.feed(data)
        while head is not None and head.status < 200:
            if head.status == 101:
                exchange.on_switch(head, reader.rest)
                return
            exchange.on_interim(head)
            if self.mode != HEAD:
                return
            head = reader.feed(reader.rest)
        if head is None:
            return
        kind = head.body(exchange.head.method)
        self.keep = head.keep_alive
        rest = reader.rest
        if kind == "length":
            length = head.length or 0
            left = length - len(rest)
            if left > 0:
                self.mode = LENGTH
                self.left = left
                exchange.on_head(head, kind, rest)
            else:
                exchange.on_head(head, kind, rest if left == 0 else rest[:length])
                exchange.on_end(left == 0 and head.keep_alive, exchange.last)
        elif kind == "none":
            exchange.on_head(head, kind, b"")
            # An endpoint that announces a body here may send it, late, into somebody else's answer.
            exchange.on_end(not rest and head.keep_alive and not head.length and not head.chunked)
        elif kind == "chunked":
            self.mode = CHUNKED
            if self.chunks is None:
                self.chunks = ChunkedReader(RESPONSE_LIMITS, "endpoint")
            else:
                self.chunks.reset()
            exchange.on_head(head, kind, b"")
            if rest:
                self._chunks(exchange, rest)
        else:
            self.mode = CLOSE
            exchange.on_head(head, kind, rest)

    def _chunks(self, exchange: Asker, data: bytes) -> None:
        chunks = self.chunks
        assert chunks is not None
        pieces = chunks.feed(data)
        if pieces:
            exchange.on_body(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if chunks.done:
            exchange.on_end(self.keep and not chunks.rest)

    # -- life ----------------------------------------------------------------------------------------------------

    def hold_reading(self) -> None:
        if not self.transport.is_closing():
            self.paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if not self.transport.is_closing():
            self.paused = False
            self.transport.resume_reading()

    def release(self) -> None:
        """Give the connection back to the pool."""
        self.exchange = None
        upstream = self.upstream
        endpoint = upstream.endpoint
        if (
            self.transport.is_closing()
            or len(upstream.idle) >= MAX_IDLE
            or endpoint.draining
            or endpoint.shell is not upstream
            or self.transport.get_write_buffer_size()  # it answered without reading on: so it may go on
        ):
            self.close()
            return
        if self.paused:  # its client was behind when the last byte came
            self.resume_reading()
        self.mode = IDLE
        self.used = True
        self.idle_since = upstream.gateway.now
        upstream.idle.append(self)

    def close(self) -> None:
        """Flush for a few seconds at the most, then close."""
        self.exchange = None
        if self.mode != DEAD:
            self.mode = CLOSE
            if self.transport.get_write_buffer_size():
                self.upstream.gateway.loop.call_later(FLUSH, self.abort)
            self.transport.close()

    def abort(self) -> None:
        """Close at once: the endpoint sees the cancel."""
        self.exchange = None
        if self.mode != DEAD:
            self.mode = CLOSE
            self.transport.abort()
