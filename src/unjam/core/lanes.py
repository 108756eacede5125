"""The heavy share: how many slots heavy work may hold, and who counts as heavy while it runs.

Where slots are many, each endpoint keeps some free of heavy work; where every endpoint has `FEW` slots or fewer, a
share of each would be too coarse and it is counted over the version's whole pool. A fast lease that outlives the
boundary counts as heavy from then on; it is never killed for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from unjam.core.model import Lease
    from unjam.core.service import Service, Version

#: Endpoints with more slots have a heavy cap of their own.
FEW: Final = 4
#: Rounding slack for share × slots: 0.7 × 10 is a little less than 7.
_EPSILON: Final = 1e-9


def cap(share: float, slots: int) -> int:
    """The most heavy requests on `slots` slots: at least one, or heavy work could never run."""
    return max(1, int(share * slots + _EPSILON)) if slots else 0


def set_caps(version: Version) -> None:
    """Endpoints, their slots or the share changed. Endpoints whose own cap changed are touched."""
    share = version.service.spec.lanes.share
    endpoints = version.endpoints.values()
    pooled = all(endpoint.slots <= FEW for endpoint in endpoints)
    version.heavy_cap = cap(share, version.slots) if pooled else None
    for endpoint in endpoints:
        own = endpoint.slots if pooled else cap(share, endpoint.slots)
        if own != endpoint.heavy_cap:
            endpoint.heavy_cap = own
            if endpoint.usable:
                endpoint.pool.touch(endpoint)


def add_slots(version: Version, slots: int) -> None:
    """So many slots of the version became usable (below 0: were lost)."""
    version.slots += slots
    if version.heavy_cap is not None:
        version.heavy_cap = cap(version.service.spec.lanes.share, version.slots)


def promote(service: Service, now: float) -> list[Lease]:
    """Relabel the fast leases that have outlived the boundary; returns them. The oldest come first, so that only those
    are looked at."""
    fast = service.fast
    since = now - service.spec.lanes.up_to
    promoted: list[Lease] = []
    for lease in fast:
        if lease.started > since:
            break
        promoted.append(lease)
    for lease in promoted:
        del fast[lease]
        service.slow[lease] = None
        lease.heavy = lease.promoted = True
        lease.version.heavy += 1
        endpoint = lease.endpoint
        endpoint.heavy += 1
        if endpoint.usable:
            endpoint.pool.touch(endpoint)
    service.promoted += len(promoted)
    return promoted
