"""One server process as the core sees it: its slots, what runs on it, and how much more it should be given.

`avail = capacity × weight × warm-up × (1 − other CPU)`, in cores, 0 where memory is short. A policy reads two numbers
made of it, so that no division is left on the hot path: `stretch = max(floor, (inflight + 1) × step)`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Final

from unjam.core import sizing
from unjam.core.load import READY, LoadReport
from unjam.core.sizing import MEMORY_SHORT
from unjam.core.spec import UNSIZED_SLOTS, EjectionSpec, EndpointSpec, WarmUpSpec

if TYPE_CHECKING:
    from unjam.core.heard import Heard
    from unjam.core.pool import Pool
    from unjam.core.quota import Region

#: What one request that is certainly heavy counts for.
UNIT: Final = 64
#: Seconds in which the handicap of past failures halves.
HANDICAP_HALF_LIFE: Final = 10.0
#: Handicaps below this are forgotten; above `HANDICAP_MOST` they don't grow.
HANDICAP_LEAST: Final = 0.05
HANDICAP_MOST: Final = 15.0
#: What others leave us of a processor is at least this: the kernel shares it out fairly, and a report may be wrong.
SHARE_LEAST: Final = 0.05
#: Where others leave less than this the endpoint is choked, and gets no heavy work while the rest is clearly better ..
CHOKED_BELOW: Final = 0.25
#: .. until they leave this much.
CHOKED_UNTIL: Final = 0.4
#: Clearly better: so many times the share.
CLEARLY: Final = 2.0
#: An inference engine whose cache is fuller takes no further heavy work: it would evict what runs.
CACHE_FULL: Final = 0.95
#: `room` where memory is not what limits heavy work.
AMPLE: Final = 1 << 30


class LeaseEnded(Exception):
    """A lease was finished twice; its slot had been given back already."""


class Endpoint:
    """`slots`, `inflight`, `heavy`: requests, counted at dispatch. `avail`: cores. Times are monotonic seconds.

    `burden`: of its heavy requests, in 1/`UNIT` of one; another fits while that is at most `heavy_most`.
    `usable`: health, drain and memory allow new work; it may still be full. `shell`: the gateway's own object.

    `given`: as configured, or as its reporter announced it (`discovered`); `spec`: the same with the sizes that were
    found. `heard`: what it reports, None before it has. `room`: heavy requests that its memory has room for; `choked`:
    others leave it too little of its processor for heavy work; `barred`: that is why it gets none. `busy`: seconds that
    requests have run on it, all together; `heavy_ended`: how many of the heavy lane have ended.
    `base_slots`: those of its size; `target`: those that reports have led to, 0 when none have. `kind`: `endpoint` is
    sent requests, `worker` claims runs.
    """

    kind: ClassVar[str] = "endpoint"

    __slots__ = (
        "avail",
        "barred",
        "base_slots",
        "blamed_at",
        "burden",
        "busy",
        "choked",
        "connect_failures",
        "cost",
        "cost_at",
        "discovered",
        "drained",
        "draining",
        "ejected_for",
        "ejected_until",
        "ejection_ended",
        "ejections",
        "entry",
        "failed",
        "failures",
        "floor",
        "given",
        "handicap",
        "handicap_at",
        "healthy",
        "heard",
        "heavy",
        "heavy_cap",
        "heavy_crowd",
        "heavy_ended",
        "heavy_entry",
        "heavy_most",
        "heavy_stale",
        "inflight",
        "load_state",
        "name",
        "nominal",
        "per_core",
        "place",
        "pool",
        "region",
        "removed",
        "room",
        "served",
        "shell",
        "silent",
        "slots",
        "spec",
        "stale",
        "step",
        "target",
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
        #: By an operator, or by its own word; `drained`: by an operator.
        self.draining = False
        self.drained = False
        self.removed = False
        self.discovered = False
        #: Its reporter has not been heard of for longer than the gateway puts up with.
        self.silent = False
        #: As it last reported.
        self.load_state = READY
        self.heard: Heard | None = None
        self.busy = 0.0
        self.heavy_ended = 0
        self.choked = False
        self.barred = False
        self.room = AMPLE
        self.target = 0
        #: By its own checks, ejections, drain and memory; `usable` minds the panic of its version too.
        self.well = False
        self.usable = False
        #: 0: it is not ejected. Cleared by the first tick after its time.
        self.ejected_until = 0.0
        #: Why, in words, if not for failures in a row.
        self.ejected_for = ""
        self.ejection_ended = 0.0
        #: When it was found to be the cause of its version's failures: those of calls begun before are its own.
        self.blamed_at = 0.0
        #: In a row; `connect_failures` are among the `failures`.
        self.failures = 0
        self.connect_failures = 0
        self.ejections = 0
        self.handicap = 0.0
        self.handicap_at = 0.0
        #: Since when it warms up; None: it is warm.
        self.warm_from: float | None = None
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
        """Take the size of `spec`; what runs and what is known of its health and load stays."""
        self.given = spec
        self.target = 0
        self._fit()
        self.slots = self.fitting_slots()
        self.cap_heavy(self.slots, self.slots)

    def _fit(self) -> None:
        """Bring the sizes together: what is configured is a promise, what is found fills in the rest."""
        spec = self.given
        cores, memory = self._sizes()
        if (cores, memory) != (spec.cores, spec.memory):
            spec = replace(spec, cores=cores, memory=memory)
        self.spec = spec
        self.base_slots = spec.hard_slots
        #: What `avail` is at its best.
        self.nominal = _one(spec.capacity * spec.weight)
        self.avail = self.nominal
        self.floor = 0.0
        self.step = 0.0
        self._measure()

    def sized(self) -> bool:
        """Take sizes that were found. True: they are new."""
        spec = self.spec
        if (spec.cores, spec.memory) == self._sizes():
            return False
        self._fit()
        return True

    def _sizes(self) -> tuple[float | None, int | None]:
        """Cores and memory, as configured and found."""
        given, heard = self.given, self.heard
        if heard is None:
            return given.cores, given.memory
        memory = given.memory
        if heard.memory is not None and (memory is None or heard.memory < memory):
            memory = heard.memory
        return heard.cores if given.cores is None else given.cores, memory

    def adapt(self, report: LoadReport) -> None:
        """Move the slots toward what the endpoint can do, by one report."""
        if self.given.slots is not None:
            return
        base = self.base_slots
        slots = self.target or base
        if base == UNSIZED_SLOTS:
            if report.in_flight is not None and report.waiting is not None:
                ours = max(self.inflight, 1)
                slots = sizing.engine_slots(slots, slots != base, ours, report.in_flight, report.waiting)
        else:
            if not self.target:
                # Never below what it ran before anybody knew its size.
                slots = max(slots, min(self.inflight, sizing.MOST_TIMES * base))
            slots = sizing.adapt(slots, base, sizing.Use(report.cpu, report.pressure, self.inflight))
        self.target = slots

    def fitting_slots(self, asked: int | None = None) -> int:
        """The slots to use now. `asked`: the most that the server itself wants."""
        slots = self.given.slots or self.target or self.base_slots
        return slots if asked is None else max(1, min(slots, asked))

    def refresh(self, warm_up: WarmUpSpec, now: float) -> bool:
        """Work out `avail`, the room for heavy work and the handicap as of `now`; True while time alone will go on
        changing them."""
        restless = False
        avail = self.nominal
        if self.warm_from is not None:
            factor = warm_factor(warm_up, now - self.warm_from)
            if factor >= 1.0:
                self.warm_from = None
            else:
                avail *= factor
                restless = True
        heard = self.heard
        if heard is not None:
            trust = heard.trust(now)
            if trust > 0.0:
                restless = restless or trust < 1.0
                avail *= self._heed(heard, now)
                self.load_state = heard.state(now)
            elif heard.sources or self.load_state != READY or self.room != AMPLE or self.choked:
                heard.forget()
                self.choked = False
                self.room = AMPLE
                self.load_state = READY
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

    def _heed(self, heard: Heard, now: float) -> float:
        """What the reports leave of its capacity, 0 .. 1 (up to 2.56 if it asks for more)."""
        share = max(SHARE_LEAST, heard.share_now(now))
        self.choked = share < (CHOKED_UNTIL if self.choked else CHOKED_BELOW)
        self.room = AMPLE
        sole = heard.sole(now)
        free: int | None = heard.latest("memory_free", now) if sole is None else sole.memory_free
        limit = self.spec.memory
        if free is not None and limit:
            if free < MEMORY_SHORT * limit:
                return 0.0
            used: int | None = heard.latest("agent_memory", now) if sole is None else sole.agent_memory
            need = self.pool.version.heavy_need.of(limit, now)
            # Where it isn't told apart, those that run are taken to have grown to their full size.
            # What else it uses, for fast work or for others, is not theirs to go on using.
            ours = self.heavy * need
            if used is not None and heard.base is not None:
                ours = min(ours, max(0.0, min(used, limit - free) - heard.base))
            room = sizing.heavy_room(free, limit, ours, need)
            self.room = room if room < self.slots else AMPLE
        cache: float | None = heard.latest("cache", now) if sole is None else sole.cache
        if cache is not None and cache >= CACHE_FULL:
            self.room = min(self.room, self.heavy)
        weight: float | None = heard.latest("weight", now) if sole is None else sole.weight
        return share if weight is None else share * weight

    @property
    def tally(self) -> Heard | None:
        """What became of its reports; None before the first."""
        return self.heard

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
        self.per_core = _one(1.0 / (UNIT * self.avail)) if self.avail > 0.0 else 0.0

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
