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
BINARY: Final = b"endpoint-load-metrics-bin"
FIELDS: Final = (b"endpoint-load-metrics", b"endpoint-load-metrics-json", BINARY)
PRESENT: Final = frozenset(FIELDS)

#: Least seconds between two headers of one endpoint that are heeded; one that says the same again, at least of the
#: machine, waits longer, since nobody has measured anew.
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


class Said:
    """What the heads of one endpoint's answers last said. `at`: when one was read; `value`: what was in it; `machine`:
    the machine's figures that the core has from there, and `machine_at` since when; `failing`: it made no sense."""

    __slots__ = ("at", "failing", "machine", "machine_at", "value")

    def __init__(self) -> None:
        self.at = self.machine_at = float("-inf")
        self.value = b""
        self.machine: tuple[object, ...] = ()
        self.failing = False


def said(upstream: Upstream, known: dict[bytes, bytes], now: float) -> None:
    """An answer of this endpoint carries one of `FIELDS`: heed it, unless that was done a moment ago."""
    last = upstream.load
    if now < last.at + EVERY or not upstream.endpoint.pool.version.service.spec.load.headers:
        return
    field = next(field for field in FIELDS if field in known)
    value = known[field]
    if value == last.value and now < last.at + SAME_AGAIN:
        return
    last.at = now
    last.value = value
    try:
        figures = orca.report(orca.parse(value if field != BINARY else b"BIN " + value))
    except orca.BadLoad as error:
        _told(upstream, BAD_LOAD, str(error))
        return
    report = LoadReport(source="header", **figures)
    machine = (report.cpu, report.agent_cpu, report.memory_free, report.agent_memory)
    if machine == last.machine and report.cpu is not None and now < last.machine_at + SAME_AGAIN:
        return  # a server measures itself less often than it answers: said twice is not measured twice
    if figures:
        last.machine = machine
        last.machine_at = now
        result = hand_over(upstream.gateway, upstream.endpoint, report, now)
        _told(upstream, result, problem_of(upstream.endpoint) if result == BAD_LOAD else "")


def _told(upstream: Upstream, result: str, problem: str) -> None:
    """Count what became of it, and say when it begins to make no sense, and when it makes sense again."""
    gateway = upstream.gateway
    gateway.stats.report(result)
    if upstream.load.failing is not bool(problem):
        upstream.load.failing = bool(problem)
        if problem:
            gateway.log.warning("load_header", endpoint=upstream.endpoint.name, ok=False, why=problem)
        else:
            gateway.log.info("load_header", endpoint=upstream.endpoint.name, ok=True)
