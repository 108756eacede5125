"""A version goes bad, then the basic agent behind it dies, then the version comes back: what do callers see, each in
the way it speaks?"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, NamedTuple

import openai
import websockets

from .stage import Answer, Caller, Stage, request

MESSAGE = "We are improving this agent. Please try again soon."
OPEN = 2.0
SERVICES = f"""\
  agent:
    match: {{path: /agent}}
    breaker: {{error_rate: 5%, open: {OPEN:g}s}}
    fallback: [basic, {{maintenance: "{MESSAGE}", retry_after: 30s}}]
    versions: {{v1: {{endpoints: ["{{bad}}"]}}}}
  chat:
    match: {{path: /v1}}
    dialect: openai
    breaker: {{error_rate: 5%, open: {OPEN:g}s}}
    fallback: [basic, {{maintenance: "{MESSAGE}", retry_after: 30s}}]
    versions: {{v1: {{endpoints: ["{{bad}}"]}}}}
  basic: {{match: {{path: /basic}}, versions: {{v1: {{endpoints: ["{{basic}}"]}}}}}}
"""
#: What is asked by each kind of caller, and the service it reaches.
KINDS = {"JSON": "agent", "SSE": "agent", "WebSocket": "agent", "openai SDK": "chat"}
#: Callers of each kind, and seconds between two requests of one.
CROWD = 4
PAUSE = 0.004

VERSION, BASIC, MAINTENANCE, BROKEN = "version", "basic", "maintenance", "its 5xx"


class Told(NamedTuple):
    """What one caller got, between two times. `result`: one of the four, or words on what else."""

    kind: str
    sent: float
    done: float
    result: str


class Crowd:
    """Callers of all kinds, in a closed loop with a pause, until `stop`."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.told: list[Told] = []
        self.stopped = False

    async def run(self) -> None:
        kinds = {"JSON": self.json, "SSE": self.events, "WebSocket": self.socket, "openai SDK": self.sdk}
        async with asyncio.TaskGroup() as group:
            for kind, ask in kinds.items():
                for _ in range(CROWD):
                    group.create_task(self.repeat(kind, ask))

    async def repeat(self, kind: str, ask: Callable[[Any], Coroutine[Any, Any, str]]) -> None:
        tool: Any = None
        if kind == "openai SDK":
            url = f"http://127.0.0.1:{self.stage.port}/v1"
            tool = openai.AsyncOpenAI(base_url=url, api_key="unused", max_retries=0)
        elif kind != "WebSocket":
            tool = await self.stage.caller()
        while not self.stopped:
            sent = time.monotonic()
            try:
                result = await ask(tool)
            except ConnectionError as error:
                result = f"connection lost: {error}"
                tool = await self.stage.caller()
            self.told.append(Told(kind, sent, time.monotonic(), result))
            await asyncio.sleep(PAUSE)
        if isinstance(tool, openai.AsyncOpenAI):
            await tool.close()
        elif tool is not None:
            tool.transport.abort()

    async def json(self, caller: Caller) -> str:
        answer = await caller.ask(request("/agent/ask", "", b'{"q": 1}'))
        if answer.status == 503 and answer.field("retry-after") == "30":
            error = json.loads(answer.body)["error"]
            if (error["code"], error["message"]) == ("maintenance", MESSAGE):
                return MAINTENANCE
        return _plain(answer)

    async def events(self, caller: Caller) -> str:
        answer = await caller.ask(request("/agent/events", "Accept: text/event-stream\r\n", b'{"q": 1}'))
        if answer.status == 503 and answer.field("content-type") == "text/event-stream":
            retry, event, data, *_ = answer.body.decode().split("\n")
            said = json.loads(data.removeprefix("data: "))["error"]["message"]
            if (retry, event, said) == ("retry: 30000", "event: error", MESSAGE):
                return MAINTENANCE
        if answer.status == 200 and answer.field("content-type") != "text/event-stream":
            return f"no stream: {answer.head[:80]!r}"
        return _plain(answer)

    async def socket(self, _: None) -> str:
        try:
            async with websockets.connect(f"ws://127.0.0.1:{self.stage.port}/agent/socket", proxy=None) as socket:
                assert socket.response is not None
                fields = socket.response.headers
                await socket.send("hello")
                said = await socket.recv()
                if said != "hello":
                    return f"echoed {said!r}"
                return BASIC if fields.get("x-unjam-fallback") == "basic" else VERSION
        except websockets.InvalidStatus as refused:
            answer = refused.response
            return _status(answer.status_code)
        except websockets.ConnectionClosed as closed:
            if closed.rcvd is not None and (closed.rcvd.code, closed.rcvd.reason) == (1013, MESSAGE):
                return MAINTENANCE
            return f"closed: {closed.rcvd}"

    async def sdk(self, client: openai.AsyncOpenAI) -> str:
        try:
            raw = await client.chat.completions.with_raw_response.create(
                model="bench", messages=[{"role": "user", "content": "hi"}]
            )
        except openai.InternalServerError as error:
            body = error.body if isinstance(error.body, dict) else {}
            told = (error.status_code, error.code, body.get("message"), error.response.headers.get("retry-after"))
            return MAINTENANCE if told == (503, "maintenance", MESSAGE, "30") else _status(error.status_code)
        except openai.APIError as error:
            return f"{type(error).__name__}: {error}"
        if raw.parse().choices[0].message.content != "fine":
            return "another completion"
        fields = raw.headers
        return BASIC if fields.get("x-unjam-fallback") == "basic" else VERSION


