"""Each in its turn: the one that was dispatched to the longest ago. Blind to size and load, for comparison.

An endpoint that is not at its best (it warms up, its machine is busy, it failed lately) takes only that part of its
turns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from unjam.core.policies._levels import Key, LevelPolicy

if TYPE_CHECKING:
    from unjam.core.endpoint import Endpoint
    from unjam.core.model import Request

#: One level for all: what is left of the order is whose turn it is.
ALL: Final[Key] = (0.0, 0.0)
#: At least this part of an endpoint's best is as good as all of it.
FULL: Final = 0.999
#: Turns passed over before the next one is taken whatever its state: all of them may be warming up.
PASSED_OVER: Final = 32


class RoundRobin(LevelPolicy):
    """`endpoint.cost`: the parts of turns it has saved up."""

    __slots__ = ()
    name: ClassVar[str] = "round_robin"

    def key(self, endpoint: Endpoint) -> Key:
        return ALL

    def pick(self, request: Request, heavy: bool, now: float) -> Endpoint | None:
        endpoint = super().pick(request, heavy, now)
        for _ in range(PASSED_OVER):
            if endpoint is None:
                return None
            strain = endpoint.step * endpoint.nominal
            if strain * FULL <= 1.0:
                return endpoint
            endpoint.cost += 1.0 / strain
            if endpoint.cost >= 1.0:
                endpoint.cost -= 1.0
                return endpoint
            self._pass_over(endpoint, heavy)
            endpoint = super().pick(request, heavy, now)
        return endpoint

    def _pass_over(self, endpoint: Endpoint, heavy: bool) -> None:
        if not heavy:
            self.order.kill(endpoint.entry)
            endpoint.entry = self.order.put(endpoint, ALL)
        elif self.heavy_order is not None:
            self.heavy_order.kill(endpoint.heavy_entry)
            endpoint.heavy_entry = self.heavy_order.put(endpoint, ALL)
