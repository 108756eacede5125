"""What all connections of one gateway share: balancer, settings, figures, and the hot path between them.

`route` turns a parsed head into an exchange; `finish` and `settled` end it. The rest is called by the tick, by a reload
or by the admin listener.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Callable, Coroutine
from random import Random
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

import msgspec

from unjam.core import split
from unjam.core.balancer import Balancer
from unjam.core.model import Lease, Outcome, Refusal, Request
from unjam.gateway import features, respond
from unjam.gateway.auth import NOBODY, Tenant
from unjam.gateway.backlog import Backlog
from unjam.gateway.exchange import Exchange
from unjam.gateway.intake import Intake
from unjam.gateway.paths import Paths
from unjam.gateway.routing import Route, Router
from unjam.gateway.settings import Settings
from unjam.gateway.states import INSPECTING
from unjam.gateway.timers import Wheel
from unjam.telemetry import logs
from unjam.telemetry.accesslog import REFUSED, AccessLog, Entry
from unjam.telemetry.metrics import GatewayStats
from unjam.wire import websocket
from unjam.wire.errors import Malformed

if TYPE_CHECKING:
    from unjam.gateway.client import ClientConnection
    from unjam.gateway.leased import Leased
    from unjam.gateway.local import LocalExchange
    from unjam.gateway.respond_async import RespondAsync
    from unjam.gateway.upstream import Upstream
    from unjam.wire.http1 import RequestHead, ResponseHead

#: What an id of a request is, other than one of ours.
REQUEST_ID = re.compile(rb"[!-~]{1,128}").fullmatch
_TOTAL_TOKENS = re.compile(rb'"total_tokens"\s*:\s*(\d{1,12})').findall


FORBIDDEN = "This API key may not call this service."


class _Body(msgspec.Struct):
    """What is read of a JSON body where a service asks for it."""

    model: str | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None


_decode_body = msgspec.json.Decoder(_Body).decode


class Gateway:
    """One per process. Everything runs on `loop`'s thread. `rng` is the balancer's alone: the same seed and the same
    requests give the same decisions as the bare core."""

    def __init__(self, loop: asyncio.AbstractEventLoop, settings: Settings, rng: Random) -> None:
        self.loop = loop
        self.settings = settings
        self.balancer = Balancer(rng)
        self.stats = GatewayStats()
        self.access_log = AccessLog("off", stats=self.stats)
        self.log = logs.get("gateway")
        self.rejections = logs.Rejections(self.stats)
        self.clients: set[ClientConnection] = set()
        #: Monotonic seconds as of the last tick: good enough for idle times.
        self.now = monotonic()
        self.wheel = Wheel(self.now)
        self.backlog = Backlog()
        self.intake = Intake()
        #: Sockets held by the data plane, and how many it may hold.
        self.descriptors = 0
        self.descriptor_cap = 1 << 30
        self.draining = False
        self.router = Router(self.balancer, self.stats)
        #: Paths that the gateway answers itself.
        self.paths = Paths()
        #: Fields that are looked at closer; with runs, `Prefer` is one, and this is who does what it says.
        self.hints = features.HINTS
        self.respond_async: RespondAsync | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._id_prefix = secrets.token_hex(8).encode("ascii")
        self._id_count = 0

    # -- the hot path ----------------------------------------------------------------------------------------------

    def route(self, client: ClientConnection, head: RequestHead, now: float) -> Exchange | None:
        """The exchange for one request, not yet offered; None when it was answered here. Raises `Malformed`."""
        self.stats.requests_total += 1
        known = head.known
        request_id = known.get(b"x-request-id")
        if request_id is None or REQUEST_ID(request_id) is None:
            self._id_count += 1
            request_id = b"%b%08x" % (self._id_prefix, self._id_count)
        settings = self.settings
        caller: Tenant | None = None
        if settings.keyring:
            caller = self._caller(client, head, request_id)
            if caller is None:
                return None
        length = head.length
        key = (head.method, head.host, head.path, length.bit_length() if length else -1 if head.chunked else 0)
        route = self.router.known.get(key)
        if route is None:
            if head.path in ("/healthz", "/readyz"):
                self._health(client, head)
                return None
            if self.paths.owns(head.method, head.path):
                return cast("Exchange | None", self.paths.begin(client, head, request_id, now, caller))
            route = self.router.find(head, key)
            if route is None:
                self._answer(
                    client, head, request_id, 404, "no_service", "No service of this gateway has this address."
                )
                return None
        return self.admitted(client, head, route, request_id, now, caller)

    def admitted(
        self,
        client: ClientConnection,
        head: RequestHead,
        route: Route,
        request_id: bytes,
        now: float,
        caller: Tenant | None,
        keep: bool = True,
    ) -> Exchange | None:
        """As `route`, of a request whose way is known. `keep`: as a run, if its client prefers that."""
        known = head.known
        if (
            caller is not None
            and not caller.may_call(route.service.name)
            and not (self.router.by_model and head.has_body)  # the body says which service; asked again then
        ):
            self.stats.reject("forbidden")
            self._answer(client, head, request_id, 403, "forbidden", FORBIDDEN)
            return None
        exchange = Exchange(client, head, route, request_id, now, caller.name if caller is not None else "")
        if head.upgrade is not None:
            websocket.check_handshake(head, self.settings.origins.get(route.service.name))
        if not route.plain:
            self.stick(head.get, exchange)
            if (route.service.spec.inspect == "body" or self.router.by_model) and head.has_body:
                exchange.state = INSPECTING
        if not self.hints.isdisjoint(known):
            later = self.respond_async if keep else None
            if later is not None and b"prefer" in known and later.wanted(head, route.service):
                return cast(Exchange, later.begin(client, head, request_id, now, caller, route.service))
            try:
                self._hints(known, exchange, now)
            except features.BadHint as error:
                self.stats.reject("bad_hint")
                self._answer(client, head, request_id, 400, "bad_hint", str(error))
                return None
        return exchange

    def finish(
        self, lease: Lease, outcome: Outcome, now: float, tail: bytes | None = None, connect_failed: bool = False
    ) -> None:
        """End the lease and send on whoever was waiting for its slot. `tail`: the end of an answer in which a provider
        may have said how many tokens it took."""
        tokens = None
        if tail:
            figures = _TOTAL_TOKENS(tail)
            if figures:
                tokens = int(figures[-1])
        waiting = self.balancer.finish(lease, outcome, now, tokens=tokens, connect_failed=connect_failed)
        if waiting:
            self.carry_out(waiting, now)

    # -- parts of routing ------------------------------------------------------------------------------------------

    def _caller(self, client: ClientConnection, head: RequestHead, request_id: bytes) -> Tenant | None:
        known = head.known
        if head.path in ("/healthz", "/readyz"):
            self._health(client, head)
            return None
        authorization, api_key = known.get(b"authorization"), known.get(b"x-api-key")
        caller = self.settings.keyring.tenant(authorization, api_key)
        if caller is None:
            if authorization is None and api_key is None and head.path in self.paths.asking:
                return NOBODY
            self.stats.reject("unauthorized")
            self._answer(
                client,
                head,
                request_id,
                401,
                "unauthorized",
                "A valid API key is required: send it as Authorization: Bearer KEY.",
                b'www-authenticate: Bearer realm="unjam"\r\n',
            )
        return caller

    def stick(self, header: Callable[[bytes], bytes | None], exchange: Request) -> None:
        """The keys that tie a request to earlier ones. `header`: looks one up by lower-case name."""
        spec = exchange.service.spec
        if spec.session is not None:
            session = None
            if spec.session.header is not None:
                session = _text(header(spec.session.header.lower().encode("ascii")))
            if session is None and spec.session.cookie is not None:
                session = _cookie(header(b"cookie"), spec.session.cookie)
            exchange.session = session or None
        if exchange.service.splits:
            exchange.splits = split.applicable(exchange.service.splits, header, exchange.tenant)
        sticky = spec.sticky
        if sticky is None or sticky == "session":
            exchange.sticky = exchange.session
        elif sticky == "tenant":
            exchange.sticky = exchange.tenant or None
        else:
            exchange.sticky = _text(header(sticky.lower().encode("ascii")))

    def _hints(self, known: dict[bytes, bytes], exchange: Exchange, now: float) -> None:
        """What the caller declares of its request. Raises `BadHint`."""
        value = known.get(b"x-unjam-lane")
        if value is not None:
            exchange.lane_hint = features.lane(value)
        value = known.get(b"x-unjam-expected-seconds")
        if value is not None:
            exchange.seconds_hint = features.seconds("x-unjam-expected-seconds", value)
        value = known.get(b"x-unjam-deadline")
        if value is not None:
            exchange.deadline = exchange.cut_at = now + features.seconds("x-unjam-deadline", value)
            exchange.client.look(exchange.deadline)
        else:
            patience = features.client_timeout(known)
            if patience is not None:
                exchange.deadline = now + patience

    def inspected(self, exchange: Exchange, whole: bool) -> bool:
        """The body of a request is there, or as much as is looked at: read its model and its tokens. False: it was
        answered here, as no service takes it or its key may not call the one that does."""
        try:
            body = _decode_body(b"".join(exchange.body))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            body = _Body()  # not JSON, or cut: routed by its head; the endpoint is the one to judge its body
        head = exchange.head
        if self.router.by_model:
            service = self.router.match(head, body.model)
            if service is None:
                if whole:
                    exchange.fail(404, "no_service", "No service of this gateway has this address or this model.")
                else:
                    exchange.fail(413, "body_too_large", "The body is too large to be searched for its model.")
                return False
            if service is not exchange.service:
                exchange.take(self.router.route(head, service))
                self.stick(head.get, exchange)
            keyring = self.settings.keyring
            if keyring:
                caller = keyring.tenant(head.known.get(b"authorization"), head.known.get(b"x-api-key"))
                if caller is None or not caller.may_call(service.name):
                    self.stats.reject("forbidden")
                    exchange.fail(403, "forbidden", FORBIDDEN)
                    return False
        if body.model is not None:
            exchange.bucket = f"{exchange.bucket} {body.model[:64]}"
        most = body.max_completion_tokens or body.max_tokens or body.max_output_tokens
        if most is not None and most > 0:
            exchange.tokens = most + exchange.bytes_in // 4  # about four bytes a token
        return True

    def _health(self, client: ClientConnection, head: RequestHead) -> None:
        status, word = 200, b"ok\n"
        if head.path == "/readyz":
            ready, why = self.ready()
            if not ready:
                status, word = 503, why.encode() + b"\n"
        if head.has_body:
            client.keep_alive = client.can_discard(head, 0)
        answer = respond.text(status, word, close=not client.keep_alive)
        client.transport.write(answer[: -len(word)] if head.method == "HEAD" else answer)

    def ready(self) -> tuple[bool, str]:
        if self.draining:
            return False, "draining"
        return True, "ready"

    def _answer(
        self,
        client: ClientConnection,
        head: RequestHead,
        request_id: bytes,
        status: int,
        code: str,
        message: str,
        extra: bytes = b"",
    ) -> None:
        """An answer to a request that gets no exchange."""
        if head.length or head.chunked:
            client.keep_alive = client.can_discard(head, 0)
        client.transport.write(
            respond.error(
                status,
                code,
                message,
                request_id=request_id.decode("ascii"),
                close=not client.keep_alive,
                extra=extra,
                head_only=head.method == "HEAD",
            )
        )
        self.log_answer(client, head, request_id, status, REFUSED, code)

    # -- telling ---------------------------------------------------------------------------------------------------

    def log_answer(
        self,
        client: ClientConnection,
        head: RequestHead,
        request_id: bytes,
        status: int,
        outcome: str,
        reason: str | None = None,
        tenant: str | None = None,
    ) -> None:
        """One line for a request that had no exchange."""
        if not self.access_log.enabled:
            return
        self.access_log.write(
            Entry(request_id.decode("ascii"), client.peer, tenant, head.method, head.path, status, outcome, reason)
        )

    def log_access(self, exchange: Exchange, lease: Lease | None, outcome: Outcome, now: float) -> None:
        """One line for a request that has ended."""
        head = exchange.head
        trace = head.known.get(b"traceparent")
        started = exchange.arrived
        self.access_log.write(
            Entry(  # positional: keywords would cost a microsecond
                exchange.request_id.decode("ascii"),
                self.settings.trusted.client(exchange.client.peer, head),
                exchange.tenant or None,
                head.method,
                head.path,
                exchange.status,
                outcome if lease is not None else REFUSED,
                exchange.reason or None,
                exchange.service.name,
                trace[3:35].decode("latin-1") if trace is not None else None,
                exchange.bytes_in,
                exchange.bytes_out,
                exchange.first_byte - started if exchange.first_byte else None,
                now - started,
                lease.version.name if lease is not None else None,
                lease.endpoint.name if lease is not None else None,
                lease.lane if lease is not None else None,
                lease.expected if lease is not None else None,
                exchange.queued,
                exchange.retries,
            )
        )

    def log_local(self, exchange: LocalExchange, outcome: str) -> None:
        """One line for a request that the gateway has answered itself."""
        head = exchange.head
        trace = head.known.get(b"traceparent")
        self.access_log.write(
            Entry(
                exchange.request_id.decode("ascii"),
                self.settings.trusted.client(exchange.client.peer, head),
                exchange.tenant or None,
                head.method,
                head.path,
                exchange.status,
                outcome,
                exchange.reason or None,
                exchange.service,
                trace[3:35].decode("latin-1") if trace is not None else None,
                exchange.bytes_in,
                exchange.bytes_out,
                exchange.first_byte - exchange.arrived if exchange.first_byte else None,
                monotonic() - exchange.arrived,
            )
        )

    def rejected(self, reason: str, peer: str) -> None:
        self.rejections.reject(reason, peer)

    def log_connect_failure(self, upstream: Upstream, error: Exception) -> None:
        self.log.warning("connect_failed", endpoint=upstream.endpoint.name, error=type(error).__name__, why=str(error))

    def log_bad_answer(self, request: Leased, error: Malformed) -> None:
        lease = request.lease
        self.log.warning("bad_answer", endpoint=lease.endpoint.name if lease else "", reason=error.reason)

    # -- quota -----------------------------------------------------------------------------------------------------

    def heed(self, lease: Lease, head: ResponseHead, now: float) -> None:
        """A provider says what is left of a quota: its word is better than our count."""
        known = head.known
        limits = features.provider_limits(known, head.status)
        if limits is not None:
            self.balancer.heed(lease.endpoint, now=now, **limits)

    # -- the tick --------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Every 100 ms: expiries, promotions, time-outs, logs."""
        now = self.now = monotonic()
        self.carry_out(self.balancer.tick(now), now)
        self.wheel.turn(now, self.fault)
        self.access_log.flush()
        self.rejections.tick()
        logs.flush()

    def carry_out(self, decisions: Any, now: float) -> None:
        """Do what the core decided outside of an offer: dispatch who waited, refuse who waited too long."""
        for decision in decisions:
            exchange = decision.request
            try:
                if type(decision) is Refusal:
                    exchange.refuse(decision)
                else:
                    exchange.dispatch(decision, now)
            except Exception:  # noqa: BLE001 - a fault in one exchange must not strand the others decided on with it
                self.fault(exchange.client)

    def fault(self, client: ClientConnection) -> None:
        """Something in us failed while it served this client: say so with the traceback, and end that client's
        connection, which gives back whatever its exchange held. Called in an `except` block."""
        self.log.exception("fault", client=client.peer)
        client.transport.abort()

    def full(self) -> str:
        """Why no further connection can be taken; empty when it can."""
        if self.descriptors >= self.descriptor_cap:
            return "descriptor_limit"
        if self.stats.connections_open > self.settings.max_connections:
            return "connection_limit"
        return ""

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")


def _cookie(header: bytes | None, name: str) -> str | None:
    if header is None:
        return None
    wanted = name.encode("latin-1")
    for pair in header.split(b";"):
        key, found, value = pair.strip().partition(b"=")
        if found and key == wanted:
            return value.decode("latin-1")
    return None
