"""The arrival script: Poisson arrivals of three classes, scaled down in time so that a run takes minutes.

| class | share | service time here | stands for |
|---|---|---|---|
| hello | 30 % | 5 ms, constant | 50 ms (÷ 10: below that the machine's own noise shows) |
| chat | 66.5 % | lognormal, mean 50 ms, sigma 1.0 | mean 10 s (÷ 200) |
| audit | 3.5 % | lognormal, mean 3 s, sigma 0.8 | mean 600 s (÷ 200) |

15 % of the chats arrive on the path of audits and 15 % of the audits on that of chats, so that a path predicts but does
not tell. The same seed gives the same script on every machine: only `random.Random` and exact arithmetic are used.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass

HELLO, CHAT, AUDIT = "hello", "chat", "audit"
CLASSES = (HELLO, CHAT, AUDIT)


@dataclass(frozen=True, slots=True)
class Mix:
    """Shares of the classes, mean seconds, sigma of the lognormal (0: constant), share that comes on the wrong path."""

    hello: tuple[float, float, float] = (0.30, 0.005, 0.0)
    chat: tuple[float, float, float] = (0.665, 0.05, 1.0)
    audit: tuple[float, float, float] = (0.035, 3.0, 0.8)
    mislabelled: float = 0.15

    @property
    def mean(self) -> float:
        """Mean service time over all classes, seconds."""
        return math.fsum(share * seconds for share, seconds, _ in (self.hello, self.chat, self.audit))


@dataclass(frozen=True, slots=True)
class Bursts:
    """`audits` arrive at once every `every` seconds, the first after a quarter of that, on top of everything else."""

    audits: int
    every: float


@dataclass(frozen=True, slots=True)
class Job:
    """One request: when it arrives and how long it holds a slot (seconds), what it is and the path that it comes on."""

    at: float
    kind: str
    path: str
    seconds: float


def _draw(rng: random.Random, mean: float, sigma: float) -> float:
    if sigma == 0.0:
        return mean
    return rng.lognormvariate(math.log(mean) - sigma * sigma / 2, sigma)


def _job(rng: random.Random, at: float, kind: str, mix: Mix) -> Job:
    _, mean, sigma = {HELLO: mix.hello, CHAT: mix.chat, AUDIT: mix.audit}[kind]
    seconds = _draw(rng, mean, sigma)
    astray = rng.random() < mix.mislabelled
    path = {HELLO: HELLO, CHAT: AUDIT if astray else CHAT, AUDIT: CHAT if astray else AUDIT}[kind]
    return Job(at, kind, "/" + path, seconds)


def script(
    load: float, count: int, seed: int, slots: int = 24, mix: Mix | None = None, bursts: Bursts | None = None
) -> list[Job]:
    """`count` Poisson arrivals that offer `load` (0..1) of `slots`, and the bursts that fall among them, in order of
    arrival.

    Of a few hundred audits the tail decides how much work there is, so that scripts of one rate would offer loads that
    differ by a tenth. Therefore all gaps are stretched by one factor, after which the work over the slots and the time
    of the last arrival is exactly `load`; the arrivals stay Poisson.
    """
    mix = mix or Mix()
    rng = random.Random(f"heavy_tail/{seed}/{load}/{count}")
    rate = load * slots / mix.mean
    drawn: list[Job] = []
    at = 0.0
    for _ in range(count):
        at += rng.expovariate(rate)
        draw = rng.random()
        kind = HELLO if draw < mix.hello[0] else CHAT if draw < mix.hello[0] + mix.chat[0] else AUDIT
        drawn.append(_job(rng, at, kind, mix))
    stretch = offered(drawn, slots) / load
    jobs = [Job(job.at * stretch, job.kind, job.path, job.seconds) for job in drawn]
    if bursts is not None:
        when = bursts.every / 4
        last = jobs[-1].at
        while when < last:
            jobs.extend(_job(rng, when, AUDIT, mix) for _ in range(bursts.audits))
            when += bursts.every
        jobs.sort(key=lambda job: job.at)
    return jobs


def offered(jobs: Iterable[Job], slots: int = 24) -> float:
    """Load that the script really offers: work over slots × time of the last arrival."""
    jobs = list(jobs)
    return math.fsum(job.seconds for job in jobs) / (slots * jobs[-1].at)
