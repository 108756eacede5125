"""Time in which no owner could be heard, for stores that one process keeps: it ends no lease.

A gateway sweeps every second. When it did not for longer, it was stopped, or the disk was, or everything: then nobody
could give a sign of life either, and the first sweep afterwards must not take runs from owners that live. So each lease
that this may have cost holds for another full length. Not again, though, before sweeps have come in short order, or one
was done after that time: who sweeps seldom sweeps all the same. The Lua of `sweep` does as much in Redis.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

#: Seconds without a sweep in which all is well; and for longer leases, this part of one.
HOLE: Final = 2.0
PART: Final = 6


class Sweeps:
    """Told of each sweep."""

    def __init__(self) -> None:
        self._at: float | None = None
        self._until: float | None = None

    def begin(
        self, now: float, lent: Iterable[tuple[str, float, float]], missed: bool = False
    ) -> list[tuple[str, float]]:
        """`lent`: run, end and length of each lease; monotonic seconds, as `now`. `missed`: signs of life are known to
        have been refused. Those that hold for longer now, and their new end."""
        gap = 0.0 if self._at is None else now - self._at
        self._at = now
        if not missed:
            if gap <= HOLE:
                self._until = None
                return []
            if self._until is not None:
                if now >= self._until:
                    self._until = None
                return []
        found: list[tuple[str, float]] = []
        for run, end, length in lent:
            if missed or gap > max(HOLE, length / PART):
                self._until = max(self._until or now, now + length)
                if now + length > end:
                    found.append((run, now + length))
        return found
