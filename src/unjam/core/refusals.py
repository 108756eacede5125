"""What a caller is told when its request is not served: a status, what happened, what to do, and when to try again."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Final

from unjam.core.model import Reason, Refusal

if TYPE_CHECKING:
    from unjam.core.model import Request
    from unjam.core.service import Service, Version
    from unjam.core.spec import Maintenance

#: Seconds to wait where nothing is known.
RETRY_AFTER: Final = 1.0
#: Seconds; nobody is told to wait for longer than this by an estimate.
RETRY_AFTER_MOST: Final = 60.0


def queue_full(request: Request, service: Service, version: Version) -> Refusal:
    return Refusal(
        request,
        Reason.QUEUE_FULL,
        503,
        f"{service.name} is at its limit: {service.waiting.count} requests wait already. "
        "Try again later, or raise queue.max or add endpoints.",
        _soon(version),
    )


def tenant_share(request: Request, service: Service, version: Version) -> Refusal:
    return Refusal(
        request,
        Reason.TENANT_SHARE,
        429,
        f"You hold your share of the places in the queue of {service.name}. "
        "Wait for some of your requests to be answered, then try again.",
        _soon(version),
    )


def queue_timeout(request: Request, version: Version, waited: float) -> Refusal:
    return Refusal(
        request,
        Reason.QUEUE_TIMEOUT,
        503,
        f"No slot of {version.service.name} became free within {waited:.3g} s. "
        "Try again later, or raise queue.timeout or add endpoints.",
        _soon(version),
    )


def deadline(request: Request, service: Service, predicted: float | None = None) -> Refusal:
    if predicted is None:
        message = f"The deadline of this request passed before {service.name} could start it. Allow more time."
    else:
        message = (
            f"This request would wait about {predicted:.3g} s for {service.name}, past its deadline. "
            "Allow more time, or try again when there is less to do."
        )
    return Refusal(
        request, Reason.DEADLINE, 504, message, None if predicted is None else min(predicted, RETRY_AFTER_MOST)
    )


def no_endpoint(request: Request, service: Service, now: float) -> Refusal:
    if request.tried:
        message = f"Every endpoint of {service.name} that could take this request has failed it."
    elif not any(version.endpoints for version in service.versions):
        message = f"{service.name} has no endpoints."
    else:
        message = f"No endpoint of {service.name} is in service: all are unhealthy, draining or behind an open breaker."
    waits = [v.breaker.until - now for v in service.versions if v.usable and v.weight > 0.0 and not v.share]
    retry_after = min(waits, default=RETRY_AFTER)
    return Refusal(request, Reason.NO_ENDPOINT, 503, message + " Try again later.", max(RETRY_AFTER, retry_after))


def maintenance(request: Request, spec: Maintenance) -> Refusal:
    return Refusal(request, Reason.MAINTENANCE, spec.status, spec.message, spec.retry_after)


def quota(request: Request, service: Service, wait: float) -> Refusal:
    if wait == float("inf"):
        return Refusal(
            request,
            Reason.QUOTA,
            429,
            f"This request needs more tokens at once than the quota of any region of {service.name} holds. "
            "Ask for fewer tokens.",
        )
    return Refusal(
        request,
        Reason.QUOTA,
        429,
        f"The quota of every region of {service.name} is spent. Try again in {ceil(wait)} s.",
        wait,
    )


def _soon(version: Version) -> float:
    wait = version.queue.wait(heavy=True)
    return RETRY_AFTER if wait is None else min(max(RETRY_AFTER, wait), RETRY_AFTER_MOST)
