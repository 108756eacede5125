"""The runs API for clients: create, look, follow, cancel, send input, list. docs/runs-api.md is its page.

A tenant sees its own runs only, on every call: any other is answered like one that doesn't exist. A key that may call
some services only sees the runs of these.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import TYPE_CHECKING, Final

from msgspec import UnsetType, structs

from unjam.gateway import runs_shapes as shapes
from unjam.gateway.envelope import plain
from unjam.gateway.local import Answer, Handler, LocalExchange, Refused
from unjam.gateway.runs_errors import missing, refused
from unjam.gateway.runs_follow import LIMIT, NOTHING, SIZE, EventStream, Outcome, Poll, batch_answer, run_answer
from unjam.runs.machine import TERMINAL
from unjam.runs.model import NewRun, Run, age, partition_of
from unjam.runs.store.base import Fenced, StoreError

if TYPE_CHECKING:
    from unjam.config.runs import ServiceRuns
    from unjam.gateway.auth import Tenant
    from unjam.gateway.durable import Durable
    from unjam.gateway.gateway import Gateway
    from unjam.gateway.paths import Paths

#: Bytes of a body beside its payload.
AROUND: Final = 65536
#: Runs on one page of a list, unless asked for fewer or more, and at most.
PAGE: Final = 50
MOST_PAGE: Final = 500
STATUSES: Final = frozenset({"queued", "running"} | TERMINAL)

_KEY = re.compile(rb"[!-~]{1,255}").fullmatch
_create = shapes.decoder(shapes.Create)
_input = shapes.decoder(shapes.Input)


def guarded(handler: Callable[..., Awaitable[Answer | None]]) -> Callable[..., Awaitable[Answer | None]]:
    """What the store raises is answered as its table says."""

    @wraps(handler)
    async def wrapper(*args: LocalExchange) -> Answer | None:
        try:
            return await handler(*args)
        except StoreError as error:
            raise refused(error) from error

    return wrapper


class RunsApi:
    def __init__(self, durable: Durable) -> None:
        self._durable = durable
        self._store = durable.store

    def add_to(self, paths: Paths) -> None:
        limits = self._durable
        calls: list[tuple[str, str, Handler, Callable[[], int]]] = [
            ("POST", "/v1/runs", self.create, lambda: limits.limits.max_input + AROUND),
            ("GET", "/v1/runs", self.list, lambda: AROUND),
            ("GET", "/v1/runs/*", self.get, lambda: AROUND),
            ("DELETE", "/v1/runs/*", self.delete, lambda: AROUND),
            ("GET", "/v1/runs/*/events", self.events, lambda: AROUND),
            ("POST", "/v1/runs/*/cancel", self.cancel, lambda: AROUND),
            ("POST", "/v1/runs/*/input", self.send, lambda: limits.limits.max_input + AROUND),
        ]
        for method, path, handler, most in calls:
            paths.add(method, path, handler, most)

    # -- create ----------------------------------------------------------------------------------------------------

    @guarded
    async def create(self, exchange: LocalExchange) -> Answer:
        asked = shapes.read(exchange, _create)
        new = self.new_run(asked, exchange.caller, idempotency_key(exchange))
        exchange.service = asked.service
        run, made = await self.keep(new)
        return shapes.json(shapes.view(run), 201 if made else 200, shapes.location(run))

    def new_run(self, asked: shapes.Create, caller: Tenant | None, key: str | None) -> NewRun:
        """The run that is asked for. `key`: of idempotency. Raises `Refused`."""
        spec = self.spec(asked.service, caller)
        limits = self._durable.limits
        given = plain(shapes.payload(asked.input, limits.max_input, "input"))
        metadata = None
        if not isinstance(asked.metadata, UnsetType) and bytes(asked.metadata) != b"null":
            if not shapes.is_object(asked.metadata):
                raise Refused(400, "bad_body", "The body does not fit: metadata is an object.")
            metadata = shapes.raw(shapes.payload(asked.metadata, shapes.MOST_METADATA, "metadata"))
        self.check_version(asked.service, asked.version)
        return NewRun(
            service=asked.service,
            input=given,
            digest=b"" if key is None else shapes.digest(asked),
            tenant="" if caller is None else caller.name,
            key=key,
            lane=asked.lane or "fast",
            pull=spec.execute == "pull" if asked.pull is None else asked.pull,
            version=asked.version,
            retry=asked.retry or spec.retry,
            max_attempts=asked.max_attempts or spec.max_attempts,
            deadline=time.time() + (asked.deadline_s or spec.timeout),
            metadata=metadata,
            max_queued=limits.max_queued,
            max_queued_tenant=spec.max_queued_tenant,
        )

    async def record(self, exchange: LocalExchange, spec: ServiceRuns, new: NewRun) -> tuple[Run, bool]:
        """As `keep`."""
        return await self.keep(new)

    async def keep(self, new: NewRun) -> tuple[Run, bool]:
        """Keep a new run. Raises `Refused` while the gateway is stopping, StoreError."""
        gateway = self._durable.gateway
        if gateway.draining:
            raise Refused(503, "draining", "This gateway is stopping; another one takes runs.", 1.0)
        if new.max_queued_tenant is None and new.max_queued is not None and gateway.settings.keyring.shared:
            # Nobody fills the queue for all the others.
            new = structs.replace(new, max_queued_tenant=(new.max_queued + 1) // 2)
        return await self._store.create(new)

    def service(self, exchange: LocalExchange, name: str) -> ServiceRuns:
        """The service a run is for. Raises `Refused`."""
        spec = self.spec(name, exchange.caller)
        exchange.service = name
        return spec

    def spec(self, name: str, caller: Tenant | None) -> ServiceRuns:
        """How a service takes runs. Raises `Refused` when it does not, or not of this caller."""
        check_caller(self._durable.gateway, caller, name)
        spec = self._durable.services.get(name)
        if spec is None:
            raise Refused(404, "unknown_service", "No service of this name takes runs.")
        return spec

    def check_version(self, service: str, version: str | None) -> None:
        """Raises `Refused` for one that doesn't exist."""
        found = self._durable.gateway.balancer.services.get(service)
        if version is not None and (found is None or all(each.name != version for each in found.versions)):
            raise Refused(404, "unknown_version", "The service has no version of this name.")

    # -- look ------------------------------------------------------------------------------------------------------

    async def own(self, exchange: LocalExchange) -> Run:
        """The run that the path names, if it is the caller's. Raises `Refused`, StoreError."""
        run = await self.run_of(exchange.head.path.split("/")[3], exchange.caller)
        exchange.service = run.service
        return run

    async def run_of(self, run_id: str, caller: Tenant | None) -> Run:
        """The run with this id, if it is the caller's. Raises `Refused`, StoreError."""
        try:
            partition_of(run_id)
        except ValueError:
            raise missing() from None
        run = await self._store.get(run_id)
        if caller is not None and not (run.tenant == caller.name and caller.may_call(run.service)):
            raise missing()
        if caller is None and run.tenant:
            raise missing()
        return run

    @guarded
    async def get(self, exchange: LocalExchange) -> Answer | None:
        query = exchange.query()
        wait = shapes.seconds(query, "wait", self._durable.limits.wait)
        with_result = query.get("result", "1") != "0"
        run = await self.own(exchange)
        if run.status in TERMINAL or not wait:
            return await run_answer(self._durable, run, with_result)
        if not exchange.gone:
            Outcome(self._durable, exchange, run.id, run.seq - 1).hold_for(wait, with_result)
        return None

    @guarded
    async def events(self, exchange: LocalExchange) -> Answer | None:
        query = exchange.query()
        last = exchange.head.known.get(b"last-event-id")
        if last is None:
            after = shapes.whole(query.get("after", "-1"), "after", -1, 2**53)
        else:
            after = shapes.whole(last.decode("latin-1"), "Last-Event-ID", -1, 2**53)
        wait = shapes.seconds(query, "wait", self._durable.limits.wait)
        limit = shapes.whole(query.get("limit", str(LIMIT)), "limit", 1, LIMIT)
        run = await self.own(exchange)
        accept = exchange.head.get(b"accept") or b""
        stream = b"text/event-stream" in accept.lower()
        batch = await self._store.read(run.id, after, limit, SIZE)
        if exchange.gone:
            return None
        if stream:
            if batch.ended and not batch.events and batch.next == after + 1:
                return NOTHING  # it has had all of it: an EventSource that hears this comes back no more
            EventStream(self._durable, exchange, run.id, after).start(batch)
            return None
        lost = batch.next < after + 1 or bool(batch.events and batch.events[0].seq > after + 1)
        if batch.events or batch.ended or lost:
            return batch_answer(batch.events, batch.next, batch.ended, lost)
        if not wait:
            return NOTHING
        Poll(self._durable, exchange, run.id, after).hold_for(wait, limit)
        return None

    @guarded
    async def list(self, exchange: LocalExchange) -> Answer:
        query = exchange.query()
        status = query.get("status")
        if status is not None and status not in STATUSES:
            raise Refused(400, "bad_query", f"status must be one of {', '.join(sorted(STATUSES))}.")
        limit = shapes.whole(query.get("limit", str(PAGE)), "limit", 1, MOST_PAGE)
        before = query.get("before")
        service = query.get("service")
        if service is not None:
            may_call(exchange, service)
        caller = exchange.caller
        services = [service] if service is not None or caller is None or not caller.services else caller.services
        runs: list[Run] = []
        try:
            for each in services:
                runs += await self._store.list(exchange.tenant, service=each, status=status, before=before, limit=limit)
        except ValueError:
            raise Refused(400, "bad_query", "before must be the id of a run.") from None
        if len(services) > 1:
            runs = sorted(runs, key=lambda run: age(run.id), reverse=True)[:limit]
        return shapes.json(shapes.RunList([*map(shapes.view, runs)], runs[-1].id if len(runs) == limit else None))

    # -- act -------------------------------------------------------------------------------------------------------

    @guarded
    async def cancel(self, exchange: LocalExchange) -> Answer:
        return shapes.json(shapes.view(await self.stop(await self.own(exchange))))

    @guarded
    async def delete(self, exchange: LocalExchange) -> Answer:
        await self._store.delete((await self.own(exchange)).id)
        return NOTHING

    @guarded
    async def send(self, exchange: LocalExchange) -> Answer:
        asked = shapes.read(exchange, _input)
        data = shapes.payload(asked.data, self._durable.limits.max_input, "data")
        return shapes.json(shapes.Sent(await self.give(await self.own(exchange), data)))

    async def stop(self, run: Run) -> Run:
        """Cancel it; the run as it is then. Raises StoreError."""
        settled = await self._store.cancel(run.id)
        self._durable.poke(run.id)
        return settled.run

    async def give(self, run: Run, data: bytes) -> int:
        """Send it an input; the input's number. Raises `Refused`, StoreError."""
        try:
            number = await self._store.send(run.id, data)
        except Fenced:
            raise Refused(409, "run_ended", "The run has ended; nobody would read the input.") from None
        self._durable.poke(run.id)
        return number


def may_call(exchange: LocalExchange, service: str) -> None:
    """Raises `Refused`."""
    check_caller(exchange.client.gateway, exchange.caller, service)


def check_caller(gateway: Gateway, caller: Tenant | None, service: str) -> None:
    """Raises `Refused`."""
    if caller is not None and not caller.may_call(service):
        gateway.stats.reject("forbidden")
        raise Refused(403, "forbidden", "This API key may not call this service.")


def idempotency_key(exchange: LocalExchange) -> str | None:
    """Raises `Refused`."""
    key = exchange.head.known.get(b"idempotency-key")
    if key is None:
        return None
    if _KEY(key) is None:
        raise Refused(400, "bad_idempotency_key", "Idempotency-Key is 1 to 255 visible ASCII characters.")
    return key.decode("ascii")
