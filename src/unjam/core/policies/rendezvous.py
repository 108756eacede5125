"""Weighted rendezvous hashing with bounded load: requests with the same key meet the same endpoint while it has room.

The key is the request's session, else its sticky key, its tenant, or its features. Up to `LEAF` endpoints are ranked
one by one. Above that they lie in a trie of fan-out eight by the bits of their names' hashes (a skeleton as in Wang and
Ravishankar, 2009): at each node the children are ranked by the weight below them, so a choice is O(log n), its chances
are those of flat rendezvous, and a change of one endpoint's weight or presence moves only keys to or from it and within
its leaf when that is split.

Bounded load (Mirrokni, Thorup, Zadimoghaddam, 2018): an endpoint whose load is above `bound` × the mean is passed over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from unjam.core.hashing import hash64, mix, name64, score
from unjam.core.policies.base import Policy, Rng

if TYPE_CHECKING:
    from collections.abc import Iterator

    from unjam.core.endpoint import Endpoint
    from unjam.core.model import Request

LEAF: Final = 32
BITS: Final = 3
FAN: Final = 1 << BITS
#: Levels of the trie at most: beyond, equal hashes would be split for ever.
DEPTH: Final = 16
#: Endpoints passed over for their load before the first open one will do.
PASSED_OVER: Final = 16
#: Load that is never too much: the mean of a nearly idle pool says nothing.
BOUND: Final = 1.25


class _Node:
    """`weight`: configured weight of the endpoints below, open or not, so that a full one comes back to its keys.
    `open`, `heavy_open`: how many below may take fast and heavy work."""

    __slots__ = ("children", "depth", "heavy_open", "leaf", "name", "open", "weight")

    def __init__(self, name: int, depth: int) -> None:
        self.name = name
        self.depth = depth
        self.weight = 0.0
        self.open = 0
        self.heavy_open = 0
        self.children: list[_Node] | None = None
        self.leaf: dict[Endpoint, None] = {}


class _Place:
    """Where an endpoint lies (`path`, root first) and what was counted for it."""

    __slots__ = ("heavy_open", "inflight", "name", "open", "path", "weight")

    def __init__(self, name: int, weight: float) -> None:
        self.name = name
        self.weight = weight
        self.path: list[_Node] = []
        self.open = False
        self.heavy_open = False
        self.inflight = 0


class Rendezvous(Policy):
    """Also places sessions, for any policy: it then keeps its own books of the same pool."""

    __slots__ = ("_inflight", "_places", "_root", "bound")
    name: ClassVar[str] = "rendezvous"

    def __init__(self, rng: Rng, bound: float = BOUND) -> None:
        super().__init__(rng)
        self.bound = bound
        self._root = _Node(0, 0)
        self._places: dict[Endpoint, _Place] = {}
        self._inflight = 0

    def pick(self, request: Request, heavy: bool, now: float) -> Endpoint | None:
        key = hash64(request.session or request.sticky or request.tenant or request.bucket)
        if not self._root.open:
            return None
        most = self.bound * (self._inflight + 1) / self._root.weight
        tried = request.tried
        first: Endpoint | None = None
        passed = 0
        for endpoint in self._ranked(self._root, key, heavy):
            if endpoint in tried:
                continue
            # One request on an idle endpoint is never too many.
            if not endpoint.inflight or (endpoint.inflight + 1) * endpoint.step <= most:
                return endpoint
            if first is None:
                first = endpoint
            passed += 1
            if passed >= PASSED_OVER:
                break
        return first

    def open(self, endpoint: Endpoint) -> None:
        if endpoint not in self._places:
            place = _Place(name64(endpoint.name), endpoint.spec.capacity * endpoint.spec.weight)
            self._places[endpoint] = place
            self._insert(self._root, endpoint, place)
        self.touch(endpoint)

    def close(self, endpoint: Endpoint) -> None:
        place = self._places.pop(endpoint, None)
        if place is None:
            return
        self._mark(place, False, False)
        self._inflight -= place.inflight
        for node in place.path:
            node.weight -= place.weight
        del place.path[-1].leaf[endpoint]

    def started(self, endpoint: Endpoint, heavy: bool) -> None:
        self._count(endpoint)

    def ended(self, endpoint: Endpoint, seconds: float, now: float) -> None:
        self._count(endpoint)

    def touch(self, endpoint: Endpoint) -> None:
        self._count(endpoint)

    def _count(self, endpoint: Endpoint) -> None:
        place = self._places.get(endpoint)
        if place is None:
            return
        self._inflight += endpoint.inflight - place.inflight
        place.inflight = endpoint.inflight
        is_open = endpoint.inflight < endpoint.slots and endpoint.step > 0.0
        self._mark(place, is_open, is_open and endpoint.takes_heavy())

    def _mark(self, place: _Place, is_open: bool, heavy_open: bool) -> None:
        if is_open is not place.open:
            place.open = is_open
            step = 1 if is_open else -1
            for node in place.path:
                node.open += step
        if heavy_open is not place.heavy_open:
            place.heavy_open = heavy_open
            step = 1 if heavy_open else -1
            for node in place.path:
                node.heavy_open += step

    def _insert(self, node: _Node, endpoint: Endpoint, place: _Place) -> None:
        while True:
            place.path.append(node)
            node.weight += place.weight
            node.open += place.open
            node.heavy_open += place.heavy_open
            if node.children is None:
                break
            node = node.children[place.name >> BITS * node.depth & FAN - 1]
        node.leaf[endpoint] = None
        if len(node.leaf) > LEAF and node.depth < DEPTH:
            node.children = [_Node(mix(node.name, i + 1), node.depth + 1) for i in range(FAN)]
            moved, node.leaf = node.leaf, {}
            for other in moved:
                its = self._places[other]
                self._insert(node.children[its.name >> BITS * node.depth & FAN - 1], other, its)

    def _ranked(self, node: _Node, key: int, heavy: bool) -> Iterator[Endpoint]:
        """Open endpoints from the best on, found only as far as they are asked for."""
        if node.children is None:
            places = self._places
            ranked = [
                (-score(key, place.name, place.weight), place.name, endpoint)
                for endpoint in node.leaf
                if (place := places[endpoint]) and (place.heavy_open if heavy else place.open)
            ]
            ranked.sort()
            for _, _, endpoint in ranked:
                yield endpoint
            return
        children = [
            (-score(key, child.name, child.weight), child.name, child)
            for child in node.children
            if (child.heavy_open if heavy else child.open)
        ]
        children.sort()
        for _, _, child in children:
            yield from self._ranked(child, key, heavy)
