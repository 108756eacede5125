"""What failures and verdicts mean for a version, and whose they are: the version's own, or those of one endpoint, which
is then ejected.

Judged when the version's breaker would trip. The endpoint with at least `MOST` of the failures since the evidence began
is the cause if the others answered well meanwhile: what they did is at least as likely for good ones as for ones that
fail as often as it does.
"""

from __future__ import annotations

from math import log
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from unjam.core.endpoint import Endpoint
    from unjam.core.health import Health
    from unjam.core.service import Version

#: The least share of the failures that makes an endpoint the cause.
MOST: Final = 0.8


class Blame:
    """Of one version. `failures`: all since the evidence began, those by a verdict too."""

    __slots__ = ("_by", "failures")

    def __init__(self) -> None:
        self.failures = 0
        #: Failures of each endpoint; and, as of its first, what it had served and the good calls of its version.
        self._by: dict[Endpoint, list[int]] = {}

    def clear(self) -> None:
        self.failures = 0
        self._by.clear()

    def add(self, endpoint: Endpoint | None, version: Version) -> None:
        """Count a failure of this endpoint; None: nobody knows whose it was."""
        self.failures += 1
        if endpoint is None:
            return
        known = self._by.get(endpoint)
        if known is None:
            self._by[endpoint] = [1, endpoint.served, version.good_calls]
        else:
            known[0] += 1

    def cause(self, version: Version, normal: float) -> tuple[Endpoint, str] | None:
        """The endpoint that is to blame, and why in words. `normal`: the rate at which a good one fails."""
        if not self._by:
            return None
        endpoint, (failures, served, good) = max(self._by.items(), key=lambda item: item[1][0])
        home = endpoint.pool.version
        if failures < MOST * self.failures or endpoint.removed or home.panic:
            return None
        # Somebody else must be there, whose last answer was good.
        if not any(e is not endpoint and e.well and e.served and not e.failures for e in home.endpoints.values()):
            return None
        own = endpoint.served - served
        others = version.good_calls - good - own
        rate = max(normal, (failures + 0.5) / (failures + own + 1.0))
        likely = others * log((1.0 - normal) / (1.0 - rate)) + (self.failures - failures) * log(normal / rate)
        if likely < 0.0:
            return None
        return endpoint, f"{failures} of its version's last {self.failures} failures were its own"


def failed(health: Health, version: Version, endpoint: Endpoint, started: float, now: float) -> None:
    """A call that was dispatched at `started` failed by the fault of `endpoint` or of its version: if it is the
    version's it may trip, otherwise the endpoint that is to blame is ejected."""
    breaker = version.breaker
    known = version.blame
    if not breaker.evidence:
        known.clear()
    known.add(endpoint, version)
    if breaker.ripe(now, started):
        cause = known.cause(version, breaker.baseline)
        if cause is not None:
            health.blame(*cause, now)
            known.clear()
            breaker.start_anew(now)
            return
    if breaker.record(True, now, started):
        tripped(version, now)


def judged(version: Version, bad: bool, sampled: bool, reason: str, started: float, now: float) -> None:
    """Somebody judged an answer: see `Breaker.verdict`."""
    breaker = version.breaker
    if bad:
        version.bad += 1
    else:
        version.good += 1
    if bad and not sampled:
        if not breaker.evidence:
            version.blame.clear()
        version.blame.add(None, version)
    if breaker.verdict(bad, now, started, not sampled, reason):
        tripped(version, now)


def tripped(version: Version, now: float) -> None:
    """The version's breaker has tripped: what waits for it goes elsewhere, and so does what comes."""
    version.evict = True
    version.service.reweigh(now)
