"""A worker's line to gateways, over their worker API (`POST /v1/workers/claim` and what follows). Every call but the
claim gives the same answer when it is sent twice, so a reply that was lost costs nothing; a claim whose reply was lost
comes back to the queue when its lease ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Final, TypeVar
from urllib.parse import quote

import msgspec

from unjam.http.connection import Answer
from unjam.http.gateways import PATIENCE, Gateways, Unreachable, retry_after
from unjam.runs.model import Appended, Beat, NewEvent
from unjam.runs.store.base import LEASE, Fenced, StoreAway, TooLarge, UnknownRun
from unjam.worker.link import Job, Refused, Standing

#: Seconds beyond its `wait` that a claim may take; and that one may still come after nobody wants it.
LATE: Final = 10.0
LAST_WORDS: Final = 0.25
#: A plain sign of life is given up after this part of a lease, seconds at least: another connection may do.
PART: Final = 6
LEAST: Final = 1.0
#: Status of answers that another attempt may turn into a good one.
_AGAIN: Final = frozenset({408, 425, 429})
#: Status of refusals that are about who asks, or what is configured, and not about what was said.
_PASSING: Final = frozenset({401, 403, 404, 405})

log = logging.getLogger("unjam.worker")

T = TypeVar("T")
_NULL: Final = msgspec.Raw(b"null")
_JSON: Final = (("content-type", "application/json"),)


class _ClaimedRun(msgspec.Struct):
    id: str
    service: str
    attempt: int
    lane: str = "fast"
    version: str | None = None
    metadata: msgspec.Raw = _NULL


class _Claimed(msgspec.Struct):
    run: _ClaimedRun
    fence: int
    lease_s: float
    input: msgspec.Raw
    checkpoint: msgspec.Raw = _NULL


class _Given(msgspec.Struct):
    n: int
    data: msgspec.Raw


class _Inputs(msgspec.Struct):
    inputs: list[_Given]


class _Said(msgspec.Struct):
    code: str = ""
    message: str = ""


class _Error(msgspec.Struct):
    error: _Said


class HttpLink:
    """`urls`: gateways that share a store, or the one gateway of an embedded store. `standing`: told with each claim,
    if anything is. `key`: of the role worker, where the gateway has keys. `ca`: file of certificates to trust in place
    of the system's. ValueError for what is no URL."""

    def __init__(
        self,
        urls: str | Sequence[str],
        services: Sequence[str],
        worker: str,
        *,
        lanes: Sequence[str] | None = None,
        key: str | None = None,
        ca: str | None = None,
        standing: Standing | None = None,
    ) -> None:
        self._gateways = Gateways(urls, key=key, ca=ca, agent="unjam-worker")
        self._ask: dict[str, Any] = {"services": list(services), "worker": worker}
        if lanes is not None:
            self._ask["lanes"] = list(lanes)
        self._standing = standing
        self._claiming: asyncio.Task[Answer] | None = None
        self._enough = False
        self._lease = LEASE

    async def open(self) -> None:
        for url in self._gateways.bare:
            log.warning(f"the key crosses the network to {url} without TLS")

    async def close(self) -> None:
        self._gateways.close()

    def interrupt(self) -> None:
        self._enough = True
        if self._claiming is not None:
            asyncio.get_running_loop().call_later(LAST_WORDS, self._claiming.cancel)

    async def claim(self, wait: float) -> Job | None:
        if self._enough:
            return None
        body = msgspec.json.encode({**self._ask, **self._told(), "wait": wait})
        origin, clock = self._gateways.origin, asyncio.get_running_loop().time
        began = clock()
        self._claiming = asyncio.create_task(self._send("/v1/workers/claim", body, wait + LATE))
        try:
            await asyncio.wait((self._claiming,))
            if self._claiming.cancelled():
                return None
            answer = self._claiming.result()
        finally:
            self._claiming.cancel()
            self._claiming = None
        if answer.status == 204:
            if clock() - began < wait / 2:
                # It doesn't hold claims any more: it is about to leave.
                self._gateways.next(origin)
            return None
        claimed = _decode(answer, _Claimed)
        run = claimed.run
        self._lease = claimed.lease_s
        return Job(
            run=run.id,
            service=run.service,
            lane=run.lane,
            attempt=run.attempt,
            fence=claimed.fence,
            input=bytes(claimed.input),
            checkpoint=_present(claimed.checkpoint),
            lease=claimed.lease_s,
            version=run.version,
            metadata=_present(run.metadata),
        )

    def _told(self) -> dict[str, Any]:
        standing = self._standing
        if standing is None:
            return {}
        told: dict[str, Any] = {"slots": standing.slots, "running": standing.running}
        if standing.version is not None:
            told["version"] = standing.version
        if (load := standing.load()) is not None:
            told["load"] = load
        return told

    async def append(self, run: str, fence: int, batch: int, events: Sequence[NewEvent]) -> Appended:
        body = {"fence": fence, "batch": batch, "events": _events(events)}
        return _decode(await self._call(run, "append", body), Appended)

    async def heartbeat(self, run: str, fence: int, checkpoint: bytes | None, number: int = 0) -> Beat:
        body: dict[str, Any] = {"fence": fence}
        if checkpoint is not None:
            body["checkpoint"], body["number"] = msgspec.Raw(checkpoint), number
            return _decode(await self._call(run, "heartbeat", body), Beat)
        patience = max(LEAST, min(PATIENCE, self._lease / PART))
        return _decode(await self._call(run, "heartbeat", body, patience), Beat)

    async def finish(
        self,
        run: str,
        fence: int,
        status: str,
        result: bytes | None,
        error: bytes | None,
        batch: int | None,
        events: Sequence[NewEvent],
    ) -> None:
        body: dict[str, Any] = {"fence": fence, "status": status}
        if result is not None:
            body["result"] = msgspec.Raw(result)
        if error is not None:
            body["error"] = msgspec.Raw(error)
        if events:
            body["batch"], body["events"] = batch, _events(events)
        await self._call(run, "finish", body)

    async def release(self, run: str, fence: int, checkpoint: bytes | None) -> None:
        body: dict[str, Any] = {"fence": fence}
        if checkpoint is not None:
            body["checkpoint"] = msgspec.Raw(checkpoint)
        await self._call(run, "release", body)

    async def inputs(self, run: str, after: int, wait: float = 0.0) -> list[tuple[int, bytes]]:
        held = f"&wait={wait:g}" if wait else ""
        path = f"/v1/runs/{quote(run, safe='')}/inputs?after={after}{held}"
        answer = _good(await self._attempt("GET", path, b"", (), wait + LATE if wait else None))
        return [(each.n, bytes(each.data)) for each in _decode(answer, _Inputs).inputs]

    async def _call(self, run: str, verb: str, body: dict[str, Any], patience: float | None = None) -> Answer:
        return await self._send(f"/v1/runs/{quote(run, safe='')}/{verb}", msgspec.json.encode(body), patience)

    async def _send(self, path: str, body: bytes, timeout: float | None) -> Answer:
        return _good(await self._attempt("POST", path, body, _JSON, timeout))

    async def _attempt(
        self, method: str, path: str, body: bytes, headers: Sequence[tuple[str, str]], timeout: float | None
    ) -> Answer:
        origin = self._gateways.origin
        try:
            answer = await self._gateways.request(method, path, body, headers, timeout=timeout or PATIENCE)
        except Unreachable as error:
            raise StoreAway(str(error), 0.0) from None
        if answer.status >= 500:
            self._gateways.next(origin)
        return answer


def _good(answer: Answer) -> Answer:
    """Raises what the answer says is wrong."""
    status = answer.status
    if status in (200, 201, 204):
        return answer
    try:
        said = msgspec.json.decode(answer.body, type=_Error).error
    except msgspec.DecodeError:
        said = _Said()
    words = f"the gateway answered {status}" + (f": {said.message[:300].rstrip('.')}" if said.message else "")
    if status in _AGAIN or status >= 500:
        raise StoreAway(words, retry_after(answer))
    if said.code == Fenced.code:
        raise Fenced(words)
    if said.code == UnknownRun.code:
        raise UnknownRun(words)
    if status == 413:
        raise TooLarge(words)
    raise Refused(said.code or f"status_{status}", words, passing=not said.code or status in _PASSING)


def _decode(answer: Answer, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(answer.body, type=kind)
    except msgspec.DecodeError as error:
        raise StoreAway(f"the gateway's answer is not understood: {error}", 0.0) from None


def _present(raw: msgspec.Raw) -> bytes | None:
    return None if bytes(raw) == b"null" else bytes(raw)


def _events(events: Sequence[NewEvent]) -> list[dict[str, Any]]:
    return [{"type": event.type, "data": msgspec.Raw(event.data)} for event in events]
