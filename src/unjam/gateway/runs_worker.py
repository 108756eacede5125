"""The runs API for workers: claim, append, heartbeat, finish, release, and the inputs sent to a run.

With keys configured each call needs one of role `worker`; one that may call some services only reaches their runs, of
whatever tenant.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from unjam.gateway import runs_shapes as shapes
from unjam.gateway.local import Answer, Handler, LocalExchange, Refused
from unjam.gateway.runs_api import AROUND, guarded, may_call
from unjam.gateway.runs_errors import missing
from unjam.gateway.runs_follow import NOTHING
from unjam.runs.model import Claim, NewEvent, partition_of
from unjam.runs.store.base import Fenced, UnknownRun

if TYPE_CHECKING:
    from unjam.core.workers import Worker
    from unjam.gateway.durable import Durable
    from unjam.gateway.paths import Paths
    from unjam.gateway.workers import Ask
    from unjam.runs.ready import Hint

T = TypeVar("T")

#: Bytes of the events in one call, at least.
EVENTS: Final = 1 << 22
#: Seconds between two questions of what a worker may have that may not have all it asks for.
AGAIN: Final = 0.5
#: Seconds between two looks for inputs that other gateways took.
LOOK: Final = 1.0

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
        workers = durable.workers.hear(asked)
        durable.workers.holding(workers, 1)
        try:
            claim = await self._claimed(exchange, asked, workers)
        finally:
            durable.workers.holding(workers, -1)
        return NOTHING if claim is None else await self._hand_over(exchange, claim, workers)

    async def _claimed(
        self, exchange: LocalExchange, asked: shapes.ClaimRun, workers: Sequence[Worker]
    ) -> Claim | None:
        """A run that the worker may have, as soon as there is one; None once its patience is at an end."""
        durable = self._durable
        ready = durable.ready
        until = monotonic() + min(asked.wait, durable.limits.wait)
        refused = False
        hint: Hint | None = None  # that woke it, until it is known whether it was of use
        try:
            while not exchange.gone and not durable.gateway.draining:
                ask = durable.workers.ask(asked, workers)
                if ask is None:
                    if monotonic() > until + AGAIN or not await self._crossed(exchange, asked.services):
                        return None
                    self._check(exchange, asked.services)
                    continue
                # In place before the question, so that nothing falls between. Who may have nothing takes nobody's hint.
                waiter = ready.enter(dict.fromkeys(name for share in ask.shares for name in share.services), ask.kind)
                exchange.on_ended = waiter.stop
                try:
                    claim = await self._ask(asked, ask)
                    if hint is not None and (claim is None or claim.run.service != hint.service):
                        ready.in_vain(hint, ask.kind)
                    hint = None
                    if claim is not None:
                        ready.pass_on(claim.run.service)
                        return claim
                    if ask.refused and not refused:
                        refused = True
                        durable.workers.turned_away(workers)
                    left = until - monotonic()
                    if left <= 0:
                        return None
                    asked_for = len(asked.lanes) * len(asked.services)
                    restricted = sum(len(share.lanes) * len(share.services) for share in ask.shares) < asked_for
                    await waiter.wait(min(left, AGAIN) if restricted else left)
                    hint, waiter.hint = waiter.hint, None
                    self._check(exchange, asked.services)
                finally:
                    exchange.on_ended = None
                    ready.leave(waiter)
                    if waiter.hint is not None:  # it came while something else was found
                        ready.hand_on(waiter.hint)
            return None
        finally:
            if hint is not None:
                ready.hand_on(hint)

    async def _crossed(self, exchange: LocalExchange, services: Sequence[str]) -> bool:
        """Waits until another claim for these services has come to something. False: it has left."""
        crossed = self._durable.workers.crossed
        waiter = crossed.enter(services)
        exchange.on_ended = waiter.stop
        try:
            await waiter.wait(AGAIN)
        finally:
            exchange.on_ended = None
            crossed.leave(waiter)
        return not exchange.gone

    async def _ask(self, asked: shapes.ClaimRun, ask: Ask) -> Claim | None:
        claim = None
        ask.begin()
        try:
            for share in ask.shares:
                claim = await self._store.claim(
                    share.services,
                    asked.worker,
                    pull=True,
                    lanes=share.lanes,
                    lease=self._durable.limits.lease,
                    version=asked.version,
                    known=share.known,
                    pinned=share.pinned,
                )
                if claim is not None:
                    break
        finally:
            asked_for, freed = ask.end(claim)
            for service in asked_for:
                self._durable.workers.crossed.wake(service)
            for service in freed:
                self._durable.ready.pass_on(service)
        return claim

    async def _hand_over(self, exchange: LocalExchange, claim: Claim, workers: Sequence[Worker]) -> Answer | None:
        run = claim.run
        if exchange.gone:  # it left while the store was asked: nobody has to wait for the lease's end
            await self._store.release(run.id, run.fence)
            return None
        self._durable.workers.begin(claim, workers)
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
        self._durable.workers.sign(run, asked.fence)
        try:
            appended = await self._told(run, asked.fence, self._store.append(run, asked.fence, asked.batch, events))
        except ValueError as error:
            raise _bad_batch() from error
        return shapes.json(shapes.AppendedView(appended.first, appended.next, appended.cancel))

    @guarded
    async def heartbeat(self, exchange: LocalExchange) -> Answer:
        asked = shapes.read(exchange, _heartbeat)
        limits = self._durable.limits
        checkpoint = shapes.optional_payload(asked.checkpoint, limits.max_checkpoint, "checkpoint")
        run = await self.run_of(exchange)
        given = self._store.heartbeat(run, asked.fence, checkpoint, limits.lease, number=asked.number)
        beat = await self._told(run, asked.fence, given)
        if not self._durable.workers.sign(run, asked.fence):
            await self._durable.workers.adopt(run, asked.fence)
        return shapes.json(shapes.BeatView(beat.cancel, beat.inputs))

    @guarded
    async def finish(self, exchange: LocalExchange) -> Answer:
        asked = shapes.read(exchange, _finish)
        most = self._durable.limits.max_result
        result = shapes.optional_payload(asked.result, most, "result")
        error = shapes.optional_payload(asked.error, min(most, shapes.MOST_ERROR), "error")
        events = self._events(asked.events)
        run = await self.run_of(exchange)
        try:
            settled = await self._told(
                run,
                asked.fence,
                self._store.finish(
                    run, asked.fence, asked.status, result=result, error=error, batch=asked.batch, events=events
                ),
            )
        except ValueError as problem:
            raise _bad_batch() from problem
        exchange.service = settled.run.service
        self._durable.workers.ended(settled.run, finished=True)
        return shapes.json(shapes.SettledView(shapes.view(settled.run), settled.changed))

    @guarded
    async def release(self, exchange: LocalExchange) -> Answer:
        asked = shapes.read(exchange, _release)
        checkpoint = shapes.optional_payload(asked.checkpoint, self._durable.limits.max_checkpoint, "checkpoint")
        run = await self.run_of(exchange)
        settled = await self._told(run, asked.fence, self._store.release(run, asked.fence, checkpoint))
        self._durable.workers.ended(settled.run)
        return shapes.json(shapes.SettledView(shapes.view(settled.run), settled.changed))

    @guarded
    async def inputs(self, exchange: LocalExchange) -> Answer:
        query = exchange.query()
        after = shapes.whole(query.get("after", "0"), "after", 0, 2**53)
        wait = shapes.seconds(query, "wait", self._durable.limits.wait)
        run = await self.run_of(exchange)
        until = monotonic() + wait
        while True:
            # In place before the question, so that nothing falls between.
            waiter = self._durable.given.enter((run,))
            exchange.on_ended = waiter.stop
            try:
                found = await self._store.inputs(run, after)
                left = until - monotonic()
                if found or left <= 0 or exchange.gone or self._durable.gateway.draining:
                    return shapes.json(shapes.Inputs([shapes.InputView(n, msgspec.Raw(data)) for n, data in found]))
                # Those that come by other gateways are found by looking.
                await waiter.wait(min(left, LOOK))
                self._check(exchange)
            finally:
                exchange.on_ended = None
                self._durable.given.leave(waiter)

    def _check(self, exchange: LocalExchange, services: Sequence[str] = ()) -> None:
        """The keys may have changed while it waited. Raises `Refused`."""
        self._durable.renew(exchange)
        caller = exchange.caller
        if caller is not None and not caller.worker:
            raise Refused(403, "forbidden", "This call needs an API key with role: worker.")
        for service in services or ([] if exchange.service is None else [exchange.service]):
            may_call(exchange, service)

    async def _told(self, run: str, fence: int, call: Awaitable[T]) -> T:
        """What the store answers; who has lost the run has no slot for it any more."""
        try:
            return await call
        except (Fenced, UnknownRun):
            self._durable.workers.lost(run, fence)
            raise

    def _events(self, given: Sequence[shapes.EventIn]) -> list[NewEvent]:
        most = self._durable.limits.max_event
        return [NewEvent(event.type, shapes.payload(event.data, most, "event")) for event in given]


def _bad_batch() -> Refused:
    message = "Batches of one fence are numbered from 1 without a hole; only the last one may be sent again."
    return Refused(400, "bad_batch", message)
