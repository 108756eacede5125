"""Which version serves a request: pin, session, rules, weights; then the fallback chain."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unjam.core.hashing import hash64, uniform
from unjam.core.split import first

if TYPE_CHECKING:
    from unjam.core.endpoint import Endpoint
    from unjam.core.model import Request
    from unjam.core.service import Service, Version


def target(request: Request, heavy: bool | None, now: float) -> Version | None:
    """The version to serve it, of its service or of one it falls back on; None: there is none. `heavy`: its lane,
    None while that doesn't matter."""
    service = request.service
    if request.pin is not None:
        for own in service.versions:
            if own.name == request.pin:
                gone = not own.usable or not own.share or own in _exhausted(service, request)
                return None if gone else own
    if service.sessions is not None and request.session is not None:
        bound = service.sessions.lookup(request.session, now)
        if (
            bound is not None
            and alive(bound, request)
            and bound not in request.tried
            and _returns(bound, request.session)
        ):
            return bound.pool.version
    sticky = request.sticky
    if sticky is None and service.spec.sticky is not None:
        if service.spec.sticky == "session":
            sticky = request.session
        elif service.spec.sticky == "tenant":
            sticky = request.tenant or None
    if request.splits and heavy is not None:
        rule = first(request.splits, heavy, service.splits)
        version = None if rule is None else rule.pick(sticky, _exhausted(service, request))
        if version is not None and not version.removed:
            return version
    desperate = None
    for candidate in (service, *service.chain):
        version = candidate.sole
        if version is None or request.tried:
            version = candidate.picker.pick(sticky, _exhausted(candidate, request))
        if version is None or version.removed:
            continue
        if version.healthy or candidate is service:
            return version
        # Nobody there is well either, and is used only as that service has nothing to fall back on. This request may
        # have.
        if desperate is None:
            desperate = version
    return desperate if service.maintenance is None else None


def elsewhere(request: Request) -> bool:
    """Whether somebody is there to take it: what `target` would find, without using up anybody's turn for that."""
    service = request.service
    if request.pin is not None and any(own.name == request.pin for own in service.versions):
        return False
    desperate = False
    for candidate in (service, *service.chain):
        exhausted = _exhausted(candidate, request)
        for version in candidate.versions:
            if version in exhausted or not version.usable or not version.share or not _given(version, request):
                continue
            if version.healthy or candidate is service:
                return True
            desperate = True
    return desperate and service.maintenance is None


def _exhausted(service: Service, request: Request) -> list[Version]:
    """Versions that have nothing left which was not tried."""
    if not request.tried:
        return []
    return [
        version
        for version in service.versions
        if version.usable <= sum(e.usable and e.pool.version is version for e in request.tried)
    ]


def alive(endpoint: Endpoint, request: Request) -> bool:
    """A session may stay with it: its version gets work, by its weight or by a rule that holds for the request."""
    version = endpoint.pool.version
    if not endpoint.usable or version.removed or not version.share:
        return False
    return _given(version, request)


def _given(version: Version, request: Request) -> bool:
    """It has a weight for the request, its own or that of a rule."""
    return version.weight > 0.0 or any(
        rule.spec.weights.get(version.name) for rule in request.splits if rule in version.service.splits
    )


def moves(bound: Endpoint, endpoint: Endpoint, request: Request) -> bool:
    """A session that was bound to one stays with the other, which serves it now: not where its home is only full for
    the moment, and it is a guest elsewhere."""
    home = bound.pool.version
    return bound is endpoint or not alive(bound, request) or (home.share < 1.0 and home is not endpoint.pool.version)


def _returns(endpoint: Endpoint, session: str) -> bool:
    """Of the sessions that a version had, only so many stay with it while it ramps back as its share allows; always the
    same ones."""
    share = endpoint.pool.version.share
    return share >= 1.0 or uniform(hash64(session, b"ramp")) < share
