"""What was heard of one endpoint's load: from which sources, how fresh, and what follows for its share of the
processor, its memory and its slots.

What our own requests use is told apart from what others use, or an endpoint would be avoided for doing its work. An
agent's CPU counts as ours in the proportion of our requests to all it works on; what it burns while nothing of ours
runs is somebody else's. Where only a total is known, each of our requests is taken to use one core at most.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from unjam.core.load import DOWN, DRAINING, FRESH, READY, REPORT_LIFE, LoadReport
from unjam.core.sizing import Crowd

if TYPE_CHECKING:
    from unjam.core.endpoint import Endpoint

#: Reports that repeat every figure while requests run, before they count as made up. No processor stands that still.
FROZEN_AFTER: Final = 8
#: .. and for so many seconds: a machine may be measured less often than it is asked.
FROZEN_FOR: Final = 10.0
#: A smaller change of the others' share is not worth a new order of the endpoints.
STEP: Final = 0.04


class Word(NamedTuple):
    """A report, and when it was measured."""

    report: LoadReport
    at: float


class Heard:
    """`accepted`, `refused`, `late`: reports; `problem`: why the latest was refused, empty when it was not. `at`: when
    the freshest was measured, monotonic seconds; `last_at`: when the latest came in. `other`: share of the processor
    that others use. `cores`, `memory`: found by the reporter. `base`: bytes the agent uses when idle.

    Sizes outlive the reports: a machine keeps its cores when its reporter dies.
    """

    __slots__ = (
        "_busy",
        "_cpu_at",
        "_cpu_source",
        "_figures",
        "_frozen_since",
        "_heavy_ended",
        "_repeats",
        "_running",
        "_seen_at",
        "_states",
        "accepted",
        "at",
        "base",
        "cores",
        "crowd",
        "last_at",
        "late",
        "memory",
        "other",
        "problem",
        "refused",
        "sources",
    )

    def __init__(self) -> None:
        self.sources: dict[str, Word] = {}
        self.accepted = 0
        self.refused = 0
        self.late = 0
        self.problem = ""
        self.at = float("-inf")
        self.last_at = float("-inf")
        self.other = 0.0
        self.cores: float | None = None
        self.memory: int | None = None
        self.base: int | None = None
        self.crowd = Crowd()
        self._heavy_ended = 0
        self._cpu_source = ""
        self._cpu_at = float("-inf")
        self._figures: tuple[object, ...] = ()
        self._frozen_since = 0.0
        self._states: dict[str, str] = {}
        self._repeats = 0
        self._running = 0
        self._busy = 0.0
        self._seen_at: float | None = None

    def trust(self, now: float) -> float:
        """How much the freshest report counts, 1 .. 0."""
        return _trust(now - self.at)

    def others_now(self, now: float) -> float:
        """The share of the processor to be left to others."""
        return self.other * _trust(now - self._cpu_at)

    def take(self, report: LoadReport, endpoint: Endpoint, now: float) -> bool:
        """Heed a report. False: it was refused, and `problem` says why, or it came too late; nothing has changed."""
        self.last_at = now
        problem = report.problem() or self._frozen(report, endpoint, now)
        self.problem = problem
        if problem:
            self.refused += 1
            self._drop(report.source)
            return False
        at = now - report.age
        before = self.sources.get(report.source)
        if report.age >= REPORT_LIFE or (before is not None and at < before.at):
            self.late += 1
            return False
        self.accepted += 1
        self.sources[report.source] = Word(report, at)
        if report.state is not None:
            self._states[report.source] = report.state
        if at > self.at:
            self.at = at
        if report.cores is not None:
            self.cores = report.cores
        if report.memory is not None:
            self.memory = report.memory
        if report.agent_memory is not None:
            self._learn(report.agent_memory, endpoint, now)
        if report.cpu is not None and (
            report.agent_cpu is not None or report.source == self._cpu_source or at - self._cpu_at > FRESH
        ):
            self._cpu_source = report.source
            self._cpu_at = at
            ours = self._ours(endpoint, now)
            other = others(report.cpu, report.agent_cpu, self.cores or endpoint.spec.capacity, report.in_flight, ours)
            if abs(other - self.other) >= STEP or not other:
                self.other = round(other, 2)
        return True

    def forget(self) -> None:
        """The reports are too old to mean anything. What was counted, and sizes, stay."""
        self.sources.clear()
        self._states.clear()
        self.other = 0.0
        self.at = self._cpu_at = float("-inf")

    def state(self, now: float) -> str:
        """The worst of what its sources say, each by its last word on it."""
        said = {state for source, state in self._states.items() if now - self.sources[source].at < REPORT_LIFE}
        return DOWN if DOWN in said else DRAINING if DRAINING in said else READY

    def _drop(self, source: str) -> None:
        """Who tells one thing that can't be true is not believed the rest."""
        if self.sources.pop(source, None) is None:
            return
        self._states.pop(source, None)
        self.at = max((at for _, at in self.sources.values()), default=float("-inf"))
        if source == self._cpu_source:
            self.other = 0.0
            self._cpu_at = float("-inf")

    def latest(self, name: str, now: float) -> Any:
        """The freshest figure of this name; None when none is known, or none that still counts."""
        if len(self.sources) == 1:
            for report, at in self.sources.values():
                return getattr(report, name) if now - at < REPORT_LIFE else None
        best: Any = None
        best_at = now - REPORT_LIFE
        for report, at in self.sources.values():
            value = getattr(report, name)
            if value is not None and at > best_at:
                best, best_at = value, at
        return best

    def _learn(self, used: int, endpoint: Endpoint, now: float) -> None:
        """What the agent uses when idle, and what a heavy request adds to that."""
        idle = not endpoint.inflight and not self._running and endpoint.busy == self._busy
        if idle or (self.base is not None and used < self.base):
            self.base = used
        if self.base is None:
            return
        crowd = self.crowd.see(endpoint.heavy, now)
        if crowd:
            ended = endpoint.heavy_ended - self._heavy_ended
            endpoint.pool.version.heavy_need.see((used - self.base) / crowd, ended, now)
        self._heavy_ended = endpoint.heavy_ended

    def _ours(self, endpoint: Endpoint, now: float) -> float:
        """Our requests that ran on it since the last report, on average; at least those at the start and the end."""
        ours = float(max(endpoint.inflight, self._running))
        if self._seen_at is not None and now > self._seen_at:
            ours = max(ours, (endpoint.busy - self._busy) / (now - self._seen_at))
        self._running = endpoint.inflight
        self._busy = endpoint.busy
        self._seen_at = now
        return ours

    def _frozen(self, report: LoadReport, endpoint: Endpoint, now: float) -> str:
        """Figures that never move while requests run are made up."""
        if report.cpu is None:
            return ""
        figures = (report.source, report.cpu, report.agent_cpu, report.memory_free, report.agent_memory)
        if figures != self._figures:
            self._figures = figures
            self._repeats = 0
            self._frozen_since = now
        elif endpoint.inflight or endpoint.busy != self._busy:
            self._repeats += 1
        if self._repeats < FROZEN_AFTER or now - self._frozen_since < FROZEN_FOR:
            return ""
        return f"cpu was exactly {report.cpu:g} in {self._repeats + 1} reports while requests ran"


def _trust(age: float) -> float:
    return 1.0 if age <= FRESH else max(0.0, (REPORT_LIFE - age) / (REPORT_LIFE - FRESH))


def others(cpu: float, agent_cpu: float | None, cores: float, in_flight: int | None, ours: float) -> float:
    """Share of the processor, 0 .. 1, that is used by anything but our requests. `cpu`, `agent_cpu`: shares in use by
    anybody and by the agent; `in_flight`: what the agent works on, `ours` of which are our requests."""
    if agent_cpu is None:
        own = ours / cores
    elif not ours:
        own = 0.0
    elif in_flight is None or in_flight <= ours:
        own = agent_cpu
    else:
        own = agent_cpu * ours / in_flight
    return max(0.0, cpu - own)
