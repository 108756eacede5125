"""Who reports what. Each row of the table is one way of telling, on the same arrivals, neighbours and decisions' seed.

`REQUIRED` are those that must not cost more than 5 % over weighted least outstanding requests without reports; the
others are told beside them, to show what reports can gain and what no balancer can see through.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from unjam.core.load import LoadReport

from .world import Server, Teller

DELAY = 60.0
#: "Stopped": the reporters fall silent after this many seconds, in the middle of whatever they said last, and come back
#: after as many.
STOPS_AFTER = 90.0


def honest(server: Server, truth: LoadReport, now: float) -> LoadReport:
    return truth


def _stopping() -> Teller:
    """Speaks for `STOPS_AFTER` seconds, is silent for as long, and so on."""

    def tell(server: Server, truth: LoadReport, now: float) -> LoadReport | None:
        return truth if now % (2.0 * STOPS_AFTER) < STOPS_AFTER else None

    return tell


def _stopped_for_good() -> Teller:
    """Speaks until it has said once that a neighbour is there, and never again."""
    done: set[Server] = set()

    def tell(server: Server, truth: LoadReport, now: float) -> LoadReport | None:
        if server in done:
            return None
        if server.noisy:
            done.add(server)
        return truth

    return tell


def _delayed(known: bool) -> Teller:
    """What was measured a minute ago. `known`: with its age, as unjam's own reporter's reports come; otherwise as if it
    were new."""
    kept: dict[Server, deque[tuple[float, LoadReport]]] = {}

    def tell(server: Server, truth: LoadReport, now: float) -> LoadReport | None:
        old = kept.setdefault(server, deque())
        old.append((now, truth))
        told = None
        while old and old[0][0] <= now - DELAY:
            at, report = old.popleft()
            told = replace(report, age=now - at) if known else report
        return told

    return tell


def _says(**figures: float) -> Teller:
    def tell(server: Server, truth: LoadReport, now: float) -> LoadReport | None:
        return replace(truth, **figures)  # type: ignore[arg-type]

    return tell


def _idle_with_noise() -> Teller:
    """A liar that took care: its figures move as real ones do, between nothing and 3 %."""
    rng = random.Random("idle")

    def tell(server: Server, truth: LoadReport, now: float) -> LoadReport | None:
        cpu = 0.03 * rng.random()
        return replace(truth, cpu=cpu, agent_cpu=cpu * rng.random())

    return tell


def _only(teller: Teller, liars: Callable[[Server], bool]) -> Teller:
    """`teller` of the servers that `liars` picks, the truth of the others."""

    def tell(server: Server, truth: LoadReport, now: float) -> LoadReport | None:
        return teller(server, truth, now) if liars(server) else truth

    return tell


def _large(server: Server) -> bool:
    return server.cores >= 64.0


def _first(server: Server) -> bool:
    assert server.endpoint is not None
    return server.endpoint.name == "http://e0"


@dataclass(frozen=True)
class Row:
    """`make`: a new teller for each run (they remember); None: no reports. `policy`: of the service."""

    name: str
    make: Callable[[], Teller] | None
    required: bool = True
    policy: str = "least_loaded"


BASE = "no reports: weighted least outstanding"

ROWS = (
    Row(BASE, None, required=False, policy="weighted_least_outstanding"),
    Row("no reports: unweighted least outstanding", None, required=False, policy="least_outstanding"),
    Row("no reports: least_loaded", None),
    Row("honest", lambda: honest),
    Row("stopped and resumed every 90 s", _stopping),
    Row("stopped for good at a bad moment", _stopped_for_good),
    Row("60 s late, age known", lambda: _delayed(known=True)),
    Row("60 s late, age unknown", lambda: _delayed(known=False)),
    Row("always idle", lambda: _says(cpu=0.0, agent_cpu=0.0, in_flight=0)),
    Row("always idle, in flight told right", lambda: _says(cpu=0.0, agent_cpu=0.0)),
    Row("always idle, the two large ones only", lambda: _only(_says(cpu=0.0, agent_cpu=0.0), _large)),
    Row("always idle, one small one only", lambda: _only(_says(cpu=0.0, agent_cpu=0.0), _first)),
    Row("always idle, with noise", _idle_with_noise),
    Row("always idle, with noise, the two large ones only", lambda: _only(_idle_with_noise(), _large)),
    Row("always idle, with noise, one small one only", lambda: _only(_idle_with_noise(), _first)),
    Row("NaN", lambda: _says(cpu=math.nan)),
    Row("negative", lambda: _says(cpu=-0.5, agent_cpu=-0.5)),
    Row("10⁹ cores", lambda: _says(cores=1e9)),
    Row("10⁹ cores, one small one only", lambda: _only(_says(cores=1e9), _first)),
    Row("4,096 cores (possible), one small one only", lambda: _only(_says(cores=4096.0), _first), required=False),
    Row(
        "always busy with others' work, one large one only", lambda: _only(_says(cpu=1.0, agent_cpu=0.0), _last), False
    ),
)


def _last(server: Server) -> bool:
    assert server.endpoint is not None
    return server.endpoint.name == "http://e7"
