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
#: A smaller change of the share left to us is not worth a new order of the endpoints.
STEP: Final = 0.04
#: From this use of the processor on, tasks wait for it.
SATURATED: Final = 0.9
#: Cores that every machine's own services use now and then: avoiding it for them would be fidgeting.
BACKGROUND: Final = 0.2
#: From this use by us on, how time is divided between us and others means something.
ACTIVE: Final = 0.05
#: How many times as long a report of a single figure may stand still as one of several.
ALONE: Final = 4


class Word(NamedTuple):
    """A report, and when it was measured."""

    report: LoadReport
    at: float


class Heard:
    """`accepted`, `refused`, `late`: reports; `problem`: why the latest was refused, empty when it was not. `at`: when
    the freshest was measured, monotonic seconds; `last_at`: when the latest came in. `other`: share of the processor
    that others use; `share`: what they leave to us, or would. `cores`, `memory`: found by the reporter. `base`: bytes
    the agent uses when idle.

    Sizes outlive the reports: a machine keeps its cores when its reporter dies.
    """

    __slots__ = (
        "_busy",
        "_cpu_at",
        "_cpu_known",
        "_cpu_source",
        "_figures",
        "_heavy_ended",
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
        "share",
        "sources",
        "too_late_at",
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
        self.share = 1.0
        self._cpu_known = False
        self.cores: float | None = None
        self.memory: int | None = None
        self.base: int | None = None
        self.crowd = Crowd()
        self._heavy_ended = 0
        #: When a report came in that was too old to count.
        self.too_late_at = float("-inf")
        self._cpu_source = ""
        self._cpu_at = float("-inf")
        #: By source: the last figures, how often they came again while requests ran, and since when.
        self._figures: dict[str, tuple[tuple[object, ...], int, float]] = {}
        self._states: dict[str, str] = {}
        self._running = 0
        self._busy = 0.0
        self._seen_at: float | None = None

    def trust(self, now: float) -> float:
        """How much the freshest report counts: from 1, fresh, down to 0."""
        return _trust(now - self.at)

    def others_now(self, now: float) -> float:
        """The share of the processor that others use, as far as that is still known."""
        return self.other * _trust(now - self._cpu_at)

    def share_now(self, now: float) -> float:
        """The share of the processor that others leave to us."""
        return 1.0 - (1.0 - self.share) * _trust(now - self._cpu_at)

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
            if report.age >= REPORT_LIFE:
                self.too_late_at = now
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
            self._learn(report, endpoint, now)
        if report.cpu is not None and (
            report.agent_cpu is not None or report.source == self._cpu_source or at - self._cpu_at > FRESH
        ):
            self._cpu_source = report.source
            self._cpu_at = at
            ours = self._ours(endpoint, now)
            cores = endpoint.spec.cores or self.cores or endpoint.spec.capacity
            other = others(report.cpu, report.agent_cpu, cores, report.in_flight, ours)
            share = share_left(other, report.cpu - other, cores, report.run_queue, ours)
            self.other = other
            if share < self.share and report.run_queue is not None and self._cpu_known:
                share = (share + self.share) / 2.0  # a queue's length is a glance, not an average
            if abs(share - self.share) >= STEP or not other:
                self.share = round(share, 2)
            self._cpu_known = True
        return True

    def forget(self) -> None:
        """The reports are too old to mean anything. What was counted, and sizes, stay."""
        self.sources.clear()
        self._states.clear()
        self._forget_cpu()
        self.at = float("-inf")

    def _forget_cpu(self) -> None:
        self.other = 0.0
        self.share = 1.0
        self._cpu_known = False
        self._cpu_at = float("-inf")

    def state(self, now: float) -> str:
        """The worst of what its sources say, each by its last word on it."""
        if not self._states:
            return READY
        said = {state for source, state in self._states.items() if now - self.sources[source].at < REPORT_LIFE}
        return DOWN if DOWN in said else DRAINING if DRAINING in said else READY

    def _drop(self, source: str) -> None:
        """Forget a source that has said one thing that can't be true: it isn't believed the rest either."""
        if self.sources.pop(source, None) is None:
            return
        self._states.pop(source, None)
        self.at = max((at for _, at in self.sources.values()), default=float("-inf"))
        if source == self._cpu_source:
            self._forget_cpu()

    def sole(self, now: float) -> LoadReport | None:
        """The report that gives every figure, where there is only one that counts."""
        if len(self.sources) == 1:
            for report, at in self.sources.values():
                if now - at < REPORT_LIFE:
                    return report
        return None

    def latest(self, name: str, now: float) -> Any:
        """The freshest figure of this name; None when none is known, or none that still counts."""
        best: Any = None
        best_at = now - REPORT_LIFE
        for report, at in self.sources.values():
            value = getattr(report, name)
            if value is not None and at > best_at:
                best, best_at = value, at
        return best

    def _learn(self, report: LoadReport, endpoint: Endpoint, now: float) -> None:
        """What the agent uses when idle, and what a heavy request adds to that."""
        used = report.agent_memory
        assert used is not None
        limit = endpoint.spec.memory
        if limit is not None and report.memory_free is not None:
            used = max(0, min(used, limit - report.memory_free))  # pages that processes share are counted for each
        if not endpoint.inflight or (self.base is not None and used < self.base):
            self.base = used
        if self.base is None:
            return
        crowd = self.crowd.see(endpoint.heavy, now)
        if crowd and (report.in_flight is None or report.in_flight <= endpoint.inflight):
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
        if report.cpu is None or (report.cpu in (0.0, 1.0) and report.agent_cpu is report.memory_free is None):
            return ""  # the ends of a scale that was cut off there say the same for long
        figures = (report.cpu, report.agent_cpu, report.memory_free, report.agent_memory)
        before = self._figures.get(report.source)
        if before is None or before[0] != figures:
            self._figures[report.source] = figures, 0, now
            return ""
        _, repeats, since = before
        if endpoint.inflight or endpoint.busy != self._busy:
            repeats += 1
            self._figures[report.source] = figures, repeats, since
        patience = 1 if figures[1:] != (None, None, None) else ALONE
        if repeats < FROZEN_AFTER * patience or now - since < FROZEN_FOR * patience:
            return ""
        return f"cpu was exactly {report.cpu:g} in {repeats + 1} reports while requests ran"


def _trust(age: float) -> float:
    return 1.0 if age <= FRESH else max(0.0, (REPORT_LIFE - age) / (REPORT_LIFE - FRESH))


def share_left(other: float, own: float, cores: float, run_queue: float | None, ours: float) -> float:
    """The share of the processor that we can have beside others who use `other` of it. `own`: what our requests use;
    `run_queue`: tasks that run or could, on the whole machine; `ours`: our requests there.

    A kernel divides its processors evenly among the tasks that are ready, so `n` of others' leave us
    `cores / (cores + n)` once we have a task for each core. How many they are shows in how the time was divided between
    them and us, or, where we had nothing to run, in the length of the queue. Where that is not known the others are
    taken to give nothing back.
    """
    foreign = other * cores
    if foreign <= BACKGROUND:
        return 1.0
    if run_queue is None:
        return 1.0 - other
    if other + own >= SATURATED:
        if own >= ACTIVE:
            foreign = max(foreign, min(run_queue, max(ours, own * cores) * other / own))
        elif other >= SATURATED:
            foreign = max(foreign, run_queue)
    return cores / (cores + foreign)


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
