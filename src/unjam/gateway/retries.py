"""A request that failed before the client has seen anything of an answer: who may try it again, and where.

By the rules of docs/timeouts-and-retries.md: only what can't have been done already, within attempts and the budget;
and what a version on probation has spoilt, as somebody else can still do it well.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from unjam.core.model import Lease, Outcome
from unjam.gateway.states import CONNECTING, QUEUED, RELAYING

if TYPE_CHECKING:
    from unjam.gateway.exchange import Exchange
    from unjam.gateway.upstream import Upstream

#: Methods that may be sent again although an endpoint may have acted on them (RFC 9110 §9.2.2).
IDEMPOTENT = frozenset({"GET", "HEAD", "PUT", "DELETE", "OPTIONS"})

#: Seconds after sending within which the loss of a kept-alive connection means that the endpoint had closed it before.
STALE = 1.0


#: A client that has been waited for during this part of an answer, and for so many seconds, is what made it last.
HELD_UP = 0.25
HELD_UP_LEAST = 1.0


def slow_reader(exchange: Exchange, now: float) -> bool:
    """The answer under way has waited for its client more than for its endpoint, as far as the endpoint can tell: its
    patience may have ended, or ours."""
    client = exchange.client
    if client.stalled_since < exchange.first_byte or not exchange.first_byte:
        return False
    stalled = client.stalled_for + (now - client.stalled_since if client.write_paused else 0.0)
    return stalled > max(HELD_UP_LEAST, HELD_UP * (now - exchange.first_byte))


def still_sending(exchange: Exchange) -> bool:
    """Its request is not whole, and that is not for want of an endpoint that reads it."""
    return not exchange.body_done and not exchange.client.read_paused


def shields(exchange: Exchange, lease: Lease) -> bool:
    """Whether a failing answer would be kept from the client, as far as the request itself goes."""
    retry = lease.service.spec.retry
    if retry.answers == "never" or (retry.answers == "probes" and lease.version.breaker.closed):
        return False
    return exchange.replayable and exchange.retries < retry.attempts


def goes_elsewhere(
    exchange: Exchange, outcome: Outcome, reason: str, now: float, status: int = 502, unreached: bool = False
) -> bool:
    """Nothing has reached the client, and its version, being on probation, has just failed it: have another one
    serve it, or the fallback chain, if the service wants that and it can be sent again."""
    lease = exchange.lease
    assert lease is not None
    if not shields(exchange, lease):
        return False
    gateway = exchange.client.gateway
    spared = gateway.balancer.spared(exchange, lease.version, now)
    if not spared or (lease.version.breaker.closed and not gateway.balancer.may_retry(lease.service, now)):
        return False  # probes are few by themselves; all answers of a version are not
    exchange.drop_upstream()
    exchange.tried = spared
    message = "The agent failed, and nobody else could take the request."
    _again(exchange, lease, outcome, now, status, reason, message, unreached)
    return True


def spares(
    exchange: Exchange, outcome: Outcome, reason: str, now: float, status: int = 502, unreached: bool = False
) -> bool:
    """The same for a request that got no answer: of a version on probation only, as it may be done twice so, whatever
    its method."""
    lease = exchange.lease
    assert lease is not None
    return not lease.version.breaker.closed and goes_elsewhere(exchange, outcome, reason, now, status, unreached)


def next_endpoint(
    exchange: Exchange, outcome: Outcome, status: int, reason: str, message: str, unreached: bool = False
) -> None:
    """Nothing has reached the client: give the slot back and try elsewhere, within attempts and budget."""
    lease = exchange.lease
    assert lease is not None
    gateway = exchange.client.gateway
    now = monotonic()
    retry = (
        exchange.replayable
        and exchange.retries < lease.service.spec.retry.attempts
        and gateway.balancer.may_retry(lease.service, now)
    )
    if not retry:
        if spares(exchange, outcome, reason, now, status, unreached):
            return
        exchange.fail(status, reason, message, outcome=outcome, unreached=unreached)
        return
    exchange.upstream = None
    exchange.tried = (*exchange.tried, lease.endpoint)
    _again(exchange, lease, outcome, now, status, reason, message, unreached)


def _again(
    exchange: Exchange,
    lease: Lease,
    outcome: Outcome,
    now: float,
    status: int,
    reason: str,
    message: str,
    unreached: bool = False,
) -> None:
    """End this lease and ask for another; the rest is what the client is told if there is none."""
    exchange.lease = None
    exchange.reason = ""
    exchange.retries += 1
    exchange.last = now
    exchange.stats.retries += 1
    exchange.state = QUEUED
    exchange.client.gateway.finish(lease, outcome, now, None, unreached)
    exchange.offer(now, (status, reason, message, lease, outcome))


def lost(exchange: Exchange) -> None:
    """The endpoint's connection went away in the middle."""
    connection, exchange.upstream = exchange.upstream, None
    now = monotonic()
    if exchange.state == RELAYING:
        outcome = Outcome.CANCELLED if slow_reader(exchange, now) else Outcome.TRUNCATED
        exchange.cut(outcome, "endpoint_lost", "The agent's connection was lost before its answer ended.")
        return
    lease = exchange.lease
    assert lease is not None
    # Half a request is nothing that an endpoint can fail at: it may have waited for the rest as long as it could.
    unasked = still_sending(exchange)
    outcome = Outcome.CANCELLED if unasked else Outcome.SERVER_ERROR
    reused = connection is not None and connection.used
    idempotent = exchange.head.method in IDEMPOTENT or b"idempotency-key" in exchange.head.known
    stale = reused and now - exchange.sent_at < STALE
    if idempotent and stale and exchange.replayable and lease.service.spec.retry.attempts:
        # The endpoint hung up an idle connection just as it was used: no failure of its own, and a fresh
        # connection can't end the same way.
        exchange.retries += 1
        exchange.stats.retries += 1
        exchange.state = CONNECTING
        upstream: Upstream = lease.endpoint.shell
        upstream.connect(exchange, exchange.timeouts().connect)
    elif spares(exchange, outcome, "endpoint_lost", now):
        return
    elif idempotent:
        next_endpoint(exchange, outcome, 502, "endpoint_lost", "The agent's connection was lost before it answered.")
    else:
        exchange.fail(
            502,
            "endpoint_lost",
            "The agent's connection was lost before it answered. It may have begun the work, so the request was "
            "not sent again; send an Idempotency-Key header to allow that."
            + (" (The connection had been kept alive by the endpoint.)" if reused else ""),
            outcome=outcome,
        )
