"""The client, for asyncio. What is safe to repeat is repeated, at the next gateway, until `patience` is over."""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from unjam.client.errors import (
    ClientError,
    NotAccepted,
    RunCancelled,
    RunExpired,
    RunFailed,
    Unavailable,
)
from unjam.client.model import Event, Run
from unjam.client.sse import Message, Reader
from unjam.http.connection import Answer, BadAnswer, Stream
from unjam.http.gateways import PATIENCE, Backoff, Gateways, Unreachable, retry_after

#: Seconds that a call goes on trying.
TRYING: Final = 60.0
#: Seconds a question for a result is held; shorter than what boxes in between cut.
HELD: Final = 45.0
#: Seconds without a byte after which a stream counts as dead: gateways send a comment every ten.
SILENT: Final = 35.0
#: Seconds for which a stream has to be heard of to count as one that works, whether there are events or not.
STEADY: Final = 5.0
#: Status of answers that another attempt may turn into a good one.
_AGAIN: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
#: Those of them that don't tell whether the request was acted on.
_UNCERTAIN: Final = frozenset({500, 502, 504})
#: Codes of refusals that last, whatever the status says.
_NEVER: Final = frozenset({"inputs_full"})
_JSON: Final = ("content-type", "application/json")
_KEY: Final = re.compile(r"[!-~]{1,255}").fullmatch

T = TypeVar("T")


class _Runs(msgspec.Struct):
    runs: list[Run]


class _Sent(msgspec.Struct):
    n: int


class _Taken(msgspec.Struct):
    version: str


class _Said(msgspec.Struct):
    code: str = ""
    message: str = ""
    request_id: str | None = None


class _Error(msgspec.Struct):
    error: _Said


