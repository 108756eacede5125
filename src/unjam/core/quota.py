"""What a provider still lets us spend in a region: tokens and requests, reserved before the call and settled after it.

GCRA (ATM Forum TM 4.0, the "virtual scheduling algorithm"): one theoretical arrival time (TAT) per limit, in seconds.
`n` units take n × T of it, T = 60 / rate per minute, and fit when `max(now, TAT) + n·T − now <= burst`. Over any
window of w seconds at most (burst + w) / T units are let through. TAT − now is the *debt*: what has been spent and
not yet been refilled.

What the provider says about its own count wins, but only downwards: `heed` never makes room.
"""

from __future__ import annotations

from math import inf

from unjam.core.spec import RegionSpec

#: Seconds; no answer of a provider closes a region for longer than this. One broken header must not end a service.
BLOCK_MOST = 3600.0
#: Seconds that an unlimited dimension stays closed when its provider reports nothing left and not until when.
BLOCK_UNKNOWN = 1.0
#: Seconds of slack against rounding, so that waiting as long as `reserve` said is enough.
_EPSILON = 1e-6
#: Marks are merged when they differ by less than this part of the burst: at most about this many are kept.
_MARKS = 256


class _Limit:
    """One GCRA. `interval`: seconds per unit. Units may be fractions."""

    __slots__ = ("_marks", "burst", "interval", "tat")

    def __init__(self, per_minute: float, burst: float) -> None:
        if not 0.0 < per_minute < inf or not 0.0 < burst < inf:
            raise ValueError("a quota needs a rate and a burst above 0")
        self.interval = 60.0 / per_minute
        self.burst = burst
        self.tat = -inf
        # (time, debt) just before an addition, both rising: the least debt since any moment is the first mark after it.
        self._marks: list[tuple[float, float]] = []

    def debt(self, now: float) -> float:
        return max(0.0, self.tat - now)

    def wait(self, units: float, now: float) -> float:
        """Seconds until `units` fit; 0: now; inf: never, they are more than the whole burst."""
        need = units * self.interval
        if need > self.burst + _EPSILON:
            return inf
        late = self.debt(now) + need - self.burst
        return late if late > _EPSILON else 0.0

    def add(self, units: float, now: float) -> None:
        """Spend, whether it fits or not. Negative units do nothing."""
        if units <= 0.0:
            return
        debt = self.debt(now)
        self._mark(now, debt)
        self.tat = now + debt + units * self.interval

    def refund(self, units: float, since: float, now: float) -> None:
        """Take back units that were added at `since`: as if they had never been, so no more than the least debt there
        was after them. What time has refilled already is not refunded once more."""
        back = units * self.interval
        marks = self._marks
        for i, (time, mark) in enumerate(marks):
            if time > since:
                back = min(back, mark)
                marks[i] = (time, mark - back)
        debt = self.debt(now)
        self.tat = now + debt - min(back, debt)

    def lower(self, debt: float, now: float) -> bool:
        """The provider says that at least this much is spent. True when it is news."""
        if debt <= self.debt(now):
            return False
        self.tat = now + debt
        # What it counts includes what we reserved before: none of that comes back.
        self._marks = [(now, 0.0)]
        return True

    def rescale(self, per_minute: float, burst: float, now: float) -> None:
        """New limits; what has been spent stays spent, in units."""
        debt = self.debt(now)
        fresh = _Limit(per_minute, burst)
        if debt > 0.0:
            fresh.tat = now + debt * fresh.interval / self.interval
        self.interval, self.burst, self.tat, self._marks = fresh.interval, fresh.burst, fresh.tat, [(now, 0.0)]

    def _mark(self, now: float, debt: float) -> None:
        marks = self._marks
        while marks and marks[-1][1] >= debt:
            marks.pop()
        if marks and debt - marks[-1][1] < self.burst / _MARKS:
            # Keep the lower of the two, as if it had been now: refunds come out a little smaller, never larger.
            marks[-1] = (now, marks[-1][1])
        else:
            marks.append((now, debt))


class Reservation:
    """A claim on a region's quota: `tokens` charged so far, at `at` (monotonic seconds). `open` until settled."""

    __slots__ = ("at", "open", "region", "tokens")

    def __init__(self, region: Region, tokens: float, at: float) -> None:
        self.region = region
        self.tokens = tokens
        self.at = at
        self.open = True


