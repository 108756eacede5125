"""Workers as endpoints: what claims runs counts against slots, lanes and breakers like what is sent requests.

The workers of a version are its `Crew`, a version of their own beside it: they share the breaker, and have their own
slots and heavy share, since a slot of a worker is none for a request. No policy ever picks one. A worker asks
(`Workers.lanes`), and what it gets is a lease like any other, ended by `Balancer.finish`.

An open breaker gives its version's workers nothing; while it ramps back, at most its share of their slots and one at
least. A version without a healthy endpoint is down for requests only: its workers go on.

Where workers of several versions ask for the runs of a lane, the versions' weights divide them (`turns`). A version
takes part while one of its workers asks, has asked until a moment ago (or has been about to), or is at work with all
its slots: nobody waits for one that isn't there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

from unjam.core import lanes
from unjam.core.endpoint import UNIT, Endpoint
from unjam.core.model import Lease, Request
from unjam.core.policies.base import Policy
from unjam.core.pool import Pool
from unjam.core.rollout import Candidate, effective
from unjam.core.service import Version
from unjam.core.snapshot import WORKER, why
from unjam.core.spec import HEAVY, EndpointSpec
from unjam.core.turns import May, Turns

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from unjam.core.health import Health
    from unjam.core.load import LoadReport
    from unjam.core.policies.base import Rng
    from unjam.core.service import Service

#: Beginning of `Worker.refusal` of one that has to wait for other versions.
HAD: Final = "version has had its share"


class Division(NamedTuple):
    """Of the lanes that a worker may have, those of which it may have anything (`free`), and those of which only what
    is its version's already (`held`). `turns`: what a claim is to be counted in, by lane."""

    free: tuple[str, ...]
    held: tuple[str, ...]
    turns: dict[str, Turns]


class _Nobody(Policy):
    """Picks no one."""

    __slots__ = ()

    def pick(self, request: Request, heavy: bool, now: float) -> Endpoint | None:
        return None

    def open(self, endpoint: Endpoint) -> None:
        pass

    def close(self, endpoint: Endpoint) -> None:
        pass

    def started(self, endpoint: Endpoint, heavy: bool) -> None:
        pass

    def ended(self, endpoint: Endpoint, seconds: float, now: float) -> None:
        pass

    def touch(self, endpoint: Endpoint) -> None:
        pass


class _Bench(Pool):
    __slots__ = ()

    def __init__(self, crew: Crew, rng: Rng) -> None:
        self.version = crew
        self.region = None
        self.endpoints = {}
        self.policy = _Nobody(rng)
        self.homes = None


class Worker(Endpoint):
    """`running`: runs that it says it has, also those that it got elsewhere. `claiming`: claims of it that are held
    open; `seen`: when it was last heard of, monotonic seconds; `asked`: when it last asked. `turned_away`: claims that
    were given nothing although it had room, by its own account; `refusal`: why the last one was, empty when it wasn't.
    `asks`: lanes that it asks for as one of its version, none where it doesn't say of which it is."""

    __slots__ = ("asked", "asks", "claiming", "refusal", "running", "seen", "turned_away")
    kind: ClassVar[str] = WORKER

    def __init__(self, spec: EndpointSpec, bench: _Bench, now: float) -> None:
        super().__init__(spec, bench, None)
        self.running = 0
        self.claiming = 0
        self.turned_away = 0
        self.refusal = ""
        self.asks: tuple[str, ...] = ()
        self.seen = now
        self.asked = now

    @property
    def taken(self) -> int:
        """Slots that are taken."""
        return max(self.inflight, self.running)


class Crew(Version):
    """The workers of `original`. `elsewhere`: workers that other gateways or the store know of, to be shown only."""

    __slots__ = ("bench", "elsewhere")

    def __init__(self, original: Version, rng: Rng) -> None:
        super().__init__(original.name, original.service, 1.0)
        self.original = original
        self.breaker = original.breaker
        self.bench = _Bench(self, rng)
        self.elsewhere: dict[str, dict[str, Any]] = {}

    def workers(self) -> Iterator[Worker]:
        """Workers that are heard of here."""
        for worker in self.endpoints.values():
            assert isinstance(worker, Worker)
            yield worker

    @property
    def live(self) -> int:
        """Runs that workers have from this gateway."""
        return sum(worker.inflight for worker in self.endpoints.values())


