"""Time limits of a request, by lane: first byte, silence, total; and the caller's own deadline.

Called by the timer wheel, never by the hot path.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from unjam.core.model import Outcome
from unjam.gateway import retries
from unjam.gateway.states import CONNECTING, ENDED, INSPECTING, LOCAL, QUEUED, REFUSING, RELAYING, TUNNELLING, WAITING
from unjam.gateway.timers import NEVER

if TYPE_CHECKING:
    from unjam.gateway.exchange import Exchange
    from unjam.gateway.leased import Leased


def passed(request: Leased, now: float, held: bool) -> tuple[str, str, float]:
    """For a request that is with an endpoint: the limit that has passed, as reason and message (both empty: none has),
    and when to look again (monotonic seconds). `held`: it isn't the endpoint that is silent, but who reads it."""
    lease = request.lease
    assert lease is not None
    limits = request.timeouts()
    total = lease.started + limits.total
    if now >= total:
        return "total_timeout", f"The agent was stopped after {limits.total:g} s of work.", now
    if request.state == WAITING:
        due = request.sent_at + limits.first_byte
        if now >= due:
            return "first_byte_timeout", f"The agent sent nothing for {limits.first_byte:g} s.", now
    elif held:
        due = now + limits.idle
    else:
        due = request.last + limits.idle
        if now >= due:
            return "idle_timeout", f"The agent fell silent for {limits.idle:g} s.", now
    return "", "", min(due, total)


def enforce(exchange: Exchange, now: float) -> float:
    """Do what is overdue: end the exchange, or send a heartbeat. Returns when to look again (monotonic seconds)."""
    state = exchange.state
    if state == LOCAL:
        return exchange.on_timer(now)  # type: ignore[attr-defined,no-any-return]  # a LocalExchange
    if now >= exchange.cut_at and state != ENDED:
        return _deadline(exchange)
    if state in (QUEUED, CONNECTING, INSPECTING, REFUSING):
        return min(now + 60.0, exchange.cut_at)
    lease = exchange.lease
    if lease is None or state == ENDED:
        return now
    client = exchange.client
    reason, message, due = passed(exchange, now, client.write_paused)
    if reason == "first_byte_timeout" and not exchange.body_done:
        stuck = client.read_paused and now >= client.last_read + exchange.timeouts().first_byte
        if not stuck:
            return now + 1.0  # the client is still sending, and the endpoint reading; the client's limit applies
    if reason:
        return _timed_out(exchange, now, reason, message)
    if exchange.events is not None and not exchange.events.fixed and not client.write_paused:
        heartbeat = client.gateway.settings.heartbeat
        silent = now - exchange.last
        if silent >= heartbeat and exchange.events.at_boundary:
            client.beat(exchange.chunk_out)
        due = min(due, now + heartbeat if silent >= heartbeat else exchange.last + heartbeat)
    return min(due, exchange.cut_at)


def _timed_out(exchange: Exchange, now: float, reason: str, message: str) -> float:
    outcome = Outcome.TIMEOUT
    if exchange.state == TUNNELLING or retries.slow_reader(exchange, now) or retries.still_sending(exchange):
        # How long a tunnel lasts, and its silence, is up to both sides; and a client that neither sends nor reads what
        # there is must not be able to make a version look bad.
        outcome = Outcome.CANCELLED
    if exchange.state == WAITING and retries.spares(exchange, outcome, reason, now, 504):
        return now  # it has limits of its own where it is now
    exchange.drop_upstream()
    if exchange.state in (RELAYING, TUNNELLING):
        exchange.cut(outcome, reason, message)
    else:
        exchange.fail(504, reason, message, outcome=outcome)
    return NEVER


def _deadline(exchange: Exchange) -> float:
    """The caller's own deadline passed: its doing, so no failure of the endpoint's."""
    exchange.withdraw()
    if exchange.state in (RELAYING, TUNNELLING):
        exchange.cut(Outcome.CANCELLED, "deadline", "The deadline that the caller set has passed.")
    else:
        exchange.fail(504, "deadline", "The deadline set by x-unjam-deadline passed before the agent answered.")
    return NEVER
