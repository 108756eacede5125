"""Time limits of an exchange, by lane: first byte, silence, total; and the caller's own deadline.

Called by the timer wheel through the client's connection, never by the hot path.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from unjam.core.model import Outcome
from unjam.gateway import retries
from unjam.gateway.states import CONNECTING, ENDED, INSPECTING, LOCAL, QUEUED, REFUSING, RELAYING, TUNNELLING, WAITING
from unjam.gateway.timers import NEVER

if TYPE_CHECKING:
    from unjam.gateway.exchange import Exchange


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
    limits = exchange.timeouts()
    total = lease.started + limits.total
    if now >= total:
        return _timed_out(exchange, now, "total_timeout", f"The agent was stopped after {limits.total:g} s of work.")
    if state == WAITING:
        due = exchange.sent_at + limits.first_byte
        if now >= due:
            sender = exchange.client
            if not exchange.body_done and not (sender.read_paused and now >= sender.last_read + limits.first_byte):
                return now + 1.0  # the client is still sending, and the endpoint reading; the client's limit applies
            return _timed_out(
                exchange, now, "first_byte_timeout", f"The agent sent nothing for {limits.first_byte:g} s."
            )
        return min(due, total, exchange.cut_at)
    client = exchange.client
    if client.write_paused:
        return min(now + limits.idle, total, exchange.cut_at)  # the client is what is slow; its own limit applies
    due = exchange.last + limits.idle
    if now >= due:
        return _timed_out(exchange, now, "idle_timeout", f"The agent fell silent for {limits.idle:g} s.")
    if exchange.events is not None and not exchange.events.fixed:
        heartbeat = client.gateway.settings.heartbeat
        silent = now - exchange.last
        if silent >= heartbeat and exchange.events.at_boundary:
            client.beat(exchange.chunk_out)
        due = min(due, now + heartbeat if silent >= heartbeat else exchange.last + heartbeat)
    return min(due, total, exchange.cut_at)


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
