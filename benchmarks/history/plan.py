"""What is done to the system, and when: made from a seed before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Final

#: Kinds of kills, and how often each is drawn, by store. `cut`: connections to Redis; `redis`: its server, by -9.
KILLS: Final[dict[str, dict[str, float]]] = {
    "memory": {"worker": 1.0},
    "sqlite": {"worker": 0.85, "gateway": 0.15},
    "redis": {"worker": 0.4, "gateway": 0.2, "cut": 0.35, "redis": 0.05},
}
#: Beside the kills, with these probabilities before each: a worker stopped for longer than its lease, which then goes
#: on with a stale fence; the same with a gateway and the runs it pushes; a worker that is asked to leave.
BESIDE: Final[dict[str, dict[str, float]]] = {
    "memory": {"freeze": 0.6, "leave": 0.1},
    "sqlite": {"freeze": 0.12, "leave": 0.1},
    "redis": {"freeze": 0.12, "freeze_gateway": 0.04, "leave": 0.1},
}

#: Seconds that a gateway serves at least before it is killed: or there would be no load to kill it under.
SERVED: Final = 1.0


@dataclass(frozen=True, slots=True)
class Planned:
    """`pause`: seconds since the one before; `pick`: which of those there are, in 0..1; `back`: seconds until it is
    started again, or goes on; `served`: seconds that it is there at least before it is hurt."""

    kind: str
    pause: float
    pick: float
    back: float
    served: float = 0.0


def plan(store: str, kills: int, seed: int, every: float, lease: float) -> list[Planned]:
    """`kills` kills and what goes beside them, one every so many seconds in the mean. The same for the same
    arguments."""
    rng = Random(f"{seed}:{store}")
    kinds, weights = list(KILLS[store]), list(KILLS[store].values())
    found: list[Planned] = []
    for _ in range(kills):
        for kind, share in BESIDE[store].items():
            if rng.random() < share:
                back = lease + 1.0 + rng.random() if kind.startswith("freeze") else rng.random()
                served = SERVED if kind == "freeze_gateway" else 0.0
                found.append(Planned(kind, rng.random() * every / 2, rng.random(), back, served))
        pause = min(rng.expovariate(1 / every), 4 * every)
        kind = rng.choices(kinds, weights)[0]
        served = SERVED if kind == "gateway" else 0.0
        if served and store == "sqlite" and rng.random() < 0.5:
            # Whoever opens the file gives each owner a fresh lease. Were the only gateway always killed sooner than
            # that, no run of a lost worker would ever be taken up again, and soon nothing would happen any more.
            served = lease + 2.0
        found.append(Planned(kind, pause, rng.random(), rng.random() * every, served))
    return found
