"""Simulated servers that slow down when crowded, before the bare `Balancer`.

Processor sharing: each request can use one core (or the part of it that is its appetite: agents that mostly wait for a
model); beyond what the cores can give all share alike. On every server a
neighbour comes and goes and takes part of the cores while it is there: at random times, which the balancer can learn
only from reports. All is deterministic: the same jobs, neighbours and seed give the same decisions.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from typing import Any

from benchmarks.heavy_tail.arrivals import Job
from unjam.core.balancer import Balancer
from unjam.core.endpoint import Endpoint
from unjam.core.load import LoadReport
from unjam.core.model import Lease, Outcome, Refusal, Request, Ticket
from unjam.core.spec import EndpointSpec, LanesSpec, QueueSpec, ServiceSpec, Topology, VersionSpec

#: Seconds between calls of `Balancer.tick`.
TICK = 0.5
#: Measured shares are up to this part too low.
NOISE = 0.01
#: Six servers of 8 cores and two of 64.
FLEET = (8,) * 6 + (64,) * 2


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Each takes `part` of its server's cores, for `on` seconds in the mean (exponential), then leaves it in peace for
    `off` seconds in the mean. `fair`: it is programs that are always ready to run, as many as that part of the cores,
    among which and the requests the kernel divides the cores evenly: they take what is left and make room for more."""

    part: float = 0.5
    on: float = 100.0
    off: float = 200.0
    fair: bool = False

    @property
    def taken(self) -> float:
        """Share of all cores that they take in the long run."""
        return self.part * self.on / (self.on + self.off)

    def times(self, rng: random.Random, until: float) -> list[float]:
        """When one comes, goes, comes ... It may be there at 0 already: then the first time is 0."""
        here = rng.random() < self.on / (self.on + self.off)
        at, out = 0.0, [0.0] if here else []
        while at < until:
            at += rng.expovariate(1.0 / (self.on if here else self.off))
            here = not here
            out.append(at)
        return out


class Server:
    """`work`: virtual seconds of service that each request present since the start would have got."""

    __slots__ = (
        "appetite",
        "cores",
        "endpoint",
        "ends",
        "events",
        "fair",
        "n",
        "noisy",
        "now",
        "others_used",
        "part",
        "used",
        "work",
    )

    def __init__(self, cores: int, neighbours: Neighbours, appetite: float = 1.0) -> None:
        self.cores = float(cores)
        self.fair = neighbours.fair
        self.appetite = appetite
        self.part = neighbours.part
        self.noisy = False
        self.n = 0
        self.now = 0.0
        self.work = 0.0
        #: Core seconds that requests and the neighbour have used.
        self.used = 0.0
        self.others_used = 0.0
        #: Finishes: (work at which, serial, job, lease).
        self.ends: list[tuple[float, int, int, Lease]] = []
        #: Number of the finish event that counts; those of lower numbers are out of date.
        self.events = 0
        self.endpoint: Endpoint | None = None

    @property
    def left(self) -> float:
        """Cores that the neighbour leaves."""
        return self.cores * (1.0 - self.part) if self.noisy else self.cores

    def rate(self) -> float:
        """Seconds of service that each request gets in a second."""
        if self.n == 0:
            return 1.0
        if self.noisy and self.fair:
            return min(1.0, self.cores / (self.n * self.appetite + self.part * self.cores))
        return min(1.0, self.left / (self.n * self.appetite))

    def others(self) -> float:
        """Cores that the neighbour uses now."""
        wanted = self.part * self.cores if self.noisy else 0.0
        return min(wanted, self.cores - self.rate() * self.n * self.appetite) if self.fair else wanted

    def runnable(self) -> float:
        """Tasks that run or could: the requests', and those of a neighbour that shares the kernel with them."""
        return self.n * self.appetite + (self.part * self.cores if self.noisy else 0.0)

    def advance(self, now: float) -> None:
        passed = now - self.now
        if passed > 0.0:
            rate = self.rate()
            self.work += passed * rate
            self.used += passed * rate * self.n * self.appetite
            self.others_used += passed * self.others()
            self.now = now


#: Makes the report of a server at `now`; None: it says nothing. `truth` is what an honest reporter has measured.
Teller = Callable[[Server, LoadReport, float], LoadReport | None]


def fleet(
    policy: str, cores: Sequence[int] = FLEET, up_to: float = 60.0, share: float = 0.75, sized: bool = True
) -> ServiceSpec:
    """Slots are twice the cores. `sized`: the configuration gives the cores; otherwise each may run any number, and
    only reports tell the servers' sizes."""
    return ServiceSpec(
        "agents",
        (
            VersionSpec(
                "v1",
                tuple(EndpointSpec(f"http://e{i}", cores=c if sized else None) for i, c in enumerate(cores)),
            ),
        ),
        policy=policy,
        lanes=LanesSpec(up_to=up_to, share=share),
        queue=QueueSpec(max=100_000, timeout=86_400.0),
    )


