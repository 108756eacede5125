"""What endpoints say of their load, on its way to the core: from any source, and from the heads of their answers.

An endpoint that adds `endpoint-load-metrics` (ORCA) to its answers is heard at most every `EVERY` seconds, however many
answers it gives; the field never reaches a client (`wire/response.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from unjam.core.load import LoadReport
from unjam.wire import orca

if TYPE_CHECKING:
    from unjam.core.endpoint import Endpoint
    from unjam.gateway.gateway import Gateway
    from unjam.gateway.upstream import Upstream

#: What can become of a report; labels of `unjam_reports_total`.
ACCEPTED: Final = "accepted"
LATE: Final = "late"
BAD_LOAD: Final = "bad_load"

#: The field, and its forms of one encoding only.
FIELDS: Final = (b"endpoint-load-metrics", b"endpoint-load-metrics-json", b"endpoint-load-metrics-bin")
PRESENT: Final = frozenset(FIELDS)

#: Least seconds between two headers of one endpoint that are heeded; one that says the same again may wait longer,
#: since nobody has measured anew.
EVERY: Final = 0.2
SAME_AGAIN: Final = 2.0


def hand_over(gateway: Gateway, endpoint: Endpoint, report: LoadReport, now: float) -> str:
    """Give a report to the core, and do what it decides. Returns what became of it; `endpoint.tally` says why."""
    tally = endpoint.tally
    late = tally.late if tally is not None else 0
    decided = gateway.balancer.report(endpoint, report, now)
    tally = endpoint.tally
    result = ACCEPTED
    if tally is not None:
        result = BAD_LOAD if tally.problem else LATE if tally.late > late else ACCEPTED
    if decided:
        gateway.carry_out(decided, now)
    return result


def problem_of(endpoint: Endpoint) -> str:
    """Why the latest report on this endpoint was refused, in words; empty when it was not."""
    tally = endpoint.tally
    return tally.problem if tally is not None else ""


def said(upstream: Upstream, known: dict[bytes, bytes], now: float) -> None:
    """An answer of this endpoint carries one of `FIELDS`: heed it, unless that was done a moment ago."""
    if now < upstream.load_at + EVERY:
        return
    value = b""
    for field in FIELDS:
        if field in known:
            value = known[field]
            if field == FIELDS[2]:
                value = b"BIN " + value
            break
    if value == upstream.load_said and now < upstream.load_at + SAME_AGAIN:
        return
    endpoint = upstream.endpoint
    if not endpoint.pool.version.service.spec.load.headers:
        return
    upstream.load_at = now
    upstream.load_said = value
    gateway = upstream.gateway
    problem = ""
    try:
        figures = orca.report(orca.parse(value))
    except orca.BadLoad as error:
        problem, result = str(error), BAD_LOAD
    else:
        if not figures:
            return
        report = LoadReport(source="header", **figures)
        result = hand_over(gateway, endpoint, report, now)
        if result == BAD_LOAD:
            problem = problem_of(endpoint)
    gateway.stats.report(result)
    if upstream.load_failing is not bool(problem):
        upstream.load_failing = bool(problem)
        if problem:
            gateway.log.warning("load_header", endpoint=endpoint.name, ok=False, why=problem)
        else:
            gateway.log.info("load_header", endpoint=endpoint.name, ok=True)
