"""The fewest requests in flight, whatever the size of the endpoint: what most balancers call least connections."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from unjam.core.policies._levels import Key, LevelPolicy

if TYPE_CHECKING:
    from unjam.core.endpoint import Endpoint


class LeastOutstanding(LevelPolicy):
    __slots__ = ()
    name: ClassVar[str] = "least_outstanding"

    def key(self, endpoint: Endpoint) -> Key:
        # Capacity comes in only through warm-up, reports and failures: 1 for an endpoint at its best.
        return ((endpoint.inflight + 1) * endpoint.step * endpoint.nominal, 0.0)
