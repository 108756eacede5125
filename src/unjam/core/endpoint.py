"""One server process as the core sees it: its slots, what runs on it, and how much more it should be given.

`avail = capacity × weight × warm-up × (1 − other CPU)`, in cores, 0 where memory is short. A policy reads two numbers
made of it, so that no division is left on the hot path: `stretch = max(floor, (inflight + 1) × step)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from unjam.core.spec import EjectionSpec, EndpointSpec, WarmUpSpec

if TYPE_CHECKING:
    from unjam.core.pool import Pool
    from unjam.core.quota import Region

#: What one request that is certainly heavy counts for.
UNIT: Final = 64
#: Seconds after which a load report counts for nothing: stale is worse than none.
REPORT_LIFE: Final = 30.0
#: An endpoint with less than this part of its memory free takes nothing new.
MEMORY_SHORT: Final = 0.05
#: Seconds in which the handicap of past failures halves.
HANDICAP_HALF_LIFE: Final = 10.0
#: Handicaps below this are forgotten; above `HANDICAP_MOST` they don't grow.
HANDICAP_LEAST: Final = 0.05
HANDICAP_MOST: Final = 15.0
#: `avail` of an endpoint is at least this part of its capacity, unless its memory is short or its weight is 0.
AVAIL_LEAST: Final = 0.01


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a reporter says of its machine. `other_cpu`: fraction 0 .. 1 of its CPU used by anything but our requests.
    `memory_free`: bytes, None when unknown; it is compared with the endpoint's configured `memory`."""

    other_cpu: float = 0.0
    memory_free: int | None = None


class LeaseEnded(Exception):
    """A lease was finished twice; its slot had been given back already."""


