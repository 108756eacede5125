"""What an endpoint's machine says of itself, and how much of it is believed.

Reports come from four sources: the reporter beside the agent, the agent's own answers (ORCA headers), its metrics page,
and the HAProxy agent-check protocol. Each source may know only some of the figures; the freshest one that knows a
figure gives it. A report that cannot be true is refused whole and named: a liar must do no more harm than one that is
silent.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, Final

#: Seconds for which a report counts in full; from then on less, until it counts for nothing. Reports every 2 s and
#: every 15 s served a simulated fleet alike, those every 60 s worse than none (dispatch rules): stale is worse than
#: none.
FRESH: Final = 5.0
REPORT_LIFE: Final = 30.0

#: No server has more.
MOST_CORES: Final = 4096.0
MOST_MEMORY: Final = 1 << 47
MOST_REQUESTS: Final = 10_000_000

READY: Final = "ready"
DRAINING: Final = "draining"
DOWN: Final = "down"


@dataclass(slots=True)
class LoadReport:
    """None: not known. Sizes in bytes, shares 0 .. 1. Never changed once it is made; frozen it would be four times as
    dear to make.

    `cores`, `memory`: what it may use (its container's limits, where it is in one). `cpu`: share of the cores in use by
    anybody; `agent_cpu`: by the agent's own processes, a part of it. `memory_free`: bytes that could still be used;
    `agent_memory`: bytes the agent's processes use. `in_flight`: requests the agent works on, ours among them;
    `waiting`: those of them it has not begun. `cache`: share of an inference engine's key-value cache in use.
    `pressure`, `memory_pressure`: share of the time in which some task was held up for want of CPU or memory (PSI).
    `run_queue`: tasks on the whole machine that run or could; `open_files`: only shown. `weight`: share of its capacity
    the server itself wants to be used for (0 .. 2.56, as HAProxy's agent-check has it); `slots`: most concurrent
    requests it wants.
    `state`: `ready`, `draining` or `down`, None where the source says nothing of it. `age`: seconds since this was
    measured, at the time it is handed over. `source`: who says so.
    """

    cores: float | None = None
    memory: int | None = None
    cpu: float | None = None
    agent_cpu: float | None = None
    memory_free: int | None = None
    agent_memory: int | None = None
    in_flight: int | None = None
    waiting: int | None = None
    cache: float | None = None
    pressure: float | None = None
    memory_pressure: float | None = None
    run_queue: float | None = None
    open_files: int | None = None
    weight: float | None = None
    slots: int | None = None
    state: str | None = None
    age: float = 0.0
    source: str = "reporter"

    def problem(self) -> str:
        """Why this cannot be true, in words; empty when it can."""
        for value, (name, most) in zip(_figures(self), _BOUNDS, strict=True):
            if value is not None and not 0 <= value <= most:  # which NaN isn't either
                try:
                    finite = math.isfinite(value)
                except OverflowError:
                    finite = False
                if not finite:
                    return f"{name} is not a number"
                return f"{name} is {value:g}: it must be from 0 to {most:g}"
        if self.cores is not None and self.cores < _LEAST_CORES:
            return f"cores is {self.cores:g}: it must be at least {_LEAST_CORES:g}"
        if self.agent_cpu is not None and self.cpu is not None and self.agent_cpu > self.cpu + _SLACK:
            return f"agent_cpu ({self.agent_cpu:g}) is more than cpu ({self.cpu:g}), of which it is a part"
        if self.memory is not None and self.memory_free is not None and self.memory_free > self.memory:
            return f"memory_free ({self.memory_free}) is more than memory ({self.memory})"
        if self.waiting is not None and self.in_flight is not None and self.waiting > self.in_flight:
            return f"waiting ({self.waiting}) is more than in_flight ({self.in_flight}), of which it is a part"
        if self.state not in (None, READY, DRAINING, DOWN):
            return f"state must be {READY}, {DRAINING} or {DOWN}"
        return ""

    def known(self) -> dict[str, Any]:
        """The figures that are known, by name; for those who show them."""
        return {name: value for name in _SHOWN if (value := getattr(self, name)) is not None}


_LEAST_CORES: Final = 0.01
#: Clocks of different counters: what an agent uses and what is used in all are not read in one instant.
_SLACK: Final = 0.25
#: `cpu` is clipped to 1 by whoever measures; a little above is rounding.
_BOUNDS: Final[tuple[tuple[str, float], ...]] = tuple(
    {
        "cores": MOST_CORES,
        "memory": MOST_MEMORY,
        "cpu": 1.0,
        "agent_cpu": 1.0,
        "memory_free": MOST_MEMORY,
        "agent_memory": MOST_MEMORY,
        "in_flight": MOST_REQUESTS,
        "waiting": MOST_REQUESTS,
        "cache": 1.0,
        "pressure": 1.0,
        "memory_pressure": 1.0,
        "run_queue": MOST_REQUESTS,
        "open_files": MOST_REQUESTS,
        "weight": 2.56,
        "slots": MOST_REQUESTS,
        "age": sys.float_info.max,
    }.items()
)
_figures = attrgetter(*(name for name, _ in _BOUNDS))
_SHOWN: Final = tuple(field.name for field in fields(LoadReport) if field.name not in ("age", "source"))
