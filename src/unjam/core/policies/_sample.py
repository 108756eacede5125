"""Policies that draw endpoints at random, in proportion to what they can take now: exact, in O(1).

Open endpoints lie in an indexed list per power of two of their weight, `avail / (1 + handicap)`. A draw takes a list
with probability number × 2^e, one of its members evenly, and keeps it with probability weight / 2^e, which is at least
one half: rejection sampling that needs two attempts on average however much the weights differ.
"""

from __future__ import annotations

from math import frexp
from typing import TYPE_CHECKING

from unjam.core.policies.base import Policy, Rng

if TYPE_CHECKING:
    from unjam.core.endpoint import Endpoint
    from unjam.core.model import Request

#: Draws after which any member that was not tried will do: chance in 2^64, or a pool of which nearly all was tried.
ATTEMPTS = 64


class WeightedSet:
    """A set of endpoints that can be drawn from by weight. Adding, removing and drawing are O(1)."""

    __slots__ = ("_bins", "_places", "_total", "_weights")

    def __init__(self) -> None:
        self._bins: dict[int, list[Endpoint]] = {}
        self._places: dict[Endpoint, tuple[int, int]] = {}
        self._weights: dict[Endpoint, float] = {}
        #: Of number × 2^e.
        self._total = 0.0

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, endpoint: object) -> bool:
        return endpoint in self._places

    def put(self, endpoint: Endpoint, weight: float) -> None:
        """Add it, or give it a new weight (above 0)."""
        exponent = frexp(weight)[1]
        place = self._places.get(endpoint)
        if place is not None:
            if place[0] == exponent:
                self._weights[endpoint] = weight
                return
            self.discard(endpoint)
        members = self._bins.setdefault(exponent, [])
        self._places[endpoint] = (exponent, len(members))
        self._weights[endpoint] = weight
        members.append(endpoint)
        self._total += 2.0**exponent

    def discard(self, endpoint: Endpoint) -> None:
        place = self._places.pop(endpoint, None)
        if place is None:
            return
        exponent, index = place
        del self._weights[endpoint]
        members = self._bins[exponent]
        last = members.pop()
        if last is not endpoint:
            members[index] = last
            self._places[last] = place
        if not members:
            del self._bins[exponent]
        self._total = self._total - 2.0**exponent if self._places else 0.0

    def draw(self, rng: Rng) -> Endpoint:
        """One member, by weight. Raises IndexError when there is none."""
        if not self._places:
            raise IndexError("nothing to draw from")
        bins = self._bins
        while True:
            if len(bins) == 1:
                ((exponent, members),) = bins.items()
            else:
                point = rng.random() * self._total
                for exponent, members in bins.items():
                    point -= len(members) * 2.0**exponent
                    if point < 0.0:
                        break
            # One random number serves twice: its whole part picks the member, what is left decides on keeping it.
            scaled = rng.random() * len(members)
            index = int(scaled)
            endpoint = members[index]
            if (scaled - index) * 2.0**exponent <= self._weights[endpoint]:
                return endpoint

    def first_but(self, tried: tuple[Endpoint, ...]) -> Endpoint | None:
        for endpoint in self._places:
            if endpoint not in tried:
                return endpoint
        return None


class SamplePolicy(Policy):
    """Keeps the set of open endpoints and, once heavy work has come, of those below their heavy cap."""

    __slots__ = ("fast", "heavy", "members")

    def __init__(self, rng: Rng) -> None:
        super().__init__(rng)
        self.fast = WeightedSet()
        self.heavy: WeightedSet | None = None
        self.members: dict[Endpoint, None] = {}

    def candidates(self, heavy: bool) -> WeightedSet:
        if not heavy:
            return self.fast
        if self.heavy is None:
            self.heavy = WeightedSet()
            for endpoint in self.members:
                self.touch(endpoint)
        return self.heavy

    def draw(self, candidates: WeightedSet, request: Request) -> Endpoint | None:
        """One member that was not tried yet; None when there is none."""
        if not candidates:
            return None
        tried = request.tried
        if not tried:
            return candidates.draw(self.rng)
        for _ in range(ATTEMPTS):
            endpoint = candidates.draw(self.rng)
            if endpoint not in tried:
                return endpoint
        return candidates.first_but(tried)

    def open(self, endpoint: Endpoint) -> None:
        self.members[endpoint] = None
        self.touch(endpoint)

    def close(self, endpoint: Endpoint) -> None:
        self.members.pop(endpoint, None)
        self.fast.discard(endpoint)
        if self.heavy is not None:
            self.heavy.discard(endpoint)

    def started(self, endpoint: Endpoint, heavy: bool) -> None:
        if endpoint.inflight >= endpoint.slots:
            self.fast.discard(endpoint)
            if self.heavy is not None:
                self.heavy.discard(endpoint)
        elif heavy and self.heavy is not None and not endpoint.takes_heavy():
            self.heavy.discard(endpoint)

    def ended(self, endpoint: Endpoint, seconds: float, now: float) -> None:
        if endpoint not in self.members or endpoint.inflight >= endpoint.slots:
            return
        if endpoint not in self.fast or (self.heavy is not None and endpoint not in self.heavy):
            self.touch(endpoint)

    def touch(self, endpoint: Endpoint) -> None:
        if endpoint not in self.members:
            return
        full = endpoint.inflight >= endpoint.slots or endpoint.step <= 0.0
        if full:
            self.fast.discard(endpoint)
        else:
            self.fast.put(endpoint, 1.0 / endpoint.step)
        if self.heavy is not None:
            if full or not endpoint.takes_heavy():
                self.heavy.discard(endpoint)
            else:
                self.heavy.put(endpoint, 1.0 / endpoint.step)
