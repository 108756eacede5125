"""Policies that are an order by a key: the endpoint with the least key is next, in O(log n).

A lazy heap of tuples that end with the endpoint, sorted by C's `heapq`. An entry counts if it *is* `endpoint.entry`;
all others are dead and dropped when they surface, or by compaction. What makes a key grow (a dispatch) only marks the
entry stale: it stays as a lower bound and is put right when it surfaces, so that an endpoint at rest costs nothing.
What makes a key shrink pushes a new entry. Therefore a root that is neither dead nor stale has the least key of all.

Heavy work has a second heap of the same kind for the endpoints below their heavy cap, made when the first heavy request
comes: services without any never pay for it.
"""

from __future__ import annotations

from abc import abstractmethod
from heapq import heapify, heappop, heappush, heapreplace
from typing import TYPE_CHECKING, Any

from unjam.core.policies.base import Policy, Rng

if TYPE_CHECKING:
    from unjam.core.endpoint import Endpoint
    from unjam.core.model import Request

#: (key …, endpoint). Keys differ between any two endpoints, so that endpoints themselves are never compared.
Entry = tuple[Any, ...]

#: Dead entries that are let be in a heap of `n` members: n of them and this many.
SLACK = 16


class HeapPolicy(Policy):
    """Subclasses say what the key is. `clock` numbers dispatches; `endpoint.turn` is the number of its last one,
    unique, and breaks ties: least recently used first."""

    __slots__ = ("clock", "heap", "heavy_heap", "members")

    def __init__(self, rng: Rng) -> None:
        super().__init__(rng)
        self.heap: list[Entry] = []
        self.heavy_heap: list[Entry] | None = None
        self.members: dict[Endpoint, None] = {}
        self.clock = 0

    @abstractmethod
    def key(self, endpoint: Endpoint) -> Entry:
        """Its place in the order; the endpoint itself is the last element, what comes before is unique."""

    def heavy_key(self, endpoint: Endpoint) -> Entry:
        """Its place in the order for heavy work."""
        return self.key(endpoint)

    def take_turn(self, endpoint: Endpoint) -> None:
        """A request was dispatched to it. This must not make its key smaller."""
        self.clock += 1
        endpoint.turn = self.clock

    def pick(self, request: Request, heavy: bool, now: float) -> Endpoint | None:
        if heavy or request.tried:
            return self._pick_with_care(request, heavy)
        heap = self.heap
        while heap:
            entry = heap[0]
            endpoint: Endpoint = entry[-1]
            if endpoint.entry is not entry:
                heappop(heap)
            elif endpoint.stale:
                endpoint.stale = False
                endpoint.entry = entry = self.key(endpoint)
                heapreplace(heap, entry)
            else:
                return endpoint
        return None

    def _pick_with_care(self, request: Request, heavy: bool) -> Endpoint | None:
        """Heavy work, or endpoints that must not be used again: those are put aside and back."""
        tried = request.tried
        aside: list[Entry] = []
        found: Endpoint | None = None
        heap = self._heavy() if heavy else self.heap
        while heap:
            entry = heap[0]
            endpoint: Endpoint = entry[-1]
            if (endpoint.heavy_entry if heavy else endpoint.entry) is not entry:
                heappop(heap)
            elif heavy and not endpoint.takes_heavy():
                heappop(heap)
                endpoint.heavy_entry = None
            elif endpoint.heavy_stale if heavy else endpoint.stale:
                self._renew(endpoint, heap, heavy)
            elif endpoint in tried:
                aside.append(heappop(heap))
            else:
                found = endpoint
                break
        for entry in aside:
            heappush(heap, entry)
        return found

    def _renew(self, endpoint: Endpoint, heap: list[Entry], heavy: bool) -> None:
        if heavy:
            endpoint.heavy_stale = False
            endpoint.heavy_entry = entry = self.heavy_key(endpoint)
        else:
            endpoint.stale = False
            endpoint.entry = entry = self.key(endpoint)
        heapreplace(heap, entry)

    def _heavy(self) -> list[Entry]:
        heap = self.heavy_heap
        if heap is None:
            self.heavy_heap = heap = []
            for endpoint in self.members:
                self._push_heavy(endpoint)
        return heap

    def open(self, endpoint: Endpoint) -> None:
        if endpoint not in self.members:
            self.members[endpoint] = None
            if not endpoint.turn:
                self.take_turn(endpoint)
        self.touch(endpoint)

    def close(self, endpoint: Endpoint) -> None:
        self.members.pop(endpoint, None)
        endpoint.entry = endpoint.heavy_entry = None

    def started(self, endpoint: Endpoint, heavy: bool) -> None:
        self.take_turn(endpoint)
        if endpoint.inflight >= endpoint.slots:
            endpoint.entry = endpoint.heavy_entry = None
        else:
            endpoint.stale = endpoint.heavy_stale = True

    def ended(self, endpoint: Endpoint, seconds: float, now: float) -> None:
        if endpoint.usable:
            self.touch(endpoint)

    def touch(self, endpoint: Endpoint) -> None:
        if endpoint not in self.members:
            return
        if endpoint.inflight >= endpoint.slots:
            endpoint.entry = endpoint.heavy_entry = None
            return
        old = endpoint.entry
        entry = self.key(endpoint)
        if old is None or entry < old:
            self._push(endpoint, entry)
        else:
            endpoint.stale = True
        if self.heavy_heap is not None:
            self._push_heavy(endpoint)

    def _push(self, endpoint: Endpoint, entry: Entry) -> None:
        endpoint.entry = entry
        endpoint.stale = False
        heap = self.heap
        heappush(heap, entry)
        if len(heap) > 2 * len(self.members) + SLACK:
            heap[:] = [entry for entry in heap if entry[-1].entry is entry]
            heapify(heap)

    def _push_heavy(self, endpoint: Endpoint) -> None:
        heap = self.heavy_heap
        if heap is None or not endpoint.takes_heavy() or endpoint.inflight >= endpoint.slots:
            return
        old = endpoint.heavy_entry
        entry = self.heavy_key(endpoint)
        if old is not None and not entry < old:
            endpoint.heavy_stale = True
            return
        endpoint.heavy_entry = entry
        endpoint.heavy_stale = False
        heappush(heap, entry)
        if len(heap) > 2 * len(self.members) + SLACK:
            heap[:] = [entry for entry in heap if entry[-1].heavy_entry is entry]
            heapify(heap)
