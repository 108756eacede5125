"""A logical agent (`Service`) and its released variants (`Version`): what belongs to each, and what was counted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from unjam.core.admission import Queue, Waiting
from unjam.core.affinity import Sessions
from unjam.core.blame import Blame
from unjam.core.breaker import Breaker
from unjam.core.estimator import Estimator
from unjam.core.model import Lease, Outcome, Reason
from unjam.core.retry import RetryBudget
from unjam.core.rollout import Candidate, VersionPicker
from unjam.core.sizing import Need
from unjam.core.split import Split, renewed

if TYPE_CHECKING:
    from unjam.core.endpoint import Endpoint
    from unjam.core.pool import Pool
    from unjam.core.promotion import Times
    from unjam.core.quota import Region
    from unjam.core.spec import Maintenance, OverflowSpec, ServiceSpec
    from unjam.core.workers import Crew


class Counts(NamedTuple):
    """What a version has done, its workers included. `calls`: that ended well, or badly by its fault (`failures`);
    `good`, `bad`: verdicts on its answers."""

    calls: int
    failures: int
    good: int
    bad: int


class Version:
    """`heavy`: heavy leases that run on it; `heavy_cap`: the most it may start by itself, None where each endpoint has
    its own cap. `members`: endpoints not draining; `healthy`: those of them that are well; `usable`: those that may be
    used, with `slots` slots between them. `panic`: too few are healthy, so all are used. `down`: its breaker was
    tripped for want of a healthy endpoint, and is reset when one is back; `outages`: how often. `sole`: its only pool,
    when that has no quota. `share`: the breaker's, as last looked at. `heavy_need`: memory of one heavy request,
    learnt. `barred`: some of its endpoints get no heavy work; `large`: endpoints with more than a few slots. `crew`:
    its workers, None before the first; `original`: the version that this is the crew of, itself otherwise. `succeeded`,
    `failed`: calls that ended; `good`, `bad`: verdicts; `counts` has them all."""

    __slots__ = (
        "bad",
        "barred",
        "blame",
        "breaker",
        "burden",
        "crew",
        "down",
        "endpoints",
        "evict",
        "failed",
        "good",
        "healthy",
        "heavy",
        "heavy_cap",
        "heavy_crowd",
        "heavy_most",
        "heavy_need",
        "large",
        "leaving",
        "members",
        "name",
        "original",
        "outages",
        "overflow",
        "overflowed",
        "panic",
        "pools",
        "queue",
        "removed",
        "service",
        "share",
        "slots",
        "sole",
        "succeeded",
        "usable",
        "weight",
    )

    def __init__(self, name: str, service: Service, weight: float) -> None:
        self.name = name
        self.service = service
        self.original: Version = self
        self.crew: Crew | None = None
        self.weight = weight
        self.overflow: OverflowSpec | None = None
        #: Requests that went elsewhere for want of a slot here.
        self.overflowed = 0
        self.breaker = Breaker(service.spec.breaker, quality=service.spec.quality)
        self.blame = Blame()
        self.succeeded = 0
        #: By its own fault; connections that failed are not among them.
        self.failed = 0
        self.good = 0
        self.bad = 0
        self.pools: list[Pool] = []
        self.sole: Pool | None = None
        self.endpoints: dict[str, Endpoint] = {}
        #: Removed ones on which something still runs; one of them comes back as itself.
        self.leaving: dict[str, Endpoint] = {}
        self.queue = Queue()
        self.heavy = 0
        self.heavy_cap: int | None = None
        self.burden = 0
        self.heavy_most: int | None = None
        self.heavy_crowd = 0
        self.heavy_need = Need()
        self.barred = False
        self.large = 0
        self.members = 0
        self.healthy = 0
        self.usable = 0
        self.slots = 0
        self.share = 1.0
        self.panic = False
        self.down = False
        self.outages = 0
        self.removed = False
        #: What waits here must go elsewhere at the next tick.
        self.evict = False

    def pool_of(self, region: Region | None) -> Pool | None:
        for pool in self.pools:
            if pool.region is region:
                return pool
        return None

    @property
    def good_calls(self) -> int:
        """Calls that ended well, its workers' among them."""
        return self.succeeded + (self.crew.succeeded if self.crew is not None else 0)

    @property
    def counts(self) -> Counts:
        failed = self.failed + (self.crew.failed if self.crew is not None else 0)
        return Counts(self.good_calls + failed, failed, self.good, self.bad)

    def __repr__(self) -> str:
        return f"<Version {self.service.name}/{self.name}>"