class Workers:
    """Of one balancer. `seen`: those heard of here, by service and name."""

    __slots__ = ("_health", "_rng", "_stirred", "_turns", "seen")

    def __init__(self, health: Health, rng: Rng) -> None:
        self._health = health
        self._rng = rng
        self.seen: dict[tuple[str, str], Worker] = {}
        #: By service and lane, where there is something to divide.
        self._turns: dict[tuple[str, str], Turns] = {}
        self._stirred: set[str] = set()

    # Presence

    def hear(
        self,
        service: Service,
        version: str | None,
        name: str,
        slots: int | None,
        now: float,
        running: int | None = None,
        asks: tuple[str, ...] | None = None,
    ) -> Worker:
        """A worker asks for work of the lanes `asks`; None: it is only seen to be there. `version` None: that of the
        greatest weight. `slots` None: it doesn't say, and has one more than it is seen to use. Raises KeyError for a
        version that the service doesn't have."""
        released = _released(service, version)
        crew = self._crew(released)
        worker = self.seen.get((service.name, name))
        if worker is not None and worker.pool.version is not crew:
            self._leave(worker, now)
            worker = None
        if slots is None:
            slots = max(worker.slots, worker.taken + 1) if worker is not None else 1 + (running or 0)
        if worker is None:
            worker = Worker(EndpointSpec(name, slots=slots), crew.bench, now)
            self.seen[service.name, name] = worker
            crew.elsewhere.pop(name, None)
            crew.endpoints[name] = worker
            crew.large += worker.slots > lanes.FEW
            crew.bench.add(worker)
            self._health.joined(worker, now, warm_up=False)
            lanes.recap(crew, worker)
        elif worker.given.slots != slots:
            self._resize(crew, worker, slots, now)
        worker.seen = now
        if asks is not None:
            worker.asks = () if version is None else asks
            worker.asked = now
        if running is not None:
            worker.running = running
        return worker

    def report(self, worker: Worker, load: LoadReport, now: float) -> None:
        """What it says of its machine: `worker.tally` tells what was made of it."""
        if not worker.removed:
            self._health.reported(worker, load, now)

    def forget(self, silent_since: float, now: float) -> list[Worker]:
        """Let those leave that have nothing to do here and were not heard of since then."""
        gone = [
            worker
            for worker in self.seen.values()
            if worker.seen < silent_since and not worker.inflight and not worker.claiming
        ]
        for worker in gone:
            self._leave(worker, now)
        return gone

    def named(self, name: str) -> list[Worker]:
        """Those of that name: one for each service that it works for."""
        return [worker for worker in self.seen.values() if worker.name == name]

    def show_elsewhere(
        self, services: dict[str, Service], found: Sequence[tuple[str, str | None, dict[str, Any]]]
    ) -> None:
        """Workers known from the store: (service, version, as a snapshot has them). They replace the last ones."""
        for service in services.values():
            for version in service.versions:
                if version.crew is not None:
                    version.crew.elsewhere.clear()
        for service_name, version_name, entry in found:
            service_or_none = services.get(service_name)
            if service_or_none is None or (service_name, entry["name"]) in self.seen:
                continue
            try:
                version = _released(service_or_none, version_name)
            except KeyError:
                continue
            self._crew(version).elsewhere[entry["name"]] = entry

    # Work

    def lanes(self, worker: Worker, asked: Sequence[str], now: float) -> tuple[str, ...]:
        """Of which of the lanes asked for it may have a run now. None: `worker.refusal` says why, in the words of
        `why`."""
        problem = self._problem(worker, now)
        found: tuple[str, ...] = ()
        if not problem:
            found = tuple(lane for lane in asked if lane != "heavy" or _takes_heavy(worker))
            if not found:
                problem = why(worker, now)[0]
        worker.refusal = problem
        return found

    def divide(self, worker: Worker, lanes: Sequence[str], now: float, silence: float) -> Division | None:
        """What the weights leave of `lanes`, which it may have. None: another's claim, which is on its way, decides
        that; ask again once it has ended. `silence`: seconds for which one that isn't heard of is there still."""
        version = worker.pool.version.original
        free: list[str] = []
        held: list[str] = []
        turns: dict[str, Turns] = {}
        for lane in lanes:
            found = self._turns_of(version.service, lane, now, silence)
            may = May.YES if found is None or version.name not in found.weights else found.may(version.name)
            if may is May.LATER:
                return None
            (free if may is May.YES else held).append(lane)
            if may is May.YES and found is not None:
                turns[lane] = found
        if held:
            worker.refusal = f"{HAD} of {held[0]} runs" if free else HAD
        return Division(tuple(free), tuple(held), turns)

    def stirred(self, services: dict[str, Service], now: float, silence: float) -> set[str]:
        """Services of which somebody was told to wait for versions that have left since, or whose weights or breakers
        have changed: they may ask again."""
        for name, lane in list(self._turns):
            if name in services:
                self._turns_of(services[name], lane, now, silence)
        stirred, self._stirred = self._stirred, set()
        return stirred

    def start(self, worker: Worker, features: str, lane: str, tenant: str, now: float) -> Lease:
        """It was given a run: the lease that it holds until `Balancer.finish`."""
        crew = worker.pool.version
        service = crew.service
        hint = "heavy" if lane == "heavy" else None
        request = Request(service, features, now, tenant=tenant, lane_hint=hint)
        bucket = service.estimator.bucket(features, None, hint)
        heavy = bucket.heavy
        lease = Lease(request, service, crew, worker, bucket, heavy, bucket.predicted, now)
        service.offered += 1
        service.dispatched += 1
        worker.inflight += 1
        if heavy:
            lanes.begin(lease)
        service.young[lease] = None
        return lease

    # Inside

    def _problem(self, worker: Worker, now: float) -> str:
        crew = worker.pool.version
        if worker.removed or worker.draining:
            return why(worker, now)[0]
        assert isinstance(crew, Crew)
        problem = _withheld(crew)
        if problem:
            return problem
        if not worker.usable:
            return why(worker, now)[0]
        return "full" if worker.taken >= worker.slots else ""

    def _turns_of(self, service: Service, lane: str, now: float, silence: float) -> Turns | None:
        """None: there is nobody to share with."""
        weights, full = self._weights(service, lane, now, silence)
        turns = self._turns.get((service.name, lane))
        if turns is not None and turns.held and turns.weights != weights:
            self._stirred.add(service.name)
        if len(weights) < 2:
            self._turns.pop((service.name, lane), None)
            return None
        if turns is None:
            turns = self._turns[service.name, lane] = Turns()
        turns.set(weights)
        for name in full:
            turns.excuse(name)
        return turns

    def _weights(self, service: Service, lane: str, now: float, silence: float) -> tuple[dict[str, float], list[str]]:
        """Of the versions that take part, by name, as their breakers leave them; and those whose breaker lets them
        begin no more just now."""
        found, full = [], []
        for version in service.versions:
            crew = version.crew
            if crew is None or not any(_there(worker, lane, now, silence) for worker in crew.workers()):
                continue
            found.append(Candidate(version, version.name, version.weight, _share(version)))
            if _withheld(crew):
                full.append(version.name)
        return {name: weight for _, name, weight in effective(found, False)}, full

    def _crew(self, version: Version) -> Crew:
        if version.crew is None:
            version.crew = Crew(version, self._rng)
        return version.crew

    def _resize(self, crew: Crew, worker: Worker, slots: int, now: float) -> None:
        before = worker.slots
        worker.configure(EndpointSpec(worker.name, slots=slots))
        if worker.usable:
            lanes.add_slots(crew, worker.slots - before)
        crew.large += (worker.slots > lanes.FEW) - (before > lanes.FEW)
        lanes.recap(crew, worker)
        self._health.changed(worker, now)

    def _leave(self, worker: Worker, now: float) -> None:
        """Take it out. The runs that it still has go on to their ends."""
        crew = worker.pool.version
        del self.seen[worker.pool.version.service.name, worker.name]
        del crew.endpoints[worker.name]
        crew.large -= worker.slots > lanes.FEW
        self._health.left(worker, now)
        worker.pool.remove(worker)
        if crew.barred:
            lanes.set_caps(crew)
        else:
            lanes.recap(crew, worker)

    def parted(self, services: dict[str, Service], now: float) -> None:
        """The configuration has changed: workers of what is gone leave; they come back where they are wanted."""
        for worker in list(self.seen.values()):
            version = worker.pool.version.original
            service = services.get(version.service.name)
            if service is not version.service or version not in service.versions:
                self._leave(worker, now)
        self._turns = {key: turns for key, turns in self._turns.items() if key[0] in services}
        for service in services.values():
            for version in service.versions:
                if version.crew is not None:
                    lanes.set_caps(version.crew)


