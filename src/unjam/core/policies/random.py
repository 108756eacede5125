"""Any open endpoint, in proportion to what it can take. For comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from unjam.core.policies._sample import SamplePolicy

if TYPE_CHECKING:
    from unjam.core.endpoint import Endpoint
    from unjam.core.model import Request


class RandomChoice(SamplePolicy):
    __slots__ = ()
    name: ClassVar[str] = "random"

    def pick(self, request: Request, heavy: bool, now: float) -> Endpoint | None:
        return self.draw(self.candidates(heavy), request)