def _plain(answer: Answer) -> str:
    if answer.status == 200:
        return BASIC if answer.field("x-unjam-fallback") == "basic" else VERSION
    return _status(answer.status)


def _status(status: int) -> str:
    return BROKEN if status == 500 else f"status {status}"


def measure(seconds: float, recoveries: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="unjam-bench-") as scratch:
        stage = Stage(Path(scratch), ("bad", "basic"), SERVICES)
        try:
            stage.ready()
            return asyncio.run(_measure(stage, seconds, recoveries))
        finally:
            stage.stop()


async def _measure(stage: Stage, seconds: float, recoveries: int) -> dict[str, Any]:
    crowd = Crowd(stage)
    running = asyncio.create_task(crowd.run())
    try:
        await asyncio.sleep(seconds / 4)
        bad_from = time.monotonic()
        await asyncio.to_thread(stage.plant, "bad", 1.0)
        await asyncio.sleep(seconds)
        await asyncio.to_thread(stage.kill, "basic")
        killed = time.monotonic()
        await asyncio.sleep(seconds)
        times = await asyncio.to_thread(stage.times, "bad")
        await asyncio.to_thread(stage.plant, "bad", 0.0)
        good_from = time.monotonic()
        back = await until_closed(stage)
        await asyncio.sleep(0.5)
        phases = {
            "good": (0.0, bad_from),
            "bad": (bad_from, killed),
            "bad, basic agent killed": (killed, good_from),
            "good again": (good_from, back),
            "recovered": (back, time.monotonic()),
        }
        told = list(crowd.told)
        await asyncio.to_thread(stage.restart, "basic")
        again = [await recovery(stage) for _ in range(recoveries)]
    finally:
        crowd.stopped = True
        await running
    trips = {service: trip(told, service, bad_from) for service in set(KINDS.values())}
    return {
        "open": OPEN,
        "phases": {name: tally(told, begin, end, trips) for name, (begin, end) in phases.items()},
        "before_the_trip": {
            service: sum(each.result == BROKEN and KINDS[each.kind] == service for each in told) for service in trips
        },
        "after_the_trip": {
            "answers": sum(each.sent > trips[KINDS[each.kind]] for each in told),
            "its_5xx": sum(each.sent > trips[KINDS[each.kind]] and each.result == BROKEN for each in told),
            # A call that runs on the basic agent when that is killed ends honestly: it may have begun the work.
            "lost_with_the_basic_agent": sum(each.sent < killed for each in strange(told)),
            "other": Counter(each.result for each in strange(told) if each.sent >= killed),
        },
        "version": {service: sent_to(times, service, trips[service]) for service in trips},
        "to_full_weight_after_long": back - good_from,
        "to_full_weight": again,
    }


def trip(told: list[Told], service: str, after: float) -> float:
    """When the first caller read what the basic agent answered."""
    return min(each.done for each in told if KINDS[each.kind] == service and each.result == BASIC and each.sent > after)


def strange(told: list[Told]) -> list[Told]:
    return [each for each in told if each.result not in (VERSION, BASIC, MAINTENANCE, BROKEN)]


def tally(told: list[Told], begin: float, end: float, trips: dict[str, float]) -> dict[str, dict[str, int]]:
    """By kind of caller: results of what was sent in a phase; those that came before the trip are left out."""
    out: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    for each in told:
        service = KINDS[each.kind]
        if begin <= each.sent < end and not (begin < trips[service] < end and each.sent <= trips[service]):
            out[each.kind][each.result] += 1
    return {kind: dict(counts) for kind, counts in out.items()}


def sent_to(times: list[tuple[str, float]], service: str, tripped: float) -> dict[str, Any]:
    """What the bad version was sent after it tripped: when the first came, and how many with each ramp."""
    since = [at - tripped for path, at in times if path.startswith("/v1") == (service == "chat") and at > tripped + 0.1]
    ramps: list[int] = []
    last = 0.0
    for at in sorted(since):
        if at - last > OPEN / 2:
            ramps.append(0)
        ramps[-1] += 1
        last = at
    return {"first_after": min(since, default=None), "probes": len(since), "by_ramp": ramps}


async def until_closed(stage: Stage) -> float:
    """Until both versions have all their weight again; returns when."""
    async with asyncio.timeout(120):
        while True:
            states = (await asyncio.to_thread(stage.get, "/api/state"))["services"]
            if all(states[service]["versions"]["v1"]["breaker"]["state"] == "closed" for service in ("agent", "chat")):
                return time.monotonic()
            await asyncio.sleep(0.02)


async def recovery(stage: Stage) -> float:
    """Seconds from the trip to full weight, of a version that is well again at once."""
    for service in ("agent", "chat"):  # else it would be the same trouble, and open for twice as long
        await asyncio.to_thread(stage.post, "/api/breaker", service=service, version="v1", action="reset")
    await asyncio.sleep(0.5)
    await asyncio.to_thread(stage.plant, "bad", 1.0)
    began = time.monotonic()
    async with asyncio.timeout(60):
        while True:
            states = (await asyncio.to_thread(stage.get, "/api/state"))["services"]
            if all(states[service]["versions"]["v1"]["breaker"]["state"] == "open" for service in ("agent", "chat")):
                break
            await asyncio.sleep(0.01)
    tripped = time.monotonic()
    await asyncio.to_thread(stage.plant, "bad", 0.0)
    assert tripped - began < OPEN, "one of them was open before the other tripped"
    return await until_closed(stage) - tripped