class AsyncClient:
    """`urls`: a gateway, or several that share a store. `key`: where the gateway has keys; `UNJAM_KEY` of the
    environment when not given. `ca`: file of certificates to trust in place of the system's. `patience`: seconds that a
    call goes on trying while no gateway answers. Not bound to a loop before the first call; `async with` or `aclose`
    closes its connections. ValueError for what is no URL.

    All calls raise `Unavailable` and `NotAccepted`."""

    def __init__(
        self, urls: str | Sequence[str], *, key: str | None = None, ca: str | None = None, patience: float = TRYING
    ) -> None:
        given = key if key is not None else os.environ.get("UNJAM_KEY") or None
        self._gateways = Gateways(urls, key=given, ca=ca, agent="unjam-client")
        self._patience = patience

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        self._gateways.close()

    async def submit(
        self,
        service: str,
        input: object = None,  # noqa: A002 — the API's name for it
        *,
        key: str | None = None,
        lane: str | None = None,
        version: str | None = None,
        retry: str | None = None,
        max_attempts: int | None = None,
        deadline: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        pull: bool | None = None,
    ) -> Run:
        """Make a run of the service with this input (JSON). `key`: idempotency key, so that the same run is submitted
        once however often that is tried; made here when not given, so that a lost answer makes no second run.
        `deadline`: seconds from now after which it expires. `retry`: `restart` where it may begin again after output
        was shown. TypeError for what is no JSON, ValueError for a `key` other than 1 to 255 visible ASCII characters.
        """
        if key is not None and not _KEY(key):
            raise ValueError(f"{key!r} can't be an idempotency key: give 1 to 255 visible ASCII characters")
        asked: dict[str, object] = {"service": service, "input": input}
        chosen = {
            "lane": lane,
            "version": version,
            "retry": retry,
            "max_attempts": max_attempts,
            "deadline_s": deadline,
            "metadata": metadata,
            "pull": pull,
        }
        asked |= {name: value for name, value in chosen.items() if value is not None}
        headers = (_JSON, ("idempotency-key", secrets.token_hex(16) if key is None else key))
        return _decode(await self._call("POST", "/v1/runs", msgspec.json.encode(asked), headers), Run)

    async def get(self, run: str | Run) -> Run:
        """How it stands, with its result when it has one."""
        return _decode(await self._call("GET", _path(run)), Run)

    async def list(self, *, service: str | None = None, status: str | None = None, limit: int = 50) -> list[Run]:
        """The newest first."""
        query = {"service": service, "status": status, "limit": limit}
        given = urlencode({name: value for name, value in query.items() if value is not None})
        return _decode(await self._call("GET", f"/v1/runs?{given}"), _Runs).runs

    async def result(self, run: str | Run, *, timeout: float | None = None) -> Any:
        """What the run returned, as soon as it has. Raises RunFailed, RunCancelled, RunExpired; TimeoutError after
        `timeout` seconds, when the run goes on all the same."""
        try:
            async with asyncio.timeout(timeout):
                return await self._result(run)
        except TimeoutError:
            if timeout is None:
                raise
            raise TimeoutError(f"{_path(run).rpartition('/')[2]} has not ended within {timeout:g} s") from None

    async def _result(self, run: str | Run) -> Any:
        backoff, clock = Backoff(most=2.0), asyncio.get_running_loop().time
        while True:
            path, asked = f"{_path(run)}?wait={HELD:g}", clock()
            found = _decode(await self._call("GET", path, timeout=HELD + PATIENCE), Run)
            if found.status == "completed":
                return found.result
            if found.status == "failed":
                raise RunFailed(found)
            if found.status == "cancelled":
                raise RunCancelled(found)
            if found.status == "expired":
                raise RunExpired(found)
            if clock() - asked < 1.0:  # not held: the gateway is stopping, say, and another is not there yet
                await asyncio.sleep(backoff.next())
            else:
                backoff.reset()

    async def cancel(self, run: str | Run) -> Run:
        """Wish for its end. A running one ends when its worker has heard of it."""
        return _decode(await self._call("POST", f"{_path(run)}/cancel"), Run)

    async def send(self, run: str | Run, data: object) -> int:
        """Give it an input; its number, from 1. Not repeated when the answer is lost, for then it would come twice:
        `Unavailable` has `uncertain` set."""
        body = msgspec.json.encode({"data": data})
        return _decode(await self._call("POST", f"{_path(run)}/input", body, (_JSON,), again=False), _Sent).n

    async def verdict(self, run: str | Run, word: Literal["good", "bad"], reason: str = "") -> str:
        """Say whether its result is good, once it has ended; what was said last counts. `reason`: up to 200 characters
        are kept. The version that it counts for; `NotAccepted` with `not_judged` where the service takes none."""
        body = msgspec.json.encode({"verdict": word, "reason": reason})
        return _decode(await self._call("POST", f"{_path(run)}/verdict", body, (_JSON,)), _Taken).version

    async def follow(self, run: str | Run, *, after: int = -1) -> AsyncGenerator[Event, None]:
        """Every event with a number above `after`, once and in order, to the last one, over any number of connections
        and gateways. `Unavailable` only after `patience` seconds in which no gateway let it follow: a run may say
        nothing for as long as it likes. An event of type `gap` tells that the log itself has lost events; `NotAccepted`
        with `log_expired` that it is gone."""
        backoff, clock = Backoff(most=5.0), asyncio.get_running_loop().time
        failing_since: float | None = None
        ended = False
        opened = heard = 0.0

        def hear() -> None:
            nonlocal heard
            heard = clock()

        while True:
            at_least, trouble = 0.0, "the stream ended early"
            try:
                origin, stream = await self._gateways.stream(
                    f"{_path(run)}/events", (("accept", "text/event-stream"), ("last-event-id", str(after)))
                )
            except Unreachable as error:
                trouble = str(error)
            else:
                try:
                    if stream.status == 204:
                        return
                    if stream.status != 200:
                        answer = await _whole(stream)
                        if answer.status not in _AGAIN:
                            raise _refused(answer)
                        at_least, trouble = retry_after(answer), _words(answer)
                    else:
                        opened = heard = clock()
                        async with aclosing(_events(stream, after, hear)) as events:
                            async for event in events:
                                failing_since = None
                                backoff.reset()
                                after = event.data["next"] - 1 if event.seq < 0 else event.seq
                                ended = event.last
                                yield event
                        if ended:
                            return
                except (OSError, TimeoutError, BadAnswer, ValueError) as error:
                    trouble = str(error) or f"it said nothing for {SILENT:g} s"
                finally:
                    stream.close()
                self._gateways.next(origin)
            if heard - opened >= STEADY:
                failing_since = None
                backoff.reset()
                opened = heard
            failing_since = clock() if failing_since is None else failing_since
            pause = backoff.next(at_least)
            if clock() + pause - failing_since > self._patience:
                raise Unavailable(f"{trouble}; given up after {self._patience:g} s")
            await asyncio.sleep(pause)

    async def _call(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Sequence[tuple[str, str]] = (),
        *,
        timeout: float = PATIENCE,
        again: bool = True,
    ) -> Answer:
        """Until it is answered well, or refused for good."""
        backoff, clock = Backoff(most=5.0), asyncio.get_running_loop().time
        failing_since: float | None = None
        while True:
            origin, at_least = self._gateways.origin, 0.0
            try:
                answer = await self._gateways.request(method, path, body, headers, timeout=timeout, again=again)
            except Unreachable as error:
                if error.sent and not again:
                    raise Unavailable(f"{error}; it may have come all the same", uncertain=True) from None
                trouble = str(error)
            else:
                if answer.status in (200, 201, 202, 204):
                    return answer
                refused = _refused(answer)
                if answer.status not in _AGAIN or refused.code in _NEVER:
                    raise refused
                if not again and (answer.status in _UNCERTAIN or refused.code == "store_away"):
                    raise Unavailable(f"{refused}; it may have come all the same", uncertain=True)
                at_least, trouble = retry_after(answer), f"{origin.url} {_words(answer)}"
                if answer.status != 429:
                    self._gateways.next(origin)
            # Time with an answer doesn't count: a held question may take longer than anybody's patience.
            failing_since = clock() if failing_since is None else failing_since
            pause = backoff.next(at_least)
            if clock() + pause - failing_since > self._patience:
                raise Unavailable(f"{trouble}; given up after {self._patience:g} s")
            await asyncio.sleep(pause)


