"""OpenAI's Responses API in background mode, on runs: so that the `openai` SDK does create, poll, stream and cancel.

`POST /v1/responses` with `background: true` becomes a run; the id of its response is that of the run. All other calls
of `/v1/responses`, and ids that aren't ours, are the services' like any: nothing durable was asked.
docs/openai-responses.md is its page.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from functools import wraps
from hashlib import sha256
from math import ceil
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import msgspec

from unjam.gateway import runs_shapes as shapes
from unjam.gateway.envelope import plain, wrap
from unjam.gateway.local import Answer, LocalExchange, Refused
from unjam.gateway.passing import pass_on
from unjam.gateway.response_events import ECHOED, STATUS, Json, Story, decoded, error_of, response
from unjam.gateway.response_streams import Stream, Tellings
from unjam.gateway.runs_api import AROUND, idempotency_key
from unjam.gateway.runs_errors import refused
from unjam.gateway.runs_follow import Held
from unjam.gateway.timers import NEVER
from unjam.runs.hub import Delivery
from unjam.runs.machine import CANCELLED, COMPLETED, EXPIRED, TERMINAL
from unjam.runs.model import NewRun, Run, partition_of
from unjam.runs.store.base import NotEnded, StoreAway, StoreError
from unjam.wire.dialects.errors import error_body

if TYPE_CHECKING:
    from unjam.core.service import Service
    from unjam.gateway.durable import Durable
    from unjam.gateway.paths import Paths
    from unjam.gateway.runs_api import RunsApi

PATH: Final = "/v1/responses"
_RUN, _RESPONSE = "run_", "resp_"

#: What of a request is not the agent's business; `stream` is, where the agent speaks this API itself.
NOT_PASSED: Final = frozenset({"background", "store", "stream"})

#: Key of the run's metadata that holds what its response shows of the request.
KEPT: Final = "openai_response"

#: Seconds that a cancel waits for the agent to have stopped: a little longer than the time between two signs of life.
CANCELLING: Final = 12.0

#: Bytes of a request's body: whether it is to be kept is known only when it is all there.
LARGEST: Final = 64 << 20

#: Responses that were deleted while they ran, until they have ended: so many are remembered, and looked at so often,
#: seconds.
DELETED: Final = 10_000
ENDING: Final = 0.5


def spoken(handler: Callable[..., Awaitable[Answer | None]]) -> Callable[..., Awaitable[Answer | None]]:
    """Errors as OpenAI's clients read them."""

    @wraps(handler)
    async def wrapper(*args: Any) -> Answer | None:
        exchange: LocalExchange = args[-1]
        try:
            return await handler(*args)
        except StoreError as error:
            problem = refused(error)
        except Refused as error:
            problem = error
        if exchange.started or exchange.gone:
            raise problem
        exchange.reason = problem.code
        media, body = error_body(
            "openai", problem.code, problem.message, exchange.request_id.decode("ascii"), problem.status
        )
        lines = problem.lines
        if problem.retry_after is not None:
            lines += b"retry-after: %d\r\n" % max(1, ceil(problem.retry_after))
        return Answer(problem.status, body, lines, media)

    return wrapper


