"""Each in its turn: the one that was dispatched to the longest ago. Blind to size and load, for comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from unjam.core.policies._levels import Key, LevelPolicy

if TYPE_CHECKING:
    from unjam.core.endpoint import Endpoint

#: One level for all: what is left of the order is whose turn it is.
ALL: Final[Key] = (0.0, 0.0)


class RoundRobin(LevelPolicy):
    __slots__ = ()
    name: ClassVar[str] = "round_robin"

    def key(self, endpoint: Endpoint) -> Key:
        return ALL
