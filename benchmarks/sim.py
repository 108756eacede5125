"""A small discrete-event simulator: scripts of arrivals through the bare `Balancer`, and through one plain line (FIFO).

Servers have hard slots and a core per slot: a request runs for its seconds, undisturbed, once it has a slot. Everything
is deterministic: the same jobs, specification and seed give the same decisions. Used by the tests of the core and to
tune its constants on the scripts of benchmarks/heavy_tail:

    python -m benchmarks.sim [--seeds 1 2 3] [--count 12000] [--up-to 0.5]
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterable, Sequence
from heapq import heappop, heappush

from benchmarks.heavy_tail.arrivals import AUDIT, CHAT, CLASSES, HELLO, Bursts, Job, Mix, script
from benchmarks.heavy_tail.references import central_priority, clairvoyant_srpt
from unjam.core.balancer import Balancer
from unjam.core.model import Lease, Outcome, Refusal, Request, Ticket
from unjam.core.spec import EndpointSpec, LanesSpec, QueueSpec, ServiceSpec, Topology, VersionSpec

#: The first part of a script that figures leave out: queues fill and estimators learn.
WARM = 0.1


def hard_slots(
    endpoints: int = 6,
    slots: int = 4,
    up_to: float = 0.5,
    share: float = 0.75,
    policy: str = "least_loaded",
    timeout: float = 3600.0,
) -> ServiceSpec:
    """The fleet of the heavy-tail benchmark."""
    fleet = tuple(EndpointSpec(f"http://e{i}", cores=slots, slots=slots) for i in range(endpoints))
    return ServiceSpec(
        "agents",
        (VersionSpec("v1", fleet),),
        policy=policy,
        lanes=LanesSpec(up_to=up_to, share=share),
        queue=QueueSpec(max=100_000, timeout=timeout),
    )


class Simulation:
    """A `Balancer` behind a clock of its own. `response`: seconds from arrival to answer by job, -1 for those refused.
    `log`: (time, job, endpoint) of every dispatch in order. `after`: called after every event."""

    def __init__(
        self,
        spec: ServiceSpec,
        seed: int = 0,
        tick: float = 0.1,
        tenant: Callable[[Job], str] = lambda job: "",
        outcome: Callable[[Job, Lease], Outcome] = lambda job, lease: Outcome.OK,
    ) -> None:
        self.balancer = Balancer(random.Random(seed))
        self.balancer.apply(Topology({spec.name: spec}), 0.0)
        self.service = self.balancer.services[spec.name]
        self.now = 0.0
        self.response: list[float] = []
        self.log: list[tuple[float, int, str]] = []
        self.after: Callable[[], None] = lambda: None
        self._tick = tick
        self._tenant = tenant
        self._outcome = outcome
        self._events: list[tuple[float, int, int, Lease | None]] = []
        self._serial = 0
        self._jobs: Sequence[Job] = ()
        self._left = 0

    def run(self, jobs: Sequence[Job]) -> list[float]:
        """All jobs to their end."""
        self._jobs = jobs
        self._left = len(jobs)
        self.response = [-1.0] * len(jobs)
        for i, job in enumerate(jobs):
            self._at(job.at, i)
        self._at(self._tick, -1)
        while self._left:
            self.now, _, i, lease = heappop(self._events)
            if lease is not None:
                self._take(self.balancer.finish(lease, self._outcome(jobs[i], lease), self.now))
                self.response[i] = self.now - jobs[i].at
                self._left -= 1
            elif i < 0:
                self._take(self.balancer.tick(self.now))
                self._at(self.now + self._tick, -1)
            else:
                job = jobs[i]
                request = Request(self.service, f"POST {job.path}", self.now, self._tenant(job), context=i)
                decision = self.balancer.offer(request, self.now)
                if not isinstance(decision, Ticket):
                    self._take((decision,))
            self.after()
        self._events.clear()
        return self.response

    def _at(self, when: float, i: int, lease: Lease | None = None) -> None:
        self._serial += 1
        heappush(self._events, (when, self._serial, i, lease))

    def _take(self, decisions: Iterable[Lease | Refusal]) -> None:
        for decision in decisions:
            i = decision.request.context
            if isinstance(decision, Refusal):
                self._left -= 1
            else:
                self.log.append((self.now, i, decision.endpoint.name))
                self._at(self.now + self._jobs[i].seconds, i, decision)


def fifo(jobs: Sequence[Job], slots: int = 24) -> list[float]:
    """One line before all slots: what HAProxy's leastconn with `maxconn` comes to. Seconds by job."""
    free = [0.0] * slots
    response = []
    for job in jobs:
        start = max(job.at, heappop(free))
        heappush(free, start + job.seconds)
        response.append(start + job.seconds - job.at)
    return response


def mean(jobs: Sequence[Job], response: Sequence[float], kind: str | None = None) -> float:
    """Of those served, without the warm-up."""
    times = _counted(jobs, response, kind)
    return sum(times) / len(times) if times else 0.0


def p99(jobs: Sequence[Job], response: Sequence[float], kind: str | None = None) -> float:
    times = sorted(_counted(jobs, response, kind))
    return times[int(0.99 * len(times))] if times else 0.0


def _counted(jobs: Sequence[Job], response: Sequence[float], kind: str | None) -> list[float]:
    first = int(WARM * len(jobs))
    return [response[i] for i in range(first, len(jobs)) if response[i] >= 0.0 and kind in (None, jobs[i].kind)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--count", type=int, default=12000)
    parser.add_argument("--up-to", type=float, nargs="+", default=[0.5])
    parser.add_argument("--chat", type=float, default=0.05, help="mean seconds; an audit takes 60 times as long")
    given = parser.parse_args()
    mix = Mix(chat=(0.665, given.chat, 1.0), audit=(0.035, 60.0 * given.chat, 0.8))
    plan = [(0.85, None), (0.95, None), (0.85, Bursts(30, 600.0 * given.chat))]
    for load, bursts in plan:
        for seed in given.seeds:
            jobs = script(load, given.count, seed, mix=mix, bursts=bursts)
            rows = {
                "fifo": fifo(jobs),
                "central priority": central_priority(jobs),
                "clairvoyant srpt": clairvoyant_srpt(jobs),
            }
            for up_to in given.up_to:
                rows[f"unjam {up_to:g} s"] = Simulation(hard_slots(up_to=up_to)).run(jobs)
            print(f"ρ {load:g}{' with bursts' if bursts else ''}, seed {seed}")
            for name, response in rows.items():
                figures = "  ".join(f"{k} p99 {1e3 * p99(jobs, response, k):8.0f} ms" for k in CLASSES)
                print(f"  {name:18s} mean {1e3 * mean(jobs, response):7.1f} ms  {figures}")


if __name__ == "__main__":
    main()

__all__ = ["AUDIT", "CHAT", "HELLO", "Job", "Simulation", "fifo", "hard_slots", "mean", "p99", "script"]
