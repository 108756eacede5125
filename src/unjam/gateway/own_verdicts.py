"""What answers say to the gateway in passing: of their endpoint's load, of their own quality, and whether they are
failures. What has been said counts, also when nobody waits for the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from unjam.core.model import FAILURES, Outcome
from unjam.gateway import loads, retries
from unjam.gateway.states import RELAYING, Unwanted
from unjam.wire import sse, verdict

if TYPE_CHECKING:
    from unjam.gateway.exchange import Exchange
    from unjam.wire.http1 import ResponseHead

#: `reason` of an answer that the agent itself called bad.
REJECTED: Final = "rejected_quality"


def heed(exchange: Exchange, head: ResponseHead, now: float) -> None:
    """The answer's head says something to the gateway: of the endpoint's load, of its own quality. Raises
    Unwanted."""
    known = head.known
    if exchange.upstream is not None and not loads.PRESENT.isdisjoint(known):
        loads.said(exchange.upstream.upstream, known, now)
    value = known.get(verdict.HEADER)
    if value is None or head.status >= 400:
        return
    try:
        said = verdict.from_header(value)
    except verdict.BadVerdict:
        exchange.stats.verdict("agent", "unreadable")
        return
    exchange.stats.verdict("agent", "bad" if said.bad else "good")
    if said.bad:
        exchange.reason = REJECTED
        if retries.goes_elsewhere(exchange, Outcome.REJECTED_QUALITY, REJECTED, now):
            raise Unwanted


def follow(exchange: Exchange, payload: bytes, fixed: bool, now: float) -> None:
    """The answer is a stream of events, which begins with `payload`. `fixed`: of a length that is told, so that nothing
    of ours may come between them."""
    assert exchange.lease is not None
    events = exchange.events = sse.SseTracker(exchange.lease.service.spec.dialect == "openai", fixed)
    events.feed(payload)
    gateway = exchange.client.gateway
    gateway.stats.held += 1
    if not fixed:
        exchange.forget_heads()
        exchange.client.look(now + gateway.settings.heartbeat)


def judged_bad(exchange: Exchange) -> bool:
    """The stream had a verdict on itself: whether it was a bad one."""
    assert exchange.events is not None
    try:
        said = verdict.from_event(exchange.events.verdict or b"")
    except verdict.BadVerdict:
        exchange.stats.verdict("agent", "unreadable")
        return False
    exchange.stats.verdict("agent", "bad" if said.bad else "good")
    return said.bad


def unknown_method(exchange: Exchange, status: int) -> bool:
    """What a server says to methods that it doesn't know (RFC 9110 §15.6.2) is no failure of it: callers choose them.
    GET, HEAD and POST are known to everybody, so that it means something else there."""
    return status == 501 and exchange.head.method not in ("GET", "HEAD", "POST")


def unwanted(exchange: Exchange, status: int, now: float) -> bool:
    """An answer of 5xx begins: somebody else gives another in its place."""
    return not unknown_method(exchange, status) and retries.goes_elsewhere(
        exchange, Outcome.SERVER_ERROR, "agent_error", now
    )


def outcome(exchange: Exchange) -> Outcome:
    """How an answer ends, or would have ended for all that has come of it."""
    events = exchange.events
    if exchange.status >= 500 and not unknown_method(exchange, exchange.status):
        return Outcome.SERVER_ERROR
    if exchange.status >= 400:
        return Outcome.CLIENT_ERROR
    if exchange.status == 101 and not exchange.bytes_in and not exchange.bytes_out:
        exchange.reason = "endpoint_lost"  # it agreed to a tunnel and hung up, without a word and unprovoked
        return Outcome.TRUNCATED
    if events is not None and events.errors:
        exchange.reason = "error_event"
        return Outcome.SERVER_ERROR
    if exchange.reason == REJECTED or (events is not None and events.verdict and judged_bad(exchange)):
        exchange.reason = REJECTED
        return Outcome.REJECTED_QUALITY
    return Outcome.OK


def left(exchange: Exchange) -> Outcome:
    """The outcome of an exchange whose caller waits no longer: its own doing, unless the answer under way was a failure
    by then."""
    if exchange.state == RELAYING:
        said = outcome(exchange)
        if said in FAILURES:
            return said
    return Outcome.CANCELLED
