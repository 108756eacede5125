"""The heavy share: how many slots heavy work may hold, and who counts as heavy while it runs.

Where slots are many, each endpoint keeps some free of heavy work; where every endpoint has `FEW` slots or fewer, a
share of each would be too coarse and it is counted over the version's whole pool. A lease that outlives the boundary
counts as heavy from then on, whatever was predicted; it is never killed for it.

The heavy lane is a prediction. Where only a quarter of a path's requests are really heavy, counting every one of them
in full would leave slots empty while the other three quarters wait. So each counts for its *risk* until it ends or
outlives the boundary; and since a burst may be worse than the average, the heavy lane never holds more than the cap and
a third of the slots beyond it, risk or no risk. benchmarks/sim.py: the mean is a quarter lower for it at ρ 0.95.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from unjam.core.endpoint import UNIT

if TYPE_CHECKING:
    from unjam.core.endpoint import Endpoint
    from unjam.core.estimator import Bucket
    from unjam.core.model import Lease
    from unjam.core.service import Service, Version

#: Endpoints with more slots have a heavy cap of their own.
FEW: Final = 4
#: The part of the slots beyond the cap that requests of the heavy lane may take on the strength of being unlikely to
#: be.
CROWD: Final = 1 / 3
#: Rounding slack for share × slots: 0.7 × 10 is a little less than 7.
_EPSILON: Final = 1e-9


def cap(share: float, slots: int) -> int:
    """The most heavy requests on `slots` slots: at least one, or heavy work could never run."""
    return max(1, int(share * slots + _EPSILON)) if slots else 0


def crowd(share: float, slots: int) -> int:
    """The most requests of the heavy lane on `slots` slots, however unlikely each is to be heavy."""
    most = cap(share, slots)
    return most + int((slots - most) * CROWD + _EPSILON)


def set_caps(version: Version) -> None:
    """Endpoints, their slots or the share changed. Endpoints whose own cap changed are touched."""
    endpoints = version.endpoints.values()
    version.large = sum(endpoint.slots > FEW for endpoint in endpoints)
    version.barred = any(endpoint.barred for endpoint in endpoints)
    # Heavy work that still runs on barred endpoints must not keep the others idle: then each has its own share again.
    version.heavy_cap = None if version.large or version.barred else 0
    version.heavy_most = None
    add_slots(version, 0)
    for endpoint in endpoints:
        set_cap(version, endpoint)


def set_cap(version: Version, endpoint: Endpoint) -> None:
    """Bring the cap of one endpoint up to date: its part of the slots, as far as its memory has room for it."""
    share = version.service.spec.lanes.share
    if version.heavy_cap is not None:
        # Where the pool counts, an endpoint may be full of heavy work.
        own, most = endpoint.slots + 1, endpoint.slots
    else:
        own, most = cap(share, endpoint.slots), crowd(share, endpoint.slots)
    room = 0 if endpoint.barred else endpoint.room
    if room < most:
        own, most = min(own, room), room
    if (own, most) != (endpoint.heavy_cap, endpoint.heavy_crowd):
        endpoint.cap_heavy(own, most)
        if endpoint.usable:
            endpoint.pool.touch(endpoint)


def recap(version: Version, endpoint: Endpoint) -> None:
    """An endpoint came, went or changed its size, and `version.large` is up to date: whose share counts may change."""
    if (version.large > 0 or version.barred) is not (version.heavy_cap is None):
        set_caps(version)
    else:
        set_cap(version, endpoint)


def resize(version: Version, endpoint: Endpoint, slots: int) -> None:
    """Give an endpoint of the version another number of slots."""
    before, endpoint.slots = endpoint.slots, slots
    if endpoint.usable:
        add_slots(version, slots - before)
    version.large += (slots > FEW) - (before > FEW)
    recap(version, endpoint)
    if endpoint.usable:
        endpoint.pool.touch(endpoint)


def add_slots(version: Version, slots: int) -> None:
    """So many slots of the version became usable (below 0: were lost)."""
    version.slots += slots
    if version.heavy_cap is not None:
        version.heavy_cap = cap(version.service.spec.lanes.share, version.slots)
        version.heavy_most = UNIT * version.heavy_cap
        version.heavy_crowd = crowd(version.service.spec.lanes.share, version.slots)


def fits(version: Version, bucket: Bucket) -> bool:
    """The version's whole pool has room for one more heavy request like this."""
    most = version.heavy_most
    return most is None or (version.burden + bucket.risk <= most and version.heavy < version.heavy_crowd)


def begin(lease: Lease) -> None:
    """A heavy lease was dispatched: it counts for as much as is likely."""
    lease.burden = burden = lease.bucket.risk
    version = lease.version
    version.heavy += 1
    version.burden += burden
    endpoint = lease.endpoint
    endpoint.heavy += 1
    endpoint.burden += burden


def end(lease: Lease) -> None:
    """A heavy lease ended."""
    version = lease.version
    version.heavy -= 1
    version.burden -= lease.burden
    endpoint = lease.endpoint
    endpoint.heavy -= 1
    endpoint.heavy_ended += 1
    endpoint.burden -= lease.burden


def promote(service: Service, now: float) -> None:
    """What has outlived the boundary is heavy, and counts for all of a heavy request. The oldest come first, so that
    only those are looked at."""
    young = service.young
    since = now - service.spec.lanes.up_to
    outlived: list[Lease] = []
    for lease in young:
        if lease.started > since:
            break
        outlived.append(lease)
    for lease in outlived:
        del young[lease]
        service.overdue[lease] = None
        lease.overdue = True
        lease.bucket.outlived()
        version = lease.version
        endpoint = lease.endpoint
        if not lease.heavy:
            lease.heavy = lease.promoted = True
            version.heavy += 1
            endpoint.heavy += 1
            service.promoted += 1
        version.burden += UNIT - lease.burden
        endpoint.burden += UNIT - lease.burden
        lease.burden = UNIT
        if endpoint.usable:
            endpoint.pool.touch(endpoint)
