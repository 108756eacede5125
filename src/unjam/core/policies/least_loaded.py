"""The default: the least stretch, then the fewest heavy requests per core, then the least recently used.

`stretch = max(1, (inflight + 1) / avail)`: below one request per core, one more slows nobody down, and what matters is
to keep heavy requests apart. Heavy work turns the first two around: fewest heavy requests per core with it counted, so
that large servers come first and busy ones last, then the least stretch. Cores are those of `avail`. Within 1.08 of a
clairvoyant central queue where slots are about twice the cores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from unjam.core.endpoint import UNIT
from unjam.core.policies._levels import Key, LevelPolicy

if TYPE_CHECKING:
    from unjam.core.endpoint import Endpoint


class LeastLoaded(LevelPolicy):
    __slots__ = ()
    name: ClassVar[str] = "least_loaded"

    def key(self, endpoint: Endpoint) -> Key:
        stretch = (endpoint.inflight + 1) * endpoint.step
        if stretch < endpoint.floor:
            stretch = endpoint.floor
        return (stretch, endpoint.burden * endpoint.per_core)

    def heavy_key(self, endpoint: Endpoint) -> Key:
        stretch = (endpoint.inflight + 1) * endpoint.step
        if stretch < endpoint.floor:
            stretch = endpoint.floor
        return ((endpoint.burden + UNIT) * endpoint.per_core, stretch)