class Service:
    """`young`, `overdue`: live leases that have not, and have, outlived the lanes' boundary, oldest first. `sole`: the
    version that gets every request, when nothing has to be chosen. `chain`: services to fall back on, in order, then
    `maintenance`. `shell`: the gateway's own, who looks into the exchanges."""

    __slots__ = (
        "_folded",
        "_noted",
        "chain",
        "departed",
        "dispatched",
        "estimator",
        "maintenance",
        "name",
        "offered",
        "overdue",
        "parting",
        "picker",
        "promoted",
        "refused",
        "removed",
        "retried",
        "retry",
        "sessions",
        "shell",
        "sole",
        "spec",
        "splits",
        "times",
        "unsuccessful",
        "versions",
        "waiting",
        "withdrawn",
        "young",
    )

    def __init__(self, spec: ServiceSpec) -> None:
        self.name = spec.name
        self.spec = spec
        self.versions: list[Version] = []
        #: Removed versions whose queue has still to be moved to others.
        self.parting: list[Version] = []
        self.sole: Version | None = None
        self.chain: tuple[Service, ...] = ()
        self.maintenance: Maintenance | None = None
        self.shell: Any = None
        #: Of the rollout under way.
        self.times: Times | None = None
        self.estimator = Estimator(spec.lanes.up_to)
        self.retry = RetryBudget(spec.retry)
        self.sessions: Sessions | None = None
        self.open_sessions()
        self.picker: VersionPicker[Version] = VersionPicker(spec.name)
        self.splits: tuple[Split, ...] = ()
        self.split_up()
        self.young: dict[Lease, None] = {}
        self.overdue: dict[Lease, None] = {}
        self.waiting = Waiting()
        self.removed = False
        # Every request offered to this service is counted once more: dispatched, refused, withdrawn, or it waits. A
        # request that falls back counts where it was offered; its lease counts in `ended` where it ran.
        self.offered = 0
        self.dispatched = 0
        self.withdrawn = 0
        self.refused: dict[Reason, int] = dict.fromkeys(Reason, 0)
        self.retried = 0
        self._noted = 0
        #: Removed versions of which something may still run, and the good calls of those of which nothing does.
        self.departed: list[Version] = []
        self._folded = 0
        # Those that end well are counted by version: they are most, and an enumeration is slow to hash.
        self.unsuccessful: dict[Outcome, int] = dict.fromkeys([o for o in Outcome if o is not Outcome.OK], 0)
        self.promoted = 0

    def open_sessions(self) -> None:
        if self.spec.session is not None:
            self.sessions = Sessions(self.spec.session.ttl)

    def split_up(self) -> None:
        """Take the rules of the specification; `reweigh` gives them their weights."""
        self.splits = renewed(self.spec.split, self.splits, self.name)

    @property
    def live(self) -> int:
        """Leases that run on this service's endpoints."""
        return len(self.young) + len(self.overdue)

    @property
    def succeeded(self) -> int:
        """Leases that ended well on this service's endpoints."""
        return self._folded + sum(version.good_calls for version in (*self.versions, *self.departed))

    def fold(self) -> None:
        """Keep the counts of removed versions of which nothing runs any more, and let these go."""
        running = {lease.version.original for lease in (*self.young, *self.overdue)}
        self._folded += sum(version.good_calls for version in self.departed if version not in running)
        self.departed = [version for version in self.departed if version in running]

    @property
    def ended(self) -> dict[Outcome, int]:
        """Leases that ended on this service's endpoints, by outcome."""
        return {Outcome.OK: self.succeeded, **self.unsuccessful}

    def note_requests(self, now: float) -> None:
        """Tell the retry budget of the requests (their first tries) since the last time."""
        first = self.offered - self.retried
        if first > self._noted:
            self.retry.note_request(now, first - self._noted)
            self._noted = first

    @property
    def alternatives(self) -> bool:
        """Whether there is something to fall back on."""
        return bool(self.chain) or self.maintenance is not None

    def reweigh(self, now: float) -> None:
        """Share the traffic out anew: weights, breakers or usable endpoints have changed."""
        candidates = []
        for version in self.versions:
            version.share = version.breaker.share(now)
            weight = version.weight if version.usable else 0.0
            candidates.append(Candidate(version, version.name, weight, version.share))
        self.picker.set(candidates, spill=self.alternatives)
        for rule in self.splits:
            rule.reweigh(self.versions)
        self.sole = None
        if self.splits:
            return
        chosen = [c for c in candidates if c.weight * c.share > 0.0]
        if len(chosen) == 1 and (chosen[0].share >= 1.0 or not self.alternatives):
            self.sole = chosen[0].version

    def __repr__(self) -> str:
        return f"<Service {self.name}>"
