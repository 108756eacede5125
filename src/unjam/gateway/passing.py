"""Requests that the gateway took in itself and that turn out to be a service's: they are served as any other."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from unjam.gateway.intake import SMALL, Passed
from unjam.gateway.local import LocalExchange, Refused
from unjam.gateway.states import ENDED, INSPECTING
from unjam.wire.errors import Malformed

if TYPE_CHECKING:
    from unjam.gateway.exchange import Exchange


def pass_on(local: LocalExchange, keep: bool) -> None:
    """Serve the request, whose body is there, as if the gateway had nothing at its path. `keep`: as a run, if its
    client prefers that. Raises `Refused`."""
    client, head = local.client, local.head
    gateway = client.gateway
    router = gateway.router
    service = router.match(head, None)
    if service is None:
        if not router.by_model or not head.has_body:
            raise Refused(404, "no_service", "No service of this gateway has this address.")
        service = next(iter(gateway.balancer.services.values()))  # until the body says which
    if local.gone:
        return
    route = router.route(head, service)
    try:
        found = gateway.admitted(client, head, route, local.request_id, local.arrived, local.caller, keep)
    except Malformed as error:
        raise Refused(error.status, error.reason, error.detail) from None
    content, local.state = local.content, ENDED
    gateway.intake.done(local)  # from here on `Passed` counts it, if anybody has it
    if found is None:  # answered
        client.exchange_ended(True)
        return
    exchange: Exchange | LocalExchange = found
    # A small one is kept for as long as the answer lasts; a large one until it is sent.
    exchange.body = Passed(gateway.intake, content) if len(content) > SMALL else [content] if content else []
    exchange.bytes_in = len(content)
    client.exchange = found
    if exchange.state != INSPECTING or gateway.inspected(found, True):
        exchange.offer(monotonic())
