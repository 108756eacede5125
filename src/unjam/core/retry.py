"""How many requests may be tried again: a share of all requests over ten seconds, and always a few per second.

The rule of Finagle's `RetryBudget` and Linkerd: a fixed number of retries per request multiplies the load on a fleet
that is already failing; a share of the traffic adds at most that share. One budget per service.
"""

from __future__ import annotations

from unjam.core.spec import RetrySpec

#: Seconds over which requests and retries are counted, in steps of one second.
WINDOW = 10


class RetryBudget:
    """Retries in the last `WINDOW` seconds stay at or below `budget` × requests in them, plus `floor` × `WINDOW`.

    `now` is monotonic seconds; a `now` that goes back counts into the newest second.
    """

    __slots__ = ("_edge", "_first", "_requests", "_retries", "_seconds", "_slot", "spec")

    def __init__(self, spec: RetrySpec) -> None:
        self.spec = spec
        self._edge = float("-inf")
        self._seconds = 0
        self._slot = 0
        self._first = True
        self._requests = [0] * WINDOW
        self._retries = [0] * WINDOW

    def note_request(self, now: float, count: int = 1) -> None:
        """Count so many requests that came (first tries, not retries)."""
        if now >= self._edge:
            self._roll(now)
        self._requests[self._slot] += count

    def take(self, now: float) -> bool:
        """May one more request be tried again now? True spends one retry."""
        if now >= self._edge:
            self._roll(now)
        # With 0.2 × 5 requests a retry is 1, not 0.9999….
        if self._left() < 1.0 - 1e-9:
            return False
        self._retries[self._slot] += 1
        return True

    def left(self, now: float) -> float:
        """Retries that `take` would still grant now."""
        if now >= self._edge:
            self._roll(now)
        return max(0.0, self._left())

    def _left(self) -> float:
        return self.spec.budget * sum(self._requests) + self.spec.floor * WINDOW - sum(self._retries)

    def _roll(self, now: float) -> None:
        second = int(now // 1.0)
        steps = WINDOW if self._first else min(second - self._seconds, WINDOW)
        self._first = False
        for _ in range(steps):
            self._slot = (self._slot + 1) % WINDOW
            self._requests[self._slot] = 0
            self._retries[self._slot] = 0
        self._seconds = second
        self._edge = second + 1.0
