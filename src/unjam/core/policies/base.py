"""What a policy is: an order among the endpoints of one pool that may take work now.

Health, drain, slots, the heavy share, versions, regions and sessions are decided outside. A policy is told which
endpoints are open and what happens to them, and answers `pick`. It never returns one that is closed, full, in
`request.tried`, or, for heavy work, at its own heavy cap.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    from unjam.core.endpoint import Endpoint
    from unjam.core.model import Request


class Rng(Protocol):
    """Where chance comes from: a `random.Random` with a seed of the caller's."""

    def random(self) -> float: ...


class Policy(ABC):
    """Of one pool. The caller keeps `endpoint.inflight`, `heavy` and `avail` before it tells the policy."""

    __slots__ = ("rng",)
    name: ClassVar[str]

    def __init__(self, rng: Rng) -> None:
        self.rng = rng

    @abstractmethod
    def pick(self, request: Request, heavy: bool, now: float) -> Endpoint | None:
        """The best open endpoint for `request`; None when none fits. Choosing claims nothing: `started` does."""

    @abstractmethod
    def open(self, endpoint: Endpoint) -> None:
        """It is usable. It may be full: then it counts as open from its next `ended` on. Idempotent."""

    @abstractmethod
    def close(self, endpoint: Endpoint) -> None:
        """Take it out: it is not usable any more, or has left the pool. Idempotent."""

    @abstractmethod
    def started(self, endpoint: Endpoint, heavy: bool) -> None:
        """A request was dispatched to it (chosen by `pick` or by a session)."""

    @abstractmethod
    def ended(self, endpoint: Endpoint, seconds: float, now: float) -> None:
        """A request on it ended after `seconds`. It need not be usable any more."""

    @abstractmethod
    def touch(self, endpoint: Endpoint) -> None:
        """Its `avail`, handicap, `heavy` count, slots or cap changed by other means."""