class Endpoint:
    """`slots`, `inflight`, `heavy`: requests, counted at dispatch. `avail`: cores. Times are monotonic seconds.

    `burden`: of its heavy requests, in 1/`UNIT` of one; another fits while that is at most `heavy_most`.
    `usable`: health, drain and memory allow new work; it may still be full. `shell`: the gateway's own object.
    """

    __slots__ = (
        "avail",
        "burden",
        "connect_failures",
        "cost",
        "cost_at",
        "draining",
        "ejected_until",
        "ejection_ended",
        "ejections",
        "entry",
        "failed",
        "failures",
        "floor",
        "handicap",
        "handicap_at",
        "healthy",
        "heavy",
        "heavy_cap",
        "heavy_crowd",
        "heavy_entry",
        "heavy_most",
        "heavy_stale",
        "inflight",
        "name",
        "nominal",
        "per_core",
        "place",
        "pool",
        "region",
        "removed",
        "report",
        "report_at",
        "served",
        "shell",
        "slots",
        "spec",
        "stale",
        "step",
        "turn",
        "url",
        "usable",
        "warm_from",
        "well",
    )

    def __init__(self, spec: EndpointSpec, pool: Pool, region: Region | None) -> None:
        self.name = spec.url
        self.url = spec.url
        self.pool = pool
        self.region = region
        self.inflight = 0
        self.heavy = 0
        self.burden = 0
        self.healthy = True
        self.draining = False
        self.removed = False
        #: By its own checks, ejections, drain and memory; `usable` minds the panic of its version too.
        self.well = False
        self.usable = False
        #: 0: it is not ejected. Cleared by the first tick after its time.
        self.ejected_until = 0.0
        self.ejection_ended = 0.0
        #: In a row; `connect_failures` are among the `failures`.
        self.failures = 0
        self.connect_failures = 0
        self.ejections = 0
        self.handicap = 0.0
        self.handicap_at = 0.0
        #: Since when it warms up; None: it is warm.
        self.warm_from: float | None = None
        self.report: LoadReport | None = None
        self.report_at = 0.0
        self.served = 0
        self.failed = 0
        self.shell: Any = None
        # Of the policy: heap entries with their staleness, turn or virtual time, position in an index, latency average.
        self.entry: Any = None
        self.heavy_entry: Any = None
        self.stale = False
        self.heavy_stale = False
        self.turn = 0.0
        self.place: Any = None
        self.cost = 0.0
        self.cost_at = 0.0
        self.configure(spec)

    def configure(self, spec: EndpointSpec) -> None:
        """Take the size of `spec`; what runs and what is known of its health stays."""
        self.spec = spec
        self.slots = spec.hard_slots
        self.cap_heavy(self.slots, self.slots)
        self.per_core = _one(1.0 / (UNIT * spec.capacity))
        #: What `avail` is at its best.
        self.nominal = _one(spec.capacity * spec.weight)
        self.avail = self.nominal
        self.floor = 0.0
        self.step = 0.0
        self._measure()

    def refresh(self, warm_up: WarmUpSpec, now: float) -> bool:
        """Work out `avail` and the handicap as of `now`; True while time alone will go on changing them."""
        spec = self.spec
        most = self.nominal
        restless = False
        avail = most
        if self.warm_from is not None:
            factor = warm_factor(warm_up, now - self.warm_from)
            if factor >= 1.0:
                self.warm_from = None
            else:
                avail *= factor
                restless = True
        report = self.report
        if report is not None:
            trust = 1.0 - (now - self.report_at) / REPORT_LIFE
            if trust <= 0.0:
                self.report = None
            else:
                restless = True
                avail *= 1.0 - trust * min(1.0, max(0.0, report.other_cpu))
                avail = max(avail, AVAIL_LEAST * most)
                if report.memory_free is not None and report.memory_free < MEMORY_SHORT * (spec.memory or 0):
                    avail = 0.0
        self.avail = avail
        if self.handicap:
            self.handicap *= 0.5 ** ((now - self.handicap_at) / HANDICAP_HALF_LIFE)
            self.handicap_at = now
            if self.handicap < HANDICAP_LEAST:
                self.handicap = 0.0
            else:
                restless = True
        self._measure()
        return restless

    def cap_heavy(self, cap: int, crowd: int) -> None:
        """It runs at most `cap` heavy requests, in expectation, and at most `crowd` of the heavy lane."""
        self.heavy_cap = cap
        self.heavy_most = UNIT * (cap - 1)
        self.heavy_crowd = crowd

    def takes_heavy(self) -> bool:
        """Its own share allows one more request of the heavy lane, whether it has a slot or not."""
        return self.burden <= self.heavy_most and self.heavy < self.heavy_crowd

    def blame(self, now: float) -> None:
        """One failure: it looks that much fuller than it is, for a while. Otherwise one that fails at once has the
        fewest requests in flight and attracts everything."""
        self.handicap = self.handicap * 0.5 ** ((now - self.handicap_at) / HANDICAP_HALF_LIFE) + 1.0
        self.handicap = min(self.handicap, HANDICAP_MOST)
        self.handicap_at = now

    def stretch(self) -> float:
        """By how much one more request would be slowed down, handicap included; 1 is not at all."""
        return max(self.floor, (self.inflight + 1) * self.step)

    def _measure(self) -> None:
        factor = 1.0 + self.handicap
        # Below one request per core nothing slows down, where cores are known. Slots are only a guess at them.
        self.floor = _one(factor) if self.spec.cores else 0.0
        self.step = _one(factor / self.avail) if self.avail > 0.0 else 0.0

    def __repr__(self) -> str:
        return f"<Endpoint {self.name} {self.inflight}/{self.slots}>"


@lru_cache(maxsize=1024)
def _one(value: float) -> float:
    """One object for equal numbers: what thousands of endpoints share stays in the processor's cache."""
    return value


def warm_factor(spec: WarmUpSpec, seconds: float) -> float:
    """Envoy's slow start: the part of its capacity that an endpoint has `seconds` after it (re)started."""
    if seconds >= spec.window:
        return 1.0
    risen: float = (max(0.0, seconds) / spec.window) ** (1.0 / spec.aggression)
    return max(spec.least, risen)


def ejection_seconds(spec: EjectionSpec, times: int) -> float:
    """How long the `times`-th ejection lasts."""
    return min(spec.base * times, spec.max)
