"""The arrival script: two Poisson streams, heavy requests of about 0.4 s of CPU and hellos of 3 ms.

Together they need `load` cores: one of the two servers (one core each) carries all of it alone, with room to spare, so
that whoever sends everything there is right to do so. The same seed gives the same script on every machine.
"""

from __future__ import annotations

import math
import random

from benchmarks.heavy_tail.arrivals import AUDIT, HELLO, Job

#: CPU seconds of a heavy request: between these, evenly.
HEAVY = (0.3, 0.5)
HELLO_SECONDS = 0.003
HELLOS_PER_SECOND = 15.0


def script(load: float, seconds: float, seed: int) -> list[Job]:
    """Arrivals of `seconds` that need `load` cores, in order. Raises ValueError when the hellos alone need more."""
    mean = sum(HEAVY) / 2
    rate = (load - HELLOS_PER_SECOND * HELLO_SECONDS) / mean
    if rate <= 0.0:
        raise ValueError(f"a load of {load} leaves nothing for heavy requests")
    jobs = []
    for kind, each in ((HELLO, HELLOS_PER_SECOND), (AUDIT, rate)):
        rng = random.Random(f"noisy_neighbour/{seed}/{load}/{seconds}/{kind}")
        at = rng.expovariate(each)
        while at < seconds:
            jobs.append(Job(at, kind, "/" + kind, rng.uniform(*HEAVY) if kind == AUDIT else HELLO_SECONDS))
            at += rng.expovariate(each)
    jobs.sort(key=lambda job: job.at)
    return jobs


def offered(jobs: list[Job], seconds: float) -> float:
    """Cores that the script really needs."""
    return math.fsum(job.seconds for job in jobs) / seconds