def _path(run: str | Run) -> str:
    return f"/v1/runs/{quote(run if isinstance(run, str) else run.id, safe='')}"


async def _events(stream: Stream, after: int, hear: Callable[[], None]) -> AsyncGenerator[Event, None]:
    """Those with numbers above `after`. `hear` is called for whatever comes. Raises ValueError for what no gateway of
    ours says."""
    reader = Reader()
    while True:
        async with asyncio.timeout(SILENT):
            piece = await stream.read()
        hear()  # also of its end, if that was a clean one
        if not piece:
            return
        for message in reader.feed(piece):
            event = _event(message, after)
            if event.seq < 0:
                after = event.data["next"] - 1
            elif event.seq <= after:
                continue
            elif event.seq != after + 1:
                raise ValueError(f"event {event.seq} came after {after}")
            else:
                after = event.seq
            yield event


def _event(message: Message, after: int) -> Event:
    """Raises ValueError. What says that the log has lost something has the id before the one that it goes on with, or
    none; an agent's own event of that type comes in its place."""
    data = json.loads(message.data)
    seq = None if message.id is None else int(message.id)
    if (
        message.event == "gap"
        and isinstance(data, dict)
        and isinstance(data.get("next"), int)
        and seq in (None, data["next"] - 1)
        and seq != after + 1
    ):
        return Event(-1, message.event, data)
    if seq is None:
        raise ValueError("an event has no number")
    return Event(seq, message.event, data)


async def _whole(stream: Stream) -> Answer:
    async with asyncio.timeout(PATIENCE):
        return await stream.whole()


def _decode(answer: Answer, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(answer.body, type=kind)
    except msgspec.DecodeError as error:
        raise ClientError(f"the gateway's answer is not understood: {error}") from None


def _said(answer: Answer) -> _Said:
    try:
        return msgspec.json.decode(answer.body, type=_Error).error
    except msgspec.DecodeError:
        return _Said()


def _words(answer: Answer) -> str:
    said = _said(answer)
    return f"answered {answer.status}" + (f": {said.message[:300]}" if said.message else "")


def _refused(answer: Answer) -> NotAccepted:
    said = _said(answer)
    code = said.code or f"status_{answer.status}"
    return NotAccepted(answer.status, code, said.message[:1000] or "the gateway refuses it", said.request_id)
