"""The gateway's API for workers and clients, in a few lines over any store: what the SDKs are tested with before and
beside the real one. `lose`: how many of the next answers to a path are lost on the way, though the work was done."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec

from unjam.runs.machine import TERMINAL
from unjam.runs.model import NewEvent, NewRun, Run
from unjam.runs.store.base import (
    Fenced,
    KeyReused,
    LogExpired,
    QueueFull,
    Store,
    StoreAway,
    StoreError,
    TooLarge,
    UnknownRun,
)

STATUS = {Fenced: 409, UnknownRun: 404, KeyReused: 422, QueueFull: 429, LogExpired: 410, TooLarge: 413, StoreAway: 503}
POLL = 0.01


class Api:
    def __init__(self, store: Store, lease: float = 30.0) -> None:
        self.store = store
        self.lease = lease
        self.port = 0
        self.asked: list[tuple[str, str, dict[str, str], Any]] = []
        self.lose: Counter[str] = Counter()
        self.refuse: dict[str, tuple[int, str]] = {}
        self.most_event = 256 << 10
        self.most_result = 1 << 20
        #: Streams end, cut, after so many events each.
        self.cut_after: int | None = None
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def calls(self, end: str) -> list[tuple[str, str, dict[str, str], Any]]:
        return [call for call in self.asked if urlsplit(call[1]).path.endswith(end)]

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                first, *lines = head.split("\r\n")[:-2]
                method, target, _ = first.split()
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                self.asked.append((method, target, headers, msgspec.json.decode(body) if body else None))
                await self._one(writer, reader, method, target, headers, body)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._writers.discard(writer)
            self._tasks.discard(task)
            writer.transport.abort()

    async def _one(
        self, writer: Any, reader: Any, method: str, target: str, headers: dict[str, str], body: bytes
    ) -> None:
        path = urlsplit(target).path
        last = path.rsplit("/", 1)[-1]
        more = ""
        if last in self.refuse:
            status, code = self.refuse[last]
            answer: Any = {"error": {"code": code, "message": f"refused: {code}"}}
        else:
            try:
                if last == "events" and "text/event-stream" in headers.get("accept", ""):
                    await self._stream(writer, path.split("/")[3], headers)
                    return
                status, answer = await self._do(method, target, headers, body, reader)
            except StoreError as error:
                status = STATUS[type(error)]
                answer = {"error": {"code": error.code, "message": str(error), "request_id": "r"}}
                if status == 503:
                    more = "retry-after: 0\r\n"
        if self.lose[last] > 0:
            self.lose[last] -= 1
            writer.transport.abort()
            return
        data = b"" if answer is None else msgspec.json.encode(answer)
        more += f"content-type: application/json\r\ncontent-length: {len(data)}\r\n"
        writer.write(f"HTTP/1.1 {status} X\r\n{more}\r\n".encode() + data)
        await writer.drain()

    async def _do(self, method: str, target: str, headers: dict[str, str], body: bytes, reader: Any) -> tuple[int, Any]:
        store, parts = self.store, urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        asked = msgspec.json.decode(body, type=dict[str, msgspec.Raw]) if body else {}
        words = {name: msgspec.json.decode(raw) for name, raw in asked.items()}
        _, _, kind, *rest = parts.path.split("/")
        if kind == "workers":
            return await self._claim(words, reader)
        if not rest and method == "POST":
            new = NewRun(
                service=words["service"],
                input=bytes(asked["input"]),
                digest=hashlib.sha256(body).digest(),
                key=headers.get("idempotency-key"),
                pull=words.get("pull", False),
                lane=words.get("lane", "fast"),
                retry=words.get("retry", "fail"),
                metadata=asked.get("metadata"),
            )
            run, made = await store.create(new)
            return (201 if made else 200), shown(run)
        if not rest:
            runs = await store.list(None, service=query.get("service"), status=query.get("status"))
            return 200, {"runs": [shown(run) for run in runs]}
        run_id, verb = rest[0], rest[1] if len(rest) > 1 else ""
        match verb:
            case "":
                run = await self._held(run_id, float(query.get("wait", 0)))
                answer = shown(run)
                if run.status == "completed":
                    result = await store.result(run_id)
                    answer["result"] = msgspec.Raw(result or b"null")
                return 200, answer
            case "append":
                events = news(asked["events"])
                if any(len(event.data) > self.most_event for event in events):
                    raise TooLarge("an event is above the limit")
                added = await store.append(run_id, words["fence"], words["batch"], events)
                return 200, {"first": added.first, "next": added.next, "cancel": added.cancel}
            case "heartbeat":
                checkpoint, number = raw(asked.get("checkpoint")), words.get("number")
                beat = await store.heartbeat(run_id, words["fence"], checkpoint, self.lease, number=number)
                return 200, {"cancel": beat.cancel, "inputs": beat.inputs}
            case "finish":
                if len(asked.get("result", b"")) > self.most_result:
                    raise TooLarge("the result is above the limit")
                settled = await store.finish(
                    run_id,
                    words["fence"],
                    words["status"],
                    result=raw(asked.get("result")),
                    error=raw(asked.get("error")),
                    batch=words.get("batch"),
                    events=news(asked.get("events")),
                )
                return 200, {"run": shown(settled.run), "changed": settled.changed}
            case "release":
                settled = await store.release(run_id, words["fence"], raw(asked.get("checkpoint")))
                return 200, {"run": shown(settled.run), "changed": settled.changed}
            case "inputs":
                found = await store.inputs(run_id, int(query["after"]))
                return 200, {"inputs": [{"n": n, "data": msgspec.Raw(data)} for n, data in found]}
            case "cancel":
                return 200, shown((await store.cancel(run_id)).run)
            case "input":
                return 202, {"n": await store.send(run_id, bytes(asked["data"]))}
        return 404, {"error": {"code": "no_route", "message": parts.path}}

    async def _claim(self, words: dict[str, Any], reader: Any) -> tuple[int, Any]:
        until = asyncio.get_running_loop().time() + words["wait"]
        while not reader.at_eof():
            claim = await self.store.claim(
                words["services"],
                words["worker"],
                pull=True,
                lanes=words.get("lanes", ("fast", "heavy")),
                lease=self.lease,
            )
            if claim is not None:
                return 200, {
                    "run": shown(claim.run),
                    "fence": claim.run.fence,
                    "input": msgspec.Raw(claim.input),
                    "checkpoint": msgspec.Raw(claim.checkpoint or b"null"),
                    "lease_s": self.lease,
                }
            if asyncio.get_running_loop().time() >= until:
                break
            await asyncio.sleep(POLL)
        return 204, None

    async def _held(self, run: str, seconds: float) -> Run:
        until = asyncio.get_running_loop().time() + seconds
        while True:
            found = await self.store.get(run)
            if found.status in TERMINAL or asyncio.get_running_loop().time() >= until:
                return found
            await asyncio.sleep(POLL)

    async def _stream(self, writer: Any, run: str, headers: dict[str, str]) -> None:
        after, sent = int(headers.get("last-event-id", -1)), 0
        batch = await self.store.read(run, after)
        writer.write(b"HTTP/1.1 200 X\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        while True:
            for event in batch.events:
                if sent == self.cut_after:
                    await writer.drain()
                    writer.transport.abort()
                    return
                text = b"id: %d\nevent: %b\ndata: %b\n\n" % (event.seq, event.type.encode(), event.data)
                writer.write(b"%x\r\n%b\r\n" % (len(text), text))
                after, sent = event.seq, sent + 1
            if batch.ended:
                break
            writer.write(b"3\r\n:\n\n\r\n")
            await asyncio.sleep(POLL)
            await writer.drain()
            batch = await self.store.read(run, after)
        writer.write(b"0\r\n\r\n")
        await writer.drain()


def raw(value: msgspec.Raw | None) -> bytes | None:
    return None if value is None else bytes(value)


def news(value: msgspec.Raw | None) -> list[NewEvent]:
    if value is None:
        return []
    found = msgspec.json.decode(value, type=list[dict[str, msgspec.Raw]])
    return [NewEvent(msgspec.json.decode(each["type"]), bytes(each["data"])) for each in found]


def shown(run: Run) -> dict[str, Any]:
    return {
        "id": run.id,
        "service": run.service,
        "status": run.status,
        "lane": run.lane,
        "version": run.version,
        "attempt": run.attempt,
        "created_at": "2026-01-01T00:00:00Z",
        "started_at": None,
        "ended_at": None,
        "cancel_requested": run.cancel_requested,
        "metadata": run.metadata,
        "error": run.error,
        "links": {"self": f"/v1/runs/{run.id}"},
    }


@asynccontextmanager
async def api(store: Store, lease: float = 30.0) -> AsyncIterator[Api]:
    server = Api(store, lease)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def until(true: Callable[[], Any], seconds: float = 20.0) -> None:
    """Polls, because nobody announces it."""
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.005)
