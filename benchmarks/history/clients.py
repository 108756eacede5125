"""Clients of runs that write down what they were told: create, follow over any number of connections, cancel, look.

They speak plain HTTP and trust nothing: what a reader records is what came over the wire, not what a client library
made of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Sequence
from random import Random
from time import monotonic
from typing import Any, Final

import msgspec

from unjam.client.sse import Reader
from unjam.http.connection import Answer, BadAnswer
from unjam.http.gateways import Gateways, Unreachable

from .checker import TERMINAL
from .records import Created, Got, Looked, Mark, Opened, Record
from .worker import STEP

#: Seconds for an answer to a plain call, and for which a follower hears nothing before it comes back.
PATIENCE: Final = 6.0
SILENT: Final = 25.0
#: Seconds a long-poll is held.
HELD: Final = 5.0
_JSON: Final = (("content-type", "application/json"),)

_mark = msgspec.json.Decoder(Mark).decode


class Unexpected(Exception):
    """An answer that a client of ours should never get, in words."""


class Clients:
    """`history`: all of them write there. `steps`: of the longest run. `push`: some are pushed. `closed`: set when no
    new runs are made. `count`: of creations acknowledged."""

    def __init__(self, urls: Sequence[str], history: list[Record], seed: int, steps: int, push: bool) -> None:
        self.urls = list(urls)
        self.history = history
        self.closed = asyncio.Event()
        self.count = 0
        self._seed = seed
        self._steps = steps
        self._push = push

    async def live(self, name: str) -> None:
        """Make runs and follow each to its end, one after another, until `closed`."""
        rng = Random(f"{self._seed}:{name}")
        number = 0
        while not self.closed.is_set():
            number += 1
            await self._one(f"{name}-{number}", rng)

    async def _one(self, key: str, rng: Random) -> None:
        gateways = self._gateways(rng)
        try:
            body = self._body(rng)
            run = await self._create(gateways, key, body, rng)
            if run is None:
                return
            if rng.random() < 0.1:
                # The same again, as if the answer had been lost.
                await self._create(gateways, key, body, rng)
            async with asyncio.TaskGroup() as group:
                group.create_task(self.follow(run, f"{key}/sse", rng))
                if rng.random() < 0.4:
                    group.create_task(self.poll(run, f"{key}/poll", rng))
                if rng.random() < 0.1:
                    group.create_task(self._cancel(gateways, run, rng.random()))
        finally:
            gateways.close()

    def _body(self, rng: Random) -> dict[str, Any]:
        push = self._push and rng.random() < 0.25
        given: dict[str, Any] = {"steps": rng.randint(1, self._steps), "pause": rng.choice((0.0, 0.02, 0.05, 0.15))}
        if not push:
            given["save"] = rng.choice((0, 1, 2, 3))
            given["fail"] = rng.random() < 0.05
        body: dict[str, Any] = {
            "service": "pushed" if push else "pulled",
            "input": given,
            "retry": "restart" if rng.random() < 0.8 else "fail",
            "max_attempts": 2 if rng.random() < 0.1 else 50,
            "lane": rng.choice(("fast", "heavy")),
        }
        if rng.random() < 0.03:
            body["deadline_s"] = 1.0
        return body

    async def _create(self, gateways: Gateways, key: str, body: dict[str, Any], rng: Random) -> str | None:
        """Until it is acknowledged; None if it never was before `closed`."""
        begin, steps = monotonic(), body["input"]["steps"]
        data = json.dumps(body).encode()
        while True:
            answer = await self._ask(gateways, "POST", "/v1/runs", data, (*_JSON, ("idempotency-key", key)))
            if answer is not None and answer.status in (200, 201):
                run = str(json.loads(answer.body)["id"])
                self.history.append(Created(key.rpartition("-")[0], key, run, begin, monotonic(), steps))
                self.count += 1
                return run
            if answer is not None and answer.status != 429 and answer.status < 500:
                raise Unexpected(f"create: {answer.status} {answer.body[:300]!r}")
            if self.closed.is_set():
                self.history.append(Created(key.rpartition("-")[0], key, None, begin, None, steps))
                return None
            await asyncio.sleep(0.05 + rng.random() * 0.2)

    async def _cancel(self, gateways: Gateways, run: str, after: float) -> None:
        """Once: whether it is heard or not, the run ends."""
        await asyncio.sleep(after)
        await self._ask(gateways, "POST", f"/v1/runs/{run}/cancel", b"", ())

    # -- readers ---------------------------------------------------------------------------------------------

    async def follow(self, run: str, name: str, rng: Random) -> None:
        """By server-sent events; the connection is dropped at times, and the next one goes to another gateway."""
        gateways = self._gateways(rng)
        last = -1
        try:
            while True:
                self.history.append(Opened(name, run, last, monotonic()))
                drop = last + rng.randint(1, 8) if rng.random() < 0.3 else None
                given = (("accept", "text/event-stream"), ("last-event-id", str(last)))
                with contextlib.suppress(Unreachable, OSError, TimeoutError, BadAnswer, ValueError):
                    origin, stream = await gateways.stream(f"/v1/runs/{run}/events", given, timeout=PATIENCE)
                    try:
                        if stream.status in (204, 404, 410):
                            return
                        reader = Reader()
                        while stream.status == 200:
                            async with asyncio.timeout(SILENT):
                                piece = await stream.read()
                            if not piece:
                                break
                            for message in reader.feed(piece):
                                seq = -1 if message.id is None else int(message.id)
                                self._got(name, run, seq, message.event, message.data)
                                last = max(last, seq)
                                if message.event in TERMINAL:
                                    return
                            if drop is not None and last >= drop:
                                break
                    finally:
                        stream.close()
                        gateways.next(origin)
                await asyncio.sleep(0.02 + rng.random() * 0.1)
        finally:
            gateways.close()

    async def poll(self, run: str, name: str, rng: Random | None = None, after: int = -1) -> None:
        """By long-polls, of a few events at a time."""
        rng = rng or Random(name)
        gateways = self._gateways(rng)
        last = after
        try:
            while True:
                self.history.append(Opened(name, run, last, monotonic()))
                path = f"/v1/runs/{run}/events?after={last}&wait={HELD:g}&limit={rng.randint(1, 200)}"
                answer = await self._ask(gateways, "GET", path, b"", (), HELD + PATIENCE)
                if answer is not None and answer.status == 200:
                    batch = json.loads(answer.body)
                    if batch.get("gap"):
                        self._got(name, run, -1, "gap", "{}")
                        last = max(last, batch["next"] - 1)
                    for event in batch["events"]:
                        self._got(name, run, event["seq"], event["type"], json.dumps(event["data"]))
                        last = max(last, event["seq"])
                    if batch["ended"]:
                        return
                elif answer is not None and answer.status in (404, 410):
                    return
                elif answer is None or answer.status != 204:
                    await asyncio.sleep(0.05 + rng.random() * 0.2)
        finally:
            gateways.close()

    def _got(self, reader: str, run: str, seq: int, kind: str, data: str) -> None:
        if kind == STEP:
            self.history.append(Got(reader, run, seq, kind, monotonic(), mark=_mark(data)))
        else:
            same = json.dumps(json.loads(data), sort_keys=True)
            self.history.append(Got(reader, run, seq, kind, monotonic(), data=same))

    # -- when all is over ------------------------------------------------------------------------------------

    async def look(self, run: str, gateways: Gateways) -> None:
        """How it stands in the end; and its log, read once more from the beginning. Raises `Unexpected` when nobody
        answers."""
        answer = await self._insist(gateways, f"/v1/runs/{run}")
        found: Any = {} if answer.status == 404 else json.loads(answer.body)
        error, result = found.get("error") or {}, found.get("result") or {}
        fence = result.get("fence") if isinstance(result, dict) else None
        self.history.append(Looked(run, found.get("status", ""), monotonic(), error.get("code", ""), fence))
        if found.get("status") in TERMINAL.values():
            await self.poll(run, f"{run}/last")

    async def count_of(self, status: str, gateways: Gateways) -> int:
        """Runs in that state, as a list shows them; no more than 500."""
        answer = await self._insist(gateways, f"/v1/runs?status={status}&limit=500")
        return len(json.loads(answer.body)["runs"])

    async def _insist(self, gateways: Gateways, path: str) -> Answer:
        for _ in range(100):
            answer = await self._ask(gateways, "GET", path, b"", ())
            if answer is not None and answer.status in (200, 404):
                return answer
            await asyncio.sleep(0.1)
        raise Unexpected(f"{path}: no answer, at the end, when nothing is killed any more")

    def _gateways(self, rng: Random) -> Gateways:
        urls = list(self.urls)
        rng.shuffle(urls)
        return Gateways(urls, agent="history")

    async def _ask(
        self,
        gateways: Gateways,
        method: str,
        path: str,
        body: bytes,
        headers: Sequence[tuple[str, str]],
        timeout: float = PATIENCE,
    ) -> Answer | None:
        """None: no answer."""
        origin = gateways.origin
        try:
            answer = await gateways.request(method, path, body, headers, timeout=timeout)
        except Unreachable:
            return None
        if answer.status >= 500:
            gateways.next(origin)
        return answer
