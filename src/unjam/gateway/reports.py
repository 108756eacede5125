"""The listener for reporters: `POST /v1/report`, HTTP/1.1 with keep-alive, answered in order, one write for what came
in one piece.

Read as strictly as clients' requests are. Nothing but the token opens it: a missing or wrong one is answered 401, the
same whatever else the request says. A report costs neither a task nor a line of a log; what is refused is counted, and
told once a minute for each endpoint.

How old a report is: the gateway puts its own time in each answer (`echo`), and the reporter sends it back with the
seconds it `held` it before it measured. So the age is right whatever the clocks say, and whatever lay between.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable
from hashlib import sha256
from hmac import compare_digest
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import msgspec

from unjam.core.load import DRAINING, REPORT_LIFE, LoadReport
from unjam.core.spec import EndpointSpec
from unjam.gateway import respond
from unjam.gateway.closing import DISCARD, LINGER
from unjam.gateway.loads import ACCEPTED, BAD_LOAD, LATE, hand_over, problem_of
from unjam.gateway.members import BAD_REPORT, UNAUTHORIZED, Member, Members, Refused
from unjam.gateway.parked import Parking
from unjam.gateway.report import FIGURES, SOURCE, Report, decode, load_of
from unjam.gateway.timers import NEVER
from unjam.wire.errors import Malformed
from unjam.wire.http1 import RequestHead, RequestReader

if TYPE_CHECKING:
    from unjam.config.schema import Reporters
    from unjam.gateway.gateway import Gateway

#: Bytes of one report.
MOST_BYTES: Final = 16384
#: Reporters connected at once.
MOST_CONNECTIONS: Final = 10_000
#: Seconds between reports that reporters are asked for.
INTERVAL: Final = 2.0
#: With more reporters than this, what they say waits for the next tick (100 ms at most) and is read all at once: a
#: processor that is woken for each of 500 reports a second takes three times as long for one.
MOST_AT_ONCE: Final = 64

_CHALLENGE: Final = b'www-authenticate: Bearer realm="unjam"\r\n'
_HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncache-control: no-store\r\n"

READING, CLOSING, CLOSED = range(3)


class Reports:
    """What is done with reports, and the connections they come by. `clock`: monotonic seconds."""

    def __init__(self, gateway: Gateway, members: Members, clock: Callable[[], float] = monotonic) -> None:
        self.gateway = gateway
        self.members = members
        self.clock = clock
        self.connections: set[ReportConnection] = set()
        self.parking = Parking()
        self._digest = b""
        # Times of another process mean nothing here.
        self._mark = f"{secrets.token_hex(4)}-"
        self._epoch = clock()

    def configure(self, reporters: Reporters | None) -> None:
        """Take the token of a configuration; without reporters, whoever is connected goes."""
        if reporters is None:
            self._digest = b""
            self.close()
        elif reporters.token.startswith("sha256:"):
            self._digest = bytes.fromhex(reporters.token.removeprefix("sha256:"))
        else:
            self._digest = sha256(reporters.token.encode()).digest()

    def authorised(self, head: RequestHead) -> bool:
        """In constant time: digests are compared, and those have one length."""
        value = head.known.get(b"authorization", b"")
        scheme, _, token = value.partition(b" ")
        return compare_digest(sha256(token.strip()).digest(), self._digest) and scheme.lower() == b"bearer"

    def close(self) -> None:
        """Take nothing new: idle connections are closed, the others after their answer."""
        for connection in list(self.connections):
            connection.drain()

    def tick(self) -> None:
        """Ten times a second."""
        self.parking.look()

    def abort(self) -> None:
        for connection in list(self.connections):
            connection.transport.abort()
        self.parking.close()

    # -- one report ------------------------------------------------------------------------------------------------

    def answer(self, body: bytes, peer: str, keep_alive: bool) -> bytes:
        """Do what a report says; the whole answer."""
        now = self.clock()
        stats = self.gateway.stats
        try:
            try:
                report = decode(body)
            except msgspec.ValidationError as error:
                raise Refused(400, "bad_report", f"{error}.", BAD_REPORT) from None
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                raise Refused(400, "bad_json", "The body is not JSON.", BAD_REPORT) from None
            payload = self._take(report, peer, now)
        except Refused as refused:
            stats.report(refused.result)
            if refused.result == BAD_REPORT:
                self._blame(body, refused, peer, now)
            elif refused.result != BAD_LOAD:  # told already
                self.members.refused(
                    _name(report.service, report.version, report.url), refused.code, refused.message, now
                )
            return respond.error(refused.status, refused.code, refused.message, close=not keep_alive)
        if keep_alive:
            return b"%bcontent-length: %d\r\n\r\n%b" % (_HEAD, len(payload), payload)
        return b"%bcontent-length: %d\r\nconnection: close\r\n\r\n%b" % (_HEAD, len(payload), payload)

    def _take(self, report: Report, peer: str, now: float) -> bytes:
        """Raises `Refused`."""
        members = self.members
        member, version, target = members.meet(report.service, report.version, report.url)
        age = self._age(report.echo, report.held, now)
        load = load_of(report, age)
        if member is None:
            assert target is not None
            members.may_join(version, target, report.region, peer)
            problem = load.problem()
            if problem:
                members.refused(_name(report.service, version.name, target.url), "bad_load", problem, now)
                raise Refused(422, "bad_load", f"{problem}.", BAD_LOAD)
            if report.state == "leaving" or age >= REPORT_LIFE:
                # Gone already; or news of another time, by which nobody can join.
                self.gateway.stats.report(ACCEPTED if report.state == "leaving" else LATE)
                return self._said(target.url, 0, 0, report.state == "leaving", now)
            spec = EndpointSpec(target.url, slots=report.slots, region=report.region, weight=report.weight)
            member = members.join(version, spec, now)
        elif report.state == "leaving":
            return self._leave(member, now)
        elif member.joined and (
            (given := member.endpoint.given).slots != report.slots
            or given.weight != report.weight
            or given.region != report.region
        ):
            member = self._again(member, report, now)
        members.heard(member, now)
        endpoint = member.endpoint
        result = hand_over(self.gateway, endpoint, load, now)
        if result == BAD_LOAD:
            problem = problem_of(endpoint)
            members.refused(endpoint.name, "bad_load", problem, now)
            raise Refused(422, "bad_load", f"{problem}.", BAD_LOAD)
        self.gateway.stats.report(result)
        member.draining = report.state == "draining"
        draining = endpoint.draining or endpoint.load_state == DRAINING
        return self._said(endpoint.url, endpoint.inflight, endpoint.heavy, draining, now)

    def _leave(self, member: Member, now: float) -> bytes:
        endpoint = member.endpoint
        inflight, heavy = endpoint.inflight, endpoint.heavy
        if member.joined:
            self.members.leave(member, now, "its reporter says so")
        else:
            # Nothing is known of it from now on.
            hand_over(self.gateway, endpoint, LoadReport(source=SOURCE), now)
            self.members.drop(member)
        self.gateway.stats.report(ACCEPTED)
        return self._said(endpoint.url, inflight, heavy, True, now)

    def _again(self, member: Member, report: Report, now: float) -> Member:
        """It came back with another size or region: it joins anew, and what runs on it goes on."""
        endpoint = member.endpoint
        version = endpoint.pool.version
        if report.region is not None and report.region not in self.gateway.balancer.regions:
            raise Refused(400, "bad_report", "region: there is no such region.", BAD_REPORT)
        self.members.leave(member, now, "its reporter gives it another size")
        spec = EndpointSpec(endpoint.url, slots=report.slots, region=report.region, weight=report.weight)
        return self.members.join(version, spec, now)

    def _said(self, url: str, inflight: int, heavy: int, draining: bool, now: float) -> bytes:
        return b'{"endpoint":%b,"inflight":%d,"heavy":%d,"echo":"%b%x","interval":%.1f,"draining":%b}' % (
            msgspec.json.encode(url),
            inflight,
            heavy,
            self._mark.encode(),
            int((now - self._epoch) * 1e6) + 1,  # up: one that follows at once is no older than the one before
            INTERVAL,
            b"true" if draining else b"false",
        )

    def _age(self, echo: str | None, held: float, now: float) -> float:
        """Seconds since the figures were measured. Without an echo of ours nothing is known: 0."""
        if echo is None or not echo.startswith(self._mark):
            return 0.0
        try:
            sent = int(echo[len(self._mark) :], 16) / 1e6
        except (ValueError, OverflowError):
            return 0.0
        return max(0.0, now - self._epoch - sent - held)

    def _blame(self, body: bytes, refused: Refused, peer: str, now: float) -> None:
        """Say whose report it was that couldn't be read, if it can be made out: NaN is no JSON, but who sends it is to
        be named in `unjam status` like any other liar. Not on the way of good reports."""
        try:
            found = json.loads(body)
            service, version, url = found["service"], found.get("version"), found["url"]
            member, _, _ = self.members.meet(service, version, url)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, Refused):
            self.gateway.rejections.reject(f"report_{refused.code}", peer)
            return
        self.members.refused(_name(service, version, url), refused.code, refused.message, now)
        if member is None:
            return
        self.members.heard(member, now)
        figures = found.get("load")
        if refused.code == "bad_json" and isinstance(figures, dict):
            known = {name: figures[name] for name in FIGURES if isinstance(figures.get(name), int | float)}
            load = LoadReport(**known, source=SOURCE)
            if load.problem():
                hand_over(self.gateway, member.endpoint, load, now)


def _name(service: Any, version: Any, url: Any) -> str:
    return f"{service}/{version}/{url}" if version is not None else f"{service}/{url}"


class ReportConnection(asyncio.Protocol):
    """One reporter's connection."""

    __slots__ = (
        "_body",
        "_discarded",
        "_head",
        "_inbox",
        "_keep_alive",
        "_last",
        "_left",
        "_mode",
        "_paused",
        "_reader",
        "_reports",
        "_since",
        "due",
        "peer",
        "transport",
    )

    transport: asyncio.Transport

    def __init__(self, reports: Reports) -> None:
        self._reports = reports
        self._reader = RequestReader(reports.gateway.settings.wire_limits)
        #: The request whose body is still under way, as far as it has come.
        self._head: RequestHead | None = None
        self._body = b""
        self._left = 0
        self._inbox = b""
        self._mode = READING
        self._paused = False
        self._keep_alive = True
        self._discarded = 0
        #: When the request under way began; 0: none is.
        self._since = 0.0
        self._last = 0.0
        self.due = NEVER
        self.peer = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        reports, gateway = self._reports, self._reports.gateway
        gateway.descriptors += 1
        reports.connections.add(self)
        peer = transport.get_extra_info("peername")
        self.peer = peer[0] if peer and isinstance(peer, tuple) else "unix"
        self._last = monotonic()
        if len(reports.connections) > MOST_CONNECTIONS or gateway.descriptors >= gateway.descriptor_cap:
            gateway.rejections.reject("report_connections", self.peer)
            self.transport.write(
                respond.error(503, "too_many_reporters", "No room for another reporter.", retry_after=5, close=True)
            )
            self._mode = CLOSED
            self.transport.close()
            return
        settings = gateway.settings
        gateway.wheel.at(self, self._last + min(settings.header_timeout, settings.keepalive))

    def connection_lost(self, error: Exception | None) -> None:
        self._mode = CLOSED
        self._reports.parking.drop(self)
        self._reports.gateway.descriptors -= 1
        self._reports.connections.discard(self)
        self._reader.forget()
        self._head = None
        self._body = self._inbox = b""

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        # It asks, and doesn't read what it is told: it may not ask for more.
        self._paused = True
        if not self._reports.parking.drop(self) and not self.transport.is_closing():
            self.transport.pause_reading()

    def resume_writing(self) -> None:
        self._paused = False
        if self._mode == READING and not self.transport.is_closing():
            self.transport.resume_reading()
            data, self._inbox = self._inbox, b""
            if data:
                self._read(data)

    def data_received(self, data: bytes) -> None:
        if self._mode != READING:
            self._discarded += len(data)
            if self._discarded > DISCARD:
                self.transport.abort()
        elif self._paused:
            self._inbox += data
        else:
            self._read(data)

    def parked_data(self, data: bytes) -> None:
        """See `parked.Parked`."""
        self.data_received(data)

    def _read(self, data: bytes) -> None:
        gateway = self._reports.gateway
        self._last = gateway.now
        answers: list[bytes] = []
        try:
            while data and self._mode == READING:
                data = self._feed(data, answers)
        except Malformed as error:
            gateway.rejections.reject("report_malformed", self.peer)
            gateway.stats.report(BAD_REPORT)
            answers.append(respond.error(error.status, error.reason, error.detail, close=True))
            self._mode = CLOSING
        except Exception:  # noqa: BLE001 - a fault over one report must not reach the loop, nor other reporters
            gateway.fault(self)  # type: ignore[arg-type]
            return
        if answers:
            self.transport.write(answers[0] if len(answers) == 1 else b"".join(answers))
        if self._mode == CLOSING:
            self._close()
        elif len(self._reports.connections) > MOST_AT_ONCE and not self._paused:
            self._reports.parking.park(self)

    def _feed(self, data: bytes, answers: list[bytes]) -> bytes:
        """Take in what belongs to one request; the bytes behind it. Raises `Malformed`."""
        head = self._head
        if head is None:
            head = self._reader.feed(data)
            if head is None:
                if not self._since and self._reader.pending:
                    self._begin()
                return b""
            data = self._reader.rest
            self._keep_alive = head.keep_alive and not self._reports.gateway.draining
            refusal = self._refusal(head)
            if refusal is not None:
                self._mode = CLOSING
                answers.append(refusal)
                return b""
            self._left = head.length or 0
        if len(data) < self._left:
            self._body += data
            self._left -= len(data)
            if self._head is None:
                self._head = head
                if not self._since:
                    self._begin()
                if head.expect_continue and not data:
                    answers.append(b"HTTP/1.1 100 Continue\r\n\r\n")
            return b""
        body, rest = data[: self._left], data[self._left :]
        if self._head is not None:
            body = self._body + body
            self._head = None
            self._body = b""
        self._since = 0.0
        self._left = 0
        answers.append(self._reports.answer(body, self.peer, self._keep_alive))
        if not self._keep_alive:
            self._mode = CLOSING
        return rest

    def _refusal(self, head: RequestHead) -> bytes | None:
        """The answer to a request whose body isn't read. The connection ends with it."""
        reports = self._reports
        if not reports.authorised(head):
            reports.gateway.stats.report(UNAUTHORIZED)
            reports.gateway.rejections.reject("report_unauthorized", self.peer)
            message = "Send the reporters' token as Authorization: Bearer TOKEN."
            return respond.error(401, "report_unauthorized", message, close=True, extra=_CHALLENGE)
        if head.path != "/v1/report":
            return self._bad(404, "not_found", "Reports go to POST /v1/report.")
        if head.method != "POST":
            return self._bad(405, "method_not_allowed", "Reports go to POST /v1/report.", b"allow: POST\r\n")
        if head.chunked or head.length is None:
            return self._bad(411, "length_required", "A report says its Content-Length.")
        if head.length > MOST_BYTES:
            return self._bad(413, "body_too_large", f"A report has at most {MOST_BYTES} bytes.")
        return None

    def _bad(self, status: int, code: str, message: str, extra: bytes = b"") -> bytes:
        self._reports.gateway.stats.report(BAD_REPORT)
        self._reports.gateway.rejections.reject("report_malformed", self.peer)
        return respond.error(status, code, message, close=True, extra=extra)

    # -- ends ------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """The first bytes of a request are here, and the rest has to follow in time."""
        self._since = monotonic()
        self._reports.gateway.wheel.at(self, self._since + self._reports.gateway.settings.header_timeout)

    def on_timer(self, now: float) -> float:
        """See `timers.Timed`."""
        settings = self._reports.gateway.settings
        if self.transport.is_closing():
            # What it doesn't read must not keep its connection for ever.
            due = self._last + LINGER
            if now < due:
                return due
            self.transport.abort()
            return NEVER
        if self._mode == CLOSED:
            return NEVER
        if self._mode == CLOSING or self._paused:
            due = self._last + (LINGER if self._mode == CLOSING else settings.stall_timeout)
            if now >= due:
                self.transport.abort()
                return NEVER
            return due
        if not self._since:
            due = self._last + settings.keepalive
            if now >= due:
                self.transport.close()
                return NEVER
            return due
        due = self._since + settings.header_timeout
        if now < due:
            return due
        late = Malformed("head_timeout" if self._head is None else "body_timeout")
        self._reports.gateway.rejections.reject("report_malformed", self.peer)
        self._reports.gateway.stats.report(BAD_REPORT)
        self.transport.write(respond.error(late.status, late.reason, late.detail, close=True))
        self._mode = CLOSING
        self._close()
        return self._last + LINGER

    def drain(self) -> None:
        """The gateway takes no more reports."""
        self._keep_alive = False
        if self._mode == READING and not self._since:
            self._mode = CLOSED
            self.transport.close()

    def _close(self) -> None:
        """Half-close, and read on for a moment: an immediate close would reset the connection and destroy the answer
        on its way (RFC 9112 section 9.6)."""
        self._reports.parking.unpark(self)
        if self.transport.is_closing():
            return
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self._last = monotonic()
            self._reports.gateway.wheel.at(self, self._last + LINGER)
        else:
            self._mode = CLOSED
            self.transport.close()
