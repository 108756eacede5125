"""One request from its head to its outcome: decide, dispatch, relay, settle.

The exchange stands between a `ClientConnection` and an `UpstreamConnection`. It makes every decision about the two and
ends exactly once, in `_end`, where the lease is finished, the next waiters are dispatched and the figures are kept.
Nothing here awaits: opening a connection is the only thing that takes a task.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from unjam.core.model import Lease, Outcome, Reason, Refusal, Ticket
from unjam.gateway import heads, maintenance, own_verdicts, respond, retries, taps, tunnel
from unjam.gateway.leased import Leased
from unjam.gateway.states import (
    CONNECTING,
    ENDED,
    INSPECTING,
    NAMES,
    QUEUED,
    REFUSING,
    RELAYING,
    TUNNELLING,
    WAITING,
    Unwanted,
)
from unjam.gateway.timers import NEVER
from unjam.gateway.upstream import HEAD, Upstream, UpstreamConnection
from unjam.wire import sse
from unjam.wire.errors import Malformed

if TYPE_CHECKING:
    from unjam.gateway.client import ClientConnection
    from unjam.gateway.routing import Route
    from unjam.wire.http1 import RequestHead, ResponseHead

#: Bytes of a request body kept so that another endpoint can be tried; a longer one is streamed and tried once.
REPLAY = 65536


class Exchange(Leased):
    """`arrived` is when its head was read."""

    __slots__ = (
        "body",
        "body_done",
        "chunk_out",
        "client",
        "cut_at",
        "events",
        "head",
        "held",
        "prefix",
        "replayable",
        "stats",
        "tap",
    )

    #: Set while REFUSING: what it will be told.
    held: Refusal

    def __init__(
        self,
        client: ClientConnection,
        head: RequestHead,
        route: Route,
        request_id: bytes,
        now: float,
        tenant: str,
    ) -> None:
        # Not by super().__init__: this runs for every request.
        self.service = route.service
        self.bucket = route.bucket
        self.arrived = now
        self.tenant = tenant
        self.session = None
        self.sticky = None
        self.pin = None
        self.splits = ()
        self.lane_hint = None
        self.seconds_hint = None
        self.tokens = None
        self.deadline = None
        self.tried = ()
        self.stats = route.stats
        self.prefix = route.prefix
        self.client = client
        self.head = head
        self.request_id = request_id
        self.state = QUEUED
        self.lease = None
        self.ticket = None
        self.upstream = None
        #: The part of the request's body that may have to be sent (again).
        self.body: list[bytes] = []
        self.body_done = True
        self.replayable = True
        self.status = 0
        self.first_byte = 0.0
        self.sent_at = 0.0
        self.last = now
        self.queued = 0.0
        self.bytes_in = 0
        self.bytes_out = 0
        self.retries = 0
        self.reason = ""
        self.chunk_out = False
        self.events: sse.SseTracker | None = None
        self.tap: taps.Tap | None = None
        #: When the caller said nobody waits any more; the exchange is cut then.
        self.cut_at = NEVER

    def take(self, route: Route) -> None:
        """It is for another service than its head alone said."""
        self.service = route.service
        self.bucket = route.bucket
        self.stats = route.stats
        self.prefix = route.prefix

    @property
    def state_name(self) -> str:
        return NAMES[self.state]

    # -- decide ----------------------------------------------------------------------------------------------------

    def offer(self, now: float, failure: tuple[int, str, str, Lease, Outcome] | None = None) -> None:
        """Ask the core for a slot: at first, or after `failure` (status, reason, message, and the lease that ended so)
        for another endpoint."""
        self.last = now
        decision = self.client.gateway.balancer.offer(self, now)
        if type(decision) is Lease:
            self.dispatch(decision, now)
        elif type(decision) is Ticket:
            self.ticket = decision
            self.state = QUEUED
        else:
            assert type(decision) is Refusal
            if failure is not None and decision.reason is Reason.NO_ENDPOINT:
                # Nobody else to try: what went wrong says more than that, and it is what is counted.
                status, reason, message, self.lease, outcome = failure
                self.fail(status, reason, message, outcome=outcome)
            else:
                self.refuse(decision)

    def refuse(self, refusal: Refusal) -> None:
        """The core won't serve it: tell the client why, and when to come back."""
        self.ticket = None
        if refusal.reason is Reason.MAINTENANCE and maintenance.hold(self, refusal):
            return
        self.stats.shed(refusal.reason)
        if refusal.reason is Reason.MAINTENANCE:
            if self.head.upgrade is not None:
                self.client.keep_alive = False  # what follows on it are frames
            self._settle_body()
            status, answer = maintenance.answer(self, refusal)
            self._answer(answer, status, refusal.reason, Outcome.CANCELLED, False)
        else:
            self.fail(refusal.status, refusal.reason, refusal.message, refusal.retry_after)

    def dispatch(self, lease: Lease, now: float) -> None:
        """A slot is ours; send the request there, over an idle connection or a new one."""
        self.ticket = None
        self.lease = lease
        self.queued += now - self.last
        if self.head.expect_continue:
            self.encourage()
        upstream: Upstream = lease.endpoint.shell
        connection = upstream.acquire()
        if connection is None:
            self.state = CONNECTING
            upstream.connect(self, self.timeouts().connect)
        else:
            self.send(connection, now)

    def encourage(self) -> None:
        """The client may send its body now (RFC 9110 §10.1.1): said once, and not when the body came unasked."""
        if not self.body_done and not self.bytes_in and self.head.expect_continue:
            self.client.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.head.expect_continue = False

    # -- towards the endpoint --------------------------------------------------------------------------------------

    def connect_failed(self, upstream: Upstream, error: Exception) -> None:
        if not self.awaits(upstream):
            return
        timed_out = isinstance(error, TimeoutError)
        self.client.gateway.log_connect_failure(upstream, error)
        retries.next_endpoint(
            self,
            Outcome.TIMEOUT if timed_out else Outcome.SERVER_ERROR,
            504 if timed_out else 502,
            "connect_timeout" if timed_out else "connect_failed",
            "The endpoint could not be reached. Try again shortly.",
            unreached=True,
        )

    def send(self, connection: UpstreamConnection, now: float) -> None:
        """Write the head, and as much of the body as has arrived."""
        connection.exchange = self
        connection.mode = HEAD
        self.upstream = connection
        self.state = WAITING
        self.sent_at = self.last = now
        head = self.head
        client = self.client
        memo = head.memo
        if memo is None or memo[0] is not client.gateway.settings or memo[1] != self.prefix:
            memo = heads.request_memo(client, head, self.prefix)
        body = self.body
        if self.body_done and head.length and len(body) == 1:  # nearly every request
            connection.transport.write(
                b"%b%b%bx-request-id: %b\r\nContent-Length: %d\r\n\r\n%b"
                % (memo[2], connection.upstream.host_line, memo[3], self.request_id, head.length, body[0])
            )
        else:
            lines = [memo[2], connection.upstream.host_line, memo[3], b"x-request-id: %b\r\n" % self.request_id]
            lines.append(heads.request_framing(head))
            if head.chunked:
                lines += [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in body if piece]
                if self.body_done:
                    lines.append(b"0\r\n\r\n")
            else:
                lines += body
            connection.transport.write(b"".join(lines))
        if self.bytes_in > REPLAY:
            self.replayable = False
            self.body = []
        lease = self.lease
        assert lease is not None
        lanes = lease.service.spec.lanes
        limits = lanes.heavy if lease.heavy else lanes.fast
        due = now + (limits.first_byte if limits.first_byte < limits.total else limits.total)
        if due < client.due:
            client.look(due)
        if client.read_paused and not self.body_done:
            client.resume_reading()

    def on_request_body(self, payload: bytes, done: bool) -> None:
        """A piece of the client's body, decoded; hold it, or send it on."""
        size = len(payload)
        self.bytes_in += size
        self.body_done = done
        connection = self.upstream
        if connection is None:
            self.body.append(payload)
            if self.state == INSPECTING:
                self.client.inspect(self, done)
            elif self.state == REFUSING:
                self.refuse(self.held)  # or go on holding
            elif self.bytes_in > REPLAY and not done:
                self.client.hold_reading()  # nobody to send it to yet
            return
        if self.replayable:
            if self.bytes_in > REPLAY:
                self.replayable = False
                self.body = []
            else:
                self.body.append(payload)
        if not self.head.chunked:
            connection.transport.write(payload)
        elif size:
            connection.transport.write(b"%x\r\n%b\r\n%b" % (size, payload, b"0\r\n\r\n" if done else b""))
        elif done:
            connection.transport.write(b"0\r\n\r\n")
        if done:
            self.sent_at = self.last = monotonic()

    # -- from the endpoint -----------------------------------------------------------------------------------------

    def on_interim(self, head: ResponseHead) -> None:
        """100 is between us and the endpoint; other 1xx go to clients that can read them, unless the answer may yet be
        another's."""
        lease = self.lease
        if head.status != 100 and self.head.minor == 1 and lease is not None and not retries.shields(self, lease):
            self.client.write(b"".join((respond.status_line(head.status, head.reason), *head.forward, b"\r\n")))

    def on_head(self, head: ResponseHead, kind: str, payload: bytes) -> None:
        """The answer begins: its head, and the part of its body that came with it. Raises Unwanted."""
        now = monotonic()
        client = self.client
        lease = self.lease
        assert lease is not None
        memo = head.memo
        if memo is None:
            memo = heads.answer_memo(head)
            if head.memo is None:
                own_verdicts.heed(self, head, now)
        if head.status >= 500 and own_verdicts.unwanted(self, head.status, now):
            raise Unwanted
        self.first_byte = self.last = now
        self.status = head.status
        self.state = RELAYING
        if not self.body_done:  # answered before it was asked in full
            client.keep_alive = client.can_discard(self.head, self.bytes_in)
        if lease.endpoint.region is not None or lease.service.shell is not None:
            # Somebody wants to know more of this answer than that it passed.
            if lease.endpoint.region is not None:
                client.gateway.heed(lease, head, now)
            self.tap = taps.begin(lease, head, payload)
        self.bytes_out = len(payload)
        whole = kind == "length" and self.bytes_out == head.length
        if head.sse and kind != "none":
            own_verdicts.follow(self, payload, kind == "length", now)
        if whole and client.keep_alive and self.head.minor == 1:  # nearly every answer
            client.transport.write(
                b"%b%bx-request-id: %b\r\nContent-Length: %d\r\n\r\n%b"
                % (memo, heads.markers(self), self.request_id, self.bytes_out, payload)
            )
            return
        framing = heads.answer_framing(self, head, kind)
        if payload and self.chunk_out:
            payload = b"%x\r\n%b\r\n" % (self.bytes_out, payload)
        client.transport.write(
            b"%b%bx-request-id: %b\r\n%b%b" % (memo, heads.markers(self), self.request_id, framing, payload)
        )
        if not whole:
            client.look(now + self.timeouts().idle)

    def forget_heads(self) -> None:
        """For an answer that is held for long: what is remembered of heads takes memory."""
        self.client.reader.forget()
        if self.upstream is not None:
            self.upstream.reader.forget()

    def on_body(self, payload: bytes) -> None:
        """More of the answer's body (or of a tunnel's bytes), decoded."""
        self.last = monotonic()
        self.bytes_out += len(payload)
        if self.events is not None:
            self.events.feed(payload)
        if self.tap is not None:
            self.tap.feed(payload)
        if self.chunk_out:
            payload = b"%x\r\n%b\r\n" % (len(payload), payload)
        self.client.transport.write(payload)

    def on_end(self, reusable: bool, now: float = 0.0) -> None:
        """The answer is whole. `now`: as of this very moment, when the caller knows it."""
        if self.state == ENDED:
            return
        if self.chunk_out:
            self.client.transport.write(b"0\r\n\r\n")
        outcome = Outcome.OK
        if self.status != 200 or self.events is not None or self.reason:
            outcome = own_verdicts.outcome(self)
        self._end(outcome, reusable and self.body_done, now)

    def on_switch(self, head: ResponseHead, rest: bytes) -> None:
        tunnel.begin(self, head, rest)

    def on_lost(self, error: Exception | None) -> None:
        """The endpoint's connection went away in the middle."""
        retries.lost(self)

    def bad_answer(self, error: Malformed) -> None:
        """The endpoint broke the protocol: 502 when the client has seen nothing, else an honest cut."""
        self.client.gateway.log_bad_answer(self, error)
        self.drop_upstream()
        if self.state == RELAYING:
            self.cut(Outcome.TRUNCATED, error.reason, "The agent's answer broke off: it was not valid HTTP.")
        elif not retries.goes_elsewhere(self, Outcome.SERVER_ERROR, error.reason, monotonic()):
            self.fail(502, error.reason, "The endpoint's answer was not valid HTTP.", outcome=Outcome.SERVER_ERROR)

    # -- failing ---------------------------------------------------------------------------------------------------

    def fail(
        self,
        status: int,
        reason: str,
        message: str,
        retry_after: float | None = None,
        *,
        outcome: Outcome = Outcome.CANCELLED,
        unreached: bool = False,
    ) -> None:
        """Answer with an error of our own, before any byte of the endpoint's, and end."""
        client = self.client
        self._settle_body()
        answer = respond.error(
            status,
            reason,
            message,
            dialect=self.service.spec.dialect,  # type: ignore[arg-type]
            request_id=self.request_id.decode("ascii"),
            retry_after=retry_after,
            close=not client.keep_alive,
            head_only=self.head.method == "HEAD",
        )
        self._answer(answer, status, reason, outcome, unreached)

    def _settle_body(self) -> None:
        """It will be answered without its body having been read: whether the connection can be kept all the same."""
        self.drop_upstream()
        if not self.body_done:
            self.client.keep_alive = self.client.can_discard(self.head, self.bytes_in)

    def _answer(self, answer: bytes, status: int, reason: str, outcome: Outcome, unreached: bool) -> None:
        self.status = status
        self.reason = reason
        self.bytes_out += len(answer)
        self.client.write(answer)
        self._end(outcome, False, unreached=unreached)

    def cut(self, outcome: Outcome, reason: str, message: str) -> None:
        """The client has part of an answer that will never be whole: say so where the format lets us, then close
        without the mark of a clean end."""
        if outcome is Outcome.CANCELLED:
            outcome = own_verdicts.left(self)
        self.reason = reason
        client = self.client
        client.keep_alive = False
        client.cut = True
        if self.events is not None and not self.events.fixed:
            event = sse.error_event(reason, message)
            if not self.events.at_boundary:
                event = b"\n\n" + event
            if self.chunk_out:
                event = b"%x\r\n%b\r\n" % (len(event), event)
            client.write(event)
            client.framed = True  # the event says it: a reset would only destroy it on its way to an HTTP/1.0 client
        self._end(outcome, False)

    # -- leaving ---------------------------------------------------------------------------------------------------

    def withdraw(self) -> None:
        """Leave the queue and the endpoint."""
        ticket, self.ticket = self.ticket, None
        if ticket is not None:
            self.client.gateway.balancer.cancel(ticket, monotonic())
        self.drop_upstream()

    def client_gone(self, status: int = 499) -> None:
        """The client hung up, or is hung up on: the endpoint is told by its connection closing, the slot is free."""
        if self.state == ENDED:
            return
        if self.state == TUNNELLING:
            self._end(Outcome.OK, False)  # its last words are flushed to the endpoint
            return
        outcome = own_verdicts.left(self)
        self.withdraw()
        self.status = status
        self.reason = self.reason or "client_gone"
        self._end(outcome, False)

    # -- the end ---------------------------------------------------------------------------------------------------

    def _end(self, outcome: Outcome, reusable: bool, now: float = 0.0, unreached: bool = False) -> None:
        """Once per exchange: settle everything, then let the client's connection go on."""
        if self.state == ENDED:
            return
        if not now:
            now = monotonic()
        was, self.state = self.state, ENDED
        client = self.client
        gateway = client.gateway
        connection = self.upstream
        if connection is not None:
            self.upstream = None
            if reusable:
                connection.release()
            elif self.body_done:
                gateway.stats.upstream_discarded += 1
                connection.close()
            else:
                connection.abort()  # it answered without reading on: what is written to it may never be read
        if self.events is not None:
            gateway.stats.held -= 1
        if was == TUNNELLING:
            gateway.stats.tunnels_open -= 1
        stats = self.stats
        stats.bytes_in += self.bytes_in
        stats.bytes_out += self.bytes_out
        lease = self.lease
        if lease is not None:
            self.lease = None
            arrived = self.arrived
            stats.finished(
                lease.heavy, outcome, now - arrived, self.queued, self.first_byte - arrived if self.first_byte else -1.0
            )
            if lease.fallback:
                stats.fallbacks += 1
        elif self.status == 499:
            stats.queue_cancelled += 1
        if gateway.access_log.enabled:
            gateway.log_access(self, lease, outcome, now)
        if lease is not None and lease.outcome is None:
            tap = self.tap
            if tap is not None or unreached:
                gateway.finish(lease, outcome, now, None if tap is None else tap.tail, unreached)
                if tap is not None and tap.watch is not None:
                    tap.watch.ended(self, lease, outcome, now)
            else:
                waiting = gateway.balancer.finish(lease, outcome, now)
                if waiting:
                    gateway.carry_out(waiting, now)
        client.exchange_ended(self.body_done)
