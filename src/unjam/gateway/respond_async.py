"""`Prefer: respond-async` (RFC 7240 section 4.1) on any path of a service: the request is kept as a run, and answered
with 202 and where the run is. A service that takes no runs serves the request as ever, which the RFC allows.
"""

from __future__ import annotations

import re
import time
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Final

import msgspec

from unjam.gateway import features
from unjam.gateway import runs_shapes as shapes
from unjam.gateway.envelope import wrap
from unjam.gateway.local import Answer, LocalExchange, Refused
from unjam.gateway.passing import pass_on
from unjam.gateway.runs_api import guarded, idempotency_key
from unjam.runs.model import NewRun

if TYPE_CHECKING:
    from unjam.core.service import Service
    from unjam.gateway.auth import Tenant
    from unjam.gateway.client import ClientConnection
    from unjam.gateway.durable import Durable
    from unjam.gateway.runs_api import RunsApi
    from unjam.wire.http1 import RequestHead


#: Fields that say who somebody is, and prove it.
_CREDENTIAL: Final = re.compile(
    r"(?i)(?:proxy-)?authorization|cookie2?|(?:.*[-_])?(?:api[-_]?key|token|secret)"
).fullmatch

#: One preference, with what belongs to it; commas in quotes part nothing.
_PREFERENCES: Final = re.compile(rb'(?:[^,"]|"(?:[^"\\]|\\.)*"?)+').findall
_WANTED: Final = re.compile(rb'(?i)[ \t]*respond-async[ \t]*(?:=[ \t]*(?:"")?[ \t]*)?(?:;|\Z)').match

#: Bytes of a body that is held until it is known which service it is for.
LARGEST: Final = 64 << 20


def prefers(value: bytes) -> bool:
    """Whether `respond-async` is among the preferences."""
    return any(_WANTED(each) is not None for each in _PREFERENCES(value))


class _Model(msgspec.Struct):
    model: str | None = None


_model = msgspec.json.Decoder(_Model).decode


class RespondAsync:
    """What `Gateway.route` asks for requests that come with `Prefer`."""

    def __init__(self, durable: Durable, api: RunsApi) -> None:
        self._durable = durable
        self._api = api

    def wanted(self, head: RequestHead, service: Service) -> bool:
        """Whether this request is to be kept rather than served."""
        services = self._durable.services
        if head.upgrade is not None or not prefers(head.known[b"prefer"]):
            return False
        if self._durable.gateway.router.by_model and head.has_body:  # the body says which service
            return bool(services)
        return service.spec.name in services

    def begin(
        self,
        client: ClientConnection,
        head: RequestHead,
        request_id: bytes,
        now: float,
        caller: Tenant | None,
        service: Service,
    ) -> LocalExchange:
        most = self._durable.limits.max_input
        if client.gateway.router.by_model:  # it may be for a service that takes no runs
            most = max(most, min(client.gateway.settings.max_body, LARGEST))
        return LocalExchange(client, head, request_id, now, caller, partial(self._keep, service), most)

    async def _keep(self, service: Service, exchange: LocalExchange) -> Answer | None:
        head = exchange.head
        router = exchange.client.gateway.router
        if router.by_model and head.has_body:
            try:
                model = _model(exchange.content).model
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                model = None
            found = router.match(head, model)
            if found is None:
                raise Refused(404, "no_service", "No service of this gateway has this address or this model.")
            service = found
            if service.spec.name not in self._durable.services:
                pass_on(exchange, False)
                return None
            if len(exchange.content) > (most := self._durable.limits.max_input):
                raise Refused(413, "body_too_large", f"The body of this request may have {most} bytes.")
        return await self._record(exchange, service)

    @guarded
    async def _record(self, exchange: LocalExchange, service: Service) -> Answer:
        head = exchange.head
        spec = self._api.service(exchange, service.spec.name)
        durable = self._durable
        target = head.wire_target.decode("ascii")
        kept = wrap(head.method, target, _fields(exchange), exchange.content)
        try:
            lane = head.known.get(b"x-unjam-lane")
            deadline = head.known.get(b"x-unjam-deadline")
            chosen = "fast" if lane is None else features.lane(lane)
            seconds = spec.timeout if deadline is None else features.seconds("x-unjam-deadline", deadline)
        except features.BadHint as error:
            raise Refused(400, "bad_hint", f"{error}.") from None
        run, _ = await self._api.record(
            exchange,
            spec,
            NewRun(
                service=service.spec.name,
                input=kept,
                digest=sha256(
                    b"%b %b\n%b" % (head.method.encode("ascii"), head.wire_target, exchange.content)
                ).digest(),
                tenant=exchange.tenant,
                key=idempotency_key(exchange),
                lane=chosen,
                pull=spec.execute == "pull",
                retry=spec.retry,
                max_attempts=spec.max_attempts,
                deadline=time.time() + min(seconds, shapes.FURTHEST),
                max_queued=durable.limits.max_queued,
                max_queued_tenant=spec.max_queued_tenant,
            ),
        )
        return shapes.json(shapes.view(run), 202, shapes.location(run) + b"preference-applied: respond-async\r\n")


def _fields(exchange: LocalExchange) -> list[tuple[str, str]]:
    """What an endpoint would have been shown, without credentials: those don't belong into a store."""
    lines = [*exchange.head.forward, *exchange.client.forwarded(exchange.head).splitlines(keepends=True)]
    fields = []
    for line in lines:
        name, _, value = line.decode("latin-1").partition(":")
        if _CREDENTIAL(name) is None:
            fields.append((name, value.strip(" \t\r\n")))
    return fields
