"""A lazy timer wheel: one entry per connection, not one per request.

A connection asks to be looked at no later than some time; when that comes it says when to look again. So a keep-alive
connection that serves a thousand requests costs a thousand comparisons and a handful of entries, and no timer is ever
cancelled. Resolution: one `TICK`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

#: Seconds between turns of the wheel, and how late a time-out may be.
TICK = 0.1

NEVER = float("inf")

#: As good as never, but a number that fits an index: a thousand years.
FAR = 3e10


class Timed(Protocol):
    """What the wheel carries. `due`: the earliest time it is entered for; `NEVER` when it is not."""

    due: float

    def on_timer(self, now: float) -> float:
        """Do what is overdue; return when to look again (monotonic seconds), or `NEVER`."""
        ...


class Wheel:
    __slots__ = ("_buckets", "_turned")

    def __init__(self, now: float) -> None:
        self._buckets: dict[int, list[Timed]] = {}
        self._turned = int(now / TICK)

    def at(self, timed: Timed, when: float) -> None:
        """Look at `timed` no later than `when`, rounded up to a tick. Cheap when an earlier look is planned."""
        if when < timed.due:
            timed.due = when
            self._enter(timed, when)

    def _enter(self, timed: Timed, when: float) -> None:
        index = max(int(min(when, FAR) / TICK) + 1, self._turned + 1)
        bucket = self._buckets.get(index)
        if bucket is None:
            self._buckets[index] = [timed]
        else:
            bucket.append(timed)

    def turn(self, now: float, on_fault: Callable[[Any], None]) -> None:
        """Look at everything due by `now`. `on_fault` is called in the `except` block of a look that failed."""
        last = int(now / TICK)
        if last - self._turned > len(self._buckets):
            indices = sorted(index for index in self._buckets if index <= last)
        else:
            indices = list(range(self._turned + 1, last + 1))
        self._turned = last
        for index in indices:
            for timed in self._buckets.pop(index, ()):
                if timed.due > now:
                    continue  # looked at since, by an earlier entry; its next one is elsewhere
                timed.due = NEVER
                try:
                    when = timed.on_timer(now)
                except Exception:  # noqa: BLE001 - one that failed must not take the time-outs of the others with it
                    on_fault(timed)
                    continue
                if when < timed.due:
                    timed.due = when
                    self._enter(timed, when)

    def __len__(self) -> int:
        return sum(map(len, self._buckets.values()))
