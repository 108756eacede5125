"""Turns in proportion to weight × capacity, never more than one request from the exact share, O(log n).

Earliest eligible virtual deadline first (Stoica and Abdel-Wahab, 1995) with requests of size one. The k-th turn of an
endpoint of weight w starts at virtual time (k − 1) / w and is due at k / w; of the turns that have started, the one
that is due first is next; virtual time moves on by one over the sum of weights at each dispatch. Plain stride
scheduling would let the heaviest endpoint run ahead of its share. One that was full or away comes back at the present
time, so that it is not made to catch up what it missed.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, ClassVar

from unjam.core.policies._heap import SLACK, Entry, HeapPolicy

if TYPE_CHECKING:
    from unjam.core.endpoint import Endpoint
    from unjam.core.model import Request
    from unjam.core.policies.base import Rng

#: Virtual time adds up 1 / sum in floats; a turn this close to its start has started.
_EPSILON = 1e-9


class WeightedRoundRobin(HeapPolicy):
    """`heap` holds the turns that have started, by due time; `later` the others, by start. `endpoint.turn`: the start
    of its next turn. `weights`: of those open, as counted in `total`."""

    __slots__ = ("_serials", "later", "time", "total", "weights")
    name: ClassVar[str] = "weighted_round_robin"

    def __init__(self, rng: Rng) -> None:
        super().__init__(rng)
        self.later: list[Entry] = []
        self.time = 0.0
        self.total = 0.0
        self.weights: dict[Endpoint, float] = {}
        self._serials: dict[Endpoint, int] = {}

    def key(self, endpoint: Endpoint) -> Entry:
        return (endpoint.turn + 1.0 / self.weights[endpoint], self._serials[endpoint], endpoint)

    def pick(self, request: Request, heavy: bool, now: float) -> Endpoint | None:
        if heavy:
            return super().pick(request, heavy, now)
        while True:
            self._start_turns()
            found = super().pick(request, heavy, now)
            if found is not None or not self.later:
                return found
            # All turns that have started are taken, tried or closed: the next one starts early.
            start, _, endpoint = entry = heappop(self.later)
            if endpoint.entry is entry:
                self.time = max(self.time, start)
                self._due(endpoint)

    def open(self, endpoint: Endpoint) -> None:
        if endpoint not in self.members:
            self.members[endpoint] = None
            self.clock += 1
            self._serials[endpoint] = self.clock
        self.touch(endpoint)

    def close(self, endpoint: Endpoint) -> None:
        self._leave(endpoint)
        self.members.pop(endpoint, None)
        self._serials.pop(endpoint, None)

    def started(self, endpoint: Endpoint, heavy: bool) -> None:
        weight = self.weights.get(endpoint)
        if weight is None:
            return
        self.time += 1.0 / self.total
        endpoint.turn += 1.0 / weight
        if endpoint.inflight >= endpoint.slots:
            self._leave(endpoint)
        else:
            endpoint.heavy_stale = True
            self._wait(endpoint)

    def touch(self, endpoint: Endpoint) -> None:
        if endpoint not in self.members:
            return
        known = self.weights.get(endpoint)
        if endpoint.inflight >= endpoint.slots or endpoint.step <= 0.0:
            self._leave(endpoint)
            return
        weight = 1.0 / endpoint.step
        if known is None:
            endpoint.turn = max(endpoint.turn, self.time)
        if known != weight:
            self.total += weight - (known or 0.0)
            self.weights[endpoint] = weight
            self._wait(endpoint)
        if self.heavy_heap is not None:
            self._push_heavy(endpoint)

    def _leave(self, endpoint: Endpoint) -> None:
        endpoint.entry = endpoint.heavy_entry = None
        weight = self.weights.pop(endpoint, None)
        if weight is not None:
            # Sums of floats drift; an empty pool is exactly empty.
            self.total = self.total - weight if self.weights else 0.0

    def _wait(self, endpoint: Endpoint) -> None:
        endpoint.entry = entry = (endpoint.turn, self._serials[endpoint], endpoint)
        endpoint.stale = False
        heappush(self.later, entry)
        if len(self.later) > 2 * len(self.members) + SLACK:
            self.later[:] = [entry for entry in self.later if entry[-1].entry is entry]
            heapify(self.later)

    def _start_turns(self) -> None:
        later = self.later
        started = self.time + _EPSILON
        while later and later[0][0] <= started:
            entry = heappop(later)
            if entry[-1].entry is entry:
                self._due(entry[-1])

    def _due(self, endpoint: Endpoint) -> None:
        self._push(endpoint, self.key(endpoint))
