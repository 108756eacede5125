"""Requests that the gateway answers itself: a `LocalExchange` stands on a `ClientConnection` where an `Exchange` would.

It collects the body, bounded; runs a handler coroutine; writes a whole answer, a large one in pieces as its reader
takes them, or a stream with back-pressure and heartbeats. The connection does the rest as for any request: keep-alive,
pipelining, slow bodies, stalled readers.

A handler returns an `Answer`, raises `Refused`, or takes the exchange over and returns None: then it has called `start`
or `hold`, and whoever it left the exchange to calls `end` or `answer`. An exchange that is held needs no task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl

from unjam.gateway import respond
from unjam.gateway.states import ENDED, LOCAL
from unjam.gateway.timers import NEVER
from unjam.telemetry.accesslog import REFUSED
from unjam.wire import sse

if TYPE_CHECKING:
    from unjam.gateway.auth import Tenant
    from unjam.gateway.client import ClientConnection
    from unjam.wire.http1 import RequestHead

JSON: Final = b"application/json"
EVENTS: Final = b"text/event-stream"

#: The access log's outcome of what the gateway answered itself, well or badly, and of a client that left.
ANSWERED: Final = "ok"
LEFT: Final = "cancelled"


#: Bytes of a large answer that are written at once; the next piece goes when the client has taken the one before.
PIECE: Final = 65536


class Gone(Exception):
    """The client has left; there is nobody to answer."""


class Refused(Exception):
    """An error for the client. `code`: snake_case, stable; `message`: a sentence that says what to do; `retry_after`:
    seconds; `lines`: more of the answer's head, each with CRLF."""

    def __init__(
        self, status: int, code: str, message: str, retry_after: float | None = None, lines: bytes = b""
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after = retry_after
        self.lines = lines


class Answer:
    """One whole answer. `lines`: more of its head, each with CRLF."""

    __slots__ = ("body", "content_type", "lines", "status")

    def __init__(self, status: int, body: bytes = b"", lines: bytes = b"", content_type: bytes = JSON) -> None:
        self.status = status
        self.body = body
        self.lines = lines
        self.content_type = content_type


Handler = Callable[["LocalExchange"], Awaitable[Answer | None]]


class LocalExchange:
    """One request that is answered here, by `handler`, with at most `most` bytes of body; or at once by `refusal`.
    `caller`: None when no keys are configured. `service`: what it turned out to be about, for the access log."""

    __slots__ = (
        "_chunked",
        "_due",
        "_on_due",
        "_rest",
        "_room",
        "arrived",
        "beats",
        "body",
        "body_done",
        "bytes_in",
        "bytes_out",
        "caller",
        "client",
        "first_byte",
        "handler",
        "head",
        "last",
        "most",
        "on_drain",
        "on_ended",
        "on_room",
        "reason",
        "refusal",
        "request_id",
        "service",
        "started",
        "state",
        "status",
        "upstream",
    )

    def __init__(
        self,
        client: ClientConnection,
        head: RequestHead,
        request_id: bytes,
        now: float,
        caller: Tenant | None,
        handler: Handler | None = None,
        most: int = 0,
    ) -> None:
        self.client = client
        self.head = head
        self.request_id = request_id
        self.caller = caller
        self.handler = handler
        self.most = most
        self.refusal: Refused | None = None
        self.arrived = self.last = now
        self.state = LOCAL
        #: Where the connection says that its client reads, or doesn't.
        self.upstream: Any = self
        self.service: str | None = None
        self.status = 0
        self.reason = ""
        self.first_byte = 0.0
        self.bytes_in = 0
        self.bytes_out = 0
        self.body_done = True
        #: The answer's head is written, and more is to come.
        self.started = False
        #: Whether a comment is sent when the stream has been silent.
        self.beats = False
        #: Called when it has ended, whoever ended it; when there is room again after `write` said that there was none;
        #: when the gateway is stopping.
        self.on_ended: Callable[[], None] | None = None
        self.on_room: Callable[[], None] | None = None
        self.on_drain: Callable[[], None] | None = None
        #: Pieces of the request's body; see `content`.
        self.body: list[bytes] = []
        self._chunked = False
        self._room: asyncio.Future[None] | None = None
        #: What is still to be written of a large answer.
        self._rest: memoryview | None = None
        self._due = NEVER
        self._on_due: Callable[[], None] | None = None

    # -- what handlers ask -----------------------------------------------------------------------------------------

    @property
    def tenant(self) -> str:
        """Empty when no keys are configured."""
        return "" if self.caller is None else self.caller.name

    @property
    def content(self) -> bytes:
        """The request's body, whole."""
        if len(self.body) > 1:
            self.body = [b"".join(self.body)]
        return self.body[0] if self.body else b""

    def query(self) -> dict[str, str]:
        """The parameters of the query; a repeated one counts as it was given last. Raises `Refused`."""
        raw = self.head.query
        if not raw:
            return {}
        try:
            return dict(parse_qsl(raw.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=32))
        except (ValueError, UnicodeDecodeError):
            raise Refused(400, "bad_query", "The query is not name=value pairs in UTF-8.") from None

    @property
    def gone(self) -> bool:
        """It has ended; nothing that is written reaches anybody."""
        return self.state == ENDED

    @property
    def room(self) -> bool:
        """What is written now is not held up by a client that reads too slowly."""
        return not self.client.write_paused

    # -- answers ---------------------------------------------------------------------------------------------------

    def answer(self, answer: Answer) -> None:
        """Write a whole answer, and end: when the client has taken nearly all of it, if it is a large one. Nothing when
        the client has left."""
        if self.state == ENDED or self._rest is not None:
            return
        body = answer.body
        status = answer.status
        framing = b"content-type: %b\r\ncontent-length: %d\r\n" % (answer.content_type, len(body))
        if status == 204:
            framing = b""
        if self.head.method == "HEAD":
            body = b""
        head = b"%b%bcache-control: no-store\r\nx-request-id: %b\r\n%b%b\r\n" % (
            respond.status_line(status),
            framing,
            self.request_id,
            answer.lines,
            self._connection(),
        )
        if len(body) <= PIECE:
            self._write_first(status, head + body)
            self._end(ANSWERED)
            return
        self._write_first(status, head)
        self._let_go()
        self._rest = memoryview(body)
        self.on_room = self._write_rest
        self._write_rest()
        if self.state != ENDED:
            self.client.gateway.backlog.add(self, body)

    def refuse(self, refused: Refused) -> None:
        """Write an error, and end. In a stream that has begun it is its last event."""
        if self.state == ENDED or self._rest is not None:
            return
        self.reason = refused.code
        request_id = self.request_id.decode("ascii")
        if self.started:
            self.write(sse.error_event(refused.code, refused.message, request_id))
            self.end()
            return
        self._connection()
        self._write_first(
            refused.status,
            respond.error(
                refused.status,
                refused.code,
                refused.message,
                request_id=request_id,
                retry_after=refused.retry_after,
                close=not self.client.keep_alive,
                extra=refused.lines,
                head_only=self.head.method == "HEAD",
            ),
        )
        self._end(REFUSED)

    def start(self, status: int = 200, content_type: bytes = EVENTS, lines: bytes = b"", beats: bool = True) -> None:
        """Write the head of a stream; `write` or `send` what is in it, then `end`. `beats`: an SSE comment is sent
        whenever the stream has been silent for `heartbeat`. To a HEAD the head is all there is. Raises `Gone`."""
        if self.state == ENDED:
            raise Gone
        client = self.client
        self.started = True
        self.beats = beats and content_type == EVENTS
        if self.head.minor == 1:
            self._chunked = True
            framing = b"transfer-encoding: chunked\r\n"
        else:
            client.keep_alive = client.framed = False
            framing = b""
        self._write_first(
            status,
            b"%bcontent-type: %b\r\ncache-control: no-store\r\nx-accel-buffering: no\r\nx-request-id: %b\r\n%b%b%b\r\n"
            % (respond.status_line(status), content_type, self.request_id, lines, framing, self._connection()),
        )
        if self.head.method == "HEAD":
            self.started = False
            self._end(ANSWERED)
            raise Gone
        self.hold()
        client.gateway.stats.held += 1
        if self.beats:
            client.look(self.last + client.gateway.settings.heartbeat)

    def write(self, data: bytes) -> bool:
        """A piece of a stream. False: the client reads slowly; it was taken, but the next one should wait for
        `on_room`. Nothing happens when the client has left."""
        if self.state == ENDED or not data:
            return self.state != ENDED
        self.last = self.client.gateway.now
        self.bytes_out += len(data)
        self.client.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)
        return not self.client.write_paused

    async def send(self, data: bytes) -> None:
        """A piece of a stream, when there is room for it; a large one bit by bit. Raises `Gone`. One task at a time."""
        backlog = self.client.gateway.backlog
        for start in range(0, len(data), PIECE):
            if start == PIECE:
                backlog.add(self, data)
            await self._for_room()
            self.write(data[start : start + PIECE])
        backlog.remove(self)

    async def _for_room(self) -> None:
        """Raises `Gone`."""
        while self.state != ENDED and self.client.write_paused:
            self._room = self.client.gateway.loop.create_future()
            try:
                await self._room
            finally:
                self._room = None
        if self.state == ENDED:
            raise Gone

    def end(self) -> None:
        """The stream is whole."""
        if self.state == ENDED:
            return
        if self._chunked:
            self.client.write(b"0\r\n\r\n")
        self._end(ANSWERED)

    def cut(self, reason: str) -> None:
        """The stream breaks off, so that the client can tell that it isn't whole."""
        if self.state == ENDED:
            return
        self.reason = reason
        self.client.keep_alive = False
        self.client.cut = True
        self._end(LEFT)

    def hold(self) -> None:
        """It will take long: let go of what takes memory meanwhile. The body is gone then."""
        self.body = []
        self.handler = None
        self.client.gateway.intake.done(self)
        self.client.reader.forget()

    def at(self, when: float, call: Callable[[], None]) -> None:
        """Call at `when`, monotonic seconds; in place of what was asked for before. Never: `NEVER`."""
        self._due = when
        self._on_due = call
        self.client.look(when)

    # -- what the connection calls, as it would of an exchange ----------------------------------------------------

    def offer(self, now: float) -> None:
        """Its head is here, and perhaps its body: begin when that is whole."""
        if self.refusal is not None:
            self.refuse(self.refusal)
        elif max(self.bytes_in, self.head.length or 0) > self.most:
            self._too_large()
        elif self.body_done:
            self._begin()
        elif not self.bytes_in and self.head.expect_continue:
            self.head.expect_continue = False
            self.client.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_request_body(self, payload: bytes, done: bool) -> None:
        self.bytes_in += len(payload)
        self.body_done = done
        if self.state == ENDED:
            return
        if self.bytes_in > self.most:
            self._too_large()
            return
        self.body.append(payload)
        if self.bytes_in > PIECE:
            self.client.gateway.intake.grown(self, self.bytes_in, done)
        if done and not self.gone:
            self._begin()

    def client_gone(self, status: int = 499) -> None:
        if self.state == ENDED:
            return
        self.status = status
        self.reason = self.reason or "client_gone"
        self._end(LEFT)

    def hold_reading(self) -> None:
        """The client reads too slowly: `write` says so."""

    def resume_reading(self) -> None:
        room = self._room
        if room is not None and not room.done():
            room.set_result(None)
        on_room = self.on_room
        if on_room is not None:
            on_room()

    def on_timer(self, now: float) -> float:
        """What is due: what `at` asked for, a heartbeat. When to look again."""
        if self.state == ENDED:
            return NEVER
        if now >= self._due:
            self._due = NEVER
            call = self._on_due
            self._on_due = None
            if call is not None:
                call()
                if self.gone:
                    return NEVER
        if not self.beats:
            return self._due
        heartbeat = self.client.gateway.settings.heartbeat
        if now - self.last >= heartbeat:
            self.last = now
            if not self.client.write_paused:
                self.client.beat(self._chunked)
        return min(self._due, self.last + heartbeat)

    def drain(self) -> None:
        """The gateway is stopping."""
        on_drain = self.on_drain
        if on_drain is not None:
            on_drain()

    def work(self, handler: Handler) -> None:
        """Let a handler go on with it: of an exchange that was held."""
        self.client.gateway.spawn(self._run(handler))

    # -- inside ----------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        handler = self.handler
        assert handler is not None
        self.work(handler)

    async def _run(self, handler: Handler) -> None:
        if self.state == ENDED:
            return
        try:
            answer = await handler(self)
        except Refused as refused:
            self.refuse(refused)
        except Gone:
            pass
        except Exception:
            self.client.gateway.log.exception("fault", client=self.client.peer)
            if self.first_byte:
                self.client.transport.abort()
            else:
                self.refuse(Refused(500, "internal", "The gateway failed at this; its log says why."))
        else:
            if answer is not None:
                self.answer(answer)

    def crowded_out(self) -> None:
        """There is no room for so large a body just now."""
        self.refuse(Refused(503, "bodies_full", "The gateway holds as many bytes of requests as it takes.", 2.0))

    def _too_large(self) -> None:
        self.body = []
        self.refuse(Refused(413, "body_too_large", f"The body of this request may have {self.most} bytes."))

    def _connection(self) -> bytes:
        """The line that says what becomes of the connection, settled now."""
        client = self.client
        if not self.body_done:
            client.keep_alive = client.can_discard(self.head, self.bytes_in)
        if client.gateway.draining:
            client.keep_alive = False
        if not client.keep_alive:
            return b"connection: close\r\n"
        return b"connection: keep-alive\r\n" if self.head.minor == 0 else b""

    def _write_first(self, status: int, data: bytes) -> None:
        self.status = status
        self.first_byte = self.last = monotonic()
        self.bytes_out += len(data)
        self.client.write(data)

    def _write_rest(self) -> None:
        client = self.client
        rest = self._rest
        while rest and not client.write_paused and not client.transport.is_closing():
            piece, rest = rest[:PIECE], rest[PIECE:]
            self._rest = rest
            self.bytes_out += len(piece)
            client.write(bytes(piece))
        if not rest and self.state != ENDED:
            self._end(ANSWERED)

    def _let_go(self) -> None:
        """There is nothing more to say for whoever it was left to."""
        on_ended, self.on_ended = self.on_ended, None
        self.on_room = self.on_drain = self._on_due = self.handler = None
        self._due = NEVER
        self.body = []
        self.client.gateway.intake.done(self)
        if on_ended is not None:
            on_ended()

    def _end(self, outcome: str) -> None:
        self.state = ENDED
        client = self.client
        gateway = client.gateway
        if self.started:
            gateway.stats.held -= 1
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)
        self._rest = None
        gateway.backlog.remove(self)
        self._let_go()
        if gateway.access_log.enabled:
            gateway.log_local(self, outcome)
        client.exchange_ended(self.body_done)