class World:
    """One run: `jobs` through the balancer to servers of `cores`. `seconds`: response by job. `heavy_on`: dispatches by
    server."""

    def __init__(
        self,
        spec: ServiceSpec,
        cores: Sequence[int],
        neighbours: Neighbours,
        teller: Teller | None,
        seed: int,
        interval: float = 2.0,
        appetite: float = 1.0,
    ) -> None:
        self.balancer = Balancer(random.Random(f"decisions/{seed}"))
        self.balancer.apply(Topology({spec.name: spec}), 0.0)
        self.service: Any = self.balancer.services[spec.name]
        self.servers = [Server(c, neighbours, appetite) for c in cores]
        self._by_name: dict[str, Server] = {}
        for i, server in enumerate(self.servers):
            server.endpoint = self.service.versions[0].endpoints[f"http://e{i}"]
            self._by_name[f"http://e{i}"] = server
        self.neighbours = neighbours
        self.teller = teller
        self.interval = interval
        self.seed = seed
        self.seconds: list[float] = []
        self.refused = 0
        self.dispatched = [0] * len(cores)
        self._events: list[tuple[float, int, str, Any, int]] = []
        self._serial = count()
        self._jobs: Sequence[Job] = ()
        self._left = 0

    def run(self, jobs: Sequence[Job]) -> list[float]:
        self._jobs = jobs
        self._left = len(jobs)
        self.seconds = [math.nan] * len(jobs)
        for i, job in enumerate(jobs):
            self._at(job.at, "job", None, i)
        for n, server in enumerate(self.servers):
            rng = random.Random(f"neighbour/{self.seed}/{n}")
            # Long jobs run on after the last arrival; by then nothing is decided any more.
            for at in self.neighbours.times(rng, jobs[-1].at * 2.0):
                self._at(at, "neighbour", server)
            if self.teller is not None:
                self._at(self.interval * (n + 1) / len(self.servers), "report", server)
        self._at(TICK, "tick", None)
        measured = dict.fromkeys(self.servers, (0.0, 0.0, 0.0))
        noise = random.Random(f"noise/{self.seed}")
        last = jobs[-1].at
        while self._left:
            now, _, kind, what, i = heappop(self._events)
            if kind == "finish":
                if i == what.events:
                    self._finish(what, now)
            elif kind == "job":
                job = jobs[i]
                request = Request(self.service, f"POST {job.path}", now, context=i)
                decision = self.balancer.offer(request, now)
                if not isinstance(decision, Ticket):
                    self._take((decision,), now)
            elif kind == "tick":
                self._take(self.balancer.tick(now), now)
                self._at(now + TICK, "tick", None)
            elif kind == "neighbour":
                what.advance(now)
                what.noisy = not what.noisy
                self._plan(what, now)
            elif self.teller is not None:
                what.advance(now)
                since, used, others = measured[what]
                measured[what] = (now, what.used, what.others_used)
                span = (now - since) * what.cores
                ours, theirs = (what.used - used) / span, (what.others_used - others) / span
                # Real counters never stand still.
                ours *= 1.0 - NOISE * noise.random()
                truth = LoadReport(
                    cores=what.cores,
                    cpu=min(1.0, ours + theirs),
                    agent_cpu=ours,
                    in_flight=what.n,
                    run_queue=what.runnable(),
                )
                told = self.teller(what, truth, now)
                if told is not None:
                    assert what.endpoint is not None
                    self._take(self.balancer.report(what.endpoint, told, now), now)
                if now < last:
                    self._at(now + self.interval, "report", what)
        return self.seconds

    def _at(self, when: float, kind: str, what: Any, i: int = 0) -> None:
        heappush(self._events, (when, next(self._serial), kind, what, i))

    def _plan(self, server: Server, now: float) -> None:
        """When its next request ends, as things are now."""
        server.events += 1
        if server.ends:
            when = now + max(0.0, server.ends[0][0] - server.work) / server.rate()
            self._at(when, "finish", server, server.events)

    def _finish(self, server: Server, now: float) -> None:
        server.advance(now)
        _, _, i, lease = heappop(server.ends)
        server.n -= 1
        self.seconds[i] = now - self._jobs[i].at
        self._left -= 1
        self._take(self.balancer.finish(lease, Outcome.OK, now), now)
        self._plan(server, now)

    def _take(self, decisions: Iterable[Lease | Refusal], now: float) -> None:
        for decision in decisions:
            if isinstance(decision, Refusal):
                self._left -= 1
                self.refused += 1
                continue
            server = self._by_name[decision.endpoint.name]
            server.advance(now)
            server.n += 1
            job = decision.request.context
            heappush(server.ends, (server.work + self._jobs[job].seconds, next(self._serial), job, decision))
            self._plan(server, now)
