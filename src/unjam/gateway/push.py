"""One run at an ordinary HTTP endpoint: its input as a request, the answer into its log.

A `Push` stands where an exchange would: the balancer gives it a slot like any other request's, an `UpstreamConnection`
hands it what the endpoint says. Server-sent events become events of the run as they come; any other answer its result.
How it ends is told to the `Journal` once, how the slot was used to the balancer once.

Nothing was begun where no endpoint could be reached: the run goes back to its queue, and no attempt is charged. An
endpoint lost in the middle is a worker lost: the store's rule says whether the run is tried again.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic, time
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from unjam.core.model import Lease, Outcome, Reason, Refusal, Ticket
from unjam.gateway import answers, features, limits, loads
from unjam.gateway.envelope import Envelope, EnvelopeHead
from unjam.gateway.journal import Journal
from unjam.gateway.leased import Leased
from unjam.gateway.own_verdicts import REJECTED
from unjam.gateway.retries import STALE
from unjam.gateway.routing import prefix_of
from unjam.gateway.states import CONNECTING, ENDED, QUEUED, RELAYING, WAITING
from unjam.gateway.taps import Tap
from unjam.gateway.timers import NEVER
from unjam.gateway.upstream import HEAD, Upstream, UpstreamConnection
from unjam.wire import verdict
from unjam.wire.errors import Malformed
from unjam.wire.eventstream import EventStream, EventTooLarge

if TYPE_CHECKING:
    from unjam.core.service import Service
    from unjam.gateway.gateway import Gateway
    from unjam.runs.model import Run, Settled
    from unjam.wire.http1 import ResponseHead

#: A wait in the balancer's queue that was at least this long, seconds, may be begun again at once.
PATIENT: Final = 1.0

#: Seconds between two tries of a run that is pinned to a version which is out of service.
PARKED: Final = 1.0

#: Seconds between two looks at a run whose deadline has passed, until the store has expired it.
EXPIRY: Final = 1.0


class Keeper(Protocol):
    """Who has many of them: the dispatcher. `max_event`, `max_result`: bytes."""

    gateway: Gateway

    @property
    def max_event(self) -> int: ...

    @property
    def max_result(self) -> int: ...

    def waiting(self, push: Push, step: int) -> None:
        """It waits for a slot (1), or does no more (-1)."""

    def parked(self, push: Push, step: int) -> bool:
        """It waits for its version (1), or does no more (-1). False: too many do."""

    def reached(self, push: Push) -> None:
        """It is with an endpoint."""

    def turned_away(self, push: Push, retry_after: float | None) -> None:
        """There is no use in trying others of this service for a while."""

    def ended(self, push: Push, settled: Settled | None) -> None:
        """All is written, or the run is another's."""


