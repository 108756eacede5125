"""From the times of dispatches: shares over time, how soon traffic moved away and came back, changes of mind.

A dispatch is a pair (seconds since the script began, went to the hogged endpoint), taken from the endpoints' own logs,
so that it means the same for every balancer. All is pure and tested.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Dispatch = tuple[float, bool]

#: Traffic is away when less than this part of the heavy dispatches goes to the hogged endpoint, ...
AWAY = 0.10
#: ... and back when at least this part does: half is its due.
BACK = 0.25
#: Seconds that are looked at together where a share over time is needed.
WINDOW = 6.0


def share(dispatches: Sequence[Dispatch], since: float, until: float) -> float:
    """Part of those in [since, until) that went to the hogged endpoint; NaN when there are none."""
    chosen = [hogged for at, hogged in dispatches if since <= at < until]
    return sum(chosen) / len(chosen) if chosen else math.nan


def shares(dispatches: Sequence[Dispatch], seconds: float, width: float = 1.0) -> list[float]:
    """The share in each `width` of seconds."""
    return [share(dispatches, n * width, (n + 1) * width) for n in range(round(seconds / width))]


def time_to_move(dispatches: Sequence[Dispatch], on: float, off: float) -> float:
    """Seconds after `on` from which less than `AWAY` of the dispatches went to the hogged endpoint, of those in the
    next `WINDOW` seconds and of all until `off`: that is just after one that still did. 0 when it holds from the start,
    infinity when it never does, or only for the last `WINDOW` seconds before `off`, too little to tell."""
    wrong = [at for at, hogged in dispatches if on <= at < off and hogged]
    for moment in [on, *wrong]:
        # The dispatch at `moment` itself is the last that goes astray.
        later = [(at, hogged) for at, hogged in dispatches if moment < at < off]
        if off - moment < WINDOW:
            break
        if all(share(later, moment, until) < AWAY for until in (moment + WINDOW, off)):
            return moment - on
    return math.inf


def time_to_return(dispatches: Sequence[Dispatch], off: float, end: float) -> float:
    """Seconds after `off` of the first dispatch to the endpoint that was hogged, from which `WINDOW` seconds long at
    least `BACK` of the dispatches go there. Infinity when there is none. 0 for one to which traffic never stopped
    going."""
    for at, hogged in dispatches:
        if hogged and off <= at <= end - WINDOW and share(dispatches, at, at + WINDOW) >= BACK:
            return at - off
    return math.inf


def changes(dispatches: Sequence[Dispatch], end: float, step: float = 1.0) -> int:
    """How often traffic changed its mind: the share in the last `WINDOW` seconds, looked at every `step`, went from at
    least `BACK` to below `AWAY` or the reverse. Between the two nothing changes (hysteresis), so that chance doesn't
    count. A hog that comes and goes once is good for two."""
    state: bool | None = None
    count = 0
    at = WINDOW
    while at <= end:
        now = share(dispatches, at - WINDOW, at)
        new = True if now >= BACK else False if now < AWAY else state
        if state is not None and new != state:
            count += 1
        state = new
        at += step
    return count


def oscillations(dispatches: Sequence[Dispatch], end: float) -> int:
    """Changes beyond the one away and the one back."""
    return max(0, changes(dispatches, end) - 2)
