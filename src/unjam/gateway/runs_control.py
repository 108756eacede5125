"""What the admin listener may do with runs: look at all tenants', cancel, queue again. Inputs, results and what events
hold are the tenants' and not shown."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, TypeVar

from unjam.admin.control import ControlRefused
from unjam.gateway import runs_shapes as shapes
from unjam.gateway.durable import Durable
from unjam.gateway.runs_errors import refused
from unjam.runs.model import Run, partition_of
from unjam.runs.store.base import StoreAway, StoreError, UnknownRun

T = TypeVar("T")

#: `RunsControl.list` would hide `list` within the class.
Rows = list[dict[str, Any]]


def _told(call: Callable[..., Coroutine[Any, Any, T]]) -> Callable[..., Coroutine[Any, Any, T]]:
    """What the store raises, as the admin API says it."""

    @wraps(call)
    async def wrapper(*args: Any, **kwargs: Any) -> T:
        try:
            return await call(*args, **kwargs)
        except StoreError as error:
            told = refused(error)
            # Clients are not told what lies behind the gateway; operators are.
            why = f" Why: {str(error).rstrip('.')}." if isinstance(error, StoreAway) and str(error) else ""
            raise ControlRefused(told.code, f"{told.message}{why}", told.status) from error

    return wrapper


class RunsControl:
    def __init__(self, durable: Durable) -> None:
        self._durable = durable
        self._store = durable.store

    @_told
    async def list(
        self, tenant: str | None, service: str | None, status: str | None, before: str | None, limit: int
    ) -> Rows:
        """The newest first, of all tenants unless one is named. ControlRefused for a `before` that is no run id."""
        try:
            runs = await self._store.list(tenant, service=service, status=status, before=before, limit=limit)
        except ValueError:
            raise ControlRefused("bad_query", "before must be the id of a run.", 400) from None
        return [_row(run) for run in runs]

    @_told
    async def dead(self, service: str | None, limit: int) -> Rows:
        """Runs whose attempts are exhausted."""
        return [_row(run) for run in await self._store.dead(service, limit)]

    @_told
    async def show(self, run: str, events: int) -> dict[str, Any]:
        """A run and the last `events` of its log: what happened when, not what was said."""
        found = await self._store.get(_known(run))
        batch = await self._store.read(run, max(found.seq - 1 - events, -1), max(events, 1)) if events else None
        return {
            "run": _row(found),
            "events": [
                {"seq": event.seq, "type": event.type, "at": shapes.when(event.at), "size": len(event.data)}
                for event in (batch.events if batch is not None else ())
            ],
        }

    @_told
    async def cancel(self, run: str) -> dict[str, Any]:
        settled = await self._store.cancel(_known(run))
        self._durable.poke(run)
        return {"run": _row(settled.run), "changed": settled.changed}

    @_told
    async def requeue(self, run: str) -> dict[str, Any]:
        settled = await self._store.requeue(_known(run))
        return {"run": _row(settled.run), "changed": settled.changed}


def _known(run: str) -> str:
    try:
        partition_of(run)
    except ValueError:
        raise UnknownRun(run) from None
    return run


def _row(run: Run) -> dict[str, Any]:
    return {
        "id": run.id,
        "service": run.service,
        "tenant": run.tenant,
        "status": run.status,
        "lane": run.lane,
        "pull": run.pull,
        "version": run.version,
        "retry": run.retry,
        "attempt": run.attempt,
        "max_attempts": run.max_attempts,
        "fence": run.fence,
        "seq": run.seq,
        "created_at": shapes.when(run.created),
        "started_at": None if run.started is None else shapes.when(run.started),
        "ended_at": None if run.ended is None else shapes.when(run.ended),
        "deadline": None if run.deadline is None else shapes.when(run.deadline),
        "worker": run.worker,
        "cancel_requested": run.cancel_requested,
        "has_checkpoint": run.has_checkpoint,
        "error": shapes.raw(run.error),
    }
