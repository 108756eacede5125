"""Spill-over: what has waited long enough for a version without a free slot goes to another that has one.

A cheap pool in front of a dear one: work stays where it is cheap as long as that takes no longer than stated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from unjam.core.split import first

if TYPE_CHECKING:
    from collections.abc import Iterator

    from unjam.core.model import Request, Ticket
    from unjam.core.service import Version


def target(version: Version, request: Request, heavy: bool) -> Version | None:
    """Where its overflow goes, if the request may go there now: a version that is out gets none, and one that the rule
    of this caller and lane doesn't name nothing of theirs."""
    spec = version.overflow
    if spec is None:
        return None
    for other in version.service.versions:
        if other.name == spec.to:
            if not other.usable or other.share < 1.0:
                return None
            rule = first(request.splits, heavy, version.service.splits) if request.splits else None
            return other if rule is None or rule.spec.weights.get(other.name) else None
    return None


def overdue(version: Version, now: float) -> Iterator[Ticket]:
    """Tickets that have waited for as long as the version's overflow says, by arrival; not those of requests that are
    pinned to the version."""
    spec = version.overflow
    if spec is None:
        return
    for ticket in version.queue.tickets():
        if ticket.request.arrived + spec.after > now:
            return
        if ticket.request.pin != version.name:
            yield ticket