class Responses:
    def __init__(self, durable: Durable, api: RunsApi) -> None:
        self._durable = durable
        self._api = api
        self._store = durable.store
        self._tellings = Tellings()
        self._deleted: OrderedDict[str, None] = OrderedDict()

    def add_to(self, paths: Paths) -> None:
        def largest() -> int:
            return min(self._durable.gateway.settings.max_body, LARGEST)

        paths.add("POST", PATH, self.create, largest, ours=lambda path: True)
        paths.add("GET", f"{PATH}/*", self.retrieve, ours=ours)
        paths.add("DELETE", f"{PATH}/*", self.delete, ours=ours)
        paths.add("POST", f"{PATH}/*/cancel", self.cancel, ours=ours)
        paths.add("GET", f"{PATH}/*/input_items", self.input_items, ours=ours)

    # -- create -----------------------------------------------------------------------------------------------------

    @spoken
    async def create(self, exchange: LocalExchange) -> Answer | None:
        content = exchange.content
        if not _in_background(content):
            pass_on(exchange, True)
            return None
        if len(content) > (most := self._durable.limits.max_input + AROUND):
            raise Refused(413, "payload_too_large", f"A request in the background may have {most} bytes.")
        shapes.check_media_type(exchange)
        asked = _request(content)
        if asked.get("store") is False:
            raise Refused(400, "bad_body", "background needs store: what isn't kept can't be retrieved.")
        model = asked.get("model")
        if not isinstance(model, str) or not model:
            raise Refused(400, "bad_body", "model is missing: the name of a service, or a model that one serves.")
        service, own_path = self._service(exchange, model)
        spec = self._api.service(exchange, service.name)
        limits = self._durable.limits
        run, _ = await self._api.record(
            exchange,
            spec,
            NewRun(
                service=service.name,
                input=_input(asked, own_path, limits.max_input),
                digest=sha256(exchange.content).digest(),
                tenant=exchange.tenant,
                key=idempotency_key(exchange),
                pull=spec.execute == "pull",
                retry=spec.retry,
                max_attempts=spec.max_attempts,
                deadline=time.time() + spec.timeout,
                metadata=_metadata(asked),
                max_queued=limits.max_queued,
                max_queued_tenant=spec.max_queued_tenant,
            ),
        )
        if asked.get("stream") is True:
            self._follow(exchange, run, -1)
            return None
        return await self._shown(run)  # of a repeated key it may have ended

    def _service(self, exchange: LocalExchange, model: str) -> tuple[Service, bool]:
        """The service for a model, and whether it is called at its own path: it is unless it serves this API. Raises
        `Refused`."""
        gateway = exchange.client.gateway
        found = gateway.router.match(exchange.head, model)
        if found is not None and any(match.model == model for match in found.spec.match):
            return found, False
        named = gateway.balancer.services.get(model)
        if named is not None:
            return named, True
        if found is not None:
            return found, False
        raise Refused(404, "model_not_found", "No service of this gateway has this name or serves this model.")

    # -- look -------------------------------------------------------------------------------------------------------

    @spoken
    async def retrieve(self, exchange: LocalExchange) -> Answer | None:
        query = exchange.query()
        run = await self._own(exchange)
        if query.get("stream", "").lower() in ("true", "1"):
            self._follow(exchange, run, shapes.whole(query.get("starting_after", "-1"), "starting_after", -1, 2**53))
            return None
        return await self._shown(run)

    async def _own(self, exchange: LocalExchange) -> Run:
        """Raises `Refused`, StoreError."""
        run_id = _run_id(exchange.head.path)
        if run_id in self._deleted:
            raise Refused(404, "not_found", "There is no such response, or not any more.")
        run = await self._store.get(run_id)
        caller = exchange.caller
        if run.tenant != exchange.tenant or (caller is not None and not caller.may_call(run.service)):
            raise Refused(404, "not_found", "There is no such response, or not any more.")
        exchange.service = run.service
        return run

    async def _shown(self, run: Run) -> Answer:
        """The response as it stands; its output only when it has ended. Raises StoreError."""
        if run.status not in TERMINAL:
            return _answer(_unfinished(run))

        async def make() -> bytes:
            return msgspec.json.encode(await self._ended(run))

        return Answer(200, await self._durable.bodies.get(("response", run.id, run.seq), make))

    async def _ended(self, run: Run) -> Json:
        """Raises StoreError."""
        story = story_of(run)
        after = -1
        while (batch := await self._store.read(run.id, after)).events:
            for event in batch.events:
                story.tell(event)
            after = batch.next - 1
            await asyncio.sleep(0)  # others are to have their turn
        if run.status == COMPLETED:
            return _completed_at(run, story.end(await self._store.result(run.id))[-1]["response"])
        error = None
        if run.status == EXPIRED:
            error = {"code": "expired", "message": "The run did not end before its deadline."}
        elif run.status != CANCELLED:
            error = error_of(None if run.error is None else decoded(bytes(run.error)))
        return _completed_at(run, story.summary(STATUS[run.status], error))

    def _follow(self, exchange: LocalExchange, run: Run, after: int) -> None:
        if not exchange.gone:
            Stream(self._durable, exchange, self._tellings, run.id, story_of(run), after).begin()

    @spoken
    async def input_items(self, exchange: LocalExchange) -> Answer | None:
        run = await self._own(exchange)
        kept = _kept(run).get("input")
        if kept is None:
            raise Refused(410, "input_not_kept", "The input of this response was too large to be shown again.")
        items = [_input_item(run, number, item) for number, item in enumerate(_items(kept))]
        if exchange.query().get("order", "desc") == "desc":
            items.reverse()
        ends = {"first_id": items[0]["id"], "last_id": items[-1]["id"]} if items else {"first_id": "", "last_id": ""}
        return _answer({"object": "list", "data": items, **ends, "has_more": False})

    # -- act --------------------------------------------------------------------------------------------------------

    @spoken
    async def cancel(self, exchange: LocalExchange) -> Answer | None:
        run = await self._own(exchange)
        run = (await self._store.cancel(run.id)).run
        self._durable.poke(run.id)
        if run.status in TERMINAL:
            return await self._shown(run)
        if not exchange.gone:
            _Cancelling(self, self._durable, exchange, run).begin()
        return None

    @spoken
    async def delete(self, exchange: LocalExchange) -> Answer | None:
        run = await self._own(exchange)
        if run.status not in TERMINAL:
            run = (await self._store.cancel(run.id)).run
            self._durable.poke(run.id)
        if run.status in TERMINAL:
            await self._store.delete(run.id)
        else:
            self._deleted[run.id] = None
            if len(self._deleted) > DELETED:
                self._deleted.popitem(last=False)
            self._durable.gateway.spawn(self._delete_ended(run.id))
        return _answer({"id": response_id(run), "object": "response", "deleted": True})

    async def _delete_ended(self, run: str) -> None:
        """Once its worker has stopped, as long as this gateway lives; after that retention deletes it."""
        while not self._durable.gateway.draining:
            await asyncio.sleep(ENDING)
            try:
                await self._store.delete(run)
            except (NotEnded, StoreAway):
                continue
            except StoreError:
                pass  # somebody else was first
            self._deleted.pop(run, None)
            return