class Push(Leased):
    __slots__ = (
        "_answer",
        "due",
        "events",
        "expires",
        "head",
        "journal",
        "keeper",
        "parked_until",
        "path",
        "run",
        "tap",
        "waits_in",
    )

    def __init__(self, keeper: Keeper, service: Service, envelope: Envelope, run: Run, now: float) -> None:
        head = EnvelopeHead(envelope)
        prefix = prefix_of(service, head.path)
        super().__init__(
            service,
            features.bucket(head.method, head.path, prefix, len(envelope.body)),
            now,
            tenant=run.tenant,
            # The fast lane is also that of a run of which nothing was said: what is known of its kind says more.
            lane_hint="heavy" if run.lane == "heavy" else None,
        )
        gateway = keeper.gateway
        gateway.stick(head.get, self)
        if self.sticky is None:
            self.sticky = run.id  # all attempts meet the same version, where weights choose
        for name, hint in ((b"x-unjam-lane", "lane_hint"), (b"x-unjam-expected-seconds", "seconds_hint")):
            value = head.get(name)
            if value is not None:
                try:
                    setattr(
                        self,
                        hint,
                        features.lane(value) if hint == "lane_hint" else features.seconds(name.decode("ascii"), value),
                    )
                except features.BadHint:
                    pass  # refused when the run was made; the run is older than that rule
        self.pin = run.version
        self.keeper = keeper
        self.run = run
        self.head = head
        target = envelope.path[len(prefix) :] if service.spec.strip_prefix else envelope.path
        self.path = target if target.startswith("/") else "/" + target
        self.journal: Journal
        self.state = QUEUED
        self.lease = None
        self.ticket = None
        self.waits_in = ""
        self.upstream = None
        self.events: EventStream | None = None
        self._answer: answers.Answer | None = None
        self.request_id = run.id.encode("ascii")
        self.status = 0
        self.first_byte = 0.0
        self.sent_at = 0.0
        self.last = now
        #: When its version is asked for again, which is out of service; 0: it doesn't wait for that.
        self.parked_until = 0.0
        self.queued = 0.0
        self.bytes_in = len(envelope.body)
        self.bytes_out = 0
        self.retries = 0
        self.reason = ""
        self.tap: Tap | None = None
        self.due = NEVER
        #: When the store may say that its time is over.
        self.expires = NEVER if run.deadline is None else now + run.deadline - time()

    # -- what gateway and wheel ask of a client ----------------------------------------------------------------------

    @property
    def client(self) -> Push:
        return self

    @property
    def transport(self) -> Push:
        return self

    @property
    def peer(self) -> str:
        return "run"

    def abort(self) -> None:
        """A fault of ours in the middle of it: as if this gateway had died."""
        self.journal.close()
        self.on_fenced()

    def hold_reading(self) -> None:
        """The endpoint reads slowly; the request is all written already."""

    def resume_reading(self) -> None:
        pass

    # -- decide -----------------------------------------------------------------------------------------------------

    def offer(self, now: float) -> None:
        """Ask the balancer for a slot, at first or for another endpoint."""
        self.last = now
        self.state = QUEUED
        balancer = self.keeper.gateway.balancer
        decision = balancer.offer(self, now) if self.pin is None else balancer.offer_pinned(self, now)
        if type(decision) is Lease:
            self.dispatch(decision, now)
        elif type(decision) is Ticket:
            self.ticket = decision
            self.keeper.waiting(self, 1)
        else:
            assert type(decision) is Refusal
            self.refuse(decision)

    def refuse(self, refusal: Refusal) -> None:
        """The balancer won't serve it now. The run's time is its own, so it waits on: here, or in its queue."""
        now = monotonic()
        self._leave_queue()
        if refusal.reason is Reason.QUEUE_TIMEOUT and now - self.last >= PATIENT and not self.journal.ending:
            self.queued += now - self.last
            self.offer(now)
            return
        own = refusal.reason is Reason.NO_ENDPOINT and self.pin is not None and not self.journal.ending
        if own and (self.parked_until or self.keeper.parked(self, 1)):
            # Its version is out of service, which is no reason to keep others of the service waiting behind it.
            self.parked_until = now + PARKED
            self.look(self.parked_until)
            return
        self.reason = refusal.reason
        self.keeper.turned_away(self, refusal.retry_after)
        self.journal.release()
        self._end(Outcome.CANCELLED, False)

    def _leave_parking(self) -> None:
        if self.parked_until:
            self.parked_until = 0.0
            self.keeper.parked(self, -1)

    def dispatch(self, lease: Lease, now: float) -> None:
        self._leave_queue()
        self._leave_parking()
        self.lease = lease
        self.queued += now - self.last
        upstream: Upstream = lease.endpoint.shell
        connection = upstream.acquire()
        if connection is None:
            self._connect(upstream)
        else:
            self.send(connection, now)

    def _leave_queue(self) -> None:
        if self.ticket is not None:
            self.ticket = None
            self.keeper.waiting(self, -1)

    # -- towards the endpoint ---------------------------------------------------------------------------------------

    def _connect(self, upstream: Upstream) -> None:
        self.state = CONNECTING
        upstream.connect(self, self.timeouts().connect)

    def connect_failed(self, upstream: Upstream, error: Exception) -> None:
        lease = self.lease
        if lease is None or not self.awaits(upstream):
            return
        gateway = self.keeper.gateway
        gateway.log_connect_failure(upstream, error)
        outcome = Outcome.TIMEOUT if isinstance(error, TimeoutError) else Outcome.SERVER_ERROR
        now = monotonic()
        if self.retries < lease.service.spec.retry.attempts and gateway.balancer.may_retry(lease.service, now):
            self.lease = None
            self.retries += 1
            self.tried = (*self.tried, lease.endpoint)
            gateway.stats.service(self.service.name).retries += 1
            gateway.finish(lease, outcome, now, None, True)
            self.offer(now)
            return
        self.reason = "connect_failed"
        self.keeper.turned_away(self, None)
        self.journal.release()
        self._end(outcome, False, unreached=True)

    def send(self, connection: UpstreamConnection, now: float) -> None:
        """Write the whole request."""
        connection.exchange = self
        connection.mode = HEAD
        self.upstream = connection
        self.state = WAITING
        self.sent_at = self.last = now
        connection.transport.write(
            self.head.envelope.request(self.path, connection.upstream.host_line, self.request_id, self.run.attempt)
        )
        self.look(now + min(self.timeouts().first_byte, self.timeouts().total))
        lease = self.lease
        if lease is not None and not lease.fallback and lease.version.name != self.run.version:
            self.journal.pin(lease.version.name, at_once=len(lease.service.versions) > 1)
        self.keeper.reached(self)

    # -- from the endpoint ------------------------------------------------------------------------------------------

    def on_interim(self, head: ResponseHead) -> None:
        pass

    def on_switch(self, head: ResponseHead, rest: bytes) -> None:
        self.bad_answer(Malformed("unasked_101", "endpoint"))

    def on_head(self, head: ResponseHead, kind: str, payload: bytes) -> None:
        now = monotonic()
        self.first_byte = self.last = now
        self.status = head.status
        self.state = RELAYING
        lease = self.lease
        assert lease is not None
        gateway = self.keeper.gateway
        if lease.endpoint.region is not None:
            gateway.heed(lease, head, now)
            self.tap = Tap(usage=True, watch=None)
        if self.upstream is not None and not loads.PRESENT.isdisjoint(head.known):
            loads.said(self.upstream.upstream, head.known, now)
        said = head.known.get(verdict.HEADER)
        if said is not None and head.status < 400:
            self._judged(verdict.from_header, said)
        if head.sse and 200 <= head.status < 300:
            self.events = EventStream(self.keeper.max_event)
            gateway.stats.held += 1
        else:
            self._answer = answers.Answer(head.status, head.known.get(b"content-type", b""), self.keeper.max_result)
        if payload:
            self.on_body(payload)
        self.look(now + self.timeouts().idle)

    def on_body(self, payload: bytes) -> None:
        self.last = monotonic()
        self.bytes_out += len(payload)
        if self.tap is not None:
            self.tap.feed(payload)
        try:
            if self.events is not None:
                for kind, data in self.events.feed(payload):
                    self._event(kind, data)
            elif self._answer is not None:
                self._answer.feed(payload)
        except EventTooLarge as error:
            self._fail(Outcome.SERVER_ERROR, "event_too_large", f"The agent sent too much at once: {error}.")
        except answers.AnswerTooLarge as error:
            self._fail(Outcome.SERVER_ERROR, "result_too_large", f"The agent answered too much: {error}.")
        else:
            if self.journal.full and self.upstream is not None and not self.upstream.paused:
                self.upstream.hold_reading()

    def _event(self, kind: str, data: bytes) -> None:
        if kind == "error":
            self.reason = "error_event"
            self.journal.finish("failed", error=answers.agent_error(data))
        elif kind == "result":
            self.journal.finish("completed", result=answers.as_json(data))
        else:
            if kind == "unjam.verdict":
                self._judged(verdict.from_event, data)
            self.journal.add(answers.kind_of(kind), answers.as_json(data))

    def _judged(self, read: Callable[[bytes], verdict.Verdict], data: bytes) -> None:
        """The agent says something of its own answer."""
        stats = self.keeper.gateway.stats.service(self.service.name)
        try:
            said = read(data)
        except verdict.BadVerdict:
            stats.verdict("agent", "unreadable")
            return
        stats.verdict("agent", "bad" if said.bad else "good")
        if said.bad:
            self.reason = self.reason or REJECTED
        elif self.reason == REJECTED:
            self.reason = ""

    def on_end(self, reusable: bool, now: float = 0.0) -> None:
        """The answer is whole."""
        if self.state == ENDED:
            return
        outcome = Outcome.OK
        if self.status >= 500:
            outcome = Outcome.SERVER_ERROR
        elif self.status >= 400:
            outcome = Outcome.CLIENT_ERROR
        elif self.reason == "error_event":
            outcome = Outcome.SERVER_ERROR
        elif self.reason == REJECTED:
            outcome = Outcome.REJECTED_QUALITY
        if self._answer is not None:
            result, error = self._answer.read()
            self.journal.finish("completed" if error is None else "failed", result=result, error=error)
        else:
            self.journal.finish("completed")
        self._end(outcome, reusable)

    def on_lost(self, error: Exception | None) -> None:
        """The endpoint's connection went away in the middle."""
        connection, self.upstream = self.upstream, None
        if self.state == WAITING:
            lease = self.lease
            assert lease is not None
            if connection is not None and connection.used and monotonic() - self.sent_at < STALE and not self.retries:
                # It hung up an idle connection just as it was used: a fresh one can't end the same way.
                self.retries += 1
                self._connect(lease.endpoint.shell)
                return
            self.reason = "endpoint_lost"
            self.journal.give_up()
            self._end(Outcome.SERVER_ERROR, False)
            return
        self._truncated("endpoint_lost")

    def bad_answer(self, error: Malformed) -> None:
        """The endpoint broke the protocol."""
        self.keeper.gateway.log_bad_answer(self, error)
        if self.state == RELAYING:
            self._truncated(error.reason)
        else:
            self._fail(Outcome.SERVER_ERROR, error.reason, "The agent's answer was not valid HTTP.")

    def _truncated(self, reason: str) -> None:
        self.reason = reason
        self.drop_upstream()
        self.journal.give_up()
        self._end(Outcome.TRUNCATED, False)

    def _fail(self, outcome: Outcome, code: str, message: str) -> None:
        """An end that another attempt would only repeat."""
        self.reason = code
        self.drop_upstream()
        self.journal.finish("failed", error=msgspec.json.encode({"code": code, "message": message}))
        self._end(outcome, False)

    # -- from the store ---------------------------------------------------------------------------------------------

    def on_cancel(self) -> None:
        """The agent sees its connection close."""
        self.stop("cancelled")
        self.journal.finish("cancelled")

    def on_fenced(self) -> None:
        self.stop("fenced")
        self.keeper.ended(self, None)

    def on_room(self) -> None:
        if self.upstream is not None and self.upstream.paused:
            self.upstream.resume_reading()
            self.last = monotonic()

    def on_settled(self, settled: Settled | None) -> None:
        self.keeper.ended(self, settled)

    def stop(self, reason: str) -> None:
        """Leave the balancer's queue and the endpoint; what becomes of the run is the journal's."""
        if self.state == ENDED:
            return
        self.reason = reason
        ticket = self.ticket
        if ticket is not None:
            self._leave_queue()
            self.keeper.gateway.balancer.cancel(ticket, monotonic())
        self.drop_upstream()
        self._end(Outcome.CANCELLED, False)

    # -- time -------------------------------------------------------------------------------------------------------

    def look(self, when: float) -> None:
        """Have `on_timer` called no later than `when`."""
        if when < self.due:
            self.keeper.gateway.wheel.at(self, when)

    def on_timer(self, now: float) -> float:
        """Signs of life and time limits; returns when to look again."""
        journal = self.journal
        if journal.closed:
            return NEVER
        if now >= journal.beat_at or now >= self.expires:
            journal.beat()
        if self.parked_until and now >= self.parked_until and not journal.ending:
            self.parked_until = now + PARKED  # unless it is had now
            self.offer(now)
        due = journal.beat_at if journal.beat_at > now else now + journal.lease / 3
        if self.parked_until:
            due = min(due, self.parked_until)
        return min(due, self.expires if self.expires > now else now + EXPIRY, self._enforce(now))

    def _enforce(self, now: float) -> float:
        if self.lease is None or self.state not in (WAITING, RELAYING):
            return NEVER
        slow_store = self.upstream is not None and self.upstream.paused
        reason, message, due = limits.passed(self, now, slow_store)
        if reason:
            self._fail(Outcome.TIMEOUT, reason, message)
            return NEVER
        return due

    # -- the end ----------------------------------------------------------------------------------------------------

    def _end(self, outcome: Outcome, reusable: bool, unreached: bool = False) -> None:
        """Once: give back slot and connection. The journal goes on by itself until all is written."""
        if self.state == ENDED:
            return
        now = monotonic()
        self.state = ENDED
        self._leave_parking()
        gateway = self.keeper.gateway
        connection, self.upstream = self.upstream, None
        if connection is not None:
            if reusable:
                connection.release()
            else:
                gateway.stats.upstream_discarded += 1
                connection.close()
        if self.events is not None:
            gateway.stats.held -= 1
        lease, self.lease = self.lease, None
        if lease is None:
            return
        stats = gateway.stats.service(self.service.name)
        stats.bytes_in += self.bytes_in
        stats.bytes_out += self.bytes_out
        arrived = self.arrived
        stats.finished(
            lease.heavy, outcome, now - arrived, self.queued, self.first_byte - arrived if self.first_byte else -1.0
        )
        if lease.fallback:
            stats.fallbacks += 1
        if gateway.access_log.enabled:
            gateway.log_access(self, lease, outcome, now)  # type: ignore[arg-type]
        if lease.outcome is None:
            gateway.finish(lease, outcome, now, None if self.tap is None else self.tap.tail, unreached)
