"""Two orders of run ids in memory: who is next in a queue, and whose time has come.

Both are heaps beside a dict that says what holds; entries that no longer agree with it are left in until they come up,
or outweigh the others. So everything costs O(log n) at most, and memory goes with what is in there now.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush

#: service, lane, pull
QueueName = tuple[str, str, bool]

#: Heaps shorter than this are never cleaned.
_SMALL = 64


class Waiting:
    """Queues of runs; in each the lowest `place` is next."""

    def __init__(self) -> None:
        self._heaps: dict[QueueName, list[tuple[int, str]]] = {}
        self._places: dict[QueueName, dict[str, int]] = {}

    def add(self, name: QueueName, place: int, run: str) -> None:
        places = self._places.setdefault(name, {})
        heap = self._heaps.setdefault(name, [])
        if len(heap) > 2 * len(places) + _SMALL:
            heap[:] = [(place, run) for run, place in places.items()]
            heapify(heap)
        places[run] = place
        heappush(heap, (place, run))

    def remove(self, name: QueueName, run: str) -> None:
        """Raises KeyError for one that doesn't wait there."""
        places = self._places[name]
        del places[run]
        if not places:
            del self._places[name], self._heaps[name]

    def head(self, name: QueueName) -> tuple[int, str] | None:
        """The next one as (place, run). It stays in the queue."""
        places = self._places.get(name)
        if places is None:
            return None
        heap = self._heaps[name]
        while places.get(heap[0][1]) != heap[0][0]:
            heappop(heap)
        return heap[0]

    def front(self, name: QueueName, most: int) -> list[tuple[int, str]]:
        """The first ones, in order. They stay in the queue."""
        places, heap, found = self._places.get(name, {}), self._heaps.get(name, []), list[tuple[int, str]]()
        while heap and len(found) < most:
            entry = heappop(heap)
            if places.get(entry[1]) == entry[0] and entry not in found[-1:]:
                found.append(entry)
        for entry in found:
            heappush(heap, entry)
        return found

    def lengths(self) -> dict[str, int]:
        """By service."""
        lengths: dict[str, int] = {}
        for (service, _, _), places in self._places.items():
            lengths[service] = lengths.get(service, 0) + len(places)
        return lengths


class Due:
    """Runs and when something is due for them."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, str]] = []
        self._when: dict[str, float] = {}

    def put(self, run: str, when: float) -> None:
        """Also puts off or forward. To put off costs nothing: the entry is moved when it comes up."""
        before = self._when.get(run)
        self._when[run] = when
        if before is None or when < before:
            if len(self._heap) > 2 * len(self._when) + _SMALL:
                self._heap = [(when, run) for run, when in self._when.items()]
                heapify(self._heap)
            else:
                heappush(self._heap, (when, run))

    def discard(self, run: str) -> None:
        self._when.pop(run, None)

    def __iter__(self) -> Iterator[tuple[str, float]]:
        """Each run, and when."""
        return iter(self._when.items())

    def pop(self, now: float) -> str | None:
        """Take out one that is due at `now`, the longest due first."""
        while self._heap and self._heap[0][0] <= now:
            _, run = heappop(self._heap)
            when = self._when.get(run)
            if when is None:
                continue
            if when <= now:
                del self._when[run]
                return run
            heappush(self._heap, (when, run))
        return None