class Region:
    """The local view of one provider quota. `blocked`: monotonic seconds until which the provider wants no requests."""

    __slots__ = ("_requests", "_tokens", "blocked", "spec")

    def __init__(self, spec: RegionSpec) -> None:
        self.spec = spec
        self.blocked = -inf
        self._tokens = _limit(spec.tokens_per_minute, spec.burst)
        self._requests = _limit(spec.requests_per_minute, spec.burst)

    def reserve(self, tokens: float, now: float) -> Reservation | float:
        """Claim one request and `tokens`. A float is the seconds to wait until they would fit, as things are: try again
        then. `inf`: they never will, the burst is smaller."""
        wait = self.blocked - now if self.blocked > now else 0.0
        if self._tokens is not None:
            wait = max(wait, self._tokens.wait(tokens, now))
        if self._requests is not None:
            wait = max(wait, self._requests.wait(1.0, now))
        if wait > 0.0:
            return wait
        if self._tokens is not None:
            self._tokens.add(tokens, now)
        if self._requests is not None:
            self._requests.add(1.0, now)
        return Reservation(self, tokens, now)

    def charge(self, reservation: Reservation, used_so_far: float, now: float) -> None:
        """A long answer is under way and has used this many tokens in all: what is beyond the reservation is charged in
        the minute it is spent. Does nothing after `settle`, or while the reservation covers it."""
        if reservation.open and used_so_far > reservation.tokens:
            if self._tokens is not None:
                self._tokens.add(used_so_far - reservation.tokens, now)
            reservation.tokens = used_so_far

    def settle(self, reservation: Reservation, used: float | None, now: float) -> None:
        """The call ended and used this many tokens: the difference is charged or given back. None: nobody knows, so the
        reservation stands. A second settlement does nothing."""
        if not reservation.open:
            return
        if used is not None:
            self.charge(reservation, used, now)
            if self._tokens is not None and used < reservation.tokens:
                self._tokens.refund(reservation.tokens - max(0.0, used), reservation.at, now)
                reservation.tokens = max(0.0, used)
        reservation.open = False

    def release(self, reservation: Reservation, now: float) -> None:
        """The call was never made: give back its tokens and the request."""
        if not reservation.open:
            return
        self.settle(reservation, 0.0, now)
        if self._requests is not None:
            self._requests.refund(1.0, reservation.at, now)

    def heed(
        self,
        *,
        remaining_tokens: float | None = None,
        remaining_requests: float | None = None,
        reset: float | None = None,
        retry_after: float | None = None,
        now: float,
    ) -> None:
        """What the provider's headers say. `remaining_*`: units it would still take now; `reset`: seconds until that is
        full again; `retry_after`: seconds in which it wants nothing. Values that are negative or not numbers count as
        0; waits are cut to `BLOCK_MOST`."""
        pause = _sane(reset)
        for limit, remaining in ((self._tokens, remaining_tokens), (self._requests, remaining_requests)):
            if remaining is None:
                continue
            left = remaining if remaining > 0.0 else 0.0
            if limit is not None:
                debt = limit.burst - left * limit.interval
                # A provider that needs longer than our burst to refill is slower than configured.
                limit.lower(max(debt, pause) if left < 1.0 else debt, now)
            elif left < 1.0:
                self.blocked = max(self.blocked, now + (pause if reset is not None else BLOCK_UNKNOWN))
        if retry_after is not None:
            self.blocked = max(self.blocked, now + _sane(retry_after))

    def headroom(self, now: float) -> float:
        """The part of the burst that could be spent at once, 0 .. 1, of the scarcer of tokens and requests."""
        if self.blocked > now:
            return 0.0
        least = 1.0
        for limit in (self._tokens, self._requests):
            if limit is not None:
                least = min(least, 1.0 - limit.debt(now) / limit.burst)
        return max(0.0, least)

    def left(self, now: float) -> tuple[float | None, float | None]:
        """Tokens and requests that could be spent at once; None: unlimited."""
        return _left(self._tokens, now), _left(self._requests, now)

    def configure(self, spec: RegionSpec, now: float) -> None:
        """Take new limits; what has been spent stays spent."""
        self._tokens = _changed(self._tokens, spec.tokens_per_minute, spec.burst, now)
        self._requests = _changed(self._requests, spec.requests_per_minute, spec.burst, now)
        self.spec = spec


def _limit(per_minute: float | None, burst: float) -> _Limit | None:
    return None if per_minute is None else _Limit(per_minute, burst)


def _changed(limit: _Limit | None, per_minute: float | None, burst: float, now: float) -> _Limit | None:
    if limit is None or per_minute is None:
        return _limit(per_minute, burst)
    if (per_minute, burst) != (60.0 / limit.interval, limit.burst):
        limit.rescale(per_minute, burst, now)
    return limit


def _left(limit: _Limit | None, now: float) -> float | None:
    return None if limit is None else max(0.0, limit.burst - limit.debt(now)) / limit.interval


def _sane(seconds: float | None) -> float:
    return min(seconds, BLOCK_MOST) if seconds is not None and seconds > 0.0 else 0.0
