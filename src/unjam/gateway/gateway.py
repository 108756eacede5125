"""What all connections of one gateway share: balancer, settings, figures, and the hot path between them.

`route` turns a parsed head into an exchange; `finish` and `settled` end it. The rest is called by the tick, by a reload
or by the admin listener.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine
from random import Random
from time import monotonic
from typing import TYPE_CHECKING, Any

import msgspec

from unjam.core.balancer import Balancer
from unjam.core.model import Lease, Outcome, Refusal, Request
from unjam.gateway import features, respond
from unjam.gateway.exchange import INSPECTING, Exchange
from unjam.gateway.settings import Settings
from unjam.gateway.timers import Wheel
from unjam.telemetry import logs
from unjam.telemetry.accesslog import REFUSED, AccessLog
from unjam.telemetry.metrics import GatewayStats, ServiceStats
from unjam.wire import websocket
from unjam.wire.errors import Malformed

if TYPE_CHECKING:
    from unjam.core.service import Service
    from unjam.core.spec import Topology
    from unjam.gateway.client import ClientConnection
    from unjam.gateway.upstream import Upstream
    from unjam.wire.http1 import RequestHead, ResponseHead

#: Entries of the route memo before it is emptied: paths are the callers' to choose.
ROUTES = 4096

_REQUEST_ID = re.compile(rb"[!-~]{1,128}")
_TOTAL_TOKENS = re.compile(rb'"total_tokens"\s*:\s*(\d{1,12})')


class _Body(msgspec.Struct):
    """What is read of a JSON body where a service asks for it."""

    model: str | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None


_decode_body = msgspec.json.Decoder(_Body).decode


class Gateway:
    """One per process. Everything runs on `loop`'s thread."""

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
        #: Sockets held by the data plane, and how many it may hold.
        self.descriptors = 0
        self.descriptor_cap = 1 << 30
        self.draining = False
        self._routes: dict[tuple[str, str, str, int], tuple[Service, str]] = {}
        self._memoise = True
        self._by_model = False
        self._service_stats: dict[str, ServiceStats] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._id_prefix = f"{rng.getrandbits(64):016x}"
        self._id_count = 0

    # -- the hot path ----------------------------------------------------------------------------------------------

    def route(self, client: ClientConnection, head: RequestHead, now: float) -> Exchange | None:
        """The exchange for one request, not yet offered; None when it was answered here. Raises `Malformed`."""
        self.stats.requests_total += 1
        known = head.known
        settings = self.settings
        given_id = known.get(b"x-request-id")
        if given_id is not None and _REQUEST_ID.fullmatch(given_id):
            request_id = given_id.decode("ascii")
        else:
            self._id_count += 1
            request_id = f"{self._id_prefix}{self._id_count:08x}"
        path = head.path
        if path in ("/healthz", "/readyz"):
            self._health(client, head)
            return None
        tenant = ""
        allowed = None
        if settings.keyring:
            caller = settings.keyring.tenant(known.get(b"authorization"), known.get(b"x-api-key"))
            if caller is None:
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
                return None
            tenant = caller.name
            allowed = caller
        size = features.size_class(None if head.chunked else head.length or 0)
        key = (head.method, head.host, path, size)
        found = self._routes.get(key)
        if found is None:
            found = self._find(head, key)
            if found is None:
                self._answer(
                    client, head, request_id, 404, "no_service", "No service of this gateway has this address."
                )
                return None
        service, bucket = found
        if allowed is not None and not allowed.may_call(service.name):
            self.stats.reject("forbidden")
            self._answer(client, head, request_id, 403, "forbidden", "This API key may not call this service.")
            return None
        if head.upgrade is not None:
            websocket.check_handshake(head, settings.origins.get(service.name))
        spec = service.spec
        request = Request(service, bucket, now, tenant)
        exchange = Exchange(client, head, service, request, request_id, now)
        request.context = exchange
        if spec.session is not None or spec.sticky is not None:
            self._stick(head, request, tenant)
        if known:
            try:
                self._hints(known, request, exchange, now)
            except features.BadHint as error:
                self.stats.reject("bad_hint")
                self._answer(client, head, request_id, 400, "bad_hint", str(error))
                return None
        if (spec.inspect == "body" or self._by_model) and (head.length or head.chunked):
            exchange.state = INSPECTING
        return exchange

    def finish(
        self, lease: Lease, outcome: Outcome, now: float, tail: bytes | None = None, connect_failed: bool = False
    ) -> None:
        """End the lease and send on whoever was waiting for its slot."""
        tokens = None
        if tail:
            figures = _TOTAL_TOKENS.findall(tail)
            if figures:
                tokens = int(figures[-1])
        for ready in self.balancer.finish(lease, outcome, now, tokens=tokens, connect_failed=connect_failed):
            ready.request.context.dispatch(ready, now)

    def settled(self, exchange: Exchange, lease: Lease | None, outcome: Outcome, now: float) -> None:
        """Keep the figures of an exchange that has ended; write its line in the access log."""
        stats = self.service_stats(exchange.service)
        seconds = now - exchange.started
        first_byte = exchange.first_byte - exchange.started if exchange.first_byte else -1.0
        stats.bytes_in += exchange.bytes_in
        stats.bytes_out += exchange.bytes_out
        if lease is not None:
            stats.finished(lease.heavy, outcome, seconds, exchange.queued, first_byte)
            if lease.fallback:
                stats.fallbacks += 1
        elif exchange.status == 499:
            stats.queue_cancelled += 1
        if self.access_log.enabled:
            self._log_access(exchange, lease, outcome, seconds, first_byte)

    def service_stats(self, service: Service) -> ServiceStats:
        stats = self._service_stats.get(service.name)
        if stats is None:
            stats = self._service_stats[service.name] = self.stats.service(service.name)
        return stats

    # -- parts of routing ------------------------------------------------------------------------------------------

    def _find(self, head: RequestHead, key: tuple[str, str, str, int]) -> tuple[Service, str] | None:
        def header(name: str) -> str | None:
            value = head.get(name.lower().encode("ascii"))
            return None if value is None else value.decode("latin-1")

        service = self.balancer.match(head.host, head.path, header)
        if service is None:
            if not self._by_model or not (head.length or head.chunked):
                return None
            service = next(iter(self.balancer.services.values()))  # until the body says which
        bucket = self._bucket(service, head)
        if self._memoise:
            if len(self._routes) >= ROUTES:
                self._routes.clear()
            self._routes[key] = (service, bucket)
        return service, bucket

    def _bucket(self, service: Service, head: RequestHead) -> str:
        prefix = self.prefix(service, head.path)
        return features.bucket(head.method, head.path, prefix, None if head.chunked else head.length or 0)

    def prefix(self, service: Service, path: str) -> str:
        """The longest path prefix of the service that `path` lies under; empty when it has none."""
        best = ""
        for match in service.spec.match:
            prefix = (match.path or "").rstrip("/")
            if len(prefix) > len(best) and (path == prefix or path.startswith(prefix + "/")):
                best = prefix
        return best

    def _stick(self, head: RequestHead, request: Request, tenant: str) -> None:
        spec = request.service.spec
        session = None
        if spec.session is not None:
            if spec.session.header is not None:
                value = head.get(spec.session.header.lower().encode("ascii"))
                session = None if value is None else value.decode("latin-1")
            if session is None and spec.session.cookie is not None:
                session = _cookie(head.get(b"cookie"), spec.session.cookie)
            request.session = session or None
        sticky = spec.sticky
        if sticky is None or sticky == "session":
            request.sticky = request.session
        elif sticky == "tenant":
            request.sticky = tenant or None
        else:
            value = head.get(sticky.lower().encode("ascii"))
            request.sticky = None if value is None else value.decode("latin-1")

    def _hints(self, known: dict[bytes, bytes], request: Request, exchange: Exchange, now: float) -> None:
        """What the caller declares of its request. Raises `BadHint`."""
        value = known.get(b"x-unjam-lane")
        if value is not None:
            request.lane_hint = features.lane(value)
        value = known.get(b"x-unjam-expected-seconds")
        if value is not None:
            request.seconds_hint = features.seconds("x-unjam-expected-seconds", value)
        value = known.get(b"x-unjam-deadline")
        if value is not None:
            request.deadline = exchange.cut_at = now + features.seconds("x-unjam-deadline", value)
            exchange.client.look(request.deadline)
        else:
            patience = features.client_timeout(known)
            if patience is not None:
                request.deadline = now + patience

    def inspected(self, exchange: Exchange) -> None:
        """The body of a request is there, or as much as is looked at: read its model and its tokens."""
        try:
            body = _decode_body(b"".join(exchange.body))
        except msgspec.DecodeError:
            return  # not JSON, or cut: routed as it is; the endpoint is the one to judge its body
        request = exchange.request
        if self._by_model and body.model is not None:
            head = exchange.head
            service = self.balancer.match(
                head.host,
                head.path,
                lambda name: (head.get(name.lower().encode()) or b"").decode("latin-1"),
                body.model,
            )
            if service is not None and service is not exchange.service:
                exchange.service = request.service = service
                request.bucket = self._bucket(service, head)
        if body.model is not None:
            request.bucket = f"{request.bucket} {body.model[:64]}"
        most = body.max_completion_tokens or body.max_tokens or body.max_output_tokens
        if most is not None and most > 0:
            request.tokens = most + exchange.bytes_in // 4  # about four bytes a token

    def _health(self, client: ClientConnection, head: RequestHead) -> None:
        status, word = 200, b"ok\n"
        if head.path == "/readyz":
            ready, why = self.ready()
            if not ready:
                status, word = 503, why.encode() + b"\n"
        client.transport.write(respond.text(status, word, close=not client.keep_alive))

    def ready(self) -> tuple[bool, str]:
        if self.draining:
            return False, "draining"
        return True, "ready"

    def _answer(
        self,
        client: ClientConnection,
        head: RequestHead,
        request_id: str,
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
                request_id=request_id,
                close=not client.keep_alive,
                extra=extra,
                head_only=head.method == "HEAD",
            )
        )
        if self.access_log.enabled:
            self.access_log.write(
                request_id,
                client.peer,
                None,
                head.method,
                head.path,
                None,
                None,
                None,
                None,
                status,
                REFUSED,
                code,
                0,
                0,
                0.0,
                None,
                None,
                0.0,
                0,
                None,
            )

    # -- telling ---------------------------------------------------------------------------------------------------

    def _log_access(
        self, exchange: Exchange, lease: Lease | None, outcome: Outcome, seconds: float, first_byte: float
    ) -> None:
        head = exchange.head
        trace = head.known.get(b"traceparent")
        request = exchange.request
        self.access_log.write(
            exchange.request_id,
            exchange.client.peer,
            request.tenant or None,
            head.method,
            head.path,
            exchange.service.name,
            lease.version.name if lease is not None else None,
            lease.endpoint.name if lease is not None else None,
            lease.lane if lease is not None else None,
            exchange.status,
            outcome if lease is not None else REFUSED,
            exchange.reason or None,
            exchange.bytes_in,
            exchange.bytes_out,
            exchange.queued,
            lease.expected if lease is not None else None,
            first_byte if first_byte >= 0 else None,
            seconds,
            exchange.retries,
            trace[3:35].decode("latin-1") if trace is not None else None,
        )

    def rejected(self, reason: str, peer: str) -> None:
        self.rejections.reject(reason, peer)

    def log_connect_failure(self, upstream: Upstream, error: Exception) -> None:
        self.log.warning("connect_failed", endpoint=upstream.endpoint.name, error=type(error).__name__, why=str(error))

    def log_bad_answer(self, exchange: Exchange, error: Malformed) -> None:
        lease = exchange.lease
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
        self.wheel.turn(now)
        self.access_log.flush()
        self.rejections.tick()
        logs.flush()

    def carry_out(self, decisions: Any, now: float) -> None:
        """Do what the core decided outside of an offer: dispatch who waited, refuse who waited too long."""
        for decision in decisions:
            exchange = decision.request.context
            if type(decision) is Refusal:
                exchange.refuse(decision)
            else:
                exchange.dispatch(decision, now)

    def full(self) -> str:
        """Why no further connection can be taken; empty when it can."""
        if self.descriptors >= self.descriptor_cap:
            return "descriptor_limit"
        if self.stats.connections_open > self.settings.max_connections:
            return "connection_limit"
        return ""

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def topology_changed(self, topology: Topology) -> None:
        """Routes are looked up anew."""
        matches = [match for spec in topology.services.values() for match in spec.match]
        self._memoise = not any(match.headers or match.model is not None for match in matches)
        self._by_model = any(match.model is not None for match in matches)
        self._routes.clear()
        self._service_stats.clear()
        self.stats.retain(set(topology.services))


def _cookie(header: bytes | None, name: str) -> str | None:
    if header is None:
        return None
    wanted = name.encode("latin-1")
    for pair in header.split(b";"):
        key, found, value = pair.strip().partition(b"=")
        if found and key == wanted:
            return value.decode("latin-1")
    return None
