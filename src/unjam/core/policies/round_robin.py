"""Each in its turn: the one that was dispatched to the longest ago. Blind to size and load, for comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from unjam.core.policies._heap import Entry, HeapPolicy

if TYPE_CHECKING:
    from unjam.core.endpoint import Endpoint


class RoundRobin(HeapPolicy):
    __slots__ = ()
    name: ClassVar[str] = "round_robin"

    def key(self, endpoint: Endpoint) -> Entry:
        return (endpoint.turn, endpoint)
