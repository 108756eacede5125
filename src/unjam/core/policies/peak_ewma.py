"""Power of two choices over peak-EWMA latency × (inflight + 1) / avail, after Finagle's `PeakEwma`.

The average jumps up to a slower answer at once and comes down with a time constant of `TAU`. Work of mixed size
misleads it: an endpoint that was given one long request looks slow for all. For comparison.
"""

from __future__ import annotations

from math import exp
from typing import TYPE_CHECKING, ClassVar, Final

from unjam.core.policies.power_of_two import PowerOfTwo

if TYPE_CHECKING:
    from unjam.core.endpoint import Endpoint

#: Seconds in which an old latency fades to 1/e.
TAU: Final = 10.0
#: Seconds that an endpoint which has never answered, but has something to answer, is taken to need.
UNKNOWN: Final = 10.0
#: Seconds; answers below count as this, so that a load is never nothing.
LEAST: Final = 1e-4


class PeakEwma(PowerOfTwo):
    __slots__ = ()
    name: ClassVar[str] = "peak_ewma"

    def load(self, endpoint: Endpoint, now: float) -> float:
        cost = endpoint.cost * exp((endpoint.cost_at - now) / TAU) if endpoint.cost else 0.0
        if cost < LEAST:
            cost = UNKNOWN if endpoint.inflight and not endpoint.cost else LEAST
        return cost * (endpoint.inflight + 1) * endpoint.step

    def ended(self, endpoint: Endpoint, seconds: float, now: float) -> None:
        fade = exp((endpoint.cost_at - now) / TAU)
        if seconds > endpoint.cost * fade:
            endpoint.cost = seconds
        else:
            endpoint.cost = endpoint.cost * fade + seconds * (1.0 - fade)
        endpoint.cost_at = now
        super().ended(endpoint, seconds, now)
