"""What stores raise, as clients are told it: one table."""

from __future__ import annotations

from typing import Final

from unjam.gateway.local import Refused
from unjam.runs.store import base

#: error → status, sentence, seconds until it is worth another try.
TABLE: Final[dict[type[base.StoreError], tuple[int, str, float | None]]] = {
    base.UnknownRun: (404, "There is no such run, or not any more.", None),
    base.Fenced: (409, "The run has another owner now, or has ended: stop working on it.", None),
    base.LogExpired: (410, "What was asked for is not kept any more; ?result=0 gives the run itself.", None),
    base.TooLarge: (413, "A payload is too large.", None),
    base.KeyReused: (422, "This Idempotency-Key was used for another request: use a new one.", None),
    base.InputsFull: (429, "The run was sent as many inputs, or bytes of them, as it takes.", None),
    base.QueueFull: (429, "As many runs of this service wait as may. Try again later.", 5.0),
    base.TenantQueueFull: (429, "As many of your runs wait for this service as may. Try again later.", 5.0),
    base.NotEnded: (409, "The run has not ended: cancel it first.", None),
    base.StoreAway: (503, "Runs can't be reached just now; nothing is lost. Try again.", 2.0),
    base.StoreError: (500, "The store failed at this; the gateway's log says why.", None),
}


def refused(error: base.StoreError) -> Refused:
    """The answer to an error of the store."""
    for kind in type(error).__mro__:
        if kind in TABLE:
            status, message, retry_after = TABLE[kind]
            if isinstance(error, base.StoreAway):
                retry_after = error.retry_after
            return Refused(status, error.code, message, retry_after)
    raise AssertionError("every StoreError has the base's answer")


def missing() -> Refused:
    """For a run that isn't the caller's: the same answer as for one that isn't there."""
    return refused(base.UnknownRun())
