"""The runs API for workers: claim, append, heartbeat, finish, release, and the inputs sent to a run.

With keys configured each call needs one of role `worker`; one that may call some services only reaches their runs, of
whatever tenant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Final

import msgspec

from unjam.gateway import runs_shapes as shapes
from unjam.gateway.local import Answer, Handler, LocalExchange, Refused
from unjam.gateway.runs_api import AROUND, guarded, may_call
from unjam.gateway.runs_errors import missing
from unjam.gateway.runs_follow import NOTHING
from unjam.runs.model import Claim, NewEvent, partition_of

if TYPE_CHECKING:
    from unjam.gateway.durable import Durable
    from unjam.gateway.paths import Paths

#: Bytes of the events in one call, at least.
EVENTS: Final = 1 << 22

_claim = shapes.decoder(shapes.ClaimRun)
_append = shapes.decoder(shapes.Append)
_heartbeat = shapes.decoder(shapes.Heartbeat)
_finish = shapes.decoder(shapes.Finish)
_release = shapes.decoder(shapes.Release)


class WorkerApi:
    def __init__(self, durable: Durable) -> None:
        self._durable = durable
        self._store = durable.store

    def add_to(self, paths: Paths) -> None:
        durable = self._durable

        def events() -> int:
            return max(EVENTS, durable.limits.max_event + AROUND)

        calls: list[tuple[str, str, Handler, Callable[[], int]]] = [
            ("POST", "/v1/workers/claim", self.claim, lambda: AROUND),
            ("POST", "/v1/runs/*/append", self.append, events),
            ("POST", "/v1/runs/*/heartbeat", self.heartbeat, lambda: durable.limits.max_checkpoint + AROUND),
            ("POST", "/v1/runs/*/finish", self.finish, lambda: durable.limits.max_result + events()),
            ("POST", "/v1/runs/*/release", self.release, lambda: durable.limits.max_checkpoint + AROUND),
            ("GET", "/v1/runs/*/inputs", self.inputs, lambda: AROUND),
        ]
        for method, path, handler, most in calls:
            paths.add(method, path, handler, most, worker=True)

    async def run_of(self, exchange: LocalExchange) -> str:
        """The id of the run that the path names, if this worker may reach it. Raises `Refused`, StoreError."""
        run = exchange.head.path.split("/")[3]
        try:
            partition_of(run)
        except ValueError:
            raise missing() from None
        caller = exchange.caller
        if caller is not None and caller.services:  # others may reach all: not worth a question at every append
            found = await self._store.get(run)
            if not caller.may_call(found.service):
                raise missing()
            exchange.service = found.service
        return run

    @guarded
    async def claim(self, exchange: LocalExchange) -> Answer | None:
        asked = shapes.read(exchange, _claim)
        durable = self._durable
        for service in asked.services:
            may_call(exchange, service)
            if service not in durable.services:
                raise Refused(404, "unknown_service", "No service of this name takes runs.")
        if len(asked.services) == 1:
            exchange.service = asked.services[0]
        until = monotonic() + min(asked.wait, durable.limits.wait)
        waiter = None
        try:
            while not exchange.gone and not durable.gateway.draining:
                if until > monotonic():
                    # In place before the question, so that nothing falls between.
                    waiter = durable.ready.enter(asked.services)
                    exchange.on_ended = waiter.stop
                claim = await self._store.claim(
                    asked.services, asked.worker, pull=True, lanes=asked.lanes, lease=durable.limits.lease
                )
                if claim is not None:
                    durable.ready.pass_on(claim.run.service)
                    return await self._hand_over(exchange, claim)
                if waiter is None or until <= monotonic():
                    break
                await waiter.wait(until - monotonic())
                durable.ready.leave(waiter)
                waiter = None
        finally:
            exchange.on_ended = None
            if waiter is not None:
                durable.ready.leave(waiter)
        return NOTHING

    async def _hand_over(self, exchange: LocalExchange, claim: Claim) -> Answer | None:
        run = claim.run
        if exchange.gone:  # it left while the store was asked: nobody has to wait for the lease's end
            await self._store.release(run.id, run.fence)
            return None
        exchange.service = run.service
        return shapes.json(
            shapes.Claimed(
                shapes.view(run),
                run.fence,
                shapes.raw(claim.input),
                shapes.raw(claim.checkpoint),
                self._durable.limits.lease,
            )
        )

    @guarded
    async def append(self, exchange: LocalExchange) -> Answer:
        asked = shapes.read(exchange, _append)
        events = self._events(asked.events)
        run = await self.run_of(exchange)
        try:
            appended = await self._store.append(run, asked.fence, asked.batch, events)
        except ValueError as error:
            raise _bad_batch() from error
        return shapes.json(shapes.AppendedView(appended.first, appended.next, appended.cancel))

    @guarded
    async def heartbeat(self, exchange: LocalExchange) -> Answer:
        asked = shapes.read(exchange, _heartbeat)
        limits = self._durable.limits
        checkpoint = shapes.optional_payload(asked.checkpoint, limits.max_checkpoint, "checkpoint")
        run = await self.run_of(exchange)
        beat = await self._store.heartbeat(run, asked.fence, checkpoint, limits.lease)
        return shapes.json(shapes.BeatView(beat.cancel, beat.inputs))

    @guarded
    async def finish(self, exchange: LocalExchange) -> Answer:
        asked = shapes.read(exchange, _finish)
        most = self._durable.limits.max_result
        result = shapes.optional_payload(asked.result, most, "result")
        error = shapes.optional_payload(asked.error, most, "error")
        events = self._events(asked.events)
        run = await self.run_of(exchange)
        try:
            settled = await self._store.finish(
                run, asked.fence, asked.status, result=result, error=error, batch=asked.batch, events=events
            )
        except ValueError as problem:
            raise _bad_batch() from problem
        exchange.service = settled.run.service
        return shapes.json(shapes.SettledView(shapes.view(settled.run), settled.changed))

    @guarded
    async def release(self, exchange: LocalExchange) -> Answer:
        asked = shapes.read(exchange, _release)
        checkpoint = shapes.optional_payload(asked.checkpoint, self._durable.limits.max_checkpoint, "checkpoint")
        run = await self.run_of(exchange)
        settled = await self._store.release(run, asked.fence, checkpoint)
        return shapes.json(shapes.SettledView(shapes.view(settled.run), settled.changed))

    @guarded
    async def inputs(self, exchange: LocalExchange) -> Answer:
        after = shapes.whole(exchange.query().get("after", "0"), "after", 0, 2**53)
        run = await self.run_of(exchange)
        found = await self._store.inputs(run, after)
        return shapes.json(shapes.Inputs([shapes.InputView(n, msgspec.Raw(data)) for n, data in found]))

    def _events(self, given: Sequence[shapes.EventIn]) -> list[NewEvent]:
        most = self._durable.limits.max_event
        return [NewEvent(event.type, shapes.payload(event.data, most, "event")) for event in given]


def _bad_batch() -> Refused:
    message = "Batches of one fence are numbered from 1 without a hole; only the last one may be sent again."
    return Refused(400, "bad_batch", message)