class _Cancelling(Held):
    """A cancel that waits for the agent to have stopped."""

    __slots__ = ("_responses",)

    def __init__(self, responses: Responses, durable: Durable, exchange: LocalExchange, run: Run) -> None:
        super().__init__(durable, exchange, run.id, run.seq - 1)
        self._responses = responses

    def begin(self) -> None:
        super().begin()
        self.exchange.at(monotonic() + CANCELLING, self.rotate)

    def on_events(self, delivery: Delivery) -> bool:
        return True

    def on_end(self) -> None:
        self.rotate()

    def rotate(self) -> None:
        self.durable.hub.unfollow(self)
        self.exchange.at(NEVER, self.rotate)
        self.exchange.work(self._tell)

    @spoken
    async def _tell(self, exchange: LocalExchange) -> Answer:
        return await self._responses._shown(await self.durable.store.get(self.run))


def response_id(run: Run) -> str:
    return _RESPONSE + run.id.removeprefix(_RUN)


def story_of(run: Run) -> Story:
    return Story(response_id(run), run.created, _echo(run))


def ours(path: str) -> bool:
    """Whether it is the path of a response that may be one of ours."""
    if not path.startswith(f"{PATH}/{_RESPONSE}"):
        return False
    try:
        partition_of(_run_id(path))
    except ValueError:
        return False
    return True


def _run_id(path: str) -> str:
    return _RUN + path.split("/")[3].removeprefix(_RESPONSE)


class _Glance(msgspec.Struct):
    background: msgspec.Raw = msgspec.Raw(b"null")


_glance: Final = msgspec.json.Decoder(_Glance).decode


def _in_background(content: bytes) -> bool:
    """Of a body we can't read it isn't ours to judge. All else in it is passed over, for it may be large: as Python's
    own objects it would take many times its bytes, and the gateway's time."""
    try:
        return bytes(_glance(content).background) == b"true"
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False


def _request(content: bytes) -> Json:
    """Raises `Refused`."""
    try:
        found: Json = msgspec.json.decode(content, type=dict)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Refused(400, "bad_json", "The body is not JSON in UTF-8, or has numbers beyond all measure.") from None
    return found


def _input(asked: Json, own_path: bool, most: int) -> bytes:
    """The run's input. Raises `Refused`."""
    passed = {key: value for key, value in asked.items() if key not in NOT_PASSED}
    if not own_path and asked.get("stream") is True:
        passed["stream"] = True
    body = msgspec.json.encode(passed)
    if len(body) > most:
        raise Refused(413, "payload_too_large", f"The input of a run may have {most} bytes.")
    if own_path:
        return plain(body)
    headers = [("content-type", "application/json"), ("accept", "application/json, text/event-stream")]
    return wrap("POST", PATH, headers, body)


def _metadata(asked: Json) -> msgspec.Raw:
    """What the response shows of the request, as much as has room: the least dispensable first."""
    kept: Json = {"model": asked["model"]}
    room = shapes.MOST_METADATA - 1024
    for key in ("metadata", "input", "instructions", *sorted(ECHOED - {"metadata", "instructions", "model"})):
        value = asked.get(key)
        if value is not None:
            size = len(msgspec.json.encode(value)) + len(key) + 8
            if size <= room:
                room -= size
                kept[key] = value
    return msgspec.Raw(msgspec.json.encode({KEPT: kept}))


def _kept(run: Run) -> Json:
    found = {} if run.metadata is None else decoded(bytes(run.metadata))
    kept = found.get(KEPT) if isinstance(found, dict) else None
    return kept if isinstance(kept, dict) else {}


def _echo(run: Run) -> Json:
    """A run that no request of this API made is a response of its service."""
    return {"model": run.service, **{key: value for key, value in _kept(run).items() if key in ECHOED}}


def _unfinished(run: Run) -> Json:
    return response(response_id(run), run.created, _echo(run), STATUS[run.status])


def _completed_at(run: Run, found: Json) -> Json:
    return {**found, "completed_at": None if run.ended is None else int(run.ended)}


def _items(given: Any) -> list[Any]:
    return given if isinstance(given, list) else [{"role": "user", "content": given}]


def _input_item(run: Run, number: int, item: Any) -> Json:
    found = dict(item) if isinstance(item, dict) else {"role": "user", "content": str(item)}
    found.setdefault("id", f"msg_{run.id.removeprefix(_RUN)}_in{number}")
    found.setdefault("type", "message")
    if found["type"] == "message":
        found.setdefault("status", "completed")
        if isinstance(found.get("content"), str):
            found["content"] = [{"type": "input_text", "text": found["content"]}]
    return found


def _answer(found: Json) -> Answer:
    return Answer(200, msgspec.json.encode(found))
