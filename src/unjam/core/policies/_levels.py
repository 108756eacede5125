"""Policies that are an order by a key with few values: the endpoint of the least key is next, the least recently used
first.

Endpoints with the same key share a *level*, a queue; the levels lie in a heap. When its key changes, an endpoint's
entry dies where it lies and a new one is appended to another level. Dead ones are dropped when they come to the front,
or by a sweep when there are too many, so that every operation is amortised O(1), or O(log n) where all keys differ. Ten
thousand endpoints with a handful of keys cost what ten do.

Heavy work has an order of its own, of the endpoints below their heavy cap, made when the first heavy request comes:
services without any never pay for it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Any, Final

from unjam.core.policies.base import Policy, Rng

if TYPE_CHECKING:
    from unjam.core.endpoint import Endpoint
    from unjam.core.model import Request

Key = tuple[float, float]

#: `[endpoint, level]`; a dead one has None for its endpoint.
Entry = list[Any]

#: Dead entries that are let be: as many as there are endpoints, and this many.
SLACK: Final = 64


class Level(deque[Entry]):
    """The endpoints of one key, the least recently used first."""

    __slots__ = ("key",)
    key: Key


class Order:
    """All levels. `size`: entries, dead ones included; above `limit` the dead are swept out."""

    __slots__ = ("heap", "levels", "limit", "size")

    def __init__(self) -> None:
        self.levels: dict[Key, Level] = {}
        self.heap: list[tuple[Key, Level]] = []
        self.size = 0
        self.limit = SLACK

    def put(self, endpoint: Endpoint, key: Key) -> Entry:
        """Put an endpoint at the end of its level."""
        level = self.levels.get(key)
        if level is None:
            level = self.levels[key] = Level()
            level.key = key
            heappush(self.heap, (key, level))
        entry = [endpoint, level]
        level.append(entry)
        self.size += 1
        if self.size > self.limit:
            self._sweep()
        return entry

    def first(self, tried: tuple[Endpoint, ...] = ()) -> Endpoint | None:
        """Of the least key, the least recently used; it stays. Those `tried` are passed over."""
        heap = self.heap
        passed: list[Entry] = []
        found: Endpoint | None = None
        while heap:
            level = heap[0][1]
            while level:
                entry = level[0]
                endpoint: Endpoint | None = entry[0]
                if endpoint is not None:
                    if not tried or endpoint not in tried:
                        found = endpoint
                        break
                    passed.append(entry)
                level.popleft()
                self.size -= 1
            if found is not None:
                break
            heappop(heap)
            del self.levels[level.key]
        for entry in reversed(passed):
            self._put_back(entry)
        return found

    def kill(self, entry: Entry) -> None:
        """Take the entry out: its endpoint leaves, or moves to another level."""
        entry[0] = None
        level: Level = entry[1]
        if level and level[0] is entry:
            level.popleft()
            self.size -= 1

    def _put_back(self, entry: Entry) -> None:
        level: Level = entry[1]
        if level.key not in self.levels:
            self.levels[level.key] = level
            heappush(self.heap, (level.key, level))
        level.appendleft(entry)
        self.size += 1

    def _sweep(self) -> None:
        size = 0
        for key, level in list(self.levels.items()):
            alive = [entry for entry in level if entry[0] is not None]
            if alive:
                level.clear()
                level.extend(alive)
                size += len(alive)
            else:
                del self.levels[key]
        self.size = size
        self.heap[:] = [(key, level) for key, level in self.levels.items()]
        heapify(self.heap)


class LevelPolicy(Policy):
    """Subclasses say what the keys are. An endpoint that is open has an entry in `order`, and one in `heavy_order` too,
    if there is one and it is below its heavy cap."""

    __slots__ = ("heap", "heavy_order", "levels", "members", "order")

    def __init__(self, rng: Rng) -> None:
        super().__init__(rng)
        self.members: dict[Endpoint, None] = {}
        self.order = Order()
        #: Of `order`, for short ways.
        self.heap = self.order.heap
        self.levels = self.order.levels
        self.heavy_order: Order | None = None

    @abstractmethod
    def key(self, endpoint: Endpoint) -> Key:
        """Its place in the order; the least is next."""

    def heavy_key(self, endpoint: Endpoint) -> Key:
        """Its place in the order for heavy work."""
        return self.key(endpoint)

    def pick(self, request: Request, heavy: bool, now: float) -> Endpoint | None:
        if not heavy:
            # Nearly always the first entry of the first level is alive and will do.
            heap = self.heap
            if heap and not request.tried:
                level = heap[0][1]
                if level:
                    endpoint: Endpoint | None = level[0][0]
                    if endpoint is not None:
                        return endpoint
            return self.order.first(request.tried)
        order = self.heavy_order
        if order is None:
            self.heavy_order = order = Order()
            order.limit = self.order.limit
            for endpoint in self.members:
                self._move_heavy(endpoint, order, False)
        return order.first(request.tried)

    def started(self, endpoint: Endpoint, heavy: bool) -> None:
        order = self.order
        entry = endpoint.entry
        level = entry[1]
        # Unless a session chose it, it is the first of its level, and the entry is free to be used again.
        if level[0] is entry:
            level.popleft()
            order.size -= 1
        else:
            entry[0] = None
            entry = [endpoint, level]
        if endpoint.inflight < endpoint.slots:
            # `order.put`, written out.
            level = self.levels.get(key := self.key(endpoint))
            if level is None or order.size >= order.limit:
                endpoint.entry = order.put(endpoint, key)
            else:
                entry[1] = level
                endpoint.entry = entry
                level.append(entry)
                order.size += 1
        else:
            endpoint.entry = None
        if self.heavy_order is not None:
            self._move_heavy(endpoint, self.heavy_order, True)

    def ended(self, endpoint: Endpoint, seconds: float, now: float) -> None:
        if not endpoint.usable:
            return
        entry = endpoint.entry
        if entry is None or self.heavy_order is not None:
            self._move(endpoint)
            return
        key = self.key(endpoint)
        level = entry[1]
        if level.key != key:
            # `_move` and `order.put`, written out.
            entry[0] = None
            order = self.order
            level = self.levels.get(key)
            if level is None or order.size >= order.limit:
                endpoint.entry = order.put(endpoint, key)
            else:
                endpoint.entry = entry = [endpoint, level]
                level.append(entry)
                order.size += 1

    def open(self, endpoint: Endpoint) -> None:
        self.members[endpoint] = None
        self._limit()
        self._move(endpoint)

    def close(self, endpoint: Endpoint) -> None:
        self.members.pop(endpoint, None)
        self._limit()
        if endpoint.entry is not None:
            self.order.kill(endpoint.entry)
        if endpoint.heavy_entry is not None and self.heavy_order is not None:
            self.heavy_order.kill(endpoint.heavy_entry)
        endpoint.entry = endpoint.heavy_entry = None

    def touch(self, endpoint: Endpoint) -> None:
        if endpoint in self.members:
            self._move(endpoint)

    def _move(self, endpoint: Endpoint) -> None:
        """Move it to the level where it belongs. One that is there already keeps its turn."""
        entry = endpoint.entry
        if endpoint.inflight < endpoint.slots:
            key = self.key(endpoint)
            if entry is None:
                endpoint.entry = self.order.put(endpoint, key)
            elif entry[1].key != key:
                entry[0] = None
                endpoint.entry = self.order.put(endpoint, key)
        elif entry is not None:
            entry[0] = endpoint.entry = None
        if self.heavy_order is not None:
            self._move_heavy(endpoint, self.heavy_order, False)

    def _move_heavy(self, endpoint: Endpoint, order: Order, used: bool) -> None:
        """As `_move`, in the order for heavy work. `used`: a request was dispatched to it, which ends its turn."""
        entry = endpoint.heavy_entry
        if endpoint.inflight < endpoint.slots and endpoint.takes_heavy():
            key = self.heavy_key(endpoint)
            if entry is not None:
                if not used and entry[1].key == key:
                    return
                order.kill(entry)
            endpoint.heavy_entry = order.put(endpoint, key)
        elif entry is not None:
            order.kill(entry)
            endpoint.heavy_entry = None

    def _limit(self) -> None:
        self.order.limit = 2 * len(self.members) + SLACK
        if self.heavy_order is not None:
            self.heavy_order.limit = self.order.limit
