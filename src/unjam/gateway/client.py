"""The client side: one `ClientConnection` per socket. Parses requests, answers them in order, relays bodies.

One exchange is under way at a time; what a pipelining client sends meanwhile waits in `inbox` (RFC 9112 §9.3.2),
bounded by pausing the socket. Anything malformed is answered once and nothing after it is parsed.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING

from unjam.gateway import closing, limits, respond
from unjam.gateway.exchange import Exchange
from unjam.gateway.states import AHEAD, BODY, CHUNKS, CLOSED, DISCARDING, GONE, HEADS, INSPECTING, TUNNEL
from unjam.gateway.timers import NEVER
from unjam.wire import sse
from unjam.wire.errors import Malformed
from unjam.wire.http1 import ChunkedReader, RequestHead, RequestReader

if TYPE_CHECKING:
    from unjam.gateway.gateway import Gateway

#: Bytes queued to a client before its endpoint is asked to wait.
WRITE_HIGH = 65536

#: Bytes a client may send ahead of its answer before its socket is paused.
INBOX = 65536


class ClientConnection(asyncio.Protocol):
    __slots__ = (
        "_forwarded",
        "_forwarded_for",
        "_trusted",
        "chunks",
        "close_by",
        "cut",
        "discard_left",
        "due",
        "exchange",
        "framed",
        "gateway",
        "head_since",
        "inbox",
        "keep_alive",
        "last_read",
        "left",
        "mode",
        "peer",
        "pumping",
        "read_paused",
        "reader",
        "secure",
        "stalled_for",
        "stalled_since",
        "transport",
        "write_paused",
    )

    transport: asyncio.Transport

    def __init__(self, gateway: Gateway, secure: bool) -> None:
        self.gateway = gateway
        self.secure = secure
        self.peer = ""
        self.reader = RequestReader(gateway.settings.wire_limits)
        self.exchange: Exchange | None = None
        self.mode = HEADS
        self.inbox = b""
        self.left = 0
        self.chunks: ChunkedReader | None = None
        self.keep_alive = True
        #: The answer was broken off: the connection must not end cleanly.
        self.cut = False
        self.pumping = False
        self.read_paused = False
        self.write_paused = False
        self.stalled_since = 0.0
        #: Seconds, without the stall under way; of the exchange in which it last stalled.
        self.stalled_for = 0.0
        self.head_since = 0.0
        self.last_read = 0.0
        self.discard_left = 0
        #: When a connection that is being closed is given up on.
        self.close_by = 0.0
        #: The answer under way has a length or chunks: one that breaks off can be told from one that ended.
        self.framed = True
        self.due = NEVER
        self._forwarded = b""
        self._forwarded_for: bytes | None = None
        self._trusted = False

    # -- asyncio.Protocol ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        gateway = self.gateway
        gateway.descriptors += 1
        gateway.clients.add(self)
        stats = gateway.stats
        stats.connections_total += 1
        stats.connections_open += 1
        peer = transport.get_extra_info("peername")
        self.peer = peer[0] if peer and isinstance(peer, tuple) else "unix"
        self.last_read = monotonic()
        full = gateway.full()
        if full:
            stats.connections_refused += 1
            self.mode = CLOSED
            self.transport.write(
                respond.error(503, full, "The gateway has no room for another connection.", retry_after=5, close=True)
            )
            self.transport.close()
            return
        self.transport.set_write_buffer_limits(WRITE_HIGH)
        settings = gateway.settings
        gateway.wheel.at(self, self.last_read + min(settings.header_timeout, settings.keepalive))

    def data_received(self, data: bytes) -> None:
        mode = self.mode
        if mode == HEADS:
            self._pump(data)
        elif mode == AHEAD:
            self.inbox += data
            if len(self.inbox) > INBOX:
                self.hold_reading()
        elif mode == TUNNEL:
            self._tunnel(data)
        elif mode in (BODY, CHUNKS):
            self._body(data)
        elif mode == DISCARDING:
            self.discard_left -= len(data)
            if self.discard_left < 0:
                self.transport.abort()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.mode = GONE
        gateway = self.gateway
        gateway.descriptors -= 1
        gateway.clients.discard(self)
        gateway.stats.connections_open -= 1
        exchange = self.exchange
        if exchange is not None:
            exchange.client_gone()
            self.exchange = None
        # The wheel may hold it for a while yet: let go of what takes memory.
        self.reader.forget()
        self.chunks = None
        self.inbox = self._forwarded = b""

    def pause_writing(self) -> None:
        exchange = self.exchange
        if exchange is not None and self.stalled_since < exchange.arrived:
            self.stalled_for = 0.0
        self.write_paused = True
        self.stalled_since = monotonic()
        self.look(self.stalled_since + self.gateway.settings.stall_timeout)
        if exchange is not None and exchange.upstream is not None:
            exchange.upstream.hold_reading()

    def resume_writing(self) -> None:
        self.write_paused = False
        self.stalled_for += monotonic() - self.stalled_since
        exchange = self.exchange
        if exchange is None:
            if self.mode == AHEAD:  # its last answer has gone out far enough to make another
                self._after_answer(True)
        elif exchange.upstream is not None:
            exchange.upstream.resume_reading()
            exchange.last = monotonic()

    # -- requests --------------------------------------------------------------------------------------------------

    def _pump(self, data: bytes) -> None:
        """Parse and start requests until one is under way or the bytes run out."""
        self.pumping = True
        reader = self.reader
        try:
            while data:
                head = reader.feed(data)
                if head is None:
                    if not self.head_since and reader.pending:  # not for an empty line that strayed in
                        self.head_since = monotonic()
                        self.look(self.head_since + self.gateway.settings.header_timeout)
                    break
                self.head_since = 0.0
                data = reader.rest
                self.keep_alive = head.keep_alive and not self.gateway.draining
                self._start(head, data)
                if self.mode != HEADS:
                    break
                data = self.inbox
                self.inbox = b""
        except Malformed as error:
            self._reject(error)
        except Exception:  # noqa: BLE001 - this may run inside the end of another exchange, or the tick: it stays here
            self.gateway.fault(self)
        finally:
            self.pumping = False

    def _start(self, head: RequestHead, rest: bytes) -> None:
        """Take in one request: frame its body, find its service, offer it. `rest`: the bytes after the head."""
        now = monotonic()
        gateway = self.gateway
        length = head.length
        if head.chunked:
            self.chunks = ChunkedReader(gateway.settings.wire_limits)
            self.mode = CHUNKS
        elif length:
            if length > gateway.settings.max_body:
                raise Malformed("body_too_large")
            self.mode = BODY
            self.left = length
        else:
            self.mode = AHEAD
            self.inbox = rest
        exchange = gateway.route(self, head, now)
        if exchange is None:  # answered already
            if self.mode == GONE:  # and the connection has another owner now
                return
            body_done = self.mode == AHEAD
            self._after_answer(body_done)
            if not body_done and rest:
                self.data_received(rest)
            return
        self.exchange = exchange
        if self.mode == AHEAD:
            exchange.offer(now)
            return
        exchange.body_done = False
        if self.mode == BODY and len(rest) >= self.left:  # the common case: head and body in one segment
            body, self.inbox = (rest, b"") if len(rest) == self.left else (rest[: self.left], rest[self.left :])
            self.mode = AHEAD
            exchange.body.append(body)
            exchange.bytes_in = len(body)
            exchange.body_done = True
            if exchange.state == INSPECTING:
                self.inspect(exchange, True)
            else:
                exchange.offer(now)
            return
        self.last_read = now
        self.look(now + gateway.settings.body_timeout)
        if exchange.state != INSPECTING:
            exchange.offer(now)
        elif not rest:
            exchange.encourage()
        if rest:
            self.data_received(rest)

    def _body(self, data: bytes) -> None:
        """Bytes of a request body still under way; those of a request that was answered already are thrown away."""
        exchange = self.exchange
        self.last_read = self.gateway.now
        if self.mode == BODY:
            left = self.left - len(data)
            done = left <= 0
            if left < 0:
                data, self.inbox = data[: self.left], data[self.left :]
            self.left = left
        else:
            chunks = self.chunks
            assert chunks is not None
            try:
                data = b"".join(chunks.feed(data))
                if exchange is not None and exchange.bytes_in + len(data) > self.gateway.settings.max_body:
                    raise Malformed("body_too_large")
            except Malformed as error:
                if exchange is not None:
                    self._reject(error)
                else:  # its request was answered long ago: a second answer would be taken for the next request's
                    self.gateway.rejected(error.reason, self.peer)
                    closing.close(self, True)
                return
            done = chunks.done
            if done:
                self.inbox = chunks.rest
            elif not data:
                return
        if done:
            self.mode = AHEAD
        if exchange is not None:
            exchange.on_request_body(data, done)
            return
        self.discard_left -= len(data)
        if done:
            self._after_answer(True)
        elif self.discard_left < 0:
            closing.close(self, True)

    def inspect(self, exchange: Exchange, done: bool) -> None:
        """A service that reads bodies before it routes: go on when the body is whole, or too long to look at."""
        enough = done or exchange.bytes_in > self.gateway.settings.inspect_bytes
        if enough and self.gateway.inspected(exchange, done):
            exchange.offer(monotonic())

    def exchange_ended(self, body_done: bool) -> None:
        """The exchange is settled; what it had to say is written. `body_done`: its request has been read whole."""
        exchange = self.exchange
        self.exchange = None
        if exchange is not None and self.mode < CLOSED:
            self._after_answer(body_done)

    def _reject(self, error: Malformed) -> None:
        """Answer what can't be understood or isn't allowed, once, and close: nothing after it is parsed."""
        gateway = self.gateway
        gateway.rejected(error.reason, self.peer)
        exchange, self.exchange = self.exchange, None
        started = False
        if exchange is not None:  # a body that broke its framing or a limit half way
            started = bool(exchange.first_byte)
            exchange.reason = error.reason
            self.keep_alive = False
            exchange.client_gone(error.status)
        self.inbox = b""
        if not started:
            self.transport.write(
                respond.error(
                    error.status,
                    error.reason,
                    error.detail,
                    close=True,
                    extra=b"sec-websocket-version: 13\r\n" if error.status == 426 else b"",
                )
            )
        closing.close(self, True)

    # -- unread bodies, closing ------------------------------------------------------------------------------------

    def can_discard(self, head: RequestHead, received: int) -> bool:
        """Whether the rest of a request's body is short enough to be read and thrown away to keep the connection. A
        client that waits for 100 may never send it, so what comes next can't be told apart."""
        return (
            self.keep_alive
            and not head.expect_continue
            and (head.chunked or (head.length or 0) - received <= closing.DISCARD)
        )

    def _after_answer(self, body_done: bool) -> None:
        """The answer is written; go on with the next request, or close."""
        if self.cut:
            closing.cut(self)
        elif not self.keep_alive:
            closing.close(self, not body_done)
        elif not body_done:
            self.discard_left = closing.DISCARD  # `_body` throws away what belongs to no exchange
            self.resume_reading()
            self.last_read = monotonic()
            self.look(self.last_read + self.gateway.settings.body_timeout)
        elif self.write_paused:
            self.mode = AHEAD  # it reads slower than it asks: the next request waits until this answer has gone
            self.last_read = self.gateway.now
        else:
            self.mode = HEADS
            self.last_read = self.gateway.now
            if self.read_paused:
                self.resume_reading()
            if not self.pumping:
                inbox = self.inbox
                if inbox:
                    self.inbox = b""
                    self._pump(inbox)
                else:
                    due = self.last_read + self.gateway.settings.keepalive
                    if due < self.due:
                        self.gateway.wheel.at(self, due)

    # -- time ------------------------------------------------------------------------------------------------------

    def on_timer(self, now: float) -> float:
        """Enforce what is overdue; return when to look again."""
        mode = self.mode
        settings = self.gateway.settings
        if mode == GONE:
            return NEVER
        if mode in (CLOSED, DISCARDING):
            if now < self.close_by:
                return self.close_by
            self.transport.abort()
            return NEVER
        if self.write_paused and now - self.stalled_since >= settings.stall_timeout:
            if self.exchange is not None:
                self.exchange.reason = "stalled_reader"
            self.transport.abort()
            return NEVER
        due = self.stalled_since + settings.stall_timeout if self.write_paused else NEVER
        exchange = self.exchange
        if exchange is None:
            return min(due, self._idle(now))
        if mode in (BODY, CHUNKS) and not self.read_paused:
            slow = self.last_read + settings.body_timeout
            if now >= slow:
                self._reject(Malformed("body_timeout"))
                return self.due
            due = min(due, slow)
        return min(due, limits.enforce(exchange, now))

    def _idle(self, now: float) -> float:
        """No exchange: a head that takes too long, a body nobody wants, or a connection kept alive."""
        settings = self.gateway.settings
        if self.head_since:
            due = self.head_since + settings.header_timeout
            if now >= due:
                self._reject(Malformed("head_timeout"))
                return self.due
        elif self.mode in (BODY, CHUNKS):
            due = self.last_read + settings.body_timeout
        else:
            due = self.last_read + settings.keepalive
        if now >= due:
            closing.close(self, False)
            return self.due
        return due

    # -- what exchanges use ----------------------------------------------------------------------------------------

    def drain(self) -> None:
        """The gateway is stopping: close when idle, else after the answer under way."""
        self.keep_alive = False
        if self.exchange is None and self.mode == HEADS and not self.head_since:
            closing.close(self, False)

    def hand_over(self) -> bytes:
        """Give up the connection of the request under way to another protocol, which from now on accounts for it (its
        descriptor, the open connections) and for its transport. Returns what the client sent behind that request."""
        early, self.inbox = self.inbox, b""
        self.mode = GONE
        self.gateway.clients.discard(self)
        self.reader.forget()
        self.exchange = None
        self._forwarded = b""
        return early

    def start_tunnel(self) -> None:
        self.mode = TUNNEL
        self.keep_alive = False
        inbox, self.inbox = self.inbox, b""
        if self.read_paused:
            self.resume_reading()
        if inbox:
            self._tunnel(inbox)

    def _tunnel(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is not None and exchange.upstream is not None:
            exchange.bytes_in += len(data)
            exchange.last = monotonic()
            exchange.upstream.transport.write(data)

    def write(self, data: bytes) -> None:
        if self.mode < CLOSED:
            self.transport.write(data)

    def beat(self, chunked: bool) -> None:
        """A comment between two events, so that no middle box takes the silence for death."""
        beat = sse.HEARTBEAT
        self.write(b"%x\r\n%b\r\n" % (len(beat), beat) if chunked else beat)

    def hold_reading(self) -> None:
        if not self.read_paused and self.mode < CLOSED and not self.transport.is_closing():
            self.read_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self.read_paused and self.mode < CLOSED and not self.transport.is_closing():
            self.read_paused = False
            self.transport.resume_reading()

    def forwarded(self, head: RequestHead) -> bytes:
        """The forwarded fields, serialised. A peer that is not trusted can't say where a request came from, so its
        lines change only with the host it asks for."""
        if head.authority != self._forwarded_for or self._trusted:
            self._forwarded_for = head.authority
            trusted = self.gateway.settings.trusted
            self._trusted = trusted.trusts(self.peer)
            self._forwarded = trusted.lines(self.peer, head, self.secure)
        return self._forwarded

    def look(self, when: float) -> None:
        """Have `on_timer` called no later than `when`."""
        if when < self.due:
            self.gateway.wheel.at(self, when)