def _withheld(crew: Crew) -> str:
    """Why the version gets nothing now, in words; empty: it does."""
    version = crew.original
    share = _share(version)
    if version.weight <= 0.0:
        return "version has no weight"
    if share <= 0.0:
        return "breaker open"
    if share < 1.0 and crew.live >= max(1, int(share * crew.slots)):
        return f"breaker ramping at {share:.0%}"
    return ""


def _share(version: Version) -> float:
    """What its breaker leaves it of the work that workers ask for."""
    return 1.0 if version.down else version.share


def _there(worker: Worker, lane: str, now: float, silence: float) -> bool:
    """It asks for runs of the lane, or will as soon as it has a slot."""
    if lane not in worker.asks or worker.removed or worker.draining or not worker.usable:
        return False
    if lane == HEAVY and not worker.pool.version.heavy and not _takes_heavy(worker):
        return False  # for other reasons than what runs
    heard = worker.seen if worker.taken >= worker.slots else worker.asked
    return worker.claiming > 0 or now - heard < silence


def _released(service: Service, name: str | None) -> Version:
    """Raises KeyError."""
    if name is None:
        if not service.versions:
            raise KeyError(name)
        return max(service.versions, key=lambda version: version.weight)
    for version in service.versions:
        if version.name == name:
            return version
    raise KeyError(name)


def _takes_heavy(worker: Worker) -> bool:
    """Whether its share, its pool's and its last report allow one more heavy run."""
    crew = worker.pool.version
    return worker.takes_heavy() and (
        crew.heavy_most is None or (crew.burden + UNIT <= crew.heavy_most and crew.heavy < crew.heavy_crowd)
    )
