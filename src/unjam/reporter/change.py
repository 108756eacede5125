"""What is worth saying: figures over at least a second, and whether they differ enough to be said at once.

Pure: time is an argument. A blip of 100 ms moves a share of a second by a tenth at most, which is less than what counts
as a change; a neighbour that stays is seen after two readings.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any, Final

#: Seconds over which shares are measured.
WINDOW: Final = 1.0
#: Others' share of the CPU, up or down.
CPU_CHANGE: Final = 0.15
#: Free memory, as a share of all, up or down; or to half of what it was.
MEMORY_CHANGE: Final = 0.10
#: Halves of next to nothing are no news.
MEMORY_LEAST: Final = 0.01

#: Measured as shares of the time since the reading before.
_SHARES: Final = ("cpu", "agent_cpu")

Load = dict[str, Any]


class Window:
    """The last readings, and their mean over at least `WINDOW` seconds."""

    def __init__(self, window: float = WINDOW) -> None:
        self._window = window
        #: (when, seconds it covers, figures)
        self._readings: deque[tuple[float, float, Load]] = deque()

    def add(self, load: Load, now: float) -> None:
        covers = now - self._readings[-1][0] if self._readings else 0.0
        self._readings.append((now, covers, {name: value for name, value in load.items() if _sane(value)}))
        # The oldest goes when those after it cover the window.
        while now - self._readings[0][0] >= self._window - 1e-6 and len(self._readings) > 1:
            self._readings.popleft()

    def clear(self) -> None:
        """Forget: what is measured from now on is something else."""
        self._readings.clear()

    def mean(self) -> Load:
        """The newest figures, shares averaged over the window by the time each reading covers; left out until the
        readings cover it."""
        if not self._readings:
            return {}
        newest = self._readings[-1][2]
        load = dict(newest)
        for name in _SHARES:
            if name not in newest:
                continue
            total = seconds = 0.0
            left = self._window
            for _, covers, figures in reversed(self._readings):
                if (value := figures.get(name)) is None or left <= 1e-6:
                    break
                part = min(covers, left)
                left -= part
                total += value * part
                seconds += part
            if seconds >= self._window - 1e-3:
                load[name] = round(total / seconds, 4)
            else:
                del load[name]
        return load


def others(load: Load) -> float | None:
    """Share of the CPU that others than the agent use; None where nothing is known of it."""
    if (cpu := load.get("cpu")) is None:
        return None
    return float(max(0.0, cpu - load.get("agent_cpu", 0.0)))


def news(before: Load, now: Load) -> str:
    """Why `now` should not wait for its turn after `before` was said, in words; empty when it may."""
    was, busy = others(before), others(now)
    if busy is not None and (was is None or abs(busy - was) >= CPU_CHANGE):
        return "others' CPU"
    memory, free, had = now.get("memory"), now.get("memory_free"), before.get("memory_free")
    if memory and free is not None and had is not None:
        change = abs(free - had) / memory
        if change >= MEMORY_CHANGE or (free <= had / 2 and change >= MEMORY_LEAST):
            return "free memory"
    return ""


def _sane(value: object) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
