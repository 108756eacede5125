"""Draw two by weight and take the less loaded (Mitzenmacher, 2001): good with stale or partial knowledge of the
load."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from unjam.core.policies._sample import SamplePolicy

if TYPE_CHECKING:
    from unjam.core.endpoint import Endpoint
    from unjam.core.model import Request

#: Draws for a second candidate that differs from the first. One weight may be nearly all there is.
SECOND = 4


class PowerOfTwo(SamplePolicy):
    __slots__ = ()
    name: ClassVar[str] = "power_of_two"

    def pick(self, request: Request, heavy: bool, now: float) -> Endpoint | None:
        candidates = self.candidates(heavy)
        one = self.draw(candidates, request)
        if one is None or len(candidates) == 1:
            return one
        for _ in range(SECOND):
            other = self.draw(candidates, request)
            if other is not None and other is not one:
                return one if self.load(one, now) <= self.load(other, now) else other
        return one

    def load(self, endpoint: Endpoint, now: float) -> float:
        """What the two are compared by; lower is better."""
        return (endpoint.inflight + 1) * endpoint.step
